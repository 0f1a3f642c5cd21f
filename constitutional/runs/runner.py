"""The loop that runs the stages of `pipeline.py`, what it checks before it begins, and finished runs for reading.

A stage is done if some run finished it with the same fingerprint (the settings that decide its results, the seed where
it draws, and the digests of all that it needs) and what it made is as it was. What a stage makes anew with the same
bytes changes nothing for those that come after it.
"""

import hashlib
import json
import shlex
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import FrameType
from typing import Any, Final, NamedTuple

from pydantic import BaseModel

from constitutional.base.errors import (
    BudgetError,
    ConfigurationError,
    ConstitutionalError,
    InputError,
    ModelError,
    RunError,
    WaitingError,
)
from constitutional.base.files import atomic_write, digest_of
from constitutional.base.frozen import decisive
from constitutional.base.message import Message
from constitutional.base.progress import Progress, clock
from constitutional.base.records import LABELER
from constitutional.base.templates import VARIABLES, load_prompts
from constitutional.constitution.constitution import PURPOSES, Constitution
from constitutional.constitution.file import as_yaml
from constitutional.data.comparisons import HumanComparisons, check_pairs, read_comparisons
from constitutional.data.evaluation import load_sets
from constitutional.data.prompts import PromptSet
from constitutional.data.verdicts import read_verdicts
from constitutional.engines.architecture import config_file, read_config
from constitutional.engines.base import Sampling
from constitutional.engines.model_files import Recommended, model_folder, not_taken, recommended
from constitutional.engines.settings import (
    SANDBOX,
    Budget,
    HttpSettings,
    ModelSettings,
    Prices,
    ScriptedSettings,
    VllmSettings,
    role_settings,
)
from constitutional.engines.spending import Calls
from constitutional.engines.vllm import vllm_version
from constitutional.judging.evaluated import read_answers
from constitutional.judging.labeler import answering
from constitutional.judging.simulated_people import check_simulation
from constitutional.judging.understanding import PrincipleMeaning, check_meanings, lines
from constitutional.runs import distributed, former
from constitutional.runs.cards import TRAINED, write_cards
from constitutional.runs.compose import dump, freeze, load, with_recommended
from constitutional.runs.context import (
    CONFIGURATION,
    CONSTITUTION,
    GIVEN,
    READER,
    FinishedRun,
    Opener,
    RunContext,
    RunStageContext,
    as_models_read,
    as_used,
    constitution_digests,
    is_given,
    prices_of,
    selected,
)
from constitutional.runs.folder import USED, RunStore
from constitutional.runs.launch_settings import AccelerateSettings, SlurmSettings
from constitutional.runs.manifest import StageEntry
from constitutional.runs.outputs import LOCK, Begun, Outputs, damage, drop_checkpoints, is_locked
from constitutional.runs.pipeline import Stage, stages_of, up_to
from constitutional.runs.process import peak_bytes, rare_collections
from constitutional.runs.settings import ROLES, RunConfig
from constitutional.runs.slurm import FOLDER as JOBS
from constitutional.runs.slurm import (
    JobEnd,
    as_first,
    check_launch,
    first_has_ended,
    in_job,
    node_of_job,
    settle,
)
from constitutional.runs.sweeps import typed
from constitutional.stages import adopted, critique_revise, evaluate, mix, online, sft
from constitutional.stages.prompts import FilePrompts, prompts_of
from constitutional.stages.report import gather
from constitutional.stages.report.page import render
from constitutional.training.kernels import check_architecture
from constitutional.training.reward_model import NORMALISATION, check_reward_model, has_members
from constitutional.training.rewards import OnlineSettings
from constitutional.training.tracking import check_installed
from constitutional.training.trl import NetworkSettings, TrainingSettings, check_dropout, check_kernels


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
        stages: the stages, in order; None means those of the configuration.
        opener: makes an engine of a model's settings, which reads principles as they are written; None means the model
            itself, loaded when it is first asked.
        progress: says how far this is; None means on standard error.

    Returns:
        The run, for reading.

    Raises:
        ConstitutionalError: a file that the configuration names is wrong, the folder is in use, a model cannot be
            loaded or cannot do what is asked of it, or a stage failed.
    """
    config = freeze(config)
    check_launch(config.launch)
    started_s = time.monotonic()
    progress = progress or Progress()
    if isinstance(config.launch, AccelerateSettings) and config.launch.machine_rank:
        return distributed.join(config, progress)
    files, templates = ready(config), load_prompts(config.templates)
    if opener is None:
        config = fetched(config)
    every = stages_of(config) if stages is None else stages
    stages = up_to(config.until, every)
    with _terminable(), RunContext(config, files.constitution, templates, progress, opener) as run_context:
        _settle_jobs(run_context)  # before anything opens the journal
        check_budgets(run_context)
        if differing := former.changes(config):
            progress.say(former.said(config, differing))
        runner = Runner(run_context, Outputs(config.outputs_folder))
        if opener is None:
            run_context.constitution = as_used(files.constitution, config.run_folder / USED)
            if open_stages := runner.unfinished(stages):
                check_keys(run_context, open_stages)
                _check_model(run_context, files, stages)
            # Only now: it takes seconds, and what is set wrongly is told at once.
            run_context.constitution = as_models_read(config, files.constitution, progress.say)
        constitution = run_context.constitution
        del files  # which may be large, and are checked by now
        given = (*CONSTITUTION, *GIVEN, READER, *config.judges.values(), *(f"{name}.j2" for name in VARIABLES))
        digests = {name: run_context.digest(name) for name in given}
        with RunStore.open(config.run_folder, dump(config, digests)) as store:
            store.keep_only({stage.name: number for number, stage in enumerate(every)})
            atomic_write(store.folder / USED, as_yaml(constitution).encode())
            progress.say(f"run {config.name} in {config.run_folder}, with '{constitution.name}'")
            for line in (*ways_of_answering(run_context), sampling_in_words(config), _out_of_its_world(run_context)):
                if line:
                    progress.say(line)
            if warning := _cost_of_many_principles(config, constitution):
                progress.say(warning)
            calls = Calls.sum([runner.step(store, number, stage) for number, stage in enumerate(stages)])
            if doubtful := doubtful_in(store):
                named = "principle " + doubtful[0] if len(doubtful) == 1 else "principles " + ", ".join(doubtful)
                progress.say(f"warning: the meaning of {named} is doubtful, as was said at labeler_check")
            most = f"{peak_bytes() / 1024**3:.1f} GiB of memory at most"
            progress.say(f"it took {clock(time.monotonic() - started_s)}, with {most}")
            done = f"done until {config.until}" if config.until else "done"
            asked = f"{calls.asked} model calls asked, {calls.reused} reused from the journal{calls.tokens_in_words()}"
            progress.say(f"run {config.name} is {done}: {asked}")
    return RunStore.load(config.run_folder)


def _settle_jobs(run_context: RunContext) -> None:
    """Be done with the job of a command that was killed: wait for it where it makes what this command would."""
    config, folder = run_context.config, run_context.config.run_folder
    if is_locked(folder / LOCK) or not any((folder / JOBS).glob("*.job")):
        return
    try:
        before, kept = load(folder), RunStore.load(folder).given_digests()
    except ConstitutionalError:  # of another version
        return
    if isinstance(before.launch, SlurmSettings) and before.launch.mode == "local":
        for file in (folder / JOBS).glob("*.job"):  # the number of a process of this machine, and not of Slurm
            file.unlink()
        return
    now = constitution_digests(as_used(run_context.constitution, folder / USED))
    now |= {f"{name}.j2": run_context.templates.digest(name) for name in VARIABLES}
    same = not former.deciding(before, config) and all(kept.get(name) == digest for name, digest in now.items())
    settle(folder, run_context.progress, same=same)


def doubtful_in(store: RunStore) -> list[str]:
    """The principles whose meaning is doubtful, after all the lines that were printed since that was said."""
    if "meanings" not in store.artifacts():
        return []
    return list(dict.fromkeys(row.principle for row in store.read("meanings", PrincipleMeaning) if row.doubtful))


def fetched(config: RunConfig) -> RunConfig:
    """The configuration with the sampling that models recommend, once those that are on the hub are here."""
    generator = role_settings(config.generator, config.model)
    for settings in (config.model, generator):
        path, revision = getattr(settings, "path", None), getattr(settings, "revision", None)
        if path is not None and recommended(path, revision) is None:
            model_folder(path, revision)
    return with_recommended(config)


def sampling_in_words(config: RunConfig) -> str:
    """How replies are sampled where the models recommend it and nobody said another, and what of that is not taken.

    Empty where the models recommend nothing.
    """
    usual = recommended(config.model.path, config.model.revision)
    more = not_taken(config.model.path, config.model.revision)
    left = ", ".join(f"{name} {value:g}" for name, value in more.items())
    if usual in (None, Recommended()):
        return f"sampling: {left}, as the model's generation_config.json recommends, is not taken" if left else ""
    drafts, pairs, replies = config.critique_revise, config.sample_pairs, config.evaluate
    said = {
        "critique_revise": Sampling.of(drafts.temperature, drafts.top_p, 1),
        "sample_pairs": Sampling.of(pairs.temperature, pairs.top_p, 1),
        "evaluate": Sampling.of(replies.temperature, replies.top_p, 1),
    }
    taken = [name for name, sampling in said.items() if (sampling.temperature, sampling.top_p) == usual]
    if not taken:
        return ""
    return (
        f"sampling: temperature {usual.temperature:g} and top_p {usual.top_p:g}, as the model's generation_config.json "
        f"recommends, in {', '.join(taken)}; {taken[0]}.temperature=… sets another"
        + (f"; its {left} is not taken" if left else "")
    )


def _out_of_its_world(run_context: RunContext) -> str:
    """A warning where the sandbox's model is asked what people wrote, or learns it; empty where it is not."""
    generator = run_context.given("generator")
    drafter = getattr(generator, "path", None) or getattr(generator, "model", None)
    if run_context.config.model.path == SANDBOX and drafter not in (None, SANDBOX):
        return (
            f"warning: {drafter} drafts, and what is trained is the sandbox's model, which knows the words of its own "
            "small world alone; for a model of yours type model.path=FOLDER"
        )
    if getattr(generator, "path", None) != SANDBOX or not isinstance(run_context.config.prompts, FilePrompts):
        return ""
    return (
        "warning: the prompts are put to the sandbox's model, which knows the words of its own small world alone; for "
        "any others type model.path=FOLDER, or model=smollm2_135m after `make smollm2`"
    )


