"""Means over a stream of sequences: what the estimators have in common."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

import numpy as np

from hsv._array import Array, from_host, is_array, namespace, round_to, to_host
from hsv._errors import DtypeError, HsvError, NonFiniteError, ShapeError

N_GROUPS = 32  # of sequences; a standard error from 32 of them is itself known to one part in eight
KINDS = ("hankel", "ghost", "second_moment")


class StreamEstimator:
    """Sums over the sequences of a stream, with what makes means, scores and standard errors of them.

    The sums whose names are in ``grouped`` have a first axis of ``N_GROUPS``: sequence number ``k`` belongs to group ``k % N_GROUPS``, and
    leaving one group out at a time gives the standard errors. A merge turns the other's groups by the number of sequences
    here, so that it equals one long stream.
    """

    grouped: tuple[str, ...] = ("steps", "p", "q", "product")

    _settings: dict[str, Any]
    _sums: dict[str, np.ndarray]
    _n_sequences: int
    _like: Array

    @property
    def n_sequences(self) -> int:
        """Number of sequences seen."""
        return self._n_sequences

    @property
    def n_steps(self) -> float:
        """Number of steps seen, padding not counted; a step counts as much as its sequence weighs."""
        total = float(self._sums["steps"].sum()) if self._sums else 0.0
        return int(total) if total.is_integer() else total

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self._settings.items())
        return f"<{type(self).__name__}: {self.n_sequences} sequences, {self.n_steps} steps, {settings}>"

    # ------------------------------------------------------------------ results

    def scores(self, kind: str = "hankel", *, per_channel: bool = False) -> Array:
        r"""Return what each state is worth, ``(n,)``, or ``(d, n)`` with `per_channel`.

        Parameters
        ----------
        kind : str
            ``"hankel"``: :math:`\sqrt{\sum_c P_{jj} Q_{jj}}`, what reaches the state and what it sends to this output and those to come, of the mean Gramians
            of the channels :math:`c`. ``"ghost"``: :math:`\sqrt{\sum_c E[|C_{tj}|^2 |h_{tj}|^2]}`, the state's share of the outputs at the same step
            (GHOST). ``"second_moment"``: :math:`\sqrt{\sum_c P_{jj}}`, the size of the state alone. Where no inputs are recorded, :math:`|h|^2` is its
            expectation under white noise.
        per_channel : bool
            A score for each state of each channel of a :class:`SelectiveEstimator`, without the sum.

        Raises
        ------
        HsvError
            No sequence has been seen, or there is no such score.
        """
        self._require_sequences(1)
        return self._result(self._scores_of(kind, per_channel, self._occupied()))

    def _score(self, kind: str, per_channel: bool, sums: Mapping[str, np.ndarray]) -> np.ndarray:
        """The score of sums over some sequences; channels are the axis before the last."""
        if kind not in KINDS:
            raise HsvError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}")
        steps = sums["steps"]
        if kind == "hankel":
            squares = (sums["p"] / steps) * (sums["q"] / steps)
        else:
            squares = sums["product" if kind == "ghost" else "p"] / steps
        if per_channel and squares.ndim == 1:
            raise HsvError("per_channel must be False here: this system has no channels")
        squares = np.maximum(squares, 0.0)  # a difference of sums may be a rounding below zero
        return np.sqrt(squares if per_channel or squares.ndim == 1 else squares.sum(axis=-2))

    def _scores_of(self, kind: str, per_channel: bool, groups: Iterable[int]) -> np.ndarray:
        """The scores of the sequences in some groups alone."""
        chosen = list(groups)
        return self._score(kind, per_channel, {name: self._sums[name][chosen].sum(axis=0) for name in self.grouped})

    def _occupied(self) -> np.ndarray:
        return np.flatnonzero(self._sums["steps"]) if self._sums else np.empty(0, int)

    def _standard_error(self, kind: str, per_channel: bool) -> np.ndarray:
        """The jackknife that leaves out a group at a time, for groups of unequal weight (Busing, Meijer and van der Leeden 1999, eq. 4)."""
        self._require_sequences(2)
        groups = self._occupied()
        total = {name: self._sums[name].sum(axis=0) for name in self.grouped}
        whole = self._score(kind, per_channel, total)
        share = self._sums["steps"][groups] / total["steps"]  # of each group
        without = []
        for g in groups:
            rest = {name: total[name] - self._sums[name][g] for name in self.grouped}
            without.append(self._score(kind, per_channel, rest))
        ratio = 1.0 / share
        pseudo = np.stack([r * whole - (r - 1.0) * w for r, w in zip(ratio, without, strict=True)])
        centre = len(groups) * whole - sum((1.0 - s) * w for s, w in zip(share, without, strict=True))
        weights = 1.0 / (ratio - 1.0)
        variance = np.tensordot(weights, (pseudo - centre) ** 2, axes=1) / len(groups)
        return np.sqrt(variance)

    def standard_error(self, kind: str = "hankel", *, per_channel: bool = False) -> Array:
        """Return the standard error of :meth:`scores`, of the same shape: how far they are from those of an endless stream.

        The jackknife over 32 groups of sequences (each sequence its own group, while there are no more): scores are computed again without one group at
        a time, and their spread is scaled up. It takes sequences as independent of one another, and is itself uncertain by an eighth.

        Raises
        ------
        HsvError
            Fewer than two sequences have been seen.
        """
        return self._result(self._standard_error(kind, per_channel))

    def converged(
        self, relative: float = 0.05, *, kind: str = "hankel", keep: int | None = None, agreement: float = 0.9
    ) -> bool:
        """Tell whether further sequences would change little: a rule for when to stop feeding the estimator.

        True if the standard errors of :meth:`scores` are at most `relative` of the scores, both as Euclidean lengths over the states; and,
        where `keep` is given, if the two halves of the stream (every other group of sequences), each on its own, agree on
        at least the share `agreement` of the `keep` best states. False before the second sequence.

        Raises
        ------
        HsvError
            `relative` or `agreement` is not positive, or `keep` is no number of states.
        """
        if not relative > 0 or not 0 < agreement <= 1:
            raise HsvError(
                f"relative must be positive and agreement in (0, 1], got relative={relative!r} and agreement={agreement!r}"
            )
        if self.n_sequences < 2:
            return False
        groups = self._occupied()
        scores = self._scores_of(kind, False, groups)
        if np.linalg.norm(self._standard_error(kind, False)) > relative * np.linalg.norm(scores):
            return False
        if keep is None:
            return True
        if isinstance(keep, bool) or not isinstance(keep, int) or not 1 <= keep <= scores.shape[-1]:
            raise HsvError(f"keep must be a number of states in [1, {scores.shape[-1]}], got {keep!r}")
        halves = [set(np.argsort(-self._scores_of(kind, False, half))[:keep]) for half in (groups[::2], groups[1::2])]
        return len(halves[0] & halves[1]) >= agreement * keep

    def _mean(self, name: str) -> np.ndarray:
        self._require_sequences(1)
        total = self._sums[name].sum(axis=0) if name in self.grouped else self._sums[name]
        return total / self.n_steps

    def _require_sequences(self, least: int) -> None:
        if self.n_sequences < least:
            raise HsvError(
                f"the estimator must have seen at least {least} sequence{'s' if least > 1 else ''}, it has seen {self.n_sequences}; call update first"
            )

    def _result(self, host: np.ndarray) -> Array:
        return round_to(from_host(np.ascontiguousarray(host), self._like), self._like)

    # ------------------------------------------------------------------ adding

    def _commit(self, fresh: dict[str, np.ndarray], n_sequences: int) -> None:
        self._sums |= {name: self._sums[name] + v if name in self._sums else v for name, v in fresh.items()}
        self._n_sequences += n_sequences

    def merge(self, other: Self) -> Self:
        """Add what another estimator has seen to this one, and return this one.

        The result is that of one estimator that has seen this one's sequences and then the other's, to rounding; so merging is associative to rounding.

        Raises
        ------
        HsvError
            The other estimator was made with other arguments (`seed` apart) or has seen other sizes.
        """
        if type(other) is not type(self):
            raise DtypeError(f"other must be a {type(self).__name__}, got a {type(other).__name__}")
        self._check_compatible("other", other._settings, other._sums, other._constants())
        if self._n_sequences == 0:
            self._like = other._like
        turn = self._n_sequences % N_GROUPS
        fresh = {n: np.roll(s, turn, axis=0) if n in self.grouped else s.copy() for n, s in other._sums.items()}
        self._commit(fresh, other._n_sequences)
        return self

    def _check_compatible(
        self, what: str, settings: dict[str, Any], sums: dict[str, np.ndarray], constants: dict[str, np.ndarray]
    ) -> None:
        different = [n for n, v in self._settings.items() if n != "seed" and settings.get(n) != v]
        if different:
            found = ", ".join(f"{n}={settings.get(n)!r} (here {self._settings[n]!r})" for n in different)
            raise HsvError(f"{what} must have been made with the same arguments, got {found}")
        for name, here in self._constants().items():
            if name not in constants or not np.array_equal(here, constants[name]):
                raise HsvError(f"{what} must have been made with the same {name}; make one estimator for each layer")
        if self._sums and sums and {n: s.shape for n, s in self._sums.items()} != {n: s.shape for n, s in sums.items()}:
            raise ShapeError(f"{what} must have seen systems of the same sizes; make one estimator for each layer")

    # ------------------------------------------------------------------ saving

    def state_dict(self) -> dict[str, Any]:
        """Return copies of everything the estimator holds: ``settings``, ``n_sequences``, and NumPy arrays by name in ``sums`` and ``constants``."""
        return {
            "settings": dict(self._settings),
            "n_sequences": self._n_sequences,
            "sums": {name: values.copy() for name, values in self._sums.items()},
            "constants": {name: values.copy() for name, values in self._constants().items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace what the estimator holds by what :meth:`state_dict` returned.

        Raises
        ------
        HsvError
            The state is of an estimator that was made with other arguments (`seed` apart), or is incomplete.
        """
        missing = {"settings", "n_sequences", "sums", "constants"} - state.keys()
        if missing:
            raise HsvError(f"state must be what state_dict() returned, it lacks {', '.join(sorted(missing))}")
        sums = {name: np.array(to_host(s) if is_array(s) else s) for name, s in state["sums"].items()}
        self._check_compatible("state", state["settings"], {}, state["constants"])
        self._set(state["settings"], state["n_sequences"], sums)

    def _set(self, settings: dict[str, Any], n_sequences: int, sums: dict[str, np.ndarray]) -> None:
        self._settings, self._n_sequences, self._sums = dict(settings), int(n_sequences), sums

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the estimator to a file, a NumPy ``.npz`` archive without pickles."""
        state = self.state_dict()
        header = json.dumps(
            {"class": type(self).__name__, "settings": state["settings"], "n_sequences": state["n_sequences"]}
        )
        with open(path, "wb") as file:
            np.savez(file, header=np.array(header), **state["sums"], **state["constants"])

    def _constants(self) -> dict[str, np.ndarray]:
        """Arrays that the estimator was made with."""
        return {}

    @classmethod
    def _read(cls, path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        if "header" not in arrays:
            raise HsvError(f"{os.fspath(path)} must be a file that {cls.__name__}.save wrote, it has no header")
        header = json.loads(str(arrays.pop("header")))
        if header["class"] != cls.__name__:
            raise HsvError(f"{os.fspath(path)} must hold a {cls.__name__}, it holds a {header['class']}")
        return header, arrays


def check_mask(mask: Any, batch: int, length: int) -> np.ndarray | None:
    """Return the mask on the host, ``(batch, T)``, ``None`` where nothing is masked; an error names a sequence without a step."""
    if mask is None:
        return None
    host = to_host(mask) if is_array(mask) else np.asarray(mask)
    if host.dtype != np.bool_:
        raise DtypeError(f"mask must be boolean (True: a step, False: padding), got dtype {host.dtype}")
    if host.shape != (batch, length):
        raise ShapeError(f"mask must have shape (batch, T) = ({batch}, {length}), got {host.shape}")
    empty = np.flatnonzero(~host.any(axis=1))
    if empty.size:
        raise HsvError(f"every sequence must have a step, all of sequence {int(empty[0])} is masked; leave it out")
    return None if host.all() else host


def require_finite_sequences(name: str, array: Array, mask: np.ndarray | None) -> None:
    """Raise :class:`NonFiniteError` that names the first sequence with NaN or infinity at a step that counts; axes ``(batch, T, ...)``."""
    xp = namespace(array)
    finite = xp.isfinite(array)
    if bool(xp.all(finite)):
        return
    bad = ~to_host(finite)
    if mask is not None:
        bad &= mask.reshape(*mask.shape, *(1,) * (bad.ndim - 2))
    if not bad.any():
        return
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    raise NonFiniteError(
        f"{name} must be finite, found {to_host(array)[where]} in sequence {where[0]} at step {where[1]} (index {where}); "
        "the estimator is unchanged: leave the sequence out, or mask the step if it is padding"
    )


def moved_to_front(array: Array, mask: np.ndarray | None) -> Array:
    """Return ``(batch, T, ...)`` with the steps that count first and zeros after them."""
    if mask is None:
        return array
    xp = namespace(array)
    (batch, length), rest = mask.shape, tuple(array.shape[2:])
    order = np.argsort(~mask, axis=1, kind="stable") + length * np.arange(batch)[:, None]
    moved = xp.take(xp.reshape(array, (batch * length, *rest)), from_host(order.reshape(-1), array), axis=0)
    moved = xp.reshape(moved, (batch, length, *rest))
    present = np.arange(length) < mask.sum(axis=1)[:, None]
    return xp.where(from_host(present.reshape(batch, length, *(1,) * len(rest)), array), moved, xp.zeros_like(moved))


def blocks(length: int, window: int | None) -> Iterator[tuple[int, int, int]]:
    """Yield ``begin, end, horizon`` of the blocks of a backward pass: it runs from ``horizon`` back to ``begin``, and the steps below ``end`` count.

    Blocks of half a window look ahead to a window after their beginning.
    """
    hop = length if window is None else (window + 1) // 2
    for begin in range(0, length, hop):
        yield begin, min(begin + hop, length), length if window is None else min(begin + window, length)


def backward_pieces(length: int, window: int | None, longest: int) -> Iterator[tuple[int, int, bool, bool]]:
    """Yield ``begin, end, counted, first`` of the pieces of the :func:`blocks`, in the order in which they are run.

    A block begins afresh with its `first` piece. Counted pieces have at most `longest` steps.
    """
    for begin, end, horizon in blocks(length, window):
        if horizon > end:
            yield end, horizon, False, True
        starts = range(begin, end, longest)
        for start in reversed(starts):
            yield start, min(start + longest, end), True, horizon == end and start == starts[-1]


def check_window(window: int | None) -> None:
    """Raise unless `window` is ``None`` or a positive int."""
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise HsvError(f"window must be a positive number of steps or None, got {window!r}")
