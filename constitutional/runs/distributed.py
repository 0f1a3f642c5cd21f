"""A stage that trains in several processes, which `accelerate launch` starts, on this machine or on several.

Every process runs the same stage over the same inputs (`distributed_child.py`); the one of rank 0 writes what the stage
makes. Beside the stage's checkpoints they leave how they ended:

    .stages/sft-3f2a90c41b77d0e2/checkpoints/processes/
    ├── request.json      what is to be trained, locked while it is
    ├── log_0.txt         what the processes of machine 0 and their libraries print
    ├── machine_1         of another machine, locked while its processes are there; whether they have ended
    └── end_1.json        what the process of rank 1 asked of models, or the error that it ended with

Machines that train together have a file system in common, whose locks tell one that another is gone: a connection to a
machine without power or network stays open as long as nothing is sent.
"""

import fcntl
import importlib.util
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import yaml
from pydantic import Field

from constitutional.base import errors
from constitutional.base.errors import ConfigurationError, ConstitutionalError, RunError
from constitutional.base.files import at_home, atomic_write
from constitutional.base.frozen import Frozen
from constitutional.base.progress import Progress, counted
from constitutional.engines.settings import Budget, HttpSettings, RayClusterSettings, VllmSettings
from constitutional.engines.spending import Calls
from constitutional.runs.context import RunStageContext
from constitutional.runs.folder import RunStore, read_manifest
from constitutional.runs.launch_settings import AccelerateSettings, JobAccelerateSettings, SlurmSettings, together
from constitutional.runs.manifest import Failure
from constitutional.runs.outputs import CHECKPOINTS, LOCK, is_locked, locked_while, now
from constitutional.runs.pipeline import Stage, outline, up_to
from constitutional.runs.settings import RunConfig
from constitutional.stages import adopted, grpo, online
from constitutional.stages.summaries import SUMMARIES
from constitutional.training.processes import StepSettings, shared

CONFIGS: Final = Path(__file__).resolve().parent / "accelerate"
"""Shipped configurations of accelerate."""
SHARDING: Final = ("FSDP", "DEEPSPEED")
"""Kinds of accelerate's configurations whose processes do not hold all weights."""
PROCESSES: Final = f"{CHECKPOINTS}/processes"
REQUEST: Final = "request.json"
POLL_S: Final = 0.5
"""How often another machine looks whether there is something to train."""
WAIT_S: Final = 900.0
"""So long another machine waits for a run to begin that is finished or failed: it may be about to be made anew. Before
machine 0 has the run's lock it reads all files and fetches and looks at the models, which takes minutes where they are
large."""
STOP_S: Final = 60.0
"""How long processes may take to stop."""
GONE_S: Final = 30.0
"""So long this machine's processes may go on without those of another machine; some end a little before others."""
LEFT_ALONE: Final = -1
"""In the place of a launcher's exit code, where it was stopped because another machine was gone."""
ENDED: Final = b"ended"
"""What the file of a machine holds whose processes have ended, and were not lost with it."""
SIOCGIFADDR: Final = 0x8915
"""Linux's number for asking a network interface for its IPv4 address."""
_EXIT_CODE: Final = re.compile(r"exitcode\s*: (-\d+)")
"""What torch's launcher reports of a process that a signal ended."""


class TrainingRequest(Frozen):
    """A stage that several processes train."""

    start: str
    """When; tells one start of a stage from another."""
    run_folder: Path
    stage: str
    fingerprint: str
    needs: dict[str, str]
    files: dict[str, str]
    folder: Path
    """The stage's own, in the run's."""


class ProcessEnd(Frozen):
    """How a process ended that trained."""

    error: str = ""
    """The name of a class in `base/errors.py`; `lost` where another process had ended; `defect` of anything else."""
    args: tuple[str | int | None, ...] = ()
    """Of the error."""
    notes: tuple[str, ...] = ()
    calls: Calls = Calls()
    summary: dict[str, Any] | None = None
    """Of rank 0, as are those that follow."""
    warnings: tuple[str, ...] = ()
    written: dict[str, Path] = Field(default_factory=dict)


# --- What can be started ---


