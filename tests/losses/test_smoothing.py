"""Label smoothing as a function of the training step."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import resfit
from resfit.losses import BinaryCrossEntropy, CrossEntropy
from resfit.trainer.devices.placement import Placement
from tests.faults import runs
from tests.helpers import PlainNet, TinyNet, assert_close, assert_same, compiled, fit, images, labels, state_of

SCHEDULE = optax.linear_schedule(0.4, 0.0, 4)
KINDS: dict[str, type[Any]] = {"cross-entropy": CrossEntropy, "binary": BinaryCrossEntropy}


@pytest.mark.representatives("cross-entropy")
@pytest.mark.parametrize("kind", KINDS)
def test_each_step_has_its_label_smoothing_without_another_compilation(kind: str) -> None:
    made, compilations = KINDS[kind], []

    class Counts(resfit.callbacks.Callback):
        def on_compile_begin(self, what: str) -> None:
            compilations.append(what)

    model = compiled(PlainNet(rngs=nnx.Rngs(0)), loss=made(label_smoothing=SCHEDULE))
    other = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optax.sgd(0.1, 0.9, nesterov=True), learning_rate=None)
    fit(model, images(8), labels(8), epochs=6, shuffle=False, callbacks=[Counts()])
    assert compilations == ["train"]

    # The same by hand, with a loss of a constant smoothing for each step.
    graph, params = nnx.split(PlainNet(rngs=nnx.Rngs(0)))
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
    state = optimizer.init(params)
    for step in range(6):
        loss = made(label_smoothing=float(SCHEDULE(step)))
        gradients = nnx.grad(lambda net, loss=loss: loss(net(images(8)), jnp.asarray(labels(8))).mean())(
            nnx.merge(graph, params)
        )
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    other.set_weights([params["head"]["bias"].get_value(), params["head"]["kernel"].get_value()])
    assert_close(model.get_weights(), other.get_weights(), 2e-5)


def test_evaluation_and_a_plain_call_have_no_smoothing() -> None:
    loss, plain = CrossEntropy(label_smoothing=SCHEDULE), CrossEntropy()
    model, other = (compiled(PlainNet(rngs=nnx.Rngs(0)), loss=one) for one in (loss, plain))
    assert model.evaluate(images(), labels(), verbose=0) == other.evaluate(images(), labels(), verbose=0)
    logits = np.float32([[2, 1, 0]])
    assert_same(loss(logits, np.int32([1])), plain(logits, np.int32([1])))
    first = fit(model, images(8), labels(8), validation_data=(images(8), labels(8)))
    assert first.history["loss"][0] != pytest.approx(fit(other, images(8), labels(8)).history["loss"][0], rel=1e-3)


WITH: dict[str, dict[str, Any]] = {
    "slices of a batch": {"gradient_accumulation_steps": 2},
    "four devices": {"dispatch": "sharded"},
    "pmap": {"dispatch": "pmap"},
    "no compilation": {"dispatch": "eager"},
    "steps per execution": {"steps_per_execution": 3},
    "sam": {"optimizer": resfit.optimizers.sam(resfit.optimizers.sgd(0.1), rho=1e-6), "learning_rate": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("how", WITH)
def test_every_way_to_take_steps_trains_alike(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placement, "loops", property(lambda self: how == "steps per execution"))
    module = PlainNet if how == "slices of a batch" else TinyNet
    one, other = (
        compiled(module(rngs=nnx.Rngs(0)), loss=CrossEntropy(label_smoothing=SCHEDULE), **more)
        for more in (WITH[how], {})
    )
    for model in (one, other):
        fit(model, epochs=2)
    assert_close(one.get_weights(), other.get_weights(), 1e-4)


def test_a_resumed_run_ends_at_the_same_bits(tmp_path: Path) -> None:
    def go(folder: str, *stops: Any) -> Any:
        model = compiled(PlainNet(rngs=nnx.Rngs(0)), loss=CrossEntropy(label_smoothing=SCHEDULE))
        fit(model, epochs=2, callbacks=[resfit.callbacks.Checkpoint(tmp_path / folder), *stops], resume=True)
        return model

    with runs.stopped(SystemExit):
        go("a", runs.Stops(2, runs.terminate))
    assert_same(state_of(go("a")).leaves, state_of(go("b")).leaves)


def test_a_function_that_leaves_the_interval_in_a_later_step_raises_before_training() -> None:
    loss: Any = CrossEntropy(label_smoothing=lambda step: 0.3 * step)  # 1.2 in the fifth step
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), loss=loss)
    fit(model, batch_size=10, epochs=2)
    with pytest.raises(resfit.errors.CompileError, match=r"is 1\.2 at step 4, and fit takes the steps 4 to 5"):
        fit(model, batch_size=10, epochs=1)
    first = compiled(PlainNet(rngs=nnx.Rngs(0)), loss=loss)
    with pytest.raises(resfit.errors.CompileError, match=r"at step 4, and fit takes the steps 0 to 5"):
        fit(first, batch_size=10, epochs=3)
    assert first.control.compiled.context.state.steps() == 0
