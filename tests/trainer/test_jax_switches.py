"""The switches of JAX that people turn on to find mistakes: every call of resfit works under each of them."""

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import resfit
from resfit import augment
from resfit._utils import jax_switches
from resfit.backends.program_cache import PROGRAMS
from resfit.errors import CompileError
from resfit.losses.loss_names import _BY_NAME as LOSSES
from resfit.metrics.metric_names import _BY_CLASS, _BY_NAME
from resfit.optimizers.resolve import _BY_NAME as OPTIMIZERS
from resfit.trainer.base_model import BaseModel
from tests.helpers import CLASSES, PlainNet, TinyNet, assert_close, compiled, fit, images, labels
from tests.levels import only

Switch = Callable[[], contextlib.AbstractContextManager[Any]]


def mesh(devices: int | None = None, kind: AxisType = AxisType.Explicit) -> Mesh:
    return jax.make_mesh(
        (devices or len(jax.devices()),), ("data",), axis_types=(kind,), devices=jax.devices()[:devices]
    )


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


@contextlib.contextmanager
def several() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in ("strict promotion", "rank promotion", "transfer guard", "mesh of two devices"):
            stack.enter_context(SWITCHES[name]())
        yield


SWITCHES: dict[str, Switch] = {
    "x64": lambda: jax.enable_x64(True),
    "disable_jit": jax.disable_jit,
    "debug_nans": lambda: jax.debug_nans(True),
    "debug_infs": lambda: jax.debug_infs(True),
    "strict promotion": lambda: jax.numpy_dtype_promotion("strict"),
    "rank promotion": lambda: jax.numpy_rank_promotion("raise"),
    "transfer guard": lambda: jax.transfer_guard("disallow"),
    "explicit transfer guard": lambda: jax.transfer_guard("disallow_explicit"),
    "transfer guard in config": lambda: configured(jax_transfer_guard="disallow"),
    "default device": lambda: jax.default_device(jax.devices()[-1]),
    "default device in config": lambda: configured(jax_default_device=jax.devices()[-1]),
    "mesh": lambda: jax.set_mesh(mesh()),
    "mesh of two devices": lambda: jax.set_mesh(mesh(2)),
    "mesh of automatic axes": lambda: jax.set_mesh(mesh(2, AxisType.Auto)),
    "tracer leaks": jax.checking_leaks,
    "several": several,
}


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
        "evaluate": np.array(model.evaluate(x, y, batch_size=8, verbose=0)),
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
        [("several", "plain", "jit")],
        [(name, make, dispatch) for name in SWITCHES for make in NETS for dispatch in ("jit", "auto", "eager")],
        slow=[
            *((name, "plain", "jit") for name in SWITCHES),
            *(("several", make, dispatch) for make in NETS for dispatch in ("auto", "eager")),
        ],
    ),
)
def test_every_call_gives_the_same_under_a_switch(switch: str, make: str, dispatch: str, tmp_path: Path) -> None:
    with SWITCHES[switch]():
        found = everything(NETS[make], tmp_path / "on", dispatch)
    expected = everything(NETS[make], tmp_path / "off", "jit")
    assert_close(found, expected, 1e-3)


@pytest.mark.slow
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


@pytest.mark.slow
def test_steps_run_without_compiling_under_disable_jit() -> None:
    model, twin = (compiled(PlainNet(rngs=nnx.Rngs(0))) for _ in range(2))
    PROGRAMS.clear()
    with jax.disable_jit():
        found = model.train_on_batch(images(4), labels(4))
    assert len(PROGRAMS) == 0
    assert_close(found, twin.train_on_batch(images(4), labels(4)))


def test_the_caller_of_predict_batches_keeps_its_switches() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    with jax.transfer_guard("disallow"):
        for _ in model.predict_batches(images(16), batch_size=8):
            assert jax.config.jax_transfer_guard == "disallow"
    assert jax.config.jax_transfer_guard != "disallow"


def test_calls_suspend_nothing_without_switches() -> None:
    """One shared object: a call costs microseconds more."""
    assert jax_switches.suspended() is jax_switches.suspended()


def test_every_public_call_of_a_model_is_suspended_from_the_switches() -> None:
    unwrapped = {
        name
        for kind in resfit.Model.__mro__
        if issubclass(kind, BaseModel)
        for name, member in vars(kind).items()
        if not name.startswith("_") and inspect.isfunction(member) and not hasattr(member, "__wrapped__")
    }
    assert unwrapped == {"compute_loss"}


