"""Best of K: the reply that a constitution rates highest among K of one model, as a stand-in for optimising by it.

Taking the best of K moves a model by at most log K − (K − 1)/K nats from itself (Stiennon et al. 2020, appendix G.3;
Beirami et al. 2024). It needs no training, so two constitutions are compared by what each would take from the same
replies.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from constitutional.base.stats import bootstrap_mean, paired_interval, weighted_mean

Unit = Literal["share", "words", "questions", "of 10"]
SAME: Final = 1e-6
"""Ratings that differ by less are equal."""
FEW: Final = 10
"""Prompts below which nothing is concluded."""

Ratings = Mapping[str, Sequence[float | None]]
"""By principle, what it gives each of K replies to a prompt, from 1 to 10; None where the labeler gives no rating."""


def divergence(k: int) -> float:
    """The most, in nats, by which the best of K replies diverges from the model: log K − (K − 1)/K."""
    return math.log(k) - (k - 1) / k


def totals(ratings: Ratings, weights: Mapping[str, float]) -> list[float | None]:
    """The mean of each reply's ratings by weight; None where it has none.

    Args:
        ratings: of one prompt's K replies.
        weights: by principle; one that is not named counts for nothing.
    """
    columns = [ratings[name] for name in weights]
    means: list[float | None] = []
    for values in zip(*columns, strict=True):
        known = [(value, weight) for value, weight in zip(values, weights.values(), strict=True) if value is not None]
        means.append(weighted_mean([value for value, _ in known], [weight for _, weight in known]))
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
    value: float
    """After less before."""
    low: float
    """Lower end of the 95% interval, paired over prompts."""
    high: float
    n: int
    """Prompts whose replies the measure is about, both before and after."""

    @property
    def clear(self) -> bool:
        """Whether the interval is on one side of 0, and rests on enough prompts."""
        return self.n >= FEW and (self.low > 0 or self.high < 0)

    @property
    def strength(self) -> float:
        """How many half-intervals the change is from 0; for the order."""
        return abs(self.value) / max((self.high - self.low) / 2, 1e-9)


Taken = Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
"""For each prompt, the places of the replies that the old constitution takes, and of those that the new one takes."""


def shift(measure: str, unit: Unit, values: Sequence[Sequence[float | None]], taken: Taken) -> Shift | None:
    """How a measure changes; None where fewer than two prompts have it on both sides.

    Args:
        measure: its name.
        unit: `share` for values from 0 to 1, whose interval is Agresti and Min's; otherwise it is a bootstrap's.
        values: for each prompt, the value of each of its K replies; None where the measure is not about the reply.
        taken: for each prompt, which replies are taken.
    """
    pairs = []
    for replies, (old, new) in zip(values, taken, strict=True):
        before, after = (_mean([replies[place] for place in places]) for places in (old, new))
        if before is not None and after is not None:
            pairs.append((before, after))
    n = len(pairs)
    if n < 2:
        return None
    changes = [after - before for before, after in pairs]
    if unit == "share":
        # Parts of a prompt, where replies share the best rating, count as parts: the interval is not too narrow.
        gained = math.fsum(change for change in changes if change > 0)
        low, high = paired_interval(gained, gained - math.fsum(changes), n)
    else:
        low, high = bootstrap_mean(changes, seed=0)
    was, becomes = (math.fsum(side) / n for side in zip(*pairs, strict=True))
    return Shift(measure, unit, was, becomes, math.fsum(changes) / n, low, high, n)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None
