"""Direct preference optimisation (Rafailov et al. 2023, equation 7) on soft targets, by TRL's DPOTrainer.

In place of Constitutional AI's reinforcement learning (Bai et al. 2022, section 4) the policy is trained on the
preferences themselves. With Δ the log-ratio of policy to reference for chosen less that for rejected and p the target,
the loss is the mean of −p·log σ(β·Δ) − (1 − p)·log σ(−β·Δ): "conservative DPO" (Mitchell 2023) with a p of its own for
every pair, where TRL's label smoothing has one p for all and is ignored for this loss.

The reference is the SFT model; its log-probabilities are computed once, before training.

What `loss_type`, `loss_weights` and `ld_alpha` do is what they do in TRL: a term that keeps the chosen replies likely,
and two ways to take length out of the comparison. A margin that differs from pair to pair is not in TRL.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, NonNegativeFloat, field_validator, model_validator

from constitutional.base.records import Preference
from constitutional.base.shards import LARGE
from constitutional.engines.chat import Tokenizer, load_tokenizer
from constitutional.engines.local import free_memory
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import DpoSummary
from constitutional.training import processes
from constitutional.training import trl as training
from constitutional.training.kernels import liger_kernels
from constitutional.training.preflight import preflight_folder
from constitutional.training.reward_model import score as score_replies
from constitutional.training.rewards import conversation_with
from constitutional.training.rows import Row, fitting, on_disk, preference_rows
from constitutional.training.saving import copy_model, save_model

if TYPE_CHECKING:
    import torch
    from datasets import Dataset  # type: ignore[import-untyped]
    from transformers import PreTrainedModel
    from trl.trainer.dpo_trainer import DPOTrainer


LossType = Literal["sigmoid", "sigmoid_norm", "sft"]


class Settings(training.TrainingSettings):
    """Direct preference optimisation."""

    kind: Literal["dpo"] = "dpo"
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Highest learning rate, after the warm-up (AdamW); about 5e-7 suits billions of weights."""
    epochs: float = Field(default=2, gt=0)
    """Passes over the preferences."""
    loss_type: tuple[LossType, ...] = ("sigmoid",)
    """Losses that are added up, as TRL names them: sigmoid is DPO's own; sigmoid_norm divides each reply's log-ratio by
    the number of its tokens, so that length alone wins nothing (length-normalised DPO, Lambert et al. 2024, which takes
    a beta of 5); sft is the negative log-likelihood of the chosen replies, a mean over their tokens, and keeps them
    likely (RPO, Pang et al. 2024). One of the first two is needed: loss_type=[sigmoid,sft]."""
    loss_weights: tuple[NonNegativeFloat, ...] | None = None
    """The weight of each loss in loss_type: loss_weights=[1,0.1]; null weighs all by 1."""
    ld_alpha: float | None = Field(default=None, ge=0, le=1)
    """The weight of the tokens by which the longer reply of a pair exceeds the shorter one, as in LD-DPO (Liu et al.
    2024); null and 1 count all tokens alike, and 0 counts none of those."""
    margin: Literal["label", "reward_model"] | None = None
    """The margin by which beta times the log-ratio of chosen has to exceed that of rejected before the loss calls a
    pair even (DPO with an offset, Amini et al. 2024). For each pair it is margin_scale times how sure its label is,
    2·probability − 1, or times the difference of the reward model's scores; null sets none."""
    margin_scale: float = Field(default=1.0, gt=0)
    """The margin of a pair whose label is certain, or for a lead of one deviation of the reward model's scores."""

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_alone(cls, chosen: object) -> object:
        return (chosen,) if isinstance(chosen, str) else chosen

    @model_validator(mode="after")
    def _losses_go_together(self) -> Self:
        named = ",".join(self.loss_type)
        if not {"sigmoid", "sigmoid_norm"} & set(self.loss_type):
            raise ValueError(
                f"loss_type=[{named}] does not look at the rejected replies; type algorithm.loss_type="
                f"[{','.join(dict.fromkeys(('sigmoid', *self.loss_type)))}]"
            )
        if len(set(self.loss_type)) < len(self.loss_type):
            raise ValueError(f"loss_type=[{named}] names a loss twice; name it once, and weigh it by loss_weights")
        if self.loss_weights is not None and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights holds {len(self.loss_weights)} numbers for loss_type=[{named}]; give one for each loss"
            )
        return self


