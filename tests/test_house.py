"""The house keeps its floors: imports point downwards only, and library code neither asserts nor prints."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "resfit"

# What each room may import from resfit. A room is a folder or a file of resfit/; the trainer's rooms are named one by
# one, because most of the rules are between them. "errors" and "spelling" may be imported by every room. An import that
# only a type checker sees (under `if TYPE_CHECKING:`) is free.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "spelling": set(),
    "packages": set(),
    "paths": set(),
    # What users of other libraries pass from habit.
    "foreign": set(),
    "whole_file": set(),
    "download": set(),
    "compilation_cache": {"paths"},
    # What convolves on a CPU: functions that stand in for JAX's own. Nobody below the model knows of them.
    "kernels": {"paths"},
    # Networks stand alone: they can be used with somebody else's loop.
    "stored": set(),
    "nets": {"compilation_cache", "stored"},
    "weights": {"nets", "packages", "paths", "whole_file", "download"},
    "pretrained": {"nets", "weights"},
    "summary": {"nets", "engine.memory"},
    # Pure functions of arrays.
    "losses": {"foreign"},
    "metrics": {"foreign", "losses"},
    "optimizers": {"foreign"},
    "schedules": set(),
    "preprocess": set(),
    "augment": set(),
    "plots": set(),
    "distributed": set(),
    # Data know no step.
    "data": {"packages", "paths", "download"},
    # What a weight file expects of photographs.
    "transforms": {"data", "packages", "paths", "preprocess"},
    "classes": set(),
    # The trainer: a step knows no device, a dispatch no callback, the hooks no concrete callback.
    "engine.by_value": set(),
    "engine.modes": {"nets", "engine.by_value"},
    "engine.outputs": {"losses"},
    "engine.allocator": set(),
    "engine.signals": set(),
    "engine.hooks": {"data", "foreign"},
    "engine.random_keys": set(),
    "engine.programs": {"engine.by_value"},
    "engine.attributes": {"nets"},
    "engine.containers": set(),
    "engine.outline": {"engine.modes"},
    "engine.state": {
        "engine.containers", "engine.modes", "engine.outline", "engine.programs", "engine.random_keys", "optimizers",
    },
    "engine.replicas": {"engine.modes"},
    "engine.step": {
        "engine.attributes", "engine.modes", "engine.state", "engine.replicas", "losses", "metrics", "optimizers",
    },
    "engine.dispatch": {"engine.programs", "engine.random_keys"},
    "engine.processes": {"engine.dispatch", "data"},
    "engine.boundary": {"engine.processes", "engine.signals"},
    "engine.waiting": set(),
    "engine.memory": set(),
    "engine.non_finite": {"probe", "engine.modes", "engine.state", "engine.step"},
    "engine.packing": set(),
    "engine.checkpoint_files": set(),
    "engine.held_folder": set(),
    "engine.checkpoint": {"engine.checkpoint_files", "engine.held_folder", "engine.packing"},
    "engine.resume": {
        "engine.checkpoint", "engine.dispatch", "engine.hooks", "engine.processes", "engine.programs", "engine.state",
        "data",
    },
    "engine.run": {
        "engine.boundary", "engine.hooks", "engine.processes", "engine.resume", "engine.signals", "engine.state",
        "data",
    },
    "engine.loop": {
        "engine.boundary", "engine.resume", "engine.run", "engine.outputs",
        "engine.hooks", "engine.signals", "engine.step", "engine.dispatch", "engine.state", "engine.waiting",
        "engine.non_finite", "engine.memory", "engine.processes", "losses", "metrics", "data", "optimizers",
    },
    # Callbacks know the model they are given and the logs.
    "callbacks": {"packages", "paths", "whole_file", "engine.hooks", "plots"},
    # A saved model is a network's spec, its variables and its preprocessing.
    "saving": {"classes", "engine.containers", "nets", "paths", "preprocess", "transforms", "whole_file"},
    # What was exported runs without the rest of the house.
    "exported": {"paths"},
    "exporting": {
        "nets", "losses", "preprocess", "exported", "engine.modes", "engine.state", "engine.step", "paths",
        "whole_file",
    },
    # Where a run is saved, and what must be the same when it goes on.
    "resuming": {
        "callbacks", "data", "engine.checkpoint", "engine.dispatch", "engine.processes", "engine.resume",
        "engine.state",
    },
    # What of other libraries' models does nothing here.
    "overrides": set(),
    # What the arguments of the model's methods mean.
    "arguments": {"callbacks", "data"},
    # The model assembles all of the above; nothing but the façade stands on it.
    "model": {
        "summary", "losses", "metrics", "optimizers", "schedules", "preprocess", "augment", "saving", "exporting",
        "data", "callbacks", "compilation_cache", "kernels", "engine.hooks", "engine.modes", "engine.outputs",
        "engine.signals", "engine.state", "engine.step", "engine.dispatch", "engine.loop", "engine.resume",
        "engine.run", "resuming",
        "transforms", "arguments", "classes", "engine.allocator", "overrides",
    },
    "distillation": {"model", "losses", "nets"},
    # Drives hooks itself, with logs of its own.
    "testing": {"model", "callbacks", "data", "engine.hooks", "nets"},
    # Tools take a model and look at it.
    "recalibration": {"model", "data", "engine.modes", "nets"},
    "lr_finder": {"model", "callbacks", "plots"},
    "probe": {"nets"},
    "grad_cam": {"model", "probe", "data", "engine.modes"},
    "doctor": {"model", "probe", "losses", "data", "engine.modes"},
}  # fmt: skip
FACADE = "resfit"

# Needed by nobody who only imports resfit: the extras, and what no part of resfit may pull in.
NOT_AT_IMPORT = ("matplotlib", "sklearn", "tensorflow", "tensorflow_datasets", "datasets", "torch", "keras", "PIL")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room of a dotted module name: `resfit.nets.stem` is in "nets", `resfit.engine.step` in "engine.step"."""
    parts = module.split(".")[1:]
    if not parts:
        return FACADE
    return ".".join(parts[:2]) if parts[0] == "engine" else parts[0]


