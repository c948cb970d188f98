r"""Gramians and Hankel singular values that PyTorch differentiates, and the sum of a model's Hankel values as a term of its loss.

The functions take a system whose arrays are tensors with a graph: ``hsv.DiagonalStateSpace.from_log_poles(log_poles, B, C)`` keeps it. With
:math:`L_o^H L_c = U \Sigma V^H` and the balancing projections :math:`l_i = L_o u_i\sigma_i^{-1/2}`, :math:`r_i = L_c v_i\sigma_i^{-1/2}`,

.. math:: d\sigma_i = \tfrac12 \left(l_i^H\,dP\,l_i + r_i^H\,dQ\,r_i\right),

in which no difference of two values is divided by: nothing happens where values coincide. The gradient of a Gramian is the solution of the adjoint Lyapunov equation,
:math:`A^H X A - X + S = 0` or :math:`A^H X + X A + S = 0` with :math:`S = \partial f/\partial P`:

.. math:: \frac{\partial f}{\partial B} = 2 X B, \qquad \frac{\partial f}{\partial A} = 2 X A P \quad\text{or}\quad 2 X P,

and for a diagonal system both are a closed form.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

import hsv
from hsv import DtypeError, HsvError, _small_systems
from hsv._cauchy import cauchy_adjoint, cauchy_factors
from hsv._gramians import require_stable
from hsv_torch.adapters import adapter_of
from hsv_torch.compress import chosen_layers

System = hsv.StateSpace | hsv.DiagonalStateSpace

# Values below this part of the largest have no gradient of their own: its rounding errors, eps times the inverse of the part, stay below 1e-5 of the largest gradient.
_LEAST_VALUE = 1e-10

# The sum alone may come from an eigendecomposition, at half the time of a singular value decomposition, where all values lie within this factor of each other: the eigenvectors
# of M^H M then are off by 1e-10 at most, and the sum of the norms of M times them, which is stationary there, by the square.
_NEAR_VALUES = 1e3

# Worth trying with at most so many states an input or output: with more, the values of layers seldom lie so near.
_STATES_PER_PORT = 32


def controllability_gramian(sys: System) -> Tensor:
    r"""Return the controllability Gramian :math:`P` of a stable system of tensors, differentiable: :func:`hsv.controllability_gramian` with a gradient.

    Parameters
    ----------
    sys : hsv.StateSpace or hsv.DiagonalStateSpace
        Real or complex, discrete or continuous, one system or a batch; its arrays are tensors.

    Returns
    -------
    Tensor
        ``(..., n, n)``; dtype and device of the system. Computed in double precision, and so is the gradient.

    Raises
    ------
    hsv.UnstableSystemError
    hsv.DtypeError
        The arrays are no tensors.

    Notes
    -----
    Forward and backward ``O(n^2 m)`` for a diagonal system, ``O(n^3)`` for a dense one. There is no second derivative: to ask for it is an
    error.

    Examples
    --------
    >>> import torch, hsv, hsv_torch
    >>> B = torch.tensor([[3.0]], dtype=torch.float64, requires_grad=True)
    >>> P = hsv_torch.controllability_gramian(hsv.DiagonalStateSpace(torch.tensor([0.5]), B, torch.ones(1, 1), dt=True))
    >>> P.sum().backward()
    >>> round(P.item(), 6), round(B.grad.item(), 6)                          # b^2 / (1 - 0.25), 2 b / (1 - 0.25)
    (12.0, 8.0)
    """
    poles, form = _coordinates(sys)
    result: Tensor = _Gramian.apply(form, poles, sys.B)
    return result


def observability_gramian(sys: System) -> Tensor:
    r"""Return the observability Gramian :math:`Q` of a stable system of tensors, differentiable; the dual of :func:`controllability_gramian`.

    Examples
    --------
    >>> import torch, hsv, hsv_torch
    >>> sys = hsv.DiagonalStateSpace(torch.tensor([0.5]), torch.ones(1, 1), torch.tensor([[3.0]]), dt=True)
    >>> hsv_torch.observability_gramian(sys)
    tensor([[12.]])
    """
    poles, form = _coordinates(sys)
    result: Tensor = _Gramian.apply(form, poles.mH if form.dense else poles.conj(), sys.C.mH)
    return result


def hankel_singular_values(sys: System) -> Tensor:
    r"""Return the Hankel singular values of a stable system of tensors, differentiable: :func:`hsv.hankel_singular_values` with a gradient.

    Parameters
    ----------
    sys : hsv.StateSpace or hsv.DiagonalStateSpace
        Real or complex, discrete or continuous, one system or a batch; its arrays are tensors.

    Returns
    -------
    Tensor
        ``(..., n)``, descending, real; device and precision of the system. Computed in double precision, and so is the gradient.

    Raises
    ------
    hsv.UnstableSystemError
    hsv.DtypeError
        The arrays are no tensors.

    Notes
    -----
    Where values coincide, each alone has no derivative, for which of them is called the first changes; functions that treat them alike, their sum above all, have
    one, and it comes out. A function that does not gets a finite vector that belongs to one choice of singular vectors.

    At a value of 0 even the sum has a kink, like :math:`|x|`. Values below 1e-10 of the largest count as zeros, whose gradient is set to 0: a subgradient. The gradient of a
    value :math:`\sigma_i` is right to about ``eps sigma_1 / sigma_i`` of the largest gradient.

    One pair of factors and one singular value decomposition, ``O(n^2 m + n^3)``, as without the gradient; the backward pass takes products alone for a diagonal system, two
    Lyapunov equations for a dense one. There is no second derivative: to ask for it is an error.

    Examples
    --------
    >>> import torch, hsv, hsv_torch
    >>> b = torch.tensor([[2.0]], requires_grad=True)
    >>> s = hsv_torch.hankel_singular_values(hsv.DiagonalStateSpace(torch.tensor([0.5]), b, torch.tensor([[3.0]]), dt=True))
    >>> s.sum().backward()
    >>> round(s.item(), 5), round(b.grad.item(), 5)                          # |b c| / (1 - 0.25) and |c| / (1 - 0.25)
    (8.0, 4.0)
    """
    poles, form = _coordinates(sys)
    result: Tensor = _HankelValues.apply(form, poles, sys.B, sys.C, False)
    return result


def hankel_sum(sys: System) -> Tensor:
    r"""Return the sum of the Hankel singular values, :math:`\sum_i\sigma_i`, the nuclear norm of the system's Hankel operator, ``(...)``; differentiable.

    Its gradient is well defined wherever no value is 0, coinciding values or not. Where many inputs and outputs keep all values within a factor of 1e3 of each other it comes from
    one eigendecomposition in place of the singular value decomposition, in half the time and with 9 digits of the gradient. Everything else as in
    :func:`hankel_singular_values`.

    Examples
    --------
    >>> import torch, hsv, hsv_torch
    >>> twice = hsv.DiagonalStateSpace(torch.tensor([0.5, 0.5]), 3 * torch.eye(2), torch.eye(2), dt=True)
    >>> hsv_torch.hankel_sum(twice)                                          # 4 + 4
    tensor(8.)
    """
    poles, form = _coordinates(sys)
    terms: Tensor = _HankelValues.apply(form, poles, sys.B, sys.C, True)
    return terms.sum(-1)


def hankel_penalty(model: nn.Module, layers: Iterable[str] | None = None) -> Tensor:
    r"""Return the sum of all Hankel singular values of a model's time-invariant layers, differentiable: the Hankel-nuclear-norm regulariser.

    ``loss + weight * hankel_penalty(model)`` pulls the layers towards systems of low order. The gradient reaches every parameter that a layer's system depends on: poles, steps,
    normalisations, input and output maps; not the skip term.

    Parameters
    ----------
    model : nn.Module
    layers : iterable of str, optional
        Dotted names or patterns (``"blocks.*.layer"``) of the layers to count; all time-invariant ones by default. A layer with a system for each channel counts
        all of them.

    Returns
    -------
    Tensor
        A scalar, float64, on the device of the first layer.

    Raises
    ------
    hsv.HsvError
        No layer is time-invariant; a layer that is named depends on its input (Mamba), or its adapter does not say how its system depends on its parameters.
    hsv.UnstableSystemError
        A layer has a pole on or outside the stability boundary.

    Notes
    -----
    The cost is that of the singular value decompositions, ``O(n^3)`` a system, whatever the length of the sequences.

    Examples
    --------
    >>> import torch, hsv_torch
    >>> layer = hsv_torch.LRU(d_model=2, n_states=4)
    >>> penalty = hsv_torch.hankel_penalty(torch.nn.Sequential(layer))
    >>> penalty.backward()
    >>> layer.B.grad.shape
    torch.Size([4, 2, 2])
    """
    chosen = chosen_layers(model, layers)
    total: Tensor | None = None
    for name, layer in chosen.items():
        sys = adapter_of(layer).differentiable_system(layer)
        if sys is None:
            if layers is None:
                continue
            raise HsvError(
                f"layer {name!r} ({type(layer).__name__}) has no Hankel singular values, for its system depends on its input; choose `layers` without it"
            )
        value = hankel_sum(sys).sum()
        total = value if total is None else total + value.to(total.device)
    if total is None:
        kinds = sorted({type(layer).__name__ for layer in chosen.values()})
        raise HsvError(
            f"`model` has no time-invariant layer: the systems of all its layers ({', '.join(kinds)}) depend on their input"
        )
    return total


class _Form:
    """What the tensors of a system are: all that is not a tensor."""

    def __init__(self, sys: System) -> None:
        self.dt = sys.dt
        self.dense = isinstance(sys, hsv.StateSpace)
        self.logarithmic = isinstance(sys, hsv.DiagonalStateSpace) and sys.log_poles is not None

    def system(self, poles: Tensor, B: Tensor, C: Tensor) -> Any:
        """Return the system of these tensors in double precision, without their graph."""
        poles, B, C = (_wide(x.detach()) for x in (poles, B, C))
        if self.dense:
            return hsv.StateSpace(poles, B, C, dt=self.dt)
        if self.logarithmic:
            return hsv.DiagonalStateSpace.from_log_poles(poles, B, C, dt=self.dt)
        return hsv.DiagonalStateSpace(poles, B, C, dt=self.dt)


def _coordinates(sys: System) -> tuple[Tensor, _Form]:
    """The state matrix, poles or logarithms that `sys` was made of, and what they are."""
    for name in ("B", "C"):
        if not isinstance(getattr(sys, name), Tensor):
            raise DtypeError(
                f"the arrays of the system must be tensors to be differentiated, but {name} is a {type(getattr(sys, name)).__name__}; without a gradient use hsv"
            )
    form = _Form(sys)
    if isinstance(sys, hsv.StateSpace):
        return sys.A, form
    return sys.poles() if sys.log_poles is None else sys.log_poles, form


class _Gramian(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: _Form, poles: Tensor, G: Tensor) -> Tensor:
        sys = form.system(poles, G, G.mH)
        P: Tensor = hsv.controllability_gramian(sys)
        ctx.form = form
        ctx.save_for_backward(poles, G)
        return P.to(G.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        poles, G = ctx.saved_tensors
        with torch.no_grad():
            gradient = _wide(gradient)
            d_poles, d_G = _pull_back(ctx.form, ctx.form.system(poles, G, G.mH), 0.5 * (gradient + gradient.mH))
        return None, *_once((d_poles, d_G), (poles, G))


class _HankelValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: _Form, poles: Tensor, B: Tensor, C: Tensor, together: bool) -> Tensor:
        """The values; or if only their sum is asked for, numbers with the same sum and the same derivative of it."""
        sys = form.system(poles, B, C)
        if not any(ctx.needs_input_grad):
            values: Tensor = hsv.hankel_singular_values(sys)
            return values.to(B.real.dtype)
        sigma, left, right = _bases(sys, together)
        ctx.form = form
        ctx.save_for_backward(poles, B, C, sigma, left, right)
        return sigma.to(B.real.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        poles, B, C, sigma, left, right = ctx.saved_tensors
        with torch.no_grad():
            form, sys = ctx.form, ctx.form.system(poles, B, C)
            counted = sigma > _LEAST_VALUE * sigma[..., :1]
            weight = torch.where(counted, 0.5 * _wide(gradient) / torch.where(counted, sigma, 1), 0)[..., None, :]
            d_poles, d_B = _pull_back(form, sys, (left * weight) @ left.mH)
            dual_poles, dual_B = _pull_back(form, _dual(form, sys), (right * weight) @ right.mH)
            d_poles = d_poles + (dual_poles.mH if form.dense else dual_poles.conj())
        return None, *_once((d_poles, d_B, dual_B.mH), (poles, B, C)), None


class _Refused(torch.autograd.Function):
    """A gradient that depends on `sources` in a way that is not known."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise HsvError(
            "Gramians and Hankel singular values have no second derivative here; leave them out of what is differentiated twice, or take the gradient without create_graph"
        )


