"""`ImageModel`: names for photographs, and fine-tuning to other classes."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit import augment as augment_
from resfit import optimizers, schedules
from resfit._utils.checks import positive_int
from resfit._utils.keywords import checked, shown
from resfit._utils.paths import expand_user
from resfit.callbacks import Callback, History
from resfit.data import Geometry, ImageFiles, as_batches
from resfit.data.batches import classes_of
from resfit.data.cores import cores
from resfit.data.decode import is_picture
from resfit.data.sources.folder import images_below
from resfit.errors import DataError, LabelError, ModuleError
from resfit.trainer.arguments import unpacked
from resfit.trainer.copied_model import CopiedModel
from resfit.transforms import FolderTransforms, Transforms
from resfit.transforms.class_names import top_k

HEAD_RATE = 10 / 3  # the learning rate of the head alone, divided by that of all layers; see recipes/finetune.py
DECAY = 0.75  # of the learning rate, from each part to the one before it


class ImageModel(CopiedModel):
    """Names photographs, and learns other classes."""

    @checked("arguments")
    def predict_images(self, images: Any, top: int = 3, *, batch_size: int | None = None, weights: str = "raw") -> Any:
        """Return the most probable classes of photographs, with their names and probabilities.

        Photographs are resized and cropped by `transforms`, which `fit` on a folder sets, and named by `class_names`.

        Args:
          images: one photograph: a path, the bytes of a file, a PIL image, or uint8 pixels (height, width, channels);
            a list of photographs, or pixels (images, height, width, channels); or a folder, as a path or as
            `resfit.data.folder` returns it. A model without transforms takes pixels only, at the size of the training.
          top: the number of classes to return.
          batch_size: as in `predict`.
          weights: "raw", as trained; "ema", averaged (see `compile`).

        Returns:
          [(name, probability), ...] of one photograph, by descending probability; a list of these for several; and a
          dict path -> these for a folder. Without class names, the names are class numbers.

        Raises:
          DataError: if a file cannot be read, a folder has no images, or the model has no transforms for photographs.
          LabelError: if the outputs of the network are not one row of classes for each photograph.

        Example:
          >>> import resfit
          >>> model = resfit.Model(resfit.create_model("resnet20", num_classes=2, depths=(1,), widths=(8,)))
          >>> model.class_names = ["cat", "dog"]
          >>> model.transforms = resfit.transforms.FolderTransforms(size=32)
          >>> photograph = np.zeros((40, 60, 3), np.uint8)
          >>> sorted(name for name, probability in model.predict_images(photograph, top=2))
          ['cat', 'dog']
        """
        top = positive_int("top", top, DataError)
        one, paths, photographs = _listed(images)
        x = _inputs(photographs, self.transforms, self._learned.inputs.example)
        model: Any = self
        found = model.predict(x, batch_size, verbose=0, outputs="probabilities", weights=weights)
        named = _named(found, top, self.class_names, several=bool(self.multi_label))
        if paths is not None:
            return dict(zip(paths, named, strict=True))
        return named[0] if one else named

    @checked("arguments")
    def fine_tune(
        self,
        x: Any,
        validation_data: Any = None,
        *,
        epochs: int = 5,
        learning_rate: float = 0.003,
        batch_size: int | None = None,
        augment: augment_.AugmentArgument = None,
        callbacks: Callback | Iterable[Callback] | None = None,
        verbose: str | int = "auto",
        seed: int = 0,
    ) -> History:
        """Train a network on other classes: first a new last layer alone, then all layers, slower towards the image.

        The last layer is replaced if the data have other classes. Both phases use AdamW and one cycle of the learning
        rate, as `recipes/finetune.py`. The model is then compiled for the second phase.

        Args:
          x: as for `fit`, such as a folder; or a tuple (images, labels).
          validation_data: as for `fit`.
          epochs: of each phase.
          learning_rate: the highest rate of the last layer when all layers train; it is 10/3 of that while the layer
            trains alone, and falls by a quarter from each part of the network to the one before it.
          batch_size: as for `fit`.
          augment: as for `compile`.
          callbacks: as for `fit`, in both phases.
          verbose: as for `fit`.
          seed: of the new layer, the order and everything random.

        Returns:
          The `History` of the second phase, whose epochs are numbered after those of the first.

        Raises:
          ModuleError: if the network has no `parts` and `replace_head`, as resfit's networks have.
          DataError, LabelError: if the data cannot be trained on.

        Example:
          >>> import resfit
          >>> x, y = np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 2
          >>> model = resfit.Model(resfit.create_model("resnet20", num_classes=10, depths=(1,), widths=(8,)))
          >>> model.fine_tune((x, y), epochs=1, verbose=0).epoch
          [1]
          >>> model.predict(x, verbose=0).shape
          (8, 2)
        """
        net: Any = self._module
        if not hasattr(net, "parts") or not hasattr(net, "replace_head"):
            raise ModuleError(
                f"fine_tune got a {type(net).__name__} without parts and replace_head. Expected a network of "
                "resfit.create_model. For another module call freeze, compile and fit for each phase."
            )
        epochs = positive_int("epochs", epochs, DataError)
        data = unpacked(x, "x")
        self._fit_head_to(data, seed)
        model: Any = self
        shared = {"batch_size": batch_size, "validation_data": validation_data, "verbose": verbose}
        given = dict(zip(("x", "y", "sample_weight"), data, strict=True)) | shared | {"callbacks": callbacks}
        model.freeze(*net.parts[:-1])
        peak = schedules.OneCycle(peak=HEAD_RATE * learning_rate)
        model.compile("adamw", learning_rate=peak, augment=augment, seed=seed)
        model.fit(**given, epochs=epochs)
        model.freeze()
        by_depth = optimizers.by_depth(net.parts, optimizers.adamw(learning_rate), decay=DECAY)
        model.compile(by_depth, learning_rate=schedules.OneCycle(peak=learning_rate), augment=augment, seed=seed)
        history: History = model.fit(**given, initial_epoch=epochs, epochs=2 * epochs)
        return history

    def _fit_head_to(self, data: tuple[Any, Any, Any], seed: int) -> None:
        """Replace the last layer if the data have other classes than the network."""
        batches = as_batches(*data, geometry=Geometry(1))
        names, labels = classes_of(batches), batches.labels
        net: Any = self._module
        count = len(names) if names else _count(labels)
        has = net.spec.num_classes
        renamed = names is not None and self.class_names not in (None, list(names))
        if renamed or count not in (None, has, has + 1 if has == 1 else has):
            self.class_names = None
            net.replace_head(count, rngs=seed)


class _Photographs:
    """A `Source` of photographs, which threads resize and crop while the network runs."""

    labels = None

    def __init__(self, images: Sequence[Any], transforms: Transforms | FolderTransforms) -> None:
        self._images, self._transforms = images, transforms
        self.threads = cores()

    def __len__(self) -> int:
        return len(self._images)

    def take(self, rows: slice | np.ndarray) -> tuple[np.ndarray, None, None]:
        numbers = np.arange(len(self))[rows].tolist()
        return self._transforms.batch([self._images[number] for number in numbers]), None, None


def _listed(images: Any) -> tuple[bool, list[str] | None, Any]:
    """Return whether the argument is one photograph, the paths in a folder, and the photographs as a list or array."""
    if isinstance(images, ImageFiles):
        return False, list(images.paths), images.paths
    if isinstance(images, str | os.PathLike):
        folder = Path(expand_user(images))
        if folder.is_dir():
            paths, others = images_below(folder)
            if not paths:
                raise DataError(f"{str(folder)!r} holds no image among its {len(others)} files. Expected photographs.")
            return False, paths, paths
        return True, None, [images]
    if isinstance(images, bytes) or is_picture(images):
        return True, None, [images]
    if hasattr(images, "__array__"):
        pixels = np.asarray(images)
        if pixels.ndim == 4:
            return False, None, pixels
        return True, None, pixels[None, ..., None] if pixels.ndim == 2 else pixels[None]
    if not isinstance(images, list | tuple) or not images:
        raise DataError(
            f"predict_images got {shown(images)}. Expected a path, a PIL image, pixels, a list of these, or a folder. "
            "For other data use predict(x, outputs='probabilities') and resfit.top_k."
        )
    return False, None, list(images)


def _inputs(photographs: Any, transforms: Transforms | FolderTransforms | None, example: Any) -> Any:
    """Return photographs as data for `predict`."""
    if transforms is not None:
        return _Photographs(photographs, transforms)
    if isinstance(photographs, np.ndarray) or all(isinstance(image, np.ndarray) for image in photographs):
        return photographs if isinstance(photographs, np.ndarray) else np.stack(photographs)
    shape: tuple[int, ...] = getattr(example, "shape", ())
    size = f"({shape[0]}, {shape[1]})" if len(shape) == 3 else "(height, width)"
    raise DataError(
        f"predict_images got {shown(photographs[0])}, and model.transforms is None, so that the size of the inputs is "
        f"unknown. Expected transforms, which fit on a resfit.data.folder sets. Set model.transforms = "
        f"resfit.transforms.FolderTransforms(size={size}); FolderTransforms can also crop the center."
    )


def _named(
    probabilities: Any, top: int, names: Sequence[str] | None, *, several: bool
) -> list[list[tuple[str | int, float]]]:
    """Return the most probable classes of each row."""
    rows = probabilities
    if not several and isinstance(rows, np.ndarray) and rows.shape[1:] in ((), (1,)):  # of a single logit
        one = rows.reshape(-1, 1)
        rows = np.concatenate([1 - one, one], axis=1)
    if several and isinstance(rows, np.ndarray) and rows.ndim == 2:
        order = np.argsort(-rows, axis=1, kind="stable")[:, :top].tolist()
        listed: Sequence[str | int] = names or range(rows.shape[1])
        return [[(listed[i], float(row[i])) for i in best] for row, best in zip(rows, order, strict=True)]
    if not isinstance(rows, np.ndarray) or rows.ndim != 2:
        raise LabelError(
            f"The network returns {shown(getattr(rows, 'shape', type(rows).__name__))}. Expected probabilities "
            "(images, classes). Use predict for other outputs."
        )
    return top_k(rows, top, names)


def _count(labels: Any) -> int | None:
    """Return the number of classes of labels without names; None if it is unknown."""
    if not isinstance(labels, np.ndarray) or labels.ndim not in (1, 2) or not len(labels):
        return None
    if labels.ndim == 2 and labels.shape[1] > 1:
        return int(labels.shape[1])
    return int(labels.max()) + 1 if labels.dtype.kind in "iu" else None
