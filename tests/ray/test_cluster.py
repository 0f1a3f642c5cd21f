"""Engines whose models are in actors, on a cluster of one node."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import psutil  # type: ignore[import-untyped]
import pytest

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.records import Message
from constitutional.engines.base import Completion, Request, Sampling, Ticket
from constitutional.engines.cluster import CHUNKS, DEATHS, Cluster, ClusterEngine, ClusterSession
from constitutional.engines.cluster_actor import Described
from constitutional.engines.journal import Journal
from constitutional.engines.models import Models, engine_of
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.settings import ModelSettings, RayClusterSettings, ScriptedSettings, VllmSettings
from tests.ray.functions import answer, asked

if find_spec("ray") is None:
    pytest.skip("Ray is not installed; make test-ray installs it", allow_module_level=True)

FUNCTION = ScriptedSettings(function=f"{Path(__file__).parent / 'functions.py'}:answer", choices=True)
CHUNK = 4
Opened = Callable[..., ClusterEngine]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def opened(fresh: Path, said: list[str]) -> Iterator[Opened]:  # noqa: ARG001 - the cluster
    """Opens the function, or another model, on a cluster with these settings."""
    clusters: list[Cluster] = []

    def opened(settings: ScriptedSettings | ModelSettings = FUNCTION, **own: float) -> ClusterEngine:
        cluster = Cluster(RayClusterSettings.model_validate({"max_actors": 2, "chunk": CHUNK, **own}), said.append)
        clusters.append(cluster)
        return cluster.engine(engine_of(settings, Models()), settings)

    yield opened
    for cluster in clusters:
        cluster.close()


def question(text: str, *choices: str) -> Request:
    return Request((Message("user", text),), Sampling(temperature=0, max_tokens=24), choices=choices)


def session_of(engine: ClusterEngine, requests: list[Request]) -> ClusterSession:
    session = engine.session()
    for number, request in enumerate(requests):
        session.submit((number,), request)
    return session


def warmed(engine: ClusterEngine, log: Path) -> ClusterEngine:
    """The engine, with all its actors ready, and an empty log."""
    session = session_of(engine, [question(f"warm up {number} <wait 0.2>") for number in range(1000)])
    within(120, lambda: session.collect(0.1) is None or sum(not actor.starting for actor in engine.actors) == 2)
    session.close()
    while any(actor.chunks for actor in engine.actors):  # with what the session gave up
        engine.complete([question(f"later {time.monotonic()}")])
    log.unlink()
    return engine


def within(seconds: float, what: Callable[[], object]) -> None:
    end_s = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def test_answers_are_those_of_one_machine_in_order_and_come_from_several_processes(opened: Opened, fresh: Path) -> None:
    requests = [question(f"{number} <wait 0.02>") for number in range(60)] + [question("Which?", "A", "BBB")]
    engine = warmed(opened(), fresh)
    assert engine.complete(requests) == engine_of(FUNCTION, Models()).complete(requests)
    assert engine.complete(requests[-1:])[0].choice_logprobs == (-2.0, -4.0)
    rows = [row for row in asked(fresh) if row.pid != os.getpid()]
    assert len({row.pid for row in rows}) == 2
    assert len(rows) == 62


def test_the_sandboxs_model_replies_greedily_as_on_one_machine(opened: Opened) -> None:
    texts = ["How do I bake bread?", "I was fired today.", "Who wrote Faust?"]
    requests = [question(text) for text in texts] + [question(text, "Yes", "No") for text in texts]
    there, here = opened(ModelSettings()).complete(requests), engine_of(ModelSettings(), Models()).complete(requests)
    assert [completion.text for completion in there] == [completion.text for completion in here]
    for one, other in zip(there, here, strict=True):
        assert one.choice_logprobs == pytest.approx(other.choice_logprobs, abs=1e-4)


def test_what_a_killed_actor_had_is_asked_again_elsewhere_and_nothing_else(
    opened: Opened, fresh: Path, said: list[str]
) -> None:
    requests = [question(f"{number} <wait 0.1>") for number in range(80)]
    answers: list[list[Completion]] = []
    engine = warmed(opened(), fresh)
    thread = threading.Thread(target=lambda: answers.append(engine.complete(requests)))
    thread.start()
    within(60, lambda: len({row.pid for row in asked(fresh)}) == 2 and len(asked(fresh)) > 20)
    victim = asked(fresh)[-1].pid
    os.kill(victim, signal.SIGKILL)
    thread.join(60)
    assert answers == [[Completion(str(answer_text(request)), "stop") for request in requests]]
    counts = Counter(row.digest for row in asked(fresh))
    assert len(counts) == 80
    assert set(counts.values()) == {1, 2}
    assert sum(counts.values()) - 80 <= CHUNKS * CHUNK
    assert victim not in {row.pid for row in asked(fresh)[-CHUNK:]}
    assert len(said) == 1
    assert "lost an actor on" in said[0]
    assert "asked again" in said[0]


def answer_text(request: Request) -> str:
    text = request.messages[-1].content
    return f"Reply {len(text)} to: {text}"


def test_requests_with_which_actors_die_end_the_session_after_all_else_was_handed_on(opened: Opened) -> None:
    session = session_of(opened(), [question(f"{number} <wait 0.01>") for number in range(40)] + [question("<die>")])
    answers: list[tuple[Ticket, Completion]] = []

    def collect_all() -> None:
        while True:
            answers.extend(session.collect())

    with pytest.raises(ModelError, match=rf"{DEATHS} actors died one after the other with the same \d requests.*kept"):
        collect_all()
    session.close()
    assert len(answers) >= 40 - CHUNKS * CHUNK
    assert (40,) not in dict(answers)


def test_an_actor_has_no_more_than_its_chunks_and_a_model_no_more_than_its_actors(opened: Opened, fresh: Path) -> None:
    engine = opened()
    session = session_of(engine, [question(f"{number} <wait 0.3>") for number in range(50)])
    most = 2 * CHUNKS * CHUNK
    while len(asked(fresh)) < 12:
        session.collect(0.1)
        in_flight = sum(len(chunk.requests) for chunk in session.open.values())
        assert in_flight <= most
        assert len(engine.actors) <= 2
    assert session.wanting >= 10
    session.close()


def test_what_a_session_gives_up_is_no_later_sessions(opened: Opened) -> None:
    engine = opened(max_actors=1)
    session = session_of(engine, [question(f"{number} <wait 0.1>") for number in range(8)])
    within(60, lambda: session.collect(0.1) or session.open)
    session.close()
    assert engine.complete([question("later")]) == [Completion(answer_text(question("later")), "stop")]


def test_an_actor_with_nothing_to_do_ends_and_another_starts_when_there_is(opened: Opened) -> None:
    engine = opened(idle_s=0.5)
    first = engine.complete([question("first")])
    (process,) = engine.actors
    time.sleep(1.2)
    other = engine.cluster.engine(engine_of(FUNCTION, Models()), FUNCTION)
    other.complete([question("somebody looks after the actors")])
    assert engine.actors == []
    assert engine.complete([question("first")]) == first
    assert process not in engine.actors


def test_two_models_take_turns_where_there_is_place_for_one(opened: Opened) -> None:
    one = opened(cpus=4)
    two = one.cluster.engine(ScriptedEngine(answer, one.weights.removeprefix("scripted:")), FUNCTION)
    for number in range(2):
        assert one.complete([question(f"one {number}")])[0].text.endswith(f"one {number}")
        assert two.complete([question(f"two {number}")])[0].text.endswith(f"two {number}")
    assert (len(one.actors), len(two.actors)) == (0, 1)


def test_without_a_place_it_gives_up_and_says_what_an_actor_needs(opened: Opened) -> None:
    with pytest.raises(ModelError, match=r"no place for .*needs 0 GPU and 100 CPU of one node, and free are 0 GPU, \d"):
        opened(cpus=100, patience_s=1).complete([question("Hello?")])


def test_an_error_of_the_users_function_is_raised_as_on_one_machine(opened: Opened) -> None:
    with pytest.raises(ValueError, match="as it was told"):
        opened().complete([question("fine"), question("<raise>")])


def test_a_node_with_another_model_is_refused(opened: Opened) -> None:
    cluster = opened().cluster
    engine = cluster.engine(ScriptedEngine(answer, "another"), FUNCTION)
    with pytest.raises(ModelError, match="the model's files there are others than here"):
        engine.complete([question("Hello?")])


def test_a_node_that_answers_otherwise_than_the_others_is_refused(opened: Opened) -> None:
    engine = opened()
    engine._first = ("10.0.0.9", Described(engine.weights, "another identity", "torch 1.0"))
    with pytest.raises(
        ModelError, match=r"answers otherwise than 10\.0\.0\.9: by .*functions.py:answer, there by torch 1"
    ):
        engine.complete([question("Hello?")])


def test_a_model_that_a_node_cannot_open_is_told_with_the_node(opened: Opened, tmp_path: Path) -> None:
    cluster = opened().cluster
    engine = cluster.engine(ScriptedEngine(answer, "here"), ModelSettings(path=str(tmp_path / "nowhere")))
    with pytest.raises(ConfigurationError, match=r"on the node [\d.]+: .*nowhere"):
        engine.complete([question("Hello?")])


DRIVER = """
import sys
from pathlib import Path
from constitutional.engines.cluster import Cluster
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.models import Models, engine_of
from constitutional.engines.settings import RayClusterSettings
from tests.ray.test_cluster import CHUNK, FUNCTION, question
cluster = Cluster(RayClusterSettings(address=sys.argv[1], max_actors=2, chunk=CHUNK), print)
engine = cluster.engine(engine_of(FUNCTION, Models()), FUNCTION)
with Journal(Path(sys.argv[2])) as journal:
    asking = JournalEngine(engine, journal)
    answers = asking.complete([question(f"{number} <wait 0.1>") for number in range(100)])
