"""Labels by how likely responses are, examples before a question, and rules in the place of a labeler."""

import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from constitutional.base.errors import ModelError
from constitutional.base.records import Comparison, Message, Prompt
from constitutional.base.stats import sigmoid
from constitutional.constitution.constitution import Example, Principle
from constitutional.data.answers import Answered, AnsweredComparisons
from constitutional.engines.base import Abilities, Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.engines.stories import side_by_side
from constitutional.judging.accuracy import measure_labeler, sharpness_of
from constitutional.judging.contrast import calibrated, contrast, probability, requests
from constitutional.judging.labeler import JudgementTask, Labeler, LabelerSettings, Method, method_for
from constitutional.judging.labelling import LabelSettings
from constitutional.judging.trial import by_answers
from tests.judging.scripted_labeler import CALM, LONG, SHORT, TEMPLATES, comparison, constitution, judged, shown
from tests.tiny import chat_template, tiny_model

CONTRAST = LabelSettings(method="contrast")
SILENT = "{% for m in messages %}{% if m['role'] != 'system' %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"  # noqa: E501
KIND = Principle(id="kind", text="Be kind.", why="It helps.", opposite="Be unkind.")
WISH = "You are an assistant, and every reply of yours follows this principle: "


def likely(request: Request) -> Completion:
    """Under the wish, the long response (6 words) has −3 and the short one (1 word) −1; without it −9 and −1.2."""
    assert request.choices == (SHORT, LONG)
    wished = request.messages[0].role == "system"
    return Completion("", "choices", (-1.0, -3.0) if wished else (-1.2, -9.0))


def test_the_lead_is_in_nats_a_word_over_what_is_likely_without_the_principle() -> None:
    (row,) = judged(likely, CONTRAST)
    # short: (−1 + 1.2) / (1 + 5) = 1/30; long: (−3 + 9) / (6 + 5) = 6/11; and 0.1 is one unit of log-odds.
    assert row.p_a == pytest.approx(sigmoid(10 * (1 / 30 - 6 / 11)))
    (reading,) = row.readings
    assert reading.rationale.endswith("without it: a by +0.033 nats a word, b by +0.545")
    assert not row.conflict
    assert row.labeler.endswith(" contrast")


def test_the_two_prompts_hold_the_principle_and_its_opposite_and_keep_a_system_message() -> None:
    asked = requests(comparison(), KIND, TEMPLATES)
    assert [request.messages for request in asked] == [
        (Message("system", f"{WISH}Be kind.\n\nReason: It helps."), Message("user", "May I?")),
        (Message("system", f"{WISH}Be unkind."), Message("user", "May I?")),
    ]
    plain = (Message("system", "You are a cook."), Message("user", "May I?"))
    under, without = requests(Comparison(prompt=Prompt(messages=plain), a="A", b="B", model="m"), CALM, TEMPLATES)
    assert under.messages[0].content == f"You are a cook.\n\n{WISH}Prefer the calm answer."
    assert without.messages == plain


@pytest.mark.parametrize("template", [chat_template("gemma"), SILENT])
def test_a_labeler_without_system_messages_reads_the_principle_in_the_users(tmp_path: Path, template: str) -> None:
    from constitutional.engines.local import LocalEngine, load_model

    model, tokenizer = load_model(tiny_model(tmp_path, "gemma"))
    tokenizer.chat_template = template
    engine = LocalEngine(model, tokenizer)
    labeler = Labeler(engine, TEMPLATES, LabelerSettings(method="contrast"), 0)
    (row,) = side_by_side([labeler.judge(JudgementTask(comparison(), CALM))])
    wished = (Message("user", f"{WISH}Prefer the calm answer.\n\nMay I?"),)
    plain = (Message("user", "May I?"),)
    under, without = engine.complete([Request(asked, choices=(SHORT, LONG)) for asked in (wished, plain)])
    assert under.choice_logprobs != without.choice_logprobs
    found = contrast(comparison(), [under, without], "m")
    assert found is not None
    assert row.p_a == pytest.approx(probability(found, 1.0))
    assert row.p_a != 0.5


