"""Threads whose calls run as one program: the results are those of single calls, and no thread waits forever."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resfit.trainer.devices import together
from resfit.trainer.devices.placement import CompiledStep, Placement
from resfit.trainer.devices.together import Meeting, joined, outside, taking_part
from tests.helpers import counting_compilations, fewer_examples

Step = Callable[[Any, Any], Any]


def add(state: Any, batch: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf + batch.sum(), state), batch.mean()


def multiply(state: Any, batch: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * batch.sum(), state), batch.mean()


class Team:
    """Threads that take steps together.

    Args:
      members: their number.

    Attributes:
      sizes: of the groups that ran, in order.
      stop: set it to True to release all threads.
    """

    def __init__(self, members: int) -> None:
        self.changed = threading.Condition()
        self.working = set(range(members))
        self.stop = False
        self.meeting = Meeting(self.changed, lambda: self.working, lambda: self.stop, lambda: False)
        self.sizes: list[int] = []
        run = self.meeting.run

        def noted(executable: Any, given: list[Any]) -> Any:
            found = run(executable, given)
            self.sizes.append(len(given) if found else 0)
            return found

        self.meeting.run = noted  # type: ignore[method-assign]

    def work(self, jobs: list[Callable[[int], Any]]) -> list[Any]:
        """Return the result of each job, which a thread of its own runs; an exception is a result too."""
        results: list[Any] = [None] * len(jobs)

        def one(number: int) -> None:
            try:
                with taking_part(self.meeting, number):
                    results[number] = jobs[number](number)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                results[number] = error
            finally:
                with self.changed:
                    self.working.discard(number)
                    self.changed.notify_all()

        threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in threads), "a thread waits forever"
        return results


PLACEMENT = Placement("jit")
COMPILING = threading.Lock()


def one_by_one(begins: bool) -> None:
    """Let the next thread find the program, as `ensemble.pace` does."""
    _ = COMPILING.acquire() if begins else COMPILING.release()


def take(step: CompiledStep, state: Any, batch: Any) -> Any:
    run = step.prepare((state, batch), one_by_one)
    with joined(step, run, (state, batch), one_by_one) as call:
        return call(state, batch)


def walk(function: Step, batches: list[np.ndarray], start: float, using: Callable[..., Any] = take) -> Any:
    """Return the state after a step for each batch, and their means."""
    step, state, means = (
        CompiledStep(function, PLACEMENT, donate=True),
        {"a": jnp.asarray(np.full(3, start, np.float32))},
        [],
    )
    for batch in batches:
        state, mean = using(step, state, batch)
        means.append(float(mean))
    return np.asarray(state["a"]).tolist(), means


def single(step: CompiledStep, state: Any, batch: Any) -> Any:
    return step.prepare((state, batch), one_by_one)(state, batch)


def batches(rows: list[int], number: int) -> list[np.ndarray]:
    return [np.arange(n, dtype=np.float32) % 3 + number for n in rows]


# For each thread, the rows of its batches: other numbers of steps, and other programs.
PLANS = st.lists(st.tuples(st.lists(st.integers(1, 2), max_size=5), st.booleans()), min_size=1, max_size=5)


@fewer_examples(8)
@given(PLANS)
def test_every_thread_gets_the_results_of_its_own_calls(plans: list[tuple[list[int], bool]]) -> None:
    jobs = [
        lambda number, rows=rows, product=product: walk(
            multiply if product else add, batches(rows, number), float(number)
        )
        for rows, product in plans
    ]
    expected = [
        walk(multiply if product else add, batches(rows, i), float(i), single)
        for i, (rows, product) in enumerate(plans)
    ]
    assert Team(len(plans)).work(jobs) == expected


def test_calls_of_one_program_run_together_and_others_alone() -> None:
    team = Team(5)
    rows = [[2, 2, 2], [2, 2, 2], [2, 2, 1], [2, 2, 2], [1, 1, 1]]
    functions = [add, add, add, multiply, add]
    team.work(
        [lambda i, own=own, of=of: walk(of, batches(own, i), 1.0) for own, of in zip(rows, functions, strict=True)]
    )
    assert sorted(team.sizes) == [2, 2, 3, 3]  # in the last step, two of two rows and two of one


def test_one_program_serves_every_smaller_number_of_threads() -> None:
    compiled = []
    for steps in ([4] * 4, [4] * 4, [4, 3, 2, 1]):  # the first team may also compile what every one uses
        team = Team(4)
        with counting_compilations() as found:
            team.work([lambda i, n=n: walk(add, batches([2] * n, i), 1.0) for i, n in enumerate(steps)])
        compiled.append(len(found))
        assert team.sizes == [4, 4, 4, 4] if min(steps) == 4 else [4, 3, 2]
    assert compiled[1] == compiled[2] <= compiled[0]


def test_a_thread_that_fails_between_the_meeting_and_its_call_does_not_stop_the_others() -> None:
    def fails(number: int) -> None:
        step, state, batch = CompiledStep(add, PLACEMENT), {"a": jnp.zeros(3)}, batches([2], number)[0]
        run = step.prepare((state, batch), one_by_one)
        with joined(step, run, (state, batch), one_by_one):
            raise ValueError("mine")

    team = Team(3)
    found = team.work([fails, *(lambda i: walk(add, batches([2, 2], i), 1.0) for _ in range(2))])
    assert isinstance(found[0], ValueError)
    assert found[1:] == [walk(add, batches([2, 2], i), 1.0, single) for i in (1, 2)]
    assert team.sizes == [2, 2]


def test_a_program_that_fails_lets_each_call_run_alone(caplog: pytest.LogCaptureFixture) -> None:
    team = Team(2)

    def prepared(calls: Any) -> None:
        def fails(*_: Any) -> None:
            raise MemoryError("out of memory")

        team.meeting._programs.setdefault(calls[0].run, (2, fails))

    team.meeting.prepare = prepared  # type: ignore[method-assign]
    found = team.work([lambda i: walk(add, batches([2, 2], i), 1.0)] * 2)
    assert found == [walk(add, batches([2, 2], i), 1.0, single) for i in range(2)]
    assert team.sizes == [0]  # the second step does not try again
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "one by one" in warnings[0]
    assert "out of memory" in warnings[0]


def test_threads_are_released_without_the_others() -> None:
    team = Team(2)

    def hangs(number: int) -> None:
        threading.Timer(0.1, lambda: setattr(team, "stop", True)).start()
        while not team.stop:
            threading.Event().wait(0.05)

    assert team.work([hangs, lambda i: walk(add, batches([2], i), 1.0)])[1] == walk(add, batches([2], 1), 1.0, single)
    assert team.sizes == []


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_random_numbers_that_vmap_would_change_are_drawn_alone(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def draw(state: Any, batch: Any) -> Any:
        return state, jax.random.normal(jax.random.wrap_key_data(batch), ())

    def one(number: int, using: Callable[..., Any] = take) -> float:
        with jax.default_prng_impl(kind):
            key = np.asarray(jax.random.key_data(jax.random.key(number)))
            return float(using(CompiledStep(draw, PLACEMENT), {"a": jnp.zeros(3)}, key)[1])

    alone = [one(i, single) for i in range(2)]
    assert Team(2).work([one, one]) == alone
    assert kind in caplog.text
    with jax.default_prng_impl(kind):  # the negative control: the numbers under vmap are others
        keys = np.stack([np.asarray(jax.random.key_data(jax.random.key(i))) for i in range(2)])
        mapped = jax.vmap(lambda key: jax.random.normal(jax.random.wrap_key_data(key), ()))(keys)
    assert not np.allclose(mapped, alone)


def test_code_inside_outside_takes_its_steps_alone() -> None:
    team, lock = Team(2), threading.Lock()

    def locked(number: int) -> Any:
        with outside(), lock:  # with a meeting, the other thread would wait for the lock, and this one for the other
            return walk(add, batches([2, 2], number), 1.0)

    assert team.work([locked, locked]) == [walk(add, batches([2, 2], i), 1.0, single) for i in range(2)]
    assert team.sizes == []


@contextlib.contextmanager
def mixed(part: str) -> Iterator[None]:
    """Give every call the part of the state of the first one."""
    original = CompiledStep.together

    def wrong(self: CompiledStep, calls: Any) -> Any:
        run = original(self, calls)
        return lambda *given: run(*((state | {part: given[0][0][part]}, batch) for state, batch in given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CompiledStep, "together", wrong)
        yield


def test_the_comparison_notices_the_state_of_another_thread() -> None:
    jobs = [lambda i: walk(add, batches([2, 2], i), float(i))] * 2
    expected = [walk(add, batches([2, 2], i), float(i), single) for i in range(2)]
    assert Team(2).work(jobs) == expected
    with mixed("a"):
        assert Team(2).work(jobs) != expected


def test_no_meeting_leaves_the_executable_as_it_is() -> None:
    step, state, batch = CompiledStep(add, PLACEMENT), {"a": jnp.zeros(3)}, batches([2], 0)[0]
    run = step.prepare((state, batch), one_by_one)
    with joined(step, run, (state, batch), one_by_one) as call:
        assert call is run
    assert together.outside() is together.outside()


def test_hook_of_a_shared_compilation_can_use_the_lock_of_another_member() -> None:
    locks = [threading.Lock(), threading.Lock()]
    in_block = threading.Event()

    def job(number: int) -> Any:
        step, state, batch = CompiledStep(add, PLACEMENT), {"a": jnp.full(2, number)}, jnp.arange(3)
        run = step.prepare((state, batch), one_by_one)

        def hook(begins: bool) -> None:
            if begins:
                in_block.wait(0.3)  # time for the other thread to take its lock
                taken.append(locks[1 - number].acquire(timeout=1))
                locks[1 - number].release() if taken[-1] else None

        with joined(step, run, (state, batch), hook) as call, locks[number]:
            in_block.set()
            return call(state, batch)

    taken: list[bool] = []
    results = Team(2).work([job, job])
    assert taken == [True]
    assert [float(state["a"][0]) for state, _ in results] == [3, 4]
