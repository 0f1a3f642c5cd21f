"""The lead's pages: numbers, what is settled and what becomes of it, examples, and who may see what."""

import csv
import re
from pathlib import Path
from typing import Literal

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import select

from constitutional.base.errors import ConfigurationError
from constitutional.base.records import Comparison, Judgement, Message, Prompt
from constitutional.cli.main import main
from constitutional.constitution.file import load_constitution
from constitutional.data.verdicts import read_verdicts
from constitutional.judging.people import on_gold, work_of
from constitutional.review import lead_pages
from constitutional.review.accounts import Rater
from constitutional.review.ballot import Ballot
from constitutional.review.database import MIGRATIONS, Database
from constitutional.review.export import verdicts_of
from constitutional.review.lead import Labels, LeadSources, overview, works_of
from constitutional.review.plan import PlannedItem
from constitutional.review.schema import EXPOSURE, RATER, SETTLEMENT, SIGHT, VOTE
from constitutional.review.serve import old_settings, open_review
from constitutional.review.settings import ReviewSettings
from constitutional.review.store import Decision, ReviewStore
from constitutional.runs.folder import RunStore
from tests.review.reviewing import Browser, Setting, assert_texts_stay_texts, item, setting
from tests.scripted_run import World, configured, constitution, go

FILE = """\
# Ours, with care.
name: Ours
principles:
  # The first.
  - id: brief
    text: Keep your answers brief.   # really

  - id: calm   # the second
    text: >
      Stay
      calm.

# The end.
"""


def compared(number: int, *earlier: Message) -> Comparison:
    messages = (*earlier, Message("user", f"Question {number}?"))
    prompt = Prompt(messages=messages, info={"kind": "odd" if number % 2 else "even"})
    return Comparison(prompt=prompt, a=f"a{number}", b=f"b{number}")


def planned(comparison: Comparison, number: int, **changed: object) -> PlannedItem:
    return item(number, (comparison.a, comparison.b), comparison=comparison.id, **changed)


def judged(comparison: Comparison, p_a: float | None, principle: str = "brief") -> Judgement:
    return Judgement(
        comparison=comparison.id,
        principle=principle,
        principle_text=f"The text of {principle}.",
        labeler="scripted",
        readings=(),
        p_a=p_a,
    )


def led(
    database: Database, items: list[PlannedItem], labels: Labels, file: Path | None = None, pay: float | None = None
) -> Setting:
    made = setting(database, items)
    made.lead = LeadSources(database, lambda: labels, file, pay)
    return made


def say(made: Setting, rater: Rater, choices: dict[str, str], seconds: float = 10.0) -> None:
    """Vote on all items that the rater gets: `a` or `b` by the comparison's reply, or what a ballot holds."""
    made.clock.now += 3600  # so that no vote takes longer than it may
    while shown := made.store.next(made.plan, rater):
        text = shown.payload.messages[-1].content
        choice = choices[text.removeprefix("Question ").removesuffix("?")]
        if choice in ("a", "b"):
            choice = "first" if shown.payload.replies[0].startswith(choice) else "second"
        made.clock.now += 100
        ballot = Ballot(choice, rationale="because" if choice == "skip" else "", seconds=seconds)  # type: ignore[arg-type]
        made.store.vote(
            made.plan, rater, shown.id, f"{rater.name} {shown.id}", ballot._replace(opened=choice != "skip")
        )


def led_review(database: Database, folder: Path, category: str = "violence") -> Setting:
    """Item 0: ada a, bob b. Item 1: both a, where the labeler is sure of b. Item 2: both b, as the labeler."""
    comparisons = [compared(number) for number in range(3)]
    judgements = [judged(row, p_a) for row, p_a in zip(comparisons, (0.9, 0.1, 0.1), strict=True)]
    path = folder / "ours.yaml"
    path.write_text(FILE)
    items = [
        planned(row, number, wanted=2, category="" if number else category) for number, row in enumerate(comparisons)
    ]
    made = led(database, items, Labels(comparisons, judgements), path)
    say(made, made.rater("ada"), {"0": "a", "1": "a", "2": "b"})
    say(made, made.rater("bob"), {"0": "b", "1": "a", "2": "b"})
    return made


@pytest.fixture
def contradicted(sqlite: Database, tmp_path: Path) -> Setting:
    return led_review(sqlite, tmp_path, category="")


def lead(made: Setting, name: str = "lea") -> Browser:
    return Browser(made.site()).enter(made.accounts, name, role="lead")


def settle(browser: Browser, number: int, choice: str, **fields: str) -> None:
    page = browser.get(f"/lead/item?item={number}")
    if "Show the votes" in page.text:
        browser.post("/lead/show", browser.fields())
    browser.post("/lead/settle", {**browser.fields(), "choice": choice, **fields})


# Numbers


def test_of_three_raters_the_page_has_lights_kappa(sqlite: Database) -> None:
    comparisons = [compared(number) for number in range(10)]
    items = [planned(row, n, wanted=3) for n, row in enumerate(comparisons)]
    made = led(sqlite, items, Labels(comparisons, []))
    for name, said in (("ada", "aaaaabbbbb"), ("bob", "aaaababbbb"), ("cem", "bbbbbaaaaa")):
        say(made, made.rater(name), {str(number): choice for number, choice in enumerate(said)})
    # Each says a and b five times, so chance is ½; ada and bob agree on 8 items, ada and cem on none, bob and cem on 2.
    page = lead(made).get("/lead").text
    assert "Light’s κ (mean of Cohen’s over 3 pairs of raters)" in page
    assert f"{(0.6 - 1 - 0.6) / 3:.2f} (" in page


