"""The Triton kernels as implementations of the operators for CUDA tensors. Triton itself is imported when a kernel is first needed."""

from typing import Any

from torch import Tensor

from hsv_torch.scan import _operators


@_operators.linear_scan.register_kernel("cuda")
def linear_scan(*arguments: Tensor) -> Tensor:
    from hsv_torch.scan._triton import linear

    return linear.forward(*arguments)


@_operators.linear_scan_backward.register_kernel("cuda")
def linear_scan_backward(*arguments: Tensor) -> tuple[Tensor, ...]:
    from hsv_torch.scan._triton import linear

    return linear.backward(*arguments)


@_operators.selective_scan.register_kernel("cuda")
def selective_scan(*arguments: Any) -> tuple[Tensor, ...]:
    from hsv_torch.scan._triton import selective

    return selective.forward(*arguments)


@_operators.selective_scan_backward.register_kernel("cuda")
def selective_scan_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from hsv_torch.scan._triton import selective

    return selective.backward(*arguments)


@_operators.gated_linear_attention.register_kernel("cuda")
def gated_linear_attention(*arguments: Any) -> tuple[Tensor, ...]:
    from hsv_torch.scan._triton import attention

    return attention.forward(*arguments)


@_operators.gated_linear_attention_backward.register_kernel("cuda")
def gated_linear_attention_backward(*arguments: Any) -> tuple[Tensor, ...]:
    from hsv_torch.scan._triton import attention

    return attention.backward(*arguments)
