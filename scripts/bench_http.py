"""Calls a second of three chained calls a row, over HTTP: here, by a bare client, and by distilabel and DataDesigner.

    python scripts/bench_http.py                                              this project's, and a bare client's
    python scripts/bench_http.py --distilabel di/bin/python --data-designer dd/bin/python --repeats 3

The environments of the peers are made with `pip install "distilabel[openai]==1.5.3"` and `pip install
"data-designer==0.9.*"`. A local server, a process of its own, answers each call after 50 ms. A row's second call holds
the first one's reply, and the third both: response, critique, revision. The bare client is aiohttp with a semaphore,
which keeps nothing; this project's way is `side_by_side` over a journal on disk, whose engine finds out by itself how
many requests should be open. Every measurement is a fresh process; all take turns. The server takes the time, from the
first call's arrival to the last one's answer: what a client does before and after is not counted.

Measured on two idle CPU cores, 64 open requests, November 2026, medians of 3 turns: ours 1,084 calls/s, the bare client
1,045 (2,000 rows), distilabel 194 and DataDesigner 250 (600 rows). Where other work takes the cores, ours falls behind
the bare client (0.64 at a load of 20), as it takes a third more CPU time a call.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

LATENCY_S: Final = 0.05
STEPS: Final = 3
LONGEST_S: Final = 300
"""After which a client counts as stuck."""


# --- The server ---


def serve() -> None:
    """Answer chat requests after `LATENCY_S`, and say on standard output on which port."""
    content = "This is an answer that is about as long as a short reply of a model is."
    message = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 10, "completion_tokens": 10, "total_tokens": 20}
    reply = {"id": "x", "object": "chat.completion", "created": 0, "model": "mock", "choices": [message]}
    models = {"object": "list", "data": [{"id": "mock", "object": "model"}]}

    calls = 0
    first_s = last_s = 0.0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls, first_s, last_s
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.lower().split(b"\r\n")
                length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
                await reader.readexactly(length)
            except (asyncio.IncompleteReadError, ConnectionError):
                writer.close()
                return
            answer: Any = models
            if length:
                first_s = first_s or time.monotonic()
                await asyncio.sleep(LATENCY_S)
                calls, last_s, answer = calls + 1, time.monotonic(), {**reply, "usage": usage}
            elif b"/span" in lines[0]:
                answer = [calls, last_s - first_s]
            body = json.dumps(answer).encode()
            headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
            writer.write(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + body)

    async def main() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, backlog=1024)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def serving() -> Iterator[str]:
    """The server's url, while it runs."""
    command = [sys.executable, str(Path(__file__)), "--part", "server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
        finally:
            process.kill()


# --- The clients ---


def ours(rows: int, url: str, concurrency: int) -> None:
    """Through a journal in a folder that is deleted."""
    from constitutional.base.records import Message
    from constitutional.engines.base import Request
    from constitutional.engines.http import HttpEngine
    from constitutional.engines.journal import Journal, JournalEngine
    from constitutional.engines.settings import HttpSettings
    from constitutional.engines.stories import ask, side_by_side

    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal.sqlite") as journal:
        settings = HttpSettings(url=url, model="mock", concurrency=concurrency)
        engine = JournalEngine(HttpEngine(settings), journal)

        async def row(number: int) -> str:
            messages = [Message("user", f"question {number}")]
            for _ in range(STEPS):
                reply = await ask(engine, Request(tuple(messages)))
                messages += [Message("assistant", reply.text), Message("user", "next")]
            return messages[-2].content

        assert sum(1 for text in side_by_side(row(number) for number in range(rows)) if text) == rows


def bare(rows: int, url: str, concurrency: int) -> None:
    """With nothing but a semaphore."""
    import aiohttp

    async def main() -> None:
        semaphore = asyncio.Semaphore(concurrency)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

            async def row(number: int) -> None:
                messages = [{"role": "user", "content": f"question {number}"}]
                for _ in range(STEPS):
                    body = {"model": "mock", "messages": messages}
                    async with semaphore, http.post(f"{url}/chat/completions", json=body) as response:
                        text = (await response.json())["choices"][0]["message"]["content"]
                    messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "next"}]

            await asyncio.gather(*map(row, range(rows)))

    asyncio.run(main())


