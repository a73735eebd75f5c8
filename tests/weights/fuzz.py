"""A fuzz of the readers of weights files.

    python -m tests.weights.fuzz 20000

reads as many damaged files of all formats in child processes, and prints for each format how many were read, how many
were refused, and every other outcome: another exception, a crash, or a valid file that was refused.
"""

import faulthandler
import io
import multiprocessing
import random
import sys
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import serialization

from resfit import weights
from resfit.errors import ResfitError

ARRAYS = {
    "conv1.weight": np.arange(24, dtype="f4").reshape(2, 3, 2, 2),
    "fc.bias": np.arange(3, dtype="f2"),
    "scalar": np.array(7, dtype="i8"),
    "flags": np.array([True, False]),
}
GOLDEN = Path(__file__).parents[1] / "golden" / "torch_files"


def of_safetensors(dice: random.Random) -> bytes:
    content = safetensors.numpy.save(ARRAYS, metadata={"note": "x" * dice.randrange(300)})
    length = int.from_bytes(content[:8], "little")
    longer = length + dice.randrange(256)
    return longer.to_bytes(8, "little") + content[8 : 8 + length].ljust(longer) + content[8 + length :]


def of_npz(dice: random.Random) -> bytes:
    stream = io.BytesIO()
    save: Any = dice.choice((np.savez, np.savez_compressed))
    save(stream, **{name: np.asfortranarray(value) for name, value in shuffled(ARRAYS, dice).items()})
    return stream.getvalue()


def of_msgpack(dice: random.Random) -> bytes:
    tree = {"params": {"a": shuffled(ARRAYS, dice), "b": {"kernel": np.ones((2, 3), "f4")}}, "step": 3}
    return serialization.to_bytes(dice.choice((tree, shuffled(ARRAYS, dice), {"x" * 40: tree})))


def of_torch(dice: random.Random) -> bytes:
    names = ("state.pth", "checkpoint.pth", "views.pth", "state_old.pth", "checkpoint_old.pth", "views_old.pth")
    return (GOLDEN / dice.choice(names)).read_bytes()


def of_h5(dice: random.Random) -> bytes:
    import h5py

    stream, kind = io.BytesIO(), dice.randrange(3)
    with h5py.File(stream, "w") as file:
        for layer in ("conv1", "bn1", "head"):
            leaves = {"kernel:0": np.ones((2, 2), "f4"), "bias:0": np.zeros(2, "f4")}
            if kind == 0:  # .h5
                for leaf, value in leaves.items():
                    file.create_dataset(f"{layer}/{layer}/{leaf}", data=value)
            elif kind == 1:  # .weights.h5
                group = file.create_group(f"layers/{layer}/vars")
                group.attrs["name"] = layer
                for i, value in enumerate(leaves.values()):
                    group.create_dataset(str(i), data=value)
            else:
                file.create_dataset(f"{layer}.weight", data=np.ones(5), chunks=(5,), compression="gzip")
        if kind == 0:
            file.attrs["layer_names"] = [b"conv1", b"bn1", b"head"]
        elif kind == 2:
            file.create_dataset("large", data=np.zeros(3000))  # decompressed arrays are at most as large as the file
    return stream.getvalue()


def of_keras(dice: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, content in (("config.json", b"{}"), ("model.weights.h5", of_h5(dice))):
            archive.writestr(name, content)
    return stream.getvalue()


def shuffled(arrays: dict[str, np.ndarray], dice: random.Random) -> dict[str, np.ndarray]:
    return dict(dice.sample(list(arrays.items()), len(arrays)))


FORMATS: dict[str, Callable[[random.Random], bytes]] = {
    "safetensors": of_safetensors,
    "npz": of_npz,
    "msgpack": of_msgpack,
    "torch": of_torch,
    "h5": of_h5,
    "keras": of_keras,
}
_EXTREME = (0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Return a file with one kind of damage."""
    changed = bytearray(content)
    kind = dice.randrange(7)
    places = (
        range(len(changed)) if dice.random() < 0.5 else (*range(min(200, len(changed))), *range(len(changed))[-200:])
    )
    if kind == 0:
        return content[: dice.randrange(len(content))]
    if kind == 1:
        return dice.randbytes(dice.choice((1, 2, 4, 8, 9))) + content
    if kind == 2:  # a number of 1, 2, 4 or 8 bytes
        size, place = dice.choice((1, 2, 4, 8)), dice.choice(places)
        value = dice.choice(_EXTREME) % 256**size
        changed[place : place + size] = value.to_bytes(size, dice.choice(("little", "big")))
    elif kind == 3:  # bits
        for _ in range(dice.choice((1, 2, 8))):
            changed[dice.choice(places)] ^= 1 << dice.randrange(8)
    elif kind == 4:  # bytes
        for _ in range(dice.choice((1, 2, 4))):
            changed[dice.choice(places)] = dice.randrange(256)
    elif kind == 5:  # a removed part
        start = dice.choice(places)
        del changed[start : start + dice.choice((1, 4, 64))]
    else:  # a repeated part
        start, place = dice.choice(places), dice.choice(places)
        changed[place:place] = changed[start : start + dice.choice((1, 4, 64))]
    return bytes(changed)


def outcomes(format: str, count: int, seed: int, folder: Path) -> Iterator[str]:
    """Iterate over the outcomes of damaged files, each after a valid one of every tenth."""
    dice, make = random.Random(f"{format} {seed}"), FORMATS[format]
    path = folder / f"{format} {seed}"
    for number in range(count):
        valid = make(dice)
        if number % 10 == 0:
            path.write_bytes(valid)
            try:
                yield "valid, read" if weights.read(path) else "valid, but empty"
            except ResfitError as error:
                yield f"valid, but refused: {error}"
        path.write_bytes(damaged(valid, dice))
        try:
            weights.read(path)
            yield "read"
        except ResfitError:
            yield "refused"
        except Exception as error:  # noqa: BLE001 - the outcome that the fuzz looks for
            kept = path.with_name(f"{format}-{seed}-{number}.kept")
            kept.write_bytes(path.read_bytes())
            yield f"{type(error).__module__}.{type(error).__name__}: {error}"[:200] + f" ({kept.name})"


def _count(format: str, count: int, seed: int, folder: Path, result: Any) -> None:
    faulthandler.dump_traceback_later(120, exit=True)  # a file that takes this long
    result.put(Counter(outcomes(format, count, seed, folder)))


def fuzz(count: int, folder: Path, seed: int = 0, batch: int = 250) -> dict[str, Counter[str]]:
    """Return the number of each outcome by format, for `count` damaged files of all formats together."""
    found: dict[str, Counter[str]] = {}
    context = multiprocessing.get_context("fork")
    for format in FORMATS:
        total, left, part = Counter[str](), count // len(FORMATS), 0
        while left > 0:
            result = context.SimpleQueue()
            child = context.Process(target=_count, args=(format, min(left, batch), seed + part, folder, result))
            child.start()
            child.join()
            total.update(result.get() if child.exitcode == 0 else {f"crash {child.exitcode} in batch {seed + part}": 1})
            left, part = left - batch, part + 1
        found[format] = total
    return found


def main() -> None:
    """Print the outcomes."""
    folder = Path(tempfile.mkdtemp())
    for format, counts in fuzz(int(sys.argv[1]), folder).items():
        print(format, dict(counts), flush=True)
    print("files of other exceptions:", [file.name for file in folder.glob("*.kept")], folder)


if __name__ == "__main__":
    main()