def soft_dpo_trainer(
    model: "PreTrainedModel", tokenizer: Tokenizer, rows: "Dataset", settings: Settings, checkpoints: Path, seed: int
) -> "DPOTrainer":
    """TRL's trainer with a soft target for every pair; `model` as it is given is the reference.

    Rows have a `margin` where the settings ask for one. For several processes they are on the disk, where one leaves
    the others the reference's pass.
    """
    import torch
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer

    columns = ("probability", "weight", *(("margin",) if settings.margin else ()))

    class SoftDPOTrainer(DPOTrainer):
        """Adds to the loss what the soft targets and the margins change."""

        def compute_ref_log_probs(
            self, model: Callable[..., Any], inputs: dict[str, Any]
        ) -> "tuple[torch.Tensor, ...]":
            known = {key: value for key, value in inputs.items() if key not in columns}
            logprobs: tuple[torch.Tensor, ...] = super().compute_ref_log_probs(model, known)  # type: ignore[no-untyped-call]
            return logprobs

        def _compute_loss(
            self, model: Callable[..., Any], inputs: dict[str, Any], return_outputs: bool
        ) -> "torch.Tensor":
            probability, weight, margin = (inputs.pop("probability"), inputs.pop("weight"), inputs.pop("margin", None))
            outputs: list[Any] = []

            def watched(**arguments: object) -> object:
                outputs.append(model(**arguments))
                return outputs[-1]

            loss: torch.Tensor = super()._compute_loss(watched, inputs, return_outputs)  # type: ignore[no-untyped-call]
            mask = inputs["completion_mask"][:, 1:]
            reference = torch.cat([inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]])
            ratios = sequence_logps(outputs[0].log_probs, mask, settings.ld_alpha) - reference
            lengths = mask.sum(dim=1)
            for name, share in zip(self.loss_types, self.loss_weights, strict=True):
                if name == "sft":
                    chosen_tokens, chosen_mask = (both.chunk(2)[0] for both in (outputs[0].log_probs, mask))
                    loss = loss + share * likelihood_correction(chosen_tokens, chosen_mask, weight)
                else:
                    chosen, rejected = (ratios / lengths if name == "sigmoid_norm" else ratios).chunk(2)  # (B,) each
                    logits = self.beta * (chosen - rejected)
                    loss = loss + share * preference_correction(logits, probability, weight, margin)
            return loss

    arguments = training.trl_arguments(
        DPOConfig,
        settings,
        checkpoints,
        seed,
        beta=settings.beta,
        loss_type=list(settings.loss_type),
        loss_weights=None if settings.loss_weights is None else list(settings.loss_weights),
        ld_alpha=settings.ld_alpha,
        precompute_ref_log_probs=True,
        remove_unused_columns=False,
    )
    collator = DataCollatorForPreference(tokenizer.pad_token_id, settings.max_length)
    # The reference's pass is made here, and is to round as the policy does: their first ratios are 1.
    with _no_bars(), liger_kernels(model, on=settings.use_liger_kernel):
        return processes.in_shares(SoftDPOTrainer)(
            model,
            args=arguments,
            data_collator=training.SoftTargets(collator, columns),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=training.lora_config(settings, "CAUSAL_LM"),
        )


