import contextlib
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import pytest

from constitutional.base.progress import Progress, clock, described, percent

ROOT = str(Path(__file__).resolve().parents[2])


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Time that goes on by so much each time it is asked."""

    def __init__(self, step_s: float) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_a_line_says_which_share_how_fast_and_how_long_the_rest_takes() -> None:
    # At 1.9 rows a second the other 63 of 100 take 33 s; at 9 a minute the other 6 of 9 take 40 s.
    assert described("label", 37, 100, 1.9) == "label: 37% · 1.9 rows/s · 0:33 left"
    assert described("label", 3, 9, 0.15, "calls") == "label: 33% · 9.0 calls/min · 0:40 left"
    assert described("label", 0, 600, note="412 calls") == "label: 0% · 412 calls"
    assert described("label", 599, 600) == "label: 99%"
    assert described("label", 600, 600) == "label: 100%"
    assert described("label", 1200, 0, unit="answers") == "label: 1,200 answers"  # nobody knows how many there will be
    # Of rows that take longer than ten seconds, calls tell more.
    assert described("label", 3, 9, 0.05, note="412 calls") == "label: 33% · 2:00 left · 412 calls"


@pytest.mark.parametrize(("seconds", "rows", "foretold"), [(800.0, 2, False), (4.5, 3, False), (30.0, 4, True)])
def test_nothing_is_foretold_from_next_to_nothing(seconds: float, rows: int, foretold: bool) -> None:
    stream, clock = StringIO(), Clock(0.0)
    with Progress(stream, clock).task("label", 9) as task:
        clock.now_s = seconds
        task.update(rows)
    (line,) = stream.getvalue().splitlines()
    assert ("left" in line) == foretold


def test_the_speed_is_that_of_late() -> None:
    stream, clock = StringIO(), Clock(0.0)
    progress = Progress(stream, clock)
    with progress.task("label", 1000) as task:
        for now_s, done in ((1.0, 500), (11.0, 510), (21.0, 520), (31.0, 530)):
            clock.now_s = now_s
            task.update(done)
    # A journal gave 500 at once; since then one a second: the other 470 take 470 s.
    assert stream.getvalue().splitlines()[-1] == "  label: 53% · 1.0 rows/s · 7:50 left"


def test_what_a_model_wrote_cannot_move_the_cursor() -> None:
    stream = StringIO()
    Progress(stream).say("run \x1b[2Jgone")
    assert stream.getvalue() == "run \\x1b[2Jgone\n"


def test_times_are_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 187, 3787)] == ["0:00", "1:00", "3:07", "1:03:07"]


def test_a_percentage_is_rounded_down() -> None:
    # 0.57 * 100 is 56.99999999999999.
    assert [percent(share) for share in (0.57, 0.438, 0.7999, 0.9999, 1.0)] == ["57%", "43%", "79%", "99%", "100%"]


def test_elsewhere_than_on_a_terminal_a_line_comes_now_and_then_and_stays() -> None:
    stream, clock = StringIO(), Clock(0.0)
    with Progress(stream, clock).task("label", 9) as task:
        for done in range(1, 10):
            clock.now_s = 4.0 * done
            task.update(done)
    # The first line comes with the first row, and then one every 10 s.
    lines = stream.getvalue().splitlines()
    assert [line.split(" ·")[0] for line in lines] == ["  label: 11%", "  label: 44%", "  label: 77%"]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_what_an_item_takes_stands_behind_the_items_that_are_done() -> None:
    stream = StringIO()
    progress = Progress(stream, Clock(20.0))  # so that every line is due

    def items() -> Iterator[str]:
        progress.aside("stage", "critic: 4 answers")
        yield "a"
        progress.aside("stage", "critic: 8 answers")
        yield "b"

    list(progress.track(items(), 2, "revise"))
    progress.aside("stage", "labeler: 2 answers")
    first, half, aside, whole, after = stream.getvalue().splitlines()
    assert first == "  revise: 0% · critic: 4 answers"
    assert half.startswith("  revise: 50%")
    assert aside == "  revise: 50% · critic: 8 answers"  # no estimate from a single item
    assert whole.startswith("  revise: 100%")
    assert after == "  stage: labeler: 2 answers"


def test_on_a_terminal_a_bar_is_drawn_and_gives_way_to_lines_that_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    progress = Progress(stream, Clock(1.0))
    with progress.task("label", 2) as task:
        task.update(1)
        progress.say("a line [bold]that\x1b[2J[/bold] stays")
    progress.say("label: done")
    shown = stream.getvalue()
    assert "a line [bold]that\\x1b[2J[/bold] stays\n" in shown
    assert shown.endswith("label: done\n")
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is shown again


def test_an_interrupt_shows_the_cursor_again_and_ends_the_line() -> None:
    program = (
        "from constitutional.base.progress import Progress\n"
        "progress = Progress()\n"
        "for number in progress.track(range(100), 100, 'label'):\n"
        "    if number == 3: raise KeyboardInterrupt\n"
    )
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=theirs, env={**os.environ, "TERM": "xterm", "PYTHONPATH": ROOT}
    ) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # as the other end is closed
            while part := os.read(ours, 1024):
                shown += part
        process.wait()
    os.close(ours)
    before, _, after = shown.partition(b"Traceback")
    assert b"label" in before
    assert b"KeyboardInterrupt" in after
    assert before.rindex(b"\x1b[?25h") > before.rindex(b"\x1b[?25l") or b"\x1b[?25h" in after
    assert before.endswith((b"\n", b"\x1b[?25h")) or b"\n" in before[before.rindex(b"label") :]


@pytest.mark.parametrize("terminal", [False, True])
def test_several_threads_tell_of_their_work_at_once(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress(Terminal() if terminal else StringIO())
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda name: list(progress.track(range(200), 200, f"work {name}")), range(8)))
    assert done == [list(range(200))] * 8


def test_a_closed_stream_ends_no_work() -> None:
    stream = StringIO()
    progress = Progress(stream, Clock(20.0))
    stream.close()
    assert list(progress.track("abc", 3, "label")) == ["a", "b", "c"]
    progress.say("nobody reads this")
