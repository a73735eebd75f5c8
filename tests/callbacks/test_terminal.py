"""The progress display in a pseudo-terminal of several widths, read from a screen."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from resfit.callbacks.display.line import Line
from resfit.callbacks.display.text import columns, fitted, number, text_table
from resfit.callbacks.display.time_left import TimeLeft
from tests._utils.screen import Screen

WIDTHS = (60, 80, 100, 140)
VALUES = {"loss": "0.1234", "accuracy": "0.9876", "val_loss": "0.2345", "val_accuracy": "0.8765"}
MORE = {"learning_rate": "0.003", "time": "12.3 s", "images/s": "12,345"}


def output_of(*arguments: str) -> str:
    """Return what a process writes to a terminal."""
    terminal, end = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    environment.pop("COLUMNS", None)
    command = [sys.executable, "-m", "tests.callbacks.run_in_terminal", *arguments]
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True)
    os.close(end)
    received = b""
    while True:
        try:
            received += (new := os.read(terminal, 65536))
        except OSError:  # Linux: the other end is closed
            break
        if not new:
            break
    os.close(terminal)
    assert process.wait() == 0, received.decode()
    return received.decode()


@pytest.fixture(scope="module")
def outputs() -> dict[int, str]:
    """Return the output of a fit and an evaluation, by the width of the terminal."""
    _, *parts = re.split(r"(?:width (\d+)|nested)\r\n", output_of(*map(str, WIDTHS)))
    return {int(width or 0): text for width, text in zip(parts[::2], parts[1::2], strict=True)}


def running(text: str) -> list[str]:
    """Return the lines of running epochs that a terminal shows one after the other."""
    return re.findall(r"Epoch \d\d/12  [^\r\n\x1b]*", text)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_a_finished_epoch_is_one_aligned_line_of_the_terminal(outputs: dict[int, str], width: int) -> None:
    screen = Screen(width)
    screen.feed(outputs[width])
    lines = [line for line in screen.lines if line and not line.startswith("first step")]
    header, *rows, evaluated = lines
    assert header.split()[: 1 + len(VALUES)] == ["epoch", *VALUES]
    assert [row.split()[0] for row in rows] == ["10/12", "11/12", "12/12"]
    assert {len(row) for row in rows} == {len(header)}
    assert ("time" in header, "images/s" in header) == (width > 60, width > 80)
    assert re.match(r"Evaluate .*loss \d\.\d{4}  accuracy \d\.\d{4}", evaluated)
    rate = header.split().index("learning_rate") if "learning_rate" in header else None
    assert rate is None or all(float(row.split()[rate]) > 0 for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_the_running_epoch_keeps_its_number_and_values_in_any_width(outputs: dict[int, str], width: int) -> None:
    shown = running(outputs[width])
    stepped = [line for line in shown if "accuracy" in line]
    assert stepped
    assert max(map(len, shown)) <= width
    assert all(re.search(r"accuracy \d\.\d{4}", line) for line in stepped)
    with_status = ("compiling", "validating")  # which takes the place of the loss in a narrow terminal
    narrow = [line for line in stepped if width > 60 or not any(status in line for status in with_status)]
    assert all(re.search(r"loss \d\.\d{4}  acc", line) for line in narrow)
    assert all(re.search(r"\d:\d\d left", line) for line in stepped)
    assert any("run 0:0" in line for line in stepped) == (width > 60)


@pytest.mark.slow
def test_an_evaluation_and_a_print_of_a_callback_stand_above_the_line_of_the_fit(outputs: dict[int, str]) -> None:
    screen = Screen(WIDTHS[-1])
    screen.feed(outputs[0])
    assert [line.split()[0] for line in screen.lines if line] == [
        "printed", "Evaluate", "epoch", "1/2", "printed", "Evaluate", "2/2",
    ]  # fmt: skip
    assert "Epoch" not in "".join(screen.lines)


@pytest.mark.slow
def test_the_time_left_is_shown_while_the_partial_last_batch_compiles(outputs: dict[int, str]) -> None:
    assert any(re.search(r"0:0\d left .*compiling.*accuracy", line) for line in running(outputs[WIDTHS[0]]))


def test_a_screen_wraps_what_is_too_long() -> None:
    screen = Screen(4)
    screen.feed("abcdef\r\nx\r\x1b[2Ky\n\x1b[1A!")
    assert screen.lines == ["abcd", "ef", "y!", ""]
    with pytest.raises(ValueError, match="Unknown command"):
        screen.feed("\x1b[3X")


@pytest.mark.parametrize("width", range(20, 160, 7))
def test_a_table_shows_as_much_as_fits(width: int) -> None:
    row = {"epoch": " 2/10", **VALUES, **MORE}
    widths = columns(row, width)
    assert max(map(len, text_table([row], width))) <= width
    assert [name for name in row if name in widths] == list(widths)
    missing = [name for name in row if name not in widths]
    if missing:  # the next one would not have fitted
        order = ["epoch", "val_accuracy", "accuracy", "loss", "val_loss", *MORE]
        assert sorted(missing, key=order.index) == order[-len(missing) :]


def test_a_line_loses_the_parts_of_the_highest_rank_first() -> None:
    parts = [(0, "title"), (3, "bar"), (1, "loss"), (2, "")]
    assert [fitted(parts, width) for width in (16, 15, 10, 3)] == ["title  bar  loss", "title  loss", "title", "tit"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 1.0, "1.0000"), ("loss", 0.0, "0.0000"), ("loss", 0.00012345, "0.000123"), ("loss", 3e-9, "3e-09"),
        ("loss", 123.45678, "123.4568"), ("loss", 98765.4321, "98765.4"), ("loss", 2.5e30, "2.5e+30"),
        ("loss", float("nan"), "nan"), ("loss", float("-inf"), "-inf"), ("learning_rate", 0.00001, "1e-05"),
        ("learning_rate", 0.1, "0.1"), ("learning_rate", 0.000123456, "0.0001235"), ("skipped_steps", 3.0, "3"),
    ],
)  # fmt: skip
def test_a_value_never_loses_all_its_digits(name: str, value: float, text: str) -> None:
    assert number(name, value) == text


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Return the clock of the estimates."""
    made = Clock()
    monkeypatch.setattr("time.perf_counter", made)
    return made


