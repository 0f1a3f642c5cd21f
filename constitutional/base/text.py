"""Words, questions and sentences in any script, what makes two texts one, and what is safe to print on a terminal."""

import re
import shutil
import unicodedata
from collections.abc import Container, Sequence
from typing import Final

import regex  # type: ignore[import-untyped]

# A letter or digit of a script that is written without spaces between words.
_UNSPACED: Final = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]&&[\p{L}\p{N}]]"
)
_WORD: Final = regex.compile(rf"(?V1){_UNSPACED}\p{{M}}*\p{{P}}*|[^\s\u200b\ufeff{_UNSPACED}]+")
# Latin, full width, Arabic, double and mixed ones, interrobang, Armenian, Ethiopic, reversed.
_QUESTION_MARKS: Final = r"?\uff1f\u061f\u2047-\u2049\u203d\u055e\u1367\u2e2e"
_QUESTIONS: Final = regex.compile(rf"[{_QUESTION_MARKS}][{_QUESTION_MARKS}!\uff01]*")
# Before a space: Latin, Arabic and Indic marks. Anywhere: those of full width, of which Chinese and Japanese have no
# space behind them.
_SENTENCE_END: Final = regex.compile(
    r"(?<=[.!?\u061f\u06d4\u0964\u0965\u2026]\p{Pf}?\p{Pe}?[\"']?)\s+"
    r"|(?<=[\u3002\uff01\uff1f\uff61][\p{Pe}\p{Pf}]*)(?![\p{Pe}\p{Pf}\u3002\uff01\uff1f\uff61])\s*|\n+"
)
_BULLET_AT_END: Final = re.compile(r"(?:^|\n)[ \t]*(?:\d+[.)]|[-*•])[ \t]*\Z")
_HIDDEN: Final = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_OTHER_SENSE: Final = ("<super>", "<sub>", "<fraction>")
_GAP: Final = 2
"""Spaces between two columns of a table."""
_PIECE: Final = 8
"""Columns of the terminal that a piece of a word, broken in a table, takes at least."""


def words(text: str) -> list[str]:
    """The words of a text, with the punctuation that touches them.

    They are what spaces divide. In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese,
    Tibetan) each character, with its marks, counts as a word. That is the usual count of Chinese and Japanese; Thai and
    the like come out about three times as long as a dictionary would count them.
    """
    return list(_WORD.findall(text))


def first_words(text: str, count: int) -> str:
    """A text up to the end of so many words."""
    ends = [match.end() for match, _ in zip(_WORD.finditer(text), range(count), strict=False)]
    return text[: ends[-1]] if ends else ""


def count_questions(text: str) -> int:
    """Questions that a text asks: question marks of any script, a row of them being one question."""
    return len(_QUESTIONS.findall(text))


def sentences(text: str) -> list[str]:
    """The sentences of a text: they end at a line's end, at a mark such as `.` before a space, and at `。` anywhere.

    A text of nothing but spaces has none.
    """
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def whole_sentences(text: str) -> str:
    """A text that was cut off, up to its last sentence or line that is whole; empty where there is none."""
    ends = [match.start() for match in _SENTENCE_END.finditer(f"{text} ")]
    return _BULLET_AT_END.sub("", text[: ends[-1]]).rstrip() if ends else ""


def shortened(reply: str) -> str:
    """A reply that was cut off, up to what is whole of it; empty where it was cut off in its thoughts."""
    spoken = without_thoughts(reply)
    whole = whole_sentences(spoken)
    return reply[: len(reply) - len(spoken)] + whole if whole else ""


def thoughts_apart(reply: str, *, opened: bool = False) -> tuple[str, str]:
    """What a reasoning model thought before its reply, and the reply; a thought that does not end is all there is.

    Args:
        reply: as the model wrote it.
        opened: the model's prompt has opened a thought, so that the reply lacks the tag.
    """
    written = reply.lstrip()
    if not opened and not written.startswith("<think>"):
        return "", reply
    thought, _, spoken = written.removeprefix("<think>").partition("</think>")
    return thought.strip(), spoken.lstrip()


def without_thoughts(reply: str) -> str:
    """A reply behind the thoughts that a reasoning model wrote into it; empty where it never stopped thinking."""
    if reply.lstrip().startswith("{"):
        return reply  # JSON, whose reasoning may speak of the tag
    _, tag, spoken = reply.rpartition("</think>")
    return "" if not tag and spoken.lstrip().startswith("<think>") else spoken


