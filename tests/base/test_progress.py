import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from constitutional.base.progress import Progress, clock, counted, described, percent, speed


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


class SetClock:
    """Time that stands where the test sets it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_description_has_the_share_the_speed_the_time_left_and_a_note() -> None:
    # 222 of 600 are 37%; the other 378 take 198.9 s at 1.9 a second.
    assert described("revise", 222, 600, 1.9) == "revise: 37% · 1.9 rows/s · 3:19 left"
    assert described("revise", 222, 600, 1.9, note="412 calls") == "revise: 37% · 1.9 rows/s · 3:19 left · 412 calls"
    assert described("ppo", 3, 9, 0.15, "phases") == "ppo: 33% · 9.0 phases/min · 0:40 left"
    assert described("revise", 0, 600) == "revise: 0%"
    assert described("revise", 0, 0, note="8 calls") == "revise: 8 calls"
    assert described("revise", 1200, 0) == "revise: 1,200 rows"


def test_slow_rows_leave_the_speed_to_the_note() -> None:
    # One row in 20 s: the other 6 take 2 minutes.
    assert described("revise", 3, 9, 0.05, note="1.5 calls/s") == "revise: 33% · 2:00 left · 1.5 calls/s"
    assert described("revise", 3, 9, 0.05) == "revise: 33% · 3.0 rows/min · 2:00 left"


def test_all_is_done_at_100_percent_and_not_before() -> None:
    assert described("label", 9999, 10000, 5.0) == "label: 99% · 5.0 rows/s · 0:00 left"
    assert described("label", 10000, 10000, 5.0) == "label: 100% · 5.0 rows/s"


def test_a_speed_is_told_in_a_unit_of_time_that_suits_it() -> None:
    rates = (12345.6, 100.0, 1.0, 0.5, 1 / 60, 0.01)
    shown = ["12,346 rows/s", "100 rows/s", "1.0 rows/s", "30.0 rows/min", "1.0 rows/min", "36.0 rows/h"]
    assert [speed(rate, "rows") for rate in rates] == shown


@pytest.mark.parametrize(("done", "seconds"), [(1, 1311.0), (2, 60.0), (400, 4.9)])
def test_nothing_is_foretold_from_next_to_nothing(done: int, seconds: float) -> None:
    assert "left" not in _after(done, seconds)
    assert "left" in _after(3, 5.0)


def _after(done: int, seconds: float) -> str:
    """The line when so much is done at that time."""
    stream, now = StringIO(), SetClock()
    task = Progress(stream, now).task("label", 438)
    now.now_s = seconds
    task.update(done)
    return stream.getvalue()


def test_rows_that_a_journal_gave_back_at_once_do_not_make_the_rest_look_fast() -> None:
    stream, now = StringIO(), SetClock()
    task = Progress(stream, now).task("label", 1000)
    for now.now_s, done in ((1.0, 900), (11.0, 910), (21.0, 920)):
        task.update(done)
    # The last mark in the first half of 21 s is that of second 1: 20 rows in 20 s since then.
    assert stream.getvalue().splitlines()[-1] == "  label: 92% · 1.0 rows/s · 1:20 left"


def test_what_a_model_wrote_cannot_move_the_cursor() -> None:
    stream, now = StringIO(), SetClock()
    progress = Progress(stream, now)
    progress.say("run \x1b[2Jgone")
    task = progress.task("a \x1b[1A label", 8)
    now.now_s = 2.0
    task.update(4, "two\nlines \x9b2J")
    assert stream.getvalue().splitlines() == ["run \\x1b[2Jgone", "  a \\x1b[1A label: 50% · two lines \\x9b2J"]


def test_times_are_minutes_and_seconds() -> None:
    assert [clock(seconds) for seconds in (0.4, 59.6, 187, 3787)] == ["0:00", "1:00", "3:07", "1:03:07"]


def test_a_percentage_is_rounded_down() -> None:
    # 0.57 * 100 is 56.99999999999999.
    assert [percent(share) for share in (0.57, 0.438, 0.7999, 0.9999, 1.0)] == ["57%", "43%", "79%", "99%", "100%"]


@pytest.mark.parametrize("terminal", ["", "dumb"])
def test_elsewhere_than_on_a_terminal_a_line_comes_now_and_then_and_stays(
    terminal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", terminal)
    stream, now = Terminal() if terminal else StringIO(), SetClock()
    for row in Progress(stream, now).track(range(30), 30, "label"):
        now.now_s = row + 1  # a second a row
    # At 2 s, then every 10 s.
    shares = [line.split(" · ")[0] for line in stream.getvalue().splitlines()]
    assert shares == ["  label: 6%", "  label: 40%", "  label: 73%"]
    assert "\r" not in stream.getvalue()


def test_a_line_of_text_has_80_columns_at_most() -> None:
    stream, now = StringIO(), SetClock()
    task = Progress(stream, now).task("label " * 30, 8)
    now.now_s = 2.0
    task.update(4, "字" * 60)  # two columns each
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("  label label")
    assert " 50% · 字" in line
    assert line.endswith("…")
    assert 78 <= len(line) + line.count("字") <= 80


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
    assert stream.getvalue().splitlines() == [
        "  revise: 0% · critic: 4 answers",
        "  revise: 50% · critic: 4 answers",
        "  revise: 50% · critic: 8 answers",
        "  revise: 100% · critic: 8 answers",
        "  stage: labeler: 2 answers",
    ]


def test_bars_give_way_to_lines_that_stay() -> None:
    stream = Terminal()
    progress = Progress(stream)
    with progress.task("outer", 2), progress.task("inner", 2, "models") as inner:
        inner.update(1)
        deadline_s = time.monotonic() + 60
        while "inner: 50%" not in stream.getvalue() and time.monotonic() < deadline_s:
            time.sleep(0.05)
        progress.say("a line that stays")
    progress.say("done")
    assert "a line that stays\n" in stream.getvalue()
    assert "outer: 0%" in stream.getvalue()
    assert "inner: 50%" in stream.getvalue()
    assert stream.getvalue().endswith("\x1b[2Kdone\n")  # the bar's line is empty by then


def test_a_second_thread_may_use_it() -> None:
    stream = Terminal()
    progress = Progress(stream)
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(20):
                for row in progress.track(range(20), 20, name):
                    progress.aside("stage", f"{row} calls")
                progress.say(f"{name} said")
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []
    assert stream.getvalue().count("first said\n") == 20
    assert stream.getvalue().count("second said\n") == 20
    assert stream.getvalue().count("\x1b[?25l") == stream.getvalue().count("\x1b[?25h")


@pytest.mark.parametrize("kind", [StringIO, Terminal])
def test_a_stream_that_is_closed_ends_no_work(kind: type[StringIO]) -> None:
    stream = kind()
    progress = Progress(stream, Clock(20.0))
    rows = []
    for row in progress.track(range(4), 4, "label"):
        rows.append(row)
        stream.close()
        progress.say("gone")
    assert rows == [0, 1, 2, 3]
    assert list(Progress(stream).track(range(3), 3, "label")) == [0, 1, 2]


def test_a_process_without_standard_error_works_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    Progress().say("gone")


def test_characters_that_a_stream_lacks_are_replaced(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        Progress(stream).say("礼貌, naïve")
    assert (tmp_path / "log").read_text("ascii") == "??, na?ve\n"


def test_importing_it_does_not_import_rich() -> None:
    code = "import sys, constitutional.base.progress, constitutional.base.text; print('rich' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


# --- On a pseudo-terminal

WORK = """
import sys, time
from constitutional.base.progress import Progress
progress = Progress()
def rows():
    for row in range(100):
        time.sleep(0.02)
        if row == 30:
            print("from elsewhere", file=sys.stderr)
            open("ready", "w").close()
        yield row
