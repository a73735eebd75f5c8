"""bfloat16: products are computed in half precision, sums are not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError
from resfit.trainer.graph.layer_options import compute_in
from resfit.trainer.graph.module_plan import plan_module
from resfit.trainer.graph.slots import module_leaves
from tests.helpers import PlainNet, TinyNet, assert_same, compiled, fit, images, labels, values


def net() -> Any:
    return resfit.create_model("resnet20", num_classes=3, in_channels=1, depths=(1,), widths=(4,))


def convolutions(module: nnx.Module, precision: str, train: bool) -> set[tuple[str, str]]:
    """Return the operations that multiply by a kernel, and their dtypes."""
    plan = plan_module(module, precision=precision)
    state = [leaf.get_raw_value() for _, leaf in module_leaves(module)]
    params = [a for a, slot in zip(state, plan.slots, strict=True) if slot.kind == "param"]
    carried = [a for a, slot in zip(state, plan.slots, strict=True) if slot.kind == "carried"]

    def call(x: jax.Array) -> Any:
        copy: Any = plan.assemble(params, carried, jax.random.key(0), train=train)
        return copy(x)

    equations = jax.make_jaxpr(call)(jnp.zeros((2, 8, 8, 1))).jaxpr.eqns
    found = set()
    pending = list(equations)
    while pending:
        equation = pending.pop()
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", None)
            if inner is not None:
                pending += getattr(inner, "jaxpr", inner).eqns
        if equation.primitive.name in ("conv_general_dilated", "dot_general"):
            found.add((equation.primitive.name, str(equation.invars[0].aval.dtype)))
    return found


def tiny_net() -> Any:
    return TinyNet(rngs=nnx.Rngs(0))


@pytest.mark.representatives("tiny_net-True", "net-False")
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("make", [net, tiny_net])
def test_convolutions_multiply_in_bfloat16_only_on_request(make: Any, train: bool) -> None:
    assert ("conv_general_dilated", "float32") in convolutions(make(), "float32", train)
    half = convolutions(make(), "bfloat16", train)
    assert {dtype for name, dtype in half if name == "conv_general_dilated"} == {"bfloat16"}


def test_the_logits_of_resfits_networks_are_computed_in_float32() -> None:
    assert {dtype for name, dtype in convolutions(net(), "bfloat16", True) if name == "dot_general"} == {"float32"}


@pytest.mark.representatives("tiny_net")
@pytest.mark.parametrize("make", [net, tiny_net])
def test_parameters_statistics_logits_and_loss_stay_float32_and_close_to_float32_training(make: Any) -> None:
    half, full = compiled(make(), precision="bfloat16"), compiled(make())
    losses = {}
    for name, model in (("half", half), ("full", full)):
        losses[name] = fit(model, images(16), labels(16), epochs=3).history["loss"]
        assert {leaf.dtype for leaf in values(model.module).values()} <= {np.dtype("float32"), np.dtype("uint32")}
    assert losses["half"] != losses["full"]
    np.testing.assert_allclose(losses["half"], losses["full"], rtol=0.03)
    logits = half.predict(images(8), verbose=0)
    assert logits.dtype == np.float32
    assert half.module.__dict__.keys() == full.module.__dict__.keys()


def test_the_users_own_module_keeps_its_dtypes() -> None:
    module = TinyNet(rngs=nnx.Rngs(0))
    model = compiled(module, precision="bfloat16")
    fit(model, images(8), labels(8))
    assert module.conv.dtype is None
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    reference = compiled(TinyNet(rngs=nnx.Rngs(1)))
    reference.set_weights(model.get_weights())
    assert_same(model.predict(images(8), verbose=0), reference.predict(images(8), verbose=0))


def test_a_norm_of_flax_stays_in_float32() -> None:
    """Otherwise its running statistics would be rounded to bfloat16."""
    module = TinyNet(rngs=nnx.Rngs(0))
    compute_in(module, "bfloat16")
    assert module.conv.dtype == jnp.bfloat16
    assert module.norm.dtype is None


def test_an_unknown_precision_raises() -> None:
    with pytest.raises(CompileError, match="'float32', 'bfloat16' or 'auto', got 'half'"):
        compiled(precision="half")


def test_labels_can_be_of_any_kind() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), precision="bfloat16")
    model.train_on_batch(images(8), np.eye(3, dtype=np.float32)[labels(8)])
