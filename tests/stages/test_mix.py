import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import pytest
from pydantic import ValidationError

from constitutional.base.errors import ConfigurationError
from constitutional.base.records import (
    Comparison,
    Judgement,
    Message,
    Preference,
    Prompt,
    Reading,
    SpotCheck,
    Verdict,
)
from constitutional.data.comparisons import read_comparisons
from constitutional.data.sources import DataFile
from constitutional.stages.mix import (
    Mixed,
    Settings,
    amounts_of,
    check_amounts,
    is_held_out,
    mix,
    run,
    without_evaluation_prompts,
)
from constitutional.stages.summaries import MixSummary
from tests.tiny import OneStage

ALL = Settings(held_out_share=0)
HH_RLHF = Path(__file__).resolve().parents[3] / "shared/data/hh-rlhf/harmless-base-pairs.jsonl.gz"


def asked(text: str, split: Literal["train", "held_out"] = "train", source: str = "") -> Prompt:
    return Prompt(messages=(Message("user", text),), split=split, source=source)


def compared(text: str = "Q", a: str = "A", b: str = "B") -> Comparison:
    return Comparison(prompt=asked(text), a=a, b=b, model="m")


def judged(comparison: Comparison, p_a: float | None, principle: str = "calm", weight: float = 1.0) -> Judgement:
    problem = None if p_a is not None else "no choice"
    return Judgement(
        comparison=comparison.id,
        principle=principle,
        principle_text=f"Be {principle}.",
        labeler="l",
        readings=(Reading(order="a_first", rationale="", p_a=p_a, problem=problem),),
        p_a=p_a,
        weight=weight,
    )


def wavering(comparison: Comparison) -> Judgement:
    """Of a labeler that prefers whichever response is shown first."""
    readings = (
        Reading(order="a_first", rationale="", p_a=0.9),
        Reading(order="b_first", rationale="", p_a=0.1),
    )
    return judged(comparison, 0.5).model_copy(update={"readings": readings, "conflict": True})


def said(comparison: Comparison, choice: str, rater: str = "ann", strength: int = 1) -> Verdict:
    return Verdict.model_validate({"comparison": comparison.id, "rater": rater, "choice": choice, "strength": strength})


def human(text: str, probability: float = 1.0, chosen: str = "A", rejected: str = "B") -> Preference:
    a, b = sorted((chosen, rejected))
    comparison = Comparison(prompt=asked(text), a=a, b=b, model="").id
    return Preference(
        prompt=asked(text, source="file"),
        chosen=chosen,
        rejected=rejected,
        probability=probability,
        source="human",
        rests_on=(f"file:{text}",),
        comparison=comparison,
    )


def mixed(
    judgements: Iterable[tuple[Comparison, float | None]] = (),
    verdicts: Iterable[Verdict] = (),
    people: Iterable[Preference] = (),
    settings: Settings = ALL,
) -> Mixed:
    pairs = list(judgements)
    comparisons = list({comparison.id: comparison for comparison, _ in pairs}.values())
    return mix(comparisons, [judged(*pair) for pair in pairs], list(verdicts), list(people), settings, 0)


def test_verdicts_by_different_principles_stay_several_and_weigh_as_one() -> None:
    helpful, safe, again = (
        human("1").model_copy(update={"principles": (name,)}) for name in ("helpful", "safe", "safe")
    )
    unsafe = human("1", chosen="B", rejected="A").model_copy(update={"principles": ("safe",)})
    found = mixed(people=[helpful, unsafe])
    assert [(row.chosen, row.principles, row.weight) for row in found.preferences] == [
        ("A", ("helpful",), 0.5),
        ("B", ("safe",), 0.5),
    ]
    assert found.preferences[0].comparison == found.preferences[1].comparison
    assert found.counts["human comparisons judged by several principles"] == 1
    halves = [row.model_copy(update={"weight": 0.5}) for row in (helpful, unsafe)]  # as a file says that was exported
    assert [row.weight for row in mixed(people=halves).preferences] == [0.5, 0.5]
    third = [row.model_copy(update={"weight": 0.25}) for row in (helpful, unsafe)]
    assert [row.weight for row in mixed(people=third).preferences] == [0.25, 0.25]
    agreed = mixed(people=[helpful, safe, again])
    assert [(row.principles, row.weight, len(row.rests_on)) for row in agreed.preferences] == [
        (("helpful",), 0.5, 1),
        (("safe",), 0.5, 2),
    ]


def test_a_judgement_becomes_a_soft_preference_for_the_likelier_response() -> None:
    first, second = compared("1"), compared("2")
    found = mixed([(first, 0.8), (second, 0.3)]).preferences
    assert [(each.chosen, each.rejected, each.probability) for each in found] == [("A", "B", 0.8), ("B", "A", 0.7)]
    assert [(each.source, each.comparison) for each in found] == [("ai", first.id), ("ai", second.id)]


def test_principles_are_averaged_by_weight_and_the_unreadable_left_out() -> None:
    one = compared()
    judgements = [
        judged(one, 0.9, "calm", weight=3),
        judged(one, 0.1, "brief"),
        judged(one, None, "honest", weight=5),
    ]
    [preference], counts, _ = mix([one], judgements, [], [], ALL, 0)
    assert preference.probability == pytest.approx(0.7)  # (3 · 0.9 + 0.1) / 4
    assert preference.principles == ("calm", "brief")
    assert preference.rests_on == (judgements[0].id, judgements[1].id)
    assert counts["judgements unreadable"] == 1


def test_what_is_undecided_unreadable_or_not_judged_is_counted_and_left_out() -> None:
    even, near, silent, alone, clear = (compared(text) for text in "12345")
    settings = Settings(margin=0.1, held_out_share=0)
    judgements = [judged(even, 0.5), judged(near, 0.59), judged(silent, None), judged(clear, 0.61)]
    found = mix([even, near, silent, alone, clear], judgements, [], [], settings, 0)
    assert [preference.comparison for preference in found.preferences] == [clear.id]
    assert found.counts["comparisons undecided, near a half"] == 2
    assert "comparisons undecided, position conflict" not in found.counts
    assert found.counts["comparisons decided"] == 1
    assert found.counts["comparisons unreadable"] == 1
    assert found.counts["comparisons not judged"] == 1


def test_what_is_just_the_margin_from_a_half_is_decided() -> None:
    assert 0.6 - 0.5 == 0.09999999999999998
    found = mixed([(compared("1"), 0.6), (compared("2"), 0.4)], settings=Settings(margin=0.1, held_out_share=0))
    assert len(found.preferences) == 2


