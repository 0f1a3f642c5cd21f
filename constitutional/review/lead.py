"""What a lead sees of a review: who did what, how far raters and the labeler agree, and what is to be settled."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, Final, NamedTuple, get_args

from sqlalchemy import func, select

from constitutional.base.records import LABELER, Comparison, Judgement, SpotCheck
from constitutional.base.stats import Interval, clustered_share, wilson
from constitutional.judging.people import CHOICES, People, Seen, on_gold, people_of
from constitutional.review.accounts import Rater, Role
from constitutional.review.database import Database
from constitutional.review.export import verdicts_of
from constitutional.review.plan import BETWEEN, ItemPayload
from constitutional.review.schema import ASSIGNMENT, EXPOSURE, ITEM, RATER, SETTLEMENT, SIGHT, VOTE
from constitutional.review.store import CountedVote, ReviewStore, StoredPlan

MOST_LOOKED_THROUGH: Final = 500
"""Items that want votes, of which the page says how many no rater can get."""


class Labels(NamedTuple):
    """What the run holds of the comparisons that raters are asked about."""

    comparisons: Sequence[Comparison]
    judgements: Sequence[Judgement]


class LeadSources(NamedTuple):
    """What a lead's pages are made from, beside the votes."""

    database: Database
    labels: Callable[[], Labels]
    """Called for each page, so it should remember what it has read."""
    constitution: Path | None
    """The file of the run's constitution; None where the run uses a shipped one."""
    pay_per_hour: float | None
    currency: str = ""


class RaterWork(NamedTuple):
    """What a rater has done for one plan."""

    name: str
    role: Role
    votes: int
    skips: int
    seconds: float | None
    """The median time of a vote; None without votes."""
    hours: float
    """At all items, also those skipped, those answered anew, and those settled."""
    exposures: int
    """Items with harmful texts that the rater has seen."""
    opted_out: tuple[str, ...]


class LeadItem(NamedTuple):
    """An item with votes."""

    id: int
    comparison: str
    payload: ItemPayload
    category: str
    version: int
    """That of the last decision; 0 where there is none."""


class RaterShare(NamedTuple):
    """A share of n outcomes, with a 95% interval."""

    value: float
    interval: Interval
    n: int


class RaterAccuracy(NamedTuple):
    """How far one rater agrees with the others, and with known answers."""

    name: str
    others: RaterShare | None
    """None where nobody else voted on an item of this rater."""
    gold: RaterShare | None
    """None where the rater voted on no item with a known answer."""


class Mistake(NamedTuple):
    """An item on which people prefer another reply than the labeler."""

    item: LeadItem
    principle: str
    """By which the labeler prefers the other reply; all by which it judged, where the mistake is that of none alone."""
    kind: str
    """Of the prompt; empty where it has none."""
    p_a: float
    """The labeler's probability that reply a is better."""


class Overview(NamedTuple):
    """All that the votes say at one time."""

    items: dict[str, LeadItem]
    """By comparison, in the plan's order."""
    votes: dict[str, list[CountedVote]]
    """The raters' own, by comparison."""
    settled: dict[str, CountedVote]
    people: People
    raters: list[RaterAccuracy]
    contradictions: list[LeadItem]
    """Items that are not settled, on which raters prefer different replies."""
    labeler_wrong: list[Mistake]
    """On others that are not settled; the surest first."""


