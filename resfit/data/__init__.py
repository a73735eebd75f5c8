"""Every input becomes the same `Batches`: a length, an order that is a function of (seed, epoch), and a stream."""

from resfit.data.ahead import prefetch
from resfit.data.arrays import ArrayBatches, ArraySource
from resfit.data.batches import Batch, Batches, EpochSource, Geometry, Source, Stream
from resfit.data.builders import prepare_tfds
from resfit.data.choose import as_batches
from resfit.data.epochs import Epochs
from resfit.data.folder import ImageFolder, folder
from resfit.data.huggingface import huggingface
from resfit.data.indexed import IndexedBatches
from resfit.data.iterables import IterableBatches
from resfit.data.load import load
from resfit.data.stream import Shards, ShardStream
from resfit.data.tfds import tfds
from resfit.data.tfds_source import TfdsSource

__all__ = [
    "ArrayBatches",
    "ArraySource",
    "Batch",
    "Batches",
    "EpochSource",
    "Epochs",
    "Geometry",
    "ImageFolder",
    "IndexedBatches",
    "IterableBatches",
    "ShardStream",
    "Shards",
    "Source",
    "Stream",
    "TfdsSource",
    "as_batches",
    "folder",
    "huggingface",
    "load",
    "prefetch",
    "prepare_tfds",
    "tfds",
]
