"""The contents of the files here, and how they were written: `python -m tests.golden.files` writes those missing.

Values follow from a rule that every dtype holds exactly, so that no later version of anything draws other ones.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import resfit
from resfit.preprocess import Normalize
from resfit.trainer.checkpoint.saved_run import SavedRun
from resfit.trainer.checkpoint.store import CheckpointStore
from tests.helpers import CLASSES, TinyNet, compiled, context_of

FOLDER = Path(__file__).parent
EXPORTS = FOLDER / "exported"
MODELS, CHECKPOINTS, PREDICTIONS = FOLDER / "models", FOLDER / "checkpoints", FOLDER / "predictions.json"


def pattern(shape: tuple[int, ...], dtype: Any, *, positive: bool = False) -> jax.Array:
    """Multiples of 1/16 from -1/2 to 1/2, or from 1/2 to 3/2."""
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape) * 7 % 17 / 16 + (0.5 if positive else -0.5)
    return jnp.asarray(values.astype(dtype))


def fill(module: nnx.Module) -> None:
    """Set every parameter and statistic to values by a rule."""
    for path, variable in nnx.to_flat_state(nnx.state(module, (nnx.Param, nnx.BatchStat))):
        old = variable[...]
        variable.set_value(pattern(old.shape, old.dtype, positive=path[-1] == "var"))
        nnx.update(module, nnx.from_flat_state([(path, variable)]))


def net(**arguments: Any) -> nnx.Module:
    return resfit.create_model(
        "resnet20", num_classes=CLASSES, in_channels=1, depths=(1, 1), widths=(4, 8), **arguments
    )


def model(module: nnx.Module, **arguments: Any) -> resfit.Model:
    fill(module)
    return compiled(module, **arguments)


def averaged() -> resfit.Model:
    """Its averages are what is saved: they begin as the values that it is compiled with."""
    return model(net(shortcut="A"), ema=0.9)


# name of the file -> the model in it
KINDS: dict[str, Any] = {
    "net_that_scales": lambda: model(net(), preprocess="auto"),
    "net_that_normalizes": lambda: model(net(), preprocess=Normalize(mean=(0.5,), std=(0.25,))),
    "net_of_bfloat16": lambda: model(net(param_dtype="bfloat16"), preprocess=None),
    "averages": averaged,
    "module_of_ones_own": lambda: model(TinyNet(rngs=nnx.Rngs(0)), preprocess=None),
}


# name of the exported file -> the model in it, and how it is exported
EXPORTED: dict[str, tuple[str, dict[str, Any]]] = {
    "net_that_normalizes": ("net_that_normalizes", {"class_names": ["a", "b", "c"], "input_dtype": "uint8"}),
    "folded_averages": ("averages", {"weights": "ema", "fold_batch_norm": True, "input_dtype": "uint8"}),
    "probabilities_of_bfloat16": ("net_of_bfloat16", {"outputs": "probabilities"}),
    "module_of_ones_own": ("module_of_ones_own", {}),
}


def pixels() -> np.ndarray:
    return (np.arange(2 * 8 * 8).reshape(2, 8, 8, 1) * 37 % 256).astype(np.uint8)


def inputs(one: resfit.Model) -> np.ndarray:
    return pixels() if context_of(one).learned.inputs.preprocess is not None else pixels().astype(np.float32) / 256


def predicted(one: resfit.Model) -> Any:
    return one.predict(inputs(one), verbose=0)


def saved() -> SavedRun:
    """Return a checkpoint with every kind of value."""
    arrays = {
        "state/0": np.asarray(pattern((3, 4), np.float32)),
        "state/1": np.asarray(pattern((5,), jnp.bfloat16)),
        "state/2": np.int32(7),
        "state/3": np.zeros((0, 2), np.float32),
        "sums/0": np.array([True, False]),
    }
    facts = {"text": "é", "plain": [None, True, 0.1, 2**40], "inside": {"weights": np.arange(3.0)}}
    return SavedRun({name: np.asarray(array) for name, array in arrays.items()}, facts)


def main() -> None:
    MODELS.mkdir(exist_ok=True)
    found = json.loads(PREDICTIONS.read_text()) if PREDICTIONS.exists() else {}
    for kind, make in KINDS.items():
        path = MODELS / f"{kind}.safetensors"
        if not path.exists():
            made = make()
            made.save(path, weights="ema" if kind == "averages" else "raw")
            found[kind] = np.asarray(predicted(made), np.float32).tolist()
    EXPORTS.mkdir(exist_ok=True)
    for name, (kind, arguments) in EXPORTED.items():
        path = EXPORTS / f"{name}.npz"
        if not path.exists():
            made = KINDS[kind]()
            made.export(path, **{"input_shape": (8, 8, 1), **arguments})
            expected = made.predict(inputs(made), verbose=0, outputs=arguments.get("outputs", "logits"))
            found[f"exported/{name}"] = np.asarray(expected, np.float32).tolist()
    PREDICTIONS.write_text(json.dumps(found, indent=1) + "\n")
    if not CHECKPOINTS.exists():
        checkpoints = CheckpointStore(CHECKPOINTS)
        checkpoints.save(3, saved())
        checkpoints.close()
        (CHECKPOINTS / ".lock").unlink()
        (CHECKPOINTS / "3" / "arrays" / "commit_success.txt").write_text("Nobody reads where it was written.")


if __name__ == "__main__":
    main()
