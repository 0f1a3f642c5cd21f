"""How fast an engine answers, as ratios to the plain way of asking the same model.

    python scripts/bench_engines.py local [--model FOLDER] [--requests 256] [--repeats 5]
    python scripts/bench_engines.py vllm [--model FOLDER] [--requests 256] [--repeats 5]

All ways take turns; the ratios are medians of the turns' ratios. Use an idle machine. Through the stages means: the
stages' own code over a journal on disk. The bare engine answers the same requests in rounds, each of which waits for
the one before, and keeps nothing; no turn has a prompt of another.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.cores import spin_briefly

spin_briefly()

import torch  # noqa: E402 - it reads how long to spin when it is imported

from constitutional.base.records import Comparison, Message, Prompt  # noqa: E402
from constitutional.base.seeds import rng_of  # noqa: E402
from constitutional.base.shipped import MODEL_FOLDER, shipped  # noqa: E402
from constitutional.base.templates import load_prompts  # noqa: E402
from constitutional.constitution.file import load_constitution  # noqa: E402
from constitutional.engines.base import Engine, Request, Sampling, Session, Ticket  # noqa: E402
from constitutional.engines.journal import Journal, JournalEngine  # noqa: E402
from constitutional.engines.scripted import ScriptedEngine  # noqa: E402
from constitutional.engines.stories import side_by_side  # noqa: E402
from constitutional.judging.labeler import JudgementTask, Labeler, LabelerSettings  # noqa: E402
from constitutional.sandbox.prompts import sandbox_prompt_set  # noqa: E402
from constitutional.stages.critique_revise import Reviser, Settings  # noqa: E402

if TYPE_CHECKING:
    from constitutional.engines.local import LocalEngine

PROMPTS = load_prompts()
CONSTITUTION = load_constitution(shipped("constitutions") / "sandbox_warm.yaml")


class Recorder(Engine):
    """An engine that remembers what it was asked."""

    weights = identity = ""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rounds: dict[int, list[Request]] = {}
        """By how many answers a story had awaited before."""

    def session(self) -> Session:
        """A session of the engine, whose requests are remembered."""
        inner, rounds = self.engine.session(), self.rounds

        class Recorded:
            collect, close = inner.collect, inner.close

            def submit(self, ticket: Ticket, request: Request) -> None:
                rounds.setdefault(ticket[-2], []).append(request)
                inner.submit(ticket, request)

        return Recorded()


def medians(repeats: int, ours: Callable[[], float], plain: Callable[[], float]) -> tuple[float, float, float]:
    """Of what both ways return in turns, the medians and that of ours / plain, after a turn that does not count."""
    turns = [(ours(), plain()) for _ in range(repeats + 1)][1:]
    own, other = (statistics.median(column) for column in zip(*turns, strict=True))
    return own, other, statistics.median(a / b for a, b in turns)


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


# --- Requests ---


def sandbox_prompts(count: int, seed: int = 1) -> list[Prompt]:
    """Prompts of the sandbox."""
    return sandbox_prompt_set(count, 0, seed=seed)


def mixed_requests(count: int) -> list[Request]:
    """Short questions, and long ones that ask to compare two responses; replies of at most 16 to 256 tokens."""
    rng = rng_of(1, "bench")
    requests = []
    for number, prompt in enumerate(sandbox_prompts(count)):
        messages = prompt.messages if number % 2 else comparison_question(prompt)
        sampling = Sampling(max_tokens=round(16 * 16 ** rng.random()))
        requests.append(Request(messages, sampling, seed=number))
    return requests


def comparison_task(prompt: Prompt) -> JudgementTask:
    """Two responses to a prompt, to be judged by a principle."""
    topic = " ".join(prompt.messages[-1].content.split()[-6:])
    comparison = Comparison(
        prompt=prompt,
        a=f"I am glad that you ask about {topic} Take your time, and begin with what you have at home. " * 2,
        b=f"{topic} That depends on the place, the weather and how much there is to do.",
    )
    return JudgementTask(comparison, CONSTITUTION.principles[0])


def comparison_question(prompt: Prompt) -> tuple[Message, ...]:
    """The labeler's question about two responses."""
    labeler = Labeler(ScriptedEngine(str), PROMPTS, LabelerSettings(), 0)
    return labeler._question(comparison_task(prompt), "a_first")  # noqa: SLF001


