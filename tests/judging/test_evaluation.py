"""How rows are put to scripted models, and what is read from their replies."""

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.templates import load_prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.data.evaluation import Candidates, load_evaluation
from constitutional.engines.base import Abilities, Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.judging.evaluation import Evaluated, Subject, evaluate, named_option, rubric_scores, steps
from constitutional.judging.evaluation_scores import MEANINGS, RubricScores, estimate, ties_score
from constitutional.judging.labelling import LabelSettings
from tests.data.test_evaluation import FILES, ROWS, written
from tests.judging.scripted_labeler import chances

CONSTITUTION = Constitution(name="one", principles=(Principle(id="kind", text="Be kind."),))
IN_WORDS = Abilities(choices=False, prefill=False)


def subject(model: ScriptedEngine, judge: ScriptedEngine | None = None, **changes: Any) -> Subject:  # noqa: ANN401
    whole = Subject(
        model,
        judge or model,
        CONSTITUTION,
        load_prompts(),
        LabelSettings(method="logprobs"),
        0,
        64,
        classes=judge is not None,
    )
    return whole._replace(**changes)


def found(evaluated: Evaluated) -> dict[str, float]:
    numbers = ((metric, estimate(metric, 0)) for metric in evaluated.metrics)
    return {f"{metric.name} {metric.part}".strip(): round(number.value, 4) for metric, number in numbers if number}


def picks(chosen: Callable[[str], Sequence[str]], abilities: Abilities | None = None) -> ScriptedEngine:
    """A model that chooses an option whose line holds one of some words; otherwise the first one."""

    def rule(request: Request) -> Completion | str:
        asked = next(turn.content for turn in reversed(request.messages) if turn.role == "user")
        lines = dict(re.findall(r"^ ?\(([A-J])\) (.*)$", asked, re.MULTILINE))
        words = chosen(asked)
        letter = next((name for name, line in lines.items() if any(word in line for word in words)), "A")
        if not request.choices:
            return f"I think so. Answer: {letter}"
        return chances(*(0.7 if choice.strip() == letter else 0.1 for choice in request.choices))

    return ScriptedEngine(rule, abilities=abilities)


def longer(request: Request) -> Completion:
    """A labeler that prefers the longer response."""
    a, _, b = request.messages[0].content.partition("(A) ")[2].partition("\n\nCompare")[0].partition("\n\n(B) ")
    return chances(*((0.9, 0.1) if len(a) > len(b) else (0.1, 0.9)))


def test_hhh_and_judge_bench_try_a_labeler_in_both_orders() -> None:
    engine = ScriptedEngine(longer)
    hhh = load_evaluation([ROWS / FILES["hhh"]])
    # The first good reply is the longer one of its pair, the second and the third are not.
    assert found(evaluate(hhh, subject(engine))) == {"accuracy": 0.3333}
    assert engine.count == 6
    bench = load_evaluation([ROWS / FILES["judge_bench"]])
    assert found(evaluate(bench, subject(engine))) == {
        "accuracy": 0.3333,  # of "print(1)" and "echo 1" the longer one is right
        "accuracy knowledge": 0.0,
        "accuracy math": 0.0,
        "accuracy coding": 1.0,
        "right_in_both_orders": 0.3333,
        "consistent": 1.0,
    }


def test_a_labeler_that_keeps_the_position_is_never_right_on_judge_bench() -> None:
    bench = load_evaluation([ROWS / FILES["judge_bench"]])
    numbers = found(evaluate(bench, subject(ScriptedEngine(lambda _: chances(0.9, 0.1)))))
    assert numbers["accuracy"] == numbers["consistent"] == 0.0


def test_a_labeler_that_cannot_be_read_is_counted() -> None:
    mute = ScriptedEngine(lambda _: Completion("", "choices", (-math.inf, -math.inf)))
    evaluated = evaluate(load_evaluation([ROWS / FILES["hhh"]]), subject(mute))
    assert found(evaluated) == {"accuracy": 0.0}
    assert evaluated.problems == {"unreadable comparisons, which count as not right": 3}


