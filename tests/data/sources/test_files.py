"""Image files by their paths: labels of every kind, checked before training; decoded as in a folder."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from resfit.data import Geometry, as_batches, files, folder
from resfit.errors import DataError


@pytest.fixture
def table(tmp_path: Path) -> pd.DataFrame:
    """Return paths and labels of images whose first pixel is their number."""
    rows = []
    for i in range(6):
        name = ("dog", "ant", "cat")[i % 3]
        path = tmp_path / name / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(path)
        rows.append((str(path), name))
    return pd.DataFrame(rows, columns=["path", "label"]).sample(frac=1, random_state=0)


def test_columns_of_a_table_become_images_and_class_numbers(table: Any) -> None:
    found = files(table["path"], table["label"])
    assert found.classes == ("ant", "cat", "dog")
    assert found.labels is not None
    assert [found.classes[label] for label in found.labels] == table["label"].tolist()
    (batch,) = as_batches(found, geometry=Geometry(6, seed=0)).epoch(0)
    assert sorted(batch.x[:, 0, 0, 0]) == list(range(6))
    assert [("dog", "ant", "cat")[i % 3] for i in batch.x[:, 0, 0, 0]] == [found.classes[label] for label in batch.y]


def test_the_images_are_those_of_a_folder_with_the_same_options(table: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"size": 4, "crop": "random", "mode": "L"}
    whole = folder(tmp_path, **options)
    same = files(whole.paths, whole.labels, classes=whole.classes, **options)
    for one, other in zip(*(as_batches(x, geometry=Geometry(4, seed=1)).epoch(2) for x in (whole, same)), strict=True):
        np.testing.assert_array_equal(one.x, other.x)
        np.testing.assert_array_equal(one.y, other.y)
    assert same.description == whole.description


@pytest.mark.parametrize(
    ("labels", "expected", "classes"),
    [
        (["b", "a"], [1, 0], ("a", "b")), (("b", "a"), [1, 0], ("a", "b")), (np.array(["b", "a"]), [1, 0], ("a", "b")),
        (pd.Series(["b", "a"], dtype="category"), [1, 0], ("a", "b")), ([5, 2], [5, 2], None),
        ([True, False], [1, 0], None), (pd.Series([0, 1], index=[7, 3]), [0, 1], None), ([0.5, 1.5], [0.5, 1.5], None),
        ([[0, 1], [1, 1]], [[0, 1], [1, 1]], None),
        (pd.DataFrame({"b": [0, 1], "a": [1, 1]}), [[0, 1], [1, 1]], ("b", "a")), (None, None, None),
    ],
)  # fmt: skip
def test_labels_can_be_names_numbers_and_rows_of_numbers(labels: Any, expected: Any, classes: Any, table: Any) -> None:
    found = files(table["path"][:2], labels)
    assert (None if found.labels is None else found.labels.tolist()) == expected
    assert found.classes == classes
    x, y, _ = found.take(np.array([1, 0]))
    assert x.shape == (2, 8, 8, 3)
    assert (None if y is None else y.tolist()) == (None if expected is None else expected[::-1])


def test_class_names_of_another_split_keep_their_numbers(table: Any) -> None:
    assert files(table["path"][:1], ["b"], classes=("a", "b")).labels.tolist() == [1]  # type: ignore[union-attr]
    assert files(table["path"][:1], [0], classes=("a", "b")).classes == ("a", "b")
    assert "of 2 classes" in repr(files(table["path"][:2], ["a", "b"]))
    assert "2 images, size" in repr(files(table["path"][:2])[:2])
    assert files(table["path"], table["label"])[0][1] in (0, 1, 2)


P = Path(__file__)  # any file that exists

WRONG: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "a single path": ("a.png", None, {}, r"single path 'a\.png'.*Pass \[path\]"),
    "a table": (
        pd.DataFrame({"path": ["a"], "y": [1]}), None, {}, r"resfit\.data\.files\(table\['path'\], table\['y'\]\)"
    ),
    "no path": ([], None, {}, "paths is empty"),
    "a missing path": ([P, float("nan")], None, {}, r"paths\[1\] is nan, a float.*table\.dropna\(\)"),
    "files that do not exist": ([P, "b.png", "c.png"], None, {}, r"2 of 3 files do not exist, such as b\.png"),
    "fewer labels": ([P, P], [1], {}, "Got 2 paths and 1 labels"),
    "a missing label": ([P, P], ["a", None], {}, "no value for 1 of 2 images, such as image 1"),
    "a missing number": ([P, P], pd.Series([1, None], dtype="Int64"), {}, "no value for 1 of 2 images"),
    "names and numbers": ([P, P], ["a", 1], {}, "holds text"),
    "an unknown name": ([P], ["b"], {"classes": ["a"]}, r"the labels hold \['b'\]"),
    "a name twice": ([P], ["a"], {"classes": ["a", "a"]}, "each label once"),
    "labels by path": ([P, P], {"a.png": 0, "b.png": 1}, {}, r"labels is a dict.*zip\(\*labels\.items\(\)\)"),
    "paths in a set": ({"a.png"}, [0], {}, r"paths is a set.*sorted\(paths\)"),
    "a text of labels": ([P, P], "ab", {}, "labels is 'ab'. Expected one entry per image"),
    "a single label": ([P], 3, {}, "labels is 3. Expected one entry per image"),
    "a single number as paths": (3, None, {}, "paths is 3. Expected one entry per image"),
    "rows of different lengths": ([P, P], [[1, 0], [1]], {}, "labels holds rows of different lengths"),
    "a path in bytes": ([b"a.png"], [1], {}, r"os\.fsdecode"),
    "a number without a name": ([P], [2], {"classes": ["a", "b"]}, "numbers from 2 to 2, but classes has 2 names"),
    "other columns": ([P], pd.DataFrame({"a": [1]}), {"classes": ["b"]}, r"the columns of the labels are \('a',\)"),
    "an unknown mode": ([P], [1], {"mode": "CMYK"}, "mode to be one of"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_raise(case: str) -> None:
    paths, labels, options, words = WRONG[case]
    with pytest.raises(DataError, match=words):
        files(paths, labels, **options)


def test_relative_and_absolute_paths_can_be_mixed(table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    paths = table["path"].tolist()
    mixed = files([os.path.relpath(paths[0]), *paths[1:]])
    assert mixed.take(slice(0, 1))[0].shape == (1, 8, 8, 3)
    assert mixed.description["files"] != files(paths).description["files"]
