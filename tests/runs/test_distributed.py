"""A run whose trainings are made by two processes, against the same run by one: results, kills, mistakes, machines."""

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from constitutional.base.errors import BudgetError, ConfigurationError, InputError, RunError
from constitutional.base.files import digest_of
from constitutional.base.progress import Progress
from constitutional.base.shipped import shipped
from constitutional.base.templates import load_prompts
from constitutional.engines.spending import Calls
from constitutional.runs import distributed
from constitutional.runs.compose import compose
from constitutional.runs.context import RunContext, selected
from constitutional.runs.distributed import (
    CONFIGS,
    PROCESSES,
    REQUEST,
    ProcessEnd,
    TrainingRequest,
    _asked,
    _end,
    _failure,
    _request,
    check,
    check_machine,
    leave_end,
)
from constitutional.runs.distributed_child import refuse_edited
from constitutional.runs.folder import RunStore
from constitutional.runs.former import changes
from constitutional.runs.launch_settings import SlurmSettings
from constitutional.runs.outputs import LOCK, take_lock
from constitutional.runs.pipeline import stages_of
from constitutional.runs.runner import fingerprint_of, run
from constitutional.runs.settings import RunConfig
from tests.scripted_run import World, configured, constitution
from tests.tiny import tiny_model

STAGES = ("sft", "reward", "dpo", "ppo")
TRAINING = (
    *(f"{stage}.{own}" for stage in ("sft", "reward", "algorithm") for own in ("batch_size=2", "epochs=2")),
    *(f"{stage}.gradient_accumulation=2" for stage in ("sft", "reward", "algorithm")),
    *(f"{stage}.{every}=1" for stage in ("sft", "reward") for every in ("log_every", "checkpoint_every")),
)
OF_DPO = ("algorithm=dpo", "algorithm.log_every=1", "algorithm.checkpoint_every=1")
OF_PPO = (
    *("algorithm=ppo", "algorithm.episodes=24", "algorithm.mini_batches=1", "algorithm.max_tokens=8"),
    "algorithm.checkpoint_every=1",
)
TWO = ("launch=accelerate", "launch.processes=2")
TOLERANCE = 1e-3
"""How far two processes may be from one, as a share of how far the training moved the weights.

In 64 bits nothing is left of it: tests/training/test_processes.py shows it, and of PPO its own test of two processes,
which leaves 2e-16 where everything in it is computed in 64 bits. In 32 bits gradients that are added up in another
order differ by some 1e-7 of the largest, and Adam divides a weight's gradient by its own size: for a weight whose
gradient is s times the largest the difference counts 1/s times as much, in every step. PPO came to 1e-4; the other
three, whose passes have the same rows in two processes as in one, to the same weights.
"""


EXTREMES = {"min_reward", "max_reward"}
"""Means over passes of the extremes of a pass, which is larger where several processes have one together."""


def config_of(folder: Path, model: Path, stage: str, *more: str) -> RunConfig:
    algorithm = OF_PPO if stage == "ppo" else OF_DPO
    chosen = ("experiment=sandbox", f"model.path={model}")  # another model is taken for a real one
    return configured(folder, *chosen, *algorithm, *TRAINING, f"until={stage}", *more)


def start(config: RunConfig) -> tuple[RunStore, str]:
    said = StringIO()
    return run(config, opener=World().open, progress=Progress(said)), said.getvalue()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A folder of runs in which one process made all that is trained."""
    folder = tmp_path_factory.mktemp("alone")
    constitution(folder)
    for stage in ("dpo", "ppo"):
        start(config_of(folder, model, stage, f"name={stage}"))
    return folder


def without(alone: Path, folder: Path, stage: str) -> Path:
    """The same runs, as they were before a stage was made."""
    shutil.copytree(alone, folder, symlinks=True)
    (made,) = folder.glob(f"runs/.stages/{stage}-*")
    shutil.rmtree(made)
    return folder


def of(stage: str) -> str:
    """The run that has a stage."""
    return "name=ppo" if stage == "ppo" else "name=dpo"


def weights(folder: Path) -> dict[str, Any]:
    """Of a model, or of all in a folder."""
    from safetensors.torch import load_file

    files = sorted(folder.rglob("model.safetensors"))
    return {f"{number} {name}": weight for number, file in enumerate(files) for name, weight in load_file(file).items()}


def made(store: RunStore, stage: str) -> Path:
    return store.artifact({"sft": "sft_model", "reward": "reward_model"}.get(stage, "policy"))


def children(folder: Path) -> list[int]:
    """Processes that train for a run in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_text().split("\0")
            trains = {"constitutional.runs.distributed_child", "tests.runs.on_cpus"} & {*words}
            ours = trains and "accelerate.commands.launch" not in words
            if ours and any(word.startswith(str(folder)) for word in words):
                found.append(int(process.name))
    return sorted(found)