def test_a_mean_that_is_even_but_for_rounding_is_undecided() -> None:
    one, other = compared("1"), compared("2")
    assert (0.1 * 0.69 + 0.1 * 0.31) / (0.1 + 0.1) == 0.49999999999999994
    judgements = [judged(one, 0.69, "calm", 0.1), judged(one, 0.31, "brief", 0.1), judged(other, 0.9)]
    assert mix([one, other], judgements, [], [], ALL, 0).counts["comparisons undecided, near a half"] == 1


def test_there_is_never_a_preference_between_equal_texts() -> None:
    equal, other = compared("1", "same", "same "), compared("2")
    found = mixed([(equal, 0.9), (other, 0.9)], people=[human("3", chosen="x", rejected="x")])
    assert [preference.comparison for preference in found.preferences] == [other.id]
    assert found.counts["comparisons of equal texts"] == 1
    assert found.counts["human comparisons undecided"] == 1


def test_a_persons_verdict_overrides_the_judgement_with_the_probability_of_its_strength() -> None:
    one, other = compared("1"), compared("2")
    verdict = said(one, "b", strength=3)
    found = mixed([(one, 0.99), (other, 0.9)], [verdict])
    by_source = {preference.source: preference for preference in found.preferences}
    assert by_source["human"].chosen == "B"
    assert by_source["human"].probability == pytest.approx(0.9)
    assert by_source["human"].rests_on == (verdict.id,)
    assert by_source["ai"].comparison == other.id
    assert found.counts["AI judgements overridden by a person"] == 1


def test_raters_who_disagree_are_averaged() -> None:
    one = compared()
    raters = [said(one, "a", "ann", 4), said(one, "b", "bob", 1), said(one, "tie", "cem"), said(one, "skip", "dee")]
    [preference] = mixed([(one, 0.1)], raters).preferences
    assert preference.chosen == "A"
    assert preference.probability == pytest.approx((0.97 + 0.35 + 0.5) / 3)
    assert preference.rests_on == tuple(rater.id for rater in raters[:3])


def by(principle: str, verdict: Verdict) -> Verdict:
    return verdict.model_copy(update={"principle": principle})


def test_a_rater_s_verdict_in_all_counts_and_not_those_by_principles_beside_it() -> None:
    one, other = compared("1"), compared("2")
    ada, ben = said(one, "a", "ada"), by("calm", said(one, "a", "ben", 4))
    rows = [ada, by("brief", said(one, "b", "ada")), by("kind", said(one, "b", "ada")), ben]
    rows += [by("calm", said(other, "b", "ada", 2)), by("brief", said(other, "a", "ada")), said(other, "b", "ben", 3)]
    first, second = mixed([(one, 0.5), (other, 0.5)], rows).preferences
    assert (first.chosen, first.principles, first.rests_on) == ("A", ("calm",), (ada.id, ben.id))
    assert first.probability == pytest.approx((0.65 + 0.97) / 2)
    # Of ada, who says nothing in all, the mean of 0.2 and 0.65; of ben 0.1.
    assert second.chosen == "B"
    assert second.probability == pytest.approx(1 - (0.425 + 0.1) / 2)
    assert second.rests_on == tuple(row.id for row in rows[4:])


def test_who_says_both_bad_in_all_prefers_neither_whatever_the_principles() -> None:
    one = compared("1")
    found = mixed([(one, 0.9)], [said(one, "both_bad"), by("kind", said(one, "b"))])
    assert (found.preferences, found.counts["verdicts without a preference: both_bad"]) == ([], 1)


def test_dawid_and_skene_decide_a_conflict_for_the_rater_who_errs_less() -> None:
    rows = [compared(f"{number}") for number in range(121)]
    votes = [said(row, "a" if number % 2 else "b", rater) for number, row in enumerate(rows[:120]) for rater in "xy"]
    # z contradicts x and y on every third comparison; on the last x and z contradict each other, and y says nothing.
    votes += [said(row, "ab"[(number % 2 == 1) == (number % 3 == 0)], "z") for number, row in enumerate(rows[:120])]
    votes += [said(rows[120], "b", "x", 1), said(rows[120], "a", "z", 4)]
    alone = compared("alone")
    votes.append(said(alone, "a", "z", 2))
    pairs = [(row, 0.9) for row in [*rows, alone]]
    made = mixed(pairs, votes, settings=ALL.model_copy(update={"aggregate": "dawid_skene"}))
    by_id = {row.comparison: row for row in made.preferences}
    assert len(by_id) == 122
    assert by_id[rows[120].id].chosen == "B"
    # By hand: x never errs, so its row is 61/62 to 1/62; z errs in a third. The odds of b are 61 · 21/41.
    assert by_id[rows[120].id].probability == pytest.approx(61 * 21 / (61 * 21 + 41), abs=0.01)
    assert by_id[alone.id].probability == 0.8  # nobody else voted: by its strength
    assert made.counts["comparisons decided by Dawid and Skene's estimate"] == 121
    by_majority = {row.comparison: row for row in mixed(pairs, votes).preferences}
    assert by_majority[rows[120].id].chosen == "A"  # z says so more strongly


def test_with_few_votes_the_majority_stands_and_the_stage_warns(tmp_path: Path) -> None:
    rows = [compared(f"{number}") for number in range(40)]
    votes = [said(row, choice, rater) for row in rows for rater, choice in (("x", "a"), ("y", "a"), ("z", "b"))]
    file = tmp_path / "votes.jsonl"
    file.write_text("".join(f"{row.model_dump_json()}\n" for row in votes))
    settings = Settings(held_out_share=0, verdicts=file)
    contexts = [
        mixed_by_stage([], rows, settings.model_copy(update={"aggregate": name}))
        for name in ("majority", "dawid_skene")
    ]
    by_majority, asked_for_more = (context.rows["preferences"] for context in contexts)
    assert by_majority == asked_for_more
    assert by_majority[0].probability == pytest.approx((0.65 + 0.65 + 0.35) / 3)
    assert contexts[0].warnings == []
    assert len(contexts[1].warnings) == 1
    assert "100 votes" in contexts[1].warnings[0]


def test_votes_on_gold_items_are_never_trained_on() -> None:
    one, golden = compared("1"), compared("gold")
    tests_the_rater = said(golden, "b").model_copy(update={"gold": "b"})
    made = mixed([(one, 0.9), (golden, 0.9)], [said(one, "b"), tests_the_rater])  # even where the ids were the same
    assert [(row.comparison, row.source) for row in made.preferences] == [(golden.id, "ai"), (one.id, "human")]
    assert made.counts["votes on gold items"] == 1


