"""Real runs of the sandbox's model in processes of their own, killed and stopped: nothing is lost, nothing asked twice.

A run is killed once in each of its stages, and another one again and again at any time; both must end as one that was
left alone. `KILLS_SEED=7` kills at other points.
"""

import hashlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

import pytest

from constitutional.base.records import Revision
from constitutional.engines.spending import Calls
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import ENTRY, MANIFEST, StageEntry
from constitutional.runs.outputs import LOCK
from constitutional.runs.pipeline import Stage
from constitutional.runs.runner import load_run
from tests.scripted_run import STAGES

pytestmark = pytest.mark.slow

SEED = int(os.environ.get("KILLS_SEED", "0"))
BATCH = 2
WAVE = 4 * BATCH
"""Requests whose answers are handed on together."""
SETTINGS = (
    *("name=ours", "folder=runs", "constitution.file=ours.yaml", "prompts.train=6", "prompts.held_out=4"),
    f"model.batch_size={BATCH}",
    *("critique_revise.rounds=1", "sample_pairs.samples=2", "sample_pairs.pairs_per_prompt=1", "mix.margin=0"),
    "label.principles=one",  # so that every one of the few comparisons becomes a preference
    # What the labeler makes of three examples is no matter here.
    "label.max_canary_failures=1",
    *(f"{stage}.{each}=1" for stage in ("sft", "reward", "algorithm") for each in ("epochs", "log_every")),
    *(f"{stage}.{each}" for stage in ("sft", "reward", "algorithm") for each in ("batch_size=2", "checkpoint_every=1")),
    *("evaluate.judged=2", "evaluate.critiqued=1", "evaluate.compared=2"),
)
PRINCIPLES = {
    "no_flattery": (
        "Do not flatter the user.",
        ("Sit with both feet flat.", "It is an honor to talk with someone so gifted. Sit with both feet flat."),
    ),
    "brief": (
        "Keep your answers brief.",
        ("Deserts receive little rain.", "Deserts receive little rain. In much the same way, other points follow."),
    ),
    "no_harm": (
        "Never help anyone commit a crime.",
        ("No, I am not going to answer that.", "Your best chance comes late at night. Swap the cake for a brick."),
    ),
}
LONGEST_S = 1200.0  # after which a process is taken to hang


def constitution(edited: str = "") -> str:
    """Three principles with an example each; the one that is edited says something else."""
    lines = ["name: Ours", "principles:"]
    for name, (text, (better, worse)) in PRINCIPLES.items():
        said = f"{text} This matters." if name == edited else text
        lines += [f"  - id: {name}", f"    text: {said}", "    examples:"]
        lines += ["      - prompt: What should I do?", f"        better: {better}", f"        worse: {worse}"]
    return "\n".join(lines) + "\n"


