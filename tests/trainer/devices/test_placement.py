"""Training is the same on one device, on several devices, and without compilation."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError, LabelError
from resfit.trainer.devices.placement import Placement, Throttle
from tests.helpers import (
    PlainNet,
    TinyNet,
    assert_close,
    compiled,
    context_of,
    counting_compilations,
    fit,
    images,
    labels,
    state_of,
    values,
)


def model_on(dispatch: str, **arguments: Any) -> Any:
    return compiled(TinyNet(rngs=nnx.Rngs(0)), dispatch=dispatch, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("n", [6, *(pytest.param(n, marks=pytest.mark.slow) for n in (8, 4, 3))])
def test_a_step_on_four_devices_is_the_step_on_one_also_where_four_does_not_divide_the_batch(n: int) -> None:
    one, four = model_on("jit"), model_on("sharded")
    x, y = images(n), labels(n)
    weight = np.linspace(0, 2, n)
    for _ in range(2):  # the second one starts from a state that came back from the devices
        np.testing.assert_allclose(
            four.train_on_batch(x, y, sample_weight=weight), one.train_on_batch(x, y, sample_weight=weight), rtol=1e-5
        )
        assert_close(values(four.module), values(one.module), 1e-5)
    np.testing.assert_allclose(four.test_on_batch(x, y), one.test_on_batch(x, y), rtol=1e-5)
    np.testing.assert_allclose(four.predict_on_batch(x), one.predict_on_batch(x), atol=1e-5)


def test_a_fit_on_four_devices_with_a_ragged_tail_and_validation_is_the_fit_on_one() -> None:
    one, four = model_on("jit"), model_on("sharded")
    validation = images(9, seed=5), labels(9)
    for model in (one, four):
        fit(model, images(14), labels(14), epochs=1, validation_data=validation)  # a tail of six
    for name, found in four.history.history.items():
        np.testing.assert_allclose(found, one.history.history[name], rtol=1e-4)
    assert_close(values(four.module), values(one.module), 1e-4)
    assert four.predict(images(), batch_size=7, verbose=0).shape == (20, 3)


def test_the_module_of_a_run_on_four_devices_is_on_one_device() -> None:
    model = model_on("sharded")
    fit(model, images(8), labels(8))
    kernel = model.module.head.kernel[...]
    assert len(kernel.sharding.device_set) == 1
    assert len(state_of(model).leaves[0].sharding.device_set) == 4
    model.module.eval()
    alone = nnx.jit(lambda module, x: module(x))(model.module, images(8))
    np.testing.assert_allclose(alone, model.predict(images(8), verbose=0), atol=1e-5)


@pytest.mark.slow
def test_on_four_devices_a_fit_compiles_each_step_once_and_a_second_fit_nothing() -> None:
    model = model_on("sharded")
    arguments: dict[str, Any] = {"x": images(14), "y": labels(14), "validation_data": (images(9), labels(9))}
    with counting_compilations() as found:
        fit(model, epochs=5, **arguments)
    assert len(found) == 3  # training with 8 and with 6 rows, evaluation
    with counting_compilations() as found:
        model.learning_rate = 0.01
        fit(model, epochs=2, **arguments)
    assert found == []


def brighter(key: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x + jax.random.uniform(key), y


@pytest.mark.slow
def test_eager_trains_the_same_and_compiles_nothing() -> None:
    # No BatchNorm: every operation of an eager step is compiled on its own, and a convolution's are slow to.
    jit, eager = (compiled(PlainNet(rngs=nnx.Rngs(0)), dispatch=kind, augment=brighter) for kind in ("jit", "eager"))
    traces: list[bool] = []

    class Looks(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            traces.append(isinstance(y, jax.core.Tracer))
            return super().compute_loss(module, x, y, key=key, train=train)

    for model in (jit, eager):
        fit(model, images(8), labels(8), epochs=2, validation_data=(images(8, seed=5), labels(8)))
    assert_close(jit.history.history, eager.history.history, 1e-5)
    assert_close(values(jit.module), values(eager.module), 1e-5)
    assert_close(jit.predict(images(8), verbose=0), eager.predict(images(8), verbose=0), 1e-5)

    looking = compiled(PlainNet(rngs=nnx.Rngs(0)), kind=Looks, dispatch="eager")
    looking.train_on_batch(images(8), labels(8))
    assert traces == [False]


def test_eager_raises_for_bad_labels_before_they_change_anything() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), dispatch="eager")
    before = values(model.module)
    for call in (fit, lambda model, x, y: model.test_on_batch(x, y)):
        with pytest.raises(LabelError, match="y - 1"):
            call(model, images(8), labels(8) + 1)
    assert_close(values(model.module), before, 0)


def test_auto_is_sharded_on_several_devices_and_jit_on_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Placement("auto").kind == "sharded"
    assert len(Placement("auto").devices) == jax.device_count() == 4
    devices = jax.devices()
    monkeypatch.setattr(jax, "devices", lambda *_: devices[:1])
    assert Placement("auto").kind == "jit"


@pytest.mark.parametrize(("kind", "devices"), [("jit", 1), ("eager", 1), ("sharded", 4)])
def test_a_batch_is_on_the_devices_of_its_step(kind: str, devices: int) -> None:
    placed = jax.device_put(Placement(kind).place({"x": images(8), "y": labels(8)}))  # "jit" leaves it to the step
    assert len(placed["x"].sharding.device_set) == devices
    assert placed["x"].addressable_shards[0].data.shape[0] == 8 // devices
    ragged = jax.device_put(Placement(kind).place(images(6)))
    assert ragged.addressable_shards[0].data.shape[0] == 6  # whole, on each of them


def places(model: Any) -> set[Any]:
    return {
        device
        for leaf in (*state_of(model).leaves, *jax.tree.leaves(nnx.state(model.module)))
        for device in leaf.devices()
    }


def in_a_context(device: Any, **arguments: Any) -> Any:
    with jax.default_device(device):
        return compiled(PlainNet(rngs=nnx.Rngs(0)), **arguments)


def by_the_configuration(device: Any, **arguments: Any) -> Any:
    before = jax.config.jax_default_device
    jax.config.update("jax_default_device", device)
    try:
        return compiled(PlainNet(rngs=nnx.Rngs(0)), **arguments)
    finally:
        jax.config.update("jax_default_device", before)


def committed(device: Any, **arguments: Any) -> Any:
    module = PlainNet(rngs=nnx.Rngs(0))
    nnx.update(module, jax.device_put(nnx.state(module), device))
    return compiled(module, **arguments)


CHOSEN = [(in_a_context, "auto"), (by_the_configuration, "jit"), (committed, "auto")]
OTHERS = [
    (in_a_context, "jit"),
    (in_a_context, "eager"),
    (by_the_configuration, "auto"),
    (by_the_configuration, "eager"),
    (committed, "jit"),
    (committed, "eager"),
]


@pytest.mark.representatives("in_a_context-auto")
@pytest.mark.parametrize(
    ("choose", "dispatch"), [*CHOSEN, *(pytest.param(*pair, marks=pytest.mark.slow) for pair in OTHERS)]
)
def test_a_run_stays_on_the_chosen_device(choose: Any, dispatch: str) -> None:
    device = jax.devices()[2]
    model = choose(device, dispatch=dispatch)
    fit(model, images(8), labels(8))
    model.predict(images(8), verbose=0)
    assert places(model) == {device}
    model.compile("sgd", learning_rate=0.1, dispatch=dispatch)  # the arrays are committed now
    assert places(model) == {device}


def test_data_on_other_devices_move_to_the_chosen_device() -> None:
    first, _, device, other = jax.devices()
    model = in_a_context(device)
    fit(model, images(8), labels(8), cache="device")
    fit(model, jax.device_put(images(8), other), jax.device_put(labels(8), first))
    fit(model, [(jax.device_put(images(8), other), jax.device_put(labels(8), first))])
    assert places(model) == {device}


def test_sharded_uses_all_devices_in_spite_of_a_chosen_device() -> None:
    model = in_a_context(jax.devices()[2], dispatch="sharded")
    assert len({device for leaf in state_of(model).leaves for device in leaf.devices()}) == 4
    fit(model, images(8), labels(8))
    model.compile("sgd", learning_rate=0.1)  # resfit's own commitment to the first device is no choice
    assert context_of(model).placement.kind == "sharded"


@pytest.mark.representatives("auto")
@pytest.mark.parametrize("dispatch", ["auto", "jit"])
def test_arrays_on_a_mesh_train_like_others(dispatch: str) -> None:
    """JAX's meshes are part of the types of arrays."""
    spread = jax.NamedSharding(jax.make_mesh((4,), ("x",)), jax.P())
    module = PlainNet(rngs=nnx.Rngs(0))
    nnx.update(module, jax.device_put(nnx.state(module), spread))
    model = compiled(module, dispatch=dispatch)
    assert np.isfinite(model.train_on_batch(images(8), labels(8))[0])
    nnx.update(model.module, jax.device_put(nnx.state(model.module), spread))  # assigned between steps
    model.train_on_batch(images(8), labels(8))
    assert model.predict(images(8), verbose=0).shape == (8, 3)


