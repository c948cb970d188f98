"""Balanced reduction with frequency weights."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hsv._array import (
    Array,
    conjugate_transpose,
    device,
    dtype_name,
    eye,
    is_array,
    namespace,
    round_to,
    to_host,
    zeros,
)
from hsv._blas import eigh, inverse, product, row_space
from hsv._errors import DtypeError, HsvError, IllConditionedError, ShapeError
from hsv._gramian_pair import (
    GramianPair,
    Source,
    check_stability_name,
    dense_in_double,
    pair_of_sources,
    positive_source,
    reduce_by_pair,
    square_factor,
)
from hsv._gramians import dual, factor
from hsv._hankel import Factors, from_real_coordinates
from hsv._lyapunov import solve_continuous_lyapunov, solve_discrete_lyapunov, solve_lyapunov_factored
from hsv._norms import hinf_norm
from hsv._order import Rule, as_rule
from hsv._reduction import Reduction, Rounding
from hsv._split import split_unstable
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, require_system, stability_margin

_EPS = float(np.finfo(np.float64).eps)
_WITHOUT_BOUND = (
    "this method has only with stability='absolute-value' (for weights on one side also 'positive-part', rarely), and where the maps of the "
    "system are in the range of the modified ones"
)


def frequency_weighted_gramians(
    sys: LinearSystem,
    *,
    input_weight: LinearSystem | None = None,
    output_weight: LinearSystem | None = None,
    input_mix: float = 0.0,
    output_mix: float = 0.0,
) -> tuple[Array, Array]:
    r"""Return the controllability Gramian that inputs shaped by one weight leave, and the observability Gramian that another weight sees.

    With :math:`G W` and :math:`V G` realised with the states of :math:`G` first,

    .. math:: \begin{pmatrix} A & B C_W \\ & A_W \end{pmatrix}, \begin{pmatrix} B D_W \\ B_W \end{pmatrix}: \begin{pmatrix} P_{11} & P_{12} \\ P_{12}^H & P_{22} \end{pmatrix},
              \qquad P = P_{11} - \alpha_c^2\, P_{12} P_{22}^{-1} P_{12}^H,

    and :math:`Q = Q_{11} - \alpha_o^2\, Q_{12} Q_{22}^{-1} Q_{12}^H` of :math:`V G` likewise.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; one system or a batch.
    input_weight, output_weight : StateSpace or DiagonalStateSpace, optional
        :math:`W` with as many outputs as `sys` has inputs, :math:`V` with as many inputs as `sys` has outputs; no poles on the stability boundary. The same ``dt``. None: the identity. An
        unstable weight (not in a batch) is replaced by the stable one that has the same size at every frequency, :math:`N` of a coprime factorisation :math:`V = M^{-1} N` with an all-pass :math:`M`.
    input_mix, output_mix : float
        :math:`\alpha_c` and :math:`\alpha_o` in [0, 1]: 0 is Enns' choice, 1 is that of Lin and Chiu.

    Returns
    -------
    P, Q : array
        Shape ``(..., n, n)``, Hermitian, positive semidefinite; array type, device and precision of `sys`.

    Raises
    ------
    UnstableSystemError
        `sys` is not stable.
    IllConditionedError
        A weight has a pole on the stability boundary, or an unstable one that its inputs (`input_weight`) do not reach or its outputs (`output_weight`) do not see.
    ShapeError, DtypeError, HsvError
        The weights do not fit `sys`, or a mix is outside [0, 1].

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0], [[1.0]], [[1.0]], dt=0)
    >>> lag = hsv.DiagonalStateSpace([-2.0], [[1.0]], [[1.0]], dt=0)
    >>> P, Q = hsv.frequency_weighted_gramians(sys, input_weight=lag)                # of 1 / ((s + 1) (s + 2)): 1 / 12; Q = 1 / 2
    >>> P.round(12), Q.round(12)
    (array([[0.08333333]]), array([[0.5]]))
    """
    full, V, W, mixes = _checked(sys, input_weight, output_weight, input_mix, output_mix)
    mirror = _dual(full)
    control = factor(full) if W is None else _joint(full, W).gramian_factor(mixes[0])
    observe = factor(mirror) if V is None else _joint(mirror, _dual(V)).gramian_factor(mixes[1])
    xp, batch = namespace(full.A), np.broadcast_shapes(tuple(control.shape[:-2]), tuple(observe.shape[:-2]))
    both = (xp.broadcast_to(L, (*batch, *L.shape[-2:])) for L in (control, observe))
    if isinstance(sys, DiagonalStateSpace) and sys._conjugate_pairs:
        both = (from_real_coordinates(L) for L in both)
    P, Q = (round_to(product(L, conjugate_transpose(L)), sys.B) for L in both)
    return P, Q


def frequency_weighted_truncation(
    sys: LinearSystem,
    rule: Rule | int,
    *,
    input_weight: LinearSystem | None = None,
    output_weight: LinearSystem | None = None,
    input_mix: float = 0.0,
    output_mix: float = 0.0,
    stability: str | None = None,
) -> Reduction:
    r"""Reduce a stable system by balanced truncation with weights, for a small :math:`\|V (G - G_r) W\|_\infty`.

    The Gramians of :func:`frequency_weighted_gramians` are balanced. They satisfy

    .. math:: A P + P A^H + Y = 0, \qquad A^H Q + Q A + Z = 0

    (discrete: :math:`A P A^H - P + Y = 0` and the dual) with right-hand sides that may be indefinite. With ``stability="absolute-value"`` they are replaced by the Gramians of
    :math:`(A, \tilde B, \tilde C)` with :math:`\tilde B \tilde B^H = |Y|`, :math:`\tilde C^H \tilde C = |Z|`.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Stable; continuous or discrete, real or complex, one system or a batch.
    rule : Rule or int
        As in :func:`balanced_truncation`, for the weighted values. ``ErrorBound`` only where there is a bound.
    input_weight, output_weight, input_mix, output_mix
        As in :func:`frequency_weighted_gramians`. Batch axes of the weights broadcast against those of `sys`.
    stability : {None, "absolute-value", "positive-part"}
        None: the Gramians as they are. ``"absolute-value"``: :math:`|Y|` and :math:`|Z|`, the method of Wang, Sreeram and Liu for mixes of 0. ``"positive-part"``: only the positive eigenvalues of
        :math:`Y` and :math:`Z`, closer to the given Gramians; the choice ``'E'`` of SLICOT's AB09ID.

    Returns
    -------
    Reduction
        ``hankel_singular_values`` are the roots of the eigenvalues of :math:`P Q`. With a weight on one side only, or mixes of 1, or `stability`, the reduced system is stable. ``error_bound``
        is one of the **weighted** error,

        .. math:: \|V (G - G_r) W\|_\infty \le 2\, \|V L\|_\infty\, \|K W\|_\infty \sum_{i > r} \tilde\sigma_i, \qquad B = \tilde B K,\ C = L \tilde C,

        where these factors exist: for mixes below 1 always, but for rounding, with ``"absolute-value"``. It is infinite for the systems of a batch where they do not exist,
        and None with ``stability=None`` or where no system has them.

    Raises
    ------
    UnstableSystemError, IllConditionedError, ShapeError, DtypeError, HsvError
        As in :func:`frequency_weighted_gramians`; `stability` is not known.
    OrderError
        No order meets the rule, or ``ErrorBound`` where there is no bound.

    Warns
    -----
    OrderWarning
        As in :func:`balanced_truncation`; also where the result is unstable, as it may be with weights on both sides.

    See Also
    --------
    frequency_limited_truncation : a band of frequencies in place of a weight.
    reduce_stable_part : for a `sys` with unstable poles, with a function of two arguments that calls this one.

    Notes
    -----
    Factors of the joint Gramians come from Lyapunov equations with the states of the weights; Schur complements are projections of these factors, so that nothing is subtracted. ``O((n + n_w)^3)``,
    on the host.

    The variants of the field: mixes of 0 are Enns' method, 1 Lin and Chiu's (which asks for weights without pole-zero cancellation with `sys`), values between them the combination
    of Varga and Anderson. Balancing-free variants, as in SLICOT's AB09ID, have the same transfer function.

    References
    ----------
    Enns, "Model reduction with balanced realizations: an error bound and a frequency weighted generalization", IEEE CDC (1984). Lin and Chiu, "Model reduction via frequency weighted balanced
    realization", Control Theory Adv. Tech. 8 (1992). Wang, Sreeram and Liu, "A new frequency-weighted balanced truncation method and an error bound", IEEE Trans. Automat. Control 44 (1999). Varga and
    Anderson, "Accuracy-enhancing methods for balancing-related frequency-weighted model and controller reduction", Automatica 39 (2003).

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0, -100.0], [[1.0], [100.0]], [[1.0, 1.0]], dt=0)      # 1 / (s + 1) + 100 / (s + 100)
    >>> slow = hsv.DiagonalStateSpace([-0.1], [[1.0]], [[1.0]], dt=0)
    >>> plain, weighted = hsv.balanced_truncation(sys, 1), hsv.frequency_weighted_truncation(sys, 1, input_weight=slow)
    >>> [abs((red.system - sys).frequency_response([0.0, 0.1])[:, 0, 0]).round(3) for red in (plain, weighted)]
    [array([0.802, 0.798]), array([0.002, 0.048])]
    """
    pair = _pair(sys, input_weight, output_weight, input_mix, output_mix, stability)
    return reduce_by_pair(sys, as_rule(rule), pair, steady_state=False, without_bound=_WITHOUT_BOUND)


def frequency_weighted_singular_perturbation(
    sys: LinearSystem,
    rule: Rule | int,
    *,
    input_weight: LinearSystem | None = None,
    output_weight: LinearSystem | None = None,
    input_mix: float = 0.0,
    output_mix: float = 0.0,
    stability: str | None = None,
) -> Reduction:
    """Reduce a stable system by singular perturbation approximation with weights.

    The states that :func:`frequency_weighted_truncation` truncates are solved for their steady state, as in :func:`singular_perturbation`: the gain at frequency 0 is kept.
    Parameters, results, errors, warnings and the bound as there; ``left`` and ``right`` are None, and ``D`` changes.

    Examples
    --------
    >>> import hsv
    >>> sys = hsv.DiagonalStateSpace([-1.0, -10.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0)
    >>> lag = hsv.DiagonalStateSpace([-2.0], [[1.0]], [[1.0]], dt=0)
    >>> red = hsv.frequency_weighted_singular_perturbation(sys, 1, output_weight=lag)
    >>> float(red.system.frequency_response([0.0])[0, 0, 0].real.round(12))          # 1 / 1 + 1 / 10
    1.1
    """
    pair = _pair(sys, input_weight, output_weight, input_mix, output_mix, stability)
    return reduce_by_pair(sys, as_rule(rule), pair, steady_state=True, without_bound=_WITHOUT_BOUND)


class _Joint(NamedTuple):
    """Rows of a factor of the joint controllability Gramian of a system and its input weight: ``(..., n, n + n_w)`` and ``(..., n_w, n + n_w)``."""

    of_system: Array
    of_weight: Array

    def gramian_factor(self, mix: float) -> Array:
        """A factor (..., n, n) of ``P11 - mix^2 P12 P22^-1 P12^H``: what is subtracted lies in the row space of the weight's part.

        States of the weight that nothing reaches have no part in it.
        """
        if mix == 0:
            return square_factor(self.of_system)
        xp = namespace(self.of_system)
        *batch, n, width = self.of_system.shape
        values, Vh = row_space(self.of_weight)
        inside = values > width * _EPS * values[..., :1]
        share = xp.where(inside, float(np.sqrt(1 - mix * mix)) * xp.ones_like(values), xp.ones_like(values))
        share = xp.concat([share, xp.ones((*batch, n), dtype=share.dtype, device=device(share))], axis=-1)
        return square_factor(product(self.of_system, conjugate_transpose(Vh)) * share[..., None, :])


def _pair(
    sys: LinearSystem,
    input_weight: LinearSystem | None,
    output_weight: LinearSystem | None,
    input_mix: float,
    output_mix: float,
    stability: str | None,
) -> GramianPair:
    check_stability_name(stability)
    full, V, W, mixes = _checked(sys, input_weight, output_weight, input_mix, output_mix)
    mirror = _dual(full)
    left = None if V is None else _joint(mirror, _dual(V))
    right = None if W is None else _joint(full, W)
    if stability is None:
        control = factor(full) if right is None else right.gramian_factor(mixes[0])
        observe = factor(mirror) if left is None else left.gramian_factor(mixes[1])
        sizes = [
            np.linalg.norm(to_host(L if joint is None else joint.of_system), axis=(-2, -1))
            for L, joint in ((control, right), (observe, left))
        ]
        noise = full.n_states * _EPS * sizes[0] * sizes[1]
        stable = V is None or W is None or mixes == (1, 1)
        return GramianPair(Factors(control, observe), Rounding(noise, noise), None, stable)
    gain = np.ones(full.batch_shape)
    B, C = full.B, full.C
    if right is not None and W is not None:
        source = _source(full, W, right, mixes[0], stability)
        B, gain = source.B, gain * _gain(source, W)
    if left is not None and V is not None:
        source = _source(mirror, _dual(V), left, mixes[1], stability)
        C, gain = conjugate_transpose(source.B), gain * _gain(source, _dual(V))
    return pair_of_sources(full, B, C, gain)


def _gain(source: Source, weight: StateSpace) -> np.ndarray:
    """The H-infinity norm of ``K W``, infinite where there is no ``K``."""
    if not np.any(source.exists):
        return np.full(source.exists.shape, np.inf)
    K = source.K
    norm = to_host(hinf_norm(StateSpace(weight.A, weight.B, product(K, weight.C), product(K, weight.D), dt=weight.dt)))
    return np.asarray(np.where(source.exists, (1 + 1e-8) * norm, np.inf))  # the norm is found to 1e-9


def _joint(sys: StateSpace, weight: StateSpace) -> _Joint:
    xp = namespace(sys.A)
    A, B, Aw, Bw, Cw, Dw = _broadcast(sys, weight)
    batch, n, k = tuple(A.shape[:-2]), sys.n_states, weight.n_states
    A = xp.concat(
        [xp.concat([Aw, zeros((*batch, k, n), A)], axis=-1), xp.concat([product(B, Cw), A], axis=-1)], axis=-2
    )
    L = solve_lyapunov_factored(A, xp.concat([Bw, product(B, Dw)], axis=-2), discrete=sys.is_discrete)
    return _Joint(L[..., k:, :], L[..., :k, :])


def _source(sys: StateSpace, weight: StateSpace, joint: _Joint, mix: float, stability: str) -> Source:
    """The right-hand side of the Lyapunov equation of the weighted Gramian, made positive."""
    xp = namespace(sys.A)
    A, B, _, _, Cw, Dw = _broadcast(sys, weight)
    Lx, Lw = joint
    if mix:  # no inverse of P22: from the Gramian, with its rounding errors
        L = joint.gramian_factor(mix)
        P = product(L, conjugate_transpose(L))
        AP = product(A, P)
        size = xp.linalg.matrix_norm(A) * xp.linalg.matrix_norm(P)
        if sys.is_discrete:
            Y = P - product(AP, conjugate_transpose(A))
            size = size * xp.linalg.matrix_norm(A) + xp.linalg.matrix_norm(P)
        else:
            Y = -AP - conjugate_transpose(AP)
        return positive_source(None, Y, B, stability, sys.n_states * _EPS * size)
    LC = product(conjugate_transpose(Lw), conjugate_transpose(Cw))
    X = product(Lx, LC)  # P12 Cw^H
    inner = product(Dw, conjugate_transpose(Dw))
    if sys.is_discrete:
        X = product(A, X)
        inner = inner + product(conjugate_transpose(LC), LC)
    one = xp.broadcast_to(eye(sys.n_inputs, A), inner.shape)
    J = xp.concat([xp.concat([inner, one], axis=-1), xp.concat([one, xp.zeros_like(one)], axis=-1)], axis=-2)
    return positive_source(xp.concat([B, X], axis=-1), J, B, stability)


def _broadcast(sys: StateSpace, weight: StateSpace) -> list[Array]:
    """``A, B`` of the system and ``A, B, C, D`` of the weight with the batch axes of both."""
    xp = namespace(sys.A)
    batch = np.broadcast_shapes(sys.batch_shape, weight.batch_shape)
    matrices = (sys.A, sys.B, weight.A, weight.B, weight.C, weight.D)
    return [xp.broadcast_to(x, (*batch, *x.shape[-2:])) for x in matrices]


def _checked(
    sys: LinearSystem,
    input_weight: LinearSystem | None,
    output_weight: LinearSystem | None,
    input_mix: float,
    output_mix: float,
) -> tuple[StateSpace, StateSpace | None, StateSpace | None, tuple[float, float]]:
    """The system and the weights, dense, in double precision and stable, and both mixes."""
    for name, mix in (("input_mix", input_mix), ("output_mix", output_mix)):
        if isinstance(mix, bool) or not isinstance(mix, (int, float, np.integer, np.floating)):
            raise DtypeError(f"{name} must be a number in [0, 1], got {mix!r}")
        if not 0 <= mix <= 1:
            raise HsvError(f"{name} must be in [0, 1] (0: Enns, 1: Lin and Chiu), got {mix}")
    require_system(sys)
    full = dense_in_double(sys)
    W = None if input_weight is None else prepared_weight("input_weight", full, input_weight)
    if W is not None and W.n_outputs != full.n_inputs:
        raise ShapeError(
            f"input_weight must have as many outputs as sys has inputs, {full.n_inputs}, got {W.n_outputs}"
        )
    V = None if output_weight is None else prepared_weight("output_weight", full, output_weight)
    if V is not None and V.n_inputs != full.n_outputs:
        raise ShapeError(
            f"output_weight must have as many inputs as sys has outputs, {full.n_outputs}, got {V.n_inputs}"
        )
    V = None if V is None else _stable(V, "output_weight")
    W = None if W is None else _dual(_stable(_dual(W), "input_weight"))
    return full, V, W, (float(input_mix), float(output_mix))


def prepared_weight(name: str, full: StateSpace, weight: LinearSystem) -> StateSpace:
    """The weight, dense and in double precision, complex where the system is; refused if it is no system of the same time base."""
    if is_array(weight) or isinstance(weight, (int, float, complex, list, tuple)):
        raise DtypeError(
            f"{name} must be a system, got {type(weight).__name__}; a constant gain is the D of a system with zeros for B and C"
        )
    require_system(weight, name=name)
    if weight.is_complex and not full.is_complex:
        raise DtypeError(
            f"{name} of a real system must be real, for the reduced system would be complex; make sys complex first"
        )
    if weight.dt != full.dt or (weight.dt is True) != (full.dt is True):
        raise HsvError(f"{name} must have the dt of sys, {full.dt!r}, got {weight.dt!r}; discretize or relabel it")
    try:
        np.broadcast_shapes(full.batch_shape, weight.batch_shape)
    except ValueError as error:
        raise ShapeError(
            f"the batch axes of {name} must broadcast against those of sys, {full.batch_shape}, got {weight.batch_shape}"
        ) from error
    namespace(full.A, weight.B)  # raises where they come from two libraries
    dense = dense_in_double(weight)
    if dtype_name(dense.A) == dtype_name(full.A):
        return dense
    xp = namespace(full.A)
    return StateSpace(*(xp.astype(x, full.A.dtype) for x in (dense.A, dense.B, dense.C, dense.D)), dt=full.dt)


def _dual(sys: StateSpace) -> StateSpace:
    mirror = dual(sys)
    assert isinstance(mirror, StateSpace)
    return mirror


def _stable(V: StateSpace, name: str) -> StateSpace:
    r"""A stable system with ``N(s)^H N(s) = V(s)^H V(s)`` on the stability boundary: the numerator of a left coprime factorisation with an all-pass denominator."""
    margin = to_host(stability_margin(V))
    if np.all(margin > 0):
        return V
    size = max(1.0, float(np.abs(to_host(V.poles())).max()))
    if np.any(np.abs(margin) <= 10 * _EPS * size):
        raise IllConditionedError(
            f"{name} must have no pole on the stability boundary, found one within {np.abs(margin).min():.1e} of it; move it inside"
        )
    if V.batch_shape:
        raise HsvError(
            f"{name} is unstable, which only a single system may be, got a batch {V.batch_shape}; pass them one by one"
        )
    stable, unstable = (x.to_dense() for x in split_unstable(V))
    xp = namespace(V.A)
    A2, C2 = unstable.A, unstable.C
    quadratic = product(conjugate_transpose(C2), C2)
    # With Y the inverse of the stabilising solution of the Riccati equation, which is linear for it.
    if V.is_discrete:
        Y = -solve_discrete_lyapunov(conjugate_transpose(A2), quadratic)
    else:
        Y = solve_continuous_lyapunov(conjugate_transpose(A2), quadratic)
    _require_seen(name, Y)
    CX = product(C2, inverse(Y))
    if V.is_discrete:
        R = eye(V.n_outputs, V.A) + product(CX, conjugate_transpose(C2))
        gain = -product(product(A2, conjugate_transpose(CX)), inverse(R))
        values, vectors = eigh(R)
        shape = product(vectors / xp.sqrt(values)[..., None, :], conjugate_transpose(vectors))
    else:
        gain, shape = -conjugate_transpose(CX), eye(V.n_outputs, V.A)
    both = stable + unstable  # block diagonal
    assert isinstance(both, StateSpace)
    gain = xp.concat([zeros((stable.n_states, V.n_outputs), V.A), gain], axis=-2)
    return StateSpace(
        both.A + product(gain, both.C),
        both.B + product(gain, V.D),
        product(shape, both.C),
        product(shape, V.D),
        dt=V.dt,
    )


def _require_seen(name: str, Y: Array) -> None:
    """Raise unless the Gramian ``(n, n)`` of the unstable states of a weight is invertible."""
    gramian = to_host(Y)
    size = np.sqrt(np.abs(np.diagonal(gramian)))
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = gramian / (size[:, None] * size)
    if np.all(np.isfinite(scaled)) and np.linalg.cond(scaled) < 1 / (len(gramian) * _EPS):
        return
    hidden = "its inputs do not reach" if name == "input_weight" else "its outputs do not see"
    raise IllConditionedError(
        f"{name} must show its unstable poles, found one that {hidden} to working precision: it has no part in the gain; remove its state from the weight"
    )
