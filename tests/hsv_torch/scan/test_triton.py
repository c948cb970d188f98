"""The Triton kernels without a GPU: their numbers in Triton's interpreter, and that they compile for one."""

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hsv_torch.scan import _linear, choose_mode

ROOT = Path(__file__).resolve().parents[3]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def run_interpreted(*options):
    """``interpreted.py``, in a process in which nothing has imported Triton yet."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "TRITON_"))}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    path = Path(__file__).with_name("interpreted.py").relative_to(ROOT)
    command = [sys.executable, "-m", "pytest", str(path), "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *options]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]


@needs_triton
@pytest.mark.parametrize("scan", ["linear or diagonal", "selective", "attention"])
def test_in_the_interpreter(scan):
    run_interpreted("-m", "not slow", "-k", scan)


@needs_triton
@pytest.mark.slow
def test_in_the_interpreter_for_longer():
    run_interpreted("-m", "slow")


def test_a_missing_triton_is_said_once(monkeypatch):
    monkeypatch.setattr(_linear, "_warned", set())
    monkeypatch.setattr(_linear, "TRITON", False)
    with pytest.warns(UserWarning, match=r"no kernel for cuda, for Triton is not installed \(`pip install triton`\)"):
        assert not _linear.has_kernel(torch.device("cuda"))
    assert not _linear.has_kernel(torch.device("cuda"))  # filterwarnings = error
    monkeypatch.setattr(_linear, "TRITON", True)
    assert _linear.has_kernel(torch.device("cuda"))


def test_scan_or_convolution_on_a_gpu(monkeypatch):
    sizes = {"batch": 50, "length": 784, "n_inputs": 8, "n_outputs": 8, "device": "cuda"}
    monkeypatch.setattr(_linear, "TRITON", True)
    assert [choose_mode(**sizes, n_states=n) for n in (12, 256)] == ["scan", "convolution"]
    monkeypatch.setattr(_linear, "TRITON", False)
    assert choose_mode(**sizes, n_states=12) == "convolution"


def test_importing_the_scans_imports_no_triton():
    code = "import sys, hsv_torch.scan; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def compile_for_a_gpu(kernel, element, constants, warps, sizes):
    """The kernel for compute capability 9.0, with integer arguments as a launch would specialise them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    pointers = [name for name in names if name.endswith("_ptr")]
    ones = [name for name in names if name not in (*pointers, *constants)] if sizes == "one" else []
    constants = constants | dict.fromkeys(ones, 1)
    kinds = {name: f"*{element}" if name in pointers else "i32" for name in names}
    signature = {name: "constexpr" if name in constants else kinds[name] for name in names}
    whole = [name for name in names if sizes == "multiples of 16" and name not in constants]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in {*pointers, *whole}},
    )
    options = {"num_warps": warps, "num_stages": 2, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def linear_variants():
    for name, write, varying, is_complex in itertools.product(("_forward", "_backward"), *3 * [(True, False)]):
        constants = {"WRITE": write, "VARYING": varying, "IS_COMPLEX": is_complex, "STEPS": 16, "BLOCK": 128}
        yield "linear", name, "fp32", constants, 4
        if write:
            yield "linear", name, "fp64", constants | {"STEPS": 8}, 4


def selective_variants():
    for element, block, forward, backward in (("fp32", 64, 16, 8), ("fp32", 32, 16, 8), ("fp64", 32, 8, 4)):
        for steps, states in ((forward, 4), (backward, 3)):
            yield "selective", "_states", element, {"STATES": states, "STEPS": steps, "BLOCK": block}, 1
        yield "selective", "_adjoints", element, {"STATES": 4, "STEPS": backward, "BLOCK": block}, 1
        for in_turn, save in ((True, True), (True, False), (False, False)):
            constants = {"IN_TURN": in_turn, "SAVE": save, "STEPS": forward, "BLOCK": block}
            yield "selective", "_outputs", element, constants, 1
        yield "selective", "_gradients", element, {"STEPS": backward, "BLOCK": block}, 1


def attention_variants():
    for element, precision, steps, tiles in (
        ("fp64", "float64", 16, [(16, 16, 4)]),
        ("fp32", "ieee", 32, [(16, 32, 4), (32, 32, 4), (64, 16, 8), (64, 64, 8)]),
        ("fp32", "tf32", 64, [(16, 32, 4), (16, 64, 8), (64, 16, 8), (64, 64, 8)]),
    ):
        for per_key, (keys, values, warps) in itertools.product((False, True), tiles):
            if precision == "ieee" and keys > 32 and not per_key:
                continue  # tiles as large as that are for a decay for each key
            constants = {"PER_KEY": per_key, "PRECISION": precision, "STEPS": 16 if per_key else steps}
            constants |= {"KEYS": keys, "VALUES": values}
            for name in ("_states", "_adjoints", "_keys_gradient"):
                yield "attention", name, element, constants, warps
            for against in (False, True):
                yield "attention", "_outputs", element, constants | {"AGAINST": against}, warps


def check_compiled(scan, name, element, constants, warps, sizes):
    kernel = getattr(importlib.import_module(f"hsv_torch.scan._triton.{scan}"), name)
    compiled = compile_for_a_gpu(kernel, element, constants, warps, sizes)
    assert compiled.asm["cubin"]
    if scan != "attention":
        assert compiled.metadata.shared == 0  # everything is in registers, and no thread waits for another


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("Triton interprets: TRITON_INTERPRET=1")


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs():
    command = [sys.executable, "-m", "asv_benchmarks.scan_gpu", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    for scan in ("linear", "selective", "attention", "diagonal", "Mamba training step"):
        assert f"scan: {scan} " in run.stdout


SIZES = ("any", "one", "multiples of 16")
FEW = {"linear": ["_backward"], "selective": ["_outputs", "_gradients"], "attention": ["_keys_gradient"]}


@needs_triton
@pytest.mark.parametrize(("scan", "name"), [(scan, name) for scan, names in FEW.items() for name in names])
def test_a_variant_compiles_for_a_gpu(scan, name, compiler):
    variants = (*linear_variants(), *selective_variants(), *attention_variants())
    check_compiled(*next(v for v in variants if v[:2] == (scan, name)), "one")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("variants", [linear_variants, selective_variants, attention_variants])
def test_every_variant_compiles_for_a_gpu(variants, sizes, compiler):
    for variant in variants():
        check_compiled(*variant, sizes)
