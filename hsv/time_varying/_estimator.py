"""Means over a stream of sequences of ``A_t, B_t, C_t``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from hsv._array import (
    Array,
    as_arrays,
    conjugate,
    conjugate_transpose,
    from_host,
    is_array,
    namespace,
    real,
    squared_modulus,
    to_host,
    widen,
    zeros,
)
from hsv._errors import HsvError, ShapeError, UnstableSystemError
from hsv._systems import DiagonalStateSpace, StateSpace
from hsv.time_varying._stream import (
    N_GROUPS,
    StreamEstimator,
    backward_pieces,
    check_mask,
    check_window,
    moved_to_front,
    require_finite_sequences,
)


class GramianEstimator(StreamEstimator):
    r"""Mean Gramians, the mean time-invariant surrogate and scores of a time-varying system, from a stream of its sequences.

    .. math:: x_{t+1} = A_t x_t + B_t u_t,\qquad y_t = C_t x_t

    .. math:: P_{t+1} = A_t P_t A_t^H + B_t B_t^H, \quad P_0 = 0, \qquad Q_t = A_t^H Q_{t+1} A_t + C_t^H C_t, \quad Q_T = 0

    It holds means over all steps of all sequences: of ``A_t, B_t, C_t`` (the surrogate of CompreSSM, Chahine et al. 2026), of the Gramians, and of
    what the scores need. Its memory depends neither on the length of the sequences nor on their number.

    Parameters
    ----------
    window : int, optional
        ``Q`` looks at the next `window` outputs at most, and at half as many at least: a block of steps looks ahead over the block after it. ``None``: to
        the end of the sequence.
    layer_convention : bool
        Layers see the newest input, :math:`h_t = A_t h_{t-1} + B_t u_t,\ y_t = C_t h_t`: the state ``h[t]`` is reached with ``P[t+1]`` and observed with
        :math:`C_t^H C_t + A_{t+1}^H Q_{t+1} A_{t+1}`. With ``False`` the pair is ``P[t]``, ``Q[t]`` of the equations above.

    Notes
    -----
    The mean Gramians rank states and span bases; they bound no error. Computed in double precision, ``O(T n^3)`` a sequence for dense ``A_t`` and ``O(T n^2)`` for
    diagonal and scalar ones; one Python step for each step of time, all sequences of a call at once. For layers of many channels with shared ``B`` and ``C``
    :class:`SelectiveEstimator` is thousands of times faster.

    Examples
    --------
    >>> import numpy as np
    >>> import hsv
    >>> est = hsv.time_varying.GramianEstimator()
    >>> A, B, C = np.full((1, 3), 0.5), np.ones((1, 3, 1, 1)), np.ones((1, 3, 1, 1))     # scalar A_t
    >>> est.update(A, B, C)
    >>> P, Q = est.mean_gramians()
    >>> float(P[0, 0]) * 3      # 1 + (1 + 1/4) + (1 + 1/4 + 1/16)
    3.5625
    """

    def __init__(self, *, window: int | None = None, layer_convention: bool = True) -> None:
        check_window(window)
        self._settings = {"window": window, "layer_convention": bool(layer_convention)}
        self._sums = {}
        self._n_sequences = 0
        self._like = np.empty(0)

    def update(self, A: Any, B: Any, C: Any, mask: Any = None, *, weights: Any = None) -> None:
        """Add whole sequences.

        Parameters
        ----------
        A : array
            Dense ``(..., T, n, n)``, diagonal ``(..., T, n)`` or scalar ``(..., T)``, known by ``A.ndim - B.ndim`` = 0, -1, -2.
        B, C : array
            Shapes ``(..., T, n, m)`` and ``(..., T, p, n)``. Each index of the leading axes is a sequence; they must match exactly.
        mask : array, optional
            Shape ``(..., T)``, boolean. A step that is False is not there: the steps before and after it are neighbours, and whatever
            the other arrays hold there is not looked at.
        weights : array, optional
            Shape ``(...)``, positive: how much each sequence counts in all means, 1 by default. A sequence of weight 2 counts as if it came twice, but
            for standard errors it is still one sequence.

        Raises
        ------
        ShapeError, DtypeError
            The arrays do not fit together or have other sizes than those before, or a sequence or the batch is empty.
        NonFiniteError
            A sequence, which is named, contains NaN or infinity.
        UnstableSystemError
            The Gramians of a sequence, which is named, overflow: ``A_t`` grows.
        HsvError
            All of a sequence is masked. After an error the estimator is as it was before.
        """
        given = as_arrays("ABC", (A, B, C))
        A, B, C = (a.detach() if hasattr(a, "detach") else a for a in given)
        core = _check_sequences(A, B, C)
        shape = tuple(B.shape[:-2])
        batch, length = int(np.prod(shape[:-1], dtype=int)), shape[-1]
        if mask is not None:
            mask = to_host(mask) if is_array(mask) else np.asarray(mask)
            if mask.shape != shape:
                raise ShapeError(f"mask must have shape (..., T) = {shape}, got {mask.shape}")
            mask = mask.reshape(batch, length)
        host_mask = check_mask(mask, batch, length)
        xp = namespace(A)
        like = B
        A, B, C = (xp.reshape(a, (batch, length, *a.shape[len(shape) :])) for a in (A, B, C))
        for name, array in zip("ABC", (A, B, C), strict=True):
            require_finite_sequences(name, array, host_mask)
        A, B, C = (moved_to_front(widen(a), host_mask) for a in (A, B, C))
        lengths = np.full(batch, length) if host_mask is None else host_mask.sum(axis=1)
        sums = self._sums_of(A, B, C, lengths, _checked_weights(weights, shape[:-1]), core)
        if self._sums:
            self._check_sizes(sums)
        self._commit(sums, batch)
        self._like = like

    def _check_sizes(self, fresh: dict[str, np.ndarray]) -> None:
        for name, values in fresh.items():
            if values.shape != self._sums[name].shape:
                raise ShapeError(
                    f"all sequences must be of systems of one size, got {name[0]} of shape {values.shape} after {self._sums[name].shape}; "
                    "make one estimator for each layer"
                )

    def _sums_of(
        self, A: Array, B: Array, C: Array, lengths: np.ndarray, weights: np.ndarray, core: int
    ) -> dict[str, np.ndarray]:
        xp = namespace(A)
        (batch, length, n), layers = B.shape[:3], self._settings["layer_convention"]
        present = from_host((np.arange(length) < lengths[:, None]) * weights[:, None], real(A))  # (b, T)
        P = Q = zeros((batch, n, n), A if core else B)
        mean_P, mean_Q, product = P, Q, zeros((batch, n), real(B))
        p, q = product, product
        adjoint = conjugate_transpose(A) if core == 2 else conjugate(A)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            for t in range(length):
                Bt = B[:, t, :, :]
                after = _congruence(A[:, t, ...], P, core) + Bt @ conjugate_transpose(Bt)
                P = after if layers else P
                counted = present[:, t, None]
                diagonal = _diagonal(P) * counted
                mean_P, p = mean_P + P * counted[..., None], p + diagonal
                product = product + diagonal * xp.sum(squared_modulus(C[:, t, :, :]), axis=-2)
                P = after
            for begin, end, is_counted, first in backward_pieces(length, self._settings["window"], length):
                Q = xp.zeros_like(Q) if first else Q
                for t in reversed(range(begin, end)):
                    Ct = C[:, t, :, :]
                    Q = Q if layers else _congruence(adjoint[:, t, ...], Q, core)
                    Q = Q + conjugate_transpose(Ct) @ Ct
                    if is_counted:
                        mean_Q, q = mean_Q + Q * present[:, t, None, None], q + _diagonal(Q) * present[:, t, None]
                    Q = _congruence(adjoint[:, t, ...], Q, core) if layers else Q
        of_sequences = {"p": to_host(p), "q": to_host(q), "product": to_host(product)}
        finite = np.all([np.isfinite(v).all(axis=1) for v in of_sequences.values()], axis=0)
        if not finite.all():
            raise UnstableSystemError(
                f"the Gramians of sequence {int(np.argmin(finite))} overflow: A_t grows; the estimator is unchanged: leave the sequence out, or pass shorter ones"
            )
        groups = (self._n_sequences + np.arange(batch)) % N_GROUPS
        sums = {"steps": np.zeros(N_GROUPS)} | {name: np.zeros((N_GROUPS, n)) for name in of_sequences}
        np.add.at(sums["steps"], groups, lengths * weights)
        for name, values in of_sequences.items():
            np.add.at(sums[name], groups, values)
        return sums | {
            "P": to_host(xp.sum(mean_P, axis=0)),
            "Q": to_host(xp.sum(mean_Q, axis=0)),
            "A": np.tensordot(weights, to_host(xp.sum(A, axis=1)), axes=1),
            "B": np.tensordot(weights, to_host(xp.sum(B, axis=1)), axes=1),
            "C": np.tensordot(weights, to_host(xp.sum(C, axis=1)), axes=1),
        }

    def mean_gramians(self) -> tuple[Array, Array]:
        """Return the means of ``P`` and ``Q``, two Hermitian arrays ``(n, n)``.

        Raises
        ------
        HsvError
            No sequence has been seen.
        """
        P, Q = self._mean("P"), self._mean("Q")
        return self._result((P + P.conj().T) / 2), self._result((Q + Q.conj().T) / 2)

    def mean_system(self) -> StateSpace | DiagonalStateSpace:
        """Return the mean time-invariant surrogate, with the means of ``A_t``, ``B_t``, ``C_t`` and ``dt=True``; diagonal where ``A_t`` is diagonal or scalar.

        Raises
        ------
        HsvError
            No sequence has been seen.
        """
        A, B, C = (self._mean(name) for name in "ABC")
        if A.ndim == 2:
            return StateSpace(*(self._result(a) for a in (A, B, C)), dt=True)
        return DiagonalStateSpace(*(self._result(a) for a in (np.broadcast_to(A, B.shape[:1]), B, C)), dt=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GramianEstimator:
        """Return the estimator that :meth:`save` wrote, with NumPy arrays."""
        header, arrays = cls._read(path)
        est = cls(**header["settings"])
        est._set(header["settings"], header["n_sequences"], arrays)
        return est


def _checked_weights(weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    """One positive number for each sequence, ``(batch,)``, on the host."""
    if weights is None:
        return np.ones(int(np.prod(shape, dtype=int)))
    host = np.asarray(to_host(weights) if is_array(weights) else weights, dtype=np.float64)
    if host.shape != shape:
        raise ShapeError(f"weights must have shape {shape}, one for each sequence, got {host.shape}")
    if not (np.isfinite(host) & (host > 0)).all():
        worst = host[~(np.isfinite(host) & (host > 0))].flat[0]
        raise HsvError(f"weights must be positive and finite, found {worst}; leave out a sequence that shall not count")
    return host.reshape(-1)


def _check_sequences(A: Array, B: Array, C: Array) -> int:
    """Check the shapes of a batch of sequences and return the number of ``A``'s axes after the time's: 2 dense, 1 diagonal, 0 scalar."""
    if B.ndim < 3 or 0 in B.shape:
        raise ShapeError(f"B must have shape (..., T, n, m), no axis of it empty, got {tuple(B.shape)}")
    shape, n = tuple(B.shape[:-2]), B.shape[-2]
    core = A.ndim - B.ndim + 2
    if core not in (0, 1, 2) or tuple(A.shape) != shape + (n,) * core:
        raise ShapeError(
            f"A must have shape (..., T, n, n), (..., T, n) or (..., T) with the leading axes and the n of B, {(*shape, n)}, got {tuple(A.shape)}"
        )
    if C.ndim != B.ndim or tuple(C.shape[:-2]) != shape or C.shape[-1] != n or 0 in C.shape:
        raise ShapeError(
            f"C must have shape (..., T, p, n) with the leading axes and the n of B, {(*shape, n)}, got {tuple(C.shape)}"
        )
    return core


def _congruence(a: Array, gramian: Array, core: int) -> Array:
    """``a G a^H`` for dense ``a (b, n, n)``, diagonal ``a (b, n)`` or scalar ``a (b,)``."""
    if core == 2:
        return a @ gramian @ conjugate_transpose(a)
    if core == 1:
        return a[:, :, None] * gramian * conjugate(a)[:, None, :]
    return squared_modulus(a)[:, None, None] * gramian


def _diagonal(gramian: Array) -> Array:
    return real(namespace(gramian).linalg.diagonal(gramian))
