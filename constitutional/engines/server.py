"""One request to an OpenAI-compatible server: what is sent, what came back, and what the server can do at all."""

import asyncio
import hashlib
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Final, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.files import at_home
from constitutional.base.records import Message
from constitutional.engines.base import Completion, Request, Sampling
from constitutional.engines.chat import ChatTokens, end_of_turn, load_tokenizer, shared_beginning
from constitutional.engines.concurrency import back_off_s
from constitutional.engines.model_files import READ
from constitutional.engines.replies import (
    TOP,
    USAGE,
    Fault,
    ServerReply,
    chat_body,
    choice_sampling,
    choice_scores,
    completions_body,
    read_reply,
    same_model,
)
from constitutional.engines.settings import HttpSettings

T = TypeVar("T")

SHORTEST_KEY: Final = 8
"""A key of fewer characters is none, such as `EMPTY` for a server without keys: it is not looked for in replies."""
PROBE_S: Final = 60.0
"""In which a server must answer a question about itself."""
PROBE_TRIES: Final = 6

NAMED: Final = {
    "logprobs": "logprob",
    "prefill": "continue_final_message|add_generation_prompt|prefill|assistant|last (message|role|turn)",
    "structured": "response_format|json|schema|structured|grammar",
}
"""By ability, a pattern of what a refusal names that is about it."""


