"""Model files: safetensors with arrays, and JSON metadata for everything else. Loading never executes code."""

import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from resfit import preprocess as preprocess_
from resfit._utils import atomic_write
from resfit._utils.paths import expand_user
from resfit._utils.suggest import did_you_mean
from resfit.errors import CompileError, DataError, SavedModelError
from resfit.nets import ResNet, ResNetSpec
from resfit.trainer.graph.containers import assign
from resfit.trainer.learned.input_format import InputFormat
from resfit.transforms import FolderTransforms, Transforms
from resfit.transforms.class_names import check_class_names
from resfit.transforms.folder_transforms import from_config, to_config
from resfit.weights.own_names import arrays_by_path, named_arrays

FORMAT_VERSION = 1


class SavedModel(NamedTuple):
    """The contents of a model file.

    Attributes:
      module: the module with its variables and arrays, without random state.
      preprocess: the preprocessing inside the step.
      trained_on: the kinds of the training inputs.
      transforms: the transforms of photographs before the preprocessing.
      class_names: the names of the classes.
      trained: True if the module was trained with this preprocessing.
      multi_label: True if every output is an independent label; None if it is unknown.
    """

    module: nnx.Module
    preprocess: preprocess_.Preprocess | None
    trained_on: preprocess_.Kinds | None = None
    transforms: Transforms | FolderTransforms | None = None
    class_names: list[str] | None = None
    trained: bool = True
    multi_label: bool | None = None


def save(path: str | os.PathLike[str], saved: SavedModel) -> None:
    """Write a model file, with the spec of the module if the module is a network of resfit.

    Raises:
      SavedModelError: if the path does not end in ".safetensors".
      FileNotFoundError: if the folder does not exist.
    """
    import safetensors.flax

    path = pathlib.Path(expand_user(path))
    if path.suffix != ".safetensors":
        raise SavedModelError(
            f"Expected a path that ends in '.safetensors', got {str(path)!r}. Save to "
            f"{str(path.with_suffix('.safetensors'))!r}."
        )
    header = {
        "format": "resfit",
        "format_version": FORMAT_VERSION,
        "resfit": importlib.metadata.version("resfit"),
        "module": type(saved.module).__name__,
        "spec": saved.module.spec.to_dict() if isinstance(saved.module, ResNet) else None,
        "preprocess": preprocess_.to_config(saved.preprocess),
        "trained_on": saved.trained_on,
        "transforms": to_config(saved.transforms),
        "class_names": saved.class_names,
        "trained": saved.trained,
        "multi_label": saved.multi_label,
    }
    arrays = {name: jax.numpy.asarray(array) for name, array in named_arrays(saved.module).items()}
    content = safetensors.flax.save(arrays, metadata={"resfit": json.dumps(header)})
    atomic_write.write(path, content)


def load(
    path: str | os.PathLike[str], module: nnx.Module | None, preprocess: preprocess_.Preprocess | None
) -> SavedModel:
    """Load a file of `save` into a module. Without a module, build the network of the file's spec.

    Raises:
      SavedModelError: if the file is not a file of resfit, is newer than this version, needs a module or a
        preprocessing function, or does not fit the module.
    """
    path = pathlib.Path(expand_user(path))
    _check_is_file(path)
    header, arrays = _read(path)
    if module is None:
        if header["spec"] is None:
            raise SavedModelError(
                f"{path} holds a {header['module']}, which resfit cannot build. Expected a module of that class. Pass "
                "one: resfit.load(path, module=...)."
            )
        module = _build(path, header["spec"], arrays)
    _fill(path, module, arrays)
    kinds = header.get("trained_on")  # files of resfit 0.1.0 lack it, and the names below
    transforms, class_names = _of_photographs(path, header)
    trained = bool(header.get("trained", True))
    return SavedModel(
        module,
        _preprocess(path, header["preprocess"], preprocess, trained),
        None if kinds is None else tuple(kinds),
        transforms,
        class_names,
        trained,
        header.get("multi_label"),
    )


def load_weights(path: str | os.PathLike[str] | Mapping[str, Any], module: nnx.Module, inputs: InputFormat) -> None:
    """Load the arrays of a file of `save` into the module of a model.

    Args:
      path: of the file; or arrays by the names of a file, whose preprocessing is not known.
      module: filled in place.
      inputs: of the model; learns on which inputs the weights were trained.

    Raises:
      SavedModelError: if the file is not a file of resfit or does not fit the module, or if the network of the file was
        trained with another preprocessing.
    """
    if isinstance(path, Mapping):
        _fill("The dict of arrays", module, {name: np.asarray(array) for name, array in path.items()}, _NAMES)
        return
    path = pathlib.Path(expand_user(path))
    _check_is_file(path)
    header, arrays = _read(path)
    config, kinds, trained = header["preprocess"], header.get("trained_on"), bool(header.get("trained", True))
    same = preprocess_.to_config(inputs.preprocess) == config
    if not same and (config is None or config["kind"] != "custom"):
        same = preprocess_.same_values(preprocess_.from_config(config), inputs.preprocess)
    if trained and not same:
        raise SavedModelError(
            f"{path} holds weights that were trained with the preprocessing {config}, and the model has "
            f"{inputs.preprocess!r}. Expected the same. Compile with that preprocess=..., or read the file as a model: "
            "resfit.load(path)."
        )
    _fill(path, module, arrays)
    if trained:
        inputs.trained, inputs.trained_on = True, None if kinds is None else tuple(kinds)


