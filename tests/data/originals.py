"""Small files in the formats of the classic datasets."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def idx_bytes(array: np.ndarray) -> bytes:
    """Encode uint8 values as described in http://yann.lecun.com/exdb/mnist/."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def grey(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (n, 28, 28) random bytes and class numbers below 10; with n >= 10, every class occurs."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 28, 28), np.uint8), rng.permutation(np.arange(n) % 10).astype(np.uint8)


def write_idx(folder: Path, train: int = 30, test: int = 10) -> dict[str, np.ndarray]:
    """Write the four files of MNIST or Fashion-MNIST; return their arrays by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for seed, (part, n) in enumerate({"train": train, "t10k": test}.items()):
        images, labels = grey(n, seed)
        written |= {f"{part}-images-idx3-ubyte.gz": images, f"{part}-labels-idx1-ubyte.gz": labels}
    for name, array in written.items():
        (folder / name).write_bytes(gzip.compress(idx_bytes(array)))
    return written


def cifar_bytes(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Encode (n, 32, 32, 3) images and (n, label bytes) labels as records: labels, then red, green and blue rows."""
    return b"".join(
        row.tobytes() + image.transpose(2, 0, 1).tobytes() for row, image in zip(labels, images, strict=True)
    )


def write_tar(archive: Path, members: Mapping[str, bytes]) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def python2_pickle(images: np.ndarray, labels: list[int], key: str) -> bytes:
    """Return a member of a Python archive of CIFAR: the instructions with which Python 2 wrote a dict with an array."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), int(np.prod(images.shape[1:])))

    def text(content: bytes) -> bytes:
        short = len(content) < 256
        return (b"U" + bytes([len(content)]) if short else b"T" + len(content).to_bytes(4, "little")) + content

    def integer(n: int) -> bytes:
        return b"J" + n.to_bytes(4, "little", signed=True)

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R"
    array += b"(" + integer(1) + integer(rows.shape[0]) + integer(rows.shape[1]) + b"\x86" + dtype
    array += b"\x89" + text(rows.tobytes()) + b"tb"
    classes = b"]q\x01(" + b"".join(map(integer, labels)) + b"e"
    pairs = text(b"batch_label") + text(b"a batch") + text(key.encode()) + classes + text(b"data") + array
    return b"\x80\x02}(" + pairs + b"u."


def write_cifar(
    folder: Path, classes: int, each: int = 20, *, python: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write an archive of CIFAR-10 or CIFAR-100 with `each` images per member; return the arrays by part."""
    rng = np.random.default_rng(classes)
    ten = classes == 10
    suffix = ("py" if python else "bin") if ten else ("python" if python else "binary")
    root = f"cifar-{classes}-batches-{suffix}" if ten else f"cifar-{classes}-{suffix}"
    trains = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    members, made = {"readme.html": b"<p>", f"{root}/names.txt": b"a\nb\n"}, []
    for name in [*trains, "test_batch" if ten else "test"]:
        images = rng.integers(0, 256, (each, 32, 32, 3), np.uint8)
        fine = np.append(rng.integers(0, classes, each - 1), classes - 1).astype(np.uint8)
        labels = fine[:, None] if ten else np.stack([fine // 5, fine], axis=1)
        if python:
            members[f"{root}/{name}"] = python2_pickle(images, fine.tolist(), "labels" if ten else "fine_labels")
        else:
            members[f"{root}/{name}.bin"] = cifar_bytes(images, labels)
        made.append((images, fine))
    write_tar(folder / f"cifar-{classes}-{'python' if python else 'binary'}.tar.gz", members)
    return {
        "train": tuple(np.concatenate(arrays) for arrays in zip(*made[:-1], strict=True)),
        "test": made[-1],
    }
