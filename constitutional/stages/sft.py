"""Supervised fine-tuning on the revisions: SL-CAI (Bai et al. 2022, section 3.1 and 3.3), by TRL's SFTTrainer.

The paper trains a pre-trained model for one epoch on the revisions of all rounds, mixed with samples of a helpful
model. Two things differ. The helpful samples are a stated share of all examples, and come from a file, or are drafts of
the trained model in which no critique found anything wrong. The revisions of the last round alone are the default. The
loss is on the replies only, with the token that ends them. Examples that are too long are left out and counted, never
cut.

If the critics left every draft as it was, and there is no file of helpful samples, nothing is trained, and the SFT
model is the base: from its own drafts a model does not learn the constitution.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, ValidationError

from constitutional.base.errors import InputError, RunError
from constitutional.base.frozen import Frozen
from constitutional.base.jsonl import read_jsonl
from constitutional.base.records import Message, Prompt, Revision, SftExample
from constitutional.base.seeds import rng_of
from constitutional.base.shards import RowStream
from constitutional.base.text import canonical
from constitutional.data.prompts import contains_one_of, held_out_of
from constitutional.engines.chat import Tokenizer
from constitutional.judging.people import PeoplesWork
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import SftSummary
from constitutional.training import trl as training
from constitutional.training.processes import in_shares
from constitutional.training.rows import fitting, key_of, on_disk, supervised_rows
from constitutional.training.saving import save_model, write_model

if TYPE_CHECKING:
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import PreTrainedModel
    from trl.trainer.sft_trainer import SFTTrainer


class Settings(training.TrainingSettings):
    """What is trained on, and how."""

    rounds: Literal["last", "all"] = "last"
    """Train on the revisions of every round, as the paper does, or of the last one only."""
    helpful_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all examples that are helpful samples, which keep the model from forgetting what it could do; 0 to below
    1. It is lower if there are too few samples, and higher if more drafts stay as they are."""
    helpful: Path | None = None
    """A file of helpful samples, JSON lines {"prompt": "…", "response": "…"}; null takes drafts in which no critique
    found anything wrong. Who wrote them (`rater`), in how many `seconds`, and whether the rater saw a harmful text
    (`exposed`) may stand beside them, and then stand in the report."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Highest learning rate, after the warm-up (AdamW); about 1e-5 suits billions of weights."""
    epochs: float = Field(default=3, gt=0)
    """Passes over the examples."""
    packing: bool = False
    """Put several examples into one sequence of up to max_length tokens, in which none attends to another, so that
    little is padded. `batch_size` then counts such sequences. TRL has this for SFT alone."""


def _filled(text: str) -> str:
    if not canonical(text):
        raise ValueError("is empty")
    return text


Filled = Annotated[str, AfterValidator(_filled)]


@dataclass(frozen=True)
class Examples:
    """Examples that are made of the revisions whenever they are iterated over."""

    make: Callable[[], Iterator[SftExample]]
    kinds: Counter[str]
    """How many there are, by kind."""

    def __iter__(self) -> Iterator[SftExample]:
        return self.make()

    def __len__(self) -> int:
        return self.kinds.total()


class SftExamples(NamedTuple):
    """The examples to train on, and how many were left out, by reason."""

    examples: Examples
    left_out: dict[str, int]
    """`problem`: the item could not be revised; `held_out`; `empty`: the reply says nothing; `repeated`."""
    helpful_missing: int
    """Helpful samples that the share asks for beyond those that there are."""
    nothing_revised: bool = False
    """Whether all examples are the model's own drafts, which critics left as they were."""


