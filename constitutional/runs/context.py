"""What a stage is handed: `stages.context.StageContext` over a run folder, with models that answer from a journal."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from pydantic import BaseModel

from constitutional.base.errors import ConstitutionalError
from constitutional.base.progress import Progress, Task, counted
from constitutional.base.records import LABELER, Record
from constitutional.base.shards import Row, RowStream, write_artifact
from constitutional.base.templates import Prompts, load_prompts
from constitutional.constitution.constitution import PURPOSES, USES, Constitution, Principle
from constitutional.constitution.file import is_shipped, load_constitution
from constitutional.engines.base import Engine
from constitutional.engines.cluster import Cluster
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.model_files import model_folder
from constitutional.engines.models import Models, engine_of
from constitutional.engines.settings import (
    SANDBOX,
    Budget,
    EngineSettings,
    HttpSettings,
    LocalSettings,
    ModelSettings,
    Prices,
    RayClusterSettings,
    VllmSettings,
    role_settings,
)
from constitutional.engines.spending import Account, Calls, Ledger
from constitutional.judging.labeler import decisive_abilities
from constitutional.judging.understanding import in_known_words
from constitutional.runs.folder import USED, RunStore, read_forecast
from constitutional.runs.outputs import CHECKPOINTS, Begun
from constitutional.runs.settings import RunConfig
from constitutional.sandbox.reader import MISSING, encoder_file, identity
from constitutional.stages.context import StageRecord
from constitutional.stages.summaries import SUMMARIES, Summary
from constitutional.training.tracking import TrackedStage, Tracking

_MODELS_OWN: Final = ("path", "revision", "pad_token", "template", "adapter")
"""Settings of a role that are about its model, and not about how it answers."""
R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Summary)
T = TypeVar("T")
Opener = Callable[[EngineSettings], Engine]

GIVEN: Final = ("base", "generator", "critic", LABELER)
"""The models that every run is given, beside the judges of a panel; all others are artifacts of its stages. `base` is
the one that is trained."""

TAGS: Final = "constitution tags"
"""What evaluation alone needs of a constitution, beside what behaviour depends on: edited tags train nothing anew."""

REVISION: Final = "constitution for revision"
COMPARISON: Final = "constitution for comparison"
"""What revising drafts, or comparing responses, depends on: an edit of the one leaves the other as it was."""

OTHERS: Final = "principles left out"
"""The ids and words of principles that evaluation counts violations of, though the run leaves them out."""

WHOLE: Final = "constitution as written"
"""All of a constitution, names and authors too: what the report shows."""

CONFIGURATION: Final = "configuration"
"""All of it, which the report shows."""

READER: Final = "reader of principles"
"""What reads principles beside the sandbox's critic: the encoder, or that there is none."""

CONSTITUTION: Final = ("constitution", REVISION, COMPARISON, TAGS, OTHERS, WHOLE)


def constitution_digests(constitution: Constitution) -> dict[str, str]:
    """SHA-256 of what stages need of a constitution: of what behaviour depends on, by use, and of the rest."""
    tags = [(principle.id, principle.tags) for principle in constitution.principles]
    # What is given in place of their words no file keeps; the words and the reader decide it.
    left_out = [(principle.id, principle.written("critique")) for principle in constitution.left_out]
    rest = map(json.dumps, (tags, left_out, constitution.model_dump(mode="json")))
    texts = (hashlib.sha256(text.encode()).hexdigest() for text in rest)
    uses = (constitution.digest_for(purpose) for purpose in PURPOSES)
    return dict(zip(CONSTITUTION, (constitution.digest, *uses, *texts), strict=True))


def selected(config: RunConfig) -> Constitution:
    """The constitution with the principles, weights and wordings that the configuration chooses, as it is written.

    What its file says of words that models were given was another run's, whose words and models may have been others.
    """
    chosen = config.constitution
    selection = (chosen.only, chosen.without, chosen.weights, chosen.wordings, chosen.as_written)
    return load_constitution(chosen.file).select(*selection).giving({})


