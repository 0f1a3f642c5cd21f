"""The pages without a browser: what they do, and what attacks on them do not."""

import asyncio
import re
import socket
import time
from collections.abc import MutableMapping
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from constitutional.base.errors import UsageError
from constitutional.review import guard, site
from constitutional.review.accounts import INVITED_S, SESSION_S, Accounts, Role, digest
from constitutional.review.ballot import LONGEST_REPLY, Ballot
from constitutional.review.database import Database
from constitutional.review.guard import MOST_ADDRESSES, MOST_BYTES, TRIES, TokenTries
from constitutional.review.lead import Labels, works_of
from constitutional.review.plan import Plan
from constitutional.review.schema import INVITATION, SESSION
from constitutional.review.settings import Task
from tests.review.reviewing import (
    PRINCIPLES,
    URL,
    Browser,
    Clock,
    Setting,
    assert_texts_stay_texts,
    item,
    served,
    setting,
)
from tests.review.test_lead import compared, lead, led, planned


def voted(made: Setting) -> list[tuple[str, str]]:
    return [(vote.comparison, vote.choice) for vote in made.store.counted_votes(made.plan, audit=True)]


def test_a_rater_enters_reads_votes_undoes_and_comes_to_the_end(sqlite: Database) -> None:
    made = setting(sqlite, [item(0), item(1)])
    browser = Browser(made.site()).enter(made.accounts, "ada", start=False)
    assert "Instructions" in browser.page.text
    assert "Question 0?" in browser.post("/start", browser.fields()).text
    assert "Question 1?" in browser.vote(choice="tie").text
    assert "saved" in browser.page.text
    assert "Question 0?" in browser.post("/undo", browser.fields()).text
    browser.vote(choice="both_bad")
    assert "nothing left" in browser.vote(choice="skip", rationale="unsure").text
    assert voted(made) == [("c0", "both_bad"), ("c1", "skip")]
    assert len(made.votes) == 3
    assert "Question 1?" in browser.post("/undo", browser.fields()).text


def test_any_answer_is_changed_among_the_raters_answers(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "COUNT_S", 1e9)
    made = setting(sqlite, [item(number) for number in range(4)], principles=PRINCIPLES)
    browser = Browser(made.site()).enter(made.accounts, "ada")
    assert "You have given no answer yet" in browser.get("/answers").text
    browser.get("/")
    browser.vote(choice="second", strength="3", principle_1="first", principle_2="not_applicable", rationale="Longer.")
    browser.vote(choice="skip", rationale="unsure")
    browser.vote(choice="tie", principle_1="tie", principle_2="tie")
    assert "Question 3?" in browser.page.text
    page = browser.get("/answers").text
    assert "2027-01-15 08:00 UTC" in page
    said = re.findall(r"<p><b>(.*?)</b>", page)
    assert said == ["Tie", "Skipped", "Reply B, much better"]
    page = browser.post("/answer", browser.fields()).text  # the last form: that of the first answer
    assert "Question 0?" in page
    checked = re.findall(r'name="(\w+)" value="(\w+)"[^>]* checked', page)
    assert checked == [
        ("choice", "second"),
        ("strength", "3"),
        ("principle_1", "first"),
        ("principle_2", "not_applicable"),
    ]
    assert "\nLonger.</textarea>" in page
    assert "Undo" not in page
    wrong = browser.vote(choice="tie", principle_1="tie", principle_2="maybe")
    assert wrong.status_code == 422
    page = browser.vote(choice="tie", principle_1="tie", principle_2="tie").text
    assert "Your answer is changed." in page
    assert re.findall(r"<p><b>(.*?)</b>", page) == ["Tie", "Tie", "Skipped"]
    assert "You: 2. All raters: 2 of 4" in browser.get("/").text
    assert "Question 3?" in browser.page.text  # which waited meanwhile
    assert voted(made) == [("c0", "tie"), ("c1", "skip"), ("c2", "tie")]


