"""A model trains with oneDNN as with XLA: on any devices, in any mode, in threads, with equal bits in each run."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from resfit.backends import onednn
from resfit.callbacks import Checkpoint
from resfit.errors import ResumeError
from tests.backends.onednn.needed import needs_onednn
from tests.helpers import TinyNet, assert_close, assert_same, compiled, fit, images, labels, values

ROOT = Path(__file__).parents[2]

pytestmark = needs_onednn()


@pytest.fixture(autouse=True)
def _small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let oneDNN compute every convolution that it can, however small."""
    monkeypatch.setattr("resfit.backends.onednn.convolution.wins", lambda shape: True)


def net() -> TinyNet:
    return TinyNet(rngs=nnx.Rngs(0))


WAYS: dict[str, dict[str, Any]] = {
    "one device": {"dispatch": "jit"},
    "sharded": {"dispatch": "sharded"},
    "per replica": {"dispatch": "sharded", "batch_norm": "per_replica"},
    "pmap": {"dispatch": "pmap"},
    "slices": {"dispatch": "jit", "gradient_accumulation_steps": 2},
    "sharded slices": {"dispatch": "sharded", "gradient_accumulation_steps": 2},
    "eager": {"dispatch": "eager"},
}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "one device" else pytest.mark.slow) for way in WAYS]
)
def test_training_evaluation_and_prediction_match_xla(way: str) -> None:
    found = []
    for choice in ("xla", "onednn"):
        model = compiled(net(), cpu_kernels=choice, **WAYS[way])
        history = fit(model).history
        evaluated = model.evaluate(images(), labels(), batch_size=8, verbose=0)
        found.append((history["loss"], evaluated, model.predict(images(), batch_size=8, verbose=0)))
    assert_close(*found)


@pytest.mark.slow
def test_training_in_bfloat16_matches_xla() -> None:
    losses = [
        fit(compiled(net(), cpu_kernels=choice, precision="bfloat16")).history["loss"] for choice in ("xla", "onednn")
    ]
    assert_close(*losses, tolerance=2e-2)


def test_the_users_module_keeps_its_function() -> None:
    module = net()
    fit(compiled(module, cpu_kernels="onednn"))
    assert module.conv.conv_general_dilated is jax.lax.conv_general_dilated


def test_a_layer_with_a_custom_function_keeps_it() -> None:
    asked = []

    def own(*arguments: Any, **options: Any) -> jax.Array:
        asked.append(arguments)
        return jax.lax.conv_general_dilated(*arguments, **options)

    module = net()
    module.conv.conv_general_dilated = own
    fit(compiled(module, cpu_kernels="onednn"))
    assert asked


def test_auto_uses_onednn_if_it_is_available(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "resfit"):
        fit(compiled(net()))
    assert f"convolutions by {onednn.described(norms=onednn.has_norms())}" in caplog.text


@pytest.mark.slow
def test_a_run_gives_the_same_bits_again_and_not_those_of_xla() -> None:
    # A longer sum than TinyNet's, so that its order shows in the last bits.
    def trained(choice: str) -> Any:
        module = Wide(rngs=nnx.Rngs(0))
        fit(compiled(module, cpu_kernels=choice))
        return values(module)

    first = trained("onednn")
    assert_same(first, trained("onednn"))
    with pytest.raises(AssertionError):
        assert_same(first, trained("xla"))


class Wide(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(1, 16, (5, 5), rngs=rngs)
        self.second = nnx.Conv(16, 16, (3, 3), rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.second(nnx.relu(self.first(x)))
        return self.head(jnp.mean(x, (1, 2)))


def test_models_train_in_concurrent_threads() -> None:
    expected = values_after("onednn")
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(values_after("onednn"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    for other in found:
        assert_same(other, expected)


def values_after(choice: str) -> Any:
    module = net()
    fit(compiled(module, cpu_kernels=choice), epochs=2)
    return values(module)


def test_a_run_resumes_only_with_the_kernels_that_it_began_with() -> None:
    fit(compiled(net(), cpu_kernels="onednn"), epochs=1, callbacks=[Checkpoint("run")], resume=True)
    with pytest.raises(ResumeError, match="cpu_kernels"):
        fit(compiled(net(), cpu_kernels="xla"), epochs=1, callbacks=[Checkpoint("run")], resume=True)
    again = fit(compiled(net(), cpu_kernels="onednn"), epochs=1, callbacks=[Checkpoint("run")], resume=True)
    assert len(again.history["loss"]) == 1


# --- processes --------------------------------------------------------------------------------------------------------

PROGRAM = """
import hashlib, json, sys, jax
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
import resfit.backends.onednn.convolution
resfit.backends.onednn.convolution.wins = lambda shape: True
from tests.helpers import *
module = TinyNet(rngs=nnx.Rngs(0))
fit(compiled(module, cpu_kernels="onednn"))
bits = hashlib.sha256(b"".join(value.tobytes() for _, value in sorted(values(module).items()))).hexdigest()
print(json.dumps([len(hits), bits]))
"""

LEAVING = """
import sys, jax
import jax.numpy as jnp
from resfit.backends.onednn import Convolve
x, w = jnp.ones((64, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
def many(x, w):
    for _ in range(200):
        x = Convolve(always=True)(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) / 600
    return x
run = jax.jit(many).lower(x, w).compile()
run(x, w)  # and ends while it runs
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_ENABLE"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, **environment},
        check=False,
    )


@pytest.mark.slow
def test_a_second_process_finds_the_programs_of_the_first_and_gets_its_bits(tmp_path: Path) -> None:
    home = {"XDG_CACHE_HOME": str(tmp_path)}
    first, second = (json.loads(run(PROGRAM, **home).stdout.splitlines()[-1]) for _ in range(2))
    assert first[0] == 0
    assert second[0] > 0
    assert second[1] == first[1]
    assert len(list((tmp_path / "resfit" / "kernels").glob("bridge-*.so"))) == 1


@pytest.mark.slow
def test_a_process_can_end_during_a_convolution() -> None:
    for _ in range(3):
        done = run(LEAVING)
        assert (done.returncode, done.stderr) == (0, "")


WHERE = """
import collections, json, os, pathlib
import jax, jax.numpy as jnp
from resfit.backends.onednn import Convolve
x, w = jnp.ones((8, 32, 32, 16)), jnp.ones((3, 3, 16, 16))
Convolve(always=True)(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")).block_until_ready()
statuses = [(task / "status").read_text() for task in pathlib.Path("/proc/self/task").iterdir()]
lines = [line for status in statuses for line in status.splitlines()]
where = collections.Counter(line.split()[1] for line in lines if line.startswith("Cpus_allowed_list"))
print(json.dumps([[str(i) for i in sorted(os.sched_getaffinity(0))], where]))
"""


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor")
@pytest.mark.parametrize(
    ("environment", "bound"), [({}, True), ({"OMP_NUM_THREADS": "1"}, False), ({"OMP_PLACES": "threads"}, None)]
)
def test_only_the_threads_of_onednn_are_bound_to_processors(environment: dict[str, str], bound: bool | None) -> None:
    done = run(WHERE, **environment)
    processors, where = json.loads(done.stdout)
    found = [where.get(processor, 0) for processor in processors]
    if bound is not None:  # else OpenMP does as it was told
        assert found == [int(bound)] * len(processors)
    assert sum(where.values()) > sum(found)
