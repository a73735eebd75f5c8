"""The writer of ONNX graphs, without the package `onnx`: every graph computes what JAX computes."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis.strategies as st
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from jax import lax

from resfit.backends.cpu_barrier import tracing_for
from resfit.errors import ExportError
from resfit.export.onnx import file
from resfit.export.onnx.converter import convert
from resfit.export.onnx.exporter import Settings, differences, written
from resfit.export.onnx.graph import Graph, Node
from resfit.export.onnx.simplify import simplify
from resfit.preprocess import Normalize
from tests import levels
from tests.export.onnx_interpreter import assert_allowed, evaluate, run
from tests.helpers import TinyNet
from tests.thin_variants import VARIANTS, thin

IMAGES = (6, 7, 3)
OPSETS = (13, 18)  # before and after the axes of all reductions became an input


@pytest.fixture(autouse=True)
def _promotion() -> Iterator[None]:
    """Allow NumPy's rank promotion, as in the modules of users; the suite forbids it elsewhere."""
    with jax.numpy_rank_promotion("allow"):
        yield


def draw(rows: int, shape: Sequence[int], dtype: Any = np.float32) -> np.ndarray:
    draws = np.random.default_rng(rows)
    if dtype == np.float32:
        return draws.normal(size=(rows, *shape)).astype(np.float32)
    return draws.integers(0, 5 if dtype == np.int32 else 256, (rows, *shape)).astype(dtype)


def graph(function: Callable[..., Any], *inputs: np.ndarray, opset: int = 17, symbolic: bool = True) -> Graph:
    """Return the graph of a function for batches of any size, or of the size of these inputs."""
    rows = jax.export.symbolic_shape("batch")[0] if symbolic else len(inputs[0])
    g = Graph(opset, rows if symbolic else None)
    shapes = [jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for x in inputs]
    with tracing_for(["onnx"]):
        program = jax.make_jaxpr(function)(*shapes)
    values = [g.input(f"x{i}", one.shape, one.dtype) for i, one in enumerate(shapes)]
    for i, value in enumerate(convert(g, program, values)):
        g.output(f"y{i}", value)
    simplify(g)
    return g


def operations(g: Graph) -> Counter[str]:
    return Counter(node.op for node in g.nodes)


def check(function: Callable[..., Any], *shapes: Sequence[int], dtype: Any = np.float32, opset: int = 17) -> Graph:
    """Compare the graph with JAX for batches of 1 and 5 rows, and one of a fixed size."""
    g = graph(function, *(draw(2, shape, dtype) for shape in shapes), opset=opset)
    for rows, tested in (
        (1, g),
        (5, g),
        (3, graph(function, *(draw(3, s, dtype) for s in shapes), opset=opset, symbolic=False)),
    ):
        inputs = [draw(rows, shape, dtype) for shape in shapes]
        for found, expected in zip(run(tested, *inputs), evaluate(function, *inputs), strict=True):
            assert found.dtype == expected.dtype
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)
    return g


def conv(x: jax.Array, kernel: tuple[int, ...], *, spec: Any = ("NHWC", "HWIO", "NHWC"), **options: Any) -> jax.Array:
    weights = np.random.default_rng(0).normal(size=kernel).astype(np.float32)
    return lax.conv_general_dilated(
        x, weights, **{"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": spec, **options}
    )


def window(
    x: jax.Array, start: float, combine: Any, sizes: Any, strides: Any, padding: Any, **options: Any
) -> jax.Array:
    return lax.reduce_window(x, np.float32(start), combine, sizes, strides, padding, **options)


MATRIX = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
RAMP = np.arange(3, dtype=np.float32) + 1
PAIR = np.random.default_rng(2).normal(size=(3, 3)).astype(np.float32)

