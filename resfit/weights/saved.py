"""Weights from a file into a network, and from a network into a file."""

import os
from pathlib import Path

import numpy as np
from flax import nnx

from resfit._utils import atomic_write
from resfit._utils.paths import expand_user
from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights import architecture
from resfit.weights.files import read, to_safetensors
from resfit.weights.names import COUNT_OF_NORM, NAMINGS
from resfit.weights.state_dict import Head, Stem, fitting, load_state_dict, state_dict


def load(
    module: nnx.Module,
    path: str | os.PathLike[str],
    *,
    naming: str | None = None,
    head: Head = "keep",
    stem: Stem = "keep",
    ema: bool = False,
) -> None:
    """Fills a network from a file of another library, in place. Nothing in the file is executed.

    It reads safetensors, what `torch.save` writes (a state dict, or a training checkpoint with one; also the form
    before PyTorch 1.6), and the `.h5` files of keras.applications: their content says which, not their name. Neither
    PyTorch nor TensorFlow is needed.

    Args:
        module: a `resfit.nets.ResNet`.
        path: the file.
        naming: as in `load_state_dict` (by default, what fits the file).
        head: `"reset"` leaves the last layer as it is, for other classes (default `"keep"`).
        stem: `"sum"` or `"repeat"` fit the first kernel to other channels, as in `load_state_dict` (default `"keep"`).
        ema: take the averaged weights of a training checkpoint (default False: those that were trained, if it has
            both).

    Raises:
        WeightsError: if the file cannot be read or does not fit the network (all that differs is listed), or if its
            source describes a network that computes something else: a `config.json` of timm or transformers beside a
            `model.safetensors`, the repository in the hub's cache, or the name of a torchvision file.

    Example:
        >>> from resfit.nets import create_model
        >>> save(create_model("resnet20", num_classes=10), "resnet20.safetensors")
        >>> load(create_model("resnet20", num_classes=3), "resnet20.safetensors", head="reset")
    """
    try:
        if isinstance(module, ResNet):
            architecture.check(Path(path), module.spec)
        load_state_dict(module, read(path, ema=ema), naming=naming, head=head, stem=stem)
    except WeightsError as error:
        raise WeightsError(f"{error} (The file: {path})") from error


def save(module: nnx.Module, path: str | os.PathLike[str], *, naming: str | None = None) -> None:
    """Writes a network's weights as a safetensors file that another library reads under its own names.

    `safetensors.torch.load_file(path)` gives PyTorch the state dict, which torchvision's, timm's or transformers' own
    network loads with `strict=True`. The file appears whole or not at all. To go on with resfit, `Model.save` keeps
    the network's specification and preprocessing too.

    Args:
        module: a `resfit.nets.ResNet`.
        path: of the file, ending in ".safetensors".
        naming: as in `state_dict`.

    Raises:
        WeightsError: if the path ends otherwise, or the library has no name for a part of the network.

    Example:
        >>> from resfit.nets import create_model
        >>> save(create_model("resnet20", num_classes=10), "resnet20.safetensors")
    """
    path = Path(expand_user(path))
    if path.suffix != ".safetensors":
        raise WeightsError(
            f"Received the path {str(path)!r}. Expected one that ends in '.safetensors', which "
            "safetensors.torch.load_file reads. For a .pth file, torch.save what it gives."
        )
    arrays = state_dict(module, naming=naming)
    library = NAMINGS[naming or fitting(module, arrays)]
    if library.counts_batches:
        last = library.separator + library.leaves["mean"]
        counts = {name.removesuffix(last) for name in arrays if name.endswith(last)}
        arrays |= {f"{norm}{library.separator}{COUNT_OF_NORM}": np.zeros((), "i8") for norm in sorted(counts)}
    atomic_write.write(path, to_safetensors(arrays))
