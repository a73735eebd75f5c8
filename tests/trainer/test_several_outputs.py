"""A module with several outputs: losses, weights, metrics, labels and sample weights by output."""

import csv
import io
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Checkpoint, CSVLogger, EarlyStopping, ModelCheckpoint
from resfit.errors import CompileError, DataError, LabelError, LossError, ModuleError, ResumeError
from tests import levels
from tests.faults import runs
from tests.helpers import BATCH, CLASSES, assert_close, assert_same, compiled, context_of, fit, images, labels, values

N = 20
X, KIND = images(N), labels(N)
SIZE = np.linspace(-1, 1, N).astype(np.float32)
WEIGHTS = {"size": np.linspace(0.5, 2, N).astype(np.float32), "kind": np.linspace(2, 0, N).astype(np.float32)}
Y = {"size": SIZE, "kind": KIND}
Pair = namedtuple("Pair", "size kind")


class Heads(nnx.Module):
    """Two dense layers on the pixels."""

    def __init__(self, form: Callable[[Any, Any], Any] = lambda size, kind: {"size": size, "kind": kind}) -> None:
        self.size = nnx.Linear(64, 1, rngs=nnx.Rngs(0))
        self.kind = nnx.Linear(64, CLASSES, rngs=nnx.Rngs(1))
        self.form = form

    def __call__(self, x: jax.Array) -> Any:
        x = x.reshape(x.shape[0], -1)
        return self.form(self.size(x), self.kind(x))


def heads(module: nnx.Module | None = None, **arguments: Any) -> Any:
    """Return a compiled model of two heads."""
    return compiled(
        module or Heads(),
        **{
            "loss": {"size": "mse", "kind": "auto"},
            "loss_weights": {"size": 0.5},
            "metrics": {"size": ["mae"], "kind": ["accuracy"]},
            "learning_rate": 0.01,
            **arguments,
        },
    )


def parts_of(module: Any, x: Any, y: Any) -> dict[str, jax.Array]:
    """Return the loss of each example by output, as a careful user writes it."""
    outputs = module(x)
    return {
        "size": optax.squared_error(outputs["size"][:, 0], y["size"]),
        "kind": optax.softmax_cross_entropy_with_integer_labels(outputs["kind"], y["kind"]),
    }


def expected(module: Any, x: Any, y: Any, weights: Any) -> dict[str, jax.Array]:
    """Return the values of Keras's rule: the total is the sum of weight * mean loss."""
    means = {name: (part * weights[name]).mean() for name, part in parts_of(module, x, y).items()}
    return {"loss": 0.5 * means["size"] + means["kind"], "size_loss": means["size"], "kind_loss": means["kind"]}


def rows(tree: Any, first: int, size: int = BATCH) -> Any:
    return jax.tree.map(lambda leaf: leaf[first : first + size], tree)


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    levels.only([{}], [{}, {"gradient_accumulation_steps": 2}, {"dispatch": "sharded"}, {"dispatch": "pmap"}]),
    ids=str,
)
def test_each_step_is_that_of_a_hand_written_loop(arguments: dict[str, Any]) -> None:
    model, module = heads(optimizer=optax.sgd(0.01), learning_rate=None, **arguments), Heads()
    graph, params = nnx.split(module)
    optimizer = optax.sgd(0.01)

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any, weights: Any) -> Any:
        def loss(params: Any) -> Any:
            found = expected(nnx.merge(graph, params), x, y, weights)
            return found["loss"], found

        gradients, found = jax.grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradients, state)
        return optax.apply_updates(params, updates), state, found

    state = optimizer.init(params)
    for first in (0, BATCH, 2 * BATCH, 0):  # a partial batch too
        x, y, weights = rows((X, Y, WEIGHTS), first)
        params, state, reference = step(params, state, x, y, weights)
        found = model.train_on_batch(x, y, sample_weight=weights, return_dict=True)
        assert_close({name: found[name] for name in reference}, jax.device_get(reference), 1e-6)
    nnx.update(module, params)
    assert_close(values(model.module), values(module), 1e-6)


