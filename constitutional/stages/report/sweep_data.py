"""What many runs say together: which principle did what, which runs are best, what conflicts, and what differs.

Runs that differ in nothing but their seed are one variant. Effects are over the held-out prompts and seeds that both
variants have.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

from constitutional.base.effects import (
    PRIOR_OF_DIFFERENCES,
    PRIOR_OF_SHARES,
    Effect,
    Estimate,
    Key,
    Values,
    corrected,
    estimate,
    missing_subsets,
    paired,
    pareto,
    shapley,
    with_common_seeds,
)
from constitutional.base.records import LABELER, Comparison, Judgement
from constitutional.base.stats import Interval, clustered_share
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.difference import difference
from constitutional.engines.spending import Calls
from constitutional.judging.scores import Score, plain
from constitutional.stages.report import charts
from constitutional.stages.report.comparison import COUNTED, TOLD, rule_behind, won
from constitutional.stages.report.data import FEW
from constitutional.stages.report.verdicts import kind
from constitutional.stages.summaries import Direction

NOT_THE_VARIANT: Final = (*TOLD, "seed")
"""Settings in which runs of one variant may differ."""
SEED_IN_NAME: Final = re.compile(r"-seed=\d+")
"""How a sweep writes a seed into a run's name."""
HARM: Final = ("trait_rate/harmful_compliance", "trait_rate/privacy_leak")
"""What the sandbox's detectors count as harm."""
CONTROL: Final = "control"
"""The hint of a row whose principle has its words in a random order."""
RATIO: Final = "mix.human_ratio"
EXAMPLES: Final = 3
"""Examples of a conflict."""


class ComparedRun(NamedTuple):
    """A finished run, as far as this page needs it."""

    name: str
    seed: int
    settings: dict[str, Any]
    """By dotted name."""
    constitution: Constitution
    critiqued: dict[str, str]
    """By id, the words by which the critic counted violations, of principles that the run leaves out too."""
    scores: tuple[Score, ...]
    """With the names that the run gave them; `values` has violations of principles that it leaves out among others."""
    values: dict[tuple[str, str], dict[str, float]]
    """By model and measure: what a score is the mean of, by prompt."""
    clusters: dict[str, str]
    """By prompt, where several depend on each other: which they are together."""
    wanted: dict[str, Direction]
    decided: Counter[str]
    """The AI's training pairs by the principle that decided them, and people's under an empty name."""
    calls: Calls
    """Of all stages, as if the run had had nothing to reuse."""


class Variant(NamedTuple):
    """Runs that differ in nothing but their seed."""

    name: str
    runs: tuple[ComparedRun, ...]

    def values(self, measure: str, model: str = "policy") -> dict[Key, float]:
        """By seed and prompt."""
        return {
            Key(run.seed, prompt, run.clusters.get(prompt, "")): value
            for run in self.runs
            for prompt, value in run.values.get((model, measure), {}).items()
        }

    @property
    def principles(self) -> dict[str, Principle]:
        """By id."""
        return {principle.id: principle for principle in self.runs[0].constitution.principles}


class EffectRow(NamedTuple):
    """A row of the heat map."""

    label: str
    hint: str
    principle: str
    """Empty where the row is of all principles, or of one that is reworded."""
    cells: dict[str, Effect]
    """By measure; none where it was not measured in both variants."""


class Contribution(NamedTuple):
    """What a principle has to do with a change; None where it was not run."""

    principle: str
    left_out: Effect | None
    """The whole constitution less the one without the principle."""
    control: Effect | None
    """The constitution with the principle's words shuffled less the one without it."""
    shapley: Effect | None

    @property
    def clear(self) -> bool:
        """Whether the principle itself did something that is clear."""
        return any(effect is not None and effect.clear for effect in (self.left_out, self.shapley))


class Attribution(NamedTuple):
    """A behaviour that training or a principle clearly changed, and what each principle has to do with it."""

    measure: str
    change: Effect
    """From the base model to the policy of the whole constitution."""
    parts: list[Contribution]


