"""Every code block of the README and of docs/ is run: python and diff blocks by executing, pycon blocks as doctests."""

import ast
import doctest
import importlib
import importlib.util
import re
import runpy
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import pytest

import resfit
from tests.packages import package
from tests.shortened import shorten

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]

# `make test` runs the pages whose blocks cost little, and README and landing page shortened; `make test-all` all pages.
CHEAP = {ROOT / "docs" / name for name in ("cpu.md", "how-to/progress.md")}
TRAINED_TO_THE_END = {"README.md", "docs/index.md", "docs/tutorial/own_photos.md", "docs/tutorial/your_first_resnet.md"}

# Its blocks are mistakes: `tests/errors/test_mistakes.py` runs them, and holds the page against what they raise.
MISTAKES = "errors.md"

# The package that the blocks of a page need, and `make test` does not install.
NEEDS = {"onnx.md": "onnxruntime", "optuna.md": "optuna"}

# Blocks that are only shown: commands for a shell, output, and Sphinx directives.
SHOWN = re.compile(r"bash|text|\{.*\}")
FENCE = re.compile(r"^```(?P<language>\S+)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    language: str
    line: int  # of the page, from 1, on which the code begins
    code: str


def blocks(text: str) -> list[Block]:
    return [
        Block(match["language"], text.count("\n", 0, match.start("code")) + 1, match["code"])
        for match in FENCE.finditer(text)
    ]


def after(diff: str) -> str:
    """Return the lines after the diff; a removed line stays as a blank one, so that line numbers match."""
    return "\n".join("" if line.startswith("-") else line[1:] for line in diff.split("\n"))


def before(diff: str) -> str:
    """Return the lines before the diff."""
    return "\n".join("" if line.startswith("+") else line[1:] for line in diff.split("\n"))


def source(block: Block) -> str:
    """Return the Python code of a block."""
    if block.language == "pycon":
        return "".join(example.source for example in doctest.DocTestParser().get_examples(block.code))
    return after(block.code) if block.language == "diff" else block.code


def run(block: Block, page: str, namespace: dict[str, Any]) -> None:
    """Run one block in the namespace of the page; tracebacks show the lines of the page."""
    if block.language == "pycon":
        test = doctest.DocTestParser().get_doctest(block.code, namespace, page, page, block.line - 1)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        assert runner.failures == 0, "".join(said)
        namespace.update(test.globs)
    else:
        exec(compile("\n" * (block.line - 1) + source(block), page, "exec"), namespace)


def run_page(page: Path) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page.read_text()):
        if not SHOWN.fullmatch(block.language):
            run(block, str(page), namespace)
    return namespace


def marks(page: Path) -> list[pytest.MarkDecorator]:
    """Mark slow pages. Steps cost more than compilation on pages that train a network to the end."""
    return [pytest.mark.slow] * (page not in CHEAP) + [pytest.mark.optimized] * (
        str(page.relative_to(ROOT)) in TRAINED_TO_THE_END
    )


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=marks(page))
        for page in sorted(PAGES, key=lambda page: str(page.relative_to(ROOT)) in TRAINED_TO_THE_END)
        if page.name != MISTAKES
    ],
)
def test_every_block_of_a_page_runs_in_order(page: Path) -> None:
    if page.name in NEEDS:
        package(NEEDS[page.name])
    run_page(page)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_page_runs_in_order_with_thin_networks_and_one_epoch(
    page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten(monkeypatch.setattr)
    assert 0 <= run_page(ROOT / page)["accuracy"] <= 1
    assert all(Path(name).exists() for name in ("curves.png", "digits.safetensors"))


@pytest.mark.originals
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Keras, with NumPy 2
def test_the_lines_before_the_diffs_of_the_keras_tutorial_are_a_script_of_keras(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = package("keras")
    fit = keras.Model.fit
    monkeypatch.setattr(keras.Model, "fit", lambda self, *rest, **named: fit(self, *rest, **named | {"epochs": 1}))
    page = ROOT / "docs" / "tutorial" / "from_keras.md"
    namespace: dict[str, Any] = {"__name__": "page"}
    with jax.numpy_rank_promotion("allow"):  # Keras adds biases to batches
        for block in blocks(page.read_text()):
            if block.language == "diff":
                exec(compile("\n" * (block.line - 1) + before(block.code), str(page), "exec"), namespace)
    assert "resfit" not in namespace
    assert namespace["probabilities"].shape == (360, 10)


def wrong_names(tree: ast.Module) -> list[str]:
    """Return the names of resfit that do not exist, and packages that are not installed."""
    wrong: list[str] = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"resfit(\.\w+)+", text := ast.unparse(node)):
            names = [text]
        wrong += [name for name in names if not exists(name)]
    return wrong


def exists(name: str) -> bool:
    package, *parts = name.split(".")
    if package != "resfit":  # to import it could take seconds
        return importlib.util.find_spec(package) is not None
    found: Any = resfit
    for i, part in enumerate(parts):
        if not hasattr(found, part):
            module = ".".join(["resfit", *parts[: i + 1]])
            if not isinstance(found, ModuleType) or importlib.util.find_spec(module) is None:
                return False
            importlib.import_module(module)
        found = getattr(found, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_is_python_and_names_what_exists(page: Path) -> None:
    """The cheap half of running it."""
    for block in blocks(page.read_text()):
        if not SHOWN.fullmatch(block.language):
            assert block.language in {"python", "pycon", "diff"}, f"{page.name}:{block.line} is neither run nor shown"
            tree = ast.parse(source(block), f"{page}:{block.line}")
            wrong = [name for name in wrong_names(tree) if name != NEEDS.get(page.name)]
            assert page.name == MISTAKES or wrong == [], f"{page.name}:{block.line}"


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("import resfit.gone", ["resfit.gone"]),
        ("from resfit.callbacks import EarlyStopping, Gone", ["resfit.callbacks.Gone"]),
        ("net = resfit.create_model('resnet20')\nresfit.nets.gone(net)", ["resfit.nets.gone"]),
        ("import a_package_that_is_nowhere.part", ["a_package_that_is_nowhere.part"]),
        ("import jax.numpy as jnp\nfrom resfit.preprocess import Normalize\nresfit.Model.fit", []),
    ],
)
def test_a_name_that_does_not_exist_is_found(code: str, wrong: list[str]) -> None:
    assert wrong_names(ast.parse(code)) == wrong