@contextmanager
def once(condition: Callable[[], bool], act: Callable[[], None]) -> Iterator[None]:
    """Meanwhile, act once, as soon as the condition holds."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if condition():
                act()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- Results ---


def compare(alone: Path, model: Path, folder: Path, stage: str, launched: Sequence[str]) -> None:
    """Train a stage in a folder by two processes, and compare what it makes with what one process made."""
    one = RunStore.load(alone / "runs" / of(stage).removeprefix("name="))
    two, said = start(config_of(without(alone, folder, stage), model, stage, of(stage), *launched))
    assert re.search(rf"\d\d {stage}: running", said)
    assert two.stages[stage].fingerprint == one.stages[stage].fingerprint
    began = weights(model if stage == "sft" else one.artifact("sft_model"))
    expected, found = weights(made(one, stage)), weights(made(two, stage))
    assert expected.keys() == found.keys()
    moved = max(float((expected[name] - weight).abs().max()) for name, weight in began.items() if name in expected)
    apart = max(float((expected[name] - weight).abs().max()) for name, weight in found.items())
    assert moved > 0
    assert apart <= TOLERANCE * moved, (apart, moved)
    for line, other in zip(one.training_logs(stage)["training"], two.training_logs(stage)["training"], strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - EXTREMES:
            assert other[name] == pytest.approx(line[name], rel=1e-3, abs=1e-3), name
    steps = {"steps", "trained_on", "pairs", "dropped", "replies", "prompts"}
    summaries = [
        {key: value for key, value in store.stages[stage].summary.items() if key in steps} for store in (one, two)
    ]
    assert summaries[0] == summaries[1]


@pytest.mark.slow  # each of them starts three interpreters
@pytest.mark.parametrize("stage", STAGES)
def test_two_processes_make_what_one_makes(alone: Path, model: Path, tmp_path: Path, stage: str) -> None:
    compare(alone, model, tmp_path / "two", stage, TWO)


# --- Kills, Ctrl-C and mistakes ---


def break_off(alone: Path, model: Path, folder: Path, stage: str, launched: Sequence[str]) -> None:
    """Kill a process that trains a stage, stop the command at the next start, and see what a third one comes to."""

    def place(name: str) -> Path:
        (found,) = (folder / name / "runs" / ".stages").glob(f"{stage}-*")
        return found

    def reached(step: int) -> bool:
        with suppress(ValueError):
            written = "state.json" if stage == "ppo" else "complete"
            return any((place("broken") / "checkpoints").rglob(f"checkpoint-{step}/{written}"))
        return False

    longer = {"ppo": "algorithm.episodes=96", "dpo": "algorithm.epochs=12"}.get(stage, f"{stage}.epochs=12")
    long = (of(stage), longer, *launched)
    whole, _ = start(config_of(without(alone, folder / "whole", stage), model, stage, *long))
    broken = config_of(without(alone, folder / "broken", stage), model, stage, *long)
    killed = rf"^{stage}: a process that trains was ended by SIGKILL; .* goes on from the last checkpoint"
    with (
        once(lambda: reached(1), lambda: os.kill(children(folder)[-1], signal.SIGKILL)),
        pytest.raises(RunError, match=killed),
    ):
        start(broken)
    assert children(folder) == []
    assert RunStore.load(broken.run_folder).manifest.failures[stage].message.startswith(f"{stage}: a process that")
    with once(lambda: reached(2), lambda: os.kill(os.getpid(), signal.SIGINT)), pytest.raises(KeyboardInterrupt):
        start(broken)
    assert children(folder) == []
    store, _ = start(broken)
    assert digest_of(made(store, stage)) == digest_of(made(whole, stage))
    assert store.training_logs(stage) == whole.training_logs(stage)
    assert not (place("broken") / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_whose_process_is_killed_or_that_is_stopped_goes_on_to_the_same(
    alone: Path, model: Path, tmp_path: Path, stage: str
) -> None:
    break_off(alone, model, tmp_path, stage, TWO)


@pytest.mark.slow
def test_a_mistake_that_a_process_finds_is_told_as_if_there_were_one(alone: Path, model: Path, tmp_path: Path) -> None:
    folder = without(alone, tmp_path / "two", "sft")
    with pytest.raises(RunError, match=r"^Nothing to train on: of \d+ rows \d+ are longer than max_length=16 tokens"):
        start(config_of(folder, model, "sft", "name=short", "sft.max_length=16", *TWO))
    store = RunStore.load(folder / "runs" / "short")
    assert store.manifest.failures["sft"].message.startswith("Nothing to train on")


@pytest.mark.parametrize("edited", ["ours.yaml", "label.j2"])
def test_what_was_edited_since_the_command_began_is_not_trained_on(tmp_path: Path, edited: str) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    template = templates / "label.j2"
    template.write_text((shipped("prompts") / "label.j2").read_text())
    config = configured(tmp_path, f"templates={templates}")
    constitution(tmp_path)
    progress = Progress(StringIO())
    began = RunContext(config, selected(config), load_prompts(config.templates), progress)
    needs = {need: began.digest(need) for need in ("constitution", "label.j2")} | {"preferences": "made by a stage"}
    refuse_edited(RunContext.joining(config, progress), needs)
    if edited == "label.j2":
        template.write_text(f"Look well.\n{template.read_text()}")
    else:
        constitution(tmp_path, brief="Be very brief.")
    with pytest.raises(RunError, match=rf"{edited}: was edited since the command began"):
        refuse_edited(RunContext.joining(config, progress), needs)


@pytest.mark.slow
def test_another_machine_trains_along_until_the_run_is_done(alone: Path, model: Path, tmp_path: Path) -> None:
    """Two machines with a process each; both are this one."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = (
        *("launch=accelerate", "launch.processes=1", "launch.machines=2", "launch.main_address=127.0.0.1"),
        f"launch.port={port}",
    )
    folder = without(alone, tmp_path / "two", "sft")
    config = config_of(folder, model, "sft", of("sft"), *both)
    heard, joined = StringIO(), list[RunStore]()
    second = config.model_copy(update={"launch": config.launch.model_copy(update={"machine_rank": 1})})
    thread = threading.Thread(target=lambda: joined.append(run(second, progress=Progress(heard))))
    thread.start()
    store, _ = start(config)
    thread.join(60)
    assert [line for line in heard.getvalue().splitlines() if "sft" in line] == ["sft: training along, with 1 process"]
    assert joined[0].folder == store.folder
    one = RunStore.load(alone / "runs" / "dpo")
    for name, weight in weights(made(one, "sft")).items():
        assert float((weights(made(store, "sft"))[name] - weight).abs().max()) < 1e-5


