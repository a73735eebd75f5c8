"""Tests that need a GPU or a TPU: `make accelerator` runs them. They are skipped on other devices."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import resfit
from resfit.callbacks import Checkpoint, LambdaCallback
from resfit.errors import CompileError
from tests.accelerator import twin
from tests.faults.runs import Stops, interrupt, stopped
from tests.helpers import assert_same, values
from tests.thin_variants import VARIANTS, thin
from tests.variants import images, labels

ROOT = Path(__file__).parents[2]
PLATFORM = jax.default_backend()
pytestmark = pytest.mark.skipif(PLATFORM == "cpu", reason="there is no accelerator; `make accelerator` needs one")


def elsewhere(*arguments: str, **environment: str) -> str:
    """Return the output of a separate process that runs in this repository."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits  # slow to import

    x, y = load_digits(return_X_y=True)
    return (x * 15.9).astype(np.uint8).reshape(-1, 8, 8, 1), y.astype(np.int32)


def model_for_digits(**arguments: Any) -> resfit.Model:
    net = resfit.create_model("resnet20", num_classes=10, in_channels=1, depths=(1, 1), widths=(16, 32))
    model = resfit.Model(net)
    model.compile("adamw", learning_rate=0.003, metrics=["accuracy"], **arguments)
    return model


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the distance of two arrays relative to the norm of the second one."""
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-6))


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_equals_that_on_a_cpu(variant: str, tmp_path: Path) -> None:
    elsewhere("-m", "tests.accelerator.twin", str(tmp_path / "cpu.npz"), variant, JAX_PLATFORMS="cpu")
    try:
        here = twin.trained(variant)
    finally:
        jax.config.update("jax_default_matmul_precision", None)
    with np.load(tmp_path / "cpu.npz") as there:
        assert there.keys() == here.keys()
        assert relative(here["before"], there["before"]) < 1e-5
        # Differences in the last bit grow at every step, because batch norms average over few values.
        far = {name: gap for name in here if (gap := relative(here[name], there[name])) > 5e-3}
    assert not far


@pytest.mark.parametrize(
    "how",
    [{}, {"precision": "bfloat16"}, {"dispatch": "sharded"}, {"dispatch": "pmap"}, {"gradient_accumulation_steps": 2}],
    ids=str,
)
def test_the_loss_decreases(how: dict[str, Any]) -> None:
    x, y = digits()
    model = model_for_digits(**how)
    model.fit(x[:1500], y[:1500], batch_size=100, epochs=20, verbose=0)
    assert model.evaluate(x[1500:], y[1500:], verbose=0)[1] > 0.9


def test_images_can_be_on_the_device() -> None:
    x, y = digits()
    streamed, kept = model_for_digits(), model_for_digits()
    streamed.fit(x, y, batch_size=100, epochs=2, verbose=0)
    kept.fit(x, y, batch_size=100, epochs=2, verbose=0, cache="device")
    assert relative(np.array(kept.history.history["loss"]), np.array(streamed.history.history["loss"])) < 1e-2


def test_nothing_is_read_between_the_steps_of_an_epoch() -> None:
    """On a CPU this guard detects nothing, because a read is not a transfer."""
    x, y = digits()
    model = model_for_digits()
    model.fit(x[:1000], y[:1000], batch_size=100, verbose=0)

    def guard(kind: str) -> None:
        jax.config.update("jax_transfer_guard_device_to_host", kind)

    hooks: Any = LambdaCallback(
        on_train_batch_begin=lambda step, _: guard("disallow_explicit") if step == 1 else None,
        on_train_batch_end=lambda step, _: guard("allow") if step == 8 else None,
    )
    try:
        model.fit(x[:1000], y[:1000], batch_size=100, verbose=0, callbacks=[hooks])
        guard("disallow_explicit")
        with pytest.raises(Exception, match="Disallowed device-to-host transfer"):
            np.asarray(jax.numpy.arange(3) + 1)
    finally:
        guard("allow")


def test_a_stopped_and_resumed_run_ends_bit_for_bit_as_an_uninterrupted_one(tmp_path: Path) -> None:
    """With XLA's deterministic operations, which `make accelerator` sets."""
    assert "--xla_gpu_deterministic_ops=true" in os.environ.get("XLA_FLAGS", "") or PLATFORM == "tpu"
    x, y = digits()
    arguments: dict[str, Any] = {"x": x[:1000], "y": y[:1000], "batch_size": 100, "epochs": 2, "verbose": 0}
    whole, cut, resumed = (model_for_digits(precision="bfloat16") for _ in range(3))
    whole.fit(**arguments)
    with stopped(KeyboardInterrupt):
        cut.fit(**arguments, callbacks=[Checkpoint(tmp_path / "run", every=4), Stops(13, interrupt)])
    resumed.fit(**arguments, callbacks=[Checkpoint(tmp_path / "run", every=4)], resume=True)
    assert_same(values(resumed.module), values(whole.module))
    assert resumed.history.history == whole.history.history


LOADS = """
import sys, numpy as np, resfit
x = np.load(sys.argv[2])
np.save(sys.argv[3], resfit.load(sys.argv[1]).predict(x, verbose=0))
"""


def test_a_saved_model_predicts_the_same_on_a_cpu(tmp_path: Path) -> None:
    x, y = digits()
    model = model_for_digits()
    model.fit(x, y, batch_size=100, verbose=0)
    model.save(tmp_path / "net.safetensors")
    np.save(tmp_path / "x.npy", x[:50])
    files = [str(tmp_path / name) for name in ("net.safetensors", "x.npy", "out.npy")]
    elsewhere("-c", LOADS, *files, JAX_PLATFORMS="cpu")
    with jax.default_matmul_precision("highest"):
        here = resfit.load(tmp_path / "net.safetensors").predict(x[:50], verbose=0)
    assert relative(here, np.load(tmp_path / "out.npy")) < 1e-5


@pytest.mark.parametrize("fold", [False, True])
def test_an_exported_program_runs(fold: bool, tmp_path: Path) -> None:
    with jax.default_matmul_precision("highest"):
        model = resfit.Model(thin("v1"))
        model.compile("sgd", learning_rate=0.01)
        x = images("large images", 12)
        model.fit(x, labels(12), batch_size=4, verbose=0)
        model.export(tmp_path / "net.npz", fold_batch_norm=fold)
        found = resfit.load_exported(tmp_path / "net.npz").predict(x)
        assert relative(found, model.predict(x, verbose=0)) < 1e-4


def test_kernels_for_cpus_are_not_used_and_raise_if_requested() -> None:
    assert model_for_digits()._described_kernels == ""
    with pytest.raises(CompileError, match=r"cpu_kernels='onednn', which cannot be used here: the devices are of"):
        model_for_digits(cpu_kernels="onednn")
