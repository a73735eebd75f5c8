"""The call of a convolution includes the operations after it, if oneDNN can; otherwise the result is the same."""

import concurrent.futures
import functools
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
from resfit.backends.onednn import Convolve, convolution, fused, fusing
from resfit.backends.onednn.bridge import TARGET
from resfit.backends.onednn.planning import ADD, FORWARD
from tests.backends.onednn.needed import needs_onednn
from tests.helpers import fewer_examples

pytestmark = needs_onednn()

ALWAYS = Convolve(always=True)
CHANNELS = 16


def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
    return ALWAYS(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def problem(dtype: str = "float32") -> dict[str, jax.Array]:
    """Return x and w of a convolution, a row with a value for each channel, and an array like the result."""
    rng = np.random.default_rng(0)
    sizes = {"x": (2, 5, 6, CHANNELS), "w": (3, 3, CHANNELS, CHANNELS), "row": (1, 1, 1, CHANNELS)}
    return {
        name: jnp.asarray(rng.normal(size=size), dtype)
        for name, size in (sizes | {"whole": (2, 5, 6, CHANNELS)}).items()
    }


@jax.custom_jvp
def not_a_relu(y: jax.Array) -> jax.Array:
    jnp.maximum(y, 0)
    return y


@not_a_relu.defjvp
def _(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return primals[0], tangents[0]


# Compiled functions of one argument and one operation that are no ReLU, although it is a maximum with 0.
ALMOST: dict[str, Callable[[jax.Array], Any]] = {
    "two results": jax.jit(lambda y: (jnp.maximum(y, 0), y)),
    "twice the same": jax.jit(lambda y: (jnp.maximum(y, 0),) * 2),
    "a number beside": jax.jit(lambda y: (jax.nn.relu(y), y.shape[-1])),
    "not what it returns": jax.jit(lambda y: (jnp.maximum(y, 0), y)[1]),
    "not of its argument": jax.jit(lambda y: jnp.maximum(np.full(y.shape, 0.5, np.float32), 0)),
    "with a derivative": not_a_relu,
}

# What may follow, by name; each reads y, a row and a whole array.
OPERATIONS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "scale": lambda y, row, whole: row * y,
    "shift": lambda y, row, whole: y + row,
    "less": lambda y, row, whole: y - row,
    "less it": lambda y, row, whole: row - y,
    "add": lambda y, row, whole: whole + y,
    "less whole": lambda y, row, whole: y - whole,
    "by whole": lambda y, row, whole: y * whole,
    "twice": lambda y, row, whole: 2 * y,
    "itself": lambda y, row, whole: y + y,
    "relu": lambda y, row, whole: nnx.relu(y),
    "maximum": lambda y, row, whole: jnp.maximum(y, 0),
    "minimum": lambda y, row, whole: jnp.minimum(y, 0),
    "at least one": lambda y, row, whole: jnp.maximum(y, 1),
    "relu6": lambda y, row, whole: jax.nn.relu6(y),
    **{name: lambda y, row, whole, f=f: jax.tree.leaves(f(y))[0] for name, f in ALMOST.items()},
}


def followed(names: tuple[str, ...], x: Any, w: Any, row: Any, whole: Any) -> jax.Array:
    y = convolve(x, w)
    for i, name in enumerate(names):
        y = OPERATIONS[name](y, row + i, whole)
    return y


def operations_left(function: Any, *arguments: Any) -> int:
    """Return the number of scalings, additions and maxima of whole arrays in XLA's program."""
    lines = str(jax.jit(function).lower(*arguments).as_text()).splitlines()
    names = ("stablehlo.add", "stablehlo.multiply", "stablehlo.subtract", "stablehlo.maximum")
    return sum(any(name in line for name in names) and f"2x5x6x{CHANNELS}" in line for line in lines)


def assert_near(a: Any, b: Any) -> None:
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * max(np.abs(b).max(), 1))


@pytest.mark.representatives("names0-0", "names4-0", "names8-1", "names12-1")
@pytest.mark.parametrize(
    ("names", "left"),
    [
        (("scale", "shift", "relu"), 0),
        (("scale", "shift", "add", "relu"), 0),
        (("less", "scale", "shift", "maximum"), 0),  # flax's own BatchNorm
        (("shift",), 0),
        (("shift", "scale", "shift", "scale", "shift", "relu"), 0),
        (("shift", "scale", "shift", "scale", "shift", "scale"), 1),  # one more than there is room for
        (("add", "add"), 1),
        (("relu", "shift"), 1),
        (("less it",), 1),
        (("less whole",), 1),
        (("by whole",), 1),
        (("itself",), 1),
        (("scale", "at least one"), 1),
    ],
)
def test_following_operations_are_part_of_the_same_call(names: tuple[str, ...], left: int) -> None:
    arrays = problem()
    function = functools.partial(followed, names)
    assert operations_left(fused(function), *arrays.values()) == left
    assert operations_left(function, *arrays.values()) >= len(names)  # XLA's, without
    assert_near(jax.jit(fused(function))(*arrays.values()), jax.jit(function)(*arrays.values()))


