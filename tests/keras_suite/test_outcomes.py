"""The table of outcomes is well-formed, and a run that deviates from it is noticed. No test here needs Keras."""

import pytest

from tests.keras_suite.names import Missing, NotTranslated, missing
from tests.keras_suite.run import Expected, Seen, compared, expected

PASSED, FAILED = Seen("pass", ""), Seen("fail", "DataError: x is sparse")


def test_every_row_has_a_known_outcome_a_reason_and_a_sentence_that_the_docs_contain() -> None:
    rows = expected()
    assert len(rows) > 500
    for name, row in rows.items():
        assert row.outcome in ("pass", "adapted", "does not apply", "decided"), name
        assert bool(row.reason) is (row.outcome != "pass"), name
        if row.outcome == "decided":
            kind, _, what = row.reason.partition(" ")
            assert kind in ("raises", "docs"), name
            seen = Seen("fail", what) if kind == "raises" else FAILED
            assert row.deviation(seen) is None, name


@pytest.mark.parametrize(
    ("row", "seen", "deviates"),
    [
        (Expected("pass", ""), PASSED, False),
        (Expected("pass", ""), FAILED, True),
        (Expected("pass", ""), Seen("adapted", "logits"), True),
        (Expected("adapted", "logits"), Seen("adapted", "logits"), False),
        (Expected("adapted", "logits"), PASSED, True),
        (Expected("does not apply", "no CTC"), Seen("untranslated", "CTC"), False),
        (Expected("does not apply", "no CTC"), PASSED, True),
        (Expected("does not apply", ""), FAILED, True),
        (Expected("decided", "raises DataError: sparse"), FAILED, False),
        (Expected("decided", "raises LabelError: sparse"), FAILED, True),
        (Expected("decided", "raises DataError: sparse"), PASSED, True),
        (Expected("decided", 'docs "# Coming from Keras"'), FAILED, False),
        (Expected("decided", 'docs "a sentence that the page does not have"'), FAILED, True),
        (Expected("decided", "because"), FAILED, True),
        (Expected("flaky", "because"), FAILED, True),
    ],
)
def test_a_deviation_from_a_row_is_found(row: Expected, seen: Seen, deviates: bool) -> None:
    assert (row.deviation(seen) is not None) is deviates


def test_tests_without_a_row_and_rows_without_a_test_deviate_and_a_class_has_one_row() -> None:
    rows = {"a.py::A::*": Expected("pass", ""), "a.py::B::test": Expected("pass", "")}
    deviations, counts = compared({"a.py::A::test_1": PASSED, "a.py::C::test": PASSED}, rows)
    assert [line.partition(";")[2].strip() or line for line in deviations] == [
        "no row of the table",
        "a.py::B::test: did not run",
    ]
    assert counts == {"pass": 1, "deviates": 1}


def test_a_missing_name_can_be_inherited_from_and_raises_when_it_is_used() -> None:
    name = missing("keras.ops.foo")
    child = type("Child", (name,), {})
    for use in (name, child, name.bar):
        assert issubclass(use, Missing)
        with pytest.raises(NotTranslated, match=r"keras\.ops\.foo"):
            use()
