"""Words of other libraries: what is the same works, and for the rest the error names the word of resfit."""

import abc
import copy
import dataclasses
import inspect
import pickle
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import callbacks, losses, metrics, optimizers
from resfit._utils.words import WORDS
from resfit.errors import ArgumentError, CallbackError, CompileError, OverrideError, SavedModelError, SpecError
from tests.helpers import PlainNet, assert_same, compiled, fit, images, labels
from tests.make_words import PAGE, tables


def plain(**arguments: Any) -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)), **arguments)


def words(place: str) -> list[str]:
    return [word for row in WORDS[place].values() for word in row.split()]


def test_the_tables_of_the_page_are_those_of_the_library() -> None:
    assert tables() in PAGE.read_text(), "run `make words`"


@pytest.mark.parametrize("place", WORDS)
def test_no_word_has_two_answers(place: str) -> None:
    assert len(words(place)) == len(set(words(place)))


# --- attributes of a model --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["methods", "settings", "assignments", "members"])
def test_reading_a_word_names_the_substitute(place: str) -> None:
    model = plain()
    for word in words(place):
        with pytest.raises(OverrideError, match=rf"no attribute '{word}'\. Expected "):
            getattr(model, word)
        assert not hasattr(model, word)


def test_reading_any_other_name_is_an_attribute_error() -> None:
    model = plain()
    for name in ("nothing", "_private", "__array__", "__fspath__", "_repr_svg_"):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'") as raised:
            getattr(model, name)
        assert type(raised.value) is AttributeError
        assert raised.value.name == name


def test_the_class_has_no_constructor_of_another_library_and_a_subclass_can_define_one() -> None:
    for name in (word for place in ("methods", "settings", "assignments", "members") for word in words(place)):
        with pytest.raises(OverrideError, match=rf"type object 'Model' has no attribute '{name}'\. Expected "):
            getattr(resfit.Model, name)
    with pytest.raises(AttributeError, match=r"^type object 'Model' has no attribute 'nothing'$"):
        resfit.Model.nothing  # type: ignore[attr-defined]  # noqa: B018
    mine = type("Mine", (resfit.Model, abc.ABC), {"from_config": classmethod(lambda cls, config: config)})
    assert mine.from_config(2) == 2  # type: ignore[attr-defined]
    assert not hasattr(mine, "from_pretrained")


def test_an_attribute_error_inside_a_property_keeps_its_message() -> None:
    class Mine(resfit.Model):
        @property
        def layers(self) -> Any:
            return self.missing  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Mine).layers


def test_a_model_without_attributes_can_be_made() -> None:
    empty = resfit.Model.__new__(resfit.Model)
    for read in (lambda model: model._control, copy.copy, pickle.dumps):
        with pytest.raises(AttributeError, match="_control"):
            read(empty)
    callback = callbacks.EarlyStopping(patience=2)
    assert pickle.loads(pickle.dumps(callback)).patience == copy.deepcopy(callback).patience == 2


# --- arguments --------------------------------------------------------------------------------------------------------


