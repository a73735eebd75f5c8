"""The core dependencies are what `import resfit` and `fit` need. Errors name the extra of every other package."""

import ast
import importlib
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from resfit import plots
from resfit.errors import MissingPackageError

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# The name of a requirement, where it differs from the name of the module.
REQUIREMENT = {"orbax": "orbax-checkpoint"}
# `jax.export` imports flatbuffers, and jax does not require it.
IMPORTED_BY_OTHERS = {"flatbuffers"}
# jax requires jaxlib. The others are imported by code that runs only after the package, or one that requires it, was
# found: Grain requires absl, a Figure comes from matplotlib, images are opened with Pillow, and resfit.sklearn loads
# scikit-learn first.
NOT_REQUIRED = {"jaxlib", "absl", "matplotlib", "PIL", "sklearn"}


def name(requirement: str) -> str:
    return requirement.split(">=")[0].split("[")[0]


def imported(source: str) -> set[str]:
    """Return the packages that a module imports, in functions too; imports for type checkers do not count."""
    tree = ast.parse(source)
    for_type_checkers = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_type_checkers:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def test_core_dependencies_are_the_packages_that_the_code_imports_directly() -> None:
    """`load_package` imports the packages of the extras."""
    found = set().union(*(imported(path.read_text()) for path in (ROOT / "resfit").rglob("*.py")))
    packages = {REQUIREMENT.get(package, package) for package in found - {"resfit"} - set(sys.stdlib_module_names)}
    core = {name(requirement) for requirement in PROJECT["dependencies"]}
    assert (packages - NOT_REQUIRED) | IMPORTED_BY_OTHERS == core


def test_the_environment_of_make_demo_and_make_test_holds_what_the_recipes_need() -> None:
    """`make test` installs requirements/demo.txt first."""
    extras = PROJECT["optional-dependencies"]
    needed = {name(requirement) for extra in ("recipes", "plot", "sklearn") for requirement in extras[extra]} - {
        "resfit"
    }
    locked = {line.split("==")[0] for line in (ROOT / "requirements" / "demo.txt").read_text().splitlines()}
    assert {"matplotlib", "scikit-learn"} <= needed <= locked


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.curves(SimpleNamespace(epoch=[0], history={"loss": [1.0]})),
        lambda: plots.confusion_matrix([0, 1], [0, 1]),
        lambda: plots.learning_rate_schedule(lambda step: 0.1, 10),
    ],
)
def test_drawing_without_matplotlib_names_the_extra(draw: object, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"Drawing needs the package matplotlib.*'resfit\[plot\]'"):
        draw()  # type: ignore[operator]


def test_the_estimator_of_scikit_learn_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "resfit.sklearn", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"resfit.sklearn needs the package sklearn.*'resfit\[sklearn\]'"):
        importlib.import_module("resfit.sklearn")


@pytest.mark.slow
def test_fit_runs_without_matplotlib_and_scikit_learn() -> None:
    program = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(['matplotlib', 'sklearn', 'PIL', 'tensorboardX', 'datasets', 'grain'])\n"
        "import numpy as np, resfit\n"
        "from flax import nnx\n"
        "class Net(nnx.Module):\n"
        "    def __init__(self, rngs): self.dense = nnx.Linear(4, 2, rngs=rngs)\n"
        "    def __call__(self, x): return self.dense(x)\n"
        "model = resfit.Model(Net(nnx.Rngs(0)))\n"
        "model.compile('sgd', learning_rate=0.1)\n"
        "history = model.fit(np.zeros((4, 4), 'float32'), np.array([0, 1, 0, 1]), verbose=0)\n"
        "print(history.epoch)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "[0]", done.stderr
