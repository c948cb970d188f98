import pytest

from paper_repro.configuration import make_config, read_preset
from paper_repro.demo import PRESETS
from paper_repro.errors import ConfigurationError
from paper_repro.selection import (
    ArmChoice,
    Choice,
    Trial,
    choice_path,
    choose,
    read_choice,
    settings_of,
    write_choice,
)


def trial(rate, *validation):
    return Trial(learning_rate=rate, validation=validation, states=((8,),) * len(validation))


def test_the_best_mean_is_chosen_and_the_lower_rate_of_equals():
    assert choose([trial(1e-3, 0.5, 0.9), trial(2e-3, 0.8, 0.7), trial(4e-3, 0.6, 0.6)]).learning_rate == 2e-3
    assert choose([trial(2e-3, 0.8), trial(1e-3, 0.8)]).learning_rate == 1e-3


def test_the_edge_of_what_was_tried_is_said():
    assert choose([trial(1e-3, 0.9), trial(2e-3, 0.8)]).is_at_edge
    assert not choose([trial(1e-3, 0.7), trial(2e-3, 0.8), trial(4e-3, 0.7)]).is_at_edge


def test_a_choice_survives_its_file(tmp_path):
    config = make_config(read_preset("digits"))
    arms = {arm: choose([trial(1e-3, 0.5), trial(2e-3, 0.75)]) for arm in ("full", "in_training", "from_scratch")}
    choice = Choice(command="select", commit=None, seeds=(100,), settings=settings_of(config), arms=arms)
    write_choice(choice, tmp_path / "choice.toml")
    assert read_choice(tmp_path / "choice.toml") == choice
    assert isinstance(choice.arms["full"], ArmChoice)
    assert "0.001: 50.0 %, 0.002: 75.0 % → 0.002" in (tmp_path / "choice.toml").read_text(encoding="utf-8")
    assert not choice.differing_settings(config)
    assert choice.differing_settings(config.with_values(steps=7)) == {"steps": (config.steps, 7)}


def test_a_choice_with_options_survives_its_file_and_a_key_that_came_later_has_its_default(tmp_path):
    config = make_config(
        {**read_preset("mqar"), "task_options": {"pairs": 4, "queries": 4}, "layer_options": {"expand": 1}}
    )
    arms = {arm: choose([trial(1e-3, 0.5)]) for arm in ("full", "in_training", "from_scratch")}
    choice = Choice(command="select", commit=None, seeds=(100,), settings=settings_of(config), arms=arms)
    write_choice(choice, tmp_path / "choice.toml")
    assert read_choice(tmp_path / "choice.toml") == choice
    older = Choice(
        command="select", seeds=(100,), arms=arms,
        settings={key: value for key, value in choice.settings.items() if key not in ("pooling", "layer")},
    )  # fmt: skip
    assert older.differing_settings(config) == {"layer": ("lru", "mamba")}


def test_a_missing_or_spoilt_choice_says_what_to_do(tmp_path):
    with pytest.raises(ConfigurationError, match="select-lr"):
        read_choice(tmp_path / "digits.toml")
    (tmp_path / "digits.toml").write_text("arms = 3")
    with pytest.raises(ConfigurationError, match="not a choice"):
        read_choice(tmp_path / "digits.toml")


@pytest.mark.parametrize("preset", PRESETS)
def test_the_demo_uses_rates_that_were_chosen_for_its_own_settings_and_for_other_seeds(preset):
    choice = read_choice(choice_path(preset))
    assert not choice.differing_settings(make_config(read_preset(preset)))
    assert not set(choice.seeds) & set(range(3))
    tried = {tuple(trial.learning_rate for trial in arm.tried) for arm in choice.arms.values()}
    assert len(tried) == 1  # the same rates in every arm
    assert len(tried.pop()) == 3
    for arm in choice.arms.values():
        assert choose(arm.tried).learning_rate == arm.learning_rate