def test_another_machine_does_not_take_an_earlier_run_for_the_one_that_it_waits_for(
    alone: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ("launch=accelerate", "launch.processes=1", "launch.machines=2", "launch.main_address=127.0.0.1")
    config = config_of(alone, model, "dpo", of("dpo"), *there, "launch.machine_rank=1")
    begins = iter([False, False, True, True])
    asked = list[bool]()

    def locked(_lock: Path) -> bool:
        asked.append(next(begins, False))
        return asked[-1]

    monkeypatch.setattr(distributed, "is_locked", locked)
    monkeypatch.setattr(distributed, "POLL_S", 0.01)
    assert distributed.join(config, Progress(StringIO())).folder == alone / "runs" / "dpo"
    assert asked[:4] == [False, False, True, True]  # it was finished all the time
    begins = iter(())
    monkeypatch.setattr(distributed, "WAIT_S", 0.05)
    began_s = time.monotonic()
    assert distributed.join(config, Progress(StringIO())).folder == alone / "runs" / "dpo"  # which nobody makes anew
    assert time.monotonic() - began_s >= 0.05


def test_what_a_killed_machine_0_was_training_is_not_taken_for_what_another_trains_now(tmp_path: Path) -> None:
    file = tmp_path / "03_sft" / PROCESSES / REQUEST
    file.parent.mkdir(parents=True)
    request = TrainingRequest(
        start="now", run_folder=tmp_path, stage="sft", fingerprint="f", needs={}, files={}, folder=file.parents[2]
    )
    with _asked(file, request):
        assert _request(tmp_path) == request
        left = file.read_bytes()
    assert not file.exists()
    file.write_bytes(left)  # as a kill leaves it
    lock = take_lock(tmp_path / LOCK)  # of the command that was typed again
    assert _request(tmp_path) is None
    assert lock is not None
    lock.close()


def test_another_machine_ends_where_machine_0_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = ("launch=accelerate", "launch.processes=1", "launch.machines=2", "launch.main_address=127.0.0.1")
    config = compose(["name=first", f"folder={tmp_path}", *there, "launch.machine_rank=1"])

    def fail(message: str) -> None:
        with RunStore.open(config.run_folder, "{}") as store:
            store.fail("sft", message)

    held = iter([False, False, True])

    def locked(_lock: Path) -> bool:
        if now := next(held, False):
            fail("out of memory")
        return now

    fail("the day before")
    monkeypatch.setattr(distributed, "is_locked", locked)
    monkeypatch.setattr(distributed, "POLL_S", 0.01)
    told = r"^sft: failed on machine 0 \(\S+\): {}; once that is mended, type the command on every machine again$"
    with pytest.raises(RunError, match=told.format("out of memory")):
        distributed.join(config, Progress(StringIO()))
    monkeypatch.setattr(distributed, "WAIT_S", 0.05)
    fail("before machine 1 came")
    began_s = time.monotonic()
    with pytest.raises(RunError, match=told.format("before machine 1 came")):
        distributed.join(config, Progress(StringIO()))
    assert time.monotonic() - began_s >= 0.05


def test_another_machine_says_that_the_first_has_stopped(
    alone: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ("launch=accelerate", "launch.processes=1", "launch.machines=2", "launch.main_address=127.0.0.1")
    config = config_of(alone, model, "dpo", of("dpo"), *there, "launch.machine_rank=1")
    held, said = iter([True, False, False, True, False]), StringIO()
    finished, finds = iter([False, False, False]), distributed._finished
    monkeypatch.setattr(distributed, "is_locked", lambda _: next(held, False))
    monkeypatch.setattr(distributed, "_request", lambda _: None)
    monkeypatch.setattr(distributed, "_finished", lambda *given: (next(finished, True) and finds(*given)) or None)
    monkeypatch.setattr(distributed, "POLL_S", 0.01)
    assert distributed.join(config, Progress(said)).folder == alone / "runs" / "dpo"
    # Twice: it was typed again, and stopped again.
    assert said.getvalue().count("machine 0 has stopped; waiting until its command is typed again") == 2


# --- What is refused before anything is asked ---


EIGHT = ("launch=slurm", "launch.config=fsdp2", "launch.gpus_per_node=8")
WHOLE_FIRST = {"fsdp_version": "2", "fsdp_cpu_ram_efficient_loading": "false"}
REFUSED = {
    ("launch.processes=1",): r"launch\.processes=1 starts no second process; type launch=here",
    (): r"a process for each GPU, and this machine has none; type launch\.processes=2",
    ("launch.processes=3",): r"^sft\.batch_size=16 by sft\.gradient_accumulation=1 are 16 rows in a step, which 3 "
    r"processes cannot have in equal parts; type sft\.batch_size=18, or launch\.processes=2$",
    ("launch.processes=2", "launch.config=fsdp2"): r"shards weights over GPUs, and this machine has none",
    ("launch.processes=2", "launch.config=mine.yaml"): r"^launch\.config=mine\.yaml: is no configuration of accelerate "
    r".*; type one of ddp, fsdp2, zero3, or a file that",
    ("launch.processes=2", "algorithm=grpo"): r"trains sft, reward, dpo and ppo; algorithm=grpo .* type launch=here",
    ("launch.processes=2", "algorithm=ppo", "algorithm.sampler=vllm"): r"algorithm\.sampler=transformers",
    (
        *("launch.processes=2", "algorithm=ppo", "algorithm.rewards=[{kind: constitution}]"),
        "budget.max_calls=9",
    ): r"a budget is kept by one process",
    (
        *("launch.processes=2", "algorithm=ppo", "algorithm.rewards=[{kind: constitution}]"),
        *("launch.machines=2", "launch.main_address=10.0.0.1"),
    ): r"kept in one journal, which is for one machine at a time; train on one machine",
    (
        *("launch.processes=2", "algorithm=ppo", "algorithm.rewards=[{kind: constitution}]"),
        "cluster=ray",
    ): r"every process of the training that the labeler rewards would join .*; type launch=here, or cluster=none",
    # Of 10 rows in a step five processes could have equal parts, and two machines cannot start five.
    (
        *("launch.processes=4", "launch.machines=2", "launch.main_address=10.0.0.1", "sft.batch_size=10"),
    ): r"which 8 processes cannot have in equal parts; type sft\.batch_size=16, or launch\.processes=1$",
    (
        *("launch.processes=4", "launch.machines=3", "launch.main_address=10.0.0.1"),
    ): r"^sft\.batch_size=16 .* 12 processes cannot have in equal parts; type sft\.batch_size=24$",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_several_processes_cannot_train_is_refused(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigurationError, match=REFUSED[overrides]):
        check(compose(["launch=accelerate", *overrides]))


IN_JOBS = {
    (*EIGHT, "launch.nodes=3"): r"^sft\.batch_size=16 .* 24 processes cannot have in equal parts; type "
    r"sft\.batch_size=24$",
    (
        *EIGHT,
        "sft.batch_size=12",
    ): r"12 rows in a step, which 8 .* type sft\.batch_size=16, or launch\.gpus_per_node=6$",
    (*EIGHT, "algorithm=grpo"): r"^launch\.config=fsdp2 trains .* type launch\.config=null, or algorithm=ppo$",
    (*EIGHT, "launch.config=zero3"): r"DeepSpeed, which is not installed; .* or launch\.config=fsdp2$",
    (*EIGHT, "launch.config=mine.yaml"): r"^launch\.config=mine\.yaml: is no configuration of accelerate",
    (
        *(*EIGHT, "launch.nodes=2", "algorithm=ppo", "algorithm.rewards=[{kind: constitution}]"),
    ): r"kept in one journal, which is for one machine at a time",
}


@pytest.mark.parametrize("overrides", IN_JOBS)
def test_what_the_processes_of_a_job_cannot_train_is_refused_before_there_is_one(
    overrides: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine of the command has no GPU, and need not have one."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=IN_JOBS[overrides]):
        check(compose([*overrides]))
    check(compose([*EIGHT]))
    check(compose(["launch=slurm", "algorithm=grpo"]))


def test_nodes_that_are_one_machine_cannot_share_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["launch=slurm", "launch.mode=local", "launch.config=ddp", "launch.nodes=2"])
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    check(config)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    with pytest.raises(ConfigurationError, match=r"are all this machine, .* type launch\.nodes=1$"):
        check(config)


@pytest.mark.parametrize(
    ("gpus", "problem"),
    [
        (0, r"shards weights over GPUs, and the job's node \S+ has none; type launch\.config=ddp$"),
        (4, r"gpus_per_node=8 are more than the 4 GPUs of the job's node \S+, .* type launch\.gpus_per_node=4$"),
    ],
)
def test_a_node_without_the_gpus_of_its_job_says_so(monkeypatch: pytest.MonkeyPatch, gpus: int, problem: str) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    node = SlurmSettings(config="fsdp2", gpus_per_node=8).together()
    assert node is not None
    with pytest.raises(ConfigurationError, match=problem):
        check_machine(node)


@pytest.mark.parametrize(
    ("kind", "own", "written"),
    [
        ("FSDP", {"fsdp_config": {"fsdp_cpu_ram_efficient_loading": False}}, "fsdp_version: 2"),
        ("FSDP", {"fsdp_config": {"fsdp_version": 2}}, "fsdp_cpu_ram_efficient_loading: false"),
        ("DEEPSPEED", {"deepspeed_config": {"zero_stage": 3}}, "zero3_save_16bit_model: true"),
        ("DEEPSPEED", {"deepspeed_config": {"zero_stage": 2}}, None),
        ("FSDP", {"fsdp_config": WHOLE_FIRST}, None),
        ("FSDP", {"fsdp_config": WHOLE_FIRST | {"fsdp_offload_params": True}}, "fsdp_offload_params: false"),
    ],
)
def test_sharding_whose_models_would_be_lost_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, own: dict[str, Any], written: str | None
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: "found")
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"distributed_type": kind, **own}))
    config = compose(["launch=accelerate", f"launch.config={file}", "algorithm=ppo"])
    if written is None:
        check(config)
        return
    with pytest.raises(ConfigurationError, match=f"write `{written}` into it"):
        check(config)


