"""What a run would ask, cost and take, from a handful of items, before it is paid for.

The stages that ask models run on some prompts; training does not, and a model that is not trained yet is stood in for
by the one that it is trained from. What was measured is then scaled to the number of items that the real stages have.
The journal keeps the handful's answers, so that the run does not pay for them again. How much of the rest the journal
holds is found by running the stages on everything without asking a model.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import StringIO
from typing import Any, Final, NamedTuple

from constitutional.base.errors import RunError, UsageError
from constitutional.base.progress import Progress, clock
from constitutional.base.records import Comparison, Message, Prompt
from constitutional.base.templates import load_prompts
from constitutional.base.text import table
from constitutional.data.evaluation import draw, load_sets
from constitutional.engines.settings import Budget
from constitutional.engines.spending import Calls, Ledger, money
from constitutional.judging.accuracy import PrincipleAccuracy, trusted_principles
from constitutional.judging.evaluation import steps
from constitutional.judging.gold import mean_scores
from constitutional.judging.labeler import Labeler, LabelerSettings
from constitutional.runs.compose import freeze
from constitutional.runs.context import Opener, RunContext, as_models_read
from constitutional.runs.folder import read_forecast, write_forecast
from constitutional.runs.outputs import Outputs
from constitutional.runs.pipeline import Stage, stages_of, up_to
from constitutional.runs.runner import Runner, check_budgets, check_keys, fetched, ready
from constitutional.runs.scratch import Replayed, Scratch, ScratchContext, Unasked, asking, replay, scratch_run
from constitutional.runs.settings import RunConfig
from constitutional.sandbox.prompts import SANDBOX
from constitutional.stages import evaluate, grpo, online
from constitutional.stages.context import StageForecast

ITEMS: Final = 8
"""Prompts of the handful, for training and for evaluation."""


class Measured(NamedTuple):
    """What a role did for the handful in a stage, and how many times as much it will do for all items."""

    calls: Calls
    """Asked of a model."""
    saved: Calls
    """Answered by the journal, with what the answers would have cost."""
    times: float

    @property
    def every(self) -> Calls:
        """All its answers, wherever they came from."""
        return Calls.sum([self.calls, self.saved])


class Forecast(NamedTuple):
    """What a run is expected to ask from now on."""

    stages: dict[str, StageForecast]
    """By name, in running order."""
    exceeded: tuple[str, ...]
    """A sentence for every budget that is too low."""
    stops: tuple[str, ...] = ()
    """Why the run will stop before it labels, if it will."""


class Sizes(NamedTuple):
    """Items of the handful, and of the whole run."""

    train: tuple[int, int]
    evaluated: tuple[int, int]
    judged: tuple[int, int]
    critiqued: tuple[int, int]

    @classmethod
    def of(cls, train: tuple[int, int], evaluated: tuple[int, int], settings: evaluate.Settings) -> "Sizes":
        """From the prompts alone; the labeler and the critic judge some of those that are evaluated."""
        judged, critiqued = (
            (min(evaluated[0], most), min(evaluated[1], most)) for most in (settings.judged, settings.critiqued)
        )
        return cls(train, evaluated, judged, critiqued)

    def times(self, stage: str, role: str) -> float:
        """How many times as much a role does in a stage for all items as for the handful."""
        if stage == "labeler_check":
            return 1.0  # the constitution's examples, whole
        if stage != "evaluate":
            some, whole = self.train
        else:
            some, whole = {"labeler": self.judged, "critic": self.critiqued}.get(role, self.evaluated)
        return whole / some if some else 0.0


def forecast(
    config: RunConfig, *, items: int = ITEMS, opener: Opener | None = None, progress: Progress | None = None
) -> Forecast:
    """Measure a handful of items, and say what the whole run will ask.

    It asks models, within the run's budgets, and keeps their answers in the journal. It leaves `forecast.json` in the
    run folder, for the report.

    Args:
        config: the run.
        items: prompts of the handful, for training and for evaluation; 2 or more.
        opener: makes an engine of a model's settings; None means the model itself.
        progress: says how far this is; None means on standard error.

    Raises:
        ConstitutionalError: as `run`, for what goes wrong before anything is trained.
    """
    if items < 2:
        raise UsageError(f"--items {items} is too few to compare replies; give 2 or more")
    config = freeze(config)
    files, templates = ready(config), load_prompts(config.templates)
    if opener is None:
        config = fetched(config)
    stages = up_to(config.until, stages_of(config))
    with RunContext(config, files.constitution, templates, progress or Progress(), opener) as run_context:
        check_budgets(run_context)
        if opener is None:
            run_context.constitution = as_models_read(config, files.constitution, run_context.progress.say)
        finished = Runner(run_context, Outputs(config.outputs_folder)).finished(stages)
        if opener is None:
            check_keys(run_context, [stage for stage in asking(stages) if stage.name not in finished])
        with scratch_run(run_context, stages, finished) as scratch:
            measured, seconds = _measure(scratch, stages, items)
        run_context.progress = Progress(StringIO())  # nothing is asked from here on
        with scratch_run(run_context, stages, finished) as scratch:
            stops = tuple(_stops(scratch, [stage for stage in stages if stage.name not in finished]))
            replayed = replay(scratch, list(map(_tolerant, stages)), Unasked(run_context))
        former = read_forecast(config.run_folder)
        rows, roles = {}, list[tuple[str, Calls]]()
        for stage in stages:
            rows[stage.name], left = _row(stage, stage.name in finished, measured, replayed, seconds, former)
            roles += left
        exceeded = tuple(_exceeded(run_context.ledger, roles))
    write_forecast(config.run_folder, {name: row for name, row in rows.items() if row.calls or row.done or row.trains})
    return Forecast(rows, exceeded, stops)


def _tolerant(stage: Stage) -> Stage:
    """The stage, which goes on however bad the labeler is: a forecast is wanted then too."""
    if stage.name != "labeler_check":
        return stage
    return replace(stage, settings=stage.settings.model_copy(update={"max_canary_failures": 1.0}))


def _stops(scratch: Scratch, stages: Sequence[Stage]) -> Iterator[str]:
    """Why the run will stop at the labeler's trial, by the answers that the journal has by now."""
    for stage in stages:
        if stage.name == "labeler_check":
            try:
                stage.run(stage.settings, scratch.begin(stage, Unasked(scratch.run_context)))
            except RunError as error:
                yield f"the run will stop at {stage.name}: {error}"


