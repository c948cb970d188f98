"""The batches of CIFAR-10, in both forms that are published: pickled by Python 2, and plain bytes.

A pickled file can name any function for the reader to call. Here the four that an array of bytes needs are allowed, and no other is looked up.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from paper_repro.errors import DataError

SIDE, CHANNELS, CLASSES = 32, 3, 10
PIXELS = SIDE * SIDE * CHANNELS
RECORD = 1 + PIXELS  # of the binary form: a label, then the red, green and blue pixels


def read_batch(path: Path, *, python: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures ``(count, 32, 32, 3)``, bytes, and labels ``(count,)`` of one batch.

    Parameters
    ----------
    path : Path
    python : bool
        Whether the file is pickled, or else binary.

    Raises
    ------
    DataError
        If the file is not such a batch, is damaged, or asks for more than arrays of bytes.
    """
    content = path.read_bytes()
    planes, labels = _from_pickle(path, content) if python else _from_bytes(path, content)
    if len(labels) and not 0 <= labels.min() <= labels.max() < CLASSES:
        raise DataError(f"{path}: labels must lie in 0 to 9, found {labels.min()} to {labels.max()}")
    return planes.reshape(-1, CHANNELS, SIDE, SIDE).transpose(0, 2, 3, 1), labels


def _from_bytes(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % RECORD:
        raise DataError(
            f"{path}: a binary batch consists of records of {RECORD} bytes, but the file has {len(content)}; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    return records[:, 1:], records[:, 0]


def _from_pickle(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # damaged bytes can make the reader raise anything
        raise DataError(
            f"{path}: not a pickled batch of CIFAR-10, or damaged ({type(error).__name__}: {error}); fetch it again"
        ) from error
    if not isinstance(batch, dict):
        raise DataError(f"{path}: a pickled batch is a dict, found {type(batch).__name__}")
    entries = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = entries.get("data"), entries.get("labels")
    if not isinstance(data, np.ndarray) or not isinstance(labels, list):
        raise DataError(f"{path}: a batch of CIFAR-10 has an array 'data' and a list 'labels', found {sorted(entries)}")
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape != (len(labels), PIXELS):
        raise DataError(
            f"{path}: 'data' must be bytes of shape ({len(labels)}, {PIXELS}), found {data.dtype} {data.shape}"
        )
    if not all(isinstance(label, int) for label in labels):
        raise DataError(f"{path}: 'labels' must be integers")
    return data, np.array(labels, dtype=np.int64)


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    del kind, shape, code  # what NumPy writes there is always the same: an empty array, filled afterwards
    return np.ndarray((0,), np.uint8)


def _bytes_type(code: Any, *flags: Any) -> np.dtype:
    del flags
    text = code.decode("latin1") if isinstance(code, bytes) else code
    if text not in ("u1", "|u1"):
        raise DataError(f"an array of {text!r}, where pictures are bytes ('u1')")
    return np.dtype(np.uint8)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how Python 3 writes bytes for Python 2
        raise DataError(f"text in {encoding!r}, where bytes are written as 'latin1'")
    return text.encode("latin1")


# By package and name, for NumPy 2 moved the first to another module. The class is only handed to it.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): object,
    ("numpy", "dtype"): _bytes_type,
    ("_codecs", "encode"): _encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """A reader of arrays of bytes alone."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for one of the allowed names."""
        known = ALLOWED.get((module.partition(".")[0], name))
        if known is None:
            raise DataError(f"a batch of CIFAR-10 needs no {module}.{name}; the file is refused")
        return known
