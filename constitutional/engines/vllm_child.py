"""vLLM's engine, and the process in which it answers for `engines/vllm.py`.

The process reads work from a connection while vLLM computes, so that a request enters the batch of the next step, and
sends results on in the step in which they are finished, on a CPU some steps later. It ends when the process that
started it ends, however that is.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from constitutional.engines.base import Sampling

if TYPE_CHECKING:
    import torch

AT_ONCE: Final = 128
"""Most tokens whose log-probabilities vLLM gives by name for one place."""
STEPS_ON_CPU: Final = 16
"""On a CPU, a step that reads prompts is slow for the rows that go on as well, and so is a process that asks while vLLM
computes on all cores: new rows enter together, and results go on together."""
WATCH_S: Final = 0.5
"""How often the process looks whether its parent is still there."""


class Work(NamedTuple):
    """One row of tokens: to be answered, or to give log-probabilities."""

    ids: list[int]
    sampling: Sampling = Sampling()
    seed: int = 0
    ends: tuple[int, ...] = ()
    """Tokens that end a reply."""
    drawn: bool = False
    """Whether the log-probabilities of the reply's tokens are wanted."""
    next_tokens: tuple[int, ...] = ()
    """Tokens whose log-probabilities behind the row are wanted, and no reply; at most `AT_ONCE`."""
    scored_from: int | None = None
    """The log-probabilities of the row's own tokens from this place on are wanted, and no reply."""


class Result(NamedTuple):
    """What became of a row, or why nothing did."""

    ids: Sequence[int] = ()
    """The reply's tokens, its end included."""
    logprobs: Sequence[float] = ()
    """Those that were wanted, in order."""
    cached: int = 0
    """Tokens of the row that vLLM had read before."""
    stopped: bool = False
    """Whether the reply ended by itself."""
    error: str = ""


class VllmCore:
    """vLLM in this process.

    Args:
        arguments: of vLLM's EngineArgs.
        adapter: the folder of a LoRA adapter; empty for none.
    """

    def __init__(self, arguments: Mapping[str, Any], adapter: str = "") -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from vllm import EngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.llm_engine import LLMEngine

        self.engine: Any = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._adapter = LoRARequest("adapter", 1, adapter) if adapter else None
        self._running: dict[str, Work] = {}

    def add(self, key: str, work: Work, *, again: bool = False) -> None:
        """Take a row; `again` reads all of it anew.

        Raises:
            ValueError: vLLM does not take it.
        """
        self.engine.add_request(
            key, {"prompt_token_ids": work.ids}, _parameters(work, again=again), lora_request=self._adapter
        )
        self._running[key] = work

    @property
    def busy(self) -> bool:
        """Whether rows are in work."""
        return bool(self._running)

    def step(self) -> Iterator[tuple[str, Result]]:
        """Compute one step, and tell what it finished."""
        for output in self.engine.step():
            if not output.finished or output.request_id not in self._running:
                continue
            work = self._running.pop(output.request_id)
            # vLLM leaves out the log-probabilities of what it had read before.
            if work.scored_from is not None and (output.num_cached_tokens or 0) >= work.scored_from:
                self.add(output.request_id, work, again=True)
            else:
                yield output.request_id, _result(output, work)

    def abort(self, keys: list[str]) -> None:
        """Give rows up."""
        running = [key for key in keys if self._running.pop(key, None)]
        self.engine.abort_request(running)

    def close(self) -> None:
        """Give back what vLLM holds of this process."""
        import gc

        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        self.engine.engine_core.shutdown()
        del self.engine
        destroy_model_parallel()
        destroy_distributed_environment()
        gc.collect()


QUIET: Final = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound to cores, two models or a busy machine share the same ones
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",  # by one token, which is drawn and not read, where only choices are read
}
"""What the environment says to vLLM unless the user has said otherwise."""


def _parameters(work: Work, *, again: bool) -> Any:  # noqa: ANN401 - vLLM's
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    final = RequestOutputKind.FINAL_ONLY
    if work.next_tokens:
        return SamplingParams(
            temperature=0, max_tokens=1, logprob_token_ids=list(work.next_tokens), detokenize=False, output_kind=final
        )
    if work.scored_from is not None:
        return SamplingParams(
            temperature=0,
            max_tokens=1,
            prompt_logprobs=0,
            skip_reading_prefix_cache=again,
            detokenize=False,
            output_kind=final,
        )
    sampling = work.sampling
    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_tokens,
        seed=work.seed,
        stop=list(sampling.stop),
        stop_token_ids=list(work.ends),
        ignore_eos=True,  # it is among the ends
        logprobs=0 if work.drawn else None,
        detokenize=bool(sampling.stop),
        output_kind=final,
    )


def _result(output: Any, work: Work) -> Result:  # noqa: ANN401 - vLLM's
    reply, cached = output.outputs[0], output.num_cached_tokens or 0
    if work.next_tokens:
        logprobs = [reply.logprobs[0][token].logprob for token in work.next_tokens]
        return Result(logprobs=logprobs, cached=cached)
    if work.scored_from is not None:
        places = range(work.scored_from, len(work.ids))
        logprobs = [output.prompt_logprobs[place][work.ids[place]].logprob for place in places]
        return Result(logprobs=logprobs, cached=cached)
    ids, logprobs = list(reply.token_ids), []
    if work.drawn:
        logprobs = [place[token].logprob for place, token in zip(reply.logprobs, ids, strict=True)]
    return Result(ids, logprobs, cached, reply.finish_reason == "stop")


def take_over(engine: Any, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:  # noqa: ANN401 - vLLM's
    """Give an engine in this process other weights, by the names of the model's files; it forgets what it has read."""
    engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
    engine.apply_model(_pack_tied_head)
    engine.reset_prefix_cache()


def _pack_tied_head(model: Any) -> None:  # noqa: ANN401 - vLLM's
    """Let the output layer take over the embeddings that it shares; on a CPU it computes with a packed copy."""
    head: Any = getattr(model, "lm_head", None)
    if hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


# --- The process ---


def _serve(connection: Connection, core: VllmCore, every: int) -> None:
    """Read `add` with a key and work, and `abort` with keys; send `results`, each with its key.

    Args:
        connection: to the process that asks.
        core: answers.
        every: steps after which is read what has come, and sent what is finished; where nothing is in work, at once.
    """
    step, finished = 0, list[tuple[str, Result]]()
    while True:
        step = step + 1 if core.busy else 0
        while step % every == 0 and connection.poll(0 if core.busy else None):
            kind, content = connection.recv()
            if kind == "abort":
                core.abort(content)
                continue
            try:
                core.add(*content)
            except (ValueError, TypeError) as error:  # of this row; the others go on
                connection.send(("results", [(content[0], Result(error=str(error)))]))
        finished += core.step()
        if finished and (step % every == 0 or not core.busy):
            connection.send(("results", finished))
            finished = []


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    os._exit(1)


def main() -> None:
    """Serve the process that started this one over the connection whose number is the first argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told as well, and ends this process
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        arguments, adapter = connection.recv()
        core = VllmCore(arguments, adapter)
        from vllm.platforms import current_platform

        _serve(connection, core, STEPS_ON_CPU if current_platform.is_cpu() else 1)
    except (EOFError, BrokenPipeError):
        os._exit(0)
    except Exception as error:  # noqa: BLE001 - the parent tells the user, whatever it is
        import traceback

        traceback.print_exc()
        connection.send(("failed", f"{type(error).__name__}: {error}"))
        os._exit(1)
