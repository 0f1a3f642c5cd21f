"""Stages in jobs: on this machine, and by commands that stand in for Slurm's."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Literal

import pytest
import submitit

from constitutional.base.errors import ConfigurationError, InputError, RunError
from constitutional.base.progress import Progress
from constitutional.base.templates import load_prompts
from constitutional.engines.spending import Calls
from constitutional.runs import runner, slurm
from constitutional.runs.compose import compose
from constitutional.runs.context import RunContext, selected
from constitutional.runs.launch_settings import HereSettings, SlurmSettings
from constitutional.runs.outputs import Outputs
from constitutional.runs.pipeline import stages_of
from constitutional.runs.runner import Runner
from constitutional.runs.settings import ROLES
from constitutional.runs.slurm import FOLDER, JobEnd, Work, check_launch, in_job, settle
from constitutional.stages.report.comparison import setting_changes
from tests.runs import jobs
from tests.runs.fake_slurm import install
from tests.scripted_run import World, configured, constitution, go

OUTPUT = "sft-0123456789abcdef"
Mode = Literal["slurm", "local"]


@pytest.fixture(params=["local", "slurm"])
def mode(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mode]:
    monkeypatch.setattr(submitit.Job, "_results_timeout_s", 0)  # this file system shows a file at once
    monkeypatch.setattr(slurm, "POLL_S", 0.05)
    for name, value in install(tmp_path / "cluster").items():
        monkeypatch.setenv(name, value)
    yield request.param
    submitit.SlurmJob.watcher.clear()


class Told:
    """A run's folder, and what was said of its jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "first"
        self.folder.mkdir()
        self._stream = StringIO()

    def have(self, work: Work, mode: Mode, nodes: int = 1, **changed: object) -> JobEnd:
        settings = SlurmSettings.model_validate({"mode": mode, "restarts": 1, **changed})
        return in_job(settings, work, self.folder, OUTPUT, Progress(self._stream), nodes=nodes)

    def settle(self, *, same: bool, meanwhile: Callable[[], None] = lambda: None) -> None:
        when(self.folder, meanwhile)
        settle(self.folder, Progress(self._stream), same=same)

    @property
    def lines(self) -> list[str]:
        return self._stream.getvalue().splitlines()

    @property
    def logs(self) -> list[Path]:
        return sorted((self.folder / FOLDER).glob("*_log.out"))


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path)


def when(path: Path, act: Callable[[], None]) -> None:
    """Do something, in a thread, once a file is there."""

    def wait() -> None:
        while not path.exists():
            time.sleep(0.05)
        act()

    threading.Thread(target=wait, daemon=True).start()


def end(job: Path, state: str) -> None:
    """End a job as the cluster does."""
    (job / "state").write_text(state)
    os.killpg(int((job / "group").read_text()), signal.SIGKILL)


