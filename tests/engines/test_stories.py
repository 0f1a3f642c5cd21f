import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.engines.base import Completion, Request, Ticket
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.scripted import ScriptedEngine, ScriptedSession
from constitutional.engines.stories import Story, ask, ask_all, side_by_side, together


def request(text: str) -> Request:
    return Request((Message("user", text),))


class Batches(ScriptedEngine):
    """Answers so many at once, and keeps which; it can be told to break off."""

    def __init__(self, size: int, name: str = "batches", break_after: int = -1) -> None:
        super().__init__(lambda request: f"{request.messages[-1].content}.", name)
        self.size = size
        self.batches: list[list[str]] = []
        self.break_after = break_after

    def session(self) -> "BatchSession":
        return BatchSession(self)


class BatchSession(ScriptedSession):
    """Its batches depend on what is waiting alone, as those of the local engine."""

    _engine: Batches

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        if timeout_s == 0 or not self._waiting:
            return []
        if self._engine.break_after == len(self._engine.batches):
            raise KeyboardInterrupt
        batch = sorted(self._waiting, key=lambda ticket: (len(self._waiting[ticket].messages[-1].content), ticket))
        asked = [(ticket, self._waiting.pop(ticket)) for ticket in batch[: self._engine.size]]
        self._engine.batches.append([own.messages[-1].content for _, own in asked])
        return [(ticket, self._engine.answer(own)) for ticket, own in asked]


async def story(engine: ScriptedEngine, number: int) -> str:
    """A draft; then, of every other item, three questions at once; then as many turns as the number's last digit."""
    text = (await ask(engine, request(f"draft {number}"))).text
    if number % 2:
        parts = await together(part(engine, f"{text} part {index}") for index in range(3))
        text = "".join(parts)
    for turn in range(number % 10):
        (reply,) = await ask_all(engine, [request(f"{turn} {text[-20:]}")])
        text = reply.text
    return f"{number}: {text}"


async def part(engine: ScriptedEngine, text: str) -> str:
    first, second = await ask_all(engine, [request(f"{text} a"), request(f"{text} b")])
    return (await ask(engine, request(f"{first.text}{second.text}"))).text


def alone(number: int) -> str:
    (result,) = side_by_side([story(Batches(1), number)])
    return result


def test_results_are_in_order_and_as_if_every_story_were_alone() -> None:
    engine = Batches(7)
    assert list(side_by_side((story(engine, number) for number in range(40)), at_once=16)) == list(
        map(alone, range(40))
    )
    assert max(map(len, engine.batches)) == 7


def test_no_round_waits_for_the_slowest_item() -> None:
    """While item 9 is at its ninth turn, later items are long past their drafts."""
    engine = Batches(4)
    list(side_by_side(story(engine, number) for number in range(40)))
    turns = [{text.split()[0] for text in batch} for batch in engine.batches]
    assert any({"draft", "3"} <= own | other for own, other in pairwise(turns))


def test_so_many_are_begun_and_no_more_before_their_results_are_taken() -> None:
    begun: list[int] = []

    def stories() -> Iterator[Story[str]]:
        for number in range(100):
            begun.append(number)
            yield story(engine, number)

    engine = Batches(3)
    results = side_by_side(stories(), at_once=10)
    next(results)
    assert len(begun) <= 10
    results.close()  # a generator


@pytest.mark.parametrize("seed", range(8))
def test_batches_after_a_kill_are_those_of_a_run_that_was_never_killed(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    numbers = [rng.randrange(1000) for _ in range(30)]
    sizes = rng.randint(1, 9), rng.randint(1, 9)

    def engines(break_after: int = -1) -> tuple[Batches, Batches]:
        return Batches(sizes[0], "one", break_after), Batches(sizes[1], "two")

    async def both(one: JournalEngine, two: JournalEngine, number: int) -> str:
        return "; ".join(await together([story(one, number), story(two, number + 1)]))  # type: ignore[arg-type]

    def go(path: Path, pair: tuple[Batches, Batches]) -> list[str]:
        with Journal(path) as journal:
            one, two = (JournalEngine(engine, journal) for engine in pair)
            return list(side_by_side((both(one, two, number) for number in numbers), at_once=8))

    whole = engines()
    results = go(tmp_path / "whole.sqlite", whole)
    before: list[list[list[str]]] = [[], []]
    for break_after in (rng.randint(1, 6), rng.randint(1, 6), -1):
        pair = engines(break_after)
        try:
            assert go(tmp_path / "killed.sqlite", pair) == results
        except KeyboardInterrupt:
            assert break_after >= 0
        before = [batches + engine.batches for batches, engine in zip(before, pair, strict=True)]
    assert before == [engine.batches for engine in whole]


def test_an_engine_that_fails_ends_the_stories_and_one_request_that_fails_does_not() -> None:
    def rule(own: Request) -> Completion | str:
        text = own.messages[-1].content
        if text == "draft 3":
            return Completion("", "error", reason="no")
        if text == "draft 7":
            raise ModelError("gone")
        return text

    async def draft(number: int) -> Completion:
        return await ask(engine, request(f"draft {number}"))

    engine = ScriptedEngine(rule)
    assert [reply.finish for reply in side_by_side(map(draft, range(5)))] == ["stop", "stop", "stop", "error", "stop"]
    with pytest.raises(ModelError, match="gone"):
        list(side_by_side(map(draft, range(9))))


def test_a_story_s_own_exception_travels_and_ends_the_others() -> None:
    ended: list[int] = []

    async def failing(number: int) -> None:
        try:
            await ask(engine, request(str(number)))
            if number == 2:
                raise ZeroDivisionError
            await ask(engine, request(f"again {number}"))
        finally:
            ended.append(number)

    engine = ScriptedEngine(lambda _: "yes")
    with pytest.raises(ZeroDivisionError):
        list(side_by_side(map(failing, range(4))))
    assert sorted(ended) == [0, 1, 2, 3]


def test_nothing_asked_is_a_story_too() -> None:
    async def silent(number: int) -> int:
        assert await ask_all(engine, []) == []
        assert await together([]) == []
        return number

    engine = ScriptedEngine(lambda _: "yes")
    assert list(side_by_side(map(silent, range(3)))) == [0, 1, 2]
    assert list(side_by_side([])) == []


@pytest.mark.parametrize(("room", "first"), [(0, 4), (3, 4), (9, 9)])
def test_an_engine_with_room_for_more_requests_gets_more_stories_at_once(room: int, first: int) -> None:
    engine = Batches(100)
    engine.room = room
    list(side_by_side((ask(engine, request(f"{number}")) for number in range(20)), at_once=4))
    assert len(engine.batches[0]) == first
