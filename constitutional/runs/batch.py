"""Requests and answers by files, as OpenAI's batch API and its like take and give them, at half the price or less.

Export runs the stages as far as servers' answers in the journal go, and writes what is missing as request files; models
that no server has are asked at once. Import reads the answers into the journal. What is asked on an answer can be
exported once it is there, so that several rounds of both lead to a finished stage: draft, critique, revision. Neither
contacts a server.
"""

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from constitutional.base.errors import ConfigurationError, InputError, UsageError
from constitutional.base.files import atomic_write, writing
from constitutional.base.progress import Progress
from constitutional.base.records import Revision
from constitutional.base.shards import read_artifact
from constitutional.base.templates import load_prompts
from constitutional.engines.base import Abilities, Completion, Engine, ForwardingEngine, Request, Session
from constitutional.engines.journal import Journal
from constitutional.engines.replies import TOP, USAGE, Fault, chat_body, choice_sampling, choice_scores, read_reply
from constitutional.engines.settings import EngineSettings, HttpSettings
from constitutional.engines.spending import Account, Calls
from constitutional.judging.labeler import WRITTEN, Method, method_for
from constitutional.runs.compose import changed, compose, dump, freeze, load, validated
from constitutional.runs.context import Opener, RunContext, as_models_read, prices_of
from constitutional.runs.folder import CONFIG
from constitutional.runs.outputs import Outputs
from constitutional.runs.pipeline import Stage, stages_of, up_to
from constitutional.runs.runner import Runner, check_budgets, fetched, ready
from constitutional.runs.scratch import ASKING, Replayed, Unasked, replay, scratch_run
from constitutional.runs.settings import RunConfig

FOLDER: Final = "batches"
"""In a run folder."""
BEFORE: Final = "before"
"""In that folder: request files of earlier exports."""
_REQUESTS: Final = re.compile(r".+-[0-9a-f]{8}-\d{3,}\.jsonl")
MOST_LINES: Final = 50_000
"""Requests in a file."""
MOST_BYTES: Final = 200_000_000
KEPT_AT_ONCE: Final = 500
"""Answers that are written to the journal together."""
NO_ANSWER: Final = ("too_long", "error")
"""Ends of completions that the journal does not keep."""


# --- Lines of the files ---


def body_of(settings: HttpSettings, request: Request) -> dict[str, Any]:
    """The body of a chat request. Choices are asked for by the likeliest tokens of a greedy reply."""
    # Models that reason take another name for the most tokens; whoever sets it there has the other one left out.
    unknown = ("max_tokens",) if "max_completion_tokens" in settings.extra else ()
    if not request.choices:
        return chat_body(settings.model, request, settings.extra, unknown)
    fields = {"logprobs": True, "top_logprobs": TOP, **settings.extra}
    return chat_body(settings.model, _about_choices(request), fields, unknown)


def _about_choices(request: Request) -> Request:
    return Request(request.messages, choice_sampling(request.choices))


def completion_of(settings: HttpSettings, request: Request, status: int, body: object) -> Completion:
    """What a reply's body means; a completion that failed says why, and `error` means that nothing was answered."""
    asked = _about_choices(request) if request.choices else request
    reply = read_reply(status, {}, json.dumps(body).encode(), settings.model, asked)
    if isinstance(reply, Fault):
        return Completion("", "error", reason=reply.reason)
    if not request.choices or reply.completion.failed:
        return reply.completion
    scores = choice_scores(request.choices)
    next(scores)
    try:
        scores.send(reply.tokens)
    except StopIteration as end:
        completion: Completion = end.value
        return completion._replace(**{name: getattr(reply.completion, name) for name in USAGE})
    reason = "the choices take more tokens than one reply tells; `constitutional run` asks for the rest"
    return Completion("", "error", reason=reason)


def request_lines(settings: HttpSettings, requests: Mapping[str, Request]) -> Iterator[bytes]:
    """A line for each request, by the journal's key, which is its id."""
    for key, request in requests.items():
        line = {
            "custom_id": key,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": body_of(settings, request),
        }
        yield json.dumps(line).encode() + b"\n"


def divided(
    lines: Iterable[bytes], most_lines: int = MOST_LINES, most_bytes: int = MOST_BYTES
) -> Iterator[list[bytes]]:
    """The lines in parts that are small enough for a file each."""
    part, size = list[bytes](), 0
    for line in lines:
        if part and (len(part) == most_lines or size + len(line) > most_bytes):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line)
    if part:
        yield part


class AnswerLine(NamedTuple):
    """A line of a file of answers."""

    key: str
    """The request's id."""
    status: int
    body: object
    problem: str
    """Why there is no reply, as the provider says; empty where there is one."""


