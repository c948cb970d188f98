from typing import get_args

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from paper_repro.configuration import Reading, make_config, read_preset
from paper_repro.errors import ConfigurationError
from paper_repro.methods import METHODS, READINGS, SCORES, make_criterion, selective_criterion


@pytest.mark.parametrize("method", METHODS)
def test_every_name_makes_a_criterion_of_its_own(method):
    criterion = selective_criterion(method, 3)
    assert isinstance(criterion, hsv_torch.Criterion)
    assert [name for name in METHODS if selective_criterion(name, 3) == criterion] == [method]


def test_every_score_comes_with_and_without_compensation():
    assert "greedy" in SCORES
    for score in SCORES:
        with_it, without = (selective_criterion(name, 0) for name in (score, f"{score}_uncompensated"))
        assert (with_it.score, with_it.compensate, without.score, without.compensate) == (score, True, score, False)


def test_random_choices_follow_the_seed_of_the_run():
    assert selective_criterion("random", 1).seed == 1


def test_a_run_names_its_method_by_the_kind_of_its_layer():
    assert make_criterion(make_config(read_preset("digits"))) == hsv_torch.ComplexHankel()
    assert make_criterion(make_config({**read_preset("digits"), "reading": "real"})) == hsv_torch.RealHankel()
    looking_back = make_criterion(make_config({**read_preset("digits"), "reading": "last", "horizon": 64.0}))
    assert looking_back == hsv_torch.Discounted(64.0, hsv_torch.ModeChoice("last"))
    assert make_criterion(make_config(read_preset("mqar"))) is None
    assert make_criterion(make_config({**read_preset("mqar"), "method": "auto"})) == METHODS["auto"](0)


def test_an_unknown_method_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigurationError, match=r"'method': unknown method 'gredy'; did you mean 'greedy'"):
        selective_criterion("gredy", 0)


@pytest.mark.parametrize("reading", READINGS)
def test_every_reading_cuts_a_layer_to_its_order(reading):
    torch.manual_seed(5)
    layer = hsv_torch.LRU(3, 12)
    criterion = make_criterion(make_config({**read_preset("digits"), "reading": reading, "seed": 4}))
    assert [name for name in READINGS if READINGS[name](4) == criterion] == [reading]
    hsv_torch.compress_(layer, hsv.Order(5), criterion=criterion)
    assert layer.n_states == 5


def test_the_readings_are_those_of_the_configuration():
    assert set(READINGS) == set(get_args(Reading))


def system_of_single_states():
    """Three states that do not meet: each has inputs and outputs of its own, so that norms of single states are those of single channels."""
    poles, b, c = torch.tensor([0.9, 0.5, -0.2]), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.5, 0.5])
    return hsv.DiagonalStateSpace(*(x.double() for x in (poles, torch.diag(b), torch.diag(c))), dt=True)


@pytest.mark.parametrize(
    ("reading", "norm"), [("h2", hsv.h2_norm), ("hinf", hsv.hinf_norm), ("hankel", hsv.hankel_norm)]
)
def test_scores_of_single_states_are_norms_of_systems_of_one_state(reading, norm):
    system = system_of_single_states()
    alone = [
        float(
            norm(
                hsv.DiagonalStateSpace(system.poles()[k : k + 1], system.B[k : k + 1], system.C[:, k : k + 1], dt=True)
            )
        )
        for k in range(3)
    ]
    np.testing.assert_allclose(READINGS[reading](0).scores(system), alone, rtol=1e-9)


def test_scores_of_last_and_aire_are_squares_of_the_norms():
    system = system_of_single_states()
    for square, norm in (("last", "hinf"), ("aire", "h2")):
        np.testing.assert_allclose(
            READINGS[square](0).scores(system), READINGS[norm](0).scores(system) ** 2, rtol=1e-12
        )


def test_the_reading_that_drops_the_top_loses_most_and_the_papers_least():
    torch.manual_seed(5)
    layer = hsv_torch.LRU(3, 12)
    system = hsv_torch.adapter_of(layer).system(layer)
    errors = {}
    for reading in ("complex", "random", "smallest"):
        cut = READINGS[reading](0).reduce(system, hsv.Order(4))
        small = hsv.DiagonalStateSpace.from_log_poles(cut.log_poles, cut.B, cut.C, dt=True)
        wide = hsv.DiagonalStateSpace(
            system.poles().to(torch.complex128), system.B.to(torch.complex128), system.C.to(torch.complex128), dt=True
        )
        errors[reading] = float(hsv.h2_norm(wide - small))
    assert errors["complex"] < errors["random"] < errors["smallest"]
