"""A cluster that scales by itself: nodes come for actors that wait, and go once these have ended."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.ray.functions import asked
from tests.ray.node import SHARED, await_start

if find_spec("ray") is None:
    pytest.skip("Ray is not installed; make test-ray installs it", allow_module_level=True)

NODES = 3


def scaling(port: int) -> dict[str, object]:
    """Of Ray's autoscaler, whose nodes are processes here: a head without a core, and others that come when asked."""
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    worker = {"resources": {"CPU": 1, "object_store_memory": 10**8}, "node_config": {}}
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    return {
        "cluster_name": "test",
        "max_workers": NODES,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": head,
            "worker": worker | {"min_workers": 0, "max_workers": NODES},
        },
        "head_node_type": "ray.head.default",
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.05,
        "auth": {"ssh_user": "nobody"},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        **{f"{name}_commands": [] for name in commands},
    }


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    own = tempfile.mkdtemp(prefix="ray")  # a short path, as sockets need
    others = {"RAY_TMPDIR": own, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "OMP_NUM_THREADS": "1"}
    paths = os.pathsep.join(path for path in sys.path if path)
    yield os.environ | SHARED | others | {"PYTHONPATH": paths, "TESTS_LOG": str(tmp_path / "asked.jsonl")}
    shutil.rmtree(own, ignore_errors=True)


@pytest.fixture
def address(tmp_path: Path, environment: dict[str, str]) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config, said = tmp_path / "scaling.json", tmp_path / "head.log"
    config.write_text(json.dumps(scaling(port)))
    words = ["start", "--head", "--block", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=0"]
    words += ["--include-dashboard=false", f"--autoscaling-config={config}"]
    with said.open("wb") as file:
        command = [sys.executable, "-m", "ray.scripts.scripts", *words]
        head = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    try:
        await_start(head, said)
        yield f"127.0.0.1:{port}"
    finally:
        head.terminate()  # it ends the node's processes, and a node without its head ends
        head.wait(60)


def test_nodes_come_for_actors_that_wait_for_a_place_and_go_when_these_end(
    address: str, environment: dict[str, str], tmp_path: Path
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.ray.scaling_driver", address],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["answers"] == [f"Reply {len(text)} to: {text}" for text in (f"{n} <wait 1>" for n in range(60))]
    assert (found["most"], found["last"]) == (1 + NODES, 1)
    rows = asked(tmp_path / "asked.jsonl")
    assert len(rows) == len({row.digest for row in rows}) == 60  # every request once
    assert len({row.pid for row in rows}) == NODES