FUNCTIONS: dict[str, Callable[[jax.Array], Any]] = {
    # elementwise
    "activations": lambda x: (
        jax.nn.gelu(x),
        jax.nn.silu(x),
        nnx.relu6(x),
        jax.nn.elu(x),
        jax.nn.softplus(x),
        jax.nn.hard_swish(x),
    ),
    "gelu of erf": lambda x: jax.nn.gelu(x, approximate=False),
    "leaky": lambda x: jax.nn.leaky_relu(x, 0.1),
    "arithmetic": lambda x: (x + 1) * (2 - x) / (x**2 + 1) - jnp.abs(x) ** 1.5,
    "powers": lambda x: (x**2, x**3, jnp.square(x), lax.rsqrt(x * x + 1), jnp.sqrt(jnp.abs(x)), jnp.exp2(x)),
    "logarithms": lambda x: (jnp.log1p(jnp.abs(x)), jnp.expm1(x), jnp.log(jnp.abs(x) + 1), jnp.exp(-x)),
    "rounding": lambda x: (jnp.round(x * 3), jnp.floor(x), jnp.ceil(x), jnp.sign(x), jnp.fmod(x, 0.7)),
    "comparisons": lambda x: (x > 0, x >= 0.5, x < -1, x <= 0, x == 0, x != 0, (x > 0) & (x < 1) | ~(x > -1)),
    "choices": lambda x: (jnp.where(x > 0, x, 2 * x), jnp.clip(x, -0.5, 0.5), jnp.minimum(x, 0.3), jnp.nan_to_num(x)),
    "trigonometry": lambda x: (jnp.sin(x), jnp.cos(x), jnp.tanh(x)),
    "dtypes": lambda x: (x.astype("int32"), (x > 0).astype("float32"), x.astype("int32") // 2),
    "integers out of range": lambda x: [(x * 1e10 + 0.5).astype(to) for to in ("uint8", "int8", "int16", "uint16")],
    "integers of 32 bits out of range": lambda x: (x * 1e12).astype("int32").astype("float32"),
    "half precision": lambda x: x.astype("bfloat16").astype("float32") * 0 + x,
    # shapes
    "transposes": lambda x: (x.transpose(0, 3, 1, 2), x.transpose(0, 2, 1, 3) + 1, x.mT),
    "reshapes": lambda x: (
        x.reshape(x.shape[0], -1),
        x.reshape(x.shape[0], 3, 2, -1),
        x.reshape(-1, 7)[:, 0].reshape(x.shape[0], -1),
    ),
    "broadcasts": lambda x: (
        x + RAMP,
        x * x.mean((1, 2), keepdims=True),
        x[..., :1] + x,
        jnp.broadcast_to(x[:, :1], x.shape),
    ),
    "new axes": lambda x: (x[:, None], x[..., None] * RAMP, jnp.expand_dims(x, (1, 3)).squeeze((1, 3))),
    "zeros of the batch size": lambda x: jnp.concatenate([jnp.zeros((x.shape[0], 2, 7, 3)), x], axis=1),
    "ones beside": lambda x: jnp.ones((x.shape[0], 2)) * x.mean((1, 2, 3))[:, None],
    "slices": lambda x: (x[:, 1:], x[:, ::2, 1::3], x[..., -1], x[:, 2], x[:, ::-1], x[:, -2:, :3, 1:2]),
    "entries": lambda x: (
        x[..., jnp.array([2, 0, 1])],
        jnp.take(x, jnp.array([1, 1, 4]), axis=1),
        x[:, jnp.array([0, 2]), 3],
    ),
    "entries along axes": lambda x: x[:, np.array([0, 5, 1])[:, None], np.array([3, 2])[None]],
    "pads": lambda x: (
        jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0))),
        jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), "reflect"),
    ),
    "pads that cut": lambda x: lax.pad(x, 0.5, ((0, 0, 0), (-1, 2, 0), (1, -2, 0), (0, 0, 0))),
    "joins": lambda x: (jnp.concatenate([x, 2 * x], -1), jnp.stack([x, -x], 1), jnp.split(x, [2, 5], 1)),
    "dynamic slice": lambda x: lax.dynamic_slice_in_dim(x, 4, 3, 1),
    # reductions
    "reductions": lambda x: (
        x.sum(1),
        x.mean((1, 2)),
        x.max(-1),
        x.min((1, 3)),
        x.prod(2),
        x.sum()[None] * jnp.ones((x.shape[0], 1)),
    ),
    "moments": lambda x: (x.var((1, 2)), jax.nn.standardize(x, axis=(1, 2)), jax.nn.logsumexp(x, -1)),
    "largest": lambda x: (x.argmax(-1), x.argmin(1), jax.nn.softmax(x), jax.nn.log_softmax(x, 1)),
    "running sums": lambda x: (x.cumsum(1), lax.cumsum(x, 2, reverse=True)),
    # layers
    "products": lambda x: (x @ MATRIX, x.mean((1, 2)) @ MATRIX + 1.0, x.mean((1, 2)) @ MATRIX.T[:3].T[:, :3] + RAMP),
    "einsums": lambda x: (
        jnp.einsum("nhwc,nhvc->nwv", x, x),
        jnp.einsum("nhwc,cd->ndhw", x, MATRIX),
        jnp.einsum("nhwc,hd->nwcd", x, np.ones((6, 2), "f4")),
    ),
    "convolutions": lambda x: (
        conv(x, (3, 3, 3, 4)),
        conv(x, (3, 2, 3, 4), window_strides=(2, 1), padding=((1, 1), (0, 2)), rhs_dilation=(1, 2)),
    ),
    "groups": lambda x: conv(x, (3, 3, 1, 6), feature_group_count=3),
    "other layouts": lambda x: (
        conv(x.transpose(0, 3, 1, 2), (4, 3, 2, 2), spec=("NCHW", "OIHW", "NHWC")),
        conv(x[:, 0], (3, 3, 4), spec=("NWC", "WIO", "NWC"), window_strides=(2,)),
    ),
    "a kernel of the input": lambda x: lax.conv_general_dilated(
        x,
        x[:1].mean((0, 1))[None, :, :, None] * jnp.ones((1, 1, 1, 2)),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ),
    "transposed convolution": lambda x: (
        lax.conv_transpose(x, np.ones((3, 3, 3, 2), "f4") * PAIR[..., None, None], (2, 2), "SAME"),
        lax.conv_transpose(x, np.ones((2, 2, 3, 2), "f4"), (2, 3), "VALID"),
    ),
    "scaled convolution": lambda x: (conv(x, (1, 1, 3, 3)) * RAMP - RAMP) / (RAMP + 1) + 1,
    "two readers of a convolution": lambda x: (y := conv(x, (1, 1, 3, 3)), y * RAMP + 1),
    "pooling": lambda x: (
        nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        nnx.avg_pool(x, (2, 3), (2, 1)),
        nnx.max_pool(x, (2, 2), (1, 2)),
    ),
    "pooling of rows": lambda x: window(x, -np.inf, lax.max, (1, 3, 1, 1), (1, 2, 1, 1), "SAME"),
    "sums in windows": lambda x: window(x.transpose(0, 3, 1, 2), 0.0, lax.add, (1, 1, 2, 2), (1, 1, 2, 2), "VALID"),
    "dilated pooling": lambda x: window(
        x, -np.inf, lax.max, (1, 2, 2, 1), (1, 1, 1, 1), "VALID", window_dilation=(1, 2, 1, 1)
    ),
    # programs inside of programs
    "calls": lambda x: jax.checkpoint(jax.jit(lambda y: nnx.relu(y) * 2))(x),
    "scan": lambda x: lax.scan(
        lambda carry, w: (jnp.tanh(carry @ w), carry.mean((1, 2, 3))), x, np.stack([PAIR, -PAIR, PAIR])
    )[0],
    "scan of outputs": lambda x: lax.scan(
        lambda carry, row: (carry + row, carry * 2), x[:, 0], x.transpose(1, 0, 2, 3), reverse=True
    )[0],
    "a constant choice": lambda x: lax.cond(np.float32(1) > 0, lambda: x + 1, lambda: x - 1),
    "random numbers of a constant key": lambda x: x + jax.random.normal(jax.random.key(0), (7, 3)),
    "attention": lambda x: nnx.dot_product_attention(x, x, x),
    "the input itself": lambda x: (x, x),
    "constants only": lambda x: jnp.zeros((x.shape[0], 2)),
}


