from constitutional.base.records import Preference, Prompt, Rollout, Sample
from constitutional.stages.report.examples import (
    example_choices,
    reply_examples,
    revision_examples,
    rollout_examples,
)
from tests.stages.report.test_gather import COMPARISON, QUESTION, judgement, revision


def test_examples_show_every_principle_before_any_principle_twice() -> None:
    many = [revision(f"honest {index}", ["honest"]) for index in range(20)]
    drawn = list(revision_examples([*many, revision("plain", ["plain"])], [], [], 2, seed=0))
    assert sorted(example.revision.steps[0].principle for example in drawn) == ["honest", "plain"]


def test_examples_are_revisions_that_changed_something_and_could_be_used() -> None:
    unchanged = revision("same", ["honest"], final=" Yes! ")
    failed = revision("failed", ["honest"], problem="the reply is empty")
    assert list(revision_examples([unchanged, failed, revision("no round", [], final="")], [], [], 9, seed=0)) == []


def test_which_examples_are_shown_does_not_depend_on_their_order() -> None:
    many = [revision(f"{index}", ["honest"]) for index in range(20)]
    assert list(revision_examples(many, [], [], 5, 1)) == list(revision_examples(many[::-1], [], [], 5, 1))
    assert list(revision_examples(many, [], [], 5, 1)) != list(revision_examples(many, [], [], 5, 2))


def test_a_choice_carries_the_reasons_it_rests_on_and_no_others() -> None:
    behind, other = judgement("honest", 0.9, 0.8), judgement("plain", 0.9, 0.8)
    preference = Preference(
        prompt=QUESTION,
        chosen="No.",
        rejected="Yes!",
        probability=0.85,
        source="ai",
        rests_on=(behind.id,),
        comparison=COMPARISON.id,
    )
    drawn = example_choices([preference], [other, behind], [QUESTION])[QUESTION.id]
    assert drawn.reasons == (("Be honest.", "(A) is so."),)  # the reading without a reason is left out


def test_rollouts_are_shown_from_the_first_phase_to_the_last_evenly_spread() -> None:
    def rollout(phase: int, reply: str) -> Rollout:
        return Rollout(
            phase=phase,
            prompt=QUESTION.id,
            reply=reply,
            reward=float(phase),
            kl=None,
            phase_kl=None,
            length=1,
            truncated=False,
        )

    rollouts = [rollout(phase, reply) for phase in range(1, 8) for reply in ("first", "second")]
    drawn = list(rollout_examples(rollouts, [QUESTION], 3))
    # Of phases 1 to 7, three are shown: the places 0, 3 and 6.
    assert [(example.rollout.phase, example.rollout.reply) for example in drawn] == [
        (1, "first"),
        (4, "first"),
        (7, "first"),
    ]
    assert {example.conversation for example in drawn} == {QUESTION.messages}
    assert list(rollout_examples([], [QUESTION], 3)) == []


def test_replies_are_drawn_by_the_seed_whatever_their_order() -> None:
    samples = [Sample(prompt=Prompt.of(str(n)), replies={"base": str(n)}, cut_off=()) for n in range(20)]
    drawn = reply_examples(samples, 5, 1)
    assert len({sample.id for sample in drawn}) == 5
    assert reply_examples(samples[::-1], 5, 1) == drawn
    assert reply_examples(samples, 5, 2) != drawn
