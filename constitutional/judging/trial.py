"""The labeler on trial, outside any run: on a constitution's own examples, or against answers that people gave."""

import math
from typing import Final, NamedTuple

from constitutional.base.errors import ModelError
from constitutional.base.progress import Progress, counted
from constitutional.base.stats import wilson
from constitutional.base.templates import Prompts
from constitutional.base.text import table
from constitutional.constitution.constitution import Constitution
from constitutional.data.answers import Accuracy, AnsweredComparisons, accuracy_of, always_first, always_longer
from constitutional.engines.base import Engine
from constitutional.judging.accuracy import (
    NEAR_CHANCE,
    TOO_FEW,
    PrincipleAccuracy,
    accuracy_against,
    measure_labeler,
    sharpness_of,
)
from constitutional.judging.labeler import TOO_LONG, method_for
from constitutional.judging.labelling import LabelSettings, label, probabilities_of

HEADING: Final = ("right", "accuracy", "95% interval", "")
"""The columns of all tables, behind the first one."""


class Trial(NamedTuple):
    """What came of it."""

    text: str
    """A table, for people."""
    near_chance: bool
    """Whether the labeler is right no more often than near chance, by one principle at least, however few examples."""


def by_examples(constitution: Constitution, engine: Engine, templates: Prompts, settings: LabelSettings) -> Trial:
    """How often the labeler finds the better of each principle's own examples."""
    accuracies = measure_labeler(constitution, engine, templates, settings)
    by_rule = {principle.id for principle in constitution.principles if principle.rule}
    lines = [("principle", *HEADING), *(_principle_line(row, by_rule=row.principle in by_rule) for row in accuracies)]
    return Trial(table(lines, numbers_from=1), any(accuracy.near_chance for accuracy in accuracies))


def _principle_line(row: PrincipleAccuracy, *, by_rule: bool) -> tuple[str, ...]:
    readable = row.n - row.unreadable
    low, high = wilson(row.right, readable)
    remarks = [_remark(readable, near_chance=row.near_chance)] if readable else []
    remarks += [counted(row.conflicts, "position conflict")] if row.conflicts else []
    remarks += [f"{row.unreadable:,} unreadable"] if row.unreadable else []
    return (
        row.principle,
        f"{row.right} of {readable}",
        "–" if row.accuracy is None else f"{row.accuracy:.0%}",
        f"{low:.0%}–{high:.0%}" if readable else "–",
        "; ".join(filter(None, remarks)) if row.n else "a rule decides" if by_rule else "has no examples",
    )


def _remark(n: int, *, near_chance: bool) -> str:
    if n <= TOO_FEW:
        return "too few examples to tell"
    return "near chance" if near_chance else ""


def baselines(answered: AnsweredComparisons) -> str:
    """What a score on these comparisons is worth: two ways of choosing that read nothing."""
    lines = [
        ("", *HEADING),
        _score_line("always the first", always_first(answered.rows)),
        _score_line("always the longer", always_longer(answered.rows)),
    ]
    return table(lines, numbers_from=1)


def by_answers(
    answered: AnsweredComparisons,
    constitution: Constitution,
    engine: Engine,
    templates: Prompts,
    settings: LabelSettings,
    *,
    seed: int,
) -> Trial:
    """How often the labeler chooses as people did; the interval has prompts as clusters.

    With `label.method=contrast` it is as sure as a run makes it: by what it makes of the constitution's own examples.
    Comparisons that are too long for the labeler are counted, and left out of everything else.

    Raises:
        ModelError: all of them are too long.
    """
    sharpness = dict[str, float]()
    if method_for(settings.method, engine.abilities) == "contrast":
        sharpness = sharpness_of(measure_labeler(constitution, engine, templates, settings))
    total = len(answered.rows) * (len(constitution.principles) if settings.principles == "all" else 1)
    comparisons = [row.comparison for row in answered.rows]
    with Progress().task("label", total) as task:
        judged = list(
            label(
                comparisons,
                constitution,
                engine,
                templates,
                settings,
                seed,
                sharpness=sharpness,
                ended=task.update,
            )
        )
    too_long = {judgement.comparison for judgement in judged if TOO_LONG in (judgement.problem or "")}
    judgements = [judgement for judgement in judged if judgement.comparison not in too_long]
    rows = [row for row in answered.rows if row.comparison.id not in too_long]
    if not rows:
        raise ModelError(f"every row ({len(too_long):,}) is longer than the labeler can read; take another labeler")
    accuracy = accuracy_of(rows, probabilities_of(judgements))
    details = accuracy_against(judgements, {row.comparison.id: row.answer for row in rows})
    error = "–" if details.calibration_error is None else f"{details.calibration_error:.2f}"
    bias = "–" if details.position_bias is None else f"{details.position_bias:.0%} for the first; 50% is none"
    rest = (
        ("unreadable", f"{details.unreadable} of {details.n}, which count as not right"),
        ("left out", f"{answered.undecided}, of which people do not agree which is better"),
        ("calibration error", error),
        ("position bias", bias),
    )
    near_chance = accuracy.share < NEAR_CHANCE
    line = (*_score_line("the labeler", accuracy)[:-1], _remark(accuracy.n, near_chance=near_chance))
    text = f"{table([('', *HEADING), line], numbers_from=1)}\n\n{table(rest)}"
    if too_long:
        longer = f"{counted(len(too_long), 'row')} {'is' if len(too_long) == 1 else 'are'} longer than the labeler"
        text += f"\n{longer} can read, and not among the {accuracy.n:,} that it was asked about"
    return Trial(text, near_chance)


def _score_line(name: str, accuracy: Accuracy) -> tuple[str, ...]:
    low, high = accuracy.interval
    interval = f"{low:.1%}–{high:.1%}" if math.isfinite(high) else "–"  # one prompt alone says nothing
    return (name, f"{accuracy.right} of {accuracy.n}", f"{accuracy.share:.2%}", interval, "")
