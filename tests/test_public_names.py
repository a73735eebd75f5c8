"""The public names are a list under version control, so that a diff shows each added, renamed or removed name."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import resfit

SNAPSHOT = Path(__file__).parent / "public_names.txt"
API_REFERENCE = Path(__file__).parents[1] / "docs" / "api"


def names_of(module: ModuleType) -> list[str]:
    """Return `__all__`, or the public names that the module itself defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = (name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__)
    return [name for name in own if not name.startswith("_")]


def public_names() -> list[str]:
    """Return the public names of resfit, and those of its public modules."""
    modules = [resfit, *(value for name in resfit.__all__ if isinstance(value := getattr(resfit, name), ModuleType))]
    return sorted(f"{module.__name__}.{name}" for module in modules for name in names_of(module))


def test_the_public_names_are_those_of_the_snapshot() -> None:
    recorded, now = set(SNAPSHOT.read_text().split()), set(public_names())
    assert recorded == now, (
        f"new: {sorted(now - recorded)}; gone: {sorted(recorded - now)}. If that is meant, say so in CHANGELOG.md and "
        "edit tests/public_names.txt."
    )


def test_every_public_name_exists() -> None:
    for name in public_names():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_the_facade_has_at_most_40_names() -> None:
    assert len(resfit.__all__) <= 40


def test_every_public_name_is_in_the_api_reference() -> None:
    """By its own entry, or through that of its module, which lists everything public in it."""
    pages = "".join(page.read_text() for page in API_REFERENCE.glob("*.md"))
    documented = set(re.findall(r"^\.\. auto\w+:: (\S+)$", pages, re.MULTILINE))
    assert [name for name in public_names() if not {name, name.rpartition(".")[0]} & documented] == []
