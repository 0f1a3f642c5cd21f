"""Rollouts of PPO: replies drawn from the policy token by token, and the rewards that they get.

A token is drawn by inverting the cumulative distribution at one uniform number that comes from its row's own seed and
the token's index, as in the local engine, so that neither batches nor processes decide what is drawn. The sampler keeps
the log-probabilities that it drew by: those of the trainer may differ where another program samples.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from constitutional.base.errors import ModelError, UsageError
from constitutional.base.message import Message
from constitutional.engines.base import Sampling
from constitutional.engines.chat import Tokenizer
from constitutional.training.awaiting import STATE, begin
from constitutional.training.reward_model import NORMALISATION, load_reward_model, moments, raw_scores
from constitutional.training.rows import Row, token_ids

if TYPE_CHECKING:
    import torch

    from constitutional.training.ppo.settings import PPOConfig

RewardFunction = Callable[..., Sequence[float | None]]
"""TRL's: `(prompts, completions, completion_ids=…, **columns)`, a number for each row; None where it has no opinion.

An `async def` is awaited while the replies are read by the models here. A function may have a method `prepare(prompts,
completions)`, which is called with some replies as soon as they are there, while others are drawn, and a method
`stop()`, which is called where the training ends before the numbers are called for."""


LOOK, LOOK_ON_CPU = 16, 1
"""Tokens from one look at which rows have ended to the next. A look keeps a GPU waiting, and on a CPU costs nothing."""


# --- Replies ---


class Response(NamedTuple):
    """A reply as it was drawn."""

    ids: list[int]
    """At least one; the last is an end token if there is one."""
    logprobs: list[float]
    """Log-probability of each token at the sampling temperature."""
    ended: bool
    """False if it was cut off at the most tokens allowed."""
    version: int
    """Which weights drew it: the phase that the sampler was given them for."""


class Sampler(Protocol):
    """A program that draws from the policy. It is never called under autocast: it decides by itself how it computes."""

    def sync(self, policy: Any, phase: int) -> None:  # noqa: ANN401 - a model of transformers, or a wrapper of one
        """Take over the policy's weights as they are now; the replies of this phase are drawn by them.

        Args:
            policy: the model that is trained, ready to act. Of one in shards `named_parameters()` are whole until the
                phase's replies are drawn; `state_dict()` puts it back into parts, and is not to be called.
            phase: its number, from 0.
        """

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Iterable[tuple[int, Response]]:
        """One reply for each prompt, as it comes, behind the prompt's place; it depends on prompt, seed and sampling.

        Args:
            prompts: token ids of conversations.
            seeds: one for each reply.
            sampling: temperature, above 0, and the most tokens of a reply.
        """


class TransformersSampler:
    """Draws with the model that is trained, in length-sorted batches; rows that have ended leave the batch."""

    def __init__(self, ends: frozenset[int], pad: int, *, batch_size: int, bf16: bool = False) -> None:
        self.ends = ends
        self.pad = pad
        self.batch_size = batch_size
        self.bf16 = bf16
        self.policy: Any = None
        self.version = -1

    def sync(self, policy: Any, phase: int) -> None:  # noqa: ANN401 - a model of transformers, or a wrapper of one
        """Draw with this model, whose weights are the trainer's own."""
        self.policy = policy
        self.version = phase

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling
    ) -> Iterator[tuple[int, Response]]:
        """One reply for each prompt, behind the prompt's place, batch by batch."""
        import torch

        for rows in in_batches(range(len(prompts)), lambda row: len(prompts[row]), self.batch_size):
            # Whoever takes the replies must not be in these contexts.
            with torch.no_grad(), torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.bf16):
                drawn = self._draw([prompts[row] for row in rows], [seeds[row] for row in rows], sampling)
            yield from zip(rows, drawn, strict=True)

    def _draw(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling) -> list[Response]:
        import numpy as np
        import torch

        from constitutional.engines.attention import cache_in_place, grouped_attention, plain_layers

        model, most = self.policy, sampling.max_tokens
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of PEFT's wrapper
        layers, device = plain_layers(inner), model.device
        width = max(map(len, prompts))
        starts = torch.tensor([[width - len(prompt)] for prompt in prompts])
        masked = not layers or bool(starts.any())
        attended = (torch.arange(width + most) >= starts).long().to(device)
        positions = (torch.arange(width) - starts).clamp(min=0).to(device)
        inputs = torch.tensor([[self.pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
        uniform = np.stack([np.random.default_rng(seed).random(most) for seed in seeds])
        uniforms = torch.from_numpy(uniform).to(device)  # (B, max_tokens), in [0, 1)
        ends = torch.tensor(sorted(self.ends), device=device)
        ids = torch.full((len(prompts), most), -1, device=device)
        logprobs = torch.zeros(ids.shape, device=device)
        running, cache = torch.arange(len(prompts), device=device), cache_in_place(layers, width + most)
        goes_on = torch.ones_like(running, dtype=torch.bool)
        look = LOOK_ON_CPU if device.type == "cpu" else LOOK
        # Nothing in the loop but a look needs a number of the device, so that it always has work to do.
        with grouped_attention(inner, layers):
            for step in range(most):
                output = model(
                    input_ids=inputs,
                    attention_mask=attended[:, : width + step] if masked else None,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
                cache = output.past_key_values
                log_softmax = (output.logits[:, -1].float() / sampling.temperature).log_softmax(-1)
                # In 64 bits: of a large vocabulary many probabilities are lost when they are added up in 32.
                cumulative = log_softmax.exp().cumsum(-1, dtype=torch.float64)
                target = uniforms[running, step, None] * cumulative[:, -1:]
                drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.shape[-1] - 1)
                ids[running, step] = drawn[:, 0]
                logprobs[running, step] = log_softmax.gather(-1, drawn)[:, 0]
                goes_on = goes_on & ~torch.isin(drawn[:, 0], ends)
                inputs, positions = drawn, positions[:, -1:] + 1
                if (step + 1) % look == 0 and not goes_on.all():
                    kept = goes_on.nonzero()[:, 0]
                    if not len(kept):
                        break
                    if not layers:  # some caches of transformers give up no rows
                        continue
                    cache.batch_select_indices(kept)
                    running, goes_on, inputs, attended, positions = (
                        x[kept] for x in (running, goes_on, inputs, attended, positions)
                    )
        return self._responses(ids, logprobs, torch.isin(ids, ends))

    def _responses(self, ids: "torch.Tensor", logprobs: "torch.Tensor", ends: "torch.Tensor") -> list[Response]:
        """What was drawn (B, max_tokens) up to its first end token, where `ends` is True; behind it stands anything."""
        ended = ends.any(-1)
        lengths = (ends.int().argmax(-1) + 1).where(ended, ids.new_tensor(ids.shape[1]))
        columns = (ids, logprobs, lengths, ended)
        return [
            Response(row[:length], numbers[:length], end, self.version)
            for row, numbers, length, end in zip(*(column.tolist() for column in columns), strict=True)
        ]


def in_batches(rows: Sequence[int], length: Callable[[int], int], size: int) -> Iterator[list[int]]:
    """The rows in batches of about one length, so that little is padded; the longest first: if memory ends, at once."""
    order = sorted(rows, key=length, reverse=True)
    yield from (order[first : first + size] for first in range(0, len(order), size))


def prompt_ids(tokenizer: Tokenizer, row: Row) -> list[int]:
    """A row's conversation as token ids, up to the opening of the assistant's turn.

    Raises:
        UsageError: the row holds no conversation.
    """
    prompt = row.get("prompt")
    if not isinstance(prompt, list) or not prompt:
        raise UsageError(
            f"PPOTrainer: a row's `prompt` is {prompt!r:.60}, and should be a conversation; write "
            '[{"role": "user", "content": "…"}]'
        )
    return token_ids(tokenizer, prompt, ask=True)


# --- Rewards ---


class RewardModel(NamedTuple):
    """A model with one number as its output, and the mean and deviation of that number on reference samples."""

    model: Any
    tokenizer: Tokenizer
    mean: float = 0.0
    deviation: float = 1.0

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Normalised scores of conversations, in the reward model's own chat template."""
        import torch

        from constitutional.training.ppo.math import normalise

        raw = torch.tensor(raw_scores(self.model, self.tokenizer, conversations), dtype=torch.float64)
        numbers: list[float] = normalise(raw, self.mean, self.deviation).tolist()
        return numbers


def load_reward_models(source: Any, tokenizer: Tokenizer, device: "torch.device") -> list[RewardModel]:  # noqa: ANN401
    """The members of an ensemble: from a folder of one model, a folder that `constitutional run` made, or in memory.

    Only the folder that a run made has a mean and a deviation; other models' scores are taken as they are.
    """
    if not isinstance(source, str | Path):
        if not tokenizer.chat_template:
            raise ModelError(
                f"{tokenizer.name_or_path}: this tokenizer has no chat template, so conversations cannot be put to the "
                "reward model; set reward_processing_class.chat_template to the template that it was trained with"
            )
        source.config.get_text_config().pad_token_id = tokenizer.pad_token_id  # by it the head finds the last token
        members = [RewardModel(source, tokenizer)]
    elif (Path(source) / NORMALISATION).exists():
        members = [
            RewardModel(*load_reward_model(Path(source) / str(number)), *scale)
            for number, scale in enumerate(moments(Path(source)))
        ]
    else:
        members = [RewardModel(*load_reward_model(Path(source)))]
    for member in members:
        if member.model.config.num_labels != 1:
            raise ModelError(
                f"{member.model.config.name_or_path}: has {member.model.config.num_labels} labels, and a reward model "
                "has one; load it with num_labels=1"
            )
        member.model.to(device).eval().requires_grad_(False)
    return members


class Rewards:
    """The reward of a reply: a weighted sum of an ensemble of reward models, functions, or both."""

    def __init__(
        self,
        models: Sequence[RewardModel],
        functions: Sequence[RewardFunction],
        weights: Sequence[float] | None,
        *,
        normalise: bool = False,
    ) -> None:
        self.models = models
        self.functions = functions
        self.names = ["reward_model"] * bool(models) + [_name(function) for function in functions]
        self.weights = list(weights) if weights is not None else [1.0] * len(self.names)
        if not self.names:
            raise UsageError("PPOTrainer: nothing rewards a reply; give reward_model=… or reward_funcs=…")
        if len(self.weights) != len(self.names):
            raise UsageError(
                f"PPOTrainer: {len(self.weights)} reward_weights for {len(self.names)} rewards "
                f"({', '.join(self.names)}); give one for each"
            )
        self.normalise = normalise and len(self.names) > 1
        if twice := {name for name in self.names if self.names.count(name) > 1}:
            raise UsageError(
                f"PPOTrainer: two rewards are called {', '.join(twice)}; rename one, as they are logged apart"
            )

    def members(self, rows: Sequence[Row], texts: Sequence[str]) -> list[list[float]]:
        """For each row, every reward model's normalised score of its reply."""
        conversations = [
            (*map(Message.of, row["prompt"]), Message("assistant", text)) for row, text in zip(rows, texts, strict=True)
        ]
        columns = [model.scores(conversations) for model in self.models]
        return [list(scores) for scores in zip(*columns, strict=True)] if columns else [[] for _ in rows]

    def scores(self, rewards: "torch.Tensor") -> "torch.Tensor":
        """What replies are trained on (B,), from rewards (R, B): `total`, or of several rewards that are normalised.

        Then each of them is brought to mean 0 and deviation 1 over the batch before they are added; a reply that no
        reward has a number for counts 0, which is the mean.
        """
        import torch

        if not self.normalise:
            return self.total(rewards)
        from constitutional.training.groups import normalised

        return (normalised(rewards.T, rewards.shape[1]) * torch.tensor(self.weights)).nansum(1)

    def total(self, rewards: "torch.Tensor") -> "torch.Tensor":
        """The weighted sum (B,) of rewards (R, B), which stand in the order of `names`; NaN counts as none.

        A reply that no reward has a number for, as a judge's answer cannot be read, counts as the mean of the others.
        """
        import torch

        missing = rewards.isnan().all(0)
        if bool(missing.all()):
            raise UsageError("PPOTrainer: no reward has a number for any reply of the batch; one must for some")
        totals = (rewards * torch.tensor(self.weights)[:, None]).nansum(0)
        return torch.where(missing, totals[~missing].mean(), totals)


def begin_functions(
    functions: Sequence[RewardFunction],
    rows: Sequence[Row],
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    state: object = None,
) -> Callable[[], list[list[float]]]:
    """Begin to wait for reward functions that are async; what is returned calls the others, and gives all numbers.

    For each function these are its numbers for replies to the rows' prompts; NaN where it has none. They get `state`,
    the steps that are done, as TRL's do.
    """
    others = [key for key in rows[0] if key not in {"prompt", "completion", "completion_ids"}]
    columns: dict[str, Any] = {
        "prompts": [row["prompt"] for row in rows],
        "completions": [[{"role": "assistant", "content": text}] for text in texts],
        "completion_ids": [list(row_ids) for row_ids in ids],
        STATE: state,
        **{key: [row[key] for row in rows] for key in others},
    }
    results = begin(functions, columns)
    return lambda: [_numbers(*pair, len(rows)) for pair in zip(functions, results(), strict=True)]


def _numbers(function: RewardFunction, numbers: Sequence[float | None], expected: int) -> list[float]:
    if len(numbers) != expected:
        raise UsageError(
            f"PPOTrainer: {_name(function)} gave {len(numbers)} rewards for {expected} completions; return one for each"
        )
    return [float("nan") if number is None else float(number) for number in numbers]


def _name(function: RewardFunction) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


# --- The batch ---


class Episode(NamedTuple):
    """A prompt answered, with all that one process measured of this row of the batch."""

    row: int
    reply: Response
    text: str
    logprobs: list[float]
    ref_logprobs: list[float]
    values: list[float]
    entropies: list[float]
    members: list[float]
    """Each reward model's score."""
    rewards: list[float]
    """Each reward function's number."""
    gold: float | None


@dataclass
class RolloutBatch:
    """A whole batch of replies, the same on every process; tensors are (B, T) or (B,), on the CPU."""

    prompts: list[list[int]]
    responses: list[list[int]]
    texts: list[str]
    mask: "torch.Tensor"
    ended: "torch.Tensor"
    sampler_logprobs: "torch.Tensor"
    logprobs: "torch.Tensor"
    ref_logprobs: "torch.Tensor"
    values: "torch.Tensor"
    entropies: "torch.Tensor"
    rewards: "torch.Tensor"
    """(R, B), in the order of their names."""
    gold: list[float]
    scores: "torch.Tensor"
    advantages: "torch.Tensor"
    returns: "torch.Tensor"

    def length(self, row: int) -> int:
        """Tokens of a prompt and its reply."""
        return len(self.prompts[row]) + len(self.responses[row])


def make_rollout(
    prompts: list[list[int]], episodes: list[Episode], rewards: Rewards, args: "PPOConfig", kl_coefficient: float
) -> RolloutBatch:
    """The batch with scores, advantages and returns; moments are those of the whole batch."""
    import torch

    from constitutional.training.ppo import math as ppo_math

    width = max(len(episode.reply.ids) for episode in episodes)

    def stack(numbers: Iterable[Sequence[float]]) -> torch.Tensor:
        return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in numbers])

    mask = stack([1.0] * len(episode.reply.ids) for episode in episodes).bool()
    ended = torch.tensor([episode.reply.ended for episode in episodes])
    logprobs, ref_logprobs = (
        stack(episode.logprobs for episode in episodes),
        stack(episode.ref_logprobs for episode in episodes),
    )
    values = stack(episode.values for episode in episodes)
    numbers = torch.tensor([episode.rewards for episode in episodes]).T  # (functions, B)
    if rewards.models:
        of_models = ppo_math.ensemble(torch.tensor([episode.members for episode in episodes]).T, args.ensemble_k)
        numbers = torch.cat([of_models[None], numbers])
    clip = math.inf if args.reward_clip is None else args.reward_clip
    shaping = ppo_math.Shaping(clip, args.missing_eos_penalty, args.length_penalty)
    scores = ppo_math.shaped(rewards.scores(numbers), mask, ended, shaping)
    per_token = ppo_math.token_rewards(scores, logprobs, ref_logprobs, mask, kl_coefficient)
    if args.whiten_rewards:
        per_token = ppo_math.masked_whiten(per_token, mask, shift_mean=False)
    advantages, returns = ppo_math.gae(per_token, values, mask, args.gamma, args.lam)
    if args.whiten_advantages:
        advantages = ppo_math.masked_whiten(advantages, mask, shift_mean=True)
    return RolloutBatch(
        prompts=prompts,
        responses=[episode.reply.ids for episode in episodes],
        texts=[episode.text for episode in episodes],
        mask=mask,
        ended=ended,
        sampler_logprobs=stack(episode.reply.logprobs for episode in episodes),
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        entropies=stack(episode.entropies for episode in episodes),
        rewards=numbers,
        gold=[episode.gold for episode in episodes if episode.gold is not None and not math.isnan(episode.gold)],
        scores=scores,
        advantages=advantages,
        returns=returns,
    )