def check(config: RunConfig) -> None:
    """Refuse what several processes cannot train, before anything is asked or trained.

    Raises:
        ConstitutionalError: says what to type.
    """
    launch = together(config.launch)
    if launch is None:
        return
    if isinstance(config.launch, SlurmSettings) and config.launch.mode == "local" and launch.machines > 1 and _gpus():
        raise ConfigurationError(
            f"launch.nodes={launch.machines} with launch.mode=local are all this machine, whose GPUs no two processes "
            "can share; type launch.nodes=1"
        )
    if _in_job(launch):
        _check_package(launch)
    else:
        check_machine(launch)
    check_settings(config, launch)


def check_machine(launch: AccelerateSettings) -> None:
    """Refuse processes that this machine cannot start.

    Raises:
        ConstitutionalError: says what to type.
    """
    content, gpus, key = _content(launch), _gpus(), _processes_key(launch)
    if content["distributed_type"] in SHARDING and not gpus:
        whole = "launch.config=ddp" if _in_job(launch) else "launch=accelerate launch.processes=2"
        raise ConfigurationError(
            f"launch.config={launch.config} shards weights over GPUs, and {_machine(launch)} has none; type {whole}"
        )
    total = processes_here(launch) * launch.machines
    if total == 1:
        more = "" if gpus == 1 else f", or {key}=2"
        raise ConfigurationError(f"{key}=1 starts no second process; type {_alone(launch)}{more}")
    if 0 < gpus < processes_here(launch):
        most = f"{key}={gpus}" if gpus * launch.machines > 1 else _alone(launch)
        raise ConfigurationError(
            f"{key}={launch.processes} are more than the {counted(gpus, 'GPU')} of {_machine(launch)}, of which no two "
            f"processes can have one; type {most}"
        )
    _check_package(launch)
    _check_precision(launch, content)


def _check_package(launch: AccelerateSettings) -> None:
    if kind_of(launch) == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        advice = f"type pip install '.[zero3]', or {_FSDP2[_in_job(launch)]}"
        raise ConfigurationError(f"launch.config={launch.config} needs DeepSpeed, which is not installed; {advice}")


_FSDP2: Final = {True: "launch.config=fsdp2", False: "launch=accelerate_fsdp2"}
"""What to type for it in jobs, and otherwise."""


def _in_job(launch: AccelerateSettings) -> bool:
    return isinstance(launch, JobAccelerateSettings)


def _processes_key(launch: AccelerateSettings) -> str:
    """The setting that says how many processes a machine starts."""
    return "launch.gpus_per_node" if _in_job(launch) else "launch.processes"


def _alone(launch: AccelerateSettings) -> str:
    """What to type for one process."""
    return "launch.config=null" if _in_job(launch) else "launch=here"


def _machine(launch: AccelerateSettings) -> str:
    return f"the job's node {socket.gethostname()}" if _in_job(launch) else "this machine"


def check_settings(config: RunConfig, launch: AccelerateSettings) -> None:
    """Refuse what several processes can train on no machine.

    Raises:
        ConstitutionalError: says what to type.
    """
    total = processes_here(launch) * launch.machines
    _check_sharding(launch, _content(launch), ppo=config.algorithm.kind == "ppo")
    _check_algorithm(config, launch)
    steps: dict[str, StepSettings] = {"sft": config.sft, "reward": config.reward}
    if not isinstance(config.algorithm, adopted.Settings):  # which was trained elsewhere
        steps["algorithm"] = config.algorithm
    for key, settings in steps.items():
        size, passes = settings.batch_size, settings.gradient_accumulation
        if shared(size, passes, total) is None:
            each = (number for number in range(processes_here(launch) - 1, 0, -1) if number * launch.machines > 1)
            fewer = next((number for number in each if size * passes % (number * launch.machines) == 0), None)
            raise ConfigurationError(
                f"{key}.batch_size={size} by {key}.gradient_accumulation={passes} are {size * passes} rows in a step, "
                f"which {total} processes cannot have in equal parts; type {key}.batch_size={-(-size // total) * total}"
                + (f", or {_processes_key(launch)}={fewer}" if fewer else "")
            )


