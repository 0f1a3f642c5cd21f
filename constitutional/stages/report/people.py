"""What the report says of people's votes: how far the labeler agrees with them, and they with each other."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from constitutional.base.agreement import in_words
from constitutional.base.corrected import (
    FEWEST_CORRECTIONS,
    FEWEST_LABELS,
    Caution,
    CorrectedRate,
    PredictionPoweredRate,
    WeightedRate,
)
from constitutional.base.records import Comparison, Judgement, Preference, Sample, SpotCheck, Verdict
from constitutional.base.shards import RowStream, columns_of
from constitutional.base.stats import wilson, win_rate
from constitutional.judging.evaluated import (
    MODEL,
    Estimates,
    ViolationAnswer,
    contests_of,
    violation_estimates,
    violation_items,
    win_estimates,
    work_of_answers,
)
from constitutional.judging.people import (
    People,
    PeoplesWork,
    by_kind,
    corrected_win_rate,
    on_gold,
    people_of,
    powered_agreement,
    work_of,
    wrong_first,
)
from constitutional.judging.scores import Measurement
from constitutional.stages.context import RunView
from constitutional.stages.report.data import (
    MODELS,
    Contradiction,
    CorrectedRates,
    PeopleRate,
    PeopleReport,
    WorkReport,
    WorkRow,
)
from constitutional.stages.report.verdicts import is_win_rate
from constitutional.stages.summaries import MixSummary, SftSummary

POWERED: Final = "predicted by how sure the labeler is of all that it judged, and corrected by people (weighted)"
UNVOTED: Final = (
    "Nobody voted on these replies, so PPI++ has nothing to correct by; constitutional review {} "
    "review.about=evaluation asks people about them, and report.verdicts=FILE takes their votes."
)
CAUTIONS: Final[dict[Caution, str]] = {
    "few labels": f"people answered about fewer than {FEWEST_LABELS} prompts: the interval may be too narrow",
    "few corrections": f"people differ on fewer than {FEWEST_CORRECTIONS} items: the interval may be too narrow",
    "contradictory": "people’s items and the others cannot be of one population",
}
REASONS: Final = {
    "too few": "people found no positives, or no negatives, without ties",
    "uninformative": "where people answered, the labels are no better than chance, or the answers are too few to tell",
    "contradictory": "the labels cannot err here as often as where people answered",
}


class PeoplesFiles(NamedTuple):
    """What people said of the evaluated replies, after the run's models were trained."""

    verdicts: Sequence[Verdict] = ()
    """Votes on the last model's replies against the earlier models'."""
    violations: Sequence[ViolationAnswer] = ()


def people_report(
    view: RunView,
    comparisons: RowStream[Comparison],
    judgements: RowStream[Judgement],
    examples: int,
    files: PeoplesFiles,
) -> PeopleReport | None:
    """What the votes say; None where nobody answered anything."""
    plan = view.read("spotchecks", SpotCheck) if view.has("spotchecks") else []
    verdicts = view.read("verdicts", Verdict) if view.has("spotchecks") else []
    if not verdicts and files == PeoplesFiles():
        return None
    people = people_of(plan, verdicts, comparisons, judgements, view.seed)
    measurements = view.read("measurements", Measurement)
    samples = view.read("samples", Sample) if files != PeoplesFiles() else []
    items = violation_items(samples, measurements, view.constitution, view.seed) if files.violations else []
    in_all, by_principle = violation_estimates(items, files.violations)
    chance = {"Gwet’s AC1": people.ac1, "Krippendorff’s α": people.alpha, people.kappa_name: people.kappa}
    return PeopleReport(
        agreement=tuple(_rates(people, powered_agreement(people, comparisons, judgements))),
        chance_corrected={name: in_words(of) for name, of in chance.items()},
        labeler_beyond_chance={name: in_words(of) for name, of in people.beyond_chance.items() if people.seen},
        win_rates=tuple(
            _win_rates(measurements, win_estimates(contests_of(samples, measurements), files.verdicts), people, view)
        ),
        violations=tuple(
            _corrected(name, "by the critic", made)
            for name, made in {"all principles": in_all, **by_principle}.items()
            if made is not None
        ),
        wrong=tuple(
            Contradiction(comparison=row.comparison, principles=row.principles, labeler=row.labeler, votes=row.votes)
            for row in wrong_first(people, examples)
        ),
        gold=tuple(
            PeopleRate(name=rater, value=right / n, **wilson(right, n)._asdict(), n=n)
            for rater, (right, n) in on_gold(verdicts).items()
        ),
    )


