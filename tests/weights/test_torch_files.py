"""Files written by PyTorch (tests/golden/make_torch_files.py), read without PyTorch."""

import functools
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from resfit import weights
from resfit.errors import WeightsError
from resfit.nets import ResNet, ResNetSpec

FILES = Path(__file__).parents[1] / "golden" / "torch_files"
SPEC = ResNetSpec(depths=(1,), widths=(4,), stem="cifar", num_classes=3)


@functools.cache
def _built() -> ResNet:
    return ResNet(SPEC, rngs=nnx.Rngs(0))


def net() -> ResNet:
    return nnx.clone(_built())


def expected(add: float = 0.0) -> dict[str, np.ndarray]:
    """Return the expected array by the rule of make_torch_files.py."""
    shapes = {name: value.shape for name, value in weights.state_dict(net()).items()}
    return {
        name: np.random.default_rng(zlib.crc32(name.encode())).uniform(0.5, 1.5, shape).astype("f4") + np.float32(add)
        for name, shape in shapes.items()
    }


def same(actual: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert actual.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)


@pytest.mark.parametrize("form", ["state.pth", "state_old.pth", "checkpoint.pth", "checkpoint_old.pth"])
def test_a_state_dict_and_a_training_checkpoint_fill_a_network(form: str) -> None:
    module = net()
    weights.load(module, FILES / form)
    same(weights.state_dict(module), expected())


@pytest.mark.parametrize("form", ["checkpoint.pth", "checkpoint_old.pth"])
def test_ema_reads_the_averaged_weights_of_a_checkpoint(form: str) -> None:
    module = net()
    weights.load(module, FILES / form, ema=True)
    same(weights.state_dict(module), expected(add=1.0))


def test_ema_raises_for_a_file_without_averaged_weights() -> None:
    with pytest.raises(WeightsError, match="no averaged weights; its entries are"):
        weights.load(net(), FILES / "state.pth", ema=True)


@pytest.mark.parametrize("form", ["views.pth", "views_old.pth"])
def test_every_dtype_stride_and_offset_is_read(form: str) -> None:
    found = weights.read(FILES / form)
    base = np.arange(24, dtype="f4").reshape(4, 6)
    wanted = {
        "base": base, "transposed": base.T, "rows": base[1:3], "every_second": base[:, 1::2], "scalar": base[2, 3],
        "empty": base[:0], "parameter": base[3], "channels_last": np.arange(24, dtype="f4").reshape(1, 2, 3, 4),
    }  # fmt: skip
    kinds = ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"]
    wanted |= {f"torch.{kind}": np.arange(5).astype(kind) for kind in kinds if kind != "float32"}
    wanted["torch.bfloat16"] = np.arange(5).astype(ml_dtypes.bfloat16)
    same(found, wanted)
    assert {name: value.dtype for name, value in found.items()} == {name: v.dtype for name, v in wanted.items()}


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """Rewrite a zip file with `change(name, content)` for every member; None removes the member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = change(name, old.read(name))
            if content is not None:
                new.writestr(name, content)
    return target


def test_the_bytes_of_a_big_endian_file_are_swapped(tmp_path: Path) -> None:
    def swapped(name: str, content: bytes) -> bytes:
        if name.endswith("byteorder"):
            return b"big"
        if "/data/" in name:  # all have four bytes except the counts of batches, which are not read
            return np.frombuffer(content, "u4").byteswap().tobytes()
        return content

    module = net()
    weights.load(module, rewritten(FILES / "state.pth", tmp_path / "big.pth", swapped))
    same(weights.state_dict(module), expected())


def test_the_name_of_a_file_does_not_matter(tmp_path: Path) -> None:
    weights.save(net(), tmp_path / "a.safetensors")
    for source in (FILES / "state.pth", FILES / "state_old.pth", tmp_path / "a.safetensors"):
        target = tmp_path / "weights.bin"
        target.write_bytes(source.read_bytes())
        weights.load(net(), target)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("module.pth", r"an object of torch\.nn\.modules\.linear\.Linear.*save its state_dict"),
        ("module_old.pth", r"an object of torch\.nn\.modules\.linear\.Linear"),
        ("tensor.pth", r"contains a Tensor"),
        ("tensor_old.pth", r"contains a Tensor"),
    ],
)
def test_values_that_are_not_a_state_dict_raise(form: str, says: str) -> None:
    with pytest.raises(WeightsError, match=says):
        weights.load(net(), FILES / form)


@pytest.mark.parametrize("form", ["state.pth", "state_old.pth", "checkpoint.pth", "checkpoint_old.pth"])
def test_a_truncated_file_raises(form: str, tmp_path: Path) -> None:
    content = (FILES / form).read_bytes()
    path, module = tmp_path / form, net()
    before = weights.state_dict(module)
    for length in np.linspace(9, len(content) - 1, 40).astype(int):
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=r"damaged|promises|not a file of"):
            weights.load(module, path)
    same(weights.state_dict(module), before)


@pytest.mark.slow
def test_a_changed_byte_gives_an_error_or_another_number() -> None:
    """A damaged old file raises only WeightsError; every member of a zip file has a checksum."""
    content = bytearray((FILES / "state_old.pth").read_bytes())
    path = Path("damaged.pth")
    generator = np.random.default_rng(0)
    refused = 0
    for place in generator.integers(2, len(content), size=400):
        changed = bytearray(content)
        changed[place] ^= int(generator.integers(1, 256))
        path.write_bytes(changed)
        try:
            weights.read(path)
        except WeightsError:
            refused += 1
    assert refused > 50
    wanted = expected()
    places = generator.integers(2, (FILES / "state.pth").stat().st_size, size=100)
    for place in places:
        changed = bytearray((FILES / "state.pth").read_bytes())
        changed[place] ^= 1
        path.write_bytes(changed)
        try:
            found = weights.read(path)
        except WeightsError:
            continue
        same({name: found[name] for name in wanted}, wanted)


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "begins with b''"), (b"hello" * 9, "which is not a supported format")]
)
def test_files_that_are_not_weights_raise(content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=says):
        weights.read(tmp_path / "a.pth")


def test_a_missing_file_raises_and_lists_the_files_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "resnet18.pth").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'resnet18\.pth'"):
        weights.read(tmp_path / "resnet81.pth")


def test_the_old_form_starts_with_its_magic_number() -> None:
    """The golden files have the form in their name."""
    assert struct.unpack("<B", (FILES / "state_old.pth").read_bytes()[:1])[0] == 0x80
    assert zipfile.is_zipfile(FILES / "state.pth")
    assert not zipfile.is_zipfile(FILES / "state_old.pth")