# One row of each kind; the others are slow.
QUICK = {
    "activations", "choices", "transposes", "broadcasts", "zeros of the batch size", "slices", "entries", "joins",
    "reductions", "products", "einsums", "convolutions", "transposed convolution", "two readers of a convolution",
    "pooling", "scan", "random numbers of a constant key",
}  # fmt: skip


@pytest.mark.parametrize("name", levels.only(QUICK, FUNCTIONS))
def test_a_graph_computes_what_jax_computes_for_batches_of_any_size(name: str) -> None:
    check(FUNCTIONS[name], IMAGES)


@pytest.mark.parametrize("opset", OPSETS)
def test_reductions_in_every_version_of_the_operations(opset: int) -> None:
    check(FUNCTIONS["reductions"], IMAGES, opset=opset)
    check(FUNCTIONS["moments"], IMAGES, opset=opset)


def test_integers_and_several_inputs() -> None:
    check(lambda x: (x.astype("float32") / 255, x // 2), IMAGES, dtype=np.uint8)
    check(
        lambda x: (
            np.arange(15, dtype=np.float32).reshape(5, 3)[x[:, 0, 0, 0]]
            if isinstance(x, np.ndarray)
            else jnp.asarray(np.arange(15, dtype=np.float32).reshape(5, 3))[x]
        ),
        (2,),
        dtype=np.int32,
    )
    check(lambda x, y: (x + y, jnp.einsum("nij,nkj->nik", x, y)), (4, 3), (4, 3))


STEPS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nnx.relu,
    "add": lambda x: x + np.arange(x.shape[-1], dtype=np.float32),
    "gate": lambda x: x * jax.nn.sigmoid(x.mean(tuple(range(1, x.ndim)), keepdims=True)),
    "turn": lambda x: x.transpose(0, *range(2, x.ndim), 1),
    "mirror": lambda x: x[:, ::-1],
    "halve": lambda x: x[:, ::2],
    "fold": lambda x: x.reshape(x.shape[0], -1, x.shape[-1])[:, :, None],
    "center": lambda x: x - x.mean(-1, keepdims=True),
    "double": lambda x: jnp.concatenate([x, x * x], 1),
    "conv": lambda x: conv(x, (2, 2, x.shape[-1], 3)),
    "pool": lambda x: nnx.max_pool(x, (2, 2), (1, 1), "SAME"),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 1), (0, 0))),
}


