"""Data in shards with sequential access, such as files."""

import os

from resfit._utils.checks import int_from
from resfit.data.batches import Geometry
from resfit.data.streaming.stream_batches import Settings, Shards, StreamBatches
from resfit.errors import DataError


class ShardStream:
    """A `Stream` of shards: interleaved, shuffled, with retries, and resumable at any batch.

    The order is a pure function of (seed, epoch). Shards are permuted, several shards are read in turn, and the rows
    are cut into windows that are permuted independently. To resume at a batch, its window is read again; there is no
    shuffle buffer whose rows a stopped run would lose. The number of threads does not change the order.

    Args:
      shards: the shards to read.
      window: the number of rows that are shuffled together; as many encoded records are in memory.
      interleave: the number of shards that are read in turn.
      max_bad_records: the number of bad records that an epoch can skip. Each is logged, and the epoch's logs report
        their number as `bad_records`. With the default 0, the first bad record raises.
      retries: the number of consecutive retries after a file or network error, with pauses of 0.5, 1, 2, ... seconds.
      threads: the number of decoding threads; by default one per core, at most 4. 0 reads and decodes on demand.

    Raises:
      DataError: if an argument is out of range, or there are no shards.

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
