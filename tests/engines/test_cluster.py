"""What the driver decides about actors, beside a Ray that is made up: tests/ray has the real one."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from constitutional.base.errors import ConfigurationError, ConstitutionalError, ModelError
from constitutional.base.records import Message
from constitutional.engines import cluster
from constitutional.engines.base import Completion, Request
from constitutional.engines.cluster import DEATHS, Cluster, ClusterEngine, _Actor, _Chunk
from constitutional.engines.cluster_actor import Described, EngineActor, NodeSettings
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import ModelSettings, RayClusterSettings, ScriptedSettings

FUNCTION = ScriptedSettings(function="functions.py:answer")
WEIGHTS = ScriptedEngine(lambda _: "yes", "answer").weights


class Lost(Exception):  # noqa: N818 - Ray's has another name, too
    """An actor is dead."""


class Reference:
    """What will come at a time, or never."""

    def __init__(self, value: object, at_s: float) -> None:
        self.value, self.at_s = value, at_s


class Ray:
    """Stands where the module `ray` is imported; an actor is there at once, and says what it is after a while."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(RayError=Lost, RayTaskError=ZeroDivisionError)
        self.describe_s = 0.0
        """How long an actor takes to say what it is."""
        self.place: object = ("10.0.0.1", 7)
        self.started = 0
        self.killed = 0

    def answers(self, requests: Sequence[Request]) -> list[Completion | None]:
        return [Completion("yes", "stop") for _ in requests]

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": 1.0}

    def remote(self, _kind: type) -> Any:  # noqa: ANN401
        def made(_settings: ScriptedSettings) -> SimpleNamespace:
            self.started += 1
            parts: dict[str, Callable[..., Reference]] = {
                "place": lambda: self._coming(self.place),
                "describe": lambda: self._coming(Described(WEIGHTS, "one", "functions"), self.describe_s),
                "answer": lambda requests: self._coming(self.answers(requests), 0.05),
            }
            return SimpleNamespace(**{name: SimpleNamespace(remote=part) for name, part in parts.items()})

        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=made))

    def _coming(self, value: object, after_s: float = 0.0) -> Reference:
        return Reference(value, time.monotonic() + after_s)

    def wait(
        self, references: Sequence[Reference], num_returns: int = 1, timeout: float = 0.0
    ) -> tuple[list[Reference], list[Reference]]:
        end_s = time.monotonic() + timeout
        while True:
            there = [reference for reference in references if reference.at_s <= time.monotonic()]
            if len(there) >= num_returns or time.monotonic() >= end_s:
                return there, []
            time.sleep(0.005)

    def get(self, reference: Reference) -> object:
        if isinstance(reference.value, Exception) and not isinstance(reference.value, ConstitutionalError):
            raise reference.value  # what is wrong with an engine an actor returns
        return reference.value

    def kill(self, _handle: object) -> None:
        self.killed += 1


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    made = Ray()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr(cluster, "find_spec", lambda _: made)
    monkeypatch.setattr(cluster, "LOOK_S", 0.01)
    yield made
    while CLUSTERS:
        CLUSTERS.pop().close()


CLUSTERS = list[Cluster]()


def opened(**own: float) -> Cluster:
    CLUSTERS.append(Cluster(RayClusterSettings.model_validate({"max_actors": 4, **own}), list[str]().append))
    return CLUSTERS[-1]


def engine_on(where: Cluster) -> ClusterEngine:
    return where.engine(ScriptedEngine(lambda _: "yes", "answer"), FUNCTION)


def question(text: str) -> Request:
    return Request((Message("user", text),))


def test_an_actor_that_takes_long_to_start_is_waited_for(ray: Ray) -> None:
    ray.describe_s = 0.4
    engine = engine_on(opened(idle_s=0.1, patience_s=0.2))
    assert engine.identity == "one"
    assert (ray.started, ray.killed) == (1, 0)
    time.sleep(0.15)
    other = engine_on(engine.cluster)
    other.complete([question("somebody looks after the actors")])
    assert engine.actors == []  # it had nothing to do


@pytest.mark.usefixtures("ray")
def test_a_model_does_not_give_up_its_place_while_another_is_at_work() -> None:
    where = opened(patience_s=0.05)
    busy, waiting = engine_on(where), engine_on(where)
    busy.complete([question("first")])
    busy.actors[0].chunks = 1
    waiting.actors = [where.start(FUNCTION, 2, 0)]  # which has no place yet
    for _ in range(3):
        waiting._check_patience()
        time.sleep(0.06)
    busy.actors[0].chunks = 0
    time.sleep(0.06)
    with pytest.raises(ModelError, match="the cluster has had no place"):
        waiting._check_patience()


def lost_while_starting(engine: ClusterEngine, count: int) -> None:
    """So many actors die at once before they say what they are."""
    starting = [engine.cluster.start(FUNCTION, 2, 0) for _ in range(count)]
    for actor in starting:
        actor.starting = Reference(Lost("the node is gone"), 0.0)
    engine.actors += starting
    engine.arrived([actor.starting for actor in starting])


