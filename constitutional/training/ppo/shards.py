"""Networks of PPO in shards: every process holds a part of every weight, its gradient and its optimizer state (FSDP2).

A forward pass puts a layer's weights together and frees them again. All processes make the same passes, as each waits
for the others' parts; replies, whose lengths differ, are drawn while every process holds the policy's weights whole.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def shard(model: Any, roots: Sequence[Any], device: "torch.device", *, bf16: bool) -> None:  # noqa: ANN401
    """Leave of a model's weights this process's part, on the device.

    Args:
        model: one of transformers'. It is best on the CPU: only one layer at a time is whole on the device.
        roots: its modules that are called by themselves; what is in none of them stays whole.
        device: where to compute.
        bf16: put the weights together in bfloat16; parts and gradients stay in 32 bits.
    """
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for root in roots:
        inner = [module for module in root.modules() if type(module).__name__ in layers and module is not root]
        for module in (*inner, root):
            fully_shard(module, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Gradients are added up, as losses are shares of a whole mini-batch.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
    for tensor in (*filter(lambda weight: own(weight) is weight, model.parameters()), *model.buffers()):
        tensor.data = tensor.data.to(device)


@contextmanager
def whole(model: Any) -> Iterator[None]:  # noqa: ANN401
    """Meanwhile every process holds all weights of a model, if it is in shards, and passes need no other process."""
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def own(weight: "torch.Tensor") -> "torch.Tensor":
    """What this process holds of a weight."""
    from torch.distributed.tensor import DTensor

    return weight.to_local() if isinstance(weight, DTensor) else weight


def total(number: "torch.Tensor") -> "torch.Tensor":
    """A number over all processes, which computed it of their parts."""
    from torch.distributed.tensor import DTensor

    computed: Any = number
    return computed.full_tensor() if isinstance(computed, DTensor) else number


def put_together(content: Any, *, keep: bool) -> Any:  # noqa: ANN401
    """States of networks and optimizers with all tensors whole; those that were in shards are on the CPU.

    All processes have to call it, as each gives its parts; one that does not `keep` them gets empty tensors.
    """
    import torch
    from torch.distributed.tensor import DTensor

    if isinstance(content, DTensor):
        part: Any = content.detach()
        tensor = part.full_tensor()  # one at a time is whole on the device
        return tensor.cpu() if keep else torch.empty(0)
    if isinstance(content, Mapping):
        return {name: put_together(part, keep=keep) for name, part in content.items()}
    if isinstance(content, list):
        return [put_together(part, keep=keep) for part in content]
    return content


def part_of(tensor: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
    """Of a whole tensor what this process holds where the weight, or what belongs to it, is in shards."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(weight, DTensor) or tensor.shape != weight.shape:
        return tensor
    return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements, src_data_rank=None)


def without_weights(model: Any) -> Any:  # noqa: ANN401
    """A copy of a model that needs no memory for its weights; `filled` gives it some."""
    import torch

    return _copied(model, lambda weight: torch.empty_like(weight, device="meta"))


def filled(model: Any, weights: Mapping[str, "torch.Tensor"]) -> Any:  # noqa: ANN401
    """A copy, on the CPU, of a model without weights, with these."""
    import torch

    made = _copied(model, lambda weight: torch.empty_like(weight, device="cpu"))
    made.load_state_dict(weights)
    return made


def _copied(model: Any, of: Any) -> Any:  # noqa: ANN401
    """A copy whose weights are made of the model's; what stands in the memo is not copied again."""
    import torch

    memo = {id(weight): torch.nn.Parameter(of(weight), requires_grad=False) for weight in model.parameters()}
    return copy.deepcopy(model, memo)
