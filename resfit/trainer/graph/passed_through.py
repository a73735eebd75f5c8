"""Find the outputs of a program that are inputs which it returns as they are.

Transformations of NNX (nnx.jit, nnx.remat, nnx.scan) return every Variable of a module, also those that the module left
alone, as new arrays. Only their programs show which ones changed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend import core


def changed(function: Callable[[tuple[Any, ...]], Sequence[Any]], arrays: Sequence[Any]) -> list[bool]:
    """Return for each array True unless a function of arrays returns it as it is, at the same position.

    Args:
      function: traced, not run. It can close over other arrays.
      arrays: or traced arrays.

    Example:
      >>> half = nnx.jit(lambda x, y: (x, y / 2))
      >>> changed(lambda both: half(*both), [jnp.ones(2), jnp.ones(2)])
      [False, True]
    """
    jaxpr = jax.make_jaxpr(lambda *arrays: list(function(arrays)))(*arrays).jaxpr
    return [source != position for position, source in enumerate(_sources(jaxpr))]


def _sources(jaxpr: core.Jaxpr) -> list[int | None]:
    """Return for each output of a program the position of the input that it is, or None."""
    source: dict[core.Var, int] = {var: position for position, var in enumerate(jaxpr.invars)}
    for equation in jaxpr.eqns:
        passed = _passed(equation)
        for out, position in zip(equation.outvars, passed, strict=False):
            given = None if position is None else equation.invars[position]
            if isinstance(given, core.Var) and given in source:
                source[out] = source[given]
    return [source.get(out) if isinstance(out, core.Var) else None for out in jaxpr.outvars]


def _passed(equation: Any) -> list[int | None]:
    """Return for each output of an equation the position of the input that it is, or None; nothing if unknown."""
    name, params = equation.primitive.name, equation.params
    bodies = list(core.jaxprs_in_params(params))
    if name == "scan":
        consts, carried = _sizes_of_scan(params)
        return [
            # An output of the loop is an input if each turn hands it on: in the carry, or from the slice to the slice.
            found if found == consts + i or (i >= carried and found is not None and found >= consts + carried) else None
            for i, found in enumerate(_sources(bodies[0]))
        ]
    if name == "while":
        of_condition, of_body = params["cond_nconsts"], params["body_nconsts"]
        found = _sources(params["body_jaxpr"].jaxpr)
        return [of_condition + source if source == of_body + i else None for i, source in enumerate(found)]
    if name == "cond":
        by_branch = zip(*map(_sources, bodies), strict=True)
        return [one[0] + 1 if one[0] is not None and len(set(one)) == 1 else None for one in by_branch]
    called = [body for body in bodies if len(body.invars) == len(equation.invars)]
    return _sources(called[0]) if len(bodies) == len(called) == 1 else []


def _sizes_of_scan(params: Any) -> tuple[int, int]:
    """Return the numbers of constants and of carried arrays among the inputs of a scan."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carried, _ = params["ft_in"].unpack()  # jax 0.12
    return len(consts), len(carried)
