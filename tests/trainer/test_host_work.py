"""Host work of a step and of a call, counted, not timed: logs, transfers, executions, compilations, module walks."""

import collections
import contextlib
import cProfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax._src import tree_util

import resfit
from resfit.callbacks.logs import LazyLogs
from resfit.trainer.devices.placement import Placement
from tests.helpers import BATCH, PlainNet, compiled, counting_compilations, fit, images, labels

CALLS: dict[str, Callable[..., Any]] = {
    "fit": lambda model, x, y, **arguments: fit(model, x, y, **arguments),
    "evaluate": lambda model, x, y, **arguments: model.evaluate(x, y, batch_size=BATCH, verbose=0, **arguments),
    "predict": lambda model, x, y, **arguments: model.predict(x, batch_size=BATCH, verbose=0, **arguments),
}
WALKS = (
    "iter_graph",
    "iter_modules",
    "split",
    "merge",
    "clone",
    "view",
    "state",
    "graphdef",
    "update",
    "to_flat_state",
)


def data(steps: int) -> tuple[Any, Any]:
    return images(steps * BATCH), labels(steps * BATCH)


def model() -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)))


def warm() -> Any:
    """Return a model that is past the first calls, after which `fit` compiles a copy of the state."""
    made = model()
    for _ in range(5):
        fit(made, *data(1))
    return made


@contextlib.contextmanager
def executions(folder: Path) -> Iterator[collections.Counter[str]]:
    """Count the calls of compiled functions by name, also those of jax.numpy, as JAX's profiler sees them."""
    found: collections.Counter[str] = collections.Counter()
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(str(folder), profiler_options=options):
        yield found
    (file,) = folder.rglob("*.xplane.pb")
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            found.update(event.name for event in line.events if event.name.startswith("PjitFunction"))


class Adds(resfit.callbacks.Callback):
    """A callback that computes on the device in each batch."""

    def __init__(self) -> None:
        self.total = jnp.zeros(())

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.total = self.total + 1


