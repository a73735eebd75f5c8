"""The arguments of `Model.compile` and `Model.fit` as frozen objects that validate and fingerprint themselves."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from resfit._utils.checks import int_from, is_int, is_number, positive_int
from resfit.augment.resize import Resize
from resfit.errors import CompileError, DataError, ResumeError

PRECISIONS = ("float32", "bfloat16", "auto")

# A field with this metadata may differ between a run and its resumption, or is compared in another way.
# Left out at its default, with which earlier versions ran.
_ADDED_LATER: Mapping[str, bool] = {"added_later": True}
_NOT_COMPARED: Mapping[str, bool] = {"compared": False}


class _Fingerprinted:
    """A dataclass whose fields decide the result of a run, unless a field's metadata says otherwise."""

    def fingerprint(self) -> dict[str, Any]:
        """Return the JSON value of every field that must be equal in a resumed run, by name."""
        return {
            field.name: _as_json(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if field.metadata.get("compared", True)
            and not (field.metadata.get("added_later") and getattr(self, field.name) == field.default)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompileConfig(_Fingerprinted):
    """The arguments of `Model.compile`, which documents each of them.

    Optimizer, losses, metrics, preprocessing and augmentation are compared by the program of the step, the learning
    rate by `FitConfig`.

    Raises:
      CompileError: for a value that no argument can have.
    """

    optimizer: Any = dataclasses.field(default="sgd", metadata=_NOT_COMPARED)
    learning_rate: Any = dataclasses.field(default=None, metadata=_NOT_COMPARED)
    loss: Any = dataclasses.field(default="auto", metadata=_NOT_COMPARED)
    loss_weights: Any = dataclasses.field(default=None, metadata=_NOT_COMPARED)
    metrics: Any = dataclasses.field(default="auto", metadata=_NOT_COMPARED)
    seed: int = 0
    preprocess: Any = dataclasses.field(default="auto", metadata=_NOT_COMPARED)
    augment: Any = dataclasses.field(default=None, metadata=_NOT_COMPARED)
    ema: float | None = None
    precision: str = "float32"
    gradient_accumulation_steps: int = 1
    steps_per_execution: int = dataclasses.field(default=1, metadata=_ADDED_LATER)
    dispatch: str = "auto"
    batch_norm: str = "global"
    compiler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    cpu_kernels: str = "auto"
    replace_preprocess: bool = dataclasses.field(default=False, metadata=_NOT_COMPARED)
    weight_decay: float | None = dataclasses.field(default=None, metadata=_ADDED_LATER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "compiler_options", dict(self.compiler_options or {}))
        if self.precision not in PRECISIONS:
            raise CompileError(f"Expected precision to be 'float32', 'bfloat16' or 'auto', got {self.precision!r}.")
        slices = self.gradient_accumulation_steps
        positive_int("gradient_accumulation_steps", slices, CompileError)
        positive_int("steps_per_execution", self.steps_per_execution, CompileError)
        if self.ema is not None and (not is_number(self.ema) or not 0 < self.ema < 1):
            raise CompileError(f"Expected ema to be a decay between 0 and 1, such as 0.999, got {self.ema!r}.")
        if self.weight_decay is not None:
            object.__setattr__(self, "weight_decay", _not_negative("weight_decay", self.weight_decay))
        int_from(0, "seed", self.seed, CompileError, "an integer that is not negative, such as 0")

    @property
    def replaces_preprocess(self) -> bool:
        """True if the preprocessing replaces the one that the network was trained with."""
        return self.replace_preprocess and self.preprocess != "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig(_Fingerprinted):
    """The arguments of `Model.fit`, which documents each of them, but for data and callbacks.

    Data are compared by their description, see `trainer.checkpoint.fingerprint`.

    Attributes:
      learning_rate: as the user would write it; the name of a schedule; or None if the optimizer decides it.

    Raises:
      DataError: for a value that no argument can have.
      ResumeError: for an unknown value of `resume`.
    """

    epochs: int = 1
    initial_epoch: int = 0
    steps_per_epoch: int | None = None
    batch_size: Any = 32
    shuffle: bool = True
    drop_remainder: bool = False
    learning_rate: float | str | None = None
    validation_steps: int | None = None
    validation_every: int | None = None
    validation_freq: int | Sequence[int] = 1
    validation_batch_size: int | None = None
    verbose: str | int = dataclasses.field(default="auto", metadata=_NOT_COMPARED)
    image_sizes: Mapping[int, Any] | None = dataclasses.field(default=None, metadata=_ADDED_LATER)
    cache: str | None = dataclasses.field(default=None, metadata=_NOT_COMPARED)
    resume: bool | str = dataclasses.field(default=False, metadata=_NOT_COMPARED)

    def __post_init__(self) -> None:
        for name, remedy in _POSITIVE.items():
            if getattr(self, name) is not None or name == "epochs":
                positive_int(name, getattr(self, name), DataError, f"a positive integer{remedy}")
        int_from(0, "initial_epoch", self.initial_epoch, DataError, "a number of epochs, 0 or more")
        if self.initial_epoch > self.epochs:
            raise DataError(
                f"fit got initial_epoch={self.initial_epoch} and epochs={self.epochs}, so there is no epoch to train. "
                "Expected epochs to be the number of the last epoch, counted from the beginning of the whole run."
            )
        if self.shuffle not in (True, False):
            raise DataError(
                f"Expected shuffle to be True or False, got {self.shuffle!r}. Each epoch shuffles all examples; "
                "to keep batches unchanged, pass an iterable of batches."
            )
        if self.drop_remainder not in (True, False):
            raise DataError(
                f"Expected drop_remainder to be True or False, got {self.drop_remainder!r}. Pass True to leave out a "
                "partial last batch."
            )
        if self.resume not in (True, False, "inexact"):
            raise ResumeError(f"Expected resume to be True, False or 'inexact', got {self.resume!r}.")
        object.__setattr__(self, "validation_freq", _frequency(self.validation_freq))
        if self.image_sizes is not None:
            object.__setattr__(self, "image_sizes", _image_sizes(self.image_sizes, self.epochs))

    @property
    def evaluation_batch_size(self) -> int:
        """The batch size of validation."""
        size: int = self.batch_size if self.validation_batch_size is None else self.validation_batch_size
        return size

    def resize(self, epoch: int) -> Resize | None:
        """Return the resizing of training images in an epoch, counted from zero; None for images as they are."""
        begun = [size for first, size in (self.image_sizes or {}).items() if first <= epoch]
        return None if not begun or begun[-1] is None else Resize(*begun[-1])

    @property
    def validates_after(self) -> Callable[[int], bool]:
        """A function: epoch, counted from zero -> True if a validation follows it.

        Raises:
          DataError: for a frequency below one.
        """
        frequency = self.validation_freq
        if not isinstance(frequency, int):
            return lambda epoch: epoch + 1 in frequency
        if frequency < 1:
            raise DataError(f"Expected validation_freq to be a positive number of epochs, got {frequency}.")
        return lambda epoch: (epoch + 1) % frequency == 0


_POSITIVE = {
    "epochs": "",
    "steps_per_epoch": ", or None for one pass over the data",
    "validation_steps": ", or None for all of validation_data",
    "validation_every": " of steps, or None to validate after epochs",
}


def _not_negative(name: str, value: Any) -> float:
    if isinstance(value, str | bool) or np.ndim(value) or not hasattr(value, "__float__"):
        raise CompileError(f"Expected {name} to be a number, such as 0.01, got {value!r}.")
    if not 0 <= value < np.inf:
        raise CompileError(f"{name} is {value}. Expected a finite number of 0 or more, such as 0.01.")
    return float(value)


def _frequency(value: Any) -> int | tuple[int, ...]:
    """Return a number of epochs as it is, and the numbers of the epochs to validate after as a tuple."""
    if isinstance(value, int | np.integer):
        return value if isinstance(value, int) else int(value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise DataError(
            f"Expected validation_freq to be a positive number of epochs, or a list of epochs, got {value!r}."
        )
    return tuple(value)


def _image_sizes(sizes: Any, epochs: int) -> dict[int, tuple[int, int] | None]:
    """Return epoch -> (height, width) or None, in the order of the epochs."""
    example = "such as {0: 128, 10: 160, 20: 224}"
    if not isinstance(sizes, Mapping) or not sizes or not all(is_int(epoch, 0) for epoch in sizes):
        raise DataError(
            f"Expected image_sizes to be a dict from an epoch, counted from 0, to the size of the images from there "
            f"on, {example}, got {sizes!r}."
        )
    checked: dict[int, tuple[int, int] | None] = {}
    for epoch in sorted(sizes):
        size = sizes[epoch]
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if size is not None and (len(sides) != 2 or not all(is_int(side, 1) for side in sides)):
            raise DataError(
                f"image_sizes has the size {size!r} for epoch {epoch}. Expected a number of pixels, (height, width), "
                f"or None for images as they are, {example}."
            )
        checked[int(epoch)] = None if size is None else (int(sides[0]), int(sides[1]))
    if max(checked) >= epochs:
        raise DataError(
            f"image_sizes has a size from epoch {max(checked)} on, and fit got epochs={epochs}: its last epoch is "
            f"{epochs - 1}. Expected epochs of this run. Train longer, or move the sizes to earlier epochs."
        )
    return checked


def _as_json(value: Any) -> Any:
    """Return a JSON value: numbers, strings and None as they are, sequences as lists, the rest as text."""
    if isinstance(value, Mapping):
        return {str(name): str(entry) for name, entry in value.items()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple | range):
        return [_as_json(entry) for entry in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
