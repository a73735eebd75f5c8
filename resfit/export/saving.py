"""Models in files: safetensors for the arrays, JSON in its metadata for the rest. Nothing is executed on loading."""

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
from resfit.transforms import Transforms
from resfit.transforms.class_names import check_class_names
from resfit.transforms.transforms import from_config, to_config

FORMAT_VERSION = 1


class Saved(NamedTuple):
    """What a file holds of a model.

    Attributes:
      module: with its Variables and arrays (all but random state).
      preprocess: of its inputs, inside the step.
      trained_on: what inputs it was trained on.
      transforms: of photographs, before that.
      class_names: by number.
      trained: whether the module was trained with this preprocessing.
      multi_label: whether every output is a label of its own; None if it is not known.
    """

    module: nnx.Module
    preprocess: preprocess_.Preprocess | None
    trained_on: preprocess_.Kinds | None = None
    transforms: Transforms | None = None
    class_names: list[str] | None = None
    trained: bool = True
    multi_label: bool | None = None


def save(path: str | os.PathLike[str], saved: Saved) -> None:
    """Writes a model, with the module's spec if it is one of resfit's.

    Raises:
      SavedModelError: if the path does not end in ".safetensors".
      FileNotFoundError: if there is no folder to write it into.
    """
    import safetensors.flax

    path = pathlib.Path(expand_user(path))
    if path.suffix != ".safetensors":
        raise SavedModelError(
            f"Expected a path ending in '.safetensors', got {str(path)!r}. Save to "
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
    arrays = {name: jax.numpy.asarray(array) for name, array in _named_arrays(saved.module).items()}
    content = safetensors.flax.save(arrays, metadata={"resfit": json.dumps(header)})
    atomic_write.write(path, content)


def load(path: str | os.PathLike[str], module: nnx.Module | None, preprocess: preprocess_.Preprocess | None) -> Saved:
    """Reads a file written by `save` into a module, which is built from the file's spec if none is given.

    Raises:
      SavedModelError: if the file was not written by resfit, is newer than this version, needs a module or a
        preprocessing function, or does not fit the module.
    """
    import safetensors

    path = pathlib.Path(expand_user(path))
    if path.is_dir():
        raise SavedModelError(
            f"{path} is a folder. Expected a file that Model.save wrote. The folder of a Checkpoint is gone on with by "
            "fit(resume=True, callbacks=[resfit.callbacks.Checkpoint(folder)])."
        )
    if not path.exists():
        there = sorted(file.name for file in path.parent.glob("*.safetensors"))
        raise FileNotFoundError(
            f"There is no file {path}; the .safetensors files in its folder are {there}. Expected one that Model.save "
            f"wrote.{did_you_mean(path.name, there)}"
        )
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        pickled = path.suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt")
        remedy = (
            "Files of PyTorch fill a network that is there: resfit.weights.load(net, path), or "
            "resfit.create_model(name, weights=path)."
            if pickled
            else "Expected one that Model.save wrote: save it again, or take another copy."
        )
        raise SavedModelError(f"{path} is no safetensors file, or is damaged: {error}. {remedy}") from error
    if "resfit" not in metadata:
        raise SavedModelError(
            f"{path} was not written by resfit's Model.save (its metadata: {metadata}). For weights of "
            "PyTorch use resfit.weights.load(net, path)."
        )
    header = _header(path, metadata["resfit"])
    if module is None:
        if header["spec"] is None:
            raise SavedModelError(
                f"{path} holds a {header['module']}, which only its own code can build. Pass one: resfit.load(path, "
                "module=...)."
            )
        module = _build(path, header["spec"], arrays)
    _fill(path, module, arrays)
    kinds = header.get("trained_on")  # not there in the files of resfit 0.1.0
    trained_on = None if kinds is None else tuple(kinds)
    transforms, class_names = _of_photographs(path, header)
    multi_label = header.get("multi_label")  # not there in the files of earlier versions
    trained = bool(header.get("trained", True))  # earlier versions did not write it
    return Saved(
        module,
        _preprocess(path, header["preprocess"], preprocess, trained),
        trained_on,
        transforms,
        class_names,
        trained,
        multi_label,
    )


def _preprocess(
    path: Any, config: Any, given: preprocess_.Preprocess | None, trained: bool
) -> preprocess_.Preprocess | None:
    """The preprocessing of a saved model: that of the file, or the function that the file cannot hold."""
    if config is not None and config["kind"] == "custom":
        if given is None:
            raise SavedModelError(
                f"{path} was saved with a preprocessing function of its author's own, which no file can hold. Pass it: "
                "resfit.load(path, preprocess=...)."
            )
        return given
    saved = preprocess_.from_config(config)
    if given is None:
        return saved
    if trained and not preprocess_.same_values(saved, given):
        raise SavedModelError(
            f"resfit.load got preprocess={given!r}, and {path} holds a network that was trained with {saved!r}. "
            "Expected no other one: leave preprocess out. To replace it and train again: model = resfit.load(path); "
            "model.compile(..., preprocess=..., replace_preprocess=True)."
        )
    return given


def _header(path: Any, text: str) -> dict[str, Any]:
    """What the file says of itself. Names that this version does not know are none of its business.

    A version that a reader must know of to read rightly is a new format version.
    """
    try:
        header: dict[str, Any] = json.loads(text)
        version, _ = header["format_version"], (header["module"], header["spec"], header["preprocess"])
    except (ValueError, KeyError, TypeError) as error:
        raise SavedModelError(f"{path} is damaged: what it says of itself, {text[:100]!r}, is no header.") from error
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise SavedModelError(
            f"{path} has format version {version!r}, written by resfit {header.get('resfit')}; this one reads up to "
            f"{FORMAT_VERSION}. Upgrade resfit."
        )
    return header


def _of_photographs(path: Any, header: Mapping[str, Any]) -> tuple[Transforms | None, list[str] | None]:
    """Transforms and class names, where the file has some: older ones have none."""
    transforms, names = header.get("transforms"), header.get("class_names")
    try:
        return from_config(transforms), None if names is None else check_class_names(names, None)
    except (TypeError, DataError, CompileError) as error:
        raise SavedModelError(
            f"{path} is damaged: it says transforms={str(transforms)[:200]}, class_names={str(names)[:80]}, which "
            f"cannot be: {error}"
        ) from error


def _build(path: Any, values: Any, arrays: Mapping[str, jax.Array]) -> ResNet:
    """The network that a file describes, if it holds as much as that: a few bytes can describe a huge one."""
    spec = ResNetSpec.from_dict(values)
    numbers = sum(array.size for array in arrays.values())
    # A block has a convolution from a quarter of its width, or more, to the whole.
    least = sum(depth * width * width // 4 for depth, width in zip(spec.depths, spec.widths, strict=True))
    if sum(spec.depths) > len(arrays) or max(least, spec.num_classes, spec.in_channels) > numbers:
        raise SavedModelError(
            f"{path} describes a network of {sum(spec.depths)} blocks and at least {least} parameters, and holds "
            f"{len(arrays)} arrays of {numbers} numbers. Expected those of the network: the file is damaged."
        )
    return ResNet(spec, rngs=nnx.Rngs(0))


def _named_arrays(module: nnx.Module) -> dict[str, Any]:
    return {".".join(map(str, path)): array for path, array in _arrays(module).items()}


def _arrays(module: nnx.Module) -> dict[tuple[Any, ...], Any]:
    """Everything by path, but for random state, which every step makes anew, and what calls left behind."""
    state = nnx.state(module, nnx.Not((nnx.RngState, nnx.Intermediate)))
    return {
        path: leaf.get_raw_value() if isinstance(leaf, nnx.Variable) else leaf
        for path, leaf in nnx.to_flat_state(state)
    }


def _fill(path: Any, module: nnx.Module, arrays: dict[str, jax.Array]) -> None:
    expected = _named_arrays(module)
    problems = [f"missing {name}" for name in sorted(expected.keys() - arrays.keys())]
    problems += [f"unexpected {name}" for name in sorted(arrays.keys() - expected.keys())]
    problems += [
        f"{name} has shape {arrays[name].shape}, expected {expected[name].shape}"
        for name in sorted(expected.keys() & arrays.keys())
        if arrays[name].shape != expected[name].shape
    ]
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise SavedModelError(
            f"{path} does not fit this {type(module).__name__}: {listed}. Expected the network that was saved. Leave "
            "module out to have one of resfit's built as the file says."
        )
    filled = {
        place: jax.numpy.asarray(np.asarray(arrays[".".join(map(str, place))]), old.dtype)
        for place, old in _arrays(module).items()
    }
    assign(module, filled)
