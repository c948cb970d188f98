import builtins
import sys

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import hsv
from tests.hsv import reference_systems as known


def new_axes():
    return Figure().subplots()


def line(ax, label):
    [found] = [x for x in ax.get_lines() if x.get_label() == label]
    return found


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def bar_tops(ax):
    return [bar.get_y() + bar.get_height() for container in ax.containers for bar in container]


def draw(ax):
    """Whatever goes wrong with ticks and scales does so here."""
    ax.figure.canvas.draw()


@pytest.fixture
def power():
    return known.slicot_power_system()


# Hankel singular values


def test_bars_are_the_values_and_the_curve_is_the_bound(power):
    sigma = hsv.hankel_singular_values(power.system())
    red = hsv.balanced_truncation(power.system(), 3)
    ax = new_axes()
    assert hsv.plot_hankel_values(red, ax) is ax
    draw(ax)
    np.testing.assert_allclose(bar_tops(ax), sigma, rtol=1e-10)
    assert [len(container) for container in ax.containers] == [3, 4]  # kept, discarded
    [curve] = [x for x in ax.get_lines() if "error bound" in x.get_label()]
    np.testing.assert_array_equal(curve.get_xdata(), np.arange(1, 7))
    tails = 2 * np.array([sigma[r:].sum() for r in range(1, 7)])
    np.testing.assert_allclose(curve.get_ydata(), tails, rtol=1e-10)
    [mark] = [x for x in ax.get_lines() if x.get_label().startswith("order 3")]
    assert list(mark.get_xdata()) == [3.5, 3.5]
    assert mark.get_label() == f"order 3, error at most {float(red.error_bound):.2g}"
    assert ax.get_yscale() == "log"
    low, high = ax.get_ylim()
    assert low < sigma[-1] < tails[0] < high


def test_a_system_has_no_mark(power):
    ax = hsv.plot_hankel_values(power.system(), new_axes())
    assert len(ax.containers) == 1
    assert not any("order 3" in text for text in labels(ax))


def test_values_that_are_rounding_lie_in_a_band_and_end_the_axis():
    sys_ = known.heat_equation(100).system()
    ax = hsv.plot_hankel_values(sys_, new_axes())
    draw(ax)
    assert "rounding of the largest value" in labels(ax)
    assert "of 100; the rest is rounding" in ax.get_xlabel()
    assert ax.get_xlim()[1] < 40
    assert ax.get_ylim()[0] > 1e-17


@pytest.mark.parametrize("method", [hsv.balanced_truncation, hsv.singular_perturbation, hsv.hankel_norm_approximation])
def test_the_curve_is_the_bound_of_a_reduction_where_rounding_counts(method):
    sys_ = known.heat_equation(100).system()
    red = method(sys_, 14)
    assert red.error_bound > 2 * red.hankel_singular_values[14:].sum() * 1.4
    for source in (sys_, red):
        curve = line(hsv.plot_hankel_values(source, new_axes()), "error bound of order $r$: $2\\,\\sum_{i>r}\\sigma_i$")
        np.testing.assert_allclose(curve.get_ydata()[13], red.error_bound, rtol=1e-3)


def test_many_values_are_one_area_not_bars():
    poles = np.linspace(0.1, 0.9, 60)
    sys_ = hsv.DiagonalStateSpace(poles, np.eye(60), np.diag(np.linspace(1, 2, 60)), dt=True)
    ax = hsv.plot_hankel_values(hsv.balanced_truncation(sys_, 20), new_axes())
    draw(ax)
    assert not ax.containers
    areas = [patch for patch in ax.patches if hasattr(patch, "get_data")]
    assert [len(area.get_data().values) for area in areas] == [20, 40]
    drawn = np.concatenate([area.get_data().values for area in areas])
    np.testing.assert_allclose(drawn, hsv.hankel_singular_values(sys_), rtol=1e-10)


@pytest.mark.parametrize("C", [0.0, 1.0])
def test_one_state_and_no_value_at_all(C):
    ax = hsv.plot_hankel_values(hsv.StateSpace([[0.5]], [[1.0]], [[C]], dt=True), new_axes())
    draw(ax)
    assert [text.get_text() for text in ax.texts] == ([] if C else ["all values are zero"])


def test_a_reduction_without_hankel_values_says_so(power):
    red = hsv.modal_truncation(power.system(), 2)
    with pytest.raises(hsv.HsvError, match="has no Hankel singular values"):
        hsv.plot_hankel_values(red, new_axes())


# Gains over frequency


