import random
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from constitutional.sandbox import principles
from constitutional.sandbox.reader import READ
from constitutional.sandbox.teacher import FAMILIES, NOTHING
from constitutional.sandbox.topics import load_text, words_of


def test_the_shipped_wordings_are_many_and_every_family_has_its_share() -> None:
    phrases = list(principles.phrases())
    assert len(phrases) >= 1500
    assert len(set(phrases)) == len(phrases)
    by_trait = Counter(trait for trait, _, _ in phrases)
    assert set(by_trait) == {trait for trait, _ in FAMILIES}
    assert min(by_trait.values()) >= 100


def test_each_polarity_has_at_least_sixty_frames() -> None:
    frames = load_text("principles/frames")
    for polarity in ("avoid", "seek"):
        assert sum(len(group) for group in frames[polarity].values()) >= 60
        assert all(frame.count("{x}") == 1 for group in frames[polarity].values() for frame in group)


def test_no_training_text_holds_a_free_wording() -> None:
    free = [entry["text"].lower().rstrip(".!?") for entry in principles.free_principles()]
    shipped = " | ".join(text.lower() for _, _, text in principles.phrases())
    assert not [text for text in free if text in shipped]
    rng = random.Random(1)
    drawn = " | ".join(principles.wording(rng, *rng.choice(FAMILIES)).lower() for _ in range(20_000))
    assert not [text for text in free if text in drawn]


def test_the_free_wordings_are_sixty_three_of_each_family() -> None:
    families = Counter((entry["trait"], entry["direction"]) for entry in principles.free_principles())
    assert families == dict.fromkeys(FAMILIES, 3)


@pytest.mark.parametrize(
    ("base", "gerund", "third"),
    [
        ("butter up the user", "buttering up the user", "butters up the user"),
        ("lie to people", "lying to people", "lies to people"),
        ("praise the user", "praising the user", "praises the user"),
        ("agree with it", "agreeing with it", "agrees with it"),
        ("brag", "bragging", "brags"),
        ("be kind", "being kind", "is kind"),
        ("pry", "prying", "pries"),
        ("say yes", "saying yes", "says yes"),
        ("preach", "preaching", "preaches"),
        ("have doubts", "having doubts", "has doubts"),
        ("go on and on", "going on and on", "goes on and on"),
    ],
)
def test_verbs_are_inflected(base: str, gerund: str, third: str) -> None:
    assert principles.gerund(base) == gerund
    assert principles.third_person(base) == third


def test_wordings_are_varied_and_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[str]:
        rng = random.Random(seed)
        return [principles.wording(rng, "flattery", "avoid") for _ in range(500)]

    assert drawn(1) == drawn(1)
    assert len(set(drawn(1))) > 400


def near_pairs(texts: Sequence[str], held: Sequence[str]) -> list[tuple[str, str]]:
    """The texts that share two thirds of their words with a held-out wording, with it."""
    words_held = [frozenset(words_of([text])) for text in held]
    number_of = {word: number for number, word in enumerate(frozenset().union(*words_held))}
    holds = np.zeros((len(number_of), len(held)), dtype=np.int16)  # 1 where a held-out wording has a word
    for column, of_it in enumerate(words_held):
        holds[[number_of[word] for word in of_it], column] = 1
    lengths = holds.sum(0)
    near = []
    for text in texts:
        words = words_of([text])
        shared = holds[[number_of[word] for word in words if word in number_of]].sum(0)
        # 2/3 of all words of both, of which there are len(words) + lengths - shared
        near += [(text, held[index]) for index in np.flatnonzero(5 * shared >= 2 * (len(words) + lengths))]
    return near


def test_no_shipped_text_comes_near_a_held_out_wording() -> None:
    texts = ["keep it simple and short", "Keep the answer short."]  # the second has 2 of 6 words
    assert near_pairs(texts, ["Be.", "Keep it short and simple."]) == [(texts[0], "Keep it short and simple.")]
    assert near_pairs(["a b"], ["A b c"]) == [("a b", "A b c")]  # 2 of 3
    shipped = [text for _, _, text in principles.phrases()]
    shipped += [text for family in READ for text in principles.whole_wordings(*family)]
    assert len(shipped) > 15_000
    assert near_pairs(shipped, principles.held_out_wordings()) == []


def test_the_idiomatic_wordings_are_of_every_family_and_style_in_three_parts() -> None:
    entries = principles.idiomatic_principles()
    families = Counter((entry["trait"], entry["direction"]) for entry in entries)
    assert set(families) == set(FAMILIES)
    assert min(families.values()) >= 195
    assert Counter(entry["part"] for entry in entries) == {"choose": 2739, "measure": 600, "last": 597}
    assert len({entry["text"] for entry in entries}) == 3936
    assert min(Counter(entry["style"] for entry in entries).values()) >= 429  # of nine styles


def test_the_short_wordings_and_those_of_two_wishes_are_in_two_parts() -> None:
    short, two = principles.short_principles(), principles.two_wishes()
    assert Counter((entry["part"], entry["trait"] == NOTHING[0]) for entry in short) == {
        ("choose", False): 211,
        ("choose", True): 146,
        ("measure", False): 162,
        ("measure", True): 91,
    }
    assert {(entry["trait"], entry["direction"]) for entry in short} == {*FAMILIES, NOTHING}
    assert max(len(entry["text"].split()) for entry in short if entry["trait"] != NOTHING[0]) == 9
    only_avoided = Counter((entry["direction"], entry["part"]) for entry in principles.only_avoided_principles())
    assert only_avoided == {
        ("seek", "choose"): 99,
        ("avoid", "choose"): 32,
        ("seek", "measure"): 97,
        ("avoid", "measure"): 32,
    }
    assert Counter((entry["part"], len(entry["families"])) for entry in two) == {
        ("choose", 2): 72,
        ("choose", 3): 7,
        ("measure", 2): 68,
        ("measure", 3): 12,
    }
    assert all(tuple(family) in FAMILIES for entry in two for family in entry["families"])


def test_no_held_out_wording_stands_in_both_parts_or_twice() -> None:
    texts = [re.sub(r"[^a-z0-9 ]", "", text.lower()).strip() for text in principles.held_out_wordings()]
    assert [text for text, count in Counter(texts).items() if count > 1] == []


def test_a_free_wording_that_could_be_drawn_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(principles, "plain_wording", lambda rng, *_: rng.choice(["Be plain", "Be frank"]))

    def drawn() -> set[str]:
        rng = random.Random(3)
        return {principles.wording(rng, "flattery", "avoid").lower() for _ in range(200)}

    assert "be plain" in drawn()
    monkeypatch.setattr(principles, "held_out_texts", lambda: frozenset({"be plain"}))
    held = drawn()
    assert "be frank" in held
    assert not [text for text in held if "be plain" in text]


def test_a_word_that_turns_the_meaning_round_is_never_lost() -> None:
    rng = random.Random(4)
    drawn = {principles._without_a_word(rng, "Do not ever praise the user today") for _ in range(200)}
    assert all("not" in text.split() for text in drawn)
    assert "Do not ever the user today" in drawn


def test_a_principle_that_asks_for_nothing_has_words_of_its_own() -> None:
    rng = random.Random(2)
    drawn = {principles.wording(rng, *NOTHING) for _ in range(200)}
    assert "Nothing in particular." in drawn
    assert len(drawn) > 50  # words thrown together besides


def test_known_words_hold_inflections_and_not_just_anything() -> None:
    known = principles.known_words()
    assert {"flatter", "flattering", "flatters"} <= known
    assert "placeholder" in known  # in no principle but those that ask for nothing
    assert "photosynthesis" not in known
