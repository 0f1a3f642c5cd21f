"""SQL in every field that a rater or a lead can send, on SQLite and on PostgreSQL: it stays text, or is refused."""

import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import inspect, select

from constitutional.review.accounts import digest
from constitutional.review.ballot import Ballot
from constitutional.review.database import Database
from constitutional.review.lead import Labels, LeadSources
from constitutional.review.schema import METADATA, RATER, SETTLEMENT, VOTE
from tests.review.reviewing import PRINCIPLES, URL, Browser, Setting, item, setting
from tests.review.test_lead import FILE, compared, judged, planned, say

INJECTIONS = (
    "' OR '1'='1",
    "1 OR 1=1",
    "1; DROP TABLE vote; --",
    "'; DROP TABLE vote; --",
    '"; DROP TABLE vote; --',
    "\\'; DROP TABLE vote; --",
    "x'); UPDATE rater SET role='lead'; --",
    "$$; UPDATE rater SET role='lead'; $$",
    "0 UNION SELECT token_hash FROM session --",
    "1 AND (SELECT 1 FROM pg_sleep(2)) IS NOT NULL",
    "'||(SELECT pg_sleep(2))||'",
    "1/**/OR/**/randomblob(300000000) IS NOT NULL",
    "%",
    "%' ESCAPE '",
    "%(id)s :id ? %s $1",
    "\u02bc OR 1=1 \uff07 OR 1=1",
)
Content = dict[str, list[tuple[Any, ...]]]


def content(database: Database) -> Content:
    """All rows of all tables."""
    with database.reading() as connection:
        return {
            table.name: [tuple(map(repr, row)) for row in connection.execute(select(table).order_by(table.c.id))]
            for table in METADATA.sorted_tables
        }


def assert_same_tables_and_roles(database: Database, roles: dict[str, str]) -> None:
    assert {table.name for table in METADATA.sorted_tables} <= {*inspect(database.engine).get_table_names()}
    with database.reading() as connection:
        assert {row.name: row.role for row in connection.execute(select(RATER))} == roles


def refused(database: Database, send: Any, *, but: tuple[str, ...] = ()) -> None:  # noqa: ANN401 - a call
    """What is sent changes no row, is answered at once, and is no failure of ours."""
    before, began = content(database), time.monotonic()
    response = send()
    assert response.status_code < 500, response.text
    assert time.monotonic() - began < 1.5  # no sleep came to run
    after = content(database)
    assert {name for name in after if after[name] != before[name]} <= {*but}


@pytest.fixture
def asked(database: Database) -> Setting:
    return setting(database, [item(number) for number in range(2 * len(INJECTIONS) + 1)], principles=PRINCIPLES)


def test_in_a_vote(asked: Setting, database: Database) -> None:
    ada, bob = Browser(asked.site()).enter(asked.accounts, "ada"), asked.rater("bob")
    shown = asked.store.next(asked.plan, bob)
    assert shown is not None
    asked.store.vote(asked.plan, bob, shown.id, "bobs-key", Ballot("first", rationale="bob's own"))
    right = {"choice": "second", "strength": "2", "principle_1": "tie", "principle_2": "not_applicable"}
    for text in INJECTIONS:
        for field in ("assignment", "choice", "strength", "principle_1", "key", "form_token"):
            ada.get("/")
            refused(database, lambda field=field, text=text: ada.vote(**{**right, field: text}))
        for field in ("assignment", "form_token"):
            for path in ("/exposed", "/answer", "/undo") if field == "form_token" else ("/exposed", "/answer"):
                ada.get("/")
                fields = {**ada.fields(), field: text}
                refused(database, lambda path=path, fields=fields: ada.post(path, fields))
        for path, field in (("/answers", "before"), ("/answer", "assignment")):
            refused(database, lambda path=path, field=field, text=text: ada.client.get(path, params={field: text}))
        ada.get("/")
        assert ada.vote(**right, rationale=text, seconds=text).status_code == 200
        refused(database, lambda text=text: ada.client.get("/", params={"notice": text}), but=("assignment", "item"))
    votes = {vote.comparison: vote for vote in asked.store.counted_votes(asked.plan, audit=True) if vote.rater == "ada"}
    assert sorted(vote.rationale for vote in votes.values()) == sorted(INJECTIONS)
    assert {(vote.strength, vote.principles["calm"]) for vote in votes.values()} == {(2, "not_applicable")}
    with database.reading() as connection:
        assert connection.scalar(select(VOTE.c.rationale).where(VOTE.c.key == "bobs-key")) == "bob's own"
    assert_same_tables_and_roles(database, {"ada": "rater", "bob": "rater"})


