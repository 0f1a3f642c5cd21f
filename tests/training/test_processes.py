"""SFT, reward and DPO on two processes are those on one. Run as a program by each of the processes of a test."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from constitutional.base.errors import ConfigurationError
from constitutional.stages import dpo, reward, sft
from constitutional.training import processes
from constitutional.training.processes import Shares, shared
from constitutional.training.rows import on_disk
from constitutional.training.saving import put_together
from constitutional.training.trl import (
    LoraSettings,
    TrainingSettings,
    check_kernels,
    check_packing,
    fit,
    load_policy,
    lora_config,
)
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]


class InOrder:
    """Rows in their own order."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rows))


def shares(rows: int, size: int, number: int) -> list[Shares]:
    return [Shares(InOrder(rows), size, rank, number) for rank in range(number)]


def test_processes_take_rows_by_turns_and_share_the_last_ones() -> None:
    first, second = shares(11, 2, 2)
    assert list(first) == [[0, 1], [4, 5], [8, 9]]
    assert list(second) == [[2, 3], [6, 7], [10]]
    assert [len(first), len(second)] == [3, 3]
    assert [processes.counts(11, 2, rank, 2) for rank in range(2)] == [[2, 2, 2], [2, 2, 1]]


def test_a_process_without_a_row_of_the_last_repeats_one_that_does_not_count() -> None:
    batches = [list(share) for share in shares(5, 1, 4)]
    assert batches == [[[0], [4]], [[1], [4]], [[2], [4]], [[3], [4]]]
    assert [processes.counts(5, 1, rank, 4) for rank in range(4)] == [[1, 1], [1, 0], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("size", "passes", "number", "own"),
    [
        (16, 4, 2, (16, 2)),  # passes are shared out first, as they stay as large as memory allows
        (16, 1, 2, (8, 1)),
        (3, 2, 2, (3, 1)),
        (4, 3, 6, (2, 1)),
        (6, 2, 4, (3, 1)),
        (5, 2, 4, None),
    ],
)
def test_a_step_has_the_same_rows_however_many_processes_there_are(
    size: int, passes: int, number: int, own: tuple[int, int] | None
) -> None:
    assert shared(size, passes, number) == own
    assert own is None or own[0] * own[1] * number == size * passes


