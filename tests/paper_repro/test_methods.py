import pytest

import hsv_torch
from paper_repro.configuration import make_config, read_preset
from paper_repro.errors import ConfigurationError
from paper_repro.methods import METHODS, SCORES, make_criterion, selective_criterion


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
    assert make_criterion(make_config(read_preset("mqar"))) is None
    assert make_criterion(make_config({**read_preset("mqar"), "method": "auto"})) == METHODS["auto"](0)


def test_an_unknown_method_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigurationError, match=r"'method': unknown method 'gredy'; did you mean 'greedy'"):
        selective_criterion("gredy", 0)
