"""The command `preview`: what an edit of the constitution would change, as text or as a page, at every save."""

import argparse
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import ConstitutionalError, UsageError, complain
from constitutional.base.files import atomic_write
from constitutional.base.progress import counted
from constitutional.base.text import printable, table
from constitutional.cli.html import check_page, rendered

if TYPE_CHECKING:
    from constitutional.judging.best_of import Shift
    from constitutional.runs.preview import Previewer, PreviewResult, SwapExample

LOOK_S: Final = 0.3
"""Seconds between two looks at the file that is watched."""
_ABOUT = """Say what an edit of the constitution would make a model do more and less of, without training.

The labeler rates replies of the run's SL model by each principle; the best of K by the run's constitution and the best
of K by the edited one are measured side by side. Ratings are kept in the run's journal: an edit asks for those of the
edited principles alone.

edits, such as
  constitution.file=edited.yaml      another file; without it, the run's own file as it is now
  constitution.weights.ID=2          a principle's weight; 0 leaves the principle out
  constitution.without=[ID]          all but these principles"""


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    parser = commands.add_parser(
        "preview",
        help="what an edit of the constitution would change, within seconds; --watch at every save",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="such as runs/first; it needs its SL model")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as constitution.file=edited.yaml")
    parser.add_argument("--watch", action="store_true", help="again at every save of the file, until Ctrl-C")
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page; with --watch it reloads by itself")
    parser.add_argument("--prompts", type=int, metavar="N", help="prompts whose replies are rated (default: 100)")
    parser.add_argument(
        "--samples", type=int, metavar="K", help="replies a prompt (default: the run's own, at least 4)"
    )
    parser.set_defaults(run=_preview)


def _preview(arguments: argparse.Namespace) -> None:
    from constitutional.runs.folder import RunStore
    from constitutional.runs.preview import PROMPTS, Previewer
    from constitutional.runs.status import outdated

    prompts = PROMPTS if arguments.prompts is None else arguments.prompts
    if prompts < 2:
        raise UsageError(f"--prompts {prompts}: at least 2 prompts, and some tens to see anything")
    if arguments.samples is not None and not 2 <= arguments.samples <= 64:
        raise UsageError(f"--samples {arguments.samples}: from 2 to 64 replies a prompt")
    check_page("--html", arguments.html)
    store = RunStore.load(arguments.folder)
    if old := outdated(store):
        print(f"warning: {printable(str(store.folder))}: {old}", file=sys.stderr)
    with Previewer(store, prompts, arguments.samples) as previewer:
        previewer.edited(arguments.overrides)  # what is typed wrongly ends the command, also where it watches
        if arguments.watch:
            _watch(previewer, arguments)
        else:
            _show(previewer, arguments, watching=False)


def _show(previewer: "Previewer", arguments: argparse.Namespace, *, watching: bool) -> str:
    """Print the preview and write the page; returns the page's text, empty where none is wanted."""
    started_s = time.monotonic()
    result = previewer.preview(previewer.edited(arguments.overrides))
    heading = " ".join([str(arguments.folder), *arguments.overrides])
    took = f"{time.monotonic() - started_s:.1f} s"
    print("\n".join(lines(heading, result, took)), flush=True)
    if arguments.html is None:
        return ""
    text = page(heading, result, took, watching=watching)
    atomic_write(arguments.html, text.encode())
    if not watching:
        print(f"the page is {arguments.html}", file=sys.stderr)
    return text


def _watch(previewer: "Previewer", arguments: argparse.Namespace) -> None:
    """Preview at every save, until Ctrl-C; a file that cannot be read is told, and watched on."""
    from constitutional.constitution.file import find_constitution

    path = find_constitution(previewer.edited(arguments.overrides).constitution.file)
    print(f"watching {printable(str(path))}; Ctrl-C ends", file=sys.stderr)
    if arguments.html is not None:
        print(f"the page is {arguments.html}", file=sys.stderr)
    seen: bytes | None = None
    text = ""
    try:
        while True:
            content = _content(path)
            if content is not None and content != seen:
                if seen is not None:
                    print(f"\n{'─' * min(shutil.get_terminal_size().columns, 80)}\nsaved at {time.strftime('%X')}")
                seen = content
                text = _at_save(previewer, arguments) or text
            time.sleep(LOOK_S)
    except KeyboardInterrupt:
        if text:  # the page as it is, which reloads no more
            atomic_write(arguments.html, text.replace(RELOAD, "").encode())
        print("\nno longer watching; the ratings are kept", file=sys.stderr)


def _at_save(previewer: "Previewer", arguments: argparse.Namespace) -> str:
    try:
        return _show(previewer, arguments, watching=True)
    except ConstitutionalError as error:
        complain(error)
        print("still watching", file=sys.stderr, flush=True)
        if arguments.html is None:
            return ""
        text = error_page(" ".join([str(arguments.folder), *arguments.overrides]), str(error))
        atomic_write(arguments.html, text.encode())
        return text


def _content(path: Path) -> bytes | None:
    """What the file holds; None while an editor puts another in its place."""
    try:
        return path.read_bytes()
    except OSError:
        return None


# As text


