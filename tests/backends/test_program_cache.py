"""An equal program is compiled once in a process; compiler options reach XLA."""

import dataclasses
import gc
import hashlib
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import resfit
from resfit.backends import program_cache as programs
from resfit.backends.program_cache import Program, Programs, text_digest
from resfit.backends.program_cache import compiled as compile_program
from resfit.errors import CompileError, ResumeError
from resfit.trainer.devices.placement import CompiledStep
from tests.helpers import PlainNet, TinyNet, compiled, counting_compilations, fit, images, labels


def a_run(seed: int, **arguments: Any) -> Any:
    model = compiled(TinyNet(rngs=nnx.Rngs(seed)), seed=seed, **arguments)
    fit(model, images(16), labels(16), epochs=2, validation_data=(images(9), labels(9)))
    model.predict(images(9), verbose=0)
    return model


@pytest.mark.representatives("arguments1")
@pytest.mark.parametrize(
    "arguments",
    [{}, {"metrics": ["accuracy", "top_2_accuracy"]}, {"optimizer": "adamw", "learning_rate": 1e-3}, {"ema": 0.9}],
)
def test_a_second_model_of_the_same_spec_compiles_nothing(arguments: dict[str, Any]) -> None:
    a_run(0, **arguments)
    with counting_compilations(known_programs=True) as found:
        a_run(1, **arguments)
    assert len(found) == 0


def test_another_network_is_another_program() -> None:
    a_run(0)
    with counting_compilations(known_programs=True) as found:
        model = compiled(TinyNet(classes=5, rngs=nnx.Rngs(0)))
        fit(model, images(8), labels(8))
    assert len(found) > 0


def test_programs_with_different_constants_are_different() -> None:
    """The text of a program holds its whole constants, however large."""
    x = np.ones(5000, np.float32)
    for value in (1.0, 2.0):
        constant = np.full(5000, value, np.float32)
        constant[2500] = 7 * value
        program = compile_program(jax.jit(lambda x, c=constant: (x * c).sum()).lower(x), jax.devices()[:1])
        assert float(program.run(x)) == constant.sum()


def test_programs_that_call_python_are_never_shared() -> None:
    found = []
    for value in (1.0, 2.0):

        def call(x: Any, value: float = value) -> Any:
            return jax.pure_callback(lambda a: np.float32(value), jax.ShapeDtypeStruct((), np.float32), x)

        found.append(float(compile_program(jax.jit(call).lower(np.float32(0)), jax.devices()[:1]).run(np.float32(0))))
    assert found == [1.0, 2.0]


def test_compiler_options_reach_xla() -> None:
    model = compiled(compiler_options={"xla_cpu_enable_fast_math": True})
    fit(model, images(8), labels(8))
    for options in ({"xla_nonsense": 1}, {"xla_cpu_enable_fast_math": "perhaps"}):
        model = compiled(compiler_options=options)
        with pytest.raises(CompileError, match=r"compiler_options=.*XLA raised"):
            fit(model)


class Reader(nnx.Module):
    """A dense layer that reads one of two inputs."""

    def __init__(self, which: str) -> None:
        self.which = which
        self.dense = nnx.Linear(2, 1, use_bias=False, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))

    def __call__(self, x: Any) -> jax.Array:
        return self.dense(x[self.which])


def two_of(first: float, second: float, columns: int) -> dict[str, np.ndarray]:
    return {name: np.full((4, columns), value, np.float32) for name, value in (("a", first), ("b", second))}


def reading(which: str, label: str, **arguments: Any) -> Any:
    """Return a model of a network that reads one of two inputs and is trained on one of two labels."""
    return compiled(Reader(which), loss=lambda o, y: (o[:, 0] - y[label][:, 0]) ** 2, metrics=None, **arguments)


@pytest.mark.representatives("jit")
@pytest.mark.parametrize("dispatch", ["jit", "sharded"])
def test_models_that_read_other_inputs_or_labels_do_not_share_programs(dispatch: str) -> None:
    x, y = two_of(1.0, 10.0, 2), two_of(1.0, 7.0, 1)
    for which, output in (("a", 2.0), ("b", 20.0)):
        for label, target in (("a", 1.0), ("b", 7.0)):
            model = reading(which, label, dispatch=dispatch)
            assert (model.predict(x, verbose=0) == output).all()
            assert model.evaluate(x, y, verbose=0) == pytest.approx((output - target) ** 2)
            assert fit(model, x, y).history["loss"] == pytest.approx([(output - target) ** 2])


def test_a_network_of_other_widths_under_an_optimizer_without_state_is_another_program() -> None:
    for classes in (3, 5):
        fit(compiled(PlainNet(classes, rngs=nnx.Rngs(0)), optimizer=optax.sgd), images(8), labels(8))


def run(folder: Path, which: str, label: str, *others: Any, resume: bool = False) -> None:
    x, y = two_of(1.0, 2.0, 2), two_of(1.0, 7.0, 1)
    keep = [resfit.callbacks.Checkpoint(folder), *others]
    fit(reading(which, label), x, y, epochs=2, callbacks=keep, resume=resume)


