import math
from typing import Any, NamedTuple

import pytest

from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.engines import divergence
from constitutional.engines.divergence import Reply, divergences
from tests.tiny import tiny_tokenizer

torch = pytest.importorskip("torch")

QUESTION = (Message("user", "How do I plant a tree?"),)
LONGER = (Message("system", "Be brief."), *QUESTION, Message("assistant", "Dig a hole."), Message("user", "And then?"))


class Pair(NamedTuple):
    model: Any
    reference: Any
    tokenizer: Any


def tiny(size: int, tokenizer: Any, seed: int) -> Any:  # noqa: ANN401
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        initializer_range=0.3,  # far enough from uniform that a wrong distribution would show
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def pair() -> Pair:
    from scripts.sandbox_training.tokenizer import build_tokenizer

    tokenizer = build_tokenizer([], count=20)
    size = len(tokenizer)
    return Pair(tiny(size, tokenizer, 0), tiny(size, tokenizer, 1), tokenizer)


def logprobs(model: Any, ids: list[int]) -> Any:  # noqa: ANN401
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def test_each_token_of_a_reply_and_its_end_has_the_divergence_of_the_two_next_token_distributions(pair: Pair) -> None:
    reply = Reply(LONGER, "Water it well.", ended=True)
    [found] = divergences([reply], *pair)

    tokenizer = pair.tokenizer
    dicts = [{"role": each.role, "content": each.content} for each in LONGER]
    text = tokenizer.apply_chat_template(dicts, tokenize=False, add_generation_prompt=True)
    asked = tokenizer(text, add_special_tokens=False)["input_ids"]
    said = tokenizer(reply.text, add_special_tokens=False)["input_ids"]
    log_p, log_q = (logprobs(model, asked + said) for model in (pair.model, pair.reference))
    assert len(found) == len(said) + 1
    for step, (token, drawn) in enumerate(zip(found, [*said, tokenizer.eos_token_id], strict=True)):
        p, q = log_p[len(asked) + step - 1], log_q[len(asked) + step - 1]
        assert token.kl == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-4)
        assert token.log_ratio == pytest.approx(float(p[drawn] - q[drawn]), abs=1e-4)


def test_a_reply_that_was_cut_off_has_no_end_to_compare(pair: Pair) -> None:
    ended, cut = divergences([Reply(QUESTION, "Dig.", ended=True), Reply(QUESTION, "Dig.", ended=False)], *pair)
    assert len(ended) == len(cut) + 1
    assert [each.kl for each in cut] == pytest.approx([each.kl for each in ended[:-1]], abs=1e-4)


def test_an_empty_reply_is_only_its_end(pair: Pair) -> None:
    [tokens] = divergences([Reply(QUESTION, "", ended=True)], *pair)
    assert len(tokens) == 1


def test_the_mean_log_ratio_over_what_the_model_draws_is_the_divergence(pair: Pair) -> None:
    # Every token of the vocabulary as a reply of one token: its log-ratio, weighed by how often the model draws it.
    tokenizer = pair.tokenizer
    dicts = [{"role": each.role, "content": each.content} for each in QUESTION]
    text = tokenizer.apply_chat_template(dicts, tokenize=False, add_generation_prompt=True)
    log_p = logprobs(pair.model, tokenizer(text, add_special_tokens=False)["input_ids"])[-1]
    words = [tokenizer.decode([token]) for token in range(len(tokenizer))]
    whole = {
        token: word
        for token, word in enumerate(words)
        if tokenizer(word, add_special_tokens=False)["input_ids"] == [token] and token != tokenizer.eos_token_id
    }
    some = dict(list(whole.items())[-100:])
    found = divergences([Reply(QUESTION, word, ended=False) for word in some.values()], *pair)
    [exact] = {round(each[0].kl, 4) for each in found}  # the same for all, because nothing is said yet
    log_q = logprobs(pair.reference, tokenizer(text, add_special_tokens=False)["input_ids"])[-1]
    ratios = [each[0].log_ratio for each in found]
    assert ratios == pytest.approx([float(log_p[token] - log_q[token]) for token in some], abs=1e-4)
    assert exact == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum()), abs=1e-3)


def test_a_model_does_not_differ_from_itself(pair: Pair) -> None:
    [tokens] = divergences([Reply(QUESTION, "Dig a hole.", ended=True)], pair.model, pair.model, pair.tokenizer)
    assert {token.kl for token in tokens} == {0.0}
    assert {token.log_ratio for token in tokens} == {0.0}


def test_replies_answered_together_are_as_when_each_is_alone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    replies = [Reply(LONGER if n % 2 else QUESTION, "Dig a hole. " * n, ended=n % 3 > 0) for n in range(7)]
    together = divergences(replies, *pair)
    monkeypatch.setattr(divergence, "TOKENS_TOGETHER", 1)
    alone = divergences(replies, *pair)
    for one, other in zip(together, alone, strict=True):
        assert [each.kl for each in one] == pytest.approx([each.kl for each in other], abs=1e-3)
        assert [each.log_ratio for each in one] == pytest.approx([each.log_ratio for each in other], abs=1e-3)


def test_all_tokens_that_end_a_reply_count_as_its_end(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two enders: log-ratio of the sum of their probabilities.
    ends = [pair.tokenizer.eos_token_id, pair.tokenizer.pad_token_id]
    monkeypatch.setattr(pair.model.generation_config, "eos_token_id", ends)
    [[end]] = divergences([Reply(QUESTION, "", ended=True)], *pair)
    dicts = [{"role": each.role, "content": each.content} for each in QUESTION]
    text = pair.tokenizer.apply_chat_template(dicts, tokenize=False, add_generation_prompt=True)
    ids = pair.tokenizer(text, add_special_tokens=False)["input_ids"]
    p, q = (float(logprobs(model, ids)[-1, ends].exp().sum()) for model in (pair.model, pair.reference))
    assert end.log_ratio == pytest.approx(math.log(p / q), abs=1e-4)


def test_models_of_different_vocabularies_are_refused(pair: Pair) -> None:
    other = tiny(len(pair.tokenizer) + 64, pair.tokenizer, 2)
    with pytest.raises(ModelError, match=r"evaluate\.compared=0"):
        divergences([Reply(QUESTION, "Dig.", ended=True)], pair.model, other, pair.tokenizer)


def test_control_tokens_within_messages_are_no_part_of_what_is_read(pair: Pair) -> None:
    end = pair.tokenizer.eos_token
    plainly = divergences([Reply(QUESTION, "Dig a [removed]hole.", ended=True)], *pair)
    asked = (Message("user", QUESTION[0].content + end), *QUESTION[1:])
    assert divergences([Reply(asked, f"Dig a {end}hole.{end}", ended=True)], *pair) == plainly


def test_a_reply_of_a_model_that_may_think_stands_behind_an_empty_thought() -> None:
    tokenizer = tiny_tokenizer("qwen3")
    row = divergence._tokens(Reply((Message("user", "Why?"),), "So.", ended=True), tokenizer)
    assert tokenizer.decode(row.ids).endswith("assistant\n<think>\n\n</think>\n\nSo.")  # as a training has it
    assert tokenizer.decode(row.ids[-row.length :]) == "So."
