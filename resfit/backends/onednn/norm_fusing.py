"""A batch normalization in training and the operations after it, in one primitive: ReLU, or an addition and ReLU.

As in `fusing`, the traced operations are searched, so every module profits. The search comes before differentiation:
the primitive has its own derivative.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
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
        closed, results = jax.make_jaxpr(function, return_shape=True)(*arguments)
        leaves = jaxpr_as_fun(_rewritten(closed))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(results), leaves)

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
    readers = readers_of(jaxpr)
    taken: set[int] = set()

    def only_reader(equation: JaxprEqn) -> JaxprEqn | None:
        reading = readers[equation.outvars[0]]
        return reading[0] if len(reading) == 1 else None  # another reader needs the value in between

    for equation in jaxpr.eqns:
        if equation.primitive is not forward_p or equation.params["operations"] != PLAIN:
            continue
        added, relu = None, only_reader(equation)
        if relu is not None and relu.primitive is add_p and _types_equal(relu):
            added, relu = relu, only_reader(relu)
        if relu is not None and is_relu(relu) and id(relu) not in taken:
            taken.add(id(relu))
            yield _Found(equation, added, relu)


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
    makers = {value: equation for equation in equations for value in equation.outvars}
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
