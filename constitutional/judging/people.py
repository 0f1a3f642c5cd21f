"""What people's votes say of the labeler, and of people: how far they agree, and what its win rates are worth."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Final, NamedTuple

from constitutional.base.agreement import RaterAgreement, gwet_ac1, krippendorff_alpha, pairwise_agreement
from constitutional.base.corrected import CorrectedRate, WeightedRate, hajek_mean, rogan_gladen
from constitutional.base.frozen import Frozen
from constitutional.base.records import LABELER, Comparison, Judgement, SpotCheck, Verdict
from constitutional.judging.labelling import combine

CHOICES: Final = ("a", "b", "tie", "both_bad")
"""What counts as a vote; who skips says nothing."""
SETTLED: Final = " (settled)"
"""Stands behind a lead's name where the verdict is the lead's decision on a comparison."""


SIMULATED: Final = "simulated"
"""What simulated raters are called, with a number behind it."""


class PeoplesWork(Frozen):
    """Who gave verdicts, and what it took. Simulated votes are nobody's work, so they are counted apart."""

    raters: int
    """People, leads who settled comparisons included."""
    votes: int
    """Answers of one person to one comparison, also those that a lead's decision replaced."""
    skips: int
    timed: int
    """Votes and skips whose time was recorded."""
    seconds: float
    """The sum of these times."""
    noted: int
    """Votes and skips of which it was recorded whether the rater saw a harmful text."""
    exposures: int
    """Those for which the rater did."""
    simulated: int
    """Votes of simulated raters."""


def work_of(verdicts: Iterable[Verdict]) -> PeoplesWork:
    """The work behind verdicts. A person's verdicts on one comparison, in all and by principle, are one vote."""
    rows = [row for verdict in verdicts for row in (verdict, *verdict.in_place_of)]
    by_simulation = [row for row in rows if row.rater.startswith(f"{SIMULATED} ")]
    rows = [row for row in rows if not row.rater.startswith(f"{SIMULATED} ")]
    answers = {(row.rater, row.comparison) for row in rows}
    votes = {(row.rater, row.comparison) for row in rows if row.choice != "skip"}
    return PeoplesWork(
        raters=len({row.rater.removesuffix(SETTLED) for row in rows}),
        votes=len(votes),
        skips=len(answers - votes),
        timed=len({(row.rater, row.comparison) for row in rows if row.seconds is not None}),
        seconds=math.fsum(row.seconds for row in rows if row.seconds is not None),
        noted=len({(row.rater, row.comparison) for row in rows if row.exposed is not None}),
        exposures=sum(row.exposed is True for row in rows),
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
    among: RaterAgreement
    """People's agreement with each other, pair by pair: what a labeler can reach."""
    ac1: RaterAgreement
    alpha: RaterAgreement


def _side(p: float) -> int:
    return (p > 0.5 + 1e-9) - (p < 0.5 - 1e-9)


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
        verdicts: the votes in all; those by a principle are left out here.
        comparisons: the run's.
        judgements: the labeler's, and those of a panel.
        seed: of the bootstraps.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    voted, judged = defaultdict[str, list[Verdict]](list), defaultdict[str, list[Judgement]](list)
    for verdict in verdicts:
        if verdict.principle is None and verdict.choice in CHOICES:
            voted[verdict.comparison].append(verdict)
    for judgement in judgements:
        judged[judgement.comparison].append(judgement)
    seen = []
    for check in plan:
        opinions = [row.choice for row in voted[check.comparison] if row.choice != "both_bad"]
        p_a = combine(judged[check.comparison])
        if opinions and p_a is not None:
            people = fmean({"a": 1.0, "b": 0.0}.get(choice, 0.5) for choice in opinions)
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
    return People(
        seen=seen,
        labeler=_agreement(seen),
        audit=_agreement([row for row in seen if row.check.reason == "audit"], uniform=True),
        by_principle={name: rate for name, rows in by_principle.items() if (rate := _agreement(rows))},
        among=pairwise_agreement(votes_by_item, clusters=prompts),
        ac1=gwet_ac1(votes_by_item, categories=len(CHOICES), clusters=prompts, seed=seed),
        alpha=krippendorff_alpha(votes_by_item, clusters=prompts, seed=seed),
    )


def _agreement(rows: Sequence[Seen], *, uniform: bool = False) -> WeightedRate | None:
    """The labeler's agreement with people; None where nobody voted."""
    if not rows:
        return None
    chances = [1.0 if uniform else row.check.probability for row in rows]
    return hajek_mean([row.agreement for row in rows], chances, [row.comparison.prompt.id for row in rows])


def corrected_win_rate(wins: int, losses: int, people: People) -> CorrectedRate | None:
    """A win rate by the labeler, corrected by how often it is right on the audit set; None without one.

    Rogan and Gladen's correction, where the labeler is as often right whichever response is better: the sides of a
    comparison are arbitrary. It rests on the labeler being right about the models' replies as often as about the
    comparisons that people saw. Ties of either side are left out, as half votes are no counts.

    Args:
        wins: comparisons that the labeler gives to the one model.
        losses: comparisons that it gives to the other.
        people: the votes.
    """
    clear = [row for row in people.seen if row.check.reason == "audit" and _side(row.people) and _side(row.labeler)]
    if not clear:
        return None
    right, n = sum(row.agreement == 1 for row in clear), len(clear)
    # The same comparisons tell how often it is right where a is better, and where b is.
    return rogan_gladen(wins, wins + losses, true_positives=right, positives=n, true_negatives=right, negatives=n)


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
