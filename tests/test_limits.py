"""Claims of the docs: every limit is in a table with the reason, and counts are those of the code."""

import re
from pathlib import Path

import pytest
from flax import nnx

import resfit
from resfit.errors import CompileError
from resfit.nets import ZOO
from tests.errors.mistakes import TOPICS
from tests.faults.kinds import KINDS

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if "_build" not in page.parts and page.name != "errors.md"  # written from the errors that the tests see
    ),
]
CLAIM = re.compile(
    r"\b(?:not(?: \w+)? yet|none yet|cannot|can't|can not|impossible|unsupported|does not check|has no \w+ mode"
    r"|not (?:supported|tested|measured|available|possible|implemented))\b",
    re.IGNORECASE,
)

# (page, words of the claim): the reason why it is true. Whoever lifts a limit deletes the sentence and its row.
LIMITS = {
    ("README.md", "cannot go wrong here"): "a heading: the linked table names a test in each row",
    ("README.md", "not tested on several GPUs"): "no machine with several GPUs or a TPU was available",
    ("CONTRIBUTING.md", "impossible or not tested"): "this file",
    ("CONTRIBUTING.md", "not measured"): "a rule",
    ("SECURITY.md", "cannot make a callback delete files"): "a promise: tests/callbacks/test_model_checkpoint.py",
    ("SECURITY.md", "cannot look up a package"): "pip-audit --strict fails then",
    ("docs/architecture.md", "You cannot hold it wrong"): "a promise",
    ("docs/architecture.md", "has no float16 mode"): "bfloat16 needs no loss scaling; see the test below",
    ("docs/architecture.md", "cannot leave a wrong flag behind"): "a promise: tests/test_model.py",
    ("docs/architecture.md", "cannot see which parameters"): "NNX assigns all Variables of a transformed module",
    ("docs/cpu.md", "oneDNN is not available"): "a condition, which the log names",
    ("docs/cpu.md", "if it is not available"): "a condition, which the error names",
    ("docs/guarantees.md", "cannot go wrong here"): "a heading: each row of its table names a test",
    ("docs/how-to/export.md", "other devices were not measured"): "no other machine was available on that day",
    ("docs/how-to/memory_and_time.md", "not measured on a GPU or TPU"): "no such machine was available on that day",
    ("docs/how-to/memory_and_time.md", "cannot be undone"): "glibc has no call that undoes M_ARENA_MAX",
    (
        "docs/how-to/memory_and_time.md",
        "cannot compare",
    ): "two functions that read files, the clock or NumPy's random numbers",
    ("docs/keras.md", "cannot be the best"): "the behavior of Keras",
    (
        "docs/lightning.md",
        "not available",
    ): "manual optimization: compute_loss and optax cover what was asked for so far",
    ("docs/resume.md", "a checkpoint cannot hold"): "nothing is pickled, so only values of known types are saved",
    ("docs/resume.md", "does not check callbacks"): "resfit does not know what a callback computes from params",
    ("docs/scaling.md", "Not tested"): "no such machine was available",
    ("docs/tutorial/your_first_resnet.md", "cannot be added to"): "arithmetic",
    ("docs/tutorial/your_first_resnet.md", "Shapes that cannot be added"): "arithmetic",
    ("docs/tutorial/your_first_resnet.md", "a branch cannot subtract"): "arithmetic",
}


def claims(text: str) -> list[str]:
    """Return each claim with the words around it, in one line; code does not count."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    prose = re.sub(r"\s+", " ", re.sub(r"`[^`]*`", "", prose))
    return [prose[max(0, match.start() - 30) : match.end() + 30] for match in CLAIM.finditer(prose)]


def unexplained(found: list[str], words: list[str]) -> list[str]:
    return [claim for claim in found if not any(known in claim for known in words)]


def gone(found: list[str], words: list[str]) -> list[str]:
    return [known for known in words if not any(known in claim for claim in found)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_limit_in_the_docs_has_a_reason_and_every_reason_its_limit(page: Path) -> None:
    words = [known for name, known in LIMITS if name == str(page.relative_to(ROOT))]
    found = claims(page.read_text())
    assert unexplained(found, words) == [], "Add the reason to LIMITS, or delete the sentence if it is no longer true."
    assert gone(found, words) == [], "Delete the row of LIMITS."


def test_every_row_is_about_a_page_that_exists() -> None:
    assert {name for name, _ in LIMITS} <= {str(page.relative_to(ROOT)) for page in PAGES}


@pytest.mark.parametrize(
    "text", ["Resume: none yet.", "It is not yet possible.", "This cannot be done.", "TPUs are not\nsupported."]
)
def test_a_new_limit_is_found(text: str) -> None:
    assert unexplained(claims(text), ["something else"])
    assert not claims("```text\nit cannot\n```\n`cannot` is code.")


def test_a_row_without_its_limit_is_found() -> None:
    assert gone(claims("This cannot be done."), ["cannot be done", "cannot be had"]) == ["cannot be had"]


def test_there_is_no_float16_mode() -> None:
    model = resfit.Model(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))
    with pytest.raises(CompileError, match="precision"):
        model.compile("sgd", learning_rate=0.1, precision="float16")


# (page, sentence with {}): the number that the code has.
COUNTS = {
    ("README.md", "has {} networks"): len(ZOO),
    ("README.md", r"\*\*{}\*\* \| networks"): len(ZOO),
    ("CHANGELOG.md", "docs/errors.md: {} mistakes"): sum(map(len, TOPICS.values())),
    ("CHANGELOG.md", "{} behaviors of Keras"): len(
        re.findall(r"^\| \d+ \|", (ROOT / "docs" / "keras.md").read_text(), re.MULTILINE)
    ),
    ("CONTRIBUTING.md", "lists {} small changes"): len(
        (ROOT / "tests" / "mutants" / "sample.jsonl").read_text().splitlines()
    ),
    ("docs/resume.md", "{} kinds of data"): len(KINDS),
}


@pytest.mark.parametrize(("page", "sentence"), COUNTS, ids=lambda text: text)
def test_a_count_in_the_docs_is_the_count_in_the_code(page: str, sentence: str) -> None:
    found = re.findall(sentence.replace("{}", r"(\d+)"), (ROOT / page).read_text())
    assert found == [str(COUNTS[page, sentence])]
