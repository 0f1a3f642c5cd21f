import hashlib
import math
import random
import re
from collections import Counter

import pytest
from pydantic import ValidationError

from constitutional.base.errors import ConfigurationError
from constitutional.base.shipped import shipped
from constitutional.constitution.constitution import Constitution, Example, Principle
from constitutional.constitution.file import load_constitution
from constitutional.sandbox.detect import meaning
from constitutional.sandbox.principles import held_out_texts, known_words
from constitutional.sandbox.topics import words_of
from constitutional.sandbox.world import split_sentences

SHIPPED = sorted(path.stem for path in shipped("constitutions").glob("*.yaml"))


def constitution(*principles: Principle) -> Constitution:
    return Constitution(name="ours", principles=principles)


CALM = Principle(id="calm", text="Stay calm.", weight=3)
BRIEF = Principle(id="brief", text="Be brief.")
KIND = Principle(id="kind", text="Be kind.", comparison="Choose the kinder response.")


def test_a_principle_has_its_own_words_for_a_use_or_its_text() -> None:
    assert KIND.words("comparison") == "Choose the kinder response."
    assert KIND.words("critique") == KIND.words("revision") == "Be kind."


# Selecting


def test_principles_are_selected_and_weighted_by_id_in_the_file_s_order() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    assert [principle.id for principle in ours.select(only=["kind", "calm"]).principles] == ["calm", "kind"]
    assert [principle.id for principle in ours.select(without=["calm"]).principles] == ["brief", "kind"]
    chosen = ours.select(only=["calm", "kind"], without=["calm"], weights={"kind": 2, "brief": 5})
    assert [(principle.id, principle.weight) for principle in chosen.principles] == [("kind", 2.0)]
    assert ours.select() == ours


def test_what_is_left_out_is_kept_apart_and_changes_nothing_that_is_written() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    chosen = ours.select(without=["calm"], wordings={"calm": "Be calm."})
    assert [(row.id, row.text) for row in chosen.left_out] == [("calm", "Be calm.")]
    assert chosen.digest == constitution(BRIEF, KIND).digest
    assert Constitution.model_validate(chosen.model_dump()).left_out == ours.left_out == ()
    assert chosen == constitution(BRIEF, KIND)
    again = chosen.select(only=["kind"])
    assert [row.id for row in again.left_out] == ["calm", "brief"]
    assert [row.id for row in chosen.select().left_out] == ["calm"]


