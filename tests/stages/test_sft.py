import json
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import InputError, RunError
from constitutional.base.files import digest_of
from constitutional.base.records import Message, Prompt, Revision, RevisionStep, SftExample, Split
from constitutional.engines.local import load_model
from constitutional.judging.people import PeoplesWork
from constitutional.stages.sft import (
    Settings,
    SftExamples,
    examples,
    read_helpful,
    run,
    sft_trainer,
)
from constitutional.stages.summaries import SftSummary
from constitutional.training.rows import on_disk, supervised_rows
from constitutional.training.saving import save_model
from constitutional.training.trl import LoraSettings, fit, load_policy
from tests.tiny import FAMILIES, OneStage, tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def revision(
    number: int,
    draft: str,
    *steps: str,
    problem: str | None = None,
    split: Split = "train",
    passed: bool | tuple[bool, ...] = False,
) -> Revision:
    """With `passed`, the critiques found nothing wrong: all of them, or each as it says."""
    found = passed if isinstance(passed, tuple) else (passed,) * len(steps)
    return Revision(
        prompt=Prompt(messages=(Message("user", f"Question {number}?"),), split=split),
        draft=draft,
        steps=tuple(
            RevisionStep(principle="calm", principle_text="Be calm.", critique="", found_nothing=nothing, revision=step)
            for step, nothing in zip(steps, found, strict=True)
        ),
        problem=problem,
    )


# Revised although no critique found anything wrong: each draft is a helpful sample that is not there yet.
MANY = [revision(number, f"draft {number}", f"better {number}", f"best {number}", passed=True) for number in range(16)]
QUICK = Settings(epochs=4, batch_size=4, learning_rate=0.01, log_every=2, checkpoint_every=4)


def replies(settings: Settings, *revisions: Revision) -> list[tuple[str, str]]:
    return [(example.reply, example.kind) for example in examples(revisions, settings, seed=0).examples]


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
    assert [example.reply for example in found.examples] == ["same"]
    assert found.left_out == {"problem": 1, "held_out": 1, "empty": 1, "repeated": 1}


def test_the_helpful_share_is_of_all_examples() -> None:
    found = examples(MANY, Settings(helpful_share=0.2), seed=0).examples
    helpful = [each for each in found if each.kind == "helpful"]
    assert (len(found), len(helpful)) == (20, 4)  # 16 revisions are 80%, so 4 drafts are 20%
    assert len({each.reply for each in helpful}) == 4
    assert all(each.reply.startswith("draft") for each in helpful)


def test_more_drafts_than_there_are_cannot_be_drawn_and_the_missing_are_counted() -> None:
    found = examples(MANY, Settings(helpful_share=0.75), seed=0)
    assert (len(found.examples), found.helpful_missing) == (32, 32)  # 16 of the 48 that were wanted
    assert examples(MANY, Settings(helpful_share=0.2), seed=0).helpful_missing == 0


def helpful(found: SftExamples) -> list[str]:
    return sorted(example.reply for example in found.examples if example.kind == "helpful")


def test_a_draft_that_a_critique_condemned_is_no_helpful_sample() -> None:
    items = [
        revision(1, "condemned at once", "better", "best", passed=(False, True)),
        revision(2, "condemned later", "better", "best", passed=(True, False)),
        revision(3, "never judged"),
        revision(4, "passed", "better", "best", passed=True),
    ]
    found = examples(items, Settings(helpful_share=0.5), seed=0)
    assert helpful(found) == ["passed"]
    assert found.helpful_missing == 3  # 4 replies are no helpful samples, so as many were wanted


def test_a_draft_that_passed_and_was_kept_is_a_helpful_sample_and_is_trained_on_once() -> None:
    kept = [revision(number, f"fine {number}", f"fine {number}", passed=True) for number in range(3)]
    changed = [revision(number, f"bad {number}", f"good {number}") for number in range(3, 30)]
    found = examples([*kept, *changed], Settings(helpful_share=0.1), seed=0)
    assert len(found.examples) == 30
    assert helpful(found) == ["fine 0", "fine 1", "fine 2"]  # 3 of 30 are the 10% that were asked for
    assert found.helpful_missing == 0
    assert examples([*kept[:2], *changed], Settings(helpful_share=0.1), seed=0).helpful_missing == 1


# Helpful samples from a file.


def samples_file(folder: Path, *rows: object) -> Path:
    path = folder / "helpful.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    return path


