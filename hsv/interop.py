"""Conversion from and to other control libraries, each imported when it is first asked for, and the names of signals."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hsv._array import to_host
from hsv._errors import DtypeError, MissingBackendError, ShapeError
from hsv._files import check_labels, choose_dt, make_system, read_model
from hsv._systems import LinearSystem, StateSpace, require_system

if TYPE_CHECKING:
    import control
    import scipy.signal


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
        NumPy arrays in double precision, without names: :func:`labels` has those of the signals, to pass on to :func:`to_control` after a
        reduction. States have none then, for a reduced state is none of the old ones.

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
    chosen = choose_dt(
        sys.dt,
        dt,
        where="sys (dt=None in python-control)",
        change="use control.sample_system to change it",
    )
    realization = sys if isinstance(sys, control.StateSpace) else control.ss(sys)
    if realization.nstates == 0:
        raise ShapeError("sys must have at least one state, got a static gain")
    A, B, C, D = (np.asarray(x) for x in (realization.A, realization.B, realization.C, realization.D))
    return StateSpace(A, B, C, D, dt=chosen)


def to_control(
    sys: LinearSystem,
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
        Names of the signals, one each; python-control's own (``u[0]``, ``y[0]``, ``x[0]``) if left out. ``**hsv.labels(plant)`` gives those of another system.
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
    dense = _single(sys)
    if dense.is_complex:
        raise DtypeError(
            "sys must be real, for python-control drops imaginary parts; convert hsv.real_part(sys), the system of u -> Re(y), instead"
        )
    for what, names, expected in (
        ("inputs", inputs, sys.n_inputs),
        ("outputs", outputs, sys.n_outputs),
        ("states", states, dense.n_states),
    ):
        check_labels(what, names, expected)
    A, B, C, D = (to_host(x).astype(np.float64) for x in (dense.A, dense.B, dense.C, dense.D))
    given = {"inputs": inputs, "outputs": outputs, "states": states, "name": name}
    # remove_useless_states: python-control may otherwise be configured to delete zero rows, and with them states
    return control.ss(
        A, B, C, D, dense.dt, remove_useless_states=False, **{k: v for k, v in given.items() if v is not None}
    )


def labels(
    source: control.StateSpace | control.TransferFunction | str | os.PathLike[str], *, dt: float | bool | None = None
) -> dict[str, Any]:
    """Return the names of inputs and outputs, and of the system, as keywords for :func:`to_control` and :func:`save`.

    The systems of this library are matrices without names. A reduction has new states, but the inputs and outputs of the original, so their names fit.

    Parameters
    ----------
    source : system of python-control, or path
        Where to look: a system, or a file that :func:`load` reads.
    dt : float or bool, optional
        As in :func:`load`, for a file without a time base.

    Returns
    -------
    dict
        With the keys ``inputs``, ``outputs`` and ``name``, each only where somebody chose the names: python-control's ``u[0]``, ``y[0]``, ``sys[0]`` are left out.

    Raises
    ------
    DtypeError
        `source` is neither.
    HsvError, OSError
        As in :func:`load`.

    Examples
    --------
    >>> import control, hsv
    >>> plant = control.ss([[0.5, 0.1], [0.0, -0.5]], [[1.0], [1.0]], [[1.0, 1.0]], 0.0, 0.1, inputs=["force"], name="cart")
    >>> hsv.labels(plant)
    {'inputs': ['force'], 'name': 'cart'}
    >>> red = hsv.balanced_truncation(hsv.from_control(plant), 1)
    >>> smaller = hsv.to_control(red.system, **hsv.labels(plant))
    >>> smaller.name, smaller.input_labels, smaller.dt
    ('cart', ['force'], 0.1)
    """
    if isinstance(source, (str, os.PathLike)):
        return read_model(source, dt=dt).labels
    if not (hasattr(source, "input_labels") and hasattr(source, "output_labels")):
        raise DtypeError(
            f"source must be a system of python-control or the path of a file, got {type(source).__name__}"
        )
    found: dict[str, Any] = {}
    for key, letter, names in (("inputs", "u", source.input_labels), ("outputs", "y", source.output_labels)):
        if list(names) != [f"{letter}[{i}]" for i in range(len(names))]:
            found[key] = list(names)
    if source.name and not re.match(r"sys\[\d+\]", source.name):
        found["name"] = source.name
    return found


def from_scipy(sys: scipy.signal.lti | scipy.signal.dlti) -> StateSpace:
    """Convert a linear system of ``scipy.signal``.

    Parameters
    ----------
    sys : scipy.signal.lti or scipy.signal.dlti
        A ``StateSpace``, ``TransferFunction`` or ``ZerosPolesGain``. A transfer function is realised by SciPy. Poles, zeros and gain become a chain of
        sections of first and second order, without the polynomials of high degree that would lose the poles' digits.

    Returns
    -------
    StateSpace
        NumPy arrays in double precision; ``dt`` is 0 for ``lti`` and the system's own for ``dlti``.

    Raises
    ------
    DtypeError
        `sys` is none of these.
    ShapeError
        `sys` is a static gain.

    Examples
    --------
    >>> import hsv, scipy.signal
    >>> sys = hsv.from_scipy(scipy.signal.ZerosPolesGain([], [-1.0, -2.0], 3.0))
    >>> sys
    <StateSpace: 2 states, 1 inputs, 1 outputs, continuous, float64>
    >>> float(sys.frequency_response([0.0])[0, 0, 0].real)                          # 3 / (1 x 2)
    1.5
    """
    import scipy.signal

    if not isinstance(sys, (scipy.signal.lti, scipy.signal.dlti)):
        raise DtypeError(f"sys must be an lti or dlti system of scipy.signal, got {type(sys).__name__}")
    dt = sys.dt if isinstance(sys, scipy.signal.dlti) else 0
    if isinstance(sys, scipy.signal.ZerosPolesGain):
        matrices = _chain(_sections(np.atleast_1d(sys.zeros), np.atleast_1d(sys.poles), sys.gain))
    else:
        state_space = sys if isinstance(sys, scipy.signal.StateSpace) else sys.to_ss()
        matrices = tuple(np.asarray(x) for x in (state_space.A, state_space.B, state_space.C, state_space.D))
    if matrices[0].size == 0:
        raise ShapeError("sys must have at least one state, got a static gain")
    return StateSpace(*matrices, dt=dt)


def to_scipy(sys: LinearSystem) -> scipy.signal.StateSpace:
    """Convert a system to ``scipy.signal``, real or complex.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        One system, not a batch. A diagonal system comes out dense.

    Returns
    -------
    scipy.signal.StateSpace
        An ``lti`` in continuous time, a ``dlti`` with the same ``dt`` in discrete time; in double precision. Its ``to_tf()`` and ``to_zpk()``
        give the other forms, by polynomials that lose digits as the order grows.

    Raises
    ------
    ShapeError
        The system is a batch.

    Examples
    --------
    >>> import hsv
    >>> converted = hsv.to_scipy(hsv.StateSpace([[-2.0]], [[6.0]], [[1.0]], dt=0))
    >>> type(converted).__name__, converted.A.tolist()
    ('StateSpaceContinuous', [[-2.0]])
    """
    import scipy.signal

    dense = _single(sys)
    matrices = (
        to_host(x).astype(np.complex128 if dense.is_complex else np.float64)
        for x in (dense.A, dense.B, dense.C, dense.D)
    )
    return scipy.signal.StateSpace(*matrices, **({"dt": dense.dt} if dense.is_discrete else {}))


def from_pymor(model: Any) -> StateSpace:
    """Convert an ``LTIModel`` of pyMOR.

    Parameters
    ----------
    model : pymor.models.iosys.LTIModel
        Without parameters. Sparse matrices become dense; an invertible ``E`` is brought to the standard form by :func:`from_descriptor`.

    Returns
    -------
    StateSpace
        NumPy arrays; ``dt`` is the model's ``sampling_time``, 0 in continuous time.

    Raises
    ------
    DtypeError
        `model` is no ``LTIModel``: of models with other matrices, second-order ones say, convert ``model.to_lti()``.
    IllConditionedError
        ``E`` is singular.
    """
    if not (hasattr(model, "to_matrices") and hasattr(model, "sampling_time")):
        raise DtypeError(f"model must be an LTIModel of pyMOR, got {type(model).__name__}")
    matrices = model.to_matrices()
    if len(matrices) != 5:
        raise DtypeError(
            f"model must be an LTIModel with matrices A, B, C, D, E, got {type(model).__name__} with {len(matrices)} of them; convert model.to_lti()"
        )
    A, B, C, D, E = (x.toarray() if hasattr(x, "toarray") else x for x in matrices)
    return make_system(E, A, B, C, D, dt=float(model.sampling_time))


def to_pymor(sys: LinearSystem) -> Any:
    """Convert a system to pyMOR.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        One system, not a batch. A diagonal system comes out dense.

    Returns
    -------
    pymor.models.iosys.LTIModel
        With NumPy matrices in double precision. ``sampling_time`` is ``dt``; ``dt=True``, which pyMOR does not know, becomes 1 second.

    Raises
    ------
    ShapeError
        The system is a batch.
    MissingBackendError
        pyMOR is not installed.
    """
    try:
        from pymor.models.iosys import LTIModel
    except ImportError as error:
        raise MissingBackendError("pyMOR is needed here and not installed; pip install pymor") from error
    dense = _single(sys)
    matrices = [
        to_host(x).astype(np.complex128 if dense.is_complex else np.float64)
        for x in (dense.A, dense.B, dense.C, dense.D)
    ]
    return LTIModel.from_matrices(*matrices, sampling_time=dense.step)


def _single(sys: LinearSystem) -> StateSpace:
    require_system(sys)
    if sys.batch_shape:
        raise ShapeError(
            f"sys must be one system, got a batch of shape {sys.batch_shape}; convert its systems one at a time"
        )
    return sys.to_dense()


def _sections(zeros: np.ndarray, poles: np.ndarray, gain: complex) -> list[tuple[np.ndarray, np.ndarray]]:
    """Numerators and denominators of degree 1 or 2 whose product is the system; real ones wherever the roots come in conjugate pairs."""
    import scipy.signal

    if not poles.size:
        return []
    if len(zeros) > len(poles):
        raise ShapeError(f"sys must be proper, got {len(zeros)} zeros and {len(poles)} poles")
    paired = all(np.array_equal(np.sort(x), np.sort(np.conj(x))) for x in (zeros, poles)) and not np.imag(gain)
    if paired:
        rows = scipy.signal.zpk2sos(zeros, poles, np.real(gain), analog=True)
        return [(np.trim_zeros(row[:3], "f"), np.trim_zeros(row[3:], "f")) for row in rows]
    numerators = [np.array([1.0, -z]) for z in zeros] + [np.array([1.0])] * (len(poles) - len(zeros))
    sections = [(b, np.array([1.0, -p])) for b, p in zip(numerators, poles, strict=True)]
    return [(gain * sections[0][0], sections[0][1]), *sections[1:]]


def _chain(sections: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, ...]:
    """A, B, C, D of the sections in series, each in controllable form."""
    A, B, C, D = np.zeros((0, 0)), np.zeros((0, 1)), np.zeros((1, 0)), np.ones((1, 1))
    for numerator, denominator in sections:
        degree = len(denominator) - 1
        b = np.concatenate([np.zeros(degree + 1 - len(numerator)), numerator]) / denominator[0]
        a = denominator[1:] / denominator[0]
        A1 = np.concatenate([-a[None, :], np.eye(degree)[:-1]])
        B1, C1, D1 = np.eye(degree)[:, :1], (b[1:] - a * b[0])[None, :], np.array([[b[0]]])
        A = np.block([[A, np.zeros((len(A), degree))], [B1 @ C, A1]])
        B, C, D = np.concatenate([B, B1 @ D]), np.concatenate([D1 @ C, C1], axis=1), D1 @ D
    return A, B, C, D


def _import_control() -> Any:
    try:
        import control
    except ImportError as error:
        raise MissingBackendError("python-control is needed here and not installed; pip install control") from error
    return control
