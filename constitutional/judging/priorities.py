"""Where two principles prefer different responses of a comparison and one overrides the other, it decides alone.

A constitution says which principles override which (`Principle.overrides`). A judgement carries the ids of those that
override its own principle, so what a comparison's label is follows from its judgements alone, whichever of them are
looked at: without the principle that overrides, what it overrode counts again.
"""

from collections import defaultdict
from collections.abc import Iterable

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
