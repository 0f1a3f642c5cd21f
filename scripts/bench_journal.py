"""What a journal of many answers costs: how long it takes to open it, and to replay stories from it.

    python scripts/bench_journal.py --answers 1000000

A journal of that many answers is made in a temporary folder (that time does not count). Then, in a process of its own
each, it is opened, and a third as many stories of three requests that follow on each other are replayed from it, as a
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
from constitutional.engines.base import Completion, Engine, Request
from constitutional.engines.journal import Journal, JournalEngine, Keys
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.stories import ask, side_by_side
from constitutional.runs.process import peak_bytes

TEXT = "It depends on what you have in mind, and on how much time there is. " * 3
"""A reply of about 50 tokens."""
TURNS = 3


def engine() -> ScriptedEngine:
    """Answers every request with the same text."""
    return ScriptedEngine(lambda _: TEXT, "bench")


def requests_of(number: int) -> Iterator[Request]:
    """A story's requests, each of which goes on from the one before."""
    messages: tuple[Message, ...] = (Message("user", f"Question {number}: {TEXT}"),)
    for _ in range(TURNS):
        yield Request(messages, seed=number)
        messages += (Message("assistant", TEXT), Message("user", "Go on."))


async def story(asked: Engine, number: int) -> int:
    """Ask a story's requests, one after the other; returns the number of characters that came back."""
    return sum([len((await ask(asked, request)).text) for request in requests_of(number)])


def fill(path: Path, stories: int) -> None:
    """Write down the answers to all stories' requests."""
    keys, kept = Keys(engine().identity), dict[str, Completion]()
    with Journal(path) as journal:
        for number in range(stories):
            kept |= {keys.of(request): Completion(TEXT, "stop") for request in requests_of(number)}
            if len(kept) > 20_000 or number == stories - 1:
                journal.keep(kept)
                kept.clear()


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
        fill(path, stories)
        size = path.stat().st_size
        whole, bare = (_measured(part, path, arguments.answers) for part in ("replay", "without"))
    asked = stories * TURNS
    print(f"{asked:,} answers in a journal of {size / 1e6:,.0f} MB")
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
