"""Classes by their names: the most probable ones, and what ImageNet's are called."""

import ast
import importlib.util
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from resfit._utils.checks import positive_int
from resfit.errors import DataError, LabelError, MissingPackageError


def top_k(
    probabilities: Any, k: int = 5, class_names: Sequence[str] | None = None
) -> list[list[tuple[str | int, float]]]:
    """The most probable classes of each image, with their probabilities: Keras's `decode_predictions`, for any classes.

    Args:
      probabilities: (images, classes), as `predict(outputs="probabilities")` gives them.
      k: how many; all, where there are fewer.
      class_names: by number, such as `model.class_names`; None for the numbers themselves.

    Returns:
      For each image [(name, probability), ...], the most probable first; of equal ones that of the smaller number.

    Raises:
      LabelError: for anything but probabilities, such as logits.
      DataError: for another number of names than of classes, and a k below one.

    Example:
      >>> top_k([[0.25, 0.5, 0.125, 0.125]], 2, ["cat", "dog", "cow", "hen"])
      [[('dog', 0.5), ('cat', 0.25)]]
    """
    rows = np.asarray(probabilities)
    if rows.ndim != 2 or not np.issubdtype(rows.dtype, np.floating):
        raise LabelError(
            f"top_k got {rows.dtype} of shape {rows.shape}. Expected probabilities, (images, classes), as "
            "predict(x, outputs='probabilities') gives them."
        )
    if not (np.all(rows >= 0) and np.allclose(rows.sum(axis=1), 1, atol=1e-3)):
        raise LabelError(
            f"top_k got rows with values from {rows.min():.4g} to {rows.max():.4g} that do not each add up to 1. "
            "Expected probabilities: predict(x, outputs='probabilities') instead of logits. Labels of a multi-label "
            "model do not compete: predict(x, outputs='labels') marks those above 0.5."
        )
    k = positive_int("k", k, DataError)
    names = list(range(rows.shape[1])) if class_names is None else check_class_names(class_names, rows.shape[1])
    order = np.argsort(-rows, axis=1, kind="stable")[:, :k]
    return [
        [(names[number], float(row[number])) for number in best] for row, best in zip(rows, order.tolist(), strict=True)
    ]


def check_class_names(names: Any, classes: int | None) -> list[str]:
    """Names of classes as a list.

    Args:
      names: by number.
      classes: how many there must be; None if nobody knows.

    Raises:
      DataError: if they are no sequence of strings, or another number.
    """
    sequence = isinstance(names, Iterable) and not isinstance(names, str)
    if not sequence or not all(isinstance(name, str) for name in names):
        raise DataError(f"Expected the names of classes as a list of strings by number, got {str(names)[:80]!r}.")
    listed = list(names)
    if classes is not None and len(listed) != classes:
        shown = listed[:3] + ["..."] * (len(listed) > 3)
        raise DataError(
            f"Got {len(listed)} names of classes, {shown}, and there are {classes} classes. Expected one for each: set "
            "model.class_names anew, or to None."
        )
    return listed


def imagenet_class_names() -> list[str]:
    """The names of ImageNet's 1,000 classes, by number, from torchvision where it is installed. It is not imported.

    Raises:
      MissingPackageError: if torchvision is not installed, or has no such list where it used to be.
    """
    spec = importlib.util.find_spec("torchvision")  # finds a top-level package without running it
    file = None if spec is None or spec.origin is None else pathlib.Path(spec.origin).parent / "models" / "_meta.py"
    if file is not None and file.is_file():
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_IMAGENET_CATEGORIES":
                return check_class_names(ast.literal_eval(node.value), 1000)
    raise MissingPackageError(
        "resfit.imagenet_class_names reads them from torchvision, which is not installed, or keeps them elsewhere. "
        "Install it: pip install torchvision; or set model.class_names to a list of your own.",
        name="torchvision",
    )
