import random
from collections import Counter
from typing import Any

import pytest

from constitutional.base.records import Message
from constitutional.sandbox import topics as topics_module
from constitutional.sandbox.topics import KINDS, Kind, Topic, compose_topic, strange_topic, topics
from constitutional.sandbox.world import (
    BASE_RATES,
    Sentence,
    WorldPrompt,
    base_traits,
    compose,
    draw_prompt,
    fill_frame,
    split_sentences,
    text_of,
    traits_of,
)

Fill = tuple[tuple[str, str], ...]
BREAD = WorldPrompt(Topic("howto", (("x", "bake bread"),)), (Message("user", "How do I bake bread?"),))


def test_there_are_at_least_a_hundred_topics_and_held_out_ones_of_every_kind() -> None:
    seen = {kind: len(topics(kind, held_out=False)) for kind in KINDS if kind != "private"}
    assert sum(seen.values()) >= 100
    assert all(topics(kind, held_out=True) for kind in KINDS)


def test_no_held_out_topic_is_seen_in_training() -> None:
    rng = random.Random(3)
    for kind in KINDS:
        held_out = {topic.fill for topic in topics(kind, held_out=True)}
        assert not held_out & {topic.fill for topic in topics(kind, held_out=False)}
        composed = {topic.fill for topic in (compose_topic(kind, rng) for _ in range(300)) if topic}
        assert not held_out & composed
        assert not held_out & {strange_topic(kind, rng).fill for _ in range(300)}


COMPOSABLE: dict[str, Any] = {
    "compose": {"verbs": ["bake"], "objects": ["bread", "cake"]},
    "harm_compose": {"verbs": ["steal"], "objects": ["a car", "a bicycle"]},
    "compose_nouns": ["bats", "owls"],
    "compose_predicates": ["are blind"],
}
"""Parts of which two topics of each kind can be composed."""


@pytest.mark.parametrize(
    ("kind", "held_out", "left"),
    [
        ("howto", (("x", "bake cake"),), (("x", "bake bread"),)),
        ("harmful", (("x", "steal a car"),), (("x", "steal a bicycle"),)),
        ("factual", (("x", "owls"),), (("x", "bats"),)),
        ("opinion", (("a", "owls"), ("b", "bats")), (("a", "bats"), ("b", "owls"))),
        ("claim", (("claim", "owls are blind"),), (("claim", "bats are blind"),)),
    ],
)
def test_a_held_out_topic_that_could_be_drawn_is_not(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, held_out: Fill, left: Fill
) -> None:
    # The shipped parts compose to no held-out topic, so these do; without the guard both are drawn.
    def drawn() -> set[Fill]:
        rng = random.Random(9)
        composed = {topic.fill for topic in (compose_topic(kind, rng) for _ in range(60)) if topic}
        return composed | {strange_topic(kind, rng).fill for _ in range(60)}

    def strange_fill(_kind: Kind, rng: random.Random) -> Fill:
        return rng.choice((held_out, left))

    monkeypatch.setattr(topics_module, "load_text", lambda _name: COMPOSABLE)
    monkeypatch.setattr(topics_module, "_strange_fill", strange_fill)
    monkeypatch.setattr(topics_module, "_held_out_fills", frozenset[Fill])
    assert drawn() == {held_out, left}
    monkeypatch.setattr(topics_module, "_held_out_fills", lambda: frozenset({held_out}))
    assert drawn() == {left}


def test_two_halves_of_names_never_make_a_held_out_one() -> None:
    rng = random.Random(10)
    names = ("Tomara", "Tomas", "Zara", "Barbara", "Samara")  # the first fifth is held out: Tom(as) and (Sam)ara
    drawn = {topics_module._strange_name(rng, names) for _ in range(4000)}
    assert "Tomara" not in drawn
    assert {"Tomas", "Toara", "Tomamara"} <= drawn


def test_words_that_only_a_held_out_topic_holds_are_never_seen_in_training() -> None:
    rng = random.Random(4)
    kinds: tuple[Kind, ...] = ("factual", "opinion", "howto")
    drawn = [strange_topic(kind, rng) for kind in kinds for _ in range(8000)]
    seen = {word for topic in drawn for _, text in topic.fill for word in text.split()}
    assert "bread" in seen
    assert not seen & {"violins", "cathedrals", "jellyfish", "orchid", "mussels"}


def test_prompts_are_of_every_kind_and_one_in_six_has_two_turns() -> None:
    rng = random.Random(5)
    prompts = [draw_prompt(rng) for _ in range(3000)]
    kinds = Counter(prompt.topic.kind for prompt in prompts)
    assert set(kinds) == set(KINDS)
    two_turns = sum(len(prompt.messages) == 3 for prompt in prompts) / 3000
    assert 1 / 6 - 0.03 < two_turns < 1 / 6 + 0.03
    assert all(prompt.messages[-1].role == "user" for prompt in prompts)


def test_the_base_assistant_shows_each_trait_as_often_as_its_rate_says() -> None:
    rng = random.Random(6)
    drawn = [base_traits(rng, BREAD) for _ in range(4000)]
    for trait, rate in BASE_RATES.items():
        if trait != "sycophantic_agreement":  # no claim was made, so there is nothing to agree with
            share = sum(traits[trait] for traits in drawn) / 4000
            assert abs(share - rate) < 0.03, trait  # about four standard errors
    assert not any(traits["sycophantic_agreement"] for traits in drawn)


def test_a_revision_keeps_every_sentence_that_it_need_not_change() -> None:
    rng = random.Random(7)
    response = (
        Sentence("opening", "Here is a plain answer."),
        Sentence("flattery", "What a brilliant question you have asked!"),
        Sentence("content", "To bake bread, set aside about one hour."),
        Sentence("closing", "That is all for this answer."),
    )
    wanted = {**traits_of(BREAD, response), "flattery": False, "hedging": True}
    revised = compose(rng, BREAD, wanted, keep=response)
    assert [sentence for sentence in revised if sentence.slot != "hedging"] == [response[0], response[2], response[3]]
    assert traits_of(BREAD, revised) == wanted


def test_a_refusal_of_a_harmful_request_has_none_of_the_steps() -> None:
    prompt = WorldPrompt(Topic("harmful", (("x", "rob a bank"),)), (Message("user", "How do I rob a bank?"),))
    traits = dict.fromkeys(traits_of(prompt, ()), False)
    complies = compose(random.Random(1), prompt, {**traits, "harmful_compliance": True})
    refuses = compose(random.Random(1), prompt, {**traits, "refusal": True}, keep=complies)
    assert traits_of(prompt, complies)["harmful_compliance"]
    assert not traits_of(prompt, refuses)["harmful_compliance"]
    assert not {s.text for s in complies if s.slot == "content"} & {s.text for s in refuses}


def test_frames_are_filled_and_begin_with_a_capital() -> None:
    assert fill_frame("{claim}, as they say.", {"claim": "bats are blind"}) == "Bats are blind, as they say."


def test_texts_split_into_the_sentences_they_were_made_of() -> None:
    rng = random.Random(8)
    for _ in range(500):
        prompt = draw_prompt(rng)
        response = compose(rng, prompt, base_traits(rng, prompt))
        assert split_sentences(text_of(response)) == [sentence.text for sentence in response]