def ways_of_answering(run_context: RunContext) -> Iterator[str]:
    """A line for every judge: how it is asked, which depends on what its engine gives."""
    config = run_context.config
    rewards = online.asks_labeler(config.algorithm)
    for name, role in config.judges.items():
        abilities = run_context.opened(run_context.given(role)).abilities
        yield f"{role}: {answering(config.label.method, abilities)}"
        if rewards and name == LABELER:
            yield f"{role}, as a reward: {answering('score', abilities)}"


def thinking(run_context: RunContext) -> Iterator[str]:
    """A line for every model here whose chat template lets it think before it replies; servers' are not known.

    Raises:
        ModelError: a tokenizer is one with which its model cannot answer.
    """
    config = run_context.config
    models = {role: run_context.given(role) for role in ("base", "generator", "critic", *config.judges.values())}
    alike: dict[tuple[str, str | None, str], list[str]] = {}
    for role, settings in models.items():
        if isinstance(settings, ModelSettings | VllmSettings) and settings.path not in (None, SANDBOX):
            same = (settings.path, settings.template) == (config.model.path, config.model.template)
            alike.setdefault((settings.path, settings.revision, "model" if same else role), []).append(role)
    for (path, revision, key), of in alike.items():
        from constitutional.engines.chat import ChatTokens, check_answering, load_tokenizer, thinks

        own: Any = models[of[0]]  # the others of a line have the same
        tokenizer = load_tokenizer(model_folder(path, revision), pad_token=own.pad_token, template=own.template)
        # Said here, before anything is paid for; vLLM pads nothing.
        (check_answering if isinstance(own, ModelSettings) else ChatTokens)(tokenizer)
        remedy = f'to turn that off, type "{key}.template={{enable_thinking: false}}"'
        if how := thinks(tokenizer):
            yield (
                f"warning: {path} ({', '.join(of)}) thinks before it replies. Its thoughts are left out of what it "
                "replies, but count for the lengths at which that is cut off, often several hundred tokens; "
                f"{remedy if how == 'switch' else 'its chat template has no switch for that: raise these lengths'}"
            )


