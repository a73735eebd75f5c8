"""Two real processes with two devices each give the training of one, and never wait forever for each other."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import resfit
from resfit.callbacks import Checkpoint
from resfit.errors import DistributedError, ResumeError
from tests.helpers import BATCH, assert_close, assert_same, images, labels, state_of, values
from tests.multihost import worker

PROCESSES = 2

pytestmark = pytest.mark.xdist_group("two processes")


class Pair:
    """Processes that join once and run one scenario after another. After a failure, new processes replace them.

    Args:
      folder: the folder of their stderr files.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[str]] = []

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-W", "error", "-m", "tests.multihost.worker", str(port)]
        for i in range(PROCESSES):
            with (self._folder / f"{i}.txt").open("w") as said:
                self._started.append(
                    subprocess.Popen(
                        [*command, str(i), str(PROCESSES)],
                        cwd=worker.ROOT,
                        env=os.environ | {"JAX_PLATFORMS": "cpu"},
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        stderr=said,
                        text=True,
                    )
                )

    def _kill(self) -> None:
        for process in self._started:
            process.kill()

    def _close(self) -> list[int]:
        for process in self._started:
            process.stdin.close()  # of all processes before waiting, because none exits before the others
        for process in self._started:
            with process.stdout:
                process.stdout.read()
        codes = [process.wait() for process in self._started]
        self._started = []
        return codes

    def run(self, scenario: str, folder: Path) -> list[dict[str, Any]]:
        """Return the findings of each process."""
        if not self._started:
            self._start()
        timer = threading.Timer(300, self._kill)
        timer.start()
        for process in self._started:
            process.stdin.write(f"{scenario} {folder}\n")
            process.stdin.flush()
        # XLA prints to the same stream. A process that has ended prints nothing.
        done = ["done\n" in iter(process.stdout.readline, "") for process in self._started]
        timer.cancel()
        if not all(done):
            self._kill()
            self._close()
            raise AssertionError("\n".join((self._folder / f"{i}.txt").read_text() for i in range(PROCESSES)))
        return [np.load(folder / f"{i}.npy", allow_pickle=True).item() for i in range(PROCESSES)]

    def end(self) -> None:
        """Wait until both processes end by themselves."""
        timer = threading.Timer(300, self._kill)
        timer.start()
        codes = self._close()
        timer.cancel()
        assert not any(codes), codes


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    made = Pair(tmp_path_factory.mktemp("said"))
    yield made
    made.end()


@pytest.mark.slow
def test_each_of_twenty_steps_from_the_same_state_equals_that_of_one_process(pair: Pair, tmp_path: Path) -> None:
    expected = {}
    for kind in ("global", "per_replica"):
        # One process with four devices computes the same per replica as two processes with two.
        model = worker.model_of(dispatch="jit" if kind == "global" else "sharded", batch_norm=kind)
        for step in range(worker.STEPS):
            np.savez(tmp_path / f"{kind}_{step}.npz", *map(np.asarray, state_of(model).leaves))
            x, y, weight = worker.step_batch(step)
            loss, _ = model.train_on_batch(x, y, sample_weight=weight)
            expected[f"{kind} {step}"] = {"loss": loss, **values(model.module)}
    for found in pair.run("same_steps", tmp_path):
        assert_close(found, expected, 1e-5)


def test_a_fit_with_partial_batches_equals_that_of_one_process_and_only_the_first_writes(
    pair: Pair, tmp_path: Path
) -> None:
    model = worker.model_of(dispatch="jit")
    history = model.fit(
        images(22), labels(22), batch_size=BATCH, epochs=2, validation_data=(images(9, seed=5), labels(9)),
        validation_batch_size=7, verbose=0,
    )  # fmt: skip
    x, y = images(15, seed=7), labels(15)
    first, second = pair.run("same_fit", tmp_path)
    assert first.pop("bar").startswith("Evaluate")
    assert second.pop("bar") == ""
    assert_same(first, second)
    assert_close(first["history"], history.history, 1e-4)
    assert_close(first["values"], values(model.module), 1e-4)
    assert_close(first["logits"], model.predict(x, verbose=0), 1e-4)
    assert_close(first["results"], model.evaluate(x, y, verbose=0), 1e-4)
    assert [path.parent.name for path in tmp_path.glob("*/model.safetensors")] == ["0"]


