"""A reference of a model: states as values, and a twin model that is never interrupted.

A state is its arrays and a count of passes. The result of a call depends on the state, the setup and the arguments of
the call alone. So one model per setup, set to the state in question, gives all expected results.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange
from flax import nnx

import resfit
from resfit.backends import program_cache as programs
from resfit.callbacks import Callback, EarlyStopping, ReduceLROnPlateau
from tests.helpers import CLASSES, compiled_of, context_of, images, labels, state_of, values

EXAMPLES, BATCH = 10, 4  # two full batches a pass, and a tail of two
STEPS = 3
VALIDATION = (images(6, seed=5), labels(6, seed=5))


class ThinNet(nnx.Module):
    """Dense layer, BatchNorm, dropout, dense layer: every part of a state, and fast to trace."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.body = nnx.Linear(64, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.body(rearrange(x, "n h w c -> n (h w c)"))))
        return self.head(self.dropout(x))


# Frozen parts, and the arguments of compile.
SETUPS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "sgd": ((), {"optimizer": "sgd", "learning_rate": 0.1}),
    "adamw, averages, schedule": ((), {"optimizer": "adamw", "learning_rate": "cosine", "ema": 0.9}),
    "a part frozen": (("body",), {"optimizer": "sgd", "learning_rate": resfit.schedules.Linear(0.1), "ema": 0.9}),
    "mixup in slices": (
        (),
        {
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "augment": resfit.augment.mixup(num_classes=CLASSES),
            "gradient_accumulation_steps": 2,
        },
    ),
}


def compile_(model: resfit.Model, setup: str, *, own_programs: bool = False) -> None:
    """Compile a model with the programs of an equal model, or with its own to test that tracing depends on no state."""
    if own_programs:
        programs.PROGRAMS.clear()
    frozen, arguments = SETUPS[setup]
    model.freeze(*frozen)
    model.compile(dispatch="jit", **arguments)


def scheduled(setup: str) -> bool:
    return not isinstance(SETUPS[setup][1]["learning_rate"], float)


def averaged(setup: str) -> bool:
    return "ema" in SETUPS[setup][1]


class Plan(NamedTuple):
    """A fit.

    Attributes:
      epochs: their number.
      steps_per_epoch: None for one pass.
      validation: "none", "epochs" or "steps", two of them.
      asked: the batch after which a callback sets model.stop_training; 0 for never.
      best: True if EarlyStopping restores the best weights, and a plateau lowers the learning rate.
    """

    epochs: int
    steps_per_epoch: int | None
    validation: str
    asked: int
    best: bool


class Remembers(Callback):
    """Records its calls, and requests a stop after a number of batches."""

    def __init__(self, asked: int) -> None:
        self._asked = asked
        self.seen: dict[str, Any] = {}

    def on_train_begin(self, logs: Any = None) -> None:
        self.seen = {"batches": 0, "tests": [], "epochs": [], "end": None}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen["batches"] += 1
        if self.seen["batches"] == self._asked:
            self.model.stop_training = True

    def on_test_end(self, logs: Any = None) -> None:
        self.seen["tests"].append(dict(logs))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen["epochs"].append([epoch, dict(logs)])

    def on_train_end(self, logs: Any = None) -> None:
        self.seen["end"] = dict(logs)

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def fit(model: resfit.Model, plan: Plan, setup: str, *more: Callback, **arguments: Any) -> dict[str, Any]:
    """Fit as planned, and return the history and the states of callbacks."""
    remembers = Remembers(plan.asked)
    callbacks: list[Callback] = [remembers]
    if plan.best:
        monitor = "loss" if plan.validation == "none" else "val_loss"
        callbacks += [EarlyStopping(monitor, patience=3, restore_best_weights=True)]
        callbacks += [] if scheduled(setup) else [ReduceLROnPlateau(monitor, patience=1, min_delta=10)]
    history = model.fit(
        **{
            "x": images(EXAMPLES),
            "y": labels(EXAMPLES),
            "batch_size": BATCH,
            "epochs": plan.epochs,
            "steps_per_epoch": plan.steps_per_epoch,
            "validation_data": None if plan.validation == "none" else VALIDATION,
            "validation_every": 2 if plan.validation == "steps" else None,
            "callbacks": [*callbacks, *more],
            "verbose": 0,
            **arguments,
        }
    )
    return {
        "history": history.history,
        "validations": history.validations,
        "epoch": history.epoch,
        "callbacks": [callback.state_dict() for callback in callbacks],
    }


