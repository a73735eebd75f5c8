"""Calls of one compiled program by several threads, run as one program.

An accelerator computes a step of a small network faster than the host hands it over, so several networks take hardly
longer than one. The threads that train them meet before each step. The calls of one program are run by the `jax.vmap`
of its function. Arguments and results stay arrays of their owners, because the stack exists only inside the program.
"""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from resfit.trainer.devices.placement import CompiledStep
from resfit.trainer.graph.random_keys import is_key

_log = logging.getLogger("resfit.together")  # what it says is of all members, not of the one in whose thread it is
_here = threading.local()
_POLL = 0.1  # seconds: a signal sets a flag and wakes nobody up
_PATIENCE = 10.0  # seconds: a thread that waits here can hold a lock of the user that another one waits for
_THREEFRY = "threefry2x32"


class Call(NamedTuple):
    """A call of a compiled step.

    Attributes:
      step: of the thread.
      run: its executable for these arguments. Threads with equal steps have one executable.
      arguments: of the call.
      on_compile: called with True before a compilation, and with False after it.
    """

    step: CompiledStep
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    on_compile: Callable[[bool], None]


class Meeting:
    """The place where threads wait for each other before a step.

    Args:
      changed: notified whenever `expected` changes.
      expected: returns the numbers of the threads that will take another step without waiting for the others in
        another place. Called with the lock of `changed`.
      released: returns True once no thread should wait any more.
      compiles: returns True while a thread compiles, which can take long.
    """

    def __init__(
        self,
        changed: threading.Condition,
        expected: Callable[[], Collection[int]],
        released: Callable[[], bool],
        compiles: Callable[[], bool],
    ) -> None:
        self._changed, self._expected, self._released, self._compiles = changed, expected, released, compiles
        self._late: set[int] = set()  # the threads that the others do not wait for until they arrive
        self._was_late = False
        self._arrived: dict[int, Call] = {}
        self._groups: dict[int, Group] = {}
        self._programs: dict[Any, tuple[int, Callable[..., Any]] | None] = {}  # by the executable of a single call

    def arrive(self, number: int, call: Call) -> "Group | None":
        """Wait until every expected thread has arrived; return the group of the call, or None if it runs alone."""
        with self._changed:
            self._arrived[number] = call
            self._late.discard(number)
            since = time.monotonic()
            while number in self._arrived and not self._released():
                missing = [other for other in self._expected() if other not in self._late | self._arrived.keys()]
                if self._compiles():
                    since = time.monotonic()
                if not missing:
                    self._form()
                elif time.monotonic() - since > _PATIENCE:
                    self._go_without(missing)
                else:
                    self._changed.wait(_POLL)
            self._arrived.pop(number, None)
            return self._groups.pop(number, None)

    def _go_without(self, late: list[int]) -> None:
        """Do not wait for these threads until they arrive."""
        self._late.update(late)
        if not self._was_late:
            _log.warning(
                "The members %s of the ensemble were not ready for a step in %.3g seconds, and the others do not wait "
                "longer. A member can wait for a lock that another one holds between two batches: hold locks only "
                "while a batch is read.", ", ".join(map(str, late)), _PATIENCE,
            )  # fmt: skip
        self._was_late = True

    def _form(self) -> None:
        """Make a group of the calls of each executable."""
        by_program: dict[Any, list[int]] = {}
        for number in sorted(self._arrived):
            by_program.setdefault(self._arrived[number].run, []).append(number)
        for run, numbers in by_program.items():
            if len(numbers) > 1 and self._programs.get(run, ()) is not None:
                group = Group(self, self._changed, {number: self._arrived[number] for number in numbers})
                self._groups |= dict.fromkeys(numbers, group)
        self._arrived.clear()
        self._changed.notify_all()

    def prepare(self, calls: list[Call]) -> None:
        """Compile the program of so many calls if it is new. A program for more calls serves fewer of them too."""
        first, count = calls[0], len(calls)
        known = self._programs.get(first.run, (0, None))
        if known is None or known[0] >= count:
            return
        first.on_compile(True)
        try:
            _check_random(first.arguments)
            self._programs[first.run] = count, first.step.together(tuple(call.arguments for call in calls))
        except Exception as error:  # noqa: BLE001 - the code of the user's module has no limits
            self.give_up(first.run, error)
        finally:
            first.on_compile(False)

    def run(self, run: Callable[..., Any], given: list[tuple[Any, ...]]) -> Iterable[Any]:
        """Return the results of these calls of one executable, or nothing if they have to run one by one.

        The places of threads that have stopped take the arguments of the first thread, so that the number of threads
        does not decide the program.
        """
        width, together = self._programs.get(run) or (0, None)
        if together is None or len(given) < 2:
            return ()
        try:
            results: Iterable[Any] = together(*given, *itertools.repeat(given[0], width - len(given)))
        except Exception as error:  # noqa: BLE001 - each call that runs alone raises what is its own
            self.give_up(run, error)
            return ()
        return results

    def give_up(self, run: Callable[..., Any], error: Exception) -> None:
        """Let the calls of an executable run one by one from now on."""
        self._programs[run] = None
        _log.warning(
            "The members of the ensemble take their steps one by one, because the program that takes them together "
            "failed with %s: %s",
            type(error).__name__,
            error,
        )


