"""A model in a file: loading restores the saved values, and a file is written completely or not at all."""

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.flax
from flax import nnx

import resfit
from resfit.errors import SavedModelError
from resfit.export import saving
from resfit.preprocess import Normalize
from tests.helpers import BATCH, CLASSES, PlainNet, TinyNet, assert_same, compiled, fit, images, labels, values


def small(seed: int = 0, **arguments: Any) -> Any:
    arguments = {"num_classes": CLASSES, "in_channels": 1, "depths": (1,), "widths": (4,), **arguments}
    return resfit.create_model("resnet20", rngs=seed, **arguments)


@pytest.fixture(scope="module")
def trained() -> Any:
    model = compiled(small())
    fit(model)
    return model


def test_a_net_of_resfit_is_rebuilt_from_its_file_alone(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors")
    assert loaded.module.spec == trained.module.spec
    assert_same(values(loaded.module), values(trained.module))
    np.testing.assert_allclose(loaded.predict(images(), verbose=0), trained.predict(images(), verbose=0), atol=1e-6)
    loaded.compile("sgd", learning_rate=0.1, dispatch="jit")
    assert loaded.evaluate(images(), labels(), BATCH, verbose=0) == trained.evaluate(
        images(), labels(), BATCH, verbose=0
    )
    fit(loaded)


@pytest.mark.representatives("A")
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_the_fields_of_a_spec_are_restored(shortcut: str, tmp_path: Path) -> None:
    net = small(shortcut=shortcut, widths=(4, 8), depths=(1, 1))
    resfit.Model(net).save(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors").module
    assert loaded.spec == net.spec
    assert_same(values(loaded), values(net))


@pytest.mark.representatives("preprocess2")
@pytest.mark.parametrize("preprocess", ["auto", None, Normalize(mean=(0.5,), std=(0.25,))])
def test_the_preprocessing_is_saved_with_the_model(preprocess: Any, tmp_path: Path) -> None:
    model = compiled(small(), preprocess=preprocess)
    model.save(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors")
    x = images(4) if preprocess is None else (np.abs(images(4)) * 100).astype(np.uint8)
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


def test_a_custom_preprocessing_function_must_be_passed_again(tmp_path: Path) -> None:
    def halve(x: jax.Array) -> jax.Array:
        return x / 2

    model = compiled(small(), preprocess=halve)
    model.save(tmp_path / "net.safetensors")
    with pytest.raises(SavedModelError, match=r"custom preprocessing function.*preprocess=\.\.\."):
        resfit.load(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors", preprocess=halve)
    np.testing.assert_allclose(loaded.predict(images(4), verbose=0), model.predict(images(4), verbose=0), atol=1e-6)


def test_any_module_is_saved_and_restored_from_its_file(tmp_path: Path) -> None:
    model = compiled(TinyNet(rngs=nnx.Rngs(0)))
    fit(model)
    model.save(tmp_path / "tiny.safetensors")
    with pytest.raises(SavedModelError, match=r"holds a TinyNet.*module=\.\.\."):
        resfit.load(tmp_path / "tiny.safetensors")
    fresh = TinyNet(rngs=nnx.Rngs(1))
    kernel = fresh.head.kernel
    loaded = resfit.load(tmp_path / "tiny.safetensors", module=fresh)
    assert loaded.module is fresh
    assert fresh.head.kernel is kernel  # restored in place
    assert_same(values(fresh), values(model.module))


def test_raw_arrays_and_tied_weights_are_saved_and_random_state_is_not(tmp_path: Path) -> None:
    class Odd(nnx.Module):
        def __init__(self, seed: int) -> None:
            rngs = nnx.Rngs(seed)
            self.a, self.b = nnx.Linear(2, 2, rngs=rngs), nnx.Linear(2, 2, rngs=rngs)
            self.b.kernel = self.a.kernel
            self.calls = nnx.data(jnp.full((), float(seed)))
            self.tables = nnx.data([np.full(3, seed, np.float32)])
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.dropout(self.b(self.a(x)))

    one, other = Odd(3), Odd(4)
    resfit.Model(one).save(tmp_path / "odd.safetensors")
    key = other.dropout.rngs.key[...] if hasattr(other.dropout.rngs, "key") else None
    resfit.load(tmp_path / "odd.safetensors", module=other)
    assert float(other.calls) == 3
    assert other.tables[0].tolist() == [3, 3, 3]
    assert other.a.kernel is other.b.kernel
    np.testing.assert_array_equal(other.a.kernel[...], one.a.kernel[...])
    if key is not None:
        assert jnp.array_equal(jax.random.key_data(other.dropout.rngs.key[...]), jax.random.key_data(key))


def test_bfloat16_parameters_are_restored_bit_for_bit(tmp_path: Path) -> None:
    net = small(param_dtype="bfloat16")
    resfit.Model(net).save(tmp_path / "half.safetensors")
    loaded = resfit.load(tmp_path / "half.safetensors").module
    assert {value.dtype.name for value in values(loaded).values()} == {"bfloat16", "float32"}
    assert_same(values(loaded), values(net))


def test_saving_during_training_saves_the_current_values(tmp_path: Path) -> None:
    class Saves(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.save(tmp_path / f"{batch}.safetensors")

    model = compiled(small())
    fit(model, callbacks=[Saves()])
    last = resfit.load(tmp_path / "2.safetensors")
    assert_same(values(last.module), values(model.module))
    first = resfit.load(tmp_path / "0.safetensors")
    assert not np.array_equal(values(first.module)["head.dense.kernel"], values(last.module)["head.dense.kernel"])


def test_the_file_describes_itself(trained: Any, tmp_path: Path) -> None:
    trained.save(str(tmp_path / "net.safetensors"))
    with safetensors.safe_open(tmp_path / "net.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["resfit"])
        names = set(file.keys())
    assert header["format"] == "resfit"
    assert header["format_version"] == saving.FORMAT_VERSION
    assert header["module"] == "ResNet"
    assert header["resfit"] == resfit.__version__
    assert names == set(values(trained.module))


# --- failures ---------------------------------------------------------------------------------------------------------


def test_another_file_suffix_raises(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(SavedModelError, match=r"ends in '\.safetensors', got .*net\.keras"):
        trained.save(tmp_path / "net.keras")


def test_a_file_is_written_completely_or_not_at_all(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"the old one")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            trained.save(path)
    assert path.read_bytes() == b"the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    trained.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["net.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def rewrite(path: Path, **changes: Any) -> None:
    """Rewrite a file with the same arrays and another header."""
    with safetensors.safe_open(path, framework="flax") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["resfit"])
    safetensors.flax.save_file(arrays, path, metadata={"resfit": json.dumps(header | changes)})


def test_a_newer_format_raises(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "net.safetensors")
    rewrite(tmp_path / "net.safetensors", format_version=99, resfit="9.9.9")
    with pytest.raises(SavedModelError, match=r"format version 99, written by resfit 9\.9\.9.*Upgrade"):
        resfit.load(tmp_path / "net.safetensors")


def test_a_foreign_file_raises(tmp_path: Path) -> None:
    safetensors.flax.save_file({"fc.weight": jnp.ones(3)}, tmp_path / "torch.safetensors", metadata={"format": "pt"})
    with pytest.raises(SavedModelError, match=r"not written by Model.*resfit\.weights"):
        resfit.load(tmp_path / "torch.safetensors")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"\x00" * 8 + content[8:],
        lambda content: struct.pack("<Q", 2**40) + content[8:],
        lambda content: b"PK\x03\x04 not a safetensors file",
    ],
    ids=["empty", "half", "no header", "endless header", "another format"],
)
def test_a_damaged_file_raises(damage: Any, trained: Any, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    trained.save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SavedModelError, match="not a safetensors file, or is damaged"):
        resfit.load(path)


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        resfit.load(tmp_path / "none.safetensors")


def test_a_module_that_does_not_match_raises_with_every_difference(tmp_path: Path) -> None:
    resfit.Model(PlainNet(rngs=nnx.Rngs(0))).save(tmp_path / "plain.safetensors")
    wider = PlainNet(5, rngs=nnx.Rngs(0))
    before = values(wider)
    with pytest.raises(SavedModelError, match=r"head\.bias has shape \(3,\), expected \(5,\); head\.kernel has shape"):
        resfit.load(tmp_path / "plain.safetensors", module=wider)
    assert_same(values(wider), before)
    with pytest.raises(SavedModelError, match=r"missing conv\.kernel; missing norm\.bias"):
        resfit.load(tmp_path / "plain.safetensors", module=TinyNet(rngs=nnx.Rngs(0)))
