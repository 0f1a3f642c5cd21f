"""The pages: what a browser asks for, and what it is shown."""

import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from sqlalchemy.exc import DBAPIError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from constitutional.review.accounts import SESSION_S, Accounts
from constitutional.review.ballot import (
    LONGEST_NOTE,
    LONGEST_REPLY,
    STRENGTHS,
    BallotError,
    fields_of,
    in_words,
    letter,
    read_ballot,
)
from constitutional.review.guard import Guard, TokenTries, form_token, same_token
from constitutional.review.lead import LeadSources
from constitutional.review.lead_pages import LeadPages
from constitutional.review.plan import shown_order
from constitutional.review.store import Answer, Assigned, ReviewStore, StoredPlan
from constitutional.review.visit import Visit
from constitutional.stages.report.page import ASSETS, CONTROL

PAGES: Final = Path(__file__).parent / "pages"
COUNT_S: Final = 2.0
"""How long the number of all votes is shown without being counted anew."""
NOTICES: Final[Mapping[str, str]] = {
    "saved": "Your answer is saved.",
    "repeated": "This answer was saved before, and counts once.",
    "not_needed": "Others have given all answers that are wanted for that item; yours was not needed.",
    "seen": "You have seen the label of this item, so a new answer would not count; nothing has changed.",
    "undone": "Your last answer is taken back. Answer again.",
    "nothing": "There is no answer to take back.",
    "settled": "Your choices are saved.",
    "changed": "Your answer is changed.",
}
UNOPENED: Final = "The texts are still hidden. Show them first, or skip the item and say why."
FORM: Final = "application/x-www-form-urlencoded"
MOST_LISTED: Final = 50
"""Answers that one page lists."""
ERRORS: Final[Mapping[int, str]] = {
    400: "The browser sent something that cannot be read.",
    403: "This form is not valid any more. Go back to the page, reload it and send it again.",
    404: "There is no such page.",
    405: "There is no such page.",
    413: "What you sent is too large.",
    429: "Too many wrong links were tried from your address. Wait a minute, then open your link again.",
    500: "Something went wrong here. No saved answer is lost. Reload the page; if it happens again, tell the lead.",
    503: "The database cannot be reached. Your last answer is not saved. Wait a moment and send it again.",
}


