"""Transformations of NNX inside a module, in every tool: the tool works, or its error names the transformation."""

import functools
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.diagnostics.summary import summarize
from resfit.errors import ModuleError
from resfit.nets import fold_batch_norm
from tests.helpers import CLASSES, assert_close, assert_same, compiled, differ, fit, images, labels, values
from tests.levels import only

X, Y = images(8), labels(8)


class Block(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.conv = nnx.Conv(1, 1, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(1, momentum=0.9, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return nnx.relu(self.norm(self.conv(x))) + x


class RematerializedBlock(Block):
    __call__ = nnx.remat(Block.__call__)


class JittedBlock(Block):
    __call__ = nnx.jit(Block.__call__)


def stacked(rngs: nnx.Rngs) -> Block:
    return nnx.split_rngs(splits=2)(nnx.vmap(lambda rngs: Block(rngs=rngs)))(rngs)


def call(block: Any, x: Any) -> Any:
    return block(x)


def skip(block: Any, x: Any) -> Any:
    return x


def scan(block: Any, x: Any) -> Any:
    return nnx.scan(call, in_axes=(0, nnx.Carry), out_axes=nnx.Carry)(block, x)


def vmap(block: Any, x: Any) -> Any:
    return nnx.vmap(call, in_axes=(0, None))(block, x).mean(axis=0)


def cond(block: Any, x: Any) -> Any:
    return nnx.cond(x.shape[1] * x[0, 0, 0, 0] < 1e9, call, skip, block, x)


def switch(block: Any, x: Any) -> Any:
    return nnx.switch(jnp.int32(1), [skip, call], block, x)


def while_loop(block: Any, x: Any) -> Any:
    start = (0, block, x)
    _, _, x = nnx.while_loop(
        lambda state: state[0] < 1, lambda state: (state[0] + 1, state[1], call(*state[1:])), start
    )
    return jax.lax.stop_gradient(x)  # JAX has no gradient of a loop without a fixed length


def fori_loop(block: Any, x: Any) -> Any:
    return jax.lax.stop_gradient(nnx.fori_loop(0, 1, lambda _, state: (state[0], call(*state)), (block, x))[1])


# How the network calls its block, and how it makes the block.
TRANSFORMS: dict[str, tuple[Any, Any]] = {
    "scan": (scan, stacked),
    "vmap": (vmap, stacked),
    "remat": (nnx.remat(call), lambda rngs: Block(rngs=rngs)),
    "remat of a method": (call, lambda rngs: RematerializedBlock(rngs=rngs)),
    "jit": (nnx.jit(call), lambda rngs: Block(rngs=rngs)),
    "jit of a method": (call, lambda rngs: JittedBlock(rngs=rngs)),
    "cond": (cond, lambda rngs: Block(rngs=rngs)),
    "switch": (switch, lambda rngs: Block(rngs=rngs)),
    "while_loop": (while_loop, lambda rngs: Block(rngs=rngs)),
    "fori_loop": (fori_loop, lambda rngs: Block(rngs=rngs)),
}
STACKED = ("scan", "vmap")


class Net(nnx.Module):
    def __init__(self, transform: str, seed: int = 0) -> None:
        self.run, make = TRANSFORMS[transform]
        rngs = nnx.Rngs(seed)
        self.block = make(rngs)
        self.head = nnx.Linear(1, CLASSES, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.run(self.block, x).mean(axis=(1, 2)))


class Unrolled(Net):
    """The network without the transformation, which must compute the same."""

    def __call__(self, x: Any) -> Any:
        return self.head(self.block(x).mean(axis=(1, 2)))


def trains(transform: str, _: Path) -> None:
    model = compiled(Net(transform))
    before = values(model.module)
    fit(model, X, Y)
    assert {"block.norm.mean", "block.norm.var"} <= differ(before, values(model.module))


def evaluates(transform: str, _: Path) -> None:
    model = compiled(Net(transform))
    before = values(model.module)
    model.evaluate(X, Y, verbose=0)
    predicted = model.predict(X, verbose=0)
    assert_close(model.predict(X[:2], verbose=0), predicted[:2])
    assert_same(values(model.module), before)
    if transform not in STACKED:
        plain = Unrolled("remat")
        assert_close(resfit.Model(plain).predict(X, verbose=0), predicted)


def exports(transform: str, folder: Path) -> None:
    model = resfit.Model(Net(transform))
    model.export(folder / "net.npz", input_shape=X.shape[1:], input_dtype="float32")
    assert_close(resfit.load_exported(folder / "net.npz")(X), model.predict(X, verbose=0))


def saves(transform: str, folder: Path) -> None:
    model = resfit.Model(Net(transform))
    model.save(folder / "net.safetensors")
    again = resfit.load(folder / "net.safetensors", module=Net(transform, seed=1))
    assert_same(again.get_weights(), model.get_weights())


def freezes(transform: str, _: Path) -> None:
    model = resfit.Model(Net(transform))
    model.freeze("block")
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    before = values(model.module)
    fit(model, X, Y)
    assert differ(before, values(model.module)) <= {"head.kernel", "head.bias"}


def summarizes(transform: str, _: Path) -> None:
    summary = summarize(Net(transform), X.shape[1:])
    assert [row.name for row in summary.rows] == ["block", "head"]
    assert summary.multiply_adds > 0


def diagnoses(transform: str, _: Path) -> None:
    report = resfit.doctor(compiled(Net(transform)), X, Y)
    assert report["statistics"].status == "ok", str(report)
    inside = transform.endswith("method")
    assert [block.name for block in report.blocks] == (["block", "head"] if inside else ["head"])


def locates(transform: str, _: Path) -> None:
    model = compiled(Net(transform))
    model.keep_last_step = True
    fit(model, X, Y)
    assert model.first_non_finite() is None


def maps_gradients(transform: str, _: Path) -> None:
    model = resfit.Model(Net(transform))
    if transform.endswith("method"):
        assert resfit.grad_cam(model, X, "block").shape == X.shape[:3]
    else:
        with pytest.raises(ModuleError, match=r"part='block'.*inside nnx\.scan, nnx\.remat"):
            resfit.grad_cam(model, X, "block")


def folds(transform: str, _: Path) -> None:
    net = Net(transform)
    if transform in STACKED:
        with pytest.raises(ModuleError, match=r"stacked for nnx\.scan or nnx\.vmap"):
            fold_batch_norm(net, X)
        return
    net.block.norm.mean[...], net.block.norm.var[...] = jnp.full(1, 0.3), jnp.full(1, 2.0)
    folded = fold_batch_norm(net, X)
    assert type(folded.block.norm).__name__ == "FoldedNorm"
    assert_close(resfit.Model(folded).predict(X, verbose=0), resfit.Model(net).predict(X, verbose=0))


def recalibrates(transform: str, _: Path) -> None:
    model = resfit.Model(Net(transform))
    resfit.recalibrate(model, X)
    norm = model.module.block.norm
    for i in range(2 if transform in STACKED else 1):
        conv, seen = (nnx.state(part) for part in (model.module.block.conv, norm))
        one = (lambda leaf, i=i: leaf[i]) if transform in STACKED else (lambda leaf: leaf)
        conv, seen = jax.tree.map(one, conv), jax.tree.map(one, seen)
        if i == 0 or transform == "vmap":  # the input of the second layer of a scan is another one
            values_ = np.asarray(jax.lax.conv_general_dilated(
                X, conv["kernel"][...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            ))  # fmt: skip
            assert_close((seen["mean"][...], seen["var"][...]), (values_.mean((0, 1, 2)), values_.var((0, 1, 2))))
        assert float(np.squeeze(seen["var"][...])) != 1.0


TOOLS = [
    trains,
    evaluates,
    exports,
    saves,
    freezes,
    summarizes,
    diagnoses,
    locates,
    maps_gradients,
    folds,
    recalibrates,
]
QUICK = [
    ("remat", evaluates), ("jit of a method", evaluates), ("jit", diagnoses), ("cond", locates),
    ("remat", maps_gradients), ("scan", recalibrates), ("vmap", folds),
]  # fmt: skip


ROWS = [(name, tool) for name in TRANSFORMS for tool in TOOLS]
SLOW = [(name, tool) for name, tool in ROWS if name in ("scan", "remat") or tool is trains]


@pytest.mark.parametrize(("transform", "tool"), only(QUICK, ROWS, slow=SLOW))
def test_a_tool_works_on_a_transformed_part_or_names_the_transformation(
    transform: str, tool: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "resfit"):
        tool(transform, tmp_path)
    assert not [record for record in caplog.records if "BatchNorm" in record.getMessage()]


def test_recalibrate_raises_for_a_transformation_of_jax_that_drops_the_statistics() -> None:
    class Dropping(Net):
        def __call__(self, x: Any) -> Any:
            graph, state = nnx.split(self.block)
            x = jax.checkpoint(lambda state, x: nnx.merge(graph, state)(x))(state, x)
            return self.head(x.mean(axis=(1, 2)))

    with pytest.raises(ModuleError, match=r"used one of its BatchNorms \['block\.norm'\], or a transformation of JAX"):
        resfit.recalibrate(resfit.Model(Dropping("remat")), X)


@pytest.mark.parametrize("transform", only(["remat"], ["remat", "jit", "scan"]))
def test_a_norm_that_moves_in_evaluation_inside_a_transformation_still_warns(
    transform: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Moving(Block):
        def __call__(self, x: Any) -> Any:
            return self.norm(x, use_running_average=False)

    net = Net(transform)
    make = functools.partial(Moving, rngs=nnx.Rngs(0))
    net.block = nnx.vmap(lambda _: Moving(rngs=nnx.Rngs(0)))(jnp.zeros(2)) if transform == "scan" else make()
    with caplog.at_level(logging.WARNING, "resfit"):
        resfit.Model(net).predict(X, verbose=0)
    assert "moves in evaluation too" in caplog.text


class PerExample(Net):
    """A network for one image, mapped over the batch: the norm takes its statistics over the axis of the map."""

    def __init__(self, transform: str, seed: int = 0) -> None:
        super().__init__(transform, seed)
        self.block.norm.axis_name = "rows"

    def __call__(self, x: Any) -> Any:
        run = nnx.vmap(call, in_axes=(None, 0), axis_name="rows")
        return self.head(run(self.block, x[:, None])[:, 0].mean(axis=(1, 2)))


def test_a_norm_takes_its_statistics_over_the_axis_of_a_vmap_inside_the_module() -> None:
    mapped, whole = compiled(PerExample("remat")), compiled(Unrolled("remat"))
    for model in (mapped, whole):
        fit(model, X, Y)
    assert_close(mapped.get_weights(), whole.get_weights())
