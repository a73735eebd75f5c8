"""Flips that alternate by example and pass, whatever the order, the devices and the way into the step."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit import augment
from resfit.augment.alternating_flip import _turns
from resfit.data import ShardStream
from resfit.errors import CompileError, DataError
from resfit.trainer.devices.placement import Placement
from tests.augment.watching import N, arrows, watched
from tests.helpers import BATCH, PlainNet, TinyNet, assert_same, compiled, fit, images, labels, values


class Arrows:
    """Shards of the images of `arrows`: a record is the number of an image."""

    lengths_of = (7, 9, 4)
    examples = N

    def __len__(self) -> int:
        return len(self.lengths_of)

    def lengths(self, needed: bool) -> Any:
        return self.lengths_of

    def name(self, shard: int) -> str:
        return f"shard {shard}"

    def read(self, shard: int, start: int) -> Iterator[int]:
        first = sum(self.lengths_of[:shard])
        yield from range(first + start, first + self.lengths_of[shard])

    def decode(self, record: int, key: Any, place: Any) -> Any:
        return record

    def stack(self, examples: list[int]) -> Any:
        x, y = arrows()
        return x[examples], y[examples], None


def mirrored(*, x: Any = None, y: Any = None, epochs: int = 3, loops: bool = False, **arguments: Any) -> np.ndarray:
    """Return True for each example, (epochs, N), if it was mirrored. Every epoch sees every example once."""
    of_fit = {name: arguments.pop(name) for name in ("cache", "shuffle") if name in arguments}
    with pytest.MonkeyPatch.context() as patch:
        if loops:
            patch.setattr(Placement, "loops", property(lambda self: True))
        model, watch = watched([augment.alternating_flip()], **arguments)
        x, y = arrows() if x is None else (x, y)
        fit(model, x, y, epochs=epochs, callbacks=[watch], **of_fit)
    found = np.empty((epochs, N), bool)
    for row, seen in zip(found, watch.epochs, strict=True):
        assert sorted(number for number, _ in seen) == list(range(N))
        for number, turned in seen:
            row[number] = turned
    return found


@functools.cache
def expected() -> np.ndarray:
    return mirrored()


def test_half_of_the_images_are_mirrored_in_one_pass_and_the_others_in_the_next() -> None:
    first, second, third = expected()
    np.testing.assert_array_equal(first, ~second)
    np.testing.assert_array_equal(first, third)
    assert 5 <= first.sum() <= 15


HOW: dict[str, dict[str, Any]] = {
    "in the order of the data": {"shuffle": False},
    "another seed of the order": {"seed": 3},
    "a cache on the device": {"cache": "device"},
    "several steps in one program": {"steps_per_execution": 2, "loops": True},
    "several steps in one program that gathers": {"steps_per_execution": 2, "loops": True, "cache": "device"},
    "four devices": {"dispatch": "sharded"},
    "four devices that step on their own": {"dispatch": "pmap"},
    "slices": {"gradient_accumulation_steps": 2},
}


@pytest.mark.representatives("several steps in one program that gathers", "four devices")
@pytest.mark.parametrize("how", HOW)
def test_the_same_images_are_mirrored_whatever_the_way_into_the_step(how: str) -> None:
    np.testing.assert_array_equal(mirrored(**HOW[how]), expected())


def test_the_rows_of_a_stream_alternate_too() -> None:
    first, second, third = mirrored(x=ShardStream(Arrows(), window=5, interleave=2))
    np.testing.assert_array_equal(first, ~second)
    np.testing.assert_array_equal(first, third)
    assert 3 <= first.sum() <= 17


def test_a_run_that_resumes_inside_a_pass_ends_like_one_that_was_not_stopped(tmp_path: Path) -> None:
    def run(*, epochs: int, resume: bool, folder: str) -> Any:
        model = compiled(TinyNet(rngs=nnx.Rngs(0)), augment=augment.alternating_flip())
        saving = resfit.callbacks.Checkpoint(tmp_path / folder)
        # A pass has three batches, so an epoch of two ends inside of it.
        fit(model, images(), labels(), epochs=epochs, steps_per_epoch=2, callbacks=[saving], resume=resume)
        return values(model.module)

    whole = run(epochs=4, resume=False, folder="whole")
    run(epochs=2, resume=False, folder="stopped")
    assert_same(run(epochs=4, resume=True, folder="stopped"), whole)


def test_the_halves_depend_on_the_seed_and_the_shard_and_are_even() -> None:
    rows = np.arange(4000)
    halves = []
    for seed in (0, 1, 2**40):
        for shard in (0, 1):
            origin = np.stack([0 * rows + shard, rows, 0 * rows], axis=1).astype(np.int32)
            halves.append(np.asarray(_turns(jax.numpy.asarray(origin), seed)))
    for i, half in enumerate(halves):
        assert abs(half.mean() - 0.5) < 0.04  # five standard deviations
        for other in halves[:i]:
            assert abs((half == other).mean() - 0.5) < 0.04


def test_masks_move_with_their_images() -> None:
    x, y = arrows(8)
    masks = np.broadcast_to(np.arange(8), (8, 8, 8)).astype(np.int32)
    origin = np.stack([0 * y, y, 0 * y], axis=1)
    turned, moved = jax.jit(augment.alternating_flip().by_origin)(x, masks, origin)
    dark = np.asarray(turned)[:, 0, 0, 0] > 0
    assert 0 < dark.sum() < 8
    np.testing.assert_array_equal(np.asarray(moved)[:, 0, 0], np.where(dark, 7, 0))


@pytest.mark.parametrize(
    "train",
    [
        lambda model, x, y: model.train_on_batch(x, y),
        lambda model, x, y: fit(model, [(x, y)]),
        lambda model, x, y: augment.alternating_flip()(jax.random.key(0), x, y),
    ],
    ids=["train_on_batch", "an iterable of batches", "a call"],
)
def test_a_batch_that_does_not_number_its_examples_raises(train: Any) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), augment=augment.alternating_flip())
    before = values(model.module)
    with pytest.raises(DataError, match=r"does not tell which examples.*augment\.flip\(\)"):
        train(model, images(BATCH), labels(BATCH))
    assert_same(values(model.module), before)


def test_the_summary_of_a_batch_compiles_the_step_without_numbers_of_examples(capsys: Any) -> None:
    model = compiled(TinyNet(rngs=nnx.Rngs(0)), augment=augment.alternating_flip())
    model.summary((images(BATCH), labels(BATCH)))
    assert "step" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [-1, 0.5, True, "a"])
def test_a_seed_that_is_not_an_integer_raises(seed: Any) -> None:
    with pytest.raises(CompileError, match=r"alternating_flip got seed=.*integer of at least 0"):
        augment.alternating_flip(seed)


def test_one_of_raises_for_augmentations_that_belong_into_the_list() -> None:
    for alone in (augment.alternating_flip(), augment.repeated_augmentation(2), augment.aug_mix(consistency=1.0)):
        with pytest.raises(CompileError, match=r"one_of got .* Expected it in the list"):
            augment.one_of(augment.flip(), alone)  # type: ignore[arg-type]
