import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from constitutional.base.files import digest_of
from constitutional.base.records import Message, Preference, Prompt
from constitutional.engines.local import load_model
from constitutional.runs.compose import compose
from constitutional.runs.pipeline import stages_of
from constitutional.stages import dpo
from constitutional.stages.dpo import (
    Settings,
    likelihood_correction,
    preference_correction,
    run,
    soft_dpo_trainer,
    with_margins,
)
from constitutional.stages.reward import write_normalisation
from constitutional.stages.summaries import DpoSummary
from constitutional.training.reward_model import load_reward_model, raw_scores
from constitutional.training.rows import on_disk, preference_rows
from constitutional.training.saving import save_model
from constitutional.training.trl import LoraSettings, fit, load_policy
from tests.tiny import FAMILIES, OneStage, tiny_model
from tests.told import in_place_of_wandb


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


def token_logprobs(model: Any, tokenizer: Any, row: dict[str, Any], key: str) -> list[Any]:  # noqa: ANN401
    """By hand: of the tokens of the reply, its end included."""
    import torch

    def ids(messages: list[dict[str, str]], *, ask: bool) -> list[int]:
        found: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=ask)["input_ids"]
        return found

    prompt, whole = ids(row["prompt"], ask=True), torch.tensor(ids(row["prompt"] + row[key], ask=False))
    with torch.no_grad():
        logprobs = model(input_ids=whole[None]).logits[0].log_softmax(-1)
    return [logprobs[place - 1, whole[place]] for place in range(len(prompt), len(whole))]


def sequence_logprob(model: Any, tokenizer: Any, row: dict[str, Any], key: str) -> Any:  # noqa: ANN401
    return sum(token_logprobs(model, tokenizer, row, key))


def moved(model: Any) -> None:  # noqa: ANN401
    """Move a policy away from its reference."""
    import torch

    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def loss_of(trainer: Any, policy: Any) -> float:  # noqa: ANN401
    """The loss of all rows in one batch."""
    batch = trainer.data_collator(list(trainer.train_dataset))
    return float(trainer.compute_loss(policy, batch).detach())


@pytest.mark.parametrize("family", ["", *FAMILIES])
def test_the_loss_is_the_cross_entropy_with_soft_targets(models: Path, tmp_path: Path, family: str) -> None:
    from torch.nn.functional import logsigmoid

    reference, tokenizer = load_model(tiny_model(models, family), dtype="float64")
    policy, _ = load_model(tiny_model(models, family), dtype="float64")
    rows = list(preference_rows([preference(1, 0.7), preference(2, 1.0), preference(3, 0.5)])[0])
    trainer = soft_dpo_trainer(policy, tokenizer, on_disk(rows, tmp_path / "rows"), Settings(beta=0.02), tmp_path, 0)
    moved(policy)
    loss = loss_of(trainer, policy)

    by_hand = []
    for row in rows:
        delta = sum(
            sign * (sequence_logprob(policy, tokenizer, row, key) - sequence_logprob(reference, tokenizer, row, key))
            for key, sign in (("chosen", 1), ("rejected", -1))
        )
        p, x = row["probability"], 0.02 * delta  # a small β, since sums of log-probabilities are exact to 1e-5
        by_hand.append(-p * logsigmoid(x) - (1 - p) * logsigmoid(-x))
    assert loss == pytest.approx((sum(by_hand) / 3).item(), abs=1e-6)


