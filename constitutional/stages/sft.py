"""Supervised fine-tuning on the revisions: SL-CAI (Bai et al. 2022, section 3.1 and 3.3), by TRL's SFTTrainer.

The paper trains a pre-trained model for one epoch on the revisions of all rounds, mixed with samples of a helpful
model. What differs: the helpful samples are drafts of the model that is trained, for a stated share of all examples,
and the revisions of the last round alone are the default. The loss is on the replies only, up to and with the token
that ends them. What is too long is left out and counted; nothing is cut.
"""

import random
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from constitutional.errors import RunError
from constitutional.records import Prompt, Revision
from constitutional.training import (
    Row,
    Tokenizer,
    TrainingSettings,
    chat,
    dataset,
    fit,
    fitting,
    load_policy,
    lora_config,
    save_model,
    trl_arguments,
)
from constitutional.work import Work

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from trl.trainer.sft_trainer import SFTTrainer


class Settings(TrainingSettings):
    """What is trained on, and how."""

    rounds: Literal["last", "all"] = "last"
    """Train on the revisions of every round, as the paper does, or of the last one only; last by default."""
    helpful_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of all examples that are unrevised drafts, which keep the model from forgetting what it could do; 0 to
    below 1, 0.1 by default."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Highest learning rate, after the warm-up (AdamW); 5e-4 by default, about 1e-5 for billions of weights."""
    epochs: float = Field(default=3, gt=0)
    """Passes over the examples; 3 by default."""


class Example(NamedTuple):
    """A reply to be learned."""

    prompt: Prompt
    reply: str
    kind: Literal["revision", "helpful"]


class Examples(NamedTuple):
    """What is trained on, and what was left out, by reason."""

    examples: list[Example]
    left_out: dict[str, int]
    """`problem`: the item could not be revised; `held_out`; `empty`: the reply says nothing; `repeated`."""


def examples(revisions: Iterable[Revision], settings: Settings, seed: int) -> Examples:
    """The revisions as examples, each text once for a prompt, and the share of drafts that the settings ask for.

    Drafts are drawn without replacement among the same prompts, in an order that the seed and each item's id fix; if
    there are too few, the share is as large as it can be.
    """
    left_out: Counter[str] = Counter(problem=0, held_out=0, empty=0, repeated=0)
    revised: dict[tuple[str, str], Example] = {}
    drafts: list[tuple[float, Example]] = []
    for each in revisions:
        if each.problem or each.prompt.split == "held_out":
            left_out["problem" if each.problem else "held_out"] += 1
            continue
        if each.draft.strip():
            order = random.Random(f"{seed} sft {each.id}").random()
            drafts.append((order, Example(each.prompt, each.draft, "helpful")))
        steps = [step.revision for step in each.steps] if settings.rounds == "all" else []
        for text in steps or [each.final]:
            key = (each.prompt.id, text)
            if not text.strip() or key in revised:
                left_out["repeated" if text.strip() else "empty"] += 1
            else:
                revised[key] = Example(each.prompt, text, "revision")
    wanted = round(settings.helpful_share / (1 - settings.helpful_share) * len(revised))
    drafts.sort(key=lambda pair: pair[0])
    return Examples([*revised.values(), *(example for _, example in drafts[:wanted])], dict(left_out))


def rows(found: Examples) -> list[Row]:
    """The examples as TRL takes them: the loss is on `completion` alone.

    Raises:
        RunError: there is no example.
    """
    if not found.examples:
        raise RunError(f"No revision is left to train on ({found.left_out}); look at the problems in revisions.jsonl")
    return [
        {"prompt": chat(each.prompt.messages), "completion": [{"role": "assistant", "content": each.reply}]}
        for each in found.examples
    ]


def sft_trainer(
    model: "PreTrainedModel", tokenizer: Tokenizer, rows: list[Row], settings: Settings, checkpoints: Path, seed: int
) -> "SFTTrainer":
    """TRL's trainer, whose loss is on `completion` alone."""
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    return SFTTrainer(
        model,
        trl_arguments(SFTConfig, settings, checkpoints, seed, completion_only_loss=True),
        train_dataset=dataset(rows),
        processing_class=tokenizer,
        peft_config=lora_config(settings, "CAUSAL_LM"),
    )


def run(settings: Settings, work: Work) -> None:
    """Train on `revisions`, from `base`, and write `sft_model`."""
    found = examples(work.read("revisions", Revision), settings, work.seed)
    model, tokenizer = load_policy(work.model("base"), settings)
    kept, too_long = fitting(rows(found), tokenizer, settings.max_length)
    trainer = sft_trainer(model, tokenizer, kept, settings, work.output("checkpoints"), work.seed)
    fitted = fit(trainer, log=work.output("training_log.jsonl"), label="sft")
    save_model(trainer, work.output("sft_model"))
    shutil.rmtree(work.output("checkpoints"))
    kinds = Counter(each.kind for each in found.examples)
    work.note("examples", {"revision": kinds["revision"], "helpful": kinds["helpful"], "trained_on": fitted.rows})
    work.note("dropped", {**found.left_out, "too_long": too_long, "by_trainer": len(kept) - fitted.rows})
    work.note("steps", fitted.steps)