def test_the_numbers_are_those_worked_by_hand(sqlite: Database) -> None:
    comparisons = [compared(number) for number in range(4)]
    made = led(
        sqlite,
        [planned(row, n, wanted=2, category="violence" * (n == 3)) for n, row in enumerate(comparisons)],
        Labels(comparisons, [judged(row, 0.9) for row in comparisons]),
    )
    ada, bob = made.rater("ada"), made.rater("bob")
    say(made, ada, {"0": "a", "1": "a", "2": "b", "3": "tie"}, seconds=9)
    say(made, bob, {"0": "a", "1": "b", "2": "a", "3": "skip"}, seconds=27)
    votes = overview(sqlite, made.store, made.plan, Labels(comparisons, [judged(row, 0.9) for row in comparisons]))
    # Pairs: a-a, a-b, b-a. Coincidences: aa 2, ab 2, ba 2; so α = 1 − (6 − 1)·4 / (2·4·2).
    assert votes.people.among.value == pytest.approx(1 / 3)
    assert votes.people.alpha.value == pytest.approx(1 - 5 * 4 / 16)
    # Cohen: agreement 1/3; both say a in 2 of 3, so chance is 4/9 + 1/9.
    assert votes.people.kappa_name == "Cohen’s κ"
    assert votes.people.kappa.value == pytest.approx((1 / 3 - 5 / 9) / (1 - 5 / 9))
    # π: a (1 + ½ + ½ + 0)/4, b (0 + ½ + ½ + 0)/4, tie ¼; chance (¼ + 3/16 + 3/16)/3.
    assert votes.people.ac1.value == pytest.approx((1 / 3 - 0.625 / 3) / (1 - 0.625 / 3))
    shares = {row.name: (row.others, row.gold) for row in votes.raters}
    for share, known in shares.values():
        assert share is not None
        assert known is None
        assert share.value == pytest.approx(1 / 3)
        assert share.n == 3
    # The labeler says a four times; people a, even, even, even: 1, ½, ½, ½.
    assert votes.people.labeler is not None
    assert votes.people.labeler.value == pytest.approx(0.625)
    # So they say the same of one in four, as by chance: people say a in 1/4, the labeler always. For α the coincidences
    # are aa 2 and a-tie 6 of five a and three ties; for AC1 π is 5/8 and 3/8, and b 0.
    beyond = {name: of.value for name, of in votes.people.beyond_chance.items()}
    chance = 2 * (5 / 8) * (3 / 8) / 2
    assert beyond == pytest.approx(
        {"Cohen’s κ": 0, "Krippendorff’s α": 1 - 7 * 6 / 30, "Gwet’s AC1": (1 / 4 - chance) / (1 - chance)}
    )
    works = {work.name: work for work in works_of(sqlite, made.plan)}
    assert works["ada"][2:5] == (4, 0, 9)  # votes, skips, seconds
    assert works["bob"][2:5] == (3, 1, 27)
    assert [works[name].hours for name in ("ada", "bob")] == pytest.approx([36 / 3600, 108 / 3600])
    assert [works[name].exposures for name in ("ada", "bob")] == [1, 0]
    assert len(votes.contradictions) == 2


def test_gold_items_tell_how_good_raters_are_and_nothing_of_the_labeler(sqlite: Database) -> None:
    comparisons = [compared(number) for number in range(2)]
    gold = [item(number, gold="a", wanted=9) for number in range(2, 6)]
    labels = Labels(comparisons, [judged(row, 0.9) for row in comparisons])
    made = led(sqlite, [*(planned(row, n, wanted=2) for n, row in enumerate(comparisons)), *gold], labels)
    made.store = ReviewStore(sqlite, gold_share=1.0, clock=made.clock)  # gold first
    say(made, made.rater("ada"), {"0": "a", "1": "a", "2": "a", "3": "a", "4": "b", "5": "a"})
    say(made, made.rater("bob"), {"0": "a", "1": "a", "2": "b", "3": "tie", "4": "skip", "5": "skip"})
    votes = overview(sqlite, made.store, made.plan, labels)
    assert set(votes.items) == {row.id for row in comparisons}
    assert votes.people.labeler is not None
    assert (votes.people.labeler.value, votes.people.labeler.n) == (1.0, 2)
    shares = {row.name: row.gold for row in votes.raters}
    assert shares["ada"] is not None
    assert shares["bob"] is not None
    assert (shares["ada"].value, shares["ada"].n) == (0.75, 4)
    assert (shares["bob"].value, shares["bob"].n) == (0.0, 2)  # a tie is no known answer, a skip no answer
    # Wilson, 3 of 4: (3/4 + z²/8 ± z·√(3/64 + z²/64)) / (1 + z²/4).
    assert shares["ada"].interval == pytest.approx((0.3006, 0.9544), abs=1e-4)
    page = lead(made).get("/lead").text
    assert "75% (30% to 95%), n = 4" in page
    assert "4 of 4 votes wanted" in page
    assert "Votes: 10." in page


def test_the_page_shows_them_in_words(contradicted: Setting) -> None:
    assert contradicted.lead is not None
    contradicted.lead = contradicted.lead._replace(pay_per_hour=36.0, currency="EUR")
    page = lead(contradicted).get("/lead").text
    assert "6 of 6 votes wanted" in page
    assert "67% (" in page  # two of three pairs are the same
    assert "0.40 (no interval: fewer than 10 prompts)" in page  # κ: (2/3 − 4/9) / (1 − 4/9)
    assert "1 to settle" in page
    assert "At 36 EUR an hour their work comes to 0.60 EUR" in page  # 60 seconds
    assert "ada: 0.01 hours, 0.30 EUR" in page
    # Weighted and by the audit set, by principle and by kind of prompt.
    for name in ("All, weighted", "Principle brief", "Prompts: even", "Prompts: odd", "Krippendorff’s α, all"):
        assert name in page


