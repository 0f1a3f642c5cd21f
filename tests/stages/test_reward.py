import json
from itertools import combinations
from math import exp, log, sqrt
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from constitutional.base import shards
from constitutional.base.errors import ModelError
from constitutional.base.files import digest_of
from constitutional.base.records import Message, Preference, Prompt, Split
from constitutional.base.seeds import seed_of
from constitutional.runs.outputs import CHECKPOINTS, drop_checkpoints
from constitutional.stages import reward
from constitutional.stages.reward import (
    Scored,
    Settings,
    measure,
    pairs_of,
    quality,
    reference_conversations,
    run,
    soft_reward_trainer,
)
from constitutional.stages.summaries import RewardQuality, RewardSummary
from constitutional.training.reward_model import has_members, load_reward_model, raw_scores, score
from constitutional.training.rows import on_disk, preference_rows
from constitutional.training.saving import save_model
from constitutional.training.trl import LoraSettings, fit
from tests.tiny import FAMILIES, OneStage, tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def preference(
    number: int,
    probability: float = 1.0,
    *,
    source: Literal["ai", "human"] = "ai",
    split: Split = "train",
) -> Preference:
    return Preference(
        prompt=Prompt(messages=(Message("user", f"Question {number}?"),)),
        chosen=f"Yes, {number}.",
        rejected=f"No, certainly not {number}.",
        probability=probability,
        source=source,
        comparison=str(number),
        split=split,
    )


MANY = [preference(number) for number in range(16)]
HELD_OUT = [preference(number, split="held_out", source="human" if number % 2 else "ai") for number in range(16, 24)]
QUICK = Settings(epochs=3, batch_size=4, learning_rate=0.01, log_every=2, checkpoint_every=6)


def conversation(item: Preference, reply: str) -> tuple[Message, ...]:
    return (*item.prompt.messages, Message("assistant", reply))


@pytest.mark.parametrize("family", ["", *FAMILIES])
def test_the_loss_is_the_cross_entropy_with_soft_targets(models: Path, tmp_path: Path, family: str) -> None:
    model, tokenizer = load_reward_model(tiny_model(models, family), new_head=True, dtype="float64")
    items = [preference(1, 0.7), preference(2, 1.0), preference(3, 0.5)]
    rows, _ = preference_rows(items)
    trainer = soft_reward_trainer(model, tokenizer, on_disk(rows, tmp_path / "rows"), Settings(), tmp_path, 0)
    data: Any = trainer.train_dataset
    batch = trainer.data_collator([data[index] for index in range(3)])
    loss = trainer.compute_loss(model, batch)  # type: ignore[no-untyped-call]

    by_hand = []
    for item in items:
        chosen, rejected = raw_scores(
            model, tokenizer, [conversation(item, item.chosen), conversation(item, item.rejected)]
        )
        p, sigma = item.probability, 1 / (1 + exp(rejected - chosen))
        by_hand.append(-p * log(sigma) - (1 - p) * log(1 - sigma))
    assert loss.item() == pytest.approx(sum(by_hand) / 3, abs=1e-6)


def ranked(number: int, replies: str) -> list[Preference]:
    """All pairs of replies to one question, the best first."""
    pairs = list(combinations(replies, 2))
    return [
        preference(number).model_copy(
            update={"chosen": f"Yes, {better}.", "rejected": f"Yes, {worse}.", "weight": 1 / len(pairs)}
        )
        for better, worse in pairs
    ]


def by_hand(model: Any, tokenizer: Any, item: Preference) -> float:  # noqa: ANN401
    conversations = [conversation(item, item.chosen), conversation(item, item.rejected)]
    chosen, rejected = raw_scores(model, tokenizer, conversations)
    p, sigma = item.probability, 1 / (1 + exp(rejected - chosen))
    return -p * log(sigma) - (1 - p) * log(1 - sigma)


