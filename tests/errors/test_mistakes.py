"""Each mistake of the table raises its error, with the received value and the fix, and the model keeps its values."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resfit.errors import ResfitError
from tests.errors.mistakes import BEFORE, MISTAKES, TOPICS, WARNING, Mistake
from tests.errors.outcomes import Outcome, in_an_empty_folder, names, run, section
from tests.errors.page import INTRO, PAGE, expected_headings, headings
from tests.helpers import assert_same, values

REMEDY = "docs/errors.md is made by `make errors`: run it again, and look at what has changed"


def faults(mistake: Mistake, outcome: Outcome) -> list[str]:
    """Return the problems of the outcome of a mistake."""
    found = []
    if outcome.error is not mistake.error and not (
        mistake.foreign and isinstance(outcome.error, type) and issubclass(outcome.error, mistake.error)  # type: ignore[arg-type]
    ):
        found.append(f"expected {mistake.error}, got {outcome.error}: {outcome.message}")
    said = outcome.notes if mistake.foreign else outcome.message
    if mistake.received not in said:
        found.append(f"does not say what was received, {mistake.received!r}: {said}")
    if mistake.fix not in said:
        found.append(f"does not say what to do, {mistake.fix!r}: {said}")
    return found


def changes_the_model(mistake: Mistake) -> bool:
    """Return True if the code of a mistake changes the model on purpose: a call of compile that fails does not."""
    calls = [f"model.{name}(" for name in ("compile", "freeze")]
    if mistake.error is not WARNING and "\n" not in mistake.code and mistake.code.startswith(tuple(calls)):
        return mistake.trains
    return mistake.trains or any(call in mistake.code for call in calls)


def by_themselves() -> Iterator[Any]:
    """Yield the parameters for rows with their own model.

    One row of each topic is quick. A row that the test of its topic contains too is exhaustive.
    """
    for mistakes in TOPICS.values():
        alone = [mistake for mistake in mistakes if changes_the_model(mistake)]
        for mistake in mistakes:
            slow = pytest.mark.slow if mistake in alone else pytest.mark.exhaustive
            yield pytest.param(mistake, marks=() if mistake in alone[:1] else slow, id=mistake.title.replace(" ", "-"))


@functools.cache
def untouched() -> tuple[Any, Any, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return images, labels, and the variables of a model before and after one step on them."""
    made = names()
    at_first = values(made["model"].module)
    return made["x"], made["y"], at_first, step(made["model"], made["x"], made["y"])


def step(model: Any, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return the variables after one step on all of x and y."""
    model.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    return values(model.module)


@pytest.mark.parametrize("topic", TOPICS)
def test_one_model_survives_all_mistakes_of_a_topic_that_do_not_change_it(topic: str) -> None:
    x, y, at_first, after_a_step = untouched()
    model = names()["model"]
    page = PAGE.read_text()
    for mistake in TOPICS[topic]:
        if not changes_the_model(mistake):
            with in_an_empty_folder():
                outcome = run(mistake.code, names(model))
                assert faults(mistake, outcome) == [], mistake.title
                assert section(mistake, outcome) in page, REMEDY
            assert_same(values(model.module), at_first)
    assert_same(step(model, x, y), after_a_step)


@pytest.mark.parametrize("mistake", list(by_themselves()))
def test_a_mistake_raises_with_its_remedy_and_loses_nothing(mistake: Mistake) -> None:
    x, y, at_first, after_a_step = untouched()
    made = names()
    model = made["model"]
    outcome = run(mistake.code, made)
    assert faults(mistake, outcome) == []
    assert section(mistake, outcome) in PAGE.read_text(), REMEDY
    if not mistake.trains:
        assert_same(values(model.module), at_first)
    if changes_the_model(mistake):
        model.freeze()  # undo the intended changes of the code, so that any other change would show
        model.compile("sgd", learning_rate=0.1, dispatch="jit")
    now = step(model, x, y)
    if mistake.trains:
        assert all(np.isfinite(value).all() for value in now.values())
    else:
        assert_same(now, after_a_step)


def test_every_row_starts_with_the_code_at_the_top_of_the_page() -> None:
    shown: dict[str, Any] = {"__name__": "mistake"}
    exec(BEFORE, shown)
    given, again = names(), names()
    assert set(given) == set(shown)
    for name in ("x", "y"):
        np.testing.assert_array_equal(given[name], shown[name])
        assert given[name] is not again[name]
    assert_same(values(given["model"].module), values(shown["model"].module))
    assert given["model"].module is not again["model"].module
    assert BEFORE.splitlines()[-1].startswith("model.compile(")


def test_the_page_contains_exactly_the_rows_of_the_table() -> None:
    text = PAGE.read_text()
    assert text.startswith(INTRO), REMEDY
    assert headings(text) == expected_headings(), REMEDY


def test_titles_are_unique_and_there_are_many() -> None:
    titles = [mistake.title for mistake in MISTAKES]
    assert len(set(titles)) == len(titles) >= 40


def test_all_errors_are_those_of_resfit_except_for_missing_files_and_user_code() -> None:
    others = {
        mistake.error
        for mistake in MISTAKES
        if mistake.error is not WARNING and not mistake.foreign and not issubclass(mistake.error, ResfitError)  # type: ignore[arg-type]
    }
    assert others == {FileNotFoundError, IsADirectoryError, NotADirectoryError}


@pytest.mark.representatives("change1-ZeroDivisionError", "change4-does not say what to do")
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"code": "x"}, "got None"),
        ({"code": "1 / 0"}, "ZeroDivisionError"),
        ({"error": ValueError}, "expected <class 'ValueError'>"),
        ({"received": "(16, 8, 8, 3)"}, "does not say what was received"),
        ({"fix": "x.reshape"}, "does not say what to do"),
    ],
)
def test_a_wrong_row_is_found(change: dict[str, Any], fault: str) -> None:
    """The first row of the table is made wrong in several ways."""
    mistake = MISTAKES[0]
    assert faults(mistake, run(mistake.code, names())) == []
    wrong = mistake._replace(**change)
    assert any(fault in found for found in faults(wrong, run(wrong.code, names())))


def test_parts_of_a_message_that_differ_in_every_run_are_left_out() -> None:
    outcome = run("raise ValueError(f'{object()} in {__import__(\"os\").getcwd()}/run')", names())
    assert outcome.message == "<object object at 0x...> in run"
    assert str(Path.cwd()) not in outcome.message
