import pytest
import torch

from paper_repro.configuration import make_config, read_preset
from paper_repro.errors import ConfigurationError
from paper_repro.model import make_model, make_model_config
from paper_repro.tasks import task_shape


def model_of(preset, **values):
    config = make_config({**read_preset(preset), **values})
    return make_model(config, task_shape(config.task, config.task_options))


@pytest.mark.parametrize("preset", ["digits", "digits_s5", "digits_mamba", "mqar", "selective_copying"])
def test_the_presets_make_models_of_their_layer_and_size(preset):
    config = make_config(read_preset(preset))
    model = model_of(preset)
    assert model.n_states == config.states_of_blocks
    assert model.config.layer == config.layer
    assert model.config.norm == config.norm


def test_the_poles_of_an_lru_are_where_the_configuration_wants_them():
    layer = model_of("digits", min_radius=0.5, max_radius=0.6, max_phase=0.1).blocks[0].layer
    radii = torch.exp(-layer.nu_log.detach().exp())
    assert 0.5 - 1e-6 <= float(radii.min()) <= float(radii.max()) <= 0.6 + 1e-6  # as float32 has them
    assert float(layer.theta.detach().max()) <= 0.1


def test_options_of_other_layers_go_through_by_their_own_names():
    assert model_of("mqar", layer_options={"expand": 1}).blocks[0].layer.d_inner == 32


def test_what_the_layer_does_not_have_is_said():
    with pytest.raises(
        ConfigurationError, match=r"the model: `layer_options`: Mamba has no option 'expnd'; did you mean"
    ):
        model_of("mqar", layer_options={"expnd": 1})
    with pytest.raises(ConfigurationError, match=r"key 'layer_options': .*`expand` must be at least 1"):
        model_of("mqar", layer_options={"expand": 0})
    with pytest.raises(ConfigurationError, match="runs forwards only"):
        model_of("digits", bidirectional=True)


def test_a_task_of_tokens_gives_scores_for_every_step():
    config = make_config({**read_preset("selective_copying"), "task_options": {"symbols": 5}})
    model_config = make_model_config(config, task_shape(config.task, config.task_options))
    assert (model_config.vocabulary, model_config.n_outputs, model_config.head) == (7, 5, "language_model")
