"""Everything that is worth a person's look in a constitution file, with its line. And what changed between two files.

Errors are what keeps a file from loading, and they alone stop a run. Warnings are what will probably not work, by the
rules of `lint_rules.py` and by what the run's model takes the principles to mean. Notes say how the file was read.
"""

import bisect
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from constitutional.base.errors import InputError
from constitutional.base.progress import counted, percent
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.constitution.file import find_constitution, read_constitution
from constitutional.constitution.lint_rules import RULES
from constitutional.constitution.markdown import Aside, read_markdown
from constitutional.constitution.principle_file import MARKDOWN_ENDINGS, read_text

SURE_FROM = 0.8
"""Probability of a meaning below which the model is unsure of it."""
MOST_SHOWN = 20
"""Warnings that a run prints before it begins."""
MOST_QUOTED = 60
"""Characters of a text that are quoted in a message."""

Severity = Literal["error", "warning", "note"]


class Finding(NamedTuple):
    """Something in a constitution file that is worth a person's look."""

    path: Path
    line: int | None
    """From 1; None for the file as a whole."""
    severity: Severity
    rule: str
    message: str

    def __str__(self) -> str:
        """`file:line: severity: message [rule]`, which editors can jump to."""
        place = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.severity}: {self.message} [{self.rule}]"


class Understanding(Protocol):
    """What a model takes a text to mean."""

    @property
    def trait(self) -> str:
        """What it is about; `nothing` if it asks for nothing."""
        ...

    @property
    def direction(self) -> str:
        """`avoid` or `seek`."""
        ...

    @property
    def probability(self) -> float:
        """Of this meaning, in [0, 1]."""
        ...

    @property
    def unknown_words(self) -> Sequence[str]:
        """Words of the text that the model has never seen in a principle."""
        ...


Understand = Callable[[list[str]], Sequence[Understanding]]


def findings_of(file: str, *, sandbox: bool, chosen: Collection[str] | None = None) -> list[Finding]:
    """What `lint_file` finds in a file, or in the shipped constitution of that name.

    Args:
        file: its path or name.
        sandbox: whether the test-bed's model reads it, which then says what it takes the principles to mean.
        chosen: the ids of the principles that a run uses.
    """
    understand: Understand | None = None
    if sandbox:
        from constitutional.sandbox.understand import understand_texts

        understand = understand_texts
    return lint_file(find_constitution(file), understand, chosen)


def lint_file(path: Path, understand: Understand | None = None, chosen: Collection[str] | None = None) -> list[Finding]:
    """Everything that is worth a look in a constitution file, in the order of its lines.

    Args:
        path: the file, YAML or Markdown.
        understand: asks the run's model what it takes texts to mean; with it each meaning is a note, and a warning
            where it is doubtful.
        chosen: the ids of the principles that a run uses; of the others only errors are told. None means all.
    """
    try:
        constitution, problems, lines = read_constitution(path)
    except InputError as error:
        return [Finding(path, error.line, "error", "unreadable", error.problem)]
    findings = [Finding(path, problem.line, "error", "invalid", problem.text) for problem in problems]
    if path.suffix.lower() in MARKDOWN_ENDINGS:
        findings += [_not_read(path, each) for each in read_markdown(read_text(path)).asides]
    if constitution:
        if chosen is not None:
            constitution = constitution.select([each for each in lines if each in chosen], [], {})
        for rule, check in RULES.items():
            for principle, message in check(constitution):
                line = lines[principle.id] if principle else None
                findings.append(Finding(path, line, "warning", rule, message))
        if understand:
            found = _understood(constitution, understand)
            findings += [Finding(path, lines[each.id], severity, *rest) for each, severity, *rest in found]
    return sorted(findings, key=lambda finding: finding.line or 0)


def headlines(findings: Sequence[Finding], file: str) -> list[str]:
    """What a run prints of them before it begins: the first warnings, and how to see the others.

    Errors are left out, because they end the run with a message of their own.
    """
    warnings = [str(finding) for finding in findings if finding.severity == "warning"]
    more = len(warnings) - MOST_SHOWN
    rest = f"… and {counted(more, 'more warning')}: constitutional lint {file}"
    return warnings[:MOST_SHOWN] + ([rest] if more > 0 else [])


def _quoted(text: str) -> str:
    text = " ".join(text.split())  # a finding is one line
    return f'"{text[:MOST_QUOTED]}{"…" if len(text) > MOST_QUOTED else ""}"'