BETA = 0.02
"""Small, since sums of log-probabilities are exact to 1e-5."""


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": ("sigmoid_norm",)},
        {"loss_type": "sigmoid_norm", "margin": "label"},
        {"ld_alpha": 0.25},
        {"ld_alpha": 0.0, "loss_type": ("sigmoid", "sft"), "loss_weights": (0.5, 0.1)},
        {"loss_type": ("sigmoid", "sft")},
        {"margin": "label", "margin_scale": 3.0},
        {"loss_type": ("sft", "sigmoid", "sigmoid_norm"), "loss_weights": (0.1, 1, 2), "margin": "label"},
    ],
)
def test_every_loss_is_the_one_that_its_paper_defines(models: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    import math

    settings = Settings(beta=BETA, **changes)
    reference, tokenizer = load_model(tiny_model(models), dtype="float64")
    policy, _ = load_model(tiny_model(models), dtype="float64")
    rows = list(preference_rows([preference(1, 0.7), preference(2, 1.0), preference(3, 0.5)])[0])
    if settings.margin:
        rows = list(with_margins(rows, settings))
        assert [row["margin"] for row in rows] == pytest.approx([0.4 * settings.margin_scale, settings.margin_scale, 0])
    trainer = soft_dpo_trainer(policy, tokenizer, on_disk(rows, tmp_path / "rows"), settings, tmp_path, 0)
    moved(policy)
    loss = loss_of(trainer, policy)

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    losses: dict[str, list[float]] = {name: [] for name in ("sigmoid", "sigmoid_norm", "sft")}
    for row in rows:
        tokens = {
            key: [
                [float(number) for number in token_logprobs(model, tokenizer, row, key)]
                for model in (policy, reference)
            ]
            for key in ("chosen", "rejected")
        }
        shared = min(len(tokens[key][0]) for key in tokens)
        assert shared < max(len(tokens[key][0]) for key in tokens)  # or ld_alpha would change nothing
        ratio = {}
        for key, (ours, theirs) in tokens.items():
            weights = [1.0 if place < shared or settings.ld_alpha is None else settings.ld_alpha for place in range(99)]
            ratio[key] = sum(w * (a - b) for w, a, b in zip(weights, ours, theirs, strict=False))
        lead = ratio["chosen"] - ratio["rejected"]
        normalised = ratio["chosen"] / len(tokens["chosen"][0]) - ratio["rejected"] / len(tokens["rejected"][0])
        p = row["probability"]
        for name, delta in (("sigmoid", lead), ("sigmoid_norm", normalised)):
            x = BETA * delta - row.get("margin", 0.0)
            losses[name].append(-p * log_sigmoid(x) - (1 - p) * log_sigmoid(-x))
        losses["sft"] += [-number for number in tokens["chosen"][0]]  # a mean over the tokens of all
    shares = settings.loss_weights or (1.0,) * len(settings.loss_type)
    by_hand = sum(
        weight * sum(losses[name]) / len(losses[name]) for name, weight in zip(settings.loss_type, shares, strict=True)
    )
    assert loss == pytest.approx(by_hand, abs=2e-6)


def test_a_margin_shifts_the_logit_of_a_soft_target() -> None:
    import torch

    # −0.8·log σ(0.5) − 0.2·log σ(−0.5) = 0.8 · 0.474077 + 0.2 · 0.974077 = 0.574077; −log σ(1) = 0.313262
    added = preference_correction(torch.tensor([1.0]), torch.tensor([0.8]), margin=torch.tensor([0.5]))
    assert float(added) == pytest.approx(0.574077 - 0.313262, abs=1e-6)
    assert float(preference_correction(torch.tensor([1.0]), torch.tensor([0.8]))) == pytest.approx(0.2)
    twice = preference_correction(torch.tensor([1.0]), torch.tensor([0.8]), 2.0, torch.tensor([0.5]))
    assert float(twice) == pytest.approx(2 * 0.574077 - 0.313262, abs=1e-6)


def test_a_pair_counts_in_the_term_that_keeps_chosen_replies_likely_by_its_weight() -> None:
    import torch

    # Tokens of −1 and −2, and one of −6, whose pair weighs a third: the mean is 9/3, and with the weights (3 + 2)/3.
    tokens, mask = torch.tensor([[-1.0, -2.0], [-6.0, -9.0]]), torch.tensor([[1, 1], [1, 0]])
    added = likelihood_correction(tokens, mask, torch.tensor([1.0, 1 / 3]))
    assert float(added) == pytest.approx(5 / 3 - 9 / 3, abs=1e-6)
    assert float(likelihood_correction(tokens, mask, torch.tensor([1.0, 1.0]))) == 0.0


def test_the_whole_loss_weighs_pairs_in_both_terms(models: Path, tmp_path: Path) -> None:
    rows = list(preference_rows([preference(1, 1.0), preference(2, 1.0)])[0])

    def loss(*weights: float) -> float:
        policy, tokenizer = load_model(tiny_model(models), dtype="float64")
        weighed = [row | {"weight": weight} for row, weight in zip(rows, weights, strict=True)]
        kept = on_disk(weighed, tmp_path / "rows")
        settings = Settings(beta=BETA, loss_type=("sigmoid", "sft"), loss_weights=(1.0, 0.5))
        trainer = soft_dpo_trainer(policy, tokenizer, kept, settings, tmp_path, 0)
        moved(policy)
        return loss_of(trainer, policy)

    # Linear in the weights: half of one pair is half of what that pair adds.
    whole, first, second = loss(1.0, 1.0), loss(1.0, 0.0), loss(0.0, 1.0)
    assert whole == pytest.approx(first + second, abs=2e-6)
    assert loss(0.5, 1.0) == pytest.approx(first / 2 + second, abs=2e-6)
    assert loss(0.0, 0.0) == pytest.approx(0.0, abs=2e-6)


def test_a_margin_is_a_lead_by_the_runs_reward_models(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_reward_model(tiny_model(models), new_head=True, seed=3)
    model.save_pretrained(tmp_path / "reward" / "0")
    tokenizer.save_pretrained(tmp_path / "reward" / "0")
    write_normalisation(tmp_path / "reward", [{"mean": 0.5, "deviation": 0.25}], 1)
    rows, _ = preference_rows([preference(number, 0.8) for number in (1, 2, 3)])
    monkeypatch.setattr(dpo, "LARGE", 2)  # rows that are scored at once
    made = with_margins(rows, Settings(margin="reward_model", margin_scale=2.0), tmp_path / "reward")
    for number, row in zip((1, 2, 3), made, strict=True):
        asked = Message("user", f"Question {number}?")
        replies = [(asked, Message("assistant", text)) for text in (f"Yes, {number}.", f"No, certainly not {number}.")]
        chosen, rejected = raw_scores(model, tokenizer, replies)
        assert row["margin"] == pytest.approx(2 * (chosen - rejected) / 0.25, abs=1e-4)
    context = OneStage(tmp_path / "run", {"sft_model": tiny_model(models), "reward_model": tmp_path / "reward"})
    context.rows["preferences"] = [preference(number) for number in range(4)]
    run(QUICK.model_copy(update={"margin": "reward_model", "epochs": 1.0}), context)
    assert context.summarised(DpoSummary).pairs == 4
    (stage,) = (stage for stage in stages_of(compose(["algorithm.margin=reward_model"])) if stage.name == "dpo")
    assert stage.needs == ("preferences", "sft_model", "reward_model")


def test_a_likelihood_term_keeps_the_chosen_replies_likely(models: Path, tmp_path: Path) -> None:
    last = {}
    for name, loss_type in (("without", ("sigmoid",)), ("with", ("sigmoid", "sft"))):
        rows = [preference(number) for number in range(16)]
        context = OneStage(tmp_path / name, {"sft_model": tiny_model(models)}, {"preferences": rows})
        run(QUICK.model_copy(update={"loss_type": loss_type}), context)
        last[name] = json.loads(context.output("training_log.jsonl").read_text().splitlines()[-1])
    assert last["with"]["logps/chosen"] > last["without"]["logps/chosen"] + 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"loss_type": "sft"}, r"does not look at the rejected.*loss_type=\[sigmoid,sft\]"),
        ({"loss_type": ("sigmoid", "sigmoid")}, "names a loss twice"),
        ({"loss_type": ("sigmoid", "sft"), "loss_weights": (1,)}, "1 numbers for"),
        ({"loss_type": "hinge"}, "sigmoid_norm"),
        ({"ld_alpha": 2}, "less than or equal to 1"),
    ],
)
def test_losses_that_cannot_be_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Settings(**changes)


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
        made, _ = preference_rows([preference(number, 0.8) for number in range(16)])
        rows = on_disk(made, folder / "checkpoints/rows")
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


def test_trackers_are_told_what_the_log_says(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = in_place_of_wandb(monkeypatch)
    rows = [preference(number) for number in range(16)]
    context = OneStage(tmp_path, {"sft_model": tiny_model(models)}, {"preferences": rows}, report_to=("wandb",))
    context.tracked_as = "dpo"
    run(QUICK, context)
    log = [json.loads(line) for line in context.output("training_log.jsonl").read_text().splitlines()]
    first, *lines, last = told
    assert (first, last) == (("begin", "one", "dpo", None, 0), ("end", False))
    assert [step for step, _ in lines] == [line["step"] for line in log]
    for (_, metrics), line in zip(lines, log, strict=True):
        assert metrics["rewards/margins"] == line["rewards/margins"]
        assert metrics["logps/chosen"] == line["logps/chosen"]


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
