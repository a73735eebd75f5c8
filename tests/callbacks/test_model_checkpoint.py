"""ModelCheckpoint writes at the same times and under the same names as Keras's."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.callbacks import ModelCheckpoint
from resfit.errors import CallbackError
from tests.callbacks.test_early_stopping import Scripted
from tests.helpers import PlainNet, compiled, fit, images, labels


@pytest.fixture(scope="module")
def model() -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)))


def run(model: Any, callback: ModelCheckpoint, script: Any = (), **arguments: Any) -> Any:
    arguments = {"epochs": 3, **arguments}
    return fit(model, images(8), labels(8), batch_size=8, callbacks=[*script, callback], **arguments)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_epoch_is_written_and_reloads_to_the_same_weights(model: Any, tmp_path: Path) -> None:
    script = Scripted("val_loss", [1.0, 2.0, 3.0])
    run(model, ModelCheckpoint(tmp_path / "{epoch:02d}.safetensors"), [script])
    assert names(tmp_path) == ["01.safetensors", "02.safetensors", "03.safetensors"]
    for i, weights in enumerate(script.weights):
        loaded = resfit.load(tmp_path / f"{i + 1:02d}.safetensors", module=PlainNet(rngs=nnx.Rngs(9)))
        for a, b in zip(loaded.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)


def test_steps_are_counted_across_epochs(model: Any, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}.safetensors", save_freq=15)
    fit(model, images(40), labels(40), epochs=10, callbacks=[checkpoint])  # five batches an epoch
    assert names(tmp_path) == ["3.safetensors", "6.safetensors", "9.safetensors"]


@pytest.mark.parametrize(
    ("options", "losses", "kept"),
    [
        ({"keep": 2}, [3, 1, 2, 4], [3, 4]),
        ({"keep": 2, "save_best_only": True}, [3, 1, 2, 4], [2, 3]),
        ({"keep": 2, "save_best_only": True}, [1, 2, 3, 4], [1, 2]),
        ({"keep": 2, "save_best_only": True}, [4, 3, 2, 1], [3, 4]),
        ({"keep": 1, "save_best_only": True}, [2, 1, 3, 1], [2]),
        ({"keep": 3, "save_best_only": True, "mode": "max"}, [3, 1, 2, 4], [1, 3, 4]),
        ({"keep": 3, "save_best_only": True, "initial_value_threshold": 2.5}, [3, 1, 2, 4], [2, 3]),
        ({"keep": 9}, [3, 1, 2, 4], [1, 2, 3, 4]),
    ],
)
def test_the_last_or_best_n_files_are_kept(
    model: Any, tmp_path: Path, options: dict[str, Any], losses: list[float], kept: list[int]
) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}.safetensors", monitor="val_loss", **options)
    run(model, checkpoint, [Scripted("val_loss", losses)], epochs=4)
    assert names(tmp_path) == [f"{epoch}.safetensors" for epoch in kept]


def test_the_files_to_keep_are_restored_by_a_resume(model: Any, tmp_path: Path) -> None:
    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "{epoch}.safetensors", save_best_only=True, keep=2)

    first, second = checkpoint(), checkpoint()
    run(model, first, [Scripted("val_loss", [3, 1])], epochs=2)
    second.load_state_dict(first.state_dict())
    run(model, second, [Scripted("val_loss", [0, 0, 4, 2])], epochs=4, initial_epoch=2)
    assert names(tmp_path) == ["2.safetensors", "4.safetensors"]


def test_a_file_that_is_written_again_counts_once_with_its_new_value(model: Any, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.safetensors", save_best_only=True, keep=2)
    for losses in ([3, 2], [5, 2.7]):
        run(model, callback, [Scripted("val_loss", losses)], epochs=2)
    assert names(tmp_path) == ["1.safetensors", "2.safetensors"]


def test_a_user_file_that_replaces_an_old_one_is_kept(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.safetensors", keep=1)
    run(model, callback, epochs=1)
    (tmp_path / "1.safetensors").write_bytes(b"mine")
    resumed = ModelCheckpoint(tmp_path / "{epoch}.safetensors", keep=1)
    resumed.load_state_dict(callback.state_dict())
    with caplog.at_level(logging.WARNING, "resfit"):
        run(model, resumed, epochs=3, initial_epoch=1)
    assert names(tmp_path) == ["1.safetensors", "3.safetensors"]
    assert (tmp_path / "1.safetensors").read_bytes() == b"mine"
    assert [text for text in caplog.messages if "was changed after" in text] == [
        f"ModelCheckpoint: {tmp_path / '1.safetensors'} was changed after it was written and is not deleted."
    ]


def test_a_file_that_could_not_be_deleted_is_deleted_after_a_later_save_also_in_a_resumed_run(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def checkpoint() -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / "{epoch}.safetensors", keep=1)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "no", str(path))

    callback, resumed = checkpoint(), checkpoint()
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "resfit"):
        patch.setattr(Path, "unlink", refuse)
        run(model, callback, epochs=2)
    assert "1.safetensors cannot be deleted" in caplog.text
    assert names(tmp_path) == ["1.safetensors", "2.safetensors"]
    resumed.load_state_dict(callback.state_dict())
    run(model, resumed, epochs=3, initial_epoch=2)
    assert names(tmp_path) == ["3.safetensors"]


def test_a_file_deleted_by_the_user_does_not_count(model: Any, tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path / "{epoch}.safetensors", save_best_only=True, keep=2)
    run(model, callback, [Scripted("val_loss", [1, 2])], epochs=2)
    (tmp_path / "1.safetensors").unlink()
    run(model, callback, [Scripted("val_loss", [0, 0, 3, 4])], epochs=4, initial_epoch=2)
    assert names(tmp_path) == ["2.safetensors", "3.safetensors"]


def test_the_state_of_an_earlier_version_without_checksums_is_read(model: Any, tmp_path: Path) -> None:
    callback, resumed = (ModelCheckpoint(tmp_path / "{epoch}.safetensors", keep=1) for _ in range(2))
    run(model, callback, epochs=1)
    state = callback.state_dict()
    del state["checksums"]
    resumed.load_state_dict(state)
    run(model, resumed, epochs=2, initial_epoch=1)
    assert names(tmp_path) == ["2.safetensors"]


@pytest.mark.parametrize(("keep", "path"), [(0, "{epoch}"), (True, "{epoch}"), (1.5, "{epoch}"), (2, "last")])
def test_an_invalid_number_of_files_to_keep_raises(keep: Any, path: str) -> None:
    with pytest.raises(CallbackError, match="keep"):
        ModelCheckpoint(f"{path}.safetensors", keep=keep)


def test_epoch_and_batch_are_counted_from_one(model: Any, tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "{epoch}-{batch}.safetensors", save_freq=1)
    fit(model, images(16), labels(16), epochs=2, callbacks=[checkpoint])
    assert names(tmp_path) == [f"{epoch}-{batch}.safetensors" for epoch in (1, 2) for batch in (1, 2)]


def test_log_names_in_the_file_name_are_filled_in_and_folders_are_created(model: Any, tmp_path: Path) -> None:
    template = tmp_path / "runs" / "a" / "{epoch:02d}-{val_loss:.2f}.safetensors"
    run(model, ModelCheckpoint(template), [Scripted("val_loss", [0.5, 0.25, 0.125])])
    assert names(tmp_path) == ["runs/a/01-0.50.safetensors", "runs/a/02-0.25.safetensors", "runs/a/03-0.12.safetensors"]


def test_with_save_best_only_only_improvements_are_written(model: Any, tmp_path: Path) -> None:
    script = Scripted("val_loss", [0.5, 0.7, 0.4, float("nan")])
    run(model, ModelCheckpoint(tmp_path / "{epoch}.safetensors", save_best_only=True), [script], epochs=4)
    assert names(tmp_path) == ["1.safetensors", "3.safetensors"]


def test_a_fixed_file_name_keeps_the_best(model: Any, tmp_path: Path) -> None:
    script = Scripted("val_accuracy", [0.5, 0.9, 0.7])
    run(model, ModelCheckpoint(tmp_path / "best.safetensors", "val_accuracy", save_best_only=True), [script])
    best = resfit.load(tmp_path / "best.safetensors", module=PlainNet(rngs=nnx.Rngs(9)))
    np.testing.assert_array_equal(best.get_weights()[0], script.weights[1][0])


@pytest.mark.parametrize(
    ("monitor", "threshold", "written"),
    [("val_loss", 0, False), ("val_auc", 1, False), ("accuracy", -0.01, True), ("val_loss", None, True)],
)
def test_the_first_value_must_beat_the_initial_threshold(
    model: Any, monitor: str, threshold: float | None, written: bool, tmp_path: Path
) -> None:
    checkpoint = ModelCheckpoint(
        tmp_path / "best.safetensors", monitor, save_best_only=True, initial_value_threshold=threshold
    )
    run(model, checkpoint, [Scripted(monitor, [0.5, 0.5, 0.5])])
    assert names(tmp_path) == (["best.safetensors"] if written else [])


def test_an_unknown_value_is_reported_and_the_file_is_still_written(
    model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "best.safetensors", "val_dice", save_best_only=True, mode="max")
    with caplog.at_level(logging.WARNING, "resfit"):
        run(model, checkpoint, epochs=1)
    assert "ModelCheckpoint monitors 'val_dice', which is not in the logs" in caplog.text
    assert names(tmp_path) == ["best.safetensors"]


def test_a_name_missing_from_the_logs_raises_with_the_template(model: Any, tmp_path: Path) -> None:
    with pytest.raises(
        CallbackError, match=r"'.*\{val_loss\}\.safetensors' uses 'val_loss', .* Expected one of \['accuracy'"
    ):
        run(model, ModelCheckpoint(tmp_path / "{val_loss}.safetensors"))
    with pytest.raises(CallbackError, match="uses 'batch'"):
        run(model, ModelCheckpoint(tmp_path / "{batch}.safetensors"))


def test_a_folder_at_the_path_of_the_file_raises_an_os_error(model: Any, tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").mkdir()
    with pytest.raises(OSError, match="is a folder"):
        run(model, ModelCheckpoint(tmp_path / "best.safetensors"))
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"filepath": "best.keras"}, "end in '.safetensors', got 'best.keras'"),
        ({"save_freq": "batch"}, "'epoch' or a positive number of steps, got 'batch'"),
        ({"save_freq": 0}, "got 0"),
        ({"save_freq": True}, "got True"),
        ({"save_best_only": True, "mode": "lower"}, "Unknown mode 'lower'"),
        ({"save_best_only": True, "monitor": "temperature"}, "mode='min' or 'max'"),
    ],
)
def test_invalid_arguments_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CallbackError, match=message):
        ModelCheckpoint(**{"filepath": "best.safetensors", **arguments})


def test_saving_does_not_change_the_run(tmp_path: Path) -> None:
    one, other = compiled(PlainNet(rngs=nnx.Rngs(0))), compiled(PlainNet(rngs=nnx.Rngs(0)))
    run(one, ModelCheckpoint(tmp_path / "{batch}.safetensors", save_freq=1))
    fit(other, images(8), labels(8), batch_size=8, epochs=3)
    assert one.history.history == other.history.history
