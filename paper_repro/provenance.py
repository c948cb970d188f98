"""Which code, libraries and machine a result comes from."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

import hsv
import hsv_torch
import paper_repro

OPTIONS_OF_A_MACHINE = ("--out", "--output", "--results", "--workers", "--data-dir", "--minutes")
DISTRIBUTIONS = ("torch", "numpy", "scipy", "numba", "scikit-learn")


@functools.cache
def commit() -> str | None:
    """Return the commit of the working tree, with ``-dirty`` where tracked files differ; None outside a repository."""
    root = Path(paper_repro.__file__).parents[1]
    try:
        if not (root / ".git").exists():
            return None
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


@functools.cache
def code_digest() -> str:
    """Return a digest of every source file of the three packages, which tells code apart where a commit does not."""
    digest = hashlib.sha256()
    for package in (hsv, hsv_torch, paper_repro):
        root = Path(str(package.__file__)).parent
        for path in sorted((*root.rglob("*.py"), *root.rglob("*.toml"), *root.rglob("*.cpp"))):
            digest.update(f"{package.__name__}/{path.relative_to(root)}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that the numbers depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in DISTRIBUTIONS}


def plain_command(arguments: Sequence[str]) -> str:
    """Return the command of this package with `arguments`, without options that say where on a machine and how many at a time.

    Examples
    --------
    >>> plain_command(["run", "methods", "--cpu", "--workers", "2", "--out=somewhere"])
    'python -m paper_repro run methods --cpu'
    """
    kept, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if skip or name in OPTIONS_OF_A_MACHINE:
            skip = not skip and not equals
            continue
        kept.append(argument)
    return shlex.join(["python", "-m", "paper_repro", *kept])


def available_cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def device_name(device: torch.device) -> str:
    """Return what `device` is, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {available_cores()} cores" if device.type == "cpu" else str(device)


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()