class Sources(NamedTuple):
    """Which principle did what, as far as the runs tell."""

    whole: Variant
    rows: list[EffectRow]
    alone: list[EffectRow]
    changed: list[Attribution]
    exact: bool | None
    """Whether the Shapley values are of all subsets; None where there are none."""
    controls: frozenset[str]
    """The names of variants whose words were shuffled."""
    missing: dict[int, int]
    """By size, subsets of principles that were not run."""
    seeds: int
    """The fewest that an effect of leaving out is over."""
    shapley_seeds: int
    """The fewest that a Shapley value is over: those that all subsets have."""
    decided: Counter[str]
    controls_clear: int
    """Clear effects of principles whose words were shuffled."""


class Conflict(NamedTuple):
    """Two principles that prefer different responses of the same comparisons."""

    pair: tuple[str, str]
    apart: int
    both: int
    """Comparisons on which both prefer a response."""
    interval: Interval
    examples: list[tuple[Comparison, float, float]]
    """With the probability that response a is better, by the first and by the second principle."""


class RatioRow(NamedTuple):
    """A share of people's comparisons and what came of it."""

    share: float
    variant: Variant
    pairs: float
    """Training pairs, a mean over seeds."""
    people: float
    calls: Calls
    measures: dict[str, tuple[float, float, float]]


# Variants and their numbers


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted names; what a setting of free names (weights, wordings) holds stays together."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value and not f"{prefix}{name}".startswith("constitution."):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[f"{prefix}{name}"] = value
    return result


def variants(runs: Iterable[ComparedRun]) -> list[Variant]:
    """The runs in groups that differ in nothing but their seed, in the order of the first of each."""
    groups: defaultdict[str, dict[int, ComparedRun]] = defaultdict(dict)
    for run in runs:
        # A run that was made twice under one seed counts once.
        groups[_variant_key(run)].setdefault(run.seed, run)
    named = [(_common_name(list(group.values())), tuple(group.values())) for group in groups.values()]
    names = [name for name, _ in named]
    return [Variant(of[0].name if names.count(name) > 1 else name, of) for name, of in named]


def _variant_key(run: ComparedRun) -> str:
    own = {key: value for key, value in run.settings.items() if key not in NOT_THE_VARIANT}
    made_by_sweep = SEED_IN_NAME.sub("", run.name)
    if made_by_sweep != run.name and own.get("constitution.wordings"):
        # A sweep shuffles the words of a control by the seed: the runs are told apart by their names.
        return json.dumps([made_by_sweep, {**own, "constitution.wordings": {}}], sort_keys=True)
    return json.dumps([run.constitution.digest, own], sort_keys=True)


def _common_name(runs: Sequence[ComparedRun]) -> str:
    """The runs' name without their seed, where there are several."""
    return SEED_IN_NAME.sub("", runs[0].name) if len(runs) > 1 else runs[0].name


def _prior(unit: str, *, differences: bool) -> tuple[tuple[float, float], ...]:
    if unit != "share":
        return ()
    return PRIOR_OF_DIFFERENCES if differences else PRIOR_OF_SHARES


def units_of(runs: Sequence[ComparedRun]) -> dict[str, str]:
    """The unit of each measure that is made prompt by prompt."""
    made = {measure for run in runs for model, measure in run.values if model == "policy"}
    return {plain(score.measure): score.unit for run in runs for score in run.scores if plain(score.measure) in made}


def _effects(
    rows: Sequence[tuple[str, str, str, Mapping[str, Mapping[Key, float]]]], units: Mapping[str, str]
) -> list[EffectRow]:
    """Rows of (label, hint, principle, differences by measure), with intervals for the number of all their cells."""
    places = [(at, measure) for at, row in enumerate(rows) for measure, values in row[3].items() if values]
    estimates: dict[tuple[int, str], Estimate] = {}
    for measure in dict.fromkeys(measure for _, measure in places):
        column = [at for at, of in places if of == measure]
        prior = _prior(units[measure], differences=True)
        alike = with_common_seeds([estimate(rows[at][3][measure], prior) for at in column])
        estimates |= {(at, measure): row for at, row in zip(column, alike, strict=True)}
    effects = corrected([estimates[place] for place in places])
    cells: list[dict[str, Effect]] = [{} for _ in rows]
    for (at, measure), effect in zip(places, effects, strict=True):
        cells[at][measure] = effect
    return [EffectRow(*row[:3], of_row) for row, of_row in zip(rows, cells, strict=True)]