@fewer_examples(2)
@given(st.lists(st.sampled_from(list(OPERATIONS)), max_size=7), st.booleans())
def test_any_following_operations_give_the_same_result(names: list[str], kept: bool) -> None:
    def function(x: Any, w: Any, row: Any, whole: Any) -> Any:
        y = convolve(x, w)
        seen = []
        for i, name in enumerate(names):
            y = OPERATIONS[name](y, row + i, whole)
            seen.append(y)
        return {"result": y, "on the way": seen if kept else [], "read again": whole + row}

    arrays = problem()
    with_it, without = (jax.jit(f)(*arrays.values()) for f in (fused(function), function))
    jax.tree.map(assert_near, with_it, without)


def test_a_result_with_another_reader_is_not_fused() -> None:
    def function(x: Any, w: Any, row: Any, whole: Any) -> Any:
        y = convolve(x, w)
        z = y + row
        return nnx.relu(z), z * 2, y

    arrays = problem()
    for a, b in zip(*(jax.jit(f)(*arrays.values()) for f in (fused(function), function)), strict=True):
        assert_near(a, b)


def test_an_array_that_is_added_in_place_stays_intact_for_others() -> None:
    def function(x: Any, w: Any, row: Any, whole: Any) -> Any:
        return nnx.relu(convolve(x, w) + whole), whole - 1, nnx.relu(convolve(x, w) * row + whole)

    arrays = problem()
    before = np.array(arrays["whole"])
    run = jax.jit(fused(function))
    for a, b in zip(run(*arrays.values()), jax.jit(function)(*arrays.values()), strict=True):
        assert_near(a, b)
    np.testing.assert_array_equal(arrays["whole"], before)


def test_images_that_are_added_to_their_own_convolution_are_read_whole_first() -> None:
    def function(x: Any, w: Any, row: Any, whole: Any) -> Any:
        x = jnp.tanh(x)  # an array that nobody else reads: its memory is free for the result
        for _ in range(3):
            x = nnx.relu(convolve(x, w) * row + x)
        return x

    arrays = problem()
    assert operations_left(fused(function), *arrays.values()) == 0
    assert_near(*(jax.jit(f)(*arrays.values()) for f in (fused(function), function)))


def test_a_sum_of_two_convolutions_belongs_to_one_of_them() -> None:
    def function(x: Any, w: Any, row: Any, whole: Any) -> Any:
        return nnx.relu((convolve(x, w) * row + row) + (convolve(whole, w) * row - row))

    arrays = problem()
    assert operations_left(fused(function), *arrays.values()) == 0
    assert_near(*(jax.jit(f)(*arrays.values()) for f in (fused(function), function)))


def test_relu_keeps_nan() -> None:
    arrays = problem()
    arrays["x"] = arrays["x"].at[0, 2, 2, 3].set(np.nan)
    function = functools.partial(followed, ("scale", "shift", "relu"))
    found, expected = (np.asarray(jax.jit(f)(*arrays.values())) for f in (fused(function), function))
    assert np.isnan(expected).any()
    assert not np.isnan(expected).all()
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))


def test_relu_turns_minus_infinity_into_nan() -> None:
    arrays = problem()
    arrays["row"] = arrays["row"].at[..., 3].set(-np.inf)
    found = np.asarray(jax.jit(fused(functools.partial(followed, ("shift", "relu"))))(*arrays.values()))
    np.testing.assert_array_equal(np.isnan(found), np.broadcast_to(np.arange(CHANNELS) == 3, found.shape))


@pytest.mark.parametrize("name", ALMOST)
def test_operations_that_only_look_like_relu_are_not_fused(name: str) -> None:
    def function(x: Any, w: Any, row: Any) -> Any:
        return ALMOST[name](convolve(x, w) + row)

    x, w, row, _ = problem().values()
    with_it, without = (jax.jit(f)(x, w, row) for f in (fused(function), function))
    jax.tree.map(assert_near, with_it, without)


def test_operations_without_code_in_onednn_are_not_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = fusing.planned

    def without_additions(shape: Any, **how: Any) -> Any:
        return None if ADD in shape.after else plan(shape, **how)

    arrays = problem()
    function = functools.partial(followed, ("scale", "shift", "add", "relu"))
    monkeypatch.setattr(fusing, "planned", without_additions)
    assert operations_left(fused(function), *arrays.values()) == 2
    assert_near(*(jax.jit(f)(*arrays.values()) for f in (fused(function), function)))


def wide(y: jax.Array) -> jax.Array:
    return y.astype(jnp.float32)


def normed(y: jax.Array, row: jax.Array) -> jax.Array:
    """Return a norm in float32 of an array in bfloat16."""
    return (wide(y) * wide(row) + wide(row)).astype(jnp.bfloat16)