def check_budgets(run_context: RunContext) -> None:
    """Refuse a budget that nothing could ever reach: of cost without prices, or of tokens that nobody counts."""
    names = (*ROLES, *run_context.config.judges.values())
    roles = {role: run_context.given(role) for role in dict.fromkeys(names)}
    priced = [role for role, settings in roles.items() if prices_of(settings) != Prices()]
    own = {f"{role}.budget": ([role], getattr(settings, "budget", Budget())) for role, settings in roles.items()}
    for key, (paid, budget) in {"budget": (list(roles), run_context.config.budget), **own}.items():
        if budget.max_cost is not None and not set(paid) & set(priced):
            advice = f"type {paid[-1]}.prices.input=… and {paid[-1]}.prices.output=…, for a million tokens"
            raise ConfigurationError(f"{key}.max_cost={budget.max_cost:g} needs prices, and there are none; {advice}")
        counted = budget.max_tokens is not None or budget.max_cost is not None
        silent = [role for role in paid if counted and isinstance(roles[role], ScriptedSettings)]
        if silent:
            limit = "max_tokens" if budget.max_tokens is not None else "max_cost"
            raise ConfigurationError(
                f"{key}.{limit} counts tokens, and the {silent[0]}'s engine does not tell how many there are; type "
                f"{key}.max_calls=… in its place"
            )


