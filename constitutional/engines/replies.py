"""What is sent to an OpenAI-compatible server, and what its answers mean: pure functions of bytes.

Nothing that a server sends is trusted: a page of HTML with status 200, half a JSON text, an empty list of choices and
another model's answer are faults, told apart by what should be done about them.
"""

import json
import re
from collections.abc import Container, Generator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from math import exp, fsum, log
from typing import Any, Final, Literal, NamedTuple

from constitutional.base.text import sound, thoughts_apart
from constitutional.engines.base import Completion, Finish, Request, Sampling

TOP: Final = 20
"""Likeliest tokens that a server is asked for: the most that OpenAI and, unless it is told otherwise, vLLM tell."""
USAGE: Final = ("prompt_tokens", "cached_tokens", "completion_tokens")
"""The numbers of tokens in a completion."""
Json = dict[str, Any]


class Fault(NamedTuple):
    """Why an answer is no reply, and what is to be done about it."""

    kind: Literal["again", "silent", "busy", "useless", "fatal", "unknown_field"]
    """Send the request again; the same, as no answer came; the same, and fewer at a time; a few times only, as the
    server works, and its reply cannot be used; stop the run; send it again without that field."""
    reason: str
    """In words; of `unknown_field`, the name of the field."""
    after_s: float | None = None
    """Seconds after which the server wants to be asked again, if it says so."""
    used: Mapping[str, int] = {}
    """Tokens that were paid for nothing, by their names in `USAGE`."""


class Token(NamedTuple):
    """One token of a reply with log-probabilities."""

    text: str
    top: Mapping[str, float]
    """The log-probabilities of the likeliest tokens in its place, by their texts."""


class ServerReply(NamedTuple):
    """A completion as a server gives it, with the log-probabilities of its tokens if they were asked for."""

    completion: Completion
    tokens: tuple[Token, ...] = ()
    prompt_logprobs: tuple[tuple[float | None, ...], ...] = ()
    """By prompt, the log-probability of every token of it, where the server was told to echo them."""


# --- What is sent ---


def chat_body(model: str, request: Request, fields: Mapping[str, object], unknown: Container[str]) -> Json:
    """The body of a chat request.

    Args:
        model: the model's name.
        request: what is asked; its choices do not matter.
        fields: more fields, which come before all others.
        unknown: fields that the server does not take. Without `max_tokens`, its successor `max_completion_tokens` is
            sent.
    """
    messages = [message.turn() for message in request.messages]
    body: Json = {"model": model, "messages": messages, **_asked(request, unknown)}
    if request.messages[-1].role == "assistant":
        # vLLM and SGLang go on from the message if they are told to; llama.cpp's server does so by itself.
        body |= {"continue_final_message": True, "add_generation_prompt": False}
    return {name: value for name, value in {**body, **fields}.items() if name not in unknown}


def completions_body(
    model: str, prompt: object, request: Request, fields: Mapping[str, object], unknown: Container[str]
) -> Json:
    """The body of a request that goes on from a prompt's token ids, or from several; else as `chat_body`."""
    body = {"model": model, "prompt": prompt, **_asked(request, unknown), **fields}
    return {name: value for name, value in body.items() if name not in unknown}


def _asked(request: Request, unknown: Container[str]) -> Json:
    sampling = request.sampling
    fields: Json = {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature}
    if "max_tokens" in unknown:
        fields["max_completion_tokens"] = sampling.max_tokens
    if sampling.temperature > 0:
        # Left out, `top_p` would be the server's own; models that take none beside a temperature are known by refusing.
        fields |= {"top_p": sampling.top_p, "seed": request.seed}
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if request.schema:
        schema = {"name": "reply", "schema": json.loads(request.schema), "strict": True}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    return fields


# --- What comes back ---

