"""A comparison as people see it in another tool: plain texts, blind, one response left and one right.

Nothing in an item says what the labeler thinks, which model wrote a response, or why the comparison was chosen.
"""

import re
from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

from constitutional.base.records import Comparison
from constitutional.base.seeds import rng_of
from constitutional.base.text import same_text

ID_MARK: Final = "c_"
"""Begins a comparison's id in tasks: a spreadsheet takes an id of digits, or one such as `12e4`, for a number."""
_NO_CHARACTER: Final = re.compile("[\0\ud800-\udfff]")


class VoteItem(NamedTuple):
    """What is shown of a comparison."""

    name: str
    """The comparison's id behind `c_`."""
    conversation: str
    left: str
    right: str
    left_is: Literal["a", "b"]
    """The response of the comparison that stands left."""

    @property
    def comparison(self) -> str:
        """The comparison's id."""
        return self.name.removeprefix(ID_MARK)

    def side_of(self, choice: str) -> str:
        """`left` or `right` for the response a or b; any other choice stays."""
        return choice if choice not in ("a", "b") else "left" if choice == self.left_is else "right"


def whole_characters(text: str) -> str:
    """The text with U+FFFD for halves of surrogate pairs and NUL, which neither files nor databases take."""
    return _NO_CHARACTER.sub("\ufffd", text)


def item_of(comparison: Comparison, seed: int | None) -> VoteItem:
    """What is shown of a comparison; which response stands left is drawn for it, or is a where there is no seed."""
    a, b = whole_characters(comparison.a), whole_characters(comparison.b)
    turns = (f"{message.role.capitalize()}: {message.content}" for message in comparison.prompt.messages)
    conversation = whole_characters("\n\n".join(turns))
    if seed is not None and rng_of(seed, "votes", comparison.id).random() < 0.5:
        return VoteItem(ID_MARK + comparison.id, conversation, b, a, "b")
    return VoteItem(ID_MARK + comparison.id, conversation, a, b, "a")


def items_of(comparisons: Iterable[Comparison], seed: int | None) -> list[VoteItem]:
    """What is shown of comparisons, without those whose responses read the same: there is nothing to choose."""
    items = (item_of(comparison, seed) for comparison in comparisons)
    return [item for item in items if not same_text(item.left, item.right)]
