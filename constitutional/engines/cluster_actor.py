"""What runs on a cluster's nodes for `engines/cluster.py`: an actor, which is a process that holds one ordinary engine.

Every node needs this package, and what the engine needs, in the same versions. Importing this loads neither Ray nor
torch.
"""

import os
import threading
from collections.abc import Sequence
from contextlib import closing, nullcontext
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from constitutional.base.errors import ConstitutionalError
from constitutional.engines.base import Completion, Engine, Request, Ticket
from constitutional.engines.models import Models, engine_of
from constitutional.engines.settings import ModelSettings, ScriptedSettings, VllmSettings

NodeSettings = ModelSettings | ScriptedSettings | VllmSettings
"""Of an engine that answers on a node; a server is asked by the driver."""


class Described(NamedTuple):
    """The engine of an actor."""

    weights: str
    identity: str
    """As the engine says them on its node."""
    made_of: str
    """What else an identity depends on, in words."""


class EngineActor:
    """An engine on a node. Ray calls its methods in several threads.

    What goes wrong with the engine is returned: raised, it would come wrapped in an error of Ray's.
    """

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._one_at_a_time = threading.Lock() if isinstance(settings, ScriptedSettings) else nullcontext()
        """A user's function need not be for several threads; while it has one chunk, the next is on its way."""

    def place(self) -> tuple[str, int]:
        """The node's address, and the process's id."""
        import ray

        return ray.util.get_node_ip_address(), os.getpid()

    def describe(self) -> Described | ConstitutionalError:
        """What the engine is, which is known before its model is loaded."""
        try:
            engine = self._opened()
            return Described(engine.weights, engine.identity, _made_of(self._settings))
        except ConstitutionalError as error:
            return error

    def answer(self, requests: Sequence[Request]) -> list[Completion | None] | ConstitutionalError:
        """A completion for each request, in order.

        None stands for those without one because the engine could not go on: it says why when it is asked for them
        again, and what it had answered is not lost.
        """
        answers: dict[Ticket, Completion] = {}
        try:
            with self._one_at_a_time, closing(self._opened().session()) as session:
                for number, request in enumerate(requests):
                    session.submit((number,), request)
                while len(answers) < len(requests):
                    answers |= session.collect()
        except Exception as error:
            if not answers and isinstance(error, ConstitutionalError):
                return error
            if not answers:
                raise
        return [answers.get((number,)) for number in range(len(requests))]

    def _opened(self) -> Engine:
        with self._lock:
            if self._engine is None:
                self._engine = engine_of(self._settings, Models())
            return self._engine


def _made_of(settings: NodeSettings) -> str:
    """`torch 2.13.0, transformers 5.17.0, bfloat16 on cuda`."""
    if isinstance(settings, ScriptedSettings):
        return settings.function
    from constitutional.engines.local import placed

    parts = []
    for package in ("torch", "transformers", *(("vllm",) if isinstance(settings, VllmSettings) else ())):
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"no {package}")
    device, dtype = placed(getattr(settings, "device", ""), settings.dtype or "auto", settings.path or "")
    return f"{', '.join(parts)}, {dtype} on {device.partition(':')[0]}"
