"""A transformers model in this process.

Requests are sorted by length and answered in batches. A token is drawn by inverting the cumulative distribution at one
uniform number that comes from the request's own seed and the token's index, so neither the order nor the size of
batches decides what is drawn. (The logits themselves move by rounding errors between batches of different shapes.)
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import TemplateError

from constitutional.engines.base import Completion, Request
from constitutional.errors import ModelError
from constitutional.records import Message

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    folder: Path | str, *, dtype: str = "auto", device: str = ""
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A causal language model and its tokenizer; on a GPU if there is one and `device` names no other.

    Raises:
        ModelError: the model cannot be loaded, or lacks what the project needs of it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    # Bars over a model's weights would stand among the lines that say how far a run is.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    device, dtype = placed(device, dtype)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a causal language model: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{folder}: its tokenizer has no chat template; use a chat model, or add one")
    if tokenizer.pad_token_id is None:
        raise ModelError(f"{folder}: its tokenizer has no pad token; set one that is not the end-of-text token")
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    return model.eval(), tokenizer  # type: ignore[no-untyped-call] # of transformers


class ChatTokens:
    """How a conversation is put to a model: its chat template's words, and none of the control tokens from within."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer: Any = tokenizer
        control = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        self._control = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or "(?!)")

    def ids(self, messages: Sequence[Message], suffix: str = "") -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply or going on with its last words."""
        goes_on = messages[-1].role == "assistant"
        said = [{"role": each.role, "content": self._plain(each.content)} for each in messages]
        # What the assistant has begun stands behind the generation prompt exactly as it is; many templates, and
        # transformers' own way to continue a message, would strip spaces from it.
        begun = said.pop()["content"] if goes_on else ""
        try:
            text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = ", ".join(each["role"] for each in said)
            raise ModelError(
                f"{self.tokenizer.name_or_path}: its chat template refuses a conversation of the roles {roles}: "
                f"{error}. Put the conversation that begins {_beginning(messages)} otherwise, or take another model"
            ) from error
        ids: list[int] = self.tokenizer(text + begun + suffix, add_special_tokens=False)["input_ids"]
        return ids

    def _plain(self, text: str) -> str:
        """The text without control tokens: nobody ends a turn, or begins another's, from within a message."""
        while (shorter := self._control.sub("", text)) != text:  # what is left on both sides may make up another
            text = shorter
        return text


