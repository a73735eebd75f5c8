"""The run that a test kills: `python -m tests.faults.killed FOLDER RESULT`. It prints each completed step."""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from resfit.callbacks import Callback
from tests.faults import runs


class Says(Callback):
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        print("step", flush=True)


def main() -> None:
    folder, result = Path(sys.argv[1]), Path(sys.argv[2])
    jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[2] / ".cache" / "jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    found = runs.run(runs.model(), folder, Says(), every=1, resume=True)
    np.save(result, np.array(found, dtype=object))


if __name__ == "__main__":
    main()