def test_a_judgement_says_the_words_that_the_model_was_asked_with() -> None:
    own = Principle(id="kind", text="Be kind.", comparison="Which response is kinder?")
    (row,) = judged(likely, CONTRAST, [comparison()], own)
    assert row.principle_text == "Be kind."
    (row,) = judged(
        lambda _: Completion("", "choices", (-1.0, -2.0)), LabelSettings(method="logprobs"), [comparison()], own
    )
    assert row.principle_text == "Which response is kinder?"


def test_bounds_are_no_probabilities_and_an_engine_without_any_is_refused() -> None:
    exact, bound = (
        Completion("", "choices", (-1.0, -2.0)),
        Completion("", "choices", (-1.0, -2.0), bounded=(True, False)),
    )
    assert contrast(comparison(), [exact, bound], "m") is None
    assert contrast(comparison(), [exact, Completion("", "choices", (-math.inf, -2.0))], "m") is None
    with pytest.raises(ModelError, match=r"m: gave no log-probabilities.*label\.method=votes"):
        contrast(comparison(), [exact, Completion("text", "stop")], "m")


def test_a_question_without_an_answer_leaves_no_probability() -> None:
    (row,) = judged(lambda _: Completion("", "error", reason="it is down"), CONTRAST)
    assert row.p_a is None
    assert "it is down" in (row.problem or "")


def test_contrast_needs_log_probabilities_and_no_prefill() -> None:
    assert method_for("contrast", Abilities(prefill=False)) == "contrast"
    assert method_for("contrast", Abilities(choices=False)) == "votes"


def test_calibration_makes_probabilities_as_sure_as_they_are_often_right() -> None:
    # Three right and one wrong, all with log-odds of 2, and one made-up of each: 4 of 6 are right, so k·2 = log(4/2).
    sure = sigmoid(2.0)
    assert calibrated([sure, sure, sure, 1 - sure]) == pytest.approx(math.log(2) / 2)
    # All right: 5 of 6, and not infinitely sure.
    assert calibrated([sure] * 4) == pytest.approx(math.log(5) / 2)
    assert calibrated([1 - sure] * 4) == pytest.approx(0, abs=1e-9)
    assert calibrated([sure, 1 - sure]) == pytest.approx(0, abs=1e-9)
    assert calibrated([]) == calibrated([0.5]) == 1.0


def test_examples_of_other_principles_count_for_a_few() -> None:
    sure = sigmoid(2.0)
    # Two of two are right, and eight of sixteen others, which weigh an eighth: with the made-up ones 4 of 6.
    assert calibrated([sure, sure], [*[sure] * 8, *[1 - sure] * 8]) == pytest.approx(math.log(4 / 2) / 2)
    # Without examples of its own, 3 of 4 others, which weigh a half, and the made-up ones: 2.5 of 4.
    assert calibrated([], [sure, sure, sure, 1 - sure]) == pytest.approx(math.log(2.5 / 1.5) / 2)
    # One other counts as one.
    assert calibrated([], [sure]) == pytest.approx(math.log(2 / 1) / 2)


def test_what_a_labeler_is_sure_of_comes_from_the_examples_that_it_judges_itself() -> None:
    examples = tuple(Example(prompt=f"{n}?", better=LONG, worse=SHORT) for n in range(3))
    kind = KIND.model_copy(update={"examples": examples})
    ruled = Principle(id="ruled", text="Be long.", measure="more words", examples=examples)

    def rule(request: Request) -> Completion:
        assert request.choices == (LONG, SHORT)
        right = "unkind" not in request.messages[0].content
        return Completion("", "choices", (-1.0, -2.0) if right else (-2.2, -2.0))

    rows = measure_labeler(constitution(kind, ruled), ScriptedEngine(rule), TEMPLATES, CONTRAST)
    assert [(row.n, row.right) for row in rows] == [(3, 3), (3, 3)]
    # Each leads by 1.2 / (6 + 5) nats a word; of five, with the two made-up ones, four are right.
    odds = 10 * 1.2 / 11
    assert sharpness_of(rows) == {"kind": pytest.approx(math.log(4) / odds), "ruled": 1.0}
    assert rows[0].mean_p_correct == pytest.approx(sigmoid(odds))
    # So sure it is on people's answers: all that it gives with 4 to 1 are right, which 4 of 5 should be.
    prompts = [Prompt(messages=(Message("user", f"Other {n}?"),)) for n in range(50)]
    answers = [Answered(Comparison(prompt=prompt, a=LONG, b=SHORT, model="people"), "a") for prompt in prompts]
    answered = AnsweredComparisons(answers, 0)
    trial = by_answers(answered, constitution(kind), ScriptedEngine(rule), TEMPLATES, CONTRAST, seed=0)
    assert "calibration error  0.20" in trial.text


