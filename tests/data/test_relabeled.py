"""Data with other class numbers than the training data are mapped by class name, or raise."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import resfit
from resfit.data import ArraySource, Geometry, as_batches
from resfit.data.batches import classes_of
from resfit.data.relabeled import relabeled
from resfit.errors import DataError
from tests.helpers import PlainNet, compiled, fit, images, labels

NAMES = ("ant", "bee", "cat")


class NamedSource(ArraySource):
    """Arrays with class names."""

    def __init__(self, x: Any, y: Any, classes: Any) -> None:
        super().__init__(x, y)
        self.classes = classes


def named(classes: Any, n: int = 12) -> NamedSource:
    """Return images whose first pixel is their class number in NAMES, with labels in the order of `classes`."""
    numbers = np.arange(n) % len(classes)
    x = images(n)
    x[:, 0, 0, 0] = [NAMES.index(classes[number]) if classes[number] in NAMES else 0 for number in numbers]
    return NamedSource(x, numbers.astype("int32"), classes)


def cut(data: Any) -> Any:
    return as_batches(data, geometry=Geometry(5, pad=True))


@given(order=st.permutations(NAMES), kept=st.integers(1, 3))
def test_labels_are_mapped_by_name_to_the_training_classes(order: list[str], kept: int) -> None:
    batches = relabeled(cut(named(order[:kept])), NAMES, "x")
    for batch in batches.epoch(0):
        np.testing.assert_array_equal(batch.y, batch.x[:, 0, 0, 0])
        assert batch.y.dtype == np.int32
    assert classes_of(batches) in (NAMES, tuple(order[:kept]))
    np.testing.assert_array_equal(batches.labels, [NAMES.index(order[i % kept]) for i in range(12)])


def test_columns_of_soft_labels_are_mapped_and_negative_numbers_are_kept() -> None:
    soft = NamedSource(images(2), np.array([[0.25, 0.75], [1.0, 0.0]]), ("cat", "ant"))
    np.testing.assert_array_equal(relabeled(cut(soft), NAMES, "x").labels, [[0.75, 0, 0.25], [0, 0, 1]])
    unknown = NamedSource(images(2), np.array([-1, 1]), ("cat", "ant"))
    np.testing.assert_array_equal(relabeled(cut(unknown), NAMES, "x").labels, [-1, 0])
    with pytest.raises(DataError, match="one column per class"):
        _ = relabeled(cut(NamedSource(images(2), np.array([0.0, 1.0]), ("cat", "ant"))), NAMES, "x").labels


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int8, np.int64, np.uint64])
def test_new_class_numbers_may_exceed_the_dtype_of_the_labels(dtype: Any) -> None:
    many = [f"class {i}" for i in range(400)]
    data = NamedSource(images(3), np.array([0, 1, 0], dtype), ("class 300", "class 2"))
    mapped = relabeled(cut(data), many, "x").labels
    np.testing.assert_array_equal(mapped, [300, 2, 300])
    assert mapped.dtype.kind == "i"


def test_a_class_number_without_a_name_raises() -> None:
    data = NamedSource(images(3), np.array([0, 1, 2]), ("cat", "ant"))
    with pytest.raises(DataError, match="the class number 2, but the data have names for 2 classes"):
        _ = relabeled(cut(data), NAMES, "x").labels


@pytest.mark.parametrize(
    ("theirs", "classes", "words"),
    [
        (("bee", "cat", "dog"), NAMES, r"\['bee', 'cat', 'dog'\].*\['ant', 'bee', 'cat'\]: \['dog'\] are not among"),
        (("n01", "n02"), NAMES, r"\['n01', 'n02'\] are not among them"),
        (("crane", "ant"), ("crane", "ant", "crane"), r"\['crane'\] occur more than once"),
    ],
)
def test_other_classes_raise_with_both_lists(theirs: Any, classes: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        relabeled(cut(named(theirs)), classes, "validation_data")


@pytest.mark.parametrize("classes", [None, (), "abc", (1, 2), 3])
def test_data_without_names_are_unchanged(classes: Any) -> None:
    batches = cut(NamedSource(images(4), labels(4), classes))
    assert classes_of(batches) is None
    assert relabeled(batches, NAMES, "x") is batches


def pictures(path: Path, names: Any) -> Any:
    for name in names:
        (path / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(path / name / "1.png")
    return path


def table(names: Any) -> datasets.Dataset:
    features = datasets.Features(x=datasets.Array3D((8, 8, 1), "float32"), label=datasets.ClassLabel(names=list(names)))
    return datasets.Dataset.from_dict({"x": images(3), "label": [0, 1, 0]}, features=features)


@pytest.mark.parametrize("kind", ["folder", "table", "stream", "class weights", "on the device"])
def test_every_source_has_class_names(kind: str, tmp_path: Path) -> None:
    geometry = Geometry(2)
    made = {
        "folder": lambda: as_batches(resfit.data.folder(pictures(tmp_path, NAMES)), geometry=geometry),
        "table": lambda: as_batches(table(NAMES), geometry=geometry),
        "stream": lambda: as_batches(table(NAMES).to_iterable_dataset(), geometry=geometry),
        "class weights": lambda: as_batches(named(NAMES), class_weight={0: 2.0}, geometry=geometry),
        "on the device": lambda: as_batches(named(NAMES), geometry=geometry, cache="device"),
    }[kind]()
    assert classes_of(made) == NAMES


# --- with a model -----------------------------------------------------------------------------------------------------


def model() -> Any:
    return compiled(PlainNet(rngs=nnx.Rngs(0)))


def numbers(data: NamedSource) -> tuple[Any, Any]:
    """Return the same examples as arrays, with the class numbers of NAMES."""
    x, y, _ = data.take(slice(0, len(data)))
    return x, np.array([NAMES.index(data.classes[i]) for i in y])


def test_validation_and_evaluation_use_the_class_numbers_of_training() -> None:
    one, other = model(), model()
    less = named(("cat", "bee"))
    history = fit(one, named(NAMES), None, validation_data=less).history
    expected = fit(other, *numbers(named(NAMES)), validation_data=numbers(less)).history
    assert history["val_accuracy"] == expected["val_accuracy"]
    assert history["val_loss"] == expected["val_loss"]
    assert one.class_names == list(NAMES)
    assert one.evaluate(less, verbose=0) == other.evaluate(*numbers(less), verbose=0)
    assert other.class_names is None


def test_training_class_names_are_saved_during_training(tmp_path: Path) -> None:
    trained = model()
    callback = resfit.callbacks.ModelCheckpoint(str(tmp_path / "best.safetensors"))
    fit(trained, named(NAMES), None, callbacks=callback)
    loaded = resfit.load(tmp_path / "best.safetensors", module=PlainNet(rngs=nnx.Rngs(0)))
    assert loaded.class_names == list(NAMES)
    loaded.compile("sgd", dispatch="jit")
    with pytest.raises(DataError, match=r"x has the classes \['dog'\]"):
        loaded.evaluate(named(("dog",)), verbose=0)


def test_other_classes_stop_fit_before_any_change() -> None:
    fresh = model()
    with pytest.raises(DataError, match=r"validation_data has the classes.*\['dog'\] are not among them"):
        fit(fresh, named(NAMES), None, validation_data=named(("bee", "cat", "dog")))
    bad = named(NAMES)
    bad.take = lambda rows: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        fit(fresh, bad, None)
    assert fresh.class_names is None


def test_training_data_must_have_the_class_names_of_the_model() -> None:
    fresh = model()
    fresh.class_names = ["cat", "bee", "ant"]
    with pytest.raises(DataError, match=r"'ant', 'bee', 'cat'.*model\.class_names is \['cat', 'bee', 'ant'\]"):
        fit(fresh, named(NAMES), None)
    fit(fresh, named(("cat", "bee", "ant")), None)
    with pytest.raises(DataError, match="Expected the order of the training"):
        fresh.class_names = NAMES
    fresh.class_names = None
    fresh.class_names = NAMES


def test_fewer_classes_than_outputs_do_not_name_the_outputs(caplog: pytest.LogCaptureFixture) -> None:
    net = resfit.create_model("resnet20", num_classes=5, in_channels=1, depths=(1,), widths=(4,))
    assert compiled(net)._names_of_training(cut(named(NAMES))) is None
    assert "3 classes, and the network has 5 outputs" in caplog.text


def test_class_names_from_data_are_removed_with_their_head(caplog: pytest.LogCaptureFixture) -> None:
    net = resfit.create_model("resnet20", num_classes=3, in_channels=1, depths=(1,), widths=(4,))
    tuned = compiled(net)
    tuned._class_names = list(NAMES)  # as after a fit
    tuned.module.replace_head(2)
    tuned.compile("sgd", dispatch="jit")
    assert "2 outputs now, so the names of the 3 classes" in caplog.text
    assert tuned._names_of_training(cut(named(("bee", "cat")))) == ["bee", "cat"]
