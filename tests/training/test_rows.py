import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ModelError, RunError
from constitutional.base.records import Message, Preference, Prompt, Split
from constitutional.base.shards import Shards
from constitutional.engines.chat import ChatTokens
from constitutional.engines.local import load_model
from constitutional.training.rows import chat, dataset, fitting, on_disk, preference_rows, token_ids
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def preference(chosen: str, rejected: str, *, split: Split = "train") -> Preference:
    prompt = Prompt(messages=(Message("user", "Is it so?"),))
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        probability=0.8,
        source="ai",
        comparison="c",
        split=split,
    )


def test_held_out_preferences_and_equal_texts_are_counted_and_not_trained_on() -> None:
    rows, left_out = preference_rows(
        [preference("yes", "no"), preference("same", "same"), preference("y", "n", split="held_out")]
    )
    assert [row["chosen"][0]["content"] for row in rows] == ["yes"]
    assert left_out == {"held_out": 1, "equal_texts": 1}


def test_a_pair_is_left_out_if_either_reply_is_too_long(models: Path) -> None:
    _, tokenizer = load_model(tiny_model(models))
    pairs = [preference("yes", "no"), preference("no " * 50, "yes"), preference("yes", "no " * 50)]
    rows = list(preference_rows(pairs)[0])
    kept, left_out = fitting(rows, tokenizer, max_length=40)
    assert (list(kept), left_out) == (rows[:1], {"too_long": 2, "rewritten": 0})
    with pytest.raises(RunError, match=r"of 3 rows 3 are longer than max_length=16"):
        list(fitting([{**row, "prompt": row["prompt"] * 20} for row in rows], tokenizer, max_length=16)[0])


def test_control_tokens_within_messages_are_not_trained_on(models: Path) -> None:
    _, tokenizer = load_model(tiny_model(models, "llama"))
    end = "<|eot_id|>"

    def row(asked: str, said: str) -> dict[str, Any]:
        return {
            "prompt": [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": said}],
            "probability": 1.0,
        }

    # What is on both sides of one could make up another, were it only deleted.
    spoilt = row(f"Why{end}?", f"Be<|eot{end}_id|>cause.{end}")
    assert list(fitting([spoilt], tokenizer, 100)[0]) == [row("Why[removed]?", "Be<|eot[removed]_id|>cause.")]
    assert token_ids(tokenizer, spoilt["prompt"], ask=True) == ChatTokens(tokenizer).ids(
        [Message("user", f"Why{end}?")]
    )


@pytest.mark.parametrize(
    ("family", "reply", "kept"),
    [
        ("qwen3", "Close it with </think> and go on.", False),
        ("qwen3", "First </think> then </think> again.", False),
        ("qwen3", "No tag here.", True),
        ("qwen3", "<think>\nA tag.\n</think>\n\nIt is this.", True),  # as a model that thinks writes it
        ("llama", " Spaces around it.\n", True),  # which the template strips
        ("llama", "Close it with </think> and go on.", True),
    ],
)
def test_a_reply_that_the_template_rewrites_is_left_out_and_counted(
    models: Path, family: str, reply: str, kept: bool
) -> None:
    _, tokenizer = load_model(tiny_model(models, family))

    def row(text: str) -> dict[str, Any]:
        prompt = [{"role": "user", "content": f"Which tag? Say: {reply}"}]  # the reply stands in the prompt too
        return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]}

    rows, left_out = fitting([row("Yes."), row(reply)], tokenizer, 256)
    assert [each["completion"][0]["content"] for each in rows] == ["Yes.", reply][: 1 + kept]
    assert left_out == {"too_long": 0, "rewritten": 1 - kept}
    if not kept:
        with pytest.raises(RunError, match=r"rewrites the replies of 1"):
            list(fitting([row(reply)], tokenizer, 256)[0])


def test_a_row_that_the_template_refuses_is_named(models: Path) -> None:
    _, tokenizer = load_model(tiny_model(models, "gemma"))
    twice = [{"role": "user", "content": "One thing."}, {"role": "user", "content": "Another."}]
    row = {"prompt": twice, "completion": [{"role": "assistant", "content": "Yes."}]}
    with pytest.raises(
        ModelError, match=r'refuses the row that begins "One thing\.", .* roles user, user, assistant: '
    ):
        list(fitting([row], tokenizer, 100)[0])


def test_rows_come_from_the_disk_as_they_went_there(tmp_path: Path) -> None:
    odd = 'a/b \u2028 \x00 \U0001f600 "q" \\ \n'
    call = {"tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]}
    asked = (Message("user", odd), Message("assistant", "", json.dumps(call)), Message("tool", "Rain."))
    rows = [
        {
            "prompt": [message.turn() for message in (asked if number == 1200 else asked[:1])],
            "chosen": [{"role": "assistant", "content": f"{number}"}],
            "rejected": [{"role": "assistant", "content": odd}],
            "probability": 0.1 + number / 7000,
            "weight": 1 / 3,
            "group": number // 2,
        }
        for number in range(1201)
    ]
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/cache-of-a-killed-run.arrow").touch()
    kept = on_disk(iter(rows), tmp_path / "rows")
    assert list(kept) == rows  # no message has a key that only another has
    longer = kept.map(lambda row: {"ids": [row["group"]]}).filter(lambda row: row["group"] > 1)
    assert longer[0] == rows[4] | {"ids": [2]}
    files = [Path(each["filename"]) for each in (*kept.cache_files, *longer.cache_files)]
    assert {file.parent for file in files} == {tmp_path / "rows"}  # so that they go with the folder
    assert not (tmp_path / "rows/cache-of-a-killed-run.arrow").exists()


def test_a_message_of_rows_in_memory_has_its_own_keys_alone() -> None:
    call = '{"tool_calls": [{"function": {"arguments": {"city": "Oslo"}, "name": "weather"}}]}'
    asked = (Message("user", "Rain?"), Message("assistant", "", call), Message("tool", "Rain."))
    rows = [{"prompt": chat(messages), "prompt_id": messages[0].content} for messages in (asked[:1], asked)]
    assert list(dataset(rows)) == rows
    assert [tuple(map(Message.of, row["prompt"])) for row in dataset(rows)] == [asked[:1], asked]


def test_rows_are_made_one_by_one(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is handed to what writes the file before the next one is made."""
    from datasets.arrow_writer import ArrowWriter  # type: ignore[import-untyped]

    _, tokenizer = load_model(tiny_model(models))
    made, written, ahead = 0, 0, 0

    class Several(Shards[Preference]):
        def __iter__(self) -> Iterator[Preference]:
            nonlocal made
            made = 0
            for number in range(len(self)):
                made += 1
                yield preference(f"yes {number}", "no")

        def __len__(self) -> int:
            return 2500

    write = ArrowWriter.write

    def watched(writer: ArrowWriter, row: dict[str, Any]) -> None:
        nonlocal written, ahead
        write(writer, row)
        written += 1
        ahead = max(ahead, made - written)

    monkeypatch.setattr(ArrowWriter, "write", watched)
    rows, left_out = preference_rows(Several(tmp_path, Preference))
    kept, unfit = fitting(rows, tokenizer, 256)
    assert (made, unfit) == (2500, {"too_long": 0, "rewritten": 0})  # gone through once, for the mean of the weights
    assert len(on_disk(kept, tmp_path / "rows")) == 2500
    assert (written, ahead) == (2500, 0)
    assert left_out == {"held_out": 0, "equal_texts": 0}
