"""Every input becomes the same `Batches`: a length, an order that is a function of (seed, epoch), and a stream."""

from resfit.data.arrays import ArrayBatches
from resfit.data.batches import Batch, Batches
from resfit.data.epochs import Epochs
from resfit.data.iterables import IterableBatches
from resfit.data.load import load

__all__ = ["ArrayBatches", "Batch", "Batches", "Epochs", "IterableBatches", "load"]
