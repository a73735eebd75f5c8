"""The devices of a run: the placement of arrays, the compilation of steps, and how far the host runs ahead."""

import collections
import operator
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from resfit._utils.jax_switches import jit_disabled
from resfit._utils.suggest import did_you_mean
from resfit.backends.program_cache import Program, traced
from resfit.errors import CompileError
from resfit.trainer.graph.random_keys import as_key, as_numbers, is_key

KINDS = ("auto", "jit", "sharded", "pmap", "eager")
BATCH_NORMS = ("global", "per_replica")
AXIS = "data"  # the mesh's only axis, over which batches are split


class Placement:
    """The devices of a run.

    Args:
      kind: "jit": one device. "sharded": the state on every device of every process, the batch split over them; XLA
        inserts the all-reduces. "pmap": the devices of one process; each device runs the step on its part of the
        batch. "eager": one device, nothing compiled, for debugging. "auto": "sharded" on several devices, else "jit".
      compiler_options: XLA's options by name, for every step.
      batch_norm: the examples over which BatchNorm normalizes in training: "global", the batch of all devices, or
        "per_replica", each device's part of it.
      device: the device for "auto", "jit" and "eager" in a single process; None for the first, or for all of them with
        "auto". See `preferred_device`.

    Attributes:
      kind: "jit", "sharded", "pmap" or "eager".
      compiler_options: see the argument.
      batch_norm: see the argument.
      processes: the number of processes.
      devices: of the run, in the order of the processes.
      state: the sharding of the state.
      run_ahead: the number of steps that the host hands over before it waits.

    Raises:
      CompileError: if `kind` or `batch_norm` has another value, or the kind does not work with several processes.
    """

    def __init__(
        self,
        kind: str = "auto",
        compiler_options: Mapping[str, Any] | None = None,
        batch_norm: str = "global",
        device: jax.Device | None = None,
    ) -> None:
        if kind not in KINDS:
            raise CompileError(f"Unknown dispatch {kind!r}. Expected one of {list(KINDS)}.{did_you_mean(kind, KINDS)}")
        if batch_norm not in BATCH_NORMS:
            raise CompileError(f"Unknown batch_norm {batch_norm!r}. Expected one of {list(BATCH_NORMS)}.")
        self.compiler_options = dict(compiler_options or {})
        self.batch_norm = batch_norm
        # In the order of the processes, so that a batch holds the parts of the processes in this order.
        every = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        self.processes = len({device.process_index for device in every})
        if self.processes > 1 and kind in ("jit", "pmap", "eager"):
            raise CompileError(
                f"Got dispatch={kind!r} with {self.processes} processes: each process would train a "
                "separate network. Expected 'sharded' or 'auto', which train one network together."
            )
        if device is not None and self.processes == 1 and kind not in ("sharded", "pmap"):
            every = [device]
        self.devices = every if kind in ("auto", "sharded", "pmap") else every[:1]
        self.kind = kind if kind != "auto" else ("sharded" if len(every) > 1 else "jit")
        self._mesh = _mesh(self.devices) if self.kind in ("sharded", "pmap") else None
        self.state, self._split, self._here = self._shardings()
        # Bounds the memory of batches in flight. Several CPU devices share threads: too many waiting steps deadlock.
        self.run_ahead = 2 if len(self.devices) > 1 and self.devices[0].platform == "cpu" else 8

    def _shardings(self) -> tuple[jax.sharding.Sharding, jax.sharding.Sharding, jax.sharding.Sharding]:
        """Return the shardings of the state, of a batch, and of the state on the devices of this process."""
        if self._mesh is None:
            one = SingleDeviceSharding(self.devices[0])
            return one, one, one
        whole, split = (NamedSharding(self._mesh, spec) for spec in (PartitionSpec(), PartitionSpec(AXIS)))
        return whole, split, whole if self.processes == 1 else NamedSharding(_mesh(jax.local_devices()), whole.spec)

    @property
    def replicas(self) -> int:
        """The number of parts of a batch on which the training step runs separately; 1 if the compiler splits it."""
        mapped = self.kind == "pmap" or (self.kind == "sharded" and self.batch_norm == "per_replica")
        return len(self.devices) if mapped else 1

    @property
    def platform(self) -> str:
        """The platform of the devices, such as "cpu"."""
        platform: str = self.devices[0].platform
        return platform

    @property
    def mesh(self) -> Mesh | None:
        """The mesh of one axis over which batches are split; None on one device."""
        return self._mesh if len(self.devices) > 1 else None

    def decided_by(self) -> tuple[Any, ...]:
        """Return what decides how a step is split over devices, see `by_value`."""
        return self.kind, self.batch_norm, self.processes, tuple(self.devices)

    def replicate(self, tree: Any, *, copy: bool = False) -> Any:
        """Return whole arrays on every device of the run; with `copy`, always in new memory."""
        if self.processes > 1 and any(map(is_key, jax.tree.leaves(tree))):
            return jax.tree.map(as_key, self.replicate(jax.tree.map(as_numbers, tree), copy=copy), tree)
        tree = jax.tree.map(lambda leaf: leaf.addressable_data(0) if _is_global(leaf) else leaf, tree)
        if copy and self.processes > 1:
            # From one device to several, device_put keeps the buffer of the first in spite of may_alias=False.
            tree = jax.tree.map(np.array, tree)
        here = jax.device_put(tree, self._here, may_alias=False if copy else None)
        if self.processes == 1:
            return here
        return jax.tree.map(
            lambda leaf: jax.make_array_from_single_device_arrays(
                leaf.shape, self.state, [shard.data for shard in leaf.addressable_shards]
            ),
            here,
        )

    def divides(self, rows: int) -> bool:
        """Return True if the devices divide a batch of this many rows."""
        return rows % len(self.devices) == 0

    def place(self, batch: Any) -> Any:
        """Return a batch split over the devices; if they do not divide it, whole on every device."""
        if self.kind == "jit":
            # A compiled step takes host arrays directly, in half the host time of device_put.
            leaves, structure = jax.tree_util.tree_flatten(batch)
            own = [_own(leaf, self.state) for leaf in leaves]
            return batch if all(map(operator.is_, own, leaves)) else jax.tree_util.tree_unflatten(structure, own)
        rows = jax.tree.leaves(batch)[0].shape[0]
        return jax.device_put(batch, self._split) if self.divides(rows) else self.replicate(batch)

    @property
    def feeds_ahead(self) -> bool:
        """True if a thread should transfer batches before their steps: on an accelerator, by a single process."""
        return self.platform != "cpu" and self.processes == 1

    @property
    def loops(self) -> bool:
        """True if a loop of steps on the device is fast, see `trainer.several_steps`."""
        return self.platform != "cpu" and self.kind != "eager"

    def put(self, batch: Any) -> Any:
        """Return a batch in device memory, split as by `place`. The transfer may still be under way."""
        placed = self.place(batch)
        return jax.device_put(placed, self.devices[0]) if self.kind == "jit" else placed

    def join(self, part: Any) -> Any:
        """Return a batch split over the devices of all processes, from equal parts of which this process holds one."""
        return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(self._split, leaf), part)

    def is_split(self, batch: Any) -> bool:
        """Return True if a placed batch is split over several devices."""
        return len(self.devices) > 1 and not jax.tree.leaves(batch)[0].is_fully_replicated

    def mapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that runs on every device with its part of the last argument, and the others whole.

        Args:
          function: returns the same on every device.
        """
        if self.kind == "pmap":

            def call(*arguments: Any) -> Any:
                # JAX never forgets a mapped function, so it gets one that does not hold the model.
                alive: Any = weakref.ref(function)

                def part(*arguments: Any) -> Any:
                    return alive()(*arguments)

                *others, batch = arguments
                parts = jax.tree.map(lambda leaf: rearrange(leaf, "(d n) ... -> d n ...", d=len(self.devices)), batch)
                axes = (*(None for _ in others), 0)
                return jax.pmap(part, AXIS, in_axes=axes, out_axes=None, devices=self.devices)(*others, parts)

            return call
        whole, split = PartitionSpec(), PartitionSpec(AXIS)

        def call_sharded(*arguments: Any) -> Any:
            specs = (*(whole for _ in arguments[1:]), split)
            # Unchecked, because a check would sum the gradients of replicated arrays a second time.
            return jax.shard_map(function, mesh=self._mesh, in_specs=specs, out_specs=whole, check_vma=False)(
                *arguments
            )

        return call_sharded


def preferred_device(arrays: Iterable[Any]) -> jax.Device | None:
    """Return the device that the user chose in JAX; None if the user chose none.

    The choice is the device to which the arrays are committed, unless it is the first, where resfit itself leaves them;
    else `jax.default_device`.

    Args:
      arrays: of a module.

    Raises:
      CompileError: if arrays are committed to different devices.
    """
    committed = {
        device
        for array in arrays
        if isinstance(array, jax.Array) and array.committed and len(array.devices()) == 1
        for device in array.devices()
    }
    if len(committed) > 1:
        raise CompileError(
            f"The module's arrays are committed to different devices, {sorted(map(str, committed))}. Expected one "
            "device: resfit keeps the whole network on every device of a run. Move the arrays, as in "
            "nnx.update(module, jax.device_put(nnx.state(module), jax.devices()[0]))."
        )
    if committed and committed != {jax.devices()[0]}:
        return committed.pop()
    default = jax.config.jax_default_device  # type: ignore[attr-defined]  # in the docs of JAX, not in its types
    return jax.devices(default)[0] if isinstance(default, str) else default


def _mesh(devices: Sequence[jax.Device]) -> Mesh:
    # Auto axes: XLA propagates the shardings. With explicit axes, JAX's default, users would have to annotate them.
    return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def _is_global(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and not leaf.is_fully_addressable


def _own(leaf: Any, sharding: jax.sharding.Sharding) -> Any:
    """Return an array that a compiled step can take: on its device, or a host array that owns its memory.

    The step reads a host array while it runs. The host has continued by then, and others can write to shared memory.
    """
    if not isinstance(leaf, np.ndarray) and hasattr(leaf, "devices"):  # a JAX array, or rows of one
        here = getattr(leaf, "sharding", None) is sharding or leaf.devices() == sharding.device_set
        return leaf if here else jax.device_put(leaf, sharding)
    if leaf.dtype not in _AS_THEY_ARE:
        return np.array(leaf, jax.dtypes.canonicalize_dtype(leaf.dtype))
    return leaf if leaf.base is None else np.array(leaf)


_AS_THEY_ARE = frozenset(map(np.dtype, ("bool", "uint8", "int32", "float32")))  # in JAX's 64-bit mode too


class CompiledStep:
    """A step function, compiled once per shape of its batch.

    Args:
      function: pure; its first argument is the state, its last the batch.
      placement: the devices.
      donate: True to reuse the state's buffers for the new state. The caller must not read the old state again.
      returns_state: True to place all results like the state. Otherwise the outputs for a batch stay on the devices
        that make them, unless other processes need them too.
      mapped: the function to run on every device with its part of a split batch; None to let the compiler split
        `function`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        placement: Placement,
        *,
        donate: bool = False,
        returns_state: bool = True,
        mapped: Callable[..., Any] | None = None,
    ) -> None:
        self._function = function
        self._placement = placement
        self._eager = placement.kind == "eager"
        whole = (returns_state and len(placement.devices) > 1) or placement.processes > 1
        how: dict[str, Any] = {
            "donate_argnums": (0,) if donate else (),
            "out_shardings": placement.state if whole else None,
        }
        self._how = tuple(how.values())
        self._jit = jax.jit(function, **how)
        self._mapped = None if mapped is None else jax.jit(placement.mapped(mapped), **how)
        self._programs: dict[Any, Program] = {}

    def prepare(self, arguments: tuple[Any, ...], on_compile: Callable[[bool], None]) -> Callable[..., Any]:
        """Return the executable for these arguments. Traces and compiles it if it is new.

        Args:
          arguments: of the call; the last is the batch.
          on_compile: called with True before a compilation, and with False after it.
        """
        if self._eager or jit_disabled():
            return self._function
        key = form_of(arguments[-1])
        program = self._programs.get(key)
        if program is None:
            on_compile(True)
            split = self._placement.is_split(arguments[-1])
            jitted = self._mapped if self._mapped is not None and split else self._jit
            program = traced(jitted, arguments, self._placement.devices, self._placement.compiler_options, self._how)
            self._programs[key] = program
            on_compile(False)
        return program.run

    def together(self, calls: tuple[tuple[Any, ...], ...]) -> Callable[..., Any]:
        """Return one executable for several calls: it takes their arguments, and returns the results of each.

        It keeps the states that it gets, even if a single call donates them.

        Args:
          calls: the arguments of each, all of the same shapes.
        """
        jitted = jax.jit(_vmapped(self._function))
        return traced(jitted, calls, self._placement.devices, self._placement.compiler_options).run

    def described(self, batch: Any, resize: Any = None) -> tuple[str, str]:
        """Return the shapes of a prepared batch, and the digest of its program ("" if nothing is compiled).

        Args:
          batch: the last argument of `prepare`.
          resize: the size to which the step resizes it, or None.
        """
        shapes = " ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(batch))
        shapes += "" if resize is None else f" resized to {resize}"
        return shapes, "" if self._eager or jit_disabled() else self._programs[form_of(batch)].digest