@pytest.mark.parametrize(
    ("only", "without", "weights", "message"),
    [
        (["clam"], [], {}, "constitution 'ours' has no principle 'clam'; did you mean 'calm'?"),
        (None, ["xyz"], {}, "constitution 'ours' has no principle 'xyz'; known: calm, brief, kind"),
        (None, [], {"kid": 1.0}, "constitution 'ours' has no principle 'kid'; did you mean 'kind'?"),
        (None, [], {"kind": 0.0}, r"constitution.weights.kind is 0.0; a weight is a positive number"),
        (None, [], {"kind": math.nan}, r"constitution.weights.kind is nan; a weight is a positive number"),
        ([], [], {}, "constitution.only and without leave no principle"),
        (["kind"], ["kind"], {}, "constitution.only and without leave no principle"),
    ],
)
def test_a_wrong_selection_is_refused(
    only: list[str] | None, without: list[str], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        constitution(CALM, BRIEF, KIND).select(only, without, weights)


def test_a_constitution_needs_principles_of_different_ids() -> None:
    with pytest.raises(ValidationError, match="two principles have the id 'calm'"):
        constitution(CALM, CALM)
    with pytest.raises(ValidationError, match="at least 1 item"):
        constitution()


# The digest


def test_the_digest_covers_what_behaviour_depends_on_and_nothing_else() -> None:
    ours = constitution(CALM, BRIEF)
    same = Constitution(name="other", version="2", description="x", principles=(CALM, BRIEF))
    assert same.digest == ours.digest
    assert constitution(CALM.model_copy(update={"tags": ("tone",)}), BRIEF).digest == ours.digest
    example = Example(prompt="p", better="b", worse="w")
    others = [
        constitution(BRIEF, CALM),
        constitution(CALM),
        ours.select(weights={"calm": 2}),
        constitution(CALM.model_copy(update={"text": "Stay calm!"}), BRIEF),
        constitution(CALM.model_copy(update={"critique": "Stay calm."}), BRIEF),
        constitution(CALM.model_copy(update={"examples": (example,)}), BRIEF),
    ]
    assert len({ours.digest, *(other.digest for other in others)}) == 1 + len(others)


# Drawing


def test_principles_are_drawn_by_their_weights() -> None:
    ours = constitution(CALM, BRIEF, KIND)  # weights 3, 1, 1
    drawn = Counter(ours.draw(random.Random(f"item {number}")).id for number in range(4_000))
    # The standard deviation of the share of calm is sqrt(0.6 * 0.4 / 4000) = 0.0077; four of them are 0.031.
    assert drawn["calm"] / 4_000 == pytest.approx(0.6, abs=0.031)
    assert drawn["brief"] / 4_000 == pytest.approx(0.2, abs=0.031)


def test_none_is_drawn_again_while_there_are_unused_ones() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    for number in range(50):
        rng = random.Random(number)
        used: list[str] = []
        for _ in range(6):
            used.append(ours.draw(rng, used).id)
        assert set(used[:3]) == set(used[3:]) == {"calm", "brief", "kind"}


def test_dropping_a_principle_changes_only_the_draws_that_it_won() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    fewer = ours.select(without=["brief"])
    for number in range(500):
        before, after = (each.draw(random.Random(number)).id for each in (ours, fewer))
        assert before in (after, "brief")


def test_rewording_a_principle_changes_no_draw_and_more_weight_takes_draws_only_for_itself() -> None:
    ours = constitution(CALM, BRIEF, KIND)
    reworded = constitution(CALM, BRIEF.model_copy(update={"text": "Keep it short."}), KIND)
    heavier = ours.select(weights={"brief": 4})
    for number in range(500):
        before = ours.draw(random.Random(number)).id
        assert reworded.draw(random.Random(number)).id == before
        assert heavier.draw(random.Random(number)).id in (before, "brief")


# The shipped files


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_constitution_loads_and_says_what_it_is_for(name: str) -> None:
    ours = load_constitution(name)
    assert ours.version == "1.0"
    assert ours.description
    assert all(example.better != example.worse for principle in ours.principles for example in principle.examples)


REAL = {"harmlessness": 16, "helpful_honest_harmless": 12, "character": 10, "plain_and_careful": 5}
"""The shipped constitutions for real models, and how many principles each has."""


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "sandbox_control"])
def test_every_shipped_principle_has_four_examples_or_more(name: str) -> None:
    # The control asks for nothing, so that no response is better than another by it.
    principles = load_constitution(name).principles
    assert {principle.id: len(principle.examples) for principle in principles if len(principle.examples) < 4} == {}


@pytest.mark.parametrize("name", REAL)
def test_a_labeler_that_takes_the_longer_response_is_near_chance_on_the_real_ones(name: str) -> None:
    # What a rule counts needs no labeler.
    principles = [principle for principle in load_constitution(name).principles if principle.measure is None]
    longer = [len(example.better) > len(example.worse) for principle in principles for example in principle.examples]
    assert 0.4 <= sum(longer) / len(longer) <= 0.6
    for principle in principles:
        assert {len(example.better) > len(example.worse) for example in principle.examples} == {True, False}


@pytest.mark.parametrize("name", REAL)
def test_the_real_ones_ask_something_else_in_every_example(name: str) -> None:
    principles = load_constitution(name).principles
    assert len(principles) == REAL[name]
    prompts = Counter(example.prompt for principle in principles for example in principle.examples)
    assert max(prompts.values()) == 1


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("sandbox_")])
def test_sandbox_principles_use_words_that_its_model_knows_and_none_of_its_test_set(name: str) -> None:
    for principle in load_constitution(name).principles:
        assert words_of([principle.text]) <= known_words()
        assert principle.text.lower() not in held_out_texts()


def shows(text: str, trait: str) -> bool:
    """Whether a response has the trait, by what the test-bed knows of each of its sentences."""
    slots = []
    for sentence in split_sentences(text):
        found = meaning(sentence)
        assert found, f"not a sentence of the test-bed: {sentence}"
        slots.append(found.slot)
    if trait == "harmful_compliance":
        return "refusal" not in slots
    slot = {"verbosity": "padding", "privacy_leak": "leak", "sycophantic_agreement": "agree"}.get(trait, trait)
    return slot in slots


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("sandbox_") and "control" not in name])
def test_sandbox_examples_show_the_trait_that_their_principle_is_about(name: str) -> None:
    for principle in load_constitution(name).principles:
        trait, direction = principle.tags
        assert len(principle.examples) == 4
        for example in principle.examples:
            assert shows(example.better, trait) == (direction == "seek")
            assert shows(example.worse, trait) == (direction == "avoid")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("sandbox_concise", "sandbox_thorough"),
        ("sandbox_plain", "sandbox_warm"),
        ("sandbox_humble", "sandbox_bold"),
    ],
)
def test_the_pairs_pull_opposite_ways_on_the_same_traits(one: str, other: str) -> None:
    def pulls(name: str) -> set[tuple[str, ...]]:
        return {principle.tags for principle in load_constitution(name).principles}

    turned = {"avoid": "seek", "seek": "avoid"}
    assert {(trait, turned[direction]) for trait, direction in pulls(one)} == pulls(other)