def test_curves_are_singular_values_of_the_responses(power):
    sys_ = power.system()
    red = hsv.balanced_truncation(sys_, 3)
    w = np.geomspace(0.1, 10, 7)
    ax = hsv.plot_sigma(sys_, red, new_axes(), w=w)
    draw(ax)
    assert labels(ax) == ["original, 7 states", "reduced, 3 states", "error", "error bound"]
    G, Gr = sys_.frequency_response(w), red.system.frequency_response(w)
    for label, matrices in (("original, 7 states", G), ("reduced, 3 states", Gr), ("error", G - Gr)):
        found = line(ax, label)
        np.testing.assert_allclose(found.get_xdata(), w)
        np.testing.assert_allclose(found.get_ydata(), np.linalg.norm(matrices, 2, axis=(1, 2)), rtol=1e-9)
    assert line(ax, "error bound").get_ydata()[0] == red.error_bound
    assert len(ax.get_lines()) == 2 + 2 + 1 + 1  # two singular values of each, error, bound
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert ax.get_xlabel() == "frequency (rad/s)"


def test_chosen_frequencies_find_the_peaks():
    """Damping ratios of 1e-5 at three frequencies: a grid without a thought for the poles misses them by orders of magnitude."""
    poles = np.array([w * (-1e-5 + 1j) for w in (1.0, 7.3, 450.0)])
    sys_ = hsv.real_part(hsv.DiagonalStateSpace(poles, np.ones((3, 1)), np.ones((1, 3)), dt=0))
    for s in (sys_, sys_.to_dense()):
        found = line(hsv.plot_sigma(s, ax=new_axes()), "original, 6 states")
        np.testing.assert_allclose(np.max(found.get_ydata()), hsv.hinf_norm(s), rtol=1e-3)
        assert found.get_xdata()[0] <= 0.1001
        assert found.get_xdata()[-1] >= 4500


@pytest.mark.parametrize("dt", [True, 0.1])
def test_discrete_systems_end_at_half_the_sampling_rate(dt, rng):
    ax = hsv.plot_sigma(known.random_stable(rng, 5, 1, 1, dt=dt), ax=new_axes())
    draw(ax)
    assert ax.get_xlim()[1] == pytest.approx(np.pi / float(dt))
    assert ax.get_xlim()[0] > 0
    assert ax.get_xlabel() == f"frequency ({'rad/sample' if dt is True else 'rad/s'})"


@pytest.mark.parametrize("dt", [0, True, 0.1])
def test_complex_systems_have_both_signs(dt):
    poles = np.array([-0.1 + 2j, -0.5 - 1j])
    sys_ = hsv.DiagonalStateSpace(np.exp(poles * float(dt)) if dt else poles, np.ones((2, 1)), np.ones((1, 2)), dt=dt)
    ax = hsv.plot_sigma(sys_, ax=new_axes())
    draw(ax)
    low, high = ax.get_xlim()
    assert low == -high
    curve = line(ax, "original, 2 states")
    assert curve.get_xdata()[np.argmax(curve.get_ydata())] == pytest.approx(2.0, abs=0.05)
    np.testing.assert_allclose(np.max(curve.get_ydata()), hsv.hinf_norm(sys_), rtol=1e-2)
    one_sided = hsv.plot_sigma(hsv.real_part(sys_), ax=new_axes())
    assert one_sided.get_xlim()[0] > 0


def test_unstable_systems_and_poles_on_the_boundary_have_a_response_too():
    sys_ = hsv.StateSpace([[1.0, 0.0], [0.0, 2.0]], [[1.0], [1.0]], [[1.0, 1.0]], dt=True)
    ax = hsv.plot_sigma(sys_, ax=new_axes(), w=[0.0, 1.0, np.pi])
    draw(ax)
    drawn = line(ax, "original, 2 states").get_ydata()
    assert np.isnan(drawn[0])
    z = np.exp(1j * np.array([1.0, np.pi]))
    np.testing.assert_allclose(drawn[1:], abs(1 / (z - 1) + 1 / (z - 2)))


def test_an_integrator_and_a_delay_can_be_drawn():
    for sys_ in (
        hsv.StateSpace([[0.0]], [[1.0]], [[1.0]], dt=0),
        hsv.StateSpace([[0.0]], [[1.0]], [[1.0]], dt=True),
        hsv.DiagonalStateSpace([0.0, -1.0], [[1.0], [1.0]], [[1.0, 1.0]], dt=0),
    ):
        for plot in (hsv.plot_sigma, hsv.plot_poles):
            draw(plot(sys_, ax=new_axes()))


