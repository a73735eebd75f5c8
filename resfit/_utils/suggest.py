"""What somebody may have meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is most like it, or nothing.

    Args:
      name: as it was given.
      known: what it could have been.

    Example:
      >>> did_you_mean("Adm", ["sgd", "adam", "adamw"])
      " Did you mean 'adam'?"
      >>> did_you_mean("muon", ["sgd", "adam", "adamw"])
      ''
    """
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]!r}?" if close else ""