def _rates(people: People, powered: PredictionPoweredRate | None) -> Iterator[PeopleRate]:
    yield from _named("all comparisons", "weighted by how likely each was to be chosen", people.labeler)
    yield from _named("all comparisons, PPI++", POWERED, powered)
    yield from _named("the audit set", "drawn uniformly, and never trained on", people.audit)
    for hint, rates in (("by this principle", people.by_principle), ("prompts of this kind", by_kind(people))):
        for name, rate in rates.items():
            yield from _named(name, hint, rate)
    hint = "two people on the same comparison, weighted likewise: more than this no labeler can reach"
    yield from _named("people with each other", hint, people.ceiling)


def _named(name: str, hint: str, rate: WeightedRate | PredictionPoweredRate | None) -> Iterator[PeopleRate]:
    if rate is not None:
        low, high = rate.interval
        caution = ""
        if isinstance(rate, PredictionPoweredRate):
            caution = "; ".join(CAUTIONS[warning] for warning in rate.warnings)
        yield PeopleRate(
            name=name,
            hint=hint,
            value=rate.value,
            low=low,
            high=high,
            n=rate.n,
            to_halve=rate.to_halve,
            caution=caution,
        )


def _win_rates(
    measurements: Sequence[Measurement], voted: Mapping[str, Estimates], people: People, view: RunView
) -> Iterator[CorrectedRates]:
    """By opponent: from votes on these replies, or else what the audit set says of the labeler."""
    for row in measurements:
        opponent = row.measure.removeprefix("win_rate/")
        if row.model != MODEL or not is_win_rate(row.measure):
            continue
        if opponent in voted:
            yield _corrected(MODELS[opponent], "by the labeler", voted[opponent])
            continue
        wins, losses = (sum(p > 0.5 for p in row.by_prompt.values()), sum(p < 0.5 for p in row.by_prompt.values()))
        corrected = corrected_win_rate(wins, losses, people)
        if corrected is None:
            continue
        outcomes = list(row.by_prompt.values())
        value, (low, high) = win_rate(outcomes)
        yield CorrectedRates(
            name=MODELS[opponent],
            rates=(
                PeopleRate(name="by the labeler", value=value, low=low, high=high, n=len(outcomes)),
                *_rogan_gladen(corrected),
            ),
            notes=(*_reason(corrected), UNVOTED.format(shlex.quote(str(view.folder)))),
        )


def _corrected(name: str, by: str, made: Estimates) -> CorrectedRates:
    notes = [*_reason(made.rogan_gladen)]
    if made.powered is None:
        notes.append("People answered about every reply, so there is nothing to predict: their own rate is it.")
    ai = made.ai._replace(to_halve=None)  # more answers of people would not make this one narrower
    return CorrectedRates(
        name=name,
        rates=(
            *_named(by, "", ai),
            *_rogan_gladen(made.rogan_gladen),
            *_named("PPI++", "prediction-powered inference", made.powered),
            *_named("by people alone", "on the replies that they judged", made.people),
        ),
        notes=tuple(notes),
    )


def _rogan_gladen(corrected: CorrectedRate) -> Iterator[PeopleRate]:
    if corrected.value is not None and corrected.interval is not None and not _says_nothing(corrected):
        low, high = corrected.interval
        hint = "without ties, if the labels are right about all replies as often as where people answered"
        yield PeopleRate(
            name="Rogan–Gladen",
            hint=hint,
            value=corrected.value,
            low=low,
            high=high,
            n=corrected.n,
            to_halve=corrected.to_halve,
        )


