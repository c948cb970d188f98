"""What is said of what computes, with stand-ins for packages and drivers that are not there."""

import importlib.metadata
import subprocess
import sys
import types
from pathlib import Path

import pytest

import hsv
from hsv import _backends

NAMES = ["numpy", "numba", "cupy", "torch", "numba-cuda"]
ONE_GPU = _backends._Nvidia(devices=("NVIDIA H100 80GB HBM3",))


@pytest.fixture
def installed(monkeypatch):
    """A function that says which packages are installed, in which version, beside NumPy and Numba; all others are not."""

    def only(**versions):
        versions = {"numpy": "2.4.6", "numba": "0.68.1", **versions}

        def version(package):
            try:
                return versions[package.replace("-", "_")]
            except KeyError:
                raise importlib.metadata.PackageNotFoundError(package) from None

        monkeypatch.setattr(_backends.importlib.metadata, "version", version)
        for module in ("cupy", "torch", "numba.cuda"):
            monkeypatch.delitem(sys.modules, module, raising=False)

    return only


@pytest.fixture
def driver(monkeypatch):
    def says(nvidia):
        monkeypatch.setattr(_backends, "_nvidia", lambda: nvidia)

    return says


def cupy_with(names):
    runtime = types.SimpleNamespace(
        getDeviceCount=lambda: len(names), getDeviceProperties=lambda i: {"name": names[i].encode()}
    )
    return types.SimpleNamespace(cuda=types.SimpleNamespace(runtime=runtime), __version__="14.2.0")


class TestHere:
    """On this machine, whatever it has."""

    @pytest.mark.parametrize("probe", [False, True])
    def test_every_backend_is_listed_and_printed(self, probe):
        found = hsv.backends(probe=probe)
        assert [b.name for b in found] == NAMES
        assert found["numpy"].available
        assert found["numpy"].version == importlib.metadata.version("numpy")
        lines = repr(found).splitlines()
        assert lines[0].split() == ["backend", "available", "version", "devices", "chosen", "for"]
        assert [line.split()[0] for line in lines[2:]] == NAMES
        assert found._repr_html_().count("<tr>") == 1 + len(NAMES)
        assert all(b.reason for b in found if not b.available)

    def test_indexing(self):
        found = hsv.backends()
        assert found["numba"] is found[1]
        with pytest.raises(hsv.HsvError, match=r"no backend 'jax'; there are numpy, numba, cupy, torch, numba-cuda"):
            found["jax"]

    def test_nothing_is_imported_unless_asked_for(self):
        script = "import sys, hsv; hsv.backends(); print(*{'torch', 'cupy', 'numba', 'numba.cuda'} & set(sys.modules))"
        root = Path(hsv.__file__).parent.parent
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root)
        assert run.stdout.split() == []

    def test_what_is_there_can_be_required(self):
        assert hsv.require_backend("numba").devices == (f"CPU, {_threads()} threads",)
        with pytest.raises(hsv.HsvError, match=r"no backend 'jax'; there are numpy"):
            hsv.require_backend("jax")


def _threads():
    import numba

    return numba.config.NUMBA_NUM_THREADS


class TestMissing:
    def test_a_package(self, installed, driver):
        installed()
        driver(ONE_GPU)
        found = hsv.backends()
        assert [b.available for b in found] == [True, True, False, False, False]
        assert found["torch"].install == 'pip install "hsv-control[torch]"'
        with pytest.raises(
            hsv.MissingBackendError,
            match=r'the backend cupy is not available: not installed; install it with pip install "hsv-control\[cuda13\]"',
        ):
            hsv.require_backend("cupy")
        assert 'not installed; pip install "hsv-control[cuda13]"' in repr(found)

    def test_the_extra_fits_the_driver(self, installed, driver):
        installed()
        driver(_backends._Nvidia(devices=("NVIDIA A100",), cuda=12))
        assert hsv.backends()["numba-cuda"].install == 'pip install "hsv-control[cuda12]"'

    def test_a_driver(self, installed, driver, monkeypatch):
        installed(cupy_cuda13x="14.2.0")
        driver(_backends._Nvidia(reason="no NVIDIA driver: libnvidia-ml.so.1 is not there"))
        assert not hsv.backends()["cupy"].available
        assert hsv.backends()["cupy"].version == "14.2.0"

        def no_driver():
            raise RuntimeError("cudaErrorInsufficientDriver")

        cupy = cupy_with([])
        cupy.cuda.runtime.getDeviceCount = no_driver
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        with pytest.raises(hsv.MissingBackendError, match="no NVIDIA driver: libnvidia-ml") as raised:
            hsv.require_backend("cupy")
        assert "pip" not in str(raised.value)  # no package would help

    def test_a_device(self, installed, driver, monkeypatch):
        installed(cupy_cuda13x="14.2.0")
        driver(_backends._Nvidia())
        monkeypatch.setitem(sys.modules, "cupy", cupy_with([]))
        assert hsv.backends()["cupy"].reason == "it finds no device"

    def test_a_broken_package_is_a_reason_and_no_error(self, installed, driver, monkeypatch):
        installed(torch="2.13.0")
        driver(ONE_GPU)
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace())
        found = hsv.backends()["torch"]
        assert not found.available
        assert found.reason.startswith("AttributeError: ")