def test_what_does_not_belong_together_is_refused(power):
    sys_ = power.system()
    other = hsv.StateSpace([[-1.0]], [[1.0]], [[1.0]], dt=0)
    with pytest.raises(hsv.ShapeError, match="inputs and outputs of sys, 2 -> 3, got 1 -> 1"):
        hsv.plot_sigma(sys_, other, new_axes())
    discrete = hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True)
    for plot in (hsv.plot_sigma, hsv.plot_poles):
        with pytest.raises(hsv.HsvError, match="must have the dt of sys, 0"):
            plot(other, discrete, new_axes())
    for w in ([1.0], [[1.0, 2.0]], [1.0, np.inf]):
        with pytest.raises(hsv.ShapeError, match="at least two finite frequencies"):
            hsv.plot_sigma(other, ax=new_axes(), w=w)


# Poles


def test_poles_of_both_systems_are_drawn(power):
    sys_ = power.system()
    red = hsv.balanced_truncation(sys_, 3)
    ax = hsv.plot_poles(sys_, red, new_axes())
    draw(ax)
    assert labels(ax) == ["original, 7 poles", "reduced, 3 poles"]
    for collection, s in zip(ax.collections, (sys_, red.system), strict=True):
        np.testing.assert_allclose(collection.get_offsets(), np.stack([s.poles().real, s.poles().imag], axis=1))
    left, right = ax.get_xlim()
    assert left < sys_.poles().real.min()
    assert right > 0
    assert (ax.get_xlabel(), ax.get_xscale()) == ("Re s", "linear")


def test_poles_far_apart_have_logarithmic_scales():
    ax = hsv.plot_poles(known.heat_equation(100).system(), ax=new_axes())
    draw(ax)
    assert ax.get_xscale() == "symlog"


def test_the_unit_circle_is_round_and_wide_enough():
    ax = hsv.plot_poles(hsv.DiagonalStateSpace([1.5, 0.2], np.ones((2, 1)), np.ones((1, 2)), dt=True), ax=new_axes())
    draw(ax)
    assert ax.get_aspect() == 1.0
    assert ax.get_xlim()[1] > 1.5
    circle = ax.patches[0].get_xy()
    np.testing.assert_allclose(np.hypot(circle[:, 0], circle[:, 1]), 1.0)
    assert ax.get_xlabel() == "Re z"


# For all of them

PLOTS = [hsv.plot_hankel_values, hsv.plot_sigma, hsv.plot_poles]


@pytest.mark.parametrize("plot", PLOTS)
def test_torch_systems_are_drawn(plot):
    tensors = [torch.tensor(x, requires_grad=True) for x in ([[0.5, 0.1], [0.0, 0.3]], [[1.0], [1.0]], [[1.0, 2.0]])]
    sys_ = hsv.StateSpace(*tensors, dt=0.1)
    draw(plot(sys_, ax=new_axes()))
    if plot is not hsv.plot_hankel_values:
        draw(plot(sys_, hsv.balanced_truncation(sys_, 1), new_axes()))


@pytest.mark.parametrize("plot", PLOTS)
def test_a_batch_is_refused_with_the_remedy(plot, rng):
    batch = known.random_stable(rng, 3, 1, 1, dt=True, batch=(2,))
    with pytest.raises(hsv.ShapeError, match=r"batch of shape \(2,\).*sys\.A\[i\].*red\.select\(i\)"):
        plot(batch, ax=new_axes())
    red = hsv.balanced_truncation(batch, 1)
    with pytest.raises(hsv.ShapeError, match=r"red\.select\(i\)"):
        plot(red, ax=new_axes()) if plot is hsv.plot_hankel_values else plot(red.select(0).system, red, new_axes())
    draw(plot(red.select(1).system, ax=new_axes()))


@pytest.mark.parametrize("plot", PLOTS)
def test_wrong_arguments_are_refused(plot):
    sys_ = hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True)
    with pytest.raises(hsv.DtypeError, match="is drawn, got float"):
        plot(1.0, ax=new_axes())
    with pytest.raises(hsv.DtypeError, match="ax must be an Axes of matplotlib, got str"):
        plot(sys_, ax="axes")


@pytest.mark.parametrize("plot", PLOTS)
def test_a_figure_is_made_where_no_axes_are_given(plot):
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")  # no window
    ax = plot(hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True))
    plt.close(ax.figure)
    assert ax.has_data()


@pytest.mark.parametrize("plot", PLOTS)
def test_without_matplotlib(plot, monkeypatch):
    original = builtins.__import__

    def refuse(name, *arguments, **keywords):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return original(name, *arguments, **keywords)

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(hsv.MissingBackendError, match=r'pip install "hsv-control\[plot\]"'):
        plot(hsv.StateSpace([[0.5]], [[1.0]], [[1.0]], dt=True))