print(asking.asked, asking.reused, len({answer.text for answer in answers}))
cluster.close()
"""


def test_a_killed_driver_goes_on_from_the_journal_and_pays_at_most_what_was_in_flight_twice(
    fresh: Path, tmp_path: Path
) -> None:
    import ray

    journal = tmp_path / "journal.sqlite"
    words = [sys.executable, "-c", DRIVER, ray.get_runtime_context().gcs_address, str(journal)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as driver:
        within(90, lambda: len(asked(fresh)) > 40)
        driver.kill()
    pids = {row.pid for row in asked(fresh)}
    within(30, lambda: not any(_alive(pid) for pid in pids))  # its actors end with it
    before = len(asked(fresh))
    with Journal(journal) as kept:
        count = kept._connection.execute("SELECT COUNT(*) FROM completions").fetchone()[0]
    assert before - 2 * CHUNKS * CHUNK <= count < 100
    again = subprocess.run(words, env=environment, check=True, capture_output=True, text=True, timeout=90)
    assert again.stdout.split() == [str(100 - count), str(count), "100"]
    twice = [digest for digest, times in Counter(row.digest for row in asked(fresh)).items() if times == 2]
    assert len(asked(fresh)) == 100 + len(twice)
    assert len(twice) == before - count <= 2 * CHUNKS * CHUNK


def _alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def test_gpus_are_those_that_the_engine_needs(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = opened().cluster
    vllm = VllmSettings(tensor_parallel=4, data_parallel=2)
    assert [cluster.gpus(settings) for settings in (ModelSettings(), vllm, FUNCTION)] == [0, 0, 0]
    with_gpus = SimpleNamespace(cluster_resources=lambda: {"GPU": 8.0})
    monkeypatch.setattr(cluster, "_connect", lambda: with_gpus)
    models = (ModelSettings(), ModelSettings(device="cpu"), vllm, FUNCTION)
    assert [cluster.gpus(settings) for settings in models] == [1, 0, 8, 0]
    typed = Cluster(RayClusterSettings(gpus=0.5), print)
    assert [typed.gpus(settings) for settings in models] == [0.5, 0, 0.5, 0]


PLACED = """
import time
import ray
from constitutional.engines.cluster import Cluster
from constitutional.engines.settings import RayClusterSettings
from tests.ray.test_cluster import FUNCTION, Models, engine_of, question, session_of, within
ray.init(address="local", num_cpus=8, num_gpus=2, include_dashboard=False, log_to_driver=False)
cluster = Cluster(RayClusterSettings(max_actors=3, chunk=1), print)
cluster.gpus = lambda settings: 1.0  # which a function does not want by itself
engine = cluster.engine(engine_of(FUNCTION, Models()), FUNCTION)
session = session_of(engine, [question(f"{number} <wait 0.05>") for number in range(1000)])
ready = lambda: [actor for actor in engine.actors if actor.node]
within(120, lambda: session.collect(0.1) is None or len(ready()) == 2)
end_s = time.monotonic() + 3
while time.monotonic() < end_s:
    session.collect(0.1)
