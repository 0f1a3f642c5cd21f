"""A local OpenAI-compatible server that does as a test tells it, faults included."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

Json = dict[str, Any]


class Answer(NamedTuple):
    """What the server sends back to one request."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = {}
    after_s: float = 0.0
    drop: bool = False
    """Close the connection and send nothing."""
    good: bool = False
    """It is a reply that somebody pays for."""


def chat(text: str | None, after_s: float = 0.0, finish: str | None = "stop", **fields: object) -> Answer:
    """A sound reply of the chat endpoint; `fields` are those of its message, its choice's logprobs, and its usage."""
    usage = fields.pop("usage", {"prompt_tokens": 7, "completion_tokens": 3})
    model, logprobs = fields.pop("model", "mock"), fields.pop("logprobs", None)
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **fields}, "finish_reason": finish}
    body = {"id": "x", "model": model, "choices": [{**choice, "logprobs": logprobs}], "usage": usage}
    return Answer(json.dumps(body).encode(), after_s=after_s, good=True)


def error(status: int, message: str = "no", headers: Mapping[str, str] | None = None, **fields: object) -> Answer:
    body = {"error": {"message": message, **fields}}
    return Answer(json.dumps(body).encode(), status, headers or {})


def tops(*positions: Mapping[str, float]) -> Json:
    """Log-probabilities in the chat endpoint's form, of a greedy reply."""
    content = []
    for top in positions:
        text = max(top, key=lambda token: top[token])
        likeliest = [{"token": token, "logprob": logprob} for token, logprob in top.items()]
        content.append({"token": text, "logprob": top[text], "top_logprobs": likeliest})
    return {"content": content}


class FaultyServer:
    """Answers each POST with what `rule` makes of its body and of the number of POSTs before it."""

    def __init__(self, rule: Callable[[Json, int], Answer], models: tuple[str, ...] = ("mock",)) -> None:
        self.rule = rule
        self.models = models
        self.asked: list[Json] = []
        """The bodies of all POSTs."""
        self.headers: list[str] = []
        self.paths: list[str] = []
        self.open = 0
        self.most_open = 0
        self.good = 0
        """Sound replies that were sent to somebody who still waited."""
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def listen(self) -> None:
        self._call(self._listen())

    def down(self) -> None:
        """Refuse connections, and end those that there are."""
        self._call(self._down())

    def _call(self, coroutine: Any) -> None:  # noqa: ANN401
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(5)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._server:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while await self._serve(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, path, _ = head.split(" ", 2)
        length = next(
            (line.split(":")[1] for line in head.split("\r\n") if line.lower().startswith("content-len")), "0"
        )
        raw = await reader.readexactly(int(length))
        if method == "GET":
            listed = json.dumps({"data": [{"id": name} for name in self.models]}).encode()
            answer = Answer(listed) if self.models else Answer(b"none", 404)
        else:
            self.asked.append(json.loads(raw))
            self.headers.append(head)
            self.paths.append(path)
            answer = self.rule(self.asked[-1], len(self.asked) - 1)
            if not await self._waited(answer.after_s, reader):
                return False
        if answer.drop:
            return False
        headers = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        start = f"HTTP/1.1 {answer.status} X\r\nContent-Length: {len(answer.body)}\r\n{headers}\r\n"
        self.good += answer.good
        writer.write(start.encode() + answer.body)
        await writer.drain()
        return True

    async def _waited(self, seconds: float, reader: asyncio.StreamReader) -> bool:
        """Whether the client still waits after so long."""
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            async with asyncio.timeout(seconds or 0.001):
                await reader.read(1)
            return False
        except TimeoutError:
            return True
        finally:
            self.open -= 1

    @contextmanager
    def running(self) -> Iterator["FaultyServer"]:
        thread = threading.Thread(target=self._loop.run_forever)
        thread.start()
        try:
            self.listen()
            yield self
        finally:
            self.down()
            self._loop.call_soon_threadsafe(self._loop.stop)
            thread.join()
            self._loop.close()


@contextmanager
def serving(rule: Callable[[Json, int], Answer], models: tuple[str, ...] = ("mock",)) -> Iterator[FaultyServer]:
    with FaultyServer(rule, models).running() as server:
        yield server
