"""Calling a module in training or evaluation, however its layers take their mode."""

import inspect
from collections.abc import Callable
from typing import Any

from flax import nnx

# The names under which a call takes its mode, and what each says of training.
MODE_KEYWORDS: dict[str, Callable[[bool], bool]] = {
    "train": lambda train: train,
    "training": lambda train: train,
    "deterministic": lambda train: not train,
    "use_running_average": lambda train: not train,
}


def in_mode(module: nnx.Module, train: bool | None) -> tuple[Any, dict[str, bool]]:
    """A module to call in place of this one, and the keywords to call it with.

    A layer may take its mode from a call argument, from a flag that `nnx.view` sets, or from a bare attribute that
    `train()` and `eval()` set. Only all three together reach every layer. The view shares the Variables, so statistics
    still move, and has its own flags, so those of the module stay as they were.

    Args:
        module: a module with a `__call__`.
        train: the mode, or None for the module as it is.
    """
    if train is None:
        return module, {}
    view = nnx.view(module, raise_if_not_found=False, deterministic=not train, use_running_average=not train)
    if train:
        view.train()
    else:
        view.eval()
    return view, mode_keywords(module, train)


def mode_keywords(module: nnx.Module, train: bool) -> dict[str, bool]:
    """The keywords by which the call of a module, if it names any, takes its mode."""
    named = inspect.signature(type(module).__call__).parameters
    return {name: value(train) for name, value in MODE_KEYWORDS.items() if name in named}
