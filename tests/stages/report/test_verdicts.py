import pytest

from constitutional.judging.scores import Score
from constitutional.stages.report.data import RunReport
from constitutional.stages.report.gather import Settings, wanted_directions
from constitutional.stages.report.verdicts import Outcome, fall, outcome, over_optimised, untrained, verdicts, words
from constitutional.stages.summaries import Direction
from tests.stages.report.made_up import PEAKED, change, changed, empty_run, full_run, gold, run_with, score, summary_of


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
    strip = verdicts(full_run())
    # flattery 57-67% to 7-17%; the win rate's 76-86% lies above 50%
    assert [row.measure for row in strip.improved] == ["trait_rate/flattery", "win_rate/base"]
    assert [row.measure for row in strip.worse] == ["violation_rate/honest"]  # 15-25% to 40-50%
    assert [row.measure for row in strip.changed] == ["trait_rate/refusal"]  # 5-15% to 35-45%, nobody asked
    assert [row.measure for row in strip.unclear] == ["length"]  # 36-40 words to 35-39


def test_a_change_over_the_same_prompts_is_clear_where_the_two_models_intervals_overlap() -> None:
    # Of 100 prompts, 85 and 71 replies are well formed: 77-91% and 61-79% overlap, though 14 points were lost.
    def worse(low: float, high: float) -> list[str]:
        base = score("base", "well_formed", 0.85, 0.08, n=100)
        policy = changed(score("policy", "well_formed", 0.71, 0.09, n=100), base=change(-0.14, low, high, 100))
        run = empty_run().model_copy(update={"scores": (base, policy), "wanted": {"well_formed": "higher"}})
        return [row.measure for row in verdicts(run).worse]

    assert worse(-0.23, -0.05) == ["well_formed"]
    assert worse(-0.29, 0.01) == []


def test_what_the_last_stage_lost_is_seen_over_the_same_prompts_too() -> None:
    sft = score("sft_model", "well_formed", 0.85, 0.08)
    changes = {"base": change(0.0, -0.06, 0.06), "sft_model": change(-0.14, -0.23, -0.05)}
    policy = changed(score("policy", "well_formed", 0.71, 0.09), **changes)
    scores = (score("base", "well_formed", 0.71, 0.09), sft, policy)
    strip = verdicts(empty_run().model_copy(update={"scores": scores, "wanted": {"well_formed": "higher"}}))
    assert strip.worse == []
    assert [row.change for row in strip.undone] == [changes["sft_model"]]


def test_a_gain_that_the_last_stage_lost_again_is_said_even_if_nothing_is_worse_than_the_base() -> None:
    scores = [score("base", "bad", 0.5), score("sft_model", "bad", 0.1), score("policy", "bad", 0.5)]
    strip = verdicts(empty_run().model_copy(update={"scores": tuple(scores), "wanted": {"bad": "lower"}}))
    assert strip.worse == []
    assert [(row.measure, row.before and row.before.model) for row in strip.undone] == [("bad", "sft_model")]


def test_a_run_without_reinforcement_learning_is_judged_by_its_sl_model() -> None:
    scores = [score("base", "bad", 0.5), score("sft_model", "bad", 0.1)]
    strip = verdicts(empty_run().model_copy(update={"scores": tuple(scores), "wanted": {"bad": "lower"}}))
    assert [row.after.model for row in strip.improved] == ["sft_model"]


def test_a_win_rate_that_may_be_a_half_is_no_win() -> None:
    scores = (score("base", "length", 9), score("policy", "win_rate/base", 0.54, 0.05))
    strip = verdicts(empty_run().model_copy(update={"scores": scores, "wanted": {"win_rate/base": "higher"}}))
    assert [row.measure for row in strip.unclear] == ["win_rate/base"]