def test_evaluation_and_validation_follow_the_rule_of_keras_also_in_a_padded_last_batch() -> None:
    model = heads(learning_rate=1e-6)
    reference = {name: float(value) for name, value in expected(Heads(), X, Y, WEIGHTS).items()}
    found = model.evaluate(X, Y, batch_size=BATCH, sample_weight=WEIGHTS, verbose=0, return_dict=True)
    assert_close({name: found[name] for name in reference}, reference, 1e-6)
    outputs = model.predict(X, batch_size=BATCH, verbose=0)
    assert found["size_mae"] == pytest.approx(np.abs(outputs["size"][:, 0] - SIZE).mean(), rel=1e-6)  # unweighted
    assert found["kind_accuracy"] == pytest.approx((outputs["kind"].argmax(axis=1) == KIND).mean())
    history = fit(model, X, Y, validation_data=(X, Y, WEIGHTS)).history
    assert_close({name: history[f"val_{name}"][0] for name in found}, found, 1e-4)
    assert set(history) == {*found, *(f"val_{name}" for name in found)}
    assert model.metrics_names == ["loss", "size_loss", "kind_loss", "size_mae", "kind_accuracy"]
    assert model.evaluate(X, Y, verbose=0) == model.test_on_batch(X, Y)


def test_one_array_weighs_every_output_and_a_missing_entry_weighs_one() -> None:
    weight, ones = WEIGHTS["size"], np.ones(N, np.float32)
    model = heads()
    for given, equal in (
        (weight, {"size": weight, "kind": weight}),
        ({"size": weight}, {"size": weight, "kind": ones}),
        ({"size": weight.tolist(), "kind": None}, {"size": weight, "kind": ones}),
        ({"size": 0 * ones}, {"size": 0 * ones, "kind": ones}),
    ):
        found = model.test_on_batch(X, Y, sample_weight=given)
        assert_close(found, model.test_on_batch(X, Y, sample_weight=equal), 1e-6)


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "given"),
    levels.only(
        [(tuple, tuple)],
        [(tuple, tuple), (list, list), (tuple, list), (tuple, dict), (Pair._make, Pair._make), (Pair._make, dict)],
    ),
)
def test_outputs_in_every_form_train_alike(form: Any, given: Any) -> None:
    def made(size: Any, kind: Any) -> Any:
        names = ("size", "kind") if form == Pair._make else ("output_0", "output_1")
        return dict(zip(names, (size, kind), strict=True)) if given is dict else given((size, kind))

    reference = heads(metrics="auto")
    before = fit(reference, X, Y, sample_weight=WEIGHTS)
    arguments = {"loss": made("mse", "auto"), "loss_weights": made(0.5, None), "metrics": made(None, "accuracy")}
    model = heads(Heads(lambda *outputs: form(outputs)), **arguments)
    history = fit(model, X, made(SIZE, KIND), sample_weight=made(*WEIGHTS.values()))
    assert_same(values(model.module), values(reference.module))
    names = {"size": "output_0", "kind": "output_1"} if form != Pair._make else {}
    for name, series in before.history.items():
        output, _, rest = name.partition("_")
        assert history.history["_".join(filter(None, (names.get(output, output), rest)))] == series
    assert type(model.predict(X, verbose=0)) is type(form((1, 2)))


def test_outputs_can_have_no_loss_and_no_labels() -> None:
    alone = heads(loss={"kind": "auto"}, loss_weights=None, metrics="auto")
    results = alone.test_on_batch(X, {"kind": KIND, "size": None}, return_dict=True)
    assert list(results) == ["loss", "kind_loss", "kind_accuracy"]
    assert results["loss"] == results["kind_loss"]
    other = heads(loss={"kind": "auto", "size": None}, loss_weights=None, metrics={"size": "mae"})
    both = other.test_on_batch(X, Y, return_dict=True)  # a metric of an output without a loss
    assert list(both) == ["loss", "kind_loss", "size_mae"]
    assert both["loss"] == results["loss"]
    in_a_list = heads(Heads(lambda *outputs: outputs), loss=[None, "auto"], loss_weights=None, metrics=None)
    assert in_a_list.train_on_batch(X, (None, KIND))[0] == pytest.approx(results["loss"], rel=1e-6)


