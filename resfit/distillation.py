"""Training a student on what a teacher says."""

from typing import Any

import jax
from flax import nnx

from resfit import losses
from resfit.errors import CompileError, ModuleError
from resfit.model import Model
from resfit.nets.modes import in_mode, mode_keywords


class StudentAndTeacher(nnx.Module):
    """Two networks as one module, whose call is the student's.

    Args:
      student: the network to train.
      teacher: the network to learn from.
    """

    def __init__(self, student: nnx.Module, teacher: nnx.Module) -> None:
        self.student = student
        self.teacher = teacher

    def __call__(self, x: Any, *, train: bool = False) -> Any:
        student: Any = self.student
        return student(x, **mode_keywords(student, train))

    def ask(self, x: Any) -> Any:
        """What the teacher says: always in evaluation mode, without a gradient."""
        teacher, mode = in_mode(self.teacher, train=False)
        return jax.lax.stop_gradient(teacher(x, **mode))


class Distiller(Model):
    """A `Model` whose student learns from a teacher's probabilities as well as from the labels.

    The loss is label_weight times the loss of `compile` plus (1 - label_weight) times `losses.distillation`, in
    training and evaluation alike. Both networks see the same augmented and preprocessed images. `predict` gives the
    student's outputs.

    The teacher is frozen and always in evaluation mode. Its arrays are arguments of the compiled step, no constants in
    it. `module` holds both networks, so paths (in `freeze`, `optimizers.by_part`) begin with "student.".

    Source: Hinton, Vinyals and Dean (arXiv 1503.02531).

    Args:
      student: the network to train: the caller's own, as in `Model`. Save it with `resfit.Model(student).save(path)`.
      teacher: a trained network with the same outputs; another object, though it may be a clone.
      temperature: what both networks' logits are divided by; 4 is common.
      label_weight: the share of the labels' loss, from 0 to 1; small in the source.

    Raises:
      ModuleError: if student and teacher are one object.
      CompileError: for a temperature or a share that is none.

    Example:
      >>> import resfit
      >>> teacher = resfit.create_model("resnet20", num_classes=10, depths=(1,), widths=(8,), rngs=0)
      >>> student = resfit.create_model("resnet20", num_classes=10, depths=(1,), widths=(4,), rngs=1)
      >>> model = Distiller(student, teacher, temperature=4.0)
      >>> model.compile("sgd", learning_rate=0.1, metrics=["accuracy"])
    """

    def __init__(
        self, student: nnx.Module, teacher: nnx.Module, *, temperature: float = 4.0, label_weight: float = 0.1
    ) -> None:
        if student is teacher:
            raise ModuleError(
                "Student and teacher are one object, which cannot be trained and stay as it is. Give the teacher as "
                "flax.nnx.clone(student)."
            )
        if not temperature > 0:
            raise CompileError(f"Distiller got temperature={temperature!r}. Expected a positive number.")
        if not 0 <= label_weight <= 1:
            raise CompileError(f"Distiller got label_weight={label_weight!r}. Expected a share from 0 to 1.")
        super().__init__(StudentAndTeacher(student, teacher))
        self._temperature, self._label_weight = temperature, label_weight
        self.freeze()

    def freeze(self, *patterns: str, batch_norm: bool = True) -> None:
        """As `Model.freeze`; the teacher is frozen in any case."""
        super().freeze("teacher", *patterns, batch_norm=batch_norm)

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """See `Model.compute_loss`."""
        if self.multi_label:
            raise CompileError(
                "Distiller got a loss for several labels per example, and the teacher's part of its loss compares the "
                "softmax of all classes. Expected a loss for one class, such as loss='cross_entropy'. For several "
                "labels override Model.compute_loss with losses.binary_cross_entropy(logits, "
                "jax.nn.sigmoid(teacher_logits))."
            )
        of_labels, logits = super().compute_loss(module, x, y, key=key, train=train)
        of_teacher = losses.distillation(logits, module.ask(x), self._temperature)
        return self._label_weight * of_labels + (1 - self._label_weight) * of_teacher, logits
