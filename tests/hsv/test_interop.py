import builtins
import sys

import control
import numpy as np
import pytest
import scipy.signal
import scipy.sparse
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


# Names of signals


def test_names_travel_from_the_plant_to_its_reduction():
    plant = hsv.to_control(
        known.slicot_power_system().system(), inputs=["u1", "u2"], outputs=["a", "b", "c"], name="power"
    )
    names = hsv.labels(plant)
    assert names == {"inputs": ["u1", "u2"], "outputs": ["a", "b", "c"], "name": "power"}
    red = hsv.balanced_truncation(hsv.from_control(plant), 3)
    smaller = hsv.to_control(red.system, **names)
    assert smaller.input_labels == plant.input_labels
    assert smaller.output_labels == plant.output_labels
    assert smaller.nstates == 3
    assert hsv.labels(smaller) == names


def test_names_that_nobody_chose_are_no_names():
    assert hsv.labels(control.ss([[0.5]], [[1.0]], [[1.0]], 0.0, True)) == {}
    assert hsv.labels(control.ss([[0.5]], [[1.0]], [[1.0]], 0.0, True, outputs=["level"])) == {"outputs": ["level"]}
    sampled = control.sample_system(control.ss([[-1.0]], [[1.0]], [[1.0]], 0.0), 0.1)
    assert hsv.labels(sampled) == {}
    with pytest.raises(hsv.DtypeError, match="got int"):
        hsv.labels(1)


# scipy.signal


@pytest.mark.parametrize("dt", [0, True, 0.25])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_scipy_there_and_back(dt, kind, rng):
    original = known.random_stable(rng, 4, 2, 3, dt=dt)
    if kind == "complex":
        original = hsv.StateSpace(original.A * np.exp(0.3j), original.B, original.C * 1j, np.ones((3, 2)), dt=dt)
    converted = hsv.to_scipy(original)
    assert isinstance(converted, scipy.signal.StateSpace)
    assert isinstance(converted, scipy.signal.dlti if dt else scipy.signal.lti)
    back = hsv.from_scipy(converted)
    assert back.dt == original.dt
    assert (back.dt is True) == (dt is True)
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(back, name), getattr(original, name))


def test_scipy_forms_of_one_system():
    """(s + 3) / ((s + 1) (s^2 + 2 s + 5)), as three forms, and sampled."""
    zeros, poles = [-3.0], [-1.0, -1 + 2j, -1 - 2j]
    w = np.array([0.0, 0.7, 4.0])
    for dt, point in ((None, 1j * w), (0.1, np.exp(0.1j * w))):
        extra = {} if dt is None else {"dt": dt}
        expected = (point + 3) / ((point + 1) * (point**2 + 2 * point + 5))
        for form in (
            scipy.signal.ZerosPolesGain(zeros, poles, 1.0, **extra),
            scipy.signal.TransferFunction([1.0, 3.0], [1.0, 3.0, 7.0, 5.0], **extra),
            scipy.signal.TransferFunction([1.0, 3.0], [1.0, 3.0, 7.0, 5.0], **extra).to_ss(),
        ):
            sys = hsv.from_scipy(form)
            assert sys.n_states == 3
            assert not sys.is_complex
            assert sys.dt == (0 if dt is None else dt)
            np.testing.assert_allclose(sys.frequency_response(w)[:, 0, 0], expected, rtol=1e-12)


def test_poles_of_a_chain_keep_their_digits():
    """Thirty poles in [-3, -1]: the polynomial of degree 30 that SciPy would form has roots that are wrong in the first digit."""
    poles = -np.linspace(1, 3, 30)
    through_polynomials = scipy.signal.ZerosPolesGain([], poles, 1.0).to_ss().A
    assert np.abs(np.sort(np.linalg.eigvals(through_polynomials)) - np.sort(poles)).max() > 0.01
    sys = hsv.from_scipy(scipy.signal.ZerosPolesGain([], poles, np.prod(-poles)))
    w = np.array([0.0, 0.1, 0.5])
    expected = np.prod(-poles / (1j * w[:, None] - poles), axis=1)
    np.testing.assert_allclose(sys.frequency_response(w)[:, 0, 0], expected, rtol=1e-12)


