"""A stage in a job of Slurm, by submitit; or in the same job on this machine, where there is no Slurm.

The command submits one job at a time and waits for it. While it waits, the job alone has the journal, and the command
shows the last line of the job's log. A job that was ended from outside (preempted, timed out, a node that is lost) is
submitted again, and goes on from its checkpoints and the journal.

A training by several processes is a job with a task on each of its nodes. The first task makes the stage and starts the
processes of its node; the others start those of theirs, until the first has ended.
"""

import fcntl
import itertools
import logging
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NamedTuple

from constitutional.base.errors import ConfigurationError, ConstitutionalError, RunError
from constitutional.base.files import atomic_write, writing
from constitutional.base.progress import Progress
from constitutional.engines.spending import Calls
from constitutional.runs.launch_settings import JobAccelerateSettings, LaunchSettings, SlurmSettings
from constitutional.runs.manifest import StageEntry
from constitutional.runs.outputs import locked_while

if TYPE_CHECKING:
    from submitit import Executor, Job

FOLDER: Final = "slurm"
"""In a run's folder: scripts, logs and results of its jobs, by the jobs' numbers."""
COMMANDS: Final = ("sbatch", "srun", "sacct", "scancel")
"""Slurm's commands that submitit calls."""
POLL_S: Final = 1.0
"""How often to look how far a job is."""
ASKED_EVERY: Final = 60
"""So many looks lie between two questions to Slurm, at most; submitit asks less and less often."""
CANCEL_S: Final = 40.0
"""How long to wait until a cancelled job has ended. What does not end, Slurm kills after 30 seconds as a rule."""
LATE: Final = ".late"
"""Of a file that a job leaves whose time is up."""
FIRST: Final = ".first"
"""Of a file with the number of a job of several nodes, locked while the first one's task works."""
PORTS: Final = range(15_000, 30_000)
"""Of a job's first node, where the processes of a training meet: one by the job's number. Systems give the ports above
them to whoever asks for any."""
FINAL: Final = ("CANCELLED", "OUT_OF_MEMORY")
"""States of Slurm, as their first word, after which the same job would end in the same way, or nobody wants it."""
FAILED: Final = "FAILED"
"""A job that ended with an error before it could hand one back, or was killed by another than Slurm. Only the latter
goes on when it is submitted again, so that is tried once."""


class JobEnd(NamedTuple):
    """What a job that came to its end hands back."""

    entry: StageEntry | None
    """What it made; None if it failed."""
    calls: Calls
    """What it asked of models just now."""
    error: ConstitutionalError | None = None


Work = Callable[[Path, str], JobEnd]
"""What a job does: makes what the output's name says, such as `sft-3f2a90c41b77d0e2`, for the run in this folder."""


def check_launch(settings: LaunchSettings) -> None:
    """Refuse `launch=slurm` where submitit or Slurm's commands are missing, before anything is asked or trained.

    Raises:
        ConfigurationError: says what is missing and what to type.
    """
    if not isinstance(settings, SlurmSettings):
        return
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            "launch=slurm needs the package submitit, which is not installed; type pip install '.[slurm]'"
        ) from error
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if settings.mode == "slurm" and missing:
        raise ConfigurationError(
            f"launch=slurm calls Slurm's {', '.join(COMMANDS)}, and this machine has no {', '.join(missing)}; start "
            "the command on a login node of the cluster, or type launch.mode=local to try it here"
        )


def in_job(
    settings: SlurmSettings, work: Work, run: Path, output: str, progress: Progress, *, nodes: int = 1
) -> JobEnd:
    """Have a job make a stage, and wait for it.

    Args:
        settings: of the job.
        work: what it does; called there with the next two, on each of its nodes.
        run: the run's folder.
        output: the name of the stage's output.
        progress: shows the last line of the job's log.
        nodes: that the job has.

    Returns:
        What the job's first node made and asked, or the error that it ended with.

    Raises:
        RunError: it could not be submitted, has a defect, or was ended from outside too often.
        KeyboardInterrupt: the user stopped the command; the job is cancelled.
    """
    folder, stage = run / FOLDER, output.rpartition("-")[0]
    with writing(folder):
        folder.mkdir(exist_ok=True)
    waiting = folder / f"{output}.job"  # holds the number of the job; if the command is killed, the next one finds it
    executor, failed = _executor(settings, folder, f"{run.name}-{stage}", nodes), 0
    for ended in range(settings.restarts + 1):
        job = _submitted(executor, work, run, output)
        atomic_write(waiting, job.job_id.encode())
        log, number = job.paths.stdout, job.job_id
        on = f" on {nodes} nodes" if nodes > 1 else ""
        progress.say(f"  {stage}: {settings.mode} job {number}{on}; {log} has what it says")
        try:
            end = _end(job, stage, progress)
        except BaseException:
            _cancel(job)
            raise
        finally:
            _clean_up(job, waiting)
        if end is not None:
            if end.error is not None:
                end.error.add_note(f"{log} has what the job {number} said")
            return end
        state = _state(job, folder / f"{output}{LATE}")
        failed += state.startswith(FAILED)
        if state.startswith(FINAL) or failed > 1 or ended == settings.restarts:
            break
        progress.say(f"  {stage}: job {number} was ended from outside ({state}); it is submitted again, and goes on")
    times = f"{ended + 1} times, the last time" if ended else "once,"
    raise RunError(
        f"{stage}: its job was ended from outside {times} as job {number} ({state}); {log} has what it said; "
        f"{_advice(state, log)}; the same command goes on"
    )


