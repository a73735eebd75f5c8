"""Knowledge distillation: training of a student by a teacher."""

from typing import Any

import jax
from flax import nnx

from resfit import losses
from resfit._utils.keywords import checked
from resfit.errors import CompileError, ModuleError
from resfit.model import Model
from resfit.nets.modes import in_mode, mode_keywords


class StudentAndTeacher(nnx.Module):
    """A module of two networks. A call runs the student.

    Args:
      student: the network to train.
      teacher: the network that the student learns from.
    """

    def __init__(self, student: nnx.Module, teacher: nnx.Module) -> None:
        self.student = student
        self.teacher = teacher

    def __call__(self, x: Any, *, train: bool = False) -> Any:
        student: Any = self.student
        return student(x, **mode_keywords(student, train))

    def teacher_outputs(self, x: Any) -> Any:
        """Return the outputs of the teacher, in evaluation mode and without a gradient."""
        teacher, mode = in_mode(self.teacher, train=False)
        return jax.lax.stop_gradient(teacher(x, **mode))


class Distiller(Model):
    """A `Model` whose student learns from the labels and from the probabilities of a teacher.

    In training and evaluation, the loss is label_weight times the loss of `compile` plus (1 - label_weight) times
    `losses.distillation`. Both networks receive the same augmented and preprocessed images. `predict` returns the
    outputs of the student.

    The teacher is frozen and always in evaluation mode. Its arrays are arguments of the compiled step, not constants.
    `module` holds both networks, so paths (in `freeze`, `optimizers.by_part`) begin with "student.".

    Source: Hinton, Vinyals and Dean (arXiv 1503.02531).

    Args:
      student: the network to train, which stays the caller's object, as in `Model`. Save it with
        `resfit.Model(student).save(path)`.
      teacher: a trained network with the same outputs. It must be another object and can be a clone of the student.
      temperature: the divisor of the logits of both networks; 4 is common.
      label_weight: the weight of the loss of the labels, from 0 to 1; small in the source.

    Raises:
      ModuleError: if student and teacher are one object.
      CompileError: for a temperature that is not positive, or a label_weight outside [0, 1].

    Example:
      >>> import resfit
      >>> teacher = resfit.create_model("resnet20", num_classes=10, depths=(1,), widths=(8,), rngs=0)
      >>> student = resfit.create_model("resnet20", num_classes=10, depths=(1,), widths=(4,), rngs=1)
      >>> model = Distiller(student, teacher, temperature=4.0)
      >>> model.compile("sgd", learning_rate=0.1, metrics=["accuracy"])
    """

    @checked("function arguments", "Distiller")
    def __init__(
        self, student: nnx.Module, teacher: nnx.Module, *, temperature: float = 4.0, label_weight: float = 0.1
    ) -> None:
        if student is teacher:
            raise ModuleError(
                "Distiller got one object as student and teacher. Expected two networks: only the student is trained. "
                "Pass flax.nnx.clone(student) as teacher."
            )
        if not temperature > 0:
            raise CompileError(f"Distiller got temperature={temperature!r}. Expected a positive number.")
        if not 0 <= label_weight <= 1:
            raise CompileError(f"Distiller got label_weight={label_weight!r}. Expected a number from 0 to 1.")
        super().__init__(StudentAndTeacher(student, teacher))
        self._temperature, self._label_weight = temperature, label_weight
        self.freeze()

    def freeze(self, *patterns: str | nnx.filterlib.Filter, batch_norm: bool = True) -> None:
        """Freeze parameters, as `Model.freeze` does. The teacher is always frozen."""
        super().freeze("teacher", *patterns, batch_norm=batch_norm)

    def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> tuple[jax.Array, Any]:
        """Return the loss and the outputs of the student, see `Model.compute_loss`."""
        if self.multi_label:
            raise CompileError(
                "Distiller got a loss for several labels per example. Expected a loss for one class, such as "
                "loss='cross_entropy': the distillation loss uses the softmax of all classes. For several labels "
                "override Model.compute_loss with losses.binary_cross_entropy(logits, jax.nn.sigmoid(teacher_logits))."
            )
        of_labels, logits = super().compute_loss(module, x, y, key=key, train=train)
        of_teacher = losses.distillation(logits, module.teacher_outputs(x), self._temperature)
        return self._label_weight * of_labels + (1 - self._label_weight) * of_teacher, logits