def test_a_lost_node_is_one_accident_however_many_actors_started_on_it(ray: Ray) -> None:
    engine = engine_on(opened())
    lost_while_starting(engine, 2 * DEATHS)
    assert engine.actors == []
    assert ray.killed == 2 * DEATHS
    for _ in range(DEATHS - 2):
        time.sleep(0.02)
        lost_while_starting(engine, 1)
    time.sleep(0.02)
    with pytest.raises(ModelError, match=f"{DEATHS} actors died one after the other before they could be asked"):
        lost_while_starting(engine, 1)


def test_actors_that_cannot_start_end_nothing_while_another_answers(ray: Ray) -> None:
    engine = engine_on(opened())
    assert engine.identity == "one"
    for _ in range(2 * DEATHS):
        time.sleep(0.02)
        lost_while_starting(engine, 1)
    assert engine.complete([question("Well?")]) == [Completion("yes", "stop")]
    assert ray.started == 1 + 2 * DEATHS


def test_where_there_is_no_time_no_work_is_begun(ray: Ray) -> None:
    session = engine_on(opened()).session()
    session.submit((0,), question("Well?"))
    assert session.collect(0.0) == []
    assert (ray.started, session.open) == (0, {})
    assert session.collect() == [((0,), Completion("yes", "stop"))]
    assert ray.started == 1


