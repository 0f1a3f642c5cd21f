"""What is wrong with a constitution file, and what will probably not work: a table of small rules. And what changed.

Errors are what keeps a file from loading. Warnings come from rules of thumb over English words: they may be mistaken,
and they never stop a run. Every rule looks at each principle a bounded number of times, so long files are no problem.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from constitutional.constitution import Constitution, Principle, read_constitution
from constitutional.errors import InputError

MOST_WORDS = 80
MOST_SENTENCES = 4
"""A principle with more is judged as a whole, though its parts may disagree."""
SIMILAR = 0.8
"""Words in common, as a share of the words of both, from which two principles are near-duplicates."""
MOST_CANDIDATES = 20
"""Earlier principles with rare words in common that each one is compared with."""
SURE_FROM = 0.8
"""Probability of a meaning below which the model is unsure of it."""


class Finding(NamedTuple):
    """Something in a constitution file that is worth a person's look."""

    path: Path
    line: int | None
    """From 1; None for the file as a whole."""
    severity: Literal["error", "warning"]
    rule: str
    message: str

    def __str__(self) -> str:
        """`file:line: severity: message [rule]`, which editors can jump to."""
        place = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.severity}: {self.message} [{self.rule}]"


class Understanding(Protocol):
    """What a model takes a text to mean."""

    @property
    def trait(self) -> str:
        """What it is about; `nothing` if it asks for nothing."""
        ...

    @property
    def direction(self) -> str:
        """`avoid` or `seek`."""
        ...

    @property
    def probability(self) -> float:
        """Of this meaning, in [0, 1]."""
        ...

    @property
    def unknown_words(self) -> Sequence[str]:
        """Words of the text that the model has never seen in a principle."""
        ...


Understand = Callable[[list[str]], Sequence[Understanding]]
Warnings = Iterator[tuple[Principle | None, str]]
"""What a rule finds: the principle (None for all of them together) and the message."""


def lint_file(path: Path, understand: Understand | None = None) -> list[Finding]:
    """Everything that is wrong with a constitution file, in the order of its lines.

    With `understand`, which asks the run's model what it takes texts to mean, also what the model will misunderstand.
    """
    try:
        constitution, problems, lines = read_constitution(path)
    except InputError as error:
        return [Finding(path, error.line, "error", "unreadable", error.problem)]
    findings = [Finding(path, problem.line, "error", "invalid", problem.text) for problem in problems]
    if constitution:
        found = [(rule, *warning) for rule, check in RULES.items() for warning in check(constitution)]
        if understand:
            found += [("misunderstood", *warning) for warning in _misunderstood(constitution, understand)]
        for rule, principle, message in found:
            line = lines[principle.id] if principle else None
            findings.append(Finding(path, line, "warning", rule, message))
    return sorted(findings, key=lambda finding: finding.line or 0)


# Words

_STOP = frozenset(
    "a an the this that these those it its i me my we us our you your he she they them their who whom which what and "
    "or but if then so as than of to in on at by for from with into about is are was were be been being am do does did "
    "have has had can could will would shall should must may might ought need there here when while whenever please "
    "very just only also too ever each every any all some one two both either most such".split()
)
_ABOUT_ANSWERS = (
    "answer response reply assistant model user person people human chatbot bot ai text write give say tell make keep "
    "choose pick select prefer use show thing way option message question ask conversation speak sound try"
)
_VAGUE = frozenset(
    "good better best nice nicer great fine well appropriate appropriately proper properly right suitable ideal "
    "ideally excellent perfect reasonable reasonably adequate acceptable quality positive high normal usual sensible "
    "satisfactory okay ok correct correctly desirable high-quality whatever".split()
)
_AGAINST = frozenset(
    "avoid never not no don't dont doesn't isn't aren't shouldn't mustn't cannot can't without refrain stop less least "
    "fewer fewest reduce minimize minimise drop skip omit leave reject penalize penalise discourage forbid hardly nor "
    "neither against nothing nobody".split()
)
_FOR = frozenset(
    "always seek include add increase maximize maximise encourage reward more favor favour promote plenty lots "
    "full".split()
)
_OPPOSITES: Mapping[str, tuple[str, str]] = {
    "length": (
        "long longer longest lengthy length detail detailed thorough verbose exhaustive comprehensive elaborate",
        "short shorter shortest brief briefer concise terse succinct compact brevity concision",
    ),
    "certainty": (
        "certain sure confident decisive definite firm certainty confidence",
        "hedge hedging tentative uncertain unsure cautious doubt uncertainty",
    ),
    "praise": ("flattery flatter flattering praise compliment admire", ""),
    "politeness": ("polite politeness courteous respectful civil", "rude rudeness impolite insulting insult"),
    "warmth": ("warm warmer warmth friendly friendlier", "cold colder coldness distant unfriendly"),
    "formality": ("formal formality", "casual informal colloquial"),
    "honesty": ("honest honestly honesty truth truthful", "dishonest dishonesty deceptive deceive lie untruthful"),
    "harm": ("harmful dangerous unsafe harm", "harmless safe safety"),
    "help": ("helpful help assist comply", "unhelpful refuse decline refusal"),
    "agreement": ("agree agreement agreeable", "disagree disagreement contradict"),
}
"""Words on the two sides of a question."""
_SIDES = {
    word: (question, sign)
    for question, sides in _OPPOSITES.items()
    for sign, words in zip((1, -1), sides, strict=True)
    for word in words.split()
}


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower().replace("’", "'"))


