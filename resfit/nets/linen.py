"""Linen modules inside `nnx.bridge.ToNNX`: how they get their mode, and how their statistics move."""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import errors, linen, nnx

from resfit.errors import ModuleError
from resfit.nets.stand_in import stand_in

_KEPT = frozenset({"params", "intermediates"})  # collections that a call in training does not rewrite


def is_mode(parameter: inspect.Parameter) -> bool:
    """Return whether a parameter that is named like a mode is one; a float named `train` is a rate, or a share."""
    default = parameter.default
    typed = default is parameter.empty or isinstance(default, bool | int | np.bool_ | None)
    return typed and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)


def switch(part: nnx.bridge.ToNNX, train: bool, keywords: Mapping[str, bool]) -> None:
    """Put a wrapped Linen module in a mode.

    Fields of the Linen module that are named like a mode are set. Its method gets the mode keywords that the caller
    leaves out. In training, all collections but the parameters are mutable, or its statistics could not move.

    Args:
        part: of a copy that nobody else uses; its class is changed.
        train: the mode.
        keywords: names of mode arguments, and the value of each in training.
    """
    module: Any = part.to_nnx__module
    fields = {field.name for field in dataclasses.fields(module)}
    flags = {name: value == train for name, value in keywords.items() if name in fields}
    flags = {name: value for name, value in flags.items() if isinstance(getattr(module, name), bool)}
    if flags:
        part.to_nnx__module = module.clone(**flags)
    values = tuple((name, value == train) for name, value in keywords.items() if name not in flags)
    object.__setattr__(part, "__class__", _in_mode(type(part), train, values))


def hold_in_evaluation(part: nnx.bridge.ToNNX, norms: frozenset[tuple[Any, ...]]) -> None:
    """Let some BatchNorms of a wrapped Linen module normalize by their running statistics in any mode.

    Args:
        part: of a copy that nobody else uses; its class is changed.
        norms: the paths of those BatchNorms inside the Linen module.
    """
    object.__setattr__(part, "__class__", _held(type(part), norms))


@functools.cache
def _in_mode(cls: type, train: bool, values: tuple[tuple[str, bool], ...]) -> type:
    def __call__(self: Any, *args: Any, method: Any = None, mutable: Any = None, **kwargs: Any) -> Any:
        kwargs = {**_left_out(self.to_nnx__module, method, args, kwargs, dict(values)), **kwargs}
        if mutable is None and train:
            mutable = _collections(self) or None
        try:
            return cls.__call__(self, *args, method=method, mutable=mutable, **kwargs)
        except (errors.ScopeParamNotFoundError, errors.ScopeCollectionNotFound) as error:
            raise ModuleError(
                f"The Linen module {type(self.to_nnx__module).__name__} in nnx.bridge.ToNNX lacks a parameter: {error} "
                "Expected a module that is initialized. Call .lazy_init(x) of the ToNNX with a batch of inputs."
            ) from error

    return stand_in(cls, {"__call__": functools.wraps(cls.__call__)(__call__)})


def _left_out(module: Any, method: Any, args: Any, kwargs: Any, values: Mapping[str, bool]) -> dict[str, bool]:
    """Return the mode keywords of the called method that the caller left out."""
    function = getattr(type(module), method or "__call__") if method is None or isinstance(method, str) else method
    signature = inspect.signature(function)
    given = signature.bind_partial(module, *args, **kwargs).arguments
    parameters = signature.parameters
    return {
        name: value
        for name, value in values.items()
        if name in parameters and name not in given and is_mode(parameters[name])
    }


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

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        with linen.intercept_methods(evaluate):
            return cls.__call__(self, *args, **kwargs)

    return stand_in(cls, {"__call__": functools.wraps(cls.__call__)(__call__)})
