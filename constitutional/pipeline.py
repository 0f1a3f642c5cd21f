"""A run: the stages in their order, what each needs and makes, and the loop that runs them.

A stage is done if it was finished with the same fingerprint (its settings, the seed, and the digests of all that it
needs) and every byte that it made is as it was. What a stage makes anew with the same bytes changes nothing for those
that come after it.
"""

import difflib
import hashlib
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from constitutional import gold
from constitutional.bench import GIVEN, TAGS, WHOLE, Bench, Opener, RunWork
from constitutional.config import DpoSettings, FilePrompts, RunConfig, SandboxPrompts, dump, freeze, load
from constitutional.constitution import Constitution, load_constitution
from constitutional.engines.opening import model_folder
from constitutional.errors import ConfigurationError, InputError, ModelError, RunError
from constitutional.files import atomic_write, digest_of
from constitutional.human import read_comparisons, read_verdicts
from constitutional.progress import Progress, clock
from constitutional.prompt_set import PromptSet, load_prompt_set, sandbox_prompt_set
from constitutional.prompts import VARIABLES, load_prompts
from constitutional.records import Comparison, Judgement
from constitutional.report.data import ReportData
from constitutional.report.page import render
from constitutional.reward_model import NORMALISATION
from constitutional.stages import (
    critique_revise,
    dpo,
    evaluate,
    grpo,
    label,
    mix,
    ppo,
    report,
    reward,
    sample_pairs,
    sft,
)
from constitutional.store import Begun, Calls, RunStore, peak_bytes
from constitutional.work import Work

ROLLOUTS: Final = "rollouts"
"""Replies that were kept of a training online, for evaluation to score."""


def make_prompts(settings: SandboxPrompts | FilePrompts, work: Work) -> None:
    """The conversations that everything begins with, for training and for evaluation."""
    prompts, repeated, _ = prompts_of(settings, work.seed)
    work.write("prompts", prompts)
    work.note("train", sum(prompt.split == "train" for prompt in prompts))
    work.note("held_out", sum(prompt.split == "held_out" for prompt in prompts))
    work.note("repeated", len(repeated))
    if repeated and isinstance(settings, FilePrompts):
        what = "prompts that stand there" if len(repeated) > 1 else "prompt that stands there"
        said = f"is the first of {len(repeated)} {what} before; each prompt is used once"
        print(f"warning: {settings.path}:{repeated[0]}: {said}", file=sys.stderr)


def prompts_of(settings: SandboxPrompts | FilePrompts, seed: int) -> PromptSet:
    """The prompts that a configuration names."""
    if isinstance(settings, SandboxPrompts):
        return PromptSet(sandbox_prompt_set(settings.train, settings.held_out, seed), [], [])
    return load_prompt_set(settings.path, held_out=settings.held_out, seed=seed)


class Measuring(BaseModel):
    """What the evaluation depends on: its own settings, and how the labeler compares the models' replies."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    evaluate: evaluate.Settings
    label: label.Settings


def measure(settings: Measuring, work: Work) -> None:
    """Evaluate, with the labeler as judge: stages do not know each other, so they meet here.

    It judges by the principles that it labelled by: those that it misjudges would count against the models.
    """
    accuracies = work.read("labeler_accuracy", label.PrincipleAccuracy)
    constitution = label.trusted(work.constitution, accuracies, settings.label).constitution

    def judge(comparisons: Sequence[Comparison]) -> list[Judgement]:
        engine = work.engine("labeler")
        judged = label.label(comparisons, constitution, engine, work.prompts, settings.label, work.seed)
        return list(judged)

    evaluate.run(settings.evaluate, work, judge)


def measure_online(settings: Measuring, work: Work) -> None:
    """Evaluate, and score the replies that the policy gave while it was trained by what training could not see."""
    measure(settings, work)
    chosen = settings.evaluate
    gold.run(work, settings.label, at_most=chosen.gold_replies, reward_model=chosen.gold_reward_model)


def report_online(settings: report.Settings, work: Work) -> None:
    """Report, with what the policy gave while it was trained."""
    report.run(settings, work, online=True)


class Online(BaseModel):
    """What a training online by TRL depends on: its own settings, the labeler's where it rewards, users' functions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    algorithm: Annotated[grpo.GrpoSettings | grpo.RlooSettings, Field(discriminator="kind")]
    label: label.Settings | None
    """None where the labeler is not asked, so that its settings do not matter."""
    sources: tuple[Path, ...]
    """Of users' functions; the stage's fingerprint holds what is in them."""


def _online(config: RunConfig) -> Online:
    chosen = config.algorithm
    assert isinstance(chosen, grpo.GrpoSettings | grpo.RlooSettings)
    asked = config.label if grpo.asks_labeler(chosen) else None
    return Online(algorithm=chosen, label=asked, sources=grpo.sources(chosen))


