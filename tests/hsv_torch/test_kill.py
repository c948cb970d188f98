"""Kill -9 at any moment: a run goes on from its last checkpoint and ends bit-identical to one that nobody interrupted.

The runs are forks of this process, so that none of them has to import anything.
"""

import os
import random
import signal
import time

import pytest
import safetensors.torch
import torch

import hsv
import hsv_torch
from hsv_torch import InTrainingCompressor, Rollback, Schedule
from hsv_torch.checkpoint import load_checkpoint, load_into, save_checkpoint
from tests.hsv_torch.models import classifier, train_step

STEPS = 60


def make():
    model = classifier()  # with dropout and batch statistics
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard = Rollback(lambda: model.encoder.weight.sum().item(), max_drop=1.0)
    compressor = InTrainingCompressor(
        model, optimizer, rule=hsv.HankelSum(discard=0.1), schedule=Schedule(STEPS, at=(10, 25, 40)), guard=guard
    )
    return model, optimizer, compressor


def save(path, model, optimizer, compressor):
    extra = {"compressor": compressor.state_dict(), "random": torch.get_rng_state()}
    save_checkpoint(model, path, optimizer=optimizer, extra=extra)


def train(path, result):
    """Begin, or go on from the last checkpoint; write the result at the end."""
    torch.set_num_threads(1)
    model, optimizer, compressor = make()
    torch.manual_seed(1)
    if path.exists():
        extra = load_checkpoint(path).extra
        compressor.load_state_dict(extra["compressor"])
        load_into(model, path, optimizer=optimizer)
        torch.set_rng_state(extra["random"])
    while compressor.steps < STEPS:
        train_step(model, optimizer, compressor.steps)
        compressor.step()
        if compressor.steps % 5 == 0:
            save(path, model, optimizer, compressor)
    save(result, model, optimizer, compressor)


def fork(function, *arguments):
    """Run it in a child process; return the child."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            function(*arguments)
            code = 0
        finally:
            os._exit(code)
    return child


def outcome(child):
    """The exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(path):
    """Parameters, moments and sizes; times are left out."""
    stored = load_checkpoint(path)
    history = hsv_torch.History.from_dict(stored.extra["compressor"]["history"])
    return stored.sizes, stored.model, stored.optimizer["state"], [(e.step, e.undone) for e in history.events]


def assert_same(first, second):
    assert first[0] == second[0]
    assert first[3] == second[3]
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    for place, state in first[2].items():
        assert all(
            torch.equal(torch.as_tensor(value), torch.as_tensor(second[2][place][key])) for key, value in state.items()
        )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert outcome(fork(train, folder / "checkpoint", folder / "result")) == 0
    found = content(folder / "result")
    assert all(size["n_states"] < 16 for size in found[0].values())
    return found


@pytest.mark.slow
def test_fifty_random_moments(uninterrupted, tmp_path):
    draw, kills, runs = random.Random(0), 0, 0
    while kills < 50:
        path, result = tmp_path / f"checkpoint{runs}", tmp_path / f"result{runs}"
        while not result.exists():
            child = fork(train, path, result)
            time.sleep(draw.uniform(0.0, 0.6))
            os.kill(child, signal.SIGKILL)
            kills += outcome(child) == -signal.SIGKILL
        assert_same(content(result), uninterrupted)
        runs += 1


def dies_in_a_cut(path, result):
    adapter = type(hsv_torch.adapter_of(hsv_torch.LRU(2, 4)))
    apply = adapter.apply

    def half(self, layer, cut):
        apply(self, layer, cut)
        os.kill(os.getpid(), signal.SIGKILL)

    adapter.apply = half
    train(path, result)


def dies_in_a_write(path, result):
    write = safetensors.torch.save_file

    def half(tensors, draft, metadata):
        write(tensors, draft, metadata)
        if path.exists():
            os.truncate(draft, draft.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    safetensors.torch.save_file = half
    train(path, result)


@pytest.mark.parametrize("dies", [dies_in_a_cut, dies_in_a_write])
def test_in_the_middle_of_things(dies, uninterrupted, tmp_path):
    path, result = tmp_path / "checkpoint", tmp_path / "result"
    assert outcome(fork(dies, path, result)) == -signal.SIGKILL
    assert path.exists()
    assert not result.exists()
    assert outcome(fork(train, path, result)) == 0
    assert_same(content(result), uninterrupted)
