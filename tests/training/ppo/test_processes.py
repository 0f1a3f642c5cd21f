"""PPO on two processes is PPO on one. Run as a program by each of the processes that the test starts."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[3]
ROWS = [{"prompt": [{"role": "user", "content": "Why" + "?" * number}]} for number in range(8)]
PHASES = 3


def even(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float]:
    return [sum(token % 2 == 0 for token in ids) / len(ids) for ids in completion_ids]


def train(model: Path, output: Path, *, broken_off: bool) -> Any:  # noqa: ANN401
    """On as many processes as there are; if broken off, by two trainers, the second from the first one's checkpoint."""
    from constitutional.training.ppo.settings import PPOConfig
    from constitutional.training.ppo.trainer import PPOTrainer

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    completion = [{"role": "assistant", "content": "Quite so."}]

    def trainer() -> PPOTrainer:
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

    if broken_off:
        first = trainer()
        first.train_phase(first.begin(None))
    last = trainer()
    last.train(resume_from_checkpoint=broken_off)
    return last


def weights(trainer: Any) -> dict[str, Any]:  # noqa: ANN401
    networks = trainer.networks
    both = {"policy": networks.policy_weights, "critic": networks.critic_weights}
    return {f"{of}.{name}": each.detach() for of, named in both.items() for name, each in named.items()}


@pytest.mark.slow  # three interpreters load torch
def test_two_processes_come_to_what_one_does_also_when_they_are_stopped_and_go_on(tmp_path: Path) -> None:
    import torch

    model = tiny_model(tmp_path / "models")
    # Despite its name --multi_gpu starts processes on CPUs too; with --cpu alone accelerate starts one, unless by MPI.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    plain = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [sys.executable, *launch, *plain, __file__]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(model), str(tmp_path / "two")], env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = train(model, tmp_path / "one", broken_off=False)
    expected = weights(one)
    per_process = [torch.load(tmp_path / "two" / f"weights-{rank}.pt") for rank in range(2)]
    for name, each in expected.items():
        assert torch.equal(per_process[0][name], per_process[1][name]), name
        # Sums of floats in another order: what is left of 1e-7 after twelve steps of Adam, each about 1e-3 long.
        torch.testing.assert_close(per_process[0][name], each, atol=1e-5, rtol=0)
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

    torch.set_num_threads(1)
    model, output = map(Path, sys.argv[1:])
    trainer = train(model, output, broken_off=True)
    assert trainer.accelerator.num_processes == 2
    torch.save(weights(trainer), output / f"weights-{trainer.accelerator.process_index}.pt")
    trainer.accelerator.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
