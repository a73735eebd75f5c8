"""The rows of the benchmarks: their commits, and the headline tables that must not be older than the code."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import headlines, report
from benchmarks.__main__ import main
from benchmarks.commits import History
from benchmarks.groups import GROUPS
from benchmarks.report import Measured
from benchmarks.rows import compared

ROOT = Path(__file__).parents[1]
TABLE = """
| | step | other | measured at |
|---|---:|---|---|
| tiny, 8 x 8 | {step} | 1.95 (1.5) | {mark} <!-- rows: tiny cpu --> |

| not a headline | 9 |
|---|---|
| tiny | 77 |
"""


class Tree:
    """A source tree with the pages of the headlines, in which `code/step.py` is measured."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for page in headlines.PAGES:
            (root / page).parent.mkdir(parents=True, exist_ok=True)
        self.write("code/step.py", "1")
        self.write("other.py", "1")
        self.show()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def show(self, step: str = "2,050", mark: str = "") -> None:
        for page in headlines.PAGES:
            self.write(page, TABLE.format(step=step, mark=mark))

    def git(self, *arguments: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
        subprocess.run(["git", *names, *arguments], cwd=self.root, check=True, capture_output=True)

    def commit(self) -> str:
        self.git("add", ".")
        self.git("commit", "-q", "-m", "Change it")
        return History(self.root).head()

    def measure(self, commit: str) -> None:
        row = compared("net", "fit / by hand", [2050.4], [1050.0], note="1.5 in the first")
        measured = Measured("tiny", "cpu", "a machine", "2026-01-01", row, commit, ("code",))
        report.write(self.root / "docs" / "benchmarks.json", [measured])


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Return a repository with one commit, at which the row was measured."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    made = Tree(tmp_path / "tree")
    made.git("init", "-q")
    made.measure(made.commit())
    made.commit()
    return made


def stored_commit(tree: Tree) -> str:
    return report.read(tree.root / "docs" / "benchmarks.json")[0].commit


def test_a_headline_is_old_once_a_measured_file_has_changed_unless_its_commit_is_named(tree: Tree) -> None:
    tree.write("other.py", "2")
    tree.commit()
    assert headlines.check(tree.root) == ([], [])
    tree.write("code/step.py", "2")
    tree.commit()
    found, notes = headlines.check(tree.root)
    assert (len(found), notes) == (len(headlines.PAGES), [])
    commit = stored_commit(tree)
    assert f"README.md:4: the row was measured at {commit}, and the files that it measures changed in" in found[0]
    assert "Change it" in found[0]
    tree.show(mark=commit[:7])
    assert headlines.check(tree.root) == ([], [])
    tree.show(mark=History(tree.root).head()[:7])  # a commit at which nothing was measured
    assert "Expected the commit of its stored rows" in headlines.check(tree.root)[0][-1]
    tree.show()
    tree.write("code/step.py", "1")  # the change is reverted
    tree.commit()
    assert headlines.check(tree.root) == ([], [])


def test_without_git_the_check_is_skipped_with_a_line(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.write("code/step.py", "2")
    tree.commit()
    monkeypatch.setenv("PATH", "")
    found, notes = headlines.check(tree.root)
    assert found == []
    assert "no git history" in notes[0]


def test_a_tree_inside_another_repository_has_no_history(tree: Tree) -> None:
    inside = Tree(tree.root / "inside")
    inside.measure(stored_commit(tree))
    found, notes = headlines.check(inside.root)
    assert found == []
    assert "no git history" in notes[0]
    assert History(inside.root).head() == ""
    assert History(inside.root).uncommitted(["code"]) == []


def test_a_shallow_clone_skips_a_commit_that_it_lacks(tree: Tree, tmp_path: Path) -> None:
    tree.write("code/step.py", "2")
    tree.commit()
    tree.git("clone", "-q", "--depth=1", tree.root.as_uri(), str(tmp_path / "shallow"))
    found, notes = headlines.check(tmp_path / "shallow")
    assert found == []
    assert "this shallow clone lacks" in notes[0]
    tree.git("clone", "-q", tree.root.as_uri(), str(tmp_path / "whole"))
    assert headlines.check(tmp_path / "whole")[0]
    tree.git("clone", "-q", "--depth=3", tree.root.as_uri(), str(tmp_path / "deep"))
    assert headlines.check(tmp_path / "deep")[0]


@pytest.mark.parametrize(
    ("page", "says"),
    [
        (TABLE.format(step="2,051", mark=""), "no stored row of tiny has 2,051"),
        (TABLE.format(step="2.05", mark=""), "no stored row of tiny has 2.05"),
        (TABLE.replace(" <!-- rows: tiny cpu -->", "").format(step="2,050", mark=""), "no stored rows of any group"),
        (TABLE.replace("tiny cpu", "tiny big cpu").format(step="2,050", mark=""), "no stored rows of ['big']"),
        (TABLE.replace("tiny cpu", "tiny gpu").format(step="2,050", mark=""), "no stored rows of ['tiny']"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\n", "no headline table"),
    ],
)
def test_a_headline_shows_the_numbers_of_its_stored_rows(tree: Tree, page: str, says: str) -> None:
    tree.write("README.md", page)
    found, _ = headlines.check(tree.root)
    assert len(found) == 1
    assert says in found[0]


def test_a_row_without_a_known_commit_is_a_fault(tree: Tree) -> None:
    for commit, says in (("", "have no commit"), ("0123456789ab", "has no commit 0123456789ab")):
        tree.measure(commit)
        assert says in headlines.check(tree.root)[0][0]


def test_files_that_are_not_committed_are_named(tree: Tree) -> None:
    history = History(tree.root)
    assert history.uncommitted(["code"]) == []
    tree.write("code/new.py", "")
    tree.write("other.py", "3")
    assert history.uncommitted(["code"]) == ["code/new.py"]


def test_a_run_that_stores_rows_needs_committed_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(History, "uncommitted", lambda self, paths: [paths[0]])
    monkeypatch.setattr("sys.argv", ["benchmarks", "--only", "host"])
    with pytest.raises(SystemExit, match="resfit/callbacks: not committed"):
        main()


def test_a_hook_of_git_does_not_select_the_repository(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", os.devnull)
    assert History(tree.root).known


def test_the_headlines_of_the_documentation_are_complete() -> None:
    rows = report.read(ROOT / "docs" / "benchmarks.json")
    shown = [found for page in headlines.PAGES for found in headlines.headlines(page, (ROOT / page).read_text())]
    assert len(shown) > len(headlines.PAGES)
    assert all(headline.groups and headline.numbers for headline in shown)
    for headline in shown:
        stored = [measured for measured in rows if measured.section in headline.groups]
        assert headlines.wrong_numbers(headline, stored) == []


def test_the_step_on_the_first_screen_is_that_of_the_headline_table() -> None:
    text = (ROOT / "README.md").read_text()
    (line,) = re.findall(r"^\| \*\*[\d.]+ ms\*\* .*", text, re.MULTILINE)
    headline = next(headlines.headlines("README.md", text))
    assert set(re.findall(r"[\d.]+(?= ms)", line.replace("**", ""))) <= set(headline.numbers)


def test_every_stored_row_has_a_commit_and_files() -> None:
    for measured in report.read(ROOT / "docs" / "benchmarks.json"):
        assert headlines.COMMIT.fullmatch(measured.commit)
        assert measured.files


def test_every_group_measures_files_that_exist_and_the_whole_run_takes_forty_minutes() -> None:
    for group in GROUPS.values():
        assert all((ROOT / path).exists() for path in group.files)
    assert sum(group.minutes for group in GROUPS.values()) <= 40