def _check_algorithm(config: RunConfig, launch: AccelerateSettings) -> None:
    algorithm = config.algorithm
    typed = f"launch.config={launch.config}" if _in_job(launch) else "launch=accelerate"
    if isinstance(algorithm, grpo.Settings):
        raise ConfigurationError(
            f"{typed} trains sft, reward, dpo and ppo; algorithm={algorithm.kind} takes one process; type "
            f"{_alone(launch)}, or algorithm=ppo"
        )
    if getattr(algorithm, "sampler", "") == "vllm":
        raise ConfigurationError(
            f"algorithm.sampler=vllm draws for one process; with {typed} type algorithm.sampler=transformers, "
            "with which every process draws its share"
        )
    if not online.asks_labeler(algorithm):
        return
    if launch.machines > 1:
        raise ConfigurationError(
            "the labeler's rewards are kept in one journal, which is for one machine at a time; train on one machine, "
            "or leave the reward `constitution` out of algorithm.rewards"
        )
    if isinstance(config.cluster, RayClusterSettings) and not isinstance(config.labeler, HttpSettings):
        raise ConfigurationError(
            "with cluster=ray every process of the training that the labeler rewards would join the cluster and start "
            f"actors of its own; type {_alone(launch)}, or cluster=none, which changes no result, or labeler=http"
        )
    if isinstance(config.labeler, VllmSettings):
        raise ConfigurationError(
            "labeler=vllm would be started by every process of the training that it rewards; type labeler=http, for a "
            "server on other GPUs"
        )
    if {config.budget, getattr(config.labeler, "budget", Budget())} != {Budget()}:
        raise ConfigurationError(
            f"a budget is kept by one process, and with {typed} several ask the labeler for rewards; type "
            f"{_alone(launch)}, or leave the budget out"
        )


def _config_file(launch: AccelerateSettings) -> Path:
    named = CONFIGS / f"{launch.config}.yaml"
    return named if named.is_file() else at_home(launch.config)


def kind_of(launch: AccelerateSettings) -> str:
    """The kind of accelerate's configuration, such as FSDP."""
    return str(_content(launch)["distributed_type"])


def _content(launch: AccelerateSettings) -> dict[str, Any]:
    """Accelerate's configuration, which is of a kind that trains here."""
    shipped = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
    try:
        content: dict[str, Any] = yaml.safe_load(_config_file(launch).read_text(encoding="utf-8"))
        kind = str(content["distributed_type"])
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"launch.config={launch.config}: is no configuration of accelerate ({' '.join(str(error).split())}); type "
            f"one of {shipped}, or a file that `accelerate config --config_file FILE` wrote"
        ) from error
    if kind not in ("MULTI_GPU", *SHARDING):
        raise ConfigurationError(
            f"launch.config={launch.config}: has distributed_type {kind}, and this trains by MULTI_GPU, "
            f"{' or '.join(SHARDING)}; type one of {shipped}"
        )
    return content


def _check_sharding(launch: AccelerateSettings, content: Mapping[str, Any], *, ppo: bool) -> None:
    """Refuse ways of sharding whose models could not be saved in the end, or would be read as zeros at first."""
    fsdp, zero = (content.get(name) or {} for name in ("fsdp_config", "deepspeed_config"))
    wanted: dict[str, tuple[bool, str]] = {}
    if content["distributed_type"] == "FSDP":
        ahead = _is_set(fsdp.get("fsdp_cpu_ram_efficient_loading", True))
        wanted["fsdp_version: 2"] = (str(fsdp.get("fsdp_version", 1)) == "2", "models of version 1 cannot be saved")
        wanted["fsdp_cpu_ram_efficient_loading: false"] = (
            not ahead,
            "DPO reads its reference before weights are sharded, when all processes but one would hold zeros",
        )
        offloads = _is_set(fsdp.get("fsdp_offload_params", False))
        wanted["fsdp_offload_params: false"] = (not (ppo and offloads), "PPO keeps its parts on the GPU")
    elif content["distributed_type"] == "DEEPSPEED" and str(zero.get("zero_stage")) == "3":
        gathered = _is_set(zero.get("zero3_save_16bit_model", False))
        wanted["zero3_save_16bit_model: true"] = (gathered, "without it a trained model cannot be saved")
    for line, (is_so, why) in wanted.items():
        if not is_so:
            raise ConfigurationError(f"launch.config={launch.config}: write `{line}` into it, as {why}")


