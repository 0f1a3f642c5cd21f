"""Plans, who works at which item, and votes.

Votes are never changed or deleted: an undo and a changed mind are further rows, of which the last counts. A vote is
acknowledged when its transaction is committed. Constraints of the database hold the quotas and count a doubled
submission once, whatever is sent at the same time.
"""

import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Exists, Row, Select, Table, func, insert, literal, select, update

from constitutional.base.errors import UsageError
from constitutional.base.seeds import rng_of
from constitutional.judging.people import SETTLED
from constitutional.review.accounts import Rater
from constitutional.review.ballot import LONGEST_S, Ballot
from constitutional.review.database import Database
from constitutional.review.plan import BETWEEN, ItemPayload, Plan, PlannedItem, ReviewPrinciple, shown_order
from constitutional.review.schema import ASSIGNMENT, BRIEFING, EXPOSURE, ITEM, PLAN, RATER, SETTLEMENT, SIGHT, VOTE
from constitutional.review.settings import About, Task

BATCH: Final = 1000
"""Items that are written at once."""
ANSWERED: Final = ("voted", "skipped")
"""States of an item to which a rater has given an answer."""
Outcome = Literal["saved", "repeated", "not_needed", "unopened", "seen"]
"""`repeated`: the same submission came before; `not_needed`: others have given all votes that are wanted; `unopened`:
the item's texts are hidden as harmful, and the rater has not opened them; `seen`: the rater has seen the labeler's
label, so that another answer would not count, and the one before it stands."""


class StoredPlan(NamedTuple):
    """A plan in the database."""

    id: int
    plan: Plan
    wanted: int
    """Votes that its items want together."""
    overlap: int
    """The most votes that one of them wants."""
    gold: int
    """Items with a known answer, which want no votes."""
    categories: tuple[str, ...]
    """Kinds of harmful texts among its items."""
    spot_checked: bool
    """Some of its items were chosen for a budget."""


class Assigned(NamedTuple):
    """An item as one rater sees it."""

    id: int
    """The assignment's."""
    payload: ItemPayload
    """The replies stand in the order in which this rater sees them."""
    category: str
    """What is harmful about the texts; empty where nothing is known to be."""


class Answer(NamedTuple):
    """What a rater now says of an item, as the rater's page puts it."""

    vote: int
    """The id of the row; a later answer has a higher one."""
    item: Assigned
    ballot: Ballot
    created: float
    blind: bool
    """The rater has not seen the labeler's label since; a lead who has can change nothing that counts."""


class CountedVote(NamedTuple):
    """What a rater now says of an item, with replies called by their places in the comparison."""

    comparison: str
    payload: ItemPayload
    rater: str
    choice: str
    strength: int
    principles: dict[str, str]
    """`a`, `b`, `tie` or `not_applicable` by principle's id."""
    ranks: tuple[int, ...]
    """In the payload's order."""
    rewritten: str
    rationale: str
    seconds: float
    created: float
    constitution: str
    """Digest of the constitution that the run had when the vote came."""
    audit: bool
    spent: float | None = None
    """Seconds with all the rater's answers to the item, or with all the lead's decisions on it; None where that was not
    measured."""
    exposed: bool = False
    """Whether the rater saw a harmful text of the item."""
    gold: str | None = None
    """The known answer, where the item tests the rater."""
    in_place_of: "tuple[CountedVote, ...]" = ()
    """The raters' votes that a lead's decision replaces."""
    withdrawn: bool = False
    """It does not count, and was work all the same."""


class Decision(NamedTuple):
    """What a lead decides on an item on which votes or labels contradict each other."""

    choice: Literal["a", "b", "tie", "both_bad", "reopened"]
    """`reopened` takes the decision before back."""
    strength: int
    """From slightly (1) to far better (4)."""
    note: str


