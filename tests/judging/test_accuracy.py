from typing import Literal

import pytest

from constitutional.base.errors import RunError
from constitutional.constitution.constitution import Example, Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.judging.accuracy import (
    NULL_ANSWERS,
    PrincipleAccuracy,
    accuracy_against,
    canaries,
    check_canaries,
    measure_labeler,
    position_bias,
    trusted_principles,
    warnings_of,
)
from constitutional.judging.labelling import LabelSettings
from tests.judging.scripted_labeler import (
    CALM,
    LONG,
    LONGER,
    SHORT,
    SHORTER,
    TEMPLATES,
    chances,
    constitution,
    judged,
    judgement,
    likes_first,
    likes_longer,
    shown,
)


def measured(rule: Rule, *principles: Principle, min_accuracy: float = 0.0) -> list[PrincipleAccuracy]:
    settings = LabelSettings(min_accuracy=min_accuracy)
    return measure_labeler(constitution(*principles), ScriptedEngine(rule), TEMPLATES, settings)


def test_a_labeler_is_measured_principle_by_principle() -> None:
    longer, shorter, calm = measured(likes_longer, LONGER, SHORTER, CALM)
    assert (longer.n, longer.right, longer.unreadable, longer.conflicts, longer.accuracy) == (3, 3, 0, 0, 1.0)
    assert longer.mean_p_correct == pytest.approx(0.8)
    assert (shorter.n, shorter.right, shorter.accuracy) == (3, 0, 0.0)
    assert shorter.mean_p_correct == pytest.approx(0.2)
    assert (calm.n, calm.accuracy, calm.mean_p_correct) == (0, None, None)


def test_conflicts_are_counted_and_are_not_right() -> None:
    (longer,) = measured(likes_first, LONGER)
    assert (longer.n, longer.right, longer.conflicts) == (3, 0, 3)


def test_unreadable_replies_are_counted_and_leave_no_accuracy() -> None:
    (longer,) = measured(lambda _: "Hm.", LONGER)
    assert (longer.n, longer.right, longer.unreadable, longer.accuracy) == (3, 0, 3, None)


def test_principles_that_the_labeler_misjudges_are_left_out() -> None:
    accuracies = measured(likes_longer, LONGER, SHORTER, CALM, min_accuracy=0.7)
    assert [row.trusted for row in accuracies] == [True, False, True]
    trusted = trusted_principles(constitution(LONGER, SHORTER, CALM), accuracies)
    assert [principle.id for principle in trusted.principles] == ["longer", "calm"]
    assert warnings_of(accuracies) == [
        "principle 'calm' has no examples, so nobody knows how well it is judged",
        "principle 'shorter' is left out: the labeler is right in 0 of 3 on its examples",
    ]
    others = [Principle(id=f"p{number}", text="Be calm.") for number in range(12)]
    assert not any("'calm'" in line for line in warnings_of(accuracies, {"calm"}))  # which a rule decides
    (told,) = warnings_of(measured(likes_longer, *others))
    assert told.startswith("principles 'p0', 'p1', ")
    assert told.endswith(", 'p9' and 2 more have no examples, so nobody knows how well they are judged")


def test_near_chance_is_a_warning_where_nothing_is_left_out() -> None:
    many = constitution(LONGER, SHORTER)
    accuracies = measured(likes_longer, LONGER, SHORTER)
    assert [row.trusted for row in accuracies] == [True, True]
    assert trusted_principles(many, accuracies) == many
    assert warnings_of(accuracies) == [
        "principle 'shorter': the labeler is right in 0 of 3 on its examples, too few to tell"
    ]


def right_for(*questions: str) -> Rule:
    """Prefers the longer response to these questions, and the shorter one to others."""

    def rule(request: Request) -> Completion | str:
        a, b = shown(request)
        longer = any(question in request.messages[0].content for question in questions)
        first = (len(a) > len(b)) == longer
        return (chances(0.8, 0.2) if first else chances(0.2, 0.8)) if request.choices else "Better: A"

    return rule


@pytest.mark.parametrize(("min_accuracy", "trusted"), [(0.0, True), (2 / 3, True), (0.67, False), (1.0, False)])
def test_a_principle_is_trusted_from_the_minimum_accuracy_on(min_accuracy: float, trusted: bool) -> None:
    (row,) = measured(right_for("Question 0?", "Question 2?"), LONGER, min_accuracy=min_accuracy)
    assert (row.right, row.trusted) == (2, trusted)
    assert row.accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize(("right", "of", "share"), [(7, 25, 0.28), (14, 25, 0.56), (7, 50, 0.14)])
