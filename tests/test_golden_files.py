"""Files of every released format load bit for bit. Later formats and invalid files raise."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.flax
from flax import nnx

import resfit
from resfit.errors import CheckpointError, SavedModelError
from resfit.trainer.checkpoint import disk_format
from resfit.trainer.checkpoint.store import CheckpointStore
from tests.golden import files
from tests.helpers import TinyNet, assert_same, context_of, values


def loaded(kind: str) -> resfit.Model:
    module = TinyNet(rngs=nnx.Rngs(9)) if kind == "module_of_ones_own" else None
    return resfit.load(files.MODELS / f"{kind}.safetensors", module=module)


@pytest.mark.representatives("averages")
@pytest.mark.parametrize("kind", files.KINDS)
def test_a_model_saved_by_an_earlier_version_loads_bit_for_bit(kind: str) -> None:
    expected = files.KINDS[kind]()
    found = loaded(kind)
    assert_same(values(found.module), values(expected.module))
    assert {name: array.dtype for name, array in values(found.module).items()} == {
        name: array.dtype for name, array in values(expected.module).items()
    }
    assert context_of(found).learned.inputs.preprocess == context_of(expected).learned.inputs.preprocess
    predictions = np.asarray(files.predicted(found), np.float32)
    np.testing.assert_array_equal(predictions, np.asarray(files.predicted(expected), np.float32))
    tolerance = 2e-2 if kind == "net_of_bfloat16" else 1e-5  # other processors add in another order
    written = json.loads(files.PREDICTIONS.read_text())[kind]
    np.testing.assert_allclose(predictions, written, rtol=tolerance, atol=tolerance)


def test_each_kind_of_model_has_a_small_file_of_the_first_format() -> None:
    assert {path.stem for path in files.MODELS.iterdir()} == set(files.KINDS)
    for path in files.MODELS.iterdir():
        assert path.stat().st_size < 20_000
        with safetensors.safe_open(path, framework="numpy") as file:
            assert json.loads(file.metadata()["resfit"])["format_version"] == 1


@pytest.mark.representatives("folded_averages")
@pytest.mark.parametrize("name", files.EXPORTED)
def test_a_model_exported_by_an_earlier_version_predicts_the_same(name: str) -> None:
    """Requires a jax that can still read the program: at least all releases in the six months after the export."""
    found = resfit.load_exported(files.EXPORTS / f"{name}.npz")
    assert found.metadata["format_version"] == 1
    assert found.class_names == files.EXPORTED[name][1].get("class_names")
    predictions = found.predict(files.inputs(files.KINDS[files.EXPORTED[name][0]]()))
    tolerance = 2e-2 if "bfloat16" in name else 1e-5
    written = json.loads(files.PREDICTIONS.read_text())[f"exported/{name}"]
    np.testing.assert_allclose(np.asarray(predictions, np.float32), written, rtol=tolerance, atol=tolerance)


def test_each_kind_of_export_has_a_small_file() -> None:
    assert {path.stem for path in files.EXPORTS.iterdir()} == set(files.EXPORTED)
    assert all(path.stat().st_size < 40_000 for path in files.EXPORTS.iterdir())


def rewritten(target: Path, change: Any) -> Path:
    """Rewrite one of the files with another header."""
    with safetensors.safe_open(files.MODELS / "net_that_scales.safetensors", framework="flax") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["resfit"])
    text = change if isinstance(change, str) else json.dumps(header | change)
    safetensors.flax.save_file(arrays, target, metadata={"resfit": text, "elsewhere": "unknown"})
    return target


@pytest.mark.slow
@pytest.mark.parametrize(("before", "now"), [(True, "blur"), (False, None)])
def test_a_file_whose_spec_has_a_boolean_for_anti_aliasing_gives_the_same_network(
    before: bool, now: str | None, tmp_path: Path
) -> None:
    """Earlier versions only had blurring, also under the zoo name that now averages."""
    spec = loaded("net_that_scales").module.spec
    found = resfit.load(rewritten(tmp_path / "net.safetensors", {"spec": spec.to_dict() | {"antialias": before}}))
    assert found.module.spec.antialias == now
    expected = files.model(files.net(antialias=now), preprocess="auto")
    np.testing.assert_array_equal(files.predicted(found), files.predicted(expected))
    other = files.model(files.net(antialias="avg"), preprocess="auto")
    assert (files.predicted(found) != files.predicted(other)).any()


def test_unknown_entries_of_a_header_are_ignored(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "net.safetensors", {"author": "somebody", "notes": {"any": ["thing"]}})
    assert_same(values(resfit.load(path).module), values(loaded("net_that_scales").module))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 2, "resfit": "9.9"}, r"format version 2, written by resfit 9\.9.*up to 1\. Upgrade"),
        ({"format_version": "one"}, "format version 'one'"),
        ("no JSON", "damaged: its header 'no JSON' is invalid"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ({"spec": {"depths": [10**9], "widths": [4], "stem": "cifar"}}, "describes a network of 1000000000 blocks"),
        ({"spec": {"depths": [1], "widths": [10**6], "stem": "cifar"}}, "is damaged"),
        ({"spec": {"depths": [1], "widths": [4], "stem": "cifar", "num_classes": 10**9}}, "is damaged"),
    ],
)
def test_an_invalid_header_raises_before_anything_is_built(change: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(SavedModelError, match=said):
        resfit.load(rewritten(tmp_path / "net.safetensors", change))


@pytest.mark.representatives("resnet20")
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet20", *(pytest.param(n, marks=pytest.mark.slow) for n in ("resnet50", "resnet110"))]
)
def test_no_network_of_the_zoo_is_smaller_than_described(name: str) -> None:
    net: Any = nnx.eval_shape(lambda: resfit.create_model(name, num_classes=10))
    spec = net.spec
    least = sum(depth * width * width // 4 for depth, width in zip(spec.depths, spec.widths, strict=True))
    assert least < resfit.nets.count_params(net)


def test_a_checkpoint_of_an_earlier_version_is_read() -> None:
    newest = CheckpointStore(files.CHECKPOINTS, writes=False).newest()
    assert newest is not None
    number, found = newest
    assert number == 3
    assert_same(found.arrays, files.saved().arrays)
    assert {name: array.dtype for name, array in found.arrays.items()} == {
        name: array.dtype for name, array in files.saved().arrays.items()
    }
    assert_same(found.facts, files.saved().facts)


def test_a_checkpoint_of_a_later_format_raises_and_is_not_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resuming from an older checkpoint would lose the later training and finally delete it."""
    shutil.copytree(files.CHECKPOINTS, tmp_path / "run")
    checkpoints = CheckpointStore(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(disk_format, "FORMAT", 3)
        checkpoints.save(4, files.saved())
        checkpoints.close()
    checkpoints = CheckpointStore(tmp_path / "run")
    with pytest.raises(
        CheckpointError,
        match=r"step 4 in .* has format 3, of a later version of resfit\. Expected format 2 or lower\. Upgr",
    ):
        checkpoints.newest()
    checkpoints.close()
