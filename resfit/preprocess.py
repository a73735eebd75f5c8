"""Preprocessing of images before the network, in training, evaluation and prediction.

Preprocessing runs inside the compiled step, so images travel to the device in their own dtype (uint8). It is saved with
the model. For changes only in training, use augmentation: `compile(augment=...)`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from resfit._utils.keywords import check_constructors, checked
from resfit._utils.random_inputs import random_batch as _random_batch
from resfit._utils.words import no_attribute
from resfit.errors import CompileError, DataError

Preprocess = Callable[[Any], Any]

_LEVELS = 16.0
"""Above all images in [0, 1], also in high dynamic range, and below the largest gray level of nearly every batch."""


@dataclasses.dataclass(frozen=True)
class Auto:
    """The default preprocessing: uint8 images become float32 in [0, 1], and floats stay unchanged.

    Example:
      >>> Auto()(jnp.full((1, 2, 2, 3), 255, jnp.uint8)).max()
      Array(1., dtype=float32)
    """

    def __call__(self, x: Any) -> Any:
        return jax.tree.map(_scale, x)


@dataclasses.dataclass(frozen=True)
class Normalize:
    """A preprocessing that scales uint8 images to [0, 1] and standardizes each channel: (x - mean) / std.

    Args:
      mean: one number per channel, in units of [0, 1].
      std: one number per channel, in units of [0, 1].

    Example:
      >>> Normalize(mean=(0.5,), std=(0.25,))(jnp.full((1, 1, 1, 1), 255, jnp.uint8))
      Array([[[[2.]]]], dtype=float32)
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(m) for m in self.mean))
        object.__setattr__(self, "std", tuple(float(s) for s in self.std))
        if len(self.mean) != len(self.std) or min(self.std) <= 0:
            raise CompileError(f"Expected one mean and one positive std per channel, got {self.mean} and {self.std}.")

    def __call__(self, x: Any) -> Any:
        def normalize(image: jax.Array) -> jax.Array:
            if image.shape[-1] != len(self.mean):
                raise DataError(
                    f"Normalize has {len(self.mean)} means, and the images of shape {image.shape} have "
                    f"{image.shape[-1]} channels. Expected one mean and one std per channel."
                )
            image = _scale(image)
            shape = (1,) * (image.ndim - 1) + (-1,)
            mean = jnp.asarray(self.mean, image.dtype).reshape(shape)
            return (image - mean) / jnp.asarray(self.std, image.dtype).reshape(shape)

        return jax.tree.map(normalize, x)

    def check_levels(self, x: Any) -> None:
        """Raise for floats from 0 to 255: only uint8 images are scaled, and the means are those of [0, 1].

        The first image of a batch tells. Reading all of them would take as long as a fast device takes for the network.

        Raises:
          DataError: for floats of at least 0 whose largest is above 16, if all means are at most 1.

        Example:
          >>> Normalize(mean=(0.5,), std=(0.25,)).check_levels(np.ones((1, 2, 2, 1)))
        """
        if max(self.mean) > 1:
            return
        for leaf in jax.tree.leaves(x):
            if leaf.dtype == np.uint8 or not leaf.size:
                continue
            low, high = float(leaf[:1].min()), float(leaf[:1].max())
            if low >= 0 and high > _LEVELS:
                raise DataError(
                    f"Got {leaf.dtype} images, the first with values from {low:.4g} to {high:.4g}, and {self!r} has "
                    "means and standard deviations of images in [0, 1]. Expected uint8, which it scales, or floats in "
                    "[0, 1]: x.astype('uint8') or x / 255."
                )


def _scale(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.uint8:
        return x.astype(jnp.float32) / 255
    if x.ndim == 4 and jnp.issubdtype(x.dtype, jnp.integer):
        raise DataError(
            f"Got images of dtype {x.dtype}, shape {x.shape}, whose scale is unknown. Expected uint8 or floats. Cast "
            "images of 0 to 255 with x.astype('uint8')."
        )
    return x


# The kind of each input array of a batch: "uint8", "unit" (floats in [0, 1]) or "other".
Kinds = tuple[str, ...]


@checked("function arguments")
def kinds(x: Any) -> Kinds:
    """Return the kinds of the arrays of a batch, which `Auto` and `Normalize` treat differently.

    Example:
      >>> kinds(jnp.full((1, 2, 2, 3), -1.0)), kinds(jnp.zeros((1, 2, 2, 3), jnp.uint8))
      (('other',), ('uint8',))
    """
    return tuple(
        "uint8" if leaf.dtype == np.uint8 else "unit" if _in_unit_range(leaf) else "other"
        for leaf in jax.tree.leaves(x)
    )


@checked("function arguments")
def example(x: Any) -> Any:
    """Return shapes and dtypes of one example of a batch on a device, a pytree of `jax.ShapeDtypeStruct`.

    Example:
      >>> example(np.zeros((5, 8, 8, 3)))
      ShapeDtypeStruct(shape=(8, 8, 3), dtype=float32)
    """
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], jax.dtypes.canonicalize_dtype(leaf.dtype)), x)


