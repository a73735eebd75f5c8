"""CLUMetricWriter writes to any object with the methods of CLU's writers, and does not need TensorFlow."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import clu
import pytest
from flax import nnx

from resfit.callbacks import CLUMetricWriter
from resfit.errors import CallbackError
from tests.callbacks.fakes import FakeModel, batch, begin, counting_reads, play
from tests.helpers import PlainNet, compiled, fit, images, labels


def interface() -> Any:
    """Return CLU's abstract class. Its package imports TensorFlow; the file that defines the class does not."""
    path = Path(clu.__file__).parent / "metric_writers" / "interface.py"
    spec = importlib.util.spec_from_file_location("clu_writer_interface", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MetricWriter


def make_writer() -> Any:
    """Return a writer that derives from CLU's abstract class and stores its calls."""
    base = interface()

    def write_scalars(self: Any, step: int, scalars: Mapping[str, float]) -> None:
        self.written.append((step, dict(scalars)))

    def flush(self: Any) -> None:
        self.flushed += 1

    def close(self: Any) -> None:
        self.closed = True

    methods = dict.fromkeys(base.__abstractmethods__, lambda self, *args: pytest.fail("not asked for"))
    methods |= {"write_scalars": write_scalars, "flush": flush, "close": close}
    return type("Keeping", (base,), {**methods, "written": [], "flushed": 0, "closed": False})()


def test_a_clu_writer_receives_the_history_and_batches_of_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = counting_reads(monkeypatch)
    writer = make_writer()
    history = fit(
        compiled(PlainNet(rngs=nnx.Rngs(0))),
        epochs=2,
        validation_data=(images(9), labels(9)),
        callbacks=[CLUMetricWriter(writer, every=3)],
    )
    assert reads.reads == 2
    batches = [(step, values) for step, values in writer.written if "batch/loss" in values]
    epochs = [(step, values) for step, values in writer.written if "epoch/loss" in values]
    assert [step for step, _ in batches] == [step for step, _ in epochs] == [3, 6]
    for name, expected in history.history.items():
        assert [values[f"epoch/{name}"] for _, values in epochs] == expected
    assert [values["epoch/learning_rate"] for _, values in epochs] == pytest.approx([0.1, 0.1])
    assert all(values["epoch/images_per_second"] > 0 for _, values in epochs)
    assert all(type(value) is float for _, values in writer.written for value in values.values())
    assert (writer.flushed, writer.closed) == (2, False)
    assert "tensorflow" not in sys.modules


def test_no_name_is_written_twice_at_a_step() -> None:
    """CLU forbids it. A batch and its epoch can end at the same step; prefixes keep their names apart."""
    writer = make_writer()
    callback = CLUMetricWriter(writer, every=1)
    begin(callback, FakeModel(None))
    for epoch in range(2):
        callback.on_epoch_begin(epoch, {})
        for i in range(2):
            callback.on_train_batch_end(i, batch(1.0))
        callback.on_epoch_end(epoch, {"loss": 1.0})
    names = [(step, name) for step, values in writer.written for name in values]
    assert len(names) == len(set(names)) == 10


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax.process_index", lambda: 1)
    writer = make_writer()
    play(CLUMetricWriter(writer), [{"loss": 1.0}])
    assert writer.written == []


def test_an_object_without_the_methods_of_a_writer_raises() -> None:
    with pytest.raises(CallbackError, match="a dict, has no write_scalars and no flush"):
        CLUMetricWriter({})