def examples(
    revisions: RowStream[Revision], settings: Settings, seed: int, helpful: Sequence[SftExample] | None = None
) -> SftExamples:
    """The revisions as examples, each text once for a prompt, and the share of helpful samples that is asked for.

    These are drawn from `helpful`, or else from the drafts that every critique passed, in an order that depends on the
    seed and their content. Such a draft that stayed as it was is a helpful sample already, and is not taken twice.
    What is drawn is held, and of all else some bytes a text.
    """
    left_out: Counter[str] = Counter(problem=0, held_out=0, empty=0, repeated=0)
    kinds: Counter[str] = Counter()
    kept: set[bytes] = set()
    taken = bytearray()  # of the texts of all revisions in turn
    offered = [
        (rng_of(seed, "sft", sample.prompt.id, sample.reply).random(), _key(sample), number)
        for number, sample in enumerate(helpful or ())
    ]
    new = False
    for number, revision in enumerate(revisions):
        if revision.problem or revision.prompt.split == "held_out":
            left_out["problem" if revision.problem else "held_out"] += 1
        elif helpful is None and _passed(revision) and revision.draft.strip():
            offered.append((rng_of(seed, "sft", revision.id).random(), _key(_own_draft(revision)), number))
        for example in _texts(revision, settings, own_drafts=helpful is None):
            key, filled = _key(example), bool(example.reply.strip())
            taken.append(filled and key not in kept)
            if taken[-1]:
                kept.add(key)
                kinds[example.kind] += 1
                new = new or example.reply != revision.draft or not revision.steps
            else:
                left_out["repeated" if filled else "empty"] += 1
    wanted = round(settings.helpful_share / (1 - settings.helpful_share) * kinds["revision"]) - kinds["helpful"]
    drawn = _drawn(offered, kept, wanted)
    kinds["helpful"] += len(drawn)
    new = new or (helpful is not None and bool(drawn))

    def make() -> Iterator[SftExample]:
        own, takes = {}, iter(taken)
        for number, revision in enumerate(revisions):
            yield from compress(_texts(revision, settings, own_drafts=helpful is None), takes)
            if helpful is None and number in drawn:
                own[number] = _own_draft(revision)
        yield from (own[number] if helpful is None else helpful[number] for number in drawn)

    found = Examples(make, kinds)
    return SftExamples(found, dict(left_out), max(wanted - len(drawn), 0), nothing_revised=bool(found) and not new)


def _drawn(offered: Iterable[tuple[float, bytes, int]], kept: set[bytes], most: int) -> dict[int, None]:
    """The numbers of so many of the samples that are offered, in the order of their lots, without what is kept."""
    drawn: dict[int, None] = {}
    for _, key, number in sorted(offered, key=lambda offer: offer[0]):
        if len(drawn) < most and key not in kept:
            kept.add(key)
            drawn[number] = None
    return drawn


def _texts(revision: Revision, settings: Settings, *, own_drafts: bool) -> Iterator[SftExample]:
    """What a revision has to train on, whatever it says; one that stayed as it was may be a helpful sample."""
    if revision.problem or revision.prompt.split == "held_out":
        return
    steps = [step.revision for step in revision.steps] if settings.rounds == "all" else []
    for text in steps or [revision.final]:
        helps = own_drafts and text == revision.draft and _passed(revision)
        yield SftExample(prompt=revision.prompt, reply=text, kind="helpful" if helps else "revision")


def _passed(revision: Revision) -> bool:
    """Whether no critique found anything wrong with the draft."""
    return bool(revision.steps) and all(step.found_nothing for step in revision.steps)


def _own_draft(revision: Revision) -> SftExample:
    return SftExample(prompt=revision.prompt, reply=revision.draft, kind="helpful")


def _key(example: SftExample) -> bytes:
    return key_of(example.prompt.messages, example.reply)


class HelpfulSample(Frozen):
    """A line of a file of helpful samples."""

    prompt: Filled
    response: Filled
    rater: Filled | None = None
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    exposed: bool | None = None


class HelpfulSamples(NamedTuple):
    """What a file of helpful samples holds."""

    examples: list[SftExample]
    work: PeoplesWork | None
    """Of those who wrote them; None where the file names nobody."""
    unsigned: int
    """Samples of which it is not said who wrote them."""


def read_helpful(path: Path) -> HelpfulSamples:
    """The helpful samples of a file.

    Raises:
        InputError: a line is none, or the file holds none; says the line and what was expected.
    """
    expected = '{"prompt": "…", "response": "…"}, two texts that are not empty; rater, seconds and exposed may follow'
    rows = []
    for number, row in read_jsonl(path, expected):
        try:
            rows.append(HelpfulSample.model_validate(row, strict=True))
        except ValidationError as error:
            raise InputError(path, f"is no helpful sample; expected {expected}", number) from error
    if not rows:
        raise InputError(path, f"holds no helpful sample; expected {expected}")
    examples = [
        SftExample(
            prompt=Prompt(messages=(Message("user", row.prompt),), source=path.name), reply=row.response, kind="helpful"
        )
        for row in rows
    ]
    signed = [row for row in rows if row.rater is not None]
    return HelpfulSamples(examples, _work_of(signed) if signed else None, len(rows) - len(signed))


