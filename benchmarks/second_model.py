"""The second Model of one architecture in a process: it reuses the programs of the first without tracing.

The time runs from `Model(...)` to the end of the first training step. The first Model of each process finds its
programs in a warm compilation cache.
"""

import tempfile
import time

import numpy as np

from benchmarks.child import ask
from benchmarks.rows import Row, compared, timed

MODELS = "ResNet-20, 32 x 32, batch 128, from Model(...) to the end of the first step, warm cache"


def seconds() -> tuple[float, float]:
    """Return the seconds of the first and of the second model, with another seed and learning rate."""
    import resfit

    random = np.random.default_rng(0)
    x = random.normal(size=(128, 32, 32, 3)).astype(np.float32)
    y = random.integers(0, 10, 128, np.int32)
    nets = [resfit.create_model("resnet20", num_classes=10, rngs=seed) for seed in range(2)]
    found = []
    models = []  # keep both, as users do to compare them
    for i, net in enumerate(nets):
        begin = time.perf_counter()
        model = resfit.Model(net)
        model.compile("sgd", learning_rate=0.1 / (i + 1), seed=i)
        model.fit(x, y, batch_size=128, epochs=1, verbose=0)
        found.append(time.perf_counter() - begin)
        models.append(model)
    return found[0], found[1]


def rows(platform: str, quick: bool) -> list[Row]:
    """Return the second model compared with the first."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            "XDG_CACHE_HOME": folder,
            "RESFIT_COMPILATION_CACHE": "on",
            "JAX_ENABLE_COMPILATION_CACHE": "true",
        }
        rounds = [ask("benchmarks.second_model:seconds", environment) for _ in range(4 if quick else 8)]
    first, second = ([1e3 * pair[i] for pair in rounds[1:]] for i in range(2))  # the first round fills the cache
    return [
        timed(MODELS, "first model", first),
        compared(MODELS, "second model / first", second, first, "<= 0.25"),
    ]