for row in progress.track(rows(), 100, "critique and revise"):
    if row > 30:
        INNER
"""


def _on_terminal(folder: Path, code: str, columns: int, *, interrupt: bool, **variables: str) -> tuple[int, str]:
    """The exit status, and what a process wrote to a terminal that is so wide; interrupted once it is ready."""
    reading, terminal = pty.openpty()
    size = (
        f"import fcntl, struct, termios; fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack('4H', 24, {columns}, 0, 0))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(Path.cwd()), **variables}
    process = subprocess.Popen(
        [sys.executable, "-c", size + code],
        cwd=folder,
        env=environment,
        stdin=terminal,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    )
    os.close(terminal)
    output, deadline_s = b"", time.monotonic() + 60
    while time.monotonic() < deadline_s:
        if interrupt and (folder / "ready").exists() and b"%" in output:
            process.send_signal(signal.SIGINT)
            interrupt = False
        if not select.select([reading], [], [], 0.1)[0]:
            continue
        try:
            output += os.read(reading, 65536)
        except OSError:  # how Linux says that nobody has the terminal open any more
            break
    os.close(reading)
    return process.wait(10), output.decode()


@pytest.mark.parametrize("inner", ["time.sleep(60)", "pass"])
def test_an_interrupt_ends_the_line_and_shows_the_cursor(tmp_path: Path, inner: str) -> None:
    status, output = _on_terminal(tmp_path, WORK.replace("INNER", inner), 80, interrupt=True)
    assert status == -signal.SIGINT
    assert "━" in output
    assert "\x1b[?25h" in output.rpartition("\x1b[?25l")[2]  # the cursor is hidden first, and shown at last
    assert "\n" in output.rpartition("critique and revise: ")[2]


def test_bars_are_taken_away_and_what_others_write_stays(tmp_path: Path) -> None:
    status, output = _on_terminal(tmp_path, WORK.replace("INNER", "pass"), 80, interrupt=False)
    assert status == 0
    assert "from elsewhere\r\n" in output
    assert output.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # up to the bar's line, which is made empty


def test_a_narrow_terminal_has_no_bar_and_no_line_wraps(tmp_path: Path) -> None:
    _, output = _on_terminal(tmp_path, WORK.replace("INNER", "pass"), 24, interrupt=False)
    assert "━" not in output
    # 12 columns of label, and 21 in all: two are free before, and one behind.
    assert re.search("  critique an…: [0-9]+%", output)
    assert max(len(line) for line in re.findall("critique[^\r]*", output)) <= 21


def test_lines_that_stay_are_wrapped_between_words_on_a_terminal(tmp_path: Path) -> None:
    code = """
