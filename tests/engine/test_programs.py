"""An equal program is compiled once in a process; compiler options reach XLA."""

from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from resfit.engine.programs import compiled as compile_program
from resfit.errors import CompileError
from tests.helpers import TinyNet, compiled, counting_compilations, fit, images, labels


def a_run(seed: int, **arguments: Any) -> Any:
    model = compiled(TinyNet(rngs=nnx.Rngs(seed)), seed=seed, **arguments)
    fit(model, epochs=2, validation_data=(images(9), labels(9)))
    model.predict(images(9), verbose=0)
    return model


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
        fit(model)
    assert len(found) > 0


def test_constants_tell_programs_apart() -> None:
    """The text of a program holds its constants whole, however large."""
    x = np.ones(5000, np.float32)
    for value in (1.0, 2.0):
        constant = np.full(5000, value, np.float32)
        constant[2500] = 7 * value
        program = compile_program(jax.jit(lambda x, c=constant: (x * c).sum()).lower(x), jax.devices()[:1])
        assert float(program.run(x)) == constant.sum()


def test_programs_that_call_python_are_never_taken_for_one_another() -> None:
    found = []
    for value in (1.0, 2.0):

        def call(x: Any, value: float = value) -> Any:
            return jax.pure_callback(lambda a: np.float32(value), jax.ShapeDtypeStruct((), np.float32), x)

        found.append(float(compile_program(jax.jit(call).lower(np.float32(0)), jax.devices()[:1]).run(np.float32(0))))
    assert found == [1.0, 2.0]


def test_compiler_options_reach_xla() -> None:
    model = compiled(compiler_options={"xla_cpu_enable_fast_math": True})
    fit(model)
    for options in ({"xla_nonsense": 1}, {"xla_cpu_enable_fast_math": "perhaps"}):
        model = compiled(compiler_options=options)
        with pytest.raises(CompileError, match=r"compiler_options=.*XLA says"):
            fit(model)