def works_of(database: Database, plan: StoredPlan) -> list[RaterWork]:
    """What all raters have done, by name."""
    votes = (
        select(VOTE.c.assignment_id, VOTE.c.rater_id, VOTE.c.choice, VOTE.c.seconds)
        .join(ITEM, VOTE.c.item_id == ITEM.c.id)
        .where(ITEM.c.plan_id == plan.id)
        .order_by(VOTE.c.id)
    )
    exposed = (
        select(EXPOSURE.c.rater_id, func.count().label("items"))
        .join(ITEM, EXPOSURE.c.item_id == ITEM.c.id)
        .where(ITEM.c.plan_id == plan.id)
        .group_by(EXPOSURE.c.rater_id)
    )
    settling = (
        select(SETTLEMENT.c.rater_id, func.sum(SETTLEMENT.c.seconds).label("seconds"))
        .join(ITEM, SETTLEMENT.c.item_id == ITEM.c.id)
        .where(ITEM.c.plan_id == plan.id)
        .group_by(SETTLEMENT.c.rater_id)
    )
    with database.reading() as connection:
        raters = connection.execute(select(RATER).order_by(RATER.c.name)).all()
        rows = connection.execute(votes).all()
        settled: dict[int, float] = {row.rater_id: row.seconds or 0.0 for row in connection.execute(settling)}
        exposures: dict[int, int] = {row.rater_id: row.items for row in connection.execute(exposed)}
    latest = {row.assignment_id: row for row in rows}
    works = []
    for rater in raters:
        own = [row for row in latest.values() if row.rater_id == rater.id]
        seconds = [row.seconds for row in own if row.choice not in ("skip", "withdrawn")]
        works.append(
            RaterWork(
                name=rater.name,
                role=rater.role,
                votes=len(seconds),
                skips=sum(row.choice == "skip" for row in own),
                seconds=median(seconds) if seconds else None,
                hours=(sum(row.seconds for row in rows if row.rater_id == rater.id) + settled.get(rater.id, 0.0))
                / 3600,
                exposures=exposures.get(rater.id, 0),
                opted_out=tuple(rater.opted_out),
            )
        )
    return works


def out_of_raters(database: Database, plan: StoredPlan) -> int:
    """Items that want a vote and that no rater can get: all have answered, skipped or opted out, or saw the label.

    Where very many items want one, they are not looked through, and it is 0.
    """
    wanting = select(ITEM.c.id, ITEM.c.category).where(ITEM.c.plan_id == plan.id, ITEM.c.taken < ITEM.c.wanted)
    wanting = wanting.where(ITEM.c.gold.is_(None)).limit(MOST_LOOKED_THROUGH + 1)
    with database.reading() as connection:
        items = connection.execute(wanting).all()
        if len(items) > MOST_LOOKED_THROUGH:
            return 0
        ids, raters = [item.id for item in items], connection.execute(select(RATER)).all()
        had = select(ASSIGNMENT.c.item_id, ASSIGNMENT.c.rater_id).where(
            ASSIGNMENT.c.item_id.in_(ids), ASSIGNMENT.c.state != "returned"
        )
        seen = select(SIGHT.c.item_id, SIGHT.c.rater_id).where(SIGHT.c.item_id.in_(ids))
        closed = {(row.item_id, row.rater_id) for query in (had, seen) for row in connection.execute(query)}
    return sum(
        all((item.id, row.id) in closed or {*row.opted_out} & {*item.category.split(BETWEEN)} for row in raters)
        for item in items
    )


def changes(database: Database, plan: StoredPlan) -> tuple[int, ...]:
    """How many votes and decisions there are on the plan's items, and labels that leads saw: none is ever deleted."""
    with database.reading() as connection:
        rows = [
            connection.scalar(select(func.count(table.c.id)).join(ITEM).where(ITEM.c.plan_id == plan.id))
            for table in (VOTE, SETTLEMENT, SIGHT)
        ]
    return tuple(number or 0 for number in rows)


def seen_by(database: Database, plan: StoredPlan, rater: Rater) -> set[str]:
    """Comparisons whose label a lead may see: those that the lead has voted on, or chose to see."""
    latest = select(func.max(VOTE.c.id)).where(VOTE.c.rater_id == rater.id).group_by(VOTE.c.item_id)
    answered = select(VOTE.c.item_id).where(VOTE.c.id.in_(latest), VOTE.c.choice.not_in(("skip", "withdrawn")))
    chosen = select(SIGHT.c.item_id).where(SIGHT.c.rater_id == rater.id)
    visible = ITEM.c.id.in_(answered) | ITEM.c.id.in_(chosen)
    with database.reading() as connection:
        return {*connection.scalars(select(ITEM.c.comparison).where(ITEM.c.plan_id == plan.id, visible))}


