"""The update of PPO: some epochs of mini-batches over a rollout, which move policy and critic.

A mini-batch is one step of each optimizer. It lies on all processes and, on each, in micro-batches; losses are divided
by what the whole mini-batch holds, and gradients added up, so that how it is cut changes nothing.
"""

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from constitutional.base.errors import ModelError
from constitutional.base.seeds import rng_of, seed_of
from constitutional.engines.device import sent
from constitutional.training.ppo import math as ppo_math
from constitutional.training.ppo.networks import Networks, Sequences, side_by_side
from constitutional.training.ppo.rollout import RolloutBatch, in_batches
from constitutional.training.ppo.shards import total

if TYPE_CHECKING:
    from constitutional.training.ppo.settings import PPOConfig

SupervisedRow = tuple[list[int], list[int]]
"""A prompt's tokens and those of the reply that is to be learned."""


class _Sums(NamedTuple):
    """What is logged, added up over the micro-batches of all processes. Losses are shares of a mini-batch's already."""

    policy: Tensor | float = 0.0
    value: Tensor | float = 0.0
    ptx: Tensor | float = 0.0
    tokens: Tensor | float = 0.0
    """Tokens that the policy was moved by; what follows is summed over them."""
    clipped: Tensor | float = 0.0
    approx_kl: Tensor | float = 0.0
    ratio: Tensor | float = 0.0
    value_tokens: Tensor | float = 0.0
    """Tokens that the critic was moved by, more than the policy's while the critic alone is trained."""
    value_clipped: Tensor | float = 0.0


