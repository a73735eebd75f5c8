"""Looks inside a network while it runs: the output of every block, and the gradient that reaches it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resfit.errors import ModuleError
from resfit.nets import Residual
from resfit.nets.resnet import Stage
from resfit.nets.stand_in import stand_in


class BlockStatistics(NamedTuple):
    """One part of a network in one training step.

    Attributes:
      name: its dotted path.
      rms: root mean square of its output.
      dead: share of its channels that are zero everywhere, for every example, from 0 to 1.
      gradient: Euclidean norm of the gradient of the mean loss by its output.
    """

    name: str
    rms: float
    dead: float
    gradient: float


def parts(module: nnx.Module) -> dict[str, nnx.Module]:
    """What a network is made of, by dotted path, in the order of its attributes.

    Residual blocks, and whatever stands beside them (stem, head). Of a network without `Residual`: its direct parts,
    with lists and sequences taken apart.

    Example:
      >>> import resfit
      >>> list(parts(resfit.create_model("resnet20", num_classes=10, depths=(1, 1), widths=(4, 8))))
      ['head', 'stage1.blocks.0', 'stage2.blocks.0', 'stem']
    """
    found: dict[str, nnx.Module] = {}

    def walk(node: Any, path: tuple[Any, ...]) -> None:
        for name, child in nnx.iter_children(node):
            inside = [part for where, part in nnx.iter_modules(child) if where]
            container = isinstance(child, nnx.List | nnx.Dict | nnx.Sequential)
            if not isinstance(child, Residual) and (container or any(isinstance(part, Residual) for part in inside)):
                walk(child, (*path, name))
            elif callable(child):
                found[".".join(map(str, (*path, name)))] = child

    walk(module, ())
    return found


def tap(module: nnx.Module, change: Callable[[str, jax.Array], jax.Array]) -> None:
    """Passes the output of every part of a network through a function, in each call.

    Parts that return something else than one floating-point array are left out. A part that is called again is named
    with a number: "block (2)".

    Args:
      module: a copy that nobody else uses: the classes of its parts are changed.
      change: (name, output) -> output.
    """
    keep_activations(module)
    calls: dict[str, int] = {}
    for name, part in parts(module).items():
        tap_module(part, name, change, calls)


def tap_part(module: nnx.Module, name: str, change: Callable[[str, jax.Array], jax.Array]) -> None:
    """Like `tap`, for one module of any depth, by its dotted path.

    Raises:
      ModuleError: if there is none of that name.
    """
    modules = {".".join(map(str, path)): part for path, part in nnx.iter_modules(module) if path and callable(part)}
    if name not in modules:
        raise ModuleError(
            f"{type(module).__name__} has no part {name!r} that is called. Expected the dotted path of a module; the "
            f"outer ones are {sorted(path for path in modules if path.count('.') == 0)}."
        )
    keep_activations(module)
    tap_module(modules[name], name, change)


def keep_activations(module: nnx.Module) -> None:
    """Ends rematerialisation, out of which nothing can be handed while a gradient is computed.

    Args:
      module: a copy that nobody else uses.
    """
    for _, part in nnx.iter_modules(module):
        if isinstance(part, Stage):
            part.remat = None


def tap_module(
    part: nnx.Module,
    name: str,
    change: Callable[[str, jax.Array], jax.Array],
    calls: dict[str, int] | None = None,
) -> None:
    """Like `tap`, for one module.

    Args:
      part: of a copy that nobody else uses.
      name: what to call it.
      change: (name, output) -> output.
      calls: how often each name was called so far.
    """
    cls: type = type(part)
    calls = {} if calls is None else calls

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = cls.__call__(self, *args, **kwargs)
        if not isinstance(output, jax.Array) or not jnp.issubdtype(output.dtype, jnp.floating):
            return output
        calls[name] = calls.get(name, 0) + 1
        return change(name if calls[name] == 1 else f"{name} ({calls[name]})", output)

    # The signature stays the part's.
    object.__setattr__(part, "__class__", stand_in(cls, {"__call__": functools.wraps(cls.__call__)(__call__)}))


def block_statistics(
    step: Callable[..., tuple[jax.Array, Any]], *arguments: Any
) -> tuple[tuple[BlockStatistics, ...], float, Any]:
    """Runs one step of a network and says what every part of it gave and got.

    Args:
      step: (change, *arguments) -> (mean loss, anything). It taps the network with change.
      arguments: arrays.

    Returns:
      (statistics in the order of the calls, mean loss, the step's second value).
    """
    shapes: dict[str, jax.Array] = {}  # as they are when tracing: a jitted function would return them sorted

    def note(name: str, output: jax.Array) -> jax.Array:
        shapes[name] = output
        return output

    jax.eval_shape(lambda *arguments: step(note, *arguments)[0], *arguments)
    zeros = {name: np.zeros(output.shape, output.dtype) for name, output in shapes.items()}

    @jax.jit
    def run(zeros: dict[str, Any], *arguments: Any) -> Any:
        # The gradient by something that is added to an output is the gradient by the output.
        def loss_of(added: dict[str, Any]) -> tuple[jax.Array, Any]:
            seen: dict[str, Any] = {}

            def change(name: str, output: jax.Array) -> jax.Array:
                output = output + added[name]
                values = jnp.asarray(output, jnp.float32)
                dead = jnp.all(values == 0, axis=tuple(range(output.ndim - 1)))
                seen[name] = jnp.sqrt(jnp.mean(jnp.square(values))), jnp.mean(dead)
                return output

            loss, others = step(change, *arguments)
            return loss, (seen, others)

        (loss, (seen, others)), gradients = jax.value_and_grad(loss_of, has_aux=True)(zeros)
        norms = jax.tree.map(lambda g: jnp.linalg.norm(jnp.asarray(g, jnp.float32).reshape(-1)), gradients)
        return loss, seen, norms, others

    loss, seen, norms, others = run(zeros, *arguments)
    blocks = tuple(
        BlockStatistics(name, float(seen[name][0]), float(seen[name][1]), float(norms[name])) for name in shapes
    )
    return blocks, float(loss), others
