"""Conversion from and to other control libraries; each is imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hsv._array import to_host
from hsv._errors import DtypeError, HsvError, MissingBackendError, ShapeError
from hsv._systems import DiagonalStateSpace, StateSpace

if TYPE_CHECKING:
    import control


def from_control(sys: control.StateSpace | control.TransferFunction, *, dt: float | bool | None = None) -> StateSpace:
    """Convert a system of python-control.

    Parameters
    ----------
    sys : control.StateSpace or control.TransferFunction
        A transfer function is realised by python-control first (``control.ss``; more than one input or output needs slycot).
    dt : float or bool, optional
        The time base, only for a system that has none (``dt=None`` in python-control): ``0`` continuous, ``True`` or seconds discrete.

    Returns
    -------
    StateSpace
        NumPy arrays in double precision. Names of the system and its signals are not kept: a reduced state is none of the old ones.

    Raises
    ------
    HsvError
        The time base is unspecified and `dt` does not say it, or it is specified and `dt` says another.
    DtypeError
        `sys` is no linear system of python-control.
    ShapeError
        `sys` is a static gain.
    MissingBackendError
        python-control is not installed.

    Examples
    --------
    >>> import control, hsv
    >>> hsv.from_control(control.ss([[0.5]], [[1.0]], [[1.0]], 0.0, True))
    <StateSpace: 1 states, 1 inputs, 1 outputs, discrete, float64>
    """
    control = _import_control()
    if not isinstance(sys, (control.StateSpace, control.TransferFunction)):
        raise DtypeError(f"sys must be a StateSpace or TransferFunction of python-control, got {type(sys).__name__}")
    if sys.dt is None and dt is None:
        raise HsvError(
            "the system's time base is unspecified (dt=None in python-control); pass dt=0 (continuous), dt=True or dt=seconds (discrete)"
        )
    if sys.dt is not None and dt is not None and (sys.dt != dt or (sys.dt is True) != (dt is True)):
        raise HsvError(
            f"dt must be left out or equal to the system's own, {sys.dt!r}, got {dt!r}; use control.sample_system to change it"
        )
    realization = sys if isinstance(sys, control.StateSpace) else control.ss(sys)
    if realization.nstates == 0:
        raise ShapeError("sys must have at least one state, got a static gain")
    A, B, C, D = (np.asarray(x) for x in (realization.A, realization.B, realization.C, realization.D))
    return StateSpace(A, B, C, D, dt=sys.dt if dt is None else dt)


def to_control(
    sys: StateSpace | DiagonalStateSpace,
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    states: Sequence[str] | None = None,
    name: str | None = None,
) -> control.StateSpace:
    """Convert a real system to python-control.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        One real system, not a batch. A diagonal system comes out dense.
    inputs, outputs, states : sequence of str, optional
        Names of the signals, one each; python-control's own (``u[0]``, ``y[0]``, ``x[0]``) if left out.
    name : str, optional
        Name of the system.

    Returns
    -------
    control.StateSpace
        In double precision, with the same ``dt``.

    Raises
    ------
    DtypeError
        The system is complex, which python-control does not support (it drops imaginary parts).
    ShapeError
        The system is a batch, or the number of names is wrong.
    MissingBackendError
        python-control is not installed.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=0.1)
    >>> converted = hsv.to_control(sys, inputs=["force"])
    >>> converted.dt, converted.input_labels
    (0.1, ['force'])
    """
    control = _import_control()
    if sys.batch_shape:
        raise ShapeError(
            f"sys must be one system, got a batch of shape {sys.batch_shape}; convert its systems one at a time"
        )
    dense = sys.to_dense()
    if dense.is_complex:
        raise DtypeError(
            "sys must be real, for python-control drops imaginary parts; convert hsv.real_part(sys), the system of u -> Re(y), instead"
        )
    for what, labels, expected in (
        ("inputs", inputs, sys.n_inputs),
        ("outputs", outputs, sys.n_outputs),
        ("states", states, dense.n_states),
    ):
        if labels is not None and (isinstance(labels, str) or len(labels) != expected):
            raise ShapeError(f"{what} must be a list of {expected} names, got {labels!r}")
    A, B, C, D = (to_host(x).astype(np.float64) for x in (dense.A, dense.B, dense.C, dense.D))
    given = {"inputs": inputs, "outputs": outputs, "states": states, "name": name}
    # remove_useless_states: python-control may otherwise be configured to delete zero rows, and with them states
    return control.ss(
        A, B, C, D, dense.dt, remove_useless_states=False, **{k: v for k, v in given.items() if v is not None}
    )


def _import_control() -> Any:
    try:
        import control
    except ImportError as error:
        raise MissingBackendError("python-control is needed here and not installed; pip install control") from error
    return control
