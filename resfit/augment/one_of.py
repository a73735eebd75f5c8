"""A random choice between augmentations in every step."""

import dataclasses
from typing import Any, Self

import jax

from resfit._utils.keywords import checked
from resfit.augment.alternating_flip import AlternatingFlip
from resfit.augment.copies import Copying
from resfit.augment.mixing import Mixing
from resfit.augment.transform import Augment, draw, whole
from resfit.errors import CompileError


@checked("function arguments")
def one_of(*augments: Augment) -> "OneOf":
    """Return an augmentation that applies one of several, drawn in every step for the whole batch.

    All are equally likely. timm and "ResNet strikes back" (arXiv 2110.00476, section 3) combine mixup and CutMix as
    `one_of(mixup(0.2), cutmix(1.0))`.

    Args:
      augments: two or more functions (key, x, y) -> (x, y) whose results have the same shapes and dtypes.

    Raises:
      CompileError: for fewer than two augmentations, or a value that is not a function.

    Example:
      >>> from resfit.augment import cutmix, mixup
      >>> one_of(mixup(0.2), cutmix(1.0))
      one_of(mixup(alpha=0.2, num_classes=None), cutmix(alpha=1.0, num_classes=None))
    """
    return OneOf(augments)


@dataclasses.dataclass(frozen=True)
class OneOf:
    """The result of `one_of`. Equal objects compare equal.

    Args:
      augments: two or more augmentations.
    """

    augments: tuple[Augment, ...]

    def __post_init__(self) -> None:
        if len(self.augments) < 2 or not all(callable(augment) for augment in self.augments):
            raise CompileError(
                f"augment.one_of got {self.augments!r}. Expected two or more functions (key, x, y) -> (x, y)."
            )
        if alone := [augment for augment in self.augments if isinstance(augment, Copying | AlternatingFlip)]:
            raise CompileError(
                f"augment.one_of got {alone[0]!r}, which cannot be one of several. Expected it in the list: "
                f"compile(augment=[{alone[0]!r}, ...])."
            )

    def __call__(self, key: jax.Array, x: Any, y: Any) -> tuple[Any, Any]:
        """Return the result of a random augmentation.

        Raises:
          CompileError: if the results of the augmentations differ in shape or dtype.
        """
        results = [jax.eval_shape(augment, key, x, y) for augment in self.augments]
        forms = [jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), result) for result in results]
        if any(form != forms[0] for form in forms):
            raise CompileError(
                f"augment.one_of got augmentations with the results {forms}. Expected the same shapes and dtypes. "
                "Combine an augmentation that mixes labels only with others that mix labels."
            )
        choice_key, key = jax.random.split(key)
        choice = whole(draw(choice_key), len(self.augments))
        result: tuple[Any, Any] = jax.lax.switch(choice, self.augments, key, x, y)
        return result

    def for_classes(self, num_classes: int | None, copies: int = 1) -> Self:
        """Return a copy in which every augmentation that mixes labels has the number of classes."""
        return dataclasses.replace(self, augments=tuple(for_classes(a, num_classes, copies) for a in self.augments))

    def __repr__(self) -> str:
        return f"one_of({', '.join(map(repr, self.augments))})"


def for_classes(augment: Augment, num_classes: int | None, copies: int = 1) -> Augment:
    """Return the augmentation for a number of classes and of copies of each example, if it mixes labels."""
    return augment.for_classes(num_classes, copies) if isinstance(augment, Mixing | OneOf) else augment
