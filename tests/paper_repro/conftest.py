import pytest
import torch

from paper_repro.configuration import make_config, read_preset

SMALL = {"steps": 40, "n_states": 12, "d_model": 4, "batch_size": 20, "evaluate_every": 8, "checkpoint_every": 16}


@pytest.fixture
def small_config():
    """Return a function that makes configurations of digits small enough for tests."""

    def make(**values):
        return make_config({**read_preset("digits"), **SMALL, **values})

    return make


@pytest.fixture(autouse=True)
def _threads_and_random_state_stay():
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
