"""Features, embeddings and replaced heads of every variant."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import ChannelError, ModuleError, SpecError
from resfit.nets import ResNet, ResNetSpec
from resfit.nets.resnet import Stage
from tests import levels
from tests.helpers import assert_same, call, compiled, differ, values

GOLDEN = Path(__file__).parents[1] / "golden" / "variants.json"
QUICK = {"v2, bottleneck"}
SLOW = {"RS", "D, bottleneck", "ResNeXt", "output stride 8, basic"}
VARIANTS: dict[str, Any] = {name: row["spec"] for name, row in json.loads(GOLDEN.read_text())["variants"].items()}


def thin(stages: int = 4, **fields: Any) -> ResNet:
    widths = (32, 32, 64, 64)[:stages]
    spec = ResNetSpec(**{"depths": (1,) * stages, "widths": widths, "num_classes": 5} | fields)
    return ResNet(spec, rngs=nnx.Rngs(0))


def tiny(**fields: Any) -> ResNet:
    return nnx.clone(_built(tuple(fields.items())))


@functools.cache
def _built(fields: tuple[tuple[str, Any], ...]) -> ResNet:
    return thin(2, **{"widths": (4, 8), "stem": "cifar", "in_channels": 1} | dict(fields))


def small_images(n: int = 4) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(n, 8, 8, 1)).astype(np.float32)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Record the outputs of all stages."""
    outputs: list[Any] = []
    called = Stage.__call__

    def watched(self: Stage, *args: Any, **kwargs: Any) -> Any:
        outputs.append(called(self, *args, **kwargs))
        return outputs[-1]

    monkeypatch.setattr(Stage, "__call__", watched)
    return outputs


