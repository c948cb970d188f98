"""Run the benchmarks with asv in the environment of this interpreter, then print the table of ratios.

``python -m asv_benchmarks.run [--full] [--only REGEX] [--threads N] [--table]``
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from asv_benchmarks import table

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
ROOT = Path(__file__).resolve().parent.parent
# A few repeats are enough for a ratio; the full run leaves asv its own choice of repeats.
QUICK = ["--attribute", "repeat=(1, 5, 1.0)", "--attribute", "rounds=1", "--attribute", "warmup_time=0.05"]


def main() -> int:
    """Run asv and print the table; return asv's exit status."""
    parser = argparse.ArgumentParser(prog="python -m asv_benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all sizes, as many repeats as asv likes")
    parser.add_argument("--only", metavar="REGEX", help="run the benchmarks whose name matches")
    parser.add_argument("--threads", type=int, metavar="N", help="threads for BLAS, torch and Numba (default: theirs)")
    parser.add_argument("--table", action="store_true", help="print the table of the last run and measure nothing")
    arguments = parser.parse_args()

    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()
    if not commit:
        parser.error(
            "asv files its results under the current git commit, and this folder has none; clone the repository first"
        )
    status = 0
    if not arguments.table:
        asv = [sys.executable, "-m", "asv"]
        subprocess.run([*asv, "machine", "--yes"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        command = [
            *asv,
            "run",
            "--environment",
            f"existing:{sys.executable}",
            "--set-commit-hash",
            commit,
            "--show-stderr",
        ]
        command += [] if arguments.full else QUICK
        command += ["--bench", arguments.only] if arguments.only else []
        environment = {**os.environ, "HSV_BENCHMARK_SIZES": "full" if arguments.full else "quick"}
        if arguments.threads is not None:
            environment |= dict.fromkeys(THREAD_VARIABLES, str(arguments.threads))
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    table.print_table(ROOT / ".asv" / "results", commit)
    return status


if __name__ == "__main__":
    sys.exit(main())
