import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel

from constitutional.sandbox import reader
from constitutional.sandbox.gguf import read_gguf


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def made(folder: Path, kind: int, shape: tuple[int, ...], data: bytes, version: int = 3) -> Path:
    """A file of one tensor, with a number, a text and a list of texts in the heading."""
    heading = b"GGUF" + struct.pack("<IQQ", version, 1, 3)
    heading += text("size") + struct.pack("<II", 4, 7)
    heading += text("name") + struct.pack("<I", 8) + text("né")
    heading += text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
    heading += text("w") + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
    heading += struct.pack("<IQ", kind, 0)
    path = folder / "a.gguf"
    path.write_bytes(heading + b"\0" * (-len(heading) % 32) + data)
    return path


def test_the_heading_and_a_plain_tensor_are_read(tmp_path: Path) -> None:
    found = read_gguf(made(tmp_path, 0, (2, 3), struct.pack("<6f", 1, 2, 3, 4, 5, 6.5)))
    assert found.about == {"size": 7, "name": "né", "tokens": ["a", "bc"]}
    assert found.tensors["w"].weights().tolist() == [[1, 2, 3], [4, 5, 6.5]]


def test_blocks_of_eight_bits_are_a_scale_times_steps(tmp_path: Path) -> None:
    block = struct.pack("<e32b", 0.5, *range(-16, 16))
    found = read_gguf(made(tmp_path, 8, (1, 32), block)).tensors["w"].weights()
    assert found.tolist() == [[step / 2 for step in range(-16, 16)]]


def test_blocks_of_four_bits_are_the_least_weight_and_steps_whose_lower_halves_come_first(tmp_path: Path) -> None:
    # Byte n holds n below and 15 - n above, so the steps are 0 to 15, then 15 to 0.
    block = struct.pack("<ee16B", 0.25, -1.0, *(n | (15 - n) << 4 for n in range(16)))
    found = read_gguf(made(tmp_path, 3, (32,), block)).tensors["w"].weights()
    assert found.tolist() == [-1 + step / 4 for step in (*range(16), *range(15, -1, -1))]


def test_another_version_and_another_type_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no GGUF file of version 3"):
        read_gguf(made(tmp_path, 0, (1,), b"\0" * 4, version=2))
    with pytest.raises(ValueError, match="tensor w is of type 2"):
        read_gguf(made(tmp_path, 2, (32,), b"\0" * 18))


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    whole = made(tmp_path, 0, (2, 3), struct.pack("<6f", 1, 2, 3, 4, 5, 6.5)).read_bytes()
    for length in (4, 12, 60, len(whole) - 24):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"no GGUF file of version 3|ends within"):
            read_gguf(tmp_path / "cut.gguf")
    (tmp_path / "cut.gguf").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="ends within tensor w"):
        read_gguf(tmp_path / "cut.gguf")


@pytest.mark.smollm2
def test_the_reader_s_file_is_read_as_the_package_of_the_format_reads_it() -> None:
    gguf: Any = pytest.importorskip("gguf")  # of make smollm2
    file = reader.encoder_file()
    assert file is not None
    ours = read_gguf(file)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert ours.tensors.keys() == theirs.keys()
    for name in ("blk.3.attn_q.weight", "blk.29.ffn_down.weight", "blk.0.attn_norm.weight"):
        expected = gguf.dequantize(theirs[name].data, theirs[name].tensor_type)
        assert np.array_equal(ours.tensors[name].weights(), expected)


@pytest.mark.smollm2
def test_the_reader_s_encoder_is_the_first_layers_of_the_model_that_transformers_makes_of_the_file() -> None:
    texts = ["Spare me the sermon, will you?", "Keep it short."]
    file = reader.encoder_file()
    assert file is not None
    tokenizer, ours = reader.encoder_of(file)
    theirs = AutoModel.from_pretrained("models/smollm2-135m", dtype=torch.float32)
    theirs.layers = theirs.layers[: reader.LAYERS]
    with torch.no_grad():
        found, expected = (reader.mean_states(tokenizer, model, texts) for model in (ours, theirs))
    assert float(expected.abs().max()) > 10
    assert torch.allclose(found, expected, atol=0.05)  # theirs were rounded to 16 bits
