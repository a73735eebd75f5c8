"""The progress bar shows the state of the run, and never waits for the device."""

import io
import re
from typing import Any

import jax
import pytest
import rich.console
from flax import nnx

import resfit
from resfit.callbacks import Callback, ProgressBar, logs
from tests.helpers import BATCH, PlainNet, compiled, fit, images, labels


def terminal() -> tuple[rich.console.Console, io.StringIO]:
    text = io.StringIO()
    return rich.console.Console(
        file=text, force_terminal=True, width=160, legacy_windows=False, color_system=None
    ), text


def log_file() -> tuple[rich.console.Console, io.StringIO]:
    text = io.StringIO()
    return rich.console.Console(file=text, force_terminal=False, width=80), text


def plain(text: io.StringIO) -> str:
    """Return the text without the control sequences of the terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.getvalue())


class EveryBatch(ProgressBar):
    """A progress bar that redraws at every batch, without the delay of a tenth of a second."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._drawn = 0.0
        super().on_train_batch_end(batch, logs)
        self._screen.refresh()

    def on_compile_begin(self, what: str) -> None:
        super().on_compile_begin(what)
        self._screen.refresh()


def test_in_a_terminal_it_shows_epoch_steps_speed_values_and_compilation() -> None:
    class Waits(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            logs.wait()  # so that the bar has values to show after each step

    console, text = terminal()
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=2, callbacks=[Waits(), EveryBatch(console=console)],
        validation_data=(images(9), labels(9)))  # fmt: skip
    shown = plain(text)
    assert "compiling" in shown
    for epoch in (1, 2):
        assert f"Epoch {epoch}/2" in shown
    assert re.search(
        r"Epoch 2/2 .* [12]/3 .*\d:\d\d left .*loss \d\.\d{4}  accuracy \d\.\d{4} .*[\d,]+ images/s", shown
    )
    assert re.search(r"epoch +loss +accuracy +val_loss +val_accuracy +time +images/s *\n *1/2( +\d\.\d{4}){4}", shown)
    assert shown.index("compiling") < shown.index("images/s")


def test_in_a_terminal_evaluate_and_predict_have_a_bar_too() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    console, text = terminal()
    model.evaluate(images(), labels(), BATCH, verbose=0, callbacks=[ProgressBar(console=console)])
    model.predict(images(), BATCH, verbose=0, callbacks=[ProgressBar(console=console)])
    assert re.search(r"Evaluate  3/3 .*loss \d\.\d{4}", plain(text))
    assert re.search(r"Predict  3/3", plain(text))


@pytest.mark.parametrize("verbose", [1, 2])
def test_in_a_log_file_there_is_one_line_an_epoch_without_control_characters(verbose: int) -> None:
    console, text = log_file()
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), learning_rate=resfit.schedules.Cosine(0.1))
    history = fit(model, epochs=3, callbacks=[ProgressBar(verbose, console)],
        validation_data=(images(9), labels(9)))  # fmt: skip
    _, header, *rows = text.getvalue().splitlines()
    assert "\x1b" not in text.getvalue()
    assert header.split() == ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate", "time"]
    assert [row.split()[0] for row in rows] == ["1/3", "2/3", "3/3"]
    assert {len(row) for row in rows} == {len(header)}
    assert len(header) <= 80
    assert float(rows[1].split()[1]) == round(history.history["loss"][1], 4)


def test_verbose_two_prints_one_line_an_epoch_in_a_terminal_too() -> None:
    console, text = terminal()
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=2, callbacks=[ProgressBar(2, console)])
    lines = plain(text).splitlines()
    assert len(lines) == 1 + 1 + 2  # the time of the first step, the header, and two epochs
    assert len({len(line) for line in lines[1:]}) == 1


def test_epochs_without_a_validation_stay_in_the_columns_of_those_with_one() -> None:
    console, text = terminal()
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=5, callbacks=[ProgressBar(2, console)],
        validation_data=(images(9), labels(9)), validation_freq=2)  # fmt: skip
    _, first, one, header, *rows = plain(text).splitlines()
    assert "val_loss" not in first
    assert len(one.split()) == len(first.split()) + 1  # "0.1 s" are two words
    assert "val_loss" in header
    assert [row.split()[0] for row in rows] == ["2/5", "3/5", "4/5", "5/5"]
    assert {len(row) for row in rows} == {len(header)}


