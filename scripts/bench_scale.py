"""What a run costs by its size: time, memory, and how both grow.

    python scripts/bench_scale.py 10000 100000 1000000

For every number of prompts, in a process of its own, a run checks a file of that many, and its stages `prompts`,
`sample_pairs`, `label` and `mix` go through them with an engine that answers at once by a rule: two responses to a
prompt, one comparison of them, by one principle, in both orders. So what is measured is what this program costs, and
not a model. The journal, the files and the folder are those of any run; the file of prompts is written before. Beside
it stands the rule alone, without stages and journal. The slope is that of the logarithm of CPU time over the logarithm
of rows: 1 is linear. CPU time is of this process, in which all is done but waiting for the disk.

In the end, in a process of its own each, the largest run is looked at: `constitutional show` of an item, of a principle
and of words, and the report; and there is a mix with another margin. The report is of comparisons, judgements and
preferences alone: of a run without revisions, trainings and evaluation.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from constitutional.base.files import atomic_write
from constitutional.base.progress import Progress
from constitutional.base.records import Message, Preference, Record
from constitutional.base.shards import RowStream
from constitutional.cli.find import find
from constitutional.constitution.file import load_constitution
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.runs.compose import compose
from constitutional.runs.context import FinishedRun
from constitutional.runs.folder import RunStore
from constitutional.runs.pipeline import Stage, stages_of
from constitutional.runs.process import peak_bytes
from constitutional.runs.runner import load_run, run
from constitutional.runs.settings import RunConfig
from constitutional.stages.context import StageContext
from constitutional.stages.report import gather
from constitutional.stages.report.page import render
from constitutional.stages.summaries import EvaluateSummary, SftSummary, Summary

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Summary)
TEXT = "It depends on what you have in mind, and on how much time there is. " * 3
"""Of about 50 tokens."""
PRINCIPLES = ("calm", "brief", "kind", "honest", "modest", "clear", "fair", "careful")
STAGES = ("prompts", "sample_pairs", "label", "mix")
MEASURED = ("check", *STAGES)
"""`check` is what a run does before its first stage."""
AT_A_TIME = 256
"""Answers that the engine hands on together, as one that answers in batches does."""


def rule(request: Request) -> Completion | str:
    """A reply of its own for every seed; of two replies that of the larger seed is the better one, by some nats."""
    if not request.choices:
        return f"{TEXT} Answer {request.seed}."
    first, second = map(int, re.findall(r"Answer (\d+)\.", request.messages[-2].content))
    nats = 4 * (first - second) / 2**31
    return Completion("", "choices", (-1.0 + nats, -1.0))


def question(number: int) -> str:
    """A prompt of its own for every number."""
    return f"Question {number}: {TEXT}"


def begun(folder: Path, count: int) -> Path:
    """A folder with a constitution and a file of so many prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "prompts.jsonl").open("w") as file:
        file.writelines(json.dumps({"prompt": question(number)}) + "\n" for number in range(count))
    listed = "".join(f"  - id: {name}\n    text: Be {name}.\n" for name in PRINCIPLES)
    (folder / "constitution.yaml").write_text(f"name: Scale\nprinciples:\n{listed}")
    return folder


def configured(folder: Path, *overrides: str) -> RunConfig:
    """A run in this folder."""
    return compose(
        [
            f"folder={folder}/runs",
            "name=scale",
            f"constitution.file={folder}/constitution.yaml",
            *("prompts=file", f"prompts.path={folder}/prompts.jsonl", "prompts.held_out=0"),
            *("sample_pairs=schema", "mix=schema", "label=schema", "label.method=logprobs", "label.principles=one"),
            *overrides,
        ]
    )