@checked("function arguments")
def check_kinds(x: Any, trained_on: Kinds | None) -> None:
    """Raise if `Auto` or `Normalize` would give the network values of another scale than in training.

    Raises:
      DataError: for uint8 images if the network was trained on floats outside [0, 1], and for floats outside [0, 1] if
        it was trained on uint8.
    """
    leaves = jax.tree.leaves(x)
    for leaf, kind in zip(leaves, trained_on or (), strict=False):
        if leaf.dtype == np.uint8 and kind == "other":
            raise DataError(
                "Got uint8 images, which are scaled to [0, 1], and the network was trained on floats of another range. "
                "Expected floats as in training. Or train on uint8 images with "
                "compile(preprocess=resfit.preprocess.Normalize(mean, std)), which also applies in prediction."
            )
        if leaf.dtype != np.uint8 and kind == "uint8" and not _in_unit_range(leaf):
            raise DataError(
                f"Got {leaf.dtype} images with values from {np.min(leaf):.4g} to {np.max(leaf):.4g}, and the network "
                "was trained on uint8 images, which are scaled to [0, 1]. Expected uint8, or floats in [0, 1]."
            )


@checked("function arguments")
def needs_values(x: Any, trained_on: Kinds | None) -> bool:
    """Return True if `check_kinds` reads the values of such a batch, not only its dtypes."""
    return any(
        leaf.dtype != np.uint8 and kind == "uint8"
        for leaf, kind in zip(jax.tree.leaves(x), trained_on or (), strict=False)
    )


def _in_unit_range(x: Any) -> bool:
    return bool(np.min(x) >= 0 and np.max(x) <= 1)


@checked("function arguments")
def get(preprocess: str | Preprocess | None) -> Preprocess | None:
    """Return the function of a `preprocess` argument: "auto", a function, or None for no preprocessing.

    Raises:
      CompileError: for any other value.
    """
    if preprocess == "auto":
        return Auto()
    if preprocess is None or (callable(preprocess) and not isinstance(preprocess, str)):
        return preprocess
    raise CompileError(
        f"Expected preprocess to be 'auto', None or a function of a batch of images, got {preprocess!r}. For means "
        "and standard deviations of channels pass resfit.preprocess.Normalize(mean, std)."
    )


@checked("function arguments")
def same_values(one: Preprocess | None, other: Preprocess | None, example: Any = None) -> bool:
    """Return True if two preprocessing functions give a network the same values.

    Both functions are applied to random images, and differences by rounding are ignored.

    Args:
      one: a function of a batch, or None.
      other: a function of a batch, or None.
      example: shapes and dtypes of one example, a result of `example`; by default a small uint8 image.

    Raises:
      CompileError: if no example is given and one of the functions fails for a small image.

    Example:
      >>> same_values(Auto(), Normalize(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
      True
      >>> same_values(Auto(), None)
      False
    """
    if one is other:  # objects that hold arrays may not support ==
        return True
    if example is not None:
        return _same_on(jax.tree.map(_random_batch, example), one, other)
    channels = [len(known.mean) for known in (one, other) if isinstance(known, Normalize)]
    batch = _random_batch(typical_example(channels[0] if channels else 3))
    try:
        return _same_on(batch, one, other)
    except Exception as error:
        raise CompileError(
            f"The preprocessing {other!r} could not be compared with {one!r}, the preprocessing of training: {error} "
            f"Both were applied to an image of shape {batch.shape[1:]}, since the loaded model has received no input "
            "so far. Omit preprocess, or call model.predict(x) first."
        ) from error


def _same_on(batch: Any, one: Preprocess | None, other: Preprocess | None) -> bool:
    a, b = (jax.tree.leaves(batch if f is None else f(batch)) for f in (one, other))
    return len(a) == len(b) and all(
        u.shape == v.shape and u.dtype == v.dtype and bool(jnp.allclose(u, v, rtol=1e-5, atol=1e-6, equal_nan=True))
        for u, v in zip(a, b, strict=True)
    )


@checked("function arguments")
def typical_example(channels: int, kinds: Kinds | None = None) -> jax.ShapeDtypeStruct:
    """Return shape and dtype of a small image: float32 if the kind of the inputs is floats, else uint8.

    Example:
      >>> typical_example(3, ("other",))
      ShapeDtypeStruct(shape=(8, 8, 3), dtype=float32)
    """
    return jax.ShapeDtypeStruct((8, 8, channels), jnp.uint8 if kinds is None or kinds[0] == "uint8" else jnp.float32)


@checked("function arguments")
def to_config(preprocess: Preprocess | None) -> dict[str, Any] | None:
    """Return the JSON of a preprocessing in a model file; {"kind": "custom"} for a custom function."""
    if preprocess is None:
        return None
    if isinstance(preprocess, Auto | Normalize):
        return {"kind": type(preprocess).__name__, **dataclasses.asdict(preprocess)}
    return {"kind": "custom"}


@checked("function arguments")
def from_config(config: Mapping[str, Any] | None) -> Preprocess | None:
    """Return the preprocessing of a result of `to_config`, or raise for a custom function."""
    if config is None:
        return None
    kinds: dict[str, Any] = {"Auto": Auto, "Normalize": Normalize}
    arguments = {key: value for key, value in config.items() if key != "kind"}
    if config.get("kind") not in kinds:
        raise CompileError(f"Unknown preprocessing {config!r}. Expected one of {list(kinds)}.")
    preprocess: Preprocess = kinds[config["kind"]](**arguments)
    return preprocess


check_constructors(__name__)

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "preprocess")