def train_online(settings: Online, work: Work) -> None:
    """Train by GRPO or RLOO; where the constitution rewards, by the principles that the labeler understands."""
    judge = None
    if settings.label is not None:
        accuracies = work.read("labeler_accuracy", label.PrincipleAccuracy)
        judge = grpo.Judge(label.trusted(work.constitution, accuracies, settings.label).constitution, settings.label)
    grpo.run(settings.algorithm, work, judge)


@dataclass(frozen=True)
class Stage:
    """One step of a run."""

    name: str
    settings: Callable[[RunConfig], BaseModel]
    needs: tuple[str, ...]
    """Earlier stages' artifacts, and what a run is given: models by role, the constitution, templates by file."""
    makes: tuple[str, ...]
    run: Callable[[Any, Work], None]
    trains: bool = False
    """Whether it wants the memory that the models in it hold."""
    reads_notes: bool = False
    """Whether it needs what every stage before it noted, beside their artifacts."""
    version: int = 1
    """To be raised when the stage makes something else of the same inputs."""


ALGORITHMS: Final[Mapping[str, Stage]] = {
    "dpo": Stage(
        "dpo",
        lambda config: config.algorithm,
        needs=("preferences", "sft_model"),
        makes=("policy",),
        run=dpo.run,
        trains=True,
    ),
    "ppo": Stage(
        "ppo",
        lambda config: config.algorithm,
        needs=("prompts", "sft_model", "reward_model"),
        makes=("policy", ROLLOUTS),
        run=ppo.run,
        trains=True,
    ),
    **{
        # What else they need, their rewards say.
        kind: Stage(
            kind, _online, needs=("prompts", "sft_model"), makes=("policy", ROLLOUTS), run=train_online, trains=True
        )
        for kind in ("grpo", "rloo")
    },
}
"""What may make the policy, by the configuration's `algorithm.kind`. Whatever trains online also makes `rollouts`."""

STAGES: Final = (
    Stage("prompts", lambda config: config.prompts, needs=(), makes=("prompts",), run=make_prompts),
    # Before anything else is asked or trained: what the labeler misjudges, training amplifies.
    Stage(
        "labeler_check",
        lambda config: config.label,
        needs=("labeler", "constitution", "label.j2", "score.j2"),
        makes=("labeler_accuracy",),
        run=label.check,
    ),
    Stage(
        "critique_revise",
        lambda config: config.critique_revise,
        needs=("prompts", "base", "critic", "constitution", "critique.j2", "revise.j2", "revise_directly.j2"),
        makes=("revisions",),
        run=critique_revise.run,
        version=2,
    ),
    Stage(
        "sft",
        lambda config: config.sft,
        needs=("prompts", "revisions", "base"),
        makes=("sft_model",),
        run=sft.run,
        trains=True,
    ),
    Stage(
        "sample_pairs",
        lambda config: config.sample_pairs,
        needs=("prompts", "sft_model"),
        makes=("comparisons",),
        run=sample_pairs.run,
    ),
    Stage(
        "label",
        lambda config: config.label,
        needs=("comparisons", "labeler_accuracy", "labeler", "constitution", "label.j2", "score.j2"),
        makes=("judgements",),
        run=label.run,
    ),
    Stage(
        "mix",
        lambda config: config.mix,
        needs=("prompts", "comparisons", "judgements"),
        makes=("preferences",),
        run=mix.run,
        version=2,
    ),
    Stage(
        "reward",
        lambda config: config.reward,
        needs=("preferences", "sft_model"),
        makes=("reward_model",),
        run=reward.run,
        trains=True,
        version=2,
    ),
    ALGORITHMS["dpo"],
    Stage(
        "evaluate",
        lambda config: Measuring(evaluate=config.evaluate, label=config.label),
        needs=(
            *("prompts", "base", "sft_model", "policy", "labeler", "labeler_accuracy", "critic"),
            *("constitution", TAGS, "label.j2", "score.j2", "critique.j2", "restate.j2"),
        ),
        makes=("scores", "samples"),
        run=measure,
    ),
    Stage(
        "report",
        lambda config: config.report,
        needs=(
            *(
                "revisions",
                "sft_model",
                "comparisons",
                "judgements",
                "labeler_accuracy",
                "preferences",
                "reward_model",
                "policy",
            ),
            *("scores", "samples", WHOLE),
        ),
        makes=("report", report.CONSTITUTION),
        run=report.run,
        reads_notes=True,
        version=2,
    ),
)
"""The whole system, read from top to bottom; `stages_of` puts another algorithm in the place of DPO."""


