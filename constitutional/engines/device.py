"""How numbers come to the device that computes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def sent(tensor: "torch.Tensor", device: "torch.device") -> "torch.Tensor":
    """The tensor on a device. A GPU gets it in its turn: a plain copy would first wait for all that it has to do."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
