"""Selection of the image and label columns of a table by column type."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from resfit.errors import DataError

_IMAGES = ("Image", "Array2D", "Array3D")


class Columns(NamedTuple):
    """The names of the columns to read.

    Attributes:
      image: the image column.
      label: the label column; None if there are only images.
    """

    image: str
    label: str | None


def choose(features: Mapping[str, Any], image: str | None = None, label: str | None = None) -> Columns:
    """Find the image and label columns of a Hugging Face dataset.

    The image is the only column of type Image, Array2D or Array3D. The label is the only ClassLabel or, without a
    ClassLabel, the only column of integers. Column names do not matter.

    Args:
      features: column name -> feature, as in `dataset.features`.
      image: the name of the image column; None to find it.
      label: the name of the label column; None to find it. A named column can also hold floats or lists of floats.

    Raises:
      DataError: if a named column is missing or has an unsupported type, or if no column or several columns match. The
        message lists the columns.

    Example:
      >>> import datasets
      >>> choose({"img": datasets.Image(), "id": datasets.Value("int64"), "y": datasets.ClassLabel(num_classes=10)})
      Columns(image='img', label='y')
    """
    image = _image(features, image)
    return Columns(image, _label(features, image, label))


def class_names(features: Mapping[str, Any], columns: Columns) -> tuple[str, ...] | None:
    """Return the class names by number if the label is a ClassLabel, else None."""
    names = None if columns.label is None else getattr(features.get(columns.label), "names", None)
    return None if names is None else tuple(names)


def _image(features: Mapping[str, Any], name: str | None) -> str:
    if name is not None:
        feature = _named(features, "image", name)
        if _kind(feature) in ("Value", "ClassLabel"):
            remedy = ""
            if getattr(feature, "dtype", "") in ("binary", "large_binary"):
                remedy = f" For image files, call dataset.cast_column({name!r}, datasets.Image())."
            raise DataError(
                f"image={name!r} is a column of {_described(feature)}. Expected a column of type Image, Array2D or "
                f"Array3D. The columns are {_listed(features)}.{remedy}"
            )
        return name
    found = [column for column, feature in features.items() if _kind(feature) in _IMAGES]
    return _only(found, features, "image", "Image, Array2D or Array3D")


def _label(features: Mapping[str, Any], image: str, name: str | None) -> str | None:
    if name is not None:
        feature = _named(features, "label", name)
        if name == image or _kind(feature) == "Image":
            raise DataError(
                f"label={name!r} is a column of images. Expected a column of labels. The columns are "
                f"{_listed(features)}."
            )
        if getattr(feature, "dtype", "") in ("string", "large_string") and _kind(feature) == "Value":
            raise DataError(
                f"label={name!r} is a column of text. Expected class numbers. Convert the names with "
                f"dataset.class_encode_column({name!r}) or, in a stream, with "
                f"dataset.map(lambda row: {{{name!r}: names.index(row[{name!r}])}})."
            )
        return name
    others = {column: feature for column, feature in features.items() if column != image}
    if not others:
        return None
    found = [column for column, feature in others.items() if _kind(feature) == "ClassLabel"]
    found = found or [column for column, feature in others.items() if _is_integer(feature)]
    return _only(
        found, features, "label", "ClassLabel, or one column of integers",
        f" To use only the images, call dataset.select_columns([{image!r}]).",
    )  # fmt: skip


def _named(features: Mapping[str, Any], role: str, name: str) -> Any:
    if name not in features:
        raise DataError(
            f"The dataset has no column {name!r} for {role}={name!r}. Expected one of its columns: {_listed(features)}."
        )
    return features[name]


def _only(found: list[str], features: Mapping[str, Any], role: str, kinds: str, remedy: str = "") -> str:
    if len(found) == 1:
        return found[0]
    what = f"Columns {', '.join(map(repr, found))} could all be" if found else "No column is"
    raise DataError(
        f"{what} the {role}. Expected one column of type {kinds}; the columns are {_listed(features)}. Name the "
        f"column: resfit.data.huggingface(dataset, {role}=...).{remedy}"
    )


def _kind(feature: Any) -> str:
    return type(feature).__name__


def _is_integer(feature: Any) -> bool:
    return _kind(feature) == "Value" and feature.dtype.startswith(("int", "uint"))


def _described(feature: Any) -> str:
    kind = _kind(feature)
    if kind == "Value":
        return str(feature.dtype)
    if kind == "ClassLabel":
        return f"ClassLabel of {feature.num_classes} classes"
    if kind in ("Array2D", "Array3D"):
        return f"{kind} of {feature.dtype} {tuple(feature.shape)}"
    return kind


def _listed(features: Mapping[str, Any]) -> str:
    return ", ".join(f"{name!r} ({_described(feature)})" for name, feature in features.items()) or "none"
