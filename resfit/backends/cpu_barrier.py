"""`materialize_on_cpu`: arrays that XLA's compiler for CPUs computes once, before anything reads them.

Networks call one JAX primitive on every platform. Its lowering rule is the only place that knows the platform.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

T = TypeVar("T")


def materialize_on_cpu(arrays: T) -> T:
    """Return the arrays; a CPU computes all of them once, before anything reads one. The same holds for gradients.

    XLA's compiler for CPUs computes a sum again for each reader. The next branch and the next addition read the output
    of a residual block. So each addition repeats the additions of all earlier blocks of its stage, and the time grows
    with the square of the depth.

    A barrier prevents this, see `barrier_options`. The compilers of other platforms get the arrays without a barrier.

    Args:
      arrays: an array, or a pytree of arrays.

    Example:
      >>> float(materialize_on_cpu(jnp.float32(2)))
      2.0
    """
    leaves, structure = jax.tree.flatten(arrays)
    bind: Callable[..., list[jax.Array]] = _stored_p.bind  # which has no types
    kept: T = jax.tree.unflatten(structure, bind(*leaves))
    return kept


def barrier_options(text: str, devices: Sequence[jax.Device]) -> dict[str, Any]:
    """Return the compiler options by which a CPU keeps the barriers of a program.

    Rematerialization and slices of a batch also separate parts of a program by barriers. The compiler of jaxlib 0.10.2
    for CPUs removes barriers too early: it merges what is computed again with the kept first result, and no memory is
    saved. Later ones (0.12) keep barriers without an option.

    Args:
      text: of the program.
      devices: the devices that the program runs on; none for a program without arrays.
    """
    keep = "optimization_barrier" in text and devices[0].platform == "cpu"
    return {"xla_disable_hlo_passes": "cse_barrier_expander"} if keep else {}


def _lowered(ctx: mlir.LoweringRuleContext, *arrays: Any) -> Any:
    # One rule for all platforms: with a rule per platform, a program for several chooses while it runs.
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