class Learner:
    """The optimizers of policy and critic, and what moves them.

    Attributes:
        optimizers: the policy's and the critic's.
        mini_batch_size: replies in one step, of all processes together.
    """

    def __init__(
        self,
        networks: Networks,
        accelerator: Any,  # noqa: ANN401 - accelerate has no types
        args: "PPOConfig",
        pad: int,
        supervised: Sequence[SupervisedRow],
    ) -> None:
        self.networks = networks
        self.accelerator = accelerator
        self.args = args
        self.pad = pad
        self.supervised = supervised
        self.optimizers = [
            # The fused kernel needs no temporary copies of the weights, and is several times as fast.
            torch.optim.Adam(weights.values(), lr=args.learning_rate, eps=1e-5, fused=True)
            for weights in (networks.policy_weights, networks.critic_weights)
        ]
        micro_batch: int = args.per_device_train_batch_size * accelerator.num_processes
        self.mini_batch_size = micro_batch * args.gradient_accumulation_steps
        self._sums = torch.zeros(len(_Sums._fields))

    def update(self, rollout: RolloutBatch, phase: int, rate: float) -> dict[str, float]:
        """Move both networks at this learning rate, and return the numbers to log, under TRL's names.

        Losses are means over the mini-batches; clip fractions, the ratio, and the KL from the policy that drew (by k3,
        where TRL took half the mean square of the log-ratio) are means over all tokens of all epochs.

        Raises:
            ModelError: a gradient is no number.
        """
        args = self.args
        for optimizer, factor in zip(self.optimizers, (1.0, args.critic_learning_rate_factor), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
        self._sums = torch.zeros(len(_Sums._fields), dtype=torch.float64, device=self.accelerator.device)
        self.networks.train(args.gradient_checkpointing)
        for epoch in range(args.num_ppo_epochs):
            order = rng_of(args.seed, "mini_batches", phase, epoch)
            rows = order.sample(range(len(rollout.prompts)), len(rollout.prompts))
            for first in range(0, len(rows), self.mini_batch_size):
                ptx_seed = seed_of(args.seed, "ptx", phase, epoch, first)
                self._step(rollout, rows[first : first + self.mini_batch_size], phase, ptx_seed)
        self.networks.train(False)
        sums = _Sums(*self.accelerator.reduce(self._sums, "sum").tolist())
        steps = args.num_ppo_epochs * args.num_mini_batches
        line = {"loss/policy_avg": float(sums.policy) / steps, "loss/value_avg": float(sums.value) / steps}
        line |= {"loss/ptx_avg": float(sums.ptx) / steps} if self.supervised else {}
        line["val/clipfrac_avg"] = float(sums.value_clipped) / float(sums.value_tokens)
        if not (tokens := float(sums.tokens)):  # the critic alone was trained
            return line | {"policy/clipfrac_avg": 0.0, "policy/approxkl_avg": 0.0, "val/ratio": 1.0}
        return line | {
            "policy/clipfrac_avg": float(sums.clipped) / tokens,
            "policy/approxkl_avg": float(sums.approx_kl) / tokens,
            "val/ratio": float(sums.ratio) / tokens,
        }

    def _step(self, rollout: RolloutBatch, rows: list[int], phase: int, ptx_seed: int) -> None:
        """One step of both optimizers on a mini-batch.

        The policy first, then the critic: only one of them holds gradients at a time.
        """
        args = self.args
        share = slice(self.accelerator.process_index, None, self.accelerator.num_processes)
        denominator = float(ppo_math.denominator(rollout.mask[rows], args.loss_aggregation))
        own = sorted(rows, key=rollout.length)[share]
        batches = list(in_batches(own, rollout.length, args.per_device_train_batch_size))
        of_policy, of_critic = self.optimizers
        if phase >= args.critic_warmup_steps:
            for batch in batches:
                self._policy_backward(self._pad(rollout, batch), batch, rollout, denominator)
            if self.supervised:
                drawn = random.Random(ptx_seed).choices(self.supervised, k=len(rows))
                self._supervised_backward(drawn, share)
            self._move(of_policy, list(self.networks.policy_weights.values()), phase)
        for batch in batches:
            self._value_backward(self._pad(rollout, batch), batch, rollout, denominator)
        self._move(of_critic, list(self.networks.critic_weights.values()), phase)

    def _pad(self, rollout: RolloutBatch, batch: list[int]) -> Sequences:
        prompts, responses = ([texts[row] for row in batch] for texts in (rollout.prompts, rollout.responses))
        return side_by_side(prompts, responses, self.pad, self.accelerator.device)

    def _add(self, sums: _Sums) -> None:
        """Add a micro-batch's share, without waiting for the device."""
        numbers = [torch.as_tensor(number, dtype=torch.float64, device=self._sums.device) for number in sums]
        self._sums += torch.stack(numbers).detach()

    def _policy_backward(self, padded: Sequences, batch: list[int], rollout: RolloutBatch, denominator: float) -> None:
        args, mask = self.args, padded.mask
        old, sampled, reference, advantages = (
            sent(numbers[batch, : padded.width], self.accelerator.device)
            for numbers in (rollout.logprobs, rollout.sampler_logprobs, rollout.ref_logprobs, rollout.advantages)
        )
        with self.accelerator.autocast():
            now = self.networks.logprobs(padded, args.temperature, entropy=args.entropy_coef != 0)
        high = args.cliprange if args.cliprange_high is None else args.cliprange_high
        clip = ppo_math.Clip(args.cliprange, high, args.dual_clip)
        weights = ppo_math.importance_weights(old, sampled, args.importance_bound)
        result = ppo_math.policy_loss(now.logprobs, old, advantages, mask, clip, weights)
        policy_loss = ppo_math.aggregate(result.per_token, mask, args.loss_aggregation, denominator)
        loss = policy_loss
        if args.kl_loss_coef:
            penalty = ppo_math.kl_loss(now.logprobs, reference)
            loss = loss + args.kl_loss_coef * ppo_math.aggregate(penalty, mask, args.loss_aggregation, denominator)
        if now.entropy is not None:
            bonus = ppo_math.aggregate(now.entropy, mask, args.loss_aggregation, denominator)
            loss = loss - args.entropy_coef * bonus
        self.accelerator.backward(loss)
        tokens = mask.sum()
        clipped, approx_kl, ratio = (mean * tokens for mean in result[1:])
        self._add(_Sums(policy=policy_loss, tokens=tokens, clipped=clipped, approx_kl=approx_kl, ratio=ratio))

    def _value_backward(self, padded: Sequences, batch: list[int], rollout: RolloutBatch, denominator: float) -> None:
        args, mask = self.args, padded.mask
        old, returns = (
            sent(numbers[batch, : padded.width], self.accelerator.device)
            for numbers in (rollout.values, rollout.returns)
        )
        with self.accelerator.autocast():
            values = self.networks.values(padded)
        result = ppo_math.value_loss(values, old, returns, mask, args.cliprange_value)
        loss = ppo_math.aggregate(result.per_token, mask, args.loss_aggregation, denominator)
        self.accelerator.backward(args.vf_coef * loss)
        tokens = mask.sum()
        self._add(_Sums(value=loss, value_tokens=tokens, value_clipped=result.clip_fraction * tokens))

    def _supervised_backward(self, drawn: list[SupervisedRow], share: slice) -> None:
        """Cross-entropy on replies of others (Ouyang et al. 2022, equation 2), a mean over tokens."""

        def length(row: int) -> int:
            return sum(map(len, drawn[row]))

        denominator = sum(len(reply) for _, reply in drawn)
        own = sorted(range(len(drawn)), key=length)[share]
        for batch in in_batches(own, length, self.args.per_device_train_batch_size):
            prompts, replies = zip(*(drawn[row] for row in batch), strict=True)
            padded = side_by_side(prompts, replies, self.pad, self.accelerator.device)
            with self.accelerator.autocast():
                logprobs = self.networks.logprobs(padded, 1.0).logprobs
            loss = ppo_math.aggregate(-logprobs, padded.mask, "token_mean", denominator)
            self.accelerator.backward(self.args.ptx_coef * loss)
            self._add(_Sums(ptx=loss))

    def _move(self, optimizer: torch.optim.Optimizer, weights: list[Tensor], phase: int) -> None:
        if self.accelerator.num_processes > 1 and not self.networks.without_weights:  # shards are added up already
            for weight in weights:  # a process without rows has no gradients, and takes part all the same
                grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = self.accelerator.reduce(grad, "sum")
        norm = float(total(torch.nn.utils.clip_grad_norm_(weights, self.args.max_grad_norm)))
        if not math.isfinite(norm):
            raise ModelError(f"PPO: a gradient is {norm} in phase {phase + 1}; lower learning_rate, or set reward_clip")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