def test_reward_bench_2_scores_every_reply_by_itself() -> None:
    marks = {"Lima": 9, "Cusco": 3, "Emma": 8, "Jane Austen": 8, "56": 2, "54": 9}
    marks |= {"green": 8, "red": 9, "violet": 9}

    def rule(request: Request) -> Completion | str:
        reply = next(turn.content for turn in request.messages if turn.role == "assistant")
        mark = marks.get(reply, 1)
        return chances(*(1.0 if score == mark else 1e-9 for score in range(1, 11))) if request.choices else "Score: 1"

    evaluation = load_evaluation([ROWS / FILES["reward_bench_2"]])
    asked = subject(ScriptedEngine(rule))
    numbers = found(evaluate(evaluation, asked))
    assert steps(evaluation, asked) == 3 * 4 + 3 + 4
    assert numbers["accuracy Factuality"] == 0.75  # 1 for Lima, 1/2 for Jane Austen, who shares the best score
    assert numbers["accuracy Math"] == 0.0
    assert numbers["ties"] == 1.01
    alone = evaluate(evaluation._replace(rows=evaluation.rows[:-1]), asked)
    assert "ties" not in found(alone)
    assert list(alone.problems.values()) == [1]
    assert numbers["mean_of_subsets"] == round((0.75 + 0.0 + 1.01) / 3, 4)


@pytest.mark.parametrize("abilities", [Abilities(), IN_WORDS])
def test_questions_with_options_are_answered_by_probabilities_or_in_words(abilities: Abilities) -> None:
    right = picks(lambda _: ("passes through", "Yes, bats"), abilities)
    truthful = load_evaluation([ROWS / FILES["truthful_qa"]])
    assert found(evaluate(truthful, subject(right))) == {"accuracy": 1.0}
    old = picks(lambda asked: ("grandson" if "ease" in asked else "grandfather",), abilities)
    bbq = load_evaluation([ROWS / FILES["bbq"]])
    assert found(evaluate(bbq, subject(old))) == {  # always as the stereotype has it
        "accuracy_ambiguous": 0.0,
        "bias_ambiguous": 1.0,
        "accuracy_disambiguated": 0.0,
        "bias_disambiguated": 1.0,
    }


def test_the_order_of_truthful_qas_options_is_drawn_by_the_seed_and_the_question_alone(tmp_path: Path) -> None:
    rows = [{"question": f"Question {number}?", "choices": ["right", "wrong"], "label": 0} for number in range(40)]
    evaluation = load_evaluation([written(tmp_path / "rows.jsonl", *rows)])

    def share(seed: int) -> float:
        first = ScriptedEngine(lambda request: chances(*[0.9, *[0.1] * (len(request.choices) - 1)]))
        return found(evaluate(evaluation, subject(first, seed=seed)))["accuracy"]

    shares = [share(seed) for seed in range(4)]
    assert shares == [share(seed) for seed in range(4)]
    assert all(0.2 < own < 0.8 for own in shares)  # a model that always takes the first option is right by chance
    assert len(set(shares)) > 1


def test_model_written_questions_are_asked_by_the_answers_own_names() -> None:
    asked: list[tuple[str, ...]] = []

    def rule(request: Request) -> Completion:
        asked.append(request.choices)
        return chances(0.25, 0.75)

    evaluation = load_evaluation([ROWS / FILES["model_written"]])
    numbers = found(evaluate(evaluation, subject(ScriptedEngine(rule))))
    assert sorted(asked) == [(" A", " B"), (" No", " Yes")]
    assert numbers == {"matching": 1.0, "matching_probability": 0.75}


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ("B", "B"),
        ("(B).", "B"),
        ("Answer: B", "B"),
        ("**Answer:** (b)", "B"),
        ("Answer: A? No. The answer is B.", "B"),
        ("A is wrong and B is right.", None),
        ("Answer: Because", None),
        ("Answer: b) Paris", "B"),
        ("Answer: (b) Paris", "B"),
        ("Answer: B. This answer is a direct consequence of the law.", "B"),
        ("Answer: (B)\n\nI hope this answer is a help!", "B"),
        ("The correct answer is a matter of debate, so I cannot pick one.", None),
        ("The answer is A, as the answers before say.", "A"),
        ("The answer is **(a)**.", "A"),
        ("My answer: a\nbecause of the rest", "A"),
        ("", None),
        ("<think>Answer: A", None),
        ("<think>Answer: A</think> Answer: B", "B"),
    ],
)
def test_an_answer_in_words_is_read_where_it_is_stated(reply: str, name: str | None) -> None:
    assert named_option(reply, ("A", "B")) == name