def test_who_skips_leaves_the_judgement_as_it_is_and_is_counted() -> None:
    one, other = compared("1"), compared("2")
    verdicts = [said(one, "skip", "ann"), said(one, "skip", "bob"), said(other, "skip", "ann"), said(other, "b", "bob")]
    found = mixed([(one, 0.9), (other, 0.9)], verdicts)
    assert [(preference.comparison, preference.source, preference.chosen) for preference in found.preferences] == [
        (one.id, "ai", "A"),
        (other.id, "human", "B"),
    ]
    assert found.counts["verdicts that skip"] == 3
    assert found.counts["AI judgements overridden by a person"] == 1


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        (["tie"], "tie"),
        (["both_bad"], "both_bad"),
        (["tie", "skip"], "tie"),
        (["a", "b"], "conflict"),
        (["tie", "both_bad"], "conflict"),
    ],
)
def test_a_verdict_without_a_direction_drops_the_comparison_and_is_counted(choices: list[str], reason: str) -> None:
    one, other = compared("1"), compared("2")
    verdicts = [said(one, choice, f"rater {number}") for number, choice in enumerate(choices)]
    found = mixed([(one, 0.9), (other, 0.9)], verdicts)
    assert [preference.comparison for preference in found.preferences] == [other.id]
    assert found.counts[f"verdicts without a preference: {reason}"] == 1


@pytest.mark.parametrize(
    ("choices", "kept"),
    # (choice, strength); the probabilities of the strengths are 0.65, 0.8, 0.9 and 0.97.
    [
        ([("tie", 1)], "tie"),
        ([("tie", 1), ("both_bad", 1)], "conflict"),
        ([("a", 3), ("b", 3)], "conflict"),  # (0.9 + 0.1) / 2 = 0.5
        ([("a", 2), ("b", 2), ("tie", 1)], "conflict"),  # (0.8 + 0.2 + 0.5) / 3 = 0.5
        ([("a", 3), ("b", 2)], 0.55),  # (0.9 + 0.2) / 2: uneven, so a preference for a whatever `ties` says
        ([("b", 1), ("tie", 1)], 0.425),  # (0.35 + 0.5) / 2
        ([("both_bad", 1), ("both_bad", 1)], None),
    ],
)
def test_comparisons_of_the_run_that_people_leave_even_are_a_half_where_ties_are_kept(
    choices: list[tuple[str, int]], kept: str | float | None
) -> None:
    one, other = compared("1"), compared("2")
    verdicts = [said(one, choice, f"rater {number}", strength) for number, (choice, strength) in enumerate(choices)]
    by_default, keeping = (
        mixed([(one, 0.9), (other, 0.9)], verdicts, settings=Settings(held_out_share=0, ties=ties))
        for ties in ("leave_out", "keep")
    )
    own = [row for row in keeping.preferences if row.comparison == one.id]
    if isinstance(kept, float):
        assert keeping == by_default
        (uneven,) = own
        assert uneven.chosen == ("A" if kept > 0.5 else "B")
        assert uneven.probability == pytest.approx(max(kept, 1 - kept))
        return
    assert [row.comparison for row in by_default.preferences] == [other.id]
    why = kept or "both_bad"
    assert by_default.counts[f"verdicts without a preference: {why}"] == 1
    if kept is None:
        assert own == []
        assert keeping.counts["verdicts without a preference: both_bad"] == 1
        return
    (even,) = own
    assert (even.probability, even.source, {even.chosen, even.rejected}) == (0.5, "human", {"A", "B"})
    assert even.rests_on == tuple(verdict.id for verdict in verdicts if verdict.choice != "both_bad")
    assert keeping.counts[f"verdicts that come out even, kept: {why}"] == 1
    assert not [name for name in keeping.counts if name.startswith("verdicts without a preference")]
    assert keeping.counts["comparisons decided"] == by_default.counts["comparisons decided"] + 1 == 2


def test_a_tie_by_dawid_and_skene_s_estimate_is_a_half_where_ties_are_kept() -> None:
    rows = [compared(f"{number}") for number in range(120)]
    choices = itertools.cycle(("a", "b", "tie"))
    votes = [said(row, choice, rater) for row, choice in zip(rows, choices, strict=False) for rater in "xyz"]
    settings = Settings(held_out_share=0, aggregate="dawid_skene", ties="keep")
    made = mixed([(row, 0.9) for row in rows], votes, settings=settings)
    assert len(made.preferences) == made.counts["comparisons decided by Dawid and Skene's estimate"] == 120
    assert [row.comparison for row in made.preferences if row.probability == 0.5] == [row.id for row in rows[2::3]]
    assert made.counts["verdicts that come out even, kept: tie"] == 40


def test_what_several_people_said_of_one_comparison_elsewhere_is_averaged() -> None:
    rows = [human("Q", 1.0), human("Q", 0.8), human("Q", 0.6, chosen="B", rejected="A")]
    [preference], counts, _ = mixed(people=rows)
    assert preference.chosen == "A"
    assert preference.probability == pytest.approx((1 + 0.8 + 0.4) / 3)
    assert preference.comparison == rows[0].comparison
    assert counts["human comparisons rated more than once"] == 1


def test_opinions_on_one_pair_in_several_files_are_brought_together(tmp_path: Path) -> None:
    pair, swapped = {"prompt": "Q", "chosen": "x", "rejected": "y"}, {"prompt": " Q ", "chosen": "y", "rejected": "x"}
    rows = {"a": pair | {"probability": 0.9}, "b": swapped | {"probability": 0.7}, "c": swapped, "d": pair}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    a, b, c, d = (DataFile(path=tmp_path / f"{name}.jsonl") for name in "abcd")
    read = read_comparisons([a, b]).preferences
    [both] = mixed(people=read).preferences
    assert both.chosen == "x"
    assert both.probability == pytest.approx((0.9 + 0.3) / 2)
    assert (both.comparison, both.rests_on) == (read[0].comparison, ("a.jsonl:1", "b.jsonl:1"))
    by_model = d.model_copy(update={"source": "ai"})
    [people] = mixed(people=read_comparisons([by_model, c]).preferences).preferences
    assert (people.chosen, people.source) == ("y", "human")  # a model's label gives way
    assert mixed(people=read_comparisons([c, d]).preferences).counts["human comparisons undecided"] == 1


