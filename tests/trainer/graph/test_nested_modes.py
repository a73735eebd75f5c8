"""The mode reaches every part of a module whose caller leaves it out; an explicit argument of the caller wins."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import resfit
from resfit.errors import ModuleError
from resfit.nets import Residual
from resfit.nets.modes import MODE_KEYWORDS, in_mode, mode_keywords, switched
from resfit.trainer.graph.freezing import NOTHING_FROZEN, Freeze
from resfit.trainer.graph.module_plan import Convolutions, plan_module
from resfit.trainer.graph.slots import module_leaves
from tests.helpers import TinyNet, assert_same, compiled, fit, images, labels, values
from tests.levels import only

X = jnp.zeros((2, 4))
KEY = jax.random.key(0)


def module_in_mode(module: nnx.Module, *, train: bool, freeze: Freeze = NOTHING_FROZEN) -> Any:
    """Return the copy that a step calls."""
    plan = plan_module(module, freeze)
    found = dict(module_leaves(module))
    arrays = {
        kind: [found[slot.path].get_raw_value() for slot in plan.slots if slot.kind == kind]
        for kind in ("param", "carried")
    }
    return plan.assemble(arrays["param"], arrays["carried"], KEY, train=train)


class Weighted(nnx.Module):
    def __init__(self) -> None:
        self.weight = nnx.Param(jnp.ones(()))


def layer(signature: str, training: str, method: str = "__call__") -> Any:
    """Return a layer that adds 1 in training, and takes its mode by this signature."""
    space: dict[str, Any] = {}
    exec(f"def {method}(self, x{signature}):\n  return x + self.weight[...] * ({training})", {}, space)
    return type("Layer", (Weighted,), {**space, "__module__": __name__})()


LAYERS = {
    **{
        f"{keyword} {default}": (f", {keyword}: bool{default}", keyword if value else f"(not {keyword})")
        for keyword, value in MODE_KEYWORDS.items()
        for default in (" = True", " = False", " = None", "")
    },
    "only by keyword": (", *, train: bool = False", "train"),
    "behind another default": (", scale=1.0, train: bool = False", "train * scale"),
    "two keywords": (", train: bool = False, deterministic: bool = True", "(train and not deterministic)"),
    "all keywords": (
        ", training=False, *, train=False, deterministic=True, use_running_average=True",
        "(train and training and not deterministic and not use_running_average)",
    ),
}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_gets_every_mode_argument_that_its_caller_leaves_out(name: str, train: bool) -> None:
    for module in (layer(*LAYERS[name]), nnx.Sequential(nnx.Sequential(layer(*LAYERS[name])))):
        assert module_in_mode(module, train=train)(X).max() == int(train)


class Holder(nnx.Module):
    """A module that calls a part inside a container, with or without a mode."""

    def __init__(self, part: Any, **arguments: Any) -> None:
        self.parts = nnx.data({("a", 1): [part]})
        self.arguments = nnx.static(tuple(arguments.items()))

    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.parts["a", 1][0](x, **dict(self.arguments))


@pytest.mark.parametrize("train", [True, False])
def test_an_explicit_argument_of_the_caller_wins(train: bool) -> None:
    for explicit in (True, False):
        module = Holder(layer(", train: bool = False", "train"), train=explicit)
        assert module_in_mode(module, train=train)(X).max() == int(explicit)
    module = Holder(
        layer(", train: bool = False, deterministic: bool = True", "2 * train - deterministic"), train=False
    )
    assert module_in_mode(module, train=train)(X).max() == (0 if train else -1)
    assert module_in_mode(Holder(layer(", train: bool = False", "train")), train=train)(X).max() == int(train)


@pytest.mark.parametrize("train", [True, False])
def test_other_methods_of_a_part_get_the_mode_too(train: bool) -> None:
    class Calls(nnx.Module):
        def __init__(self) -> None:
            self.part = layer(", train: bool = False", "train", method="features")

        def __call__(self, x: Any) -> Any:
            return self.part.features(x)

        def embed(self, x: Any, *, train: bool) -> Any:
            return self.part.features(x) + train

    module = module_in_mode(Calls(), train=train)
    assert module(X).max() == int(train)
    assert module.embed(X).max() == 2 * train


@pytest.mark.parametrize("train", [True, False])
def test_a_part_that_is_rematerialized_or_jitted_gets_its_mode(train: bool) -> None:
    class Remat(Weighted):
        @nnx.remat(static_argnums=(2,))
        def __call__(self, x: Any, train: bool = False) -> Any:
            return x + self.weight[...] * train

    class Around(nnx.Module):
        def __init__(self) -> None:
            self.part = layer(", train: bool = False", "train")

        def __call__(self, x: Any) -> Any:
            return nnx.remat(lambda part, x: part(x))(self.part, x)

    assert module_in_mode(nnx.Sequential(Remat()), train=train)(X).max() == int(train)
    assert module_in_mode(Around(), train=train)(X).max() == int(train)


@pytest.mark.parametrize("train", [True, False])
def test_a_branch_inside_a_sequence_gets_the_mode_of_its_residual_block(train: bool) -> None:
    inner = layer(", train: bool = False", "train")
    block = Residual(nnx.Sequential(inner), in_channels=4)
    x = jnp.zeros((1, 2, 2, 4))
    assert block(x, train=train).max() == int(train)
    assert module_in_mode(block, train=train)(x).max() == int(train)
    # The mode of the call wins over that of the copy.
    called, mode = in_mode(module_in_mode(nnx.Sequential(inner), train=train), train=not train)
    assert called(x, **mode).max() == int(not train)


def test_a_module_keeps_its_own_classes_and_flags() -> None:
    module = nnx.Sequential(layer(", train: bool = False", "train"), nnx.Dropout(0.5, deterministic=True))
    kind = type(module.layers[0])
    module_in_mode(module, train=True)
    assert type(module.layers[0]) is kind
    assert module.layers[1].deterministic
    assert plan_module(module) == plan_module(module)


class Norm(nnx.Module):
    """A module that passes its mode to a BatchNorm; the default is evaluation."""

    def __init__(self) -> None:
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=nnx.Rngs(0))

    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.norm(x, use_running_average=not train)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_explicit_batch_norm_moves_in_training_unless_it_is_frozen(frozen: bool) -> None:
    freeze = Freeze(("*.norm",)) if frozen else NOTHING_FROZEN
    x = 3 * jnp.arange(8.0).reshape(2, 4)
    for train in (True, False):
        module = module_in_mode(nnx.Sequential(Norm(), Norm()), train=train, freeze=freeze)
        output = module(x)
        moves = train and not frozen
        assert bool((module.layers[0].norm.mean[...] != 0).all()) == moves
        assert bool(jnp.allclose(output, x, atol=1e-2)) != moves


def test_dropout_inside_a_sequence_trains_and_every_tool_evaluates(tmp_path: Path) -> None:
    class Drop(nnx.Module):
        def __init__(self) -> None:
            self.drop = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

        def __call__(self, x: Any, train: bool) -> Any:
            return self.drop(x.reshape(x.shape[0], -1), deterministic=not train)

    module = nnx.Sequential(Drop(), nnx.Linear(64, 3, rngs=nnx.Rngs(1)))
    model = compiled(module, learning_rate=0.0)
    x, y = images(8), labels(8)
    assert len({model.train_on_batch(x, y)[0] for _ in range(3)}) == 3
    expected = module.layers[1](jnp.asarray(x.reshape(8, -1)))
    np.testing.assert_allclose(model.predict(x, outputs="logits", verbose=0), expected, atol=1e-5)
    assert len({model.test_on_batch(x, y)[0] for _ in range(2)}) == 1
    model.summary(input_shape=(8, 8, 1))
    model.export(tmp_path / "net.npz")


# --- Linen ------------------------------------------------------------------------------------------------------------


class LinenNet(linen.Module):
    """A network whose BatchNorm and Dropout take the mode from an argument, as in Flax's examples."""

    rate: float = 0.5

    @linen.compact
    def __call__(self, x: Any, train: bool = True) -> Any:
        x = x.reshape(x.shape[0], -1)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x)
        x = linen.Dropout(self.rate, deterministic=not train)(x)
        return linen.Dense(3, name="head")(x)


