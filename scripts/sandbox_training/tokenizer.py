"""The sandbox's tokenizer: byte-level BPE, so that any text goes in and comes out unchanged, with a chat template."""

import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from constitutional.sandbox import principles
from constitutional.sandbox.teacher import FAMILIES, critique, rationale, revise
from constitutional.sandbox.world import base_traits, compose, draw_prompt, text_of, traits_of, uniform_traits

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY = 4096
PAD, BOS, EOS = "<|pad|>", "<|begin|>", "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL = (PAD, BOS, EOS, *ROLES.values())

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def sample_texts(count: int, seed: int) -> Iterator[str]:
    """Texts like those of the corpus, for the tokenizer to learn its merges from."""
    rng = random.Random(seed)
    for _ in range(count):
        prompt = draw_prompt(rng)
        response = compose(rng, prompt, (base_traits if rng.random() < 0.5 else uniform_traits)(rng, prompt))
        trait, direction = rng.choice(FAMILIES)
        traits = traits_of(prompt, response)
        yield from (message.content for message in prompt.messages)
        yield text_of(response)
        yield principles.wording(rng, trait, direction)
        yield critique(prompt, response, trait, direction)
        yield rationale(traits, traits, trait, direction) + " A"
        yield text_of(revise(rng, prompt, response, trait, direction))


def build_tokenizer(templates: list[str], *, seed: int = 0, count: int = 12_000) -> "PreTrainedTokenizerFast":
    """Learn a byte-level BPE of `VOCABULARY` tokens from the world's texts and the rendered prompt templates.

    Args:
        templates: the project's prompt templates as text, which occur in every request.
        seed: fixes the sampled texts.
        count: how many prompts to sample.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([*templates * 200, *sample_texts(count, seed)], trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=raw,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=list(ROLES.values()),
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


BREAKS = 0.15
"""How often a token of a principle that is cut at random falls into two."""


def _splits(vocabulary: dict[str, int]) -> dict[int, list[tuple[int, int]]]:
    """For each token, the ways of cutting it into two tokens of which neither is a lone byte."""
    found: dict[int, list[tuple[int, int]]] = {}
    for token, number in vocabulary.items():
        if token not in SPECIAL:
            halves = ((token[:cut], token[cut:]) for cut in range(2, len(token) - 1))
            known = [(vocabulary[a], vocabulary[b]) for a, b in halves if a in vocabulary and b in vocabulary]
            if known:
                found[number] = known
    return found


class Encoder:
    """Encodes chats fast, exactly as the chat template does (a test holds it to that).

    With probability `noise`, `encode_noisily` cuts some tokens in two, after BPE-dropout (Provilkov et al. 2020).
    """

    def __init__(self, folder: Path, *, noise: float = 0.0, seed: int = 0) -> None:
        from tokenizers import Tokenizer

        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.noise = noise
        self.rng = random.Random(seed)
        vocabulary = self.tokenizer.get_vocab()
        self.bos, self.eos = vocabulary[BOS], vocabulary[EOS]
        self.role = {role: vocabulary[token] for role, token in ROLES.items()}
        self.pieces = _splits(vocabulary)
        self.encode = lru_cache(maxsize=50_000)(self._encode)

    def encode_noisily(self, text: str) -> tuple[int, ...]:
        """The text's token ids, now and then in smaller pieces than the tokenizer's own."""
        ids = self.encode(text)[0]
        if self.rng.random() >= self.noise:
            return ids
        made: list[int] = []
        for token in ids:
            pieces = self.pieces.get(token)
            made += self.rng.choice(pieces) if pieces and self.rng.random() < BREAKS else (token,)
        return tuple(made)

    def _encode(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The text's token ids, and the character at which each token ends."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        return tuple(encoding.ids), tuple(end for _, end in encoding.offsets)