AGAIN: Final = frozenset({408, 409, 425})
BUSY: Final = frozenset({429, 503})
GATEWAY: Final = frozenset({502, 504})
"""What is between says that the server itself does not answer."""
FATAL: Final = frozenset({401, 402, 403, 404, 405})
OPTIONAL: Final = ("max_tokens", "seed", "top_p", "stop_token_ids")
"""Fields that a request is sent without, if the server refuses them; `max_tokens` has a successor."""
_TOO_LONG: Final = re.compile(
    r"context[ _](length|window|size)|maximum (model|input|sequence) length|max_model_len|max_position|too many tokens"
    r"|(prompt|input|request)[^.]{0,40} too long|longer than the (maximum )?model|longer than the maximum",
    re.IGNORECASE,
)
_UNKNOWN: Final = re.compile(
    r"unsupported|not support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|extra_forbidden"
    r"|not implemented|cannot both be|max_completion_tokens",
    re.IGNORECASE,
)
_FILTERED: Final = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
_MODERATED: Final = re.compile(r"flagged|moderation|content[ _-]?policy|usage guidelines", re.IGNORECASE)
"""What a 403 says that is about the prompt, and not about the key."""
_OF_ACCOUNT: Final = re.compile(r"account|organi[sz]ation|api[ _]?key", re.IGNORECASE)
_BAD_KEY: Final = re.compile(r"api[ _]?key not valid|invalid api[ _]?key", re.IGNORECASE)
"""What some servers say with status 400."""
_ENDS: Final[dict[object, Finish]] = {
    **dict.fromkeys((None, "stop", "eos", "eos_token", "end_turn", "stop_sequence"), "stop"),
    **dict.fromkeys(("length", "max_tokens"), "length"),
}


def read_reply(
    status: int, headers: Mapping[str, str], raw: bytes, model: str, request: Request, key_name: str | None = None
) -> ServerReply | Fault:
    """What a server's answer to a request means; of either endpoint.

    Args:
        status: the HTTP status.
        headers: the answer's headers, whose names may be of any case if the mapping's are.
        raw: the answer's body.
        model: the name of the model that should answer.
        request: what was asked.
        key_name: the environment variable that holds the key, for the message where it is refused.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        body = None
    if isinstance(body, list) and len(body) == 1:  # as Gemini's endpoint gives its errors
        (body,) = body
    error = body.get("error") if isinstance(body, dict) else None
    if status == HTTPStatus.OK and error:  # as proxies put it whose own provider has failed
        code = error.get("code") if isinstance(error, dict) else None
        status = code if isinstance(code, int) and 400 <= code <= 599 else HTTPStatus.BAD_GATEWAY
    if status == HTTPStatus.OK:
        return _accepted(body, raw, model, request)
    refused = _refused(status, _wait_s(headers), raw, body)
    if isinstance(refused, Fault):
        return refused._replace(reason=_with_advice(status, refused, model, key_name))
    return ServerReply(refused)


def _accepted(body: object, raw: bytes, model: str, request: Request) -> ServerReply | Fault:
    if not isinstance(body, dict):
        return Fault("again", f"the reply is no JSON object: it begins {_beginning(raw)}")
    told = body.get("model")
    if isinstance(told, str) and told and not same_model(model, told):
        return Fault(
            "fatal",
            f"asked the model '{model}', and '{told}' answered; set the role's model to the name that answers, and "
            "where the server wants another name to be asked, extra.model to that",
        )
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
        return Fault("again", "the reply has no choices")
    usage = _usage(body)
    reply = _chat(choices[0], usage, request) if "message" in choices[0] else _completions(choices, usage, request)
    return reply._replace(used=usage) if isinstance(reply, Fault) else reply


def _chat(choice: Json, usage: Json, request: Request) -> ServerReply | Fault:
    message = choice["message"]
    if not isinstance(message, dict):
        return Fault("useless", "the reply's message is no JSON object")
    ended = choice.get("finish_reason")
    if isinstance(message.get("refusal"), str) and message["refusal"]:
        return ServerReply(Completion("", "refusal", reason=f"the model refused: {message['refusal']}", **usage))
    if ended == "content_filter":
        return ServerReply(Completion("", "refusal", reason="the provider's content filter refused it", **usage))
    if ended not in _ENDS:
        return Fault("again", f"the reply ended with {json.dumps(ended)[:80]}")
    finish, content = _ENDS[ended], message.get("content")
    reasoning = next(
        (message[name] for name in ("reasoning_content", "reasoning") if isinstance(message.get(name), str)), ""
    )
    if content is None and finish == "length":
        content = ""  # it was cut off while it thought
    if not isinstance(content, str):
        return Fault("useless", "the reply has no content")
    if request.messages[-1].role != "assistant":
        thought, content = thoughts_apart(content)
        reasoning += thought
    return ServerReply(_completion(content, finish, reasoning, usage, request), _tokens(choice.get("logprobs")))


def _completions(choices: Sequence[Json], usage: Json, request: Request) -> ServerReply | Fault:
    # The thoughts stay in the text: whoever wrote the prompt knows whether it has opened one.
    text, ended = choices[0].get("text"), choices[0].get("finish_reason")
    if ended == "content_filter":
        return ServerReply(Completion("", "refusal", reason="the provider's content filter refused it", **usage))
    if ended not in _ENDS:
        return Fault("again", f"the reply ended with {json.dumps(ended)[:80]}")
    if not isinstance(text, str):
        return Fault("useless", "the reply has no text")
    ordered = sorted(choices, key=lambda choice: choice.get("index") or 0)
    told = [choice.get("logprobs") for choice in ordered]
    prompts = tuple(
        tuple(value if isinstance(value, int | float) else None for value in logprobs["token_logprobs"])
        for logprobs in told
        if isinstance(logprobs, dict) and isinstance(logprobs.get("token_logprobs"), list)
    )
    return ServerReply(_completion(text, _ENDS[ended], "", usage, request), _tokens(told[0]), prompts)


def _completion(text: str, finish: Finish, reasoning: str, usage: Json, request: Request) -> Completion:
    """The completion of a text, up to a stop text."""
    stops = [text.index(stop) for stop in request.sampling.stop if stop in text]
    text = text[: min(stops, default=None)]
    return Completion(sound(text), "stop" if stops else finish, reasoning=sound(reasoning), **usage)


def _usage(body: Json) -> Json:
    usage = body.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    read, written, total = (_count(usage.get(f"{what}_tokens")) for what in ("prompt", "completion", "total"))
    return {
        "prompt_tokens": read,
        # Some gateways leave thoughts out of what was written, and have them in the total.
        "completion_tokens": max(written, total - read) if written else written,
        "cached_tokens": _count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
    }


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def _tokens(logprobs: object) -> tuple[Token, ...]:
    """The tokens of a reply in either endpoint's form; none where they are not given, or not as they should be."""
    if not isinstance(logprobs, dict):
        return ()
    try:
        if isinstance(content := logprobs.get("content"), list):
            return tuple(
                Token(entry["token"], _likeliest((top["token"], top["logprob"]) for top in entry["top_logprobs"]))
                for entry in content
            )
        tops = logprobs.get("top_logprobs") or []
        return tuple(
            Token(text, _likeliest(top.items()))
            for text, top in zip(logprobs.get("tokens") or [], tops, strict=False)
            if isinstance(top, dict)
        )
    except (KeyError, TypeError, ValueError):
        return ()