def test_people_who_contradict_each_other_evenly_leave_no_preference() -> None:
    rows = [human("Q", 0.9), human("Q", 0.9, chosen="B", rejected="A"), human("R")]
    found = mixed(people=rows)
    assert [preference.comparison for preference in found.preferences] == [rows[2].comparison]
    assert found.counts["human comparisons undecided"] == 1


@pytest.mark.parametrize(
    ("ai", "people", "share", "expected"),
    [
        (100, 40, None, (100, 40)),
        (100, 1000, 0.0, (100, 0)),
        (100, 1000, 0.5, (50, 50)),
        (100, 1000, 1.0, (0, 100)),
        (100, 40, 0.0, (40, 0)),
        (100, 40, 0.25, (30, 10)),
        (100, 40, 1.0, (0, 40)),
        (100, 0, 0.0, (100, 0)),  # nobody's file to compare with
        (0, 40, 1.0, (0, 40)),
        (1, 1, 0.7, (0, 1)),  # 0.7 of one preference is nearest to one
        (26, 1, 0.5, (1, 1)),  # one preference has no half: as many as the share allows
        (26, 2, 0.2, (8, 2)),  # 0.2 of two is none
    ],
)
def test_without_a_total_every_share_gets_that_of_the_scarcer_source(
    ai: int, people: int, share: float | None, expected: tuple[int, int]
) -> None:
    assert amounts_of(ai, people, Settings(human_ratio=share)) == expected


@pytest.mark.parametrize(
    ("ai", "people", "share", "expected"),
    [
        (100, 40, 0.0, (100, 0)),
        (100, 40, 0.5, (40, 40)),
        (100, 40, 1.0, (0, 40)),
        (100, 40, 0.25, (100, 33)),  # 100 / 0.75 = 133.3 in all, of which 33.25 are people's
        (3, 40, 0.9, (3, 27)),  # 3 / 0.1 = 30
        (1, 1, 0.7, (0, 1)),  # 1 / 0.7 = 1.4, and 0.7 of one preference is nearest to one
        (1, 9, 0.0001, (1, 0)),
    ],
)
def test_a_total_may_be_the_largest_that_the_share_allows(
    ai: int, people: int, share: float, expected: tuple[int, int]
) -> None:
    largest = sum(expected)
    assert amounts_of(ai, people, Settings(human_ratio=share, total=largest)) == expected
    with pytest.raises(ConfigurationError, match=f"allow {largest};"):
        amounts_of(ai, people, Settings(human_ratio=share, total=largest + 1))


def test_a_total_stays_the_same_whatever_the_share() -> None:
    for share in (0.0, 0.1, 0.25, 0.5, 0.77, 1.0):
        amounts = amounts_of(100, 100, Settings(human_ratio=share, total=61))
        assert sum(amounts) == 61
        assert amounts[1] == int(61 * share + 0.5)


@pytest.mark.parametrize(
    ("people", "share", "expected"),
    [(400, 0.0, (100, 0)), (400, 0.5, (100, 100)), (400, 0.75, (100, 300)), (40, 0.5, (100, 40))],
)
def test_additive_mixing_keeps_all_of_the_ais(people: int, share: float, expected: tuple[int, int]) -> None:
    assert amounts_of(100, people, Settings(mode="additive", human_ratio=share)) == expected


def test_a_total_that_there_is_too_little_for_is_refused_with_the_largest() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"mix\.total=81.*100 preferences of the AI's and 40 of people's that are not held out allow 80",
    ):
        amounts_of(100, 40, Settings(human_ratio=0.5, total=81))


def test_a_share_of_people_without_any_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"mix\.human=FILE"):
        mixed([(compared(), 0.9)], settings=Settings(human_ratio=0.5))


def test_where_nothing_is_decided_there_is_no_preference_and_the_counts_say_why() -> None:
    found = mixed([(compared("1"), 0.5), (compared("2"), 0.5)])
    assert found.preferences == []
    assert found.counts["comparisons undecided, near a half"] == 2
    assert found.counts["preferences in train"] == 0


def test_an_undecided_comparison_is_a_position_conflict_where_the_two_orders_disagree() -> None:
    swayed, even, decided = compared("1"), compared("2"), compared("3")
    judgements = [wavering(swayed), judged(swayed, 0.5, "brief"), judged(even, 0.5)]
    judgements += [wavering(decided), judged(decided, 0.9, "brief")]
    found = mix([swayed, even, decided], judgements, [], [], ALL, 0)
    assert found.counts["comparisons undecided, position conflict"] == 1
    assert found.counts["comparisons undecided, near a half"] == 1
    (preference,) = found.preferences
    assert preference.probability == pytest.approx(0.7)  # (0.5 + 0.9) / 2: the conflict counts with its probability


@pytest.mark.parametrize(
    "wrong",
    [
        {"strengths": (0.5, 0.6, 0.7, 0.8)},
        {"strengths": (0.6, 0.6, 0.7, 0.8)},
        {"strengths": (0.6, 0.7, 0.8, 1.1)},
        {"total": 10},
        {"total": 10, "human_ratio": 0.5, "mode": "additive"},
        {"mode": "additive", "human_ratio": 1},
        {"human_ratio": 1.5},
        {"margin": 0.5},
    ],
)
def test_settings_that_contradict_themselves_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(wrong)


def test_the_certain_strength_may_be_one() -> None:
    assert Settings(strengths=(0.6, 0.7, 0.8, 1.0)).strengths[3] == 1


MANY = [(compared(f"ai {number}"), 0.9) for number in range(400)]
PEOPLE = [human(f"people {number}") for number in range(400)]


def trained_on(found: Mixed) -> list[Preference]:
    return [preference for preference in found.preferences if preference.split == "train"]


def held_out(found: Mixed) -> list[tuple[str, str]]:
    held = [preference for preference in found.preferences if preference.split == "held_out"]
    return [(each.source, each.prompt.messages[0].content) for each in held]


def test_none_half_and_all_of_the_preferences_are_peoples() -> None:
    for share, count in ((0.0, 0), (0.5, 100), (1.0, 200)):
        found = trained_on(mixed(MANY, people=PEOPLE, settings=Settings(human_ratio=share, total=200)))
        assert sum(each.source == "human" for each in found) == count
        assert len(found) == 200


def test_what_the_total_has_no_room_for_is_counted() -> None:
    counts = mixed(MANY[:100], people=PEOPLE, settings=Settings(human_ratio=0.5, held_out_share=0)).counts
    assert (counts["AI preferences used"], counts["human preferences used"]) == (50, 50)
    assert counts["AI preferences beyond the share or the total"] == 50
    assert counts["human preferences beyond the share or the total"] == 350