def verdict_requests(count: int) -> list[Request]:
    """Requests for the probabilities of a verdict behind a comparison."""
    return [
        Request((*comparison_question(prompt), Message("assistant", "Better:")), choices=(" A", " B"))
        for prompt in sandbox_prompts(count)
    ]


# --- The plain ways ---


def plain_batches(engine: "LocalEngine", rows: Sequence[list[int]]) -> Iterator[tuple[slice, Any, Any]]:
    """Batches in the given order, padded on the left: ids and mask (B, T)."""
    for start in range(0, len(rows), engine.batch_size):
        batch = rows[start : start + engine.batch_size]
        width = max(map(len, batch))
        ids = torch.tensor([[engine.tokenizer.pad_token_id] * (width - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
        place = slice(start, start + len(batch))
        yield place, ids.to(engine.model.device), mask.to(engine.model.device)


def plain_replies(engine: "LocalEngine", requests: Sequence[Request]) -> int:
    """Tokens that a plain loop of `generate` writes, those behind a reply's end or its last allowed token left out."""
    tokens = 0
    ends = torch.tensor(engine.model.generation_config.eos_token_id)
    model: Any = engine.model
    rows = [engine.rows(request)[0] for request in requests]
    for place, ids, mask in plain_batches(engine, rows):
        limits = [request.sampling.max_tokens for request in requests[place]]
        with torch.inference_mode():
            written = model.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, top_k=0, top_p=1.0, max_new_tokens=max(limits)
            )[:, ids.shape[1] :].cpu()
        for row, limit in zip(written, limits, strict=True):
            at = torch.isin(row, ends).nonzero()
            tokens += min(limit, int(at[0]) + 1 if len(at) else len(row))
    return tokens


def plain_scores(engine: "LocalEngine", requests: Sequence[Request]) -> list[float]:
    """Log-probabilities of each option's last token, by a plain loop over whole rows."""
    rows = [row for request in requests for row in engine.rows(request)]
    scores: list[float] = []
    for _, ids, mask in plain_batches(engine, rows):
        with torch.inference_mode():
            logits = engine.model(input_ids=ids, attention_mask=mask, logits_to_keep=2).logits[:, 0]
        scores += logits.float().log_softmax(-1).gather(-1, ids[:, -1:])[:, 0].tolist()
    return scores


# --- Engines ---


def local(arguments: argparse.Namespace) -> None:
    """The transformers engine."""
    from constitutional.engines.local import LocalEngine, load_model

    engine = LocalEngine(*load_model(arguments.model), batch_size=arguments.batch_size)
    print(f"{arguments.model}: {engine.model.num_parameters():,} parameters, {engine.model.device.type}, ", end="")
    print(f"{str(engine.model.dtype).removeprefix('torch.')}, batches of {engine.batch_size}")

    if arguments.only != "stages":
        against_plain_loops(engine, arguments)
    if arguments.only != "plain":
        through_stages(engine, engine.complete, arguments)


def against_plain_loops(engine: "LocalEngine", arguments: argparse.Namespace) -> None:
    """Replies against a loop of `generate`, and choices against a loop of forward passes."""
    requests = mixed_requests(arguments.requests)

    def by_engine() -> float:
        started_s = time.perf_counter()
        tokens = sum(answer.completion_tokens for answer in engine.complete(requests))
        return tokens / (time.perf_counter() - started_s)

    def by_generate() -> float:
        started_s = time.perf_counter()
        return plain_replies(engine, requests) / (time.perf_counter() - started_s)

    ours, plain, ratio = medians(arguments.repeats, by_engine, by_generate)
    print(f"replies: {ours:,.0f} tokens/s, a loop of generate {plain:,.0f}: {ratio:.2f} times", flush=True)

    verdicts = verdict_requests(arguments.requests)
    ours, plain, ratio = medians(
        arguments.repeats,
        lambda: len(verdicts) / timed(lambda: engine.complete(verdicts)),
        lambda: len(verdicts) / timed(lambda: plain_scores(engine, verdicts)),
    )
    print(f"choices: {ours:,.0f} requests/s, a loop of forward passes {plain:,.0f}: {ratio:.2f} times", flush=True)


def vllm(arguments: argparse.Namespace) -> None:
    """The vLLM engine, against vLLM in this process."""
    from constitutional.engines.models import Models
    from constitutional.engines.settings import ModelSettings, VllmSettings
    from constitutional.engines.vllm import VllmEngine, engine_arguments
    from constitutional.engines.vllm_child import VllmCore, Work

    models = Models()
    settings = VllmSettings(memory=0.25).over(ModelSettings(path=arguments.model, dtype="float32"))
    engine = VllmEngine(settings, models.server)
    engine.complete([Request((Message("user", "Hello"),), Sampling(max_tokens=4))])
    core = VllmCore(engine_arguments(engine.folder, settings))

    def bare(requests: Sequence[Request]) -> None:
        for number, request in enumerate(requests):
            rows = engine.tokens.rows(request, None)
            if request.choices:
                work = Work(rows[0][:-1], next_tokens=tuple(row[-1] for row in rows))
            else:
                work = Work(rows[0], request.sampling, request.seed, engine.ends)
            core.add(str(number), work)
        while core.busy:
            for _ in core.step():
                pass

    through_stages(engine, bare, arguments)
    models.release()


def through_stages(engine: Engine, bare: Callable[[Sequence[Request]], object], arguments: argparse.Namespace) -> None:
    """Critique and revision, and the labelling of pairs, against the bare engine."""
    recorder = Recorder(engine)
    turn = 0

    def by_stages(kind: str, folder: Path) -> float:
        nonlocal turn
        turn += 1
        recorder.rounds.clear()
        prompts = sandbox_prompts(arguments.requests, 1 + turn)
        with Journal(folder / f"{turn}.sqlite") as journal:
            through = JournalEngine(recorder, journal)
            if kind == CHAIN:
                settings = Settings(rounds=1, when_nothing_found="revise")
                reviser = Reviser(CONSTITUTION, through, through, PROMPTS, settings, 0)
                return timed(lambda: deque(side_by_side(map(reviser.item, prompts)), 0))
            labeler = Labeler(through, PROMPTS, LabelerSettings(), 0)
            return timed(lambda: deque(side_by_side(map(labeler.judge, map(comparison_task, prompts))), 0))

    def by_bare_engine() -> float:
        return timed(lambda: [bare(requests) for _, requests in sorted(recorder.rounds.items())])

    for kind in (CHAIN, "labelling of pairs"):
        with tempfile.TemporaryDirectory() as folder:
            ours, plain, ratio = medians(arguments.repeats, partial(by_stages, kind, Path(folder)), by_bare_engine)
        count = sum(map(len, recorder.rounds.values()))
        print(f"{kind}: {count:,} requests in {ours:.2f} s, by the bare engine in {plain:.2f} s: ", end="")
        print(f"{1 / ratio:.2f} times", flush=True)


CHAIN = "critique and revision"
ENGINES = {"local": local, "vllm": vllm}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--model", default=str(MODEL_FOLDER), help="a folder; the sandbox's model without it")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("plain", "stages"), help="of `local`: against plain loops, or the stages")
    parser.add_argument("--threads", type=int, help="torch's threads")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ENGINES[arguments.engine](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
