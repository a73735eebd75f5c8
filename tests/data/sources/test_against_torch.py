"""PyTorch's and torchvision's own datasets and loaders are taken as the copies in `tests/data/torch_fakes.py` are.

Needs PyTorch and torchvision, which the other tests do not need: `make originals` installs them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resfit.data import Geometry, as_batches
from resfit.data.choose import adapted
from resfit.data.tensors import library_of
from tests.data import torch_fakes
from tests.packages import package

torch = package("torch")
torchvision = package("torchvision")
tv_tensors = package("torchvision.tv_tensors")
data = torch.utils.data

pytestmark = pytest.mark.originals


class Numbered(data.Dataset):  # type: ignore[misc, name-defined]
    """Images that hold the number of the example, with a random transform."""

    classes = ("ant", "bee", "cat")

    def __len__(self) -> int:
        return 20

    def __getitem__(self, i: int) -> Any:
        return torch.full((3, 8, 10), float(i)) + torch.rand(3, 8, 10) / 10, i % 3


class Streamed(data.IterableDataset):  # type: ignore[misc, name-defined]
    """The same examples as a stream."""

    def __iter__(self) -> Any:
        return map(Numbered().__getitem__, range(20))


def loader(**options: Any) -> Any:
    return data.DataLoader(Numbered(), 8, **options)


DATA = {
    "dataset": Numbered,
    "subset": lambda: data.Subset(Numbered(), range(20)),
    "concatenated": lambda: data.ConcatDataset([Numbered()]),
    "stream": Streamed,
    "loader of a stream": lambda: data.DataLoader(Streamed(), 8),
    "loader": loader,
    "shuffled loader": lambda: loader(shuffle=True),
    "loader with a generator": lambda: loader(shuffle=True, generator=torch.Generator()),
    "loader with a sampler": lambda: loader(sampler=data.WeightedRandomSampler(torch.ones(20), 20)),
    "loader with a batch sampler": lambda: data.DataLoader(
        Numbered(), batch_sampler=data.BatchSampler(data.RandomSampler(Numbered()), 8, drop_last=False)
    ),
    "distributed": lambda: loader(sampler=data.distributed.DistributedSampler(Numbered(), 1, 0)),
}


@pytest.mark.parametrize("make", DATA.values(), ids=DATA)
def test_a_pass_can_be_read_again_from_any_batch(make: Any) -> None:
    def epoch(start: int = 0) -> list[Any]:
        return list(as_batches(make(), geometry=Geometry(8, seed=0)).epoch(1, start))

    whole = epoch()
    assert [batch.x.shape for batch in whole] == [(8, 8, 10, 3), (8, 8, 10, 3), (4, 8, 10, 3)]
    torch.rand(7)
    for start in range(3):
        for batch, expected in zip(epoch(start), whole[start:], strict=True):
            np.testing.assert_array_equal(batch.x, expected.x)
            np.testing.assert_array_equal(batch.y, expected.y)


def test_an_image_folder_gives_pictures_or_tensors_and_its_class_names(tmp_path: Path) -> None:
    for i, name in enumerate(("ant", "bee")):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((9, 12, 3), 50 * i, np.uint8)).save(tmp_path / name / "1.png")
    for transform in (None, torchvision.transforms.ToTensor()):
        found: Any = as_batches(torchvision.datasets.ImageFolder(tmp_path, transform), geometry=Geometry(2))
        (batch,) = found.epoch(0)
        assert (batch.x.shape, batch.y.tolist(), found.classes) == ((2, 9, 12, 3), [0, 1], ("ant", "bee"))


def test_tensors_are_recognized_and_converted() -> None:
    x = torch.rand(2, 3, 8, 10)
    kinds = (x, torch.nn.Parameter(x), tv_tensors.Image(x), x.requires_grad_())
    for tensor in kinds:
        assert library_of(tensor) == "torch"
        (batch,) = as_batches(tensor, geometry=Geometry(2)).epoch(0)
        np.testing.assert_array_equal(batch.x, np.moveaxis(x.detach().numpy(), 1, -1))
    (batch,) = as_batches(x.bfloat16(), geometry=Geometry(2)).epoch(0)
    assert batch.x.dtype == np.float32


def test_the_copies_have_the_names_and_modules_of_the_originals() -> None:
    for copy, original in (
        (torch_fakes.Tensor, torch.Tensor), (torch_fakes.Dataset, data.Dataset),
        (torch_fakes.DataLoader, data.DataLoader), (torch_fakes.IterableDataset, data.IterableDataset),
        (torch_fakes.Subset, data.Subset),
        (torch_fakes.ConcatDataset, data.ConcatDataset), (torch_fakes.RandomSampler, data.RandomSampler),
        (torch_fakes.DistributedSampler, data.distributed.DistributedSampler),
    ):  # fmt: skip
        assert (copy.__name__, copy.__module__) == (original.__name__, original.__module__)
    assert type(adapted(Numbered())).__name__ == "TorchDataset"