def overview(database: Database, store: ReviewStore, plan: StoredPlan, labels: Labels) -> Overview:
    """What the votes on pairs say now. Settled items count in the agreement with their raters' own votes."""
    known = {comparison.id: comparison for comparison in labels.comparisons}
    votes = defaultdict[str, list[CountedVote]](list)
    for vote in store.counted_votes(plan, audit=True):
        if vote.comparison in known:
            votes[vote.comparison].append(vote)
    settled = store.settled_votes(plan, audit=True)
    items, checks = _items(database, plan, votes)
    verdicts = verdicts_of(vote for group in votes.values() for vote in group)
    people = people_of(checks, verdicts, labels.comparisons, labels.judgements, plan.plan.seed)
    judged = defaultdict[str, list[Judgement]](list)
    for judgement in labels.judgements:
        judged[judgement.comparison].append(judgement)
    table = {
        name: {vote.rater: vote.choice for vote in group if vote.choice in CHOICES} for name, group in votes.items()
    }
    prompts = {name: known[name].prompt.id for name in table}
    raters = sorted({rater for by_rater in table.values() for rater in by_rater})
    on_known = on_gold(verdicts_of(store.counted_votes(plan, audit=True, gold=True)))
    contradictions = [
        item for name, item in items.items() if {"a", "b"} <= {*table[name].values()} and name not in settled
    ]
    clashing = {item.comparison for item in contradictions}
    wrong = [
        mistake
        for row in people.seen
        if row.agreement == 0 and row.comparison.id not in settled and row.comparison.id not in clashing
        for mistake in _mistakes(row, items[row.comparison.id], judged[row.comparison.id])
    ]
    return Overview(
        items=items,
        votes=dict(votes),
        settled=settled,
        people=people,
        raters=[
            RaterAccuracy(
                rater, _with_others(rater, table, prompts), _share_of(*on_known[rater]) if rater in on_known else None
            )
            for rater in sorted({*raters, *on_known})
        ],
        contradictions=contradictions,
        labeler_wrong=sorted(wrong, key=lambda mistake: -abs(mistake.p_a - 0.5)),
    )


def _mistakes(row: Seen, item: LeadItem, judgements: Iterable[Judgement]) -> Iterator[Mistake]:
    """The labeler's mistakes on an item, one for each principle by which it contradicts people."""
    kind, right, alone = row.comparison.prompt.info.get("kind", ""), row.people > 0.5, False
    for judgement in judgements:
        p_a = judgement.p_a
        if judgement.judge == LABELER and p_a is not None and p_a != 0.5 and (p_a > 0.5) != right:
            alone = True
            yield Mistake(item, judgement.principle, kind, p_a)
    if not alone:  # as where the judges of a panel are wrong together
        yield Mistake(item, ", ".join(row.principles), kind, row.labeler)


def _items(
    database: Database, plan: StoredPlan, votes: Mapping[str, object]
) -> tuple[dict[str, LeadItem], list[SpotCheck]]:
    version = select(func.max(SETTLEMENT.c.version)).where(SETTLEMENT.c.item_id == ITEM.c.id).scalar_subquery()
    voted = select(VOTE.c.item_id).distinct()
    chosen = select(ITEM, version.label("version")).where(ITEM.c.plan_id == plan.id, ITEM.c.id.in_(voted))
    items: dict[str, LeadItem] = {}
    checks: list[SpotCheck] = []
    with database.reading() as connection:
        for row in connection.execute(chosen.order_by(ITEM.c.rank)):
            if row.comparison in votes:
                payload = ItemPayload.model_validate(row.payload)
                items[row.comparison] = LeadItem(row.id, row.comparison, payload, row.category, row.version or 0)
                checks.append(_check(row))
    return items, checks


def _check(row: Any) -> SpotCheck:  # noqa: ANN401 - a row of the database
    reasons = get_args(SpotCheck.model_fields["reason"].annotation)
    reason = "audit" if row.audit else row.stratum if row.stratum in reasons else "random"
    # An item that was skipped, and is planned no more, wants no vote.
    values = {"comparison": row.comparison, "probability": row.probability, "votes": max(row.wanted, 1)}
    return SpotCheck.model_validate({**values, "reason": reason})


def _with_others(
    rater: str, votes: Mapping[str, Mapping[str, str]], prompts: Mapping[str, Hashable]
) -> RaterShare | None:
    """Of the others' votes on a rater's items, the share that says the same, a mean over items."""

    def shares() -> Iterator[tuple[float, Hashable]]:
        for name, by_rater in votes.items():
            others = [choice for other, choice in by_rater.items() if other != rater]
            if rater in by_rater and others:
                yield fmean(choice == by_rater[rater] for choice in others), prompts[name]

    outcomes = list(shares())
    if not outcomes:
        return None
    values = [value for value, _ in outcomes]
    return RaterShare(fmean(values), clustered_share(values, [prompt for _, prompt in outcomes]), len(values))


def _share_of(right: int, n: int) -> RaterShare:
    return RaterShare(right / n, wilson(right, n), n)
