import re

import pytest
import torch
from torch import nn

import hsv
import hsv_torch
from hsv_torch import LRU, RealHankel
from hsv_torch.adapters import adapter_of
from hsv_torch.compress import compress_
from hsv_torch.optimizer import (
    CARRIED_STEPS,
    UnknownOptimizerError,
    carry_moments,
    check_optimizer,
    parameter_groups,
    register_moments,
    replace_in_optimizer,
    replace_parameters,
)
from tests.hsv_torch.models import classifier, train_step
from tests.hsv_torch.toy_layer import Decays, third_party  # noqa: F401  (a fixture)

OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 1e-2}),
    "sgd with momentum": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "nesterov": True}),
    "sgd for-loop": (torch.optim.SGD, {"lr": 1e-2, "momentum": 0.9, "foreach": False}),
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "adam amsgrad": (torch.optim.Adam, {"lr": 1e-3, "amsgrad": True}),
    "adam fused": (torch.optim.Adam, {"lr": 1e-3, "fused": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-3, "weight_decay": 0.1}),
    "adamw for-loop": (torch.optim.AdamW, {"lr": 1e-3, "foreach": False}),
    "adamw foreach": (torch.optim.AdamW, {"lr": 1e-3, "foreach": True}),
    "adamw tensor lr": (torch.optim.AdamW, {"lr": torch.tensor(1e-3)}),
    "nadam": (torch.optim.NAdam, {"lr": 1e-3}),
    "radam": (torch.optim.RAdam, {"lr": 1e-3}),
    "adamax": (torch.optim.Adamax, {"lr": 1e-3}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3}),
    "rmsprop centred": (torch.optim.RMSprop, {"lr": 1e-3, "centered": True, "momentum": 0.9}),
}
FIRST = {"momentum_buffer", "exp_avg"}
SECOND = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"}


@pytest.fixture(params=OPTIMIZERS, ids=list(OPTIMIZERS))
def trained(request):
    kind, options = OPTIMIZERS[request.param]
    model = classifier()
    optimizer = kind(model.parameters(), **options)
    for step in range(3):
        train_step(model, optimizer, step)
    return model, optimizer


def test_the_optimizer_holds_exactly_the_new_parameters(trained):
    model, optimizer = trained
    names = [name for name, _ in model.named_parameters()]
    compress_(model, 5, optimizer=optimizer)
    held = optimizer.param_groups[0]["params"]
    assert [name for name, _ in model.named_parameters()] == names
    assert all(a is b for a, b in zip(held, model.parameters(), strict=True))
    assert set(map(id, optimizer.state)) <= set(map(id, held))


def test_moments_have_the_new_shapes_and_training_goes_on(trained):
    model, optimizer = trained
    had_state = {name for name, p in model.named_parameters() if optimizer.state.get(p)}
    compress_(model, 5, optimizer=optimizer)
    assert {name for name, p in model.named_parameters() if optimizer.state.get(p)} == had_state
    for p in model.parameters():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, torch.Tensor) and value.ndim:
                assert value.shape == p.shape
                assert value.dtype == p.dtype
                assert torch.isfinite(value).all()
                if key in SECOND:
                    assert (value >= 0).all()
    before = [p.detach().clone() for p in model.parameters()]
    assert all(torch.isfinite(torch.tensor(train_step(model, optimizer, step))) for step in range(3, 6))
    assert all((p != b).any() and torch.isfinite(p).all() for p, b in zip(model.parameters(), before, strict=True))


def test_step_counts_and_options_stay(trained):
    model, optimizer = trained
    ssm = model.blocks[0].ssm
    counted = {key: v for key, v in optimizer.state[ssm.B].items() if key in ("step", "mu_product")}
    if isinstance(optimizer, torch.optim.Adam):
        counted["step"] = CARRIED_STEPS
    options = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    compress_(model, 5, optimizer=optimizer)
    for key, value in counted.items():
        assert optimizer.state[ssm.B][key] == value
    assert {key: value for key, value in optimizer.param_groups[0].items() if key != "params"} == options


