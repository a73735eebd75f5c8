"""Sees which programs are compiled, without asking resfit."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def recorded(programs: list[Any]) -> Iterator[None]:
    """Appends every executable that `jax.jit(...).lower(...).compile(...)` makes meanwhile."""
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
    """Collects the seconds of every compilation of any program."""
    found: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILE_EVENT:
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
