import json
import math
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from constitutional.base.records import Message
from constitutional.engines.base import Completion, Request, Sampling
from constitutional.engines.replies import Fault, ServerReply, Token, choice_scores, read_reply, same_model
from tests.engines.faulty_server import Answer, chat, error

REQUEST = Request((Message("user", "Why?"),), Sampling(stop=("END",)))


def read(answer: Answer, request: Request = REQUEST) -> ServerReply | Fault:
    return read_reply(answer.status, answer.headers, answer.body, "mock", request)


def completion(answer: Answer, request: Request = REQUEST) -> Completion:
    reply = read(answer, request)
    assert isinstance(reply, ServerReply), reply
    return reply.completion


def body(value: Any, status: int = 200) -> Answer:  # noqa: ANN401
    return Answer(json.dumps(value).encode(), status)


@pytest.mark.parametrize(
    ("answer", "text", "finish", "reasoning"),
    [
        (chat("Because."), "Because.", "stop", ""),
        (chat(""), "", "stop", ""),
        (chat("Becau", finish="length"), "Becau", "length", ""),
        (chat("Because. END more"), "Because. ", "stop", ""),
        (chat("Becau END", finish="length"), "Becau ", "stop", ""),
        (chat("Yes.", reasoning_content="Hm."), "Yes.", "stop", "Hm."),
        (chat("Yes.", reasoning="Hm."), "Yes.", "stop", "Hm."),
        (chat("<think>\nHm.\n</think>\n\nYes."), "Yes.", "stop", "Hm."),
        (chat("<think>Hm", finish="length"), "", "length", "Hm"),
        (chat("<think>Hm"), "", "stop", "Hm"),
        (chat("<think>Hm. END"), "", "stop", "Hm. END"),
        (chat(None, finish="length", reasoning_content="Hm"), "", "length", "Hm"),
        (chat("Close it with </think> and go on."), "Close it with </think> and go on.", "stop", ""),
        (chat("First. <think>No</think> Yes."), "First. <think>No</think> Yes.", "stop", ""),
        (chat("A \ud800 half"), "A ? half", "stop", ""),
    ],
)
def test_what_a_reply_says(answer: Answer, text: str, finish: str, reasoning: str) -> None:
    reply = completion(answer)
    assert (reply.text, reply.finish, reply.reasoning) == (text, finish, reasoning)


def test_a_reply_that_goes_on_from_words_has_no_thoughts_at_its_beginning() -> None:
    begun = Request((Message("user", "Write the tags."), Message("assistant", "Tags:")))
    assert completion(chat("<think>a</think>b"), begun).text == "<think>a</think>b"


def test_tokens_are_counted_as_far_as_the_server_says() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6}}
    assert completion(chat("x", usage=usage)) == Completion(
        "x", "stop", prompt_tokens=9, completion_tokens=4, cached_tokens=6
    )
    thought = {"prompt_tokens": 20, "completion_tokens": 8, "total_tokens": 623}  # thoughts are in the total alone
    assert completion(chat("x", usage=thought)) == Completion("x", "stop", prompt_tokens=20, completion_tokens=603)
    for missing in (None, "many", {"prompt_tokens": None, "prompt_tokens_details": None}):
        assert completion(chat("x", usage=missing)) == Completion("x", "stop")


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"<html>Gateway</html>"),
        Answer(b""),
        Answer(chat("x").body[:-9]),
        Answer(b"[" * 100_000),
        body([1]),
        body({"choices": []}),
        body({"choices": None}),
        body({"choices": ["x"]}),
        chat(None, finish="tool_calls", tool_calls=[{"id": "1"}]),
        chat("x", finish="abort"),
        error(408),
        error(409),
        error(425),
        error(500),
        error(529),
    ],
)
def test_what_is_no_reply_is_asked_for_again(answer: Answer) -> None:
    fault = read(answer)
    assert isinstance(fault, Fault)
    assert fault.kind == "again"
    assert len(fault.reason) < 500


@pytest.mark.parametrize(
    "answer",
    [chat(None, reasoning_content="Hm."), body({"choices": [{"message": None}]}), body({"choices": [{}]})],
)
def test_a_reply_without_words_is_asked_for_a_few_times_only(answer: Answer) -> None:
    fault = read(answer)
    assert isinstance(fault, Fault)
    assert fault.kind == "useless"


def test_a_gateway_that_gets_no_answer_is_told_as_a_server_that_does_not_answer() -> None:
    for answer in (error(502), error(504), body({"error": {"message": "provider failed", "code": 502}})):
        fault = read(answer)
        assert isinstance(fault, Fault)
        assert fault.kind == "silent"


