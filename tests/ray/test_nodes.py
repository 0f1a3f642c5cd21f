"""A cluster of three nodes, each with an address of its own, in network namespaces of this machine.

Node 0 is the head and has the driver, node 1 is cut off while a run goes on, and node 2 is killed.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from constitutional.engines.cluster import CHUNKS
from tests.ray.functions import Asked, asked
from tests.scripted_run import constitution

if find_spec("ray") is None:
    pytest.skip("Ray is not installed; make test-ray installs it", allow_module_level=True)
IP = shutil.which("ip")
if os.geteuid() != 0 or IP is None:
    pytest.skip("network namespaces need root and the command ip (iproute2)", allow_module_level=True)

NODES = 3
CHUNK = 4
FUNCTION = f"{Path(__file__).parent / 'functions.py'}:answer"
HEALTH = {"period_ms": "500", "timeout_ms": "1000", "failure_threshold": "4", "initial_delay_ms": "0"}
"""Of the head: a node that is cut off counts as gone after some seconds; by default after a minute."""
ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "5f2c" * 16,
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    **{f"RAY_health_check_{name}": value for name, value in HEALTH.items()},
}
PREFIX = f"cst{os.getpid() % 100_000}"
"""Of the names of namespaces and devices, which may have 15 characters."""


def ip(*words: str) -> str:
    return subprocess.run([str(IP), *words], check=True, capture_output=True, text=True).stdout


class Node:
    """A namespace with an address, and the processes in it."""

    def __init__(self, number: int) -> None:
        self.name = f"{PREFIX}n{number}"
        self.device = f"{PREFIX}v{number}"
        self.address = f"10.213.77.{number + 1}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def make(self, bridge: str) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.device, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.device, "master", bridge, "up")
        for words in (("addr", "add", f"{self.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            ip("-n", self.name, *words)
        ip("-n", self.name, "link", "set", "lo", "up")

    def start(self, words: list[str], log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """A process in the namespace, with files of Ray's of its own, as on a machine of its own."""
        own = log.parent / f"{self.name}-ray"
        own.mkdir(exist_ok=True)
        mounted = f'mkdir -p /tmp/ray && mount --bind {own} /tmp/ray && exec "$@"'
        with log.open("ab") as file:
            process = subprocess.Popen(
                [str(IP), "netns", "exec", self.name, "sh", "-c", mounted, "sh", *words],
                env=os.environ | ENVIRONMENT | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def kill(self) -> None:
        """End all its processes at once, as a machine does that loses its power."""
        for pid in ip("netns", "pids", self.name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        for process in self.processes:
            process.wait(10)

    def remove(self) -> None:
        with suppress(subprocess.CalledProcessError):
            self.kill()
            ip("netns", "del", self.name)  # with its device


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    """Three nodes that have joined a cluster, with one core each for actors."""
    nodes, bridge = [Node(number) for number in range(NODES)], f"{PREFIX}br"
    with ExitStack() as stack:
        try:
            ip("link", "add", bridge, "type", "bridge")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network device can be made here: {error.stderr.strip()}")
        stack.callback(ip, "link", "del", bridge)
        ip("link", "set", bridge, "up")
        for node in nodes:
            stack.callback(node.remove)
            node.make(bridge)
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


def wait_for(what: Callable[[], bool], within_s: float, log: Path) -> None:
    end_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end_s, log.read_text()[-3000:]
        time.sleep(0.1)


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
    nodes: list[Node], tmp_path: Path
) -> None:
    constitution(tmp_path)
    alone = subprocess.run(
        command(tmp_path, "alone"), env=os.environ | ENVIRONMENT, check=False, capture_output=True, text=True
    )
    assert alone.returncode == 0, alone.stderr
    log = tmp_path / "driver.log"
    words = ["cluster=ray", f"cluster.address={nodes[0].address}:6379", f"cluster.chunk={CHUNK}"]
    driver = nodes[0].start(command(tmp_path, "spread", *words), log)
    # All three answer, then two are gone in the middle of what they do.
    wait_for(lambda: all(len(asked_of(tmp_path, number)) > CHUNK for number in range(NODES)), 120, log)
    ip("link", "set", nodes[1].device, "down")
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