def test_unknown_arguments_name_the_substitute() -> None:
    model, x, y = plain(), images(), labels()
    for call, message in (
        (lambda: model.compile("sgd", steps_per_loop=2), r"Use compile\(steps_per_execution=...\)"),
        (lambda: model.compile("sgd", weighted_metrics=[]), r"Use metrics=\[...\], which count"),
        (lambda: model.fit(x, y, workers=2), "fit got workers=2.*It needs nothing: sources of"),
        (lambda: model.fit(x, y, max_epochs=2), r"Use fit\(epochs=...\)"),
        (lambda: model.fit(x, y, epoch=2), "Did you mean 'epochs'.* Expected some of"),
        (lambda: model.evaluate(x, y, max_queue_size=2), "It needs nothing: sources"),
        (lambda: model.predict(x, workers=2), "It needs nothing: sources"),
        (lambda: model(x, training=True), "It needs nothing: fit, evaluate and predict set the mode"),
        (lambda: callbacks.EarlyStopping(stopping_threshold=1), "EarlyStopping got .*Use baseline"),
        (lambda: callbacks.ModelCheckpoint("a.safetensors", period=2), "Use save_freq"),
        (lambda: callbacks.ReduceLROnPlateau(epsilon=1), "Use min_delta"),
        (lambda: callbacks.TensorBoard(profile_batch=2), "Use resfit.callbacks.Profiler"),
        (lambda: callbacks.CSVLogger(path="log.csv"), r"path\. Expected some of .'filename'"),  # has no filepath
        (lambda: callbacks.CSVLogger(filepath="log.csv"), "Did you mean 'filename'"),
        (lambda: losses.cross_entropy(x, y, label_smoothing=0.1), r"Use resfit\.losses\.CrossEntropy\(label_smoothing"),
        (lambda: losses.cross_entropy(y_true=y, y_pred=x), r"Use loss\(outputs, labels\) by position"),
        (lambda: losses.hinge(x, y, reduction="mean"), "It needs nothing: a loss returns one value per example"),
        (lambda: losses.huber(x, y, 2.0), "huber got 2.0 after its positional arguments outputs, targets"),
        (lambda: losses.CrossEntropy(ignore_class=0), r"Use resfit\.losses\.CrossEntropy\(ignore_index"),
        (lambda: metrics.top_k_accuracy(top_k=2), r"Use k\."),
        (lambda: resfit.nets.max_pool(x, kernel_size=2), r"Use window\."),
        (lambda: resfit.schedules.Step(1.0, gamma=0.1), r"Use drop\."),
        (lambda: resfit.weights.load(model.module, "net.pth", strict=False), r"Use ignore for .*, and head='reset'"),
        (lambda: resfit.weights.read(filename="net.pth"), r"Use path\."),
        (lambda: resfit.clear_caches(True), "clear_caches got True by position. Expected no others"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()


@pytest.mark.parametrize("name", sorted(set(callbacks.__all__) - {"Callback", "LambdaCallback"}))
def test_every_callback_names_the_substitute_of_an_argument_that_it_has(name: str) -> None:
    remedy = "Use restore_best_weights" if name == "EarlyStopping" else "Expected (some of|no arguments)"
    with pytest.raises(ArgumentError, match=rf"{name} got restore_best=True, and has no argument.*{remedy}"):
        getattr(callbacks, name)(restore_best=True)


def test_a_callback_of_a_user_keeps_its_arguments() -> None:
    class Mine(callbacks.EarlyStopping):
        def __init__(self, period: int, **rest: Any) -> None:
            super().__init__(**rest)
            self.period = period

    assert Mine(period=3, patience=2).patience == 2
    with pytest.raises(ArgumentError, match="EarlyStopping got epsilon=2"):
        Mine(3, epsilon=2)


def test_a_field_of_a_network_of_timm_names_the_substitute() -> None:
    for given, message in (
        ({"in_chans": 1}, "Use in_channels."),
        ({"pretrained": True}, r"Use resfit\.create_model\("),
    ):
        with pytest.raises(SpecError, match=f"unknown fields.*{message}"):
            resfit.create_model("resnet20", num_classes=3, **given)
    assert not {field.name for field in dataclasses.fields(resfit.nets.ResNetSpec)} & set(words("network"))


def test_no_word_of_the_arguments_is_an_argument() -> None:
    model = resfit.Model
    own = [*inspect.signature(model.compile).parameters, *inspect.signature(model.fit).parameters]
    assert not set(words("arguments")) & {*own, *inspect.signature(model.predict).parameters}


# --- names ------------------------------------------------------------------------------------------------------------


def test_unknown_names_name_the_substitute() -> None:
    for call, message in (
        (lambda: losses.get("L1Loss"), r"Unknown loss 'L1Loss'. Use loss='mean_absolute_error'"),
        (lambda: losses.get("kld"), "Use loss='kl_divergence'"),
        (lambda: metrics.by_name(["AUROC"]), r"Unknown metric 'AUROC'. Use metrics=\['auc'\]"),
        (lambda: optimizers.get("Nadam", None), r"optax\.nadam"),
        (lambda: optimizers.get("sam", 0.1), r"Unknown optimizer 'sam'.*Use optimizer=resfit\.optimizers\.sam\("),
        (lambda: optimizers.get("Lookahead", 0.1), r"Use optimizer=optax\.lookahead\("),
    ):
        with pytest.raises(CompileError, match=message):
            call()
    for given, message in (("BackupAndRestore", r"Checkpoint\(folder\)"), (["early_stopping"], "EarlyStopping")):
        with pytest.raises(CallbackError, match=f"the text .*Use resfit.callbacks.{message}"):
            fit(plain(), callbacks=given)


@pytest.mark.parametrize("name", ["Adam", "SGD", "AdamW", "RMSprop", "Lamb", "Muon"])
def test_names_of_optimizers_have_any_case(name: str) -> None:
    assert optimizers.default_rate(name) == optimizers.default_rate(name.lower())
    assert optimizers.get(name, None)[0]


def test_names_of_losses_and_metrics_have_any_case_and_keras_spelling() -> None:
    assert losses.get("MSE") is losses.get("MeanSquaredError") is losses.mean_squared_error
    assert losses.get("SparseCategoricalCrossentropy") is losses.get("categorical_crossentropy") is losses.cross_entropy
    assert losses.get("BinaryCrossentropy") is losses.binary_cross_entropy
    assert list(metrics.by_name(["AUC", "Accuracy", "MAE"], 3)) == ["auc", "accuracy", "mae"]


# --- Keras's arguments, attributes and methods that mean the same -----------------------------------------------------


def test_loss_and_metrics_can_be_positional() -> None:
    model = plain()
    model.compile("Adam", "sparse_categorical_crossentropy", ["sparse_categorical_accuracy", "accuracy"])
    assert model.metrics_names == ["loss", "sparse_categorical_accuracy", "accuracy"]
    results = dict(zip(model.metrics_names, model.evaluate(images(), labels(), verbose=0), strict=True))
    assert results["sparse_categorical_accuracy"] == results["accuracy"]


def test_metrics_by_the_names_of_losses_are_their_means() -> None:
    x, targets = images(), np.random.default_rng(0).normal(size=(20, 3)).astype("float32")
    model = plain(loss="mse", metrics=["mse", "mae", "cosine_similarity"])
    loss, mse, mae, cosine = model.evaluate(x, targets, verbose=0)
    outputs = model.predict(x, verbose=0)
    np.testing.assert_allclose([mse, mae], [loss, np.abs(outputs - targets).mean()], rtol=1e-5)
    norms = np.linalg.norm(outputs, axis=1) * np.linalg.norm(targets, axis=1)
    np.testing.assert_allclose(cosine, ((outputs * targets).sum(1) / norms).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"run_eagerly": True}, "eager"),
        ({"jit_compile": False}, "eager"),
        ({"jit_compile": True, "dispatch": "jit"}, "jit"),
        ({"run_eagerly": False, "jit_compile": "auto", "dispatch": "jit"}, "jit"),
    ],
)
def test_run_eagerly_and_jit_compile_choose_the_dispatch(arguments: dict[str, Any], kind: str) -> None:
    model = resfit.Model(PlainNet(rngs=nnx.Rngs(0)))
    model.compile("sgd", **arguments)
    assert model.control.compiled.config.dispatch == kind


