"""Suggestions for unknown names."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return the end of an error message that suggests the most similar known name, or an empty text.

    Args:
      name: the unknown name.
      known: the known names.

    Example:
      >>> did_you_mean("Adm", ["sgd", "adam", "adamw"])
      " Did you mean 'adam'?"
      >>> did_you_mean("muon", ["sgd", "adam", "adamw"])
      ''
    """
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
