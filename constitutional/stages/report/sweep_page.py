"""One page that compares many runs, put together by `sweep.j2`: numbers come in, HTML goes out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Final, NamedTuple

from markupsafe import Markup

from constitutional.base.effects import Effect
from constitutional.base.progress import counted
from constitutional.engines.spending import Calls
from constitutional.stages.report import charts
from constitutional.stages.report.data import FEW, TOO_FEW
from constitutional.stages.report.page import environment
from constitutional.stages.report.sweep_data import (
    CONTROL,
    Best,
    ComparedRun,
    EffectRow,
    Pulls,
    RatioRow,
    Sources,
    axes,
    best_of,
    columns,
    conflicts,
    differing,
    front,
    opposite,
    ratios,
    sources,
    units_of,
    variants,
)
from constitutional.stages.report.verdicts import words
from constitutional.stages.summaries import Direction

CURVES: Final = 6
"""Measures that are drawn against the share of people's comparisons."""
NAMED: Final = 3
"""Effects that the verdict names for a principle."""


class Unfinished(NamedTuple):
    """A job that cannot be compared."""

    name: str
    state: str
    why: str


def verdict(found: Sources | None, best: Best | None, runs: int, units: Mapping[str, str]) -> list[str]:
    """What the page says first, a sentence a principle."""
    sentences, effects = list[str](), list[tuple[float, str, str]]()
    principles = [row for row in found.rows if row.principle and row.hint != CONTROL] if found else []
    for row in principles:
        clear = sorted((cell for cell in row.cells.items() if cell[1].clear), key=lambda cell: -cell[1].strength)
        prompts = max((cell.estimate.prompts for cell in row.cells.values()), default=0)
        did = [_did(measure, effect, units[measure]) for measure, effect in clear[:NAMED]]
        effects += [(clear[0][1].strength, row.principle, did[0])] if clear else []
        did += [f"had {len(clear) - NAMED} more clear effects"] if len(clear) > NAMED else []
        nothing = f"did nothing that is clear, on {counted(prompts, 'prompt')}{f': {TOO_FEW}' if prompts < FEW else ''}"
        if row.cells and prompts >= FEW:
            measure, effect = max(row.cells.items(), key=lambda cell: cell[1].strength)
            share = units[measure] == "share"
            ends = [_signed(end, share=share) for end in (effect.estimate.value, effect.low, effect.high)]
            unit = "points" if share else units[measure]
            nothing += f"; nearest to it: {' '.join(filter(None, (_lower(measure), ends[0], unit)))} "
            nothing += f"({ends[1]} to {ends[2]})"
        sentences.append(f"{row.principle} {'; '.join(did) or nothing}.")
    if found and any(row.hint == CONTROL for row in found.rows):
        count = counted(found.controls_clear, "clear effect")
        rows = [row for row in found.rows if row.hint == CONTROL and any(cell.clear for cell in row.cells.values())]
        luck = (
            f"had {count} all the same ({', '.join(row.principle for row in rows)}): there the order of the words does "
            "not matter to the models, or their meaning does not. Such a control controls nothing."
        )
        sentences.append(
            f"Principles with shuffled words {luck if found.controls_clear else 'did nothing that is clear.'}"
        )
    if principles:
        most = "; {1} did most: it {2}".format(*max(effects)) if effects else ""
        of = f"Of {counted(len(principles), 'principle')}, {len(effects) or 'none'} clearly changed what the model does"
        sentences.insert(0, f"{of}{most}.")
    elif best:
        sentences.append(
            f"Of {counted(runs, 'run')}, {best.variant.name} has the {best.measure}: {best.value}. {best.remark}"
        )
    return sentences


def _did(measure: str, effect: Effect, unit: str) -> str:
    return f"{'raised' if effect.estimate.value > 0 else 'lowered'} {_lower(measure)} by {_size(effect, unit)}"


def _lower(measure: str) -> str:
    text = words(measure)
    return text[:1].lower() + text[1:]


def _size(effect: Effect, unit: str) -> str:
    ends = [abs(end) for end in (effect.estimate.value, effect.low, effect.high)]
    size, low, high = (f"{100 * end:.0f}" if unit == "share" else f"{end:.1f}" for end in (ends[0], *sorted(ends[1:])))
    return f"{' '.join(filter(None, (size, 'points' if unit == 'share' else unit)))} ({low} to {high})"


def render(
    runs: Sequence[ComparedRun],
    unfinished: Sequence[Unfinished],
    objective: tuple[str, float | None] | None,
    pulls: tuple[Pulls, float],
    files: Sequence[str],
    command_of: Callable[[str], str],
) -> str:
    """The page as one HTML text that needs nothing else.

    Args:
        runs: two or more finished runs.
        unfinished: jobs that are only listed.
        objective: which run is the best, and the largest over-refusal that it may have; None for the fewest violations.
        pulls: what principles say of the same comparisons, and the margin of a preference.
        files: the names of the files with the numbers.
        command_of: the command that repeats a run, by name; empty where nobody knows.
    """
    many = variants(runs)
    found = sources(many)
    wanted = (found.whole if found else many[0]).runs[0].wanted
    meant = [variant for variant in many if not (found and variant.name in found.controls)]
    best, measured = best_of(meant, *(objective or ("violations", None))), axes(meant)
    rows = ratios(many)
    points = front(meant, measured) if measured else []
    names, body = differing(runs)
    units = units_of(runs)
    page = (
        environment()
        .get_template("sweep.j2")
        .render(
            title=f"{counted(len(runs), 'run')} compared",
            sentences=verdict(found, best, len(runs), units),
            runs=runs,
            variants=many,
            unfinished=unfinished,
            controlled=found is not None and any(row.hint == CONTROL for row in found.rows),
            found=found,
            best=best,
            commands=[command for run in best.variant.runs if (command := command_of(run.name))] if best else [],
            wanted=wanted,
            units=units,
            columns=columns,
            points=points,
            axes=measured,
            ratios=rows,
            ratio_figures=list(ratio_figures(rows, wanted, units)) if rows else [],
            conflicts=conflicts(*pulls),
            opposite=opposite(found.rows) if found else [],
            keys=names,
            settings=list(zip(runs, body, strict=True)),
            files=files,
            cell=cell_of,
            shown=shown_effect,
            drawn=front_plot(points, (measured[0][0], measured[1][0])) if measured else "",
        )
    )
    return page.lstrip()