class Site:
    """The pages of one plan."""

    def __init__(
        self,
        accounts: Accounts,
        store: ReviewStore,
        plan: StoredPlan,
        url: str,
        voted: Callable[[int], None],
        *,
        lead: LeadSources | None = None,
    ) -> None:
        self._accounts = accounts
        self._store = store
        self._plan = plan
        self._voted = voted
        self._tries = TokenTries()
        self._counting = threading.Lock()
        self._counted = (float("-inf"), 0)
        parts = urlsplit(url)
        # Browsers share cookies among the ports of a machine, on which other reviews may run.
        self._secure = parts.scheme == "https"
        # With this prefix browsers take the cookie from this host alone: another name of its domain can plant none.
        prefix = "__Host-" if self._secure else ""
        self._cookie = f"{prefix}review_{parts.port or 'session'}"
        self._pages = Environment(
            loader=FileSystemLoader(PAGES),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=lambda value: (
                value.translate(CONTROL) if isinstance(value, str) and not isinstance(value, Markup) else value
            ),
        )
        style = (ASSETS / "style.css").read_text(encoding="utf-8") + (PAGES / "style.css").read_text(encoding="utf-8")
        script = (PAGES / "script.js").read_text(encoding="utf-8")
        self._pages.globals.update(style=Markup(style), script=Markup(script))  # noqa: S704 - ours
        self._pages.globals.update(shown_order=shown_order, letter=letter)
        routes = [
            Route("/enter", self._enter_page, methods=["GET"]),
            Route("/enter", self._enter, methods=["POST"]),
            Route("/", self._for_rater(self._item), methods=["GET"]),
            Route("/start", self._for_rater(self._start), methods=["GET"]),
            Route("/start", self._for_rater(self._settle), methods=["POST"]),
            Route("/vote", self._for_rater(self._vote), methods=["POST"]),
            Route("/answers", self._for_rater(self._answers), methods=["GET"]),
            Route("/answer", self._for_rater(self._answer), methods=["GET"]),
            Route("/answer", self._for_rater(self._change), methods=["POST"]),
            Route("/undo", self._for_rater(self._undo), methods=["POST"]),
            Route("/exposed", self._for_rater(self._exposed), methods=["POST"]),
            Route("/leave", self._for_rater(self._leave), methods=["POST"]),
        ]
        if lead is not None:
            routes += LeadPages(lead, store, plan, self._rater_page).routes(self._for_rater)
        self._pages.globals["leads"] = lead is not None
        handlers: dict[Any, Any] = {HTTPException: self._error, DBAPIError: self._unreachable, Exception: self._failed}
        self.app = Guard(Starlette(routes=routes, exception_handlers=handlers), url)
        """The application, for a server."""

    # Coming in

    async def _enter_page(self, request: Request) -> Response:
        """A link is opened by mail scanners too, so only the button spends its token."""
        secret = secrets.token_urlsafe(32)
        token = request.query_params.get("token", "")
        page = self._page(request, "enter", secret=secret, token=token)
        self._set_cookie(page, "enter", secret, 3600)
        return page

    async def _enter(self, request: Request) -> Response:
        form = await _form(request)
        if not same_token(request.cookies.get(f"{self._cookie}_enter", ""), form.get("form_token", "")):
            raise HTTPException(403)
        address = request.client.host if request.client else ""
        if not self._tries.allowed(address):
            raise HTTPException(429, headers={"Retry-After": "60"})
        self._tries.failed(address)  # before the try, or many at the same time would not count each other
        session = await run_in_threadpool(self._accounts.enter, form.get("token", ""))
        if session is None:
            return self._page(request, "message", 403, title="This link lets nobody in", text=_STALE)
        self._tries.right(address)
        response = RedirectResponse("/start", 303)
        # The session's token is new, so what somebody may have put into the browser before is worth nothing.
        self._set_cookie(response, "", session, int(SESSION_S))
        self._set_cookie(response, "enter", "", 0)
        return response

    def _leave(self, visit: Visit) -> Response:
        self._accounts.leave(visit.session)
        page = self._page(visit.request, "message", title="You are signed out", text="Your answers are kept.")
        self._set_cookie(page, "", "", 0)
        return page

    def _for_rater(self, answer: Callable[[Visit], Response]) -> Callable[[Request], Any]:
        """The endpoint of a page for raters who are signed in; what they send must carry the form's token."""

        async def endpoint(request: Request) -> Response:
            session = request.cookies.get(self._cookie, "")
            rater = await run_in_threadpool(self._accounts.rater_of, session) if session else None
            if rater is None:
                return self._page(request, "message", 401, title="You are not signed in", text=_STALE)
            form: Mapping[str, str] = {}
            if request.method == "POST":
                form = await _form(request)
                if not same_token(session, form.get("form_token", "")):
                    raise HTTPException(403)
            return await run_in_threadpool(answer, Visit(request, rater, session, form))

        return endpoint

    # A rater's pages

    def _start(self, visit: Visit) -> Response:
        return self._rater_page(visit, "start", briefed=self._store.briefed(self._plan, visit.rater))

    def _settle(self, visit: Visit) -> Response:
        chosen = [name for place, name in enumerate(self._plan.categories) if f"category_{place}" in visit.form]
        again = self._store.briefed(self._plan, visit.rater)
        self._store.settle(self._plan, visit.rater, chosen)
        return RedirectResponse("/?notice=settled" if again else "/", 303)

    def _item(self, visit: Visit) -> Response:
        if not self._store.briefed(self._plan, visit.rater):
            return RedirectResponse("/start", 303)
        item = self._store.next(self._plan, visit.rater)
        notice = NOTICES.get(visit.request.query_params.get("notice", ""), "")
        if item is None:
            return self._rater_page(
                visit, "done", notice=notice, left=self._plan.wanted - self._store.answered(self._plan)
            )
        return self._item_page(visit, item, notice=notice)

    def _vote(self, visit: Visit) -> Response:
        item = self._own(visit)
        try:
            ballot = read_ballot(visit.form, self._plan.plan, item.payload.replies)
        except BallotError as error:
            return self._item_page(visit, item, 422, problem=str(error))
        key = visit.form.get("key", "")
        if not re.fullmatch("[0-9A-Za-z_-]{8,64}", key):
            raise HTTPException(400)
        before = self._store.answered(self._plan, visit.rater)
        outcome = self._store.vote(self._plan, visit.rater, item.id, key, ballot)
        if outcome == "unopened":
            return self._item_page(visit, item, 422, problem=UNOPENED)
        if outcome == "saved":
            self._count_own(visit, before)
            self._voted(self._votes())
        if _changes(visit):
            return RedirectResponse(f"/answers?notice={'changed' if outcome == 'saved' else outcome}", 303)
        return RedirectResponse(f"/?notice={outcome}", 303)

    def _answers(self, visit: Visit) -> Response:
        """The rater's own answers, the last first."""
        before = _number(visit.request.query_params.get("before", ""))
        answers = self._store.answers(self._plan, visit.rater, MOST_LISTED + 1, before)
        return self._rater_page(
            visit,
            "answers",
            answers=[(answer, in_words(answer.ballot), _date(answer.created)) for answer in answers[:MOST_LISTED]],
            older=answers[MOST_LISTED - 1].vote if len(answers) > MOST_LISTED else None,
            before=before,
            notice=NOTICES.get(visit.request.query_params.get("notice", ""), ""),
        )

    def _change(self, visit: Visit) -> Response:
        """Go to an answer in order to change it: the time of that begins now."""
        answer = self._own_answer(visit, visit.form.get("assignment", ""))
        self._store.look_again(self._plan, visit.rater, answer.item.id)
        return RedirectResponse(f"/answer?assignment={answer.item.id}", 303)

    def _answer(self, visit: Visit) -> Response:
        if not self._store.briefed(self._plan, visit.rater):
            return RedirectResponse("/start", 303)
        answer = self._own_answer(visit, visit.request.query_params.get("assignment", ""))
        return self._item_page(visit, answer.item, changes=True)

    def _undo(self, visit: Visit) -> Response:
        before = self._store.answered(self._plan, visit.rater)
        outcome = self._store.undo(self._plan, visit.rater)
        self._count_own(visit, before)
        notice = {"saved": "undone", None: "nothing"}.get(outcome, outcome)
        return RedirectResponse(f"/?notice={notice}", 303)

    def _exposed(self, visit: Visit) -> Response:
        """Count that harmful texts are opened: a script says so, or a form without scripts asks to see them."""
        item = self._own(visit)
        self._store.expose(self._plan, visit.rater, item.id)
        return self._item_page(visit, item) if "opened" in visit.form else Response(status_code=204)

    def _own(self, visit: Visit) -> Assigned:
        """The item that a form is about, if it is this rater's; nobody learns whether another's is there."""
        number = _number(visit.form.get("assignment", ""))
        item = None if number is None else self._store.assigned(self._plan, visit.rater, number)
        if item is None:
            raise HTTPException(404)
        return item

    def _own_answer(self, visit: Visit, assignment: str) -> Answer:
        """What this rater said of an item, if that can be changed."""
        number = _number(assignment)
        answer = None if number is None else self._store.answer(self._plan, visit.rater, number)
        if answer is None or not answer.blind:
            raise HTTPException(404)
        return answer

    def _item_page(
        self,
        visit: Visit,
        item: Assigned,
        status: int = 200,
        *,
        notice: str = "",
        problem: str = "",
        changes: bool = False,
    ) -> Response:
        changes = changes or _changes(visit)
        answer = self._store.answer(self._plan, visit.rater, item.id) if changes else None
        given = fields_of(answer.ballot, self._plan.plan) if answer else {}
        return self._rater_page(
            visit,
            self._plan.plan.task,
            status,
            item=item,
            form={**given, **visit.form},
            changes=changes,
            notice=notice,
            problem=problem,
            opened=visit.form.get("opened") == "yes",
            key=visit.form.get("key") or secrets.token_urlsafe(16),
            mine=self._store.answered(self._plan, visit.rater),
            votes=self._votes(),
            strengths=STRENGTHS,
            longest_note=LONGEST_NOTE,
            longest_reply=LONGEST_REPLY,
        )

    def _votes(self) -> int:
        """Votes of all raters, counted every few seconds."""
        with self._counting:
            when, votes = self._counted
            if time.monotonic() - when > COUNT_S:
                votes = self._store.answered(self._plan)
                self._counted = (time.monotonic(), votes)
            return votes

    def _count_own(self, visit: Visit, before: int) -> None:
        """Let the number of all votes, until it is counted anew, go with that of the rater who reads both."""
        more = self._store.answered(self._plan, visit.rater) - before
        with self._counting:
            when, votes = self._counted
            self._counted = (when, votes + more)

    # Rendering

    def _rater_page(self, visit: Visit, template: str, status: int = 200, **values: object) -> Response:
        shared = {"form": visit.form, "rater": visit.rater, "form_token": form_token(visit.session), "plan": self._plan}
        return self._page(visit.request, template, status, **{**shared, **values})

    def _page(self, request: Request, template: str, status: int = 200, **values: object) -> Response:
        if "secret" in values:
            values["form_token"] = form_token(str(values.pop("secret")))
        text = self._pages.get_template(f"{template}.j2").render(nonce=request.state.nonce, **values)
        return HTMLResponse(text.encode("utf-8", "replace"), status)

    def _set_cookie(self, response: Response, name: str, value: str, seconds: int) -> None:
        full = f"{self._cookie}_{name}" if name else self._cookie
        response.set_cookie(
            full, value, max_age=seconds, path="/", httponly=True, samesite="strict", secure=self._secure
        )

    async def _error(self, request: Request, error: HTTPException) -> Response:
        response = self._message(request, error.status_code)
        response.headers.update(error.headers or {})
        return response

    async def _unreachable(self, request: Request, _: Exception) -> Response:
        return self._message(request, 503)

    async def _failed(self, request: Request, _: Exception) -> Response:
        return self._message(request, 500)

    def _message(self, request: Request, status: int) -> Response:
        return self._page(request, "message", status, title="This did not work", text=ERRORS.get(status, ERRORS[400]))


_STALE: Final = (
    "Open the link that you were given. If it was used before, or is old, ask the lead for a new one; your answers are "
    "kept. If you are the lead, start `constitutional review` again, and open the address that it prints."
)


def _changes(visit: Visit) -> bool:
    """Whether what was sent changes an answer that was chosen among the rater's answers."""
    return visit.form.get("changes") == "yes"


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _date(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


async def _form(request: Request) -> Mapping[str, str]:
    """The fields of a form, which our pages send in one way; files come in another."""
    kind = request.headers.get("content-type", FORM).partition(";")[0].strip().lower()
    if kind != FORM:
        raise HTTPException(400)
    form = await request.form()
    fields: Sequence[tuple[str, object]] = form.multi_items()
    return {name: value for name, value in fields if isinstance(value, str)}
