"""A cluster of three nodes, each with an address of its own, in network namespaces of this machine.

Node 0 is the head and has the driver, node 1 is cut off while a run goes on, and node 2 is killed.
"""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from constitutional.engines.cluster import CHUNKS
from tests.namespaces import MISSING, PATHS, WHY, Node, network, wait_for
from tests.ray.functions import Asked, asked
from tests.scripted_run import constitution

if find_spec("ray") is None:
    pytest.skip("Ray is not installed; make test-ray installs it", allow_module_level=True)
if MISSING:
    pytest.skip(WHY, allow_module_level=True)

NODES = 3
CHUNK = 4
FUNCTION = f"{Path(__file__).parent / 'functions.py'}:answer"
HEALTH = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "4", "initial_delay_ms": "0"}
"""Of the head: a node that is cut off counts as gone after some seconds; by default after a minute."""
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5f2c" * 16,
    "RAY_USAGE_STATS_ENABLED": "0",
    **{f"RAY_health_check_{name}": value for name, value in HEALTH.items()},
}


class RayNode(Node):
    """A node of a Ray cluster."""

    def start(self, words: Sequence[str], log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """A process in the namespace, with files of Ray's of its own, as on a machine of its own."""
        own = log.parent / f"{self.name}-ray"
        own.mkdir(exist_ok=True)
        mounted = f'mkdir -p /tmp/ray && mount --bind {own} /tmp/ray && exec "$@"'
        return super().start(["sh", "-c", mounted, "sh", *words], log, **ENVIRONMENT, **environment)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[RayNode]]:
    """Three nodes that have joined a cluster, with one core each for actors."""
    nodes = [RayNode(number) for number in range(NODES)]
    with network(nodes):
        program = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            "--block",
            "--num-cpus=1",
            "--disable-usage-stats",
        ]
        for number, node in enumerate(nodes):
            words = [*program, f"--node-ip-address={node.address}", "--object-store-memory=100000000"]
            log = tmp_path / f"node{number}.log"
            environment = {"TESTS_LOG": str(tmp_path / f"asked{number}.jsonl"), "TESTS_WAIT_S": "0.2"}
            if number == 0:
                words += ["--head", "--port=6379", "--include-dashboard=false"]
            else:
                words += [f"--address={nodes[0].address}:6379"]
            process = node.start(words, log, **environment)
            wait_for(partial(started, log), 90, log)
            assert process.poll() is None
        yield nodes


def started(log: Path) -> bool:
    return b"Ray runtime started" in log.read_bytes()


def asked_of(folder: Path, number: int) -> list[Asked]:
    """What a node was asked, in order."""
    return asked(folder / f"asked{number}.jsonl")


def command(folder: Path, name: str, *words: str) -> list[str]:
    roles = [word for role in ("generator", "critic") for word in (f"{role}=scripted", f"{role}.function={FUNCTION}")]
    return [
        *(sys.executable, "-m", "constitutional", "run", f"name={name}", f"folder={folder}/{name}"),
        *(f"constitution.file={folder}/ours.yaml", "until=critique_revise", "critique_revise=schema"),
        *("critique_revise.rounds=2", "prompts.train=60", "prompts.held_out=4", *roles, *words),
    ]


def test_a_run_ends_as_on_one_machine_where_one_node_is_cut_off_and_one_is_killed(
    nodes: list[RayNode], tmp_path: Path
) -> None:
    constitution(tmp_path)
    alone = subprocess.run(
        command(tmp_path, "alone"), env=os.environ | PATHS | ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    log = tmp_path / "driver.log"
    words = ["cluster=ray", f"cluster.address={nodes[0].address}:6379", f"cluster.chunk={CHUNK}"]
    driver = nodes[0].start(command(tmp_path, "spread", *words), log)
    # All three answer, then two are gone in the middle of what they do.
    wait_for(lambda: all(len(asked_of(tmp_path, number)) > CHUNK for number in range(NODES)), 120, log)
    nodes[1].connect(on=False)
    nodes[2].kill()
    assert driver.poll() is None, log.read_text()
    assert driver.wait(240) == 0, log.read_text()
    said = log.read_text()
    assert said.count("lost an actor on 10.213.77.2") == said.count("lost an actor on 10.213.77.3") == 1
    spread, single = (
        next((tmp_path / name / name).glob("*critique_revise/revisions.jsonl")).read_bytes()
        for name in ("spread", "alone")
    )
    assert spread == single
    # What was in flight on the nodes that were lost is asked twice, and nothing else.
    counts = Counter(row.digest for number in range(NODES) for row in asked_of(tmp_path, number))
    assert max(counts.values()) == 2
    assert sum(counts.values()) - len(counts) <= 2 * CHUNKS * CHUNK
