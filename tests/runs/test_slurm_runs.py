"""Real runs of the sandbox's model, here and in jobs on this machine."""

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest

from constitutional.base.files import digest_of
from constitutional.runs.folder import RunStore
from constitutional.runs.slurm import FOLDER
from tests.runs.fake_slurm import install
from tests.runs.test_distributed import children, made
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


# --- Trainings by several processes ---

TWO_NODES = ("launch=slurm", "launch.config=ddp", "launch.gpus_per_node=1", "launch.nodes=2")
"""Both are this machine, and neither has a GPU: a process on each."""
TWO_GPUS = ("launch=slurm", "launch.config=ddp", "launch.gpus_per_node=2")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose stages two processes of the command trained."""
    run = Run(tmp_path_factory.mktemp("runs") / "here")
    with run.start("until=dpo", "launch=accelerate", "launch.processes=2") as process:
        assert process.end() == 0, process.said
    return run.here


def without(here: Path, folder: Path, stage: str) -> Run:
    """The same run, as it was before a stage was made."""
    shutil.copytree(here, folder, symlinks=True)
    (made,) = folder.glob(f"runs/.stages/{stage}-*")
    shutil.rmtree(made)
    return Run(folder)


@pytest.mark.parametrize(
    ("stage", "launched"),
    [
        ("sft", (*TWO_NODES, "launch.mode=local")),
        ("reward", (*TWO_GPUS, "launch.mode=local")),
        ("dpo", TWO_NODES),
    ],
)
def test_the_processes_of_a_job_make_what_those_of_the_command_make(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, launched: tuple[str, ...]
) -> None:
    for name, value in install(tmp_path / "cluster").items():
        monkeypatch.setenv(name, value)
    run = without(here, tmp_path / "there", stage)
    with run.start(f"until={stage}", *launched) as process:
        assert process.end() == 0, process.said
    made_now = [line for line in process.said if re.match(r"\d\d \w+: running", line)]
    assert [line.split()[1] for line in made_now] == [f"{stage}:"]
    command, job = RunStore.load(here / "runs" / "ours"), RunStore.load(run.folder)
    assert job.stages[stage].fingerprint == command.stages[stage].fingerprint
    assert digest_of(made(job, stage)) == digest_of(made(command, stage))
    assert job.training_logs(stage) == command.training_logs(stage)
    logs = sorted(log.name.partition("_")[2] for log in (job.folder / FOLDER).glob("*_log.out"))
    assert logs == [f"{node}_log.out" for node in range(2 if "launch.nodes=2" in launched else 1)]
    assert not [path for path in (job.folder / FOLDER).iterdir() if path.suffix not in (".out", ".sh")]


def test_a_process_of_another_node_that_is_killed_ends_the_stage_and_the_same_command_goes_on(
    here: Path, tmp_path: Path
) -> None:
    run = without(here, tmp_path / "there", "sft")
    words = ("until=sft", *TWO_NODES, "launch.mode=local")
    with run.start(*words) as process:
        process.until(lambda: any(run.folder.glob("*/checkpoints/**/checkpoint-1/complete")))
        os.kill(children(tmp_path)[-1], signal.SIGKILL)
        assert process.end() == 1, process.said
        assert re.search(r"constitutional: sft: a process that trains was ended .* goes on", "\n".join(process.said))
    with run.start(*words) as process:
        assert process.end() == 0, process.said
    job, command = RunStore.load(run.folder), RunStore.load(here / "runs" / "ours")
    assert digest_of(made(job, "sft")) == digest_of(made(command, "sft"))