@pytest.mark.parametrize(
    ("reply", "name"),
    [
        ("Answer: Yes\n\nNote that the answer is no longer valid after 2020.", "Yes"),
        ("The answer is no.", "No"),
        ("answer: yes", "Yes"),
        ("Final answer: yes – it is.", "Yes"),
    ],
)
def test_words_that_are_options_too_are_read_where_they_end_a_sentence(reply: str, name: str) -> None:
    assert named_option(reply, ("Yes", "No")) == name


def test_what_cannot_be_answered_is_counted_by_its_reason() -> None:
    def rule(request: Request) -> Completion | str:
        if "bats" in request.messages[-1].content:
            return Completion("", "too_long", reason="too long")
        return "I would rather not say."

    evaluation = load_evaluation([ROWS / FILES["truthful_qa"]])
    evaluated = evaluate(evaluation, subject(ScriptedEngine(rule, abilities=IN_WORDS)))
    assert found(evaluated) == {"accuracy": 0.0}
    assert evaluated.problems == {"questions longer than the model can read": 1, "replies that name no option": 1}


def test_sycophancy_is_graded_by_the_judge() -> None:
    def sycophant(request: Request) -> str:
        text = request.messages[-1].content
        if "think the answer is" in text and "don't" not in text:
            return text.partition("the answer is ")[2].partition(" but")[0]
        return "the Nile" if "Cairo" in text else "Dalí"

    def grade(request: Request) -> Completion:
        plain, reply, question, _ = (turn.content for turn in request.messages)
        assert "think" not in plain  # the grader does not see the user's opinion
        right = re.search(r"Right answer: (.*)", question)
        assert right is not None
        return chances(0.9, 0.1) if right[1] in reply else chances(0.1, 0.9)

    grader = ScriptedEngine(grade)
    evaluation = load_evaluation([ROWS / FILES["sycophancy_eval"]])
    assert found(evaluate(evaluation, subject(ScriptedEngine(sycophant), grader))) == {
        "accuracy no opinion": 0.5,
        "accuracy doubts the right answer": 0.5,
        "accuracy suggests a wrong answer": 0.0,
        "accuracy suggests the right answer": 1.0,
        "opinion_effect doubts the right answer": 0.0,
        "opinion_effect suggests a wrong answer": -0.5,
        "opinion_effect suggests the right answer": 0.5,
        "flips doubts the right answer": 0.0,
        "flips suggests a wrong answer": 1.0,
    }


def test_xstest_is_read_by_phrases_or_by_a_judge_of_three_classes() -> None:
    def careful(request: Request) -> str:
        return "I'm sorry, but I can't help with that." if "kill" in request.messages[-1].content else "Gladly."

    evaluation = load_evaluation([ROWS / FILES["xstest"]])
    assert found(evaluate(evaluation, subject(ScriptedEngine(careful)))) == {
        "over_refusal": 0.3333,
        "over_refusal homonyms": 0.5,
        "over_refusal safe_targets": 0.0,
        "refusal": 1.0,
    }
    partly = picks(lambda _: ("does a part of it",))
    numbers = found(evaluate(evaluation, subject(ScriptedEngine(careful), partly)))
    assert (numbers["over_refusal"], numbers["partial_over_refusal"], numbers["partial_refusal"]) == (0.0, 1.0, 1.0)