def answer_line(raw: bytes) -> AnswerLine:
    """A line of a file of answers.

    Raises:
        ValueError: it is none; says what is wrong with it.
    """
    try:
        row = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("custom_id"), str):
        raise ValueError('is no answer; expected {"custom_id": …, "response": {"status_code": 200, "body": {…}}}')
    key, response, problem = row["custom_id"], row.get("response"), row.get("error")
    if problem:
        return AnswerLine(key, 0, None, json.dumps(problem, ensure_ascii=False)[:200])
    if not isinstance(response, dict) or not isinstance(response.get("status_code"), int) or "body" not in response:
        raise ValueError("has neither an error nor a response with a status_code and a body")
    return AnswerLine(key, response["status_code"], response["body"], "")


# --- What is missing ---


class OfflineServer(ForwardingEngine):
    """A server that is known by its settings and not contacted.

    An ability that neither the settings nor the journal know counts as no, because nobody asks it; where it decides how
    a judge is asked, `offline` refuses it.
    """

    def __init__(self, settings: HttpSettings, journal: Callable[[], Journal] | None = None) -> None:
        from constitutional.engines.http import ABILITIES, HttpEngine

        if settings.endpoint != "chat":
            raise ConfigurationError("endpoint=completions sends tokens, which no batch takes; type endpoint=chat")
        server = HttpEngine(settings, journal=journal)
        super().__init__(server)
        self._known = server.known_abilities()
        able = dict.fromkeys(ABILITIES, False) | self._known
        self.abilities = Abilities(able["logprobs"], able["prefill"], seeds=False, structured=able["structured"])

    def unknown(self, method: Method) -> list[str]:
        """The abilities that decide how a judge is asked by this method, and that nobody knows."""
        # Where one of the two is lacking, the other is of no use.
        lacking = any(self._known.get(name) is False for name in ("logprobs", "prefill"))
        decisive = [] if method == "votes" or lacking else ["logprobs", "prefill"]
        unknown = [name for name in decisive if name not in self._known]
        # Votes and written scores are asked for in JSON where the server holds replies to a schema.
        written = method_for(method, self.abilities) in WRITTEN
        return unknown or (["structured"] if written and "structured" not in self._known else [])

    def session(self) -> Session:
        """None: a batch asks nobody."""
        raise AssertionError("a batch contacts no server")


class Pending(NamedTuple):
    """What the stages would ask next."""

    requests: dict[str, dict[str, Request]]
    """By role, requests that the journal has no answer to, by its key."""
    settings: dict[str, EngineSettings]
    """By role, the model that it is for."""
    rounds: int
    """Most further rounds of export and import before the next training, when these are answered."""
    reached: str
    """The stage that the journal's answers lead to; empty where no asking stage lacks an answer."""

    @property
    def by_http(self) -> dict[str, HttpSettings]:
        """The roles that a server plays, with what it lacks an answer to."""
        return {
            role: settings
            for role, settings in self.settings.items()
            if isinstance(settings, HttpSettings) and self.requests[role]
        }


@contextmanager
def offline(config: RunConfig, opener: Opener | None = None) -> Iterator[RunContext]:
    """What the stages of a run share, where servers are not contacted.

    Args:
        config: the run.
        opener: makes an engine of the settings of what is no server; None means the model itself.

    Raises:
        ConfigurationError: no role is played by a server, or a method needs what no server is asked for.
    """
    roles = [config.generator, config.critic, config.labeler, *config.panel.values()]
    if not any(isinstance(settings, HttpSettings) for settings in roles):
        found = "holds a run in which" if config.run_folder.is_dir() else "holds no run, and by what is typed"
        raise ConfigurationError(
            f"{config.run_folder} {found} no role is played by a server, so there is nothing to export; type the name "
            "of a new run, and with it labeler=http labeler.url=URL labeler.model=NAME"
        )

    def opened(settings: EngineSettings) -> Engine:
        if isinstance(settings, HttpSettings):
            return OfflineServer(settings, lambda: run_context.journal)
        return (opener or run_context.open)(settings)

    templates = load_prompts(config.templates)
    files = ready(config)
    if opener is None:
        config = fetched(config)
    with RunContext(config, files.constitution, templates, Progress(), opened) as run_context:
        check_budgets(run_context)
        for role in config.judges.values():
            server = run_context.opened(run_context.given(role))
            if isinstance(server, OfflineServer) and (unknown := server.unknown(config.label.method)):
                raise ConfigurationError(
                    f"how {role} is asked depends on what its server can do, and a batch asks no server; type "
                    f"{' '.join(f'{role}.{name}=yes' for name in unknown)}, or no for what it cannot do"
                )
        if opener is None:
            run_context.constitution = as_models_read(config, run_context.constitution, run_context.progress.say)
        yield run_context


