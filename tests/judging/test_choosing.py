from collections import Counter
from collections.abc import Iterable, Mapping

import pytest
from pydantic import ValidationError

from constitutional.base.records import Comparison, Judgement, Prompt, Revision, RevisionStep
from constitutional.constitution.constitution import Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.judging.choosing import principle_for, telling, violated_in_drafts
from constitutional.judging.labeler import SCORES, Labeler
from constitutional.judging.labelling import LabelSettings, label_telling
from tests.judging.scripted_labeler import CALM, TEMPLATES, chances, comparison, constitution, judged, likes_longer

BRIEF = Principle(id="brief", text="Be brief.")
KIND = Principle(id="kind", text="Be kind.", weight=2.0)
SETTINGS = LabelSettings(principles="telling")


def step(principle: str, critique: str | None, *, found_nothing: bool) -> RevisionStep:
    return RevisionStep(
        principle=principle, principle_text="", critique=critique, found_nothing=found_nothing, revision="r"
    )


def test_a_principle_is_violated_in_a_draft_where_a_critique_objects() -> None:
    steps = (
        step("calm", "It shouts.", found_nothing=False),
        step("brief", "It is short.", found_nothing=True),
        step("kind", None, found_nothing=False),  # revised without a critique: nobody judged it
    )
    objected, untouched = Prompt.of("Why?"), Prompt.of("How?")
    revisions = [Revision(prompt=objected, draft="d", steps=steps), Revision(prompt=untouched, draft="d", steps=())]
    assert violated_in_drafts(revisions) == {objected.id: {"calm"}, untouched.id: set()}


def draws(violated: Iterable[str], *principles: Principle) -> Counter[str]:
    ours = constitution(*principles)
    return Counter(principle_for(f"prompt {number}", ours, set(violated), seed=1).id for number in range(600))


def test_a_prompts_principle_is_drawn_by_weight_among_those_that_its_draft_violated() -> None:
    drawn = draws(["brief", "kind", "dropped"], CALM, BRIEF, KIND)
    assert drawn.keys() == {"brief", "kind"}
    # Weights 1 and 2: 200 of 600 in expectation, with a standard deviation of √(600 · ⅓ · ⅔) = 11.5.
    assert abs(drawn["brief"] - 200) < 4 * 11.5


@pytest.mark.parametrize("violated", [[], ["dropped"]])
def test_where_the_draft_violated_none_any_principle_is_drawn(violated: list[str]) -> None:
    drawn = draws(violated, CALM, BRIEF, KIND)
    # Weights 1, 1 and 2: a quarter each, and a half; √(600 · ¼ · ¾) = 10.6 and √(600 · ½ · ½) = 12.2.
    assert abs(drawn["calm"] - 150) < 4 * 10.6
    assert abs(drawn["kind"] - 300) < 4 * 12.2


def pairs_of(*replies: str) -> list[Comparison]:
    return [comparison(a, b) for at, a in enumerate(replies) for b in replies[at + 1 :]]


@pytest.mark.parametrize(
    ("scores", "at_most", "expected"),
    [
        # Gaps: w–x 1, w–y 6, w–z 6.5, x–y 5, x–z 5.5, y–z 0.5.
        ({"w": 2, "x": 3, "y": 8, "z": 8.5}, 1, {"wz"}),
        ({"w": 2, "x": 3, "y": 8, "z": 8.5}, 3, {"wz", "wy", "xz"}),
        ({"w": 2, "x": 3, "y": 8, "z": 8.5}, 9, {"wx", "wy", "wz", "xy", "xz"}),  # half a point is no difference
        ({"w": 2, "x": 2.9, "y": 2.95, "z": 2}, 9, set()),
        ({"w": 2, "x": None, "y": 9, "z": None}, 9, {"wy"}),
        ({"w": None, "x": None, "y": None, "z": None}, 9, set()),
    ],
)
def test_the_pairs_furthest_apart_are_telling(
    scores: Mapping[str, float | None], at_most: int, expected: set[str]
) -> None:
    chosen = telling(pairs_of("w", "x", "y", "z"), scores, at_most)
    assert {pair.a + pair.b for pair in chosen} == expected
    assert chosen == [pair for pair in pairs_of("w", "x", "y", "z") if pair in chosen]


