"""From settings to an engine: where a model's files are, their digest, and a model that is loaded when first asked.

A model's weights are known by a digest of its files, without loading it: a run whose answers are all in the journal
never loads a model.
"""

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.shipped import MODEL_FOLDER
from constitutional.base.user_function import load_function
from constitutional.engines.base import Abilities, Completion, Engine, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import (
    SANDBOX,
    Dtype,
    EngineSettings,
    HttpSettings,
    ModelSettings,
    ScriptedSettings,
    VllmSettings,
)

if TYPE_CHECKING:
    from constitutional.engines.journal import Journal
    from constitutional.engines.local import LocalEngine, LocalSession
    from constitutional.engines.vllm import VllmServer

LOADED: Final = 2
"""Most models in memory at once: one that answers and one that judges. Another takes the place of the one that was
asked least recently."""

READ: Final = re.compile(
    r"(generation_)?config\.json|(special_tokens_map|added_tokens|tekken)\.json|(tokenizer|vocab|merges|chat_template).*"
    r"|.*\.(model|tiktoken)|additional_chat_templates/.*\.jinja"
)
"""Files that transformers reads beside the weights: settings, vocabulary, chat template."""
WEIGHTS: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
"""The weights, or the list of the files that they are divided into."""
DOWNLOADED: Final = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")


def model_folder(path: str, revision: str | None = None) -> Path:
    """Where the model's files are; a name on the hub is downloaded, or found in the hub's cache.

    Args:
        path: `sandbox`, a folder, or a name on the hub.
        revision: a branch, a tag or a commit on the hub; nothing else has any.

    Raises:
        ConfigurationError: there is no such folder and no such name.
        ModelError: the model cannot be downloaded, or is not whole there.
    """
    if path == SANDBOX:
        if not (MODEL_FOLDER / "config.json").is_file():
            raise ModelError(f"{MODEL_FOLDER}: the sandbox's model is not there; make it with scripts/build_sandbox.py")
        return MODEL_FOLDER
    if not path.strip():
        raise ConfigurationError("model path is empty; name 'sandbox', a folder, or a model on the Hugging Face hub")
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigurationError(f"{folder}: has no config.json; name a folder that transformers can load")
        return _whole(folder.resolve())
    if folder.is_absolute() or path.count("/") != 1:
        raise ConfigurationError(
            f"model path '{path}' is neither 'sandbox', nor a folder, nor a name on the Hugging Face hub such as "
            "Qwen/Qwen3-4B-Instruct-2507"
        )
    return _whole(_downloaded(path, revision))


def _whole(folder: Path) -> Path:
    """The folder, if all that decides what its model answers is in files that its identity covers."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{folder}: holds an adapter, whose base model is elsewhere; merge it (PEFT's merge_and_unload), save the "
            "model with its tokenizer, and name that folder"
        )
    if not (folder / WEIGHTS).is_file() and not (folder / INDEX).is_file():
        raise ModelError(
            f"{folder}: has no weights in {WEIGHTS} or {INDEX}; load the model with transformers and write it with "
            "save_pretrained"
        )
    return folder


def _downloaded(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(DOWNLOADED)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        problem = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"'{name}' is no folder here and cannot be downloaded from the hub: {problem}") from error


def model_files(folder: Path) -> list[Path]:
    """The files that decide what a model answers, in order: those that transformers reads, whatever lies beside them.

    Raises:
        ModelError: the list of the weights' files cannot be read.
    """
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = [folder / name for name in names if READ.fullmatch(name)]
    weights = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        try:
            parts = set(json.loads((folder / INDEX).read_bytes())["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(
                f"{folder / INDEX}: is no list of a model's weights: {error}; download it again"
            ) from error
        weights = [INDEX, *parts]
    return sorted([*files, *(folder / name for name in weights)])


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the files that decide what the model answers."""
    digest = hashlib.sha256()
    for path in model_files(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"{path}: cannot be read: {error.strerror}; download the model again") from error
    return digest.hexdigest()


class Models:
    """The models in memory: each folder loaded once, the least recently asked released when another is needed."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._loaded: OrderedDict[ModelSettings | VllmSettings, LocalEngine | VllmServer] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, settings: ModelSettings) -> "LocalEngine":
        """The model of these settings, whose path is a folder."""
        from constitutional.engines.local import LocalEngine, load_model

        with self._lock:
            engine = self._loaded.get(settings)
            if not isinstance(engine, LocalEngine):
                self._make_room(settings)
                options = settings.model_dump(include={"dtype", "device", "pad_token", "template"})
                model, tokenizer = load_model(Path(settings.path), **options)
                self._loaded[settings] = engine = LocalEngine(
                    model, tokenizer, batch_size=settings.batch_size, say=self._say
                )
            self._loaded.move_to_end(settings)
            return engine

    def server(self, settings: VllmSettings) -> "VllmServer":
        """The processes of vLLM with the model of these settings; started anew if they failed."""
        from constitutional.engines.vllm import VllmServer

        with self._lock:
            server = self._loaded.get(settings)
            if isinstance(server, VllmServer) and server.failure:
                self._release(settings)  # a copy may be there still
                server = None
            if not isinstance(server, VllmServer):
                self._make_room(settings)
                self._loaded[settings] = server = VllmServer(settings)
            self._loaded.move_to_end(settings)
            return server

    def _make_room(self, settings: ModelSettings | VllmSettings) -> None:
        """Release models until another fits; those that vLLM is asking stay, as their answers would be lost."""
        while len(self._loaded) >= LOADED or self._shares(settings) > 1:
            idle = next((key for key, model in self._loaded.items() if not getattr(model, "busy", False)), None)
            if idle is None:
                return
            self._release(idle)

    def _shares(self, settings: ModelSettings | VllmSettings) -> float:
        """The shares of a GPU's memory that vLLM takes with a model of these settings; 0 if it is no question."""
        from constitutional.engines.local import placed

        taken = [key.memory for key in self._loaded if isinstance(key, VllmSettings)]
        if not taken or not isinstance(settings, VllmSettings) or placed("", "auto")[0] == "cpu":
            return 0.0
        return sum(taken) + settings.memory

    def _release(self, settings: ModelSettings | VllmSettings) -> None:
        model = self._loaded.pop(settings)
        if isinstance(settings, VllmSettings):
            model.close()  # type: ignore[union-attr]  # what these settings made
        else:
            del model
            free_memory()

    def release(self) -> None:
        """Give the memory of every model back, before training needs it."""
        for settings in list(self._loaded):
            self._release(settings)