class TestPresent:
    def test_devices_of_packages_that_have_been_imported(self, installed, driver, monkeypatch):
        installed(cupy_cuda13x="14.2.0")
        driver(ONE_GPU)
        monkeypatch.setitem(sys.modules, "cupy", cupy_with(["NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3"]))
        assert hsv.backends()["cupy"].devices == ("NVIDIA H100 80GB HBM3",) * 2
        assert hsv.require_backend("cupy").available

    def test_devices_of_packages_that_have_not(self, installed, driver):
        installed(cupy_cuda13x="14.2.0", torch="2.13.0")
        driver(ONE_GPU)
        found = hsv.backends()
        assert found["cupy"].devices == ONE_GPU.devices  # the driver's, and nothing else was asked
        assert found["torch"].devices == ()
        assert "hsv.backends(probe=True)" in found["torch"].reason
        assert found["torch"].available

    def test_torch_on_a_gpu(self, installed, driver, monkeypatch):
        installed(torch="2.13.0")
        driver(ONE_GPU)
        cuda = types.SimpleNamespace(
            is_available=lambda: True, device_count=lambda: 1, get_device_name=lambda i: "NVIDIA H100"
        )
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda, get_num_threads=lambda: 4))
        assert hsv.backends()["torch"].devices == ("CPU, 4 threads", "NVIDIA H100")

    def test_a_package_without_metadata(self, installed, driver, monkeypatch):
        installed()
        driver(ONE_GPU)
        monkeypatch.setitem(sys.modules, "cupy", cupy_with(["NVIDIA H100"]))
        assert hsv.backends()["cupy"].version == "14.2.0"

    def test_numbas_kernels(self, installed, driver, monkeypatch):
        installed(numba_cuda="0.30.4")
        driver(ONE_GPU)
        cuda = types.SimpleNamespace(is_available=lambda: True, gpus=[types.SimpleNamespace(name=b"NVIDIA H100")])
        monkeypatch.setitem(sys.modules, "numba.cuda", cuda)
        assert hsv.require_backend("numba-cuda").devices == ("NVIDIA H100",)
        cuda.is_available = lambda: False
        with pytest.raises(hsv.MissingBackendError, match="no driver, no device, or no compiler"):
            hsv.require_backend("numba-cuda")


class TestDriver:
    """The driver's management library, a stand-in of a few functions."""

    @pytest.fixture
    def library(self, monkeypatch):
        def loads(nvml):
            def load(name):
                if nvml is None:
                    raise OSError(name)
                return nvml

            monkeypatch.setattr(_backends.ctypes, "CDLL", load)
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

        return loads

    def stand_in(self, names, cuda=13020, status=0):
        def count(out):
            out._obj.value = len(names)

        def version(out):
            out._obj.value = cuda

        def handle(i, out):
            out._obj.value = i.value + 1

        def name_of(device, out, size):
            out.value = names[device.value - 1].encode()

        return types.SimpleNamespace(
            nvmlInit_v2=lambda: status,
            nvmlShutdown=lambda: 0,
            nvmlDeviceGetCount_v2=count,
            nvmlSystemGetCudaDriverVersion_v2=version,
            nvmlDeviceGetHandleByIndex_v2=handle,
            nvmlDeviceGetName=name_of,
        )

    def test_devices(self, library):
        library(self.stand_in(["NVIDIA H100", "NVIDIA A100"]))
        assert _backends._nvidia() == _backends._Nvidia(("NVIDIA H100", "NVIDIA A100"), 13)

    def test_an_older_driver(self, library):
        library(self.stand_in(["NVIDIA A100"], cuda=12080))
        assert _backends._nvidia().cuda == 12

    def test_none(self, library, monkeypatch):
        library(None)
        assert "no NVIDIA driver" in _backends._nvidia().reason
        library(self.stand_in([]))
        assert "no device" in _backends._nvidia().reason
        library(self.stand_in([], status=9))
        assert "status 9" in _backends._nvidia().reason
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert "CUDA_VISIBLE_DEVICES hides them all" in _backends._nvidia().reason
