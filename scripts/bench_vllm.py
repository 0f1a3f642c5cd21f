"""How fast a chain and labelling are through the engine, as a share of bare vLLM's speed on the same requests.

    python scripts/bench_vllm.py --rows 256 --repeats 5

Engine and bare vLLM take turns. For the chain (a draft, a critique, a revision) bare vLLM answers in three rounds, each
of which waits for all rows; labelling asks which of two replies is better. Prints medians, and the median ratio.
"""

import argparse
import statistics
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from constitutional.base.records import Message
from constitutional.engines.base import Request, Sampling
from constitutional.engines.models import Models
from constitutional.engines.settings import ModelSettings, VllmSettings
from constitutional.engines.stories import ask, side_by_side
from constitutional.engines.vllm import VllmEngine, engine_arguments
from constitutional.engines.vllm_child import VllmCore, Work

CRITIQUE = "Judge your last response by one principle. Say what the principle asks.\n\nPrinciple: Be kind."
REVISE = "Now write the response again so that it follows the principle."
LABEL = "Here are two responses.\n\n(A) {a}\n\n(B) {b}\n\nWhich of them is kinder? Principle: Be kind."


def user(text: str) -> Message:
    """A user's turn."""
    return Message("user", text)


def request(row: int, turns: Sequence[Message], tokens: int) -> Request:
    """A reply to a conversation, drawn by the row's seed."""
    return Request(tuple(turns), Sampling(max_tokens=tokens), row)


async def chain(engine: VllmEngine, row: int, tokens: int, seen: list[list[Request]]) -> None:
    """One row of critique and revision; what it asks is noted by round."""
    turns = [user(f"What should I know about number {row}?")]
    for number, follow_up in enumerate((CRITIQUE, REVISE, "")):
        asked = request(row, turns, tokens)
        seen[number].append(asked)
        reply = await ask(engine, asked)
        turns += [Message("assistant", reply.text), user(follow_up)]


async def label(engine: VllmEngine, row: int, seen: list[list[Request]]) -> None:
    """One pair, in both orders."""
    replies = f"It is number {row}, and I like it.", f"Look it up yourself, number {row} is dull."
    for a, b in (replies, replies[::-1]):
        asked = Request((user(LABEL.format(a=a, b=b)),), choices=(" A", " B"))
        seen[0].append(asked)
        await ask(engine, asked)


def bare(core: VllmCore, engine: VllmEngine, requests: Sequence[Request]) -> None:
    """Let vLLM alone answer requests that are all there."""
    for number, asked in enumerate(requests):
        rows = engine.tokens.rows(asked, None)
        if asked.choices:
            work = Work(rows[0][:-1], next_tokens=tuple(row[-1] for row in rows))
        else:
            work = Work(rows[0], asked.sampling, asked.seed, engine.ends)
        core.add(str(number), work)
    while core.busy:
        for _ in core.step():
            pass


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="sandbox")
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    models = Models()
    settings = VllmSettings(memory=0.25).over(ModelSettings(path=options.model, dtype="float32"))
    engine = VllmEngine(settings, models.server)
    engine.complete([request(0, [user("Hello")], 4)])
    core = VllmCore(engine_arguments(engine.folder, settings))

    def stories(kind: str, repeat: int, seen: list[list[Request]]) -> list[Coroutine[Any, Any, None]]:
        rows = range(repeat * options.rows, (repeat + 1) * options.rows)  # others every time: none was read before
        if kind == "chain":
            return [chain(engine, row, options.tokens, seen) for row in rows]
        return [label(engine, row, seen) for row in rows]

    for kind, rounds in (("chain", 3), ("labelling", 1)):
        times: list[tuple[float, float]] = []
        for repeat in range(options.repeats + 1):
            seen: list[list[Request]] = [[] for _ in range(rounds)]
            started = time.perf_counter()
            list(side_by_side(stories(kind, repeat, seen)))
            own_s = time.perf_counter() - started
            for requests in seen:
                bare(core, engine, requests)
            times.append((own_s, time.perf_counter() - started - own_s))
        del times[0]  # a warm-up
        ours, alone = (statistics.median(column) for column in zip(*times, strict=True))
        ratio = statistics.median(bare_s / own_s for own_s, bare_s in times)
        print(f"{kind}: engine {ours:.2f} s, bare vLLM {alone:.2f} s, speed {ratio:.2f} of bare vLLM", flush=True)
    models.release()


if __name__ == "__main__":
    main()