def _check_precision(launch: AccelerateSettings, content: Mapping[str, Any]) -> None:
    """Refuse a precision that the stages do not train in, which without a word they would train in bfloat16."""
    precision = content.get("mixed_precision") or "no"  # YAML takes a bare `no` for false
    if _gpus() and precision not in ("no", "bf16"):
        raise ConfigurationError(
            f"launch.config={launch.config}: has mixed_precision {precision}, and on GPUs stages train in bfloat16; "
            "write `mixed_precision: bf16` into it"
        )


def _is_set(value: object) -> bool:
    """Whether a value of accelerate's configuration, which may be a text, is true."""
    return str(value).lower() in ("true", "1", "yes")


def processes_here(launch: AccelerateSettings) -> int:
    """Processes on this machine."""
    number = launch.processes or _gpus()
    if not number:
        raise ConfigurationError(
            "launch=accelerate starts a process for each GPU, and this machine has none; type launch.processes=2"
        )
    return number


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


# --- Machine 0 ---


def make(stage: Stage, context: RunStageContext, launch: AccelerateSettings, progress: Progress) -> None:
    """Have processes do a stage's work, and give the context what they made.

    Raises:
        ConstitutionalError: the one that a process ended with; or a process was killed.
    """
    begun = context.begun
    folder = context.output(f"{PROCESSES}/{REQUEST}").parent
    for old in folder.glob("*"):
        old.unlink()
    run_folder = context.folder.resolve()
    request = TrainingRequest(
        start=now(),
        run_folder=run_folder,
        stage=stage.name,
        fingerprint=begun.fingerprint,
        needs=dict(begun.needs),
        files=dict(begun.files),
        folder=run_folder / begun.folder.name,
    )
    here = counted(processes_here(launch), "process")
    of = f" of {processes_here(launch) * launch.machines}" if launch.machines > 1 else ""
    progress.say(f"  starting {here}{of}, which train together")
    others = _Others(folder, launch, partial(progress.aside, stage.name))
    with _asked(folder / REQUEST, request):
        code = _launch(request, launch, others.one_is_lost)
    ends = {rank: end for rank in range(processes_here(launch) * launch.machines) if (end := _end(folder, rank))}
    context.calls_elsewhere = Calls.of_roles(_by_role(ends.values()))
    if code == LEFT_ALONE and not any(end.error not in ("", "lost") for end in ends.values()):
        raise RunError(
            f"{stage.name}: another machine is gone, or its command was stopped; the same command goes on from the "
            "last checkpoint, once it is typed on that machine, too"
        )
    if code:
        raise _failure(stage.name, folder, ends)
    first = ends[0]
    context.own_summary = SUMMARIES[stage.name].model_validate(first.summary)
    context.warnings += first.warnings
    context.written |= first.written


@contextmanager
def _asked(file: Path, request: TrainingRequest) -> Iterator[None]:
    """Meanwhile the request is there, and this process has its lock, which nobody has once the process was killed."""
    with locked_while(file, request.model_dump_json(indent=2).encode()):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


class _Others:
    """On machine 0: the other machines that train a stage with it."""

    def __init__(self, folder: Path, launch: AccelerateSettings, say: Callable[[str], None]) -> None:
        self._files = [_file_of(folder, rank) for rank in range(1, launch.machines)]
        self._came: set[Path] = set()
        self._say = say

    def one_is_lost(self) -> bool:
        """Whether one is gone that was there, and whose processes had not ended."""
        here = {file for file in self._files if is_locked(file)}
        self._came |= here
        if missing := [file.name.replace("_", " ") for file in self._files if file not in self._came]:
            self._say(f"waiting for {', '.join(missing)}")
        return any(file.read_bytes() != ENDED for file in self._came - here)


def _file_of(folder: Path, rank: int) -> Path:
    """Locked while another machine's processes are there."""
    return folder / f"machine_{rank}"


def _by_role(ends: Iterable[ProcessEnd]) -> dict[str, Calls]:
    roles: dict[str, list[Calls]] = {}
    for end in ends:
        for role, calls in end.calls.by_role.items():
            roles.setdefault(role, []).append(calls)
    return {role: Calls.sum(several) for role, several in roles.items()}


def _end(folder: Path, rank: int) -> ProcessEnd | None:
    with suppress(OSError):
        return ProcessEnd.model_validate(json.loads((folder / f"end_{rank}.json").read_text(encoding="utf-8")))
    return None


