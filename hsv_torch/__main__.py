"""The command ``hsv-torch``, also as ``python -m hsv_torch``; says what to install where its packages are missing."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line."""
    try:
        from hsv_torch import cli
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich", "torch", "safetensors"):
            raise
        extra = "cli" if package in ("typer", "rich") else "torch"
        print(
            f'Error: the command needs the package {package}, which is not installed: pip install "hsv-control[{extra}]"',
            file=sys.stderr,
        )
        sys.exit(2)
    cli.main()


if __name__ == "__main__":
    main()
