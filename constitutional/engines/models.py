"""From settings to an engine: a model that is loaded when it is first asked, and the models that are in memory.

A run whose answers are all in the journal never loads a model.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from constitutional.base.user_function import load_function
from constitutional.engines.base import Abilities, Completion, Engine, Request
from constitutional.engines.model_files import model_folder, weights_digest
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
asked least recently. Sessions hold theirs to their end, so a panel's judges are all in memory while they judge."""


class Models:
    """The models in memory: each folder loaded once, the least recently asked released when another is needed."""

    def __init__(self, say: Callable[[str], None] | None = None, most: int = LOADED) -> None:
        self._say = say
        self._most = most
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
        while len(self._loaded) >= self._most or self._shares(settings) > 1:
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
            from constitutional.engines.local import free_memory

            del model
            free_memory()

    def release(self) -> None:
        """Give the memory of every model back, before training needs it."""
        for settings in list(self._loaded):
            self._release(settings)


class LazyEngine(Engine):
    """An engine that is known at once, and whose model is loaded when it is first asked."""

    def __init__(self, settings: ModelSettings, models: Models) -> None:
        self.folder = model_folder(settings.path, settings.revision)
        self._settings = settings.model_copy(update={"path": str(self.folder), "revision": None})
        self._models = models

    @cached_property
    def weights(self) -> str:
        """SHA-256 of the model's files, and of what the settings add to the tokenizer."""
        return weights_digest(self.folder, self._settings)

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and how they answer on this machine, which decides number format and device."""
        from constitutional.engines.local import answers_identity, placed

        device, dtype = placed(self._settings.device, self._settings.dtype, self.folder)
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

    return VllmEngine(settings, models.server)


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
