"""What the report says of people's votes: how far the labeler agrees with them, and they with each other."""

from collections.abc import Iterator, Mapping, Sequence

from constitutional.base.agreement import RaterAgreement
from constitutional.base.corrected import WeightedRate
from constitutional.base.records import Comparison, Judgement, Preference, SpotCheck, Verdict
from constitutional.base.stats import wilson
from constitutional.judging.people import (
    People,
    PeoplesWork,
    by_kind,
    corrected_win_rate,
    on_gold,
    people_of,
    work_of,
    wrong_first,
)
from constitutional.judging.scores import Measurement
from constitutional.stages.context import RunView
from constitutional.stages.report.charts import number
from constitutional.stages.report.data import MODELS, Contradiction, PeopleRate, PeopleReport, WorkReport, WorkRow
from constitutional.stages.report.verdicts import is_win_rate
from constitutional.stages.summaries import MixSummary


def people_report(
    view: RunView,
    comparisons: Sequence[Comparison],
    judgements: Sequence[Judgement],
    measurements: Sequence[Measurement],
    examples: int,
) -> PeopleReport | None:
    """What the votes say; None where nobody was asked, or nobody answered."""
    if not view.has("spotchecks"):
        return None
    plan = view.read("spotchecks", SpotCheck)
    verdicts = view.read("verdicts", Verdict)
    people = people_of(plan, verdicts, comparisons, judgements, view.seed)
    if not people.seen:
        return None
    chance = {"Gwet’s AC1": people.ac1, "Krippendorff’s α": people.alpha}
    return PeopleReport(
        agreement=tuple(_rates(people)),
        chance_corrected={name: in_words(of) for name, of in chance.items()},
        win_rates=tuple(_win_rates(measurements, people)),
        wrong=tuple(
            Contradiction(comparison=row.comparison, principles=row.principles, labeler=row.labeler, votes=row.votes)
            for row in wrong_first(people, examples)
        ),
        gold=tuple(
            PeopleRate(name=rater, value=right / n, **wilson(right, n)._asdict(), n=n)
            for rater, (right, n) in on_gold(verdicts).items()
        ),
    )


def _rates(people: People) -> Iterator[PeopleRate]:
    groups: list[tuple[str, str, Mapping[str, WeightedRate | None]]] = [
        ("all comparisons", "weighted by how likely each was to be chosen", {"": people.labeler}),
        ("the audit set", "drawn uniformly, and never trained on", {"": people.audit}),
        ("", "by this principle", people.by_principle),
        ("", "prompts of this kind", by_kind(people)),
    ]
    for title, hint, rates in groups:
        for name, rate in rates.items():
            if rate is not None:
                yield PeopleRate(
                    name=title or name,
                    hint=hint,
                    value=rate.value,
                    low=rate.interval.low,
                    high=rate.interval.high,
                    n=rate.n,
                    to_halve=rate.to_halve,
                )
    among = people.among
    if among.value is not None and among.interval is not None:
        low, high = among.interval
        hint = "pairs of people on the same comparison: more than this no labeler can reach"
        yield PeopleRate(name="people with each other", hint=hint, value=among.value, low=low, high=high, n=among.n)


def in_words(agreement: RaterAgreement) -> str:
    """`0.41 (0.2 to 0.6), n = 40`, or why it is not defined."""
    if agreement.value is None:
        reasons = {"unanimous": "undefined: unanimous", "too few": "undefined: no comparison has two votes"}
        return reasons[agreement.reason or "too few"]
    ends = f"({' to '.join(map(number, agreement.interval))})" if agreement.interval else f"({agreement.reason})"
    return f"{number(agreement.value)} {ends}, n = {agreement.n}"


def _win_rates(measurements: Sequence[Measurement], people: People) -> Iterator[tuple[str, PeopleRate, PeopleRate]]:
    for row in measurements:
        opponent = row.measure.removeprefix("win_rate/")
        if row.model != "policy" or not is_win_rate(row.measure):
            continue
        wins = sum(p > 0.5 for p in row.by_prompt.values())
        losses = sum(p < 0.5 for p in row.by_prompt.values())
        corrected = corrected_win_rate(wins, losses, people)
        if corrected is None or corrected.value is None or corrected.interval is None:
            continue
        n = wins + losses
        measured = wilson(wins, n)
        yield (
            MODELS[opponent],
            PeopleRate(name="by the labeler", value=wins / n, low=measured.low, high=measured.high, n=n),
            PeopleRate(
                name="corrected",
                value=corrected.value,
                low=corrected.interval.low,
                high=corrected.interval.high,
                n=n,
            ),
        )


def work_report(
    view: RunView, preferences: Sequence[Preference], pay_per_hour: float | None, currency: str
) -> WorkReport:
    """Who gave the votes that the run used, what it took, and what is not known of it."""
    mixed = view.summary(MixSummary)
    works = {
        "spot-checks": work_of(view.read("verdicts", Verdict)) if view.has("spotchecks") else None,
        "votes of mix.verdicts": mixed.work if mixed else None,
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
    unknown = sum(row.source == "human" and (not known or ":" in "".join(row.rests_on)) for row in preferences)
    if unknown:
        notes.append(
            f"{unknown:,} preferences come from files of people’s comparisons: who made them, in how many hours and "
            "for what pay is not recorded."
        )
    if rows and pay_per_hour is None:
        notes.append("No rate of pay was stated (report.pay_per_hour).")
    if not rows and not unknown:
        notes.append("No person voted on this run’s comparisons.")
    return WorkReport(rows=tuple(rows), notes=tuple(notes))


def _work_row(source: str, work: PeoplesWork, pay_per_hour: float | None, currency: str) -> WorkRow:
    answers = work.votes + work.skips

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
