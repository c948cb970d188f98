import json

import pytest

from paper_repro.configuration import (
    ARMS,
    KEYS_OF_ARMS,
    SELECTIVE_LAYERS,
    RunConfig,
    make_config,
    overridden,
    parse_overrides,
    preset_names,
    read_preset,
)
from paper_repro.errors import ConfigurationError

DIGITS = read_preset("digits")


@pytest.mark.parametrize("preset", preset_names())
@pytest.mark.parametrize("arm", ARMS)
def test_every_preset_is_valid_for_every_arm(preset, arm):
    values = {"penalty_weight": 1e-3, **read_preset(preset), "arm": arm}
    if arm == "regularised" and values.get("layer") in SELECTIVE_LAYERS:
        with pytest.raises(ConfigurationError, match="no Hankel values to penalise"):
            make_config(values)
    else:
        assert make_config(values).arm == arm


def test_the_preset_of_fashion_mnist_has_the_papers_values_for_sequential_mnist():
    config = make_config(read_preset("fashion_mnist"))
    assert (config.n_blocks, config.d_model, config.n_states, config.steps, config.batch_size) == (
        1,
        8,
        256,
        200_000,
        50,
    )
    assert (config.learning_rate, config.weight_decay, config.ssm_lr_factor, config.dropout) == (4e-4, 0, 1, 0.1)
    assert config.lr_schedule == "constant"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"taus": 0.1}, ["unknown key 'taus'", "did you mean 'tau'"]),
        ({"zzz": 1}, ["unknown key 'zzz'", "known are", "learning_rate"]),
        ({"seed": -1}, ["'seed'", "-1"]),
        ({"seed": True}, ["'seed'", "integer"]),
        ({"seed": None}, ["'seed'", "integer"]),
        ({"steps": "many"}, ["'steps'", "'many'"]),
        ({"steps": -1}, ["'steps'", "greater than or equal to 0"]),
        ({"steps": 0}, ["steps", "at least 1", "only arm post_training", "not full"]),
        ({"steps": 10.5}, ["'steps'", "10.5"]),
        ({"learning_rate": float("nan")}, ["learning_rate"]),
        ({"learning_rate": float("inf")}, ["learning_rate"]),
        ({"tau": 0.0}, ["'tau'", "greater than 0"]),
        ({"dropout": 1.0}, ["'dropout'", "less than 1"]),
        ({"n_states": 0}, ["n_states", "at least 1"]),
        ({"n_states": [64, 64]}, ["n_states names 2 blocks", "n_blocks is 1"]),
        ({"window": [0.5, 0.1]}, ["window", "[0.5, 0.1]"]),
        ({"window": [0.5]}, ["'window'"]),
        ({"min_radius": 0.99, "max_radius": 0.9}, ["min_radius", "0.99"]),
        ({"arm": "in_training", "order": 8}, ["tau, order or budget", "exactly one"]),
        ({"arm": "in_training", "tau": None}, ["tau, order or budget", "exactly one"]),
        ({"task": "lottery"}, ["'task'", "'lottery'", "digits"]),
        (
            {"arm": "post_training", "order": 8},
            ["tau, order or budget", "arm post_training", "exactly one", "order=8, budget=None"],
        ),
        ({"order": 0}, ["order", "at least 1"]),
        ({"order": [4, 4]}, ["order names 2 blocks", "n_blocks is 1"]),
        ({"arm": "in_training", "gradual": True}, ["gradual", "a budget or one order for all blocks", "None"]),
        ({"starts_from": "digits-full"}, ["starts_from", "arm full", "post_training, distilled"]),
        ({"arm": "regularised"}, ["penalty_weight", "None"]),
        ({"reading": "lasst"}, ["'reading'", "'last'"]),
        ({"temperature": 0.0}, ["'temperature'", "greater than 0"]),
        ({"distillation_weight": 1.5}, ["'distillation_weight'", "less than or equal to 1"]),
        ({"layer": "gru"}, ["'layer'", "'mamba'"]),
        ({"layer": "mamba", "reading": "real"}, ["reading", "'real'", "the layer is mamba"]),
        ({"layer": "mamba", "horizon": 64.0}, ["horizon", "64.0", "the layer is mamba"]),
        ({"horizon": 0.0}, ["'horizon'", "greater than 0"]),
        ({"layer": "s5", "max_phase": 0.5}, ["max_phase", "0.5", "only layer lru"]),
        ({"method": "greedy"}, ["method", "'greedy'", "the layer is lru", "selective"]),
        ({"calibration_sequences": 8}, ["calibration_sequences", "selective"]),
        ({"ready_by": 0.5, "ready_to": 1.0}, ["ready_by or ready_to", "0.5", "1.0"]),
        ({"layer_options": {"expand": [1]}}, ["layer_options"]),
        ({"clip_norm": 0.0}, ["'clip_norm'"]),
        ({"steps": -1, "batch_size": 0}, ["'steps'", "'batch_size'"]),
    ],
)
def test_an_error_names_the_key_and_what_was_found(values, words):
    with pytest.raises(ConfigurationError) as caught:
        make_config({**DIGITS, **values})
    for word in words:
        assert word in str(caught.value)