def test_tokens_of_a_reply_that_is_of_no_use_are_paid_for_all_the_same() -> None:
    for answer in (chat(None), chat("x", finish="abort")):
        fault = read(answer)
        assert isinstance(fault, Fault)
        assert fault.used == {"prompt_tokens": 7, "cached_tokens": 0, "completion_tokens": 3}


def test_a_prompt_that_a_moderator_refuses_is_no_fault_of_the_key() -> None:
    flagged = "Your chosen model requires moderation and your input was flagged for violence"
    assert completion(error(403, flagged)).finish == "refusal"
    assert completion(error(403, "no", metadata={"reasons": ["violence"], "flagged_input": "x"})).finish == "refusal"
    for own in ("this key may not use the model", "Your account was flagged for review"):
        assert isinstance(read(error(403, own)), Fault)


def test_an_error_in_a_list_is_read_like_one() -> None:
    def gemini(message: str) -> Answer:
        return body([{"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}], 400)

    unknown = 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
    assert read(gemini(unknown)) == Fault("unknown_field", "seed")
    wrong_key = read(gemini("API key not valid. Please pass a valid API key."))
    assert isinstance(wrong_key, Fault)
    assert wrong_key.kind == "fatal"
    assert "api_key_env" in wrong_key.reason


def test_a_refusal_is_told_as_one() -> None:
    for answer in (
        chat(None, refusal="I cannot."),
        chat("Half of it", finish="content_filter"),
        error(400, "no", code="content_filter"),
        error(400, "no", innererror={"code": "ResponsibleAIPolicyViolation"}),
    ):
        assert completion(answer).finish == "refusal"
        assert completion(answer).text == ""


@pytest.mark.parametrize(
    "answer",
    [
        error(400, "This model's maximum context length is 4096 tokens. However, you requested 5000"),
        error(400, "no", code="context_length_exceeded"),
        error(
            400,
            "'max_tokens' or 'max_completion_tokens' is too large: 512. This model's maximum context length is 4096 "
            "tokens and your request has 4000 input tokens",
        ),
        body({"object": "error", "message": "the request exceeds the available context size"}, 400),
        body({"detail": "prompt is too long: 208310 tokens > 200000 maximum"}, 400),
        Answer(b"nginx", 413),
    ],
)
def test_a_request_that_is_too_long_is_told_as_one(answer: Answer) -> None:
    assert completion(answer).finish == "too_long"


def test_a_field_that_is_unknown_is_told_apart_from_a_value_that_is_wrong() -> None:
    assert read(error(400, "Unsupported parameter: 'max_tokens'")) == Fault("unknown_field", "max_tokens")
    assert read(body({"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"]}]}, 422)) == Fault(
        "unknown_field", "seed"
    )
    assert read(error(400, "`temperature` and `top_p` cannot both be specified for this model")) == Fault(
        "unknown_field", "top_p"
    )
    assert completion(error(400, "max_tokens must be at least 1")).finish == "error"


def test_the_server_says_how_long_to_wait() -> None:
    def wait_s(value: str) -> float | None:
        fault = read(error(429, headers={"Retry-After": value}))
        assert isinstance(fault, Fault)
        assert fault.kind == "busy"
        return fault.after_s

    assert wait_s("7") == 7
    assert wait_s("0.5") == 0.5
    assert wait_s("soon") is None
    assert wait_s("-3") is None
    later = wait_s(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True))
    assert later is not None
    assert 28 < later <= 30
    assert wait_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0


@pytest.mark.parametrize(
    ("asked", "told", "same"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06", False),
        ("gpt-4", "gpt-4-0613", True),
        ("Qwen/Qwen3-4B", "qwen3-4b", True),
        ("qwen3-4b", "/models/Qwen3-4B/", True),
        ("qwen3-4b", "/models/qwen3-4b.gguf", True),
        ("llama3", "llama3:latest", True),
        ("mistral-small-latest", "mistral-small-2506", True),
        ("deepseek/deepseek-chat:free", "deepseek/deepseek-chat", True),
        ("qwen3-4b", "qwen3-8b", False),
        ("qwen3-4b", "qwen3", False),
    ],
)
def test_whether_two_names_may_be_one_model_s(asked: str, told: str, same: bool) -> None:
    assert same_model(asked, told) is same


# --- Choices ---


