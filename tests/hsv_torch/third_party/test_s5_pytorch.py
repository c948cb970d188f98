"""S5 of s5-pytorch: its forward pass against the system that is shown, against ours, and after cuts."""

import copy
import importlib
import math

import numpy as np
import pytest
import torch

import hsv
import hsv_torch
from hsv_torch.testing import check_adapter
from hsv_torch.third_party import s5_pytorch
from hsv_torch.third_party._packages import required_package

s5 = required_package("s5", "s5-pytorch")  # a plain import warns that torch.jit is deprecated

READINGS = pytest.mark.parametrize(
    "criterion", [hsv_torch.ComplexHankel(), hsv_torch.RealHankel()], ids=lambda c: type(c).__name__
)
DIRECTIONS = pytest.mark.parametrize("bidir", [False, True], ids=["causal", "bidirectional"])
RULES = pytest.mark.parametrize("rule", ["zoh", "bilinear"])


def model(width=3, state_width=12, *, seed=0, rule="zoh", dt_min=0.02, **options):
    torch.manual_seed(seed)
    made = s5.S5(width, state_width, dt_min=dt_min, **options)
    if rule == "bilinear":  # the wrapper has no argument for it
        made.seq.discretize = s5.s5_model.discretize_bilinear
    return made


def precise(made):
    """Double precision, in which the package computes if all but its B is double; B is rounded by its forward pass."""
    made.seq.double()
    for name in ("Lambda", "C"):
        setattr(made.seq, name, torch.nn.Parameter(made.seq.get_parameter(name).detach().to(torch.complex128)))
    return made


def sequences(batch=2, length=40, width=3, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, width, generator=generator, dtype=torch.float64).to(dtype)


def realised(made, x):
    """Run the system that the adapter shows, a step at a time; D is the layer's."""
    system = hsv_torch.adapter_of(made.seq).system(made.seq)
    poles, B, C = system.poles(), system.B, system.C
    width = made.width

    def states(x):
        h, out = torch.zeros(len(x), len(poles), dtype=torch.complex128), []
        for u in x.unbind(1):
            h = poles * h + u.to(torch.complex128) @ B.mT
            out.append(h)
        return torch.stack(out, 1)

    x = x.double()
    y = (states(x) @ C[:width].mT).real + made.seq.D.detach().double() * x
    if made.seq.bidir:
        y = y + (states(x.flip(1)) @ C[width:].mT).real.flip(1)
    return y


def cut(made, rule, criterion):
    adapter = hsv_torch.adapter_of(made.seq)
    plan = adapter.reduce(made.seq, rule, criterion)
    return plan, adapter.apply(made.seq, plan)


@RULES
@DIRECTIONS
@pytest.mark.parametrize("options", [{}, {"block_count": 2}, {"bcInit": "complex_normal"}], ids=str)
def test_the_system_is_what_the_package_computes(options, bidir, rule):
    made, x = precise(model(rule=rule, bidir=bidir, **options)), sequences(dtype=torch.float64)
    np.testing.assert_allclose(made(x).detach(), realised(made, x), rtol=0, atol=1e-12)


@RULES
@DIRECTIONS
def test_our_layer_computes_the_same_from_its_parameters(bidir, rule):
    theirs = model(rule=rule, bidir=bidir)
    ours = hsv_torch.S5(3, 12, discretization=rule, bidirectional=bidir, clip_eigenvalues=False)
    with torch.no_grad():
        ours.Lambda_re.copy_(theirs.seq.Lambda.real)
        ours.Lambda_im.copy_(theirs.seq.Lambda.imag)
        ours.B.copy_(theirs.seq.B)
        ours.C.copy_(torch.view_as_real(theirs.seq.C) / 2)
        ours.log_step.copy_(theirs.seq.log_step)
        ours.D.copy_(theirs.seq.D)
    x = sequences()
    np.testing.assert_allclose(ours(x).detach(), theirs(x).detach(), rtol=0, atol=1e-5)
    ours.step_rescale = 0.5
    np.testing.assert_allclose(ours(x).detach(), theirs(x, step_scale=0.5).detach(), rtol=0, atol=1e-5)
    if not bidir:
        state, expected = torch.zeros(12, dtype=torch.complex64), ours(x).detach()
        for t in range(5):
            y, state = theirs.seq.forward_rnn(x[0, t], state, step_scale=0.5)
            np.testing.assert_allclose(y.detach(), expected[0, t], rtol=0, atol=1e-5)


