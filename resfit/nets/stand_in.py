"""Classes that stand in for a module's class while its methods behave differently."""

import functools
from collections.abc import Mapping
from typing import Any

from flax import nnx


def stand_in(cls: type, methods: Mapping[str, Any], *parents: type, metaclass: type | None = None) -> type:
    """Return a subclass of the same name with other methods.

    No `__init_subclass__` of the user's or of resfit runs: it may need arguments, list the class in a registry, or
    refuse subclasses.

    Args:
      cls: of a module, or of a mixin of one.
      methods: and other attributes, by name.
      parents: stand-ins for parents of the class, which `super()` in its methods then finds.
      metaclass: that of the class for which a parent's stand-in is made; None: the class's own.

    Example:
      >>> class Registered(nnx.Module):
      ...     def __init_subclass__(cls, name):
      ...         print(name)
      >>> stand_in(Registered, {"__call__": lambda self, x: 2 * x})()(3)
      6
    """
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, **methods}
    subclass: type = _silent(metaclass or type(cls))(cls.__name__, (cls, *parents), namespace)
    if issubclass(subclass, nnx.Pytree):
        is_pytree = getattr(cls, "_pytree__is_pytree", True)
        nnx.Pytree.__init_subclass__.__func__(subclass, pytree=is_pytree)  # type: ignore[attr-defined]
    return subclass


@functools.cache
def _silent(metaclass: Any) -> Any:
    """Return a metaclass whose classes find an `__init_subclass__` that does nothing before any other."""

    def mro(subclass: Any) -> list[type]:
        first, *rest = metaclass.mro(subclass)
        # Of its own for each class: no order of resolution has one class both before a parent and after it.
        return [first, type("Silent", (), {"__slots__": (), "__init_subclass__": _nothing}), *rest]

    return type(metaclass.__name__, (metaclass,), {"mro": mro})


@classmethod  # type: ignore[misc]
def _nothing(cls: type, **options: Any) -> None:
    pass
