import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.sparse
import torch

import hsv
from tests.hsv import reference_systems as known


def parse(html):
    """The tree of a fragment: malformed markup fails here."""
    return ElementTree.fromstring(f"<div>{html}</div>")


def test_a_small_system_shows_its_matrices():
    sys = hsv.StateSpace([[0.5, 0.25], [0.0, 0.125]], [[1.0], [2.0]], [[3.0, 4.0]], [[5.0]], dt=0.1)
    tree = parse(sys._repr_html_())
    assert tree.find(".//code").text == repr(sys)
    rows = [[float(cell.text) for cell in row] for row in tree.iter("tr")]
    assert rows == [[0.5, 0.25, 1.0], [0.0, 0.125, 2.0], [3.0, 4.0, 5.0]]


def test_a_complex_diagonal_system_of_torch_shows_its_matrices():
    sys = hsv.DiagonalStateSpace(torch.tensor([0.5 - 0.25j]), torch.ones(1, 1), torch.ones(1, 1), dt=True)
    assert next(parse(sys._repr_html_()).iter("td")).text == "0.5-0.25i"


@pytest.mark.parametrize("batch", [(), (3,)])
def test_a_large_system_or_a_batch_is_one_line(batch, rng):
    sys = known.random_stable(rng, 2 if batch else 30, 1, 1, dt=True, batch=batch)
    tree = parse(sys._repr_html_())
    assert tree.find(".//table") is None
    assert tree.find(".//code").text == repr(sys)


def test_a_reduction_says_what_it_did():
    system = known.slicot_power_system().system()
    red = hsv.balanced_truncation(system, 3)
    assert repr(red) == f"<Reduction: 7 -> 3 states, error at most {float(red.error_bound):.3g}>"
    cells = {row[0].text: row[1].text for row in parse(red._repr_html_()).iter("tr")}
    assert cells["states"] == "7 -> 3"
    assert cells["system"] == repr(red.system)
    assert cells["Hankel singular values"].startswith("2.51, 2.08")
    assert cells["error at most"] == f"{float(red.error_bound):.3g}"


def test_a_reduction_without_bound_or_with_notes():
    system = known.slicot_power_system().system()
    red = hsv.balanced_truncation(system, 3)
    unbounded = dataclasses.replace(red, error_bound=None, hankel_singular_values=None)
    assert repr(unbounded) == "<Reduction: 7 -> 3 states>"
    assert repr(dataclasses.replace(unbounded, left=None, right=None)) == "<Reduction: 7 -> 3 states>"
    unknown = hsv.Reduction(red.system, red.orders, None, None, None, None)
    assert repr(unknown) == "<Reduction: 3 states>"
    assert "error" not in unbounded._repr_html_()
    with pytest.warns(hsv.OrderWarning):
        capped = hsv.balanced_truncation(system + system, 10)
    assert repr(capped).endswith(", 1 note>")
    notes = [row[1].text for row in parse(capped._repr_html_()).iter("tr") if row[0].text == "note"]
    assert notes == list(capped.notes)


@pytest.mark.parametrize(
    "method",
    [
        hsv.balanced_truncation,
        hsv.singular_perturbation,
        hsv.hankel_norm_approximation,
        hsv.modal_truncation,
        hsv.stochastic_truncation,
    ],
)
def test_the_number_of_original_states_is_that_of_the_system(method):
    """Not that of the stable part, nor that of the values known."""
    poles = np.array([0.5, -0.25, 0.125])
    maps = np.eye(3) + 0.1, np.eye(3), np.eye(3)
    stable = hsv.StateSpace(np.diag(poles), *maps, dt=True)
    assert method(stable, 2).n_original_states == 3
    assert repr(method(stable, 2)).startswith("<Reduction: 3 -> 2 states")
    unstable = hsv.StateSpace(np.diag([2.0, *poles[1:]]), *maps, dt=True)
    red = hsv.reduce_stable_part(unstable, 1, method)
    assert red.n_original_states == 3
    assert repr(red).startswith("<Reduction: 3 -> 2 states")
    pair = hsv.StateSpace(np.diag(poles), np.stack([maps[0]] * 2), *maps[1:], dt=True)
    assert method(pair, 2).select(1).n_original_states == 3


@pytest.mark.parametrize("method", [hsv.balanced_truncation, hsv.singular_perturbation])
def test_the_number_of_original_states_of_a_sparse_system(method):
    ones = np.ones((30, 1))
    gramians = hsv.low_rank_gramians(
        hsv.SparseStateSpace(scipy.sparse.diags_array(-np.arange(1.0, 31)), ones, ones.T, dt=0)
    )
    assert len(hsv.hankel_singular_values(gramians)) < 30
    red = method(gramians, 2)
    assert red.n_original_states == 30
    assert repr(red).startswith("<Reduction: 30 -> 2 states")
    with pytest.raises(hsv.OrderError, match=r"Order must be in \[1, 30\], the number of states, got 31"):
        method(gramians, 31)


def test_a_batch_of_reductions_gives_the_range():
    gains = np.array([0.01, 1.0, 100.0])[:, None, None]
    batch = hsv.DiagonalStateSpace([0.9, 0.5, -0.5], np.ones((3, 1)), gains * np.ones((1, 3)), dt=True)
    red = hsv.balanced_truncation(batch, hsv.ErrorBound(0.1))
    orders = red.orders.tolist()
    assert min(orders) < max(orders)
    expected = f"<Reduction: batch (3,), 3 -> {min(orders)} to {max(orders)} states, error at most "
    assert repr(red).startswith(expected)
    assert repr(red.select(0)).startswith(f"<Reduction: 3 -> {orders[0]} states")
    assert "Hankel" not in red._repr_html_()
