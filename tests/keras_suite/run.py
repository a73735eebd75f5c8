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
DOCS = tuple(Path(__file__).parents[2] / "docs" / name for name in ("keras.md", "words.md"))


class Seen(NamedTuple):
    """The outcome of a test that ran.

    Attributes:
      outcome: "pass", "adapted", "skipped", "untranslated" or "fail".
      why: the adaptations, the missing name, or the error.
    """

    outcome: str
    why: str


class Expected(NamedTuple):
    """A row of the table.

    Attributes:
      outcome: "pass"; "adapted", which passes with more than other names; "does not apply"; or "decided".
      reason: why. Of a decision, `raises NAME`, the error of resfit that the test meets, or `docs "..."`, a part of
        docs/keras.md or docs/words.md that states the difference.
    """

    outcome: str
    reason: str

    def deviation(self, seen: Seen) -> str | None:
        """Return the difference between what was seen and this row, or None."""
        if self.outcome in ("pass", "adapted"):
            return None if seen.outcome == self.outcome else f"expected {self.outcome}"
        if seen.outcome in ("pass", "adapted"):
            return f"expected {self.outcome}: {self.reason}"
        if self.outcome != "decided":
            return None if self.outcome == "does not apply" and self.reason else f"unknown row {self}"
        kind, _, what = self.reason.partition(" ")
        if kind == "raises":
            return None if re.search(rf"\b{re.escape(what.split(':')[0])}\b", seen.why) else f"expected {self.reason}"
        stated = " ".join(what.strip('"').split()) in " ".join(" ".join(page.read_text() for page in DOCS).split())
        return None if kind == "docs" and stated else f"docs/keras.md and docs/words.md do not say {what}"


def expected() -> dict[str, Expected]:
    """Return the rows of the table by test, or by class of tests for `CLASS::*`."""
    rows = (line.split("\t") for line in TABLE.read_text().splitlines() if line and not line.startswith("#"))
    return {name: Expected(outcome, reason) for name, outcome, reason in rows}


def compared(seen: dict[str, Seen], rows: dict[str, Expected]) -> tuple[list[str], collections.Counter[str]]:
    """Return the deviations from the table, and the number of tests of each outcome."""
    deviations, counts, used = [], collections.Counter[str](), set()
    for name, one in sorted(seen.items()):
        row = next((row for row in (name, name.rpartition("::")[0] + "::*") if row in rows), None)
        used.add(row)
        found = "no row of the table" if row is None else rows[row].deviation(one)
        if found is not None:
            deviations.append(f"{name}: {one.outcome} {textwrap.shorten(one.why, 200)}; {found}")
        counts["deviates" if found or row is None else rows[row].outcome] += 1
    deviations += [f"{name}: did not run" for name in rows.keys() - used]
    return deviations, counts


class Recorder:
    """A pytest plugin that keeps the outcome of each test."""

    def __init__(self) -> None:
        self.seen: dict[str, Seen] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        import numpy as np

        from tests.keras_suite.names import adaptations

        del item
        adaptations.clear()
        np.random.seed(0)  # noqa: NPY002 - the generator that the tests use

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


def _wrappers(folder: Path, checkout: Path, files: list[str]) -> None:
    """Write a module for each file of tests that executes it: pytest would import Keras's own package around it.

    The classes and functions of a test are then those of a user, not of Keras.
    """
    for name in files:
        path, tests = folder / name, checkout / "keras" / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"exec(compile(open({str(tests)!r}).read(), {str(tests)!r}, 'exec'))\n")


def observed(checkout: Path, files: list[str]) -> dict[str, Seen]:
    """Run the tests and return the outcome of each."""
    import pytest

    from tests.keras_suite import checks, data, layers, objects
    from tests.keras_suite.names import Finder, install

    testing = {
        "TestCase": checks.TestCase,
        "named_product": checks.named_product,
        "get_test_data": checks.get_test_data,
    }
    never = dict.fromkeys(("tensorflow_uses_gpu", "jax_uses_gpu", "torch_uses_gpu", "uses_tpu", "uses_gpu"), bool)
    utils = {
        "tensorflow": checks.tensorflow,
        "to_categorical": checks.to_categorical,
        "set_random_seed": lambda seed: None,
        "disable_interactive_logging": lambda: None,
        "set_logging_verbosity": lambda level: None,
    }
    trained = {"JAXTrainer": layers.Trainer, **data.trainers}
    namespaces = {
        "": {**layers.models, "Input": layers.input_symbol, "Layer": layers.Layer},
        "api_export": {"keras_export": lambda path: lambda exported: exported},
        "backend": {**checks.backend, **trained},
        "callbacks": objects.callbacks,
        "initializers": layers.initializers,
        "layers": layers.layers,
        "losses": objects.losses,
        "metrics": objects.metrics,
        "models": layers.models,
        "ops": checks.ops,
        "optimizers": objects.optimizers,
        "testing": testing | never,
        "trainers": trained,
        "utils": utils,
    }
    executed = {"keras.src.trainers.data_adapters.py_dataset_adapter": {"PyDatasetAdapter": data.Adapter}}
    install(Finder(checkout, namespaces, executed))
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as folder:
        _wrappers(Path(folder), checkout.absolute(), files)
        Path(folder, "pytest.ini").write_text(
            "[pytest]\npython_files = *_test.py\nmarkers =\n  requires_trainable_backend\n"
        )
        options = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "--import-mode=importlib",
            "--tb=no",
            "--no-header",
        ]
        pytest.main([*options, f"--rootdir={folder}", f"-c{folder}/pytest.ini", folder], plugins=[recorder])
    return recorder.seen


def main() -> int:
    """Run the suite; return 1 if an outcome is not the expected one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkout", type=Path, help="the root of a checkout of Keras, with its tests")
    parser.add_argument("--files", nargs="*", default=list(FILES))
    parser.add_argument("--dump", type=Path, help="also write the outcomes here")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    seen = observed(arguments.checkout, arguments.files)
    if arguments.dump:
        lines = (f"{name}\t{one.outcome}\t{one.why[:400]}" for name, one in sorted(seen.items()))
        arguments.dump.write_text("\n".join(lines) + "\n")
    rows = {name: row for name, row in expected().items() if any(name.startswith(file) for file in arguments.files)}
    deviations, counts = compared(seen, rows)
    print(*deviations, sep="\n")
    print(f"{sum(counts.values())} tests: " + ", ".join(f"{number} {outcome}" for outcome, number in counts.items()))
    return 1 if deviations else 0


if __name__ == "__main__":
    sys.exit(main())
