"""Three ways of a cut with the optimizer's moments."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hsv_torch
from paper_repro.errors import ResultError
from paper_repro.moments import (
    MARKS,
    QUICK,
    WAYS,
    cut,
    measure,
    moments_table,
    read_results,
    second_moment_ratio,
    write_results,
)

DOCS = Path(__file__).parents[2] / "docs"


def trained():
    torch.manual_seed(0)
    model = torch.nn.Sequential(hsv_torch.LRU(3, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model(torch.randn(2, 9, 3)).square().mean().backward()
    optimizer.step()
    return model, optimizer


def test_the_ways_differ_in_the_moments_alone():
    models, moments = {}, {}
    for way in WAYS:
        model, optimizer = trained()
        old = {name: optimizer.state[p]["exp_avg"].clone() for name, p in model.named_parameters()}
        cut(model, optimizer, 5, way)
        models[way] = model
        moments[way] = {name: optimizer.state[p].get("exp_avg") for name, p in model.named_parameters()}
    for way in WAYS:
        assert all(
            torch.equal(p, q) for p, q in zip(models[way].parameters(), models["reset"].parameters(), strict=True)
        )
        assert torch.equal(moments[way]["0.D"], old["0.D"])
    assert moments["reset"]["0.B"] is None
    assert torch.equal(moments["sliced"]["0.B"], old["0.B"][:5])
    assert torch.equal(moments["sliced"]["0.C"], old["0.C"][:, :5])
    assert moments["carried"]["0.B"].shape == (5, 3, 2)
    torch.testing.assert_close(moments["with all steps"]["0.B"], moments["carried"]["0.B"])  # after one step
    assert not torch.allclose(moments["carried"]["0.B"], moments["sliced"]["0.B"])


def test_measurements_go_through_the_file_into_a_table(tmp_path):
    results = list(measure(QUICK))
    assert len(results) == 2 * 2 * 4
    ratios = [r["second_moment_ratio"] for r in results if (r["optimizer"], r["way"]) == ("AdamW", "carried")]
    assert len(ratios) == 2
    assert all(ratio > 0 for ratio in ratios)
    assert all(r["second_moment_ratio"] is None for r in results if r["optimizer"] == "SGD" or r["way"] != "carried")
    assert len({result["loss_before"] for result in results}) == 4  # one run up to the cut for each optimizer and seed
    path = tmp_path / "results" / "moments.json"
    write_results(results, {"commit": None}, path)
    assert read_results(path) == results
    table = moments_table(results)
    assert table.count("\n") == 1 + 2 * 2
    assert "| SGD, 4 | all steps |" in table


def test_the_page_shows_what_the_file_has():
    _, first, rest = (DOCS / "experiments.md").read_text(encoding="utf-8").partition(MARKS[0])
    assert first
    shown = rest.partition(MARKS[1])[0].strip()
    assert shown == moments_table(read_results(DOCS / "data" / "moments.json"))


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps([1]))
    with pytest.raises(ResultError, match="has no measurements of moments"):
        read_results(path)


def test_all_steps_are_given_back_with_the_same_corrected_moments():
    model, optimizer = trained()
    for _ in range(20):
        optimizer.zero_grad()
        model(torch.randn(2, 9, 3)).square().mean().backward()
        optimizer.step()
    states = {}
    for way in ("carried", "with all steps"):
        model_of_way, optimizer_of_way = copy.deepcopy((model, optimizer))
        cut(model_of_way, optimizer_of_way, 5, way)
        states[way] = optimizer_of_way.state[model_of_way[0].B]
    assert (int(states["carried"]["step"]), int(states["with all steps"]["step"])) == (2, 21)
    for key, beta in (("exp_avg", 0.9), ("exp_avg_sq", 0.999)):
        few, all_ = (s[key] / (1 - beta ** int(s["step"])) for s in states.values())
        torch.testing.assert_close(few, all_)


def test_the_ratio_of_second_moments():
    class Square(torch.nn.Module):
        """Whatever the input, the gradient of its only parameter is the same."""

        def __init__(self):
            super().__init__()
            self.block = torch.nn.ModuleDict({"layer": torch.nn.Linear(1, 2, bias=False)})

        def forward(self, x):
            return self.block["layer"](torch.ones(1, 1))

    model = Square()
    with torch.no_grad():
        model.block["layer"].weight.zero_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)

    class Batches:
        def next(self):
            return SimpleNamespace(arguments=(None,), labels=torch.tensor([0]))

    torch.nn.functional.cross_entropy(model(None), torch.tensor([0])).backward()
    optimizer.step()
    assert second_moment_ratio(model, optimizer, Batches(), 3) == pytest.approx(1.0, rel=1e-5)
    optimizer.state[model.block["layer"].weight]["exp_avg_sq"].mul_(0.25)
    assert second_moment_ratio(model, optimizer, Batches(), 3) == pytest.approx(0.25, rel=1e-5)
    assert second_moment_ratio(model, torch.optim.SGD(model.parameters(), lr=0.1), Batches(), 3) is None
