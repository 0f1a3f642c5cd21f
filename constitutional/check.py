"""The labeler on trial, outside any run: on a constitution's own examples, or against answers that people gave."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from constitutional.constitution import Constitution
from constitutional.engines.base import Engine
from constitutional.hhh import Given, Score, always_first, always_longer, score
from constitutional.progress import Progress
from constitutional.prompts import Prompts
from constitutional.records import Judgement
from constitutional.show import table
from constitutional.stages.label import (
    NEAR_CHANCE,
    PrincipleAccuracy,
    Settings,
    accuracy_against,
    combine,
    label,
    measure_labeler,
)
from constitutional.stats import wilson


class Trial(NamedTuple):
    """What came of it."""

    text: str
    """A table, for people."""
    near_chance: bool
    """Whether the labeler is near chance, by one principle at least."""


def by_examples(constitution: Constitution, engine: Engine, templates: Prompts, settings: Settings) -> Trial:
    """How often the labeler finds the better of each principle's own examples."""
    accuracies = measure_labeler(constitution, engine, templates, settings)
    heading = ("principle", "right", "of", "accuracy", "95% interval", "conflicts", "unreadable", "")
    lines = [heading, *map(_principle_line, accuracies)]
    return Trial(table(lines, numbers_from=1), any(each.near_chance for each in accuracies))


def _principle_line(each: PrincipleAccuracy) -> tuple[str, ...]:
    readable = each.n - each.unreadable
    low, high = wilson(each.right, readable)
    remark = "unreadable" if each.n and not readable else "near chance" if each.near_chance else ""
    return (
        each.principle,
        str(each.right),
        str(readable),
        "–" if each.accuracy is None else f"{each.accuracy:.0%}",
        f"{low:.0%}–{high:.0%}" if readable else "–",
        str(each.conflicts),
        str(each.unreadable),
        remark if each.n else "has no examples",
    )


def baselines(given: Given) -> str:
    """What a score on these comparisons is worth: two ways of choosing that read nothing."""
    lines = [_score_line("always the first", always_first(given.rows))]
    lines.append(_score_line("always the longer", always_longer(given.rows)))
    return table([("", "right", "of", "accuracy", "95% interval", ""), *lines], numbers_from=1)


def by_answers(
    given: Given, constitution: Constitution, engine: Engine, templates: Prompts, settings: Settings, *, seed: int
) -> Trial:
    """How often the labeler chooses as people did; intervals draw prompts, because comparisons on one are alike."""
    comparisons = [row.comparison for row in given.rows]
    total = len(comparisons) * (1 if settings.principles == "one" else len(constitution.principles))
    labelled = label(comparisons, constitution, engine, templates, settings, seed)
    judgements = list(Progress().track(labelled, total, "label"))
    by_comparison: defaultdict[str, list[Judgement]] = defaultdict(list)
    for judgement in judgements:
        by_comparison[judgement.comparison].append(judgement)
    found = score(given.rows, {name: combine(its) for name, its in by_comparison.items()}, seed=seed)
    also = accuracy_against(judgements, {row.comparison.id: row.answer for row in given.rows})
    rest: Sequence[tuple[str, str]] = (
        ("unreadable", f"{also.unreadable} of {also.n}, which count as not right"),
        ("left out", f"{given.undecided}, of which people do not agree which is better"),
        ("calibration error", "–" if also.calibration_error is None else f"{also.calibration_error:.2f}"),
        (
            "position bias",
            "–" if also.position_bias is None else f"{also.position_bias:.0%} for the first; 50% is none",
        ),
    )
    near_chance = found.share < NEAR_CHANCE
    line = (*_score_line("the labeler", found)[:-1], "near chance" if near_chance else "")
    heading = ("", "right", "of", "accuracy", "95% interval", "")
    return Trial(f"{table([heading, line], numbers_from=1)}\n\n{table(rest)}", near_chance)


def _score_line(name: str, its: Score) -> tuple[str, ...]:
    low, high = its.interval
    interval = f"{low:.1%}–{high:.1%}" if math.isfinite(high) else "–"  # one prompt alone says nothing
    return (name, str(its.right), str(its.n), f"{its.share:.2%}", interval, "")
