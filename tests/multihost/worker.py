"""A process of the multihost tests: `python -m tests.multihost.worker PORT PROCESS PROCESSES`.

It reads "SCENARIO FOLDER" lines from its input, one after the other. It writes the results of each scenario to
FOLDER/PROCESS.npy with NumPy, and then prints "done".
"""

import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

import resfit
from resfit.callbacks import Callback, Checkpoint, EarlyStopping
from resfit.errors import ResfitError
from tests.helpers import BATCH, TinyNet, context_of, images, labels, state_of, values

ROOT = Path(__file__).parents[2]
DEVICES = 4  # of all processes together
STEPS = 20


def model_of(**arguments: Any) -> resfit.Model:
    model = resfit.Model(TinyNet(rngs=nnx.Rngs(arguments.pop("net_seed", 0))))
    model.compile("sgd", learning_rate=0.1, **arguments)
    return model


def step_batch(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return batch number `step`: of 8 rows, or of 6 or 3, which four devices do not divide."""
    n = (8, 6, 3)[step % 3]
    return images(n, seed=step), labels(n, seed=step), np.linspace(0.5, 2, n).astype(np.float32)


def same_steps(folder: Path, process: int, processes: int) -> dict[str, Any]:
    """Run twenty steps, each from the state that one device had before it."""
    found: dict[str, Any] = {}
    for kind in ("global", "per_replica"):
        model = model_of(batch_norm=kind)
        for step in range(STEPS):
            with np.load(folder / f"{kind}_{step}.npz") as file:
                before = dict(file)
            state = state_of(model)
            state.replace(
                tuple(context_of(model).placement.replicate([before[f"arr_{i}"] for i in range(len(state.leaves))]))
            )
            x, y, weight = step_batch(step)
            rows = slice(process * len(x) // processes, (process + 1) * len(x) // processes)
            loss, _ = model.train_on_batch(x[rows], y[rows], sample_weight=weight[rows])
            found[f"{kind} {step}"] = {"loss": loss, **values(model.module)}
    return found


def same_fit(folder: Path, process: int, processes: int) -> dict[str, Any]:
    """Fit with a partial batch and a validation that four devices do not divide, then call everything else."""
    model = model_of()
    history = model.fit(
        images(22), labels(22), batch_size=BATCH, epochs=2, validation_data=(images(9, seed=5), labels(9)),
        validation_batch_size=7, verbose=0,
    )  # fmt: skip
    folder.joinpath(str(process)).mkdir()
    model.save(folder / str(process) / "model.safetensors")
    x, y = images(15, seed=7), labels(15)
    return {
        "history": history.history,
        "values": values(model.module),
        "logits": model.predict(x, batch_size=7, verbose=0),
        "results": model.evaluate(x, y, batch_size=7, verbose=0),
        "bar": verbose_output(model),
    }


def verbose_output(model: resfit.Model) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        model.evaluate(images(8), labels(8), batch_size=7, verbose=2)
    return text.getvalue()


class Acts(Callback):
    """Call a function in one process at the end of the second batch."""

    def __init__(self, mine: bool, action: Any) -> None:
        self.mine, self.action, self.batches = mine, action, 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        if self.mine and self.batches == 2:
            self.action(self.model)


def agreement(folder: Path, process: int, processes: int) -> dict[str, Any]:
    """Stop, interrupt or fail one process, or give it other data: all processes must end in the same way."""
    second = process == 1
    found: dict[str, Any] = {}

    def attempt(name: str, run: Any) -> None:
        try:
            found[name] = run()
        except (ResfitError, KeyboardInterrupt, ZeroDivisionError) as error:
            found[name] = f"{type(error).__name__}: {error}"

    def fit_with(action: Any) -> Any:
        acts, model = Acts(second, action), model_of()
        try:
            model.fit(images(40), labels(40), batch_size=BATCH, epochs=3, callbacks=acts, verbose=0)
        finally:
            found[f"batches {len(found)}"] = acts.batches
        return values(model.module)

    attempt("stop", lambda: fit_with(lambda model: setattr(model, "stop_training", True)))
    attempt("interrupt", lambda: fit_with(lambda model: os.kill(os.getpid(), signal.SIGINT)))
    attempt("failure", lambda: fit_with(lambda model: 1 / 0))

    def stream(lengths: list[list[int]]) -> Any:
        def batches() -> Iterator[Any]:
            for i, n in enumerate(lengths[process]):
                yield images(n, seed=10 * process + i), labels(n, seed=10 * process + i)

        model = model_of()
        history = model.fit(batches, epochs=2, verbose=0)
        return {"history": history.history, "values": values(model.module)}

    attempt("unequal streams", lambda: stream([[4, 4, 4], [4, 3]]))
    size = 8 + process
    attempt("other images", lambda: model_of().fit([(np.zeros((4, size, size, 1), np.float32), labels(4))], verbose=0))
    attempt("an empty stream", lambda: stream([[4, 4], []]))

    x, y = images(40), labels(40)
    half = slice(20 * process, 20 * process + 20)
    attempt("split data", lambda: model_of().fit(x[half], y[half], verbose=0))
    attempt("other values", lambda: model_of(net_seed=process))
    attempt("other kind", lambda: model_of(dispatch="jit"))
    attempt("cache", lambda: model_of().fit(x, y, cache="device", verbose=0))
    for name, arguments in {
        "epochs": {"epochs": 2 + process},
        "steps": {"steps_per_epoch": 2 + process},
        "validation": {"validation_data": (x, y) if second else None},
        "callbacks": {"callbacks": [EarlyStopping("loss")] if second else []},
    }.items():
        attempt(f"other {name}", lambda arguments=arguments: model_of().fit(x, y, verbose=0, **arguments))
    attempt("other seed", lambda: model_of(seed=process).fit(x, y, verbose=0))
    attempt("again", lambda: fit_with(lambda model: None))  # after all of this, the processes still agree
    return found


def stopped_and_resumed(folder: Path, process: int, processes: int) -> dict[str, Any]:
    """Resume a run after one process got a signal; leave another run for fewer processes."""
    found: dict[str, Any] = {}

    def run(name: str, *, resume: bool = True, stop: bool = False) -> None:
        model = model_of(ema=0.9)
        terminate = Acts(stop and process == 1, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        callbacks = [Checkpoint(folder / "runs" / name, every=1), terminate]
        try:
            history = resumable_fit(model, callbacks, resume=resume)
            found[f"{name} history"] = history.history
            found[f"{name} leaves"] = [np.asarray(leaf) for leaf in state_of(model).leaves]
        except SystemExit as error:
            found[f"{name} exit"] = error.code

    run("whole")
    run("stopped", stop=True)
    run("stopped")
    run("left", stop=True)
    try:
        run("stopped", resume=False)
    except ResfitError as error:
        found["refused"] = f"{type(error).__name__}: {error}"
    return found


def gone_on_in_more(folder: Path, process: int, processes: int) -> dict[str, Any]:
    """Resume a run that was started by a single process."""
    model = model_of(ema=0.9)
    callbacks = [Checkpoint(folder / "runs" / "alone"), Acts(False, None)]
    history = resumable_fit(model, callbacks, resume="inexact")
    return {"history": history.history, "leaves": [np.asarray(leaf) for leaf in state_of(model).leaves]}


def resumable_fit(model: resfit.Model, callbacks: Any, **arguments: Any) -> Any:
    return model.fit(
        images(22), labels(22), batch_size=BATCH, epochs=3, validation_data=(images(9, seed=5), labels(9)), verbose=0,
        callbacks=callbacks, **arguments,
    )  # fmt: skip


def main() -> None:
    port, process, processes = map(int, sys.argv[1:])
    jax.config.update("jax_num_cpu_devices", DEVICES // processes)
    jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    resfit.distributed.initialize(f"127.0.0.1:{port}", processes=processes, process=process)
    for line in sys.stdin:
        scenario, _, folder = line.strip().partition(" ")
        found = globals()[scenario](Path(folder), process, processes)
        np.save(Path(folder) / f"{process}.npy", np.array(found, dtype=object))
        print("done", flush=True)


if __name__ == "__main__":
    main()
