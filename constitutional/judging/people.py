"""What people's votes say of the labeler, and of people: how far they agree, and what its win rates are worth."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Final, NamedTuple

from constitutional.base.agreement import (
    RaterAgreement,
    cohen_kappa,
    gwet_ac1,
    krippendorff_alpha,
    light_kappa,
    pairwise_agreement,
)
from constitutional.base.corrected import (
    CorrectedRate,
    PredictionPoweredRate,
    WeightedRate,
    clustered_rogan_gladen,
    hajek_mean,
    prediction_powered_mean,
)
from constitutional.base.frozen import Frozen
from constitutional.base.progress import counted
from constitutional.base.records import LABELER, Comparison, Judgement, SpotCheck, Verdict
from constitutional.base.text import same_text
from constitutional.judging.labelling import combine, probabilities_of

CHOICES: Final = ("a", "b", "tie", "both_bad")
"""What counts as a vote; who skips says nothing."""
SETTLED: Final = " (settled)"
"""Stands behind a lead's name where the verdict is the lead's decision on a comparison."""


_SIMULATED: Final = "simulated"


def simulated_rater(number: int) -> str:
    """What a simulated rater is called."""
    return f"{_SIMULATED} {number}"


def is_simulated(rater: str) -> bool:
    """Whether a rater of this name is nobody."""
    return rater.startswith(f"{_SIMULATED} ")


class PeoplesWork(Frozen):
    """Who gave verdicts, and what it took. Simulated votes are nobody's work, so they are counted apart."""

    raters: int
    """People, leads who settled comparisons included."""
    votes: int
    """Answers of one person to one comparison, also those that a lead's decision replaced."""
    skips: int
    withdrawn: int = 0
    """Answers that do not count, such as those taken back, and harmful texts that were opened and not answered."""
    timed: int
    """Of all these, those whose time was recorded."""
    seconds: float
    """The sum of these times."""
    noted: int
    """Of all these, those of which it was recorded whether the rater saw a harmful text."""
    exposures: int
    """Comparisons whose harmful text a person saw, for each person once."""
    simulated: int
    """Votes of simulated raters."""


def work_of(verdicts: Iterable[Verdict]) -> PeoplesWork:
    """The work behind verdicts. A person's verdicts on one comparison, in all and by principle, are one vote."""
    rows = [row for verdict in verdicts for row in (verdict, *verdict.in_place_of)]
    by_simulation = [row for row in rows if is_simulated(row.rater)]
    rows = [row for row in rows if not is_simulated(row.rater)]
    answers = {(row.rater, row.comparison) for row in rows}
    votes = {(row.rater, row.comparison) for row in rows if row.choice != "skip"}
    withdrawn = {(row.rater, row.comparison) for row in rows if row.withdrawn} - votes
    return PeoplesWork(
        raters=len({row.rater.removesuffix(SETTLED) for row in rows}),
        votes=len(votes),
        skips=len(answers - votes - withdrawn),
        withdrawn=len(withdrawn),
        timed=len({(row.rater, row.comparison) for row in rows if row.seconds is not None}),
        seconds=math.fsum(row.seconds for row in rows if row.seconds is not None),
        noted=len({(row.rater, row.comparison) for row in rows if row.exposed is not None}),
        exposures=len({(row.rater.removesuffix(SETTLED), row.comparison) for row in rows if row.exposed}),
        simulated=len({(row.rater, row.comparison) for row in by_simulation}),
    )


def on_gold(verdicts: Iterable[Verdict]) -> dict[str, tuple[int, int]]:
    """(known answers given, gold items answered) by rater, by name. A tie is no known answer; a skip is no answer."""
    counts = defaultdict[str, list[bool]](list)
    for verdict in verdicts:
        if verdict.gold is not None and verdict.principle is None and verdict.choice != "skip":
            counts[verdict.rater].append(verdict.choice == verdict.gold)
    return {rater: (sum(right), len(right)) for rater, right in sorted(counts.items())}


class Seen(NamedTuple):
    """A comparison on which people voted, beside what the labeler says of it."""

    comparison: Comparison
    check: SpotCheck
    people: float
    """1 where people prefer response a, 0 where they prefer b, ½ where they are even or see a tie."""
    labeler: float
    """Probability that a is better."""
    principles: tuple[str, ...]
    """By which the labeler judged."""
    votes: tuple[Verdict, ...]

    @property
    def agreement(self) -> float:
        """1 where both prefer the same or both are even, ½ where one alone is even, 0 where they contradict."""
        return 1 - abs(_side(self.people) - _side(self.labeler)) / 2


