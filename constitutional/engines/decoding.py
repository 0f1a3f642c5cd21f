"""Many replies from one transformers model at the same time.

What costs time is memory traffic and overhead, so this module
- reads what prompts share once (`prompt_tree`), and identical prompts once;
- keeps keys and values in one buffer that is written in place (`_Slots`): transformers' own cache copies all of them at
  every token;
- fills the place of a reply that has ended with the next prompt, and computes no row that has ended.

In the buffer all rows end at the same column, where the next token is written, and each begins where its length says.
So a row lies in one piece, and sliding windows, which models measure in columns, are right.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from constitutional.base.errors import ModelError
from constitutional.engines.attention import grouped_attention, plain_layers
from constitutional.engines.base import Sampling
from constitutional.engines.chat import shared_beginning
from constitutional.engines.device import sent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARED: Final = 16
"""Fewest tokens that are worth reading apart for the prompts that share them."""
READ_TOKENS: Final = 4096
"""Most tokens that are read in one pass; a single longer prompt is read whole."""
SPARE: Final = 256
"""Columns of the buffer beyond what the longest row needs; whenever they are used up, all rows move to the left."""
MOST_LOGITS: Final = 2**28
"""Most numbers that the logits of one pass over responses to be scored have: 1 GiB in 32 bits, and there are three
such: as they come, in 32 bits, and as logarithms of probabilities."""
ALONE: Final = ("rwkv", "xlstm")
"""Kinds of models that answer one request at a time: transformers' code of them takes no notice of a row's padding."""
BLOCK: Final = 128
"""Tokens of the vocabulary whose probabilities are added up in 32 bits; sums of blocks are added up in 64."""


@dataclass(eq=False)
class Continuation:
    """A reply that is being written."""

    prompt: list[int]
    sampling: Sampling
    seed: int = 0
    stopped: Callable[[list[int]], bool] | None = None
    """Whether the reply, as token ids, holds one of its stop texts."""
    ids: list[int] = field(default_factory=list)
    """What has been written, the end token included."""
    uniform: list[float] = field(default_factory=list)
    """For each token to come, a number in [0, 1) from the seed."""
    read: "Segment | None" = None

    def begin(self) -> None:
        """Start over."""
        self.ids = []
        self.read = None
        if self.sampling.temperature > 0 and not self.uniform:
            self.uniform = np.random.default_rng(self.seed).random(self.sampling.max_tokens).tolist()


# --- Prompts, and what they share ---


@dataclass(eq=False)
class Segment:
    """Tokens that follow those of another segment, and their keys and values once they are read."""

    parent: "Segment | None"
    tokens: list[int]
    length: int
    """Tokens from the root to the end of this segment."""
    layers: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Keys and values (H, T, d) of each layer."""

    def path(self) -> "list[Segment]":
        """The segments from the root to this one."""
        return [*(self.parent.path() if self.parent else []), self]


def prompt_tree(prompts: Sequence[list[int]]) -> tuple[list[list[Segment]], list[Segment | None]]:
    """The prompts as a tree whose segments are to be read once; prompts share a segment of at least `SHARED` tokens.

    Returns:
        the segments, level by level; and where each prompt ends, None for an empty one.
    """
    levels: list[list[Segment]] = []
    ends: list[Segment | None] = [None] * len(prompts)
    to_do: list[tuple[Segment | None, int, list[int]]] = [(None, 0, list(range(len(prompts))))]
    while to_do:
        parent, depth, members = to_do.pop()
        start = parent.length if parent else 0
        groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
        for member in members:
            groups[tuple(prompts[member][start : start + SHARED])].append(member)
        for beginning, group in groups.items():
            if not beginning:
                continue
            shared = shared_beginning([prompts[member] for member in group])
            segment = Segment(parent, list(prompts[group[0]][start:shared]), shared)
            if depth == len(levels):
                levels.append([])
            levels[depth].append(segment)
            for member in group:
                ends[member] = segment  # unless it goes on
            if longer := [member for member in group if len(prompts[member]) > shared]:
                to_do.append((segment, depth + 1, longer))
    return levels, ends


