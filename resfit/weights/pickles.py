"""Reads the pickles inside PyTorch's files, and executes nothing.

`pickle` itself runs whatever function a file names. Here a pickle is a list of instructions that a table of our own
carries out on plain values: nothing is ever imported or called because a file asks for it. Names of classes and
functions stay names. The few with which PyTorch describes a tensor are understood; every other one becomes an inert
`Placeholder`, so the options and the optimizer in a training checkpoint do no harm and are no obstacle.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from resfit.errors import WeightsError


class Stream(Protocol):
    """What a pickle is read from; it gives less than it is asked for rather than make room for what is not there."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Name(NamedTuple):
    """A class or function that a file names, never looked up."""

    text: str


class Placeholder:
    """What a file would have made with code of somebody's own. It holds nothing and does nothing."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<an object of {self.name}, not read>"


class Storage(NamedTuple):
    """A run of numbers in the file, not read yet.

    Attributes:
        key: what it is called there.
        kind: its class, such as `"torch.FloatStorage"`.
        size: how many numbers.
        start: position of its first number, in a storage that others share (the old form only).
    """

    key: str
    kind: str
    size: int
    start: int = 0


class Tensor(NamedTuple):
    """A view of a storage: its first number, its shape, and how far it is from one entry to the next, in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# No checkpoint asks for these. They would stay names here like any other; but a file that holds one is an attack, and
# whoever opens it should know.
_ATTACKS = frozenset({
    "os", "posix", "nt", "ntpath", "posixpath", "sys", "subprocess", "pty", "socket", "shutil", "runpy", "code",
    "codeop", "importlib", "imp", "ctypes", "pickle", "marshal", "webbrowser", "commands", "signal", "asyncio", "pip",
    "pdb", "bdb", "timeit", "pydoc", "urllib", "http", "requests", "operator", "inspect",
})  # fmt: skip
_BUILTIN_TYPES = frozenset({
    "object", "list", "dict", "set", "frozenset", "tuple", "str", "bytes", "bytearray", "int", "float", "complex",
    "bool", "slice", "range", "long", "unicode",
})  # fmt: skip

_ORDERED = Name("collections.OrderedDict")
_LARGEST_COPIES = 1_000_000
_MOST_AXES = 16

_Mark = object()  # where an argument list begins on the stack
_Key = str | int | float | bool | bytes | None

# Instructions that push what stands beside them, and those that push a constant.
_PUSHED = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
    "BINUNICODE8", "FLOAT", "BINFLOAT",
})  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: Placeholder("builtins.set"),
    "MARK": lambda: _Mark,
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def read_pickle(stream: Stream, storages: list[Storage] | None = None) -> Any:
    """The value that a pickle describes, and leaves the stream behind it.

    Args:
        stream: the file, at the beginning of the pickle.
        storages: a list to which all that the pickle names are added.

    Raises:
        WeightsError: if it is damaged, names what no checkpoint needs, or asks for what is not understood.
    """
    machine = _Machine([] if storages is None else storages)
    try:
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # it needs no more of a file
            machine.do(opcode.name, argument)
        return machine.result()
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"The file's pickle is damaged, or of a kind that is not read here ({type(error).__name__}: {error}). "
            "Expected a state dict or a checkpoint as torch.save writes it. Take another copy of the file."
        ) from error


