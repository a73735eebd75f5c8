"""The architecture: imports point downwards without a cycle, and library code neither asserts nor prints."""

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "resfit"

# What each subpackage or module of resfit may import from resfit, imports for type checkers included. Every subpackage
# may import "errors" and "_utils".
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "_utils": set(),
    "backends": set(),
    # Networks stand alone: they can be used with another training loop.
    "nets": {"backends"},
    "weights": {"nets"},
    # Pure functions of arrays.
    "losses": set(),
    "metrics": {"losses"},
    "optimizers": set(),
    "schedules": set(),
    "preprocess": set(),
    "augment": set(),
    "plots": {"nets"},
    "distributed": set(),
    # Data know no step; a dataset shows its images.
    "data": {"plots"},
    # What a weights file expects of photographs.
    "transforms": {"data", "preprocess"},
    # Callbacks know the model by a protocol, and the logs.
    "callbacks": {"plots"},
    "trainer": {
        "augment", "backends", "callbacks", "data", "losses", "metrics", "nets", "optimizers", "preprocess",
        "schedules", "transforms",
    },
    # Quantization reads calibration data and reports an accuracy.
    "export": {
        "backends", "callbacks", "data", "losses", "metrics", "nets", "preprocess", "trainer", "transforms", "weights",
    },
    # The model assembles all of the above.
    "model": {
        "augment", "backends", "callbacks", "data", "diagnostics", "export", "losses", "metrics", "optimizers",
        "preprocess", "schedules", "trainer", "transforms",
    },
    # Several models, trained together.
    "ensemble": {"callbacks", "data", "losses", "model", "trainer"},
    "distillation": {"losses", "model", "nets"},
    "testing": {"callbacks", "data", "model", "nets", "trainer"},
    "tuning": {"callbacks", "data", "ensemble", "losses", "model", "plots", "schedules", "trainer"},
    # An estimator of another library, around the model.
    "sklearn": {"model", "weights"},
    # Tools that examine a model.
    "diagnostics": {"callbacks", "data", "losses", "model", "nets", "plots", "trainer"},
}  # fmt: skip

# The modules that build residual networks.
RESNET = tuple(
    f"nets.{name}"
    for name in ("resnet", "residual", "blocks", "preact_blocks", "shortcut", "squeeze", "stem", "head", "spec", "zoo")
)

# Rules between modules of one subpackage, or stricter than the table above.
MAY_NOT_IMPORT: dict[str, tuple[str, ...]] = {
    # A step knows no device, and no callback.
    "trainer.step": ("trainer.devices.placement", "callbacks", "data"),
    # Where a step runs is independent of what fires around it.
    "trainer.devices.placement": ("callbacks", "data", "trainer.loop.trainer"),
    # The structure of a module is known without a run.
    "trainer.graph": ("trainer.state.train_state", "trainer.step", "trainer.devices.placement", "callbacks", "data"),
    # The trainer trains any module. See also test_the_trainer_reaches_nothing_of_a_resnet.
    "trainer": RESNET,
    # An exported program runs without the rest of resfit.
    "export.exported": ("nets", "trainer", "data", "callbacks", "losses"),
}
FACADE = "resfit"

# Needed by nobody who only imports resfit: the extras, and what no part of resfit may pull in.
NOT_AT_IMPORT = ("matplotlib", "sklearn", "tensorflow", "tensorflow_datasets", "datasets", "torch", "keras", "PIL")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def subpackage(module: str) -> str:
    """Return the first part of a dotted module name below resfit: `resfit.nets.stem` is in "nets"."""
    return (module.split(".")[1:] or [FACADE])[0]


