"""Rules that count something in a reply, which a principle may name in the place of a model's judgement (`measure:`).

Anyone can check what they count, and they know nothing but the text: “fewer words” is no more than that. A reply's
score goes from 1 to 10, as a labeler's does: 1 + 9·q, where q = n / (n + h) for more of n, h / (n + h) for less of it,
and h is what `MEASURES` says, at which q is a half. “At most 40 words” counts the words beyond 40, and “at least 40
words” those that are missing.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Final, Literal, NamedTuple

from constitutional.base.refusals import REFUSAL_PHRASES, refuses
from constitutional.base.text import count_questions, words

Way = Literal["more", "fewer", "at most", "at least"]

CASUAL: Final = frozenset(
    "hey hi yeah yep yup nope nah wow ok okay gonna wanna gotta kinda sorta dunno lemme cuz cause stuff guy guys folks "
    "buddy dude pal kid kids cool awesome super totally really pretty lots tons bunch fun crazy chill grab yummy oops "
    "btw lol haha cheers thanks bye hang heads-up no-brainer".split()
)
"""Words of a casual tone; a contraction such as “don't” counts too."""
FORMAL: Final = frozenset(
    "therefore furthermore moreover however thus hence consequently accordingly nevertheless nonetheless regarding "
    "concerning pursuant whereas whereby thereby herein upon prior subsequently additionally respectively sincerely "
    "kindly obtain require requires assist ensure ensures commence utilize endeavour endeavor appropriate sufficient "
    "numerous essential recommend recommended advisable individuals approximately demonstrate facilitate".split()
)
"""Words of a formal tone."""
FIRST_PERSON: Final = frozenset("i me my mine myself i'm i've i'd i'll".split())

_WORD: Final = re.compile(r"[a-z]+(?:['’-][a-z]+)*")
_CONTRACTION: Final = re.compile(r"[a-z]+['’](?:t|re|ll|ve|d|m)|(?:it|that|there|here|what|who|let|he|she)['’]s")
_ITEM: Final = re.compile(r"^[ \t]*(?:[-*•+]|\(?\d{1,3}[.)]|\(?[a-z][.)])[ \t]+\S", re.MULTILINE | re.IGNORECASE)
_EXCLAMATIONS: Final = re.compile("[!\uff01]+")


class Measure(NamedTuple):
    """Something that is counted in a reply."""

    number_in: Callable[[str], float]
    half: float
    """The number at which the score is in the middle."""


def list_items(text: str) -> int:
    """Lines that begin as items of a list do: with `-`, `*`, `•`, `1.` or `a)`."""
    return len(_ITEM.findall(text))


def exclamation_marks(text: str) -> int:
    """Exclamation marks, a row of them being one."""
    return len(_EXCLAMATIONS.findall(text))


def share_of(text: str, kind: Callable[[str], bool]) -> float:
    """Words of a kind in a hundred words of a text; 0 in an empty one."""
    found = [word.replace("’", "'") for word in _WORD.findall(text.lower())]
    return 100 * sum(map(kind, found)) / len(found) if found else 0.0


def is_casual(word: str) -> bool:
    """Whether a word, in lower case, is of a casual tone."""
    return word in CASUAL or _CONTRACTION.fullmatch(word) is not None


MEASURES: Final = {
    "words": Measure(lambda text: len(words(text)), 60.0),
    "list items": Measure(list_items, 2.0),
    "questions": Measure(count_questions, 1.0),
    "exclamation marks": Measure(exclamation_marks, 1.0),
    "refusals": Measure(lambda text: float(refuses(text, REFUSAL_PHRASES)), 0.5),
    "first person": Measure(lambda text: share_of(text, FIRST_PERSON.__contains__), 4.0),
    "casual words": Measure(lambda text: share_of(text, is_casual), 3.0),
    "formal words": Measure(lambda text: share_of(text, FORMAL.__contains__), 3.0),
}
"""By name: counts of a reply, whether it refuses (0 or 1), and for the last three such words in a hundred."""


class Rule(NamedTuple):
    """A measure and which way is better."""

    way: Way
    limit: float | None
    """Of `at most` and `at least`."""
    name: str

    @property
    def unit(self) -> str:
        """What is counted, for people."""
        shares = ("first person", "casual words", "formal words")
        return f"{self.name} in a hundred words" if self.name in shares else self.name

    def number_in(self, reply: str) -> float:
        """What is counted, as it is."""
        return MEASURES[self.name].number_in(reply)

    def score(self, reply: str) -> float:
        """The score of a reply, from 1 to 10."""
        found, half = self.number_in(reply), MEASURES[self.name].half
        if self.way == "more":
            return 1 + 9 * found / (found + half)
        return 1 + 9 * half / (half + self.beyond(found))

    def beyond(self, found: float) -> float:
        """How much is too much of what is counted, or lacks: above 0 where a bound is broken."""
        if self.limit is None:
            return 0.0 if self.way == "more" else found
        return max(0.0, found - self.limit if self.way == "at most" else self.limit - found)


@cache
def rule_of(written: str) -> Rule:
    """The rule that a text such as `fewer words`, `more questions` or `at most 40 words` names.

    Raises:
        ValueError: it names none; says which there are.
    """
    found = re.fullmatch(
        r"(?:(more|fewer|less)|(at most|at least) (\d{1,6}))\s+(.+)", " ".join(written.lower().split())
    )
    names = {name: name for name in MEASURES} | {name.removesuffix("s"): name for name in MEASURES}
    if found is None or found[4] not in names:
        raise ValueError(
            f"is '{written[:60]}'; it must be 'more', 'fewer', 'at most N' or 'at least N' of {', '.join(MEASURES)}, "
            "such as 'fewer words' or 'at most 40 words'"
        )
    ways: dict[str | None, Way] = {"more": "more", "fewer": "fewer", "less": "fewer"}
    bounds: dict[str | None, Way] = {"at most": "at most", "at least": "at least"}
    way = ways.get(found[1]) or bounds[found[2]]
    return Rule(way, float(found[3]) if found[3] else None, names[found[4]])
