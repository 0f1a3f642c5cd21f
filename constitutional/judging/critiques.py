"""What a critique concludes: whether the response follows the principle.

Only a last sentence that says so plainly counts. "I doubt that it follows the principle." holds the words of a verdict
inside their denial, so it is no verdict.
"""

import re
from typing import Final

_SUBJECT: Final = (
    r"^[\W_]*(?:(?:so|thus|hence|therefore|then|overall|accordingly|consequently|as a result|in (?:short|summary|sum|"
    r"conclusion|total))\b[\W_]*)?(?:(?:(?:the|my|final) )*(?:verdict|conclusion|critique|assessment)[\W_]+)?"
    r"(?:it|this|that|i|(?:the|this|my|your|its)(?: (?:last|final|revised|first))? "
    r"(?:response|reply|answer|draft|text|message|revision)|the assistant(?:['’]s (?:response|reply|answer))?)"
)
_SURELY: Final = (
    r"[\W_]+(?:(?:fully|clearly|completely|closely|faithfully|entirely|therefore|thus|also|still|indeed)[\W_]+)?"
)
_PRINCIPLE: Final = r"[\W_]+(?:the|this|that)[\W_]+principle(?:[^\w?？]|_)*$"

FOLLOWS_PATTERN: Final = rf"{_SUBJECT}{_SURELY}(?:follows?|does not violate|doesn['’]t violate){_PRINCIPLE}"
"""Regular expression for a last sentence which says that the response follows the principle: "So it follows the
principle." It reads over bold marks and quotes."""
VIOLATES_PATTERN: Final = rf"{_SUBJECT}{_SURELY}(?:violates?|does not follow|doesn['’]t follow){_PRINCIPLE}"
"""The same for a response that violates the principle."""

_SENTENCE_END: Final = re.compile(r"(?<=[.!?])[\"'”’)*_]*\s+|(?<=[。！？])|\n+")

_GOES_ON: Final = re.compile(r"(?<=[:,])[*_\"'”’)]*+[^\S\n]*+\n[\s>]*+")


def last_sentence(text: str) -> str:
    """The last sentence of a text, or its last line if a new line begins later; empty for an empty text.

    A line that ends with a colon or a comma goes on in the next: "Not really:" denies what it announces.
    """
    joined = _GOES_ON.sub(" ", text.strip())
    return next((part for part in reversed(_SENTENCE_END.split(joined)) if part.strip()), "")


def concludes(critique: str, pattern: str) -> bool:
    """Whether the last sentence of a critique matches a regular expression, in any case."""
    return bool(re.search(pattern, last_sentence(critique), re.IGNORECASE))


def checked_pattern(pattern: str) -> str:
    """The regular expression itself.

    Raises:
        ValueError: it is none.
    """
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
    return pattern
