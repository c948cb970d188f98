"""What every test gets: hypothesis profiles, and skips that say why."""

import os

import hypothesis
import numpy as np
import pytest

# The quick profile repeats the same examples in every run, so that a change breaks a test and nothing else does;
# the slow suite looks further and starts somewhere new each time.
hypothesis.settings.register_profile(
    "quick", max_examples=25, derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "thorough", max_examples=300, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked `gpu` where no CUDA device is present."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device: torch.cuda.is_available() is False")
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(skip)


@pytest.fixture
def rng() -> np.random.Generator:
    """Return a generator with a fixed seed; a test that needs several draws takes them in order."""
    return np.random.default_rng(20260101)
