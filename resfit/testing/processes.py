"""A simulation of one of several processes."""

import collections
import contextlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax

from resfit.model import Model

PROCESSES = 2
# Methods that all processes must call together, since their devices work on one array.
COLLECTIVE = ("fit", "evaluate", "predict", "predict_batches", "train_on_batch", "test_on_batch", "predict_on_batch")


@contextlib.contextmanager
def as_process(index: int, model: Model) -> Iterator[collections.Counter[str]]:
    """Make JAX report process `index` of two, and count the calls that all processes must make together.

    The calls run in this process.
    """
    calls: collections.Counter[str] = collections.Counter()

    def counted(name: str) -> Callable[..., Any]:
        method = getattr(model, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            calls[name] += 1
            with _processes(real_index, real_count):
                return method(*args, **kwargs)

        return call

    real_index, real_count = jax.process_index, jax.process_count
    with contextlib.ExitStack() as stack:
        for name in COLLECTIVE:
            stack.enter_context(mock.patch.object(model, name, counted(name)))
        stack.enter_context(_processes(lambda *_: index, lambda *_: PROCESSES))
        yield calls


def _processes(index: Callable[..., int], count: Callable[..., int]) -> Any:
    return mock.patch.multiple(jax, process_index=index, process_count=count)
