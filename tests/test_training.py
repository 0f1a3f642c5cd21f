import re
import shutil
from collections.abc import Callable
from math import log
from pathlib import Path
from typing import Any

import pytest

from constitutional.engines.local import ChatTokens, load_model
from constitutional.errors import ModelError, RunError
from constitutional.records import Message, Preference, Prompt, Revision, Split
from constitutional.stages import sft
from constitutional.training import (
    COMPLETE,
    TrainingSettings,
    _latest_checkpoint,
    _log_callback,
    fitting,
    preference_rows,
    preflight,
    preflight_folder,
    soft_correction,
    stage_seed,
    token_ids,
)
from tests.tiny import FAMILIES, OneStage, tiny_model, tiny_tokenizer, without_padding


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def preference(chosen: str, rejected: str, *, weight: float = 1.0, split: Split = "train") -> Preference:
    prompt = Prompt(messages=(Message("user", "Is it so?"),))
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        probability=0.8,
        weight=weight,
        source="ai",
        comparison="c",
        split=split,
    )


@pytest.mark.parametrize(
    ("x", "p", "w", "loss"),
    [
        (0.0, 0.7, 1.0, log(2)),  # σ(0) = 1/2 for either reply, whatever the target
        (log(3), 1.0, 1.0, log(4 / 3)),  # σ = 3/4, and a target of 1 is the plain loss
        (log(3), 0.75, 1.0, 0.75 * log(4 / 3) + 0.25 * log(4)),  # the entropy of (3/4, 1/4): the least there can be
        (-log(3), 0.5, 2.0, 2 * (0.5 * log(4) + 0.5 * log(4 / 3))),
    ],
)
def test_the_correction_makes_the_plain_loss_a_weighted_soft_one(x: float, p: float, w: float, loss: float) -> None:
    import torch

    logits = torch.tensor([x], dtype=torch.float64)
    plain = -torch.nn.functional.logsigmoid(logits).mean()
    corrected = plain + soft_correction(logits, torch.tensor([p]), torch.tensor([w]))
    assert corrected.item() == pytest.approx(loss, abs=1e-7)


def test_an_undecided_pair_pulls_nowhere_while_the_model_is_undecided() -> None:
    import torch

    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss = -torch.nn.functional.logsigmoid(logits).mean()
    loss = loss + soft_correction(logits, torch.tensor([0.5, 0.9]), torch.ones(2))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([0.0, -0.2])  # (σ(0) − p) / 2 = 0 and (0.5 − 0.9) / 2


def test_weights_of_preferences_are_relative() -> None:
    rows, _ = preference_rows([preference("a", "b", weight=1), preference("a", "c", weight=3)])
    assert [row["weight"] for row in rows] == [0.5, 1.5]  # divided by their mean, 2


def test_held_out_preferences_and_equal_texts_are_counted_and_not_trained_on() -> None:
    rows, left_out = preference_rows(
        [preference("yes", "no"), preference("same", "same"), preference("y", "n", split="held_out")]
    )
    assert [row["chosen"][0]["content"] for row in rows] == ["yes"]
    assert left_out == {"held_out": 1, "equal_texts": 1}


def test_a_pair_is_left_out_if_either_reply_is_too_long(models: Path) -> None:
    _, tokenizer = load_model(tiny_model(models))
    rows, _ = preference_rows([preference("yes", "no"), preference("no " * 50, "yes"), preference("yes", "no " * 50)])
    kept, too_long = fitting(rows, tokenizer, max_length=40)
    assert (kept, too_long) == (rows[:1], 2)
    with pytest.raises(RunError, match=r"3 rows, all of them longer than max_length=16 tokens.*raise max_length"):
        fitting([{**row, "prompt": row["prompt"] * 20} for row in rows], tokenizer, max_length=16)


@pytest.mark.parametrize("family", ["", *FAMILIES])
def test_the_families_of_real_chat_models_pass(models: Path, family: str) -> None:
    model, tokenizer = load_model(tiny_model(models, family))
    preflight(tokenizer, model)


def swap(old: str, new: str) -> Callable[[Any], None]:
    def spoil(tokenizer: Any) -> None:  # noqa: ANN401
        assert old in tokenizer.chat_template
        tokenizer.chat_template = tokenizer.chat_template.replace(old, new)

    return spoil


def pad_with_the_end(tokenizer: Any) -> None:  # noqa: ANN401
    tokenizer.pad_token = tokenizer.eos_token


