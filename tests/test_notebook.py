"""The notebook of docs/ is run as it stands, from its first cell to its last, with what a notebook shows of each."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs/first_steps.ipynb"


def cells() -> list[str]:
    book = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_without_what_it_printed():
    assert all(cell.get("outputs", []) == [] for cell in json.loads(NOTEBOOK.read_text())["cells"])
    for number, cell in enumerate(cells()):
        compile(cell, f"cell {number}", "exec")


def shown(cell: str, names: dict[str, Any]) -> Any:
    """Run a cell. Returns the value of the expression that it ends with, or None."""
    *statements, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        statements, last = [*statements, last], None
    exec(compile(ast.Module(statements, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last is not None else None


@pytest.mark.long
def test_the_cells_one_after_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    values = [shown(cell, names) for cell in cells()]
    assert values[2].steps == 60
    assert names["losses"].of_steps[-1] < names["losses"].of_steps[0] - 1
    assert repr(values[4]).count("\n") == 0
    assert values[5]._repr_html_().count("<mark") == 2
    assert names["counted"].steps == 30
    assert values[-1].text.startswith("9 8 7 ")


@pytest.mark.long
def test_a_kernel_runs_it(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    book = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("<mark" in output.get("data", {}).get("text/html", "") for output in outputs) == 2
    if importlib.util.find_spec("ipywidgets") is not None:
        told = [output for state in client.widget_state.values() for output in state.get("outputs", ())]
        bars = [re.sub("<[^>]*>", "", output["data"]["text/html"]) for output in told]
        assert [bar.split()[0] for bar in bars] == ["prepare", "train", "train"]
        for bar in bars:
            ((done, whole),) = re.findall(r"([\d.]+)/([\d.]+)", bar)
            assert done == whole, bar
