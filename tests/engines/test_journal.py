import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from constitutional.base.errors import ModelError, RunError
from constitutional.base.records import Message
from constitutional.engines.base import Completion, Request, Sampling
from constitutional.engines.journal import JournalEngine, key_of
from constitutional.engines.scripted import ScriptedEngine


def ask(text: str, **changes: object) -> Request:
    return Request((Message("user", text),))._replace(**changes)  # type: ignore[arg-type] # fields by name


def echo() -> ScriptedEngine:
    return ScriptedEngine(lambda request: f"to {request.messages[-1].content}")


class Recording(ScriptedEngine):
    """Keeps the lists it was asked, and breaks off at the list of that number."""

    def __init__(self, break_at: int | None = None) -> None:
        super().__init__(lambda request: f"to {request.messages[-1].content}")
        self.lists: list[list[str]] = []
        self.break_at = break_at

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        if len(self.lists) == self.break_at:
            raise KeyboardInterrupt
        self.lists.append([request.messages[-1].content for request in requests])
        return super().complete(requests)


def test_what_was_answered_once_is_never_asked_again(tmp_path: Path) -> None:
    requests = [ask("a"), ask("b")]
    with JournalEngine(echo(), tmp_path / "journal.sqlite") as first:
        answers = first.complete(requests)
        assert answers == [Completion("to a", "stop"), Completion("to b", "stop")]
        assert (first.asked, first.reused) == (2, 0)
    engine = echo()
    with JournalEngine(engine, tmp_path / "journal.sqlite") as second:
        assert second.complete([ask("b"), ask("c"), ask("a")]) == [answers[1], Completion("to c", "stop"), answers[0]]
        assert (second.asked, second.reused, engine.count) == (1, 2, 1)


def test_equal_requests_of_one_list_are_asked_once(tmp_path: Path) -> None:
    engine = echo()
    with JournalEngine(engine, tmp_path / "journal.sqlite", batch_size=2) as journal:
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
    with JournalEngine(ScriptedEngine(lambda _: "yes", "yes"), tmp_path / "journal.sqlite") as yes:
        assert yes.complete([ask("a")])[0].text == "yes"
    with JournalEngine(ScriptedEngine(lambda _: "no", "no"), tmp_path / "journal.sqlite") as no:
        assert no.complete([ask("a")])[0].text == "no"
        assert no.identity == "scripted:no"


def test_any_text_and_any_number_comes_back_as_it_was(tmp_path: Path) -> None:
    odd = Completion("\0 \ud800 {{ x }} '; DROP TABLE\n\u2028é", "length")
    scores = Completion("", "choices", (-0.1 - 0.2, -float("inf")))
    for each, request in ((odd, ask("a\ud800")), (scores, ask("a", choices=("x", "y")))):
        for _ in range(2):
            engine = ScriptedEngine(lambda _, each=each: each)  # type: ignore[misc]
            with JournalEngine(engine, tmp_path / "journal.sqlite") as journal:
                assert journal.complete([request]) == [each]
    assert engine.count == 0


def test_batches_are_consecutive_and_of_one_size(tmp_path: Path) -> None:
    engine = Recording()
    with JournalEngine(engine, tmp_path / "journal.sqlite", batch_size=2) as journal:
        journal.complete([ask(text) for text in "abcde"])
    assert engine.lists == [["a", "b"], ["c", "d"], ["e"]]


def test_an_interrupted_list_goes_on_at_the_batch_that_was_in_flight_with_the_same_neighbours(tmp_path: Path) -> None:
    requests = [ask(text) for text in "abcdefg"]
    with (
        pytest.raises(KeyboardInterrupt),
        JournalEngine(Recording(break_at=2), tmp_path / "journal.sqlite", batch_size=2) as journal,
    ):
        journal.complete(requests)
    engine = Recording()
    with JournalEngine(engine, tmp_path / "journal.sqlite", batch_size=2) as journal:
        assert [answer.text for answer in journal.complete(requests)] == [f"to {text}" for text in "abcdefg"]
        assert engine.lists == [["e", "f"], ["g"]]
        assert (journal.asked, journal.reused) == (3, 4)