class Listens(resfit.callbacks.Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None: ...

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None: ...


@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_a_batch_has_a_log_only_if_a_callback_listens(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trained, made = warm(), []

    class Counted(LazyLogs):
        def __init__(self, *arguments: Any) -> None:
            made.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr("resfit.trainer.loop.evaluator.LazyLogs", Counted)
    monkeypatch.delattr(resfit.callbacks.History, "on_train_batch_end")  # listens in every fit

    def logs_of(steps: int, **arguments: Any) -> int:
        made.clear()
        CALLS[call](trained, *data(steps), **arguments)
        return len(made)

    assert logs_of(2) == logs_of(6)
    both = {"callbacks": [Listens(), Listens()]}  # share the log
    assert logs_of(6, **both) - logs_of(2, **both) == 4


@pytest.mark.parametrize("call", CALLS)
def test_a_step_is_one_call_of_one_program(call: str, tmp_path: Path) -> None:
    trained = warm()

    def executed(steps: int, **arguments: Any) -> collections.Counter[str]:
        x, y = data(steps)
        CALLS[call](trained, x, y)  # looks at the arrays
        with executions(tmp_path / f"{steps}{len(arguments)}") as found:
            CALLS[call](trained, x, y, **arguments)
        return found

    few, some, many = map(executed, (2, 4, 6))
    assert some - few == many - some
    program = jax.jit(jnp.negative).lower(0.0).compile()
    with executions(tmp_path / "once") as once:
        program(0.0)
    assert list((some - few).values()) == [2 * sum(once.values())]
    if call == "fit":
        added = executed(6, callbacks=[Adds()]) - many
        assert any("add" in name for name in added)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_a_batch_is_transferred_once_on_an_accelerator_and_never_on_a_cpu(
    call: str, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Placement, "feeds_ahead", property(lambda self: ahead))
    trained, put = warm(), jax.device_put
    CALLS[call](trained, *data(2))  # puts the mask of whole batches
    transfers: list[Any] = []

    def counted(*arguments: Any, **keywords: Any) -> Any:
        transfers.append(arguments)
        return put(*arguments, **keywords)

    monkeypatch.setattr(jax, "device_put", counted)

    def number(steps: int) -> int:
        transfers.clear()
        CALLS[call](trained, *data(steps))
        return len(transfers)

    assert number(6) - number(2) == (4 if ahead else 0)


@pytest.mark.parametrize(("call", "most"), [("fit", 112), ("predict", 110)])
def test_a_batch_costs_few_calls_of_functions(call: str, most: int) -> None:
    trained = warm()
    CALLS[call](trained, *data(2))

    def calls_of(steps: int) -> int:
        x, y = data(steps)
        profile = cProfile.Profile()
        with profile:
            CALLS[call](trained, x, y)
        entries: Any = profile.getstats()
        return sum(entry.callcount for entry in entries)

    few, many = calls_of(4), calls_of(24)
    assert (many - few) / 20 < most


def recorded(owner: Any, name: str, calls: list[str]) -> Callable[..., Any]:
    """Return a function of a module that also adds its name to a list at each call."""
    function = getattr(owner, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        calls.append(name)
        return function(*arguments, **keywords)

    return call


@pytest.mark.parametrize(("call", "most"), [("fit", 2), ("evaluate", 2), ("predict", 3)])
def test_the_arrays_of_a_batch_are_listed_to_place_it_to_find_its_program_and_to_check_its_outputs(
    call: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = warm()
    CALLS[call](trained, *data(2))
    passes: list[str] = []
    for name in ("tree_flatten", "tree_leaves"):
        both = recorded(tree_util, name, passes)
        for module in (tree_util, jax.tree_util):
            monkeypatch.setattr(module, name, both)

    def passes_of(steps: int) -> int:
        x, y = data(steps)
        passes.clear()
        CALLS[call](trained, x, y)
        return len(passes)

    few, many = passes_of(4), passes_of(24)
    assert many - few == most * 20


def test_an_evaluation_step_takes_and_returns_one_array_for_the_sums_of_each_dtype() -> None:
    trained = warm()
    CALLS["evaluate"](trained, *data(2))
    ((program,),) = [step._programs.values() for step, _ in trained._control.compiled.evaluator._steps.values()]
    sums, loss, _ = program.run.out_info
    assert len({leaf.dtype for leaf in sums}) == len(sums) < len(trained._control.compiled.evaluator.empty)
    assert loss.shape == ()


@pytest.fixture
def walks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that receives the name of each function of NNX that walks a module."""
    found: list[str] = []
    for name in WALKS:
        monkeypatch.setattr(nnx, name, recorded(nnx, name, found))
    return found


@pytest.mark.parametrize("call", CALLS)
def test_a_repeated_call_walks_no_module_and_compiles_nothing(call: str, walks: list[str]) -> None:
    trained, (x, y) = model(), data(2)
    CALLS[call](trained, x, y)
    assert walks
    walks.clear()
    with counting_compilations(known_programs=True) as compilations:
        CALLS[call](trained, x, y)
    assert (walks, compilations) == ([], [])
    trained.module.head = nnx.Linear(64, 3, rngs=nnx.Rngs(1))  # another object
    CALLS[call](trained, x, y)
    assert "iter_graph" in walks


@pytest.mark.parametrize("keeps", [False, True])
def test_the_arrays_on_the_device_do_not_accumulate_in_an_epoch(keeps: bool) -> None:
    held: list[int] = []
    kept: list[Any] = []

    class Counts(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            held.append(len(jax.live_arrays()))
            kept.extend([logs] * keeps)  # the negative control

    steps = 40
    fit(model(), *data(steps), callbacks=[Counts()])
    assert (max(held[steps // 2 :]) > max(held[: steps // 2])) is keeps