def test_the_sharpness_multiplies_the_log_odds() -> None:
    engine = ScriptedEngine(likely)
    labeler = Labeler(engine, TEMPLATES, LabelerSettings(method="contrast"), 0, sharpness={CALM.id: 0.25})
    (row,) = side_by_side([labeler.judge(JudgementTask(comparison(), CALM))])
    assert row.p_a == pytest.approx(sigmoid(0.25 * 10 * (1 / 30 - 6 / 11)))


def test_a_rule_judges_without_a_model_and_scores_replies() -> None:
    brief = Principle(id="brief", text="Be brief.", measure="fewer words")
    (row,) = judged(lambda _: pytest.fail("a model was asked"), LabelSettings(), [comparison()], brief)
    # 1 word: 1 + 9·60/61; 6 words: 1 + 9·60/66.
    assert row.p_a == pytest.approx(sigmoid(9 * 60 / 61 - 9 * 60 / 66))
    assert row.labeler == "rule fewer words"
    assert row.readings[0].rationale.startswith("a (9.85 of 10): 1\n\nb (9.18 of 10): 6")
    labeler = Labeler(ScriptedEngine(lambda _: pytest.fail("asked")), TEMPLATES, LabelerSettings(), 0)
    talk = (Message("user", "May I?"), Message("assistant", LONG))
    (score,) = side_by_side([labeler.score(talk, brief)])
    (rating,) = side_by_side([labeler.rating(talk, brief)])
    assert score == pytest.approx(1 + 9 * 60 / 66)
    assert rating.score == 9


FEW = Principle(
    id="few",
    text="Prefer the calm answer.",
    examples=tuple(Example(prompt=f"Question {n}?", better=f"calm {n}", worse=f"loud {n}") for n in range(3)),
)


def test_examples_go_before_a_comparison_and_the_better_one_stands_first_by_turns() -> None:
    seen: list[Request] = []

    def rule(request: Request) -> Completion:
        seen.append(request)
        return Completion("", "choices", (math.log(0.6), math.log(0.4)))

    judged(rule, LabelSettings(method="logprobs", few_shot=2), [comparison()], FEW)
    a_first, b_first = seen
    for request, answers in ((a_first, ["A", "B"]), (b_first, ["B", "A"])):
        roles = [turn.role for turn in request.messages]
        assert roles == ["user", "assistant"] * 3
        assert [turn.content for turn in request.messages[1:5:2]] == [f"Better: {answer}" for answer in answers]
        for number, answer in enumerate(answers):
            texts = (f"calm {number}", f"loud {number}")
            shot = shown(request._replace(messages=request.messages[2 * number :]))
            assert shot == (texts if answer == "A" else texts[::-1])
        assert f"Human: Question {number}?" in request.messages[2 * number].content


def test_an_example_is_not_shown_where_it_is_the_question() -> None:
    seen: list[Request] = []

    def rule(request: Request) -> Completion:
        seen.append(request)
        return Completion("", "choices", (math.log(0.6), math.log(0.4)))

    judged(rule, LabelSettings(method="logprobs", few_shot=3), [comparison(question="Question 1?")], FEW)
    shots = [turn.content for turn in seen[0].messages[:-2] if turn.role == "user"]
    assert ["Question 0?" in shots[0], "Question 2?" in shots[1], len(shots)] == [True, True, 2]


@pytest.mark.parametrize("method", ["contrast", "score"])
def test_examples_are_refused_where_no_comparison_is_shown(method: Method) -> None:
    with pytest.raises(ValidationError, match=f"few_shot shows comparisons with their answers, and method={method}"):
        LabelSettings(method=method, few_shot=2)
