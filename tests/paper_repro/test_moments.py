"""Three ways of a cut with the optimizer's moments."""

import json
from pathlib import Path

import pytest
import torch

import hsv_torch
from paper_repro.errors import ResultError
from paper_repro.moments import MARKS, QUICK, WAYS, cut, measure, moments_table, read_results, write_results

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
    assert not torch.allclose(moments["carried"]["0.B"], moments["sliced"]["0.B"])


def test_measurements_go_through_the_file_into_a_table(tmp_path):
    results = list(measure(QUICK))
    assert len(results) == 2 * 2 * 3
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
