"""Members that Keras and Lightning read from a model, and resfit does not, raise and name the substitute."""

import abc
import copy
from typing import Any, Generic, Protocol, TypeVar

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit._utils.words import WORDS
from resfit.errors import ModuleError, OverrideError
from resfit.trainer import overrides
from tests.helpers import PlainNet, compiled, fit

METHODS = {
    "train_step": "compute_loss",
    "test_step": "compute_loss",
    "predict_step": r"predict\(outputs",
    "compute_metrics": r"compile\(metrics",
    "call": "__call__",
    "training_step": "compute_loss",
    "configure_optimizers": r"compile\(optimizer",
    "on_train_epoch_end": "Callback",
    "train_dataloader": "fit",
}
ATTRIBUTES = {
    "trainable": r"model\.freeze",
    "run_eagerly": "dispatch='eager'",
    "optimizer": r"compile\(optimizer",
    "loss": r"compile\(loss",
    "jit_compile": "dispatch='eager'",
    "metrics": r"compile\(metrics",
}


@pytest.mark.parametrize(("name", "substitute"), METHODS.items())
def test_a_subclass_with_a_method_that_nothing_calls_raises(name: str, substitute: str) -> None:
    members = {name: lambda self, *arguments: None}
    with pytest.raises(OverrideError, match=rf"Mine defines {name}.*{substitute}"):
        type("Mine", (resfit.Model,), dict(members))
    with pytest.raises(OverrideError, match=rf"Mine defines {name}"):
        type("Mine", (type("Mixin", (), members), resfit.Distiller), {})
    with pytest.raises(OverrideError, match=rf"model\.{name} was set"):
        setattr(compiled(), name, members[name])


@pytest.mark.parametrize(("name", "substitute"), ATTRIBUTES.items())
def test_an_attribute_that_nothing_reads_raises(name: str, substitute: str) -> None:
    with pytest.raises(OverrideError, match=rf"model\.{name} was set to False.*{substitute}"):
        setattr(compiled(), name, False)
    for member in (False, property(lambda self: [])):
        with pytest.raises(OverrideError, match=rf"Mine defines {name}.*{substitute}"):
            type("Mine", (resfit.Model,), {name: member})


SET = {
    "weights": r"model\.get_weights",
    "dtype": "precision='bfloat16'",
    "device": "dispatch=",
    "should_stop": r"model\.stop_training",
    "precision": "precision='bfloat16'",
    "augment": r"compile\(\.\.\.\)",
    "class_weight": r"fit\(\.\.\.\)",
    "compute_loss": "a subclass of Model that defines compute_loss",
}


@pytest.mark.parametrize(("name", "substitute"), SET.items())
def test_an_attribute_set_on_a_model_that_only_other_libraries_read_raises(name: str, substitute: str) -> None:
    with pytest.raises(OverrideError, match=rf"model\.{name} was set to 3.*{substitute}"):
        setattr(compiled(), name, 3)


def test_a_subclass_can_use_these_names_except_compute_loss() -> None:
    class Mine(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, **rest: Any) -> Any:
            return module(x)[:, 0], module(x)

    model = Mine(PlainNet(rngs=nnx.Rngs(0)))
    for name in SET.keys() - {"compute_loss"}:
        setattr(model, name, 3)
        assert getattr(model, name) == 3
    with pytest.raises(OverrideError, match="fit calls the method of the class"):
        model.compute_loss = lambda *arguments, **named: None  # type: ignore[method-assign,assignment]


def test_a_compute_loss_with_the_parameters_of_keras_raises() -> None:
    with pytest.raises(OverrideError, match=r"compute_loss has the parameters .*def compute_loss\(self, module, x, y"):

        class Mine(resfit.Model):
            def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):  # type: ignore
                return 0


class Scores(Protocol):
    def score(self) -> float: ...


class Described(abc.ABC):
    @abc.abstractmethod
    def described(self) -> str: ...