def leave_end(folder: Path, rank: int, end: ProcessEnd) -> None:
    """In a process that trains: leave how it ended."""
    atomic_write(folder / f"end_{rank}.json", json.dumps(end.model_dump(mode="json")).encode())


def _failure(stage: str, folder: Path, ends: Mapping[int, ProcessEnd]) -> Exception:
    """What went wrong: a user's mistake first, then a process that was killed, then a defect of ours."""
    for end in ends.values():
        kind = getattr(errors, end.error, None) if end.error else None
        if isinstance(kind, type) and issubclass(kind, ConstitutionalError):
            error = kind(*end.args)
            for note in end.notes:
                error.add_note(note)
            return error
    log = folder / "log_0.txt"
    printed = log.read_text(encoding="utf-8", errors="replace")
    killed = [code for found in _EXIT_CODE.findall(printed) if (code := -int(found)) != signal.SIGTERM]
    defects = [end.args[0] for end in ends.values() if end.error == "defect"]
    if defects and not killed:
        return RuntimeError(f"{stage}: a process that trains failed:\n{defects[0]}")
    if not (ends or killed):
        last = next(reversed(printed.split("\n")[:-1]), "")
        return RunError(f"{stage}: accelerate could not start the processes: {last.strip()}; {log} says more")
    how = f"by {signal.Signals(killed[0]).name}" if killed else "on another machine, or by something that left no trace"
    return RunError(
        f"{stage}: a process that trains was ended {how}; where memory ran out, lower batch_size and raise "
        f"gradient_accumulation. The same command goes on from the last checkpoint; {log} holds what they printed"
    )


# --- Every machine ---


