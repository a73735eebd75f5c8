"""Creation of zoo networks, with initial values or published weights."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx

from resfit import nets
from resfit._utils.jax_switches import suspending
from resfit.errors import SpecError
from resfit.weights import read
from resfit.weights.find import number_of_classes
from resfit.weights.hub import locate
from resfit.weights.load_save import fill_from
from resfit.weights.state_dict import Head, Options, Stem, first_kernel_channels

_log = logging.getLogger("resfit")


@suspending
def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int = 3,
    rngs: nnx.Rngs | int = 0,
    weights: str | os.PathLike[str] | None = None,
    **spec_overrides: Any,
) -> nets.ResNet:
    """Create a network of the zoo, with initial values or published weights.

    Args:
        name: one of `list_models()`.
        num_classes: the number of logits (default: the number of classes of the weights).
        in_channels: channels of the images (default 3).
        rngs: an `nnx.Rngs` or a seed for the initial values (default 0).
        weights: None (default) for initial values; `"torchvision/IMAGENET1K_V2"`; a repository of the Hugging Face hub
            with an optional `@revision`, such as `"timm/resnet50.a1_in1k"` or `"microsoft/resnet-50"`; or the path of a
            file that `resfit.weights.load` reads. Downloads are checked and cached, and later calls need no network.
            With another `num_classes` than the weights, the last layer keeps its initial values; with another
            `in_channels`, the first kernel is summed (to one channel) or repeated. The log reports both.
        **spec_overrides: any other field of `ResNetSpec`, such as `stem="cifar"`, `shortcut="B"` or
            `dtype="bfloat16"`.

    Raises:
        SpecError: if the name or a field is unknown, or a value is not allowed.
        WeightsError: if the weights do not fit the network, their source describes a network that computes something
            else (see `resfit.weights.load`), or their file cannot be read.
        DownloadError: if the weights are not cached and cannot be downloaded.

    Example:
        >>> import jax.numpy as jnp
        >>> net = create_model("resnet20", num_classes=10)
        >>> net(jnp.ones((1, 32, 32, 3))).shape
        (1, 10)
    """
    if weights is None:
        if num_classes is None:
            raise SpecError(
                f"create_model({name!r}) received no num_classes. Expected the number of logits. Pass num_classes."
            )
        return nets.create_model(name, num_classes=num_classes, in_channels=in_channels, rngs=rngs, **spec_overrides)
    if name not in nets.ZOO:
        nets.create_model(name, num_classes=1)  # raises before the download
    path = locate(weights, name)
    arrays = read(path)
    theirs = number_of_classes(arrays)
    if num_classes is None and theirs is None:
        raise SpecError(
            f"{path} contains no last layer. Expected num_classes in create_model({name!r}, num_classes=...). Add it."
        )
    classes = theirs if num_classes is None else num_classes
    net = nets.create_model(name, num_classes=classes or 1, in_channels=in_channels, rngs=rngs, **spec_overrides)
    head: Head = "keep"
    if classes != theirs:
        head = "reset"
        was = "contains no last layer" if theirs is None else f"is for {theirs} classes"
        _log.info("%s %s: the last layer, of %s classes, keeps its initial values.", path.name, was, classes)
    fill_from(path, net, arrays, Options(head=head, stem=_stem(net, arrays, path)))
    net.published_weights = (os.fspath(weights), name)
    return net


def _stem(net: nets.ResNet, arrays: Mapping[str, Any], path: Path) -> Stem:
    theirs = first_kernel_channels(net, arrays, f"resfit.weights.load(net, {str(path)!r}")
    ours = net.spec.in_channels
    if theirs is None or theirs == ours:
        return "keep"
    stem: Stem = "sum" if ours == 1 else "repeat"
    done = "summed" if stem == "sum" else "repeated"
    _log.info("%s is for images of %s channels: its first kernel is %s for %s.", path.name, theirs, done, ours)
    return stem