def _not_read(path: Path, aside: Aside) -> Finding:
    """A paragraph that somebody may have meant as a principle, though it is none."""
    read: dict[str, tuple[Severity, str]] = {
        "description": ("note", "is read as the constitution's description"),
        "context": ("note", f"is shown to the critic with each item under '{aside.section}'"),
        "nothing": ("warning", f"is not read at all, because other headings follow '{aside.section}'"),
    }
    severity, how = read[aside.use]
    message = f"the paragraph {_quoted(aside.text)} {how}, not as a principle; if it is one, begin it with '- '"
    return Finding(path, aside.line, severity, "no-principle", message)


# What the model takes the principles to mean


class _Meaning(NamedTuple):
    principle: Principle
    words: str
    whose: str
    """Whose words they are, `critic` or `labeler`; empty if both read the same."""
    its: Understanding

    @property
    def asks_nothing(self) -> bool:
        return self.its.trait == "nothing"

    @property
    def what(self) -> str:
        return "nothing" if self.asks_nothing else f"{self.its.direction} {self.its.trait.replace('_', ' ')}"

    @property
    def how(self) -> str:
        return "to ask for nothing in particular" if self.asks_nothing else f"as '{self.what}'"

    @property
    def quoted(self) -> str:
        return f"principle '{self.principle.id}' ({_quoted(self.words)})"


Understood = Iterator[tuple[Principle, Severity, str, str]]
"""The principle, how severe it is, the name of the rule, and the message."""


def _understood(constitution: Constitution, understand: Understand) -> Understood:
    """What the model takes each principle to mean, and what of it is doubtful."""
    asked = [(principle, *use) for principle in constitution.principles for use in _uses(principle)]
    answers = understand([words for _, words, _ in asked])
    meanings: dict[str, list[_Meaning]] = {}
    for use, its in zip(asked, answers, strict=True):
        meanings.setdefault(use[0].id, []).append(_Meaning(*use, its))
    for each in meanings.values():
        yield each[0].principle, "note", "meaning", _meaning(each)
    for each in meanings.values():
        yield from _doubtful(each)
    # Of words that mean the same, one says it.
    distinct = [list({each.what: each for each in reversed(several)}.values())[::-1] for several in meanings.values()]
    yield from _misunderstood(distinct)
    yield from _opposites(distinct)


def _uses(principle: Principle) -> list[tuple[str, str]]:
    """The principle's words and whose they are: one if critic and labeler read the same, else two, its text first."""
    critic, labeler = principle.words("critique"), principle.words("comparison")
    if critic == labeler:
        return [(critic, "")]
    uses = [(critic, "critic"), (labeler, "labeler")]
    return uses[::-1] if labeler == principle.text else uses


def _meaning(several: Sequence[_Meaning]) -> str:
    """What all words of a principle are understood as, in one message."""
    first, *others = several
    message = f"{first.quoted} is understood {first.how} ({percent(first.its.probability)})"
    for other in others:
        theirs = f"in the {other.whose}'s words"
        too = f"and {theirs} too" if other.what == first.what else f"but {theirs} {other.how}"
        message += f", {too} ({percent(other.its.probability)})"
    return message


def _doubtful(several: Sequence[_Meaning]) -> Understood:
    """What in a principle's words the model has never seen, is not sure of, or sees nothing in, each said once."""
    known: set[str] = set()
    said: set[tuple[str, str]] = set()
    for each in several:
        if unknown := [word for word in each.its.unknown_words if word not in known]:
            known.update(unknown)
            message = f"{each.quoted} has words that the model does not know: {', '.join(unknown)}"
            yield each.principle, "warning", "unknown-words", message
        rule = "asks-nothing" if each.asks_nothing else "unsure" if each.its.probability < SURE_FROM else ""
        if not rule or (rule, each.what) in said:
            continue
        said.add((rule, each.what))
        message = "is understood to ask for nothing, so it changes nothing"
        if rule == "unsure":
            message = f"is understood as '{each.what}' with a probability of only {percent(each.its.probability)}"
        yield each.principle, "warning", rule, f"{each.quoted} {message}"


def _misunderstood(meanings: Iterable[Sequence[_Meaning]]) -> Understood:
    """Meanings that are wrong for certain: not what the author's tags say, or not what the same principle meant before.

    Tags such as `flattery` and `avoid` are the author's own word. Without them nobody but the author can tell.
    """
    from constitutional.sandbox.teacher import FAMILIES

    for several in meanings:
        before = several[0]
        for each in several:
            tagged = [(trait, way) for trait, way in FAMILIES if {trait, way} <= set(each.principle.tags)]
            if len(tagged) == 1 and tagged[0] != (each.its.trait, each.its.direction):
                (trait, way) = tagged[0]
                meant = f"but its tags say '{way} {trait.replace('_', ' ')}'"
            elif before.what != each.what:
                meant = f"and its other words ({_quoted(before.words)}) as '{before.what}'"
            else:
                continue
            yield each.principle, "warning", "misunderstood", f"{each.quoted} is understood as '{each.what}', {meant}"