class LinenByField(linen.Module):
    """A network whose Dropout takes the mode from a field."""

    deterministic: bool

    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=self.deterministic)(x.reshape(x.shape[0], -1)))


def wrapped(module: linen.Module) -> Any:
    return nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(images(2))


@pytest.mark.representatives("<lambda>0-<lambda>1", "<lambda>1-<lambda>2")
@pytest.mark.parametrize("make", [lambda: LinenNet(), lambda: LinenByField(True), lambda: LinenByField(False)])
@pytest.mark.parametrize("outer", [lambda part: part, lambda part: nnx.Sequential(part)])
def test_a_wrapped_linen_module_drops_only_in_training(make: Any, outer: Any) -> None:
    x = images(4)
    module = outer(wrapped(make()))
    evaluated = [module_in_mode(module, train=False)(x) for _ in range(2)]
    assert_same(*evaluated)
    assert not np.allclose(module_in_mode(module, train=True)(x), evaluated[0])


def test_a_wrapped_linen_module_trains_as_by_hand_and_keeps_its_statistics(tmp_path: Path) -> None:
    class ByHand(nnx.Module):
        def __init__(self) -> None:
            self.net = wrapped(LinenNet())

        def __call__(self, x: Any, train: bool = False) -> Any:
            return self.net(x, train=train, mutable=["batch_stats"] if train else False)

    model, by_hand = compiled(wrapped(LinenNet())), compiled(ByHand())
    for one in (model, by_hand):
        fit(one, images(16), labels(16))
    assert_same(model.get_weights(), by_hand.get_weights())
    assert (np.asarray(model.module.norm["mean"]) != 0).all()
    predicted = model.predict(images(4), verbose=0)
    np.testing.assert_allclose(model.predict(images(4)[:1], verbose=0), predicted[:1], atol=1e-6)
    model.save(tmp_path / "net.safetensors")
    assert_same(
        resfit.load(tmp_path / "net.safetensors", module=wrapped(LinenNet())).get_weights(), model.get_weights()
    )


