"""Input data: every supported form becomes `Batches`, in an order that depends only on (seed, epoch)."""

from typing import TYPE_CHECKING

from resfit._utils.keywords import check_constructors
from resfit._utils.words import no_attribute
from resfit.data.batches import Batch, Batches, EpochSource, Geometry, Source, Stream
from resfit.data.choose import as_batches
from resfit.data.datasets.builders import prepare_tfds
from resfit.data.datasets.load import load
from resfit.data.epochs import Epochs
from resfit.data.indexed import IndexedBatches
from resfit.data.sources.arrays import ArrayBatches, ArraySource
from resfit.data.sources.files import ImageFiles, files
from resfit.data.sources.folder import ImageFolder, folder
from resfit.data.sources.huggingface import huggingface
from resfit.data.sources.iterables import IterableBatches
from resfit.data.sources.tfds import tfds
from resfit.data.sources.tfds_source import TfdsSource
from resfit.data.streaming.ahead import prefetch
from resfit.data.streaming.stream import ShardStream
from resfit.data.streaming.stream_batches import Shards

__all__ = [
    "ArrayBatches",
    "ArraySource",
    "Batch",
    "Batches",
    "EpochSource",
    "Epochs",
    "Geometry",
    "ImageFiles",
    "ImageFolder",
    "IndexedBatches",
    "IterableBatches",
    "ShardStream",
    "Shards",
    "Source",
    "Stream",
    "TfdsSource",
    "as_batches",
    "files",
    "folder",
    "huggingface",
    "load",
    "prefetch",
    "prepare_tfds",
    "tfds",
]

check_constructors(__name__, "data arguments")

if not TYPE_CHECKING:  # a type checker would accept every name
    __getattr__ = no_attribute(__name__, "data")