def test_moments_go_through_the_adapter_as_covectors(trained, monkeypatch):
    model, optimizer = trained
    layer = model.blocks[0].ssm
    adapter = adapter_of(layer)
    cut = adapter.reduce(layer, 5, RealHankel())
    old = {name: layer.get_parameter(name) for name in adapter.parameter_names(layer)}
    old_state = {name: dict(optimizer.state.get(p, {})) for name, p in old.items()}
    carry_moments(optimizer, adapter, cut, adapter.apply(layer, cut))
    for key, squared in [(key, False) for key in FIRST] + [(key, True) for key in SECOND]:
        if isinstance(optimizer, torch.optim.RMSprop) and (key == "momentum_buffer" or optimizer.defaults["centered"]):
            continue  # the next test
        moments = {name: state[key] for name, state in old_state.items() if state.get(key) is not None}
        if moments:
            for name, expected in adapter.pull_back(cut, moments, squared=squared).items():
                found = optimizer.state[layer.get_parameter(name)][key]
                if isinstance(optimizer, torch.optim.Adam):  # the values after the bias correction
                    beta = 0.999 if squared else 0.9
                    found, expected = found / (1 - beta**CARRIED_STEPS), expected / (1 - beta**3)
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
                else:
                    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_carried_moments_of_adam_count_as_two_steps():
    """The first step after the cut is made with a mean of what was carried and one gradient, weighed as if there had been two."""
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(50):
        train_step(model, optimizer, step)
    old = optimizer.state[model.head.weight]["exp_avg"].clone()
    compress_(model, 5, optimizer=optimizer)
    assert optimizer.state[model.head.weight]["step"] == 50  # only what was replaced
    assert torch.equal(optimizer.state[model.head.weight]["exp_avg"], old)
    p = model.blocks[0].ssm.B
    state = dict(optimizer.state[p])
    before, m, v = p.detach().clone(), state["exp_avg"] / (1 - 0.9**2), state["exp_avg_sq"] / (1 - 0.999**2)
    train_step(model, optimizer, 50)
    m = (0.9 * (1 - 0.9**2) * m + 0.1 * p.grad) / (1 - 0.9**3)
    v = (0.999 * (1 - 0.999**2) * v + 0.001 * p.grad**2) / (1 - 0.999**3)
    torch.testing.assert_close(p.detach(), before - 1e-3 * m / (v.sqrt() + 1e-8), rtol=1e-5, atol=1e-8)


def test_moments_of_one_step_keep_their_count():
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer, 0)
    compress_(model, 5, optimizer=optimizer)
    assert optimizer.state[model.blocks[0].ssm.B]["step"] == 1


def test_rmsprop_keeps_a_variance_and_divides_the_carried_momentum_by_the_new_root():
    model = classifier(n_blocks=1)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, centered=True, momentum=0.9, eps=1e-8)
    for step in range(4):
        train_step(model, optimizer, step)
    layer = model.blocks[0].ssm
    adapter = adapter_of(layer)
    cut = adapter.reduce(layer, 5, RealHankel())
    state = {name: dict(optimizer.state[layer.get_parameter(name)]) for name in adapter.parameter_names(layer)}
    root = {n: (s["square_avg"] - s["grad_avg"] ** 2).clamp_min(0).sqrt() + 1e-8 for n, s in state.items()}
    momentum = adapter.pull_back(cut, {n: s["momentum_buffer"] * root[n] for n, s in state.items()}, squared=False)
    carry_moments(optimizer, adapter, cut, adapter.apply(layer, cut))
    for name, expected in momentum.items():
        new = optimizer.state[layer.get_parameter(name)]
        variance = new["square_avg"] - new["grad_avg"] ** 2
        assert (variance >= -1e-6 * new["square_avg"]).all()
        torch.testing.assert_close(
            new["momentum_buffer"] * (variance.clamp_min(0).sqrt() + 1e-8), expected, rtol=1e-2, atol=1e-5
        )


def test_carried_first_moment_of_a_gradient_is_the_small_models_gradient():
    torch.manual_seed(0)
    small, padded = LRU(3, 6, dtype=torch.float64), LRU(3, 10, dtype=torch.float64)
    with torch.no_grad():
        for name, p in small.named_parameters():
            q = padded.get_parameter(name)
            if name == "D":
                q.copy_(p)
            elif name == "C":
                q[:, :6] = p
                q[:, 6:] = 0
            else:
                q[:6] = p
        padded.B[6:] = 0
    x, target = torch.randn(4, 30, 3, dtype=torch.float64), torch.randn(4, 30, 3, dtype=torch.float64)
    optimizer = torch.optim.SGD(padded.parameters(), lr=0.0, momentum=0.9)
    (padded(x) - target).square().mean().backward()
    optimizer.step()  # the momentum buffer is now the gradient, and nothing moved
    compress_(nn.Sequential(padded), 6, optimizer=optimizer)
    assert padded.n_states == 6
    for p in padded.parameters():  # the gradient has gone the same way
        torch.testing.assert_close(p.grad, optimizer.state[p]["momentum_buffer"], rtol=1e-12, atol=1e-15)
    optimizer.zero_grad()
    (padded(x) - target).square().mean().backward()
    for p in padded.parameters():
        torch.testing.assert_close(optimizer.state[p]["momentum_buffer"], p.grad, rtol=1e-8, atol=1e-10)