class Counting(linen.Module):
    """A network with a collection of its own, and no other state."""

    @linen.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        calls = self.variable("counts", "calls", lambda: jnp.zeros((), jnp.int32))
        if train:
            calls.value = calls.value + 1
        self.sow("intermediates", "inputs", x)
        return linen.Dense(3)(linen.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1)))


LINEN = {"batch_stats": LinenNet, "a custom collection": Counting}


@pytest.mark.parametrize("name", only(["a custom collection"], LINEN))
def test_a_linen_module_is_resumed_and_exported_with_its_collections(name: str, tmp_path: Path) -> None:
    def model() -> Any:
        return compiled(wrapped(LINEN[name]()))

    checkpoint = lambda: [resfit.callbacks.Checkpoint(tmp_path / "run")]  # noqa: E731
    whole, again = model(), model()
    fit(whole, images(8), labels(8), epochs=2)
    fit(model(), images(8), labels(8), callbacks=checkpoint())
    fit(again, images(8), labels(8), epochs=2, callbacks=checkpoint(), resume=True)
    assert_same(again.get_weights(), whole.get_weights())
    if name != "batch_stats":
        assert int(whole.module.calls[...]) == 2
    whole.export(tmp_path / "net.npz")
    predicted = whole.predict(images(4), verbose=0)
    np.testing.assert_allclose(resfit.load_exported(tmp_path / "net.npz")(images(4)), predicted, atol=1e-5)


def test_a_linen_module_with_a_custom_collection_is_examined() -> None:
    model = compiled(wrapped(Counting()))
    assert resfit.doctor(model, images(16), labels(16))["blocks"].status == "skipped"
    with pytest.raises(ModuleError, match="recalibrate does not read those of Linen modules"):
        resfit.recalibrate(model, images(16))


def test_a_linen_module_that_sows_into_another_collection_raises_and_names_intermediates() -> None:
    class Sowing(linen.Module):
        @linen.compact
        def __call__(self, x: Any) -> Any:
            self.sow("losses", "size", jnp.mean(x))
            return linen.Dense(3)(x.reshape(x.shape[0], -1))

    with pytest.raises(ModuleError, match=r"'size' \(losses\) holds a tuple.*'intermediates'"):
        resfit.Model(wrapped(Sowing()))


def test_a_frozen_linen_batch_norm_keeps_its_statistics_and_normalizes_by_them() -> None:
    x = images(4) + 5
    module = wrapped(LinenNet(rate=0.0))
    before = values(module)
    frozen = module_in_mode(module, train=True, freeze=Freeze(("norm",)))
    np.testing.assert_allclose(frozen(x), module_in_mode(module, train=False)(x), atol=1e-5)
    assert_same(values(frozen)["norm.mean"], before["norm.mean"])
    free = module_in_mode(module, train=True)
    assert not np.allclose(free(x), frozen(x), atol=1e-2)
    assert not np.array_equal(values(free)["norm.mean"], before["norm.mean"])


def test_a_linen_module_without_parameters_raises_and_names_lazy_init() -> None:
    class Net(nnx.Module):
        def __init__(self) -> None:
            self.linen = nnx.bridge.ToNNX(linen.Dense(3), rngs=nnx.Rngs(0))
            self.weight = nnx.Param(jnp.ones(()))

        def __call__(self, x: Any) -> Any:
            return self.linen(x) * self.weight[...]

    with pytest.raises(ModuleError, match=r"Dense in nnx\.bridge\.ToNNX lacks a parameter.*lazy_init"):
        module_in_mode(Net(), train=True)(X)


def halved(x: Any, train: bool) -> Any:
    return x / 2 if train else x


class Halving(nnx.Module):
    def __call__(self, x: Any, train: bool = False) -> Any:
        return halved(x, train)


class CallsItsParent(Halving):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x)


