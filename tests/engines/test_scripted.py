import pytest

from constitutional.base.records import Message
from constitutional.engines.base import Completion, Request, Sampling
from constitutional.engines.scripted import ScriptedEngine


def ask(text: str, *, stop: tuple[str, ...] = (), choices: tuple[str, ...] = ()) -> Request:
    return Request((Message("user", text),), Sampling(stop=stop), choices=choices)


def test_the_rule_sees_each_request_and_answers_in_order() -> None:
    engine = ScriptedEngine(lambda request: request.messages[-1].content.upper())
    assert engine.complete([ask("a"), ask("b")]) == [Completion("A", "stop"), Completion("B", "stop")]
    assert engine.complete([ask("c")]) == [Completion("C", "stop")]
    assert engine.count == 3


def test_a_text_ends_before_the_first_stop_text() -> None:
    engine = ScriptedEngine(lambda _: "One. Better: A. End: B")
    assert engine.complete([ask("x", stop=("End:", "Better:"))]) == [Completion("One. ", "stop")]
    assert engine.complete([ask("x", stop=("absent",))]) == [Completion("One. Better: A. End: B", "stop")]


def test_a_whole_completion_is_handed_on_as_it_is() -> None:
    completion = Completion("", "choices", (-0.5, -1.5))
    assert ScriptedEngine(lambda _: completion).complete([ask("x", choices=(" A", " B"))]) == [completion]


def test_a_text_cannot_answer_a_request_with_choices() -> None:
    with pytest.raises(ValueError, match="'A' for a request with choices"):
        ScriptedEngine(lambda _: "A").complete([ask("x", choices=(" A", " B"))])


def test_the_name_is_the_identity() -> None:
    assert ScriptedEngine(lambda _: "x", "polite").identity == ScriptedEngine(lambda _: "y", "polite").identity
    assert ScriptedEngine(lambda _: "x", "polite").identity != ScriptedEngine(lambda _: "x", "rude").identity


def test_half_of_a_character_that_no_file_can_hold_becomes_a_question_mark() -> None:
    for answer in ("a\ud800é", Completion("a\ud800é", "stop")):
        (completion,) = ScriptedEngine(lambda _, answer=answer: answer).complete([ask("Hi")])  # type: ignore[misc]
        assert completion.text == "a?é"