def test_when_the_last_node_with_gpus_is_lost_an_actor_still_wants_one(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened().engine(ScriptedEngine(lambda _: "yes", "answer"), ModelSettings(path="somewhere"))
    wanted = list[float]()
    start = engine.cluster.start

    def noted(settings: NodeSettings, chunks: int, gpus: float) -> Any:  # noqa: ANN401
        wanted.append(gpus)
        return start(settings, chunks, gpus)

    monkeypatch.setattr(engine.cluster, "start", noted)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
    engine._start()
    monkeypatch.setattr(ray, "cluster_resources", dict)
    engine._start()
    assert wanted == [1, 1]


def test_where_one_actor_is_lost_busy_ones_are_asked_too_whether_they_are_there(ray: Ray) -> None:
    engine = engine_on(opened())
    assert engine.identity == "one"
    engine._start()
    engine._start()
    busy, dead, idle = engine.actors
    for actor in engine.actors:
        actor.starting, actor.known = None, True
    busy.chunks = 1
    engine.lost(dead, Lost("the node is gone"))
    assert engine.actors == [busy, idle]
    assert all(actor.starting for actor in engine.actors)
    engine.arrived([actor.starting for actor in engine.actors])  # both are
    assert not any(actor.starting for actor in engine.actors)
    assert ray.killed == 1


def test_when_the_first_node_with_gpus_joins_later_actors_answer_on_what_the_first_did(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened().engine(ScriptedEngine(lambda _: "yes", "answer"), ModelSettings(path="somewhere"))
    assert engine._gpus_of_an_actor() == 0
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
    assert engine._gpus_of_an_actor() == 0


def test_idle_actors_end_while_nobody_asks_anything(ray: Ray) -> None:
    engine = engine_on(opened(idle_s=60))
    engine.complete([question("first")])
    where, (actor,) = engine.cluster, engine.actors
    assert where._caretaker is not None
    where._over.set()
    where._caretaker.join()  # here the test looks after the actors, and no thread
    actor.idle_since_s -= 59.0
    where._looked_s = time.monotonic() - 7.0
    where.end_idle()
    assert engine.actors == [actor]  # not for long enough
    actor.idle_since_s -= 2.0
    where._looked_s = time.monotonic()
    where.end_idle()
    assert engine.actors == [actor]  # somebody asks just now, and another model's requests may be the next
    actor.chunks, where._looked_s = 1, where._looked_s - 7.0
    where.end_idle()
    assert engine.actors == [actor]  # it answers what a session gave up
    engine._left = {Reference([None], 0.0): chunk_of(actor)}
    where.end_idle()
    assert (engine.actors, actor.chunks) == ([actor], 0)  # it has just done so
    actor.idle_since_s -= 61.0
    where.end_idle()
    assert (engine.actors, ray.killed) == ([], 1)


def test_an_actor_that_is_dead_with_several_chunks_left_behind_is_lost_once(ray: Ray) -> None:
    engine = engine_on(opened())
    assert engine.identity == "one"
    (actor,) = engine.actors
    actor.chunks = 2
    engine._left = {Reference(Lost("the node is gone"), 0.0): chunk_of(actor) for _ in range(2)}
    engine.take_left()
    assert (engine.actors, engine._left, ray.killed) == ([], {}, 1)


def chunk_of(actor: _Actor) -> _Chunk:
    chunk = _Chunk([(0,)], [question("given up")])
    chunk.actor = actor
    return chunk


def test_a_thread_ends_idle_actors_until_the_cluster_is_left(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ROOM_S", 0.02)
    engine = engine_on(opened(idle_s=0.05))
    engine.complete([question("first")])
    end_s = time.monotonic() + 60
    while engine.actors:
        assert time.monotonic() < end_s
        time.sleep(0.01)
    assert ray.killed == 1
    thread = engine.cluster._caretaker
    engine.cluster.close()
    assert thread is not None
    assert not thread.is_alive()


def test_an_engine_that_says_on_every_actor_why_it_cannot_go_on_is_believed(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "answers", lambda _: ModelError("the prompt has 9 tokens, and the model reads 8"))
    engine = engine_on(opened())
    with pytest.raises(ModelError) as told:
        engine.complete([question("Well?")])
    assert str(told.value) == "on the node 10.0.0.1: the prompt has 9 tokens, and the model reads 8"
    assert told.value.__notes__ == [
        f"{DEATHS} actors, one after the other, could not answer; what was answered is kept"
    ]


@pytest.mark.parametrize(("asked", "idle_s", "kept"), [(False, 6.0, False), (False, 4.0, True), (True, 6.0, True)])
@pytest.mark.usefixtures("ray")
def test_a_model_that_was_never_asked_gives_its_place_to_one_that_wants_another(
    asked: bool, idle_s: float, kept: bool
) -> None:
    named, wanting = (engine_on(where) for where in [opened()] * 2)
    assert (named.identity, wanting.identity) == ("one", "one")  # both have an actor, and the first one nothing to do
    if asked:
        named.complete([question("first")])
    named.actors[0].idle_since_s = time.monotonic() - idle_s
    wanting._start()  # for which there is no place
    named.cluster._looked_s = 0.0
    named.cluster.look_after(wanting)
    assert [len(named.actors), len(wanting.actors)] == [int(kept), 2]


def test_what_an_actor_has_answered_is_kept_and_the_rest_is_asked_again(
    ray: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[list[str]]()

    def only_the_second(requests: Sequence[Request]) -> list[Completion | None]:
        texts = [request.messages[0].content for request in requests]
        asked.append(texts)
        if len(texts) < 3:
            return [Completion(f"to {text}", "stop") for text in texts]
        return [None, Completion(f"to {texts[1]}", "stop"), *[None] * (len(texts) - 2)]

    monkeypatch.setattr(ray, "answers", only_the_second)
    engine = engine_on(opened(max_actors=1, chunk=4))
    answers = engine.complete([question(text) for text in "abcde"])
    assert [answer.text for answer in answers] == ["to a", "to b", "to c", "to d", "to e"]
    assert sorted(asked) == [["a", "b", "c"], ["a", "c"], ["d", "e"]]


def test_an_engine_that_cannot_go_on_says_why_after_what_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(request: Request) -> str:
        if request.messages[0].content == "c":
            raise ConfigurationError("c is no question")
        return "yes"

    actor = EngineActor(FUNCTION)
    monkeypatch.setattr(actor, "_opened", lambda: ScriptedEngine(rule, at_a_time=2))
    a, b, c, d = (question(text) for text in "abcd")
    yes = Completion("yes", "stop")
    assert actor.answer([a, b, c, d]) == [yes, yes, None, None]
    assert isinstance(actor.answer([c, d]), ConfigurationError)
    assert actor.answer([d]) == [yes]


def test_what_goes_wrong_with_ray_does_not_end_who_ends_idle_actors(ray: Ray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ROOM_S", 0.0)
    engine = engine_on(opened(idle_s=0.05))
    failures = iter([Lost("a node is gone")])

    def fail_once() -> None:
        if failure := next(failures, None):
            raise failure

    monkeypatch.setattr(engine, "take_left", fail_once)
    engine.complete([question("first")])
    end_s = time.monotonic() + 5
    while engine.actors and time.monotonic() < end_s:
        time.sleep(0.01)
    assert engine.actors == []
    assert next(failures, None) is None
    assert ray.killed == 1


def test_a_cluster_that_was_left_starts_nothing_anew(ray: Ray) -> None:
    engine = engine_on(opened())
    assert engine.identity == "one"
    engine.cluster.close()
    with pytest.raises(ModelError, match="was left"):
        engine.complete([question("Well?")])
    assert ray.started == 1


@pytest.mark.parametrize(
    ("settings", "fault", "lost"),
    [
        (FUNCTION, ZeroDivisionError("in a user's function"), False),
        (ModelSettings(path="somewhere"), ZeroDivisionError("CUDA error"), True),
        (FUNCTION, Lost("the node is gone"), True),
    ],
)
@pytest.mark.usefixtures("ray")
def test_an_actor_whose_engine_is_dead_is_found_out_whoever_had_asked_it(
    settings: NodeSettings, fault: Exception, lost: bool
) -> None:
    engine = opened().engine(ScriptedEngine(lambda _: "yes", "answer"), settings)
    assert engine.identity == "one"
    (actor,) = engine.actors
    session = engine.session()
    session.submit((0,), question("Well?"))
    engine.hand_out(session)
    ((reference, _),) = session.open.items()
    reference.value, reference.at_s = fault, 0.0
    session.close()  # nobody awaits it any more
    engine.arrived([reference])
    assert (actor in engine.actors) == (not lost)
    assert lost or actor.chunks == 0
