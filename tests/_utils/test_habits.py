"""Names that users of other libraries type from habit: each works, or its error names what resfit has instead."""

import functools
import inspect
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from flax import nnx

import resfit
from resfit import (
    augment,
    callbacks,
    data,
    distributed,
    losses,
    metrics,
    nets,
    optimizers,
    plots,
    preprocess,
    schedules,
    transforms,
    weights,
)
from resfit.errors import ResfitError
from tests.helpers import PlainNet, compiled, images, labels
from tests.test_public_names import public_names


@functools.cache
def shared() -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)))


def plain(**arguments: Any) -> Any:
    """Compile the shared model again if there are arguments; they are wrong, or differ from its own."""
    if arguments:
        shared().compile(**{"optimizer": "sgd", "learning_rate": 0.1, "dispatch": "jit", **arguments})
    return shared()


def fit(**arguments: Any) -> Any:
    return plain().fit(images(), labels(), verbose=0, **arguments)


def by_class(**arguments: Any) -> Any:
    net = resfit.create_model("resnet20", num_classes=3, in_channels=1, depths=(1,), widths=(4,))
    return compiled(net, **arguments)


class MeanSquaredError:
    """A loss or metric object of a user, with the name of Keras."""


# Name -> (use, a part of the error's text; None if the name works).
Table = dict[str, tuple[Callable[[], Any], str | None]]

