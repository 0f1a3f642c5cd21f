"""vLLM in the actors of a Ray cluster: the answers of one process without Ray, and nothing of it stays behind."""

import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]
import pytest

from constitutional.engines.base import Completion, Request
from constitutional.engines.cluster import Cluster, ClusterEngine
from constitutional.engines.models import Models, engine_of
from constitutional.engines.settings import ModelSettings, RayClusterSettings, VllmSettings
from tests.ray.node import one_node
from tests.ray.test_cluster import session_of, within
from tests.vllm.test_engine import QUESTIONS, greedy, opened, user
from tests.vllm.test_process import gone

if find_spec("vllm") is None or find_spec("ray") is None:
    pytest.skip("vLLM or Ray is not installed; make test-vllm-ray installs both", allow_module_level=True)

CHOICES = ("So it follows the principle.", "So it violates the principle.")
REQUESTS = [
    *(greedy(question, 24) for question in QUESTIONS[:16]),
    *(Request(user(question), choices=CHOICES) for question in QUESTIONS[:4]),
    *(Request(user(question), choices=(" A", " B")) for question in QUESTIONS[:4]),
]


@pytest.fixture(scope="module")
def alone() -> list[Completion]:
    """The answers of vLLM without Ray, which has ended."""
    models = Models()
    answers = opened("sandbox", models).complete(REQUESTS)
    models.release()
    return answers


class On(NamedTuple):
    """vLLM on a cluster of this machine."""

    engine: ClusterEngine
    said: list[str]
    """What the user was told."""


def on_cluster(settings: VllmSettings, **own: float) -> On:
    """Opens the sandbox's model; a chunk is one request, so that both actors have some and none is answered in part."""
    whole = settings.over(ModelSettings(dtype="float32"))
    said: list[str] = []
    cluster = Cluster(RayClusterSettings.model_validate({"chunk": 1, "idle_s": 600, **own}), said.append)
    return On(cluster.engine(engine_of(whole, Models()), whole), said)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """This machine as a cluster, to which this process is connected."""
    with one_node(tmp_path_factory.mktemp("ray")):
        yield


@pytest.fixture(scope="module")
def two(node: None) -> Iterator[On]:  # noqa: ARG001
    """Two actors at most."""
    opened_there = on_cluster(VllmSettings(memory=0.25), max_actors=2)
    yield opened_there
    opened_there.engine.cluster.close()


def actor_process(actor: Any) -> psutil.Process:  # noqa: ANN401 - an actor of the cluster's
    import ray

    _, pid = ray.get(actor.handle.place.remote())
    return psutil.Process(pid)


def started_by(process: psutil.Process) -> list[psutil.Process]:
    """All that an actor has started: vLLM's process, and what that one has started."""
    return list(process.children(recursive=True))


def check(answers: list[Completion], expected: list[Completion]) -> None:
    assert [(answer.text, answer.finish) for answer in answers] == [(one.text, one.finish) for one in expected]
    for answer, one in zip(answers, expected, strict=True):
        assert answer.choice_logprobs == pytest.approx(one.choice_logprobs, abs=1e-3)
        assert (answer.prompt_tokens, answer.completion_tokens) == (one.prompt_tokens, one.completion_tokens)


def test_answers_are_those_of_vllm_without_ray_and_come_from_two_actors(alone: list[Completion], two: On) -> None:
    check(two.engine.complete(REQUESTS), alone)
    vllm = [started_by(actor_process(actor)) for actor in two.engine.actors if actor.asked]
    assert [len(processes) for processes in vllm] == [1, 1]
    (line,) = two.said
    assert "the cluster has no GPU, so CPUs answer" in line


@pytest.mark.parametrize("killed", ["the actor", "vLLM's process"])
def test_what_is_killed_in_the_middle_is_asked_again_and_leaves_no_process(
    alone: list[Completion], two: On, killed: str
) -> None:
    two.said.clear()
    victim = next(actor for actor in two.engine.actors if actor.asked)
    process = actor_process(victim)
    (vllm,) = started_by(process)
    answers: dict[int, Completion] = {}
    session = session_of(two.engine, REQUESTS)
    while len(answers) < 2 or victim not in {chunk.actor for chunk in session.open.values()}:
        answers |= {number: answer for (number,), answer in session.collect(1)}
    assert len(answers) < len(REQUESTS)
    os.kill(process.pid if killed == "the actor" else vllm.pid, signal.SIGKILL)
    while len(answers) < len(REQUESTS):
        answers |= {number: answer for (number,), answer in session.collect()}
    session.close()
    check([answers[number] for number in range(len(REQUESTS))], alone)
    assert any("lost an actor on" in line and "asked again" in line for line in two.said)
    assert victim not in two.engine.actors
    assert gone(vllm.pid)
    assert gone(process.pid)


def test_idle_actors_end_and_vllm_with_them(two: On) -> None:
    cluster = two.engine.cluster
    processes = [actor_process(actor) for actor in two.engine.actors if actor.known]
    vllm = [child for process in processes for child in started_by(process)]
    assert vllm
    cluster.settings = cluster.settings.model_copy(update={"idle_s": 0.5})
    within(30, lambda: not two.engine.actors)
    assert all(gone(process.pid) for process in [*processes, *vllm])
    cluster.settings = cluster.settings.model_copy(update={"idle_s": 600.0})


def test_one_actor_has_a_model_that_is_divided_and_all_its_processes_end_with_it(
    alone: list[Completion],
    node: None,  # noqa: ARG001
) -> None:
    import ray

    free = ray.available_resources()["CPU"]
    divided = on_cluster(VllmSettings(memory=0.25, tensor_parallel=2), max_actors=1, cpus=2)
    check(divided.engine.complete(REQUESTS[::3]), alone[::3])
    (actor,) = divided.engine.actors
    assert ray.available_resources()["CPU"] == free - 2
    process = actor_process(actor)
    vllm = started_by(process)
    assert len([one for one in vllm if "Worker_TP" in " ".join(one.cmdline())]) == 2
    os.kill(process.pid, signal.SIGKILL)
    assert all(gone(one.pid) for one in [process, *vllm])
    divided.engine.cluster.close()
