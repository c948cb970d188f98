"""The frozen time-varying systems of selective layers: Mamba, Mamba-2, gated linear attention."""

from __future__ import annotations

from typing import Any

from hsv._array import Array, as_arrays, is_complex, namespace, require_finite, round_to, widen
from hsv._errors import DtypeError, ShapeError, UnstableSystemError


def mamba_system(A: Any, delta: Any, B: Any, C: Any) -> tuple[Array, Array, Array]:
    r"""Return the frozen system of a Mamba layer for each channel: diagonal, one input, one output.

    .. math:: A_t = \operatorname{diag}(e^{\delta_{tc} A_c}),\qquad B_t = \delta_{tc} B_t,\qquad C_t = C_t^T, \qquad h_t = A_t h_{t-1} + B_t u_t

    Parameters
    ----------
    A : array
        Shape ``(d, n)``, real, negative.
    delta : array
        Shape ``(..., T, d)``: step sizes, after their softplus.
    B, C : array
        Shape ``(..., T, n)``, shared by the channels.

    Returns
    -------
    A, B, C : array
        Shapes ``(..., d, T, n)``, ``(..., d, T, n, 1)``, ``(..., d, T, 1, n)``, for the functions of :mod:`hsv.time_varying`; the state
        is the one after the newest input, as layers have it. ``T d n`` numbers each: :class:`SelectiveEstimator` does without them.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    UnstableSystemError
        A pole or a step size has the wrong sign: ``A_t`` grows.

    Notes
    -----
    Gu and Dao, *Mamba* (2023), equations 2 and 4: zero-order hold for ``A``, and ``delta B`` for ``B`` as the published code has it.

    Examples
    --------
    >>> import numpy as np
    >>> import hsv
    >>> A, B, C = hsv.time_varying.mamba_system([[-1.0]], np.log(2) * np.ones((3, 1)), np.ones((3, 1)), np.ones((3, 1)))
    >>> A.shape, float(A[0, 0, 0]), round(float(B[0, 0, 0, 0]), 3)
    ((1, 3, 1), 0.5, 0.693)
    """
    A, delta, B, C = as_arrays(("A", "delta", "B", "C"), (A, delta, B, C))
    if A.ndim != 2 or delta.ndim < 2 or delta.shape[-1] != A.shape[0]:
        raise ShapeError(
            f"A must have shape (d, n) and delta (..., T, d) with the same d, got {tuple(A.shape)} and {tuple(delta.shape)}"
        )
    _check_core({"B": B, "C": C}, (*delta.shape[:-1], A.shape[-1]), "(..., T, n)")
    _check_decay(A, delta)
    xp = namespace(A)
    step = xp.matrix_transpose(widen(delta))[..., None]  # (..., d, T, 1)
    shape = (*delta.shape[:-2], *A.shape[:1], *B.shape[-2:])
    a = xp.exp(step * widen(A)[:, None, :])
    b = step * widen(B)[..., None, :, :]
    c = xp.broadcast_to(C[..., None, :, :], shape)
    return round_to(a, delta), round_to(b, delta)[..., None], c[..., None, :]


