"""Raise for overridden methods and assigned attributes that Keras and PyTorch Lightning read, and resfit does not.

The error names the substitute.
"""

import abc
import dis
import inspect
from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, Protocol

from flax import nnx

from resfit._utils.keywords import shown
from resfit._utils.words import answer
from resfit.errors import ModuleError, OverrideError

READ = ("members", "settings", "assignments", "methods")
_FLAGS = ("trainable", "requires_grad")


_NETWORKS = ("equinox", "flax", "haiku", "keras", "torch")  # packages whose classes are networks
# Python combines metaclasses only along inheritance: with these bases, a subclass of Model can be a Protocol too, and
# one that is also an nnx.Module reaches the error of `Guarded`.
_ProtocolMeta: Any = type(Protocol)
_ModuleMeta: Any = type(nnx.Module)


class _Words(_ProtocolMeta, _ModuleMeta):  # type: ignore[misc]
    """The metaclass of `Guarded`: reading a name of another library on the class raises."""

    __call__ = type.__call__  # that of nnx makes a node of a graph

    if not TYPE_CHECKING:
        # Those of Protocol read attributes that only a protocol has.
        __instancecheck__ = abc.ABCMeta.__instancecheck__
        __subclasscheck__ = abc.ABCMeta.__subclasscheck__

        def __getattr__(cls, name: str) -> Any:  # noqa: N805
            message = f"type object {cls.__name__!r} has no attribute {name!r}"
            substitute = answer(name, *READ)
            if substitute is not None:
                raise OverrideError(f"{message}. Expected {substitute}.", name=name, obj=cls)
            raise AttributeError(message, name=name, obj=cls)


class Guarded(metaclass=_Words):
    """A base class that raises if a subclass overrides, or code assigns, a name that has no effect.

    Reading a name of another library, of a model or of the class, raises an error that names the substitute.
    """

    def __init_subclass__(cls, **arguments: Any) -> None:
        network = next((base for base in cls.__mro__ if base.__module__.partition(".")[0] in _NETWORKS), None)
        if network is not None:
            raise ModuleError(
                f"{cls.__name__} derives from resfit.Model and from {network.__module__}.{network.__name__}. A "
                "resfit.Model trains a network, and is not a network itself. Define the layers in a class that derives "
                "from nnx.Module alone, and pass an object of it: resfit.Model(module)."
            )
        super().__init_subclass__(**arguments)
        for base in cls.__mro__:
            # A guarded base was checked when it was defined.
            if base is cls or not issubclass(base, Guarded):
                _check_members(cls.__name__, vars(base))
        if "compute_loss" in vars(cls):
            _check_compute_loss(cls.__name__, vars(cls)["compute_loss"])

    def __setattr__(self, name: str, value: Any) -> None:
        # A subclass of the user can read its own attributes, such as criterion.
        places = ("assignments", "members") if type(self).__module__.startswith("resfit.") else ()
        substitute = answer(name, "settings", "methods", *places)
        if name == "compute_loss":
            substitute = "a subclass of Model that defines compute_loss: fit calls the method of the class"
        if substitute is not None:
            raise OverrideError(
                f"model.{name} was set to {shown(value)}, and nothing in resfit reads it. Expected {substitute}. "
                "Choose another name for a custom attribute."
            )
        super().__setattr__(name, value)

    if not TYPE_CHECKING:  # a type checker would accept every name

        def __getattr__(self, name: str) -> Any:
            if any(name in vars(base) for base in type(self).__mro__):
                return object.__getattribute__(self, name)  # a property raised AttributeError: raise it again
            message = f"{type(self).__name__!r} object has no attribute {name!r}."
            substitute = answer(name, *READ)
            if substitute is not None:
                raise OverrideError(f"{message} Expected {substitute}.", name=name, obj=self)
            if name.startswith("_") and not name.startswith("__") and "_module" not in vars(self):
                raise OverrideError(
                    f"{message} Expected {type(self).__name__}.__init__ to call super().__init__(module), with the "
                    "nnx.Module to train. A resfit.Model is not a network itself.",
                    name=name,
                    obj=self,
                )
            raise AttributeError(message, name=name, obj=self)


def _check_members(owner: str, members: Any) -> None:
    for name, member in members.items():
        # A custom method may have the name loss.
        places = ("methods",) if isinstance(member, FunctionType) else ("methods", "settings")
        substitute = answer(name, *places)
        if substitute is not None:
            raise OverrideError(
                f"{owner} defines {name}, and nothing in resfit calls or reads it. Expected {substitute}. Choose "
                "another name for a custom member."
            )


def _check_compute_loss(owner: str, function: Any) -> None:
    if not isinstance(function, FunctionType):
        return
    signature = inspect.signature(function)
    try:
        signature.bind(None, None, None, None, key=None, train=True)
    except TypeError as error:
        raise OverrideError(
            f"{owner}.compute_loss has the parameters {signature}: {error}. Expected def compute_loss(self, module, x, "
            "y, *, key, train), which calls module(x) and returns (losses, outputs), one loss per example."
        ) from error


def check_flags(modules: Iterable[tuple[Any, nnx.Module]], plan: Any) -> None:
    """Raise if an attribute that nothing reads marks a part of a module as frozen.

    Args:
      modules: path and module of every part of a network.
      plan: its `ModulePlan`, whose slots mark the trained variables.

    Raises:
      ModuleError: if a part has trainable=False or requires_grad=False, has parameters that are not frozen, and no
        class of the module's parts reads that attribute.
    """
    trained = [slot.path for slot in plan.slots if slot.kind == "param"]
    parts = [(path, type(part), vars(part)) for path, part in modules]
    for flag in _FLAGS:
        marked = (path for path, _, held in parts if held.get(flag) is False)
        ignored = next((path for path in marked if any(taken[: len(path)] == path for taken in trained)), None)
        # A part's own class may read its flag, or that of a part around it.
        if ignored is None or any(_reads(kind, flag) for kind in {kind for _, kind, _ in parts}):
            continue
        name = ".".join(map(str, ignored))
        raise ModuleError(
            f"{f'The part {name!r}' if name else 'The module'} has {flag} = False, which neither flax nor resfit "
            f"reads: fit would train its parameters. Expected model.freeze({name or 'part'!r}), then compile."
        )


def _reads(kind: type, attribute: str) -> bool:
    functions = (member for base in kind.__mro__ for member in vars(base).values())
    return any(_loads(member.__code__, attribute) for member in functions if isinstance(member, FunctionType))


def _loads(code: CodeType, attribute: str) -> bool:
    """Return True if code reads an attribute, also by getattr; assignments do not count."""
    reads = (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_ATTR", "LOAD_CONST"))
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return attribute in reads or any(_loads(function, attribute) for function in inner)
