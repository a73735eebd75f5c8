"""Several copies of each example in a step: repeated augmentation, and what follows it."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from resfit import augment
from resfit.errors import CompileError
from tests.augment.watching import N, arrows, watched
from tests.helpers import CLASSES, PlainNet, TinyNet, assert_close, compiled, fit, images, labels, values

WEIGHTS = np.linspace(0.1, 2, 8).astype(np.float32)


def after_a_step(net: type[nnx.Module], copies: int, **arguments: Any) -> tuple[Any, Any]:
    """Return the loss and metrics of a step on eight examples, and the variables after it."""
    augments = [augment.repeated_augmentation(copies)] if copies > 1 else []
    model = compiled(net(rngs=nnx.Rngs(0)), augment=augments, metrics=["accuracy"], **arguments)  # type: ignore[call-arg]
    return model.train_on_batch(images(8), labels(8), sample_weight=WEIGHTS), values(model.module)


@pytest.mark.representatives("four devices")
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, id="one device"),
        pytest.param({"dispatch": "sharded"}, id="four devices"),
        pytest.param({"dispatch": "pmap", "batch_norm": "global"}, id="four devices that step on their own"),
    ],
)
def test_a_step_on_copies_is_the_step_on_a_batch_with_every_row_repeated(arguments: dict[str, Any]) -> None:
    found = after_a_step(TinyNet, 3, **arguments)
    model = compiled(TinyNet(rngs=nnx.Rngs(0)), metrics=["accuracy"])
    x, y, weight = (np.repeat(rows, 3, axis=0) for rows in (images(8), labels(8), WEIGHTS))
    assert_close(found, (model.train_on_batch(x, y, sample_weight=weight), values(model.module)))
    assert not np.allclose(found[0][0], 0)


def test_slices_keep_the_copies_of_an_example_together_and_give_the_same_gradient() -> None:
    assert_close(after_a_step(PlainNet, 2, gradient_accumulation_steps=4), after_a_step(PlainNet, 2))


def test_a_pass_has_every_example_k_times_and_as_many_steps() -> None:
    model, watch = watched([augment.repeated_augmentation(3), augment.flip()])
    x, y = arrows()
    steps: list[int] = []
    watch.on_train_batch_end = lambda batch, logs=None: steps.append(batch)  # type: ignore[method-assign]
    fit(model, x, y, callbacks=[watch])
    seen = watch.epochs[0]
    assert sorted(number for number, _ in seen) == sorted([*range(N)] * 3)
    assert steps == [0, 1, 2]
    flips = np.array([turned for _, turned in sorted(seen, key=lambda one: one[0])]).reshape(N, 3)
    # Each copy draws on its own.
    assert len(np.unique(flips.sum(axis=1))) == 4


def test_the_copies_of_an_example_alternate_their_flips() -> None:
    model, watch = watched([augment.repeated_augmentation(3), augment.alternating_flip()])
    x, y = arrows()
    fit(model, x, y, epochs=2, callbacks=[watch])
    turns: dict[int, list[int]] = {number: [] for number in range(N)}
    for seen in watch.epochs:
        for number in range(N):
            turns[number].append(sum(turned for other, turned in seen if other == number))
    # Of six views, three are mirrored.
    assert all(sorted(each) == [1, 2] for each in turns.values())


@pytest.mark.parametrize("mixing", [augment.mixup(1.0, CLASSES), augment.cutmix(1.0, CLASSES)], ids=repr)
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in one_of"])
def test_mixing_after_copies_mixes_different_examples(mixing: Any, inside: bool) -> None:
    if inside:
        mixing = augment.one_of(mixing, mixing)
    copying, mixed = augment.get([augment.repeated_augmentation(2), mixing], CLASSES)
    y = np.arange(6, dtype=np.int32) % CLASSES
    x = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)

    def both(key: jax.Array) -> Any:
        return mixed(key, *copying(key, x, y))

    run, own, partner, rows = jax.jit(both), np.repeat(y, 2), np.repeat(np.roll(y, 1), 2), np.arange(12)
    targets = [np.asarray(run(jax.random.key(seed))[1]) for seed in range(8)]
    for shares in targets:
        np.testing.assert_allclose(shares[rows, own] + shares[rows, partner], 1, atol=1e-6)
        assert np.ptp(shares[rows, own]) < 1e-6  # one share for all: no image is mixed with a copy of itself
    assert min(shares[rows, own].max() for shares in targets) < 0.9


@pytest.mark.parametrize("k", [1, 0, -2, 2.0, True, "2", None])
def test_a_number_of_copies_below_two_raises(k: Any) -> None:
    with pytest.raises(CompileError, match=r"repeated_augmentation got k=.*at least 2"):
        augment.repeated_augmentation(k)


def test_copies_before_a_mixture_of_copies_are_allowed_and_after_it_raise() -> None:
    first, mix = augment.repeated_augmentation(2), augment.aug_mix(consistency=12.0)
    assert augment.get([first, mix]) == (first, mix)
    for wrong in ([mix, first], [mix, "cifar", mix]):
        with pytest.raises(CompileError, match=r"after aug_mix\(consistency=\.\.\.\).*Expected it before"):
            augment.get(wrong)
