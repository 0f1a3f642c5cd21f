"""The labeler as a reward: it scores a reply by one principle (direct RLAIF, Lee et al. 2023, section 2.2.2)."""

from collections.abc import Sequence

from constitutional.constitution.constitution import Principle
from constitutional.engines.stories import side_by_side
from constitutional.judging.labeler import Labeler
from constitutional.training.rewards import PrinciplesSettings, Reward, RewardFunction, Turns, conversation_with


def by_principle(labeler: Labeler, principles: Sequence[Principle], settings: PrinciplesSettings) -> list[Reward]:
    """For each principle, the labeler's expected score of a reply, Σ i·P(i) over 1 to 10, brought to [−1, 1].

    Together they are a mean over the principles by weight. None where the labeler cannot be read.
    """
    total = sum(principle.weight for principle in principles)
    shares = [settings.weight * principle.weight / total for principle in principles]
    return [
        Reward(f"constitution/{principle.id}", share, _score_by(labeler, principle))
        for principle, share in zip(principles, shares, strict=True)
    ]


def _score_by(labeler: Labeler, principle: Principle) -> RewardFunction:
    def score(prompts: Sequence[Turns], completions: Sequence[Turns], **_: object) -> list[float | None]:
        conversations = map(conversation_with, prompts, completions)
        scores = side_by_side(labeler.score(conversation, principle) for conversation in conversations)
        return [None if score is None else scaled(score) for score in scores]

    return score


def scaled(score: float) -> float:
    """A score of 1 to 10 as −1 to 1 (Lee et al. 2023, section 2.2.2)."""
    return (score - 5.5) / 4.5