def settle(run: Path, progress: Progress, *, same: bool) -> None:
    """Be done with the jobs of a command that was killed while it waited for them, which may have the run's journal.

    Args:
        run: the run's folder, which no other command has.
        progress: shows the last line of a job's log.
        same: whether this command would have the job make the same; then it waits for that, and else cancels it.

    Raises:
        ConstitutionalError: the error that the job ended with.
        KeyboardInterrupt: the user stopped the command; the job is cancelled.
    """
    for waiting in sorted((run / FOLDER).glob("*.job")):
        number, stage = waiting.read_text(encoding="ascii"), waiting.name.rpartition("-")[0]
        try:
            from submitit import SlurmJob
        except ImportError:
            missing = ["submitit"]
        else:
            missing = [command for command in COMMANDS if shutil.which(command) is None]
        if missing:
            progress.say(
                f"warning: job {number} of {stage} may still be at work for a command that was killed, and without "
                f"{', '.join(missing)} nobody here can tell; where it is, type scancel {number} on the cluster"
            )
            continue
        job: SlurmJob[JobEnd] = SlurmJob(waiting.parent, number)
        log, of = job.paths.stdout, "of a command that was killed"
        progress.say(f"  {stage}: {'waiting for' if same else 'cancelling'} job {number} {of}; {log} has what it says")
        try:
            end = _end(job, stage, progress) if same else None
        finally:
            _cancel(job)
            _clean_up(job, waiting)
        if end is not None and end.error is not None:
            end.error.add_note(f"{log} has what the job {number} said")
            raise end.error


def _clean_up(job: "Job[JobEnd]", waiting: Path) -> None:
    results = waiting.parent.glob(job.paths.result_pickle.name.replace("_0_", "_*_"))
    for done_with in (waiting, waiting.with_suffix(FIRST), job.paths.submitted_pickle, *results):
        done_with.unlink(missing_ok=True)


def node_of_job(settings: LaunchSettings) -> JobAccelerateSettings | None:
    """In a job: how this node trains the job's stage with the others; None where one process does."""
    if not isinstance(settings, SlurmSettings):
        return None
    import submitit

    job = submitit.JobEnvironment()
    address = "127.0.0.1" if settings.mode == "local" else job.hostnames[0]
    return settings.together(job.global_rank, address, PORTS[int(job.job_id) % len(PORTS)])


@contextmanager
def as_first(run: Path, output: str) -> Iterator[None]:
    """In a job of several nodes, on the first one: meanwhile the others see that it works."""
    import submitit

    with locked_while(run / FOLDER / f"{output}{FIRST}", str(submitit.JobEnvironment().job_id).encode()):
        yield


def first_has_ended(run: Path, output: str) -> bool:
    """In a job of several nodes, on another than the first: whether the first one's task began and has ended."""
    import submitit

    try:
        with (run / FOLDER / f"{output}{FIRST}").open("rb") as file:
            if file.read().decode() != submitit.JobEnvironment().job_id:  # of a job before
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # it has not begun, or it works
        return False
    return True


