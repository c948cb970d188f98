"""Systems in files: ``.npz`` and ``.json`` in formats of our own, ``.mat`` as MATLAB and SciPy write it."""

from __future__ import annotations

import io
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hsv._array import dtype_name, to_host
from hsv._descriptor import from_descriptor
from hsv._errors import DtypeError, HsvError, MissingBackendError, ShapeError
from hsv._systems import DiagonalStateSpace, LinearSystem, StateSpace, real_part, require_system

FORMAT, VERSION = "hsv-system", 1
_DTYPES = ("float32", "float64", "complex64", "complex128")
# A sparse matrix is made dense: 20,000 states are 3.2 GB of double precision, and dense methods take days beyond.
_MOST_SPARSE_STATES = 20_000
# Types of elements in MATLAB's version 5; numbers and text; classes of arrays that are made of these alone, from text (4) to 64-bit integers.
_MAT5_MATRIX, _MAT5_COMPRESSED = 14, 15
_MAT5_TOP = frozenset({_MAT5_MATRIX, _MAT5_COMPRESSED})
_MAT5_NUMBERS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18})
_MAT5_SPARSE, _MAT5_PLAIN_CLASSES = 5, range(4, 16)
_MAT5_DTYPES = {"double": np.float64, "single": np.float32, "logical": np.bool_}
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


class Model(NamedTuple):
    """What a file holds: the system, and the names of its signals as keywords of ``to_control`` and ``save``."""

    system: LinearSystem
    labels: dict[str, Any]


def load(path: str | os.PathLike[str], *, dt: float | bool | None = None) -> Any:
    r"""Read a system from a ``.npz``, ``.json`` or ``.mat`` file.

    Parameters
    ----------
    path : path
        The suffix decides the format. ``.mat`` files, of version 5 or 7.3, hold the variables ``A``, ``B``, ``C`` and maybe ``D`` and ``E``, full or sparse, and the time base
        as ``dt`` or ``Ts``: 0 is continuous, -1 (MATLAB's "unspecified") or a logical true a discrete system without seconds. Plain ``.npz`` files
        with arrays of these names are read too.
    dt : float or bool, optional
        The time base, only for a file that has none: ``0`` continuous, ``True`` or seconds discrete.

    Returns
    -------
    StateSpace or DiagonalStateSpace
        NumPy arrays in the precision of the file. Names of signals, where the file has them, come from :func:`labels`.

    Raises
    ------
    HsvError
        The file is truncated or something else, or has no time base.
    IllConditionedError
        An ``E`` in the file is singular; see :func:`from_descriptor`.
    MissingBackendError
        A ``.mat`` file of version 7.3 without h5py.
    OSError
        The file cannot be opened.

    Notes
    -----
    Nothing is unpickled: a file cannot run code. The page "The command" of the documentation describes the formats.

    See Also
    --------
    save : the other way.

    Examples
    --------
    >>> import hsv, pathlib, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = pathlib.Path(folder.name) / "lag.json"
    >>> hsv.save(hsv.StateSpace([[0.5]], [[1.0]], [[2.0]], dt=0.1), path)
    >>> hsv.load(path)
    <StateSpace: 1 states, 1 inputs, 1 outputs, discrete, dt=0.1 s, float64>
    >>> folder.cleanup()
    """
    return read_model(path, dt=dt).system