def _likeliest(pairs: Any) -> dict[str, float]:  # noqa: ANN401 - any pairs of a text and a number
    """Probabilities by text: different tokens can have one text, such as bytes of a character."""
    together: dict[str, list[float]] = {}
    for text, logprob in pairs:
        together.setdefault(str(text), []).append(float(logprob))
    return {text: _sum(logprobs) for text, logprobs in together.items()}


def _sum(logprobs: Sequence[float]) -> float:
    """The logarithm of the sum of probabilities."""
    top = max(logprobs)
    return top if len(logprobs) == 1 or top == float("-inf") else top + log(fsum(exp(part - top) for part in logprobs))


# --- Errors ---


def _refused(status: int, wait_s: float | None, raw: bytes, body: object) -> Completion | Fault:
    message, code = _message(raw, body)
    told = f"the server answered {status}: {message}"
    spent = code == "insufficient_quota"
    if (status in BUSY and not spent) or status in AGAIN or status >= 500:
        kind: Literal["busy", "silent", "again"] = (
            "busy" if status in BUSY else "silent" if status in GATEWAY else "again"
        )
        return Fault(kind, told, wait_s)
    whole = f"{code} {raw.decode('utf-8', 'replace')}"
    filtered = any(name in whole for name in _FILTERED)
    moderated = (filtered or _MODERATED.search(whole)) and not _OF_ACCOUNT.search(message)
    if status == HTTPStatus.FORBIDDEN and moderated:
        return Completion("", "refusal", reason=told)
    if status in FATAL or spent or status < 400 or _BAD_KEY.search(message):
        return Fault("fatal", told)
    # Before the fields: what is said of a request that is too long may name `max_tokens`.
    if code == "context_length_exceeded" or status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE or _TOO_LONG.search(message):
        return Completion("", "too_long", reason=message)
    field = next((name for name in OPTIONAL if re.search(rf"(?<!\w){name}(?!\w)", message)), None)
    if field and _UNKNOWN.search(message):
        return Fault("unknown_field", field)
    return Completion("", "refusal" if filtered else "error", reason=told)