from constitutional.base.progress import Progress
Progress().say("  brief: understood as: avoid verbosity (99%), /a/path/that/is/longer/than/the/terminal")
"""
    _, output = _on_terminal(tmp_path, code, 30, interrupt=False)
    assert output.splitlines() == [
        "  brief: understood as: avoid",
        "    verbosity (99%),",
        "    /a/path/that/is/longer/than/the/terminal",
    ]


def test_two_progresses_on_one_terminal_draw_together(tmp_path: Path) -> None:
    code = """
import time
from constitutional.base.progress import Progress
outer = Progress()
outer.aside("stage", "critic: 4 answers")
with Progress().task("inner", 2) as task:
    task.update(1)
    time.sleep(1)
    Progress().say("a line")
outer.say("end")
"""
    _, output = _on_terminal(tmp_path, code, 80, interrupt=False)
    assert re.search(r"stage: critic: 4 answers\S*\s*\r\n  \S+ inner: 50%", output)  # one below the other
    assert "a line\r\n" in output
    assert output.count("\x1b[?25l") == 1
    assert output.endswith("\x1b[2Kend\r\n")


def test_a_task_that_nobody_ends_ends_with_the_process(tmp_path: Path) -> None:
    code = """
import time
from constitutional.base.progress import Progress
task = Progress().task("label", 2)
task.update(1)
time.sleep(0.5)
raise SystemExit(3)
"""
    status, output = _on_terminal(tmp_path, code, 80, interrupt=False)
    assert status == 3
    assert re.search(r"label: 50%\S*\s*\r\n\S*\x1b\[\?25h$", output)


def test_a_process_that_is_forked_beside_a_bar_has_plain_standard_error(tmp_path: Path) -> None:
    code = """
import os, sys
from constitutional.base.progress import Progress
with Progress().task("label", 2):
    beside = sys.stderr
    child = os.fork()
    if not child:
        open("forked", "w").write(str(sys.stderr is not beside and sys.stderr is sys.__stderr__))
        os._exit(0)
    os.waitpid(child, 0)
"""
    assert _on_terminal(tmp_path, code, 80, interrupt=False)[0] == 0
    assert (tmp_path / "forked").read_text() == "True"


def test_no_color_is_heeded(tmp_path: Path) -> None:
    _, output = _on_terminal(tmp_path, WORK.replace("INNER", "pass"), 80, interrupt=False, NO_COLOR="1")
    assert "━" in output
    assert "\x1b[3" not in output


def test_things_are_counted_in_words() -> None:
    told = [counted(1, "error"), counted(1022, "error"), counted(1, "process"), counted(2, "process")]
    assert told == ["1 error", "1,022 errors", "1 process", "2 processes"]