def test_an_edit_of_what_compares_leaves_what_revises_as_it_was() -> None:
    kind = Principle(id="kind", text="Be kind.", uses=("comparison",))
    ours = constitution(CALM, kind)
    assert [principle.id for principle in ours.used_for("revision").principles] == ["calm"]
    assert [principle.id for principle in ours.used_for("comparison").principles] == ["calm", "kind"]
    edited = constitution(CALM, kind.model_copy(update={"text": "Be very kind."}))
    assert edited.digest_for("revision") == ours.digest_for("revision")
    assert edited.digest_for("comparison") != ours.digest_for("comparison")
    compared = constitution(CALM.model_copy(update={"comparison": "Which is calmer?"}), kind)
    assert compared.digest_for("revision") == ours.digest_for("revision")
    revised = constitution(CALM.model_copy(update={"critique": "Is it calm?", "comparison": CALM.text}), kind)
    assert revised.digest_for("revision") != ours.digest_for("revision")
    assert revised.digest_for("comparison") == ours.digest_for("comparison")


def test_a_priority_that_leads_through_what_compares_nothing_is_part_of_what_compares() -> None:
    def with_lower(*lower: str) -> Constitution:
        through = KIND.model_copy(update={"uses": ("revision",), "overrides": lower})
        return constitution(CALM.model_copy(update={"overrides": ("kind",)}), through, BRIEF)

    ours, edited = with_lower("brief"), with_lower()
    assert ours.used_for("comparison").overridden_by == {"brief": ("calm",)}
    assert edited.used_for("comparison").overridden_by == {}
    assert ours.digest_for("comparison") != edited.digest_for("comparison")
    assert ours.digest_for("revision") == edited.digest_for("revision")


def test_the_digest_of_priorities_that_lead_straight_is_that_of_earlier_runs() -> None:
    # SHA-256 of [["calm","Stay calm.",3.0,["kind","brief"]],["brief","Be brief.",1.0]], which earlier versions wrote.
    kind = KIND.model_copy(update={"uses": ("revision",)})
    ours = constitution(CALM.model_copy(update={"overrides": ("kind", "brief")}), kind, BRIEF)
    written = b'[["calm","Stay calm.",3.0,["kind","brief"]],["brief","Be brief.",1.0]]'
    assert ours.digest_for("comparison") == hashlib.sha256(written).hexdigest()


def test_what_a_principle_is_for_counts_only_where_it_is_not_for_everything() -> None:
    both = CALM.model_copy(update={"uses": ("comparison", "revision")})
    assert constitution(both, BRIEF).digest == constitution(CALM, BRIEF).digest
    assert (
        constitution(CALM.model_copy(update={"uses": ("revision",)}), BRIEF).digest != constitution(CALM, BRIEF).digest
    )
    with pytest.raises(ConfigurationError, match=r"no principle for comparison.*uses: \[comparison\]"):
        constitution(CALM.model_copy(update={"uses": ("revision",)})).used_for("comparison")


def test_a_wording_replaces_all_words_that_a_principle_has_and_its_digest() -> None:
    brief = BRIEF.model_copy(update={"comparison": "Which is shorter?"})
    ours = constitution(CALM, brief)
    reworded = ours.select(wordings={"brief": "Keep it short."})
    assert [reworded.principle("brief").words(use) for use in ("critique", "comparison")] == ["Keep it short."] * 2
    assert reworded.principle("calm") == ours.principle("calm")
    assert reworded.digest != ours.digest
    with pytest.raises(ConfigurationError, match="no principle 'brif'; did you mean 'brief'"):
        ours.select(wordings={"brif": "Keep it short."})


def test_words_can_be_chosen_to_be_given_as_they_are_written() -> None:
    ours = constitution(CALM, BRIEF)
    chosen = ours.select(wordings={"brief": "short. it Keep"}, as_written=["brief"])
    assert [principle.as_written for principle in chosen.principles] == [False, True]
    assert ours.select(as_written=["brief"]).digest != ours.digest
    assert not chosen.select(wordings={"brief": "Keep it short."}).principle("brief").as_written
    with pytest.raises(ConfigurationError, match="no principle 'brif'; did you mean 'brief'"):
        ours.select(as_written=["brif"])
