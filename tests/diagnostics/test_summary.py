"""The summary: rows that add up for any module, without computing or changing anything."""

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import reduce
from flax import nnx

from resfit.diagnostics.summary import OUTSIDE, summarize
from resfit.errors import InputShapeError
from resfit.nets import ZOO, ResNet, ResNetSpec, count_multiply_adds, count_params, create_model
from tests import levels
from tests.helpers import PlainNet, compiled, fit, images, labels

THIN = ResNetSpec(depths=(1, 2), widths=(4, 8), stem="cifar", num_classes=3)


class Mixed(nnx.Module):
    """Parts in a list, in a dict and as attributes, one called twice, one never called; and a bare weight."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.unused = nnx.Linear(2, 2, rngs=rngs)
        self.last = nnx.Linear(8, 3, rngs=rngs)
        self.blocks = nnx.List([nnx.Conv(4, 4, (3, 3), padding=1, rngs=rngs) for _ in range(2)])
        self.named = nnx.Dict({"norm": nnx.BatchNorm(4, rngs=rngs), "activation": nnx.relu})
        self.weight = nnx.Param(jnp.asarray(np.ones((4, 8), np.float32)))

    def __call__(self, x: jax.Array) -> dict[str, jax.Array]:
        for block in self.blocks:
            x = self.named["activation"](self.named["norm"](block(x)))
        pooled = reduce(x, "n h w c -> n c", "mean") @ self.weight[...]
        return {"logits": self.last(pooled), "features": pooled}


def test_the_rows_of_a_resnet_are_its_stem_stages_and_head() -> None:
    summary = summarize(nnx.eval_shape(lambda: create_model("resnet18", num_classes=1000)))
    assert {row.name: row.output_shapes for row in summary.rows} == {
        "stem": ((56, 56, 64),),
        "stage1": ((56, 56, 64),),
        "stage2": ((28, 28, 128),),
        "stage3": ((14, 14, 256),),
        "stage4": ((7, 7, 512),),
        "head": ((1000,),),
    }
    assert summary.input_shape == (224, 224, 3)
    assert summary.statistics == 9_600
    assert (summary.parameters, summary.multiply_adds) == (
        ZOO["resnet18"].parameters,
        ZOO["resnet18"].multiply_adds,
    )


@pytest.mark.representatives("Mixed")
@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: ResNet(THIN, rngs=nnx.Rngs(0)), (8, 8, 3)),
        (lambda: Mixed(rngs=nnx.Rngs(0)), (6, 6, 4)),
        (
            lambda: nnx.Sequential(nnx.Linear(4, 5, rngs=nnx.Rngs(0)), nnx.relu, nnx.Dropout(0.5, rngs=nnx.Rngs(0))),
            (4,),
        ),
        (lambda: nnx.Linear(4, 5, rngs=nnx.Rngs(0)), (4,)),
    ],
    ids=["ResNet", "Mixed", "Sequential", "Linear"],
)
def test_the_rows_add_up_to_the_totals(make: Callable[[], nnx.Module], shape: tuple[int, ...]) -> None:
    module = make()
    summary = summarize(module, shape)
    assert sum(row.parameters for row in summary.rows) == summary.parameters == count_params(module)
    assert sum(row.multiply_adds for row in summary.rows) == summary.multiply_adds == count_multiply_adds(module, shape)
    assert sum(row.activation_bytes for row in summary.rows) == summary.activation_bytes > 0


def test_any_modules_parts_are_found_in_the_order_of_their_calls() -> None:
    summary = summarize(Mixed(rngs=nnx.Rngs(0)), (6, 6, 4))
    rows = {row.name: row for row in summary.rows}
    assert list(rows) == ["blocks.0", "named.norm", "blocks.1", "last", "unused", OUTSIDE]
    assert rows["blocks.1"].multiply_adds == 36 * 4 * 4 * 9
    assert rows["named.norm"].output_shapes == ((6, 6, 4),)
    assert rows["unused"].output_shapes == ()
    assert rows["unused"].parameters == 6
    assert (rows[OUTSIDE].parameters, rows[OUTSIDE].multiply_adds) == (32, 32)
    assert rows[OUTSIDE].output_shapes == ((8,), (3,))  # features, logits


def test_a_part_that_is_held_twice_has_a_row_for_each_of_its_names() -> None:
    shared = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
    rows = {row.name: row for row in summarize(nnx.Sequential(shared, nnx.relu, shared), (4,)).rows}
    assert list(rows) == ["layers.0", "layers.2"]
    assert [row.parameters for row in rows.values()] == [20, 0]
    assert [row.multiply_adds for row in rows.values()] == [16, 16]
    assert [row.output_shapes for row in rows.values()] == [((4,),), ((4,),)]


def test_activations_of_one_convolution_are_its_input_and_output() -> None:
    summary = summarize(nnx.Sequential(nnx.Conv(3, 8, (3, 3), padding=1, rngs=nnx.Rngs(0))), (4, 4, 3))
    assert summary.activation_bytes == 4 * (4 * 4 * 3 + 4 * 4 * 8)
    uint8 = summarize(nnx.Sequential(nnx.Conv(3, 8, (3, 3), padding=1, rngs=nnx.Rngs(0))), (4, 4, 3), dtype="uint8")
    assert uint8.activation_bytes == summary.activation_bytes  # the convolution reads them as float32


def test_the_module_is_not_changed() -> None:
    module = Mixed(rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    parts = vars(module).copy()
    summarize(module, (6, 6, 4))
    assert vars(module) == parts
    assert nnx.split(module)[0] == graph
    for before, after in zip(leaves, jax.tree.leaves(nnx.state(module)), strict=True):
        np.testing.assert_array_equal(before, after)


def test_a_missing_input_shape_raises() -> None:
    with pytest.raises(InputShapeError, match=r"Mixed.*input_shape=\(32, 32, 3\)"):
        summarize(Mixed(rngs=nnx.Rngs(0)))
    assert summarize(nnx.eval_shape(lambda: create_model("resnet20", num_classes=10))).input_shape == (32, 32, 3)


def test_a_network_of_the_user_is_shown_for_the_images_last_seen(capsys: pytest.CaptureFixture[str]) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)))
    fit(model, images().astype("uint8"), labels())
    model.summary()
    assert "PlainNet on 8 x 8 x 1" in capsys.readouterr().out


@pytest.mark.parametrize("name", levels.only(["resnet20"], ["resnet20", "resnet200"]))
def test_the_table_fits_a_terminal_and_holds_every_number(name: str) -> None:
    summary = summarize(nnx.eval_shape(lambda: create_model(name, num_classes=1000)))
    text = str(summary)
    assert max(map(len, text.splitlines())) <= 100
    assert "…" not in text
    for row in summary.rows:
        line = next(line for line in text.splitlines() if line.split()[:1] == [row.name])
        assert f"{row.parameters:,}" in line
        assert " x ".join(map(str, row.output_shapes[0])) in line
    total = next(line for line in text.splitlines() if line.split()[:1] == ["total"])
    assert f"{summary.parameters:,}" in total


@pytest.mark.parametrize(
    ("bytes_", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (5 * 2**30, "5 GiB")]
)
def test_memory_is_written_in_binary_units(bytes_: int, text: str) -> None:
    summary = summarize(nnx.Linear(1, 1, rngs=nnx.Rngs(0)), (1,))
    assert text in replace(summary, parameter_bytes=bytes_).render()