@pytest.mark.parametrize(
    "loss", levels.only([[None, "auto"]], [[None, "auto"], [None, "auto", None], {"output_1": "auto"}])
)
def test_labels_of_the_outputs_with_a_loss_are_enough(loss: Any) -> None:
    third = len(loss) == 3
    model = heads(
        Heads(lambda size, kind: (size, kind, size) if third else (size, kind)), loss=loss, loss_weights=None,
        metrics=[None, "accuracy", None][: len(loss)] if isinstance(loss, list) else {"output_1": ["accuracy"]},
    )  # fmt: skip
    alone = heads(loss={"kind": "auto"}, loss_weights=None, metrics={"kind": ["accuracy"]})
    want = list(alone.test_on_batch(X, {"kind": KIND}, return_dict=True).values())
    assert model.test_on_batch(X, KIND) == want
    assert model.evaluate(X, KIND, batch_size=N, verbose=0) == want
    with pytest.raises(LabelError, match="Output 'output_1': The labels run from 1 to 3"):
        fit(model, X, KIND + 1)
    fit(model, X, KIND, validation_split=0.2)


@pytest.mark.slow
def test_a_list_of_labels_can_leave_out_the_outputs_without_a_loss() -> None:
    model = heads(Heads(lambda *both: (both[0], *both)), loss=[None, "mse", "auto"], loss_weights=None, metrics=None)
    assert model.test_on_batch(X, [SIZE, KIND]) == model.test_on_batch(X, [None, SIZE, KIND])


class TwoInputs(nnx.Module):
    """Heads on an image and a number."""

    def __init__(self) -> None:
        self.heads = Heads()

    def __call__(self, x: Any) -> Any:
        image, shift = x if isinstance(x, tuple) else (x["image"], x["shift"])
        return self.heads(image + shift[:, None, None, None])


@pytest.mark.parametrize("form", levels.only([dict], [dict, tuple]))
def test_several_inputs_take_sample_weights(form: type) -> None:
    inputs: Any = {"image": X, "shift": SIZE} if form is dict else (X, SIZE)
    moved = X + SIZE[:, None, None, None]
    one, two = heads(), heads(TwoInputs())
    plain = fit(one, moved, Y, sample_weight=WEIGHTS, shuffle=False, batch_size=10)
    found = fit(two, inputs, Y, sample_weight=WEIGHTS, shuffle=False, batch_size=10)
    assert_close(found.history, plain.history, 1e-5)
    batches = [rows((inputs, Y, WEIGHTS), first, 10) for first in (0, 10)]
    assert_close(fit(heads(TwoInputs()), batches).history, found.history, 1e-6)


def test_metrics_by_output_work_with_a_custom_loss_and_a_custom_step() -> None:
    def loss(outputs: Any, labels: Any) -> Any:
        return optax.squared_error(outputs["size"][:, 0], labels["size"])

    class Penalized(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, **arguments: Any) -> Any:
            found, outputs = super().compute_loss(module, x, y, **arguments)
            return found + 1, outputs

    metrics = {"size": ["mae"], "kind": {"acc": "accuracy"}}
    model = heads(loss=loss, loss_weights=None, metrics=metrics)
    assert list(model.test_on_batch(X, Y, return_dict=True)) == ["loss", "size_mae", "kind_acc"]
    total = heads().test_on_batch(X, Y, return_dict=True)["loss"]
    penalized = heads(kind=Penalized, metrics=metrics)
    results = penalized.test_on_batch(X, Y, return_dict=True)
    assert list(results) == ["loss", "size_mae", "kind_acc"]
    assert results["loss"] == pytest.approx(total + 1, rel=1e-6)
    with pytest.raises(DataError, match=r"one value per example.*put the weights into y"):
        fit(penalized, X, Y, sample_weight=WEIGHTS)


def test_several_labels_per_example_are_the_matter_of_one_output() -> None:
    several = np.stack([KIND == 0, KIND >= 0, KIND == 2], axis=1).astype(np.float32)
    model = heads(loss={"kind": "binary_cross_entropy", "size": "mse"}, metrics={"kind": ["accuracy"]})
    probabilities = jax.nn.sigmoid(model.predict(X, verbose=0)["kind"])
    found = model.test_on_batch(X, {"kind": several, "size": SIZE}, return_dict=True)
    assert found["kind_accuracy"] == pytest.approx(float(((probabilities > 0.5) == several).mean()))
    custom = heads(
        loss={"kind": lambda o, y: optax.sigmoid_binary_cross_entropy(o, y).mean(axis=1)}, loss_weights=None,
        metrics={"kind": ["accuracy"]},
    )  # fmt: skip
    with pytest.raises(LabelError, match=r"Output 'kind': Row 2 .*read one label per example"):
        custom.test_on_batch(X, {"kind": several})


