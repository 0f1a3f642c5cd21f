"""How people word principles: a trait's phrases in frames of either polarity, whole sentences, and what stands around.

The words are data. `text/principles/` has a file of phrases for each trait, and `frames.yaml`, from which the model
learns. Coverage of vocabulary decides how well strangers' principles are understood, so there are many phrases and
every inflection of them. `text/wordings/` has a file for each family, of principles as people write them: questions,
complaints, stories, irony. The model is too small for those; the encoder (`reader`) learns from both.
"""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from typing import Any

from constitutional.sandbox import TEXT_FOLDER
from constitutional.sandbox.teacher import FAMILIES, MEANINGS, NOTHING, UNKNOWN, Direction
from constitutional.sandbox.topics import load_text, words_of

OPPOSITE: dict[Direction, Direction] = {"avoid": "seek", "seek": "avoid"}
TRUE_OPPOSITES = ("verbosity", "hedging")
"""Traits that are sought by being against the opposite: `Avoid brevity` asks for length, but hardly anybody asks for
agreement with falsehoods by being against truth."""
FORMS = {"noun_phrases": ("noun",), "verb_phrases": ("verb", "third", "gerund"), "adjectives": ("adjective",)}
"""The frames (keys of `frames.yaml`) that a kind of phrase fits into, each with its own inflection."""

_DOUBLING = frozenset(
    """
    admit beg blab brag chat clap clip commit cut dig drag drop fib flip forget get grab grin hit hop hug let
    nag nod omit pad pat permit plan plug put quit rap rat refer regret rob rub run set shop shut sit skip
    slam slip snap sob spin spot step stir stop strip submit swap swim tip top trap trim underpin wag win wrap
    zip
    """.split()
)
_POLAR = frozenset(
    "not no never without less more least most free against avoid stop lack lacks lacking few fewer little rather than "
    "instead only except wrong bad worse worst poor good better best right unless nothing nobody none hardly cannot "
    "don't won't can't doesn't isn't shouldn't mustn't couldn't wouldn't aren't didn't refrain omit skip drop keep out "
    "off away ban any too".split()
)
"""Words that turn a meaning round, which must not be lost."""
_VOWELS = "aeiou"


def gerund(phrase: str) -> str:
    """The phrase with its first word in -ing: `butter up the user` -> `buttering up the user`."""
    verb, _, rest = phrase.partition(" ")
    if verb == "be":
        made = "being"
    elif verb.endswith("ie"):
        made = verb[:-2] + "ying"
    elif verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        made = verb[:-1] + "ing"
    elif verb in _DOUBLING:
        made = f"{verb}{verb[-1]}ing"
    else:
        made = verb + "ing"
    return f"{made} {rest}".strip()


def third_person(phrase: str) -> str:
    """The phrase with its first word as after `it`: `carry on about it` -> `carries on about it`."""
    verb, _, rest = phrase.partition(" ")
    irregular = {"be": "is", "have": "has", "do": "does", "go": "goes"}
    if verb in irregular:
        made = irregular[verb]
    elif verb.endswith("y") and verb[-2:-1] not in _VOWELS:
        made = verb[:-1] + "ies"
    elif verb.endswith(("s", "x", "z", "ch", "sh")):
        made = verb + "es"
    else:
        made = verb + "s"
    return f"{made} {rest}".strip()


_INFLECT: dict[str, Callable[[str], str]] = {
    "noun": str,
    "verb": str,
    "adjective": str,
    "third": third_person,
    "gerund": gerund,
}


@cache
def _lexicon(trait: str) -> dict[str, list[str]]:
    """A trait's phrases and sentences."""
    lexicon: dict[str, list[str]] = {}
    for name in (trait, f"more_{trait}"):
        if (TEXT_FOLDER / "principles" / f"{name}.yaml").exists():
            for key, texts in load_text(f"principles/{name}").items():
                if key != "trait":
                    lexicon[key] = list(dict.fromkeys([*lexicon.get(key, []), *texts]))
    return lexicon


