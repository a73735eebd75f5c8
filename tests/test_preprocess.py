"""Preprocessing scales uint8 images and does not change floats. Other inputs raise."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import preprocess
from resfit.errors import CompileError, DataError, SavedModelError
from resfit.preprocess import Auto, Normalize
from tests.helpers import BATCH, PlainNet, assert_close, compiled, context_of, fit, images, labels, values

BYTES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)


def test_uint8_images_are_scaled_and_floats_do_not_change() -> None:
    np.testing.assert_allclose(Auto()(jnp.asarray(BYTES)), BYTES / 255, rtol=1e-6)
    floats = jnp.asarray(images() * 300)
    assert Auto()(floats) is floats
    both = Auto()({"image": jnp.asarray(BYTES), "side": jnp.asarray(np.arange(20, dtype=np.int32))})
    assert both["side"].dtype == jnp.int32  # numbers that are not images


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int16, np.uint16])
def test_other_integer_images_raise_with_a_remedy(dtype: Any) -> None:
    with pytest.raises(DataError, match=r"Expected uint8 or floats.*astype\('uint8'\)"):
        Auto()(jnp.asarray(BYTES.astype(dtype)))


@pytest.mark.parametrize(
    ("trained", "fed", "words"),
    [
        (images(), BYTES, "Got uint8 images.*trained on floats of another range"),
        (BYTES, BYTES.astype(np.float32), r"values from \d.* to 25\d.*trained on uint8 images"),
        (BYTES, images(), "trained on uint8 images"),
        (BYTES, BYTES / np.float32(255), None),
        (BYTES / np.float32(255), BYTES, None),
        (images(), images() * 100, None),
    ],
)
def test_inputs_of_another_scale_than_in_training_raise(
    trained: Any, fed: Any, words: str | None, tmp_path: Any
) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model, trained, labels())
    model.save(tmp_path / "model.safetensors")
    loaded = resfit.load(tmp_path / "model.safetensors", module=PlainNet(rngs=nnx.Rngs(0)))
    uses = [
        lambda: model.predict(fed, verbose=0),
        lambda: model.evaluate(fed, labels(), verbose=0),
        lambda: fit(model, fed, labels()),
        lambda: loaded.predict(fed, verbose=0),
    ]
    for use in uses:
        with contextlib.nullcontext() if words is None else pytest.raises(DataError, match=words):
            use()
    model.compile("sgd", learning_rate=0.1, dispatch="jit")  # a new training with another scale is explicit
    fit(model, fed, labels())


def test_normalize_works_per_channel_in_units_of_zero_to_one() -> None:
    x = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
    found = jax.jit(Normalize(mean=(0.1, 0.2, 0.3), std=(1, 2, 4)))(x)
    np.testing.assert_allclose(found, (x / 255 - [0.1, 0.2, 0.3]) / [1, 2, 4], atol=1e-6)
    half = jax.eval_shape(Normalize(mean=(0.1,), std=(2,)), jax.ShapeDtypeStruct((1, 2, 2, 1), jnp.bfloat16))
    assert half.dtype == jnp.bfloat16


def test_normalize_raises_if_its_arguments_do_not_fit() -> None:
    with pytest.raises(DataError, match=r"1 means.*have 3 channels"):
        Normalize(mean=(0.5,), std=(1,))(np.ones((1, 2, 2, 3), np.float32))
    for mean, std in (((0.5,), (1, 1)), ((0.5,), (0,)), ((0.5,), (-1,))):
        with pytest.raises(CompileError, match="positive std per channel"):
            Normalize(mean=mean, std=std)


@pytest.mark.parametrize("given", ["imagenet", 3, True])
def test_an_invalid_preprocessing_raises(given: Any) -> None:
    with pytest.raises(CompileError, match="Expected preprocess to be 'auto', None or a function"):
        preprocess.get(given)


@pytest.mark.parametrize("given", [None, Auto(), Normalize(mean=(0.5,), std=(0.25,))])
def test_every_preprocessing_of_resfit_is_restored_from_a_file(given: Any) -> None:
    import json

    assert preprocess.from_config(json.loads(json.dumps(preprocess.to_config(given)))) == given


def test_a_custom_function_is_only_named_in_a_file() -> None:
    assert preprocess.to_config(lambda x: x) == {"kind": "custom"}
    with pytest.raises(CompileError, match="Unknown preprocessing"):
        preprocess.from_config({"kind": "Whiten"})


def test_training_evaluation_and_prediction_receive_the_preprocessed_images() -> None:
    def scale(x: Any) -> Any:
        return x.astype(jnp.float32) / 255

    for given in ("auto", scale):
        one, other = (compiled(PlainNet(rngs=nnx.Rngs(0)), preprocess=p) for p in (given, None))
        x = BYTES.astype(np.float32) / 255
        fit(one, BYTES, labels())
        fit(other, x, labels())
        assert_close(values(one.module), values(other.module), 1e-5)
        assert_close(one.predict(BYTES, verbose=0), other.predict(x, verbose=0), 1e-5)
        assert_close(one.predict_on_batch(BYTES), other.predict_on_batch(x), 1e-5)
        assert_close(
            one.evaluate(BYTES, labels(), BATCH, verbose=0), other.evaluate(x, labels(), BATCH, verbose=0), 1e-5
        )


def test_none_does_not_change_the_images() -> None:
    seen: list[Any] = []

    class Looks(PlainNet):
        def __call__(self, x: Any) -> Any:
            seen.append(x.dtype)
            return super().__call__(x.astype(jnp.float32))

    compiled(Looks(rngs=nnx.Rngs(0)), preprocess=None).predict(BYTES, verbose=0)
    compiled(Looks(rngs=nnx.Rngs(0))).predict(BYTES, verbose=0)
    assert seen == [jnp.uint8, jnp.float32]


# --- the preprocessing of the training --------------------------------------------------------------------------------

COLOR = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype(np.uint8)
HALF = Normalize(mean=(0.5,) * 3, std=(0.25,) * 3)
IDENTITY = Normalize(mean=(0.0,) * 3, std=(1.0,) * 3)  # the same values as Auto


class ColorNet(nnx.Module):
    """A dense layer on the pixels of small color images."""

    def __init__(self) -> None:
        self.head = nnx.Linear(192, 3, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> Any:
        return self.head(x.reshape(x.shape[0], -1))


def scaled(x: Any) -> Any:
    return x.astype(jnp.float32) / 255


def trained(preprocess: Any) -> resfit.Model:
    model = compiled(ColorNet(), preprocess=preprocess)
    model.train_on_batch(COLOR, labels(8))
    return model


def loaded(model: resfit.Model, path: Any, **arguments: Any) -> resfit.Model:
    model.save(path / "net.safetensors")
    return resfit.load(path / "net.safetensors", module=ColorNet(), **arguments)


@pytest.mark.representatives("auto-after0-False", "auto-after3-True", "scaled-<lambda>-False", "scaled-<lambda>-True")
@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("auto", HALF, False),
        ("auto", None, False),
        ("auto", lambda x: x.astype(jnp.float32), False),
        ("auto", IDENTITY, True),
        ("auto", lambda x: x.astype(jnp.float32) / 255, True),
        (HALF, IDENTITY, False),
        (HALF, Normalize(HALF.mean, HALF.std), True),
        (scaled, lambda x: x.astype(jnp.float32) / 128, False),
        (scaled, lambda x: x.astype(jnp.float32) / 255, True),
    ],
)
def test_a_trained_preprocessing_is_only_replaced_on_request(before: Any, after: Any, same: bool) -> None:
    model = trained(before)
    expected = model.predict(COLOR, verbose=0)
    if not same:
        with pytest.raises(CompileError, match=r"the network was trained with.*replace_preprocess=True"):
            model.compile("sgd", preprocess=after, dispatch="jit")
        if isinstance(after, Normalize):
            with pytest.raises(CompileError, match=r"mean=None, std=None.*replace_preprocess=True"):
                model.transforms = resfit.transforms.Transforms(8, 8, mean=after.mean, std=after.std)
            assert model.transforms is None
        np.testing.assert_array_equal(model.predict(COLOR, verbose=0), expected)
        model.compile("sgd", preprocess=after, replace_preprocess=True, dispatch="jit")
        model.compile("sgd", dispatch="jit")
        assert context_of(model).learned.inputs.preprocess is after
        return
    model.compile("sgd", preprocess=after, dispatch="jit")
    np.testing.assert_array_equal(model.predict(COLOR, verbose=0), expected)


@dataclasses.dataclass
class Shift:
    """A preprocessing whose `==` raises, as that of NumPy arrays does."""

    by: np.ndarray

    def __call__(self, x: Any) -> Any:
        return x - self.by


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Shift(np.ones((1, 1, 1, 3))), Shift(np.ones((1, 1, 1, 3)))),
        (lambda x: jnp.log(x - 1), lambda x: jnp.log(x - 1)),  # NaN
        (Normalize((0.485,) * 3, (0.229,) * 3), lambda x: (x - 0.485 * 255) / (0.229 * 255)),  # another rounding
    ],
)
def test_an_equal_new_function_counts_as_the_trained_preprocessing(one: Any, other: Any) -> None:
    for dtype in (jnp.uint8, jnp.float32):
        if not (isinstance(one, Normalize) and dtype == jnp.float32):
            assert preprocess.same_values(one, other, jax.ShapeDtypeStruct((4, 4, 3), dtype))


@pytest.mark.slow
def test_functions_of_a_loaded_model_are_compared_on_inputs_of_its_network(tmp_path: Any) -> None:
    def times(x: Any) -> Any:
        return x * jnp.arange(6.0).reshape(1, 1, 1, 6)

    path = tmp_path / "net.safetensors"
    net = resfit.create_model("resnet20", num_classes=2, in_channels=6, depths=(1,), widths=(4,))
    model = compiled(net, preprocess=times)
    context_of(model).learned.inputs.trained = True
    model.save(path)
    model = resfit.load(path, preprocess=times)
    model.compile("sgd", preprocess=lambda x: x * jnp.arange(6.0).reshape(1, 1, 1, 6), dispatch="jit")
    with pytest.raises(CompileError, match="the network was trained with"):
        model.compile("sgd", preprocess=lambda x: x * 2.0, dispatch="jit")
    other = compiled(net)
    context_of(other).learned.inputs.trained, context_of(other).learned.inputs.trained_on = True, ("other",)
    other.save(path)
    resfit.load(path).compile("sgd", preprocess=None, dispatch="jit")  # Auto does not change floats


def test_a_preprocessing_that_cannot_be_compared_raises_with_the_remedy() -> None:
    with pytest.raises(CompileError, match=r"could not be compared.*Omit preprocess, or call model\.predict"):
        preprocess.same_values(lambda x: x["image"], lambda x: x["image"])


def test_a_learning_rate_search_does_not_count_as_training() -> None:
    model = compiled(ColorNet())
    resfit.find_learning_rate(model, COLOR, labels(8), batch_size=4, steps=3)
    model.transforms = resfit.transforms.Transforms(8, 8)
    model.compile("sgd", preprocess=scaled)


@pytest.mark.representatives("True-auto", "False-scaled")
@pytest.mark.parametrize("preprocess", ["auto", HALF, scaled])
@pytest.mark.parametrize("from_file", [False, True])
def test_auto_and_transforms_without_mean_keep_the_trained_preprocessing(
    preprocess: Any, from_file: bool, tmp_path: Any
) -> None:
    model = trained(preprocess)
    expected = model.predict(COLOR, verbose=0)
    if from_file:
        model = loaded(model, tmp_path, preprocess=scaled if preprocess is scaled else None)
    model.transforms = resfit.transforms.Transforms(8, 8, mean=None, std=None)
    np.testing.assert_allclose(model.predict(model.transforms.batch(COLOR), verbose=0), expected, atol=1e-6)
    model.compile("adam", dispatch="jit")
    np.testing.assert_allclose(model.predict(COLOR, verbose=0), expected, atol=1e-6)
    model = loaded(model, tmp_path, preprocess=scaled if preprocess is scaled else None)
    assert model.transforms == resfit.transforms.Transforms(8, 8, mean=None, std=None)


def test_a_loaded_model_keeps_its_trained_preprocessing(tmp_path: Any) -> None:
    with pytest.raises(SavedModelError, match=r"trained with Normalize.*Omit preprocess"):
        loaded(trained(HALF), tmp_path, preprocess=Auto())
    model = loaded(trained(HALF), tmp_path, preprocess=HALF)
    for change in (
        lambda: setattr(model, "transforms", resfit.transforms.Transforms(8, 8)),
        lambda: model.compile("sgd", preprocess=Auto()),
    ):
        with pytest.raises(CompileError, match="the network was trained with"):
            change()
    model.transforms = resfit.transforms.Transforms(8, 8, mean=HALF.mean, std=HALF.std)
    untrained = loaded(resfit.Model(ColorNet()), tmp_path, preprocess=HALF)
    untrained.transforms = resfit.transforms.Transforms(8, 8)


def test_transforms_before_training_take_one_line_and_are_used_in_training() -> None:
    model = resfit.Model(ColorNet())
    model.transforms = resfit.transforms.Transforms(8, 8)
    model.compile("sgd", dispatch="jit")
    model.train_on_batch(COLOR, labels(8))
    model.transforms = resfit.transforms.Transforms(10, 8)  # another size, the same normalization
    assert context_of(model).learned.inputs.preprocess == resfit.transforms.Transforms(8, 8).preprocess
    model.evaluate(COLOR, labels(8), verbose=0)  # and still compiled


def test_a_batch_that_raises_leaves_a_model_untrained() -> None:
    model = compiled(ColorNet())
    with pytest.raises(DataError):
        model.train_on_batch(COLOR.astype("int32"), labels(8))
    model.transforms = resfit.transforms.Transforms(8, 8)


def test_another_compile_keeps_the_scale_of_the_trained_inputs() -> None:
    model = trained("auto")
    model.compile("sgd", dispatch="jit")
    with pytest.raises(DataError, match="trained on uint8 images"):
        model.evaluate(COLOR.astype("float32"), labels(8), verbose=0)
    with pytest.raises(DataError):
        model.train_on_batch(COLOR.astype("int32"), labels(8))
    with pytest.raises(DataError, match="trained on uint8 images"):
        model.predict(COLOR.astype("float32"), verbose=0)
    model.train_on_batch(COLOR.astype("float32"), labels(8))  # training starts again
    model.evaluate(COLOR.astype("float32"), labels(8), verbose=0)


@pytest.mark.parametrize(("mean", "std"), [(None, (1.0,)), ((0.0,), None)])
def test_transforms_with_only_a_mean_or_only_a_standard_deviation_raise(mean: Any, std: Any) -> None:
    with pytest.raises(DataError, match="both None"):
        resfit.transforms.Transforms(8, 8, mean=mean, std=std)


def normalized(mean: float, std: float) -> resfit.Model:
    return compiled(PlainNet(rngs=nnx.Rngs(0)), preprocess=Normalize((mean,), (std,)))


def test_normalize_refuses_floats_of_0_to_255() -> None:
    model, x = normalized(0.5, 0.25), BYTES.astype(np.float32)
    uses = [
        lambda: fit(model, x, labels()),
        lambda: model.evaluate(x, labels(), verbose=0),
        lambda: model.predict(x, verbose=0),
    ]
    for use in uses:
        with pytest.raises(DataError, match=r"values from .* to 2\d\d,.*floats in \[0, 1\]"):
            use()
    fit(normalized(120.0, 60.0), x, labels())  # means in the units of these images


def test_normalize_refuses_floats_of_another_scale_than_in_training() -> None:
    model = normalized(0.5, 0.25)
    fit(model, BYTES, labels())
    model.predict(BYTES / np.float32(255), verbose=0)
    with pytest.raises(DataError, match="trained on uint8 images"):
        model.predict(BYTES / np.float32(64) - 2, verbose=0)
