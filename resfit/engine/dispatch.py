"""How a step meets devices: where arrays live, how a step is compiled, how far the host may run ahead. Nothing else."""

import collections
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from resfit.engine.programs import compiled
from resfit.errors import CompileError

KINDS = ("auto", "jit", "sharded", "eager")


class Placement:
    """The devices of a run.

    Args:
      kind: "jit": one device. "sharded": the state on every device, the batch split over them; XLA inserts the
        all-reduces, and BatchNorm sees the global batch. "eager": one device, nothing compiled, for debugging. "auto":
        "sharded" on several devices, else "jit".
      compiler_options: XLA's, by name, for every step.

    Raises:
      CompileError: for another kind.
    """

    def __init__(self, kind: str = "auto", compiler_options: Mapping[str, Any] | None = None) -> None:
        if kind not in KINDS:
            raise CompileError(f"Unknown dispatch {kind!r}. Expected one of {list(KINDS)}.")
        self.compiler_options = dict(compiler_options or {})
        devices = jax.devices() if kind in ("auto", "sharded") else jax.devices()[:1]
        self.kind = kind if kind != "auto" else ("sharded" if len(devices) > 1 else "jit")
        self.devices = devices
        self.state: jax.sharding.Sharding = SingleDeviceSharding(devices[0])
        self._split: jax.sharding.Sharding = self.state
        if self.kind == "sharded":
            # Auto axes: XLA propagates the shardings; JAX's default, explicit axes, would make users annotate them.
            mesh = Mesh(devices, ("data",), axis_types=(AxisType.Auto,))
            self.state, self._split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec("data"))
        # Bounds the memory of batches in flight. Several CPU devices share threads: too many waiting steps deadlock.
        self.run_ahead = 2 if len(devices) > 1 and devices[0].platform == "cpu" else 8

    def place(self, batch: Any) -> Any:
        """Puts a batch on the devices, split over them; where they do not divide it, every device gets all of it."""
        n = jax.tree.leaves(batch)[0].shape[0]
        return jax.device_put(batch, self._split if n % len(self.devices) == 0 else self.state)


class Step:
    """A step function, compiled once per shape of its batch.

    Args:
      function: pure; its first argument is the state, its last the batch.
      placement: where it runs.
      donate: whether the state's buffers are reused for the new state. The caller must not touch the old one again.
      returns_state: whether all it returns lives where the state does; a batch's outputs stay where they are made.
    """

    def __init__(
        self, function: Callable[..., Any], placement: Placement, *, donate: bool = False, returns_state: bool = True
    ) -> None:
        self._function = function
        self._eager = placement.kind == "eager"
        self._devices = placement.devices
        self._options = placement.compiler_options
        self._jit = jax.jit(
            function,
            donate_argnums=(0,) if donate else (),
            out_shardings=placement.state if returns_state and len(placement.devices) > 1 else None,
        )
        self._executables: dict[Any, Callable[..., Any]] = {}

    def prepare(self, arguments: tuple[Any, ...], on_compile: Callable[[bool], None]) -> Callable[..., Any]:
        """The executable for these arguments: found, or traced and compiled now.

        Args:
          arguments: of the call; the last is the batch.
          on_compile: called with True before, and with False after a compilation.
        """
        if self._eager:
            return self._function
        leaves, structure = jax.tree.flatten(arguments[-1])
        key = (structure, *((leaf.shape, leaf.dtype, leaf.sharding) for leaf in leaves))
        executable = self._executables.get(key)
        if executable is None:
            on_compile(True)
            executable = compiled(self._jit.lower(*arguments), self._devices, self._options)
            self._executables[key] = executable
            on_compile(False)
        return executable


class Throttle:
    """Keeps the host from running more than a few steps ahead of the device.

    Args:
      limit: steps in flight.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._flying: collections.deque[Any] = collections.deque()

    def add(self, result: Any) -> None:
        """Registers a step by one of its outputs, and waits for the oldest if there are too many."""
        self._flying.append(result)
        if len(self._flying) > self._limit:
            jax.block_until_ready(self._flying.popleft())
