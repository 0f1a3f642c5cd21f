import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from constitutional.base.records import Message
from constitutional.sandbox import MODEL_FOLDER
from scripts.sandbox_training.corpus import chat_tokens
from scripts.sandbox_training.tokenizer import Encoder

CHAT = [
    Message("user", "How do I bake bread? 12 loaves."),
    Message("assistant", "To bake bread, set aside about one hour."),
    Message("user", "Judge it.\n\nPrinciple: Don't butter people up."),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(MODEL_FOLDER)
    return loaded


@pytest.mark.parametrize(
    "text",
    [
        "plain words",
        "  two  spaces \n\n and\ttabs ",
        "naïve café — “quotes”",
        "日本語 🙂\u0000\u200b",
        "{{ x }} {% raw %}",
        "'A' * 10",
    ],
)
def test_any_text_comes_back_unchanged(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_pad_bos_and_eos_are_distinct(tokenizer: PreTrainedTokenizerBase) -> None:
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3


def test_training_encodes_chats_exactly_as_the_chat_template_does(tokenizer: PreTrainedTokenizerBase) -> None:
    dicts = [{"role": message.role, "content": message.content} for message in CHAT]
    text = str(tokenizer.apply_chat_template(dicts, tokenize=False, add_generation_prompt=True))
    assert chat_tokens(CHAT, Encoder(MODEL_FOLDER)) == tokenizer.encode(text, add_special_tokens=False)


def test_the_chat_template_keeps_what_it_wrote_when_a_turn_is_added(tokenizer: PreTrainedTokenizerBase) -> None:
    dicts = [{"role": message.role, "content": message.content} for message in CHAT]
    shorter = str(tokenizer.apply_chat_template(dicts[:2], tokenize=False))
    assert str(tokenizer.apply_chat_template(dicts, tokenize=False)).startswith(shorter)
