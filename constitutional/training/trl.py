"""What the training stages share: settings, the model to start from, soft labels, TRL's arguments, resuming.

On a CPU the same seed gives the same weights, byte for byte, and a training that goes on from a checkpoint ends with
the weights and the log of one that was never interrupted. Rows are made in `rows.py`, models are checked in
`preflight.py` and saved in `saving.py`.
"""

import importlib.util
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from constitutional.base.errors import ConfigurationError, ModelError, RunError
from constitutional.base.files import atomic_write
from constitutional.base.frozen import TECHNICAL
from constitutional.base.progress import Progress, Task, counted
from constitutional.engines.chat import Arguments, Tokenizer
from constitutional.engines.local import load_model
from constitutional.training import metrics, processes
from constitutional.training.kernels import liger_kernels
from constitutional.training.preflight import preflight
from constitutional.training.quiet import quiet_libraries
from constitutional.training.rows import Row
from constitutional.training.saving import bit_sums, check_finite, check_moved, kind_of_shards, sync
from constitutional.training.tracking import NOT_TRACKED, Tracking

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, Trainer, TrainerCallback

A = TypeVar("A")

COMPLETE = "complete"
"""A file in a checkpoint that was written to its end."""
_OF_THIS_START = ("num_tokens", "step_time")
"""Logged numbers that a training which goes on would write otherwise than one that was never stopped."""


class LoraSettings(BaseModel):
    """Low-rank adapters on every linear layer (Hu et al. 2021) in place of training all weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    rank: int = Field(default=16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(default=32.0, gt=0)
    """The adapters' output is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of the adapters' inputs that is dropped in supervised training; the others train without dropout."""


class NetworkSettings(BaseModel):
    """What all trainings have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    lora: LoraSettings | None = None
    """Low-rank adapters instead of all weights. They are merged into the weights that are saved."""
    gradient_checkpointing: Annotated[bool, TECHNICAL] = False
    """Compute activations again in the backward pass: less memory, about a fifth slower."""


class TrainingSettings(NetworkSettings):
    """What the trainings by TRL have in common. The defaults suit a model of some million weights on a CPU."""

    learning_rate: float = Field(gt=0)
    """Highest learning rate, after the warm-up (AdamW)."""
    epochs: float = Field(gt=0)
    """Passes over the training rows."""
    batch_size: Annotated[int, TECHNICAL] = Field(default=16, ge=1)
    """Rows in one forward pass."""
    gradient_accumulation: Annotated[int, TECHNICAL] = Field(default=1, ge=1)
    """Forward passes in one step of the optimizer."""
    max_length: int = Field(default=1024, ge=16)
    """Most tokens in a conversation with its reply; longer rows are left out and counted."""
    warmup: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the learning rate rises from zero; at least one step comes after them."""
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    """How the learning rate falls after the warm-up."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decay of the weights."""
    log_every: Annotated[int, TECHNICAL] = Field(default=5, ge=1)
    """Steps from one line of the training log to the next."""
    checkpoint_every: Annotated[int, TECHNICAL] = Field(default=50, ge=1)
    """Steps from one checkpoint to the next, a multiple of log_every."""
    use_liger_kernel: Annotated[bool, TECHNICAL] = False
    """Compute norms, rotary positions and MLPs by Liger's kernels, which take less memory: on a GPU, with pip install
    '.[liger]'. Losses stay TRL's."""

    DERIVED: ClassVar = ("rows_per_step",)

    @property
    def rows_per_step(self) -> int:
        """Rows in one step of the optimizer: results depend on it, and not on how it is divided into passes."""
        return self.batch_size * self.gradient_accumulation

    @model_validator(mode="after")
    def _log_at_checkpoints(self) -> Self:
        # A line is a mean over the steps since the last one; a resumed training could not know those before it.
        if self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every}, no multiple of log_every, which is {self.log_every}; "
                f"try checkpoint_every={self.log_every * max(1, self.checkpoint_every // self.log_every)}"
            )
        return self


# --- Models ---


def load_policy(
    folder: Path, settings: TrainingSettings, *, pad_token: str | None = None, template: Arguments | None = None
) -> "tuple[PreTrainedModel, Tokenizer]":
    """The causal language model to start from, checked, and its tokenizer.

    `pad_token` and `template` are saved with the trained model, so only the model that a run is given needs them.

    Weights that are trained are kept in 32 bits (a step is often too small to show in bfloat16); under LoRA on a GPU
    the frozen ones are in bfloat16.
    """
    import torch

    quiet_libraries()
    dtype = "auto" if settings.lora and torch.cuda.is_available() else "float32"
    model, tokenizer = load_model(folder, dtype=dtype, pad_token=pad_token, template=template)
    preflight(tokenizer, model)
    return model, tokenizer


