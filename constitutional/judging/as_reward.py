"""The labeler as a reward: it scores a reply by one principle (direct RLAIF, Lee et al. 2023, section 2.2.2)."""

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, suppress
from itertools import product
from queue import SimpleQueue
from typing import Final

from constitutional.base.records import Message
from constitutional.base.threads import in_thread
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.stories import side_by_side
from constitutional.judging.labeler import Labeler
from constitutional.judging.priorities import yielding
from constitutional.training.rewards import PrinciplesSettings, Reward, Turns, conversation_with

STOP_S: Final = 10.0
"""How long a training that ends early waits for the labeler's next answer."""
Conversation = tuple[Message, ...]
Scores = tuple[float | None, ...]
"""Of one conversation, by each principle."""


def by_principle(
    labeler: Labeler, constitution: Constitution, settings: PrinciplesSettings, *, several: bool
) -> list[Reward]:
    """For each principle, the labeler's expected score of a reply, Σ i·P(i) over 1 to 10, brought to [−1, 1].

    Together they are a mean over the principles by weight. Where `several` replies to a prompt are drawn to be held
    against each other, the scores by a principle give way to those that override it (`priorities.yielding`). None where
    the labeler cannot be read. A labeler whose engine gives no log-probabilities writes its score instead.
    """
    principles = constitution.principles
    whole = settings.weight / sum(principle.weight for principle in principles)
    judge = _Judge(labeler, principles, constitution.overridden_by if several else {})
    return [
        Reward(f"constitution/{principle.id}", whole * principle.weight, PrincipleReward(judge, index))
        for index, principle in enumerate(principles)
    ]


class PrincipleReward:
    """The reward by one of the principles."""

    def __init__(self, judge: "_Judge", index: int) -> None:
        self._judge = judge
        self._index = index

    def prepare(self, prompts: Sequence[Turns], completions: Sequence[Turns]) -> None:
        """Begin to ask about replies, while a trainer draws others; what the call returns is the same without it."""
        self._judge.prepare(list(map(conversation_with, prompts, completions)))

    def stop(self) -> None:
        """Begin no more, as the training ends early; what the labeler has answered is kept."""
        self._judge.stop()

    def __call__(self, prompts: Sequence[Turns], completions: Sequence[Turns], **_: object) -> list[float | None]:
        """A number for each reply, from −1 to 1; None where the labeler's answer cannot be read.

        Raises:
            ConstitutionalError: the labeler's engine cannot go on.
        """
        scores = self._judge.rewards(list(map(conversation_with, prompts, completions)), self._index)
        return [None if score is None else scaled(score) for score in scores]


class _Judge:
    """The scores of a batch of replies by all principles, which are asked for beside each other.

    Trainers call one reward function after the other, and a labeler elsewhere would be waited for as often.
    """

    def __init__(self, labeler: Labeler, principles: Sequence[Principle], above: Mapping[str, Sequence[str]]) -> None:
        self._labeler = labeler
        self._principles = principles
        self._above = above
        self._known: dict[Conversation, Scores] = {}
        """Of the replies that were asked about last."""
        self._begun: set[Conversation] = set()
        """Replies that the thread asks about."""
        self._drawn: SimpleQueue[list[Conversation] | None] = SimpleQueue()
        """What the thread has still to look at; None ends it."""
        self._asking: Future[dict[Conversation, Scores]] | None = None
        self._stopped = threading.Event()
        self._batch: Sequence[Conversation] = ()
        """The replies that scores were asked for last."""

    def prepare(self, conversations: Sequence[Conversation]) -> None:
        """Ask about replies in a thread, if the labeler answers elsewhere: in this process it would only be in the way.

        What it computes here would also depend on which replies were drawn by then.
        """
        new = [row for row in conversations if row not in self._begun and row not in self._known]
        if not new or not self._labeler.engine.elsewhere:
            return
        self._begun.update(new)
        self._drawn.put(new)
        self._asking = self._asking or in_thread(self._ask_as_drawn, "judge")

    def rewards(self, conversations: Sequence[Conversation], index: int) -> list[float | None]:
        """By one principle, as far as none that overrides it prefers another reply to the same prompt."""
        scores = self.scores(conversations)
        name = self._principles[index].id
        if name not in self._above:
            return [row[index] for row in scores]
        groups: defaultdict[Conversation, list[int]] = defaultdict(list)
        for place, conversation in enumerate(conversations):
            groups[conversation[:-1]].append(place)
        made: list[float | None] = [None] * len(scores)
        for places in groups.values():
            columns = zip(*(scores[place] for place in places), strict=True)
            ratings = {row.id: column for row, column in zip(self._principles, columns, strict=True)}
            for place, rating in zip(places, yielding(ratings, self._above)[name], strict=True):
                made[place] = rating
        return made

    def scores(self, conversations: Sequence[Conversation]) -> list[Scores]:
        """By every principle: those that are known, and those that are asked for now."""
        begun, self._begun = self._begun, set()
        if self._asking:
            asking, self._asking = self._asking, None
            self._drawn.put(None)
            self._known |= asking.result()
        if conversations != self._batch:  # what could not be read may be read the next time
            self._known = {row: scores for row, scores in self._known.items() if None not in scores or row in begun}
            self._batch = conversations
        known = {row: self._known[row] for row in conversations if row in self._known}
        self._known = known | self._ask([row for row in dict.fromkeys(conversations) if row not in known])
        return [self._known[conversation] for conversation in conversations]

    def stop(self) -> None:
        """End the thread as soon as an answer has come, for `STOP_S` at most."""
        if self._asking:
            self._stopped.set()
            self._drawn.put(None)
            with suppress(Exception):
                self._asking.result(STOP_S)

    def _ask_as_drawn(self) -> dict[Conversation, Scores]:
        """Ask about all that has been drawn, and then about all that was drawn meanwhile, until no more is coming."""
        scores: dict[Conversation, Scores] = {}
        ended = False
        while not ended:
            waiting = [self._drawn.get()]
            while not self._drawn.empty():
                waiting.append(self._drawn.get())
            ended = waiting[-1] is None
            scores |= self._ask([conversation for drawn in waiting for conversation in drawn or ()])
        return scores

    def _ask(self, conversations: Sequence[Conversation]) -> dict[Conversation, Scores]:
        asked = product(self._principles, conversations)
        stories = (self._labeler.score(conversation, principle) for principle, conversation in asked)
        scores, count = list[float | None](), len(conversations)
        with closing(side_by_side(stories)) as answers:  # closed, its engines keep what has been answered
            for score in answers:
                if self._stopped.is_set():
                    raise InterruptedError
                scores.append(score)
        by_principle = [scores[start : start + count] for start in range(0, len(scores), count or 1)]
        return dict(zip(conversations, zip(*by_principle, strict=True), strict=True))


def scaled(score: float) -> float:
    """A score of 1 to 10 as −1 to 1 (Lee et al. 2023, section 2.2.2)."""
    return (score - 5.5) / 4.5
