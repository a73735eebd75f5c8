"""Test-time augmentation: `predict` and `evaluate` average over views of each image."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import resfit
from resfit import losses
from resfit.data import ShardStream
from resfit.errors import ArgumentError, CompileError, ImageTooSmallError, ModuleError, RankError
from resfit.trainer.devices.placement import Placement
from tests.augment.test_alternating_flip import Arrows
from tests.helpers import CLASSES, PlainNet, compiled, counting_compilations, images, labels

Predict = Callable[[np.ndarray], np.ndarray]


def by_hand(tta: str, predict: Predict, x: np.ndarray) -> np.ndarray:
    """Return the mean of predictions for the views, made with NumPy."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    moved = {0: x, 1: padded[:, :-2, :-2], -1: padded[:, 2:, 2:]}
    of = {shift: (predict(view) + predict(view[:, :, ::-1])) / 2 for shift, view in moved.items()}
    return of[0] if tta == "flip" else of[0] / 2 + of[1] / 4 + of[-1] / 4


class Embedding(PlainNet):
    """A network with larger logits, and an embedding that depends on places."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return 3 * super().__call__(x)

    def embed(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(x.reshape(x.shape[0], -1)[:, :5])


@pytest.mark.representatives("flip+shift")
@pytest.mark.parametrize("tta", ["flip", "flip+shift"])
def test_each_kind_of_output_is_the_mean_over_the_views(tta: str) -> None:
    model, x = compiled(Embedding(rngs=nnx.Rngs(0))), images(13)

    def predict(outputs: str, **arguments: Any) -> Predict:
        return lambda x: model.predict(x, batch_size=8, verbose=0, outputs=outputs, **arguments)

    for outputs in ("logits", "probabilities", "embedding"):
        found = predict(outputs, tta=tta)(x)
        np.testing.assert_allclose(found, by_hand(tta, predict(outputs), x), rtol=1e-5, atol=1e-6)
        assert np.abs(found - predict(outputs)(x)).max() > 0.01
    probabilities = by_hand(tta, predict("probabilities"), x)
    np.testing.assert_array_equal(predict("labels", tta=tta)(x), probabilities.argmax(axis=1))
    np.testing.assert_array_equal(
        np.concatenate(list(model.predict_batches(x, tta=tta))), predict("logits", tta=tta)(x)
    )


def test_the_mean_of_sigmoids_is_that_of_a_single_output_and_of_several_labels() -> None:
    x = images(6)
    for net, loss in ((PlainNet(1, rngs=nnx.Rngs(0)), "auto"), (Embedding(rngs=nnx.Rngs(0)), "binary_cross_entropy")):
        model = compiled(net, loss=loss)
        one = lambda x, model=model, **kind: model.predict(x, verbose=0, outputs="probabilities", **kind)  # noqa: E731
        found = one(x, tta="flip")
        np.testing.assert_allclose(found, by_hand("flip", one, x), rtol=1e-5)
        expected = (found > 0.5).astype(int)
        np.testing.assert_array_equal(
            model.predict(x, verbose=0, outputs="labels", tta="flip"), expected[:, 0] if loss == "auto" else expected
        )


def test_evaluate_measures_the_mean_probabilities() -> None:
    model, (x, y) = compiled(Embedding(rngs=nnx.Rngs(0))), (images(), labels())
    for tta in (None, "flip", "flip+shift"):
        p = model.predict(x, verbose=0, outputs="probabilities", tta=tta)
        expected = [-np.log(p[np.arange(20), y]).mean(), (p.argmax(axis=1) == y).mean()]
        np.testing.assert_allclose(model.evaluate(x, y, batch_size=8, verbose=0, tta=tta), expected, rtol=1e-5)


class Own(resfit.Model):
    """A model with a custom loss, which reads an attribute of its module."""

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
        outputs = module(x)
        return ((outputs - y[:, None]) ** 2).mean(axis=1) + 0 * module.head.bias[...].sum(), outputs


def squares(logits: np.ndarray, y: np.ndarray) -> float:
    return float(((logits - y[:, None]) ** 2).mean())


LOSSES: dict[str, tuple[dict[str, Any], Callable[..., float], str]] = {
    "several labels": (
        {"loss": "binary_cross_entropy"},
        lambda p, y: -np.where(np.eye(CLASSES)[y] > 0, np.log(p), np.log(1 - p)).mean(),
        "probabilities",
    ),
    "regression": ({"loss": "mse"}, lambda z, y: ((z - np.eye(CLASSES)[y]) ** 2).mean(), "logits"),
    "a function": ({"loss": lambda outputs, labels: outputs[:, 0]}, lambda z, y: z[:, 0].mean(), "logits"),
    "compute_loss": ({"kind": Own}, squares, "logits"),
}


@pytest.mark.representatives("several labels", "compute_loss")
@pytest.mark.parametrize("name", LOSSES)
def test_evaluate_averages_what_the_loss_reads(name: str) -> None:
    arguments, loss, outputs = LOSSES[name]
    model, x, y = compiled(Embedding(rngs=nnx.Rngs(0)), metrics=None, **arguments), images(), labels()
    targets = y if name in ("compute_loss", "a function") else np.eye(CLASSES, dtype=np.float32)[y]
    plain = lambda x: model.predict(x, verbose=0, outputs=outputs)  # noqa: E731
    found = model.evaluate(x, targets, verbose=0, tta="flip")
    assert found == pytest.approx(loss(by_hand("flip", plain, x), y), rel=1e-4)
    assert found != pytest.approx(model.evaluate(x, targets, verbose=0), rel=1e-4)


class Two(nnx.Module):
    """Two inputs, of which one is an image, and two outputs."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.image, self.number = nnx.Linear(64, CLASSES, rngs=rngs), nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x: dict[str, jax.Array]) -> dict[str, jax.Array]:
        logits = self.image(x["image"].reshape(len(x["image"]), -1))
        return {"class": logits, "size": self.number(x["number"]) + logits[:, :1]}


