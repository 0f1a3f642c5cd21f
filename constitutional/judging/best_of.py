"""Best of K: the reply that a constitution rates highest among K of one model, as a stand-in for optimising by it.

Taking the best of K moves a model by at most log K − (K − 1)/K nats from itself (Stiennon et al. 2020, appendix G.3;
Beirami et al. 2024). It needs no training, so two constitutions are compared by what each would take from the same
replies.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from constitutional.base.effects import PRIOR_OF_DIFFERENCES, Effect, Estimate, Key, corrected, estimate
from constitutional.base.stats import FEWEST, weighted_mean
from constitutional.judging.priorities import Ratings

Unit = Literal["share", "words", "questions", "of 10"]
SAME: Final = 1e-6
"""Ratings that differ by less are equal."""


def divergence(k: int) -> float:
    """The most, in nats, by which the best of K replies diverges from the model: log K − (K − 1)/K."""
    return math.log(k) - (k - 1) / k


def totals(ratings: Ratings, weights: Mapping[str, float]) -> list[float | None]:
    """The mean of each reply's ratings by weight; None where one that has a weight is missing.

    A mean over the others would let a reply win because of what was not rated.

    Args:
        ratings: of one prompt's K replies.
        weights: by principle; one that is not named counts for nothing.
    """
    counted = {name: weight for name, weight in weights.items() if weight > 0}
    means: list[float | None] = []
    for values in zip(*(ratings[name] for name in counted), strict=True):
        known = [value for value in values if value is not None]
        means.append(weighted_mean(known, list(counted.values())) if len(known) == len(counted) else None)
    return means


def best(ratings: Sequence[float | None]) -> tuple[int, ...]:
    """The places of the replies with the highest rating, all that share it; empty where none has a rating."""
    most = max((rating for rating in ratings if rating is not None), default=None)
    if most is None:
        return ()
    return tuple(place for place, rating in enumerate(ratings) if rating is not None and most - rating < SAME)


class Swap(NamedTuple):
    """A prompt for which the two constitutions take different replies."""

    prompt: int
    """Its place among the prompts."""
    before: int
    """The place of the reply that the old constitution takes."""
    after: int
    margin: float
    """By how much the constitutions disagree, in points of 10: what the new one sees in the new reply over the old
    reply, less what the old one does."""
    pushes: tuple[tuple[str, float], ...]
    """What each principle adds to the margin, the largest first."""


def swap(
    prompt: int, before: Ratings, old: Mapping[str, float], after: Ratings, new: Mapping[str, float]
) -> Swap | None:
    """The replies, one best by each constitution, on which they disagree most.

    None where both take the same replies, or nothing is rated.
    """
    by_old, by_new = totals(before, old), totals(after, new)
    margins = {
        (from_, to): _gap(by_new, to, from_) + _gap(by_old, from_, to) for from_ in best(by_old) for to in best(by_new)
    }
    from_, to = max(margins, key=lambda pair: margins[pair], default=(0, 0))
    if margins.get((from_, to), 0.0) < SAME:
        return None
    parts = dict.fromkeys([*new, *old], 0.0)
    for ratings, weights, sign in ((after, new, 1.0), (before, old, -1.0)):
        total = math.fsum(weights.values())
        for name, weight in weights.items():
            better, worse = ratings[name][to], ratings[name][from_]
            if better is not None and worse is not None:
                parts[name] += sign * weight / total * (better - worse)
    pushes = sorted(((name, push) for name, push in parts.items() if push), key=lambda pair: -pair[1])
    return Swap(prompt, from_, to, math.fsum(parts.values()), tuple(pushes))


def _gap(ratings: Sequence[float | None], better: int, worse: int) -> float:
    """By how much a reply is ahead of another; 0 where either has no rating."""
    first, second = ratings[better], ratings[worse]
    return 0.0 if first is None or second is None else first - second


class Shift(NamedTuple):
    """How a measure of the best replies changes from the old constitution to the new one."""

    measure: str
    unit: Unit
    before: float
    """The mean over prompts of the old best replies; where several share the best rating, of all of them."""
    after: float
    effect: Effect
    """After less before, paired over the prompts whose replies the measure is about both times."""

    @property
    def value(self) -> float:
        """The mean change."""
        return self.effect.estimate.value

    @property
    def clear(self) -> bool:
        """Whether it is more than luck, which the number of measures is allowed for."""
        return self.effect.clear

    @property
    def few(self) -> bool:
        """Whether there are too few prompts to tell."""
        return self.effect.estimate.prompts < FEWEST


Taken = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
"""For each prompt, the places of the replies that the old constitution takes, and of those that the new one takes."""


Measured = tuple[str, Unit, Sequence[Sequence[float | None]]]
"""A measure's name and unit, and for each prompt its value for each of the K replies; None where it is not about one.

The unit is `share` for values from 0 to 1.
"""


def shifts(measured: Iterable[Measured], taken: Taken) -> list[Shift]:
    """How measures change, the clearest first; without those that fewer than two prompts have on both sides.

    Args:
        measured: the measures of all replies.
        taken: for each prompt, which replies are taken.
    """
    changed, estimates = list[tuple[str, Unit, float, float]](), list[Estimate]()
    for measure, unit, values in measured:
        pairs = []
        for replies, (old, new) in zip(values, taken, strict=True):
            before, after = (_mean([replies[place] for place in places]) for places in (old, new))
            if before is not None and after is not None:
                pairs.append((before, after))
        if len(pairs) > 1:
            was, becomes = (math.fsum(side) / len(pairs) for side in zip(*pairs, strict=True))
            differences = {Key(0, str(at)): after - before for at, (before, after) in enumerate(pairs)}
            changed.append((measure, unit, was, becomes))
            estimates.append(estimate(differences, PRIOR_OF_DIFFERENCES if unit == "share" else ()))
    rows = [Shift(*row, effect) for row, effect in zip(changed, corrected(estimates), strict=True)]
    return sorted(rows, key=lambda row: (not row.clear, -row.effect.strength))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