class People(NamedTuple):
    """What came of the votes."""

    seen: list[Seen]
    """In the plan's order; without those on which all saw two bad responses, or skipped."""
    labeler: WeightedRate | None
    """The labeler's agreement with people, over all comparisons that it judged."""
    audit: WeightedRate | None
    """The same from the audit set alone."""
    by_principle: dict[str, WeightedRate]
    """Where one principle judges a comparison."""
    ceiling: WeightedRate | None
    """People's agreement with each other, counted and weighted as the labeler's: what a labeler can reach."""
    among: RaterAgreement
    """The share of pairs of people that say the same of a comparison, `both_bad` included; not weighted."""
    ac1: RaterAgreement
    alpha: RaterAgreement
    kappa_name: str
    """Whose κ it is."""
    kappa: RaterAgreement
    beyond_chance: dict[str, RaterAgreement]
    """By the measure's name, the labeler's agreement with people beyond chance, on the audit set; on all comparisons
    where there is none. Those chosen by what the labeler is unsure of would make it look worse."""


def _side(p: float) -> int:
    return (p > 0.5 + 1e-9) - (p < 0.5 - 1e-9)


def _beyond_chance(seen: Sequence[Seen], seed: int) -> dict[str, RaterAgreement]:
    rows = [row for row in seen if row.check.reason == "audit"] or seen
    sides = {1: "a", 0: "tie", -1: "b"}
    votes = {
        row.comparison.id: {"people": sides[_side(row.people)], "labeler": sides[_side(row.labeler)]} for row in rows
    }
    prompts = {row.comparison.id: row.comparison.prompt.id for row in rows}
    return {
        "Cohen’s κ": cohen_kappa(votes, "people", "labeler", clusters=prompts, seed=seed),
        "Krippendorff’s α": krippendorff_alpha(votes, clusters=prompts, seed=seed),
        "Gwet’s AC1": gwet_ac1(votes, categories=len(sides), clusters=prompts, seed=seed),
    }


def _kappa(votes: Mapping[str, Mapping[str, str]], prompts: Mapping[str, str], seed: int) -> tuple[str, RaterAgreement]:
    """κ of people with each other, and whose it is: Cohen's of two raters, Light's of more."""
    raters = sorted({rater for by_rater in votes.values() for rater in by_rater})
    if len(raters) == 2:
        first, second = raters
        return "Cohen’s κ", cohen_kappa(votes, first, second, clusters=prompts, seed=seed)
    light = light_kappa(votes, clusters=prompts, seed=seed)
    over = f" (mean of Cohen’s over {counted(light.pairs, 'pair')} of raters)" if light.pairs else ""
    return f"Light’s κ{over}", light.kappa


def raters_own(verdicts: Iterable[Verdict]) -> Iterator[Verdict]:
    """What raters said before a lead settled anything.

    A lead settles what raters contradict each other on, or a label that they contradict, and has seen the label: with
    the decisions in the place of the votes the labeler's agreement with people would be too high.
    """
    for verdict in verdicts:
        if verdict.rater.endswith(SETTLED):
            yield from verdict.in_place_of
        else:
            yield verdict


def people_of(
    plan: Iterable[SpotCheck],
    verdicts: Iterable[Verdict],
    comparisons: Iterable[Comparison],
    judgements: Iterable[Judgement],
    seed: int,
) -> People:
    """What the votes say; prompts are the clusters of all intervals.

    Args:
        plan: the comparisons that people were to look at, with their probabilities.
        verdicts: the votes; those by a principle are left out here, and decisions of leads give way to the votes that
            they replaced.
        comparisons: the run's.
        judgements: the labeler's, and those of a panel.
        seed: of the bootstraps.
    """
    plan = list(plan)
    planned = {check.comparison for check in plan}
    by_id = {comparison.id: comparison for comparison in comparisons if comparison.id in planned}
    voted, judged = defaultdict[str, list[Verdict]](list), defaultdict[str, list[Judgement]](list)
    for verdict in raters_own(verdicts):
        if verdict.principle is None and verdict.gold is None and verdict.choice in CHOICES:
            voted[verdict.comparison].append(verdict)
    for judgement in judgements:
        if judgement.comparison in planned:
            judged[judgement.comparison].append(judgement)
    seen = []
    for check in plan:
        opinions = opinions_of(voted[check.comparison])
        p_a = combine(judged[check.comparison])
        if opinions and p_a is not None:
            people = fmean(opinions)
            own = dict.fromkeys(row.principle for row in judged[check.comparison] if row.judge == LABELER)
            votes = tuple(voted[check.comparison])
            seen.append(Seen(by_id[check.comparison], check, people, p_a, tuple(own), votes))
    by_principle = defaultdict[str, list[Seen]](list)
    for row in seen:
        if len(row.principles) == 1:
            by_principle[row.principles[0]].append(row)
    votes_by_item = {
        check.comparison: {vote.rater: vote.choice for vote in voted[check.comparison]}
        for check in plan
        if voted[check.comparison]
    }
    prompts = {name: by_id[name].prompt.id for name in votes_by_item}
    kappa_name, kappa = _kappa(votes_by_item, prompts, seed)
    return People(
        seen=seen,
        labeler=_agreement(seen),
        audit=_agreement([row for row in seen if row.check.reason == "audit"], uniform=True),
        by_principle={name: rate for name, rows in by_principle.items() if (rate := _agreement(rows))},
        ceiling=_ceiling(plan, voted, prompts),
        among=pairwise_agreement(votes_by_item, clusters=prompts),
        ac1=gwet_ac1(votes_by_item, categories=len(CHOICES), clusters=prompts, seed=seed),
        alpha=krippendorff_alpha(votes_by_item, clusters=prompts, seed=seed),
        kappa_name=kappa_name,
        kappa=kappa,
        beyond_chance=_beyond_chance(seen, seed),
    )