def stages_of(config: RunConfig) -> tuple[Stage, ...]:
    """The stages of this configuration's run: with its algorithm, and the gold score where that trains online."""
    algorithm = ALGORITHMS[config.algorithm.kind]
    if isinstance(config.algorithm, grpo.Settings):
        algorithm = replace(algorithm, needs=(*algorithm.needs, *grpo.needs(config.algorithm)))
    stages = {stage.name: stage for stage in STAGES} | {"dpo": algorithm}
    if _trains_online(config):
        evaluated, reported = stages["evaluate"], stages["report"]
        stages["evaluate"] = replace(
            evaluated,
            needs=(*evaluated.needs, ROLLOUTS),
            makes=(*evaluated.makes, "gold"),
            run=measure_online,
        )
        stages["report"] = replace(reported, needs=("prompts", *reported.needs, ROLLOUTS, "gold"), run=report_online)
    return tuple(stages.values())


def _trains_online(config: RunConfig) -> bool:
    return ROLLOUTS in ALGORITHMS[config.algorithm.kind].makes


def run(
    config: RunConfig,
    *,
    stages: Sequence[Stage] | None = None,
    opener: Opener | None = None,
    progress: Progress | None = None,
) -> RunStore:
    """Run every stage that is not done yet.

    Args:
        config: what to run; its paths may be relative.
        stages: the stages, in order; by default those of the configuration.
        opener: makes an engine of a model's settings; by default the model itself, loaded when it is first asked.
        progress: says how far this is; by default on standard error.

    Returns:
        The run, for reading.

    Raises:
        ConstitutionalError: a file that the configuration names is wrong, the folder is in use or holds another
            configuration, a model cannot be loaded, or a stage failed.
    """
    config = freeze(config)
    stages = stages_of(config) if stages is None else stages
    names = [stage.name for stage in stages]
    if config.until is not None and config.until not in names:
        near = difflib.get_close_matches(config.until, names, n=1, cutoff=0)[0]
        raise ConfigurationError(
            f'until is "{config.until}", but should be one of {", ".join(names)}; type until={near}'
        )
    stages = stages[: names.index(config.until) + 1] if config.until else stages
    started_s = time.monotonic()
    progress = progress or Progress()
    constitution, templates = ready(config), load_prompts(config.templates)
    if opener is None:
        _check_model(config, trains=any(stage.trains for stage in stages))
    with _terminable(), Bench(config, constitution, templates, progress, opener) as bench:
        given = ("constitution", *GIVEN, *(f"{name}.j2" for name in VARIABLES))
        digests = {name: bench.digest(name) for name in given}
        with RunStore.open(config.run_folder, dump(config, digests), config.identity(), fresh=config.fresh) as store:
            progress.say(f"run {config.name} in {config.run_folder}, with '{constitution.name}'")
            calls = [_step(number, stage, bench, store) for number, stage in enumerate(stages)]
            asked, reused = sum(each.asked for each in calls), sum(each.reused for each in calls)
            most = f"{peak_bytes() / 1024**3:.1f} GiB of memory at most"
            progress.say(f"it took {clock(time.monotonic() - started_s)}, with {most}")
            done = f"done until {config.until}" if config.until else "done"
            progress.say(f"run {config.name} is {done}: {asked} model calls asked, {reused} reused from the journal")
    return RunStore.load(config.run_folder)


def selected(config: RunConfig) -> Constitution:
    """The constitution with the principles and weights that the configuration chooses."""
    chosen = config.constitution
    return load_constitution(chosen.file).select(chosen.only, chosen.without, chosen.weights)


def ready(config: RunConfig) -> Constitution:
    """Read every file that people wrote and the configuration names; returns the constitution as selected.

    Before a folder is made and a model is loaded: what is wrong in one would else be found hours later, in a folder
    that is bound to what it was begun with.

    Raises:
        ConstitutionalError: one of them is wrong.
    """
    constitution = selected(config)
    prompts_of(config.prompts, config.seed)
    if config.critique_revise.few_shot_file is not None:
        critique_revise.read_shots(config.critique_revise.few_shot_file)
    if config.sft.helpful is not None:
        sft.read_helpful(config.sft.helpful)
    if config.mix.human is not None:
        read_comparisons(config.mix.human)
    if config.mix.verdicts is not None:
        read_verdicts(config.mix.verdicts, None)  # of comparisons that this run may not have made yet
    if isinstance(config.algorithm, grpo.Settings):
        grpo.check(config.algorithm)
    held_out = config.evaluate.gold_reward_model
    if held_out is not None and not (held_out / "config.json").exists() and not (held_out / NORMALISATION).exists():
        raise InputError(held_out, "holds no reward model; name a folder such as runs/NAME/07_reward/reward_model")
    return constitution


