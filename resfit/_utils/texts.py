"""Texts for files in UTF-8."""


def storable(text: str) -> str:
    r"""Return a text that UTF-8 can hold: each lone surrogate as its escape of JSON and Python.

    Names of files that are not UTF-8 contain such characters, and with them class names of folders.

    Example:
      >>> storable("caf\udce9 é")
      'caf\\udce9 é'
    """
    return text.encode("utf-8", "backslashreplace").decode()
