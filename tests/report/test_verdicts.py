import pytest

from constitutional.report.data import (
    Direction,
    Histogram,
    LabelerQuality,
    PrincipleQuality,
    RewardQuality,
    Score,
    Share,
)
from constitutional.report.verdicts import Outcome, cautions, fall, outcome, over_optimised, verdicts, words
from tests.report.made_up import PEAKED, change, changed, empty_run, full_run, gold, score


@pytest.mark.parametrize(
    ("low", "high", "wanted", "expected"),
    [
        # against a base of 0.40 to 0.50
        (0.51, 0.60, "higher", "improved"),
        (0.51, 0.60, "lower", "worse"),
        (0.51, 0.60, None, "changed"),
        (0.30, 0.39, "lower", "improved"),
        (0.30, 0.39, "higher", "worse"),
        (0.50, 0.60, "higher", "no clear change"),  # the intervals touch
        (0.45, 0.80, "higher", "no clear change"),  # the value is higher, but the intervals overlap
        (0.42, 0.44, "lower", "no clear change"),  # one lies in the other
    ],
)
def test_a_change_is_clear_only_if_the_intervals_do_not_touch(
    low: float, high: float, wanted: Direction | None, expected: Outcome
) -> None:
    assert outcome(low, high, (0.40, 0.50), wanted) == expected


def test_every_measure_stands_in_one_place_of_the_strip() -> None:
    found = verdicts(full_run())
    # flattery 57-67% to 7-17%; the win rate's 76-86% lies above 50%
    assert [each.measure for each in found.improved] == ["trait_rate/flattery", "win_rate/base"]
    assert [each.measure for each in found.worse] == ["violation_rate/honest"]  # 15-25% to 40-50%
    assert [each.measure for each in found.changed] == ["trait_rate/refusal"]  # 5-15% to 35-45%, nobody asked
    assert [each.measure for each in found.unclear] == ["length"]  # 36-40 words to 35-39


def test_a_change_over_the_same_prompts_is_clear_where_the_two_models_intervals_overlap() -> None:
    # Of 100 prompts, 85 and 71 replies are well formed: 77-91% and 61-79% overlap, though 14 points were lost.
    def found(low: float, high: float) -> list[str]:
        base = score("base", "well_formed", 0.85, 0.08, n=100)
        policy = changed(score("policy", "well_formed", 0.71, 0.09, n=100), base=change(-0.14, low, high, 100))
        run = empty_run().model_copy(update={"scores": (base, policy), "wanted": {"well_formed": "higher"}})
        return [each.measure for each in verdicts(run).worse]

    assert found(-0.23, -0.05) == ["well_formed"]
    assert found(-0.29, 0.01) == []


def test_what_the_last_stage_lost_is_seen_over_the_same_prompts_too() -> None:
    sft = score("sft_model", "well_formed", 0.85, 0.08)
    changes = {"base": change(0.0, -0.06, 0.06), "sft_model": change(-0.14, -0.23, -0.05)}
    policy = changed(score("policy", "well_formed", 0.71, 0.09), **changes)
    scores = (score("base", "well_formed", 0.71, 0.09), sft, policy)
    found = verdicts(empty_run().model_copy(update={"scores": scores, "wanted": {"well_formed": "higher"}}))
    assert found.worse == []
    assert [each.change for each in found.undone] == [changes["sft_model"]]


def test_a_gain_that_the_last_stage_lost_again_is_said_even_if_nothing_is_worse_than_the_base() -> None:
    scores = [score("base", "bad", 0.5), score("sft_model", "bad", 0.1), score("policy", "bad", 0.5)]
    found = verdicts(empty_run().model_copy(update={"scores": tuple(scores), "wanted": {"bad": "lower"}}))
    assert found.worse == []
    assert [(each.measure, each.before and each.before.model) for each in found.undone] == [("bad", "sft_model")]


def test_a_run_without_reinforcement_learning_is_judged_by_its_sl_model() -> None:
    scores = [score("base", "bad", 0.5), score("sft_model", "bad", 0.1)]
    found = verdicts(empty_run().model_copy(update={"scores": tuple(scores), "wanted": {"bad": "lower"}}))
    assert [each.after.model for each in found.improved] == ["sft_model"]


