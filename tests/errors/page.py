"""`docs/errors.md`, from the table and what its rows say."""

import re
from pathlib import Path

from tests.errors.mistakes import BEFORE, TOPICS, Mistake
from tests.errors.outcomes import in_an_empty_folder, names, run, section

PAGE = Path(__file__).parents[2] / "docs" / "errors.md"

INTRO = f"""\
# What goes wrong, and what it says

Mistakes that users of this field report, and what resfit says to each: what it received, what it expected, what to do.
Nothing is lost by one: the model holds what it held, or what was trained before, and can be used at once.

This page is made by the tests that make these mistakes (`make errors`), so that every message stands here as it is
raised. Errors derive from `resfit.errors.ResfitError` and from the built-in exception that one would expect:
`except ValueError` catches a wrong label. A missing file is a `FileNotFoundError`. An error inside a network or loss of
your own stays what it is; resfit adds a note that says what your code was called with.

Some mistakes cannot be told from intentions: a softmax before the loss, 0..255 as floats, a rate ten times too high.
`resfit.doctor` looks for those, see [Tools](how-to/tools.md).

Every example begins with this:

```python
{BEFORE}```
"""


def page() -> str:
    """The whole page; every row is run."""
    parts = [INTRO]
    for topic, mistakes in TOPICS.items():
        parts.append(f"\n## {topic}\n")
        parts += ["\n" + _section(mistake) for mistake in mistakes]
    return "".join(parts)


def headings(text: str) -> list[str]:
    """Topics and titles, in order; lines of code do not count."""
    return re.findall(r"^(##+ .*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)


def expected_headings() -> list[str]:
    """What `headings` of the page must be."""
    return [
        line
        for topic, mistakes in TOPICS.items()
        for line in [f"## {topic}", *(f"### {mistake.title}" for mistake in mistakes)]
    ]


def _section(mistake: Mistake) -> str:
    with in_an_empty_folder():
        return section(mistake, run(mistake.code, names()))