def _vmapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the arguments of several calls, each in a tuple, that returns the results of each."""

    def together(*calls: tuple[Any, ...]) -> tuple[Any, ...]:
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *calls)
        results = jax.vmap(lambda arguments: function(*arguments))(stacked)
        return tuple(jax.tree.map(operator.itemgetter(i), results) for i in range(len(calls)))

    return together


def form_of(batch: Any) -> Any:
    """Return what decides the program for a placed batch: structure, shapes, dtypes and shardings."""
    leaves, structure = jax.tree_util.tree_flatten(batch)
    return structure, *[
        (leaf.shape, leaf.dtype)
        if isinstance(leaf, np.ndarray)
        else (leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False), getattr(leaf, "sharding", None))
        for leaf in leaves
    ]


class Throttle:
    """A limit for the steps by which the host runs ahead of the device.

    Args:
      limit: the number of steps in flight.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._flying: collections.deque[Any] = collections.deque()

    def add(self, result: Any) -> None:
        """Add a step by one of its outputs; if there are too many, wait for the older half of them.

        A wait costs the host tens of microseconds, and while it wakes up, the other half keeps the device busy.
        """
        self._flying.append(result)
        if len(self._flying) > self._limit:
            for _ in range((self._limit + 1) // 2):
                oldest = self._flying.popleft()
            oldest.block_until_ready()
