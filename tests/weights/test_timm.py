"""Every network of the zoo that timm builds by the same name, against timm itself: `make originals`."""

from typing import Any

import numpy as np
import pytest
from flax import nnx

from resfit import weights
from resfit.nets import create_model
from tests.packages import package
from tests.weights.test_variants import MEMBERS

SIZE = 96  # in pixels; tests/golden/variants.json has 64
TOLERANCE = 1e-4


def seeded(shape: tuple[int, ...], name: str, generator: np.random.Generator, norm_scale: float) -> np.ndarray:
    """Return values at which no part of a network is constant: norms and their statistics are not those of a start."""
    if name.endswith("running_var"):
        value = generator.uniform(0.5, 1.5, shape)
    elif len(shape) > 1:
        value = generator.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
    elif name.endswith(".weight"):
        value = generator.uniform(0.5, 1.5, shape) * norm_scale
    else:
        value = 0.1 * generator.standard_normal(shape)
    return np.asarray(value, np.float32)


@pytest.mark.originals
@pytest.mark.parametrize("name", MEMBERS)
def test_logits_equal_those_of_the_network_that_timm_builds_by_the_same_name(name: str) -> None:
    torch, timm = package("torch"), package("timm")
    theirs = timm.create_model(name).eval()
    generator = np.random.default_rng(0)
    state: dict[str, Any] = {
        key: torch.from_numpy(seeded(tuple(value.shape), key, generator, MEMBERS[name]["norm_scale"]))
        for key, value in theirs.state_dict().items()
        if value.is_floating_point()
    }
    counts = {key for key in theirs.state_dict() if key not in state}
    assert all(key.endswith("num_batches_tracked") for key in counts)
    theirs.load_state_dict(state, strict=False, assign=True)  # a copy would not fit beside ours for the largest
    ours = nnx.eval_shape(lambda: create_model(name, num_classes=1000))
    weights.load_state_dict(ours, {key: value.numpy() for key, value in state.items()})
    x = generator.standard_normal((2, SIZE, SIZE, 3), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    found = np.asarray(ours(x, train=False))
    assert np.abs(expected).max() > 1e-3
    assert np.abs(found - expected).max() < TOLERANCE * np.abs(expected).max()