class State(NamedTuple):
    """Everything that a call can depend on or change.

    Attributes:
      leaves: of the run, on the host.
      passes: over the data, begun since compile.
    """

    leaves: tuple[np.ndarray, ...]
    passes: int

    @property
    def steps(self) -> int:
        return int(self.leaves[-1])


def state(model: resfit.Model) -> State:
    """Return the state of a model, including assignments to its module."""
    state_of(model).visible()
    return State(tuple(np.array(leaf) for leaf in state_of(model).leaves), state_of(model).epoch)


def same(a: State, b: State) -> bool:
    """Return True if two states are equal bit for bit."""
    return a.passes == b.passes and all(u.tobytes() == v.tobytes() for u, v in zip(a.leaves, b.leaves, strict=True))


@functools.cache
def first(setup: str) -> tuple[resfit.Model, State]:
    """Return the reference model of a setup, and its state after compile."""
    model = resfit.Model(ThinNet(rngs=nnx.Rngs(0)))
    compile_(model, setup)
    return model, state(model)


def at(setup: str, where: State) -> resfit.Model:
    """Return the reference model of a setup in another state."""
    model, _ = first(setup)
    state_of(model).replace(tuple(context_of(model).placement.replicate(list(where.leaves), copy=True)))
    state_of(model).epoch = where.passes
    state_of(model).publish()
    return model


def names(setup: str) -> list[str]:
    return state_of(first(setup)[0]).layout.visible_names


def with_values(
    setup: str, where: State, held: dict[str, np.ndarray], averages: Mapping[str, np.ndarray] = MappingProxyType({})
) -> State:
    """Return a state with these parameters and statistics, and with these averages if the setup has averages."""
    new = tuple(held[name] for name in names(setup))
    if averaged(setup):
        after = {**chosen(setup, where, "ema"), **averages}
        new += tuple(after[name] for name in names(setup))
    return where._replace(leaves=(*new, *where.leaves[len(new) :]))


def with_rate(setup: str, where: State, rate: float) -> State:
    """Return a state with this learning rate."""
    model, leaves = first(setup)[0], list(where.leaves)
    leaves[state_of(model).layout.n_model + compiled_of(model).rate.index] = np.float32(rate)
    return where._replace(leaves=tuple(leaves))


def compiled(setup: str, held: dict[str, np.ndarray]) -> State:
    """Return the state after compile of a module with these values: averages start at the values."""
    return with_values(setup, first(setup)[1], held, held)


def chosen(setup: str, where: State, weights: str = "raw") -> dict[str, np.ndarray]:
    """Return the parameters and statistics of a state, by name."""
    n = len(names(setup))
    leaves = where.leaves[:n] if weights == "raw" else where.leaves[n : 2 * n]
    return dict(zip(names(setup), leaves, strict=True))


class Trail(Callback):
    """Records every state of a run."""

    def __init__(self) -> None:
        self.states: list[State] = []

    def _write(self, *_: Any) -> None:
        self.states.append(state(self.model))

    on_train_begin = on_train_batch_end = on_epoch_end = _write


class Run(NamedTuple):
    """An uninterrupted run.

    Attributes:
      says: its history and the states of callbacks.
      end: the last state.
      trail: every state of the run.
    """

    says: dict[str, Any]
    end: State
    trail: Sequence[State]

    @property
    def steps(self) -> int:
        return self.trail[-1].steps - self.trail[0].steps


def run(setup: str, where: State, plan: Plan) -> Run:
    """Fit from a state."""
    model, trail = at(setup, where), Trail()
    says = fit(model, plan, setup, trail)
    return Run(says, state(model), trail.states)


def after(setup: str, where: State, call: Callable[[resfit.Model], Any]) -> tuple[Any, State]:
    """Return the result of a call, and the state after it, starting from a state."""
    model = at(setup, where)
    result = call(model)
    return result, state(model)


def new_module(seed: int) -> tuple[ThinNet, dict[str, np.ndarray]]:
    """Return a network and its values."""
    module = ThinNet(rngs=nnx.Rngs(seed))
    return module, holds(module)


def holds(module: ThinNet) -> dict[str, np.ndarray]:
    """Return the values of a network except its generator, which no step uses."""
    return {name: value for name, value in values(module).items() if "rngs" not in name}
