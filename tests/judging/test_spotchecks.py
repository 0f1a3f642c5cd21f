"""Which comparisons people look at: how many, why, and with which probability."""

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from constitutional.base.errors import ModelError
from constitutional.base.records import Comparison, Judgement, Prompt, Reading
from constitutional.judging.spotchecks import (
    LEAST,
    SpotCheckSettings,
    planned,
    proportional,
    reason_for,
    reward_probabilities,
    sequential,
)
from constitutional.training import reward_model


def pair(number: int) -> Comparison:
    return Comparison(prompt=Prompt.of(f"Question {number}?"), a="One.", b="Two.")


def judged(
    comparison: Comparison,
    p_a: float | None,
    *,
    principle: str = "calm",
    judge: str = "labeler",
    conflict: bool = False,
) -> Judgement:
    return Judgement(
        comparison=comparison.id,
        principle=principle,
        principle_text="…",
        labeler="x",
        judge=judge,
        readings=(Reading(order="a_first", rationale="", p_a=p_a, problem=None if p_a is not None else "none"),),
        p_a=p_a,
        conflict=conflict,
    )


@pytest.mark.parametrize(
    ("settings", "votes"),
    [
        ({"budget": 120}, 120),
        ({"budget": 90, "unit": "minutes", "seconds_a_vote": 45}, 120),
        ({"budget": 60.3, "unit": "money", "price_a_vote": 0.1}, 603),
        ({"budget": 0.9, "unit": "money", "price_a_vote": 0.3}, 3),  # 0.9 / 0.3 is 3.0000000000000004, or below
    ],
)
def test_a_budget_is_of_votes_of_minutes_or_of_money(settings: dict[str, object], votes: int) -> None:
    assert SpotCheckSettings.model_validate(settings).votes == votes


def test_probabilities_are_in_proportion_and_none_is_above_one() -> None:
    # 3 of the sum 2: 1.5, 0.75, 0.75, so the first is certain, and the others share what is left.
    assert proportional({"a": 1.0, "b": 0.5, "c": 0.5}, 2) == {"a": 1.0, "b": 0.5, "c": 0.5}
    assert proportional({"a": 8.0, "b": 1.0, "c": 1.0}, 2) == {"a": 1.0, "b": 0.5, "c": 0.5}
    assert proportional({"a": 1.0, "b": 3.0}, 5) == {"a": 1.0, "b": 1.0}
    assert proportional({"a": 1.0, "b": 3.0}, 0) == {"a": 0.0, "b": 0.0}


def test_a_sequential_sample_has_its_size_and_each_name_about_its_probability() -> None:
    scores = {f"c{number}": (number + 1) ** 2 for number in range(40)}
    chances, counts = proportional(scores, 10), Counter[str]()
    for seed in range(2000):
        chosen = sequential(scores, 10, seed)
        assert len(chosen) == 10
        counts.update(chosen)
    # The deviation of a share of 2,000 is at most 0.011.
    assert {name: counts[name] / 2000 for name in scores} == pytest.approx(chances, abs=0.045)


def test_the_reason_is_what_matters_most() -> None:
    one = pair(0)
    assert reason_for([judged(one, 0.9, conflict=True)], ("conflict", "margin")) == ("conflict", 1.0)
    assert reason_for([judged(one, 0.75)], ("conflict", "margin")) == ("margin", 0.5)
    assert reason_for([judged(one, 1.0)], ("conflict", "margin"))[1] == LEAST
    several = [judged(one, 0.9), judged(one, 0.1, judge="second")]
    reason, score = reason_for(several, ("panel",))
    assert (reason, round(score, 6)) == ("panel", 0.8)
    assert reason_for(several, ()) == ("random", 1.0)


