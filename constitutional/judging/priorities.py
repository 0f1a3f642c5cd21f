"""Where two principles prefer different responses of a comparison and one overrides the other, it decides alone.

A constitution says which principles override which (`Principle.overrides`). A judgement carries the ids of those that
override its own principle, so what a comparison's label is follows from its judgements alone, whichever of them are
looked at: without the principle that overrides, what it overrode counts again. Ratings of single responses are held
against each other two by two, and give way in the same cases.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import permutations
from typing import Final, Protocol

from constitutional.base.stats import weighted_mean


class JudgementLike(Protocol):
    """What a comparison's label follows from, of a judgement."""

    @property
    def principle(self) -> str:
        """The principle's id."""

    @property
    def p_a(self) -> float | None:
        """Probability that a is better."""

    @property
    def conflict(self) -> bool:
        """The two orders prefer different responses."""

    @property
    def weight(self) -> float:
        """What it counts for."""

    @property
    def gives_way_to(self) -> tuple[str, ...]:
        """Ids of the principles that override its own."""


def overridden(judgements: Iterable[JudgementLike]) -> dict[str, str]:
    """The principles of a comparison that count for nothing, and for each the principle that decides in its place.

    A principle is overridden where one that overrides it, and is not overridden itself, prefers the other response.
    The judges of a panel decide together what a principle prefers. A judgement whose two orders conflict prefers
    neither, and neither does an even one: such a judgement overrides nothing, and nothing overrides it.

    Args:
        judgements: the readable ones of one comparison.
    """
    rows = list(judgements)
    above = {row.principle: row.gives_way_to for row in rows}
    if not any(above.values()):
        return {}
    votes: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        if row.p_a is not None and not row.conflict:
            votes[row.principle].append((row.p_a, row.weight))
    means = {name: weighted_mean(*zip(*pairs, strict=True)) for name, pairs in votes.items()}
    leanings = {name: mean - 0.5 for name, mean in means.items() if mean is not None}
    beaten: dict[str, str] = {}
    # What is overridden by more stands below what overrides it, as the ids include all that override those.
    for name in sorted(leanings, key=lambda name: len(above[name])):
        for other in above[name]:
            if other not in beaten and leanings.get(other, 0.0) * leanings[name] < 0:
                beaten[name] = other
                break
    return beaten


PREFERS: Final = 1.0
"""By how many points, of 1 to 10, a response must be ahead for the rating to prefer it and so to override: less may be
noise. `label.principles=telling` compares responses from the same distance on."""
_STILL: Final = 1e-9
"""A step, in points, that no longer counts."""
Ratings = Mapping[str, Sequence[float | None]]
"""By principle, what it gives each of K replies to a prompt, from 1 to 10; None where there is no rating."""


def yielding(ratings: Ratings, above: Mapping[str, Sequence[str]]) -> Ratings:
    """The ratings of one prompt's replies, where those by a principle give way to those that override it.

    They become the nearest ratings, by the sum of squares, that put no reply behind another to which a principle that
    overrides, and is not overridden there itself, prefers it by `PREFERS` points or more. Without such a pair a rating
    stays what it was; the mean over the replies always does.

    Args:
        ratings: by principle.
        above: by principle, the ids of those that override it, directly or through others.
    """
    if not any(name in ratings for names in above.values() for name in names):
        return ratings
    beaten: dict[str, set[tuple[int, int]]] = {}
    made = dict(ratings)
    # What is overridden by more stands below what overrides it, as the ids include all that override those.
    for name in sorted(ratings, key=lambda name: len(above.get(name, ()))):
        own = {place: rating for place, rating in enumerate(ratings[name]) if rating is not None}
        ordered = [
            (i, j)
            for i, j in permutations(own, 2)
            if any(
                (i, j) not in beaten[other] and _prefers(ratings[other][i], ratings[other][j])
                for other in above.get(name, ())
                if other in ratings
            )
        ]
        against = [(i, j) for i, j in ordered if own[i] < own[j]]
        beaten[name] = {*against, *((j, i) for i, j in against)}
        if against:
            nearest = _nearest(own, ordered)
            made[name] = [nearest.get(place) for place in range(len(ratings[name]))]
    return made


def _prefers(first: float | None, second: float | None) -> bool:
    """Whether ratings clearly prefer the first of two responses."""
    return first is not None and second is not None and first - second >= PREFERS


def _nearest(ratings: Mapping[int, float], ordered: Sequence[tuple[int, int]]) -> dict[int, float]:
    """The nearest ratings, by the sum of squares, in which the first of each pair is not behind the second.

    Isotonic regression on a partial order, by Hildreth (1957), "A quadratic programming procedure": each pair in turn
    is pulled together by as much as it needs, or let go of by as much as it no longer does.
    """
    made = dict(ratings)
    pulls = dict.fromkeys(ordered, 0.0)
    moved = 1.0
    while moved > _STILL:
        moved = 0.0
        for (i, j), pull in pulls.items():
            step = max(-pull, (made[j] - made[i]) / 2)
            made[i] += step
            made[j] -= step
            pulls[i, j] = pull + step
            moved = max(moved, abs(step))
    return made
