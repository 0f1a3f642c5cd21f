"""Machines with an address each, in network namespaces of this one; they need root and the command ip (iproute2)."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

IP = shutil.which("ip")
MISSING = os.geteuid() != 0 or IP is None
WHY = "network namespaces need root and the command ip (iproute2)"
PREFIX = f"cst{os.getpid() % 100_000}"
"""Of the names of namespaces and devices, which may have 15 characters."""
_MADE = itertools.count()
PATHS = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "OMP_NUM_THREADS": "1"}


def ip(*words: str) -> str:
    return subprocess.run([str(IP), *words], check=True, capture_output=True, text=True).stdout


class Node:
    """A namespace with an address, and the processes in it."""

    def __init__(self, number: int) -> None:
        made = next(_MADE)  # the device of a namespace that was removed may be there for a moment
        self.name = f"{PREFIX}n{made}"
        self.device = f"{PREFIX}v{made}"
        self.address = f"10.213.77.{number + 1}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def make(self, bridge: str) -> None:
        ip("netns", "add", self.name)
        ip("link", "add", self.device, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self.device, "master", bridge, "up")
        for words in (("addr", "add", f"{self.address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            ip("-n", self.name, *words)
        ip("-n", self.name, "link", "set", "lo", "up")

    def start(self, words: Sequence[str], log: Path, **environment: str) -> "subprocess.Popen[bytes]":
        """A process in the namespace."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                [str(IP), "netns", "exec", self.name, *words],
                env=os.environ | PATHS | environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def connect(self, *, on: bool) -> None:
        """Plug the network cable in, or out."""
        ip("link", "set", self.device, "up" if on else "down")

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


@contextmanager
def network(nodes: Sequence[Node]) -> Iterator[None]:
    """Connect them meanwhile; a test is skipped where no network device can be made."""
    bridge = f"{PREFIX}br"
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
        yield


def wait_for(what: Callable[[], bool], within_s: float, log: Path) -> None:
    end_s = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < end_s, log.read_text()[-3000:]
        time.sleep(0.1)