def test_rows_that_cannot_be_shared_alike_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 4)
    settings = sft.Settings(batch_size=5, gradient_accumulation=2)
    with pytest.raises(ConfigurationError, match=r"batch_size=5 by gradient_accumulation=2 are 10 rows in a step"):
        processes.share_of(settings)


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of one process, over which weights can be sharded."""
    import torch

    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapted", [False, True])
def test_a_model_that_fsdp2_has_sharded_is_put_together(tmp_path: Path, adapted: bool, tied: bool) -> None:
    import torch
    from peft import get_peft_model
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    from constitutional.engines.local import load_model

    folder = tmp_path / "model"
    model: Any
    model, tokenizer = load_model(tiny_model(tmp_path))
    model.config.tie_word_embeddings = tied
    if tied:
        model.set_output_embeddings(model.get_input_embeddings())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model, _ = load_model(folder)
    settings = sft.Settings(lora=LoraSettings(rank=2) if adapted else None)
    adapters = lora_config(settings, "CAUSAL_LM")
    trained: Any = get_peft_model(model, adapters) if adapters else model
    with torch.no_grad():  # as if it had been trained
        for weight in trained.parameters():
            if weight.requires_grad:
                weight.add_(0.1)
    ids = torch.arange(8)[None]
    expected = trained(input_ids=ids).logits
    for layer in model.model.layers:
        fully_shard(layer)
    sharded: Any = fully_shard(trained)
    assert type(sharded).__name__.startswith("FSDP")
    # As accelerate asks for them.
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, cpu_offload=True)
    weights: Any = get_model_state_dict(sharded, options=options)
    whole = put_together(sharded, weights)
    assert type(whole).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(whole(input_ids=ids).logits, expected)


# --- Packing and kernels ---


def test_packed_examples_do_not_see_each_other(tmp_path: Path) -> None:
    """A step on three examples in one sequence is the step on three examples beside each other."""
    import torch

    moved = {}
    for packing in (False, True):
        settings = sft.Settings(epochs=1, batch_size=3, packing=packing, warmup=0, log_every=1, checkpoint_every=1)
        model, tokenizer = load_policy(tiny_model(tmp_path), settings)
        rows = on_disk(ROWS[:3], tmp_path / "rows")
        trainer = sft.sft_trainer(model, tokenizer, rows, settings, tmp_path / str(packing), seed=0)
        assert len(trainer.train_dataset) == (1 if packing else 3)  # type: ignore[arg-type]
        batch = next(iter(trainer.get_train_dataloader()))
        loss = trainer.compute_loss(model, batch)  # type: ignore[no-untyped-call]
        loss.backward()
        moved[packing] = {name: weight.grad for name, weight in model.named_parameters()}
    for name, gradient in moved[False].items():
        torch.testing.assert_close(moved[True][name], gradient, atol=1e-6, rtol=1e-4)


def test_a_model_that_carries_more_than_attention_is_not_packed(tmp_path: Path) -> None:
    from constitutional.engines.local import load_model

    model, _ = load_model(tiny_model(tmp_path))
    check_packing(model)
    model.config.layer_types = ["linear_attention", "full_attention"]
    refusal = r"^sft\.packing=true: LlamaForCausalLM has layers .*; type sft\.packing=false$"
    with pytest.raises(ConfigurationError, match=refusal):
        check_packing(model)


def test_kernels_for_gpus_are_refused_where_they_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: TrainingSettings = dpo.Settings(use_liger_kernel=True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigurationError, match=r"^algorithm\.use_liger_kernel=true: liger-kernel is not installed"):
        check_kernels(settings, "algorithm")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: "found")
    with pytest.raises(ConfigurationError, match=r"this machine has none; type algorithm\.use_liger_kernel=false"):
        check_kernels(settings, "algorithm")
    check_kernels(dpo.Settings(), "algorithm")


# --- Two processes ---


class Case(NamedTuple):
    """A training, with a last step that has fewer rows than the others."""

    rows: int
    size: int
    passes: int


# The loss of a language model is computed in 32 bits by TRL, so its passes have the same rows however many processes
# there are; of the reward model, whose loss is in 64 bits, they are divided.
CASES = {
    "sft": Case(9, 2, 2),  # one row is left for two processes
    "packed": Case(8, 1, 2),
    "reward": Case(7, 4, 1),  # of the last pass one process has two rows, and the other one
    "together": Case(9, 2, 1),
    "dpo": Case(9, 2, 2),
    "divided": Case(7, 4, 1),  # the same of DPO, whose loss is in 32 bits
}


def message(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


ROWS = [
    {"prompt": message("user", f"Why{'?' * number}"), "completion": message("assistant", "Because so." * (number + 1))}
    for number in range(11)
]
PAIRS = [
    {
        "prompt": row["prompt"],
        "chosen": row["completion"],
        "rejected": message("assistant", "No" + "." * number),
        "probability": 0.5 + number / 22,
        "weight": 0.5 + number / 10,
        "group": number // 2,
    }
    for number, row in enumerate(ROWS)
]


def train(model: Path, output: Path, kind: str) -> dict[str, Any]:
    """In 64 bits; returns the weights."""
    import torch

    from constitutional.engines.local import load_model
    from constitutional.training.reward_model import load_reward_model

    case = CASES[kind]
    quick = {"epochs": 2, "batch_size": case.size, "gradient_accumulation": case.passes, "learning_rate": 1e-3}
    common: dict[str, Any] = {**quick, "log_every": 1, "checkpoint_every": 1, "max_length": 64}
    torch.set_default_dtype(torch.float64)
    folder = output / kind
    try:
        trainer: Any
        rows = on_disk((ROWS if kind in ("sft", "packed") else PAIRS)[: case.rows], folder / "rows")
        if kind in ("sft", "packed"):
            settings = sft.Settings(**common, packing=kind == "packed")
            policy, tokenizer = load_model(model, dtype="float64")
            trainer = sft.sft_trainer(policy, tokenizer, rows, settings, folder, seed=0)
        elif kind in ("dpo", "divided"):
            policy, tokenizer = load_model(model, dtype="float64")
            trainer = dpo.soft_dpo_trainer(policy, tokenizer, rows, dpo.Settings(**common), folder, seed=0)
        else:
            scorer, tokenizer = load_reward_model(model, new_head=True, dtype="float64")
            of_reward = reward.Settings(**common, pairs_together=kind == "together")
            trainer = reward.soft_reward_trainer(scorer, tokenizer, rows, of_reward, folder, seed=0)
        folder.mkdir(parents=True, exist_ok=True)
        fit(trainer, log=folder / "log.jsonl", label=kind)
        return {
            name: weight.detach() for name, weight in trainer.accelerator.unwrap_model(trainer.model).named_parameters()
        }
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ["reward", "dpo"])
def test_how_a_step_is_divided_into_passes_changes_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import torch

    model = tiny_model(tmp_path / "models")
    trained = []
    for case in (Case(7, 4, 1), Case(7, 2, 2)):  # the last step has three rows: in one pass, or two and one
        monkeypatch.setitem(CASES, kind, case)
        trained.append(train(model, tmp_path / str(case.size), kind))
    for name, weight in trained[0].items():
        torch.testing.assert_close(trained[1][name], weight, atol=1e-6, rtol=0)  # the loss of DPO is in 32 bits


@pytest.mark.slow  # three interpreters load torch
def test_two_processes_come_to_what_one_comes_to(tmp_path: Path) -> None:
    import torch

    model = tiny_model(tmp_path / "models")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, *launch, *plain, __file__, str(model), str(tmp_path / "two")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind in CASES:
        one = train(model, tmp_path / "one", kind)
        two = torch.load(tmp_path / "two" / f"{kind}.pt")
        steps = [len((tmp_path / name / kind / "log.jsonl").read_text().splitlines()) for name in ("one", "two")]
        assert steps[0] == steps[1]
        if kind == "together":
            for line, other in zip(*(measured(tmp_path / name / kind) for name in ("one", "two")), strict=True):
                assert other == pytest.approx(line, rel=1e-5, abs=1e-5)
        for name, weight in one.items():
            # 64 bits leave nothing of the order in which numbers are added up, so any other difference would be seen.
            most = 1e-6 if kind == "divided" else 1e-12
            torch.testing.assert_close(two[name], weight, atol=most, rtol=0, msg=f"{kind} {name}")


def measured(folder: Path) -> list[dict[str, float]]:
    """What a training's log has of a reward model's pairs."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    names = ("min_reward", "mean_reward", "max_reward", "accuracy", "margin")
    return [{name: line[name] for name in names} for line in lines]


def main() -> None:
    """What each process does."""
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    torch.set_num_threads(1)
    model, output = map(Path, sys.argv[1:])
    PartialState(cpu=True)
    for kind in CASES:
        weights = train(model, output, kind)
        assert processes.count() == 2
        if processes.is_main():
            torch.save(weights, output / f"{kind}.pt")
        processes.wait()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
