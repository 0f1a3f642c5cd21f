"""The four commands of Slurm that submitit calls, over processes of this machine: what a job is told and how it ends.

A job is a folder named by its number in `FAKE_SLURM`: `script` as it was submitted, the process group in `group`, its
`state` once it has ended. A test that writes a `state` itself and kills the group plays the part of the cluster.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from itertools import dropwhile
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scancel")


def install(folder: Path) -> dict[str, str]:
    """Write the commands into a folder; returns the environment in which they are found."""
    commands, jobs = folder / "bin", folder / "jobs"
    commands.mkdir(parents=True)
    jobs.mkdir()
    for name in COMMANDS:
        (commands / name).write_text(f"#!{sys.executable}\n{Path(__file__).read_text()}")
        (commands / name).chmod(0o755)
    return {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(jobs)}


def sbatch(jobs: Path, words: list[str]) -> int:
    """Start a job in a process group of its own."""
    number = len(list(jobs.iterdir())) + 1
    job = jobs / str(number)
    job.mkdir()
    script = Path(words[0]).read_text()
    (job / "script").write_text(script)
    if "--partition=broken" in script:
        print("sbatch: error: invalid partition specified: broken", file=sys.stderr)
        return 1
    out = re.search(r"^#SBATCH --output=(.*)$", script, re.MULTILINE)
    assert out is not None
    asked = re.search(r"^#SBATCH --nodes=(\d+)$", script, re.MULTILINE)
    assert asked is not None
    nodes = int(asked[1])
    place = {"JOB_ID": number, "NTASKS": nodes, "LOCALID": 0, "JOB_NUM_NODES": nodes, "JOB_NODELIST": "localhost"}
    env = {**os.environ, **{f"SLURM_{name}": str(value) for name, value in place.items()}}
    log = Path(shlex.split(out[1])[0].replace("%j", str(number))).open("ab")  # noqa: SIM115 - the job has it
    keeper = [sys.executable, *("-c", "import subprocess, sys, pathlib\n" + KEEPER), str(job)]
    keeping = subprocess.Popen(keeper, env=env, stdout=log, stderr=log, start_new_session=True)
    (job / "group").write_text(str(keeping.pid))
    print(f"Submitted batch job {number}")
    return 0


KEEPER = """
job = pathlib.Path(sys.argv[1])
code = subprocess.call(["bash", str(job / "script")])
if not (job / "state").exists():
    (job / "state").write_text("FAILED" if code else "COMPLETED")
"""
"""Runs a job's script and keeps how it ended."""


def srun(_: Path, words: list[str]) -> int:
    """The job's command on each of its nodes, in their place; if one is killed, the others are, as was asked."""
    assert "--kill-on-bad-exit=1" in words
    output = words[words.index("--output") + 1].replace("%j", os.environ["SLURM_JOB_ID"])
    command = list(dropwhile(lambda word: word.startswith("--"), words[words.index("--output") + 2 :]))
    tasks = []
    for node in map(str, range(int(os.environ["SLURM_NTASKS"]))):
        with Path(output.replace("%t", node)).open("ab") as log:
            env = {**os.environ, "SLURM_PROCID": node, "SLURM_NODEID": node}
            tasks.append(subprocess.Popen(command, stdout=log, stderr=log, env=env))
    while None in (codes := [task.poll() for task in tasks]):
        if any(codes):
            for task in tasks:
                task.kill()
        time.sleep(0.05)
    return next(filter(None, codes), 0)


def sacct(jobs: Path, words: list[str]) -> int:
    """The states of jobs."""
    print("JobID|State|NodeList")
    for number in (words[index + 1] for index, word in enumerate(words) if word == "-j"):
        state = jobs / number / "state"
        print(f"{number}|{state.read_text() if state.exists() else 'RUNNING'}|here")
    return 0


def scancel(jobs: Path, words: list[str]) -> int:
    """End a job: SIGTERM, and soon SIGKILL."""
    group = int((jobs / words[0] / "group").read_text())
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(group, number)
        time.sleep(0.5)
    (jobs / words[0] / "state").write_text("CANCELLED by 0")
    return 0


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    sys.exit(
        {"sbatch": sbatch, "srun": srun, "sacct": sacct, "scancel": scancel}[name](
            Path(os.environ["FAKE_SLURM"]), sys.argv[1:]
        )
    )