def test_seed_0_is_a_seed():
    assert make_config({**DIGITS, "seed": 0}).seed == 0
    assert make_config({**DIGITS, "seed": 0}).run_id != make_config({**DIGITS, "seed": 1}).run_id


def test_an_override_that_chooses_the_sizes_replaces_the_preset_s():
    preset = {"tau": 0.1, "steps": 5}
    assert overridden(preset, {"order": 8}) == {"order": 8, "steps": 5}
    assert overridden(preset, {"steps": 7}) == {"tau": 0.1, "steps": 7}
    assert overridden({"order": 4}, {"budget": 100, "steps": 1}) == {"budget": 100, "steps": 1}


def test_overrides_are_numbers_lists_words_and_nothing():
    values = parse_overrides(["tau=0.2", "n_states = [3, 4]", "norm=layer", "order=none", "steps=3_000"])
    assert values == {"tau": 0.2, "n_states": [3, 4], "norm": "layer", "order": None, "steps": 3000}


@pytest.mark.parametrize("assignment", ["tau", "=3", ""])
def test_an_override_needs_a_key_and_a_value(assignment):
    with pytest.raises(ConfigurationError, match="KEY=VALUE"):
        parse_overrides([assignment])


def test_an_override_that_comes_twice_is_an_error():
    with pytest.raises(ConfigurationError, match="'tau' twice"):
        parse_overrides(["tau=0.1", "tau=0.2"])


def test_an_unknown_preset_lists_or_suggests():
    with pytest.raises(ConfigurationError, match="did you mean 'digits'"):
        read_preset("digit")
    with pytest.raises(ConfigurationError, match="does not exist"):
        read_preset("nowhere.toml")


def test_a_preset_can_be_a_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('task = "digits"\nsteps = 7\n')
    assert make_config(read_preset(str(path))).steps == 7
    path.write_text("task = ")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        read_preset(str(path))


def test_a_configuration_survives_json():
    config = make_config({**DIGITS, "arm": "in_training", "n_states": [12]})
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    assert json.loads(config.model_dump_json())["n_states"] == [12]


def test_the_run_id_ignores_the_rule_of_cuts_where_nothing_is_cut():
    def ids(arm):
        return {make_config({**DIGITS, "arm": arm, "tau": tau}).run_id for tau in (0.1, 0.2)}

    assert len(ids("full")) == 1
    assert len(ids("in_training")) == 2


EARLIER_NAMES = [
    "digits-full-seed0-e4531f9c",
    "digits-in_training-seed0-afe01862",
    "digits-from_scratch-seed0-e581e0ac",
]
OTHER_VALUES = {
    "tau": 0.2,
    "budget": 9,
    "gradual": True,
    "attempts": 2,
    "reading": "real",
    "horizon": 64.0,
    "ready_by": 0.5,
    "ready_to": 1.0,
    "moments": "reset",
    "max_drop": 0.01,
    "share_of_cut": 0.2,
    "decide_after": 7,
    "starts_from": "digits-full-seed0",
    "temperature": 4.0,
    "distillation_weight": 0.9,
    "penalty_weight": 0.1,
    "penalty_by": "eigenvalues",
    "penalty_every": 4,
}


@pytest.mark.parametrize("arm", ARMS)
def test_the_run_id_changes_with_the_keys_of_its_arm_alone(arm):
    needed = {"arm": arm, "penalty_weight": 1e-3}
    plain = make_config({**DIGITS, **needed})
    for key, value in OTHER_VALUES.items():
        values = {**DIGITS, **needed, key: value}
        if key == "budget":
            values |= {"tau": None}
            plain_of_key = make_config({**DIGITS, **needed, "tau": None, "order": 9})
        elif key == "gradual":
            values |= {"tau": None, "order": 8}
            plain_of_key = make_config({**values, "gradual": False})
        elif key == "starts_from" and "starts_from" not in KEYS_OF_ARMS[arm]:
            continue
        else:
            plain_of_key = plain
        assert (make_config(values).run_id != plain_of_key.run_id) == (key in KEYS_OF_ARMS[arm]), key


def test_names_of_runs_that_were_made_before_there_were_more_arms_stay():
    values = {"task": "digits", "n_states": 64, "tau": 0.1, "learning_rate": 8e-3, "window": [0.0, 0.1], "threads": 1}
    names = [make_config({**values, "arm": arm}).run_id for arm in ("full", "in_training", "from_scratch")]
    assert names == EARLIER_NAMES


def test_the_best_checkpoint_is_chosen_after_the_last_cut_can_have_come():
    def last(**values):
        return make_config(
            {**DIGITS, "window": [0.0, 0.1], "steps": 1000, "penalty_weight": 1.0, **values}
        ).last_step_of_window

    assert {last(arm=arm) for arm in ("full", "in_training", "from_scratch", "distilled", "regularised")} == {100}
    assert last(arm="post_training") == last(arm="post_training", steps=0) == 0
    assert last(arm="pragmatic", attempts=4) == 100 + 24  # before an attempt that would come 25 steps after the last
    assert last(arm="pragmatic", attempts=4, decide_after=3) == 103