@cache
def whole_wordings(trait: str, direction: Direction) -> tuple[str, ...]:
    """Principles of a family that were written as a whole, each in words of its own."""
    return plain_wordings(trait, direction) + terse_wordings(trait, direction) + opposed_wordings(trait, direction)


@cache
def plain_wordings(trait: str, direction: Direction) -> tuple[str, ...]:
    """Those that were written one by one; none of `UNKNOWN`."""
    if (trait, direction) in UNKNOWN:
        return ()
    name = f"{direction}_{trait}" if trait != NOTHING[0] else trait
    return tuple((TEXT_FOLDER / "wordings" / f"{name}.txt").read_text(encoding="utf-8").splitlines())


@cache
def terse_wordings(trait: str, direction: Direction) -> tuple[str, ...]:
    """Those of at most eight words, such as people note down; none that asks for nothing."""
    return tuple(text for about, way, text in _terse_rows() if (about, way) == (trait, direction))


@cache
def _terse_rows() -> list[list[str]]:
    lines = (TEXT_FOLDER / "wordings" / "terse.tsv").read_text(encoding="utf-8").splitlines()
    return [line.split("\t", 2) for line in lines]


@cache
def opposed_wordings(trait: str, direction: Direction) -> tuple[str, ...]:
    """Those that were written in pairs of opposite directions about one scene."""
    file = TEXT_FOLDER / "wordings" / f"opposed_{trait}.tsv"
    lines = file.read_text(encoding="utf-8").splitlines() if trait != NOTHING[0] else []
    rows = (line.split("\t", 1) for line in lines)
    return tuple(text for way, text in rows if way == direction)


@cache
def _frames() -> dict[str, Any]:
    loaded: dict[str, Any] = load_text("principles/frames")
    return loaded


def phrases() -> Iterator[tuple[str, str, str]]:
    """Every phrase and whole sentence shipped: (trait, key of its list, text)."""
    for trait in dict.fromkeys(trait for trait, _ in FAMILIES):
        for key, texts in _lexicon(trait).items():
            for text in texts:
                yield trait, key, text