KERAS: Table = {
    "load_model": (lambda: resfit.load_model("none.safetensors"), "Expected a file of Model.save"),
    "model(x)": (lambda: plain()(images()).shape, None),
    "model.trainable =": (lambda: setattr(plain(), "trainable", False), "model.freeze("),
    "a loss object": (lambda: plain(loss=MeanSquaredError()), "a name or a function of (logits, labels)"),
    "a metric object": (lambda: plain(metrics=[MeanSquaredError()]), "a metric's name, class or function"),
    "model.layers": (lambda: plain().layers, "model.module"),
    "loss='mae'": (lambda: plain(loss="mae"), None),
    "model.trainable_variables": (lambda: plain().trainable_variables, "nnx.state(model.module, nnx.Param)"),
    "load_weights": (lambda: plain().load_weights("none.safetensors"), "Expected a file of Model.save"),
    "sparse_categorical_accuracy": (lambda: plain(metrics=["sparse_categorical_accuracy"]), None),
    "save_weights('m.weights.h5')": (lambda: plain().save_weights("m.weights.h5"), "Save to 'm.weights.safetensors'"),
    "metrics_names": (lambda: plain().metrics_names, None),
    "train_step": (lambda: type("Mine", (resfit.Model,), {"train_step": lambda self: 0}), "override compute_loss"),
    "save_weights_only": (lambda: callbacks.ModelCheckpoint("a.safetensors", save_weights_only=True), None),
    "get_config": (lambda: plain().get_config(), "model.save(path)"),
    "model.optimizer": (lambda: plain().optimizer, "model.learning_rate"),
    "run_eagerly": (lambda: plain(run_eagerly=True, dispatch="auto"), None),
    "steps_per_execution": (lambda: plain(steps_per_execution=2), None),
    "optimizer.lr": (lambda: plain().lr, "model.learning_rate"),
    "fit(workers=)": (lambda: fit(workers=2), "read ahead in threads"),
    "compile(opt, loss) positional": (lambda: shared().compile("sgd", "mse"), None),
    "get_layer": (lambda: plain().get_layer("a"), "model.module"),
    "model.metrics": (lambda: plain().metrics, "compile(metrics=[...])"),
    "weighted_metrics": (lambda: plain(weighted_metrics=["accuracy"]), "weights apply to the loss"),
    "summary(print_fn=)": (lambda: plain().summary(print_fn=print), "summary got print_fn="),
    "'Adam'": (lambda: plain(optimizer="Adam"), None),
    "BackupAndRestore": (lambda: callbacks.BackupAndRestore, "resfit.callbacks.Checkpoint(folder)"),
    "clone_model": (lambda: resfit.clone_model, "copy.deepcopy(model)"),
    "to_json": (lambda: plain().to_json(), "model.save(path)"),
    "count_params": (lambda: plain().count_params(), None),
    "jit_compile": (lambda: plain(jit_compile=True), None),
    "metrics=['f1_score']": (lambda: by_class(metrics=["f1_score"]), None),
    "metrics=['rmse']": (lambda: plain(metrics=["rmse"]), "the square root of metrics=['mean_squared_error']"),
    "save(overwrite=)": (lambda: plain().save("a.safetensors", overwrite=True), "replaces a file at the path"),
    "load(custom_objects=)": (lambda: resfit.load("a", custom_objects={}), "resfit.load(path, module=...)"),
    "train_on_batch(reset_metrics=)": (
        lambda: plain().train_on_batch(images(), labels(), reset_metrics=False),
        "each call starts with new metrics",
    ),
    "fit(optimizer=)": (lambda: fit(optimizer="adam"), "It is an argument of compile."),
    "compile(epochs=)": (lambda: plain(epochs=3), "It is an argument of fine_tune and fit."),
    "fit(validation_data=0.2)": (lambda: fit(validation_data=0.2), "pass validation_split=0.2"),
    "keras.Sequential": (lambda: resfit.Sequential, "resfit.Model(module)"),
    "keras.applications": (lambda: resfit.applications, "resfit.create_model(name"),
    "losses.MeanSquaredError": (lambda: losses.MeanSquaredError(), "loss='mean_squared_error'"),
    "metrics.AUC": (lambda: metrics.AUC(), "metrics=['auc']"),
    "optimizers.Adam": (lambda: optimizers.Adam(1e-3), "optimizer='adam', learning_rate=..."),
    "optimizers.schedules": (lambda: optimizers.schedules, "resfit.schedules"),
    "schedules.CosineDecay": (lambda: schedules.CosineDecay(0.1, 10), "resfit.schedules.Cosine("),
    "layers.RandomFlip": (lambda: augment.RandomFlip("horizontal"), "resfit.augment.flip()"),
    "layers.RandomRotation": (lambda: augment.RandomRotation(0.1), "resfit.augment.rotate(degrees)"),
    "metrics.Accuracy()": (lambda: metrics.Accuracy(), "Use compile(metrics=['accuracy'])"),
    "metrics.BinaryAccuracy(threshold=)": (
        lambda: metrics.BinaryAccuracy(threshold=0.5), "'binary_accuracy' was made from threshold=0.5. Expected the"
    ),
    "metrics=[Accuracy, CrossEntropy]": (lambda: plain(metrics=[metrics.Accuracy, metrics.CrossEntropy]), None),
    "folder(validation_split=)": (lambda: data.folder("a", validation_split=0.2), "or fit(folder, validation_s"),
    "flip('horizontal')": (lambda: augment.flip("horizontal"), "got probability='horizontal'. Expected a num"),
    "mixup(None)": (lambda: augment.mixup(None), "got alpha=None. Expected a positive number"),
    "Focal('mean')": (lambda: losses.Focal("mean"), "gamma"),
    "CrossEntropy('mean')": (lambda: losses.CrossEntropy("mean"), "label_smoothing"),
    "color_jitter(brightness=None)": (lambda: augment.color_jitter(brightness=None), "got brightness=None"),
    "random_erasing(scale='a')": (lambda: augment.random_erasing(area=("a", "b")), "got area=('a', 'b')"),
    "losses.CrossEntropy(from_logits=)": (
        lambda: losses.CrossEntropy(from_logits=True), "It needs nothing: losses and metrics read logits"
    ),
    "schedules.Cosine(initial_learning_rate=)": (lambda: schedules.Cosine(initial_learning_rate=0.1), "Use peak."),
    "confusion_matrix(y_true=)": (lambda: plots.confusion_matrix(y_true=[0], y_pred=[0]), "labels and predictions"),
    "Model.from_config": (lambda: resfit.Model.from_config({}), "model.save(path)"),
    "Model.load_model": (lambda: resfit.Model.load_model("a"), "resfit.load(path)"),
    "applications.ResNet50": (lambda: nets.ResNet50(weights="imagenet"), "resfit.create_model('resnet50'"),
    "ResNet50V2": (lambda: resfit.ResNet50V2(), "resfit.create_model('resnetv2_50'"),
    "layers.Rescaling": (lambda: preprocess.Rescaling(1 / 255), "uint8 images become float32 in [0, 1]"),
    "cifar10.load_data": (lambda: data.load_data("cifar10"), "resfit.data.load(name)"),
    "plot_model": (lambda: plots.plot_model(plain()), "model.summary()"),
    "MirroredStrategy": (lambda: distributed.MirroredStrategy(), "fit uses the devices of all processes"),
    "image_dataset_from_directory": (lambda: data.image_dataset_from_directory, "resfit.data.folder(path)"),
    **{
        f"loss={name!r}": (lambda name=name: plain(loss=name), None)
        for name in (
            "huber", "log_cosh", "hinge", "kl_divergence", "poisson", "cosine_similarity", "msle", "mape",
        )
    },
    **{
        f"EarlyStopping.{name}": (lambda name=name: getattr(callbacks.EarlyStopping(), name), None)
        for name in ("wait", "best_weights", "patience", "monitor", "best", "stopped_epoch")
    },
    **{
        f"ModelCheckpoint.{name}": (lambda name=name: getattr(callbacks.ModelCheckpoint("a.safetensors"), name), None)
        for name in ("best", "filepath", "monitor", "save_freq", "save_best_only")
    },
}  # fmt: skip

