"""One run with every part that a resume could lose, and ways to stop it."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import reduce
from flax import nnx

import resfit
from resfit.callbacks import Callback, Checkpoint, EarlyStopping, ReduceLROnPlateau
from tests.helpers import CLASSES, TinyNet, compiled, compiled_of, images, labels, state_of, values

EXAMPLES, BATCH, EPOCHS = 22, 8, 3
STEPS = EPOCHS * 3  # two full batches an epoch, and a tail of six


class Net(nnx.Module):
    """Convolution, BatchNorm, dropout, dense layer."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 4, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)
        self.head = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.conv(x)))
        return self.head(self.dropout(reduce(x, "n h w c -> n c", "mean")))


def model(**arguments: Any) -> resfit.Model:
    """Return a model compiled with mixup, averages, a schedule with warmup, and two slices per batch."""
    made = resfit.Model(Net(rngs=nnx.Rngs(0)))
    made.compile(
        **{
            "optimizer": "adamw",
            "learning_rate": resfit.schedules.WarmupCosine(peak=0.02, warmup_epochs=1),
            "augment": resfit.augment.mixup(num_classes=CLASSES),
            "ema": 0.9,
            "gradient_accumulation_steps": 2,
            "dispatch": "jit",
            **arguments,
        }
    )
    return made


def small(kind: type[nnx.Module] = TinyNet, **arguments: Any) -> resfit.Model:
    """Return a model compiled with plain SGD."""
    made: resfit.Model = compiled(kind(rngs=nnx.Rngs(0)), **arguments)
    return made


class Counts(Callback):
    """Counts the calls of hooks, and records the loss of each epoch."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {"batches": 0, "tests": 0, "losses": []}

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen["batches"] += 1

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen["tests"] += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen["losses"].append(logs["loss"])

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {**self.seen, "losses": list(self.seen["losses"])}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


class Stops(Callback):
    """Calls a function at the n-th call of a hook."""

    def __init__(self, at: int, action: Callable[[], Any], hook: str = "on_train_batch_end") -> None:
        self._at, self._action, self._calls = at, action, 0
        setattr(self, hook, self._stop)

    def _stop(self, *_: Any) -> None:
        self._calls += 1
        if self._calls == self._at:
            self._action()


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def arrays() -> dict[str, Any]:
    return {"x": images(EXAMPLES), "y": labels(EXAMPLES), "batch_size": BATCH}


def run(
    made: resfit.Model,
    folder: Path,
    *extra: Callback,
    data: Any = arrays,
    every: int = 2,
    keep: int = 2,
    **arguments: Any,
) -> dict[str, Any]:
    """Fit, and return every result of the run."""
    counts, stopping = Counts(), EarlyStopping(patience=5, restore_best_weights=True)
    plateau = ReduceLROnPlateau(patience=1) if not compiled_of(made).rate.spans_epochs else None
    history = made.fit(
        **{
            **data(),
            "epochs": EPOCHS,
            "validation_data": (images(9, seed=5), labels(9)),
            "verbose": 0,
            "callbacks": [
                Checkpoint(folder, every=every, keep=keep, best="val_loss"),
                counts,
                stopping,
                *([plateau] if plateau else []),
                *extra,
            ],
            **arguments,
        }
    )
    return {
        "history": history.history,
        "validations": history.validations,
        "epoch": history.epoch,
        "counts": counts.seen,
        "stopping": stopping.state_dict(),
        "values": values(made.module),
        "leaves": [np.asarray(leaf) for leaf in state_of(made).leaves],
    }


@contextlib.contextmanager
def stopped(*kinds: type[BaseException]) -> Iterator[None]:
    """Expect that the block raises one of these exceptions."""
    try:
        yield
    except kinds:
        return
    raise AssertionError(f"nothing stopped the run; expected one of {kinds}")