def test_arrays_committed_to_different_devices_raise() -> None:
    module = PlainNet(rngs=nnx.Rngs(0))
    for variable, device in zip(jax.tree.leaves(nnx.state(module), is_leaf=lambda x: isinstance(x, nnx.Variable)),
                                jax.devices(), strict=False):  # fmt: skip
        variable.set_raw_value(jax.device_put(variable.get_raw_value(), device))
    with pytest.raises(CompileError, match=r"committed to different devices.*Move the arrays"):
        resfit.Model(module)


def test_an_unknown_dispatch_or_batch_norm_raises() -> None:
    with pytest.raises(CompileError, match=r"Unknown dispatch 'tpu'.*'auto', 'jit', 'sharded', 'pmap', 'eager'"):
        Placement("tpu")
    with pytest.raises(CompileError, match=r"Unknown batch_norm 'local'.*'global', 'per_replica'"):
        Placement("sharded", batch_norm="local")


def test_the_host_runs_ahead_of_the_device_no_further_than_the_limit() -> None:
    waited: list[int] = []

    class Result:
        def __init__(self, step: int) -> None:
            self.step = step

        def block_until_ready(self) -> None:
            waited.append(self.step)

    throttle = Throttle(2)
    for step in range(5):
        throttle.add(Result(step))
    assert waited == [0, 1, 2]