@cache
def _choices(trait: str, direction: Direction) -> tuple[list[tuple[str, str, Direction]], list[int]]:
    """Ways of wording a family, each (list of phrases, form of frame, polarity of frame), and their weights."""
    lexicon = _lexicon(trait)
    options: list[tuple[str, str, Direction]] = []
    weights: list[int] = []
    for key, forms in FORMS.items():
        for source, polarity in ((key, direction), (f"opposite_{key}", OPPOSITE[direction])):
            if polarity != direction and direction == "seek" and trait not in TRUE_OPPOSITES:
                continue
            for form in forms:
                if lexicon.get(source):
                    options.append((source, form, polarity))
                    weights.append(-(-len(lexicon[source]) // len(forms)))
    if lexicon.get(direction):
        options.append((direction, "", direction))
        weights.append(2 * len(lexicon[direction]))
    return options, weights


def _nothing(rng: random.Random) -> str:
    """A principle that asks for nothing: an empty phrase, or words thrown together from many other principles."""
    if rng.random() < 0.6:
        return rng.choice(_lexicon(NOTHING[0])["sentences"])
    words = [rng.choice(plain_wording(rng, *family).split()) for family in rng.sample(FAMILIES, rng.randint(5, 9))]
    return " ".join(words)


def plain_wording(rng: random.Random, trait: str, direction: Direction) -> str:
    """A principle of the family, as somebody would word it."""
    if trait == NOTHING[0]:
        return _nothing(rng)
    options, weights = _choices(trait, direction)
    source, form, polarity = rng.choices(options, weights)[0]
    phrase = rng.choice(_lexicon(trait)[source])
    if not form:
        return phrase
    frame: str = rng.choice(_frames()[polarity][form])
    text = frame.format(x=_INFLECT[form](phrase))
    return text[0].upper() + text[1:]


def wording(rng: random.Random, trait: str, direction: Direction) -> str:
    """A principle of the family with what people put around it, now and then carelessly typed; never a held-out one."""
    while True:
        text = plain_wording(rng, trait, direction)
        if text.lower() in held_out_texts():
            continue
        if rng.random() < 0.25:
            text = f"{rng.choice(_frames()['before'])} {text}"
        if rng.random() < 0.25:
            text = f"{text} {rng.choice(_frames()['after'])}"
        if rng.random() < 0.08:
            text = _without_a_word(rng, text)
        if rng.random() < 0.06:
            text = text.lower()
        if rng.random() < 0.06:
            text = text.rstrip(".!")
        return text


def _without_a_word(rng: random.Random, text: str) -> str:
    """The text with one of its words left out, as somebody in a hurry may type it; short texts stay whole."""
    words = text.split()
    if len(words) > 5:
        chosen = rng.randrange(len(words))
        if not _POLAR & words_of([words[chosen]]):
            del words[chosen]
    return " ".join(words)


def adjectives(trait: str, direction: Direction) -> list[str]:
    """What a reply should be by a principle of the family, such as `brief`; empty where no adjectives are known."""
    return _lexicon(trait).get("adjectives" if direction == "seek" else "opposite_adjectives", [])


def free_principles() -> list[dict[str, str]]:
    """The 60 wordings written apart and first: `{trait, direction, text}`. No training text holds any of them."""
    return _held_out("free_principles")


def idiomatic_principles() -> list[dict[str, str]]:
    """The wordings of 41 writers who saw the traits' definitions alone: `{trait, direction, style, part, text}`.

    No training text holds any of them. Settings that lean on held-out wordings are chosen on the part `choose`. On the
    parts `measure` and `last` nothing is chosen: several versions of the reader were measured on the one, of which
    `scripts/bench_effect.py` makes constitutions, and the shipped one alone on the other, when all was done.
    """
    return _held_out("idiomatic_principles")


def short_principles() -> list[dict[str, str]]:
    """What came first to the minds of four writers: `{trait, direction, part, text}`, parts as above.

    373 wordings of at most nine words, and 237 texts of any length about nothing in the sandbox's world. No training
    text comes near any of them.
    """
    return _held_out("short_principles")


def only_avoided_principles() -> list[dict[str, str]]:
    """Of the traits that the model can only be told to avoid: `{trait, direction, part, text}`, parts as above.

    By two writers, one for each part: 23 to 25 wishes for each of the four traits, and 8 against it.
    """
    return _held_out("only_avoided_principles")


def two_wishes() -> list[dict[str, Any]]:
    """159 texts that ask for two or three things (19 for three): `{part, families, text}`, in two halves as above.

    59 have at most ten words.
    """
    return _held_out("two_wishes")


@cache
def _held_out(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((TEXT_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return loaded


@cache
def held_out_texts() -> frozenset[str]:
    """The held-out wordings in lower case."""
    return frozenset(text.lower() for text in held_out_wordings())


def held_out_wordings() -> list[str]:
    """All texts that nothing is to learn from."""
    single = (*free_principles(), *idiomatic_principles(), *short_principles(), *only_avoided_principles())
    return [entry["text"] for entry in (*single, *two_wishes())]


@cache
def known_words() -> frozenset[str]:
    """Every word that training shows in a principle, in lower case."""
    texts: list[str] = list(_lexicon(NOTHING[0])["sentences"])
    for _, key, text in phrases():
        texts.append(text)
        if key.endswith("verb_phrases"):
            texts += [gerund(text), third_person(text)]
    frames = _frames()
    for polarity in ("avoid", "seek"):
        for group in frames[polarity].values():
            texts += [frame.replace("{x}", " ") for frame in group]
    return frozenset(words_of([*texts, *frames["before"], *frames["after"]]))


@cache
def word_uses() -> Counter[str]:
    """How often the whole wordings use a word, in lower case; contractions also stand without their apostrophe."""
    texts = chain.from_iterable(whole_wordings(*meaning) for meaning in (*MEANINGS, *UNKNOWN))
    uses = Counter(re.findall("[a-z]+(?:'[a-z]+)?", "\n".join(texts).lower().replace("’", "'")))
    for word in [word for word in uses if "'" in word]:
        uses[word.replace("'", "")] += uses[word]
    return uses
