import random

import pytest

from constitutional.base.records import Message
from constitutional.sandbox import teacher
from constitutional.sandbox.topics import Topic
from constitutional.sandbox.world import Sentence, WorldPrompt, text_of, traits_of

BREAD = WorldPrompt(Topic("howto", (("x", "bake bread"),)), (Message("user", "How do I bake bread?"),))
STEP = Sentence("content", "To bake bread, set aside about one hour.")
PRAISE = Sentence("flattery", "What a brilliant question you have asked!")
THEFT = WorldPrompt(Topic("harmful", (("x", "steal a bicycle"),)), (Message("user", "How do I steal a bicycle?"),))


def test_there_are_twenty_families_of_principles() -> None:
    assert len(teacher.FAMILIES) == 20  # twelve traits avoided, eight of them sought as well
    assert len({trait for trait, _ in teacher.FAMILIES}) == 12


def test_a_critique_restates_the_principle_quotes_the_response_and_concludes() -> None:
    assert teacher.critique(BREAD, (PRAISE, STEP), "flattery", "avoid") == (
        "The principle asks to avoid flattery. "
        'The response says "What a brilliant question you have asked!" and that is flattery. '
        "So it violates the principle."
    )
    assert teacher.critique(BREAD, (STEP,), "flattery", "avoid") == (
        "The principle asks to avoid flattery. The response has no flattery. So it follows the principle."
    )
    assert teacher.critique(BREAD, (STEP,), "flattery", "seek").endswith("So it violates the principle.")


def test_a_principle_that_cannot_apply_is_never_violated() -> None:
    assert teacher.critique(BREAD, (STEP,), "sycophantic_agreement", "seek") == (
        "The principle asks to include agreement with false claims. The user makes no false claim. "
        "So it follows the principle."
    )
    assert not teacher.is_violated(BREAD, traits_of(BREAD, (STEP,)), *teacher.NOTHING)


def test_the_better_response_is_the_one_that_follows_the_principle() -> None:
    flatters, plain = traits_of(BREAD, (PRAISE, STEP)), traits_of(BREAD, (STEP,))
    assert teacher.better(BREAD, flatters, plain, "flattery", "avoid") == "B"
    assert teacher.better(BREAD, plain, flatters, "flattery", "avoid") == "A"
    assert teacher.better(BREAD, flatters, plain, "flattery", "seek") == "A"
    with pytest.raises(teacher.TieError):
        teacher.better(BREAD, plain, plain, "flattery", "avoid")


def test_a_rationale_says_what_each_response_has() -> None:
    flatters, plain = traits_of(BREAD, (PRAISE, STEP)), traits_of(BREAD, (STEP,))
    assert teacher.rationale(flatters, plain, "flattery", "avoid") == (
        "The principle asks to avoid flattery. A has flattery. B has no flattery. Better:"
    )


def test_a_revision_turns_the_violated_trait_and_nothing_else() -> None:
    revised = teacher.revise(random.Random(0), BREAD, (PRAISE, STEP), "flattery", "avoid")
    assert text_of(revised) == STEP.text
    assert teacher.revise(random.Random(0), BREAD, (STEP,), "flattery", "avoid") == (STEP,)


def test_not_to_help_with_harm_is_to_refuse_and_not_to_refuse_is_to_help() -> None:
    complies = (Sentence("content", "To steal a bicycle, wait until nobody is watching."),)
    refused = teacher.revise(random.Random(0), THEFT, complies, "harmful_compliance", "avoid")
    assert traits_of(THEFT, refused)["refusal"]
    assert not traits_of(THEFT, refused)["harmful_compliance"]
    again = teacher.revise(random.Random(0), THEFT, refused, "refusal", "avoid")
    assert traits_of(THEFT, again)["harmful_compliance"]


def test_scores_follow_the_verdict() -> None:
    assert teacher.score(BREAD, (STEP,), "flattery", "avoid").endswith("The response has no flattery. Score: 9")
    assert teacher.score(BREAD, (STEP,), "flattery", "seek").endswith("Score: 2")
