"""Direct preference optimisation (Rafailov et al. 2023, equation 7) on soft targets, by TRL's DPOTrainer.

In place of Constitutional AI's reinforcement learning (Bai et al. 2022, section 4) the policy is trained on the
preferences themselves. With Δ the log-ratio of policy to reference for chosen less that for rejected and p the target,
the loss is the mean of −p·log σ(β·Δ) − (1 − p)·log σ(−β·Δ): "conservative DPO" (Mitchell 2023) with a p of its own for
every pair, where TRL's label smoothing has one p for all and is ignored for this loss.

The reference is the SFT model; its log-probabilities are computed once, before training.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from constitutional.base.records import Preference
from constitutional.engines.chat import Tokenizer
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import DpoSummary
from constitutional.training import trl as training
from constitutional.training.rows import Row, dataset, fitting, preference_rows
from constitutional.training.saving import copy_model, save_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from trl.trainer.dpo_trainer import DPOTrainer


class Settings(training.TrainingSettings):
    """Direct preference optimisation."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Highest learning rate, after the warm-up (AdamW); about 5e-7 suits billions of weights."""
    epochs: float = Field(default=2, gt=0)
    """Passes over the preferences."""


def soft_dpo_trainer(
    model: "PreTrainedModel", tokenizer: Tokenizer, rows: list[Row], settings: Settings, checkpoints: Path, seed: int
) -> "DPOTrainer":
    """TRL's trainer with a soft target for every pair; `model` as it is given is the reference."""
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    class SoftDPOTrainer(DPOTrainer):
        """Adds to the loss what the soft targets change."""

        def compute_ref_log_probs(
            self, model: Callable[..., Any], inputs: dict[str, Any]
        ) -> "tuple[torch.Tensor, ...]":
            known = {key: value for key, value in inputs.items() if key not in training.SoftTargets.columns}
            logprobs: tuple[torch.Tensor, ...] = super().compute_ref_log_probs(model, known)  # type: ignore[no-untyped-call]
            return logprobs

        def _compute_loss(
            self, model: Callable[..., Any], inputs: dict[str, Any], return_outputs: bool
        ) -> "torch.Tensor":
            probability, weight = inputs.pop("probability"), inputs.pop("weight")
            outputs: list[Any] = []

            def watched(**arguments: object) -> object:
                outputs.append(model(**arguments))
                return outputs[-1]

            loss: torch.Tensor = super()._compute_loss(watched, inputs, return_outputs)  # type: ignore[no-untyped-call]
            chosen, rejected = outputs[0].log_probs.sum(dim=1).chunk(2)  # (B,) each; prompts and padding count 0
            delta = chosen - inputs["ref_chosen_logps"] - rejected + inputs["ref_rejected_logps"]
            return loss + training.soft_correction(self.beta * delta, probability, weight)

    only_for_dpo = {"beta": settings.beta, "precompute_ref_log_probs": True, "remove_unused_columns": False}
    arguments = training.trl_arguments(DPOConfig, settings, checkpoints, seed, **only_for_dpo)
    with _no_bars():
        return SoftDPOTrainer(
            model,
            args=arguments,
            data_collator=training.SoftTargets(DataCollatorForPreference(tokenizer.pad_token_id, settings.max_length)),
            train_dataset=dataset(rows),
            processing_class=tokenizer,
            peft_config=training.lora_config(settings, "CAUSAL_LM"),
        )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Turn off the bar that TRL shows for the reference's pass; only this variable does."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


def run(settings: Settings, context: StageContext) -> None:
    """Train on `preferences`, from `sft_model`, and write `policy`; without a preference, the SFT model as it is."""
    rows, left_out = preference_rows(context.read("preferences", Preference))
    if not rows:
        context.warn("there is no preference to learn from: the policy is the SFT model")
        copy_model(context.model("sft_model"), context.output("policy"))
        context.summarise(DpoSummary(pairs=0, steps=0, dropped=left_out))
        return
    model, tokenizer = training.load_policy(context.model("sft_model"), settings)
    kept, unfit = fitting(rows, tokenizer, settings.max_length)
    trainer = soft_dpo_trainer(model, tokenizer, kept, settings, context.output("checkpoints"), context.seed)
    with context.task("dpo", unit="steps") as task:
        fitted = training.fit(trainer, log=context.output("training_log.jsonl"), label="dpo", task=task)
    save_model(trainer, context.output("policy"))
    dropped = {**left_out, **unfit, "by_trainer": len(kept) - fitted.rows}
    context.summarise(DpoSummary(pairs=fitted.rows, steps=fitted.steps, dropped=dropped))