def _work_of(signed: Sequence[HelpfulSample]) -> PeoplesWork:
    return PeoplesWork(
        raters=len({row.rater for row in signed}),
        votes=len(signed),
        skips=0,
        timed=sum(row.seconds is not None for row in signed),
        seconds=math.fsum(row.seconds for row in signed if row.seconds is not None),
        noted=sum(row.exposed is not None for row in signed),
        exposures=sum(row.exposed is True for row in signed),
        simulated=0,
    )


def sft_trainer(
    model: "PreTrainedModel", tokenizer: Tokenizer, rows: "Dataset", settings: Settings, checkpoints: Path, seed: int
) -> "SFTTrainer":
    """TRL's trainer, whose loss is on `completion` alone."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    if settings.packing:
        training.check_packing(model)
    arguments = training.trl_arguments(
        SFTConfig, settings, checkpoints, seed, completion_only_loss=True, packing=settings.packing
    )
    return in_shares(SFTTrainer)(
        model,
        arguments,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=training.lora_config(settings, "CAUSAL_LM"),
    )


def examples_of(settings: Settings, context: StageContext) -> tuple[SftExamples, HelpfulSamples | None, int]:
    """The run's examples, the file of helpful samples, and how many of it are left out: on evaluation prompts."""
    read, helpful, on_evaluation_prompts = None, None, 0
    if settings.helpful is not None:
        held_out = held_out_of(context.stream("prompts", Prompt))
        read = read_helpful(settings.helpful)
        helpful = [sample for sample in read.examples if not contains_one_of(sample.prompt.messages, held_out)]
        on_evaluation_prompts = len(read.examples) - len(helpful)
    chosen = examples(context.stream("revisions", Revision), settings, context.seed, helpful)
    return chosen, read, on_evaluation_prompts


def run(settings: Settings, context: StageContext) -> None:
    """Train on `revisions`, from `base`, and write `sft_model` and `sft_examples`; without any, the base as it is."""
    chosen, file, on_evaluation_prompts = examples_of(settings, context)
    if not chosen.examples:
        raise RunError(f"No revision is left to train on ({chosen.left_out}); look at the problems in revisions.jsonl")
    context.write("sft_examples", () if chosen.nothing_revised else chosen.examples)
    base = context.base
    model, tokenizer = training.load_policy(
        context.model("base"), settings, pad_token=base.pad_token, template=base.template
    )
    if chosen.nothing_revised:
        write_model(model, tokenizer, context.output("sft_model"))
        context.warn("no draft was revised, so there is nothing to learn: the SFT model is the base model")
        context.summarise(
            SftSummary(
                nothing_revised=True,
                helpful_on_evaluation_prompts=on_evaluation_prompts,
                work=file.work if file else None,
                unsigned=file.unsigned if file else 0,
                dropped={**chosen.left_out, "nothing_revised": len(chosen.examples)},
            )
        )
        return
    fit, unfit = fitting(supervised_rows(chosen.examples), tokenizer, settings.max_length)
    kept = on_disk(fit, context.output("checkpoints/rows"))
    trainer = sft_trainer(model, tokenizer, kept, settings, context.output("checkpoints"), context.seed)
    log = context.output("training_log.jsonl")
    with context.task("sft", unit="steps") as task, context.tracking(settings) as tracking:
        fitted = training.fit(trainer, log=log, label="sft", task=task, tracking=tracking)
    save_model(trainer, context.output("sft_model"), context.warn)
    rows = len(kept) if settings.packing else fitted.rows  # packed, rows are sequences, and no example is lost
    kinds = chosen.examples.kinds
    context.summarise(
        SftSummary(
            nothing_revised=False,
            revision=kinds["revision"],
            helpful=kinds["helpful"],
            helpful_missing=chosen.helpful_missing,
            helpful_on_evaluation_prompts=on_evaluation_prompts,
            work=file.work if file else None,
            unsigned=file.unsigned if file else 0,
            trained_on=rows,
            steps=fitted.steps,
            dropped={**chosen.left_out, **unfit, "by_trainer": len(kept) - rows},
        )
    )