LIGHTNING: Table = {
    "fit(max_epochs=)": (lambda: fit(max_epochs=3), "fit(epochs=...)"),
    "Trainer": (lambda: resfit.Trainer(max_epochs=3), "resfit.Model(module), then compile and fit"),
    "fit(patience=)": (lambda: fit(patience=3), "EarlyStopping(patience=3)"),
    "compile(accelerator=)": (lambda: plain(accelerator="gpu"), "uses all devices"),
    "compile(gradient_clip_val=)": (lambda: plain(gradient_clip_val=1.0), "resfit.optimizers.clip(...)"),
    "fit(ckpt_path=)": (lambda: fit(ckpt_path="a"), "fit(resume=True"),
    "fit(fast_dev_run=)": (lambda: fit(fast_dev_run=True), "fit(steps_per_epoch=...)"),
    "fit(profiler=)": (lambda: fit(profiler="simple"), "resfit.callbacks.Profiler"),
    "ModelCheckpoint(dirpath=)": (lambda: callbacks.ModelCheckpoint(dirpath="runs"), "Use filepath"),
    "EarlyStopping(stopping_threshold=)": (lambda: callbacks.EarlyStopping(stopping_threshold=1), "Use baseline"),
    "seed_everything": (lambda: resfit.seed_everything(0), "compile(seed=0)"),
    "LearningRateMonitor": (lambda: callbacks.LearningRateMonitor(), "in every epoch's logs"),
    "training_step": (lambda: type("Mine", (resfit.Model,), {"training_step": lambda self: 0}), "compute_loss"),
    "load_from_checkpoint": (lambda: resfit.Model.load_from_checkpoint("a.ckpt"), "resfit.load(path)"),
    "load_from_checkpoint of an object": (lambda: plain().load_from_checkpoint("a.ckpt"), "resfit.load(path)"),
    "torchmetrics": (
        lambda: metrics.Accuracy(task="multiclass", num_classes=3),
        "was made from task='multiclass', num_",
    ),
    "metrics.precision(average=)": (lambda: metrics.precision(3, average="macro"), "Use per_class=True"),
    "initialize(world_size=)": (lambda: distributed.initialize(world_size=2), "Use processes."),
    "init_process_group": (lambda: distributed.init_process_group("nccl"), "resfit.distributed.initialize()"),
    "get_rank": (lambda: distributed.get_rank(), "jax.process_index()"),
    "precision='16-mixed'": (lambda: plain(precision="16-mixed"), "'float32', 'bfloat16' or 'auto'"),
}

