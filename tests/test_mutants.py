"""The mutation run finds its mutants in code that has changed, and the tests that it names exist."""

import dataclasses
from pathlib import Path

import pytest

from tests.mutants.near import GROUPS, Group
from tests.mutants.sample import Mutant, read, sample

ROOT = Path(__file__).parents[1]

SOURCE = """\
class Average:
    def update(self, value):
        if value > 0:
            self.total += value
        return self.total

def update(value):
    if value > 0:
        print(value)
    if value > 0:
        return value
"""

MUTANT = Mutant("group", "average.py", "Average.update", "if value > 0:", "if value < 0:", 0, "operator")


def test_a_mutant_changes_its_line_in_its_function_alone() -> None:
    method, function = SOURCE.split("\n\n")
    assert MUTANT.applied(SOURCE) == f"{method.replace('>', '<')}\n\n{function}"


def test_the_second_of_two_equal_lines_of_a_function_is_told_from_the_first() -> None:
    second = dataclasses.replace(MUTANT, function="update", nth=1)
    head, middle, tail = SOURCE.rpartition("if value > 0:")
    assert second.applied(SOURCE) == f"{head}{middle.replace('>', '<')}{tail}"


def test_a_mutant_is_found_again_in_code_that_has_moved() -> None:
    moved = f'"""A docstring."""\n\nimport math\n\n\n{SOURCE.replace("self.total += value", "self.total += 2 * value")}'
    assert MUTANT.applied(moved).count("if value < 0:") == 1


@pytest.mark.parametrize(
    "change", [("value > 0", "value > 1"), ("class Average", "class Mean"), ("def update(self", "def add(self")]
)
def test_a_mutant_whose_line_or_function_is_gone_changes_nothing(change: tuple[str, str]) -> None:
    assert MUTANT.applied(SOURCE.replace(*change)) is None


def test_every_pattern_of_the_mutation_run_names_a_file() -> None:
    patterns = [pattern for group in GROUPS for pattern in group.files]
    patterns += [f"tests/{pattern}" for group in GROUPS for row in group.rows for pattern in row]
    assert [pattern for pattern in patterns if not list(ROOT.glob(pattern))] == []


def test_a_new_sample_keeps_the_mutants_that_are_not_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "average.py").write_text(SOURCE)
    monkeypatch.setattr("tests.mutants.sample.GROUPS", [Group("group", 1, ("average.py",), ())])
    gone = [dataclasses.replace(MUTANT, old="if value > 1:"), dataclasses.replace(MUTANT, file="mean.py")]
    assert sample(tmp_path, 0, kept=[*gone, MUTANT]) == [MUTANT]


def test_nearly_all_mutants_of_the_sample_are_found() -> None:
    mutants = read(ROOT / "tests" / "mutants" / "sample.jsonl")
    sources = {file: (ROOT / file).read_text() for mutant in mutants if (ROOT / (file := mutant.file)).exists()}
    gone = [mutant for mutant in mutants if mutant.file not in sources or not mutant.applied(sources[mutant.file])]
    assert len(gone) <= len(mutants) // 10, "Run: make mutants ARGS='sample --keep'"
