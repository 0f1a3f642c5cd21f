"""What a run should change next, and reasons to doubt the numbers."""

import pytest

from constitutional.judging.understanding import PrincipleMeaning
from constitutional.stages.report.cautions import actions, cautions
from constitutional.stages.report.data import Curve, LabelerQuality, PrincipleQuality, RunReport
from constitutional.stages.report.verdicts import verdicts
from constitutional.stages.summaries import CalibrationBin, Histogram, RewardQuality, Share
from tests.stages.report.made_up import (
    PEAKED,
    SUMMARIES_MADE_UP,
    change,
    changed,
    empty_run,
    full_run,
    run_with,
    score,
    summary_of,
)


def todo(run: RunReport) -> list[str]:
    return list(actions(run, verdicts(run)))


def labelled(*principles: PrincipleQuality) -> RunReport:
    return empty_run().model_copy(update={"labeler": LabelerQuality(principles=principles)})


def judged(name: str, accuracy: Share | None, **counts: object) -> PrincipleQuality:
    return PrincipleQuality.model_validate(
        {"principle": name, "text": "", "weight": 1, "accuracy": accuracy and accuracy.model_dump(), **counts}
    )


# Actions.


def test_a_run_in_which_nothing_is_amiss_asks_for_nothing() -> None:
    run = labelled(judged("p", Share.of(19, 20), judged=100, unreadable=5)).model_copy(
        update={"summaries": SUMMARIES_MADE_UP}
    )
    assert todo(run) == []
    assert list(cautions(run)) == []


def test_a_principle_that_is_taken_for_another_is_the_first_thing_to_mend() -> None:
    run = run_with(
        summary_of("evaluate", misunderstood=["brief: It asks for long replies. Its tags say: verbosity, avoid."]),
        summary_of("mix", decided=9, comparisons=120),
    )
    first, second, *_ = todo(run)
    assert "“brief”" in first
    assert "constitution file" in first
    assert "It asks for long replies." in first
    assert "9 of 120" in second


@pytest.mark.parametrize(
    ("counts", "numbers"),
    [
        ({"rated": 0, "unrated": 32, "judgements": 0, "unreadable": 0}, "32 of 32 responses"),
        ({"judgements": 40, "unreadable": 30}, "30 of 40 judgements"),
    ],
)
def test_where_the_labeler_could_not_be_read_that_comes_first_and_is_not_put_on_too_few_prompts(
    counts: dict[str, object], numbers: str
) -> None:
    problem = "the reply was cut off at 256 tokens (30 of 30); type label.max_tokens=512"
    run = run_with(
        summary_of("label", problem=problem, **counts),
        summary_of("mix", decided=0, held_out=0),
        summary_of("evaluate", misunderstood=["brief: It asks for long replies."]),
    )
    first, *others = todo(run)
    assert numbers in first
    assert problem in first
    assert not any("mix." in action or "prompts.train" in action for action in others)


def test_a_doubtful_meaning_is_named_with_its_probability_and_once() -> None:
    run = run_with(summary_of("evaluate", misunderstood=["brief: It asks for long replies."])).model_copy(
        update={
            "understood": (
                PrincipleMeaning(
                    words="", principle="brief", meaning="seek verbosity", probability=0.94, warnings=("Tags differ.",)
                ),
                PrincipleMeaning(words="", principle="calm", meaning="avoid anger", probability=0.9),
                PrincipleMeaning(
                    words="", principle="kind", meaning="seek kindness", probability=0.4, warnings=("unsure",)
                ),
            )
        }
    )
    brief, kind = todo(run)
    assert "“brief”" in brief
    assert "“seek verbosity” (94%). Tags differ." in brief
    assert "“kind”" in kind


@pytest.mark.parametrize(
    ("stage", "changes", "setting", "numbers"),
    [
        ("sft", {"nothing_revised": True}, "critic.path", ""),
        ("mix", {"decided": 449}, "prompts.train", "449 of 900"),
        ("mix", {"held_out": 9}, "mix.held_out_share", "n = 9"),
        ("labeler_check", {"left_out_principles": ["calm"]}, "labeler.path", "“calm”"),
        ("sample_pairs", {"cut_off_responses": 40}, "sample_pairs.max_tokens", "40 responses to 50 prompts"),
        ("critique_revise", {"cut_off_drafts": 3}, "critique_revise.draft_max_tokens", "3 of 40"),
        ("ppo", {"last": {"truncated": 0.25, "reward": 0, "kl": 0, "length": 9}}, "algorithm.max_tokens", "25%"),
        ("evaluate", {"guessed": ["plain: It asks for flattery."]}, "tags", "plain: It asks for flattery."),
        ("evaluate", {"prompts": 12}, "prompts.held_out", "12 prompts"),
    ],
)
def test_what_is_amiss_is_an_action_that_names_the_setting_or_file(
    stage: str, changes: dict[str, object], setting: str, numbers: str
) -> None:
    (action,) = todo(run_with(summary_of(stage, **changes)))
    assert setting in action
    assert numbers in action


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("mix", {"decided": 450, "held_out": 10}),
        ("sample_pairs", {"cut_off_responses": 2}),  # of 50 prompts, 4%
        ("critique_revise", {"cut_off_drafts": 2}),  # 5% are not more than 5%
        ("ppo", {"last": None}),
        ("ppo", {"last": {"truncated": None, "reward": None, "kl": None, "length": None}}),
        ("evaluate", {"prompts": 50}),
    ],
)
def test_what_is_not_amiss_is_no_action(stage: str, changes: dict[str, object]) -> None:
    assert todo(run_with(summary_of(stage, **changes))) == []


