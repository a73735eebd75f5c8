"""What `Model.predict` can be asked for: how the module is called, and what is made of what it returns."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from resfit import losses


class Output(NamedTuple):
    """One kind of prediction.

    Attributes:
      call: (module, inputs) -> outputs.
      finish: of the outputs.
    """

    call: Callable[[Any, Any], Any]
    finish: Callable[[Any], Any]


def _logits(module: Any, x: Any) -> Any:
    return module(x)


def _embedding(module: Any, x: Any) -> Any:
    return module.embed(x)


OUTPUTS: Mapping[str, Output] = MappingProxyType(
    {name: Output(_logits, finish) for name, finish in losses.FINISHES.items()}
    | {"embedding": Output(_embedding, losses.at_least_float32)}
)