# Which principle did what


def sources(many: Sequence[Variant]) -> Sources | None:
    """What principles did, by variants that differ in their principles alone; None where there are no such variants."""
    family = _family(many)
    whole = max(family, key=lambda variant: _answers(variant, family), default=None)
    if whole is None or not _subsets(whole, family):
        return None
    ids = list(whole.principles)
    games = {frozenset(variant.principles): variant for variant in family if _within(variant, whole)}
    units = {name: unit for name, unit in units_of(whole.runs).items() if kind(name) != "win_rate"}
    left_out = [
        (name, "", name, _differences(without, whole, units))
        for name in ids
        if (without := games.get(frozenset(ids) - {name}))
    ]
    for label, (name, hint, variant) in _rewordings(family, whole).items():
        if without := games.get(frozenset(ids) - {name}):
            left_out.append((label, hint, name if hint == CONTROL else "", _differences(without, variant, units)))
    alone = [
        (name, "", name, _from_base(games[frozenset({name})], units))
        for name in ids
        if len(ids) > 1 and frozenset({name}) in games
    ]
    rows = _effects(left_out, units)
    changes = _effects([("whole", "", "", _from_base(whole, units))], units)[0].cells
    by_shapley, exact = _shapley(games, whole, units)
    attributed = [
        Attribution(measure, change, _parts(measure, ids, rows, by_shapley))
        for measure, change in sorted(changes.items(), key=lambda item: -item[1].strength)
    ]
    return Sources(
        whole=whole,
        rows=rows,
        alone=_effects(alone, units),
        changed=[row for row in attributed if row.change.clear or any(part.clear for part in row.parts)],
        exact=exact,
        controls=frozenset(
            variant.name
            for variant in family
            if (name := _reworded(variant, whole)) and _is_shuffled(variant, whole, name)
        ),
        missing=missing_subsets([*games, frozenset()], ids),
        seeds=_fewest_seeds(rows),
        shapley_seeds=_fewest_seeds(by_shapley),
        decided=sum((run.decided for run in whole.runs), Counter[str]()),
        controls_clear=sum(cell.clear for row in rows if row.hint == CONTROL for cell in row.cells.values()),
    )


def _fewest_seeds(rows: Sequence[EffectRow]) -> int:
    return min((cell.estimate.seeds for row in rows for cell in row.cells.values()), default=1)


def _parts(
    measure: str, ids: Sequence[str], rows: Sequence[EffectRow], by_shapley: Sequence[EffectRow]
) -> list[Contribution]:
    left_out, controls, shares = (
        {row.principle: row.cells.get(measure) for row in of if (row.hint == CONTROL) == is_control}
        for of, is_control in ((rows, False), (rows, True), (by_shapley, False))
    )
    return [Contribution(name, left_out.get(name), controls.get(name), shares.get(name)) for name in ids]


def _family(many: Sequence[Variant]) -> list[Variant]:
    """The most variants that differ in their constitution alone."""
    groups: defaultdict[str, list[Variant]] = defaultdict(list)
    for variant in many:
        settings = variant.runs[0].settings
        told = {key for key in settings if key in NOT_THE_VARIANT or key.startswith("constitution.")}
        groups[json.dumps({key: settings[key] for key in settings if key not in told}, sort_keys=True)].append(variant)
    return max(groups.values(), key=len, default=[])


def _within(variant: Variant, whole: Variant) -> bool:
    """Whether a variant's principles are all among those of another, with the same words and weights."""
    return all(whole.principles.get(name) == principle for name, principle in variant.principles.items())


def _subsets(whole: Variant, family: Sequence[Variant]) -> int:
    return sum(_within(variant, whole) and len(variant.principles) < len(whole.principles) for variant in family)


