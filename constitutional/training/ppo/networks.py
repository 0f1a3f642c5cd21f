"""The networks of PPO, and their forward passes: a policy, the reference that it is held to, a critic.

With LoRA one backbone serves all three: the policy is the backbone with one adapter, the critic with another and a
head, the reference is the backbone alone. Otherwise each has its own weights. The critic is a model for sequence
classification with one label, of which every position's output is read, so that a reward model can be one.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from constitutional.base.errors import ModelError, UsageError
from constitutional.engines.device import sent
from constitutional.training import processes
from constitutional.training.ppo import critic as ppo_critic
from constitutional.training.ppo import shards

if TYPE_CHECKING:
    import torch
    from peft import PeftConfig

    from constitutional.training.ppo.math import TokenLogprobs
    from constitutional.training.ppo.rollout import RewardModel

POLICY, CRITIC = "default", ppo_critic.ADAPTER
"""The adapters' names; PEFT's own name for the first."""


class Sequences(NamedTuple):
    """B prompts with their responses, N response tokens in all, padded on the right, where no token attends to it."""

    ids: "torch.Tensor"
    """(B, L), L the tokens of the longest prompt with its response."""
    mask: "torch.Tensor"
    """(B, T), T the tokens of the longest response: True at a response's tokens, row after row the N tokens."""
    before: "tuple[torch.Tensor, torch.Tensor]"
    """Row and column in `ids` of what stands before each of the N tokens, where it is predicted; (N) each."""

    @property
    def tokens(self) -> "torch.Tensor":
        """The responses' tokens, (N)."""
        rows, columns = self.before
        return self.ids[rows, columns + 1]

    @property
    def width(self) -> int:
        """T."""
        return self.mask.shape[1]

    def spread(self, numbers: "torch.Tensor") -> "torch.Tensor":
        """One number for each token (N) as (B, T), with 0 at padding."""
        return numbers.new_zeros(self.mask.shape).masked_scatter(self.mask, numbers)


def side_by_side(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad: int, device: "torch.device"
) -> Sequences:
    """Pad prompts with their responses to the longest."""
    import torch

    texts = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
    longest = max(map(len, texts))
    ids = torch.tensor([text + [pad] * (longest - len(text)) for text in texts])
    lengths = torch.tensor([len(response) for response in responses])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    rows, places = mask.nonzero(as_tuple=True)
    columns = torch.tensor([len(prompt) for prompt in prompts])[rows] + places - 1
    return Sequences(sent(ids, device), sent(mask, device), (sent(rows, device), sent(columns, device)))


class Networks:
    """Policy, reference and critic, in memory.

    Attributes:
        policy: the language model that is trained; under LoRA PEFT's wrapper of it.
        policy_weights: what is trained of it, by name.
        critic_weights: what is trained of the critic, by name.
        critic_share: under LoRA what the critic's adapter holds of the reward model, as `ppo_critic.lead_to` says.
        without_weights: of networks in shards policy and critic without weights, from before; else nothing.
    """

    def __init__(self, policy: Any, reference: Any, critic: Any, offset: float = 0.0) -> None:  # noqa: ANN401
        """Without a critic model (under LoRA) `critic` is a head; without a reference the adapter is turned off."""
        self.policy = policy
        self.reference = reference
        self.critic = critic
        self.offset = offset  # what a value is above the head's output
        self.critic_share: float | None = None
        self.without_weights: dict[str, Any] = {}
        self.shared = not hasattr(critic, "score")
        if self.shared:
            self.policy_weights, self.critic_weights = self._adapter(POLICY), self._adapter(CRITIC)
        else:
            self.policy_weights, self.critic_weights = _trainable(policy), _trainable(critic)
        if self.shared:
            self.critic_weights |= {f"head.{name}": weight for name, weight in _trainable(critic).items()}
        for model in (policy, reference, critic):
            if model is not None:
                _no_dropout(model)

    def _adapter(self, name: str) -> dict[str, Any]:
        self.policy.set_adapter(name)
        return _trainable(self.policy)

    def train(self, mode: bool) -> None:
        """Into training mode and back; nothing but gradient checkpointing depends on it."""
        for model in (self.policy, self.critic):
            model.train(mode)

    def use_gradient_checkpointing(self) -> None:
        """Compute activations again in the backward pass."""
        for model in (self.policy, self.critic):
            if hasattr(model, "gradient_checkpointing_enable"):
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @contextmanager
    def acting(self, role: Literal["policy", "reference"]) -> Iterator[Any]:
        """The language model in that role."""
        if role == "reference" and self.reference is not None:
            yield self.reference
        elif role == "reference":
            with self.policy.disable_adapter():
                yield self.policy
        else:
            if self.shared:
                self.policy.set_adapter(POLICY)
            yield self.policy

    def logprobs(
        self,
        batch: Sequences,
        temperature: float,
        role: Literal["policy", "reference"] = "policy",
        *,
        entropy: bool = False,
    ) -> "TokenLogprobs":
        """Log-probabilities of the responses' tokens at the temperature that they are sampled at, and the entropies."""
        with self.acting(role) as model:
            return response_logprobs(model, batch, temperature, entropy=entropy)

    def values(self, batch: Sequences) -> "torch.Tensor":
        """What the critic expects of each response before each of its tokens, (B, T)."""
        if self.shared:
            self.policy.set_adapter(CRITIC)
            backbone, head = self.policy.get_base_model().base_model, self.critic
        else:
            backbone, head = self.critic.base_model, self.critic.score
        hidden = backbone(input_ids=batch.ids, use_cache=False).last_hidden_state[batch.before]  # (N, H)
        values: torch.Tensor = head(hidden.to(head.weight.dtype))[:, 0].float() + self.offset
        return batch.spread(values)

    def in_one_piece(self, role: Literal["policy", "critic"]) -> Any:  # noqa: ANN401
        """The network, or, if it is in shards, a copy on the CPU, for which all processes have to call this.

        In other processes than the main one the copy has no weights.
        """
        model = self.policy if role == "policy" else self.critic
        if not self.without_weights:
            return model
        weights = shards.put_together(model.state_dict(), keep=processes.is_main())
        return shards.filled(self.without_weights[role], weights) if processes.is_main() else self.without_weights[role]

    def value_model(self) -> Any:  # noqa: ANN401
        """The critic as a model for sequence classification, whose `config.value_offset` is to be added to its scores.

        Under LoRA it is a copy, with the adapter merged; of networks in shards it is that of `in_one_piece`.
        """
        critic = (
            ppo_critic.merged(self.policy, self.critic)
            if self.shared
            else ppo_critic.Critic(self.in_one_piece("critic"), self.offset)
        )
        setattr(critic.model.config, ppo_critic.OFFSET, critic.offset)
        return critic.model


