"""Properties of every augmentation: shapes, dtypes, value ranges, and the source of randomness."""

import functools
import itertools
import re
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from resfit import augment
from resfit.augment import Augment
from resfit.errors import DataError, RankError

CLASSES = 5
OF_IMAGES: dict[str, Augment] = {
    "flip": augment.flip(),
    "pad_crop": augment.pad_crop(3),
    "pad_crop by one pixel": augment.pad_crop(1, mode="zeros"),
    "pad_crop, reflected": augment.pad_crop(2, mode="reflect"),
    "random_resized_crop": augment.random_resized_crop((6, 7)),
    "color_jitter": augment.color_jitter(0.8, 0.8, 0.8, 0.4),
    "gray": augment.gray(0.5),
    "rotate": augment.rotate(60),
    "affine": augment.affine(60, (0.3, 0.3), (0.7, 1.3), (20, 20), "nearest"),
    "rand_augment": augment.rand_augment(2, 20, "bilinear"),
    "trivial_augment": augment.trivial_augment(),
    "auto_augment": augment.auto_augment("cifar10"),
    "aug_mix": augment.aug_mix(severity=10, width=2, depth=2),
    "random_erasing": augment.random_erasing(0.7),
    "random_erasing with noise": augment.random_erasing(1.0, fill="noise"),
}
MIXING: dict[str, Augment] = {
    "mixup": augment.mixup(1.0, CLASSES),
    "cutmix": augment.cutmix(1.0, CLASSES),
    "one_of": augment.one_of(augment.mixup(1.0, CLASSES), augment.cutmix(1.0, CLASSES)),
}
ALL = OF_IMAGES | MIXING
COLOR, GREY = (8, 7, 9, 3), (1, 8, 5, 1)  # odd, not square; one row


