"""Models in files: safetensors for the arrays, JSON in its metadata for the rest. Nothing is executed on loading."""

import json
import os
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from flax import nnx

from resfit import preprocess as preprocess_
from resfit.errors import SavedModelError
from resfit.nets import ResNet, ResNetSpec

FORMAT_VERSION = 1


def save(path: str | os.PathLike[str], module: nnx.Module, preprocess: preprocess_.Preprocess | None) -> None:
    """Writes a module's Variables (all but random state), its spec and its preprocessing.

    The file appears whole or not at all: it is written beside its place and then moved there.

    Raises:
      SavedModelError: if the path does not end in ".safetensors".
    """
    import safetensors.flax

    path = pathlib.Path(path)
    if path.suffix != ".safetensors":
        raise SavedModelError(f"Expected a path ending in '.safetensors', got {str(path)!r}.")
    import resfit

    header = {
        "format": "resfit",
        "format_version": FORMAT_VERSION,
        "resfit": resfit.__version__,
        "module": type(module).__name__,
        "spec": module.spec.to_dict() if isinstance(module, ResNet) else None,
        "preprocess": preprocess_.to_config(preprocess),
    }
    content = safetensors.flax.save(_named_arrays(module), metadata={"resfit": json.dumps(header)})
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def load(
    path: str | os.PathLike[str], module: nnx.Module | None, preprocess: preprocess_.Preprocess | None
) -> tuple[nnx.Module, preprocess_.Preprocess | None]:
    """Reads a file written by `save` into a module, which is built from the file's spec if none is given.

    Raises:
      SavedModelError: if the file was not written by resfit, is newer than this version, needs a module or a
        preprocessing function, or does not fit the module.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, framework="flax") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise SavedModelError(f"{path} is no safetensors file, or is damaged: {error}.") from error
    if "resfit" not in metadata:
        raise SavedModelError(
            f"{path} was not written by resfit's Model.save (its metadata: {metadata}). For PyTorch weights use "
            "resfit.weights.load_state_dict."
        )
    header = json.loads(metadata["resfit"])
    if header["format_version"] > FORMAT_VERSION:
        raise SavedModelError(
            f"{path} has format version {header['format_version']}, written by resfit {header['resfit']}; this one "
            "reads up to "
            f"{FORMAT_VERSION}. Upgrade resfit."
        )
    if module is None:
        if header["spec"] is None:
            raise SavedModelError(
                f"{path} holds a {header['module']}, which only its own code can build. Pass one: resfit.load(path, "
                "module=...)."
            )
        module = ResNet(ResNetSpec.from_dict(header["spec"]), rngs=nnx.Rngs(0))
    _fill(path, module, arrays)
    if preprocess is not None:
        return module, preprocess
    config = header["preprocess"]
    if config is not None and config["kind"] == "custom":
        raise SavedModelError(
            f"{path} was saved with a preprocessing function of its author's own, which no file can hold. Pass it: "
            "resfit.load(path, preprocess=...)."
        )
    return module, preprocess_.from_config(config)


def _variables(module: nnx.Module) -> dict[str, Any]:
    return {
        ".".join(map(str, path)): leaf
        for path, leaf in nnx.to_flat_state(nnx.state(module))
        if isinstance(leaf, nnx.Variable) and not isinstance(leaf, nnx.RngState | nnx.Intermediate)
    }


def _named_arrays(module: nnx.Module) -> dict[str, jax.Array]:
    return {name: leaf.get_raw_value() for name, leaf in _variables(module).items()}


def _fill(path: Any, module: nnx.Module, arrays: dict[str, jax.Array]) -> None:
    variables = _variables(module)
    shapes = {name: leaf.get_raw_value().shape for name, leaf in variables.items()}
    problems = [f"missing {name}" for name in sorted(shapes.keys() - arrays.keys())]
    problems += [f"unexpected {name}" for name in sorted(arrays.keys() - shapes.keys())]
    problems += [
        f"{name} has shape {arrays[name].shape}, expected {shapes[name]}"
        for name in sorted(shapes.keys() & arrays.keys())
        if arrays[name].shape != shapes[name]
    ]
    if problems:
        listed = "; ".join(problems[:20]) + (f"; and {len(problems) - 20} more" if len(problems) > 20 else "")
        raise SavedModelError(f"{path} does not fit this {type(module).__name__}: {listed}.")
    for name, leaf in variables.items():
        leaf.set_raw_value(jax.numpy.asarray(np.asarray(arrays[name]), leaf.get_raw_value().dtype))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
