from collections import Counter
from collections.abc import Iterable, Mapping

import pytest

from constitutional.base.records import Comparison, Judgement, Prompt, Revision, RevisionStep
from constitutional.constitution.constitution import Principle
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.judging.choosing import principle_for, telling, violated_in_drafts
from constitutional.judging.labeler import MARK, Labeler
from constitutional.judging.labelling import Judge, LabelSettings, label_telling
from tests.judging.scripted_labeler import CALM, TEMPLATES, comparison, constitution, judged, likes_longer

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


def test_of_two_violated_principles_the_one_that_overrides_is_drawn() -> None:
    calm = CALM.model_copy(update={"overrides": ("brief",)})
    assert draws(["calm", "brief"], calm, BRIEF, KIND).keys() == {"calm"}
    assert draws(["brief", "kind"], calm, BRIEF, KIND).keys() == {"brief", "kind"}  # nothing violated overrides `brief`
    above = BRIEF.model_copy(update={"overrides": ("kind",)})
    assert draws(["calm", "kind"], calm, above, KIND).keys() == {"calm"}  # through a principle that was not violated


def pairs_of(*replies: str) -> list[Comparison]:
    return [comparison(a, b) for at, a in enumerate(replies) for b in replies[at + 1 :]]


@pytest.mark.parametrize(
    ("scores", "at_most", "expected"),
    [
        # Gaps: w–x 1, w–y 6, w–z 7, x–y 5, x–z 6, y–z 1.
        ({"w": 2, "x": 3, "y": 8, "z": 9}, 1, {"wz"}),
        ({"w": 2, "x": 3, "y": 8, "z": 9}, 3, {"wz", "wy", "xz"}),
        ({"w": 2, "x": 3, "y": 8, "z": 9}, 9, {"wx", "wy", "wz", "xy", "xz", "yz"}),
        ({"w": 2, "x": 2, "y": 9, "z": 9}, 9, {"wy", "wz", "xy", "xz"}),
        ({"w": 7, "x": 7, "y": 7, "z": 7}, 9, set()),
        ({"w": 2, "x": None, "y": 9, "z": None}, 9, {"wy"}),
        ({"w": None, "x": None, "y": None, "z": None}, 9, set()),
    ],
)
def test_the_pairs_furthest_apart_are_telling(
    scores: Mapping[str, int | None], at_most: int, expected: set[str]
) -> None:
    chosen = telling(pairs_of("w", "x", "y", "z"), scores, at_most)
    assert {pair.a + pair.b for pair in chosen} == expected
    assert chosen == [pair for pair in pairs_of("w", "x", "y", "z") if pair in chosen]


def told(rule: Rule, *pairs: Comparison, settings: LabelSettings = SETTINGS) -> tuple[list[list[Judgement]], int]:
    engine = ScriptedEngine(rule)
    labeler = Labeler(engine, TEMPLATES, settings, seed=1)
    return [
        row.judgements
        for row in label_telling(pairs, constitution(CALM), [Judge(labeler, 1.0, ["calm"])], {}, settings)
    ], engine.count


LONG, LONGER, SHORT, SHORTER = "A long answer to it.", "A longer answer to it.", "Hm.", "H."


def rates_by_length(request: Request) -> Completion | str:
    """A response of more than ten characters is worth 9, a shorter one 2; by brevity it is the other way round."""
    asked = request.messages[-1].content
    if request.choices or not asked.startswith("Rate"):
        return likes_longer(request)
    is_long = len(request.messages[-2].content) > 10
    return f"It has some length. Score: {9 if is_long != (BRIEF.text in asked) else 2}"