def check_lengths(folder: Path, conversations: Sequence[Sequence[Message]], max_tokens: int) -> None:
    """Refuse conversations that leave the model in a folder no room to reply. Its weights are not loaded.

    Raises:
        ModelError: one of them is too long; or the chat template refuses it.
    """
    from transformers import AutoTokenizer

    limit = _context(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    if limit is not None:
        tokens = ChatTokens(AutoTokenizer.from_pretrained(folder))
        for messages in conversations:
            _check_length(messages, len(tokens.ids(messages)), max_tokens, limit)


def _context(config: Mapping[str, Any]) -> int | None:
    """The longest row of tokens that a model was made for, in its configuration; None where it does not say."""
    found = {**config.get("text_config", {}), **config}.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def _check_length(messages: Sequence[Message], tokens: int, to_come: int, limit: int | None) -> None:
    """Beyond the positions that it was made for a model writes nonsense, or none at all."""
    if limit is not None and tokens + to_come > limit:
        reply = f" and the reply may have {to_come:,}" if to_come else ""
        raise ModelError(
            f"the request that begins {_beginning(messages)} has {tokens:,} tokens{reply}, but the model takes "
            f"{limit:,} in all; shorten it or leave it out{', or lower max_tokens' if to_come else ''}"
        )


def _to_come(request: Request) -> int:
    return 0 if request.choices else request.sampling.max_tokens


def _beginning(messages: Sequence[Message]) -> str:
    """How the user's first words go, shortened, in quotes."""
    text = " ".join(next((each.content for each in messages if each.role == "user"), messages[0].content).split())
    return json.dumps(text if len(text) <= 60 else f"{text[:60]}…", ensure_ascii=False)


def placed(device: str, dtype: str) -> tuple[str, str]:
    """Where a model goes and in which number format, where an empty device and `auto` leave that to the machine."""
    if not device:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    return device, dtype


class LocalEngine:
    """Answers with a model that is already in memory."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, batch_size: int = 64) -> None:
        self.model = model
        self.tokenizer: Any = tokenizer
        self.batch_size = batch_size
        self._identity = ""
        self._tokens = ChatTokens(tokenizer)
        self._limit = _context(self.model.config.to_dict())

    @property
    def identity(self) -> str:
        """SHA-256 over the weights, the vocabulary and the chat template."""
        if not self._identity:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().float().numpy().tobytes())
            digest.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
            digest.update(str(self.tokenizer.chat_template).encode())
            self._identity = digest.hexdigest()
        return self._identity

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """One completion for each request, in order.

        Raises:
            ModelError: a request does not fit into the model's context, or into its chat template; nothing was asked.
        """
        rows = [self._options(each) if each.choices else [self._chat(each.messages)] for each in requests]
        for request, options in zip(requests, rows, strict=True):
            _check_length(request.messages, max(map(len, options)), _to_come(request), self._limit)
        answers: dict[int, Completion] = {}
        for batch in self._batches([index for index, each in enumerate(requests) if each.choices], requests):
            answers |= zip(batch, self._score([rows[index] for index in batch]), strict=True)
        for batch in self._batches([index for index, each in enumerate(requests) if not each.choices], requests):
            asked = [rows[index][0] for index in batch]
            answers |= zip(batch, self._generate([requests[index] for index in batch], asked), strict=True)
        return [answers[index] for index in range(len(requests))]

    def _batches(self, chosen: list[int], requests: Sequence[Request]) -> Iterator[list[int]]:
        """Requests of about one length and one way of sampling together, so that little is padded."""
        chosen.sort(key=lambda index: (requests[index].sampling, sum(len(m.content) for m in requests[index].messages)))
        while chosen:
            sampling = requests[chosen[0]].sampling
            batch = [index for index in chosen[: self.batch_size] if requests[index].sampling == sampling]
            del chosen[: len(batch)]
            yield batch

    def _chat(self, messages: Sequence[Message], suffix: str = "") -> list[int]:
        return self._tokens.ids(messages, suffix)

    def _pad(self, rows: Sequence[Sequence[int]]) -> "tuple[torch.Tensor, torch.Tensor]":
        """Left-padded ids and mask, both (B, T)."""
        import torch

        width = max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)

    def _generate(self, requests: Sequence[Request], rows: Sequence[Sequence[int]]) -> list[Completion]:
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria

        sampling = requests[0].sampling
        ids, mask = self._pad(rows)
        processors = LogitsProcessorList()
        if sampling.temperature > 0:
            uniform = np.stack([np.random.default_rng(each.seed).random(sampling.max_tokens) for each in requests])
            draw = _Draw(torch.from_numpy(uniform).to(ids.device), ids.shape[1], sampling.temperature, sampling.top_p)
            processors.append(draw)
        stopping = StoppingCriteriaList()
        if sampling.stop:
            stopping.append(StopStringCriteria(self.tokenizer, list(sampling.stop)))
        with torch.inference_mode():
            made = self.model.generate(  # type: ignore[operator]  # transformers' own annotation hides the method
                input_ids=ids,
                attention_mask=mask,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                repetition_penalty=1.0,  # some models' own settings change it, also where tokens are not sampled
                max_new_tokens=sampling.max_tokens,
                logits_processor=processors,
                stopping_criteria=stopping,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        return [self._completion(row, sampling.stop) for row in made[:, ids.shape[1] :].tolist()]

    def _completion(self, row: list[int], stops: Sequence[str]) -> Completion:
        ends = self.model.generation_config.eos_token_id
        enders = set(ends if isinstance(ends, list) else [ends])
        length = next((index for index, token in enumerate(row) if token in enders), None)
        ids = [token for token in row[:length] if token != self.tokenizer.pad_token_id]
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        cut = min((text.index(stop) for stop in stops if stop in text), default=None)
        return Completion(text[:cut], "length" if length is None and cut is None else "stop")

    def _score(self, requests: Sequence[list[list[int]]]) -> list[Completion]:
        """Log-probabilities of each request's options: of the tokens by which they differ, given what they share."""
        import torch

        rows: list[list[int]] = []
        tails: list[
            tuple[int, list[int], bool]
        ] = []  # for each choice: its row, its own tokens, whether they are in it
        for options in requests:
            common = _shared_beginning(options)
            if all(len(option) == common + 1 for option in options):
                # Choices of a token each are read behind what they share, in one row for all.
                tails += [(len(rows), option[common:], False) for option in options]
                rows.append(options[0][:common])
            else:
                tails += [(len(rows) + index, option[common:], True) for index, option in enumerate(options)]
                rows += options
        ids, mask = self._pad(rows)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        keep = max(len(tail) + within for _, tail, within in tails)
        with torch.inference_mode():
            logits = self.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep
            ).logits.float()
        logprobs = logits.log_softmax(-1)
        sums = []
        for row, tail, within in tails:
            end = keep - within
            sums.append(float(logprobs[row, torch.arange(end - len(tail), end), torch.tensor(tail)].sum()))
        answers = []
        for options in requests:
            count = len(options)
            answers.append(Completion("", "choices", tuple(sums[:count])))
            del sums[:count]
        return answers

    def _options(self, request: Request) -> list[list[int]]:
        """The conversation's token ids with each of the choices.

        Where one choice begins another in tokens (1 and 10, digit by digit), the end of the turn is part of each.
        """
        options = [self._chat(request.messages, choice) for choice in request.choices]
        in_order = sorted(options)  # a list that begins others comes right before one of them
        if any(longer[: len(shorter)] == shorter for shorter, longer in pairwise(in_order)):
            options = [[*option, self._end_of_turn()] for option in options]
        if len(set(map(tuple, options))) < len(options):
            raise ModelError(f"choices {request.choices} cannot be told apart: two of them are the same tokens")
        return options

    def _end_of_turn(self) -> int:
        """The token that the chat template puts behind what the assistant says."""
        turn = [{"role": "user", "content": "Yes?"}, {"role": "assistant", "content": "Yes."}]
        rest = self.tokenizer.apply_chat_template(turn, tokenize=False).rpartition("Yes.")[2]
        ids = self.tokenizer(rest.strip(), add_special_tokens=False)["input_ids"]
        return int(ids[0] if ids else self.tokenizer.eos_token_id)


def _shared_beginning(options: Sequence[Sequence[int]]) -> int:
    """How many tokens all of them have in common from the start."""
    shortest = min(map(len, options))
    return next((at for at in range(shortest) if len({option[at] for option in options}) > 1), shortest)


class _Draw:
    """A logits processor that leaves only the drawn token: greedy search then takes it."""

    def __init__(self, uniform: "torch.Tensor", prompt_length: int, temperature: float, top_p: float) -> None:
        self.uniform = uniform  # (B, max_tokens), in [0, 1)
        self.prompt_length = prompt_length
        self.temperature = temperature
        self.top_p = top_p

    def __call__(self, ids: "torch.Tensor", scores: "torch.Tensor") -> "torch.Tensor":
        import torch

        probabilities = (scores.double() / self.temperature).softmax(-1)
        if self.top_p < 1:
            ordered, order = probabilities.sort(-1, descending=True)
            outside = ordered.cumsum(-1) - ordered >= self.top_p
            probabilities = probabilities.scatter(-1, order, ordered.masked_fill(outside, 0.0))
        cumulative = probabilities.cumsum(-1)
        target = self.uniform[:, ids.shape[1] - self.prompt_length, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn, 0.0)