print(len(engine.actors), len(ready()), cluster.free().partition(",")[0])
first, waiting = ready()[0], next(actor for actor in engine.actors if not actor.node)
engine.end(first)
within(60, lambda: session.collect(0.1) is None or waiting.node)
print(len(ready()))
session.close()
cluster.close()
"""


def test_actors_are_placed_by_gpus_and_one_too_many_waits(tmp_path: Path) -> None:
    """Ray's GPUs are numbers that a node is started with; there is none in this machine."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"TESTS_LOG": str(tmp_path / "asked.jsonl"), "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    ended = subprocess.run(
        [sys.executable, "-c", PLACED], env=environment, check=False, capture_output=True, text=True, timeout=240
    )
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stdout.splitlines() if line[:1].isdigit()] == ["3 2 0 GPU", "2"]


def test_a_head_that_is_not_there_is_told_at_once() -> None:
    program = (
        "from constitutional.engines.cluster import Cluster\n"
        "from tests.ray.test_cluster import *\n"
        "cluster = Cluster(RayClusterSettings(address='127.0.0.1:9'), print)\n"
        "cluster.engine(engine_of(FUNCTION, Models()), FUNCTION).complete([question('Hello?')])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=False, capture_output=True, text=True, timeout=60
    )
    assert "ConfigurationError: the Ray cluster at 127.0.0.1:9 cannot be reached:" in ended.stderr
    assert "refused" in ended.stderr
    assert "ray start" in ended.stderr