def check_packing(model: "PreTrainedModel") -> None:
    """Refuse a model that would carry something from one example of a packed sequence to the next.

    Raises:
        ConfigurationError: it has layers that do more than attend.
    """
    from constitutional.engines.attention import plain_layers

    if not plain_layers(model):
        raise ConfigurationError(
            f"sft.packing=true: {type(model).__name__} has layers that carry something from token to token beside "
            "attention, so that one example would change the next in its sequence; type sft.packing=false"
        )


def check_kernels(settings: TrainingSettings, stage: str) -> None:
    """Refuse Liger's kernels where they cannot run.

    Raises:
        ConfigurationError: they are not installed, or there is no GPU.
    """
    if not settings.use_liger_kernel:
        return
    import torch

    if importlib.util.find_spec("liger_kernel") is None:
        advice = f"type pip install '.[liger]', or {stage}.use_liger_kernel=false"
        raise ConfigurationError(f"{stage}.use_liger_kernel=true: liger-kernel is not installed; {advice}")
    if not torch.cuda.is_available():
        raise ConfigurationError(
            f"{stage}.use_liger_kernel=true: the kernels are for GPUs, and this machine has none; type "
            f"{stage}.use_liger_kernel=false"
        )


def check_dropout(settings: NetworkSettings, stage: str) -> None:
    """Refuse dropout in a training that has none: TRL turns it off, and a ratio would be of two random policies.

    Raises:
        ConfigurationError: there is some.
    """
    if settings.lora and settings.lora.dropout:
        raise ConfigurationError(
            f"{stage}.lora.dropout={settings.lora.dropout:g}: only supervised training drops inputs of its adapters "
            f"(sft.lora.dropout); type {stage}.lora.dropout=0"
        )


# --- Soft labels ---


def soft_correction(
    logits: "torch.Tensor", probability: "torch.Tensor", weight: "torch.Tensor | float" = 1.0
) -> "torch.Tensor":
    """What turns the mean of −log σ(x) into the weighted cross-entropy with soft targets; a scalar.

    With x the log-odds that a model gives to chosen over rejected, p the target and w the pair's weight, each (B,), the
    loss is the mean of w·(−p·log σ(x) − (1 − p)·log σ(−x)) = w·(−log σ(x) + (1 − p)·x). The trainers compute the mean
    of −log σ(x), so this is the mean of w·(1 − p)·x + (w − 1)·(−log σ(x)).
    """
    from torch.nn.functional import softplus

    return (weight * (1 - probability) * logits + (weight - 1) * softplus(-logits)).mean()


class SoftTargets:
    """A collator that adds each row's numbers, its soft target and weight, to what another makes of the rows."""

    def __init__(
        self, collator: Callable[[list[Row]], dict[str, Any]], columns: Sequence[str] = ("probability", "weight")
    ) -> None:
        self.collator = collator
        self.columns = columns

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """The other collator's batch with each of the columns, (B,)."""
        import torch

        return self.collator(rows) | {
            key: torch.tensor([row[key] for row in rows], dtype=torch.float32) for key in self.columns
        }


# --- Training ---


def lora_config(settings: NetworkSettings, task: Literal["CAUSAL_LM", "SEQ_CLS"]) -> "LoraConfig | None":
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
    """The arguments of a training by one of TRL's trainers; `own` are those that only this trainer has."""
    import torch

    gpu = torch.cuda.is_available()
    size, passes = processes.share_of(settings)
    arguments = kind(
        output_dir=str(checkpoints),
        seed=seed,
        data_seed=seed,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=passes,
        max_length=settings.max_length,
        warmup_steps=settings.warmup,  # below 1 it is a share
        lr_scheduler_type=settings.schedule,
        weight_decay=settings.weight_decay,
        gradient_checkpointing=settings.gradient_checkpointing,
        bf16=gpu,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,  # a loss that is no number ends the training
        save_steps=settings.checkpoint_every,
        save_total_limit=2,  # if writing the newest is cut off, the one before is still there
        report_to="none",
        disable_tqdm=True,
        use_liger_kernel=settings.use_liger_kernel,  # which is read in `fit`, before the trainer does
        **own,
    )
    if not gpu and processes.count() > 1:
        # Accelerate calls the CPU of the second process cpu:1, where torch cannot load the state of an optimizer.
        vars(arguments)["_setup_devices"] = torch.device("cpu")
    _take_one_gpu(arguments)
    return arguments


def _take_one_gpu(arguments: Any) -> None:  # noqa: ANN401 - transformers', of any trainer
    """Keep a process to its own GPU: one alone would spread a batch over all that it sees, which TRL refuses."""
    _ = arguments.device  # by which transformers counts them, once
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001 - transformers' own way to say so


