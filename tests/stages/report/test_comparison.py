"""Two runs against each other: what they were told, and what their models did on the same prompts."""

import json

import pytest

from constitutional.constitution.constitution import Constitution, Principle
from constitutional.judging.scores import Measurement
from constitutional.stages.report.comparison import PairedRow, SettingChange, run_difference, setting_changes
from constitutional.stages.report.data import RunReport
from constitutional.stages.report.page import render
from constitutional.stages.summaries import EvaluateSummary
from tests.stages.report.made_up import empty_run, score

PROMPTS = [f"p{number:02}" for number in range(40)]


def principles(**texts: str) -> Constitution:
    return Constitution(
        name="two", version="1", principles=tuple(Principle(id=name, text=text) for name, text in texts.items())
    )


def run(name: str, shown: dict[str, dict[str, float]], constitution: Constitution, **settings: object) -> RunReport:
    """A run whose policy has these measurements, by measure and prompt."""
    scores = tuple(score("policy", measure, sum(by.values()) / len(by), n=len(by)) for measure, by in shown.items())
    rows = tuple(Measurement(model="policy", measure=measure, by_prompt=by) for measure, by in shown.items())
    base = empty_run(name)
    provenance = base.provenance.model_copy(update={"config": json.dumps({"name": name, **settings})})
    words = {row.id: row.text for row in (*constitution.principles, *constitution.left_out)}
    evaluated = EvaluateSummary(prompts=len(PROMPTS), counts={}, critiqued=words, wanted=None)
    update = {"scores": scores, "measurements": rows, "constitution": constitution, "provenance": provenance}
    update |= {"summaries": {"evaluate": evaluated}}
    return base.model_copy(update=update)


def first_of(prompts: list[str], count: int) -> dict[str, float]:
    """1 on the first so many prompts, and 0 on the others."""
    return {prompt: float(number < count) for number, prompt in enumerate(prompts)}


SAME = principles(calm="Stay calm.")


def only_row(a: RunReport, b: RunReport) -> PairedRow:
    two = run_difference(a, b)
    (row,) = [*two.changed, *two.unclear, *two.apart]
    return row


def test_the_difference_is_over_the_prompts_that_both_answered() -> None:
    a = run("a", {"trait_rate/flattery": first_of(PROMPTS[:30], 20)}, SAME)
    b = run("b", {"trait_rate/flattery": first_of(PROMPTS[10:], 0)}, SAME)
    row = only_row(a, b)
    # Of the 20 prompts in common, p10 to p29, the first run shows it on 10 and the second on none.
    assert row.change is not None
    assert (row.change.value, row.change.n) == (-0.5, 20)
    # Agresti and Min: −10/22 ± 1.96·√(11 − 100/22)/22
    assert (row.change.low, row.change.high) == pytest.approx((-0.6809, -0.2282), abs=1e-4)
    assert row.outcome == "changed"


def test_prompts_that_depend_on_each_other_count_as_one() -> None:
    shown = {"set_accuracy/mine": first_of(PROMPTS[:20], 10)}
    a, b = run("a", shown, SAME), run("b", {"set_accuracy/mine": first_of(PROMPTS[:20], 0)}, SAME)
    twos = {prompt: f"question {at // 2}" for at, prompt in enumerate(PROMPTS[:20])}
    of_twos = tuple(row.model_copy(update={"clusters": twos}) for row in b.measurements)
    change = only_row(a, b.model_copy(update={"measurements": of_twos})).change
    assert change is not None
    # Ten questions whose two prompts move together: the design effect is 10/5 = 2, by (2.2622/1.96)² = 1.3322. So 3.753
    # of 7.506 lost it: −3.753/9.506 ± 1.96·√(4.753 − 3.753²/9.506)/9.506.
    assert (change.value, change.n) == (-0.5, 20)
    assert (change.low, change.high) == pytest.approx((-0.7677, -0.0219), abs=2e-4)
    of_one = tuple(row.model_copy(update={"clusters": dict.fromkeys(twos, "one")}) for row in b.measurements)
    assert only_row(a, b.model_copy(update={"measurements": of_one})).change is None


def test_what_is_wanted_improves_and_the_clearest_change_stands_first() -> None:
    measures = ("over_refusal", "trait_rate/flattery", "length")
    before = dict(
        zip(measures, (first_of(PROMPTS, 20), first_of(PROMPTS, 40), dict.fromkeys(PROMPTS, 30.0)), strict=True)
    )
    after = dict(zip(measures, (first_of(PROMPTS, 4), first_of(PROMPTS, 2), dict.fromkeys(PROMPTS, 30.0)), strict=True))
    a, b = (
        run(name, shown, SAME).model_copy(update={"wanted": {"over_refusal": "lower"}})
        for name, shown in (("a", before), ("b", after))
    )
    two = run_difference(a, b)
    assert [(row.measure, row.outcome) for row in two.changed] == [
        ("trait_rate/flattery", "changed"),
        ("over_refusal", "improved"),
    ]
    assert [row.measure for row in two.unclear] == ["length"]
    assert [row.outcome for row in run_difference(b, a).changed if row.wanted] == ["worse"]


def test_too_few_prompts_in_common_tell_nothing() -> None:
    a = run("a", {"cut_off": first_of(PROMPTS[:20], 20)}, SAME)
    b = run("b", {"cut_off": first_of(PROMPTS[11:], 0)}, SAME)
    row = only_row(a, b)
    assert row.change is not None
    assert (row.change.n, row.outcome) == (9, "too few to tell")