def check_keys(run_context: RunContext, stages: Iterable[Stage]) -> None:
    """Refuse a server's key that is not set, before the stages work for hours and then ask that server."""
    for need in dict.fromkeys(need for stage in stages for need in stage.needs):
        if need in ROLES or need in run_context.config.judges.values():
            settings = run_context.given(need)
            if isinstance(settings, HttpSettings):
                settings.key()


class InputFiles(NamedTuple):
    """What the files that people wrote hold, each file read once."""

    constitution: Constitution
    """With the principles and weights that the configuration chooses."""
    prompts: PromptSet
    human: HumanComparisons | None
    """People's comparisons; None where no file of them is named."""


def ready(config: RunConfig) -> InputFiles:
    """Read and check every file that people wrote and the configuration names.

    Before a folder is made and a model is loaded: what is wrong in one would else be found hours later, in a folder
    that is bound to what it was begun with.

    Raises:
        ConstitutionalError: one of them is wrong.
    """
    constitution = selected(config)
    for purpose in PURPOSES:
        if purpose == "comparison" or config.critique_revise.rounds:
            constitution.used_for(purpose)
    prompts = prompts_of(config.prompts, config.seed)
    if config.critique_revise.few_shot_file is not None:
        critique_revise.read_shots(config.critique_revise.few_shot_file)
    if config.sft.helpful is not None:
        sft.read_helpful(config.sft.helpful)
    human = read_comparisons(config.mix.human, seed=config.seed) if config.mix.human is not None else None
    if not config.spotcheck.votes:  # how many preferences these votes make is known only later
        mix.check_amounts(human.preferences if human else (), prompts.prompts, config.mix, config.seed)
    _check_answers(config, constitution, prompts)
    check_installed(config.report_to)
    _check_training(config)
    if isinstance(config.algorithm, OnlineSettings):
        online.check(config.algorithm, config.labeler)
    if getattr(config.algorithm, "sampler", "") == "vllm":
        vllm_version()
    load_sets(config.evaluate.sets)
    for model in filter(None, (config.evaluate.gold_reward_model, config.spotcheck.reward_model)):
        if not (any((model / name).exists() for name in ("config.json", NORMALISATION)) and has_members(model)):
            raise InputError(model, "holds no reward model; name a folder such as runs/NAME/07_reward/reward_model")
        check_reward_model(model)
    return InputFiles(constitution, prompts, human)


def _check_training(config: RunConfig) -> None:
    """Refuse processes and kernels that this machine cannot train with, and dropout where there would be none."""
    distributed.check(config)
    for name in ("sft", "reward", "algorithm"):
        settings = getattr(config, name)
        if isinstance(settings, TrainingSettings):
            check_kernels(settings, name)
            if settings.use_liger_kernel:
                check_architecture(read_config(config_file(config.model.path, config.model.revision)).model_type)
        if name != "sft" and isinstance(settings, NetworkSettings):
            check_dropout(settings, name)


def _check_answers(config: RunConfig, constitution: Constitution, prompts: PromptSet) -> None:
    """Refuse files of people's answers that are wrong in themselves; what they are about may not be made yet.

    And people who cannot be simulated.
    """
    if config.spotcheck.simulate is not None and config.spotcheck.votes:
        check_simulation(constitution, prompts.prompts)
    for verdicts in filter(None, (config.spotcheck.verdicts, config.mix.verdicts, config.report.verdicts)):
        read_verdicts(verdicts, None)
    if config.report.violations is not None:
        read_answers(config.report.violations, None)