class _Reading(CacheLayerMixin):  # type: ignore[no-untyped-call] # of transformers
    """A layer's keys and values while tokens are read: what was read before stands in front and is not kept again."""

    is_sliding = False

    def __init__(self, past: tuple[torch.Tensor, torch.Tensor] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # of transformers
        self.past = past
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing is to be done."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = key_states, value_states
        if self.past is None:
            return key_states, value_states
        return torch.cat([self.past[0], key_states], 2), torch.cat([self.past[1], value_states], 2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return 0 if self.past is None else self.past[0].shape[2]

    def get_max_length(self) -> int:
        return -1


# --- The batch ---


class _Slots:
    """The rows that are being written, in slots 0, 1, … of a buffer of keys and values."""

    def __init__(self, slots: int, capacity: int, longest_prompt: int) -> None:
        self.slots = slots
        self.capacity = capacity
        self.longest_prompt = longest_prompt
        self.end = longest_prompt
        """The column at which the next token of every row is written."""
        self.rows: list[Continuation] = []
        self.starts: list[int] = []
        """The first column of each row."""
        self.layers: list[_Slot] = []

    @property
    def first(self) -> int:
        return min(self.starts)

    def enter(self, row: Continuation) -> None:
        """Put a row whose prompt is read into the next slot."""
        slot, column = len(self.rows), self.end - (row.read.length if row.read else 0)
        self.rows.append(row)
        self.starts.append(column)
        for segment in row.read.path() if row.read else ():
            for layer, (keys, values) in zip(self.layers, segment.layers, strict=True):
                layer.keep(keys, values)
                layer.keys[slot, :, column : column + keys.shape[1]] = keys
                layer.values[slot, :, column : column + keys.shape[1]] = values
            column += len(segment.tokens)
        row.read = None  # its keys and values are in the buffer

    def leave(self, ended: Sequence[int]) -> None:
        """Give up slots; the last rows move into them."""
        for slot in sorted(ended, reverse=True):
            last = len(self.rows) - 1
            if slot < last:
                for layer in self.layers:
                    for buffer in (layer.keys, layer.values):
                        buffer[slot, :, self.starts[last] : self.end] = buffer[last, :, self.starts[last] : self.end]
                self.rows[slot], self.starts[slot] = self.rows[last], self.starts[last]
            self.rows.pop()
            self.starts.pop()

    def make_room(self) -> None:
        """Move all rows to the left if there is no column for the next token."""
        if self.end < self.capacity:
            return
        width = max(self.end - self.first, self.longest_prompt)
        for layer in self.layers:
            for buffer in (layer.keys, layer.values):
                buffer[: len(self.rows), :, :width] = buffer[: len(self.rows), :, self.end - width : self.end].clone()
        self.starts = [start - (self.end - width) for start in self.starts]
        self.end = width


class _Slot(CacheLayerMixin):  # type: ignore[no-untyped-call] # of transformers
    """One layer of the buffer."""

    is_sliding = False

    def __init__(self, batch: _Slots) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # of transformers
        self.batch = batch
        self.is_initialized = True
        self.keys: Any = None
        self.values: Any = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """`keep` does it."""

    def keep(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Have a buffer for what looks like these (…, H, T, d); of zeros, as nothing that is masked may be NaN."""
        if self.keys is None:
            size = (self.batch.slots, keys.shape[-3], self.batch.capacity)
            self.keys, self.values = keys.new_zeros(*size, keys.shape[-1]), values.new_zeros(*size, values.shape[-1])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.batch
        rows, first, end = len(batch.rows), batch.first, batch.end
        self.keep(key_states, value_states)
        self.keys[:rows, :, end] = key_states[:, :, 0]
        self.values[:rows, :, end] = value_states[:, :, 0]
        return self.keys[:rows, :, first : end + 1], self.values[:rows, :, first : end + 1]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self.batch.end - self.batch.first

    def get_max_length(self) -> int:
        return -1


class _Tail(NamedTuple):
    """Tokens that are read behind a segment, and of which tokens behind these the log-probabilities are wanted."""

    end: Segment | None
    read: list[int]
    scored: list[list[int]]


class Decoder:
    """A model that reads prompts and writes replies, many at the same time.

    Args:
        model: a causal model of transformers. Where it keeps other things than keys and values (recurrent states), or
            keeps them in its own way, prompts are read without sharing and no row enters or leaves a batch.
        ends: tokens that end a reply.
        pad: a token to fill up rows with.
    """

    def __init__(self, model: "PreTrainedModel", ends: set[int], pad: int) -> None:
        self.model: Any = model
        self.ends = ends
        self.pad = pad
        self.device = model.device
        self.layers = plain_layers(model)
        self.vocabulary: int = model.config.get_text_config().vocab_size

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """No gradients, and grouped attention in place of transformers' own."""
        with grouped_attention(self.model, self.layers), torch.inference_mode():
            yield

    def write(self, rows: Sequence[Continuation], slots: int, done: Callable[[Continuation], None]) -> None:
        """Write all replies.

        Args:
            rows: the replies; those of the longest prompts should come first.
            slots: most rows at the same time.
            done: told of each reply when it is finished.
        """
        for row in rows:
            row.begin()
        with self._computing():
            if self.layers:
                self._write(deque(rows), slots, done)
            else:
                slots = 1 if self.model.config.model_type in ALONE else slots
                for start in range(0, len(rows), slots):
                    self._generate(rows[start : start + slots], done)

    def _write(self, waiting: deque[Continuation], slots: int, done: Callable[[Continuation], None]) -> None:
        longest = max(len(row.prompt) - 1 for row in waiting)
        needed = max(len(row.prompt) + row.sampling.max_tokens for row in waiting)
        batch = _Slots(min(slots, len(waiting)), needed + SPARE, longest)
        batch.layers = [_Slot(batch) for _ in range(self.layers)]
        cache = Cache(layers=list(batch.layers))
        ready: deque[Continuation] = deque()
        while waiting or ready or batch.rows:
            while (waiting or ready) and len(batch.rows) < batch.slots:
                if not ready:
                    ready.extend(waiting.popleft() for _ in range(min(slots, len(waiting))))
                    for row, segment in zip(ready, self.read([row.prompt[:-1] for row in ready], slots), strict=True):
                        row.read = segment
                batch.enter(ready.popleft())
            batch.make_room()
            starts = torch.tensor(batch.starts, device=self.device)
            columns = torch.arange(batch.first, batch.end + 1, device=self.device)
            mask = None if batch.first == max(batch.starts) else columns >= starts[:, None]
            logits = self._forward(
                [[row.ids[-1] if row.ids else row.prompt[-1]] for row in batch.rows],
                mask,
                (batch.end - starts)[:, None],
                cache,
            )
            batch.end += 1
            batch.leave(self._draw(batch.rows, logits[:, -1], done))

    def _draw(
        self, rows: Sequence[Continuation], logits: torch.Tensor, done: Callable[[Continuation], None]
    ) -> list[int]:
        """Add a token to every row; returns which of them have ended."""
        if not all(row.ids for row in rows) and bool(logits.isnan().any()):
            raise self._broken()
        ended = []
        for index, (row, token) in enumerate(zip(rows, draw(rows, logits), strict=True)):
            row.ids.append(token)
            if (
                token in self.ends
                or len(row.ids) == row.sampling.max_tokens
                or (row.stopped is not None and row.stopped(row.ids))
            ):
                ended.append(index)
                done(row)
        return ended

    def _generate(self, rows: Sequence[Continuation], done: Callable[[Continuation], None]) -> None:
        """One batch from its beginning to its end by transformers' own `generate`, which knows every model."""
        from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList

        running = list(range(len(rows)))

        def choose(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            """Leave only the token that is drawn, which `generate` then takes; a row that has ended is padded."""
            ended = set(self._draw([rows[index] for index in running], scores[running], done))
            tokens = [self.pad] * len(rows)
            for index in running:
                tokens[index] = rows[index].ids[-1]
            running[:] = [index for at, index in enumerate(running) if at not in ended]
            chosen = sent(torch.tensor(tokens)[:, None], scores.device)
            return torch.full_like(scores, -torch.inf).scatter(-1, chosen, 0.0)

        def stop(ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            return torch.full((len(ids),), not running, device=ids.device)

        width = max(len(row.prompt) for row in rows)
        ids = torch.tensor([[self.pad] * (width - len(row.prompt)) + row.prompt for row in rows])
        mask = torch.tensor([[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows])
        before = self.model.generation_config
        # What `generate` is not told, it takes from the model's own settings, whatever is handed to it.
        self.model.generation_config = settings = GenerationConfig(  # type: ignore[no-untyped-call] # of transformers
            pad_token_id=self.pad, max_new_tokens=max(row.sampling.max_tokens for row in rows)
        )
        try:
            self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=settings,
                logits_processor=LogitsProcessorList([choose]),
                stopping_criteria=StoppingCriteriaList([stop]),
            )
        finally:
            self.model.generation_config = before

    def _forward(
        self,
        tokens: Sequence[Sequence[int]],
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        cache: Any,  # noqa: ANN401 - of transformers
        keep: int = 1,
    ) -> torch.Tensor:
        """Logits (B, keep, V) of the last tokens."""
        ids = torch.tensor(tokens, device=self.device)
        output = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        logits: torch.Tensor = output.logits
        return logits

    # --- Reading ---

    def read(self, prompts: Sequence[list[int]], rows: int) -> list[Segment | None]:
        """Read prompts, what they share once; returns the end of each.

        Args:
            prompts: token ids.
            rows: most rows in one pass.
        """
        levels, ends = prompt_tree(prompts)
        for level in levels:
            level.sort(key=lambda segment: -len(segment.tokens))
            while level:
                count = max(1, min(rows, READ_TOKENS // len(level[0].tokens)))
                segments, level[:count] = level[:count], []
                tokens = [segment.tokens for segment in segments]
                cache = self._continue(tokens, [segment.parent for segment in segments])[1]
                for row, segment in enumerate(segments):
                    segment.layers = [
                        (layer.keys[row, :, : len(segment.tokens)], layer.values[row, :, : len(segment.tokens)])
                        for layer in cache.layers
                    ]
        return ends

    def _continue(
        self, tokens: Sequence[list[int]], parents: Sequence[Segment | None], keep: int = 1
    ) -> tuple[torch.Tensor, Any]:
        """Read tokens behind what was read before; returns logits and the cache.

        Padding stands behind the tokens of a row, which therefore do not see it, and before what was read before.
        """
        width = max(map(len, tokens))
        before = [parent.length if parent else 0 for parent in parents]
        lengths = torch.tensor(before, device=self.device)[:, None]
        cache = Cache(layers=[_Reading(past) for past in self._pasts(parents, max(before))])
        last = max(length + len(row) for length, row in zip(before, tokens, strict=True)) - 1
        positions = (lengths + torch.arange(width, device=self.device)).clamp(max=last)
        columns = torch.arange(max(before) + width, device=self.device)
        mask = None if min(before) == max(before) else columns >= max(before) - lengths
        padded = [[*row, *[self.pad] * (width - len(row))] for row in tokens]
        return self._forward(padded, mask, positions, cache, keep), cache

    def _pasts(
        self, parents: Sequence[Segment | None], width: int
    ) -> Sequence[tuple[torch.Tensor, torch.Tensor] | None]:
        """For each layer, keys and values (B, H, width, d) of all that was read before; they end at the last column."""
        first = next(filter(None, parents), None)
        if first is None:
            return [None] * self.layers
        if all(parent is first for parent in parents):
            path = first.path()
            return [
                tuple(  # type: ignore[misc] # of two
                    torch.cat([segment.layers[layer][kind] for segment in path], 1).expand(len(parents), -1, -1, -1)
                    for kind in (0, 1)
                )
                for layer in range(self.layers)
            ]
        paths = [parent.path() if parent else [] for parent in parents]
        pasts = []
        for layer in range(self.layers):
            keys, values = (
                like.new_zeros(len(parents), like.shape[0], width, like.shape[2]) for like in first.layers[layer]
            )
            for row, path in enumerate(paths):
                column = width - (path[-1].length if path else 0)
                for segment in path:
                    stop = column + len(segment.tokens)
                    keys[row, :, column:stop], values[row, :, column:stop] = segment.layers[layer]
                    column = stop
            pasts.append((keys, values))
        return pasts

    # --- Choices ---

    def score(self, requests: Sequence[list[list[int]]], rows: int) -> list[list[float]]:
        """For each option of each request, the log-probability of the tokens by which it differs, given what is shared.

        Args:
            requests: for each, the token ids of its options, which begin alike and none of which begins another.
            rows: most rows in one pass.
        """
        with self._computing():
            if not self.layers:
                return [self._numbers(self._score_whole(options)) for options in requests]
            shared = [shared_beginning(options) for options in requests]
            ends = self.read([options[0][: at - 1] for options, at in zip(requests, shared, strict=True)], rows)
            tails: list[_Tail] = []
            for options, at, end in zip(requests, shared, ends, strict=True):
                if all(len(option) == at + 1 for option in options):
                    tails.append(_Tail(end, options[0][at - 1 : at], [option[at:] for option in options]))
                else:
                    tails += [_Tail(end, option[at - 1 : -1], [option[at:]]) for option in options]
            sums: list[float] = []
            while tails:
                taken = fitting_rows([len(tail.read) for tail in tails[:rows]], self.vocabulary)
                sums += self._score_tails(tails[:taken])
                tails = tails[taken:]
        flat = iter(self._numbers(sums))
        return [[next(flat) for _ in options] for options in requests]

    def _numbers(self, of_choices: list[float]) -> list[float]:
        """The log-probabilities, if they are numbers."""
        if any(map(math.isnan, of_choices)):
            raise self._broken()
        return of_choices

    def _broken(self) -> ModelError:
        """What to say of a model whose logits are NaN: every reply would be made of one and the same token."""
        said = f"{self.model.config.name_or_path}: its model computes NaN in place of numbers"
        if self.model.dtype == torch.float16:
            return ModelError(
                f"{said} in float16, which has none above 65,504; type model.dtype=float32 (or that role's, such as "
                "labeler.dtype=float32)"
            )
        return ModelError(
            f"{said}, so its weights are broken; download it again, or train it anew with a lower learning_rate"
        )

    def _score_tails(self, tails: Sequence["_Tail"]) -> list[float]:
        width = max(len(tail.read) for tail in tails)
        logits, _ = self._continue([tail.read for tail in tails], [tail.end for tail in tails], width)
        logprobs = logits.float().log_softmax(-1)
        scored = [(row, tokens) for row, tail in enumerate(tails) for tokens in tail.scored]
        places = [(row, place, token) for row, tokens in scored for place, token in enumerate(tokens)]
        at = sent(torch.tensor(places).T, self.device)
        numbers = iter(logprobs[tuple(at)].tolist())  # the device is waited for once
        return [sum(islice(numbers, len(tokens))) for _, tokens in scored]

    def _score_whole(self, options: Sequence[list[int]]) -> list[float]:
        sums = []
        for option in options:
            tokens = torch.tensor(option[shared_beginning(options) :], device=self.device)
            logits = self.model(input_ids=torch.tensor([option], device=self.device)).logits[0, -len(tokens) - 1 : -1]
            sums.append(float(logits.float().log_softmax(-1).gather(-1, tokens[:, None]).sum()))
        return sums


def fitting_rows(lengths: Sequence[int], vocabulary: int) -> int:
    """How many of the rows, from the first on, may be scored in one pass: at least one.

    Whole responses have logits for each of their tokens, and a batch of long ones would fill the memory.

    Args:
        lengths: of the rows in tokens, to the longest of which those of a pass are filled up.
        vocabulary: numbers of a token's logits.
    """
    rows, longest = 0, 0
    for length in lengths:
        longest = max(longest, length)
        if rows and (rows + 1) * longest * vocabulary > MOST_LOGITS:
            break
        rows += 1
    return rows


def draw(rows: Sequence[Continuation], logits: torch.Tensor) -> list[int]:
    """The next token of each row.

    Args:
        rows: what is known of each.
        logits: (B, V).
    """
    sampled = [index for index, row in enumerate(rows) if row.sampling.temperature > 0]
    best: list[int] = [0] * len(rows)
    if len(sampled) < len(rows):  # otherwise the device would be waited for in vain
        best = logits.argmax(-1).tolist()
        if not sampled:
            return best
        logits = logits[sampled]
    device = logits.device
    temperatures = sent(torch.tensor([rows[index].sampling.temperature for index in sampled]), device)
    scaled = logits.float() / temperatures[:, None]
    weights = (scaled - scaled.amax(-1, keepdim=True)).exp()
    top_p = [rows[index].sampling.top_p for index in sampled]
    if narrow := [at for at, mass in enumerate(top_p) if mass < 1]:
        ordered, order = weights[narrow].sort(dim=-1, descending=True, stable=True)
        shares = ordered / ordered.sum(-1, keepdim=True)
        mass = torch.tensor([top_p[at] for at in narrow], device=device)[:, None]
        outside = shares.cumsum(-1) - shares >= mass
        weights[narrow] = torch.zeros_like(ordered).scatter(-1, order, ordered.masked_fill(outside, 0.0))
    uniform = [rows[index].uniform[len(rows[index].ids)] for index in sampled]
    for index, token in zip(sampled, invert(weights, uniform), strict=True):
        best[index] = token
    return best


def invert(weights: torch.Tensor, uniform: Sequence[float]) -> list[int]:
    """The token of each row at which the cumulative distribution passes a share of the whole.

    Args:
        weights: (B, V), probabilities times any factor.
        uniform: the shares, (B,), in [0, 1).
    """
    blocks = torch.nn.functional.pad(weights, (0, -weights.shape[1] % BLOCK)).view(len(weights), -1, BLOCK)
    exact = torch.device("cpu") if weights.device.type == "mps" else weights.device  # which has no 64 bits
    sums = blocks.sum(-1).to(exact, torch.float64).cumsum(-1)
    target = sent(torch.tensor(uniform, dtype=torch.float64), exact)[:, None] * sums[:, -1:]
    block = _passed(sums, target)
    before = torch.where(block > 0, sums.gather(-1, (block - 1).clamp(min=0)), 0.0)
    chosen = blocks[torch.arange(len(uniform), device=weights.device), block[:, 0].to(weights.device)]
    tokens: list[int] = (block * BLOCK + _passed(chosen.to(exact, torch.float64).cumsum(-1), target - before))[
        :, 0
    ].tolist()
    return [min(token, weights.shape[1] - 1) for token in tokens]  # the last block is filled up


def _passed(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Where (B, 1) the sums (B, N) first exceed the target (B, 1), which rounding may have put outside their range."""
    last = torch.nextafter(cumulative[:, -1:], torch.zeros_like(target))
    passed = torch.searchsorted(cumulative, torch.minimum(target.clamp(min=0.0), last), right=True)
    return passed.clamp(max=cumulative.shape[-1] - 1)  # of a broken model, whose numbers are NaN