def _with_advice(status: int, fault: Fault, model: str, key_name: str | None) -> str:
    if fault.kind != "fatal":
        return fault.reason
    advice = {
        401: f"put a valid key into the environment variable {key_name}"
        if key_name
        else "name the environment variable that holds the key in the role's api_key_env",
        400: "put a valid key into the environment variable that the role's api_key_env names",
        403: "the key may not use this model; take another key or another model",
        404: f"correct the role's url, which usually ends with /v1, or its model, which is '{model}'",
        405: "correct the role's url, which usually ends with /v1",
    }.get(status, "correct the role's url" if status < 400 else "the provider's account has no credit left")
    return f"{fault.reason}; {advice}. The same command goes on from here"


def _message(raw: bytes, body: object) -> tuple[str, str]:
    """The error's message and code, in the forms of OpenAI, vLLM, llama.cpp, FastAPI and plain text."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        message = next((error[name] for name in ("message", "detail", "msg") if error.get(name)), None)
        code = error.get("code") or error.get("type")
        if message is not None:
            return _shortened(message if isinstance(message, str) else json.dumps(message)), str(code)
    if isinstance(error, str) and error:
        return _shortened(error), ""
    return _beginning(raw), ""


def _beginning(raw: bytes) -> str:
    return json.dumps(_shortened(raw[:400].decode("utf-8", "replace"), 80), ensure_ascii=False) if raw else "empty"


def _shortened(text: str, most: int = 400) -> str:
    text = sound(" ".join(text.split()))
    return text if len(text) <= most else f"{text[:most]}…"


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """Retry-After, which is a number of seconds or a date; None where there is none that can be read."""
    value = headers.get("Retry-After", "").strip()
    if not value:
        return None
    if re.fullmatch(r"\d{1,9}(\.\d*)?", value):
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


_VERSION: Final = re.compile(r"[-:@](latest|v?\d{3,4}[\d.-]*)\Z")


def same_model(asked: str, told: str) -> bool:
    """Whether both names may be one model's: they are equal but for a path before them or a date behind them.

    `gpt-4o` is answered by `gpt-4o-2024-08-06`, `qwen3` by `qwen3:latest`, and a model that a server knows by its
    folder by that folder's last name.
    """

    def dated(name: str) -> str:
        name = name.rstrip("/").rpartition("/")[2].lower().removesuffix(".gguf")
        return name.removesuffix(":free")

    def stem(name: str) -> str:
        while version := _VERSION.search(name):
            name = name[: version.start()]
        return name

    a, b = dated(asked), dated(told)
    # Two different dates are two models.
    return a == b or (stem(a) == stem(b) and (a == stem(a) or b == stem(b) or a.endswith("latest")))


# --- Probabilities of choices ---


def choice_sampling(choices: Sequence[str]) -> Sampling:
    """How a server is asked for the likeliest tokens; a space and the digits of a number may be tokens of their own."""
    return Sampling(0.0, max_tokens=min(4, max(map(len, choices))))


ChoiceScores = Generator[str, tuple[Token, ...], Completion]
NEGLIGIBLE: Final = 0.01
"""Ways to write a choice that have less than this share of the choices' probability are not followed."""
CUT: Final = log(2)
"""Behind a space that the server has kept, another space is less likely than the first by more than this."""


def choice_scores(choices: Sequence[str]) -> ChoiceScores:
    """Log-probabilities of choices, from the likeliest tokens of replies that go on from the same words.

    The generator yields the text behind those words from which a greedy reply is wanted, first the empty text, and is
    sent the tokens of that reply. A choice may be written with a space before it or without (" A" and "A"), and in
    several tokens. Where another choice is longer (" 1" and " 10"), the probability is without that of going on to it.
    A choice that is not among the likeliest tokens gets an upper bound: the probability of the least likely of them.

    The words end with a space only where that token is likelier than all choices that are known, because many servers
    cut such a space off. Where the server refuses it, the generator is sent no tokens.
    """
    scores = _ChoiceScores(choices)
    begun, top = "", dict[str, float]()
    while True:
        tokens = yield begun
        if tokens and tokens[0].top:
            top = dict(tokens[0].top)
            scores.add(begun, tokens)
        elif begun.isspace():
            scores.cut.add(begun)
        else:
            return Completion("", "error", reason="the server gave no log-probabilities of its reply's tokens")
        following = scores.next_text()
        if following is None:
            return scores.completion(top)
        begun = following


