"""Items of a run by id, by principle or by words: one item, or lists of items with how to see one of them."""

import re
import shlex
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any, Final

from constitutional.base.errors import UsageError
from constitutional.base.progress import counted
from constitutional.base.text import canonical, printable
from constitutional.cli import show
from constitutional.constitution.constitution import nearest
from constitutional.constitution.file import load_constitution
from constitutional.runs import search
from constitutional.runs.folder import USED, RunStore

LISTED: Final = 10
"""Items of each kind that a list shows, unless all are asked for."""


def find(store: RunStore, wanted: str, *, as_text: bool = False, everything: bool = False) -> str:
    """What an id, a principle's id or words stand for, as text.

    A whole id comes first, then a principle's id, then words that stand in a text as they are, then the beginning of an
    id, then words within other words.

    Args:
        store: the run.
        wanted: what the user typed.
        as_text: whether it is words, whatever else it may be.
        everything: whether lists are whole.

    Raises:
        UsageError: there is nothing of that kind, or more than one id begins so.
    """
    if not canonical(wanted):
        raise UsageError("an empty ITEM finds nothing; type an id, a principle's id, or words")
    path = store.folder / USED
    principles = {row.id: row.text for row in load_constitution(path).principles} if path.is_file() else {}
    rows = search.by_id(store, wanted) if re.fullmatch("[0-9a-f]{1,16}", wanted) and not as_text else []
    if rows and len(wanted) == search.ID_LENGTH:
        return show.item(store, rows[0])
    if wanted in principles and not as_text:
        return _by_principle(store, wanted, principles[wanted], everything=everything)
    matches = search.by_words(store, wanted)
    if rows:
        word = re.compile(rf"(?<!\w){re.escape(canonical(wanted))}(?!\w)", re.IGNORECASE)
        matches = ((row, text) for row, text in matches if word.search(canonical(text)))
    if told := _by_words(store, wanted, matches, [row.id for row in rows], everything=everything):
        return told
    ids = list(dict.fromkeys(row.id for row in rows))
    if len(ids) > 1:
        raise UsageError(f"'{wanted}' begins {len(ids)} ids ({', '.join(sorted(ids)[:5])}, …); type more of it")
    if ids:
        return show.item(store, rows[0])
    raise UsageError(_nothing(store, wanted, principles))


def _nothing(store: RunStore, wanted: str, principles: Iterable[str]) -> str:
    example = next((row.id for kind in search.KINDS for row in search.rows(store, kind)), "")
    advice = f"; every row of the run's *.jsonl files begins with its id, such as {example}" if example else ""
    near = nearest(wanted, principles)
    principle = f" ({near})" if near.startswith("did") else ""
    return f"{store.folder}: nothing has the id, the principle{principle} or the words '{wanted}'{advice}"


class _Listed:
    """Items to be listed, by kind; no more of them are held than are shown.

    Args:
        everything: whether all are shown.
    """

    def __init__(self, *, everything: bool) -> None:
        self.counts: Counter[str] = Counter()
        self.notes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By kind, how many items there are of which a word is true."""
        self._everything = everything
        self._items: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)

    def add(self, kind: str, item: str, line: str) -> None:
        """An item by its id, with a line that tells it from others."""
        self.counts[kind] += 1
        if self._everything or len(self._items[kind]) < LISTED:
            self._items[kind].append((item, line))

    def lines(self, store: RunStore) -> list[str]:
        """The items of each kind: how many, a line for each with its id first, and how to see one."""
        from rich.cells import cell_len, set_cell_size

        width, lines = shutil.get_terminal_size().columns, list[str]()
        for kind, count in self.counts.items():
            words = ", ".join(f"{number} {word}" for word, number in sorted(self.notes[kind].items()))
            name = kind if count > 1 else kind.removesuffix("s")
            lines.append(f"\n{count:,} {name}{f': {words}' if words else ''}")
            for item, text in self._items[kind]:
                line = printable(f"  {item}  {' '.join(text.split())}")
                lines.append(line if cell_len(line) <= width else f"{set_cell_size(line, width - 1).rstrip()}…")
            if more := count - len(self._items[kind]):
                lines.append(f"  … and {more:,} more; --all lists them")
        first = next(iter(self._items.values()))[0][0]
        lines.append(f"\nto see one of them: constitutional show {shlex.quote(str(store.folder))} {first}")
        return lines


def _by_principle(store: RunStore, principle: str, text: str, *, everything: bool) -> str:
    listed = _Listed(everything=everything)
    for row in search.by_principle(store, principle):
        words, line = _of_principle(row.artifact, row.values, principle)
        listed.notes[row.artifact].update(words)
        listed.add(row.artifact, row.id, line)
    heading = f"principle {principle}: {text}"
    if not listed.counts:
        return printable(f"{heading}\nnothing in this run rests on it yet")
    return "\n".join([printable(heading), *listed.lines(store)])


def _of_principle(artifact: str, values: dict[str, Any], principle: str) -> tuple[list[str], str]:
    """What to count of a row that a principle has a part in, and a line that tells it from others."""
    if artifact == "preferences":
        chosen = f"{_asked(values)} → {values['chosen']}"
        return ["to train on" if values["split"] == "train" else "held out"], f"{values['probability']:.2f}: {chosen}"
    if artifact == "judgements":
        p_a = values["p_a"]
        words = ["unreadable"] if p_a is None else ["position conflict"] if values["conflict"] else []
        rationale = next((reading["rationale"] for reading in values["readings"] if reading["rationale"]), "")
        shown = (
            "unreadable" if p_a is None else f"P(a is better) = {p_a:.2f}{', conflict' if values['conflict'] else ''}"
        )
        return words, f"{shown}: {rationale or 'comparison ' + values['comparison']}"
    before, word = values["draft"], "unchanged"
    for step in values["steps"]:
        if step["principle"] == principle and step["revision"] != before:
            word = "changed"
        before = step["revision"]
    if values["problem"]:
        word = "left out"
    return [word], f"{word}: {_asked(values)}"


def _asked(values: dict[str, Any]) -> str:
    return str(values["prompt"]["messages"][-1]["content"])


def _by_words(
    store: RunStore, words: str, matches: Iterable[tuple[search.FoundRow, str]], ids: list[str], *, everything: bool
) -> str:
    """The items in whose texts these words stand; empty where there is none."""
    listed = _Listed(everything=everything)
    for row, text in matches:
        listed.add(row.artifact, row.id, _around(canonical(text), canonical(words)))
    if not listed.counts:
        return ""
    lines = [f"{counted(listed.counts.total(), 'item')} with '{words}' in a text"]
    if ids:
        lines.append(f"it also begins {counted(len(ids), 'id')}: {', '.join(ids[:5])}{', …' if len(ids) > 5 else ''}")
    return "\n".join([*map(printable, lines), *listed.lines(store)])


def _around(text: str, words: str) -> str:
    """The text from a little before the words."""
    at = max(0, text.casefold().find(words.casefold()) - 20)
    return f"…{text[at:]}" if at else text