@READINGS
@RULES
@DIRECTIONS
def test_a_cut_to_full_size_gives_the_same_outputs(bidir, rule, criterion):
    made, x = model(rule=rule, bidir=bidir), sequences()
    before = made(x).detach()
    cut(made, 12, criterion)
    assert made.seq.Lambda.shape == (12,)
    np.testing.assert_allclose(made(x).detach(), before, rtol=0, atol=1e-5)


@READINGS
@RULES
@DIRECTIONS
def test_a_smaller_layer_runs_and_obeys_the_bound(bidir, rule, criterion):
    """White noise through the package's own forward pass; and the stacked system's norm, before the factor of both directions."""
    made, x = precise(model(rule=rule, bidir=bidir)), sequences(8, 200, dtype=torch.float64)
    before, system = made(x).detach(), hsv_torch.adapter_of(made.seq).system(made.seq)
    plan, _ = cut(made, 5, criterion)
    assert made.seq.Lambda.shape[0] == plan.n_states_after <= 5
    assert made.seq.C.shape == (3, plan.n_states_after * (1 + bidir))
    after = made(x).detach()
    np.testing.assert_allclose(after, realised(made, x), rtol=0, atol=1e-5)  # the forward pass rounds B to float32
    assert 0 < float((after - before).norm()) <= plan.error_bound * float(x.norm())
    error = hsv.hinf_error(hsv.real_part(system), hsv.real_part(hsv_torch.adapter_of(made.seq).system(made.seq)))
    assert float(error) <= plan.error_bound / (1 + bidir) * (1 + 1e-6)  # the parameters are rounded to their dtypes


