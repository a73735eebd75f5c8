"""`materialize_on_cpu`: arrays that XLA's compiler for CPUs computes once, before anything reads them."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
from jax import lax

T = TypeVar("T")

# The platforms of a program while resfit traces it. JAX keys its traces by this value, so that a trace for one platform
# never serves another.
_platforms = jax.make_user_context(None)


def tracing_for(platforms: Iterable[str]) -> AbstractContextManager[Any]:
    """Tell `materialize_on_cpu` the platforms of the programs that are traced in this context.

    Args:
      platforms: such as "cpu" and "cuda"; or "onnx", for the writer of ONNX files.
    """
    context: AbstractContextManager[Any] = _platforms(tuple(sorted(set(platforms))))
    return context


def traced_for(platform: str) -> bool:
    """Return True inside of `tracing_for` with this platform. Code of others traces for no platform.

    Example:
      >>> traced_for("cpu")
      False
      >>> with tracing_for(["cpu", "cuda"]):
      ...     traced_for("cpu")
      True
    """
    return platform in (_platforms.value or ())


def materialize_on_cpu(arrays: T) -> T:
    """Return the arrays; a CPU computes all of them once, before anything reads one. The same holds for gradients.

    XLA's compiler for CPUs computes a sum again for each reader. The next branch and the next addition read the output
    of a residual block. So each addition repeats the additions of all earlier blocks of its stage, and the time grows
    with the square of the depth.

    A barrier prevents this, see `barrier_options`. Only programs that are traced in `tracing_for` with "cpu" get one.
    Other code that traces a network gets the arrays unchanged: JAX does not export the barrier's primitive, and tools
    that read a jaxpr, such as converters, do not know it.

    Args:
      arrays: an array, or a pytree of arrays.

    Example:
      >>> float(materialize_on_cpu(jnp.float32(2)))
      2.0
    """
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arrays)):
        return arrays
    if not traced_for("cpu"):
        return arrays
    kept: T = lax.optimization_barrier(arrays)
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
