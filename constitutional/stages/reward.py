"""A reward model from preferences (Bai et al. 2022, section 4.1), by TRL's RewardTrainer.

It starts from the SFT model, with one number as its output. With d the score of chosen less that of rejected and p the
soft target, the loss is the mean of −p·log σ(d) − (1 − p)·log σ(−d). Soft targets are not rounded: Bai et al. found
them better than hard ones (section 4.3). The members of an ensemble (Christiano et al. 2017, section
2.2) differ by the heads that they start with and the order of their rows; unlike there, every one sees all rows.

Scores are only defined up to a constant, so their mean and deviation on reference samples (InstructGPT sets the mean to
0 likewise) are kept beside the model, and everything that uses it sees normalised scores.
"""

import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from constitutional.base.files import atomic_write
from constitutional.base.progress import counted
from constitutional.base.records import Message, Preference
from constitutional.base.seeds import rng_of, seed_of
from constitutional.base.shards import RowStream, columns_of, rows_with
from constitutional.base.stats import FEWEST, calibration_error, pearson, sigmoid
from constitutional.base.text import words
from constitutional.data.prompts import conversation_of
from constitutional.engines.chat import Tokenizer, load_tokenizer
from constitutional.engines.local import free_memory
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import CalibrationBin, Histogram, RewardQuality, RewardSummary, Share
from constitutional.training import processes
from constitutional.training import trl as training
from constitutional.training.preflight import preflight_folder
from constitutional.training.reward_model import NORMALISATION, load_reward_model, raw_scores
from constitutional.training.rows import chat, fitting, on_disk, preference_rows, token_ids
from constitutional.training.saving import read_whole, save_model
from constitutional.training.together import PairsTogether, loss_of, together

if TYPE_CHECKING:
    import torch
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import PreTrainedModel
    from trl.trainer.reward_trainer import RewardTrainer


class Settings(training.TrainingSettings):
    """How the reward model is trained."""

    members: int = Field(default=1, ge=1, le=16)
    """Number of reward models, with different seeds; more than one is an ensemble."""
    reference_samples: int = Field(default=256, ge=2)
    """Replies on which the mean and deviation of scores are taken."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Highest learning rate, after the warm-up (AdamW); about 1e-5 suits billions of weights."""
    epochs: float = Field(default=5, gt=0)
    """Passes over the preferences; 1 suits billions of weights."""
    pairs_together: bool = False
    """Train on all pairs of a prompt in one batch element, so that each reply is passed once (InstructGPT, section
    3.5). `batch_size` then counts prompts, and each prompt counts as much as another, however many pairs it has."""


def soft_reward_trainer(
    model: "PreTrainedModel", tokenizer: Tokenizer, rows: "Dataset", settings: Settings, checkpoints: Path, seed: int
) -> "RewardTrainer":
    """TRL's trainer with a soft target for every pair."""
    from accelerate.utils import convert_to_fp32  # type: ignore[import-untyped]
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

    class SoftRewardTrainer(RewardTrainer):
        """Adds to the loss what the soft targets change."""

        def compute_loss(
            self,
            model: Callable[..., Any],
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: "torch.Tensor | int | None" = None,
        ) -> "torch.Tensor | tuple[torch.Tensor, Any]":

            def precise(**arguments: object) -> Any:  # noqa: ANN401 - by DeepSpeed they would stay in bfloat16
                return convert_to_fp32(model(**arguments))

            if settings.pairs_together:
                return self._together(precise, inputs, return_outputs=return_outputs)
            probability, weight = inputs.pop("probability"), inputs.pop("weight")
            loss, outputs = super().compute_loss(  # type: ignore[no-untyped-call]
                precise, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch
            )
            chosen, rejected = outputs.logits.squeeze(-1).chunk(2)  # (B,) each
            loss = loss + training.soft_correction(chosen - rejected, probability, weight)
            return (loss, outputs) if return_outputs else loss

        def _together(
            self, model: Callable[..., Any], inputs: dict[str, Any], *, return_outputs: bool
        ) -> "torch.Tensor | tuple[torch.Tensor, Any]":
            """The loss of prompts with all their pairs, and TRL's measures of it."""
            outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
            scores = outputs.logits.squeeze(-1)  # (R,)
            loss, difference = loss_of(scores, inputs)
            scores, difference = (self.accelerator.gather(row.detach()) for row in (scores, difference))  # of all
            measures = {
                "min_reward": scores.min(),
                "mean_reward": scores.mean(),
                "max_reward": scores.max(),
                "accuracy": (difference > 0).float().mean(),
                "margin": difference.mean(),
            }
            for name, value in measures.items():
                self._metrics["train"][name].append(value.item())
            return (loss, outputs) if return_outputs else loss

    pairs = training.SoftTargets(DataCollatorForPreference(tokenizer.pad_token_id))
    trainer = processes.in_shares(SoftRewardTrainer)(
        model,
        training.trl_arguments(RewardConfig, settings, checkpoints, seed, remove_unused_columns=False),
        data_collator=PairsTogether(tokenizer.pad_token_id) if settings.pairs_together else pairs,
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=training.lora_config(settings, "SEQ_CLS"),
    )
    if settings.pairs_together:
        # Once TRL has tokenized the pairs.
        trainer.train_dataset = together(trainer.train_dataset, checkpoints / "together")
    return trainer


