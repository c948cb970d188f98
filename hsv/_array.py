"""Which array library is this? The only door to array-api-compat, and what the array standard lacks.

The rest of the library is written against the Python array API standard and takes NumPy and CuPy arrays, torch tensors and any
other conforming array. This module finds the namespace, widens to double precision, rounds back, and carries the few operations
that have no device version (general eigendecomposition, Schur form) through the host.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat
import numpy as np

from hsv._errors import DtypeError, MissingBackendError, NonFiniteError, ShapeError

Array = Any
"""An array of any library that follows the array API standard."""

_REAL_OF = {"complex64": "float32", "complex128": "float64"}
_warned_host_copy: set[str] = set()


_NUMPY = array_api_compat.array_namespace(np.empty(0))


def namespace(*arrays: Array) -> Any:
    """Return the array API namespace that all the arrays share."""
    if all(type(a) is np.ndarray for a in arrays):  # a third of the time of a small system goes into asking otherwise
        return _NUMPY
    try:
        return array_api_compat.array_namespace(*arrays)
    except TypeError as error:
        kinds = ", ".join(sorted({type(a).__module__.split(".")[0] for a in arrays}))
        raise DtypeError(
            f"all arrays must come from one array library, got a mixture ({kinds}); convert them first"
        ) from error


def is_array(x: object) -> bool:
    """Tell whether `x` is an array of a library that follows the standard."""
    return bool(array_api_compat.is_array_api_obj(x))


def as_arrays(names: Sequence[str], values: Sequence[Any], *, optional: Sequence[str] = ("D",)) -> list[Array]:
    """Return the values as arrays of one library, one floating dtype and one device; numbers and lists follow the arrays among them.

    Integers become double precision. ``None`` stays ``None`` for the `optional` ones and is refused for all others.
    """
    for name, value in zip(names, values, strict=True):
        if value is None and name not in optional:
            raise DtypeError(f"{name} must be an array of numbers, got None")
        if type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
            raise DtypeError(
                f"{name} has masked entries ({np.ma.count_masked(value)}), for which no number stands; fill them first, {name}.filled(0) say"
            )
    given = [v for v in values if is_array(v)]
    if given:
        xp = namespace(*given)
        devices = {str(device(v)) for v in given}
        if len(devices) > 1:
            raise DtypeError(
                f"{', '.join(names)} must be on one device, found {', '.join(sorted(devices))}; move them first"
            )
        where = device(given[0])
    else:
        xp, where = _NUMPY, None
    arrays: list[Array] = []
    for name, value in zip(names, values, strict=True):
        if value is None:
            arrays.append(None)
        elif is_array(value):
            if not xp.isdtype(value.dtype, "numeric"):
                raise DtypeError(f"{name} must hold real or complex numbers, got dtype {value.dtype}")
            arrays.append(_as_floating(xp, name, value))
        else:
            host = _from_list(name, value)
            if host.dtype.kind not in "biufc":
                raise DtypeError(
                    f"{name} must be an array of numbers, got {type(value).__name__} with dtype {host.dtype}"
                )
            host = host.astype(np.complex128 if host.dtype.kind == "c" else np.float64)
            arrays.append(
                xp.asarray(host.tolist(), dtype=getattr(xp, host.dtype.name), device=where) if given else host
            )
    present = [a for a in arrays if a is not None]
    kind = "complex" if any(is_complex(a) for a in present) else "float"
    deciding = [a for a, v in zip(arrays, values, strict=True) if is_array(v)] if given else present
    wide = any(dtype_name(a) in ("float64", "complex128") for a in deciding)
    target = getattr(
        xp, {"complex": "complex128" if wide else "complex64", "float": "float64" if wide else "float32"}[kind]
    )
    return [None if a is None else xp.astype(a, target, copy=False) for a in arrays]


def _from_list(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ShapeError(
            f"{name} must be an array, which this list is not: its rows differ in length ({error})"
        ) from error


def _as_floating(xp: Any, name: str, array: Array) -> Array:
    if xp.isdtype(array.dtype, "integral"):
        return xp.astype(array, xp.float64)
    if dtype_name(array) not in ("float32", "float64", "complex64", "complex128"):  # float16, bfloat16, long double
        raise DtypeError(
            f"{name} must be in single or double precision, got dtype {array.dtype}; convert to float32 or float64 first"
        )
    return array


def device(x: Array) -> Any:
    """Return the device that the array lives on."""
    return array_api_compat.device(x)


def dtype_name(x: Array) -> str:
    """Return ``"float32"``, ``"complex128"``... of any library's array."""
    return _numpy_name(x.dtype) if type(x) is np.ndarray else str(x.dtype).rsplit(".", 1)[-1]


