"""Conflicts between principles of which one overrides the other, worked by hand."""

import itertools
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from constitutional.base.records import Judgement, Reading
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.base import Request
from constitutional.engines.scripted import ScriptedEngine
from constitutional.judging.labelling import LabelSettings, combine, decisive, label, probabilities_of
from constitutional.judging.priorities import overridden, yielding
from constitutional.judging.reweighing import JudgementTable, reweighed
from constitutional.runs.search import tipping
from constitutional.stages import mix
from tests.judging.scripted_labeler import LONG, SHORT, TEMPLATES, comparison, shown

SAFE = Principle(id="safe", text="Prefer the longer.", overrides=("brief",))
BRIEF = Principle(id="brief", text="Prefer the shorter.")


def row(
    principle: str,
    p_a: float | None,
    gives_way_to: Sequence[str] = (),
    **fields: Any,  # noqa: ANN401 - fields of a judgement
) -> Judgement:
    values: dict[str, Any] = {
        "comparison": "x",
        "principle": principle,
        "principle_text": "",
        "labeler": "m",
        "readings": (Reading(order="a_first", rationale="", p_a=p_a),),
        "p_a": p_a,
        "gives_way_to": tuple(gives_way_to),
    }
    return Judgement(**{**values, **fields})


def test_where_two_principles_disagree_the_label_follows_the_one_that_overrides() -> None:
    rows = [row("safe", 0.6), row("brief", 0.1, ["safe"], weight=5)]
    assert overridden(rows) == {"brief": "safe"}
    assert combine(rows) == pytest.approx(0.6)  # without priorities (0.6 + 5·0.1) / 6 = 0.183


def test_where_they_agree_both_count() -> None:
    rows = [row("safe", 0.6), row("brief", 0.9, ["safe"])]
    assert overridden(rows) == {}
    assert combine(rows) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "above",
    [
        row("safe", 0.5),  # even
        row("safe", 0.52, conflict=True),  # it kept the position, and prefers neither
        row("safe", None),  # unreadable
        row("safe", 0.9, weight=0),  # counts for nothing
    ],
)
def test_a_principle_without_a_preference_overrides_nothing(above: Judgement) -> None:
    assert "brief" in [judgement.principle for judgement in decisive([above, row("brief", 0.1, ["safe"])])]


def test_a_judgement_whose_orders_conflict_is_not_overridden_either() -> None:
    rows = [row("safe", 0.9), row("brief", 0.45, ["safe"], conflict=True)]
    assert combine(rows) == pytest.approx(0.675)


def test_what_is_itself_overridden_overrides_nothing() -> None:
    # law over rule over taste: law prefers a, rule b, taste a. The rule is out, so taste, which law agrees with, is in.
    rows = [row("law", 0.8), row("rule", 0.2, ["law"]), row("taste", 0.6, ["law", "rule"])]
    assert overridden(rows) == {"rule": "law"}
    assert combine(rows) == pytest.approx(0.7)
    # Without law the rule decides against taste.
    assert combine(rows[1:]) == pytest.approx(0.2)


def test_principles_of_one_rank_that_disagree_are_averaged_as_before() -> None:
    rows = [row("safe", 0.9), row("kind", 0.2), row("brief", 0.3, ["safe", "kind"])]
    # safe beats brief; safe and kind stand beside each other.
    assert overridden(rows) == {"brief": "safe"}
    assert combine(rows) == pytest.approx(0.55)


def test_the_judges_of_a_panel_decide_together_what_a_principle_prefers() -> None:
    rows = [
        row("safe", 0.9, weight=2),
        row("safe", 0.3, judge="second"),
        row("brief", 0.2, ["safe"], weight=2),
        row("brief", 0.1, ["safe"], judge="second"),
    ]
    # safe: (2·0.9 + 0.3) / 3 = 0.7 for a, so brief is out for both judges, though the second sees no disagreement.
    assert overridden(rows) == {"brief": "safe"}
    assert combine(rows) == pytest.approx(0.7)