def test_answers_are_listed_page_by_page(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "MOST_LISTED", 2)
    made = setting(sqlite, [item(number) for number in range(4)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    for _ in range(4):
        browser.vote(choice="tie")
    pages = [browser.get("/answers").text]
    while older := re.search(r'href="(/answers\?before=\d+)"', pages[-1]):
        pages.append(browser.get(older[1]).text)
    assert [re.findall(r"Question \d", page) for page in pages] == [
        ["Question 3", "Question 2"],
        ["Question 1", "Question 0"],
    ]


def test_a_harmful_text_stays_hidden_among_the_answers(sqlite: Database) -> None:
    made = setting(sqlite, [item(0, ("Old.",), category="violence")], task="rewrite")
    browser = Browser(made.site()).enter(made.accounts, "ada")
    browser.vote(choice="rewritten", rewritten="My own.", opened="yes")
    page = browser.get("/answers").text
    assert "Hidden text: violence" in page
    assert "Question 0?" not in page
    page = browser.post("/answer", browser.fields()).text
    assert "\nMy own.</textarea>" in page
    assert page.count('<details class="hidden-text">') == 2
    shown = browser.post("/exposed", {**browser.fields(), "opened": "yes"}).text
    assert shown.count('<details class="hidden-text" open>') == 2
    assert "\nMy own.</textarea>" in shown
    assert "Your answer is changed." in browser.vote(choice="rewritten", rewritten="Anew.").text
    assert made.store.counted_votes(made.plan, audit=True)[0].rewritten == "Anew."


def test_a_lead_who_has_seen_the_label_cannot_change_the_answer(sqlite: Database) -> None:
    made = led(sqlite, [planned(compared(0), 0), planned(compared(1), 1)], Labels([compared(0), compared(1)], []))
    leads = lead(made)
    for _ in range(2):
        leads.vote(choice="tie")
    leads.get("/lead/item?item=1")
    page = leads.get("/answers").text
    assert page.count(">Change</button>") == page.count("You have seen the label") == 1
    assert "Question 1?" in leads.post("/answer", leads.fields() | {"assignment": "2"}).text
    assert leads.post("/answer", leads.fields() | {"assignment": "1"}).status_code == 404


def test_the_number_of_all_votes_goes_with_the_raters_own(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "COUNT_S", 1e9)  # it is not counted anew
    made = setting(sqlite, [item(number) for number in range(4)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    assert "You: 0. All raters: 0 of 4" in browser.page.text
    assert "You: 1. All raters: 1 of 4" in browser.vote(choice="tie").text
    assert "You: 2. All raters: 2 of 4" in browser.vote(choice="tie").text
    assert "You: 2. All raters: 2 of 4" in browser.vote(choice="skip", rationale="unsure").text
    browser.post("/undo", browser.fields())
    assert "You: 1. All raters: 1 of 4" in browser.post("/undo", browser.fields()).text
    assert made.votes == [1, 2, 2]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({}, "Choose one"),
        ({"choice": "a"}, "Choose one"),
        ({"choice": "rewritten", "rewritten": "x"}, "Choose one"),
        ({"choice": "skip", "rationale": "  "}, "why you skip"),
        ({"choice": "tie", "principle_1": "tie"}, "number 2 is missing"),
        ({"choice": "tie", "principle_1": "tie", "principle_2": "maybe"}, "number 2 is missing"),
        ({"choice": "first", "principle_1": "tie", "principle_2": "tie", "strength": "5"}, "how much better"),
        ({"choice": "first", "principle_1": "tie", "principle_2": "tie", "strength": "²"}, "how much better"),
        ({"choice": "tie", "rationale": "x" * 5001}, "at most 5,000"),
    ],
)
def test_what_is_wrong_is_told_and_what_was_written_stays(
    sqlite: Database, fields: dict[str, str], complaint: str
) -> None:
    made = setting(sqlite, [item(0)], principles=PRINCIPLES)
    browser = Browser(made.site()).enter(made.accounts, "ada")
    made.clock.now += 100
    page = browser.vote(**fields, seconds="61.50")
    assert page.status_code == 422
    assert browser.fields()["seconds"] == "61.50"  # from which the script goes on
    assert complaint in page.text
    assert fields.get("rationale", "") in page.text
    assert voted(made) == []
    browser.vote(choice="tie", principle_1="first", principle_2="not_applicable")
    assert voted(made) == [("c0", "tie")]
    assert made.store.counted_votes(made.plan, audit=True)[0].seconds == 61.5


@pytest.mark.parametrize(
    ("task", "replies", "wrong", "right"),
    [
        ("rewrite", ("Old.",), {"choice": "rewritten", "rewritten": " "}, {"choice": "rewritten", "rewritten": "New."}),
        ("rank", ("x", "y", "z"), {"choice": "ranked", "rank_1": "1", "rank_2": "4", "rank_3": "2"}, None),
    ],
)
def test_replies_are_rewritten_and_ranked(
    sqlite: Database, task: Task, replies: tuple[str, ...], wrong: dict[str, str], right: dict[str, str] | None
) -> None:
    made = setting(sqlite, [item(0, replies), item(1, replies)], task=task)
    browser = Browser(made.site()).enter(made.accounts, "ada")
    assert browser.vote(**wrong).status_code == 422
    browser.vote(**(right or {"choice": "ranked", "rank_1": "1", "rank_2": "3", "rank_3": "1"}))
    browser.vote(choice="skip", rationale="unsure")
    kept, skipped = made.store.counted_votes(made.plan, audit=True)
    assert skipped.choice == "skip"
    if task == "rewrite":
        assert (kept.choice, kept.rewritten) == ("rewritten", "New.")
    else:
        assert (kept.choice, sorted(kept.ranks)) == ("ranked", [1, 1, 3])


def test_line_ends_come_back_as_they_were(sqlite: Database) -> None:
    made = setting(sqlite, [item(0, ("\n  One.\n\nTwo.",))], task="rewrite")
    browser = Browser(made.site()).enter(made.accounts, "ada")
    area = re.search(r'<textarea id="rewritten"[^>]*>\n(.*?)</textarea>', browser.page.text, re.DOTALL)
    assert area is not None
    browser.vote(choice="rewritten", rewritten=area[1].replace("\n", "\r\n"))  # as browsers send it
    assert made.store.counted_votes(made.plan, audit=True)[0].rewritten == "\n  One.\n\nTwo."


def test_harmful_texts_are_in_closed_parts_and_can_be_opted_out_of(sqlite: Database) -> None:
    made = setting(sqlite, [item(0, category="violence"), item(1)])
    browser = Browser(made.site()).enter(made.accounts, "ada", start=False)
    assert "Some texts are harmful" in browser.page.text
    browser.post("/start", browser.fields())
    page = browser.page.text
    assert page.count('<details class="hidden-text">') == 3
    for text in ("Question 0?", ">a0<", ">b0<"):
        before = page[: page.index(text)]
        assert before.count('<details class="hidden-text">') > before.count("</details>")
    browser.get("/start")
    browser.post("/start", {**browser.fields(), "category_0": "on"})
    assert "Question 1?" in browser.page.text
    assert 'hidden-text">' not in browser.page.text
    assert "checked" in browser.get("/start").text


def test_a_second_task_shows_its_own_instructions_and_warning(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    Browser(made.site()).enter(made.accounts, "ada")
    made.plan = made.store.add_plan(
        Plan(run="first", task="rank", constitution="d0", seed=7), [item(0, category="violence")]
    )
    browser = Browser(made.site()).enter(made.accounts, "ada", start=False)
    page = browser.get("/").text
    assert "Rank them" in page
    assert "Some texts are harmful" in page
    assert "Question 0?" not in page
    browser.post("/start", browser.fields())
    assert "Question 0?" in browser.page.text


def test_an_opened_text_is_counted(sqlite: Database) -> None:
    made = setting(sqlite, [item(0, category="violence")])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    fields = {name: browser.fields()[name] for name in ("form_token", "assignment")}
    assert browser.post("/exposed", fields).status_code == 204
    (work,) = works_of(sqlite, made.plan)
    assert (work.votes, work.exposures) == (0, 1)


def test_hidden_texts_are_opened_before_a_vote_or_skipped(sqlite: Database) -> None:
    made = setting(sqlite, [item(number, category="violence") for number in range(2)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    page = browser.vote(choice="tie", rationale="A note.")
    assert page.status_code == 422
    assert "still hidden" in page.text
    assert "A note." in page.text
    assert voted(made) == []
    fields = {name: browser.fields()[name] for name in ("form_token", "assignment")}
    page = browser.post("/exposed", {**fields, "opened": "yes"})  # as the button without scripts
    assert page.status_code == 200
    assert page.text.count('<details class="hidden-text" open>') == 3
    browser.vote(choice="tie")
    browser.vote(choice="skip", rationale="unsure")
    assert voted(made) == [("c0", "tie"), ("c1", "skip")]
    (work,) = works_of(sqlite, made.plan)
    assert work.exposures == 1


def test_a_lead_is_told_where_a_note_calls_the_other_reply_a(sqlite: Database) -> None:
    made = led(sqlite, [planned(compared(0), 0, wanted=8)], Labels([compared(0)], []))
    first: dict[str, str] = {}
    for name in "abcdefgh":
        rater = made.rater(f"rater {name}")
        shown = made.store.next(made.plan, rater)
        assert shown is not None
        first[rater.name] = shown.payload.replies[0]
        note = "A is better." if name < "g" else ""
        made.store.vote(made.plan, rater, shown.id, f"key {name}", Ballot("first", rationale=note))
    browser = lead(made)
    browser.get("/lead/item?item=1")
    page = browser.post("/lead/show", browser.fields()).text
    told = set(re.findall("To (rater .), reply B stood on the left", page))
    exchanged = {name for name, reply in first.items() if reply == "b0"}
    assert told == exchanged - {"rater g", "rater h"}  # who wrote no note
    assert 0 < len(told) < 6


# Accounts


def test_a_link_works_once_and_only_when_the_button_is_pressed(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    token = made.accounts.invite("ada")
    first, second = Browser(made.site()), Browser(made.site())
    for browser in (first, second):
        browser.get(f"/enter?token={token}")  # as a mail scanner does
    assert first.post("/enter", first.fields()).status_code == 200
    assert second.post("/enter", second.fields()).status_code == 403
    assert "used before" in second.page.text
    assert second.get("/").status_code == 401
    assert "Instructions" in first.get("/").text


def test_a_new_link_ends_the_one_before_and_links_and_sessions_grow_old(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    old, new = made.accounts.invite("ada"), made.accounts.invite("ada")
    assert made.accounts.enter(old) is None
    made.clock.now += INVITED_S - 1
    session = made.accounts.enter(new)
    assert session is not None
    made.clock.now += SESSION_S - 1
    assert made.accounts.rater_of(session) is not None
    made.clock.now += 2
    assert made.accounts.rater_of(session) is None
    late = made.accounts.invite("ada")
    made.clock.now += INVITED_S + 1
    assert made.accounts.enter(late) is None


def test_signing_out_ends_the_session_itself(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    cookies, fields = dict(browser.client.cookies), browser.fields()
    assert "signed out" in browser.post("/leave", fields).text
    browser.client.cookies.update(cookies)
    assert browser.get("/").status_code == 401


def test_a_role_is_kept_unless_another_is_typed(database: Database) -> None:
    made = setting(database, [item(0)])
    roles = []
    typed: tuple[Role | None, ...] = (None, "lead", None, "rater")
    for role in typed:
        session = made.accounts.enter(made.accounts.invite("ada", role))
        rater = made.accounts.rater_of(session or "")
        assert rater is not None
        roles.append((rater.id, rater.role))
    assert roles == [(1, "rater"), (1, "lead"), (1, "lead"), (1, "rater")]


@pytest.mark.parametrize("name", ["", " ", "x" * 101, "a\tb\x07", "simulated 1", "lea (settled)"])
def test_no_rater_has_a_name_that_cannot_be_shown_or_means_something_else(sqlite: Database, name: str) -> None:
    with pytest.raises(UsageError, match="another"):
        Accounts(sqlite).invite(name)
    assert Accounts(sqlite).invite("simulated")  # which only looks alike


def test_only_digests_of_tokens_are_stored(database: Database) -> None:
    made = setting(database, [item(0)])
    invited = made.accounts.invite("ada")
    session = made.accounts.enter(invited)
    with database.reading() as connection:
        stored = [str(row) for table in (INVITATION, SESSION) for row in connection.execute(select(table))]
    assert session is not None
    assert digest(invited) in stored[0]
    assert not any(token in row for token in (invited, session) for row in stored)


def test_who_opted_out_is_told_why_nothing_is_left_and_the_lead_that_a_rater_is_wanted(sqlite: Database) -> None:
    made = led(sqlite, [planned(compared(0), 0, category="war"), planned(compared(1), 1)], Labels([], []))
    browser = Browser(made.site()).enter(made.accounts, "ada", start=False)
    browser.post("/start", {**browser.fields(), "category_0": "on"})
    page = browser.vote(choice="tie").text
    assert "You opted out of war" in page
    leads = lead(made)
    assert "wants another rater" not in leads.get("/lead").text  # the lead could take it
    leads.get("/")
    leads.vote(choice="skip", rationale="unsure")
    assert "1 item of these wants another rater" in leads.get("/lead").text
    made.rater("bob")
    assert "wants another rater" not in leads.get("/lead").text


# Attacks


def test_stored_scripts_in_every_field_stay_text(sqlite: Database) -> None:
    payload = """</textarea></div><script>alert(1)</script><img src=x onerror="alert(1)">'"{{7*7}}"""
    principles = (PRINCIPLES[0].model_copy(update={"text": payload}),)
    made = setting(sqlite, [item(0, (payload, payload + "2"), category=payload), item(1)], principles=principles)
    browser = Browser(made.site()).enter(made.accounts, payload[:90])
    pages = [browser.page.text, browser.get("/start").text, browser.get(f"/enter?token={payload}").text]
    browser.get("/")
    wrong = {"choice": payload, "rationale": payload, "key": payload[:60], "seconds": payload, "strength": payload}
    pages.append(browser.vote(**wrong).text)
    pages += [browser.get(f"/{payload}").text, browser.get(f"/?notice={payload}").text]
    browser.vote(choice="tie", principle_1="tie", rationale=payload, opened="yes")
    assert made.store.counted_votes(made.plan, audit=True)[0].rationale == payload
    pages += [browser.get("/answers").text, browser.post("/answer", browser.fields()).text]
    browser.get("/")
    pages.append(browser.post("/undo", browser.fields()).text)
    assert_texts_stay_texts(pages)
    assert "{{7*7}}" in pages[0]


def test_every_response_has_the_headers(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    browser = Browser(made.site())
    answers = [browser.get("/"), browser.get("/nothing"), browser.get("/enter?token=x"), browser.post("/vote", {})]
    browser.enter(made.accounts, "ada")
    answers += [browser.page, browser.post("/vote", {}), browser.client.get("/", headers={"Host": "evil.example"})]
    answers.append(browser.client.request("DELETE", "/"))
    assert [answer.status_code for answer in answers] == [401, 404, 200, 401, 200, 403, 400, 405]
    nonces = set()
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        for part in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
            assert part in policy
        assert "unsafe" not in policy
        (nonce, *_) = re.findall(r"script-src 'nonce-([\w-]{20,})'", policy)
        nonces.add(nonce)
        if "<script" in answer.text:
            assert f'<script nonce="{nonce}">' in answer.text
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers
    assert len(nonces) == len(answers)


@pytest.mark.parametrize("path", ["/vote", "/undo", "/start", "/leave", "/exposed", "/enter", "/answer"])
@pytest.mark.parametrize("token", [None, "", "0" * 64, "é"])
def test_a_form_without_its_token_does_nothing(sqlite: Database, path: str, token: str | None) -> None:
    made = setting(sqlite, [item(0)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    fields = {**browser.fields(), "choice": "tie", "token": made.accounts.invite("bob")}
    fields.pop("form_token")
    assert browser.post(path, fields if token is None else {**fields, "form_token": token}).status_code == 403
    assert voted(made) == []
    assert browser.get("/").status_code == 200


def test_the_form_token_of_another_rater_is_worth_nothing(sqlite: Database) -> None:
    made = setting(sqlite, [item(0), item(1)])
    ada, bob = (Browser(made.site()).enter(made.accounts, name) for name in ("ada", "bob"))
    assert ada.vote(choice="tie", form_token=bob.fields()["form_token"]).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": URL}, 200),
        ({"Origin": "http://localhost:8123"}, 200),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "null"}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:9999"}, 403),
        ({"Origin": "https://127.0.0.1:8123"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_only_its_own_pages_may_post(sqlite: Database, headers: dict[str, str], status: int) -> None:
    made = setting(sqlite, [item(0)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    fields = {**browser.fields(), "choice": "tie"}
    assert browser.client.post("/vote", data=fields, headers=headers).status_code == status
    assert len(voted(made)) == (status == 200)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8123", "127.0.0.1", "127.0.0.1:80", "", "127.0.0.1:8123.evil"]
)
def test_a_name_that_is_made_to_point_here_is_refused(sqlite: Database, host: str) -> None:
    made = setting(sqlite, [item(0)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    answer = browser.client.get("/", headers={"Host": host})
    assert answer.status_code == 400
    assert "Question" not in answer.text


@pytest.mark.parametrize(
    ("url", "origins"),
    [
        ("http://10.0.0.5:80", ["http://10.0.0.5"]),
        ("https://review.example.org:443", ["https://review.example.org"]),
        ("http://[fd00::1]:80", ["http://[fd00::1]"]),
        ("http://127.0.0.1:80", ["http://127.0.0.1", "http://localhost", "http://[::1]"]),
        ("http://127.0.0.1", ["http://127.0.0.1", "http://localhost"]),
    ],
)
def test_browsers_leave_the_usual_port_out(sqlite: Database, url: str, origins: list[str]) -> None:
    made = setting(sqlite, [item(0, wanted=3)])
    for origin in origins:
        browser = Browser(made.site(url), origin).enter(made.accounts, origin)
        answer = browser.client.post("/vote", data={**browser.fields(), "choice": "tie"}, headers={"Origin": origin})
        assert answer.status_code == 200
        for host in ("10.0.0.5:443", "review.example.org:80", "evil.example", "127.0.0.1:8123"):
            assert browser.client.get("/", headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("letter", ["字", "😀", "\n"])
def test_the_longest_reply_may_be_sent_in_any_script(sqlite: Database, letter: str) -> None:
    made = setting(sqlite, [item(0, ("Old.",))], task="rewrite")
    browser = Browser(made.site()).enter(made.accounts, "ada")
    text = f"One.{letter * (LONGEST_REPLY - 4)}"
    assert browser.vote(choice="rewritten", rewritten=text).status_code == 200
    assert made.store.counted_votes(made.plan, audit=True)[0].rewritten == text


def test_behind_a_proxy_only_the_named_address_is_served_and_cookies_need_tls(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    url = "https://review.example.org"
    browser = Browser(made.site(url), url)
    assert browser.get("/enter?token=x").status_code == 200
    cookie = browser.page.headers["set-cookie"].lower()
    assert "secure" in cookie
    assert cookie.startswith("__host-")  # which another name of the same domain cannot plant
    assert "Which reply" in browser.enter(made.accounts, "ada").page.text
    assert browser.client.get("/", headers={"Host": "127.0.0.1:8123"}).status_code == 400


def test_a_session_is_not_the_one_that_was_planted(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    eve = made.accounts.enter(made.accounts.invite("eve"))
    browser = Browser(made.site())
    browser.client.cookies.set("review_8123", eve or "", domain="127.0.0.1", path="/")
    browser.get(f"/enter?token={made.accounts.invite('ada')}")
    fields = browser.fields()
    answer = browser.client.post("/enter", data=fields, follow_redirects=False)
    cookies = answer.headers.get_list("set-cookie")
    (own,) = (cookie for cookie in cookies if cookie.startswith("review_8123="))
    token = own.partition("=")[2].partition(";")[0]
    assert token != eve
    for part in ("httponly", "samesite=strict", "path=/"):
        assert part in own.lower()
    rater = made.accounts.rater_of(token)
    assert rater is not None
    assert rater.name == "ada"
    assert made.accounts.rater_of(fields["token"]) is None  # the link's token is no session


def test_no_rater_reads_or_answers_anothers_item(sqlite: Database) -> None:
    made = setting(sqlite, [item(0), item(1)])
    ada, bob = (Browser(made.site()).enter(made.accounts, name) for name in ("ada", "bob"))
    assert "Question 0?" in ada.page.text
    fields = {**bob.fields(), "assignment": ada.fields()["assignment"]}
    for path in ("/vote", "/exposed"):
        answer = bob.post(path, {**fields, "choice": "tie"})
        nobodys = bob.post(path, {**fields, "assignment": "999", "choice": "tie"})
        assert (answer.status_code, nobodys.status_code) == (404, 404)
        assert "Question 0?" not in answer.text
    assert bob.get(f"/answer?assignment={fields['assignment']}").status_code == 404
    assert ada.get(f"/answer?assignment={fields['assignment']}").status_code == 404  # it is not answered yet
    ada.get("/")
    for number in ("-1", "1 OR 1=1", "1;DROP TABLE vote", "²", "9" * 30, ""):
        assert bob.get(f"/answer?assignment={number}").status_code == 404
        assert bob.post("/answer", {**fields, "assignment": number}).status_code == 404
        assert bob.get(f"/answers?before={number}").status_code == 200
        assert bob.post("/vote", {**fields, "assignment": number, "choice": "tie"}).status_code == 404
    assert voted(made) == []
    ada.vote(choice="tie", rationale="as I see it")
    assert bob.get(f"/answer?assignment={fields['assignment']}").status_code == 404
    assert bob.post("/answer", fields).status_code == 404
    assert "as I see it" not in bob.get("/answers").text


def test_what_would_tell_the_answer_is_in_no_response(sqlite: Database) -> None:
    secret: dict[str, Any] = {
        "stratum": "SECRET-stratum",
        "gold": "a",
        "probability": 0.123456,
        "audit": True,
    }
    made = setting(
        sqlite, [item(0, **secret), item(1, **secret | {"gold": None})], principles=PRINCIPLES, gold_share=1.0
    )
    browser = Browser(made.site()).enter(made.accounts, "ada")
    answers: list[httpx.Response] = [browser.page, browser.get("/start"), browser.get("/"), browser.vote()]
    answers += [
        browser.get("/nothing"),
        browser.get("/"),
        browser.vote(choice="tie", principle_1="tie", principle_2="tie"),
    ]
    answers += [browser.get("/answers"), browser.post("/answer", browser.fields()), browser.get("/")]
    answers += [browser.post("/undo", browser.fields()), browser.post("/vote", {})]
    for answer in answers:
        whole = f"{answer.headers}{answer.text}"
        assert not re.search(r"SECRET|0\.123|audit|gold\b|weight=|probability|d0|d1\b|c0|c1\b", _without_style(whole))


def _without_style(page: str) -> str:
    """The answer without our own style and script, and without letters drawn at random."""
    plain = re.sub(r"(?s)<(style|script).*?</\1>", "", page)
    return re.sub(r'name="(form_token|key)" value="[\w-]*"|nonce[=-]"?[\w-]*|review_\d+\w*=[^;]*', "", plain)


def test_a_body_that_is_too_large_is_refused_unread(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    fields = {**browser.fields(), "choice": "tie"}
    assert browser.post("/vote", {**fields, "rationale": "x" * MOST_BYTES}).status_code == 413
    stream = (b"x" * 10_000 for _ in range(MOST_BYTES // 10_000 + 1))  # without a length at its head
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = browser.client.build_request("POST", "/vote", content=b"".join(stream), headers=headers)
    del answer.headers["content-length"]
    assert browser.client.send(answer).status_code == 413
    files = browser.client.post("/vote", data=fields, files={"file": b"x"})
    assert files.status_code == 400
    assert voted(made) == []


def test_what_comes_too_slowly_is_refused(sqlite: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_S", 0.05)
    statuses = []

    async def receive() -> dict[str, object]:
        await asyncio.sleep(10)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        statuses.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/vote", "headers": [(b"host", URL[7:].encode())]}
    asyncio.run(asyncio.wait_for(setting(sqlite, [item(0)]).site().app(scope, receive, send), 5))
    assert statuses[0] == 408


def test_a_request_with_two_ends_is_refused_and_nothing_behind_it_is_read(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    with served(made) as url:
        host = url.removeprefix("http://")
        head = f"POST /vote HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
        ends = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        name, _, port = host.partition(":")
        with socket.create_connection((name, int(port)), timeout=10) as connection:
            connection.sendall((head + ends + f"GET /smuggled HTTP/1.1\r\nHost: {host}\r\n\r\n").encode())
            answer = b""
            while part := connection.recv(65536):  # until the server closes
                answer += part
    assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"400"]


def test_tokens_cannot_be_tried_without_end(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    browser = Browser(made.site())
    browser.get("/enter?token=wrong")
    fields = browser.fields()
    statuses = [browser.post("/enter", fields).status_code for _ in range(TRIES + 2)]
    assert statuses == [403] * TRIES + [429, 429]
    assert browser.page.headers["retry-after"] == "60"
    right = browser.post("/enter", {**fields, "token": made.accounts.invite("ada")})
    assert right.status_code == 429  # also the right one has to wait


def test_tokens_that_are_tried_at_the_same_time_count_each_other(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = setting(sqlite, [item(0)])
    browser, site = Browser(made.site()), made.site()
    monkeypatch.setattr(made.accounts, "enter", lambda _: time.sleep(0.05))  # so that all are under way at once
    browser.get("/enter?token=wrong")
    fields, cookies = browser.fields(), dict(browser.client.cookies)

    async def tried() -> list[int]:
        transport = httpx.ASGITransport(site.app)
        async with httpx.AsyncClient(transport=transport, base_url=URL, cookies=cookies) as client:
            answers = await asyncio.gather(*(client.post("/enter", data=fields) for _ in range(3 * TRIES)))
        return [answer.status_code for answer in answers]

    assert sorted(asyncio.run(tried())) == [403] * TRIES + [429] * 2 * TRIES


def test_right_tokens_are_no_tries(sqlite: Database) -> None:
    made = setting(sqlite, [item(0)])
    site = made.site()
    for number in range(TRIES + 1):
        assert "Instructions" in Browser(site).enter(made.accounts, f"rater {number}", start=False).page.text


def test_tries_are_forgotten_after_a_minute_and_are_counted_by_address() -> None:
    clock = Clock()
    tries = TokenTries(clock)
    for _ in range(TRIES):
        tries.failed("1.2.3.4")
    assert (tries.allowed("1.2.3.4"), tries.allowed("1.2.3.5")) == (False, True)
    clock.now += 61
    assert tries.allowed("1.2.3.4")


def test_many_addresses_neither_reset_the_count_nor_fill_the_memory() -> None:
    clock = Clock()
    tries = TokenTries(clock)
    for _ in range(TRIES):
        tries.failed("9.9.9.9")
    tried = 0
    for number in range(MOST_ADDRESSES + 1000):
        address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
        if tries.allowed(address):
            tries.failed(address)
            tried += 1
    assert not tries.allowed("9.9.9.9")
    assert tried == MOST_ADDRESSES - 1 + TRIES  # those that are remembered, and a few for all others together
    assert not tries.allowed("8.8.8.8")
    assert tries.allowed("10.0.0.5")  # an address that is remembered has what is left of its own tries
    tries.right("8.8.8.8")
    assert tries.allowed("8.8.8.8")
    clock.now += 61
    assert tries.allowed("9.9.9.9")
    tries.failed("9.9.9.9")
    assert len(tries._failed) == 1  # what is older is forgotten


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:3:4:5:6", True),  # who has one of these has all of them
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:1.2.3.4", "::ffff:1.2.3.5", False),
        ("::ffff:1.2.3.4", "1.2.3.4", True),
        ("", "", True),
    ],
)
def test_tries_are_counted_by_network(first: str, second: str, same: bool) -> None:
    tries = TokenTries(Clock())
    for _ in range(TRIES):
        tries.failed(first)
    assert tries.allowed(second) == (not same)


@pytest.mark.parametrize(
    "path", ["/../review.sqlite", "/%2e%2e/review.sqlite", "/pages/base.j2", "/static/../../etc/passwd", "//etc/passwd"]
)
def test_no_file_can_be_asked_for(sqlite: Database, path: str) -> None:
    made = setting(sqlite, [item(0)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    assert browser.client.get(URL + path).status_code == 404


def test_a_database_that_is_gone_is_told_and_no_answer_is_acknowledged(
    sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    made = setting(sqlite, [item(0)])
    browser = Browser(made.site()).enter(made.accounts, "ada")

    def gone(*_: object) -> None:
        raise OperationalError("SELECT secret", {}, Exception("gone"))

    monkeypatch.setattr(made.store, "vote", gone)
    page = browser.vote(choice="tie")
    assert page.status_code == 503
    assert "not saved" in page.text
    assert "secret" not in page.text
    monkeypatch.setattr(made.store, "vote", lambda *_: 1 / 0)
    assert browser.get("/").status_code == 200
    page = browser.vote(choice="tie")
    assert page.status_code == 500
    assert "frame-ancestors" in page.headers["content-security-policy"]
    assert "division" not in page.text


def test_texts_that_few_files_can_hold_are_shown_and_kept(database: Database) -> None:
    made = setting(database, [item(0, ("nul \0 and bell \a", "half \ud800 and 한국어 \u202e")), item(1)])
    browser = Browser(made.site()).enter(made.accounts, "ada")
    assert "nul \u2400 and bell \u2407" in browser.page.text
    assert "half ? and 한국어" in browser.page.text
    browser.vote(choice="tie", rationale="nul \0 and 한국어 😀")
    assert made.store.counted_votes(made.plan, audit=True)[0].rationale == "nul  and 한국어 😀"
    assert browser.vote(choice="tie", key="nul \0 nul \0").status_code == 400
    for path in ("/?notice=%00", "/enter?token=%00%ff", "/%00"):
        assert browser.get(path).status_code in {200, 404}
    browser.get("/enter?token=x")
    assert browser.post("/enter", {**browser.fields(), "token": "\0é"}).status_code == 403
