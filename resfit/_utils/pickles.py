"""A safe reader for the pickles in PyTorch's files and in the Python archives of CIFAR.

`pickle` runs every function that a file names. This reader interprets the instructions of a pickle with its own table,
on plain values: it never imports or calls anything that a file names. Names of classes and functions stay names. The
reader knows the names with which PyTorch describes tensors. Any other object, such as the options or the optimizer in a
training checkpoint, becomes an inert `Placeholder`.
"""

import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from resfit.errors import WeightsError


class ByteStream(Protocol):
    """A source of bytes; `read` returns fewer bytes at the end and allocates no memory for missing bytes."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self) -> bytes: ...


class Name(NamedTuple):
    """The name of a class or function in a file; the reader never imports it."""

    text: str


class Placeholder:
    """An inert stand-in for an object that only custom code could create.

    Attributes:
        name: of the class or function that the file names.
        state: the values with which the file would fill the object; None without.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<an object of {self.name}, not read>"


class Storage(NamedTuple):
    """A reference to a sequence of numbers in the file.

    Attributes:
        key: its key in the file.
        kind: its class, such as `"torch.FloatStorage"`.
        size: the number of entries.
        start: the first entry, in a storage that others share (the old form only).
    """

    key: str
    kind: str
    size: int
    start: int = 0


class Tensor(NamedTuple):
    """A view of a storage; `offset` and `strides` count numbers, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# No checkpoint needs these modules. Their names are harmless here, but a file that holds one is an attack, so the
# reader raises to warn the user.
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

_Mark = object()  # marks the start of an argument list on the stack
_Key = str | int | float | bool | bytes | None

# Instructions that push their argument, and instructions that push a constant.
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


def read_pickle(stream: ByteStream, storages: list[Storage] | None = None) -> Any:
    """Read the value of a pickle, and leave the stream after the pickle.

    Args:
        stream: the file, at the start of the pickle.
        storages: a list to which every storage of the pickle is appended.

    Raises:
        WeightsError: if the pickle is damaged, names a dangerous module, or has an unsupported instruction.
    """
    machine = _Machine([] if storages is None else storages)
    try:
        for opcode, argument, _ in pickletools.genops(stream):  # type: ignore[arg-type]  # uses only these methods
            machine.do(opcode.name, argument)
        return machine.result()
    # pickletools warns of escapes in a damaged text, which is an error if the user made warnings errors.
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, DeprecationWarning) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(
            f"The file's pickle is damaged or not supported ({type(error).__name__}: {error}). Expected a state dict "
            "or a checkpoint as torch.save writes it. Download the file again, or save its state_dict() in PyTorch."
        ) from error


class _Machine:
    """The interpreter of a pickle: a stack, a memo, and one method per instruction."""

    def __init__(self, storages: list[Storage]) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._copies = 0  # list entries copied to dicts, limited because a short pickle can copy a list many times

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
                raise IndexError("a tuple with more entries than the stack")
            self._stack[-count:] = [tuple(self._stack[-count:])]
        elif not name.startswith(("PROTO", "FRAME", "STOP")):
            method = getattr(self, f"_{name.lower()}", None)
            if method is None:
                raise ValueError(f"the unsupported instruction {name}")
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
        """Fill the dict on top of the stack, and skip keys that are not plain values.

        Hashing a few nested tuples can take exponential time.
        """
        if isinstance(self._stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self._stack[-1].update({key: value for key, value in pairs if isinstance(key, _Key)})

    # --- imports and calls

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._stack.append(_named(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._pop(), self._pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise TypeError("a name that is not text")
        self._stack.append(_named(module, name))

    def _reduce(self, _: Any) -> None:
        arguments, called = self._pop(), self._pop()
        if called == _ORDERED and arguments:
            self._copies += len(arguments[0])
            if self._copies > _LARGEST_COPIES:
                raise ValueError(f"more than {_LARGEST_COPIES} list entries copied to dicts")
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
        """Store the state of a placeholder as plain values; dicts and tensors do not need theirs."""
        state = self._pop()
        if isinstance(self._stack[-1], Placeholder):
            self._stack[-1].state = state

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
    # A dotted name can be an inner class, but not a dunder attribute.
    if attack or any(part.startswith("__") for part in name.split(".")):
        raise WeightsError(
            f"The file asks for {module}.{name}, which no checkpoint needs and which could run code on this machine. "
            "Nothing was run. Expected arrays and their names. Do not open this file with torch.load or pickle. "
            "Download the weights from a trusted source."
        )
    return Name(f"{module}.{name}")


def _made(called: Any, arguments: Any) -> Any:
    """Return the tensor or dict that a call describes, or a placeholder for any other call."""
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
        raise ValueError("a tensor without a storage, or with an invalid shape")
    if not all(type(n) is int and n >= 0 for n in (offset, *shape, *strides)):
        raise TypeError("a tensor whose offset, shape or strides are not nonnegative integers")
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
    """Return the storage for a persistent id of a pickle: `("storage", class, key, device, size)`."""
    if isinstance(identity, tuple) and len(identity) > 1 and identity[0] == "module":
        return identity[1]  # a class with its source code (the old form only)
    if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
        kind = identity[0] if isinstance(identity, tuple) and identity else identity
        return Placeholder(f"the persistent {kind!r:.50}")
    _, kind, key, _, size, *view = identity
    start = 0
    if view and view[0] is not None:  # (key, first entry, size): a part of another storage
        _, start, size = view[0]
    if not (isinstance(kind, Name) and isinstance(key, str | int)) or not all(
        type(n) is int and n >= 0 for n in (size, start)
    ):
        raise TypeError("a storage without a class, a key or a size")
    return Storage(str(key), kind.text, size, start)
