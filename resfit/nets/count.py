"""Count the parameters and the operations of a network by abstract evaluation."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend import core

from resfit._utils.keywords import checked
from resfit.nets.modes import in_mode


@checked("function arguments")
def count_params(module: nnx.Module) -> int:
    """Return the number of trained scalars of a module: `nnx.Param`, not statistics. Shared parameters count once.

    Args:
        module: any module, also an abstract one from `nnx.eval_shape`.

    Example:
        >>> from flax import nnx
        >>> count_params(nnx.eval_shape(lambda: nnx.Linear(3, 4, rngs=nnx.Rngs(0))))
        16
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@checked("function arguments")
def count_multiply_adds(module: nnx.Module, input_shape: tuple[int, ...], *, dtype: str = "float32") -> int:
    """Return the multiply-adds of all convolutions and matrix products in one evaluation of one example.

    Window positions in the padding count, as usual. Hardware vendors count two FLOPs for each multiply-add.

    Args:
        module: any module from a batch to anything, also an abstract one.
        input_shape: shape of one example, without the batch axis.
        dtype: dtype of the example (default `"float32"`).

    Example:
        >>> from flax import nnx
        >>> count_multiply_adds(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), (3,))
        12
    """
    return sum(operation.multiply_adds for operation in dense_operations(module, input_shape, dtype=dtype))


class Operation(NamedTuple):
    """One convolution or matrix product of a program.

    Attributes:
        scope: the `jax.named_scope`s around it, joined by "/".
        multiply_adds: their number.
        activations: name and bytes of each array that it reads or writes and that depends on the network's input. An
            array has the same name in all operations.
    """

    scope: str
    multiply_adds: int
    activations: Mapping[int, int]


def dense_operations(
    module: nnx.Module,
    input_shape: tuple[int, ...],
    *,
    dtype: str = "float32",
    watch: Callable[[Any], None] | None = None,
) -> list[Operation]:
    """Return every convolution and matrix product in one evaluation of one example, in order.

    Args:
        module: any module from a batch to anything; a copy of it is called.
        input_shape: shape of one example, without the batch axis.
        dtype: dtype of the example (default `"float32"`).
        watch: called with that copy before its call, to wrap calls inside it.
    """
    graphdef, state = nnx.split(module)

    def evaluate(state: Any, x: jax.Array) -> Any:
        copy, mode = in_mode(nnx.merge(graphdef, state), train=False)
        if watch is not None:
            watch(copy)
        return copy(x, **mode)

    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state)
    program = jax.make_jaxpr(evaluate)(abstract, jax.ShapeDtypeStruct((1, *input_shape), jnp.dtype(dtype))).jaxpr
    names = itertools.count()
    return list(_walk(program, {program.invars[-1]: next(names)}, names, scope="", times=1))


def _walk(
    jaxpr: core.Jaxpr, activations: dict[core.Var, int], names: Iterator[int], *, scope: str, times: int
) -> Iterator[Operation]:
    """Yield the dense operations of a program and its inner programs; add the name of every activation."""
    for eqn in jaxpr.eqns:
        inputs = [activations.get(v) if isinstance(v, core.Var) else None for v in eqn.invars]
        here = "/".join(filter(None, (scope, str(eqn.source_info.name_stack))))
        inner_programs = list(core.jaxprs_in_params(eqn.params))
        for inner in inner_programs:
            # The last operands of the equation are those of the inner program; the equation itself reads the ones
            # before, such as a branch index.
            offset = len(eqn.invars) - len(inner.invars)
            known = dict(zip(inner.invars, inputs[max(offset, 0) :], strict=False))
            inside = {var: name for var, name in known.items() if name is not None}
            yield from _walk(inner, inside, names, scope=here, times=times * eqn.params.get("length", 1))
            if len(inner_programs) == 1 and len(inner.outvars) == len(eqn.outvars):
                activations |= {
                    out: inside[var]
                    for out, var in zip(eqn.outvars, inner.outvars, strict=True)
                    if isinstance(var, core.Var) and var in inside
                }
        if any(name is not None for name in inputs):
            activations |= {out: next(names) for out in eqn.outvars if out not in activations}
        if not inner_programs and (count := _multiply_adds(eqn)):
            touched = [v for v in (*eqn.invars, *eqn.outvars) if isinstance(v, core.Var) and v in activations]
            yield Operation(here, times * count, {activations[v]: times * _bytes(v) for v in touched})


def _shape(atom: core.Var | core.Literal) -> tuple[int, ...]:
    shape: tuple[int, ...] = atom.aval.shape  # type: ignore[attr-defined]  # only arrays have a shape; all of these are arrays
    return shape


def _bytes(var: core.Var) -> int:
    dtype: np.dtype[Any] = var.aval.dtype  # type: ignore[attr-defined]  # as above
    return math.prod(_shape(var)) * dtype.itemsize


def _multiply_adds(eqn: core.JaxprEqn) -> int:
    """Return the multiply-adds of one equation: one for every output and every input that the output sums over."""
    outputs = math.prod(_shape(eqn.outvars[0])) if eqn.outvars else 0
    if eqn.primitive.name == "conv_general_dilated":
        rhs_spec: tuple[int, ...] = eqn.params["dimension_numbers"].rhs_spec  # its output axis, input axis, window
        kernel = _shape(eqn.invars[1])
        # The window of a transposed convolution reads inputs at one in so many positions, and zeros at the others.
        positions: tuple[int, ...] = eqn.params["lhs_dilation"]
        return outputs * math.prod(kernel[axis] for axis in rhs_spec[1:]) // math.prod(positions)
    if eqn.primitive.name == "dot_general":
        contracted: tuple[int, ...] = eqn.params["dimension_numbers"][0][0]
        left = _shape(eqn.invars[0])
        return outputs * math.prod(left[axis] for axis in contracted)
    return 0
