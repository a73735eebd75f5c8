"""Contestants that take turns, so that other load on the machine affects all of them equally."""

import statistics
import time
from collections.abc import Callable, Collection
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Milliseconds(NamedTuple):
    """The time of a step in one round."""

    wall: float
    processor: float  # of all threads: independent of other load, without waiting


def turns(
    contestants: dict[str, Callable[[], T]], rounds: int, rarely: Collection[str] = ()
) -> dict[str, dict[int, T]]:
    """Return the results of each contestant, by round. Every other round runs in reverse order.

    Args:
      contestants: by name. The first round, which compiles, does not count.
      rounds: number of rounds that count.
      rarely: contestants of every other round only.
    """
    returned: dict[str, dict[int, T]] = {name: {} for name in contestants}
    for round_ in range(rounds + 1):
        for name in list(contestants)[:: -1 if round_ % 2 else 1]:
            if round_ % 2 and name in rarely:
                continue
            result = contestants[name]()
            if round_:
                returned[name][round_] = result
    return returned


def measure(contestants: dict[str, Callable[[], object]], rounds: int, steps: int) -> dict[str, list[Milliseconds]]:
    """Return the times of each contestant by round, with `steps` steps per call; see `turns`."""

    def timed(call: Callable[[], object]) -> Callable[[], Milliseconds]:
        def run() -> Milliseconds:
            wall, processor = time.perf_counter(), time.process_time()
            call()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            return Milliseconds(wall / steps * 1e3, processor / steps * 1e3)

        return run

    returned = turns({name: timed(call) for name, call in contestants.items()}, rounds)
    return {name: list(by_round.values()) for name, by_round in returned.items()}


def report(title: str, times: dict[str, list[Milliseconds]]) -> None:
    """Print the times, and the ratio of the last contestant to the first."""
    base, *_, name = times
    for clock in Milliseconds._fields:
        by_name = {key: [getattr(round_, clock) for round_ in rounds] for key, rounds in times.items()}
        for key, values in by_name.items():
            print(
                f"{title:9} {key:14} {clock:9} ms/step: median {statistics.median(values):8.3f}  "
                f"min {min(values):8.3f}  max {max(values):8.3f}"
            )
        a, b = by_name[name], by_name[base]
        pairs = statistics.median(x / y for x, y in zip(a, b, strict=True))
        print(
            f"{title:9} {name} / {base}, {clock}: {statistics.median(a) / statistics.median(b):.3f} of the medians, "
            f"{min(a) / min(b):.3f} of the minima, {pairs:.3f} median of {len(a)} pairs",
            flush=True,
        )