def sequence_logps(per_token: "torch.Tensor", mask: "torch.Tensor", ld_alpha: float | None) -> "torch.Tensor":
    """Log-probabilities of replies (2B,) from those of their tokens (2B, T), the chosen ones first.

    With `ld_alpha` the tokens that a reply has beyond the other of its pair are weighed by it. The mask is 1 at the
    tokens of replies.
    """
    import torch

    if ld_alpha is None:
        return per_token.sum(dim=1)  # prompts and padding count 0
    shared = torch.minimum(*mask.sum(dim=1).chunk(2)).repeat(2)[:, None]
    weights = mask * torch.where(mask.cumsum(dim=1) > shared, ld_alpha, 1.0)
    return (per_token * weights).sum(dim=1)


def preference_correction(
    logits: "torch.Tensor",
    probability: "torch.Tensor",
    weight: "torch.Tensor | float" = 1.0,
    margin: "torch.Tensor | None" = None,
) -> "torch.Tensor":
    """What turns the mean of −log σ(x) into that of w·(−p·log σ(x − m) − (1 − p)·log σ(m − x)); a scalar.

    The logits x, the targets p, the weights w and the margins m are (B,); without margins it is `soft_correction`.
    """
    from torch.nn.functional import logsigmoid

    if margin is None:
        return training.soft_correction(logits, probability, weight)
    left = logits - margin
    return training.soft_correction(left, probability, weight) + (logsigmoid(logits) - logsigmoid(left)).mean()


def likelihood_correction(
    per_token: "torch.Tensor", mask: "torch.Tensor", weight: "torch.Tensor | float"
) -> "torch.Tensor":
    """What turns the mean of −log π over all tokens of chosen replies into that of −w·log π; a scalar.

    The log-probabilities and the mask are (B, T), the pairs' weights w are (B,).
    """
    mask = mask.to(per_token.dtype)
    return ((1.0 - weight) * (per_token * mask).sum(dim=1)).sum() / mask.sum()


def with_margins(rows: Iterable[Row], settings: Settings, reward_model: Path | None = None) -> Iterator[Row]:
    """The rows, each with its `margin`: by the scores of a run's reward models in a folder, or else by its label.

    `LARGE` rows are scored at once, for which the models are loaded.
    """
    if reward_model is None:
        yield from (row | {"margin": settings.margin_scale * (2 * row["probability"] - 1)} for row in rows)
        return
    iterator = iter(rows)
    while some := list(islice(iterator, LARGE)):
        replies = [conversation_with(row["prompt"], row[key]) for row in some for key in ("chosen", "rejected")]
        scores = [score.mean for score in score_replies(reward_model, replies)]
        free_memory()  # one model at a time
        for row, chosen, rejected in zip(some, scores[::2], scores[1::2], strict=True):
            yield row | {"margin": settings.margin_scale * (chosen - rejected)}


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
    preferences = context.stream("preferences", Preference)
    rows, left_out = preference_rows(preferences)
    if sum(left_out.values()) == len(preferences):
        context.warn("there is no preference to learn from: the policy is the SFT model")
        copy_model(context.model("sft_model"), context.output("policy"))
        context.summarise(DpoSummary(pairs=0, steps=0, dropped=left_out))
        return
    preflight_folder(context.model("sft_model"))
    fit, unfit = fitting(rows, load_tokenizer(context.model("sft_model")), settings.max_length)
    if settings.margin:
        scorer = context.model("reward_model") if settings.margin == "reward_model" else None
        fit = with_margins(fit, settings, scorer)
    kept = on_disk(fit, context.output("checkpoints/rows"))
    model, tokenizer = training.load_policy(context.model("sft_model"), settings)
    trainer = soft_dpo_trainer(model, tokenizer, kept, settings, context.output("checkpoints"), context.seed)
    log = context.output("training_log.jsonl")
    with context.task("dpo", unit="steps") as task, context.tracking(settings) as tracking:
        fitted = training.fit(trainer, log=log, label="dpo", task=task, tracking=tracking)
    save_model(trainer, context.output("policy"), context.warn)
    dropped = {**left_out, **unfit, "by_trainer": len(kept) - fitted.rows}
    context.summarise(DpoSummary(pairs=fitted.rows, steps=fitted.steps, dropped=dropped))
