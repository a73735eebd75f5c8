"""Convolutions of oneDNN compared with XLA's, forward and in both gradients, in turns, in one process.

    python -m benchmarks.convolutions
    python -m benchmarks.convolutions --rounds 20 --only small

The sizes are those of networks in the suite, and sizes near the limits below which XLA computes a convolution.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks import interleaved
from resfit.backends import onednn

# Images, height and width, channels in and out, side of the kernel, stride, groups.
CASES: dict[str, list[tuple[int, int, int, int, int, int, int]]] = {
    "resnet20": [
        (128, 32, 3, 16, 3, 1, 1), (128, 32, 16, 16, 3, 1, 1), (128, 32, 16, 32, 3, 2, 1), (128, 16, 32, 32, 3, 1, 1),
        (128, 8, 64, 64, 3, 1, 1),
    ],
    "resnet50": [
        (8, 224, 3, 64, 7, 2, 1), (8, 56, 64, 64, 3, 1, 1), (8, 56, 64, 256, 1, 1, 1), (8, 56, 256, 512, 1, 2, 1),
        (8, 28, 128, 128, 3, 1, 1), (8, 14, 1024, 256, 1, 1, 1), (8, 14, 256, 256, 3, 1, 1), (8, 7, 512, 512, 3, 1, 1),
    ],
    "groups": [(2, 14, 32, 32, 3, 1, 8), (8, 28, 32, 32, 3, 1, 4), (8, 28, 64, 64, 3, 1, 64)],
    "small": [
        (32, 8, 8, 8, 3, 1, 1), (32, 8, 16, 16, 3, 1, 1), (64, 16, 16, 16, 3, 1, 1), (4, 16, 32, 32, 3, 1, 1),
        (32, 4, 64, 64, 1, 1, 1), (4, 28, 64, 64, 1, 1, 1), (64, 28, 1, 32, 3, 1, 1),
    ],
}  # fmt: skip
NHWC = ("NHWC", "HWIO", "NHWC")


def measure(case: tuple[int, int, int, int, int, int, int], rounds: int, dtype: str) -> None:
    """Print the milliseconds of one convolution in each direction, and the ratio of XLA to oneDNN."""
    n, size, inner, outer, side, stride, groups = case
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(n, size, size, inner)), dtype)
    w = jnp.asarray(rng.normal(size=(side, side, inner // groups, outer)), dtype)
    pad = side // 2

    def directions(convolve: Any) -> dict[str, Callable[[], object]]:
        def forward(x: jax.Array, w: jax.Array) -> jax.Array:
            result: jax.Array = convolve(
                x,
                w,
                (stride, stride),
                ((pad, pad), (pad, pad)),
                dimension_numbers=NHWC,
                feature_group_count=groups,
            )
            return result

        g = jnp.asarray(rng.normal(size=jax.eval_shape(forward, x, w).shape), dtype)
        functions = {
            "forward": (lambda a, b: forward(a, b), (x, w)),
            "data gradient": (lambda a, b: jax.linear_transpose(lambda x: forward(x, b), x)(a)[0], (g, w)),
            "weight gradient": (lambda a, b: jax.linear_transpose(lambda w: forward(a, w), w)(b)[0], (x, g)),
        }
        return {name: _ready(function, *arguments) for name, (function, arguments) in functions.items()}

    ours, theirs = directions(onednn.Convolve(always=True)), directions(lax.conv_general_dilated)
    for name in ours:
        times = interleaved.measure({"xla": theirs[name], "onednn": ours[name]}, rounds, 1)
        ratios = {
            clock: statistics.median(
                getattr(a, clock) / getattr(b, clock) for a, b in zip(times["xla"], times["onednn"], strict=True)
            )
            for clock in interleaved.Milliseconds._fields
        }
        least = {who: min(round_.wall for round_ in taken) for who, taken in times.items()}
        print(
            f"{case!s:36} {dtype:9} {name:16} XLA {least['xla']:8.3f} ms, oneDNN {least['onednn']:8.3f} ms  "
            f"ratio {ratios['wall']:6.2f}, of the processor's time {ratios['processor']:6.2f}",
            flush=True,
        )


def _ready(function: Any, *arguments: Any) -> Callable[[], object]:
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CASES), action="append", help="one group only; may be repeated")
    parser.add_argument("--rounds", type=int, default=15, help="measured rounds of each, interleaved")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    arguments = parser.parse_args()
    reason = onednn.why_not()
    if reason is not None:
        parser.exit(1, f"oneDNN cannot be used: {reason}\n")
    print(f"jax {jax.__version__}, {onednn.described()}")
    for group in arguments.only or CASES:
        for case in CASES[group]:
            measure(case, arguments.rounds, arguments.dtype)


if __name__ == "__main__":
    main()
