"""Linen modules inside `nnx.bridge.ToNNX`: how they get their mode, and how their statistics move."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import errors, linen, nnx

from resfit.errors import ModuleError
from resfit.nets.intercept import set_class, wrapping

_KEPT = frozenset({"params", "intermediates"})  # collections that a call in training does not rewrite


def is_mode(parameter: inspect.Parameter) -> bool:
    """Return True if a parameter with the name of a mode is one; a float named `train` is a probability or a weight."""
    default = parameter.default
    typed = default is parameter.empty or isinstance(default, bool | int | np.bool_ | None)
    return typed and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def switch(part: nnx.bridge.ToNNX, train: bool, keywords: Mapping[str, bool]) -> None:
    """Put a wrapped Linen module in a mode.

    Fields of the Linen module with the name of a mode are set. Its methods, and those of the Linen modules inside it,
    get the mode keywords that their caller leaves out. In training, all collections but the parameters are mutable, so
    that the statistics can move.

    Args:
        part: a module in a private copy; its class is changed.
        train: the mode.
        keywords: names of mode arguments, and the value of each in training.
    """
    module: Any = part.to_nnx__module
    values = {name: value == train for name, value in keywords.items()}
    names = {field.name for field in dataclasses.fields(module)} & values.keys()
    flags = {name: values[name] for name in names if isinstance(getattr(module, name), bool)}
    if flags:
        part.to_nnx__module = module.clone(**flags)
    set_class(part, _in_mode(type(part), train, tuple(values.items())))


def hold_in_evaluation(part: nnx.bridge.ToNNX, norms: frozenset[tuple[Any, ...]]) -> None:
    """Make some BatchNorms of a wrapped Linen module normalize by their running statistics in every mode.

    Args:
        part: a module in a private copy; its class is changed.
        norms: the paths of those BatchNorms inside the Linen module.
    """
    set_class(part, _held(type(part), norms))


@functools.cache
def _in_mode(cls: type, train: bool, values: tuple[tuple[str, bool], ...]) -> type:
    supply = functools.partial(_supply, dict(values))

    def around(part: Any, call: Any, *args: Any, method: Any = None, mutable: Any = None, **kwargs: Any) -> Any:
        if callable(method):  # Linen intercepts methods of modules, not other functions of one
            args, kwargs = _completed(method, dict(values), (part.to_nnx__module, *args), kwargs)
            args = args[1:]
        if mutable is None and train:
            mutable = _collections(part) or None
        try:
            with linen.intercept_methods(supply):
                return call(*args, method=method, mutable=mutable, **kwargs)
        except (errors.ScopeParamNotFoundError, errors.ScopeCollectionNotFound) as error:
            raise ModuleError(
                f"The Linen module {type(part.to_nnx__module).__name__} in nnx.bridge.ToNNX lacks a parameter: {error} "
                "Expected an initialized module. Call .lazy_init(x) of the ToNNX with a batch of inputs."
            ) from error

    return wrapping(cls, around)


def _supply(values: Mapping[str, bool], function: Any, args: Any, kwargs: Any, context: Any) -> Any:
    """Call a method of a Linen module with the mode keywords that its caller left out."""
    module = context.module
    # Linen refuses a mode as both a field and an argument.
    fields = {field.name for field in dataclasses.fields(module) if getattr(module, field.name, None) is not None}
    missing = {name: value for name, value in values.items() if name not in fields}
    args, kwargs = _completed(context.orig_method, missing, args, kwargs)
    return function(*args, **kwargs)


def _completed(function: Any, values: Mapping[str, bool], args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the arguments of a call together with the mode keywords that it leaves out."""
    signature = inspect.signature(function)
    parameters = signature.parameters
    wanted = {name: value for name, value in values.items() if name in parameters and is_mode(parameters[name])}
    if not wanted:
        return args, kwargs
    bound = signature.bind_partial(*args, **kwargs)
    missing = {name: value for name, value in wanted.items() if name not in bound.arguments}
    if not missing:
        return args, kwargs
    bound.arguments |= missing
    return bound.args, bound.kwargs


def _collections(part: nnx.bridge.ToNNX) -> list[str]:
    held = nnx.state(
        {name: value for name, value in vars(part).items() if not name.startswith(("to_nnx__", "_pytree"))}
    )
    names = {nnx.variable_name_from_type(type(leaf)) for _, leaf in nnx.to_flat_state(held)}
    return sorted(names - _KEPT)


@functools.cache
def _held(cls: type, norms: frozenset[tuple[Any, ...]]) -> type:
    def evaluate(function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        norm = context.module
        if not isinstance(norm, linen.BatchNorm) or context.method_name != "__call__" or norm.path not in norms:
            return function(*args, **kwargs)
        # Past Linen's freezing: the instance lives for one call, and a field and an argument together are an error.
        object.__setattr__(norm, "use_running_average", True)
        return function(args[0], mask=kwargs.get("mask"))

    def around(_: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        with linen.intercept_methods(evaluate):
            return call(*args, **kwargs)

    return wrapping(cls, around)