def own_words(config: RunConfig) -> frozenset[str] | None:
    """Ids of the principles whose words do not ship with the package; None means all of the constitution's."""
    if is_shipped(config.constitution.file):
        return frozenset(config.constitution.wordings) - frozenset(config.constitution.as_written)
    return None


def as_models_read(config: RunConfig, constitution: Constitution, say: Callable[[str], None]) -> Constitution:
    """The constitution as the run's models are given it: the sandbox's model in words that it knows.

    It reads what ships with the package as it is meant, so nobody is asked about that.

    Args:
        config: says which models read the principles.
        constitution: as it is written.
        say: told before principles are read, and where the encoder is missing that read them before.
    """
    critics, judges = [config.critic], [config.labeler, *config.panel.values()]
    readers = {"critique": critics, "revision": critics, "comparison": judges}  # all judges read the same words
    uses = [
        use
        for use in USES
        if all(getattr(role_settings(role, config.model), "path", None) == SANDBOX for role in readers[use])
    ]
    own = own_words(config)
    ids = {
        principle.id
        for principle in (*constitution.principles, *constitution.left_out)
        if not principle.as_written and (own is None or principle.id in own)
    }
    if not uses or not ids:
        return constitution
    if encoder_file() is None:
        say(f"warning: {MISSING}")
        files = (config.run_folder / USED, Path(config.constitution.file))
        if any(principle.given for file in files for principle in as_used(constitution, file).principles):
            say(WITHOUT_ENCODER)
        return constitution
    say(f"reading {counted(len(ids), 'principle')} …")
    return in_known_words(constitution, uses, ids)


WITHOUT_ENCODER: Final = (
    "warning: before, the sandbox's model was given some of these principles in words that it knows; now it is given "
    "their own words"
)


def as_used(constitution: Constitution, file: Path) -> Constitution:
    """The constitution as models were given it by a run, in whose file it is; as it is where there is no such file."""
    with suppress(ConstitutionalError):
        return as_models_read_before(constitution, load_constitution(file))
    return constitution


def as_models_read_before(constitution: Constitution, used: Constitution) -> Constitution:
    """The constitution as models were given it when it was used, wherever what its author wrote is the same."""
    given = {row.id: row.given for row in constitution.principles}
    for row in used.principles:
        now = constitution.principle(row.id) if row.id in given else None
        if now is not None and _as_authored(now) == _as_authored(row):
            given[row.id] = row.given
    return constitution.giving(given)


def _as_authored(principle: Principle) -> tuple[object, ...]:
    return (*(principle.written(use) for use in USES), principle.as_written)


def trained(config: RunConfig, folder: Path | None = None) -> EngineSettings:
    """How the model that is trained answers, or what became of it: by vLLM, if the generator is vLLM.

    Args:
        config: the run's configuration.
        folder: a model that a stage made, whose tokenizer and template are its own; None means the base model.
    """
    model, generator = config.model, config.generator
    if folder is not None:
        own: dict[str, object] = {"revision": None, "pad_token": None, "template": {}}
        model = model.model_copy(update={"path": str(folder), **own})
    if isinstance(generator, VllmSettings):
        return generator.model_copy(update=dict.fromkeys(_MODELS_OWN)).over(model)
    return LocalSettings().over(model)


def is_given(need: str) -> bool:
    """Whether a run is given what a stage needs by this name; everything else is an artifact of an earlier stage."""
    return need in (*GIVEN, *CONSTITUTION, READER, CONFIGURATION) or need.endswith(".j2") or need.startswith("panel.")