def test_what_is_not_defined_is_told_in_words(sqlite: Database) -> None:
    comparisons = [compared(number) for number in range(2)]
    made = led(sqlite, [planned(row, n, wanted=2) for n, row in enumerate(comparisons)], Labels(comparisons, []))
    browser = lead(made)
    assert "no item has two votes" in browser.get("/lead").text
    for name in ("ada", "bob"):
        say(made, made.rater(name), {"0": "a", "1": "a"})
    page = browser.get("/lead").text
    assert "undefined: unanimous" in page
    assert not re.search(r"\bnan\b", page, re.IGNORECASE)
    assert "not known yet" in page  # the labeler judged nothing


def test_a_tie_against_a_preference_is_a_difference_and_nothing_to_settle(sqlite: Database) -> None:
    comparisons = [compared(number) for number in range(2)]
    made = led(sqlite, [planned(row, n, wanted=2) for n, row in enumerate(comparisons)], Labels(comparisons, []))
    say(made, made.rater("ada"), {"0": "a", "1": "a"})
    say(made, made.rater("bob"), {"0": "tie", "1": "a"})
    page = lead(made).get("/lead").text
    assert "each other: 0 to settle" in page
    assert "On 1 more item one rater sees a tie" in page


def test_votes_taken_back_and_answered_anew_count_once_and_their_time_twice(sqlite: Database) -> None:
    comparison = compared(0)
    made = led(sqlite, [planned(comparison, 0)], Labels([comparison], []))
    ada = made.rater("ada")
    say(made, ada, {"0": "a"})
    made.store.undo(made.plan, ada)
    (work,) = works_of(sqlite, made.plan)
    assert (work.votes, work.skips, work.seconds) == (0, 0, None)
    made.clock.now += 100
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    made.store.vote(made.plan, ada, shown.id, "again", Ballot("tie", seconds=20))
    (work,) = works_of(sqlite, made.plan)
    assert (work.votes, work.seconds) == (1, 20)
    assert work.hours == pytest.approx(30 / 3600)


def test_numbers_that_take_long_rest_while_votes_come_and_not_when_the_lead_decides(
    contradicted: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lead_pages, "SLOW_S", 0.0)
    monkeypatch.setattr(lead_pages, "RESTS", 1e9)
    browser = lead(contradicted)
    assert "each other: 1 to settle" in browser.get("/lead").text
    contradicted.store.undo(contradicted.plan, contradicted.rater("bob"))
    assert "n = 3" in browser.get("/lead").text
    settle(browser, 1, "b")
    page = browser.get("/lead").text
    assert "each other: 0 to settle" in page
    assert "n = 2" in page


# Settling


def test_a_settled_item_leaves_the_queue_and_takes_the_place_of_the_votes(contradicted: Setting) -> None:
    browser = lead(contradicted)
    settle(browser, 1, "b", strength="3", note="It is shorter.")
    assert "decision is saved" in browser.page.text
    assert "much better, by lea.</p>" in browser.page.text
    assert "each other: 0 to settle" in browser.get("/lead").text
    votes = contradicted.store.decided_votes(contradicted.plan, audit=True)
    settled = [vote for vote in verdicts_of(votes) if vote.rationale]
    assert [(vote.rater, vote.choice, vote.strength) for vote in settled] == [("lea (settled)", "b", 3)]
    assert sorted(vote.rater for vote in votes) == ["ada", "ada", "bob", "bob", "lea (settled)"]
    assert len(contradicted.store.counted_votes(contradicted.plan, audit=True)) == 6  # nothing is deleted
    settle(browser, 1, "reopened")
    assert "each other: 1 to settle" in browser.get("/lead").text
    assert len(contradicted.store.decided_votes(contradicted.plan, audit=True)) == 6


def test_of_two_leads_the_second_is_told_of_the_first(contradicted: Setting, sqlite: Database) -> None:
    lea, lou = lead(contradicted), lead(contradicted, "lou")
    for browser in (lea, lou):
        browser.get("/lead/item?item=1")
        browser.post("/lead/show", browser.fields())
    stale, doubled = lou.fields(), {**lea.fields(), "choice": "a"}
    lea.post("/lead/settle", doubled)
    assert "was saved before" in lea.post("/lead/settle", doubled).text
    page = lou.post("/lead/settle", {**stale, "choice": "b", "note": "Mine is longer."}).text
    assert "came meanwhile" in page
    assert "Mine is longer." in page  # what was written is not lost
    with sqlite.reading() as connection:
        assert connection.execute(select(SETTLEMENT.c.choice, SETTLEMENT.c.version)).all() == [("a", 1)]


def test_settling_a_harmful_text_counts_as_seeing_it(sqlite: Database) -> None:
    comparison = compared(0)
    made = led(sqlite, [planned(comparison, 0, category="violence")], Labels([comparison], []))
    say(made, made.rater("ada"), {"0": "a"})
    browser = lead(made)
    assert "Question 0?" not in browser.get("/lead").text
    settle(browser, 1, "b")
    lea = select(RATER.c.id).where(RATER.c.name == "lea").scalar_subquery()
    with sqlite.reading() as connection:
        assert connection.scalars(select(EXPOSURE.c.category).where(EXPOSURE.c.rater_id == lea)).all() == ["violence"]


