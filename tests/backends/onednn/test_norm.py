"""Native batch normalization equals flax's and XLA's: values, gradients of any order, and every way to train."""

import concurrent.futures
import functools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import resfit
from resfit.backends import onednn
from resfit.backends.onednn import Normalize, fused_norms, norm, norm_library
from resfit.backends.onednn.library import Unavailable
from resfit.backends.onednn.norm import ADD_RELU, PLAIN, RELU, forward_p
from resfit.callbacks import Checkpoint
from resfit.nets.norm import BatchNorm
from tests.backends.onednn.needed import needs_onednn
from tests.helpers import assert_close, assert_same, compiled, fewer_examples, fit, values

pytestmark = [
    needs_onednn(),
    pytest.mark.skipif(not onednn.has_norms(), reason="there is no C compiler for vector units"),
]
EPSILON = 1e-3
ALWAYS = Normalize(always=True)


@pytest.fixture
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let native code normalize every array that it can, however small."""
    monkeypatch.setattr(norm, "LEAST", 1)
    jax.clear_caches()  # a trace is equal, and holds the choice
    yield
    jax.clear_caches()


def native(operations: int, x: Any, scale: Any, bias: Any, *added: Any) -> Any:
    return tuple(forward_p.bind(x, *added, scale, bias, epsilon=EPSILON, operations=operations))


def by_jax(operations: int, x: Any, scale: Any, bias: Any, *added: Any) -> Any:
    """Return the oracle, by the textbook's formula in float32."""
    wide = x.astype(jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean, var = wide.mean(axes, keepdims=True), wide.var(axes, keepdims=True)
    rows = (1,) * len(axes) + scale.shape
    y = (wide - mean) / jnp.sqrt(var + EPSILON) * scale.reshape(rows) + bias.reshape(rows)
    for other in added:
        y = y + other.astype(jnp.float32)
    y = y if operations == PLAIN else nnx.relu(y)
    return y.astype(x.dtype), mean.reshape(-1), var.reshape(-1)


def problem(shape: tuple[int, ...], dtype: str, operations: int, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """Return arguments, and cotangents of the results."""
    rng = np.random.default_rng(seed)

    def normal(size: tuple[int, ...], dtype: str, center: float = 0.0) -> jax.Array:
        return jnp.asarray(rng.normal(center, size=size), dtype)

    rows = shape[-1:]
    arguments = [normal(shape, dtype, 0.5), normal(rows, "float32", 1.0), normal(rows, "float32")]
    if operations == ADD_RELU:
        arguments.append(normal(shape, dtype))
    return arguments, [normal(shape, dtype), normal(rows, "float32"), normal(rows, "float32")]


def with_gradients(function: Any, operations: int, arguments: Any, cotangents: Any) -> Any:
    def both(arguments: Any, cotangents: Any) -> Any:
        results, pull = jax.vjp(functools.partial(function, operations), *arguments)
        return results, pull(tuple(cotangents))

    return jax.jit(both)(arguments, cotangents)


def assert_near(found: Any, expected: Any, tolerance: float) -> None:
    """Compare, relative to the largest number. A few elements may lie on the other side of ReLU's corner."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        far = np.abs(a - b) > tolerance * max(np.abs(b).max(), 1)
        assert far.mean() <= (1e-3 if far.size > 1000 else 0), (far.sum(), a.shape)


SHAPES = {
    "four pixels in a row": (8, 5, 5, 16),
    "an odd number of pixels": (3, 5, 5, 32),
    "several tasks": (40, 8, 8, 64),
    "vectors": (2, 3, 3, 48),
    "no images": (40, 80),
    "a block and a vector": (2, 9, 17, 1040),
    "several blocks": (70, 4, 4, 512),
}
OPERATIONS = {"plain": PLAIN, "relu": RELU, "add": ADD_RELU}


@pytest.mark.representatives(
    "four pixels in a row-bfloat16-add", "several tasks-float32-relu", "a block and a vector-float32-plain"
)
@pytest.mark.parametrize("operations", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_results_and_gradients_match_the_formula(shape: tuple[int, ...], dtype: str, operations: int) -> None:
    given = problem(shape, dtype, operations)
    found, expected = (with_gradients(f, operations, *given) for f in (native, by_jax))
    assert_near(found, expected, 1e-5 if dtype == "float32" else 2e-2)


@pytest.mark.slow
@fewer_examples(4)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=3),
    st.integers(1, 20),
    st.sampled_from(["float32", "bfloat16"]),
    st.sampled_from(list(OPERATIONS.values())),
    st.integers(0, 100),
)
def test_any_shape_matches_the_formula(sizes: list[int], vectors: int, dtype: str, operations: int, seed: int) -> None:
    shape = (2, *sizes, vectors * norm.LANES)
    given = problem(shape, dtype, operations, seed)
    found, expected = (f(operations, *given[0]) for f in (native, by_jax))
    assert_near(found, expected, 1e-4 if dtype == "float32" else 2e-2)


@pytest.mark.representatives("add")
@pytest.mark.parametrize("operations", OPERATIONS.values(), ids=OPERATIONS)
def test_bits_do_not_depend_on_other_threads(operations: int) -> None:
    given = problem((40, 8, 8, 64), "float32", operations)
    run = jax.jit(lambda *given: with_gradients(native, operations, *given))
    first = jax.tree.map(np.array, run(*given))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for again in [pool.submit(lambda: jax.tree.map(np.array, run(*given))) for _ in range(100)]:
            assert_same(again.result(), first)


def test_nan_and_infinity_stay_in_their_channel() -> None:
    (x, *rows), _ = problem((4, 4, 4, 16), "float32", RELU)
    x = x.at[0, 0, 0, 3].set(np.nan).at[0, 0, 0, 5].set(np.inf)
    found, expected = (np.asarray(f(RELU, x, *rows)[0]) for f in (native, by_jax))
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    assert np.isnan(found).all((0, 1, 2)).tolist() == [channel in (3, 5) for channel in range(16)]


@pytest.mark.parametrize("channels", [16, 48])
def test_statistics_are_as_exact_as_those_of_xla(channels: int) -> None:
    x = np.random.default_rng(0).normal(10.0, size=(64, 16, 16, channels)).astype(np.float32)
    row = jnp.ones(channels)
    exact = np.var(x, (0, 1, 2), dtype=np.float64)
    by_xla = functools.partial(norm._forward, epsilon=EPSILON, operations=PLAIN)
    error, of_xla = (
        np.abs(np.asarray(jax.jit(f)(x, row, row)[2], np.float64) - exact).max()
        for f in (functools.partial(native, PLAIN), by_xla)
    )
    assert error < 2 * of_xla


@pytest.mark.parametrize("scale", [1e15, 1e19, 1e30])
def test_numbers_too_large_to_square_give_what_xla_gives(scale: float) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4, 16)) * scale + 2 * scale, jnp.float32)
    by_xla = functools.partial(norm._forward, epsilon=EPSILON, operations=PLAIN)
    found, expected = (jax.jit(f)(x, jnp.ones(16), jnp.ones(16)) for f in (functools.partial(native, PLAIN), by_xla))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_a_constant_channel_has_no_variance_and_finite_gradients() -> None:
    arguments, cotangents = problem((4, 4, 4, 16), "float32", RELU)
    arguments[0] = jnp.full_like(arguments[0], 1e3)
    (_, mean, var), gradients = with_gradients(native, RELU, arguments, cotangents)
    np.testing.assert_allclose(mean, 1e3, rtol=1e-6)
    assert np.asarray(var).tolist() == [0.0] * 16
    assert all(np.isfinite(gradient).all() for gradient in gradients)


DERIVATIVES: dict[str, Callable[..., Any]] = {
    "forward mode": lambda f: lambda x: jax.jvp(f, (x,), (jnp.cos(x),)),
    "second": lambda f: jax.grad(lambda x: jnp.sum(jnp.sin(3 * jax.grad(f)(x)))),
    "forward over reverse": lambda f: lambda x: jax.jvp(jax.grad(f), (x,), (jnp.cos(x),)),
    "vmap": lambda f: lambda x: jax.vmap(jax.grad(f))(jnp.stack([x, 2 * x])),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(f)),
}


@pytest.mark.representatives("forward over reverse-add")
@pytest.mark.parametrize("operations", OPERATIONS.values(), ids=OPERATIONS)
@pytest.mark.parametrize("name", DERIVATIVES)
def test_other_derivatives_match_the_formula(name: str, operations: int) -> None:
    (x, *others), cotangents = problem((3, 2, 2, 16), "float32", operations)

    def loss(function: Any) -> Any:
        def of(x: Any) -> Any:
            results = function(operations, x, *others)
            return sum(jnp.sum(jnp.sin(result) * ct) for result, ct in zip(results, cotangents, strict=True))

        return of

    found, expected = (jax.jit(DERIVATIVES[name](loss(function)))(x) for function in (native, by_jax))
    assert_near(found, expected, 1e-4)


@pytest.mark.parametrize(
    ("shape", "dtype", "rows"),
    [
        ((64, 8, 8, 24), "float32", "float32"),  # no whole vectors
        ((64, 8, 8, 16), "float16", "float32"),
        ((64, 8, 8, 16), "bfloat16", "bfloat16"),
        ((16,), "float32", "float32"),
        ((1, 65536), "bfloat16", "float32"),  # one value for each channel
        ((4, 4, 4, 16), "float32", "float32"),  # too small to be worth it
        ((64, 8, 8, 128), "float32", "float32"),  # XLA is as fast
    ],
)
def test_other_arrays_are_left_to_xla(shape: tuple[int, ...], dtype: str, rows: str) -> None:
    row = jnp.ones(shape[-1:], rows)
    assert Normalize()(jnp.ones(shape, dtype), row, row, epsilon=EPSILON) is None


def test_an_epsilon_that_is_traced_is_left_to_xla() -> None:
    def function(x: jax.Array, row: jax.Array, epsilon: jax.Array) -> Any:
        assert ALWAYS(x, row, row, epsilon=epsilon) is None
        return x

    jax.jit(function)(jnp.ones((4, 16)), jnp.ones(16), jnp.float32(EPSILON))
    assert ALWAYS(jnp.ones((4, 16)), jnp.ones(16), jnp.ones(16), epsilon=np.float32(EPSILON)) is not None


def test_a_call_with_other_sizes_than_its_arrays_raises() -> None:
    x, row = jnp.ones((4, 4, 4, 16)), jnp.ones(16)
    call = jax.ffi.ffi_call(norm_library.FORWARD, (x, row, row, jax.ShapeDtypeStruct((8,), jnp.float32)))
    how = {"epsilon": np.float32(1), "operations": np.int32(PLAIN)}
    with pytest.raises(jax.errors.JaxRuntimeError, match="too little scratch memory"):
        jax.block_until_ready(call(x, row, row, **how))
    with pytest.raises(jax.errors.JaxRuntimeError, match="another dtype or size"):
        jax.block_until_ready(call(x, row[:8], row, **how))
    with pytest.raises(jax.errors.JaxRuntimeError, match="unknown operations"):
        jax.block_until_ready(call(x, row, row, epsilon=np.float32(1), operations=np.int32(7)))


# --- what follows a normalization -------------------------------------------------------------------------------------


def normalized(x: Any, row: Any) -> Any:
    found = ALWAYS(x, row, row, epsilon=EPSILON)
    assert found is not None
    return found


def kinds(function: Any, *arguments: Any) -> list[int]:
    """Return what each normalization of a function includes."""
    equations = jax.make_jaxpr(fused_norms(function))(*arguments).jaxpr.eqns
    return [equation.params["operations"] for equation in equations if equation.primitive is forward_p]


def twice(x: Any, row: Any) -> Any:
    y, mean, _ = normalized(x, row)
    shortcut, _, var = normalized(jnp.sin(x), row)  # after the statistics of the first one were read
    return nnx.relu(y + shortcut), mean + var


def plus_own_mean(x: Any, row: Any) -> Any:
    y, mean, _ = normalized(x, row)
    return nnx.relu(y + jnp.broadcast_to(mean, y.shape))


def plus_each_others_mean(x: Any, row: Any) -> Any:
    (y, mean, _), (other, other_mean, _) = normalized(x, row), normalized(jnp.sin(x), row)
    return [nnx.relu(a + jnp.broadcast_to(b, a.shape)) for a, b in ((y, other_mean), (other, mean))]


@jax.custom_jvp
def straight_through(x: Any) -> Any:
    return jnp.maximum(x, 0)


straight_through.defjvps(lambda tangent, result, x: tangent)


FOLLOWING: dict[str, tuple[Callable[..., Any], list[int]]] = {
    "relu": (lambda x, row: nnx.relu(normalized(x, row)[0]), [RELU]),
    "maximum": (lambda x, row: jnp.maximum(normalized(x, row)[0], 0), [PLAIN]),  # its derivative at 0 is one half
    "maximum of zeros": (lambda x, row: jnp.maximum(normalized(x, 0 * row)[0], 0), [PLAIN]),
    "another derivative": (lambda x, row: straight_through(normalized(x, row)[0]), [PLAIN]),
    "another derivative, compiled": (lambda x, row: jax.jit(straight_through)(normalized(x, row)[0]), [PLAIN]),
    "addition": (lambda x, row: nnx.relu(x + normalized(x, row)[0]), [ADD_RELU]),
    "addition and nothing": (lambda x, row: x + normalized(x, row)[0], [PLAIN]),
    "addition of a row": (lambda x, row: nnx.relu(normalized(x, row)[0] + row.reshape(1, 1, 1, -1)), [PLAIN]),
    "itself": (lambda x, row: nnx.relu(2 * normalized(x, row)[0]), [PLAIN]),
    "added to itself": (lambda x, row: nnx.relu((lambda y: y + y)(normalized(x, row)[0])), [PLAIN]),
    "another reader": (lambda x, row: (lambda y: nnx.relu(y) + y)(normalized(x, row)[0]), [PLAIN]),
    "another reader of the sum": (lambda x, row: (lambda y: nnx.relu(y) * y)(x + normalized(x, row)[0]), [PLAIN]),
    "a result itself": (lambda x, row: (lambda y: (nnx.relu(y), y))(normalized(x, row)[0]), [PLAIN]),
    "two normalizations": (twice, [PLAIN, ADD_RELU]),
    "addition of its own mean": (plus_own_mean, [PLAIN]),
    "addition of each other's mean": (plus_each_others_mean, [PLAIN, ADD_RELU]),
}


@pytest.mark.representatives(
    "relu",
    "addition of a row",
    "added to itself",
    "another reader of the sum",
    "a result itself",
    "two normalizations",
    "maximum of zeros",
    "another derivative",
    "addition of each other's mean",
)
@pytest.mark.parametrize("name", FOLLOWING)
def test_following_operations_are_part_of_the_normalization(name: str) -> None:
    function, expected = FOLLOWING[name]
    arguments = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 2, 16)), jnp.float32), jnp.ones(16)
    assert sorted(kinds(function, *arguments)) == expected

    def loss(function: Any) -> Any:
        return lambda *given: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(*given)))

    found, plain = (jax.jit(jax.grad(loss(f), (0, 1)))(*arguments) for f in (fused_norms(function), function))
    assert_near(found, plain, 1e-5)


# --- in a model -------------------------------------------------------------------------------------------------------


class Flax(nnx.Module):
    """A network of flax's layers only, with a shortcut."""

    def __init__(self, *, rngs: nnx.Rngs, **options: Any) -> None:
        self.conv = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs, **options)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.conv(x)) + x).mean((1, 2)))


