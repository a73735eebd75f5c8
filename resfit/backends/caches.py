"""The memory that resfit keeps from one model to the next."""

from resfit._utils.keywords import checked
from resfit.backends import allocator, bytecode
from resfit.backends.program_cache import PROGRAMS


@checked("function arguments")
def clear_caches() -> None:
    """Free the compiled programs that no model uses, and return freed memory to the system.

    resfit keeps the programs of the last models, up to about 256 MiB, so that the next model of the same architecture
    need not be compiled. Models that exist keep theirs and work as before. JAX has its own caches:
    `jax.clear_caches()`.

    Example:
      >>> import resfit
      >>> resfit.clear_caches()
    """
    PROGRAMS.clear()
    bytecode.clear()
    allocator.return_memory()
