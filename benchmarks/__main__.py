"""Compare resfit with the hand-written loop, the nnx.jit loop, Keras and PyTorch: one table, a page and a picture.

    python -m benchmarks                     # everything
    python -m benchmarks --quick             # a few minutes; nothing is written
    python -m benchmarks --only tiny host    # these groups; the others keep the rows of earlier runs

Everything that is measured runs in its own process; this process only schedules the turns. Groups with more details
are separate modules, such as `python -m benchmarks.folder`.
"""

import argparse
import datetime
import sys
import time
from pathlib import Path

from benchmarks import machine, report
from benchmarks.child import ROOT, ask
from benchmarks.commits import History
from benchmarks.groups import GROUPS
from benchmarks.problems import BY_PLATFORM
from benchmarks.rows import left_out


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, no ResNet-50; writes nothing")
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), metavar="NAME",
                        help=f"some of {', '.join(GROUPS)}")  # fmt: skip
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="the folder of benchmarks.md")
    arguments = parser.parse_args()
    history, groups = History(ROOT), {name: GROUPS[name] for name in arguments.only}
    changed = history.uncommitted(sorted({path for group in groups.values() for path in group.files}))
    if changed and not arguments.quick:
        sys.exit(f"{', '.join(changed)}: not committed. Each row stores the commit that it measures. Commit, or use "
                 "--quick.")  # fmt: skip
    commit = history.head()
    device = ask("benchmarks.machine:device")
    platform = device["platform"]
    if platform not in BY_PLATFORM:
        sys.exit(f"There are no problems for {platform!r}. Expected one of {list(BY_PLATFORM)}.")
    where, date = f"{device['count']} x {device['kind']}; {machine.where()}", datetime.date.today().isoformat()
    found = []
    if not arguments.quick:
        total = sum(group.minutes for group in groups.values())
        _tell(f"About {total:.0f} minutes on two quiet cores. Other load changes the numbers.")
    for name, group in groups.items():
        if not arguments.quick:
            _tell(f"{name}: about {group.minutes} minutes ...")
        start = time.perf_counter()
        rows = group.rows(platform, arguments.quick)
        _tell(f"{name}: {(time.perf_counter() - start) / 60:.1f} minutes")
        found += [report.Measured(name, platform, where, date, row, commit, group.files) for row in rows]
    if platform != "gpu":
        row = left_out("GPU", "the same problems, larger batches, bfloat16", "there is none on this machine")
        found.append(report.Measured(report.NO_GPU, "gpu", where, date, row))
    report.show([measured.row for measured in found])
    print(f"{date}, commit {commit or 'unknown'}, {where}")
    if not arguments.quick:
        _document(arguments.docs, found)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _document(docs: Path, found: list[report.Measured]) -> None:
    kept, text = docs / "benchmarks.json", docs / "benchmarks.md"
    rows = report.merged(report.read(kept), found, list(GROUPS))
    report.write(kept, rows)
    text.write_text(report.between_markers(text.read_text(), report.page(rows)))
    report.draw(rows, docs / "pictures" / "benchmarks.png")
    print(f"Wrote {text}, {kept} and a picture.")


if __name__ == "__main__":
    main()
