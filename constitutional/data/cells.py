"""Lists and objects that were written into texts: in the cells of a CSV file, or in a column of texts.

The first row decides which columns hold them. Columns of a known kind do where their text begins so; any other column
only where its text is a list of messages, because a prompt or a reply may be JSON itself. A text in a column of a known
kind that holds no list stays a text, because most files have such a column for nothing that is read.
"""

import ast
import re
from typing import Any, Final

from constitutional.base.jsonl import BadTextError, check_strings, parse

CONTAINERS: Final = frozenset(
    (
        "answers completions candidates outputs replies generations summaries annotations predictions annotators data "
        "comparison fields info meta metadata responses suggestions conversation_history full_conversation history "
        "individual_preference all_preferences_unprocessed rating ratings scores ranks targets corrects"
    ).split()
)
"""Columns that hold lists or objects wherever rows have them."""
_CONTAINER_ENDS: Final = (".responses", ".responses.users", ".responses.status")
_MOST_SHOWN: Final = 2**18
"""Characters of a list as Python shows it: to read one takes hundreds of times its size in memory."""
_BEGINS: Final = re.compile(r"\s*[\[{]")
_MESSAGES: Final = re.compile(
    r"""(?=.*['"](?:role|from)['"]\s*:\s*['"](?:system|developer|user|human|assistant|gpt|tool)['"])"""
    r"""\s*(?:\[\s*)?\{\s*['"](?:role|content|from|value|messages)['"]\s*:"""
    r"""|\s*\{\s*['"]dataset['"]\s*:.*['"]full_text['"]\s*:""",
    re.DOTALL | re.IGNORECASE,
)
"""How a message or a list of messages looks, or WebGPT's question."""


def columns_of_lists(row: dict[str, Any]) -> list[str]:
    """The columns in which this row, the first of a file, has a list or an object as a text."""
    return [name for name, value in row.items() if isinstance(value, str) and _holds(name, value)]


def _holds(name: str, text: str) -> bool:
    if is_container(name):
        try:
            return _BEGINS.match(text) is not None and isinstance(decoded_cell(text), list | dict)
        except BadTextError:
            return False
    return _BEGINS.match(text) is not None and _MESSAGES.match(text) is not None


def is_container(name: str) -> bool:
    """Whether a column of this name holds lists or objects wherever rows have it."""
    return name in CONTAINERS or name.endswith(_CONTAINER_ENDS)


def decoded_cell(text: str) -> Any:  # noqa: ANN401 - a cell may hold anything
    """The list or the object that a text holds, as JSON or as Python or NumPy show it. No code in it is run.

    Raises:
        BadTextError: it holds none.
    """
    if not text.strip():
        return None
    try:
        return parse(text)
    except BadTextError as error:
        problem = error
    # NumPy breaks the line between objects, and leaves out the comma.
    shown = text.strip().replace("}\n {", "}, {")
    advice = "write lists in cells as JSON, or save the rows as JSON lines or Parquet"
    if len(shown) > _MOST_SHOWN:
        raise BadTextError(f"{problem}, and is too long to be read as Python shows it; {advice}") from problem
    try:
        value = ast.literal_eval(shown)
        # Texts side by side without a comma, as NumPy shows them, are one text to Python.
        if repr(value) == shown:
            check_strings(value)
            return value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    raise BadTextError(f"{problem}; {advice}") from problem
