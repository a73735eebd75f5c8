"""A convolution and the operations after it, in one call of oneDNN, for steps without derivatives.

In evaluation a BatchNorm is a scale and a shift of each channel. XLA computes these, the addition of the shortcut and
ReLU in a separate pass over memory. oneDNN computes them while it writes the results of the convolution.

JAX traces the step, and this module searches the traced operations for those that follow a convolution. So every module
profits, and unknown operations stay as they are.
"""

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun, jaxprs_in_params
from jax.extend.core.primitives import (
    add_p,
    convert_element_type_p,
    custom_jvp_call_p,
    jit_p,
    max_p,
    mul_p,
    sub_p,
)

from resfit.backends.onednn.bridge import TARGET
from resfit.backends.onednn.convolution import forward_p, planned, shape_of
from resfit.backends.onednn.planning import ADD, FORWARD, RELU, SCALE, SHIFT, Planned

_MOST_ARRAYS = 5  # that the operations read: a plan has room for as many
_CONVERT = "convert"  # between bfloat16 and float32: oneDNN computes everything after a convolution in float32


class _Operation(NamedTuple):
    """An operation after a convolution: its kind, and its other operand, which can be subtracted."""

    kind: str
    operand: Var | None = None
    subtracted: bool = False


class _Chain(NamedTuple):
    """A convolution and the operations after it."""

    equations: list[JaxprEqn]
    operations: list[_Operation]
    plan: Planned


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, whose convolutions by `Convolve` include the operations after them.

    The results are the same up to rounding.

    Args:
      function: of pytrees of arrays, which it does not change.

    Example:
      >>> fused(lambda x: {"twice": 2 * x})(jnp.ones(()))["twice"].item()
      2.0
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        closed, results = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = jaxpr_as_fun(_rewritten(closed))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(results), leaves)

    return call


def _rewritten(closed: ClosedJaxpr) -> ClosedJaxpr:
    chains = list(_chains(closed.jaxpr))
    by_last = {id(chain.equations[-1]): chain for chain in chains}
    inside = {id(equation) for chain in chains for equation in chain.equations}
    equations = []
    for equation in closed.jaxpr.eqns:
        chain = by_last.get(id(equation))  # by then all of its operands are computed
        if chain is not None:
            equations.append(_as_one(chain))
        elif id(equation) not in inside:
            equations.append(equation)
    return ClosedJaxpr(closed.jaxpr.replace(eqns=equations), closed.consts)


def _chains(jaxpr: Jaxpr) -> Iterator[_Chain]:
    """Yield the convolutions with operations after them. No equation is in two chains."""
    readers = readers_of(jaxpr)
    taken: set[int] = set()
    for equation in jaxpr.eqns:
        if equation.primitive is forward_p:
            chain = _chain(equation, readers, taken)
            if chain is not None:
                taken.update(map(id, chain.equations))
                yield chain


def readers_of(jaxpr: Jaxpr) -> Mapping[Any, list[JaxprEqn | None]]:
    """Return the equations that read each value, once for each time; None stands for the result of the whole."""
    readers: dict[Any, list[JaxprEqn | None]] = collections.defaultdict(list)
    for equation in jaxpr.eqns:
        for value in equation.invars:
            if not isinstance(value, Literal):
                readers[value].append(equation)
    for value in jaxpr.outvars:
        if not isinstance(value, Literal):
            readers[value].append(None)
    return readers


def _chain(convolution: JaxprEqn, readers: Mapping[Any, Sequence[JaxprEqn | None]], taken: set[int]) -> _Chain | None:
    equations, operations = [convolution], list[_Operation]()
    dtype = _type(convolution.outvars[0]).dtype
    while True:
        result = equations[-1].outvars[0]
        reading = readers[result]
        following = reading[0] if len(reading) == 1 else None  # another reader needs the value in between
        if following is None or id(following) in taken:
            break
        operation = _recognised(following, result, dtype)
        if operation is None or not _has_room(operations, operation):
            break
        equations.append(following)
        operations.append(operation)
    image, kernel, out = map(_type, (*convolution.invars, *convolution.outvars))
    shape = shape_of(FORWARD, image, kernel, out, convolution.params["window"])
    for count in range(len(operations), 0, -1):  # some of oneDNN's codes can add only as the first operation
        after = tuple(operation.kind for operation in operations[:count] if operation.kind != _CONVERT)
        if not after or _type(equations[count].outvars[0]).dtype != dtype:  # the call returns the convolution's dtype
            continue
        plan = planned(shape._replace(after=after), always=convolution.params["always"])
        if plan is not None:
            return _Chain(equations[: count + 1], operations[:count], plan)
    return None


