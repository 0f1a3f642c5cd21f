"""The command `what-if`: what other weights or another mix would make of a run's labels, as text or as a page."""

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import UsageError
from constitutional.base.files import atomic_write
from constitutional.base.text import printable, table
from constitutional.cli.html import check_page, rendered

if TYPE_CHECKING:
    from constitutional.runs.what_if import ChangedLabel, MixChange, WhatIf

_ABOUT = """Say what other weights or another mix would make of a run's labels, from its judgements: no model is asked.

settings that can be answered:
  constitution.weights.ID=2        a principle's weight; 0 leaves the principle out
  constitution.only=[ID,ID]        only these principles
  constitution.without=[ID]        all but these, with those that the run left out already
  mix.margin=0.1, mix.human_ratio=0.5, mix.total=200, …
  label.clamp=[0.4,0.6]            as far as the run's own clamp hides nothing

With label.principles=all everything is known. With one or telling, weights decide which principle judges a comparison:
comparisons that another principle would judge are counted as not known."""


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    parser = commands.add_parser(
        "what-if",
        help="which labels other weights or another mix would change, without asking a model",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="such as runs/first")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as constitution.weights.brief=0")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, which opens offline")
    parser.set_defaults(run=_what_if)


def _what_if(arguments: argparse.Namespace) -> None:
    from constitutional.runs.folder import RunStore
    from constitutional.runs.status import outdated
    from constitutional.runs.what_if import LabelledRun

    if not arguments.overrides:
        raise UsageError("what-if needs a setting to change, such as constitution.without=[ID]; see --help")
    check_page("--html", arguments.html)
    store = RunStore.load(arguments.folder)
    run = LabelledRun(store)
    answer = run.what_if(arguments.overrides)
    if old := outdated(store):
        print(f"warning: {printable(f'{store.folder}: {old}')}", file=sys.stderr)
    if arguments.html is not None:
        atomic_write(arguments.html, page(arguments.folder, arguments.overrides, answer).encode())
        print(f"the page is {arguments.html}", file=sys.stderr)
    print("\n".join(lines(arguments.folder, arguments.overrides, answer)))


def lines(folder: Path, overrides: list[str], answer: "WhatIf") -> Iterator[str]:
    """The answer as text for a terminal."""
    yield printable(f"{folder}: what if {' '.join(overrides)}")
    yield f"\nlabels: {labels_in_words(answer)}\n"
    yield table([tuple(row) for row in change_rows(answer)], numbers_from=1)
    for note in answer.notes:
        yield "\n" + textwrap.fill(printable(note), shutil.get_terminal_size().columns)
    if answer.examples:
        yield f"\nThe {len(answer.examples)} clearest examples, with P(a is better) before → after"
    for number, example in enumerate(answer.examples, start=1):
        yield f"\n{number}. {printable(outcome(example))}"
        texts = [(message.role, message.content) for message in example.comparison.prompt.messages]
        for name, text in (*texts, ("a", example.comparison.a), ("b", example.comparison.b)):
            first, *rest = printable(text).split("\n")
            yield "\n".join([f"   {name}: {first}", *(f"     {line}" for line in rest)])
        yield f"   more: constitutional show {folder} {example.comparison.id}"


def labels_in_words(answer: "WhatIf") -> str:
    """`12 flip, 3 are decided now, 7 are undecided now, 0 are not known, 329 are unchanged`."""
    verbs = {"flipped": "flip", "decided now": "are decided now", "undecided now": "are undecided now"}
    verbs |= {"not known": "are not known", "unchanged": "are unchanged"}
    return ", ".join(f"{answer.labels.get(kind, 0)} {words}" for kind, words in verbs.items())


def change_rows(answer: "WhatIf") -> list[tuple[str, ...]]:
    """The table of preferences: a heading, then a row for each part of the mix and for each principle."""
    rows: list[tuple[str, ...]] = [
        ("preferences", "before", "after", "gained", "lost", "not known", "flipped", "tipped", "")
    ]
    for name, change in answer.changes.items():
        rows.append((name, *_numbers(change), "", ""))
    for name, change in answer.principles.items():
        rows.append((f"by {name}", *_numbers(change), str(answer.tips.get(name, 0)), ""))
    return rows


def _numbers(change: "MixChange") -> tuple[str, ...]:
    numbers = (change.before, change.after, change.gained, change.lost, change.unknown, change.flipped)
    return tuple(map(str, numbers))


def outcome(example: "ChangedLabel") -> str:
    """`flipped: 0.61 → 0.32; tipped by brief (−0.21), honest (−0.08)`."""
    before, after = ("none" if p is None else f"{p:.3f}" for p in (example.before, example.after))
    if example.kind == "not known":
        by = f": '{example.by}' would judge instead" if example.by else ": the run's own clamp hides it"
        return f"not known{by}; {before} before"
    tipped = ", ".join(f"{name} ({push:+.3f})".replace("-", "−") for name, push in example.tipped)
    return f"{example.kind}: {before} → {after}{f'; tipped by {tipped}' if tipped else ''}"


def page(folder: Path, overrides: list[str], answer: "WhatIf") -> str:
    """The answer as one HTML text that needs nothing else."""
    head, *body = change_rows(answer)
    return rendered(
        "what_if",
        folder=str(folder),
        overrides=overrides,
        answer=answer,
        labels=labels_in_words(answer),
        head=head[:-1],
        body=[row[:-1] for row in body],
        outcome=outcome,
    )