def _check_model(run_context: RunContext, files: InputFiles, stages: Iterable[Stage]) -> None:
    """Refuse a model that cannot be trained, and prompts and pairs that it cannot read, before drafts are paid for.

    Pairs that are too long are left out and counted later. Of models that will think, it is said.
    """
    config = run_context.config
    folder, model = model_folder(config.model.path, config.model.revision), config.model
    if training := [stage for stage in stages if stage.trains]:
        from constitutional.training.preflight import preflight_folder

        scorer = any("reward_model" in stage.makes for stage in training)
        preflight_folder(folder, pad_token=model.pad_token, template=model.template, scorer=scorer)
    from constitutional.engines.chat import room_to_reply

    lengths = {
        "critique_revise.draft_max_tokens": config.critique_revise.draft_max_tokens,
        "sample_pairs.max_tokens": config.sample_pairs.max_tokens,
        "evaluate.max_tokens": config.evaluate.max_tokens,
    }
    if isinstance(config.algorithm, OnlineSettings):
        lengths["algorithm.max_tokens"] = config.algorithm.max_tokens
    setting, most = max(lengths.items(), key=itemgetter(1))
    check = room_to_reply(folder, most, pad_token=model.pad_token, template=model.template)
    for index, prompt in enumerate(files.prompts.prompts):
        try:
            check(prompt.messages)
        except ModelError as error:
            if files.prompts.places:
                raise files.prompts.places[index].error(str(error)) from error
            raise ConfigurationError(f"{setting}={most}: {error}") from error
    if files.human is not None:
        from constitutional.engines.chat import check_system, load_tokenizer
        from constitutional.training.rows import chat, token_ids

        tokenizer = load_tokenizer(folder, pad_token=model.pad_token, template=model.template)

        def readable(messages: Sequence[Message]) -> None:
            check_system(tokenizer, messages)
            token_ids(tokenizer, chat(messages))

        check_pairs(files.human, readable)
    for line in thinking(run_context):
        run_context.progress.say(line)


MANY_CALLS: Final = 20_000
"""Critiques in an evaluation beyond which a run says so beforehand."""


def _cost_of_many_principles(config: RunConfig, constitution: Constitution) -> str | None:
    """A warning where the principles make the evaluation long; None where they do not."""
    prompts = min(config.evaluate.critiqued, config.evaluate.prompts)
    principles = len(constitution.principles) + len(constitution.left_out) * config.evaluate.left_out
    calls = principles * len(evaluate.MODELS) * prompts
    if calls <= MANY_CALLS:
        return None
    return (
        f"warning: the evaluation asks for up to {calls:,} critiques: {principles:,} principles by "
        f"{len(evaluate.MODELS)} models by {prompts} prompts; lower evaluate.critiqued, or "
        + (
            "set evaluate.left_out=false, which judges by the run's own principles alone"
            if constitution.left_out and config.evaluate.left_out
            else "choose principles with constitution.only=[…] and evaluate.left_out=false"
        )
    )


class _Planned(NamedTuple):
    """A stage, and what it would be made from now."""

    fingerprint: str
    needs: Mapping[str, str]
    files: Mapping[str, str]
    place: Path
    """Where it is made, or was."""


