"""Loading of a network's weights from a file, and saving to a file."""

import os
from pathlib import Path

import numpy as np
from flax import nnx

from resfit._utils import atomic_write
from resfit._utils.jax_switches import suspending
from resfit._utils.paths import expand_user
from resfit.errors import WeightsError
from resfit.nets import ResNet
from resfit.weights import architecture
from resfit.weights.formats import read, to_safetensors
from resfit.weights.names import COUNT_OF_NORM, NAMINGS
from resfit.weights.state_dict import Head, Stem, fitting, load_state_dict, state_dict


@suspending
def load(
    module: nnx.Module,
    path: str | os.PathLike[str],
    *,
    naming: str | None = None,
    head: Head = "keep",
    stem: Stem = "keep",
    ema: bool = False,
) -> None:
    """Load the weights of another library from a file into a network, in place, without executing anything in the file.

    The formats are safetensors, files of `torch.save` (a state dict, or a training checkpoint that contains one; also
    the form before PyTorch 1.6), and `.h5` files of keras.applications. The content determines the format, not the file
    name. Neither PyTorch nor TensorFlow is needed.

    Args:
        module: a `resfit.nets.ResNet`.
        path: the file.
        naming: as in `load_state_dict` (by default, the naming that fits the file).
        head: `"reset"` does not load the last layer, for other classes (default `"keep"`).
        stem: `"sum"` or `"repeat"` adapt the first kernel to other channels, as in `load_state_dict` (default
            `"keep"`).
        ema: load the averaged weights of a training checkpoint (default False: the trained weights).

    Raises:
        WeightsError: if the file cannot be read or does not fit the network (the message lists all differences), or if
            its source describes a network that computes something else: a `config.json` of timm or transformers beside
            a `model.safetensors`, the repository in the hub's cache, or the name of a torchvision file.

    Example:
        >>> from resfit.nets import create_model
        >>> save(create_model("resnet20", num_classes=10), "resnet20.safetensors")
        >>> load(create_model("resnet20", num_classes=3), "resnet20.safetensors", head="reset")
    """
    try:
        if isinstance(module, ResNet):
            architecture.check(Path(expand_user(path)), module.spec)
        load_state_dict(module, read(path, ema=ema), naming=naming, head=head, stem=stem)
    except WeightsError as error:
        raise WeightsError(f"{error} (The file: {path})") from error


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
    library = NAMINGS[naming or fitting(module, arrays)]
    if library.counts_batches:
        last = library.separator + library.leaves["mean"]
        counts = {name.removesuffix(last) for name in arrays if name.endswith(last)}
        arrays |= {f"{norm}{library.separator}{COUNT_OF_NORM}": np.zeros((), "i8") for norm in sorted(counts)}
    atomic_write.write(path, to_safetensors(arrays))