@pytest.mark.parametrize("audit", [True, False])
def test_the_lead_is_told_that_a_decision_does_not_change_the_audit(sqlite: Database, audit: bool) -> None:
    comparison = compared(0)
    made = led(sqlite, [planned(comparison, 0, audit=audit)], Labels([comparison], []))
    say(made, made.rater("ada"), {"0": "a"})
    browser = lead(made)
    browser.get("/lead/item?item=1")
    assert ("own votes count there" in browser.post("/lead/show", browser.fields()).text) == audit


@pytest.mark.parametrize("fields", [{}, {"choice": "skip"}, {"choice": "a", "strength": "5"}, {"choice": "<script>"}])
def test_what_is_no_decision_is_refused(contradicted: Setting, sqlite: Database, fields: dict[str, str]) -> None:
    browser = lead(contradicted)
    browser.get("/lead/item?item=1")
    browser.post("/lead/show", browser.fields())
    assert browser.post("/lead/settle", {**browser.fields(), **fields}).status_code == 422
    with sqlite.reading() as connection:
        assert connection.execute(select(SETTLEMENT)).all() == []


def test_files_of_votes_hold_the_time_of_settling_and_what_was_taken_back(sqlite: Database, tmp_path: Path) -> None:
    made = led_review(sqlite, tmp_path)  # six votes of 10 seconds; item 0 is harmful
    lea, lou = lead(made), lead(made, "lou")
    for browser in (lea, lou):
        browser.get("/lead/item?item=1")
        browser.post("/lead/show", browser.fields())
    made.clock.now += 90
    lea.post("/lead/settle", {**lea.fields(), "choice": "a"})
    lou.get("/lead/item?item=1")
    made.clock.now += 30
    lou.post("/lead/settle", {**lou.fields(), "choice": "b"})
    made.store.undo(made.plan, made.rater("bob"))  # his vote on item 2
    rows = list(verdicts_of(made.store.all_votes(made.plan, audit=True)))
    told = {(row.rater, row.choice, row.seconds, row.withdrawn) for row in rows}
    assert ("lou (settled)", "b", 30.0, False) in told
    assert ("lea (settled)", "skip", 90.0, True) in told  # another decision replaced it
    assert ("bob", "skip", 10.0, True) in told
    work = work_of(rows)
    # ada and bob, and the leads: five votes and lou's decision; 60 seconds of votes and 120 of settling.
    assert (work.raters, work.votes, work.skips, work.withdrawn) == (4, 6, 0, 2)
    assert (work.timed, work.seconds) == (8, 180.0)
    assert work.exposures == 4  # item 0: ada, bob, lea, lou
    hours = {row.name: row.hours for row in works_of(sqlite, made.plan)}
    assert hours == pytest.approx({"ada": 30 / 3600, "bob": 30 / 3600, "lea": 90 / 3600, "lou": 30 / 3600})
    settle(lou, 1, "reopened")
    rows = list(verdicts_of(made.store.all_votes(made.plan, audit=True)))
    assert {row.rater for row in rows if row.withdrawn} == {"lea (settled)", "lou (settled)", "bob"}
    assert work_of(rows).votes == 5
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(f"{row.model_dump_json()}\n" for row in rows))
    assert read_verdicts(path, None) == rows


def test_a_harmful_text_that_was_opened_and_not_answered_is_somebodys_work(database: Database) -> None:
    comparison = compared(0)
    made = setting(database, [planned(comparison, 0, wanted=2, category="violence")])
    say(made, made.rater("ada"), {"0": "a"})
    bob = made.rater("bob")
    shown = made.store.next(made.plan, bob)
    assert shown is not None
    made.store.expose(made.plan, bob, shown.id)
    rows = list(verdicts_of(made.store.all_votes(made.plan, audit=True)))
    assert [(row.rater, row.exposed, row.withdrawn) for row in rows] == [("ada", True, False), ("bob", True, True)]
    assert work_of(rows).exposures == 2


def test_a_second_batch_adds_to_the_plan_and_votes_that_are_in_count(database: Database) -> None:
    pairs = [compared(number) for number in range(6)]
    made = setting(database, [planned(pairs[0], 0, wanted=2), planned(pairs[1], 1), planned(pairs[2], 2)])
    ada = made.rater("ada")
    say(made, ada, {"0": "a", "1": "b", "2": "a"})
    assert (made.plan.wanted, made.store.answered(made.plan)) == (4, 3)
    second = [planned(pairs[0], 0), planned(pairs[1], 1, audit=True, stratum="audit", probability=0.25)]
    second += [planned(row, number, wanted=1 + (number == 5)) for number, row in enumerate(pairs) if number > 2]
    made.plan = made.store.extend_plan(made.plan, second)
    # Six votes were planned, and item 2 is planned no more: its vote is in, so one of item 5's is not asked for.
    assert (made.plan.wanted, made.store.answered(made.plan)) == (6, 3)
    assert made.store.extend_plan(made.plan, second) == made.plan
    say(made, ada, {"3": "a", "4": "a", "5": "a"})
    say(made, made.rater("bob"), {})  # nothing is left
    votes = made.store.counted_votes(made.plan, audit=True)
    assert [vote.comparison for vote in votes] == [row.id for row in pairs]
    assert [vote.audit for vote in votes] == [False, True, False, False, False, False]


