"""Training by several processes, on one machine or many."""

import logging
from typing import TYPE_CHECKING

import jax

from resfit._utils.keywords import checked
from resfit._utils.words import no_attribute
from resfit.errors import DistributedError

_log = logging.getLogger("resfit")


@checked("function arguments")
def initialize(
    coordinator: str | None = None, *, processes: int | None = None, process: int | None = None, timeout: float = 300
) -> None:
    """Connect this process to the other processes of a run. Call it first, before any use of a device.

    After the call, `fit`, `evaluate` and `predict` run as one program on the devices of all processes; user code stays
    the same. On TPU pods, under SLURM and under Open MPI the arguments are found automatically. Elsewhere every process
    passes the address of the first process, the number of processes, and its own number.

    Args:
      coordinator: the address of the first process, "host:port" with a free port of that host.
      processes: the number of processes.
      process: the number of this process, from 0.
      timeout: the seconds to wait for the other processes. After that time, JAX ends the process.

    Raises:
      DistributedError: if only some arguments are given, for an invalid address, if a device was used before the call,
        or if the cluster does not know the processes.

    Example:
      On each of two machines, with `n` 0 on the one and 1 on the other:

      >>> resfit.distributed.initialize("10.0.0.1:1234", processes=2, process=n)  # doctest: +SKIP
    """
    _check(coordinator, processes, process)
    try:
        jax.distributed.initialize(coordinator, processes, process, initialization_timeout=int(timeout))
    except RuntimeError as error:
        remedy = (
            "Call resfit.distributed.initialize() before any other use of JAX, such as building a network."
            if "before any JAX" in str(error) or "must be called before" in str(error)
            else "Check that the first process is running and that this host can reach its port."
        )
        raise DistributedError(f"The processes could not be connected: {error}. {remedy}") from error
    except ValueError as error:  # no arguments, and JAX found no cluster
        raise DistributedError(
            f"The processes could not be connected: {error}. Expected a TPU pod, SLURM or Open MPI, or all of "
            "coordinator, processes and process."
        ) from error
    _log.info(
        "Process %d of %d, with %d of %d devices.",
        jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(),
    )  # fmt: skip


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise DistributedError(
            f"initialize got {given}. Expected all three, or none on a TPU pod, under SLURM or Open MPI. Add "
            f"{' and '.join(missing)}."
        )
    if coordinator is not None and not coordinator.rpartition(":")[2].isdigit():
        raise DistributedError(f"Expected coordinator as 'host:port', such as '10.0.0.1:1234', got {coordinator!r}.")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise DistributedError(f"Expected process to be one of 0 to {processes - 1}, got {process}.")
    if jax.distributed.is_initialized():
        raise DistributedError("initialize was called a second time. Expected one call at the beginning of the script.")


if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "distributed")