def _stem(word: str) -> str:
    """The word without its commonest endings, so that `lecturing` meets `lectures`."""
    for ending in ("ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


_EMPTY = _STOP | _VAGUE | _AGAINST | _FOR
_GENERIC = frozenset(map(_stem, _ABOUT_ANSWERS.split()))


class _Sense(NamedTuple):
    """What a text is about and whether it is for it (+1) or against it (-1), as far as its words tell."""

    about: frozenset[str]
    sign: int


def _sense(text: str) -> _Sense:
    about = set()
    sign = 1
    for word in _words(text):
        if word in _AGAINST:
            sign = -sign
        elif found := _SIDES.get(word) or _SIDES.get(_stem(word)):
            question, side = found
            sign *= side if question not in about else 1
            about.add(question)
        elif word not in _STOP and word not in _FOR and _stem(word) not in _GENERIC:
            about.add(_stem(word))
    return _Sense(frozenset(about), sign)


# The rules


def _duplicates(constitution: Constitution) -> Warnings:
    """Near-duplicates: the Jaccard index of their words is at least `SIMILAR`, and they do not contradict each other.

    A pair that similar shares one of its rarest words (prefix filtering), so only such pairs are looked at.
    """
    sets = [frozenset(_words(each.text)) for each in constitution.principles]
    frequency = Counter(word for words in sets for word in words)
    holders: dict[str, list[int]] = defaultdict(list)
    for number, (principle, words) in enumerate(zip(constitution.principles, sets, strict=True)):
        rare = sorted(words, key=lambda word: (frequency[word], word))[: len(words) - int(SIMILAR * len(words)) + 1]
        near = dict.fromkeys(other for word in rare for other in holders[word][-MOST_CANDIDATES:])
        for other in list(near)[:MOST_CANDIDATES]:
            before = constitution.principles[other]
            shared = len(words & sets[other]) / max(1, len(words | sets[other]))
            if shared >= SIMILAR and _sense(before.text).sign == _sense(principle.text).sign:
                yield (
                    principle,
                    f"principle '{principle.id}' says nearly the same as '{before.id}'; keep one, and weight it",
                )
                break
        for word in rare:
            holders[word].append(number)


def _contradictions(constitution: Constitution) -> Warnings:
    """Principles about the same thing in opposite directions."""
    first: dict[_Sense, Principle] = {}
    for principle in constitution.principles:
        about, sign = _sense(principle.text)
        if not about:
            continue
        if before := first.get(_Sense(about, -sign)):
            yield (
                principle,
                f"principle '{principle.id}' seems to contradict '{before.id}': one undoes what the other asks",
            )
        first.setdefault(_Sense(about, sign), principle)


def _unmeasurable(constitution: Constitution) -> Warnings:
    """Principles of which nobody can say whether an answer follows them."""
    for principle in constitution.principles:
        words = _words(principle.text)
        telling = [word for word in words if word not in _EMPTY and _stem(word) not in _GENERIC]
        if not telling:
            yield (
                principle,
                f"principle '{principle.id}' cannot be measured: say what an answer does, not that it is good",
            )


def _too_much(constitution: Constitution) -> Warnings:
    """Principles that ask for several things at once."""
    for principle in constitution.principles:
        count = len(principle.text.split())
        sentences = len(re.findall(r"[.!?;](?=\s|$)", principle.text))
        if count > MOST_WORDS or sentences > MOST_SENTENCES:
            size = f"{count} words" if count > MOST_WORDS else f"{sentences} sentences"
            yield (
                principle,
                f"principle '{principle.id}' has {size}: a labeler weighs them as one; split it into several",
            )


def _missing_examples(constitution: Constitution) -> Warnings:
    """Principles whose labels cannot be checked."""
    without = [principle for principle in constitution.principles if not principle.examples]
    if len(without) == len(constitution.principles):
        yield None, "no principle has examples (prompt, better, worse), so the labeler cannot be measured on them"
        return
    for principle in without:
        yield principle, f"principle '{principle.id}' has no examples, so the labeler cannot be measured on it"


def _equal_examples(constitution: Constitution) -> Warnings:
    """Examples that say nothing."""
    for principle in constitution.principles:
        for number, example in enumerate(principle.examples, start=1):
            if example.better == example.worse:
                yield principle, f"principle '{principle.id}': example {number} has the same text as better and worse"


RULES: Mapping[str, Callable[[Constitution], Warnings]] = {
    "duplicate": _duplicates,
    "contradiction": _contradictions,
    "unmeasurable": _unmeasurable,
    "too-much": _too_much,
    "no-examples": _missing_examples,
    "equal-example": _equal_examples,
}
"""The warnings, by the name that stands behind each."""


def _misunderstood(constitution: Constitution, understand: Understand) -> Warnings:
    """What the model does not understand, or understands as opposites."""
    uses: Iterable[tuple[Principle, str]] = dict.fromkeys(
        (principle, words)
        for principle in constitution.principles
        for words in (principle.words("critique"), principle.words("comparison"))
    )
    meanings = understand([words for _, words in uses])
    first: dict[tuple[str, str], Principle] = {}
    for (principle, words), meaning in zip(uses, meanings, strict=True):
        quoted = f"principle '{principle.id}' (\"{words[:60]}{'…' if len(words) > 60 else ''}\")"
        if meaning.unknown_words:
            yield principle, f"{quoted} has words that the model does not know: {', '.join(meaning.unknown_words)}"
        if meaning.trait == "nothing":
            yield principle, f"{quoted} is understood to ask for nothing, so it changes nothing"
            continue
        understood = f"{meaning.direction} {meaning.trait.replace('_', ' ')}"
        if meaning.probability < SURE_FROM:
            yield (
                principle,
                f"{quoted} is understood as '{understood}' with a probability of only {meaning.probability:.2f}",
            )
        opposite = "seek" if meaning.direction == "avoid" else "avoid"
        if before := first.get((meaning.trait, opposite)):
            yield principle, f"{quoted} is understood as '{understood}', and '{before.id}' as the opposite"
        first.setdefault((meaning.trait, meaning.direction), principle)


# What has changed

Kind = Literal["added", "removed", "renamed", "reworded", "reweighted", "examples"]
_SIGNS: Mapping[Kind, str] = {"added": "+", "removed": "-"}


class Change(NamedTuple):
    """How a principle of one constitution differs in another."""

    kind: Kind
    id: str
    """In the first constitution, or in the second if it was added."""
    before: str
    """Empty if it was added."""
    after: str
    """Empty if it was removed."""
    field: str = "text"
    """Of a reworded principle the words that changed: text, critique, revision or comparison."""

    def __str__(self) -> str:
        """One line, or three where words changed."""
        if self.kind in _SIGNS:
            return f"{_SIGNS[self.kind]} {self.id}: {self.before or self.after}"
        if self.kind == "reworded":
            return f"~ {self.id}: {self.field} reworded\n    - {self.before}\n    + {self.after}"
        return f"~ {self.id}: {self.kind}, {self.before} → {self.after}"


def difference(a: Constitution, b: Constitution) -> list[Change]:
    """What became of a's principles in b, in a's order, and then what b adds."""
    new = {each.id: each for each in b.principles}
    known = {each.id for each in a.principles}
    added = {each.text: each for each in b.principles if each.id not in known}
    changes: list[Change] = []
    for before in a.principles:
        after = new.pop(before.id, None)
        if after is None and (after := added.pop(before.text, None)):
            del new[after.id]
            changes.append(Change("renamed", before.id, before.id, after.id))
        changes += _changes(before, after) if after else [Change("removed", before.id, before.text, "")]
    return changes + [Change("added", each.id, "", each.text) for each in new.values()]


def _changes(before: Principle, after: Principle) -> Iterator[Change]:
    for field in ("text", "critique", "revision", "comparison"):
        old, new = getattr(before, field), getattr(after, field)
        if old != new:
            yield Change("reworded", before.id, old or "(as the text)", new or "(as the text)", field)
    if before.weight != after.weight:
        yield Change("reweighted", before.id, f"{before.weight:g}", f"{after.weight:g}")
    if before.examples != after.examples:
        yield Change("examples", before.id, f"{len(before.examples)} before", f"{len(after.examples)} now")