def test_several_inputs_and_outputs_are_averaged_by_what_each_loss_reads() -> None:
    model = compiled(Two(nnx.Rngs(0)), loss={"class": "cross_entropy", "size": "mse"}, metrics=None)
    x = {"image": images(8), "number": images(8).reshape(8, -1)[:, :2]}
    y = {"class": labels(8), "size": np.zeros((8, 1), np.float32)}
    other = {**x, "image": x["image"][:, :, ::-1]}
    one, two = (model.predict(each, verbose=0) for each in (x, other))
    found = model.predict(x, verbose=0, tta="flip")
    for name in one:
        np.testing.assert_allclose(found[name], (one[name] + two[name]) / 2, rtol=1e-5, atol=1e-6)
    p = (jax.nn.softmax(one["class"]) + jax.nn.softmax(two["class"])) / 2
    expected = [-np.log(np.asarray(p)[np.arange(8), y["class"]]).mean(), (found["size"] ** 2).mean()]
    results = model.evaluate(x, y, verbose=0, tta="flip", return_dict=True)
    np.testing.assert_allclose([results["class_loss"], results["size_loss"]], expected, rtol=1e-5)


class EachPixel(nnx.Module):
    """The logits of a pixel are made of this pixel and of its column."""

    def __init__(self, stride: int = 1) -> None:
        self.scale, self.stride = nnx.Param(jnp.ones(2)), stride

    def __call__(self, x: jax.Array) -> jax.Array:
        columns = jnp.linspace(0, 1, x.shape[2]).reshape(1, 1, -1, 1)
        logits = jnp.concatenate([x, x * 0 + columns], axis=3) * self.scale[...].reshape(1, 1, 1, 2)
        return logits[:, :: self.stride, :: self.stride]


def test_outputs_for_pixels_are_mirrored_back() -> None:
    model, x = compiled(EachPixel()), images(4)
    plain = model.predict(x, verbose=0)
    found = model.predict(x, verbose=0, tta="flip")
    np.testing.assert_allclose(found[..., 0], plain[..., 0], rtol=1e-6)
    np.testing.assert_allclose(found[..., 1], 0.5, rtol=1e-6)
    y = (x[..., 0] > 0).astype(np.int32)
    p = model.predict(x, verbose=0, outputs="probabilities", tta="flip")
    loss, accuracy = model.evaluate(x, y, verbose=0, tta="flip")
    assert loss == pytest.approx(-np.log(np.take_along_axis(p, y[..., None], axis=3)).mean(), rel=1e-5)
    assert accuracy == pytest.approx((p.argmax(axis=3) == y).mean())
    with pytest.raises(ModuleError, match=r"flip\+shift.*outputs for pixels, of shape \(8, 8, 2\).*Use tta='flip'"):
        model.predict(x, verbose=0, tta="flip+shift")


class EachPixelWithoutChannels(EachPixel):
    def __call__(self, x: jax.Array) -> jax.Array:
        return super().__call__(x)[..., 1] + x[:, :: self.stride, :: self.stride, 0]