def _measure(
    scratch: Scratch, stages: Sequence[Stage], items: int
) -> tuple[dict[str, dict[str, list[Measured]]], dict[str, float]]:
    """What every role does for the handful, by stage and role, and the seconds that each stage took."""
    run_context, config = scratch.run_context, scratch.run_context.config
    measured: dict[str, dict[str, list[Measured]]] = {}
    seconds: dict[str, float] = {}
    some: frozenset[str] = frozenset()
    sizes = Sizes.of((0, 0), (0, 0), config.evaluate)
    done = set(scratch.store.stages)
    for stage in map(_tolerant, asking(stages)):
        if stage.name not in scratch.store.stages:
            if stage.name == "evaluate" and sizes.evaluated[0] < 2:
                continue  # the stage itself measures nothing then
            if stage.name != "prompts":
                run_context.progress.say(f"{stage.name}: measuring a handful")
            context, started_s = scratch.begin(stage, None, some), time.monotonic()
            stage.run(_without_sets(stage.settings), context)
            scratch.finish(stage, context)
            seconds[stage.name] = time.monotonic() - started_s
            measured[stage.name] = {
                role: [Measured(engine.calls, engine.saved, sizes.times(stage.name, role))]
                for role, engine in context.counted.items()
            }
        if stage.name == "prompts":
            prompts = scratch.store.stream("prompts", Prompt)
            train = [prompt.id for prompt in prompts if prompt.split == "train"]
            held_out = evaluate.held_out(prompts, config.evaluate.prompts, config.seed)
            some = frozenset([*train[:items], *(prompt.id for prompt in held_out[:items])])
            sizes = Sizes.of(
                (min(items, len(train)), len(train)), (min(items, len(held_out)), len(held_out)), config.evaluate
            )
    for name, engine_calls in _scores(scratch, stages, some, sizes):
        measured.setdefault(name, {}).setdefault("labeler", []).append(engine_calls)
    if "evaluate" not in done and any(stage.name == "evaluate" for stage in stages):
        started_s = time.monotonic()
        for role, engine_calls in _sets(scratch, stages, items):
            measured.setdefault("evaluate", {}).setdefault(role, []).append(engine_calls)
        seconds["evaluate"] = seconds.get("evaluate", 0.0) + time.monotonic() - started_s
    return measured, seconds


def _without_sets(settings: Any) -> Any:  # noqa: ANN401 - a stage's settings, of any kind
    """The settings of a stage that leave evaluation sets out: these have other items than the prompts' handful."""
    if not isinstance(settings, evaluate.Inputs):
        return settings
    return settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"sets": ()})})


