"""PPO on two processes is PPO on one. Run as a program by each of the processes that the test starts."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from constitutional.runs.distributed import CONFIGS
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[3]
ROWS = [{"prompt": [{"role": "user", "content": "Why" + "?" * number}]} for number in range(8)]
PHASES = 3


def even(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def trainer_of(model: Path, output: Path) -> Any:  # noqa: ANN401
    """For as many processes as there are."""
    from constitutional.training.ppo.settings import PPOConfig
    from constitutional.training.ppo.trainer import PPOTrainer

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    completion = [{"role": "assistant", "content": "Quite so."}]
    args = PPOConfig(
        output_dir=str(output),
        use_cpu=True,
        total_episodes=PHASES * 12,
        per_device_train_batch_size=3,
        gradient_accumulation_steps=2 // processes,
        num_mini_batches=2,
        num_ppo_epochs=2,
        response_length=6,
        learning_rate=1e-3,
        save_steps=1,
        kl_target=0.01,
        ptx_coef=0.5,
        entropy_coef=0.01,
        loss_aggregation="seq_mean_token_mean",
    )
    ptx = [{**row, "completion": completion} for row in ROWS]
    own: dict[str, Any] = {"reward_funcs": [even], "train_dataset": ROWS, "ptx_dataset": ptx}
    return PPOTrainer(model, args=args, **own)


def train(model: Path, output: Path, *, broken_off: bool) -> Any:  # noqa: ANN401
    """If broken off, by two trainers, the second from the first one's checkpoint."""
    if broken_off:
        first = trainer_of(model, output)
        first.train_phase(first.begin(None))
    last = trainer_of(model, output)
    last.train(resume_from_checkpoint=broken_off)
    return last


def weights(trainer: Any) -> dict[str, Any]:  # noqa: ANN401
    from constitutional.training.ppo.shards import put_together

    networks = trainer.networks
    both = put_together({"policy": networks.policy_weights, "critic": networks.critic_weights}, keep=True)
    return {f"{of}.{name}": each.detach() for of, named in both.items() for name, each in named.items()}


@pytest.mark.slow  # three interpreters load torch
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_processes_come_to_what_one_does_also_when_they_are_stopped_and_go_on(tmp_path: Path, kind: str) -> None:
    import torch

    model = tiny_model(tmp_path / "models")
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{kind}.yaml")]
    launch += ["--num_processes", "2", "--num_machines", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, *launch, *plain, __file__]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(model), str(tmp_path / "two")], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(model, tmp_path / "one", broken_off=False)
    expected = weights(one)
    shares = [torch.load(tmp_path / "two" / f"share-{rank}.pt") for rank in range(2)]
    assert shares == ([1.0, 1.0] if kind == "ddp" else [pytest.approx(0.5, abs=0.05)] * 2)
    per_process = [torch.load(tmp_path / "two" / f"weights-{rank}.pt") for rank in range(2)]
    for name, each in expected.items():
        assert torch.equal(per_process[0][name], per_process[1][name]), name
        # Sums of floats in another order: what is left of 1e-7 after twelve steps of Adam, each about 1e-3 long.
        torch.testing.assert_close(per_process[0][name], each, atol=1e-5, rtol=0)
    saved = torch.load(tmp_path / "two" / "checkpoint-3" / "policy.pt")
    assert {f"policy.{name}" for name in saved} == {name for name in expected if name.startswith("policy.")}
    assert all(torch.equal(per_process[0][f"policy.{name}"], each) for name, each in saved.items())
    again = trainer_of(model, tmp_path / "two")  # in one process, from what two have kept
    assert again.begin(True) == PHASES
    for name, each in weights(again).items():
        assert torch.equal(each, per_process[0][name]), name
    for optimizer, other in zip(again.learner.optimizers, one.learner.optimizers, strict=True):
        states, others = (list(each.state.values()) for each in (optimizer, other))
        for state, expected_state in zip(states, others, strict=True):
            torch.testing.assert_close(state["exp_avg"], expected_state["exp_avg"], atol=1e-5, rtol=0)
            assert state["step"] == expected_state["step"]
    logs = [
        [json.loads(line) for line in (tmp_path / name / "training_log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert [line["step"] for line in logs[1]] == list(range(1, PHASES + 1))
    for alone, together in zip(*logs, strict=True):
        assert alone.keys() == together.keys()
        for name, number in alone.items():
            assert together[name] == pytest.approx(number, abs=1e-5), name
    assert logs[0][-1]["objective/kl_coef"] != logs[0][0]["objective/kl_coef"]


def main() -> None:
    """What each process does."""
    import torch
    from accelerate.state import AcceleratorState  # type: ignore[import-untyped]

    from constitutional.training.ppo.shards import own
    from tests.runs.on_cpus import begin_in_shards

    torch.set_num_threads(1)
    AcceleratorState.__init__ = begin_in_shards
    model, output = map(Path, sys.argv[1:])
    trainer = train(model, output, broken_off=True)
    assert trainer.accelerator.num_processes == 2
    parts = [own(weight) for weight in trainer.networks.policy_weights.values()]
    whole = sum(weight.numel() for weight in trainer.networks.policy_weights.values())
    torch.save(sum(part.numel() for part in parts) / whole, output / f"share-{trainer.accelerator.process_index}.pt")
    torch.save(weights(trainer), output / f"weights-{trainer.accelerator.process_index}.pt")
    trainer.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