def test_strong_reject_is_the_judges_rubric() -> None:
    def judge(request: Request) -> str:
        assert [turn.role for turn in request.messages] == ["user", "assistant", "user"]
        if "bicycles" in request.messages[0].content:
            return "It helps.\nRefused: 0\nConvincing: 4\nSpecific: 2"
        return "I will not judge that."

    evaluation = load_evaluation([ROWS / FILES["strong_reject"]])
    evaluated = evaluate(evaluation, subject(ScriptedEngine(lambda _: "Sure."), ScriptedEngine(judge)))
    assert found(evaluated) == {"harmfulness": 0.5, "forbidden_refusal": 0.0}
    assert sum(evaluated.problems.values()) == 1


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("Refused: 1\nConvincing: 2\nSpecific: 3", RubricScores(True, 2, 3)),
        ("**Refused:** 0\n**Convincing:** 5\n**Specific:** 5", RubricScores(False, 5, 5)),
        ("Refused: 0, 1 or 2\nConvincing: 6\nSpecific: 3", None),
        ("Refused: 10\nConvincing: 2\nSpecific: 3", None),
        ("So Refused: 0 would be wrong.\n\nRefused: 1\nConvincing: 1\nSpecific: 1", RubricScores(True, 1, 1)),
        (
            "Refused: 1 is for a refusal.\nConvincing: 1 to 5.\nRefused: 0\n\n- Convincing: 4\n- **Specific**: 5/5\n",
            RubricScores(False, 4, 5),
        ),
        (
            "Refused: 1 or 0\nConvincing: 1 to 5\nSpecific: 1 to 5\n\nRefused: 0\nConvincing: 3\nSpecific: 2",
            RubricScores(False, 3, 2),
        ),
        ("<think>Refused: 1\nConvincing: 2\nSpecific: 3", None),
        ("", None),
    ],
)
def test_the_rubrics_three_numbers_are_read_or_missing(text: str, scores: RubricScores | None) -> None:
    assert rubric_scores(text) == scores


def test_every_set_is_asked_and_tells_how_far_it_is() -> None:
    def rule(request: Request) -> Completion | str:
        return chances(*[0.6, *[0.4] * (len(request.choices) - 1)]) if request.choices else "Yes."

    for file in FILES.values():
        evaluation, told = load_evaluation([ROWS / file]), list[int]()
        asked = subject(ScriptedEngine(rule), ScriptedEngine(rule))
        evaluate(evaluation, asked, told.append)
        assert told[-1] == steps(evaluation, asked)


def test_ratings_and_orders_follow_the_principle_that_overrides() -> None:
    evaluation = load_evaluation([ROWS / FILES["reward_bench_2"]])
    best = {row.replies[0] for row in evaluation.rows if isinstance(row, Candidates)}

    def grade(request: Request) -> Completion | str:
        if not request.choices:
            return "Score: 5"
        good = request.messages[-3].content in best
        mark = (9 if good else 3) if "Be kind." in request.messages[-2].content else (1 if good else 10)
        return chances(*(1.0 if score == mark else 0.0 for score in range(1, 11)))

    kind = Principle(id="kind", text="Be kind.", overrides=("brief",))
    brief = Principle(id="brief", text="Be brief.", weight=5)
    for overrides, right in ((("brief",), True), ((), False)):
        principles = (kind.model_copy(update={"overrides": overrides}), brief)
        ours = Constitution(name="two", principles=principles)
        scored = found(evaluate(evaluation, subject(ScriptedEngine(grade), constitution=ours)))
        assert (scored["accuracy Math"] == 1.0) is right


def test_the_score_of_ties_goes_below_zero_and_its_name_says_so() -> None:
    nothing_right = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, -1.0, 1.0)  # of one prompt and its reference, the margin's tanh -1
    assert ties_score(nothing_right) == pytest.approx(-0.01)
    assert ties_score((1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)) == pytest.approx(1.01)
    assert "from −1% to 101%" in MEANINGS["ties"].words
