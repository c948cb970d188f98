import builtins
import dataclasses
import io
import re
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import hsv
import hsv_torch
from hsv_torch.history import Drift, Event, History, LayerRecord
from hsv_torch.report import (
    events_table,
    figure_to_svg,
    plot_drift,
    plot_heat_map,
    plot_spectra,
    plot_states,
    to_html,
    write_html,
)


def record(layer, outcome, before, chosen, *, reason=None, drift=None, spectrum=True, order=None):
    return LayerRecord(
        layer=layer,
        outcome=outcome,
        n_states_before=before,
        n_states_after=chosen if outcome == "cut" else before,
        n_states_chosen=chosen,
        hankel_singular_values=np.logspace(1, -3, before) if spectrum else None,
        order=order if order is not None else chosen,
        error_bound=0.25 if chosen else None,
        reason=reason,
        drift=drift,
    )


@pytest.fixture
def history():
    """Tell a story with a cut, an undone cut, a refusal and a cut that was not worth it."""
    events = (
        Event(
            1,
            25,
            (record("blocks.0", "cut", 32, 20), record("<b>", "cut", 32, 16)),
            0.01,
            steps_timed=24,
            step_seconds=0.24,
        ),
        Event(
            2,
            50,
            (
                record(
                    "blocks.0", "undone", 20, 8, reason="the metric fell from 0.9 to 0.5", drift=Drift(25, 0.3, 0.7)
                ),
                record("<b>", "refused", 16, None, reason="condition 1e9 is above the limit [1, 1e6]", spectrum=False),
            ),
            0.02,
            evaluation_seconds=0.5,
            metric_before=0.9,
            metric_after=0.5,
            undone=True,
            steps_timed=24,
            step_seconds=0.12,
        ),
        Event(
            3,
            75,
            (record("blocks.0", "cut", 20, 10), record("<b>", "unchanged", 16, 16, reason="the rule keeps 16 of 16")),
            0.03,
        ),
    )
    return History({"blocks.0": 32, "<b>": 32}, events, 100, 90, steps_timed=10, step_seconds=0.03)


def of_batch(values):
    """A layer with a system a channel, cut to one state."""
    seen = dataclasses.replace(record("ssm", "cut", values.shape[-1], 1), hankel_singular_values=values)
    return History({"ssm": values.shape[-1]}, (Event(1, 1, (seen,), 0.0),), 10, 5)


def empty():
    return History({"ssm": 8}, (), 100, 0)