def test_the_time_left_falls_between_steps_and_while_a_partial_batch_compiles(clock: Clock) -> None:
    time = TimeLeft()
    time.begin_epoch(11)
    assert time.in_epoch() is None
    time.compile(begins=True)
    clock.now = 6.0
    time.compile(begins=False)  # six seconds, which are no time of a step
    for done in range(1, 11):
        clock.now += 1.0
        time.step(done)
    assert (time.in_epoch(), time.in_run(2)) == (1.0, 23.0)
    clock.now += 0.25
    assert time.in_epoch() == 0.75
    time.compile(begins=True)  # the last batch, probably for six seconds again
    left = []
    for _ in range(8):
        clock.now += 1.0
        left.append(time.in_epoch())
    assert left == [5.75, 4.75, 3.75, 2.75, 1.75, 0.75, 0.75, 0.75]
    assert "compiling 0:08" in Line("Epoch 1/3", 11, time, 2, done=10).text(80)


def test_the_time_left_knows_the_validation_of_the_epoch_before(clock: Clock) -> None:
    time = TimeLeft()
    for epoch in range(2):
        time.begin_epoch(2)
        if epoch:
            assert (time.in_epoch(), time.in_run(1)) == (7.0, 14.0)  # before the first step
        for done in (1, 2):
            clock.now += 1.0
            time.step(done)
        assert time.in_epoch() == (5.0 if epoch else 0.0)
        time.validate(begins=True)
        clock.now += 2.0
        assert time.in_epoch() == (3.0 if epoch else 0.0)
        clock.now += 3.0
        time.validate(begins=False)
        time.end_epoch()


def test_a_resumed_epoch_counts_only_its_own_steps(clock: Clock) -> None:
    time = TimeLeft()
    time.begin_epoch(10)
    clock.now = 2.0
    time.step(7)
    assert time.in_epoch() == 6.0
