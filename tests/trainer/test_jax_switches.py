"""The switches of JAX that people turn on to find mistakes: every call of resfit works under each of them."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import augment
from resfit._utils import jax_switches
from resfit.losses.loss_names import _BY_NAME as LOSSES
from resfit.metrics.metric_names import _BY_CLASS, _BY_NAME
from resfit.optimizers.resolve import _BY_NAME as OPTIMIZERS
from tests.helpers import CLASSES, PlainNet, TinyNet, assert_close, compiled, fit, images, labels
from tests.levels import only

Switch = Callable[[], contextlib.AbstractContextManager[Any]]


def mesh() -> contextlib.AbstractContextManager[Any]:
    return jax.set_mesh(jax.make_mesh((len(jax.devices()),), ("data",)))


@contextlib.contextmanager
def configured(**settings: Any) -> Iterator[None]:
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


SWITCHES: dict[str, Switch] = {
    "x64": lambda: jax.enable_x64(True),
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
    "default device": lambda: jax.default_device(jax.devices()[-1]),
    "default device in config": lambda: configured(jax_default_device=jax.devices()[-1]),
    "mesh": mesh,
    "tracer leaks": jax.checking_leaks,
}
QUICK = ["disable_jit", "transfer guard", "mesh", "strict promotion"]


def net() -> nnx.Module:
    return resfit.create_model("resnet20", num_classes=CLASSES, in_channels=1, depths=(1,), widths=(4,))


def everything(make: Callable[[], nnx.Module], folder: Path, dispatch: str) -> dict[str, Any]:
    """Return what the calls of a model give."""
    x, y = images(16), labels(16)
    folder.mkdir()
    model = compiled(make(), dispatch=dispatch, ema=0.9)
    saving = resfit.callbacks.Checkpoint(folder / "run")
    history = fit(model, x, y, validation_data=(x, y), callbacks=[saving], epochs=2).history
    found = {
        "history": np.array(list(history.values())),
        "evaluate": np.array(model.evaluate(x, y, batch_size=6, verbose=0)),
        "predict": model.predict(x, verbose=0, outputs="probabilities"),
        "ema": model.predict(x, verbose=0, weights="ema"),
    }
    model.save(folder / "model.safetensors")
    loaded = resfit.load(folder / "model.safetensors", module=None if make is net else make())
    found["loaded"] = loaded.predict(x, verbose=0)
    model.export(folder / "model.npz")
    found["exported"] = resfit.load_exported(folder / "model.npz").predict(x)
    found["batch"] = np.array(model.train_on_batch(x, y))
    found["weights"] = np.concatenate([array.ravel() for array in model.get_weights()])
    return found


def own(kind: Callable[..., nnx.Module]) -> nnx.Module:
    with jax.transfer_guard("allow"):  # the constructors of Flax transfer scalars
        return kind(rngs=nnx.Rngs(0))


NETS: dict[str, Callable[[], nnx.Module]] = {
    "plain": lambda: own(PlainNet),
    "tiny": lambda: own(TinyNet),
    "resnet": net,
}


@pytest.mark.parametrize(
    ("switch", "make", "dispatch"),
    only(
        [(name, "plain", "jit") for name in QUICK],
        [(name, make, dispatch) for name in SWITCHES for make in NETS for dispatch in ("jit", "auto", "eager")],
    ),
)
def test_every_call_gives_the_same_under_a_switch(switch: str, make: str, dispatch: str, tmp_path: Path) -> None:
    with SWITCHES[switch]():
        found = everything(NETS[make], tmp_path / "on", dispatch)
    expected = everything(NETS[make], tmp_path / "off", "jit")
    assert_close(found, expected, 1e-3)


def test_a_model_that_was_compiled_before_runs_without_jit_and_with_it_again(caplog: Any) -> None:
    model, twin = (compiled(PlainNet(rngs=nnx.Rngs(0))) for _ in range(2))
    jax_switches._warn_of_slow_steps.cache_clear()
    for each in (model, twin):
        fit(each)
    with jax.disable_jit(), caplog.at_level(logging.WARNING, "resfit"):
        found = fit(model).history["loss"], model.predict(images(), verbose=0)
    assert_close(found, (fit(twin).history["loss"], twin.predict(images(), verbose=0)), 1e-3)
    assert "disable_jit" in caplog.text
    assert_close(fit(model).history["loss"], fit(twin).history["loss"], 1e-3)


def test_the_caller_of_predict_batches_keeps_its_switches() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    with jax.transfer_guard("disallow"):
        for _ in model.predict_batches(images(16), batch_size=8):
            assert jax.config.jax_transfer_guard == "disallow"
    assert jax.config.jax_transfer_guard != "disallow"


PARTS: list[tuple[str, str]] = [
    *(("augment", name) for name in sorted({*augment.__all__} - {"Augment", "AugmentArgument", "PRESETS", "get"})),
    *(("augment", name) for name in augment.PRESETS),
    *(("loss", name) for name in LOSSES),
    *(("metrics", name) for name in (*_BY_NAME, *_BY_CLASS)),
    *(("optimizer", name) for name in OPTIMIZERS),
    *(("precision", name) for name in ("bfloat16",)),
]
ARGUMENTS = {
    "one_of": (augment.mixup(0.2, CLASSES), augment.cutmix(0.2, CLASSES)),
    "pad_crop": (1,),
    "mixup": (0.2, CLASSES),
    "cutmix": (0.2, CLASSES),
    "random_resized_crop": (8,),
}


def built(kind: str, name: str) -> Any:
    if kind == "metrics":
        return {name: _BY_CLASS[name](CLASSES)} if name in _BY_CLASS else [name]
    return getattr(augment, name)(*ARGUMENTS.get(name, ())) if kind == "augment" and hasattr(augment, name) else name


@pytest.mark.parametrize("switch", ["x64", "strict promotion", "rank promotion"])
@pytest.mark.parametrize(
    ("kind", "name"),
    only([("augment", "pad_crop"), ("optimizer", "adamw"), ("metrics", "calibration_error")], PARTS),
)
def test_every_part_by_name_trains_under_a_switch(switch: str, kind: str, name: str) -> None:
    binary = name.startswith("binary")
    y: np.ndarray = labels(16) % 2 if binary else labels(16)
    if name in ("mean_squared_error", "mse", "categorical_crossentropy"):
        y = np.eye(CLASSES, dtype=np.float32)[y]
    x = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)

    def run() -> Any:
        # The BatchNorm of Flax promotes bfloat16 implicitly.
        module = net() if kind == "precision" else TinyNet(1 if binary else CLASSES, rngs=nnx.Rngs(0))
        arguments: dict[str, Any] = {"learning_rate": 0.01, "metrics": [], kind: built(kind, name)}
        if name == "binary_accuracy":
            arguments["loss"] = "binary_cross_entropy"
        model = compiled(module, **arguments)
        history = fit(model, x, y, sample_weight=np.ones(16), validation_data=(x, y)).history
        return history["loss"], history["val_loss"]

    with SWITCHES[switch]():
        found = run()
    assert np.isfinite(found).all()
    assert_close(found, run(), 1e-2)