def test_a_principle_reworded_under_its_id_is_not_compared_and_the_page_says_so() -> None:
    shown = {"violation_rate/calm": first_of(PROMPTS, 20), "violation_rate/kind": first_of(PROMPTS, 20)}
    a = run("a", shown, principles(calm="Stay calm.", kind="Be kind."))
    b = run("b", shown, principles(calm="Never shout.", kind="Be kind."))
    two = run_difference(a, b)
    assert [row.measure for row in two.apart] == ["violation_rate/calm"]
    assert "other words" in two.apart[0].remark
    assert [row.measure for row in two.unclear] == ["violation_rate/kind"]
    page = render([a, b])
    assert "<del>Stay calm.</del>" in page
    assert "<ins>Never shout.</ins>" in page
    assert page.index("What differs") < page.index("What the models do") < page.index("All measures, side by side")


def test_violations_are_compared_with_a_run_that_leaves_the_principle_out() -> None:
    both = principles(calm="Stay calm.", kind="Be kind.")
    a = run("a", {"violation_rate/calm": first_of(PROMPTS, 4)}, both)
    b = run("b", {"left_out_violation_rate/calm": first_of(PROMPTS, 24)}, both.select(without=["calm"]))
    row = only_row(a.model_copy(update={"wanted": {"violation_rate/calm": "lower"}}), b)
    assert (row.measure, row.outcome) == ("violation_rate/calm", "changed")  # the second run does not want it
    assert row.change is not None
    assert row.change.value == 0.5


def test_a_principle_for_revision_alone_makes_no_win_rate_another() -> None:
    one = principles(calm="Stay calm.")
    more = one.model_copy(
        update={"principles": (*one.principles, Principle(id="new", text="Be new.", uses=("revision",)))}
    )
    shown = {"win_rate/base": first_of(PROMPTS, 20)}
    assert only_row(run("a", shown, one), run("b", shown, more)).change is not None


def test_win_rates_by_other_principles_and_by_another_labeler_are_not_compared() -> None:
    shown = {"win_rate/base": dict.fromkeys(PROMPTS, 0.7)}
    a, other = run("a", shown, SAME), run("b", shown, principles(calm="Stay calm.", kind="Be kind."))
    assert "other principles" in only_row(a, other).remark
    identities = a.provenance.model_copy(update={"identities": {"labeler": "another"}})
    assert "labelers differ" in only_row(a, a.model_copy(update={"provenance": identities})).remark
    assert only_row(a, run("b", shown, SAME)).change is not None


def test_a_labeler_that_is_asked_in_another_way_makes_another_win_rate() -> None:
    shown = {"win_rate/base": dict.fromkeys(PROMPTS, 0.7)}
    a, same, other = (
        run(name, shown, SAME, label={"method": method, "max_canary_failures": failures})
        for name, method, failures in (("a", "contrast", 0.5), ("b", "contrast", 0.9), ("c", "votes", 0.5))
    )
    assert only_row(a, same).change is not None
    assert "another way" in only_row(a, other).remark


def test_a_change_of_a_win_rate_is_of_the_prompts_that_are_won() -> None:
    # 24 of 40 are won by a hair, then 20 by far: the mean probability rises from 0.502 to 0.74.
    before = {prompt: 0.51 if number < 24 else 0.49 for number, prompt in enumerate(PROMPTS)}
    after = {prompt: 0.99 if number < 20 else 0.49 for number, prompt in enumerate(PROMPTS)}
    row = only_row(run("a", {"win_rate/base": before}, SAME), run("b", {"win_rate/base": after}, SAME))
    assert row.change is not None
    assert row.change.value == pytest.approx(-4 / 40)
    tie = only_row(run("a", {"win_rate/base": before}, SAME), run("b", {"win_rate/base": after | {"p00": 0.5}}, SAME))
    assert tie.change is not None
    assert tie.change.value == pytest.approx(-4.5 / 40)


def test_a_rule_that_counts_another_thing_under_its_id_is_not_compared() -> None:
    def ruled(measure: str) -> Constitution:
        return Constitution(name="one", principles=(Principle(id="calm", text="Stay calm.", measure=measure),))

    broken, more = {"rule_broken/calm": first_of(PROMPTS, 20)}, {"rule_more/calm": dict.fromkeys(PROMPTS, 3.0)}
    for shown, first, second in (
        (broken, "at most 40 words", "at most 80 words"),
        (more, "more words", "more questions"),
    ):
        row = only_row(run("a", shown, ruled(first)), run("b", shown, ruled(second)))
        assert row.change is None
        assert "another thing" in row.remark
        assert only_row(run("a", shown, ruled(first)), run("b", shown, ruled(first))).change is not None
    left_out = {"left_out_rule_broken/calm": first_of(PROMPTS, 30)}
    kept = ruled("at most 40 words")
    both = kept.model_copy(update={"principles": (*kept.principles, Principle(id="kind", text="Be kind."))})
    row = only_row(run("a", broken, both), run("b", left_out, both.select(without=["calm"])))
    assert row.change is not None
    assert row.change.value == 0.25


def test_settings_differ_by_their_dotted_names() -> None:
    a = {"name": "a", "seed": 0, "mix": {"margin": 0.2, "human": None}, "algorithm": {"kind": "dpo", "beta": 0.1}}
    b = {"name": "b", "seed": 0, "mix": {"margin": 0.1, "human": None}, "algorithm": {"kind": "ppo"}}
    assert list(setting_changes(a, b)) == [
        SettingChange("mix.margin", "0.2", "0.1"),
        SettingChange("algorithm.kind", '"dpo"', '"ppo"'),
        SettingChange("algorithm.beta", "0.1", ""),
    ]
