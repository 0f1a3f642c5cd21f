import random
import time

import numpy as np
import pytest

from constitutional.base.errors import UsageError
from constitutional.base.records import Judgement, Reading
from constitutional.base.seeds import rng_of
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.judging.choosing import principle_for
from constitutional.judging.labelling import probabilities_of
from constitutional.judging.reweighing import JudgementTable, Lots, reweighed, selections


def judgement(  # noqa: PLR0913 - all that a label follows from
    comparison: str,
    principle: str,
    p_a: float | None,
    weight: float = 1.0,
    judge: str = "labeler",
    *,
    conflict: bool = False,
    gives_way_to: tuple[str, ...] = (),
) -> Judgement:
    problem = "cut off" if p_a is None else None
    return Judgement(
        comparison=comparison,
        principle=principle,
        principle_text="",
        labeler="",
        readings=(Reading(order="a_first", rationale="", p_a=p_a, problem=problem),),
        p_a=p_a,
        weight=weight,
        judge=judge,
        conflict=conflict,
        gives_way_to=gives_way_to,
    )


THREE = [
    judgement("x", "brief", 0.9),
    judgement("x", "kind", 0.2),
    judgement("x", "calm", 0.4),
    judgement("y", "brief", 0.6),
    judgement("y", "kind", None),
    judgement("y", "calm", 0.3),
    judgement("z", "kind", 0.8),
]


def test_a_probability_is_the_mean_by_the_new_weights_over_what_can_be_read() -> None:
    table = JudgementTable.of(THREE)
    assert table.comparisons == ("x", "y", "z")
    # x: (1·0.9 + 1·0.2 + 1·0.4) / 3 = 0.5; y: (0.6 + 0.3) / 2 = 0.45; z: 0.8.
    assert reweighed(table, {"brief": 1, "kind": 1, "calm": 1}).tolist() == pytest.approx([0.5, 0.45, 0.8])
    # x: (3·0.9 + 1·0.2) / 4 = 0.725; y: 0.6 by brief alone; z: 0.8.
    assert reweighed(table, {"brief": 3, "kind": 1}).tolist() == pytest.approx([0.725, 0.6, 0.8])
    # Of z nothing is left without kind.
    assert reweighed(table, {"brief": 1, "calm": 2}).tolist() == pytest.approx([1.7 / 3, 0.4, np.nan], nan_ok=True)


def test_the_weights_of_the_run_give_what_labelling_combines() -> None:
    rng = random.Random(0)
    weights = {"brief": 2.0, "kind": 0.5, "calm": 1.0}
    rows = [
        judgement(str(number), name, None if rng.random() < 0.1 else rng.random(), weight)
        for number in range(50)
        for name, weight in weights.items()
    ]
    combined = [np.nan if p is None else p for p in probabilities_of(rows).values()]
    assert reweighed(JudgementTable.of(rows), weights).tolist() == pytest.approx(combined, nan_ok=True)


def test_the_judges_of_a_panel_decide_together() -> None:
    rows = [judgement("x", "brief", 0.9), judgement("x", "brief", 0.2, judge="second")]
    assert reweighed(JudgementTable.of(rows), {"brief": 1}).tolist() == pytest.approx([0.55])
    # The second judge weighs three times as much: (0.9 + 3·0.2) / 4.
    rows = [rows[0], judgement("x", "brief", 0.2, 3.0, "second")]
    assert reweighed(JudgementTable.of(rows, {"second": 3.0}), {"brief": 1}).tolist() == pytest.approx([0.375])
    # kind has one judge, so that it weighs half of brief: (0.9 + 0.2 + 0.5) / 3.
    rows = [judgement("x", "brief", 0.9), judgement("x", "brief", 0.2, judge="second"), judgement("x", "kind", 0.5)]
    assert reweighed(JudgementTable.of(rows), {"brief": 1, "kind": 1}).tolist() == pytest.approx([1.6 / 3])


