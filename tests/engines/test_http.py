"""The engine against a local server that does what real ones do, and what they should not do."""

import json
import math
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from constitutional.base.errors import ConfigurationError, ModelError
from constitutional.base.records import Message
from constitutional.base.shipped import MODEL_FOLDER
from constitutional.engines.base import Completion, Request, Sampling, Ticket
from constitutional.engines.chat import ChatTokens, end_of_turn, load_tokenizer
from constitutional.engines.http import HttpEngine, HttpSession
from constitutional.engines.journal import Journal, JournalEngine
from constitutional.engines.models import Models, engine_of
from constitutional.engines.settings import HttpSettings
from constitutional.engines.stories import ask, side_by_side
from tests.engines.faulty_server import Answer, FaultyServer, Json, chat, error, serving, tops
from tests.tiny import chat_template, tiny_tokenizer

ASKED = Request((Message("user", "Why?"),), Sampling(0.5, 0.9, 40, ("END",)), seed=11)


def engine(server: FaultyServer, say: Callable[[str], None] | None = None, **settings: object) -> HttpEngine:
    values = {"url": server.url, "model": "mock", **settings}
    return HttpEngine(HttpSettings.model_validate(values), say)


def question(number: int) -> Request:
    return Request((Message("user", f"Question {number}?"),))


def test_a_chat_request_says_what_is_asked_and_its_reply_comes_back() -> None:
    with serving(lambda _body, _number: chat("Because.", usage={"prompt_tokens": 5, "completion_tokens": 2})) as server:
        answers = engine(server, extra={"reasoning_effort": "low"}).complete([ASKED])
    assert answers == [Completion("Because.", "stop", prompt_tokens=5, completion_tokens=2)]
    assert server.paths == ["/v1/chat/completions"]
    assert server.asked == [
        {
            "model": "mock",
            "messages": [{"role": "user", "content": "Why?"}],
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 11,
            "max_tokens": 40,
            "stop": ["END"],
            "reasoning_effort": "low",
        }
    ]


def test_a_reply_that_was_begun_is_gone_on_with_and_a_schema_is_sent() -> None:
    begun = Request((Message("user", "Why?"), Message("assistant", "Well,")), schema='{"type": "object"}')
    with serving(lambda _body, _number: chat("{}")) as server:
        engine(server).complete([begun])
    body = server.asked[0]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_a_field_that_the_server_refuses_is_left_out_from_then_on() -> None:
    def rule(body: Json, _number: int) -> Answer:
        if "seed" in body:
            return error(422, '[{"type": "extra_forbidden", "loc": ["body", "seed"]}]')
        if "max_tokens" in body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        return chat("Yes.")

    with serving(rule) as server:
        asked = engine(server, concurrency=1)
        assert [answer.text for answer in asked.complete([ASKED, question(1)])] == ["Yes.", "Yes."]
    assert len(server.asked) == 4
    assert server.asked[-1]["max_completion_tokens"] == 256


# --- Faults ---


HANGING = range(0, 200, 25)
"""The rows whose first question gets no answer."""


