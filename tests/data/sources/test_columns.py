"""The types of the columns determine image and label; ambiguous columns raise and are listed."""

from typing import Any

import pytest
from datasets import Array2D, Array3D, ClassLabel, Image, List, Value

from resfit.data.sources.columns import choose
from resfit.errors import DataError

CIFAR100 = {"img": Image(), "fine_label": ClassLabel(num_classes=100), "coarse_label": ClassLabel(num_classes=20)}


@pytest.mark.parametrize(
    ("features", "named", "expected"),
    [
        ({"img": Image(), "label": ClassLabel(num_classes=10)}, {}, ("img", "label")),
        ({"label": Image(), "image": ClassLabel(num_classes=10)}, {}, ("label", "image")),  # names do not matter
        ({"pixels": Array3D((8, 8, 3), "uint8"), "y": Value("int32")}, {}, ("pixels", "y")),
        ({"pixels": Array2D((8, 8), "uint8"), "y": Value("uint8")}, {}, ("pixels", "y")),
        ({"jpg": Image(), "id": Value("int64"), "cls": ClassLabel(num_classes=2)}, {}, ("jpg", "cls")),
        ({"jpg": Image(), "name": Value("string"), "cls": Value("int64")}, {}, ("jpg", "cls")),
        ({"jpg": Image()}, {}, ("jpg", None)),
        (CIFAR100, {"label": "fine_label"}, ("img", "fine_label")),
        ({"a": Image(), "b": Image(), "y": Value("int8")}, {"image": "b"}, ("b", "y")),
        ({"a": Image(), "y": List(Value("float32"))}, {"label": "y"}, ("a", "y")),
        ({"a": Image(), "y": Value("float32")}, {"label": "y"}, ("a", "y")),
        ({"a": List(List(Value("uint8"))), "y": Value("int64")}, {"image": "a"}, ("a", "y")),
    ],
)
def test_columns_are_found_by_type(features: dict[str, Any], named: dict[str, str], expected: Any) -> None:
    assert choose(features, **named) == expected


@pytest.mark.parametrize(
    ("features", "named", "message"),
    [
        (CIFAR100, {"image": "image"}, "no column 'image' for image='image'.*columns: 'img' \\(Image\\), 'fine_label'"),
        (CIFAR100, {"label": "label"}, "no column 'label'.*'coarse_label' \\(ClassLabel of 20 classes\\)"),
        (CIFAR100, {}, "Columns 'fine_label', 'coarse_label' could all be the label.*label=\\.\\.\\."),
        ({"a": Image(), "b": Image()}, {}, "Columns 'a', 'b' could all be the image"),
        ({"text": Value("string"), "y": Value("int64")}, {}, "No column is the image.*'text' \\(string\\), 'y'"),
        ({}, {}, "No column is the image.*the columns are none"),
        ({"a": Image(), "i": Value("int64"), "j": Value("int64")}, {}, "Columns 'i', 'j' could all be the label"),
        ({"a": Image(), "y": Value("string")}, {}, "No column is the label.*select_columns\\(\\['a'\\]\\)"),
        ({"a": Image(), "y": Value("string")}, {"label": "y"}, "column of text.*class_encode_column"),
        ({"a": Image(), "y": Value("float32")}, {}, "No column is the label"),
        ({"a": Image(), "b": Image()}, {"image": "a", "label": "b"}, "label='b' is a column of images"),
        ({"a": Image()}, {"label": "a"}, "label='a' is a column of images"),
        ({"a": Value("binary"), "y": Value("int64")}, {"image": "a"}, "of binary.*cast_column\\('a', datasets.Image"),
        (CIFAR100, {"image": "fine_label"}, "image='fine_label' is a column of ClassLabel of 100 classes"),
    ],
)  # fmt: skip
def test_ambiguous_or_missing_columns_are_listed(features: dict[str, Any], named: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose(features, **named)
