"""The kinds of output of `Model.predict`: the call of the module, and the function applied to its result."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from resfit import losses
from resfit.errors import CompileError, ModuleError


class Output(NamedTuple):
    """A kind of prediction.

    Attributes:
      call: (module, inputs) -> outputs.
      finish: outputs -> predictions.
    """

    call: Callable[[Any, Any], Any]
    finish: Callable[[Any], Any]


def _logits(module: Any, x: Any) -> Any:
    return module(x)


def _embedding(module: Any, x: Any) -> Any:
    return module.embed(x)


_MULTI_LABEL = "multi-label "

OUTPUTS: Mapping[str, Output] = MappingProxyType(
    {name: Output(_logits, finish) for name, finish in losses.FINISHES.items()}
    | {
        _MULTI_LABEL + name: Output(_logits, finish)
        for name, finish in losses.MULTI_LABEL_FINISHES.items()
        if name != "logits"
    }
    | {"embedding": Output(_embedding, losses.at_least_float32)}
)

NAMES = (*losses.FINISHES, "embedding")
"""The values of the argument `outputs` of `Model.predict`."""


def kind(name: str, *, multi_label: bool) -> str:
    """Return the key in `OUTPUTS` for a value of the argument `outputs`.

    Args:
      name: one of `NAMES`.
      multi_label: True if every output of the module is an independent label.

    Example:
      >>> kind("labels", multi_label=False), kind("logits", multi_label=True)
      ('labels', 'logits')
    """
    return _MULTI_LABEL + name if multi_label and name in ("probabilities", "labels") else name


def kind_of(name: str, module: Any, is_multi_label: Callable[[str], bool]) -> str:
    """Return the key in `OUTPUTS` of the argument `outputs` of `Model.predict`.

    Args:
      name: the argument.
      module: the network.
      is_multi_label: name -> True if these outputs are those of a multi-label model.

    Raises:
      CompileError: for an unknown name.
      ModuleError: for "embedding" of a module without a method `embed`.
    """
    if name not in NAMES:
        raise CompileError(f"Expected outputs to be one of {list(NAMES)}, got {name!r}.")
    found = kind(name, multi_label=is_multi_label(name))
    if name == "embedding" and not callable(getattr(module, "embed", None)):
        raise ModuleError(
            f"predict(outputs='embedding') calls the module's method embed, and {type(module).__name__} has "
            "none. Expected def embed(self, x) that returns (batch, features)."
        )
    return found
