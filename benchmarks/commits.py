"""The commit of a measurement, and the changes of the measured files since that commit, from git."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

DIGITS = 12  # of a stored commit


class History:
    """The git history of a source tree.

    Args:
      root: of the tree.

    Attributes:
      known: True if git is installed and `root` is the top of a repository.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self.known = False
        try:
            top = self._git("rev-parse", "--show-toplevel")
        except FileNotFoundError:  # git is not installed
            return
        # A tree without history can lie inside another repository.
        self.known = top.returncode == 0 and Path(top.stdout.strip()).resolve() == root.resolve()

    @property
    def shallow(self) -> bool:
        """True if the clone lacks old commits."""
        return self._git("rev-parse", "--is-shallow-repository").stdout.strip() == "true"

    def head(self) -> str:
        """Return the commit of the tree; "" without a history."""
        return self._git("rev-parse", f"--short={DIGITS}", "HEAD").stdout.strip() if self.known else ""

    def has(self, commit: str) -> bool:
        """Return True if the clone holds the commit."""
        return self._git("cat-file", "-e", f"{commit}^{{commit}}").returncode == 0

    def uncommitted(self, paths: Sequence[str]) -> list[str]:
        """Return the files below these paths that differ from the last commit."""
        if not self.known:
            return []
        return [line[3:] for line in self._git("status", "--porcelain", "--", *paths).stdout.splitlines()]

    def newest_change(self, commit: str, paths: Sequence[str]) -> str:
        """Describe the newest change below these paths since a commit; "" if their contents are those of the commit.

        Contents are compared first: history alone would report a reverted change, and the first commit of a shallow
        clone as a change of every file.
        """
        if self._git("diff", "--quiet", commit, "HEAD", "--", *paths).returncode == 0:
            return ""
        change = self._git("log", "-1", "--format=%h of %cs, %s", f"{commit}..HEAD", "--", *paths).stdout.strip()
        return change or "a commit on another branch"

    def _git(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        # A hook of git sets variables that name another repository.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        return subprocess.run(["git", "-C", str(self._root), *arguments], capture_output=True, text=True,
                              check=False, env=environment)  # fmt: skip