def pending(run_context: RunContext, *, ask_others: bool = False) -> Pending:
    """What the stages would ask servers next, as far as the journal's answers go.

    Args:
        run_context: the run.
        ask_others: ask the models that are behind no server, so that the stages come further.
    """
    config = run_context.config
    stages = up_to(config.until, stages_of(config))
    finished = Runner(run_context, Outputs(config.outputs_folder)).finished(stages)
    unasked = Unasked(run_context, servers_only=ask_others)
    with scratch_run(run_context, stages, finished) as scratch:
        replayed = replay(scratch, stages, unasked)
        open_stages = [stage for stage in stages if stage.name in replayed and replayed[stage.name].missing]
        rounds = max((_rounds(stage, config, replayed[stage.name]) for stage in open_stages), default=0)
    if open_stages:
        training = next((number for number, stage in enumerate(stages) if _trains(stage, finished)), len(stages))
        later = [stage for stage in stages[:training] if stage.name in ASKING]
        rounds += sum(_rounds(stage, config) for stage in later if stage.name not in {*finished, *replayed})
        rounds -= 1
    return Pending(unasked.requests, unasked.settings, rounds, open_stages[0].name if open_stages else "")


def _trains(stage: Stage, finished: Mapping[str, object]) -> bool:
    return stage.trains and stage.name not in finished


def _rounds(stage: Stage, config: RunConfig, replayed: Replayed | None = None) -> int:
    """How many times, at most, a stage waits for answers before it can ask on."""
    judging = {"logprobs": 1, "votes": 1, "score": 2, "rationale": 2, "contrast": 1}[config.label.method]
    if stage.name == "critique_revise":
        per_round = 2 if config.critique_revise.critique else 1
        whole = 1 + per_round * config.critique_revise.rounds
        path = replayed.rows.get("revisions") if replayed else None
        return (
            max((_left(row, whole, per_round) for row in read_artifact(path, Revision)), default=0) if path else whole
        )
    own = {"sample_pairs": 1, "labeler_check": judging, "label": judging, "evaluate": 1 + judging}
    return own.get(stage.name, 0) + (stage.name == "label" and config.label.principles == "telling")


def _left(revision: Revision, whole: int, per_round: int) -> int:
    """Of all answers that a draft waits for one after the other, those that are still to come."""
    if revision.problem is None:
        return 0
    if not revision.draft:
        return whole
    return whole - 1 - per_round * len(revision.steps) - (per_round == 2 and "the revision" in revision.problem)


# --- Export and import ---


class Exported(NamedTuple):
    """Files of requests."""

    files: dict[Path, int]
    """How many requests each holds."""
    pending: Pending


def configuration(run: str, overrides: Sequence[str], *, exported: bool = False) -> RunConfig:
    """A run's configuration: its folder's own with single settings changed, or one that is composed.

    Args:
        run: the run's folder, or its name in `runs`.
        overrides: settings; where the folder has no configuration, as those of `constitutional run`.
        exported: take the configuration of the last export, if there is one.

    Raises:
        UsageError: `run` is a setting, or it holds nothing that was exported.
    """
    folder = Path(run) if "/" in run or Path(run).is_dir() else Path("runs") / run
    if "/" not in run.partition("=")[0] and "=" in run and not folder.is_dir():
        raise UsageError(f"{run} is a setting; type a run's folder before it, such as runs/first {run}")
    places = [folder / CONFIG, folder / FOLDER / CONFIG]
    for place in reversed(places) if exported else places:
        if place.is_file():
            config = load(place)
            if not (exported and place == places[-1]):  # what an export went up to, its answers go up to
                config = config.model_copy(update={"until": None})
            return freeze(validated(changed(config, overrides)))
    if exported:
        raise UsageError(f"{folder}: holds no run and no batch; expected a folder such as runs/first")
    return freeze(compose([*overrides, f"name={folder.name}", f"folder={folder.parent}"]))