def _check_is_file(path: pathlib.Path) -> None:
    if path.is_dir():
        raise SavedModelError(
            f"{path} is a folder. Expected a file of Model.save. To resume a run from the folder of a Checkpoint use "
            "fit(resume=True, callbacks=[resfit.callbacks.Checkpoint(folder)])."
        )
    if not path.exists():
        there = sorted(file.name for file in path.parent.glob("*.safetensors"))
        raise FileNotFoundError(
            f"There is no file {path}. Expected a file of Model.save. The .safetensors files in its folder are {there}."
            f"{did_you_mean(path.name, there)}"
        )


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Return header and arrays of a file."""
    import safetensors

    try:
        with safetensors.safe_open(path, framework="flax") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        pickled = path.suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt")
        remedy = (
            "For a weights file of PyTorch use resfit.weights.load(net, path) or resfit.create_model(name, "
            "weights=path)."
            if pickled
            else "Expected a file of Model.save. Save the model again, or use another copy of the file."
        )
        raise SavedModelError(f"{path} is not a safetensors file, or is damaged: {error}. {remedy}") from error
    if "resfit" not in metadata:
        raise SavedModelError(
            f"{path} was not written by Model.save (its metadata: {metadata}). Expected a file of Model.save. For a "
            "weights file of PyTorch use resfit.weights.load(net, path)."
        )
    return _header(path, metadata["resfit"]), arrays


def _preprocess(
    path: Any, config: Any, given: preprocess_.Preprocess | None, trained: bool
) -> preprocess_.Preprocess | None:
    """Return the preprocessing of a saved model: that of the file, or `given` for a custom function."""
    if config is not None and config["kind"] == "custom":
        if given is None:
            raise SavedModelError(
                f"{path} was saved with a custom preprocessing function, which a file cannot hold. Expected that "
                "function. Pass it: resfit.load(path, preprocess=...)."
            )
        return given
    saved = preprocess_.from_config(config)
    if given is None:
        return saved
    if trained and not preprocess_.same_values(saved, given):
        raise SavedModelError(
            f"resfit.load got preprocess={given!r}, and {path} holds a network that was trained with {saved!r}. "
            "Expected the same preprocessing. Omit preprocess. To replace it and train again: model = "
            "resfit.load(path); model.compile(..., preprocess=..., replace_preprocess=True)."
        )
    return given


def _header(path: Any, text: str) -> dict[str, Any]:
    """Return the header of a file.

    Unknown names are ignored. A change that older readers would read wrongly needs a new format version.
    """
    try:
        header: dict[str, Any] = json.loads(text)
        version, _ = header["format_version"], (header["module"], header["spec"], header["preprocess"])
    except (ValueError, KeyError, TypeError) as error:
        raise SavedModelError(
            f"{path} is damaged: its header {text[:100]!r} is invalid. Use another copy of the file."
        ) from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise SavedModelError(
            f"{path} has format version {version!r}, written by resfit {header.get('resfit')}. Expected a version up "
            f"to {FORMAT_VERSION}. Upgrade resfit."
        )
    return header


def _of_photographs(
    path: Any, header: Mapping[str, Any]
) -> tuple[Transforms | FolderTransforms | None, list[str] | None]:
    """Return transforms and class names, or None for each that the file lacks, as older files do."""
    transforms, names = header.get("transforms"), header.get("class_names")
    try:
        return from_config(transforms), None if names is None else check_class_names(names, None)
    except (TypeError, DataError, CompileError) as error:
        raise SavedModelError(
            f"{path} is damaged: it has transforms={str(transforms)[:200]}, class_names={str(names)[:80]}, which are "
            f"invalid: {error}"
        ) from error


def _build(path: Any, values: Any, arrays: Mapping[str, jax.Array]) -> ResNet:
    """Build the network of a spec; raise if a file with few arrays describes a huge network."""
    spec = ResNetSpec.from_dict(values)
    numbers = sum(array.size for array in arrays.values())
    # A block has a convolution with at least a quarter of its width as input channels.
    least = sum(depth * width * width // 4 for depth, width in zip(spec.depths, spec.widths, strict=True))
    if sum(spec.depths) > len(arrays) or max(least, spec.num_classes, spec.in_channels) > numbers:
        raise SavedModelError(
            f"{path} is damaged: it describes a network of {sum(spec.depths)} blocks and at least {least} parameters, "
            f"and holds {len(arrays)} arrays of {numbers} numbers. Use another copy of the file."
        )
    return ResNet(spec, rngs=nnx.Rngs(0))


_BUILD = "Expected the saved network. Omit module to build the network of the file's spec."
_NAMES = (
    "Expected the names of a file of Model.save. For the names of other libraries use "
    "resfit.weights.load_state_dict(model.module, arrays)."
)


def _fill(path: Any, module: nnx.Module, arrays: Mapping[str, Any], remedy: str = _BUILD) -> None:
    expected = named_arrays(module)
    problems = [f"missing {name}" for name in sorted(expected.keys() - arrays.keys())]
    problems += [f"unexpected {name}" for name in sorted(arrays.keys() - expected.keys())]
    problems += [
        f"{name} has shape {arrays[name].shape}, expected {expected[name].shape}"
        for name in sorted(expected.keys() & arrays.keys())
        if arrays[name].shape != expected[name].shape
    ]
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise SavedModelError(f"{path} does not fit this {type(module).__name__}: {listed}. {remedy}")
    filled = {
        place: jax.numpy.asarray(np.asarray(arrays[".".join(map(str, place))]), old.dtype)
        for place, old in arrays_by_path(module).items()
    }
    assign(module, filled)