IN_BFLOAT16: dict[str, tuple[Callable[..., Any], int]] = {
    "a norm": (lambda y, row, whole: normed(y, row), 0),
    "a norm and relu": (lambda y, row, whole: nnx.relu(normed(y, row)), 0),
    "a residual block": (lambda y, row, whole: nnx.relu(normed(y, row) + whole), 0),
    "rows in bfloat16": (lambda y, row, whole: nnx.relu(y * row + row), 0),
    "relu in float32": (lambda y, row, whole: nnx.relu(wide(y) * wide(row)).astype(jnp.bfloat16), 0),
    "two relus": (lambda y, row, whole: nnx.relu(nnx.relu(y * row).astype(jnp.float32)).astype(jnp.bfloat16), 1),
    "the result in float32": (lambda y, row, whole: wide(y) * wide(row), 1),
    "an addition in float32": (lambda y, row, whole: (wide(y) + wide(whole)).astype(jnp.bfloat16), 1),
    "float16": (lambda y, row, whole: y.astype(jnp.float16) * row.astype(jnp.float16), 1),
    "only conversions": (lambda y, row, whole: wide(y).astype(jnp.bfloat16) * 2, 1),
}


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_operations_in_bfloat16_are_part_of_the_same_call(name: str) -> None:
    function, left = IN_BFLOAT16[name]
    arrays = problem("bfloat16")

    def whole(x: Any, w: Any, row: Any, whole: Any) -> Any:
        return function(convolve(x, w), row, whole)

    assert operations_left(fused(whole), *arrays.values()) == left
    a, b = (np.asarray(jax.jit(f)(*arrays.values()), np.float32) for f in (fused(whole), whole))
    np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2 * np.abs(b).max())


def test_threads_that_add_in_place_get_the_same_bits() -> None:
    arrays = problem()
    run = jax.jit(fused(functools.partial(followed, ("scale", "shift", "add", "relu"))))
    first = np.array(run(*arrays.values()))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = [pool.submit(lambda: np.array(run(*arrays.values()))) for _ in range(200)]
        for again in found:
            np.testing.assert_array_equal(again.result(), first)


def test_an_added_array_outside_the_result_buffer_raises() -> None:
    arrays = problem()
    x, w, whole = arrays["x"], arrays["w"], arrays["whole"]
    window = convolution._Window((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    plan = convolution.planned(convolution.shape_of(FORWARD, x, w, whole, window)._replace(after=(ADD,)), always=True)
    assert plan is not None
    results = (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct((plan.scratch,), jnp.uint8))
    with pytest.raises(jax.errors.JaxRuntimeError, match="not where it should be"):
        jax.block_until_ready(jax.ffi.ffi_call(TARGET, results)(x, w, whole, convolution=plan.name))


class Flax(nnx.Module):
    """A network of flax's layers only: a convolution with a bias, its BatchNorm, and a shortcut."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(3, 3, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(3, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)) + x)
        return self.head(x.mean((1, 2)))


class Looking(Flax):
    """A network that reads the value of its result in Python."""

    def __call__(self, x: jax.Array) -> jax.Array:
        if float(self.conv(x).mean()) > 1e9:
            raise OverflowError
        return super().__call__(x)


@pytest.mark.slow
def test_an_eager_step_has_values() -> None:
    model = resfit.Model(Looking(nnx.Rngs(0)))
    model.compile("sgd", learning_rate=0.1, dispatch="eager", cpu_kernels="onednn")
    x = np.ones((4, 8, 8, 3), np.float32)
    assert model.predict(x, verbose=0).shape == (4, 4)
    assert np.isfinite(model.evaluate(x, np.arange(4), verbose=0)).all()


NETWORKS: dict[str, Callable[[], nnx.Module]] = {
    "basic": lambda: resfit.create_model("resnet18", num_classes=4, depths=(1, 1), widths=(8, 16)),
    "bottleneck": lambda: resfit.create_model("resnet50", num_classes=4, depths=(1, 1), widths=(8, 16)),
    "pre-activated": lambda: resfit.create_model("resnetv2_50", num_classes=4, depths=(1, 1), widths=(8, 16)),
    "squeeze": lambda: resfit.create_model("seresnet50", num_classes=4, depths=(1, 1), widths=(16, 16)),
    "option A": lambda: resfit.create_model("resnet20", num_classes=4, depths=(1, 1), widths=(8, 16)),
    "flax": lambda: Flax(nnx.Rngs(0)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "squeeze" else pytest.mark.slow) for name in NETWORKS]
)
def test_evaluation_and_prediction_of_networks_match_xla(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resfit.backends.onednn.convolution.wins", lambda shape: True)
    rng = np.random.default_rng(0)
    module = NETWORKS[name]()
    for _, part in nnx.iter_modules(module):  # norms as after training, that do something
        if isinstance(part, nnx.BatchNorm):
            for statistic in (part.scale, part.bias, part.mean, part.var):
                assert statistic is not None
                statistic.set_value(jnp.asarray(rng.uniform(0.5, 1.5, statistic.shape).astype(np.float32)))
    x, y = rng.normal(size=(6, 64, 64, 3)).astype("float32"), np.arange(6) % 4
    found = []
    for choice in ("xla", "onednn"):
        model = resfit.Model(module)
        model.compile("sgd", learning_rate=0.1, cpu_kernels=choice, dispatch="jit")
        outputs = model.predict(x, batch_size=4, verbose=0)
        found.append((outputs, model.evaluate(x, y, batch_size=4, verbose=0)))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        assert_near(a, b)
