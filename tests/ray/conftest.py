import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of one node with four cores, and the log of what its actors are asked."""
    import ray

    path = tmp_path_factory.mktemp("ray") / "asked.jsonl"
    os.environ |= {"TESTS_LOG": str(path), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5f2c" * 16}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
    yield path
    ray.shutdown()
    for name in ("TESTS_LOG", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        del os.environ[name]


@pytest.fixture
def fresh(log: Path) -> Path:
    """The log, empty."""
    log.unlink(missing_ok=True)
    return log
