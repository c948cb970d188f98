import builtins
import sys

import control
import numpy as np
import pytest
import torch

import hsv
from tests.hsv import reference_systems as known


@pytest.mark.parametrize("dt", [0, True, 0.25])
def test_there_and_back(dt, rng):
    original = known.random_stable(rng, 4, 2, 3, dt=dt)
    original = hsv.StateSpace(original.A, original.B, original.C, rng.normal(size=(3, 2)), dt=dt)
    converted = hsv.to_control(original)
    assert converted.dt is original.dt or converted.dt == original.dt
    back = hsv.from_control(converted)
    assert back.dt == original.dt
    assert (back.dt is True) == (dt is True)
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(back, name), getattr(original, name))


@pytest.mark.parametrize("dt", [0, 0.25])
def test_responses_agree(dt, rng):
    original = known.random_stable(rng, 4, 2, 3, dt=dt)
    w = np.array([0.0, 0.3, 2.0])
    theirs = np.moveaxis(hsv.to_control(original)(np.exp(1j * w * dt) if dt else 1j * w), -1, 0)
    np.testing.assert_allclose(original.frequency_response(w), theirs, rtol=1e-10)


def test_names_of_signals():
    sys = known.slicot_power_system().system()
    names = {"inputs": ["u1", "u2"], "outputs": ["a", "b", "c"], "states": [f"s{i}" for i in range(7)], "name": "power"}
    converted = hsv.to_control(sys, **names)
    assert converted.input_labels == names["inputs"]
    assert converted.output_labels == names["outputs"]
    assert converted.state_labels == names["states"]
    assert converted.name == "power"
    with pytest.raises(hsv.ShapeError, match="inputs must be a list of 2 names"):
        hsv.to_control(sys, inputs=["only one"])
    with pytest.raises(hsv.ShapeError, match="outputs must be a list of 3 names"):
        hsv.to_control(sys, outputs="abc")


def test_states_of_zeros_are_kept():
    """python-control can be told to delete them, and then matrices and names no longer fit."""
    control.config.set_defaults("statesp", remove_useless_states=True)
    try:
        sys = hsv.StateSpace(np.zeros((2, 2)), [[0.0], [1.0]], [[0.0, 1.0]], dt=True)
        assert hsv.to_control(sys).nstates == 2
    finally:
        control.config.reset_defaults()


def test_other_arrays_and_forms(rng):
    layer = known.lru_initialisation(rng, 3, 2)
    real = hsv.real_part(layer)
    converted = hsv.to_control(real)
    assert converted.nstates == 6
    w = np.array([-1.0, 0.5])
    theirs = np.moveaxis(converted(np.exp(1j * w)), -1, 0)
    np.testing.assert_allclose(real.frequency_response(w), theirs, rtol=1e-10)
    single = hsv.DiagonalStateSpace(torch.tensor([0.5, 0.25]), torch.ones(2, 1), torch.ones(1, 2), dt=True)
    np.testing.assert_array_equal(hsv.to_control(single).A, np.diag([0.5, 0.25]))
    assert hsv.to_control(single).A.dtype == np.float64


def test_a_transfer_function_is_realised():
    sys = hsv.from_control(control.tf([1, 11, 45, 32], [1, 15, 60, 200, 60]))
    reference = known.four_state_transfer_function().system()
    np.testing.assert_allclose(hsv.hankel_singular_values(sys), hsv.hankel_singular_values(reference), rtol=1e-10)


def test_an_unspecified_time_base_must_be_said():
    sys = control.ss([[0.5]], [[1.0]], [[1.0]], 0.0, None)
    with pytest.raises(hsv.HsvError, match=r"dt=None in python-control\) has no time base; pass dt=0"):
        hsv.from_control(sys)
    assert hsv.from_control(sys, dt=True).dt is True
    assert hsv.from_control(sys, dt=0).dt == 0
    sampled = control.ss([[0.5]], [[1.0]], [[1.0]], 0.0, 0.1)
    assert hsv.from_control(sampled, dt=0.1).dt == 0.1
    for wrong in (0, True, 0.2):
        with pytest.raises(hsv.HsvError, match=r"equal to the system's own, 0\.1"):
            hsv.from_control(sampled, dt=wrong)
    with pytest.raises(hsv.HsvError, match="own, True"):
        hsv.from_control(control.ss([[0.5]], [[1.0]], [[1.0]], 0.0, True), dt=1.0)


def test_what_python_control_cannot_hold_is_refused(rng):
    layer = known.lru_initialisation(rng, 3, 2)
    for sys_ in (layer, layer.to_dense()):
        with pytest.raises(hsv.DtypeError, match=r"hsv\.real_part"):
            hsv.to_control(sys_)
    with pytest.raises(hsv.ShapeError, match=r"batch of shape \(2,\)"):
        hsv.to_control(known.random_stable(rng, 3, 1, 1, dt=True, batch=(2,)))


def test_what_is_no_system_is_refused():
    with pytest.raises(hsv.DtypeError, match=r"python-control, got float"):
        hsv.from_control(1.0)
    with pytest.raises(hsv.ShapeError, match="static gain"):
        hsv.from_control(control.ss([], [], [], [[1.0]], dt=0))


def test_without_python_control(monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.split(".")[0] == "control":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    monkeypatch.delitem(sys.modules, "control")
    monkeypatch.setattr(builtins, "__import__", refuse)
    for call in (
        lambda: hsv.from_control(None),
        lambda: hsv.to_control(hsv.StateSpace([[0.5]], [[1]], [[1]], dt=True)),
    ):
        with pytest.raises(hsv.MissingBackendError, match="pip install control"):
            call()
