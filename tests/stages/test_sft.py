import json
from pathlib import Path
from typing import Any

import pytest

from constitutional.engines.local import load_model
from constitutional.errors import RunError
from constitutional.files import digest_of
from constitutional.records import Message, Prompt, Revision, RevisionStep, Split
from constitutional.stages.sft import Settings, examples, rows, run, sft_trainer
from constitutional.training import LoraSettings, fit, load_policy, save_model
from tests.tiny import FAMILIES, OneStage, tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def revision(number: int, draft: str, *steps: str, problem: str | None = None, split: Split = "train") -> Revision:
    return Revision(
        prompt=Prompt(messages=(Message("user", f"Question {number}?"),), split=split),
        draft=draft,
        steps=tuple(
            RevisionStep(principle="calm", principle_text="Be calm.", critique="", found_nothing=False, revision=step)
            for step in steps
        ),
        problem=problem,
    )


MANY = [revision(number, f"draft {number}", f"better {number}", f"best {number}") for number in range(16)]
QUICK = Settings(epochs=4, batch_size=4, learning_rate=0.01, log_every=2, checkpoint_every=4)


def replies(settings: Settings, *revisions: Revision) -> list[tuple[str, str]]:
    return [(each.reply, each.kind) for each in examples(revisions, settings, seed=0).examples]


def test_the_last_revision_is_trained_on_unless_all_are_asked_for() -> None:
    item = revision(1, "draft", "better", "best")
    assert replies(Settings(helpful_share=0), item) == [("best", "revision")]
    assert replies(Settings(helpful_share=0, rounds="all"), item) == [("better", "revision"), ("best", "revision")]


def test_a_draft_that_was_never_revised_is_its_own_revision() -> None:
    assert replies(Settings(helpful_share=0, rounds="all"), revision(1, "draft")) == [("draft", "revision")]


def test_what_is_left_out_is_counted_by_reason() -> None:
    found = examples(
        [
            revision(1, "draft", "cut o", problem="cut off"),
            revision(2, "draft", "for evaluation", split="held_out"),
            revision(3, "draft", " \n"),
            revision(4, "draft", "same", "same"),
        ],
        Settings(helpful_share=0, rounds="all"),
        seed=0,
    )
    assert [each.reply for each in found.examples] == ["same"]
    assert found.left_out == {"problem": 1, "held_out": 1, "empty": 1, "repeated": 1}


def test_the_helpful_share_is_of_all_examples() -> None:
    found = examples(MANY, Settings(helpful_share=0.2), seed=0).examples
    helpful = [each for each in found if each.kind == "helpful"]
    assert (len(found), len(helpful)) == (20, 4)  # 16 revisions are 80%, so 4 drafts are 20%
    assert len({each.reply for each in helpful}) == 4
    assert all(each.reply.startswith("draft") for each in helpful)


def test_more_drafts_than_there_are_cannot_be_drawn() -> None:
    assert len(examples(MANY, Settings(helpful_share=0.75), seed=0).examples) == 32  # 16 of the 48 that were wanted


def test_which_drafts_are_drawn_does_not_depend_on_their_order() -> None:
    one, other = (examples(items, Settings(helpful_share=0.2), seed=3) for items in (MANY, MANY[::-1]))
    assert {each.reply for each in one.examples} == {each.reply for each in other.examples}


def test_nothing_to_train_on_says_why() -> None:
    found = examples([revision(1, "d", "r", problem="empty reply")], Settings(), seed=0)
    with pytest.raises(RunError, match=r"No revision is left to train on \(\{'problem': 1.*look at the problems"):
        rows(found)


