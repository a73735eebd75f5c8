"""The optimizers with a name: those of optax, with weight decay and trust ratios only on kernels."""

import inspect
from typing import Any

import jax
import optax
import optax.contrib

from resfit._utils.keywords import checked
from resfit.errors import CompileError
from resfit.optimizers.injected_learning_rate import LearningRate, with_rate
from resfit.optimizers.masks import no_decay_on_norms_and_biases


@checked("function arguments")
def sgd(
    learning_rate: LearningRate, *, momentum: float = 0.9, nesterov: bool = True, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Return SGD with Nesterov momentum and weight decay.

    Weight decay is added to the gradient, as in PyTorch, and applies only to kernels.

    Args:
      learning_rate: a number or a schedule (step -> number).
      momentum: the momentum coefficient.
      nesterov: if True, use Nesterov momentum.
      weight_decay: the coefficient of weight decay.

    Example:
      >>> import optax
      >>> optimizer = sgd(optax.linear_schedule(0.0, 0.1, transition_steps=10), weight_decay=5e-4)
      >>> params = {"kernel": jnp.ones((2, 2))}
      >>> state = optimizer.init(params)
      >>> for _ in range(6):
      ...     _, state = optimizer.update(params, state, params)
      >>> state.hyperparams["learning_rate"]  # of the sixth step: the optimizer follows a schedule
      Array(0.05, dtype=float32)
    """
    return with_rate(
        lambda learning_rate: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=no_decay_on_norms_and_biases),
            optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov),
        ),
        learning_rate,
    )


@checked("function arguments")
def adam(
    learning_rate: LearningRate, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Return Adam (arXiv 1412.6980) of optax.

    Example:
      >>> optimizer = adam(1e-3)
    """
    return with_rate(lambda learning_rate: optax.adam(learning_rate, b1=b1, b2=b2, eps=eps), learning_rate)


@checked("function arguments")
def adamw(
    learning_rate: LearningRate, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.05
) -> optax.GradientTransformation:
    """Return AdamW (arXiv 1711.05101), with decoupled weight decay only on kernels.

    Example:
      >>> optimizer = adamw(1e-3, weight_decay=0.01)
    """
    return with_rate(
        lambda learning_rate: optax.adamw(
            learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=no_decay_on_norms_and_biases
        ),
        learning_rate,
    )


@checked("function arguments")
def rmsprop(
    learning_rate: LearningRate,
    *,
    decay: float = 0.9,
    momentum: float = 0.0,
    eps: float = 1e-7,
    centered: bool = False,
    weight_decay: float = 0.0,
) -> optax.GradientTransformation:
    """Return RMSProp (Hinton, lecture 6e) with Keras's defaults.

    Weight decay is added to the gradient and applies only to kernels.

    Args:
      learning_rate: a number or a schedule (step -> number).
      decay: the decay of the running mean of squared gradients.
      momentum: the momentum coefficient; 0 for no momentum.
      eps: a number added to the running mean under the square root, as in TensorFlow. PyTorch adds it to the root.
      centered: if True, subtract the squared mean of the gradients.
      weight_decay: the coefficient of weight decay.

    Example:
      >>> optimizer = rmsprop(1e-3, momentum=0.9)
    """
    return with_rate(
        lambda learning_rate: optax.chain(
            optax.add_decayed_weights(weight_decay, mask=no_decay_on_norms_and_biases),
            optax.rmsprop(learning_rate, decay=decay, eps=eps, centered=centered, momentum=momentum or None),
        ),
        learning_rate,
    )


@checked("function arguments")
def lars(
    learning_rate: LearningRate, *, momentum: float = 0.9, weight_decay: float = 1e-4, trust_coefficient: float = 0.001
) -> optax.GradientTransformation:
    """Return LARS (arXiv 1708.03888), SGD for large batches: the step of a kernel is in proportion to its norm.

    Norms and biases take plain momentum steps, without trust ratio and weight decay.

    Args:
      learning_rate: a number or a schedule (step -> number). Use values near 1, with a warm-up.
      momentum: the momentum coefficient.
      weight_decay: the coefficient of weight decay, which is added to the gradient.
      trust_coefficient: the size of a kernel's step as a share of its norm, for a learning rate of 1.

    Example:
      >>> params = {"kernel": jnp.full((2, 2), 3.0)}
      >>> optimizer = lars(1.0, weight_decay=0.0)
      >>> updates, _ = optimizer.update({"kernel": jnp.full((2, 2), 1e6)}, optimizer.init(params), params)
      >>> round(float(jnp.linalg.norm(updates["kernel"]) / jnp.linalg.norm(params["kernel"])), 6)
      0.001
    """
    return with_rate(
        lambda learning_rate: optax.lars(
            learning_rate,
            weight_decay=weight_decay,
            weight_decay_mask=no_decay_on_norms_and_biases,
            trust_coefficient=trust_coefficient,
            trust_ratio_mask=no_decay_on_norms_and_biases,
            momentum=momentum,
        ),
        learning_rate,
    )


@checked("function arguments")
def lamb(
    learning_rate: LearningRate, *, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6, weight_decay: float = 0.02
) -> optax.GradientTransformation:
    """Return LAMB (arXiv 1904.00962), Adam for large batches: the step of a kernel is in proportion to its norm.

    Norms and biases take plain Adam steps, without trust ratio and weight decay. The defaults are those of "ResNet
    strikes back" (arXiv 2110.00476), for batches of 2048.

    Args:
      learning_rate: a number or a schedule (step -> number): the size of a kernel's step as a share of its norm.
      b1: the decay of the running mean of gradients.
      b2: the decay of the running mean of squared gradients.
      eps: a number added to the square root of that mean.
      weight_decay: the coefficient of weight decay, which is added to Adam's step before the trust ratio.

    Example:
      >>> optimizer = lamb(5e-3, weight_decay=0.01)
    """
    return with_rate(
        lambda learning_rate: optax.chain(
            optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
            optax.add_decayed_weights(weight_decay, mask=no_decay_on_norms_and_biases),
            optax.masked(optax.scale_by_trust_ratio(), no_decay_on_norms_and_biases),  # optax.lamb masks the decay only
            optax.scale_by_learning_rate(learning_rate),
        ),
        learning_rate,
    )


@checked("function arguments")
def muon(
    learning_rate: LearningRate,
    *,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.05,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
) -> optax.GradientTransformation:
    """Return Muon of optax: the step of a kernel is its momentum, orthogonalized by Newton-Schulz iterations.

    A convolution is the matrix (height * width * inputs, outputs). Its step has the root mean square of AdamW's, so
    that learning rates and weight decay of AdamW apply (Liu et al., arXiv 2502.16982). Norms and biases take AdamW's
    steps without decay. Source: Jordan et al. (https://kellerjordan.github.io/posts/muon).

    Args:
      learning_rate: a number or a schedule (step -> number).
      momentum: the decay of the running mean of the gradients of kernels.
      nesterov: if True, use Nesterov momentum, also in the steps of norms and biases.
      weight_decay: the coefficient of weight decay of kernels, times the learning rate.
      b1: the decay of the running mean of the gradients of norms and biases.
      b2: the decay of the running mean of their squared gradients.
      eps: a number added to the square root of that mean, and to the norm of a kernel's momentum.

    Raises:
      CompileError: if the installed optax has no Muon for convolutions, as before 0.2.7.

    Example:
      >>> import numpy as np
      >>> params = {"kernel": jnp.zeros((3, 3, 2, 4))}
      >>> optimizer = muon(1.0)
      >>> gradients = jax.tree.map(lambda p: jax.random.normal(jax.random.key(0), p.shape), params)
      >>> updates, _ = optimizer.update(gradients, optimizer.init(params), params)
      >>> step = updates["kernel"].reshape(18, 4)
      >>> singular = jnp.linalg.svd(step, compute_uv=False) / (0.2 * 18**0.5)  # near 1
      >>> bool((singular > 0.6).all() & (singular < 1.3).all())
      True
    """
    if "consistent_rms" not in inspect.signature(optax.contrib.muon).parameters:
        raise CompileError(
            f"The installed optax {optax.__version__} has no Muon for convolutions. Expected optax 0.2.7 or later: "
            "pip install --upgrade optax."
        )
    return with_rate(
        lambda learning_rate: optax.contrib.muon(
            learning_rate,
            beta=momentum,
            eps=eps,
            weight_decay=weight_decay,
            nesterov=nesterov,
            adam_b1=b1,
            adam_b2=b2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        ),
        learning_rate,
    )


def _matrices(params: Any) -> Any:
    """Return the axes of each kernel's matrix, with the outputs last; None for norms and biases."""

    def axes(param: Any) -> Any:
        last = param.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(last)), (last,)) if last > 0 else None

    return jax.tree.map(axes, params)
