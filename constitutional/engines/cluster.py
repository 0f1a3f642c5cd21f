"""Engines on a Ray cluster: the driver hands requests to actors in chunks, and asks again what dies with an actor.

    journal → ClusterEngine (driver) → chunks → EngineActor → the ordinary engine of the same settings (node)

The journal stays before this engine, on the driver, and is written by it alone, so all that is known of kills holds
here too: what was answered is kept, and at most what was in flight is paid twice.

A session's requests wait on the driver until an actor has room for a chunk of them (back-pressure). Actors are started
while requests wait that no actor has room for, and end when they have nothing to do (autoscaling). Ray places them by
their GPUs, and tells when an actor, its process or its node is gone: at once where a process dies, after the cluster's
health checks where a node is cut off.
"""

import logging
import math
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, Final

from constitutional.base.errors import ConfigurationError, ConstitutionalError, InputError, ModelError
from constitutional.base.progress import clock
from constitutional.engines.base import Completion, Engine, ForwardingEngine, Request, Ticket
from constitutional.engines.cluster_actor import Described, EngineActor, NodeSettings
from constitutional.engines.settings import ModelSettings, RayClusterSettings, ScriptedSettings, VllmSettings

CHUNKS: Final = 2
"""An actor computes one chunk while the next is on its way."""
CHUNKS_OF_VLLM: Final = 4
"""vLLM computes all that it has at once, and a chunk is done when its longest reply is."""
DEATHS: Final = 3
"""So many actors that die with the same requests, or die before they can be asked, are no accident."""
CONNECT_S: Final = 10.0
"""How long a cluster's head may take to accept a connection."""
POLL_S: Final = 0.02
"""How often to look for an actor that another session has done with."""
LOOK_S: Final = 1.0
"""How often to look after actors while an answer is awaited."""
ROOM_S: Final = 5.0
"""How long an actor waits for its place before another model's idle actor ends, and until the next one does."""
TOLD_S: Final = 15.0
"""After so long without an actor the user is told that requests wait for one."""


class _Actor:
    """An actor that was started."""

    def __init__(self, handle: Any) -> None:  # noqa: ANN401 - Ray's
        self.handle = handle
        self.starting: Any = handle.place.remote()
        """What it has still to say before it can be asked: its place, then what its engine is; None afterwards. Where
        another was lost it is to say once more that it is there."""
        self.node = ""
        """Where it is; empty until it has a place."""
        self.known = False
        """Whether it has said what its engine is."""
        self.chunks = 0
        """How many it is answering."""
        self.asked = False
        """Whether it ever had one: before that it has not loaded its model."""
        self.idle_since_s = time.monotonic()


class _Chunk:
    """Requests that are handed to an actor together."""

    def __init__(self, tickets: list[Ticket], requests: list[Request]) -> None:
        self.tickets = tickets
        self.requests = requests
        self.actor: _Actor
        self.deaths = 0
        """How many actors have died with it."""

    def without(self, answers: list[Completion | None]) -> "_Chunk | None":
        """What of it is not answered yet; None where all is."""
        rest = [index for index, answer in enumerate(answers) if answer is None]
        return (
            _Chunk([self.tickets[index] for index in rest], [self.requests[index] for index in rest]) if rest else None
        )


