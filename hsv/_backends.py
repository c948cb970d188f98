"""What computes: which array libraries and compilers are there, which are not and why, and what each is chosen for."""

from __future__ import annotations

import ctypes
import html
import importlib
import importlib.metadata
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hsv._errors import HsvError, MissingBackendError

_NOT_LOOKED = "not imported yet: hsv.backends(probe=True) looks for its devices"


@dataclass(frozen=True)
class Backend:
    """One thing that computes.

    Attributes
    ----------
    name : str
        What :func:`hsv.require_backend` takes.
    available : bool
        Whether arrays can be computed with it now.
    version : str or None
        None where the package is not installed.
    devices : tuple of str
        What it runs on. Empty where the package has not been imported, since asking takes an import: ``backends(probe=True)`` does it.
    chosen_for : str
        Which arrays go to it.
    reason : str
        Why it is not available, or what is not known; empty where nothing needs to be said.
    install : str
        The command that would install it; empty where that would not help.
    """

    name: str
    available: bool
    version: str | None
    devices: tuple[str, ...]
    chosen_for: str
    reason: str = ""
    install: str = ""


class Backends(tuple[Backend, ...]):
    """What :func:`hsv.backends` returns: a tuple that is printed as a table; ``backends()["cupy"]`` takes one out."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for backend in self:
            if backend.name == key:
                return backend
        raise HsvError(f"there is no backend {key!r}; there are {', '.join(b.name for b in self)}")

    def _rows(self) -> Iterator[tuple[str, str, str, str, str]]:
        yield "backend", "available", "version", "devices", "chosen for"
        for b in self:
            remark = "; ".join(filter(None, (b.reason, b.install)))
            devices = ", ".join(b.devices) or "-"
            yield (
                b.name,
                "yes" if b.available else "no",
                b.version or "-",
                remark or devices,
                b.chosen_for,
            )

    def __repr__(self) -> str:
        rows = list(self._rows())
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]
        lines.insert(1, "  ".join("-" * w for w in [*widths, len(rows[0][4])]))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *body = self._rows()
        cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in body]
        return (
            f"<table><tr>{''.join(f'<th>{name}</th>' for name in head)}</tr><tr>{'</tr><tr>'.join(cells)}</tr></table>"
        )


def backends(*, probe: bool = False) -> Backends:
    r"""Say what computes: NumPy, Numba's CPU kernels, CuPy, torch and Numba's CUDA kernels.

    An array is computed by its own library, on its own device; nothing needs to be chosen. This says what is there, what is not and why, and which
    kernels are behind which arrays.

    Parameters
    ----------
    probe : bool
        Import what is installed and ask it for its devices. Otherwise nothing is imported: versions come from the packages' metadata, and devices
        only from packages that have been imported already.

    Returns
    -------
    Backends
        A tuple of :class:`hsv.Backend`, printed as a table; a name as an index takes one out.

    Notes
    -----
    Never raises, a broken package is a reason. Some milliseconds; with ``probe=True`` what importing takes, seconds.

    Examples
    --------
    >>> import hsv
    >>> hsv.backends()["numpy"].available
    True
    """
    nvidia = _nvidia()
    return Backends(_describe(name, nvidia, probe=probe) for name in _KINDS)


def require_backend(name: str) -> Backend:
    """Return the backend of that name, imported and ready, or raise.

    Raises
    ------
    MissingBackendError
        It is not there; the message says why, and the command that installs it where a command does.
    HsvError
        There is no backend of that name.

    Examples
    --------
    >>> import hsv
    >>> hsv.require_backend("numba").name
    'numba'
    """
    if name not in _KINDS:
        raise HsvError(f"there is no backend {name!r}; there are {', '.join(_KINDS)}")
    backend = look_for(name)
    if not backend.available:
        remedy = f"; install it with {backend.install}" if backend.install else ""
        raise MissingBackendError(f"the backend {name} is not available: {backend.reason}{remedy}")
    return backend


def look_for(name: str) -> Backend:
    """Import one backend, and nothing else, and say what it finds."""
    return _describe(name, _nvidia(), probe=True)


@dataclass(frozen=True)
class _Kind:
    module: str
    package: tuple[str, ...]
    """The names that it may be installed under."""
    install: str
    """An extra, or a package that everyone has."""
    chosen_for: str
    devices: Callable[[Any], tuple[str, ...]]
    needs_device: bool = False


@dataclass(frozen=True)
class _Nvidia:
    """The driver, read without initialising CUDA, after which a process could not fork workers that use it."""

    devices: tuple[str, ...] = ()
    cuda: int = 13
    """The newest major version of CUDA that the driver runs."""
    reason: str = ""


def _processors(_: Any = None) -> tuple[str, ...]:
    return (f"CPU, {os.cpu_count()} threads",)


def _numba_devices(numba: Any) -> tuple[str, ...]:
    return (f"CPU, {numba.config.NUMBA_NUM_THREADS} threads",)


def _torch_devices(torch: Any) -> tuple[str, ...]:
    names = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return (f"CPU, {torch.get_num_threads()} threads", *names)


def _cupy_devices(cupy: Any) -> tuple[str, ...]:
    names = (cupy.cuda.runtime.getDeviceProperties(i)["name"] for i in range(cupy.cuda.runtime.getDeviceCount()))
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


def _numba_cuda_devices(cuda: Any) -> tuple[str, ...]:
    if not cuda.is_available():
        raise RuntimeError("numba.cuda.is_available() is False: no driver, no device, or no compiler (NVVM) beside it")
    names = (getattr(gpu, "name", "simulator") for gpu in cuda.gpus)
    return tuple(name.decode() if isinstance(name, bytes) else str(name) for name in names)


_KINDS = {
    "numpy": _Kind("numpy", ("numpy",), "numpy", "NumPy arrays, and what has no version for a device", _processors),
    "numba": _Kind("numba", ("numba",), "numba", "NumPy arrays and torch tensors on the CPU", _numba_devices),
    "cupy": _Kind(
        "cupy",
        ("cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy"),
        "hsv-control[cuda{cuda}]",
        "CuPy arrays",
        _cupy_devices,
        needs_device=True,
    ),
    "torch": _Kind("torch", ("torch",), "hsv-control[torch]", "torch tensors, on their device", _torch_devices),
    "numba-cuda": _Kind(
        "numba.cuda",
        ("numba-cuda",),
        "hsv-control[cuda{cuda}]",
        "diagonal systems of up to 256 states in CuPy arrays and CUDA tensors",
        _numba_cuda_devices,
        needs_device=True,
    ),
}


def _describe(name: str, nvidia: _Nvidia, *, probe: bool) -> Backend:
    kind = _KINDS[name]
    version = _version(kind)
    install = 'pip install "' + kind.install.format(cuda=nvidia.cuda) + '"'
    if version is None:
        return Backend(name, False, None, (), kind.chosen_for, "not installed", install)
    driver = nvidia.reason if kind.needs_device else ""
    if not probe and kind.module not in sys.modules:
        devices = nvidia.devices if kind.needs_device else ()
        return Backend(name, not driver, version, devices, kind.chosen_for, driver or ("" if devices else _NOT_LOOKED))
    try:
        devices = kind.devices(importlib.import_module(kind.module))
    except Exception as error:  # whatever a broken installation raises is the answer to the question
        raised = f"{type(error).__name__}: {error}".splitlines()[0]
        return Backend(name, False, version, (), kind.chosen_for, driver or raised)
    reason = "" if devices else driver or "it finds no device"
    return Backend(name, bool(devices), version, devices, kind.chosen_for, reason)


def _version(kind: _Kind) -> str | None:
    for package in kind.package:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    module = sys.modules.get(kind.module)  # one without metadata: built from source, or a stand-in
    return None if module is None else str(getattr(module, "__version__", "unknown"))


def _nvidia() -> _Nvidia:
    """Ask the driver's management library, which is there wherever the driver is."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return _Nvidia(reason="no device: CUDA_VISIBLE_DEVICES hides them all")
    library = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return _Nvidia(reason=f"no NVIDIA driver: {library} is not there")
    if (status := nvml.nvmlInit_v2()) != 0:
        return _Nvidia(reason=f"the NVIDIA driver does not answer: status {status} of nvmlInit")
    try:
        count, cuda = ctypes.c_uint(), ctypes.c_int()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(cuda))
        names = []
        for i in range(count.value):
            device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
            nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(i), ctypes.byref(device))
            nvml.nvmlDeviceGetName(device, name, ctypes.c_uint(len(name)))
            names.append(name.value.decode(errors="replace"))
    finally:
        nvml.nvmlShutdown()
    if not names:
        return _Nvidia(reason="no device: the NVIDIA driver finds none")
    return _Nvidia(tuple(names), 12 if cuda.value // 1000 == 12 else 13)