TIMM_AND_FASTAI: Table = {
    "compile(lr=)": (lambda: plain(lr=0.1), "compile(learning_rate=...)"),
    "compile(num_classes=)": (lambda: plain(num_classes=10), "create_model(..., num_classes=...)"),
    "compile(momentum=)": (lambda: plain(momentum=0.9), "optax.sgd(0.1, momentum=0.9)"),
    "compile(warmup_epochs=)": (lambda: plain(warmup_epochs=5), "compile(learning_rate=...)"),
    "compile(label_smoothing=)": (lambda: plain(label_smoothing=0.1), "CrossEntropy(label_smoothing=0.1)"),
    "compile(amp=)": (lambda: plain(amp=True), "precision='bfloat16'"),
    "compile(mixup=)": (lambda: plain(mixup=0.2), "compile(augment=...)"),
    "learning_rate='plateau'": (lambda: plain(learning_rate="plateau"), "resfit.callbacks.ReduceLROnPlateau"),
    "learning_rate='exponential'": (lambda: plain(learning_rate="exponential"), "optax.exponential_decay"),
    "create_model(pretrained=)": (
        lambda: resfit.create_model("resnet18", num_classes=3, pretrained=True),
        "weights=...",
    ),
    "create_model(in_chans=)": (lambda: resfit.create_model("resnet18", num_classes=3, in_chans=1), "in_channels"),
    "create_loader": (lambda: data.create_loader, "any iterable of (x, y) batches"),
    "transforms.Compose": (lambda: transforms.Compose([]), "Transforms(resize="),
    "resnet50()": (lambda: resfit.resnet50(), "resfit.create_model('resnet50', num_classes=...)"),
    "models.resnet18()": (lambda: nets.resnet18(), "resfit.create_model('resnet18'"),
    "Model.from_pretrained": (lambda: resfit.Model.from_pretrained("resnet18"), "weights=..."),
    "ResNet50_Weights": (lambda: weights.ResNet50_Weights, "weights=..."),
    "optimizers.adamw(lr=)": (lambda: optimizers.adamw(lr=1e-3), "Use learning_rate."),
    "augment.flip(p=)": (lambda: augment.flip(p=0.5), "Use probability."),
    "list_models(filter=)": (lambda: resfit.list_models(filter="resnet*"), "Use pattern."),
    "MNIST(train=)": (lambda: data.load("digits", train=True), "both parts are returned"),
    "grad_cam(target_layers=)": (lambda: resfit.grad_cam(plain(), target_layers=[]), "Use part."),
    "random_resized_crop(scales=)": (lambda: augment.random_resized_crop(8, scales=(0, 1)), "Did you mean 'scale'?"),
    "plot_top_losses": (lambda: plots.plot_top_losses(3), "resfit.plots.mistakes("),
    "show_batch": (lambda: plots.show_batch(), "folder(path).show()"),
    "CIFAR10": (lambda: data.CIFAR10("data"), "resfit.data.load('cifar10')"),
    "preprocess.Resize": (lambda: preprocess.Resize(224), "resfit.data.folder(path, size="),
    "vision_learner": (lambda: resfit.vision_learner, "resfit.Model(module)"),
    "fit_one_cycle": (lambda: plain().fit_one_cycle(1), "compile(learning_rate='one_cycle')"),
    "fit(bs=)": (lambda: fit(bs=8), "Use batch_size"),
    "fit(valid_pct=)": (lambda: fit(valid_pct=0.2), "Use validation_split"),
    "fit(cbs=)": (lambda: fit(cbs=[]), "fit(callbacks=[...])"),
    "loss='ce'": (lambda: plain(loss="ce"), "loss='cross_entropy'"),
    "metrics=['top5']": (lambda: plain(metrics=["top5"]), "top_5_accuracy"),
    "optimizer='momentum'": (lambda: plain(optimizer="momentum"), "optimizer='sgd'"),
}