def export(config: RunConfig, opener: Opener | None = None) -> Exported:
    """Write what the journal lacks of servers' answers as request files, in the run's folder `batches`.

    Files of earlier exports go to `batches/before`, so that whoever uploads all files pays for nothing twice.
    """
    with offline(config, opener) as run_context:
        open_requests = pending(run_context, ask_others=True)
    folder, files, seen = config.run_folder / FOLDER, dict[Path, int](), set[str]()
    for role, settings in open_requests.by_http.items():
        requests = {key: request for key, request in open_requests.requests[role].items() if key not in seen}
        seen |= requests.keys()
        digest = hashlib.sha256("".join(sorted(requests)).encode()).hexdigest()[:8]
        for number, lines in enumerate(divided(request_lines(settings, requests)), start=1):
            file = folder / f"{role}-{digest}-{number:03d}.jsonl"
            with writing(file):
                file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(file, b"".join(lines))
            files[file] = len(lines)
    _put_aside(folder, files)
    if files:
        atomic_write(folder / CONFIG, dump(config, {}).encode())
    return Exported(files, open_requests)


def _put_aside(folder: Path, files: Collection[Path]) -> None:
    """Move the request files of earlier exports, all but these, out of a folder."""
    earlier = [file for file in folder.glob("*.jsonl") if _REQUESTS.fullmatch(file.name) and file not in files]
    for file in earlier:
        with writing(file):
            (folder / BEFORE).mkdir(exist_ok=True)
            file.replace(folder / BEFORE / file.name)


class Imported:
    """What became of the lines of answers, which are read one after the other into the journal."""

    def __init__(self, run_context: RunContext, open_requests: Pending) -> None:
        self.repeated = 0
        """Answers that the journal had before, or that stand twice."""
        self.failed: list[str] = []
        """Requests that were not answered, a line each; they are exported again."""
        self.unknown: list[str] = []
        """Lines whose id is of no request of this run."""
        self.unreadable: list[str] = []
        """Lines that are no answers."""
        self._run = run_context
        self._pending = open_requests
        self._roles = {key: role for role in open_requests.by_http for key in open_requests.requests[role]}
        self._waiting: dict[str, dict[str, Completion]] = {role: {} for role in open_requests.by_http}
        self._kept: set[str] = set()

    @property
    def roles(self) -> list[str]:
        """Those that answers may be for."""
        return list(self._waiting)

    @property
    def kept(self) -> int:
        """Answers that the journal has now."""
        return len(self._kept)

    def line(self, place: str, raw: bytes) -> None:
        """Take a line, whatever it is."""
        try:
            line = answer_line(raw)
        except ValueError as error:
            self.unreadable.append(f"{place}: {error}")
            return
        role = self._roles.get(line.key)
        if line.key in self._kept or (role and line.key in self._waiting[role]):
            self.repeated += 1
        elif role:
            self._answer(place, line, role)
        elif self._run.journal.look_up([line.key]):
            self.repeated += 1
        else:
            self.unknown.append(f"{place}: no request that waits for an answer has the id {line.key!r:.80}")

    def _answer(self, place: str, line: AnswerLine, role: str) -> None:
        settings, request = self._pending.by_http[role], self._pending.requests[role][line.key]
        completion = Completion("", "error", reason=line.problem)
        if not line.problem:
            completion = completion_of(settings, request, line.status, line.body)
        if completion.finish in NO_ANSWER:
            self.failed.append(f"{place}: {completion.reason}")
            return
        self._waiting[role][line.key] = completion
        if len(self._waiting[role]) == KEPT_AT_ONCE:
            self.keep(role)

    def keep(self, role: str) -> None:
        """Write what has been read for a role into the journal."""
        answers, self._waiting[role] = self._waiting[role], {}
        if not answers:
            return
        prices = prices_of(self._pending.settings[role])
        calls = Calls.of(answers.values(), prices, asked=len(answers))
        self._run.journal.keep(answers, Account(self._run.ledger, role, prices), calls)
        self._kept |= answers.keys()


def import_answers(config: RunConfig, files: Sequence[Path], opener: Opener | None = None) -> Imported:
    """Read answers into the journal; lines that cannot be used are told, and the others are kept.

    What is imported counts as spent by the run, at the role's prices.

    Raises:
        InputError: a file cannot be read.
    """
    for file in files:
        if not file.is_file():
            raise InputError(file, "there is no such file; name a file of answers")
    with offline(config, opener) as run_context:
        # As far as the export came, which had asked the models that no server has.
        imported = Imported(run_context, pending(run_context, ask_others=True))
        try:
            for place, raw in _lines(files):
                imported.line(place, raw)
        finally:  # what was read before a file fails counts
            for role in imported.roles:
                imported.keep(role)
    return imported


def _lines(files: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    """Every line that is not empty, and where it stands."""
    for file in files:
        try:
            with file.open("rb") as stream:
                for number, raw in enumerate(stream, start=1):
                    if raw.strip():
                        yield f"{file}:{number}", raw
        except OSError as error:
            raise InputError(file, f"cannot be read: {error.strerror}") from error
