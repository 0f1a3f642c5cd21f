import logging
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.records import Message
from constitutional.engines.base import TooLongError
from constitutional.engines.chat import ChatTokens, load_tokenizer, room_to_reply
from tests.tiny import tiny_model

QUESTION = (Message("user", "How do I plant a tree?"),)


def test_lengths_are_checked_without_the_models_weights(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path)
    (folder / "model.safetensors").unlink()
    short, long = (Message("user", "Why?"),), (Message("user", "Why? " * 200),)
    check = room_to_reply(folder, 256)
    check(short)
    with pytest.raises(TooLongError, match=r'begins "Why\? Why\?.* the reply may have 256'):
        check(long)


def test_a_text_that_is_too_long_is_no_librarys_business(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    tokenizer = load_tokenizer(tiny_model(tmp_path))
    tokenizer.model_max_length = 4
    assert len(tokenizer("Why? Why? Why? Why?")["input_ids"]) > 4
    assert "longer than" not in caplog.text


def test_arguments_of_the_template_are_part_of_it(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "qwen3")
    no_thought = "<think>\n\n</think>\n\n"

    def asked(tokenizer: Any) -> str:  # noqa: ANN401
        return str(tokenizer.decode(ChatTokens(tokenizer).ids(QUESTION)))

    plainly = asked(load_tokenizer(folder))
    assert no_thought not in plainly
    said: dict[str, bool | str] = {"enable_thinking": False, "unused": 'a "quoted" text\nof two lines {{ x }} %}'}
    tokenizer = load_tokenizer(folder, template=said)
    assert asked(tokenizer) == plainly + no_thought
    tokenizer.save_pretrained(tmp_path / "saved")  # as a training does, whose model is then loaded by the same settings
    for template in (None, said):
        again = load_tokenizer(tmp_path / "saved", template=template)
        assert again.chat_template == tokenizer.chat_template
