"""Means over a stream of recorded sequences of a selective layer."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from hsv import _kernels
from hsv._array import (
    Array,
    as_arrays,
    dtype_name,
    in_host_memory,
    is_complex,
    namespace,
    require_finite,
    to_host,
)
from hsv._errors import DtypeError, HsvError, NonFiniteError, ShapeError, UnstableSystemError
from hsv._kernels import _threads
from hsv._systems import DiagonalStateSpace
from hsv.time_varying._selective_arrays import selective_sums
from hsv.time_varying._stream import (
    N_GROUPS,
    StreamEstimator,
    backward_pieces,
    blocks,
    check_mask,
    check_window,
    require_finite_sequences,
)

GRAMIANS = ("diagonal", "shared", "channel")
_N_ROWS = 8192  # of trajectories in a buffer before they go into a matrix product: 4 MiB for 128 states


class SelectiveEstimator(StreamEstimator):
    r"""Mean Gramians and scores of a selective layer (Mamba's), from a stream of its recorded sequences.

    Channel :math:`c` of the layer is a time-varying system with one input and one output,

    .. math:: h_t = e^{\delta_{tc} A_c} h_{t-1} + \delta_{tc} B_t\, x_{tc}, \qquad y_{tc} = w_{tc}\, C_t^T h_t,

    of which the estimator holds means over all steps of all sequences:

    .. math:: P = E[h_t h_t^T] \quad\text{(recorded inputs) or}\quad P_t = a_t a_t^T \circ P_{t-1} + \delta_t^2 B_t B_t^T \quad\text{(unit white noise in place of } x),
    .. math:: Q_t = w_t^2 C_t C_t^T + a_{t+1} a_{t+1}^T \circ Q_{t+1}, \qquad a_t = e^{\delta_t A}, \quad P_0 = 0, \quad Q_{T+1} = 0.

    The state that has seen input :math:`t` is paired with the outputs from :math:`t` on, as layers do. The diagonals of ``P`` and ``Q`` are always
    held, exact to rounding. Nothing of shape ``(batch, T, d, n)`` is ever made.

    Parameters
    ----------
    A : array
        Shape ``(d, n)``, real and negative: the continuous-time poles of ``n`` states in each of ``d`` channels.
    gramians : sequence of str
        Which matrices to hold beside the diagonals: ``"shared"``, ``(n, n)``, summed over the channels; ``"channel"``, ``(d, n, n)``, one a channel
        (``16 d n^2`` bytes); ``"diagonal"`` asks for nothing more.
    inputs : str
        ``"recorded"``: ``P`` is the second moment of the states under the inputs `x` of :meth:`update`. ``"white"``: under white noise of unit
        variance, the controllability Gramian proper.
    window : int, optional
        ``Q`` looks at the next `window` outputs at most, and at half as many at least: a block of steps looks ahead over the block after it. ``None``: to
        the end of the sequence.
    seed : int
        Of the random signs, see below. Estimators that are to be merged should have different ones.
    exact : bool
        Compute the white ``P`` and ``Q`` matrices by their recursions. ``False``: estimate them from trajectories driven by random signs, see below.

    Notes
    -----
    Recorded matrices come from the trajectories ``h`` by matrix products, white ones from their recursions; both take ``O(T d n^2)`` operations and are exact to
    rounding. With ``exact=False`` the white ones come from trajectories, and adjoint trajectories ``g``, driven by random signs: with
    :math:`E[\epsilon\epsilon^T] = I`, :math:`E[g g^T] = Q`. That is unbiased, and its error falls with the root of the number of steps (times channels, for ``"shared"``): some
    per cent for ten thousand steps, more for states that remember long. On the CPU it is hardly faster; elsewhere it does without the steps one at a time.

    NumPy arrays and torch tensors on the CPU are computed by compiled kernels in the precision of the arrays, other arrays by a parallel scan
    over about ``sqrt(T)`` steps at a time (recursions of matrices, one step at a time); sums are in double precision on the host. In single precision a relative error of about
    ``1e-7 / |delta A|`` is to be expected of states that remember long. ``O(T d n)`` a sequence, and ``O(T d n^2)`` for the matrices.

    The mean Gramians rank states and span bases; they bound no error.

    Examples
    --------
    One channel, one state, ``delta A = log(1/2)``: ``h`` is 1, 1/2, 1/4 after an impulse.

    >>> import numpy as np
    >>> import hsv
    >>> est = hsv.time_varying.SelectiveEstimator(np.log([[0.5]]))
    >>> one = np.ones((1, 3, 1))
    >>> est.update(one, one, one, x=np.array([[[1.0], [0.0], [0.0]]]))
    >>> p, q = est.diagonal_gramians()
    >>> float(p[0, 0]) * 3, float(q[0, 0]) * 3      # 1 + 1/4 + 1/16; (1 + 1/4 + 1/16) + (1 + 1/4) + 1
    (1.3125, 3.5625)
    """

    def __init__(
        self,
        A: Any,
        *,
        gramians: Sequence[str] = ("diagonal",),
        inputs: str = "recorded",
        window: int | None = None,
        seed: int = 0,
        exact: bool = True,
    ) -> None:
        (A,) = as_arrays(("A",), (A,))
        A = _detached(A)
        if A.ndim != 2 or 0 in A.shape:
            raise ShapeError(f"A must have shape (d, n) with d, n >= 1, got {tuple(A.shape)}")
        if is_complex(A):
            raise DtypeError("A must be real: the poles of a selective layer; use GramianEstimator for complex systems")
        require_finite("A", A)
        self._A_host = np.array(to_host(A))
        worst = int(np.argmax(self._A_host))
        if self._A_host.flat[worst] >= 0:
            c, state = divmod(worst, A.shape[1])
            raise UnstableSystemError(
                f"A must be negative (continuous-time poles), got {self._A_host[c, state]} in channel {c}, state {state}; Mamba stores log(-A)"
            )
        unknown = [g for g in gramians if g not in GRAMIANS]
        if isinstance(gramians, str) or unknown:
            raise HsvError(f"gramians must be a sequence of {', '.join(map(repr, GRAMIANS))}, got {gramians!r}")
        if inputs not in ("recorded", "white"):
            raise HsvError(f"inputs must be 'recorded' or 'white', got {inputs!r}")
        check_window(window)
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise HsvError(f"seed must be a non-negative integer, got {seed!r}")
        self._like = A
        self._settings = {
            "gramians": [g for g in GRAMIANS if g in gramians],
            "inputs": inputs,
            "window": window,
            "exact": bool(exact),
            "seed": seed,
        }
        self._sums = {}
        self._n_sequences = 0

    @property
    def A(self) -> Array:
        """The continuous-time poles, ``(d, n)``."""
        return self._like

    # ------------------------------------------------------------------ adding

    def update(self, delta: Any, B: Any, C: Any, x: Any = None, weight: Any = None, mask: Any = None) -> None:
        """Add whole sequences.

        Parameters
        ----------
        delta : array
            Shape ``(batch, T, d)``: step sizes, not negative.
        B, C : array
            Shape ``(batch, T, n)``, shared by the channels.
        x : array, optional
            Shape ``(batch, T, d)``: the recorded inputs; needed with ``inputs="recorded"`` and not looked at with ``"white"``.
        weight : array, optional
            Shape ``(batch, T, d)``: what the channel's output is multiplied with (the gate, the gradient of a loss); 1 if left out.
        mask : array, optional
            Shape ``(batch, T)``, boolean. A step that is False is not there: the steps before and after it are neighbours, and whatever
            the other arrays hold there is not looked at. So padding may stand left or right.

        Raises
        ------
        ShapeError, DtypeError
            The arrays do not fit together, or a sequence or the batch is empty.
        NonFiniteError
            A sequence, which is named, contains NaN or infinity or its sums overflow.
        UnstableSystemError
            A step size is negative: ``exp(delta A)`` grows.
        HsvError
            All of a sequence is masked, or `x` is missing. After an error the estimator is as it was before.
        """
        names = ("A", "delta", "B", "C", "x", "weight")
        recorded = self._settings["inputs"] == "recorded"
        if x is None and recorded:
            raise HsvError(
                'x must be given with inputs="recorded"; make the estimator with inputs="white" to do without'
            )
        arrays = as_arrays(names, (self._like, delta, B, C, x if recorded else None, weight), optional=("x", "weight"))
        detached: list[Any] = [None if a is None else _detached(a) for a in arrays]
        A, delta, B, C, x, weight = detached
        (d, n) = A.shape
        if delta.ndim != 3 or delta.shape[-1] != d or 0 in delta.shape:
            raise ShapeError(
                f"delta must have shape (batch, T, d) with batch, T >= 1 and d = {d}, got {tuple(delta.shape)}"
            )
        batch, length = int(delta.shape[0]), int(delta.shape[1])
        for name, array, width in (("B", B, n), ("C", C, n), ("x", x, d), ("weight", weight, d)):
            if array is not None and tuple(array.shape) != (batch, length, width):
                raise ShapeError(
                    f"{name} must have shape (batch, T, {'d' if width is d else 'n'}) = ({batch}, {length}, {width}), got {tuple(array.shape)}"
                )
        host_mask = check_mask(mask, batch, length)
        for name, array in zip(names[1:], (delta, B, C, x, weight), strict=True):
            if array is None:
                continue
            if is_complex(array):
                raise DtypeError(f"{name} must be real; use GramianEstimator for complex systems")
            require_finite_sequences(name, array, host_mask)
        self._require_decay(delta, host_mask)
        fresh = {name: np.zeros(shape) for name, shape in self._shapes().items()}
        add = self._add_on_host if in_host_memory(delta) else self._add_on_device
        with np.errstate(over="ignore", invalid="ignore"):  # looked for below
            add(fresh, A, delta, B, C, x, weight, host_mask)
        self._require_finite_sums(fresh, batch)
        self._commit(fresh, batch)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        d, n = self._A_host.shape
        shapes: dict[str, tuple[int, ...]] = {"steps": (N_GROUPS,)}
        shapes |= dict.fromkeys(("p", "q", "product"), (N_GROUPS, d, n))
        shapes |= {"delta": (d,), "B": (n,), "C": (n,), "delta_B": (d, n), "poles": (d, n)}
        if "channel" in self._settings["gramians"]:
            shapes |= {"P": (d, n, n), "Q": (d, n, n)}
        elif "shared" in self._settings["gramians"]:
            shapes |= {"P": (n, n), "Q": (n, n)}
        return shapes

    def _require_decay(self, delta: Array, mask: np.ndarray | None) -> None:
        if bool(namespace(delta).all(delta >= 0)):
            return
        negative = to_host(delta < 0)
        if mask is not None:
            negative = negative & mask[..., None]
        if negative.any():
            i, t, c = (int(k) for k in np.argwhere(negative)[0])
            raise UnstableSystemError(
                f"delta must not be negative, for exp(delta A) would grow, got {float(to_host(delta)[i, t, c])} in sequence {i} "
                f"at step {t}, channel {c}; pass the step sizes after their softplus"
            )

    def _require_finite_sums(self, fresh: dict[str, np.ndarray], batch: int) -> None:
        for name in ("p", "q", "product"):
            bad = ~np.isfinite(fresh[name]).all(axis=(1, 2))
            if bad.any():
                groups = [(self._n_sequences + i) % N_GROUPS for i in range(batch)]
                suspects = [i for i, g in enumerate(groups) if bad[g]]
                raise NonFiniteError(
                    f"the sums of sequence {' or '.join(map(str, suspects))} overflow {dtype_name(self._like)}; the estimator is unchanged: "
                    "scale the inputs, or pass arrays in double precision"
                )
        if "P" in fresh and not (np.isfinite(fresh["P"]).all() and np.isfinite(fresh["Q"]).all()):
            raise NonFiniteError(
                f"the Gramians of these sequences overflow {dtype_name(self._like)}; the estimator is unchanged: "
                "scale the inputs, or pass arrays in double precision"
            )

    def _signs(self, index: int, which: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Random signs of sequence number `index`, always the same for it, whatever came before."""
        rng = np.random.default_rng([self._settings["seed"], index, which])
        bits = np.unpackbits(rng.integers(0, 256, (math.prod(shape) + 7) // 8, dtype=np.uint8), count=math.prod(shape))
        return (2 * bits.astype(dtype) - 1).reshape(shape)

    def _add_on_host(
        self,
        fresh: dict[str, np.ndarray],
        A: Array,
        delta: Array,
        B: Array,
        C: Array,
        x: Array | None,
        weight: Array | None,
        mask: np.ndarray | None,
    ) -> None:
        rates = np.ascontiguousarray(to_host(A))
        hosts = [None if a is None else to_host(a) for a in (delta, B, C, x, weight)]
        for i in range(delta.shape[0]):
            steps: Any = slice(None) if mask is None else mask[i]
            sequence: list[Any] = [None if a is None else np.ascontiguousarray(a[i][steps]) for a in hosts]
            step, inputs, outputs, signal, gate = sequence
            if gate is None:
                gate = np.ones_like(step)
            index = self._n_sequences + i
            group = index % N_GROUPS
            fresh["steps"][group] += step.shape[0]
            fresh["delta"] += step.sum(axis=0, dtype=np.float64)
            fresh["B"] += inputs.sum(axis=0, dtype=np.float64)
            fresh["C"] += outputs.sum(axis=0, dtype=np.float64)
            self._forward_on_host(fresh, index, rates, step, inputs, outputs, signal, gate)
            self._backward_on_host(fresh, index, rates, step, outputs, gate)
            if self._settings["exact"] and "P" in fresh:
                self._add_recursions(fresh, rates, step, inputs, outputs, gate)

    def _add_on_device(
        self,
        fresh: dict[str, np.ndarray],
        A: Array,
        delta: Array,
        B: Array,
        C: Array,
        x: Array | None,
        weight: Array | None,
        mask: np.ndarray | None,
    ) -> None:
        (batch, length, d) = delta.shape
        for i in range(batch):
            fresh["steps"][(self._n_sequences + i) % N_GROUPS] += length if mask is None else mask[i].sum()
        dtype = np.dtype(dtype_name(A))
        blocks = selective_sums(
            A,
            delta,
            B,
            C,
            x,
            weight,
            mask,
            window=self._settings["window"],
            gramians={name: fresh[name].shape for name in ("P", "Q") if name in fresh},
            exact=self._settings["exact"],
            signs=lambda i, which, steps: self._signs(self._n_sequences + i, which, (steps, d), dtype),
        )
        for first, sums in blocks:
            for name in ("p", "q", "product"):
                for i, values in enumerate(sums.pop(name), first):
                    fresh[name][(self._n_sequences + i) % N_GROUPS] += values
            for name, values in sums.items():
                fresh[name] += values.sum(axis=0) if name in ("delta", "B", "C") else values

    def _products(self, fresh: dict[str, np.ndarray], name: str) -> bool:
        """Whether the Gramian comes from trajectories, rather than from its recursion."""
        by_recursion = self._settings["exact"] and (name == "Q" or self._settings["inputs"] == "white")
        return name in fresh and not by_recursion

    def _forward_on_host(
        self,
        fresh: dict[str, np.ndarray],
        index: int,
        A: np.ndarray,
        delta: np.ndarray,
        B: np.ndarray,
        C: np.ndarray,
        x: np.ndarray | None,
        weight: np.ndarray,
    ) -> None:
        (length, d), n = delta.shape, A.shape[1]
        products, white = self._products(fresh, "P"), x is None
        if x is None:
            x = self._signs(index, 0, delta.shape, delta.dtype) if products else np.zeros_like(delta)
        group, carry = index % N_GROUPS, np.zeros((2, d, n), A.dtype)
        sums = fresh["poles"], fresh["delta_B"], fresh["p"][group], fresh["product"][group]
        for base, channels, piece, buffer in _pieces(length, d, n, A.dtype, products):
            for begin in range(0, length, piece):
                t = slice(begin, min(begin + piece, length))
                rows = _rows(buffer, channels, t.stop - begin)
                _threads.run(
                    _kernels.selective_forward,
                    channels,
                    base,
                    A,
                    delta[t],
                    x[t],
                    weight[t],
                    B[t],
                    C[t],
                    white,
                    carry,
                    *sums,
                    rows,
                    operations=20 * channels * (t.stop - begin) * n,
                )
                if products:
                    _add_products(fresh["P"], base, rows)

    def _backward_on_host(
        self,
        fresh: dict[str, np.ndarray],
        index: int,
        A: np.ndarray,
        delta: np.ndarray,
        C: np.ndarray,
        weight: np.ndarray,
    ) -> None:
        (length, d), n = delta.shape, A.shape[1]
        products = self._products(fresh, "Q")
        signs = self._signs(index, 1, delta.shape, delta.dtype) if products else np.zeros_like(delta)
        carry, sums = np.zeros((2, d, n), A.dtype), fresh["q"][index % N_GROUPS]
        for base, channels, piece, buffer in _pieces(length, d, n, A.dtype, products):
            for begin, end, counted, first in backward_pieces(length, self._settings["window"], piece):
                t = slice(begin, end)
                if first:
                    carry[:, base : base + channels] = 0.0
                rows = _rows(buffer, channels, end - begin)
                _threads.run(
                    _kernels.selective_backward,
                    channels,
                    base,
                    A,
                    delta[t],
                    signs[t],
                    weight[t],
                    C[t],
                    counted,
                    carry,
                    sums,
                    rows,
                    operations=20 * channels * (end - begin) * n,
                )
                if products and counted:
                    _add_products(fresh["Q"], base, rows)

    def _add_recursions(
        self,
        fresh: dict[str, np.ndarray],
        A: np.ndarray,
        delta: np.ndarray,
        B: np.ndarray,
        C: np.ndarray,
        weight: np.ndarray,
    ) -> None:
        """Add the white ``P`` and ``Q`` by their recursions."""
        if self._settings["inputs"] == "white":
            _add_recursion(fresh["P"], A, delta, delta, B, 0)
        after = np.concatenate(
            [delta[1:], np.zeros_like(delta[:1])]
        )  # decays from step to step, seen from the earlier one
        for begin, end, horizon in blocks(delta.shape[0], self._settings["window"]):
            backward = slice(begin, horizon)
            steps, gates, vectors = (np.ascontiguousarray(a[backward][::-1]) for a in (after, weight, C))
            _add_recursion(fresh["Q"], A, steps, gates, vectors, horizon - end)

    # ------------------------------------------------------------------ results

    def diagonal_gramians(self) -> tuple[Array, Array]:
        """Return the diagonals of the mean ``P`` and ``Q`` of each channel, two arrays ``(d, n)``."""
        return self._result(self._mean("p")), self._result(self._mean("q"))

    def shared_gramians(self) -> tuple[Array, Array]:
        """Return the mean ``P`` and ``Q`` summed over the channels, two arrays ``(n, n)``; needs ``"shared"`` or ``"channel"``.

        Raises
        ------
        HsvError
            The estimator was made without them, or has seen no sequence.
        """
        P, Q = self._matrices("shared")
        return self._result(P.sum(axis=0) if P.ndim == 3 else P), self._result(Q.sum(axis=0) if Q.ndim == 3 else Q)

    def channel_gramians(self) -> tuple[Array, Array]:
        """Return the mean ``P`` and ``Q`` of each channel, two arrays ``(d, n, n)``; needs ``"channel"``.

        Raises
        ------
        HsvError
            The estimator was made without them, or has seen no sequence.
        """
        P, Q = self._matrices("channel")
        return self._result(P), self._result(Q)

    def _matrices(self, which: str) -> tuple[np.ndarray, np.ndarray]:
        held = self._settings["gramians"]
        if which not in held and not (which == "shared" and "channel" in held):
            raise HsvError(f"gramians must contain {which!r} for this, got {held}; make the estimator with it")
        P, Q = self._mean("P"), self._mean("Q")
        return (P + P.swapaxes(-1, -2)) / 2, (Q + Q.swapaxes(-1, -2)) / 2

    def mean_system(self) -> DiagonalStateSpace:
        r"""Return the mean LTI surrogate of each channel, a batch of ``d`` discrete systems.

        .. math:: \bar A = E[e^{\delta_t A}],\qquad \bar B = E[\delta_t B_t],\qquad \bar C = E[C_t]

        The outputs' weights do not enter. It is the way of CompreSSM (Chahine et al. 2026) after the discretisation; see :meth:`mean_continuous_system` for the way before it.
        """
        poles, B, C = (self._mean(name) for name in ("poles", "delta_B", "C"))
        C = np.broadcast_to(C, B.shape)
        return DiagonalStateSpace(*(self._result(a) for a in (poles, B[..., None], C[:, None, :])), dt=True)

    def mean_continuous_system(self) -> DiagonalStateSpace:
        r"""Return the continuous-time mean surrogate of each channel, a batch of ``d`` systems :math:`(A, E[B_t], E[C_t])` with ``dt=0``.

        Its reduction is discretised with every step's own ``delta``. ``B`` and ``C`` are the same for all channels.
        """
        d, n = self._A_host.shape
        B, C = (np.broadcast_to(self._mean(name), (d, n)) for name in ("B", "C"))
        return DiagonalStateSpace(self._like, self._result(B[..., None]), self._result(C[:, None, :]), dt=0)

    def mean_step(self) -> Array:
        """Return the mean step size of each channel, ``(d,)``."""
        return self._result(self._mean("delta"))

    # ------------------------------------------------------------------ saving

    def _constants(self) -> dict[str, np.ndarray]:
        return {"A": self._A_host}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SelectiveEstimator:
        """Return the estimator that :meth:`save` wrote, with NumPy arrays."""
        header, arrays = cls._read(path)
        est = cls(arrays.pop("A"), **header["settings"])
        est._set(header["settings"], header["n_sequences"], arrays)
        return est


def _detached(x: Array) -> Array:
    return x.detach() if hasattr(x, "detach") else x


def _pieces(length: int, d: int, n: int, dtype: Any, products: bool) -> Iterator[tuple[int, int, int, np.ndarray]]:
    """Yield ``base, channels, steps, buffer``: blocks of channels, with the longest piece of time whose trajectories fit into the buffer."""
    if not products:
        yield 0, d, length, np.empty((0, n), dtype)
        return
    piece = min(length, _N_ROWS)
    channels = min(d, max(1, _N_ROWS // piece))
    buffer = np.empty((channels * piece, n), dtype)
    for base in range(0, d, channels):
        yield base, min(channels, d - base), piece, buffer


def _rows(buffer: np.ndarray, channels: int, steps: int) -> np.ndarray:
    """The beginning of the buffer as trajectories ``(channels, steps, n)``; an empty buffer stays empty."""
    return buffer[: channels * steps].reshape(channels, steps, -1) if buffer.size else buffer[None]


def _add_recursion(
    gramian: np.ndarray, A: np.ndarray, delta: np.ndarray, scale: np.ndarray, vectors: np.ndarray, skip: int
) -> None:
    """Add the sum of ``G[t] = a[t] a[t]^T o G[t-1] + v[t] v[t]^T`` to one matrix, or to one a channel."""
    (length, d), n = delta.shape, A.shape[1]
    block = d if gramian.ndim == 3 else 32
    sums = gramian if gramian.ndim == 3 else np.zeros((min(block, d), n, n))
    for base in range(0, d, block):
        channels = min(block, d - base)
        arguments = base, A, delta, scale, vectors, skip, sums
        _threads.run(_kernels.gramian_recursion, channels, *arguments, operations=channels * length * n * n / 4)
    if gramian.ndim == 2:
        gramian += sums.sum(axis=0)


def _add_products(gramian: np.ndarray, base: int, rows: np.ndarray) -> None:
    """Add ``H^T H`` of trajectories ``(channels, steps, n)`` to one matrix, or to one a channel."""
    channels, steps, n = rows.shape
    products = np.zeros((channels, n, n))
    _threads.run(_kernels.add_products, channels, rows, products, operations=channels * steps * n * n / 16)
    if gramian.ndim == 2:
        gramian += products.sum(axis=0)
    else:
        gramian[base : base + channels] += products
