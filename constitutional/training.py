"""What the training stages share: settings, rows, checks of tokenizer and template, TRL arguments, resuming, saving.

One chat template serves the policy and the reward model, and every row is a conversation, so that a reward model scores
exactly the tokens that it was trained on. On a CPU the same seed gives the same weights, byte for byte, and a training
that goes on from a checkpoint ends with the weights and the log of one that was never interrupted.
"""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from constitutional.engines.local import Arguments, beginning, load_model, load_tokenizer, plain
from constitutional.errors import ModelError, RunError
from constitutional.files import atomic_write
from constitutional.records import Message, Preference

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback

A = TypeVar("A")
Tokenizer = Any
"""Transformers' type of it declares too little for mypy."""
Row = dict[str, Any]
"""What TRL trains on: `prompt` and the completions as lists of messages, and for preferences a target and a weight."""

COMPLETIONS = ("completion", "chosen", "rejected")
COMPLETE = "complete"
"""A file in a checkpoint that was written to its end."""


class LoraSettings(BaseModel):
    """Low-rank adapters on every linear layer (Hu et al. 2021) in place of training all weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters; 16 by default."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' output is scaled by alpha / rank; 32 by default."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapters' inputs that is dropped while training; 0 by default."""


class Adapted(Protocol):
    """Settings of a training that may be one of adapters."""

    @property
    def lora(self) -> LoraSettings | None:
        """None where all weights are trained."""
        ...


class TrainingSettings(BaseModel):
    """What the three trainings have in common. The defaults suit a model of some million weights on a CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    learning_rate: float = Field(gt=0)
    """Highest learning rate, after the warm-up (AdamW)."""
    epochs: float = Field(gt=0)
    """Passes over the training rows."""
    batch_size: int = Field(default=16, ge=1)
    """Rows in one forward pass; 16 by default."""
    gradient_accumulation: int = Field(default=1, ge=1)
    """Forward passes in one step of the optimizer; 1 by default."""
    max_length: int = Field(default=1024, ge=16)
    """Most tokens in a conversation with its reply; longer rows are left out and counted. 1024 by default."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero; 0.05 by default."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls after the warm-up; linear by default."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay of the weights; 0 by default."""
    lora: LoraSettings | None = None
    """Low-rank adapters instead of all weights; none by default. They are merged into the weights that are saved."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a fifth slower; off by default."""
    log_every: int = Field(default=5, ge=1)
    """Steps from one line of the training log to the next; 5 by default."""
    checkpoint_every: int = Field(default=50, ge=1)
    """Steps from one checkpoint to the next, a multiple of log_every; 50 by default."""

    @model_validator(mode="after")
    def _log_at_checkpoints(self) -> Self:
        # A line is a mean over the steps since the last one; a resumed training could not know those before it.
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every}, no multiple of log_every, which is {self.log_every}; "
                f"try checkpoint_every={self.log_every * max(1, self.checkpoint_every // self.log_every)}"
            )
        return self


def stage_seed(seed: int, *parts: object) -> int:
    """A seed of its own, 0 to 2³¹ − 1, for a part of the run that `parts` name."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:4], "big") >> 1


def chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A conversation as chat templates take it."""
    return [{"role": message.role, "content": message.content} for message in messages]


# --- Rows ---


def preference_rows(preferences: Sequence[Preference]) -> tuple[list[Row], dict[str, int]]:
    """Training rows of the preferences whose prompts may be trained on, and how many were left out and why.

    Weights are relative: they are scaled to a mean of 1, so that they do not act as another learning rate.
    """
    used = [each for each in preferences if each.split == "train" and each.prompt.split == "train"]
    unequal = [each for each in used if each.chosen != each.rejected]
    scale = len(unequal) / sum(each.weight for each in unequal) if unequal else 1.0
    rows = [
        {
            "prompt": chat(each.prompt.messages),
            "chosen": [{"role": "assistant", "content": each.chosen}],
            "rejected": [{"role": "assistant", "content": each.rejected}],
            "probability": each.probability,
            "weight": each.weight * scale,
        }
        for each in unequal
    ]
    return rows, {"held_out": len(preferences) - len(used), "equal_texts": len(used) - len(unequal)}


