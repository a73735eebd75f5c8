"""A CPU computes the output of a block once; on other devices nothing changes."""

import re
from typing import Any

import jax
import jax.extend.core.primitives
import jax.numpy as jnp
import numpy as np
import pytest

import resfit
from resfit.backends.cpu_barrier import materialize_on_cpu, tracing_for
from resfit.backends.program_cache import PROGRAMS
from resfit.nets import residual
from resfit.trainer.loop.predictor import Asked
from tests import levels
from tests.helpers import compiled, compiled_of, context_of, images, labels, train_arguments

BLOCKS = 4


def deep(**fields: Any) -> Any:
    return resfit.create_model("resnet20", num_classes=3, in_channels=1, depths=(BLOCKS,), widths=(4,), **fields)


def most_operands(program: Any) -> int:
    """Return the numbers of operands of all fusions of a compiled program."""
    return max(found.count("%") for found in re.findall(r" fusion\((.*?)\), kind", program.as_text()))


def programs(**fields: Any) -> dict[str, int]:
    """Return the most operands of a fused operation, for each step."""
    PROGRAMS.clear()  # an equal model before would serve, whatever is replaced inside of resfit
    model = compiled(deep(**fields), cpu_kernels="xla")
    batch = resfit.data.Batch(images(8), labels(8), None, None, 8)
    steps, context = compiled_of(model), context_of(model)
    train = steps.trainer.step.prepare(train_arguments(model, batch), lambda _: None)
    turn = context.turn(batch, lambda batch: batch.x)
    arguments = (context.state.visible(), context.key, turn.placed)
    predict = steps.predictor.steps(Asked("logits"))[0].prepare(arguments, lambda _: None)
    return {"train": most_operands(train), "predict": most_operands(predict)}


@pytest.mark.slow
@pytest.mark.parametrize("block", levels.only(["basic"], ["basic", "preact_basic"]))
def test_no_operation_reads_the_branches_of_several_blocks(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"block": block, **({"stem": "cifar_conv", "shortcut": "conv"} if block != "basic" else {})}
    found = programs(**fields)
    # Without it, the last addition reads all of them: the more blocks, the more.
    monkeypatch.setattr(residual, "materialize_on_cpu", lambda x: x)
    without = programs(**fields)
    assert found["predict"] < without["predict"]
    assert block != "basic" or without["predict"] > 2 * BLOCKS
    assert found["train"] <= without["train"]


def test_several_arrays_and_their_gradients_stay_apart() -> None:
    found = jax.grad(lambda a, b: (materialize_on_cpu({"a": a, "b": b})["a"] ** 2).sum(), argnums=(0, 1))(
        jnp.ones(2), jnp.ones(3)
    )
    np.testing.assert_array_equal(found[0], 2 * np.ones(2))
    np.testing.assert_array_equal(found[1], np.zeros(3))


def test_materialize_on_cpu_is_the_identity_in_every_transformation() -> None:
    x = jnp.arange(3.0)
    assert (materialize_on_cpu(x) == x).all()
    f = lambda x: (materialize_on_cpu(x) ** 3).sum()  # noqa: E731
    np.testing.assert_array_equal(jax.grad(f)(x), 3 * x**2)
    np.testing.assert_array_equal(jax.hessian(f)(x), jnp.diag(6 * x))
    np.testing.assert_array_equal(jax.jvp(materialize_on_cpu, (x,), (x + 1,))[1], x + 1)
    np.testing.assert_array_equal(jax.vmap(jax.jit(materialize_on_cpu))(x), x)
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(f))(x), 3 * x**2)


@pytest.mark.parametrize(
    ("platforms", "barriers"), [(("cpu",), 2), (("cuda",), 0), (("tpu",), 0), (("cpu", "cuda", "tpu"), 2)], ids=str
)
def test_only_a_cpu_gets_barriers(platforms: tuple[str, ...], barriers: int) -> None:
    function = jax.jit(jax.value_and_grad(lambda x: materialize_on_cpu(x * 2).sum()))
    with tracing_for(platforms):
        text = function.trace(jnp.ones(3)).lower(lowering_platforms=platforms).as_text()
    assert text.count("optimization_barrier") == barriers
    assert "case" not in text


def primitive_names(program: Any) -> set[str]:
    """Return the names of the primitives of a program and of the programs inside it."""
    inside = [jaxpr for equation in program.eqns for jaxpr in jax.extend.core.jaxprs_in_params(equation.params)]
    return {equation.primitive.name for equation in program.eqns}.union(*map(primitive_names, inside))


@pytest.mark.parametrize(
    "fields",
    levels.only([{}], [{}, {"block": "preact_basic", "stem": "cifar_conv", "shortcut": "conv"}, {"squeeze": 1 / 4}]),
)
def test_a_network_that_other_code_traces_has_only_public_primitives_of_jax(fields: dict[str, Any]) -> None:
    net = deep(**fields)
    trace = jax.make_jaxpr(jax.value_and_grad(lambda x: net(x).sum()))
    public = {value.name for name, value in vars(jax.extend.core.primitives).items() if name.endswith("_p")}
    assert primitive_names(trace(images(2)).jaxpr) - public == set()
    with tracing_for(["cpu"]):  # the negative control: a program of resfit for a CPU
        assert primitive_names(trace(images(2)).jaxpr) - public == {"optimization_barrier"}


def test_a_trace_for_another_platform_is_not_used_again() -> None:
    inner = jax.jit(lambda x: materialize_on_cpu(x * 2))
    program = lambda: str(jax.make_jaxpr(lambda x: inner(x) + 1)(jnp.ones(3)))  # noqa: E731
    with tracing_for(["cuda"]):
        assert "optimization_barrier" not in program()
    assert "optimization_barrier" not in program()
    with tracing_for(["cpu"]):
        assert "optimization_barrier" in program()
