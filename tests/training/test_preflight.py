import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.records import Message, Prompt, Revision
from constitutional.engines.local import load_model
from constitutional.stages import sft
from constitutional.training.preflight import preflight, preflight_folder
from tests.tiny import FAMILIES, OneStage, chat_template, tiny_model, tiny_tokenizer, without_padding


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


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


@pytest.mark.parametrize(
    ("template", "remedy"),
    [
        ("deepseek_r1_distill", "take another model"),
        ("nemotron_3_nano", 'type "model.template={enable_thinking: false}"'),
    ],
)
def test_a_template_that_begins_a_thought_is_refused_with_the_way_out(models: Path, template: str, remedy: str) -> None:
    model, tokenizer = load_model(tiny_model(models, "qwen3"))
    tokenizer.chat_template = chat_template(template)
    with pytest.raises(
        ModelError, match=rf"not prefix-preserving.*begins a thought before a reply.*{re.escape(remedy)}"
    ):
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


def test_a_model_whose_tokenizer_lacks_a_token_for_padding_is_trained_with_one_that_is_named(tmp_path: Path) -> None:
    folder = without_padding(tmp_path)
    with pytest.raises(ModelError, match=r"has no pad token; name one .* with model\.pad_token=TOKEN"):
        preflight_folder(folder)
    with pytest.raises(ModelError, match="'<|eot_id|>' also ends a turn".replace("|", r"\|")):
        preflight_folder(folder, pad_token="<|eot_id|>")
    preflight_folder(folder, pad_token="<|pad|>")
    message = Message("user", "Why?")
    revisions = [Revision(prompt=Prompt(messages=(message,)), draft=text, steps=()) for text in ("So.", "So it is.")]
    context = OneStage(tmp_path, {"base": folder}, {"revisions": revisions}, pad_token="<|pad|>")
    sft.run(sft.Settings(epochs=1, batch_size=2, log_every=1, checkpoint_every=1), context)
    # What is saved names it, so that whatever goes on from there needs no setting.
    _, tokenizer = load_model(context.output("sft_model"))
    assert tokenizer.pad_token == "<|pad|>"