def _executor(settings: SlurmSettings, folder: Path, name: str, nodes: int = 1) -> "Executor":
    import submitit

    # It would tell on standard output of jobs, and of an accounting that does not answer for a moment.
    logging.getLogger("submitit").setLevel(logging.CRITICAL)
    executor = submitit.AutoExecutor(folder, cluster=settings.mode)
    # A node has one task. Without Slurm there is one node, which plays the others as well.
    each_node = {"tasks_per_node": nodes} if settings.mode == "local" else {"nodes": nodes, "tasks_per_node": 1}
    executor.update_parameters(
        **each_node,
        name=name,
        gpus_per_node=settings.gpus_per_node or None,
        cpus_per_task=settings.cpus_per_task,
        mem_gb=settings.mem_gb,
        timeout_min=settings.timeout_min,
        stderr_to_stdout=True,
        slurm_partition=settings.partition,
        slurm_account=settings.account,
        slurm_constraint=settings.constraint,
        slurm_setup=list(settings.setup) or None,
        # Who submits a job again is the command; if Slurm did so too, two jobs would make the same.
        slurm_additional_parameters={"no-requeue": True},
        # Slurm 22.05 to 23.02: srun does not take it from sbatch, and the job's task would have one core.
        # One task of several that was killed ends the others, which would wait for it.
        slurm_srun_args=[f"--cpus-per-task={settings.cpus_per_task}", "--kill-on-bad-exit=1"],
    )
    return executor


def _submitted(executor: "Executor", work: Work, run: Path, output: str) -> "Job[JobEnd]":
    import submitit

    # Of an earlier job, whose command was killed before it could read that the time was up.
    (run / FOLDER / f"{output}{LATE}").unlink(missing_ok=True)
    try:
        with submitit.helpers.clean_env():  # the command may itself be in a job, whose variables sbatch would read
            return executor.submit(_stoppable, work, run, output)
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        said = " ".join(str(error).split())
        raise RunError(f"{output}: the job could not be submitted: {said}; check the settings of launch") from error


def _stoppable(work: Work, run: Path, output: str) -> JobEnd:
    """In the job: do the work, and end in order where Slurm says that the time is up, as at Ctrl-C."""

    def stop(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:  # Slurm, to which it is a job that failed, does not tell it later
            with suppress(OSError):  # a full disk, say: then it ends as any other
                (run / FOLDER / f"{output}{LATE}").touch()
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, stop)
    return work(run, output)


def _end(job: "Job[JobEnd]", stage: str, progress: Progress) -> JobEnd | None:
    """What the job hands back once it has ended; None where it was ended from outside.

    Raises:
        RunError: the job has a defect, whose traceback is in its log.
    """
    import submitit

    polls = itertools.count(1)
    while not _done(job, force_check=next(polls) % ASKED_EVERY == 0):
        state = job.state
        if state.startswith("PREEMPTED"):  # submitit takes it to come back
            return None
        progress.aside(stage, f"job {job.job_id}: {_last_line(job.paths.stdout) or state.lower()}")
        time.sleep(POLL_S)
    try:
        return job.results()[0]
    except submitit.core.utils.FailedJobError as error:
        said = str(error).split("-" * 20)[1].strip("-\n").splitlines()[-1]  # the last line of the traceback
        raise RunError(f"{stage}: job {job.job_id} failed: {said}; {job.paths.stdout} has the traceback") from error
    except submitit.core.utils.UncompletedJobError:
        return None


def _cancel(job: "Job[JobEnd]") -> None:
    """End the job, and wait until it has given back what it holds."""
    if _done(job):
        return
    started_s = time.monotonic()
    with suppress(OSError):
        job.cancel(check=False)
    while not _done(job, force_check=True) and time.monotonic() - started_s < CANCEL_S:
        time.sleep(POLL_S)


def _done(job: "Job[JobEnd]", *, force_check: bool = False) -> bool:
    """Whether all tasks of a job have ended; submitit leaves the forced check out where there are several."""
    return all(job.task(number).done(force_check=force_check) for number in range(job.num_tasks))


def _state(job: "Job[JobEnd]", late: Path) -> str:
    """As Slurm names it; on this machine nobody can say more than that it ended, unless its time was up."""
    from submitit import LocalJob

    if late.exists():
        late.unlink()
        return "TIMEOUT"
    return "killed" if isinstance(job, LocalJob) else str(job.get_info(mode="force").get("State") or "UNKNOWN")


def _advice(state: str, log: Path) -> str:
    if state.startswith(FAILED):
        return f"at last it said: {_last_line(log)}"
    if state.startswith("OUT_OF_MEMORY"):
        return "type a larger launch.mem_gb"
    if state.startswith("TIMEOUT"):
        return "type a larger launch.timeout_min, or launch.restarts"
    return "a larger launch.restarts submits it more often"


def _last_line(log: Path) -> str:
    """Of a log, without submitit's own lines."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
        return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("submitit ")), "")
    return ""
