import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ModelError, RunError
from constitutional.base.records import Message
from constitutional.engines.base import Completion, Engine, Finish, Request, Sampling, Ticket
from constitutional.engines.journal import Journal, JournalEngine, Keys
from constitutional.engines.scripted import ScriptedEngine, ScriptedSession
from constitutional.engines.stories import ask_all, side_by_side, together


def ask(text: str, **changes: object) -> Request:
    return Request((Message("user", text),))._replace(**changes)  # type: ignore[arg-type] # fields by name


def echo() -> ScriptedEngine:
    return ScriptedEngine(lambda request: f"to {request.messages[-1].content}")


@contextmanager
def opened(engine: Engine, path: Path) -> Iterator[JournalEngine]:
    with Journal(path) as journal:
        yield JournalEngine(engine, journal)


def key_of(identity: str, request: Request) -> str:
    return Keys(identity).of(request)


def test_what_was_answered_once_is_never_asked_again(tmp_path: Path) -> None:
    requests = [ask("a"), ask("b")]
    with opened(echo(), tmp_path / "journal.sqlite") as first:
        answers = first.complete(requests)
        assert answers == [Completion("to a", "stop"), Completion("to b", "stop")]
        assert (first.asked, first.reused) == (2, 0)
    engine = echo()
    with opened(engine, tmp_path / "journal.sqlite") as second:
        assert second.complete([ask("b"), ask("c"), ask("a")]) == [answers[1], Completion("to c", "stop"), answers[0]]
        assert (second.asked, second.reused, engine.count) == (1, 2, 1)


def test_equal_requests_of_one_list_are_asked_once(tmp_path: Path) -> None:
    engine = echo()
    with opened(engine, tmp_path / "journal.sqlite") as journal:
        answers = journal.complete([ask("a"), ask("a"), ask("b"), ask("a"), ask("c")])
    assert [answer.text for answer in answers] == ["to a", "to a", "to b", "to a", "to c"]
    assert (engine.count, journal.asked, journal.reused) == (3, 3, 2)


@pytest.mark.parametrize(
    "other",
    [
        ask("b"),
        ask("a", seed=1),
        ask("a", choices=(" A", " B")),
        ask("a", sampling=Sampling(temperature=0.5)),
        ask("a", sampling=Sampling(top_p=0.5)),
        ask("a", sampling=Sampling(max_tokens=1)),
        ask("a", sampling=Sampling(stop=("\n",))),
        ask("a", messages=(Message("system", "a"),)),
        ask("a", messages=(Message("user", "a"), Message("assistant", ""))),
    ],
)
def test_every_part_of_a_request_decides_its_key(other: Request) -> None:
    assert key_of("model", ask("a")) == key_of("model", ask("a"))
    assert key_of("model", other) != key_of("model", ask("a"))
    assert key_of("another model", other) != key_of("model", other)


def test_a_whole_number_samples_as_the_same_fraction() -> None:
    assert key_of("m", ask("a", sampling=Sampling(temperature=1))) == key_of("m", ask("a"))


def test_another_model_is_asked_anew(tmp_path: Path) -> None:
    with opened(ScriptedEngine(lambda _: "yes", "yes"), tmp_path / "journal.sqlite") as yes:
        assert yes.complete([ask("a")])[0].text == "yes"
    with opened(ScriptedEngine(lambda _: "no", "no"), tmp_path / "journal.sqlite") as no:
        assert no.complete([ask("a")])[0].text == "no"
        assert no.identity == "scripted:no"


def test_any_text_and_any_number_comes_back_as_it_was(tmp_path: Path) -> None:
    odd = Completion("\0 {{ x }} '; DROP TABLE\n\u2028é", "length")
    scores = Completion("", "choices", (-0.1 - 0.2, -float("inf")))
    for each, request in ((odd, ask("a\ud800")), (scores, ask("a", choices=("x", "y")))):
        for _ in range(2):
            engine = ScriptedEngine(lambda _, each=each: each)  # type: ignore[misc]
            with opened(engine, tmp_path / "journal.sqlite") as journal:
                assert journal.complete([request]) == [each]
    assert engine.count == 0