def test_a_principle_that_got_hardly_any_labels_is_named_with_how_many() -> None:
    enough, torn = Share.of(19, 20), Share.of(4, 13)
    run = labelled(
        judged("calm", enough, judged=70),
        judged("rare", enough, judged=12, unreadable=1, conflicts=torn and torn.model_dump()),  # 12 − 1 − 4 = 7
        judged("never", enough, judged=0),
        judged("distrusted", enough, judged=0),
    )
    few = summary_of("labeler_check", left_out_principles=["distrusted"])
    run = run.model_copy(update={"summaries": {**SUMMARIES_MADE_UP, "labeler_check": few}})
    found = [action for action in todo(run) if "prompts to which" in action]
    (action,) = found
    assert "to which “rare” (7), “never” (0) matters, or a higher weight (constitution.weights.rare)" in action
    assert "of 77 labels, so few are by it" in action
    unread = {**run.summaries, "label": summary_of("label", problem="no answer")}
    assert not any("prompts to which" in action for action in todo(run.model_copy(update={"summaries": unread})))


@pytest.mark.parametrize(("shares", "amiss"), [([0.2, 0.6], False), ([0.6, 0.75], True), ([0.9] + [0.5] * 5, True)])
def test_prompts_that_taught_nothing_to_the_end_are_an_action(shares: list[float], amiss: bool) -> None:
    line = tuple((float(step), share) for step, share in enumerate(shares))
    curve = Curve(stage="grpo", metric="frac_reward_zero_std", lines={"training": line})
    actions = todo(run_with().model_copy(update={"curves": (curve,)}))
    assert len(actions) == amiss
    assert all("num_generations" in action and f"{shares[-1]:.0%}" in action for action in actions)


def test_examples_are_asked_for_where_fewer_than_ten_could_be_read() -> None:
    run = labelled(*(judged(name, Share.of(n, n)) for name, n in {"calm": 9, "brief": 10, "none": 0}.items()))
    (action,) = todo(run)
    assert "“calm” (n = 9), “none” (n = 0) in the constitution file" in action
    assert "brief" not in action


@pytest.mark.parametrize(
    ("right", "n", "near"), [(5, 10, True), (6, 10, False), (2, 4, True), (3, 4, False), (0, 3, False)]
)
def test_a_labeler_near_chance_is_named_from_four_examples_on(right: int, n: int, near: bool) -> None:
    listed = [action for action in todo(labelled(judged("p", Share.of(right, n)))) if "near chance" in action]
    assert len(listed) == near
    assert all(f"{right} of {n}" in action for action in listed)


@pytest.mark.parametrize(
    ("conflicts", "ties", "why"),
    [
        # of 55 + 45 = 100 judgements that can be read, by two principles
        ((30, 20), (0, 0), None),  # half of them is not more than half
        ((30, 21), (6, 20), "hardly has a preference"),
        ((30, 21), (5, 20), "prefers a place"),
    ],
)
def test_orders_in_conflict_ask_for_another_labeler_and_ties_are_told_apart(
    conflicts: tuple[int, int], ties: tuple[int, int], why: str | None
) -> None:
    good = Share.of(20, 20)
    run = labelled(
        judged("p", good, judged=60, conflicts=Share.of(conflicts[0], 55), ties=ties[0]),
        judged("q", good, judged=50, conflicts=Share.of(conflicts[1], 45), ties=ties[1]),
    )
    listed = todo(run)
    assert len(listed) == (why is not None)
    assert all(f"{sum(conflicts)} of 100" in action and str(why) in action for action in listed)
    few = labelled(judged("p", good, judged=9, conflicts=Share.of(9, 9)))
    assert todo(few) == []


