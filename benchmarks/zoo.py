"""Networks of the zoo: evaluating a batch beside torchvision's or timm's own, and how long compiling takes by depth.

Each contestant is in a process of its own, and they take turns. Ours is compiled ahead, in channels last; PyTorch's is
eager, channels last, in inference mode, with as many threads as it takes by itself.
"""

import functools
import time

import numpy as np

from benchmarks import interleaved
from benchmarks.child import Child, ChildError, ask
from benchmarks.rows import Row, compared, counted, left_out, timed

NAMES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200", "wide_resnet50_2", "resnext50_32x4d",
    "resnet18d", "resnet50d", "resnet50t", "seresnet50", "resnetv2_50", "resnetrs50", "resnetaa50", "resnet50_gn",
)  # fmt: skip
QUICK = ("resnet18", "seresnet50")
DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnet200")
BATCH, SIDE = 8, 224


def _images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32)


class Ours:
    """A network of resfit's."""

    def __init__(self, name: str) -> None:
        import jax

        from resfit.nets import create_model

        self._evaluate, self._state = _evaluation(create_model(name, num_classes=1000))
        self._x = jax.device_put(_images())
        self._evaluate = self._evaluate.lower(self._state, self._x).compile()

    def evaluate(self) -> None:
        """One batch."""
        self._evaluate(self._state, self._x).block_until_ready()


class Theirs:
    """The network of that name in torchvision, or else timm."""

    def __init__(self, name: str) -> None:
        import torch
        import torchvision

        if hasattr(torchvision.models, name):
            net = getattr(torchvision.models, name)()
        else:
            import timm

            net = timm.create_model(name)
        self._inference_mode = torch.inference_mode
        self._net = net.eval().to(memory_format=torch.channels_last)
        self._x = torch.from_numpy(_images()).permute(0, 3, 1, 2)

    def evaluate(self) -> None:
        """One batch."""
        with self._inference_mode():
            self._net(self._x)


def _evaluation(net):
    import jax
    from flax import nnx

    graph, state = nnx.split(net)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x, train=False)), state


def seconds(name: str) -> dict[str, float]:
    """How long it takes to build a network, and to trace and compile its evaluation and its gradient."""
    import jax
    from flax import nnx

    from resfit.nets import create_model

    clocks = [time.perf_counter()]
    net = create_model(name, num_classes=1000)
    clocks.append(time.perf_counter())
    evaluate, state = _evaluation(net)
    x = jax.ShapeDtypeStruct((BATCH, SIDE, SIDE, 3), np.float32)
    evaluate.lower(state, x).compile()
    clocks.append(time.perf_counter())
    graph, params, rest = nnx.split(net, nnx.Param, ...)

    def loss(params, rest, x):
        copy = nnx.merge(graph, params, nnx.clone(rest))
        return (copy(x, train=True) ** 2).mean(), nnx.as_pure(nnx.state(copy, nnx.BatchStat))

    jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(params, nnx.as_pure(rest), x).compile()
    clocks.append(time.perf_counter())
    return dict(zip(("build", "evaluation", "gradient"), np.diff(clocks).tolist(), strict=True))


def rows(platform: str, quick: bool) -> list[Row]:
    """Milliseconds a batch, and seconds of compiling."""
    found = []
    for name in QUICK if quick else NAMES:
        found += _evaluating(name, 2 if quick else 5)
    for name in DEPTHS[:1] if quick else DEPTHS:
        for what, taken in ask("benchmarks.zoo:seconds", name=name).items():
            what = "building it" if what == "build" else f"tracing and compiling its {what}"
            found.append(counted("compile time by depth", f"{name}, {what}", taken, unit="s"))
    return found


def _evaluating(name: str, rounds: int) -> list[Row]:
    problem = f"evaluating {BATCH} images of {SIDE} x {SIDE}"
    with Child() as ours, Child() as theirs:
        ours.call("benchmarks.zoo:Ours", name=name)

        def turn(child: Child) -> float:
            return child.call(".evaluate").wall * 1e3

        contestants = {"ours": functools.partial(turn, ours)}
        try:
            theirs.call("benchmarks.zoo:Theirs", name=name)
        except ChildError as error:
            times = interleaved.turns(contestants, rounds)
            why = str(error).strip().splitlines()[-1]
            return [timed(problem, name, list(times["ours"].values())), left_out(problem, f"PyTorch {name}", why)]
        times = interleaved.turns(contestants | {"theirs": functools.partial(turn, theirs)}, rounds)
    mine, other = (list(times[who].values()) for who in ("ours", "theirs"))
    return [timed(problem, f"PyTorch {name}", other), compared(problem, f"{name} / PyTorch {name}", mine, other)]