def sound(text: str) -> str:
    """The text without lone surrogates, which JSON can hold and no file can."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def canonical(text: str) -> str:
    """A text as people read it: texts that look the same have the same canonical form.

    Characters are composed and of plain width (Unicode's NFKC), invisible ones are left out, and a run of spaces and
    line ends is one space. Superscripts, subscripts and fractions stay as they are, since 2² is not 22.
    """
    if text.isascii():
        if text.isprintable() and "  " not in text:
            return text.strip()  # for half the time: no other character is a space
        return " ".join(text.split())
    visible = unicodedata.normalize("NFC", _HIDDEN.sub("", text))
    if not unicodedata.is_normalized("NFKC", visible):
        plain = (
            char if unicodedata.decomposition(char).startswith(_OTHER_SENSE) else unicodedata.normalize("NFKC", char)
            for char in visible
        )
        visible = unicodedata.normalize("NFC", "".join(plain))
    return " ".join(visible.split())


def same_text(first: str, second: str) -> bool:
    """Whether people would read two texts as the same."""
    if first.isascii() and second.isascii():
        # As of canonical texts, for half the time; for a tenth where the last words differ, as they mostly do.
        return first.rsplit(None, 1)[-1:] == second.rsplit(None, 1)[-1:] and first.split() == second.split()
    return first == second or canonical(first) == canonical(second)


def printable(text: str) -> str:
    """The text with its control characters written out as escapes; line ends and tabs stay.

    What a model or a file wrote must not move the cursor, recolour the terminal, or hide or reorder what stands beside
    it: that is what control characters, marks of the direction of writing and lone surrogates do.
    """
    # Zero-width joiners (U+200C, U+200D) are control characters too, but words of several scripts and emoji need them.
    control = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in control and character not in "\n\t\u200c\u200d"
        else character
        for character in text
    )


def table(rows: Sequence[Sequence[str]], *, numbers_from: int = 2, width: int | None = None) -> str:
    """Columns of text: the first ones flush left, then numbers flush right, and the last one flush left.

    Where the table is too wide, the widest columns are wrapped inside their cells. Nothing is cut off: a table of which
    the numbers alone are too wide stays too wide.

    Args:
        rows: the rows, all with as many cells; the first may be a heading.
        numbers_from: the first column of numbers.
        width: columns of the terminal; None means as many as it has, or 80 where there is no terminal.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = list(zip(*([printable(cell).expandtabs() for cell in row] for row in rows), strict=True))
    numbers = range(numbers_from, len(columns) - 1)
    gaps = len(columns) - 1 if any(columns[-1]) else len(columns) - 2
    room = (width or shutil.get_terminal_size().columns) - _GAP * gaps
    widths = _column_widths(columns, numbers, room)
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    for index, column_width in enumerate(widths):
        grid.add_column(width=column_width, justify="right" if index in numbers else "left", overflow="fold")
    for row in zip(*columns, strict=True):
        grid.add_row(*map(Text, row))
    console = Console(
        width=sum(widths) + _GAP * len(columns),
        force_terminal=False,
        force_jupyter=False,
        color_system=None,
        legacy_windows=False,
    )
    with console.capture() as capture:
        console.print(grid)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _column_widths(columns: Sequence[Sequence[str]], numbers: Container[int], room: int) -> list[int]:
    """The width of every column, of `room` together if that can be."""
    from rich.cells import cell_len

    widths, least = [], []
    for index, column in enumerate(columns):
        longest = [max(map(cell_len, cell.splitlines()), default=0) for cell in column]
        word = max(map(cell_len, " ".join(column).split()), default=0)
        widths.append(max(longest))
        whole = max([word, *longest[1:]])
        least.append((whole, whole, word) if index in numbers else (word, _PIECE, _PIECE))
    # First text and headings are wrapped, then words of the text are broken, and numbers are wrapped last.
    for bounds in zip(*least, strict=True):
        while sum(widths) > room and (wide := [index for index, bound in enumerate(bounds) if widths[index] > bound]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


_FORMULA: Final = re.compile("'* *[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""What a spreadsheet takes for the beginning of a formula, with the apostrophes by which it is kept a text."""


def neutralised(cell: str) -> str:
    """A cell of a table as a spreadsheet shows it as text: with an apostrophe before what could be a formula."""
    return f"'{cell}" if _FORMULA.match(cell) else cell


def restored(cell: str) -> str:
    """The cell before `neutralised`."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
