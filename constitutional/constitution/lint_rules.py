"""What will probably not work in a constitution: a table of small rules over its principles.

They are rules of thumb over English words: they may be mistaken, and what they find never stops a run. Each looks at
each principle a bounded number of times, so long files are no problem.
"""

import math
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

from constitutional.base.text import words as words_of
from constitutional.constitution.constitution import Constitution, Principle

MOST_WORDS = 80
MOST_SENTENCES = 4
"""A principle with more is judged as a whole, though its parts may disagree."""
SIMILAR = 0.8
"""Words in common, as a share of the words of both, from which two principles are near-duplicates."""
SAME_MATTER = 2 / 3
"""The same share of what they are about, from which principles of opposite directions contradict each other."""
WITHIN = 1 / 2
"""The share that will do if all that one is about is part of what the other is about."""
MOST_CANDIDATES = 20
"""Earlier principles with rare words in common that each one is compared with."""

Warnings = Iterator[tuple[Principle | None, str]]
"""What a rule finds: the principle (None for all of them together) and the message."""


# Words

_STOP = frozenset(
    "a an the this that these those it its i me my we us our you your he she they them their who whom which what and "
    "or but if then so as than of to in on at by for from with into about is are was were be been being am do does did "
    "have has had can could will would shall should must may might ought need there here when while whenever please "
    "very just only also too ever each every any all some one two both either most such out often usually frequently "
    "sometimes regularly generally constantly anything everything something anyone anybody everyone everybody someone "
    "somebody".split()
)
_ANSWERS = (
    "answer response reply assistant model user person people human chatbot bot ai text choose pick select prefer"
)
"""Words about answers: who gives and gets them, and which to choose."""
_LIGHT = "write give make keep use show thing way option message question conversation speak sound try"
"""Words that say little of what an answer does without the words behind them."""
_TELLING = "say tell ask"
"""Words of which the same is true, but what is said or asked is not done."""
_VAGUE = frozenset(
    "good better best nice nicer great fine well appropriate appropriately proper properly right suitable ideal "
    "ideally excellent perfect reasonable reasonably adequate acceptable quality positive high normal usual sensible "
    "satisfactory okay ok correct correctly desirable high-quality whatever".split()
)
_AGAINST = frozenset(
    "avoid avoids avoiding never not no don't dont doesn't isn't aren't shouldn't mustn't cannot can't without refrain "
    "refrains stop stops less least fewer fewest rarely seldom reduce minimize minimise drop skip omit omits leave "
    "leaves reject rejected penalize penalise punished discourage discouraged forbid forbidden prohibited banned "
    "unacceptable unwelcome avoided resist cease eliminate dislike disapprove loses hardly nor neither against nothing "
    "nobody".split()
)
_VERDICT = re.compile(
    r"\b(?:is|are|gets?)\s+(?:(?:a|an|the)\s+)?(?:wrong|bad|worse|mistake|flaw|fault)\b|\bkeep\s+(?:\w+\s+){1,2}from\b"
)
"""What is against something in more than one word, of which none alone is."""
_FOR = frozenset(
    "always seek include add increase maximize maximise encourage reward more favor favour promote plenty lots "
    "full".split()
)
_OPPOSITES: Mapping[str, tuple[str, str]] = {
    "length": (
        "long longer longest lengthy length detail detailed thorough verbose exhaustive comprehensive elaborate",
        "short shorter shortest brief briefer briefly concise concisely terse succinct compact brevity concision",
    ),
    "certainty": (
        "certain sure confident decisive definite firm certainty confidence",
        "hedge hedging tentative uncertain unsure cautious doubt uncertainty",
    ),
    "praise": ("flattery flatter flattering praise compliment admire", ""),
    "politeness": (
        "polite politely politeness courteous respectful civil",
        "rude rudely rudeness impolite insulting insult",
    ),
    "warmth": ("warm warmer warmth friendly friendlier", "cold colder coldness distant unfriendly"),
    "formality": ("formal formally formality", "casual casually informal informally colloquial slang"),
    "honesty": ("honest honestly honesty truth truthful", "dishonest dishonesty deceptive deceive lie untruthful"),
    "harm": ("harmful dangerous unsafe harm", "harmless safe safety"),
    "help": ("helpful help assist comply", "unhelpful refuse decline refusal"),
    "agreement": ("agree agreement agreeable", "disagree disagreement contradict corrects correcting"),
}
"""Words on the two sides of a question."""
_SIDES = {
    word: (question, sign)
    for question, sides in _OPPOSITES.items()
    for sign, words in zip((1, -1), sides, strict=True)
    for word in words.split()
}
_VERBS: Mapping[str, tuple[str, int]] = {"answer": ("help", 1), "correct": ("agreement", -1)}
"""Words that take a side only where they are what the principle tells to do, which its beginning shows."""
_BEFORE_VERBS = frozenset("never not don't dont always please also".split())


