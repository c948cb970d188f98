"""Gated linear attention and Mamba-2's recurrence beside plain PyTorch in chunks and in a loop, measured in turn in one run.

``python -m asv_benchmarks.gated_linear_attention [--threads 2] [--rounds 9] [--cpu-time]``
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from asv_benchmarks import sizes
from hsv_torch.scan import _chunked, gated_linear_attention, reference

Problem = tuple[Tensor, ...]

# (decay, batch, length, groups, heads, n, p): Mamba-2 layers of 128 and 256 channels before expansion, and attention with a decay a key.
MAMBA_2 = [("a head", 4, 256, 1, heads, n, 64) for heads in (4, 8) for n in (16, 64, 128)]
ATTENTION = [("a key", 4, 256, 4, 4, 32, 64)]


def problem(decay: str, batch: int, length: int, groups: int, heads: int, n: int, p: int) -> Problem:
    """Return ``q, k, v, log_decay`` and a weight of the outputs, float32; decays as Mamba-2 begins with, or a few percent a step."""
    generator = torch.Generator().manual_seed(0)
    q, k, noise = (torch.randn(batch, length, groups, n, generator=generator) for _ in range(3))
    v, weight = (torch.randn(batch, length, heads, p, generator=generator) for _ in range(2))
    rates = torch.linspace(1, 16, heads).expand(batch, length, heads)
    log_decay = -0.01 * noise.exp() if decay == "a key" else -0.01 * rates * noise[:, :, :1, :1].squeeze(-1).exp()
    return *(t.detach().requires_grad_() for t in (q, k / n**0.5, v, log_decay)), weight


def torch_loop(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """A loop over the time steps, each for the whole batch."""
    return reference.gated_linear_attention(q, k, v, log_decay)[0]


def chunk_after_chunk(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """What devices without a kernel take: one chunk after the other, computed again in the backward pass."""
    initial = v.new_zeros(v.shape[0], v.shape[2], q.shape[3], v.shape[3])
    return _chunked.gated_linear_attention(q, k, v, log_decay, initial)[0]


def chunks_at_once(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, *, chunk: int = 64) -> Tensor:
    """All chunks in the same matrix products, then a recurrence over chunks: the published form, for a decay a head and whole chunks."""
    share = v.shape[2] // q.shape[2]
    q, k, v, g = (t.unflatten(1, (-1, chunk)) for t in (q, k, v, log_decay))  # (batch, chunks, steps, ...)
    q, k = (t.repeat_interleave(share, 3) for t in (q, k))
    total = g.cumsum(2).transpose(2, 3)  # (batch, chunks, heads, steps)
    pairs = (total[..., :, None] - total[..., None, :]).masked_fill(q.new_ones(chunk, chunk).triu(1).bool(), -torch.inf)
    scores = torch.einsum("bcihn,bcjhn->bchij", q, k) * pairs.exp()
    inside = torch.einsum("bchij,bcjhp->bcihp", scores, v)
    written = torch.einsum("bcjhn,bchj,bcjhp->bchnp", k, (total[..., -1:] - total).exp(), v)
    state, before = torch.zeros_like(written[:, 0]), []
    for c in range(written.shape[1]):
        before.append(state)
        state = total[:, c, :, -1, None, None].exp() * state + written[:, c]
    outside = torch.einsum("bcihn,bchi,bchnp->bcihp", q, total.exp(), torch.stack(before, 1))
    return (inside + outside).flatten(1, 2)


LIBRARIES: dict[str, Callable[..., Tensor]] = {
    "hsv_torch": gated_linear_attention,
    "torch, chunks at once": chunks_at_once,
    "torch, chunk after chunk": chunk_after_chunk,
    "torch loop": torch_loop,
}


def libraries(decay: str) -> list[str]:
    """The names of those that have this decay."""
    return [library for library in LIBRARIES if decay == "a head" or library != "torch, chunks at once"]


def training_pass(library: str, arguments: Problem) -> tuple[Tensor, ...]:
    """Outputs and the gradients of all arguments."""
    *inputs, weight = arguments
    y = LIBRARIES[library](*inputs)
    return y.detach(), *torch.autograd.grad(y, inputs, weight)


class GatedLinearAttention:
    """What does Mamba-2's recurrence cost on the CPU, alone and with its gradients?"""

    params = (sizes([MAMBA_2[0], MAMBA_2[1], MAMBA_2[2]], MAMBA_2[3:]), list(LIBRARIES))
    param_names = ("decay, batch, length, groups, heads, keys, values", "library")
    timeout = 300

    def setup(self, size, library):
        self.arguments = problem(*size)
        training_pass(library, self.arguments)

    def time_forward(self, size, library):
        with torch.no_grad():
            LIBRARIES[library](*self.arguments[:-1])

    def time_forward_and_backward(self, size, library):
        training_pass(library, self.arguments)

    def peakmem_forward_and_backward(self, size, library):
        training_pass(library, self.arguments)


def main() -> None:
    """Print milliseconds of the forward pass and of both passes, and the ratio of each library to ours."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.gated_linear_attention", description=main.__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="of all threads together, for a machine that is busy")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    print(f"{options.threads} threads, load {os.getloadavg()[0]:.1f}, {clock.__name__}")
    print(
        "decay, batch, length, groups, heads, n, p  library                    forward ms  (least)    both ms  (least)   both / ours"
    )
    for size in (*MAMBA_2, *ATTENTION):
        arguments = problem(*size)
        expected = training_pass("torch loop", arguments)
        times: dict[str, tuple[list[float], list[float]]] = {library: ([], []) for library in libraries(size[0])}
        for k in range(options.rounds + 1):
            for library, (forward, both) in times.items():
                begin = clock()
                with torch.no_grad():
                    LIBRARIES[library](*arguments[:-1])
                middle = clock()
                results = training_pass(library, arguments)
                end = clock()
                if k > 0:
                    forward.append(1e3 * (middle - begin))
                    both.append(1e3 * (end - middle))
                else:
                    for actual, exact in zip(results, expected, strict=True):
                        assert (actual - exact).abs().max() < 1e-4 * exact.abs().max(), library
        ours = statistics.median(times["hsv_torch"][1])
        for library, (forward, both) in times.items():
            medians = statistics.median(forward), statistics.median(both)
            print(
                f"{size!s:42s} {library:26s} {medians[0]:10.2f} {min(forward):8.2f} {medians[1]:11.2f} {min(both):8.2f}"
                f" {medians[1] / ours:13.1f}"
            )


if __name__ == "__main__":
    main()