def _sets(scratch: Scratch, stages: Sequence[Stage], items: int) -> Iterator[tuple[str, Measured]]:
    """By role, what is done for a handful of every evaluation set, by all three models."""
    (stage,) = (stage for stage in asking(stages) if stage.name == "evaluate")
    inputs, seed = stage.settings, scratch.run_context.config.seed
    assert isinstance(inputs, evaluate.Inputs)
    for evaluation in load_sets(inputs.evaluate.sets):
        context = scratch.begin(stage)
        trusted = trusted_principles(context.constitution, context.read("labeler_accuracy", PrincipleAccuracy))
        whole, some = (draw(evaluation, rows, seed) for rows in (inputs.evaluate.set_rows, items))
        evaluate.set_scores([some], inputs, trusted, context)
        subject = evaluate.subject_of("base", inputs, trusted, context)
        times = steps(whole, subject) / steps(some, subject)
        for role, engine in context.counted.items():
            yield role, Measured(engine.calls, engine.saved, times)


def _scores(
    scratch: Scratch, stages: Sequence[Stage], some: frozenset[str], sizes: Sizes
) -> Iterator[tuple[str, Measured]]:
    """What the labeler does for replies of an online training: as the reward, or afterwards as the gold score."""
    config = scratch.run_context.config
    training = next((stage for stage in stages if stage.name in ("ppo", "grpo", "rloo")), None)
    if training is None or training.name in scratch.store.stages or "comparisons" not in scratch.store.artifacts():
        return
    label = next(stage for stage in asking(stages) if stage.name == "label")
    context = scratch.begin(label, None, some)
    replies = online_replies(config.algorithm, sizes.train[1])
    from_sandbox = any(prompt.source == SANDBOX for prompt in scratch.store.stream("prompts", Prompt))
    if online.asks_labeler(config.algorithm):
        yield training.name, _scored(context, config.label, replies)
    elif not from_sandbox and context.engine("labeler").abilities.choices and stages[-1].name in ("evaluate", "report"):
        yield "evaluate", _scored(context, config.label, min(replies, config.evaluate.gold_replies))


def online_replies(algorithm: object, prompts: int) -> int:
    """How many replies an online training draws."""
    if isinstance(algorithm, grpo.Settings):
        wanted = round(algorithm.epochs * prompts)
        return (wanted - wanted % algorithm.prompts_per_step) * algorithm.num_generations
    episodes = getattr(algorithm, "episodes", 0)
    phase = getattr(algorithm, "rows_per_step", 1) * getattr(algorithm, "mini_batches", 1)
    return math.ceil(episodes / phase) * int(phase)


def _scored(context: ScratchContext, settings: LabelerSettings, replies: int) -> Measured:
    comparisons = context.read("comparisons", Comparison)
    conversations = [
        (*row.prompt.messages, Message("assistant", text)) for row in comparisons for text in (row.a, row.b)
    ]
    trusted = trusted_principles(context.constitution, context.read("labeler_accuracy", PrincipleAccuracy))
    labeler = Labeler(context.engine("labeler"), context.prompts, settings, context.seed)
    list(mean_scores(trusted, conversations, labeler))
    counted = context.counted["labeler"]
    return Measured(counted.calls, counted.saved, replies / len(conversations) if conversations else 0.0)


def _row(
    stage: Stage,
    done: bool,
    measured: Mapping[str, Mapping[str, Sequence[Measured]]],
    replayed: Mapping[str, Replayed],
    seconds: Mapping[str, float],
    former: Mapping[str, StageForecast],
) -> tuple[StageForecast, list[tuple[str, Calls]]]:
    """A stage's line, and what every role has still to be asked in it."""
    if done:
        return StageForecast(stage=stage.name, done=True), []
    known = replayed.get(stage.name)
    total, left = 0, list[tuple[str, Calls]]()
    for role, parts in measured.get(stage.name, {}).items():
        calls = sum(scaled(part).asked for part in parts)
        held = known.held.get(role, 0) if known else 0
        if known:
            missing = known.missing.get(role, 0)
            calls = max(calls, held + missing) if known.missing else held
        total += calls
        left.append((role, share_of(Calls.sum(map(scaled, parts)), calls - held)))
    whole = Calls.sum(calls for _, calls in left)
    asked = sum(part.calls.asked for parts in measured.get(stage.name, {}).values() for part in parts)
    per_call_s = seconds.get(stage.name, 0.0) / asked if asked else _former_pace(former.get(stage.name))
    row = StageForecast(
        stage=stage.name,
        trains=stage.trains,
        calls=total,
        held=sum(known.held.values()) if known else None,
        prompt_tokens=whole.prompt_tokens,
        completion_tokens=whole.completion_tokens,
        cost=whole.cost,
        seconds=None if stage.trains or per_call_s is None else per_call_s * whole.asked,
    )
    return row, left


