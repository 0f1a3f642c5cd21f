"""A model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp's server, a hosted service.

A thread with an event loop sends the requests of all sessions. It exists as long as a session is open. `concurrency.py`
decides how many requests are open at a time, `replies.py` what an answer means; this module decides what becomes of a
request: it is sent again until its deadline, and then marked as failed. Where the server is down, everything waits for
it, and after the patience is at an end the run stops. All that was answered until then is handed on before.
"""

import asyncio
import hashlib
import heapq
import json
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from random import uniform
from typing import Final, TypeVar
from urllib.parse import urlsplit

import aiohttp

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.progress import clock
from constitutional.base.records import Message
from constitutional.engines.base import Abilities, Completion, Engine, Request, Sampling, Ticket
from constitutional.engines.chat import ChatTokens, load_tokenizer, shared_beginning
from constitutional.engines.concurrency import Limiter, back_off_s
from constitutional.engines.models import READ
from constitutional.engines.replies import (
    TOP,
    Fault,
    Reply,
    chat_body,
    choice_scores,
    completions_body,
    read_reply,
    same_model,
)
from constitutional.engines.settings import HttpSettings

T = TypeVar("T")
Say = Callable[[str], None]

DOWN_AFTER: Final = 10
"""Failures in a row, without any success, after which a server counts as down."""
DOWN_TRIES: Final = 3
"""So often one of the requests must have failed too: a burst of refusals is none of these."""
LONGEST_PROBE_WAIT_S: Final = 15.0
SHORTEST_KEY: Final = 8
"""A key of fewer characters is none, such as `EMPTY` for a server without keys: it is not looked for in replies."""
PROBE_S: Final = 60.0
"""In which a server must answer a question about itself."""


class HttpEngine(Engine):
    """A server that is asked.

    Args:
        settings: where it is, and what is asked of it.
        say: tells the user a line, such as that the server is down.

    Raises:
        ConfigurationError: the environment variable of the key is not set, or the endpoint needs a tokenizer.
    """

    def __init__(self, settings: HttpSettings, say: Say | None = None) -> None:
        self.settings = settings
        self.say = say or (lambda _: None)
        self.server = _Server(settings)
        self.limiter = Limiter(settings.concurrency)
        self._worker: _Worker | None = None
        self._sessions = 0
        self._lock = threading.Lock()

    @cached_property
    def abilities(self) -> Abilities:  # type: ignore[override]
        """What the server can do, by the settings; what they leave open, it is asked once.

        Raises:
            ModelError: it does not answer.
        """
        wanted = ("logprobs", "prefill", "structured")
        told = {name: getattr(self.settings, name) for name in wanted}
        if self.settings.endpoint == "completions" and told["prefill"] == "auto":
            told["prefill"] = "yes"
        unknown = [name for name, value in told.items() if value == "auto"]
        able = {name: value == "yes" for name, value in told.items()}
        if unknown:
            with ThreadPoolExecutor(1) as pool:  # this thread may have an event loop, as in a notebook
                able |= pool.submit(asyncio.run, self.server.probe(unknown)).result()
        return Abilities(able["logprobs"], able["prefill"], seeds=False, structured=able["structured"])

    @property
    def weights(self) -> str:
        """`http`, the model's name, the url, and a digest of the settings that answers depend on beside them."""
        return self.server.identity

    @property
    def identity(self) -> str:
        """The same: of the machine that answers, nothing else is known."""
        return self.server.identity

    def session(self) -> "HttpSession":
        """A new session; the first one starts the thread that asks the server."""
        with self._lock:
            if self._worker is None:
                self._worker = _Worker(self)
            self._sessions += 1
            return HttpSession(self._worker, self._ended)

    def _ended(self) -> None:
        with self._lock:
            self._sessions -= 1
            worker = self._worker
            if self._sessions or worker is None:
                return
            self._worker = None
        worker.stop()