def test_a_reward_model_that_contradicts_the_labeler_is_a_reason() -> None:
    one = pair(0)
    reason, score = reason_for([judged(one, 0.9)], ("margin", "reward"), 0.2)
    assert (reason, round(score, 6)) == ("reward", 0.7)
    assert reason_for([judged(one, 0.9)], ("margin", "reward"), 0.95)[0] == "margin"
    assert reason_for([judged(one, 0.9)], ("reward",)) == ("reward", LEAST)  # there is no reward model
    pairs, judgements = sample(40)
    # The reward model contradicts the labeler on four pairs, and is of one mind with it on the others.
    against = {row.id for row in pairs[5:9]}
    rewards = {row.id: 0.05 if row.id in against else 0.95 for row in pairs}
    settings = SpotCheckSettings(
        budget=8, overlap=0, audit_share=0, targets=("reward",), strata=False, reward_model=Path("x")
    )
    plan = planned(pairs, judgements, settings, 0, rewards)
    chances = {row.comparison: row.probability for row in plan}
    assert {name: chances.get(name) for name in against} == dict.fromkeys(against, 1.0)
    # 4 places for the 35 others, all of the same score.
    assert {round(chance, 6) for name, chance in chances.items() if name not in against} == {round(4 / 35, 6)}
    assert {row.reason for row in plan} == {"reward"}