class Cluster:
    """The connection to a Ray cluster, and the engines whose actors are on it.

    Args:
        settings: which cluster, and how much of it.
        say: tells the user a line, such as that an actor was lost.

    Raises:
        ConfigurationError: Ray is not installed.
    """

    def __init__(self, settings: RayClusterSettings, say: Callable[[str], None]) -> None:
        if find_spec("ray") is None:
            raise ConfigurationError(
                "cluster=ray needs Ray, which is not installed; in the project's folder type pip install '.[ray]', "
                "here and on every node, or leave cluster=ray out"
            )
        self.settings = settings
        self.say = say
        self.lock = threading.RLock()
        """Guards all actors."""
        self._engines: list[ClusterEngine] = []
        self._connected = self._closed = False
        self._looked_s = self._made_room_s = 0.0
        self._over = threading.Event()
        self._caretaker: threading.Thread | None = None
        """Ends idle actors while nobody asks anything, as between stages."""

    def engine(self, engine: Engine, settings: NodeSettings) -> "ClusterEngine":
        """An engine of these settings that answers on the cluster.

        Args:
            engine: the same on this machine, which says what it is without loading its model.
            settings: what the nodes open.
        """
        made = ClusterEngine(engine, settings, self)
        self._engines.append(made)
        return made

    def start(self, settings: NodeSettings, chunks: int, gpus: float) -> _Actor:
        """A new actor with an engine of these settings and so many GPUs, which waits until there is a place for it."""
        ray = self._connect()
        if self._caretaker is None:
            self._caretaker = threading.Thread(target=self._take_care, daemon=True)
            self._caretaker.start()
        if isinstance(settings, ModelSettings) and (not gpus or settings.device.startswith("cuda")):
            # Without GPUs of its own an actor sees all of its node's; with some, it sees these alone.
            settings = settings.model_copy(update={"device": "cuda" if gpus else "cpu"})
        kind = ray.remote(EngineActor).options(num_cpus=self.settings.cpus, num_gpus=gpus, max_concurrency=chunks + 1)
        return _Actor(kind.remote(settings))

    def gpus(self, settings: NodeSettings) -> float:
        """How many GPUs an actor with this engine takes, on the cluster as it is now."""
        if isinstance(settings, ScriptedSettings) or getattr(settings, "device", "") == "cpu":
            return 0
        if self.settings.gpus is not None:
            return self.settings.gpus
        if not self._connect().cluster_resources().get("GPU"):
            return 0
        return settings.tensor_parallel * settings.data_parallel if isinstance(settings, VllmSettings) else 1

    def free(self) -> str:
        """What the cluster has free, such as `1 GPU, 6 CPU`."""
        free = self._connect().available_resources()
        return ", ".join(f"{free.get(name, 0):g} {name}" for name in ("GPU", "CPU"))

    def _connect(self) -> Any:  # noqa: ANN401 - the module ray
        import ray

        if self._closed:  # a thread that was left behind would start another one, and nobody would end it
            raise ModelError("the Ray cluster was left")
        if ray.is_initialized():
            return ray
        address = self.settings.address
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # of a cluster that starts here
        main = threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGTERM) if main else None
        try:
            if address:  # Ray itself would take minutes to find that nobody is there
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
            # "local" starts one; left to itself, Ray also looks for minutes for the last that was started here.
            ray.init(
                address=address or os.environ.get("RAY_ADDRESS") or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # which Ray itself raises where a node is slow to start
            at = f" at {address}" if address else ""
            raise ConfigurationError(
                f"the Ray cluster{at} cannot be reached: {_in_a_line(error)}. Start it "
                "with `ray start --head`, and let every other node join, this one too, with `ray start "
                "--address=HOST:PORT`, all with the same Python, Ray, RAY_AUTH_MODE and token; then type the same "
                "command"
            ) from error
        finally:
            if before is not None:  # Ray puts its own there, and a run that is ended keeps what it has
                signal.signal(signal.SIGTERM, before)
        self._connected = True
        return ray

    def look_after(self, waiting: "ClusterEngine") -> None:
        """End actors that have had nothing to do for long, and others where a model waits for a place."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s = now_s
        for engine in self._engines:
            engine.end_idle(now_s - self.settings.idle_s)
        if not any(actor.starting and not actor.node for actor in waiting.actors) or now_s - self._made_room_s < ROOM_S:
            return
        others = [engine for engine in self._engines if engine is not waiting]
        idle = [(actor.idle_since_s, engine, actor) for engine in others for actor in engine.idle()]
        idle = [row for row in idle if not row[2].starting and row[0] < now_s - LOOK_S]
        if not waiting.without_place_since_s or now_s - waiting.without_place_since_s < ROOM_S:
            # Which has a place and wants another: only one that costs little to have again.
            idle = [row for row in idle if not row[2].asked and row[0] < now_s - ROOM_S]
        if idle:
            _, engine, actor = min(idle, key=lambda row: row[0])
            engine.end(actor)
            self._made_room_s = now_s

    def _take_care(self) -> None:
        import ray

        while not self._over.wait(LOOK_S):
            with suppress(ray.exceptions.RayError):  # whoever asks next finds it, and tells it
                self.end_idle()

    def end_idle(self) -> None:
        """End actors that have had nothing to do for long, unless somebody asks now, who looks after them himself."""
        with self.lock:
            now_s = time.monotonic()
            if now_s - self._looked_s < ROOM_S:
                return
            for engine in self._engines:
                engine.take_left()
                engine.end_idle(now_s - self.settings.idle_s)

    def is_busy_beside(self, waiting: "ClusterEngine") -> bool:
        """Whether actors of another model are answering."""
        return any(actor.chunks for engine in self._engines if engine is not waiting for actor in engine.actors)

    def release(self) -> None:
        """End all actors, which gives their memory back."""
        with self.lock:
            for engine in self._engines:
                for actor in list(engine.actors):
                    engine.end(actor)

    def close(self) -> None:
        """End all actors, and leave the cluster for good."""
        with self.lock:
            self._closed = True
        self._over.set()
        if self._caretaker:
            self._caretaker.join()
        self.release()
        if self._connected:
            import ray

            ray.shutdown()
            self._connected = False


class ClusterEngine(ForwardingEngine):
    """An engine whose model is on the nodes of a cluster, in any number of actors; it is for any number of threads.

    Args:
        engine: the same on this machine, which says its weights and abilities.
        settings: what the nodes open.
        cluster: where the actors are.
    """

    elsewhere = True

    def __init__(self, engine: Engine, settings: NodeSettings, cluster: Cluster) -> None:
        super().__init__(engine)
        self.cluster = cluster
        self.actors: list[_Actor] = []
        self.chunks = CHUNKS_OF_VLLM if isinstance(settings, VllmSettings) else CHUNKS
        self.settings = settings
        self.name = settings.function if isinstance(settings, ScriptedSettings) else str(settings.path)
        """For the user."""
        self.without_place_since_s = 0.0
        """Since when requests wait and no actor has a place; 0 while one has."""
        self._first: tuple[str, Described] | None = None
        """The first actor's node, and what its engine is: all others are the same."""
        self._others_busy_s = 0.0
        """When other models were last at work."""
        self._failed_starts = 0
        """One after the other; those at about the same time, as of a node that is lost, are one."""
        self._failed_start_s = 0.0
        self._told = False
        self._gpus: float | None = None
        """How many an actor takes, once that is known: it is no other when the last node with GPUs is lost, nor when
        the first one joins, as answers on GPUs are others."""
        self._left: dict[Any, _Chunk] = {}
        """Chunks whose sessions have ended, by the references of their answers."""

    @property
    def room(self) -> int:  # type: ignore[override] # that of all actors, and as many to choose from
        """Twice what all actors take at a time."""
        return 2 * self.cluster.settings.max_actors * self.chunks * self.cluster.settings.chunk

    @property
    def identity(self) -> str:
        """What the engine says of itself on the nodes: their devices and versions decide it, and not the driver's.

        Raises:
            ConstitutionalError: no actor can say it.
        """
        while self._first is None:
            with self.cluster.lock:
                if not self.actors:
                    self._start()
                self._await_starting()
                self._check_patience()
                self.cluster.look_after(self)
            self.arrived(_ready(self.watched(), LOOK_S))
        return self._first[1].identity

    def session(self) -> "ClusterSession":
        """A new session."""
        return ClusterSession(self)

    def watched(self) -> list[Any]:
        """References that any session may find to be there: of actors that start, and of chunks that nobody awaits."""
        with self.cluster.lock:
            return [*(actor.starting for actor in self.actors if actor.starting), *self._left]

    def hand_out(self, session: "ClusterSession") -> None:
        """Give the session's requests to actors, as far as these have room, and start more where they have none.

        Raises:
            ConstitutionalError: there is no actor, and none can be had.
        """
        with self.cluster.lock:
            while session.wanting and (actor := self._with_room()):
                free = sum(self.chunks - other.chunks for other in self.actors if not other.starting)
                chunk = session.take(min(self.cluster.settings.chunk, math.ceil(session.wanting / free)))
                chunk.actor = actor
                actor.chunks, actor.asked = actor.chunks + 1, True
                session.open[actor.handle.answer.remote(chunk.requests)] = chunk
            if session.wanting:
                self._grow(session.wanting)
                self._check_patience()
            else:
                self.without_place_since_s = 0.0
            self.cluster.look_after(self)

    def _with_room(self) -> _Actor | None:
        ready = [actor for actor in self.actors if not actor.starting and actor.chunks < self.chunks]
        return min(ready, key=lambda actor: actor.chunks, default=None)

    def _grow(self, wanting: int) -> None:
        starting = self._await_starting()
        settings = self.cluster.settings
        missing = math.ceil(wanting / settings.chunk) - len(starting)
        for _ in range(min(missing, settings.max_actors - len(self.actors))):
            self._start()

    def _start(self) -> None:
        self.actors.append(self.cluster.start(self.settings, self.chunks, self._gpus_of_an_actor()))

    def _gpus_of_an_actor(self) -> float:
        if self._gpus is None:
            self._gpus = self.cluster.gpus(self.settings)
            by_itself = self.cluster.settings.gpus is None and not isinstance(self.settings, ScriptedSettings)
            wanted = getattr(self.settings, "device", "") != "cpu"  # vLLM has no such setting, and wants them too
            if by_itself and wanted and not self._gpus:
                self.cluster.say(
                    f"{self.name}: the cluster has no GPU, so CPUs answer; where some come later, type cluster.gpus=1"
                )
        return self._gpus

    def _await_starting(self) -> list[_Actor]:
        """The actors that start, which do not end for want of work: they are wanted."""
        starting = [actor for actor in self.actors if actor.starting]
        for actor in starting:
            actor.idle_since_s = time.monotonic()
        return starting

    def _check_patience(self) -> None:
        """While no actor has a place, tell the user, and give up in the end."""
        if any(actor.node for actor in self.actors):
            self.without_place_since_s, self._told = 0.0, False
            return
        now_s = time.monotonic()
        self.without_place_since_s = self.without_place_since_s or now_s
        if self.cluster.is_busy_beside(self):
            self._others_busy_s = now_s  # its turn comes
        waited_s = now_s - max(self.without_place_since_s, self._others_busy_s)
        if waited_s > self.cluster.settings.patience_s:
            raise ModelError(
                f"{self.name}: the cluster has had no place for {clock(waited_s)}: {self._needs()}. What was answered "
                "is kept; add nodes, or lower cluster.gpus or cluster.cpus, and type the same command"
            )
        if waited_s > TOLD_S and not self._told:
            self._told = True
            self.cluster.say(f"{self.name}: waiting for a place on the cluster: {self._needs()}")

    def _needs(self) -> str:
        gpus, cpus = self._gpus_of_an_actor(), self.cluster.settings.cpus
        return f"an actor needs {gpus:g} GPU and {cpus:g} CPU of one node, and free are {self.cluster.free()} on all"

    def arrived(self, references: Iterable[Any]) -> None:
        """Take note of what has come, of the references that are watched.

        Raises:
            ConstitutionalError: actors cannot be had, or one answers otherwise than the others.
        """
        with self.cluster.lock:
            for reference in references:
                if chunk := self._left.pop(reference, None):
                    self._done(chunk, reference)
                for actor in [actor for actor in self.actors if actor.starting == reference]:
                    self._came_up(actor)

    def _done(self, chunk: _Chunk, reference: Any) -> None:  # noqa: ANN401 - Ray's
        """A chunk that nobody awaits has come; where it tells that its actor is dead, nobody else is to find that."""
        result, dead = self.outcome(reference)
        if dead:
            self.lost(chunk.actor, result)
        else:
            self.freed(chunk.actor)

    def outcome(self, reference: Any) -> tuple[Any, bool]:  # noqa: ANN401 - Ray's
        """What has become of a chunk, its answers or an error; and whether its actor, or the engine there, is dead."""
        import ray

        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            # Raised by a user's function it tells nothing of the actor; by a model's engine, that its GPU fails, say.
            return error, not isinstance(self.settings, ScriptedSettings)
        except ray.exceptions.RayError as error:
            return error, True
        # An engine that fails, as vLLM does whose process was killed, is as dead as its actor.
        return result, isinstance(result, ModelError)

    def _came_up(self, actor: _Actor) -> None:
        import ray

        try:
            said = ray.get(actor.starting)
        except ray.exceptions.RayTaskError as error:
            self.end(actor)
            node = actor.node or "a node"
            raise ModelError(f"{self.name}: cannot be opened on {node}: {_in_a_line(error)}") from error
        except ray.exceptions.RayError as error:
            now_s = time.monotonic()
            if not actor.known and now_s - self._failed_start_s > LOOK_S:
                self._failed_starts, self._failed_start_s = self._failed_starts + 1, now_s
            self.lost(actor, error)
            if self._failed_starts >= DEATHS and not any(other.known for other in self.actors):
                raise self._no_accident("before they could be asked", error) from error
            return
        if isinstance(said, ConstitutionalError):
            self.end(actor)
            raise _from_node(said, actor.node)
        if isinstance(said, Described):
            self._check(said, actor)
            actor.known, actor.idle_since_s, self._failed_starts = True, time.monotonic(), 0
        else:
            actor.node = said[0]
        actor.starting = None if actor.known else actor.handle.describe.remote()

    def _check(self, said: Described, actor: _Actor) -> None:
        """Whether answers of this node are those of all others, and of the model that the driver has."""
        problem = ""
        if said.weights != self.weights:
            problem = (
                "the model's files there are others than here; give all nodes the same, by a file system that they "
                "share or, for a name on the hub, by revision=COMMIT"
            )
        elif self._first and said.identity != self._first[1].identity:
            node, first = self._first
            problem = (
                f"it answers otherwise than {node}: by {said.made_of}, there by {first.made_of}; give all nodes the "
                "same packages, and name the dtype where their GPUs differ"
            )
        if problem:
            self.end(actor)
            raise ModelError(f"{self.name} on the node {actor.node}: {problem}; then type the same command")
        self._first = self._first or (actor.node, said)

    def freed(self, actor: _Actor) -> None:
        """An actor has done a chunk."""
        with self.cluster.lock:
            actor.chunks -= 1
            actor.idle_since_s = time.monotonic()

    def lost(self, actor: _Actor, error: Exception) -> None:
        """An actor is dead, or its engine is; all that it had is asked again by those who wait for it."""
        with self.cluster.lock:
            if actor in self.actors:
                self.end(actor)
                for other in self.actors:
                    if not other.starting:  # requests are for those that are there, where whole nodes are not
                        other.starting = other.handle.place.remote()
                had = f", with {actor.chunks} chunks that are asked again" if actor.chunks else ""
                self.cluster.say(f"{self.name}: lost an actor on {actor.node or 'a node'}{had}: {_in_a_line(error)}")

    def _no_accident(self, when: str, error: Exception) -> ModelError:
        return ModelError(
            f"{self.name}: {DEATHS} actors died one after the other {when}; the last: {_in_a_line(error)}. What was "
            "answered is kept; look into Ray's logs on the node (/tmp/ray/session_latest/logs), and give an actor more "
            "memory if it had too little; then type the same command"
        )

    def gave_up(self, chunk: _Chunk, error: Exception) -> ConstitutionalError | None:
        """The error of a chunk with which too many actors have died; None if it can be asked again."""
        chunk.deaths += 1
        if chunk.deaths < DEATHS:
            return None
        if isinstance(error, ModelError):  # of the engine itself, which knows better than we why it cannot go on
            told = _from_node(error, chunk.actor.node)
            told.add_note(f"{DEATHS} actors, one after the other, could not answer; what was answered is kept")
            return told
        return self._no_accident(f"with the same {len(chunk.requests)} requests", error)

    def leave(self, chunks: dict[Any, _Chunk]) -> None:
        """Chunks that nobody awaits any more; their actors are taken until they are done."""
        with self.cluster.lock:
            self._left |= chunks

    def take_left(self) -> None:
        """Take note of chunks that nobody awaits and that have come; otherwise whoever asks next does so."""
        self.arrived(_ready(list(self._left), 0))

    def idle(self) -> list[_Actor]:
        """Actors with nothing to do, or with no place yet."""
        return [actor for actor in self.actors if not actor.chunks]

    def end_idle(self, before_s: float) -> None:
        """End actors that have had nothing to do since then."""
        for actor in self.idle():
            if actor.idle_since_s < before_s:
                self.end(actor)

    def end(self, actor: _Actor) -> None:
        """End an actor; what it is answering is lost."""
        import ray

        self.actors.remove(actor)
        self._left = {reference: chunk for reference, chunk in self._left.items() if chunk.actor is not actor}
        with suppress(ray.exceptions.RayError):
            ray.kill(actor.handle)


class ClusterSession:
    """What one caller has asked of a cluster."""

    def __init__(self, engine: ClusterEngine) -> None:
        self._engine = engine
        self._waiting: deque[tuple[Ticket, Request]] = deque()
        self._again: list[_Chunk] = []
        """Chunks whose actors died."""
        self.open: dict[Any, _Chunk] = {}
        """Chunks that actors are answering, by the references of their answers."""
        self._failure: Exception | None = None

    @property
    def wanting(self) -> int:
        """How many requests no actor has."""
        return len(self._waiting) + sum(len(chunk.requests) for chunk in self._again)

    def take(self, most: int) -> _Chunk:
        """The next requests for an actor: those that were asked before, or the earliest that wait."""
        if self._again:
            return self._again.pop(0)
        taken = [self._waiting.popleft() for _ in range(min(most, len(self._waiting)))]
        return _Chunk([ticket for ticket, _ in taken], [request for _, request in taken])

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Take a request; it goes to an actor with the next call of `collect`."""
        self._waiting.append((ticket, request))

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """What has finished since the last call, and, unless there is no time for it, more work for the actors.

        Raises:
            ConstitutionalError: the engine cannot go on; everything that was answered was handed on.
        """
        end_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while self.wanting or self.open or self._failure:
            if self._failure and not self.open:
                raise self._failure
            left_s = max(0.0, end_s - time.monotonic())
            answers: list[tuple[Ticket, Completion]] = []
            try:
                if not self._failure and timeout_s != 0:
                    self._engine.hand_out(self)
                ready = _ready([*self._engine.watched(), *self.open], min(left_s, LOOK_S))
                for reference in ready:
                    if reference in self.open:
                        answers += self._answers(reference)
                self._engine.arrived(ready)
            except ConstitutionalError as error:
                self._failure = self._failure or error
            if answers or not left_s:
                return answers
        return []

    def _answers(self, reference: Any) -> list[tuple[Ticket, Completion]]:  # noqa: ANN401 - Ray's
        """What has become of a chunk; nothing where its actor died, and it is to be asked again."""
        chunk = self.open.pop(reference)
        result, dead = self._engine.outcome(reference)
        if dead:
            self._engine.lost(chunk.actor, result)
            self._failure = self._failure or self._engine.gave_up(chunk, result)
            self._again.append(chunk)
            return []
        self._engine.freed(chunk.actor)
        if isinstance(result, list):
            if rest := chunk.without(result):
                self._again.append(rest)
            return [
                (ticket, answer) for ticket, answer in zip(chunk.tickets, result, strict=True) if answer is not None
            ]
        known = isinstance(result, ConstitutionalError)  # and not what a user's function raised
        self._failure = self._failure or (_from_node(result, chunk.actor.node) if known else result)
        return []

    def close(self) -> None:
        """Give up what is outstanding; actors finish what they have begun."""
        self._engine.leave(self.open)
        self.open = {}
        self._again.clear()
        self._waiting.clear()


def _ready(references: list[Any], timeout_s: float) -> list[Any]:
    """Those that are there; waits for the first."""
    import ray

    if not references:  # another session has all actors
        time.sleep(min(timeout_s, POLL_S))
        return []
    ready, _ = ray.wait(references, timeout=timeout_s)
    return ray.wait(references, num_returns=len(references), timeout=0)[0] if ready else []


def _from_node(error: ConstitutionalError, node: str) -> ConstitutionalError:
    """The error of an engine, with the node that it is on."""
    return error if isinstance(error, InputError) else type(error)(f"on the node {node}: {error}")


def _in_a_line(error: Exception) -> str:
    """What is said of the cause, or else the last line, as Python's tracebacks have the error there."""
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if "because" in line] or lines[-1:] or [type(error).__name__]
    return causes[0].rstrip(".")[:400]