def test_what_was_answered_before_an_engine_fails_is_kept_and_never_asked_again(tmp_path: Path) -> None:
    """At the 256th request the engine fails: the 255 before it are there."""
    requests = [ask(str(number)) for number in range(300)]

    def rule(request: Request) -> str:
        if request.messages[-1].content == "255" and not mended:
            raise ModelError("the server is gone")
        return f"to {request.messages[-1].content}"

    mended = False
    engine = ScriptedEngine(rule)
    with opened(engine, tmp_path / "journal.sqlite") as journal:
        with pytest.raises(ModelError, match="the server is gone"):
            journal.complete(requests)
        assert (engine.count, journal.asked, journal.reused) == (255, 255, 0)
    mended = True
    engine = ScriptedEngine(rule)
    with opened(engine, tmp_path / "journal.sqlite") as journal:
        assert [answer.text for answer in journal.complete(requests)] == [f"to {number}" for number in range(300)]
        assert (engine.count, journal.asked, journal.reused) == (45, 45, 255)


def test_calls_are_counted_once_each_however_many_there_are(tmp_path: Path) -> None:
    """One of 1,024 requests cannot be answered: 1,023 were."""

    def rule(request: Request) -> Completion:
        if request.messages[-1].content == "700":
            return Completion("", "too_long", reason="it is too long")
        return Completion("yes", "stop")

    requests = [ask(str(number)) for number in range(1024)]
    for counts in ((1023, 0), (0, 1023)):
        with opened(ScriptedEngine(rule), tmp_path / "journal.sqlite") as journal:
            answers = journal.complete(requests)
            assert (journal.asked, journal.reused) == counts
        assert [answer.finish for answer in answers].count("stop") == 1023
        assert answers[700] == Completion("", "too_long", reason="it is too long")


@pytest.mark.parametrize(("finish", "kept"), [("refusal", 1), ("too_long", 0), ("error", 0)])
def test_a_refusal_is_an_answer_and_what_could_not_be_asked_is_none(tmp_path: Path, finish: Finish, kept: int) -> None:
    engine = ScriptedEngine(lambda _: Completion("", finish, reason="because"))
    for _ in range(2):
        with opened(engine, tmp_path / "journal.sqlite") as journal:
            assert journal.complete([ask("a")]) == [Completion("", finish, reason="because")]
    assert engine.count == 2 - kept


def test_several_threads_ask_through_one_journal(tmp_path: Path) -> None:
    def rule(request: Request) -> str:
        time.sleep(0.001)
        return f"to {request.messages[-1].content}"

    with opened(ScriptedEngine(rule), tmp_path / "journal.sqlite") as journal, ThreadPoolExecutor(4) as pool:
        requests = [[ask(f"{number} of {thread % 2}") for number in range(50)] for thread in range(4)]
        answers = list(pool.map(journal.complete, requests))
    for own, own_requests in zip(answers, requests, strict=True):
        assert [answer.text for answer in own] == [f"to {request.messages[-1].content}" for request in own_requests]


