"""Several processes on the CPU, as torchrun would start them."""

import contextlib
import os
import pickle
import socket
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
from torch import distributed


@contextlib.contextmanager
def group_of_one():
    """A process group that this process has for itself, and a mesh over it."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        yield distributed.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        distributed.destroy_process_group()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _worker(rank, size, port, functions, results):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=size, timeout=timedelta(seconds=300))
    try:
        found = {function.__name__: function(rank, size) for function in functions}
        results.put((rank, pickle.dumps(found)))  # by value: this process may be gone when it is read
    except BaseException:
        results.put((rank, traceback.format_exc()))
    finally:
        distributed.destroy_process_group()


def run(functions: Sequence[Callable[[int, int], Any]], size: int) -> dict[str, list[Any]]:
    """What ``function(rank, size)`` returns in each of the processes, for each of the functions, one after the other in the same processes."""
    port = free_port()
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    processes = [context.Process(target=_worker, args=(rank, size, port, functions, results)) for rank in range(size)]
    for process in processes:
        process.start()
    found = dict(results.get() for _ in range(size))
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert all(isinstance(each, bytes) for each in found.values()), "\n".join(
        str(each)[-4000:] for each in found.values()
    )
    values = [pickle.loads(found[rank]) for rank in range(size)]
    return {function.__name__: [each[function.__name__] for each in values] for function in functions}
