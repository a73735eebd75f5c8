"""A batch normalization in training and the operations after it, in one primitive: ReLU, or an addition and ReLU.

As in `fusing`, the traced operations are searched, so every module profits. The search comes before differentiation:
the primitive has its own derivative.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.extend.core.primitives import add_p

from resfit.backends.onednn.fusing import is_relu, readers_of
from resfit.backends.onednn.norm import ADD_RELU, PLAIN, RELU, forward_p


class _Found(NamedTuple):
    """A normalization with its addition, if there is one, and its ReLU."""

    norm: JaxprEqn
    added: JaxprEqn | None
    relu: JaxprEqn


def fused_norms(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, whose batch normalizations by `Normalize` include the operations after them.

    The results are the same up to rounding.

    Args:
      function: of pytrees of arrays, which it does not change.

    Example:
      >>> import jax.numpy as jnp
      >>> fused_norms(lambda x: {"twice": 2 * x})(jnp.ones(()))["twice"].item()
      2.0
    """

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        leaves, of_arguments = jax.tree.flatten(arguments)
        of_results: list[Any] = []

        # Flat: caches of JAX keep the structure of results, whose classes of metrics refer to functions of the user.
        def flat(*leaves: Any) -> Any:
            results, structure = jax.tree.flatten(function(*jax.tree.unflatten(of_arguments, leaves)))
            of_results.append(structure)
            return results

        closed = jax.make_jaxpr(flat)(*leaves)
        return jax.tree.unflatten(of_results.pop(), jaxpr_as_fun(_rewritten(closed))(*leaves))

    return call


def _rewritten(closed: ClosedJaxpr) -> ClosedJaxpr:
    found = list(_search(closed.jaxpr))
    if not found:
        return closed
    in_place = {id(one.norm): _as_one(one) for one in found}
    gone = {id(equation) for one in found for equation in (one.added, one.relu)}
    equations = [in_place.get(id(equation), equation) for equation in closed.jaxpr.eqns if id(equation) not in gone]
    return ClosedJaxpr(closed.jaxpr.replace(eqns=_in_order(equations)), closed.consts)


def _search(jaxpr: Jaxpr) -> Iterator[_Found]:
    """Yield the normalizations with operations after them. No equation is in two of them."""
    readers, makers = readers_of(jaxpr), _makers(jaxpr.eqns)
    taken: set[int] = set()
    added_to: dict[int, Any] = {}

    def only_reader(equation: JaxprEqn) -> JaxprEqn | None:
        reading = readers[equation.outvars[0]]
        return reading[0] if len(reading) == 1 else None  # another reader needs the value in between

    for equation in jaxpr.eqns:
        if equation.primitive is not forward_p or equation.params["operations"] != PLAIN:
            continue
        added, relu = None, only_reader(equation)
        if relu is not None and relu.primitive is add_p and _types_equal(relu):
            added, relu = relu, only_reader(relu)
        if relu is None or id(relu) in taken or not _is_relu(relu):
            continue
        if added is not None:
            (other,) = (value for value in added.invars if value is not equation.outvars[0])
            if _depends(other, equation, makers, added_to):  # such as on the statistics of the batch
                continue
            added_to[id(equation)] = other
        taken.add(id(relu))
        yield _Found(equation, added, relu)


def _is_relu(equation: JaxprEqn) -> bool:
    """Return True for an operation with the values and the derivative of `jax.nn.relu`.

    A custom derivative can be another one, and that of a maximum with 0 is one half at 0.
    """
    if not is_relu(equation):
        return False
    (x,) = (value for value in equation.invars if not isinstance(value, Literal))
    relu = jax.make_jaxpr(jax.nn.relu)(_like(x))
    alone = ClosedJaxpr(relu.jaxpr.replace(invars=[x], outvars=equation.outvars, eqns=[equation]), ())
    return _derivative(alone) == _derivative(relu)


def _derivative(closed: ClosedJaxpr) -> str:
    """Return a function of one array and its derivative, as text."""
    function, x = jaxpr_as_fun(closed), _like(closed.jaxpr.invars[0])
    return str(jax.make_jaxpr(lambda x, tangent: jax.jvp(function, (x,), (tangent,)))(x, x))


def _like(value: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(value.aval.shape, value.aval.dtype)


def _depends(value: Any, on: JaxprEqn, makers: Mapping[Any, JaxprEqn], added_to: Mapping[int, Any]) -> bool:
    """Return True if a value needs the results of an equation, once the found additions are in their normalizations."""
    waiting, seen = [value], set[int]()
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is on:
            return True
        if maker is not None and id(maker) not in seen:
            seen.add(id(maker))
            waiting += [needed for needed in maker.invars if not isinstance(needed, Literal)]
            waiting += [added_to[id(maker)]] if id(maker) in added_to else []
    return False


def _makers(equations: Sequence[JaxprEqn]) -> dict[Any, JaxprEqn]:
    return {value: equation for equation in equations for value in equation.outvars}


def _types_equal(addition: JaxprEqn) -> bool:
    types: list[Any] = [value.aval for value in addition.invars]
    return bool(types[0].shape == types[1].shape and types[0].dtype == types[1].dtype)


def _as_one(found: _Found) -> JaxprEqn:
    """Return an equation that computes the result of all operations, and mean and variance."""
    x, scale, bias = found.norm.invars
    y = found.norm.outvars[0]
    added = [] if found.added is None else [value for value in found.added.invars if value is not y]
    operations = ADD_RELU if added else RELU
    whole: JaxprEqn = found.norm.replace(
        invars=[x, *added, scale, bias],
        outvars=[found.relu.outvars[0], *found.norm.outvars[1:]],
        params={**found.norm.params, "operations": operations},
    )
    return whole


def _in_order(equations: Sequence[JaxprEqn]) -> list[JaxprEqn]:
    """Return the equations in an order in which each one comes after those whose results it reads.

    A normalization needs what is added to it, which can be computed after the readers of its statistics.
    """
    makers = _makers(equations)
    ordered: dict[int, JaxprEqn] = {}
    for equation in equations:
        waiting = [equation]
        while waiting:
            last = waiting[-1]
            missing = [
                makers[value]
                for value in last.invars
                if not isinstance(value, Literal) and value in makers and id(makers[value]) not in ordered
            ]
            if id(last) not in ordered and missing:
                waiting += missing
            else:
                ordered.setdefault(id(waiting.pop()), last)
    return list(ordered.values())
