"""Models that PPO is given in memory or as folders, in place of those that it would make: reference, critic, reward."""

import copy
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.engines.local import load_model
from constitutional.training.ppo.networks import side_by_side
from constitutional.training.ppo.rollout import load_reward_models
from constitutional.training.ppo.settings import PPOConfig
from constitutional.training.ppo.trainer import PPOTrainer
from constitutional.training.reward_model import NORMALISATION, load_reward_model, raw_scores
from tests.tiny import tiny_model

ROWS = [{"prompt": [{"role": "user", "content": "Why" + "?" * number}]} for number in range(4)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def one(completion_ids: list[list[int]], **_: object) -> list[float]:
    return [1.0] * len(completion_ids)


def trainer(models: Path, output: Path, **own: Any) -> PPOTrainer:  # noqa: ANN401
    args = PPOConfig(
        output_dir=str(output),
        use_cpu=True,
        total_episodes=4,
        per_device_train_batch_size=4,
        num_ppo_epochs=1,
        response_length=4,
        learning_rate=1e-3,
        sample_steps=1,
    )
    return PPOTrainer(tiny_model(models), args=args, train_dataset=ROWS, **{"reward_funcs": [one], **own})


def test_the_kl_is_that_from_the_reference_that_is_given_which_is_not_trained(models: Path, tmp_path: Path) -> None:
    import torch

    reference: Any
    reference, _ = load_model(tiny_model(models), dtype="float32")
    with torch.no_grad():
        torch.manual_seed(1)
        reference.lm_head.weight.add_(0.5 * torch.randn_like(reference.lm_head.weight))
    before = copy.deepcopy(reference)
    made = trainer(models, tmp_path, ref_model=reference)
    policy, _ = load_model(tiny_model(models), dtype="float32")  # as it is before the first step
    prompts, replies = made.prompts, made._draw(0, made.prompts, [0, 1, 2, 3], made.rows)
    kls = []
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = torch.tensor([[*prompt, *reply.ids]])
        with torch.no_grad():
            of = [
                model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])
                for model in (policy, before)
            ]
        kls.append(float((of[0] - of[1]).sum()))
    found = made._read(prompts, replies)
    read = [sum(ours) - sum(theirs) for ours, theirs, *_ in found]
    assert read == pytest.approx(kls, abs=1e-4)
    assert max(map(abs, kls)) > 0.01
    made.train()
    assert all(torch.equal(each, reference.state_dict()[name]) for name, each in before.state_dict().items())


@pytest.mark.parametrize("as_folder", [False, True])
def test_the_critic_that_is_given_values_as_it_scores_and_is_trained(
    models: Path, tmp_path: Path, as_folder: bool
) -> None:
    import torch

    critic: Any
    critic, tokenizer = load_reward_model(tiny_model(models), new_head=True, seed=5)
    critic.save_pretrained(tmp_path / "critic")
    tokenizer.save_pretrained(tmp_path / "critic")
    before = copy.deepcopy(critic)
    made = trainer(models, tmp_path / "ppo", value_model=tmp_path / "critic" if as_folder else critic)
    ids = made.prompts[0]
    with torch.no_grad():
        value = made.networks.values(side_by_side([ids], [[7]], made.pad, torch.device("cpu")))
        score = before(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).logits
    assert float(value[0, 0]) == pytest.approx(float(score[0, 0]), abs=1e-6)
    made.train()
    assert not torch.equal(made.networks.critic.score.weight, before.score.weight)


def test_a_reward_model_in_memory_reads_by_a_tokenizer_of_its_own(models: Path, tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(tiny_model(models, "qwen3"), new_head=True, seed=2)
    conversation = (Message("user", "Why?"), Message("assistant", "So."))
    (by_hand,) = raw_scores(model, tokenizer, [conversation])
    made = trainer(models, tmp_path, reward_model=model, reward_processing_class=tokenizer, reward_funcs=[])
    row = {"prompt": [{"role": "user", "content": "Why?"}]}
    assert made.rewards.members([row], ["So."]) == [[pytest.approx(by_hand, abs=1e-5)]]
    # It reads other tokens than the policy, so the critic starts as the policy with a head of 0.
    assert not bool(made.networks.critic.score.weight.any())
    made.train()
    assert made.history[0]["reward"] == made.history[0]["rewards/reward_model/mean"]


def test_a_reward_model_whose_scores_do_not_vary_is_refused(models: Path, tmp_path: Path) -> None:
    import torch

    (tmp_path / NORMALISATION).write_text('{"members": [{"mean": 0.5, "deviation": 0.0}]}')
    _, tokenizer = load_model(tiny_model(models))
    with pytest.raises(ModelError, match=r"/0: gave every reference sample the same score, so nothing can be learned"):
        load_reward_models(tmp_path, tokenizer, torch.device("cpu"))
