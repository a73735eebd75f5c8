"""Every variant of the family against timm and torchvision (tests/golden/README.md describes their numbers)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from resfit import weights
from resfit.nets import ResNet, ResNetSpec, create_model
from resfit.weights.find import named
from tests import levels
from tests.weights.test_torch_oracle import LABELS, TOLERANCE, close, drawn, images

_READ: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "variants.json").read_text())
GOLDEN, MEMBERS = _READ["variants"], _READ["members"]


def filled(variant: str) -> ResNet:
    """Create a network of few blocks with the oracle's weights, loaded by name."""
    fields = GOLDEN[variant]["spec"]
    spec = ResNetSpec(depths=(1, 2, 1, 1), widths=(64, 128, 256, 512), num_classes=10, unbiased_variance=True, **fields)
    net = ResNet(spec, rngs=nnx.Rngs(0))
    shapes = {key: value.shape for key, value in weights.state_dict(net).items()}
    weights.load_state_dict(net, {key: drawn(key, shape) for key, shape in shapes.items()})
    return net


QUICK = ("RS", "averaged, bottleneck", "v2, bottleneck", "BiT")
FIRST_KERNELS = ("conv1.weight", "conv1.0.weight", "stem.conv.weight", "stem.conv1.weight", "layer0.conv1.weight")
SLOW = (
    "T", "SE, basic", "ResNeXt", "wide", "anti-aliased, D", "output stride 8, D", "output stride 8, averaged",
    "torchvision, stride replaced by dilation", "group norm", "v2, output stride 8",
    "v2, T, basic", "v2, D, output stride 8", "ECA", "SENet-154, output stride 8", "SE, Caffe", "space to depth",
)  # fmt: skip


@pytest.mark.representatives("RS", "group norm")
@pytest.mark.parametrize("variant", levels.only((*QUICK, "ResNeXt", "group norm", "space to depth"), GOLDEN))
def test_names_and_shapes_equal_those_of_the_library(variant: str) -> None:
    spec = ResNetSpec(depths=(1, 2, 1, 1), widths=(64, 128, 256, 512), num_classes=10, **GOLDEN[variant]["spec"])
    net = nnx.eval_shape(lambda: ResNet(spec, rngs=nnx.Rngs(0)))
    lines = sorted(f"{key} {stored.shape}" for key, stored in named(net, None))
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == GOLDEN[variant]["names_and_shapes_sha256"]


@pytest.mark.representatives("v2, bottleneck-64")
@pytest.mark.parametrize("run", [pytest.param(0, id="64"), pytest.param(1, id="odd", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("variant", levels.only(QUICK, GOLDEN, SLOW))
def test_evaluation_logits_equal_those_of_the_library(variant: str, run: int) -> None:
    golden = GOLDEN[variant]["runs"][run]
    logits = nnx.jit(lambda net, x: net(x, train=False))(filled(variant), images(2, golden["size"]))
    close(np.asarray(logits), golden["eval_logits"], f"at {golden['size']} pixels")


def difference(name: str) -> float:
    """Return the largest difference of logits from the original library's network, relative to its largest logit."""
    golden = MEMBERS[name]
    net = nnx.eval_shape(lambda: create_model(name, num_classes=1000))
    held = {key: drawn(key, stored.shape) for key, stored in named(net, None)}
    scales = {key: value for key, value in held.items() if value.ndim == 1 and key.endswith(".weight")}
    weights.load_state_dict(
        net, held | {key: value * np.float32(golden["norm_scale"]) for key, value in scales.items()}
    )
    logits = np.asarray(
        net(images(2, golden["size"]), train=False)
    )  # not jitted: compilation of a deep network takes longer
    return float(np.abs(logits[:, :8] - golden["first_eval_logits"]).max() / golden["largest_eval_logit"])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "resnetaa50" else pytest.mark.exhaustive)
        for name in MEMBERS
    ],
)
def test_a_zoo_network_computes_the_same_as_its_original(name: str) -> None:
    assert difference(name) < 1e-4


@pytest.mark.exhaustive
@pytest.mark.parametrize("run", [pytest.param(0, id="64"), pytest.param(1, id="odd")])
@pytest.mark.parametrize("variant", GOLDEN)
def test_training_loss_and_gradients_equal_those_of_the_library(variant: str, run: int) -> None:
    golden, net = GOLDEN[variant]["runs"][run], filled(variant)
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    @jax.jit
    def step(params: nnx.State, rest: nnx.State, x: jax.Array) -> Any:
        def loss(params: nnx.State) -> jax.Array:
            logits = nnx.merge(graph, params, nnx.clone(rest))(x, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(LABELS)).mean()

        return jax.value_and_grad(loss)(params)

    loss, gradients = step(params, nnx.as_pure(rest), images(4, golden["size"]))
    np.testing.assert_allclose(loss, golden["train_loss"], rtol=TOLERANCE)
    other_kernel = "conv_of_blocks" in vars(net.stem)  # which has more entries than the other's
    if other_kernel:  # their gradients are no kernel of theirs
        gradients["stem"] = params["stem"]
    named = weights.state_dict(nnx.merge(graph, gradients, rest))
    head = next(key for key in named if key.endswith(("fc.weight", "last_linear.weight")) and ".se." not in key)
    np.testing.assert_allclose(np.linalg.norm(named[head]), golden["head_gradient_norm"], rtol=2e-3)
    if not other_kernel:
        stem = next(key for key in named if key in FIRST_KERNELS)
        np.testing.assert_allclose(np.linalg.norm(named[stem]), golden["stem_gradient_norm"], rtol=5e-3)
