"""Runs what happens to many items at once, where each item's story is written as if it were alone.

A story is a coroutine: it asks engines (`ask`, `ask_all`), or has parts of itself run beside each other (`together`),
and returns what became of its item. The stories decide what is asked; this module decides when. Whenever no story can
go on, the engines get to work on all that is waiting, and the stories whose answers are there go on at once.

What is waiting at that point depends on the requests that were answered so far and on nothing else: not on the time,
nor on whether an answer was computed or found in the journal. So an engine whose batches depend on what is waiting
alone, as those of the local engine do, computes the same batches after a kill as without one.
"""

from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from contextlib import ExitStack
from typing import Any, Final, TypeVar

from constitutional.engines.base import Completion, Engine, Request, Session, Ticket

T = TypeVar("T")
Story = Coroutine[Any, Any, T]

AT_ONCE: Final = 512
"""Stories that have begun and whose results are not handed on yet: enough that an engine finds requests of about one
length for its batches, and few enough to hold their texts in memory."""
POLL_S: Final = 0.02
"""How long to wait for one engine's answers while other engines' are outstanding."""


class _Ask:
    """Requests to one engine, all of whose answers are awaited."""

    def __init__(self, engine: Engine, requests: Sequence[Request]) -> None:
        self.engine = engine
        self.requests = requests

    def __await__(self) -> Generator["_Ask", list[Any], list[Completion]]:
        return (yield self)


class _Together:
    """Stories that run beside each other, all of whose results are awaited."""

    def __init__(self, stories: Sequence[Story[Any]]) -> None:
        self.stories = stories

    def __await__(self) -> Generator["_Together", list[Any], list[Any]]:
        return (yield self)


async def ask(engine: Engine, request: Request) -> Completion:
    """The answer to one request."""
    return (await _Ask(engine, (request,)))[0]


async def ask_all(engine: Engine, requests: Iterable[Request]) -> list[Completion]:
    """The answers to several requests, in order."""
    return await _Ask(engine, tuple(requests))


async def together(stories: Iterable[Story[T]]) -> list[T]:
    """The results of several stories, in order, which run beside each other."""
    return await _Together(tuple(stories))


def side_by_side(
    stories: Iterable[Story[T]], at_once: int = AT_ONCE, ended: Callable[[int], None] | None = None
) -> Generator[T, None, None]:
    """The results of all stories, in order.

    Args:
        stories: what happens to each item.
        at_once: how many run at the same time; an engine with room for more requests than that gets as many.
        ended: told how many stories have ended, which is known before their results are in order.

    Raises:
        ConstitutionalError: an engine cannot go on.
        Exception: whatever a story raises; the other stories end.
    """
    iterator = enumerate(stories)
    running = _Running()
    handed_on, begun, more = 0, 0, True
    try:
        while True:
            while more and begun - handed_on < max(at_once, running.room):
                more = (numbered := next(iterator, None)) is not None
                if numbered:
                    running.begin(_Task(numbered[1], (numbered[0],)))
                    begun += 1
            while handed_on in running.results:
                handed_on += 1
                yield running.results.pop(handed_on - 1)
            if handed_on == begun and not more:
                return
            if begun - handed_on >= max(at_once, running.room) or not more:
                running.wait()
            if ended:
                ended(handed_on + len(running.results))
    finally:
        running.close()


class _Task:
    """A story that has begun, or a part of one that runs beside others."""

    __slots__ = ("missing", "parent", "place", "story", "turn", "values")

    def __init__(self, story: Story[Any], place: Ticket, parent: "_Task | None" = None) -> None:
        self.story = story
        self.place = place
        """Where it stands among the stories and their parts: it is the same in whatever order answers come."""
        self.parent = parent
        self.turn = 0
        self.values: list[Any] = []
        self.missing = 0
        """How many of the values that it awaits are not there yet."""


class _Running:
    """The stories that have begun, and the sessions with the engines that they ask."""

    def __init__(self) -> None:
        self.results: dict[int, Any] = {}
        """By story, what became of those that have ended."""
        self.room = 0
        """The most that an engine, of those asked so far, has room for."""
        self._ready: deque[_Task] = deque()
        self._waiting: dict[int, dict[Ticket, tuple[_Task, int]]] = {}
        """By engine, whose values the answers will be, and which of them."""
        self._sessions: dict[int, tuple[Engine, Session]] = {}
        self._tasks: dict[Ticket, _Task] = {}

    def begin(self, task: _Task) -> None:
        self._tasks[task.place] = task
        self._ready.append(task)
        self._go_on()

    def wait(self) -> None:
        """Let an engine work until some story can go on, and let these stories go on."""
        # The engine with the most to do first, as its batches are full.
        order = sorted((number for number, waiting in self._waiting.items() if waiting), key=self._rank)
        assert order, "a story waits for nothing that was asked"
        # What is there already comes before any work, whichever engine it is from: it may add to what is waiting.
        arrived = [self._collect(number, 0.0) for number in order]
        while not any(arrived):
            for number in order:
                if self._collect(number, POLL_S if len(order) > 1 else None):
                    arrived = [True]
                    break
        self._go_on()

    def _collect(self, engine: int, timeout_s: float | None) -> bool:
        answers = self._sessions[engine][1].collect(timeout_s)
        for ticket, completion in answers:
            self._give(*self._waiting[engine].pop(ticket), completion)
        return bool(answers)

    def _rank(self, engine: int) -> tuple[int, Ticket]:
        waiting = self._waiting[engine]
        return -len(waiting), min(waiting)

    def _go_on(self) -> None:
        """Let every story that can go on do so, as far as it comes."""
        while self._ready:
            task = self._ready.popleft()
            try:
                awaited = task.story.send(task.values if task.turn else None)
            except StopIteration as end:
                del self._tasks[task.place]
                if task.parent is None:
                    self.results[task.place[0]] = end.value
                else:
                    self._give(task.parent, task.place[-1], end.value)
                continue
            task.turn += 1
            if isinstance(awaited, _Ask):
                self._expect(task, len(awaited.requests))
                self._submit(task, awaited)
            elif isinstance(awaited, _Together):
                self._expect(task, len(awaited.stories))
                for number, story in enumerate(awaited.stories):
                    part = _Task(story, (*task.place, task.turn, number), task)
                    self._tasks[part.place] = part
                    self._ready.append(part)
            else:
                raise TypeError(f"a story awaited {awaited!r:.80}; it can await ask(), ask_all() and together() alone")

    def _expect(self, task: _Task, count: int) -> None:
        task.values = [None] * count
        task.missing = count
        if not count:
            self._ready.append(task)

    def _submit(self, task: _Task, asked: _Ask) -> None:
        number = id(asked.engine)
        if number not in self._sessions:
            self._sessions[number] = (asked.engine, asked.engine.session())
            self._waiting[number] = {}
            self.room = max(self.room, asked.engine.room)
        session, waiting = self._sessions[number][1], self._waiting[number]
        for index, request in enumerate(asked.requests):
            ticket = (*task.place, task.turn, index)
            waiting[ticket] = (task, index)
            session.submit(ticket, request)

    def _give(self, task: _Task, index: int, value: object) -> None:
        task.values[index] = value
        task.missing -= 1
        if not task.missing:
            self._ready.append(task)

    def close(self) -> None:
        with ExitStack() as ending:  # in which all are closed, whatever becomes of one of them
            for task in list(self._tasks.values()):
                ending.callback(task.story.close)
            for _, session in self._sessions.values():
                ending.callback(session.close)
