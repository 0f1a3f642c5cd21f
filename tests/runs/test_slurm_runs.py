"""Real runs of the sandbox's model, here and in jobs on this machine."""

import os
import signal
import time
from pathlib import Path

import pytest

from constitutional.runs.slurm import FOLDER
from tests.runs.test_kills import Process, Run
from tests.runs.test_slurm import works
from tests.scripted_run import STAGES

pytestmark = pytest.mark.slow

LAUNCH = ("launch=slurm", "launch.mode=local")
TRAINED = ("sft", "reward", "dpo")
IN_JOBS = ("labeler_check", "critique_revise", "sft", "sample_pairs", "label", "reward", "dpo", "evaluate")


def kill_job(process: Process, run: Run, name: str) -> None:
    """Kill the job of a training once it has a step in its log, and with it what it had not kept."""
    stage = next(stage for stage in STAGES if stage.name == name)
    process.until(lambda: any((run.folder / FOLDER).glob(f"{name}-*.job")) and run.steps(stage) > 0)
    (waiting,) = (run.folder / FOLDER).glob(f"{name}-*.job")
    controller = int(waiting.read_text())
    (work,) = map(int, Path(f"/proc/{controller}/task/{controller}/children").read_text().split())
    os.kill(work, signal.SIGKILL)


def test_a_run_in_jobs_two_of_which_are_killed_ends_as_one_here(tmp_path: Path) -> None:
    here, there = Run(tmp_path / "here"), Run(tmp_path / "there")
    with here.start() as process:
        assert process.end() == 0, process.said
    with there.start(*LAUNCH) as process:
        for name in ("sft", "reward"):
            kill_job(process, there, name)
        assert process.end() == 0, process.said
    again = [line.split(":")[0].strip() for line in process.said if "it is submitted again" in line]
    assert again == ["sft", "reward"]
    jobs = [line.split(":")[0].strip() for line in process.said if ": local job " in line]
    assert jobs == [
        "labeler_check",
        "critique_revise",
        *("sft",) * 2,
        "sample_pairs",
        "label",
        *("reward",) * 2,
        *IN_JOBS[6:],
    ]
    files = there.files
    assert [name for name in files if name.startswith(f"{FOLDER}/")]
    files = {name: digest for name, digest in files.items() if not name.startswith(f"{FOLDER}/")}
    differ = {name for name in files.keys() | here.files.keys() if files.get(name) != here.files.get(name)}
    assert differ == {"config.json", "10_report/report.html"}  # which hold the settings
    # A run that was made in jobs is done for one that is not, and the other way round.
    with there.start("until=report") as process:
        assert process.end() == 0
    assert sum(": done before, used again" in line for line in process.said) == len(STAGES)


def test_a_budget_ends_a_job_as_it_ends_a_stage_here(tmp_path: Path) -> None:
    said = {}
    for name, words in {"here": (), "there": LAUNCH}.items():
        run = Run(tmp_path / name)
        with run.start("until=labeler_check", "budget.max_calls=3", *words) as process:
            assert process.end() == 3, process.said
        said[name] = [line.replace(str(run.here), "") for line in process.said]
    (here,) = (line for line in said["here"] if line.startswith("constitutional: "))
    there = [line for line in said["there"] if line.startswith("constitutional: ")]
    assert there[0] == here
    assert there[1].startswith(f"constitutional: /runs/ours/{FOLDER}/")
    stopped = "01 labeler_check: stopped after 3 calls"
    assert any(line.startswith(stopped) for line in said["here"])
    assert any(line.startswith(stopped) for line in said["there"])


def test_ctrl_c_ends_the_job_and_the_same_command_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with run.start("until=labeler_check", *LAUNCH) as process:
        process.until(lambda: run.answers > 0)
        (waiting,) = (run.folder / FOLDER).glob("*.job")
        controller = int(waiting.read_text())
        assert process.send(signal.SIGINT) == 130
    assert "01 labeler_check: stopped; the same command goes on from here" in process.said
    assert not works(controller)
    kept = run.answers
    assert kept > 0
    time.sleep(2)
    assert run.answers == kept
    with run.start("until=labeler_check", *LAUNCH) as process:
        assert process.end() == 0, process.said
    assert run.finished["labeler_check"].calls.reused >= kept