# --- callbacks, files, resume -----------------------------------------------------------------------------------------


def test_callbacks_read_the_names_of_outputs_and_a_run_resumes_exactly(tmp_path: Path) -> None:
    def go(folder: str, *more: Any) -> Any:
        model = heads(ema=0.9)
        callbacks = [
            EarlyStopping("val_kind_accuracy", patience=5),
            ModelCheckpoint(tmp_path / folder / "{val_size_loss:.3f}.safetensors", monitor="size_loss"),
            CSVLogger(tmp_path / folder / "log.csv"),
            Checkpoint(tmp_path / folder / "run", every=1),
            *more,
        ]
        history = fit(
            model, X, Y, sample_weight=WEIGHTS, validation_data=(X, Y, WEIGHTS), epochs=2, callbacks=callbacks,
            resume=True,
        )  # fmt: skip
        return model, history

    whole, history = go("whole")
    with runs.stopped(SystemExit):
        go("cut", runs.Stops(4, runs.terminate))
    resumed, again = go("cut")
    assert_same(values(resumed.module), values(whole.module))
    assert again.history == history.history
    assert_same(resumed.get_weights("ema"), whole.get_weights("ema"))
    log = list(csv.DictReader(io.StringIO((tmp_path / "whole" / "log.csv").read_text())))
    assert [float(row["val_kind_accuracy"]) for row in log] == history.history["val_kind_accuracy"]
    best = min(history.history["val_size_loss"])
    assert (tmp_path / "whole" / f"{best:.3f}.safetensors").exists()


@pytest.mark.slow
def test_other_loss_weights_and_other_sample_weights_are_another_run(tmp_path: Path) -> None:
    def go(weights: Any = WEIGHTS, *more: Any, **arguments: Any) -> None:
        callbacks = [Checkpoint(tmp_path, every=1), *more]
        fit(heads(**arguments), X, Y, sample_weight=weights, callbacks=callbacks, resume=True)

    with runs.stopped(SystemExit):
        go(WEIGHTS, runs.Stops(1, runs.terminate))
    with pytest.raises(ResumeError, match="another program"):
        go(loss_weights={"size": 2.0})
    with pytest.raises(ResumeError, match=r"data\.weights\.kind was \d+, is \d+"):
        go({**WEIGHTS, "kind": SIZE + 1})
    go()