def test_without_priorities_labels_are_the_weighted_mean() -> None:
    rng = random.Random(0)
    rows = [row(name, rng.random(), weight=rng.random()) for name in "abcde"]
    mean = np.average([judgement.p_a or 0 for judgement in rows], weights=[judgement.weight for judgement in rows])
    assert combine(rows) == pytest.approx(float(mean))


def test_leaving_out_the_principle_that_overrides_gives_the_others_their_vote_back() -> None:
    rows = [row("safe", 0.6), row("brief", 0.1, ["safe"]), row("kind", 0.7)]
    without = {change.principle: change.p_a for change in tipping(rows, 0.0)}
    # With all: brief is out, (0.6 + 0.7) / 2. Without safe: (0.1 + 0.7) / 2.
    assert combine(rows) == pytest.approx(0.65)
    assert without["safe"] == pytest.approx(0.4)
    assert without["kind"] == pytest.approx(0.6)


def test_other_weights_of_the_same_judgements_keep_the_priorities() -> None:
    rows = [row("law", 0.8), row("rule", 0.2, ["law"]), row("taste", 0.6, ["law", "rule"])]
    rows += [row("law", 0.45, conflict=True, comparison="y"), row("rule", 0.2, ["law"], comparison="y")]
    table = JudgementTable.of(rows)
    assert reweighed(table, {"law": 1, "rule": 1, "taste": 1}).tolist() == pytest.approx([0.7, 0.325])
    # With law gone, rule overrides taste.
    assert reweighed(table, {"rule": 1, "taste": 9}).tolist() == pytest.approx([0.2, 0.2])


def test_tables_and_labels_agree_on_random_judgements() -> None:
    rng = random.Random(3)
    above = {"a": (), "b": ("a",), "c": ("a", "b"), "d": (), "e": ("d",)}
    weights = {name: rng.random() + 0.1 for name in above}
    rows = [
        row(name, rng.random(), gives_way, weight=weights[name], conflict=rng.random() < 0.2, comparison=str(number))
        for number in range(200)
        for name, gives_way in above.items()
    ]
    assert sum(len(decisive(rows[at : at + 5])) < 5 for at in range(0, 1000, 5)) > 100
    assert reweighed(JudgementTable.of(rows), weights).tolist() == pytest.approx(list(probabilities_of(rows).values()))


def prefers_as_told(request: Request) -> str:
    first, second = shown(request)
    longer = "Prefer the longer." in request.messages[-1].content
    return f"Better: {'A' if (len(first) > len(second)) == longer else 'B'}"


def test_a_labeler_that_is_asked_by_all_principles_labels_by_their_priorities() -> None:
    settings = LabelSettings(method="votes", votes=1, principles="all")
    constitution = Constitution(name="test", principles=(BRIEF, SAFE))
    judgements = list(
        label([comparison(SHORT, LONG)], constitution, ScriptedEngine(prefers_as_told), TEMPLATES, settings)
    )
    assert [(judgement.principle, judgement.p_a, judgement.gives_way_to) for judgement in judgements] == [
        ("brief", 1.0, ("safe",)),
        ("safe", 0.0, ()),
    ]
    assert probabilities_of(judgements) == {judgements[0].comparison: 0.0}


def test_a_preference_rests_on_the_judgements_that_decide_it() -> None:
    pair = comparison()
    rows = [row("safe", 0.9, comparison=pair.id), row("brief", 0.1, ["safe"], comparison=pair.id)]
    (preference,) = mix.mix([pair], rows, [], [], mix.Settings(held_out_share=0), seed=0).preferences
    assert preference.chosen == pair.a
    assert preference.probability == pytest.approx(0.9)
    assert preference.principles == ("safe",)
    assert preference.rests_on == (rows[0].id,)


def test_a_judgement_of_a_constitution_without_priorities_is_written_as_before() -> None:
    assert "gives_way_to" not in row("safe", 0.6).model_dump(mode="json")


