"""Addresses, sizes and checksums of the classic datasets.

Sizes and checksums are those of TensorFlow Datasets 4.9.10 (tensorflow_datasets/url_checksums).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from resfit._utils.download import Remote


class CifarArchive(NamedTuple):
    """The two archives of a CIFAR dataset: the binary one, which resfit downloads, and the one for Python.

    Attributes:
      remote: the binary archive.
      labels: label bytes per binary record; the last one is the class.
      parts: "train" and "test" -> the names of the binary members, in order.
      python: the name of the archive for Python.
      key: of the class numbers in a member for Python.
      pickled: "train" and "test" -> the names of the members for Python, in order.
    """

    remote: Remote
    labels: int
    parts: Mapping[str, Sequence[str]]
    python: str
    key: str
    pickled: Mapping[str, Sequence[str]]


def _idx_files(folder: str, *files: tuple[str, int, str]) -> list[Remote]:
    return [Remote(f"{folder}{name}-ubyte.gz", size, sha256) for name, size, sha256 in files]


# Training images, training labels, test images, test labels.
IDX_FILES = {
    "mnist": _idx_files(
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ("train-images-idx3", 9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1", 28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3", 1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1", 4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "fashion_mnist": _idx_files(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ("train-images-idx3", 26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1", 29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3", 4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1", 5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
}

CIFAR_ARCHIVES = {
    "cifar10": CifarArchive(
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        labels=1,
        parts={
            "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
            "test": ["cifar-10-batches-bin/test_batch.bin"],
        },
        python="cifar-10-python.tar.gz",
        key="labels",
        pickled={
            "train": [f"cifar-10-batches-py/data_batch_{i}" for i in range(1, 6)],
            "test": ["cifar-10-batches-py/test_batch"],
        },
    ),
    "cifar100": CifarArchive(
        Remote(
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
        labels=2,  # coarse and fine
        parts={"train": ["cifar-100-binary/train.bin"], "test": ["cifar-100-binary/test.bin"]},
        python="cifar-100-python.tar.gz",
        key="fine_labels",
        pickled={"train": ["cifar-100-python/train"], "test": ["cifar-100-python/test"]},
    ),
}
