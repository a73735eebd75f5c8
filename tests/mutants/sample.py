"""Sample mutants of resfit: small changes of its code, each of which the tests should notice.

cosmic-ray makes the changes. The rules in `_useful` leave out those that no test should notice, or that every test
would.
"""

import ast
import dataclasses
import functools
import json
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.mutants.near import GROUPS


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A change of a few lines, found again by their text.

    Attributes:
      group: the name of the group of files it stands for.
      file: the path in the repository.
      function: the qualified name of the innermost function or class around the change; "" at module level.
      old: the lines before the change, without their indentation.
      new: the lines after it, likewise.
      nth: which of the equal lines in the function, from 0.
      operator: cosmic-ray's name of the kind of change.
      equivalent: why the change makes no difference, so that no test is run on it; "" if it may make one.
    """

    group: str
    file: str
    function: str
    old: str
    new: str
    nth: int
    operator: str
    equivalent: str = dataclasses.field(default="", compare=False)

    def applied(self, source: str) -> str | None:
        """Return the source with the change, or None if its lines are not there."""
        lines, size = source.splitlines(), self.old.count("\n") + 1
        found = [
            start
            for first, last in _spans(source).get(self.function, [])
            for start in range(first - 1, last - size + 1)
            if _dedented(lines[start : start + size], lines[start]) == self.old
        ]
        if self.nth >= len(found):
            return None
        start = found[self.nth]
        indent = re.match(r"\s*", lines[start])[0]
        lines[start : start + size] = [indent + line for line in self.new.split("\n")]
        return "\n".join(lines) + "\n"


def read(path: Path) -> list[Mutant]:
    """Return the mutants of a file, one JSON object a line."""
    return [Mutant(**json.loads(line)) for line in path.read_text().splitlines()]


def write(path: Path, mutants: list[Mutant]) -> None:
    """Write mutants, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dataclasses.asdict(mutant)) + "\n" for mutant in mutants))


def sample(root: Path, seed: int, kept: Iterable[Mutant] = ()) -> list[Mutant]:
    """Return a sample, stratified: of each group its number of lines, and of each line one mutant.

    Each file of a group comes once before any comes twice. The groups take turns, so that a run that is cut short has
    some of each.

    Args:
      root: of the repository.
      seed: of the random choice.
      kept: mutants to keep, unless they are gone.
    """
    random_ = random.Random(seed)
    kept = [mutant for mutant in kept if (root / mutant.file).exists()]
    kept = [mutant for mutant in kept if mutant.applied((root / mutant.file).read_text()) is not None]
    of_groups = []
    for group in GROUPS:
        chosen = [mutant for mutant in kept if mutant.group == group.name]
        known = {root / mutant.file for mutant in chosen}
        by_line: dict[tuple[Path, int], list[Change]] = {}
        for path in sorted({path for pattern in group.files for path in root.glob(pattern)}):
            for change in changes(path.read_text()) if len(chosen) < group.mutants else ():
                by_line.setdefault((path, change.line), []).append(change)
        lines = random_.sample(list(by_line.items()), len(by_line))
        firsts = {path: line for line in reversed(lines) if (path := line[0][0]) not in known}
        for (path, _), same_line in [*reversed(firsts.values()), *lines]:
            if len(chosen) < group.mutants:
                file = str(path.relative_to(root))
                mutant = random_.choice(same_line).mutant(path.read_text(), group.name, file)
                chosen += [mutant] if mutant and mutant not in chosen else []
        of_groups.append(chosen)
    order = sorted((i / len(chosen), n, i) for n, chosen in enumerate(of_groups) for i in range(len(chosen)))
    return [of_groups[n][i] for _, n, i in order]


@dataclasses.dataclass(frozen=True)
class Change:
    """A change that cosmic-ray can make: the n-th place of a module at which an operator applies."""

    name: str
    operator: Any
    occurrence: int
    line: int

    def mutant(self, source: str, group: str, file: str) -> Mutant | None:
        """Return the change as text, or None if it is no Python."""
        from cosmic_ray.mutating import mutate_code

        changed = mutate_code(source, self.operator, self.occurrence)
        try:
            compile(changed, file, "exec")
        except SyntaxError:
            return None
        old, new = source.splitlines(), changed.splitlines()
        same = [a == b for a, b in zip(old, new, strict=False)]
        same_at_end = [a == b for a, b in zip(reversed(old), reversed(new), strict=False)]
        if all(same) or re.search(r"(^|, )\*,", old[same.index(False)].strip()):  # the mark of keyword-only parameters
            return None
        first, after = same.index(False), same_at_end.index(False)
        function = _innermost(source, self.line)
        old_text, new_text = (_dedented(lines[first : len(lines) - after], old[first]) for lines in (old, new))
        mutant = Mutant(group, file, function, old_text, new_text, 0, self.name)
        for nth in range(len(old)):
            if (mutant := dataclasses.replace(mutant, nth=nth)).applied(source) == changed:
                return mutant
        return None


