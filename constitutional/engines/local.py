"""A transformers model in this process.

A token is drawn by inverting the cumulative distribution at one uniform number that comes from the request's own seed
and the token's index, so neither the order nor the size of batches decides what is drawn.

The logits themselves move by rounding errors with the shape of a batch. So requests are answered in waves: a wave is a
few batches, within which a reply that has ended makes room for the next request, and the answers of a wave are handed
on together. Which requests make a wave depends on nothing but what is waiting, and all that happens within it on these
requests alone: a run that was killed computes the same waves again. (Rows whose bits depend on no other row would allow
to hand on each answer at once. In batches of one fixed shape some processors' libraries compute such rows, but not
all do, and rows that have ended would have to be computed on.) Only where memory runs out and the batch is halved may a
run that is killed afterwards differ in rounding from one that is not.
"""

import hashlib
import json
import logging
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.cores import shared_cores
from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.engines.architecture import cache_bytes, unloadable
from constitutional.engines.base import Completion, Engine, Request, Ticket
from constitutional.engines.chat import (
    NOW,
    Arguments,
    ChatTokens,
    check_answering,
    context_length,
    end_tokens,
    load_tokenizer,
    shared_beginning,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


MOST_ON_CPU: Final = 64
MOST_ON_GPU: Final = 256
"""Batch sizes beyond which a batch is hardly faster."""
USUAL_TOKENS: Final = 2048
"""Tokens of a conversation and its reply for which memory is planned."""
FILLED: Final = 0.7
"""The part of the memory that the model, and keys and values, are to take."""
WAVE: Final = 4
"""Batches of a wave: more lose less time while the last replies end, and a kill loses more."""
OVERFLOWING: Final = ("gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "glm4", "plamo2")
"""Kinds of models whose numbers grow larger than float16 has any; vLLM refuses most of them in it."""
LARGE: Final = 50_000_000
"""Parameters of a model that is large for a CPU."""


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
        ConfigurationError: there is no such device.
        ModelError: the model cannot be loaded, or lacks what the project needs of it.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    # Bars over a model's weights would stand among the lines that say how far a run is.
    disable_progress_bar()  # type: ignore[no-untyped-call]
    device, dtype = placed(device, dtype, folder)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigurationError(
            f"device={device}: PyTorch finds no GPU here; type device=cpu, or leave it empty to take what there is"
        )
    tokenizer = load_tokenizer(folder, pad_token=pad_token, template=template)
    check_answering(tokenizer)
    try:
        # Other files of weights are not in a model's identity.
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False
        )
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the signature
    except (OSError, ValueError, RuntimeError, ImportError, AssertionError, MemoryError, SafetensorError) as error:
        if out_of_memory(error):
            half = "type dtype=bfloat16 beside its path, or " if dtype == "float32" else ""
            raise ModelError(
                f"{folder}: does not fit into the memory of the {device} in {dtype}: {_first_line(error)}; {half}take "
                "a smaller model or a larger machine; `constitutional plan` says what fits"
            ) from error
        raise unloadable(folder, error) from error
    model.generation_config = _only_ends(model, tokenizer)
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
    return hashlib.sha256(f"local 3 {_versions()} {weights} {dtype} {device} {NOW:%Y-%m-%d}".encode()).hexdigest()


def placed(device: str, dtype: str, folder: Path | str = "") -> tuple[str, str]:
    """Where a model goes and in which number format, where an empty device and `auto` leave that to the machine.

    That is a CUDA or ROCm GPU, or else Apple's, or else the CPU; bfloat16 on a GPU that computes in it, float16 on one
    that does not, and float32 on the CPU and where the model in `folder` is of a kind that float16 is too small for.

    Raises:
        ConfigurationError: there is no such device.
    """
    import torch

    if device:
        _check_device(device)
    else:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if dtype == "auto":
        dtype = "float32"
        if device.startswith("cuda"):
            old = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0)
            dtype = "float16" if old else "bfloat16"
        elif device.startswith("mps"):
            dtype = "bfloat16" if torch.backends.mps.is_macos_or_newer(14, 0) else "float16"
        if dtype == "float16" and _overflows(folder):
            dtype = "float32"
    return device, dtype


def _overflows(folder: Path | str) -> bool:
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # that it cannot be read, loading it says
        return False
    return config.get("model_type") in OVERFLOWING