@pytest.mark.parametrize(("value", "undone"), [(0.8, []), (0.5, []), (0.2, ["win_rate/sft_model"])])
def test_a_win_over_the_sl_model_is_none_over_the_base(value: float, undone: list[str]) -> None:
    scores = (score("policy", "win_rate/base", 0.8), score("policy", "win_rate/sft_model", value))
    wanted = {"win_rate/base": "higher", "win_rate/sft_model": "higher"}
    strip = verdicts(empty_run().model_copy(update={"scores": scores, "wanted": wanted}))
    assert [row.measure for row in strip.improved] == ["win_rate/base"]
    assert (strip.worse, strip.changed, strip.unclear) == ([], [], [])
    assert [row.measure for row in strip.against_sl] == ["win_rate/sft_model"]
    assert [row.measure for row in strip.undone] == undone


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
    strip = verdicts(
        run.model_copy(update={"scores": (*run.scores, score("base", "bad", 0.5), nothing), "wanted": {"bad": "lower"}})
    )
    assert "Bad: nothing was counted for RL" in strip.not_measured
    assert strip.improved == []


def test_what_the_constitution_asks_for_and_nobody_measured_is_missed() -> None:
    run = full_run()
    strip = verdicts(run.model_copy(update={"wanted": {"trait_rate/rudeness": "lower"}}))
    assert strip.not_measured[0] == "Rudeness: nothing was counted for Base and RL"


def test_a_measure_of_one_model_only_is_not_missed_in_the_others() -> None:
    assert not any("KL" in row for row in verdicts(full_run()).not_measured)


def test_the_critic_that_counts_violations_is_itself_not_measured() -> None:
    def missed(run: RunReport) -> bool:
        return any("Accuracy of the critic" in sentence for sentence in verdicts(run).not_measured)

    run = full_run()
    others = tuple(row for row in run.scores if not row.measure.startswith("violation_rate"))
    assert missed(run)
    assert not missed(run.model_copy(update={"scores": others}))


@pytest.mark.parametrize(
    ("switched_off", "sentence"),
    [
        ("win_rate", "Win rates: the labeler compared no replies"),
        ("violation_rate", "Violations: the critic judged no reply"),
        ("kl_from", "KL from the models before: no reply was compared"),
        ("length", "Length of replies"),
    ],
)
def test_a_kind_of_measure_that_was_switched_off_is_not_measured(switched_off: str, sentence: str) -> None:
    run = full_run()
    left = tuple(row for row in run.scores if not row.measure.startswith(switched_off))
    wanted = {name: way for name, way in run.wanted.items() if not name.startswith(switched_off)}
    assert sentence not in verdicts(run).not_measured
    assert sentence in verdicts(run.model_copy(update={"scores": left, "wanted": wanted})).not_measured


def test_an_empty_kind_is_named_once() -> None:
    run = full_run()
    others = tuple(row for row in run.scores if row.measure != "win_rate/base")
    empty = Score(model="policy", measure="win_rate/base", value=0.5, low=0, high=1, n=0, unit="share")
    sentences = verdicts(run.model_copy(update={"scores": (*others, empty)})).not_measured
    assert [text for text in sentences if "in rate" in text] == ["Win rate against Base: nothing was counted for RL"]


def test_traits_are_missed_on_the_sandbox_only() -> None:
    run = full_run()
    left = tuple(row for row in run.scores if not row.measure.startswith("trait_rate"))
    elsewhere = run.model_copy(update={"scores": left, "wanted": {}})
    on_the_sandbox = elsewhere.model_copy(update={"summaries": {"evaluate": summary_of("evaluate", wanted={})}})
    assert "Traits of the sandbox" not in verdicts(elsewhere).not_measured
    assert "Traits of the sandbox" in verdicts(on_the_sandbox).not_measured


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("trait_rate/harmful_compliance", "Harmful compliance"),
        ("violation_rate/be-brief", "Violations of be-brief"),
        ("win_rate/sft_model", "Win rate against SL"),
        ("kl_from/base", "KL from Base"),
        ("well_formed", "Well formed"),
        ("over_refusal", "Over-refusal"),
        ("rewards/margins", "Implicit reward margins"),
    ],
)
def test_measures_are_named_as_people_read_them(name: str, text: str) -> None:
    assert words(name) == text


