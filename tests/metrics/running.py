"""Run metrics as the steps do: compiled, over padded and masked batches, merged, read on the host."""

import functools
from typing import Any

import clu.metrics
import jax
import numpy as np
from hypothesis import strategies as st

BATCH = 8  # one shape, so that every metric is compiled once


@functools.cache
def _update(metric: type[clu.metrics.Metric]) -> Any:
    def update(sums: Any, logits: Any, targets: Any, mask: Any) -> Any:
        return sums.merge(metric.from_model_output(logits=logits, targets=targets, mask=mask))

    return jax.jit(update)


def run(metric: type[clu.metrics.Metric], logits: np.ndarray, targets: np.ndarray) -> Any:
    """Return the value of a metric over all rows, in batches of 8. The last batch is padded with garbage and masked."""
    sums = metric.empty()
    for start in range(0, len(logits), BATCH):
        x, y = logits[start : start + BATCH], targets[start : start + BATCH]
        missing = BATCH - len(x)
        padded = np.concatenate([x, np.full((missing, *x.shape[1:]), 7, x.dtype)])
        labels = np.concatenate([y, np.repeat(y[:1], missing, axis=0)])
        sums = _update(metric)(sums, padded, labels, np.arange(BATCH) < len(x))
    return jax.device_get(sums).compute()


@st.composite
def scored(draw: st.DrawFn, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, classes) float32, some of them with ties, and labels (n,) int32."""
    n = draw(st.integers(1, 40))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = draw(st.sampled_from([0.3, 1.0, 6.0])) * random.normal(size=(n, classes))
    if draw(st.booleans()):
        logits = logits.round()
    present = draw(st.integers(1, max(classes, 2)))  # some classes may be missing
    labels = random.integers(0, present, size=n)
    return logits.astype(np.float32), labels.astype(np.int32)
