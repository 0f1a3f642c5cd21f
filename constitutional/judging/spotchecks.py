"""Which comparisons people look at, and with which probability each could have been chosen.

A part is drawn uniformly and is never trained on: the audit set, from which the labeler's agreement with people is
known. The rest goes where a vote matters. As every comparison's probability is known, both together give estimates
without bias (Horvitz and Thompson 1952; Hájek 1971), where the targeted ones alone would make the labeler look worse
than it is.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from constitutional.base.frozen import TECHNICAL, Frozen
from constitutional.base.records import LABELER, Comparison, Judgement, Message, SpotCheck
from constitutional.base.seeds import rng_of
from constitutional.base.stats import sigmoid
from constitutional.base.text import same_text
from constitutional.judging.labelling import combine, readable

Target = Literal["conflict", "margin", "panel", "reward", "random"]
LEAST: Final = 1e-3
"""The score of a comparison that no target is about: it is hardly ever chosen, but it could be."""


class SpotCheckSettings(Frozen):
    """How much people are asked, and about what."""

    budget: float = Field(default=0.0, ge=0)
    """What people's votes may come to, in the unit; 0 asks nobody."""
    unit: Literal["votes", "minutes", "money"] = "votes"
    """Votes, minutes of people's time, or money in the currency of the prices."""
    seconds_a_vote: float = Field(default=45.0, gt=0)
    """How long a vote takes, for a budget in minutes."""
    price_a_vote: float = Field(default=0.5, gt=0)
    """What a vote costs, for a budget in money."""
    audit_share: float = Field(default=0.4, ge=0, le=1)
    """Share of the comparisons that is drawn uniformly, for the audit set, which is never trained on."""
    overlap: float = Field(default=0.15, ge=0, le=1)
    """Share of the comparisons that two people vote on, which tells how far people agree."""
    targets: tuple[Target, ...] = ("conflict", "margin", "panel")
    """What the others are chosen by: `conflict` of the labeler's two orders, a small `margin` of its probability from a
    half, disagreement in a `panel`, how far a `reward` model's probability is from the labeler's, or at `random`."""
    reward_model: Path | None = None
    """The folder of a reward model for the target `reward`, such as runs/FIRST/07_reward/reward_model. People are asked
    before this run's own is trained, so it is one of an earlier, finished run. Only `constitutional review RUN
    review.budget=N`, which asks about a run that is finished, takes the run's own where none is named."""
    strata: Annotated[bool, Field(strict=True)] = True
    """Whether principles get equal parts of these, where each comparison is judged by one principle."""

    gold_share: Annotated[float, Field(ge=0, le=0.5), TECHNICAL] = 0.0
    """Share of the items shown to a rater whose right answer is known: the constitution's own examples of its
    principles. They come beyond the budget, each once to a rater, and stop where the examples are used up. It is
    decided when `constitutional review` is first started for the run."""

    @model_validator(mode="after")
    def _allows_a_vote(self) -> Self:
        if self.budget and not self.votes:
            raise ValueError(
                f"budget is {self.budget:g} {self.unit}, which is less than a vote takes ({self._price:g}); type "
                f"spotcheck.budget={self._price:g} or more, or 0 for none"
            )
        return self

    @model_validator(mode="after")
    def _has_a_reward_model(self) -> Self:
        if self.votes and "reward" in self.targets and self.reward_model is None:
            raise ValueError(
                "targets has 'reward', and this run's reward model is trained only after people are asked; type "
                "spotcheck.reward_model=runs/FIRST/07_reward/reward_model, one of a finished run, or leave it out"
            )
        return self

    @property
    def votes(self) -> int:
        """The votes that the budget allows."""
        return math.floor(self.budget / self._price + 1e-9)

    @property
    def _price(self) -> float:
        """What a vote takes, in the unit."""
        return {"votes": 1.0, "minutes": self.seconds_a_vote / 60, "money": self.price_a_vote}[self.unit]

    @property
    def items(self) -> int:
        """The comparisons for which these votes suffice: one at least, if there is a vote."""
        return max(math.floor(self.votes / (1 + self.overlap) + 1e-9), min(self.votes, 1))


def reward_probabilities(comparisons: Sequence[Comparison], folder: Path) -> dict[str, float]:
    """The probability that response a is better by the reward models in a folder, by comparison.

    The mean over the members of σ(d), where d is the difference of a member's own scores: the loss made it a logit.

    Raises:
        ModelError: a model cannot be loaded.
    """
    from constitutional.training.reward_model import load_reward_model, members, raw_scores

    replies = [(*row.prompt.messages, Message("assistant", reply)) for row in comparisons for reply in (row.a, row.b)]
    columns = [raw_scores(*load_reward_model(member), replies) for member in members(folder)]
    return {
        row.id: fmean(sigmoid(scores[2 * place] - scores[2 * place + 1]) for scores in columns)
        for place, row in enumerate(comparisons)
    }


