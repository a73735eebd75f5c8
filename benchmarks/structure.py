"""Rows that hardly vary: host time between dispatches, compilations, several devices."""

from benchmarks import devices
from benchmarks.child import ask
from benchmarks.rows import Row, compared, counted, divided, timed

HOST = "state of ResNet-50 (429 arrays), no arithmetic"
COMPILATIONS = "five epochs, partial last batch, validation"
DEVICES = "ResNet-20, 32 x 32, batch 128, 1 -> 8 processor devices"


def host_rows(platform: str, quick: bool) -> list[Row]:
    """Return the main-thread time of a step."""
    times = ask("benchmarks.host_time:host_times", steps=100 if quick else 300, rounds=5 if quick else 15)
    fit, by_hand = times["fit"], times["hand_written"]
    return [
        timed(HOST, "host time of a hand-written step", by_hand, "the main thread's processor time"),
        compared(HOST, "host time of a fit step / hand-written", fit, by_hand, "<= 1.15"),
    ]


def compilation_rows(platform: str, quick: bool) -> list[Row]:
    """Return the numbers of compilations."""
    counts = ask("benchmarks.compilations:counts")
    return [
        counted(
            COMPILATIONS, "training steps compiled", counts["train"], "<= 2", note="whole batch, partial last batch"
        ),
        counted(COMPILATIONS, "evaluation steps compiled", counts["evaluate"], "<= 1"),
        counted(COMPILATIONS, "programs compiled after the first epoch", counts["later"], "<= 0"),
        counted(COMPILATIONS, "programs compiled by a second Model of the spec", counts["second"], "<= 0"),
        counted(COMPILATIONS, "programs of the first epoch, tiny helpers included", counts["all"]),
    ]


def device_rows(platform: str, quick: bool) -> list[Row]:
    """Return the sharded step compared with that of one device."""
    one, eight = (ask("benchmarks.devices:training_step", devices.environment(n)) for n in (1, 8))
    collectives = eight["collectives"]
    rest = [f"{n} {kind}" for kind, n in collectives.items() if n and kind not in ("all-reduce", "all-gather")]
    share = eight["largest_all_reduce"] / eight["parameters"]
    return [
        divided(DEVICES, "floating-point operations of 8 devices together / of 1", 8 * eight["flops"] / 1e9,
                one["flops"] / 1e9, "GFLOP", "<= 1.01"),
        divided(DEVICES, "temporary memory of one of 8 devices / of 1", eight["temporary_memory"] / 2**20,
                one["temporary_memory"] / 2**20, "MiB", "", "0.125 is an even share"),
        counted(DEVICES, "all-gathers", collectives["all-gather"], "<= 0"),
        counted(DEVICES, "all-reduces", collectives["all-reduce"], "",
                note=f"the largest carries {share:.1%} of the gradients; others: {', '.join(rest) or 'none'}"),
        divided(DEVICES, "step on 8 devices / on 1", eight["seconds"] * 1e3, one["seconds"] * 1e3, "ms", "",
                "the same cores; for information"),
    ]  # fmt: skip