class Fitted(NamedTuple):
    """How much a training did."""

    steps: int
    """Steps of the optimizer, with those before a checkpoint."""
    rows: int
    """Rows that the trainer kept."""


def fit(
    trainer: "Trainer",
    *,
    log: Path,
    label: str,
    task: "Task | None" = None,
    tracking: Tracking = NOT_TRACKED,
    warn: Callable[[str], None] = lambda _: None,
) -> Fitted:
    """Train, going on from the latest complete checkpoint in the trainer's folder if there is one.

    Args:
        trainer: one of TRL's; a run folder keeps only checkpoints of the same training.
        log: JSON lines of step, loss and so on, one every `log_every` steps; no times in it.
        label: begins what is said of it.
        task: told of every step; None shows it on standard error.
        tracking: told of every line of the log.
        warn: told once where most prompts teach nothing, as all their replies are rewarded alike.

    Raises:
        ModelError: the loss or a weight is no number, or no weight moved.
    """
    from transformers import PrinterCallback

    if task is None:
        with Progress().task(label, 0, "steps") as own:
            return fit(trainer, log=log, label=label, task=own, tracking=tracking, warn=warn)
    checkpoint, in_shards = _latest_checkpoint(Path(trainer.args.output_dir or "")), kind_of_shards(trainer)
    mark = _mark_of(trainer, in_shards)
    if checkpoint:
        _check_kind(checkpoint, mark, in_shards)
    trainer.remove_callback(PrinterCallback)
    alike = RewardedAlike(warn)
    trainer.add_callback(_log_callback(log, label, task, tracking, alike, mark, whole=not in_shards))
    _leave_a_step_after_warmup(trainer)
    before = bit_sums(_trained(trainer.model))
    with suppress(_AllStepsMadeError), _kernels_in(trainer):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not in_shards:  # of shards nobody has a whole weight; what they come to is checked as it is saved
        check_finite(_trained(trainer.model), label, trainer.state.global_step)
        check_moved(before, bit_sums(_trained(trainer.model)), label, trainer.state.global_step)
    rows: Any = trainer.train_dataset
    return Fitted(trainer.state.global_step, len(rows))


@contextmanager
def _kernels_in(trainer: "Trainer") -> Iterator[None]:
    """Liger's kernels in what is trained, where the trainer was told so; itself it would leave them to later models."""
    model: Any = trainer.model
    arguments: Any = trainer.args
    asked, arguments.use_liger_kernel = arguments.use_liger_kernel, False
    try:
        with liger_kernels(model.get_base_model() if hasattr(model, "peft_config") else model, on=asked):
            yield
    finally:
        arguments.use_liger_kernel = asked


class _AllStepsMadeError(Exception):
    """The checkpoint that a training goes on from is of its last step.

    After a part of an epoch transformers would make another step before it looks how many there are to be.
    """


def _trained(model: Any) -> "list[torch.Tensor]":  # noqa: ANN401
    return [weight for weight in model.parameters() if weight.requires_grad]


