from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.node import one_node


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The log of what the actors are asked of a cluster of one node, to which this process is connected."""
    with one_node(tmp_path_factory.mktemp("ray")) as path:
        yield path


@pytest.fixture
def fresh(log: Path) -> Path:
    """The log, empty."""
    log.unlink(missing_ok=True)
    return log
