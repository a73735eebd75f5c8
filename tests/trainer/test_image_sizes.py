"""`fit(image_sizes=...)`: each epoch trains on images of its size, resized in the step, with one program per size."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from einops import reduce
from flax import nnx

import resfit
from resfit.augment.resize import Resize
from resfit.errors import DataError, LabelError, RankError
from resfit.trainer.devices.placement import Placement
from tests.faults import runs
from tests.helpers import TinyNet, assert_close, assert_same, call, compiled, fit, images, labels, state_of

SIZES = {0: 4, 1: (6, 5), 3: None}


class Compilations(resfit.callbacks.Callback):
    """Records the programs that a fit compiles, by epoch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, str]] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_compile_begin(self, what: str) -> None:
        self.seen.append((self.epoch, what))


def resized(x: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return images that Pillow resized."""
    return np.stack([
        np.stack([
            np.asarray(PIL.Image.fromarray(channel).resize((width, height), PIL.Image.Resampling.BILINEAR))
            for channel in np.moveaxis(image, 2, 0)
        ], axis=-1) for image in x
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after"), [((9, 14), (5, 6)), ((6, 5), (13, 9)), ((8, 8), (3, 20))],
    ids=["smaller", "larger", "narrower and wider"],
)  # fmt: skip
def test_images_are_resized_as_pillow_does(before: tuple[int, int], after: tuple[int, int]) -> None:
    x = np.random.default_rng(0).integers(0, 256, (3, *before, 2), dtype=np.uint8)
    got, _ = Resize(*after)(jnp.asarray(x), None)
    assert got.dtype == np.uint8
    assert np.abs(np.asarray(got, int) - resized(x, *after)).max() <= 1
    floats, _ = Resize(*after)(jnp.asarray(x, jnp.float32), None)
    assert np.abs(np.asarray(floats) - resized(x.astype(np.float32), *after)).max() < 1e-3


@pytest.mark.parametrize(("size", "to"), [((3, 7), 2), ((1, 2), 3)], ids=["twice", "three times"])
def test_masks_and_weights_of_pixels_follow_their_pixels(size: tuple[int, int], to: int) -> None:
    # Images whose sides grow by a whole factor repeat each pixel in masks.
    masks = np.random.default_rng(0).integers(0, 255, (2, *size), dtype=np.int32)
    weights = masks.astype(np.float32) / 7
    _, (y, weight, number) = Resize(size[0] * to, size[1] * to)(
        jnp.zeros((2, *size, 1)), (masks, weights, np.array([1, 2]))
    )
    assert_same(y, masks.repeat(to, axis=1).repeat(to, axis=2))
    assert_same(weight, weights.repeat(to, axis=1).repeat(to, axis=2))
    assert_same(number, np.array([1, 2]))


def test_the_own_size_of_the_images_changes_nothing() -> None:
    x, y = images(4), np.arange(4 * 64).reshape(4, 8, 8)
    assert_same(Resize(8, 8)(x, y), (x, y))


def test_each_size_is_compiled_once_and_validation_keeps_the_size() -> None:
    model, seen = compiled(), Compilations()
    x, y = images(16), labels(16)
    history = fit(model, x, y, epochs=5, image_sizes=SIZES, callbacks=[seen], validation_data=(x, y))
    assert seen.seen == [(0, "train"), (0, "evaluate"), (1, "train"), (3, "train")]
    assert_close(model.evaluate(x, y, verbose=0)[0], history.history["val_loss"][-1], 1e-6)
    assert history.settings["image_sizes"] == {"0": "(4, 4)", "1": "(6, 5)", "3": "None"}


@pytest.mark.slow  # six compilations; a single size is compared in make test
def test_a_run_is_that_on_images_that_were_resized_before() -> None:
    model, other, x, y = compiled(), compiled(), images(), labels()
    fit(model, x, y, epochs=3, image_sizes={1: 4, 2: (6, 5)})
    for epoch, size in enumerate([(8, 8), (4, 4), (6, 5)]):
        fit(other, resized(x, *size), y, epochs=epoch + 1, initial_epoch=epoch)
    assert_close(model.get_weights(), other.get_weights(), 1e-5)


WITH: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "steps per execution": ({"steps_per_execution": 3}, {}),
    "four devices": ({"dispatch": "sharded"}, {}),
    "pmap": ({"dispatch": "pmap"}, {}),
    "no compilation": ({"dispatch": "eager"}, {}),
    "data on the device": ({}, {"cache": "device"}),
    "data on the device, gathered in the step": ({"steps_per_execution": 3}, {"cache": "device"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", WITH)
def test_every_way_to_take_steps_trains_alike(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, run = WITH[how]
    if "steps_per_execution" in arguments:
        monkeypatch.setattr(Placement, "loops", property(lambda self: True))
    model, other = compiled(**arguments), compiled()
    for each, more in ((model, run), (other, {})):
        fit(each, epochs=3, image_sizes={0: 4, 2: 6}, **more)
    assert_close(model.get_weights(), other.get_weights(), 1e-4)


@pytest.mark.slow
def test_slices_of_a_batch_are_resized_alike() -> None:
    def trained(**arguments: Any) -> Any:
        model = resfit.Model(nnx.Sequential(nnx.Conv(1, 3, (3, 3), rngs=nnx.Rngs(0)), lambda x: x.mean(axis=(1, 2))))
        model.compile("sgd", learning_rate=0.1, dispatch="jit", **arguments)
        fit(model, epochs=2, image_sizes={0: 4, 1: 6})
        return model.get_weights()

    assert_close(trained(gradient_accumulation_steps=2), trained(), 1e-5)


def test_recalibration_after_a_run_at_a_small_size_measures_the_full_size() -> None:
    model, x = compiled(), images(16)
    fit(model, x, labels(16), epochs=2, image_sizes={0: 4})
    resfit.recalibrate(model, x)
    own = reduce(np.asarray(call(model.module.conv, x), np.float64), "n h w c -> c", "mean")
    np.testing.assert_allclose(model.module.norm.mean.get_value(), own, atol=1e-5)


class Pixels(nnx.Module):
    """Logits for each pixel."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 3, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv(x)


@pytest.mark.representatives("with weights of pixels")
@pytest.mark.parametrize("weighted", [False, True], ids=["without weights", "with weights of pixels"])
def test_segmentation_resizes_masks_too(weighted: bool) -> None:
    x, masks = images(8), np.random.default_rng(0).integers(0, 3, (8, 8, 8)).astype(np.int32)
    weights = np.random.default_rng(1).random((8, 8, 8)).astype(np.float32) if weighted else None
    model, other = (compiled(Pixels(rngs=nnx.Rngs(0))) for _ in range(2))
    fit(model, x, masks, epochs=2, image_sizes={0: 4}, sample_weight=weights, validation_data=(x, masks))
    small = masks[:, 1::2, 1::2], None if weights is None else weights[:, 1::2, 1::2]
    fit(other, resized(x, 4, 4), small[0], epochs=2, sample_weight=small[1])
    assert_close(model.get_weights(), other.get_weights(), 1e-5)


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (np.zeros((8, 5), np.float32), np.zeros(8, np.int32), RankError, r"image_sizes and inputs of shape \(8, 5\)"),
        ({"a": images(8)}, np.zeros(8, np.int32), RankError, "image_sizes and inputs of a dict"),
        (
            images(8).astype(np.int32),
            np.zeros(8, np.int32),
            DataError,
            r"^fit\(image_sizes=...\) got images of dtype int32",
        ),
        (
            images(8),
            np.zeros((8, 4, 4), np.int32),
            LabelError,
            r"^fit\(image_sizes=.*masks of the size of the images, \(8, 8, 8\)",
        ),
    ],
    ids=["vectors", "a dict", "integers", "masks of another size"],
)
def test_data_without_one_size_raise(x: Any, y: Any, error: type[Exception], message: str) -> None:
    def loss(logits: Any, y: Any) -> Any:
        return logits.sum(axis=-1)

    class AnyInputs(nnx.Module):
        def __init__(self) -> None:
            self.scale = nnx.Param(jnp.ones(2))

        def __call__(self, x: Any) -> Any:
            return self.scale * jax.tree.leaves(x)[0].reshape(8, -1).mean(axis=1, keepdims=True)

    model = compiled(AnyInputs(), loss=loss)
    with pytest.raises(error, match=message):
        fit(model, x, y, image_sizes={0: 4})