def test_of_two_replies_the_rating_of_what_is_overridden_gives_way() -> None:
    ratings = {"safe": [9.0, 3.0], "brief": [2.0, 8.0]}
    # The one pair is decided by `safe`, so that by `brief` both are worth their mean.
    assert yielding(ratings, {"brief": ("safe",)}) == {"safe": [9.0, 3.0], "brief": [5.0, 5.0]}


@pytest.mark.parametrize(
    ("safe", "brief"),
    [
        ([9.0, 3.0], [8.0, 2.0]),  # they agree
        ([9.0, 8.5], [2.0, 8.0]),  # less than a point apart: `safe` prefers neither
        ([9.0, None], [2.0, 8.0]),  # nothing to hold against each other
        ([9.0, 3.0], [None, 8.0]),
        ([9.0, 3.0], [5.0, 5.0]),
    ],
)
def test_ratings_that_nothing_overrides_stay(safe: list[float | None], brief: list[float | None]) -> None:
    assert yielding({"safe": safe, "brief": brief}, {"brief": ("safe",)}) == {"safe": safe, "brief": brief}
    assert yielding({"brief": brief}, {"brief": ("safe",)}) == {"brief": brief}


@pytest.mark.parametrize(
    ("safe", "brief", "made"),
    [
        # Reply 1 must not be behind 0 nor 2: it meets 0 halfway, which is far enough.
        ([5.0, 6.0, 5.0], [10.0, 1.0, 5.0], [5.5, 5.5, 5.0]),
        # Halfway to 0 would be 5.5, and still behind 2: all three meet.
        ([2.0, 9.0, 2.0], [10.0, 1.0, 9.0], [20 / 3, 20 / 3, 20 / 3]),
        # Nothing is said of 0 and 1; 2 may be ahead of neither, and is 9: all three meet.
        ([9.0, 9.0, 3.0], [2.0, 4.0, 9.0], [5.0, 5.0, 5.0]),
        # A reply that is not rated is left out.
        ([5.0, 6.0, 9.0], [10.0, 1.0, None], [5.5, 5.5, None]),
    ],
)
def test_of_several_replies_the_nearest_ratings_count_that_oppose_no_clear_preference(
    safe: list[float | None], brief: list[float | None], made: list[float | None]
) -> None:
    yielded = yielding({"safe": safe, "brief": brief}, {"brief": ("safe",)})
    assert yielded["safe"] == safe
    assert list(yielded["brief"]) == [None if rating is None else pytest.approx(rating) for rating in made]


def test_of_many_replies_none_is_behind_one_that_is_clearly_worse_by_what_overrides() -> None:
    rng = random.Random(0)
    for _ in range(200):
        safe, brief = ([float(rng.randint(1, 10)) for _ in range(6)] for _ in range(2))
        made = [rating or 0.0 for rating in yielding({"safe": safe, "brief": brief}, {"brief": ("safe",)})["brief"]]
        pairs = [(i, j) for i, j in itertools.permutations(range(6), 2) if safe[i] - safe[j] >= 1]
        assert all(made[i] - made[j] > -1e-6 for i, j in pairs)
        assert sum(made) == pytest.approx(sum(brief))


def test_a_principle_with_two_above_it_that_disagree_says_nothing_of_the_pair() -> None:
    ratings = {"safe": [9.0, 3.0], "kind": [3.0, 9.0], "brief": [2.0, 8.0]}
    assert yielding(ratings, {"brief": ("safe", "kind")})["brief"] == [5.0, 5.0]


def test_what_is_overridden_on_a_pair_overrides_nothing_there() -> None:
    ratings = {"top": [9.0, 3.0], "middle": [3.0, 9.0], "low": [8.0, 2.0]}
    above = {"middle": ("top",), "low": ("top", "middle")}
    # `top` beats `middle`, and agrees with `low`, which therefore stays.
    assert yielding(ratings, above) == {"top": [9.0, 3.0], "middle": [6.0, 6.0], "low": [8.0, 2.0]}