def pictures(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    """Return random images, uint8 or in [0, 1]. A few pixels are at the ends of the range."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, shape, dtype=np.uint8)
    x[random.random(shape) < 0.1] = 255
    x[random.random(shape) < 0.1] = 0
    return x if dtype == np.uint8 else (x / 255).astype(dtype)


@functools.cache
def compiled(name: str) -> Any:
    return jax.jit(ALL[name])


def run(name: str, seed: int, x: np.ndarray, y: np.ndarray | None = None) -> tuple[np.ndarray, Any]:
    y = np.arange(len(x)) % CLASSES if y is None else y
    return jax.tree.map(np.asarray, compiled(name)(jax.random.key(seed), x, y))


def mostly_slow(names: Collection[str], *kept: str) -> list[Any]:
    """Return the names as parameters of a test. All but a few are slow, because each compiles a program."""
    assert set(kept) <= set(names)
    return [name if name in kept else pytest.param(name, marks=pytest.mark.slow) for name in names]


sizes = st.integers(1, 40)


@given(
    name=st.sampled_from(sorted(set(ALL) - {"pad_crop, reflected"})),
    shape=st.tuples(st.integers(1, 9), sizes, sizes, st.sampled_from([1, 3])),
    dtype=st.sampled_from([jnp.uint8, jnp.float32, jnp.bfloat16, jnp.float16]),
)
def test_shape_and_dtype_are_kept_for_any_image(name: str, shape: tuple[int, ...], dtype: Any) -> None:
    key = jax.eval_shape(jax.random.key, 0)
    given_x, given_y = jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(shape[:1], jnp.int32)
    x, y = jax.eval_shape(ALL[name], key, given_x, given_y)
    assert x.shape == ((shape[0], 6, 7, shape[3]) if name == "random_resized_crop" else shape)
    assert x.dtype == dtype
    assert (y.shape, y.dtype) == (((shape[0], CLASSES), jnp.float32) if name in MIXING else (shape[:1], jnp.int32))


def assert_in_range(x: np.ndarray, largest: int) -> None:
    # A share of 1 - s is not exactly 1 minus s: a blend can leave the range by a rounding error.
    assert np.isfinite(x).all()
    assert x.min() >= -1e-6
    assert x.max() <= largest + 1e-6


@pytest.mark.representatives("random_resized_crop", "random_erasing with noise", "mixup")
@pytest.mark.parametrize("name", ALL)
@given(seed=st.integers(0, 2**32 - 1))
def test_values_stay_in_the_value_range(name: str, seed: int) -> None:
    assert_in_range(run(name, seed, pictures(COLOR, np.uint8, seed))[0], 255)


@pytest.mark.representatives("color_jitter")
@pytest.mark.parametrize("name", mostly_slow(ALL, "color_jitter", "random_resized_crop", "mixup"))
@given(seed=st.integers(0, 2**32 - 1))
def test_values_of_float_gray_images_stay_in_the_value_range(name: str, seed: int) -> None:
    assert_in_range(run(name, seed, pictures(GREY, np.float32, seed))[0], 1)


@pytest.mark.representatives("random_resized_crop")
@pytest.mark.parametrize(
    "name",
    mostly_slow(
        sorted(set(OF_IMAGES) - {"random_erasing with noise"}), "color_jitter", "random_resized_crop", "random_erasing"
    ),
)
@given(seed=st.integers(0, 2**32 - 1), value=st.integers(0, 255))
def test_uint8_and_float_give_the_same_image(name: str, seed: int, value: int) -> None:
    x = pictures(COLOR, np.uint8, seed)
    x[0] = value  # one image without structure
    as_uint8, _ = run(name, seed, x)
    as_float, _ = run(name, seed, (x / 255).astype(np.float32))
    # Rounding decides between two values at the same distance: up to one level.
    np.testing.assert_allclose(as_uint8, as_float * 255.0, atol=0.501)


@pytest.mark.parametrize("name", ALL)
def test_the_same_key_gives_the_same_images_and_another_key_does_not(name: str) -> None:
    x = pictures(COLOR, np.uint8, 0)
    results = [run(name, seed, x) for seed in (0, 0, *range(1, 8))]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    different = {result[0].tobytes() for result in results}
    assert len(different) >= 6


@pytest.mark.parametrize("name", OF_IMAGES)
@given(seed=st.integers(0, 2**32 - 1), row=st.integers(0, COLOR[0] - 1))
def test_a_row_does_not_depend_on_the_other_rows(name: str, seed: int, row: int) -> None:
    x = pictures(COLOR, np.uint8, seed)
    others = [i for i in range(len(x)) if i != row]
    permuted, replaced = x.copy(), pictures(COLOR, np.uint8, seed + 1)
    permuted[others] = x[np.random.default_rng(seed).permutation(others)]
    replaced[row] = x[row]
    expected = run(name, seed, x)[0][row]
    np.testing.assert_array_equal(run(name, seed, permuted)[0][row], expected)
    np.testing.assert_array_equal(run(name, seed, replaced)[0][row], expected)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_no_two_rows_share_random_numbers(name: str) -> None:
    """For rows of the same image, two rows of one key differ as often as one row of two keys."""
    image = pictures((1, 7, 9, 3), np.uint8, 3)
    x = np.repeat(image, COLOR[0], axis=0)
    drawn = np.stack([run(name, seed, x)[0] for seed in range(60)])  # (keys, rows, ...)
    pairs = list(itertools.combinations(range(COLOR[0]), 2))
    between_rows = {(i, j): (drawn[:, i] == drawn[:, j]).all(axis=(1, 2, 3)).mean() for i, j in pairs}
    between_keys = np.mean([(drawn[:-1, i] == drawn[1:, i]).all(axis=(1, 2, 3)).mean() for i in range(COLOR[0])])
    # The frequency of 60 coin tosses differs from the probability by at most 0.3.
    assert all(abs(share - between_keys) < 0.3 for share in between_rows.values()), (between_rows, between_keys)


@pytest.mark.parametrize("name", OF_IMAGES)
@pytest.mark.parametrize("y", [None, {"a": np.arange(2), "b": None}, np.eye(2), "a word"], ids=repr)
def test_augmentations_of_images_do_not_change_labels_of_any_kind(name: str, y: Any) -> None:
    x = jax.ShapeDtypeStruct((2, 8, 8, 3), jnp.uint8)
    seen: list[Any] = []
    jax.eval_shape(lambda key, x: seen.append(ALL[name](key, x, y)[1]), jax.eval_shape(jax.random.key, 0), x)
    assert seen[0] is y


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    ("x", "error", "says"),
    [
        (jax.ShapeDtypeStruct((4, 8, 8), jnp.uint8), RankError, r"inputs of shape \(4, 8, 8\).*x\[\.\.\., None\]"),
        (jax.ShapeDtypeStruct((4, 2, 8, 8, 3), jnp.uint8), RankError, r"\(4, 2, 8, 8, 3\).*batch, height, width, chan"),
        ({"image": jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.uint8)}, RankError, "a dict.*custom function"),
        (jax.ShapeDtypeStruct((4, 8, 8, 3), jnp.int32), DataError, r"dtype int32, shape \(4, 8, 8, 3\).*uint8"),
    ],
    ids=["no channels", "too many axes", "dict", "int32"],
)
def test_an_input_that_is_not_a_batch_of_images_raises_while_tracing(name: str, x: Any, error: Any, says: str) -> None:
    if name == "one_of":
        says = says.replace("inputs", ".*")
    with pytest.raises(error, match=f"augment.*{says}"):
        jax.eval_shape(ALL[name], jax.eval_shape(jax.random.key, 0), x, jax.ShapeDtypeStruct((4,), jnp.int32))


@pytest.mark.representatives("random_resized_crop")
@pytest.mark.parametrize("name", mostly_slow(ALL, "flip", "random_resized_crop", "random_erasing with noise", "one_of"))
def test_on_four_devices_the_images_equal_those_of_one_and_no_batch_is_gathered(name: str) -> None:
    mesh = Mesh(jax.devices(), ("data",), axis_types=(AxisType.Auto,))
    split, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    x, y = pictures(COLOR, np.uint8, 0), np.arange(8) % CLASSES
    arguments = (jax.device_put(jax.random.key(0), whole), jax.device_put(x, split), jax.device_put(y, split))
    four = jax.jit(ALL[name], out_shardings=(split, split)).lower(*arguments).compile()
    one = compiled(name)(jax.random.key(0), x, y)
    jax.tree.map(np.testing.assert_array_equal, four(*arguments), one)
    moved = set(re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute)\(", four.as_text()))
    assert moved == ({"collective-permute"} if name in MIXING else set())
    # Each device sends one row of images to its neighbor.
    assert not re.search(r"u8\[[2-9],\S+ collective-permute\(", four.as_text())
