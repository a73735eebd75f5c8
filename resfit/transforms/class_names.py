"""Class names: the most probable classes of an image, and the names of ImageNet."""

import ast
import importlib.util
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from resfit._utils.checks import positive_int
from resfit._utils.keywords import checked
from resfit.errors import DataError, LabelError, MissingPackageError


@checked("function arguments")
def top_k(
    probabilities: Any, k: int = 5, class_names: Sequence[str] | None = None
) -> list[list[tuple[str | int, float]]]:
    """Return the most probable classes of each image, as Keras's `decode_predictions` does, for any classes.

    Args:
      probabilities: (images, classes), as `predict(outputs="probabilities")` returns them.
      k: the number of classes to return; at most all classes.
      class_names: class names by number, such as `model.class_names`; None for class numbers.

    Returns:
      For each image [(name, probability), ...], sorted by descending probability; ties by class number.

    Raises:
      LabelError: if `probabilities` are not probabilities, for example logits.
      DataError: if the number of names differs from the number of classes, or `k` is below one.

    Example:
      >>> top_k([[0.25, 0.5, 0.125, 0.125]], 2, ["cat", "dog", "cow", "hen"])
      [[('dog', 0.5), ('cat', 0.25)]]
    """
    rows = np.asarray(probabilities)
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
        raise LabelError(
            f"top_k got {rows.dtype} of shape {rows.shape}. Expected probabilities, (images, classes). Pass the result "
            "of predict(x, outputs='probabilities')."
        )
    if not (np.all(rows >= 0) and np.allclose(rows.sum(axis=1), 1, atol=1e-3)):
        raise LabelError(
            f"top_k got rows with values from {rows.min():.4g} to {rows.max():.4g} that do not each add up to 1. "
            "Expected probabilities. Pass predict(x, outputs='probabilities') instead of logits. For a multi-label "
            "model, use predict(x, outputs='labels'), which marks the labels above 0.5."
        )
    k = positive_int("k", k, DataError)
    names = list(range(rows.shape[1])) if class_names is None else check_class_names(class_names, rows.shape[1])
    order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
    return [
        [(names[number], float(row[number])) for number in best] for row, best in zip(rows, order.tolist(), strict=True)
    ]


def check_class_names(names: Any, classes: int | None) -> list[str]:
    """Return class names as a list.

    Args:
      names: the class names by number.
      classes: the number of classes; None if it is unknown.

    Raises:
      DataError: if `names` is not a sequence of strings, or has another length than `classes`.
    """
    sequence = isinstance(names, Iterable) and not isinstance(names, str)
    if not sequence or not all(isinstance(name, str) for name in names):
        raise DataError(f"Expected class names as a list of strings in class order, got {str(names)[:80]!r}.")
    listed = list(names)
    if classes is not None and len(listed) != classes:
        shown = listed[:3] + ["..."] * (len(listed) > 3)
        raise DataError(
            f"Got {len(listed)} class names, {shown}, for {classes} classes. Expected one name per class. Set "
            "model.class_names to a complete list, or to None."
        )
    return listed


@checked("function arguments")
def imagenet_class_names() -> list[str]:
    """Return the names of ImageNet's 1,000 classes, read from the files of torchvision without importing it.

    Raises:
      MissingPackageError: if torchvision is not installed, or does not have the list in the expected file.
    """
    spec = importlib.util.find_spec("torchvision")  # finds a top-level package without running it
    file = None if spec is None or spec.origin is None else pathlib.Path(spec.origin).parent / "models" / "_meta.py"
    if file is not None and file.is_file():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_IMAGENET_CATEGORIES":
                return check_class_names(ast.literal_eval(node.value), 1000)
    raise MissingPackageError(
        "resfit.imagenet_class_names reads the names from torchvision, which is not installed or has another layout. "
        "Install it with pip install torchvision, or set model.class_names to your own list.",
        name="torchvision",
    )
