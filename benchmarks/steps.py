"""What `fit` costs over the best hand-written loop: the same network, optimizer and batches, interleaved in one run.

    python -m benchmarks.steps                         # both networks
    python -m benchmarks.steps --net tiny --rounds 15

The hand-written loop is the fastest known to us: the state as one flat tuple of arrays, one donated `jax.jit` step, the
loss read once per epoch. `fit` runs through the public API with its defaults: metrics, History, a progress line.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import resfit
from benchmarks import interleaved

TINY = resfit.nets.ResNetSpec(block="basic", depths=(1,), widths=(8,), stem="cifar", num_classes=10, in_channels=1)
NETS = {
    # name: (network, image side, channels, batch, steps per round)
    "tiny": (lambda: resfit.nets.ResNet(TINY, rngs=nnx.Rngs(0)), 8, 1, 32, 200),
    "resnet20": (lambda: resfit.create_model("resnet20", num_classes=10, rngs=0), 32, 3, 128, 6),
}


def hand_written(module: nnx.Module, x: np.ndarray, y: np.ndarray, batch: int):
    """An epoch function: shuffles, steps, and reads the mean loss at the end."""
    module = nnx.view(nnx.clone(module), use_running_average=False)
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
            logits = net(x)
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()
            return loss, jax.tree.leaves(nnx.as_pure(nnx.state(net, nnx.Not(nnx.Param))))

        (loss, rest), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt = tx.update(grads, opt, params)
        params = optax.apply_updates(params, updates)
        return (*params, *rest, *jax.tree.leaves(opt)), loss

    step = jax.jit(step, donate_argnums=0)
    state = tuple(jnp.array(leaf, copy=True) for leaf in (*param_leaves, *rest_leaves, *opt_leaves))
    random = np.random.default_rng(0)

    def epoch() -> float:
        nonlocal state
        order = random.permutation(len(x))
        losses = []
        for i in range(0, len(x), batch):
            rows = order[i : i + batch]
            state, loss = step(state, jax.device_put(x[rows]), jax.device_put(y[rows]))
            losses.append(loss)
        return float(jnp.stack(losses).mean())

    return epoch


def problem(name: str, longer: int = 1) -> tuple[nnx.Module, np.ndarray, np.ndarray, int, int]:
    """A network, images, labels, the batch size, and how many steps an epoch of them has: `longer` times the usual."""
    make, side, channels, batch, steps = NETS[name]
    steps *= longer
    random = np.random.default_rng(0)
    x = random.normal(size=(steps * batch, side, side, channels)).astype(np.float32)
    y = random.integers(0, 10, len(x)).astype(np.int32)
    return make(), x, y, batch, steps


def measure(name: str, rounds: int) -> None:
    """Prints the time of a step of each contestant, and their ratio."""
    module, x, y, batch, steps = problem(name)
    epoch = hand_written(module, x, y, batch)
    model = resfit.Model(module)
    model.compile("sgd", learning_rate=0.1, dispatch="jit")
    contestants = {"hand-written": epoch, "fit": lambda: model.fit(x, y, batch_size=batch, verbose=2)}
    interleaved.report(name, interleaved.measure(contestants, rounds, steps))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=list(NETS), action="append", help="one of these only; may be repeated")
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds of each, interleaved")
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()[0].platform}, {len(jax.devices())} device(s)")
    for name in arguments.net or NETS:
        measure(name, arguments.rounds)


if __name__ == "__main__":
    main()
