"""The inputs of a model: its preprocessing, and the shapes and dtypes that it was trained on."""

import logging
from typing import Any

import jax
import numpy as np
from flax import nnx

from resfit import preprocess as preprocess_
from resfit.data import ImageFiles
from resfit.data.states import is_storable
from resfit.errors import CompileError
from resfit.nets.input_checks import check_rank
from resfit.preprocess import Kinds, Preprocess
from resfit.transforms import FolderTransforms, Transforms
from resfit.transforms.pretrained_transforms import published_transforms

_log = logging.getLogger("resfit")


class InputFormat:
    """The preprocessing of a model, and the known format of its inputs.

    Args:
      module: the network; a network of resfit states the channels of its images.

    Attributes:
      preprocess: applied to every input, or None.
      automatic: the meaning of `preprocess="auto"` for this model.
      transforms: applied to photographs before they are inputs, or None.
      transforms_were_set: True if the user set them; other transforms are replaced by those of the training data.
      trained: True if the weights were trained with `preprocess`.
      trained_on: the kinds of inputs that `preprocess` saw in training, or None.
      example: shapes and dtypes of one example of the last training, or of the first call before any; None before.
    """

    def __init__(self, module: nnx.Module) -> None:
        self._module = module
        self.preprocess: Preprocess | None = preprocess_.Auto()
        self.automatic: Preprocess | None = self.preprocess
        self.transforms: Transforms | FolderTransforms | None = None
        self.transforms_were_set = False
        self.trained = False
        self.trained_on: Kinds | None = None
        self.example: Any = None
        self._example_of: Any = None  # shape and dtype of `example`, to see at once that a batch is equal
        self._settled: Any = None  # what a batch passed the check with, if the check needs no values
        published = published_transforms(*(getattr(module, "published_weights", None) or ("",)))
        if published is not None and len(published.mean or ()) == spec_entry(module, "in_channels"):
            self.set_transforms(published)

    def adopt(self, preprocess: Preprocess | None, trained_on: Kinds | None) -> None:
        """Take over the preprocessing that belongs to the weights."""
        self.preprocess = self.automatic = preprocess
        self.trained_on = trained_on

    def chosen(self, preprocess: Any, *, replace: bool) -> Preprocess | None:
        """Return the preprocessing that an argument of `compile` means.

        Args:
          preprocess: the argument.
          replace: True to accept another one than the trained one.

        Raises:
          CompileError: for another preprocessing than the one that the network was trained with.
        """
        if preprocess == "auto":
            return self.preprocess if self.trained else self.automatic
        chosen = preprocess_.get(preprocess)
        if self.trained and not replace and not self._is_trained(chosen):
            raise CompileError(
                f"compile got preprocess={chosen!r}, and the network was trained with {self.preprocess!r}. Expected "
                "the same: leave preprocess out. To replace it and train again, pass replace_preprocess=True."
            )
        return chosen

    def replace(self, preprocess: Preprocess | None) -> None:
        """Replace the trained preprocessing: the weights have to be trained again."""
        self.automatic, self.trained_on, self.trained = preprocess, None, False

    def set_transforms(self, value: Transforms | FolderTransforms) -> bool:
        """Set `transforms`, and the preprocessing to their normalization if they have one.

        Returns:
          True if the preprocessing changed, so that the compiled steps are stale.

        Raises:
          CompileError: for anything but `Transforms`, and for another normalization than the trained one.
        """
        if not isinstance(value, Transforms | FolderTransforms):
            raise CompileError(
                f"model.transforms got {value!r}. Expected a resfit.transforms.Transforms, such as that of "
                "resfit.transforms_for('timm/resnet50.a1_in1k')."
            )
        if isinstance(value, FolderTransforms) or not value.normalizes:
            self.transforms, self.automatic = value, self.preprocess
            return False
        keeps = self._is_trained(value.preprocess) if self.trained else self.preprocess == value.preprocess
        if self.trained and not keeps:
            raise CompileError(
                f"model.transforms got {value!r}, and the network was trained with {self.preprocess!r}. Expected the "
                f"normalization that it was trained with. To only resize and crop: Transforms(resize={value.resize}, "
                f"crop={value.crop}, interpolation={value.interpolation!r}, mean=None, std=None). To replace the "
                "normalization and train again: model.compile(..., preprocess=transforms.preprocess, "
                "replace_preprocess=True), then set model.transforms."
            )
        self.transforms = value
        if keeps:
            self.automatic = self.preprocess
        else:
            self.adopt(value.preprocess, None)
        return not keeps

    def check(self, x: Any, *, trained: bool) -> None:
        """Compare a batch with the inputs of training, or remember it.

        Args:
          x: the batch.
          trained: True after a training step on it; False before any step.

        Raises:
          DataError: if the preprocessing would scale the batch in another way than those of training.
        """
        described = (x.shape[1:], x.dtype) if hasattr(x, "shape") else None
        settled = self._settled
        if settled is not None and settled[0] is self.preprocess and settled[1] == self._compared(described):
            return
        if (trained or self.example is None) and (described is None or described != self._example_of):
            self.example, self._example_of = preprocess_.example(x), described
        if trained:
            self.trained = True
        # These treat uint8 and float images differently without being told.
        scales = isinstance(self.preprocess, preprocess_.Auto | preprocess_.Normalize)
        # Remembered after a step only: inputs that the network refused were not trained on.
        if scales and trained and self.trained_on is None:
            self.trained_on = preprocess_.kinds(x)
        elif scales and not trained:
            preprocess_.check_kinds(x, self.trained_on)
            if isinstance(self.preprocess, preprocess_.Normalize):
                self.preprocess.check_levels(x)
        if trained and described is not None and not (scales and preprocess_.needs_values(x, self.trained_on)):
            self._settled = self.preprocess, self._compared(described)

    def _compared(self, described: Any) -> tuple[Any, ...]:
        return described, self._example_of, self.trained_on, self.trained

    def state_dict(self) -> dict[str, Any]:
        """Return the entries that a checkpoint keeps."""
        # An array without rows has the shape and the dtype of an example, and a checkpoint can hold it.
        example = jax.tree.map(lambda one: np.empty((0, *one.shape), one.dtype), self.example)
        # Inputs in a container of a custom class are known again after the next batch.
        return {"example": example if is_storable(example) else None, "trained_on": self.trained_on}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the result of `state_dict`."""
        self.trained_on, self.trained = state["trained_on"], True
        if state["example"] is not None:
            self.example, self._example_of = preprocess_.example(state["example"]), None

    def transforms_after_training(self, x: Any) -> Transforms | FolderTransforms | None:
        """Return the transforms of photographs once the model was trained on these data.

        Image files give the transforms of their evaluation. Transforms with another size that were set stay.

        Args:
          x: as for `fit`.
        """
        own = self.transforms
        if not isinstance(x, ImageFiles):
            return own
        theirs = FolderTransforms(x.size, "center" if x.crop == "random" else x.crop, x.mode)
        if not isinstance(own, Transforms) or not self.transforms_were_set:
            return theirs
        if x.size not in (None, (own.crop, own.crop)):
            _log.warning(
                "model.transforms crops photographs to %d x %d pixels, and the training images have %s x %s. Set "
                "model.transforms = resfit.transforms.%s to predict at the size of the training.",
                own.crop, own.crop, *x.size, theirs,
            )  # fmt: skip
        return own

    def checked(self, x: Any) -> Any:
        """Return `x`; raise RankError for an array that is not a batch of images for a network of resfit.

        The network itself would see a part of the array, whose shape nobody passed.
        """
        channels = spec_entry(self._module, "in_channels")
        if channels is not None and isinstance(x, np.ndarray | jax.Array) and x.ndim and x.dtype.kind not in "OUS":
            check_rank(x, channels)
        return x

    def _is_trained(self, preprocess: Preprocess | None) -> bool:
        """Return True if a preprocessing gives the network the values that it was trained on."""
        example, channels = self.example, spec_entry(self._module, "in_channels")
        if example is None and channels is not None:  # a loaded network that has seen no input
            example = preprocess_.typical_example(channels, self.trained_on)
        return preprocess_.same_values(self.preprocess, preprocess, example)


def spec_entry(module: nnx.Module, name: str) -> Any:
    """Return an entry of a network's spec, such as "num_classes"; None for a module without one."""
    return getattr(getattr(module, "spec", None), name, None)
