"""The command ``hsv``, also as ``python -m hsv``; says what to install where its packages are missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from hsv import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        print(
            f'Error: the command needs the package {package}, which is not installed: pip install "hsv-control[cli]"',
            file=sys.stderr,
        )
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
