"""Reads what a GGUF file holds: the numbers and texts of its heading, and its tensors in single precision.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, of which version 3 and the types of
tensor that occur in the one file of the sandbox's reader are read. The package `gguf` takes 5 seconds to open that
file, for the texts of its vocabulary.
"""

import mmap
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NUMBERS: Final = dict(enumerate("BbHhIif?")) | dict(enumerate("Qqd", start=10))
"""What `struct` calls the types of numbers in the heading."""
_TEXT: Final = 8
_LIST: Final = 9
_FLOAT, _Q4_1, _Q8_0 = 0, 3, 8
_BLOCK: Final = {_FLOAT: (1, 4), _Q4_1: (32, 20), _Q8_0: (32, 34)}
"""Weights, and bytes, of a block of each type of tensor."""


class Gguf(NamedTuple):
    """What a file holds."""

    about: dict[str, Any]
    """The heading: numbers, texts and lists of either by name."""
    tensors: dict[str, "Stored"]


class Stored(NamedTuple):
    """A tensor as the file keeps it."""

    shape: tuple[int, ...]
    kind: int
    data: memoryview

    def weights(self) -> "NDArray[np.float32]":
        """The weights in single precision."""
        import numpy as np

        if self.kind == _FLOAT:
            return np.frombuffer(self.data, "<f4").reshape(self.shape).copy()
        blocks = np.frombuffer(self.data, np.uint8).reshape(-1, _BLOCK[self.kind][1])
        scale = blocks[:, :2].copy().view("<f2").astype(np.float32)
        if self.kind == _Q8_0:
            whole: NDArray[np.float32] = scale * blocks[:, 2:].view(np.int8)
            return whole.reshape(self.shape)
        # Q4_1: a scale, the least weight, and 16 bytes whose lower halves are the first 16 weights of the block.
        least = blocks[:, 2:4].copy().view("<f2").astype(np.float32)
        steps = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
        weights: NDArray[np.float32] = scale * steps + least
        return weights.reshape(self.shape)


class _Heading:
    """Reads a file from its beginning."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def number(self, code: str) -> Any:  # noqa: ANN401 - an integer, a float or a truth value
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def text(self) -> str:
        length = self.number("Q")
        self.at += length
        return str(self.data[self.at - length : self.at], "utf-8")

    def value(self, kind: int) -> Any:  # noqa: ANN401
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            of, count = self.number("I"), self.number("Q")
            return [self.value(of) for _ in range(count)]
        return self.number(_NUMBERS[kind])


def read_gguf(path: Path) -> Gguf:
    """The heading of a file, and its tensors, which are read from the disk as they are asked for.

    Raises:
        ValueError: it is none, or of another version, or ends too early, or a tensor is of a type that is not read.
    """
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    heading = _Heading(data)
    if data[:8].tobytes() != b"GGUF" + struct.pack("<I", 3):
        raise ValueError(f"{path}: is no GGUF file of version 3")
    heading.at = 8
    try:
        tensors, values = heading.number("Q"), heading.number("Q")
        about = {heading.text(): heading.value(heading.number("I")) for _ in range(values)}
        found = list(_placed(heading, tensors))
    except struct.error:
        raise ValueError(f"{path}: ends within its heading") from None
    alignment = about.get("general.alignment", 32)
    start = -(-heading.at // alignment) * alignment
    stored = {}
    for name, shape, kind, offset in found:
        if kind not in _BLOCK:
            raise ValueError(f"{path}: tensor {name} is of type {kind}; expected one of {', '.join(map(str, _BLOCK))}")
        weights, size = _BLOCK[kind]
        begins, length = start + offset, prod(shape) // weights * size
        if begins + length > len(data):
            raise ValueError(f"{path}: ends within tensor {name}")
        stored[name] = Stored(shape, kind, data[begins : begins + length])
    return Gguf(about, stored)


def _placed(heading: _Heading, tensors: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """Name, shape, type and place of every tensor."""
    for _ in range(tensors):
        name = heading.text()
        sizes = [heading.number("Q") for _ in range(heading.number("I"))]
        yield name, tuple(reversed(sizes)), heading.number("I"), heading.number("Q")