def test_every_fence_of_a_page_is_seen() -> None:
    """A fence without a language, or one that never closes, would leave its code unrun."""
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^\s*(```|~~~|:::)", text, re.MULTILINE)) == 2 * len(blocks(text)), page.name


def test_every_test_that_a_guarantee_names_exists() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "docs" / "guarantees.md").read_text())
    assert named
    for path, test in named:
        functions = [
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert test in functions, f"{path}::{test}"


@pytest.mark.parametrize(
    ("line", "escaped"),
    [
        ("params + rho * g / |g|, not val_", r"params + rho \* g / \|g\|, not val\_"),
        ("`stage*` and `val_` | stage_1", r"`stage*` and `val_` \| stage_1"),
        (">>> x * abs(y) | z", ">>> x * abs(y) | z"),
    ],
)
def test_the_text_of_a_docstring_is_no_markup(line: str, escaped: str) -> None:
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    lines = [line]
    conf["take_literally"](None, "function", "", None, None, lines)
    assert lines == [escaped]


def test_every_page_is_in_the_navigation() -> None:
    """A page that no toctree names is reached by no reader; the glob of the how-to guides names all of them."""
    docs = ROOT / "docs"
    reached: set[Path] = set()
    waiting = [docs / "index.md"]
    while waiting:
        page = waiting.pop()
        if page in reached:
            continue
        reached.add(page)
        for tree in re.findall(r"^```{toctree}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
            names = [line for line in tree.split("\n") if line and not line.startswith(":")]
            assert len(names) == len(set(names)), page
            found = [path.resolve() for name in names for path in page.parent.glob(f"{name}.md")]
            assert len(found) >= len(names), page
            waiting += found
    assert reached == {page for page in PAGES if page.parent != ROOT}


def test_every_path_that_the_architecture_names_exists() -> None:
    """Paths are below `resfit/`, or below the root if they begin with `tests/` or `docs/`."""
    named = set(re.findall(r"`([\w/.]+(?:\.py|\.md|/))`", (ROOT / "docs" / "architecture.md").read_text()))
    assert len(named) > 40
    missing = {path for path in named if not (ROOT / path).exists() and not (ROOT / "resfit" / path).exists()}
    assert missing == set()


def test_the_layout_of_the_architecture_names_every_subpackage() -> None:
    layout = next(block.code for block in blocks((ROOT / "docs" / "architecture.md").read_text()))
    subpackages = {path.parent.name for path in (ROOT / "resfit").glob("*/__init__.py")}
    assert set(re.findall(r"^  (\w+)/ ", layout, re.MULTILINE)) == subpackages
    modules = {path.name for path in (ROOT / "resfit").glob("*.py")}
    assert set(re.findall(r"\b\w+\.py\b", layout)) == modules


@pytest.mark.parametrize(
    "text",
    [
        "```python\n1 / 0\n```",
        "```python\nx = 1\n```\n\n```diff\n-y = x\n+y = x.missing\n```",
        "```python\nx = 1\n```\n\n```pycon\n>>> x + 1\n3\n```",
    ],
)
def test_a_wrong_block_is_found(text: str) -> None:
    *before, last = blocks(text)
    namespace: dict[str, Any] = {}
    for block in before:
        run(block, "page", namespace)
    with pytest.raises((ZeroDivisionError, AttributeError, AssertionError)):
        run(last, "page", namespace)


def test_a_name_of_one_block_is_known_to_the_next() -> None:
    namespace: dict[str, Any] = {}
    text = "```python\nx = 1\n```\n\n```pycon\n>>> y = x + 1\n>>> y\n2\n```\n\n```diff\n-z = 0\n+z = y\n x = z\n```"
    for block in blocks(text):
        run(block, "page", namespace)
    assert (namespace["x"], namespace["y"], namespace["z"]) == (2, 2, 2)
