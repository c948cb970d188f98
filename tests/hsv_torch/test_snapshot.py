import pytest
import torch
from torch import nn

import hsv
from hsv_torch.snapshot import Placement, RandomState, Snapshot, deep_copy, keepable
from tests.hsv_torch.models import classifier, train_step


def test_training_modes_of_single_modules_are_put_back():
    model = classifier()
    model.blocks[0].eval()
    snapshot = Snapshot.take(model, None)
    model.train()
    model.head.eval()
    snapshot.restore()
    assert [module.training for module in (model, model.blocks[0], model.blocks[0].norm, model.head)] == [
        True,
        False,
        False,
        True,
    ]


def test_gradients_are_put_back():
    model = classifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_step(model, optimizer, 0)
    model.head.bias.grad = None
    kept = {name: p.grad if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    snapshot = Snapshot.take(model, optimizer)
    train_step(model, optimizer, 1)
    model.encoder.weight.grad = None
    snapshot.restore()
    assert model.head.bias.grad is None
    assert all(kept[name] is None or torch.equal(p.grad, kept[name]) for name, p in model.named_parameters())


def test_buffers_that_were_assigned_anew_are_the_old_objects_again():
    model = classifier()
    buffer = model.blocks[0].norm.running_mean
    snapshot = Snapshot.take(model, None)
    buffer.add_(3)
    model.blocks[0].norm.running_mean = torch.ones(4)
    snapshot.restore()
    assert model.blocks[0].norm.running_mean is buffer
    assert (buffer == 0).all()


def test_an_option_that_is_a_tensor_keeps_its_object():
    rate = torch.tensor(0.1)
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    snapshot = Snapshot.take(model, optimizer)
    rate.mul_(0.5)
    optimizer.param_groups[0]["betas"] = (0.5, 0.5)
    snapshot.restore()
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.1
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_placement_copies_nothing():
    model = classifier()
    optimizer = torch.optim.Adam(model.parameters())
    train_step(model, optimizer, 0)
    old = model.head.weight
    placement = Placement(model, optimizer, [model.head])
    model.head.weight = nn.Parameter(torch.zeros(3, 4))
    model.head.remark = "new"
    optimizer.state.clear()
    placement.restore()
    assert model.head.weight is old
    assert not hasattr(model.head, "remark")
    assert set(optimizer.state[old]) == {"step", "exp_avg", "exp_avg_sq"}


def test_values_of_another_model_are_refused():
    stored = Snapshot.take(classifier(n_blocks=1), None).state_dict()
    with pytest.raises(hsv.HsvError, match="belongs to another model"):
        Snapshot.take(classifier(), None).load_values(stored)


def test_values_of_another_size_are_refused():
    stored = Snapshot.take(classifier(n_states=5), None).state_dict()
    with pytest.raises(hsv.HsvError, match=r"another model: 'blocks.0.ssm.nu_log' has the shape \(5,\) there"):
        Snapshot.take(classifier(), None).load_values(stored)


def test_values_of_other_objects_are_refused():
    model = classifier()
    stored = Snapshot.take(model, None, objects={"a": nn.Linear(1, 1)}).state_dict()
    with pytest.raises(hsv.HsvError, match=r"the objects \['a'\], and `state` has \['b'\]"):
        Snapshot.take(model, None, objects={"b": nn.Linear(1, 1)}).load_values(stored)


def test_values_of_another_optimizer_are_refused():
    model = classifier()
    one, two = (torch.optim.AdamW(groups) for groups in (model.parameters(), [{"params": [p]} for p in model.parameters()]))  # fmt: skip
    train_step(model, two, 0)
    stored = Snapshot.take(model, two).state_dict()
    with pytest.raises(
        hsv.HsvError, match=r"an optimizer of \d+ groups, and this one has 1; it has no parameters at \['1.0'"
    ):
        Snapshot.take(model, one).load_values(stored)


def test_random_state_goes_through_a_file(tmp_path):
    state = RandomState.take()
    torch.save(state.state_dict(), tmp_path / "random.pt")
    draw = torch.rand(3)
    RandomState.from_state_dict(torch.load(tmp_path / "random.pt", weights_only=True)).restore()
    assert torch.equal(torch.rand(3), draw)


def test_what_can_be_kept():
    assert keepable(torch.Generator())
    assert keepable(nn.Linear(1, 1))
    assert not keepable(object())


def test_a_deep_copy_shares_nothing():
    weight = nn.Parameter(torch.ones(2))
    value = {"a": [weight * 2, (1, {"b": torch.zeros(1)})], "c": {1, 2}}
    twin = deep_copy(value)
    assert not twin["a"][0].requires_grad
    twin["a"][1][1]["b"] += 1
    twin["c"].add(3)
    assert value["a"][1][1]["b"] == 0
    assert value["c"] == {1, 2}
