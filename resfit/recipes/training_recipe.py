"""`TrainingRecipe`: the hyperparameters of a training, and the arguments that they are for resfit."""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import optax

from resfit import losses, optimizers, schedules
from resfit._utils.checks import is_number, positive_int
from resfit.augment import Augment, cutmix, mixup, one_of, random_erasing, repeated_augmentation
from resfit.errors import CompileError
from resfit.preprocess import Normalize

_OPTIMIZERS = ("sgd", "lamb", "adamw")
_SCALING: Mapping[str, float] = {"linear": 1.0, "sqrt": 0.5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """The hyperparameters of a training, as their source states them.

    Images are uint8, 0 to 255. A recipe without `erasing` also takes floats in [0, 1].

    Attributes:
      name: see `names`.
      source: the paper or script, and its table or section.
      url: of the source.
      data: the dataset of the source.
      network: the network of the source, by its name in the zoo if the zoo has it.
      accuracy: of this network in the source, on the validation or test images, from 0 to 1. It is no accuracy of
        resfit. None for a recipe without a published one.
      optimizer: "sgd", "lamb" or "adamw".
      momentum: of SGD.
      nesterov: True for Nesterov momentum.
      learning_rate: the peak, for `batch_size`.
      scaling: how the learning rate depends on the batch size: "linear", in proportion (Goyal et al., arXiv
        1706.02677), or "sqrt", as its square root, for optimizers with an adaptive step (You et al., arXiv 1904.00962).
      schedule: of the learning rate, without a peak.
      weight_decay: its coefficient.
      decays_all: True if norms and biases decay too.
      depth_decay: the learning rate of a part of the network divided by that of the next one.
      epochs: of the run, as the source counts them: batches of all images together.
      batch_size: images in a step, over all devices together; with `repeats`, copies included.
      train_size: pixels per side of a training image; None for the size of the dataset.
      test_size: pixels per side of a test image; None for the size of the dataset.
      test_crop: the share of the shorter side that the central crop of a test image keeps; None for the whole image.
      augment: of single images, in order, without the crop of `train_size`, which the data functions make.
      erasing: the probability of random erasing.
      mixup: alpha of mixup; None for no mixup.
      cutmix: alpha of CutMix; None for no CutMix. With both, each step draws one of them.
      repeats: copies of an image in a batch, each with other augmentations (Hoffer et al., arXiv 1901.09335); 1 for
        no repetition. `fit_arguments` has `epochs / repeats` passes over the data, so that the number of steps is that
        of the source, and `batch_size // repeats` examples in a batch.
      label_smoothing: of the loss.
      binary: True for one class against the rest, with targets of 0 and 1 for both classes of a mixed image; False
        for softmax cross-entropy.
      drop_path: stochastic depth of the last block.
      dropout: within the residual blocks; None for that of the network.
      ema: decay of the average of the weights in each step; None for no average.
      mean: of each channel, for pixels in [0, 1].
      std: of each channel.
      left_out: what the source does and resfit's recipe does not, one sentence each.
    """

    name: str
    source: str
    url: str
    data: str
    network: str
    accuracy: float | None
    optimizer: str
    learning_rate: float
    schedule: schedules.Schedule
    weight_decay: float
    epochs: int
    batch_size: int
    momentum: float = 0.9
    nesterov: bool = False
    scaling: str = "linear"
    decays_all: bool = False
    depth_decay: float = 1.0
    train_size: int | None = None
    test_size: int | None = None
    test_crop: float | None = None
    augment: tuple[Augment, ...] = ()
    erasing: float = 0.0
    mixup: float | None = None
    cutmix: float | None = None
    repeats: int = 1
    label_smoothing: float = 0.0
    binary: bool = False
    drop_path: float = 0.0
    dropout: float | None = None
    ema: float | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "repeats"):
            positive_int(name, getattr(self, name), CompileError)
        for name in ("train_size", "test_size"):
            if getattr(self, name) is not None:
                positive_int(name, getattr(self, name), CompileError)
        self._require(0 < _number(self.learning_rate) < math.inf, "learning_rate", "a positive number")
        self._require(0 <= _number(self.weight_decay) < math.inf, "weight_decay", "a number of 0 or more")
        self._require(0 <= _number(self.momentum) < 1, "momentum", "a number of 0 or more, below 1")
        self._require(self.test_crop is None or 0 < _number(self.test_crop) <= 1, "test_crop", "a share, or None")
        self._require(isinstance(self.nesterov, bool), "nesterov", "True or False")
        self._require(self.ema is None or 0 < _number(self.ema) < 1, "ema", "a decay above 0, below 1, or None")
        self._require(0 <= _number(self.drop_path) < 1, "drop_path", "a probability of 0 or more, below 1")
        self._require(
            self.dropout is None or 0 <= _number(self.dropout) < 1, "dropout", "a probability of 0 or more, below 1"
        )
        without_peak = isinstance(self.schedule, schedules.Schedule) and self.schedule.peak is None
        self._require(
            without_peak, "schedule", "an object of resfit.schedules without a peak, which `learning_rate` is"
        )
        is_list = isinstance(self.augment, list | tuple) and all(callable(one) for one in self.augment)
        self._require(is_list, "augment", "a list of functions, such as (resfit.augment.flip(),)")
        object.__setattr__(self, "augment", tuple(self.augment))
        if self.optimizer not in _OPTIMIZERS or self.scaling not in _SCALING:
            raise CompileError(
                f"TrainingRecipe got optimizer={self.optimizer!r} and scaling={self.scaling!r}. Expected optimizer to "
                f"be one of {list(_OPTIMIZERS)}, and scaling one of {list(_SCALING)}."
            )

    def _require(self, condition: bool, name: str, expected: str) -> None:
        if not condition:
            raise CompileError(f"TrainingRecipe got {name}={getattr(self, name)!r}. Expected {expected}.")

    def replace(self, *, epochs: int | None = None, batch_size: int | None = None, **changes: Any) -> "TrainingRecipe":
        """Return the recipe for another length or batch size, or with other fields.

        Args:
          epochs: drops of the learning rate keep their share of the run, and a warm-up takes at most a tenth of it.
          batch_size: the learning rate follows it, as `scaling` says, unless `learning_rate` is among the changes.
          changes: other fields, with their new values.

        The average of the weights reaches over the same share of the run as before. A second `replace` starts from the
        result of the first one, whose warm-up can be shorter than that of the source.

        Raises:
          CompileError: for an unknown field, or a value that is not a positive integer.

        Example:
          >>> from resfit import recipes
          >>> recipe = recipes.get("torchvision-v1").replace(epochs=45, batch_size=64)
          >>> recipe.learning_rate, recipe.schedule.at
          (0.025, (15.0, 30.0))
        """
        known = [field.name for field in dataclasses.fields(self)]
        if unknown := [name for name in changes if name not in known]:
            raise CompileError(f"replace got {unknown[0]!r}. Expected fields of a TrainingRecipe: {known}.")
        new_epochs = self.epochs if epochs is None else positive_int("epochs", epochs, CompileError)
        new_size = self.batch_size if batch_size is None else positive_int("batch_size", batch_size, CompileError)
        longer, larger = new_epochs / self.epochs, new_size / self.batch_size
        power = _SCALING.get(changes.get("scaling", self.scaling), 1.0)  # an unknown one raises below
        scaled: dict[str, Any] = {
            "epochs": new_epochs,
            "batch_size": new_size,
            "learning_rate": self.learning_rate * larger**power,
            "schedule": _stretched(self.schedule, longer),
        }
        if isinstance(self.schedule, schedules.WarmupCosine) and self.schedule.warmup_epochs is not None:
            warmup = min(self.schedule.warmup_epochs, new_epochs / 10)
            scaled["schedule"] = dataclasses.replace(self.schedule, warmup_epochs=warmup)
        if self.ema is not None:
            share = (1 - self.ema) * larger / longer
            scaled["ema"] = 1 - share if share < 1 else None  # an average over a step is no average
        return dataclasses.replace(self, **(scaled | changes))

    def network_arguments(self) -> dict[str, Any]:
        """Return the arguments of `create_model`: stochastic depth and dropout."""
        found = {"drop_path": self.drop_path} if self.drop_path else {}
        return found if self.dropout is None else found | {"dropout": self.dropout}

    def train_data_arguments(self) -> dict[str, Any]:
        """Return size and random crop for `resfit.data.folder`, `files` and `huggingface`; nothing for small images."""
        return {} if self.train_size is None else {"size": self.train_size, "crop": "random"}

    def test_data_arguments(self) -> dict[str, Any]:
        """Return size and central crop for the same functions."""
        return {} if self.test_size is None else {"size": self.test_size, "crop": self.test_crop}

    def compile_arguments(self, net: Any = None) -> dict[str, Any]:
        """Return the arguments of `Model.compile`: optimizer, learning rate, loss, augmentation and others.

        Args:
          net: the network, for a recipe with a `depth_decay`, which reads `net.parts`.

        Raises:
          CompileError: without `net`, if the recipe has a `depth_decay`.

        Example:
          >>> from resfit import recipes
          >>> arguments = recipes.get("he-cifar").compile_arguments()
          >>> arguments["learning_rate"]
          Step(peak=0.1, at=(82.0, 123.0), drop=0.1)
          >>> arguments["augment"]
          (pad_crop(pixels=4, mode='zeros'), flip(probability=0.5))
        """
        found = {
            "optimizer": self._optimizer(net),
            "learning_rate": dataclasses.replace(self._schedule_of_passes(), peak=self.learning_rate),
            "loss": self._loss(),
            "augment": self._augmentations(),
            "ema": self.ema,
        }
        if self.mean is not None and self.std is not None:
            found["preprocess"] = Normalize(self.mean, self.std)
        return found

    def fit_arguments(self) -> dict[str, Any]:
        """Return the arguments of `Model.fit`: epochs and batch size, without partial batches; see `repeats`."""
        epochs, examples = round(self.epochs / self.repeats), self.batch_size // self.repeats
        return {"epochs": max(epochs, 1), "batch_size": max(examples, 1), "drop_remainder": True}

    def _schedule_of_passes(self) -> schedules.Schedule:
        """Return the schedule in passes over the data."""
        schedule = _stretched(self.schedule, 1 / self.repeats)
        if isinstance(schedule, schedules.WarmupCosine) and schedule.warmup_epochs is not None:
            schedule = dataclasses.replace(schedule, warmup_epochs=schedule.warmup_epochs / self.repeats)
        return schedule

    def _optimizer(self, net: Any) -> Any:
        decay = {"weight_decay": self.weight_decay}
        made = {
            "sgd": partial(
                _sgd_with_decay_of_all if self.decays_all else optimizers.sgd,
                momentum=self.momentum,
                nesterov=self.nesterov,
                **decay,
            ),
            "lamb": partial(optimizers.lamb, **decay),
            "adamw": partial(optimizers.adamw, **decay),
        }[self.optimizer]
        if self.depth_decay == 1:
            return made
        if not hasattr(net, "parts"):
            raise CompileError(
                f"The recipe {self.name!r} trains parts of the network with different learning rates, and got "
                f"net={type(net).__name__}. Expected compile_arguments(net) with a network of resfit.create_model."
            )
        return optimizers.by_depth(net.parts, made(self.learning_rate), decay=self.depth_decay)

    def _loss(self) -> Any:
        if self.binary:
            return losses.BinaryCrossEntropy(label_smoothing=self.label_smoothing, target_threshold=0.2)
        return losses.CrossEntropy(label_smoothing=self.label_smoothing)

    def _augmentations(self) -> tuple[Augment, ...]:
        found = [repeated_augmentation(self.repeats), *self.augment] if self.repeats > 1 else list(self.augment)
        if self.erasing:
            fill = tuple(255 * mean for mean in self.mean or (0.0,))  # zero after the normalization
            found.append(random_erasing(self.erasing, fill=fill))
        mixing = [make(alpha) for make, alpha in ((mixup, self.mixup), (cutmix, self.cutmix)) if alpha is not None]
        return (*found, *([one_of(*mixing)] if len(mixing) > 1 else mixing))


def _number(value: Any) -> float:
    """Return a number, or NaN for anything else, which is in no range."""
    return float(value) if is_number(value) and not isinstance(value, bool) else math.nan


def _sgd_with_decay_of_all(
    learning_rate: Any, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """Return `optimizers.sgd`, but with weight decay of norms and biases too, as in PyTorch by default."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)
    )


def _stretched(schedule: schedules.Schedule, longer: float) -> schedules.Schedule:
    """Return the schedule whose drops come `longer` times as late."""
    if isinstance(schedule, schedules.Step) and schedule.at is not None:
        return dataclasses.replace(schedule, at=tuple(longer * epoch for epoch in schedule.at))
    return schedule
