"""Common input mistakes: each raises an error with a remedy and leaves the model unchanged."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import DataError, LabelError
from tests.helpers import CLASSES, PlainNet, assert_same, compiled, images, labels, values


def with_nan() -> np.ndarray:
    x = images()
    x[5, 0, 0] = np.nan
    return x


def folder(path: Path, sizes: list[int], damage: bool = False) -> Any:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in "abc":
        (path / name).mkdir()
        for i, size in enumerate(sizes):
            Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(path / name / f"{i}.jpg")
    if damage:
        file = path / "b" / "0.jpg"
        file.write_bytes(file.read_bytes()[:-30])
    return resfit.data.folder(path, mode="L", threads=0)


def ends_early() -> Iterator[Any]:
    yield images(8), labels(8)
    yield images(8), labels(8)


def dies() -> Iterator[Any]:
    yield images(8), labels(8)
    raise ConnectionResetError("the server has gone away")


def huggingface(**columns: Any) -> Any:
    import datasets

    features = datasets.Features({"img": datasets.Array3D((8, 8, 1), "float32"), "fine_label": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"img": images(8), "fine_label": labels(8).tolist()}, features=features)
    return resfit.data.huggingface(data, **columns)


class Mistake(NamedTuple):
    """A function that makes x in an empty folder, the other arguments of fit, and a pattern of the error message."""

    x: Callable[[Path], Any]
    arguments: dict[str, Any]
    words: str
    error: type[Exception] = DataError


MISTAKES = {
    "lengths": Mistake(lambda _: images(20), {"y": labels(19)}, r"one entry per example.*'x': 20, 'y': 19"),
    "empty": Mistake(lambda _: images(0), {"y": labels(0)}, "no examples"),
    "float labels": Mistake(lambda _: images(), {"y": labels().astype(np.float32)}, "float32", LabelError),
    "nan": Mistake(lambda _: with_nan(), {"y": labels()}, r"x\[5\] holds NaN.*nan_to_num"),
    "text labels": Mistake(
        lambda _: images(),
        {"y": np.array(["cat", "dog"] * 10)},
        r"Convert class names to numbers: np.unique\(y, ret",
    ),
    "labels from one": Mistake(lambda _: images(), {"y": labels() + 1}, f"{CLASSES}", LabelError),
    "objects": Mistake(
        lambda _: np.array([images(1)[0], images(1)[0, :4]], dtype=object), {"y": [0, 1]}, "all images have one size"
    ),
    "unequal sizes": Mistake(lambda path: folder(path, [8, 10]), {}, r"size=n\b.*to resize"),
    "truncated file": Mistake(lambda path: folder(path, [8], damage=True), {}, r"b/0\.jpg"),
    "missing column": Mistake(lambda _: huggingface(image="image"), {}, r"'image'.*img.*fine_label"),
    "ends early": Mistake(lambda _: ends_early(), {"steps_per_epoch": 5}, "all its batches have been used"),
    "dies": Mistake(lambda _: dies, {}, "the server has gone away", ConnectionResetError),
    "no batches": Mistake(lambda _: iter([]), {}, "yielded no batch"),
}


@pytest.mark.representatives(
    "lengths", "float labels", "nan", "labels from one", "objects", "truncated file", "ends early", "no batches"
)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_and_leaves_the_model_unchanged(name: str, tmp_path: Path) -> None:
    mistake = MISTAKES[name]
    model, reference = (compiled(PlainNet(rngs=nnx.Rngs(0))) for _ in range(2))
    arguments = {"batch_size": 8, "shuffle": False, "verbose": 0}
    with pytest.raises(mistake.error, match=f"(?s){mistake.words}"):
        model.fit(mistake.x(tmp_path), **{**arguments, **mistake.arguments})
    done = model.history.epoch if model.history is not None else []
    assert done == []
    if name not in ("ends early", "dies"):  # good batches preceded the error
        assert_same(values(model.module), values(reference.module))
        reference.fit(images(), labels(), **arguments)
        model.fit(images(), labels(), **arguments)
        assert_same(values(model.module), values(reference.module))


def test_updates_before_a_stream_failed_are_kept() -> None:
    model, reference = (compiled(PlainNet(rngs=nnx.Rngs(0))) for _ in range(2))
    with pytest.raises(ConnectionResetError):
        model.fit(dies, verbose=0)
    reference.fit([(images(8), labels(8))], verbose=0)
    assert_same(values(model.module), values(reference.module))


@pytest.mark.parametrize("train", [resfit.Model.fit, resfit.Model.train_on_batch])
def test_uint8_images_raise_after_training_on_floats(train: Callable[..., Any]) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    train(model, images(), labels())
    with pytest.raises(DataError, match="Got uint8 images"):
        model.predict(np.zeros((4, 8, 8, 1), np.uint8), verbose=0)
