"""Run the tests of a checkout of Keras and compare their outcomes with `outcomes.tsv`."""

import argparse
import collections
import os
import re
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

FILES = (
    "trainers/trainer_test.py",
    "trainers/epoch_iterator_test.py",
    "trainers/data_adapters/array_data_adapter_test.py",
    "trainers/data_adapters/data_adapter_utils_test.py",
    "trainers/data_adapters/generator_data_adapter_test.py",
    "trainers/data_adapters/py_dataset_adapter_test.py",
    "trainers/data_adapters/tf_dataset_adapter_test.py",
    "trainers/data_adapters/torch_data_loader_adapter_test.py",
    "callbacks/callback_test.py",
    "callbacks/csv_logger_test.py",
    "callbacks/early_stopping_test.py",
    "callbacks/lambda_callback_test.py",
    "callbacks/learning_rate_scheduler_test.py",
    "callbacks/model_checkpoint_test.py",
    "callbacks/reduce_lr_on_plateau_test.py",
    "callbacks/swap_ema_weights_test.py",
    "callbacks/terminate_on_nan_test.py",
    "losses/losses_test.py",
    "metrics/accuracy_metrics_test.py",
    "metrics/confusion_metrics_test.py",
    "metrics/f_score_metrics_test.py",
    "metrics/hinge_metrics_test.py",
    "metrics/iou_metrics_test.py",
    "metrics/probabilistic_metrics_test.py",
    "metrics/regression_metrics_test.py",
)
TABLE = Path(__file__).parent / "outcomes.tsv"


class Seen(NamedTuple):
    """The outcome of a test that ran.

    Attributes:
      outcome: "pass", "adapted", "skipped", "untranslated" or "fail".
      why: the adaptations, the missing name, or the error.
    """

    outcome: str
    why: str


class Recorder:
    """A pytest plugin that keeps the outcome of each test."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        from tests.keras_suite.names import adaptations

        del item
        adaptations.clear()

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.seen[f"{report.nodeid}::collection"] = Seen("fail", str(report.longrepr)[-300:])

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        from tests.keras_suite.names import NotTranslated, adaptations

        name = re.sub(r"^.*?(?=(trainers|callbacks|losses|metrics)/)", "", item.nodeid)
        error = call.excinfo
        if error is None:
            if call.when == "call":
                self.seen.setdefault(name, Seen("adapted" if adaptations else "pass", "; ".join(adaptations)))
        elif error.typename == "Skipped":
            self.seen[name] = Seen("skipped", str(error.value))
        elif chain := [one for one in _chain(error.value) if isinstance(one, NotTranslated)]:
            self.seen[name] = Seen("untranslated", str(chain[0]))
        else:
            self.seen[name] = Seen("fail", f"{error.typename}: {' '.join(str(error.value).split())}")


def _chain(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _wrappers(folder: Path, files: list[str]) -> None:
    """Write a module for each file of tests that imports its tests, because pytest would import Keras's own package."""
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from keras.src.{name.removesuffix('.py').replace('/', '.')} import *  # noqa: F403\n")


def observed(checkout: Path, files: list[str], arguments: list[str]) -> dict[str, Seen]:
    """Run the tests and return the outcome of each."""
    import pytest

    from tests.keras_suite import checks, data, layers, objects
    from tests.keras_suite.names import Finder, install

    testing = {"TestCase": checks.TestCase, "named_product": checks.named_product, "get_test_data": checks.get_test_data}
    never = dict.fromkeys(("tensorflow_uses_gpu", "jax_uses_gpu", "torch_uses_gpu", "uses_tpu", "uses_gpu"), bool)
    utils = {
        "to_categorical": checks.to_categorical,
        "set_random_seed": lambda seed: None,
        "disable_interactive_logging": lambda: None,
        "set_logging_verbosity": lambda level: None,
    }
    trained = {"JAXTrainer": layers.Trainer, **data.trainers}
    namespaces = {
        "": {**layers.models, "Input": layers.input_symbol, "Layer": layers.Layer, "ops": checks.ops},
        "api_export": {"keras_export": lambda path: lambda exported: exported},
        "backend": {**checks.backend, **trained},
        "callbacks": objects.callbacks,
        "initializers": layers.initializers,
        "layers": layers.layers,
        "losses": objects.losses,
        "metrics": objects.metrics,
        "models": layers.models,
        "optimizers": objects.optimizers,
        "testing": testing | never,
        "trainers": trained,
        "utils": utils,
    }
    executed = {"keras.src.trainers.data_adapters.py_dataset_adapter": {"PyDatasetAdapter": data.Adapter}}
    install(Finder(checkout, namespaces, executed))
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        _wrappers(Path(folder), files)
        Path(folder, "pytest.ini").write_text("[pytest]\npython_files = *_test.py\nmarkers =\n  requires_trainable_backend\n")
        options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--import-mode=importlib", "--tb=no", "--no-header"]
        pytest.main([*options, f"--rootdir={folder}", f"-c{folder}/pytest.ini", *arguments, folder], plugins=[recorder])
    return recorder.seen


def main() -> int:
    """Run the suite; return 1 if an outcome is not the expected one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="the root of a checkout of Keras, with its tests")
    parser.add_argument("--files", nargs="*", default=list(FILES))
    parser.add_argument("--dump", type=Path, help="write the outcomes here, without a comparison")
    parser.add_argument("-k", default="", help="as in pytest")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    seen = observed(arguments.checkout, arguments.files, ["-k", arguments.k] if arguments.k else [])
    if arguments.dump:
        lines = (f"{name}\t{one.outcome}\t{one.why[:400]}" for name, one in sorted(seen.items()))
        arguments.dump.write_text("\n".join(lines) + "\n")
    print(collections.Counter(one.outcome for one in seen.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