def save(
    sys: LinearSystem,
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> None:
    """Write a system to a ``.npz``, ``.json`` or ``.mat`` file.

    Parameters
    ----------
    sys : StateSpace or DiagonalStateSpace
        Arrays of any library. ``.npz`` and ``.json`` keep everything: batches, diagonal systems, logarithms of poles, precision. ``.mat`` (version 5)
        holds one system with a dense ``A``; a discrete system without seconds has ``Ts = -1`` there, as in MATLAB.
    path : path
        The suffix decides the format.
    inputs, outputs : sequence of str, optional
        Names of the signals, one each.
    name : str, optional
        Name of the system.
    overwrite : bool
        Replace a file that is there.

    Raises
    ------
    HsvError
        The file exists and `overwrite` is False, or the suffix is none of the three.
    ShapeError
        The number of names is wrong, or a batch is to go into ``.mat``.
    OSError
        The file cannot be written.

    Notes
    -----
    The file is written beside its place and moved there at the end: nobody ever sees half of it.

    See Also
    --------
    load : the other way, with an example.
    """
    target = Path(path)
    write = _format(target, _WRITERS)
    require_system(sys)
    check_labels("inputs", inputs, sys.n_inputs)
    check_labels("outputs", outputs, sys.n_outputs)
    given = {"inputs": inputs, "outputs": outputs, "name": name}
    content = write(sys, {key: value for key, value in given.items() if value is not None})
    require_writable(target, overwrite=overwrite)
    write_atomically(target, content)


def require_writable(path: Path, *, overwrite: bool) -> None:
    """Raise an error if something is there that must not be replaced."""
    if path.exists() and not overwrite:
        raise HsvError(f"{path} exists; pass overwrite=True to replace it")


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the file, then move: a reader sees the old file or the new one."""
    target = Path(os.path.realpath(path))  # a link stays a link
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_model(path: str | os.PathLike[str], *, dt: float | bool | None = None) -> Model:
    """The system and the names in a file; see :func:`load`."""
    source = Path(path)
    return _format(source, _READERS)(source, dt)


def check_labels(what: str, names: Sequence[str] | None, expected: int) -> None:
    """Raise :class:`ShapeError` unless there are as many names as signals, or none at all."""
    if names is not None and (isinstance(names, str) or len(names) != expected):
        raise ShapeError(f"{what} must be a list of {expected} names, got {names!r}")


def choose_dt(own: float | bool | None, given: float | bool | None, *, where: str, change: str) -> float | bool:
    """The time base of something foreign: its own, or the one given where it has none.

    `where` names the thing, `change` says how to get another time base than its own.
    """
    if own is None and given is None:
        raise HsvError(f"{where} has no time base; pass dt=0 (continuous), dt=True or dt=seconds (discrete)")
    if own is None:
        assert given is not None
        return given
    if given is not None and (own != given or (own is True) != (given is True)):
        raise HsvError(f"dt must be left out or equal to the system's own, {own!r}, got {given!r}; {change}")
    return own


def make_system(E: Any, A: Any, B: Any, C: Any, D: Any, *, dt: float | bool) -> StateSpace:
    """A dense system from matrices, one with ``E`` brought to the standard form; nothing is changed where ``E`` is the identity."""
    if E is None or E.size == 0 or (E.ndim == 2 and E.shape == A.shape and np.array_equal(E, np.eye(len(E)))):
        return StateSpace(A, B, C, D, dt=dt)
    return from_descriptor(E, A, B, C, D, dt=dt)


def _format(path: Path, table: Mapping[str, Any]) -> Any:
    try:
        return table[path.suffix.lower()]
    except KeyError:
        raise HsvError(f"{path} must end in {', '.join(table)}, for the suffix decides the format") from None


@contextmanager
def _parsing(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a parser raises over a damaged file into one error with the reason; ours pass."""
    try:
        yield
    except HsvError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HsvError(f"{path} cannot be read as {kind} ({reason}): it is truncated, or something else") from error


def _fields(sys: LinearSystem) -> dict[str, Any]:
    """Kind, time base and matrices of a system. Of conjugate pairs one half is stored: the other follows exactly."""
    fields: dict[str, Any] = {"format": FORMAT, "version": VERSION, "kind": "dense", "dt": sys.dt}
    B, C = sys.B, sys.C
    if isinstance(sys, DiagonalStateSpace):
        name, poles = ("poles", sys.poles()) if sys.log_poles is None else ("log_poles", sys.log_poles)
        fields["kind"] = "diagonal"
        if sys._conjugate_pairs:
            fields["kind"] = "conjugate pairs"
            half = sys.n_states // 2
            poles, B, C = poles[..., :half], B[..., :half, :], 2 * C[..., :, :half]
        fields[name] = to_host(poles)
    else:
        assert isinstance(sys, StateSpace)
        fields["A"] = to_host(sys.A)
    return fields | {"B": to_host(B), "C": to_host(C), "D": to_host(sys.D)}


def _from_fields(path: Path, fields: Mapping[str, Any], dt: float | bool | None) -> Model:
    version = int(fields["version"])
    if version != VERSION:
        raise HsvError(f"{path} has version {version} of the format, and this release reads {VERSION}; update hsv")
    own = _time_base(path, "dt", fields["dt"])
    chosen = choose_dt(own, dt, where=str(path), change="hsv.discretize samples a system")
    kind, maps = str(fields["kind"]), (fields["B"], fields["C"], fields["D"])
    system: LinearSystem
    if kind == "dense":
        system = StateSpace(fields["A"], *maps, dt=chosen)
    elif kind in ("diagonal", "conjugate pairs"):
        if "log_poles" in fields:
            system = DiagonalStateSpace.from_log_poles(fields["log_poles"], *maps, dt=chosen)
        else:
            system = DiagonalStateSpace(fields["poles"], *maps, dt=chosen)
        system = real_part(system) if kind == "conjugate pairs" else system
    else:
        raise HsvError(f"{path}: kind must be dense, diagonal or conjugate pairs, got {kind!r}")
    labels = {key: [str(x) for x in fields[key]] for key in ("inputs", "outputs") if key in fields}
    return _model(path, system, labels | ({"name": str(fields["name"])} if "name" in fields else {}))


def _model(path: Path, system: LinearSystem, labels: dict[str, Any]) -> Model:
    check_labels(f"{path}: inputs", labels.get("inputs"), system.n_inputs)
    check_labels(f"{path}: outputs", labels.get("outputs"), system.n_outputs)
    return Model(system, labels)


def _time_base(path: Path, name: str, value: Any) -> float | bool:
    """0 continuous, True or -1 discrete without seconds, else seconds."""
    number = np.asarray(value)
    if number.size != 1 or number.dtype.kind not in "biuf":
        raise HsvError(f"{path}: {name} must be one number, got {value!r}")
    if number.dtype.kind == "b" or number.item() == -1:
        return True if number.item() else 0.0
    return float(number.item())


def _from_variables(path: Path, variables: Mapping[str, Any], dt: float | bool | None) -> Model:
    """A system from variables named A, B, C, D, E and dt or Ts."""
    missing = [name for name in "ABC" if name not in variables]
    if missing:
        found = ", ".join(sorted(variables)) or "nothing"
        raise HsvError(
            f"{path} must have the variables A, B, C, has {found}; in MATLAB: [A,B,C,D] = ssdata(sys); Ts = sys.Ts; save model.mat A B C D Ts"
        )
    bases = {name: _time_base(path, name, variables[name]) for name in ("dt", "Ts") if name in variables}
    if len({(base, base is True) for base in bases.values()}) > 1:
        raise HsvError(f"{path}: dt and Ts must be equal, got {bases['dt']!r} and {bases['Ts']!r}")
    chosen = choose_dt(next(iter(bases.values()), None), dt, where=str(path), change="hsv.discretize samples a system")
    A, B, C = (_dense(name, variables[name]) for name in "ABC")
    D, E = (_dense(name, variables[name]) if name in variables else None for name in "DE")
    for name, matrix in zip("ABCDE", (A, B, C, D, E), strict=True):
        if matrix is not None and matrix.ndim > 2:
            raise ShapeError(
                f"{path}: {name} must be a matrix, got shape {matrix.shape}; batches go into .npz or .json"
            )
    empty = D is not None and D.size == 0
    system = make_system(E, A, B, C, None if empty else D, dt=chosen)
    labels: dict[str, Any] = {}
    for ours, theirs in (("inputs", "InputName"), ("outputs", "OutputName")):
        names = _names(variables.get(theirs))
        if any(names):  # MATLAB's systems without names have empty ones
            labels[ours] = names
    for text in _names(variables.get("Name"))[:1]:
        labels |= {"name": text} if text else {}
    return _model(path, system, labels)


def _dense(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "toarray"):
        if max(value.shape) > _MOST_SPARSE_STATES:
            raise ShapeError(
                f"{name} is sparse with shape {value.shape}, too large for the dense methods, which take up to {_MOST_SPARSE_STATES} states"
            )
        value = value.toarray()
    matrix = np.asarray(value)
    if matrix.dtype.kind not in "biufc":
        raise DtypeError(f"{name} must hold numbers, got dtype {matrix.dtype}")
    return matrix


def _names(value: Any) -> list[str]:
    """Strings of a cell array, of an array of characters, or of nothing."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    return [str(np.asarray(x).ravel()[0]) if np.size(x) else "" for x in np.ravel(np.asarray(value, dtype=object))]


def _write_npz(sys: LinearSystem, labels: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {key: np.asarray(value) for key, value in (_fields(sys) | labels).items()}
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def _read_npz(path: Path, dt: float | bool | None) -> Model:
    with path.open("rb") as file, _parsing(path, "npz"):
        if file.read(2) != b"PK":
            raise HsvError(f"{path} is no .npz file: it does not begin as a zip archive does")
        file.seek(0)
        with np.load(file, allow_pickle=False) as archive:
            fields = {name: archive[name] for name in archive.files}
    with _parsing(path, "npz"):
        if "format" not in fields:
            return _from_variables(path, fields, dt)
        _require_format(path, str(fields["format"]))
        return _from_fields(path, fields, dt)


def _require_format(path: Path, found: object) -> None:
    if found != FORMAT:
        raise HsvError(f"{path}: format must be {FORMAT!r}, got {found!r}; it is a file of another program")


def _write_json(sys: LinearSystem, labels: dict[str, Any]) -> bytes:
    fields = _fields(sys) | {"dtype": dtype_name(sys.B)} | labels
    lines = (f"  {json.dumps(key)}: {json.dumps(_to_json(value))}" for key, value in fields.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def _to_json(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "c":
            return {"real": value.real.tolist(), "imag": value.imag.tolist()}
        return value.tolist()
    return list(value) if isinstance(value, (list, tuple)) else value


def _read_json(path: Path, dt: float | bool | None) -> Model:
    content = path.read_bytes()
    with _parsing(path, "JSON"):
        fields = json.loads(content)
        if not isinstance(fields, dict):
            raise HsvError(f"{path} must hold a JSON object, got {type(fields).__name__}")
        _require_format(path, fields.get("format"))
        missing = [key for key in ("version", "kind", "dt", "dtype", "B", "C", "D") if key not in fields]
        if missing:
            raise HsvError(f"{path} lacks {', '.join(missing)}")
        if fields["dtype"] not in _DTYPES:
            raise HsvError(f"{path}: dtype must be one of {', '.join(_DTYPES)}, got {fields['dtype']!r}")
        arrays = {
            key: _from_json(fields[key], np.dtype(fields["dtype"]))
            for key in ("A", "poles", "log_poles", "B", "C", "D")
            if key in fields
        }
        return _from_fields(path, fields | arrays, dt)


def _from_json(value: Any, dtype: np.dtype) -> np.ndarray:
    if isinstance(value, dict):
        return np.asarray(np.array(value["real"], np.float64) + 1j * np.array(value["imag"], np.float64), dtype)
    return np.asarray(value, np.zeros(0, dtype).real.dtype)


def _write_mat(sys: LinearSystem, labels: dict[str, Any]) -> bytes:
    import scipy.io

    if sys.batch_shape:
        raise ShapeError(f"a .mat file holds one system, got a batch of shape {sys.batch_shape}; use .npz or .json")
    dense = sys.to_dense()
    # A last: the format has no count of variables, and a file cut off between two of them must lack one that is needed.
    variables: dict[str, Any] = {"Ts": -1.0 if dense.dt is True else float(dense.dt)}
    for ours, theirs in (("inputs", "InputName"), ("outputs", "OutputName")):
        if ours in labels:
            variables[theirs] = np.array([str(x) for x in labels[ours]], dtype=object)[:, None]
    if "name" in labels:
        variables["Name"] = labels["name"]
    variables |= {name: to_host(getattr(dense, name)) for name in "DCBA"}
    buffer = io.BytesIO()
    scipy.io.savemat(buffer, variables, do_compression=True)
    return buffer.getvalue()


def _read_mat(path: Path, dt: float | bool | None) -> Model:
    with path.open("rb") as file:
        head = file.read(520)
    if head.startswith(b"MATLAB 7.3") or _HDF5_SIGNATURE in (head[:8], head[512:520]):
        variables = _read_hdf5(path)
    else:
        import scipy.io

        content = path.read_bytes()
        with _parsing(path, ".mat of version 5"):
            _check_mat5(content)
            classes = {name: kind for name, _, kind in scipy.io.whosmat(io.BytesIO(content))}
            stored = scipy.io.loadmat(io.BytesIO(content))
            variables = {name: _in_class(value, classes.get(name, "")) for name, value in stored.items()}
    with _parsing(path, ".mat"):
        return _from_variables(path, {k: v for k, v in variables.items() if not k.startswith("__")}, dt)


def _in_class(value: Any, matlab_class: str) -> Any:
    """Numbers in the class that they have in MATLAB, which stores whole numbers as small integers.

    Not by ``mat_dtype=True`` of SciPy: that drops imaginary parts.
    """
    kind = _MAT5_DTYPES.get(matlab_class)
    if kind is None or not isinstance(value, np.ndarray):
        return value
    return value.astype(np.result_type(kind, np.complex64) if np.iscomplexobj(value) else kind)


def _check_mat5(content: bytes) -> None:
    """Walk through the elements of a file: SciPy ends the process where a damaged file has an element of no known type."""
    if len(content) < 128 or content[126:128] not in (b"IM", b"MI"):
        raise ValueError("no header of a MATLAB file of version 5")
    _check_mat5_elements(memoryview(content)[128:], "<" if content[126:128] == b"IM" else ">")


def _check_mat5_elements(data: Any, byte_order: str, allowed: frozenset[int] = _MAT5_TOP) -> int:
    """The number of elements; an error unless each is complete and of a type that may stand there."""
    position = count = 0
    while position < len(data):
        kind, size = struct.unpack_from(byte_order + "II", data, position)
        if kind >> 16:  # a small element: its size in the upper half, up to four bytes in place of the size
            kind, size, start = kind & 0xFFFF, kind >> 16, position + 4
        else:
            start = position + 8
        end = start + size
        if kind not in allowed or end > len(data) or (start == position + 4 and size > 4):
            raise ValueError(
                f"byte {position} of an array begins no element that is complete and of a type known there"
            )
        if kind == _MAT5_COMPRESSED:
            _check_mat5_elements(memoryview(zlib.decompress(data[start:end])), byte_order)
        elif kind == _MAT5_MATRIX and size:
            _check_mat5_matrix(data[start:end], byte_order)
        position = end if kind == _MAT5_COMPRESSED else end + -end % 8
        count += 1
    return count


def _check_mat5_matrix(data: Any, byte_order: str) -> None:
    flags = struct.unpack_from(byte_order + "I", data, 8)[0]  # after its tag
    array_class, is_complex = flags & 0xFF, bool(flags & 0x800)
    plain = array_class in _MAT5_PLAIN_CLASSES
    count = _check_mat5_elements(data, byte_order, _MAT5_NUMBERS if plain else _MAT5_NUMBERS | {_MAT5_MATRIX})
    # flags, sizes, name, numbers; a sparse matrix has the places of its numbers before them
    if plain and count != 4 + 2 * (array_class == _MAT5_SPARSE) + is_complex:
        raise ValueError(f"an array has {count} parts, which does not fit its class {array_class}")


def _read_hdf5(path: Path) -> dict[str, Any]:
    try:
        import h5py
    except ImportError as error:
        raise MissingBackendError(
            f'{path} is a .mat file of version 7.3, which needs the package h5py: pip install "hsv-control[mat]"; '
            "or save it in MATLAB with the option -v7"
        ) from error
    with _parsing(path, ".mat of version 7.3"), h5py.File(path, "r") as file:
        return {name: _hdf5_value(file, item) for name, item in file.items() if not name.startswith("#")}


def _hdf5_value(file: Any, item: Any) -> Any:
    """A variable as SciPy would return it: matrices are stored transposed, text as numbers, cells as references."""
    import scipy.sparse

    if not hasattr(item, "shape"):  # a group: a sparse matrix or a structure
        if "MATLAB_sparse" not in item.attrs:
            return "a structure"
        columns = np.asarray(item["jc"][()], dtype=np.int64)
        shape = (int(item.attrs["MATLAB_sparse"]), len(columns) - 1)
        if "data" not in item:  # all entries are zero
            return scipy.sparse.csc_matrix(shape)
        return scipy.sparse.csc_matrix(
            (_hdf5_numbers(item["data"][()]), item["ir"][()].astype(np.int64), columns), shape
        )
    kind = item.attrs.get("MATLAB_class", b"")
    kind = kind.decode() if isinstance(kind, bytes) else str(kind)
    if item.attrs.get("MATLAB_empty", 0):
        return "" if kind == "char" else np.zeros((0, 0))
    stored = item[()]
    if kind == "char":
        return "".join(chr(code) for code in np.ravel(stored))
    if kind == "cell":
        return [_hdf5_value(file, file[reference]) for reference in np.ravel(stored)]
    numbers = _hdf5_numbers(stored)
    return (numbers != 0 if kind == "logical" else numbers).T


def _hdf5_numbers(stored: np.ndarray) -> np.ndarray:
    if stored.dtype.names:  # complex numbers are pairs
        return np.asarray(stored["real"] + 1j * stored["imag"])
    return np.asarray(stored)


_WRITERS: dict[str, Callable[[LinearSystem, dict[str, Any]], bytes]] = {
    ".npz": _write_npz,
    ".json": _write_json,
    ".mat": _write_mat,
}
_READERS: dict[str, Callable[[Path, float | bool | None], Model]] = {
    ".npz": _read_npz,
    ".json": _read_json,
    ".mat": _read_mat,
}
SUFFIXES = tuple(_WRITERS)
