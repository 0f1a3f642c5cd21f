"""Stages that are run to learn what they ask, in a temporary folder: nothing that they make is kept.

Answers come from the journal as ever. Nothing is trained: a model that is not trained yet may be stood in for by the
one that it is trained from.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple, TypeVar

from constitutional.base.errors import ConstitutionalError
from constitutional.base.records import Comparison, Prompt, Record, Revision
from constitutional.base.shards import RowStream
from constitutional.engines.base import Completion, Engine, ForwardingEngine, Request, Session, Ticket
from constitutional.engines.journal import JournalEngine, Keys
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import EngineSettings, HttpSettings
from constitutional.engines.spending import Calls
from constitutional.runs.context import RunContext, RunStageContext, is_given
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import StageEntry
from constitutional.runs.outputs import Begun, Outputs
from constitutional.runs.pipeline import Stage
from constitutional.stages import evaluate

R = TypeVar("R", bound=Record)
ASKING: Final = ("prompts", "labeler_check", "critique_revise", "sample_pairs", "label", "evaluate")
"""The stages that ask models and train nothing, and the one that makes their prompts."""
UNASKED: Final = Completion("", "error", reason="the journal has no answer yet")
OTHER_SEED: Final = {"sft_model": 1, "policy": 2}
"""What is added to the seeds of a model's stand-in, so that the models' replies differ as those of the models would."""
SEEDS: Final = 2**32


class UnaskedEngine(ForwardingEngine):
    """In the place of a model: it answers nothing and keeps what it was asked, by the journal's key."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self.requests: dict[str, Request] = {}
        self._keys = Keys(engine.identity)

    def session(self) -> Session:
        """A new session."""
        return ScriptedEngine(self._note).session()

    def _note(self, request: Request) -> Completion:
        self.requests[self._keys.of(request)] = request
        return UNASKED


class StandIn(ForwardingEngine):
    """A model that answers for one that is not trained yet, with other seeds than its own."""

    def __init__(self, engine: Engine, shift: int) -> None:
        super().__init__(engine)
        self.shift = shift

    @property
    def weights(self) -> str:
        """Not those of the model that answers: two models' replies are told apart by it."""
        return f"{self.engine.weights} in the place of another {self.shift}"

    @property
    def identity(self) -> str:
        """The same."""
        return self.weights

    def session(self) -> "StandInSession":
        """A new session."""
        return StandInSession(self.engine.session(), self.shift)


class StandInSession:
    """Asks with other seeds; greedy replies, which no seed changes, are drawn at temperature 1 in their place."""

    def __init__(self, session: Session, shift: int) -> None:
        self._session = session
        self._shift = shift

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Take a request."""
        sampling = request.sampling._replace(temperature=request.sampling.temperature or 1.0)
        seed = (request.seed + self._shift) % SEEDS
        self._session.submit(ticket, request._replace(sampling=sampling, seed=seed))

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """What has finished."""
        return self._session.collect(timeout_s)

    def close(self) -> None:
        """Give up what is outstanding."""
        self._session.close()


class ScratchContext(RunStageContext):
    """A stage's view of a scratch run: of some prompts alone, with stand-ins for models that are not trained yet."""

    def __init__(
        self, run_context: RunContext, store: RunStore, begun: Begun, unasked: "Unasked | None", some: Collection[str]
    ) -> None:
        super().__init__(run_context, store, begun)
        self._unasked = unasked
        self._some = some

    def read(self, artifact: str, kind: type[R]) -> list[R]:
        """The rows that belong to the chosen prompts; all of them where none are chosen."""
        return list(self.stream(artifact, kind))

    def stream(self, artifact: str, kind: type[R]) -> RowStream[R]:
        """The same."""
        rows = super().stream(artifact, kind)
        # What belongs to no prompt, such as how far the labeler can be trusted, is whole.
        some = self._some
        return [row for row in rows if (prompt := _prompt_of(row)) is None or prompt in some] if some else rows

    def engine(self, role: str) -> Engine:
        """A model that answers through the journal, or its stand-in."""
        absent = not is_given(role) and role not in self._store.artifacts()
        if role not in self._engines:
            settings = self._run.given("base" if absent else role) if absent or is_given(role) else self._made(role)
            self._engines[role] = (
                self._unasked.journalled(settings, role)
                if self._unasked
                else self._run.journalled(settings, lambda: self._watch(role), role)
            )
        engine = self._engines[role]
        return StandIn(engine, OTHER_SEED[role]) if absent else engine

    @property
    def counted(self) -> dict[str, JournalEngine]:
        """The models that were asked, with their counts, by role."""
        return self._engines

    def say(self, line: str) -> None:
        """Nothing: the run itself says it."""

    def warn(self, message: str) -> None:
        """Nothing: the run itself says it."""


def _prompt_of(row: Record) -> str | None:
    """The id of the prompt that a row is about; None where it is about none."""
    if isinstance(row, Prompt):
        return row.id
    return row.prompt.id if isinstance(row, Revision | Comparison) else None