def plain_messages(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The messages without control tokens in them, as the engine puts them to a model."""
    return [{**each, "content": plain(tokenizer, each["content"])} for each in messages]


def fitting(rows: Sequence[Row], tokenizer: Tokenizer, max_length: int) -> tuple[list[Row], int]:
    """The rows whose conversations have at most `max_length` tokens, and how many have more.

    They are without control tokens, so that the trainers, which render them by themselves, train on what is sampled.
    The trainers would cut a longer reply (SFT, DPO), and so teach to stop nowhere, or drop the pair in silence
    (reward).

    Raises:
        RunError: nothing is left to train on.
        ModelError: the chat template refuses a row.
    """
    said = ("prompt", *COMPLETIONS)
    kept = [
        row
        for row in (
            {key: plain_messages(tokenizer, each) if key in said else each for key, each in row.items()} for row in rows
        )
        if all(len(token_ids(tokenizer, row["prompt"] + row[key])) <= max_length for key in COMPLETIONS if key in row)
    ]
    if not kept:
        raise RunError(
            f"Nothing to train on: {len(rows)} rows, all of them longer than max_length={max_length} tokens; "
            "give more prompts, or raise max_length"
        )
    return kept, len(rows) - len(kept)


def token_ids(tokenizer: Tokenizer, messages: list[dict[str, str]], *, ask: bool = False) -> list[int]:
    """Token ids as TRL makes them, of the messages without control tokens; `ask` ends with the assistant's opening.

    Raises:
        ModelError: the chat template refuses the conversation.
    """
    from jinja2 import TemplateError

    try:
        return _rendered(tokenizer, plain_messages(tokenizer, messages), ask=ask)
    except TemplateError as error:
        roles = ", ".join(each["role"] for each in messages)
        said = [Message("user", each["content"]) for each in messages if each["role"] == "user"] or [
            Message("user", "")
        ]
        raise ModelError(
            f"{tokenizer.name_or_path}: its chat template refuses the row that begins {beginning(said)}, a "
            f"conversation of the roles {roles}: {error}. Leave the row out, or take another model"
        ) from error


def _rendered(tokenizer: Tokenizer, messages: list[dict[str, str]], *, ask: bool = False) -> list[int]:
    rendered = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=ask)
    ids: list[int] = rendered["input_ids"]
    return ids


def dataset(rows: Sequence[Row]) -> Any:  # noqa: ANN401 - the library has no types
    """The rows in memory, as the trainers want them."""
    from datasets import Dataset  # type: ignore[import-untyped]

    return Dataset.from_list(list(rows))


# --- Models, and whether they can be trained ---


def load_policy(
    folder: Path, settings: TrainingSettings, *, pad_token: str | None = None, template: Arguments | None = None
) -> "tuple[PreTrainedModel, Tokenizer]":
    """The causal language model to start from, checked, and its tokenizer.

    What `pad_token` and `template` say is saved with what is trained, so it is said of the model that is given only.

    Weights that are trained are kept in 32 bits (a step is often too small to show in bfloat16); under LoRA on a GPU
    the frozen ones are in bfloat16.
    """
    import torch

    quiet_libraries()
    dtype = "auto" if settings.lora and torch.cuda.is_available() else "float32"
    model, tokenizer = load_model(folder, dtype=dtype, pad_token=pad_token, template=template)
    preflight(tokenizer, model)
    return model, tokenizer


def preflight(tokenizer: Tokenizer, model: "PreTrainedModel") -> None:
    """Check what users of these trainers most often lose a training to, before anything is trained.

    Raises:
        ModelError: names every problem found.
    """
    embeddings: Any = model.get_input_embeddings()
    ends = end_tokens(tokenizer, model.config, getattr(model, "generation_config", None))
    _refuse(str(model.config.name_or_path), _problems(tokenizer, embeddings.weight.shape[0], ends))


def preflight_folder(folder: Path, *, pad_token: str | None = None, template: Arguments | None = None) -> None:
    """The same of a model whose weights are not loaded yet: before anything is asked of it, as answers cost time too.

    Raises:
        ModelError: names every problem found, or why the folder cannot be read.
    """
    from transformers import AutoConfig

    tokenizer = load_tokenizer(folder, pad_token=pad_token, template=template)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a causal language model: {error}") from error
    vocabulary = config.get_text_config().vocab_size
    _refuse(str(folder), _problems(tokenizer, vocabulary, end_tokens(tokenizer, config, None)))


def _refuse(model: str, problems: Iterable[str]) -> None:
    found = list(dict.fromkeys(problems))
    if found:
        raise ModelError(f"{model}: cannot be trained as it is: {'; '.join(found)}")


_SAMPLES = (
    [("user", "What is the capital of France?"), ("assistant", "Paris.")],
    [("user", "Hello."), ("assistant", "Hello!"), ("user", "Name a colour."), ("assistant", "Blue.")],
)


def _problems(tokenizer: Tokenizer, rows: int, ends: set[int]) -> Iterator[str]:
    """What is wrong with a tokenizer and its template; a model has so many embeddings, and ends replies at `ends`."""
    from jinja2 import TemplateError

    pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
    if len(tokenizer) > rows:
        yield f"its tokenizer knows {len(tokenizer)} tokens, its embeddings {rows}; resize the embeddings"
    if not tokenizer.chat_template:
        yield "its tokenizer has no chat template; use a chat model, or add a template"
        return
    if pad is None:
        yield "its tokenizer has no pad token; name one of its tokens that occurs in no text with model.pad_token=TOKEN"
    for sample in _SAMPLES:
        messages = [{"role": role, "content": content} for role, content in sample]
        try:
            asked, whole = _rendered(tokenizer, messages[:-1], ask=True), _rendered(tokenizer, messages)
        except (TemplateError, TypeError, ValueError) as error:
            yield f"its chat template refuses a conversation of {len(messages)} messages: {error}"
            continue
        if whole[: len(asked)] != asked:
            yield "its chat template is not prefix-preserving: the prompt reads otherwise once a reply follows it"
        elif not ends & set(whole[len(asked) :]):
            yield "its chat template puts no end token after a reply, so the model would not learn to stop"
        if pad is not None and (pad == tokenizer.eos_token_id or pad in whole):
            yield (
                f"its pad token {tokenizer.pad_token!r} also ends a turn: the end would be masked, and a reward head "
                "would read the wrong token; name one that occurs in no text with model.pad_token=TOKEN"
            )
        if bos is not None and whole[:2] == [bos, bos]:
            yield f"its chat template begins with two {tokenizer.bos_token!r}; remove one"


def end_tokens(tokenizer: Tokenizer, config: "PretrainedConfig", generation: "GenerationConfig | None") -> set[int]:
    """The tokens at which the tokenizer, the model or its way of generating end a reply."""
    from transformers import GenerationConfig

    folder = Path(config.name_or_path or "")
    if generation is None and (folder / "generation_config.json").exists():
        generation = GenerationConfig.from_pretrained(folder)  # no weights are loaded, or a reward head was put on them
    found = {tokenizer.eos_token_id}
    for ends in (config.get_text_config().eos_token_id, getattr(generation, "eos_token_id", None)):
        found |= set(ends if isinstance(ends, list) else [ends])
    return found - {None}


def quiet_libraries() -> None:
    """No bars, which would hide our progress lines, and no telemetry: a training tells nobody that it runs."""
    import datasets
    import transformers
    from huggingface_hub import constants

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    constants.HF_HUB_DISABLE_TELEMETRY = True


# --- Soft labels ---


def soft_correction(logits: "torch.Tensor", probability: "torch.Tensor", weight: "torch.Tensor") -> "torch.Tensor":
    """What turns the mean of −log σ(x) into the weighted cross-entropy with soft targets; a scalar.

    With x the log-odds that a model gives to chosen over rejected, p the target and w the weight, each (B,), the loss
    is the mean of w·(−p·log σ(x) − (1 − p)·log σ(−x)) = w·(−log σ(x) + (1 − p)·x). The trainers compute the mean of
    −log σ(x), so this is the mean of (w − 1)·(−log σ(x)) + w·(1 − p)·x.
    """
    from torch.nn.functional import logsigmoid

    return (-(weight - 1) * logsigmoid(logits) + weight * (1 - probability) * logits).mean()


class SoftTargets:
    """A collator that adds each row's soft target and weight to what another collator makes of the rows."""

    columns = ("probability", "weight")

    def __init__(self, collator: Callable[[list[Row]], dict[str, Any]]) -> None:
        self.collator = collator

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """The other collator's batch with `probability` and `weight`, both (B,)."""
        import torch

        return self.collator(rows) | {
            key: torch.tensor([row[key] for row in rows], dtype=torch.float32) for key in self.columns
        }


# --- Training ---


def lora_config(settings: Adapted, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> "LoraConfig | None":
    """PEFT's settings. Without the task SEQ_CLS the head of a reward model would stay as it was drawn: random."""
    if settings.lora is None:
        return None
    from peft import LoraConfig

    lora = settings.lora
    return LoraConfig(
        task_type=task,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=lora.dropout,
        target_modules="all-linear",
    )


def trl_arguments(
    kind: Callable[..., A],
    settings: TrainingSettings,
    checkpoints: Path,
    seed: int,
    **own: object,
) -> A:
    """The arguments of an SFT, reward or DPO training; `own` are those that only one of them has."""
    import torch

    gpu = torch.cuda.is_available()
    return kind(
        output_dir=str(checkpoints),
        seed=seed,
        data_seed=seed,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        max_length=settings.max_length,
        warmup_steps=settings.warmup,  # below 1 it is a share
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,  # a loss that is no number must be seen
        save_steps=settings.checkpoint_every,
        save_total_limit=2,  # if writing the newest is cut off, the one before is still there
        report_to="none",
        disable_tqdm=True,
        **own,
    )


class Fitted(NamedTuple):
    """What a training came to."""

    steps: int
    """Of the optimizer, those before a checkpoint included."""
    rows: int
    """That the trainer kept of what it was given."""


def fit(trainer: "Trainer", *, log: Path, label: str) -> Fitted:
    """Train, going on from the latest complete checkpoint in the trainer's folder if there is one.

    Args:
        trainer: one of TRL's; a run folder keeps no checkpoints of anything but the same training.
        log: JSON lines of step, loss and so on, one every `log_every` steps; no times in it.
        label: begins the progress lines.
    """
    from transformers import PrinterCallback

    checkpoint = _latest_checkpoint(Path(trainer.args.output_dir or ""))
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_log_callback(log, label))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    rows: Any = trainer.train_dataset
    return Fitted(trainer.state.global_step, len(rows))


def _latest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; all others are removed.

    Of an older one, a kill may have cut off the removal: its mark may be there still, and other files not.
    """
    found = list(folder.glob("checkpoint-*"))
    complete = [path for path in found if (path / COMPLETE).exists()]
    latest = max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)
    for path in found:
        if path != latest:
            shutil.rmtree(path)
    return latest


def remove_checkpoints(folder: Path) -> None:
    """Remove a finished training's checkpoints, their marks first: what a kill leaves of one must not look complete."""
    for mark in list(folder.rglob(COMPLETE)):
        mark.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _log_callback(log: Path, label: str) -> "TrainerCallback":
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class Log(TrainerCallback):
        """Writes the log, prints progress, and marks checkpoints as complete."""

        def on_train_begin(
            self,
            args: TrainingArguments,  # noqa: ARG002
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            **_: object,
        ) -> None:
            """Take back the lines after the checkpoint from which training goes on: their steps are made again."""
            lines = log.read_text().splitlines() if log.exists() else []
            # A line that a kill cut off is the last one, and of a later step than any checkpoint's.
            whole = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= state.global_step]
            atomic_write(log, "".join(f"{line}\n" for line in whole).encode())

        def on_log(
            self,
            args: TrainingArguments,  # noqa: ARG002
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            logs: Mapping[str, float] | None = None,
            **_: object,
        ) -> None:
            """One line; without the summary at the end and num_tokens, which begin anew when training goes on."""
            if logs is None or "train_runtime" in logs:
                return
            reward = logs.get("reward")  # of a training online, whose loss says little
            said = f"loss {logs['loss']:.4f}" if reward is None else f"reward {reward:.3f}"
            print(f"{label}: step {state.global_step} of {state.max_steps}, {said}", file=sys.stderr)
            if not math.isfinite(logs["loss"]):
                raise ModelError(
                    f"{label}: the loss is {logs['loss']} at step {state.global_step}; lower learning_rate"
                )
            row = {"step": state.global_step} | {key: value for key, value in logs.items() if key != "num_tokens"}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")

        def on_save(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            **_: object,
        ) -> None:
            """Called once everything in the checkpoint is written."""
            checkpoint = Path(args.output_dir or "") / f"checkpoint-{state.global_step}"
            sync(checkpoint)
            (checkpoint / COMPLETE).touch()

    return Log()


# --- Saving ---


def save_model(trainer: "Trainer", folder: Path) -> "PreTrainedModel":
    """Write what was trained, whole or not at all, adapters merged, and read it again to compare; returns the model.

    Raises:
        ModelError: what is read differs from what was trained.
    """
    import torch

    # Without the wrapper that computes in bfloat16 during training: it is no part of the model that is saved.
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    plain: Any = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    plain = plain.to(plain.dtype).eval()  # one type for all weights: a reward head is trained in another
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    plain.save_pretrained(partial)
    tokenizer: Tokenizer = trainer.processing_class
    tokenizer.save_pretrained(partial)
    read = type(plain).from_pretrained(partial, dtype=plain.dtype).state_dict()
    trained = {name: tensor.cpu() for name, tensor in plain.state_dict().items()}
    same = trained.keys() == read.keys() and all(torch.equal(trained[name], read[name]) for name in trained)
    if not same:
        raise ModelError(f"{partial}: differs from the trained model once it is read again; run the stage again")
    sync(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    saved: PreTrainedModel = plain
    return saved


def sync(folder: Path) -> None:
    """Have the disk hold what was written into a folder, so that a rename or a mark after it cannot come first."""
    for path in [*filter(Path.is_file, folder.rglob("*")), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