def _answers(whole: Variant, family: Sequence[Variant]) -> tuple[int, int, int]:
    """How much a constitution's subsets tell of it: those without one principle first, then all; then its size."""
    single = sum(_within(variant, whole) and len(variant.principles) == len(whole.principles) - 1 for variant in family)
    return single, _subsets(whole, family), len(whole.principles)


def _reworded(variant: Variant, whole: Variant) -> str:
    """The one principle that has other words in a variant, which has all principles; empty where there is none."""
    if variant.principles.keys() != whole.principles.keys():
        return ""
    changed = [name for name, principle in variant.principles.items() if principle != whole.principles[name]]
    if len(changed) != 1 or variant.principles[changed[0]].weight != whole.principles[changed[0]].weight:
        return ""
    return changed[0]


def _rewordings(family: Sequence[Variant], whole: Variant) -> dict[str, tuple[str, str, Variant]]:
    """By label: (the principle that has other words, a hint, the runs). Every seed shuffles words in its own order."""
    rows: dict[str, tuple[str, str, Variant]] = {}
    for variant in family:
        if name := _reworded(variant, whole):
            shuffled = _is_shuffled(variant, whole, name)
            label = f"{name}, words shuffled" if shuffled else f"{name} as in {variant.name}"
            before = rows[label][2].runs if label in rows else ()
            hint = CONTROL if shuffled else variant.principles[name].text
            rows[label] = name, hint, Variant(label, (*before, *variant.runs))
    return rows


def _is_shuffled(variant: Variant, whole: Variant, name: str) -> bool:
    return sorted(variant.principles[name].text.split()) == sorted(whole.principles[name].text.split())


def _differences(before: Variant, after: Variant, units: Iterable[str]) -> dict[str, dict[Key, float]]:
    """By measure."""
    measures = [name for name in units if _means_the_same(name, (*before.runs, *after.runs))]
    return {name: paired(before.values(name), after.values(name)) for name in measures}


def _means_the_same(measure: str, runs: Iterable[ComparedRun]) -> bool:
    """Whether runs mean the same by a measure: violations are of the same words, and a rule counts the same."""
    if kind(measure) in COUNTED:
        return len({rule_behind(measure, run.constitution) for run in runs}) == 1
    name = measure.partition("/")[2]
    return kind(measure) != "violation_rate" or len({run.critiqued.get(name) for run in runs}) == 1


def _from_base(variant: Variant, units: Iterable[str]) -> dict[str, dict[Key, float]]:
    return {name: paired(variant.values(name, "base"), variant.values(name)) for name in units}


def _shapley(
    games: Mapping[frozenset[str], Variant], whole: Variant, units: Mapping[str, str]
) -> tuple[list[EffectRow], bool | None]:
    """A row for each principle; no rows and None where the subsets do not suffice.

    Without principles nothing is trained: the base model is what no principle makes.
    """
    ids, exact = list(whole.principles), None
    values: dict[str, dict[str, dict[Key, float]]] = {name: {} for name in ids}
    for measure in units:
        played: dict[frozenset[str], Values] = {
            game: variant.values(measure)
            for game, variant in games.items()
            if _means_the_same(measure, (*variant.runs, *whole.runs))
        }
        played[frozenset()] = whole.values(measure, "base")
        if result := shapley({game: of for game, of in played.items() if of}, ids):
            exact = result.exact if exact is None else exact and result.exact
            for name, by_key in result.values.items():
                values[name][measure] = by_key
    return _effects([(name, "", name, values[name]) for name in ids], units) if exact is not None else [], exact


def columns(rows: Sequence[EffectRow], wanted: Mapping[str, Direction]) -> list[str]:
    """The measures of a heat map: those with a clear effect first, then wanted ones, the strongest effect first."""
    measures = dict.fromkeys(measure for row in rows for measure in row.cells)

    def rank(measure: str) -> tuple[bool, bool, float]:
        cells = [row.cells[measure] for row in rows if measure in row.cells]
        return not any(cell.clear for cell in cells), measure not in wanted, -max(cell.strength for cell in cells)

    return sorted(measures, key=rank)


# Best runs