class RunContext:
    """What all stages of a run share: the constitution, the templates, the engines and the journal."""

    def __init__(
        self,
        config: RunConfig,
        constitution: Constitution,
        templates: Prompts,
        progress: Progress,
        opener: Opener | None = None,
    ) -> None:
        self.config = config
        self.constitution = constitution
        self.templates = templates
        self.progress = progress
        self._models = Models(lambda line: self.progress.say(f"  {line}"))
        own = config.cluster
        self._cluster = Cluster(own, self.progress.say) if isinstance(own, RayClusterSettings) else None
        self._opener = opener or self.open
        self._opened: dict[EngineSettings, Engine] = {}
        self._journal: Journal | None = None
        self._ledger = Ledger()

    @classmethod
    def joining(cls, config: RunConfig, progress: Progress) -> Self:
        """The context of a run that another process makes, for one that does a part of it, with the same principles."""
        constitution = as_used(selected(config), config.run_folder / USED)
        return cls(config, constitution, load_prompts(config.templates), progress)

    def open(self, settings: EngineSettings) -> Engine:
        """A new engine of these settings, whose model is released with the run's others."""
        engine = engine_of(settings, self._models, self.progress.say, lambda: self.journal)
        if self._cluster is None or isinstance(settings, HttpSettings):
            return engine
        return self._cluster.engine(engine, settings)

    def given(self, role: str) -> EngineSettings:
        """The settings of a model that the run is given."""
        config = self.config
        if role == "base":
            return trained(config)
        roles = {"generator": config.generator, "critic": config.critic, LABELER: config.labeler}
        panel, _, name = role.partition(".")
        return role_settings(config.panel[name] if panel == "panel" else roles[role], config.model)

    def opened(self, settings: EngineSettings) -> Engine:
        """The model itself, without the journal; opened once."""
        if self.on_cluster(settings) and hasattr(settings, "budget"):  # roles with their own share a model's actors
            settings = settings.model_copy(update={"budget": Budget()})
        if settings not in self._opened:
            self._opened[settings] = self._opener(settings)
        return self._opened[settings]

    def on_cluster(self, settings: EngineSettings) -> bool:
        """Whether such a model answers on a Ray cluster; servers are asked from here."""
        return self._cluster is not None and not isinstance(settings, HttpSettings)

    def journalled(
        self, settings: EngineSettings, watch: Callable[[], None] | None = None, role: str = ""
    ) -> JournalEngine:
        """The model through the journal, with counts of its own; what a role asks is counted against the run."""
        account = Account(self.ledger, role, prices_of(settings)) if role else None
        return JournalEngine(self.opened(settings), self.journal, watch, account)

    @property
    def journal(self) -> Journal:
        """The journal, opened when it is first needed."""
        if self._journal is None:
            self._journal = Journal(self.config.journal_file)
        return self._journal

    @property
    def ledger(self) -> Ledger:
        """What the run has spent and may spend."""
        if not self._ledger.run:
            self._ledger = self._open_ledger(self.journal)
        return self._ledger

    def _open_ledger(self, journal: Journal) -> Ledger:
        config = self.config
        # A folder that is moved with its journal is still the same run.
        run = os.path.relpath(config.run_folder, config.journal_file.parent)
        roles = {"generator": config.generator, "critic": config.critic, LABELER: config.labeler}
        roles |= {f"panel.{name}": settings for name, settings in config.panel.items()}
        budgets = {role: getattr(settings, "budget", Budget()) for role, settings in roles.items()}
        return Ledger(run, journal.spent(run), budgets, config.budget)

    def digest(self, need: str) -> str:
        """The digest of something that the run is given: `base`, `constitution`, `critique.j2`."""
        if need in CONSTITUTION:
            return constitution_digests(self.constitution)[need]
        if need == READER:
            return identity() if getattr(self.given("critic"), "path", "") == SANDBOX else ""
        if need.endswith(".j2"):
            return self.templates.digest(need.removesuffix(".j2"))
        settings = self.given(need)
        dtype = getattr(settings, "dtype", "auto")
        dtype = "" if dtype == "auto" else dtype
        # Not what differs from machine to machine: what was finished with a GPU is finished without one.
        # The sandbox's model is asked in its own way what principles mean.
        own = " sandbox" if need == "critic" and getattr(settings, "path", "") == SANDBOX else ""
        engine = self.opened(settings)
        # What an engine gives decides how a judge is asked.
        own += decisive_abilities(engine.abilities) if need in self.config.judges.values() else ""
        return f"{engine.weights}{dtype and f' {dtype}'}{own}"

    def release(self) -> None:
        """Give the memory of every model back."""
        self._models.release()
        if self._cluster:
            self._cluster.release()

    def hand_over(self) -> None:
        """Let another process have the models' memory and the journal; what it spends is read when we ask again."""
        self.release()
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        self._ledger = Ledger()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._journal is not None:
            self._journal.close()
        self.release()
        if self._cluster:
            self._cluster.close()


