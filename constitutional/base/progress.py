"""How far a run is, on standard error: one line that is rewritten on a terminal, a line now and then elsewhere."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Final, NamedTuple, TypeVar

T = TypeVar("T")

TERMINAL_EVERY_S: Final = 0.2
LOG_EVERY_S: Final = 15.0
"""How often a line is shown: where it is rewritten, and where it stays."""


class Progress:
    """Says how far things are. Lines of nested work share one place, and the one that moved last is seen."""

    def __init__(self, stream: IO[str] | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream or sys.stderr
        self._clock = clock
        self._rewrites = self._stream.isatty()
        self._shown_s = clock()
        self._open = False
        self._tracked: _Tracked | None = None

    def say(self, text: str) -> None:
        """A line that stays."""
        self._close()
        print(text, file=self._stream, flush=True)

    def track(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:
        """The items, while it is said how many of `total` there have been, how fast, and how long the rest takes."""
        started_s = self._clock()
        self._tracked = _Tracked(label, 0, total, started_s)
        try:
            for done, item in enumerate(items, start=1):
                yield item
                self._tracked = _Tracked(label, done, total, started_s)
                self._show(described(label, done, total, self._clock() - started_s))
        finally:
            self._tracked = None

    def aside(self, heading: str, text: str) -> None:
        """Say `text` behind how far what is tracked is, or where nothing is tracked behind `heading`.

        For work of which only a part is known, such as one of the calls that an item takes.
        """
        if self._tracked is None:
            self._show(f"  {heading}: {text}")
        else:
            label, done, total, started_s = self._tracked
            self._show(f"{described(label, done, total, self._clock() - started_s)}; {text}")

    def _show(self, text: str) -> None:
        """Show a line, unless the last one was shown a moment ago."""
        now_s = self._clock()
        if now_s - self._shown_s < (TERMINAL_EVERY_S if self._rewrites else LOG_EVERY_S):
            return
        self._shown_s = now_s
        if self._rewrites:
            self._stream.write(f"\r\x1b[K{text}")
            self._stream.flush()
            self._open = True
        else:
            self.say(text)

    def _close(self) -> None:
        if self._open:
            self._stream.write("\r\x1b[K")
            self._open = False


class _Tracked(NamedTuple):
    label: str
    done: int
    total: int
    started_s: float


def described(label: str, done: int, total: int, seconds: float) -> str:
    """`  label: 120 of 600 (20%), 12.0/s, 0:40 left`."""
    share = f"{100 * done // total}%" if total else "–"
    text = f"  {label}: {done} of {total} ({share})"
    if done and seconds > 0:
        rate = done / seconds
        text += f", {rate:.1f}/s, {clock(max(0, total - done) / rate)} left"
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