@pytest.mark.parametrize(
    ("settings", "ai", "people"),
    [
        ({"human_ratio": 0}, 4, 0),  # as many as the scarcer source has to train on
        ({"human_ratio": 0.5}, 2, 2),
        ({"human_ratio": 1}, 0, 4),
        ({"human_ratio": 0, "total": 6}, 6, 0),
        ({"human_ratio": 0.25, "mode": "additive"}, 6, 2),
        ({}, 6, 4),
    ],
)
def test_every_share_is_measured_on_the_same_held_out_preferences(
    settings: dict[str, object], ai: int, people: int
) -> None:
    # By seed 0, half of the prompts held out are 2, 4, 6 and 9 of these ten: six are left of the AI's, and of people's
    # first six, four.
    judgements, humans = [(compared(text), 0.9) for text in "012a456789"], [human(text) for text in "012a45"]
    found = mixed(judgements, people=humans, settings=Settings.model_validate({"held_out_share": 0.5, **settings}))
    assert held_out(found) == [*(("ai", text) for text in "2469"), *(("human", text) for text in "24")]
    assert tuple(sum(each.source == source for each in trained_on(found)) for source in ("ai", "human")) == (
        ai,
        people,
    )
    assert {name: count for name, count in found.counts.items() if "preferences" in name} == {
        "preferences on evaluation prompts": 0,
        "AI preferences available": 10,
        "AI preferences used": ai,
        "AI preferences beyond the share or the total": 6 - ai,
        "AI preferences held out": 4,
        "held-out AI preferences beyond 500": 0,
        "human preferences available": 6,
        "human preferences used": people,
        "human preferences beyond the share or the total": 4 - people,
        "human preferences held out": 2,
        "held-out human preferences beyond 500": 0,
        "preferences in train": ai + people,
        "preferences in held_out": 6,
    }


def test_of_a_large_file_at_most_500_are_held_out_and_the_same_ones_whatever_the_share() -> None:
    people = [human(f"people {number}") for number in range(1000)]
    shares = [
        mixed(MANY, people=people, settings=Settings(human_ratio=share, held_out_share=0.6)) for share in (0, 0.5, 1)
    ]
    again = mixed(MANY, people=people[::-1], settings=Settings(held_out_share=0.6))
    for found in shares:
        assert held_out(found) == held_out(shares[0])
        assert set(held_out(found)) == set(held_out(again))  # the order of the file does not matter
        kept = [source for source, _ in held_out(found)]
        assert kept.count("human") == found.counts["human preferences held out"] == 500
        assert kept.count("ai") == found.counts["AI preferences held out"]
        assert found.counts["held-out AI preferences beyond 500"] == 0
        # Held out are 600 of 1,000, within three standard deviations: 3 · √(1000 · 0.6 · 0.4) = 46.5.
        assert 53 <= (beyond := found.counts["held-out human preferences beyond 500"]) <= 147
        unused = found.counts["human preferences beyond the share or the total"]
        assert found.counts["human preferences used"] + unused + 500 + beyond == 1000
    # None of those that are too many to be measured on is trained on: their prompts are held out.
    assert again.counts["human preferences used"] == 500 - again.counts["held-out human preferences beyond 500"]


def test_where_all_are_held_out_there_is_nothing_to_train_on() -> None:
    settings = Settings(held_out_share=0.5)
    found = mixed([(compared(text), 0.9) for text in "24"], settings=settings)
    assert trained_on(found) == []
    assert found.counts["AI preferences held out"] == 2
    of_people = settings.model_copy(update={"human_ratio": 0.5})
    with pytest.raises(ConfigurationError, match=r"none to train on \(those held out do not count\)"):
        mixed([(compared("0"), 0.9)], people=[human("2")], settings=of_people)


def test_a_larger_share_trains_on_all_of_a_smaller_ones() -> None:
    before: set[str] = set()
    for share in (0.25, 0.5, 0.75):
        found = trained_on(mixed(MANY, people=PEOPLE, settings=Settings(human_ratio=share, total=200)))
        now = {each.comparison for each in found if each.source == "human"}
        assert before < now
        before = now


def test_a_prompt_is_on_one_side_of_the_split_whatever_its_source() -> None:
    twice = [(compared(text, a, "B"), 0.9) for text in map(str, range(300)) for a in ("A", "a different one")]
    people = [human(f" {number} ") for number in range(300)]  # the same words as the AI's prompts
    found = mixed(twice, people=people, settings=Settings(held_out_share=0.25))
    sides: dict[str, set[str]] = {}
    for preference in found.preferences:
        sides.setdefault(preference.prompt.messages[0].content.strip(), set()).add(preference.split)
    assert all(len(side) == 1 for side in sides.values())
    held_out = sum(side == {"held_out"} for side in sides.values())
    assert 53 <= held_out <= 97  # 75 of 300, within three standard deviations: 3 · √(300 · 0.25 · 0.75) = 22.5
    assert found.counts["preferences in held_out"] == 3 * held_out
    assert found.counts["preferences in train"] == 3 * (300 - held_out)


def test_an_evaluation_prompt_is_never_trained_on() -> None:
    held = Comparison(prompt=asked("secret", "held_out"), a="A", b="B", model="m")
    found = mixed([(held, 0.9), (compared(), 0.9)])
    assert [preference.prompt.messages[0].content for preference in found.preferences] == ["Q"]
    assert found.counts["preferences on evaluation prompts"] == 1


def test_the_seed_decides_who_is_taken_and_the_same_seed_takes_the_same() -> None:
    comparisons, judgements = [pair[0] for pair in MANY], [judged(*pair) for pair in MANY]
    settings = Settings(human_ratio=0.0, total=50)

    def taken(seed: int) -> list[str]:
        return [
            preference.comparison for preference in mix(comparisons, judgements, [], [], settings, seed).preferences
        ]

    assert taken(1) == taken(1) != taken(2)


def files(folder: Path, comparison: Comparison) -> Iterator[Path]:
    rows = [{"prompt": text, "chosen": "A", "rejected": "B"} for text in ("seen", "secret")]
    rows.append({"prompt": "seen", "chosen": "C", "rejected": "C"})
    verdict = {"comparison": comparison.id, "rater": "ann", "choice": "b", "strength": 2}
    for name, lines in (("human.jsonl", rows), ("verdicts.jsonl", [verdict])):
        path = folder / name
        path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        yield path


