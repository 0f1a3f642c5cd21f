"""What the jobs of the tests do, in a module that loads fast, as a job begins with loading it."""

import os
import signal
import time
from pathlib import Path

import submitit

from constitutional.base.errors import InputError
from constitutional.engines.spending import Calls
from constitutional.runs import slurm
from constitutional.runs.slurm import JobEnd


def counts(run: Path, output: str) -> JobEnd:
    print(f"{run.name} {output}")
    return JobEnd(None, Calls(asked=7, prompt_tokens=70))


def finds_a_wrong_file(_run: Path, _output: str) -> JobEnd:
    return JobEnd(None, Calls(asked=2), InputError("mine.jsonl", "is no prompt", 3))


def has_a_defect(_run: Path, _output: str) -> JobEnd:
    raise ZeroDivisionError("of what")


def is_killed_once(run: Path, _output: str) -> JobEnd:
    began = run / "began"
    if not began.exists():
        began.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return JobEnd(None, Calls(asked=1))


def is_out_of_time_once(run: Path, _output: str) -> JobEnd:
    began = run / "began"
    if not began.exists():
        began.touch()
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
            time.sleep(60)
        finally:
            (run / "in order").touch()
    return JobEnd(None, Calls(asked=1))


def is_always_killed(_run: Path, _output: str) -> JobEnd:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def cannot_begin(_run: Path, _output: str) -> JobEnd:
    print("libcuda.so.1 is missing", flush=True)
    os._exit(1)


def first_of_two(run: Path, output: str) -> JobEnd:
    """The first node makes something while the other one waits for it."""
    task = submitit.JobEnvironment()
    if task.global_rank:
        while not slurm.first_has_ended(run, output):
            time.sleep(0.05)
        return JobEnd(None, Calls(asked=100 + (run / "made").exists()))
    with slurm.as_first(run, output):
        time.sleep(0.3)
        (run / "made").touch()
        return JobEnd(None, Calls(asked=task.num_tasks))


def other_is_killed_once(run: Path, output: str) -> JobEnd:
    if submitit.JobEnvironment().global_rank and not (run / "began").exists():
        (run / "began").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return first_of_two(run, output)


def first_is_killed_once(run: Path, output: str) -> JobEnd:
    if submitit.JobEnvironment().global_rank or (run / "began").exists():
        return first_of_two(run, output)
    with slurm.as_first(run, output):
        (run / "began").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def waits(run: Path, _output: str) -> JobEnd:
    (run / "began.new").write_text(str(os.getpid()))
    (run / "began.new").rename(run / "began")
    while not (run / "go").exists():
        time.sleep(0.05)
    (run / "ended").touch()
    return JobEnd(None, Calls(asked=3))
