"""Plans, items and raters that the tests of this room share."""

import asyncio
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser

import httpx
import uvicorn

from constitutional.base.records import Message
from constitutional.review.accounts import Accounts, Rater, Role
from constitutional.review.database import Database
from constitutional.review.lead import LeadSources
from constitutional.review.plan import ItemPayload, Plan, PlannedItem, ReviewPrinciple
from constitutional.review.serve import bind
from constitutional.review.settings import ReviewSettings, Task
from constitutional.review.site import Site
from constitutional.review.store import ReviewStore, StoredPlan

URL = "http://127.0.0.1:8123"
PRINCIPLES = (
    ReviewPrinciple(id="brief", text="Keep your answers brief."),
    ReviewPrinciple(id="calm", text="Stay calm."),
)


class Clock:
    """A clock that a test sets, and that also goes by itself where the test says so."""

    ticking = False

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now + (time.monotonic() if self.ticking else 0)


def item(number: int, replies: Sequence[str] = (), **changed: object) -> PlannedItem:
    """An item whose comparison is `c<number>`, with replies `a<number>` and `b<number>`."""
    payload = ItemPayload(
        messages=(Message("user", f"Question {number}?"),), replies=tuple(replies or (f"a{number}", f"b{number}"))
    )
    return PlannedItem.model_validate({"comparison": f"c{number}", "payload": payload, **changed})


@dataclass
class Setting:
    """A plan in a database, with raters as they come."""

    database: Database
    plan: StoredPlan
    accounts: Accounts
    store: ReviewStore
    clock: Clock
    votes: list[int] = field(default_factory=list)

    lead: LeadSources | None = None

    def rater(self, name: str, *, briefed: bool = True, role: Role | None = None) -> Rater:
        session = self.accounts.enter(self.accounts.invite(name, role))
        assert session is not None
        rater = self.accounts.rater_of(session)
        assert rater is not None
        if briefed:
            self.store.settle(self.plan, rater, ())
        return rater

    def site(self, url: str = URL) -> Site:
        return Site(self.accounts, self.store, self.plan, url, self.votes.append, lead=self.lead)


def setting(
    database: Database,
    items: Sequence[PlannedItem],
    task: Task = "pair",
    principles: tuple[ReviewPrinciple, ...] = (),
    minutes: float = 30,
    gold_share: float = 0.0,
) -> Setting:
    clock = Clock()
    store = ReviewStore(database, minutes=minutes, constitution="d1", gold_share=gold_share, clock=clock)
    plan = Plan(run="first", task=task, constitution="d0", seed=7, principles=principles)
    return Setting(database, store.add_plan(plan, items), Accounts(database, clock), store, clock)


class InProcess(httpx.BaseTransport):
    """Asks the application without a server."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(self._site.app, raise_app_exceptions=False)
            response = await transport.handle_async_request(request)
            return httpx.Response(response.status_code, headers=response.headers, content=await response.aread())

        return asyncio.run(answer())


class Browser:
    """What a browser does without scripts: follows links, keeps cookies, sends the forms of the page it is at."""

    def __init__(self, site: Site, url: str = URL) -> None:
        self.client = httpx.Client(transport=InProcess(site), base_url=url, follow_redirects=True)
        self.page: httpx.Response = self.client.get("/nothing")

    def get(self, path: str) -> httpx.Response:
        self.page = self.client.get(path)
        return self.page

    def post(self, path: str, fields: Mapping[str, str], **headers: str) -> httpx.Response:
        self.page = self.client.post(path, data=dict(fields), headers=headers)
        return self.page

    def fields(self) -> dict[str, str]:
        """The hidden fields of the page's main form, its last."""
        return hidden_fields(self.page.text)

    def enter(self, accounts: Accounts, name: str, *, start: bool = True, role: Role | None = None) -> "Browser":
        self.get(f"/enter?token={accounts.invite(name, role)}")
        self.post("/enter", self.fields())
        if start:
            self.post("/start", self.fields())
        return self

    def vote(self, **fields: str) -> httpx.Response:
        return self.post("/vote", {**self.fields(), **fields})


def hidden_fields(page: str) -> dict[str, str]:
    form = page[page.rindex("<form") :]
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', form)
    return {name: unescape(value) for name, value in found}


@contextmanager
def served(setting: Setting) -> Iterator[str]:
    """The setting's pages on a port of this machine; gives their address."""
    bound = bind(ReviewSettings(port=0), invited=False)
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    config = uvicorn.Config(setting.site(url).app, log_level="warning", access_log=False, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield url
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        bound.close()


class Tags(HTMLParser):
    """The tags of a page and their attributes, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]


def assert_texts_stay_texts(pages: Iterable[str]) -> None:
    """No page has a script but our own, an image, or a handler in an attribute."""
    for page in pages:
        read = Tags()
        read.feed(page)
        assert read.tags.count("script") == 1  # our own
        assert "img" not in read.tags
        assert not [name for name in read.attributes if name.startswith("on")]