@pytest.mark.parametrize("variant", levels.only(QUICK, VARIANTS, SLOW))
def test_features_equal_the_outputs_of_the_stages(variant: str, seen: list[Any]) -> None:
    net = thin(**VARIANTS[variant])
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)

    @nnx.jit
    def all_of_it(net: ResNet, x: jax.Array) -> Any:
        seen.clear()
        logits = net(x)
        on_the_way = tuple(seen)
        return logits, on_the_way, net.features(x), net.embed(x)

    logits, on_the_way, features, embedding = all_of_it(net, x)
    assert_same(features, on_the_way)
    strides = np.cumprod([4, *(stage.strides for stage in net.stages[1:])])
    for found, stride, stage in zip(features, strides, net.stages, strict=True):
        assert found.shape == (2, 64 // stride, 64 // stride, stage.out_channels)
        assert np.ptp(found) > 0
    np.testing.assert_allclose(call(net.head.dense, embedding), logits, rtol=1e-5, atol=1e-5)
    last = features[-1] if net.norm is None else call(net.norm, features[-1])
    np.testing.assert_allclose(embedding, np.mean(last, axis=(1, 2)), rtol=1e-4, atol=1e-5)


def test_features_keep_the_requested_order_and_compute_no_later_stage(seen: list[Any]) -> None:
    net = tiny()

    @nnx.jit
    def both(net: ResNet, x: jax.Array) -> Any:
        two, one = net.features(x, stages=(2, 1))
        seen.clear()
        return two, one, *net.features(x, stages=[1])

    two, one, alone = both(net, small_images())
    assert (one.shape, two.shape) == ((4, 8, 8, 4), (4, 4, 4, 8))
    np.testing.assert_array_equal(alone, one)
    assert len(seen) == 1


@pytest.mark.representatives("embed")
@pytest.mark.parametrize("method", ["features", "embed"])
def test_features_and_embed_take_the_mode_as_a_call_does(method: str) -> None:
    net = tiny()
    before = values(net)
    bare = call(net, small_images(), method=method)
    assert_same(bare, call(net, small_images(), method=method, train=False))
    assert not differ(before, values(net))
    trained = call(net, small_images(), method=method, train=True)
    assert differ(before, values(net))
    assert not np.allclose(jax.tree.leaves(bare)[-1], jax.tree.leaves(trained)[-1])
    after = values(net)
    other = tiny()
    call(other, small_images(), train=True)
    assert_same(after, values(other))


def test_features_have_the_dtype_of_the_layers_and_embeddings_are_float32() -> None:
    net = tiny(dtype="bfloat16")
    features, embedding = nnx.eval_shape(lambda net, x: (net.features(x), net.embed(x)), net, small_images())
    assert {f.dtype for f in features} == {jnp.dtype("bfloat16")}
    assert embedding.dtype == jnp.float32


@pytest.mark.parametrize("stages", [(), (0,), (1, 3), (-1,)])
def test_unknown_stages_raise(stages: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match=r"Expected some of \(1, 2\)"):
        tiny().features(small_images(), stages=stages)


@pytest.mark.parametrize("method", ["features", "embed"])
def test_features_and_embed_check_images_as_a_call_does(method: str) -> None:
    with pytest.raises(ChannelError):
        getattr(tiny(), method)(np.zeros((1, 8, 8, 3), np.float32))


# --- predict ----------------------------------------------------------------------------------------------------------


@pytest.mark.representatives("variant0")
@pytest.mark.parametrize("variant", [{}, {"block": "preact_basic", "stem": "cifar_conv", "shortcut": "conv"}])
def test_predict_returns_preprocessed_embeddings_of_every_row(variant: dict[str, str]) -> None:
    net = tiny(**variant)
    call(net, small_images(), train=True)  # statistics other than the initial ones
    model = compiled(net)
    x = (small_images(7) * 40 + 100).astype(np.uint8)
    found = model.predict(x, batch_size=3, outputs="embedding", verbose=0)
    expected, other = (call(net, x / np.float32(by), method="embed", train=False) for by in (255, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, other)  # without preprocessing the result differs


class Told(nnx.Module):
    """A module whose `embed` takes its mode as an argument; the default is training."""

    def __init__(self) -> None:
        self.dense = nnx.Linear(64, 3, rngs=nnx.Rngs(0))
        self.norm = nnx.BatchNorm(64, use_running_average=False, rngs=nnx.Rngs(0))

    def embed(self, x: jax.Array, deterministic: bool = False) -> jax.Array:
        return self.norm(x.reshape(x.shape[0], -1), use_running_average=deterministic)

    def __call__(self, x: jax.Array, deterministic: bool = False) -> jax.Array:
        return self.dense(self.embed(x, deterministic))


def test_a_custom_module_embeds_in_evaluation_mode() -> None:
    x = small_images() + 3
    found = compiled(Told()).predict(x, outputs="embedding", verbose=0)
    np.testing.assert_allclose(found, call(Told(), x, method="embed", deterministic=True), rtol=1e-6)
    assert not np.allclose(found, call(Told(), x, method="embed"))


def test_a_module_without_embed_raises() -> None:
    model = compiled()
    with pytest.raises(ModuleError, match="TinyNet has none"):
        model.predict(small_images(), outputs="embedding", verbose=0)


# --- replace_head -----------------------------------------------------------------------------------------------------


@pytest.mark.representatives("fields0")
@pytest.mark.parametrize(
    "fields", [{}, {"head_dropout": 0.5}, {"block": "preact_basic", "stem": "cifar_conv", "shortcut": "conv"}]
)
def test_replace_head_keeps_all_other_layers_and_uses_its_own_seed(fields: dict[str, Any]) -> None:
    net = tiny(**fields)
    before, embedding = values(net), call(net, small_images(), method="embed")
    net.replace_head(3, rngs=7)
    after = values(net)
    assert {name for name in before if before[name].shape != after[name].shape} == {
        "head.dense.kernel",
        "head.dense.bias",
    }
    rest = [name for name in before if not name.startswith("head")]
    assert_same({name: before[name] for name in rest}, {name: after[name] for name in rest})
    assert_same(call(net, small_images(), method="embed"), embedding)
    assert nnx.eval_shape(lambda net, x: net(x), net, small_images()).shape == (4, 3)
    assert net.spec == ResNetSpec.from_dict(net.spec.to_dict() | {"num_classes": 3})
    again, other = tiny(**fields), tiny(**fields)
    again.replace_head(3, rngs=nnx.Rngs(7))
    other.replace_head(3, rngs=8)
    assert_same(values(again), after)
    assert differ(values(other), after) == {"head.dense.kernel", "head.dense.bias"}


def test_a_network_with_a_replaced_head_equals_the_network_of_its_spec() -> None:
    net = tiny(num_classes=3)
    other = tiny(num_classes=9)
    other.replace_head(3)
    assert nnx.graphdef(net) == nnx.graphdef(other)


def test_dropout_in_a_replaced_head_keeps_the_mode() -> None:
    net = tiny(head_dropout=0.5)
    net.train()
    net.replace_head(3)
    assert net.head.dropout.deterministic is False
    assert not np.allclose(call(net, small_images()), call(net, small_images()))


@pytest.mark.parametrize("classes", [0, -1, 2.0, True])
def test_a_head_without_classes_raises_and_changes_nothing(classes: Any) -> None:
    net = tiny()
    before = values(net)
    with pytest.raises(SpecError, match="num_classes"):
        net.replace_head(classes)
    assert_same(values(net), before)
    assert net.spec.num_classes == 5


def test_an_existing_model_raises_until_it_is_compiled_again(tmp_path: Path) -> None:
    net = tiny(depths=(1,), widths=(4,))
    model = compiled(net)
    x = small_images(8)
    model.fit(x, np.arange(8) % 5, batch_size=8, verbose=0)
    net.replace_head(3)
    stem = values(net)["stem.conv.kernel"]
    with pytest.raises(ModuleError, match="compile"):
        model.predict(x, verbose=0)
    model.compile("sgd", learning_rate=0.0, dispatch="jit")
    model.fit(x, np.arange(8) % 3, batch_size=8, verbose=0)
    assert_same(values(net)["stem.conv.kernel"], stem)
    model.save(tmp_path / "net.safetensors")
    loaded = resfit.load(tmp_path / "net.safetensors")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), call(net, x, train=False), rtol=1e-5, atol=1e-6)
    assert loaded.module.spec.num_classes == 3


