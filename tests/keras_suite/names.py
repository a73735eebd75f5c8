"""Serve the modules `keras` and `keras.*`: the names that resfit has, from the adapter.

Any other name is `Missing`: it can be imported and be a base class, and raises `NotTranslated` when it is used.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class NotTranslated(Exception):  # noqa: N818 - an outcome, see `run.py`
    """A test uses a name or an argument of Keras that resfit does not have."""


class NotTranslatedAttributeError(NotTranslated, AttributeError):
    """`NotTranslated` for an attribute, so that `hasattr` is False."""


class _Missing(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return missing(f"{cls.path}.{name}")

    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise NotTranslated(cls.path)

    def __iter__(cls) -> Any:
        raise NotTranslated(cls.path)


class Missing(metaclass=_Missing):
    """A name of Keras that the adapter does not map. Its subclasses are missing too."""

    path = "keras"


def missing(path: str) -> Any:
    """Return a class that stands for a name of Keras without a counterpart."""
    return _Missing(path.rpartition(".")[2], (Missing,), {"path": path})


def refuse(what: str, **given: Any) -> None:
    """Raise `NotTranslated` if an argument of Keras that resfit lacks has a value."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise NotTranslated(f"{what}({name}={value!r:.40})")


adaptations: list[str] = []
"""Why the running test needed more than names and arguments; `run.py` empties it before each test."""


def adapted(why: str) -> None:
    """Note that the running test passes only by an adaptation of more than names and arguments."""
    if why not in adaptations:
        adaptations.append(why)


class Served(types.ModuleType):
    """A module of Keras. Submodules share the names of their package below `keras` or `keras.src`."""

    def __init__(self, name: str, names: Mapping[str, Any], exists: Callable[[str], bool]) -> None:
        super().__init__(name)
        self.__path__ = []
        self._names, self._exists = names, exists

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in self._names:
            return self._names[name]
        full = f"{self.__name__}.{name}"
        return importlib.import_module(full) if self._exists(full) else missing(full)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Import hook for `keras.*`.

    Args:
      checkout: the root of a checkout of Keras.
      namespaces: package below `keras` ("" for `keras` itself) -> its names.
      executed: modules that are executed from the checkout, because a user inherits from their classes -> the names
        in them that the adapter replaces.
    """

    def __init__(
        self, checkout: Path, namespaces: Mapping[str, Mapping[str, Any]], executed: Mapping[str, Mapping[str, Any]]
    ) -> None:
        self._checkout, self._namespaces, self._executed = checkout, namespaces, executed

    def find_spec(self, name: str, *_: Any) -> Any:
        if name.partition(".")[0] != "keras":
            return None
        path = self._checkout.joinpath(*name.split(".")).with_suffix(".py")
        if name in self._executed:
            loader = _Executed(name, str(path), self._executed[name])
            return importlib.util.spec_from_file_location(name, path, loader=loader)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        parts = [part for part in spec.name.split(".")[1:] if part != "src"]
        return Served(spec.name, self._namespaces.get(parts[0] if parts else "", {}), self._in_checkout)

    def exec_module(self, module: Any) -> None: ...

    def _in_checkout(self, name: str) -> bool:
        path = self._checkout.joinpath(*name.split("."))
        return path.is_dir() or path.with_suffix(".py").exists() or path.parent.name == "keras"  # made by a release


class _Executed(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, replaced: Mapping[str, Any]) -> None:
        super().__init__(name, path)
        self._replaced = replaced

    def exec_module(self, module: Any) -> None:
        super().exec_module(module)
        vars(module).update(self._replaced)


def install(finder: Finder) -> None:
    """Serve `keras` from now on. An installed Keras is not imported, and must not have been."""
    if "keras" in sys.modules:
        raise RuntimeError("keras is imported already; its modules would not be the adapter's.")
    sys.meta_path.insert(0, finder)