def prices_of(settings: EngineSettings) -> Prices:
    """What a model's tokens cost; nothing where its settings have no prices."""
    prices = getattr(settings, "prices", None)
    return prices if isinstance(prices, Prices) else Prices()


class FinishedRun:
    """A run folder as `stages.context.RunView`: what one stage may read of the stages before it."""

    def __init__(
        self, store: RunStore, constitution: Constitution, config: RunConfig, stage: str, needs: Iterable[str]
    ) -> None:
        self.name = config.name
        self.seed = config.seed
        self.folder = store.folder
        """To name it."""
        self.constitution = constitution
        """As selected and weighted for this run."""
        self._store = store
        self._config = config
        self._stage = stage
        self._needs = frozenset(needs)

    def has(self, artifact: str) -> bool:
        """Whether the stage needs the artifact in this run."""
        return artifact in self._needs

    def read(self, artifact: str, kind: type[R]) -> list[R]:
        """The rows of an artifact that an earlier stage wrote."""
        return self._store.read(artifact, kind)

    def stream(self, artifact: str, kind: type[R]) -> RowStream[R]:
        """The same rows, not all of which are held at once where they are many."""
        return self._store.stream(artifact, kind)

    def summary(self, kind: type[S]) -> S | None:
        """What an earlier stage said of its work; None if this run has no such stage."""
        return next((self._store.summary(name, kind) for name in self._earlier() if name in kind.stages), None)

    def records(self) -> dict[str, StageRecord]:
        """The finished stages before this one by name, in running order."""
        records, forecasts = {}, read_forecast(self._store.folder)
        for name in self._earlier():
            entry = self._store.stages[name]
            summary = self._store.summary(name, SUMMARIES[name])
            logs = self._store.training_logs(name)
            forecast = forecasts.get(name)
            records[name] = StageRecord(summary, logs, entry.calls, entry.versions, entry.seconds, forecast)
        return records

    def configuration(self) -> dict[str, Any]:
        """The resolved configuration as JSON values."""
        return self._config.model_dump(mode="json")

    def digests(self) -> dict[str, str]:
        """Digests of what the run was given when it was last begun, by name."""
        return self._store.given_digests()

    def _earlier(self) -> list[str]:
        names = list(self._store.stages)
        return names[: names.index(self._stage)] if self._stage in names else names


