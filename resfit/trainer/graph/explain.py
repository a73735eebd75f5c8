"""Errors about the user's module: a wrong type, and the shapes that its code was called with inside a step."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from flax.errors import TraceContextError

from resfit.errors import ModuleError, ResfitError
from resfit.trainer.overrides import Guarded


@contextlib.contextmanager
def explained(function: Any, *arguments: Any) -> Iterator[None]:
    """Add the shapes of the arguments to an error that the user's own code raises inside a step.

    Args:
      function: a module or a function, or its name.
      arguments: of its call.
    """
    try:
        yield
    except ResfitError:
        raise
    except Exception as error:
        of = function if isinstance(function, str) else getattr(function, "__name__", None)
        name = of or type(function).__name__
        given = ", ".join(jax.tree.map(_Short, argument).__repr__() for argument in arguments)
        error.add_note(
            f"{name} was called with ({given}) inside resfit's step, where arrays have shapes and dtypes but no "
            "values: use jax.numpy, not NumPy or Python's if. To look inside, compile(dispatch='eager') runs without "
            "compiling."
        )
        raise


@contextlib.contextmanager
def explained_trace() -> Iterator[None]:
    """Turn the error of Flax about a Variable that changes inside a transformation of JAX into one with the remedy."""
    try:
        yield
    except TraceContextError as error:
        raise ModuleError(
            f"{error}: a transformation of JAX, such as jax.grad, jax.jvp, jax.vmap, jax.lax.map, jax.checkpoint or "
            "jax.jit, calls a module that writes to its Variables, such as the statistics of BatchNorm. JAX does not "
            "return the new values. Expected a transformation of NNX, which does: nnx.grad(lambda module, x: ..., "
            "argnums=1)(module, x), nnx.remat or nnx.jit. To drop the new values instead, call nnx.clone(module)(x) "
            "inside the transformed function: every transformation accepts that."
        ) from error


class _Short:
    """An array whose repr is its dtype and shape, such as float32[8, 28, 28, 1]."""

    def __init__(self, array: Any) -> None:
        self._text = f"{array.dtype}{list(array.shape)}" if hasattr(array, "dtype") else repr(array)

    def __repr__(self) -> str:
        return self._text


def no_module(module: Any) -> ModuleError:
    """Return the error for an object that is not an `nnx.Module`."""
    kind = type(module).__name__
    if isinstance(module, type):
        return ModuleError(
            f"Expected a flax.nnx.Module, got the class {module.__name__} itself. Pass an object: "
            f"{module.__name__}(...)."
        )
    if isinstance(module, str):
        return ModuleError(
            f"Model got the text {module!r}. Expected a flax.nnx.Module: one by name is "
            f"resfit.create_model({module!r}, num_classes=...)."
        )
    if isinstance(module, Guarded):
        return ModuleError(
            f"Expected a flax.nnx.Module, got {kind}, which is a resfit.Model. A model trains a network, and is not a "
            "network itself. Define the layers in a class that derives from nnx.Module, and pass an object of it: "
            "resfit.Model(module)."
        )
    package = type(module).__module__.partition(".")[0]
    if package in ("torch", "keras") or any(cls.__module__.startswith("torch.") for cls in type(module).__mro__):
        return ModuleError(
            f"Expected a flax.nnx.Module, got {package}'s {kind}. Build the network with resfit.create_model or as an "
            "nnx.Module; resfit.weights.load_state_dict reads the weights of PyTorch's ResNets."
        )
    return ModuleError(
        f"Expected a flax.nnx.Module, got {kind}. Wrap a Linen module as "
        "flax.nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)).lazy_init(x); call a function from the __call__ of a custom "
        "nnx.Module."
    )