def pairs_of(trainer: "RewardTrainer") -> int:
    """How many pairs a trainer trains on."""
    rows: Any = trainer.train_dataset
    grouped = isinstance(trainer.data_collator, PairsTogether)
    return sum(map(len, rows["probability"])) if grouped else len(rows)


class Scored(NamedTuple):
    """A held-out preference, and what the reward model gives to its two replies."""

    preference: Preference
    chosen: float
    """The score as it is used: the mean of the members' normalised scores."""
    rejected: float
    probability: float
    """Probability that chosen is better: the mean over members of σ(d), with d the difference of a member's raw scores.

    The loss makes raw differences a logit; normalised scores are in deviations, and do not tell how sure the model is.
    """


def quality(held_out: Sequence[Scored], trained_on: Container[str]) -> RewardQuality:
    """How a reward model does on preferences that it was not trained on.

    All but `accuracy` is of the sources in `trained_on` alone: people's preferences that were only measured on must not
    change what is known of a model trained on the AI's. `calibration` compares how sure the model is of the reply that
    it takes to be the likelier one, from 0.5, with the mean target for that reply, in 10 bins.
    """
    groups = {source: [pair for pair in held_out if pair.preference.source == source] for source in ("ai", "human")}
    accuracy = {name: _accuracy(group) for name, group in ({"all": list(held_out)} | groups).items()}
    own = [pair for pair in held_out if pair.preference.source in trained_on]
    sure = [max(pair.probability, 1 - pair.probability) for pair in own]
    true = [pair.preference.probability if pair.probability >= 0.5 else 1 - pair.preference.probability for pair in own]
    scores = [score for pair in own for score in (pair.chosen, pair.rejected)]
    lengths = [len(words(text)) for pair in own for text in (pair.preference.chosen, pair.preference.rejected)]
    return RewardQuality(
        accuracy={name: share for name, share in accuracy.items() if share},
        calibration=tuple(_bins(sure, true)),
        # Twice 10 bins, as confidences fill only the upper half.
        calibration_error=calibration_error(sure, true, bins=20),
        length_correlation=pearson(scores, lengths) if len(own) >= FEWEST else None,
        scores=Histogram.of(scores, min(scores), max(scores), 20) if len(set(scores)) > 1 else None,
    )


def _accuracy(group: Sequence[Scored]) -> Share | None:
    # Several pairs of one prompt depend on each other.
    return Share.clustered(
        [
            (pair.chosen > pair.rejected, conversation_of(pair.preference.prompt.messages))
            for pair in group
            if pair.preference.probability > 0.5  # a tie has no better reply
        ]
    )


def _bins(sure: Sequence[float], true: Sequence[float], count: int = 10) -> Iterator[CalibrationBin]:
    bins: dict[int, list[tuple[float, float]]] = {}
    for pair in zip(sure, true, strict=True):
        bins.setdefault(min(int((pair[0] - 0.5) * 2 * count + 1e-9), count - 1), []).append(pair)
    for _, pairs in sorted(bins.items()):
        yield CalibrationBin(predicted=fmean(p for p, _ in pairs), observed=fmean(y for _, y in pairs), n=len(pairs))


Conversation = tuple[Message, ...]


def reference_conversations(
    preferences: Iterable[Preference], count: int, seed: int, fits: Callable[[Conversation], bool] = lambda _: True
) -> list[Conversation]:
    """At most `count` of the replies that were trained on, chosen and rejected alike, drawn by the seed.

    More are drawn than are wanted, in the place of those that do not fit.
    """
    train = (preference for preference in preferences if preference.split == "train")
    pairs = ((preference, text) for preference in train for text in (preference.chosen, preference.rejected))
    drawn = nsmallest(8 * count, pairs, key=lambda pair: rng_of(seed, "reference", pair[0].id, pair[1]).random())
    return list(islice(filter(fits, (_conversation(preference, text) for preference, text in drawn)), count))


def _conversation(preference: Preference, reply: str) -> Conversation:
    return (*preference.prompt.messages, Message("assistant", reply))


def train_member(number: int, rows: "Dataset", settings: Settings, context: StageContext) -> int:
    """Train and save one member of the ensemble; returns how many of the rows the trainer kept."""
    seed = seed_of(context.seed, "reward", number)
    model, tokenizer = load_reward_model(context.model("sft_model"), new_head=True, seed=seed)
    trainer = soft_reward_trainer(model, tokenizer, rows, settings, context.output(f"checkpoints/{number}"), seed)
    log = "training_log.jsonl" if number == 0 else f"training_log_{number}.jsonl"
    label = f"reward {number + 1} of {settings.members}"
    with context.task(label, unit="steps") as task, context.tracking(settings, f"-{number}" * bool(number)) as tracking:
        training.fit(trainer, log=context.output(log), label=label, task=task, tracking=tracking)
    save_model(trainer, context.output(f"reward_model/{number}"), context.warn)
    return pairs_of(trainer)


