"""Steps with and without the penalty, measured in turn."""

import json

import pytest
import torch

from paper_repro.errors import ResultError
from paper_repro.regularisation_time import QUICK, Plan, measure, read_results, times_table, write_results


def test_the_ways_differ_in_the_penalty_and_the_states_alone():
    configs = Plan().configs()
    plain = configs["plain"]
    assert (plain.states_of_blocks, plain.d_model, plain.batch_size, plain.threads) == ((256,), 8, 50, 1)
    assert configs["after the cut"].with_values(arm="full", n_states=plain.n_states) == plain
    for way, by, every in (
        ("penalty by factors", "gramians", 1),
        ("penalty by factors, seldom", "gramians", 16),
        ("penalty by eigenvalues", "eigenvalues", 1),
    ):
        config = configs[way]
        assert (config.arm, config.penalty_by, config.penalty_every) == ("regularised", by, every)
        reset = {"arm": "full", "penalty_weight": None, "penalty_by": "gramians", "penalty_every": 1}
        assert config.with_values(**reset) == plain


def test_measurements_go_through_the_file_into_a_table(tmp_path):
    torch.set_num_threads(1)
    lines = measure(QUICK)
    assert [line["states"] for line in lines] == [[8], [4], [8], [8], [8]]
    for line in lines:
        low, high = line["quartiles"]
        assert 0 < low <= line["seconds"] <= high
        assert (line["penalty_seconds"] > 0) == line["way"].startswith("penalty")
        assert line["penalty_seconds"] < line["seconds"]
    path = tmp_path / "docs" / "regularisation.json"
    write_results(lines, {"commit": None}, path)
    assert read_results(path) == lines


def test_the_table_has_ratios_of_medians():
    line = {"states": [8], "quartiles": [0.001, 0.003], "penalty_seconds": 0.0, "penalty_every": None}
    lines = [
        {**line, "way": "plain", "seconds": 0.002},
        {**line, "way": "after the cut", "seconds": 0.001, "states": [4, 3]},
        {**line, "way": "penalty by factors, seldom", "seconds": 0.008, "penalty_every": 16, "penalty_seconds": 0.006},
    ]
    assert times_table(lines).splitlines()[2:] == [
        "| plain | 8 | 2.0 (1.0 to 3.0) |  | 1.00 | 2.00 |",
        "| after the cut | 4+3 | 1.0 (1.0 to 3.0) |  | 0.50 | 1.00 |",
        "| penalty by factors, seldom (one in 16) | 8 | 8.0 (1.0 to 3.0) | 6.0 | 4.00 | 8.00 |",
    ]


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text(json.dumps([1]))
    with pytest.raises(ResultError, match="has no times of penalised steps"):
        read_results(path)
