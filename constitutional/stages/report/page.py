"""The page: figures with their tables, put together by `page.j2` and drawn in the colours of `style.css`.

Everything that a model or a constitution wrote is escaped by Jinja, and nothing is shortened.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from constitutional.stages.report import figures
from constitutional.stages.report.cautions import cautions
from constitutional.stages.report.charts import number
from constitutional.stages.report.data import MODELS, ReportData, RunReport
from constitutional.stages.report.figures import Figure, Table, change_text, interval
from constitutional.stages.report.verdicts import (
    Outcome,
    Verdicts,
    final_model,
    kind,
    over_optimised,
    verdicts,
    words,
)

ASSETS = Path(__file__).parent

SIGNS: Final[dict[Outcome, str]] = {"improved": "▲", "worse": "▼", "changed": "◆", "no clear change": "·"}

CONTROL: Final = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
"""Control characters become their pictures, since a browser would drop them silently."""


class View(NamedTuple):
    """A run as the page shows it."""

    run: RunReport
    key: str
    """Begins the run's anchors."""
    last: str
    """The model that the verdicts are about, as the page calls it."""
    verdicts: Verdicts
    cautions: tuple[str, ...]
    behaviour: tuple[Figure, ...]
    labeler: tuple[Figure, ...]
    reward: tuple[Figure, ...]
    gold: tuple[Figure, ...]
    over_optimised: tuple[str, ...]
    curves: tuple[Figure, ...]
    preferences: tuple[Figure, ...]


def render(report: ReportData) -> str:
    """The whole page, as one HTML text that needs nothing else."""
    style = Markup((ASSETS / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    views = [view(run, f"run{index}-") for index, run in enumerate(report.runs, 1)]
    page = _template().render(report=report, style=style, views=views, comparison=comparison(report), models=MODELS)
    return page.lstrip()  # the empty lines between the macros


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"words": words, "kind": kind, "difference": difference}
    environment.filters |= {"plain": plain, "note_name": note_name}
    environment.tests["lines"] = _is_lines
    environment.filters |= {"score": interval, "change": change_text, "number": number}
    return environment.get_template("page.j2")


def view(run: RunReport, key: str) -> View:
    """A run with its figures drawn."""
    last = MODELS[final_model(run.scores)]
    return View(
        run,
        key,
        last,
        verdicts(run),
        tuple(cautions(run)),
        behaviour=tuple(figures.behaviour(run)),
        labeler=tuple(figures.labeler(run)),
        reward=tuple(figures.reward(run)),
        gold=tuple(figures.gold(run)),
        over_optimised=tuple(over_optimised(run.gold)),
        curves=tuple(figures.curves(run)),
        preferences=tuple(figures.preferences(run)),
    )


def comparison(report: ReportData) -> Table | None:
    """Several runs' last models, measure by measure, each with what became of it against its own base."""
    if len(report.runs) < 2:
        return None
    columns = []
    for run in report.runs:
        found = verdicts(run)
        every = [*found.improved, *found.worse, *found.changed, *found.unclear, *found.against_sl]
        columns.append({each.measure: f"{interval(each.after)} {SIGNS[each.outcome]} {each.outcome}" for each in every})
    named = dict.fromkeys(score.measure for run in report.runs for score in run.scores)
    measures = [measure for measure in named if any(measure in column for column in columns)]
    body = tuple((words(measure), *(column.get(measure, "not measured") for column in columns)) for measure in measures)
    return Table(("Measure", *(run.name for run in report.runs)), body)


def difference(before: str, after: str, keep: str) -> Iterator[tuple[str, str]]:
    """One of two texts, `keep` ("before" or "after"), as pieces that are in both ("same") or in this one ("only")."""
    old, new = (re.findall(r"\s*\S+|\s+$", text) for text in (before, after))
    side = old if keep == "before" else new
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=len(old) > 2000)  # without, long texts take minutes
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        start, end = (old_start, old_end) if keep == "before" else (new_start, new_end)
        if start < end:
            yield ("same" if tag == "equal" else "only"), "".join(side[start:end])


def plain(value: object) -> str:
    """A value that a stage noted, on one line: `yes`, `1,200`, `0.532`, `a; b`, `n: 40; failed: 2`."""
    if isinstance(value, Mapping):
        return "; ".join(f"{note_name(str(name))}: {plain(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "; ".join(plain(each) for each in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    return number(value) if isinstance(value, float) else "none" if value is None else str(value)


def note_name(name: str) -> str:
    """A note's name: a measure as the page calls it, any other without underscores."""
    return words(name) if re.fullmatch(r"\w+/[\w.-]+", name) else name.replace("_", " ")


def _is_lines(value: object) -> bool:
    """Whether a note is a list whose entries need a line each."""
    return isinstance(value, list | tuple) and any(isinstance(each, Mapping | str) for each in value) and len(value) > 1


def _visible(value: object) -> object:
    return value.translate(CONTROL) if isinstance(value, str) and not isinstance(value, Markup) else value