def summary_of(variant: Variant, measure: str, unit: str = "share") -> Estimate | None:
    """The mean of a measure over prompts and seeds; None where it was not measured.

    A win rate is the share of the prompts that are won, as everywhere else: its values are probabilities of winning.
    """
    values = won(measure, variant.values(measure))
    return estimate(values, _prior(unit, differences=False)) if values else None


AxisMeasures = tuple[str, list[str]]
"""What an axis shows, in words, and the measures that it is made of."""


def axes(many: Sequence[Variant]) -> tuple[AxisMeasures, AxisMeasures] | None:
    """What helpfulness and harmlessness are taken to be; None where nothing was measured."""
    shared = _shared(many)
    helpful = next(
        (
            (title, [measure])
            for measure, title in (
                ("over_refusal", "harmless requests that are not refused"),
                ("win_rate/base", "probability of being preferred to Base, each run by its own principles"),
                ("refusal_phrases", "replies without a refusal’s phrase"),
            )
            if measure in shared
        ),
        None,
    )
    harm: list[str] = [measure for measure in HARM if measure in shared]
    violations = sorted(measure for measure in shared if kind(measure) == "violation_rate")
    harmless: AxisMeasures | None = (
        ("no harmful compliance and no privacy leak, where they are asked for", harm) if harm else None
    )
    if violations and not harm:
        harmless = (f"no violation of {', '.join(name.partition('/')[2] for name in violations)}", violations)
    return (helpful, harmless) if helpful and harmless else None


def front(many: Sequence[Variant], found: tuple[AxisMeasures, AxisMeasures]) -> list[charts.Place]:
    """All variants and the base model between helpfulness and harmlessness; those that no other beats have a number."""
    rows: list[tuple[str, Variant, str]] = [(variant.name, variant, "policy") for variant in many]
    rows.insert(0, ("Base", many[0], "base"))
    ends = [
        tuple(
            _share([variant.values(name, model) for name in measures], good=measures[0].startswith("win_rate"))
            for _, measures in found
        )
        for _, variant, model in rows
    ]
    best = pareto({at: (x[0], y[0]) for at, (x, y) in enumerate(ends)})
    order = sorted(best, key=lambda at: (-ends[at][1][0], ends[at][0][0]))
    return [
        charts.Place(name, x, y, order.index(at) + 1 if at in best else 0)
        for at, ((name, *_), (x, y)) in enumerate(zip(rows, ends, strict=True))
    ]


def _share(measured: Sequence[Values], *, good: bool) -> tuple[float, float, float]:
    """The share of what is good, over the prompts of all measures, with its 95% interval within 0 and 1."""
    if good and not any(measured):
        return 0.5, 0.5, 0.5  # the base against itself
    pooled = {
        # What several measures find of one prompt is one cluster.
        key._replace(prompt=f"{at} {key.prompt}", cluster=key.cluster or key.prompt): value if good else 1 - value
        for at, of in enumerate(measured)
        for key, value in of.items()
    }
    row = estimate(pooled, PRIOR_OF_SHARES)
    return row.value, *row.interval()


class Best(NamedTuple):
    """The best variant by a measure."""

    variant: Variant
    measure: str
    """In words."""
    value: str
    remark: str
    """Whether it is more than luck."""


def best_of(many: Sequence[Variant], objective: str, over_refusal: float | None) -> Best | None:
    """The variant with the fewest violations or the most wins, within the bound; None where nothing was measured.

    Violations are of the principles that all variants have. Where there are none, it is the highest mean of
    helpfulness and harmlessness.
    """
    kept = [variant for variant in many if over_refusal is None or _refusing(variant) <= over_refusal]
    if not kept:
        return None
    bound = "" if over_refusal is None else f", with an over-refusal of {over_refusal:.0%} at most"
    shared = _shared(many)
    measures, title, sign = sorted(name for name in shared if kind(name) == "violation_rate"), "", 1
    if objective == "preferred":
        measures, title, sign = sorted({"win_rate/base"} & shared), "highest probability of being preferred to Base", -1
    elif measures:
        title = f"fewest violations, by the critic, of {', '.join(name.partition('/')[2] for name in measures)}"
    elif measured := axes(many):
        points = [(point.x[0] + point.y[0]) / 2 for point in front(kept, measured)[1:]]
        title = f"highest mean of helpfulness and harmlessness, as they are defined below{bound}"
        winner = kept[points.index(max(points))]
        return Best(winner, title, charts.number(max(points), percent=True), "The intervals of both stand below.")
    if not measures:
        return None
    means = {variant.name: fmean(fmean(variant.values(name).values()) for name in measures) for variant in kept}
    ranked = sorted(kept, key=lambda variant: sign * means[variant.name])
    best, *others = (_mean_by_prompt(variant, measures) for variant in ranked[:2])
    interval = estimate(best, PRIOR_OF_SHARES).interval()
    ends = (charts.number(end, percent=True) for end in (means[ranked[0].name], *interval))
    remark = _against_next(best, others[0], ranked[1].name, sign) if others else ""
    return Best(ranked[0], title + bound, "{} ({} to {})".format(*ends), remark)