def test_gaps_that_hardly_differ_are_ordered_by_nothing_that_the_labeler_says() -> None:
    pairs = pairs_of("w", "x", "y")
    first = telling(pairs, {"w": 2, "x": 9.01, "y": 9.04}, 1)
    assert telling(pairs, {"w": 2, "x": 9.04, "y": 9.01}, 1) == first


def told(rule: Rule, *pairs: Comparison, settings: LabelSettings = SETTINGS) -> tuple[list[list[Judgement]], int]:
    engine = ScriptedEngine(rule)
    labeler = Labeler(engine, TEMPLATES, settings, seed=1)
    return list(label_telling(pairs, constitution(CALM), labeler, {}, settings)), engine.count


LONG, LONGER, SHORT, SHORTER = "A long answer to it.", "A longer answer to it.", "Hm.", "H."


def test_only_pairs_that_the_scores_tell_apart_are_compared_and_in_both_orders() -> None:
    # By the scripted labeler a response of more than ten characters scores 8 or so, a shorter one 2 or 3.
    ((first, second),), count = told(likes_longer, *pairs_of(LONG, SHORT, LONGER))
    names = {pair.id: (pair.a, pair.b) for pair in pairs_of(LONG, SHORT, LONGER)}
    assert [names[row.comparison] for row in (first, second)] == [(LONG, SHORT), (SHORT, LONGER)]
    assert [row.p_a for row in (first, second)] == [pytest.approx(0.8), pytest.approx(0.2)]
    assert [reading.order for reading in first.readings] == ["a_first", "b_first"]
    assert (first.principle, first.principle_text, first.weight) == ("calm", "Prefer the calm answer.", 1.0)
    # Three responses are reasoned about and scored, then two pairs are in both orders.
    assert count == 3 * 2 + 2 * 2 * 2


def test_at_most_so_many_pairs_of_a_prompt_are_compared() -> None:
    settings = SETTINGS.model_copy(update={"telling_pairs": 1})
    ((_,),), count = told(likes_longer, *pairs_of(LONG, SHORT, LONGER, SHORTER), settings=settings)
    assert count == 4 * 2 + 1 * 2 * 2


def test_nothing_is_compared_where_the_principle_tells_nothing_apart() -> None:
    judgements, count = told(likes_longer, *pairs_of(LONG, LONGER), comparison(SHORT, SHORTER, "Other?"))
    assert judgements == [[], []]
    assert count == 4 * 2


def test_a_response_whose_score_cannot_be_read_is_not_compared() -> None:
    def rule(request: Request) -> Completion | str:
        rated = len(request.messages) > 2 and request.messages[1].content == SHORT
        return "Hm?" if rated and not request.choices else likes_longer(request)

    ((only,),), _ = told(rule, *pairs_of(LONG, SHORT, SHORTER))
    assert only.comparison == comparison(LONG, SHORTER).id


def test_prompts_are_judged_apart_by_the_principle_of_each() -> None:
    pairs = [comparison(LONG, SHORT, f"Question {number}?") for number in range(6)]
    violated = {pair.prompt.id: ["brief"] if number % 2 else ["calm"] for number, pair in enumerate(pairs)}

    def rule(request: Request) -> Completion | str:
        # By brevity a short response scores high.
        text = request.messages[-2 if request.choices else -1].content
        if request.choices == SCORES and BRIEF.text in text:
            high = len(request.messages[-3].content) <= 10
            return chances(*(0.91 if score == (9 if high else 2) else 0.01 for score in range(1, 11)))
        return likes_longer(request)

    labeler = Labeler(ScriptedEngine(rule), TEMPLATES, SETTINGS, seed=1)
    judgements = list(label_telling(pairs, constitution(CALM, BRIEF), labeler, violated, SETTINGS))
    rows = [(row.comparison, row.principle) for (row,) in judgements]
    assert rows == [(pair.id, "brief" if number % 2 else "calm") for number, pair in enumerate(pairs)]


def test_a_comparison_that_stands_alone_is_judged_by_one_principle_whatever_its_scores() -> None:
    assert [row.p_a for row in judged(likes_longer, SETTINGS, [comparison(SHORT, LONG)])] == [pytest.approx(0.2)]
    assert len(judged(likes_longer, SETTINGS, [comparison(LONG, LONGER)], CALM, BRIEF)) == 1


def test_scores_need_log_probabilities_so_votes_cannot_tell() -> None:
    with pytest.raises(ValidationError, match=r"label\.principles=one"):
        LabelSettings(principles="telling", method="votes")
