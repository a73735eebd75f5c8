"""In a notebook, progress is one HTML table that is saved with it; models, histories and figures show themselves."""

import re
import sys
from types import ModuleType
from typing import Any

import pytest
import rich.console
from flax import nnx

from resfit import plots
from resfit.callbacks import Callback, History, ProgressBar
from tests.helpers import PlainNet, compiled, fit, images, labels

CODE = """
import numpy as np
from flax import nnx
import resfit

class Net(nnx.Module):
    def __init__(self):
        self.linear = nnx.Linear(12, 3, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.linear(x.reshape(x.shape[0], -1))

x, y = np.ones((10, 2, 2, 3), np.float32), np.arange(10) % 3
model = resfit.Model(Net())
model.compile("sgd", learning_rate=1e-5)
history = model.fit(x, y, batch_size=4, epochs=3, validation_data=(x, y))
"""


class Outputs:
    """The outputs of a cell: the data that `IPython.display.display` got, and their updates."""

    def __init__(self) -> None:
        self.updates: list[list[dict[str, str]]] = []

    def display(self, data: dict[str, str], *, raw: bool, display_id: bool) -> "Outputs.Handle":
        assert raw
        assert display_id
        self.updates.append([data])
        return self.Handle(self.updates[-1])

    class Handle:
        def __init__(self, updates: list[dict[str, str]]) -> None:
            self._updates = updates

        def update(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            self._updates.append(data)


@pytest.fixture
def outputs(monkeypatch: pytest.MonkeyPatch) -> Outputs:
    """Return the outputs of a notebook's cell."""
    made, package, module = Outputs(), ModuleType("IPython"), ModuleType("IPython.display")
    module.display = made.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return made


def bar() -> ProgressBar:
    return ProgressBar(console=rich.console.Console(force_jupyter=True))


def rows(table: str) -> list[list[str]]:
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]


def test_a_fit_is_one_table_that_grows_by_a_row_an_epoch(outputs: Outputs) -> None:
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=3, callbacks=[bar()], validation_data=(images(9), labels(9)))
    (updates,) = outputs.updates
    counts = [len(rows(update["text/html"])) for update in updates]
    assert counts == sorted(counts)
    assert {2, 3, 4} <= set(counts)
    header, *body = rows(updates[-1]["text/html"])
    assert header[:2] == ["epoch", "loss"]
    assert {"val_loss", "time", "images/s"} <= set(header)
    assert [row[0] for row in body] == ["1/3", "2/3", "3/3"]
    assert all(all(row) for row in body)
    assert any("Epoch 2/3" in update["text/html"] and "left" in update["text/html"] for update in updates)
    assert "Epoch" not in updates[-1]["text/html"]  # nothing runs any more
    assert "first step after" in updates[-1]["text/html"]
    assert [line.split()[0] for line in updates[-1]["text/plain"].splitlines()[:4]] == ["epoch", "1/3", "2/3", "3/3"]


def test_evaluate_and_predict_are_a_line_each_and_another_fit_another_table(outputs: Outputs) -> None:
    model, shown = compiled(PlainNet(rngs=nnx.Rngs(0))), bar()
    model.evaluate(images(), labels(), verbose=0, callbacks=[shown])
    model.predict(images(), verbose=0, callbacks=[shown])
    fit(model, callbacks=[shown])
    fit(model, callbacks=[shown])
    last = [updates[-1]["text/plain"].split()[0] for updates in outputs.updates]
    assert last == ["Evaluate", "Predict", "epoch", "epoch"]


def test_a_value_that_first_appears_later_gets_a_column(outputs: Outputs) -> None:
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=3, callbacks=[bar()], validation_data=(images(9), labels(9)),
        validation_freq=2)  # fmt: skip
    header, *body = rows(outputs.updates[0][-1]["text/html"])
    assert [bool(row[header.index("val_loss")]) for row in body] == [False, True, False]
    assert header[-1] == "images/s"


def test_a_run_that_fails_leaves_the_epoch_in_which_it_failed(outputs: Outputs) -> None:
    class Fails(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if self.model.control is not None and batch == 1:
                raise RuntimeError("<stopped>")

    with pytest.raises(RuntimeError, match="stopped"):
        fit(compiled(PlainNet(rngs=nnx.Rngs(0))), callbacks=[bar(), Fails()])
    assert "Epoch 1/1  " in outputs.updates[0][-1]["text/plain"]


def test_a_history_and_a_model_are_short_texts_and_tables() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    assert re.fullmatch(r"<Model: PlainNet, [\d,]+ parameters, compiled>", repr(model))
    assert "<table" not in model._repr_html_()
    history = fit(model, epochs=2, validation_data=(images(9), labels(9)), validation_freq=2)
    assert re.match(r"<History: 2 epochs, loss \d\.\d{4}", repr(history))
    header, *body = rows(history._repr_html_())
    assert [row[0] for row in body] == ["1", "2"]
    assert [row[header.index("val_loss")] != "" for row in body] == [False, True]
    assert model._repr_html_().endswith(history._repr_html_())
    assert "&lt;Model: " in model._repr_html_()
    assert repr(History()) == "<History: 0 epochs>"
    assert "<td" not in History()._repr_html_()


def test_a_figure_is_an_image() -> None:
    history = History()
    history.on_epoch_end(0, {"loss": 1.0})
    assert plots.curves(history)._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_notebook_that_is_executed_and_saved_keeps_table_and_image(tmp_path: Any) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(code) for code in (CODE, "history.plot()", "model", "history")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute(cwd=str(tmp_path))
    nbformat.write(notebook, tmp_path / "saved.ipynb")
    trained, plot, model, history = (cell.outputs for cell in nbformat.read(tmp_path / "saved.ipynb", 4).cells)
    tables = [out.data["text/html"] for out in trained if "text/html" in out.get("data", {})]
    assert len(tables) == 1
    assert [row[0] for row in rows(tables[0])] == ["epoch", "1/3", "2/3", "3/3"]
    assert "widget" not in str(trained)
    assert "image/png" in plot[0].data
    assert [len(rows(out[0].data["text/html"])) for out in (model, history)] == [4, 4]