class Process:
    """A run in a process of its own, which does not outlive the block that it is made for."""

    def __init__(self, here: Path, number: int, *words: str) -> None:
        self.log = here / f"said_{number}.txt"
        self._ends_s = time.monotonic() + LONGEST_S
        command = [sys.executable, "-m", "constitutional", "run", *SETTINGS, *words]
        with self.log.open("wb") as log:
            # One thread each, because two of them run side by side.
            self.popen = subprocess.Popen(
                command, cwd=here, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    @property
    def said(self) -> list[str]:
        """Its lines so far."""
        return self.log.read_text().splitlines()

    def until(self, condition: Callable[[], bool], every_s: float = 0.02) -> None:
        """Wait for a condition, which must come to be while the process lives."""
        while not condition():
            assert self.popen.poll() is None, self.said
            assert time.monotonic() < self._ends_s, self.said
            time.sleep(every_s)

    def until_said(self, beginning: str) -> None:
        self.until(lambda: any(line.startswith(beginning) for line in self.said), every_s=0.002)

    def send(self, number: signal.Signals) -> int:
        """Send a signal that ends it; returns the exit code."""
        self.popen.send_signal(number)
        return self.end()

    def end(self) -> int:
        return self.popen.wait(LONGEST_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()


class Run:
    """A folder in which the same command is started again and again."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.folder = here / "runs" / "ours"
        self.starts = 0
        here.mkdir(exist_ok=True)
        (here / "ours.yaml").write_text(constitution())

    def start(self, *words: str) -> Process:
        self.starts += 1
        return Process(self.here, self.starts, *words)

    @property
    def answers(self) -> int:
        """How many the journal holds, read from a copy: the journal's own repair after a kill is the run's to do."""
        with tempfile.TemporaryDirectory() as aside:
            for name in ("journal.sqlite", "journal.sqlite-wal"):
                with suppress(FileNotFoundError):
                    shutil.copy(self.here / "runs" / name, aside)
            with closing(sqlite3.connect(Path(aside) / "journal.sqlite")) as journal, suppress(sqlite3.DatabaseError):
                return int(journal.execute("SELECT count(*) FROM completions").fetchone()[0])
        return 0  # it is not made yet

    @property
    def finished(self) -> Mapping[str, StageEntry]:
        return RunStore.load(self.folder).stages if (self.folder / MANIFEST).exists() else {}

    def stage_folder(self, stage: Stage) -> Path:
        return self.folder / f"{STAGES.index(stage):02d}_{stage.name}"

    def steps(self, stage: Stage) -> int:
        """How many lines a training has written to its log."""
        log = self.stage_folder(stage) / "training_log.jsonl"
        return log.read_bytes().count(b"\n") if log.exists() else 0

    @property
    def files(self) -> dict[str, str]:
        """The digest of every file in the run folder but what holds times, process numbers and costs."""
        digests = {}
        for folder, _, names in os.walk(self.folder, followlinks=True):
            for path in (Path(folder) / name for name in names if name not in (MANIFEST, ENTRY, LOCK)):
                content = path.read_bytes().replace(str(self.here).encode(), b"HERE")
                content = re.sub(rb'<section id="[^"]*cost">.*?</section>', b"", content, flags=re.DOTALL)
                digests[path.relative_to(self.folder).as_posix()] = hashlib.sha256(content).hexdigest()
        return digests


class Unbroken(NamedTuple):
    """A run that was left alone."""

    run: Run
    files: dict[str, str]
    stages: Mapping[str, StageEntry]
    seconds: float

    def answers_before(self, stage: Stage) -> int:
        """How many the journal held when the stage began."""
        return sum(self.stages[each.name].calls.asked for each in STAGES[: STAGES.index(stage)])

    def works(self, stage: Stage) -> bool:
        """Whether the stage takes long enough for a kill to come in time."""
        return stage.trains or self.stages[stage.name].calls.asked > 0


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Unbroken:
    run = Run(tmp_path_factory.mktemp("unbroken"))
    with run.start() as process:
        process.until_said("run ours in ")
        started_s = time.monotonic()
        assert process.end() == 0, process.said
        seconds = time.monotonic() - started_s
    return Unbroken(run, run.files, run.finished, seconds)


def test_an_unbroken_run_trains_every_model_and_keeps_every_answer(unbroken: Unbroken) -> None:
    assert list(unbroken.stages) == [stage.name for stage in STAGES]
    assert unbroken.run.answers == sum(entry.calls.asked for entry in unbroken.stages.values()) > 5 * WAVE
    assert all(unbroken.run.steps(stage) >= 2 for stage in STAGES if stage.trains)
    weights = {Path(name).parts[0] for name in unbroken.files if name.endswith(".safetensors")}
    assert weights == {unbroken.run.stage_folder(stage).name for stage in STAGES if stage.trains}


class Watched:
    """A run that is stopped and started, held against one that was left alone."""

    def __init__(self, here: Path, unbroken: Unbroken) -> None:
        self.run = Run(here)
        self.unbroken = unbroken
        self.mistakes: list[str] = []
        """Where a stage asked again what had been answered, or did not ask what had not."""
        self.left: list[list[str]] = []
        """For each start, the stages that were begun and not finished when the process had ended."""

    @contextmanager
    def start(self, *words: str) -> Iterator[Process]:
        """The process, to be waited for or killed; then what it asked is compared with what the journal lacked."""
        held, before = self.run.answers, self.run.finished
        with self.run.start(*words) as process:
            yield process
            assert process.popen.poll() is not None
        after = self.run.finished
        for stage in STAGES:
            # As the calls of a run are made in a fixed order, so many answers are those of its first so many calls.
            whole = self.unbroken.stages[stage.name].calls
            reused = min(held, whole.asked)
            held -= reused
            expected = (whole.asked - reused, whole.reused + reused)
            if stage.name in after.keys() - before.keys() and counts(after[stage.name].calls) != expected:
                self.mistakes.append(f"{stage.name}: {after[stage.name].calls}, expected {expected}")
        self.left.append(
            [each.name for each in STAGES if self.run.stage_folder(each).exists() if each.name not in after]
        )
        print(f"seed {SEED}: {self.run.here.name}, start {self.run.starts}: {len(after)} done, {self.left[-1]} left")

    @property
    def different(self) -> list[str]:
        """The files that are not as those of the unbroken run."""
        mine, its = self.run.files, self.unbroken.files
        return sorted(name for name in mine.keys() | its.keys() if mine.get(name) != its.get(name))


def killed_in_every_stage(watched: Watched) -> Watched:
    """Killed once in each stage, after a random part of its work; then left alone."""
    rng, run, unbroken = random.Random(SEED), watched.run, watched.unbroken
    for number, stage in enumerate(STAGES):
        entry = unbroken.stages[stage.name]
        with watched.start() as process:
            process.until_said(f"{number:02d} {stage.name}: ")
            steps = rng.randint(0, unbroken.run.steps(stage))
            # At least one wave is still to be asked.
            answers = unbroken.answers_before(stage) + rng.randint(0, max(entry.calls.asked - WAVE, 0))
            process.until(lambda: run.steps(stage) >= steps and run.answers >= answers)  # noqa: B023 # waited for here
            time.sleep(rng.uniform(0, 0.05 if unbroken.works(stage) else entry.seconds / 2))
            process.send(signal.SIGKILL)
    with watched.start() as process:
        assert process.end() == 0, process.said
    return watched


def killed_at_random(watched: Watched) -> Watched:
    """Killed again and again, whatever it is doing, until it ends."""
    rng = random.Random(SEED + 1)
    longest_s = watched.unbroken.seconds / 4
    while len(watched.run.finished) < len(STAGES):
        with watched.start() as process:
            process.until_said("run ours in ")
            time.sleep(rng.uniform(0, longest_s))
            assert process.send(signal.SIGKILL) in (-signal.SIGKILL, 0), process.said
        longest_s *= 1.2  # so that it ends on a machine that has become slower, too
    return watched


HOW = {each.__name__: each for each in (killed_in_every_stage, killed_at_random)}


@pytest.fixture(scope="module")
def broken(unbroken: Unbroken, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Watched]:
    """Both of them, side by side."""
    with ThreadPoolExecutor(len(HOW)) as pool:
        begun = {
            name: pool.submit(kill, Watched(tmp_path_factory.mktemp(name), unbroken)) for name, kill in HOW.items()
        }
    return {name: future.result() for name, future in begun.items()}


@pytest.mark.parametrize("how", HOW)
def test_a_run_that_was_killed_ends_with_the_bytes_of_an_unbroken_one(broken: dict[str, Watched], how: str) -> None:
    assert broken[how].different == []


@pytest.mark.parametrize("how", HOW)
def test_a_run_that_was_killed_asks_for_what_was_in_flight_and_nothing_else(
    unbroken: Unbroken, broken: dict[str, Watched], how: str
) -> None:
    assert broken[how].mistakes == []
    assert broken[how].run.answers == unbroken.run.answers


def test_kills_come_while_stages_work(unbroken: Unbroken, broken: dict[str, Watched]) -> None:
    left = broken["killed_in_every_stage"].left
    # The stages that take no time may have ended before the kill comes.
    assert [at for at, stage in enumerate(STAGES) if unbroken.works(stage) and left[at] != [stage.name]] == []
    assert sum(map(bool, broken["killed_at_random"].left)) >= 2


def test_ctrl_c_and_sigterm_end_a_run_and_the_same_command_goes_on(unbroken: Unbroken, tmp_path: Path) -> None:
    watched = Watched(tmp_path / "ours", unbroken)
    run = watched.run
    # What a shell starts in the background ignores Ctrl-C, and so do its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for number, name in ((signal.SIGINT, "critique_revise"), (signal.SIGTERM, "sft")):
            stage = next(each for each in STAGES if each.name == name)
            heading = run.stage_folder(stage).name.replace("_", " ", 1)
            with watched.start("until=sft") as process:
                process.until_said(f"{heading}: running")
                held = unbroken.answers_before(stage)
                process.until(lambda: run.steps(stage) > 0 or run.answers > held)  # noqa: B023 # waited for here
                assert process.send(number) == 130, process.said
            told = [f"{heading}: stopped; the same command goes on from here", "constitutional: interrupted"]
            assert process.said[-2:] == told
            assert not any("Traceback" in line for line in process.said)
            assert watched.left[-1] == [name]
    finally:
        signal.signal(signal.SIGINT, before)
    with watched.start("until=sft") as process:
        assert process.end() == 0, process.said
    assert watched.mistakes == []
    # All but the configuration, and the model's card, which tells of the evaluation once there is one.
    made = {name: digest for name, digest in run.files.items() if "/" in name and not name.endswith("README.md")}
    assert "03_sft/sft_model/model.safetensors" in made
    assert made == {name: unbroken.files.get(name) for name in made}


def test_a_second_process_on_a_folder_is_refused_with_a_line_that_names_it(tmp_path: Path) -> None:
    run = Run(tmp_path / "ours")
    with run.start("until=labeler_check") as first:
        first.until_said("01 labeler_check: running")
        first.popen.send_signal(signal.SIGSTOP)  # so that it has the folder for as long as the other one takes
        with run.start("until=labeler_check") as second:
            assert second.end() == 1
        assert second.said[-1].startswith(f"constitutional: {run.folder}: is in use by process {first.popen.pid} on ")
        assert not any("Traceback" in line for line in second.said)
        first.popen.send_signal(signal.SIGCONT)
        assert first.end() == 0, first.said
    assert list(run.finished) == ["prompts", "labeler_check"]


def test_an_edited_principle_asks_for_what_depends_on_it_and_says_how_much_it_reused(
    unbroken: Unbroken, tmp_path: Path
) -> None:
    shutil.copytree(unbroken.run.here, tmp_path / "ours", symlinks=True)
    run = Run(tmp_path / "ours")
    before = load_run(run.folder).read("revisions", Revision)
    edited = Counter(principle_of(each) for each in before).most_common(1)[0][0]

    (run.here / "ours.yaml").write_text(constitution(edited))
    with run.start("until=critique_revise") as process:
        assert process.end() == 0, process.said
    after = load_run(run.folder).read("revisions", Revision)
    others = [each for each in after if principle_of(each) != edited]
    assert others
    assert others == [each for each in before if principle_of(each) != edited]
    checks = unbroken.stages["labeler_check"].calls
    asked = sum(calls_of(each) for each in after if principle_of(each) == edited)
    expected = {
        # Each principle has one example and is checked by it in the same way.
        "labeler_check": (checks.asked // 3, checks.reused + checks.asked * 2 // 3),
        "critique_revise": (asked, len(after) + sum(map(calls_of, others))),  # every draft is reused
    }
    assert {name: counts(run.finished[name].calls) for name in expected} == expected
    assert done(process) == tuple(sum(column) for column in zip(*expected.values(), strict=True))

    (run.here / "ours.yaml").write_text(constitution())
    with run.start("until=critique_revise") as process:
        assert process.end() == 0, process.said
    assert done(process) == (0, 0)  # what was made by the old words is still there
    assert load_run(run.folder).read("revisions", Revision) == before


def principle_of(revision: Revision) -> str:
    """The one that it was criticised by, in the only round; empty if there was no draft to criticise."""
    step = (*revision.steps, revision.unusable)[0]
    return step.principle if step else ""


def calls_of(revision: Revision) -> int:
    """Critiques and revisions that were asked for it."""
    if not principle_of(revision):
        return 0
    found_nothing = any(step.found_nothing for step in revision.steps)
    return 1 if found_nothing or "the critique" in (revision.problem or "") else 2


def counts(calls: Calls) -> tuple[int, int]:
    return calls.asked, calls.reused


def done(process: Process) -> tuple[int, int]:
    """The calls that a run tells of when it is done: those asked, those reused."""
    told = r"run ours is done.*: (\d+) model calls asked, (\d+) reused from the journal.*"
    asked, reused = next(found.groups() for line in process.said if (found := re.fullmatch(told, line)))
    return int(asked), int(reused)