class Server:
    """What is known of a server, and how one request is put to it."""

    def __init__(self, settings: HttpSettings) -> None:
        self.settings = settings
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
    def _key(self) -> str:
        return self.settings.key()

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
            proxy=_proxy(self.settings.url),  # `trust_env` would read ~/.netrc too, and send its passwords
            auto_decompress=True,
        )

    @property
    def _with_logprobs(self) -> Mapping[str, object]:
        return {"logprobs": True, "top_logprobs": TOP} if self.settings.endpoint == "chat" else {"logprobs": TOP}

    async def ask(self, http: aiohttp.ClientSession, request: Request, used: Counter[str]) -> Completion | Fault:
        """One try. It sends several requests, one after the other, where choices need it.

        Args:
            http: the connections.
            request: what is asked.
            used: counts the tokens of every reply that comes, by their names in `USAGE`, whatever the try ends in.

        Raises:
            ModelError: the tokenizer cannot be loaded.
        """
        chat = self.settings.endpoint == "chat"
        if not chat:
            _ = self._tokens  # where it cannot be loaded, nothing can be asked; a conversation may be refused alone
        try:
            if request.choices:
                return await (self._likeliest if chat else self._choices)(http, request, used)
            reply = await self._reply(http, request, {}, used)
        except ModelError as error:
            return Completion.of_error(error)
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
        names, model = _listed(raw), self.settings.model
        if "model" in self.settings.extra:
            return  # some servers take names that they do not list; the name that answers is looked at all the same
        if names and not any(same_model(model, name) for name in names):
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise ModelError(
                f"{self.settings.url} has no model '{model}'; it lists {', '.join(names[:20])}{more}. Set the role's "
                "model to the name of one of them; where the server takes names that it does not list, set extra.model "
                "to the name to ask, and model to the one that answers"
            )

    async def _reply(
        self, http: aiohttp.ClientSession, request: Request, fields: Mapping[str, object], used: Counter[str]
    ) -> ServerReply | Fault:
        """One reply; a field that the server does not take is left out from then on."""
        fields = {**fields, **self.settings.extra}
        while True:
            if self.settings.endpoint == "chat":
                body = chat_body(self.settings.model, request, fields, self._unknown)
            else:
                prompt = self._tokens.ids(request.messages)
                end = end_of_turn(self._tokens.tokenizer)
                ends = {"stop_token_ids": [end]} if end is not None else {}
                body = completions_body(self.settings.model, prompt, request, {**ends, **fields}, self._unknown)
            reply = await self._post(http, body, request, used)
            if not isinstance(reply, Fault):
                if self.settings.endpoint == "chat":
                    return reply
                thought, text = self._tokens.thoughts_apart(request, prompt, reply.completion.text)
                return reply._replace(completion=reply.completion._replace(text=text, reasoning=thought))
            if reply.kind != "unknown_field":
                return reply
            if reply.reason not in body:
                reason = f"the server refuses the field {reply.reason}, which it was not sent"
                return ServerReply(Completion("", "error", reason=reason))
            self._unknown.add(reply.reason)

    async def _post(
        self, http: aiohttp.ClientSession, body: Mapping[str, object], request: Request, used: Counter[str]
    ) -> ServerReply | Fault:
        path = "chat/completions" if self.settings.endpoint == "chat" else "completions"
        try:
            data = json.dumps(body).encode()
            async with http.post(f"{self.settings.url}/{path}", data=data, allow_redirects=False) as response:
                raw = await response.read()
                status, headers = response.status, response.headers
        except aiohttp.ClientConnectorCertificateError as error:
            return Fault("fatal", f"{self._without_key(_problem(error))}; correct the role's url")
        except (aiohttp.ClientError, OSError) as error:
            return Fault("silent", self._without_key(_problem(error)))
        reply = read_reply(status, headers, raw, self.settings.model, request, self.settings.api_key_env)
        if isinstance(reply, Fault):
            used.update(reply.used)
            return reply._replace(reason=self._without_key(reply.reason))
        told = reply.completion
        used.update({name: getattr(told, name) for name in USAGE})
        text, reason, reasoning = map(self._without_key, (told.text, told.reason, told.reasoning))
        return reply._replace(completion=told._replace(text=text, reason=reason, reasoning=reasoning))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key and len(self._key) >= SHORTEST_KEY else text

    # Choices.

    async def _likeliest(self, http: aiohttp.ClientSession, request: Request, used: Counter[str]) -> Completion | Fault:
        """Log-probabilities from the likeliest tokens; several requests where choices have more than one token."""
        begun = request.messages[-1].content if request.messages[-1].role == "assistant" else ""
        question = request.messages[:-1] if begun else request.messages
        sampling = choice_sampling(request.choices)
        scores = choice_scores(request.choices)
        text = next(scores)
        while True:
            words = begun + text
            messages = (*question, Message("assistant", words)) if words else question
            reply = await self._reply(http, Request(messages, sampling), self._with_logprobs, used)
            if isinstance(reply, Fault):
                return reply
            if reply.completion.failed and not text.isspace():  # some servers refuse words that end with a space
                return reply.completion
            try:
                text = scores.send(reply.tokens)
            except StopIteration as end:
                completion: Completion = end.value
                return completion

    async def _choices(self, http: aiohttp.ClientSession, request: Request, used: Counter[str]) -> Completion | Fault:
        """Log-probabilities of whole choices, whose tokens the server echoes; else from the likeliest tokens."""
        if self._echoes is False:
            return await self._likeliest(http, request, used)
        rows = self._tokens.rows(request, None)
        asked = Request(request.messages, Sampling(0.0, max_tokens=1))
        fields = {"echo": True, "logprobs": 1, **self.settings.extra}
        body = completions_body(self.settings.model, rows, asked, fields, self._unknown)
        reply = await self._post(http, body, asked, used)
        scores = () if isinstance(reply, Fault) else _echoed(rows, reply.prompt_logprobs)
        if scores and not isinstance(reply, Fault):
            self._echoes = True
            return reply.completion._replace(text="", finish="choices", choice_logprobs=scores)
        if isinstance(reply, Fault):
            if reply.kind == "unknown_field":
                self._unknown.add(reply.reason)
            return reply
        if reply.completion.finish in ("too_long", "refusal"):
            return reply.completion
        if self._echoes:
            return Fault("again", "the reply lacks log-probabilities of the prompt, which others had")
        self._echoes = _no(reply.completion, "echo|logprob|prompt|token")
        return await self._likeliest(http, request, used)

    # What it can do.

    async def probe(self, names: list[str]) -> dict[str, bool | None]:
        """Which of the abilities `logprobs`, `prefill` and `structured` it has; None where its answer does not tell.

        Raises:
            ModelError: it does not answer.
        """
        async with self.connect() as http:
            await self.meet(http)
            return {name: await self._can(name, http) for name in names}

    async def _can(self, name: str, http: aiohttp.ClientSession) -> bool | None:
        try:
            able: bool | None = await getattr(self, f"_can_{name}")(http)
        except _NoAnswerError as error:
            # Some servers fail at a field that they do not know (llama-cpp-python 0.3: status 500).
            if re.search(NAMED[name], error.reason, re.IGNORECASE):
                return False
            raise
        return able

    async def _can_logprobs(self, http: aiohttp.ClientSession) -> bool | None:
        question = (Message("user", "Is fire hot? Answer with A for yes or B for no."),)
        if self.settings.endpoint == "completions":
            choices = Request(question, choices=("A", "B"))
            scores = await self._persistently(lambda: self._choices(http, choices, Counter()))
            if scores.finish == "choices":
                return True
        request = Request(question, Sampling(0.0, max_tokens=16))
        reply = await self._persistently(lambda: self._reply(http, request, self._with_logprobs, Counter()))
        return bool(reply.tokens and reply.tokens[0].top) or _no(reply.completion, NAMED["logprobs"])

    async def _can_prefill(self, http: aiohttp.ClientSession) -> bool | None:
        """Whether it goes on from an assistant's words; the length of the prompt tells, whatever the model replies."""

        async def answer(words: str, *, told: bool = True) -> Completion:
            messages = (Message("user", "Count."), *((Message("assistant", words),) if words else ()))
            fields = {} if told else {"continue_final_message": False, "add_generation_prompt": True}
            request = Request(messages, Sampling(0.0, max_tokens=1))
            return (await self._persistently(lambda: self._reply(http, request, fields, Counter()))).completion

        words = "1 2 3 4 5 6"
        going_on = await answer(words)
        if going_on.failed or not going_on.prompt_tokens:
            return _no(going_on, NAMED["prefill"])
        if going_on.prompt_tokens < (await answer(words, told=False)).prompt_tokens:
            return True
        # Without the fields it may go on too. Then the words add as many tokens as they do the second time.
        bare, twice = await answer(""), await answer(f"{words} {words}")
        if bare.failed or twice.failed:
            return None
        return going_on.prompt_tokens - bare.prompt_tokens <= twice.prompt_tokens - going_on.prompt_tokens + 1

    async def _can_structured(self, http: aiohttp.ClientSession) -> bool | None:
        """Whether a reply is whole JSON; a small model that is held to a schema may never come to an end."""
        properties = {"reasoning": {"type": "string"}, "number": {"type": "integer", "minimum": 1, "maximum": 10}}
        schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
        messages = (Message("user", "Say hello to me in a sentence."),)
        request = Request(messages, Sampling(0.0, max_tokens=128), schema=json.dumps(schema))
        answer = (await self._persistently(lambda: self._reply(http, request, {}, Counter()))).completion
        if answer.failed:
            return _no(answer, NAMED["structured"])
        if answer.unspoken:
            return None  # the thoughts left no room for it
        with suppress(ValueError, RecursionError):
            return isinstance(json.loads(answer.text), dict)
        return False

    async def _persistently(self, ask: Callable[[], Awaitable[T | Fault]]) -> T:
        """The answer to a question about the server, which is asked a few times.

        Raises:
            ModelError: there is none.
        """
        reason = f"no answer within {PROBE_S:g} s"
        with suppress(TimeoutError):
            async with asyncio.timeout(PROBE_S):
                for tries in range(1, PROBE_TRIES):
                    answer = await ask()
                    if not isinstance(answer, Fault):
                        return answer
                    reason = answer.reason
                    if answer.kind == "fatal":
                        break
                    await asyncio.sleep(back_off_s(tries) if answer.after_s is None else answer.after_s)
        raise _NoAnswerError(self.settings.url, reason)


class _NoAnswerError(ModelError):
    """A server did not answer a question about itself."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"{url}: cannot be asked what it can do: {reason}. Start the server, or set the role's logprobs, prefill "
            "and structured to yes or no"
        )
        self.reason = reason


def _no(answer: Completion, names: str) -> bool | None:
    """Whether an answer says that the server lacks an ability: False if it does, and None if it only failed.

    Args:
        answer: a reply that does not show the ability, or a refusal.
        names: a pattern of what a refusal names that is about the ability.
    """
    return None if answer.failed and not re.search(names, answer.reason, re.IGNORECASE) else False


def _tokenizer_digest(tokenizer: str) -> str:
    """Of a folder, SHA-256 of the files that transformers reads; else the name."""
    folder = at_home(tokenizer)
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


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for a url (`HTTPS_PROXY`, `NO_PROXY`); None for this machine's own."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if host in ("127.0.0.1", "localhost", "::1") or proxy_bypass(host):
        return None
    proxies = getproxies()
    of_all = proxies.get("all", "")
    return proxies.get(parts.scheme) or (of_all if of_all.startswith("http") else None)  # aiohttp speaks no SOCKS


def _problem(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