def _launch(request: TrainingRequest, launch: AccelerateSettings, alone: Callable[[], bool]) -> int:
    """Start this machine's processes, and wait for them; returns the launcher's exit code.

    They stop where this process is interrupted or ends, and where they have been alone for a while.

    Args:
        request: what they train.
        launch: how.
        alone: whether another machine is gone that they would wait for.
    """
    total = processes_here(launch) * launch.machines
    kind = kind_of(launch)
    # PPO shards by itself, by FSDP2.
    file = CONFIGS / "fsdp2.yaml" if request.stage == "ppo" and kind == "DEEPSPEED" else _config_file(launch)
    options = {
        "config_file": file,
        "num_processes": total,
        "num_machines": launch.machines,
        "machine_rank": launch.machine_rank,
        "main_process_port": launch.port if launch.machines > 1 else 0,
        "mixed_precision": "bf16" if _gpus() else "no",
        "dynamo_backend": "no",
        **({"main_process_ip": launch.main_address} if launch.main_address else {}),
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--same_network"]
    command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
    folder = request.folder / PROCESSES
    command += ["-m", "constitutional.runs.distributed_child", str(folder / REQUEST), str(os.getpid())]
    alone_s = 0.0
    with (folder / f"log_{launch.machine_rank}.txt").open("wb") as log, _running(command, log, _network(launch)) as it:
        while alone_s < GONE_S:
            with suppress(subprocess.TimeoutExpired):
                return it.wait(POLL_S)
            alone_s = alone_s + POLL_S if launch.machines > 1 and alone() else 0.0
    return LEFT_ALONE


def _network(launch: AccelerateSettings) -> dict[str, str]:
    """Which network the machines meet over, as Gloo is told; where the user says so, nothing.

    It would take the one of the machine's name, which often leads to that machine alone. NCCL finds one by itself.
    """
    name = "GLOO_SOCKET_IFNAME"
    if launch.machines == 1 or name in os.environ or not (interface := _interface_to(launch.main_address or "")):
        return {}
    return {name: interface}


def _interface_to(address: str) -> str:
    """The network interface by which an address is reached from here; empty where it is not found."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((address, 9))  # nothing is sent
        own = socket.inet_aton(probe.getsockname()[0])
        for _, interface in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                asked = struct.pack("256s", interface.encode())
                if fcntl.ioctl(probe.fileno(), SIOCGIFADDR, asked)[20:24] == own:
                    return interface
    return ""


@contextmanager
def _running(command: list[str], log: IO[bytes], environment: Mapping[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    """The launcher, in a session of its own: Ctrl-C comes to this process, which stops it in order."""
    # Rank 0 says how far the training is where this process would, on standard error.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=2, stderr=log, start_new_session=True, env=os.environ | environment
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()  # it ends the processes that it has started
            try:
                process.wait(STOP_S)
            finally:
                process.kill()
                process.wait()


# --- Other machines ---


def join(config: RunConfig, progress: Progress) -> RunStore:
    """On another machine than the first: train along, stage by stage, until the run is done; returns the run.

    Raises:
        ConstitutionalError: this machine cannot train along.
    """
    launch = config.launch
    assert isinstance(launch, AccelerateSettings)
    check(config)
    me = f"machine {launch.machine_rank} of {launch.machines}"
    progress.say(f"run {config.name}: waiting for machine 0 ({launch.main_address}) to train, as {me}")
    stages, seen = [stage.name for stage in up_to(config.until, outline(config))], ""
    patient_until_s, begun, before = time.monotonic() + WAIT_S, False, _failures(config, stages)
    told = False
    while True:
        held = is_locked(config.run_folder / LOCK)
        begun, told = begun or held, told and not held
        impatient = not begun and time.monotonic() > patient_until_s
        request = _request(config.run_folder)
        if request is not None and request.start != seen:
            seen = request.start
            _train_along(request, launch, progress)
        elif not held and (begun or impatient):
            if store := _finished(config, stages):
                progress.say(f"run {config.name} is done")
                return store
            # One that was there when this machine began to wait may be about to be mended.
            failures = _failures(config, stages)
            for stage in [stage for stage in failures if impatient or failures[stage] != before.get(stage)]:
                raise RunError(
                    f"{stage}: failed on machine 0 ({failures[stage].host}): {failures[stage].message}; once that is "
                    "mended, type the command on every machine again"
                )
            if begun and not told:
                progress.say(f"run {config.name}: machine 0 has stopped; waiting until its command is typed again")
            told = begun
        time.sleep(POLL_S)


def train_along(run_folder: Path, launch: JobAccelerateSettings, progress: Progress, ended: Callable[[], bool]) -> None:
    """On another node of a job than the first: train along until the first one's task has ended.

    Raises:
        ConstitutionalError: this node cannot train along.
    """
    check_machine(launch)
    progress.say(f"waiting for {launch.main_address} to train, as node {launch.machine_rank} of {launch.machines}")
    seen = ""
    while not ended():
        request = _request(run_folder)
        if request is not None and request.start != seen:
            seen = request.start
            _train_along(request, launch, progress)
        time.sleep(POLL_S)


def _train_along(request: TrainingRequest, launch: AccelerateSettings, progress: Progress) -> None:
    progress.say(f"{request.stage}: training along, with {counted(processes_here(launch), 'process')}")
    folder = request.folder / PROCESSES

    def no_longer_asked() -> bool:
        now = _request(request.run_folder)
        return now is None or now.start != request.start

    with locked_while(_file_of(folder, launch.machine_rank)) as file:
        code = _launch(request, launch, no_longer_asked)
        file.write(ENDED)
        file.flush()
        os.fsync(file.fileno())
    if code == LEFT_ALONE:
        progress.say(f"{request.stage}: machine 0 no longer trains, and the processes here were stopped")
    elif code:
        log = folder / f"log_{launch.machine_rank}.txt"
        progress.say(f"{request.stage}: the processes here ended with exit code {code}; {log} says more")


def _request(run_folder: Path) -> TrainingRequest | None:
    """What machine 0 trains now; what it left where it was killed does not count."""
    for file in run_folder.glob(f"*/{PROCESSES}/{REQUEST}"):
        with suppress(OSError, ValueError):
            if is_locked(file):
                return TrainingRequest.model_validate_json(file.read_text(encoding="utf-8"))
    return None


def _failures(config: RunConfig, stages: list[str]) -> dict[str, Failure]:
    """Why stages ended on machine 0 without being done."""
    with suppress(RunError):  # there is no run yet
        failures = read_manifest(config.run_folder).failures
        return {stage: failures[stage] for stage in stages if stage in failures}
    return {}


def _finished(config: RunConfig, stages: list[str]) -> RunStore | None:
    with suppress(ConstitutionalError):
        store = RunStore.load(config.run_folder)
        return store if all(name in store.stages for name in stages) else None
    return None
