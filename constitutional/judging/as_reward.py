"""The labeler as a reward: it scores a reply by one principle (direct RLAIF, Lee et al. 2023, section 2.2.2)."""

from collections.abc import Sequence

from constitutional.constitution.constitution import Principle
from constitutional.judging.labeler import Labeler
from constitutional.training.rewards import ConstitutionSettings, Reward, RewardFunction, Turns, said


def by_principle(labeler: Labeler, principles: Sequence[Principle], settings: ConstitutionSettings) -> list[Reward]:
    """For each principle, the labeler's expected score of a reply, Σ i·P(i) over 1 to 10, brought to [−1, 1].

    Together they are a mean over the principles by weight. None where the labeler cannot be read.
    """
    total = sum(each.weight for each in principles)
    return [
        Reward(f"constitution/{each.id}", settings.weight * each.weight / total, _score_by(labeler, each))
        for each in principles
    ]


def _score_by(labeler: Labeler, principle: Principle) -> RewardFunction:
    def score(prompts: Sequence[Turns], completions: Sequence[Turns], **_: object) -> list[float | None]:
        found = labeler.score(list(map(said, prompts, completions)), [principle])
        return [None if one is None else scaled(one) for (one,) in found]

    return score


def scaled(score: float) -> float:
    """A score of 1 to 10 as −1 to 1 (Lee et al. 2023, section 2.2.2)."""
    return (score - 5.5) / 4.5
