"""Raise for overridden methods and assigned attributes that Keras and PyTorch Lightning read, and resfit does not.

The error names the substitute.
"""

import dis
import inspect
from types import CodeType, FunctionType
from typing import Any

from flax import nnx

from resfit.errors import ModuleError, OverrideError

_STEP = "override compute_loss(self, module, x, y, *, key, train), which training and evaluation call"
_DATA = "pass the data to fit, evaluate or predict"
_HOOK = "write a resfit.callbacks.Callback and pass it to fit(callbacks=[...])"
_METRICS = "compile(metrics=[...])"
_RATE = "compile(learning_rate=...): a number, a schedule, or a function of the step"
_CALL = "define __call__ on the nnx.Module that the model wraps"

_METHODS = {
    "train_step": _STEP,
    "test_step": _STEP,
    "training_step": _STEP,
    "validation_step": _STEP,
    "make_train_function": _STEP,
    "make_test_function": _STEP,
    "predict_step": "predict(outputs=...), or override __call__ of the nnx.Module",
    "make_predict_function": "predict(outputs=...), or override __call__ of the nnx.Module",
    "compute_metrics": _METRICS,
    "reset_metrics": _METRICS,
    "call": _CALL,
    "forward": _CALL,
    "backward": _STEP,
    "configure_optimizers": "compile(optimizer, learning_rate=...)",
    "optimizer_step": "compile(optimizer=...) with an optax transformation",
    "configure_gradient_clipping": "compile(optimizer=resfit.optimizers.clip(...))",
    "lr_scheduler_step": _RATE,
    "configure_callbacks": "fit(callbacks=[...])",
    "training_epoch_end": _HOOK,
    "validation_epoch_end": _HOOK,
    "test_epoch_end": _HOOK,
    **{f"{name}_dataloader": _DATA for name in ("train", "val", "test", "predict")},
    **{
        f"on_{what}_{when}": _HOOK
        for what in (
            "fit", "train", "validation", "test", "predict", "epoch", "train_epoch", "validation_epoch", "test_epoch",
            "predict_epoch", "train_batch", "validation_batch", "test_batch", "predict_batch",
        )
        for when in ("begin", "start", "end")
    },
}  # fmt: skip

_ATTRIBUTES = {
    "trainable": "model.freeze('stem', 'stage1') with the parts that must not change, then compile; to train nothing, "
    "do not call fit",
    "run_eagerly": "compile(dispatch='eager')",
    "jit_compile": "compile(dispatch='eager') to run steps without compiling; all other dispatches compile",
    "steps_per_execution": "no setting: the host prepares the next steps while the device computes",
    "optimizer": "compile(optimizer=...); for the learning rate set model.learning_rate",
    "loss": "compile(loss=...)",
    "loss_weights": "override compute_loss and weight the losses in it",
    "metrics": _METRICS,
    "automatic_optimization": _STEP,
    "training": "no setting: every step sets the mode of the module",
}

_FLAGS = ("trainable", "requires_grad")


class Guarded:
    """A base class that raises if a subclass overrides, or code assigns, a name that has no effect."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for base in cls.__mro__:
            # A guarded base was checked when it was defined.
            if base is cls or not issubclass(base, Guarded):
                _check_members(cls.__name__, vars(base))
        if "compute_loss" in vars(cls):
            _check_compute_loss(cls.__name__, vars(cls)["compute_loss"])

    def __setattr__(self, name: str, value: Any) -> None:
        substitute = _ATTRIBUTES.get(name) or _METHODS.get(name)
        if substitute is not None:
            raise OverrideError(
                f"model.{name} was set to {value!r:.60}, and nothing in resfit reads it. Expected {substitute}. Choose "
                "another name for a custom attribute."
            )
        super().__setattr__(name, value)


def _check_members(owner: str, members: Any) -> None:
    for name, member in members.items():
        # A custom method may have the name loss.
        substitute = _METHODS.get(name) or (None if isinstance(member, FunctionType) else _ATTRIBUTES.get(name))
        if substitute is not None:
            raise OverrideError(
                f"{owner} defines {name}, and nothing in resfit calls or reads it. Expected {substitute}. Choose "
                "another name for a custom member."
            )


def _check_compute_loss(owner: str, function: Any) -> None:
    if not isinstance(function, FunctionType):
        return
    signature = inspect.signature(function)
    try:
        signature.bind(None, None, None, None, key=None, train=True)
    except TypeError as error:
        raise OverrideError(
            f"{owner}.compute_loss has the parameters {signature}: {error}. Expected def compute_loss(self, module, x, "
            "y, *, key, train), which calls module(x) and returns (losses, outputs), one loss per example."
        ) from error


def check_flags(module: nnx.Module, plan: Any) -> None:
    """Raise if an attribute that nothing reads marks a part of a module as frozen.

    Args:
      module: the network.
      plan: its `ModulePlan`, whose slots mark the trained variables.

    Raises:
      ModuleError: if a part has trainable=False or requires_grad=False, has parameters that are not frozen, and no
        class of the module's parts reads that attribute.
    """
    trained = [slot.path for slot in plan.slots if slot.kind == "param"]
    parts = [(path, type(part), vars(part)) for path, part in nnx.iter_modules(module)]
    for flag in _FLAGS:
        marked = (path for path, _, held in parts if held.get(flag) is False)
        ignored = next((path for path in marked if any(taken[: len(path)] == path for taken in trained)), None)
        # A part's own class may read its flag, or that of a part around it.
        if ignored is None or any(_reads(kind, flag) for kind in {kind for _, kind, _ in parts}):
            continue
        name = ".".join(map(str, ignored))
        raise ModuleError(
            f"{f'The part {name!r}' if name else 'The module'} has {flag} = False, which neither flax nor resfit "
            f"reads: fit would train its parameters. Expected model.freeze({name or 'part'!r}), then compile."
        )


def _reads(kind: type, attribute: str) -> bool:
    functions = (member for base in kind.__mro__ for member in vars(base).values())
    return any(_loads(member.__code__, attribute) for member in functions if isinstance(member, FunctionType))


def _loads(code: CodeType, attribute: str) -> bool:
    """Return True if code reads an attribute, also by getattr; assignments do not count."""
    reads = (step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_ATTR", "LOAD_CONST"))
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return attribute in reads or any(_loads(function, attribute) for function in inner)
