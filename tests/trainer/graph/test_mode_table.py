"""One table of mode keywords: a step's copy of a module, and `in_mode` outside a step, set the same mode."""

import itertools
from typing import Any

import jax.numpy as jnp
import pytest
from flax import linen, nnx

import resfit
from resfit.nets.modes import MODE_KEYWORDS, in_mode, mode_keywords
from tests.helpers import compiled, images, labels
from tests.trainer.graph.test_nested_modes import module_in_mode

X = jnp.zeros((2, 4))
ROWS = jnp.arange(1.0, 9.0).reshape(2, 4)
IN_TRAINING = dict(MODE_KEYWORDS)


def seen(**modes: Any) -> Any:
    """Return 1 for every mode argument that says training, 0 for every one that says evaluation."""
    return jnp.array([float(modes[name] == IN_TRAINING[name]) for name in sorted(modes)])


def module_with(names: tuple[str, ...], *, keyword_only: bool, method: str = "__call__") -> nnx.Module:
    """Return a module of which one method takes these mode arguments, with the defaults of evaluation."""
    arguments = ", ".join(f"{name}={not IN_TRAINING[name]}" for name in names)
    given = ", ".join(f"{name}={name}" for name in names)
    star = "*, " if keyword_only else ""
    space: dict[str, Any] = {"seen": seen}
    exec(f"def {method}(self, x, {star}{arguments}): return seen({given})", space)
    return type("Told", (nnx.Module,), {method: space[method], "__module__": __name__})()


SETS = [names for n in (1, 2, 3, 4) for names in itertools.combinations(IN_TRAINING, n)]


@pytest.mark.parametrize("keyword_only", [False, True])
@pytest.mark.parametrize("names", SETS, ids="-".join)
def test_every_set_of_mode_arguments_gets_one_mode_inside_and_outside_a_step(
    names: tuple[str, ...], keyword_only: bool
) -> None:
    module = module_with(names, keyword_only=keyword_only)
    for train in (True, False):
        expected = [float(train)] * len(names)
        outside, mode = in_mode(module, train)
        inside: Any = module_in_mode(module, train=train)
        assert set(mode) == set(mode_keywords(inside, train)) == set(names)
        assert outside(X, **mode).tolist() == outside(X).tolist() == inside(X).tolist() == expected
        assert inside(X, **mode_keywords(module, not train)).tolist() == [float(not train)] * len(names)


class PassesKeywordsOn(nnx.Module):
    """A module without a mode argument, which passes all keywords on."""

    def __init__(self, part: Any) -> None:
        self.part = part

    def __call__(self, x: Any, **keywords: Any) -> Any:
        return self.part(x, **keywords)


class CallsWithoutFlags(PassesKeywordsOn):
    def __call__(self, x: Any) -> Any:  # type: ignore[override]
        return self.part(x)


class Embeds(PassesKeywordsOn):
    def __call__(self, x: Any) -> Any:  # type: ignore[override]
        return self.part.embed(x)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("names", [("train", "deterministic"), ("training", "use_running_average")], ids="-".join)
def test_both_mode_arguments_of_a_part_are_set_whatever_calls_it(names: tuple[str, ...], train: bool) -> None:
    part = module_with(names, keyword_only=True)
    holders = [PassesKeywordsOn(part), CallsWithoutFlags(part)]
    holders.append(Embeds(module_with(names, keyword_only=False, method="embed")))
    for holder in holders:
        outside, mode = in_mode(holder, train)
        inside = module_in_mode(holder, train=train)
        assert outside(X, **mode).tolist() == inside(X).tolist() == [float(train)] * 2


class Dropping(nnx.Module):
    """A network whose dropout takes `deterministic`, next to a `train` that nothing else sets."""

    def __init__(self) -> None:
        self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))
        self.dense = nnx.Linear(64, 3, rngs=nnx.Rngs(1))

    def __call__(self, x: Any, train: bool = False, deterministic: bool = True) -> Any:
        return self.dense(self.drop(x.reshape(x.shape[0], -1), deterministic=deterministic))

    def embed(self, x: Any, train: bool = False, deterministic: bool = True) -> Any:
        return self(x, train, deterministic)