def _leave_a_step_after_warmup(trainer: "Trainer") -> None:
    """Make the warm-up shorter than the training.

    Transformers rounds a share of the steps up, and the first step of a warm-up has rate 0: one step would do nothing.
    """
    create_scheduler: Any = trainer.create_scheduler

    def shortened(num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ANN401
        steps = trainer.args.get_warmup_steps(num_training_steps)
        trainer.args.warmup_steps = min(steps, num_training_steps - 1)
        return create_scheduler(num_training_steps, optimizer)

    vars(trainer)["create_scheduler"] = shortened


def _latest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end; all others are removed.

    A kill may have cut off the removal of an older one, whose mark may be left without its other files.
    """
    folders = list(folder.glob("checkpoint-*"))
    complete = [path for path in folders if (path / COMPLETE).exists()]
    latest = max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)
    processes.wait()  # until all have looked
    for path in folders if processes.is_main() else ():
        if path != latest:
            shutil.rmtree(path)
    return latest


class RewardedAlike:
    """Watches the share of prompts that teach nothing, and warns once where it stays high."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._warned = False
        self._shares: list[float] = []

    def begin(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Go on after the lines of a log."""
        self._shares = [line[metrics.ALIKE] for line in lines if metrics.ALIKE in line]

    def see(self, line: Mapping[str, Any], *, last: bool) -> str:
        """Look at a line of the log; returns what is said of it while a training goes on, empty of other trainings."""
        share = line.get(metrics.ALIKE)
        if share is None:
            return ""
        self._shares.append(share)
        if not self._warned and metrics.stays_high(self._shares, ended=last):
            self._warned = True
            self._warn(
                f"{metrics.ALIKE} stays high, at {share:.0%}: so many prompts have replies that are all rewarded "
                f"alike, and nothing is learned from them. {metrics.TO_DIFFER}"
            )
        return f", {share:.0%} of prompts rewarded alike"


def _log_callback(  # noqa: PLR0913 - what is written, and who is told
    log: Path,
    label: str,
    task: "Task",
    tracking: Tracking,
    alike: RewardedAlike,
    mark: str = "",
    *,
    whole: bool = True,
) -> "TrainerCallback":
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

    class Log(TrainerCallback):
        """Writes the log, tells how far the training is, and marks checkpoints as complete."""

        def on_train_begin(
            self,
            args: TrainingArguments,  # noqa: ARG002
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            **_: object,
        ) -> None:
            """Remove the lines after the checkpoint from which training goes on: their steps are made again.

            By now the weights are those of the checkpoint, and in shards if they are to be.
            """
            task.total = state.max_steps
            task.update(state.global_step)
            alike.begin(map(json.loads, _kept_lines(log, state.global_step)))
            tracking.begin(state.global_step)
            if state.global_step >= state.max_steps:
                raise _AllStepsMadeError

        def on_step_end(
            self,
            args: TrainingArguments,  # noqa: ARG002
            state: TrainerState,
            control: TrainerControl,
            **_: object,
        ) -> None:
            """Log the last step too, so that what was measured since the last line belongs to a step."""
            if state.global_step >= state.max_steps:
                control.should_log = True
            task.update(state.global_step)

        def on_log(
            self,
            args: TrainingArguments,  # noqa: ARG002
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            logs: Mapping[str, float] | None = None,
            **_: object,
        ) -> None:
            """Write a line; the summary is none."""
            if logs is None or "train_runtime" in logs:
                return
            reward = logs.get("reward")  # of a training online, whose loss says little
            result = f"loss {logs['loss']:.4f}" if reward is None else f"reward {reward:.3f}"
            result += alike.see(logs, last=state.global_step >= state.max_steps)
            task.update(state.global_step, result)
            if not math.isfinite(logs["loss"]):
                raise ModelError(
                    f"{label}: the loss is {logs['loss']} at step {state.global_step}; lower learning_rate"
                )
            kept = {key: metrics.finite(value) for key, value in logs.items() if key not in _OF_THIS_START}
            _append(log, {"step": state.global_step} | kept)
            tracking.log(state.global_step, logs)

        def on_save(
            self,
            args: TrainingArguments,
            state: TrainerState,
            control: TrainerControl,  # noqa: ARG002
            model: Any = None,  # noqa: ANN401
            **_: object,
        ) -> None:
            """Mark a checkpoint, all of which is written, as complete; weights that are no numbers end the training."""
            if whole:
                check_finite(_trained(model), label, state.global_step)
            _complete(Path(args.output_dir or "") / f"checkpoint-{state.global_step}", mark)

    return Log()


# Of several processes the main one writes the log and marks checkpoints.


def _kept_lines(log: Path, step: int) -> list[str]:
    """The lines of a log up to a step, which alone are kept."""
    if not processes.is_main():
        return []
    lines = log.read_text().splitlines() if log.exists() else []
    # A line that a kill cut off is the last one, and of a later step than any checkpoint's.
    whole = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    atomic_write(log, "".join(f"{line}\n" for line in whole).encode())
    return whole


def _append(log: Path, row: Mapping[str, Any]) -> None:
    if processes.is_main():
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")


def _mark_of(trainer: "Trainer", in_shards: str) -> str:
    """In what shards checkpoints keep weights and optimizer; empty where they keep them whole."""
    if trainer.is_deepspeed_enabled:  # which goes on with as many processes alone, and shards in stages 1 and 2 as well
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        return f"ZeRO-{stage} over {counted(processes.count(), 'process')}"
    return in_shards


def _complete(checkpoint: Path, mark: str) -> None:
    processes.wait()  # each of them writes a part of it
    if processes.is_main():
        sync(checkpoint)
        atomic_write(checkpoint / COMPLETE, mark.encode())


def _check_kind(checkpoint: Path, mark: str, in_shards: str) -> None:
    """Refuse a checkpoint whose weights and optimizer are kept in other shards than this training reads.

    Transformers would end with a traceback, or begin the optimizer anew and say nothing. What was written before marks
    named the number of processes has the name of the shards alone.
    """
    if (kept := (checkpoint / COMPLETE).read_text()) not in (mark, in_shards or mark):
        begun, now = (f"in shards of {kind}" if kind else "whole" for kind in (kept, mark))
        raise RunError(
            f"{checkpoint}: was written by a training that keeps weights and optimizer {begun}, and this one keeps "
            f"them {now}; go on with the launch=… and launch.processes=… that began it, or delete {checkpoint.parent} "
            "to train the stage anew"
        )
