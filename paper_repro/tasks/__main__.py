"""What the tasks take: ``python -m paper_repro.tasks [NAME ...]`` loads each with its default options and prints a table."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator, Sequence

from paper_repro.errors import ReproError
from paper_repro.tasks import TASKS, make_task

MEBIBYTE = 2**20


def table(names: Sequence[str]) -> Iterator[str]:
    """Yield the lines of a Markdown table: a task, its sequences and steps, the memory of its tensors, seconds of processor time to load it, and the peak memory of the process.

    Code that is compiled when it is first used is compiled before the clock starts, with the task's small options.
    """
    yield "| task | sequences | steps at most | tensors, MiB | seconds | peak of the process, MiB |"
    yield "|---|---|---|---|---|---|"
    for name in names:
        task = make_task(name)
        if task.where() == "generated":
            make_task(name, TASKS[name].small).load()
        start = time.process_time()
        dataset = task.load()
        seconds = time.process_time() - start
        counts = " / ".join(f"{len(part):,}" for part in (dataset.train, dataset.validation, dataset.test))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield f"| {name} | {counts} | {task.longest:,} | {dataset.n_bytes / MEBIBYTE:.1f} | {seconds:.1f} | {peak:,.0f} |"


def main(arguments: Sequence[str]) -> int:
    """Print the table of the tasks named, of all by default."""
    try:
        for line in table(arguments or list(TASKS)):
            print(line, flush=True)
    except ReproError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
