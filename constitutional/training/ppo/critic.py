"""PPO's critic: where it starts, and how it is saved.

A critic estimates at every position of a reply what the reward will be. It is a model for sequence classification with
one label, of which every position is read; under LoRA an adapter on the policy's backbone, and a head. It starts best
from the reward model, whose score of a whole reply it has to foresee.
"""

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from constitutional.training.reward_model import make_scorer_known

if TYPE_CHECKING:
    import torch

    from constitutional.training.ppo.rollout import RewardModel

ADAPTER = "critic"
"""The name of the critic's adapter, beside the policy's."""
OFFSET = "value_offset"
"""The entry in a saved critic's configuration that is added to the model's number to give a value."""


class Critic(NamedTuple):
    """A model with a `score` head, and the offset that is added to its output."""

    model: Any
    offset: float


def of_reward_model(reward: "RewardModel") -> Critic:
    """The reward model, scaled so that its output for a whole reply is the normalised score."""
    model = copy.deepcopy(reward.model).float()
    model.score.weight.data /= reward.deviation
    return Critic(model, -reward.mean / reward.deviation)


def of_policy(policy: Any) -> Any:  # noqa: ANN401
    """The policy's backbone with a head whose output is 0."""
    import torch
    from transformers import AutoModelForSequenceClassification

    make_scorer_known(policy.config)
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    critic: Any = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    critic.base_model.load_state_dict(policy.base_model.state_dict())
    critic.score.weight.data.zero_()
    return critic


def merged(policy: Any, head: "torch.nn.Linear") -> Critic:  # noqa: ANN401
    """The critic of a backbone with adapters as a model of its own, in 32 bits, on the CPU.

    The policy stays as it is, the adapter that is active in it too.
    """
    import torch

    # Tensors that stand in the memo are not copied again, so that the device needs no memory for a second model.
    weights = {id(weight): torch.nn.Parameter(_on_cpu(weight), requires_grad=False) for weight in policy.parameters()}
    buffers = {id(buffer): _on_cpu(buffer) for buffer in policy.buffers()}
    copied = copy.deepcopy(policy, {**weights, **buffers})
    copied.set_adapter(ADAPTER)
    critic = of_policy(copied.merge_and_unload())
    critic.score.weight.data.copy_(head.weight.data)
    return Critic(critic, float(head.bias.detach()))


def _on_cpu(tensor: "torch.Tensor") -> "torch.Tensor":
    """A copy, in 32 bits if it holds fractions."""
    copied = tensor.detach().to("cpu", copy=True)
    return copied.float() if copied.is_floating_point() else copied


def lead_to(reward: "RewardModel", policy: Any, head: "torch.nn.Linear") -> float | None:  # noqa: ANN401
    """Start the critic's adapter and head from a reward model that has the policy's architecture.

    A map with adapters gets the best approximation of W_reward − W that its rank allows (Eckart and Young 1936), the
    head the reward head, normalised. That is all of it where the reward model was made by adapters of no larger rank
    on the same maps of the same model; weights without adapters, such as embeddings and norms, stay the policy's. Less
    is enough for a start: of a reward model of the sandbox's, all of whose weights were trained for two passes, a rank
    of 4 held 63%, and its values explained 99% of the variance of the whole model's.

    Returns:
        The share that the adapter holds of the squared difference of all weights, 0 to 1; None, and nothing is done,
        where the backbones differ in their weights' names or shapes.
    """
    import torch
    from peft.tuners.lora import Linear

    backbone = policy.get_base_model().base_model
    ours = {name.replace(".base_layer", ""): w for name, w in backbone.named_parameters() if "lora_" not in name}
    rewards = dict(reward.model.base_model.named_parameters())
    if {name: w.shape for name, w in ours.items()} != {name: w.shape for name, w in rewards.items()}:
        return None
    adapters: dict[str, Any] = {
        f"{name}.weight": module
        for name, module in backbone.named_modules()
        # Neither maps that are written the other way round, as GPT-2's, nor DoRA, which also scales them.
        if isinstance(module, Linear)
        and isinstance(module.get_base_layer(), torch.nn.Linear)
        and not module.lora_variant
    }
    kept, differs = 0.0, 0.0
    with torch.no_grad():
        for name, weight in ours.items():
            difference = rewards[name].to(weight.device).float() - weight.float()
            squared = float(difference.square().sum(dtype=torch.float64))
            if squared and name in adapters:
                down, up = (maps[ADAPTER].weight for maps in (adapters[name].lora_A, adapters[name].lora_B))
                rank, scaling = len(down), adapters[name].scaling[ADAPTER]
                # A few directions more than are wanted, and some passes, make it as good as the whole decomposition.
                left, values, right = torch.svd_lowrank(difference, q=min(rank + 8, *difference.shape), niter=8)
                held = values[:rank]
                # The lengths go into the map that starts at 0: a direction of length 0 is still one to learn.
                up[:, : len(held)] = left[:, :rank] * held / scaling
                down[: len(held)] = right[:, :rank].T
                kept += float(held.square().sum(dtype=torch.float64))
            differs += squared
        head.weight.copy_(reward.model.score.weight / reward.deviation)
        head.bias.fill_(-reward.mean / reward.deviation)
    return kept / differs if differs else 1.0
