"""Runs whose trainings are sharded over two processes by FSDP2 or ZeRO-3, against the same runs by one.

Both are for GPUs. Here the processes are those of `on_cpus.py`, in which accelerate does not ask for one.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from constitutional.runs import distributed
from tests.runs.test_distributed import break_off, compare, config_of, start
from tests.scripted_run import constitution
from tests.tiny import tiny_model

ZERO3 = pytest.param("zero3", marks=pytest.mark.skipif(not find_spec("deepspeed"), reason="make test-zero3 has it"))
SHARDED = ("sft", "reward", "dpo")
pytestmark = pytest.mark.slow  # each of them starts three interpreters


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A folder of a run in which one process made all that is trained."""
    folder = tmp_path_factory.mktemp("alone")
    constitution(folder)
    start(config_of(folder, model, "dpo", "name=dpo"))
    return folder


@pytest.fixture(autouse=True)
def on_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    running = distributed._running

    def start_on_cpus(command: list[str], log: Any) -> Any:
        return running(["tests.runs.on_cpus" if "distributed_child" in word else word for word in command], log)

    monkeypatch.setattr(distributed, "_running", start_on_cpus)
    monkeypatch.setattr(distributed, "check", lambda _: None)  # which refuses shards where there is no GPU
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")


def by(kind: str) -> tuple[str, str]:
    return (f"launch=accelerate_{kind}", "launch.processes=2")


@pytest.mark.parametrize("stage", SHARDED)
@pytest.mark.parametrize("kind", ["fsdp2", ZERO3])
def test_shards_make_what_one_process_makes(alone: Path, model: Path, tmp_path: Path, kind: str, stage: str) -> None:
    compare(alone, model, tmp_path / "two", stage, by(kind))


@pytest.mark.parametrize("stage", SHARDED)
@pytest.mark.parametrize("kind", ["fsdp2", ZERO3])
def test_a_sharded_stage_that_is_killed_or_stopped_goes_on_to_the_same(
    alone: Path, model: Path, tmp_path: Path, kind: str, stage: str
) -> None:
    break_off(alone, model, tmp_path, stage, by(kind))