def test_outputs_for_pixels_without_channels_are_mirrored_back_or_refused() -> None:
    x = images(4)
    model = compiled(EachPixelWithoutChannels(), loss="binary_cross_entropy", metrics=None)
    predict = lambda x: model.predict(x, verbose=0, outputs="probabilities")  # noqa: E731
    expected = (predict(x) + predict(x[:, :, ::-1])[:, :, ::-1]) / 2
    found = model.predict(x, verbose=0, outputs="probabilities", tta="flip")
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    y = (x[..., 0] > 0).astype(np.int32)
    loss = -np.log(np.where(y > 0, expected, 1 - expected)).mean()
    assert model.evaluate(x, y, verbose=0, tta="flip") == pytest.approx(loss, rel=1e-5)
    with pytest.raises(ModuleError, match=r"outputs for pixels, of shape \(8, 8\)"):
        model.predict(x, verbose=0, tta="flip+shift")
    with pytest.raises(ModuleError, match=r"shape \(4, 4\).*could be pixels.*return \(batch, 4, 4, 1\)"):
        compiled(EachPixelWithoutChannels(stride=2), loss="mse").predict(x, verbose=0, tta="flip")


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({"dispatch": "sharded"}, id="four devices"),
        pytest.param({"dispatch": "pmap"}, id="pmap", marks=pytest.mark.slow),
        pytest.param({"dispatch": "eager"}, id="eager", marks=pytest.mark.slow),
        pytest.param({"steps_per_execution": 3}, id="several steps in one program"),
    ],
)
def test_the_means_are_the_same_on_any_devices_and_in_one_program(
    arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = images(37), labels(37)
    one = compiled(PlainNet(rngs=nnx.Rngs(0)))
    if "steps_per_execution" in arguments:
        monkeypatch.setattr(Placement, "loops", property(lambda self: True))
    other = compiled(PlainNet(rngs=nnx.Rngs(0)), **arguments)
    how: dict[str, Any] = {"batch_size": 8, "verbose": 0, "tta": "flip+shift"}
    np.testing.assert_allclose(other.predict(x, **how), one.predict(x, **how), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.evaluate(x, y, **how), one.evaluate(x, y, **how), rtol=1e-5)


def test_every_kind_of_data_is_accepted_and_no_call_compiles_again() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)
    how: dict[str, Any] = {"batch_size": 8, "verbose": 0, "tta": "flip"}
    expected = model.predict(x, **how)
    model.predict(x, batch_size=8, verbose=0)
    model.evaluate(x, labels(), **how)
    with counting_compilations() as found:
        np.testing.assert_array_equal(model.predict(x, **how), expected)
        np.testing.assert_array_equal(model.predict([(x[:8],), (x[8:16],)], **how), expected[:16])
        np.testing.assert_array_equal(model.predict(x, steps=1, **how), expected[:8])
        model.evaluate(x, labels(), **how)
    assert found == []
    assert model.predict(ShardStream(Arrows()), **how).shape == (20, CLASSES)


def test_averaged_weights_are_used_if_they_are_asked_for() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), ema=0.9)
    model.fit(images(), labels(), verbose=0)
    x = images(4, seed=3)
    plain = lambda x: model.predict(x, verbose=0, weights="ema")  # noqa: E731
    found = model.predict(x, verbose=0, weights="ema", tta="flip")
    np.testing.assert_allclose(found, by_hand("flip", plain, x), rtol=1e-5, atol=1e-6)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 7), st.integers(2, 7), st.sampled_from([1, 3])),
    dtype=st.sampled_from([np.uint8, np.float32]),
    tta=st.sampled_from(["flip", "flip+shift"]),
)
def test_images_that_all_views_share_keep_their_outputs(shape: tuple[int, ...], dtype: Any, tta: str) -> None:
    """For any shape and dtype: an image of one color is the same in every view."""
    from resfit.trainer.views import Averaged

    x = np.broadcast_to(np.arange(1, shape[0] + 1).reshape(-1, 1, 1, 1), shape).astype(dtype)
    mean = Averaged(lambda x: x.astype(jnp.float32).sum(axis=(1, 2)), tta, "outputs")
    np.testing.assert_allclose(mean(jnp.asarray(x)), x.astype(np.float32).sum(axis=(1, 2)), rtol=1e-6)


@pytest.mark.parametrize("tta", ["flips", "shift", True, ("flip",), 3, ""])
@pytest.mark.parametrize("method", ["predict", "evaluate", "predict_batches"])
def test_another_value_raises_before_anything_is_read(tta: Any, method: str) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    arguments = (object(), labels()) if method == "evaluate" else (object(),)
    with pytest.raises(CompileError, match=r"Expected tta to be None or one of \['flip', 'flip\+shift'\], got"):
        list(getattr(model, method)(*arguments, tta=tta))


def test_inputs_that_are_no_images_and_images_of_one_pixel_raise() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    with pytest.raises(RankError, match=r"tta='flip' mirrors images, and got inputs of shape \(32, 64\)"):
        model.predict(images().reshape(20, 64), verbose=0, tta="flip")
    with pytest.raises(ImageTooSmallError, match=r"images of 1 x 64 pixels.*Use tta='flip'"):
        model.predict(images().reshape(20, 1, 64, 1), verbose=0, tta="flip+shift")
    assert model.predict(images().reshape(20, 1, 64, 1), verbose=0, tta="flip").shape == (20, CLASSES)


def test_an_exported_model_names_the_reason_and_the_way() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    model.predict(images(4), verbose=0)
    model.export("model.npz", input_shape=(8, 8, 1))
    with pytest.raises(ArgumentError, match=r"predict got tta='flip'.*average `?predict\(x\)"):
        resfit.load_exported("model.npz").predict(images(4), tta="flip")


def test_losses_of_resfit_have_a_mean() -> None:
    from resfit.trainer.supervised import Supervised
    from resfit.trainer.views import mean_for_loss

    for loss, mean in {
        losses.cross_entropy: "probabilities",
        losses.CrossEntropy(label_smoothing=0.1): "probabilities",
        losses.Focal(): "probabilities",
        losses.BinaryCrossEntropy(): "sigmoids",
        losses.binary_cross_entropy: "sigmoids",
        losses.mean_squared_error: "outputs",
        losses.hinge: "outputs",
    }.items():
        assert mean_for_loss(Supervised(loss)) == mean, loss