class Own(Flax):
    """The same with resfit's BatchNorm."""

    def __init__(self, *, rngs: nnx.Rngs, **options: Any) -> None:
        super().__init__(rngs=rngs)
        self.norm = BatchNorm(16, rngs=rngs, **options)


class Counted(Normalize):
    """Count the normalizations that native code takes over."""

    taken = 0

    def __call__(self, *arguments: Any, **how: Any) -> Any:
        found = super().__call__(*arguments, **how)
        type(self).taken += found is not None
        return found


MODULES: dict[str, tuple[Callable[[], nnx.Module], bool]] = {
    "flax": (lambda: Flax(rngs=nnx.Rngs(0)), True),
    "flax, other momentum": (lambda: Flax(momentum=0.5, epsilon=0.1, axis=3, rngs=nnx.Rngs(0)), True),
    "flax, slow variance": (lambda: Flax(use_fast_variance=False, rngs=nnx.Rngs(0)), False),
    "flax, no scale": (lambda: Flax(use_scale=False, rngs=nnx.Rngs(0)), False),
    "flax, no bias": (lambda: Flax(use_bias=False, rngs=nnx.Rngs(0)), False),
    "flax, epsilon as an array": (lambda: Flax(epsilon=jnp.float32(1e-3), rngs=nnx.Rngs(0)), False),
    "flax, bfloat16": (lambda: Flax(dtype=jnp.bfloat16, rngs=nnx.Rngs(0)), False),
    "flax, several axes": (lambda: Flax(axis=(-1,), rngs=nnx.Rngs(0)), False),
    "resfit": (lambda: Own(rngs=nnx.Rngs(0)), True),
    "resfit, unbiased": (lambda: Own(unbiased=True, rngs=nnx.Rngs(0)), True),
    "resfit, bfloat16 outputs": (lambda: Own(dtype="bfloat16", rngs=nnx.Rngs(0)), False),
    "a network": (lambda: network("resnet20"), True),
    "bottlenecks": (lambda: network("resnet50"), True),
    "pre-activated": (lambda: network("resnetv2_50"), True),
    "recomputed": (lambda: network("resnet20", remat="block"), True),
}