class TestPictures:
    def test_states(self, history):
        axes = Figure().add_subplot()
        assert plot_states(history, axes) is axes
        first, second = (line for line in axes.get_lines() if line.get_label() in ("blocks.0", "<b>"))
        assert first.get_xydata().tolist() == [[0, 32], [25, 20], [75, 10], [90, 10]]
        assert second.get_xydata().tolist() == [[0, 32], [25, 16], [90, 16]]
        marks = {
            line.get_marker(): line.get_xydata().tolist() for line in axes.get_lines() if len(line.get_xydata()) == 1
        }
        assert marks == {"x": [[50, 8]], "^": [[50, 16]]}
        assert axes.get_xlabel() == "optimizer steps"
        assert axes.get_ylabel() == "states of the layer"

    def test_spectra(self, history):
        axes = Figure().add_subplot()
        assert plot_spectra(history, axes, layer="blocks.0") is axes
        assert axes.get_yscale() == "log"
        curves = [line for line in axes.get_lines() if not line.get_label().startswith("_")]
        assert [line.get_label() for line in curves] == ["25: 32 → 20", "50: 20 → 8 (undone)", "75: 20 → 10"]
        assert [len(line.get_xydata()) for line in curves] == [32, 20, 20]
        thick = [line for line in axes.get_lines() if line.get_linewidth() > 2 and len(line.get_xydata()) > 1]
        assert [len(line.get_xydata()) for line in thick] == [20, 8, 10]
        np.testing.assert_array_equal(curves[0].get_ydata(), np.logspace(1, -3, 32))

    def test_spectra_of_a_layer_that_was_left_alone_have_no_thick_part(self, history):
        axes = Figure().add_subplot()
        plot_spectra(history, axes, layer="<b>")
        labels = [line.get_label() for line in axes.get_lines() if not line.get_label().startswith("_")]
        assert labels == ["25: 32 → 16", "75: 16 (unchanged)"]  # the refused one came without a spectrum

    def test_the_order_of_a_conjugate_aware_cut_is_what_is_marked(self):
        seen = dataclasses.replace(record("ssm", "cut", 8, 3), hankel_singular_values=np.logspace(0, -2, 16), order=5)
        axes = Figure().add_subplot()
        plot_spectra(History({"ssm": 8}, (Event(1, 1, (seen,), 0.0),), 10, 5), axes)
        assert [len(line.get_xydata()) for line in axes.get_lines()] == [16, 5, 1]

    def test_zeros_and_rounding_are_left_out_of_a_logarithmic_axis(self):
        values = np.array([1.0, 1e-3, 1e-20, 0.0])
        seen = dataclasses.replace(record("ssm", "unchanged", 4, 4), hankel_singular_values=values)
        axes = Figure().add_subplot()
        plot_spectra(History({"ssm": 4}, (Event(1, 1, (seen,), 0.0),), 10, 5), axes)
        np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), [1.0, 1e-3, np.nan, np.nan])

    def test_a_batch_of_systems_shows_median_and_range(self):
        """The third channel has one state, the fourth none: what they lack takes no part."""
        values = np.array([[3.0, 1.0, 0.5], [2.0, 1.5, 1e-20], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
        axes = Figure().add_subplot()
        plot_spectra(of_batch(values), axes)
        assert axes.get_lines()[0].get_ydata().tolist() == [2.0, 1.25, 0.5]
        (band,) = axes.collections
        corners = band.get_paths()[0].vertices
        assert {tuple(corner) for corner in corners} >= {(1, 1), (1, 3), (2, 1), (2, 1.5), (3, 0.5)}
        assert axes.get_ylabel() == "Hankel singular value (gain), median and range"

    def test_a_batch_of_systems_without_any_state(self):
        axes = Figure().add_subplot()
        plot_spectra(of_batch(np.zeros((4, 3))), axes)
        assert np.isnan(axes.get_lines()[0].get_ydata()).all()

    @pytest.mark.parametrize("layer", [None, "head"])
    def test_which_layer(self, history, layer):
        with pytest.raises(hsv.HsvError, match=r"`layer` must be one of \['blocks.0', '<b>'\]"):
            plot_spectra(history, Figure().add_subplot(), layer=layer)

    def test_before_any_attempt(self):
        axes = Figure().add_subplot()
        plot_spectra(empty(), axes)
        plot_states(empty(), axes)
        assert [text.get_text() for text in axes.texts] == ["no attempt yet"]

    def test_svg_is_the_same_every_time_and_has_ids_of_its_own(self, history):
        def draw(prefix):
            figure = Figure()
            plot_states(history, figure.add_subplot())
            return figure_to_svg(figure, prefix=prefix)

        assert draw("a") == draw("a")
        ids = set(re.findall(r'id="([^"]*)"', draw("a")))
        assert ids
        assert not ids & set(re.findall(r'id="([^"]*)"', draw("b")))
        used = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', draw("a")))
        assert {a or b for a, b in used} <= ids


class TestFurtherPictures:
    def test_heat_map(self, history):
        ax = plot_heat_map(history, Figure().add_subplot(), layer="blocks.0")
        table = ax.collections[0].get_array()
        np.testing.assert_allclose(table[0], np.linspace(0, -4, 32), atol=1e-12)
        np.testing.assert_allclose(table[1][:20], np.linspace(0, -4, 20), atol=1e-12)
        assert np.ma.getmaskarray(np.ma.masked_invalid(table))[1, 20:].all()
        assert [float(line.get_xdata()[0]) for line in ax.lines] == [20.5, 8.5, 10.5]
        assert [label.get_text() for label in ax.get_yticklabels()] == ["25", "50", "75"]

    def test_heat_map_of_silence_and_of_nothing(self):
        silent = record("a", "unchanged", 3, 3)
        silent = dataclasses.replace(silent, hankel_singular_values=np.zeros(3))
        plot_heat_map(History({"a": 3}, (Event(1, 5, (silent,), 0.0),), 10, 5), Figure().add_subplot())
        ax = plot_heat_map(History({"a": 3}, (), 10, 5), Figure().add_subplot())
        assert ax.texts[0].get_text() == "no attempt yet"
        with pytest.raises(hsv.HsvError, match=r"`layer` must be one of \['a'\]"):
            plot_heat_map(History({"a": 3}, (), 10, 5), Figure().add_subplot(), layer="b")

    def test_drift(self, history):
        ax = plot_drift(history, Figure().add_subplot())
        assert list(ax.lines[0].get_xydata()[0]) == [50, 0.3]
        assert ax.collections[0].get_segments()[0][1].tolist() == [50, 0.7]
        empty = plot_drift(History({"a": 3}, (), 10, 5), Figure().add_subplot())
        assert empty.texts[0].get_text() == "no two attempts to compare"

    def test_the_page_tells_what_another_tau_would_have_kept(self, history):
        page = to_html(history)
        sigma = np.logspace(1, -3, 32)
        kept = [str(int(hsv.HankelSum(discard=tau).choose(sigma))) for tau in (0.2, 0.1, 0.05, 0.02, 0.01, 0.001)]
        row = "".join(f"<td>{cell}</td>" for cell in ("1", "25", "blocks.0", "32", *kept))
        assert row in page
        assert f"<td>{sigma[:20].sum() / sigma.sum():.1%}</td>" in page


class Checker(HTMLParser):
    """Collects what a page asks for, and whether its tags close."""

    def __init__(self, page):
        super().__init__()
        self.open, self.links, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "link", "img", "use", "path"):
            self.open.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href") or name.endswith(":href")]
        assert tag not in ("script", "link", "img", "b")

    def handle_endtag(self, tag):
        if tag not in ("use", "path"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


class TestHtml:
    def test_is_whole_and_asks_for_nothing(self, history):
        page = Checker(to_html(history, title="A & B"))
        assert page.open == []
        assert all(link.startswith("#") for link in page.links)
        text = " ".join(page.text)
        assert "A & B" in text
        assert not re.search(r"@import|url\((?!#)", to_html(history))

    def test_tells_refusals_and_undone_cuts(self, history):
        text = " ".join(Checker(to_html(history)).text)
        for expected in (
            "the metric fell from 0.9 to 0.5",
            "condition 1e9 is above the limit",
            "0.9 → 0.5",
            "2 layers, 64 states at first, 26 after 90 of 100 steps and 3 attempts",
            "undone by the guard: 1",
            "0.3 (0.7)",
        ):
            assert expected in text

    def test_tells_the_time(self, history):
        text = " ".join(Checker(to_html(history)).text)
        assert "a step before attempt 1 24 0.01 a step before attempt 2 24 0.005" in text
        assert "a step after the last attempt 10 0.003" in text
        assert "all measuring and cutting 0.06" in " ".join(text.split())

    def test_follows_the_readers_colours_and_screen(self, history):
        page = to_html(history)
        assert "prefers-color-scheme: dark" in page
        assert 'name="viewport"' in page
        assert "currentColor" in page
        assert "#010203" not in page

    def test_of_an_empty_history(self):
        assert "no attempt yet" in to_html(empty())

    def test_written_to_a_file(self, history, tmp_path):
        write_html(history, tmp_path / "report.html")
        assert (tmp_path / "report.html").read_text(encoding="utf-8") == to_html(history)


def test_the_page_tells_margins_and_memory(history):
    assert "Memory" not in re.findall(r"<h2>(.*?)</h2>", to_html(history))  # of a history that has none
    first = history.events[0]
    layers = (dataclasses.replace(first.layers[0], margin=0.0123), *first.layers[1:])
    told = dataclasses.replace(first, layers=layers, memory_before=3 * 2**20, memory_after=2**20, peak_memory=2**23)
    page = to_html(dataclasses.replace(history, events=(told, *history.events[1:])))
    assert "<td>0.012</td>" in page
    assert "<tr><td>1</td><td>25</td><td>3</td><td>1</td><td>8</td></tr>" in page


def test_table_for_the_terminal(history):
    from rich.console import Console

    console = Console(width=80, record=True, file=io.StringIO())
    console.print(events_table(history))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for expected in (
        "undone",
        "refused",
        "32 → 20",
        "0.9 → 0.5",
        "attempt 2, <b>: condition 1e9 is above the limit [1, 1e6]",
    ):
        assert expected in text


def test_tables_say_where_a_layer_has_many_systems(history):
    from rich.console import Console

    batch = of_batch(np.array([[3.0, 1.0], [2.0, 1.5], [2.0, 1.0]]))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(events_table(batch))
    remark = "ssm: one system for each of 3 channels, with as many states each"
    assert remark in console.export_text()
    assert f"<p>{remark}. The curve is the median" in to_html(batch)
    assert "one system for each" not in to_html(history)


def test_of_a_layer_that_was_cut_as_a_batch():
    torch.manual_seed(0)
    model = torch.nn.Sequential(hsv_torch.S4D(3, 8), torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    schedule = hsv_torch.Schedule(total_steps=4, window=(0.0, 0.5), attempts=2)
    compressor = hsv_torch.InTrainingCompressor(model, optimizer, rule=hsv.HankelSum(discard=0.3), schedule=schedule)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.ones(2, 9, 3)).sum().backward()
        optimizer.step()
        compressor.step()
    again = History.from_dict(compressor.history.to_dict())
    assert again.events[0].layers[0].hankel_singular_values.shape == (3, 8)
    assert again.events[1].layers[0].drift.largest_change <= again.events[1].layers[0].drift.bound
    assert to_html(again) == to_html(compressor.history)


@pytest.mark.parametrize(("package", "function"), [("matplotlib", to_html), ("rich", events_table)])
def test_a_missing_package_is_named(history, monkeypatch, package, function):
    original = builtins.__import__

    def importing(name, *arguments, **options):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return original(name, *arguments, **options)

    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(hsv.MissingBackendError, match=f"pip install {package}"):
        function(history)
