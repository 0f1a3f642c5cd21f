"""Killed while many raters vote, the command loses no acknowledged vote, counts none twice and exceeds no quota."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import func, select

from constitutional.review.schema import ITEM, VOTE
from constitutional.review.serve import open_review
from constitutional.review.settings import ReviewSettings
from constitutional.runs.folder import RunStore
from tests.review.reviewing import hidden_fields

RATERS = 50
OVERLAP = 2


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@contextmanager
def command(folder: Path, words: list[str]) -> Iterator["subprocess.Popen[str]"]:
    """`constitutional review`, once it has printed its address; killed in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "constitutional", "review", str(folder), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        assert "/enter?token=" in process.stdout.readline()
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=20)


class Crowd:
    """Raters who vote until nothing is left, send every answer twice, and try again where nobody answers."""

    def __init__(self, url: str, sessions: list[str]) -> None:
        self.acknowledged: list[str] = []
        self.broken = 0
        self._url = url
        self._threads = [threading.Thread(target=self._rater, args=(session,)) for session in sessions]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> bool:
        for thread in self._threads:
            thread.join(timeout=60)
        return not any(thread.is_alive() for thread in self._threads)

    def _rater(self, session: str) -> None:
        no_tls = False  # the certificates of the world would have to be read for every rater
        cookies = {f"review_{self._url.rpartition(':')[2]}": session}
        with httpx.Client(base_url=self._url, cookies=cookies, timeout=30, verify=no_tls) as client:
            while True:
                page = self._send(client, "GET", "/", {})
                if "nothing left" in page.text:
                    return
                fields = hidden_fields(page.text) | {"choice": "tie", "opened": "yes"}
                for _ in range(2):
                    answer = self._send(client, "POST", "/vote", fields)
                    assert answer.headers["location"] in {"/?notice=saved", "/?notice=repeated"}
                    self.acknowledged.append(fields["key"])

    def _send(self, client: httpx.Client, method: str, path: str, fields: dict[str, str]) -> httpx.Response:
        for _ in range(300):
            try:
                answer = client.request(method, path, data=fields or None)
            except httpx.TransportError:
                self.broken += 1
                time.sleep(0.3)
                continue
            assert answer.status_code in {200, 303}, answer.text
            return answer
        raise AssertionError("the server has not come back")


@pytest.mark.slow
def test_no_acknowledged_vote_is_lost_and_none_counts_twice(run_folder: Path, address: str | None) -> None:
    port = free_port()
    words = [f"review.port={port}", *([f"review.database={address}"] if address else [])]
    database, accounts, store, plan, _ = open_review(
        RunStore.load(run_folder), ReviewSettings(overlap=OVERLAP, database=address)
    )
    sessions = []
    for number in range(RATERS):
        session = accounts.enter(accounts.invite(f"rater {number}")) or ""
        rater = accounts.rater_of(session)
        assert rater is not None
        store.settle(plan, rater, ())
        sessions.append(session)
    crowd = Crowd(f"http://127.0.0.1:{port}", sessions)
    for part in (1, 2, 3):  # the third is not killed before all is done
        with command(run_folder, words):
            if part == 1:
                crowd.start()
            if part == 3:
                assert crowd.join()
            before, end = len(crowd.acknowledged), time.monotonic() + 30
            while part < 3 and len(crowd.acknowledged) < before + plan.wanted // 3 and time.monotonic() < end:
                time.sleep(0.01)
    assert crowd.broken > 0
    with database.reading() as connection:
        keys = connection.scalars(select(VOTE.c.key)).all()
        by_item = connection.scalars(select(func.count()).select_from(VOTE).group_by(VOTE.c.item_id)).all()
        quotas = connection.execute(select(ITEM.c.taken, ITEM.c.wanted)).all()
    votes = store.counted_votes(plan, audit=True)
    database.close()
    assert set(crowd.acknowledged) == set(keys)
    assert len(keys) == len(set(keys)) == len(votes) == plan.wanted
    assert set(by_item) == {OVERLAP}
    assert {tuple(quota) for quota in quotas} == {(OVERLAP, OVERLAP)}
    assert max(Counter((vote.comparison, vote.rater) for vote in votes).values()) == 1
