"""A Hugging Face stream as shards."""

import functools
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from resfit._utils.optional_import import load_package
from resfit.data.records import as_labels, stack_images
from resfit.data.sources.columns import Columns, class_names
from resfit.data.sources.pictures import INSTALL, Pictures
from resfit.data.streaming.retry import call_again
from resfit.errors import BadRecordError, DataError

_READ_AT_ONCE = 64

# Steps of a stream that give the same rows for a shard as for the whole. Other steps (take, skip, concatenate,
# interleave, repeat) do not, so such a stream is read as a single shard. The class names are those of datasets 5.
_ROW_BY_ROW = {
    "MappedExamplesIterable", "FilteredExamplesIterable", "SelectColumnsIterable", "FormattedExamplesIterable",
    "RebatchedArrowExamplesIterable",
}  # fmt: skip
_FILES = ("ExamplesIterable", "ArrowExamplesIterable")


class StreamShards:
    """The shards of a `datasets.IterableDataset`, for `ShardStream`.

    Args:
      stream: the dataset.
      chosen: the columns to read.
      pictures: the decoder of the image column.
      retries: the number of consecutive retries for a file that a record refers to.

    Raises:
      DataError: if the stream has a shuffle buffer.
    """

    def __init__(self, stream: Any, chosen: Columns, pictures: Pictures, retries: int) -> None:
        steps = list(_steps(stream._ex_iterable))
        if any(type(step).__name__ == "BufferShuffledExamplesIterable" for step in steps):
            raise DataError(
                "The stream has its own shuffle buffer, whose rows are lost when a run stops and resumes. Expected a "
                "stream without .shuffle(...). resfit shuffles it with the seed of compile."
            )
        self._columns, self._pictures, self._retries = chosen, pictures, retries
        self.classes = class_names(stream.features or {}, chosen)
        self._row_by_row = stream._distributed is None and all(_is_row_by_row(step) for step in steps)
        self._count = stream.num_shards if self._row_by_row else 1
        source = steps[-1]
        self._split = str(stream.split)
        self._files: list[str] = [str(file) for file in getattr(source, "kwargs", {}).get("files", ())]
        self._lengths, self.examples = self._promised(stream, steps) if self._row_by_row else (None, None)
        self._remote = self._lengths is None and self._whole_parquet(steps) if self._row_by_row else False
        stream = stream.with_format(None)
        if stream.features is not None:
            if pictures.encoded:
                stream = stream.decode(False)  # also stops decoding threads of the stream
            stream = stream.select_columns([name for name in chosen if name is not None])
            if not pictures.encoded:
                stream = stream.with_format("numpy")
        self._stream = stream

    @property
    def description(self) -> Mapping[str, Any]:
        names = "\0".join(os.path.basename(file) for file in self._files)  # moving the folder changes nothing
        files = zlib.crc32(names.encode(errors="surrogateescape"))
        return {**self._columns._asdict(), "split": self._split, "files": files, **self._pictures.description}

    def __len__(self) -> int:
        return self._count

    def lengths(self, needed: bool) -> Sequence[int] | None:
        if self._lengths is None and needed and self._remote:
            self._lengths = [
                call_again(file, functools.partial(_parquet_rows, file), self._retries) for file in self._files
            ]
        return self._lengths

    def name(self, shard: int) -> str:
        if len(self._files) == self._count:
            return self._files[shard]
        return "the stream" if self._count == 1 else f"shard {shard} of {self._count}"

    def read(self, shard: int, start: int) -> Iterator[tuple[Any, Any]]:
        # `shard` builds a new pipeline, so two readers share no state.
        part = self._stream.shard(num_shards=self._count, index=shard).skip(start)
        image, label = self._columns
        for rows in part.iter(batch_size=_READ_AT_ONCE):
            images = rows[image]
            yield from zip(images, rows[label] if label is not None else [None] * len(images), strict=True)

    def decode(
        self, record: tuple[Any, Any], key: tuple[int, int] | None, place: tuple[int, int]
    ) -> tuple[np.ndarray, Any]:
        value, label = record
        if label is None and self._columns.label is not None:
            raise BadRecordError(f"its label, column {self._columns.label!r}, is missing.")
        return call_again("An image file", lambda: self._pictures.decode(value, key, place), self._retries), label

    def stack(self, examples: list[tuple[np.ndarray, Any]]) -> tuple[np.ndarray, Any, None]:
        x = stack_images([image for image, _ in examples])
        if self._columns.label is None:
            return x, None, None
        return x, as_labels([label for _, label in examples], f"The column {self._columns.label!r}"), None

    def _promised(self, stream: Any, steps: list[Any]) -> tuple[list[int] | None, int | None]:
        """Return (rows per shard, rows in total) if they are known and no step changes the number of rows."""
        if not all(_keeps_rows(step) for step in steps):
            return None, None
        tables = getattr(steps[-1], "kwargs", {}).get("shards", ())
        if len(tables) == self._count and all(type(table).__name__ == "Dataset" for table in tables):
            return [len(table) for table in tables], None  # a stream made from a map-style dataset
        split = (stream.info.splits or {}).get(str(stream.split)) if _is_unfiltered(steps[-1]) else None
        promised = split.num_examples if split is not None and split.num_examples else None
        if not (self._whole_parquet(steps) and all(os.path.isfile(file) for file in self._files)):
            return None, promised
        lengths = [_parquet_rows(file) for file in self._files]
        if promised not in (None, sum(lengths)):
            raise DataError(
                f"The metadata of split {str(stream.split)!r} promise {promised} rows, but its {len(lengths)} files "
                f"hold {sum(lengths)}. Expected all rows. Check for missing files."
            )
        return lengths, None

    def _whole_parquet(self, steps: list[Any]) -> bool:
        """Return True if each shard is a whole parquet file, so that the file's metadata give the number of rows."""
        source = steps[-1]
        builder = getattr(getattr(source, "generate_tables_fn", None), "__self__", None)
        groups = getattr(source, "kwargs", {}).get("row_groups_list", [])
        return (
            any(kind.__name__ == "Parquet" for kind in type(builder).__mro__)
            and _is_unfiltered(source)
            and all(_keeps_rows(step) for step in steps)
            and len(self._files) == self._count
            and all(group is None for group in groups)
        )