class Cell(NamedTuple):
    """A cell of the heat map as it is shown."""

    css: str
    strength: int
    """Of the colour, 0 to 100."""
    sign: str
    value: str
    interval: str
    note: str


def cell_of(row: EffectRow, measure: str, unit: str, wanted: Mapping[str, Direction]) -> Cell | None:
    """None where the measure is not there."""
    return shown_effect(row.cells.get(measure), unit, wanted.get(measure))


def shown_effect(effect: Effect | None, unit: str, direction: Direction | None) -> Cell | None:
    """An effect with its colour: by whether it went as wanted, as strong as it is large; none where it is not clear."""
    if effect is None:
        return None
    share, row = unit == "share", effect.estimate
    numbers = (row.value, effect.low, effect.high)
    value, low, high = (_signed(end, share=share) for end in numbers)
    if effect.clear and "0" in (low, high):  # its interval does not hold 0, though an end is rounded to it
        low, high = (_signed(end, share=share, digits=2) for end in numbers[1:])
    ends = f"{low} to {high}" if row.prompts > 1 else "not known"
    note = f"n = {row.prompts}" + (f", {row.seeds} seeds" if row.seeds > 1 else "")
    if row.prompts < FEW:
        return Cell("muted", 0, "?", value, ends, f"{note}: {TOO_FEW}")
    if not effect.clear:
        return Cell("muted", 0, "·", value, ends, f"{note}, no clear effect")
    depth = min(100, round(25 + 75 * abs(row.value))) if share else 60
    if direction is None:
        return Cell("moved", depth, "◆", value, ends, note)
    good = (row.value > 0) == (direction == "higher")
    return Cell(
        "good" if good else "bad",
        depth,
        "▲" if good else "▼",
        value,
        ends,
        f"{note}, {'as wanted' if good else 'against what is wanted'}",
    )


def _signed(value: float, *, share: bool, digits: int = 0) -> str:
    text = f"{100 * value:.{digits}f}" if share else f"{value:.{digits + 1}f}"
    text = "0" if float(text) == 0 else text
    return f"+{text}" if float(text) > 0 else text.replace("-", "−")


def front_plot(points: Sequence[charts.Place], titles: tuple[str, str]) -> Markup:
    """Variants between helpfulness (across) and harmlessness (up); only those on the front have their names beside."""
    x = charts.axis_for([end for point in points for end in point.x])
    y = charts.axis_for([end for point in points for end in point.y])
    x, y = (axis._replace(percent=True) for axis in (x, y))
    return charts.scatter(x, y, points, titles)


def ratio_figures(
    rows: Sequence[RatioRow], wanted: Mapping[str, Direction], units: Mapping[str, str]
) -> Iterator[tuple[str, Markup]]:
    """For the measures that move most, curves over the share of people's comparisons, and over the cost."""
    shared = set.intersection(*(set(row.measures) for row in rows))

    def spread(measure: str) -> float:
        values = [row.measures[measure] for row in rows]
        width = fmean(high - low for _, low, high in values)
        return (max(values)[0] - min(values)[0]) / max(width, 1e-9)

    chosen = sorted(shared, key=lambda measure: (measure not in wanted, -spread(measure)))[:CURVES]
    name, cost_of = cost_axis([row.calls for row in rows])
    for title, across in (
        ("share of people’s comparisons", [row.share for row in rows]),
        (name, [cost_of(row.calls) for row in rows]),
    ):
        if len(set(across)) < 2:
            continue
        x = charts.SHARES if title.startswith("share") else charts.axis_for(across)
        for measure in chosen:
            ends = [end for row in rows for end in row.measures[measure]]
            y = charts.SHARES if units[measure] == "share" else charts.axis_for([0.0, *ends])
            points = [
                (
                    at,
                    charts.Mark(2, *row.measures[measure], f"{row.share:.0%} people’s: {row.measures[measure][0]:.3g}"),
                )
                for at, row in zip(across, rows, strict=True)
            ]
            line = charts.Line(2, tuple(sorted((at, mark.value) for at, mark in points)), words(measure))
            yield words(measure), charts.curve(x, y, [line], title, points)


def cost_axis(calls: Sequence[Calls]) -> tuple[str, Callable[[Calls], float]]:
    """What a run cost, in the best unit that all runs know."""
    if all(row.cost for row in calls):
        return "cost of a run", lambda row: row.cost
    if all(row.tokens for row in calls):
        return "tokens of a run", lambda row: float(row.tokens)
    return "model calls of a run", lambda row: float(row.answers)
