"""Where two principles prefer different responses of a comparison and one overrides the other, it decides alone.

A constitution says which principles override which (`Principle.overrides`). A judgement carries the ids of those that
override its own principle, so what a comparison's label is follows from its judgements alone, whichever of them are
looked at: without the principle that overrides, what it overrode counts again. Ratings of single responses are held
against each other two by two, and give way in the same cases.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from constitutional.base.records import Judgement
from constitutional.base.stats import weighted_mean


def overridden(judgements: Iterable[Judgement]) -> dict[str, str]:
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
Ratings = Mapping[str, Sequence[float | None]]
"""By principle, what it gives each of K replies to a prompt, from 1 to 10; None where there is no rating."""


def yielding(ratings: Ratings, above: Mapping[str, Sequence[str]]) -> Ratings:
    """The ratings of one prompt's replies, where those by a principle give way to those that override it.

    A rating is the mean of the principle's ratings plus the mean lead over all replies, itself included. The lead over
    a reply counts for nothing where a principle that overrides, and is not overridden there itself, prefers the other
    of the two by `PREFERS` points or more. Without such a pair a rating stays what it was; the mean over the replies
    always does.

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
        others = [(ratings[other], beaten.get(other, set())) for other in above.get(name, ()) if other in ratings]
        own = {place: rating for place, rating in enumerate(ratings[name]) if rating is not None}
        beaten[name] = {
            (i, j)
            for i in own
            for j in own
            if any((i, j) not in lost and _against(own[i] - own[j], other[i], other[j]) for other, lost in others)
        }
        if beaten[name]:
            mean = sum(own.values()) / len(own)
            leads = {i: sum(own[i] - own[j] for j in own if (i, j) not in beaten[name]) / len(own) for i in own}
            made[name] = [mean + leads[i] if i in own else None for i in range(len(ratings[name]))]
    return made


def _against(lead: float, first: float | None, second: float | None) -> bool:
    """Whether another principle's ratings clearly prefer the response that is behind by this lead."""
    if first is None or second is None or abs(first - second) < PREFERS:
        return False
    return lead * (first - second) < 0
