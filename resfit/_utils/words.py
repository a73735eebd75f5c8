"""Sentences for words of other libraries, from `word_table`, for errors and for the tables in docs/keras.md."""

import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from resfit._utils.word_table import WORDS

# Places of names that users write as text, or that belong to classes: case and underscores do not matter.
_NAMES = ("loss", "metrics", "optimizer", "callbacks", "schedules")


def plain(name: str) -> str:
    """Return a name without case and underscores.

    Example:
      >>> plain("EarlyStopping") == plain("early_stopping")
      True
    """
    return name.lower().replace("_", "")


def _key(place: str, word: str) -> str:
    return plain(word) if place in _NAMES else word


_ANSWERS = {
    place: {_key(place, word): answer.replace("`", "") for answer, words in rows.items() for word in words.split()}
    for place, rows in WORDS.items()
}


def answer(word: str, *places: str) -> str | None:
    """Return the answer for a word of another library at the first of some places that has it, or None.

    Args:
      word: a name; for a loss, metric, optimizer or callback in any case, with or without underscores.
      places: keys of `WORDS`.

    Example:
      >>> answer("L1Loss", "loss")
      "loss='mean_absolute_error'"
      >>> answer("layout", "members") is None
      True
    """
    return next((found for place in places if (found := _ANSWERS[place].get(_key(place, word)))), None)


def use(word: str, *places: str) -> str:
    """Return the sentence of an error message that answers a word, or an empty text.

    Example:
      >>> use("L1Loss", "loss"), use("strict", "callback arguments")[:17], use("layout", "members")
      ("Use loss='mean_absolute_error'.", 'It needs nothing:', '')
    """
    found = answer(word, *places)
    if found is None:
        return ""
    return f"It needs {found}." if found.startswith(("no ", "nothing")) else f"Use {found}."


def no_attribute(module: str, *places: str) -> Callable[[str], NoReturn]:
    """Return the `__getattr__` of a subpackage, whose error names the substitute of a word of another library.

    Args:
      module: the name of the subpackage.
      places: keys of `WORDS`.

    Example:
      >>> no_attribute("resfit.losses", "loss")("L1Loss")
      Traceback (most recent call last):
      ...
      AttributeError: module 'resfit.losses' has no attribute 'L1Loss'. Use loss='mean_absolute_error'.
    """

    def missing(name: str) -> NoReturn:
        message = f"module {module!r} has no attribute {name!r}"
        sentence = use(name, *places)
        raise AttributeError(f"{message}. {sentence}" if sentence else message, name=name, obj=sys.modules.get(module))

    return missing


def same_word(name: str, known: Iterable[str]) -> str:
    """Return the known name that is the same word in another case, or the name itself.

    Example:
      >>> same_word("Adam", ["sgd", "adam"]), same_word("MeanSquaredError", ["mean_squared_error"])
      ('adam', 'mean_squared_error')
    """
    known = list(known)
    return name if name in known else next((other for other in known if plain(other) == plain(name)), name)