def test_a_reward_models_probability_is_the_mean_over_its_members(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [pair(0), pair(1)]
    # Differences of 1 and −2 by the first member, 0 and 0 by the second.
    scores = {"0": [3.0, 2.0, 0.0, 2.0], "1": [5.0, 5.0, 1.0, 1.0]}
    monkeypatch.setattr(reward_model, "load_reward_model", lambda folder: (folder.name, None))
    monkeypatch.setattr(reward_model, "raw_scores", lambda name, _, replies: scores[name][: len(replies)])
    (tmp_path / "normalisation.json").write_text('{"members": [{}, {}], "samples": 1}')
    made = reward_probabilities(rows, tmp_path)
    # σ(1) = 0.731059, σ(−2) = 0.119203, σ(0) = 0.5
    assert [made[row.id] for row in rows] == pytest.approx([(0.731059 + 0.5) / 2, (0.119203 + 0.5) / 2], abs=1e-6)
    (tmp_path / "normalisation.json").write_text('{"members": [], "samples": 0}')
    with pytest.raises(ModelError, match="holds no reward model"):
        reward_probabilities(rows, tmp_path)


def test_the_target_reward_needs_a_reward_model_that_is_there_before_people_are_asked() -> None:
    with pytest.raises(ValidationError, match=r"spotcheck\.reward_model=runs/FIRST"):
        SpotCheckSettings(budget=8, targets=("reward",))
    assert SpotCheckSettings(targets=("reward",)).votes == 0  # nobody is asked by it, before or after


def sample(count: int = 200) -> tuple[list[Comparison], list[Judgement]]:
    """Every tenth pair has a conflict, by a rare principle every twentieth is judged, and one cannot be read."""
    pairs = [pair(number) for number in range(count)]
    judgements = [
        judged(row, 0.95, principle="rare" if number % 20 == 1 else "calm", conflict=number % 10 == 0)
        for number, row in enumerate(pairs)
    ]
    return pairs, [*judgements[:-1], judged(pairs[-1], None)]


def test_a_plan_keeps_the_budget_and_holds_an_audit_set_and_double_votes() -> None:
    pairs, judgements = sample()
    settings = SpotCheckSettings(budget=46, audit_share=0.5, overlap=0.15, targets=("conflict",), strata=False)
    plan = planned(pairs, judgements, settings, seed=1)
    by_reason = Counter(row.reason for row in plan)
    # 46 votes are 40 comparisons of which 6 get two; 20 are drawn uniformly.
    assert by_reason == {"audit": 20, "conflict": 20}
    assert sum(row.votes == 2 for row in plan) == 6
    assert sum(row.votes for row in plan) == 46
    assert pairs[-1].id not in {row.comparison for row in plan}
    assert len({row.comparison for row in plan}) == len(plan)
    conflicts = {row.id for row in pairs[::10]}
    # The 20 conflicts have a score of 1, the 179 others of 0.001. Those that are not in the audit set are certain, and
    # the places that are left go to others: u = 20/199, and of the others few.
    chances = {row.comparison: row.probability for row in plan}
    assert conflicts <= chances.keys()
    assert all(chance == 1 for name, chance in chances.items() if name in conflicts)
    assert all(0.1 < chance < 0.15 for name, chance in chances.items() if name not in conflicts)


def test_a_single_vote_is_asked_for_where_some_comparisons_are_to_have_two() -> None:
    pairs, judgements = sample()
    # Of one vote and of two, 1.15 votes a comparison leave one comparison; of three, two.
    plans = [planned(pairs, judgements, SpotCheckSettings(budget=budget), 0) for budget in (1, 2, 3)]
    assert [[row.votes for row in plan] for plan in plans] == [[1], [1], [1, 1]]


def test_what_is_chosen_has_its_probability() -> None:
    pairs, judgements = sample(60)
    settings = SpotCheckSettings(budget=20, overlap=0, audit_share=0.4, targets=("conflict",))
    chances: dict[str, list[float]] = {}
    for seed in range(400):
        for row in planned(pairs, judgements, settings, seed):
            chances.setdefault(row.comparison, []).append(row.probability)
    # 400 plans of 20 of 59: the deviation of a share is at most 0.025.
    drawn = {name: (len(of) / 400, sum(of) / len(of)) for name, of in chances.items()}
    assert len(drawn) == 59
    assert all(share == pytest.approx(chance, abs=0.1) for share, chance in drawn.values())
    assert sum(chance for _, chance in drawn.values()) == pytest.approx(20, abs=0.5)


def test_a_larger_budget_holds_the_plan_of_a_smaller_one() -> None:
    pairs, judgements = sample()
    for budget in (10, 25, 60):
        settings = SpotCheckSettings(budget=budget)
        small, large = (
            {row.comparison for row in planned(pairs, judgements, SpotCheckSettings(budget=votes), seed=budget)}
            for votes in (settings.votes, settings.votes + 30)
        )
        assert small < large

    def audit(budget: int) -> set[str]:
        rows = planned(pairs, judgements, SpotCheckSettings(budget=budget), seed=3)
        return {row.comparison for row in rows if row.reason == "audit"}

    assert audit(20) < audit(60)


def test_principles_get_equal_parts() -> None:
    pairs, judgements = sample()
    rare = {row.comparison for row in judgements if row.principle == "rare"}
    settings = SpotCheckSettings(budget=16, overlap=0, audit_share=0, targets=("random",))
    chosen = [len(rare & {row.comparison for row in planned(pairs, judgements, settings, seed)}) for seed in range(30)]
    # 10 of the 199 are judged by the rare principle, and get half of the 16.
    assert sum(chosen) / 30 == pytest.approx(8, abs=0.5)
    flat = settings.model_copy(update={"strata": False})
    chosen = [len(rare & {row.comparison for row in planned(pairs, judgements, flat, seed)}) for seed in range(30)]
    assert sum(chosen) / 30 == pytest.approx(16 * 10 / 199, abs=0.5)


def test_nobody_is_asked_without_a_budget_or_where_nothing_was_judged() -> None:
    pairs, judgements = sample()
    assert planned(pairs, judgements, SpotCheckSettings(), 0) == []
    assert planned(pairs, [], SpotCheckSettings(budget=10), 0) == []
    assert len(planned(pairs, judgements, SpotCheckSettings(budget=1000, overlap=0), 0)) == 199


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"budget": 0.3}, "budget=1 "),
        ({"budget": 0.7, "unit": "minutes"}, r"budget=0\.75 "),  # 45 seconds
        ({"budget": 0.49, "unit": "money"}, r"budget=0\.5 "),
    ],
)
def test_a_budget_that_allows_no_vote_is_refused(settings: dict[str, float | str], least: str) -> None:
    with pytest.raises(ValidationError, match=least):
        SpotCheckSettings.model_validate(settings)
