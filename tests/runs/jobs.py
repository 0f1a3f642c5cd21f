"""What the jobs of the tests do, in a module that loads fast, as a job begins with loading it."""

import os
import signal
import time
from pathlib import Path

from constitutional.base.errors import InputError
from constitutional.engines.spending import Calls
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


def waits(run: Path, _output: str) -> JobEnd:
    (run / "began.new").write_text(str(os.getpid()))
    (run / "began.new").rename(run / "began")
    while not (run / "go").exists():
        time.sleep(0.05)
    (run / "ended").touch()
    return JobEnd(None, Calls(asked=3))