def test_a_win_rate_that_may_be_a_half_is_no_win() -> None:
    scores = (score("base", "length", 9), score("policy", "win_rate/base", 0.54, 0.05))
    found = verdicts(empty_run().model_copy(update={"scores": scores, "wanted": {"win_rate/base": "higher"}}))
    assert [each.measure for each in found.unclear] == ["win_rate/base"]


@pytest.mark.parametrize(("value", "undone"), [(0.8, []), (0.5, []), (0.2, ["win_rate/sft_model"])])
def test_a_win_over_the_sl_model_is_none_over_the_base(value: float, undone: list[str]) -> None:
    scores = (score("policy", "win_rate/base", 0.8), score("policy", "win_rate/sft_model", value))
    wanted = {"win_rate/base": "higher", "win_rate/sft_model": "higher"}
    found = verdicts(empty_run().model_copy(update={"scores": scores, "wanted": wanted}))
    assert [each.measure for each in found.improved] == ["win_rate/base"]
    assert (found.worse, found.changed, found.unclear) == ([], [], [])
    assert [each.measure for each in found.against_sl] == ["win_rate/sft_model"]
    assert [each.measure for each in found.undone] == undone


def test_the_labeler_that_judges_what_it_taught_is_a_reason_for_doubt() -> None:
    run = full_run()
    (said,) = [each for each in cautions(run) if "judge of the win rates" in each]
    assert "is the labeler whose labels the RL model was trained by" in said
    by_people = run.model_copy(update={"sources": {"human, train": 240}})
    others = tuple(each for each in run.scores if each.measure != "win_rate/base")
    for other in (by_people, run.model_copy(update={"scores": others})):
        assert not any("judge of the win rates" in each for each in cautions(other))


def test_what_was_not_measured_is_said() -> None:
    assert verdicts(empty_run()).not_measured == [
        "Behaviour: no model was evaluated",
        "Labels: no comparison was judged",
        "Reward model",
        "Training curves",
    ]


def test_a_measure_without_observations_is_not_measured_and_no_improvement() -> None:
    nothing = Score(model="policy", measure="bad", value=0, low=0, high=0, n=0, unit="share")
    run = full_run()
    found = verdicts(
        run.model_copy(update={"scores": (*run.scores, score("base", "bad", 0.5), nothing), "wanted": {"bad": "lower"}})
    )
    assert "Bad: nothing was counted for RL" in found.not_measured
    assert found.improved == []


def test_what_the_constitution_asks_for_and_nobody_measured_is_missed() -> None:
    run = full_run()
    found = verdicts(run.model_copy(update={"wanted": {"trait_rate/rudeness": "lower"}}))
    assert found.not_measured[0] == "Rudeness: nothing was counted for Base and RL"


def test_a_measure_of_one_model_only_is_not_missed_in_the_others() -> None:
    assert not any("KL" in each for each in verdicts(full_run()).not_measured)


def test_the_critic_that_counts_violations_is_itself_not_measured() -> None:
    said = "The critic, on whose judgement the violations rest: how often it is right"
    run = full_run()
    others = tuple(each for each in run.scores if not each.measure.startswith("violation_rate"))
    assert said in verdicts(run).not_measured
    assert said not in verdicts(run.model_copy(update={"scores": others})).not_measured


@pytest.mark.parametrize(
    ("switched_off", "said"),
    [
        ("win_rate", "Win rates: the labeler compared no replies"),
        ("violation_rate", "Violations: the critic judged no reply"),
        ("kl_from", "KL from the models before: no reply was compared"),
        ("length", "Length of replies"),
    ],
)
def test_a_kind_of_measure_that_was_switched_off_is_not_measured(switched_off: str, said: str) -> None:
    run = full_run()
    left = tuple(each for each in run.scores if not each.measure.startswith(switched_off))
    wanted = {name: way for name, way in run.wanted.items() if not name.startswith(switched_off)}
    assert said not in verdicts(run).not_measured
    assert said in verdicts(run.model_copy(update={"scores": left, "wanted": wanted})).not_measured


def test_an_empty_kind_is_named_once() -> None:
    run = full_run()
    others = tuple(each for each in run.scores if each.measure != "win_rate/base")
    empty = Score(model="policy", measure="win_rate/base", value=0.5, low=0, high=1, n=0, unit="share")
    found = verdicts(run.model_copy(update={"scores": (*others, empty)})).not_measured
    assert [each for each in found if "in rate" in each] == ["Win rate against Base: nothing was counted for RL"]


