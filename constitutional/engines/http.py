"""A model behind an OpenAI-compatible server: vLLM, SGLang, llama.cpp's server, a hosted service.

A thread with an event loop sends the requests of all sessions. It exists as long as a session is open. `concurrency.py`
decides how many requests are open at a time, `server.py` asks, and `replies.py` reads the answer. This module decides
what becomes of a request: it is sent again until its deadline, and then marked as failed. Where the server is down,
everything waits for it, and after the patience is at an end the run stops. All that was answered until then is handed
on before.
"""

import asyncio
import heapq
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import cached_property
from itertools import count
from random import uniform
from typing import Final

import aiohttp

from constitutional.base.errors import ModelError
from constitutional.base.progress import clock
from constitutional.base.threads import in_thread
from constitutional.engines.base import Abilities, Completion, Engine, Request, Ticket
from constitutional.engines.concurrency import Limiter, back_off_s
from constitutional.engines.journal import Journal
from constitutional.engines.replies import USAGE, Fault
from constitutional.engines.server import Server
from constitutional.engines.settings import HttpSettings

Say = Callable[[str], None]

ABILITIES: Final = ("logprobs", "prefill", "structured")
"""What a server may be able to do, as the settings call it."""
DOWN_AFTER: Final = 10
"""Failures in a row, without any success, after which a server counts as down."""
DOWN_TRIES: Final = 3
"""So often one of the requests must have failed too: a burst of refusals is none of these."""
USELESS_TRIES: Final = 3
"""Tries of a request to which a server that works gives replies of no use, such as nothing but thoughts."""
LONGEST_PROBE_WAIT_S: Final = 15.0


MOST_USELESS: Final = 20
"""Such requests one after the other, without any reply, at which a run stops."""