def changes(source: str) -> Iterator[Change]:
    """Return all useful changes of a module."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    operators = {name.partition("/")[2]: get_operator(name) for name in operator_names()}
    operators = {name: kind() for name, kind in operators.items() if _useful(name) and not kind.arguments()}
    operators["DeleteStatement"] = _delete_statement()()
    nodes, idle = list(ast_nodes(get_ast(source))), list(_idle(ast.parse(source)))
    for name, operator in operators.items():
        positions = (position for node in nodes for position in operator.mutation_positions(node))
        for occurrence, (start, stop) in enumerate(positions):
            if not any(first <= start and stop <= last for first, last in idle):
                yield Change(name, operator, occurrence, start[0])


# --- rules: which changes say something about the tests ------------------------------------------------------------

_ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}


def _useful(operator: str) -> bool:
    """Return whether a kind of change can be noticed, and not by every test."""
    name, *kinds = operator.split("_")
    if name == "RemoveDecorator":  # a property or a dataclass: every test fails; a cache: none
        return False
    if name == "ReplaceBinaryOperator":  # shifts of floats raise at once
        return set(kinds) <= _ARITHMETIC or not set(kinds) & _ARITHMETIC
    if name == "ReplaceComparisonOperator":  # `is` and `==` agree where the house uses `is`
        return not ({"Is", "IsNot"} & set(kinds)) or set(kinds) == {"Is", "IsNot"}
    if name == "ReplaceUnaryOperator":  # +x and ~x for -x
        return kinds[0] == "Delete"
    return True


_TELLING = re.compile(r"(warn|warning|info|debug|log|add_note|error|\w*(Error|Warning|Failed))$")
_TEXTS = {"__repr__", "__str__", "_short"}


def _idle(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Return the (line, column) ranges that decide nothing, or only what a message says."""
    for node in ast.walk(tree):
        idle: list[Any] = []
        match node:
            case ast.arg(annotation=ast.expr() as annotation) | ast.AnnAssign(annotation=annotation):
                idle.append(annotation)
            case ast.JoinedStr() | ast.Raise() | ast.Assert() | ast.Import() | ast.ImportFrom():
                idle.append(node)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if _TELLING.match(name):
                idle.append(node)
            case ast.Call(func=ast.Name(id="zip"), keywords=keywords):
                idle += keywords  # strict=True: our own lists have equal lengths
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                idle.append(node)
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("__") or _is_type(node.value):
                idle.append(node)
        if isinstance(node, ast.FunctionDef):
            idle += [node.returns, *node.decorator_list]
            told = isinstance(node.returns, ast.Name) and node.returns.id.endswith("Error")
            if node.name in _TEXTS or told or any("overload" in ast.unparse(d) for d in node.decorator_list):
                idle.append(node)
            if node.name.startswith("_") and node.name != "__init__":  # its callers are ours, and pass what matters
                idle += [*node.args.defaults, *node.args.kw_defaults]
        if isinstance(node, ast.ClassDef):
            idle += [*node.decorator_list, *node.bases]
        for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
            if isinstance(body, list) and body and isinstance(body[-1], ast.Raise):
                idle += body  # what comes before a raise prepares its message
        for found in filter(None, idle):
            yield (found.lineno, found.col_offset), (found.end_lineno, found.end_col_offset)


def _is_type(value: ast.expr) -> bool:
    """Return whether an assigned value is a type: `Leaves = tuple[jax.Array, ...]`."""
    text = ast.unparse(value)
    return text.startswith(("Callable[", "Literal[", "tuple[", "dict[", "Mapping[", "Sequence[")) or (
        isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr)
    )


@functools.cache
def _delete_statement() -> Any:
    """Return an operator that cosmic-ray lacks: it deletes calls, and assignments to attributes and items."""
    from cosmic_ray.operators.operator import Example, Operator
    from parso.python.tree import Keyword
    from parso.tree import search_ancestor

    class DeleteStatement(Operator):
        def mutation_positions(self, node: Any) -> Iterator[Any]:
            if node.type == "simple_stmt":
                statement = node.children[0]
                target = statement.children[0] if statement.type == "expr_stmt" else statement
                # Without what a constructor sets, every test fails.
                function = search_ancestor(node, "funcdef")
                constructs = statement is not target and function and function.name.value == "__init__"
                if target.type == "atom_expr" and not constructs:  # f(x), a.b = c, a[b] = c
                    yield statement.start_pos, statement.end_pos

        def mutate(self, node: Any, index: int) -> Any:
            node.children[0] = Keyword("pass", node.start_pos, node.get_first_leaf().prefix)
            return node

        @classmethod
        def examples(cls) -> Any:
            return (Example("f(x)\n", "pass\n"), Example("a.b = c\n", "pass\n"))

    return DeleteStatement


# --- text ----------------------------------------------------------------------------------------------------------


def _dedented(lines: list[str], like: str) -> str:
    """Return the lines without the indentation of `like`."""
    indent = re.match(r"[ \t]*", like)[0]
    return "\n".join(line.removeprefix(indent) for line in lines)


@functools.lru_cache(maxsize=64)
def _spans(source: str) -> dict[str, list[tuple[int, int]]]:
    """Return (first, last) line of everything of a qualified name; "" is the module."""
    found: dict[str, list[tuple[int, int]]] = {"": [(1, len(source.splitlines()))]}

    def walk(node: ast.AST, around: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = around
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                name = f"{around}.{child.name}".lstrip(".")
                found.setdefault(name, []).append((child.lineno, child.end_lineno))
            walk(child, name)

    walk(ast.parse(source), "")
    return found


def _innermost(source: str, line: int) -> str:
    around = [(first, name) for name, spans in _spans(source).items() for first, last in spans if first <= line <= last]
    return max(around)[1]