@given(steps=st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=5))
def test_any_sequence_of_steps_keeps_its_axes_apart(steps: list[str]) -> None:
    """The stored order of axes differs from step to step; a mistake in one order changes the result."""

    def function(x: jax.Array) -> jax.Array:
        for step in steps:
            x = STEPS[step](x)
        return x

    x = draw(2, (4, 3, 2))
    np.testing.assert_allclose(
        run(graph(function, x), x)[0], np.asarray(function(jnp.asarray(x))), rtol=1e-4, atol=1e-4
    )


def test_the_interpreter_sees_a_wrong_order_of_axes() -> None:
    """The negative control of the tests above."""
    g = graph(FUNCTIONS["convolutions"], draw(2, IMAGES))
    (turned,) = [node for node in g.nodes if node.op == "Transpose" and node.inputs == ["x0"]]
    turned.attributes["perm"] = [0, 3, 2, 1]
    with pytest.raises((AssertionError, TypeError, ValueError)):
        np.testing.assert_allclose(run(g, draw(2, IMAGES))[0], evaluate(FUNCTIONS["convolutions"], draw(2, IMAGES))[0])


# --- networks ---------------------------------------------------------------------------------------------------------

SETTINGS = Settings(Normalize((0.5,) * 3, (0.25,) * 3), None, "float32", 0, "logits", "raw", None, False)
EXAMPLE = jax.ShapeDtypeStruct((64, 64, 3), np.dtype(np.uint8))


@pytest.mark.parametrize(
    "variant",
    levels.only(["SE, basic"], VARIANTS, slow=["anti-aliased, D", "group norm", "v2, bottleneck", "space to depth"]),
)
def test_every_variant_becomes_a_graph_of_its_layers(variant: str) -> None:
    network = written(thin(variant), EXAMPLE, SETTINGS)
    x = draw(2, (64, 64, 3), np.uint8)
    expected = np.asarray(network.original(x))
    np.testing.assert_allclose(run(network.graph, x)[0], expected, rtol=1e-4, atol=1e-4)


def test_a_resnet_is_convolutions_additions_and_one_transposition() -> None:
    found = operations(written(thin("v1"), EXAMPLE, SETTINGS).graph)
    assert found == {
        "Cast": 1, "Div": 2, "Sub": 1, "Transpose": 1, "Conv": 9, "Relu": 7, "MaxPool": 1, "Add": 2, "ReduceMean": 1,
        "Gemm": 1,
    }  # fmt: skip


def test_weights_keep_their_names_and_ports_have_words() -> None:
    g = written(thin("v1"), EXAMPLE, SETTINGS).graph
    assert {"stem.conv.kernel", "head.linear.kernel"} <= set(g.arrays) or {"stem.conv.kernel"} <= set(g.arrays)
    assert [port.name for port in g.inputs] == ["images"]
    assert [port.name for port in g.outputs] == ["logits"]
    assert g.inputs[0].shape == ("batch", 64, 64, 3)