RARELY = ("flax", "resfit, bfloat16 outputs", "a network", "pre-activated", "flax, no bias", "flax, several axes")
MODULES_OF_THE_SUITE = [
    pytest.param(name, marks=pytest.mark.exhaustive) if name in RARELY else name for name in MODULES
]


def network(name: str, **options: Any) -> nnx.Module:
    return resfit.create_model(
        name, num_classes=3, depths=(1, 1), widths=(16, 16), in_channels=1, stem="cifar", **options
    )


def trained(module: nnx.Module, *, norms: bool, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, Any]:
    with monkeypatch.context() as patch:
        patch.setattr(onednn, "has_norms", lambda: norms)
        patch.setattr(onednn, "Normalize", Counted)
        Counted.taken = 0
        model = compiled(module, cpu_kernels="onednn", learning_rate=0.01, **options)
        return fit(model).history["loss"], values(module)


@pytest.mark.usefixtures("small_ones_too")
@pytest.mark.representatives("flax, other momentum", "flax, no scale", "resfit, unbiased")
@pytest.mark.parametrize("name", MODULES_OF_THE_SUITE)
def test_training_matches_xla(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, takes = MODULES[name]
    expected = trained(make(), norms=False, monkeypatch=monkeypatch)
    assert not Counted.taken
    found = trained(make(), norms=True, monkeypatch=monkeypatch)
    assert bool(Counted.taken) is takes
    assert_close(found, expected, tolerance=2e-4)


WAYS: dict[str, tuple[dict[str, Any], bool]] = {
    "bfloat16": ({"precision": "bfloat16"}, True),
    "slices": ({"gradient_accumulation_steps": 2}, True),
    "averages": ({"ema": 0.9}, True),
    "several steps": ({"steps_per_execution": 2}, True),
    "sharded": ({"dispatch": "sharded"}, False),
    "pmap": ({"dispatch": "pmap"}, False),
    "per replica": ({"dispatch": "sharded", "batch_norm": "per_replica"}, False),
}


@pytest.mark.slow
@pytest.mark.usefixtures("small_ones_too")
@pytest.mark.parametrize(
    "name",
    [
        name if name in ("bfloat16", "slices", "pmap") else pytest.param(name, marks=pytest.mark.exhaustive)
        for name in WAYS
    ],
)
def test_every_way_to_train_matches_xla(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, takes = WAYS[name]
    expected = trained(Own(rngs=nnx.Rngs(0)), norms=False, monkeypatch=monkeypatch, **options)
    found = trained(Own(rngs=nnx.Rngs(0)), norms=True, monkeypatch=monkeypatch, **options)
    assert bool(Counted.taken) is takes
    assert_close(found, expected, tolerance=2e-2 if name == "bfloat16" else 2e-4)


@pytest.mark.usefixtures("small_ones_too")
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one() -> None:
    whole, parts = Own(rngs=nnx.Rngs(0)), Own(rngs=nnx.Rngs(0))
    fit(compiled(whole, cpu_kernels="onednn"), epochs=2)
    for epochs in (1, 2):
        fit(compiled(parts, cpu_kernels="onednn"), epochs=epochs, callbacks=[Checkpoint("run")], resume=True)
    assert_same(values(whole), values(parts))


@pytest.mark.exhaustive
@pytest.mark.usefixtures("small_ones_too")
def test_memory_does_not_grow_in_many_steps() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    model = compiled(Own(rngs=nnx.Rngs(0)), cpu_kernels="onednn", learning_rate=1e-4)
    x, y = np.ones((80, 8, 8, 1), np.float32), np.arange(80) % 3
    fit(model, x, y, epochs=100)
    before = resident()
    fit(model, x, y, epochs=1000)  # 10,000 steps
    assert resident() - before < 20 * 2**20


# --- the compiler -----------------------------------------------------------------------------------------------------


def test_without_a_compiler_xla_normalizes_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(norm_library, "found_compiler", lambda: None)
    monkeypatch.setattr(norm_library, "folder", lambda: tmp_path)
    norm_library.available.cache_clear()
    try:
        with caplog.at_level(logging.INFO, "resfit"):
            assert not norm_library.available()
            assert not norm_library.available()
            given = problem((4, 4, 4, 16), "float32", RELU)
            assert_near(jax.jit(functools.partial(native, RELU))(*given[0]), by_jax(RELU, *given[0]), 1e-5)
    finally:
        norm_library.available.cache_clear()
    assert caplog.text.count("BatchNorm on the CPU uses XLA: no C compiler for vector units was found") == 1


def test_other_processors_have_files_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "norm.c"
    source.write_text("int nothing;")
    monkeypatch.setattr(norm_library, "SOURCE", source)
    files = set()
    for flags in ({"avx2"}, {"avx2", "avx512f"}, {"avx2"}):
        monkeypatch.setattr(norm_library, "cpu_flags", lambda flags=flags: flags)
        files.add(norm_library._built(tmp_path))
    assert len(files) == 2


def test_a_failing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(norm_library, "_OPTIONS", ("--no-such-option",))
    with pytest.raises(Unavailable, match="--no-such-option"):
        norm_library._built(tmp_path)
