import json

import matplotlib as mpl
import numpy as np
import pytest

from asv_benchmarks import scaling

mpl.use("Agg")


def test_the_slope_is_that_of_the_larger_sizes():
    sizes = [1, 2, 4, 8, 16, 32]
    seconds = [1.0, 1.0, 1.0, *(n**3 / 100 for n in sizes[3:])]
    assert scaling.slope({"x": sizes, "seconds": seconds}) == pytest.approx(3)


@pytest.mark.parametrize("name", sorted(scaling.MEASURES))
def test_pictures_have_labels_with_units_and_floors(name):
    stored = json.loads(scaling.DATA.read_text())[name]
    figure = scaling.draw(name, stored)
    (axes,) = figure.axes
    assert axes.get_xlabel() == stored["x"]
    assert axes.get_ylabel() == "seconds"
    assert axes.get_title()
    dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert len(dotted) >= len(axes.lines) / 2
    for line in dotted:
        assert np.all(np.asarray(line.get_ydata()) > 0)
    assert (scaling.IMAGES / f"scaling_{name}.svg").read_text().startswith("<?xml")
    mpl.pyplot.close(figure)


def test_a_measurement_from_end_to_end(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "DATA", tmp_path / "data" / "scaling.json")
    monkeypatch.setattr(scaling, "IMAGES", tmp_path / "images")
    monkeypatch.setattr(scaling, "BATCH", (1, 4, 16))
    assert scaling.main(["--only", "batch", "--seconds", "0"]) == 0
    stored = json.loads(scaling.DATA.read_text())
    assert stored["batch"]["series"]["float64 poles"]["x"] == [1, 4, 16]
    assert all(x > 0 for x in stored["batch"]["series"]["float64 poles"]["seconds"])
    assert (tmp_path / "images" / "scaling_batch.svg").exists()
    mpl.pyplot.close("all")


def test_one_median_for_a_process_of_its_own(capsys, monkeypatch):
    monkeypatch.setitem(scaling.THREADED, "nothing", lambda: lambda: None)
    scaling.main(["--one", "nothing", "--seconds", "0"])
    assert float(capsys.readouterr().out) >= 0