def _former_pace(row: StageForecast | None) -> float | None:
    """Seconds a call by an earlier forecast, whose handful the journal now answers; None where there was none."""
    if row is None or row.seconds is None or row.calls == (row.held or 0):
        return None
    return row.seconds / (row.calls - (row.held or 0))


def scaled(part: Measured) -> Calls:
    """What a role does for all items, every answer as if it had been asked."""
    every, times = part.every, part.times
    return Calls(
        asked=round(every.answers * times),
        prompt_tokens=round(every.prompt_tokens * times),
        cached_tokens=round(every.cached_tokens * times),
        completion_tokens=round(every.completion_tokens * times),
        cost=every.cost * times,
    )


def share_of(calls: Calls, asked: int) -> Calls:
    """As much of some calls as so many of them take."""
    share = asked / calls.asked if calls.asked else 0.0
    return Calls(
        asked=asked,
        prompt_tokens=round(calls.prompt_tokens * share),
        cached_tokens=round(calls.cached_tokens * share),
        completion_tokens=round(calls.completion_tokens * share),
        cost=calls.cost * share,
    )


def _exceeded(ledger: Ledger, roles: Sequence[tuple[str, Calls]]) -> Iterator[str]:
    """A sentence for every budget that the forecast, with what is spent, goes beyond."""
    everyone = {role: [calls for name, calls in roles if name == role] for role, _ in roles}
    by_key = {f"{role}.budget": (ledger.budgets.get(role, Budget()), [role]) for role in everyone}
    for key, (budget, names) in {**by_key, "budget": (ledger.whole, list(everyone))}.items():
        spent = Calls.sum(
            ledger.spent.get(name, Calls()) for name in {*names, *(ledger.spent if key == "budget" else ())}
        )
        left = Calls.sum(calls for name in names for calls in everyone[name])
        for limit, before, more in (
            ("max_calls", spent.asked, left.asked),
            ("max_tokens", spent.tokens, left.tokens),
            ("max_cost", spent.cost, left.cost),
        ):
            most = getattr(budget, limit)
            if most is not None and before + more > most:
                told = [money(number) if limit == "max_cost" else f"{number:,}" for number in (before, more)]
                yield f"{key}.{limit}={most:g} will be reached: {told[0]} are spent, and {told[1]} more are expected"


def as_table(expected: Forecast) -> str:
    """The forecast for people, with what it leaves out."""
    rows: list[tuple[str, ...]] = [("stage", "", "calls", "journal", "read", "written", "cost", "time", "")]
    stages = list(expected.stages.values())
    for row in stages:
        if row.calls or row.done or row.trains:
            state = "done" if row.done else "trains" if row.trains else ""
            rows.append((row.stage, state, *_cells(row), ""))
    asked = [row for row in stages if row.calls]
    times = [row.seconds for row in asked]
    whole = StageForecast(
        stage="all",
        calls=sum(row.calls for row in asked),
        held=sum(row.held or 0 for row in asked),
        prompt_tokens=sum(row.prompt_tokens for row in asked),
        completion_tokens=sum(row.completion_tokens for row in asked),
        cost=sum(row.cost for row in asked),
        seconds=None if None in times else sum(time for time in times if time is not None),
    )
    rows.append((whole.stage, "", *_cells(whole), ""))
    notes = [
        "journal: calls that it answers, ? where only training will tell; tokens, cost and time are of the rest",
        "time: at most, as more requests at once take less each; – for training, and where the journal answered all",
    ]
    return "\n".join(
        [table(rows), *notes, *(f"warning: {sentence}" for sentence in (*expected.stops, *expected.exceeded))]
    )


def _cells(row: StageForecast) -> tuple[str, ...]:
    if row.done:
        return ("0", "", "", "", "", "")
    if not row.calls:
        return ("0", "", "", "", "", "–" if row.trains else "")
    tokens = (f"{count:,}" if count else "–" for count in (row.prompt_tokens, row.completion_tokens))
    held = "?" if row.held is None else f"{row.held:,}"
    cost = money(row.cost) if row.cost else "–"
    return (f"{row.calls:,}", held, *tokens, cost, "–" if row.seconds is None else clock(row.seconds))
