"""How far work is, on standard error: bars on a terminal, and a line of text now and then elsewhere."""

import atexit
import math
import os
import sys
import textwrap
import threading
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from types import TracebackType
from typing import IO, TYPE_CHECKING, Final, Self, TypeVar

from constitutional.base.text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

T = TypeVar("T")

LOG_EVERY_S: Final = 10.0
"""Time between two lines, where there is no terminal."""
FIRST_AFTER_S: Final = 2.0
"""Time until the first line of some work is due, so that the reader sees that the work has begun."""
LOG_WIDTH: Final = 80
"""Columns of a line, where there is no terminal."""
BAR_WIDTH: Final = 12
NARROWEST_WITH_BAR: Final = 40
"""Columns of a bar, and of the narrowest terminal that has bars."""
REDRAWN_PER_S: Final = 5
ENOUGH_ROWS: Final = 3
ENOUGH_S: Final = 5.0
"""How many rows, and how much time, it takes to tell a speed."""
SLOW_PER_S: Final = 0.1
"""A speed in rows below this one is left out where a note tells more."""


class Progress:
    """Shows how far work is. Any thread may use it; work within other work has a bar of its own, below the other's.

    A stream that is closed or cannot be written to does not end the work: then nothing is shown.
    """

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = _Stream(stream or sys.stderr)
        self._clock = clock
        self._due_s = clock() + FIRST_AFTER_S
        self._lock = threading.RLock()
        self._tasks: list[Task] = []
        self._aside: Task | None = None
        self._terminal: _Terminal | None = None
        if self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
            self._terminal = _terminal(self._stream.plain)

    def say(self, text: str) -> None:
        """A line that stays, above the bars; on a terminal it is wrapped between words."""
        with self._lock:
            self._end_aside()
            if self._terminal is None:
                self._stream.write(f"{printable(text)}\n")
                self._stream.flush()
            else:
                self._terminal.say(printable(text))

    def task(self, label: str, total: int, unit: str = "rows") -> "Task":
        """Work that the caller updates and ends; the task is also a context manager, which ends it.

        Args:
            label: names the work.
            total: rows that there are to do; 0 means that nobody knows.
            unit: what the rows are, in the plural.
        """
        with self._lock:
            self._end_aside()
            return self._begin(label, total, unit)

    def track(self, items: Iterable[T], total: int, label: str, unit: str = "rows") -> Iterator[T]:
        """The items, while a task shows how many of `total` there have been."""
        with self.task(label, total, unit) as task:
            for done, item in enumerate(items, start=1):
                yield item
                task.update(done)

    def aside(self, heading: str, text: str) -> None:
        """Note `text` in the task that began last; without a task, show it behind `heading` until the next line.

        For work of which only a part is known, such as one of the calls that an item takes.
        """
        with self._lock:
            if not self._tasks:
                self._aside = self._begin(heading, 0, "rows")
            task = self._tasks[-1]
            task.update(task.done, text)

    def _begin(self, label: str, total: int, unit: str) -> "Task":
        task = Task(label, total, unit, self._clock, self._updated, self._ended)
        self._due_s = min(self._due_s, self._clock() + FIRST_AFTER_S)
        self._tasks.append(task)
        if self._terminal is not None:
            self._terminal.begin(task)
        return task

    def _end_aside(self) -> None:
        if self._aside is not None:
            self._aside.end()
            self._aside = None

    def _updated(self, task: "Task") -> None:
        with self._lock:
            task.mark()
            if self._terminal is None and (now_s := self._clock()) >= self._due_s:
                self._due_s = now_s + LOG_EVERY_S
                self._stream.write(_clipped(f"  {task.line(LOG_WIDTH)}", LOG_WIDTH) + "\n")
                self._stream.flush()

    def _ended(self, task: "Task", stopped: bool) -> None:
        with self._lock:
            if task in self._tasks:  # a task may be ended twice
                self._tasks.remove(task)
                if self._terminal is not None:
                    self._terminal.end(task, stopped=stopped)