class _ChoiceScores:
    """What is known of the choices' probabilities so far, as logarithms; all texts are those behind the words."""

    def __init__(self, choices: Sequence[str]) -> None:
        self._choices = choices
        self._spellings = {choice: {choice, choice.lstrip(" ")} - {""} for choice in choices}
        self._all = {spelling for spellings in self._spellings.values() for spelling in spellings}
        self._known: dict[str, list[float]] = {choice: [] for choice in choices}
        self._bounds: dict[str, list[float]] = {choice: [] for choice in choices}
        self._logprobs = {"": 0.0}
        """Of the texts that were reached, by which a spelling begins."""
        self._seen: set[str] = set()
        self.cut: set[str] = set()
        """Spaces from which the server does not go on."""

    def add(self, begun: str, tokens: Sequence[Token]) -> None:
        """Count the tokens of a greedy reply that goes on from `begun`, as far as it may become a choice."""
        if begun.isspace() and tokens[0].top.get(begun, float("-inf")) > self._logprobs[begun] - CUT:
            self.cut.add(begun)  # the space is as likely as it was before it, so it is not there
            return
        text = begun
        for token in tokens:
            if text not in self._logprobs or text in self._seen or not token.top:
                return
            self._seen.add(text)
            self._count(text, self._logprobs[text], token.top)
            text += token.text

    def _count(self, text: str, before: float, top: Mapping[str, float]) -> None:
        least = min(top.values())
        going_on = 0.0
        for token, logprob in top.items():
            reached = text + token
            if token and any(spelling.startswith(reached) for spelling in self._all):
                going_on += exp(logprob)
                self._logprobs.setdefault(reached, before + logprob)
                longer = [spelling for spelling in self._all if spelling.startswith(reached) and spelling != reached]
                # Where the tokenizer has the longer one as one token, this one does not begin it.
                if all(spelling[len(text) :] in top for spelling in longer):
                    self._seen.add(reached)
                    self._give(reached, before + logprob)
        self._give(text, before + log(max(1 - going_on, 1e-12)))
        for choice, spellings in self._spellings.items():
            if any(spelling != text and spelling.startswith(text) for spelling in spellings):
                self._bounds[choice].append(before + least)

    def _give(self, spelling: str, logprob: float) -> None:
        for choice, spellings in self._spellings.items():
            if spelling in spellings:
                self._known[choice].append(logprob)

    def next_text(self) -> str | None:
        """From where to ask next; None where everything that matters is known."""
        known = [logprob for logprobs in self._known.values() for logprob in logprobs]
        enough = _sum(known) + log(NEGLIGIBLE) if known else float("-inf")
        open_texts = {text: logprob for text, logprob in self._logprobs.items() if text not in self._seen}
        able = [text for text, logprob in open_texts.items() if logprob > enough and not text.isspace()]
        least = _sum(known) if known else enough
        able = able or [text for text in open_texts.keys() - self.cut if text.isspace() and open_texts[text] > least]
        if able:
            return max(able, key=open_texts.__getitem__)
        for text, logprob in open_texts.items():
            self._give(text, logprob)
            for choice, spellings in self._spellings.items():
                if logprob > enough and any(spelling.startswith(text) for spelling in spellings):
                    self._bounds[choice].append(logprob)
        return None

    def completion(self, top: Mapping[str, float]) -> Completion:
        """The scores."""
        if not any(self._known.values()):
            likeliest = ", ".join(json.dumps(text, ensure_ascii=False) for text in list(top)[:5])
            reason = f"none of the choices {self._choices} is among the likeliest tokens, which begin with {likeliest}"
            return Completion("", "error", reason=reason)
        logprobs = tuple(_sum(self._known[choice] or self._bounds[choice]) for choice in self._choices)
        bounded = tuple(not self._known[choice] for choice in self._choices)
        return Completion("", "choices", logprobs, bounded=bounded if any(bounded) else ())