class ReviewStore:
    """The items of plans, and the votes on them."""

    def __init__(
        self,
        database: Database,
        *,
        minutes: float = 30,
        constitution: str = "",
        gold_share: float = 0.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._held_s = 60 * minutes
        self.constitution: Final = constitution
        """Digest of the one that the run has now."""
        self.gold_share: Final = gold_share
        """Share of the items shown to a rater that are gold."""
        self._clock = clock

    # Plans

    def plan(self, task: Task, about: About = "comparisons") -> StoredPlan | None:
        """The plan of this kind of task, if there is one."""
        with self._database.reading() as connection:
            return _stored_plan(connection, task, about)

    def runs(self) -> set[str]:
        """The names of the runs whose plans these are."""
        with self._database.reading() as connection:
            return {*connection.scalars(select(PLAN.c.run))}

    def add_plan(self, plan: Plan, items: Sequence[PlannedItem]) -> StoredPlan:
        """Write down a plan with its items in the order in which they are to be asked about.

        If another process has just added a plan of this task about the same, that one stays, and is returned.

        Raises:
            UsageError: there is no item, or none whose answer is not known.
        """
        if all(item.gold for item in items):
            raise UsageError(f"{plan.run}: there is nothing to ask people about")

        def work(connection: Connection) -> StoredPlan:
            if known := _stored_plan(connection, plan.task, plan.about):
                return known
            values = plan.model_dump(mode="json", exclude={"about"})
            values |= {"task": _key(plan.task, plan.about), "created": self._clock()}
            plan_id = connection.execute(insert(PLAN).values(values).returning(PLAN.c.id)).scalar_one()
            for start in range(0, len(items), BATCH):
                batch = enumerate(items[start : start + BATCH], start)
                rows = [item.model_dump(mode="json") | {"plan_id": plan_id, "rank": rank} for rank, item in batch]
                connection.execute(insert(ITEM), rows)
            stored = _stored_plan(connection, plan.task, plan.about)
            assert stored is not None
            return stored

        return self._database.write(work)

    def extend_plan(
        self, plan: StoredPlan, items: Sequence[PlannedItem], sensitive: Mapping[str, str] | None = None
    ) -> StoredPlan:
        """Make the plan one of these items: what is new is asked last, and votes that are in count towards it.

        `sensitive` is kept as the plan's, if it is given: the items are categorised by it.

        An item that is no longer planned keeps its votes, and is asked about no more. Where the items are chosen for a
        budget, votes beyond those that are now wanted of an item are taken off what is wanted of new items a second
        time, as far as that goes.
        """
        planned = {item.comparison: item for item in items}
        has_budget = any(item.stratum for item in items)
        needed = ITEM.c[
            "id", "comparison", "rank", "taken", "wanted", "stratum", "probability", "audit", "gold", "category"
        ]

        def work(connection: Connection) -> StoredPlan:
            own = (ITEM.c.plan_id == plan.id) & ITEM.c.gold.is_(None)
            rows = connection.execute(select(*needed).where(ITEM.c.plan_id == plan.id).with_for_update()).all()
            known = {row.comparison: row for row in rows if row.gold is None}
            wanted = {name: item.wanted for name, item in planned.items()}
            extra = sum(max(row.taken - wanted.get(name, 0), 0) for name, row in known.items())
            for name in reversed(wanted) if has_budget else ():
                if extra > 0 and wanted[name] > 1 and (name not in known or not known[name].taken):
                    wanted[name], extra = wanted[name] - 1, extra - 1
            for name, row in known.items():
                item = planned.get(name)
                values: dict[str, Any] = {"wanted": max(row.taken, wanted.get(name, 0))}
                if item is not None:
                    values |= item.model_dump(include={"stratum", "probability", "audit", "category"})
                if any(getattr(row, column) != value for column, value in values.items()):
                    connection.execute(update(ITEM).where(own, ITEM.c.id == row.id).values(values))
            if sensitive is not None:
                connection.execute(update(PLAN).where(PLAN.c.id == plan.id).values(sensitive={**sensitive}))
            rank = max((row.rank for row in rows), default=-1) + 1
            new = [item for name, item in planned.items() if name not in known]
            for place, item in enumerate(new, rank):
                values = item.model_dump(mode="json") | {"plan_id": plan.id, "rank": place}
                connection.execute(insert(ITEM).values(values | {"wanted": wanted[item.comparison]}))
            stored = _stored_plan(connection, plan.plan.task, plan.plan.about)
            assert stored is not None
            return stored

        return self._database.write(work)

    # What a rater does, in the order of a rater's day

    def settle(self, plan: StoredPlan, rater: Rater, opted_out: Collection[str]) -> None:
        """Keep that the rater has read the plan's instructions and warning, and does not want to see some categories.

        What the rater chose among the categories of other plans stays.
        """

        def work(connection: Connection) -> None:
            _lock(connection, rater)
            known = set(connection.execute(select(RATER.c.opted_out).where(RATER.c.id == rater.id)).scalar_one())
            chosen = (known - {*plan.categories}) | ({*opted_out} & {*plan.categories})
            connection.execute(update(RATER).where(RATER.c.id == rater.id).values(opted_out=sorted(chosen)))
            values = {"categories": plan.categories, "created": self._clock()}
            if not connection.execute(update(BRIEFING).where(_own_briefing(plan, rater)).values(values)).rowcount:
                ids = {"rater_id": rater.id, "plan_id": plan.id}
                connection.execute(insert(BRIEFING).values(ids | values))
            row = connection.execute(_of(plan, rater).where(ASSIGNMENT.c.state == "open")).one_or_none()
            if row is not None and chosen.intersection(row.category.split(BETWEEN)):
                _return(connection, row)

        self._database.write(work)

    def briefed(self, plan: StoredPlan, rater: Rater) -> bool:
        """Whether the rater has read the plan's instructions, and the warning of all harmful texts in it."""
        with self._database.reading() as connection:
            row = connection.execute(select(BRIEFING.c.categories).where(_own_briefing(plan, rater))).one_or_none()
        return row is not None and {*plan.categories} <= {*row.categories}

    def next(self, plan: StoredPlan, rater: Rater) -> Assigned | None:
        """The item that the rater is at, or else the next; None where there is none for this rater now."""
        own = _of(plan, rater).where(ASSIGNMENT.c.state == "open")
        now = self._clock()
        with self._database.reading() as connection:
            row = connection.execute(own).one_or_none()
        if row is not None and row.expires > now + self._held_s / 2:
            return _assigned(row)

        def work(connection: Connection) -> Assigned | None:
            _lock(connection, rater)
            if open_row := connection.execute(own).one_or_none():
                kept = update(ASSIGNMENT).where(ASSIGNMENT.c.id == open_row.id, ASSIGNMENT.c.state == "open")
                if connection.execute(kept.values(expires=now + self._held_s)).rowcount:
                    return _assigned(open_row)
            self._return_expired(connection, plan, now)
            return self._assign(connection, plan, rater, now)

        return self._database.write(work)

    def assigned(self, plan: StoredPlan, rater: Rater, assignment: int) -> Assigned | None:
        """An item that this rater has or had; None where it is somebody else's, or nobody's."""
        with self._database.reading() as connection:
            row = connection.execute(_of(plan, rater).where(ASSIGNMENT.c.id == assignment)).one_or_none()
        return None if row is None else _assigned(row)

    def vote(self, plan: StoredPlan, rater: Rater, assignment: int, key: str, ballot: Ballot) -> Outcome:
        """Keep the rater's answer; a later one on the same item supersedes it.

        Args:
            plan: the plan that the item is of.
            rater: who votes.
            assignment: the id of an assignment of this rater.
            key: of the submission; the same key sent again counts once.
            ballot: the answer.

        Raises:
            KeyError: the rater has no such assignment.
        """

        def work(connection: Connection) -> Outcome:
            _lock(connection, rater)
            row = connection.execute(
                _of(plan, rater).where(ASSIGNMENT.c.id == assignment).with_for_update(of=ASSIGNMENT)
            ).one_or_none()
            if row is None:
                raise KeyError(assignment)
            if connection.scalar(select(VOTE.c.id).where(VOTE.c.rater_id == rater.id, VOTE.c.key == key)):
                return "repeated"
            held, answers = row.state in ("open", "voted"), ballot.choice != "skip"
            if ballot.opened:
                self._expose(connection, rater.id, row.item_id, row.category)
            if _seen_by(connection, rater.id, row.item_id):
                if row.state == "open":  # an older version showed it again after the label
                    _return(connection, row)
                return "seen"
            if answers and row.category and not _opened_by(connection, rater.id, row.item_id):
                return "unopened"
            if answers and not held and not _take(connection, row.item_id):
                return "not_needed"
            if held and not answers:
                _release(connection, row.item_id)
            self._add_vote(connection, row, key, _values(row, ballot, self._clock()))
            _set(connection, row, state="voted" if answers else "skipped")
            return "saved"

        return self._database.write(work)

    def answers(self, plan: StoredPlan, rater: Rater, most: int, before: int | None = None) -> list[Answer]:
        """The rater's answers, the last first, at most so many; only those given before that vote, if it is named."""
        chosen = _given(plan, rater).order_by(VOTE.c.id.desc()).limit(most)
        if before is not None:
            chosen = chosen.where(VOTE.c.id < before)
        with self._database.reading() as connection:
            return [_answer(row) for row in connection.execute(chosen)]

    def answer(self, plan: StoredPlan, rater: Rater, assignment: int) -> Answer | None:
        """What this rater now says of an item; None where it is not answered, or is somebody else's."""
        with self._database.reading() as connection:
            row = connection.execute(_given(plan, rater).where(ASSIGNMENT.c.id == assignment)).one_or_none()
        return None if row is None else _answer(row)

    def look_again(self, plan: StoredPlan, rater: Rater, assignment: int) -> None:
        """Let the time at an answered item begin anew, as the rater thinks of changing the answer.

        The answer counts until a vote supersedes it.
        """

        def work(connection: Connection) -> None:
            _lock(connection, rater)
            own = (ASSIGNMENT.c.id == assignment) & (ASSIGNMENT.c.rater_id == rater.id)
            answered = own & (ASSIGNMENT.c.plan_id == plan.id) & ASSIGNMENT.c.state.in_(ANSWERED)
            connection.execute(update(ASSIGNMENT).where(answered).values(shown=self._clock()))

        self._database.write(work)

    def undo(self, plan: StoredPlan, rater: Rater) -> Outcome | None:
        """Take the rater's last answer back and show its item again; None where there is no answer."""
        answered = ASSIGNMENT.c.state.in_(ANSWERED)

        def work(connection: Connection) -> Outcome | None:
            _lock(connection, rater)
            last = (
                select(VOTE.c.assignment_id)
                .join(ASSIGNMENT)
                .where(VOTE.c.rater_id == rater.id, ASSIGNMENT.c.plan_id == plan.id, answered)
                .order_by(VOTE.c.id.desc())
                .limit(1)
            )
            row = connection.execute(_of(plan, rater).where(ASSIGNMENT.c.id == last.scalar_subquery())).one_or_none()
            if row is None:
                return None
            if _seen_by(connection, rater.id, row.item_id):
                return "seen"
            if row.state == "skipped" and not _take(connection, row.item_id):
                return "not_needed"
            if other := connection.execute(_of(plan, rater).where(ASSIGNMENT.c.state == "open")).one_or_none():
                _return(connection, other)
            now = self._clock()
            withdrawn = {"choice": "withdrawn", "strength": 1, "principles": {}, "rationale": "", "seconds": 0.0}
            self._add_vote(connection, row, secrets.token_urlsafe(16), withdrawn)
            _set(connection, row, state="open", shown=now, expires=now + self._held_s)
            return "saved"

        return self._database.write(work)

    def expose(self, plan: StoredPlan, rater: Rater, assignment: int) -> None:
        """Count that the rater has opened a harmful text."""

        def work(connection: Connection) -> None:
            _lock(connection, rater)
            row = connection.execute(_of(plan, rater).where(ASSIGNMENT.c.id == assignment)).one_or_none()
            if row is not None:
                self._expose(connection, rater.id, row.item_id, row.category)

        self._database.write(work)

    # What a lead does

    def see(self, plan: StoredPlan, rater: Rater, items: Collection[int]) -> None:
        """Keep that the lead sees the labeler's labels of these items; what the lead votes on them later is not blind.

        An item that the lead holds goes to others.
        """

        def work(connection: Connection) -> None:
            _lock(connection, rater)
            for item in sorted(items):
                if _seen_by(connection, rater.id, item):
                    continue
                votes = select(func.max(VOTE.c.id)).where(VOTE.c.rater_id == rater.id, VOTE.c.item_id == item)
                names = {"rater_id": rater.id, "item_id": item, "last_vote": connection.scalar(votes) or 0}
                connection.execute(insert(SIGHT).values(names | {"created": self._clock()}))
                held = _of(plan, rater).where(ASSIGNMENT.c.item_id == item, ASSIGNMENT.c.state == "open")
                if (row := connection.execute(held).one_or_none()) is not None:
                    _return(connection, row)

        self._database.write(work)

    def now(self) -> float:
        """The time by the clock that votes are dated by."""
        return self._clock()

    def decide(
        self, plan: StoredPlan, rater: Rater, item: int, version: int, decision: Decision, shown: float | None = None
    ) -> Outcome:
        """Keep a lead's decision on an item, which supersedes an earlier one.

        Args:
            plan: the plan that the item is of.
            rater: the lead.
            item: its id; the lead must have seen the labeler's label.
            version: that of the decision which the lead was shown; 0 where there was none.
            decision: the decision.
            shown: when the lead's page was made, by `now`; None where nobody knows.

        Returns:
            `not_needed` where another decision came meanwhile.

        Raises:
            KeyError: there is no such item, or the lead has not seen its label.
        """

        def work(connection: Connection) -> Outcome:
            _lock(connection, rater)
            seen = (SIGHT.c.item_id == ITEM.c.id) & (SIGHT.c.rater_id == rater.id)
            chosen = select(ITEM.c.category).join(SIGHT, seen).where(ITEM.c.id == item, ITEM.c.plan_id == plan.id)
            row = connection.execute(chosen.with_for_update(of=ITEM)).one_or_none()
            if row is None:
                raise KeyError(item)
            last = select(SETTLEMENT).where(SETTLEMENT.c.item_id == item).order_by(SETTLEMENT.c.version.desc()).limit(1)
            latest = connection.execute(last).one_or_none()
            if latest is not None and latest.version != version:
                same = (latest.rater_id, latest.choice, latest.strength, latest.note) == (rater.id, *decision)
                return "repeated" if same else "not_needed"
            now = self._clock()
            seconds = None if shown is None else min(max(now - shown, 0.0), LONGEST_S)
            names = {"item_id": item, "rater_id": rater.id, "version": version + 1}
            values = (
                names | {"created": now, "seconds": seconds} | decision._asdict() | {"constitution": self.constitution}
            )
            connection.execute(insert(SETTLEMENT).values(values))
            self._expose(connection, rater.id, item, row.category)
            return "saved"

        return self._database.write(work)

    # Progress and results

    def answered(self, plan: StoredPlan, rater: Rater | None = None) -> int:
        """Items that the rater has voted on, or votes of all raters on items that are not gold."""
        counted = select(func.count()).where(ASSIGNMENT.c.plan_id == plan.id, ASSIGNMENT.c.state == "voted")
        if rater is None:
            counted = counted.join(ITEM, ASSIGNMENT.c.item_id == ITEM.c.id).where(ITEM.c.gold.is_(None))
        else:
            counted = counted.where(ASSIGNMENT.c.rater_id == rater.id)
        with self._database.reading() as connection:
            return connection.scalar(counted) or 0

    def counted_votes(self, plan: StoredPlan, *, audit: bool, gold: bool = False) -> list[CountedVote]:
        """What every rater now says, by the items' order and the raters' names; skips are included.

        Left out is what a lead said of an item after seeing the labeler's label.

        Args:
            plan: the plan of the items.
            audit: also items that are only to measure.
            gold: only items with a known answer, which are otherwise left out.
        """
        latest = select(func.max(VOTE.c.id)).group_by(VOTE.c.assignment_id)
        chosen = (
            _answers(plan, audit=audit)
            .where(VOTE.c.id.in_(latest), VOTE.c.choice != "withdrawn", ~_SEEN)
            .where(ITEM.c.gold.is_not(None) if gold else ITEM.c.gold.is_(None))
        )
        with self._database.reading() as connection:
            return [_counted(row) for row in connection.execute(chosen)]

    def decided_votes(self, plan: StoredPlan, *, audit: bool) -> list[CountedVote]:
        """As `counted_votes`, but where a lead has settled an item, the decision in the place of the raters' votes."""
        settled = self.settled_votes(plan, audit=audit)
        votes, replaced = list[CountedVote](), defaultdict[str, list[CountedVote]](list)
        for vote in self.counted_votes(plan, audit=audit):
            (replaced[vote.comparison] if vote.comparison in settled else votes).append(vote)
        return [*votes, *(row._replace(in_place_of=tuple(replaced[name])) for name, row in settled.items())]

    def all_votes(self, plan: StoredPlan, *, audit: bool) -> list[CountedVote]:
        """All that a file of the votes holds: those that count, those on gold items, and work of which none counts."""
        on_gold = self.counted_votes(plan, audit=audit, gold=True)
        return [*self.decided_votes(plan, audit=audit), *on_gold, *self.withdrawn_votes(plan, audit=audit)]

    def settled_votes(self, plan: StoredPlan, *, audit: bool) -> dict[str, CountedVote]:
        """The leads' decisions by comparison, as votes of "NAME (settled)", in the items' order."""
        latest = select(func.max(SETTLEMENT.c.id)).group_by(SETTLEMENT.c.item_id)
        chosen = _settlements(plan, audit=audit).where(SETTLEMENT.c.id.in_(latest), SETTLEMENT.c.choice != "reopened")
        with self._database.reading() as connection:
            return {row.comparison: _settled(row) for row in connection.execute(chosen)}

    def withdrawn_votes(self, plan: StoredPlan, *, audit: bool) -> list[CountedVote]:
        """The work of raters and leads of which no answer counts, as skips that are marked as withdrawn.

        These are answers taken back, those of leads who had seen the label, decisions that another one replaced or
        that were reopened, and harmful texts that were opened and not answered.
        """
        latest = select(func.max(VOTE.c.id)).group_by(VOTE.c.assignment_id)
        answers = _answers(plan, audit=audit).where(VOTE.c.id.in_(latest), (VOTE.c.choice == "withdrawn") | _SEEN)
        last = select(func.max(SETTLEMENT.c.id)).group_by(SETTLEMENT.c.item_id, SETTLEMENT.c.rater_id)
        newest = select(func.max(SETTLEMENT.c.id)).group_by(SETTLEMENT.c.item_id)
        replaced = SETTLEMENT.c.id.not_in(newest) | (SETTLEMENT.c.choice == "reopened")
        decisions = _settlements(plan, audit=audit).where(SETTLEMENT.c.id.in_(last), replaced)
        opened: Select[Any] = (
            select(ITEM.c.comparison, ITEM.c.payload, ITEM.c.audit, ITEM.c.gold, RATER.c.name, EXPOSURE.c.created)
            .select_from(EXPOSURE)
            .join(ITEM, EXPOSURE.c.item_id == ITEM.c.id)
            .join(RATER, EXPOSURE.c.rater_id == RATER.c.id)
            .where(ITEM.c.plan_id == plan.id)
            .where(~_of_the_same(VOTE), ~_of_the_same(SETTLEMENT))
            .order_by(ITEM.c.rank, RATER.c.name)
        )
        if not audit:
            opened = opened.where(ITEM.c.audit.is_(False))
        with self._database.reading() as connection:
            rows = [_counted(row) for row in connection.execute(answers)]
            rows += [_settled(row) for row in connection.execute(decisions)]
            rows += [_opened(row) for row in connection.execute(opened)]
        return [
            row._replace(choice="skip", strength=1, principles={}, ranks=(), rewritten="", rationale="", withdrawn=True)
            for row in rows
        ]

    # Parts of the transactions above

    def _assign(self, connection: Connection, plan: StoredPlan, rater: Rater, now: float) -> Assigned | None:
        opted_out = connection.execute(select(RATER.c.opted_out).where(RATER.c.id == rater.id)).scalar_one()
        ordinary = _free(plan, rater, opted_out).where(ITEM.c.gold.is_(None))
        # What the rater gave back comes first: a gold item that was taken back would otherwise wait for a draw.
        back = ASSIGNMENT.alias()
        own = (back.c.item_id == ITEM.c.id) & (back.c.rater_id == rater.id) & (back.c.state == "returned")
        returned = _free(plan, rater, opted_out).join(back, own).order_by(None).order_by(back.c.id)
        item = _first(connection, returned)
        # Gold items come only while there is other work, so that nobody works at them alone.
        if item is None and self._gold_is_due(connection, plan, rater) and connection.execute(ordinary).one_or_none():
            item = _first(connection, _free(plan, rater, opted_out).where(ITEM.c.gold.is_not(None)))
        item = item or _first(connection, ordinary)
        if item is None or not _take(connection, item.id):
            return None
        times = {"state": "open", "shown": now, "expires": now + self._held_s}
        again = update(ASSIGNMENT).where(ASSIGNMENT.c.item_id == item.id, ASSIGNMENT.c.rater_id == rater.id)
        if not connection.execute(again.values(times)).rowcount:
            order = shown_order(plan.plan.seed, item.comparison, rater.name, len(item.payload["replies"]))
            ids = {"plan_id": plan.id, "item_id": item.id, "rater_id": rater.id, "shown_order": order}
            connection.execute(insert(ASSIGNMENT).values(ids | times))
        row = connection.execute(_of(plan, rater).where(ASSIGNMENT.c.state == "open")).one()
        return _assigned(row)

    def _gold_is_due(self, connection: Connection, plan: StoredPlan, rater: Rater) -> bool:
        """A draw for each item that the rater is shown."""
        if not self.gold_share:
            return False
        own = select(func.count()).where(ASSIGNMENT.c.plan_id == plan.id, ASSIGNMENT.c.rater_id == rater.id)
        draw = rng_of(plan.plan.seed, "gold", rater.name, connection.scalar(own) or 0).random()
        return draw < self.gold_share

    def _return_expired(self, connection: Connection, plan: StoredPlan, now: float) -> None:
        late = (ASSIGNMENT.c.plan_id == plan.id) & (ASSIGNMENT.c.state == "open") & (ASSIGNMENT.c.expires < now)
        rows = connection.execute(select(ASSIGNMENT).where(late).with_for_update(skip_locked=True))
        for row in rows.all():
            _return(connection, row)

    def _add_vote(self, connection: Connection, row: Row[Any], key: str, values: dict[str, Any]) -> None:
        latest = connection.scalar(select(func.max(VOTE.c.version)).where(VOTE.c.assignment_id == row.id))
        names = {"assignment_id": row.id, "item_id": row.item_id, "rater_id": row.rater_id, "key": key}
        told = {"version": (latest or 0) + 1, "constitution": self.constitution, "created": self._clock()}
        connection.execute(insert(VOTE).values(names | told | values))

    def _expose(self, connection: Connection, rater: int, item: int, category: str) -> None:
        if category and not _opened_by(connection, rater, item):
            names = {"rater_id": rater, "item_id": item, "category": category}
            connection.execute(insert(EXPOSURE).values(names | {"created": self._clock()}))


def _key(task: Task, about: About) -> str:
    return task if about == "comparisons" else f"{task} of {about}"


def _stored_plan(connection: Connection, task: Task, about: About) -> StoredPlan | None:
    row = connection.execute(select(PLAN).where(PLAN.c.task == _key(task, about))).one_or_none()
    if row is None:
        return None
    principles = tuple(map(ReviewPrinciple.model_validate, row.principles))
    plan = Plan(
        run=row.run,
        task=task,
        about=about,
        constitution=row.constitution,
        seed=row.seed,
        principles=principles,
        sensitive=row.sensitive,
    )
    sums = select(func.sum(ITEM.c.wanted), func.max(ITEM.c.wanted)).where(
        ITEM.c.plan_id == row.id, ITEM.c.gold.is_(None)
    )
    wanted, overlap = connection.execute(sums).one()
    known = select(func.count()).where(ITEM.c.plan_id == row.id, ITEM.c.gold.is_not(None))
    gold = connection.scalar(known) or 0
    categories = connection.scalars(select(ITEM.c.category).where(ITEM.c.plan_id == row.id).distinct())
    names = {name for category in categories for name in category.split(BETWEEN) if name}
    chosen = select(ITEM.c.id).where(ITEM.c.plan_id == row.id, ITEM.c.gold.is_(None), ITEM.c.stratum != "").limit(1)
    spot_checked = connection.scalar(chosen) is not None
    return StoredPlan(row.id, plan, int(wanted), overlap, gold, tuple(sorted(names)), spot_checked)


_SEEN: Final = (
    select(SIGHT.c.id)
    .where(SIGHT.c.rater_id == VOTE.c.rater_id, SIGHT.c.item_id == VOTE.c.item_id, SIGHT.c.last_vote < VOTE.c.id)
    .exists()
)
"""Whether the rater had seen the labeler's label when voting, which older versions let happen."""


def _answers(plan: StoredPlan, *, audit: bool) -> Select[Any]:
    """Answers to a plan's items with what is known of them, by the items' order and the raters' names."""
    answers = VOTE.alias()
    spent = select(func.sum(answers.c.seconds)).where(answers.c.assignment_id == VOTE.c.assignment_id)
    known = (spent.scalar_subquery().label("spent"), _exposed_to(VOTE).label("exposed"))
    chosen = (
        select(ITEM.c.comparison, ITEM.c.payload, ITEM.c.audit, ITEM.c.gold, RATER.c.name, *known, VOTE)
        .select_from(VOTE)
        .join(ITEM, VOTE.c.item_id == ITEM.c.id)
        .join(RATER, VOTE.c.rater_id == RATER.c.id)
        .where(ITEM.c.plan_id == plan.id)
        .order_by(ITEM.c.rank, RATER.c.name)
    )
    return chosen if audit else chosen.where(ITEM.c.audit.is_(False))


def _settlements(plan: StoredPlan, *, audit: bool) -> Select[Any]:
    """Leads' decisions on a plan's items with what is known of them, by the items' order."""
    own = SETTLEMENT.alias()
    same = (own.c.item_id == SETTLEMENT.c.item_id) & (own.c.rater_id == SETTLEMENT.c.rater_id)
    spent = select(func.sum(own.c.seconds)).where(same).scalar_subquery().label("spent")
    exposed = _exposed_to(SETTLEMENT).label("exposed")
    chosen = (
        select(ITEM.c.comparison, ITEM.c.payload, ITEM.c.audit, RATER.c.name, spent, exposed, SETTLEMENT)
        .select_from(SETTLEMENT)
        .join(ITEM, SETTLEMENT.c.item_id == ITEM.c.id)
        .join(RATER, SETTLEMENT.c.rater_id == RATER.c.id)
        .where(ITEM.c.plan_id == plan.id)
        .order_by(ITEM.c.rank)
    )
    return chosen if audit else chosen.where(ITEM.c.audit.is_(False))


def _of_the_same(answer: Table) -> Exists:
    """Whether who opened a harmful text has answered, or decided on, its item."""
    own = (answer.c.rater_id == EXPOSURE.c.rater_id) & (answer.c.item_id == EXPOSURE.c.item_id)
    return select(answer.c.id).where(own).exists()


def _exposed_to(answer: Table) -> Exists:
    """Whether who gave an answer has seen a harmful text of its item."""
    own = (EXPOSURE.c.rater_id == answer.c.rater_id) & (EXPOSURE.c.item_id == answer.c.item_id)
    return select(EXPOSURE.c.id).where(own).exists()


def _opened_by(connection: Connection, rater: int, item: int) -> bool:
    own = (EXPOSURE.c.rater_id == rater) & (EXPOSURE.c.item_id == item)
    return connection.scalar(select(EXPOSURE.c.id).where(own)) is not None


def _seen_by(connection: Connection, rater: int, item: int) -> bool:
    own = (SIGHT.c.rater_id == rater) & (SIGHT.c.item_id == item)
    return connection.scalar(select(SIGHT.c.id).where(own)) is not None


def _lock(connection: Connection, rater: Rater) -> None:
    """What one rater sends from two windows at once is done one after the other."""
    connection.execute(select(RATER.c.id).where(RATER.c.id == rater.id).with_for_update()).one()


def _own_briefing(plan: StoredPlan, rater: Rater) -> ColumnElement[bool]:
    return (BRIEFING.c.rater_id == rater.id) & (BRIEFING.c.plan_id == plan.id)


def _of(plan: StoredPlan, rater: Rater) -> Select[Any]:
    """The rater's assignments, with what a page may show of their items."""
    return (
        select(ASSIGNMENT, ITEM.c.payload, ITEM.c.category)
        .join(ITEM, ASSIGNMENT.c.item_id == ITEM.c.id)
        .where(ASSIGNMENT.c.rater_id == rater.id, ASSIGNMENT.c.plan_id == plan.id)
    )


def _given(plan: StoredPlan, rater: Rater) -> Select[Any]:
    """The rater's assignments that are answered, with what the rater now says."""
    latest = select(func.max(VOTE.c.id)).where(VOTE.c.rater_id == rater.id).group_by(VOTE.c.assignment_id)
    seen = select(SIGHT.c.id).where(SIGHT.c.rater_id == rater.id, SIGHT.c.item_id == ITEM.c.id).exists()
    said = (VOTE.c.choice, VOTE.c.strength, VOTE.c.principles, VOTE.c.ranks, VOTE.c.rewritten, VOTE.c.rationale)
    return (
        _of(plan, rater)
        .join(VOTE, VOTE.c.assignment_id == ASSIGNMENT.c.id)
        .where(ASSIGNMENT.c.state.in_(ANSWERED), VOTE.c.id.in_(latest))
        .add_columns(VOTE.c.id.label("vote"), VOTE.c.created, seen.label("seen"), *said)
    )


def _free(plan: StoredPlan, rater: Rater, opted_out: Collection[str]) -> Select[Any]:
    """The first item that wants a vote of this rater."""
    own = (ASSIGNMENT.c.item_id == ITEM.c.id) & (ASSIGNMENT.c.rater_id == rater.id)
    return (
        select(ITEM.c.id, ITEM.c.comparison, ITEM.c.payload)
        .where(ITEM.c.plan_id == plan.id, ITEM.c.taken < ITEM.c.wanted, *(~_is_of(name) for name in opted_out))
        .where(~select(ASSIGNMENT.c.id).where(own, ASSIGNMENT.c.state != "returned").exists())
        .where(~select(SIGHT.c.id).where(SIGHT.c.item_id == ITEM.c.id, SIGHT.c.rater_id == rater.id).exists())
        .order_by(ITEM.c.rank)
        .limit(1)
    )


def _is_of(category: str) -> ColumnElement[bool]:
    """Whether the category is one of an item's."""
    categories = literal(BETWEEN) + ITEM.c.category + BETWEEN
    return categories.contains(f"{BETWEEN}{category}{BETWEEN}", autoescape=True)


def _first(connection: Connection, free: Select[Any]) -> Row[Any] | None:
    """PostgreSQL passes over items that another rater is taking; where all are, it waits for one."""
    return (
        connection.execute(free.with_for_update(skip_locked=True)).one_or_none()
        or connection.execute(free.with_for_update()).one_or_none()
    )


def _assigned(row: Row[Any]) -> Assigned:
    payload = ItemPayload.model_validate(row.payload)
    shown = tuple(payload.replies[place] for place in row.shown_order)
    return Assigned(row.id, payload.model_copy(update={"replies": shown}), row.category)


def _take(connection: Connection, item: int) -> bool:
    """Take one of the votes that the item wants; False where none is left."""
    free = update(ITEM).where(ITEM.c.id == item, ITEM.c.taken < ITEM.c.wanted)
    return connection.execute(free.values(taken=ITEM.c.taken + 1)).rowcount == 1


def _release(connection: Connection, item: int) -> None:
    connection.execute(update(ITEM).where(ITEM.c.id == item).values(taken=ITEM.c.taken - 1))


def _return(connection: Connection, row: Row[Any]) -> None:
    """Give an open item back to the others."""
    _set(connection, row, state="returned")
    _release(connection, row.item_id)


def _set(connection: Connection, row: Row[Any], **values: object) -> None:
    connection.execute(update(ASSIGNMENT).where(ASSIGNMENT.c.id == row.id).values(**values))


def _values(row: Row[Any], ballot: Ballot, now: float) -> dict[str, Any]:
    """The ballot with replies called by their places in the comparison."""
    order: list[int] = row.shown_order
    names = {"first": "ab"[order[0]], "second": "ab"[order[1]]} if len(order) == 2 else {}
    ranks = None
    if ballot.choice == "ranked":
        by_place = dict(zip(order, ballot.ranks, strict=True))
        ranks = [by_place[place] for place in range(len(order))]
    elapsed = max(now - row.shown, 0.0)
    return {
        "choice": names.get(ballot.choice, ballot.choice),
        "strength": ballot.strength,
        "principles": {name: names.get(choice, choice) for name, choice in ballot.principles.items()},
        "ranks": ranks,
        "rewritten": ballot.rewritten if ballot.choice == "rewritten" else None,
        "rationale": ballot.rationale,
        "seconds": min(elapsed if ballot.seconds is None else ballot.seconds, elapsed, LONGEST_S),
    }


def _answer(row: Row[Any]) -> Answer:
    """The rater's answer in terms of what the page showed, as `_values` read it."""
    order = row.shown_order
    places: dict[str, Any] = (
        dict(zip(("ab"[place] for place in order), ("first", "second"), strict=True)) if len(order) == 2 else {}
    )
    ballot = Ballot(
        choice=places.get(row.choice, row.choice),
        strength=row.strength,
        principles={name: places.get(choice, choice) for name, choice in row.principles.items()},
        ranks=tuple(row.ranks[place] for place in order) if row.ranks else (),
        rewritten=row.rewritten or "",
        rationale=row.rationale,
    )
    return Answer(row.vote, _assigned(row), ballot, row.created, not row.seen)


def _counted(row: Row[Any]) -> CountedVote:
    return CountedVote(
        comparison=row.comparison,
        payload=ItemPayload.model_validate(row.payload),
        rater=row.name,
        choice=row.choice,
        strength=row.strength,
        principles=row.principles,
        ranks=tuple(row.ranks or ()),
        rewritten=row.rewritten or "",
        rationale=row.rationale,
        seconds=row.seconds,
        created=row.created,
        constitution=row.constitution,
        audit=row.audit,
        spent=row.spent,
        exposed=row.exposed,
        gold=row.gold,
    )


def _settled(row: Row[Any]) -> CountedVote:
    return CountedVote(
        comparison=row.comparison,
        payload=ItemPayload.model_validate(row.payload),
        rater=f"{row.name}{SETTLED}",
        choice=row.choice,
        strength=row.strength,
        principles={},
        ranks=(),
        rewritten="",
        rationale=row.note,
        seconds=row.seconds or 0.0,
        created=row.created,
        constitution=row.constitution,
        audit=row.audit,
        spent=row.spent,
        exposed=row.exposed,
    )


def _opened(row: Row[Any]) -> CountedVote:
    return CountedVote(
        comparison=row.comparison,
        payload=ItemPayload.model_validate(row.payload),
        rater=row.name,
        choice="skip",
        strength=1,
        principles={},
        ranks=(),
        rewritten="",
        rationale="",
        seconds=0.0,
        created=row.created,
        constitution="",
        audit=row.audit,
        spent=0.0,
        exposed=True,
        gold=row.gold,
    )
