"""Startup time: `import resfit`, and a script up to the end of its first training step.

    python -m benchmarks.startup                        # imports, then both networks
    python -m benchmarks.startup --net tiny --rounds 15

Every number comes from a fresh process, and the contestants take turns. The time of a script runs from before the
interpreter starts until the loss of the first step is on the host: "cold" with empty compilation caches, "warm" with
the caches of an earlier run. All scripts use JAX's persistent compilation cache, the hand-written ones with JAX's
settings, resfit with its own. Bytecode is compiled beforehand for all of them, as by an installer.

The hand-written scripts put the state into one flat, donated tuple and jit one step, without metrics, callbacks or
checks. "plain flax" builds the network from flax layers; "resfit.nets" builds it with resfit and trains it by hand,
which shows the cost of the trainer alone.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.rows import Row, compared, timed

ROOT = Path(__file__).parents[1]
SETUPS = {
    # name: (blocks of each stage, widths, image side, channels, batch)
    "tiny": ((1,), (8,), 8, 1, 32),
    "resnet20": ((3, 3, 3), (16, 32, 64), 32, 3, 128),
}
IMPORTS = {"jax, flax.nnx, optax": "import jax, flax.nnx, optax", "resfit": "import resfit"}


# --- the scripts ------------------------------------------------------------------------------------------------------


def batch_of(name: str):
    """Return one batch of images and labels."""
    import numpy as np

    _, _, side, channels, size = SETUPS[name]
    random = np.random.default_rng(0)
    return random.normal(size=(size, side, side, channels)).astype(np.float32), random.integers(0, 10, size, np.int32)


def plain_flax(name: str) -> None:
    """Train a network of flax layers with a hand-written step."""
    import jax.numpy as jnp
    from flax import nnx

    depths, widths, _, channels, _ = SETUPS[name]
    kaiming = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")

    def conv(n, m, rngs, strides=1):
        return nnx.Conv(n, m, (3, 3), strides=strides, padding=1, use_bias=False, kernel_init=kaiming, rngs=rngs)

    class Block(nnx.Module):
        def __init__(self, n, m, strides, rngs):
            self.strides, self.more = strides, m - n
            self.conv1, self.norm1 = conv(n, m, rngs, strides), nnx.BatchNorm(m, momentum=0.9, rngs=rngs)
            self.conv2, self.norm2 = conv(m, m, rngs), nnx.BatchNorm(m, momentum=0.9, rngs=rngs)

        def __call__(self, x):
            y = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
            x = x[:, :: self.strides, :: self.strides]
            return nnx.relu(y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, self.more))))

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.norm = conv(channels, widths[0], rngs), nnx.BatchNorm(widths[0], momentum=0.9, rngs=rngs)
            n, blocks = widths[0], []
            for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
                for i in range(depth):
                    blocks.append(Block(n, width, 2 if stage and i == 0 else 1, rngs))
                    n = width
            self.blocks = nnx.List(blocks)
            self.head = nnx.Linear(n, 10, rngs=rngs)

        def __call__(self, x):
            x = nnx.relu(self.norm(self.conv(x)))
            for block in self.blocks:
                x = block(x)
            return self.head(jnp.mean(x, (1, 2)))

    by_hand(Net(nnx.Rngs(0)), *batch_of(name))


def resfits_nets(name: str) -> None:
    """Train a network of resfit with a hand-written step."""
    from flax import nnx

    from resfit import nets

    net = nets.ResNet(spec(nets, name), rngs=nnx.Rngs(0))
    by_hand(nnx.view(net, use_running_average=False), *batch_of(name))


def by_hand(module, x, y) -> None:
    """Run one step of the fastest loop that we know."""
    import jax
    import optax
    from flax import nnx

    graph, params, rest = nnx.split(module, nnx.Param, ...)
    param_leaves, param_tree = jax.tree.flatten(nnx.as_pure(params))
    rest_leaves, rest_tree = jax.tree.flatten(nnx.as_pure(rest))
    tx = optax.sgd(0.1, momentum=0.9, nesterov=True)
    opt_leaves, opt_tree = jax.tree.flatten(tx.init(param_leaves))
    n, m = len(param_leaves), len(rest_leaves)

    def step(leaves, x, y):
        params, rest, opt = list(leaves[:n]), leaves[n : n + m], jax.tree.unflatten(opt_tree, leaves[n + m :])

        def loss_of(params):
            net = nnx.merge(graph, jax.tree.unflatten(param_tree, params), jax.tree.unflatten(rest_tree, rest))
            loss = optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()
            return loss, jax.tree.leaves(nnx.as_pure(nnx.state(net, nnx.Not(nnx.Param))))

        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        return (*params, *rest, *jax.tree.leaves(opt)), loss

    step = jax.jit(step, donate_argnums=0)
    _, loss = step((*param_leaves, *rest_leaves, *opt_leaves), jax.device_put(x), jax.device_put(y))
    float(loss)
    report()


def resfits_fit(name: str) -> None:
    """Train through the public API of resfit."""
    from flax import nnx

    import resfit

    class Report(resfit.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None) -> None:
            float(logs["loss"])
            report()

    model = resfit.Model(resfit.nets.ResNet(spec(resfit.nets, name), rngs=nnx.Rngs(0)))
    model.compile("sgd", learning_rate=0.1)
    x, y = batch_of(name)
    model.fit(x, y, batch_size=len(x), verbose=2, callbacks=[Report()])


def spec(nets, name: str):
    """Return the spec of the network of `plain_flax`."""
    depths, widths, _, channels, _ = SETUPS[name]
    return nets.ResNetSpec(
        depths=depths, widths=widths, stem="cifar", shortcut="A", num_classes=10, in_channels=channels
    )


def report() -> None:
    """Report the end of the first step to the parent, and exit."""
    print(f"\n{time.time() - float(os.environ['STARTED'])} {time.process_time()}", flush=True)
    os._exit(0)


SCRIPTS = {"plain flax": plain_flax, "resfit.nets": resfits_nets, "fit": resfits_fit}


# --- measuring --------------------------------------------------------------------------------------------------------


def run(arguments: list[str], folder: Path, caches: Path) -> tuple[float, float]:
    """Return the wall and processor seconds of a fresh interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {
        "PYTHONPYCACHEPREFIX": str(folder / "bytecode"),
        "XDG_CACHE_HOME": str(caches),
        "STARTED": str(time.time()),
    }
    if "fit" not in arguments:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(caches)
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    wall, processor = done.stdout.splitlines()[-1].split()
    return float(wall), float(processor)


