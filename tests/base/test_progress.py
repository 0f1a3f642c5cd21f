from collections.abc import Iterator
from io import StringIO

import pytest

from constitutional.base.progress import Progress, clock, described, percent


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


def test_a_line_says_how_many_how_fast_and_how_long_the_rest_takes() -> None:
    # 120 in 10 s are 12 a second; the other 480 take 40 s.
    assert described("label", 120, 600, 10.0) == "  label: 120 of 600 (20%), 12.0/s, 0:40 left"
    assert described("label", 0, 600, 0.0) == "  label: 0 of 600 (0%)"
    # 3 in 20 s are 9 a minute; the other 6 take 40 s.
    assert described("label", 3, 9, 20.0) == "  label: 3 of 9 (33%), 9.0/min, 0:40 left"


@pytest.mark.parametrize(("done", "seconds"), [(1, 1311.0), (2, 60.0), (400, 4.9)])
def test_nothing_is_foretold_from_next_to_nothing(done: int, seconds: float) -> None:
    assert "left" not in described("label", done, 438, seconds)
    assert "left" in described("label", 3, 438, 5.0)


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
    stream = StringIO()
    # The clock is asked twice an item, so an item takes 4 s: the first line comes at once, then one every third item.
    assert list(Progress(stream, Clock(2.0)).track(range(9), 9, "label")) == list(range(9))
    lines = stream.getvalue().splitlines()
    assert [line.split(" (")[0] for line in lines] == ["  label: 1 of 9", "  label: 4 of 9", "  label: 7 of 9"]
    assert "\r" not in stream.getvalue()


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
    assert first == "  revise: 0 of 2 (0%); critic: 4 answers"
    assert half.startswith("  revise: 1 of 2 (50%)")
    assert aside == "  revise: 1 of 2 (50%); critic: 8 answers"  # no estimate from a single item
    assert whole.startswith("  revise: 2 of 2 (100%)")
    assert after == "  stage: labeler: 2 answers"


def test_on_a_terminal_one_line_is_rewritten_and_gives_way_to_those_that_stay() -> None:
    stream = Terminal()
    progress = Progress(stream, Clock(1.0))
    list(progress.track("ab", 2, "label"))
    progress.say("label: done")
    shown = stream.getvalue()
    assert shown.count("\n") == 1
    assert shown.startswith("\r\x1b[K  label: 1 of 2 (50%)")
    assert shown.endswith("\r\x1b[Klabel: done\n")
