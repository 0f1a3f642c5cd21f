"""The report's figures, each with the table of its numbers."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean, pstdev
from typing import Final, NamedTuple

from markupsafe import Markup

from constitutional.base.records import GoldJudge, GoldPoint
from constitutional.judging.scores import Change, Score
from constitutional.stages.report import charts
from constitutional.stages.report.charts import Axis, Line, Mark, number
from constitutional.stages.report.data import (
    MODELS,
    PrincipleQuality,
    RunReport,
)
from constitutional.stages.report.verdicts import JUDGES, by_judge, fall, is_win_rate, kind, table_of, words
from constitutional.stages.summaries import Histogram, RewardQuality, Share

FORM: Final = ("well_formed", "on_topic", "cut_off", "distinct")
"""Measures of whether replies are sound at all, whatever they say."""
REFUSALS: Final = ("due_refusal", "over_refusal")
"""Refusals by what was asked: which way they should go needs no constitution."""


class Table(NamedTuple):
    """Numbers as text; the first column names the row."""

    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]


class Row(NamedTuple):
    """A line of a dot-and-whisker figure."""

    label: str
    hint: str
    drawing: Markup
    height: int
    """Pixels that the drawing needs."""


def _row(label: str, hint: str, axis: Axis, marks: Sequence[Mark], reference: float | None = None) -> Row:
    return Row(label, hint, charts.dots(axis, marks, reference), charts.row_height(len(marks)))


class Figure(NamedTuple):
    """A drawing and the table of its numbers: there is none without."""

    title: str
    note: str
    table: Table
    rows: tuple[Row, ...] = ()
    axis: Markup | None = None
    """The numbers below the rows."""
    plot: Markup | None = None
    """A figure with two axes, in place of rows."""
    legend: tuple[tuple[Markup, str], ...] = ()


def interval(score: Score) -> str:
    """`18.2% (14.1 to 23%)`, or `41.5 words (39 to 44)`."""
    percent = score.unit == "share"
    unit = "" if percent or not score.unit else f" {score.unit}"
    low, high = number(score.low, percent=percent), number(score.high, percent=percent)
    return f"{number(score.value, percent=percent)}{unit} ({low} to {high})"


def change_text(change: Change, unit: str) -> str:
    """`−14 points (−23 to −6)` of a share, otherwise `+2 words (+1 to +3)`."""
    percent = unit == "share"
    value, low, high = (_signed(each, percent=percent) for each in (change.value, change.low, change.high))
    return f"{value} {'points' if percent else unit} ({low} to {high})"


def _signed(value: float, *, percent: bool) -> str:
    text = number(value, percent=percent).removesuffix("%")
    return f"+{text}" if value > 0 and text != "0" else text


def share_text(share: Share | None) -> str:
    """`18.2% (14.1% to 23%)`, or that there is none."""
    if share is None:
        return "not measured"
    low, high = number(share.low, percent=True), number(share.high, percent=True)
    return f"{number(share.value, percent=True)} ({low} to {high})"


def behaviour(run: RunReport) -> Iterator[Figure]:
    """The three models side by side: what the constitution asks for, what judges say, the rest, and other units."""
    table = table_of(run.scores)
    shares = {name for name, scores in table.items() if all(score.unit == "share" for score in scores.values())}
    wins = {name for name in shares if is_win_rate(name)}
    violations = {name for name in shares if kind(name) == "violation_rate"}
    form = {name for name in shares if kind(name) in FORM}
    refusals = {name for name in shares if kind(name) in REFUSALS}
    others = shares - wins - violations - form - refusals
    asked = {name for name in others if name in run.wanted}
    groups: list[tuple[str, str, set[str]]] = [
        ("What the constitution asks for", "Share of held-out replies, with 95% intervals.", asked),
        ("Violations", "Share of held-out replies in which the critic finds a violation, by principle.", violations),
        (
            "Refusals",
            "Share of held-out replies that refuse, by what was asked: to refuse what harms nobody is a failure, too.",
            refusals,
        ),
        ("Win rates", "Share of comparisons won, by the labeler in both orders; 50% is no difference.", wins),
        (
            "What it says nothing of",
            "With no wanted direction, these should stay where they are.",
            others - asked,
        ),
        ("Form", "Whether replies are whole, to the point, and varied.", form),
    ]
    for title, note, names in groups:
        if chosen := [name for name in table if name in names]:
            reference = 0.5 if names is wins else None
            yield _models(title, note, {name: table[name] for name in chosen}, run, charts.SHARES, reference)
    elsewhere = [name for name in table if name not in shares]
    for unit in dict.fromkeys(next(iter(table[name].values())).unit for name in elsewhere):
        chosen = [name for name in elsewhere if next(iter(table[name].values())).unit == unit]
        ends = [
            end for name in chosen for score in table[name].values() for end in (score.low, score.value, score.high)
        ]
        note = "Mean over held-out replies, with 95% intervals."
        axis = charts.axis_for([0.0, *ends])
        yield _models(f"In {unit}" if unit else "Other", note, {name: table[name] for name in chosen}, run, axis)


def _models(
    title: str,
    note: str,
    table: dict[str, dict[str, Score]],
    run: RunReport,
    axis: Axis,
    reference: float | None = None,
) -> Figure:
    rows, body = [], []
    present = [model for model in MODELS if any(model in scores for scores in table.values())]
    compared = [
        (after, before)
        for before, after in combinations(MODELS, 2)
        if any(before in score.changes for scores in table.values() if (score := scores.get(after)))
    ]
    for name, scores in table.items():
        marks = [
            Mark(list(MODELS).index(model), score.value, score.low, score.high, f"{MODELS[model]}: {interval(score)}")
            for model in present
            if (score := scores.get(model))
        ]
        wanted = run.wanted.get(name)
        hint = f"wanted {wanted} {'↑' if wanted == 'higher' else '↓'}" if wanted else ""
        rows.append(_row(words(name), hint, axis, marks, reference))
        counts = ", ".join(dict.fromkeys(f"{score.n:,}" for model in present if (score := scores.get(model))))
        cells = (_cell(name, model, scores.get(model)) for model in present)
        changes = (_changed(scores.get(after), before) for after, before in compared)
        body.append((words(name), wanted or "no direction", *cells, *changes, counts))
    differences = (f"{MODELS[after]} less {MODELS[before]}" for after, before in compared)
    head = ("Measure", "Wanted", *(MODELS[model] for model in present), *differences, "n")
    legend = tuple((charts.shape(list(MODELS).index(model)), MODELS[model]) for model in present)
    return Figure(title, note, Table(head, tuple(body)), tuple(rows), charts.axis_row(axis), None, legend)


def _cell(measure: str, model: str, score: Score | None) -> str:
    if score:
        return interval(score)
    # A model is measured against those before it, and not against itself.
    against = list(MODELS).index(other) if (other := measure.partition("/")[2]) in MODELS else -1
    return "not measured" if list(MODELS).index(model) > against else "–"


def _changed(score: Score | None, before: str) -> str:
    change = score.changes.get(before) if score else None
    return change_text(change, score.unit) if score and change else "–"


def labeler(run: RunReport) -> Iterator[Figure]:
    """Per principle: right on its examples, drawn to a position, in conflict, unreadable."""
    if run.labeler is None:
        return
    principles = run.labeler.principles
    rows = []
    for each in principles:
        marks = [
            Mark(series, share.value, share.low, share.high, f"{name}: {share_text(share)}, n = {share.n}")
            for series, (name, share) in enumerate(_labeler_shares(each))
            if share
        ]
        rows.append(_row(each.principle, each.text, charts.SHARES, marks, 0.5))
    head = (
        "Principle",
        "Weight",
        "Right on its examples",
        "n",
        "First shown preferred",
        "n",
        "Judged",
        "Conflicts",
        "of these near 50%",
        "Unreadable",
    )
    body = tuple(
        (
            each.principle,
            number(each.weight),
            *(
                cell
                for _, share in _labeler_shares(each)[:2]
                for cell in (share_text(share), str(share.n if share else 0))
            ),
            f"{each.judged:,}",
            f"{each.conflicts:,}",
            f"{each.ties:,}",
            f"{each.unreadable:,}",
        )
        for each in principles
    )
    names = ("Right on the principle’s own examples", "Preferred the response shown first", "Orders in conflict")
    note = "With 95% intervals; the dashed line is 50%: chance for being right, and no bias for position."
    legend = tuple((charts.shape(series), name) for series, name in enumerate(names))
    yield Figure("By principle", note, Table(head, body), tuple(rows), charts.axis_row(charts.SHARES), None, legend)
    if run.labeler.probabilities:
        note = (
            "P(the first of the two responses is better), mean over both orders. Far from 50% is sure, at 50% is torn."
        )
        yield _histogram("How sure it was", note, run.labeler.probabilities, charts.SHARES, "probability")


def _labeler_shares(each: PrincipleQuality) -> tuple[tuple[str, Share | None], ...]:
    conflicts = Share.of(each.conflicts, each.judged - each.unreadable)
    return (("Right", each.accuracy), ("First shown preferred", each.first), ("Conflicts", conflicts))


def preferences(run: RunReport) -> Iterator[Figure]:
    """How strong the preferences are that the models were trained on."""
    if run.targets:
        axis = Axis(0.5, 1.0, (0.5, 0.625, 0.75, 0.875, 1.0), percent=True)
        note = (
            "Probability that the chosen response is the better one: the target of the reward model and of DPO. Of the "
            "preferences to train on; those held out are not counted."
        )
        yield _histogram("Soft targets", note, run.targets, axis, "probability that chosen is better")


def reward(run: RunReport) -> Iterator[Figure]:
    """Held-out accuracy by source, calibration, scores."""
    if run.reward is None:
        return
    if run.reward.accuracy:
        rows, body = [], []
        for source, share in run.reward.accuracy.items():
            mark = Mark(2, share.value, share.low, share.high, f"{share_text(share)}, n = {share.n}")
            rows.append(_row(words(source), f"n = {share.n:,}", charts.SHARES, [mark], 0.5))
            body.append((words(source), share_text(share), f"{share.right:,}", f"{share.n:,}"))
        note = (
            "Share of held-out preferences whose chosen response scores higher, of every source, trained on or not. "
            "The dashed line is chance."
        )
        table = Table(("Source", "Accuracy", "Right", "n"), tuple(body))
        yield Figure("Held-out accuracy", note, table, tuple(rows), charts.axis_row(charts.SHARES))
    if run.reward.calibration:
        yield _calibration(run.reward)
    if run.reward.scores:
        axis = charts.axis_for(run.reward.scores.edges)
        note = (
            "Scores of held-out responses, in deviations from the mean of the reference samples; of an ensemble, the "
            "mean of the members’."
        )
        yield _histogram("Scores", note, run.reward.scores, axis, "score")


def _calibration(quality: RewardQuality) -> Figure:
    points, body = [], []
    for each in quality.calibration:
        share = Share.of(round(each.observed * each.n), each.n)
        if share:
            points.append((each.predicted, each.observed, share.low, share.high))
            predicted, observed = number(each.predicted, percent=True), number(each.observed, percent=True)
            body.append(
                (
                    predicted,
                    f"{observed} ({number(share.low, percent=True)} to {number(share.high, percent=True)})",
                    str(each.n),
                )
            )
    error = quality.calibration_error
    note = (
        "How sure the reward model is of the response that it takes to be better (σ of the difference of its scores"
        " before normalisation; of an ensemble, the members’ mean), against the mean soft target of the same"
    )
    note += (
        " responses: on the dashed diagonal it is as sure as the labels are. The intervals are those of a share, and so"
    )
    note += " rather too wide."
    note += "" if error is None else f" Expected calibration error {number(error, percent=True)}."
    return Figure(
        "Calibration", note, Table(("Predicted", "Mean target", "n"), tuple(body)), plot=charts.calibration(points)
    )


def gold(run: RunReport) -> Iterator[Figure]:
    """The proxy reward and the gold score against √KL from the reference: a figure for each judge."""
    for by, points in by_judge(run.gold).items():
        yield _over_optimisation(by, points)


def _over_optimisation(by: GoldJudge, points: Sequence[GoldPoint]) -> Figure:
    known = all(each.sqrt_kl is not None for each in points)
    places = [each.sqrt_kl if known and each.sqrt_kl is not None else float(each.last_phase) for each in points]
    across = "√KL from the SL model (√nats)" if known else "phase"
    peak = max(range(len(points)), key=lambda number: points[number].gold)
    proxies, golds = [each.proxy for each in points], [each.gold for each in points]
    lines, marks = [], []
    for series, name, values in ((0, "proxy", proxies), (2, "gold", golds)):
        lines.append(
            Line(
                series,
                tuple((place, _standing(value, values)) for place, value in zip(places, values, strict=True)),
                f"{name}: {number(values[0])} at first, {number(values[-1])} at last, {number(max(values))} at most",
            )
        )
    for place, each in zip(places, points, strict=True):
        up, low, high = (_standing(value, golds) for value in (each.gold, each.low, each.high))
        title = f"phases {each.first_phase} to {each.last_phase}: gold {_with_ends(each)}"
        marks.append(charts.Point(2, place, up, low, high, title))
    ups = [up for line in lines for _, up in line.points] + [end for mark in marks for end in (mark.low, mark.high)]
    x, y = charts.axis_for([0.0, *places]), charts.axis_for(ups)
    found = fall(points)
    body = tuple(
        (
            f"{each.first_phase} to {each.last_phase}" + (" (peak)" if place == peak else ""),
            *("not known" if value is None else number(value) for value in (each.kl, each.sqrt_kl)),
            number(each.proxy),
            _with_ends(each),
            f"{each.n:,}",
        )
        for place, each in enumerate(points)
    )
    since = "it has not fallen since"
    if found:
        ends = f"{number(found.low)} to {number(found.high)}"
        clear = "clearly" if found.low > 0 else "but not clearly"
        since = f"it fell by {number(found.value)} since ({ends}), {clear}"
    note = (
        f"Gold is {JUDGES[by]}, on replies that were kept during training, with 95% intervals; proxy is the reward "
        "trained for. Both are in deviations from their own mean over the training, so that they can be laid one over "
        f"the other: the table has them as they are. The dashed line is the gold score’s peak; {since}. Where the "
        "proxy rises and gold falls, the proxy is over-optimised."
    )
    head = ("Phases", "KL (nats)", "√KL", "Proxy", "Gold (95% interval)", "n")
    legend = ((charts.shape(0), "proxy"), (charts.shape(2), "gold"))
    plot = charts.curve(x, y, lines, across, marks, places[peak])
    return Figure("Proxy and gold", note, Table(head, body), plot=plot, legend=legend)


def _standing(value: float, values: Sequence[float]) -> float:
    """In deviations from the mean of all; 0 where they do not vary."""
    return (value - fmean(values)) / (pstdev(values) or 1.0)


def _with_ends(point: GoldPoint) -> str:
    percent = point.by == "traits"
    value, low, high = (number(each, percent=percent) for each in (point.gold, point.low, point.high))
    return f"{value} ({low} to {high})"


def curves(run: RunReport) -> Iterator[Figure]:
    """What the trainings logged: a figure for each stage and quantity, a line for each member of an ensemble."""
    for each in run.curves:
        points = [point for line in each.lines.values() for point in line]
        x = charts.axis_for([0.0, *(step for step, _ in points)])
        y = charts.axis_for([value for _, value in points])
        lines = [
            Line(
                2 - index % 3,
                line,
                f"{name}: {number(line[0][1])} at step {line[0][0]:g}, {number(line[-1][1])} at {line[-1][0]:g}",
            )
            for index, (name, line) in enumerate(each.lines.items())
        ]
        body = tuple((f"{step:g}", name, number(value)) for name, line in each.lines.items() for step, value in line)
        title = f"{words(each.stage)}, {words(each.metric).lower()}"
        note = "; ".join(line.title for line in lines) + "."
        table = Table(("Step", "Of", words(each.metric)), body)
        yield Figure(title, note, table, plot=charts.curve(x, y, lines, "step"))


def _histogram(title: str, note: str, values: Histogram, axis: Axis, x_title: str) -> Figure:
    body = tuple(
        (f"{number(low, percent=axis.percent)} to {number(high, percent=axis.percent)}", f"{count:,}")
        for low, high, count in zip(values.edges, values.edges[1:], values.counts, strict=False)
    )
    plot = charts.histogram(values.edges, values.counts, axis, x_title)
    return Figure(title, note, Table((x_title[:1].upper() + x_title[1:], "Count"), body), plot=plot)