def cut_run(folder: Path) -> None:
    """Leave a run that read the inputs and labels "a" and fails after its first epoch."""

    def fail(epoch: int, logs: Any) -> None:
        if epoch == 1:
            raise RuntimeError("the machine fails")

    with pytest.raises(RuntimeError, match="the machine fails"):
        run(folder, "a", "a", resfit.callbacks.LambdaCallback(on_epoch_begin=fail))


def test_a_run_that_reads_another_input_or_label_is_not_resumed(tmp_path: Path) -> None:
    cut_run(tmp_path / "run")
    for which, label in (("b", "a"), ("a", "b")):
        with pytest.raises(ResumeError, match="inputs or labels that are read"):
            run(tmp_path / "run", which, label, resume=True)
    run(tmp_path / "run", "a", "a", resume=True)


def test_a_checkpoint_with_the_digest_of_the_text_alone_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = CompiledStep.described
    with monkeypatch.context() as early:
        early.setattr(CompiledStep, "described", lambda self, *batch: tuple(map(text_digest, described(self, *batch))))
        cut_run(tmp_path / "run")
    run(tmp_path / "run", "a", "a", resume=True)


def test_the_digest_of_an_early_checkpoint_is_that_of_the_text() -> None:
    x = np.ones(2, np.float32)
    lowered = jax.jit(lambda x: 2 * x["b"]).lower({"a": x, "b": x})
    digest = compile_program(lowered, jax.devices()[:1]).digest
    assert text_digest(digest) == hashlib.sha256(lowered.as_text().encode()).hexdigest() != digest


# --- programs of random trees -----------------------------------------------------------------------------------------

Compile = Callable[[Any], Callable[..., Any]]
TREES: list[Callable[[list[Any]], Any]] = [
    tuple,
    lambda leaves: {f"{i}": leaf for i, leaf in enumerate(leaves)},
    lambda leaves: {"x": leaves[0], "y": (None, leaves[1:])},
]


class Small(NamedTuple):
    """A program that takes a tree of arrays and returns some of them doubled, and a constant."""

    shapes: tuple[tuple[int, ...], ...]
    inputs: Callable[[list[Any]], Any]
    reads: tuple[int, ...]
    outputs: Callable[[list[Any]], Any]
    weak: bool  # whether the constant takes the dtype of what it is combined with

    def __call__(self, tree: Any) -> Any:
        leaves = jax.tree.leaves(tree)
        constant = jnp.asarray(2.0) if self.weak else jnp.float32(2)
        return self.outputs([constant, *(jnp.multiply(2, leaves[i]) for i in self.reads)])

    def is_right_by(self, compile_: Compile) -> bool:
        """Return True if the program of `compile_` returns the results of the function."""
        tree = self.inputs([np.full(shape, 3.0**i, np.float32) for i, shape in enumerate(self.shapes)])
        try:
            found = compile_(jax.jit(lambda tree: self(tree)).lower(tree))(tree)
        except TypeError:  # it was compiled for other arguments
            return False
        return described(found) == described(self(tree))