@functools.cache
def _numpy_name(dtype: np.dtype) -> str:
    return str(dtype)


def is_complex(x: Array) -> bool:
    """Tell whether the array holds complex numbers."""
    return dtype_name(x) in _REAL_OF


def real_dtype(x: Array) -> Any:
    """Return the real dtype of the same precision."""
    name = dtype_name(x)
    return getattr(namespace(x), _REAL_OF.get(name, name))


def widen(x: Array) -> Array:
    """Return the array in double precision.

    Raises
    ------
    MissingBackendError
        The array's device has no double precision (Apple's MPS, say).
    """
    xp = namespace(x)
    target = xp.complex128 if is_complex(x) else xp.float64
    if x.dtype == target:
        return x
    try:
        return xp.astype(x, target)
    except (TypeError, RuntimeError) as error:
        where = device(x)
        raise MissingBackendError(
            f'device {where} has no double precision, which is needed here; move the arrays to device="cpu" first'
        ) from error


def round_to(x: Array, like: Array) -> Array:
    """Round a double-precision result once, to the precision of `like`; real stays real and complex stays complex."""
    xp = namespace(x)
    single = dtype_name(like) in ("float32", "complex64")
    name = ("complex64" if single else "complex128") if is_complex(x) else ("float32" if single else "float64")
    return xp.astype(x, getattr(xp, name), copy=False)


def copied(x: Array) -> Array:
    """Return a copy in memory of its own."""
    return namespace(x).astype(x, x.dtype, copy=True)


def to_host(x: Array) -> np.ndarray:
    """Return a NumPy array with the same numbers."""
    if array_api_compat.is_numpy_array(x):
        return np.asarray(x)
    if array_api_compat.is_torch_array(x):
        return np.asarray(x.detach().cpu().resolve_conj().resolve_neg().numpy())
    if array_api_compat.is_cupy_array(x):
        return np.asarray(x.get())
    try:
        return np.asarray(np.from_dlpack(x))
    except BufferError:  # NumPy 2.0 exports no array that is read-only, as broadcast ones are
        return np.asarray(np.from_dlpack(namespace(x).asarray(x, copy=True)))


def from_host(host: np.ndarray, like: Array) -> Array:
    """Return a NumPy array's numbers as an array of the library and on the device of `like`."""
    if array_api_compat.is_numpy_array(like):
        return host
    xp = namespace(like)
    return xp.asarray(np.array(host, order="C"), device=device(like))


def in_host_memory(x: Array) -> bool:
    """Tell whether compiled CPU kernels can read the array in place: NumPy's, and torch's on the CPU."""
    return bool(array_api_compat.is_numpy_array(x)) or (array_api_compat.is_torch_array(x) and x.device.type == "cpu")


def in_cuda_memory(x: Array) -> bool:
    """Tell whether CUDA kernels can read the array in place: CuPy's, and torch's on such a device."""
    return bool(array_api_compat.is_cupy_array(x)) or (array_api_compat.is_torch_array(x) and x.device.type == "cuda")


def flat_memory(x: Array) -> Array:
    """Return the numbers in one axis, one after the other in memory, for a kernel to read: a view where that is possible."""
    if array_api_compat.is_torch_array(x):
        return x.detach().resolve_conj().resolve_neg().reshape(-1).contiguous()
    xp = namespace(x)
    return xp.ascontiguousarray(xp.reshape(x, (-1,)))


