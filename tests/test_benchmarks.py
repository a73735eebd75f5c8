"""The machinery of the benchmarks: rows and bars, turns, children, the page. The measured values are not tested."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import interleaved, report
from benchmarks.child import Child, ChildError, ask
from benchmarks.report import Measured
from benchmarks.rows import Row, compared, counted, divided, keeps, left_out

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"


@pytest.mark.parametrize(
    ("number", "bar", "kept"),
    [
        (1.01, "<= 1.01", True),
        (1.011, "<= 1.01", False),
        (2.5, ">= 2.5", True),
        (2.4, ">= 2.5", False),
        (0.0, "<= 0", True),
        (99.0, "", None),
    ],
)
def test_a_number_keeps_a_bar_or_does_not(number: float, bar: str, kept: bool | None) -> None:
    assert keeps(number, bar) is kept


def test_a_ratio_is_the_median_of_pairs_and_not_the_ratio_of_medians() -> None:
    # The machine was ten times slower in two of three rounds, which the pairs do not see.
    row = compared("net", "a / b", [1.0, 22.0, 30.0], [1.0, 10.0, 10.0], "<= 2")
    assert row.ratio == 2.2
    assert row.ok is False
    assert (row.value, row.spread) == ("22.0 ms", "1.0 to 30.0")


def test_counts_and_quotients_are_held_against_bars_too() -> None:
    assert counted("net", "programs", 2, "<= 2").ok is True
    assert divided("net", "memory", 3.0, 2.0, "MiB", "<= 1.01").ok is False
    assert left_out("net", "PyTorch", "torch is not installed").ok is None


def test_turns_go_backwards_every_other_round_and_the_first_does_not_count() -> None:
    taken: list[str] = []

    def contestant(name: str) -> Any:
        return lambda: taken.append(name) or len(taken)  # type: ignore[func-returns-value]

    found = interleaved.turns({name: contestant(name) for name in "abc"}, 2, rarely=("c",))
    assert "".join(taken) == "abc" + "ba" + "abc"
    assert found == {"a": {1: 5, 2: 6}, "b": {1: 4, 2: 7}, "c": {2: 8}}


def test_a_child_keeps_an_object_and_answers_with_what_a_call_took() -> None:
    with Child({"GREETING": "hello"}) as child:
        assert child.call("os:getenv", key="GREETING").result == "hello"
        assert child.call("fractions:Fraction", numerator=3, denominator=4).result is None
        reply = child.call(".as_integer_ratio")
        assert reply.result == [3, 4]
        assert reply.wall >= 0


def test_a_child_that_raises_or_dies_tells_why() -> None:
    with Child() as child:
        with pytest.raises(ChildError, match="ZeroDivisionError"):
            child.call("fractions:Fraction", numerator=1, denominator=0)
        assert child.call("os:getcwd").result  # it lives on
        with pytest.raises(ChildError, match="ended with 3"):
            child.call("os:_exit", status=3)


def test_what_a_child_prints_is_no_answer() -> None:
    with Child() as child:
        assert child.call("os:system", command="echo noise").result == 0


def rows() -> list[Measured]:
    return [
        Measured(
            "tiny",
            "cpu",
            "a machine",
            "2026-01-01",
            compared("net", "fit / by hand", [2.0], [1.0], "<= 1.1"),
            "0123456789ab",
            ("code",),
        ),
        Measured("tiny", "gpu", "another", "2026-01-02", counted("net", "programs | all", 2)),
        Measured("host", "cpu", "a machine", "2026-01-01", left_out("state", "all", "too long")),
    ]


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert report.read(tmp_path / "none.json") == []
    report.write(tmp_path / "rows.json", rows())
    assert report.read(tmp_path / "rows.json") == rows()


def test_a_run_replaces_the_rows_of_its_own_sections_and_platform_only() -> None:
    new = [rows()[0]._replace(date="2026-02-02")]
    merged = report.merged(rows(), new, ["tiny", "host"])
    assert [(m.section, m.platform, m.date) for m in merged] == [
        ("tiny", "cpu", "2026-02-02"),
        ("host", "cpu", "2026-01-01"),
        ("tiny", "gpu", "2026-01-02"),
    ]


def test_the_page_names_the_run_of_every_row() -> None:
    page = report.page(rows())
    assert "| fit / by hand | 2.000 ms | 2.000 to 2.000 | 2.000 | <= 1.1 | NO |" in page
    assert "programs \\| all" in page
    assert "- **A**: 2026-01-01, measured at 0123456, a machine." in page
    assert "- **B**: 2026-01-02, measured at an unknown commit, another." in page


def test_only_what_stands_between_the_markers_is_replaced() -> None:
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.between_markers(text, "new")
    assert once == f"before\n{report.BEGIN}\nnew\n{report.END}\nafter\n"
    assert report.between_markers(once, "new") == once
    for broken in ("", text + text, f"{report.END}{report.BEGIN}"):
        with pytest.raises(ValueError, match="once each"):
            report.between_markers(broken, "new")


def test_the_documentation_has_a_place_for_the_tables() -> None:
    assert "new" in report.between_markers(PAGE.read_text(), "new")


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    report.draw(rows(), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_without_a_ratio_or_a_verdict_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    report.show([measured.row for measured in rows()] + [Row("net", "nothing")])
    assert "NO" in capsys.readouterr().out


@pytest.mark.slow
def test_three_loops_train_the_same_network_on_the_same_batches() -> None:
    """The first epoch of all three has the same order, so their losses agree."""
    losses, parameters = {}, set()
    for name in ("fit", "hand_written", "textbook"):
        with Child() as child:
            child.call(f"benchmarks.contestants.{name}:Contestant", platform="cpu", name="tiny", steps=4)
            losses[name] = child.call(".train").result
            parameters.add(child.call(".facts").result["parameters"])
    assert losses == pytest.approx(dict.fromkeys(losses, losses["fit"]), rel=1e-5)
    assert len(parameters) == 1


@pytest.mark.slow
def test_compilations_are_counted() -> None:
    counts = ask("benchmarks.compilations:counts")
    assert counts["all"] >= counts["train"] + counts["evaluate"]
    assert (counts["later"], counts["second"]) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("checkpoints:measure", {"platform": "cpu", "name": "tiny", "rounds": 1}),
        ("feeding:measure", {"shape": [4, 8, 8, 3], "dtype": "uint8", "batches": 2, "rounds": 1}),
        ("long_fit:measure", {"platform": "cpu", "name": "tiny", "epochs": 3, "steps": 2, "cache": "device"}),
        ("short_calls:measure", {"platform": "cpu", "rounds": 1, "calls": 2}),
    ],
)
def test_a_group_that_uses_parts_of_the_trainer_runs(function: str, arguments: dict[str, Any]) -> None:
    assert ask(f"benchmarks.{function}", {"XLA_FLAGS": ""}, **arguments)