class Unasked:
    """Engines that ask no model, and what they would have asked.

    Args:
        run_context: the run.
        servers_only: ask all models but those behind servers.
    """

    def __init__(self, run_context: RunContext, *, servers_only: bool = False) -> None:
        self._run = run_context
        self._servers_only = servers_only
        self.requests: dict[str, dict[str, Request]] = {}
        """By role, what the journal has no answer to, by its key."""
        self.settings: dict[str, EngineSettings] = {}
        """By role, the model that it is for."""

    def journalled(self, settings: EngineSettings, role: str) -> JournalEngine:
        """The journal, and behind it nothing, or the model if it may be asked."""
        if self._servers_only and not isinstance(settings, HttpSettings):
            return self._run.journalled(settings, role=role)
        model = self._run.opened(settings)
        engine = UnaskedEngine(model)
        engine.requests = self.requests.setdefault(role, engine.requests)
        self.settings[role] = settings
        return JournalEngine(engine, self._run.journal)  # without an account: what asks nobody has no budget


class Scratch:
    """A run in a temporary folder, whose stages can be run."""

    def __init__(self, run_context: RunContext, store: RunStore, folder: Path, stages: Sequence[Stage]) -> None:
        self.run_context = run_context
        self.store = store
        self._outputs = Outputs(folder)
        self._numbers = {stage.name: number for number, stage in enumerate(stages)}

    def begin(self, stage: Stage, unasked: Unasked | None = None, some: Collection[str] = ()) -> ScratchContext:
        """What a stage is handed: with `unasked` no model is asked; with `some` it sees these prompts alone."""
        folder = self.store.begin(self._numbers[stage.name], stage.name, self._outputs.folder / stage.name)
        begun = Begun.now(stage.name, "", dict.fromkeys(stage.needs, ""), {}, folder)
        return ScratchContext(self.run_context, self.store, begun, unasked, some)

    def finish(self, stage: Stage, context: ScratchContext) -> None:
        """Let later stages find what a stage has made."""
        assert context.own_summary is not None
        entry = self._outputs.finish(context.begun, context.written, Calls(), context.own_summary)
        self.store.finish(self._numbers[stage.name], stage.name, self._outputs.folder / stage.name, entry)

    def knows_needs(self, stage: Stage) -> bool:
        """Whether all that a stage needs of earlier stages is there."""
        made = self.store.artifacts()
        return all(is_given(need) or need in made for need in stage.needs)


@contextmanager
def scratch_run(
    run_context: RunContext, stages: Sequence[Stage], finished: Mapping[str, tuple[Path, StageEntry]]
) -> Iterator[Scratch]:
    """A run in a folder that is thrown away; it has what is finished of the real one."""
    with TemporaryDirectory() as folder, RunStore.open(Path(folder) / "run", "{}") as store:
        for number, stage in enumerate(stages):
            if stage.name in finished:
                store.finish(number, stage.name, *finished[stage.name])
        yield Scratch(run_context, store, Path(folder) / "outputs", stages)


class Replayed(NamedTuple):
    """A stage that was run without asking a model."""

    held: dict[str, int]
    """By role, requests that the journal answered."""
    missing: dict[str, int]
    """By role, requests that it did not; what would have been asked on the answers is unknown."""
    rows: dict[str, Path]
    """What the stage wrote on the answers that there are, by artifact; as long as the scratch run is open."""


def replay(scratch: Scratch, stages: Sequence[Stage], unasked: Unasked) -> dict[str, Replayed]:
    """Run the stages that only ask, as far as the journal's answers go, by name.

    A stage is run if all that it needs is there and whole; those that are finished are not run again.

    Raises:
        ConstitutionalError: a stage fails although the journal has all its answers.
    """
    replayed = {}
    for stage in asking(stages):
        if stage.name in scratch.store.stages or not scratch.knows_needs(stage):
            continue
        before = {role: len(requests) for role, requests in unasked.requests.items()}
        context, failure = scratch.begin(stage, unasked), None
        try:
            stage.run(stage.settings, context)
        except ConstitutionalError as error:  # for want of answers, most likely
            failure = error
        after = {role: len(requests) - before.get(role, 0) for role, requests in unasked.requests.items()}
        missing = {role: count for role, count in after.items() if count}
        if failure and not missing:
            raise failure
        held = {role: engine.reused for role, engine in context.counted.items()}
        replayed[stage.name] = Replayed(held, missing, context.written)
        if not missing:
            scratch.finish(stage, context)
    return replayed


def asking(stages: Sequence[Stage]) -> list[Stage]:
    """The stages that only ask, without what takes long and asks nobody."""
    return [_only_asking(stage) for stage in stages if stage.name in ASKING]


def _only_asking(stage: Stage) -> Stage:
    settings = stage.settings
    if not isinstance(settings, evaluate.Inputs):
        return stage
    quick = settings.evaluate.model_copy(update={"compared": 0, "gold_reward_model": None})
    needs = tuple(need for need in stage.needs if need != "rollouts")
    return replace(stage, settings=settings.model_copy(update={"evaluate": quick}), needs=needs)