@pytest.mark.parametrize("task", ["rewrite", "rank"])
def test_in_a_reply_or_a_ranking(database: Database, task: str) -> None:
    replies = ("x", "y", "z") if task == "rank" else ("x",)
    made = setting(database, [item(number, replies) for number in range(len(INJECTIONS) + 1)], task=task)  # type: ignore[arg-type]
    ada = Browser(made.site()).enter(made.accounts, "ada")
    for text in INJECTIONS:
        ada.get("/")
        if task == "rank":
            ranks = {"choice": "ranked", "rank_1": "1", "rank_2": "2", "rank_3": text}
            refused(database, lambda ranks=ranks: ada.vote(**ranks))
        else:
            assert ada.vote(choice="rewritten", rewritten=text).status_code == 200
    kept = [vote.rewritten for vote in made.store.counted_votes(made.plan, audit=True)]
    assert sorted(kept) == (sorted(INJECTIONS) if task == "rewrite" else [])
    assert_same_tables_and_roles(database, {"ada": "rater"})


def test_in_what_lets_somebody_in(asked: Setting, database: Database) -> None:
    asked.rater("lea", role="lead")
    unused = asked.accounts.invite("bob")
    for text in INJECTIONS:
        for token in (text, f"{unused}{text}", f"{digest(unused)}{text}"):
            browser = Browser(asked.site())
            browser.client.get("/enter", params={"token": token})
            browser.get("/enter?token=x")
            fields = {**browser.fields(), "token": token}
            refused(database, lambda browser=browser, fields=fields: browser.post("/enter", fields))
            assert browser.page.status_code == 403
        stranger = Browser(asked.site())
        session = text.encode("ascii", "replace").decode().replace(";", "%3B").replace('"', "%22")
        header = {"cookie": f"review_8123={session}"}
        refused(database, lambda stranger=stranger, header=header: stranger.client.get(f"{URL}/lead", headers=header))
        assert stranger.client.get(f"{URL}/", headers=header).status_code == 401
    assert asked.accounts.enter(unused) is not None  # nothing spent it
    assert_same_tables_and_roles(database, {"lea": "lead", "bob": "rater"})


def test_in_the_names_of_raters_and_of_categories(database: Database) -> None:
    items = [item(place, category=text) for place, text in enumerate(text.replace(";", ",") for text in INJECTIONS)]
    made = setting(database, items)
    assert len(made.plan.categories) == len(INJECTIONS)
    for place, text in enumerate(INJECTIONS):
        browser = Browser(made.site()).enter(made.accounts, text, start=False)
        fields = {**browser.fields(), f"category_{place}": text, f"category_{text}": text, "category_999": text}
        assert browser.post("/start", fields).status_code == 200
        with database.reading() as connection:
            chosen = connection.scalar(select(RATER.c.opted_out).where(RATER.c.name == text))
        assert chosen == [made.plan.categories[place]]
        asked: list[str] = []
        rater = made.rater(text, briefed=False)
        while shown := made.store.next(made.plan, rater):
            asked.append(shown.category)
            made.store.vote(made.plan, rater, shown.id, f"key {place} {shown.id}", Ballot("skip", rationale="no"))
        # `%` stands for itself: of all categories the rater is spared the chosen one alone.
        assert {*asked} == {*made.plan.categories} - {made.plan.categories[place]}
    assert_same_tables_and_roles(database, dict.fromkeys((" ".join(text.split()) for text in INJECTIONS), "rater"))


def test_in_what_a_lead_sends(database: Database, tmp_path: Path) -> None:
    rows = [compared(number) for number in range(2)]
    path = tmp_path / "ours.yaml"
    path.write_text(FILE)
    made = setting(database, [planned(row, number, wanted=2) for number, row in enumerate(rows)])
    made.lead = LeadSources(database, lambda: Labels(rows, [judged(row, 0.1) for row in rows]), path, None)
    say(made, made.rater("ada"), {"0": "a", "1": "a"})
    lea = Browser(made.site()).enter(made.accounts, "lea", role="lead")
    lea.get("/lead/item?item=1")
    lea.post("/lead/show", lea.fields())
    for text in INJECTIONS:
        for query in ({"item": text}, {"item": f"1 {text}"}, {"item": "1", "notice": text}):
            refused(database, lambda query=query: lea.client.get("/lead/item", params=query))
        for query in ({"item": text, "principle": "brief"}, {"item": "1", "principle": text}):
            refused(database, lambda query=query: lea.client.get("/lead/example", params=query))
        lea.get("/lead/item?item=1")
        own = {**lea.fields(), "choice": "a", "strength": "2"}
        refused(database, lambda own=own, text=text: lea.post("/lead/show", {**own, "item": text}))
        for field in ("item", "version", "choice", "strength", "form_token"):
            wrong = {**own, field: text}
            refused(database, lambda wrong=wrong: lea.post("/lead/settle", wrong))
        for wrong in ({"principle": text}, {"principle": "brief", "digest": text}, {"item": text}):
            fields = {**own, "item": "1", **wrong}
            refused(database, lambda fields=fields: lea.post("/lead/example", fields))
        assert lea.post("/lead/settle", {**own, "note": text, "shown": text}).status_code == 200
    assert path.read_text() == FILE
    with database.reading() as connection:
        notes = connection.scalars(select(SETTLEMENT.c.note).order_by(SETTLEMENT.c.version))
        assert [*notes] == [*INJECTIONS]
    assert_same_tables_and_roles(database, {"ada": "rater", "lea": "lead"})
