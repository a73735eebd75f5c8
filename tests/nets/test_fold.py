"""Batch norms folded into convolutions: the logits stay, and norms that cannot be folded stay."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resfit.errors import ModuleError
from resfit.nets import FoldedNorm, fold_batch_norm
from tests import levels
from tests.helpers import TinyNet, assert_same, call, flags, values
from tests.thin_variants import VARIANTS, thin
from tests.weights.test_torch_oracle import images

# How many batch norms stay: those that stand before the convolutions of pre-activated blocks, and the last one.
LEFT = dict.fromkeys(
    ("v2, bottleneck", "v2, basic", "v2, output stride 8", "v2, D", "v2, T, basic", "v2, D, output stride 8"), 3
) | {"wide ResNet with dropout": 3}


def count(module: nnx.Module, kind: type) -> int:
    return sum(isinstance(part, kind) for _, part in nnx.iter_modules(module))


SLOW = ("v1", "v2, bottleneck", "v2, D", "space to depth", "wide ResNet with dropout", "recomputed by stage")
NORMS_OF_BATCHES = [name for name, fields in VARIANTS.items() if fields.get("norm", "batch") == "batch"]


@pytest.mark.parametrize("variant", levels.only(["SE, basic"], NORMS_OF_BATCHES, SLOW))
def test_a_folded_network_has_the_logits_of_the_network(variant: str) -> None:
    net = thin(variant)
    before, norms = values(net), count(net, nnx.BatchNorm)
    folded = fold_batch_norm(net)
    assert_same(values(net), before)
    assert count(folded, nnx.BatchNorm) == LEFT.get(variant, 0)
    assert count(folded, FoldedNorm) == norms - LEFT.get(variant, 0) > 0
    logits, expected = (np.asarray(call(one, images(2, 64))) for one in (folded, net))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected).max() > 0.1  # or equality up to 1e-5 would say little


def test_the_statistics_and_scales_are_what_is_folded() -> None:
    """The negative control: with another statistic the logits differ."""
    net = thin("v1")
    folded = fold_batch_norm(net)
    net.stem.norm.var.set_value(jnp.asarray(np.asarray(net.stem.norm.var[...]) * np.float32(1.1)))
    logits, expected = (np.asarray(call(one, images(2, 64))) for one in (folded, net))
    assert np.abs(logits - expected).max() > 1e-3


def test_a_network_of_group_norms_has_nothing_to_fold() -> None:
    with pytest.raises(ModuleError, match=r"ResNet has no batch norm that .* GroupNorm cannot be folded"):
        fold_batch_norm(thin("group norm"))


def test_a_custom_module_is_folded_with_an_example() -> None:
    net = TinyNet(rngs=nnx.Rngs(0))
    net.norm.mean.set_value(jnp.asarray(np.arange(4, dtype=np.float32)))
    net.norm.var.set_value(jnp.asarray(np.arange(1, 5, dtype=np.float32)))
    was = flags(net)
    with pytest.raises(ModuleError, match=r"received a TinyNet and no example\. Expected one batch"):
        fold_batch_norm(net)
    folded = fold_batch_norm(net, jax.ShapeDtypeStruct((1, 8, 8, 1), "float32"))
    assert flags(net) == was
    assert isinstance(folded.norm, FoldedNorm)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype(np.float32)
    net.eval()
    np.testing.assert_allclose(call(folded, x), call(net, x), rtol=1e-5, atol=1e-6)


class Parts(nnx.Module):
    """A convolution and two norms, called in the way that `how` names."""

    def __init__(self, how: str, **arguments: Any) -> None:
        rngs = nnx.Rngs(0)
        self.how = how
        self.conv = nnx.Conv(3, 3, (1, 1), rngs=rngs, **arguments)
        self.norm = nnx.BatchNorm(3, use_scale=False, rngs=rngs)
        self.other = nnx.BatchNorm(3, use_bias=False, rngs=rngs)
        for norm in (self.norm, self.other):
            norm.mean.set_value(jnp.asarray(np.float32([1.0, -2.0, 3.0])))
            norm.var.set_value(jnp.asarray(np.float32([0.5, 2.0, 4.0])))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv(x)
        return {
            "alone": lambda: self.norm(y),
            "twice in a row": lambda: self.other(self.conv(self.norm(y))),
            "also added": lambda: self.norm(y) + y,
            "two norms": lambda: self.norm(y) + self.other(y),
            "something between": lambda: self.norm(nnx.relu(y)),
            "one norm for two": lambda: self.norm(y) + self.norm(x),
            "by the batch": lambda: self.norm(y, use_running_average=False),
            "both": lambda: self.other(self.norm(y)),
        }[self.how]()


X = np.random.default_rng(0).normal(size=(4, 5, 5, 3)).astype(np.float32)


@pytest.mark.representatives("both-arguments2")
@pytest.mark.parametrize(("how", "arguments"), [("alone", {}), ("alone", {"use_bias": False}), ("both", {})])
def test_biases_of_convolutions_and_norms_without_scale_or_bias_are_folded(how: str, arguments: Any) -> None:
    module = Parts(how, **arguments)
    folded = fold_batch_norm(module, X)
    assert isinstance(folded.norm, FoldedNorm)
    assert isinstance(folded.other, nnx.BatchNorm)
    module.eval()
    folded.eval()
    np.testing.assert_allclose(call(folded, X), call(module, X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "how", ["twice in a row", "also added", "two norms", "something between", "one norm for two", "by the batch"]
)
def test_a_norm_is_not_folded_if_the_function_would_change(how: str) -> None:
    with pytest.raises(ModuleError, match="nothing to fold"):
        fold_batch_norm(Parts(how), X)


def test_folding_does_not_change_a_kernel_of_another_convolution() -> None:
    module = Parts("alone")
    module.tied = nnx.Conv(3, 3, (1, 1), rngs=nnx.Rngs(0))
    module.tied.kernel = module.conv.kernel
    folded = fold_batch_norm(module, X)
    np.testing.assert_array_equal(folded.tied.kernel[...], module.conv.kernel[...])
    assert np.abs(np.asarray(folded.conv.kernel[...]) - np.asarray(module.conv.kernel[...])).max() > 0.1


class Shared(nnx.Module):
    """One convolution and its norm, with two names."""

    def __init__(self) -> None:
        self.conv = nnx.Conv(3, 3, (1, 1), rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
        self.again = nnx.List([self.norm])

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.again[0](self.conv(self.norm(self.conv(x))))


def test_a_pair_that_is_called_twice_is_folded_once_under_all_its_names() -> None:
    module = Shared()
    module.norm.var.set_value(jnp.asarray(np.float32([0.5, 2.0, 4.0])))
    folded = fold_batch_norm(module, X)
    assert folded.norm is folded.again[0]
    assert isinstance(folded.norm, FoldedNorm)
    module.eval()
    np.testing.assert_allclose(call(folded, X), call(module, X), rtol=1e-5, atol=1e-5)


def test_folding_looks_at_each_module_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search of the whole network for each norm takes minutes for a thousand layers."""
    net, looked = thin("v1"), []
    children = nnx.iter_children
    monkeypatch.setattr(nnx, "iter_children", lambda module: looked.append(module) or children(module))
    fold_batch_norm(net)
    assert len(looked) == len({id(module) for module in looked}) > 10