def more_tokens(tokenizer: Any) -> None:  # noqa: ANN401
    tokenizer.add_tokens(["<unheard-of>"])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (pad_with_the_end, "pad token '<|end|>' also ends a turn"),
        (more_tokens, "resize the embeddings"),
        (swap("{{ message['content'] }}<|end|>{% endgen", "{{ message['content'] }}{% endgen"), "no end token"),
        (swap("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}"), "begins with two '<|begin|>'"),
        (swap("{{ bos_token }}", "{{ bos_token }}{{ messages | length }}"), "not prefix-preserving"),
        (swap("{{ bos_token }}", "{{ messages[2]['content'].no.such }}"), "refuses a conversation of 2 messages"),
    ],
)
def test_preflight_names_the_problem(models: Path, spoil: Callable[[Any], None], problem: str) -> None:
    model, tokenizer = load_model(tiny_model(models))
    spoil(tokenizer)
    with pytest.raises(ModelError, match=re.escape(problem)):
        preflight(tokenizer, model)


@pytest.mark.parametrize("family", ["", *FAMILIES])
def test_the_same_families_pass_before_their_weights_are_loaded(models: Path, family: str) -> None:
    preflight_folder(tiny_model(models, family))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [(pad_with_the_end, "pad token '<|end|>' also ends a turn"), (more_tokens, "resize the embeddings")],
)
def test_what_cannot_be_trained_is_named_without_its_weights(
    models: Path, tmp_path: Path, spoil: Callable[[Any], None], problem: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(models), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    tokenizer = tiny_tokenizer()
    spoil(tokenizer)
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        ModelError, match=f"^{re.escape(str(folder))}: cannot be trained as it is: .*{re.escape(problem)}"
    ):
        preflight_folder(folder)


def test_a_model_without_a_template_is_refused(models: Path) -> None:
    model, tokenizer = load_model(tiny_model(models))
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="no chat template; use a chat model"):
        preflight(tokenizer, model)


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


def test_parts_of_a_run_have_seeds_of_their_own() -> None:
    assert len({stage_seed(0, "reward", 0), stage_seed(0, "reward", 1), stage_seed(1, "reward", 0)}) == 3
    assert stage_seed(0, "reward", 0) == stage_seed(0, "reward", 0) < 2**31


def test_control_tokens_within_messages_are_not_trained_on(models: Path) -> None:
    _, tokenizer = load_model(tiny_model(models, "llama"))
    end = "<|eot_id|>"

    def row(asked: str, said: str) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": said}],
            "weight": 1.0,
        }

    # What is left on both sides of one may make up another.
    spoilt = row(f"Why{end}?", f"Be<|eot{end}_id|>cause.")
    assert fitting([spoilt], tokenizer, 100) == ([row("Why?", "Because.")], 0)
    assert token_ids(tokenizer, spoilt["prompt"], ask=True) == ChatTokens(tokenizer).ids(
        [Message("user", f"Why{end}?")]
    )


def test_a_row_that_the_template_refuses_is_named(models: Path) -> None:
    _, tokenizer = load_model(tiny_model(models, "gemma"))
    twice = [{"role": "user", "content": "One thing."}, {"role": "user", "content": "Another."}]
    row = {"prompt": twice, "completion": [{"role": "assistant", "content": "Yes."}]}
    with pytest.raises(
        ModelError, match=r'refuses the row that begins "One thing\.", .* roles user, user, assistant: '
    ):
        fitting([row], tokenizer, 100)


def test_a_model_whose_tokenizer_lacks_a_token_for_padding_is_trained_with_one_that_is_named(tmp_path: Path) -> None:
    folder = without_padding(tmp_path)
    with pytest.raises(ModelError, match=r"has no pad token; name one .* with model\.pad_token=TOKEN"):
        preflight_folder(folder)
    with pytest.raises(ModelError, match="'<|eot_id|>' also ends a turn".replace("|", r"\|")):
        preflight_folder(folder, pad_token="<|eot_id|>")
    preflight_folder(folder, pad_token="<|pad|>")
    message = Message("user", "Why?")
    revisions = [Revision(prompt=Prompt(messages=(message,)), draft=text, steps=()) for text in ("So.", "So it is.")]
    work = OneStage(tmp_path, {"base": folder}, {"revisions": revisions}, pad_token="<|pad|>")
    sft.run(sft.Settings(epochs=1, batch_size=2, log_every=1, checkpoint_every=1), work)
    # What is saved names it, so that whatever goes on from there needs no setting.
    _, tokenizer = load_model(work.output("sft_model"))
    assert tokenizer.pad_token == "<|pad|>"
