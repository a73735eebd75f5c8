"""Every optimizer and transformation of optax and optax.contrib trains, or its error names the form that does."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError
from tests.helpers import PlainNet, compiled, fit, images, labels
from tests.levels import only

SGD = optax.sgd(0.1)
KERNELS: Any = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)  # noqa: E731
LABELS = {"head": {"kernel": "a", "bias": "b"}}
LINEAR = resfit.schedules.Linear(0.1)
ALWAYS: Any = lambda *_: True  # noqa: E731

# Built from a learning rate, or from nothing.
BY_RATE = {
    "optax": """adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan add_decayed_weights amsgrad
    apply_every centralize fromage identity keep_params_nonnegative lamb lars lion nadam nadamw noisy_sgd
    normalize_by_update_norm novograd optimistic_adam optimistic_adam_v2 optimistic_gradient_descent polyak_sgd radam
    rmsprop rprop scale_by_adadelta scale_by_adam scale_by_adamax scale_by_adan scale_by_amsgrad scale_by_belief
    scale_by_distance_over_gradients scale_by_factored_rms scale_by_lbfgs scale_by_learning_rate scale_by_lion
    scale_by_novograd scale_by_optimistic_gradient scale_by_param_block_norm scale_by_param_block_rms scale_by_polyak
    scale_by_radam scale_by_rms scale_by_rprop scale_by_rss scale_by_sign scale_by_sm3 scale_by_stddev
    scale_by_trust_ratio scale_by_yogi sgd sign_sgd signum sm3 yogi zero_nans""",
    "optax.contrib": """acprop ademamix adopt cocob dadapt_adamw dog dowg galore madgrad momo momo_adam muon normalize
    prodigy reduce_on_plateau scale_by_acprop scale_by_ademamix scale_by_adopt scale_by_cocob scale_by_galore
    scale_by_madgrad scale_by_simplified_ademamix schedule_free_adamw schedule_free_sgd simplified_ademamix""",
}
# The others. Text is a part of the error.
OTHERS: dict[str, dict[str, tuple[Callable[..., Any], str | None]]] = {
    "optax": {
        "MultiSteps": (lambda of: of(SGD, 2), None),
        "adaptive_grad_clip": (lambda of: of(0.1), None),
        "add_noise": (lambda of: of(0.1, 0.5, jax.random.key(0)), None),
        "apply_if_finite": (lambda of: of(SGD, 3), None),
        "chain": (lambda of: of(SGD), None),
        "clip": (lambda of: of(1.0), None),
        "clip_by_block_rms": (lambda of: of(1.0), None),
        "clip_by_global_norm": (lambda of: of(1.0), None),
        "conditionally_mask": (lambda of: of(SGD, ALWAYS), None),
        "conditionally_transform": (lambda of: of(SGD, ALWAYS), None),
        "ema": (lambda of: of(0.9), None),
        "flatten": (lambda of: of(SGD), None),
        "freeze": (lambda of: optax.chain(SGD, of({"head": {"kernel": True, "bias": False}})), None),
        "inject_hyperparams": (lambda of: of(optax.sgd)(learning_rate=0.1), None),
        "inject_stateful_hyperparams": (lambda of: of(optax.sgd)(learning_rate=0.1), None),
        "lbfgs": (lambda of: of(), r"linesearch=None"),
        "lookahead": (lambda of: of(SGD, 2, 0.5), None),
        "masked": (lambda of: of(SGD, KERNELS), None),
        "measure_with_ema": (
            lambda of: optax.chain(SGD, optax.monitor({"n": of(optax.tree.norm, 0.9)})),
            "changed its structure",
        ),
        "monitor": (lambda of: optax.chain(SGD, of({"norm": optax.tree.norm})), "changed its structure"),
        "multi_transform": (lambda of: of({"a": SGD, "b": optax.adam(0.1)}, LABELS), None),
        "named_chain": (lambda of: of(("sgd", SGD)), None),
        "partition": (lambda of: of({"a": SGD, "b": optax.adam(0.1)}, LABELS), None),
        "per_example_global_norm_clip": (lambda of: optax.stateless(lambda g, _: of(g, 1.0)[0]), "each example"),
        "per_example_layer_norm_clip": (lambda of: optax.stateless(lambda g, _: of(g, g)[0]), "each example"),
        "scale": (lambda of: of(-0.1), None),
        "scale_by_backtracking_linesearch": (lambda of: optax.chain(SGD, of(5)), "line search"),
        "scale_by_schedule": (lambda of: of(lambda step: -0.1), None),
        "scale_by_zoom_linesearch": (lambda of: optax.chain(SGD, of(5)), "line search"),
        "selective_transform": (lambda of: of(SGD, freeze_mask={"head": {"kernel": True, "bias": False}}), None),
        "set_to_zero": (lambda of: optax.partition({"a": SGD, "b": of()}, LABELS), None),
        "skip_large_updates": (lambda of: optax.MultiSteps(SGD, 1, should_skip_update_fn=_never(of)), None),
        "skip_not_finite": (lambda of: optax.MultiSteps(SGD, 1, should_skip_update_fn=of), None),
        "snapshot": (lambda of: optax.chain(SGD, of("norm", optax.tree.norm)), None),
        "stateless": (lambda of: of(lambda g, _: jax.tree.map(jnp.negative, g)), None),
        "stateless_with_tree_map": (lambda of: of(lambda g, _: -0.1 * g), None),
        "trace": (lambda of: of(0.9), None),
        "with_extra_args_support": (lambda of: of(SGD), None),
    },
    "optax.contrib": {
        "differentially_private_aggregate": (lambda of: of(1.0, 0.1, key=jax.random.key(0)), "each example"),
        "dpsgd": (lambda of: of(0.1, 1.0, 0.1, 0), "each example"),
        "hutchinson_estimator_diag_hessian": (lambda of: of(), "function of the parameters"),
        "mechanize": (lambda of: of(SGD), None),
        "sam": (lambda of: of(SGD, SGD), None),
        "scale_by_muon": (lambda of: of(), r"optax\.contrib\.muon"),
        "schedule_free": (lambda of: of(SGD, 0.1), None),
        "sophia": (lambda of: of(0.1), "function of the parameters"),
        "split_real_and_imaginary": (lambda of: of(SGD), None),
    },
}
# Neither optimizers nor transformations, by the module that defines them or by name.
OTHER_MODULES = (
    "typing",
    "collections",
    "optax.losses",
    "optax.schedules._schedule",
    "optax.schedules._join",
    "optax.tree_utils",
    "optax.microbatching",
    "optax._src.numerics",
    "optax._src.linear_algebra",
    "optax._src.update",
    "optax._src.utils",
)
OTHER_NAMES = {"init_empty_state", "value_and_grad_from_state", "schedule_free_eval_params"}
MODULES = {"optax": optax, "optax.contrib": optax.contrib}


def _never(skip_large_updates: Any) -> Any:
    return lambda updates, step, params: skip_large_updates(updates, step, params, max_squared_norm=1e9)


def _table(module: str) -> dict[str, tuple[Callable[..., Any], str | None]]:
    def by_rate(of: Any) -> Any:
        return of(learning_rate=0.01) if "learning_rate" in inspect.signature(of).parameters else of()

    return dict.fromkeys(BY_RATE[module].split(), (by_rate, None)) | OTHERS[module]


ROWS = [(module, name) for module in MODULES for name in _table(module)]
QUICK = [("optax", "MultiSteps"), ("optax", "lookahead"), ("optax", "lbfgs"), ("optax.contrib", "sam")]


@pytest.mark.parametrize("module", MODULES)
def test_the_table_has_every_optimizer_of_the_installed_optax(module: str) -> None:
    found = {
        name
        for name, value in vars(MODULES[module]).items()
        if not name.startswith("_")
        and callable(value)
        and (not isinstance(value, type) or value is optax.MultiSteps)
        and not value.__module__.startswith(OTHER_MODULES)
    }
    assert found - OTHER_NAMES == set(_table(module))


@pytest.mark.filterwarnings("ignore")  # optax deprecates some of the rows
@pytest.mark.parametrize(("module", "name"), only(QUICK, ROWS, slow=ROWS[::4]))
def test_every_optimizer_trains_or_the_error_names_the_form_that_does(module: str, name: str) -> None:
    build, message = _table(module)[name]
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=build(getattr(MODULES[module], name)), learning_rate=None)
    before = model.get_weights()
    if message is not None:
        with pytest.raises(CompileError, match=message):
            fit(model, images(16), labels(16))
        return
    fit(model, images(16), labels(16), epochs=2)
    after = model.get_weights()
    assert all(np.isfinite(array).all() for array in after)
    assert any((new != old).any() for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (optax.adamw(0.1, mask=nnx.State({"head": {"kernel": True, "bias": False}})), "mask=lambda params"),
        (optax.adamw(0.1, mask={"head": {"kernel": True}}), "mask=lambda params"),
        (optax.partition({"a": SGD}, {"head": "a", "body": "a"}), "text as keys"),
        (optax.chain(optax.lookahead(SGD, 2, 0.5)), "outermost"),
        (optax.chain(optax.contrib.sam(SGD, SGD)), r"optax\.GradientTransformation\(inner\.init, inner\.update\)"),
        (optax.lookahead(resfit.optimizers.sam(SGD), 2, 0.5), r"inside, as in resfit\.optimizers\.sam\(optimizer\)"),
        (optax.flatten(optax.contrib.schedule_free_sgd(0.1)), r"optax\.flatten inside"),
    ],
    ids=["state as mask", "part of a mask", "labels", "inner lookahead", "inner sam", "sam in lookahead", "flattened"],
)
def test_an_optimizer_in_a_form_that_cannot_work_is_refused_with_a_remedy(optimizer: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        fit(compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None), images(8), labels(8))


def injected(rate: Any = 0.25) -> Any:
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "chain": lambda rate: optax.chain(optax.clip(1.0), injected(rate)),
    "named_chain": lambda rate: optax.named_chain(("clip", optax.clip(1.0)), ("sgd", injected(rate))),
    "MultiSteps": lambda rate: optax.MultiSteps(injected(rate), 2),
    "masked": lambda rate: optax.masked(injected(rate), KERNELS),
    "partition": lambda rate: optax.partition({"a": injected(rate), "b": optax.set_to_zero()}, LABELS),
    "apply_if_finite": lambda rate: optax.apply_if_finite(injected(rate), 3),
    "lookahead": lambda rate: optax.lookahead(injected(rate), 2, 0.5),
    "sam": lambda rate: optax.contrib.sam(injected(rate), SGD),
    "opaque sam": lambda rate: optax.contrib.sam(injected(rate), SGD, opaque_mode=True),
    "optimizers.sam": lambda rate: optax.chain(resfit.optimizers.sam(injected(rate)), optax.clip(1.0)),
    "free": lambda rate: optax.inject_hyperparams(optax.contrib.schedule_free_sgd)(learning_rate=rate),
}


@pytest.mark.parametrize("name", only(["MultiSteps", "lookahead"], WRAPPERS))
def test_the_learning_rate_inside_any_wrapper_is_read_and_set(name: str) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=WRAPPERS[name](0.25), learning_rate=None)
    assert model.learning_rate == 0.25
    model.learning_rate = 0.0
    before = model.get_weights()
    fit(model, images(8), labels(8), epochs=2)
    np.testing.assert_allclose(model.get_weights()[1], before[1], atol=1e-6)  # the kernel: the mask leaves out the bias
    assert model.learning_rate == 0.0


@pytest.mark.parametrize("name", only(["MultiSteps"], WRAPPERS))
def test_the_learning_rate_of_a_schedule_inside_any_wrapper_is_read_and_logged(name: str) -> None:
    optimizer = WRAPPERS[name](optax.linear_schedule(0.5, 0.0, 4))
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None)
    assert model.learning_rate == 0.5
    rates = fit(model, images(8), labels(8), epochs=6).history["learning_rate"]
    assert 0.5 >= rates[0] > rates[-1] == model.learning_rate
    with pytest.raises(CompileError, match=r"from a schedule.*compile\(learning_rate=\.\.\.\)"):
        model.learning_rate = 0.2


def test_a_named_schedule_drives_the_learning_rate_inside_a_wrapper_and_is_logged() -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optax.MultiSteps(injected(), 2), learning_rate=LINEAR)
    rates = fit(model, images(8), labels(8), epochs=3).history["learning_rate"]
    assert rates[0] > rates[-1]


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.partition({"a": injected(), "b": injected()}, LABELS),
        optax.sgd(0.1),
    ],
    ids=["two rates", "built in"],
)
def test_a_learning_rate_that_cannot_be_set_says_how_to_build_one_that_can(optimizer: Any) -> None:
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), optimizer=optimizer, learning_rate=None)
    with pytest.raises(CompileError, match=r"several.*optax\.inject_hyperparams"):
        model.learning_rate = 0.2