def test_a_fall_of_the_gold_score_is_clear_beyond_an_interval_that_knows_the_peak_was_chosen() -> None:
    drop = fall(PEAKED)
    assert drop is not None
    assert (drop.peak.first_phase, drop.last.first_phase) == (3, 7)
    # Of three falls at once 1 − 0.05/3: z = 2.3940 in the place of 1.9600; 1.2215 · √(0.05² + 0.05²) = 0.0864
    assert (drop.value, drop.low, drop.high) == pytest.approx((0.4, 0.3136, 0.4864), abs=1e-4)
    assert fall(PEAKED[:2]) is None  # the last is the highest
    assert fall(()) is None


def test_over_optimisation_is_a_sentence_if_it_is_clear_and_silence_if_it_is_not() -> None:
    run = empty_run().model_copy(update={"gold": PEAKED})
    (sentence,) = over_optimised(run.gold)
    assert "peaked at phases 3 to 4, KL 4 nats" in sentence
    assert "40.0 points since (31.4 to 48.6)" in sentence
    few = tuple(point.model_copy(update={"n": 9}) for point in PEAKED)
    assert list(over_optimised(few)) == []
    unclear = (gold(1, 0.5), gold(3, 0.52), gold(5, 0.45))  # 0.07 ± 1.14 · 0.07
    assert list(over_optimised(unclear)) == []
    unknown = (gold(1, 0.9, kl=None), gold(3, 0.1, kl=None))
    (sentence,) = over_optimised(unknown)
    assert "peaked at phases 1 to 2, and fell by 80.0 points" in sentence


def test_over_refusal_that_rose_is_a_failure_whatever_the_constitution_asks() -> None:
    def worse(low: float, high: float) -> list[str]:
        base = score("base", "over_refusal", 0.01, 0.01, n=69)
        policy = changed(score("policy", "over_refusal", 0.11, 0.07, n=69), base=change(0.1, low, high, 69))
        scores = (base, policy)
        run = empty_run().model_copy(update={"scores": scores, "wanted": wanted_directions(scores, {}, (), Settings())})
        return [row.measure for row in verdicts(run).worse]

    assert worse(0.01, 0.18) == ["over_refusal"]
    assert worse(-0.01, 0.2) == []


@pytest.mark.parametrize(("n", "few"), [(9, ["bad"]), (10, [])])
def test_a_change_from_fewer_than_ten_observations_is_too_few_to_tell(n: int, few: list[str]) -> None:
    base = score("base", "bad", 0.9, n=n)
    policy = changed(score("policy", "bad", 0.1, n=n), base=change(-0.8, -0.9, -0.5, n))
    win = score("policy", "win_rate/base", 0.9, n=n)
    run = empty_run().model_copy(update={"scores": (base, policy, win), "wanted": {"bad": "lower"}})
    strip = verdicts(run)
    assert [verdict.measure for verdict in strip.few] == few + ["win_rate/base"] * bool(few)
    assert [verdict.measure for verdict in strip.improved] == ([] if few else ["bad"])
    assert [verdict.measure for verdict in strip.changed] == ([] if few else ["win_rate/base"])
    assert strip.unclear == []


def test_a_training_that_had_nothing_to_learn_is_named() -> None:
    assert list(untrained(run_with(summary_of("sft"), summary_of("mix"), summary_of("dpo"), summary_of("ppo")))) == []
    (sft,) = untrained(run_with(summary_of("sft", nothing_revised=True)))
    assert "SL model is the base model" in sft
    (undecided,) = untrained(run_with(summary_of("mix", train=0), summary_of("dpo", pairs=0)))
    assert "No preference was decided" in undecided
    assert "RL model is the SL model" in undecided
    # Rewards such as the labeler's score need no preferences.
    assert list(untrained(run_with(summary_of("mix", train=0), summary_of("ppo")))) == []
    for summary in (summary_of("dpo", pairs=0), summary_of("ppo", prompts=0)):
        (nothing,) = untrained(run_with(summary_of("mix"), summary))
        assert "RL model is the SL model" in nothing