class HttpSession:
    """What one caller has asked of a server."""

    def __init__(self, worker: "_Worker", ended: Callable[[], None]) -> None:
        self._worker = worker
        self._ended = ended
        self._changed = threading.Condition()
        self._finished: list[tuple[Ticket, Completion]] = []
        self._failure: Exception | None = None
        self._outstanding = 0
        self.closed = False

    def submit(self, ticket: Ticket, request: Request) -> None:
        """Take a request; the thread sends it when there is room."""
        self._outstanding += 1
        self._worker.submit(_Job(self, ticket, request))

    def collect(self, timeout_s: float | None = None) -> list[tuple[Ticket, Completion]]:
        """What has finished since the last call; waits for the first where nothing has.

        Raises:
            ModelError: the server is down for too long, or refuses what every request needs.
        """
        with self._changed:
            if not self._finished and self._outstanding and self._failure is None and timeout_s != 0:
                self._changed.wait_for(lambda: self._finished or self._failure, timeout_s)
            finished, self._finished = self._finished, []
            self._outstanding -= len(finished)
            if not finished and self._failure is not None and self._outstanding:
                raise self._failure
            return finished

    def deliver(self, ticket: Ticket, completion: Completion) -> None:
        """Hand an answer over, from the thread."""
        with self._changed:
            self._finished.append((ticket, completion))
            self._changed.notify()

    def fail(self, error: Exception) -> None:
        """Say that there will be no more answers, from the thread."""
        with self._changed:
            self._failure = error
            self._changed.notify()

    def close(self) -> None:
        """Give up what is outstanding."""
        if not self.closed:
            self.closed = True
            self._worker.forget(self)
            self._ended()


class _Job:
    """A request on its way."""

    __slots__ = ("began_s", "request", "session", "task", "ticket", "tries")

    def __init__(self, session: HttpSession, ticket: Ticket, request: Request) -> None:
        self.session = session
        self.ticket = ticket
        self.request = request
        self.tries = 0
        self.began_s: float | None = None
        """When it was first sent; None before, and after the server was down."""
        self.task: asyncio.Task[None] | None = None