def test_helpful_samples_of_a_file_take_the_drafts_place_and_each_is_trained_on_once(tmp_path: Path) -> None:
    rows = [{"prompt": f"How {number}?", "response": f"So {number}."} for number in range(9)]
    path = samples_file(tmp_path, *rows, rows[0], {"prompt": "Question 1?", "response": "best 1"})
    offered, work, unsigned = read_helpful(path)
    assert (work, unsigned) == (None, 11)  # nobody says who wrote them
    found = examples(MANY, Settings(helpful_share=0.2), 0, offered)
    assert len(helpful(found)) == 4  # 16 revisions are 80%
    assert set(helpful(found)) <= {f"So {number}." for number in range(9)}
    every = examples(MANY, Settings(helpful_share=0.5), 0, offered)
    # 16 were wanted; the row that stands there twice counts once, and what a revision says already is none.
    assert helpful(every) == [f"So {number}." for number in range(9)]
    assert every.helpful_missing == 7
    assert helpful(examples(MANY, Settings(helpful_share=0.2), 0, offered[::-1])) == helpful(found)


@pytest.mark.parametrize(
    "line",
    [
        "How?",
        "[1]",
        '"How?"',
        "{}",
        '{"prompt": "How?"}',
        '{"prompt": "How?", "response": " "}',
        '{"prompt": ["How?"], "response": "So."}',
        '{"prompt": "How?", "response": "So.", "split": "train"}',
        '{"prompt": "How?", "response": "\\ud800"}',
        '{"prompt": "How?", "response": "So.", "rater": " "}',
        '{"prompt": "How?", "response": "So.", "rater": 7}',
        '{"prompt": "How?", "response": "So.", "seconds": -1}',
        '{"prompt": "How?", "response": "So.", "seconds": "12"}',
        '{"prompt": "How?", "response": "So.", "exposed": "yes"}',
        "[" * 100_000,
    ],
)
def test_a_line_that_is_no_helpful_sample_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "helpful.jsonl"
    path.write_text('{"prompt": "How?", "response": "So."}\n\n' + line)
    with pytest.raises(InputError, match=r"expected \{\"prompt\"") as caught:
        read_helpful(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_who_wrote_helpful_samples_in_what_time_is_counted(tmp_path: Path) -> None:
    row = {"prompt": "How?", "response": "So."}
    path = samples_file(
        tmp_path,
        row | {"rater": "ada", "seconds": 90, "exposed": True},
        row | {"rater": "ada", "seconds": 30.5, "exposed": False},
        row | {"rater": "bob", "seconds": None},
        row | {"seconds": 1000.0},  # nobody's
    )
    read = read_helpful(path)
    assert [example.reply for example in read.examples] == ["So."] * 4
    assert read.unsigned == 1
    assert read.work == PeoplesWork(
        raters=2, votes=3, skips=0, timed=2, seconds=120.5, noted=2, exposures=1, simulated=0
    )


def test_a_file_without_samples_or_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no helpful sample"):
        read_helpful(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match="no such file"):
        read_helpful(tmp_path / "nowhere.jsonl")


def test_helpful_samples_on_evaluation_prompts_are_left_out(models: Path, tmp_path: Path) -> None:
    secret = Prompt(messages=(Message("system", "Be brief."), Message("user", " How 1?\n")), split="held_out")
    context = OneStage(tmp_path, {"base": tiny_model(models)}, {"revisions": MANY, "prompts": [secret]})
    rows = ({"prompt": f"How {number}?", "response": f"So {number}.", "rater": "ada"} for number in (1, 2))
    path = samples_file(tmp_path, *rows)
    run(QUICK.model_copy(update={"epochs": 1.0, "helpful": path}), context)
    # 16 / 9 are two, rounded; one of the file's is on a prompt that is held out, but for the spaces
    # around it and the system's message that the run puts before prompts.
    summary = context.summarised(SftSummary)
    assert (summary.revision, summary.helpful, summary.helpful_missing, summary.trained_on) == (16, 1, 1, 17)
    assert summary.helpful_on_evaluation_prompts == 1
    assert summary.work is not None
    assert (summary.work.raters, summary.work.votes, summary.work.timed, summary.unsigned) == (1, 2, 0, 0)


# Training.


def test_which_drafts_are_drawn_does_not_depend_on_their_order() -> None:
    one, other = (examples(items, Settings(helpful_share=0.2), seed=3) for items in (MANY, MANY[::-1]))
    assert {example.reply for example in one.examples} == {example.reply for example in other.examples}


def test_nothing_to_train_on_says_why(tmp_path: Path) -> None:
    context = OneStage(tmp_path, rows={"revisions": [revision(1, "d", "r", problem="empty reply")]})
    with pytest.raises(RunError, match=r"No revision is left to train on \(\{'problem': 1.*look at the problems"):
        run(Settings(), context)


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
    trainer = sft_trainer(model, tokenizer, on_disk([row], tmp_path / "rows"), QUICK, tmp_path, 0)
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
    contexts = [OneStage(tmp_path / name, {"base": tiny_model(models)}, {"revisions": MANY}) for name in ("a", "b")]
    for context in contexts:
        run(QUICK.model_copy(update={"helpful_share": 0.2}), context)
    first, second = contexts
    assert digest_of(first.output("sft_model")) == digest_of(second.output("sft_model"))
    assert first.output("training_log.jsonl").read_bytes() == second.output("training_log.jsonl").read_bytes()
    log = [json.loads(line) for line in first.output("training_log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]  # 20 examples, 5 batches, 4 epochs
    assert log[-1]["loss"] < log[0]["loss"] - 1
    assert first.said == SftSummary(
        nothing_revised=False,
        revision=16,
        helpful=4,
        helpful_missing=0,
        helpful_on_evaluation_prompts=0,
        trained_on=20,
        steps=20,
        dropped={
            "problem": 0,
            "held_out": 0,
            "empty": 0,
            "repeated": 0,
            "too_long": 0,
            "rewritten": 0,
            "by_trainer": 0,
        },
    )
    assert first.rows["sft_examples"] == list(examples(MANY, Settings(helpful_share=0.2), seed=0).examples)
    assert first.warnings == []
    assert sorted(path.name for path in first.folder.iterdir()) == ["checkpoints", "sft_model", "training_log.jsonl"]


def test_where_no_draft_was_revised_the_model_stays_as_it_is(models: Path, tmp_path: Path) -> None:
    base = tiny_model(models)
    passed = [revision(number, f"draft {number}", f"draft {number}", passed=True) for number in range(4)]
    # Found fault with, and left as it was all the same.
    passed.append(revision(4, "draft 4", "draft 4"))
    context = OneStage(tmp_path, {"base": base}, {"revisions": passed})
    run(QUICK, context)
    before, after = (load_model(folder)[0].state_dict() for folder in (base, context.output("sft_model")))
    assert before.keys() == after.keys()
    assert all(before[name].equal(after[name]) for name in before)
    summary = context.summarised(SftSummary)
    assert summary.nothing_revised
    assert (summary.revision, summary.helpful, summary.helpful_missing, summary.trained_on) == (0, 0, 0, 0)
    assert summary.steps == 0
    assert summary.dropped["nothing_revised"] == len(passed)
    assert context.rows["sft_examples"] == []  # so that PPO-ptx learns none of the model's own drafts
    (warning,) = context.warnings
    assert "the SFT model is the base model" in warning


def test_own_drafts_that_nobody_criticised_and_helpful_samples_of_a_file_are_something_to_learn() -> None:
    untouched = revision(1, "draft", "draft", passed=True)
    assert examples([untouched], QUICK, 0).nothing_revised
    assert not examples([untouched, revision(2, "draft", "better")], QUICK, 0).nothing_revised
    assert not examples([revision(1, "draft")], QUICK, 0).nothing_revised
    others = [SftExample(prompt=untouched.prompt, reply="a person's reply", kind="helpful")]
    half = QUICK.model_copy(update={"helpful_share": 0.5})
    assert not examples([untouched], half, 0, others).nothing_revised
    none_taken = QUICK.model_copy(update={"helpful_share": 0.0})
    assert examples([untouched], none_taken, 0, others).nothing_revised
    assert examples([untouched], half, 0, []).nothing_revised  # all of the file's were on held-out prompts


def test_a_training_that_was_killed_goes_on_to_the_same_weights_and_log(models: Path, tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: object) -> None:  # noqa: ANN401, ARG002
            if state.global_step == 11:
                raise KeyboardInterrupt

    def train(folder: Path, *callbacks: TrainerCallback) -> None:
        model, tokenizer = load_policy(tiny_model(models), QUICK)
        rows = on_disk(supervised_rows(examples(MANY, QUICK, 0).examples), folder / "checkpoints/rows")
        trainer = sft_trainer(model, tokenizer, rows, QUICK, folder / "checkpoints", 0)
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
    context = OneStage(tmp_path, {"base": base}, {"revisions": MANY})
    run(QUICK.model_copy(update={"epochs": 1.0, "lora": LoraSettings(rank=4)}), context)
    before, after = (load_model(folder)[0].state_dict() for folder in (base, context.output("sft_model")))
    changed = {name.rsplit(".", 2)[-2] for name in before if not before[name].equal(after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert before.keys() == after.keys()