def scored(choices: tuple[str, ...], **replies: list[dict[str, float]]) -> tuple[list[str], Completion]:
    """What is asked for, and the scores, where a reply from `_`, `space` or a text has these tokens' probabilities."""
    scores, asked = choice_scores(choices), []
    text = next(scores)
    while True:
        asked.append(text)
        positions = replies[text.strip() or ("space" if text else "_")]
        tokens = [Token(max(top, key=lambda t: top[t]), {t: math.log(p) for t, p in top.items()}) for top in positions]
        try:
            text = scores.send(tuple(tokens))
        except StopIteration as end:
            return asked, end.value


def shares(completion: Completion) -> list[float]:
    return [math.exp(logprob) for logprob in completion.choice_logprobs]


def test_a_choice_may_be_written_with_a_space_before_it_or_without() -> None:
    asked, answer = scored((" A", " B"), _=[{" A": 0.5, "A": 0.1, " B": 0.2, "B": 0.05, "\n": 0.1}])
    assert asked == [""]
    assert shares(answer) == pytest.approx([0.6, 0.25])


def test_a_space_of_its_own_is_gone_through() -> None:
    asked, answer = scored((" A", " B"), _=[{" ": 0.9, "\n": 0.1}, {"A": 0.7, "B": 0.2, "C": 0.1}])
    assert asked == [""]
    assert shares(answer) == pytest.approx([0.63, 0.18])


NUMBERS = tuple(f" {number}" for number in range(1, 11))
NOT_GREEDY = {"\n": 0.5, " ": 0.4}
"""The likeliest tokens behind a word, where numbers are a space and digits."""


def test_a_space_of_its_own_is_asked_behind_where_the_reply_begins_otherwise() -> None:
    asked, answer = scored(
        NUMBERS, _=[NOT_GREEDY], space=[{"7": 0.5, "8": 0.3, "1": 0.1, " ": 0.01}], **{"1": [{"0": 0.75, ".": 0.2}]}
    )
    assert asked == ["", " ", " 1"]
    values = shares(answer)
    assert (values[6], values[7]) == pytest.approx((0.4 * 0.5, 0.4 * 0.3))
    assert (values[0], values[9]) == pytest.approx((0.4 * 0.1 * 0.25, 0.4 * 0.1 * 0.75))


@pytest.mark.parametrize("behind", [[NOT_GREEDY], [{"\n": 0.52, " ": 0.38}], []])
def test_a_space_that_the_server_cuts_off_or_refuses_is_given_up(behind: list[dict[str, float]]) -> None:
    asked, answer = scored(NUMBERS, _=[NOT_GREEDY], space=behind)
    assert asked == ["", " "]
    assert answer.finish == "error"


def test_a_space_is_not_asked_behind_where_choices_without_it_are_likelier() -> None:
    asked, answer = scored((" A", " B"), _=[{" A": 0.5, " B": 0.2, " ": 0.1}])
    assert asked == [""]
    assert shares(answer) == pytest.approx([0.5, 0.2])


def test_a_choice_that_is_not_among_the_likeliest_has_a_bound() -> None:
    _, answer = scored((" A", " B"), _=[{" A": 0.9, "\n": 0.06, " The": 0.01}])
    assert shares(answer) == pytest.approx([0.9, 0.01])
    assert answer.bounded == (False, True)


def test_without_any_choice_there_is_no_answer() -> None:
    _, answer = scored((" A", " B"), _=[{"I": 0.9, "\n": 0.06}])
    assert answer.finish == "error"
    assert '"I"' in answer.reason


def test_a_longer_number_that_is_one_token_is_no_part_of_the_shorter() -> None:
    asked, answer = scored((" 1", " 10"), _=[{" 1": 0.6, " 10": 0.3}])
    assert asked == [""]
    assert shares(answer) == pytest.approx([0.6, 0.3])


def test_a_longer_number_is_taken_off_where_digits_are_tokens() -> None:
    _, on_the_way = scored((" 1", " 2", " 10"), _=[{" 1": 0.6, " 2": 0.3}, {"0": 0.75, ".": 0.25}])
    assert shares(on_the_way) == pytest.approx([0.15, 0.3, 0.45])
    asked, aside = scored((" 1", " 2", " 10"), _=[{" 2": 0.6, " 1": 0.3}, {".": 1.0}], **{"1": [{"0": 0.75}]})
    assert asked == ["", " 1"]
    assert shares(aside) == pytest.approx([0.075, 0.6, 0.225])


def test_what_matters_little_is_not_asked_for() -> None:
    asked, _ = scored((" 1", " 2", " 10"), _=[{" 2": 0.99, " 1": 0.001}])
    assert asked == [""]
