"""Notebooks run from top to bottom, and their two forms are one."""

import sys
from pathlib import Path

import fedveil
import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(fedveil.__file__).parent / "workspace" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_a_pair():
    assert NOTEBOOKS
    assert sorted(path.stem for path in FOLDER.glob("*.py")) == NOTEBOOKS


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_and_its_text_are_equal(name):
    text, notebook = jupytext.read(FOLDER / f"{name}.py"), read(name)
    complaint = f"run: jupytext --to ipynb --update workspace/notebooks/{name}.py"
    cells = [[(cell.cell_type, cell.source) for cell in form.cells] for form in (text, notebook)]
    assert cells[0] == cells[1], complaint
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name):
    code = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.slow
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDVEIL_NOTEBOOK_ROUNDS", "3")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # the python3 of this environment, not one of the user's
    notebook = read(name)
    notebook.cells.insert(0, nbformat.v4.new_code_cell("import sys; print(sys.executable)"))
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=tmp_path)
    said = [o.text for cell in notebook.cells for o in cell.get("outputs", ()) if o.output_type == "stream"]
    assert said[0].strip() == sys.executable
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", ()) if "image/png" in o.get("data", {})]
    assert len(pictures) >= 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("fedveil-")]  # it clears up
