"""Every option of what users call stands in the documentation and in a test; a keyword that is added without either fails here."""

import inspect
import re
from pathlib import Path

import pytest

import hsv_torch

ROOT = Path(__file__).resolve().parents[2]
DOCS = "\n".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
TESTS = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("*.py") if file != Path(__file__).resolve())
CALLED = [
    hsv_torch.InTrainingCompressor,
    hsv_torch.InTrainingCompressor.step,
    hsv_torch.compress_,
    hsv_torch.Schedule,
    hsv_torch.Schedule.once,
    hsv_torch.Schedule.every,
    hsv_torch.Schedule.after_warm_up,
    hsv_torch.LossFalls,
    hsv_torch.RankingSettles,
    hsv_torch.Budget,
    hsv_torch.Sizes,
    hsv_torch.Rollback,
    hsv_torch.ComplexHankel,
    hsv_torch.RealHankel,
    hsv_torch.RealPoles,
    hsv_torch.SymmetricHankel,
    hsv_torch.ModeChoice,
    hsv_torch.BalancedChoice,
    hsv_torch.save_checkpoint,
    hsv_torch.load_into,
    hsv_torch.load_model,
    hsv_torch.parameter_groups,
    hsv_torch.export_onnx,
    hsv_torch.export_onnx_step,
]
OPTIONS = [
    (f"{function.__qualname__}.{name}", name)
    for function in CALLED
    for name, parameter in inspect.signature(function).parameters.items()
    if parameter.default is not inspect.Parameter.empty or parameter.kind is inspect.Parameter.KEYWORD_ONLY
]


@pytest.mark.parametrize("name", [pytest.param(name, id=label) for label, name in OPTIONS])
def test_an_option_is_documented_and_tested(name):
    assert re.search(rf"\b{name}=|`{name}`", DOCS), "no page says what it is for"
    assert re.search(rf"\b{name}=|\"{name}\"|\b{name}\(", TESTS), "no test uses it"


def test_there_are_many():
    """The signatures are read where they are: an empty list would pass everything."""
    assert len(OPTIONS) > 60
