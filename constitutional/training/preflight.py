"""Whether a model can be trained: checks of its tokenizer and chat template, before anything is paid for."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import ModelError
from constitutional.engines.architecture import read_config
from constitutional.engines.chat import Arguments, Tokenizer, end_tokens, load_tokenizer, thinks
from constitutional.training.reward_model import make_scorer_known
from constitutional.training.rows import render

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def preflight(tokenizer: Tokenizer, model: "PreTrainedModel") -> None:
    """Check the causes that most often ruin a training, before anything is trained.

    Raises:
        ModelError: names every problem found.
    """
    embeddings: Any = model.get_input_embeddings()
    ends = end_tokens(tokenizer, model.config, model.generation_config)
    _refuse(str(model.config.name_or_path), _problems(tokenizer, embeddings.weight.shape[0], ends))


def preflight_folder(
    folder: Path, *, pad_token: str | None = None, template: Arguments | None = None, scorer: bool = False
) -> None:
    """The same checks for a model whose weights are not loaded, before anything is asked of it: answers cost time too.

    With `scorer` also whether a reward model can be made of it.

    Raises:
        ModelError: names every problem found, or why the folder cannot be read.
    """
    from transformers import GenerationConfig

    tokenizer = load_tokenizer(folder, pad_token=pad_token, template=template)
    config = read_config(folder)
    file = folder / "generation_config.json"
    generation = GenerationConfig.from_pretrained(folder) if file.exists() else None
    ends = end_tokens(tokenizer, config, generation)
    if scorer:
        make_scorer_known(config)
    _refuse(str(folder), _problems(tokenizer, config.get_text_config().vocab_size, ends))


def _refuse(model: str, problems: Iterable[str]) -> None:
    if named := list(dict.fromkeys(problems)):
        raise ModelError(f"{model}: cannot be trained as it is: {'; '.join(named)}")


_SAMPLES = (
    [("user", "What is the capital of France?"), ("assistant", "Paris.")],
    [("user", "Hello."), ("assistant", "Hello!"), ("user", "Name a colour."), ("assistant", "Blue.")],
)


def _problems(tokenizer: Tokenizer, rows: int, ends: Iterable[int]) -> Iterator[str]:
    """What is wrong with tokenizer and template, for a model with `rows` embeddings that ends replies at `ends`."""
    from jinja2 import TemplateError

    pad, bos = tokenizer.pad_token_id, tokenizer.bos_token_id
    if len(tokenizer) > rows:
        yield f"its tokenizer knows {len(tokenizer)} tokens, its embeddings {rows}; resize the embeddings"
    if not tokenizer.chat_template:
        yield "its tokenizer has no chat template; use a chat model, or add a template"
        return
    if pad is None:
        yield "its tokenizer has no pad token; name one of its tokens that occurs in no text with model.pad_token=TOKEN"
    for sample in _SAMPLES:
        messages = [{"role": role, "content": content} for role, content in sample]
        try:
            asked, whole = render(tokenizer, messages[:-1], ask=True), render(tokenizer, messages)
        except (TemplateError, TypeError, ValueError) as error:
            yield f"its chat template refuses a conversation of {len(messages)} messages: {error}"
            continue
        if whole[: len(asked)] != asked:
            how = thinks(tokenizer)
            thought = "it begins a thought before a reply, which a reply that is learned from does not have"
            remedy = 'type "model.template={enable_thinking: false}"' if how == "switch" else "take another model"
            yield (
                "its chat template is not prefix-preserving: the prompt reads otherwise once a reply follows it"
                f"{f' ({thought}; {remedy})' if how else ''}"
            )
        elif not set(ends) & set(whole[len(asked) :]):
            yield "its chat template puts no end token after a reply, so the model would not learn to stop"
        if pad is not None and (pad == tokenizer.eos_token_id or pad in whole):
            yield (
                f"its pad token {tokenizer.pad_token!r} also ends a turn: the end would be masked, and a reward head "
                "would read the wrong token; name one that occurs in no text with model.pad_token=TOKEN"
            )
        if bos is not None and whole[:2] == [bos, bos]:
            yield f"its chat template begins with two {tokenizer.bos_token!r}; remove one"
