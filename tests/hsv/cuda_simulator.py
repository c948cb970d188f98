"""What `test_cuda_kernels.py` runs in a process of its own, in which Numba simulates a GPU.

Numba's simulator lets the threads of a block run as they like between two barriers, so that a missing barrier may or may not show. Here one thread at a
time runs from a barrier to the next, in an order that the test chooses: what depends on the order is a race. Threads that wait at
different barriers, or that leave while others wait, which a GPU does not forgive, are an error.
"""

import random
import sys
import threading
from unittest import mock

import numpy as np
import pytest

ORDERS = {
    "ascending": lambda threads: threads,
    "descending": lambda threads: threads[::-1],
    "shuffled": lambda threads: random.Random(len(threads)).sample(threads, len(threads)),
}
_order = ORDERS["ascending"]


class Thread(threading.Thread):
    """A thread of a block: runs when it is told to, and says when it has come to a barrier or to its end."""

    def __init__(self, function, block, thread):
        super().__init__(daemon=True)
        self.function, self.blockIdx, self.threadIdx = function, block, thread
        self.turn, self.stopped = threading.Semaphore(0), threading.Semaphore(0)
        self.barrier = self.vote = self.failure = None

    def run(self):
        self.turn.acquire()
        try:
            self.function()
        except BaseException as error:
            self.failure = error
        self.barrier = None
        self.stopped.release()

    def go_on(self):
        """Run up to the next barrier; where that is, or None at the end."""
        self.turn.release()
        self.stopped.acquire()
        if self.failure is not None:
            raise self.failure
        return self.barrier

    def syncthreads(self):
        self.wait_at(sys._getframe(2))

    def syncthreads_or(self, value):
        self.vote = value
        self.wait_at(sys._getframe(2))
        return int(self.all_votes)

    def wait_at(self, frame):
        self.barrier = f"{frame.f_code.co_name}, line {frame.f_lineno}"
        self.stopped.release()
        self.turn.acquire()


class Block:
    """Stands in for the simulator's class that runs a block."""

    def __init__(self, function, grid, shape, debug):
        self.function, self.shape = function, shape

    def run(self, place, *arguments):
        from numba.cuda.simulator.kernelapi import Dim3

        threads = [
            Thread(lambda: self.function(*arguments), Dim3(*place), Dim3(*index)) for index in np.ndindex(*self.shape)
        ]
        threads = _order(threads)
        for thread in threads:
            thread.start()
        while True:
            barriers = {thread.go_on() for thread in threads}
            if len(barriers) > 1:
                raise RuntimeError(f"threads of one block wait at different barriers: {barriers}")
            if barriers == {None}:
                return
            votes = any(thread.vote for thread in threads)
            for thread in threads:
                thread.all_votes = votes


def in_order(order, name, *arguments):
    """Call a function of this file with the threads of every block in an order of `ORDERS`."""
    from numba.cuda.simulator import kernel

    with mock.patch.object(kernel, "BlockManager", Block), mock.patch.dict(globals(), {"_order": ORDERS[order]}):
        return globals()[name](*arguments)


def flat(array):
    """Return the numbers as the kernels take them: one axis, float64, a complex number as two."""
    return np.ascontiguousarray(array).reshape(-1).view(np.float64)


def factor(poles, gaps, generators, kind, most_shared):
    """Eliminate a batch of generators ``(batch, n, m)``; the factors, ``(batch, n, n)``, and how it was launched."""
    from hsv._kernels import _cuda

    batch, n, m = generators.shape
    complex_ = np.iscomplexobj(generators)
    plan = _cuda.factor_plan(n, m, is_complex=complex_, most_shared=most_shared)
    columns = np.full((batch, n, n), np.nan, dtype=generators.dtype)
    logs, poles = (poles, np.exp(poles)) if kind == _cuda.DISCRETE_FROM_LOGS else (poles, poles)
    arrays = [flat(x) for x in (poles, logs, gaps, generators, columns)]
    workspace = np.full(batch * plan.workspace, np.nan)
    _cuda.factors((*arrays, workspace), plan, n=n, m=m, kind=kind, is_complex=complex_, batch=batch, stream=0)
    return columns.swapaxes(-1, -2), plan


def decomposition(matrices, with_vectors, most_shared):
    """Decompose a batch ``(batch, n, n)``: left vectors, values, right vectors, whether it converged, and how it was launched."""
    from hsv._kernels import _cuda

    batch, n, _ = matrices.shape
    complex_ = np.iscomplexobj(matrices)
    plan = _cuda.decomposition_plan(n, is_complex=complex_, with_vectors=with_vectors, most_shared=most_shared)
    values, sweeps = np.full((batch, n), np.nan), np.full(batch, np.nan)
    left, right = (np.full((batch, n, n), np.nan, dtype=matrices.dtype) for _ in range(2))
    arrays = [flat(x) for x in (matrices, values, left, right, sweeps)]
    workspaces = [np.full(batch * plan.workspace, np.nan) for _ in range(2)]
    _cuda.decompositions(
        (*arrays, *workspaces), plan, n=n, is_complex=complex_, with_vectors=with_vectors, batch=batch, stream=0
    )
    return left, values, right, _cuda.converged(sweeps.max()), plan


def race():
    """A kernel that lacks a barrier: each thread reads what its neighbour writes."""
    global cuda  # the simulator takes its place there while a kernel runs
    from numba import cuda, types

    @cuda.jit
    def kernel(out):
        shared = cuda.shared.array(0, types.float64)
        i = cuda.threadIdx.x
        shared[i] = i
        out[i] = shared[(i + 1) % cuda.blockDim.x]

    out = np.zeros(4)
    kernel[1, 4, 0, 32](out)
    return out


def divergence():
    """A kernel whose first thread misses a barrier."""
    global cuda
    from numba import cuda

    @cuda.jit
    def kernel(out):
        if cuda.threadIdx.x > 0:
            cuda.syncthreads()

    kernel[1, 4, 0, 32](np.zeros(4))


def public(call, sys, arguments=()):
    """Call a public function as if NumPy arrays were a GPU's; return its result and how often each kernel was launched."""
    import hsv
    from hsv import _array, _cauchy, _device, _reduction, _small_systems
    from hsv._kernels import _cuda

    launched = {"factors": 0, "decompositions": 0}

    def counted(kernel):
        launch = getattr(_cuda, kernel)

        def count(*args, **kwargs):
            launched[kernel] += 1
            return launch(*args, **kwargs)

        return count

    with pytest.MonkeyPatch.context() as patch:
        for kernel in launched:
            patch.setattr(_cuda, kernel, counted(kernel))
        patch.setattr(_device, "in_cuda_memory", lambda x: True)
        for module in (_array, _cauchy, _reduction, _small_systems):
            patch.setattr(module, "in_host_memory", lambda x: False)
        return getattr(hsv, call)(sys, *arguments), launched