def measure(
    folder: Path,
    preferences: RowStream[Preference],
    held_out: Sequence[Preference],
    settings: Settings,
    seed: int,
    fits: Callable[[Conversation], bool] = lambda _: True,
) -> RewardQuality:
    """Write the normalisation beside the members, and return `quality` on the held-out preferences.

    `mean` and `deviation` are those of the first member's scores on the reference samples, of those that fit.
    """
    reference = reference_conversations(preferences, settings.reference_samples, seed, fits)
    replies = [_conversation(pair, text) for pair in held_out for text in (pair.chosen, pair.rejected)]
    members: list[dict[str, float]] = []
    columns = []
    for number in range(settings.members):
        scores = raw_scores(*load_reward_model(folder / str(number)), [*reference, *replies])
        members.append({"mean": fmean(scores[: len(reference)]), "deviation": pstdev(scores[: len(reference)])})
        columns.append(scores[len(reference) :])
        free_memory()
    write_normalisation(folder, members, len(reference))
    sides = columns_of(preferences, Preference, ("source", "split"))
    trained_on = {source for source, split in sides if split == "train"}
    return quality(list(_scored(held_out, columns, members)), trained_on).model_copy(update=members[0])


def write_normalisation(folder: Path, members: Sequence[Mapping[str, float]], samples: int) -> None:
    """Write what each member's scores are normalised by, measured on so many reference samples."""
    if not processes.is_main():
        return
    folder.mkdir(exist_ok=True)
    content = {"members": members, "samples": samples}
    atomic_write(folder / NORMALISATION, json.dumps(content, indent=2).encode())


def _scored(
    held_out: Sequence[Preference], columns: Sequence[Sequence[float]], members: Sequence[Mapping[str, float]]
) -> Iterator[Scored]:
    """From the members' raw scores, one column a member: the chosen reply's, the rejected one's, and so on by turns."""
    for index, preference in enumerate(held_out):
        pairs = [(column[2 * index], column[2 * index + 1]) for column in columns]
        # A member that scored every reference sample alike is not scaled: nothing can be trained on it anyway.
        scales = [(member["mean"], member["deviation"] or 1.0) for member in members]
        normalised = [
            [(score - mean) / deviation for score in pair]
            for pair, (mean, deviation) in zip(pairs, scales, strict=True)
        ]
        yield Scored(
            preference,
            chosen=fmean(pair[0] for pair in normalised),
            rejected=fmean(pair[1] for pair in normalised),
            probability=fmean(sigmoid(chosen - rejected) for chosen, rejected in pairs),
        )


def run(settings: Settings, context: StageContext) -> None:
    """Train on `preferences`, from `sft_model`, and write `reward_model` with a folder for each member.

    Without a preference there is nothing to train: `reward_model` then has no member.
    """
    preferences = context.stream("preferences", Preference)
    rows, left_out = preference_rows(preferences)
    if sum(left_out.values()) == len(preferences):
        context.warn("there is no preference to learn from, so there is no reward model")
        write_normalisation(context.output("reward_model"), [], 0)
        context.summarise(RewardSummary(pairs=0, dropped=left_out, quality=None))
        return
    preflight_folder(context.model("sft_model"))
    tokenizer = load_tokenizer(context.model("sft_model"))
    fit, unfit = fitting(rows, tokenizer, settings.max_length)
    kept = on_disk(fit, context.output("checkpoints/rows"))
    folder = context.output("reward_model")
    missing = [number for number in range(settings.members) if not (folder / str(number)).exists()]
    counts = []
    for number in missing:
        counts.append(train_member(number, kept, settings, context))
        free_memory()  # one model at a time
    # All members keep the same rows. Where a kill came after the last of them, a trainer is made only to count.
    pairs = counts[0] if counts else _kept_by_trainer(kept, settings, context)
    if not processes.is_main():
        return

    def fits(conversation: Conversation) -> bool:
        """What is longer than anything that was trained on is scored by chance, or beyond the last known position."""
        return len(token_ids(tokenizer, chat(conversation))) <= settings.max_length

    measured_on = rows_with(preferences, Preference, "split", ["held_out"])
    held_out = [pair for pair in measured_on if pair.chosen != pair.rejected]
    read = [pair for pair in held_out if all(fits(_conversation(pair, text)) for text in (pair.chosen, pair.rejected))]
    if unread := len(held_out) - len(read):
        context.warn(
            f"{counted(unread, 'held-out preference')} of {len(held_out)} are not measured on, as a conversation has "
            f"more than reward.max_length={settings.max_length} tokens"
        )
    measured = measure(folder, preferences, read, settings, context.seed, fits)
    dropped = {**left_out, **unfit, "by_trainer": len(kept) - pairs}
    context.summarise(RewardSummary(pairs=pairs, dropped=dropped, quality=measured))


def _kept_by_trainer(rows: "Dataset", settings: Settings, context: StageContext) -> int:
    model, tokenizer = load_reward_model(context.model("sft_model"), new_head=True)
    trainer = soft_reward_trainer(model, tokenizer, rows, settings, context.output("checkpoints"), context.seed)
    read_whole()
    return pairs_of(trainer)