class Group:
    """Calls of one executable that run together.

    Args:
      meeting: runs them.
      changed: of the meeting.
      calls: by the numbers of their threads.
    """

    def __init__(self, meeting: Meeting, changed: threading.Condition, calls: dict[int, Call]) -> None:
        self._meeting, self._changed, self._calls = meeting, changed, calls
        self._missing = set(calls)
        self._given: dict[int, tuple[Any, ...]] = {}
        self._results: dict[int, Any] = {}
        self._prepared = self._runs = self._done = False

    def prepare(self, number: int) -> None:
        """Compile the program in the first thread of the group. The others wait, and hold no lock yet.

        A compilation calls hooks of the user, which can read the networks of the other threads.
        """
        if number != min(self._calls):
            with self._changed:
                self._changed.wait_for(lambda: self._prepared)
            return
        try:
            self._meeting.prepare(list(self._calls.values()))
        finally:
            with self._changed:
                self._prepared = True
                self._changed.notify_all()

    def take(self, number: int, *arguments: Any) -> Any:
        """Return the results of a thread's call, once all threads of the group have called."""
        run = self._calls[number].run
        with self._changed:
            self._given[number] = arguments
            self._missing.discard(number)
            self._changed.wait_for(lambda: self._done or not (self._missing or self._runs))
            leads = not self._done
            self._runs = True
        if leads:
            try:
                results = self._meeting.run(run, list(self._given.values()))
                self._results = dict(zip(self._given, results, strict=False))
            finally:
                with self._changed:
                    self._done = True
                    self._changed.notify_all()
        return self._results[number] if number in self._results else run(*arguments)

    def leave(self, number: int) -> None:
        """Let the others go without a thread that has not called."""
        with self._changed:
            if number in self._missing:
                self._missing.discard(number)
                self._changed.notify_all()


@contextlib.contextmanager
def taking_part(meeting: Meeting | None, number: int) -> Iterator[None]:
    """Let the steps of this thread be taken in a meeting inside the block.

    Args:
      meeting: None for steps that the thread takes alone.
      number: of the thread in the meeting.
    """
    before = getattr(_here, "place", None)
    _here.place = None if meeting is None else (meeting, number)
    try:
        yield
    finally:
        _here.place = before


def joined(
    step: CompiledStep, run: Callable[..., Any], arguments: tuple[Any, ...], on_compile: Callable[[bool], None]
) -> contextlib.AbstractContextManager[Callable[..., Any]]:
    """Return the function that takes a prepared step: its executable, or one that takes the steps of other threads too.

    The caller holds no lock at the entry of the block, where the thread waits for the others. Inside the block it waits
    only for threads that are inside the same block.

    Args:
      step: of this thread.
      run: from `step.prepare(arguments)`.
      arguments: of the call, or others of the same shapes.
      on_compile: called with True before a compilation, and with False after it.
    """
    place = getattr(_here, "place", None)
    if place is None or not isinstance(run, jax.stages.Compiled):
        return contextlib.nullcontext(run)
    meeting, number = place
    group = meeting.arrive(number, Call(step, run, arguments, on_compile))
    return contextlib.nullcontext(run) if group is None else _in_group(group, number)


@contextlib.contextmanager
def _in_group(group: "Group", number: int) -> Iterator[Callable[..., Any]]:
    try:
        group.prepare(number)
        yield lambda *given: group.take(number, *given)
    finally:
        group.leave(number)


def outside() -> contextlib.AbstractContextManager[None]:
    """Return a context in which this thread takes its steps alone: code of the user can hold a lock of its own."""
    return _ALONE if getattr(_here, "place", None) is None else taking_part(None, 0)


_ALONE = contextlib.nullcontext()


def _check_random(arguments: tuple[Any, ...]) -> None:
    """Raise if random numbers depend on the program.

    Raises:
      NotImplementedError: for the generators "rbg" and "unsafe_rbg": `jax.vmap` draws other numbers with them.
    """
    kinds = {str(jax.random.key_impl(leaf)) for leaf in filter(is_key, jax.tree.leaves(arguments))}
    kinds.add(jax.config.jax_default_prng_impl)  # type: ignore[attr-defined]  # in the docs of JAX, not in its types
    if kinds != {_THREEFRY}:
        raise NotImplementedError(f"random numbers of {sorted(kinds - {_THREEFRY})} differ under jax.vmap")
