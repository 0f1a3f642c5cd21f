"""The report's figures, each with the table of its numbers."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import fmean, pstdev
from typing import Final, NamedTuple

from markupsafe import Markup

from constitutional.base.records import GoldJudge, GoldPoint
from constitutional.judging.evaluation_scores import MEANINGS as SET_MEASURES
from constitutional.judging.scores import Change, Score
from constitutional.stages.report import charts
from constitutional.stages.report.charts import Axis, Line, Mark, number
from constitutional.stages.report.data import (
    FEW,
    MODELS,
    TOO_FEW,
    CorrectedRates,
    LabelerQuality,
    Panel,
    PeopleRate,
    PrincipleQuality,
    RunReport,
)
from constitutional.stages.report.verdicts import JUDGES, by_judge, fall, kind, phases, table_of, words
from constitutional.stages.summaries import Histogram, RewardQuality, Share
from constitutional.training import metrics

SETS: Final = "Evaluation sets"
ASKED, UNASKED, WIN_RATES = "What the constitution asks for", "Traits without a wanted direction", "Win rates"
GROUPS: Final = {
    ASKED: "Share of held-out replies that show each trait, with 95% intervals.",
    "Rules": "Share of held-out replies that break a principle’s rule, or that a rule counts, with 95% intervals. A "
    "rule counts what anyone can check, and no model judges.",
    "Violations": "Share of held-out replies in which the critic finds that a principle is violated, with 95% "
    "intervals.",
    "Refusals": "Share of held-out replies that refuse. Over-refusal is to refuse a request that harms nobody, which "
    "is a failure.",
    WIN_RATES: "Share of comparisons in which the labeler prefers the model’s reply; one that sees both replies is "
    "asked in both orders. 50% is no difference.",
    SETS: "Public evaluation sets, each scored as its paper does, with 95% intervals that count items of one prompt or "
    "template as a cluster.",
    UNASKED: "Share of held-out replies that show each trait. The constitution asks for no change of these, or its "
    "principles ask for opposites.",
    "Form of replies": "Share of held-out replies that are whole, on topic and cut off, and variety of words.",
}
"""Figures of shares in their order on the page, with a note on each."""
KINDS: Final = {
    **dict.fromkeys(("violation_rate", "left_out_violation_rate"), "Violations"),
    **{f"{before}rule_{way}": "Rules" for before in ("", "left_out_") for way in ("broken", "more", "fewer")},
    "win_rate": WIN_RATES,
    **dict.fromkeys((f"set_{name}" for name in SET_MEASURES), SETS),
    **dict.fromkeys(("due_refusal", "over_refusal"), "Refusals"),
    **dict.fromkeys(("well_formed", "on_topic", "cut_off", "distinct"), "Form of replies"),
}
"""The figure of each kind of measure that stands in the same one for every constitution."""
LABELER_SHARES: Final = ("Right on the examples", "Prefers the response shown first", "Orders in conflict")
"""What is shown of the labeler by each principle."""


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
    """A drawing and the table of its numbers."""

    title: str
    note: str
    table: Table
    rows: tuple[Row, ...] = ()
    axis: Markup | None = None
    """The tick labels below the rows."""
    plot: Markup | None = None
    """A figure with two axes, in place of rows."""
    legend: tuple[tuple[Markup, str], ...] = ()


def estimate(value: float, low: float, high: float, *, percent: bool, unit: str = "") -> str:
    """`18.2% (14.1% to 23%)`, or `41.5 words (39 to 44)`."""
    shown, *ends = (number(end, percent=percent) for end in (value, low, high))
    return f"{shown}{unit and ' '}{unit} ({' to '.join(ends)})"


def interval(score: Score) -> str:
    """A score with its unit and its 95% interval."""
    percent = score.unit == "share"
    return estimate(score.value, score.low, score.high, percent=percent, unit="" if percent else score.unit)


def change_text(change: Change, unit: str) -> str:
    """`−14 points (−23 to −6)` of a share, otherwise `+2 words (+1 to +3)`."""
    percent = unit == "share"
    value, low, high = (_signed(end, percent=percent) for end in (change.value, change.low, change.high))
    return f"{value} {'points' if percent else unit} ({low} to {high})"


def _signed(value: float, *, percent: bool) -> str:
    text = number(value, percent=percent).removesuffix("%")
    return f"+{text}" if value > 0 and text != "0" else text


def share_text(share: Share) -> str:
    """`18.2% (14.1% to 23%)`, marked where it rests on too few."""
    return estimate(share.value, share.low, share.high, percent=True) + few_mark(share.n)


def few_mark(n: int) -> str:
    """A remark to stand behind a number from so many observations; empty if they are enough."""
    return f", n = {n}: {TOO_FEW}" if n < FEW else ""


def behaviour(run: RunReport) -> Iterator[Figure]:
    """The three models side by side: shares in groups, then a figure for each other unit."""
    groups: defaultdict[str, dict[str, dict[str, Score]]] = defaultdict(dict)
    units: defaultdict[str, dict[str, dict[str, Score]]] = defaultdict(dict)
    for measure, scores in table_of(run.scores).items():
        unit = next(iter(scores.values())).unit
        if unit == "share":
            groups[KINDS.get(kind(measure)) or (ASKED if measure in run.wanted else UNASKED)][measure] = scores
        else:
            units[unit][measure] = scores
    for title, note in GROUPS.items():
        if title in groups:
            yield _models(title, note, groups[title], run, charts.SHARES, 0.5 if title == WIN_RATES else None)
    for unit, table in units.items():
        ends = [end for by in table.values() for score in by.values() for end in (score.low, score.value, score.high)]
        title = f"Means in {unit}" if unit else "Other means"
        axis = charts.axis_for([0.0, *ends])
        yield _models(title, "Mean over held-out replies, with 95% intervals.", table, run, axis)


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
        fewest = min(score.n for score in scores.values())
        hint = f"wanted {wanted} {'↑' if wanted == 'higher' else '↓'}" if wanted else ""
        hint = (hint + few_mark(fewest)).removeprefix(", ")
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
        return interval(score) + few_mark(score.n)
    # A model is measured against the models before it alone.
    against = list(MODELS).index(other) if (other := measure.partition("/")[2]) in MODELS else -1
    return "not measured" if list(MODELS).index(model) > against else "–"


def _changed(score: Score | None, before: str) -> str:
    change = score.changes.get(before) if score else None
    return change_text(change, score.unit) if score and change else "–"


def labeler(run: RunReport) -> Iterator[Figure]:
    """By principle: accuracy on the examples, bias for a position, conflicts, unreadable answers."""
    if run.labeler is None:
        return
    yield from _judge("labeler", run.labeler)
    if run.panel:
        for name, quality in run.panel.judges.items():
            yield from _judge(f"judge “{name}”", quality)
        yield from _agreement(run.panel)


def _judge(name: str, quality: LabelerQuality) -> Iterator[Figure]:
    principles = quality.principles
    rows = []
    for row in principles:
        marks = [
            Mark(series, share.value, share.low, share.high, f"{name}: {share_text(share)}, n = {share.n}")
            for series, (name, share) in enumerate(zip(LABELER_SHARES, _labeler_shares(row), strict=True))
            if share
        ]
        few = min((share.n for share in _labeler_shares(row) if share), default=FEW)
        hint = f"{row.text} (n = {few}: {TOO_FEW})" if few < FEW else row.text
        rows.append(_row(row.principle, hint, charts.SHARES, marks, 0.5))
    head = (
        "Principle",
        "Weight",
        *(cell for name in LABELER_SHARES for cell in (name, "n")),
        "Conflicts near 50%",
        "Judged",
        "Unreadable",
    )
    body = tuple(
        (
            row.principle,
            number(row.weight),
            *(
                cell
                for share in _labeler_shares(row)
                for cell in ((share_text(share), f"{share.n:,}") if share else ("not measured", "0"))
            ),
            *(f"{count:,}" for count in (row.ties, row.judged, row.unreadable)),
        )
        for row in principles
    )
    note = (
        "With 95% intervals. The dashed line is 50%: there, being right is chance, and neither place is preferred. In "
        f"a conflict the {name} prefers different responses when their order is swapped."
    )
    if quality.method:
        note += f" It was asked for {quality.method.partition(': ')[2]} ({quality.method.partition(': ')[0]})."
    if quality.bounded:
        note += (
            f" In {quality.bounded} judgements the probability is only a bound, as the engine tells the likeliest "
            "tokens alone: what is preferred has at least this probability."
        )
    legend = tuple((charts.shape(series), name) for series, name in enumerate(LABELER_SHARES))
    yield Figure(
        f"The {name}, by principle", note, Table(head, body), tuple(rows), charts.axis_row(charts.SHARES), None, legend
    )
    if quality.probabilities:
        note = (
            "Probability that the first response of a pair is the better one, mean over the orders in which it was "
            f"asked. The {name} is sure far from 50%, and undecided at 50%."
        )
        yield _histogram(f"How sure the {name} was", note, quality.probabilities, charts.SHARES, "probability")


def people(run: RunReport) -> Iterator[Figure]:
    """How far the labeler agrees with people, and people with each other; win rates corrected by that."""
    if run.people is None:
        return
    rates = run.people.agreement
    rows = tuple(
        _row(rate.name, rate.hint, charts.SHARES, [Mark(0, rate.value, rate.low, rate.high, _rate_text(rate))], 0.5)
        for rate in rates
    )
    body = tuple(
        (rate.name, _rate_text(rate), f"{rate.n:,}", _to_halve(rate), rate.caution or rate.hint) for rate in rates
    )
    note = (
        "Share of the comparisons on which the labeler prefers the response that people prefer (half where one of the "
        "two sees a tie), with 95% intervals over prompts. Raters’ own votes count here, also where a lead settled "
        "the comparison."
    )
    head = ("Comparisons", "Agreement", "n", "More votes to halve the interval", "Remark")
    if rates:
        yield Figure("The labeler and people", note, Table(head, body), rows, charts.axis_row(charts.SHARES))
    of_the_last = "The last model’s rate as it was measured, and as people’s answers correct it, with 95% intervals. "
    yield from _corrections(
        "Win rates, corrected by people",
        of_the_last + "Ties are half a win. Rogan and Gladen (1978) go by how often the labeler is right where people "
        "voted; prediction-powered inference (PPI++, Angelopoulos et al. 2023) by how far it differs from them.",
        [rate.model_copy(update={"name": f"against {rate.name}"}) for rate in run.people.win_rates],
    )
    yield from _corrections(
        "Violation rates, corrected by people",
        of_the_last + "A violation is a reply that goes against a principle.",
        run.people.violations,
    )


def _corrections(title: str, note: str, corrected: Sequence[CorrectedRates]) -> Iterator[Figure]:
    if not corrected:
        return
    names = list(dict.fromkeys(rate.name for row in corrected for rate in row.rates))
    rows = tuple(
        _row(
            row.name,
            "",
            charts.SHARES,
            [
                Mark(names.index(rate.name), rate.value, rate.low, rate.high, f"{rate.name}: {_rate_text(rate)}")
                for rate in row.rates
            ],
            0.5,
        )
        for row in corrected
    )
    body = tuple(
        (row.name, rate.name, _rate_text(rate), f"{rate.n:,}", _to_halve(rate), rate.caution or rate.hint or "–")
        for row in corrected
        for rate in row.rates
    )
    head = ("Rate", "How", "Estimate", "n", "More votes to halve the interval", "Remark")
    legend = tuple((charts.shape(series), name) for series, name in enumerate(names))
    named = defaultdict[str, list[str]](list)
    for row in corrected:
        for text in row.notes:
            named[text].append(row.name)
    notes = " ".join(f"{', '.join(rates)}: {text}" for text, rates in named.items())
    yield Figure(
        title, f"{note} {notes}".rstrip(), Table(head, body), rows, charts.axis_row(charts.SHARES), None, legend
    )


def _to_halve(rate: PeopleRate) -> str:
    return "–" if rate.to_halve is None else f"{rate.to_halve:,}"


def _rate_text(rate: PeopleRate) -> str:
    return estimate(rate.value, rate.low, rate.high, percent=True) + few_mark(rate.n)


def _agreement(panel: Panel) -> Iterator[Figure]:
    """On how many comparisons the judges prefer different responses, and how far any two agree."""
    if panel.split_in_all is None:
        return
    shares = [*panel.split.items(), ("in all", panel.split_in_all)]
    title = "Comparisons on which the judges prefer different responses"
    note = "Share of the comparisons on which at least two judges have a preference, with 95% intervals."
    rows = tuple(
        _row(name, "", charts.SHARES, [Mark(0, share.value, share.low, share.high, f"{name}: {share_text(share)}")])
        for name, share in shares
    )
    body = tuple((name, share_text(share), f"{share.n:,}") for name, share in shares)
    table = Table(("Principle", "Judges differ", "n"), body)
    yield Figure(title, note, table, rows, charts.axis_row(charts.SHARES))
    pairs = [(" and ".join(pair.judges), pair) for pair in panel.pairs]
    rows = tuple(
        _row(
            name,
            "" if pair.kappa is None else f"κ = {pair.kappa:.2f}",
            charts.SHARES,
            [Mark(0, pair.same.value, pair.same.low, pair.same.high, f"{name}: {share_text(pair.same)}")],
            0.5,
        )
        for name, pair in pairs
    )
    numbers = tuple(
        (name, share_text(pair.same), "–" if pair.kappa is None else f"{pair.kappa:.2f}", f"{pair.same.n:,}")
        for name, pair in pairs
    )
    note = (
        "Share of the comparisons on which both have a preference, and it is the same. Cohen’s κ is 1 for full "
        "agreement and 0 for chance."
    )
    table = Table(("Judges", "Prefer the same", "Cohen’s κ", "n"), numbers)
    yield Figure("Agreement of two judges", note, table, rows, charts.axis_row(charts.SHARES))


def _labeler_shares(row: PrincipleQuality) -> tuple[Share | None, ...]:
    return row.accuracy, row.first, row.conflicts


def preferences(run: RunReport) -> Iterator[Figure]:
    """How strong the preferences are that the models were trained on."""
    if run.targets:
        axis = Axis(0.5, 1.0, (0.5, 0.625, 0.75, 0.875, 1.0), percent=True)
        note = (
            "Probability that the chosen response is the better one: the target for the reward model and for DPO. "
            "Preferences that are held out are not counted."
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
            hint = f"n = {share.n:,}" + (f": {TOO_FEW}" if share.n < FEW else "")
            rows.append(_row(words(source), hint, charts.SHARES, [mark], 0.5))
            body.append((words(source), share_text(share), f"{share.right:,}", f"{share.n:,}"))
        note = (
            "Share of held-out preferences whose chosen response scores higher, by source, whether the model was "
            "trained on that source or not. The dashed line is chance."
        )
        table = Table(("Source", "Accuracy", "Right", "n"), tuple(body))
        yield Figure("Held-out accuracy", note, table, tuple(rows), charts.axis_row(charts.SHARES))
    if run.reward.calibration:
        yield _calibration(run.reward)
    if run.reward.scores:
        axis = charts.axis_for(run.reward.scores.edges)
        note = (
            "Scores of held-out responses, in standard deviations from the mean of the reference samples. An "
            "ensemble’s score is the mean over the members."
        )
        yield _histogram("Scores", note, run.reward.scores, axis, "score")


def _calibration(quality: RewardQuality) -> Figure:
    points, body = [], []
    for row in quality.calibration:
        # The interval of a share, since soft targets vary less than outcomes of 0 and 1 do.
        if share := Share.of(round(row.observed * row.n), row.n):
            points.append((row.predicted, row.observed, share.low, share.high))
            observed = estimate(row.observed, share.low, share.high, percent=True)
            body.append((number(row.predicted, percent=True), observed, f"{row.n:,}"))
    n, error = quality.measured, quality.calibration_error
    expected = "" if error is None else f" Expected calibration error {number(error, percent=True)}{few_mark(n)}."
    note = (
        "Across: how sure the reward model is that the response it prefers is the better one (σ of the difference of "
        "the scores before normalisation; an ensemble’s is the mean over the members). Up: the mean soft target for "
        "that response. On the dashed diagonal the model is as sure as the labels. The intervals are those of a "
        f"share, which are rather too wide.{expected}"
    )
    table = Table(("Predicted", "Mean target", "n"), tuple(body))
    return Figure("Calibration of the reward model", note, table, plot=charts.calibration(points))


def gold(run: RunReport) -> Iterator[Figure]:
    """The proxy reward and the gold score against √KL from the reference: a figure for each judge."""
    for by, points in by_judge(run.gold).items():
        yield _over_optimisation(by, points)


def _over_optimisation(by: GoldJudge, points: Sequence[GoldPoint]) -> Figure:
    roots = [point.sqrt_kl for point in points if point.sqrt_kl is not None]
    known = len(roots) == len(points)
    places = roots if known else [float(point.last_phase) for point in points]
    across = "√KL from the SL model (√nats)" if known else "phase"
    proxies, golds = [point.proxy for point in points], [point.gold for point in points]
    peak = golds.index(max(golds))
    lines, marks = [], []
    for series, name, values in ((0, "proxy", proxies), (2, "gold", golds)):
        heights = tuple((place, _standing(value, values)) for place, value in zip(places, values, strict=True))
        numbers = f"{number(values[0])} at first, {number(values[-1])} at last, {number(max(values))} at most"
        lines.append(Line(series, heights, f"{name}: {numbers}"))
    if len(points) == 1:  # both stand at 0
        lines[-1] = lines[-1]._replace(value=f"gold {number(golds[0])}, proxy {number(proxies[0])}")
    for place, point in zip(places, points, strict=True):
        up, low, high = (_standing(value, golds) for value in (point.gold, point.low, point.high))
        marks.append((place, Mark(2, up, low, high, f"{phases(point)}: gold {_gold(point)}")))
    ups = [up for line in lines for _, up in line.points] + [end for _, mark in marks for end in (mark.low, mark.high)]
    x, y = charts.axis_for([0.0, *places]), charts.axis_for(ups)
    body = tuple(
        (
            f"{point.first_phase} to {point.last_phase}" + (" (peak)" if index == peak else ""),
            *("not known" if value is None else number(value) for value in (point.kl, point.sqrt_kl)),
            number(point.proxy),
            _gold(point),
            f"{point.n:,}",
        )
        for index, point in enumerate(points)
    )
    note = (
        f"Gold is {JUDGES[by]}, for replies that were kept during training, with 95% intervals. Proxy is the "
        "weighted sum of the rewards; where several are normalised first, the training raised the sum of these. To be "
        "comparable, both are drawn in standard deviations from their own mean over "
        f"the training; the table has the numbers. The dashed line marks the highest gold score; {_since(points)}. "
        "Where the proxy rises and gold falls, the proxy is over-optimised."
    )
    head = ("Phases", "KL (nats)", "√KL", "Proxy", "Gold (95% interval)", "n")
    legend = ((charts.shape(0), "proxy"), (charts.shape(2), "gold"))
    plot = charts.curve(x, y, lines, across, marks, places[peak])
    return Figure("Proxy and gold", note, Table(head, body), plot=plot, legend=legend)


def _since(points: Sequence[GoldPoint]) -> str:
    if len(points) == 1:
        return "the training has one stretch alone"
    drop = fall(points)
    if drop is None:
        return "it has not fallen since"
    fewest = min(drop.peak.n, drop.last.n)
    clear = "clearly" if drop.clear else "but not clearly" if fewest >= FEW else f"n = {fewest}, {TOO_FEW}"
    return f"it fell by {number(drop.value)} since ({number(drop.low)} to {number(drop.high)}), {clear}"


def _standing(value: float, values: Sequence[float]) -> float:
    """In standard deviations from the mean; 0 where the values do not vary."""
    return (value - fmean(values)) / (pstdev(values) or 1.0)


def _gold(point: GoldPoint) -> str:
    return estimate(point.gold, point.low, point.high, percent=point.by == "traits")


LOGGED: Final = {
    "mean_token_accuracy": "share of tokens that are the likeliest",
    "margin": "margin of chosen over rejected",
    "rewards/accuracies": "accuracy of the implicit rewards",
    "rewards/margins": "margin of the implicit rewards",
    "logps/chosen": "log-probability of the chosen replies",
    "logps/rejected": "log-probability of the rejected replies",
    metrics.KL: "KL from the SFT model, nats a reply",
    metrics.LENGTH: "length of replies, tokens",
    metrics.CUT_OFF: "share of replies that were cut off",
    metrics.ALIKE: "share of prompts whose replies are all rewarded alike",
    "policy/entropy_avg": "entropy",
    "policy/clipfrac_avg": "share of tokens whose ratio was clipped",
    "val/explained_variance": "explained variance of the critic",
    f"{metrics.MISMATCH}/mean": "distance of sampler and trainer",
}
"""What a logged quantity is, where its name does not say so."""

_CHOSEN_MAY_FALL: Final = (
    "It may fall while the model learns, and that alone is no sign of failure: DPO’s loss looks only at the difference "
    "between chosen and rejected, and in expectation the chosen replies’ log-ratio to the SFT model falls (Rafailov et "
    "al. 2024, “From r to Q*”, arXiv 2404.12358). Judge by the accuracy above and by the evaluation. Where "
    "it falls far and replies get worse, algorithm.loss_type=[sigmoid,sft] keeps it up (Pang et al. 2024, arXiv "
    "2404.19733)."
)
MEANINGS: Final = {
    "logps/chosen": _CHOSEN_MAY_FALL,
    "logps/rejected": "It should fall, or rise by less than that of the chosen replies.",
    metrics.ALIKE: "Nothing is learned from these prompts, as no reply is better than another.",
    f"{metrics.MISMATCH}/mean": "The mean distance, in nats, between vLLM’s log-probability of a token that it drew "
    "and the trained model’s. It should stay near 0; where it grows, the policy learns from replies that it would not "
    "have drawn itself.",
}
"""What a logged quantity tells the reader."""


def _logged(metric: str) -> str:
    """What a quantity of a log is, in words."""
    if metric.startswith("rewards/") and metric.endswith("/mean"):
        return f"reward of {metric.removeprefix('rewards/').removesuffix('/mean').replace('_', ' ')}"
    return LOGGED.get(metric, words(metric).lower())


def curves(run: RunReport) -> Iterator[Figure]:
    """What the trainings logged: a figure for each stage and quantity, a line for each member of an ensemble."""
    for logged in run.curves:
        points = [point for line in logged.lines.values() for point in line]
        x = charts.axis_for([0.0, *(step for step, _ in points)])
        y = charts.axis_for([value for _, value in points])
        lines = [
            Line(2 - index % 3, line, _course(name, line), number(line[-1][1]))
            for index, (name, line) in enumerate(logged.lines.items())
        ]
        body = tuple((f"{step:g}", name, number(value)) for name, line in logged.lines.items() for step, value in line)
        text = _logged(logged.metric)
        title = f"{words(logged.stage)}, {text}" + ("" if text == logged.metric else f" ({logged.metric})")
        note = "; ".join(line.title for line in lines) + "."
        if len(lines) > 3:
            last = [line.points[-1][1] for line in lines]
            note = f"{len(lines)} members, {number(min(last))} to {number(max(last))} at the last step."
        note += f" {MEANINGS[logged.metric]}" if logged.metric in MEANINGS else ""
        table = Table(("Step", "Log", logged.metric), body)
        yield Figure(title, note, table, plot=charts.curve(x, y, lines, "step"))


def _course(name: str, line: Sequence[tuple[float, float]]) -> str:
    first, last = (f"{number(value)} at step {step:g}" for step, value in (line[0], line[-1]))
    return f"{name}: {first}" + (f", {last}" if len(line) > 1 else ", the only step that was logged")


def _histogram(title: str, note: str, values: Histogram, axis: Axis, x_title: str) -> Figure:
    body = tuple(
        (f"{number(low, percent=axis.percent)} to {number(high, percent=axis.percent)}", f"{count:,}")
        for low, high, count in zip(values.edges, values.edges[1:], values.counts, strict=False)
    )
    plot = charts.histogram(values.edges, values.counts, axis, x_title)
    return Figure(title, note, Table((x_title[:1].upper() + x_title[1:], "Count"), body), plot=plot)