def test_only_pairs_that_the_scores_tell_apart_are_compared_and_in_both_orders() -> None:
    pairs = pairs_of(LONG, SHORT, LONGER)
    ((first, second),), count = told(rates_by_length, *pairs)
    assert [first.comparison, second.comparison] == [pairs[0].id, pairs[2].id]
    assert [first.p_a, second.p_a] == [pytest.approx(0.8), pytest.approx(0.2)]
    assert [reading.order for reading in first.readings] == ["a_first", "b_first"]
    assert (first.principle, first.principle_text, first.weight) == ("calm", "Prefer the calm answer.", 1.0)
    # Three responses are rated; then two pairs are reasoned about and chosen from, in both orders.
    assert count == 3 + 2 * 2 * 2


def test_at_most_so_many_pairs_of_a_prompt_are_compared() -> None:
    settings = LabelSettings(principles="telling", telling_pairs=1)
    ((_,),), count = told(rates_by_length, *pairs_of(LONG, SHORT, LONGER, SHORTER), settings=settings)
    assert count == 4 + 1 * 2 * 2


def test_nothing_is_compared_where_the_principle_tells_nothing_apart() -> None:
    judgements, count = told(rates_by_length, *pairs_of(LONG, LONGER), comparison(SHORT, SHORTER, "Other?"))
    assert judgements == [[], []]
    assert count == 4


@pytest.mark.parametrize(
    "reply",
    ["Hm?", "Score:", "I would not say: Score: 9", Completion("It is long. Score: 9", "length")],
)
def test_a_response_without_a_score_is_not_compared(reply: str | Completion) -> None:
    def rule(request: Request) -> Completion | str:
        rated = request.messages[-1].content.startswith("Rate") and request.messages[-2].content == LONG
        return reply if rated else rates_by_length(request)

    ((only,),), _ = told(rule, *pairs_of(LONG, SHORT, LONGER))
    assert only.comparison == comparison(SHORT, LONGER).id


@pytest.mark.parametrize(
    ("reply", "score"), [("Score: 10", 10), ("It is so. Score: 7/10.", 7), ("**Score: 3**", 3), ("Score: 11", None)]
)
def test_the_score_is_the_number_that_the_reply_ends_with(reply: str, score: int | None) -> None:
    read = MARK.read(Completion(reply, "stop"), structured=False)
    assert read == (None if score is None else str(score))
    assert MARK.read(Completion("", "too_long", reason="too long"), structured=False) is None


def test_a_labeler_without_log_probabilities_can_tell_and_vote() -> None:
    def rule(request: Request) -> str:
        assert not request.choices
        answer = rates_by_length(request)
        assert isinstance(answer, str)
        return answer

    settings = LabelSettings(principles="telling", method="votes", votes=3)
    ((only,),), count = told(rule, *pairs_of(LONG, SHORT), settings=settings)
    assert only.p_a == 1
    assert count == 2 + 2 * 3


def test_prompts_are_judged_apart_by_the_principle_of_each() -> None:
    pairs = [comparison(LONG, SHORT, f"Question {number}?") for number in range(6)]
    violated = {pair.prompt.id: ["brief"] if number % 2 else ["calm"] for number, pair in enumerate(pairs)}
    labeler = Labeler(ScriptedEngine(rates_by_length), TEMPLATES, SETTINGS, seed=1)
    prompts = list(
        label_telling(pairs, constitution(CALM, BRIEF), [Judge(labeler, 1.0, ["calm", "brief"])], violated, SETTINGS)
    )
    rows = [(row.comparison, row.principle) for prompt in prompts for row in prompt.judgements]
    assert [prompt.scores for prompt in prompts] == [{LONG: 9, SHORT: 2}, {LONG: 2, SHORT: 9}] * 3
    assert rows == [(pair.id, "brief" if number % 2 else "calm") for number, pair in enumerate(pairs)]


def test_a_comparison_that_stands_alone_is_judged_by_one_principle_whatever_its_scores() -> None:
    assert [row.p_a for row in judged(likes_longer, SETTINGS, [comparison(SHORT, LONG)])] == [pytest.approx(0.2)]
    assert len(judged(likes_longer, SETTINGS, [comparison(LONG, LONGER)], CALM, BRIEF)) == 1