@pytest.mark.representatives("5")
@pytest.mark.parametrize("step", range(1, 10))
def test_a_run_resumes_exactly_inside_every_size(step: int, tmp_path: Path) -> None:
    def go(folder: Path, *stops: resfit.callbacks.Callback) -> resfit.Model:
        model, save = runs.small(), resfit.callbacks.Checkpoint(folder)
        fit(model, epochs=3, image_sizes={0: 4, 1: (6, 5)}, callbacks=[save, *stops], resume=True)
        return model

    with runs.stopped(SystemExit):
        go(tmp_path / "stopped", runs.Stops(step, runs.terminate))
    assert_same(state_of(go(tmp_path / "stopped")).leaves, state_of(go(tmp_path / "whole")).leaves)


def test_a_step_that_was_kept_is_searched_at_its_size(caplog: pytest.LogCaptureFixture) -> None:
    def augment(key: jax.Array, x: Any, y: Any) -> tuple[Any, Any]:
        return x.at[0, 0, 0].set(jnp.nan), y

    model = compiled(augment=augment)
    stop = resfit.callbacks.TerminateOnNaN(locate=True)
    fit(model, images(8), labels(8), image_sizes={0: 4}, callbacks=[stop])
    assert "not finite: the batch's inputs after augment and preprocess" in caplog.text


@pytest.mark.slow
def test_dropout_and_augmentation_draw_the_same_numbers_at_every_size() -> None:
    drawn: list[np.ndarray] = []

    def record(key: jax.Array, x: Any, y: Any) -> tuple[Any, Any]:
        jax.debug.callback(lambda number: drawn.append(np.asarray(number)), jax.random.uniform(key))
        return x, y

    for sizes in (None, {0: 4}):
        fit(compiled(TinyNet(rngs=nnx.Rngs(0)), augment=record), images(8), labels(8), epochs=2, image_sizes=sizes)
        jax.effects_barrier()
    assert_same(drawn[:2], drawn[2:])
