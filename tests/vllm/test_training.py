"""Online trainings whose replies vLLM draws. vLLM stays in a process, so that each training has one of its own."""

import json
import multiprocessing
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.records import Message, Prompt
from constitutional.base.shipped import MODEL_FOLDER
from constitutional.engines.settings import VllmSettings
from constitutional.training.metrics import MISMATCH
from tests.tiny import OneStage

if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)


def stage(folder: Path) -> OneStage:
    prompts = [Prompt(messages=(Message("user", f"What is number {number}?"),)) for number in range(8)]
    models = {"sft_model": MODEL_FOLDER, "reward_model": folder / "reward"}
    return OneStage(folder, models, {"prompts": prompts})


def in_own_process(training: Callable[[Path], None], folder: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=training, args=(folder,))
    process.start()
    process.join(600)
    process.kill()
    assert process.exitcode == 0


def log_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def ppo(folder: Path, lora: bool = False) -> None:
    from constitutional.judging.labelling import LabelSettings
    from constitutional.stages.online import Inputs
    from constitutional.stages.ppo import Settings, run
    from constitutional.stages.reward import write_normalisation
    from constitutional.training.reward_model import load_reward_model
    from constitutional.training.trl import LoraSettings

    member, tokenizer = load_reward_model(MODEL_FOLDER, new_head=True, seed=1)
    member.save_pretrained(folder / "reward" / "0")
    tokenizer.save_pretrained(folder / "reward" / "0")
    write_normalisation(folder / "reward", [{"mean": 0.0, "deviation": 0.1}], 1)
    settings = Settings(
        sampler="vllm",
        sampler_memory=0.2,
        episodes=24,
        batch_size=8,
        gradient_accumulation=1,
        mini_batches=1,
        epochs=2,
        max_tokens=12,
        temperature=0.7,
        learning_rate=1e-3,
        lora=LoraSettings(rank=4) if lora else None,
    )
    run(Inputs.of(settings, LabelSettings()), stage(folder))


def ppo_with_adapters(folder: Path) -> None:
    ppo(folder, lora=True)


def ppo_without_sync(folder: Path) -> None:
    from constitutional.training.ppo import vllm_sampler

    def first_only(engine: object, weights: object) -> None:
        if not taken:
            take_over(engine, weights)
            taken.append(True)

    taken: list[bool] = []
    take_over = vars(vllm_sampler)["take_over"]
    vars(vllm_sampler)["take_over"] = first_only
    ppo(folder)


@pytest.mark.parametrize("training", [ppo, ppo_with_adapters])
def test_vllm_draws_with_the_policy_as_it_is(training: Callable[[Path], None], tmp_path: Path) -> None:
    in_own_process(training, tmp_path)
    log = log_of(tmp_path)
    assert [line["step"] for line in log] == [1, 2, 3]
    assert log[-1]["objective/kl"] > 0.05**2  # it has moved
    assert all(line[f"{MISMATCH}/max"] < 1e-4 for line in log)


def test_a_sync_that_is_left_out_shows_in_the_log(tmp_path: Path) -> None:
    in_own_process(ppo_without_sync, tmp_path)
    first, *others = log_of(tmp_path)
    assert first[f"{MISMATCH}/max"] < 1e-4
    assert all(line[f"{MISMATCH}/max"] > 1e-3 for line in others)


def group(kind: str, folder: Path) -> None:
    from constitutional.judging.labelling import LabelSettings
    from constitutional.stages.grpo import GrpoSettings, RlooSettings, run
    from constitutional.stages.online import Inputs
    from constitutional.training.rewards import LengthSettings

    settings = (GrpoSettings if kind == "grpo" else RlooSettings)(
        sampler="vllm",
        rewards=(LengthSettings(limit=0, weight=-1),),
        num_generations=4,
        batch_size=8,
        gradient_accumulation=1,
        epochs=1,
        max_tokens=12,
        learning_rate=1e-3,
        log_every=1,
        max_length=256,
    )
    run(Inputs.of(settings, LabelSettings()), stage(folder))


def grpo(folder: Path) -> None:
    group("grpo", folder)


def rloo(folder: Path) -> None:
    group("rloo", folder)


@pytest.mark.parametrize("training", [grpo, rloo])
def test_trl_draws_with_vllm(training: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    in_own_process(training, tmp_path)
    log = log_of(tmp_path)
    assert [line["step"] for line in log] == [1, 2, 3, 4]
    # vLLM computes in the number format that it chooses, which may be bfloat16.
    assert all(0 < line[f"{MISMATCH}/mean"] < 0.05 for line in log)
    assert all(line[f"{MISMATCH}/mean"] < line[f"{MISMATCH}/max"] for line in log)


class Served(OneStage):
    """The labeler is vLLM, in a process of its own."""

    def settings(self, role: str) -> Any:  # noqa: ANN401
        return (
            VllmSettings(path="sandbox", dtype="float32", memory=0.2) if role == "labeler" else super().settings(role)
        )


def rewarded_by_vllm(folder: Path) -> None:
    """PPO and then GRPO, with the constitution as the reward."""
    from constitutional.base.templates import load_prompts
    from constitutional.constitution.constitution import Constitution, Principle
    from constitutional.engines.models import Models, engine_of
    from constitutional.judging.labelling import LabelSettings
    from constitutional.stages import grpo, online, ppo
    from constitutional.training.rewards import LengthSettings, PrinciplesSettings

    models, principles = Models(), tuple(Principle(id=name, text=f"Be {name}.") for name in ("calm", "brief"))
    common: dict[str, Any] = {
        "rewards": (PrinciplesSettings(), LengthSettings(limit=0, weight=-0.1)),
        "batch_size": 8,
        "gradient_accumulation": 1,
        "max_tokens": 12,
    }
    direct = ppo.Settings(episodes=16, mini_batches=1, sampling_batch_size=4, learning_rate=1e-3, **common)
    groups = grpo.GrpoSettings(num_generations=4, epochs=1, learning_rate=1e-3, log_every=1, max_length=256, **common)
    for name in ("ppo", "grpo"):
        plain = stage(folder / name)
        context = Served(plain.folder, plain.models, plain.rows, prompts=load_prompts())
        context.constitution = Constitution(name="ours", principles=principles)
        context.rows["labeler_accuracy"] = []
        context.engines["labeler"] = engine_of(context.settings("labeler"), models)
        if name == "ppo":
            ppo.run(online.Inputs.of(direct, LabelSettings()), context)
        else:
            grpo.run(online.Inputs.of(groups, LabelSettings()), context)
    models.release()


def test_vllm_scores_replies_while_the_policy_is_trained(tmp_path: Path) -> None:
    in_own_process(rewarded_by_vllm, tmp_path)
    for name, steps in (("ppo", 2), ("grpo", 4)):
        log = log_of(tmp_path / name)
        assert len(log) == steps
        for line in log:
            assert -1 <= line["rewards/constitution/calm/mean"] <= 1
            assert -1 <= line["rewards/constitution/brief/mean"] <= 1
        assert any(line["reward"] for line in log)
