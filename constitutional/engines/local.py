"""A transformers model in this process.

Requests of about one length are answered in batches. A token is drawn by inverting the cumulative distribution at one
uniform number that comes from the request's own seed and the token's index, so neither the order nor the size of
batches decides what is drawn. The logits themselves move by rounding errors between batches of different shapes, so
which requests make a batch depends on nothing but what is waiting: a run that was killed computes the same batches.
"""

import hashlib
import threading
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from constitutional.base.cores import shared_cores
from constitutional.base.errors import ModelError
from constitutional.base.records import Message
from constitutional.engines.base import Completion, Engine, Request, Sampling, Ticket, TooLongError
from constitutional.engines.chat import (
    NOW,
    Arguments,
    ChatTokens,
    context_length,
    end_tokens,
    load_tokenizer,
    shared_beginning,
)

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    folder: Path | str,
    *,
    dtype: str = "auto",
    device: str = "",
    pad_token: str | None = None,
    template: Arguments | None = None,
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """A causal language model and its tokenizer; on a GPU if there is one and `device` names no other.

    Of the model's own generation settings only the end tokens are kept: how replies are sampled, the caller decides.

    Raises:
        ModelError: the model cannot be loaded, or lacks what the project needs of it.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    # Bars over a model's weights would stand among the lines that say how far a run is.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    device, dtype = placed(device, dtype)
    tokenizer = load_tokenizer(folder, pad_token=pad_token, template=template)
    try:
        # Other files of weights are not in a model's identity.
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), use_safetensors=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{folder}: cannot be loaded as a causal language model: {error}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{folder}: its tokenizer has no chat template; use a chat model, or add one")
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"{folder}: its tokenizer has no pad token; name one of its tokens that occurs in no text with "
            "model.pad_token=TOKEN"
        )
    model.generation_config = _only_ends(model, tokenizer)
    model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    return model.eval(), tokenizer  # type: ignore[no-untyped-call] # of transformers


def _only_ends(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> "GenerationConfig":
    """Generation settings that say where a reply ends and nothing else."""
    from transformers import GenerationConfig

    ends = end_tokens(tokenizer, model.config, model.generation_config)
    return GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )


@cache
def _versions() -> str:
    from importlib.metadata import version

    return " ".join(f"{package} {version(package)}" for package in ("transformers", "torch"))


def answers_identity(weights: str, dtype: str, device: str) -> str:
    """SHA-256 over all that a completion of this engine depends on beside its request.

    Args:
        weights: the digest of the model, its tokenizer and its chat template.
        dtype: the number format, such as `float32`.
        device: the kind of device, such as `cuda`: a CPU and a GPU round differently.
    """
    return hashlib.sha256(f"local {_versions()} {weights} {dtype} {device} {NOW:%Y-%m-%d}".encode()).hexdigest()


def placed(device: str, dtype: str) -> tuple[str, str]:
    """Where a model goes and in which number format, where an empty device and `auto` leave that to the machine."""
    if not device:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    return device, dtype


class LocalEngine(Engine):
    """Answers with a model that is already in memory. Sessions of several threads take turns, batch by batch."""

    def __init__(self, model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", *, batch_size: int = 64) -> None:
        self.model = model
        self.tokenizer: Any = tokenizer
        self.batch_size = batch_size
        self._weights = ""
        self._tokens = ChatTokens(tokenizer)
        self._limit = context_length(self.model.config.to_dict())
        self._lock = threading.Lock()

    @property
    def weights(self) -> str:
        """SHA-256 over the weights, the vocabulary and the chat template."""
        if not self._weights:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().float().numpy().tobytes())
            digest.update(repr(sorted(self.tokenizer.get_vocab().items())).encode())
            digest.update(str(self.tokenizer.chat_template).encode())
            self._weights = digest.hexdigest()
        return self._weights

    @property
    def identity(self) -> str:
        """SHA-256 over the weights and how they answer here."""
        return answers_identity(self.weights, str(self.model.dtype).removeprefix("torch."), self.model.device.type)

    def session(self) -> "LocalSession":
        """A new session."""
        return LocalSession(self)

    def rows(self, request: Request) -> list[list[int]]:
        """The request's token ids: one row for a reply, or a row for each choice.

        Raises:
            TooLongError: they do not fit into the model's context.
            ModelError: the chat template refuses the conversation, or two choices are the same tokens.
        """
        return self._tokens.rows(request, self._limit)

    def answer(self, requests: Sequence[Request], rows: Sequence[list[list[int]]]) -> list[Completion]:
        """One completion for each request, in order, from a single batch: all with one sampling, or all with choices.

        Args:
            requests: the requests.
            rows: what `rows` made of each.
        """
        with self._lock, shared_cores():
            if requests[0].choices:
                return self._score(rows)
            return self._generate(requests, [row for (row,) in rows])

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
            uniform = np.stack([np.random.default_rng(item.seed).random(sampling.max_tokens) for item in requests])
            draw = _Draw(torch.from_numpy(uniform).to(ids.device), ids.shape[1], sampling.temperature, sampling.top_p)
            processors.append(draw)
        stopping = StoppingCriteriaList()
        if sampling.stop:
            stopping.append(StopStringCriteria(self.tokenizer, list(sampling.stop)))
        own = self.model.generation_config
        # What `generate` is not told, it takes from the model's own settings, whatever is handed to it.
        self.model.generation_config = settings = _only_ends(self.model, self.tokenizer)
        settings.max_new_tokens = sampling.max_tokens
        try:
            with torch.inference_mode():
                rows_BT = self.model.generate(  # type: ignore[operator]  # noqa: N806
                    input_ids=ids,
                    attention_mask=mask,
                    generation_config=settings,
                    logits_processor=processors,
                    stopping_criteria=stopping,
                )
        finally:
            self.model.generation_config = own
        ends = set(settings.eos_token_id)
        replies = rows_BT[:, ids.shape[1] :].tolist()
        return [
            self._tokens.completion(reply, ends, sampling.stop)._replace(prompt_tokens=len(row))
            for row, reply in zip(rows, replies, strict=True)
        ]

    def _score(self, requests: Sequence[list[list[int]]]) -> list[Completion]:
        """Log-probabilities of each request's options: of the tokens by which they differ, given what they share.

        The tokens that a request's options share are read once, and then the remaining tokens of each option.
        """
        import torch

        shared = [shared_beginning(options) for options in requests]
        ids, mask = self._pad([options[0][:common] for options, common in zip(requests, shared, strict=True)])
        tails = [
            (row, option[common:])
            for row, (options, common) in enumerate(zip(requests, shared, strict=True))
            for option in options
        ]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            read = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, logits_to_keep=1)
            first = read.logits[:, -1].float().log_softmax(-1)  # (requests, V)
            sums = [float(first[row, tail[0]]) for row, tail in tails]
            if longer := [at for at, (_, tail) in enumerate(tails) if len(tail) > 1]:
                rest = self._rest([tails[at] for at in longer], read.past_key_values, mask)
                for at, more in zip(longer, rest, strict=True):
                    sums[at] += more
        answers = []
        for options, common in zip(requests, shared, strict=True):
            logprobs = tuple(sums[: len(options)])
            tokens = sum(len(option) - common for option in options)
            answers.append(Completion("", "choices", logprobs, prompt_tokens=common, completion_tokens=tokens))
            del sums[: len(options)]
        return answers

    def _rest(self, tails: Sequence[tuple[int, list[int]]], cache: Any, mask: "torch.Tensor") -> list[float]:  # noqa: ANN401
        """The log-probability of each tail's tokens after its first, behind the row of the cache that it goes on."""
        import torch

        width = max(len(tail) for _, tail in tails) - 1
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[*tail[:-1], *[pad] * (width - len(tail) + 1)] for _, tail in tails], device=mask.device)
        rows = torch.tensor([row for row, _ in tails], device=mask.device)
        cache.batch_select_indices(rows)
        read = mask[rows]
        # Padding comes behind what is read of a tail, which therefore does not see it.
        attended = torch.cat([read, torch.ones_like(ids)], dim=1)
        positions = read.sum(-1, keepdim=True) + torch.arange(width, device=mask.device)
        logits = self.model(
            input_ids=ids, attention_mask=attended, position_ids=positions, past_key_values=cache
        ).logits.float()
        logprobs = logits.log_softmax(-1)
        return [
            float(logprobs[at, torch.arange(len(tail) - 1), torch.tensor(tail[1:])].sum())
            for at, (_, tail) in enumerate(tails)
        ]


