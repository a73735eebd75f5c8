"""The one way to wrap calls inside a module: a part of a copy becomes an instance of a subclass that wraps its methods.

Flax has no interceptor for this job. `linen.intercept_methods` sees Linen modules only. `nnx.capture` patches the
user's classes while it runs, and records outputs but cannot change them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

# around(part, call, *args, **kwargs) -> the result of the call; call(*args, **kwargs) runs the part's own code.
Around = Callable[..., Any]


def intercept(part: nnx.Module, around: Around) -> None:
    """Run `around` in place of every call of a module.

    Args:
        part: a module with a `__call__`, in a private copy; its class is changed.
        around: (part, call, *args, **kwargs) -> result. `call(*args, **kwargs)` runs the part's own `__call__`.

    Example:
        >>> net = nnx.Sequential(nnx.Dropout(0.5, deterministic=True))
        >>> intercept(net.layers[0], lambda part, call, x: 2 * call(x))
        >>> net(3)
        6
    """
    set_class(part, wrapping(type(part), around))


def wrapping(cls: type, around: Around) -> type:
    """Return a subclass that runs `around` in place of every call.

    Args:
        cls: of a module with a `__call__`.
        around: see `intercept`.
    """
    original: Any = cls.__call__

    @functools.wraps(original)  # the signature decides which mode keywords the call takes
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(self, functools.partial(original, self), *args, **kwargs)

    return subclass(cls, {"__call__": __call__})


def set_class(part: nnx.Module, cls: type) -> None:
    """Make a module an instance of another class, past the `__setattr__` of NNX.

    Args:
        part: a module in a private copy.
        cls: a subclass of its class.
    """
    object.__setattr__(part, "__class__", cls)


def subclass(cls: type, methods: Mapping[str, Any], *parents: type, metaclass: type | None = None) -> type:
    """Return a subclass with the same name and other methods.

    The subclass runs no `__init_subclass__` of the user or of resfit, which may need arguments, list the class in a
    registry, or refuse subclasses.

    Args:
        cls: of a module, or of a mixin of one.
        methods: methods and other attributes, by name.
        parents: subclasses of the class's parents, which `super()` in its methods then finds.
        metaclass: for the subclass of a parent: the metaclass of the child (default: the class's own).

    Example:
        >>> class Registered(nnx.Module):
        ...     def __init_subclass__(cls, name):
        ...         print(name)
        >>> subclass(Registered, {"__call__": lambda self, x: 2 * x})()(3)
        6
    """
    namespace = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__, **methods}
    made: type = _silent(metaclass or type(cls))(cls.__name__, (cls, *parents), namespace)
    if issubclass(made, nnx.Pytree):
        is_pytree = getattr(cls, "_pytree__is_pytree", True)
        nnx.Pytree.__init_subclass__.__func__(made, pytree=is_pytree)  # type: ignore[attr-defined]
    return made


@functools.cache
def _silent(metaclass: Any) -> Any:
    """Return a metaclass whose classes find an `__init_subclass__` that does nothing before any other."""

    def mro(made: Any) -> list[type]:
        first, *rest = metaclass.mro(made)
        # Each class gets its own: no order of resolution has one class both before a parent and after it.
        return [first, type("Silent", (), {"__slots__": (), "__init_subclass__": _nothing}), *rest]

    return type(metaclass.__name__, (metaclass,), {"mro": mro})


@classmethod  # type: ignore[misc]
def _nothing(cls: type, **options: Any) -> None:
    pass