def mamba2_system(A: Any, delta: Any, B: Any, C: Any) -> tuple[Array, Array, Array]:
    r"""Return the frozen system of a Mamba-2 layer for each head: a scalar decay, one input, one output.

    .. math:: a_t = e^{\delta_{tk} A_k},\qquad B_t = \delta_{tk} B_{t,g(k)},\qquad C_t = C_{t,g(k)}^T

    Every channel of a head has this same system.

    Parameters
    ----------
    A : array
        Shape ``(heads,)``, real, negative.
    delta : array
        Shape ``(..., T, heads)``: step sizes, after their softplus.
    B, C : array
        Shape ``(..., T, groups, n)``; ``heads / groups`` heads in a row share a group.

    Returns
    -------
    A, B, C : array
        Shapes ``(..., heads, T)``, ``(..., heads, T, n, 1)``, ``(..., heads, T, 1, n)``.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    UnstableSystemError
        A pole or a step size has the wrong sign: ``a_t`` grows.

    Notes
    -----
    Dao and Gu, *Transformers are SSMs* (2024), section 7.

    Examples
    --------
    >>> import numpy as np
    >>> import hsv
    >>> A, B, C = hsv.time_varying.mamba2_system([-1.0, -2.0], np.ones((5, 2)), np.ones((5, 1, 3)), np.ones((5, 1, 3)))
    >>> A.shape, B.shape, C.shape
    ((2, 5), (2, 5, 3, 1), (2, 5, 1, 3))
    """
    A, delta, B, C = as_arrays(("A", "delta", "B", "C"), (A, delta, B, C))
    if A.ndim != 1 or delta.ndim < 2 or delta.shape[-1] != A.shape[0]:
        raise ShapeError(
            f"A must have shape (heads,) and delta (..., T, heads) with the same heads, got {tuple(A.shape)} and {tuple(delta.shape)}"
        )
    heads = int(A.shape[0])
    if B.ndim < 3 or B.shape[-2] == 0 or heads % B.shape[-2]:
        raise ShapeError(
            f"B must have shape (..., T, groups, n) with a number of groups that divides the {heads} heads, got {tuple(B.shape)}"
        )
    _check_core({"B": B, "C": C}, (*delta.shape[:-1], *B.shape[-2:]), "(..., T, groups, n)")
    _check_decay(A, delta)
    xp = namespace(A)
    step = xp.matrix_transpose(widen(delta))  # (..., heads, T)
    inputs, outputs = (
        xp.repeat(xp.moveaxis(m, -2, -3), heads // B.shape[-2], axis=-3) for m in (B, C)
    )  # (..., heads, T, n)
    a = xp.exp(step * widen(A)[:, None])
    b = step[..., None] * widen(inputs)
    return round_to(a, delta), round_to(b, delta)[..., None], outputs[..., None, :]


def gated_linear_attention_system(decay: Any, keys: Any, queries: Any) -> tuple[Array, Array, Array]:
    r"""Return the frozen system of gated linear attention for each head: a decay a key, one input, one output.

    .. math:: S_t = \operatorname{diag}(\alpha_t) S_{t-1} + k_t v_t^T,\quad o_t = S_t^T q_t \qquad\Longrightarrow\qquad A_t = \operatorname{diag}(\alpha_t),\quad B_t = k_t,\quad C_t = q_t^T

    Every column of the state has this same system; its input is that column's value.

    Parameters
    ----------
    decay, keys, queries : array
        Shape ``(..., T, heads, n)``; decays in [0, 1]. Whatever scales the queries or keys is part of them.

    Returns
    -------
    A, B, C : array
        Shapes ``(..., heads, T, n)``, ``(..., heads, T, n, 1)``, ``(..., heads, T, 1, n)``.

    Raises
    ------
    ShapeError, DtypeError, NonFiniteError
        The arrays do not fit together, are no numbers, or contain NaN or infinity.
    UnstableSystemError
        A decay is not in [0, 1].

    Notes
    -----
    Yang et al., *Gated linear attention transformers with hardware-efficient training* (2024), equation 3.

    Examples
    --------
    >>> import numpy as np
    >>> import hsv
    >>> A, B, C = hsv.time_varying.gated_linear_attention_system(*np.ones((3, 5, 2, 4)))
    >>> A.shape, B.shape, C.shape
    ((2, 5, 4), (2, 5, 4, 1), (2, 5, 1, 4))
    """
    names = ("decay", "keys", "queries")
    decay, keys, queries = as_arrays(names, (decay, keys, queries))
    if decay.ndim < 3:
        raise ShapeError(f"decay must have shape (..., T, heads, n), got {tuple(decay.shape)}")
    _check_core({"keys": keys, "queries": queries}, tuple(decay.shape), "(..., T, heads, n)")
    require_finite("decay", decay)
    xp = namespace(decay)
    if is_complex(decay) or not bool(xp.all((decay >= 0) & (decay <= 1))):
        raise UnstableSystemError(
            "decay must be real and in [0, 1], for A_t would grow; pass the gates after their sigmoid"
        )
    a, k, q = (xp.moveaxis(m, -2, -3) for m in (decay, keys, queries))
    return a, k[..., None], q[..., None, :]


def _check_core(arrays: dict[str, Array], shape: tuple[int, ...], meaning: str) -> None:
    for name, array in arrays.items():
        if tuple(array.shape) != tuple(shape):
            raise ShapeError(f"{name} must have shape {meaning} = {tuple(shape)}, got {tuple(array.shape)}")
        require_finite(name, array)


def _check_decay(A: Array, delta: Array) -> None:
    xp = namespace(A)
    for name, array in (("A", A), ("delta", delta)):
        require_finite(name, array)
        if is_complex(array):
            raise DtypeError(f"{name} must be real")
    if bool(xp.any(A >= 0)):
        raise UnstableSystemError(
            f"A must be negative (continuous-time poles), its largest is {float(xp.max(A))}; Mamba stores log(-A)"
        )
    if bool(xp.any(delta < 0)):
        raise UnstableSystemError(
            f"delta must not be negative, for exp(delta A) would grow, its least is {float(xp.min(delta))}; pass the step sizes after their softplus"
        )
