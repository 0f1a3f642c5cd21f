"""How PPO trains: settings by the names that TRL's had, where it had them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from constitutional.base.errors import ConfigurationError


@dataclass(kw_only=True)
class PPOConfig:
    """How PPO trains. Names are TRL's where TRL had them."""

    output_dir: str
    """Checkpoints, training_log.jsonl and samples.jsonl go here."""
    seed: int = 0
    use_cpu: bool = False
    bf16: bool = False
    """Compute in bfloat16; weights that are trained stay in 32 bits."""
    gradient_checkpointing: bool = False
    # What is drawn.
    total_episodes: int = 10_000
    """Replies in all, rounded up to whole phases."""
    per_device_train_batch_size: int = 8
    """Replies in one forward and backward pass. It changes memory and speed, never the result."""
    gradient_accumulation_steps: int = 1
    """Passes in one mini-batch, which is one step of the optimizers."""
    num_mini_batches: int = 1
    """Mini-batches in a phase."""
    num_ppo_epochs: int = 4
    """Times that a phase's replies are trained on."""
    local_rollout_forward_batch_size: int = 64
    """Replies that a process draws at once."""
    max_prompt_length: int = 1024
    """Longer prompts, in tokens, are left out and counted."""
    response_length: int = 128
    """Most tokens in a reply."""
    temperature: float = 1.0
    """Of sampling, and of all log-probabilities: the policy that is trained is the one that acts."""
    # How a reply is scored.
    reward_weights: Sequence[float] | None = None
    """For the reward model, if any, and each reward function; all 1 by default."""
    ensemble_k: float = 0.0
    """Deviations among several reward models that are taken off their mean."""
    reward_clip: float = math.inf
    missing_eos_penalty: float = 0.0
    """Taken from a reply that was cut off."""
    length_penalty: float = 0.0
    """Taken for each token of a reply."""
    # The KL from the reference.
    kl_coef: float = 0.05
    kl_target: float | None = None
    """KL in nats for each reply, to which the coefficient is led; None leaves it fixed."""
    kl_horizon: float = 10_000
    kl_loss_coef: float = 0.0
    """Of a KL term in the loss, beside the one in the reward."""
    # The losses.
    learning_rate: float = 3e-6
    critic_learning_rate_factor: float = 10.0
    critic_warmup_steps: int = 0
    """First phases, in which only the critic is trained."""
    max_grad_norm: float = 1.0
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    cliprange_high: float | None = None
    """Upper clip of the ratio if it differs from the lower one, `cliprange`."""
    dual_clip: float | None = None
    cliprange_value: float = 0.2
    vf_coef: float = 0.1
    entropy_coef: float = 0.0
    ptx_coef: float = 0.0
    """Of the supervised loss on ptx_dataset (PPO-ptx)."""
    whiten_rewards: bool = False
    whiten_advantages: bool = True
    importance_bound: float = 2.0
    """Most that a token counts for, where the trainer gives it a larger probability than the sampler did."""
    loss_aggregation: Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean"] = "token_mean"
    # What is written.
    logging_steps: int = 1
    """Phases from one printed line to the next, 0 to print none; the log has a line for each."""
    sample_steps: int = 10
    """Phases from one table of replies to the next."""
    sample_size: int = 4
    """Replies in such a table, at most the phase's."""
    save_steps: int = 10
    """Phases from one checkpoint to the next; the last phase always has one."""
    save_total_limit: int = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        at_least_one = (
            *("total_episodes", "per_device_train_batch_size", "gradient_accumulation_steps", "num_mini_batches"),
            *("num_ppo_epochs", "local_rollout_forward_batch_size", "response_length", "save_steps", "sample_steps"),
            *("sample_size", "save_total_limit"),
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ConfigurationError(f"PPOConfig: {name} is {getattr(self, name)}, and must be at least 1")
        for name in ("temperature", "learning_rate", "reward_clip", "cliprange", "cliprange_value", "kl_horizon"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"PPOConfig: {name} is {getattr(self, name)}, and must be more than 0")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"PPOConfig: {name} is {getattr(self, name)}, and must be between 0 and 1")


TECHNICAL = {
    *("output_dir", "use_cpu", "logging_steps", "sample_steps", "sample_size", "save_steps", "save_total_limit"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "local_rollout_forward_batch_size"),
    "gradient_checkpointing",
}
"""Settings that a training may be resumed with other values of: what it comes to depends on their products at most."""
