"""A cluster of one node, for tests."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SHARED = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5f2c" * 16, "RAY_USAGE_STATS_ENABLED": "0"}
"""Of the environment, on the node and here."""


def await_start(head: "subprocess.Popen[bytes]", said: Path) -> None:
    """Wait until the head of a cluster says in its log that it has started."""
    end_s = time.monotonic() + 120
    while b"Ray runtime started" not in said.read_bytes():
        assert time.monotonic() < end_s, said.read_text()
        assert head.poll() is None, said.read_text()
        time.sleep(0.2)


@contextmanager
def one_node(folder: Path) -> Iterator[Path]:
    """The log of what the actors are asked of a cluster of one node, to which this process is connected meanwhile."""
    path, said = folder / "asked.jsonl", folder / "node.log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["start", "--head", "--block", f"--port={port}", "--num-cpus=4", "--include-dashboard=false"]
    own = tempfile.mkdtemp(prefix="ray")  # a short path, as sockets need
    os.environ |= SHARED | {"RAY_TMPDIR": own}  # read when Ray is imported
    environment = os.environ | {"TESTS_LOG": str(path)}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    with said.open("wb") as file:
        head = subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", *words], env=environment, stdout=file, stderr=file
        )
    import ray

    try:
        await_start(head, said)
        ray.init(address=f"127.0.0.1:{port}", log_to_driver=False)
        yield path
    finally:
        ray.shutdown()
        head.terminate()  # it ends the node's processes
        head.wait(60)
        for name in (*SHARED, "RAY_TMPDIR"):
            del os.environ[name]
        shutil.rmtree(own, ignore_errors=True)
