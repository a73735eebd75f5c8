"""Test every variant of the family in all uses of a network."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import Callback, Checkpoint
from resfit.diagnostics.summary import summarize
from resfit.nets import BLOCKS, NORMS, SHORTCUTS, STEMS
from tests import levels
from tests.faults.runs import Stops, interrupt, stopped
from tests.helpers import assert_same, differ, values
from tests.variants import VARIANTS, images, labels, network, side, spec

BATCH = 4  # of twelve images: three steps
RANDOM = ("stochastic depth", "wide, dropout", "dropout before the last layer")

# Together they contain every part. The exhaustive suite also trains the other variants.
EVERY_PART = (
    "v1", "basic, option A", "v2, large images", "v2, T", "BiT", "Caffe", "T", "RS", "ECA", "SENet-154", "averaged",
    "dilated, D", "group norm",
)  # fmt: skip
ONE_OF_EACH_KIND = ("wide, dropout", "group norm")


class Losses(Callback):
    """Record the loss of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append(logs["loss"])


def compiled(variant: str, **arguments: Any) -> resfit.Model:
    model = resfit.Model(network(variant))
    model.compile(**{"optimizer": "sgd", "learning_rate": 0.05, "dispatch": "jit", **arguments})
    return model


def fit(model: resfit.Model, variant: str, *callbacks: Callback, **arguments: Any) -> list[float]:
    losses = Losses()
    model.fit(
        images(variant), labels(), batch_size=BATCH, epochs=1, verbose=0, callbacks=[*callbacks, losses], **arguments
    )
    return losses.seen


def test_every_registered_part_is_in_some_variant() -> None:
    specs = [spec(variant) for variant in VARIANTS]
    for name, parts in (("block", BLOCKS), ("stem", STEMS), ("shortcut", SHORTCUTS), ("norm", NORMS)):
        ours = {part for part, made in parts.items() if getattr(made, "__module__", "resfit").startswith("resfit")}
        assert ours - {"bottleneck_v1"} <= {getattr(spec, name) for spec in specs} | {"bottleneck_v1"}
    for field in (
        "groups",
        "width_per_group",
        "squeeze",
        "dropout",
        "head_dropout",
        "drop_path",
        "antialias",
        "weight_standardization",
    ):
        assert any(getattr(spec, field) != getattr(specs[0], field) for spec in specs), field


@pytest.mark.parametrize(
    "variant", levels.only(("wide, dropout",), VARIANTS, (*EVERY_PART, "v2, bottleneck", "stochastic depth"))
)
def test_it_trains_and_a_stopped_and_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(
    variant: str, tmp_path: Path
) -> None:
    whole = compiled(variant)
    before = values(whole.module)
    losses = fit(whole, variant)
    assert len(losses) == 3
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 3
    moved = differ(before, values(whole.module))
    still = {name for name in before if name not in moved and not name.endswith(("rngs.count", "rngs.key"))}
    assert not still, "a variable that training left alone"

    at = 1 + list(VARIANTS).index(variant) % 2  # after the first step or the second
    cut = compiled(variant)
    with stopped(KeyboardInterrupt):
        fit(cut, variant, Checkpoint(tmp_path / "run", every=1), Stops(at, interrupt))
    resumed = compiled(variant)
    assert fit(resumed, variant, Checkpoint(tmp_path / "run", every=1), resume=True) == losses[at:]
    assert_same(values(resumed.module), values(whole.module))


@pytest.mark.slow
@pytest.mark.parametrize("variant", levels.only(("wide, dropout",), RANDOM))
def test_random_numbers_depend_only_on_the_seed_and_the_step(variant: str) -> None:
    losses = fit(compiled(variant), variant)
    assert fit(compiled(variant), variant) == losses
    assert fit(compiled(variant, seed=1), variant)[0] != losses[0]
    model = compiled(variant)
    assert_same(model.predict(images(variant), verbose=0), model.predict(images(variant), verbose=0))


HOWS: dict[str, dict[str, Any]] = {
    "bfloat16": {"precision": "bfloat16"},
    "sharded": {"dispatch": "sharded"},
    "sharded, bfloat16": {"dispatch": "sharded", "precision": "bfloat16"},
    "pmap": {"dispatch": "pmap"},
    "pmap, bfloat16": {"dispatch": "pmap", "precision": "bfloat16"},
    "eager": {"dispatch": "eager"},
}
# Slow: one variant for each dispatch and precision. All of them are in the exhaustive suite.
MARKS: dict[tuple[str, str], Any] = {
    ("sharded", "stochastic depth"): pytest.mark.slow,
    ("bfloat16", "RS"): pytest.mark.slow,
    ("pmap", "ResNeXt"): pytest.mark.slow,
    ("eager", "group norm"): pytest.mark.slow,
}
EVERY_WAY = [
    pytest.param(how, variant, marks=MARKS.get((how, variant), pytest.mark.exhaustive))
    for how in HOWS
    for variant in VARIANTS
]


@pytest.mark.parametrize(("how", "variant"), EVERY_WAY)
def test_it_trains_under_every_dispatch_and_precision(how: str, variant: str) -> None:
    losses = fit(compiled(variant, **HOWS[how]), variant)
    assert np.isfinite(losses).all()
    assert len(set(losses)) == 3
    if "pmap" in how and (variant in RANDOM or spec(variant).norm == "batch"):
        return  # devices draw separate random numbers, and normalize by their own images
    expected = fit(compiled(variant), variant)
    tolerance = 0.1 if "bfloat16" in how else 1e-4
    np.testing.assert_allclose(losses[0], expected[0], rtol=tolerance)  # the first step, from the same state
    np.testing.assert_allclose(losses, expected, rtol=10 * tolerance)


@pytest.mark.parametrize("variant", levels.only(ONE_OF_EACH_KIND, VARIANTS))
def test_a_saved_variant_is_rebuilt_from_its_file(variant: str, tmp_path: Path) -> None:
    net = network(variant)
    resfit.Model(net).save(tmp_path / "net.safetensors")
    loaded: Any = resfit.load(tmp_path / "net.safetensors").module
    assert loaded.spec == net.spec
    assert_same(values(loaded), values(net))


@pytest.mark.parametrize("variant", levels.only(ONE_OF_EACH_KIND, VARIANTS))
def test_its_summary_counts_every_part(variant: str) -> None:
    net = nnx.eval_shape(lambda: network(variant))
    text = str(summarize(net, (side(variant), side(variant), 3)))
    total = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(net, nnx.Param)))
    assert f"{total:,}" in text
    for part in ("stem", "stage1", "stage2", "head"):
        assert part in text
