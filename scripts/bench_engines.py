"""How fast an engine answers, as ratios to the plain way of asking the same model.

    GOMP_SPINCOUNT=1000 python scripts/bench_engines.py local [--model FOLDER] [--requests 256] [--repeats 5]

All ways run in turns in one process, and medians are compared. Use an idle machine.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
        self.requests: list[Request] = []

    def session(self) -> Session:
        """A session of the engine, whose requests are remembered."""
        inner, requests = self.engine.session(), self.requests

        class Recorded:
            collect, close = inner.collect, inner.close

            def submit(self, ticket: Ticket, request: Request) -> None:
                requests.append(request)
                inner.submit(ticket, request)

        return Recorded()


def medians(repeats: int, *ways: Callable[[], float]) -> list[float]:
    """The median of what each way returns, after one run of each that does not count."""
    values = [[way() for way in ways] for _ in range(repeats + 1)][1:]
    return [statistics.median(column) for column in zip(*values, strict=True)]


def timed(work: Callable[[], object]) -> float:
    """Seconds that the work takes."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


# --- Requests ---


def sandbox_prompts(count: int) -> list[Prompt]:
    """Prompts of the sandbox."""
    return sandbox_prompt_set(count, 0, seed=1)


def mixed_requests(count: int) -> list[Request]:
    """Short questions, and long ones that ask to compare two responses; replies of at most 16 to 256 tokens."""
    rng = rng_of(1, "bench")
    requests = []
    for number, prompt in enumerate(sandbox_prompts(count)):
        messages = prompt.messages if number % 2 else comparison_question(prompt)
        sampling = Sampling(max_tokens=round(16 * 16 ** rng.random()))
        requests.append(Request(messages, sampling, seed=number))
    return requests


def comparison_question(prompt: Prompt) -> tuple[Message, ...]:
    """The labeler's question about two responses."""
    topic = " ".join(prompt.messages[-1].content.split()[-6:])
    comparison = Comparison(
        prompt=prompt,
        a=f"I am glad that you ask about {topic} Take your time, and begin with what you have at home. " * 2,
        b=f"{topic} That depends on the place, the weather and how much there is to do.",
    )
    task = JudgementTask(comparison, CONSTITUTION.principles[0])
    return Labeler(ScriptedEngine(str), PROMPTS, LabelerSettings(), 0)._question(task, "a_first")  # noqa: SLF001


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

    requests = mixed_requests(arguments.requests)

    def by_engine() -> float:
        started_s = time.perf_counter()
        tokens = sum(answer.completion_tokens for answer in engine.complete(requests))
        return tokens / (time.perf_counter() - started_s)

    def by_generate() -> float:
        started_s = time.perf_counter()
        return plain_replies(engine, requests) / (time.perf_counter() - started_s)

    ours, plain = medians(arguments.repeats, by_engine, by_generate)
    print(f"replies: {ours:,.0f} tokens/s, a loop of generate {plain:,.0f}: {ours / plain:.2f} times")

    verdicts = verdict_requests(arguments.requests)
    ours, plain = medians(
        arguments.repeats,
        lambda: timed(lambda: engine.complete(verdicts)),
        lambda: timed(lambda: plain_scores(engine, verdicts)),
    )
    rate = len(verdicts) / ours
    print(f"choices: {rate:,.0f} requests/s, a loop of forward passes {len(verdicts) / plain:,.0f}: ", end="")
    print(f"{plain / ours:.2f} times")

    recorder = Recorder(engine)
    settings = Settings(rounds=1, when_nothing_found="revise")
    reviser = Reviser(CONSTITUTION, recorder, recorder, PROMPTS, settings, 0)

    def by_stories() -> float:
        recorder.requests.clear()
        return timed(lambda: list(side_by_side(map(reviser.item, sandbox_prompts(arguments.requests)))))

    stories, bare = medians(arguments.repeats, by_stories, lambda: timed(lambda: engine.complete(recorder.requests)))
    print(f"drafts, critiques and revisions: {len(recorder.requests) / stories:,.0f} requests/s, ", end="")
    print(f"{bare / stories:.2f} times the bare engine")


ENGINES = {"local": local}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--model", default=str(MODEL_FOLDER), help="a folder; the sandbox's model without it")
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="torch's threads")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    ENGINES[arguments.engine](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
