"""How PPO trains. A run's settings and the trainer's own are one algorithm's, declared once in `PPOSettings`."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from constitutional.base.errors import ConfigurationError
from constitutional.training.rewards import Aggregation
from constitutional.training.tracking import Trackers


class PPOSettings(BaseModel):
    """The algorithm: the penalty for leaving the reference, advantages, losses."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    critic_learning_rate_factor: float = Field(default=10.0, gt=0)
    """The critic's learning rate, as a multiple of the policy's."""
    kl_coef: float = Field(default=0.05, ge=0)
    """Penalty for a nat of KL from the reference, in units of the reward."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL of a reply, in nats, towards which the coefficient is adapted; null leaves the coefficient fixed."""
    kl_horizon: float = Field(default=10_000, gt=0)
    """Episodes over which the coefficient adapts."""
    reward_clip: float | None = Field(default=None, gt=0)
    """Rewards are clipped to ± this number; null clips nothing."""
    length_penalty: float = Field(default=0.0, ge=0)
    """Penalty for each token of a reply, in units of the reward."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount of a reward for each token until it comes."""
    lam: float = Field(default=0.95, ge=0, le=1)
    """λ of the generalised advantage estimates (Schulman et al. 2016)."""
    cliprange: float = Field(default=0.2, gt=0)
    """The ratio of new to old probability is clipped at 1 ± this number."""
    cliprange_high: float | None = Field(default=None, gt=0)
    """The upper clip of the ratio, if it differs from the lower one."""
    cliprange_value: float = Field(default=0.2, gt=0)
    """A new value is clipped at the old value ± this number."""
    vf_coef: float = Field(default=0.1, gt=0)
    """Weight of the critic's loss."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of a bonus for entropy."""
    ptx_coef: float = Field(default=0.0, ge=0)
    """Weight of the loss on supervised examples, beside that of the replies (PPO-ptx, Ouyang et al. 2022, equation 2).
    In a run they are the SFT model's own, so that what it learned is kept."""
    whiten_rewards: bool = False
    """Divide the rewards of a phase by their deviation."""
    whiten_advantages: bool = True
    """Bring the advantages of a phase to mean 0 and deviation 1."""
    loss_aggregation: Literal["token_mean", "seq_mean_token_sum", "seq_mean_token_mean"] = "token_mean"
    """How the losses of tokens are put together."""


class PPOConfig(PPOSettings):
    """How `PPOTrainer` trains. Names are TRL's where TRL had them.

    Raises:
        ConfigurationError: a setting is out of its range or unknown.
    """

    output_dir: str
    """Checkpoints, training_log.jsonl and samples.jsonl go here."""
    seed: int = 0
    use_cpu: bool = False
    bf16: bool = False
    """Compute in bfloat16; weights that are trained stay in 32 bits."""
    gradient_checkpointing: bool = False
    # What is drawn.
    total_episodes: int = Field(default=10_000, ge=1)
    """Number of replies in all, rounded up to whole phases."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Replies in one forward and backward pass. It changes memory and speed, never the result."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Passes in one mini-batch, which is one step of the optimizers."""
    num_mini_batches: int = Field(default=1, ge=1)
    """Mini-batches in a phase."""
    num_ppo_epochs: int = Field(default=4, ge=1)
    """Passes over a phase's replies."""
    local_rollout_forward_batch_size: int = Field(default=64, ge=1)
    """Replies that a process draws at once."""
    max_prompt_length: int = Field(default=1024, ge=1)
    """Longer prompts, in tokens, are left out and counted."""
    response_length: int = Field(default=128, ge=1)
    """Most tokens in a reply."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of sampling and of all log-probabilities, so that the policy that is trained is the one that acts."""
    # How a reply is scored.
    reward_weights: Sequence[float] | None = None
    """Weights of the reward model, if any, and each reward function; None weighs them alike."""
    multi_objective_aggregation: Aggregation = "normalize_then_sum"
    """How several rewards become one: normalize_then_sum brings each of them to mean 0 and deviation 1 over a phase
    before they are added by their weights (GDPO, arXiv 2601.05242); sum_then_normalize adds them as they are. A reward
    model, or an ensemble of them, is one reward; one alone is taken as it is."""
    ensemble_k: float = Field(default=0.0, ge=0)
    """How many deviations among several reward models are taken off their mean."""
    missing_eos_penalty: float = 0.0
    """Penalty for a reply that was cut off."""
    # The losses.
    learning_rate: float = Field(default=3e-6, gt=0)
    """The policy's learning rate at first; it falls to 0."""
    critic_warmup_steps: int = Field(default=0, ge=0)
    """First phases, in which only the critic is trained; fewer than all."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    kl_loss_coef: float = 0.0
    """Weight of a KL term in the loss, beside the penalty in the reward."""
    dual_clip: float | None = None
    importance_bound: float = 2.0
    """Most that a token counts for, where the trainer gives it a larger probability than the sampler did."""
    # What is written.
    logging_steps: int = Field(default=1, ge=0)
    """Phases from one printed line to the next, 0 to print none; the log has a line for each."""
    sample_steps: int = Field(default=10, ge=1)
    """Phases from one table of replies to the next."""
    sample_size: int = Field(default=4, ge=1)
    """Replies in such a table, at most the phase's."""
    save_steps: int = Field(default=10, ge=1)
    """Phases from one checkpoint to the next; the last phase always has one."""
    save_total_limit: int = Field(default=2, ge=1)
    report_to: Trackers = ()
    """Trackers that show what `train()` logs: trackio, wandb, mlflow, tensorboard, one or a list of them."""
    project: str = "constitutional"
    """The project, group or experiment in which trackers show the training."""
    run_name: str = "ppo"
    """What trackers call it."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401
        try:
            super().__init__(**settings)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, problem['loc']))} is {problem['input']!r}: {problem['msg']}"
                for problem in error.errors()
            ]
            raise ConfigurationError(f"PPOConfig: {'; '.join(problems)}") from error


TECHNICAL = frozenset(
    "output_dir use_cpu bf16 logging_steps sample_steps sample_size save_steps save_total_limit "
    "per_device_train_batch_size gradient_accumulation_steps local_rollout_forward_batch_size gradient_checkpointing "
    "report_to project run_name".split()
)
"""Settings that a training may be resumed with other values of: what it comes to depends on their products at most."""