def test_traits_are_missed_on_the_sandbox_only() -> None:
    run = full_run()
    left = tuple(each for each in run.scores if not each.measure.startswith("trait_rate"))
    elsewhere = run.model_copy(update={"scores": left, "wanted": {}})
    on_the_sandbox = elsewhere.model_copy(update={"notes": {"evaluate": {"wanted": {}}}})
    assert "Traits of the sandbox" not in verdicts(elsewhere).not_measured
    assert "Traits of the sandbox" in verdicts(on_the_sandbox).not_measured


def test_too_few_helpful_samples_are_a_reason_for_doubt() -> None:
    def said(missing: int) -> list[str]:
        examples = {"revision": 90, "helpful": 4, "helpful_missing": missing, "trained_on": 94}
        return list(cautions(empty_run().model_copy(update={"notes": {"sft": {"examples": examples}}})))

    # 6 are missing and 4 are there, of 10.
    assert said(6) == ["Supervised learning had 4 of the 10 helpful samples that its share asks for."]
    assert said(0) == []


@pytest.mark.parametrize(
    ("conflicts", "ties", "said"),
    [
        # of (60 + 50) - 10 = 100 judgements that can be read, in two principles
        ((30, 20), (0, 0), None),  # half of them is not more than half
        (
            (30, 21),
            (6, 20),
            (
                "In 51 of 100 judgements the labeler’s two orders prefer different responses; in 26 of them both "
                "readings lie within 10 points of 50%, so mostly it has hardly a preference."
            ),
        ),
        (
            (30, 21),
            (5, 20),
            (
                "In 51 of 100 judgements the labeler’s two orders prefer different responses, and only in 25 of them "
                "both readings lie within 10 points of 50%: mostly it keeps to a position, not to an answer."
            ),
        ),
    ],
)
def test_orders_in_conflict_are_a_reason_for_doubt_and_ties_are_called_ties(
    conflicts: tuple[int, int], ties: tuple[int, int], said: str | None
) -> None:
    principles = (
        PrincipleQuality(
            principle="p", text="", weight=1, judged=60, unreadable=3, conflicts=conflicts[0], ties=ties[0]
        ),
        PrincipleQuality(
            principle="q", text="", weight=1, judged=50, unreadable=7, conflicts=conflicts[1], ties=ties[1]
        ),
    )
    run = empty_run().model_copy(update={"labeler": LabelerQuality(principles=principles)})
    found = [each for each in cautions(run) if "two orders" in each]
    assert found == ([said] if said else [])


def test_targets_near_a_half_are_a_reason_for_doubt_if_most_are() -> None:
    def said(weak: int) -> list[str]:
        targets = Histogram(edges=(0.5, 0.55, 0.6, 1.0), counts=(weak, 90, 10))
        return list(cautions(empty_run().model_copy(update={"targets": targets})))

    assert said(100) == []  # of 200
    assert said(101) == ["101 of 201 preferences are hardly more than a coin toss: their targets are below 55%."]


def test_an_accuracy_from_few_examples_is_a_reason_for_doubt() -> None:
    counts = {"calm": 9, "brief": 10, "kind": 4}
    principles = [
        PrincipleQuality(principle=name, text="", weight=1, accuracy=Share.of(n, n)) for name, n in counts.items()
    ]
    principles.append(PrincipleQuality(principle="none", text="", weight=1))
    run = empty_run().model_copy(update={"labeler": LabelerQuality(principles=tuple(principles))})
    assert list(cautions(run)) == [
        "How often the labeler is right was measured on fewer than 10 examples: 9 by “calm”, 4 by “kind”."
    ]


def test_a_reward_model_with_one_source_is_doubted_once() -> None:
    def said(*sources: str) -> int:
        reward = RewardQuality.model_validate({"accuracy": {source: Share.of(5, 10) for source in sources}})
        return len(list(cautions(empty_run().model_copy(update={"reward": reward}))))

    assert said("all", "ai") == 1
    assert said("all", "ai", "human") == 3