def test_a_share_that_is_exactly_met_is_met_whatever_the_rounding(right: int, of: int, share: float) -> None:
    examples = tuple(
        Example(prompt=f"Question {number}?", better="A long and full answer.", worse="Hm.") for number in range(of)
    )
    many = LONGER.model_copy(update={"examples": examples})
    rule = right_for(*[example.prompt for example in examples[:right]])
    (row,) = measured(rule, many, min_accuracy=share)
    assert (row.right, row.trusted) == (right, True)
    # As many fail: those whose prompts are the others.
    fails = right_for(*[example.prompt for example in examples[right:]])
    assert check(fails, LabelSettings(max_canary_failures=share), many) == (2 * of, 2 * right)


def test_a_principle_by_which_nothing_can_be_read_is_trusted_only_where_no_accuracy_is_asked_for() -> None:
    for min_accuracy, trusted in ((0.0, True), (0.01, False)):
        (row,) = measured(lambda _: "Hm.", LONGER, min_accuracy=min_accuracy)
        assert row.trusted == trusted
        (warning,) = warnings_of([row])
        assert "cannot be read" in warning


def test_where_the_labeler_only_thinks_it_is_said_how_to_end_that() -> None:
    settings = LabelSettings(max_tokens=9)
    with pytest.raises(RunError, match=r"fails at 6 of 6 .* could not be read: .* cut off at 9") as told:
        check(lambda _: Completion("", "length", reasoning="Hm."), settings, LONGER)
    assert 'while the model thought (6 of 6); type label.max_tokens=18, or "model.template={' in str(told.value)


def test_advice_for_a_judge_of_a_panel_names_that_judge() -> None:
    def cut_off(_: Request) -> Completion:
        return Completion("", "length", reasoning="Let me see.")

    with pytest.raises(RunError, match=r"The judge 'second' fails .* \(panel\.second\.template for a local model"):
        check_canaries(
            constitution(LONGER), ScriptedEngine(cut_off), TEMPLATES, LabelSettings(method="votes"), judge="second"
        )


def test_a_labeler_that_is_surest_where_it_is_wrong_is_told() -> None:
    (row,) = measured(likes_longer, LONGER)
    even = row.model_copy(update={"sharpness": 0.0})
    assert warnings_of([row]) == []
    (warning,) = warnings_of([even])
    assert warning.startswith("principle 'longer': the labeler is right in 3 of 3 on its examples, and is surest where")


def test_the_decision_is_read_from_the_rows_and_not_made_again() -> None:
    longer, shorter = measured(likes_longer, LONGER, SHORTER, min_accuracy=0.7)
    turned = [longer.model_copy(update={"trusted": False}), shorter.model_copy(update={"trusted": True})]
    assert [row.id for row in trusted_principles(constitution(LONGER, SHORTER), turned).principles] == ["shorter"]


def test_when_every_principle_is_misjudged_labelling_does_not_start() -> None:
    with pytest.raises(RunError, match=r"label\.min_accuracy"):
        trusted_principles(constitution(SHORTER), measured(likes_longer, SHORTER, min_accuracy=0.7))


def test_canaries_are_the_examples_and_answers_that_say_nothing() -> None:
    made = canaries(constitution(LONGER))
    assert [(each.comparison.a, each.comparison.b) for each in made[:4]] == [
        ("A long answer to 0.", "Hm."),
        ("A long answer to 0.", ":"),
        ("A long answer to 1.", "Hm."),
        ("A long answer to 1.", "Thought process:"),
    ]
    assert canaries(constitution(CALM)) == []
    assert canaries(constitution(LONGER.model_copy(update={"measure": "more words"}))) == []  # no model judges


def check(rule: Rule, settings: LabelSettings, *principles: Principle) -> tuple[int, int]:
    return check_canaries(constitution(*principles), ScriptedEngine(rule), TEMPLATES, settings)


def test_an_example_whose_responses_are_equal_is_no_comparison() -> None:
    examples = (
        Example(prompt="May I?", better="No.", worse=" No. "),
        Example(prompt="May I?", better=SHORT, worse=LONG),
    )
    principle = Principle(id="calm", text="Prefer the calm answer.", examples=examples)
    assert len(canaries(constitution(principle))) == 2  # one example, against its worse response and an empty phrase
    (accuracy,) = measure_labeler(constitution(principle), ScriptedEngine(likes_first), TEMPLATES, LabelSettings())
    assert accuracy.n == 1