def _check_model(config: RunConfig, *, trains: bool) -> None:
    """Refuse a model that cannot be trained, before its drafts are paid for, and prompts that leave it no room.

    Prompts that are made up are short.
    """
    folder, model = model_folder(config.model.path), config.model
    if trains:
        from constitutional.training import preflight_folder

        preflight_folder(folder, pad_token=model.pad_token, template=model.template)
    if isinstance(config.prompts, FilePrompts):
        from constitutional.engines.local import room_to_reply

        most = max(config.critique_revise.draft_max_tokens, config.sample_pairs.max_tokens, config.evaluate.max_tokens)
        if not isinstance(config.algorithm, DpoSettings):
            most = max(most, config.algorithm.max_tokens)
        check = room_to_reply(folder, most, pad_token=model.pad_token, template=model.template)
        found = prompts_of(config.prompts, config.seed)
        for line, prompt in zip(found.lines, found.prompts, strict=True):
            try:
                check(prompt.messages)
            except ModelError as error:
                raise InputError(config.prompts.path, str(error), line) from error


def _step(number: int, stage: Stage, bench: Bench, store: RunStore) -> Calls:
    """Run one stage, or find that it is done, and say which; returns what it asked of models just now."""
    settings = stage.settings(bench.config)
    needs = {need: _digest(need, bench, store) for need in stage.needs}
    if stage.reads_notes:
        needs |= store.summaries(but=stage.name)
    fingerprint = fingerprint_of(stage, settings, bench.config.seed, needs)
    heading = f"{number:02d} {stage.name}"
    reason = store.reason_to_run(stage.name, fingerprint)
    if reason is None:
        bench.progress.say(f"{heading}: done before, used again")
        return Calls()
    bench.progress.say(f"{heading}: runs; {reason}" if stage.name in store.manifest.stages else f"{heading}: runs")
    if stage.trains:
        bench.release()
    begun = store.begin(number, stage.name, fingerprint)
    work = RunWork(bench, store, begun)
    try:
        stage.run(settings, work)
    except KeyboardInterrupt:
        command = "the same command without fresh=true" if bench.config.fresh else "the same command"
        bench.progress.say(f"{heading}: stopped; {command} goes on from here")
        raise
    except Exception as error:
        store.fail(stage.name, str(error) or type(error).__name__)
        raise
    artifacts = {**work.written, **{name: work.made(name) for name in stage.makes}}
    entry = store.finish(begun, artifacts, work.calls, work.notes)
    calls = f", {work.calls.asked} calls asked, {work.calls.reused} reused" if work.calls != Calls() else ""
    rows = "".join(f", {each.rows} {name}" for name, each in entry.artifacts.items() if each.rows is not None)
    bench.progress.say(f"{heading}: done in {clock(entry.seconds)}{rows}{calls}")
    return work.calls


def _digest(need: str, bench: Bench, store: RunStore) -> str:
    given = need in (*GIVEN, "constitution", TAGS, WHOLE) or need.endswith(".j2")
    return bench.digest(need) if given else store.digest(need)


def fingerprint_of(stage: Stage, settings: BaseModel, seed: int, needs: Mapping[str, str]) -> str:
    """SHA-256 of everything that decides what a stage makes, the contents of files that its settings name included."""
    depends_on = {
        "stage": stage.name,
        "version": stage.version,
        "settings": settings.model_dump(mode="json"),
        "files": {str(path): _file_digest(path) for path in sorted(set(_paths(settings.model_dump())))},
        "seed": seed,
        "needs": dict(needs),
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def _paths(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _paths(each)
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for each in value:
            yield from _paths(each)


def _file_digest(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error


@contextmanager
def _terminable() -> Iterator[None]:
    """Make SIGTERM what Ctrl-C is: the stage stops, the locks are given back, the command ends with 130."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def load_run(folder: Path | str) -> RunStore:
    """A run folder, for reading: its artifacts, notes and manifest.

    Raises:
        UsageError: the folder holds no run.
        RunError: it is damaged.
    """
    return RunStore.load(Path(folder))


def compare(stores: Sequence[RunStore], out: Path) -> Path:
    """One page for several finished runs, a sweep's for example, each with the constitution of its own report.

    Raises:
        RunError: a run is not finished, or damaged.
    """
    found = []
    for store in stores:
        config = load(store.folder)
        folder, kept = store.artifact("report").parent, store.artifact(report.CONSTITUTION)
        # Nothing that the configuration names is read again: it may have been edited, moved or deleted since.
        try:
            constitution = Constitution.model_validate_json(kept.read_bytes())
        except (OSError, ValueError) as error:
            raise RunError(f"{kept}: is damaged; the command that made the run makes it anew") from error
        with Bench(config, constitution, load_prompts(), Progress()) as bench:
            begun = Begun("report", "", folder, "", 0.0)
            found.append(report.gather(config.report, RunWork(bench, store, begun), online=_trains_online(config)))
    page = render(ReportData(title=", ".join(each.name for each in found), runs=tuple(found)))
    atomic_write(out, page.encode("utf-8", "backslashreplace"))
    return out