class RunStageContext(FinishedRun):
    """One stage's view of a run that is going on."""

    def __init__(self, run_context: RunContext, store: RunStore, begun: Begun) -> None:
        super().__init__(store, run_context.constitution, run_context.config, begun.stage, begun.needs)
        self._run = run_context
        self._begun = begun
        self._engines: dict[str, JournalEngine] = {}
        self.written: dict[str, Path] = {}
        """The rows that the stage wrote, by artifact."""
        self.own_summary: Summary | None = None
        self.calls_elsewhere: Calls | None = None
        """What other processes have asked that did the stage's work; None where this process does it."""
        self.warnings: list[str] = []
        self.prompts = run_context.templates

    @property
    def judges(self) -> dict[str, str]:
        """The role of every judge by its name."""
        return self._run.config.judges

    @property
    def begun(self) -> Begun:
        """What the stage is made from, and where."""
        return self._begun

    @property
    def calls(self) -> Calls:
        """What this stage has asked of models so far."""
        return self.calls_elsewhere or Calls.of_roles({role: engine.calls for role, engine in self._engines.items()})

    def write(self, artifact: str, rows: Iterable[Row]) -> int:
        """Write rows as an artifact of this stage, whole or not at all, as they come; returns how many."""
        self.written[artifact], count = write_artifact(self._begun.folder, artifact, rows)
        return count

    def model(self, artifact: str) -> Path:
        """The folder of a model: one that the run is given, or one that an earlier stage made."""
        if artifact == "base":
            return model_folder(self.base.path, self.base.revision)
        return self._store.artifact(artifact)

    @property
    def base(self) -> ModelSettings:
        """What the run says of the model that is trained."""
        return self._run.config.model

    def settings(self, role: str) -> EngineSettings:
        """What the run says of a model that it is given."""
        return self._run.given(role)

    def output(self, name: str) -> Path:
        """A path of that name in this stage's own folder."""
        path = self._begun.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def engine(self, role: str) -> Engine:
        """A model that answers, through the journal."""
        if role not in self._engines:
            settings = self._run.given(role) if is_given(role) else self._made(role)
            self._engines[role] = self._run.journalled(settings, lambda: self._watch(role), role)
            if self._run.on_cluster(settings):
                # Known before anything is asked: an actor that is to say it may wait for a place that others hold, and
                # while this process waits nobody takes their answers.
                _ = self._engines[role].identity
        return self._engines[role]

    def _made(self, artifact: str) -> EngineSettings:
        """The settings of a model that an earlier stage made."""
        return trained(self._run.config, self._store.artifact(artifact))

    def _watch(self, role: str) -> None:
        # How many there will be in all the stage alone knows: a call is often one of several that an item takes.
        engine = self._engines[role]
        self._run.progress.aside(self._begun.stage, f"{role}: {engine.asked + engine.reused} answers")

    def progress(self, items: Iterable[T], total: int, label: str, unit: str = "rows") -> Iterator[T]:
        """The items, while the terminal shows how far this is."""
        return self._run.progress.track(items, total, label, unit)

    def task(self, label: str, total: int = 0, unit: str = "rows") -> Task:
        """Work that tells how far it is, on the terminal; a context manager, which ends it."""
        return self._run.progress.task(label, total, unit)

    def tracking(self, settings: BaseModel, part: str = "") -> Tracking:
        """What shows a training of the stage in the trackers of `report_to`."""
        values = settings.model_dump(mode="json")
        stage = TrackedStage(self.name, f"{self._begun.stage}{part}", values, self.folder)
        return Tracking(self._config.report_to, stage, self.output(f"{CHECKPOINTS}/trackers{part}.json"), self.warn)

    def summarise(self, summary: Summary) -> None:
        """Keep the stage's summary."""
        self.own_summary = summary

    def release(self) -> None:
        """Give the memory of all engines back."""
        self._run.release()

    def say(self, line: str) -> None:
        """Tell the user on the terminal, in a line that stays."""
        self._run.progress.say(f"  {line}")

    def warn(self, message: str) -> None:
        """Tell the user on the terminal, as a warning of this stage."""
        self.warnings.append(message)
        self._run.progress.say(f"warning: {self._begun.stage}: {message}")

    def made(self, name: str) -> Path:
        """Where this stage left one of its artifacts: rows, a folder, or a file of any ending."""
        if name in self.written:
            return self.written[name]
        places = [self._begun.folder / f"{name}.jsonl", self._begun.folder / name]
        places += sorted(self._begun.folder.glob(f"{name}.*"))
        made = next((place for place in places if place.exists()), None)
        assert made is not None, f"stage '{self._begun.stage}' ended without making '{name}'"
        return made
