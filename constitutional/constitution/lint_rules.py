"""What will probably not work in a constitution: a table of small rules over its principles.

They are rules of thumb, some over English words: they may be mistaken, and what they find never stops a run. Whether
principles contradict each other is asked of a model (`judging/understanding.py`), not here. A rule looks at a
principle a bounded number of times, so long files are no problem.
"""

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet

from constitutional.base.progress import enumerated
from constitutional.base.text import words as words_of
from constitutional.constitution.constitution import Constitution, Principle

MOST_WORDS = 80
MOST_SENTENCES = 4
"""A principle with more is judged as a whole, though its parts may disagree."""
SIMILAR = 0.8
"""Words in common, as a share of the words of both, from which two principles are near-duplicates."""
MOST_CANDIDATES = 20
"""Earlier principles with rare words in common that a principle is compared with."""

Warnings = Iterator[tuple[Principle | None, str]]
"""What a rule finds: the principle (None for all of them together) and the message."""


# Words

_AGAINST = frozenset(
    "avoid avoids avoiding never not no don't dont doesn't isn't aren't shouldn't mustn't cannot can't without refrain "
    "stop less least fewer rarely seldom reduce minimize minimise drop skip omit leave reject against nothing nobody "
    "neither nor hardly".split()
)
"""Words that turn a wish round: two principles are no duplicates where one has an odd number of them."""
_EMPTY = _AGAINST | frozenset(
    "a an the this that these those it its i me my we us our you your he she they them their who whom which what and "
    "or but if then so as than of to in on at by for from with into about is are was were be been being am do does did "
    "have has had can could will would shall should must may might ought need there here when while whenever please "
    "very just only also too ever each every any all some one two both either most more such out often usually "
    "always anything everything something anyone anybody everyone everybody someone somebody answer response reply "
    "assistant model user person people human chatbot bot ai text choose pick select prefer write give make keep use "
    "show thing way option message question conversation speak sound try say tell ask".split()
)
"""Words that do not tell what a principle is about."""
_VAGUE = frozenset(
    "good better best nice nicer great fine well appropriate appropriately proper properly right suitable ideal "
    "ideally excellent perfect reasonable reasonably adequate acceptable quality positive high normal usual sensible "
    "satisfactory okay ok correct correctly desirable high-quality whatever".split()
)
_COMMANDS = (
    "acknowledge|add|address|admit|agree|aim|answer|apologize|ask|avoid|be|begin|check|choose|cite|clarify|compare|"
    "compliment|consider|correct|describe|disclose|discuss|do not|don't|draw|encourage|end|ensure|explain|finish|"
    "flatter|focus|follow|give|greet|hedge|help|include|invite|keep|leave|let|limit|list|make|mention|must|name|never|"
    "always|obey|offer|point out|praise|prefer|present|protect|provide|put|quote|recommend|reduce|refer|refrain|refuse|"
    "remember|remind|reply|respect|respond|reveal|say|share|should|show|sign|speak|start|stay|stop|suggest|summarize|"
    "take|teach|tell|thank|translate|treat|try|use|warn|write"
)
_COMMAND = re.compile(
    rf"^(?:[^:.]{{1,40}}: +)?(?:.*, )?(?:(?:and|also|please|then|instead) )*"
    rf"(?:(?:the )?(?:response|reply|answer|assistant|model)s? )?(?:{_COMMANDS})\b",
    re.IGNORECASE | re.DOTALL,
)
"""A clause that tells what to do, maybe behind a heading or a condition."""
_CLAUSES = re.compile(r"(?<=[.!?;])[\"')\]]*\s+|\s*\n\s*(?:[-*•]\s+)?|,?\s+(?:but|yet)\s+(?:also\s+)?")
"""What stands between two clauses."""
_TEMPLATE = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\$\{.*?\}", re.DOTALL)


