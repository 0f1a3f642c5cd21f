"""What TRL 1.12.0's PPO computed on fixed batches (scripts/golden_trl.py) comes out here as well.

Three things differ, and are converted here in the open:

- TRL whitens with the unbiased variance, which makes the result √((n − 1)/n) times ours, n the tokens.
- For TRL a reply that ended has one more state, after its end token, with a value of its own, and there it gets its
  score. Our functions do the same if they are told that the reply is one token longer.
- TRL adds 1e-7 to the temperature.
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from constitutional.engines.base import Sampling
from constitutional.training.ppo import math as ppo_math
from constitutional.training.ppo.rollout import Response
from constitutional.training.ppo.settings import PPOConfig
from constitutional.training.ppo.trainer import PPOTrainer
from scripts import golden_trl
from tests.tiny import tiny_tokenizer

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "trl_golden.json").read_text())
KL, CLIP, LAM = 0.1, 0.2, 0.95  # TRL's defaults, and what the script sets
VF_COEF = 0.1


def numbers(of: str, name: str) -> Tensor:
    return torch.tensor(GOLDEN[of][name])


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def bessel(mask: Tensor) -> float:
    return math.sqrt((int(mask.sum()) - 1) / int(mask.sum()))


def rewards(of: str) -> Tensor:
    logprobs, reference = numbers(of, "logprobs"), numbers(of, "ref_logprobs")
    states = numbers(of, "value_mask")
    found = ppo_math.token_rewards(numbers(of, "scores"), logprobs, reference, states, KL)
    if of != "whitened":
        return found
    mean = ppo_math.masked_mean(found, states)
    return torch.where(states, (ppo_math.masked_whiten(found, states, shift_mean=True)) * bessel(states) + mean, 0.0)


@pytest.mark.parametrize("of", ["uneven", "whitened", "even"])
def test_rewards_advantages_and_returns_are_those_of_trl(of: str) -> None:
    states, mask = numbers(of, "value_mask"), numbers(of, "mask")
    assert int((states & ~mask).sum()) == (0 if of == "even" else 5)  # five ended before the last column
    assert_equal(rewards(of), numbers(of, "rewards"))
    found = ppo_math.gae(rewards(of), numbers(of, "values"), states, 1.0, LAM)
    # Where TRL has no state, it goes on adding up zeros.
    assert_equal(found.advantages, torch.where(states, numbers(of, "raw_advantages"), 0.0))
    assert_equal(found.returns, torch.where(states, numbers(of, "returns"), 0.0))
    whitened = ppo_math.masked_whiten(found.advantages, mask, shift_mean=True)
    assert_equal(whitened * bessel(mask), numbers(of, "advantages"))


@pytest.mark.parametrize("of", ["uneven", "whitened", "even"])
def test_losses_and_clip_fractions_of_every_micro_batch_are_those_of_trl(of: str) -> None:
    states, mask = numbers(of, "value_mask"), numbers(of, "mask")
    micro_batches = GOLDEN[of]["micro_batches"]
    assert len(micro_batches) == (3 if of == "even" else 6)
    for batch in micro_batches:
        rows = batch["rows"]
        old, advantages = numbers(of, "logprobs")[rows], numbers(of, "advantages")[rows]
        now, critic = torch.tensor(batch["new_logprobs"]), torch.tensor(batch["vpred"])
        policy = ppo_math.policy_loss(now, old, advantages, mask[rows], ppo_math.Clip(CLIP, CLIP))
        tokens = ppo_math.denominator(mask[rows], "token_mean")
        loss = ppo_math.aggregate(policy.per_token, mask[rows], "token_mean", tokens)
        assert float(loss) == pytest.approx(batch["pg_loss"], abs=1e-6)
        assert float(policy.clip_fraction) == pytest.approx(batch["pg_clipfrac"], abs=1e-6)
        value = ppo_math.value_loss(
            critic, numbers(of, "values")[rows], numbers(of, "returns")[rows], states[rows], CLIP
        )
        visited = ppo_math.denominator(states[rows], "token_mean")
        loss = ppo_math.aggregate(value.per_token, states[rows], "token_mean", visited)
        assert float(loss) == pytest.approx(batch["vf_loss"], abs=1e-6)
        assert float(value.clip_fraction) == pytest.approx(batch["vf_clipfrac"], abs=1e-6)
    assert micro_batches[0]["pg_clipfrac"] == 0  # the policy is still the one that drew
    assert min(batch["pg_clipfrac"] for batch in micro_batches[-2:]) > 0.05
    assert min(batch["vf_clipfrac"] for batch in micro_batches[-2:]) > 0.05


class Given:
    """Draws the replies that TRL was given."""

    def __init__(self, replies: list[list[int]], logprobs: list[list[float]]) -> None:
        self.replies = replies
        self.logprobs = logprobs

    def sync(self, policy: Any, phase: int) -> None:  # noqa: ANN401
        pass

    def sample(self, prompts: Any, seeds: Any, sampling: Sampling) -> list[tuple[int, Response]]:  # noqa: ANN401, ARG002
        rows = zip(self.replies, self.logprobs, strict=True)
        drawn = [Response(ids, logprobs, ended=False, version=0) for ids, logprobs in rows]
        return list(enumerate(drawn))[::-1]  # in whatever order


def test_a_phase_of_the_trainer_moves_all_weights_as_trls_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    golden = GOLDEN["even"]
    width = golden["prompt_width"]
    asked = [[token for token in row[:width] if token != golden_trl.PAD] for row in golden["query_responses"]]
    replies = [row[width:] for row in golden["query_responses"]]
    whiten = ppo_math.masked_whiten

    def unbiased(values: Tensor, mask: Tensor, *, shift_mean: bool) -> Tensor:
        return whiten(values, mask, shift_mean) * bessel(mask)

    def scored(**_: object) -> list[float]:
        found: list[float] = golden["scores"]
        return found

    monkeypatch.setattr(ppo_math, "masked_whiten", unbiased)
    args = PPOConfig(
        output_dir=str(tmp_path),
        use_cpu=True,
        total_episodes=8,
        per_device_train_batch_size=8,
        num_ppo_epochs=3,
        response_length=golden_trl.WIDTH,
        temperature=golden_trl.TEMPERATURE + 1e-7,
        kl_coef=KL,
        learning_rate=0.002,
        critic_learning_rate_factor=1.0,
        max_grad_norm=math.inf,
        vf_coef=VF_COEF,
    )
    trainer = PPOTrainer(
        golden_trl.llama("CausalLM", 1),
        golden_trl.llama("CausalLM", 2),
        value_model=golden_trl.llama("SequenceClassification", 4),
        args=args,
        train_dataset=[{"prompt": [{"role": "user", "content": "?"}]}] * 8,
        processing_class=tiny_tokenizer(),
        reward_funcs=[scored],
        sampler=Given(replies, golden["logprobs"]),
    )
    trainer.prompts = asked
    monkeypatch.setattr(trainer, "_rows", lambda _: list(range(8)))
    trainer.train()
    line = trainer.history[0]
    every = golden["micro_batches"]
    assert line["loss/policy_avg"] == pytest.approx(sum(each["pg_loss"] for each in every) / 3, abs=2e-6)
    assert line["loss/value_avg"] == pytest.approx(sum(each["vf_loss"] for each in every) / 3, abs=2e-6)
    assert line["policy/clipfrac_avg"] == pytest.approx(sum(each["pg_clipfrac"] for each in every) / 3, abs=1e-6)
    start = golden_trl.some_weights(golden_trl.llama("CausalLM", 1))
    for model, theirs in ((trainer.networks.policy, golden["policy"]), (trainer.networks.critic, golden["critic"])):
        for name, ours in golden_trl.some_weights(model).items():
            # Three steps of Adam, each about the learning rate long: off by at most a hundredth of one.
            assert ours == pytest.approx(theirs[name], abs=2e-5), name
    still = [name for name, each in start.items() if each == golden["policy"][name]]
    assert still == ["model.embed_tokens.weight"]  # the few that are kept are of tokens that occur nowhere
