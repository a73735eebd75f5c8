"""LambdaCallback calls each function in its hook."""

from typing import Any

import pytest
from flax import nnx

from resfit.callbacks import LambdaCallback
from resfit.errors import CallbackError
from tests.helpers import PlainNet, Recorder, compiled, fit, images, labels


def test_every_hook_is_called_as_on_a_subclass() -> None:
    trace: list[tuple[Any, ...]] = []

    def noting(hook: str) -> Any:
        return lambda *args: trace.append((hook, *[sorted(a) if hasattr(a, "keys") else a for a in args]))

    recorder = Recorder()
    hooks = [name for name in Recorder.HOOKS if name not in ("on_batch_begin", "on_batch_end")]
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    validation = (images(9), labels(9))
    fit(model, validation_data=validation, callbacks=[recorder, LambdaCallback(**{h: noting(h) for h in hooks})])
    assert trace == recorder.trace
    assert len({entry[0] for entry in trace}) == 10


def test_the_short_batch_hooks_work_too() -> None:
    seen: list[int] = []
    callback = LambdaCallback(on_batch_end=lambda batch, logs: seen.append(batch), on_batch_begin=None)
    fit(compiled(PlainNet(rngs=nnx.Rngs(0))), callbacks=[callback])
    assert seen == [0, 1, 2]


def test_an_unknown_hook_raises_with_the_list_of_hooks() -> None:
    with pytest.raises(CallbackError, match=r"unknown hook 'on_epoch_finish'.*on_epoch_end"):
        LambdaCallback(on_epoch_finish=lambda epoch, logs: None)


def test_a_value_that_is_not_a_function_raises() -> None:
    with pytest.raises(CallbackError, match="Expected on_epoch_end to be a function, got 'print'"):
        LambdaCallback(on_epoch_end="print")  # type: ignore[arg-type]
