"""A run of scripted models and made-up trainings, which takes no time."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from constitutional.base.files import write_rows
from constitutional.base.progress import Progress
from constitutional.base.records import Preference, Record, Revision
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import EngineSettings, ModelSettings
from constitutional.engines.spending import Calls
from constitutional.runs.compose import compose
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import ENTRY, StageEntry, read_checked, write_checked
from constitutional.runs.outputs import Begun, Outputs
from constitutional.runs.pipeline import Stage, stages_of
from constitutional.runs.runner import run
from constitutional.runs.settings import RunConfig
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import DpoSummary, ReportSummary, RewardSummary, SftSummary, Summary

PRINCIPLES = {"calm": "Stay calm.", "brief": "Be brief.", "kind": "Be kind.", "honest": "Be honest."}


def constitution(folder: Path, **changed: str) -> Path:
    path = folder / "ours.yaml"
    lines = [f"  - id: {name}\n    text: {text}\n" for name, text in {**PRINCIPLES, **changed}.items()]
    path.write_text("name: Ours\nprinciples:\n" + "".join(lines))
    return path


def configured(folder: Path, *overrides: str) -> RunConfig:
    return compose(
        [
            f"folder={folder}/runs",
            f"constitution.file={folder}/ours.yaml",
            *("prompts.train=8", "prompts.held_out=4"),
            *("critique_revise=schema", "sft=schema", "sample_pairs=schema", "mix=schema"),
            *("critique_revise.rounds=2", "label=schema", "label.method=logprobs", "mix.held_out_share=0.2"),
            *("evaluate.judged=2", "evaluate.critiqued=2", "evaluate.compared=0"),
            *overrides,
        ]
    )


SUMMARIES_OF: dict[str, Summary] = {
    "sft_model": SftSummary(
        nothing_revised=False,
        revision=8,
        helpful=0,
        helpful_missing=0,
        helpful_on_evaluation_prompts=0,
        trained_on=8,
        steps=1,
        dropped={},
    ),
    "reward_model": RewardSummary(pairs=8, dropped={}, quality=None),
    "policy": DpoSummary(pairs=8, steps=1, dropped={}),
}
"""What the made-up trainings say of their work, by what they make."""

STAGES = stages_of(compose([]))
"""The stages of the default configuration."""


class World:
    """Scripted models, and what they were asked; they can be told what to do at their n-th request."""

    def __init__(self, at: int = 0, then: Callable[[], None] | None = None) -> None:
        self.asked: list[Request] = []
        self.opened: list[str] = []
        self.at = at
        self.then = then

    def open(self, settings: EngineSettings) -> ScriptedEngine:
        assert isinstance(settings, ModelSettings)
        folder = Path(settings.path)
        name = (folder / "config.json").read_text() if folder.is_absolute() else settings.path
        self.opened.append(name)
        return ScriptedEngine(lambda request: self.answer(request, name), name)

    def answer(self, request: Request, model: str) -> Completion:
        self.asked.append(request)
        if self.then and len(self.asked) == self.at:
            self.then()
        digest = hashlib.sha256(f"{model} {request}".encode()).hexdigest()[:8]
        if request.choices:
            others = [-2.0] * (len(request.choices) - 1)
            return Completion("", "choices", (-1.0 - int(digest[0], 16) / 8, *others))
        last = request.messages[-1].content
        verdict = "follows" if digest < "4" else "violates"
        said = f"It asks {digest}. So it {verdict} the principle." if "Judge your last" in last else f"Reply {digest}."
        return Completion(said, "stop")


def trained(artifact: str, kind: str, *, learns: bool) -> Callable[[Any, StageContext], None]:
    """In the place of a training: a model whose name is what it has learnt."""

    def train(_settings: object, context: StageContext) -> None:
        rows = context.read(kind, Revision if kind == "revisions" else Preference)
        learnt = hashlib.sha256(repr(rows).encode()).hexdigest()[:8] if learns else "nothing"
        folder = context.output(artifact)
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(f"{artifact} {learnt}")
        if artifact == "sft_model":
            context.write("sft_examples", ())
        context.summarise(SUMMARIES_OF[artifact])

    return train


def stages(config: RunConfig, *, learns: bool = True) -> list[Stage]:
    fakes = {
        "sft": trained("sft_model", "revisions", learns=learns),
        "reward": trained("reward_model", "preferences", learns=learns),
        "dpo": trained("policy", "preferences", learns=learns),
    }
    return [replace(stage, run=fakes.get(stage.name, stage.run)) for stage in stages_of(config)]


def go(config: RunConfig, world: World, *, learns: bool = True) -> tuple[RunStore, list[str]]:
    stream = StringIO()
    store = run(config, stages=stages(config, learns=learns), opener=world.open, progress=Progress(stream))
    return store, stream.getvalue().splitlines()


def rows(folder: Path) -> dict[str, bytes]:
    """Every row file of a run."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.glob("*/*.jsonl"))}


def of_another_version(run: Path, stage: str, field: str) -> None:
    """Take a field out of a finished stage's summary, as if a version without it had written that."""
    (path,) = run.glob(f"*_{stage}/{ENTRY}")
    entry = read_checked(path, StageEntry, "")
    summary = {name: value for name, value in entry.summary.items() if name != field}
    write_checked(path, entry.model_copy(update={"summary": summary}))


def finish(
    store: RunStore,
    number: int,
    stage: str,
    kept: Mapping[str, Sequence[Record]],
    calls: Calls = Calls(),  # noqa: B008 - it is frozen
    summary: Summary = ReportSummary(),  # noqa: B008 - it is frozen
) -> None:
    """Have a run finish a stage that made these rows, by artifact."""
    fingerprint = hashlib.sha256(store.folder.name.encode()).hexdigest()[:16]
    place = store.folder.parent / ".stages" / f"{stage}-{fingerprint}"
    place.mkdir(parents=True, exist_ok=True)
    begun = Begun.now(stage, "f", {}, {}, store.begin(number, stage, place))
    made = {name: begun.folder / f"{name}.jsonl" for name in kept}
    for name, rows_of in kept.items():
        write_rows(made[name], rows_of)
    store.finish(number, stage, place, Outputs(place.parent).finish(begun, made, calls, summary))
