"""The idx file format of MNIST and its relatives, plain or compressed with gzip.

An idx file is: two zero bytes, one byte for the type of the entries, one for the number of axes, the length of each
axis as a big-endian 32-bit integer, then the entries, big-endian, the last axis running fastest.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from paper_repro.errors import DataError

ENTRY_TYPES: dict[int, np.dtype] = {
    0x08: np.dtype(">u1"),
    0x09: np.dtype(">i1"),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


def read_idx(path: Path) -> np.ndarray:
    """Read one idx file, compressed or not (the content decides, not the name).

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    numpy.ndarray
        The entries in the machine's byte order, with the shape that the file declares.

    Raises
    ------
    DataError
        If the file is not an idx file, or is shorter or longer than its header says.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in ENTRY_TYPES or content[3] == 0:
        raise DataError(f"{path}: not an idx file, it begins with {content[:4].hex(' ') or 'nothing'}")
    dtype, n_axes = ENTRY_TYPES[content[2]], content[3]
    start = 4 + 4 * n_axes
    if len(content) < start:
        raise DataError(f"{path}: ends inside its header of {start} bytes; fetch it again")
    shape = tuple(int(length) for length in np.frombuffer(content, ">u4", count=n_axes, offset=4))
    expected = start + dtype.itemsize * math.prod(shape)
    if len(content) != expected:
        raise DataError(
            f"{path}: has {len(content)} bytes where shape {shape} of {dtype.name} needs {expected}; fetch it again"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
