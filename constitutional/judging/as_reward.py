"""The labeler as a reward: it scores a reply by one principle (direct RLAIF, Lee et al. 2023, section 2.2.2)."""

from collections.abc import Sequence
from itertools import product

from constitutional.base.records import Message
from constitutional.constitution.constitution import Principle
from constitutional.engines.stories import side_by_side
from constitutional.judging.labeler import Labeler
from constitutional.training.rewards import PrinciplesSettings, Reward, RewardFunction, Turns, conversation_with


def by_principle(labeler: Labeler, principles: Sequence[Principle], settings: PrinciplesSettings) -> list[Reward]:
    """For each principle, the labeler's expected score of a reply, Σ i·P(i) over 1 to 10, brought to [−1, 1].

    Together they are a mean over the principles by weight. None where the labeler cannot be read. A labeler whose
    engine gives no log-probabilities writes its score instead.
    """
    total = sum(principle.weight for principle in principles)
    scores = _Scores(labeler, principles)
    return [
        Reward(f"constitution/{principle.id}", settings.weight * principle.weight / total, scores.by(index))
        for index, principle in enumerate(principles)
    ]


class _Scores:
    """The scores of a batch of replies by all principles, asked for together when the first principle's are wanted.

    Trainers call one reward function after the other, and a labeler elsewhere would be waited for as often.
    """

    def __init__(self, labeler: Labeler, principles: Sequence[Principle]) -> None:
        self._labeler = labeler
        self._principles = principles
        self._conversations: list[tuple[Message, ...]] = []
        self._scores: list[float | None] = []
        """Of the conversations by the first principle, then by the next."""

    def by(self, index: int) -> RewardFunction:
        """The reward by one of the principles."""

        def score(prompts: Sequence[Turns], completions: Sequence[Turns], **_: object) -> list[float | None]:
            conversations = list(map(conversation_with, prompts, completions))
            if conversations != self._conversations:
                asked = product(self._principles, conversations)
                stories = (self._labeler.score(conversation, principle) for principle, conversation in asked)
                self._scores = list(side_by_side(stories))
                self._conversations = conversations
            scores = self._scores[index * len(conversations) : (index + 1) * len(conversations)]
            return [None if score is None else scaled(score) for score in scores]

        return score


def scaled(score: float) -> float:
    """A score of 1 to 10 as −1 to 1 (Lee et al. 2023, section 2.2.2)."""
    return (score - 5.5) / 4.5
