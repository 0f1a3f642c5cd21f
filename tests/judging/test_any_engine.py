"""A labeler is asked by what its engine gives: log-probabilities, bounds of them, texts, or JSON."""

import json
import math
from typing import TypeVar, get_args

import pytest

from constitutional.base.records import Judgement, Message
from constitutional.engines.base import Abilities, Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.engines.stories import Story, side_by_side
from constitutional.judging.labeler import (
    MARK,
    SCORES,
    VERDICT,
    Answering,
    Labeler,
    LabelerSettings,
    Method,
    answering,
    decisive_abilities,
    method_for,
)
from constitutional.judging.labelling import LabelSettings, label
from tests.judging.scripted_labeler import CALM, LONG, SHORT, TEMPLATES, comparison, constitution, likes_longer, shown

T = TypeVar("T")
PLAIN = Abilities(choices=False, prefill=False)
TALK = (Message("user", "May I?"), Message("assistant", LONG))


def judged(rule: Rule, method: Method, abilities: Abilities, votes: int = 5) -> Judgement:
    engine = ScriptedEngine(rule, abilities=abilities)
    (row,) = label([comparison()], constitution(), engine, TEMPLATES, LabelSettings(method=method, votes=votes), seed=1)
    return row


def in_words(request: Request) -> str:
    """Prefers the longer response, and gives 9 to a long reply."""
    assert not request.choices
    assert request.messages[-1].role == "user"
    assert not request.schema
    if request.messages[-1].content.startswith("Rate"):
        return f"It is long or not. Score: {9 if len(request.messages[-2].content) > 10 else 2}"
    answer = likes_longer(request)
    assert isinstance(answer, str)
    return answer


@pytest.mark.parametrize(
    ("method", "expected"), [("logprobs", "votes"), ("rationale", "votes"), ("votes", "votes"), ("score", "rating")]
)
@pytest.mark.parametrize("abilities", [PLAIN, Abilities(prefill=False), Abilities(choices=False)])
def test_without_log_probabilities_behind_first_words_a_text_is_read(
    method: Method, expected: Answering, abilities: Abilities
) -> None:
    assert method_for(method, abilities) == expected
    row = judged(in_words, method, abilities, votes=2)
    # b is the longer one: no vote is for a; of scores, the sigmoid of 2 − 9.
    assert row.p_a == pytest.approx(1 / (1 + math.exp(7)) if method == "score" else 0)
    assert row.labeler == f"scripted:scripted {expected}"
    assert ("in place of" in answering(method, abilities)) == (expected != method)


@pytest.mark.parametrize("method", get_args(Method))
def test_with_log_probabilities_the_method_is_as_it_is_set(method: Method) -> None:
    assert method_for(method, Abilities()) == method
    assert judged(likes_longer, method, Abilities()).labeler == f"scripted:scripted {method}"
    assert decisive_abilities(Abilities()) == ""
    assert len({decisive_abilities(abilities) for abilities in (Abilities(), PLAIN, Abilities(structured=True))}) == 3


def test_a_reward_is_the_written_score_where_there_are_no_probabilities_of_scores() -> None:
    labeler = Labeler(ScriptedEngine(in_words, abilities=PLAIN), TEMPLATES, LabelerSettings(), 0)
    assert outcome(labeler.score(TALK, CALM)) == 9
    silent = Labeler(ScriptedEngine(lambda _: "Hm.", abilities=PLAIN), TEMPLATES, LabelerSettings(), 0)
    assert outcome(silent.score(TALK, CALM)) is None


def outcome(story: Story[T]) -> T:
    return next(side_by_side([story]))


# Upper bounds.


def bounding(logprobs: tuple[float, float], bounded: tuple[bool, bool]) -> Rule:
    return lambda _: Completion("", "choices", logprobs, bounded=bounded)


def test_a_bound_gives_a_probability_that_is_one_too_and_says_so() -> None:
    # A is exact, B at most a quarter of it: A has at least 4/5, whichever response stands there.
    row = judged(bounding((0.0, math.log(0.25)), (False, True)), "logprobs", Abilities())
    assert [reading.p_a for reading in row.readings] == [pytest.approx(0.8), pytest.approx(0.2)]
    assert all(reading.bounded for reading in row.readings)
    exact = judged(bounding((0.0, math.log(0.25)), (False, False)), "logprobs", Abilities())
    assert not any(reading.bounded for reading in exact.readings)
    assert "bounded" not in exact.readings[0].model_dump()  # so that older rows keep their ids


@pytest.mark.parametrize(
    ("logprobs", "bounded"), [((-5.0, -5.0), (True, True)), ((-5.0, -4.0), (False, True)), ((-5.0, -6.0), (True, True))]
)
def test_where_the_likeliest_choice_is_a_bound_nothing_can_be_read(
    logprobs: tuple[float, float], bounded: tuple[bool, bool]
) -> None:
    row = judged(bounding(logprobs, bounded), "logprobs", Abilities())
    assert row.p_a is None
    assert "likeliest tokens" in (row.problem or "")


def test_scores_that_rest_on_bounds_are_marked() -> None:
    def rule(request: Request) -> Completion | str:
        if not request.choices:
            return "It asks something. Score: 5"
        shares = tuple(0.0 if score == " 9" else -8.0 for score in SCORES)
        return Completion("", "choices", shares, bounded=tuple(share < 0 for share in shares))

    (reading,) = judged(rule, "score", Abilities()).readings
    assert reading.bounded
    assert reading.p_a == pytest.approx(0.5)