def test_only_one_answer_is_ever_used_where_two_processes_ask_the_same(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"

    def slow(request: Request) -> str:
        with JournalEngine(ScriptedEngine(lambda _: "the other's", "model"), path) as other:  # finishes meanwhile
            other.complete([request])
        return "ours"

    with JournalEngine(ScriptedEngine(slow, "model"), path) as journal:
        assert journal.complete([ask("a")])[0].text == "the other's"


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ([], "0 completions for 1 requests"),
        ([Completion("", "choices", (-1.0,))], r"1 log-probabilities for the choices \('x', 'y'\)"),
    ],
)
def test_what_does_not_answer_the_request_is_not_kept(tmp_path: Path, answer: list[Completion], complaint: str) -> None:
    class Wrong(ScriptedEngine):
        def complete(self, requests: Sequence[Request]) -> list[Completion]:  # noqa: ARG002 # whatever is asked
            return answer

    with JournalEngine(Wrong(lambda _: ""), tmp_path / "journal.sqlite") as journal:
        with pytest.raises(ModelError, match=complaint):
            journal.complete([ask("a", choices=("x", "y"))])
        assert journal._connection.execute("SELECT count(*) FROM completions").fetchone() == (0,)


def test_a_changed_answer_is_found_when_it_is_read_and_when_the_file_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with JournalEngine(echo(), path) as journal:
        journal.complete([ask("a")])
        other = sqlite3.connect(path)
        other.execute("UPDATE completions SET completion = replace(completion, 'to a', 'to b')")
        other.commit()
        other.close()
        with pytest.raises(RunError, match=r"journal.sqlite: the journal is damaged: .*\(mv .*journal.sqlite.damaged"):
            journal.complete([ask("a")])
    with pytest.raises(RunError, match="does not match its checksum"):
        JournalEngine(echo(), path)


def test_a_flipped_bit_is_found_or_changes_nothing(tmp_path: Path) -> None:
    sound, path = tmp_path / "sound.sqlite", tmp_path / "journal.sqlite"
    requests = [ask(f"{number} of some") for number in range(40)]
    with JournalEngine(echo(), sound) as journal:
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
            with JournalEngine(echo(), path) as journal:
                assert journal.complete(requests) == answers
                assert journal.asked == 0
        except RunError as error:
            assert str(path) in str(error)  # noqa: PT017 # both outcomes are right; this is the usual one
            found += 1
    assert found > 100


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_torn_file_is_found(tmp_path: Path, share: float) -> None:
    path = tmp_path / "journal.sqlite"
    with JournalEngine(echo(), path) as journal:
        journal.complete([ask(f"{number} of some") for number in range(100)])
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(RunError, match="the journal is damaged"):
        JournalEngine(echo(), path)


def test_a_file_that_is_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("Buy milk. " * 100)
    with pytest.raises(RunError, match=r"notes\.txt: the journal is damaged: file is not a database"):
        JournalEngine(echo(), text)
    assert text.read_text() == "Buy milk. " * 100
    path = tmp_path / "other.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(RunError, match=r"is no journal of this version \(it holds recipes, format 0"):
        JournalEngine(echo(), path)
    assert path.read_bytes() == before


def test_a_journal_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file/journal\.sqlite: its folder cannot be made"):
        JournalEngine(echo(), tmp_path / "file" / "journal.sqlite")
    with pytest.raises(RunError, match="the journal cannot be used: unable to open database file"):
        JournalEngine(echo(), tmp_path)


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with JournalEngine(echo(), path) as journal:
        journal.complete([ask("a")])
        pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(RunError, match=r"database or disk is full.* every finished batch is kept"):
            journal.complete([ask("b" * 100), *(ask(f"{number}") for number in range(200))])
    engine = echo()
    with JournalEngine(engine, path) as journal:
        assert journal.complete([ask("a"), ask("0")])[0].text == "to a"
        assert engine.count == 1


PROGRAM = """
import os, sys, time
from pathlib import Path
from constitutional.engines.base import Request
from constitutional.engines.journal import JournalEngine
from constitutional.engines.scripted import ScriptedEngine
from constitutional.base.records import Message

def rule(request):
    time.sleep(0.002)
    text = request.messages[-1].content
    with open(sys.argv[2], "a") as calls:
        calls.write(text + "\\n")
    return "to " + text

with JournalEngine(ScriptedEngine(rule, "model"), Path(sys.argv[1]), batch_size=8) as journal:
    print("ready", flush=True)
    answers = journal.complete([Request((Message("user", str(number)),)) for number in range(100)])
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
    with JournalEngine(ScriptedEngine(lambda _: "asked", "model"), path) as journal:
        journal.complete([ask(str(number)) for number in range(100)])
        assert journal.asked == 0


def test_a_copy_of_the_file_of_a_closed_journal_is_the_whole_journal(tmp_path: Path) -> None:
    with JournalEngine(echo(), tmp_path / "journal.sqlite") as journal:
        journal.complete([ask("a")])
    shutil.copy(tmp_path / "journal.sqlite", tmp_path / "copy.sqlite")
    with JournalEngine(echo(), tmp_path / "copy.sqlite") as copy:
        copy.complete([ask("a")])
        assert copy.asked == 0
