"""The memory that a run has: that of a GPU by its name, or of this machine."""

import difflib
import re
from typing import Final, NamedTuple

from constitutional.base.errors import UsageError

GIB: Final = 2**30
GPUS: Final = {
    "b200": 178.0,
    "h200": 139.5,
    "h100": 79.0,
    "a100": 79.0,
    "a100_40gb": 39.4,
    "rtx6000ada": 47.3,
    "l40s": 44.3,
    "a6000": 47.3,
    "a40": 44.3,
    "rtx5090": 31.3,
    "rtx4090": 23.5,
    "rtx3090": 23.6,
    "a10": 22.0,
    "l4": 22.0,
}
"""GiB that PyTorch has of a card: less than its name says, and the least that we have seen reported."""
REPORTED: Final = 0.915
"""The part of the memory that a card's name says of which that is so, at the least: of 24 GB on an L4, 22.0."""
FILLED: Final = 0.95
"""The part of the memory that can be filled; the rest is lost in gaps between what is allocated."""


class Machine(NamedTuple):
    """Where a run's models are."""

    name: str
    memory: float
    """Bytes."""
    gpu: bool

    @property
    def framework(self) -> float:
        """Bytes that are gone before there is a model: CUDA's context, its libraries' workspaces; or Python's own."""
        return 1.0 * GIB if self.gpu else 0.7 * GIB

    @property
    def usable(self) -> float:
        """Bytes for models and what is computed with them."""
        return FILLED * self.memory - self.framework


def named_gpu(name: str) -> Machine:
    """A GPU by its name, or one that is sold with so many GB, as `24` or `24GB`, of which PyTorch has `REPORTED`.

    Raises:
        UsageError: there is no such GPU.
    """
    plain = re.sub(r"(?<=\w)-| ", "", name.lower()).removeprefix("nvidia")
    if plain in GPUS:
        return Machine(plain, GPUS[plain] * GIB, gpu=True)
    try:
        size = float(plain.removesuffix("b").removesuffix("g").removesuffix("gi"))
    except ValueError:
        size = 0.0
    if not 0 < size < 10_000:
        near = next(iter(difflib.get_close_matches(plain, GPUS, n=1)), "h100")
        raise UsageError(
            f"--gpu {name} is none of {', '.join(GPUS)}; type --gpu {near}, or its memory in GB, such as --gpu 24"
        )
    return Machine(f"a GPU of {size:g} GB", REPORTED * size * GIB, gpu=True)


def this_machine() -> Machine:
    """The first GPU of this machine, or else its memory."""
    import torch

    from constitutional.engines.local import physical_memory

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(properties.name, float(properties.total_memory), gpu=True)
    return Machine("this machine's memory", float(physical_memory()), gpu=False)