# JSON.


@pytest.mark.parametrize("method", ["votes", "score"])
def test_a_structured_engine_is_asked_for_json_whose_reasoning_comes_first(method: Method) -> None:
    schemas = []

    def rule(request: Request) -> str:
        schemas.append(json.loads(request.schema))
        if method == "score":
            return json.dumps({"reasoning": "Better: B", "score": 9 if LONG in request.messages[-2].content else 2})
        a, b = shown(request)
        return json.dumps({"reasoning": "Better: B", "better": "A" if len(a) > len(b) else "B"})

    row = judged(rule, method, PLAIN._replace(structured=True))
    assert row.p_a == pytest.approx(0 if method == "votes" else 1 / (1 + math.exp(7)))
    (schema,) = {json.dumps(schema): schema for schema in schemas}.values()
    assert list(schema["properties"]) == ["reasoning", "score" if method == "score" else "better"]
    if method == "score":
        assert (schema["properties"]["score"]["minimum"], schema["properties"]["score"]["maximum"]) == (1, 10)
    else:
        assert schema["properties"]["better"]["enum"] == ["A", "B"]


@pytest.mark.parametrize(
    "reply",
    [
        "I compared them. Better: A",
        '{"reasoning": "It is calm."}',
        '{"reasoning": "It is calm.", "better": "C"}',
        '{"reasoning": "It is calm.", "better": true}',
        '["A"]',
        '"A"',
        '{"better": "A"',
        "[" * 100_000,
        "",
    ],
)
def test_what_is_no_such_json_cannot_be_read(reply: str) -> None:
    row = judged(lambda _: reply, "votes", PLAIN._replace(structured=True))
    assert row.p_a is None
    assert "cannot be read" in (row.problem or "")


@pytest.mark.parametrize("score", ["0", "11", "true", "7.5", "null", '"high"'])
def test_a_score_in_json_is_a_whole_number_from_1_to_10(score: str) -> None:
    row = judged(lambda _: f'{{"reasoning": "", "score": {score}}}', "score", PLAIN._replace(structured=True))
    assert row.p_a is None
    assert "no JSON" in (row.problem or "")


LOOP = " \n" * 40


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{ "reasoning": "It asks so.","score"\t: 9' + LOOP, "9"),
        ('{"reasoning": "Say \\"score\\": 3, and", "score": 10}' + LOOP, "10"),
        ('{"score": 2, "reasoning": "It goes on and', "2"),
        ('{"score": "7"', "7"),
        ('{"reasoning": "It asks so.", "score": 1', None),  # perhaps of 10
        ('{"reasoning": "It asks so.", "score": 1.', None),
        ('{"reasoning": "It asks so.", "score": 11 ', None),
        ('{"reasoning": "\\"score\\": 9, ', None),
        ('{"reasoning": ": 9, \\"score\\": 9 , and so on \\', None),
        ('{ "reasoning": "It ends. Score: 9(The principle asks', None),
        ("{" + LOOP, None),
        ("Score: 9", None),
        ("", None),
    ],
)
def test_of_json_that_was_cut_off_a_whole_answer_is_read(text: str, score: str | None) -> None:
    assert MARK.read(Completion(text, "length"), structured=True) == score


def test_of_json_that_was_cut_off_a_verdict_is_read() -> None:
    assert VERDICT.read(Completion('{"reasoning": "B.", "better": "A"' + LOOP, "length"), structured=True) == "A"
    assert VERDICT.read(Completion('{"reasoning": "B.", "better": "A', "length"), structured=True) is None
    assert VERDICT.read(Completion("I see. Better: A", "length"), structured=False) is None


# Thoughts.


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("<think>At first: Better: B</think>Better: A", "A"),
        ("<think>\nBetter: B\n</think>\n\nI looked. Better: A", "A"),
        ("No tag opened this.</think>Better: A", "A"),
        ("<think>It never ends.\nBetter: A", None),
        ("<think>I think. Better: A\n</think>", None),
    ],
)
@pytest.mark.parametrize("method", ["votes", "rationale"])
def test_what_is_thought_is_no_verdict(method: Method, reply: str, choice: str | None) -> None:
    def rule(request: Request) -> Completion | str:
        return Completion("", "choices", (0.0, -math.inf)) if request.choices else reply

    row = judged(rule, method, Abilities())
    assert [reading.p_a for reading in row.readings] == ([1, 0] if choice else [None, None])


def test_thoughts_in_json_replies_are_left_behind_and_json_may_speak_of_their_tag() -> None:
    structured = PLAIN._replace(structured=True)
    verdict = '{"reasoning": "It closes </think> early.", "better": "A"}'
    for reply in (verdict, '<think>{"better": "B"}</think>\n{"reasoning": "", "better": "A"}'):
        assert [row.p_a for row in judged(lambda _, reply=reply: reply, "votes", structured).readings] == [1, 0]  # type: ignore[misc]


def test_reasoning_that_the_engine_keeps_apart_is_kept_and_never_read() -> None:
    def rule(_: Request) -> Completion:
        return Completion("", "stop", reasoning="It is calm. Better: A")

    row = judged(rule, "votes", PLAIN, votes=1)
    assert row.p_a is None
    assert row.readings[0].reasoning == "It is calm. Better: A"
    assert SHORT not in row.readings[0].rationale
