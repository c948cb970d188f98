"""The errors of the library: every one is an :class:`HsvError`, which is a :class:`ValueError`."""


class HsvError(ValueError):
    """Something about the input or the problem is wrong; the message says what, where, and what to do."""


class ShapeError(HsvError):
    """An array does not have the shape that the others ask for."""


class DtypeError(HsvError, TypeError):
    """An array or an argument has a type that cannot be used here."""


class NonFiniteError(HsvError):
    """An array contains NaN or infinity."""


class UnstableSystemError(HsvError):
    """A system must be asymptotically stable here, and is not."""


class OrderError(HsvError):
    """No order satisfies the rule, or the order asked for does not exist."""


class IllConditionedError(HsvError):
    """The problem has no answer that working precision could represent (a defective matrix, say)."""


class ConvergenceError(HsvError):
    """An iteration did not reach its tolerance; ``history`` has what each step reached."""

    def __init__(self, message: str, history: tuple[object, ...] = ()) -> None:
        super().__init__(message)
        self.history = history


class MissingBackendError(HsvError, ImportError):
    """An optional package, or something that a device lacks, is needed and not there."""


class OrderWarning(UserWarning):
    """The order chosen is right but needs a second look: it was capped, or the cut splits a cluster."""