# --- frozen stages, learning rates by depth ---------------------------------------------------------------------------

TUNED = {
    "pre-activated": {"block": "preact_bottleneck", "stem": "cifar_conv", "shortcut": "conv"},
    "squeeze and excitation": {"squeeze": 0.25},
    "deep stem": {"stem": "deep", "shortcut": "D"},
}
TUNED_ROWS = levels.only(("squeeze and excitation",), TUNED)


def tuned(net: ResNet, optimizer: Any, *frozen: str) -> dict[str, np.ndarray]:
    """Return the change of all values in one step, with no block that returns only its shortcut."""
    for path, variable in nnx.to_flat_state(nnx.state(net, nnx.Param)):
        # The last of a block, which starts at zero.
        if path[-1] in ("scale", "kernel") and not np.any(np.asarray(variable[...])):
            variable.set_value(jnp.asarray(np.full(variable.shape, 0.1, np.float32)))
            nnx.update(net, nnx.from_flat_state([(path, variable)]))
    before = values(net)
    model = resfit.Model(net)
    model.freeze(*frozen)
    model.compile(optimizer, dispatch="jit")
    size = 64 if net.stem.strides else 8
    x = np.random.default_rng(0).normal(size=(6, size, size, 1)).astype(np.float32)
    model.train_on_batch(x, np.arange(6) % 5)
    after = values(net)
    return {name: after[name] - before[name] for name in before}


@pytest.mark.slow
@pytest.mark.parametrize("variant", TUNED_ROWS)
def test_frozen_stages_do_not_change_and_the_others_train(variant: str) -> None:
    moved = tuned(tiny(**TUNED[variant]), resfit.optimizers.sgd(0.1), "stem", "stage1")
    frozen = {name for name in moved if name.startswith(("stem.", "stage1."))}
    assert {name for name, change in moved.items() if not np.any(change)} == frozen
    assert any(name.endswith(".mean") for name in frozen)
    assert any("squeeze" in name for name in frozen) == (variant == "squeeze and excitation")


@pytest.mark.slow
@pytest.mark.parametrize("variant", TUNED_ROWS)
def test_every_part_of_a_variant_trains_at_its_own_rate(variant: str) -> None:
    sgd = resfit.optimizers.sgd(0.1, momentum=0.0)
    fields = {"depths": (1,), "widths": (8,)} | TUNED[variant]
    net = tiny(**fields)
    plain = tuned(tiny(**fields), sgd)
    slowed = tuned(net, resfit.optimizers.by_depth(net.parts, sgd, decay=0.5))
    factors = {part: 0.5**i for i, part in enumerate(reversed(net.parts))}
    assert factors["head"] == 1
    assert ("norm" in factors) == (variant == "pre-activated")
    for name, change in plain.items():
        statistic = name.endswith((".mean", ".var"))
        factor = 1 if statistic else factors[name.split(".")[0]]
        np.testing.assert_allclose(slowed[name], factor * change, rtol=1e-3, atol=1e-6, err_msg=name)