def on_mesh(make: Callable[[], nnx.Module], over: Mesh) -> nnx.Module:
    """Return a module whose arrays are split over a mesh as far as the devices divide them."""

    def split(array: Any) -> Any:
        whole = array.ndim == 0 or array.shape[-1] % over.size
        spec = PartitionSpec() if whole else PartitionSpec(*[None] * (array.ndim - 1), "data")
        return jax.device_put(array, NamedSharding(over, spec))

    module = make()
    nnx.update(module, jax.tree.map(split, nnx.state(module, nnx.Not(nnx.RngKey))))
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Explicit", "Auto"])
@pytest.mark.parametrize("devices", [2, 4])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize(
    ("make", "dispatch"), [("tiny", "jit"), ("tiny", "pmap"), ("tiny", "eager"), ("resnet", "auto")]
)
def test_a_module_and_data_on_the_mesh_of_the_user_train_as_on_one_device(
    kind: str, devices: int, inside: bool, make: str, dispatch: str
) -> None:
    over = mesh(devices, AxisType[kind])
    x, y = images(8), labels(8)
    with jax.set_mesh(over) if inside else contextlib.nullcontext():
        x_there, y_there = (jax.device_put(array, NamedSharding(over, PartitionSpec("data"))) for array in (x, y))
        model = compiled(on_mesh(NETS[make], over), dispatch=dispatch)
        fit(model, x_there, y_there)
        nnx.update(model.module, nnx.state(on_mesh(lambda: nnx.clone(model.module), over)))
        found = model.train_on_batch(x_there, y_there), model.predict(x_there, verbose=0)
    twin = compiled(NETS[make]())
    fit(twin, x, y)
    assert_close(found, (twin.train_on_batch(x, y), twin.predict(x, verbose=0)), 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("switch", SWITCHES)
def test_tools_run_under_a_switch(switch: str, tmp_path: Path) -> None:
    x, y = images(8), labels(8)
    with SWITCHES[switch]():
        model = compiled(net())
        fit(model, x, y)
        resfit.doctor(model, x, y)
        assert np.isfinite(resfit.grad_cam(model, x[:2], "stage1")).all()
        no_plan = pytest.raises(CompileError, match="leave jax")
        with no_plan if switch == "disable_jit" else contextlib.nullcontext():
            model.summary((x, y))
        resfit.recalibrate(model, x)
        resfit.find_learning_rate(model, x, y)
        resfit.weights.save(model.module, tmp_path / "net.safetensors")
        resfit.weights.load(model.module, tmp_path / "net.safetensors")


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
    "rotate": (15,),
    "affine": (15,),
}


# Losses whose labels have the shape of the outputs.
BY_ELEMENT = {
    "mean_squared_error", "mse", "mean_absolute_error", "mae", "mean_absolute_percentage_error", "mape",
    "mean_squared_logarithmic_error", "msle", "huber", "log_cosh", "kl_divergence", "poisson", "cosine_similarity",
    "hinge",
}  # fmt: skip


def built(kind: str, name: str) -> Any:
    if kind == "metrics":
        return {name: _BY_CLASS[name](CLASSES)} if name in _BY_CLASS else [name]
    return getattr(augment, name)(*ARGUMENTS.get(name, ())) if kind == "augment" and hasattr(augment, name) else name


@pytest.mark.parametrize(
    ("switch", "kind", "name"),
    only(
        [("x64", "augment", "pad_crop")],
        [(switch, *part) for switch in ("x64", "strict promotion", "rank promotion") for part in PARTS],
        slow=[("x64", *part) for part in PARTS[::8]] + [("strict promotion", *part) for part in PARTS[4::8]],
    ),
)
def test_every_part_by_name_trains_under_a_switch(switch: str, kind: str, name: str) -> None:
    binary = name.startswith("binary")
    y: np.ndarray = labels(16) % 2 if binary else labels(16)
    classes = 6 if "top_" in name else CLASSES
    if name in BY_ELEMENT or name == "categorical_crossentropy":
        y = np.eye(classes, dtype=np.float32)[y]
    if kind == "loss" and name in ("mape", "mean_absolute_percentage_error"):
        y = y + 1  # a share of zero is infinite
    x = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)

    def run() -> Any:
        # The BatchNorm of Flax promotes bfloat16 implicitly.
        module = net() if kind == "precision" else TinyNet(1 if binary else classes, rngs=nnx.Rngs(0))
        arguments: dict[str, Any] = {"learning_rate": 0.01, "metrics": [], kind: built(kind, name)}
        if name == "binary_accuracy":
            arguments["loss"] = "binary_cross_entropy"
        model = compiled(module, **arguments)
        history = fit(model, x, y, sample_weight=np.ones(16), validation_data=(x, y)).history
        return history["loss"], history["val_loss"]

    with SWITCHES[switch]():
        found = run()
    assert np.isfinite(found).all() or name == "poisson"  # the logarithm of an output below 0 is NaN
    assert_close(found, run(), 1e-2)