@dataclass(eq=False)
class Task:
    """Work of which a part is done. `Progress.task` makes it."""

    label: str
    total: int
    """0 means that nobody knows."""
    unit: str
    _clock: Callable[[], float]
    _updated: Callable[["Task"], None]
    _ended: Callable[["Task", bool], None]
    done: int = 0
    _note: str = ""

    def __post_init__(self) -> None:
        self._started_s = self._clock()
        self._marks = deque([(self._started_s, 0)])

    def update(self, done: int, note: str = "") -> None:
        """Show that so many rows are done in all.

        Args:
            done: rows done since the task began.
            note: tells more, such as `412 calls`; an empty one leaves the last note.
        """
        self.done = done
        self._note = note or self._note
        self._updated(self)

    def end(self) -> None:
        """Take the task's bar away."""
        self._ended(self, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the task; the bar of work that an error or an interrupt stopped stays to be read."""
        self._ended(self, kind not in (None, GeneratorExit))

    def mark(self) -> None:
        """Note how much is done by now. Marks of the first half of the time so far are dropped, but for the last."""
        now_s = self._clock()
        self._marks.append((now_s, self.done))
        while len(self._marks) > 1 and self._marks[1][0] <= (self._started_s + now_s) / 2:
            self._marks.popleft()

    def line(self, width: int) -> str:
        """The description of now; the label takes half of so many columns at most, to leave room for numbers."""
        # Of the latter half of the time: rows that a journal gave back at once say nothing of those that are to come.
        since_s, before = self._marks[0]
        now_s = self._clock()
        rows, seconds = self.done - before, now_s - since_s
        known = rows >= ENOUGH_ROWS and now_s - self._started_s >= ENOUGH_S
        rate = rows / seconds if known else None
        label = _clipped(_one_line(self.label), width // 2)
        return described(label, self.done, self.total, rate, self.unit, self._note)


def described(label: str, done: int, total: int, rate: float | None = None, unit: str = "rows", note: str = "") -> str:
    """`label: 37% · 1.9 rows/s · 2:10 left · 412 calls`: the share, the speed, the time that is left, and a note.

    Args:
        label: names the work.
        done: rows done.
        total: rows that there are to do; 0 means that nobody knows, and the rows are counted in place of a share.
        rate: rows a second; None where too little is done to tell.
        unit: what the rows are, in the plural.
        note: what else there is to say.
    """
    parts = []
    if total:
        parts.append("100%" if done >= total else f"{100 * done // total}%")
    elif done:
        parts.append(f"{done:,} {unit}")
    if rate is not None:
        if rate >= SLOW_PER_S or not note:
            parts.append(speed(rate, unit))
        if done < total:
            parts.append(f"{clock((total - done) / rate)} left")
    parts += [note] if note else []
    return _one_line(f"{label}{': ' if parts else ''}{' · '.join(parts)}")


def speed(rate: float, unit: str) -> str:
    """`1.9 rows/s` of so many a second; slower ones a minute, or an hour."""
    seconds, name = (1, "s") if rate >= 1 else (60, "min") if rate >= 1 / 60 else (3600, "h")
    number = rate * seconds
    return f"{number:,.0f} {unit}/{name}" if number >= 100 else f"{number:.1f} {unit}/{name}"


class _Terminal:
    """Draws the bars of all tasks on one terminal, whichever `Progress` they belong to."""

    def __init__(self, stream: "_Stream") -> None:
        from rich.console import Console

        self._stream = stream
        # rich writes and flushes, and no more
        self._console = Console(file=stream, force_terminal=True, force_jupyter=False, highlight=False)  # type: ignore[arg-type]
        self._lock = threading.RLock()
        self._tasks: list[Task] = []
        self._live: Live | None = None

    def say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(_wrapped(text, self._console.width)), soft_wrap=True)

    def begin(self, task: Task) -> None:
        with self._lock:
            self._tasks.append(task)
            if self._live is None:
                self._live = self._bars()
                self._live.start()
                # If nobody ended a task before the process ends, the cursor would stay hidden.
                atexit.register(self._stop)

    def end(self, task: Task, *, stopped: bool) -> None:
        with self._lock:
            if self._tasks == [task]:
                self._stop(stopped=stopped)
            self._tasks.remove(task)

    def _stop(self, *, stopped: bool = True) -> None:
        """Take the bars away; where the work stopped before its end, leave them as they are."""
        with self._lock:
            if self._live is not None:
                self._live.transient = not stopped
                self._live.stop()
                self._live = None
                atexit.unregister(self._stop)

    def _bars(self) -> "Live":
        from rich.console import Group
        from rich.live import Live

        _restore_in_forks()
        return Live(
            console=self._console,
            refresh_per_second=REDRAWN_PER_S,
            transient=True,
            # What others write to standard error stands above the bars. Standard output may be a file: it stays.
            redirect_stderr=self._stream.plain is sys.stderr,
            redirect_stdout=False,
            # Takes no lock of ours, since the thread that draws holds the terminal's.
            get_renderable=lambda: Group(*(_bar(task, self._console.width) for task in tuple(self._tasks))),
        )


@cache
def _terminal(stream: IO[str] | None) -> _Terminal:
    """The one terminal of that stream."""
    return _Terminal(_Stream(stream))


def _bar(task: Task, width: int) -> "RenderableType":
    """A line with a bar before it, where there is room."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    line = task.line(width)
    room = width - 3  # two spaces before; the last column stays free, since some terminals wrap at it
    grid = Table.grid(padding=(0, 1, 0, 0))
    if width < NARROWEST_WITH_BAR or _columns(line) > room - BAR_WIDTH - 1:
        grid.add_row(" ", Text(_clipped(line, room), no_wrap=True))
    else:
        bar = ProgressBar(total=task.total or None, completed=task.done, width=BAR_WIDTH)
        grid.add_row(" ", bar, Text(line, no_wrap=True))
    return grid


def _wrapped(text: str, width: int) -> str:
    """The lines of a text, wrapped between words, so that long paths stay whole; further lines are indented more."""
    lines = []
    for line in text.split("\n"):
        deeper = " " * (len(line) - len(line.lstrip()) + 2)
        lines += textwrap.wrap(
            line, width, subsequent_indent=deeper, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _columns(text: str) -> int:
    """Columns of a terminal that a text takes at most."""
    return sum(map(_width, text))


def _width(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _clipped(text: str, width: int) -> str:
    """The text, or as much of it as fits that many columns, with `…` behind it."""
    if _columns(text) <= width:
        return text
    fits = sum(end < width for end in accumulate(map(_width, text)))
    return f"{text[:fits]}…"


class _Stream:
    """A stream that may be closed, be missing, or lack characters; whoever writes to it does not learn of it."""

    def __init__(self, stream: IO[str] | None) -> None:
        # While bars are shown, standard error is rich's, which puts the lines that it gets above them.
        self.plain: IO[str] | None = getattr(stream, "rich_proxied_file", stream)
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return self.plain is not None and self.plain.isatty()
        except ValueError:  # closed
            return False

    def write(self, text: str) -> None:
        if self.plain is not None:
            with suppress(OSError, ValueError):
                self.plain.write(text.encode(self.encoding, "replace").decode(self.encoding))

    def flush(self) -> None:
        if self.plain is not None:
            with suppress(OSError, ValueError):
                self.plain.flush()


@cache
def _restore_in_forks() -> None:
    """In processes forked while bars are shown, standard error is the plain one again: no thread draws there."""

    def restore() -> None:
        sys.stderr = getattr(sys.stderr, "rich_proxied_file", sys.stderr)

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=restore)


def clock(seconds: float) -> str:
    """Minutes and seconds, `3:07`, or with hours, `1:03:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, what: str) -> str:
    """`1 error`, `1,022 errors`, `2 processes`."""
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith('s') else 's'}"


def enumerated(names: Iterable[str], most: int = 10) -> str:
    """`a, b and 12 more`: the first names, and how many others there are."""
    listed = list(names)
    shown, more = listed[:most], len(listed) - most
    return f"{', '.join(shown)} and {more:,} more" if more > 0 else ", ".join(shown)


def percent(probability: float) -> str:
    """`57%`, rounded down, so that 100% is certain and what is pointed out as less than 80% never reads as that."""
    # The small number makes up for products such as 0.57 * 100 = 56.99999999999999.
    return f"{math.floor(probability * 100 + 1e-9)}%"