class Runner:
    """Runs a stage after the other, each only where its output is not there yet."""

    def __init__(self, run_context: RunContext, outputs: Outputs) -> None:
        self.run_context = run_context
        self.outputs = outputs
        self.say = run_context.progress.say
        self._entries: dict[str, StageEntry] = {}
        """What is known of the stages so far, by name."""

    def unfinished(self, stages: Sequence[Stage]) -> list[Stage]:
        """The stages that will be run, as far as is known before."""
        finished = self.finished(stages)
        return [stage for stage in stages if stage.name not in finished]

    def finished(self, stages: Sequence[Stage]) -> dict[str, tuple[Path, StageEntry]]:
        """The stages whose output is there, by name, and where it is; those after what is not made yet are unknown."""
        entries: dict[str, StageEntry] = {}
        places: dict[str, tuple[Path, StageEntry]] = {}
        for number, stage in enumerate(stages):
            made = {name for entry in entries.values() for name in entry.artifacts}
            known = all(is_given(need) or need in made for need in stage.needs)
            if not known or (stage.reads_summaries and len(entries) < number):
                continue
            place = self._plan(stage, entries).place
            if entry := self.outputs.finished(place):
                entries[stage.name] = entry
                places[stage.name] = (place, entry)
        return places

    def step(self, store: RunStore, number: int, stage: Stage) -> Calls:
        """Run one stage, or find that it is done, and say which; returns what it asked of models just now."""
        planned, heading = self._plan(stage, self._entries), f"{number:02d} {stage.name}"
        link = store.manifest.stages.get(stage.name)
        changed = link is not None and link.finished and link.output != planned.place.name
        calls = Calls()
        with self.outputs.claimed(planned.place, lambda text: self.say(f"{heading}: {text}")):
            if not self._use_again(store, number, stage, planned.place):
                self.say(f"{heading}: running" + ("; its settings or inputs have changed" if changed else ""))
                calls = self._run(store, number, stage, planned)
                self._write_cards(store, stage.makes)
        if stage.name == "evaluate":  # its figures complete the cards, whichever run trained the models
            self._write_cards(store, TRAINED)
        self._entries[stage.name] = store.stages[stage.name]
        if "meanings" in stage.makes and self.run_context.config.understanding == "strict":
            as_written = [row.id for row in self.run_context.constitution.principles if row.as_written]
            check_meanings(store.read("meanings", PrincipleMeaning), as_written)
        return calls

    def _write_cards(self, store: RunStore, models: Sequence[str]) -> None:
        for warning in write_cards(store, self.run_context.config, self.run_context.constitution, models):
            self.say(warning)

    def _plan(self, stage: Stage, before: Mapping[str, StageEntry]) -> _Planned:
        """What a stage would be made from, after the stages before it have made what is known of them."""
        made = {name: artifact.sha256 for entry in before.values() for name, artifact in entry.artifacts.items()}
        needs = {need: self.run_context.digest(need) if is_given(need) else made[need] for need in stage.needs}
        if stage.reads_summaries:
            needs |= {f"{name} summary": entry.artifacts["summary"].sha256 for name, entry in before.items()}
            needs[CONFIGURATION] = self.run_context.config.digest
        files = files_of(stage.settings)
        fingerprint = fingerprint_of(stage, self.run_context.config.seed, needs, files)
        return _Planned(fingerprint, needs, files, self.outputs.place(stage.name, fingerprint))

    def _use_again(self, store: RunStore, number: int, stage: Stage, place: Path) -> bool:
        entry, heading = self.outputs.finished(place), f"{number:02d} {stage.name}"
        if entry is None:
            return False
        if problem := damage(place, entry):
            aside = self.outputs.put_aside(place)
            self.say(f"{heading}: {problem}; what is left of it is now in {aside}, and the stage runs anew")
            return False
        drop_checkpoints(place)  # a kill may have come between the two
        store.finish(number, stage.name, place, entry)
        self.say(f"{heading}: done before, used again")
        self._say_again(store, stage, entry)
        return True

    def _say_again(self, store: RunStore, stage: Stage, entry: StageEntry) -> None:
        """What a finished stage said of principles, and what it warned of."""
        if "meanings" in stage.makes:  # what was understood is said in every run
            for line in lines(store.read("meanings", PrincipleMeaning)):
                self.say(f"  {line}")
        for warning in entry.warnings:
            self.say(f"warning: {stage.name}: {warning}")

    def _run(self, store: RunStore, number: int, stage: Stage, planned: _Planned) -> Calls:
        heading = f"{number:02d} {stage.name}"
        if stage.trains:
            self.run_context.release()
        folder = store.begin(number, stage.name, planned.place)
        begun = Begun.now(stage.name, planned.fingerprint, planned.needs, planned.files, folder)
        context = RunStageContext(self.run_context, store, begun)
        try:
            elsewhere = self._make(stage, context)
        except KeyboardInterrupt:
            self.say(f"{heading}: stopped; the same command goes on from here")
            raise
        except WaitingError:
            self.say(f"{heading}: waits for people")
            raise
        except BudgetError:
            calls = context.calls
            self.say(f"{heading}: stopped after {calls.asked} calls{calls.tokens_in_words()}; all answers are kept")
            raise
        except Exception as error:
            store.fail(stage.name, str(error) or type(error).__name__)
            raise
        entry = elsewhere or self._finish(stage, begun, context)
        store.finish(number, stage.name, planned.place, entry)
        if elsewhere:
            self._say_again(store, stage, entry)
        self.say(f"{heading}: done in {clock(entry.seconds)}{_made(entry)}")
        return entry.calls

    def _make(self, stage: Stage, context: RunStageContext) -> StageEntry | None:
        """Do a stage's work here; or where `launch` says, which finishes the stage and returns what is known of it."""
        config, launch = self.run_context.config, self.run_context.config.launch
        if isinstance(launch, AccelerateSettings) and stage.trains:
            distributed.make(stage, context, launch, self.run_context.progress)
            return None
        if not (isinstance(launch, SlurmSettings) and self._needs_gpu(stage)):
            _do(stage, context)
            return None
        self.run_context.hand_over()
        output = context.begun.folder.resolve().name  # the run's own folder is a link
        nodes = launch.nodes if stage.trains else 1
        end = in_job(launch, make_in_job, config.run_folder, output, self.run_context.progress, nodes=nodes)
        context.calls_elsewhere = end.calls
        if end.error is not None:
            raise end.error
        return end.entry

    def _needs_gpu(self, stage: Stage) -> bool:
        """Whether a stage trains, or asks a model that is in the memory of the machine that asks it."""
        roles = [need for need in stage.needs if need in GIVEN or need.startswith("panel.")]
        models = [self.run_context.given(role) for role in roles]
        here = [model for model in models if not isinstance(model, HttpSettings | ScriptedSettings)]
        return stage.trains or not all(map(self.run_context.on_cluster, here))

    def _finish(self, stage: Stage, begun: Begun, context: RunStageContext) -> StageEntry:
        artifacts = {**context.written, **{name: context.made(name) for name in stage.makes}}
        assert context.own_summary is not None, f"stage '{stage.name}' ended without a summary"
        return self.outputs.finish(begun, artifacts, context.calls, context.own_summary, context.warnings)

    def make_alone(self, store: RunStore, stage: Stage, before: Sequence[Stage], output: str) -> JobEnd:
        """Make one stage of a run that another process has and waits with, and finish it.

        Args:
            store: the run, for reading.
            stage: the stage.
            before: the stages before it, which are finished.
            output: the name of the output that the other process waits for.
        """
        planned = self._plan(stage, {earlier.name: store.stages[earlier.name] for earlier in before})
        if planned.place.name != output:
            raise RunError(
                f"{store.folder}: the job would make {stage.name} from other inputs ({planned.place.name}) than the "
                f"command that submitted it ({output}); both need the same installation and the same files, under the "
                "same paths and unchanged while the job waits; then start the command again"
            )
        folder = store.stage_folder(stage.name)
        begun = Begun.now(stage.name, planned.fingerprint, planned.needs, planned.files, folder)
        context = RunStageContext(self.run_context, store, begun)
        # A job whose command was killed may be making it still, or have made it.
        with self.outputs.claimed(planned.place.with_name(f"{output}.job"), self.say):
            if entry := self.outputs.finished(planned.place):
                return JobEnd(entry, Calls())
            try:
                if stage.trains and (node := node_of_job(self.run_context.config.launch)):
                    distributed.check_machine(node)
                    distributed.make(stage, context, node, self.run_context.progress)
                else:
                    _do(stage, context)
                return JobEnd(self._finish(stage, begun, context), context.calls)
            except ConstitutionalError as error:
                return JobEnd(None, context.calls, error)