@contextlib.contextmanager
def caches(folder: Path, kind: str, contestant: str) -> Iterator[Path]:
    """Return a folder for compiled programs: the one of the contestant, or an empty one."""
    if kind == "warm":
        yield folder / contestant.replace(" ", "-")
    else:
        with tempfile.TemporaryDirectory(dir=folder) as empty:
            yield Path(empty)


def rows(platform: str, quick: bool) -> list[Row]:
    """Return the milliseconds of imports, and of scripts to the end of their first step."""
    rounds = 2 if quick else 4
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        taken = measured(_imports(), rounds, folder, "warm")
        by_hand, ours = (_wall(taken[contestant]) for contestant in IMPORTS)
        found.append(timed("import", "import " + next(iter(IMPORTS)), by_hand))
        found.append(compared("import", "import resfit / " + next(iter(IMPORTS)), ours, by_hand, "<= 1.1"))
        for net in ("tiny",) if quick else SETUPS:
            for kind in ("cold", "warm"):
                taken = measured(_scripts(net), rounds, folder, kind)
                title = f"first step, {net}, {kind} cache"
                by_hand, half, ours = (_wall(taken[script]) for script in SCRIPTS)
                found.append(timed(title, "hand-written script", by_hand))
                found.append(compared(title, "script with fit / hand-written script", ours, by_hand, "<= 1.1"))
                found.append(compared(title, "script with fit / hand-written with resfit.nets", ours, half))
    return found


def _wall(taken: list[tuple[float, float]]) -> list[float]:
    return [wall * 1e3 for wall, _ in taken]


def _imports() -> dict[str, list[str]]:
    tell = "; import os, time; print(time.time() - float(os.environ['STARTED']), time.process_time())"
    return {name: ["-c", program + tell] for name, program in IMPORTS.items()}


def _scripts(net: str) -> dict[str, list[str]]:
    return {script: ["-m", "benchmarks.startup", "--net", net, "--script", script] for script in SCRIPTS}


def measured(
    contestants: dict[str, list[str]], rounds: int, folder: Path, kind: str
) -> dict[str, list[tuple[float, float]]]:
    """Return the wall and processor seconds of each contestant, by round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    for round_ in range(rounds + 1):
        for name in list(contestants)[:: -1 if round_ % 2 else 1]:
            with caches(folder, kind, name) as compiled:
                found = run(contestants[name], folder, compiled)
            if round_:  # the first round compiles bytecode, and fills warm caches
                times[name].append(found)
    return times


def measure(title: str, contestants: dict[str, list[str]], rounds: int, folder: Path, kind: str) -> None:
    """Print the medians of each contestant, and the ratios of the last to the others."""
    times = measured(contestants, rounds, folder, kind)
    *others, last = times
    for clock, i in (("wall", 0), ("processor", 1)):
        medians = {name: statistics.median(found[i] for found in times[name]) for name in times}
        listed = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in medians.items())
        shares = []
        for name in others:
            pairs = statistics.median(a[i] / b[i] for a, b in zip(times[last], times[name], strict=True))
            shares.append(f"{last} / {name} {medians[last] / medians[name]:.3f} of medians, {pairs:.3f} of pairs")
        print(f"{title:14} {clock:9} {listed}; {'; '.join(shares)}", flush=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=["none", *SETUPS], action="append", help="one of these only; may be repeated")
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds of each, interleaved")
    parser.add_argument("--script", choices=list(SCRIPTS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    nets = arguments.net or list(SETUPS)
    if arguments.script:
        SCRIPTS[arguments.script](nets[0])
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measure("import", _imports(), arguments.rounds, folder, "warm")
        for net in nets:
            for kind in ("cold", "warm") if net != "none" else ():
                measure(f"{net} {kind}", _scripts(net), arguments.rounds, folder, kind)


if __name__ == "__main__":
    main()