def _once(gradients: tuple[Tensor, ...], sources: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Round the gradients to the dtypes of their sources; to differentiate them again raises."""
    rounded = tuple(g.to(x.dtype) for g, x in zip(gradients, sources, strict=True))
    return tuple(_Refused.apply(g, *sources) for g in rounded) if torch.is_grad_enabled() else rounded


def _bases(sys: Any, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """All values, and with ``Lo^H Lc = U S V^H`` in the coordinates of the system ``Lo U`` and ``Lc V``."""
    if _small_systems.fits(sys):
        return _small_systems.balancing_bases(sys)
    if isinstance(sys, hsv.StateSpace):
        Lc, Lo = hsv.controllability_factor(sys), hsv.observability_factor(sys)
    else:
        require_stable(sys)
        Lc, Lo = cauchy_factors(sys)
    product = Lo.mH @ Lc
    if together and sys.n_states <= _STATES_PER_PORT * min(sys.n_inputs, sys.n_outputs):
        _, V = torch.linalg.eigh(product.mH @ product)
        V = V.flip(-1)  # largest first
        image = product @ V
        sigma = torch.linalg.vector_norm(image, dim=-2)
        if bool((sigma * _NEAR_VALUES > sigma[..., :1]).all()):
            return sigma, Lo @ (image / sigma[..., None, :]), Lc @ V
    U, sigma, Vh = torch.linalg.svd(product)
    return sigma, Lo @ U, Lc @ Vh.mH


def _dual(form: _Form, sys: Any) -> Any:
    poles, B, C = _coordinates(sys)[0], sys.C.mH, sys.B.mH
    return form.system(poles.mH if form.dense else poles.conj(), B, C)


def _pull_back(form: _Form, sys: Any, S: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by the poles (or the state matrix) and by ``B`` of a function whose gradient by the controllability Gramian is ``S``, Hermitian."""
    B = sys.B
    if form.dense:
        A, P = sys.A, hsv.controllability_gramian(sys)
        if sys.is_discrete:
            X = hsv.solve_discrete_lyapunov(A.mH, S)
            return 2 * (X @ A @ P), 2 * (X @ B)
        X = hsv.solve_continuous_lyapunov(A.mH, -S)
        return 2 * (X @ P), 2 * (X @ B)
    return cauchy_adjoint(sys, S)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
