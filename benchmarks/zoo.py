"""Networks of the zoo: evaluation of a batch compared with torchvision and timm, and compile time by depth.

Each contestant runs in its own process, and they take turns. resfit uses `Model.predict`, with XLA alone and with
`resfit[cpu]`; PyTorch is eager, channels last, in inference mode, with its default number of threads.
"""

import contextlib
import functools
import time

import numpy as np

from benchmarks import interleaved
from benchmarks.child import Child, ChildError, ask
from benchmarks.rows import Row, compared, counted, left_out, timed

NAMES = (  # three depths, and one of each kind
    "resnet18", "resnet50", "resnet152", "wide_resnet50_2", "resnext50_32x4d", "resnet50d", "seresnet50", "resnetv2_50",
    "resnetrs50", "resnetaa50", "resnet50_gn",
)  # fmt: skip
QUICK = ("resnet18", "seresnet50")
DEPTHS = ("resnet18", "resnet50", "resnet152", "resnet200")
BATCH, SIDE = 8, 224
XLA, ONEDNN = "xla", "onednn"
NOT_SLOWER = ">= 0.98"


def _images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(BATCH, SIDE, SIDE, 3)).astype(np.float32)


class Ours:
    """A network of resfit, with XLA or oneDNN."""

    def __init__(self, name: str, cpu_kernels: str) -> None:
        import resfit

        self._model = resfit.Model(resfit.create_model(name, num_classes=1000))
        self._model.compile("sgd", learning_rate=0.1, cpu_kernels=cpu_kernels)
        self._x = _images()

    def evaluate(self) -> None:
        """Evaluate one batch."""
        self._model.predict(self._x, batch_size=BATCH, verbose=0)


class Theirs:
    """The network of the same name in torchvision, or else timm."""

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
        """Evaluate one batch."""
        with self._inference_mode():
            self._net(self._x).numpy()


def _evaluation(net):
    import jax
    from flax import nnx

    graph, state = nnx.split(net)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x, train=False)), state


def seconds(name: str) -> dict[str, float]:
    """Return the seconds to build a network, and to trace and compile its evaluation and its gradient."""
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
    """Return milliseconds per batch, and seconds of compiling."""
    found = []
    for name in QUICK if quick else NAMES:
        found += _evaluating(name, 2 if quick else 4)
    for name in DEPTHS[:1] if quick else DEPTHS:
        for what, taken in ask("benchmarks.zoo:seconds", name=name).items():
            what = "building it" if what == "build" else f"tracing and compiling its {what}"
            found.append(counted("compile time by depth", f"{name}, {what}", taken, unit="s"))
    return found


def _evaluating(name: str, rounds: int) -> list[Row]:
    problem = f"evaluating {BATCH} images of {SIDE} x {SIDE}"
    original, missing = f"PyTorch {name}", []
    with contextlib.ExitStack() as stack:
        children = {kernels: stack.enter_context(Child()) for kernels in (XLA, ONEDNN, original)}
        for kernels in (XLA, ONEDNN):
            children[kernels].call("benchmarks.zoo:Ours", name=name, cpu_kernels=kernels)
        try:
            children[original].call("benchmarks.zoo:Theirs", name=name)
        except ChildError as error:
            missing = [left_out(problem, original, str(error).strip().splitlines()[-1])]
            del children[original]
        contestants = {who: functools.partial(_turn, child) for who, child in children.items()}
        by_round = interleaved.turns(contestants, rounds)
    times = {who: list(taken.values()) for who, taken in by_round.items()}
    found = [timed(problem, f"{name}, XLA alone", times[XLA]),
             compared(problem, f"{name}, XLA alone / resfit[cpu]", times[XLA], times[ONEDNN], NOT_SLOWER)]  # fmt: skip
    if original in times:
        found.append(compared(problem, f"{original} / resfit[cpu]", times[original], times[ONEDNN]))
    return found + missing


def _turn(child: Child) -> float:
    return child.call(".evaluate").wall * 1e3