def test_only_one_answer_is_ever_used_where_two_processes_ask_the_same(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"

    def slow(request: Request) -> str:
        with opened(ScriptedEngine(lambda _: "the other's", "model"), path) as other:  # finishes meanwhile
            other.complete([request])
        return "ours"

    with opened(ScriptedEngine(slow, "model"), path) as journal:
        assert journal.complete([ask("a")])[0].text == "the other's"


def test_what_does_not_answer_the_request_is_not_kept(tmp_path: Path) -> None:
    wrong = ScriptedEngine(lambda _: Completion("", "choices", (-1.0,)))
    with opened(wrong, tmp_path / "journal.sqlite") as journal:
        with pytest.raises(ModelError, match=r"1 log-probabilities for the choices \('x', 'y'\)"):
            journal.complete([ask("a", choices=("x", "y"))])
        rows = journal.journal._connection.execute("SELECT count(*) FROM completions").fetchone()
        assert rows == (0,)


def test_what_answers_its_request_is_kept_beside_what_does_not(tmp_path: Path) -> None:
    def rule(request: Request) -> Completion:
        given = 1 if request.messages[-1].content == "3" else 2
        return Completion("", "choices", (-1.0,) * given)

    requests = [ask(str(number), choices=("x", "y")) for number in range(6)]
    engine = ScriptedEngine(rule)
    for kept in (5, 0):
        before = engine.count
        with opened(engine, tmp_path / "journal.sqlite") as journal, pytest.raises(ModelError, match="1 log-prob"):
            journal.complete(requests)
        assert engine.count - before == 1 + kept  # the wrong one is asked again, and it alone


def test_a_changed_answer_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with opened(echo(), path) as journal:
        journal.complete([ask("a")])
        other = sqlite3.connect(path)
        other.execute("UPDATE completions SET completion = replace(completion, 'to a', 'to b')")
        other.commit()
        other.close()
        with pytest.raises(RunError, match=r"journal.sqlite: the journal is damaged: .*\(mv .*journal.sqlite.damaged"):
            journal.complete([ask("a")])


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    sound, path = tmp_path / "sound.sqlite", tmp_path / "journal.sqlite"
    requests = [ask(f"{number} of some") for number in range(40)]
    with opened(echo(), sound) as journal:
        answers = journal.complete(requests)
    content = sound.read_bytes()
    used = [position for position, byte in enumerate(content) if byte]  # the rest is mostly room for more
    rng = random.Random(0)
    found = 0
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.choice(used)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        try:
            with opened(echo(), path) as journal:
                assert journal.complete(requests) == answers  # a damaged key looks like a new request
        except RunError as error:
            assert str(path) in str(error)  # noqa: PT017 # both outcomes are right; this is the usual one
            found += 1
    assert found > 50


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_torn_file_is_found(tmp_path: Path, share: float) -> None:
    path = tmp_path / "journal.sqlite"
    with opened(echo(), path) as journal:
        journal.complete([ask(f"{number} of some") for number in range(100)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="the journal is damaged"), opened(echo(), path) as torn:
        torn.complete([ask(f"{number} of some") for number in range(100)])


def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("Buy milk. " * 100)
    with pytest.raises(RunError, match=r"notes\.txt: the journal is damaged: file is not a database"):
        Journal(text)
    assert text.read_text() == "Buy milk. " * 100
    path = tmp_path / "other.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"is no journal of this version \(it holds recipes, format 0"):
        Journal(path)
    assert path.read_bytes() == before


def test_a_journal_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/journal\.sqlite: its folder cannot be made"):
        Journal(tmp_path / "file" / "journal.sqlite")
    with pytest.raises(RunError, match="the journal cannot be used: unable to open database file"):
        Journal(tmp_path)


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with opened(echo(), path) as journal:
        journal.complete([ask("a")])
        pages = journal.journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal.journal._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RunError, match=r"database or disk is full.* what was answered is kept"):
            journal.complete([ask("b" * 100), *(ask(f"{number}") for number in range(200))])
    engine = echo()
    with opened(engine, path) as journal:
        assert journal.complete([ask("a"), ask("199")])[0].text == "to a"
        assert engine.count == 1


PROGRAM = """
import os, sys, time
from pathlib import Path
from typing import Any
from constitutional.engines.base import Request
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.scripted import ScriptedEngine, ScriptedSession
from constitutional.base.records import Message

class Eight(ScriptedSession):
    def collect(self, timeout_s=None):
        waiting, self._waiting = self._waiting, dict(sorted(self._waiting.items())[:8])
        answers = super().collect(timeout_s)
        self._waiting = {ticket: waiting[ticket] for ticket in waiting if ticket not in dict(answers)}
        return answers

class Batched(ScriptedEngine):
    def session(self):
        return Eight(self)

def rule(request):
    time.sleep(0.002)
    text = request.messages[-1].content
    with open(sys.argv[2], "a") as calls:
        calls.write(text + "\\n")
    return "to " + text

with Journal(Path(sys.argv[1])) as journal:
    print("ready", flush=True)
    engine = JournalEngine(Batched(rule, "model"), journal)
    answers = engine.complete([Request((Message("user", str(number)),)) for number in range(100)])
    print("".join(answer.text + ";" for answer in answers))
"""


def start(journal: Path, calls: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(journal), str(calls)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )


def test_a_process_killed_again_and_again_loses_and_repeats_at_most_the_batch_in_flight(tmp_path: Path) -> None:
    path, calls = tmp_path / "journal.sqlite", tmp_path / "calls"
    rng = random.Random(0)
    kills = 3
    for _ in range(kills):
        with start(path, calls) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(rng.uniform(0.01, 0.12))  # the whole list takes at least 0.2 s
            process.send_signal(signal.SIGKILL)
    with start(path, calls) as process:
        output, _ = process.communicate(timeout=60)
    assert output == "ready\n" + "".join(f"to {number};" for number in range(100)) + "\n"
    asked = calls.read_text().split()
    assert set(asked) == {str(number) for number in range(100)}
    assert len(asked) <= 100 + kills * 8
    assert not path.with_name(path.name + "-wal").exists()


def test_two_processes_make_and_fill_one_journal_at_once(tmp_path: Path) -> None:
    path, calls = tmp_path / "journal.sqlite", tmp_path / "calls"
    outputs = []
    with start(path, calls) as first, start(path, calls) as second:
        for process in (first, second):
            outputs.append(process.communicate(timeout=60)[0])
            assert process.returncode == 0
    assert outputs[0] == outputs[1] != ""
    with opened(ScriptedEngine(lambda _: "asked", "model"), path) as journal:
        journal.complete([ask(str(number)) for number in range(100)])
        assert journal.asked == 0


def test_a_copy_of_the_file_of_a_closed_journal_is_the_whole_journal(tmp_path: Path) -> None:
    with opened(echo(), tmp_path / "journal.sqlite") as journal:
        journal.complete([ask("a")])
    shutil.copy(tmp_path / "journal.sqlite", tmp_path / "copy.sqlite")
    with opened(echo(), tmp_path / "copy.sqlite") as copy:
        copy.complete([ask("a")])
        assert copy.asked == 0


def test_answers_that_nobody_collected_are_kept_when_a_session_is_closed(tmp_path: Path) -> None:
    class Ahead(ScriptedEngine):
        """Answers at once, as a server that is not waited for."""

        def session(self) -> Any:  # noqa: ANN401 - a session of the test's own
            answered: list[tuple[Ticket, Completion]] = []

            class Told:
                def submit(self, ticket: Ticket, request: Request) -> None:
                    answered.append((ticket, engine.answer(request)))

                def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
                    first, answered[:] = (answered[:1], answered[1:]) if timeout_s is None else (answered[:], [])
                    return first

                def close(self) -> None:
                    assert not answered

            engine = self
            return Told()

    asked = [Request((Message("user", f"{number}?"),)) for number in range(3)]
    with Journal(tmp_path / "journal.sqlite") as journal:
        session = JournalEngine(Ahead(lambda _: "Yes."), journal).session()
        for number, request in enumerate(asked):
            session.submit((number,), request)
        assert len(session.collect()) == 1
        session.close()
        again = JournalEngine(Ahead(lambda _: "No."), journal)
        assert [answer.text for answer in again.complete(asked)] == ["Yes."] * 3
        assert again.asked == 0


def test_where_one_engine_cannot_go_on_the_sessions_with_others_are_closed_too(tmp_path: Path) -> None:
    class Failing(ScriptedSession):
        def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:  # noqa: ARG002
            raise ValueError("in a user's function")  # and once more while it is closed

    class Closing(ScriptedSession):
        def close(self) -> None:
            closed.append(self)

    def opened(kind: type[ScriptedSession]) -> JournalEngine:
        engine = ScriptedEngine(lambda _: "Yes.", kind.__name__)
        monkeypatch.setattr(engine, "session", lambda: kind(engine))
        return JournalEngine(engine, journal)

    async def story() -> list[list[Completion]]:
        return await together([ask_all(failing, [ask("Well?")]), ask_all(other, [ask("Well?"), ask("So?")])])

    closed = list[ScriptedSession]()
    with pytest.MonkeyPatch.context() as monkeypatch, Journal(tmp_path / "journal.sqlite") as journal:
        failing, other = opened(Failing), opened(Closing)
        with pytest.raises(ValueError, match="in a user's function"):
            list(side_by_side([story()]))
    assert len(closed) == 1
