"""Checks of numbers that users pass. Python and NumPy integers are accepted as integers, booleans are not."""

import numbers
from typing import Any, TypeGuard

import numpy as np


def is_int(value: Any, least: int | None = None) -> TypeGuard[int]:
    """Return True if `value` is an integer, and not below `least` if it is given.

    Example:
      >>> is_int(3), is_int(np.int32(3)), is_int(True), is_int(3.0), is_int(0, least=1)
      (True, True, False, False, False)
    """
    integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return integer and (least is None or bool(value >= least))


def is_number(value: Any) -> bool:
    """Return True for a real number of Python or NumPy.

    Example:
      >>> is_number(0.5), is_number(np.float32(2)), is_number("2"), is_number(True)
      (True, True, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def positive_int(name: str, value: Any, error: type[Exception], expected: str = "a positive integer") -> int:
    """Return a positive integer as an int.

    Args:
      name: the argument that received it, for the message.
      value: the argument.
      error: the class to raise.
      expected: the expectation in the message.

    Raises:
      error: if `value` is not a positive integer.

    Example:
      >>> positive_int("keep", np.int64(2), ValueError)
      2
      >>> positive_int("keep", 0, ValueError)
      Traceback (most recent call last):
      ...
      ValueError: Expected keep to be a positive integer, got 0.
    """
    return int_from(1, name, value, error, expected)


def int_from(least: int, name: str, value: Any, error: type[Exception], expected: str | None = None) -> int:
    """Return an integer of at least `least` as an int; the arguments are those of `positive_int`.

    Raises:
      error: if `value` is not such an integer.

    Example:
      >>> int_from(0, "patience", -1, ValueError)
      Traceback (most recent call last):
      ...
      ValueError: Expected patience to be an integer of 0 or more, got -1.
    """
    if not is_int(value, least):
        raise error(f"Expected {name} to be {expected or f'an integer of {least} or more'}, got {value!r}.")
    return int(value)