def test_fit_evaluate_and_predict_write_to_standard_output_unless_silent(capsys: pytest.CaptureFixture[str]) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model)
    model.evaluate(images(), labels(), verbose=0)
    model.predict(images(), verbose=0)
    assert capsys.readouterr().out == ""
    fit(model, verbose="auto", epochs=2)
    model.evaluate(images(), labels())
    model.predict(images())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["epoch", "1/2", "2/2", "Evaluate", "Predict"]


def test_a_stopped_epoch_shows_its_progress() -> None:
    class Stops(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = batch == 1

    console, text = terminal()
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), epochs=3, callbacks=[Stops(), ProgressBar(console=console)])
    assert "Epoch 1/3 stopped after 2/3 steps" in plain(text)
    assert plain(text).splitlines()[-1].split()[0] == "1/3"


def test_steps_of_unknown_number_are_counted() -> None:
    console, text = terminal()
    batches = ((images(8), labels(8)) for _ in range(3))
    compiled(PlainNet(rngs=nnx.Rngs(0))).fit(batches, verbose=0, callbacks=[EveryBatch(console=console)])
    assert re.search(r"Epoch 1/1  \d/\?", plain(text))
    assert plain(text).splitlines()[-1].split()[0] == "1/1"


class BrokenError(Exception):
    pass


class Raises(Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise BrokenError

    on_test_batch_end = on_predict_batch_end = on_train_batch_end  # type: ignore[assignment]


@pytest.mark.parametrize("call", ["fit", "evaluate", "predict"])
def test_a_bar_stops_after_an_exception(call: str) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    console, _ = terminal()
    bar = ProgressBar(console=console)
    arguments: Any = (images(),) if call == "predict" else (images(), labels())
    with pytest.raises(BrokenError):
        getattr(model, call)(*arguments, verbose=0, callbacks=[bar, Raises()])
    with console.status("free again"):  # a live display that is still running would raise here
        pass


def test_a_bar_reads_only_finished_values(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing: list[EveryBatch] = []
    ready: list[bool] = []
    original = logs.read

    def watched(values: Any) -> Any:
        if drawing:
            ready.append(all(leaf.is_ready() for leaf in jax.tree.leaves(values)))
        return original(values)

    class Watched(EveryBatch):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            drawing.append(self)
            super().on_train_batch_end(batch, logs)
            drawing.pop()

    class WaitsFirst(Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            jax.block_until_ready(logs._sums)

    class Unready(logs.LazyLogs):
        def ready(self) -> bool:
            return False

    monkeypatch.setattr(logs, "read", watched)
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model, images(64), labels(64), callbacks=[Watched(console=terminal()[0])])
    assert all(ready)
    fit(model, images(64), labels(64), callbacks=[WaitsFirst(), Watched(console=terminal()[0])])
    assert ready[-8:] == [True] * 8  # if every step is finished, the bar reads every step
    ready.clear()
    monkeypatch.setattr("resfit.trainer.loop.evaluator.LazyLogs", Unready)
    fit(model, images(64), labels(64), callbacks=[Watched(console=terminal()[0])])
    assert ready == []  # and if no step is finished, it does not wait


@pytest.mark.parametrize("in_terminal", [True, False])
def test_a_fit_that_compiles_reports_the_end_of_its_first_step_once(in_terminal: bool) -> None:
    """Also if the bar is called before the history that measures it."""
    console, text = terminal() if in_terminal else log_file()
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model, epochs=2, callbacks=[ProgressBar(console=console)])
    assert re.findall(r"first step after (\d+\.\d) s, (\d+\.\d) s of it compiling", plain(text)) != []
    assert plain(text).count("first step after") == 1
    fit(model, epochs=2, callbacks=[ProgressBar(console=console)])  # a second fit compiles nothing
    assert plain(text).count("first step after") == 1
    assert len(re.findall(r"[\n\r] *2/2 ", plain(text))) == 2