@pytest.mark.slow
def test_tensorboard_has_a_series_for_each_name(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(heads(), X, Y, callbacks=[resfit.callbacks.TensorBoard(tmp_path)])
    tags = {
        tag
        for file in tmp_path.rglob("events*")
        for tag in EventAccumulator(str(file)).Reload().Tags()["tensors"]
        + EventAccumulator(str(file)).Reload().Tags()["scalars"]
    }
    assert any("size_loss" in tag for tag in tags)


def test_prediction_export_and_files_keep_the_structure(tmp_path: Path) -> None:
    model = heads()
    fit(model, X, Y)
    whole = model.predict(X, batch_size=BATCH, verbose=0)
    assert {name: outputs.shape for name, outputs in whole.items()} == {"size": (N, 1), "kind": (N, CLASSES)}
    batches = list(model.predict_batches(X, batch_size=BATCH))
    assert_same(jax.tree.map(lambda *parts: np.concatenate(parts), *batches), whole)
    model.export(tmp_path / "heads.npz", platforms=("cpu",))
    assert_close(resfit.load_exported(tmp_path / "heads.npz").predict(X), whole, 1e-5)
    model.save(tmp_path / "heads.safetensors")
    loaded = resfit.load(tmp_path / "heads.safetensors", Heads())
    assert_close(loaded.predict(X, verbose=0), whole, 1e-5)
    assert context_of(model).learned.labels.multi_label is None


# --- errors -----------------------------------------------------------------------------------------------------------

WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a loss of an unknown output": (
        lambda: fit(heads(loss={"size": "mse", "kinds": "auto"}), X, Y),
        CompileError,
        r"loss .*'kinds'.*\['kind', 'size'\]. Did you mean 'kind'",
    ),
    "a list of losses for a dict": (
        lambda: fit(heads(loss=["mse", "auto"], loss_weights=None, metrics=None), X, Y),
        CompileError,
        r"'output_0'.*\['kind', 'size'\]. Pass a dict",
    ),
    "another number of losses": (
        lambda: fit(heads(Heads(lambda *both: both), loss=["mse"], loss_weights=None, metrics=None), X, (SIZE, KIND)),
        CompileError,
        "1 entries.*returns 2 outputs",
    ),
    "labels of an unknown output": (
        lambda: fit(heads(), X, {"size": SIZE, "kid": KIND}),
        LabelError,
        "y .*'kid'.*Did you mean 'kind'",
    ),
    "no labels for a loss": (
        lambda: fit(heads(), X, {"size": SIZE}),
        LabelError,
        r"Output 'kind': There are no labels.*\['size'\].*loss={'kind': None}",
    ),
    "no labels for a metric": (
        lambda: fit(heads(loss={"size": "mse"}), X, {"size": SIZE}),
        LabelError,
        "Output 'kind': There are no labels for the metrics",
    ),
    "labels as one array": (lambda: fit(heads(), X, KIND), LabelError, r"y is one array \(8,\).*Expected a dict"),
    "a metric of an unknown output": (
        lambda: fit(heads(metrics={"sizes": ["mae"]}), X, Y),
        CompileError,
        "metrics .*'sizes'.*Did you mean 'size'",
    ),
    "weights of an unknown output": (
        lambda: fit(heads(), X, Y, sample_weight={"kinds": SIZE + 1}),
        DataError,
        "sample_weight .*'kinds'.*Did you mean 'kind'",
    ),
    "validation weights of an unknown output, before the first step": (
        lambda: fit(heads(), X, Y, validation_data=(X, Y, [SIZE + 1, SIZE + 1])),
        DataError,
        "sample_weight .*'output_0'.*Pass a dict",
    ),
    "weights of two axes": (
        lambda: fit(heads(), X, Y, sample_weight={"kind": np.ones((N, 1))}),
        DataError,
        r"sample_weight\['kind'\].*\(20, 1\).*sample_weight\['kind'\]\[:, 0\]",
    ),
    "nested weights": (
        lambda: fit(heads(), X, Y, sample_weight={"kind": {"a": SIZE + 1}}),
        DataError,
        r"sample_weight\['kind'\] is a dict",
    ),
    "nested weights in a list": (
        lambda: fit(heads(), X, Y, sample_weight={"kind": [SIZE + 1, SIZE + 1]}),
        DataError,
        r"sample_weight\['kind'\] is a list of 2",
    ),
    "weights of zero": (
        lambda: fit(heads(), X, Y, sample_weight={"kind": SIZE * 0, "size": SIZE * 0}),
        DataError,
        "All sample weights of the outputs",
    ),
    "weights by class": (
        lambda: fit(heads(), X, Y, sample_weight={0: 1.0, 1: 5.0}),
        DataError,
        r"dict of \[0, 1\].*class_weight",
    ),
    "weights by output of one loss": (
        lambda: heads(loss=lambda outputs, labels: outputs["size"][:, 0], loss_weights=None, metrics=None).evaluate(
            X, Y, sample_weight=WEIGHTS, verbose=0
        ),
        DataError,
        "one value per example",
    ),
    "class weights": (
        lambda: fit(heads(), X, Y, class_weight={0: 2.0}),
        DataError,
        r"got a dict of \['kind', 'size'\].*sample_weight={",
    ),
    "class weights by output": (
        lambda: fit(heads(), X, Y, class_weight={"kind": {0: 2.0}}),
        DataError,
        "weights for each output.*sample_weight={",
    ),
    "class weights of batches": (
        lambda: fit(heads(), [(X, Y)], class_weight={0: 2.0}),
        DataError,
        "sample_weight={",
    ),
    "class weights of one batch": (
        lambda: heads().train_on_batch(X, Y, class_weight={0: 2.0}),
        DataError,
        "sample_weight={",
    ),
    "a module with one output": (
        lambda: fit(heads(Heads(lambda size, kind: kind)), X, Y),
        ModuleError,
        r"returns one array \(8, 3\)",
    ),
    "a nested output": (
        lambda: fit(heads(Heads(lambda size, kind: {"size": size, "kind": {"a": kind}})), X, Y),
        ModuleError,
        r"output 'kind' .* a dict of \['a'\].*flat dict",
    ),
    "one loss of several outputs": (
        lambda: fit(heads(loss="mse", loss_weights=None, metrics=None), X, Y),
        LabelError,
        r"a dict of \['kind', 'size'\].*a loss for each",
    ),
    "a label that is no class": (
        lambda: fit(heads(), X, {"size": SIZE, "kind": KIND + 1}),
        LabelError,
        "Output 'kind': The labels run from 1 to 3",
    ),
    "a loss that averages": (
        lambda: fit(heads(loss={"size": lambda outputs, labels: outputs.mean()}), X, Y),
        LossError,
        r"Output 'size': The loss returned shape \(\)",
    ),
    "a loss that fails": (
        lambda: fit(heads(loss={"size": lambda outputs, labels: outputs.nothing}), X, Y),
        AttributeError,
        "nothing",
    ),
    "loss_weights of one loss": (lambda: heads(loss="mse"), CompileError, "loss_weights=.* and one loss"),
    "loss_weights of an unknown output": (
        lambda: heads(loss_weights={"kid": 1.0}),
        CompileError,
        "loss_weights .*'kid'.*Did you mean 'kind'",
    ),
    "too few loss_weights": (lambda: heads(loss_weights=[1.0]), CompileError, "1 entries, and loss has 2"),
    "loss_weights that are no numbers": (
        lambda: heads(loss_weights={"size": "much"}),
        CompileError,
        "Output 'size': .*finite numbers, got 'much'",
    ),
    "no loss at all": (lambda: heads(loss={"size": None}), CompileError, "a loss for one output or more"),
    "nested losses": (lambda: heads(loss={"size": {"a": "mse"}}), CompileError, "Output 'size': .*not nested"),
    "an unknown loss": (lambda: heads(loss={"size": "msee"}), CompileError, "Output 'size': Unknown loss 'msee'"),
    "an unknown metric": (
        lambda: heads(metrics={"size": ["accurcy"]}),
        CompileError,
        "Output 'size': Unknown metric 'accurcy'",
    ),
    "metrics for no output": (lambda: heads(metrics="mae"), CompileError, "metrics is 'mae'.*Expected a dict"),
    "a list of metrics for a dict": (
        lambda: heads(metrics=["mae", "accuracy"]),
        CompileError,
        "metrics is a list, and loss is a dict",
    ),
    "another number of metrics": (
        lambda: heads(loss=["mse", "auto"], loss_weights=None, metrics=[["mae"]]),
        CompileError,
        "metrics has 1 entries, and loss has 2",
    ),
    "a name of validation": (
        lambda: heads(loss={"val_size": "mse"}, loss_weights=None),
        CompileError,
        "cannot be the name of an output",
    ),
    "a name that is no text": (lambda: heads(loss={0: "mse"}, loss_weights=None), CompileError, "has the key 0"),
    "two values of one name": (
        lambda: heads(loss={"a": "mse", "a_b": "mse"}, loss_weights=None, metrics={"a": {"b_loss": "mae"}}),
        CompileError,
        "'a_b_loss'",
    ),
}


