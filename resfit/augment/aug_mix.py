"""AugMix: an image mixed with chains of random operations on it."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from resfit._utils.checks import is_int, is_number
from resfit._utils.keywords import checked
from resfit.augment.copies import Copying, repeated
from resfit.augment.mixing import share_of
from resfit.augment.operations import OPERATIONS
from resfit.augment.policies import Space, Steps, after_steps, as_levels, common_arguments, magnitudes, signed
from resfit.augment.transform import ImageTransform, as_images, draw, image_transform, like, whole
from resfit.errors import CompileError, LabelError

SPACE = Space(0.3, 1 / 3, 0, 30, 0.9, 4, kept=4)
_BINS = 10
COPIES = 3
"""The image itself, and two mixtures of it."""
_LONGEST = 3
_ALL = OPERATIONS[1:-1]
_PARTIAL = tuple(name for name in _ALL if name not in ("brightness", "color", "contrast", "sharpness"))


@checked("function arguments")
def aug_mix(
    severity: int = 3,
    width: int = 3,
    depth: int | None = None,
    alpha: float = 1.0,
    consistency: float = 0.0,
    all_ops: bool = True,
    interpolation: str = "bilinear",
    fill: float = 0.0,
) -> "ImageTransform | Consistent":
    """Return an augmentation that mixes each image with several chains of random operations on it.

    The same as torchvision's `AugMix`, drawn for each image. Put flips and crops before it. Images as for
    `rand_augment`.

    With `consistency`, each example has three copies in the step: the image itself and two mixtures. The loss of an
    example is that of the image plus `consistency` times the Jensen-Shannon divergence of the three predictions, see
    `losses.jensen_shannon`; the metrics of training are those of the images themselves. The step needs the memory and
    the time of a batch of three times the size.

    Source: Hendrycks et al. (arXiv 1912.02781).

    Args:
      severity: operations have one of the `severity` smallest of ten magnitudes, 1 to 10.
      width: the number of chains.
      depth: the number of operations in a chain; None for a random number from 1 to 3.
      alpha: the parameter of the Dirichlet distribution of the chains' shares, and of the Beta distribution of the
        share of the image. Other values than 1 take seconds to compile.
      consistency: the weight of the divergence; 12 in the source, 0 for mixtures alone. It needs a loss of one class
        per example, such as "cross_entropy", or a custom loss.
      all_ops: False to leave out brightness, color, contrast and sharpness, as the source does because they are also
        corruptions of its test set.
      interpolation: as for `rotate`.
      fill: as for `rotate`.

    Raises:
      CompileError: for any other value.

    Example:
      >>> x = jnp.full((2, 8, 8, 3), 100, jnp.uint8)
      >>> for mix in (aug_mix(), aug_mix(consistency=12)):
      ...     jax.eval_shape(mix, jax.random.key(0), x, None)[0].shape  # without the seconds of compiling
      (2, 8, 8, 3)
      (6, 8, 8, 3)
    """
    _check(severity, width, depth, alpha, consistency)
    arguments = {
        "severity": int(severity), "width": int(width), "depth": None if depth is None else int(depth),
        "alpha": float(alpha), "all_ops": bool(all_ops), **common_arguments("aug_mix", interpolation, fill, None),
    }  # fmt: skip
    mix = image_transform(_aug_mix, _refuse_masks, **arguments)
    return Consistent(mix, float(consistency)) if consistency else mix


@dataclasses.dataclass(frozen=True)
class Consistent(Copying):
    """The result of `aug_mix(consistency=...)`. Equal objects compare equal.

    Args:
      mix: makes a mixture of an image.
      consistency: the weight of the divergence of the predictions in the loss.
    """

    mix: ImageTransform
    consistency: float
    copies: int = dataclasses.field(default=COPIES, init=False, repr=False)

    def __call__(self, key: jax.Array, x: Any, y: Any) -> tuple[jax.Array, Any]:
        """Return each image and two mixtures of it, which follow one another, and its label three times."""
        x = as_images("aug_mix", x)
        mixtures, _ = self.mix(key, *repeated((x, y), self.copies - 1))
        both = mixtures.reshape(len(x), self.copies - 1, *x.shape[1:])
        return jnp.concatenate([x[:, None], both], axis=1).reshape(-1, *x.shape[1:]), repeated(y, self.copies)

    def __repr__(self) -> str:
        return f"{repr(self.mix)[:-1]}, consistency={self.consistency})"


def _check(severity: Any, width: Any, depth: Any, alpha: Any, consistency: Any) -> None:
    whole_numbers = {"severity": (severity, _BINS), "width": (width, math.inf), "depth": (depth, math.inf)}
    for name, (value, most) in whole_numbers.items():
        if not (is_int(value, 1) and value <= most) and not (name == "depth" and value is None):
            at_most = "" if math.isinf(most) else f", at most {most}"
            or_none = ", or None for 1 to 3" if name == "depth" else ""
            raise CompileError(f"augment.aug_mix got {name}={value!r}. Expected a positive integer{at_most}{or_none}.")
    if not is_number(alpha) or not 0 < alpha < math.inf:
        raise CompileError(f"augment.aug_mix got alpha={alpha!r}. Expected a positive number.")
    if not is_number(consistency) or not 0 <= consistency < math.inf:
        raise CompileError(
            f"augment.aug_mix got consistency={consistency!r}. Expected the weight of the divergence in the loss, a "
            "number of at least 0, such as 12."
        )


class Chains(NamedTuple):
    """The random draws of a batch.

    Attributes:
      steps: the operations, (steps, rows * chains) each.
      share: of the image itself, (rows,).
      shares: of the chains in the remainder, (rows, chains).
    """

    steps: Steps
    share: jax.Array
    shares: jax.Array


def drawn(
    key: jax.Array, shape: tuple[int, ...], severity: int, width: int, depth: int | None, alpha: float, all_ops: bool
) -> Chains:
    """Return random chains for images of a shape (rows, height, width, channels)."""
    rows, steps = shape[0], depth or _LONGEST
    key, of_shares = jax.random.split(key)
    uniform = draw(key, rows, width, 3 * steps + 2)
    operation, magnitude, sign = jnp.moveaxis(uniform[..., : 3 * steps].reshape(rows * width, 3, steps), (1, 2), (0, 1))
    names = jnp.asarray([OPERATIONS.index(name) for name in (_ALL if all_ops else _PARTIAL)])
    chosen = names[whole(operation, len(names))]
    if depth is None:
        length = 1 + whole(uniform[..., 3 * steps], _LONGEST).reshape(-1)
        chosen = jnp.where(jnp.arange(steps)[:, None] < length, chosen, 0)
    table = jnp.asarray(magnitudes(SPACE, _BINS, shape[1], shape[2]))
    values = signed(chosen, table[chosen, whole(magnitude, severity)], sign)
    if alpha == 1:  # exponential numbers over their sum; those of `jax.random` take seconds to compile
        weights = -jnp.log1p(-uniform[..., 3 * steps + 1])
        # One of 24 bits: all can be 0.
        shares = (weights + 1e-9) / (weights + 1e-9).sum(axis=1, keepdims=True)
    else:
        shares = jax.random.dirichlet(of_shares, jnp.full(width, alpha, jnp.float32), (rows,), jnp.float32)
    share = share_of(draw(jax.random.fold_in(of_shares, 1), 2, rows), alpha)
    return Chains(Steps(chosen, values), share, shares)


def mixed(x: jax.Array, chains: Chains, interpolation: str, fill: float) -> jax.Array:
    """Return float32 levels of uint8 images mixed with their chains."""
    width = chains.shares.shape[1]
    ends = after_steps(repeated(x, width), chains.steps, interpolation, fill).reshape(len(x), width, -1)
    weights = (1 - chains.share)[:, None] * chains.shares
    total = chains.share[:, None] * x.reshape(len(x), -1)
    for chain in range(width):  # a sum over an axis takes a hundred times as long on a CPU
        total += weights[:, chain, None] * ends[:, chain]
    return total.reshape(x.shape)


def _aug_mix(key: jax.Array, x: jax.Array, interpolation: str, fill: float, **arguments: Any) -> jax.Array:
    levels, outside = as_levels("aug_mix", x, fill)
    found = mixed(levels, drawn(key, x.shape, **arguments), interpolation, outside)
    return like(found if x.dtype == jnp.uint8 else found / 255, x)


def _refuse_masks(key: jax.Array, masks: jax.Array, **_: Any) -> jax.Array:
    raise LabelError(
        f"augment.aug_mix mixes images whose pixels moved, and got masks of shape {masks.shape[:3]}. Expected one "
        "label per example: a mixed pixel has no class number. Use augment.rand_augment(mask_fill=...), which moves "
        "masks."
    )