class _Worker:
    """The thread that asks a server. Everything but `submit`, `forget` and `stop` runs in its event loop."""

    def __init__(self, engine: HttpEngine) -> None:
        self._engine = engine
        self._settings = engine.settings
        self._server = engine.server
        self._inbox: deque[_Job] = deque()
        self._woken = False
        self._sessions: set[HttpSession] = set()
        self._queue: list[tuple[Ticket, int, _Job]] = []
        """Requests that wait to be sent, the earliest ticket first."""
        self._numbers = count()
        self._open: set[_Job] = set()
        self._failures = 0
        """How many there were since the last success."""
        self._down_since_s: float | None = None
        self._up_since_s = 0.0
        self._probe_wait_s = 1.0
        self._failure: Exception | None = None
        self._met = False
        self._http: aiohttp.ClientSession
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"http {engine.settings.model}", daemon=True)
        self._thread.start()

    # From other threads.

    def submit(self, job: _Job) -> None:
        self._inbox.append(job)
        if not self._woken:
            self._woken = True
            self._loop.call_soon_threadsafe(self._take)

    def forget(self, session: HttpSession) -> None:
        self._loop.call_soon_threadsafe(self._forget, session)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    # In the loop.

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        async with self._server.connect() as self._http:
            await self._meet()
            await self._stopped.wait()
            tasks = [job.task for job in self._open if job.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _meet(self) -> None:
        try:
            await self._server.meet(self._http)
        except Exception as error:  # noqa: BLE001 - raised in the sessions' own threads
            self._fail(error)
        self._met = True
        self._pump()

    def _take(self) -> None:
        self._woken = False
        while self._inbox:
            job = self._inbox.popleft()
            self._sessions.add(job.session)
            self._put(job)
        self._tell()
        self._pump()

    def _forget(self, session: HttpSession) -> None:
        self._sessions.discard(session)
        for job in self._open:
            if job.session is session and job.task:
                job.task.cancel()

    def _put(self, job: _Job) -> None:
        heapq.heappush(self._queue, (job.ticket, next(self._numbers), job))

    def _pump(self) -> None:
        """Send what there is room for."""
        while self._met and self._down_since_s is None and len(self._open) < self._engine.limiter.limit:
            if not self._send_next():
                return

    def _send_next(self) -> bool:
        """Send the request that is next; False where there is none."""
        while self._queue and self._failure is None:
            job = heapq.heappop(self._queue)[2]
            if not job.session.closed:
                self._open.add(job)
                job.task = self._loop.create_task(self._try(job))
                return True
        return False

    async def _try(self, job: _Job) -> None:
        sent_s = self._loop.time()
        if job.began_s is None or job.began_s < self._up_since_s or self._down_since_s is not None:
            job.began_s = sent_s  # the time in which the server is down counts for no request
        outcome: Completion | Fault | Exception
        try:
            async with asyncio.timeout(max(0.0, job.began_s + self._settings.deadline_s - sent_s)):
                outcome = await self._server.ask(self._http, job.request)
        except TimeoutError:
            outcome = Fault("again", f"no answer came within {self._settings.deadline_s:g} s")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised in the session's own thread
            outcome = error
        except asyncio.CancelledError:
            self._open.discard(job)
            self._tell()
            raise
        self._open.discard(job)
        self._settle(job, outcome, self._loop.time() - sent_s)
        self._tell()
        self._pump()

    def _settle(self, job: _Job, outcome: Completion | Fault | Exception, latency_s: float) -> None:
        if isinstance(outcome, Completion):
            self._failures = 0
            if self._down_since_s is not None:
                self._up()
            if not outcome.failed:
                self._engine.limiter.answered(self._loop.time(), latency_s, waiting=bool(self._queue))
            job.session.deliver(job.ticket, outcome)
        elif isinstance(outcome, Exception):
            self._fail(outcome)
        elif outcome.kind == "fatal":
            self._fail(ModelError(f"{self._settings.url}: {outcome.reason}"))
        else:
            self._again(job, outcome, latency_s)

    def _again(self, job: _Job, fault: Fault, latency_s: float) -> None:
        now_s, deadline_s = self._loop.time(), self._settings.deadline_s
        job.tries += 1
        self._failures += 1
        if fault.kind == "busy":
            self._engine.limiter.refused(now_s, latency_s)
        end_s = (job.began_s or now_s) + deadline_s
        many = self._failures >= DOWN_AFTER and (job.tries >= DOWN_TRIES or now_s >= end_s)
        if self._down_since_s is not None or many or (fault.after_s or 0.0) > deadline_s:
            self._put(job)
            self._down(fault)
            return
        wait_s = back_off_s(job.tries) if fault.after_s is None else fault.after_s * uniform(1.0, 1.1)
        if now_s + wait_s < end_s:
            self._loop.call_later(wait_s, self._requeue, job)
            return
        tries = f"{job.tries} tries" if job.tries > 1 else "1 try"
        reason = f"no reply in {tries} within {deadline_s:g} s; the last time: {fault.reason}"
        job.session.deliver(job.ticket, Completion("", "error", reason=reason))

    def _requeue(self, job: _Job) -> None:
        self._put(job)
        self._pump()

    # A server that is down.

    def _down(self, fault: Fault) -> None:
        """Stop sending, and look now and then whether the server is there again."""
        if self._down_since_s is not None:
            self._reason = fault.reason
            return
        self._down_since_s, self._reason, self._probe_wait_s = self._loop.time(), fault.reason, 1.0
        patience_s, first_s = self._settings.patience_s, max(1.0, fault.after_s or 0.0)
        if first_s > patience_s:
            self._give_up(f"wants to be asked again in {clock(first_s)}" if fault.after_s else "does not answer")
            return
        self._engine.say(
            f"{self._settings.url} does not answer: {fault.reason}; the run waits for it, {clock(patience_s)} at most"
        )
        self._loop.call_later(first_s, self._look)

    def _look(self) -> None:
        """Send one request to a server that is down, unless one is on its way."""
        if self._down_since_s is None or self._failure is not None:
            return
        left_s = self._down_since_s + self._settings.patience_s - self._loop.time()
        if left_s <= 0:
            self._give_up(f"has not answered for {clock(self._settings.patience_s)}")
            return
        if not self._open:
            self._send_next()
        self._probe_wait_s = min(2 * self._probe_wait_s, LONGEST_PROBE_WAIT_S)
        self._loop.call_later(min(self._probe_wait_s, left_s), self._look)

    def _give_up(self, what: str) -> None:
        self._fail(
            ModelError(
                f"{self._settings.url} {what}: {self._reason}. What was answered is kept; when the server is there "
                "again, the same command goes on"
            )
        )
        for job in self._open:
            if job.task:
                job.task.cancel()

    def _up(self) -> None:
        self._down_since_s, self._up_since_s = None, self._loop.time()
        self._engine.limiter = Limiter(self._settings.concurrency)
        self._engine.say(f"{self._settings.url} answers again; the run goes on")

    def _fail(self, error: Exception) -> None:
        """Send nothing more. The sessions learn of it when what is open has ended, so that no answer is lost."""
        if self._failure is None:
            self._failure = error
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        if self._failure is not None and not self._open:
            for session in self._sessions:
                session.fail(self._failure)


class _Server:
    """What is known of a server, and how one request is put to it."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
        self._key = _key(settings)
        self._unknown: set[str] = set()
        """Fields that it does not take."""
        self._echoes: bool | None = None
        """Whether it gives the log-probabilities of a prompt; None where nobody knows yet."""
        self._met = False
        if settings.endpoint == "completions" and not settings.tokenizer:
            raise ConfigurationError(
                "endpoint=completions needs the model's tokenizer, whose chat template it writes; set the role's "
                "tokenizer to a folder or a name on the hub, or endpoint=chat"
            )
        self.identity = self._identity()

    def _identity(self) -> str:
        settings = self.settings
        decisive = settings.model_dump(include={"endpoint", "extra", "revision"}, exclude_defaults=True)
        if settings.tokenizer and settings.endpoint == "completions":
            decisive["tokenizer"] = _tokenizer_digest(settings.tokenizer)
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
        return f"http {settings.model} {settings.url}" + (f" {digest[:16]}" if decisive else "")

    @cached_property
    def _tokens(self) -> ChatTokens:
        assert self.settings.tokenizer is not None, "checked when the engine was made"
        return ChatTokens(load_tokenizer(self.settings.tokenizer))

    def connect(self) -> aiohttp.ClientSession:
        """Connections to it, which are kept."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None),
            headers=headers,
            trust_env=urlsplit(self.settings.url).hostname not in ("127.0.0.1", "localhost", "::1"),
            auto_decompress=True,
        )

    async def ask(self, http: aiohttp.ClientSession, request: Request) -> Completion | Fault:
        """One try. It sends several requests, one after the other, where choices need it."""
        if request.choices:
            return await (self._chat_choices if self.settings.endpoint == "chat" else self._choices)(http, request)
        reply = await self._reply(http, request, {})
        return reply if isinstance(reply, Fault) else reply.completion

    async def meet(self, http: aiohttp.ClientSession) -> None:
        """Make sure, once, that a server is there that has the model.

        Raises:
            ModelError: there is none, or its list of models does not have it.
        """
        if self._met:
            return
        tries, url = 3, f"{self.settings.url}/models"
        for number in range(1, tries + 1):
            try:
                async with asyncio.timeout(10.0), http.get(url, allow_redirects=False) as response:
                    raw = await response.read() if response.status == 200 else b""
                break
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
                problem = self._without_key(_problem(error))
                if number == tries or isinstance(error, ValueError):
                    raise ModelError(
                        f"{self.settings.url} cannot be reached: {problem}; start the server, or correct the role's "
                        "url. The same command goes on"
                    ) from error
                await asyncio.sleep(back_off_s(number))
        self._met = True
        names = _listed(raw)
        model = str(self.settings.extra.get("model", self.settings.model))
        if names and not any(same_model(model, name) for name in names):
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise ModelError(
                f"{self.settings.url} has no model '{model}'; it lists {', '.join(names[:20])}{more}. Set the role's "
                "model to the name of one of them"
            )

    async def _reply(
        self, http: aiohttp.ClientSession, request: Request, fields: Mapping[str, object]
    ) -> Reply | Fault:
        """One reply; a field that the server does not take is left out from then on."""
        fields = {**fields, **self.settings.extra}
        while True:
            if self.settings.endpoint == "chat":
                body = chat_body(self.settings.model, request, fields, self._unknown)
            else:
                prompt = self._tokens.ids(request.messages)
                body = completions_body(self.settings.model, prompt, request, fields, self._unknown)
            reply = await self._post(http, body, request)
            if not isinstance(reply, Fault) or reply.kind != "unknown_field":
                return reply
            if reply.reason not in body:
                reason = f"the server refuses the field {reply.reason}, which it was not sent"
                return Reply(Completion("", "error", reason=reason))
            self._unknown.add(reply.reason)

    async def _post(self, http: aiohttp.ClientSession, body: Mapping[str, object], request: Request) -> Reply | Fault:
        path = "chat/completions" if self.settings.endpoint == "chat" else "completions"
        try:
            data = json.dumps(body).encode()
            async with http.post(f"{self.settings.url}/{path}", data=data, allow_redirects=False) as response:
                raw = await response.read()
                status, headers = response.status, response.headers
        except aiohttp.ClientConnectorCertificateError as error:
            return Fault("fatal", f"{self._without_key(_problem(error))}; correct the role's url")
        except (aiohttp.ClientError, OSError) as error:
            return Fault("again", self._without_key(_problem(error)))
        if self._key and len(self._key) >= SHORTEST_KEY:
            raw = raw.replace(self._key.encode(), b"[key]")
        reply = read_reply(status, headers, raw, self.settings.model, request, self.settings.api_key_env)
        return reply._replace(reason=self._without_key(reply.reason)) if isinstance(reply, Fault) else reply

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= SHORTEST_KEY else text

    # Choices.

    async def _chat_choices(self, http: aiohttp.ClientSession, request: Request) -> Completion | Fault:
        """Log-probabilities from the likeliest tokens; several requests where choices have more than one token."""
        begun = request.messages[-1].content if request.messages[-1].role == "assistant" else ""
        question = request.messages[:-1] if begun else request.messages
        # A space and the digits of a number may be tokens of their own.
        sampling = Sampling(0.0, max_tokens=min(4, max(map(len, request.choices))))
        scores = choice_scores(request.choices)
        text, read, cached, written = next(scores), 0, 0, 0
        while True:
            words = begun + text
            messages = (*question, Message("assistant", words)) if words else question
            reply = await self._reply(http, Request(messages, sampling), {"logprobs": True, "top_logprobs": TOP})
            if isinstance(reply, Fault) or reply.completion.failed:
                return reply if isinstance(reply, Fault) else reply.completion
            read += reply.completion.prompt_tokens
            cached += reply.completion.cached_tokens
            written += reply.completion.completion_tokens
            try:
                text = scores.send(reply.tokens)
            except StopIteration as end:
                completion: Completion = end.value
                return completion._replace(prompt_tokens=read, cached_tokens=cached, completion_tokens=written)

    async def _choices(self, http: aiohttp.ClientSession, request: Request) -> Completion | Fault:
        """Log-probabilities of whole choices, whose tokens the server echoes; else from the likeliest tokens."""
        if self._echoes is not False:
            rows = self._tokens.rows(request, None)
            fields = {"prompt": rows, "echo": True, "logprobs": 1, **self.settings.extra}
            sampling = Sampling(0.0, max_tokens=1)
            body = completions_body(
                self.settings.model, rows, Request(request.messages, sampling), fields, self._unknown
            )
            reply = await self._post(http, body, request)
            if isinstance(reply, Fault) and reply.kind != "unknown_field":
                return reply
            if not isinstance(reply, Fault) and reply.completion.finish in ("too_long", "refusal"):
                return reply.completion
            scores = () if isinstance(reply, Fault) else _echoed(rows, reply.prompt_logprobs)
            self._echoes = bool(scores)
            if scores and not isinstance(reply, Fault):
                return reply.completion._replace(text="", finish="choices", choice_logprobs=scores)
        return await self._chat_choices(http, request)

    # What it can do.

    async def probe(self, names: list[str]) -> dict[str, bool]:
        """Which of the abilities `logprobs`, `prefill` and `structured` it has.

        Raises:
            ModelError: it does not answer.
        """
        async with self.connect() as http:
            await self.meet(http)
            return {name: await getattr(self, f"_can_{name}")(http) for name in names}

    async def _can_logprobs(self, http: aiohttp.ClientSession) -> bool:
        question = (Message("user", "Is fire hot? Answer with A for yes or B for no."),)
        if self.settings.endpoint == "completions":
            answer = await self._persistently(lambda: self._choices(http, Request(question, choices=("A", "B"))))
            return answer.finish == "choices"
        request = Request(question, Sampling(0.0, max_tokens=16))
        reply = await self._persistently(lambda: self._reply(http, request, {"logprobs": True, "top_logprobs": TOP}))
        return bool(reply.tokens and reply.tokens[0].top)

    async def _can_prefill(self, http: aiohttp.ClientSession) -> bool:
        """Whether it goes on from an assistant's words; the length of the prompt tells, whatever the model replies."""

        async def length(words: str, *, told: bool = True) -> int:
            messages = (Message("user", "Count."), *((Message("assistant", words),) if words else ()))
            fields = {} if told else {"continue_final_message": False, "add_generation_prompt": True}
            request = Request(messages, Sampling(0.0, max_tokens=1))
            reply = await self._persistently(lambda: self._reply(http, request, fields))
            return 0 if reply.completion.failed else reply.completion.prompt_tokens

        words = "1 2 3 4 5 6"
        going_on = await length(words)
        if not going_on:
            return False
        if going_on < await length(words, told=False):
            return True
        # Without the fields it may go on too. Then the words add as many tokens as they do the second time.
        return going_on - await length("") <= await length(f"{words} {words}") - going_on + 1

    async def _can_structured(self, http: aiohttp.ClientSession) -> bool:
        properties = {"number": {"type": "integer"}}
        schema = {"type": "object", "properties": properties, "required": ["number"], "additionalProperties": False}
        messages = (Message("user", "Say hello to me in a sentence."),)
        request = Request(messages, Sampling(0.0, max_tokens=16), schema=json.dumps(schema))
        reply = await self._persistently(lambda: self._reply(http, request, {}))
        return not reply.completion.failed and reply.completion.text.lstrip().startswith("{")

    async def _persistently(self, ask: Callable[[], Awaitable[T | Fault]]) -> T:
        """The answer to a question about the server, which is asked a few times.

        Raises:
            ModelError: there is none.
        """
        reason = f"no answer within {PROBE_S:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_S):
                for tries in range(1, DOWN_AFTER):
                    answer = await ask()
                    if not isinstance(answer, Fault):
                        return answer
                    reason = answer.reason
                    if answer.kind == "fatal":
                        break
                    await asyncio.sleep(back_off_s(tries) if answer.after_s is None else answer.after_s)
        raise ModelError(
            f"{self.settings.url}: cannot be asked what it can do: {reason}. Start the server, or set the role's "
            "logprobs, prefill and structured to yes or no"
        )


