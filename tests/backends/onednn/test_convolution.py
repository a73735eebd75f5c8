"""Convolutions of oneDNN match those of XLA, in every direction and under every transformation of JAX."""

import functools
import resource
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from resfit.backends.onednn import Convolve, convolution
from resfit.backends.onednn.bridge import TARGET
from tests.backends.onednn.needed import needs_onednn
from tests.helpers import fewer_examples

pytestmark = needs_onednn()

NHWC = ("NHWC", "HWIO", "NHWC")
ONEDNN = Convolve(always=True)


def arrays(image: tuple[int, ...], kernel: tuple[int, ...], dtype: str = "float32") -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape).astype(jnp.dtype(dtype))) for shape in (image, kernel))
    return x, w


def three(convolve: Any, x: jax.Array, w: jax.Array, **window: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the convolution and both of its gradients, for a cotangent that varies in space."""

    @jax.jit
    def run(x: jax.Array, w: jax.Array) -> Any:
        y, pull = jax.vjp(lambda x, w: convolve(x, w, dimension_numbers=NHWC, **window), x, w)
        return y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape).astype(y.dtype))

    return run(x, w)


def assert_near(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """Assert that two arrays are equal up to a share of the largest value."""
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
        assert u.shape == v.shape
        np.testing.assert_array_less(np.abs(u - v).max(), tolerance * max(np.abs(v).max(), 1e-3))


def text(function: Any, *arguments: Any) -> str:
    return str(jax.jit(function).lower(*arguments).as_text())


PLAIN = {"window_strides": (1, 1), "padding": ((1, 1), (1, 1))}

CASES = {
    "1x1": ((2, 8, 8, 16), (1, 1, 16, 24), {"window_strides": (1, 1), "padding": "VALID"}),
    "1x1 with stride": ((2, 9, 8, 16), (1, 1, 16, 24), {"window_strides": (2, 2), "padding": "VALID"}),
    "2x2": ((2, 8, 8, 3), (2, 2, 3, 5), {"window_strides": (2, 2), "padding": "SAME"}),
    "3x3": ((2, 9, 7, 16), (3, 3, 16, 16), PLAIN),
    "3x3 with stride": ((2, 9, 8, 16), (3, 3, 16, 32), {"window_strides": (2, 2), "padding": ((1, 1), (1, 1))}),
    "5x5": ((1, 12, 12, 4), (5, 5, 4, 8), {"window_strides": (1, 1), "padding": "SAME"}),
    "7x7 stem": ((2, 21, 20, 3), (7, 7, 3, 16), {"window_strides": (2, 2), "padding": ((3, 3), (3, 3))}),
    "one side padded": ((1, 8, 8, 4), (3, 3, 4, 4), {"window_strides": (2, 1), "padding": ((0, 1), (2, 0))}),
    "not square": ((2, 6, 11, 8), (1, 5, 8, 8), {"window_strides": (1, 3), "padding": ((0, 0), (2, 2))}),
    "groups": ((2, 8, 8, 32), (3, 3, 8, 32), PLAIN | {"feature_group_count": 4}),
    "odd groups": ((2, 8, 8, 6), (3, 3, 2, 9), PLAIN | {"feature_group_count": 3}),
    "depthwise": ((2, 8, 8, 32), (3, 3, 1, 32), PLAIN | {"feature_group_count": 32}),
    "dilated": ((1, 12, 12, 8), (3, 3, 8, 8), {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 3)}),
    "one channel": ((4, 28, 28, 1), (3, 3, 1, 8), PLAIN),
    "a reduction to one row": ((3, 7, 7, 8), (7, 7, 8, 4), {"window_strides": (1, 1), "padding": "VALID"}),
    "padding beyond the kernel": ((1, 4, 4, 4), (3, 3, 4, 4), {"window_strides": (1, 1), "padding": ((3, 3), (4, 3))}),
}


QUICK = ("1x1 with stride", "3x3", "7x7 stem", "groups", "dilated", "one side padded", "padding beyond the kernel")


@pytest.mark.representatives("1x1 with stride", "7x7 stem", "groups")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_convolution_and_both_gradients_match_xla(case: str) -> None:
    image, kernel, window = CASES[case]
    x, w = arrays(image, kernel)
    assert TARGET in text(lambda x, w: ONEDNN(x, w, dimension_numbers=NHWC, **window), x, w)
    assert_near(three(ONEDNN, x, w, **window), three(lax.conv_general_dilated, x, w, **window))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("x", "w"), [(1e-39, 1e10), (1e10, 1e-39), (1e-20, 1e-21)], ids=["x", "w", "product"])
def test_denormals_are_zero_as_for_xla(x: float, w: float, dtype: str) -> None:
    image, kernel = (
        np.full((16,) * 4, x).astype(jnp.dtype(dtype)),
        np.full((3, 3, 16, 16), w).astype(jnp.dtype(dtype)),
    )
    assert float(image[0, 0, 0, 0]) * float(kernel[0, 0, 0, 0]) != 0
    for convolve in (ONEDNN, lax.conv_general_dilated):
        found = jax.jit(functools.partial(convolve, dimension_numbers=NHWC, **PLAIN))(image, kernel)
        assert not np.asarray(found, np.float32).any()


@pytest.mark.slow
@fewer_examples(2)
@given(data=st.data())
def test_any_window_matches_xla(data: st.DataObject) -> None:
    def pick(*values: int) -> int:
        return data.draw(st.sampled_from(values))

    groups = pick(1, 1, 2, 3)
    kernel = (pick(1, 2, 3, 5, 7), pick(1, 3, 4, 7), pick(1, 3, 4, 8), groups * pick(1, 2, 5, 16))
    dilation = (pick(1, 1, 2), pick(1, 1, 3))
    padding = tuple((pick(0, 1, 2), pick(0, 1, 3)) for _ in range(2))
    reach = [(kernel[i] - 1) * dilation[i] + 1 for i in range(2)]
    sizes = [max(1, reach[i] - sum(padding[i])) + pick(0, 1, 2, 5, 9) for i in range(2)]
    x, w = arrays((pick(1, 2, 5), *sizes, kernel[2] * groups), kernel)
    window = {
        "window_strides": (pick(1, 2, 3), pick(1, 2)),
        "padding": padding,
        "rhs_dilation": dilation,
        "feature_group_count": groups,
    }
    assert_near(three(ONEDNN, x, w, **window), three(lax.conv_general_dilated, x, w, **window))


@pytest.mark.parametrize(
    "case", ["3x3", *(pytest.param(case, marks=pytest.mark.slow) for case in ("1x1", "7x7 stem", "groups"))]
)
def test_bfloat16_is_as_close_to_float32_as_xla(case: str) -> None:
    image, kernel, window = CASES[case]
    half = arrays(image, kernel, "bfloat16")
    exact = three(lax.conv_general_dilated, *(np.asarray(array, np.float32) for array in half), **window)
    ours = three(ONEDNN, *half, **window)
    assert {array.dtype for array in ours} == {jnp.dtype("bfloat16")}
    assert_near(ours, exact, 2e-2)


# --- transformations --------------------------------------------------------------------------------------------------


def loss(convolve: Any) -> Any:
    def of(x: jax.Array, w: jax.Array) -> jax.Array:
        # Squares: a sum in which values cancel is as far from another order of its terms as the machine makes it.
        return (jnp.sin(convolve(x, w, (2, 1), ((1, 1), (0, 1)), dimension_numbers=NHWC)) ** 2).sum()

    return of


TRANSFORMED = {
    "jvp": lambda f: lambda x, w: jax.jvp(f, (x, w), (jnp.cos(x), jnp.sin(w)))[1],
    "gradient of a gradient": lambda f: jax.grad(
        lambda x, w: sum((leaf**2).sum() for leaf in jax.grad(f, (0, 1))(x, w)), (0, 1)
    ),
    "forward over reverse": lambda f: lambda x, w: jax.jvp(jax.grad(f, 1), (x, w), (x, w))[1],
    "remat": lambda f: jax.grad(jax.checkpoint(f), (0, 1)),
    "vmap over images": lambda f: jax.vmap(lambda x, w: f(x[None], w), (0, None)),
    "vmap over kernels": lambda f: jax.vmap(lambda x, w: f(x, w[..., None]), (None, 3)),
    "gradient for each image": lambda f: jax.vmap(lambda x, w: jax.grad(f, 1)(x[None], w), (0, None)),
    "scan": lambda f: lambda x, w: lax.scan(lambda total, w: (total + f(x, w), None), 0.0, jnp.stack([w, 2 * w]))[0],
    "not compiled": lambda f: f,
}


@pytest.mark.representatives("jvp", "vmap over images", "remat")
@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations_match_xla(name: str) -> None:
    x, w = arrays((3, 6, 7, 8), (3, 3, 8, 4))
    ours, theirs = (TRANSFORMED[name](loss(convolve)) for convolve in (ONEDNN, lax.conv_general_dilated))
    if name != "not compiled":
        ours = jax.jit(ours)
    assert_near(ours(x, w), jax.jit(theirs)(x, w))


def test_second_derivatives_use_onednn() -> None:
    x, w = arrays((3, 6, 7, 8), (3, 3, 8, 4))
    program = text(TRANSFORMED["gradient of a gradient"](loss(ONEDNN)), x, w)
    assert {direction in program for direction in ("forward of", "data gradient of", "weight gradient of")} == {True}


UNUSUAL = {
    "one axis": ((2, 9, 4), (3, 4, 8), {"dimension_numbers": ("NHC", "HIO", "NHC")}, (1,)),
    "three axes": ((1, 5, 5, 5, 2), (3, 3, 3, 2, 4), {"dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}, (1, 1, 1)),
    "channels first": ((2, 4, 8, 8), (8, 4, 3, 3), {"dimension_numbers": ("NCHW", "OIHW", "NCHW")}, (1, 1)),
    "dilated images": ((2, 8, 8, 4), (3, 3, 4, 8), {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))}, (1, 1)),
    "groups of the batch": ((4, 8, 8, 4), (3, 3, 4, 8), {"batch_group_count": 2}, (1, 1)),
    "cropped": ((2, 8, 8, 4), (3, 3, 4, 8), {"padding": ((-1, 0), (0, 0))}, (1, 1)),
    "no image": ((0, 8, 8, 4), (3, 3, 4, 8), {}, (1, 1)),
}


@pytest.mark.representatives("one axis", "dilated images")
@pytest.mark.parametrize("name", UNUSUAL)
def test_unsupported_convolutions_use_xla(name: str) -> None:
    image, kernel, options, strides = UNUSUAL[name]
    x, w = arrays(image, kernel)
    arguments = {"window_strides": strides, "padding": "VALID", "dimension_numbers": NHWC, **options}
    assert TARGET not in text(lambda x, w: ONEDNN(x, w, **arguments), x, w)
    ours, theirs = (jax.jit(lambda x, w, f=f: f(x, w, **arguments))(x, w) for f in (ONEDNN, lax.conv_general_dilated))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("dtype", "result"), [("float16", None), ("bfloat16", jnp.float32)])
def test_other_dtypes_use_xla(dtype: str, result: Any) -> None:
    x, w = arrays((2, 8, 8, 4), (3, 3, 4, 8), dtype)
    arguments = PLAIN | {"dimension_numbers": NHWC, "preferred_element_type": result}
    assert TARGET not in text(lambda x, w: ONEDNN(x, w, **arguments), x, w)


def test_small_convolutions_use_xla_and_large_ones_use_onednn() -> None:
    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        return Convolve()(x, w, **PLAIN, dimension_numbers=NHWC)

    assert TARGET not in text(convolve, *arrays((32, 8, 8, 8), (3, 3, 8, 8)))
    assert TARGET in text(convolve, *arrays((128, 32, 32, 16), (3, 3, 16, 16)))


def test_a_network_of_small_convolutions_is_the_same_program_as_with_xla() -> None:
    x, w = arrays((8, 8, 8, 8), (3, 3, 8, 8))

    def program(convolve: Any) -> str:
        def network(x: jax.Array, w: jax.Array) -> jax.Array:
            for _ in range(2):
                x = jax.nn.relu(convolve(x, w, **PLAIN, dimension_numbers=NHWC))
            return (x**2).sum()

        return text(jax.value_and_grad(network, (0, 1)), x, w)

    assert program(Convolve()) == program(lax.conv_general_dilated)
    assert program(ONEDNN) != program(lax.conv_general_dilated)


# --- bits, threads, errors, leaks -------------------------------------------------------------------------------------


def test_a_call_gives_the_same_bits_again_also_among_concurrent_calls() -> None:
    x, w = arrays((8, 16, 16, 16), (3, 3, 16, 16))

    @jax.jit
    def run(x: jax.Array, w: jax.Array) -> Any:
        y, pull = jax.vjp(lambda x, w: ONEDNN(x, w, **PLAIN, dimension_numbers=NHWC), x, w)
        return y, *pull(y)

    first = jax.tree.map(np.array, run(x, w))
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.extend(jax.tree.map(np.array, run(x, w)) for _ in range(10)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 40
    for again in found:
        jax.tree.map(np.testing.assert_array_equal, again, first)


def test_concurrent_programs_of_several_devices_keep_their_arrays_apart() -> None:
    cases = [arrays((2, 8, 8, 4 * (i + 1)), (3, 3, 4 * (i + 1), 8)) for i in range(4)]
    run = jax.jit(lambda x, w: ONEDNN(x, w, **PLAIN, dimension_numbers=NHWC))
    placed = [jax.device_put(case, device) for case, device in zip(cases, jax.devices(), strict=False)]
    results = [[run(*case) for case in placed] for _ in range(5)]
    for round_ in results:
        for case, result in zip(cases, round_, strict=False):
            expected = lax.conv_general_dilated(*case, **PLAIN, dimension_numbers=NHWC)
            assert_near(result, expected)


@pytest.mark.parametrize(
    ("results", "attributes", "message"),
    [
        (2, {"convolution": "of nobody's"}, "not planned in this process"),
        (2, {}, "without its name"),
        (2, {"convolution": 3}, "without its name"),
        (1, None, "another number of buffers"),
        (2, None, "another size"),
        (2, "half", "another dtype"),
    ],
)
def test_an_invalid_call_fails_with_a_message(results: int, attributes: Any, message: str) -> None:
    from resfit.backends.onednn.convolution import planned
    from resfit.backends.onednn.planning import FORWARD, Shape

    shape = Shape(FORWARD, (1, 5, 5, 4), (3, 3, 4, 4), (1, 3, 3, 4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1, "float32")
    plan = planned(shape, always=True)
    assert plan is not None
    dtype = "bfloat16" if attributes == "half" else "float32"
    given = {"convolution": plan.name} if attributes in (None, "half") else attributes
    size = 7 if message == "another size" else 5
    x, w = arrays((1, size, size, 4), (3, 3, 4, 4), dtype)
    out = [jax.ShapeDtypeStruct((1, 3, 3, 4), x.dtype), jax.ShapeDtypeStruct((plan.scratch,), jnp.uint8)][:results]
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(jax.jit(lambda: jax.ffi.ffi_call(TARGET, out)(x, w, **given))())


def test_a_plan_that_was_released_is_built_again_when_a_program_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    planner = convolution._planner(convolution.connect())
    x, w = arrays((2, 8, 8, 16), (3, 3, 16, 16))

    @jax.jit
    def run(x: jax.Array, w: jax.Array) -> Any:
        y, pull = jax.vjp(lambda x, w: ONEDNN(x, w, dimension_numbers=NHWC, **PLAIN), x, w)
        return y, *pull(y)

    before = run(x, w)
    held = len(planner)
    assert held >= 3
    monkeypatch.setattr(planner, "limit", 2)
    text(lambda x, w: ONEDNN(x, w, dimension_numbers=NHWC, **PLAIN), *arrays((3, 5, 9, 7), (3, 3, 7, 11)))  # a new plan
    assert len(planner) == 2
    found = []
    threads = [threading.Thread(target=lambda: found.append(run(x, w))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for after in found:
        jax.tree.map(np.testing.assert_array_equal, after, before)
    assert (len(found), len(planner)) == (4, 2)


@pytest.mark.slow
def test_ten_thousand_calls_leak_no_memory() -> None:
    x, w = arrays((2, 8, 8, 16), (3, 3, 16, 16))

    @jax.jit
    def run(x: jax.Array, w: jax.Array) -> Any:
        y, pull = jax.vjp(lambda x, w: ONEDNN(x, w, **PLAIN, dimension_numbers=NHWC), x, w)
        return y, *pull(y)

    def repeat(times: int) -> float:
        """Return the megabytes of the process afterwards."""
        for _ in range(times):
            jax.block_until_ready(run(x, w))
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    warm = repeat(500)
    assert repeat(10_000) - warm < 8  # a leak of a kilobyte a call would be ten