class HttpEngine(Engine):
    """A server that is asked.

    Args:
        settings: where it is, and what is asked of it.
        say: tells the user a line, such as that the server is down.
        journal: gives the journal that remembers what the server can do; None asks it anew in every process.

    Raises:
        ConfigurationError: the endpoint needs a tokenizer. The key is read when the server is first asked.
    """

    elsewhere = True

    def __init__(
        self, settings: HttpSettings, say: Say | None = None, journal: Callable[[], Journal] | None = None
    ) -> None:
        self.settings = settings
        self.say = say or (lambda _: None)
        self.journal = journal
        self.server = Server(settings)
        self.limiter = Limiter(settings.concurrency)
        self._worker: _Worker | None = None
        self._sessions = 0
        self._lock = threading.Lock()

    @cached_property
    def abilities(self) -> Abilities:  # type: ignore[override]
        """What the server can do, by the settings; what they leave open, it is asked once.

        A failure that does not tell counts as no until the process ends, and the next process asks again.

        Raises:
            ModelError: it does not answer.
        """
        able = self.known_abilities()
        if unknown := [name for name in ABILITIES if name not in able]:
            # In a thread of its own, because this one may have an event loop, as in a notebook.
            answers = in_thread(lambda: asyncio.run(self.server.probe(unknown)), "probe").result()
            if self.journal:
                told = {name: answer for name, answer in answers.items() if answer is not None}
                self.journal().remember(self.weights, told)
            able |= {name: bool(answer) for name, answer in answers.items()}
        return Abilities(able["logprobs"], able["prefill"], seeds=False, structured=able["structured"])

    def known_abilities(self) -> dict[str, bool]:
        """What is known of the abilities without asking: from the settings, and from the journal."""
        able = self.journal().abilities(self.weights) if self.journal else {}
        if self.settings.endpoint == "completions":
            able["prefill"] = True
        told = {name: getattr(self.settings, name) for name in ABILITIES}
        return able | {name: value == "yes" for name, value in told.items() if value != "auto"}

    @property
    def weights(self) -> str:
        """`http`, the model's name, the url, and a digest of the settings that answers depend on beside them."""
        return self.server.identity

    @property
    def identity(self) -> str:
        """The same, as of the machine that answers nothing else is known; and how a prompt is written, if it is here.

        The number is to be raised where that changes, or what is read from replies to it.
        """
        return f"{self.server.identity} 2" if self.settings.endpoint == "completions" else self.server.identity

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

    __slots__ = ("before", "began_s", "request", "session", "task", "ticket", "tries", "used")

    def __init__(self, session: HttpSession, ticket: Ticket, request: Request) -> None:
        self.session = session
        self.ticket = ticket
        self.request = request
        self.tries = 0
        self.before: Fault | None = None
        """Why the latest try was none that counts."""
        self.began_s: float | None = None
        """When it was first sent; None before, and after the server was down."""
        self.task: asyncio.Task[None] | None = None
        self.used = Counter[str]()
        """Tokens of all its tries."""

    def deliver(self, completion: Completion) -> None:
        """Hand the answer over, with what all tries have cost."""
        read, cached, written = (self.used[name] for name in USAGE)
        whole = completion._replace(prompt_tokens=read, cached_tokens=cached, completion_tokens=written)
        self.session.deliver(self.ticket, whole)


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
        self._faults = deque[tuple[Fault, _Job]](maxlen=DOWN_AFTER)
        """The latest since the last success."""
        self._useless = 0
        """Requests to which the server gave nothing of use, since its last reply."""
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
        try:
            async with self._server.connect() as self._http:
                await self._meet()
                await self._stopped.wait()
                tasks = [job.task for job in self._open if job.task]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        except Exception as error:  # noqa: BLE001 - raised in the sessions' own threads
            self._fail(error)
            await self._stopped.wait()

    async def _meet(self) -> None:
        await self._server.meet(self._http)
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
            job.before = None
        outcome: Completion | Fault | Exception
        try:
            async with asyncio.timeout(max(0.0, job.began_s + self._settings.deadline_s - sent_s)):
                outcome = await self._server.ask(self._http, job.request, job.used)
        except TimeoutError:
            reason = f"no answer came within {self._settings.deadline_s:g} s"
            if job.before:  # a try that the deadline cut short tells less than the one before it
                reason = f"no answer came in what was left of that, and before it: {job.before.reason}"
            outcome = Fault("silent", reason)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is raised in the session's own thread
            outcome = error
        except asyncio.CancelledError:
            self._open.discard(job)
            self._tell()
            self._pump()
            raise
        self._open.discard(job)
        self._settle(job, outcome, self._loop.time() - sent_s)
        self._tell()
        self._pump()

    def _settle(self, job: _Job, outcome: Completion | Fault | Exception, latency_s: float) -> None:
        if isinstance(outcome, Completion) or (isinstance(outcome, Fault) and outcome.kind == "useless"):
            self._faults.clear()
            if self._down_since_s is not None:
                self._up()
        if isinstance(outcome, Completion):
            self._useless = 0
            if not outcome.failed:
                self._engine.limiter.answered(latency_s, waiting=bool(self._queue))
            job.deliver(outcome)
        elif isinstance(outcome, Exception):
            self._fail(outcome)
        elif outcome.kind == "fatal":
            self._fail(ModelError(f"{self._settings.url}: {outcome.reason}"))
        else:
            self._again(job, outcome, latency_s)

    def _again(self, job: _Job, fault: Fault, latency_s: float) -> None:
        now_s, deadline_s = self._loop.time(), self._settings.deadline_s
        job.tries += 1
        job.before = fault
        if fault.kind != "useless":
            self._faults.append((fault, job))
        if fault.kind == "busy":
            self._engine.limiter.refused(now_s, latency_s)
        end_s = (job.began_s or now_s) + deadline_s
        many = len(self._faults) == DOWN_AFTER and (job.tries >= DOWN_TRIES or now_s >= end_s)
        # One request at which a server fails again and again, as it fails at no other, is no server that is down.
        many = many and not (fault.kind == "again" and all(job is other for _, other in self._faults))
        if self._down_since_s is not None or many or (fault.after_s or 0.0) > deadline_s:
            self._put(job)
            self._down(fault)
            return
        wait_s = max(back_off_s(job.tries), (fault.after_s or 0.0) * uniform(1.0, 1.1))
        useless = fault.kind == "useless" and job.tries >= USELESS_TRIES
        if now_s + wait_s < end_s and not useless:
            self._loop.call_later(wait_s, self._requeue, job)
            return
        self._useless += useless
        if self._useless >= MOST_USELESS:
            self._fail(
                ModelError(
                    f"{self._settings.url} gave nothing of use to {self._useless} requests one after the other; the "
                    f"last time: {fault.reason}. Where the model thinks without end, turn that off or raise the lengths"
                )
            )
        tries = f"{job.tries} tries" if job.tries > 1 else "1 try"
        reason = f"no reply in {tries} within {deadline_s:g} s; the last time: {fault.reason}"
        job.deliver(Completion("", "error", reason=reason))

    def _requeue(self, job: _Job) -> None:
        self._put(job)
        self._pump()

    # A server that is down.

    def _down(self, fault: Fault) -> None:
        """Stop sending, and look now and then whether the server is there again."""
        if self._down_since_s is not None:
            self._reason = fault.reason
            return
        kind = fault.kind
        if (fault.after_s or 0.0) <= self._settings.deadline_s:  # a stray refusal is not why a server is down
            kind = Counter(latest.kind for latest, _ in self._faults).most_common(1)[0][0]
            fault = next(latest for latest, _ in reversed(self._faults) if latest.kind == kind)
        self._down_since_s, self._reason, self._probe_wait_s = self._loop.time(), fault.reason, 1.0
        state = {"silent": "does not answer", "busy": "is overloaded"}.get(kind, "answers with errors only")
        patience_s, first_s = self._settings.patience_s, max(1.0, fault.after_s or 0.0)
        if first_s > patience_s:
            self._give_up(f"wants to be asked again in {clock(first_s)}" if fault.after_s else state)
            return
        self._engine.say(
            f"{self._settings.url} {state}: {fault.reason}; the run waits for it, {clock(patience_s)} at most"
        )
        self._loop.call_later(first_s, self._look)

    def _look(self) -> None:
        """Send one request to a server that is down, unless one is on its way."""
        if self._down_since_s is None or self._failure is not None:
            return
        left_s = self._down_since_s + self._settings.patience_s - self._loop.time()
        if left_s <= 0:
            self._give_up(f"has given no reply for {clock(self._settings.patience_s)}")
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
