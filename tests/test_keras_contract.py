"""Test the Keras behaviors of docs/keras.md that no other test shows.

Also check that docs/lightning.md and docs/keras.md name existing tests.
"""

import ast
import csv
import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Callback, CSVLogger, EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
from resfit.errors import CallbackError
from tests.callbacks.fakes import play
from tests.helpers import BATCH, PlainNet, Recorder, assert_same, compiled, fit, images, labels

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "keras.md"
BEHAVIOURS = 53
ROW = re.compile(r"^\| (\d+) \| (.+) \| (.+) \| (.+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def missing_tests(text: str) -> list[str]:
    """Return the tests that a text names and that do not exist."""

    def functions(path: str) -> set[str]:
        file = ROOT / path
        body = ast.parse(file.read_text()).body if file.exists() else []
        return {node.name for node in body if isinstance(node, ast.FunctionDef)}

    return [f"{path}::{name}" for path, name in TEST.findall(text) if name not in functions(path)]


def test_every_behavior_is_in_the_table_once_with_its_test_or_a_reason_for_no_test() -> None:
    text = PAGE.read_text()
    rows = ROW.findall(text)
    assert [int(number) for number, *_ in rows] == list(range(1, BEHAVIOURS + 1))
    for number, _, here, tests in rows:
        if tests == "none":
            assert here.startswith("not "), f"{number} is kept, but nothing shows it"
        else:
            assert TEST.sub("", tests).replace(", ", "") == "", f"{number}: {tests!r} is not only names of tests"


@pytest.mark.parametrize("page", ["keras.md", "lightning.md"])
def test_every_test_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert len(TEST.findall(text)) > 10
    assert missing_tests(text) == []


def test_a_missing_test_name_is_found() -> None:
    named = "`tests/test_keras_contract.py::test_gone`, `tests/test_gone.py::test_gone`"
    assert len(missing_tests(named)) == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(mode="maximum"),
        lambda: ModelCheckpoint("m.safetensors", save_best_only=True, mode="maximum"),
        lambda: ReduceLROnPlateau(mode="maximum"),
    ],
)
def test_an_unknown_mode_raises(make: Any) -> None:
    with pytest.raises(CallbackError, match="Unknown mode 'maximum'"):
        make()


def test_a_monitored_value_of_several_numbers_raises() -> None:
    checkpoint = ModelCheckpoint("best.safetensors", monitor="recall", save_best_only=True)
    with pytest.raises((TypeError, ValueError)):
        play(checkpoint, [{"recall": np.array([0.25, 0.5])}])
    assert not Path("best.safetensors").exists()


def test_epochs_without_a_validation_have_na_in_every_val_column() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    held_out = (images(8), labels(8))
    fit(model, epochs=5, validation_data=held_out, validation_freq=3, callbacks=[CSVLogger("log.csv")])
    with Path("log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3", "4"]
    for name in ("val_loss", "val_accuracy"):
        assert [row[name] == "NA" for row in rows] == [True, True, False, True, True]


@pytest.mark.parametrize("steps", [1, 2])
def test_every_step_has_its_hooks_also_with_steps_per_execution(steps: int) -> None:
    model, recorder = compiled(PlainNet(rngs=nnx.Rngs(0)), steps_per_execution=steps), Recorder()
    fit(model, images(20), labels(20), callbacks=[recorder])
    assert [entry[1] for entry in recorder.trace if entry[0] == "on_train_batch_end"] == [0, 1, 2]


@pytest.mark.representatives("sizes1")
@pytest.mark.parametrize("sizes", [(20, 8), (10, 3)])
def test_the_loss_of_constant_weights_does_not_depend_on_the_batch_size(sizes: tuple[int, int]) -> None:
    results = []
    for size in sizes:
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), learning_rate=0.0)
        history = fit(model, batch_size=size)
        results.append([history.history["loss"][0], model.evaluate(images(), labels(), batch_size=size, verbose=0)[0]])
    np.testing.assert_allclose(results, np.full((2, 2), results[0][0]), rtol=1e-6)


def test_compiling_again_with_other_metrics_changes_the_reported_values_in_their_order() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), metrics=["accuracy"])
    assert set(fit(model).history) == {"loss", "accuracy"}
    model.compile("sgd", metrics=["cross_entropy", "accuracy"], dispatch="jit")
    assert set(fit(model).history) == {"loss", "cross_entropy", "accuracy"}
    loss, cross_entropy, accuracy = model.evaluate(images(), labels(), batch_size=BATCH, verbose=0)
    named = model.evaluate(images(), labels(), batch_size=BATCH, verbose=0, return_dict=True)
    assert [loss, cross_entropy, accuracy] == [named["loss"], named["cross_entropy"], named["accuracy"]]


class AlwaysNoisy(nnx.Module):
    """A network that also draws random numbers in evaluation."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.net = PlainNet(rngs=rngs)
        self.rngs = rngs.fork() if hasattr(rngs, "fork") else rngs

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.net(x) + jax.random.normal(self.rngs.params(), (x.shape[0], 3))


def test_predicting_twice_gives_the_same_result_also_with_a_layer_that_always_draws() -> None:
    model, quiet = resfit.Model(AlwaysNoisy(rngs=nnx.Rngs(0))), resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    first = model.predict(images(), verbose=0)
    assert_same(first, model.predict(images(), verbose=0))
    assert not np.allclose(first, quiet.predict(images(), verbose=0))  # the layer draws


def test_a_callback_of_another_library_raises_with_the_base_class() -> None:
    class Foreign:
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise AssertionError

    with pytest.raises(CallbackError, match=r"instances of resfit\.callbacks\.Callback"):
        fit(compiled(PlainNet(rngs=nnx.Rngs(0))), callbacks=[Foreign()])
    assert issubclass(EarlyStopping, Callback)