def planned(
    comparisons: Sequence[Comparison],
    judgements: Iterable[Judgement],
    settings: SpotCheckSettings,
    seed: int,
    rewards: Mapping[str, float] | None = None,
) -> list[SpotCheck]:
    """The comparisons that people are to look at, in the order in which they are shown.

    Only comparisons that the labeler judged and whose responses differ. First the audit set is drawn uniformly, with a
    probability u, then the others from the rest, with a probability c; a comparison is chosen with u + (1 − u)·c. The
    little by which c depends on who is in the audit set is left out. The plan of a larger budget holds that of a
    smaller one, so that votes which are in already count towards it.

    Args:
        comparisons: the run's.
        judgements: the labeler's, and those of a panel.
        settings: how many are chosen, and by what.
        seed: of all that is drawn.
        rewards: by comparison, a reward model's probability that response a is better; for the target `reward`.
    """
    by_comparison = defaultdict[str, list[Judgement]](list)
    for judgement in judgements:
        by_comparison[judgement.comparison].append(judgement)
    judged = {
        row.id: by_comparison[row.id]
        for row in comparisons
        if combine(by_comparison[row.id]) is not None and not same_text(row.a, row.b)
    }
    items = min(settings.items, len(judged))
    if not items:
        return []
    order = {name: rng_of(seed, "spotcheck", name).random() for name in judged}
    audits = min(round(settings.audit_share * items), items)
    audit = set(sorted(judged, key=order.__getitem__)[:audits])
    preferred = rewards or {}
    reasons = {name: reason_for(rows, settings.targets, preferred.get(name)) for name, rows in judged.items()}
    scores = _scores(judged, {name: score for name, (_, score) in reasons.items()}, settings)
    others = {name: score for name, score in scores.items() if name not in audit}
    chances, targeted = proportional(others, items - audits), sequential(others, items - audits, seed)
    # The chance that one of the audit set would have had among the others.
    factor = min((chance / scores[name] for name, chance in chances.items() if chance < 1), default=math.inf)
    chances |= {name: min(1.0, factor * scores[name]) for name in audit}
    uniform = audits / len(judged)
    twice = min(round(settings.overlap * items), settings.votes - items)
    chosen = sorted(audit | targeted, key=lambda name: rng_of(seed, "spotcheck order", name).random())
    return [
        SpotCheck(
            comparison=name,
            reason="audit" if name in audit else reasons[name][0],
            probability=1 - (1 - uniform) * (1 - chances[name]),
            votes=2 if place < twice else 1,
        )
        for place, name in enumerate(chosen)
    ]


def reason_for(
    judgements: Sequence[Judgement], targets: Sequence[Target], reward: float | None = None
) -> tuple[Target, float]:
    """Why people should look at a comparison, and how much it matters, from `LEAST` to 1.

    `reward` is a reward model's probability that response a is better, None where there is none.
    """
    p_a = combine(judgements)
    scores: dict[Target, float] = {
        "conflict": float(any(judgement.conflict for judgement in readable(judgements))),
        "margin": 0.0 if p_a is None else 1 - 2 * abs(p_a - 0.5),
        "panel": _disagreement(judgements),
        "reward": 0.0 if reward is None or p_a is None else abs(reward - p_a),
        "random": 1.0,
    }
    wanted = {target: scores[target] for target in targets} or {"random": 1.0}
    best = max(wanted, key=lambda target: wanted[target])
    return best, max(wanted[best], LEAST)


def _disagreement(judgements: Sequence[Judgement]) -> float:
    """How far the judges of a panel are apart, 0 to 1: the distance of the furthest two means."""
    by_judge = defaultdict[str, list[Judgement]](list)
    for judgement in judgements:
        by_judge[judgement.judge].append(judgement)
    means = [p for rows in by_judge.values() if (p := combine(rows)) is not None]
    return max(means) - min(means) if len(means) > 1 else 0.0


def _scores(
    judged: Mapping[str, Sequence[Judgement]], scores: Mapping[str, float], settings: SpotCheckSettings
) -> dict[str, float]:
    """The scores, which within each principle come to the same sum where strata are wanted and there are any."""
    strata = {
        name: "" if len(own := {row.principle for row in rows if row.judge == LABELER}) != 1 else own.pop()
        for name, rows in judged.items()
    }
    if not settings.strata:
        return dict(scores)
    sums = defaultdict[str, float](float)
    for name, score in scores.items():
        sums[strata[name]] += score
    return {name: score / sums[strata[name]] for name, score in scores.items()}


def proportional(scores: Mapping[str, float], n: int) -> dict[str, float]:
    """Probabilities in proportion to positive scores, of which none is above 1, and whose sum is n."""
    if n >= len(scores):
        return dict.fromkeys(scores, 1.0)
    certain: set[str] = set()
    while True:
        rest = math.fsum(score for name, score in scores.items() if name not in certain)
        factor = (n - len(certain)) / rest if rest else 0.0
        more = {name for name, score in scores.items() if name not in certain and score * factor > 1}
        if not more:
            return {name: 1.0 if name in certain else score * factor for name, score in scores.items()}
        certain |= more


def sequential(scores: Mapping[str, float], n: int, seed: int) -> set[str]:
    """A sample of n names, in which a name has about its probability of `proportional` (Ohlsson 1998).

    "Sequential Poisson sampling": with a random number u of its own for each name, those with the least u / score are
    chosen. A larger sample therefore holds a smaller one, so people can be asked about more without asking anew.
    """
    numbers = {name: rng_of(seed, "spotcheck target", name).random() / score for name, score in scores.items()}
    return set(sorted(numbers, key=numbers.__getitem__)[:n])
