"""The facts that a model learns from the data it is trained on, and forgets if no step was taken."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from flax import nnx

from resfit.callbacks.base import Callback
from resfit.losses import Loss
from resfit.metrics.collection import Summed
from resfit.preprocess import Preprocess
from resfit.trainer.learned.input_format import InputFormat
from resfit.trainer.learned.label_format import LabelFormat
from resfit.trainer.step import OutputsShape
from resfit.transforms import FolderTransforms, Transforms

AnyTransforms = Transforms | FolderTransforms | None


class Learned:
    """The facts that a model knows about its data.

    Args:
      module: the network; a network of resfit states its input channels and classes.
      custom_step: True if a subclass of the model overrides `compute_loss`.

    Attributes:
      inputs: their format.
      labels: their format.
      stepped: True if a training step was taken since `compile`.
    """

    def __init__(self, module: nnx.Module, *, custom_step: bool) -> None:
        self.inputs = InputFormat(module)
        self.labels = LabelFormat(module, custom_step=custom_step)
        self.stepped = False

    def compiled(
        self, loss: Loss, metrics: Summed, preprocess: Preprocess | None, *, replaces_preprocess: bool
    ) -> None:
        """Take over what `compile` decided.

        Args:
          loss: of the steps.
          metrics: of the steps.
          preprocess: of the steps.
          replaces_preprocess: True if the weights have to be trained again, on other values.
        """
        self.labels.compiled(loss, metrics, trained=self.inputs.trained)
        if replaces_preprocess:
            self.inputs.replace(preprocess)
        self.inputs.preprocess, self.stepped = preprocess, False

    def check_labels(self, labels: Any, outputs: OutputsShape) -> None:
        """See `LabelFormat.check`."""
        self.labels.check(labels, outputs)

    def check_inputs(self, x: Any, trained: bool) -> None:
        """See `InputFormat.check`."""
        self.inputs.check(x, trained=trained)
        self.stepped |= trained

    def note_restored(self, labels: Any) -> None:
        """Learn from a restored run the facts that its steps would have given.

        Args:
          labels: all of them; None if only the batches have them: `SeenData` then restores what is known.
        """
        self.inputs.trained = self.stepped = True
        if labels is not None:
            self.labels.note(labels)

    @contextlib.contextmanager
    def starting_over(
        self, names: list[str] | None, class_weight: Mapping[int, float] | None, transforms: AnyTransforms = None
    ) -> Iterator[None]:
        """Learn class names, transforms, and after `compile` the scale of the inputs; forget them if no step is taken.

        They are known during training, so that models saved by callbacks have them.

        Args:
          names: of the classes, or None.
          class_weight: the weights by class, or None.
          transforms: of photographs, or None for those of the model.
        """
        before, stepped = (self.inputs.trained_on, self.labels.names, self.inputs.transforms), self.stepped
        self.labels.names, self.labels.class_weight, self.stepped = names, class_weight, False
        self.inputs.transforms = transforms or self.inputs.transforms
        if not stepped:
            self.inputs.trained_on = None
        try:
            yield
        finally:
            self.labels.class_weight = None
            if not self.stepped:
                self.inputs.trained_on, self.labels.names, self.inputs.transforms = before
            self.stepped = self.stepped or stepped

    def facts(self) -> tuple[Any, ...]:
        """Return what training changes, for `put_facts`."""
        inputs, labels = self.inputs, self.labels
        return inputs.trained, inputs.trained_on, self.stepped, labels.names, labels.multi_label, inputs.transforms

    def put_facts(self, facts: tuple[Any, ...]) -> None:
        """Set what `facts` returned: the weights that were trained since are taken back."""
        inputs, labels = self.inputs, self.labels
        inputs.trained, inputs.trained_on, self.stepped, labels.names, labels.multi_label, inputs.transforms = facts

    def all_facts(self) -> dict[str, dict[str, Any]]:
        """Return all facts, for a copy of the model."""
        made = {"_module", "_custom_step", "loss"}  # the copy has its own
        holders = {"inputs": self.inputs, "labels": self.labels}
        facts = {
            place: {name: value for name, value in vars(holder).items() if name not in made}
            for place, holder in holders.items()
        }
        return {**facts, "own": {"stepped": self.stepped}}

    def put_all_facts(self, facts: dict[str, dict[str, Any]]) -> None:
        """Set what `all_facts` of another model returned."""
        for place, holder in {"inputs": self.inputs, "labels": self.labels, "own": self}.items():
            vars(holder).update(facts[place])


class SeenData(Callback):
    """Saves with a run the facts of its data that `save`, `export` and `predict` need."""

    def __init__(self, learned: Learned) -> None:
        self._learned = learned

    def state_dict(self) -> dict[str, Any]:
        return {**self._learned.inputs.state_dict(), "multi_label": self._learned.labels.multi_label}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._learned.inputs.load_state_dict(state)
        self._learned.stepped = True
        if self._learned.labels.multi_label is None:  # otherwise the loss decides
            self._learned.labels.multi_label = state.get("multi_label")