def test_dropout_that_takes_two_mode_arguments_is_on_in_training_and_off_in_evaluation() -> None:
    model = compiled(Dropping(), learning_rate=0.0)
    x, y = images(8), labels(8)
    assert len({model.train_on_batch(x, y)[0] for _ in range(3)}) == 3
    assert len({model.test_on_batch(x, y)[0] for _ in range(2)}) == 1


@pytest.mark.parametrize("method", ["__call__", "embed"])
def test_a_custom_compute_loss_needs_no_mode_argument(method: str) -> None:
    class Own(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: Any, train: bool) -> Any:
            first, second = (getattr(module, method)(x) for _ in range(2))
            return jnp.abs(first - second).sum(axis=1), first

    model = Own(Dropping())
    model.compile("sgd", learning_rate=0.1, metrics=[])
    assert model.train_on_batch(images(8), labels(8)) > 0
    assert model.test_on_batch(images(8), labels(8)) == 0


class ByAttribute(nnx.Module):
    """A layer that takes its mode from bare attributes, all named as in the table."""

    def __init__(self, names: tuple[str, ...]) -> None:
        for name in names:
            setattr(self, name, not IN_TRAINING[name])

    def __call__(self, x: Any) -> Any:
        return seen(**{name: getattr(self, name) for name in IN_TRAINING if name in vars(self)})


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("names", SETS, ids="-".join)
def test_attributes_named_as_in_the_table_are_set_and_the_users_own_stay(names: tuple[str, ...], train: bool) -> None:
    module = nnx.Sequential(ByAttribute(names))
    outside, mode = in_mode(module, train)
    inside = module_in_mode(module, train=train)
    assert outside(X, **mode).tolist() == inside(X).tolist() == [float(train)] * len(names)
    assert {name: getattr(module.layers[0], name) for name in names} == {name: not IN_TRAINING[name] for name in names}


class LinenDrop(linen.Module):
    """A layer that drops everything in training, with two mode arguments."""

    @linen.compact
    def __call__(self, x: Any, train: bool = False, deterministic: bool = True) -> Any:
        return linen.Dropout(1.0, deterministic=deterministic or not train)(x)


class LinenForgets(linen.Module):
    """A network that calls a part without a mode."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return LinenDrop()(x)


class LinenLeavesItToDropout(linen.Module):
    """A network that leaves the mode out of Linen's own layers once it is initialized."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        evaluating = {"deterministic": True} if self.is_initializing() else {}
        return linen.Dropout(1.0)(x, **evaluating)


class LinenRematerialized(linen.Module):
    """A network that calls a rematerialized part without one of its modes."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.remat(LinenDrop)()(linen.remat(LinenDrop, static_argnums=(2,))()(x, False))


class LinenByOtherMethod(linen.Module):
    """A network whose other method calls a part without a mode."""

    def setup(self) -> None:
        self.drop = LinenDrop()

    def __call__(self, x: Any) -> Any:
        return self.features(x)

    def features(self, x: Any, train: bool = False) -> Any:
        return self.drop(x, train=train)


class LinenInsists(linen.Module):
    """A network that always calls its part in evaluation mode."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return LinenDrop()(x, train=False, deterministic=True)


def wrapped(kind: Any) -> Any:
    return nnx.bridge.ToNNX(kind(), rngs=nnx.Rngs(0)).lazy_init(ROWS)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize(
    "kind", [LinenDrop, LinenForgets, LinenLeavesItToDropout, LinenRematerialized, LinenByOtherMethod]
)
def test_the_mode_reaches_nested_linen_modules(kind: Any, train: bool) -> None:
    module = wrapped(kind)
    outside, mode = in_mode(module, train)
    inside = module_in_mode(nnx.Sequential(module), train=train)
    for output in (outside(ROWS, **mode), inside(ROWS)):
        assert bool((output == 0).all()) == train


@pytest.mark.parametrize("method", ["features", LinenByOtherMethod.features, lambda module, x: module.features(x)])
def test_the_mode_reaches_other_methods_of_a_linen_module(method: Any) -> None:
    for train in (True, False):
        module: Any = module_in_mode(wrapped(LinenByOtherMethod), train=train)
        assert bool((module(ROWS, method=method) == 0).all()) == train


def test_an_explicit_mode_inside_a_linen_module_wins() -> None:
    assert module_in_mode(wrapped(LinenInsists), train=True)(ROWS).tolist() == ROWS.tolist()
