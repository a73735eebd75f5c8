"""The training step of ResNet-20 on several devices: the work of each device, and their communication."""

import re
import time
from typing import Any

import resfit
from benchmarks import problems
from benchmarks.contestants import LEARNING_RATE
from benchmarks.programs import recorded

STEPS = 2


def environment(devices: int) -> dict[str, str]:
    """Return the environment of a process in which the CPU emulates `devices` devices."""
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}


def training_step() -> dict[str, Any]:
    """Return operations and temporary bytes of one device, collectives of the program, and seconds of a step."""
    problem = problems.problem("cpu", "resnet20", STEPS)
    x, y = problems.images(problem)
    model = resfit.Model(problems.network(problem))
    model.compile("sgd", learning_rate=LEARNING_RATE, cpu_kernels="xla")  # whose operations cost_analysis counts
    programs: list[Any] = []
    with recorded(programs):
        model.fit(x, y, batch_size=problem.batch, verbose=0)
    start = time.perf_counter()
    model.fit(x, y, batch_size=problem.batch, verbose=0)
    seconds = (time.perf_counter() - start) / STEPS
    step = max(programs, key=lambda program: program.memory_analysis().temp_size_in_bytes)
    text = step.as_text()
    return {
        "flops": step.cost_analysis()["flops"],
        "temporary_memory": step.memory_analysis().temp_size_in_bytes,
        "collectives": {kind: len(re.findall(rf"\b{kind}(?:-start)?\(", text)) for kind in COLLECTIVES},
        "largest_all_reduce": max(map(_elements, re.findall(r"= (\S.*?) all-reduce(?:-start)?\(", text)), default=0),
        "parameters": sum(leaf.size for leaf in _params(model)),
        "seconds": seconds,
    }


COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def _params(model: resfit.Model) -> list[Any]:
    import jax
    from flax import nnx

    return jax.tree.leaves(nnx.state(model.module, nnx.Param))


def _elements(shapes: str) -> int:
    """Return the number of elements of an HLO type: "(f32[3,3,16,16]{...}, f32[16]{0})" has 2320."""
    total = 0
    for dims in re.findall(r"\w+\[([\d,]*)\]", shapes):
        size = 1
        for dim in filter(None, dims.split(",")):
            size *= int(dim)
        total += size
    return total