def _opposites(meanings: Iterable[Sequence[_Meaning]]) -> Understood:
    """Principles that undo each other as the model understands them, rightly or not."""
    first: dict[tuple[str, str], Principle] = {}
    for each in itertools.chain.from_iterable(meanings):
        if each.asks_nothing:
            continue
        opposite = "seek" if each.its.direction == "avoid" else "avoid"
        before = first.get((each.its.trait, opposite))
        if before and before.id != each.principle.id:
            message = f"{each.quoted} is understood as '{each.what}', and '{before.id}' as the opposite"
            yield each.principle, "warning", "opposites", message
        first.setdefault((each.its.trait, each.its.direction), each.principle)


# What has changed

Kind = Literal["added", "removed", "renamed", "reworded", "reweighted", "tags", "examples", "moved"]
_SIGNS: Mapping[Kind, str] = {"added": "+", "removed": "-"}


class Change(NamedTuple):
    """How a principle of one constitution differs in another."""

    kind: Kind
    id: str
    """In the first constitution, or in the second if it was added."""
    before: str
    """Empty if it was added."""
    after: str
    """Empty if it was removed."""
    field: str = "text"
    """Of a reworded principle the words that changed: text, critique, revision or comparison."""

    def __str__(self) -> str:
        """One line, or three where words changed."""
        if self.kind in _SIGNS:
            return f"{_SIGNS[self.kind]} {self.id}: {self.before or self.after}"
        if self.kind == "reworded":
            return f"~ {self.id}: {self.field} reworded\n    - {self.before}\n    + {self.after}"
        return f"~ {self.id}: {self.kind}, {self.before} → {self.after}"


def difference(a: Constitution, b: Constitution) -> list[Change]:
    """What became of a's principles in b, in a's order, and then what b adds."""
    new = {each.id: each for each in b.principles}
    known = {each.id for each in a.principles}
    added = {each.text: each for each in b.principles if each.id not in known}
    became: dict[str, str] = {}
    for before in a.principles:
        if before.id in new:
            became[before.id] = before.id
        elif same := added.pop(before.text, None):
            became[before.id] = same.id
    places = {each.id: number for number, each in enumerate(b.principles)}
    moved = _moved({old: places[name] for old, name in became.items()})
    changes: list[Change] = []
    for number, before in enumerate(a.principles):
        if before.id not in became:
            changes.append(Change("removed", before.id, before.text, ""))
            continue
        after = new.pop(became[before.id])
        if after.id != before.id:
            changes.append(Change("renamed", before.id, before.id, after.id))
        changes += _changes(before, after)
        if before.id in moved:
            changes.append(Change("moved", before.id, _place(a, number), _place(b, places[after.id])))
    return changes + [Change("added", each.id, "", each.text) for each in new.values()]


def _moved(places: Mapping[str, int]) -> set[str]:
    """The fewest ids without which the places of the others rise.

    Those others are a longest rising sequence, found by patience sorting: each place goes on the first pile whose top
    is not lower, and remembers the top of the pile before.
    """
    tops: list[int] = []
    ids: list[str] = []
    under: dict[str, str | None] = {}
    for name, place in places.items():
        pile = bisect.bisect_left(tops, place)
        tops[pile : pile + 1] = [place]
        ids[pile : pile + 1] = [name]
        under[name] = ids[pile - 1] if pile else None
    stays: set[str] = set()
    last = ids[-1] if ids else None
    while last is not None:
        stays.add(last)
        last = under[last]
    return places.keys() - stays


def _place(constitution: Constitution, number: int) -> str:
    return f"behind {constitution.principles[number - 1].id}" if number else "first"


def _changes(before: Principle, after: Principle) -> Iterator[Change]:
    for field in ("text", "critique", "revision", "comparison"):
        old, new = getattr(before, field), getattr(after, field)
        if old != new:
            yield Change("reworded", before.id, old or "(as the text)", new or "(as the text)", field)
    if before.weight != after.weight:
        yield Change("reweighted", before.id, f"{before.weight:g}", f"{after.weight:g}")
    if before.tags != after.tags:
        yield Change("tags", before.id, ", ".join(before.tags) or "none", ", ".join(after.tags) or "none")
    if before.examples != after.examples:
        yield Change("examples", before.id, f"{len(before.examples)} before", f"{len(after.examples)} now")
