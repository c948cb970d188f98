import gzip
import struct

import numpy as np
import pytest

from paper_repro.errors import DataError
from paper_repro.idx import ENTRY_TYPES, read_idx


def idx_bytes(array, code=0x08):
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(ENTRY_TYPES[code]).tobytes()


@pytest.mark.parametrize("code", ENTRY_TYPES)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_every_entry_type_is_read_compressed_or_not(tmp_path, code, compress):
    array = np.arange(24).reshape(2, 3, 4)
    path = tmp_path / "entries"
    path.write_bytes(compress(idx_bytes(array, code)))
    found = read_idx(path)
    assert found.dtype == ENTRY_TYPES[code].newbyteorder("=")
    np.testing.assert_array_equal(found, array)


def test_no_entries_are_no_error(tmp_path):
    path = tmp_path / "empty"
    path.write_bytes(idx_bytes(np.empty((0, 28, 28))))
    assert read_idx(path).shape == (0, 28, 28)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not an idx file, it begins with nothing"),
        (b"\0\0", "not an idx file"),
        (b"PK\3\4junk", "not an idx file, it begins with 50 4b"),
        (b"\0\0\x07\1\0\0\0\0", "not an idx file"),
        (b"\0\0\x08\3\0\0\0\1", "ends inside its header"),
        (idx_bytes(np.zeros((2, 3)))[:-1], r"has 17 bytes where shape \(2, 3\) of uint8 needs 18"),
        (idx_bytes(np.zeros((2, 3))) + b"x", "has 19 bytes"),
        (gzip.compress(idx_bytes(np.zeros((20, 30))), mtime=0)[:-9], "damaged gzip file"),
    ],
)
def test_damage_is_named(tmp_path, content, words):
    path = tmp_path / "damaged"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_idx(path)
