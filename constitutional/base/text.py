"""Text for people: what is safe to print on a terminal, and tables."""

from collections.abc import Sequence
from unicodedata import category


def printable(text: str) -> str:
    """The text with its control characters written out as escapes; line ends and tabs stay.

    What a model or a file wrote must not move the cursor, recolour the terminal, or hide or reorder what stands beside
    it: that is what control characters, marks of the direction of writing and lone surrogates do.
    """
    return "".join(_escaped(character) if _is_control(character) else character for character in text)


def _is_control(character: str) -> bool:
    # Zero-width joiners (U+200C, U+200D) are control characters too, but words of several scripts and emoji need them.
    return category(character) in {"Cc", "Cf", "Cs", "Zl", "Zp"} and character not in "\n\t\u200c\u200d"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def table(rows: Sequence[Sequence[str]], *, numbers_from: int = 2) -> str:
    """Columns of text: the first ones flush left, then numbers flush right, and the last one flush left."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if numbers_from <= column < len(row) - 1 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
