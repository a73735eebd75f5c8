"""The training step as the compilers of other platforms get it, and as it runs on several devices."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from einops import reduce
from flax import nnx

import resfit
from tests.helpers import BATCH, compiled, compiled_of, images, labels, state_of, train_arguments

# What a GPU's own compiler has besides XLA's operations: JAX's counter-based random numbers.
OF_A_GPU = {"cu_threefry2x32_ffi"}


def net(**overrides: Any) -> Any:
    """Return a network of a stem, a block without and a block with a projection: 6 convolutions, 6 norms."""
    spec = {"num_classes": 3, "in_channels": 1, "depths": (1, 1), "widths": (4, 8), "shortcut": "B", **overrides}
    return resfit.create_model("resnet20", **spec)


class NoNorm(nnx.Module):
    def __init__(self) -> None:
        self.convs = nnx.List([nnx.Conv(1 if i == 0 else 4, 4, (3, 3), padding=1, rngs=nnx.Rngs(i)) for i in range(3)])
        self.head = nnx.Linear(4, 3, rngs=nnx.Rngs(9))

    def __call__(self, x: jax.Array) -> jax.Array:
        for conv in self.convs:
            x = nnx.relu(conv(x))
        return self.head(reduce(x, "n h w c -> n c", "mean"))


def arguments(model: Any, rows: int = BATCH) -> tuple[Any, ...]:
    """Return the arguments of the training step."""
    return train_arguments(model, resfit.data.Batch(images(rows), labels(rows), None, None, rows))


def lowered(model: Any, platform: str) -> str:
    """Return the training step in StableHLO, as the compiler of another platform gets it."""
    given = arguments(model)
    program = compiled_of(model).trainer.step._jit.trace(*given).lower(lowering_platforms=(platform,))
    text: str = program.as_text()
    return text


def convolutions(text: str) -> list[str]:
    """Return the dtype in which each convolution of a program multiplies."""
    found = re.findall(r"stablehlo\.convolution\(.*: \(tensor<[\dx]*x(\w+)>, tensor<[\dx]*x(\w+)>\)", text)
    assert all(left == right for left, right in found)
    return [left for left, _ in found]


# --- for a GPU and a TPU ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", "bf16"), ("float32", "f32")])
def test_every_convolution_multiplies_in_the_precision_that_was_asked_for(
    platform: str, precision: str, dtype: str
) -> None:
    text = lowered(compiled(net(), precision=precision), platform)
    # Each forward, and for the gradient by its kernel and by its input, which the first has no use for.
    assert convolutions(text) == [dtype] * (3 * 6 - 1)
    # What adds up does not: all that the step gets and returns is of the dtypes that it has in float32.
    signature = next(line for line in text.splitlines() if "func.func public @main" in line)
    assert "bf16" not in signature


@pytest.mark.representatives("adamw with averages-sharded-cuda")
@pytest.mark.parametrize("platform", ["cuda", pytest.param("tpu", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dispatch", ["jit", "sharded"])
@pytest.mark.parametrize("extra", [{}, {"ema": 0.9, "optimizer": "adamw"}], ids=["sgd", "adamw with averages"])
def test_the_memory_of_every_leaf_of_the_state_is_reused(platform: str, dispatch: str, extra: Any) -> None:
    model = compiled(net(), dispatch=dispatch, **extra)
    text = lowered(model, platform)
    signature = next(line for line in text.splitlines() if "func.func public @main" in line)
    inputs = re.split(r"%arg\d+: ", signature.split(" -> ")[0])[1:]
    given_up = [bool(re.search("tf.aliasing_output|jax.buffer_donor", one)) for one in inputs]
    leaves = len(state_of(model).leaves)
    assert given_up == [True] * leaves + [False] * (len(inputs) - leaves)
    assert len(inputs) > leaves + 2


def test_each_slice_of_a_batch_waits_for_the_gradients_of_the_slice_before() -> None:
    text = lowered(compiled(NoNorm(), gradient_accumulation_steps=3), "cuda")
    held = re.findall(r"optimization_barrier .*? : (.*)", text)
    assert [types.count("tensor<") > len(parameters(NoNorm())) for types in held] == [True, True]


@pytest.mark.representatives("{'augment': 'cifar', 'gradient_accumulation_steps': 2}-cuda-its_own0")
@pytest.mark.parametrize(("platform", "its_own"), [("cuda", OF_A_GPU), ("tpu", set())])
@pytest.mark.parametrize("arguments", [{}, {"augment": "cifar", "gradient_accumulation_steps": 2}], ids=str)
def test_a_program_calls_only_targets_that_the_platform_has(platform: str, its_own: set[str], arguments: Any) -> None:
    text = lowered(compiled(net(remat="block", in_channels=1), **arguments), platform)
    assert set(re.findall(r"custom_call @(\w+)", text)) <= its_own
    assert "callback" not in text
    # With barriers, which its compiler leaves in, around what is computed again.
    assert text.count("optimization_barrier") >= 2


# --- on several devices -----------------------------------------------------------------------------------------------

ROWS = 16  # of the batch: no parameter has an axis as long


class Exchange(NamedTuple):
    """An exchange between the devices at one point of a step."""

    name: str
    shapes: tuple[tuple[int, ...], ...]  # each in ascending order: the compiler may have transposed it

    @property
    def kernels(self) -> list[tuple[int, ...]]:
        return [shape for shape in self.shapes if len(shape) > 1]


def exchanges(model: Any) -> list[Exchange]:
    """Return the exchanges of the compiled training step."""
    return exchanges_in(compiled_of(model).trainer.step.prepare(arguments(model, ROWS), lambda _: None))


def exchanges_in(executable: Any) -> list[Exchange]:
    """Return the exchanges of a compiled program, in its order."""
    found = []
    names = "all-reduce|all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter"
    for line in executable.as_text().splitlines():
        match = re.search(rf"= (.*?) ({names})(-start)?\(", line)
        if match:
            shapes = re.findall(r"\b[a-z]+\d+\[([\d,]*)\]", match[1])
            found.append(Exchange(match[2], tuple(ascending(map(int, filter(None, one.split(",")))) for one in shapes)))
    return found


def ascending(shape: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(shape))


def parameters(module: nnx.Module) -> list[tuple[int, ...]]:
    return [ascending(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param))]


def test_gathered_parameters_are_detected() -> None:
    mesh = jax.make_mesh((4,), ("data",), (jax.sharding.AxisType.Auto,))
    split, whole = (jax.NamedSharding(mesh, jax.P(axis)) for axis in ("data", None))
    gather = jax.jit(lambda kernel: kernel * 2, in_shardings=split, out_shardings=whole)
    assert exchanges_in(gather.lower(np.ones((8, 3), np.float32)).compile()) == [Exchange("all-gather", ((3, 8),))]


def test_the_gradients_of_all_devices_are_summed_in_one_exchange() -> None:
    """The exchange includes the loss and the sums of the metrics. Parameters are not exchanged."""
    (only,) = exchanges(compiled(NoNorm(), dispatch="sharded"))
    assert only.name == "all-reduce"
    assert Counter(parameters(NoNorm())) <= Counter(only.shapes)
    assert all(shape == () for shape in (Counter(only.shapes) - Counter(parameters(NoNorm()))))


@pytest.mark.parametrize("remat", [None, pytest.param("block", marks=pytest.mark.slow)])
def test_gradients_are_exchanged_with_the_sums_of_batchnorm_and_need_one_more_exchange(remat: str | None) -> None:
    """Statistics over the whole batch need an exchange in each norm, forward and backward, one after the other.

    Gradients join the next exchange, and the last gradients have one of their own at the end.
    """
    found = exchanges(compiled(net(remat=remat), dispatch="sharded"))
    assert {one.name for one in found} == {"all-reduce"}
    in_a_row = 5  # stem, and two in each block; a projection's norm goes along with one of its block's
    again = 4 if remat else 0  # those in the blocks are computed again
    assert len(found) <= 2 * in_a_row + 1 + again
    kernels = [shape for shape in parameters(net()) if len(shape) > 1]
    assert sorted(shape for one in found for shape in one.kernels) == sorted(kernels)  # each once
    assert max(len(one.kernels) for one in found) >= 5  # of seven: not the first layer's and the last one's


@pytest.mark.slow
def test_per_replica_gradients_are_summed_in_one_exchange() -> None:
    found = exchanges(compiled(net(), dispatch="sharded", batch_norm="per_replica"))
    (gradients,) = [one for one in found if one.kernels and one.name == "all-reduce"]
    assert sorted(gradients.kernels) == sorted(shape for shape in parameters(net()) if len(shape) > 1)
    # What metrics are told of each example is gathered, and nothing else.
    assert {one.name for one in found} == {"all-reduce", "all-gather"}
    assert all(ROWS in shape for one in found if one.name == "all-gather" for shape in one.shapes)