def features_of(stream: Any) -> Mapping[str, Any]:
    """Return the types of the columns, from the first row if the stream does not know them."""
    if stream.features is not None:
        features: Mapping[str, Any] = stream.features
        return features
    first = next(iter(stream.with_format(None)), None)
    if first is None:
        raise DataError("The stream has no examples. Expected at least one.")
    datasets = load_package("datasets", "a Hugging Face stream", INSTALL)
    arrays = {
        name: {2: datasets.Array2D, 3: datasets.Array3D}[value.ndim](value.shape, str(value.dtype))
        for name, value in first.items()
        if isinstance(value, np.ndarray) and value.ndim in (2, 3)
    }
    rest = {name: value for name, value in first.items() if name not in arrays}
    return {**datasets.Dataset.from_list([rest]).features, **arrays}


def _steps(iterable: Any) -> Iterator[Any]:
    """Iterate over the parts of a stream's pipeline, from the last step to the source."""
    yield iterable
    for inner in [*getattr(iterable, "ex_iterables", ()), getattr(iterable, "ex_iterable", None)]:
        if inner is not None:
            yield from _steps(inner)


def _is_row_by_row(step: Any) -> bool:
    return type(step).__name__ in _FILES or (
        type(step).__name__ in _ROW_BY_ROW and not getattr(step, "with_indices", False)
    )


def _keeps_rows(step: Any) -> bool:
    name = type(step).__name__
    return name != "FilteredExamplesIterable" and (name != "MappedExamplesIterable" or not step.batched)


def _is_unfiltered(source: Any) -> bool:
    """Return True if the builder reads all rows of all files."""
    config = getattr(getattr(getattr(source, "generate_tables_fn", None), "__self__", None), "config", None)
    return getattr(config, "filters", None) is None and getattr(config, "on_bad_files", "error") == "error"


def _parquet_rows(file: str) -> int:
    fsspec = load_package("fsspec", "reading a file", INSTALL)
    parquet = load_package("pyarrow.parquet", "reading a parquet file", INSTALL)
    with fsspec.open(file, "rb") as opened:
        rows: int = parquet.read_metadata(opened).num_rows
    return rows
