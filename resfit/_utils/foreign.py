"""Errors for objects of other libraries, with the replacement in resfit.

Module names identify a library, so no library is imported. A loss of Keras takes (labels, outputs), and a metric of
PyTorch takes tensors: inside a step of resfit they would fail or return wrong numbers.
"""

import functools
from collections.abc import Iterator
from typing import Any

from resfit._utils import words

_LIBRARIES = {
    "keras": "Keras",
    "tf_keras": "Keras",
    "tensorflow": "TensorFlow",
    "torch": "PyTorch",
    "torchmetrics": "TorchMetrics",
    "lightning": "PyTorch Lightning",
    "pytorch_lightning": "PyTorch Lightning",
    "sklearn": "scikit-learn",
}

_OTHERWISE = {
    "loss": "a function of (outputs, labels) that returns one value per example, written with jax.numpy, or the name "
    "of a loss, such as loss='cross_entropy'",
    "metrics": "a function of (outputs, labels) that returns one value per example, written with jax.numpy, or the "
    "name of a metric, such as metrics=['accuracy']",
    "optimizer": "the optax optimizer of the same name, such as optimizer=optax.adamw, learning_rate=...",
    "callbacks": "an object of a subclass of resfit.callbacks.Callback. The hooks are Keras's, so for a custom class "
    "change the base class",
}


def refuse(value: Any, argument: str, error: type[Exception]) -> None:
    """Raise if the value, or a base class of it, belongs to another library.

    Args:
      value: an object, a class, a function, a `functools.partial` or a bound method.
      argument: the argument that received the value: "loss", "metrics", "optimizer" or "callbacks".
      error: the class to raise.

    Raises:
      error: if the value belongs to another library. The message names the replacement.

    Example:
      >>> class Adam:
      ...     __module__ = "torch.optim.adam"
      >>> refuse(Adam(), "optimizer", ValueError)
      Traceback (most recent call last):
      ...
      ValueError: optimizer received torch.optim.adam.Adam, of PyTorch. Use optimizer='adam', learning_rate=....
    """
    for i, (module, name) in enumerate(_origins(value)):
        library = _LIBRARIES.get(module.partition(".")[0])
        if library is None:
            continue
        otherwise = f"Use {_OTHERWISE[argument]}."
        raise error(
            f"{argument} received {module}.{name}, of {library}. {words.use(name, argument) or otherwise}"
            if i == 0
            else f"{argument} received a {next(_origins(value))[1]}, which derives from {module}.{name}, of {library}. "
            f"{otherwise}"  # a custom class does not do what its base class does
        )


def _origins(value: Any) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of the function or class of a value, then of its base classes."""
    while isinstance(value, functools.partial):
        value = value.func
    owner = getattr(value, "__self__", None)  # a bound method belongs to its object
    value = value if owner is None else owner
    if not isinstance(value, type):
        if hasattr(value, "__name__") and isinstance(getattr(value, "__module__", None), str):
            yield value.__module__, value.__name__
        value = type(value)
    yield from ((base.__module__, base.__name__) for base in value.__mro__)