def test_a_weak_labeler_is_a_reason_for_doubt() -> None:
    # 11 of 20 is 55%, under 60%; 400 of 556 is 72% for the first; 22 of 300 is 7%, over 5%.
    run = full_run().model_copy(update={"sources": {}})
    assert [each.removeprefix("The labeler, by “honest”, ") for each in cautions(run)] == [
        "is right on 11 of 20 examples: near chance, and training amplifies what it misjudges.",
        "preferred the response shown first in 72% of its readings: it favours a position.",
        "gave no readable answer to 22 of 300 comparisons.",
    ]


def test_a_good_labeler_and_reward_model_give_no_reason_for_doubt() -> None:
    good = PrincipleQuality(
        principle="p", text="", weight=1, accuracy=Share.of(19, 20), judged=100, unreadable=5, first=Share.of(52, 100)
    )
    reward = RewardQuality(accuracy={"ai": Share(right=80, n=100, value=0.8, low=0.71, high=0.87)})
    update = {"labeler": LabelerQuality(principles=(good,)), "reward": reward, "scores": (score("base", "bad", 0.5),)}
    assert list(cautions(empty_run().model_copy(update=update))) == []


def test_a_reward_model_that_may_be_guessing_or_follows_length_is_a_reason_for_doubt() -> None:
    reward = RewardQuality(accuracy={"human": Share.of(33, 60)}, length_correlation=0.8)  # type: ignore[dict-item]
    assert list(cautions(empty_run().model_copy(update={"reward": reward}))) == [
        "On held-out preferences (human), the reward model is not clearly above chance: 33 of 60 right.",
        "The reward model's score follows length (correlation 0.80).",
    ]


def test_few_observations_are_a_reason_for_doubt() -> None:
    run = empty_run().model_copy(update={"scores": (score("base", "a", 0.5, n=49), score("base", "b", 0.5, n=12))})
    assert list(cautions(run)) == ["Some measures rest on as few as 12 observations; their intervals are wide."]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trait_rate/harmful_compliance", "Harmful compliance"),
        ("violation_rate/be-brief", "Violations of be-brief"),
        ("win_rate/sft_model", "Win rate against SL"),
        ("kl_from/base", "KL from Base"),
        ("well_formed", "Well formed"),
        ("rewards/margins", "Implicit reward margins"),
    ],
)
def test_measures_are_named_as_people_read_them(name: str, text: str) -> None:
    assert words(name) == text


def test_a_principle_that_the_critic_misunderstands_is_said_before_all_else() -> None:
    said = "calm: The principle asks to include flattery. Its tags say: flattery, avoid."
    run = full_run().model_copy(update={"notes": {"evaluate": {"misunderstood": [said]}}})
    assert next(iter(cautions(run))) == f"The critic takes a principle for another than its author meant. {said}"


def test_a_fall_of_the_gold_score_is_clear_beyond_an_interval_that_knows_the_peak_was_chosen() -> None:
    found = fall(PEAKED)
    assert found is not None
    assert (found.peak.first_phase, found.last.first_phase) == (3, 7)
    # Of three falls at once 1 − 0.05/3: z = 2.3940 in the place of 1.9600; 1.2215 · √(0.05² + 0.05²) = 0.0864
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.3136, 0.4864), abs=1e-4)
    assert fall(PEAKED[:2]) is None  # the last is the highest
    assert fall(()) is None


def test_over_optimisation_is_a_sentence_if_it_is_clear_and_silence_if_it_is_not() -> None:
    run = empty_run().model_copy(update={"gold": PEAKED})
    (said,) = over_optimised(run)
    assert said == (
        "The gold score (what the constitution’s tags ask for, found exactly) peaked at phases 3 to 4, KL 4 nats, and "
        "fell by 40.0 points since (31.4 to 48.6): the reward was over-optimised."
    )
    unclear = (gold(1, 0.5), gold(3, 0.52), gold(5, 0.45))  # 0.07 ± 1.14 · 0.07
    assert list(over_optimised(run.model_copy(update={"gold": unclear}))) == []
    unknown = (gold(1, 0.9, kl=None), gold(3, 0.1, kl=None))
    (said,) = over_optimised(run.model_copy(update={"gold": unknown}))
    assert "peaked at phases 1 to 2, and fell by 80.0 points" in said
