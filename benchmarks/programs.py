"""Observe the compiled programs, independently of resfit."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def recorded(programs: list[Any]) -> Iterator[None]:
    """Record every executable that `jax.jit(...).lower(...).compile(...)` makes in the block."""
    compile_ = jax.stages.Lowered.compile

    def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
        programs.append(compile_(self, *args, **kwargs))
        return programs[-1]

    jax.stages.Lowered.compile = recording  # type: ignore[method-assign]
    try:
        yield
    finally:
        jax.stages.Lowered.compile = compile_  # type: ignore[method-assign]


@contextlib.contextmanager
def counted() -> Iterator[list[float]]:
    """Record the seconds of every compilation in the block."""
    found: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILE_EVENT:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
