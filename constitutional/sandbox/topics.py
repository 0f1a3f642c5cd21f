"""What the mini-world's prompts are about: listed topics, held-out ones, composed ones and strange ones."""

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import yaml

from constitutional.sandbox import TEXT_FOLDER

Kind = Literal["howto", "factual", "opinion", "claim", "harmful", "private", "ambiguous"]
KINDS: tuple[Kind, ...] = get_args(Kind)
COMPOSED = 0.4
"""The share of topics for training that are put together at random instead of drawn from the listed ones."""


@dataclass(frozen=True)
class Topic:
    """What a prompt is about: its kind, the words that fill the frames, and the particular sentences known about it."""

    kind: Kind
    fill: tuple[tuple[str, str], ...]
    facts: tuple[str, ...] = ()

    @property
    def slots(self) -> dict[str, str]:
        """The words that fill a frame's slots, by the slot's name."""
        return dict(self.fill)


@cache
def load_text(name: str) -> Any:  # noqa: ANN401 - each file has a shape of its own, given where it is read
    """One of the sandbox's own YAML files, by its path without suffix below `text/`."""
    return yaml.load((TEXT_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)


def sentences() -> dict[str, Any]:
    """The world's sentences and frames (`text/world/sentences.yaml`)."""
    loaded: dict[str, Any] = load_text("world/sentences")
    return loaded


@cache
def topics(kind: Kind, *, held_out: bool) -> tuple[Topic, ...]:
    """The listed topics of a kind: those that training sees, or those that it never sees."""
    listed = load_text("world/topics")
    if kind == "private":
        return _private_topics(listed["private"], held_out=held_out)
    name = {"claim": "false_claims"}.get(kind, kind)
    entries = listed[f"{name}_held_out" if held_out else name]
    # The slots of the kind's frames, each with the key that fills it; an entry with one slot may be a text alone.
    keys = {"opinion": {"a": "a", "b": "b"}, "claim": {"claim": "claim"}}.get(kind, {"x": "topic"})
    known = [entry if isinstance(entry, dict) else dict.fromkeys(keys.values(), entry) for entry in entries]
    return tuple(
        Topic(kind, tuple((slot, entry[key]) for slot, key in keys.items()), tuple(entry.get("facts", ())))
        for entry in known
    )


def _private_topics(private: Mapping[str, Sequence[str]], *, held_out: bool) -> tuple[Topic, ...]:
    """Every kind of private data of every person; a fifth of the first and of the last names is held out."""

    def part(names: Sequence[str]) -> Sequence[str]:
        return names[: len(names) // 5] if held_out else _seen_names(names)

    return tuple(
        Topic("private", (("info", kind), ("name", f"{first} {last}")))
        for kind in private["kinds"]
        for first in part(private["first_names"])
        for last in part(private["last_names"])
    )


def _seen_names(names: Sequence[str]) -> Sequence[str]:
    return names[len(names) // 5 :]


@cache
def _held_out_fills() -> frozenset[tuple[tuple[str, str], ...]]:
    return frozenset(topic.fill for kind in KINDS for topic in topics(kind, held_out=True))


def compose_topic(kind: Kind, rng: random.Random) -> Topic | None:
    """A topic put together at random, so that a model learns to speak of anything; never a held-out one."""
    listed = load_text("world/topics")
    if kind in ("howto", "harmful"):
        parts = listed["compose" if kind == "howto" else "harm_compose"]
        fill: tuple[tuple[str, str], ...] = (("x", f"{rng.choice(parts['verbs'])} {rng.choice(parts['objects'])}"),)
    elif kind == "factual":
        fill = (("x", rng.choice(listed["compose_nouns"])),)
    elif kind == "opinion":
        a, b = rng.sample(listed["compose_nouns"], 2)
        fill = (("a", a), ("b", b))
    elif kind == "claim":
        fill = (("claim", f"{rng.choice(listed['compose_nouns'])} {rng.choice(listed['compose_predicates'])}"),)
    else:
        return None
    return None if fill in _held_out_fills() else Topic(kind, fill)


def strange_word(rng: random.Random) -> str:
    """A word that nobody has seen, such as `bralomik` or `kitpump`: what is said of it can only be copied.

    Most begin and end like words of the corpus, so that every piece that a tokenizer knows is copied now and then.
    """
    if rng.random() < 0.7:
        start, middle, end = (_corpus_word(rng) for _ in range(3))
        cut = rng.randrange(len(middle))
        inner = middle[cut : cut + rng.randint(1, 4)] if rng.random() < 0.4 else ""
        return start[: rng.randint(2, 7)] + inner + end[-rng.randint(1, 5) :]
    starts, vowels, ends = "b br c d f fl g gr h j k l m n p pl r s st t tr v w z".split(), "aeiou", "lmnrstkd"
    syllables = [rng.choice(starts) + rng.choice(vowels) for _ in range(rng.choice((1, 2, 2, 3)))]
    return "".join(syllables) + rng.choice(ends)


def strange_topic(kind: Kind, rng: random.Random) -> Topic:
    """A topic of made-up words and of any words of the corpus, for training alone: it teaches to copy from the prompt.

    Never a held-out one.
    """
    topic = Topic(kind, _strange_fill(kind, rng))
    return topic if topic.fill not in _held_out_fills() else strange_topic(kind, rng)


def _strange_fill(kind: Kind, rng: random.Random) -> tuple[tuple[str, str], ...]:
    listed = load_text("world/topics")

    def word() -> str:
        return strange_word(rng) if rng.random() < 0.5 else _corpus_word(rng)

    def many() -> str:
        """Several of something, such as `wooden kitpumps`."""
        first = f"{word()} " if rng.random() < 0.3 else ""
        last = word()
        return first + (last if last.endswith("s") or rng.random() < 0.25 else f"{last}s")

    if kind == "private":
        private = listed["private"]
        person = f"{_strange_name(rng, private['first_names'])} {_strange_name(rng, private['last_names'])}"
        return (("info", rng.choice(private["kinds"])), ("name", person))
    if kind == "opinion":
        return (("a", many()), ("b", many()))
    if kind == "claim":
        verb = rng.choice(("are", "is", "was", "have", "has", "can", "need", "make", word()))
        start = f"{rng.choice(('', '', 'a ', 'the '))}{many()}"
        start = start.capitalize() if rng.random() < 0.3 else start
        return (("claim", f"{start} {verb} {' '.join(word() for _ in range(rng.randint(1, 4)))}"),)
    if kind == "factual":
        return (("x", many()),)
    if kind == "ambiguous":
        thing = rng.choice(("it", "it", "that", "this", "them", f"the {word()}", f"that {word()}", f"this {word()}"))
        return (("x", f"{word()} {thing}{rng.choice(('', '', f' {word()}'))}"),)
    verbs = listed["harm_compose" if kind == "harmful" else "compose"]["verbs"]
    verb = rng.choice((rng.choice(verbs), word()))
    article = rng.choice(("", "a ", "an ", "the ", "my ", "some "))
    end = rng.choice(("", "", "", f" {rng.choice(('on', 'in', 'from', 'for', 'into', 'with'))} a {word()}"))
    return (("x", f"{verb} {article}{many()}{end}"),)


def _strange_name(rng: random.Random, names: Sequence[str]) -> str:
    """A name that training may see, the halves of two of them in one, or any word with a capital."""
    known = _seen_names(names)
    while True:
        start, end = rng.choice(known), rng.choice(known)
        half = start[: rng.randint(2, 4)] + end[-rng.randint(2, 4) :]
        drawn = rng.choice((start, half, strange_word(rng).capitalize()))
        if drawn in known or drawn not in names:  # two halves can come to a name that is held out
            return drawn


def _strings(value: object) -> Iterator[str]:
    """Every text within lists and mappings; what is held out, and people's names, are left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if key != "private" and not str(key).endswith("_held_out"):
                yield from _strings(inner)
    elif isinstance(value, Sequence):
        for inner in value:
            yield from _strings(inner)


@cache
def _words_below(folder: str) -> list[str]:
    """The words of a folder's texts, but not those that set held-out topics apart from the others."""
    files = sorted(path.relative_to(TEXT_FOLDER).with_suffix("") for path in (TEXT_FOLDER / folder).glob("*.yaml"))
    texts = (text for name in files for text in _strings(load_text(str(name))))
    held_out, seen = (
        words_of(value for kind in KINDS for topic in topics(kind, held_out=held) for _, value in topic.fill)
        for held in (True, False)
    )
    words = words_of(texts) - (held_out - seen)
    return sorted(word for word in words if len(word) > 2 and "'" not in word)


def _corpus_word(rng: random.Random) -> str:
    """Any word that training sees, the world's own ones, which are fewer, as often as those of principles."""
    return rng.choice(_words_below("world" if rng.random() < 0.6 else "principles"))


def draw_topic(rng: random.Random, kind: Kind, *, held_out: bool = False, strange: float = 0.0) -> Topic:
    """A topic of a kind; with probability `strange` it is of words that nobody has seen."""
    if strange and rng.random() < strange:
        return strange_topic(kind, rng)
    if not held_out and rng.random() < COMPOSED and (composed := compose_topic(kind, rng)):
        return composed
    return rng.choice(topics(kind, held_out=held_out))


def words_of(texts: Iterable[str]) -> set[str]:
    """The lower-case words of some texts."""
    return {word for text in texts for word in re.findall(r"[a-z']+", text.lower())}
