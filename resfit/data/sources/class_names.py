"""Class names of the datasets of other libraries."""

from collections.abc import Mapping
from typing import Any

from resfit.data.batches import classes_of
from resfit.data.sources.torch_objects import is_torch


def names_of(data: Any) -> tuple[str, ...] | None:
    """Return the class names of a dataset by number, or None if the classes have no names.

    They are the attribute `classes` of torchvision, `class_names` of `keras.utils.image_dataset_from_directory`, or
    `class_indices` of `ImageDataGenerator.flow_from_directory`; or those of the dataset in a PyTorch `DataLoader`,
    `Subset` or `ConcatDataset`.

    Args:
      data: any object.
    """
    names = classes_of(data)
    if names is not None:
        return names
    listed, numbers = getattr(data, "class_names", None), getattr(data, "class_indices", None)
    if isinstance(listed, list | tuple) and listed and all(isinstance(name, str) for name in listed):
        return tuple(listed)
    if isinstance(numbers, Mapping) and sorted(numbers.values(), key=str) == sorted(range(len(numbers)), key=str):
        return tuple(sorted(numbers, key=lambda name: int(numbers[name]))) or None
    if is_torch(data, "DataLoader", "Subset"):
        return names_of(data.dataset)
    parts = data.datasets if is_torch(data, "ConcatDataset") else []
    found = {names_of(part) for part in parts}
    return found.pop() if len(found) == 1 else None
