"""How long raters wait for the pages of a large review.

    python scripts/bench_review.py --items 100000 --raters 50 --seconds 30

A review of that many comparisons is made in a temporary folder, or in an empty PostgreSQL database (that time does not
count). A server in a process of its own serves it, and that many raters read a page, think for a while, and vote. The
script prints how long pages and votes took: the median, the 95th percentile and the longest.
"""

import argparse
import asyncio
import multiprocessing
import random
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import aiohttp
import uvicorn

from constitutional.base.records import Message
from constitutional.review.accounts import Accounts
from constitutional.review.database import Database
from constitutional.review.plan import ItemPayload, Plan, PlannedItem
from constitutional.review.serve import KEPT_S, bind
from constitutional.review.settings import ReviewSettings
from constitutional.review.site import Site
from constitutional.review.store import ReviewStore

TEXT = "It depends on what you have in mind, and on how much time there is. " * 6
"""A reply of about 100 tokens."""
FIELD = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)">')


class Times(NamedTuple):
    """Seconds that pages and votes took."""

    pages: list[float]
    votes: list[float]


def make(database: Database, items: int, raters: int, overlap: int) -> list[str]:
    """Write the review into the database; returns the raters' sessions."""
    accounts, store = Accounts(database), ReviewStore(database)
    planned = [
        PlannedItem(
            comparison=f"{number:016x}",
            payload=ItemPayload(
                messages=(Message("user", f"Question {number}?"),), replies=(f"{number} {TEXT}", f"{TEXT} {number}")
            ),
            wanted=overlap,
        )
        for number in range(items)
    ]
    plan = store.add_plan(Plan(run="bench", task="pair", constitution="", seed=0), planned)
    sessions = []
    for number in range(raters):
        session = accounts.enter(accounts.invite(f"rater {number}")) or ""
        rater = accounts.rater_of(session)
        assert rater is not None
        store.settle(plan, rater, ())
        sessions.append(session)
    return sessions


def serve(folder: Path, address: str | None, bound: socket.socket) -> None:
    """Serve the review until the process is ended."""
    database = Database.open(folder, address)
    store = ReviewStore(database)
    plan = store.plan("pair")
    assert plan is not None
    url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    site = Site(Accounts(database), store, plan, url, lambda _: None)
    config = uvicorn.Config(
        site.app, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_keep_alive=KEPT_S
    )
    uvicorn.Server(config).run(sockets=[bound])


async def rate(url: str, session: str, until: float, think_s: float, times: Times) -> None:
    """Read, think and vote until the time is over."""
    cookies = {f"review_{url.rpartition(':')[2]}": session}
    jar = aiohttp.CookieJar(unsafe=True)  # which keeps cookies of an address without a name
    async with aiohttp.ClientSession(url, cookies=cookies, cookie_jar=jar) as client:
        await asyncio.sleep(random.random() * think_s)
        while time.monotonic() < until:
            began = time.perf_counter()
            async with client.get("/") as answer:
                page = await answer.text()
            times.pages.append(time.perf_counter() - began)
            assert answer.status == 200, page
            await asyncio.sleep(random.expovariate(1 / think_s) if think_s else 0)
            form = dict(FIELD.findall(page[page.rindex("<form") :]))
            began = time.perf_counter()
            async with client.post(
                "/vote", data=form | {"choice": "first", "opened": "yes"}, allow_redirects=False
            ) as answer:
                assert answer.headers["Location"] == "/?notice=saved", await answer.text()
            times.votes.append(time.perf_counter() - began)


async def crowd(url: str, sessions: Sequence[str], seconds: float, think_s: float) -> Times:
    """All raters at once."""
    times, until = Times([], []), time.monotonic() + seconds
    await asyncio.gather(*(rate(url, session, until, think_s, times) for session in sessions))
    return times


def main() -> None:
    """Make the review, serve it, and print how long raters waited."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--raters", type=int, default=50)
    parser.add_argument("--overlap", type=int, default=2, help="votes wanted on each item")
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--think", type=float, default=2, help="mean seconds between a page and the vote")
    parser.add_argument("--database", help="an empty PostgreSQL database instead of SQLite")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        database = Database.open(folder, arguments.database)
        sessions = make(database, arguments.items, arguments.raters, arguments.overlap)
        database.close()
        print(f"{arguments.items:,} items written in {time.perf_counter() - began:.1f} s", file=sys.stderr)
        bound = bind(ReviewSettings(port=0), invited=False)
        server = multiprocessing.get_context("fork").Process(target=serve, args=(folder, arguments.database, bound))
        server.start()
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        times = asyncio.run(crowd(url, sessions, arguments.seconds, arguments.think))
        server.terminate()
        server.join()
    print(f"{arguments.raters} raters, {arguments.think:g} s of thought, {len(times.votes):,} votes")
    for what, seconds in times._asdict().items():
        p95 = statistics.quantiles(seconds, n=20)[-1]
        print(
            f"{what}: median {1000 * statistics.median(seconds):.0f} ms, 95th percentile {1000 * p95:.0f} ms, "
            f"longest {1000 * max(seconds):.0f} ms"
        )


if __name__ == "__main__":
    main()
