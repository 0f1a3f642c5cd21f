"""Everything that is worth a person's look in a constitution file, with its line.

Errors are what keeps a file from loading, and they alone stop a run. Warnings are what will probably not work, by the
rules of `lint_rules.py` and by what a model takes the principles to mean. Notes say how the file was read.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from constitutional.base.errors import InputError
from constitutional.base.progress import counted
from constitutional.constitution.constitution import Constitution
from constitutional.constitution.file import find_constitution, is_shipped, read_constitution
from constitutional.constitution.lint_rules import RULES
from constitutional.constitution.markdown import ProseBlock
from constitutional.constitution.yaml import shown

if TYPE_CHECKING:
    from constitutional.judging.understanding import PrincipleMeaning

MOST_SHOWN = 20
"""Warnings that a run prints before it begins."""

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


class LintResult(NamedTuple):
    """What there is to say of a constitution file."""

    understood: list[str]
    """What a model takes the principles to mean, a line each; empty without a model, or if the file has errors."""
    findings: list[Finding]
    """In the order of the file's lines."""


Understand = Callable[[Constitution], list["PrincipleMeaning"]]


def lint(file: str, *, sandbox: bool, chosen: Collection[str] | None = None) -> LintResult:
    """What `lint_file` says of a file or shipped constitution; with `sandbox`, the sandbox's model understands it."""
    understand: Understand | None = None
    if sandbox:
        from constitutional.judging.understanding import in_known_words, sandbox_meanings

        def understand(constitution: Constitution) -> list["PrincipleMeaning"]:
            ids = () if is_shipped(file) else None  # what ships is given as it is
            return sandbox_meanings(in_known_words(constitution, ids=ids))

    return lint_file(find_constitution(file), understand, chosen)


def lint_file(path: Path, understand: Understand | None = None, chosen: Collection[str] | None = None) -> LintResult:
    """Everything that is worth a look in a constitution file.

    Args:
        path: the file, YAML or Markdown.
        understand: says what a model takes the principles to mean.
        chosen: the ids of the principles that a run uses; findings other than errors concern these alone. None means
            all.
    """
    try:
        read = read_constitution(path)
    except InputError as error:
        return LintResult([], [Finding(path, error.line, "error", "unreadable", error.problem)])
    constitution, lines = read.constitution, read.lines
    findings = [Finding(path, problem.line, "error", "invalid", problem.text) for problem in read.problems]
    findings += [_not_read(path, aside) for aside in read.asides]
    findings += [Finding(path, note.line, "note", "not-carried-over", note.text) for note in read.left_out]
    understood: list[str] = []
    if constitution:
        if chosen is not None:
            constitution = constitution.select([name for name in lines if name in chosen], [], {})
        for rule, check in RULES.items():
            for principle, message in check(constitution):
                line = lines[principle.id] if principle else None
                findings.append(Finding(path, line, "warning", rule, message))
    if constitution and understand:
        from constitutional.judging.understanding import meaning_lines

        meanings = understand(constitution)
        understood = meaning_lines(meanings)
        for meaning in meanings:
            place = lines[meaning.principle]
            findings += [Finding(path, place, "warning", "meaning", message) for message in meaning.messages]
    return LintResult(understood, sorted(findings, key=lambda finding: finding.line or 0))


def headlines(findings: Sequence[Finding], file: str) -> list[str]:
    """What a run prints of its findings before it begins: the first warnings, and how to see the others.

    Errors are left out, because they end the run with a message of their own.
    """
    warnings = [str(finding) for finding in findings if finding.severity == "warning"]
    more = len(warnings) - MOST_SHOWN
    rest = f"… and {counted(more, 'more warning')}: constitutional lint {file}"
    return warnings[:MOST_SHOWN] + ([rest] if more > 0 else [])


def _not_read(path: Path, aside: ProseBlock) -> Finding:
    """A block that somebody may have meant as a principle, though it is none."""
    if aside.kind != "paragraph":
        severity: Severity = "warning"
        how = "is not read; if it belongs to a list item, indent it under the item"
    elif aside.use == "description":
        severity, how = "note", "is read as the constitution's description, not as a principle"
    elif aside.use == "context":
        severity = "note"
        how = f"is shown to the critic with each item under '{shown(aside.section)}', and is not a principle"
    else:
        severity, how = "warning", f"is not read, because other headings follow '{shown(aside.section)}'"
    advice = "; if it is a principle, begin it with '- '" if aside.kind == "paragraph" else ""
    return Finding(path, aside.line, severity, "no-principle", f'the {aside.kind} "{shown(aside.text)}" {how}{advice}')
