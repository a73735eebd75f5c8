"""A minimal reader of ONNX files: nodes and float32 arrays, as the Open-NSFW networks need."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FLOAT = 1  # TensorProto.DataType


@dataclass(frozen=True)
class Node:
    kind: str
    inputs: list[str]
    outputs: list[str]


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Iterate over (number, content) of the fields of a protocol buffer message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        wire = tag & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield tag >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire)
        if size is None:
            assert wire == 2
            size, place = _varint(data, place)
        yield tag >> 3, data[place : place + size]
        place += size


def _texts(data: memoryview, number: int) -> list[str]:
    return [bytes(value).decode() for field, value in _fields(data) if field == number]


def _array(data: memoryview) -> tuple[str, np.ndarray | None]:
    fields = list(_fields(data))
    (name,) = _texts(data, 8)
    shape: list[int] = []
    for field, value in fields:
        if field == 1 and isinstance(value, int):
            shape.append(value)
        elif field == 1:  # packed
            place = 0
            while place < len(value):
                size, place = _varint(value, place)
                shape.append(size)
    raw = [value for field, value in fields if field == 9]
    if (2, FLOAT) not in fields or not raw:
        return name, None
    return name, np.frombuffer(raw[0], "<f4").reshape(shape)


def read(path: Path) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Return the nodes of a file's graph in order, and its float32 arrays by name."""
    (graph,) = (value for field, value in _fields(memoryview(path.read_bytes())) if field == 7)
    parts = list(_fields(graph))
    nodes = [Node(_texts(v, 4)[0], _texts(v, 1), _texts(v, 2)) for field, v in parts if field == 1]
    arrays = dict(_array(value) for field, value in parts if field == 5)
    return nodes, {name: value for name, value in arrays.items() if value is not None}
