"""A diagonal state-space model over a whole sequence: one entry point, two ways of computing it, a fixed rule between them."""

from typing import Literal, get_args

import torch
from torch import Tensor

from hsv import DtypeError, ShapeError
from hsv_torch.scan import _linear, _operators
from hsv_torch.scan._convolution import convolve, impulse_response
from hsv_torch.scan._linear import has_kernel, linear_scan
from hsv_torch.scan._precision import COMPLEX, HALF, product, without_autocast

Mode = Literal["scan", "convolution"]


def _cost(*, batch: int, length: int, n_states: int, n_inputs: int, n_outputs: int) -> dict[str, float]:
    """Nanoseconds of a forward and a backward pass of each way, on one core of the machine that the constants come from.

    Fitted to 100 sizes (batch 1 to 50, length 64 to 2048, 1 to 128 channels, 16 to 256 states) on a core with 512-bit vectors. Only
    the comparison is used, so what matters is where ways cross, within a factor of 1.5 or so, and that it never changes.
    """
    group, lanes = _operators.GROUP, _operators.N_BYTES // 4
    mean, product = (n_inputs + n_outputs) / 2, n_inputs * n_outputs
    padded = (-(-n_inputs // group) + -(-n_outputs // group)) * group / 2
    return {
        # Work is done for whole vectors of sequences and whole groups of channels; nothing of size n is written.
        "fused": length * n_states * 4.4 * padded * -(-batch // lanes),
        # All states go through memory a few times; BLAS is as quick as the fused kernel.
        "wide": length * n_states * (10 + 0.27 * mean) * batch + 5e4,
        # Transforms of signals, transforms of the kernel, the kernel's matrix product.
        "convolution": length * (22 * mean * batch + (22 + 0.13 * n_states) * product) + 2e5,
    }


def _gpu_cost(*, batch: int, length: int, n_states: int, n_inputs: int, n_outputs: int) -> dict[str, float]:
    """Nanoseconds of a forward and a backward pass of each way on a GPU of 2.5 TB/s and 40 TFLOP/s in float32, by counting.

    Bytes and operations, 5 us for each launch. The two rates are what an H100's data sheet leaves to expect; nothing here has been measured on
    a GPU yet.
    """
    byte, operation, launch = 1 / 2500, 1 / 40e3, 5e3
    steps, channels, product = batch * length, n_inputs + n_outputs, n_inputs * n_outputs
    return {
        # Complex states go through memory 11 times; six products of matrices, two real operations for each of two parts.
        "scan": steps * n_states * (88 * byte + 12 * channels * operation) + 12 * launch,
        # Some 25 passes over the transforms of signals, three products for each frequency; the same passes over those of the kernel, which
        # are made by three products.
        "convolution": steps * (100 * channels * byte + 24 * product * operation)
        + length * product * (200 * byte + 12 * n_states * operation)
        + 40 * launch,
    }


def choose_mode(
    *, batch: int, length: int, n_states: int, n_inputs: int, n_outputs: int, device: torch.device | str = "cpu"
) -> Mode:
    """Scan or convolution, from the sizes alone: the same on every machine and in every run, so that results repeat.

    The scan's work grows with ``batch length n_states (n_inputs + n_outputs)``, the convolution's with
    ``length (batch (n_inputs + n_outputs) + n_states n_inputs n_outputs)``: it wins where many sequences or few channels share one
    kernel, and there are many states. With 8 channels, 784 steps and 50 sequences the two meet at 79 states on the CPU. For CUDA devices the rule
    counts bytes and operations; its constants come from a data sheet and have not been measured on a GPU yet. Where the scan
    has no kernel (other devices, CUDA without Triton) the answer is always the convolution.

    Examples
    --------
    >>> sizes = dict(batch=50, length=784, n_inputs=8, n_outputs=8)
    >>> choose_mode(**sizes, n_states=256), choose_mode(**sizes, n_states=28)
    ('convolution', 'scan')
    """
    sizes = {"batch": batch, "length": length, "n_states": n_states, "n_inputs": n_inputs, "n_outputs": n_outputs}
    kind = torch.device(device).type
    if kind == "cpu":
        cost = _cost(**sizes)
        return "convolution" if cost["convolution"] < min(cost["fused"], cost["wide"]) else "scan"
    if kind != "cuda" or not _linear.TRITON:
        return "convolution"
    cost = _gpu_cost(**sizes)
    return "convolution" if cost["convolution"] < cost["scan"] else "scan"


def diagonal_state_space(x: Tensor, log_poles: Tensor, B: Tensor, C: Tensor, *, mode: Mode) -> Tensor:
    r"""Return the outputs of :math:`h_t = \lambda \odot h_{t-1} + B x_t`, :math:`y_t = \mathrm{Re}(C h_t)`, from a state of zero.

    Parameters
    ----------
    x : Tensor
        ``(batch, length, n_inputs)``, float32, float64 or half precision, which is computed in float32, under autocast too.
    log_poles : Tensor
        ``(n,)``, complex: :math:`\log \lambda`. The logarithm keeps what a pole near the unit circle loses to rounding.
    B, C : Tensor
        ``(n, n_inputs)`` and ``(n_outputs, n)``, complex.
    mode : {"scan", "convolution"}
        The recurrence, or an FFT convolution with the impulse response; the same numbers up to rounding. See
        :func:`choose_mode`.

    Returns
    -------
    Tensor
        ``(batch, length, n_outputs)``, of ``x``'s dtype and device.

    Raises
    ------
    hsv.ShapeError, hsv.DtypeError
        Shapes or dtypes that do not go together.

    Notes
    -----
    The scan takes one of two ways, again by sizes alone: a kernel from inputs to outputs that writes no states, or, for many
    channels or very few sequences, matrix products around :func:`linear_scan`. The kernel keeps the states between chunks of 24
    steps for the backward pass and computes those inside a chunk again. It costs about ``n (8 H + 8)`` operations a step and a
    sequence forward, and 2.5 times that backward.

    In float32 the scan rounds the poles, which moves the outputs by at most about ``1e-7 / (1 - |pole|)`` of their size; the convolution
    forms its powers from ``log_poles`` in float64 and does not. A scan's outputs do not depend on the number of threads. There
    is no second derivative. On CUDA devices the scan is always matrix products around :func:`linear_scan`: with many channels they are
    nearly all of the work, and with few the convolution is quicker than any scan. On a device without a kernel it is a parallel scan in
    plain PyTorch between them, said once in a warning.

    Examples
    --------
    A leaky integrator that turns by a quarter at each step:

    >>> x = torch.tensor([1.0, 0, 0, 0]).reshape(1, 4, 1)
    >>> one = torch.ones(1, 1, dtype=torch.complex64)
    >>> y = diagonal_state_space(x, torch.tensor([0.5j]).log(), one, one, mode="scan")
    >>> [round(value, 6) + 0.0 for value in y.flatten().tolist()]
    [1.0, 0.0, -0.25, 0.0]
    """
    if mode not in get_args(Mode):
        raise ShapeError(f"`mode` must be one of {', '.join(map(repr, get_args(Mode)))}, got {mode!r}")
    n = log_poles.shape[0]
    if x.ndim != 3 or B.shape != (n, x.shape[-1]) or C.ndim != 2 or C.shape[1] != n:
        raise ShapeError(
            "shapes must be x (batch, length, m), log_poles (n,), B (n, m), C (p, n), got "
            + ", ".join(str(tuple(t.shape)) for t in (x, log_poles, B, C))
        )
    compute = torch.float32 if x.dtype in HALF else x.dtype
    if compute not in COMPLEX or any(t.dtype != COMPLEX[compute] for t in (log_poles, B, C)):
        raise DtypeError(
            "dtypes must be float32 or half precision for x and complex64 for the others, or float64 and complex128, got "
            + ", ".join(str(t.dtype) for t in (x, log_poles, B, C))
        )
    with without_autocast(x.device):
        return _outputs(x.to(compute), log_poles, B, C, mode).to(x.dtype)


def _outputs(x: Tensor, log_poles: Tensor, B: Tensor, C: Tensor, mode: Mode) -> Tensor:
    if mode == "convolution":
        return convolve(x, impulse_response(log_poles, B, C, x.shape[1]))
    poles = log_poles.exp()
    if not has_kernel(x.device) or x.device.type != "cpu":
        return _wide(x, poles, B, C)
    batch, length, n_inputs = x.shape
    cost = _cost(batch=batch, length=length, n_states=B.shape[0], n_inputs=n_inputs, n_outputs=C.shape[0])
    if cost["fused"] <= cost["wide"]:
        save = torch.is_grad_enabled() and any(t.requires_grad for t in (x, log_poles, B, C))
        y: Tensor = _operators.call(_operators.diagonal_scan, x, poles, B, C, save)[0]
        return y
    return _wide(x, poles, B, C)


def _wide(x: Tensor, poles: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """For many channels, on GPUs, and without a kernel: real matrix products into and out of the states, real and imaginary parts side by side."""
    n = poles.shape[0]
    drive = product(x.flatten(0, 1), torch.view_as_real(B).transpose(1, 2).reshape(2 * n, -1).mT)
    states = linear_scan(poles, torch.view_as_complex(drive.view(*x.shape[:2], n, 2)))
    output = torch.view_as_real(C.conj().resolve_conj()).flatten(1)  # Re(C h) = Re C Re h - Im C Im h
    return product(torch.view_as_real(states).flatten(2).flatten(0, 1), output.mT).view(*x.shape[:2], C.shape[0])
