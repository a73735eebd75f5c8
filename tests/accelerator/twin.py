"""Train on the devices of this process and write the results: `python -m tests.accelerator.twin FILE VARIANT`."""

import sys
from pathlib import Path

import jax
import numpy as np

import resfit
from tests.thin_variants import thin
from tests.variants import images, labels

BATCH, ROWS = 4, 12


def trained(variant: str) -> dict[str, np.ndarray]:
    """Return the logits before, the losses of three steps, the values of the module, and the logits after."""
    # By default a GPU rounds the factors of convolutions and products to 10 bits.
    jax.config.update("jax_default_matmul_precision", "highest")
    from tests.helpers import values

    losses: list[float] = []
    model = resfit.Model(thin(variant))
    model.compile("sgd", learning_rate=0.01, dispatch="jit", cpu_kernels="xla")
    x = images("large images", ROWS)
    found = {"before": model.predict(x, batch_size=BATCH, verbose=0)}
    model.fit(
        x, labels(ROWS), batch_size=BATCH, verbose=0,
        callbacks=[resfit.callbacks.LambdaCallback(on_train_batch_end=lambda _, logs: losses.append(logs["loss"]))],
    )  # fmt: skip
    found |= {"losses": np.array(losses), "after": model.predict(x, batch_size=BATCH, verbose=0)}
    return found | {f"values/{name}": value for name, value in values(model.module).items()}


if __name__ == "__main__":
    np.savez(Path(sys.argv[1]), **trained(sys.argv[2]))  # type: ignore[arg-type]  # its other argument is a bool
