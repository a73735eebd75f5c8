"""The notebooks run from their source, and hold the outputs that a reader on the web sees."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.packages import package
from tests.shortened import shorten

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def kinds(outputs: list[dict[str, Any]]) -> list[list[str]]:
    """Return the kinds of data of each output of a cell, or the name of its stream."""
    return [sorted(output.get("data", [output.get("name", "error")])) for output in outputs]


def test_there_are_two_notebooks() -> None:
    assert [notebook.stem for notebook in NOTEBOOKS] == ["digits", "own_photos"]


@pytest.mark.representatives("digits")  # the whole suite lets Jupyter execute both
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_code_of_a_notebook_runs_with_thin_networks_and_one_epoch(
    notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package("skimage")
    shorten(monkeypatch.setattr)
    namespace: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(code_cells(notebook), 1):
        exec(compile("".join(cell["source"]), f"{notebook.name}[{number}]", "exec"), namespace)
    assert namespace["history"].epoch == [0]
    assert list(Path().glob("*.safetensors"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_the_outputs_of_one_run_from_top_to_bottom(notebook: Path) -> None:
    cells = code_cells(notebook)
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)], "run `make notebooks`"
    shown = [kind for cell in cells for kind in kinds(cell["outputs"])]
    assert ["error"] not in shown
    assert ["stderr"] not in shown
    assert sum("image/png" in kind for kind in shown) >= 3
    (trained,) = (cell for cell in cells if "model.fit(" in "".join(cell["source"]))
    (table,) = ("".join(output["data"]["text/html"]) for output in trained["outputs"])
    epochs = re.search(r"epochs=(\d+)", "".join(trained["source"]))
    assert epochs is not None
    assert table.count("<tr>") == 1 + int(epochs[1])
    assert notebook.stat().st_size < 800_000


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_that_jupyter_executes_has_the_kinds_of_output_that_are_stored(
    notebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = package("nbclient")
    nbformat = package("nbformat")
    package("ipykernel")
    package("skimage")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    executed = nbformat.read(notebook, as_version=4)
    before = nbformat.v4.new_code_cell("from tests.shortened import shorten\nshorten(setattr)")
    executed.cells.insert(0, before)
    nbclient.NotebookClient(executed, timeout=300).execute(cwd=str(Path.cwd()))
    found = [kinds(cell.outputs) for cell in executed.cells if cell.cell_type == "code"][1:]
    assert found == [kinds(cell["outputs"]) for cell in code_cells(notebook)]