def test_labelling_stops_loudly_when_the_canaries_fail() -> None:
    def taken_in(request: Request) -> Completion | str:
        """By whatever says nothing, and right otherwise: three of six canaries."""
        if not request.choices:
            return "Better: A"
        a, b = shown(request)
        null = set(NULL_ANSWERS)
        return chances(0.9, 0.1) if a in null or (b not in null and len(a) > len(b)) else chances(0.1, 0.9)

    assert check(taken_in, LabelSettings(max_canary_failures=0.5), LONGER) == (6, 3)
    with pytest.raises(RunError, match=r"fails at 3 of 6 .* 'longer'.*type label\.max_canary_failures=0\.5$"):
        check(taken_in, LabelSettings(max_canary_failures=0.4), LONGER)


def test_a_labeler_that_cannot_be_read_fails_the_canaries_and_one_that_wavers_does_not() -> None:
    with pytest.raises(RunError, match="fails at 6 of 6"):
        check(lambda _: "Hm.", LabelSettings(), LONGER)
    assert check(likes_first, LabelSettings(), LONGER) == (6, 0)
    assert check(likes_first, LabelSettings(), CALM) == (0, 0)


# Against given answers.


def test_a_labeler_is_checked_against_given_answers() -> None:
    judgements = [
        judgement(0.9, name="right"),
        judgement(0.2, name="also right"),
        judgement(0.7, name="wrong"),
        judgement(None, name="unreadable"),
        judgement(0.5, name="undecided"),
    ]
    answers: dict[str, Literal["a", "b"]] = {"right": "a", "also right": "b", "wrong": "b"}
    answers |= {"unreadable": "a", "undecided": "a"}
    found = accuracy_against(judgements, answers)
    assert (found.n, found.right, found.unreadable) == (5, 2, 1)
    assert found.accuracy == 0.4  # a tie is not right
    # Confidence and outcome: 0.9 and 1, 0.8 and 1, 0.7 and 0, 0.5 and a half: (0.1 + 0.2 + 0.7 + 0) / 4.
    assert found.calibration_error is None  # from four; of three times as many it is that mean
    names = {f"{name} {number}": answer for name, answer in answers.items() for number in range(3)}
    thrice = [row.model_copy(update={"comparison": f"{row.comparison} {n}"}) for row in judgements for n in range(3)]
    assert accuracy_against(thrice, names).calibration_error == pytest.approx(0.25)
    # Each of three deciding judgements gives the same side in both orders, so half of the six readings
    # prefer the first.
    assert found.position_bias == 0.5


def test_answers_are_compared_with_all_principles_together() -> None:
    # (0.4 · 1 + 0.9 · 1) / 2 = 0.65 for a.
    judged = [judgement(p, name=f"c{n}") for n in range(10) for p in (0.4, 0.9)]
    found = accuracy_against(judged, {f"c{n}": "a" for n in range(10)})
    assert (found.n, found.right) == (10, 10)
    assert found.calibration_error == pytest.approx(0.35)


def test_position_bias_is_the_share_of_readings_for_the_first() -> None:
    assert position_bias(judged(likes_first, LabelSettings(method="logprobs"))) == 1.0
    assert position_bias(judged(likes_longer, LabelSettings(method="logprobs"))) == 0.5
    assert position_bias(judged(likes_longer, LabelSettings(method="score"))) is None
    assert position_bias([judgement(0.5), judgement(None)]) is None


def test_a_labeler_that_fails_is_told_with_the_method_to_try() -> None:
    with pytest.raises(RunError, match=r"Most of them could not be read: .* \(6 of 6\); type label\.method=con"):
        check_canaries(constitution(LONGER), ScriptedEngine(lambda _: "Hm."), TEMPLATES, LabelSettings())

    def contrary(request: Request) -> Completion:
        return Completion("", "choices", tuple(-float(len(text) * len(request.messages)) for text in request.choices))

    with pytest.raises(RunError, match=r"Write `measure:` under principles"):
        check_canaries(constitution(LONGER), ScriptedEngine(contrary), TEMPLATES, LabelSettings(method="contrast"))
