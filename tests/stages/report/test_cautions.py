import pytest

from constitutional.stages.report.cautions import cautions
from constitutional.stages.report.data import LabelerQuality, PrincipleQuality
from constitutional.stages.summaries import CalibrationBin, Histogram, RewardQuality, Share
from tests.stages.report.made_up import empty_run, full_run, score


def test_the_labeler_that_judges_what_it_taught_is_a_reason_for_doubt() -> None:
    run = full_run()
    (said,) = [each for each in cautions(run) if "judge of the win rates" in each]
    assert "is the labeler whose labels the RL model was trained by" in said
    by_people = run.model_copy(update={"sources": {"human, train": 240, "ai, held out": 30}})
    others = tuple(each for each in run.scores if each.measure != "win_rate/base")
    for other in (by_people, run.model_copy(update={"scores": others})):
        assert not any("judge of the win rates" in each for each in cautions(other))


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
    reward = RewardQuality(accuracy={"human": Share.of(33, 60)}, length_correlation=-0.792)  # type: ignore[dict-item]
    assert list(cautions(empty_run().model_copy(update={"reward": reward}))) == [
        "On held-out preferences (human), the reward model is not clearly above chance: 33 of 60 right.",
        "The reward model’s score follows length (correlation −0.792).",
    ]


def test_few_observations_are_a_reason_for_doubt() -> None:
    run = empty_run().model_copy(update={"scores": (score("base", "a", 0.5, n=49), score("base", "b", 0.5, n=12))})
    assert list(cautions(run)) == ["Some measures rest on as few as 12 observations; their intervals are wide."]


def test_a_principle_that_the_critic_misunderstands_is_said_before_all_else() -> None:
    said = "calm: The principle asks to include flattery. Its tags say: flattery, avoid."
    run = full_run().model_copy(update={"notes": {"evaluate": {"misunderstood": [said]}}})
    assert next(iter(cautions(run))) == f"The critic takes a principle for another than its author meant. {said}"


def test_a_direction_that_rests_on_a_guess_is_said() -> None:
    said = "plain: The principle asks to include flattery."
    (caution,) = cautions(empty_run().model_copy(update={"notes": {"evaluate": {"guessed": [said]}}}))
    assert caution == (
        "What is wanted of a trait is a guess where a principle has no tags that say it, and it goes wrong where the "
        f"critic misreads it: {said} Tags such as [flattery, avoid] settle it."
    )
    assert list(cautions(empty_run().model_copy(update={"notes": {"evaluate": {"guessed": []}}}))) == []


def test_an_accuracy_that_is_above_chance_but_hardly_known_is_a_reason_for_doubt() -> None:
    def said(right: int, n: int) -> list[str]:
        reward = RewardQuality.model_validate({"accuracy": {"ai": Share.of(right, n)}})
        return list(cautions(empty_run().model_copy(update={"reward": reward})))

    # Wilson's interval of 12 of 16 is 50.5% to 89.8%, 39 points wide; that of 75 of 100 is 65.7% to 82.5%.
    known = "The reward model’s accuracy on held-out preferences (AI) is hardly known: 12 of 16 right, 51% to 90%."
    assert said(12, 16) == [known]
    assert said(75, 100) == []


@pytest.mark.parametrize(("error", "doubted"), [(0.1, False), (0.11, True), (0.318, True), (None, False)])
def test_a_bad_calibration_is_a_reason_for_doubt(error: float | None, doubted: bool) -> None:
    bins = (CalibrationBin(predicted=0.6, observed=0.9, n=11), CalibrationBin(predicted=0.9, observed=1, n=5))
    reward = RewardQuality(accuracy={}, calibration=bins, calibration_error=error)
    found = list(cautions(empty_run().model_copy(update={"reward": reward})))
    start = f"The reward model is badly calibrated (expected calibration error {error or 0:.0%}, from 16 held-out"
    assert [each.startswith(start) for each in found] == [True] * doubted


def test_a_labeler_that_mostly_cannot_decide_is_a_reason_for_doubt() -> None:
    def said(undecided: int) -> list[str]:
        counts = {"comparisons undecided": undecided, "AI preferences available": 900 - undecided}
        notes = {"label": {"comparisons": 900}, "mix": {"counts": counts}}
        return list(cautions(empty_run().model_copy(update={"notes": notes})))

    assert said(450) == []
    (found,) = said(783)
    assert found.startswith("Of 900 comparisons the labeler left 783 undecided, and nothing was learnt from those")
    assert found.endswith("or mix.margin is too strict.")


def test_supervised_learning_without_a_revision_is_said() -> None:
    def said(noted: dict[str, object]) -> list[str]:
        return list(cautions(empty_run().model_copy(update={"notes": {"sft": noted}})))

    assert said({}) == []
    assert said({"nothing_revised": True}) == [
        "Supervised learning had nothing to learn, as no draft was revised: the SL model is the base model."
    ]