class Custom(nnx.Module):
    """A network as users write them: strided slices, flax's BatchNorm before a convolution, attention-like products."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.down = nnx.Conv(8, 8, (2, 2), strides=(2, 2), padding="VALID", rngs=rngs)
        self.layer = nnx.LayerNorm(8, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(16, 5, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.gelu(self.first(x))
        x = self.down(nnx.relu(self.norm(x)))[:, ::2, ::2]
        tokens = self.layer(x.reshape(x.shape[0], -1, 8))
        weights = jax.nn.softmax(jnp.einsum("nic,njc->nij", tokens, tokens), -1)
        mixed = jnp.concatenate([(weights @ tokens).mean(1), tokens.max(1)], -1)
        return self.head(self.drop(mixed))


@pytest.mark.parametrize("outputs", ["logits", "probabilities", "labels"])
def test_a_custom_module_becomes_a_graph(outputs: str) -> None:
    network = written(
        Custom(rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((8, 8, 3), np.dtype("f4")), SETTINGS._replace(outputs=outputs)
    )
    x = draw(5, (8, 8, 3))
    np.testing.assert_allclose(run(network.graph, x)[0], np.asarray(network.original(x)), rtol=1e-4, atol=1e-5)
    assert operations(network.graph)["BatchNormalization"] == 1


def test_the_metadata_describe_the_file() -> None:
    settings = SETTINGS._replace(class_names=["a", "b", "c"], preprocess=None, dynamic_batch=False)
    network = written(TinyNet(rngs=nnx.Rngs(0)), jax.ShapeDtypeStruct((8, 8, 1), np.dtype("f4")), settings)
    assert network.metadata["class_names"] == ["a", "b", "c"]
    assert network.metadata["inputs"] == [{"name": "", "shape": [1, 8, 8, 1], "dtype": "float32"}]
    assert network.graph.inputs[0].shape == (1, 8, 8, 1)
    with pytest.raises(ExportError, match="one text for each of the 3 classes"):
        written(
            TinyNet(rngs=nnx.Rngs(0)),
            jax.ShapeDtypeStruct((8, 8, 1), np.dtype("f4")),
            settings._replace(class_names=["a"]),
        )


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: jnp.sort(x, axis=1), r"jax\.lax\.sort with \(float32\[batch,6,7,3\]"),
        (lambda x: lax.while_loop(lambda y: y.max() < 3, lambda y: y + 1, x), r"jax\.lax\.while"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 0), (0, 0, 1), (0, 0, 0), (0, 0, 0))), r"jax\.lax\.pad"),
        (
            lambda x: x.reshape(-1, 3).reshape(x.shape[0] * 2, -1) + jnp.ones((x.shape[0] * 2, 1)) @ jnp.ones((1, 63)),
            "has an axis of the size 2",
        ),
    ],
)
def test_what_onnx_lacks_raises_with_the_primitive(function: Any, said: str) -> None:
    with pytest.raises(ExportError, match=said):
        graph(function, draw(2, IMAGES))


def test_differences_compare_the_largest_entries_and_labels() -> None:
    assert differences([np.array([1, 2])], [np.array([1, 3])]) == {"largest_difference": 1.0, "same_class": 0.5}
    assert differences([np.array([[0.5], [-0.5]])], [np.array([[0.25], [0.5]])])["same_class"] == 0.5


def test_weights_of_more_than_two_gigabytes_raise() -> None:
    """A protocol buffer cannot hold them; without the check, its serializer fails after minutes."""
    g = Graph(17)
    g.arrays["kernel"] = np.broadcast_to(np.float32(0), (1024, 1024, 600))
    with pytest.raises(ExportError, match=r"weights of 2\.3 GiB\. Expected at most 2 GiB"):
        file.content(g, {})


@pytest.mark.parametrize(
    ("node", "opset", "inputs", "refused"),
    [
        (Node("Relu", ["x"], ["y"], {"slope": 1}), 17, [np.float32([1])], "has no attribute"),
        (Node("Cast", ["x"], ["y"]), 17, [np.float32([1])], "needs {'to'}"),
        (
            Node("ReduceMean", ["x", "axes"], ["y"], {"keepdims": 0}),
            17,
            [np.ones((2, 3), "f"), np.int64([1])],
            "1 to 1",
        ),
        (Node("Neg", ["x"], ["y"]), 17, [np.uint8([1])], "input 0 of Neg 17 is uint8"),
        (Node("Relu", ["x"], ["y"]), 13, [np.int32([1])], "input 0 of Relu 13 is int32"),
    ],
    ids=["attribute", "needed", "inputs", "dtype", "version"],
)
def test_the_interpreter_refuses_what_onnx_refuses(node: Node, opset: int, inputs: list[Any], refused: str) -> None:
    """The negative controls of the check of every node in this file."""
    with pytest.raises(AssertionError, match=refused):
        assert_allowed(node, opset, *inputs)
