"""Write `docs/errors.md` from the table and the outcomes of its rows."""

import re
from pathlib import Path

from tests.errors.mistakes import BEFORE, TOPICS, Mistake
from tests.errors.outcomes import in_an_empty_folder, names, run, section

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"

INTRO = f"""\
# Errors and their remedies

This page lists mistakes that users of this field report, with the error of resfit: the received value, what was
expected, and the remedy. A mistake never loses work: the model keeps its values, and can be used at once.

`make errors` writes this page with the tests that make these mistakes, so every message is the one that resfit raises.
Errors derive from `resfit.errors.ResfitError` and from the matching built-in exception: `except ValueError` catches a
wrong label. A missing file is a `FileNotFoundError`, and a folder in place of a file an `IsADirectoryError`. An error
inside a custom network or loss keeps its type; resfit adds a note with the arguments of the call.

resfit does not detect some mistakes while it trains, because they can be intended: a softmax before the loss, 0..255 as
floats, a learning rate that is ten times too high. `resfit.doctor` looks for them, see [Tools](how-to/tools.md).

Every example begins with this:

```python
{BEFORE}```
"""


def page() -> str:
    """Return the whole page, after running every row."""
    parts = [INTRO]
    for topic, mistakes in TOPICS.items():
        parts.append(f"\n## {topic}\n")
        parts += ["\n" + _section(mistake) for mistake in mistakes]
    return "".join(parts)


def headings(text: str) -> list[str]:
    """Return the topics and titles in order, without lines of code."""
    return re.findall(r"^(##+ .*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def expected_headings() -> list[str]:
    """Return the expected `headings` of the page."""
    return [
        line
        for topic, mistakes in TOPICS.items()
        for line in [f"## {topic}", *(f"### {mistake.title}" for mistake in mistakes)]
    ]


def _section(mistake: Mistake) -> str:
    with in_an_empty_folder():
        return section(mistake, run(mistake.code, names()))
