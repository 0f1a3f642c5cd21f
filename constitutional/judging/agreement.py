"""How far the judges of a panel agree: on a comparison by a principle, each prefers a response, or none."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Literal, NamedTuple

from constitutional.base.records import Judgement

Choices = dict[str, Literal["a", "b"]]
"""By judge, the response that it prefers."""


class Agreement(NamedTuple):
    """Two judges on what both have a preference on."""

    judges: tuple[str, str]
    same: list[tuple[bool, str]]
    """For each comparison by a principle, whether both prefer the same response, and the comparison; at least one."""
    kappa: float | None
    """Cohen's kappa, -1 to 1; 0 is chance. None where both always prefer what is called a, or b."""


def choices_of(judgements: Iterable[Judgement]) -> dict[tuple[str, str], Choices]:
    """By comparison and principle, what the judges prefer; at a half, or unreadable, a judge prefers none."""
    choices: defaultdict[tuple[str, str], Choices] = defaultdict(dict)
    for judgement in judgements:
        if judgement.p_a is not None and judgement.p_a != 0.5:
            choice: Literal["a", "b"] = "a" if judgement.p_a > 0.5 else "b"
            choices[judgement.comparison, judgement.principle][judgement.judge] = choice
    return dict(choices)


def disagreement(judgements: Iterable[Judgement]) -> list[bool]:
    """For each comparison and principle on which several judges have a preference: whether preferences differ."""
    return [len(set(choices.values())) > 1 for choices in choices_of(judgements).values() if len(choices) > 1]


def agreements(judgements: Iterable[Judgement]) -> list[Agreement]:
    """Every pair of judges that have preferences in common."""
    rows = [(comparison, choices) for (comparison, _), choices in choices_of(judgements).items()]
    judges = list(dict.fromkeys(judge for _, row in rows for judge in row))
    return [made for pair in combinations(judges, 2) if (made := _agreement(pair, rows))]


def _agreement(pair: tuple[str, str], rows: Iterable[tuple[str, Mapping[str, str]]]) -> Agreement | None:
    """Cohen 1960, "A coefficient of agreement for nominal scales"."""
    first, second = pair
    both = [(row[first], row[second]) for _, row in rows if first in row and second in row]
    if not both:
        return None
    same = [(row[first] == row[second], name) for name, row in rows if first in row and second in row]
    n, share = len(both), sum(alike for alike, _ in same) / len(both)
    a_first, a_second = (sum(choices[place] == "a" for choices in both) / n for place in (0, 1))
    by_chance = a_first * a_second + (1 - a_first) * (1 - a_second)
    return Agreement(pair, same, None if by_chance == 1 else (share - by_chance) / (1 - by_chance))