def padded(n, k, **options):
    """A layer of `n` states, and the same with `k` more that hardly matter, half unreachable and half unobservable."""
    small, big = precise(model(3, n, **options)).seq, precise(model(3, n + k, seed=1, **options)).seq
    with torch.no_grad():
        for name in ("Lambda", "log_step", "B"):
            big.get_parameter(name)[:n] = small.get_parameter(name)
        for direction in range(1 + big.bidir):
            start = direction * (n + k)
            big.C[:, start : start + n] = small.C[:, direction * n : (direction + 1) * n]
            big.C[:, start + n + k // 2 : start + n + k] *= 1e-12
        big.B[n : n + k // 2] *= 1e-12
    return big


@READINGS
@DIRECTIONS
@RULES
def test_carried_moments_are_those_of_the_small_model(rule, bidir, criterion):
    big = padded(4, 4, rule=rule, bidir=bidir)
    adapter = hsv_torch.adapter_of(big)
    x, target = sequences(3, dtype=torch.float64), sequences(3, seed=2, dtype=torch.float64)

    def gradients():
        big.zero_grad()
        torch.stack([(big(u) - v).square().mean() for u, v in zip(x, target, strict=True)]).mean().backward()
        return {name: big.get_parameter(name).grad for name in adapter.parameter_names(big)}

    def squares(gradients):
        real = {name: torch.view_as_real(g) if g.is_complex() else g for name, g in gradients.items()}
        return {name: torch.view_as_complex(g**2) if gradients[name].is_complex() else g**2 for name, g in real.items()}

    old = gradients()
    plan = adapter.reduce(big, 4, criterion)
    first, second = adapter.pull_back(plan, old, squared=False), adapter.pull_back(plan, squares(old), squared=True)
    adapter.apply(big, plan)
    assert big.Lambda.shape == (4,)
    new = gradients()
    for name, gradient in new.items():
        scale = float(gradient.abs().max())
        assert first[name].dtype == gradient.dtype
        # the forward pass rounds B to float32
        np.testing.assert_allclose(first[name], gradient, rtol=0, atol=1e-5 * scale, err_msg=name)
        if name != "log_step":  # a sum over pole and inputs
            np.testing.assert_allclose(second[name], squares(new)[name], rtol=0, atol=1e-5 * scale**2, err_msg=name)


OPTIMIZERS = {
    "adamw": (torch.optim.AdamW, {}),
    "adam amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "nadam": (torch.optim.NAdam, {}),
    "radam": (torch.optim.RAdam, {}),
    "adamax": (torch.optim.Adamax, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    "rmsprop centred": (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}),
    "sgd with momentum": (torch.optim.SGD, {"momentum": 0.9}),
}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_training_goes_on_with_the_moments_of_complex_parameters(name):
    """Optimizers keep moments of real and imaginary part: both are carried, second moments stay at or above 0."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, 3), s5.S5Block(3, 12, bidir=False), torch.nn.Linear(3, 2))
    kind, options = OPTIMIZERS[name]
    optimizer = kind(hsv_torch.parameter_groups(net, lr=1e-3, ssm_lr_factor=0.5, weight_decay=0.01), **options)

    def train():
        optimizer.zero_grad()
        loss = (net(sequences(width=1)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    first = train()
    for _ in range(3):
        train()
    ssm = net[1].s5.seq
    kinds = {key: value.dtype for key, value in optimizer.state[ssm.Lambda].items() if value.ndim}
    report = hsv_torch.compress_(net, hsv.Order(5), optimizer=optimizer)
    assert [(layer.layer, layer.n_states_after) for layer in report.layers] == [("1.s5.seq", 5)]
    assert kinds == {key: value.dtype for key, value in optimizer.state[ssm.Lambda].items() if value.ndim}
    assert any(dtype.is_complex for dtype in kinds.values())
    for parameter in ssm.parameters():
        for key, value in optimizer.state[parameter].items():
            if value.ndim:
                assert value.shape == parameter.shape
                real = torch.view_as_real(value) if value.is_complex() else value
                assert real.isfinite().all()
                if key in ("exp_avg_sq", "max_exp_avg_sq", "sum", "square_avg", "exp_inf"):
                    assert (real >= 0).all()
                    assert (real > 0).any()
    losses = [train() for _ in range(20)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < first


def test_adamw_carries_complex_moments_through_the_adapter():
    torch.manual_seed(0)
    net = torch.nn.Sequential(s5.S5(3, 10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    for step in range(2):  # as many as carried moments count for
        optimizer.zero_grad()
        net(sequences(seed=step)).square().mean().backward()
        optimizer.step()
    ssm = net[0].seq
    adapter = hsv_torch.adapter_of(ssm)
    plan = adapter.reduce(ssm, 4, hsv_torch.ComplexHankel())
    old = {name: optimizer.state[ssm.get_parameter(name)] for name in adapter.parameter_names(ssm)}
    expected = {
        key: adapter.pull_back(plan, {name: state[key] for name, state in old.items()}, squared=squared)
        for key, squared in (("exp_avg", False), ("exp_avg_sq", True))
    }
    hsv_torch.compress_(net, hsv.Order(4), optimizer=optimizer)
    for key, tensors in expected.items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(optimizer.state[ssm.get_parameter(name)][key], tensor)


class Batched(s5.S5SSM):
    """Takes a batch, as the wrapper does with `vmap`."""

    def forward(self, x):
        return torch.vmap(super().forward)(x)


@READINGS
@DIRECTIONS
def test_the_contract_of_layers_holds(bidir, criterion):
    def make(n_states):
        made = s5.S5(3, n_states, dt_min=0.02, bidir=bidir).seq
        made.__class__ = Batched
        return made

    found = check_adapter(make, inputs=sequences(3, 24), criteria=[criterion])
    assert {n for n, outcome in found.items() if outcome != "holds"} == {"step", "lengths", "observation"}


def test_checkpoints_of_cut_models(tmp_path):
    made, fresh = model(), model(seed=1)
    cut(made, 4, hsv_torch.ComplexHankel())
    hsv_torch.save_checkpoint(made, tmp_path / "model.pt")
    hsv_torch.load_into(fresh, tmp_path / "model.pt")
    assert torch.equal(fresh(sequences()), made(sequences()))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"liquid": True}, r"no linear time-invariant system \(liquid=True, degree=1\)"),
        ({"degree": 2}, r"no linear time-invariant system \(liquid=False, degree=2\)"),
        ({"bcInit": "factorized"}, "keeps B and C as products of factors"),
        ({"discretize": math.exp}, "discretisation .* is none of those of s5-pytorch"),
    ],
)
def test_layers_that_are_no_such_system_are_refused(change, match):
    made = model()
    for name, value in change.items():
        setattr(made.seq, name, value)
    state = copy.deepcopy(made.state_dict())
    with pytest.raises(hsv.HsvError, match=rf"seq.*{match}"):
        hsv_torch.compress_(made, hsv.Order(3))
    assert all(torch.equal(value, state[name]) for name, value in made.state_dict().items())


def test_a_missing_package_is_said(hide_package):
    hide_package("s5")
    with pytest.raises(hsv.MissingBackendError, match="`s5` is needed here and not installed; pip install s5-pytorch"):
        importlib.reload(s5_pytorch)
