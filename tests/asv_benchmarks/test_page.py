import json
import math

import pytest

from asv_benchmarks import page, table

CLASS = "split.SplitUnstable"
NAME = f"{CLASS}.time_split_unstable"


def asv_results(folder, commit, values, started, name=NAME):
    """Write a file of results as asv does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "machine.json").write_text(json.dumps({"num_cpu": "2", "cpu": "Some processor", "os": "Linux 6.1-x"}))
    columns = ["result", "params", "version", "started_at", "duration"]
    row = [values, [["16", "128"], ["'hsv'", "'scipy'"]], "hash", started, 1.0]
    content = {"commit_hash": commit, "result_columns": columns, "results": {name: row}}
    (folder / f"{commit[:8]}-existing-py.json").write_text(json.dumps(content))
    return folder / f"{commit[:8]}-existing-py.json"


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A page, a stored file and results in a folder of their own."""
    monkeypatch.setattr(page, "ROOT", tmp_path)
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(page, "DATA", tmp_path / "data" / "benchmarks.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.md")
    text = "By hand.\n\n<!-- glance -->\n<!-- end of glance -->\n\nMore.\n\n<!-- results -->\n<!-- end of results -->\nEnd.\n"
    (tmp_path / "page.md").write_text(text)
    return tmp_path


def test_the_page_of_the_documentation_is_what_its_stored_results_give(capsys):
    assert page.main(["--check"]) == 0, capsys.readouterr().err


def test_results_become_tables_and_text_outside_of_the_markers_stays(elsewhere):
    asv_results(elsewhere / "results" / "vm", "a" * 40, [1e-3, 2e-3, 4e-3, 1e-3], 1_760_000_000_000)
    assert page.main(["--note", "one thread"]) == 0
    text = (elsewhere / "page.md").read_text()
    assert text.startswith("By hand.\n")
    assert "\nMore.\n" in text
    assert text.endswith("End.\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert ["16", "1", "2", "0.5"] in rows
    assert ["128", "4", "1", "4"] in rows
    assert [f"`{CLASS}`", "128", "4", "scipy", "1", "4"] in rows  # the glance: its largest size
    assert "commit `aaaaaaaa`, 2 x Some processor, Linux 6.1, one thread, 2025-10-09; Python 3" in text


def test_a_page_that_was_changed_between_its_markers_fails_the_check(elsewhere, capsys):
    asv_results(elsewhere / "results" / "vm", "a" * 40, [1e-3, 2e-3, 4e-3, 1e-3], 1_760_000_000_000)
    page.main([])
    assert page.main(["--check"]) == 0
    text = (elsewhere / "page.md").read_text()
    (elsewhere / "page.md").write_text(text.replace("By hand.", "By another hand."))
    assert page.main(["--check"]) == 0
    (elsewhere / "page.md").write_text(text.replace(" 0.5 |", " 0.4 |"))
    assert page.main(["--check"]) == 1
    assert "python -m asv_benchmarks.page --stored" in capsys.readouterr().err
    assert page.main(["--stored"]) == 0
    assert (elsewhere / "page.md").read_text() == text


def test_the_newest_measurement_counts_and_names_its_commit(elsewhere):
    vm = elsewhere / "results" / "vm"
    asv_results(vm, "a" * 40, [1e-3] * 4, 1_760_000_000_000)
    page.main([])
    asv_results(vm, "b" * 40, [2e-3] * 4, 1_760_000_100_000)
    asv_results(vm, "c" * 40, [3e-3] * 4, 1_750_000_000_000)
    page.main(["--only", "nothing"])
    assert json.loads(page.DATA.read_text())["benchmarks"][NAME]["values"] == [1e-3] * 4
    page.main([])
    stored = json.loads(page.DATA.read_text())
    assert stored["benchmarks"][NAME]["values"] == [2e-3] * 4
    assert [run["commit"] for run in stored["runs"]] == ["bbbbbbbb"]


def test_failed_and_skipped_runs(elsewhere):
    asv_results(elsewhere / "results" / "vm", "a" * 40, [1e-3, None, 4e-3, math.nan], 1_760_000_000_000)
    page.main([])
    text = (elsewhere / "page.md").read_text()
    json.loads(page.DATA.read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    assert ["16", "1", "failed", ""] in rows
    assert ["128", "4", "-", ""] in rows


def test_a_benchmark_that_is_no_more_is_left_out(elsewhere):
    path = asv_results(elsewhere / "results" / "vm", "a" * 40, [1.0] * 4, 1, name="split.Gone.time_it")
    assert table.entries(path) == {}
    path = asv_results(elsewhere / "results" / "vm", "a" * 40, [1.0] * 4, 1, name="no_such_file.Gone.time_it")
    assert table.entries(path) == {}


def test_a_page_without_markers_is_refused():
    with pytest.raises(SystemExit, match="must have the lines <!-- glance -->"):
        page.page("text", {"runs": [], "benchmarks": {}})