def _has_room(operations: Sequence[_Operation], new: _Operation) -> bool:
    if new.kind == _CONVERT:
        return True
    operations = [operation for operation in operations if operation.kind != _CONVERT]
    if operations and operations[-1].kind == RELU:
        return False
    if new.kind == ADD and any(
        operation.kind == ADD for operation in operations
    ):  # only one array has the place of the result
        return False
    return new.kind == RELU or len(operations) < _MOST_ARRAYS


def _recognised(equation: JaxprEqn, result: Any, dtype: Any) -> _Operation | None:
    """Return the operation of an equation on the result of a convolution; None if oneDNN does not know it.

    Args:
      equation: reads the result.
      result: of the convolution, or of an operation after it.
      dtype: of the convolution.
    """
    if equation.primitive is convert_element_type_p and dtype == jnp.bfloat16:
        return _Operation(_CONVERT) if _type(equation.outvars[0]).dtype in (dtype, jnp.float32) else None
    if is_relu(equation):
        return _Operation(RELU)
    if equation.primitive not in (add_p, mul_p, sub_p) or (
        equation.primitive is sub_p and equation.invars[1] is result
    ):
        return None
    other = equation.invars[1] if equation.invars[0] is result else equation.invars[0]
    if isinstance(other, Literal) or _type(other).dtype != _type(result).dtype:
        return None
    shape, whole = _type(other).shape, _type(result).shape
    if shape == (1, 1, 1, whole[3]):
        return _Operation(SCALE if equation.primitive is mul_p else SHIFT, other, equation.primitive is sub_p)
    addable = shape == whole and equation.primitive is add_p and _type(other).dtype == dtype
    return _Operation(ADD, other) if addable else None


def _type(value: Any) -> Any:
    """Return the shape and dtype of an operand or result."""
    return value.aval


def is_relu(equation: JaxprEqn) -> bool:
    """Return True for a maximum with 0, or `jax.nn.relu`, which wraps one."""
    if equation.primitive is max_p:
        return any(isinstance(value, Literal) and value.val == 0 for value in equation.invars)
    if equation.primitive not in (custom_jvp_call_p, jit_p) or len(equation.invars) != 1 or len(equation.outvars) != 1:
        return False
    inner, *others = jaxprs_in_params(equation.params)
    if others or len(inner.eqns) != 1:
        return False
    (maximum,) = inner.eqns
    reads = any(value is inner.invars[0] for value in maximum.invars)
    return reads and inner.outvars[0] is maximum.outvars[0] and is_relu(maximum)


def _as_one(chain: _Chain) -> JaxprEqn:
    """Return an equation that computes the result of a chain."""
    out = _type(chain.equations[-1].outvars[0])
    results = (jax.ShapeDtypeStruct(out.shape, out.dtype), jax.ShapeDtypeStruct((chain.plan.scratch,), jnp.uint8))
    reading = [operation for operation in chain.operations if operation.operand is not None]

    # XLA copies the array first if something reads it later.
    in_place = {2 + i: 0 for i, operation in enumerate(reading) if operation.kind == ADD}

    @jax.jit
    def convolution_and_more(x: jax.Array, w: jax.Array, *operands: jax.Array) -> jax.Array:
        rows = [
            a if operation.kind == ADD else a.astype(jnp.float32)
            for a, operation in zip(operands, reading, strict=True)
        ]
        arrays = [-a if operation.subtracted else a for a, operation in zip(rows, reading, strict=True)]
        call = jax.ffi.ffi_call(TARGET, results, input_output_aliases=in_place)
        result: jax.Array = call(x, w, *arrays, convolution=chain.plan.name)[0]
        return result

    arguments: list[Any] = [*chain.equations[0].invars, *(operation.operand for operation in reading)]
    types = [jax.ShapeDtypeStruct(_type(value).shape, _type(value).dtype) for value in arguments]
    (equation,) = jax.make_jaxpr(convolution_and_more)(*types).jaxpr.eqns
    whole: JaxprEqn = equation.replace(invars=arguments, outvars=chain.equations[-1].outvars)
    return whole
