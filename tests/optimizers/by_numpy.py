"""Gradients of a dense layer with softmax cross-entropy in NumPy, for references of update rules."""

from collections.abc import Callable

import numpy as np

from tests.helpers import images, labels

Params = list[np.ndarray]


def start(bias: np.ndarray, kernel: np.ndarray) -> Params:
    """Return parameters of `PlainNet`, as `get_weights` gives them, in float64."""
    return [np.float64(bias), np.float64(kernel)]


def gradients(params: Params) -> Params:
    """Return the gradients by bias and kernel of the mean loss of eight examples, in float64."""
    x, y = images(8).reshape(8, -1).astype(np.float64), labels(8)
    bias, kernel = params
    logits = x @ kernel + bias
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    return [p.mean(axis=0), x.T @ p / len(y)]


def each(function: Callable[..., np.ndarray], *trees: Params) -> Params:
    """Apply a function to the arrays of each parameter."""
    return [function(*parts) for parts in zip(*trees, strict=True)]
