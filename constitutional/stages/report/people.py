"""What the report says of people's votes: how far the labeler agrees with them, and they with each other."""

from collections.abc import Iterator, Mapping, Sequence

from constitutional.base.agreement import RaterAgreement
from constitutional.base.corrected import WeightedRate
from constitutional.base.records import Comparison, Judgement, SpotCheck, Verdict
from constitutional.base.stats import wilson
from constitutional.judging.people import People, by_kind, corrected_win_rate, people_of, wrong_first
from constitutional.judging.scores import Measurement
from constitutional.stages.context import RunView
from constitutional.stages.report.charts import number
from constitutional.stages.report.data import MODELS, Contradiction, PeopleRate, PeopleReport
from constitutional.stages.report.verdicts import is_win_rate


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
    people = people_of(plan, view.read("verdicts", Verdict), comparisons, judgements, view.seed)
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