def test_the_stage_reads_both_files_and_keeps_evaluation_prompts_out(tmp_path: Path) -> None:
    one, other = compared("1"), compared("2")
    context = OneStage(
        tmp_path,
        rows={
            "comparisons": [one, other],
            "judgements": [judged(one, 0.9), judged(other, 0.9)],
            "prompts": [asked("1"), asked("2"), asked("secret", "held_out")],
        },
    )
    path, verdicts = files(tmp_path, one)
    run(Settings(human=(DataFile(path=path),), verdicts=verdicts, held_out_share=0), context)
    written: list[Preference] = context.rows["preferences"]
    assert [(each.prompt.messages[0].content, each.chosen, each.source) for each in written] == [
        ("2", "A", "ai"),
        ("1", "B", "human"),
        ("seen", "A", "human"),
    ]
    summary = context.summarised(MixSummary)
    assert (summary.comparisons, summary.decided, summary.train, summary.held_out) == (2, 2, 3, 0)
    assert (summary.conflicts, summary.near_a_half) == (0, 0)
    assert summary.counts["human rows on evaluation prompts"] == 1
    assert summary.counts["human rows with equal texts"] == 1


def warned_of(folder: Path, rows: list[dict[str, object]], **settings: object) -> tuple[list[str], MixSummary]:
    """What the stage warns of with one file of pairs, on a run with enough comparisons of its own."""
    comparisons = [compared(f"{number}") for number in range(40)]
    judgements = [judged(comparison, 0.9) for comparison in comparisons]
    prompts = [asked(f"{number}") for number in range(40)]
    context = OneStage(folder, rows={"comparisons": comparisons, "judgements": judgements, "prompts": prompts})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    run(Settings.model_validate({"human": {"path": path, **settings}, "held_out_share": 0}), context)
    return context.warnings, context.summarised(MixSummary)


RATED = {"prompt": "Q?", "output_1": "Yes.", "output_2": "No.", "preference": 2, "annotator": "gpt4"}


def test_what_is_odd_in_a_file_of_pairs_is_warned_of_in_the_run_as_well(tmp_path: Path) -> None:
    (warning,), summary = warned_of(tmp_path, [{"prompt": "Q?", "chosen": "Yes.", "rejected": "No.", "weight": 7}])
    assert warning.startswith("pairs.jsonl: ")
    assert "'weight' is 7" in warning
    assert warning.endswith(": 1")
    assert summary.counts["human preferences used"] == 1


def test_a_file_that_a_model_labelled_is_warned_of_unless_its_source_is_said(tmp_path: Path) -> None:
    (warning,), summary = warned_of(tmp_path, [RATED])
    assert "pairs.jsonl is labelled by gpt4, and counts as people's preferences" in warning
    assert "source: ai}]" in warning
    assert (summary.labelled, summary.counts["human preferences used"]) == ({"pairs.jsonl": "is labelled by gpt4"}, 1)
    warnings, summary = warned_of(tmp_path, [RATED], source="ai")
    assert (warnings, summary.labelled) == ([], {"pairs.jsonl": "is labelled by gpt4"})
    assert (summary.counts["human preferences used"], summary.counts["AI preferences used"]) == (0, 41)


def test_a_file_of_which_no_pair_is_used_is_warned_of_with_why(tmp_path: Path) -> None:
    (warning,), _ = warned_of(tmp_path, [{**RATED, "preference": 1.5, "annotator": "ann"}] * 2)
    assert warning.startswith("mix.human: no pair of pairs.jsonl is used (human ties: 2, ")


def test_what_a_mixture_leaves_out_is_counted(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{name}?", "chosen": "A", "rejected": "B"} for name in "abc"]
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(pairs[0] | {"prompt": "d?"}))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    context = OneStage(tmp_path, rows={"comparisons": [], "judgements": [], "prompts": []})
    run(Settings(human=(DataFile(path=path, weight=1), DataFile(path=other, weight=1)), held_out_share=0), context)
    counts = context.summarised(MixSummary).counts
    assert (counts["human rows beyond the weights of a mixture"], counts["human preferences available"]) == (2, 2)


def mixed_by_stage(judgements: list[Judgement], comparisons: list[Comparison], settings: Settings) -> OneStage:
    context = OneStage(Path(), rows={"comparisons": comparisons, "judgements": judgements})
    run(settings, context)
    return context


def test_where_few_comparisons_are_decided_the_stage_warns_and_counts_why() -> None:
    comparisons = [compared(f"{number}") for number in range(120)]
    judgements = [judged(comparison, 0.9) for comparison in comparisons[:9]]
    judgements += [wavering(comparison) for comparison in comparisons[9:113]]  # 104
    judgements += [judged(comparison, 0.55) for comparison in comparisons[113:]]  # 7
    context = mixed_by_stage(judgements, comparisons, Settings(margin=0.1, held_out_share=0))
    summary = context.summarised(MixSummary)
    assert (summary.comparisons, summary.decided, summary.conflicts, summary.near_a_half) == (120, 9, 104, 7)
    assert (summary.train, summary.held_out) == (9, 0)
    (warning,) = context.warnings
    assert "9 of 120 comparisons" in warning
    assert "104 position conflicts" in warning
    assert "7 near a half" in warning
    assert "9 preferences are trained on" in warning
    assert all(setting in warning for setting in ("sample_pairs.samples", "label.principles=all", "mix.margin"))


def test_comparisons_that_nobody_judged_are_no_sign_of_an_undecided_labeler() -> None:
    comparisons = [compared(f"{number}") for number in range(200)]
    judgements = [judged(comparison, 0.9) for comparison in comparisons[:40]]
    context = mixed_by_stage(judgements, comparisons, Settings(held_out_share=0))
    summary = context.summarised(MixSummary)
    assert (summary.comparisons, summary.judged, summary.decided) == (200, 40, 40)
    assert context.warnings == []


@pytest.mark.parametrize(
    ("decided", "comparisons", "warns"),
    [(29, 29, True), (30, 30, False), (30, 120, False), (30, 121, True), (0, 3, True), (0, 0, True)],
)
def test_it_warns_of_fewer_than_30_preferences_and_of_fewer_than_a_quarter_decided(
    decided: int, comparisons: int, warns: bool
) -> None:
    many = [compared(f"{number}") for number in range(comparisons)]
    judgements = [judged(comparison, 0.9 if at < decided else 0.5) for at, comparison in enumerate(many)]
    assert bool(mixed_by_stage(judgements, many, ALL).warnings) == warns


def test_what_cannot_be_read_is_among_the_reasons() -> None:
    many = [compared("1"), compared("2"), compared("3", "same", "same ")]
    (warning,) = mixed_by_stage([judged(many[0], None), judged(many[1], None)], many, ALL).warnings
    assert "0 of 3 comparisons give a preference (2 unreadable, 1 of equal texts)" in warning