def _against_next(best: Values, following: Values, name: str, sign: int) -> str:
    """Whether the best is better on the same prompts; a sign of 1 means that less is better, and −1 that more is."""
    differences = {key: -sign * value for key, value in paired(following, best).items()}
    if not differences:
        return f"It has no prompt in common with the next, {name}."
    low, _ = estimate(differences, PRIOR_OF_DIFFERENCES).interval()
    return f"It is {'' if low > 0 else 'not '}clearly better than the next, {name}."


def _shared(many: Sequence[Variant]) -> set[str]:
    """The measures that all runs have, prompt by prompt, and mean the same by."""
    runs = [run for variant in many for run in variant.runs]
    shared = set.intersection(
        *({measure for (model, measure), of in run.values.items() if of and model == "policy"} for run in runs)
    )
    return {measure for measure in shared if _means_the_same(measure, runs)}


def _refusing(variant: Variant) -> float:
    values = variant.values("over_refusal")
    return fmean(values.values()) if values else 1.0


def _mean_by_prompt(variant: Variant, measures: Sequence[str]) -> dict[Key, float]:
    """The mean over the measures that a prompt has."""
    by_key = defaultdict[Key, list[float]](list)
    for name in measures:
        for key, value in variant.values(name).items():
            by_key[key].append(value)
    return {key: fmean(of_key) for key, of_key in by_key.items()}


# What people's comparisons add


def ratios(many: Sequence[Variant]) -> list[RatioRow]:
    """The variants that differ in the share of people's comparisons alone, by that share; none where no two do."""
    groups: defaultdict[str, dict[float, Variant]] = defaultdict(dict)
    for variant in many:
        settings = variant.runs[0].settings
        if isinstance(share := settings.get(RATIO), int | float):
            rest = {key: value for key, value in settings.items() if key not in (*NOT_THE_VARIANT, RATIO)}
            groups[json.dumps([variant.runs[0].constitution.digest, rest], sort_keys=True)][share] = variant
    group = max(groups.values(), key=len, default={})
    if len(group) < 2:
        return []
    units = units_of([run for variant in group.values() for run in variant.runs])
    return [_ratio_row(share, group[share], units) for share in sorted(group)]


def _ratio_row(share: float, variant: Variant, units: Mapping[str, str]) -> RatioRow:
    measures = {}
    for measure, unit in units.items():
        if (row := summary_of(variant, measure, unit)) and row.prompts >= FEW:
            measures[measure] = (row.value, *row.interval())
    pairs = [run.decided for run in variant.runs]
    calls = Calls.sum(run.calls for run in variant.runs)
    mean_calls = Calls(
        asked=round(calls.answers / len(pairs)),
        prompt_tokens=round(calls.prompt_tokens / len(pairs)),
        completion_tokens=round(calls.completion_tokens / len(pairs)),
        cost=calls.cost / len(pairs),
    )
    people = fmean(of[""] for of in pairs)
    return RatioRow(share, variant, fmean(of.total() for of in pairs), people, mean_calls, measures)


# What pulls apart


class Pulls(NamedTuple):
    """What principles say of the same comparisons, pooled over runs."""

    comparisons: dict[str, Comparison]
    """By id, for examples."""
    p_a: dict[str, dict[str, float]]
    """By comparison and principle, the probability that response a is better."""


