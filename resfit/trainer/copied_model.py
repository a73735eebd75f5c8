"""`CopiedModel`: compiles a model, and copies it with `copy.deepcopy`, `pickle` and what is built on `pickle`.

A copy goes on training exactly as the original would: variables, averages, the optimizer's state and the step counter
travel as arrays, the arguments of `compile` as they were given. The devices and compiled programs do not travel: the
copy compiles for the devices of its process.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from flax import nnx

from resfit._utils import pickling
from resfit.errors import PickleError
from resfit.trainer.base_model import BaseModel
from resfit.trainer.compiled import compile_model
from resfit.trainer.config import CompileConfig
from resfit.trainer.graph.freezing import Freeze

_OWN = frozenset({"_module", "_freeze", "_learned", "_control", "_context", "_predictor"})


class _Training(NamedTuple):
    """The parts of a compiled model.

    Attributes:
      config: the arguments of `compile`.
      freeze: the parts that were frozen then.
      stale: True if others were frozen since.
      arrays: the state on the host, without the arrays at its beginning that `module` holds too.
      epoch: see `RunState.epoch`.
      asked_rate: see `LearningRate.asked`.
      keep_last_step: see `Trainer.keep_last_step`.
    """

    config: CompileConfig
    freeze: Freeze
    stale: bool
    arrays: list[Any]
    epoch: int
    asked_rate: float | str | None
    keep_last_step: bool


class _Parts(NamedTuple):
    """The parts of a model, from which `__setstate__` makes an equal one.

    Attributes:
      module: the network with its variables.
      facts: the known facts about the data, see `Learned.all_facts`.
      attributes: the public attributes of the model, and those that a subclass added.
      freeze: the parts that the next `compile` freezes.
      training: None if the model is not compiled.
    """

    module: nnx.Module
    facts: dict[str, dict[str, Any]]
    attributes: dict[str, Any]
    freeze: Freeze
    training: _Training | None

    def named(self) -> dict[str, Any]:
        """Return what a user put into the model, by the words of the user's program."""
        config = {} if self.training is None else vars(self.training.config)
        return {
            "model.module": self.module,
            **{f"compile({name}=...)": value for name, value in config.items()},
            **{f"model.{name}": value for name, value in self.attributes.items()},
        }


class CopiedModel(BaseModel):
    """Compiles and copies a model."""

    def _compile(self, config: CompileConfig, freeze: Freeze) -> None:
        """Train with these arguments of `Model.compile` from now on."""
        own_step = self.compute_loss if self._has_own_step else None
        before = self._context.state
        with before.training("compile"):
            compiled = compile_model(self._module, config, self._learned, freeze, before, own_step)
            self._context.replaced = True
            self._control.compiled, self._control.stale = compiled, False
            self._use(compiled.context, compiled.predictor)

    def __getstate__(self) -> _Parts:
        compiled, state = self._control.compiled, self._context.state
        with state.lock:
            training = None if compiled is None else _Training(
                compiled.asked, state.freeze, self._control.stale, state.on_host()[state.layout.n_published :],
                state.epoch, compiled.rate.asked, compiled.trainer.keep_last_step,
            )  # fmt: skip
            attributes = {name: value for name, value in vars(self).items() if name not in _OWN}
            module = state.module_with("raw")
            return _Parts(module, self._learned.all_facts(), attributes, self._freeze, training)

    def __setstate__(self, parts: _Parts) -> None:
        BaseModel.__init__(self, parts.module)
        vars(self).update(parts.attributes, stop_training=False, stop_evaluating=False, stop_predicting=False)
        self._learned.put_all_facts(parts.facts)
        self._use(self._context)
        if parts.training is not None:
            self._go_on(parts.training)
        self._freeze = parts.freeze
        self._learned.put_all_facts(parts.facts)  # compile takes the facts for those of another training

    def _go_on(self, training: _Training) -> None:
        self._compile(training.config, training.freeze)
        compiled, state = self._control.require_compiled("copying"), self._context.state
        state.take_from_host([*state.on_host()[: state.layout.n_published], *training.arrays])
        state.publish()
        state.epoch = training.epoch
        compiled.rate.restored(training.asked_rate)
        compiled.trainer.keep_last_step, self._control.stale = training.keep_last_step, training.stale

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        made = type(self).__new__(type(self))
        memo[id(self)] = made  # an attribute can refer to the model
        parts = self.__getstate__()
        try:
            copied = copy.deepcopy(parts, memo)
        except TypeError as error:  # of an object that cannot be copied, such as a lock
            name, reason = _culprit(parts, lambda part: copy.deepcopy(part, dict(memo)), error)
            raise PickleError(
                f"{name or 'The model'} cannot be copied: {reason}. Expected objects that copy.deepcopy accepts. "
                "Give the class of the object a method __deepcopy__, or delete the attribute before the copy."
            ) from error
        made.__setstate__(copied)
        return made

    def __copy__(self) -> Self:
        return copy.deepcopy(self)  # two models with one state would train each other's weights

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        parts = self.__getstate__()
        try:
            return _unpickled, (pickling.dumps((type(self),)), pickling.dumps(parts, self))
        except PickleError as error:
            name, reason = _culprit(parts, lambda part: pickling.dumps(part, self), error)
            raise PickleError(
                f"{name or f'The class {type(self).__qualname__}'} cannot be pickled: {reason}. Expected functions and "
                "classes that are defined at the top level of an importable module. Define them there; or write the "
                "network to a file with model.save(path), read it with resfit.load(path) and compile again."
            ) from error


def _culprit(parts: _Parts, copy_of: Callable[[Any], Any], whole: Exception) -> tuple[str, Exception]:
    """Return the name of the part that has no copy, and the reason; "" and the given reason if each part has one."""
    for name, part in parts.named().items():
        try:
            copy_of(part)
        except (PickleError, TypeError) as error:
            return name, error
    return "", whole


def _unpickled(cls: bytes, parts: bytes) -> CopiedModel:
    (kind,) = pickling.loads(cls)
    made: CopiedModel = kind.__new__(kind)
    made.__setstate__(pickling.loads(parts, made))
    return made
