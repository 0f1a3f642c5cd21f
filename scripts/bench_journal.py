"""What a journal of many answers costs: how long it takes to write it, to open it, and to replay stories from it.

    python scripts/bench_journal.py --answers 1000000
    python scripts/bench_journal.py --answers 100000 --ray     # and answers of actors on a Ray cluster of this machine

Stories of three requests that follow on each other are asked of an engine that answers at once, in chunks as a
cluster's actors do, and a chunk's answers are written in one transaction: so many a second the one writer takes,
whatever answers. Then, in a process of its own each, the journal is opened, and the stories are replayed from it, as a
run does whose answers are all there. Beside the replay stands the same without a journal, by an engine that answers at
once: what is left is what the journal costs a request.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from constitutional.base.records import Message
from constitutional.engines.base import Completion, Engine, Request, Ticket
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.models import Models, engine_of
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import RayClusterSettings, ScriptedSettings
from constitutional.engines.stories import ask, side_by_side
from constitutional.runs.process import peak_bytes

TEXT = "It depends on what you have in mind, and on how much time there is. " * 3
"""A reply of about 50 tokens."""
TURNS = 3
CHUNK = RayClusterSettings().chunk
ACTORS = RayClusterSettings().max_actors


def answer(_: Request) -> str:
    """The same text for every request."""
    return TEXT


class InChunks(ScriptedEngine):
    """Answers at once, so many at a time."""

    def __init__(self, size: int) -> None:
        super().__init__(answer, "bench")
        self.size = size

    def session(self) -> "ChunkSession":  # type: ignore[override] # it is as good
        """A new session."""
        return ChunkSession(self.size)


class ChunkSession:
    """What was asked of it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: list[Ticket] = []

    def submit(self, ticket: Ticket, _: Request) -> None:
        """Take a request."""
        self._waiting.append(ticket)

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """The next answers."""
        if timeout_s == 0:
            return []
        taken, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        return [(ticket, Completion(TEXT, "stop")) for ticket in taken]

    def close(self) -> None:
        """Forget what is waiting."""
        self._waiting.clear()


def engine(size: int = CHUNK) -> InChunks:
    """What answers, in place of a model."""
    return InChunks(size)


def requests_of(number: int) -> Iterator[Request]:
    """A story's requests, each of which goes on from the one before."""
    messages: tuple[Message, ...] = (Message("user", f"Question {number}: {TEXT}"),)
    for _ in range(TURNS):
        yield Request(messages, seed=number)
        messages += (Message("assistant", TEXT), Message("user", "Go on."))


async def story(asked: Engine, number: int) -> int:
    """Ask a story's requests, one after the other; returns the number of characters that came back."""
    return sum([len((await ask(asked, request)).text) for request in requests_of(number)])


def write(path: Path, stories: int, asked: Engine) -> dict[str, float]:
    """Ask all stories' requests of an engine, and write down the answers; seconds, on the clock and of this process."""
    with Journal(path) as journal:
        through = JournalEngine(asked, journal)
        _ = through.identity  # for which a cluster starts its first actor
        started_s, worked_s = time.perf_counter(), time.process_time()
        for _ in side_by_side(story(through, number) for number in range(stories)):
            pass
        seconds, cpu_s = time.perf_counter() - started_s, time.process_time() - worked_s
    if through.asked != stories * TURNS:
        raise SystemExit(f"{through.asked} answers were asked for, of {stories * TURNS}")
    return {"seconds": seconds, "cpu_s": cpu_s}


def write_from_ray(path: Path, stories: int) -> dict[str, float]:
    """The same with an engine in actors on a Ray cluster of this machine."""
    from constitutional.engines.cluster import Cluster

    settings = ScriptedSettings(function=f"{__file__}:answer")
    cluster = Cluster(RayClusterSettings(max_actors=2), print)
    try:
        return write(path, stories, cluster.engine(engine_of(settings, Models()), settings))
    finally:
        cluster.close()


def replay(path: Path, stories: int) -> dict[str, float]:
    """Open the journal and replay all stories; seconds and bytes."""
    started_s = time.perf_counter()
    journal = Journal(path)
    opened_s = time.perf_counter() - started_s
    through = JournalEngine(engine(), journal)
    started_s = time.perf_counter()
    characters = sum(side_by_side(story(through, number) for number in range(stories)))
    seconds = time.perf_counter() - started_s
    if characters != stories * TURNS * len(TEXT) or through.asked or through.reused != stories * TURNS:
        raise SystemExit(f"{through.asked} answers were asked for and {through.reused} came from the journal")
    return {"opened_s": opened_s, "seconds": seconds, "bytes": float(peak_bytes())}


def without_journal(stories: int) -> dict[str, float]:
    """The same stories by an engine that answers at once."""
    started_s = time.perf_counter()
    for _ in side_by_side(story(engine_, number) for engine_ in [engine()] for number in range(stories)):
        pass
    return {"seconds": time.perf_counter() - started_s, "bytes": float(peak_bytes())}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=100_000, help="in the journal, and replayed")
    parser.add_argument("--ray", action="store_true", help="also from actors; needs pip install '.[ray]'")
    parser.add_argument("--part", choices=["replay", "without"], help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    stories = max(1, arguments.answers // TURNS)
    if arguments.part == "replay":
        print(json.dumps(replay(arguments.journal, stories)))
        return 0
    if arguments.part == "without":
        print(json.dumps(without_journal(stories)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.sqlite"
        written = {f"an engine that answers {CHUNK} at once": write(path, stories, engine())}
        together = write(Path(folder) / "together.sqlite", stories, engine(ACTORS * CHUNK))
        written[f"one that answers {ACTORS * CHUNK} at once, as {ACTORS} actors that end together"] = together
        if arguments.ray:
            written["actors on a Ray cluster"] = write_from_ray(Path(folder) / "ray.sqlite", stories)
        size = path.stat().st_size
        whole, bare = (_measured(part, path, arguments.answers) for part in ("replay", "without"))
    asked = stories * TURNS
    print(f"{asked:,} answers in a journal of {size / 1e6:,.0f} MB")
    for source, took in written.items():
        rate, cpu = asked / took["seconds"], 1e6 * took["cpu_s"] / asked
        print(f"written from {source}: {rate:,.0f} answers a second, {cpu:.0f} µs of this process's CPU time an answer")
    print(f"opened in {whole['opened_s']:.3f} s")
    print(
        f"replayed in {whole['seconds']:.1f} s, {1e6 * whole['seconds'] / asked:.0f} µs a request, "
        f"with {whole['bytes'] / 1e6:,.0f} MB of memory at most"
    )
    print(f"the same without a journal: {bare['seconds']:.1f} s, {1e6 * bare['seconds'] / asked:.0f} µs a request")
    print(f"so the journal takes {1e6 * (whole['seconds'] - bare['seconds']) / asked:.0f} µs of a request")
    return 0


def _measured(part: str, path: Path, answers: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--answers", str(answers), "--part", part, "--journal", str(path)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