class _Machine:
    """A stack, a memo, and one method for each kind of instruction."""

    def __init__(self, storages: list[Storage]) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._copies = 0  # entries of lists made into dicts: a short pickle can ask for a long list again and again

    def result(self) -> Any:
        (value,) = self._stack
        return value

    def do(self, name: str, argument: Any) -> None:
        if name in _PUSHED:
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name in _TUPLES:
            count = _TUPLES[name]
            if len(self._stack) < count:
                raise IndexError("a tuple of more than there is")
            self._stack[-count:] = [tuple(self._stack[-count:])]
        elif not name.startswith(("PROTO", "FRAME", "STOP")):
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:
                raise ValueError(f"the instruction {name}")
            method(argument)

    def _since_mark(self) -> list[Any]:
        place = next(i for i in range(len(self._stack) - 1, -2, -1) if i < 0 or self._stack[i] is _Mark)
        if place < 0:
            raise IndexError("no mark")
        values = self._stack[place + 1 :]
        del self._stack[place:]
        return values

    def _pop(self, _: Any = None) -> Any:
        return self._stack.pop()

    def _pop_mark(self, _: Any) -> None:
        self._since_mark()

    def _dup(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    # --- the memo

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    _binget = _long_binget = _get

    # --- containers

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._since_mark()))

    def _list(self, _: Any) -> None:
        self._stack.append(self._since_mark())

    def _dict(self, _: Any) -> None:
        items = self._since_mark()
        self._stack.append({})
        self._set(items)

    def _frozenset(self, _: Any) -> None:
        self._since_mark()
        self._stack.append(Placeholder("builtins.frozenset"))

    def _append(self, _: Any) -> None:
        self._extend([self._pop()])

    def _appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(values)

    def _additems(self, _: Any) -> None:
        self._since_mark()

    def _setitem(self, _: Any) -> None:
        value, key = self._pop(), self._pop()
        self._set([key, value])

    def _setitems(self, _: Any) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[Any]) -> None:
        """Fills the dict on top of the stack; keys that are no plain values are left out, as nothing here asks for one.

        The hash of a few nested tuples can take for ever.
        """
        if isinstance(self._stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self._stack[-1].update({key: value for key, value in pairs if isinstance(key, _Key)})

    # --- what would be imported and called

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a name that is no text")
        self._stack.append(_named(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, called = self._pop(), self._pop()
        if called == _ORDERED and arguments:
            self._copies += len(arguments[0])
            if self._copies > _LARGEST_COPIES:
                raise ValueError(f"more than {_LARGEST_COPIES} entries of lists as dicts")
        self._stack.append(_made(called, arguments))

    _newobj = _reduce

    def _newobj_ex(self, _: Any) -> None:
        self._pop()
        self._reduce(None)

    def _obj(self, _: Any) -> None:
        called, *arguments = self._since_mark()
        self._stack.append(_made(called, tuple(arguments)))

    def _inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_made(_named(module, name), tuple(self._since_mark())))

    def _build(self, _: Any) -> None:
        """The state that an object would be given: whoever is a dict, a tensor or a placeholder has no use for it."""
        self._pop()

    # --- storages

    def _binpersid(self, _: Any) -> None:
        self._refer(self._pop())

    def _persid(self, argument: str) -> None:
        self._refer(argument)

    def _refer(self, identity: Any) -> None:
        value = _storage(identity)
        if isinstance(value, Storage):
            self._storages.append(value)
        self._stack.append(value)


def _named(module: str, name: str) -> Name:
    attack = module.split(".")[0] in _ATTACKS
    if module in ("builtins", "__builtin__"):
        attack = name not in _BUILTIN_TYPES
    # A dotted name, which reaches into a module, is never a class that PyTorch saves; an inner class is.
    if attack or any(part.startswith("__") for part in name.split(".")):
        raise WeightsError(
            f"The file asks for {module}.{name}, which no checkpoint needs and which could run code on this machine. "
            "Nothing was run. Expected arrays and their names. Do not open this file with torch.load or pickle; get "
            "the weights elsewhere."
        )
    return Name(f"{module}.{name}")


def _made(called: Any, arguments: Any) -> Any:
    """What a call would make, if PyTorch describes a tensor or a dict by it; else a placeholder."""
    if not isinstance(called, Name):
        raise TypeError(f"a call of {called!r:.50}")
    maker = _MAKERS.get(called.text)
    if maker is None or not isinstance(arguments, tuple):
        return Placeholder(called.text)
    return maker(*arguments)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Any:
    if isinstance(storage, Placeholder):
        return storage
    if not isinstance(storage, Storage) or not len(shape) == len(strides) <= _MOST_AXES:
        raise ValueError("a tensor without a storage, or of a shape that cannot be")
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise TypeError("a tensor whose place, shape and strides are no whole numbers")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _of_type(function: Any, _type: Any, arguments: Any, _state: Any) -> Any:
    return _made(function, arguments)


def _ordered(items: Any = ()) -> dict[Any, Any]:
    return {key: value for key, value in items if isinstance(key, _Key)}


_MAKERS: dict[str, Callable[..., Any]] = {
    _ORDERED.text: _ordered,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    "torch._tensor._rebuild_from_type_v2": _of_type,
}


def _storage(identity: Any) -> Any:
    """What a pickle calls by an identity instead of holding it: `("storage", class, key, device, size)`."""
    if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
        return identity[1]  # a class, with its source beside it (the old form only)
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        kind = identity[0] if isinstance(identity, tuple) and identity else identity
        return Placeholder(f"the persistent {kind!r:.50}")
    _, kind, key, _, size, *view = identity
    start = 0
    if view and view[0] is not None:  # (key, first number, size): a part of another one
        _, start, size = view[0]
    if not (isinstance(kind, Name) and isinstance(key, str | int)) or not all(
        type(n) is int and n >= 0 for n in (size, start)
    ):
        raise TypeError("a storage without a class, a key or a size")
    return Storage(str(key), kind.text, size, start)
