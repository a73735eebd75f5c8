"""`stored`: arrays that XLA's compiler for CPUs computes once, and before all that reads them."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

T = TypeVar("T")


def stored(arrays: T) -> T:
    """Returns the arrays, which a CPU computes once and keeps, and all of them before any is read. Gradients likewise.

    XLA's compiler for CPUs computes sums anew for each reader. The output of a residual block is read by the next
    branch and by the next addition: along the blocks of a stage, each addition then goes through those of all blocks
    before it, and the time grows with the square of the depth.

    Other platforms' compilers get the arrays as they are. What tells this one is a barrier, which that of jaxlib 0.10
    drops before it fuses unless it is asked not to, as `resfit.Model` does; that of 0.12 keeps it.

    Args:
      arrays: one, or any pytree of them.

    Example:
      >>> float(stored(jnp.float32(2)))
      2.0
    """
    leaves, structure = jax.tree.flatten(arrays)
    bind: Callable[..., list[jax.Array]] = _stored_p.bind  # which has no types
    kept: T = jax.tree.unflatten(structure, bind(*leaves))
    return kept


def _lowered(ctx: mlir.LoweringRuleContext, *arrays: Any) -> Any:
    # Asked here, not by a rule per platform: a program for several would choose between the two while it runs.
    keep: Callable[[Any], Any] = (
        lax.optimization_barrier if "cpu" in ctx.module_context.platforms else lambda arrays: arrays
    )
    return mlir.lower_fun(lambda *arrays: keep(arrays), multiple_results=True)(ctx, *arrays)


_stored_p = Primitive("stored")
_stored_p.multiple_results = True
_stored_p.def_impl(lambda *arrays: list(arrays))
_stored_p.def_abstract_eval(lambda *arrays: list(arrays))
ad.deflinear2(_stored_p, lambda cotangents, *_: _stored_p.bind(*map(ad.instantiate_zeros, cotangents)))
batching.primitive_batchers[_stored_p] = lambda arrays, axes: (_stored_p.bind(*arrays), axes)
mlir.register_lowering(_stored_p, _lowered)