def make_in_job(folder: Path, output: str) -> JobEnd:
    """In a job: make one stage of the run in a folder, whose command waits and holds the run's locks.

    On another node of the job than the first: train along.
    """
    try:
        config = load(folder)
        node, progress = node_of_job(config.launch), Progress()
        if node and node.machine_rank:
            with _terminable():
                distributed.train_along(folder, node, progress, partial(first_has_ended, folder, output))
            return JobEnd(None, Calls())
        stages = stages_of(config)
        number = [stage.name for stage in stages].index(output.rpartition("-")[0])
        first = as_first(folder, output) if node and node.machines > 1 else nullcontext()
        with _terminable(), first, RunContext.joining(config, progress) as run_context:
            runner = Runner(run_context, Outputs(config.outputs_folder))
            return runner.make_alone(RunStore.load(folder), stages[number], stages[:number], output)
    except ConstitutionalError as error:
        return JobEnd(None, Calls(), error)


def _do(stage: Stage, context: RunStageContext) -> None:
    with nullcontext() if stage.trains else rare_collections():  # what trains may leave a GPU's tensors in cycles
        stage.run(stage.settings, context)


def _made(entry: StageEntry) -> str:
    """What a stage made and asked, behind a comma each."""
    counts = {name: artifact.rows for name, artifact in entry.artifacts.items() if artifact.rows is not None}
    rows = "".join(f", {count} {name}" for name, count in counts.items())
    calls = entry.calls
    if not calls.answers:
        return rows
    return f"{rows}, {calls.asked} calls asked, {calls.reused} reused{calls.tokens_in_words()}"


