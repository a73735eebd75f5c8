"""The one interceptor: it wraps the calls of one part of a copy, and changes nothing else."""

import inspect
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import resfit
from resfit.nets.intercept import intercept
from resfit.nets.modes import mode_keywords
from resfit.nets.probe import Recomputing, keep_activations, parts, tap

PACKAGE = Path(resfit.__file__).parent


class Adds(nnx.Module):
    def __init__(self, amount: float) -> None:
        self.amount = nnx.Param(jnp.float32(amount))

    def __call__(self, x: Any, *, train: bool = False) -> Any:
        return x + self.amount[...] * (2 if train else 1)


def test_the_wrapped_call_gets_its_arguments_and_other_parts_keep_their_class() -> None:
    net = nnx.Sequential(Adds(1.0), Adds(10.0))
    seen: list[Any] = []

    def around(part: Any, call: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append((part, args, kwargs))
        return 100 + call(*args, train=True)

    intercept(net.layers[0], around)
    assert net(1.0) == 113.0
    assert seen == [(net.layers[0], (1.0,), {})]
    assert type(net.layers[1]) is Adds
    assert isinstance(net.layers[0], Adds)
    assert type(net.layers[0]).__qualname__ == Adds.__qualname__


def test_the_signature_and_so_the_mode_keywords_stay() -> None:
    part = Adds(1.0)
    before = inspect.signature(type(part).__call__), mode_keywords(part, train=True)
    intercept(part, lambda _, call, *args, **kwargs: call(*args, **kwargs))
    assert (inspect.signature(type(part).__call__), mode_keywords(part, train=True)) == before


def test_a_second_interception_runs_around_the_first() -> None:
    part = Adds(1.0)
    intercept(part, lambda _, call, x: 2 * call(x))
    intercept(part, lambda _, call, x: 3 + call(x))
    assert part(1.0) == 3 + 2 * 2.0


def test_a_copy_made_in_a_traced_function_is_seen_as_the_part_that_is_called() -> None:
    """Rematerialization calls a copy, whose Variables are others than those of the part that was intercepted."""
    part = Adds(1.0)
    intercept(part, lambda self, call, x: call(x) * self.amount[...])
    graph, state = nnx.split(part)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, state)
    assert jax.jit(lambda state, x: nnx.merge(graph, state)(x))(doubled, 1.0) == 6.0


def test_only_one_module_of_resfit_changes_a_class() -> None:
    changing = re.compile(r"\"__class__\"|__class__ =|nnx\.capture|\.__call__ = ")
    found = {
        path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if changing.search(path.read_text())
    }
    assert found == {"nets/intercept.py"}


# --- what a probe asks of a module ------------------------------------------------------------------------------------


class CustomBlock(nnx.Module):
    is_block = True

    def __init__(self) -> None:
        self.inner = Adds(1.0)

    def __call__(self, x: Any) -> Any:
        return self.inner(x)


class Net(nnx.Module):
    def __init__(self) -> None:
        self.stage = nnx.Dict(first=CustomBlock(), second=CustomBlock())
        self.head = Adds(0.0)

    def __call__(self, x: Any) -> Any:
        return self.head(self.stage["second"](self.stage["first"](x)))


def test_a_custom_module_says_itself_that_it_is_a_block() -> None:
    net = Net()
    assert sorted(parts(net)) == ["head", "stage.first", "stage.second"]
    seen: list[str] = []
    tap(net, lambda name, output: seen.append(name) or output)  # type: ignore[func-returns-value]
    assert net(jnp.zeros(2)).tolist() == [2.0, 2.0]
    assert seen == ["stage.first", "stage.second", "head"]


@pytest.mark.parametrize("remat", ["block", "stage"])
def test_a_resnet_ends_its_rematerialization_where_it_is_asked(remat: str) -> None:
    net = resfit.create_model("resnet20", num_classes=3, depths=(1, 1), widths=(4, 8), remat=remat)
    assert isinstance(net.stage1, Recomputing)
    keep_activations(net)
    assert [stage.remat for stage in net.stages] == [None, None]