def stages(config: RunConfig, measured: dict[str, float], kept: Path) -> list[Stage]:
    """The stages that are measured, and between them what makes a model of nothing; `kept` has what is measured."""
    begun_s, cpu_begun_s = time.perf_counter(), time.process_time()

    def ended(name: str, started_s: float, cpu_started_s: float) -> None:
        measured[f"{name} seconds"] = time.perf_counter() - started_s
        measured[f"{name} cpu"] = time.process_time() - cpu_started_s
        measured[f"{name} bytes"] = float(peak_bytes())
        atomic_write(kept, json.dumps(measured).encode())

    def timed(stage: Stage) -> Stage:
        def timed_run(settings: object, context: StageContext) -> None:
            if stage.name == STAGES[0]:
                ended("check", begun_s, cpu_begun_s)
            started_s, cpu_started_s = time.perf_counter(), time.process_time()
            stage.run(settings, context)
            ended(stage.name, started_s, cpu_started_s)

        return replace(stage, run=timed_run)

    def model(_: object, context: StageContext) -> None:
        context.output("sft_model").mkdir(exist_ok=True)
        (context.output("sft_model") / "config.json").write_text("{}")
        context.write("labeler_accuracy", ())
        made = {"nothing_revised": True, "trained_on": 0, "steps": 0, "dropped": {}}
        counts = dict.fromkeys(("revision", "helpful", "helpful_missing", "helpful_on_evaluation_prompts"), 0)
        context.summarise(SftSummary.model_validate({**made, **counts}))

    every = {stage.name: stage for stage in stages_of(config)}
    return [
        timed(every["prompts"]),
        Stage("sft", every["sft"].settings, needs=(), makes=("sft_model", "labeler_accuracy"), run=model),
        *(timed(every[name]) for name in STAGES[1:]),
    ]


def go(folder: Path, *overrides: str) -> dict[str, float]:
    """Run the stages that are not done yet: seconds, CPU seconds, and bytes at most until their ends.

    Of those that were done before a kill it is what was measured then; one that was killed counts from its last start.
    """
    config, kept = configured(folder, *overrides), folder / f"measured{len(overrides)}.json"
    measured: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    engine = ScriptedEngine(rule, "bench", at_a_time=AT_A_TIME)
    started_s = time.perf_counter()
    run(config, stages=stages(config, measured, kept), opener=lambda _: engine, progress=Progress(StringIO()))
    return {"seconds": time.perf_counter() - started_s, **measured}


def bare(count: int) -> dict[str, float]:
    """Have the rule alone answer as many: two responses to each prompt, and their comparison in both orders."""
    engine = ScriptedEngine(rule, "bench", at_a_time=AT_A_TIME)
    started_s, cpu_started_s = time.perf_counter(), time.process_time()
    for number in range(count):
        asked = (Message("user", question(number)),)
        replies = [engine.answer(Request(asked, seed=seed)).text for seed in range(2)]
        compared = (*asked, Message("user", " ".join(replies)), Message("assistant", "Better:"))
        for _ in range(2):
            engine.answer(Request(compared, choices=("A", "B")))
    return {"seconds": time.perf_counter() - started_s, "cpu": time.process_time() - cpu_started_s}


class OfPairs(FinishedRun):
    """A run for its report, in which the stages after `mix` made nothing."""

    def __init__(self, store: RunStore, folder: Path) -> None:
        super().__init__(store, load_constitution(folder / "constitution.yaml"), configured(folder), "report", ())
        self.made = store.artifacts()

    def read(self, artifact: str, kind: type[R]) -> list[R]:
        """The rows, or none."""
        return super().read(artifact, kind) if artifact in self.made else []

    def stream(self, artifact: str, kind: type[R]) -> RowStream[R]:
        """The rows, or none."""
        return super().stream(artifact, kind) if artifact in self.made else []

    def summary(self, kind: type[S]) -> S | None:
        """What a stage said; evaluation, that it did nothing."""
        nothing = {"prompts": 0, "counts": {}, "critiqued": {}, "wanted": None}
        return kind.model_validate(nothing) if kind is EvaluateSummary else super().summary(kind)