def fingerprint_of(stage: Stage, seed: int, needs: Mapping[str, str], files: Mapping[str, str] | None = None) -> str:
    """SHA-256 of everything that decides what a stage makes, the contents of files that its settings name included.

    Those are read, unless `files` says what `files_of` found in them. Settings that change no result, and settings at
    their defaults, are not in it.
    """
    files = files_of(stage.settings) if files is None else files
    depends_on = {
        "stage": stage.name,
        "version": stage.version,
        "settings": decisive(stage.settings, lambda path: files[str(path)]),
        "seed": seed if stage.seeded else None,
        "needs": dict(needs),
    }
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()


def files_of(settings: BaseModel) -> dict[str, str]:
    """SHA-256 of every file and folder that a stage's settings name, by path.

    Of a policy that was trained elsewhere it is the one that it was adopted with: its folder may be gone by now.

    Raises:
        InputError: one of them cannot be read.
    """
    if isinstance(settings, adopted.Settings) and settings.digest:
        return {str(settings.folder): settings.digest}
    digests = {}
    for path in sorted(set(_paths(settings.model_dump()))):
        try:
            digests[str(path)] = digest_of(path)
        except OSError as error:
            raise InputError(path, f"cannot be read: {error.strerror}") from error
    return digests


def _paths(value: object) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(part)


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
    """A run folder, for reading: its artifacts, summaries and manifest.

    Raises:
        UsageError: the folder holds no run.
        RunError: it is damaged.
    """
    return RunStore.load(Path(folder))


def compare(stores: Sequence[RunStore], out: Path) -> Path:
    """One page for several finished runs, a sweep's for example, each with the constitution of its own report.

    A run's name on the page is the end of its folder's path, as long as it takes to tell the runs apart. A folder that
    is named twice is shown once.

    Raises:
        RunError: a run is not finished, or damaged.
    """
    by_folder = {store.folder.resolve(): store for store in stores}
    reports = []
    for name, store in zip(labels(list(by_folder)), by_folder.values(), strict=True):
        config, constitution = load(store.folder), reported_constitution(store)
        needs = store.stages["report"].needs
        report = gather.gather(config.report, FinishedRun(store, constitution, config, "report", needs))
        reports.append(report.model_copy(update={"name": name}))
    atomic_write(out, render(reports).encode("utf-8", "backslashreplace"))
    return out


def reported_constitution(store: RunStore) -> Constitution:
    """The constitution of a finished run, as its report kept it.

    Nothing that the configuration names is read again: it may have been edited, moved or deleted since.

    Raises:
        RunError: it is damaged.
    """
    if "report" not in store.stages:
        last = f"its last finished stage is '{list(store.stages)[-1]}'" if store.stages else "no stage is finished"
        command = shlex.join(["constitutional", "run", f"from={store.folder}", f"name={typed(store.folder.name)}"])
        raise RunError(f"{store.folder}: has no report yet, and {last}; `{command}` finishes it")
    kept = store.artifact(gather.CONSTITUTION)
    try:
        return Constitution.model_validate_json(kept.read_bytes())
    except (OSError, ValueError) as error:
        raise RunError(f"{kept}: is damaged; the command that made the run makes it anew") from error


def labels(folders: Sequence[Path]) -> list[str]:
    """For each folder, which is absolute, the shortest end of its path that no other folder's path has."""
    labels = []
    for folder in folders:
        ends = ["/".join(folder.parts[-depth:]) for depth in range(1, len(folder.parts) + 1)]
        others = [other.as_posix() for other in folders if other != folder]
        labels.append(next((end for end in ends if not any(other.endswith(f"/{end}") for other in others)), ends[-1]))
    return labels