def works(process: int) -> bool:
    """Whether a process is there, and not only its entry, which its parent has not read yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "XZ"
    except FileNotFoundError:
        return False


def test_a_job_hands_back_what_its_work_returns(told: Told, mode: Mode) -> None:
    assert told.have(jobs.counts, mode) == JobEnd(None, Calls(asked=7, prompt_tokens=70))
    (log,) = told.logs
    assert f"first {OUTPUT}" in log.read_text().splitlines()
    number = log.name.partition("_")[0]
    assert told.lines[0] == f"  sft: {mode} job {number}; {log} has what it says"
    left = {path.suffix for path in (told.folder / FOLDER).iterdir()}
    assert left == ({".out", ".sh"} if mode == "slurm" else {".out"})


def test_an_error_of_a_job_comes_back_as_itself_with_the_place_of_the_log(told: Told, mode: Mode) -> None:
    end = told.have(jobs.finds_a_wrong_file, mode)
    assert end.calls.asked == 2
    assert isinstance(end.error, InputError)
    assert (str(end.error), end.error.line) == ("mine.jsonl:3: is no prompt", 3)
    (log,) = told.logs
    assert end.error.__notes__ == [f"{log} has what the job {log.name.partition('_')[0]} said"]


def test_a_defect_of_a_job_is_told_with_the_place_of_its_traceback(told: Told, mode: Mode) -> None:
    with pytest.raises(RunError, match=r"sft: job \d+ failed: ZeroDivisionError: of what; \S+ has the traceback"):
        told.have(jobs.has_a_defect, mode)
    assert 'raise ZeroDivisionError("of what")' in told.logs[0].read_text()


@pytest.mark.parametrize("ends", [jobs.is_killed_once, jobs.is_out_of_time_once])
def test_a_job_that_is_ended_from_outside_is_submitted_again(told: Told, mode: Mode, ends: Work) -> None:
    assert told.have(ends, mode).calls.asked == 1
    assert len(told.logs) == 2
    assert (told.folder / "in order").exists() == (ends is jobs.is_out_of_time_once)
    state = {"local": "killed", "slurm": "FAILED"}[mode] if ends is jobs.is_killed_once else "TIMEOUT"
    again = [line for line in told.lines if "submitted again" in line]
    (number,) = re.findall(rf"job (\d+) was ended from outside \({state}\); it is submitted again", again[0])
    assert (told.folder / FOLDER / f"{number}_0_log.out").exists()
    assert len(again) == 1


def test_a_job_is_submitted_again_so_many_times_and_no_more(told: Told, mode: Mode) -> None:
    with pytest.raises(RunError, match=r"ended from outside 2 times, the last time as job \d+ ") as it:
        told.have(jobs.is_always_killed, mode)
    assert ("launch.restarts" in str(it.value)) == (mode == "local")  # of Slurm's it is known that the second failed
    assert "the same command goes on" in str(it.value)
    assert len(told.logs) == 2


def test_a_job_that_needs_more_time_is_told_so(told: Told, mode: Mode) -> None:
    with pytest.raises(RunError, match=r"once, as job \d+ \(TIMEOUT\); .* type a larger launch\.timeout_min"):
        told.have(jobs.is_out_of_time_once, mode, restarts=0)
    assert not list((told.folder / FOLDER).glob("*.late"))


def test_ctrl_c_cancels_the_job(told: Told, mode: Mode) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    when(told.folder / "began", lambda: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(KeyboardInterrupt):
            told.have(jobs.waits, mode)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not works(int((told.folder / "began").read_text()))
    assert not list((told.folder / FOLDER).glob("*.job"))


def test_a_job_of_two_nodes_is_what_the_first_one_hands_back(told: Told, mode: Mode) -> None:
    assert told.have(jobs.first_of_two, mode, nodes=2).calls.asked == 2
    assert [log.name.partition("_")[2] for log in told.logs] == ["0_log.out", "1_log.out"]
    assert f"  sft: {mode} job {told.logs[0].name.partition('_')[0]} on 2 nodes; " in told.lines[0]
    left = {path.suffix for path in (told.folder / FOLDER).iterdir()}
    assert left == ({".out", ".sh"} if mode == "slurm" else {".out"})


@pytest.mark.parametrize("killed", [jobs.other_is_killed_once, jobs.first_is_killed_once])
def test_a_job_one_of_whose_nodes_is_lost_is_submitted_again(told: Told, mode: Mode, killed: Work) -> None:
    assert told.have(killed, mode, nodes=2).calls.asked == 2
    assert len(told.logs) == 4
    assert sum("was ended from outside" in line for line in told.lines) == 1


def test_the_first_node_of_a_job_before_is_not_taken_for_this_ones(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    (told.folder / FOLDER).mkdir()
    for number, seen in (("7", True), ("8", False)):
        monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        with slurm.as_first(told.folder, OUTPUT):
            monkeypatch.setenv("SLURM_JOB_ID", number)
            assert not slurm.first_has_ended(told.folder, OUTPUT)
        assert slurm.first_has_ended(told.folder, OUTPUT) == seen


@pytest.mark.parametrize("mode", ["slurm"], indirect=True)
class TestSlurm:
    """What only Slurm does."""

    def test_the_job_asks_the_cluster_for_what_is_set(self, told: Told, mode: Mode, tmp_path: Path) -> None:
        told.have(
            jobs.counts,
            mode,
            partition="gpu",
            account="ours",
            constraint="h100",
            gpus_per_node=2,
            cpus_per_task=4,
            mem_gb=12.5,
            timeout_min=90,
            setup=["export BEFORE=1"],
            nodes=2,
        )
        script = (tmp_path / "cluster/jobs/1/script").read_text().splitlines()
        (number,) = (number for number, line in enumerate(script) if line.startswith("srun "))
        assert script.index("export BEFORE=1") < number
        assert "--cpus-per-task=4" in script[number].split()  # which some versions of srun do not take from sbatch
        asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", "\n".join(script), re.MULTILINE))
        assert (
            asked.items()
            >= {
                "job-name": "first-sft",
                "partition": "gpu",
                "account": "ours",
                "constraint": "h100",
                "nodes": "2",
                "ntasks-per-node": "1",
                "gpus-per-node": "2",
                "cpus-per-task": "4",
                "mem": "12800MB",
                "time": "90",
                "no-requeue": "",
            }.items()
        )

    def test_what_sbatch_refuses_is_told(self, told: Told, mode: Mode) -> None:
        with pytest.raises(RunError, match=r"could not be submitted: .*invalid partition specified: broken"):
            told.have(jobs.counts, mode, partition="broken")

    def test_a_job_that_is_preempted_is_submitted_again(self, told: Told, mode: Mode, tmp_path: Path) -> None:
        def preempt() -> None:
            end(tmp_path / "cluster/jobs/1", "PREEMPTED")
            (told.folder / "go").touch()

        when(told.folder / "began", preempt)
        assert told.have(jobs.waits, mode).calls.asked == 3
        assert any("job 1 was ended from outside (PREEMPTED); it is submitted again" in line for line in told.lines)

    def test_a_job_without_memory_is_not_submitted_again(self, told: Told, mode: Mode, tmp_path: Path) -> None:
        when(told.folder / "began", lambda: end(tmp_path / "cluster/jobs/1", "OUT_OF_MEMORY"))
        with pytest.raises(RunError, match=r"once, as job 1 \(OUT_OF_MEMORY\); .* a larger launch.mem_gb"):
            told.have(jobs.waits, mode)

    def test_an_earlier_jobs_lack_of_time_is_not_the_next_ones_reason(
        self, told: Told, mode: Mode, tmp_path: Path
    ) -> None:
        (told.folder / FOLDER).mkdir()
        (told.folder / FOLDER / f"{OUTPUT}.late").touch()  # as a job leaves it whose command was killed
        when(told.folder / "began", lambda: end(tmp_path / "cluster/jobs/1", "OUT_OF_MEMORY"))
        with pytest.raises(RunError, match=r"as job 1 \(OUT_OF_MEMORY\)"):
            told.have(jobs.waits, mode)

    def test_a_job_that_fails_again_is_not_submitted_a_third_time(self, told: Told, mode: Mode) -> None:
        with pytest.raises(RunError, match=r"2 times, .* as job 2 \(FAILED\); .* libcuda\.so\.1 is missing"):
            told.have(jobs.cannot_begin, mode, restarts=10)
        assert len(told.logs) == 2

    @pytest.mark.parametrize("same", [True, False])
    def test_the_next_command_is_done_with_the_job_of_one_that_was_killed(
        self,
        told: Told,
        mode: Mode,  # noqa: ARG002 - finds the commands
        same: bool,
    ) -> None:
        waiting = told.folder / FOLDER / f"{OUTPUT}.job"
        program = (
            "import sys; from pathlib import Path; from constitutional.base.progress import Progress\n"
            "from constitutional.runs import launch_settings, slurm; from tests.runs import jobs\n"
            f"slurm.in_job(launch_settings.SlurmSettings(), jobs.waits, Path(sys.argv[1]), '{OUTPUT}', Progress())"
        )
        command = subprocess.Popen([sys.executable, "-c", program, str(told.folder)])
        while not (told.folder / "began").exists():
            assert command.poll() is None
            time.sleep(0.05)
        command.kill()
        command.wait()
        assert waiting.read_text() == "1"
        process = int((told.folder / "began").read_text())
        assert works(process)
        if same:
            told.settle(same=True, meanwhile=(told.folder / "go").touch)
        else:
            told.settle(same=False)
            assert not works(process)
        assert (told.folder / "ended").exists() == same
        assert [log.name for log in told.logs] == ["1_0_log.out"]
        assert {path.suffix for path in (told.folder / FOLDER).iterdir()} == {".out", ".sh"}

    def test_the_error_of_a_job_whose_command_was_killed_is_told(
        self,
        told: Told,
        mode: Mode,  # noqa: ARG002 - finds the commands
    ) -> None:
        executor = slurm._executor(SlurmSettings(), told.folder / FOLDER, "first-sft")
        (told.folder / FOLDER).mkdir()
        job = slurm._submitted(executor, jobs.finds_a_wrong_file, told.folder, OUTPUT)
        (told.folder / FOLDER / f"{OUTPUT}.job").write_text(job.job_id)
        with pytest.raises(InputError, match=r"^mine\.jsonl:3: is no prompt"):
            told.settle(same=True)


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        (("launch=here",), True),
        (("until=sft", "launch.partition=other"), True),
        (("sft.epochs=9",), False),
        (("brief: Be very brief.",), False),
    ],
)
def test_a_command_waits_for_a_job_that_makes_what_it_would_and_cancels_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...], same: bool
) -> None:
    for name, value in install(tmp_path / "cluster").items():
        monkeypatch.setenv(name, value)
    settled: list[bool] = []

    def stops(_run: Path, _progress: Progress, *, same: bool) -> None:
        settled.append(same)
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "settle", stops)
    constitution(tmp_path)
    go(configured(tmp_path, "until=prompts", "launch=slurm"), World())
    assert settled == []
    (tmp_path / "runs/first/slurm").mkdir()
    (tmp_path / "runs/first/slurm/sft-0123456789abcdef.job").write_text("7")
    overrides = [word for word in typed if "=" in word]
    if edited := dict(word.split(": ") for word in typed if "=" not in word):
        constitution(tmp_path, **edited)
    with pytest.raises(KeyboardInterrupt):
        go(configured(tmp_path, *([] if "launch=here" in typed else ["launch=slurm"]), *overrides), World())
    assert settled == [same]
    assert not (tmp_path / "runs/journal.sqlite").exists()


def test_a_launch_that_this_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    check_launch(HereSettings())
    check_launch(SlurmSettings(mode="local"))
    with pytest.raises(ConfigurationError, match=r"no sbatch, srun, sacct, scancel; .*launch.mode=local"):
        check_launch(SlurmSettings())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigurationError, match=r"pip install '.\[slurm\]'"):
        check_launch(SlurmSettings(mode="local"))


def test_the_launch_changes_nothing_that_a_run_makes() -> None:
    here, there = compose([]), compose(["launch=slurm", "launch.partition=gpu"])
    assert here.launch == HereSettings()
    assert there.launch == SlurmSettings(partition="gpu")
    assert here.digest == there.digest
    assert list(setting_changes(here.model_dump(mode="json"), there.model_dump(mode="json"))) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "labeler_check critique_revise sft sample_pairs label reward dpo evaluate"),
        (
            ["labeler=scripted", "labeler.function=mine:answer"],
            "labeler_check critique_revise sft sample_pairs reward dpo",
        ),
        (
            [f"{role}{word}" for role in ROLES for word in ("=http", ".url=http://127.0.0.1/v1", ".model=x")],
            "sft sample_pairs reward dpo evaluate",
        ),
        (
            ["until=null", "labeler=vllm", "algorithm=ppo"],
            "labeler_check critique_revise sft sample_pairs label reward ppo",
        ),
    ],
)
def test_what_trains_or_holds_a_model_needs_a_gpu(words: list[str], named: str) -> None:
    config = compose(words)
    runner = Runner(RunContext(config, selected(config), load_prompts(None), Progress(StringIO())), Outputs(Path()))
    assert " ".join(stage.name for stage in stages_of(config) if runner._needs_gpu(stage)).startswith(named)
