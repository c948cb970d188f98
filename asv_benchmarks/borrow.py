"""Let this environment, made by asv for one commit, see the packages of the environment `make bench` installed: ``python borrow.py .venv``.

What is installed here comes first, so that the benchmarks run the commit's own `hsv` beside the same peers; nothing is downloaded twice. The repository
comes last, for the systems that the benchmarks share with the tests.
"""

import sys
import sysconfig
from pathlib import Path


def main() -> None:
    """Write the path file."""
    here = Path(sysconfig.get_path("purelib"))
    lender = Path(sys.argv[1]).resolve()
    packages = lender / here.relative_to(Path(sys.prefix).resolve())
    if not packages.is_dir():
        raise SystemExit(f"no packages in {packages}: run `make bench` first, with the same version of Python")
    (here / "borrowed.pth").write_text(f"{packages}\n{Path(__file__).resolve().parent.parent}\n")


if __name__ == "__main__":
    main()
