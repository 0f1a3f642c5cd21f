"""Where the critic starts, and that it is the same once it has been saved and loaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from constitutional.engines.local import load_model
from constitutional.training.ppo.critic import merged
from constitutional.training.ppo.networks import Networks, make_networks, side_by_side
from constitutional.training.ppo.rollout import RewardModel
from constitutional.training.ppo.settings import PPOConfig
from constitutional.training.ppo.trainer import PPOTrainer
from constitutional.training.reward_model import load_reward_model
from tests.tiny import tiny_model

BATCH = side_by_side([[1, 5, 9, 4], [1, 8]], [[7], [3, 3, 6]], 0, torch.device("cpu"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models"))


def lora(rank: int, **own: Any) -> LoraConfig:  # noqa: ANN401
    return LoraConfig(r=rank, lora_alpha=3 * rank, target_modules="all-linear", **own)


def reward_model(model: Path, rank: int | None) -> RewardModel:
    """The policy with a head, moved by a random change of all weights, or of this rank where LoRA would change them."""
    torch.manual_seed(3)
    moved: Any
    moved, tokenizer = load_reward_model(model, new_head=True, seed=1)
    with torch.no_grad():
        moved.score.weight.normal_()
        if rank is None:
            for weight in moved.model.parameters():
                weight.add_(0.2 * torch.randn_like(weight))
        else:
            adapted: Any = get_peft_model(moved, lora(rank, task_type="SEQ_CLS"))
            for name, weight in adapted.named_parameters():
                if "lora_" in name:
                    weight.normal_(std=0.2)
            moved = adapted.merge_and_unload()
    return RewardModel(moved.requires_grad_(False), tokenizer, mean=0.5, deviation=0.25)


def with_adapters(model: Path, reward: RewardModel, config: LoraConfig) -> Networks:
    policy, _ = load_model(model, dtype="float32")
    return make_networks(policy, None, None, reward, config)


def values(networks: Networks) -> torch.Tensor:
    with torch.no_grad():
        return networks.values(BATCH)


def from_all_weights(model: Path, reward: RewardModel) -> torch.Tensor:
    """What the normalised reward model says of every position."""
    policy, _ = load_model(model, dtype="float32")
    return values(make_networks(policy, None, None, reward, None))


def test_the_critic_of_adapters_starts_as_a_reward_model_that_adapters_of_its_rank_made(model: Path) -> None:
    reward = reward_model(model, rank=2)
    expected = from_all_weights(model, reward)
    assert float(expected[BATCH.mask].std()) > 0.1
    found = with_adapters(model, reward, lora(5))
    torch.testing.assert_close(values(found), expected, atol=1e-4, rtol=0)
    assert found.critic_share == pytest.approx(1, abs=1e-6)
    # Directions that the reward model did not need can be learned all the same: none of them is 0 on both sides.
    downs = [weight for name, weight in found.critic_weights.items() if "lora_A" in name]
    assert len(downs) == 2 * 7
    assert all(bool((down.norm(dim=1) > 0.1).all()) for down in downs)
    # The policy and the reference are what they were.
    start, _ = load_model(model, dtype="float32")
    ids = BATCH.ids
    for role in ("policy", "reference"):
        with torch.no_grad(), found.acting(role) as acting:
            torch.testing.assert_close(acting(ids).logits, start(ids).logits, atol=1e-6, rtol=0)


def test_of_a_reward_model_that_moved_further_the_adapter_holds_the_share_that_it_says(model: Path) -> None:
    start, _ = load_model(model, dtype="float32")
    # One map, moved by 3 in one direction and 4 in another: a rank of 1 holds 16 of 25.
    reward = reward_model(model, rank=None)
    reward.model.base_model.load_state_dict(start.base_model.state_dict())
    moved = reward.model.model.layers[0].mlp.up_proj.weight
    moved[2, 5] += 3
    moved[7, 1] += 4
    found = with_adapters(model, reward, lora(1))
    assert found.critic_share == pytest.approx(16 / 25, abs=1e-5)
    up, down = (
        next(weight for name, weight in found.critic_weights.items() if "layers.0.mlp.up_proj" in name and of in name)
        for of in ("lora_B", "lora_A")
    )
    held = torch.zeros(32, 16)
    held[7, 1] = 4
    torch.testing.assert_close(3 * (up @ down).detach(), held, atol=1e-5, rtol=0)  # alpha / rank is 3
    # Embeddings have no adapters: what differs there is not held.
    reward.model.model.embed_tokens.weight[4, 4] += 5
    assert with_adapters(model, reward, lora(2)).critic_share == pytest.approx(25 / 50, abs=1e-5)


def test_where_the_reward_model_is_another_architecture_the_critic_says_0_at_first(model: Path) -> None:
    reward = reward_model(model, rank=None)
    reward.model.model.layers = reward.model.model.layers[:1]
    found = with_adapters(model, reward, lora(2))
    assert found.critic_share is None
    assert not values(found).any()


@pytest.mark.parametrize(("active", "numbers"), [("default", "bfloat16"), ("critic", "float32")])
def test_merging_the_critic_leaves_the_policy_as_it_is_and_computes_in_32_bits(
    model: Path, active: str, numbers: str
) -> None:
    policy: Any
    policy, _ = load_model(model, dtype=numbers)
    made = make_networks(policy, None, None, None, lora(3))
    for weight in made.critic_weights.values():
        torch.nn.init.normal_(weight)
    made.policy.set_adapter(active)
    before = {
        name: (id(each), each.dtype, each.requires_grad, each.detach().clone())
        for name, each in made.policy.named_parameters()
    }
    found = merged(made.policy, made.critic)
    assert made.policy.active_adapter == active
    assert made.policy.active_adapters == [active]
    for name, each in made.policy.named_parameters():
        identity, dtype, learns, value = before[name]
        assert (id(each), each.dtype, each.requires_grad) == (identity, dtype, learns), name
        assert torch.equal(each, value), name
    layer = made.policy.get_base_model().model.layers[1].mlp.up_proj
    down, up = layer.lora_A["critic"].weight.float(), layer.lora_B["critic"].weight.float()
    by_hand = layer.base_layer.weight.float() + 3 * up @ down  # alpha / rank is 3
    weight = found.model.model.layers[1].mlp.up_proj.weight
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, by_hand, atol=1e-5, rtol=0)
    assert torch.equal(found.model.score.weight, made.critic.weight)


def untrained(model: Path, output: Path, **own: Any) -> PPOTrainer:  # noqa: ANN401
    args = PPOConfig(
        output_dir=str(output),
        use_cpu=True,
        total_episodes=8,
        per_device_train_batch_size=4,
        num_ppo_epochs=1,
        response_length=4,
        learning_rate=1e-2,
        logging_steps=0,
    )
    rows = [{"prompt": [{"role": "user", "content": "Why" + "?" * number}]} for number in range(4)]
    return PPOTrainer(model, args=args, train_dataset=rows, **own)


@pytest.mark.parametrize("rank", [None, 3])
def test_a_critic_that_was_saved_gives_the_same_values_wherever_it_is_loaded(
    model: Path, tmp_path: Path, rank: int | None
) -> None:
    reward = reward_model(model, rank=2)
    source = tmp_path / "reward"
    reward.model.save_pretrained(source / "0")
    reward.tokenizer.save_pretrained(source / "0")
    (source / "normalisation.json").write_text('{"members": [{"mean": 0.5, "deviation": 0.25}]}')
    config = None if rank is None else lora(rank, task_type="CAUSAL_LM")
    made = untrained(model, tmp_path / "ppo", reward_model=source, peft_config=config)
    made.train()
    expected = values(made.networks)
    before = copy.deepcopy(made.networks.critic_weights)
    made.save_value_model(tmp_path / "critic")
    assert values(made.networks).equal(expected)  # saving has changed nothing
    assert all(before[name].equal(weight) for name, weight in made.networks.critic_weights.items())

    loaded: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    offset = loaded.config.value_offset
    assert abs(offset) > 1  # −mean / deviation is −2
    with torch.no_grad():  # a text's score is the value after its last token
        scores = loaded(input_ids=torch.tensor([[1, 5, 9, 4], [1, 8, 0, 0]])).logits[:, 0] + offset
    torch.testing.assert_close(scores, expected[:, 0], atol=1e-5, rtol=0)
    again = untrained(model, tmp_path / "again", reward_model=source, value_model=tmp_path / "critic")
    torch.testing.assert_close(values(again.networks), expected, atol=1e-5, rtol=0)
    policy, _ = load_model(model, dtype="float32")
    torch.testing.assert_close(values(make_networks(policy, None, loaded, None, None)), expected, atol=1e-5, rtol=0)