@functools.cache
def import_statements(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Return the import statements of a source."""
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]


def imports(source: str, module: str, modules: set[str]) -> Iterator[str]:
    """Yield the resfit modules that a source imports: at the top, inside a function, or for type checkers."""
    for node in import_statements(source):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            base = node.module or ""
            if node.level:
                package = module.split(".") if module in packages(modules) else module.split(".")[:-1]
                base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [base])])
            # `from resfit.nets import stem` imports a module, `from resfit.nets import ResNet` a name of resfit.nets.
            names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        yield from (name for name in names if name.split(".")[0] == "resfit")


def packages(modules: set[str]) -> set[str]:
    return {name.rpartition(".")[0] for name in modules}


def upward_imports(sources: dict[str, str]) -> list[str]:
    """Return one line for every import that the tables do not allow."""
    found = []
    for module, source in sources.items():
        here = subpackage(module)
        if here == FACADE:
            continue
        inside = module.removeprefix("resfit.")
        forbidden = [name for part, names in MAY_NOT_IMPORT.items() if is_within(inside, part) for name in names]
        for imported in imports(source, module, set(sources)):
            there = subpackage(imported)
            allowed = there in {here, "errors", "_utils", *MAY_IMPORT.get(here, set())}
            if not allowed or any(is_within(imported.removeprefix("resfit."), name) for name in forbidden):
                found.append(f"{module} imports {imported}")
    return found


def is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def cycle(sources: dict[str, str]) -> list[str]:
    """Return the modules of one import cycle; an empty list without a cycle."""
    modules = set(sources)
    graph = {
        module: {name for name in imports(source, module, modules) if name in modules and name != module}
        for module, source in sources.items()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def reachable(sources: dict[str, str], start: set[str]) -> set[str]:
    """Return the modules that `start` imports, directly or not, and `start` itself."""
    found, pending = set(start), list(start)
    while pending:
        module = pending.pop()
        new = {name for name in imports(sources[module], module, set(sources)) if name in sources} - found
        found |= new
        pending += new
    return found


def forbidden_statements(sources: dict[str, str]) -> list[str]:
    """Return one line for every assert statement and every call of print."""
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


def test_every_module_is_in_the_table(sources: dict[str, str]) -> None:
    assert {subpackage(module) for module in sources} - {FACADE} - set(MAY_IMPORT) == set()


def test_at_most_nine_modules_are_directly_in_resfit() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def code_lines(source: str) -> list[int]:
    """Return the lines of code of each function: without its decorators, signature, docstring, comments, blanks."""
    text, found = source.splitlines(), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        documented = ast.get_docstring(node) is not None
        body = text[node.body[0].end_lineno if documented else node.body[0].lineno - 1 : node.end_lineno]
        found.append(sum(bool(line.strip()) and not line.strip().startswith("#") for line in body))
    return found


def test_modules_and_functions_are_short(sources: dict[str, str]) -> None:
    lengths = {module: source.count("\n") for module, source in sources.items()}
    assert {module: length for module, length in lengths.items() if length > 420} == {}
    assert lengths["resfit.model"] <= 400
    functions = sorted(length for source in sources.values() for length in code_lines(source))
    assert functions[-1] <= 60
    assert functions[len(functions) * 95 // 100] <= 24
    assert code_lines('def f(\n    x,\n):\n    """Add."""\n    # why\n    y = x\n\n    return y\n') == [2]


def test_imports_point_downwards_only(sources: dict[str, str]) -> None:
    assert upward_imports(sources) == []


def test_no_modules_import_each_other(sources: dict[str, str]) -> None:
    assert cycle(sources) == []


def test_the_trainer_reaches_nothing_of_a_resnet(sources: dict[str, str]) -> None:
    """Imports of imports count, except the re-exports of resfit/nets/__init__.py."""
    start = {module for module in sources if subpackage(module) == "trainer"}
    found = reachable(sources, start)
    assert {f"resfit.{name}" for name in RESNET} <= set(sources)
    assert [
        name
        for name in sorted(found)
        if is_within(name.removeprefix("resfit."), "nets")
        and name in {"resfit.nets", *(f"resfit.{part}" for part in RESNET)}
    ] == []
    assert "resfit.nets.resnet" in reachable(sources, {"resfit.nets.fold"})


def test_a_cycle_is_found_also_in_imports_for_type_checkers() -> None:
    assert cycle({"resfit.a": "if TYPE_CHECKING:\n    from resfit import b", "resfit.b": "import resfit.a"})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("resfit.nets.stem", "from resfit.model import Model"),
        ("resfit.nets.stem", "from ..trainer import step"),
        ("resfit.data.sources.arrays", "def f():\n    import resfit.trainer.step"),
        ("resfit.trainer.devices.placement", "from resfit import callbacks"),
        ("resfit.trainer.step", "from resfit.trainer.devices.placement import Placement"),
        ("resfit.callbacks.early_stopping", "from resfit.model import Model"),
        ("resfit.callbacks.early_stopping", "if TYPE_CHECKING:\n    from resfit.model import Model"),
        ("resfit.losses", "import resfit"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str, sources: dict[str, str]) -> None:
    assert upward_imports(dict.fromkeys(sources, "") | {module: source}) != []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("resfit.model", "from resfit.trainer import step"),
        ("resfit.weights.names", "from resfit.nets.resnet import ResNet"),
        ("resfit.nets.blocks", "from .residual import Residual\nfrom resfit.errors import SpecError\nimport jax"),
    ],
)
def test_a_downward_import_is_allowed(module: str, source: str, sources: dict[str, str]) -> None:
    assert upward_imports(dict.fromkeys(sources, "") | {module: source}) == []


def test_library_code_neither_asserts_nor_prints(sources: dict[str, str]) -> None:
    assert forbidden_statements(sources) == []
    assert forbidden_statements({"m": "assert x\nif y:\n    print(x)\nlog.print(x)"}) == ["m:1", "m:3"]


def test_the_facade_only_re_exports(sources: dict[str, str]) -> None:
    """resfit/__init__.py holds a docstring, imports and plain assignments such as __all__ and __getattr__."""
    body = ast.parse(sources["resfit"]).body
    hidden = [node for node in body if isinstance(node, ast.If) and ast.unparse(node.test) == "not TYPE_CHECKING"]
    for node in [*(node for node in body if node not in hidden), *(node for one in hidden for node in one.body)]:
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