def response_logprobs(
    model: Any,  # noqa: ANN401
    batch: Sequences,
    temperature: float,
    *,
    entropy: bool = False,
) -> "TokenLogprobs":
    """What a causal model gives the responses' tokens, (B, T): log-probabilities at the temperature, and entropies."""
    from constitutional.training.ppo import math as ppo_math

    with _head_sees(model, batch.before):
        logits = model(input_ids=batch.ids, use_cache=False).logits  # (1, N, V)
    tokens = ppo_math.token_logprobs(logits, batch.tokens[None], temperature, entropy=entropy)
    entropies = None if tokens.entropy is None else batch.spread(tokens.entropy[0])
    return ppo_math.TokenLogprobs(batch.spread(tokens.logprobs[0]), entropies)


@contextmanager
def _head_sees(model: Any, places: "tuple[torch.Tensor, torch.Tensor]") -> Iterator[None]:  # noqa: ANN401
    """Meanwhile the model computes logits at N places alone, (1, N, V): prompts and padding have none.

    A hook rather than a call of the head, since some models do more to their logits, such as capping them.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: inputs[0][places][None])
    try:
        yield
    finally:
        handle.remove()


def make_networks(
    policy: Any,  # noqa: ANN401
    reference: Any,  # noqa: ANN401
    value_model: Any,  # noqa: ANN401
    reward: "RewardModel | None",
    adapters: "PeftConfig | None",
    shard: "Callable[[Any, Sequence[Any]], None] | None" = None,
) -> Networks:
    """The three networks, each made of what is given of it, and left in shards by `shard`, if it is given.

    A reference that is not given is the policy as it is now. A critic that is not given is the reward model, if one
    reads the policy's tokens, with its scores normalised; else the policy's backbone with a head that says 0. Under
    LoRA it is as much of the reward model as an adapter holds.
    """
    if hasattr(policy, "peft_config"):
        raise UsageError("PPOTrainer: the model already has adapters; call merge_and_unload() on it first")
    if adapters is not None:
        return _with_adapters(policy, reference, value_model, reward, adapters)
    frozen = (copy.deepcopy(policy) if reference is None else reference).requires_grad_(False).eval()
    if shard is not None:  # at once, as all models are whole in this process until then
        shard(frozen, [frozen])
    policy.requires_grad_(True).eval()
    if value_model is not None:
        critic, offset = value_model, getattr(value_model.config, ppo_critic.OFFSET, 0.0)
    elif reward is not None:
        critic, offset = ppo_critic.of_reward_model(reward)
    else:
        critic, offset = ppo_critic.of_policy(policy), 0.0
    if not hasattr(critic, "score"):
        raise ModelError(
            f"{critic.config.name_or_path}: a {type(critic).__name__} cannot be a critic, as it has no `score` head; "
            "give value_model=… a causal model loaded for sequence classification with num_labels=1"
        )
    critic = critic.to(policy.device).requires_grad_(True).eval()
    if shard is None:
        return Networks(policy, frozen, critic, offset)
    empty = {"policy": shards.without_weights(policy), "critic": shards.without_weights(critic)}
    shard(policy, [policy])
    shard(critic, [critic.base_model, critic.score])  # as `values` calls them
    networks = Networks(policy, frozen, critic, offset)
    networks.without_weights = empty
    return networks


def _with_adapters(
    policy: Any,  # noqa: ANN401
    reference: Any,  # noqa: ANN401
    value_model: Any,  # noqa: ANN401
    reward: "RewardModel | None",
    adapters: "PeftConfig",
) -> Networks:
    import torch
    from peft import get_peft_model

    if value_model is not None:
        raise UsageError("PPOTrainer: with peft_config the critic is an adapter of its own; leave value_model out")
    model: Any = get_peft_model(policy, copy.deepcopy(adapters), adapter_name=POLICY)
    model.add_adapter(CRITIC, copy.deepcopy(adapters))
    head = torch.nn.Linear(policy.config.get_text_config().hidden_size, 1)
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)
    if reference is not None:
        reference.requires_grad_(False).eval()
    networks = Networks(model.eval(), reference, head.to(policy.device))
    if reward is not None:
        networks.critic_share = ppo_critic.lead_to(reward, model, head)
    return networks


def _trainable(model: Any) -> dict[str, Any]:  # noqa: ANN401
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _no_dropout(model: Any) -> None:  # noqa: ANN401
    """None in training mode either, in which gradients are checkpointed: the ratio would be of two random policies."""
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
