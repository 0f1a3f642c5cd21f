"""The labeler as a reward: it scores a reply by one principle (direct RLAIF, Lee et al. 2023, section 2.2.2)."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import product

from constitutional.base.records import Message
from constitutional.constitution.constitution import Principle
from constitutional.engines.stories import side_by_side
from constitutional.judging.labeler import Labeler
from constitutional.training.rewards import PrinciplesSettings, Reward, RewardFunction, Turns, conversation_with

Conversations = tuple[tuple[Message, ...], ...]
Scores = list[float | None]
"""Of conversations by the first principle, then by the next."""


def by_principle(
    labeler: Labeler, principles: Sequence[Principle], settings: PrinciplesSettings, *, waits: bool
) -> list[Reward]:
    """For each principle, the labeler's expected score of a reply, Σ i·P(i) over 1 to 10, brought to [−1, 1].

    Together they are a mean over the principles by weight. None where the labeler cannot be read. A labeler whose
    engine gives no log-probabilities writes its score instead.

    Args:
        labeler: scores the replies.
        principles: by which it does.
        settings: the weight of all rewards together.
        waits: whether the labeler computes in another process. Then the rewards are async functions, and the caller
            computes meanwhile. Otherwise both would share a device, and the rewards are plain functions.
    """
    total = sum(principle.weight for principle in principles)
    batches = _Batches(labeler, principles, waits)
    return [
        Reward(f"constitution/{principle.id}", settings.weight * principle.weight / total, batches.by(index))
        for index, principle in enumerate(principles)
    ]


@dataclass
class _Batch:
    scores: "Future[Scores]"
    readers: int
    """Principles whose rewards have not taken their scores yet."""


class _Batches:
    """Batches of replies. A batch is scored by all principles together, when the first principle's scores are wanted.

    Trainers call one reward function after the other, and would wait for a labeler elsewhere as often.
    """

    def __init__(self, labeler: Labeler, principles: Sequence[Principle], waits: bool) -> None:
        self._labeler = labeler
        self._principles = principles
        self._waits = waits
        self._lock = threading.Lock()
        self._batches: dict[Conversations, _Batch] = {}

    def by(self, index: int) -> RewardFunction:
        """The reward by one of the principles."""

        def own(scores: Scores, count: int) -> list[float | None]:
            return [None if score is None else scaled(score) for score in scores[index * count : (index + 1) * count]]

        def score(prompts: Sequence[Turns], completions: Sequence[Turns], **_: object) -> list[float | None]:
            return own(self._begun(prompts, completions).result(), len(completions))

        async def awaited(prompts: Sequence[Turns], completions: Sequence[Turns], **_: object) -> list[float | None]:
            return own(await asyncio.wrap_future(self._begun(prompts, completions)), len(completions))

        return awaited if self._waits else score

    def _begun(self, prompts: Sequence[Turns], completions: Sequence[Turns]) -> "Future[Scores]":
        conversations = tuple(map(conversation_with, prompts, completions))
        with self._lock:
            batch = self._batches.get(conversations)
            if batch is None:
                batch = self._batches[conversations] = _Batch(Future(), len(self._principles))
                if self._waits:
                    # A daemon, so that a run that is stopped does not wait for a server.
                    threading.Thread(target=self._ask, args=(conversations, batch), daemon=True).start()
                else:
                    self._ask(conversations, batch)
            batch.readers -= 1
            if not batch.readers:
                del self._batches[conversations]
        return batch.scores

    def _ask(self, conversations: Conversations, batch: _Batch) -> None:
        asked = product(self._principles, conversations)
        try:
            stories = (self._labeler.score(conversation, principle) for principle, conversation in asked)
            batch.scores.set_result(list(side_by_side(stories)))
        except BaseException as error:  # noqa: BLE001 - it is raised where the scores are wanted
            batch.scores.set_exception(error)


def scaled(score: float) -> float:
    """A score of 1 to 10 as −1 to 1 (Lee et al. 2023, section 2.2.2)."""
    return (score - 5.5) / 4.5
