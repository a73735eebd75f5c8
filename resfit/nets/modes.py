"""Training and evaluation mode: the one table of mode keywords, and the way a mode reaches every part of a module."""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from resfit.nets import linen
from resfit.nets.intercept import set_class, subclass

# The arguments and attributes that hold a mode, and the value of each in training.
MODE_KEYWORDS: Mapping[str, bool] = types.MappingProxyType(
    {"train": True, "training": True, "deterministic": False, "use_running_average": False}
)

# Methods that set a mode. A forward pass never leaves their argument out.
_SETTERS = frozenset({"train", "eval", "set_view", "set_attributes"})


class Supplied(NamedTuple):
    """The origin of a class whose methods get the mode: the user's class, and whether the mode is forced."""

    cls: type
    forced: bool  # methods get the mode even if their caller passes another one


def mode_keywords(module: nnx.Module, train: bool) -> dict[str, bool]:
    """Return the mode keywords that the call of a module takes, with their values in this mode."""
    return _named(type(module).__call__, train)


def in_mode(module: nnx.Module, train: bool | None) -> tuple[Any, dict[str, bool]]:
    """Return a module to call in place of this one, and the keywords to call it with.

    Args:
        module: a module with a `__call__`. It keeps its own flags.
        train: the mode, or None for the module as it is.
    """
    return (module, {}) if train is None else (switched(module, train), mode_keywords(module, train))


def switched(module: nnx.Module, train: bool) -> Any:
    """Return a view of a module in which every part is in one mode.

    A part can take its mode from a flag that `nnx.view` sets, from a bool attribute with the name of a mode, or from an
    argument. If a nested call leaves a mode argument out, the part gets the mode; an explicit argument wins. The view
    shares the Variables, so statistics still move. Its flags are its own.

    Args:
        module: any module.
        train: the mode.

    Example:
        >>> class Half(nnx.Module):
        ...     def __call__(self, x, train=False):
        ...         return x / 2 if train else x
        >>> module = nnx.Sequential(Half(), Half())
        >>> module(8.0), switched(module, train=True)(8.0)
        (8.0, 2.0)
    """
    view = nnx.view(module, raise_if_not_found=False, deterministic=not train, use_running_average=not train)
    _set_flags(view, train)
    for _, part in nnx.iter_modules(view):
        if isinstance(part, nnx.bridge.ToNNX):
            linen.switch(part, train, MODE_KEYWORDS)
        else:
            _become(part, _supplied(type(part), train, forced=False))
    return view


def hold_in_evaluation(part: nnx.Module) -> None:
    """Keep one part in evaluation mode, even if its caller passes another mode.

    Args:
        part: a module in a private copy; its class is changed.
    """
    _set_flags(part, train=False)
    _become(part, _supplied(type(part), train=False, forced=True))


def _set_flags(module: nnx.Module, train: bool) -> None:
    """Set the mode attributes of a module and its parts."""
    cls: Any = type(module)  # an attribute of the module can hide its method `train`
    cls.train(module) if train else cls.eval(module)
    for _, part in nnx.iter_modules(module):
        for name in MODE_KEYWORDS.keys() & vars(part).keys():
            if isinstance(getattr(part, name), bool):
                setattr(part, name, MODE_KEYWORDS[name] == train)


def _become(part: nnx.Module, cls: type) -> None:
    # The class is swapped so that the part is right wherever it is called, also in an overridden compute_loss.
    if cls is not type(part):
        set_class(part, cls)


def _named(function: Any, train: bool) -> dict[str, bool]:
    parameters = inspect.signature(function).parameters
    return {
        name: value == train
        for name, value in MODE_KEYWORDS.items()
        if name in parameters and linen.is_mode(parameters[name]) and _reaches(function, name)
    }


def _reaches(function: Any, name: str) -> bool:
    """Return True if a function takes an argument itself; a decorator may only show the signature of its function."""
    if not isinstance(function, types.FunctionType):
        return True
    own = inspect.signature(function, follow_wrapped=False).parameters
    return name in own or any(one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in own.values())


@functools.cache
def _supplied(cls: type, train: bool, *, forced: bool) -> type:
    """Return a subclass whose methods get the mode where it is left out (forced: always), or the class if none need it.

    A method that calls `super()` leaves the mode out too, so the subclasses of parents come before the parents in the
    method resolution order. Equal arguments give the same subclass, so that two copies of a module have equal graphs.
    """
    known = vars(cls).get("_supplied")
    if known is not None:
        return cls if known.forced else _supplied(known.cls, train, forced=forced)
    parents = [
        subclass(base, found, metaclass=type(cls))
        for base in cls.__mro__[1:]
        if (found := _methods(base, train, forced=forced))
    ]
    methods = _methods(cls, train, forced=forced)
    if not methods and not parents:
        return cls
    return subclass(cls, {**methods, "_supplied": Supplied(cls, forced)}, *parents)


def _methods(cls: type, train: bool, *, forced: bool) -> dict[str, Callable[..., Any]]:
    """Return the methods that a class itself defines and that need the mode, wrapped so that they get it."""
    methods: dict[str, Callable[..., Any]] = {}
    for name, method in vars(cls).items():
        if (name.startswith("__") and name != "__call__") or name in _SETTERS or not _is_method(method):
            continue
        method = getattr(cls, name)
        values = _named(method, train) if forced else _missing(method, train)
        if values:
            methods[name] = _supplying(method, values, forced=forced)
    return methods


def _is_method(value: Any) -> bool:
    if isinstance(value, types.FunctionType | functools.partialmethod):
        return True
    made = callable(value) and hasattr(value, "__wrapped__") and hasattr(type(value), "__get__")  # by nnx.jit
    return made and not isinstance(value, staticmethod | type)


def _missing(method: Any, train: bool) -> dict[str, bool]:
    """Return the mode keywords of a method whose defaults are those of another mode."""
    parameters = inspect.signature(method).parameters
    # In layers of flax and resfit, None leaves the mode to flags, which are set.
    by_flag = (getattr(method, "__module__", None) or "").partition(".")[0] in ("flax", "resfit")
    return {
        name: value
        for name, value in _named(method, train).items()
        if parameters[name].default is not value and not (by_flag and parameters[name].default is None)
    }


def _supplying(method: Any, values: Mapping[str, bool], *, forced: bool) -> Callable[..., Any]:
    signature = inspect.signature(method)
    kinds: set[Any] = set()
    if isinstance(method, types.FunctionType):
        kinds = {one.kind for one in inspect.signature(method, follow_wrapped=False).parameters.values()}
    # nnx.remat knows its static arguments by position; a decorator with (self, x, **kwargs) takes keywords only.
    by_keyword = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(self, *args, **kwargs)
        added = {name: value for name, value in values.items() if forced or name not in bound.arguments}
        if by_keyword:
            return method(self, *args, **kwargs | added)
        bound.arguments |= added
        return method(*bound.args, **bound.kwargs)

    return call