def free_memory() -> None:
    """Give back what models that nothing refers to any more hold, on the GPU too."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


class LazyEngine(Engine):
    """An engine that is known at once, and whose model is loaded when it is first asked."""

    def __init__(self, settings: ModelSettings, models: Models) -> None:
        self.folder = model_folder(settings.path, settings.revision)
        self._settings = settings.model_copy(update={"path": str(self.folder), "revision": None})
        self._models = models
        self._weights = ""

    @property
    def weights(self) -> str:
        """SHA-256 of the model's files, and of what the settings add to the tokenizer."""
        if not self._weights:
            text = folder_digest(self.folder)
            added = self._settings.model_dump(include={"pad_token", "template"})
            if any(added.values()):
                text += f" {json.dumps(added, sort_keys=True)}"
            self._weights = hashlib.sha256(text.encode()).hexdigest()
        return self._weights

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and how they answer on this machine, which decides number format and device."""
        from constitutional.engines.local import answers_identity, placed

        device, dtype = placed(self._settings.device, self._settings.dtype)
        return answers_identity(self.weights, dtype, device.partition(":")[0])

    def session(self) -> "LocalSession":
        """A new session, for which the model is loaded."""
        return self._models.get(self._settings).session()


def user_engine(settings: ScriptedSettings) -> Engine:
    """The engine of a function that a user wrote.

    Raises:
        InputError: there is no such function.
    """
    loaded = load_function(settings.function)
    digest = hashlib.sha256(loaded.name.encode())
    for path in loaded.sources:
        if not path.is_file():
            raise loaded.wrong(
                f"the function '{loaded.name}' is not written in Python, so nobody can tell when it changes"
            )
        digest.update(path.read_bytes())

    def rule(request: Request) -> Completion | str:
        answer = loaded.function(request)
        if isinstance(answer, Completion) or (isinstance(answer, str) and not request.choices):
            return answer
        expected = "a Completion with a log-probability for each choice" if request.choices else "a text"
        raise loaded.wrong(f"the function '{loaded.name}' returned {answer!r:.60}, and should return {expected}")

    return ScriptedEngine(rule, f"{loaded.name} {digest.hexdigest()}", Abilities(choices=settings.choices))


def engine_of(
    settings: EngineSettings,
    models: "Models",
    say: Callable[[str], None] | None = None,
    journal: "Callable[[], Journal] | None" = None,
) -> Engine:
    """The engine of these settings, whose model is loaded, or server asked, when it is first needed.

    Args:
        settings: the model, function or server.
        models: those that are in memory.
        say: tells the user a line, such as that a server is down.
        journal: gives the journal that remembers what servers can do.

    Raises:
        ConfigurationError: the settings name nothing that there is.
        ModelError: the model is not whole.
    """
    if isinstance(settings, ModelSettings):
        return LazyEngine(settings, models)
    if isinstance(settings, ScriptedSettings):
        return user_engine(settings)
    if isinstance(settings, HttpSettings):
        from constitutional.engines.http import HttpEngine

        return HttpEngine(settings, say, journal)
    from constitutional.engines.vllm import VllmEngine

    return VllmEngine(settings, models)


def open_engine(  # noqa: PLR0913 - each is a setting of the model
    path: str = SANDBOX,
    *,
    journal: Path | None = None,
    dtype: Dtype = "auto",
    device: str = "",
    batch_size: int | None = None,
    pad_token: str | None = None,
    template: Mapping[str, bool | int | float | str] | None = None,
) -> Engine:
    """An engine for use without a run folder; with `journal`, answers are kept in that file and never asked twice.

    The other arguments are the settings of `model` that bear their names.
    """
    settings = ModelSettings(
        path=path,
        dtype=dtype,
        device=device,
        batch_size=batch_size,
        pad_token=pad_token,
        template=dict(template or {}),
    )
    engine = LazyEngine(settings, Models())
    if journal is None:
        return engine
    from constitutional.engines.journal import Journal, JournalEngine

    return JournalEngine(engine, Journal(journal))