@pytest.mark.parametrize(("family", "end"), [("", "<|end|>"), *((name, each.end) for name, each in FAMILIES.items())])
def test_the_loss_is_on_the_reply_and_the_token_that_ends_it(
    models: Path, tmp_path: Path, family: str, end: str
) -> None:
    import torch

    model, tokenizer = load_model(tiny_model(models, family))
    prompt = [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "An earlier reply."},
        {"role": "user", "content": "Two?"},
    ]
    row = {"prompt": prompt, "completion": [{"role": "assistant", "content": "The reply."}]}
    trainer = sft_trainer(model, tokenizer, [row], QUICK, tmp_path, 0)
    data: Any = trainer.train_dataset
    ids, labels = torch.tensor(data[0]["input_ids"]), torch.tensor(data[0]["labels"])
    learned = str(tokenizer.decode(ids[labels != -100]))
    assert learned.split(end) in (["The reply.", ""], ["The reply.", "\n"], ["<think>\n\n</think>\n\nThe reply.", "\n"])

    batch = trainer.data_collator([data[0]])
    loss = trainer.compute_loss(model, dict(batch))  # type: ignore[no-untyped-call]
    logprobs = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    places = [place for place, label in enumerate(labels) if label != -100]
    by_hand = -sum(logprobs[place - 1, ids[place]] for place in places) / len(places)
    assert loss.item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_training_makes_the_revisions_likelier_and_the_same_seed_gives_the_same_files(
    models: Path, tmp_path: Path
) -> None:
    works = [OneStage(tmp_path / name, {"base": tiny_model(models)}, {"revisions": MANY}) for name in ("a", "b")]
    for work in works:
        run(QUICK.model_copy(update={"helpful_share": 0.2}), work)
    first, second = works
    assert digest_of(first.output("sft_model")) == digest_of(second.output("sft_model"))
    assert first.output("training_log.jsonl").read_bytes() == second.output("training_log.jsonl").read_bytes()
    log = [json.loads(line) for line in first.output("training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]  # 20 examples, 5 batches, 4 epochs
    assert log[-1]["loss"] < log[0]["loss"] - 1
    assert first.notes == {
        "examples": {"revision": 16, "helpful": 4, "trained_on": 20},
        "dropped": {"problem": 0, "held_out": 0, "empty": 0, "repeated": 0, "too_long": 0, "by_trainer": 0},
        "steps": 20,
    }
    assert sorted(path.name for path in first.folder.iterdir()) == ["sft_model", "training_log.jsonl"]


def test_a_training_that_was_killed_goes_on_to_the_same_weights_and_log(models: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
            if state.global_step == 11:
                raise KeyboardInterrupt

    def train(folder: Path, *callbacks: TrainerCallback) -> None:
        model, tokenizer = load_policy(tiny_model(models), QUICK)
        trainer = sft_trainer(model, tokenizer, rows(examples(MANY, QUICK, 0)), QUICK, folder / "checkpoints", 0)
        for callback in callbacks:
            trainer.add_callback(callback)
        fit(trainer, log=folder / "log.jsonl", label="sft")
        save_model(trainer, folder / "model")

    for name in ("unbroken", "killed"):
        (tmp_path / name).mkdir()
    train(tmp_path / "unbroken")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", Kill())
    assert not (tmp_path / "killed" / "model").exists()
    with (tmp_path / "killed" / "log.jsonl").open("a") as file:
        file.write('{"step": 12, "lo')  # as a kill may leave it
    train(tmp_path / "killed")
    assert digest_of(tmp_path / "killed" / "model") == digest_of(tmp_path / "unbroken" / "model")
    assert (tmp_path / "killed" / "log.jsonl").read_text() == (tmp_path / "unbroken" / "log.jsonl").read_text()


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_trained_and_merged(models: Path, tmp_path: Path, family: str) -> None:
    base = tiny_model(models, family)
    work = OneStage(tmp_path, {"base": base}, {"revisions": MANY})
    run(QUICK.model_copy(update={"epochs": 1.0, "lora": LoraSettings(rank=4)}), work)
    before, after = (load_model(folder)[0].state_dict() for folder in (base, work.output("sft_model")))
    changed = {name.rsplit(".", 2)[-2] for name in before if not before[name].equal(after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert before.keys() == after.keys()
