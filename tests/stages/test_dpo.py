import json
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.files import digest_of
from constitutional.base.records import Message, Preference, Prompt
from constitutional.engines.local import load_model
from constitutional.stages.dpo import Settings, run, soft_dpo_trainer
from constitutional.stages.summaries import DpoSummary
from constitutional.training.rows import preference_rows
from constitutional.training.saving import save_model
from constitutional.training.trl import LoraSettings, fit, load_policy
from tests.tiny import FAMILIES, OneStage, tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def preference(number: int, probability: float = 1.0) -> Preference:
    return Preference(
        prompt=Prompt(messages=(Message("user", f"Question {number}?"),)),
        chosen=f"Yes, {number}.",
        rejected=f"No, certainly not {number}.",
        probability=probability,
        source="ai",
        comparison=str(number),
    )


QUICK = Settings(epochs=4, batch_size=4, learning_rate=0.01, log_every=2, checkpoint_every=4)


def sequence_logprob(model: Any, tokenizer: Any, row: dict[str, Any], key: str) -> Any:  # noqa: ANN401
    """By hand: the sum over the tokens of the reply, its end included."""
    import torch

    def ids(messages: list[dict[str, str]], *, ask: bool) -> list[int]:
        found: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=ask)["input_ids"]
        return found

    prompt, whole = ids(row["prompt"], ask=True), torch.tensor(ids(row["prompt"] + row[key], ask=False))
    with torch.no_grad():
        logprobs = model(input_ids=whole[None]).logits[0].log_softmax(-1)
    return sum(logprobs[place - 1, whole[place]] for place in range(len(prompt), len(whole)))


@pytest.mark.parametrize("family", ["", *FAMILIES])
def test_the_loss_is_the_cross_entropy_with_soft_targets(models: Path, tmp_path: Path, family: str) -> None:
    import torch
    from torch.nn.functional import logsigmoid

    reference, tokenizer = load_model(tiny_model(models, family), dtype="float64")
    policy, _ = load_model(tiny_model(models, family), dtype="float64")
    rows, _ = preference_rows([preference(1, 0.7), preference(2, 1.0), preference(3, 0.5)])
    trainer = soft_dpo_trainer(policy, tokenizer, rows, Settings(beta=0.02), tmp_path, 0)
    with torch.no_grad():  # a policy that has moved away from its reference
        torch.manual_seed(1)
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    data: Any = trainer.train_dataset
    batch = trainer.data_collator([data[index] for index in range(3)])
    loss = trainer.compute_loss(policy, batch)  # type: ignore[no-untyped-call]

    by_hand = []
    for row in rows:
        delta = sum(
            sign * (sequence_logprob(policy, tokenizer, row, key) - sequence_logprob(reference, tokenizer, row, key))
            for key, sign in (("chosen", 1), ("rejected", -1))
        )
        p, x = row["probability"], 0.02 * delta  # a small β, since sums of log-probabilities are exact to 1e-5
        by_hand.append(-p * logsigmoid(x) - (1 - p) * logsigmoid(-x))
    assert loss.item() == pytest.approx((sum(by_hand) / 3).item(), abs=1e-6)


def test_training_prefers_chosen_and_the_same_seed_gives_the_same_files(models: Path, tmp_path: Path) -> None:
    rows = [preference(number) for number in range(16)]
    contexts = [OneStage(tmp_path / name, {"sft_model": tiny_model(models)}, {"preferences": rows}) for name in "ab"]
    for context in contexts:
        run(QUICK, context)
    first, second = contexts
    assert digest_of(first.output("policy")) == digest_of(second.output("policy"))
    log = [json.loads(line) for line in first.output("training_log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] > log[-1]["loss"]
    assert log[-1]["rewards/accuracies"] == 1.0
    dropped = {"held_out": 0, "equal_texts": 0, "too_long": 0, "rewritten": 0, "by_trainer": 0}
    assert first.said == DpoSummary(pairs=16, steps=16, dropped=dropped)


def test_a_target_between_holds_the_policy_back(models: Path, tmp_path: Path) -> None:
    margins = []
    for name, probability in (("hard", 1.0), ("soft", 0.7)):
        rows = [preference(number, probability) for number in range(16)]
        context = OneStage(tmp_path / name, {"sft_model": tiny_model(models)}, {"preferences": rows})
        run(QUICK.model_copy(update={"epochs": 12.0}), context)
        margins.append(json.loads(context.output("training_log.jsonl").read_text().splitlines()[-1])["rewards/margins"])
    assert margins[0] > 2
    assert margins[1] == pytest.approx(0.85, abs=0.25)  # the loss is least at log(0.7 / 0.3) = 0.85


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=4)])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    models: Path, tmp_path: Path, lora: LoraSettings | None
) -> None:
    from transformers import TrainerCallback

    settings = QUICK.model_copy(update={"lora": lora})

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
            if state.global_step == 6:
                raise KeyboardInterrupt

    def train(folder: Path, *callbacks: TrainerCallback) -> None:
        model, tokenizer = load_policy(tiny_model(models), settings)
        rows, _ = preference_rows([preference(number, 0.8) for number in range(16)])
        trainer = soft_dpo_trainer(model, tokenizer, rows, settings, folder / "checkpoints", 0)
        for callback in callbacks:
            trainer.add_callback(callback)
        fit(trainer, log=folder / "log.jsonl", label="dpo")
        save_model(trainer, folder / "model")

    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
    train(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", Kill())
    train(tmp_path / "killed")
    assert digest_of(tmp_path / "killed" / "model") == digest_of(tmp_path / "unbroken" / "model")
    assert (tmp_path / "killed" / "log.jsonl").read_text() == (tmp_path / "unbroken" / "log.jsonl").read_text()


def test_without_a_preference_to_learn_from_the_policy_is_the_sft_model(models: Path, tmp_path: Path) -> None:
    equal = preference(1).model_copy(update={"rejected": "Yes, 1."})
    for name, rows, dropped in (("none", [], 0), ("equal", [equal], 1)):
        context = OneStage(tmp_path / name, {"sft_model": tiny_model(models)}, {"preferences": rows})
        run(QUICK, context)
        assert digest_of(context.output("policy")) == digest_of(tiny_model(models))
        assert [path.name for path in context.folder.iterdir()] == ["policy"]
        assert context.said == DpoSummary(pairs=0, steps=0, dropped={"held_out": 0, "equal_texts": dropped})
        (warning,) = context.warnings
        assert "the policy is the SFT model" in warning