def lines(heading: str, result: "PreviewResult", took: str) -> Iterator[str]:
    """The preview as text for a terminal."""
    yield printable(f"preview of {heading}")
    if not result.edits:
        yield "\nNothing differs from the run's constitution by which replies are judged."
    for edit in result.edits:
        yield _wrapped(edit)
    for line in (*result.understood, *result.warnings):
        yield _wrapped(line)
    yield f"\n{_wrapped(summary(result))}\n"
    for title, rows in parts(result):
        if rows:
            yield table([(title, "before", "after", "change", ""), *(shift_row(row) for row in rows)], numbers_from=1)
            yield ""
    for title, rows in folded(result):
        if rows:
            yield _wrapped(f"{title}: {', '.join(row.measure for row in rows)}")
    yield from _examples(result)
    yield ""
    for note in result.notes:
        yield _wrapped(note)
    yield _wrapped(f"{cost(result)}; {took}")


def _examples(result: "PreviewResult") -> Iterator[str]:
    if result.examples:
        yield f"\nThe replies on which they differ most ({len(result.examples)} of {result.swapped})"
    for number, example in enumerate(result.examples, start=1):
        yield f"\n{number}. {_wrapped(tipping(example))}"
        turns = [(message.role, message.content) for message in example.prompt.messages]
        for name, text in (*turns, ("before", example.before), ("after", example.after)):
            line = f"{name}: {' '.join(printable(text).split())}"
            yield textwrap.fill(line, _columns(), initial_indent="   ", subsequent_indent="     ")


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.fill(line, _columns(), subsequent_indent="  ") for line in printable(text).split("\n"))


def summary(result: "PreviewResult") -> str:
    """What clearly changes, in a sentence."""
    more = [row.measure for row in result.clear if row.value > 0 and row.unit != "of 10"]
    less = [row.measure for row in result.clear if row.value < 0 and row.unit != "of 10"]
    words = [f"{way}: {', '.join(names)}" for way, names in (("more", more), ("less", less)) if names]
    said = "; ".join(words) or "no clear change of behaviour"
    return f"{said[0].upper()}{said[1:]}. The best replies differ on {result.swapped} of {result.prompts} prompts."


def parts(result: "PreviewResult") -> tuple[tuple[str, list["Shift"]], ...]:
    """The measures that clearly change: what replies do, and what the labeler thinks of them."""
    clear = result.clear
    return (
        ("behaviour", [row for row in clear if row.unit != "of 10"]),
        ("the labeler's rating by", [row for row in clear if row.unit == "of 10"]),
    )


def folded(result: "PreviewResult") -> tuple[tuple[str, list["Shift"]], ...]:
    """The measures of which no change is clear."""
    unclear = [row for row in result.shifts if not row.clear]
    return (
        ("no clear change", [row for row in unclear if not row.few]),
        ("too few prompts to tell", [row for row in unclear if row.few]),
    )


def shift_row(row: "Shift") -> tuple[str, ...]:
    """`flattery`, `12%`, `40%`, `+28 points (+20 to +36)`."""
    share = row.unit == "share"
    ends = [f"{100 * end:+.0f}" if share else f"{end:+.1f}" for end in (row.value, row.effect.low, row.effect.high)]
    change = f"{ends[0]} ({ends[1]} to {ends[2]})".replace("-", "−")
    before, after = (f"{100 * value:.0f}%" if share else f"{value:.1f}" for value in (row.before, row.after))
    unit = {"share": "points", "of 10": "of 10"}.get(row.unit, row.unit)
    return row.measure, before, after, change, f"{unit}, {counted(row.effect.estimate.prompts, 'prompt')}"


def tipping(example: "SwapExample") -> str:
    """`tipped by no_flattery (+1.4 of 1.6 points)`."""
    by = " and ".join(f"{name} ({push:+.1f} of {example.margin:.1f} points)" for name, push in example.tipped)
    return f"tipped by {by}".replace("-", "−") if by else "tipped by many principles a little"


def cost(result: "PreviewResult") -> str:
    """What was asked for, and what was not."""
    from constitutional.judging.labeler import IN_WORDS

    asked = ", ".join(f"{count:,} for {name}" for name, count in result.asked.items())
    unrated = (
        f"; {counted(result.unrated, 'rating')} could not be read, and a reply without one by every principle is never "
        "the best"
        if result.unrated
        else ""
    )
    total = sum(result.asked.values())
    return (
        f"{total:,} calls asked{asked and f' ({asked})'}, {result.reused:,} reused; "
        f"rated by {IN_WORDS[result.method]}{unrated}"
    )


# As a page

RELOAD: Final = """<script>
const open = sessionStorage.getItem("open") === "yes", more = document.querySelector("details");
if (more) {
  more.open = open;
  more.addEventListener("toggle", () => sessionStorage.setItem("open", more.open ? "yes" : "no"));
}
setTimeout(() => location.reload(), 2000);
</script>
"""
"""What makes a page reload by itself, and leave open what the reader opened."""


def page(heading: str, result: "PreviewResult", took: str, *, watching: bool) -> str:
    """The preview as one HTML text that needs nothing else."""
    return _rendered(
        heading,
        watching=watching,
        error="",
        result=result,
        took=took,
        summary=summary(result),
        parts=parts(result),
        folded=folded(result),
        shift_row=shift_row,
        tipping=tipping,
        cost=cost(result),
    )


def error_page(heading: str, error: str) -> str:
    """A page that says why there is no preview, until the next save."""
    return _rendered(heading, watching=True, error=error, result=None)


def _rendered(heading: str, *, watching: bool, error: str, **values: object) -> str:
    from markupsafe import Markup

    reload = Markup(RELOAD if watching else "")  # noqa: S704 - our own text
    return rendered("preview", heading=heading, at=time.strftime("%X"), reload=reload, error=error, **values)