def test_a_panel_is_weighed_as_labelling_combines_it_conflicts_and_priorities_included() -> None:
    rng = random.Random(1)
    weights, judges = {"brief": 2.0, "kind": 0.5, "calm": 1.0}, {"labeler": 1.0, "second": 2.5, "third": 0.0}
    above = {"brief": (), "kind": ("brief",), "calm": ("kind", "brief")}
    rows = [
        judgement(
            str(number),
            name,
            None if rng.random() < 0.1 else rng.random(),
            weight * of_judge,
            judge,
            conflict=rng.random() < 0.3,
            gives_way_to=above[name],
        )
        for number in range(300)
        for name, weight in weights.items()
        for judge, of_judge in judges.items()
        if (judge, name) != ("second", "kind")
    ]
    combined = [np.nan if p is None else p for p in probabilities_of(rows).values()]
    assert reweighed(JudgementTable.of(rows, judges), weights).tolist() == pytest.approx(combined, nan_ok=True)


@pytest.mark.parametrize(("weights", "word"), [({"breif": 1.0}, "'brief'"), ({"kind": -1.0}, "-1")])
def test_a_weight_that_cannot_be_is_refused(weights: dict[str, float], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        reweighed(JudgementTable.of(THREE), weights)


def test_all_selections_of_eight_principles_are_weighed_in_seconds() -> None:
    rng = random.Random(1)
    weights = {f"p{number}": 1.0 + number for number in range(8)}
    rows = [judgement(str(number), name, rng.random()) for number in range(500) for name in weights]
    table, started_s = JudgementTable.of(rows), time.monotonic()
    by_selection = {tuple(chosen): reweighed(table, chosen) for chosen in selections(weights)}
    assert len(by_selection) == 255
    assert by_selection["p3",].tolist() == pytest.approx([row.p_a for row in rows if row.principle == "p3"])
    assert time.monotonic() - started_s < 30


def test_a_draw_is_the_constitutions_own() -> None:
    weights = {"brief": 3.0, "kind": 1.0, "calm": 0.2}
    principles = tuple(Principle(id=name, text=name, weight=weight) for name, weight in weights.items())
    ours = Constitution(name="Ours", principles=principles)
    names = [str(number) for number in range(300)]
    plain = Lots.of([rng_of(7, "label", name).getrandbits(64) for name in names], tuple(weights))
    assert plain.drawn(weights) == [ours.draw(rng_of(7, "label", name), ()).id for name in names]
    violated = [
        {"kind"} if number % 3 == 0 else {"calm", "brief"} if number % 3 == 1 else set() for number in range(300)
    ]
    lots = Lots.of([rng_of(7, "label", "prompt", name).getrandbits(64) for name in names], tuple(weights), violated)
    for left_out in ((), ("kind",)):
        chosen = ours.select(None, left_out, {})
        expected = [principle_for(name, chosen, first, 7).id for name, first in zip(names, violated, strict=True)]
        assert lots.drawn({principle.id: principle.weight for principle in chosen.principles}) == expected


def test_a_draw_with_priorities_is_the_constitutions_own_whatever_is_left_out() -> None:
    ours = Constitution(
        name="Ours",
        principles=(
            Principle(id="brief", text="brief", weight=3),
            Principle(id="kind", text="kind", overrides=("brief",)),
            Principle(id="calm", text="calm", weight=0.2, overrides=("kind",)),
        ),
    )
    names = [str(number) for number in range(200)]
    violated = [set(subset) for subset in (("brief", "kind"), ("brief", "calm"), ("brief",), ())] * 50
    lots = Lots.of(
        [rng_of(7, "label", "prompt", name).getrandbits(64) for name in names],
        ("brief", "kind", "calm"),
        violated,
        ours.overridden_by,
    )
    for left_out in ((), ("kind",), ("calm",)):
        chosen = ours.select(None, left_out, {})
        expected = [principle_for(name, chosen, first, 7).id for name, first in zip(names, violated, strict=True)]
        assert lots.drawn({principle.id: principle.weight for principle in chosen.principles}) == expected
