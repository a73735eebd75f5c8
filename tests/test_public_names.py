"""The public names, as a list under version control: whoever adds, renames or removes one sees it in the diff."""

import importlib
import re
from pathlib import Path

SNAPSHOT = Path(__file__).parent / "public_names.txt"
API_REFERENCE = Path(__file__).parents[1] / "docs" / "api"
MODULES = ("resfit", "resfit.callbacks", "resfit.nets", "resfit.weights")


def public_names() -> list[str]:
    return sorted(f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__)


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
    assert len(importlib.import_module("resfit").__all__) <= 40


def test_every_public_name_is_in_the_api_reference() -> None:
    """By its full name, or through the page of its module, which lists everything in `__all__`."""
    pages = "".join(page.read_text() for page in API_REFERENCE.glob("*.md"))
    whole = set(re.findall(r"^\.\. automodule:: (\S+)$", pages, re.MULTILINE))
    named = set(re.findall(r"^\.\. auto\w+:: (\S+)$", pages, re.MULTILINE))
    missing = [name for name in public_names() if name not in named and name.rpartition(".")[0] not in whole]
    assert missing == []