def faulty(dice: random.Random, sent: set[str]) -> Callable[[Json, int], Answer]:
    """A server that fails 3 times of 10, in all the ways there are; no more than 3 times for one question."""
    failures: Counter[str] = Counter()
    hanging = {question(number).messages[0].content for number in HANGING}

    def rule(body: Json, _number: int) -> Answer:
        text = body["messages"][-1]["content"]
        if text in hanging:
            return chat("too late", after_s=60)._replace(good=False)
        sound = chat(f"Answer to {text}", after_s=0.01)
        if dice.random() > 0.3 or failures[text] == 3:
            sent.add(f"Answer to {text}")
            return sound
        failures[text] += 1
        faults = [
            error(429, "slow down", {"Retry-After": "0.2"}),
            error(429, "slow down", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
            error(429, "slow down"),
            error(500),
            error(503),
            Answer(b"<html><body>Gateway</body></html>"),
            Answer(sound.body[: len(sound.body) // 2]),
            Answer(json.dumps({"model": "mock", "choices": []}).encode()),
            chat(None)._replace(good=False),
            Answer(drop=True),
        ]
        return dice.choice(faults)

    return rule


def test_with_three_faults_in_ten_every_item_is_done_or_marked_and_no_paid_reply_is_lost(tmp_path: Path) -> None:
    sent: set[str] = set()

    async def row(number: int) -> list[Completion]:
        first = await ask(journalled, question(number))
        second = await ask(journalled, Request((Message("user", f"{number}, then? {first.text}"),)))
        return [first, second]

    with serving(faulty(random.Random(5), sent)) as server, Journal(tmp_path / "journal.sqlite") as journal:
        journalled = JournalEngine(engine(server, concurrency=12, deadline_s=6.0), journal)
        pairs = list(side_by_side(row(number) for number in range(200)))
        kept = journal._connection.execute("SELECT COUNT(*) FROM completions").fetchone()[0]
    answers = [answer for pair in pairs for answer in pair]
    replied = [answer for answer in answers if answer.finish == "stop"]
    marked = [answer for answer in answers if answer.failed]
    assert len(answers) == len(replied) + len(marked) == 400
    assert all(pairs[number][0].failed for number in HANGING)
    assert all("within 6 s; the last time: " in answer.reason for answer in marked)
    texts = {answer.text for answer in replied}
    assert len(texts) == len(replied) == kept  # none is doubled, and none is lost
    # On a busy machine, a reply may cross the deadline of its request, which is marked then.
    assert texts <= sent
    assert len(sent - texts) <= len(marked) - len(HANGING)
    assert server.most_open <= 12


def test_never_more_requests_are_open_than_allowed_and_as_many_where_that_pays() -> None:
    with serving(lambda body, _number: chat(body["messages"][0]["content"], after_s=0.02)) as server:
        asked = engine(server, concurrency=20)
        answers = asked.complete([question(number) for number in range(600)])
    assert [answer.text for answer in answers] == [f"Question {number}?" for number in range(600)]
    assert server.most_open == 20


def test_a_server_that_refuses_more_than_it_can_do_is_sent_little_more() -> None:
    with serving(lambda _b, _n: error(429) if server.open >= 4 else chat("Yes.", after_s=0.01)) as server:
        answers = engine(server, concurrency=64).complete([question(number) for number in range(300)])
    assert all(answer.text == "Yes." for answer in answers)
    assert len(server.asked) < 450


def test_a_deadline_covers_all_tries() -> None:
    with serving(lambda _body, _number: error(500, "broken")) as server:
        (answer,) = engine(server, deadline_s=2.0).complete([question(0)])
    assert answer.finish == "error"
    assert "within 2 s" in answer.reason
    assert len(server.asked) > 1


@pytest.mark.parametrize("fault", [error(500, "broken"), chat(None, reasoning_content="Hm.")])
def test_a_request_that_can_never_be_answered_is_marked_and_stops_nothing(
    fault: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("constitutional.engines.http.back_off_s", lambda _tries: 0.02)
    said: list[str] = []

    def rule(body: Json, _number: int) -> Answer:
        return fault if body["messages"][0]["content"] == "Question 4?" else chat("Yes.")

    with serving(rule) as server:
        answers = engine(server, said.append, deadline_s=1.5, patience_s=1.0).complete([*map(question, range(5))])
    assert [answer.text for answer in answers] == [*["Yes."] * 4, ""]
    assert answers[4].finish == "error"
    assert said == []
    tries = len(server.asked) - 4
    if fault.status == 200:
        assert tries == 3
        assert (answers[4].prompt_tokens, answers[4].completion_tokens) == (3 * 7, 3 * 3)
    else:
        assert tries > 10


def test_a_server_that_gives_nothing_of_use_to_anybody_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constitutional.engines.http.back_off_s", lambda _tries: 0.01)
    with (
        serving(lambda _body, _number: chat(None, reasoning_content="Hm.")) as server,
        pytest.raises(ModelError, match="nothing of use to 20 requests"),
    ):
        engine(server).complete([question(number) for number in range(200)])
    assert len(server.asked) < 200


def test_one_request_that_a_gateway_gets_no_answer_to_waits_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constitutional.engines.http.back_off_s", lambda _tries: 0.01)
    said: list[str] = []
    with serving(lambda _body, _number: error(502)) as server, pytest.raises(ModelError, match="has given no reply"):
        engine(server, said.append, patience_s=1.0).complete([question(0)])
    assert len(said) == 1


def test_a_slow_reply_is_given_up_at_the_deadline() -> None:
    with serving(lambda _body, _number: chat("late", after_s=30)) as server:
        (answer,) = engine(server, deadline_s=0.3).complete([question(0)])
        assert answer.failed
        assert answer.reason == "no reply in 1 try within 0.3 s; the last time: no answer came within 0.3 s"


def test_what_the_server_answered_is_told_where_the_deadline_cuts_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("constitutional.engines.http.back_off_s", lambda _tries: 0.01)
    with serving(lambda _body, number: chat("late", after_s=30) if number else error(500, "no room")) as server:
        (answer,) = engine(server, deadline_s=2.0).complete([question(0)])
    assert answer.reason.startswith(
        "no reply in 2 tries within 2 s; the last time: no answer came in what was left of that, and before it: "
    )
    assert "no room" in answer.reason


def test_what_can_never_be_answered_is_not_asked_again() -> None:
    def rule(body: Json, _number: int) -> Answer:
        return {
            "Question 0?": error(400, "This model's maximum context length is 8 tokens"),
            "Question 1?": error(400, "no", code="content_filter"),
            "Question 2?": error(422, "cannot read it"),
        }[body["messages"][0]["content"]]

    with serving(rule) as server:
        answers = engine(server).complete([question(number) for number in range(3)])
    assert [answer.finish for answer in answers] == ["too_long", "refusal", "error"]
    assert "cannot read it" in answers[2].reason
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        (error(401, "bad key"), "api_key_env"),
        (error(403, "not yours"), "403"),
        (error(404, "no such model"), "url"),
        (error(429, "pay", code="insufficient_quota"), "credit"),
        (chat("Hello.", model="other-7b"), "other-7b"),
        (Answer(b"", 307, {"Location": "https://elsewhere/"}), "url"),
    ],
)
def test_what_no_request_can_get_past_stops_the_run(answer: Answer, advice: str) -> None:
    with serving(lambda _body, _number: answer) as server:
        asked = engine(server)
        with pytest.raises(ModelError, match=advice):
            asked.complete([question(number) for number in range(20)])
    assert len(server.asked) <= 8


def _collected(session: HttpSession) -> list[tuple[Ticket, Completion]]:
    try:
        return session.collect()
    except ModelError:
        return []


def test_what_was_open_when_the_run_stopped_is_handed_on_first() -> None:
    def rule(body: Json, _number: int) -> Answer:
        return error(401) if body["messages"][0]["content"] == "Question 0?" else chat("Paid.", after_s=0.2)

    with serving(rule) as server:
        session = engine(server).session()
        for number in range(30):
            session.submit((number,), question(number))
        answers = []
        while arrived := _collected(session):
            answers += arrived
        with pytest.raises(ModelError, match="401"):
            session.collect()
        session.close()
    assert len(answers) == server.good == 7


def test_a_session_that_is_given_up_makes_room_for_another() -> None:
    with serving(lambda _body, number: chat("Yes.", after_s=0.0 if number else 60)) as server:
        asked = engine(server, concurrency=1)
        given_up, other = asked.session(), asked.session()
        given_up.submit((0,), question(0))
        while not server.asked:
            time.sleep(0.01)
        other.submit((1,), question(1))
        given_up.close()
        assert [completion.text for _, completion in other.collect(10)] == ["Yes."]
        assert other.collect() == []
        other.close()


# --- A server that is down ---


def test_a_server_that_goes_down_is_waited_for() -> None:
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if len(lines) == 1:
            server.listen()

    with serving(lambda body, _number: chat(body["messages"][0]["content"])) as server:
        asked = engine(server, say, patience_s=30)
        assert asked.complete([question(0)])[0].text == "Question 0?"
        server.down()
        answers = asked.complete([question(number) for number in range(40)])
    assert [answer.text for answer in answers] == [f"Question {number}?" for number in range(40)]
    assert ["waits" in lines[0], "goes on" in lines[1], len(lines)] == [True, True, 2]


def test_a_server_that_stays_down_stops_the_run_which_goes_on_later(tmp_path: Path) -> None:
    def rule(body: Json, number: int) -> Answer:
        return chat(body["messages"][0]["content"]) if number < 25 else Answer(drop=True)

    with serving(rule) as server, Journal(tmp_path / "journal.sqlite") as journal:
        requests = [question(number) for number in range(40)]
        lines: list[str] = []
        asked = JournalEngine(engine(server, lines.append, patience_s=1.5), journal)
        with pytest.raises(ModelError, match="the same command goes on"):
            asked.complete(requests)
        assert asked.asked == server.good == 25
        server.rule = lambda body, _number: chat(body["messages"][0]["content"])
        again = JournalEngine(engine(server), journal)
        assert [answer.text for answer in again.complete(requests)] == [f"Question {number}?" for number in range(40)]
        assert (again.asked, again.reused) == (15, 25)


@pytest.mark.parametrize(
    ("faults", "state", "reason"),
    [
        ([Answer(drop=True)], "does not answer", "disconnected"),
        ([error(429, "slow down")], "is overloaded", "429: slow down"),
        ([error(500, "it broke")], "answers with errors only", "500: it broke"),
        # As a server that goes down may begin: what it refused before is not why it does not answer now.
        (
            [Answer(drop=True)] * 3 + [error(429, "slow down", {"Retry-After": "0.1"})],
            "does not answer",
            "disconnected",
        ),
    ],
)
def test_why_a_server_is_waited_for_is_what_most_of_the_failures_say(
    faults: list[Answer], state: str, reason: str
) -> None:
    lines: list[str] = []
    rule = serving(lambda _body, number: faults[number % len(faults)])
    with rule as server, pytest.raises(ModelError, match="given no reply"):
        engine(server, lines.append, patience_s=1).complete([question(number) for number in range(8)])
    assert f"{state}: " in lines[0]
    assert reason in lines[0]


def test_a_wait_that_the_server_wants_is_no_fault_of_a_request() -> None:
    wait = error(429, "tokens per day", {"Retry-After": "2"})
    lines: list[str] = []
    with serving(lambda _body, number: chat("Yes.") if number else wait) as server:
        (answer,) = engine(server, lines.append, deadline_s=1.0, patience_s=60).complete([question(0)])
        assert answer.text == "Yes."
        assert "tokens per day" in lines[0]


def test_a_wait_that_is_longer_than_the_patience_stops_the_run() -> None:
    wait = error(429, "per month", {"Retry-After": "90000"})
    with serving(lambda _body, _number: wait) as server, pytest.raises(ModelError, match="per month"):
        engine(server).complete([question(0)])


def test_a_server_that_is_not_there_is_told_at_once() -> None:
    with serving(lambda _body, _number: chat("x")) as server:
        asked = engine(server)
        server.down()
        with pytest.raises(ModelError, match="cannot be reached"):
            asked.complete([question(0)])


def test_a_model_that_the_server_does_not_list_is_refused() -> None:
    with serving(lambda _body, _number: chat("x"), models=("first", "second")) as server:
        with pytest.raises(ModelError, match="first, second"):
            engine(server).complete([question(0)])
        assert server.asked == []
        # Some servers take names that they do not list.
        assert engine(server, extra={"model": "mock:fast"}).complete([question(0)])[0].text == "x"
        assert server.asked[0]["model"] == "mock:fast"
    with serving(lambda _body, _number: chat("x"), models=()) as server:
        assert engine(server).complete([question(0)])[0].text == "x"


# --- Probabilities of choices, and what a server can do ---

VERDICT = Request((Message("user", "Which?"), Message("assistant", "Better:")), choices=(" A", " B"))


def test_choices_are_read_from_the_likeliest_tokens() -> None:
    told = tops({" A": -0.5, "A": -3.0, " B": -1.2, " C": -4.0})
    with serving(lambda _body, _number: chat(" A", logprobs=told)) as server:
        (answer,) = engine(server).complete([VERDICT])
    assert answer.finish == "choices"
    assert answer.choice_logprobs == pytest.approx((math.log(math.exp(-0.5) + math.exp(-3.0)), -1.2))
    assert answer.bounded == ()
    assert (answer.prompt_tokens, answer.completion_tokens) == (7, 3)
    assert (server.asked[0]["top_logprobs"], server.asked[0]["temperature"]) == (20, 0.0)


def test_a_digit_that_begins_a_longer_number_costs_one_more_request() -> None:
    def rule(body: Json, _number: int) -> Answer:
        if body["messages"][-1]["content"].endswith("1"):
            return chat("0", logprobs=tops({"0": math.log(0.75), ".": math.log(0.2)}))
        return chat(" 2", logprobs=tops({" ": math.log(0.9)}, {"2": math.log(0.5), "1": math.log(0.4)}))

    scores = tuple(f" {score}" for score in range(1, 11))
    with serving(rule) as server:
        asked = Request((Message("user", "?"), Message("assistant", "Score:")), choices=scores)
        (answer,) = engine(server).complete([asked])
    assert [turn["messages"][-1]["content"] for turn in server.asked] == ["Score:", "Score: 1"]
    shares = [math.exp(logprob) for logprob in answer.choice_logprobs]
    assert (shares[0], shares[1], shares[9]) == pytest.approx((0.9 * 0.4 * 0.25, 0.45, 0.9 * 0.4 * 0.75))
    assert answer.bounded == (False, False, *(7 * [True]), False)
    assert answer.prompt_tokens == 14


@pytest.mark.parametrize(("fault", "finish", "read"), [(error(400), "error", 7), (error(500), "choices", 21)])
def test_tokens_of_all_steps_are_counted_where_a_later_step_fails(fault: Answer, finish: str, read: int) -> None:
    """A second step that is refused leaves the first one's 7 tokens; one that is tried again takes both steps anew."""

    def rule(body: Json, number: int) -> Answer:
        if number == 1:
            return fault
        if body["messages"][-1]["content"].endswith("1"):
            return chat("0", logprobs=tops({"0": math.log(0.75), ".": math.log(0.2)}))
        return chat(" 1", logprobs=tops({" ": math.log(0.9)}, {"2": math.log(0.4), "1": math.log(0.5)}))

    with serving(rule) as server:
        asked = Request((Message("user", "?"), Message("assistant", "Score:")), choices=(" 1", " 2", " 10"))
        (answer,) = engine(server).complete([asked])
    assert (answer.finish, answer.prompt_tokens, answer.completion_tokens) == (finish, read, 3 * read // 7)


@pytest.mark.parametrize("refuses", [False, True])
def test_numbers_behind_a_space_of_its_own_are_scored_if_the_server_keeps_it(refuses: bool) -> None:
    def rule(body: Json, _number: int) -> Answer:
        if not body["messages"][-1]["content"].endswith(" "):
            return chat("\n", logprobs=tops({"\n": math.log(0.5), " ": math.log(0.4)}))
        digits = tops({"7": math.log(0.6), "8": math.log(0.3)})
        return error(400, "the last message ends with a space") if refuses else chat("7", logprobs=digits)

    with serving(rule) as server:
        asked = Request((Message("user", "?"), Message("assistant", "Score:")), choices=(" 7", " 8"))
        (answer,) = engine(server).complete([asked])
    assert [turn["messages"][-1]["content"] for turn in server.asked] == ["Score:", "Score: "]
    assert answer.failed == refuses
    if not refuses:
        assert answer.choice_logprobs == pytest.approx((math.log(0.24), math.log(0.12)))


def completions(server: FaultyServer) -> HttpEngine:
    return engine(server, endpoint="completions", tokenizer=str(MODEL_FOLDER))


def test_completions_go_on_from_token_ids_and_score_whole_choices_by_echo() -> None:
    def rule(body: Json, _number: int) -> Answer:
        if not body.get("echo"):
            return completed({"text": "Well.", "finish_reason": "stop"})
        told = [[None, *(-token / 1000 for token in row[1:]), -9.0] for row in body["prompt"]]
        choices = [
            {"index": index, "text": "x", "finish_reason": "length", "logprobs": {"token_logprobs": logprobs}}
            for index, logprobs in enumerate(told)
        ]
        return completed(*reversed(choices))

    tokens = ChatTokens(load_tokenizer(MODEL_FOLDER))
    with serving(rule) as server:
        answer, reply = completions(server).complete([VERDICT, VERDICT._replace(choices=())])
    rows = [tokens.ids(VERDICT.messages, choice) for choice in VERDICT.choices]
    scored, asked = sorted(server.asked, key=lambda body: "echo" not in body)
    assert scored["prompt"] == rows
    assert asked["prompt"] == tokens.ids(VERDICT.messages)
    assert asked["stop_token_ids"] == [end_of_turn(tokens.tokenizer)]
    assert server.paths == ["/v1/completions"] * 2
    assert answer.choice_logprobs == pytest.approx([-row[-1] / 1000 for row in rows])
    assert reply.text == "Well."


def test_a_conversation_that_the_template_refuses_fails_alone(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL_FOLDER, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    refusal = "{% if messages[1] is defined %}{{ raise_exception('one message alone') }}{% endif %}"
    tokenizer.chat_template = refusal + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    talk = Request((Message("user", "Why?"), Message("assistant", "So."), Message("user", "Why?")))
    with serving(lambda _body, _number: completed({"text": "Well.", "finish_reason": "stop"})) as server:
        asked = engine(server, endpoint="completions", tokenizer=str(folder))
        answers = asked.complete([talk, question(1), talk._replace(choices=(" A", " B"))])
    assert [answer.finish for answer in answers] == ["error", "stop", "error"]
    assert "one message alone" in answers[0].reason
    assert "one message alone" in answers[2].reason


def test_a_thought_that_the_prompt_has_opened_is_left_out_of_the_reply(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("qwen3")
    tokenizer.chat_template = chat_template("deepseek_r1_distill")
    tokenizer.save_pretrained(tmp_path)
    written = {0: ("Hm.\n</think>\n\nDig.", "stop"), 1: ("Hm. Dig. Then", "length"), 2: ("<think>A tag.", "stop")}

    def rule(_body: Json, number: int) -> Answer:
        text, finish = written[number]
        return completed({"text": text, "finish_reason": finish})

    begun = Request((*question(0).messages, Message("assistant", "It is a ")))
    with serving(rule) as server:
        asked = engine(server, endpoint="completions", tokenizer=str(tmp_path), concurrency=1)
        answers = [asked.complete([request])[0] for request in (question(0), question(1), begun)]
    assert [(answer.text, answer.reasoning) for answer in answers] == [
        ("Dig.", "Hm."),
        ("", "Hm. Dig. Then"),
        ("<think>A tag.", ""),  # a reply that was begun is no thought
    ]
    assert [answer.unspoken for answer in answers] == [False, True, False]
    prompts = [tokenizer.decode(body["prompt"]) for body in server.asked]
    assert prompts[0].endswith("<think>\n")
    assert prompts[2].endswith("<think>\n\n</think>\n\nIt is a ")


def test_a_tokenizer_without_a_template_stops_the_run(tmp_path: Path) -> None:
    folder = shutil.copytree(MODEL_FOLDER, tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    with serving(lambda _body, _number: error(500)) as server, pytest.raises(ModelError, match="no chat template"):
        engine(server, endpoint="completions", tokenizer=str(folder)).complete([question(0)])
    assert server.asked == []


def test_completions_without_echo_are_read_from_the_likeliest_tokens() -> None:
    def rule(body: Json, _number: int) -> Answer:
        logprobs = None if body.get("echo") else {"tokens": [" A"], "top_logprobs": [{" A": -0.5, " B": -1.5}]}
        return completed({"text": " A", "finish_reason": "length", "logprobs": logprobs})

    with serving(rule) as server:
        asked = completions(server)
        for _ in range(2):
            assert asked.complete([VERDICT])[0].choice_logprobs == (-0.5, -1.5)
    assert [body["logprobs"] for body in server.asked] == [1, 20, 20]


def completed(*choices: Json) -> Answer:
    return Answer(json.dumps({"model": "mock", "choices": choices}).encode(), good=True)


def able(body: Json, _number: int) -> Answer:
    """A server with all abilities, whose template adds 4 tokens to every message and 3 before a reply."""
    words = sum(len(message["content"].split()) + 4 for message in body["messages"])
    words += -1 if body.get("continue_final_message") else 3
    text = '{"number": 1}' if "response_format" in body else "Yes."
    logprobs = tops({"Yes": -0.1}) if body.get("logprobs") else None
    return chat(text, logprobs=logprobs, usage={"prompt_tokens": words})


def plain(body: Json, number: int) -> Answer:
    """A server that ignores what it does not know."""
    known = {name: body[name] for name in ("model", "messages")}
    return able(known, number)


def llama(body: Json, number: int) -> Answer:
    """A server that goes on from an assistant's message, whatever it is told, and knows no schema."""
    known = {"messages": body["messages"], "continue_final_message": body["messages"][-1]["role"] == "assistant"}
    return able(known, number)


def strict(body: Json, number: int) -> Answer:
    """A server that refuses what it does not know."""
    known = {"model", "messages", "temperature", "max_tokens"}
    return plain(body, number) if body.keys() <= known else error(400, "Unknown parameter")


def endless(body: Json, number: int) -> Answer:
    """A server whose model never comes to the end of its JSON."""
    return chat('{ "number"\t: 9' + "\n" * 40, finish="length") if "response_format" in body else able(body, number)


@pytest.mark.parametrize(
    ("rule", "abilities"),
    [
        (able, (True, True, True)),
        (endless, (True, True, False)),
        (plain, (False, False, False)),
        (llama, (False, True, False)),
        (strict, (False,) * 3),
    ],
)
def test_a_server_is_asked_once_what_it_can_do(
    rule: Callable[[Json, int], Answer], abilities: tuple[bool, bool, bool]
) -> None:
    with serving(rule) as server:
        asked = engine(server)
        able_to = asked.abilities
        assert (able_to.choices, able_to.prefill, able_to.structured) == abilities
        count = len(server.asked)
        assert asked.abilities == able_to
        assert len(server.asked) == count <= 6


def test_what_the_settings_say_is_not_asked() -> None:
    settings = HttpSettings(url="http://127.0.0.1:9/v1", model="m", logprobs="yes", prefill="no", structured="no")
    assert HttpEngine(settings).abilities[:2] == (True, False)


def test_a_server_that_cannot_be_asked_is_told_with_the_way_out() -> None:
    with serving(lambda _body, _number: error(401)) as server, pytest.raises(ModelError, match="yes or no"):
        _ = engine(server).abilities


# --- The key, and what makes an answer another one ---


def test_the_key_is_sent_and_a_missing_one_is_told_before_anything_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-marked-1234\n")
    with serving(lambda _body, _number: chat("Yes.")) as server:
        engine(server, api_key_env="SOME_KEY").complete([question(0)])
        assert "Authorization: Bearer sk-marked-1234\r\n" in server.headers[0]
        monkeypatch.delenv("SOME_KEY")
        settings = HttpSettings(url=server.url, model="mock", api_key_env="SOME_KEY")
        model = engine_of(settings, Models())
        with pytest.raises(ConfigurationError, match="SOME_KEY"):
            model.complete([question(0)])
        with pytest.raises(ConfigurationError, match="SOME_KEY"):
            _ = model.abilities
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        error(400, "you sent sk-marked-1234 to us"),
        error(500, "you sent sk-marked-1234 to us"),
        chat("I was sent sk-marked-1234."),
        Answer(b'{"model": "mock", "choices": [{"message": {"content": "\\u0073k-marked-1234"}}]}'),
    ],
)
def test_a_key_that_the_server_repeats_is_taken_out(monkeypatch: pytest.MonkeyPatch, answer: Answer) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-marked-1234")
    monkeypatch.setattr("constitutional.engines.http.back_off_s", lambda _tries: 1e6)  # past the deadline
    with serving(lambda _body, _number: answer) as server:
        (told,) = engine(server, api_key_env="SOME_KEY").complete([question(0)])
        assert "marked-1234" not in repr(told)
        assert "[key]" in repr(told)


def test_no_password_of_netrc_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password corp-secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("MY_KEY", "sk-0123456789")
    with serving(lambda _body, _number: chat("x")) as server:
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
        elsewhere = engine(server, url="http://model.example/v1", api_key_env="MY_KEY")
        assert elsewhere.complete([question(0)])[0].text == "x"
        assert engine(server, url="http://model.example/v1").complete([question(0)])[0].text == "x"
    assert ["Bearer sk-0123456789" in head for head in server.headers] == [True, False]
    assert not any("Basic" in head for head in server.headers)


def test_the_proxy_of_the_environment_is_asked_but_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with serving(lambda _body, _number: chat("x")) as server:
        assert engine(server).complete([question(0)])[0].text == "x"
        with pytest.raises(ModelError, match="cannot be reached"):
            engine(server, url="http://model.example/v1").complete([question(0)])
        monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
        assert engine(server, url="http://model.example/v1").complete([question(0)])[0].text == "x"
        monkeypatch.setenv("no_proxy", "model.example")
        with pytest.raises(ModelError, match="cannot be reached"):
            engine(server, url="http://model.example/v1").complete([question(1)])


def test_a_key_in_an_error_that_stops_the_run_is_taken_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-marked-1234")
    with serving(lambda _body, _number: error(401, "sk-marked-1234 is wrong")) as server:
        with pytest.raises(ModelError) as stopped:
            engine(server, api_key_env="SOME_KEY").complete([question(0)])
        assert "marked" not in str(stopped.value)
        assert "SOME_KEY" in str(stopped.value)


def identities() -> Iterator[tuple[HttpSettings, bool]]:
    base = {"url": "http://h/v1", "model": "m"}
    for change, same in (
        ({"concurrency": 2, "deadline_s": 5, "patience_s": 1, "logprobs": "no"}, True),
        ({"prices": {"input": 3}, "budget": {"max_calls": 3}}, True),
        ({"url": "http://other/v1"}, False),
        ({"model": "n"}, False),
        ({"revision": "2"}, False),
        ({"extra": {"reasoning_effort": "low"}}, False),
        ({"endpoint": "completions", "tokenizer": "some/name"}, False),
    ):
        yield HttpSettings.model_validate({**base, **change}), same


@pytest.mark.parametrize(("settings", "same"), list(identities()))
def test_the_identity_holds_what_answers_depend_on_and_nothing_else(settings: HttpSettings, same: bool) -> None:
    plain_one = HttpEngine(HttpSettings(url="http://h/v1/", model="m"))
    changed = HttpEngine(settings)
    assert (changed.identity == plain_one.identity) is same
    assert (changed.weights == plain_one.weights) is same


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000/v1", "ftp://h/v1", "http://user:secret@h/v1", "http://h/v1?key=secret"]
)
def test_an_address_that_is_none_or_holds_a_secret_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="url"):
        HttpSettings(url=url, model="m")


def test_completions_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="tokenizer"):
        HttpEngine(HttpSettings(url="http://h/v1", model="m", endpoint="completions"))


def test_what_a_server_can_do_is_remembered_by_the_journal_and_not_asked_again(tmp_path: Path) -> None:
    with serving(lambda _body, _number: chat("A")) as server:
        settings = HttpSettings(url=server.url, model="mock")
        with Journal(tmp_path / "journal.sqlite") as journal:
            told = HttpEngine(settings, journal=lambda: journal).abilities
    # The server is gone.
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert HttpEngine(settings, journal=lambda: journal).abilities == told
        typed = HttpEngine(settings.model_copy(update={"logprobs": "yes"}), journal=lambda: journal).abilities
        assert typed.choices
        other = settings.model_copy(update={"revision": "2"})
        assert HttpEngine(other, journal=lambda: journal).known_abilities() == {}


@pytest.mark.parametrize(
    ("refusal", "remembered"),
    [
        (error(498, "over capacity"), False),
        (error(400, "come again later"), False),
        (error(400, "no", code="content_filter"), False),
        (error(400, "Unsupported: logprobs, continue_final_message, response_format"), True),
    ],
)
def test_only_what_a_server_says_of_its_abilities_is_remembered(
    tmp_path: Path, refusal: Answer, remembered: bool
) -> None:
    with serving(lambda _body, _number: refusal) as server, Journal(tmp_path / "journal.sqlite") as journal:
        settings = HttpSettings(url=server.url, model="mock")
        first = HttpEngine(settings, journal=lambda: journal).abilities
        assert (first.choices, first.prefill, first.structured) == (False, False, False)
        server.rule = able
        later = HttpEngine(settings, journal=lambda: journal).abilities
        assert {later.choices, later.prefill, later.structured} == {not remembered}


def test_a_server_that_fails_at_a_field_lacks_what_the_field_is_for() -> None:
    def rule(body: Json, number: int) -> Answer:
        if "response_format" in body:  # as llama-cpp-python's server does
            return error(500, "1 validation error: loc: ('body', 'response_format', 'type')")
        return able(body, number)

    with serving(rule) as server:
        abilities = engine(server).abilities
    assert (abilities.choices, abilities.prefill, abilities.structured) == (True, True, False)


def test_a_server_that_gives_log_probabilities_has_the_ability_whatever_tokens_are_likeliest() -> None:
    def rule(body: Json, _number: int) -> Answer:
        logprobs = None if body.get("echo") else {"tokens": [" Yes"], "top_logprobs": [{" Yes": -0.5}]}
        return completed({"text": " Yes", "finish_reason": "length", "logprobs": logprobs})

    with serving(rule) as server:
        asked = engine(server, endpoint="completions", tokenizer=str(MODEL_FOLDER), structured="no")
        assert asked.abilities.choices