def test_a_chain_of_complex_poles_and_of_as_many_zeros_as_poles():
    w = np.array([-1.0, 0.0, 2.0])
    point = np.exp(1j * w)
    odd = hsv.from_scipy(scipy.signal.ZerosPolesGain([0.3j], [0.5j, 0.2, -0.1], 2j, dt=True))
    np.testing.assert_allclose(
        odd.frequency_response(w)[:, 0, 0], 2j * (point - 0.3j) / ((point - 0.5j) * (point - 0.2) * (point + 0.1))
    )
    zeros, poles = [0.9, 0.1 + 0.2j, 0.1 - 0.2j], [0.5, 0.3 + 0.3j, 0.3 - 0.3j]
    even = hsv.from_scipy(scipy.signal.ZerosPolesGain(zeros, poles, -1.5, dt=True))
    assert not even.is_complex
    expected = -1.5 * np.prod((point[:, None] - zeros) / (point[:, None] - poles), axis=1)
    np.testing.assert_allclose(even.frequency_response(w)[:, 0, 0], expected)


def test_what_is_no_system_of_scipy_is_refused(rng):
    with pytest.raises(hsv.DtypeError, match=r"scipy\.signal, got tuple"):
        hsv.from_scipy(([1.0], [1.0, 1.0]))
    with pytest.raises(hsv.ShapeError, match="static gain"):
        hsv.from_scipy(scipy.signal.ZerosPolesGain([], [], 2.0))
    with pytest.raises(hsv.ShapeError, match="proper, got 2 zeros and 1 poles"):
        hsv.from_scipy(scipy.signal.ZerosPolesGain([1.0, 2.0], [0.5], 2.0, dt=True))
    with pytest.raises(hsv.ShapeError, match=r"batch of shape \(2,\)"):
        hsv.to_scipy(known.random_stable(rng, 3, 1, 1, dt=True, batch=(2,)))


# pyMOR: a stand-in with the documented methods of LTIModel, and the package itself where it is installed


class StandIn:
    """What pyMOR documents of LTIModel: D is None where it is zero, E where it is the identity; matrices may be sparse."""

    def __init__(self, *matrices, sampling_time=0):
        self.matrices, self.sampling_time = matrices, sampling_time

    def to_matrices(self):
        return self.matrices


def test_a_model_like_pymors_is_converted():
    A, B, C = scipy.sparse.diags([-1.0, -2.0]), np.ones((2, 1)), np.ones((1, 2))
    sys = hsv.from_pymor(StandIn(A, B, C, None, None))
    np.testing.assert_array_equal(sys.A, np.diag([-1.0, -2.0]))
    np.testing.assert_array_equal(sys.D, [[0.0]])
    assert sys.dt == 0
    assert hsv.from_pymor(StandIn(A * 0.1, B, C, np.ones((1, 1)), np.eye(2), sampling_time=0.5)).dt == 0.5
    halved = hsv.from_pymor(StandIn(A, B, C, None, scipy.sparse.diags([2.0, 2.0])))
    np.testing.assert_allclose(np.sort(halved.poles().real), [-1.0, -0.5])
    with pytest.raises(hsv.IllConditionedError):
        hsv.from_pymor(StandIn(A, B, C, None, np.diag([1.0, 0.0])))
    with pytest.raises(hsv.DtypeError, match=r"7 of them; convert model\.to_lti"):
        hsv.from_pymor(StandIn(*[A] * 7))
    with pytest.raises(hsv.DtypeError, match="LTIModel of pyMOR, got int"):
        hsv.from_pymor(1)


@pytest.mark.filterwarnings("ignore")  # of the packages that pyMOR imports
@pytest.mark.parametrize("dt", [0, True, 0.25])
def test_pymor_there_and_back(dt, rng):
    iosys = pytest.importorskip("pymor.models.iosys", reason="pyMOR is not installed: pip install pymor")
    original = known.random_stable(rng, 4, 2, 3, dt=dt)
    original = hsv.StateSpace(original.A, original.B, original.C, rng.normal(size=(3, 2)), dt=dt)
    converted = hsv.to_pymor(original)
    assert isinstance(converted, iosys.LTIModel)
    w = 0.7
    theirs = converted.transfer_function.eval_tf(np.exp(1j * w) if dt else 1j * w)
    np.testing.assert_allclose(original.frequency_response([w / (original.step or 1)])[0], theirs, rtol=1e-10)
    back = hsv.from_pymor(converted)
    assert back.dt == (1.0 if dt is True else dt)
    for name in "ABCD":
        np.testing.assert_array_equal(getattr(back, name), getattr(original, name))


def test_without_pymor(monkeypatch):
    monkeypatch.setitem(sys.modules, "pymor.models.iosys", None)
    with pytest.raises(hsv.MissingBackendError, match="pip install pymor"):
        hsv.to_pymor(hsv.StateSpace([[0.5]], [[1]], [[1]], dt=True))