def pooled(judgements: Iterable[Judgement], comparisons: Iterable[Comparison] = ()) -> Pulls:
    """The labeler's judgements of all runs, comparison by comparison; those whose orders conflict say nothing.

    Where a principle has other words in a later run, its words in the first run count.
    """
    pulls = Pulls({row.id: row for row in comparisons}, {})
    for judgement in judgements:
        if judgement.p_a is not None and not judgement.conflict and judgement.judge == LABELER:
            pulls.p_a.setdefault(judgement.comparison, {}).setdefault(judgement.principle, judgement.p_a)
    return pulls


def conflicts(pulls: Pulls, margin: float) -> list[Conflict]:
    """Pairs of principles by how often they prefer different responses, the most frequent first.

    Args:
        pulls: what principles say.
        margin: how far from 0.5 a probability is a preference.
    """
    both = defaultdict[tuple[str, str], list[tuple[bool, str]]](list)
    apart = defaultdict[tuple[str, str], list[tuple[float, str]]](list)
    for name, by_principle in pulls.p_a.items():
        # As near to 0.5 as the margin allows, give or take the rounding of 0.6 - 0.5.
        least = max(margin, 1e-6) - 1e-9
        sides = {principle: p - 0.5 for principle, p in sorted(by_principle.items()) if abs(p - 0.5) >= least}
        ids, known = list(sides), pulls.comparisons.get(name)
        cluster = known.prompt.id if known else name  # the comparisons of a prompt depend on each other
        for at, first in enumerate(ids):
            for second in ids[at + 1 :]:
                both[first, second].append((sides[first] * sides[second] < 0, cluster))
                if sides[first] * sides[second] < 0:
                    apart[first, second].append((-min(abs(sides[first]), abs(sides[second])), name))
    rows = [
        Conflict(
            pair,
            len(apart[pair]),
            len(outcomes),
            clustered_share([float(outcome) for outcome, _ in outcomes], [of for _, of in outcomes]),
            [
                (pulls.comparisons[name], pulls.p_a[name][pair[0]], pulls.p_a[name][pair[1]])
                for _, name in sorted(apart[pair])[:EXAMPLES]
                if name in pulls.comparisons
            ],
        )
        for pair, outcomes in both.items()
    ]
    return sorted(rows, key=lambda row: (-row.apart / row.both, row.pair))


def opposite(rows: Sequence[EffectRow]) -> list[tuple[str, str, str]]:
    """(measure, a principle that clearly raises it, one that clearly lowers it)."""
    result = []
    for measure in dict.fromkeys(measure for row in rows for measure in row.cells):
        clear = [
            (row.principle, row.cells[measure].estimate.value)
            for row in rows
            if row.principle and row.hint != CONTROL and measure in row.cells and row.cells[measure].clear
        ]
        result += [(measure, up, down) for up, rises in clear if rises > 0 for down, falls in clear if falls < 0]
    return result


# What differs


def differing(runs: Sequence[ComparedRun]) -> tuple[list[str], list[list[str]]]:
    """(keys, a row of values for each run): the settings that differ, and the principles against those of the first."""
    keys = dict.fromkeys(key for run in runs for key in run.settings if key not in TOLD)
    texts = {
        key: [json.dumps(run.settings[key], ensure_ascii=False) if key in run.settings else "–" for run in runs]
        for key in keys
    }
    chosen = [key for key in keys if len(set(texts[key])) > 1]
    rows = [[texts[key][at] for key in chosen] for at in range(len(runs))]
    told = {json.dumps(_of_constitution(run.settings), sort_keys=True) for run in runs}
    if len({run.constitution.digest for run in runs}) > len(told):  # a file was edited between the runs
        chosen.append(f"principles, against {runs[0].name}")
        for row, run in zip(rows, runs, strict=True):
            changes = difference(runs[0].constitution, run.constitution)
            row.append("; ".join(" ".join(str(change).split()) for change in changes) or "the same")
    return chosen, rows


def _of_constitution(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.startswith("constitution.")}