def _reason(corrected: CorrectedRate) -> Iterator[str]:
    if corrected.reason:
        yield f"Rogan and Gladen’s correction is not defined: {REASONS[corrected.reason]}."
    elif _says_nothing(corrected):
        yield "Rogan and Gladen’s correction tells nothing: from so few answers of people the rate could be any."


def _says_nothing(corrected: CorrectedRate) -> bool:
    """Whether the interval leaves out less than a percent of all rates, which a percentage does not show."""
    return corrected.interval is not None and corrected.interval.high - corrected.interval.low > 0.99


def work_report(
    view: RunView,
    preferences: RowStream[Preference],
    pay_per_hour: float | None,
    currency: str,
    files: PeoplesFiles,
) -> WorkReport:
    """Who gave the votes and wrote the replies that the run used, what it took, and what is not known of it."""
    mixed = view.summary(MixSummary)
    works = {
        "spot-checks": work_of(view.read("verdicts", Verdict)) if view.has("spotchecks") else None,
        "votes of mix.verdicts": mixed.work if mixed else None,
        "votes on the evaluated replies": work_of(files.verdicts) if files.verdicts else None,
        "answers on violations": work_of_answers(files.violations) if files.violations else None,
    }
    rows, notes = [], []
    for source, work in works.items():
        if work is None:
            continue
        if work.simulated:
            notes.append(
                f"{work.simulated:,} votes ({source}) are simulated: no person gave them, nobody spent time on them, "
                "and nobody was paid for them."
            )
        if work.raters:
            rows.append(_work_row(source, work, pay_per_hour, currency))
    # A verdict is known by its digest, and a row of a file of comparisons by the file and the line. Runs of an older
    # version did not count the votes of mix.verdicts.
    known = any(work is not None for work in works.values())
    unknown = sum(
        source == "human" and (not known or ":" in "".join(json.loads(rests_on)))
        for source, rests_on in columns_of(preferences, Preference, ("source", "rests_on"))
    )
    if unknown:
        notes.append(
            f"{unknown:,} preferences come from files of people’s comparisons: who made them, in how many hours and "
            "for what pay is not recorded."
        )
    notes += [f"{name} {by}." for name, by in (mixed.labelled.items() if mixed else ())]
    sft = view.summary(SftSummary)
    if sft and sft.work:
        rows.append(_work_row("replies written for sft.helpful", sft.work, pay_per_hour, currency))
    if sft and (samples := _unsigned(sft, view)):
        notes.append(f"{samples}: whether people wrote them, in how many hours and for what pay is not recorded.")
    if rows and pay_per_hour is None:
        notes.append("No rate of pay was stated (report.pay_per_hour).")
    if not rows and not unknown:
        notes.append("No person voted on this run’s comparisons.")
    return WorkReport(rows=tuple(rows), notes=tuple(notes))


def _unsigned(sft: SftSummary, view: RunView) -> str:
    """The helpful samples of which it is not known who wrote them; empty where there are none."""
    if sft.work:
        return f"{sft.unsigned:,} helpful samples of the file sft.helpful name no rater" if sft.unsigned else ""
    of_file = sft.helpful and view.configuration().get("sft", {}).get("helpful")
    return f"{sft.helpful:,} helpful samples come from a file (sft.helpful)" if of_file else ""


def _work_row(source: str, work: PeoplesWork, pay_per_hour: float | None, currency: str) -> WorkRow:
    answers = work.votes + work.skips + work.withdrawn

    def of_all(text: str, recorded: int) -> str:
        if not recorded:
            return "not recorded"
        return text if recorded == answers else f"{text}, recorded for {recorded:,} of {answers:,} answers"

    hours, pay = work.seconds / 3600, "not stated"
    if pay_per_hour is not None:
        pay = of_all(f"{hours * pay_per_hour:,.2f} {currency}".rstrip(), work.timed)
    return WorkRow(
        source=source,
        raters=f"{work.raters:,}",
        votes=f"{work.votes:,}",
        skips=f"{work.skips:,}",
        hours=of_all(f"{hours:.2f}", work.timed),
        exposures=of_all(f"{work.exposures:,}", work.noted),
        pay=pay,
    )