@pytest.mark.slow
def test_processes_agree_before_they_continue_stop_or_fail(pair: Pair, tmp_path: Path) -> None:
    first, second = pair.run("agreement", tmp_path)

    assert_same(first["stop"], second["stop"])
    for found in (first, second):
        assert [value for name, value in found.items() if name.startswith("batches")] == [2, 2, 2, 15]
        assert found["interrupt"].startswith("KeyboardInterrupt")
        assert found["split data"].startswith("DataError: The processes hold different data: a label differs")
        assert found["other values"].startswith("DataError: The processes hold different initial values: conv.kernel")
        assert found["other kind"].startswith("CompileError: Got dispatch='jit' with 2 processes")
        assert "2 processes train together" in found["cache"]
        for name in ("epochs", "steps_per_epoch", "validation", "callbacks", "seed"):
            said = found[f"other {name.removesuffix('_per_epoch')}"]
            assert said.startswith(f"DataError: The processes hold different arguments of compile or fit: {name}, here")
    assert first["failure"].startswith("ProcessFailed: Process 1 failed, and process 0 stops with it")
    assert second["failure"].startswith("ZeroDivisionError")
    assert first["an empty stream"].startswith("ProcessFailed: Process 1 failed")
    assert "yielded no batch" in second["an empty stream"]
    for found in (first, second):
        assert "of process 1 are of another kind than those of process 0" in found["other images"]
    assert_same(first["again"], second["again"])

    # One step for each batch that any process has: of 4 + 4, 4 + 3 and 4 + 0 rows.
    whole = worker.model_of(dispatch="jit")

    def batches() -> Any:
        for i, lengths in enumerate([(4, 4), (4, 3), (4, 0)]):
            parts = [(images(n, seed=10 * p + i), labels(n, seed=10 * p + i)) for p, n in enumerate(lengths) if n]
            yield tuple(np.concatenate(column) for column in zip(*parts, strict=True))

    history = whole.fit(batches, epochs=2, verbose=0)
    assert_same(first["unequal streams"], second["unequal streams"])
    assert_close(first["unequal streams"], {"history": history.history, "values": values(whole.module)}, 1e-4)


@pytest.mark.slow
def test_a_run_of_two_processes_resumes_exactly_in_two_and_inexactly_in_one(pair: Pair, tmp_path: Path) -> None:
    first, second = pair.run("stopped_and_resumed", tmp_path)
    for found in (first, second):
        assert found["stopped exit"] == found["left exit"] == 143
        assert_same(found["stopped leaves"], found["whole leaves"])
        assert_same(found["stopped history"], found["whole history"])
        assert "holds checkpoints of a run" in found["refused"]
    assert_same(first, second)

    def one() -> resfit.Model:
        return worker.model_of(dispatch="jit", ema=0.9)

    folder = tmp_path / "runs" / "left"
    with pytest.raises(ResumeError, match=r"devices was 4, is 1; .*processes was 2, is 1"):
        worker.resumable_fit(one(), [Checkpoint(folder)], resume=True)
    model = one()
    history = worker.resumable_fit(model, [Checkpoint(folder), worker.Acts(False, None)], resume="inexact")
    assert_close(history.history, first["whole history"], 1e-3)
    assert_close([np.asarray(leaf) for leaf in state_of(model).leaves], first["whole leaves"], 1e-3)


@pytest.mark.slow
def test_a_run_of_one_process_resumes_inexactly_in_two(pair: Pair, tmp_path: Path) -> None:
    def leaves(model: resfit.Model) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in state_of(model).leaves]

    whole, begun = (worker.model_of(dispatch="jit", ema=0.9) for _ in range(2))
    expected = worker.resumable_fit(whole, [])
    stops = worker.Acts(True, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        worker.resumable_fit(begun, [Checkpoint(tmp_path / "runs" / "alone"), stops], resume=True)
    first, second = pair.run("gone_on_in_more", tmp_path)
    assert_same(first, second)
    assert_close(first["history"], expected.history, 1e-3)
    assert_close(first["leaves"], leaves(whole), 1e-3)
    with pytest.raises(AssertionError):
        assert_close(leaves(begun), leaves(whole), 1e-3)  # the resumed run had steps left


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"coordinator": "10.0.0.1:1"}, "Add processes and process"),
        ({"coordinator": "10.0.0.1", "processes": 2, "process": 0}, "Expected coordinator as 'host:port'"),
        ({"coordinator": "10.0.0.1:1", "processes": 2, "process": 2}, "Expected process to be one of 0 to 1, got 2"),
        ({"coordinator": "127.0.0.1:1", "processes": 1, "process": 0}, "before any other use of JAX"),
    ],
)
def test_invalid_arguments_of_initialize_raise(arguments: dict[str, Any], said: str) -> None:
    jax.devices()  # uses a device before `initialize`
    with pytest.raises(DistributedError, match=said):
        resfit.distributed.initialize(**arguments)


def test_without_arguments_a_cluster_that_does_not_name_its_processes_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def found_nothing(*_: Any, **__: Any) -> None:
        raise ValueError("coordinator_address should be defined.")  # the message of JAX

    monkeypatch.setattr(jax.distributed, "initialize", found_nothing)
    with pytest.raises(DistributedError, match="Expected a TPU pod, SLURM or Open MPI"):
        resfit.distributed.initialize()