_COMMANDS = (
    "do not|don't|never|avoid|always|be|keep|give|use|make|write|say|tell|ask|answer|explain|add|include|refuse|help|"
    "agree|correct|praise|flatter|compliment|warn|stay|speak|stop|refrain|choose|prefer|admit|hedge|mention|show|must|"
    "should"
)
_COMMAND = re.compile(
    rf"(?:^|,\s)\s*(?:please\s+|(?:the\s+)?(?:response|answer|assistant|model)s?\s+)?(?:{_COMMANDS})\b", re.IGNORECASE
)
_JOINTS = re.compile(rf"[,;]?\s(?P<word>but|yet|and)\s+(?:also\s+|please\s+)?(?=(?:{_COMMANDS})\b)", re.IGNORECASE)
"""What stands between two commands."""


def _words(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower().replace("’", "'"))
    return [word.removesuffix("'s") for word in words]


def _stem(word: str) -> str:
    """The word without its commonest endings, so that `lecturing` meets `lectures`, and `flattery` meets `flatter`."""
    for ending, instead, least in (("ies", "y", 3), ("ly", "", 4), ("y", "", 6)):
        if word.endswith(ending) and len(word) - len(ending) >= least:
            word = word.removesuffix(ending) + instead
    for ending in ("ings", "ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


_EMPTY = _STOP | _VAGUE | _AGAINST | _FOR
_ABOUT_ANSWERS = frozenset(map(_stem, _ANSWERS.split()))
_EMPTY_ACTS = frozenset(map(_stem, _LIGHT.split()))
_GENERIC = _ABOUT_ANSWERS | _EMPTY_ACTS | frozenset(map(_stem, _TELLING.split()))


class _Sense(NamedTuple):
    """What a text is about and whether it is for it or against it, as far as its words tell."""

    sides: Mapping[str, int]
    """What it is about, stems and questions: of a question the side that it takes, +1 or -1; of the others +1."""
    sign: int
    """-1 if the words against something are odd in number, else +1."""
    act: str | None
    """The stem or question that it begins with; None if that says little, such as `give`."""

    def direction(self, about: Iterable[str]) -> int:
        """For (+1) or against (-1) these, which it is about."""
        return self.sign * math.prod(self.sides[each] for each in about)


def _sense(text: str) -> _Sense:
    sides: dict[str, int] = {}
    sign = 1
    act: str | None = None
    begun = answers = False
    words = _words(_VERDICT.sub("not", text.lower()))
    for before, word in zip(("please", *words), words, strict=False):
        if word in _AGAINST:
            sign = -sign
            continue
        if word in _STOP or word in _FOR:
            continue
        verb = _VERBS.get(word) if not begun and before in _BEFORE_VERBS else None
        question, side = verb or _SIDES.get(word) or _SIDES.get(_stem(word)) or (_stem(word), 1)
        if question in _ABOUT_ANSWERS and not verb:
            continue
        answers |= word == "answer"
        if not begun and question not in _EMPTY_ACTS:
            act = question
        begun = True
        if question not in _GENERIC:
            sides.setdefault(question, side)
    if answers and len(sides.keys() & _OPPOSITES.keys()) > 1:
        del sides["help"]  # to answer in some way is about the way
        act = None
    return _Sense(sides, sign, act)


# The rules


def _near(sets: Sequence[AbstractSet[str]], least: float) -> Iterator[list[int]]:
    """For each set the earlier ones with which its Jaccard index may be `least` or more.

    Such a pair shares one of its rarest words (prefix filtering), so only such pairs are looked at.
    """
    frequency = Counter(word for words in sets for word in words)
    holders: dict[str, list[int]] = defaultdict(list)
    for number, words in enumerate(sets):
        rare = sorted(words, key=lambda word: (frequency[word], word))[: len(words) - int(least * len(words)) + 1]
        near = dict.fromkeys(other for word in rare for other in holders[word][-MOST_CANDIDATES:])
        yield list(near)[:MOST_CANDIDATES]
        for word in rare:
            holders[word].append(number)


def _share(one: AbstractSet[str], other: AbstractSet[str]) -> float:
    """The Jaccard index: what is in both, as a share of what is in either."""
    return len(one & other) / max(1, len(one | other))


def _duplicates(constitution: Constitution) -> Warnings:
    """Near-duplicates: nearly the same stems, and the same direction."""
    principles = constitution.principles
    empty = _STOP | _AGAINST | _FOR
    stems = [{_stem(word) for word in _words(each.text) if word not in empty} - _GENERIC for each in principles]
    for principle, words, near in zip(principles, stems, _near(stems, SIMILAR), strict=True):
        for other in near:
            before = principles[other]
            if _share(words, stems[other]) < SIMILAR or _sense(before.text).sign != _sense(principle.text).sign:
                continue
            yield (
                principle,
                f"principle '{principle.id}' says nearly the same as '{before.id}'; keep one, and weight it",
            )
            break


def _contradictions(constitution: Constitution) -> Warnings:
    """Principles about the same thing in opposite directions."""
    principles = constitution.principles
    senses = [_sense(each.text) for each in principles]
    near = _near([sense.sides.keys() for sense in senses], WITHIN)
    for principle, sense, others in zip(principles, senses, near, strict=True):
        if before := next((principles[other] for other in others if _opposite(senses[other], sense)), None):
            yield (
                principle,
                f"principle '{principle.id}' seems to contradict '{before.id}': one undoes what the other asks",
            )


def _opposite(one: _Sense, other: _Sense) -> bool:
    """Whether one is for what the other is against. What only one of them is about narrows it, and does not turn it."""
    shared = one.sides.keys() & other.sides.keys()
    if not shared or one.direction(shared) == other.direction(shared):
        return False
    if one.sides.keys() == other.sides.keys():
        return True
    # `Explain jargon` does not undo `Avoid jargon`: they begin with different things to do.
    if any(sense.act is not None and sense.act not in shared for sense in (one, other)):
        return False
    share = _share(one.sides.keys(), other.sides.keys())
    general, special = sorted((one, other), key=lambda sense: len(sense.sides))
    if len(shared) < len(general.sides):
        return share >= SAME_MATTER
    # `Never refuse` is undone by `Refuse crimes`. `Be polite` and `Do not be polite to thieves` are rule and exception,
    # and so are being helpful and refusing something.
    exception = general.sign > special.sign or shared == {"help"}
    return share >= WITHIN and not exception


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
        count = len(words_of(principle.text))
        sentences = len(re.findall(r"[.!?;](?=\s|$)|[\u3002\uff01\uff1f\uff1b]", principle.text))
        if count > MOST_WORDS or sentences > MOST_SENTENCES:
            size = f"{count} words" if count > MOST_WORDS else f"{sentences} sentences"
            yield (
                principle,
                f"principle '{principle.id}' has {size}: a labeler weighs them as one; split it into several",
            )


def _two_things(constitution: Constitution) -> Warnings:
    """Principles that ask for one thing and then for another."""
    for principle in constitution.principles:
        if parts := _two_commands(principle.text):
            one, other = (textwrap.shorten(part, 60, placeholder="…") for part in parts)
            two = f"principle '{principle.id}' asks for two things, '{one}' and '{other}'"
            yield principle, f"{two}, which are weighed as one; make each a principle of its own"


def _two_commands(text: str) -> tuple[str, str] | None:
    """The two commands of a sentence that asks for different things.

    `Be polite, but do not flatter` has two. `Be helpful, but never help with crimes` is about one matter, and so is
    `Be honest and never lie`; behind a mere `and`, both must take a side on some question to be taken for different.
    """
    if len(words_of(text)) > MOST_WORDS:
        return None
    for sentence in re.split(r"(?<=[.!?])\s", text.replace("’", "'")):
        for joint in _JOINTS.finditer(sentence):
            one, other = sentence[: joint.start()].strip(), sentence[joint.end() :].rstrip(" .!?;")
            about, also_about = _sense(one).sides.keys(), _sense(other).sides.keys()
            if not _COMMAND.search(one) or not about or not also_about or about & also_about:
                continue
            if joint["word"].lower() != "and" or (about & _OPPOSITES.keys() and also_about & _OPPOSITES.keys()):
                return one, other
    return None


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
    "two-things": _two_things,
    "no-examples": _missing_examples,
    "equal-example": _equal_examples,
}
"""The warnings, by the name that stands behind each."""
