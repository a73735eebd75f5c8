"""Every code block of the README and of docs/ is run: python and diff blocks by executing, pycon blocks as doctests."""

import ast
import doctest
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)]

SLOW = {"README.md", "your_first_resnet.md", "tensorboard.md", "tools.md"}  # they train a network to the end

# Its blocks are mistakes: `tests/errors/test_mistakes.py` runs them, and holds the page against what they raise.
MISTAKES = "errors.md"

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
    """The lines as they are once the diff is applied; a line taken out leaves a blank one, so that numbers hold."""
    return "\n".join("" if line.startswith("-") else line[1:] for line in diff.split("\n"))


def run(block: Block, page: str, namespace: dict[str, Any]) -> None:
    """Runs one block in the page's namespace; tracebacks point at the page's own lines."""
    if block.language == "pycon":
        test = doctest.DocTestParser().get_doctest(block.code, namespace, page, page, block.line - 1)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        said: list[str] = []
        runner.run(test, out=said.append, clear_globs=False)
        assert runner.failures == 0, "".join(said)
        namespace.update(test.globs)
    else:
        code = after(block.code) if block.language == "diff" else block.code
        exec(compile("\n" * (block.line - 1) + code, page, "exec"), namespace)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=str(page.relative_to(ROOT)), marks=pytest.mark.slow if page.name in SLOW else ())
        for page in PAGES
        if page.name != MISTAKES
    ],
)
def test_every_block_of_a_page_runs_in_order(page: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in blocks(page.read_text()):
        if not SHOWN.fullmatch(block.language):
            assert block.language in {"python", "pycon", "diff"}, f"{page.name}:{block.line} is neither run nor shown"
            run(block, str(page), namespace)


def test_every_fence_of_a_page_is_seen() -> None:
    """A fence without a language, or one that never closes, would leave its code unrun."""
    for page in PAGES:
        text = page.read_text()
        assert len(re.findall(r"^\s*(```|~~~|:::)", text, re.MULTILINE)) == 2 * len(blocks(text)), page.name


def test_every_test_that_the_readme_names_exists() -> None:
    named = re.findall(r"`(tests/\S+\.py)::(\w+)`", (ROOT / "README.md").read_text())
    assert named
    for path, test in named:
        functions = [
            node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert test in functions, f"{path}::{test}"


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
