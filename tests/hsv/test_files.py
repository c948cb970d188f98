import builtins
import json
import pickle
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.sparse
import torch

import hsv
from hsv import _files
from tests.hsv import reference_systems as known

OWN = [".npz", ".json"]


def one_state(dt=0.1):
    return hsv.StateSpace([[0.5]], [[1.0]], [[2.0]], [[3.0]], dt=dt)


def assert_same(found, expected):
    assert type(found) is type(expected)
    assert found.dt == expected.dt
    assert (found.dt is True) == (expected.dt is True)
    names = "ABCD" if isinstance(expected, hsv.StateSpace) else "BCD"
    for name in names:
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found.poles(), expected.poles())


@pytest.mark.parametrize("suffix", OWN)
@pytest.mark.parametrize("dt", [0, True, 0.1])
@pytest.mark.parametrize("dtype", ["float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("batch", [(), (2, 3)])
def test_own_formats_keep_every_bit(suffix, dt, dtype, batch, tmp_path, rng):
    shapes = ((4, 4), (4, 2), (3, 4), (3, 2))
    arrays = [rng.normal(size=(*batch, *shape)) + 1j * rng.normal(size=(*batch, *shape)) for shape in shapes]
    arrays = [(a if dtype.startswith("complex") else a.real).astype(dtype) for a in arrays]
    sys_ = hsv.StateSpace(*arrays, dt=dt)
    hsv.save(sys_, tmp_path / f"model{suffix}")
    assert_same(hsv.load(tmp_path / f"model{suffix}"), sys_)


@pytest.mark.parametrize("suffix", OWN)
def test_own_formats_keep_diagonal_systems(suffix, tmp_path, rng):
    path = tmp_path / f"model{suffix}"
    poles = hsv.DiagonalStateSpace([0.5, 0.1 + 0.3j], np.ones((2, 1)), np.ones((1, 2)), dt=0.5)
    logs = hsv.DiagonalStateSpace.from_log_poles([-1e-15 + 0.3j], [[1.0]], [[1.0]])
    pairs = hsv.real_part(known.lru_initialisation(rng, 3, 2))
    for sys_ in (poles, logs, pairs):
        hsv.save(sys_, path, overwrite=True)
        back = hsv.load(path)
        assert_same(back, sys_)
        assert (back.log_poles is None) == (sys_.log_poles is None)
    np.testing.assert_array_equal(back.to_dense().A, pairs.to_dense().A)  # still real where it was
    hsv.save(logs, path, overwrite=True)
    np.testing.assert_array_equal(hsv.load(path).log_poles, logs.log_poles)


@pytest.mark.parametrize("suffix", [*OWN, ".mat"])
def test_torch_systems_come_back_as_numpy(suffix, tmp_path):
    sys_ = hsv.StateSpace(torch.tensor([[0.5]]), torch.ones(1, 1, requires_grad=True), torch.ones(1, 1), dt=True)
    hsv.save(sys_, tmp_path / f"model{suffix}")
    back = hsv.load(tmp_path / f"model{suffix}")
    assert isinstance(back.A, np.ndarray)
    assert back.A.dtype == np.float32
    assert back.A.item() == 0.5


@pytest.mark.parametrize("suffix", [*OWN, ".mat"])
def test_names_come_back(suffix, tmp_path):
    names = {"inputs": ["force", "wind"], "outputs": ["a", "b", "position"], "name": "plänt"}
    path = tmp_path / f"model{suffix}"
    system = known.slicot_power_system().system()
    hsv.save(system, path, **names)
    assert hsv.labels(path) == names
    assert_same(hsv.load(path), system)
    with pytest.raises(hsv.ShapeError, match="inputs must be a list of 2 names"):
        hsv.save(system, tmp_path / f"other{suffix}", inputs=["one"])
    assert not (tmp_path / f"other{suffix}").exists()
    hsv.save(one_state(), tmp_path / f"nameless{suffix}")
    assert hsv.labels(tmp_path / f"nameless{suffix}") == {}


def test_json_is_as_documented(tmp_path):
    path = tmp_path / "model.json"
    hsv.save(hsv.StateSpace([[0.5 + 1j]], [[1.0]], [[2.0]], dt=True), path)
    assert json.loads(path.read_text()) == {
        "format": "hsv-system",
        "version": 1,
        "kind": "dense",
        "dt": True,
        "dtype": "complex128",
        "A": {"real": [[0.5]], "imag": [[1.0]]},
        "B": {"real": [[1.0]], "imag": [[0.0]]},
        "C": {"real": [[2.0]], "imag": [[0.0]]},
        "D": {"real": [[0.0]], "imag": [[0.0]]},
    }


# MATLAB


@pytest.mark.parametrize(("dt", "stored"), [(0, 0.0), (True, -1.0), (0.25, 0.25)])
def test_mat_has_the_usual_variables(dt, stored, tmp_path):
    path = tmp_path / "model.mat"
    hsv.save(one_state(dt), path)
    variables = scipy.io.loadmat(path)
    assert variables["Ts"].item() == stored
    assert {name: variables[name].item() for name in "ABCD"} == {"A": 0.5, "B": 1.0, "C": 2.0, "D": 3.0}
    assert_same(hsv.load(path), one_state(dt))


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_mat_keeps_imaginary_parts_and_precision(dtype, tmp_path):
    """With its ``mat_dtype=True`` SciPy reads the real parts alone."""
    path = tmp_path / "model.mat"
    A, B, C, D = (np.array(x, dtype) for x in ([[0.5j]], [[1 + 2j]], [[3.25 - 1j]], [[-2j]]))
    sys = hsv.StateSpace(A, B, C, D, dt=0.5)
    hsv.save(sys, path)
    assert_same(hsv.load(path), sys)
    whole = {"A": np.array([[-2]], np.float32), "B": [[1.0]], "C": np.array([[3.0]], np.float32)}  # stored as integers
    scipy.io.savemat(path, {"Ts": 0.0, **whole, "B": np.array([[1]], np.float32)})
    assert hsv.load(path).A.dtype == np.float32
    scipy.io.savemat(path, {"Ts": 0.0, **whole, "A": scipy.sparse.csc_matrix([[-2 + 1j]])})
    assert hsv.load(path).poles() == [-2 + 1j]


def test_mat_of_others(tmp_path):
    """Sparse and integer matrices, no D, an identity E, either name of the time base."""
    path = tmp_path / "model.mat"
    A = np.diag([-1.0, -2.0, -3.0])
    variables = {
        "A": scipy.sparse.csc_matrix(A),
        "B": np.array([[1], [2], [3]]),
        "C": scipy.sparse.csc_matrix([[0, 0, 4.0]]),
    }
    scipy.io.savemat(path, variables | {"E": scipy.sparse.eye(3).tocsc(), "dt": 0.0, "D": np.zeros((0, 0))})
    system = hsv.load(path)
    np.testing.assert_array_equal(system.A, A)
    np.testing.assert_array_equal(system.B, [[1], [2], [3]])
    np.testing.assert_array_equal(system.D, [[0]])
    assert system.dt == 0
    scipy.io.savemat(path, variables | {"Ts": True})  # a logical variable
    assert hsv.load(path).dt is True
    scipy.io.savemat(path, variables | {"Ts": 1.0})
    assert hsv.load(path).dt == 1.0
    assert hsv.load(path).dt is not True
    scipy.io.savemat(path, variables | {"InputName": np.array([["torque"]], dtype=object), "Ts": 0.0, "OutputName": ""})
    assert hsv.labels(path) == {"inputs": ["torque"]}


def test_mat_of_a_descriptor_system(tmp_path):
    """2 x' = -6 x + 4 u, 4 x' = -4 x + u."""
    path = tmp_path / "model.mat"
    maps = {"A": np.diag([-6.0, -4.0]), "B": [[4.0], [1.0]], "C": [[1.0, 1.0]], "Ts": 0.0}
    scipy.io.savemat(path, maps | {"E": scipy.sparse.diags([2.0, 4.0]).tocsc()})
    w = np.array([0.0, 1.0, 5.0])
    expected = 2 / (1j * w + 3) + 0.25 / (1j * w + 1)
    np.testing.assert_allclose(hsv.load(path).frequency_response(w)[:, 0, 0], expected)


@pytest.mark.parametrize("suffix", [".mat", ".npz"])
def test_a_file_without_time_base_needs_one(suffix, tmp_path):
    path = tmp_path / f"model{suffix}"
    variables = {"A": np.array([[0.5]]), "B": np.array([[1.0]]), "C": np.array([[2.0]])}
    write = scipy.io.savemat if suffix == ".mat" else lambda path, x: np.savez(path, **x)
    write(path, variables)
    with pytest.raises(hsv.HsvError, match=r"model\S+ has no time base; pass dt=0"):
        hsv.load(path)
    assert hsv.load(path, dt=True).dt is True
    write(path, variables | {"Ts": 0.5})
    assert hsv.load(path, dt=0.5).dt == 0.5
    with pytest.raises(hsv.HsvError, match=r"equal to the system's own, 0\.5, got 0"):
        hsv.load(path, dt=0)
    write(path, variables | {"Ts": 0.5, "dt": 1.0})
    with pytest.raises(hsv.HsvError, match="dt and Ts must be equal"):
        hsv.load(path)


def test_what_mat_cannot_hold_or_we_cannot_read_is_refused(tmp_path, rng):
    path = tmp_path / "model.mat"
    with pytest.raises(hsv.ShapeError, match=r"batch of shape \(2,\)"):
        hsv.save(known.random_stable(rng, 3, 1, 1, dt=True, batch=(2,)), path)
    maps = {"B": np.ones((2, 1)), "C": np.ones((1, 2)), "Ts": 0.0}
    scipy.io.savemat(path, maps | {"A": -np.eye(2), "E": np.diag([1.0, 0.0])})
    with pytest.raises(hsv.IllConditionedError, match="E"):
        hsv.load(path)
    scipy.io.savemat(path, maps)
    with pytest.raises(hsv.HsvError, match=r"variables A, B, C, has B, C, Ts; in MATLAB"):
        hsv.load(path)
    scipy.io.savemat(path, maps | {"A": "text"})
    with pytest.raises(hsv.DtypeError, match="A must hold numbers"):
        hsv.load(path)
    scipy.io.savemat(path, maps | {"A": np.ones((2, 2, 2))})
    with pytest.raises(hsv.ShapeError, match=r"A must be a matrix"):
        hsv.load(path)
    scipy.io.savemat(path, maps | {"A": scipy.sparse.eye(30_000).tocsc()})
    with pytest.raises(hsv.ShapeError, match="too large for the dense methods"):
        hsv.load(path)
    scipy.io.savemat(path, maps | {"A": np.array([[np.nan, 0], [0, 0]])})
    with pytest.raises(hsv.NonFiniteError):
        hsv.load(path)


def write_hdf5(path, variables):
    """Write variables as MATLAB's version 7.3 lays them out: transposed, complex numbers as pairs, text as numbers, cells as references."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            _write_hdf5_variable(file, name, value)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def _write_hdf5_variable(file, name, value):
    if scipy.sparse.issparse(value):
        group = file.create_group(name)
        group.attrs["MATLAB_sparse"] = np.uint64(value.shape[0])
        group.attrs["MATLAB_class"] = np.bytes_("double")
        group["jc"] = value.indptr.astype(np.uint64)
        if value.nnz:
            group["data"], group["ir"] = value.data, value.indices.astype(np.uint64)
        return
    kind = "double"
    if isinstance(value, str):
        kind, stored = "char", np.array([[ord(c)] for c in value], np.uint16)
    elif isinstance(value, list):
        kind = "cell"
        for i, text in enumerate(value):
            _write_hdf5_variable(file, f"#refs#/{name}{i}", text)
        stored = np.array([[file[f"#refs#/{name}{i}"].ref for i in range(len(value))]], h5py.ref_dtype)
    elif isinstance(value, bool):
        kind, stored = "logical", np.array([[value]], np.uint8)
    else:
        stored = np.asarray(value).T
        if np.iscomplexobj(stored):
            pairs = np.zeros(stored.shape, [("real", "<f8"), ("imag", "<f8")])
            pairs["real"], pairs["imag"] = stored.real, stored.imag
            stored = pairs
    empty = stored.size == 0
    data = file.create_dataset(name, data=np.array(value.shape, np.uint64) if empty else stored)
    data.attrs["MATLAB_class"] = np.bytes_(kind)
    if empty:
        data.attrs["MATLAB_empty"] = np.int32(1)


def test_mat_of_version_7_3(tmp_path, rng):
    path = tmp_path / "model.mat"
    expected = known.random_stable(rng, 4, 2, 3, dt=True)
    variables = {name: np.asarray(getattr(expected, name)) for name in "ABC"}
    names = {"InputName": ["force", "wind"], "OutputName": ["a", "b", "c"], "Name": "plant"}
    write_hdf5(path, variables | names | {"D": np.zeros((0, 0)), "Ts": np.array([[-1.0]])})
    assert_same(hsv.load(path), expected)
    assert hsv.labels(path) == {"inputs": ["force", "wind"], "outputs": ["a", "b", "c"], "name": "plant"}
    sparse = {name: scipy.sparse.csc_matrix(x) for name, x in variables.items()}
    write_hdf5(path, sparse | {"D": scipy.sparse.csc_matrix((3, 2)), "Ts": True})
    assert_same(hsv.load(path), expected)
    write_hdf5(path, variables | {"A": 1j * variables["A"], "Ts": np.array([[0.5]])})
    np.testing.assert_array_equal(hsv.load(path).A, 1j * variables["A"])


def test_a_file_that_matlab_wrote_is_understood():
    """SciPy ships one of version 7.3, with the header of an earlier one, for tests of its own; it holds a row of multiples of pi/4."""
    path = Path(scipy.io.__file__).parent / "matlab/tests/data/testhdf5_7.4_GLNX86.mat"
    if not path.exists():
        pytest.skip(f"this build of SciPy comes without its test data, {path.name}")
    variables = _files._read_hdf5(path)
    np.testing.assert_allclose(variables["testdouble"], np.arange(9)[None] * np.pi / 4)
    with pytest.raises(hsv.HsvError, match=r"must have the variables A, B, C, has testdouble"):
        hsv.load(path)


def test_without_h5py(tmp_path, monkeypatch):
    path = tmp_path / "model.mat"
    write_hdf5(path, {"A": np.eye(1)})
    original = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name == "h5py":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "h5py")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(hsv.MissingBackendError, match=r"hsv-control\[mat\].*-v7"):
        hsv.load(path)


# Damaged and foreign files


def write_all(folder):
    for suffix in (*OWN, ".mat"):
        hsv.save(known.slicot_power_system().system(), folder / f"whole{suffix}")
    write_hdf5(folder / "whole73.mat", {name: np.eye(1) for name in "ABC"} | {"Ts": np.zeros((1, 1))})
    return sorted(folder.iterdir())


def test_truncated_files_are_refused_wherever_they_end(tmp_path):
    for path in write_all(tmp_path):
        content = path.read_bytes()
        hsv.load(path)
        path.write_bytes(b"")
        with pytest.raises(hsv.HsvError):
            hsv.load(path)
        for share in (0.02, 0.3, 0.6, 0.9, 0.99):
            path.write_bytes(content[: int(share * len(content))])
            with pytest.raises(hsv.HsvError, match=path.name):
                hsv.load(path)


@pytest.mark.parametrize("suffix", [*OWN, ".mat"])
def test_a_file_that_ends_anywhere_is_refused(suffix, tmp_path):
    path = tmp_path / f"short{suffix}"
    hsv.save(one_state(), path, inputs=["u"], name="short")
    content = path.read_bytes()
    for length in range(len(content.rstrip())):  # without the end of the last line JSON is complete
        path.write_bytes(content[:length])
        with pytest.raises(hsv.HsvError):
            hsv.load(path, dt=0.1)


def test_damaged_mat_files_end_no_process(tmp_path, rng):
    """SciPy's reader crashes where the type of an element is damaged; without compression nothing else would find out."""
    path = tmp_path / "model.mat"
    system = known.slicot_power_system().system()
    scipy.io.savemat(path, {name: getattr(system, name) for name in "ABCD"} | {"Ts": 0.0})
    content = path.read_bytes()
    hsv.load(path)
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            hsv.load(path)
        except hsv.HsvError:
            refused += 1
    assert refused > 10  # most bytes belong to numbers, and another number is as good


def test_foreign_files_are_refused(tmp_path):
    for suffix in (*OWN, ".mat"):
        path = tmp_path / f"foreign{suffix}"
        path.write_bytes(b"\x00\x01 nothing of the kind" * 40)
        with pytest.raises(hsv.HsvError, match=f"foreign{suffix}"):
            hsv.load(path)
    path = tmp_path / "foreign.json"
    path.write_text("[1, 2]")
    with pytest.raises(hsv.HsvError, match="must hold a JSON object, got list"):
        hsv.load(path)
    path.write_text('{"format": "other"}')
    with pytest.raises(hsv.HsvError, match="format must be 'hsv-system', got 'other'"):
        hsv.load(path)
    path.write_text('{"format": "hsv-system", "version": 1}')
    with pytest.raises(hsv.HsvError, match="lacks kind, dt, dtype, B, C, D"):
        hsv.load(path)
    hsv.save(one_state(), path, overwrite=True)
    good = json.loads(path.read_text())
    for change, words in (
        ({"version": 2}, "version 2 of the format"),
        ({"kind": "strange"}, "kind must be dense"),
        ({"dtype": "float16"}, "dtype must be one of"),
        ({"dt": "0.1"}, "dt must be one number"),
        ({"A": [[1.0], [2.0, 3.0]]}, "cannot be read as JSON"),
        ({"B": [[1.0, 2.0]], "C": [[1.0, 2.0]]}, "C must have shape"),
        ({"A": [[float("nan")]]}, "A must be finite"),
        ({"inputs": ["a", "b"]}, "inputs must be a list of 1 names"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(hsv.HsvError, match=words):
            hsv.load(path)


def test_nothing_is_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    path = tmp_path / "trap.npz"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(hsv.HsvError, match=r"no \.npz file"):
        hsv.load(path)
    np.savez(path, A=np.array([Trap()], dtype=object), B=np.eye(1), C=np.eye(1), dt=0.0)
    with pytest.raises(hsv.HsvError, match="cannot be read as npz"):
        hsv.load(path)


@pytest.mark.parametrize("call", [hsv.load, lambda path: hsv.save(one_state(), path)])
def test_the_suffix_decides(call, tmp_path):
    with pytest.raises(hsv.HsvError, match=r"must end in \.npz, \.json, \.mat"):
        call(tmp_path / "model.txt")


def test_a_missing_file_is_the_usual_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        hsv.load(tmp_path / "nothing.npz")


def test_no_file_is_replaced_unasked(tmp_path):
    path = tmp_path / "model.npz"
    hsv.save(one_state(), path)
    before = path.read_bytes()
    with pytest.raises(hsv.HsvError, match="pass overwrite=True"):
        hsv.save(one_state(0.2), path)
    assert path.read_bytes() == before
    hsv.save(one_state(0.2), path, overwrite=True)
    assert hsv.load(path).dt == 0.2
    with pytest.raises(hsv.DtypeError, match=r"sys must be .* got a int"):
        hsv.save(1, tmp_path / "other.npz")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.npz"
    hsv.save(one_state(), path)
    before = path.read_bytes()

    def full(_):
        raise OSError("no space left")

    monkeypatch.setattr(_files.os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        hsv.save(one_state(0.2), path, overwrite=True)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_a_link(tmp_path):
    path, link = tmp_path / "model.npz", tmp_path / "link.npz"
    hsv.save(one_state(), path)
    link.symlink_to(path)
    hsv.save(one_state(0.2), link, overwrite=True)
    assert link.is_symlink()
    assert hsv.load(path).dt == 0.2
