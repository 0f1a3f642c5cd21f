"""Two machines that train together, each with an address of its own and one of them cut off, killed, and back again.

They are network namespaces of this machine, and share its files.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from constitutional.base.files import digest_of
from constitutional.runs.folder import RunStore
from tests.namespaces import MISSING, WHY, Node, network, wait_for
from tests.runs.test_distributed import children, made
from tests.runs.test_kills import SETTINGS, Run
from tests.runs.test_slurm_runs import without

pytestmark = [pytest.mark.slow, pytest.mark.skipif(MISSING, reason=WHY)]


@pytest.fixture
def machines() -> Iterator[list[Node]]:
    nodes = [Node(0), Node(1)]
    with network(nodes):
        yield nodes


def typed(machines: list[Node], rank: int) -> list[str]:
    """The command of a machine."""
    words = ["launch=accelerate", "launch.processes=1", "launch.machines=2"]
    words += [f"launch.main_address={machines[0].address}", f"launch.machine_rank={rank}"]
    return [sys.executable, "-m", "constitutional", "run", *SETTINGS, "until=sft", "sft.epochs=4", *words]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_machine_that_is_lost_ends_the_training_and_the_same_commands_go_on_to_the_same(
    machines: list[Node], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    monkeypatch.chdir(tmp_path)
    here = Run(tmp_path / "here")
    with here.start("until=sft", "sft.epochs=4", "launch=accelerate", "launch.processes=2") as process:
        assert process.end() == 0, process.said
    run = without(here.here, tmp_path / "there", "sft")
    os.chdir(run.here)
    logs = [run.here / f"machine_{rank}.txt" for rank in (0, 1)]

    def begin(rank: int) -> "subprocess.Popen[bytes]":
        return machines[rank].start(typed(machines, rank), logs[rank])

    started = [begin(0), begin(1)]
    wait_for(lambda: any(run.folder.glob("*/checkpoints/**/checkpoint-2/complete")), 240, logs[0])
    # No word of its end reaches the other machine.
    machines[lost].connect(on=False)
    machines[lost].kill()
    if lost == 1:
        assert started[0].wait(120) == 1
        assert "sft: another machine is gone, or its command was stopped" in logs[0].read_text()
    else:
        wait_for(lambda: "sft: machine 0 no longer trains, and the processes here" in logs[1].read_text(), 120, logs[1])
        wait_for(lambda: "machine 0 has stopped; waiting until its command" in logs[1].read_text(), 30, logs[1])
    wait_for(lambda: children(tmp_path) == [], 30, logs[0])
    machines[lost].connect(on=True)
    # The one that is left still waits for the other, but where machine 0 has told of its failure.
    again = [begin(0), begin(1) if lost == 1 else started[1]]
    assert [process.wait(240) for process in again] == [0, 0], logs[0].read_text()
    stores = [RunStore.load(each.folder) for each in (here, run)]
    assert digest_of(made(stores[1], "sft")) == digest_of(made(stores[0], "sft"))
