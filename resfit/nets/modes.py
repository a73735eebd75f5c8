"""Training and evaluation mode: the one table of its keywords, and how a mode reaches every part of a module."""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from flax import nnx

from resfit.nets import linen

# The arguments by which a call takes its mode, and the value of each in training.
MODE_KEYWORDS: Mapping[str, bool] = types.MappingProxyType(
    {"train": True, "training": True, "deterministic": False, "use_running_average": False}
)

# Methods that set a mode. A forward pass never leaves their argument out.
_SETTERS = frozenset({"train", "eval", "set_view", "set_attributes"})


class Supplies(NamedTuple):
    """The mode that a method gets where its caller leaves it out; forced: whatever its caller says."""

    train: bool
    forced: bool


def mode_keywords(module: nnx.Module, train: bool) -> dict[str, bool]:
    """Return the keywords by which the call of a module takes its mode, with their values in this mode."""
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

    A part may take its mode from a flag that `nnx.view` sets, from a bare attribute that `train()` and `eval()` set, or
    from an argument. Where a nested call leaves a mode argument out, the part gets the mode; an explicit argument wins.
    The view shares the Variables, so statistics still move. Its flags are its own.

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
    if train:
        view.train()
    else:
        view.eval()
    for _, part in nnx.iter_modules(view):
        if isinstance(part, nnx.bridge.ToNNX):
            linen.switch(part, train, MODE_KEYWORDS)
        else:
            _become(part, _supplied(type(part), train, forced=False))
    return view


def hold_in_evaluation(part: nnx.Module) -> None:
    """Keep one part in evaluation mode, also where its caller passes another mode.

    Args:
        part: of a copy that nobody else uses; its class is changed.
    """
    part.eval()
    _become(part, _supplied(type(part), train=False, forced=True))


def _become(part: nnx.Module, cls: type) -> None:
    # The class is swapped so that the part is right wherever it is called, also in an overridden compute_loss.
    if cls is not type(part):
        object.__setattr__(part, "__class__", cls)


def _named(function: Any, train: bool) -> dict[str, bool]:
    return {
        name: value == train
        for name, value in MODE_KEYWORDS.items()
        if (parameter := inspect.signature(function).parameters.get(name)) is not None
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


@functools.cache
def _supplied(cls: type, train: bool, *, forced: bool) -> type:
    """Return a subclass whose methods get the mode where it is left out (forced: always), or the class if none need it.

    Equal arguments give the same subclass, so that two copies of a module have equal graphs.
    """
    methods: dict[str, Callable[..., Any]] = {}
    for name in dir(cls):
        method = inspect.getattr_static(cls, name)
        if (name.startswith("__") and name != "__call__") or name in _SETTERS or isinstance(method, property):
            continue
        if isinstance(method, types.FunctionType) or (callable(method) and hasattr(method, "__wrapped__")):
            method = getattr(cls, name)
            values = _named(method, train) if forced else _missing(method, train)
            if values:
                methods[name] = _supplying(method, values, Supplies(train, forced))
    if not methods:
        return cls
    options = {} if getattr(cls, "_pytree__is_pytree", True) else {"pytree": False}
    subclass: type = type(cls)(cls.__name__, (cls,), {"__module__": cls.__module__}, **options)
    for name, method in methods.items():
        setattr(subclass, name, method)  # not in the class body: Residual refuses subclasses that define a call
    return subclass


def _missing(method: Any, train: bool) -> dict[str, bool]:
    """Return the mode keywords of a method whose defaults say something else."""
    supplies = getattr(method, "supplies", None)
    if supplies is not None:
        return {} if supplies.forced or supplies.train == train else _named(method, train)
    parameters = inspect.signature(method).parameters
    # In layers of flax and resfit, None leaves the mode to flags, which are set.
    by_flag = (getattr(method, "__module__", None) or "").partition(".")[0] in ("flax", "resfit")
    return {
        name: value
        for name, value in _named(method, train).items()
        if parameters[name].default is not value and not (by_flag and parameters[name].default is None)
    }


def _supplying(method: Any, values: Mapping[str, bool], supplies: Supplies) -> Callable[..., Any]:
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind_partial(self, *args, **kwargs)
        for name, value in values.items():
            if supplies.forced or name not in bound.arguments:
                bound.arguments[name] = value
        return method(*bound.args, **bound.kwargs)

    call.supplies = supplies  # type: ignore[attr-defined]
    return call
