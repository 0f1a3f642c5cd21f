"""What the store promises, on SQLite and on PostgreSQL."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import alembic.command
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from constitutional.base.errors import ConfigurationError, RunError, UsageError
from constitutional.review.accounts import Rater
from constitutional.review.ballot import Ballot
from constitutional.review.database import FILE, MIGRATIONS, Database
from constitutional.review.plan import Plan, PlannedItem
from constitutional.review.schema import ASSIGNMENT, EXPOSURE, ITEM, METADATA, RATER, VOTE
from constitutional.review.store import Outcome, ReviewStore, StoredPlan
from tests.review.reviewing import PRINCIPLES, Setting, item, setting


def choices(made: Setting) -> list[tuple[str, str, str]]:
    return [(vote.comparison, vote.rater, vote.choice) for vote in made.store.counted_votes(made.plan, audit=True)]


def question(made: Setting, rater: Rater) -> str | None:
    shown = made.store.next(made.plan, rater)
    return shown.payload.messages[-1].content if shown else None


def vote(made: Setting, rater: Rater, key: str, ballot: Ballot | None = None) -> Outcome:
    shown = made.store.next(made.plan, rater)
    assert shown is not None
    return made.store.vote(made.plan, rater, shown.id, key, ballot or Ballot("tie", opened=True))


def taken(made: Setting) -> list[tuple[int, int]]:
    with made.database.reading() as connection:
        rows = connection.execute(select(ITEM.c.taken, ITEM.c.wanted).order_by(ITEM.c.rank))
        return [(row.taken, row.wanted) for row in rows]


def test_items_come_by_rank_and_each_to_as_many_raters_as_it_wants(database: Database) -> None:
    made = setting(database, [item(0), item(1, wanted=2), item(2)])
    ada, bob = made.rater("ada"), made.rater("bob")
    assert question(made, ada) == "Question 0?"
    assert question(made, ada) == "Question 0?"  # and again, after the browser was closed
    assert question(made, bob) == "Question 1?"
    assert vote(made, ada, "1") == "saved"
    assert question(made, ada) == "Question 1?"
    vote(made, ada, "2")
    vote(made, bob, "1")  # of another rater, so the key may be the same
    assert question(made, ada) == "Question 2?"
    assert question(made, bob) is None
    assert taken(made) == [(1, 1), (2, 2), (1, 1)]
    assert choices(made) == [("c0", "ada", "tie"), ("c1", "ada", "tie"), ("c1", "bob", "tie")]


def test_a_doubled_submission_counts_once(database: Database) -> None:
    made = setting(database, [item(0), item(1)])
    ada = made.rater("ada")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    outcomes = [made.store.vote(made.plan, ada, shown.id, "k", Ballot("tie")) for _ in range(3)]
    assert outcomes == ["saved", "repeated", "repeated"]
    with database.reading() as connection:
        assert connection.scalar(select(func.count()).select_from(VOTE)) == 1


def test_a_changed_mind_supersedes_and_nothing_is_deleted(database: Database) -> None:
    made = setting(database, [item(0)])
    ada = made.rater("ada")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    for key, ballot in (("1", Ballot("tie")), ("2", Ballot("both_bad")), ("3", Ballot("skip", rationale="unsure"))):
        assert made.store.vote(made.plan, ada, shown.id, key, ballot) == "saved"
    assert choices(made) == [("c0", "ada", "skip")]
    assert taken(made) == [(0, 1)]
    assert made.store.vote(made.plan, ada, shown.id, "4", Ballot("tie")) == "saved"
    assert taken(made) == [(1, 1)]
    with database.reading() as connection:
        rows = connection.execute(select(VOTE.c.version, VOTE.c.choice).order_by(VOTE.c.version)).all()
    assert [tuple(row) for row in rows] == [(1, "tie"), (2, "both_bad"), (3, "skip"), (4, "tie")]


def test_undo_shows_the_last_item_again_and_gives_the_open_one_back(database: Database) -> None:
    made = setting(database, [item(0), item(1), item(2)])
    ada = made.rater("ada")
    assert made.store.undo(made.plan, ada) is None
    vote(made, ada, "1")
    vote(made, ada, "2")
    assert question(made, ada) == "Question 2?"
    assert made.store.undo(made.plan, ada) == "saved"
    assert question(made, ada) == "Question 1?"
    assert choices(made) == [("c0", "ada", "tie")]
    assert taken(made) == [(1, 1), (1, 1), (0, 1)]
    assert made.store.undo(made.plan, ada) == "saved"  # and the one before
    assert question(made, ada) == "Question 0?"
    assert taken(made) == [(1, 1), (0, 1), (0, 1)]
    vote(made, ada, "3", Ballot("both_bad"))
    assert choices(made) == [("c0", "ada", "both_bad")]
    assert question(made, ada) == "Question 1?"


def test_undo_of_a_skip_whose_item_others_have_answered_is_not_needed(database: Database) -> None:
    made = setting(database, [item(0)])
    ada, bob = made.rater("ada"), made.rater("bob")
    vote(made, ada, "1", Ballot("skip", rationale="unsure"))
    vote(made, bob, "1")
    assert made.store.undo(made.plan, ada) == "not_needed"
    assert choices(made) == [("c0", "ada", "skip"), ("c0", "bob", "tie")]


def test_any_earlier_answer_is_listed_as_it_was_given_and_can_be_changed(database: Database) -> None:
    made = setting(database, [item(number) for number in range(3)], principles=PRINCIPLES)
    ada, bob = made.rater("ada"), made.rater("bob")
    first = Ballot("second", 3, {"brief": "second", "calm": "not_applicable"}, rationale="Longer.")
    given = [
        first,
        Ballot("skip", rationale="unsure"),
        Ballot("both_bad", principles={"brief": "tie", "calm": "first"}),
    ]
    for key, ballot in enumerate(given):
        made.clock.now += 60
        vote(made, ada, f"{key}", ballot)
    answers = made.store.answers(made.plan, ada, most=9)
    assert [answer.ballot for answer in answers] == given[::-1]
    assert [answer.created - made.clock.now for answer in answers] == [0, -60, -120]
    assert {answer.blind for answer in answers} == {True}
    assert made.store.answers(made.plan, ada, 1, before=answers[0].vote) == answers[1:2]
    assert made.store.answers(made.plan, bob, most=9) == []
    assert question(made, bob) == "Question 1?"  # which ada skipped

    oldest = answers[2].item
    assert made.store.answer(made.plan, bob, oldest.id) is None
    made.clock.now += 3000
    made.store.look_again(made.plan, bob, oldest.id)  # which is not bob's
    made.store.look_again(made.plan, ada, oldest.id)
    assert choices(made)[0] == ("c0", "ada", "ab"[oldest.payload.replies.index("b0")])  # until it is changed
    made.clock.now += 40
    outcomes = [made.store.vote(made.plan, ada, oldest.id, "new", Ballot("tie")) for _ in range(2)]
    assert outcomes == ["saved", "repeated"]
    assert choices(made) == [("c0", "ada", "tie"), ("c1", "ada", "skip"), ("c2", "ada", "both_bad")]
    assert taken(made) == [(1, 1), (1, 1), (1, 1)]
    kept = made.store.counted_votes(made.plan, audit=True)[0]
    assert kept.seconds == 40  # the 50 minutes before were spent elsewhere
    again = made.store.answer(made.plan, ada, oldest.id)
    assert again is not None
    assert (again.ballot, again.created) == (Ballot("tie"), made.clock.now)
    assert made.store.answers(made.plan, ada, most=1)[0].item.id == oldest.id
    with database.reading() as connection:
        rows = select(VOTE.c.version, VOTE.c.strength).where(VOTE.c.assignment_id == oldest.id).order_by(VOTE.c.version)
        assert [tuple(row) for row in connection.execute(rows)] == [(1, 3), (2, 1)]
    skipped = answers[1].item
    assert made.store.vote(made.plan, ada, skipped.id, "newer", Ballot("tie")) == "not_needed"  # bob holds it


def test_rankings_are_given_back_as_they_were_shown(database: Database) -> None:
    made = setting(database, [item(0, ("w", "x", "y", "z"))], task="rank")
    ada = made.rater("ada")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    made.store.vote(made.plan, ada, shown.id, "k", Ballot("ranked", ranks=(4, 1, 2, 2)))
    (answer,) = made.store.answers(made.plan, ada, most=9)
    assert (answer.item, answer.ballot.ranks) == (shown, (4, 1, 2, 2))


def test_what_a_rater_took_back_comes_back_a_gold_item_too(database: Database) -> None:
    items = [item(0, wanted=99), item(1, wanted=99), item(2, gold="a", wanted=99)]
    made = setting(database, items, gold_share=0.5)
    tried = 0
    for name in map("r{}".format, range(40)):
        rater, asked = made.rater(name), list[str | None]()
        for number in range(2):
            asked.append(question(made, rater))
            vote(made, rater, f"key {number}", Ballot("first"))
        if asked != ["Question 0?", "Question 2?"]:
            continue
        tried += 1
        asked.append(question(made, rater))
        made.store.undo(made.plan, rater)
        made.store.undo(made.plan, rater)
        for number in range(2, 5):
            assert question(made, rater) == asked[number - 2]
            vote(made, rater, f"key {number}", Ballot("tie"))
        assert question(made, rater) is None
    assert tried > 3
    gold = made.store.counted_votes(made.plan, audit=True, gold=True)
    assert sum(vote.choice == "tie" for vote in gold) == tried


def test_what_is_skipped_goes_to_others_and_comes_back_to_nobody(database: Database) -> None:
    made = setting(database, [item(0), item(1)])
    ada, bob = made.rater("ada"), made.rater("bob")
    vote(made, ada, "1", Ballot("skip", rationale="unsure"))
    assert question(made, ada) == "Question 1?"
    assert question(made, bob) == "Question 0?"


def test_an_abandoned_item_returns_and_a_late_vote_counts_only_where_it_is_wanted(database: Database) -> None:
    made = setting(database, [item(0), item(1)], minutes=10)
    ada, bob, eve = made.rater("ada"), made.rater("bob"), made.rater("eve")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    made.clock.now += 9 * 60
    assert question(made, bob) == "Question 1?"
    made.clock.now += 2 * 60
    assert question(made, eve) == "Question 0?"  # ada's time is over
    assert made.store.vote(made.plan, ada, shown.id, "1", Ballot("tie")) == "not_needed"
    vote(made, eve, "1")
    assert choices(made) == [("c0", "eve", "tie")]
    assert taken(made) == [(1, 1), (1, 1)]


def test_a_late_vote_on_an_item_that_nobody_took_counts(database: Database) -> None:
    made = setting(database, [item(0)], minutes=10)
    ada, bob = made.rater("ada"), made.rater("bob")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    made.clock.now += 11 * 60
    assert question(made, bob) == "Question 0?"
    vote(made, bob, "1", Ballot("skip", rationale="unsure"))
    assert made.store.vote(made.plan, ada, shown.id, "1", Ballot("tie")) == "saved"
    assert choices(made) == [("c0", "ada", "tie"), ("c0", "bob", "skip")]


def test_who_is_still_at_an_item_keeps_it(database: Database) -> None:
    made = setting(database, [item(0)], minutes=10)
    ada, bob = made.rater("ada"), made.rater("bob")
    for _ in range(4):
        assert question(made, ada) == "Question 0?"
        made.clock.now += 6 * 60
    assert question(made, bob) is None


def test_sides_come_from_seed_item_and_rater_are_kept_and_mapped_back(database: Database) -> None:
    raters = 12
    made = setting(database, [item(0, wanted=raters)])
    orders = []
    for number in range(raters):
        rater = made.rater(f"r{number:02}")
        shown = made.store.next(made.plan, rater)
        assert shown is not None
        assert shown.payload.replies in {("a0", "b0"), ("b0", "a0")}
        orders.append(shown.payload.replies)
        assert made.store.next(made.plan, rater) == shown
        made.store.vote(made.plan, rater, shown.id, "k", Ballot("first", strength=3))
    assert len(set(orders)) == 2
    assert [choice for _, _, choice in choices(made)] == [order[0][0] for order in orders]
    with database.reading() as connection:
        recorded = connection.scalars(select(ASSIGNMENT.c.shown_order).order_by(ASSIGNMENT.c.id)).all()
    assert [["a0", "b0"][order[0]] for order in recorded] == [order[0] for order in orders]


def test_votes_keep_principles_note_time_and_the_constitution_of_the_hour(database: Database) -> None:
    made = setting(database, [item(0)], principles=PRINCIPLES)
    ada = made.rater("ada")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    made.clock.now += 40
    ballot = Ballot("second", 4, {"brief": "second", "calm": "not_applicable"}, rationale="It flatters.", seconds=12.5)
    made.store.vote(made.plan, ada, shown.id, "k", ballot)
    (kept,) = made.store.counted_votes(made.plan, audit=True)
    side = shown.payload.replies[1][0]
    assert (kept.choice, kept.strength, kept.principles) == (side, 4, {"brief": side, "calm": "not_applicable"})
    assert (kept.rationale, kept.seconds, kept.constitution, made.plan.plan.constitution) == (
        "It flatters.",
        12.5,
        "d1",
        "d0",
    )


@pytest.mark.parametrize(("told", "kept"), [(None, 40), (12.5, 12.5), (4000.0, 40)])
def test_the_time_is_what_the_browser_says_if_it_can_be(sqlite: Database, told: float | None, kept: float) -> None:
    made = setting(sqlite, [item(0)])
    ada = made.rater("ada")
    made.store.next(made.plan, ada)
    made.clock.now += 40
    vote(made, ada, "k", Ballot("tie", seconds=told))
    assert made.store.counted_votes(made.plan, audit=True)[0].seconds == kept


def test_rankings_are_kept_in_the_items_own_order(database: Database) -> None:
    made = setting(database, [item(0, ("w", "x", "y", "z"))], task="rank")
    ada = made.rater("ada")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    rank = {"w": 2, "x": 1, "y": 4, "z": 2}
    made.store.vote(
        made.plan, ada, shown.id, "k", Ballot("ranked", ranks=tuple(map(rank.__getitem__, shown.payload.replies)))
    )
    (kept,) = made.store.counted_votes(made.plan, audit=True)
    assert (kept.payload.replies, kept.ranks) == (("w", "x", "y", "z"), (2, 1, 4, 2))


def test_who_opts_out_of_a_category_does_not_get_it_and_gives_it_back(database: Database) -> None:
    made = setting(database, [item(0, category="violence"), item(1, category="privacy"), item(2)])
    ada, bob = made.rater("ada"), made.rater("bob")
    assert made.plan.categories == ("privacy", "violence")
    assert question(made, ada) == "Question 0?"
    made.store.settle(made.plan, ada, ["violence", "no such category"])
    assert question(made, ada) == "Question 1?"
    assert question(made, bob) == "Question 0?"


def test_who_opts_out_of_a_category_does_not_get_items_of_another_as_well(database: Database) -> None:
    items = [
        item(0, category="sex; violence"),
        item(1, category="50% of violence"),
        item(2, category="violence"),
        item(3, category="private; violence; war"),
        item(4, category="sex"),
    ]
    made = setting(database, items)
    ada = made.rater("ada")
    assert made.plan.categories == ("50% of violence", "private", "sex", "violence", "war")
    assert question(made, ada) == "Question 0?"
    made.store.settle(made.plan, ada, ["violence"])
    assert question(made, ada) == "Question 1?"
    vote(made, ada, "1")
    assert question(made, ada) == "Question 4?"
    made.store.settle(made.plan, ada, ["50% of violence", "war"])  # the others again
    assert question(made, ada) == "Question 4?"
    vote(made, ada, "2")
    assert question(made, ada) == "Question 0?"


def ranking(made: Setting, *items: PlannedItem) -> StoredPlan:
    """A second plan in the same database, with another task."""
    return made.store.add_plan(Plan(run="first", task="rank", constitution="d0", seed=7), items)


def test_opting_out_in_one_task_leaves_what_was_chosen_in_another(database: Database) -> None:
    made = setting(database, [item(0, category="violence"), item(1, category="sex"), item(2)])
    ranks = ranking(made, item(0, category="violence"), item(1, category="war"), item(2))
    ada = made.rater("ada")
    made.store.settle(made.plan, ada, ["violence", "sex"])
    made.store.settle(ranks, ada, ["war"])  # and violence is wanted, which both plans have
    with database.reading() as connection:
        assert connection.scalar(select(RATER.c.opted_out)) == ["sex", "war"]
    assert question(made, ada) == "Question 0?"
    vote(made, ada, "1")
    assert question(made, ada) == "Question 2?"


def test_instructions_and_warning_are_read_for_every_plan_and_for_new_harm(database: Database) -> None:
    made = setting(database, [item(0), item(1, category="violence")])
    ranks = ranking(made, item(0))
    ada, bob = made.rater("ada"), made.rater("bob", briefed=False)
    assert [made.store.briefed(made.plan, rater) for rater in (ada, bob)] == [True, False]
    assert not made.store.briefed(ranks, ada)
    made.store.settle(ranks, ada, ())
    made.store.settle(ranks, ada, ())
    assert made.store.briefed(ranks, ada)
    extended = made.store.extend_plan(made.plan, [item(0), item(2, category="violence")])
    assert made.store.briefed(extended, ada)
    extended = made.store.extend_plan(made.plan, [item(0), item(3, category="sex; violence")])
    assert not made.store.briefed(extended, ada)
    made.store.settle(extended, ada, ())
    assert made.store.briefed(extended, ada)


def test_words_that_are_found_harmful_later_hide_the_items_still_to_come(database: Database) -> None:
    made = setting(database, [item(0), item(1)])
    made.plan = made.store.extend_plan(made.plan, [item(0, category="violence"), item(1)], {"violence": "0"})
    assert made.plan.categories == ("violence",)
    ada = made.rater("ada")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    assert (shown.payload.messages[0].content, shown.category) == ("Question 0?", "violence")
    assert made.store.vote(made.plan, ada, shown.id, "1", Ballot("tie")) == "unopened"


def test_exposures_are_counted_once_and_not_for_what_was_skipped_unseen(database: Database) -> None:
    made = setting(database, [item(number, category="violence") for number in range(3)] + [item(3)])
    ada = made.rater("ada")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    made.store.expose(made.plan, ada, shown.id)
    made.store.expose(made.plan, ada, shown.id)
    vote(made, ada, "1", Ballot("skip", rationale="too much"))
    vote(made, ada, "2", Ballot("skip", rationale="not opened"))
    assert vote(made, ada, "3", Ballot("tie")) == "unopened"
    assert choices(made) == [("c0", "ada", "skip"), ("c1", "ada", "skip")]
    assert vote(made, ada, "3", Ballot("tie", opened=True)) == "saved"
    vote(made, ada, "4", Ballot("tie"))  # nothing is hidden there
    made.store.undo(made.plan, ada)
    made.store.undo(made.plan, ada)
    assert vote(made, ada, "5", Ballot("both_bad")) == "saved"  # it was opened before
    with database.reading() as connection:
        rows = connection.execute(select(ITEM.c.comparison, EXPOSURE.c.category).join(EXPOSURE)).all()
    assert sorted(map(tuple, rows)) == [("c0", "violence"), ("c2", "violence")]


def test_nobody_votes_at_anothers_item(database: Database) -> None:
    made = setting(database, [item(0), item(1)])
    ada, bob = made.rater("ada"), made.rater("bob")
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    assert made.store.assigned(made.plan, bob, shown.id) is None
    with pytest.raises(KeyError):
        made.store.vote(made.plan, bob, shown.id, "k", Ballot("tie"))
    assert choices(made) == []


def test_audit_items_are_left_out_unless_they_are_asked_for(database: Database) -> None:
    made = setting(database, [item(0, audit=True, probability=0.1, stratum="uniform"), item(1)])
    ada = made.rater("ada")
    vote(made, ada, "1")
    vote(made, ada, "2")
    assert [vote.comparison for vote in made.store.counted_votes(made.plan, audit=False)] == ["c1"]
    assert [vote.comparison for vote in made.store.counted_votes(made.plan, audit=True)] == ["c0", "c1"]


def test_gold_items_come_at_their_share_to_every_rater_and_count_apart(database: Database) -> None:
    ordinary = [item(number) for number in range(200)]
    gold = [item(number, gold="a", wanted=1_000_000) for number in range(200, 260)]
    made = setting(database, [*ordinary, *gold], gold_share=0.25)
    assert (made.plan.wanted, made.plan.overlap) == (200, 1)
    shown: dict[str, list[str]] = {}
    for name in ("ada", "bob"):
        rater, shown[name] = made.rater(name), []
        for number in range(80):
            asked = made.store.next(made.plan, rater)
            assert asked is not None
            made.store.vote(made.plan, rater, asked.id, f"{name} key {number}", Ballot("first"))
            shown[name].append(asked.payload.messages[-1].content)
    tests = {entry.payload.messages[-1].content for entry in gold}
    shares = [sum(text in tests for text in texts) for texts in shown.values()]
    # 80 draws at a quarter: 20, give or take three times √(80 · ¼ · ¾) = 3.9.
    assert all(8 <= share <= 32 for share in shares)
    assert len({text for texts in shown.values() for text in texts if text in tests}) == max(shares)  # the same ones
    places = [text in tests for text in shown["bob"]]
    assert True in places[:40]
    assert True in places[40:]  # not all at once, though bob came late
    assert made.store.answered(made.plan) == 160 - sum(shares)
    assert made.store.answered(made.plan, made.rater("ada")) == 80
    known = made.store.counted_votes(made.plan, audit=True, gold=True)
    assert len(known) == sum(shares)
    assert {vote.gold for vote in known} == {"a"}
    assert {vote.gold for vote in made.store.decided_votes(made.plan, audit=True)} == {None}


def test_gold_items_end_with_the_others_and_none_is_shown_without_a_share(database: Database) -> None:
    items = [item(0), item(1, gold="a", wanted=9), item(2, gold="b", wanted=9)]
    made = setting(database, items, gold_share=0.5)
    for name in ("ada", "cem", "dee", "eva"):
        rater, texts = made.rater(name), list[str]()
        while shown := made.store.next(made.plan, rater):
            texts.append(shown.payload.messages[-1].content)
            made.store.vote(made.plan, rater, shown.id, f"key number {len(texts)}", Ballot("skip"))
        assert texts[-1] == "Question 0?"  # nobody is asked for gold alone
    without = ReviewStore(database, clock=made.clock)
    bob = made.rater("bob")
    first = without.next(made.plan, bob)
    assert first is not None
    assert first.payload.messages[-1].content == "Question 0?"
    without.vote(made.plan, bob, first.id, "only key", Ballot("tie"))
    assert without.next(made.plan, bob) is None


def test_many_raters_at_once_fill_every_quota_and_exceed_none(database: Database) -> None:
    items, wanted, raters = 15, 2, 6
    made = setting(database, [item(number, wanted=wanted) for number in range(items)])
    people = [made.rater(f"r{number}") for number in range(raters)]

    def work(rater: Rater) -> list[str]:
        outcomes: list[str] = []
        while shown := made.store.next(made.plan, rater):
            with ThreadPoolExecutor(2) as twice:
                sent = [
                    twice.submit(made.store.vote, made.plan, rater, shown.id, f"{shown.id}", Ballot("tie"))
                    for _ in range(2)
                ]
            outcomes += sorted(future.result() for future in sent)
        return outcomes

    with ThreadPoolExecutor(raters) as pool:
        outcomes = Counter(outcome for made_by in pool.map(work, people) for outcome in made_by)
    assert outcomes == {"saved": items * wanted, "repeated": items * wanted}
    assert taken(made) == [(wanted, wanted)] * items
    assert Counter(comparison for comparison, _, _ in choices(made)) == {f"c{n}": wanted for n in range(items)}
    assert len(set(choices(made))) == items * wanted


def test_the_database_itself_holds_the_quota_and_counts_once(database: Database) -> None:
    made = setting(database, [item(0)])
    vote(made, made.rater("ada"), "k")
    with pytest.raises(IntegrityError):
        database.write(lambda connection: connection.execute(update(ITEM).values(taken=2)).close())
    with database.reading() as connection:
        row = dict(connection.execute(select(VOTE)).mappings().one())
    again = row | {"id": 99, "version": 2}
    with pytest.raises(IntegrityError):
        database.write(lambda connection: connection.execute(insert(VOTE).values(again)).close())
    with pytest.raises(IntegrityError):  # foreign keys are watched
        database.write(
            lambda connection: connection.execute(insert(VOTE).values(again | {"key": "l", "rater_id": 77})).close()
        )


def test_nobody_is_asked_about_known_answers_alone(database: Database) -> None:
    store = ReviewStore(database)
    with pytest.raises(UsageError, match="nothing to ask"):
        store.add_plan(Plan(run="first", task="pair", constitution="d", seed=7), [item(0, gold="a", wanted=9)])
    assert store.plan("pair") is None


def test_a_plan_stays_as_it_is_when_another_is_added(database: Database) -> None:
    made = setting(database, [item(0)])
    again = made.store.add_plan(made.plan.plan, [item(5), item(6)])
    assert again == made.plan
    with pytest.raises(UsageError, match="nothing to ask"):
        made.store.add_plan(made.plan.plan, [])


def test_migrations_make_the_tables_that_the_code_expects(database: Database) -> None:
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []


def test_raters_of_an_older_database_know_the_tasks_they_worked_at(database: Database) -> None:
    made = setting(database, [item(0)])
    ada, bob = made.rater("ada"), made.rater("bob", briefed=False)
    vote(made, ada, "1")
    harmful = ranking(made, item(0, category="violence"))
    made.store.settle(harmful, ada, ["violence"])
    made.store.next(harmful, ada)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.connect().execution_options(writes=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        alembic.command.downgrade(config, "r0003")
        warned = connection.execute(text("SELECT name, warned FROM rater ORDER BY name")).all()
        alembic.command.upgrade(config, "head")
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    assert [tuple(row) for row in warned] == [("ada", made.clock.now), ("bob", None)]
    assert [made.store.briefed(made.plan, rater) for rater in (ada, bob)] == [True, False]
    assert not made.store.briefed(harmful, ada)
    with database.reading() as connection:
        assert connection.scalars(select(RATER.c.opted_out).order_by(RATER.c.name)).all() == [["violence"], []]


def test_a_newer_database_is_refused(address: str | None, tmp_path: Path) -> None:
    database = Database.open(tmp_path, address)
    database.write(lambda connection: connection.execute(text("UPDATE alembic_version SET version_num='r9'")).close())
    database.close()
    with pytest.raises(ConfigurationError, match="newer version"):
        Database.open(tmp_path, address)


def test_what_is_no_database_is_told_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"something else" * 1000)
    with pytest.raises(RunError, match="not a database"):
        Database.open(tmp_path, None)
    assert (tmp_path / FILE).read_bytes() == b"something else" * 1000


@pytest.mark.parametrize("address", ["mysql://host/name", "nonsense", "sqlite:///other.db"])
def test_other_databases_are_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="postgresql://"):
        Database.open(tmp_path, address)


def test_a_server_that_is_not_there_is_told_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Database.open(tmp_path, "postgresql://ada:secret123@127.0.0.1:9/reviews")
    assert "127.0.0.1:9" in str(caught.value)
    assert "secret123" not in str(caught.value)


def test_sqlite_is_safe_against_a_loss_of_power(sqlite: Database) -> None:
    with sqlite.reading() as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert settings == ["wal", 2, 1]
