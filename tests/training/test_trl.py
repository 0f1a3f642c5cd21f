from math import log
from pathlib import Path

import pytest

from constitutional.base.errors import ModelError
from constitutional.training.trl import (
    COMPLETE,
    TrainingSettings,
    _latest_checkpoint,
    _log_callback,
    soft_correction,
)


@pytest.mark.parametrize(
    ("x", "p", "loss"),
    [
        (0.0, 0.7, log(2)),  # σ(0) = 1/2 for either reply, whatever the target
        (log(3), 1.0, log(4 / 3)),  # σ = 3/4, and a target of 1 is the plain loss
        (log(3), 0.75, 0.75 * log(4 / 3) + 0.25 * log(4)),  # the entropy of (3/4, 1/4): the least there can be
        (-log(3), 0.5, 0.5 * log(4) + 0.5 * log(4 / 3)),
    ],
)
def test_the_correction_makes_the_plain_loss_a_soft_one(x: float, p: float, loss: float) -> None:
    import torch

    logits = torch.tensor([x], dtype=torch.float64)
    plain = -torch.nn.functional.logsigmoid(logits).mean()
    corrected = plain + soft_correction(logits, torch.tensor([p]))
    assert corrected.item() == pytest.approx(loss, abs=1e-7)


def test_an_undecided_pair_pulls_nowhere_while_the_model_is_undecided() -> None:
    import torch

    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = -torch.nn.functional.logsigmoid(logits).mean()
    loss = loss + soft_correction(logits, torch.tensor([0.5, 0.9]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([0.0, -0.2])  # (σ(0) − p) / 2 = 0 and (0.5 − 0.9) / 2


def test_a_log_that_a_resumed_training_could_not_repeat_is_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of log_every, which is 20; try checkpoint_every=40"):
        TrainingSettings(learning_rate=1e-3, epochs=1, log_every=20, checkpoint_every=50)


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}" / COMPLETE).touch()
    assert _latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-15").exists()
    assert _latest_checkpoint(tmp_path / "nothing") is None


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    callback = _log_callback(tmp_path / "log.jsonl", "dpo")
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(ModelError, match=r"dpo: the loss is nan at step 7; lower learning_rate"):
        callback.on_log(arguments, TrainerState(global_step=7), TrainerControl(), logs={"loss": float("nan")})
