"""The notebooks run from top to bottom and print what they have stored."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]\d+)?")


def printed(notebook):
    """Return the text and the kinds of pictures that each cell shows."""
    return [
        [
            (o.get("text") or o["data"].get("text/plain"), "image/png" in o.get("data", {}))
            for o in cell.get("outputs", [])
        ]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def run(name, folder):
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    stored = printed(notebook)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}, ipc_type="ipc")
    client.extra_arguments = ["--transport=ipc"]
    client.execute()
    return stored, printed(notebook)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_reduce_a_system(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored, now = run("reduce_a_system.ipynb", tmp_path)
    assert any(picture for cell in stored for _, picture in cell)
    for before, after in zip(stored, now, strict=True):
        for (text, picture), (new_text, new_picture) in zip(before, after, strict=True):
            assert picture == new_picture
            assert NUMBER.sub("0", text) == NUMBER.sub("0", new_text)
            for old, new in zip(NUMBER.findall(text), NUMBER.findall(new_text), strict=True):
                assert float(new) == pytest.approx(float(old), rel=0.02, abs=1e-12)


@pytest.mark.slow  # trains for half a minute
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_shrink_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stored, now = run("shrink_a_model.ipynb", tmp_path)
    assert [len(cell) for cell in now] == [len(cell) for cell in stored]
    text = "".join(text for cell in now for text, _ in cell)
    assert text.count("states 64 ->") == 1  # the first attempt
    assert float(re.search(r"states: ([\d.]+)", text)[1]) > 0.9