class LocalSession:
    """What one caller has asked of a local engine."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._waiting: dict[Ticket, tuple[Request, list[list[int]]]] = {}
        self._failed: list[tuple[Ticket, Completion]] = []

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Take a request; one that cannot be asked for has failed at once, and no other does because of it."""
        try:
            self._waiting[ticket] = (request, self._engine.rows(request))
        except TooLongError as error:
            self._failed.append((ticket, Completion("", "too_long", reason=str(error))))
        except ModelError as error:
            self._failed.append((ticket, Completion("", "error", reason=str(error))))

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """What could not be asked for; and, unless the time is 0, the answers of the next batch."""
        answers, self._failed = self._failed, []
        if self._waiting and not answers and timeout_s != 0:
            batch = self._batch()
            requests, rows = zip(*(self._waiting[ticket] for ticket in batch), strict=True)
            answers = list(zip(batch, self._engine.answer(requests, rows), strict=True))
            for ticket in batch:
                del self._waiting[ticket]
        return answers

    def _batch(self) -> list[Ticket]:
        """The next batch: requests of about one length and one way of sampling, so that little is padded.

        Full batches come first, and of these the one with the earliest request: so items are finished from the first
        minute on, while batches are full.
        """
        size = self._engine.batch_size
        groups: defaultdict[tuple[bool, Sampling | None], list[Ticket]] = defaultdict(list)
        for ticket, (request, _) in self._waiting.items():
            groups[bool(request.choices), None if request.choices else request.sampling].append(ticket)
        group = min(groups.values(), key=lambda tickets: (-min(len(tickets), size), min(tickets)))
        group.sort(key=lambda ticket: (max(map(len, self._waiting[ticket][1])), ticket))
        start = max(0, min(group.index(min(group)) // size * size, len(group) - size))
        return group[start : start + size]

    def close(self) -> None:
        """Forget what is waiting."""
        self._waiting.clear()


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
