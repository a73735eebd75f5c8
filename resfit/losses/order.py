"""The argument order of a custom loss or metric, read from its parameter names."""

import dataclasses
import inspect
import logging
import re
from collections.abc import Callable
from typing import Any

from resfit._utils.keywords import checked
from resfit.errors import CompileError

_log = logging.getLogger("resfit")

# Points of a word in a parameter name: above zero for labels, below zero for outputs.
_WORDS = {
    **dict.fromkeys(("true", "ytrue", "truth", "target", "targets", "gt", "expected", "reference", "teacher"), 4),
    **dict.fromkeys(("actual", "actuals", "observed"), 3),
    **dict.fromkeys(("label", "labels", "t"), 2),
    **dict.fromkeys(("y",), 1),
    **dict.fromkeys(("o", "p"), -1),
    **dict.fromkeys(("logit", "logits", "input", "inputs", "score", "scores", "prob", "probs", "probabilities"), -2),
    **dict.fromkeys(("hat", "yhat", "pred", "preds", "ypred", "predicted", "prediction", "predictions"), -4),
    **dict.fromkeys(("output", "outputs", "student"), -4),
}


@dataclasses.dataclass(frozen=True)
class LabelsFirst:
    """A function of (outputs, labels) that calls a function of (labels, outputs).

    Args:
      function: a function of (y_true, y_pred), the order of Keras and scikit-learn.
    """

    function: Callable[[Any, Any], Any]

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, outputs: Any, labels: Any) -> Any:
        return self.function(labels, outputs)


@checked("loss arguments")
def outputs_first(function: Callable[..., Any], argument: str) -> Callable[[Any, Any], Any]:
    """Return the function with its arguments in the order (outputs, labels).

    The names of the first two positional parameters decide: `(y_true, y_pred)`, `(labels, logits)` and
    `(target, input)` have the labels first, so the two arguments are exchanged. Functions with neutral names, functions
    of `*args` and functions without a signature are called with (outputs, labels).

    Args:
      function: a function, lambda, `functools.partial`, bound method, or an object with `__call__`.
      argument: the argument that received the function, "loss" or "metrics", for messages.

    Raises:
      CompileError: for ambiguous names, such as (y, x).

    Example:
      >>> outputs_first(lambda y_true, y_pred: y_pred - y_true, "loss")(3, 1)
      2
      >>> outputs_first(lambda logits, labels: logits - labels, "loss")(3, 1)
      2
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a built-in function that has no signature
        return function
    names = [parameter.name for parameter in parameters if parameter.kind in _POSITIONAL][:2]
    if len(names) < 2 or (lead := _weight(names[0]) - _weight(names[1])) <= 0:
        return function
    called = getattr(function, "__name__", type(function).__name__)
    if lead == 1:
        raise CompileError(
            f"{argument} received the function {called}({names[0]}, {names[1]}), whose parameter names are ambiguous. "
            "Expected (outputs, labels), as in optax, or (y_true, y_pred), as in Keras. Rename the parameters."
        )
    _log.info("%s(%s, %s) is called with (labels, outputs), by the names of its parameters.", called, *names)
    return LabelsFirst(function)


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _weight(name: str) -> int:
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    return sum(_WORDS.get(word, 0) for word in words)
