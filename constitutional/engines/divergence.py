"""How far a model has moved from another, token by token, on replies that it wrote itself."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.engines.chat import ChatTokens, end_tokens, plain

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_TOGETHER: Final = 4096
"""Most tokens, padding included, in one forward pass."""


class Reply(NamedTuple):
    """A conversation and the reply that a model gave."""

    messages: tuple[Message, ...]
    text: str
    """The reply."""
    ended: bool
    """Whether the model ended the reply; False if it was cut off."""


class TokenDivergence(NamedTuple):
    """At one token of a reply, how far the model (p) is from its reference (q), in nats."""

    kl: float
    """Σ p·log(p/q) over the vocabulary: exact, 0 or more."""
    log_ratio: float
    """log(p/q) of the token that was drawn; over many tokens its mean estimates the same."""


def divergences(
    replies: Sequence[Reply],
    model: "PreTrainedModel",
    reference: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
) -> list[list[TokenDivergence]]:
    """For each of the model's own replies, KL(model ‖ reference) at each of its tokens, its end included.

    Both distributions are those at temperature 1. The text is split into tokens again, which may differ from those that
    were drawn. Logits are held of one batch at a time, and of the replies' tokens only.

    Raises:
        ModelError: the two have vocabularies of different sizes.
    """
    rows = [_tokens(reply, tokenizer) for reply in replies]
    made: dict[int, list[TokenDivergence]] = {}
    for batch in _batches(rows):
        made |= zip(batch, _of_batch([rows[index] for index in batch], model, reference, tokenizer), strict=True)
    return [made[index] for index in range(len(rows))]


class _Row(NamedTuple):
    ids: list[int]
    length: int
    """How many tokens at the end are the reply's."""
    ended: bool


def _tokens(reply: Reply, tokenizer: "PreTrainedTokenizerBase") -> _Row:
    prompt = ChatTokens(tokenizer).ids(reply.messages, "")
    ids: list[int] = tokenizer(plain(tokenizer, reply.text), add_special_tokens=False)["input_ids"]
    return _Row(prompt + ids, len(ids), reply.ended)


def _batches(rows: Sequence[_Row]) -> Iterator[list[int]]:
    """Rows of about one length together, the longest first, as many as fit."""
    waiting = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
    while waiting:
        batch = [waiting.pop()]
        longest = len(rows[batch[0]].ids)
        while waiting and (len(batch) + 1) * longest <= TOKENS_TOGETHER:
            batch.append(waiting.pop())
        yield batch


def _of_batch(
    rows: Sequence[_Row],
    model: "PreTrainedModel",
    reference: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
) -> list[list[TokenDivergence]]:
    keep = max(row.length for row in rows) + 1  # and the position before the reply, which predicts its first token
    p_logits_B, q_logits_B = (_logits(rows, network, tokenizer, keep) for network in (model, reference))  # noqa: N806
    if p_logits_B.shape != q_logits_B.shape:
        sizes = f"{p_logits_B.shape[-1]} and {q_logits_B.shape[-1]}"
        raise ModelError(f"models with vocabularies of {sizes} tokens cannot be compared; set evaluate.compared=0")
    ends = end_tokens(tokenizer, model.config, model.generation_config)
    return [_of_row(row, p, q, ends) for row, p, q in zip(rows, p_logits_B, q_logits_B, strict=True)]


def _logits(
    rows: Sequence[_Row], model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", keep: int
) -> "torch.Tensor":
    """The logits behind each row's last `keep` tokens, (B, keep, V)."""
    import torch

    width = max(len(row.ids) for row in rows)
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(row.ids)) + row.ids for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows], device=model.device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        answer = model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep)
    logits: torch.Tensor = answer.logits
    return logits


def _of_row(row: _Row, p_logits: "torch.Tensor", q_logits: "torch.Tensor", ends: list[int]) -> list[TokenDivergence]:
    """From logits (keep, V), row by row because the distributions in float32 are larger than the logits."""
    import torch

    keep = len(p_logits)
    predict = slice(keep - 1 - row.length, keep if row.ended else keep - 1)  # the last position predicts the end
    log_p, log_q = (logits[predict].float().log_softmax(-1) for logits in (p_logits, q_logits))
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0)  # rounding may leave it a little below
    drawn = torch.tensor(row.ids[len(row.ids) - row.length :], dtype=torch.long, device=log_p.device)
    at = torch.arange(row.length, device=log_p.device)
    ratios = (log_p[at, drawn] - log_q[at, drawn]).tolist()
    if row.ended:  # by whichever of the tokens that end a reply
        ratios.append(float(log_p[-1, ends].logsumexp(-1) - log_q[-1, ends].logsumexp(-1)))
    return [TokenDivergence(*pair) for pair in zip(kl.tolist(), ratios, strict=True)]