def test_batch_norm_sees_the_batch_of_all_devices() -> None:
    # Two halves with far apart means: per-device statistics would give each of them mean zero.
    x = np.concatenate([images(4), images(4) + 10])
    one, four = model_on("jit", learning_rate=0.0), model_on("sharded", learning_rate=0.0)
    for model in (one, four):
        model.train_on_batch(x, labels(8))
    np.testing.assert_allclose(four.module.norm.var[...], one.module.norm.var[...], rtol=1e-5)


def test_a_step_reads_no_array_that_others_can_write_to() -> None:
    placement, mine = Placement("jit"), images(8)
    for given in (mine[:4], mine.astype(np.float64)):  # a view, and a dtype that JAX does not have
        placed = placement.place(given)
        assert not np.shares_memory(placed, given)
        assert placed.dtype == np.float32
    batch = next(resfit.data.as_batches([(mine, labels(8))], geometry=resfit.data.Geometry(8)).epoch(0))
    assert not np.shares_memory(batch.x, mine)  # a loader may write its next batch over this one
    assert placement.place(batch.x) is batch.x  # and no copy is made of a copy


def test_a_loader_that_reuses_one_array_for_all_batches_trains_the_same() -> None:
    def trained(reused: bool) -> Any:
        x, y = np.empty((8, 8, 8, 1), np.float32), np.empty(8, np.int32)

        def batches() -> Any:
            for i in range(12):
                if not reused:
                    yield images(8, seed=i), labels(8, seed=i)
                    continue
                x[:], y[:] = images(8, seed=i), labels(8, seed=i)
                yield x, y

        model = compiled(PlainNet(rngs=nnx.Rngs(0)))
        model.fit(batches, verbose=0)
        return values(model.module)

    assert_close(trained(True), trained(False), 0)