def _key(settings: HttpSettings) -> str:
    """The key; empty where none is sent.

    Raises:
        ConfigurationError: the variable is not set, or holds no key.
    """
    name = settings.api_key_env
    if name is None:
        return ""
    key = os.environ.get(name, "").strip()
    if not key:
        raise ConfigurationError(
            f"the environment variable {name}, which should hold the key for {settings.url}, is not set; type "
            f"export {name}=… before the command, or set the role's api_key_env to another name, or to null for none"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigurationError(f"the environment variable {name} holds characters that no key has; set it anew")
    return key


def _tokenizer_digest(tokenizer: str) -> str:
    """Of a folder, SHA-256 of the files that transformers reads; else the name."""
    folder = Path(tokenizer).expanduser()
    if not folder.is_dir():
        return tokenizer
    names = sorted(path for path in folder.iterdir() if path.is_file() and READ.fullmatch(path.name))
    return hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in names)).hexdigest()


def _listed(raw: bytes) -> list[str]:
    """The names in a list of models; none where it is no such list."""
    try:
        return [str(entry["id"]) for entry in json.loads(raw)["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _echoed(rows: list[list[int]], logprobs: tuple[tuple[float | None, ...], ...]) -> tuple[float, ...]:
    """The log-probability of each row's own tokens; empty where the server did not tell all of them."""
    if len(logprobs) != len(rows):
        return ()
    common = shared_beginning(rows)
    sums = []
    for row, told in zip(rows, logprobs, strict=True):
        own = told[common : len(row)]
        if len(told) < len(row) or any(value is None for value in own):
            return ()
        sums.append(sum(value for value in own if value is not None))
    return tuple(sums)


def _problem(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
