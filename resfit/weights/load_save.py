"""Loading of a network's weights from a file, and saving to a file."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from flax import nnx

from resfit._utils import atomic_write
from resfit._utils.jax_switches import suspending
from resfit._utils.keywords import checked
from resfit._utils.paths import expand_user
from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights import architecture, arithmetic
from resfit.weights.find import default_naming
from resfit.weights.formats import read, to_safetensors
from resfit.weights.layouts import Array
from resfit.weights.names import COUNT_OF_NORM
from resfit.weights.public_names import NAMINGS
from resfit.weights.state_dict import Head, Options, Rename, Stem, fill, state_dict

_log = logging.getLogger("resfit")


@checked("function arguments")
@suspending
def load(
    module: nnx.Module,
    path: str | os.PathLike[str],
    *,
    naming: str | None = None,
    head: Head = "keep",
    stem: Stem = "keep",
    ema: bool = False,
    key: str | Sequence[str] = (),
    prefix: str | None = None,
    rename: Rename | None = None,
    ignore: str | Sequence[str] = (),
) -> None:
    """Load the weights of another library from a file into a network, in place, without executing anything in the file.

    The formats are safetensors, files of `torch.save` (a state dict, or a training checkpoint that contains one; also
    the form before PyTorch 1.6), `.h5`, `.weights.h5` and `.keras` files of Keras, `.npz` files, and msgpack files of
    Flax. The content determines the format, not the file name. Neither PyTorch nor TensorFlow is needed.

    Args:
        module: a `resfit.nets.ResNet`.
        path: the file.
        naming: as in `load_state_dict` (by default, the naming that fits the file).
        head: `"reset"` does not load the last layer, for other classes (default `"keep"`).
        stem: `"sum"` or `"repeat"` adapt the first kernel to other channels, as in `load_state_dict` (default
            `"keep"`).
        ema: load the averaged weights of a training checkpoint (default False: the trained weights).
        key: the entry of a nested file that contains the weights, such as `"teacher"`, or the keys of nested entries
            (by default, the usual entries of training checkpoints).
        prefix: as in `load_state_dict` (by default, the prefix is found).
        rename: as in `load_state_dict` (default None).
        ignore: as in `load_state_dict` (default: nothing).

    Raises:
        WeightsError: if the file cannot be read or does not fit the network (see `load_state_dict`), or if its source
            describes a network that computes something else: a `config.json` of timm or transformers beside a
            `model.safetensors`, the repository in the hub's cache, or the name of a file of torchvision or pytorchcv.

    Example:
        >>> from resfit.nets import create_model
        >>> save(create_model("resnet20", num_classes=10), "resnet20.safetensors")
        >>> load(create_model("resnet20", num_classes=3), "resnet20.safetensors", head="reset")
    """
    arrays = read(path, ema=ema, key=key)
    fill_from(path, module, arrays, Options(naming, head, stem, prefix, rename, ignore))


def fill_from(path: str | os.PathLike[str], module: nnx.Module, arrays: Mapping[str, Array], options: Options) -> None:
    """Load the arrays of a file into a network, in place.

    Raises:
        WeightsError: as `load`; the message names the file.
    """
    file = Path(expand_user(path))
    try:
        known = isinstance(module, ResNet) and architecture.check(file, module.spec)
        found = fill(module, arrays, options, call=f"resfit.weights.load(net, {str(path)!r}", known=known)
    except WeightsError as error:
        raise WeightsError(f"{error} (The file: {path})") from error
    if not isinstance(module, ResNet) or known or options.naming is not None or file.suffix == ".safetensors":
        return
    if hidden := arithmetic.hidden(found, module.spec):
        _log.warning("%s has the names of torchvision, which %s", file.name, hidden)


@checked("function arguments")
@suspending
def save(module: nnx.Module, path: str | os.PathLike[str], *, naming: str | None = None) -> None:
    """Save a network's weights as a safetensors file with the names of another library.

    `safetensors.torch.load_file(path)` returns a state dict that the network of torchvision, timm or transformers loads
    with `strict=True`. The write is atomic. To continue in resfit, use `Model.save`, which also saves the specification
    and the preprocessing.

    Args:
        module: a `resfit.nets.ResNet`.
        path: the path of the file, ending in ".safetensors".
        naming: as in `state_dict`.

    Raises:
        WeightsError: if the path has another ending, or the library has no name for a part of the network.

    Example:
        >>> from resfit.nets import create_model
        >>> save(create_model("resnet20", num_classes=10), "resnet20.safetensors")
    """
    path = Path(expand_user(path))
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"Received the path {str(path)!r}. Expected a path that ends in '.safetensors'. For a .pth file, load the "
            "result with safetensors.torch.load_file and save it with torch.save."
        )
    arrays = state_dict(module, naming=naming)
    library = NAMINGS[naming or default_naming(module)]
    if library.counts_batches:
        last = library.separator + library.leaves["mean"]
        counts = {name.removesuffix(last) for name in arrays if name.endswith(last)}
        arrays |= {f"{norm}{library.separator}{COUNT_OF_NORM}": np.zeros((), "i8") for norm in sorted(counts)}
    atomic_write.write(path, to_safetensors(arrays))