def test_over_optimisation_over_refusal_and_nonsense_name_what_to_change() -> None:
    base, policy = score("base", "over_refusal", 0.01, n=69), score("policy", "over_refusal", 0.11, n=69)
    worse = changed(policy, base=change(0.1, 0.01, 0.18, 69))
    refusing = empty_run().model_copy(update={"scores": (base, worse), "wanted": {"over_refusal": "lower"}})
    (action,) = todo(refusing)
    assert "over-refusal" in action
    online = run_with(summary_of("ppo"), gold=PEAKED)
    assert "algorithm.kl_coef" in todo(online)[0]
    assert "algorithm.beta" in todo(empty_run().model_copy(update={"gold": PEAKED}))[0]


# Cautions.


def test_the_labeler_that_judges_what_it_taught_is_a_reason_for_doubt() -> None:
    run = full_run()
    assert sum("judges the win rates" in caution for caution in cautions(run)) == 1
    by_people = run.model_copy(update={"sources": {"human, train": 240, "ai, held out": 30}})
    others = tuple(row for row in run.scores if row.measure != "win_rate/base")
    for other in (by_people, run.model_copy(update={"scores": others})):
        assert not any("judges the win rates" in caution for caution in cautions(other))


def test_too_few_helpful_samples_are_a_reason_for_doubt() -> None:
    # 6 are missing and 4 are there, of 10.
    (caution,) = cautions(run_with(summary_of("sft", helpful_missing=6)))
    assert "4 of the 10" in caution
    assert list(cautions(run_with(summary_of("sft")))) == []


@pytest.mark.parametrize(("weak", "doubted"), [(100, False), (101, True)])  # of 200 and of 201
def test_targets_near_a_half_are_a_reason_for_doubt_if_most_are(weak: int, doubted: bool) -> None:
    targets = Histogram(edges=(0.5, 0.55, 0.6, 1.0), counts=(weak, 90, 10))
    listed = list(cautions(empty_run().model_copy(update={"targets": targets})))
    assert [f"{weak} of {weak + 100}" in caution for caution in listed] == [True] * doubted


def test_a_labeler_that_favours_a_position_or_cannot_be_read_is_a_reason_for_doubt() -> None:
    # 400 of 556 is 72% for the first; 22 of 300 is 7%, over 5%.
    position, unreadable = cautions(full_run().model_copy(update={"sources": {}}))
    assert "72%" in position
    assert "n = 556" in position
    assert "22 of 300" in unreadable
    fair = judged("p", None, judged=100, unreadable=5, first=Share.of(52, 100))
    few = judged("q", None, judged=9, unreadable=9, first=Share.of(9, 9))
    assert list(cautions(labelled(fair, few))) == []


def rewarded(reward: RewardQuality) -> list[str]:
    return list(cautions(empty_run().model_copy(update={"reward": reward})))


def accurate(**shares: Share | None) -> RewardQuality:
    return RewardQuality(accuracy={name: share for name, share in shares.items() if share})


def test_an_accuracy_that_may_be_chance_or_is_hardly_known_is_a_reason_for_doubt() -> None:
    (chance,) = rewarded(accurate(human=Share.of(33, 60)))
    assert "chance" in chance
    assert "33 of 60" in chance
    # Wilson's interval of 12 of 16 is 50.5% to 89.8%, 39 points wide; that of 75 of 100 is 65.7% to 82.5%.
    (unknown,) = rewarded(accurate(ai=Share.of(12, 16)))
    assert "12 of 16 right, 51% to 90%" in unknown
    assert rewarded(accurate(ai=Share.of(75, 100))) == []
    assert rewarded(accurate(ai=Share.of(2, 9))) == []  # too few to tell


def test_a_reward_model_with_one_source_is_doubted_once() -> None:
    assert len(rewarded(accurate(all=Share.of(5, 10), ai=Share.of(5, 10)))) == 1
    assert len(rewarded(accurate(all=Share.of(10, 20), ai=Share.of(5, 10), human=Share.of(5, 10)))) == 3


@pytest.mark.parametrize(
    ("error", "length", "n", "words"),
    [
        (0.1, 0.5, 5, []),
        (0.11, None, 5, ["calibrated", "11%", "from 10"]),
        (None, -0.792, 5, ["length", "−0.792"]),
        (0.358, -0.898, 4, []),  # from 9 preferences
    ],
)
def test_a_bad_calibration_and_a_score_that_follows_length_are_findings_from_ten_preferences_on(
    error: float | None, length: float | None, n: int, words: list[str]
) -> None:
    bins = (CalibrationBin(predicted=0.6, observed=0.9, n=n), CalibrationBin(predicted=0.9, observed=1, n=5))
    listed = rewarded(RewardQuality(accuracy={}, calibration=bins, calibration_error=error, length_correlation=length))
    assert len(listed) == bool(words)
    assert all(word in caution for caution in listed for word in words)