def test_pairs_of_a_ranking_share_the_weight_of_one(models: Path, tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(tiny_model(models), new_head=True, dtype="float64")
    items = [*ranked(1, "abcd"), preference(2, 0.7)]
    rows, _ = preference_rows(items)
    trainer = soft_reward_trainer(model, tokenizer, on_disk(rows, tmp_path / "rows"), Settings(), tmp_path, 0)
    data: Any = trainer.train_dataset
    loss = trainer.compute_loss(model, trainer.data_collator(list(data)))  # type: ignore[no-untyped-call]
    ranking = sum(by_hand(model, tokenizer, item) for item in items[:6]) / 6
    assert loss.item() == pytest.approx((ranking + by_hand(model, tokenizer, items[6])) / 2, abs=1e-6)


def test_pairs_together_pass_each_reply_once_with_the_same_loss(models: Path, tmp_path: Path) -> None:
    model, tokenizer = load_reward_model(tiny_model(models), new_head=True, dtype="float64")
    items = [*ranked(1, "abcd"), *ranked(2, "ef"), preference(3, 0.7)]
    rows, _ = preference_rows(items[::-1])
    settings = Settings(pairs_together=True)
    trainer = soft_reward_trainer(model, tokenizer, on_disk(rows, tmp_path / "rows"), settings, tmp_path, 0)
    data: Any = trainer.train_dataset
    assert (len(data), pairs_of(trainer)) == (3, 8)
    batch = trainer.data_collator(list(data))
    assert len(batch["input_ids"]) == 4 + 2 + 2
    loss = trainer.compute_loss(model, batch)  # type: ignore[no-untyped-call]
    first = sum(by_hand(model, tokenizer, item) for item in items[:6]) / 6
    others = [by_hand(model, tokenizer, item) for item in items[6:]]
    assert loss.item() == pytest.approx((first + sum(others)) / 3, abs=1e-6)


def test_a_reward_model_learns_from_pairs_together(models: Path, tmp_path: Path) -> None:
    pairs = [pair for number in range(6) for pair in ranked(number, "abc")]
    context = OneStage(tmp_path, {"sft_model": tiny_model(models)}, {"preferences": [*pairs, *HELD_OUT]})
    run(QUICK.model_copy(update={"pairs_together": True}), context)
    assert context.summarised(RewardSummary).pairs == 18
    lines = (tmp_path / "training_log.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["accuracy"] > json.loads(lines[0])["accuracy"] - 0.1
    assert json.loads(lines[-1])["loss"] < json.loads(lines[0])["loss"]


def test_scores_do_not_depend_on_what_is_scored_beside(models: Path) -> None:
    model, tokenizer = load_reward_model(tiny_model(models, "qwen3"), new_head=True)
    conversations = [conversation(MANY[0], "word " * count) for count in (9, 1, 30, 4)]
    together = raw_scores(model, tokenizer, conversations)
    assert together == pytest.approx([raw_scores(model, tokenizer, [each])[0] for each in conversations], abs=1e-6)
    assert len(set(together)) == 4


def test_weights_lie_where_a_processor_rounds_alike_whatever_file_they_are_read_from(models: Path) -> None:
    model, _ = load_reward_model(tiny_model(models), new_head=True)
    assert {weights.data_ptr() % 64 for weights in model.parameters()} == {0}


def test_it_learns_what_is_preferred_and_reports_on_held_out_preferences(models: Path, tmp_path: Path) -> None:
    contexts = [
        OneStage(tmp_path / name, {"sft_model": tiny_model(models)}, {"preferences": [*MANY, *HELD_OUT]})
        for name in "ab"
    ]
    for context in contexts:
        run(QUICK.model_copy(update={"members": 2}), context)
    first, second = contexts
    assert digest_of(first.output("reward_model")) == digest_of(second.output("reward_model"))
    files = {path.name for path in first.folder.iterdir()} - {CHECKPOINTS}
    assert files == {"reward_model", "training_log.jsonl", "training_log_1.jsonl"}
    dropped = {"held_out": 8, "equal_texts": 0, "too_long": 0, "rewritten": 0, "by_trainer": 0}
    summary = first.summarised(RewardSummary)
    assert (summary.pairs, summary.dropped) == (16, dropped)
    assert summary.quality is not None
    assert values(summary.quality) == {"all": (1.0, 8), "ai": (1.0, 4), "human": (1.0, 4)}
    assert summary.quality.length_correlation is None  # from four preferences that count

    # Both members' scores of the reference samples are normalised, so their mean is too.
    reference = reference_conversations(MANY, 256, 0)
    scores = score(first.output("reward_model"), reference)
    assert sum(each.mean for each in scores) / len(scores) == pytest.approx(0, abs=1e-5)
    members = json.loads((first.output("reward_model") / "normalisation.json").read_text())["members"]
    by_hand = [
        (raw_scores(*load_reward_model(first.output(f"reward_model/{number}")), reference[:1])[0] - member["mean"])
        / member["deviation"]
        for number, member in enumerate(members)
    ]
    assert by_hand[0] != by_hand[1]
    assert scores[0].mean == pytest.approx(sum(by_hand) / 2, abs=1e-5)
    assert scores[0].deviation == pytest.approx(abs(by_hand[0] - by_hand[1]) / 2, abs=1e-5)


def values(found: RewardQuality) -> dict[str, tuple[float, int]]:
    """Accuracies and what they are over, by source."""
    return {name: (share.value, share.n) for name, share in found.accuracy.items()}


def scored(chosen: float, rejected: float, probability: float, source: Literal["ai", "human"] = "ai") -> Scored:
    """As a single reward model has it whose scores are normalised already."""
    return Scored(preference(1, probability, source=source), chosen, rejected, 1 / (1 + exp(rejected - chosen)))


def test_quality_in_numbers() -> None:
    found = quality(
        [
            scored(log(3), 0, 0.8),  # sure to 3/4 of chosen, which 0.8 prefer
            scored(0, log(3), 0.7, "human"),  # sure to 3/4 of rejected, which 0.3 prefer
            scored(log(9), 0, 1.0),  # sure to 9/10 of chosen
        ]
        * 4,  # below 10 nothing would be said
        {"ai", "human"},
    )
    assert values(found) == {"all": (pytest.approx(2 / 3), 12), "ai": (1.0, 8), "human": (0.0, 4)}
    assert [each.predicted for each in found.calibration] == pytest.approx([0.75, 0.9])
    assert [each.observed for each in found.calibration] == pytest.approx([0.55, 1.0])  # (0.8 + 0.3) / 2
    assert [each.n for each in found.calibration] == [8, 4]
    assert found.calibration_error == pytest.approx((2 * 0.2 + 1 * 0.1) / 3)
    # Scores ln3, 0 | 0, ln3 | ln9, 0 in units of ln3: 1 0 0 1 2 0 about 2/3; words 2, 4 by turns, about 3:
    # Σ = −1/3 − 2/3·1 + 2/3 + 1/3 − 4/3 − 2/3 = −2, over √(10/3 · 6) = √20
    assert found.length_correlation == pytest.approx(-2 / sqrt(20))


def test_a_source_that_was_not_trained_on_changes_nothing_but_the_accuracy() -> None:
    own = [scored(log(3), 0, 0.8), scored(0, 1, 0.7)] * 5
    alone = quality(own, {"ai"})
    beside = quality([*own, *[scored(0, 5, 1.0, "human")] * 5], {"ai"})
    assert values(beside) == {"all": (pytest.approx(1 / 3), 15), "ai": (0.5, 10), "human": (0.0, 5)}
    assert beside.model_copy(update={"accuracy": alone.accuracy}) == alone
    assert None not in (alone.calibration_error, alone.length_correlation, alone.scores)
    assert alone.calibration


def test_an_ensemble_is_measured_as_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first member's numbers are ten times as far apart, and it is wrong; by the normalised ones the second wins.
    texts = {f"Yes, {number}.": number for number in range(2)} | {"A": 2, "B": 3}
    own = [(0.0, 20.0, 10.0, 14.0), (0.0, 2.0, 1.6, 0.4)]  # two reference samples, then chosen and rejected
    monkeypatch.setattr(reward, "load_reward_model", lambda folder: (int(folder.name), None))
    monkeypatch.setattr(
        reward, "raw_scores", lambda member, _, given: [own[member][texts[each[-1].content]] for each in given]
    )
    reference = [preference(number).model_copy(update={"rejected": f"Yes, {number}."}) for number in range(2)]
    held_out = preference(5, 0.8, split="held_out").model_copy(update={"chosen": "A", "rejected": "B"})
    found = measure(tmp_path, reference, [held_out], QUICK.model_copy(update={"members": 2}), seed=0)

    # About means of 10 and 1 with deviations of 10 and 1: chosen (0 + 0.6) / 2, rejected (0.4 - 0.6) / 2.
    assert found.accuracy["all"].value == 1.0
    assert found.scores is not None
    assert (found.scores.edges[0], found.scores.edges[-1]) == pytest.approx((-0.1, 0.3))
    # σ(10 - 14) = 0.018 and σ(1.6 - 0.4) = 0.769: 0.393 for chosen, so 0.607 for rejected, which 0.2 prefer.
    probability = 1 - (1 / (1 + exp(4)) + 1 / (1 + exp(-1.2))) / 2
    (only,) = found.calibration
    assert (only.predicted, only.observed) == pytest.approx((probability, 0.2))
    assert only.n == 1
    assert (found.mean, found.deviation) == (10.0, 10.0)


def test_a_member_that_scores_everything_alike_does_not_end_the_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward, "load_reward_model", lambda folder: (folder, None))
    monkeypatch.setattr(reward, "raw_scores", lambda _model, _tokenizer, given: [0.5] * len(given))
    found = measure(tmp_path, MANY, HELD_OUT, QUICK, seed=0)
    assert found.deviation == 0.0
    # Of the eight held out, people's four are of a source that nothing was trained on.
    assert values(found) == {"all": (0.0, 8), "ai": (0.0, 4), "human": (0.0, 4)}
    assert [(each.predicted, each.n) for each in found.calibration] == [(0.5, 4)]


def test_nothing_is_said_of_a_few_preferences_and_pairs_of_one_prompt_are_no_independent_ones() -> None:
    nine = quality([scored(log(3), 0, 0.8)] * 9, {"ai"})
    assert (nine.calibration_error, nine.length_correlation) == (None, None)
    ten = quality([scored(log(3), 0, 0.8)] * 10, {"ai"})
    assert ten.calibration_error == pytest.approx(0.05)  # 0.75 against 0.8
    # All are about one prompt, and of other prompts nothing is known.
    assert (ten.accuracy["all"].low, ten.accuracy["all"].high) == (0.0, 1.0)


def test_a_tie_is_no_right_answer() -> None:
    assert quality([scored(1, 1, 0.9)], {"ai"}).accuracy["all"].value == 0.0


def test_without_held_out_preferences_nothing_is_measured() -> None:
    found = quality([], {"ai"})
    assert found == RewardQuality(accuracy={})  # neither bins nor a correlation


def test_the_histogram_counts_every_score() -> None:
    histogram = quality([scored(1.0, 0.0, 0.9), scored(0.51, 0.0, 0.9)], {"ai"}).scores
    assert histogram is not None
    assert len(histogram.edges) == len(histogram.counts) + 1
    assert [(place, count) for place, count in enumerate(histogram.counts) if count] == [(0, 2), (10, 1), (19, 1)]


def test_the_reference_is_not_of_held_out_replies() -> None:
    drawn = reference_conversations([*MANY, *HELD_OUT], 100, seed=0)
    assert len(drawn) == 32  # 16 pairs
    assert {each[0].content for each in drawn} == {each.prompt.messages[0].content for each in MANY}
    assert reference_conversations(MANY, 5, seed=0) == reference_conversations(MANY[::-1], 5, seed=0)


def test_what_is_longer_than_the_training_allows_is_neither_a_reference_nor_measured_on(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sft_model = tiny_model(models, "llama")
    long = " ".join(["word"] * 200)
    given = [*MANY, *HELD_OUT, preference(90).model_copy(update={"rejected": long})]
    given += [preference(91, split="held_out").model_copy(update={"chosen": long})]
    scored: list[str] = []

    def noted(model: Any, tokenizer: Any, given: list[tuple[Message, ...]]) -> list[float]:  # noqa: ANN401
        scored.extend(each[-1].content for each in given)
        return raw_scores(model, tokenizer, given)

    monkeypatch.setattr(reward, "raw_scores", noted)
    context = OneStage(tmp_path, {"sft_model": sft_model}, {"preferences": given})
    run(QUICK.model_copy(update={"max_length": 64}), context)
    assert len(scored) == 32 + 1 + 2 * 8  # the short reply of the pair that is too long to train on is one
    assert long not in scored
    (said,) = context.warnings
    assert "1 held-out preference of 9" in said


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_train_the_head_which_is_saved(models: Path, tmp_path: Path, family: str) -> None:
    context = OneStage(tmp_path, {"sft_model": tiny_model(models, family)}, {"preferences": [*MANY, *HELD_OUT]})
    run(QUICK.model_copy(update={"lora": LoraSettings(rank=4)}), context)
    seed = seed_of(0, "reward", 0)
    before = load_reward_model(tiny_model(models, family), new_head=True, seed=seed)[0].state_dict()
    after = load_reward_model(context.output("reward_model/0"))[0].state_dict()
    assert before.keys() == after.keys()
    assert not before["score.weight"].equal(after["score.weight"])
    assert not before["model.layers.0.self_attn.q_proj.weight"].equal(after["model.layers.0.self_attn.q_proj.weight"])
    found = context.summarised(RewardSummary).quality
    assert found is not None
    assert found.accuracy["all"].value == 1.0


def test_a_head_that_is_lost_in_saving_is_noticed(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def forget_the_head(model: Any, folder: Path, **arguments: Any) -> None:  # noqa: ANN401
        state = {name: torch.zeros_like(w) if "score" in name else w for name, w in model.state_dict().items()}
        save(model, folder, **arguments | {"state_dict": state})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", forget_the_head)
    context = OneStage(tmp_path, {"sft_model": tiny_model(models)}, {"preferences": MANY})
    with pytest.raises(ModelError, match=r"reward_model/\.0\.partial: differs"):
        run(QUICK.model_copy(update={"checkpoint_every": 100}), context)
    assert not context.output("reward_model/0").exists()


def test_one_model_is_in_memory_at_a_time(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc

    from transformers import PreTrainedModel

    most = 0
    load = load_reward_model

    def loaded_models() -> int:
        return sum(issubclass(type(item), PreTrainedModel) and hasattr(item, "score") for item in gc.get_objects())

    def counted(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401
        nonlocal most
        loaded = load(*arguments, **named)
        most = max(most, loaded_models())
        return loaded

    gc.collect()
    before = loaded_models()
    monkeypatch.setattr(reward, "load_reward_model", counted)
    context = OneStage(tmp_path, {"sft_model": tiny_model(models)}, {"preferences": MANY})
    run(QUICK.model_copy(update={"members": 2}), context)
    assert most - before == 1


def test_a_training_that_was_killed_goes_on_to_the_same_weights(models: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
            if state.global_step == 8:
                raise KeyboardInterrupt

    def train(folder: Path, *callbacks: TrainerCallback) -> None:
        model, tokenizer = load_reward_model(tiny_model(models), new_head=True, seed=1)
        rows = on_disk(preference_rows(MANY)[0], folder / "checkpoints/rows")
        trainer = soft_reward_trainer(model, tokenizer, rows, QUICK, folder / "checkpoints", 1)
        for callback in callbacks:
            trainer.add_callback(callback)
        fit(trainer, log=folder / "log.jsonl", label="reward")
        save_model(trainer, folder / "model")

    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
    train(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", Kill())
    train(tmp_path / "killed")
    assert digest_of(tmp_path / "killed" / "model") == digest_of(tmp_path / "unbroken" / "model")
    assert (tmp_path / "killed" / "log.jsonl").read_text() == (tmp_path / "unbroken" / "log.jsonl").read_text()


def test_a_finished_member_is_not_trained_again(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = OneStage(tmp_path, {"sft_model": tiny_model(models)}, {"preferences": MANY})
    settings = QUICK.model_copy(update={"members": 2})
    train_member = reward.train_member
    trained: list[int] = []

    def kill_after_the_first(number: int, *rest: Any) -> int:  # noqa: ANN401
        if trained == [0]:
            trained.append(-1)
            raise KeyboardInterrupt
        trained.append(number)
        return train_member(number, *rest)

    monkeypatch.setattr(reward, "train_member", kill_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        run(settings, context)
    run(settings, context)
    assert trained == [0, -1, 1]


def test_what_the_trainer_drops_is_counted_also_where_a_kill_came_after_the_training(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = preference(99).model_copy(update={"chosen": "word " * 300})
    # As if we counted tokens otherwise than the trainer does, which then drops the long pair on its own.
    monkeypatch.setattr(reward, "fitting", lambda rows, _tokenizer, _max_length: (rows, {}))
    contexts = [
        OneStage(tmp_path / name, {"sft_model": tiny_model(models)}, {"preferences": [*MANY, long]})
        for name in ("unbroken", "killed")
    ]
    settings = QUICK.model_copy(update={"max_length": 256})
    run(settings, contexts[0])
    summary = contexts[0].summarised(RewardSummary)
    assert summary.pairs == 16
    assert summary.dropped == {"held_out": 0, "equal_texts": 0, "by_trainer": 1}

    def kill(*_: object) -> dict[str, object]:
        raise KeyboardInterrupt

    with monkeypatch.context() as until_measured:
        until_measured.setattr(reward, "measure", kill)
        with pytest.raises(KeyboardInterrupt):
            run(settings, contexts[1])
    run(settings, contexts[1])
    assert contexts[1].said == contexts[0].said
    for context in contexts:
        drop_checkpoints(context.folder)  # as a run does once the stage is done
    assert digest_of(contexts[1].folder) == digest_of(contexts[0].folder)


def test_preferences_in_shards_come_to_the_same(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "LARGE", 10)
    path, _ = shards.write_artifact(tmp_path, "preferences", [*MANY, *HELD_OUT])
    contexts = []
    for name, rows in (("held", [*MANY, *HELD_OUT]), ("streamed", shards.Shards(path, Preference))):
        contexts.append(OneStage(tmp_path / name, {"sft_model": tiny_model(models)}, {"preferences": rows}))  # type: ignore[dict-item]
        run(QUICK.model_copy(update={"epochs": 1.0, "pairs_together": True}), contexts[-1])
    held, streamed = contexts
    assert streamed.said == held.said
    assert digest_of(streamed.output("reward_model")) == digest_of(held.output("reward_model"))


def test_without_a_preference_to_learn_from_there_is_no_reward_model(models: Path, tmp_path: Path) -> None:
    equal = preference(1).model_copy(update={"rejected": "Yes, 1."})
    for name, rows, dropped in (("none", [], (0, 0)), ("useless", [equal, *HELD_OUT], (8, 1))):
        context = OneStage(tmp_path / name, {"sft_model": tiny_model(models)}, {"preferences": rows})
        run(QUICK, context)
        assert not has_members(context.output("reward_model"))
        assert [path.name for path in context.folder.iterdir()] == ["reward_model"]
        assert context.said == RewardSummary(
            pairs=0, dropped={"held_out": dropped[0], "equal_texts": dropped[1]}, quality=None
        )
        (warning,) = context.warnings
        assert "there is no reward model" in warning
    trained = OneStage(tmp_path / "trained", {"sft_model": tiny_model(models)}, {"preferences": MANY})
    run(QUICK.model_copy(update={"epochs": 1.0}), trained)
    assert has_members(trained.output("reward_model"))
    assert trained.warnings == []