@pytest.mark.parametrize(
    "case",
    levels.only(
        ["a loss of an unknown output", "no labels for a loss", "class weights by output", "loss_weights of one loss"],
        WRONG,
    ),
)
def test_a_mistake_is_explained(case: str) -> None:
    call, error, words = WRONG[case]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("form", [tuple, list])
def test_several_labels_per_example_raise_for_a_metric_of_one_label(form: Callable[[Any], Any]) -> None:
    multi_hot = np.ones((N, CLASSES), np.float32)
    model = heads(
        Heads(lambda size, kind: (size, kind)), loss=["mse", lambda logits, labels: ((logits - labels) ** 2).mean(1)],
        loss_weights=None, metrics=[[], ["accuracy"]],
    )  # fmt: skip
    with pytest.raises(LabelError, match="Output 'output_1': Row 0 of the labels has 3 labels"):
        fit(model, X, form([SIZE[:, None], multi_hot]))


def test_lists_of_numbers_by_output_get_the_remedy() -> None:
    model = heads(Heads(lambda size, kind: (size, kind)), loss=["mse", "auto"], loss_weights=None, metrics=None)
    with pytest.raises(DataError, match=r"y is one array of shape \(2, 20\).*tuple\(map\(np\.asarray, y\)\)"):
        fit(model, X, [SIZE.tolist(), KIND.tolist()])