def described(tree: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [(leaf.dtype, leaf.weak_type, np.asarray(leaf).tolist()) for leaf in leaves]


def cached(lowered: Any) -> Callable[..., Any]:
    return compile_program(lowered, jax.devices()[:1]).run


def by_text() -> Compile:
    """Return a cache whose key is too small: the text and the trees."""
    known: dict[Any, Any] = {}

    def find(lowered: Any) -> Callable[..., Any]:
        key = lowered.as_text(), lowered.in_tree, lowered.out_tree
        if key not in known:
            known[key] = lowered.compile()
        return known[key]

    return find


SHAPES = st.lists(st.sampled_from([(), (2,)]), min_size=3, max_size=3).map(tuple)
READS = st.lists(st.integers(0, 2), min_size=1, max_size=2).map(tuple)


@settings(max_examples=20)
@given(SHAPES, READS, st.sampled_from(TREES), st.data())
def test_a_program_of_the_cache_does_what_its_function_does(
    shapes: Any, reads: Any, tree: Callable[[list[Any]], Any], data: st.DataObject
) -> None:
    """Two programs whose differences the text shows only in part."""
    first = Small(shapes, tree, reads, TREES[0], False)
    others = {"shapes": SHAPES, "reads": READS, "inputs": st.sampled_from(TREES), "outputs": st.sampled_from(TREES)}
    changed = data.draw(st.fixed_dictionaries({}, optional=others | {"weak": st.booleans()}))
    assert first.is_right_by(cached)
    assert first._replace(**changed).is_right_by(cached)


@pytest.mark.parametrize("changed", [{"reads": (1,)}, {"shapes": ((), (2,), ())}, {"weak": True}])
def test_a_key_of_text_and_trees_only_confuses_programs(changed: dict[str, Any]) -> None:
    first = Small(((), (), ()), TREES[0], (0,), TREES[0], False)
    cache = by_text()
    assert first.is_right_by(cache)
    assert not first._replace(**changed).is_right_by(cache)
    assert first.is_right_by(cached)
    assert first._replace(**changed).is_right_by(cached)


# --- what stays in memory ---------------------------------------------------------------------------------------------


class Teacher:
    """Arrays that a user's functions close over."""

    def __init__(self) -> None:
        self.weights = np.ones(3, np.float32)

    def __call__(self) -> jax.Array:
        return jnp.asarray(self.weights).sum()


def distance(teacher: Teacher) -> Callable[[Any, Any], jax.Array]:
    def distance(outputs: Any, y: Any) -> jax.Array:
        return (outputs[:, 0] - teacher()) ** 2

    return distance


def own_step(teacher: Teacher) -> type[resfit.Model]:
    class Distilled(resfit.Model):
        def compute_loss(self, module: Any, x: Any, y: Any, *, key: jax.Array, train: bool) -> Any:
            outputs = module(x)
            return distance(teacher)(outputs, y), outputs

    return Distilled


@dataclasses.dataclass
class Scaled:
    """A result of a user's type, which holds an object that is not an array."""

    array: Any
    teacher: Teacher


jax.tree_util.register_dataclass(Scaled, ["array"], ["teacher"])


class Wrapping(PlainNet):
    def __init__(self, teacher: Teacher) -> None:
        super().__init__(rngs=nnx.Rngs(0))
        self.teacher = nnx.static(teacher)

    def __call__(self, x: jax.Array) -> Any:
        return Scaled(super().__call__(x), self.teacher)


USES: dict[str, Callable[[Teacher], dict[str, Any]]] = {
    "loss": lambda teacher: {"loss": distance(teacher)},
    "metric": lambda teacher: {"metrics": [distance(teacher)]},
    "augmentation": lambda teacher: {"augment": lambda key, x, y: (x + teacher(), y)},
    "preprocessing": lambda teacher: {"preprocess": lambda x: x + teacher()},
    "optimizer": lambda teacher: {
        "optimizer": optax.stateless(lambda updates, _: jax.tree.map(lambda leaf: leaf * teacher(), updates)),
        "learning_rate": None,
    },
    "schedule": lambda teacher: {"optimizer": optax.sgd, "learning_rate": lambda step: 0.1 * teacher()},
    "step": lambda teacher: {"kind": own_step(teacher)},
}


@pytest.mark.representatives("loss")
@pytest.mark.parametrize(
    "use",
    [pytest.param(use, marks=[pytest.mark.slow] * (use in ("metric", "preprocessing", "schedule"))) for use in USES],
)
def test_closures_of_a_function_are_freed_with_its_model(use: str) -> None:
    teacher = Teacher()
    model = compiled(PlainNet(rngs=nnx.Rngs(0)), **USES[use](teacher))
    fit(model, images(8), labels(8), validation_data=(images(8), labels(8)))
    alive = weakref.ref(teacher)
    del teacher, model
    gc.collect()
    assert alive() is None


@pytest.mark.slow
def test_a_program_that_returns_objects_of_the_user_is_held_only_by_its_models() -> None:
    programs.PROGRAMS.clear()
    model = resfit.Model(Wrapping(Teacher()))
    model.predict(images(9), verbose=0)
    assert (len(programs.PROGRAMS), programs.PROGRAMS.size) == (1, 0)
    del model
    gc.collect()
    assert len(programs.PROGRAMS) == 0


def a_program(name: str, size: int) -> Program:
    return Program(lambda: name, name, size)


def test_the_cache_holds_the_last_programs_up_to_its_limit_and_knows_those_in_use() -> None:
    cache = Programs(limit=10)
    used = a_program("used", 8)
    cache.add("used", used, hold=True)
    for name in "abc":
        cache.add(name, a_program(name, 4), hold=True)
    assert cache.find("a") is None
    assert [cache.find(name).digest for name in "bc"] == ["b", "c"]
    assert cache.find("used") is used  # not held by the cache any more, but by this test
    assert (len(cache), cache.size) == (3, 8)
    del used
    assert cache.find("used") is None
    assert cache.find("b") is not None  # which is the last used one now
    cache.add("d", a_program("d", 4), hold=True)
    assert (cache.find("b") is not None, cache.find("c")) == (True, None)
    cache.add("large", a_program("large", 11), hold=True)
    cache.add("not held", a_program("not held", 1), hold=False)
    assert (len(cache), cache.size) == (0, 0)


def test_a_large_constant_counts_in_the_size_of_a_program() -> None:
    sizes = []
    for count in (1, 100_000):
        constant = np.random.default_rng(0).normal(size=count).astype(np.float32)
        lowered = jax.jit(lambda x, constant=constant: (x * constant).sum()).lower(np.float32(1))
        sizes.append(compile_program(lowered, jax.devices()[:1]).size)
    assert sizes[1] - sizes[0] > 400_000