def distilabel(rows: int, url: str, concurrency: int) -> None:
    """Its pipeline of three text generations, without its cache."""
    from distilabel.models import OpenAILLM  # type: ignore[import-not-found]
    from distilabel.pipeline import Pipeline  # type: ignore[import-not-found]
    from distilabel.steps import LoadDataFromDicts  # type: ignore[import-not-found]
    from distilabel.steps.tasks import TextGeneration  # type: ignore[import-not-found]

    def generation(*columns: str, reply: str) -> Any:  # noqa: ANN401
        llm = OpenAILLM(model="mock", base_url=url, api_key="none", generation_kwargs={"max_new_tokens": 64})
        return TextGeneration(
            llm=llm,
            name=reply,
            columns=list(columns),
            template=" next ".join(f"{{{{ {column} }}}}" for column in columns),
            input_batch_size=concurrency,
            output_mappings={"generation": reply},
        )

    with Pipeline(name="three") as pipeline:
        data = [{"question": f"question {number}"} for number in range(rows)]
        load = LoadDataFromDicts(data=data, batch_size=concurrency)
        reply = generation("question", reply="reply")
        critique = generation("question", "reply", reply="critique")
        load >> reply >> critique >> generation("question", "reply", "critique", reply="revision")
    assert len(pipeline.run(use_cache=False)["default"]["train"]) == rows


def data_designer(rows: int, url: str, concurrency: int) -> None:
    """Its three text columns."""
    import data_designer.config as dd  # type: ignore[import-not-found]
    from data_designer.interface import DataDesigner  # type: ignore[import-not-found]

    provider = dd.ModelProvider(name="local", endpoint=url, api_key="none")
    parameters = dd.ChatCompletionInferenceParams(max_parallel_requests=concurrency, temperature=1.0, max_tokens=64)
    model = dd.ModelConfig(
        alias="m", model="mock", provider="local", skip_health_check=True, inference_parameters=parameters
    )
    builder = dd.DataDesignerConfigBuilder(model_configs=[model])
    builder.add_column(
        dd.SamplerColumnConfig(name="q", sampler_type=dd.SamplerType.UUID, params=dd.UUIDSamplerParams())
    )
    prompt = "question {{ q }}"
    for name in ("reply", "critique", "revision"):
        builder.add_column(dd.LLMTextColumnConfig(name=name, model_alias="m", prompt=prompt))
        prompt += f" {{{{ {name} }}}} next"
    with tempfile.TemporaryDirectory() as folder:
        designer = DataDesigner(artifact_path=folder, model_providers=[provider])
        assert len(designer.create(builder, num_records=rows, dataset_name="three").load_dataset()) == rows


CLIENTS: Final = {"ours": ours, "bare": bare, "distilabel": distilabel, "data_designer": data_designer}


def measure(name: str, python: str, rows: int, concurrency: int) -> float:
    """Calls a second of one client, in a fresh process and with a fresh server."""
    with serving() as url:
        command = [python, str(Path(__file__)), "--part", name, "--url", url]
        command += ["--rows", str(rows), "--concurrency", str(concurrency)]
        environment = {**os.environ, "OPENAI_API_KEY": "none"}
        try:
            done = subprocess.run(
                command, check=False, capture_output=True, text=True, env=environment, timeout=LONGEST_S
            )
        except subprocess.TimeoutExpired:
            sys.exit(f"bench_http.py: {name} had not ended after {LONGEST_S} s")
        with urllib.request.urlopen(f"{url}/span") as response:  # noqa: S310 - the server is ours
            calls, seconds = json.loads(response.read())
    if done.returncode:
        sys.exit(f"bench_http.py: {name} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    assert calls == STEPS * rows, f"{name} made {calls} calls"
    return float(calls / seconds)


def main() -> None:
    """Measure in turns, and print the medians and their ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--peer-rows", type=int, default=2000, help="rows of distilabel and DataDesigner")
    parser.add_argument("--concurrency", type=int, default=64, help="most open requests; of distilabel, its batches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--distilabel", metavar="PYTHON", help="of an environment that has it")
    parser.add_argument("--data-designer", metavar="PYTHON", help="of an environment that has it")
    parser.add_argument("--json", type=Path, help="write what was measured here")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "server":
        serve()
    elif options.part:
        CLIENTS[options.part](options.rows, options.url, options.concurrency)
    else:
        pythons = {"ours": sys.executable, "bare": sys.executable}
        pythons |= {name: path for name in ("distilabel", "data_designer") if (path := getattr(options, name))}
        rates: dict[str, list[float]] = {name: [] for name in pythons}
        for _ in range(options.repeats):
            for name, python in pythons.items():
                rows = options.rows if name in ("ours", "bare") else options.peer_rows
                rates[name].append(measure(name, python, rows, options.concurrency))
        own = statistics.median(rates["ours"])
        for name, values in rates.items():
            rate = statistics.median(values)
            spread = f"{min(values):,.0f} to {max(values):,.0f}"
            print(f"{name:14}{rate:8,.0f} calls/s ({spread})   ours / {name}: {own / rate:.2f}")
        if options.json:
            options.json.write_text(json.dumps(rates, indent=1))


if __name__ == "__main__":
    main()
