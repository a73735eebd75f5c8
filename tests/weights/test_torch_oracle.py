"""resnet18 and resnet50 against the numbers of torchvision (tests/golden/README.md describes their origin)."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from einops import rearrange
from flax import nnx

from resfit import weights
from resfit.nets import ResNet, create_model

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden" / "torch_oracle.json").read_text())
LABELS = np.array([0, 3, 1, 7])
TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 2e-3  # PyTorch's float32 is itself 1.5e-3 from the float64 gradient; see the README


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the oracle's value of a tensor, which depends only on its name."""
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        value = generator.uniform(0.5, 1.5, shape)
    elif name.endswith("running_mean"):
        value = generator.normal(size=shape) * 0.1
    elif len(shape) == 4:
        value = generator.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        value = generator.normal(size=shape) * np.sqrt(1 / shape[1])
    elif name.endswith(".bias"):
        value = generator.normal(size=shape) * 0.1
    else:
        value = generator.uniform(0.5, 1.5, shape)
    return value.astype(np.float32)


def images(count: int, size: int) -> np.ndarray:
    return rearrange(np.random.default_rng(size).normal(size=(count, 3, size, size)), "n c h w -> n h w c").astype("f4")


def filled(name: str) -> ResNet:
    """Create a network with the oracle's weights, loaded by name."""
    net = create_model(name, num_classes=10, unbiased_variance=True)
    weights.load_state_dict(net, {key: drawn(key, value.shape) for key, value in weights.state_dict(net).items()})
    return net


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=() if name == "resnet18" else pytest.mark.slow) for name in GOLDEN],
)
def net_and_golden(request: pytest.FixtureRequest) -> tuple[ResNet, dict[str, Any]]:
    return filled(request.param), GOLDEN[request.param]


def training_step(net: ResNet, x: np.ndarray) -> tuple[jax.Array, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return loss, gradients and updated statistics of one training pass, the latter two under PyTorch's names."""
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    @jax.jit
    def step(params: nnx.State, rest: nnx.State, x: jax.Array) -> Any:
        def loss(params: nnx.State) -> Any:
            copy = nnx.merge(graph, params, nnx.clone(rest))
            losses = optax.softmax_cross_entropy_with_integer_labels(copy(x, train=True), jnp.asarray(LABELS))
            return losses.mean(), nnx.as_pure(nnx.state(copy, nnx.Not(nnx.Param)))

        return jax.value_and_grad(loss, has_aux=True)(params)

    (value, moved), gradients = step(params, nnx.as_pure(rest), x)
    return (
        value,
        weights.state_dict(nnx.merge(graph, gradients, rest)),
        weights.state_dict(nnx.merge(graph, params, moved)),
    )


def close(actual: np.ndarray, expected: list[float], what: str) -> None:
    """Raise unless values agree to 1e-3 of the largest expected number."""
    expected_array = np.array(expected)
    np.testing.assert_allclose(
        actual, expected_array, rtol=0, atol=TOLERANCE * np.abs(expected_array).max(), err_msg=what
    )


def test_names_and_shapes_equal_those_of_torchvision(net_and_golden: tuple[ResNet, dict[str, Any]]) -> None:
    net, golden = net_and_golden
    held = weights.state_dict(net)
    lines = "\n".join(sorted(f"{key} {value.shape}" for key, value in held.items()))
    norms = sum(key.endswith("running_mean") for key in held)
    assert len(held) + norms == golden["entries"]  # torchvision counts num_batches_tracked, one for each norm
    assert hashlib.sha256(lines.encode()).hexdigest() == golden["names_and_shapes_sha256"]


@pytest.mark.slow
def test_evaluation_logits_equal_those_of_torchvision(net_and_golden: tuple[ResNet, dict[str, Any]]) -> None:
    net, golden = net_and_golden
    for run in golden["runs"]:
        logits = nnx.jit(lambda net, x: net(x, train=False))(net, images(2, run["size"]))
        close(np.asarray(logits), run["eval_logits"], f"at {run['size']} pixels")


@pytest.mark.slow
def test_training_steps_equal_those_of_torchvision(net_and_golden: tuple[ResNet, dict[str, Any]]) -> None:
    net, golden = net_and_golden
    before = weights.state_dict(net)
    total = dict.fromkeys(before, 0.0)
    for run in golden["runs"]:
        loss, gradients, after = training_step(net, images(4, run["size"]))
        np.testing.assert_allclose(loss, run["train_loss"], rtol=TOLERANCE)
        for name, norm in run["gradient_norms"].items():
            total[name] = total[name] + gradients[name]  # the oracle's gradients add up from run to run
            np.testing.assert_allclose(np.linalg.norm(total[name]), norm, rtol=GRADIENT_TOLERANCE, err_msg=name)
        for name, values in run["statistics_after_one_step"].items():
            close(after[name][:4], values, f"{name} at {run['size']} pixels")
        # A negative control: the last norm sees so few values that n instead of n - 1 would be found.
        name = next(name for name in run["statistics_after_one_step"] if name.startswith("layer4") and "var" in name)
        values_per_channel = 4 * (-(-run["size"] // 32)) ** 2
        unbiased = after[name] - 0.9 * before[name]
        biased = 0.9 * before[name] + unbiased * (values_per_channel - 1) / values_per_channel
        with pytest.raises(AssertionError):
            close(biased[:4], run["statistics_after_one_step"][name], name)