class CallsItsGrandparent(CallsItsParent):
    def __call__(self, x: Any, train: bool = False) -> Any:
        return super().__call__(x)


class HalvingMixin:
    def half(self, x: Any, deterministic: bool = True) -> Any:
        return halved(x, not deterministic)


class WithMixin(HalvingMixin, nnx.Module):
    def __call__(self, x: Any) -> Any:
        return self.half(x)


class WithStaticMethod(nnx.Module):
    half = staticmethod(halved)

    def __call__(self, x: Any, train: bool = False) -> Any:
        return self.half(x, train)


def taking_keywords(function: Any) -> Any:
    @functools.wraps(function)
    def call(self: Any, x: Any, **keywords: Any) -> Any:
        return function(self, x, **keywords)

    return call


class Decorated(nnx.Module):
    @taking_keywords
    def __call__(self, x: Any, train: bool = False) -> Any:
        return halved(x, train)


class Partial(nnx.Module):
    def half(self, scale: float, x: Any, train: bool = False) -> Any:
        return scale * halved(x, train)

    __call__ = functools.partialmethod(half, 1.0)


class Rematerialized(nnx.Module):
    @functools.partial(nnx.remat, static_argnums=2)
    def __call__(self, x: Any, train: bool = False) -> Any:
        return halved(x, train)


class Jitted(nnx.Module):
    @functools.partial(nnx.jit, static_argnames="train")
    def __call__(self, x: Any, train: bool = False) -> Any:
        return halved(x, train)


REGISTERED = {}


class Registered(nnx.Module):
    def __init_subclass__(cls, name: str) -> None:
        super().__init_subclass__()
        REGISTERED[name] = REGISTERED[cls.__name__] = cls


class RegisteredHalving(Registered, name="half"):
    def __call__(self, x: Any, train: bool = False) -> Any:
        return halved(x, train)


@pytest.mark.parametrize(
    "kind",
    [
        CallsItsParent, CallsItsGrandparent, WithMixin, WithStaticMethod, Decorated, Partial, Rematerialized, Jitted,
        RegisteredHalving,
    ],
)  # fmt: skip
def test_the_mode_reaches_methods_of_every_kind(kind: type) -> None:
    module = nnx.Sequential(kind())
    view = switched(module, train=True)
    assert view(8.0) == 4.0
    assert switched(module, train=False)(8.0) == switched(view, train=False)(8.0) == module(8.0) == 8.0
    assert type(switched(view, train=True).layers[0]) is type(view.layers[0])


def test_subclasses_made_by_resfit_run_no_init_subclass_of_the_user() -> None:
    switched(nnx.Sequential(RegisteredHalving()), train=True)
    assert set(REGISTERED) == {"half", "RegisteredHalving"}
    assert set(REGISTERED.values()) == {RegisteredHalving}


def fixing_the_mode(function: Any) -> Any:
    @functools.wraps(function)
    def call(self: Any, x: Any) -> Any:
        return function(self, x, train=False)

    return call


class Fixed(nnx.Module):
    @fixing_the_mode
    def __call__(self, x: Any, train: bool = True) -> Any:
        return halved(x, train)


class Scaled(nnx.Module):
    def __call__(self, x: Any, train: float = 1.0, training: str = "all") -> Any:
        return x * train if training == "all" else -x


class LinenScaled(linen.Module):
    @linen.compact
    def __call__(self, x: Any, train: float = 1.0) -> Any:
        return x * train


@pytest.mark.parametrize("train", [True, False])
def test_arguments_that_are_not_modes_keep_their_defaults(train: bool) -> None:
    linen_module = nnx.bridge.ToNNX(LinenScaled(), rngs=nnx.Rngs(0)).lazy_init(X)
    for module in (Fixed(), Scaled()):
        assert switched(nnx.Sequential(module), train)(8.0) == 8.0
        assert mode_keywords(module, train) == {}
    assert switched(nnx.Sequential(linen_module), train)(8.0) == 8.0


@pytest.mark.parametrize("given", [None, Convolutions(whole=max, part=min, fused=functools.partial)])
def test_only_a_part_of_a_batch_uses_the_norms_and_convolutions_for_parts(given: Any) -> None:
    net = TinyNet(rngs=nnx.Rngs(0))
    plan = plan_module(net, axis="devices", convolutions=given)
    assemble = functools.partial(plan.assemble, *plan.read(net), jax.random.key(0))
    part, *whole = assemble(train=True, part=True), assemble(train=True), assemble(train=False)
    assert [part.norm.axis_name, *(module.norm.axis_name for module in whole)] == ["devices", None, None]
    convolutions = [module.conv.conv_general_dilated for module in (part, *whole)]
    assert convolutions == ([jax.lax.conv_general_dilated] * 3 if given is None else [min, max, max])