@pytest.mark.parametrize("table", [KERAS, LIGHTNING, TIMM_AND_FASTAI], ids=["keras", "lightning", "timm and fastai"])
def test_names_typed_from_habit_work_or_name_what_resfit_has(table: Table, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = []
    for name, (use, message) in table.items():
        try:
            use()
            found = None
        except (ResfitError, AttributeError, FileNotFoundError) as error:
            found = str(error)
        if (message is None) != (found is None) or (message is not None and message not in str(found)):
            wrong.append(f"{name}: expected {message or 'no error'}, got {found or 'no error'}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "module",
    [
        losses,
        metrics,
        optimizers,
        callbacks,
        augment,
        schedules,
        transforms,
        data,
        nets,
        plots,
        preprocess,
        weights,
        distributed,
        resfit,
    ],
)
def test_any_other_name_of_a_subpackage_is_an_ordinary_attribute_error(module: Any) -> None:
    with pytest.raises(AttributeError, match=rf"^module '{re.escape(module.__name__)}' has no attribute 'nothing'$"):
        module.nothing  # noqa: B018
    assert not hasattr(module, "__wrapped__")


def called(name: str) -> Any:
    """Return a public class or function that can be called, or None."""
    value: Any = functools.reduce(getattr, name.split(".")[1:], resfit)
    if not isinstance(value, type):
        return value if hasattr(value, "__wrapped__") or inspect.isroutine(value) else None
    without = issubclass(value, BaseException) or inspect.isabstract(value) or getattr(value, "_is_protocol", False)
    return None if without or (value.__init__ is object.__init__ and not issubclass(value, tuple)) else value


# The others take any name, and raise once they know what the name is for.
TAKE_ANY: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "resfit.callbacks.LambdaCallback": ((), {}),
    "resfit.create_model": (("resnet20",), {"num_classes": 2}),
    "resfit.nets.create_model": (("resnet20",), {"num_classes": 2}),
    "resfit.data.ArrayBatches": ((images(2),), {}),
    **{
        f"resfit.nets.{name}": ((4, 4), {"layers": resfit.nets.Layers(), "rngs": nnx.Rngs(0)})
        for name in ("BasicBlock", "BottleneckBlock", "PreActBasicBlock", "PreActBottleneckBlock")
    },
}


@pytest.mark.parametrize("name", [name for name in public_names() if called(name) is not None])
def test_an_unknown_argument_of_a_public_name_raises_with_the_arguments(name: str) -> None:
    arguments, by_name = TAKE_ANY.get(name, ((), {}))
    with pytest.raises(resfit.errors.ResfitError, match=r"(?s)nonsense.* (Expected|Allowed|The fields)"):
        called(name)(*arguments, **by_name, nonsense=1)


def test_a_checked_name_stays_what_it_is() -> None:
    for name in public_names():
        value = called(name)
        if value is None or not value.__module__.startswith("resfit"):
            continue
        assert inspect.signature(value)
        if value.__qualname__ == value.__name__ == name.rpartition(".")[2]:
            assert pickle.loads(pickle.dumps(value)) is value, name
    assert resfit.losses.Task("kind", 2, 3)._replace(labels=4) == ("kind", 2, 4)


def test_a_substitute_is_an_argument_of_the_function() -> None:
    with pytest.raises(
        resfit.errors.ArgumentError, match=r"fine_tune got lr=3, and has no argument lr\. Use learning_rate\."
    ):
        plain().fine_tune(None, lr=3)
    with pytest.raises(resfit.errors.ArgumentError, match=r"no argument p\. Expected some of \['seed'"):
        resfit.augment.alternating_flip(p=0.5)  # type: ignore[call-arg]
    with pytest.raises(resfit.errors.ArgumentError, match=r"no argument prob\. Use probability\."):
        resfit.augment.flip(prob=0.5)  # type: ignore[call-arg]


def test_an_attribute_of_the_package_is_imported_when_it_is_read() -> None:
    code = "import resfit; print(resfit.sklearn.Classifier.__name__, resfit.testing.check_block.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["Classifier", "check_block"]