def test_a_subclass_can_be_a_protocol_an_abstract_class_and_a_generic_class() -> None:
    class Mine(resfit.Model, Scores, Described, Generic[TypeVar("T")]):  # type: ignore
        def score(self) -> float:
            return 1.0

    with pytest.raises(TypeError, match="abstract"):
        Mine(PlainNet(rngs=nnx.Rngs(0)))

    class Whole(Mine):
        def described(self) -> str:
            return "mine"

    whole = Whole(PlainNet(rngs=nnx.Rngs(0)))
    assert isinstance(whole, resfit.Model)
    assert not isinstance(3, resfit.Model)
    assert issubclass(Whole, resfit.Model)
    assert not issubclass(int, resfit.Model)


def test_other_members_of_a_subclass_are_allowed() -> None:
    class Mine(resfit.Model):
        limit = 3

        def __init__(self, module: nnx.Module) -> None:
            super().__init__(module)
            self.temperature = 2.0

        def loss(self, outputs: Any) -> Any:
            return (outputs**2).mean(axis=1) / self.temperature

        def compute_loss(self, module: Any, x: Any, y: Any, **rest: Any) -> Any:
            outputs = module(x)
            return self.loss(outputs), outputs

    class Further(Mine):
        def fit(self, *arguments: Any, **named: Any) -> Any:
            return super().fit(*arguments, **named)

    model = compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Further, metrics=None)
    model.temperature = 1.0
    assert np.isfinite(fit(model).history["loss"][0])


def test_a_copy_of_a_model_has_its_attributes() -> None:
    model = compiled()
    model.limit = 3
    assert copy.copy(model).limit == 3


@pytest.mark.parametrize("flag", ["trainable", "requires_grad"])
def test_a_part_marked_as_not_trainable_raises_unless_it_is_frozen(flag: str) -> None:
    net = PlainNet(rngs=nnx.Rngs(0))
    setattr(net.head, flag, True)
    model = compiled(net)
    setattr(net.head, flag, False)
    for call in (lambda: fit(model), lambda: model.compile("sgd")):
        with pytest.raises(ModuleError, match=rf"The part 'head' has {flag} = False.*model\.freeze\('head'\)"):
            call()
    setattr(net.head, flag, True)
    setattr(net, flag, False)
    with pytest.raises(ModuleError, match=r"The module has .*model\.freeze\('part'\)"):
        model.compile("sgd")


class Marked(nnx.Module):
    """A module that sets a flag of Keras in its __init__, as Keras layers do."""

    def __init__(self, *, trainable: bool, rngs: nnx.Rngs) -> None:
        self.trainable = trainable
        self.head = nnx.Linear(64, 3, rngs=rngs)
        self.rest = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.rest(self.head(x.reshape(len(x), -1)))


class Reading(Marked):
    """A module that reads the flag in a function inside a method."""

    def __call__(self, x: Any) -> Any:
        return super().__call__(x) if (lambda: self.trainable)() else 0 * super().__call__(x)


class Around(nnx.Module):
    """A module that reads the flag of a part."""

    def __init__(self, part: nnx.Module) -> None:
        self.part = part

    def __call__(self, x: Any) -> Any:
        part: Any = self.part
        return part(x) if part.trainable else jax.lax.stop_gradient(part(x))


def test_a_frozen_part_and_a_class_that_reads_the_flag_can_have_it() -> None:
    net = Reading(trainable=False, rngs=nnx.Rngs(0))
    net.head.trainable = False
    model = resfit.Model(net)
    model.freeze("head")
    model.compile("sgd", dispatch="jit")
    resfit.Model(Around(Marked(trainable=False, rngs=nnx.Rngs(0)))).compile("sgd", dispatch="jit")


def test_a_class_that_only_sets_the_flag_does_not_read_it() -> None:
    with pytest.raises(ModuleError, match="The module has trainable = False"):
        resfit.Model(Marked(trainable=False, rngs=nnx.Rngs(0))).compile("sgd", dispatch="jit")
    resfit.Model(Marked(trainable=True, rngs=nnx.Rngs(0))).compile("sgd", dispatch="jit")


def test_no_member_of_the_model_itself_is_in_the_tables() -> None:
    table = {word for place in overrides.READ for row in WORDS[place].values() for word in row.split()}
    assert not table & set(dir(compiled()))
