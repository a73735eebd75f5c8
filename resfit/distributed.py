"""Several processes that train one network, on one machine or many."""

import logging

import jax

from resfit.errors import DistributedError

_log = logging.getLogger("resfit")


def initialize(
    coordinator: str | None = None, *, processes: int | None = None, process: int | None = None, timeout: float = 300
) -> None:
    """Joins this process to the others of a run. Call it first in the script, before anything touches a device.

    Afterwards `fit`, `evaluate` and `predict` are one program on the devices of all processes; user code stays the
    same. On TPU pods, under SLURM and under Open MPI all arguments are found by themselves. Elsewhere every process
    says where the first one listens, how many there are, and which one it is.

    Args:
      coordinator: address of the first process, "host:port" with a free port of that host.
      processes: how many take part.
      process: the number of this one, from 0.
      timeout: seconds to wait for the others.

    Raises:
      DistributedError: if only some of the arguments are given, the address cannot be one, a device was touched before,
        or the cluster does not say who takes part. Where the others do not come in time, JAX ends the process.

    Example:
      On each of two machines, with `n` 0 on the one and 1 on the other:

      >>> resfit.distributed.initialize("10.0.0.1:1234", processes=2, process=n)  # doctest: +SKIP
    """
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
    try:
        jax.distributed.initialize(coordinator, processes, process, initialization_timeout=int(timeout))
    except RuntimeError as error:
        remedy = (
            "Call resfit.distributed.initialize() before any other use of JAX, such as building a network."
            if "before any JAX" in str(error) or "must be called before" in str(error)
            else "Is the first process running, and can its port be reached from here?"
        )
        raise DistributedError(f"The processes could not be joined: {error}. {remedy}") from error
    except ValueError as error:  # nothing given, and no cluster found
        raise DistributedError(
            f"The processes could not be joined: {error}. Expected a TPU pod, SLURM or Open MPI, which say who takes "
            "part, or all of coordinator, processes and process."
        ) from error
    _log.info(
        "Process %d of %d, with %d of %d devices.",
        jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(),
    )  # fmt: skip