def test_reset_forgets_only_what_was_replaced():
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    train_step(model, optimizer, 0)
    head = optimizer.state[model.head.weight]["exp_avg"].clone()
    compress_(model, 5, optimizer=optimizer, moments="reset")
    assert model.blocks[0].ssm.B not in optimizer.state
    assert torch.equal(optimizer.state[model.head.weight]["exp_avg"], head)
    train_step(model, optimizer, 1)


def test_an_optimizer_that_made_no_step_has_nothing_to_carry():
    model = classifier()
    optimizer = torch.optim.AdamW(model.parameters())
    compress_(model, 5, optimizer=optimizer)
    assert not optimizer.state
    train_step(model, optimizer, 0)


def test_frozen_parameters_have_no_moments_before_or_after():
    model = classifier()
    for block in model.blocks:
        block.ssm.nu_log.requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    train_step(model, optimizer, 0)
    compress_(model, 5, optimizer=optimizer)
    ssm = model.blocks[0].ssm
    assert not ssm.nu_log.requires_grad
    assert ssm.nu_log not in optimizer.state
    assert ssm.B.requires_grad
    assert optimizer.state[ssm.B]["exp_avg"].shape == ssm.B.shape


def test_groups_keep_their_order_and_a_scheduler_its_place():
    model = classifier()
    optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-2, ssm_lr_factor=0.5, weight_decay=0.05))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for step in range(5):
        train_step(model, optimizer, step)
        scheduler.step()
    lists = [group["params"] for group in optimizer.param_groups]
    positions = [[{id(p): n for n, p in model.named_parameters()}[id(p)] for p in ps] for ps in lists]
    rates = scheduler.get_last_lr()
    compress_(model, 5, optimizer=optimizer)
    assert all(group["params"] is params for group, params in zip(optimizer.param_groups, lists, strict=True))
    assert positions == [[{id(p): n for n, p in model.named_parameters()}[id(p)] for p in ps] for ps in lists]
    assert [group["lr"] for group in optimizer.param_groups] == rates
    train_step(model, optimizer, 5)
    scheduler.step()
    assert scheduler.get_last_lr() != rates