def test_what_people_leave_even_and_what_nobody_judged_is_among_the_reasons(tmp_path: Path) -> None:
    even, alone, decided = compared("1"), compared("2"), compared("3")
    path = tmp_path / "verdicts.jsonl"
    path.write_text(said(even, "tie").model_dump_json() + "\n")
    settings = Settings(verdicts=path, held_out_share=0)
    (warning,) = mixed_by_stage([judged(even, 0.9), judged(decided, 0.9)], [even, alone, decided], settings).warnings
    assert "1 of 3 comparisons give a preference (1 not judged, 1 even by people's verdicts)" in warning
    assert "more prompts" in warning


def test_the_scarcer_source_is_named_as_the_limit_of_a_fixed_total(tmp_path: Path) -> None:
    many = [compared(f"{number}") for number in range(18)]
    path = tmp_path / "verdicts.jsonl"
    path.write_text("".join(said(row, "a").model_dump_json() + "\n" for row in many[:16]))
    settings = Settings(verdicts=path, held_out_share=0, human_ratio=0.0)
    (warning,) = mixed_by_stage([judged(row, 0.9) for row in many], many, settings).warnings
    assert "2 preferences are trained on" in warning
    assert "of the AI's there are 2, of people's 16; a smaller spotcheck.budget" in warning
    assert "more prompts" not in warning


def test_verdicts_that_came_later_make_the_stage_run_again(tmp_path: Path) -> None:
    from constitutional.runs.compose import compose
    from constitutional.runs.pipeline import stages_of
    from constitutional.runs.runner import fingerprint_of

    def fingerprint(settings: Settings) -> str:
        config = compose().model_copy(update={"mix": settings})
        (stage,) = (stage for stage in stages_of(config) if stage.name == "mix")
        return fingerprint_of(stage, 0, {})

    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"comparison": "1", "rater": "ann", "choice": "a"}\n')
    before, with_them = fingerprint(Settings()), fingerprint(Settings(verdicts=path))
    path.write_text('{"comparison": "1", "rater": "ann", "choice": "b"}\n')
    assert len({before, with_them, fingerprint(Settings(verdicts=path))}) == 3


@pytest.mark.skipif(not HH_RLHF.is_file(), reason=f"there is no {HH_RLHF}")
def test_published_human_preferences_mix_at_none_half_and_all() -> None:
    sources, measured_on = [], []
    for share in (0.0, 0.5, 1.0):
        context = OneStage(Path())
        context.rows["comparisons"] = [comparison for comparison, _ in MANY]
        context.rows["judgements"] = list(itertools.starmap(judged, MANY))
        context.rows["prompts"] = []
        run(Settings(human=(DataFile(path=HH_RLHF),), human_ratio=share, total=300), context)
        written: list[Preference] = context.rows["preferences"]
        sources.append([each.source for each in written if each.split == "train"])
        measured_on.append([each for each in written if each.split == "held_out"])
    assert [source.count("human") for source in sources] == [0, 150, 300]
    assert [len(source) for source in sources] == [300, 300, 300]
    assert measured_on[0] == measured_on[1] == measured_on[2]
    assert {each.source for each in measured_on[0]} == {"ai", "human"}


def pairs(count: int) -> list[Preference]:
    return [human(f"people {number}") for number in range(count)]


def test_a_total_that_peoples_pairs_cannot_meet_is_known_from_the_file() -> None:
    settings = Settings(human_ratio=0.5, total=60, held_out_share=0)
    with pytest.raises(ConfigurationError, match=r"mix\.total=60.*asks for 30 .*20 are to train on.*at most 40"):
        check_amounts(pairs(20), [], settings, 0)
    check_amounts(pairs(30), [], settings, 0)
    check_amounts(pairs(20), [], settings.model_copy(update={"total": 40}), 0)
    with pytest.raises(ConfigurationError, match="19 are to train on"):  # the others are of an evaluation prompt
        check_amounts(pairs(30), [asked(f"people\u00a0{number}", "held_out") for number in range(11)], settings, 0)


def test_a_share_of_people_that_are_not_there_is_known_before_anything_is_asked() -> None:
    with pytest.raises(ConfigurationError, match="there are none to train on"):
        check_amounts([], [], Settings(human_ratio=0.5), 0)
    check_amounts([], [], Settings(), 0)
    check_amounts([], [], Settings(human_ratio=0), 0)
    check_amounts([], [], Settings(human_ratio=0.5, verdicts=Path("verdicts.jsonl")), 0)  # not made yet


def test_what_is_refused_before_is_what_would_be_refused_later() -> None:
    for count, total in itertools.product((5, 20, 39, 40, 41), (20, 40, 80)):
        settings = Settings(human_ratio=0.5, total=total)

        def refused(call: Callable[[], object]) -> bool:
            try:
                call()
            except ConfigurationError:
                return True
            return False

        early = refused(lambda: check_amounts(pairs(count), [], settings, 0))  # noqa: B023 - called at once
        late = refused(lambda: mixed(MANY, people=pairs(count), settings=settings))  # noqa: B023
        assert early == late


def test_a_human_pair_that_goes_on_from_an_evaluation_prompt_is_left_out() -> None:
    turns = (Message("user", "secret\r\n one"), Message("assistant", "A"), Message("user", "And?"))
    longer = human("x").model_copy(update={"prompt": Prompt(messages=turns)})
    kept = without_evaluation_prompts([longer, human("y")], [asked("secret one", "held_out")])
    assert [preference.prompt.messages[0].content for preference in kept] == ["y"]


def test_a_system_message_before_the_run_s_prompts_hides_no_pair_on_an_evaluation_prompt() -> None:
    system = Message("system", "Be brief.")
    secret, own = (Prompt(messages=(system, Message("user", text)), split="held_out") for text in ("secret", "own"))
    with_own = human("own").model_copy(
        update={"prompt": Prompt(messages=(Message("system", "Rhyme."), *own.messages[1:]))}
    )
    kept = without_evaluation_prompts([human("secret"), with_own, human("open")], [secret, own])
    assert [preference.prompt.messages[-1].content for preference in kept] == ["open"]