def _check_device(device: str) -> None:
    """Refuse what is no device. A machine without any GPU passes: answers of one may all be in a journal."""
    import torch

    try:
        index = torch.device(device).index or 0
    except RuntimeError as error:
        raise ConfigurationError(
            f"device={device} is no device that PyTorch knows; type cpu, cuda, cuda:1 for the second GPU, mps, or "
            "leave it empty to take what there is"
        ) from error
    gpus = torch.cuda.device_count() if device.startswith("cuda") and torch.cuda.is_available() else 0
    if 0 < gpus <= index:
        raise ConfigurationError(
            f"device={device}: this machine has {gpus} GPU{'s' if gpus > 1 else ''}, and the last one is "
            f"cuda:{gpus - 1}; CUDA_VISIBLE_DEVICES may hide others"
        )


class LocalEngine(Engine):
    """Answers with a model that is already in memory. Sessions of several threads take turns, wave by wave.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        batch_size: most requests that are answered at the same time; None leaves that to the memory of the machine.
        say: told of a batch that did not fit into memory.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        batch_size: int | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer: Any = tokenizer
        self.batch_size = batch_size or fitting_batch(model)
        self.say = say or logging.getLogger(__name__).warning
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

    @property
    def wave_size(self) -> int:
        """Most requests that are answered before any answer is handed on.

        A large model on a CPU takes long for a single batch, and has little overhead that would be worth saving.
        """
        large = self.model.device.type == "cpu" and self.model.num_parameters() > LARGE
        return self.batch_size if large else WAVE * self.batch_size

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
        """One completion for each request, in order, of a wave: all ask for replies, or all have choices.

        Where memory runs out the batch is halved; a request that does not fit alone gets the finish `error`.

        Args:
            requests: the requests.
            rows: what `rows` made of each.
        """
        answers: dict[int, Completion] = {}
        # The longest first: if memory ends, then at once; and the last rows, which are alone, are short.
        waiting = sorted(range(len(requests)), key=lambda number: (-max(map(len, rows[number])), number))
        size, failed = self.batch_size, False
        with self._lock, shared_cores():
            while waiting:
                taken = waiting[:1] if size == 1 else waiting
                if problem := self._out_of_memory(lambda: self._answer(taken, requests, rows, size, answers)):  # noqa: B023
                    free_memory()
                    if size == 1:
                        answers[taken[0]] = Completion("", "error", reason=f"{problem}, even for this request alone")
                        failed = True
                    else:
                        self.say(f"{problem}; going on with batches of {size // 2} in place of {size}")
                        size //= 2
                elif failed:  # the request that was too long is out of the way
                    size, failed = max(1, self.batch_size // 2), False
                waiting = [number for number in waiting if number not in answers]
        if not any(answer.failed for answer in answers.values()):
            self.batch_size = size
        return [answers[number] for number in range(len(requests))]

    def _out_of_memory(self, work: Callable[[], None]) -> str:
        """Do the work; where memory runs out, say so once nothing holds what is to be freed, as a traceback does."""
        try:
            work()
        except (MemoryError, RuntimeError) as error:  # also torch.OutOfMemoryError
            if not out_of_memory(error):
                raise
            return f"no memory is left for the model: {_first_line(error)}"
        return ""

    def _answer(
        self,
        taken: Sequence[int],
        requests: Sequence[Request],
        rows: Sequence[list[list[int]]],
        size: int,
        answers: dict[int, Completion],
    ) -> None:
        """Answer some of the requests; `answers` holds all that were finished, also if memory ends."""
        from constitutional.engines.decoding import Continuation, Decoder

        ends = set(end_tokens(self.tokenizer, self.model.config, self.model.generation_config))
        decoder = Decoder(self.model, ends, self.tokenizer.pad_token_id)
        if requests[0].choices:
            for start in range(0, len(taken), size):
                batch = taken[start : start + size]
                scores = decoder.score([rows[number] for number in batch], size)
                for number, logprobs in zip(batch, scores, strict=True):
                    common = shared_beginning(rows[number])
                    tokens = sum(len(option) - common for option in rows[number])
                    answers[number] = Completion(
                        "", "choices", tuple(logprobs), prompt_tokens=common, completion_tokens=tokens
                    )
            return
        writing: dict[Continuation, int] = {}
        for number in taken:
            sampling, seed = requests[number].sampling, requests[number].seed
            stopped = partial(self._stopped, sampling.stop) if sampling.stop else None
            writing[Continuation(rows[number][0], sampling, seed, stopped)] = number

        def done(row: Continuation) -> None:
            answer = self._tokens.completion(requests[writing[row]], row.prompt, row.ids, ends)
            answers[writing[row]] = answer._replace(prompt_tokens=len(row.prompt))

        decoder.write(list(writing), size, done)

    def _stopped(self, stops: Sequence[str], ids: list[int]) -> bool:
        """Whether one of the texts is at the end of a reply; a token may be no character, so a few more are read."""
        end = self.tokenizer.decode(ids[-max(map(len, stops)) - 8 :], skip_special_tokens=True)
        return any(stop in end for stop in stops)


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
        except ModelError as error:
            self._failed.append((ticket, Completion.of_error(error)))

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """What could not be asked for; and, unless the time is 0, the answers of the next wave."""
        answers, self._failed = self._failed, []
        if self._waiting and not answers and timeout_s != 0:
            wave = self._wave()
            requests, rows = zip(*(self._waiting[ticket] for ticket in wave), strict=True)
            answers = list(zip(wave, self._engine.answer(requests, rows), strict=True))
            for ticket in wave:
                del self._waiting[ticket]
        return answers

    def _wave(self) -> list[Ticket]:
        """The earliest requests of one kind, so that items are finished from the first minutes on.

        Of replies and choices, those that fill a wave come first.
        """
        size = self._engine.wave_size
        kinds: defaultdict[bool, list[Ticket]] = defaultdict(list)
        for ticket, (request, _) in self._waiting.items():
            kinds[bool(request.choices)].append(ticket)
        kind = min(kinds.values(), key=lambda tickets: (-min(len(tickets), size), min(tickets)))
        return sorted(kind)[:size]

    def close(self) -> None:
        """Forget what is waiting."""
        self._waiting.clear()


def fitting_batch(model: "PreTrainedModel") -> int:
    """A batch that should fit into the memory of the model's device beside the model, at conversations of usual length.

    It depends on how much memory there is, not on how much is free, so that it is the same whenever a run goes on.
    """
    import torch

    if model.device.type == "cuda":
        memory, most = torch.cuda.get_device_properties(model.device).total_memory, MOST_ON_GPU
    elif model.device.type == "mps":
        memory, most = torch.mps.recommended_max_memory(), MOST_ON_CPU
    else:
        memory, most = physical_memory(), MOST_ON_CPU
    weights = sum(weight.nbytes for weight in model.parameters())
    return batch_beside(weights, cache_bytes(model.config, model.dtype.itemsize), memory, most)


def batch_beside(weights: float, token: float, memory: float, most: int) -> int:
    """The batch that should fit beside the weights (bytes), where keys and values of a token have `token` bytes."""
    # A part of it is left to what is computed, and prompts that wait take as much as those that are being answered.
    return max(1, min(most, int((memory * FILLED - weights) / (2 * max(1, token) * USUAL_TOKENS))))


def physical_memory(root: Path = Path("/")) -> int:
    """Bytes of memory that this process may have: the machine's, or less where a container or a job has a limit.

    Where the system does not say, enough for any batch.
    """
    try:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        machine = 1 << 50
    return min([machine, *_memory_limits(root)])


def _memory_limits(root: Path) -> Iterator[int]:
    """The limits of this process's control group and of those that it is in, by either version of Linux's."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for group in groups:
        _, kinds, path = group.split(":", 2)
        if kinds and "memory" not in kinds.split(","):
            continue
        folder = root / ("sys/fs/cgroup/memory" if kinds else "sys/fs/cgroup")
        for part in ("", *path.strip("/").split("/")):
            folder /= part
            with suppress(OSError, ValueError):  # no limit is the word max, and a container may not see its own path
                yield int((folder / ("memory.limit_in_bytes" if kinds else "memory.max")).read_text(encoding="utf-8"))


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the GPU's or the machine's memory is used up."""
    import torch

    texts = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def _first_line(error: BaseException) -> str:
    """What an error says, of which many lines may follow; a bare MemoryError says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def free_memory() -> None:
    """Give back what models that nothing refers to any more hold, on the GPU too."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
