"""Copies of the classes of PyTorch that resfit recognizes, because PyTorch is not installed here.

They have the names, modules and random numbers of the originals; `tests/data/sources/test_against_torch.py` uses those.
"""

import itertools
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

_GLOBAL = np.random.default_rng(0)


class Tensor:
    """A tensor of the CPU. Like PyTorch's, it refuses conversion to NumPy while it requires gradients."""

    __module__ = "torch"

    def __init__(self, array: Any, *, requires_grad: bool = False, dtype: str | None = None) -> None:
        self._array, self._requires_grad = np.asarray(array), requires_grad
        self.shape = self._array.shape
        self.ndim = self._array.ndim
        self.dtype = dtype or f"torch.{self._array.dtype}"

    def detach(self) -> "Tensor":
        return Tensor(self._array, dtype=self.dtype)

    def cpu(self) -> "Tensor":
        return self

    def float(self) -> "Tensor":
        return Tensor(self._array.astype(np.float32))

    def numpy(self) -> np.ndarray:
        if self._requires_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return self._array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.numpy()

    def __len__(self) -> int:
        return len(self._array)


class Parameter(Tensor):
    __module__ = "torch.nn.parameter"


class Generator:
    __module__ = "torch"

    def manual_seed(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)


def manual_seed(seed: int) -> None:
    _GLOBAL.bit_generator.state = np.random.default_rng(seed).bit_generator.state


def stack(tensors: Sequence[Tensor]) -> Tensor:
    if len({tensor.shape for tensor in tensors}) > 1:
        raise RuntimeError("stack expects each tensor to be equal size")
    return Tensor(np.stack([tensor.numpy() for tensor in tensors]))


class Dataset:
    __module__ = "torch.utils.data.dataset"


class IterableDataset(Dataset):
    __module__ = "torch.utils.data.dataset"


class Subset(Dataset):
    __module__ = "torch.utils.data.dataset"

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Any:
        return self.dataset[self.indices[i]]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[i] for i in indices]


class ConcatDataset(Dataset):
    __module__ = "torch.utils.data.dataset"

    def __init__(self, datasets: list[Any]) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(map(len, self.datasets))

    def __getitem__(self, i: int) -> Any:
        return [example for dataset in self.datasets for example in map(dataset.__getitem__, range(len(dataset)))][i]


class SequentialSampler:
    __module__ = "torch.utils.data.sampler"

    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


class RandomSampler(SequentialSampler):
    __module__ = "torch.utils.data.sampler"

    def __init__(self, n: int, generator: Generator | None = None) -> None:
        super().__init__(n)
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        random = _GLOBAL if self.generator is None else self.generator.random
        yield from random.permutation(self.n).tolist()


class DistributedSampler(SequentialSampler):
    __module__ = "torch.utils.data.distributed"

    def __init__(self, n: int, num_replicas: int, rank: int) -> None:
        super().__init__(n)
        self.num_replicas, self.rank, self.epoch = num_replicas, rank, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng(self.epoch).permutation(self.n).tolist()
        return iter(order[self.rank :: self.num_replicas])


class DataLoader:
    """Batches as lists of tensors; without a batch size the examples, one by one."""

    __module__ = "torch.utils.data.dataloader"

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        *,
        shuffle: bool = False,
        sampler: Any = None,
        generator: Any = None,
    ) -> None:
        self.dataset, self.batch_size, self.generator, self.num_workers = dataset, batch_size, generator, 0
        self.sampler = sampler
        if self.sampler is None and not isinstance(dataset, IterableDataset):
            self.sampler = RandomSampler(len(dataset), generator) if shuffle else SequentialSampler(len(dataset))
        self.batch_sampler = None if batch_size is None else types.SimpleNamespace(sampler=self.sampler)

    def __len__(self) -> int:
        n = len(self.dataset)  # TypeError for a stream
        return n if self.batch_size is None else -(-n // self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        _GLOBAL.random()  # the seed of the workers
        rows: Iterator[Any] = (
            iter(self.dataset) if self.sampler is None else map(self.dataset.__getitem__, self.sampler)
        )
        if self.batch_size is None:
            yield from rows
            return
        while batch := list(itertools.islice(rows, self.batch_size)):
            yield [stack([image for image, _ in batch]), Tensor(np.array([label for _, label in batch]))]


class Numbered(Dataset):
    """Images (1, 8, 8) that hold the number of the example, with a random transform of at most 0.1."""

    classes = ("ant", "bee", "cat")

    def __init__(self, n: int = 20, noise: float = 0.1) -> None:
        self.n, self.noise = n, noise

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return Tensor(np.full((1, 8, 8), i + self.noise * _GLOBAL.random(), np.float32)), i % 3


class Streamed(IterableDataset):
    """The same examples as a stream."""

    def __init__(self, n: int = 20) -> None:
        self.n = n

    def __iter__(self) -> Iterator[Any]:
        return (Numbered()[i] for i in range(self.n))


@pytest.fixture(autouse=True)
def torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let resfit find PyTorch among the imported modules, as it does if the data come from PyTorch."""
    module = types.SimpleNamespace(manual_seed=manual_seed, stack=stack)
    monkeypatch.setitem(sys.modules, "torch", module)  # type: ignore[arg-type]
