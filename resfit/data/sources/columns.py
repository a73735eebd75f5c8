"""Which column of a table is the image and which the label, by the types of the columns."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from resfit.errors import DataError

_IMAGES = ("Image", "Array2D", "Array3D")


class Columns(NamedTuple):
    """The names of the columns to read.

    Attributes:
      image: of the images.
      label: of the labels; None where there are only images.
    """

    image: str
    label: str | None


def choose(features: Mapping[str, Any], image: str | None = None, label: str | None = None) -> Columns:
    """Finds the image and the label among the columns of a Hugging Face data set.

    The image is the one column of type Image, Array2D or Array3D. The label is the one ClassLabel, or, if there is
    none, the one column of integers. Names decide nothing, unless they are given.

    Args:
      features: column name -> feature, as `dataset.features`.
      image: the name of the image column; by default it is found.
      label: the name of the label column likewise. It may also hold floats, or a list of them for each example.

    Raises:
      DataError: if a named column is missing or of an impossible type, or if there is no column to find, or several;
        naming those there are.

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
                remedy = f" If it holds image files: dataset.cast_column({name!r}, datasets.Image())."
            raise DataError(
                f"image={name!r} names a column of {_described(feature)}. Expected images, of type Image, Array2D or "
                f"Array3D; the columns are {_listed(features)}.{remedy}"
            )
        return name
    found = [column for column, feature in features.items() if _kind(feature) in _IMAGES]
    return _only(found, features, "image", "Image, Array2D or Array3D")


def _label(features: Mapping[str, Any], image: str, name: str | None) -> str | None:
    if name is not None:
        feature = _named(features, "label", name)
        if name == image or _kind(feature) == "Image":
            raise DataError(f"label={name!r} names a column of images. The columns are {_listed(features)}.")
        if getattr(feature, "dtype", "") in ("string", "large_string") and _kind(feature) == "Value":
            raise DataError(
                f"label={name!r} names a column of text. Expected class numbers: number the names with "
                f"dataset.class_encode_column({name!r}), or, in a stream, with "
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
        f" For the images alone: dataset.select_columns([{image!r}]).",
    )  # fmt: skip


def _named(features: Mapping[str, Any], role: str, name: str) -> Any:
    if name not in features:
        raise DataError(f"There is no column {name!r} for {role}={name!r}. The columns are {_listed(features)}.")
    return features[name]


def _only(found: list[str], features: Mapping[str, Any], role: str, kinds: str, remedy: str = "") -> str:
    if len(found) == 1:
        return found[0]
    what = f"Columns {', '.join(map(repr, found))} could all be" if found else "No column is"
    raise DataError(
        f"{what} the {role}. Expected one column of type {kinds}; the columns are {_listed(features)}. Name it: "
        f"resfit.data.huggingface(dataset, {role}=...).{remedy}"
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
