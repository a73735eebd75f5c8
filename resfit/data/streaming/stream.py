"""Data that come as shards to be read from the beginning: files, or whatever can only be read in order."""

import os

from resfit._utils.checks import int_from
from resfit.data.batches import Geometry
from resfit.data.streaming.stream_batches import Settings, Shards, StreamBatches
from resfit.errors import DataError


class ShardStream:
    """A `Stream` of shards: interleaved, shuffled, retried, counted, and resumable at any batch.

    The order is a pure function of (seed, epoch): shards are permuted, several of them are read in turns, and the rows
    that come are cut into windows, each of which is permuted by itself. To go on from any batch, its window is read
    again; nothing waits in a buffer that a stopped run would lose. Threads change nothing.

    Args:
      shards: what to read.
      window: rows that are shuffled together; so many records are held, encoded as they come.
      interleave: shards that are read in turns.
      max_bad_records: how many bad records an epoch may have. They are left out, logged, and reported as `bad_records`
        in the epoch's logs. The default takes none: the first is an error.
      retries: how often in a row to try again after an error of a file or the network, with pauses of 0.5, 1, 2, ...
        seconds.
      threads: that decode; by default one for each core, four at most. 0 reads and decodes when a batch is asked for.

    Raises:
      DataError: for arguments out of range, or if there are no shards.

    Example:
      >>> class Numbers:  # shard s holds the numbers 10 s to 10 s + 2
      ...     examples = None
      ...     def __len__(self): return 3
      ...     def lengths(self, needed): return None
      ...     def name(self, shard): return f"shard {shard}"
      ...     def read(self, shard, start): return iter(range(10 * shard + start, 10 * shard + 3))
      ...     def decode(self, record, key, place): return np.float32(record)
      ...     def stack(self, examples): return np.stack(examples), None, None
      >>> batches = ShardStream(Numbers(), window=4).batches(Geometry(batch_size=4, seed=0))
      >>> rows = [batch.x.tolist() for batch in batches.epoch(0)]
      >>> sorted(sum(rows, []))
      [0.0, 1.0, 2.0, 10.0, 11.0, 12.0, 20.0, 21.0, 22.0]
      >>> [batch.x.tolist() for batch in batches.epoch(0, start=1)] == rows[1:]
      True
    """

    def __init__(
        self,
        shards: Shards,
        *,
        window: int = 2048,
        interleave: int = 4,
        max_bad_records: int = 0,
        retries: int = 5,
        threads: int | None = None,
    ) -> None:
        if not len(shards):
            raise DataError(f"The {type(shards).__name__} has no shards. Expected at least one.")
        if threads is None:
            threads = min(4, os.cpu_count() or 1)
        settings = Settings(window, interleave, max_bad_records, retries, threads)
        for name, value in settings._asdict().items():
            least = 1 if name in ("window", "interleave") else 0
            settings = settings._replace(**{name: int_from(least, name, value, DataError)})
        self._shards, self._settings = shards, settings

    def batches(self, geometry: Geometry) -> StreamBatches:
        return StreamBatches(self._shards, self._settings, geometry)
