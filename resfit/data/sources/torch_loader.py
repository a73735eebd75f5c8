"""An adapter for PyTorch's `DataLoader`."""

from collections.abc import Iterator, Mapping
from typing import Any

from resfit.data.batches import Geometry, Positioned
from resfit.data.sources.iterables import IterableBatches
from resfit.data.sources.torch_objects import as_tuple, is_torch, seed_torch, seeded
from resfit.errors import DataError

# Samplers whose order does not depend on random numbers.
_IN_ORDER = ("SequentialSampler", "DistributedSampler")


def is_loader(x: Any) -> bool:
    """Return True for a `torch.utils.data.DataLoader`, recognized by name."""
    return is_torch(x, "DataLoader")


class TorchLoader:
    """A `DataLoader` as a `Stream`.

    Args:
      loader: the loader.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def batches(self, geometry: Geometry) -> "LoaderBatches":
        _check_share(self._loader, geometry.shard)
        return LoaderBatches(self._loader, geometry.seed)


class LoaderBatches(IterableBatches):
    """The batches of a `DataLoader`: lists are tuples, images have the channels last.

    In `fit`, the generators of PyTorch and of the sampler are seeded at the start of every pass, and PyTorch again
    before each batch. The order and random transforms therefore depend only on (seed, epoch), and a run can resume. A
    loader with `state_dict` keeps its own random numbers.

    Args:
      loader: the loader.
      seed: the seed, or None to leave all random numbers alone.
    """

    def __init__(self, loader: Any, seed: int | None) -> None:
        super().__init__(loader)
        self._seed = None if isinstance(loader, Positioned) else seed

    @property
    def description(self) -> Mapping[str, Any]:
        workers = getattr(self._source, "num_workers", 0)  # their number changes the random numbers
        return {**super().description, **({"workers": workers} if workers else {})}

    @property
    def replayable(self) -> bool:
        """False if the sampler draws random numbers that are not seeded."""
        known = type(getattr(self._source, "sampler", None)).__name__ in _IN_ORDER
        return known or self._seed is not None or isinstance(self._source, Positioned)

    def _pass(self, epoch: int, *state: Any) -> Iterator[Any]:
        samplers = _samplers(self._source)
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        if self._seed is None:
            return map(as_tuple, super()._pass(epoch, *state))
        key = (self._seed, epoch)
        found = (getattr(holder, "generator", None) for holder in (self._source, *samplers))
        seed_torch(key, *(generator for generator in found if generator is not None))
        return map(as_tuple, seeded(super()._pass(epoch, *state), key))


def _samplers(loader: Any) -> list[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    found = (getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    return list({id(sampler): sampler for sampler in found if sampler is not None}.values())


def _check_share(loader: Any, shard: tuple[int, int]) -> None:
    """Raise if several processes train and the loader's sampler does not select the part of this process."""
    index, count = shard
    if count == 1:
        return
    for sampler in _samplers(loader):
        if getattr(sampler, "num_replicas", None) == count and getattr(sampler, "rank", None) == index:
            return
    raise DataError(
        f"x is a {type(loader).__name__} that reads all examples, but {count} processes train together, and each would "
        "train on all of them. Expected the part of this process. Pass sampler=DistributedSampler(dataset, "
        f"num_replicas={count}, rank={index}) to the loader, or the dataset itself: fit(dataset, batch_size=32). If "
        "the loader's dataset is the part of this process, pass lambda: iter(loader)."
    )
