"""`stored`: an array that XLA's compiler for CPUs computes once, however many read it."""

from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def stored(x: jax.Array) -> jax.Array:
    """Returns x, which a CPU computes once and keeps. Its gradient likewise.

    Two read the output of a residual block, the next branch and the next addition. XLA's CPU compiler computes sums
    anew for each reader; along the blocks of a stage, each addition then goes through those of all blocks before it,
    and the time grows with the square of the depth. Other platforms' compilers do not, and get x as it is.

    What tells the CPU's compiler is a barrier, which that of jaxlib 0.10 drops before it fuses unless it is asked not
    to, as `resfit.Model` does; that of 0.12 keeps it.

    Args:
      x: any array.

    Example:
      >>> float(stored(jnp.float32(2)))
      2.0
    """
    kept: jax.Array = _stored_p.bind(x)
    return kept


def _lowered(ctx: mlir.LoweringRuleContext, x: Any) -> Any:
    # Asked here, not by a rule per platform: a program for several would choose between the two while it runs.
    keep = lax.optimization_barrier if "cpu" in ctx.module_context.platforms else lambda x: x
    return mlir.lower_fun(keep, multiple_results=False)(ctx, x)


_stored_p = Primitive("stored")
_stored_p.def_impl(lambda x: x)
_stored_p.def_abstract_eval(lambda x: x)
ad.deflinear(_stored_p, lambda cotangent: [stored(cotangent)])
batching.defvectorized(_stored_p)
mlir.register_lowering(_stored_p, _lowered)