@pytest.mark.parametrize(
    "arguments",
    [{"run_eagerly": True, "jit_compile": True}, {"run_eagerly": True, "dispatch": "jit"}, {"jit_compile": "yes"}],
)
def test_arguments_that_contradict_each_other_raise(arguments: dict[str, Any]) -> None:
    with pytest.raises(CompileError, match=r"contradict each other|Expected jit_compile"):
        resfit.Model(PlainNet(rngs=nnx.Rngs(0))).compile("sgd", **arguments)


def test_calling_a_model_predicts() -> None:
    model = plain()
    np.testing.assert_array_equal(model(images()), model.predict_on_batch(images()))


def test_count_params_counts_parameters_and_statistics() -> None:
    model = compiled()
    assert model.count_params() == sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model.module)))
    assert model.count_params() == sum(array.size for array in model.get_weights())


def test_saved_weights_are_read_into_the_model_and_training_goes_on(tmp_path: Path) -> None:
    model, path = plain(), tmp_path / "weights.safetensors"
    fit(model)
    model.save_weights(path)
    before = model.get_weights()
    fit(model)
    model.load_weights(path)
    assert_same(model.get_weights(), before)
    other = resfit.Model(PlainNet(rngs=nnx.Rngs(5)))
    other.load_weights(path)
    np.testing.assert_allclose(other(images()), model(images()), rtol=1e-4, atol=1e-6)
    with pytest.raises(SavedModelError, match="does not fit"):
        resfit.Model(PlainNet(5, rngs=nnx.Rngs(0))).load_weights(path)
    wrong = plain(preprocess=resfit.preprocess.Normalize((0.5,), (0.1,)))
    with pytest.raises(SavedModelError, match=r"preprocessing .*Auto.* and the model has Normalize"):
        wrong.load_weights(path)


def test_weights_only_checkpoints_are_model_files(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    saving = callbacks.ModelCheckpoint(path, "loss", save_best_only=True, save_weights_only=True)
    model = plain()
    history = fit(model, epochs=2, callbacks=[saving])
    assert (saving.monitor, saving.best, saving.filepath) == ("loss", min(history.history["loss"]), path)
    assert (saving.mode, saving.save_freq, saving.save_weights_only) == ("auto", "epoch", True)
    model.load_weights(path)
    assert_same(resfit.load_model(path, PlainNet(rngs=nnx.Rngs(0))).get_weights(), model.get_weights())
    with pytest.raises(CallbackError, match="save_weights_only to be True or False, got 'min'"):
        callbacks.ModelCheckpoint(path, "loss", 0, True, "min")  # type: ignore[arg-type]


def test_attributes_of_callbacks_are_those_of_keras() -> None:
    stopping = callbacks.EarlyStopping("loss", patience=1, min_delta=10, restore_best_weights=True)
    plateau = callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10, cooldown=2)
    model = plain()
    history = fit(model, epochs=4, callbacks=[stopping, plateau])
    assert (stopping.monitor, stopping.patience, stopping.wait, stopping.stopped_epoch) == ("loss", 1, 1, 1)
    assert stopping.best == plateau.best == history.history["loss"][0]
    assert_same(stopping.best_weights, model.get_weights())
    assert (plateau.monitor, plateau.factor, plateau.patience, plateau.wait) == ("loss", 0.5, 1, 0)
    assert (plateau.cooldown, plateau.cooldown_counter, plateau.min_lr, plateau.mode) == (2, 2, 0.0, "auto")
    assert len(history.epoch) == 2
