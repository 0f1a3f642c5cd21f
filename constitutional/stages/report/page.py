"""The page: figures with their tables, put together by `page.j2` and drawn in the colours of `style.css`.

Everything that a model or a constitution wrote is escaped by Jinja, and nothing is shortened.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from pydantic import BaseModel

from constitutional.base.progress import clock, percent
from constitutional.engines.spending import Calls, money
from constitutional.stages.context import StageForecast
from constitutional.stages.report import figures
from constitutional.stages.report.cautions import actions, cautions
from constitutional.stages.report.charts import number
from constitutional.stages.report.comparison import run_difference, summary_line
from constitutional.stages.report.data import FEW, MODELS, RunReport, StageCost
from constitutional.stages.report.figures import Table, change_text, few_mark, interval
from constitutional.stages.report.verdicts import (
    Outcome,
    final_model,
    kind,
    over_optimised,
    trained_elsewhere,
    untrained,
    verdicts,
    words,
)
from constitutional.stages.summaries import RewardQuality
from constitutional.training import metrics

ASSETS = Path(__file__).parent

ACTIONS: Final = 5
"""The most actions that a verdict names; others stand among the reasons for care."""

SIGNS: Final[dict[Outcome, str]] = {
    "improved": "▲",
    "worse": "▼",
    "changed": "◆",
    "no clear change": "·",
    "too few to tell": "?",
}

CONTROL: Final = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\n\t"} | {127: "\u2421"}
"""Control characters become their pictures, since a browser would drop them silently."""


def render(runs: Sequence[RunReport]) -> str:
    """The whole page, for one run or several to compare, as one HTML text that needs nothing else."""
    views = [_view(run, f"run{index}-") for index, run in enumerate(runs, 1)]
    title = ", ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    constitutions: dict[str, list[RunReport]] = {}
    for run in runs:
        constitutions.setdefault(run.provenance.digest, []).append(run)
    page = (
        environment()
        .get_template("page.j2")
        .render(
            title=title,
            constitutions=constitutions,
            views=views,
            comparison=comparison(runs),
            differences=[run_difference(runs[0], run) for run in runs[1:]]
            if all(run.constitution for run in runs)
            else [],
        )
    )
    return page.lstrip()  # the empty lines between the macros


@cache
def environment() -> Environment:
    """Jinja, with the style of pages and what their templates call."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters |= {"words": words, "kind": kind, "difference": difference, "facts": facts, "costs": costs}
    environment.filters |= {
        "score": interval,
        "change": change_text,
        "number": number,
        "few_mark": few_mark,
        "percent": percent,
    }
    environment.filters |= {"summary_line": summary_line}
    style = Markup((ASSETS / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
    environment.globals |= {"style": style}
    environment.globals |= {"signs": SIGNS, "few": FEW, "figures": figures, "models": MODELS}
    return environment


def _view(run: RunReport, key: str) -> dict[str, object]:
    """A run with the verdicts on its last model; `key` begins the run's anchors."""
    strip = verdicts(run)
    todo = tuple(actions(run, strip))
    return {
        "run": run,
        "key": key,
        "last": MODELS[final_model(run.scores)],
        "untrained": tuple(untrained(run)),
        "elsewhere": trained_elsewhere(run),
        "verdicts": strip,
        "actions": todo[:ACTIONS],
        "cautions": (*todo[ACTIONS:], *cautions(run)),
        "over_optimised": tuple(over_optimised(run.gold)),
    }


def comparison(runs: Sequence[RunReport]) -> Table | None:
    """The runs' last models, measure by measure, each against the run's own base; None for a single run."""
    if len(runs) < 2:
        return None
    columns = []
    for run in runs:
        strip = verdicts(run)
        every = [*strip.improved, *strip.worse, *strip.changed, *strip.unclear, *strip.few, *strip.against_sl]
        columns.append({row.measure: f"{interval(row.after)} {SIGNS[row.outcome]} {row.outcome}" for row in every})
    named = dict.fromkeys(score.measure for run in runs for score in run.scores)
    measures = [measure for measure in named if any(measure in column for column in columns)]
    body = tuple((words(measure), *(column.get(measure, "not measured") for column in columns)) for measure in measures)
    return Table(("Measure", *(run.name for run in runs)), body)


def costs(run: RunReport) -> Table:
    """What the stages asked and took, and their sum; where a dry run had forecast it, the forecast stands before it.

    The forecast is summed beside the same stages: not those that were done before, and in time not those that train.
    """
    head = ("Stage", "Calls", "Asked", "Tokens read", "Tokens written", "Cost", "Time")
    names = [*(words(row.stage) for row in run.costs), "all"]
    real = [*(_spent([row]) for row in run.costs), _spent(run.costs)]
    if not any(row.forecast for row in run.costs):
        return Table(head, tuple((name, *cells) for name, cells in zip(names, real, strict=True)))
    expected = [*(_expected([row.forecast] if row.forecast else []) for row in run.costs), _expected([])]
    forecast = {row.stage: row.forecast for row in run.costs if row.forecast and not row.forecast.done}
    same = [row for row in run.costs if row.stage in forecast]
    timed = [row for row in same if forecast[row.stage].seconds is not None]
    names.insert(-1, "all that was forecast")
    real.insert(-1, (*_spent(same)[:-1], _spent(timed)[-1]))
    expected.insert(-1, _expected([*forecast.values()]))
    pairs = zip(names, expected, real, strict=True)
    doubled = tuple(cell for column in head[1:] for cell in (f"{column}, forecast", column))
    return Table(
        (head[0], *doubled),
        tuple((name, *(cell for pair in zip(*cells, strict=True) for cell in pair)) for name, *cells in pairs),
    )


def _spent(rows: Sequence[StageCost]) -> tuple[str, ...]:
    """What stages asked and took."""
    calls = Calls.sum(row.calls for row in rows)
    return (*_cells(calls.answers, calls), clock(sum(row.seconds for row in rows)) if rows else "")


def _cells(answers: int, calls: Calls) -> tuple[str, ...]:
    numbers = (answers, calls.asked, calls.prompt_tokens, calls.completion_tokens)
    return (*(f"{count:,}" if count else "" for count in numbers), money(calls.cost) if calls.cost else "")


def _expected(forecasts: Sequence[StageForecast]) -> tuple[str, ...]:
    """What stages were expected to ask, in the columns of what they asked."""
    asked = [row.calls - (row.held or 0) for row in forecasts]
    calls = Calls(
        asked=sum(asked),
        prompt_tokens=sum(row.prompt_tokens for row in forecasts),
        completion_tokens=sum(row.completion_tokens for row in forecasts),
        cost=sum(row.cost for row in forecasts),
    )
    times = [row.seconds for row in forecasts if row.seconds is not None]
    return (*_cells(sum(row.calls for row in forecasts), calls), clock(sum(times)) if times else "")


def difference(before: str, after: str, keep: str) -> Iterator[tuple[str, str]]:
    """One of two texts, `keep` ("before" or "after"), as pieces that are in both ("same") or in this one ("only")."""
    old, new = (re.findall(r"\s*\S+|\s+$", text) for text in (before, after))
    side = old if keep == "before" else new
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=len(old) > 2000)  # without, long texts take minutes
    for tag, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        start, end = (old_start, old_end) if keep == "before" else (new_start, new_end)
        if start < end:
            yield ("same" if tag == "equal" else "only"), "".join(side[start:end])


def facts(summary: BaseModel) -> Iterator[tuple[str, str, str]]:
    """The fields of a stage's summary: name, value and docstring, as text; parts of a summary follow field by field."""
    for name, field in type(summary).model_fields.items():
        value, label = getattr(summary, name), name.replace("_", " ")
        if isinstance(value, RewardQuality):
            continue  # it has a section of the page
        if isinstance(value, BaseModel):
            yield from ((f"{label}: {part}", text, meaning) for part, text, meaning in facts(value))
        else:
            yield label, _text(value), field.description or ""


def _key(key: str) -> str:
    """A key in words; a metric as the training's log calls it."""
    if key in {metrics.KL, metrics.LENGTH, metrics.CUT_OFF}:
        return key
    return words(key) if "/" in key else key.replace("_", " ")


def _text(value: object) -> str:
    """`yes`, `1,200`, `0.532`, `one; another`, `too long: 4; empty: 0`."""
    match value:
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}".replace("-", "−")
        case float():
            return number(value)
        case Mapping():
            return "; ".join(f"{_key(key)}: {_text(part)}" for key, part in value.items()) or "none"
        case tuple():
            return "; ".join(map(_text, value)) or "none"
    return "none" if value is None else str(value)


def _visible(value: object) -> object:
    return value.translate(CONTROL) if isinstance(value, str) and not isinstance(value, Markup) else value
