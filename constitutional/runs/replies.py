"""Models that reply outside a run's stages: a run's base, SL and RL model, or any other model by its folder or name."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from constitutional.base.errors import ConfigurationError, InputError, RunError, UsageError
from constitutional.base.files import at_home, atomic_write, writing
from constitutional.base.jsonl import BadTextError, parse
from constitutional.base.records import Message, Prompt
from constitutional.base.seeds import seed_of
from constitutional.data.prompts import with_system
from constitutional.engines.base import Completion, Engine, Request, Sampling, Ticket
from constitutional.engines.model_files import Recommended, recommended
from constitutional.engines.models import Models, engine_of
from constitutional.engines.settings import ModelSettings
from constitutional.runs.compose import load
from constitutional.runs.context import Opener, trained
from constitutional.runs.folder import RunStore
from constitutional.runs.manifest import MANIFEST
from constitutional.stages import evaluate
from constitutional.stages.evaluate import MODELS
from constitutional.stages.prompts import FilePrompts

ROW: Final = {"prompt", "model", "reply", "finish", "sample", "seed", "temperature", "max_tokens", "weights", "line"}
"""What every line of a reply holds."""
KEY: Final = (ROW | {"top_p"}) - {"reply", "finish", "line"}
"""What makes two replies the same; `top_p` is left out where it is 1."""


class Repliers(NamedTuple):
    """Models by name, and how their replies are sampled."""

    engines: Mapping[str, Engine]
    """`base`, `sft_model` and `policy` of a run as far as they are made; of a model alone its folder's name."""
    sampling: Sampling
    system: str = ""
    """The system message that a run puts before every prompt without one (`prompts.system`); empty where none."""


def repliers(target: str, models: str = "", opener: Opener | None = None) -> Repliers:
    """The models of a run, or a model; a model is loaded when it is first asked.

    Args:
        target: a run folder, a model's folder, `sandbox` or a name on the hub.
        models: which of them, such as `base,policy`; an empty text means all.
        opener: makes an engine of a model's settings; None loads the model.

    Raises:
        ConfigurationError: there is no such run and no such model.
        UsageError: one of `models` is not there.
        RunError: the run is damaged.
    """
    # In a conversation all of them stay in memory, but for those of vLLM, which may take all of a GPU's each.
    in_memory, system = Models(most=len(MODELS)), ""
    opener = opener or (lambda settings: engine_of(settings, in_memory))
    folder = at_home(target)
    if (folder / MANIFEST).is_file():
        store, config = RunStore.load(folder), load(folder)
        settings = {"base": trained(config)}
        settings |= {name: trained(config, store.artifact(name)) for name in MODELS[1:] if name in store.artifacts()}
        chosen = config.evaluate
        if isinstance(config.prompts, FilePrompts):
            system = config.prompts.system or ""
    elif folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigurationError(f"{folder}: holds neither a run ({MANIFEST}) nor a model (config.json)")
    else:
        name = folder.resolve().name if folder.is_dir() else target
        settings, chosen = {name: ModelSettings(path=target)}, None
    names = named(models, list(settings)) if models else list(settings)
    engines = {name: opener(settings[name]) for name in names}
    if chosen is None:  # what a model on the hub recommends is known once it is here
        chosen = evaluate.Settings(**(recommended(target) or Recommended())._asdict())
    return Repliers(engines, Sampling.of(chosen.temperature, chosen.top_p, chosen.max_tokens), system)


def named(models: str, known: Sequence[str]) -> list[str]:
    """The models of a list such as `base,policy`, in the order of `known`; `SL` and `RL` are names too.

    Raises:
        UsageError: one of them is not there.
    """
    other = {"sl": "sft_model", "rl": "policy", "sft": "sft_model"}
    words = [word for word in models.replace(",", " ").split() if word]
    names = [word if word in known else other.get(word.lower(), word.lower()) for word in words]
    for word, name in zip(words, names, strict=True):
        if name not in known:
            raise UsageError(f"there is no model '{word}' here; the models are {', '.join(known)}")
    if not names:
        raise UsageError(f"no model is named; the models are {', '.join(known)}")
    return [name for name in known if name in names]


class SampleTask(NamedTuple):
    """A reply that is wanted."""

    model: str
    prompt: Prompt
    line: int
    """The prompt's line in its file."""
    sample: int
    """Which of the replies of this model to this prompt, from 0."""