def imports(source: str, module: str, modules: set[str]) -> Iterator[str]:
    """The resfit modules that a source imports when it runs, at the top or inside a function."""

    def walk(node: ast.AST) -> Iterator[ast.AST]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return
        yield node
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    for node in walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if module in packages(modules) else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            # `from resfit.nets import stem` imports a module, `from resfit.nets import ResNet` a name of resfit.nets.
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] == "resfit")


def packages(modules: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in modules}


def upward_imports(sources: dict[str, str]) -> list[str]:
    """One line for every import that the table does not allow."""
    found = []
    for module, source in sources.items():
        here = room(module)
        if here == FACADE:
            continue
        for imported in imports(source, module, set(sources)):
            there = room(imported)
            if there not in {here, "errors", "spelling", *MAY_IMPORT.get(here, set())}:
                found.append(f"{module} imports {imported}")
    return found


def forbidden_statements(sources: dict[str, str]) -> list[str]:
    """One line for every assert statement and every call of print."""
    found = []
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            printing = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            if printing or isinstance(node, ast.Assert):
                found.append(f"{module}:{node.lineno}")
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {module_name(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_stands_in_a_room_of_the_table(sources: dict[str, str]) -> None:
    # engine/__init__.py holds nothing: whoever needs a room of the trainer names it.
    rooms = {room(module) for module in sources} - {FACADE, "engine"}
    assert rooms - set(MAY_IMPORT) == set()


def test_the_table_itself_has_no_circle() -> None:
    above: list[str] = []
    waiting = dict(MAY_IMPORT)
    while waiting:
        ready = [name for name, needs in waiting.items() if needs <= set(above)]
        assert ready, f"a circle among {sorted(waiting)}"
        above += ready
        for name in ready:
            del waiting[name]


def test_imports_point_downwards_only(sources: dict[str, str]) -> None:
    assert upward_imports(sources) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("resfit.nets.stem", "from resfit.model import Model"),
        ("resfit.nets.stem", "from ..engine import step"),
        ("resfit.data.arrays", "def f():\n    import resfit.engine.step"),
        ("resfit.engine.hooks", "from resfit import callbacks"),
        ("resfit.engine.step", "from resfit.engine.dispatch import place"),
        ("resfit.callbacks.early_stopping", "from resfit.model import Model"),
        ("resfit.losses", "import resfit"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str, sources: dict[str, str]) -> None:
    assert upward_imports(dict.fromkeys(sources, "") | {module: source}) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("resfit.model", "from resfit.engine import step"),
        ("resfit.weights.names", "from resfit.nets.resnet import ResNet"),
        ("resfit.callbacks.history", "if TYPE_CHECKING:\n    from resfit.model import Model"),
        ("resfit.nets.blocks", "from .residual import Residual\nfrom resfit.errors import SpecError\nimport jax"),
    ],
)
def test_a_downward_import_is_allowed(module: str, source: str, sources: dict[str, str]) -> None:
    assert upward_imports(dict.fromkeys(sources, "") | {module: source}) == []


def test_library_code_neither_asserts_nor_prints(sources: dict[str, str]) -> None:
    assert forbidden_statements(sources) == []
    assert forbidden_statements({"m": "assert x\nif y:\n    print(x)\nlog.print(x)"}) == ["m:1", "m:3"]


def test_the_facade_only_re_exports(sources: dict[str, str]) -> None:
    """resfit/__init__.py holds a docstring, imports and plain assignments such as __all__."""
    for node in ast.parse(sources["resfit"]).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert docstring or isinstance(node, ast.Import | ast.ImportFrom | ast.Assign), ast.unparse(node)


def test_importing_resfit_needs_no_extra_and_starts_no_backend() -> None:
    """In a fresh interpreter: no plotting, no TensorFlow, no torch; and no device is taken by an import."""
    program = (
        "import sys, resfit\n"
        "from jax._src import xla_bridge\n"
        f"print([name for name in {NOT_AT_IMPORT} if name in sys.modules], xla_bridge.backends_are_initialized())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[] False"
