"""The pages in Chromium: by keyboard, on a phone, without scripts, in the dark, and what axe-core says of them."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, BrowserContext, Page, ViewportSize, expect, sync_playwright
from sqlalchemy import select

from constitutional.review.database import Database
from constitutional.review.schema import EXPOSURE, VOTE
from constitutional.review.settings import Task
from tests.review.reviewing import PRINCIPLES, Setting, item, served, setting
from tests.review.test_lead import led_review

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LAPTOP = ViewportSize(width=1280, height=800)
PHONE = ViewportSize(width=390, height=844)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium: Browser) -> Iterator[Callable[..., Page]]:
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def made(**options: Any) -> Page:  # noqa: ANN401 - whatever Playwright takes
        contexts.append(chromium.new_context(**options))
        contexts[-1].set_default_timeout(10_000)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        return page

    yield made
    for context in contexts:
        context.close()
    assert [text for text in complaints if not re.search("status of 4|frame-ancestors", text)] == []


def enter(page: Page, url: str, made: Setting, name: str = "ada") -> None:
    page.goto(f"{url}/enter?token={made.accounts.invite(name)}")
    with another_page(page):
        page.get_by_role("button", name="Begin").click()
    with another_page(page):
        page.get_by_role("button", name="Start").click()


@contextmanager
def another_page(page: Page) -> Iterator[None]:
    """What is done inside leads to another page, whose scripts have run at the end; its address may be the same."""
    with page.expect_event("load"):
        yield


def boxes(page: Page) -> list[dict[str, float]]:
    """Where the replies stand, all measured at one moment: the page may be scrolling."""
    measured = "replies => replies.map(reply => reply.getBoundingClientRect().toJSON())"
    replies: list[dict[str, float]] = page.locator(".reply").evaluate_all(measured)
    return replies


def check_with_axe(page: Page) -> None:
    """On a laptop by day, and on a phone in the dark."""
    schemes: tuple[Literal["light", "dark"], ...] = ("light", "dark")
    for scheme, size in zip(schemes, (LAPTOP, PHONE), strict=True):
        page.set_viewport_size(size)
        page.emulate_media(color_scheme=scheme)
        results = Axe().run(page)
        assert results.violations_count == 0, results.generate_report()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        red = int(re.findall(r"\d+", background)[0])
        assert red < 60 if scheme == "dark" else red > 200


def choices(made: Setting) -> list[tuple[str, int]]:
    return [(vote.choice, vote.strength) for vote in made.store.counted_votes(made.plan, audit=True)]


def shown(page: Page) -> str:
    return page.locator(".conversation .text").inner_text()


def test_twenty_votes_by_keyboard_undo_and_resume(sqlite: Database, new_page: Callable[..., Page]) -> None:
    made = setting(sqlite, [item(number) for number in range(21)])
    made.clock.ticking = True
    with served(made) as url:
        page = new_page()
        enter(page, url, made)
        expect(page.locator("h1")).to_be_focused()
        expected = []
        for number in range(20):
            assert shown(page) == f"Question {number}?"
            sides = [text[0] for text in page.locator(".reply .text").all_inner_texts()]
            keys, answer = [
                (["1"], (sides[0], 1)),
                (["2", "2"], (sides[1], 2)),
                (["1", "1", "1", "1"], (sides[0], 4)),
                (["0"], ("tie", 1)),
                (["b"], ("both_bad", 1)),
            ][number % 5]
            for key in keys:
                page.keyboard.press(key)
            with another_page(page):
                page.keyboard.press("Enter")
            expect(page.locator(".conversation .text")).to_have_text(f"Question {number + 1}?")
            expected.append(answer)
        assert choices(made) == expected

        with another_page(page):
            page.keyboard.press("u")
        expect(page.locator(".conversation .text")).to_have_text("Question 19?")
        expect(page.get_by_role("status")).to_contain_text("taken back")
        page.keyboard.press("s")
        expect(page.get_by_label("Note")).to_be_focused()
        page.keyboard.type("1 I do not know 2")  # letters and digits in a note are no keys
        page.keyboard.press("Control+Enter")
        expect(page.locator(".conversation .text")).to_have_text("Question 20?")
        assert choices(made)[-1] == ("skip", 1)
        expect(page.locator(".progress")).to_contain_text("You: 19.")

        state = page.context.storage_state()
        page.context.close()  # the browser is closed, and opened again
        again = new_page(storage_state=state)
        again.goto(url)
        assert shown(again) == "Question 20?"
        again.keyboard.press("?")
        expect(again.get_by_text("both bad", exact=True)).to_be_visible()
        again.get_by_label("Use these keys").uncheck()
        again.reload()
        again.keyboard.press("0")
        expect(again.get_by_label("Tie")).not_to_be_checked()
    with sqlite.reading() as connection:
        seconds = connection.scalars(select(VOTE.c.seconds)).all()
    assert all(0 <= second < 10 for second in seconds)
    assert max(seconds) > 0


def test_answers_by_principle_have_keys_of_their_own(sqlite: Database, new_page: Callable[..., Page]) -> None:
    made = setting(sqlite, [item(number) for number in range(3)], principles=PRINCIPLES)
    with served(made) as url:
        page = new_page(viewport=LAPTOP)
        enter(page, url, made)
        first, second = page.locator(".principle").all()
        assert first.locator("kbd").all_inner_texts() == ["q", "w", "e", "r"]
        for key in ("0", "r", "w"):
            page.keyboard.press(key)
        expect(first.get_by_label("Does not apply")).to_be_checked()
        expect(second.get_by_label("Reply B")).to_be_checked()
        expect(page.locator("#send")).to_be_focused()
        with another_page(page):
            page.keyboard.press("Enter")

        page.keyboard.press("e")
        expect(second.locator("input").first).to_be_focused()
        page.keyboard.press("Shift+Tab")  # back to the first
        page.keyboard.press("q")
        page.keyboard.press("e")
        page.keyboard.press("b")
        with another_page(page):
            page.keyboard.press("Enter")

        page.keyboard.press("n")
        page.keyboard.type("qwer")  # letters in a note are no keys
        expect(page.locator(".principle :checked")).to_have_count(0)
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.get_by_text("q, w, e, r")).to_be_visible()
    principles = [vote.principles for vote in made.store.counted_votes(made.plan, audit=True)]
    names = [made.store.answers(made.plan, made.rater("ada"), 9)[place].item.payload.replies for place in (1, 0)]
    assert principles == [
        {"brief": "not_applicable", "calm": names[0][1][0]},
        {"brief": names[1][0][0], "calm": "tie"},
    ]


def test_the_time_at_an_answer_that_is_sent_back_counts(sqlite: Database, new_page: Callable[..., Page]) -> None:
    made = setting(sqlite, [item(0)], principles=PRINCIPLES[:1])
    made.clock.ticking = True
    with served(made) as url:
        page = new_page()
        enter(page, url, made)
        page.keyboard.press("0")
        page.wait_for_timeout(3000)
        with another_page(page):
            page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("number 1 is missing")
        page.keyboard.press("r")
        with another_page(page):
            page.keyboard.press("Enter")
    (vote,) = made.store.counted_votes(made.plan, audit=True)
    assert vote.choice == "tie"
    assert vote.seconds >= 3


def test_no_keys_are_shown_beside_the_answers_on_a_touch_screen(
    sqlite: Database, new_page: Callable[..., Page]
) -> None:
    made = setting(sqlite, [item(0)], principles=PRINCIPLES)
    with served(made) as url:
        page = new_page(viewport=PHONE, has_touch=True, is_mobile=True)
        enter(page, url, made)
        assert page.locator(".choices kbd").count() == 13
        for key in page.locator(".choices kbd").all():
            expect(key).to_be_hidden()
        expect(page.locator("#keys summary")).to_be_visible()  # a tablet may have a keyboard


def test_ranks_and_rewriting_by_keyboard(sqlite: Database, new_page: Callable[..., Page]) -> None:
    ranked = setting(sqlite, [item(0, ("x", "y", "z")), item(1, ("x", "y", "z"))], task="rank")
    with served(ranked) as url:
        page = new_page()
        enter(page, url, ranked)
        order = page.locator(".reply .text").all_inner_texts()
        for key in ("3", "0", "2", "1", "2", "Enter"):  # 0 begins anew
            page.keyboard.press(key)
        page.wait_for_url("**/?notice=saved")
        page.keyboard.press("n")
        page.keyboard.type("unsure")
        page.keyboard.press("Escape")
        page.keyboard.press("s")
        expect(page.locator("h1")).to_contain_text("nothing left")
    vote, skipped = ranked.store.counted_votes(ranked.plan, audit=True)
    assert dict(zip(vote.payload.replies, vote.ranks, strict=True)) == dict(zip(order, (2, 1, 2), strict=True))
    assert (skipped.choice, skipped.rationale) == ("skip", "unsure")

    rewritten = setting(sqlite, [item(5, ("Old.",))], task="rewrite")
    with served(rewritten) as url:
        page = new_page()
        enter(page, url, rewritten, "bob")
        expect(page.get_by_label("Your reply")).to_have_value("Old.")
        page.get_by_label("Your reply").fill("New 1 2 b.\n\nTwo.")
        page.keyboard.press("Control+Enter")
        expect(page.locator("h1")).to_contain_text("nothing left")
    assert rewritten.store.counted_votes(rewritten.plan, audit=True)[0].rewritten == "New 1 2 b.\n\nTwo."


def test_without_scripts_everything_works(sqlite: Database, new_page: Callable[..., Page]) -> None:
    made = setting(sqlite, [item(0, category="violence"), item(1), item(2)], principles=PRINCIPLES[:1])
    with served(made) as url:
        page = new_page(java_script_enabled=False)
        enter(page, url, made)
        expect(page.get_by_text("Question 0?")).not_to_be_visible()
        page.get_by_label("Tie").first.check()
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("alert")).to_contain_text("number 1 is missing")
        page.get_by_label("Does not apply").check()
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("alert")).to_contain_text("still hidden")
        expect(page.get_by_text("Question 0?")).not_to_be_visible()
        page.get_by_role("button", name="Show the texts").click()
        expect(page.get_by_text("Question 0?")).to_be_visible()
        expect(page.locator("#keys")).not_to_be_visible()
        page.get_by_label("Both bad").check()
        page.get_by_role("button", name="Send").click()
        expect(page.get_by_role("alert")).to_contain_text("number 1 is missing")
        expect(page.get_by_label("Both bad")).to_be_checked()
        page.get_by_label("Does not apply").check()
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".conversation .text")).to_have_text("Question 1?")
        page.get_by_role("button", name="Undo").click()
        expect(page.get_by_text("Question 0?")).not_to_be_visible()
        page.get_by_role("button", name="Show the texts").click()
        expect(page.get_by_text("Question 0?")).to_be_visible()
        page.get_by_role("link", name="Instructions").click()
        page.get_by_label("violence").check()
        page.get_by_role("button", name="Save").click()
        expect(page.locator(".conversation .text")).to_have_text("Question 1?")
        page.get_by_role("button", name="Sign out").click()
        expect(page.locator("h1")).to_have_text("You are signed out")


@pytest.mark.parametrize("scripts", [True, False])
def test_an_earlier_answer_is_changed_by_keyboard_alone(
    sqlite: Database, new_page: Callable[..., Page], scripts: bool
) -> None:
    made = setting(sqlite, [item(0), item(1, category="violence"), item(2)])
    with served(made) as url:
        page = new_page(java_script_enabled=scripts)
        enter(page, url, made)
        page.get_by_role("radio", name="Reply A").check()
        page.get_by_label("much").check()
        page.get_by_role("button", name="Send").click()
        if not scripts:
            page.get_by_role("button", name="Show the texts").click()
        else:
            expect(page.locator("body.scripted details.hidden-text").first).to_be_visible()  # the next item's page
            page.keyboard.press("h")
        page.get_by_label("Tie").check()
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".conversation .text")).to_have_text("Question 2?")
        page.get_by_role("link", name="Your answers").focus()
        page.keyboard.press("Enter")
        expect(page.locator("h1")).to_have_text("Your answers")
        if scripts:
            check_with_axe(page)
        expect(page.get_by_text("Question 1?")).to_have_count(0)  # it is harmful
        page.get_by_role("button", name="Change").last.focus()
        page.keyboard.press("Enter")
        expect(page.locator(".conversation .text")).to_have_text("Question 0?")
        expect(page.get_by_role("radio", name="Reply A")).to_be_checked()
        expect(page.get_by_label("much")).to_be_checked()
        if scripts:
            check_with_axe(page)
            page.locator("h1").focus()
            page.keyboard.press("u")  # which is for the items in their order
            page.keyboard.press("0")
            page.keyboard.press("Enter")
        else:
            page.get_by_role("radio", name="Reply A").focus()
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowRight")
            page.keyboard.press("Enter")
        expect(page.get_by_role("status")).to_have_text("Your answer is changed.")
        expect(page.get_by_text("Tie")).to_have_count(2)
        page.get_by_role("link", name="Back to the items").click()
        expect(page.locator(".conversation .text")).to_have_text("Question 2?")
    assert choices(made) == [("tie", 1), ("tie", 1)]


@pytest.mark.parametrize(
    ("task", "replies"), [("pair", ("r0", "r1")), ("rank", ("r0", "r1", "r2")), ("rewrite", ("r0",))]
)
def test_harmful_texts_are_opened_by_keyboard_without_scripts(
    sqlite: Database, new_page: Callable[..., Page], task: Task, replies: tuple[str, ...]
) -> None:
    made = setting(sqlite, [item(0, replies, category="violence")], task=task)
    with served(made) as url:
        page = new_page(java_script_enabled=False)
        page.goto(f"{url}/enter?token={made.accounts.invite('ada')}")
        page.get_by_role("button", name="Begin").click()
        expect(page.get_by_role("heading", name="Some texts are harmful")).to_be_visible()  # before the first of them
        page.get_by_role("button", name="Start").click()
        for text in ("Question 0?", *replies):
            for medium in ("print", "screen"):
                page.emulate_media(media=medium)
                expect(page.get_by_text(text, exact=True)).to_have_count(1)
                expect(page.get_by_text(text, exact=True)).not_to_be_visible()
        page.get_by_role("button", name="Show the texts").focus()
        page.keyboard.press("Enter")
        for text in ("Question 0?", *replies):
            expect(page.get_by_text(text, exact=True)).to_be_visible()
        names = page.locator(".reply h2").all_inner_texts()
        assert (
            names
            == {"pair": ["Reply A", "Reply B"], "rank": ["Reply A", "Reply B", "Reply C"], "rewrite": ["Reply"]}[task]
        )
        for name in names if task == "pair" else ():
            expect(page.get_by_role("radio", name=name)).to_have_count(1)  # the answers have the replies' names


def test_a_table_that_is_wider_than_a_phone_shows_that_it_goes_on(
    sqlite: Database, new_page: Callable[..., Page], tmp_path: Path
) -> None:
    made = led_review(sqlite, tmp_path)
    with served(made) as url:
        page = new_page(viewport=PHONE)
        page.goto(f"{url}/enter?token={made.accounts.invite('lea', 'lead')}")
        with another_page(page):
            page.get_by_role("button", name="Begin").click()
        page.goto(f"{url}/lead")
        table = page.get_by_role("region", name="Raters", exact=True)
        table.evaluate("part => { document.documentElement.style.scrollBehavior = 'auto'; part.scrollIntoView(); }")

        def right_edge() -> bytes:
            """The place right of the caption, where there is no text."""
            box = table.bounding_box()
            assert box is not None
            strip = {"x": box["x"] + box["width"] - 12, "y": box["y"] + 12, "width": 6.0, "height": 12.0}
            return page.screenshot(clip=strip)  # type: ignore[arg-type] # its keys are those

        before = right_edge()
        table.evaluate("part => { part.scrollLeft = part.scrollWidth; }")
        assert table.evaluate("part => part.scrollLeft > 0")
        assert right_edge() != before  # the shadow is gone where the table ends


def test_who_goes_back_after_signing_out_sees_nothing(sqlite: Database, new_page: Callable[..., Page]) -> None:
    made = setting(sqlite, [item(0)])
    with served(made) as url:
        page = new_page()
        enter(page, url, made)
        expect(page.get_by_text("Question 0?")).to_be_visible()
        with another_page(page):
            page.get_by_role("button", name="Sign out").click()
        page.go_back()
        expect(page.locator("h1")).to_have_text("You are not signed in")
        assert "Question 0?" not in page.content()


def test_keys_are_shown_in_sight_and_a_skip_without_a_reason_is_told(
    sqlite: Database, new_page: Callable[..., Page]
) -> None:
    made = setting(sqlite, [item(0, ("A long reply.\n" * 30, "No."))])
    with served(made) as url:
        page = new_page(viewport=LAPTOP)
        enter(page, url, made)
        page.keyboard.press("?")
        expect(page.locator("#keys-on")).to_be_in_viewport()
        page.keyboard.press("s")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("A skip needs its reason")
        expect(page.get_by_label("Note")).to_have_value("")
        page.keyboard.type("unsure")
        with another_page(page):
            page.keyboard.press("Control+Enter")
    assert [vote.choice for vote in made.store.counted_votes(made.plan, audit=True)] == ["skip"]


def test_what_is_opened_is_counted_when_it_is_opened(sqlite: Database, new_page: Callable[..., Page]) -> None:
    made = setting(sqlite, [item(0, category="violence")])
    with served(made) as url:
        page = new_page()
        enter(page, url, made)
        page.keyboard.press("1")
        with another_page(page):
            page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("still hidden")
        with sqlite.reading() as connection:
            assert connection.scalars(select(EXPOSURE.c.category)).all() == []
        with page.expect_response("**/exposed") as answer:
            page.keyboard.press("h")
        assert answer.value.status == 204
        expect(page.get_by_text("Question 0?")).to_be_visible()
    with sqlite.reading() as connection:
        assert connection.scalars(select(EXPOSURE.c.category)).all() == ["violence"]
        assert connection.scalars(select(VOTE.c.choice)).all() == []


def test_stored_scripts_do_not_run_and_no_page_can_frame_this_one(
    sqlite: Database, new_page: Callable[..., Page]
) -> None:
    payload = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    made = setting(sqlite, [item(0, (payload, payload + "2"))])
    with served(made) as url:
        page = new_page()
        enter(page, url, made)
        assert page.locator(".reply .text").first.inner_text().startswith("<script>")
        assert page.title() == "Which reply is better?"
        other = new_page()
        with other.expect_console_message(lambda message: "frame-ancestors" in message.text):
            other.set_content(f'<iframe src="{url}/"></iframe>')


@pytest.mark.parametrize("task", ["pair", "rank", "rewrite"])
def test_axe_finds_no_violation_on_a_laptop_by_day_and_on_a_phone_in_the_dark(
    sqlite: Database, new_page: Callable[..., Page], task: Task
) -> None:
    long = "Mix flour and water.\n\n" * 10 + "x" * 300
    replies = (long,) if task == "rewrite" else (long, "No.") if task == "pair" else (long, "No.", "Yes.", "Perhaps.")
    made = setting(
        sqlite,
        [item(0, replies, category="violence"), item(1, replies)],
        task=task,
        principles=PRINCIPLES if task == "pair" else (),
    )
    with served(made) as url:
        page = new_page()
        page.goto(f"{url}/enter?token={made.accounts.invite('ada')}")

        def check() -> None:
            check_with_axe(page)

        check()
        page.get_by_role("button", name="Begin").click()
        page.wait_for_url("**/start")
        check()
        page.get_by_role("button", name="Start").click()
        page.wait_for_url(f"{url}/")
        page.keyboard.press("h")
        page.keyboard.press("?")
        check()
        if task == "pair":
            left, right = boxes(page)
            assert right["top"] >= left["bottom"]  # under each other on a phone
            page.set_viewport_size(LAPTOP)
            left, right = boxes(page)
            assert right["top"] == left["top"]
            assert right["left"] >= left["right"]
        page.get_by_role("button", name="Send").click()  # without an answer
        if task != "pair":  # whose form the browser itself holds back
            page.wait_for_url("**/vote")
            check()
            page.get_by_label("Note").fill("unsure")
            with another_page(page):
                page.get_by_role("button", name="Skip").click()
        check()
        page.goto(f"{url}/nothing")
        check()


def test_axe_finds_no_violation_in_the_leads_pages_without_scripts_and_in_the_dark(
    sqlite: Database, new_page: Callable[..., Page], tmp_path: Path
) -> None:
    made = led_review(sqlite, tmp_path)
    made.clock.ticking = True
    with served(made) as url:
        page = new_page()
        page.goto(f"{url}/enter?token={made.accounts.invite('lea', 'lead')}")
        with another_page(page):
            page.get_by_role("button", name="Begin").click()
        with another_page(page):
            page.get_by_role("link", name="Lead").click()
        check_with_axe(page)
        with another_page(page):
            page.get_by_role("button", name="Show them").click()
        with another_page(page):
            page.get_by_role("link", name="Question 1?").click()
        check_with_axe(page)
        page.go_back()
        with another_page(page):
            page.get_by_role("link", name="Hidden text: violence").click()
        expect(page.get_by_text("Question 0?")).to_be_hidden()
        check_with_axe(page)
        with another_page(page):
            page.get_by_role("button", name="Show the votes and the label").click()
        page.get_by_text("Show or hide the conversation").click()
        expect(page.get_by_text("Question 0?")).to_be_visible()
        page.get_by_role("radio", name="Reply B").check()
        with another_page(page):
            page.get_by_role("button", name="Settle").click()
        expect(page.get_by_role("status")).to_contain_text("decision is saved")
        check_with_axe(page)
        state = page.context.storage_state()
        plain = new_page(storage_state=state, java_script_enabled=False)
        plain.goto(page.url)
        plain.get_by_label("Make this an example").select_option("calm")
        with another_page(plain):
            plain.get_by_role("button", name="Show what would change").click()
        expect(plain.locator(".diff")).to_contain_text("better: b0")
        page.goto(plain.url)
        check_with_axe(page)
        plain.get_by_role("button", name="Write it").click()
        expect(plain.get_by_role("status")).to_contain_text("written")
    assert "better: b0" in (tmp_path / "ours.yaml").read_text()