def _words(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+(?:['-][^\W_]+)*", text.lower().replace("’", "'"))
    return [word.removesuffix("'s") for word in words]


def _stem(word: str) -> str:
    """The word without its commonest endings, so that `lecturing` meets `lectures`, and `flattery` meets `flatter`."""
    for ending, instead, least in (("ies", "y", 3), ("ly", "", 4), ("y", "", 6)):
        if word.endswith(ending) and len(word) - len(ending) >= least:
            word = word.removesuffix(ending) + instead
    for ending in ("ings", "ing", "ed", "es", "s", "e", "ful"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


_EMPTY_STEMS = frozenset(map(_stem, _EMPTY))
_GIVES_A_REASON = frozenset(map(_stem, "because since reason therefore thus important matter".split()))
"""Words that say that a reason comes, and give none."""


def _telling(text: str) -> set[str]:
    """The stems of the words that tell what a text is about."""
    return {_stem(word) for word in _words(text) if word not in _EMPTY} - _EMPTY_STEMS


# The rules


def _of(principle: Principle, problem: str) -> tuple[Principle, str]:
    return principle, f"principle '{principle.id}' {problem}"


def _near(sets: Sequence[AbstractSet[str]], least: float) -> Iterator[list[int]]:
    """For every set the earlier sets with which its Jaccard index may be `least` or more.

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


def _duplicates(constitution: Constitution) -> Warnings:
    """Near-duplicates: nearly the same stems, and the same direction."""
    principles = constitution.principles
    stems = [_telling(principle.text) for principle in principles]
    turned = [sum(word in _AGAINST for word in _words(principle.text)) % 2 for principle in principles]
    for number, near in enumerate(_near(stems, SIMILAR)):
        for other in near:
            shared, either = stems[number] & stems[other], stems[number] | stems[other]
            if len(shared) >= SIMILAR * len(either) and turned[number] == turned[other]:
                twin = principles[other].id
                yield _of(principles[number], f"says nearly the same as '{twin}'; keep one, and weight it")
                break


def _unmeasurable(constitution: Constitution) -> Warnings:
    """Principles of which nobody can say whether an answer follows them."""
    for principle in constitution.principles:
        if all(word in _VAGUE or _stem(word) in _EMPTY_STEMS or word in _EMPTY for word in _words(principle.text)):
            yield _of(principle, "cannot be measured: say what an answer does, not that it is good")


def _too_much(constitution: Constitution) -> Warnings:
    """Principles that are long."""
    for principle in constitution.principles:
        count = len(words_of(principle.text))
        sentences = len(re.findall(r"[.!?;](?=\s|$)|[\u3002\uff01\uff1f\uff1b]", principle.text))
        if count > MOST_WORDS or sentences > MOST_SENTENCES:
            size = f"{count} words" if count > MOST_WORDS else f"{sentences} sentences"
            yield _of(principle, f"has {size}: a labeler weighs them as one; split it into several")


def _several_wishes(constitution: Constitution) -> Warnings:
    """Principles with several commands that have no telling word in common.

    A sentence that explains is no command, and a rule and its exception (`Help with everything, but never help with
    crimes`) have a word in common.
    """
    for principle in constitution.principles:
        commands = [clause for clause in _CLAUSES.split(principle.text.replace("’", "'")) if _COMMAND.match(clause)]
        about = [_telling(command) for command in commands]
        others = (number for number in range(1, len(commands)) if about[number] and not about[0] & about[number])
        if about and about[0] and (other := next(others, None)):
            first, second = (textwrap.shorten(commands[at].rstrip(" .!?;"), 60, placeholder="…") for at in (0, other))
            two = f"seems to ask for several things ('{first}', '{second}'), weighed as one"
            yield _of(principle, f"{two}; to split it, make each a principle or a list item of its own")


def _template_syntax(constitution: Constitution) -> Warnings:
    """Principles in which somebody may expect something to be filled in."""
    for principle in constitution.principles:
        if match := _TEMPLATE.search(f"{principle.text}\n{principle.why or ''}"):
            syntax = textwrap.shorten(match[0], 60, placeholder="…")
            yield _of(principle, f"holds '{syntax}', which models see as it is: nothing fills it in")


def _empty_reasons(constitution: Constitution) -> Warnings:
    """Reasons that only say the principle again."""
    for principle in constitution.principles:
        if principle.why is not None and _telling(principle.why) <= _telling(principle.text) | _GIVES_A_REASON:
            yield _of(principle, "gives a 'why' that adds nothing to its text; say what it protects, or leave it out")


def _idle_priorities(constitution: Constitution) -> Warnings:
    """Priorities that can never decide a label."""
    for principle in constitution.principles:
        if principle.overrides and "comparison" not in principle.uses:
            yield _of(principle, "overrides others, but is not used for comparison, so it never decides a label")
    compared = {principle.id for principle in constitution.principles if "comparison" in principle.uses}
    for principle in constitution.principles:
        if idle := [name for name in principle.overrides if name not in compared]:
            yield _of(principle, f"overrides '{idle[0]}', which is not used for comparison, so they never meet")


def _missing_examples(constitution: Constitution) -> Warnings:
    """Principles whose labels cannot be checked; what a rule decides needs no check."""
    judged = [principle for principle in constitution.principles if principle.rule is None]
    without = [principle for principle in judged if not principle.examples]
    if len(without) == len(constitution.principles):
        yield None, "no principle has examples (prompt, better, worse), so the labeler cannot be measured on them"
        return
    if len(without) == 1:
        yield _of(without[0], "has no examples, so the labeler cannot be measured on it")
    elif without:
        names = enumerated(f"'{principle.id}'" for principle in without)
        yield None, f"principles {names} have no examples, so the labeler cannot be measured on them"


def _equal_examples(constitution: Constitution) -> Warnings:
    """Examples that say nothing."""
    for principle in constitution.principles:
        for number, example in enumerate(principle.examples, start=1):
            if example.better == example.worse:
                yield principle, f"principle '{principle.id}': example {number} has the same text as better and worse"


RULES: Mapping[str, Callable[[Constitution], Warnings]] = {
    "duplicate": _duplicates,
    "unmeasurable": _unmeasurable,
    "too-much": _too_much,
    "several-wishes": _several_wishes,
    "template-syntax": _template_syntax,
    "empty-why": _empty_reasons,
    "idle-priority": _idle_priorities,
    "no-examples": _missing_examples,
    "equal-example": _equal_examples,
}
"""The warnings, by the name that stands behind each."""