class ReplySampler:
    """Samples replies to prompts and writes each as a line of JSON at the moment that it is there."""

    def __init__(self, models: Repliers, seed: int) -> None:
        self.models = models
        self.seed = seed

    def request(self, task: SampleTask) -> Request:
        """What the model is asked; its seed depends on the prompt and on nothing else in the file."""
        messages = self._messages(task)
        turns = tuple((message.role, message.content, *filter(None, [message.extra])) for message in messages)
        own_seed = seed_of(self.seed, "sample", turns, task.sample) if self.models.sampling.temperature else 0
        return Request(messages, self.models.sampling, own_seed)

    def _messages(self, task: SampleTask) -> tuple[Message, ...]:
        """The prompt, behind the run's system message where it has none."""
        return with_system(task.prompt.messages, self.models.system or None)

    def row(self, task: SampleTask, completion: Completion) -> dict[str, Any]:
        """The line of a reply, with all that decided it."""
        row = self.key(task) | {"reply": completion.text, "finish": completion.finish, "line": task.line}
        row |= {"reason": completion.reason} if completion.reason else {}
        order = ("prompt", "model", "reply", "finish", "sample", "seed", "temperature", "top_p", "max_tokens")
        return {name: row[name] for name in (*order, "weights", "line", "reason") if name in row}

    def key(self, task: SampleTask) -> dict[str, Any]:
        """What makes two replies the same: the prompt, the model, which sample it is, and how it was sampled."""
        messages = self._messages(task)
        plain = len(messages) == 1 and messages[0].role == "user"
        turns = [message.turn() for message in messages]
        sampling = self.models.sampling
        return {
            "prompt": messages[0].content if plain else turns,
            "model": task.model,
            "sample": task.sample,
            "seed": self.seed,
            "temperature": sampling.temperature,
            **({"top_p": sampling.top_p} if sampling.top_p != 1 else {}),
            "max_tokens": sampling.max_tokens,
            "weights": self.models.engines[task.model].weights[:16],
        }

    def missing(self, tasks: Sequence[SampleTask], rows: Sequence[Mapping[str, Any]]) -> list[SampleTask]:
        """The tasks that no row answers."""
        done = {_text({name: row[name] for name in KEY if name in row}) for row in rows}
        return [task for task in tasks if _text(self.key(task)) not in done]

    def replies(self, tasks: Sequence[SampleTask]) -> Iterator[tuple[SampleTask, Completion]]:
        """The replies as they come, one model after the other."""
        for model, engine in self.models.engines.items():
            of_model = [task for task in tasks if task.model == model]
            session = engine.session()
            try:
                for number, task in enumerate(of_model):
                    session.submit((number,), self.request(task))
                answered: set[Ticket] = set()
                while len(answered) < len(of_model):
                    for ticket, completion in session.collect():
                        answered.add(ticket)
                        yield of_model[ticket[0]], completion
            finally:
                session.close()


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The rows that `sample` has written to a file so far; a last line that was cut off is taken away.

    Raises:
        InputError: a line is none of `sample`'s.
    """
    if not path.exists():
        return []
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}; name another file with --out") from error
    rows = []
    whole, _, _ = content.rpartition(b"\n")
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            row = parse(line.decode())
        except (UnicodeDecodeError, BadTextError) as error:
            raise InputError(path, "holds what `sample` did not write; name another file with --out", number) from error
        if not isinstance(row, dict) or not row.keys() >= ROW:
            raise InputError(path, "holds what `sample` did not write; name another file with --out", number)
        rows.append(row)
    if content and not content.endswith(b"\n"):
        if not rows and not content.startswith(b'{"prompt": '):
            raise InputError(path, "holds what `sample` did not write; name another file with --out", 1)
        atomic_write(path, whole + b"\n" if whole else b"")
    return rows


@contextmanager
def appending(path: Path) -> Iterator[Callable[[str], None]]:
    """A function that writes a line at the end of a file, so that it is there at once.

    Raises:
        RunError: the file cannot be written.
    """
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise RunError(f"{path}: cannot be written: {error.strerror}; name another file with --out") from error

    def write(line: str) -> None:
        with writing(path):
            file.write(line + "\n")
            file.flush()

    with file:
        yield write


class Conversation:
    """What a user and several models say, a conversation for each model."""

    def __init__(self, models: Repliers, seed: int = 0, system: str = "") -> None:
        self.models = models
        self.seed = seed
        self.system = system
        self.talking = list(models.engines)
        """The models that reply."""
        self._turns: dict[str, list[Message]] = {name: [] for name in models.engines}

    def reset(self) -> None:
        """Forget all turns; the system message, the seed and the models stay."""
        for turns in self._turns.values():
            turns.clear()

    def reply(self, model: str, text: str) -> Completion:
        """A model's reply to the next message, which both become part of its conversation unless it has none.

        Raises:
            ModelError: the model cannot be loaded or asked.
        """
        turns = self._turns[model]
        system = (Message("system", self.system),) if self.system else ()
        messages = (*system, *turns, Message("user", text))
        seed = seed_of(self.seed, "chat", len(turns)) if self.models.sampling.temperature else 0
        (completion,) = self.models.engines[model].complete([Request(messages, self.models.sampling, seed)])
        if not completion.failed:
            turns += [Message("user", text), Message("assistant", completion.text)]
        return completion
