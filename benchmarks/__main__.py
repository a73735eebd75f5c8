"""Compare resfit with the hand-written loop, the nnx.jit loop, Keras and PyTorch: one table, a page and a picture.

    python -m benchmarks                     # everything
    python -m benchmarks --quick             # three minutes; nothing is written
    python -m benchmarks --only tiny host    # these sections; the others keep the rows of earlier runs

Everything that is measured runs in its own process; this process only schedules the turns. Sections with more details
are separate modules, such as `python -m benchmarks.folder`.
"""

import argparse
import datetime
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import (
    callbacks,
    checkpoints,
    cpu_kernels,
    machine,
    report,
    resident,
    second_model,
    startup,
    structure,
    training,
    zoo,
)
from benchmarks.child import ROOT, ask
from benchmarks.problems import BY_PLATFORM, CPU, GPU
from benchmarks.rows import Row, left_out

Section = Callable[[str, bool], list[Row]]  # (platform, quick) -> rows

SECTIONS: dict[str, Section] = {
    **{name: functools.partial(training.rows, name) for name in GPU},
    **{f"cpu_{name}": functools.partial(cpu_kernels.rows, name) for name in CPU},
    "resident": resident.rows,
    "host": structure.host_rows,
    "compilations": structure.compilation_rows,
    "devices": structure.device_rows,
    "callbacks": callbacks.rows,
    "checkpoints": checkpoints.rows,
    "startup": startup.rows,
    "second_model": second_model.rows,
    "zoo": zoo.rows,
}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, no ResNet-50; writes nothing")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), metavar="NAME",
                        help=f"some of {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="the folder of benchmarks.md")
    arguments = parser.parse_args()
    device = ask("benchmarks.machine:device")
    platform = device["platform"]
    if platform not in BY_PLATFORM:
        sys.exit(f"There are no problems for {platform!r}. Expected one of {list(BY_PLATFORM)}.")
    where, date = f"{device['count']} x {device['kind']}; {machine.where()}", datetime.date.today().isoformat()
    found = []
    for name in arguments.only:
        start = time.perf_counter()
        rows = SECTIONS[name](platform, arguments.quick)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        found += [report.Measured(name, platform, where, date, row) for row in rows]
    if platform != "gpu":
        row = left_out("GPU", "the same problems, larger batches, bfloat16", "there is none on this machine")
        found.append(report.Measured(report.NO_GPU, "gpu", where, date, row))
    report.show([measured.row for measured in found])
    print(f"{date}, {where}")
    if not arguments.quick:
        _document(arguments.docs, found)


def _document(docs: Path, found: list[report.Measured]) -> None:
    kept, text = docs / "benchmarks.json", docs / "benchmarks.md"
    rows = report.merged(report.read(kept), found, list(SECTIONS))
    report.write(kept, rows)
    text.write_text(report.between_markers(text.read_text(), report.page(rows)))
    report.draw(rows, docs / "pictures" / "benchmarks.png")
    print(f"Wrote {text}, {kept} and a picture.")


main()