@pytest.mark.parametrize(
    ("gpus", "overrides", "typed"),
    [
        (2, ("launch.processes=4",), "launch.processes=2"),
        (1, ("launch.processes=2",), "launch=here"),
        (1, ("launch.processes=1",), "launch=here"),
        (1, ("launch.processes=2", "launch.machines=2", "launch.main_address=10.0.0.1"), "launch.processes=1"),
    ],
)
def test_more_processes_than_gpus_are_refused_with_what_there_can_be(
    monkeypatch: pytest.MonkeyPatch, gpus: int, overrides: tuple[str, ...], typed: str
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    with pytest.raises(ConfigurationError, match=rf"type {typed}$"):
        check(compose(["launch=accelerate", *overrides]))
    if typed.startswith("launch.processes"):
        check(compose(["launch=accelerate", *overrides, typed]))


@pytest.mark.parametrize(
    ("gpus", "precision", "refused"), [(2, "fp16", True), (2, "'no'", False), (2, "no", False), (0, "fp16", False)]
)
def test_a_precision_that_no_stage_trains_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, precision: str, refused: bool
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    file = tmp_path / "mine.yaml"
    file.write_text(f"distributed_type: MULTI_GPU\nmixed_precision: {precision}\n")
    config = compose(["launch=accelerate", "launch.processes=2", f"launch.config={file}"])
    if not refused:
        check(config)
        return
    with pytest.raises(ConfigurationError, match=r"mixed_precision fp16, .* write `mixed_precision: bf16` into it$"):
        check(config)


def test_zero3_needs_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"needs DeepSpeed, which is not installed; type pip install"):
        check(compose(["launch=accelerate_zero3"]))
    check(compose(["launch=accelerate_fsdp2"]))


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("launch.machines=2",), r"type launch\.main_address=ADDRESS"),
        (("launch.machine_rank=1",), r"ranks go from 0 to 0; type launch\.machines=2"),
        (("reward.packing=true",), r"there is no setting 'reward\.packing'; TRL packs for SFT alone"),
        (("algorithm.packing=true",), r"TRL packs for SFT alone, sft\.packing=true; leave it out"),
        (("algorithm.padding_free=true",), r"leave it out, or type sft\.packing=true"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        compose(["launch=accelerate", *overrides])


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (("launch.nodes=2",), r"config is null, with which one process trains; type launch\.config=fsdp2"),
        (("launch.config=ddp",), r"gpus_per_node is 1; type launch\.gpus_per_node=2 or more, or launch\.config=null"),
    ],
)
def test_jobs_that_cannot_be_are_refused(overrides: tuple[str, ...], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        compose(["launch=slurm", *overrides])
    compose(["launch=slurm", "launch.config=ddp", "launch.nodes=2"])  # a process on each


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero3"])
def test_accelerate_reads_the_shipped_configurations(name: str) -> None:
    from accelerate.commands import launch  # type: ignore[import-untyped]
    from accelerate.commands.config.config_args import load_config_from_file  # type: ignore[import-untyped]

    file = str(CONFIGS / f"{name}.yaml")
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}[name]
    assert load_config_from_file(file).distributed_type == kind
    words = ["--config_file", file, "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "x.py"]
    arguments, _, _ = launch._validate_launch_command(launch.launch_command_parser().parse_args(words))
    chosen = {"MULTI_GPU": arguments.multi_gpu, "FSDP": arguments.use_fsdp, "DEEPSPEED": arguments.use_deepspeed}
    assert {key for key, value in chosen.items() if value} == {kind}
    if name == "fsdp2":
        assert (arguments.fsdp_version, arguments.fsdp_state_dict_type) == (2, "SHARDED_STATE_DICT")
    if name == "zero3":
        assert (arguments.zero_stage, arguments.zero3_save_16bit_model) == (3, True)


def test_how_a_stage_is_launched_changes_neither_fingerprints_nor_the_runs_digest(tmp_path: Path) -> None:
    here, there = compose([]), compose(["launch=accelerate_fsdp2", "launch.processes=8", "sft.batch_size=8"])
    there = there.model_copy(update={"sft": here.sft})
    assert here.digest == there.digest
    prints = [[fingerprint_of(stage, 0, {}, {}) for stage in stages_of(config)[1:-1]] for config in (here, there)]
    assert prints[0] == prints[1]
    assert changes(there.model_copy(update={"folder": tmp_path})) == []


# --- How processes end ---


def test_the_first_mistake_counts_then_a_kill_then_a_defect(tmp_path: Path) -> None:
    log = tmp_path / "log_0.txt"
    log.write_text("")
    defect, lost = ProcessEnd(error="defect", args=("Traceback: KeyError",)), ProcessEnd(error="lost", args=("gloo",))
    mistake = ProcessEnd(error="InputError", args=("rows.jsonl", "is empty", 3), notes=("one more",))
    told = _failure("sft", tmp_path, {0: defect, 1: mistake})
    assert isinstance(told, InputError)
    assert str(told) == "rows.jsonl:3: is empty"
    assert told.__notes__ == ["one more"]
    budget = _failure("ppo", tmp_path, {0: ProcessEnd(error="BudgetError", args=("spent",))})
    assert isinstance(budget, BudgetError)
    assert isinstance(_failure("sft", tmp_path, {0: defect}), RuntimeError)
    assert "on another machine" in str(_failure("sft", tmp_path, {0: lost}))
    log.write_text("  exitcode  : -15 (pid: 7)\n  exitcode  : -9 (pid: 8)\n")
    assert "was ended by SIGKILL" in str(_failure("sft", tmp_path, {0: lost, 1: defect}))
    log.write_text("Traceback\nConnectionError: port 29500 is in use\n")
    failed = str(_failure("sft", tmp_path, {}))
    assert failed.startswith("sft: accelerate could not start the processes: ConnectionError: port 29500 is in use; ")


def test_what_a_process_leaves_is_read_as_it_was(tmp_path: Path) -> None:
    calls = Calls.of_roles({"labeler": Calls(asked=2, reused=1)})
    end = ProcessEnd(
        calls=calls, summary={"loss": 0.5, "none": None}, warnings=("w",), written={"rows": tmp_path / "r"}
    )
    leave_end(tmp_path, 1, end)
    assert _end(tmp_path, 1) == end
    assert _end(tmp_path, 0) is None