class Lion(torch.optim.Optimizer):
    """A third party's optimizer."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-3})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 0.1)
                p.sub_(group["lr"] * momentum.sign())


class TestUnknownOptimizer:
    def test_is_refused_before_anything_changes(self):
        model = classifier()
        optimizer = Lion(model.parameters())
        train_step(model, optimizer, 0)
        before = dict(model.named_parameters())
        with pytest.raises(
            UnknownOptimizerError, match=r"Lion.*known: .*AdamW.*register_moments\(Lion.*moments='reset'"
        ):
            compress_(model, 5, optimizer=optimizer)
        assert all(p is before[name] for name, p in model.named_parameters())
        assert model.blocks[0].ssm.B in optimizer.state

    def test_may_be_reset(self):
        model = classifier()
        optimizer = Lion(model.parameters())
        train_step(model, optimizer, 0)
        compress_(model, 5, optimizer=optimizer, moments="reset")
        train_step(model, optimizer, 1)

    def test_may_be_described(self, monkeypatch):
        monkeypatch.setattr("hsv_torch.optimizer._RULES", dict(__import__("hsv_torch.optimizer").optimizer._RULES))
        register_moments(Lion, first=["momentum"])
        model = classifier()
        optimizer = Lion(model.parameters())
        train_step(model, optimizer, 0)
        compress_(model, 5, optimizer=optimizer)
        ssm = model.blocks[0].ssm
        assert optimizer.state[ssm.B]["momentum"].shape == ssm.B.shape

    def test_with_a_known_parent_but_a_tensor_of_its_own_is_refused(self):
        class Odd(torch.optim.AdamW):
            pass

        model = classifier()
        optimizer = Odd(model.parameters())
        train_step(model, optimizer, 0)
        optimizer.state[model.blocks[1].ssm.B]["curvature"] = torch.ones_like(model.blocks[1].ssm.B)
        with pytest.raises(UnknownOptimizerError, match=r"'curvature' of shape \(16, 4, 2\) for 'blocks.1.ssm.B'"):
            compress_(model, 5, optimizer=optimizer)
        assert model.blocks[0].ssm.n_states == 16

    def test_lbfgs_is_refused_even_with_reset(self):
        model = classifier()
        with pytest.raises(UnknownOptimizerError, match="flat history"):
            compress_(model, 5, optimizer=torch.optim.LBFGS(model.parameters()), moments="reset")

    def test_register_moments_wants_an_optimizer_type(self):
        with pytest.raises(TypeError, match=r"subclass of torch.optim.Optimizer"):
            register_moments(nn.Linear, first=["m"])


def test_an_optimizer_that_does_not_train_the_layer_is_an_error():
    model, other = classifier(), classifier()
    with pytest.raises(hsv.HsvError, match=r"does not hold the parameter 'blocks.0.ssm.nu_log'"):
        compress_(model, 5, optimizer=torch.optim.SGD(other.parameters(), lr=0.1))


def test_an_optimizer_that_is_none_is_an_error():
    with pytest.raises(TypeError, match=r"must be a torch.optim.Optimizer, got str"):
        check_optimizer("adam", {})
    with pytest.raises(hsv.HsvError, match="'carry' or 'reset', got 'keep'"):
        check_optimizer(torch.optim.SGD([nn.Parameter(torch.zeros(1))]), {}, "keep")


class TestReplaceParameters:
    def test_everywhere_under_every_name(self):
        model = classifier()
        old = model.blocks[0].ssm.B
        model.watched = nn.ParameterList([old])
        new = nn.Parameter(torch.zeros(2, 4, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        replace_parameters(model, {old: new}, optimizer)
        assert model.blocks[0].ssm.B is new
        assert model.watched[0] is new
        assert sum(p is new for p in optimizer.param_groups[0]["params"]) == 1
        assert not any(p is old for p in optimizer.param_groups[0]["params"])

    def test_flags_and_attributes_stay(self):
        old, new = nn.Parameter(torch.zeros(3), requires_grad=False), nn.Parameter(torch.zeros(2))
        old._no_weight_decay = True
        replace_parameters(nn.ParameterList([old]), {old: new})
        assert not new.requires_grad
        assert new._no_weight_decay

    def test_hooks_are_spoken_of(self):
        model = nn.ParameterList([nn.Parameter(torch.zeros(3))])
        model[0].register_hook(lambda gradient: gradient)
        with pytest.warns(UserWarning, match="gradient hooks stay with the old one"):
            replace_parameters(model, {model[0]: nn.Parameter(torch.zeros(2))})


class TestNewParameters:
    """A cut that keeps transforms adds parameters to the layer."""

    def make(self, **options):
        torch.manual_seed(0)
        model = nn.Sequential(hsv_torch.Mamba(4, 8), nn.Linear(4, 1))
        return model, {"criterion": hsv_torch.ChannelBasis(), "calibration": torch.randn(6, 10, 4), **options}

    def test_those_of_a_frozen_layer_are_frozen_and_it_can_be_cut_again(self):
        model, options = self.make()
        model[0].requires_grad_(False)
        optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        schedule = hsv_torch.Schedule(10, at=(1, 2))
        compressor = hsv_torch.InTrainingCompressor(model, optimizer, rule=[6, 4], schedule=schedule, **options)
        compressor.step(), compressor.step()
        assert model[0].n_states == 4
        assert model[0].B_transform is not None
        assert not any(p.requires_grad for p in model[0].parameters())
        assert len(optimizer.param_groups[0]["params"]) == 2

    def test_they_are_trained_if_one_of_those_that_are_replaced_is(self):
        model, options = self.make()
        model[0].A_log.requires_grad_(False)
        optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        compress_(model, 4, optimizer=optimizer, **options)
        assert not model[0].A_log.requires_grad
        held = optimizer.param_groups[0]["params"]
        assert all(any(p is q for q in held) for p in (model[0].B_transform, model[0].C_transform))

    def test_names_in_the_groups_follow(self):
        model, options = self.make()
        optimizer = torch.optim.AdamW(model.named_parameters())
        compress_(model, 6, optimizer=optimizer, **options)
        (group,) = optimizer.param_groups
        parameters = dict(model.named_parameters())
        assert "0.B_transform" in group["param_names"]
        assert all(parameters[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))
        assert len(group["params"]) == len(parameters)
        new = nn.Parameter(torch.zeros(3))
        replaced = {"A_log": (model[0].A_log, new), "B_transform": (model[0].B_transform, None)}
        replace_in_optimizer(optimizer, replaced)
        expected = parameters | {"0.A_log": new}
        assert "0.B_transform" not in group["param_names"]
        assert all(expected[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))

    def test_names_of_ones_own_stay_and_new_ones_follow_them(self):
        model, options = self.make()
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW([(f"mine {i}", p) for i, p in enumerate(parameters)])
        compress_(model, 6, optimizer=optimizer, **options)
        (group,) = optimizer.param_groups
        assert group["param_names"][: len(parameters)] == [f"mine {i}" for i in range(len(parameters))]
        assert all(name.endswith(("_transform", "A_imag")) for name in group["param_names"][len(parameters) :])
        assert len(group["param_names"]) == len(group["params"])


class TestParameterGroups:
    def test_recurrent_parameters_stand_apart_without_decay(self):
        model = classifier(n_blocks=1)
        recurrent, rest = parameter_groups(model, lr=1e-3, ssm_lr_factor=0.25, weight_decay=0.05)
        assert (recurrent["lr"], recurrent["weight_decay"]) == (2.5e-4, 0.0)
        assert (rest["lr"], rest["weight_decay"]) == (1e-3, 0.05)
        ssm = model.blocks[0].ssm
        assert {id(p) for p in recurrent["params"]} == {id(p) for p in (ssm.nu_log, ssm.theta, ssm.gamma_log, ssm.B)}
        assert len(recurrent["params"]) + len(rest["params"]) == len(list(model.parameters()))

    @pytest.mark.parametrize(
        "criterion", [hsv_torch.ChannelBasis(), hsv_torch.SharedBasis()], ids=lambda c: type(c).__name__
    )
    @pytest.mark.parametrize("make", [hsv_torch.Mamba, hsv_torch.Mamba2], ids=lambda m: m.__name__)
    def test_transforms_stand_where_a_cut_puts_them(self, make, criterion, tmp_path):
        if make is hsv_torch.Mamba2:
            criterion = hsv_torch.SharedBasis()
        torch.manual_seed(0)
        model, x = nn.Sequential(make(4, 8), nn.Linear(4, 1)), torch.randn(6, 10, 4)
        optimizer = torch.optim.AdamW(parameter_groups(model, lr=1e-3, weight_decay=0.1))
        compress_(model, 4, criterion=criterion, calibration=x, optimizer=optimizer)
        assert model[0].B_transform is not None
        model(x).sum().backward()
        optimizer.step()
        hsv_torch.save_checkpoint(model, tmp_path / "file", optimizer=optimizer)
        fresh = parameter_groups(model, lr=1e-3, weight_decay=0.1)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for held, group in zip(optimizer.param_groups, fresh, strict=True):
            assert {names[id(p)] for p in held["params"]} == {names[id(p)] for p in group["params"]}
        if model[0].B_transform.ndim == 4:  # complex poles
            assert any(model[0].A_imag is p for p in fresh[0]["params"])
        hsv_torch.load_into(model, tmp_path / "file", optimizer=torch.optim.AdamW(fresh))

    def test_frozen_ones_are_left_out(self):
        model = classifier(n_blocks=1)
        for name in ("nu_log", "theta", "gamma_log", "B"):
            model.blocks[0].ssm.get_parameter(name).requires_grad_(False)
        (rest,) = parameter_groups(model, lr=1e-3)
        assert rest["name"] == "rest"

    @pytest.mark.usefixtures("third_party")
    def test_of_a_third_partys_layer(self):
        recurrent, rest = parameter_groups(nn.Sequential(Decays(2, 3)), lr=1.0)
        assert [len(group["params"]) for group in (recurrent, rest)] == [2, 1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": 0.0}, "`lr` must be a positive number, got 0.0"),
            ({"lr": float("nan")}, "`lr` must be a positive number, got nan"),
            ({"lr": 1.0, "ssm_lr_factor": -1.0}, "`ssm_lr_factor` must be a positive number"),
            ({"lr": 1.0, "weight_decay": -0.1}, "`weight_decay` must be a number not below 0"),
        ],
    )
    def test_bad_numbers(self, options, message):
        with pytest.raises(hsv.HsvError, match=re.escape(message)):
            parameter_groups(classifier(), **options)

    def test_no_known_layer(self):
        with pytest.raises(hsv.HsvError, match="no layer that a known adapter serves"):
            parameter_groups(nn.Linear(2, 2), lr=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"capturable": True}, {"fused": True}, {"foreach": True}], ids=str)
def test_on_a_gpu(options):
    model = classifier().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **options)
    x, y = torch.randn(5, 12, 1, device="cuda"), torch.randint(3, (5,), device="cuda")
    for cut in (False, True):
        if cut:
            compress_(model, 5, optimizer=optimizer)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    state = optimizer.state[model.blocks[0].ssm.B]
    assert state["step"] == 2
    assert state["exp_avg"].device == model.blocks[0].ssm.B.device