def look(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """Look at a run in several ways; seconds, CPU seconds, and bytes at most until then."""
    store = load_run(folder / "runs" / "scale")
    last = None
    for last in store.stream("preferences", Preference):  # noqa: B007 - the last one is what is looked for
        pass
    assert last is not None
    number = last.prompt.messages[0].content.split(":")[0].removeprefix("Question ")
    looks: dict[str, Callable[[], str]] = {
        "show an item": lambda: find(store, last.id),
        "show a principle": lambda: find(store, PRINCIPLES[0]),
        "show words": lambda: find(store, f"question {number}"),
        "the report": lambda: render((gather.gather(gather.Settings(), OfPairs(store, folder)),)),
    }
    for what, looked in looks.items():
        started_s, cpu_started_s = time.perf_counter(), time.process_time()
        looked()
        taken = {"seconds": time.perf_counter() - started_s, "cpu": time.process_time() - cpu_started_s}
        yield what, {**taken, "bytes": float(peak_bytes())}


def part(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a process of its own does."""
    match arguments.part:
        case "run":
            return go(arguments.folder)
        case "mix":
            return go(arguments.folder, "mix.margin=0.1")
        case "bare":
            return bare(arguments.prompts[0])
    return dict(look(arguments.folder))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=int, nargs="+", help="numbers of prompts, such as 10000 100000")
    parser.add_argument("--folder", type=Path, help="where the runs are made and kept (default: nowhere)")
    parser.add_argument("--part", choices=["run", "mix", "bare", "look"], help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.part:
        print(json.dumps(part(arguments)))
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        measure(sorted(arguments.prompts), arguments.folder or Path(temporary))
    return 0


def measure(sizes: Sequence[int], parent: Path) -> None:
    """Run all sizes, and print what they took."""
    print(
        f"{'prompts':>10} {'stage':<14} {'seconds':>8} {'CPU s':>8} {'rows/s':>8} {'CPU µs/row':>10} {'MB at most':>10}"
    )
    taken: dict[str, list[float]] = {name: [] for name in MEASURED}
    for size in sizes:
        folder = begun(parent / str(size), size)
        found = _measured("run", folder, size)
        for name in MEASURED:
            taken[name].append(found[f"{name} cpu"])
            _print(size, name, found[f"{name} seconds"], found[f"{name} cpu"], f"{found[f'{name} bytes'] / 1e6:,.0f}")
        alone = _measured("bare", folder, size)
        _print(size, "the rule alone", alone["seconds"], alone["cpu"], "")
    if len(sizes) > 1:
        slopes = {name: slope(sizes, seconds) for name, seconds in taken.items()}
        slopes["all"] = slope(sizes, [sum(parts) for parts in zip(*taken.values(), strict=True)])
        print("slope of CPU time over rows: " + ", ".join(f"{name} {value:.2f}" for name, value in slopes.items()))
    folder = parent / str(sizes[-1])
    for what, row in _measured("look", folder, sizes[-1]).items():
        spent = f"{row['seconds']:.1f} s, {row['cpu']:.1f} s of CPU"
        print(f"{what}: {spent}, with {row['bytes'] / 1e6:,.0f} MB at most")
    again = _measured("mix", folder, sizes[-1])
    cpu = f"{again['mix cpu']:.1f} s of CPU"
    print(f"a mix with another margin: {again['mix seconds']:.1f} s, {cpu}; the whole command {again['seconds']:.1f} s")


def slope(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Of the logarithm of time over the logarithm of rows, by least squares."""
    import numpy as np

    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def _print(size: int, name: str, seconds: float, cpu: float, memory: str) -> None:
    each = f"{size / seconds:>8,.0f} {1e6 * cpu / size:>10,.0f}"
    print(f"{size:>10,} {name:<14} {seconds:>8.1f} {cpu:>8.1f} {each} {memory:>10}", flush=True)


def _measured(what: str, folder: Path, size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, str(size), "--part", what, "--folder", str(folder)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode:
        raise SystemExit(finished.stderr)
    found: dict[str, Any] = json.loads(finished.stdout)
    return found


if __name__ == "__main__":
    sys.exit(main())