def _agreement(rows: Sequence[Seen], *, uniform: bool = False) -> WeightedRate | None:
    """The labeler's agreement with people; None where nobody voted."""
    if not rows:
        return None
    chances = [1.0 if uniform else row.check.probability for row in rows]
    return hajek_mean([row.agreement for row in rows], chances, [row.comparison.prompt.id for row in rows])


def opinions_of(votes: Iterable[Verdict], both_bad: float | None = None) -> list[float]:
    """1 for a vote for a, 0 for b, ½ for a tie; a vote that sees two bad responses is left out if it counts None."""
    values = {"a": 1.0, "b": 0.0, "tie": 0.5, "both_bad": both_bad}
    return [value for vote in votes if (value := values[vote.choice]) is not None]


def powered_agreement(
    people: People, comparisons: Iterable[Comparison], judgements: Iterable[Judgement]
) -> PredictionPoweredRate | None:
    """The labeler's agreement with people by prediction-powered inference; None where nobody voted.

    The labeler's probability of the response that it prefers predicts the agreement, on all comparisons that it judged;
    prompts are the clusters.
    """
    if not people.seen:
        return None
    p_a = probabilities_of(judgements)
    pool = [
        (max(p, 1 - p), row.prompt.id)
        for row in comparisons
        if not same_text(row.a, row.b) and (p := p_a.get(row.id)) is not None
    ]
    return prediction_powered_mean(
        [row.agreement for row in people.seen],
        [max(row.labeler, 1 - row.labeler) for row in people.seen],
        [sure for sure, _ in pool],
        [row.check.probability for row in people.seen],
        clusters=[row.comparison.prompt.id for row in people.seen],
        ai_only_clusters=[prompt for _, prompt in pool],
    )


def _ceiling(
    plan: Iterable[SpotCheck], voted: Mapping[str, Sequence[Verdict]], prompts: Mapping[str, str]
) -> WeightedRate | None:
    """How far two people agree on a comparison: 1 where they say the same, ½ where one sees a tie, 0 otherwise.

    Who votes twice is drawn from all that are chosen, so the probability of being chosen is the weight here too.
    """
    shares, chances, clusters = [], [], []
    for check in plan:
        if pairs := list(combinations(opinions_of(voted.get(check.comparison, ())), 2)):
            shares.append(fmean(1 - abs(first - second) for first, second in pairs))
            chances.append(check.probability)
            clusters.append(prompts[check.comparison])
    return hajek_mean(shares, chances, clusters) if shares else None


def corrected_win_rate(wins: int, losses: int, people: People) -> CorrectedRate | None:
    """A win rate by the labeler, corrected by how often it is right on the audit set; None without one.

    Rogan and Gladen's correction, where the labeler is as often right whichever response is better: the sides of a
    comparison are arbitrary. It rests on the labeler being right about the models' replies as often as about the
    comparisons that people saw. Ties of either side are left out, as half votes are no counts. Prompts are the clusters
    of the audit set.

    Args:
        wins: comparisons that the labeler gives to the one model.
        losses: comparisons that it gives to the other.
        people: the votes.
    """
    clear = [row for row in people.seen if row.check.reason == "audit" and _side(row.people) and _side(row.labeler)]
    if not clear:
        return None
    right = [(row.agreement == 1, row.comparison.prompt.id) for row in clear]
    # The same comparisons tell how often it is right where a is better, and where b is: each is counted twice.
    rate = clustered_rogan_gladen([(place < wins, place) for place in range(wins + losses)], right, right)
    return rate if rate.to_halve is None else rate._replace(to_halve=math.ceil(rate.to_halve / 2))


def wrong_first(people: People, at_most: int) -> list[Seen]:
    """Comparisons on which labeler and people contradict each other, the surest labels first."""
    wrong = [row for row in people.seen if row.agreement == 0]
    return sorted(wrong, key=lambda row: (-abs(row.labeler - 0.5), row.comparison.id))[:at_most]


def by_kind(people: People) -> Mapping[str, WeightedRate]:
    """The labeler's agreement with people by the kind of prompt, where prompts have one."""
    groups = defaultdict[str, list[Seen]](list)
    for row in people.seen:
        if kind := row.comparison.prompt.info.get("kind"):
            groups[kind].append(row)
    return {kind: rate for kind, rows in groups.items() if (rate := _agreement(rows))}
