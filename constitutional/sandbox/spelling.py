"""Mends slips of the hand, as in `alwyas` and `certian`: to the reader a word in pieces means little.

A noisy channel (Kernighan, Church and Gale 1990): a word that is in no dictionary becomes one that it is a single slip
away from; by the most usual slip, and of those the one that people use most.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Final

LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
SHORTEST: Final = 4
"""Letters of a word that is mended: shorter ones are one slip away from too many others."""
SURE: Final = 20
"""The mended word is so many times as common as the word, at least; fewer for usual slips, and more for rare ones."""
COMMON: Final = 50
"""Uses from which a word is one, though the encoder has no token for it."""
FEWEST: Final = 2
"""Slips that a text has, at least: one odd word alone is a rare word more often, or a name."""
SWAPPED, LOST, ADDED, ANOTHER = 4.0, 4.0, 0.5, 0.25
"""How usual it is to swap two letters, to lose one, to add one, and to type another one, beside each other."""


def mended(text: str, uses: Mapping[str, int], whole: Callable[[str], bool]) -> str:
    """The text with its slips mended, if it has `FEWEST`; otherwise as it is.

    Args:
        text: in any case; names, which begin with a capital, stay as they are.
        uses: how often people use a word, in lower case; contractions without their apostrophe, too.
        whole: whether the encoder has a token for a word in lower case.
    """
    count = 0

    def mend(found: re.Match[str]) -> str:
        nonlocal count
        word = found.group()
        better = _likeliest(word, uses, whole)
        count += better != word
        return better

    made = _WORD.sub(mend, unicodedata.normalize("NFC", text))  # an accent is a part of the letter
    return made if count >= FEWEST else text


_WORD = re.compile(r"(?<![\w'’])[^\W\d_]+(?![\w'’])")
"""Without an apostrophe: `adviser's` is in no dictionary, and well typed."""


def _likeliest(word: str, uses: Mapping[str, int], whole: Callable[[str], bool]) -> str:
    name = word[0].isupper() and not word.isupper()
    if len(word) < SHORTEST or name or not word.isascii():
        return word
    lower = word.lower()
    stems = (lower, lower.removesuffix("s"), lower[:-1] if lower.endswith(("ed", "er")) else lower)
    if any(map(whole, stems)) or uses.get(lower, 0) >= COMMON:  # `lied` is no slip for `liked`
        return word
    least = SURE * (1 + uses.get(lower, 0))
    likely = [
        (usual, uses[other], other)
        for other, usual in _one_slip_away(lower)
        if usual * uses.get(other, 0) >= least and (whole(other) or uses[other] >= COMMON)
    ]
    best = max(likely)[2] if likely else word
    return best.upper() if word.isupper() else best


def _one_slip_away(word: str) -> Iterator[tuple[str, float]]:
    """What may have been meant, with how usual the slip is that made the word of it."""
    for at in range(len(word) + 1):
        before, after = word[:at], word[at:]
        if len(after) > 1:
            yield before + after[1] + after[0] + after[2:], SWAPPED
        if after:
            yield before + after[1:], ADDED
        for letter in LETTERS:
            yield before + letter + after, LOST
            if after:
                yield before + letter + after[1:], ANOTHER