def test_a_comparison_and_a_person_s_pair_on_one_prompt_are_on_one_side_whatever_the_system_s_message() -> None:
    system, names = Message("system", "Be brief."), [f"{number}" for number in range(40)]
    own = [
        Comparison(prompt=Prompt(messages=(system, Message("user", name))), a="A", b="B", model="m") for name in names
    ]
    settings = Settings(held_out_share=0.5)
    found = mixed([(row, 0.9) for row in own], people=map(human, names), settings=settings)
    sides = {source: {} for source in ("ai", "human")}  # type: dict[str, dict[str, str]]
    for row in found.preferences:
        sides[row.source][row.prompt.messages[-1].content] = row.split
        assert is_held_out(row.prompt.messages, settings, 0) == (row.split == "held_out")
    assert sides["ai"] == sides["human"]
    assert set(sides["ai"].values()) == {"train", "held_out"}


def test_conversations_with_one_opening_are_on_one_side_of_the_split() -> None:
    people = []
    for number in range(100):
        opening = Message("user", f"Hello {number}")
        turns = (opening, Message("assistant", "A"), Message("user", "And?"))
        people += [
            human(f"{number} {count}").model_copy(update={"prompt": Prompt(messages=turns[:count])}) for count in (1, 3)
        ]
    sides: dict[str, list[str]] = {}
    for preference in mixed(people=people, settings=Settings(held_out_share=0.5)).preferences:
        sides.setdefault(preference.prompt.messages[0].content, []).append(preference.split)
    assert {len(found) for found in sides.values()} == {2}
    assert {len(set(found)) for found in sides.values()} == {1}
    assert {found[0] for found in sides.values()} == {"train", "held_out"}


def test_peoples_opinions_of_one_pair_are_brought_together_however_it_is_spelled() -> None:
    first = human("Q", 0.9, "A", "B")
    second = human("Q", 0.7, "A ", "B").model_copy(update={"comparison": first.comparison})
    (found,) = mixed(people=[first, second]).preferences
    assert found.probability == pytest.approx(0.8)


def test_the_audit_set_is_never_trained_on_whoever_judged_it() -> None:
    rows = [compared(f"Q{number}") for number in range(40)]
    plan = [
        SpotCheck(comparison=row.id, reason="audit" if number < 10 else "margin", probability=0.5)
        for number, row in enumerate(rows[:20])
    ]
    votes = [Verdict(comparison=row.id, rater="x", choice="b") for row in rows[5:15]]
    judgements = [judged(row, 0.9) for row in rows]
    context = OneStage(
        Path(),
        rows={"prompts": [], "comparisons": rows, "judgements": judgements, "spotchecks": plan, "verdicts": votes},
    )
    run(Settings(held_out_share=0), context)
    made = {row.comparison: row.source for row in context.rows["preferences"]}
    assert made.keys() == {row.id for row in rows[10:]}
    assert {name for name, source in made.items() if source == "human"} == {row.id for row in rows[10:15]}
    assert isinstance(context.said, MixSummary)
    assert context.said.counts["comparisons of the audit set"] == 10


@pytest.mark.parametrize(
    ("share", "expected"),
    # 10 pay 100 labels at 0.1, 10 votes at 1, or with a share of a fifth 10 / 0.28 = 35 preferences, 7 of people's.
    [(0.0, (100, 0)), (1.0, (0, 10)), (0.2, (28, 7))],
)
def test_at_a_fixed_cost_people_s_labels_leave_room_for_fewer(share: float, expected: tuple[int, int]) -> None:
    settings = Settings(mode="fixed_cost", cost=10, price_of_vote=1, price_of_label=0.1, human_ratio=share)
    assert amounts_of(200, 50, settings) == expected
    with pytest.raises(ConfigurationError, match=r"a cost of at most"):
        amounts_of(20, 5, settings)


@pytest.mark.parametrize(
    "settings",
    [{"mode": "fixed_cost"}, {"cost": 5}, {"mode": "fixed_cost", "cost": 5}, {"mode": "fixed_cost", "total": 5}],
)
def test_a_cost_goes_with_its_mode_and_a_share(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"fixed_(cost|total)"):
        Settings.model_validate(settings)


def people_say(folder: Path, *rows: Mapping[str, object], **settings: object) -> list[Preference]:
    (folder / "people.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    context = OneStage(folder, rows={"comparisons": [], "judgements": [], "prompts": []})
    run(Settings.model_validate({"human": folder / "people.jsonl", "held_out_share": 0, **settings}), context)
    written: list[Preference] = context.rows["preferences"]
    return written


TIED = {"prompt": "Q1", "response_a": "Yes.", "response_b": "No.", "winner": "tie"}


def test_ties_are_trained_on_as_a_half_only_where_they_are_kept(tmp_path: Path) -> None:
    rows = [TIED, TIED | {"prompt": "Q2", "winner": "both_bad"}, TIED | {"prompt": "Q3", "winner": "b"}]
    assert [pair.chosen for pair in people_say(tmp_path, *rows)] == ["No."]
    kept = people_say(tmp_path, *rows, ties="keep")
    assert [(pair.prompt.messages[0].content, pair.probability) for pair in kept] == [("Q1", 0.5), ("Q3", 1.0)]


def test_a_tie_of_one_rater_counts_beside_the_votes_of_others(tmp_path: Path) -> None:
    rows = [TIED | {"rater": name, "winner": winner} for name, winner in (("a", "a"), ("b", "a"), ("c", "tie"))]
    (pair,) = people_say(tmp_path, *rows)
    assert pair.chosen == "Yes."
    assert pair.probability == pytest.approx(5 / 6)
    assert len(pair.rests_on) == 3


def test_weights_of_ranks_and_strengths_reach_the_preferences(tmp_path: Path) -> None:
    ranks = {"prompt": "Q", "answers": [{"answer": text, "rank": place} for place, text in enumerate("abc")]}
    pairs = people_say(tmp_path, ranks)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.weight for pair in pairs] == [pytest.approx(1 / 3)] * 3
    steered = {"prompt": "Q", "response1": "Yes.", "response2": "No.", "overall_preference": 2}
    file = {"path": tmp_path / "people.jsonl", "strengths": {2: 0.8}}
    (pair,) = people_say(tmp_path, steered, human=[file])
    assert (pair.chosen, pair.probability, pair.weight) == ("No.", 0.8, 1.0)


def test_files_have_all_a_weight_or_none() -> None:
    with pytest.raises(ValueError, match="some files have a weight"):
        Settings.model_validate({"human": [{"path": "a", "weight": 1}, {"path": "b"}]})
    one = Settings.model_validate({"human": "a.jsonl"})
    assert one.human == (DataFile(path=Path("a.jsonl")),)
    assert hash(one) == hash(Settings.model_validate({"human": [{"path": "a.jsonl"}]}))