def say_copied(x: Array, reason: str, *, stacklevel: int = 3) -> None:
    """Warn, once for each reason, that arrays of another device than the host are copied there and back."""
    where = str(device(x))
    if "cpu" in where.lower() or reason in _warned_host_copy:
        return
    _warned_host_copy.add(reason)
    warnings.warn(
        f"{reason} runs on the host: arrays on {where} are copied there and back", UserWarning, stacklevel=stacklevel
    )


def on_host(function: Callable[..., Any], *arrays: Array, reason: str) -> Any:
    """Run NumPy code on host copies of the arrays and give its arrays back where they came from.

    Warns once for each reason if the arrays live on another device.
    """
    say_copied(arrays[0], reason, stacklevel=4)
    result = function(*(to_host(a) for a in arrays))
    if isinstance(result, tuple):
        return tuple(from_host(r, arrays[0]) if isinstance(r, np.ndarray) else r for r in result)
    return from_host(result, arrays[0])


def transpose(x: Array) -> Array:
    """Swap the last two axes, without conjugation."""
    return namespace(x).matrix_transpose(x)


def conjugate(x: Array) -> Array:
    """Complex conjugate; a real array is returned as it is."""
    return namespace(x).conj(x) if is_complex(x) else x


def conjugate_transpose(x: Array) -> Array:
    """Conjugate transpose over the last two axes."""
    return conjugate(transpose(x))


def real(x: Array) -> Array:
    """Real part; a real array is returned as it is."""
    return namespace(x).real(x) if is_complex(x) else x


def imag(x: Array) -> Array:
    """Imaginary part; zeros for a real array."""
    xp = namespace(x)
    return xp.imag(x) if is_complex(x) else xp.zeros_like(x)


def squared_modulus(x: Array) -> Array:
    """Element-wise ``|x|^2``, without the square root of ``abs``."""
    return real(x) ** 2 + namespace(x).imag(x) ** 2 if is_complex(x) else x * x


def to_complex(re: Array, im: Array) -> Array:
    """Return ``re + i im`` in the complex dtype of the same precision."""
    xp = namespace(re)
    target = xp.complex64 if dtype_name(re) == "float32" else xp.complex128
    return xp.astype(re, target) + 1j * xp.astype(im, target)


def eye(n: int, like: Array) -> Array:
    """Identity of size `n` with the dtype and the device of `like`."""
    return namespace(like).eye(n, dtype=like.dtype, device=device(like))


def zeros(shape: tuple[int, ...], like: Array) -> Array:
    """Zeros with the dtype and the device of `like`."""
    return namespace(like).zeros(shape, dtype=like.dtype, device=device(like))


def broadcast_batch(array: Array, batch_shape: tuple[int, ...], n_core_axes: int) -> Array:
    """Broadcast the leading axes to `batch_shape`, leaving the last `n_core_axes` alone."""
    core = array.shape[array.ndim - n_core_axes :]
    target = (*batch_shape, *core)
    return array if tuple(array.shape) == target else namespace(array).broadcast_to(array, target)


def require_finite(name: str, array: Array) -> None:
    """Raise :class:`NonFiniteError` that says where the first NaN or infinity is."""
    xp = namespace(array)
    finite = xp.isfinite(array)
    if bool(xp.all(finite)):
        return
    where = tuple(int(i) for i in np.argwhere(~to_host(finite))[0])
    raise NonFiniteError(
        f"{name} must be finite, found {to_host(array)[where]} at index {where}; look for a diverged model or a missing value"
    )


def require_square(name: str, array: Array) -> None:
    """Raise :class:`ShapeError` unless the last two axes are equal and not empty."""
    if array.ndim < 2 or array.shape[-1] != array.shape[-2] or array.shape[-1] == 0:
        raise ShapeError(f"{name} must have shape (..., n, n) with n >= 1, got {tuple(array.shape)}")