def test_an_item_that_was_skipped_and_is_planned_no_more_breaks_no_page(sqlite: Database) -> None:
    pairs = [compared(number) for number in range(2)]
    made = led(sqlite, [planned(row, number) for number, row in enumerate(pairs)], Labels(pairs, []))
    say(made, made.rater("ada"), {"0": "skip", "1": "a"})
    made.plan = made.store.extend_plan(made.plan, [planned(pairs[1], 1)])
    assert made.plan.wanted == 1
    assert lead(made).get("/lead").status_code == 200


# Blindness


def test_a_label_is_hidden_until_the_lead_has_voted_or_asks_for_it(contradicted: Setting) -> None:
    browser = lead(contradicted)
    page = browser.get("/lead").text
    assert "contradict it on 1 item to settle" in page
    assert "Labeler:" not in page
    assert "not voted on 1 of them" in page
    assert "Question 1?" not in page
    page = browser.get("/lead/item?item=2").text
    assert "Question 1?" in page
    assert "The text of brief." not in page
    assert "Reply B</td>" not in page
    page = browser.post("/lead/show", browser.fields()).text
    assert "The text of brief." in page
    assert "90%" in page
    assert "ada" in page
    assert "Question 1?" in browser.get("/lead").text


def test_what_the_labeler_gets_wrong_is_told_by_principle_with_examples(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparisons = [compared(number) for number in range(5)]
    judgements = [
        judged(comparisons[0], 0.9),
        judged(comparisons[1], 0.55),  # not sure, and wrong all the same
        judged(comparisons[2], 0.8),
        judged(comparisons[2], 0.3, "calm"),  # which is right
        judged(comparisons[3], 0.7, "calm"),
        judged(comparisons[4], 0.1),
    ]
    labels = Labels(comparisons, judgements)
    made = led(sqlite, [planned(row, n, wanted=2) for n, row in enumerate(comparisons)], labels)
    say(made, made.rater("ada"), dict.fromkeys("01234", "b"))
    say(made, made.rater("bob"), {**dict.fromkeys("0234", "b"), "1": "tie"})
    wrong = overview(sqlite, made.store, made.plan, labels).labeler_wrong
    said = [(row.item.id, row.principle, row.kind, row.p_a) for row in wrong]
    assert said == [
        (1, "brief", "even", 0.9),
        (3, "brief", "even", 0.8),
        (4, "calm", "odd", 0.7),
        (2, "brief", "odd", 0.55),
    ]
    browser = lead(made)
    browser.get("/lead")
    browser.post("/lead/show", {**browser.fields(), "item": "all"})

    part = browser.page.text.partition("What the labeler gets wrong")[2]
    assert re.findall(r"(?:<h3[^>]*>|<div class=.soft.>)(.*?)</", part) == [
        "Principle brief: 3 items",
        "Labeler: Reply A, 90% sure. People: Reply B (2). Prompts: even.",
        "Labeler: Reply A, 80% sure. People: Reply B (2). Prompts: even.",
        "Labeler: Reply A, 55% sure. People: Reply B (1), Tie (1). Prompts: odd.",
        "Principle calm: 1 item",
        "Labeler: Reply A, 70% sure. People: Reply B (2). Prompts: odd.",
    ]
    assert "people contradict it on 4 items to settle" in browser.page.text
    monkeypatch.setattr(lead_pages, "MOST_EXAMPLES", 2)
    assert "55% sure" not in browser.get("/lead").text
    assert "The 2 of which the labeler is the surest." in browser.page.text


def test_all_hidden_ones_can_be_shown_at_once(contradicted: Setting, sqlite: Database) -> None:
    browser = lead(contradicted)
    browser.get("/lead")
    fields = {"form_token": browser.fields()["form_token"], "item": "all"}
    assert "Question 1?" in browser.post("/lead/show", fields).text
    with sqlite.reading() as connection:
        assert connection.scalars(select(SIGHT.c.item_id)).all() == [2]


def test_nobody_votes_after_the_label_was_seen_and_the_vote_before_stands(sqlite: Database) -> None:
    comparisons = [compared(number) for number in range(2)]
    labels = Labels(comparisons, [judged(row, 0.1) for row in comparisons])
    made = led(sqlite, [planned(row, n, wanted=3) for n, row in enumerate(comparisons)], labels)
    say(made, made.rater("ada"), {"0": "a", "1": "a"})
    lea = made.rater("lea", role="lead")
    first = made.store.next(made.plan, lea)
    assert first is not None
    made.store.see(made.plan, lea, [1])  # the item that the lead holds: it goes to others
    second = made.store.next(made.plan, lea)
    assert second is not None
    assert second.payload.messages[0].content == "Question 1?"
    late = made.store.vote(made.plan, lea, first.id, "late", Ballot("tie"))  # from a window that was still open
    assert (late, made.store.answered(made.plan, lea)) == ("seen", 0)
    made.store.vote(made.plan, lea, second.id, "blind", Ballot("tie"))

    def own() -> list[str]:
        votes = made.store.decided_votes(made.plan, audit=True)
        return [vote.comparison for vote in votes if vote.rater.startswith("lea")]

    assert own() == [comparisons[1].id]
    browser = Browser(made.site()).enter(made.accounts, "lea")
    assert "The text of brief." in browser.get("/lead/item?item=2").text  # the lead has voted on it
    assert own() == [comparisons[1].id]
    browser.get("/")
    assert "have seen the label" in browser.post("/undo", browser.fields()).text
    for ballot in (Ballot("both_bad"), Ballot("skip", rationale="unsure")):
        assert made.store.vote(made.plan, lea, second.id, ballot.choice, ballot) == "seen"
    assert (own(), made.store.answered(made.plan, lea)) == ([comparisons[1].id], 1)
    settle(browser, 2, "b")
    assert own() == [comparisons[1].id]


# Examples


def test_a_settled_item_becomes_an_example_and_the_rest_of_the_file_stays(
    contradicted: Setting, tmp_path: Path
) -> None:
    path = tmp_path / "ours.yaml"
    path.chmod(0o640)
    browser = lead(contradicted)
    settle(browser, 1, "b")
    assert "<option selected>brief</option>" in browser.page.text  # by which the labeler judged it
    assert "slightly better, by lea.</p>" in browser.page.text
    page = browser.get("/lead/example?item=1&principle=calm").text
    assert "+        better: b0" in page
    assert path.read_text() == FILE  # nothing is written yet
    assert "is written" in browser.post("/lead/example", browser.fields()).text
    assert path.stat().st_mode & 0o777 == 0o640
    added = "    examples:\n      - prompt: Question 0?\n        better: b0\n        worse: a0\n"
    assert path.read_text() == FILE.replace("      calm.\n", f"      calm.\n{added}")
    (example,) = load_constitution(path).principles[1].examples
    assert (example.prompt, example.better, example.worse) == ("Question 0?", "b0", "a0")
    assert "has this example already" in browser.get("/lead/example?item=1&principle=calm").text


@pytest.mark.parametrize("changed", ["file", "decision"])
def test_nothing_is_written_where_something_changed_since_the_diff(
    contradicted: Setting, tmp_path: Path, changed: str
) -> None:
    browser = lead(contradicted)
    settle(browser, 1, "b")
    browser.get("/lead/example?item=1&principle=brief")
    fields, path = browser.fields(), tmp_path / "ours.yaml"
    if changed == "file":
        path.write_text(FILE + "# more\n")
    else:
        settle(browser, 1, "a")
    before = path.read_text()
    page = browser.post("/lead/example", fields)
    assert page.status_code == 409
    assert "Nothing is written" in page.text
    assert path.read_text() == before


def test_what_cannot_be_an_example_is_told(contradicted: Setting, tmp_path: Path) -> None:
    browser = lead(contradicted)
    asked = "/lead/example?item=1&principle="
    assert "settled for one of the replies" in browser.get(f"{asked}brief").text
    settle(browser, 1, "tie")
    assert "settled for one of the replies" in browser.get(f"{asked}brief").text
    settle(browser, 1, "a")
    assert "no principle" in browser.get(f"{asked}other").text
    path = tmp_path / "ours.yaml"
    path.write_text("- {id: brief, text: Be brief.}\n")  # a list, which is read, and is no file of ours
    assert "constitutional import" in browser.get(f"{asked}brief").text
    path.write_text("name: Ours\nprinciples: [\n")
    assert "ours.yaml:" in browser.get(f"{asked}brief").text
    path.unlink()
    assert "there is no such file" in browser.get(f"{asked}brief").text
    assert browser.get("/lead/item?item=1").status_code == 200
    assert contradicted.lead is not None
    for other, word in ((tmp_path / "ours.md", "Markdown"), (None, "constitution of the package")):
        contradicted.lead = contradicted.lead._replace(constitution=other)
        (tmp_path / "ours.md").write_text("- Be brief.\n")
        assert word in lead(contradicted).get(f"{asked}brief").text
        for page in ("/lead", "/lead/item?item=1"):
            assert ("constitution of the package" in lead(contradicted).get(page).text) == (other is None)


def test_a_conversation_of_several_messages_is_no_example(sqlite: Database, tmp_path: Path) -> None:
    earlier = (Message("user", "Hello."), Message("assistant", "Hello!"))
    comparison = compared(0, *earlier)
    entry = planned(comparison, 0)
    payload = entry.payload.model_copy(update={"messages": comparison.prompt.messages})
    (tmp_path / "ours.yaml").write_text(FILE)
    labels = Labels([comparison], [])
    made = led(sqlite, [entry.model_copy(update={"payload": payload})], labels, tmp_path / "ours.yaml")
    say(made, made.rater("ada"), {"0": "a"})
    browser = lead(made)
    settle(browser, 1, "a")
    assert "several messages" in browser.get("/lead/example?item=1&principle=brief").text


# Who may see it


PAGES = ["/lead", "/lead/item?item=1", "/lead/example?item=1&principle=brief"]
POSTS = ["/lead/show", "/lead/settle", "/lead/example"]


def test_other_raters_learn_nothing_of_these_pages(contradicted: Setting, sqlite: Database) -> None:
    browser = Browser(contradicted.site()).enter(contradicted.accounts, "ada")
    assert "/lead" not in browser.page.text
    nothing = browser.get("/nothing").text
    browser.get("/start")
    token = browser.fields()["form_token"]
    fields = {"form_token": token, "item": "1", "choice": "a", "version": "0", "principle": "brief"}
    answers = [browser.get(path) for path in PAGES] + [browser.post(path, fields) for path in POSTS]
    without_nonce = {re.sub(r'nonce="[^"]*"', "", answer.text) for answer in answers}
    assert without_nonce == {re.sub(r'nonce="[^"]*"', "", nothing)}
    assert {answer.status_code for answer in answers} == {404}
    nobody = Browser(contradicted.site())
    assert {nobody.get(path).status_code for path in PAGES} == {401}
    with sqlite.reading() as connection:
        assert connection.execute(select(SETTLEMENT)).all() == connection.execute(select(SIGHT)).all() == []


def test_a_lead_finds_the_page_from_the_items(contradicted: Setting) -> None:
    assert 'href="/lead"' in lead(contradicted).get("/").text


@pytest.mark.parametrize("token", [None, "", "0" * 64])
def test_a_form_without_its_token_changes_nothing(
    contradicted: Setting, sqlite: Database, tmp_path: Path, token: str | None
) -> None:
    browser = lead(contradicted)
    settle(browser, 1, "b")
    browser.get("/lead/example?item=1&principle=brief")
    fields = {**browser.fields(), "item": "2", "choice": "a", "version": "0"}
    fields.pop("form_token")
    if token is not None:
        fields["form_token"] = token
    for path in POSTS:
        assert browser.post(path, fields).status_code == 403
    assert (tmp_path / "ours.yaml").read_text() == FILE
    with sqlite.reading() as connection:
        assert connection.scalars(select(SETTLEMENT.c.item_id)).all() == [1]
        assert connection.scalars(select(SIGHT.c.item_id)).all() == [1]


def test_no_decision_without_having_seen_the_votes_and_no_other_numbers(contradicted: Setting) -> None:
    browser = lead(contradicted)
    browser.get("/lead/item?item=1")
    fields = {**browser.fields(), "choice": "a", "version": "0"}
    assert browser.post("/lead/settle", fields).status_code == 404
    for number in ("-1", "1 OR 1=1", "²", "9" * 30, "", "99"):
        assert browser.get(f"/lead/item?item={number}").status_code == 404
        assert browser.post("/lead/show", {**fields, "item": number}).status_code == 404
    browser.post("/lead/show", {**fields, "item": "1"})
    assert browser.post("/lead/settle", {**fields, "version": "x"}).status_code == 400


def test_stored_scripts_stay_text(sqlite: Database, tmp_path: Path) -> None:
    payload = """</textarea></div><script>alert(1)</script><img src=x onerror="alert(1)">'"{{7*7}}"""
    comparison = compared(0).model_copy(update={"a": payload})
    entry = item(0, (payload, "b"), comparison=comparison.id, category=payload)
    path = tmp_path / "ours.yaml"
    path.write_text(FILE)
    label = judged(comparison, 0.9).model_copy(update={"principle_text": payload})
    made = led(sqlite, [entry], Labels([comparison], [label]), path)
    ada = made.rater(payload[:90])
    made.store.settle(made.plan, ada, ())
    shown = made.store.next(made.plan, ada)
    assert shown is not None
    made.store.vote(made.plan, ada, shown.id, "key", Ballot("tie", rationale=payload, opened=True))
    browser = lead(made)
    settle(browser, 1, "a", note=payload)
    pages = [browser.page.text, browser.get("/lead").text, browser.get("/lead/item?item=1").text]
    pages.append(browser.get("/lead/example?item=1&principle=brief").text)
    pages.append(browser.get(f"/lead/example?item=1&principle={payload}").text)
    browser.get("/lead/item?item=1")
    pages.append(browser.post("/lead/settle", {**browser.fields(), "note": payload}).text)
    assert_texts_stay_texts(pages)
    assert "&lt;script&gt;alert" in pages[0]


def test_without_pairs_there_is_progress_alone(sqlite: Database) -> None:
    made = setting(sqlite, [item(0, ("x", "y", "z"))], task="rank")
    made.lead = LeadSources(sqlite, lambda: Labels([], []), None, None)
    browser = lead(made)
    assert "Median seconds" in browser.get("/lead").text
    assert browser.get("/lead/item?item=1").status_code == 404


# The command


def test_a_run_is_exported_with_what_leads_decided_and_without_them(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = open_review(RunStore.load(run_folder), ReviewSettings(pay_per_hour=20))
    labels = review.lead.labels()
    assert (len(labels.comparisons), len(labels.judgements)) == (40, 0)  # the run has not labelled them yet
    assert review.lead.constitution is not None
    assert review.lead.constitution.name == "ours.yaml"
    assert review.lead.pay_per_hour == 20
    rater = review.accounts.rater_of(review.accounts.enter(review.accounts.invite("ada", "lead")) or "")
    assert rater is not None
    monkeypatch.setattr(review.store, "_clock", iter(range(1_900_000_000, 1_900_100_000, 20)).__next__)
    for key in ("first key", "second key"):
        shown = review.store.next(review.plan, rater)
        assert shown is not None
        review.store.vote(review.plan, rater, shown.id, key, Ballot("tie", seconds=5.0, opened=True))
        review.store.vote(review.plan, rater, shown.id, f"{key} again", Ballot("tie", seconds=7.5, opened=True))
    works = works_of(review.database, review.plan)
    review.store.see(review.plan, rater, [1])
    review.store.decide(review.plan, rater, 1, 0, Decision("b", 4, "Wrong."))
    review.database.close()
    out = tmp_path / "votes.jsonl"
    assert main(["review", str(run_folder), "export", "--out", str(out), "--audit"]) == 0
    verdicts = read_verdicts(out, {row.id for row in labels.comparisons})
    assert {(row.rater, row.choice, row.strength) for row in verdicts} == {("ada (settled)", "b", 4), ("ada", "tie", 1)}
    assert main(["review", str(run_folder), "freeze"]) == 0
    (frozen,) = (run_folder / "verdicts").glob("*.jsonl")
    rows = read_verdicts(frozen, None)
    assert {row.rater for row in rows} == {"ada (settled)", "ada"}
    # The votes took 5 and 7.5 seconds each; the one that the decision replaced is still somebody's work.
    work = work_of(rows)
    assert (work.raters, work.votes, work.timed, work.seconds) == (1, 3, 2, 25.0)
    assert work.seconds / 3600 == pytest.approx(sum(row.hours for row in works))
    assert (work.noted, work.exposures) == (3, sum(row.exposures for row in works))


GOLDEN = """\
name: Ours
principles:
  - id: brief
    text: Be brief.
    examples:
      - {prompt: Hello?, better: Hi., worse: Greetings to you.}
      - {prompt: How?, better: So., worse: Like this.}
  - id: long
    text: Be long.
    examples:
      - {prompt: How?, better: Like this., worse: So.}
"""


def test_gold_items_are_the_constitutions_examples_and_come_into_the_frozen_file(tmp_path: Path) -> None:
    constitution(tmp_path)
    (tmp_path / "ours.yaml").write_text(GOLDEN)
    config = configured(tmp_path, "spotcheck.gold_share=0.5", "until=sample_pairs")
    store, _ = go(config, World())
    review = open_review(store, ReviewSettings(by_principle=True))
    assert review.plan.wanted == len(store.read("comparisons", Comparison))
    rater = review.accounts.rater_of(review.accounts.enter(review.accounts.invite("ada", "lead")) or "")
    assert rater is not None
    number = 0
    while shown := review.store.next(review.plan, rater):
        known = shown.payload.messages[-1].content == "Hello?"
        choice: Literal["first", "second", "tie"] = "tie"
        if known:
            choice = "first" if shown.payload.replies[0] == "Hi." else "second"
        ballot = Ballot(choice, principles={"brief": choice, "long": "not_applicable"}, opened=True)
        review.store.vote(review.plan, rater, shown.id, f"key number {number}", ballot)
        number += 1
    review.database.close()
    assert number == review.plan.wanted + 1  # principles contradict each other on the other example
    assert main(["review", str(store.folder), "freeze"]) == 0
    (frozen,) = (store.folder / "verdicts").glob("*.jsonl")
    rows = read_verdicts(frozen, {row.id for row in store.read("comparisons", Comparison)})
    assert [(row.choice, row.gold, row.principle) for row in rows if row.gold] == [
        ("a", "a", None),
        ("a", "a", "brief"),
    ]
    assert on_gold(rows) == {"ada": (1, 1)}
    assert work_of(rows).votes == number
    assert old_settings(review, ReviewSettings()) == []
    begun = review._replace(plan=review.plan._replace(gold=0))
    assert "gold" in old_settings(begun, ReviewSettings())[0]
    evaluated = begun.plan._replace(plan=begun.plan.plan.model_copy(update={"about": "evaluation"}))
    assert old_settings(begun._replace(plan=evaluated), ReviewSettings(about="evaluation")) == []  # it can have none
    out = tmp_path / "votes.jsonl"
    assert main(["review", str(store.folder), "export", "--out", str(out), "--audit"]) == 0
    assert read_verdicts(out, None) == rows  # with what is gold marked as such
    with out.with_suffix(".csv").open(encoding="utf-8-sig", newline="") as file:
        assert [row["gold"] for row in csv.DictReader(file) if row["gold"]] == ["a"]


def test_a_share_of_gold_items_needs_examples(tmp_path: Path) -> None:
    constitution(tmp_path)
    store, _ = go(configured(tmp_path, "spotcheck.gold_share=0.5", "until=sample_pairs"), World())
    with pytest.raises(ConfigurationError, match=r"spotcheck\.gold_share=0\.5 needs examples"):
        open_review(store, ReviewSettings())


def test_the_pay_is_the_runs_unless_the_review_says_otherwise(tmp_path: Path) -> None:
    constitution(tmp_path)
    config = configured(tmp_path, "report.pay_per_hour=18", "report.currency=EUR", "until=sample_pairs")
    store, _ = go(config, World())
    for settings, expected in (
        (ReviewSettings(), (18.0, "EUR")),
        (ReviewSettings(pay_per_hour=20, currency="CHF"), (20.0, "CHF")),
    ):
        review = open_review(store, settings)
        assert (review.lead.pay_per_hour, review.lead.currency) == expected
        review.database.close()


# The database


def test_a_database_of_the_first_version_is_brought_up_to_date_with_its_votes(
    database: Database, address: str | None, tmp_path: Path
) -> None:
    comparison = compared(0)
    made = setting(database, [planned(comparison, 0, wanted=2)])
    say(made, made.rater("ada"), {"0": "a"})
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database.engine.connect().execution_options(writes=True) as connection, connection.begin():
        config.attributes["connection"] = connection
        command.downgrade(config, "r0001")
    again = Database.open(tmp_path, address)
    try:
        with again.reading() as connection:
            assert connection.scalars(select(VOTE.c.choice)).all() == ["a"]
        lea = made.rater("lea", role="lead")
        made.store.see(made.plan, lea, [1])
        assert made.store.decide(made.plan, lea, 1, 0, Decision("b", 2, "Shorter.")) == "saved"
        assert made.store.decide(made.plan, lea, 1, 0, Decision("b", 2, "Shorter.")) == "repeated"
        assert made.store.decide(made.plan, lea, 1, 0, Decision("a", 1, "")) == "not_needed"
        assert made.store.decide(made.plan, lea, 1, 1, Decision("tie", 1, "")) == "saved"
        votes = made.store.decided_votes(made.plan, audit=True)
        assert [(vote.rater, vote.choice) for vote in votes] == [("lea (settled)", "tie")]
    finally:
        again.close()
