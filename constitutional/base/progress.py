"""How far a run is, on standard error: one line that is rewritten on a terminal, a line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final, TypeVar

from constitutional.base.text import printable

T = TypeVar("T")

TERMINAL_EVERY_S: Final = 0.2
LOG_EVERY_S: Final = 10.0
"""How often a line is shown: where it is rewritten, and where it stays."""
FIRST_AFTER_S: Final = 2.0
"""When the first line of some work is shown at the latest, so that one sees that it has begun."""
ENOUGH_ITEMS: Final = 3
ENOUGH_S: Final = 5.0
"""From how many items, and from when, what they took says how long the rest takes."""


class Progress:
    """Says how far things are. Lines of nested work share one place, and the one that moved last is seen."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._rewrites = self._stream.isatty()
        self._due_s = clock() + FIRST_AFTER_S
        self._open = False
        self._tracked: Callable[[], str] | None = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self._close()
        print(printable(text), file=self._stream, flush=True)

    def track(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        """The items, while it is said how many of `total` there have been, how fast, and how long the rest takes."""
        started_s, done = self._clock(), 0

        def line() -> str:
            return described(label, done, total, self._clock() - started_s)

        self._tracked = line
        self._due_s = min(self._due_s, started_s + FIRST_AFTER_S)
        try:
            for item in items:
                yield item
                done += 1
                self._tracked = line
                self._show(line())
        finally:
            self._tracked = None

    def aside(self, heading: str, text: str) -> None:
        """Say `text` behind how far the tracked work is, or behind `heading` where nothing is tracked.

        For work of which only a part is known, such as one of the calls that an item takes.
        """
        self._show(f"{self._tracked()}; {text}" if self._tracked else f"  {heading}: {text}")

    def _show(self, text: str) -> None:
        """Show a line, unless the last one was shown a moment ago."""
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + (TERMINAL_EVERY_S if self._rewrites else LOG_EVERY_S)
        if self._rewrites:
            self._stream.write(f"\r\x1b[K{printable(text)}")
            self._stream.flush()
            self._open = True
        else:
            self.say(text)

    def _close(self) -> None:
        if self._open:
            self._stream.write("\r\x1b[K")
            self._open = False


def described(label: str, done: int, total: int, seconds: float) -> str:
    """`  label: 120 of 600 (20%), 12.0/s, 0:40 left`; without speed and time left where too little is done to tell."""
    share = f"{100 * done // total}%" if total else "–"
    text = f"  {label}: {done} of {total} ({share})"
    if done >= ENOUGH_ITEMS and seconds >= ENOUGH_S:
        rate = done / seconds
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        text += f", {speed}, {clock(max(0, total - done) / rate)} left"
    return text


def clock(seconds: float) -> str:
    """Minutes and seconds, `3:07`, or with hours, `1:03:07`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def counted(number: int, what: str) -> str:
    """`1 error`, `1,022 errors`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def percent(probability: float) -> str:
    """`57%`, rounded down, so that 100% is certain and what is pointed out as less than 80% never reads as that."""
    # The small number makes up for products such as 0.57 * 100 = 56.99999999999999.
    return f"{math.floor(probability * 100 + 1e-9)}%"
