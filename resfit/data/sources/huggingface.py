"""Adapters for Hugging Face datasets, map-style and streaming."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit._utils.keywords import checked
from resfit.data.cores import cores
from resfit.data.records import as_labels, stack_images
from resfit.data.sources import columns
from resfit.data.sources.columns import Columns
from resfit.data.sources.pictures import Pictures
from resfit.data.streaming.stream import ShardStream
from resfit.errors import BadRecordError, DataError


@checked("function arguments")
def huggingface(
    dataset: Any,
    *,
    image: str | None = None,
    label: str | None = None,
    size: int | tuple[int, int] | None = None,
    crop: str | float | None = None,
    mode: str | None = None,
    threads: int | None = None,
    window: int = 2048,
    interleave: int = 4,
    max_bad_records: int = 0,
    retries: int = 5,
) -> Any:
    """Wrap a `datasets.Dataset` or `datasets.IterableDataset` with options; without options, pass it to `fit` directly.

    The types of the columns, not their names, determine the image and the label. Threads decode images while the step
    runs. A map-style dataset has random access. A stream is read by shard, as `ShardStream` describes: resfit shuffles
    it, and a run can resume at any batch. If the number of rows is known (parquet files on disk, the metadata of a
    split, a stream made from a map-style dataset), an epoch with another number of rows raises.

    Args:
      dataset: one split, as `datasets.load_dataset(..., split="train")` returns it, with or without `streaming=True`.
      image: the name of the image column; by default the only column of type Image, Array2D or Array3D.
      label: the name of the label column; by default the only ClassLabel, else the only column of integers.
      size: output size in pixels: n for squares, or (height, width). None keeps the size of every image; all images
        must then have one size.
      crop: None resizes the whole image. "random", for training, and "center" or a share, for evaluation, are described
        in `resfit.data.folder`; (seed, epoch, row) determine a random crop.
      mode: "RGB", "L" (gray) or "RGBA"; None uses the mode of the column, or keeps gray images gray and converts all
        others to RGB.
      threads: the number of decoding threads; by default one per core, at most 16.
      window: for streams: the number of rows that are shuffled together.
      interleave: for streams: the number of shards that are read in turn.
      max_bad_records: for streams: the number of records per epoch that can be skipped because their image does not
        decode or their label is missing.
      retries: for streams: the number of consecutive retries after a file or network error.

    Returns:
      A `Source` for a map-style dataset, a `Stream` for a stream.

    Raises:
      DataError: if `dataset` is not a dataset, has no images, or has missing or ambiguous columns. The message lists
        the columns.

    Example:
      >>> import datasets
      >>> pixels = datasets.Array3D((4, 4, 3), "uint8")
      >>> data = datasets.Dataset.from_dict(
      ...     {"pixels": np.zeros((6, 4, 4, 3), np.uint8), "fine": [0, 1] * 3, "coarse": [0] * 6},
      ...     features=datasets.Features(pixels=pixels, fine=datasets.Value("int8"), coarse=datasets.Value("int8")))
      >>> x, y, _ = huggingface(data, label="fine").take(slice(0, 4))
      >>> x.shape, x.dtype, y
      ((4, 4, 4, 3), dtype('uint8'), array([0, 1, 0, 1], dtype=int32))
    """
    _check_kind(dataset)
    threads = cores() if threads is None else threads
    if type(dataset).__name__ == "Dataset":
        chosen = columns.choose(dataset.features, image, label)
        kind = RandomTableSource if crop == "random" else TableSource
        return kind(dataset, chosen, Pictures(size, crop, mode, dataset.features[chosen.image]), threads)
    from resfit.data.sources.huggingface_stream import StreamShards, features_of

    features = features_of(dataset)
    chosen = columns.choose(features, image, label)
    return ShardStream(
        StreamShards(dataset, chosen, Pictures(size, crop, mode, features[chosen.image]), retries),
        window=window,
        interleave=interleave,
        max_bad_records=max_bad_records,
        retries=retries,
        threads=threads,
    )


def is_dataset(x: Any) -> bool:
    """Return True for an object of the `datasets` package, without importing the package."""
    return type(x).__module__.partition(".")[0] == "datasets"


def _check_kind(dataset: Any) -> None:
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        splits = ", ".join(repr(name) for name in dataset)
        raise DataError(f"Got a {kind} of several splits: {splits}. Expected one split, such as dataset['train'].")
    if not is_dataset(dataset) or kind not in ("Dataset", "IterableDataset"):
        raise DataError(f"Expected a datasets.Dataset or datasets.IterableDataset, got a {kind}.")


class TableSource:
    """A map-style Hugging Face dataset as a `Source`.

    Args:
      dataset: a `datasets.Dataset`.
      chosen: the columns to read.
      pictures: the decoder of the image column.
      threads: the number of decoding threads.
    """

    def __init__(self, dataset: Any, chosen: Columns, pictures: Pictures, threads: int) -> None:
        if dataset.format["type"] == "custom":
            raise DataError(
                "The dataset has a custom transform (with_transform or set_transform), which several threads would "
                "call at once. Expected no transform. Augment with compile(augment=...), and prepare with dataset.map."
            )
        self.threads = threads
        self._key: tuple[int, int] | None = None
        self._columns, self._pictures = chosen, pictures
        self.classes = columns.class_names(dataset.features, chosen)
        names = [name for name in chosen if name is not None]
        self._table = pictures.undecoded(dataset.with_format(None).select_columns(names), chosen.image)
        self.labels: Any = None
        if chosen.label is not None:
            rows = self._table.select_columns([chosen.label])[:][chosen.label]
            self.labels = as_labels(rows, f"The column {chosen.label!r}") if len(rows) else None

    @property
    def description(self) -> Mapping[str, Any]:
        return {**self._columns._asdict(), "split": str(self._table.split), **self._pictures.description}

    def __len__(self) -> int:
        return len(self._table)

    def take(self, rows: slice | np.ndarray) -> tuple[np.ndarray, Any, None]:
        numbers = np.arange(len(self))[rows].tolist()
        taken = self._table[rows if isinstance(rows, slice) else numbers]
        images, names = [], []
        for number, value in zip(numbers, taken[self._columns.image], strict=True):
            names.append(f"Row {number} of the dataset")
            try:
                images.append(self._pictures.decode(value, self._key, (number,)))
            except BadRecordError as error:
                raise DataError(f"{names[-1]} cannot be used: {error}") from error
        return stack_images(images, names), None if self.labels is None else self.labels[numbers], None


class RandomTableSource(TableSource):
    """A map-style Hugging Face dataset with random crops per epoch, as an `EpochSource`."""

    def for_epoch(self, seed: int | None, epoch: int) -> "RandomTableSource":
        """Return the same images with the random crops of one epoch; without a seed there are no random crops."""
        cropped = copy.copy(self)
        cropped._key = None if seed is None else (seed, epoch)
        return cropped
