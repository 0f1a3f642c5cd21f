"""The command `review`: a page on which people judge a run's replies, invitations to it, and its votes as files."""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import ConfigurationError, UsageError
from constitutional.base.progress import Progress, counted
from constitutional.base.text import printable

if TYPE_CHECKING:
    from constitutional.review.settings import ReviewSettings
    from constitutional.review.store import CountedVote
    from constitutional.runs.folder import RunStore

_ABOUT: Final = """Serve a page on which people compare a run's replies, until Ctrl-C. It prints the address to open.

  constitutional review RUN                                   # for yourself, on this machine
  constitutional review RUN invite NAME review.port=8000      # a link for one more rater
  constitutional review RUN freeze                            # a snapshot of all votes, for a run that waits
  constitutional review RUN export --out verdicts.jsonl       # current votes, for mix.verdicts, and a .csv beside them
  constitutional review RUN violations --out sheet.csv        # replies to judge by principle, for report.violations

settings
  review.task=pair|rewrite|rank      compare two replies, write a better one, or order several
  review.about=evaluation            the last model's replies against the earlier models', for report.verdicts
  review.port=PORT review.host=HOST  where to serve; other machines reach it only with invitations
  review.url=https://…               what raters type, where it differs
  review.database=postgresql://…     instead of RUN/review.sqlite
  review.overlap=N                   raters who vote on each item
  review.budget=N                    ask about so much alone, of a run that was made without spotcheck.budget
  review.by_principle=true           also ask by each principle
  review.sensitive=[WORD,…]          hide texts in which these words stand until they are asked for; or, with the
                                     categories that raters can opt out of, "review.sensitive={violence: 'kill|stab'}"
  review.minutes=N                   an item that is not answered by then goes to another rater
  review.pay_per_hour=N              what raters are paid; the lead's page shows what their hours come to
  review.currency=EUR                the currency of that pay"""
_PACKAGES: Final = ("alembic", "multipart", "psycopg", "python_multipart", "sqlalchemy", "starlette", "uvicorn")


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    parser = commands.add_parser(
        "review",
        help="a page on which people compare a run's replies; invitations; votes as files",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="RUN", help="such as runs/first; it needs its comparisons")
    parser.add_argument(
        "overrides", nargs="*", metavar="WORD", help="invite NAME, freeze, export, violations, or review.KEY=VALUE"
    )
    parser.add_argument("--role", choices=("rater", "lead"), help="of whom is invited")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where exported votes, or the sheet, go")
    parser.add_argument("--audit", action="store_true", help="export also votes that are only to measure")
    parser.set_defaults(run=_review)


def _review(arguments: argparse.Namespace) -> None:
    names = [word for word in arguments.overrides if "=" not in word]
    words = [word for word in arguments.overrides if "=" in word]
    command = names.pop(0) if names else "serve"
    wanted = {"serve": 0, "export": 0, "freeze": 0, "violations": 0, "invite": 1}
    if command not in wanted or len(names) != wanted[command]:
        raise UsageError(
            f"'{' '.join([command, *names])}' is not understood; type constitutional review RUN, … RUN invite NAME, "
            "… RUN freeze, … RUN export --out FILE.jsonl or … RUN violations --out FILE.csv"
        )
    if arguments.role and command != "invite":
        raise UsageError("--role is of an invitation; type constitutional review RUN invite NAME --role lead")
    if (arguments.out and command not in ("export", "violations")) or (arguments.audit and command != "export"):
        raise UsageError("--out and --audit are of an export; type constitutional review RUN export --out FILE.jsonl")
    if command == "violations":
        _violations(arguments.folder, arguments.out, words)
        return
    try:
        import constitutional.review.serve  # noqa: F401 - all packages of the extra are imported from there
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _PACKAGES:
            raise
        raise ConfigurationError(
            f"the package {error.name} is not installed; in the project's folder type pip install '.[review]'"
        ) from error
    if command == "serve":
        _serve(arguments.folder, words)
    elif command == "invite":
        _invite(arguments, words, names[0])
    elif command == "freeze":
        _freeze(arguments.folder, words)
    else:
        _export(arguments, words)


def _serve(folder: Path, words: Sequence[str]) -> None:
    from constitutional.review.serve import equal_replies, old_settings, open_review, serve
    from constitutional.review.settings import read_settings
    from constitutional.runs.folder import RunStore

    settings, run = read_settings(words), RunStore.load(folder)
    review = open_review(run, settings)
    if settings.about == "evaluation" and (same := equal_replies(run)):
        print(f"{counted(same, 'comparison')} of equal replies are left out: they are ties", file=sys.stderr)
    print(f"{counted(review.plan.wanted, 'vote')} wanted; Ctrl-C ends, and all votes are kept", file=sys.stderr)
    for note in old_settings(review, settings):
        print(f"warning: {note}", file=sys.stderr)
    before = review.store.answered(review.plan)
    try:
        with Progress().task("review", review.plan.wanted, "votes") as task:
            task.update(before)
            serve(review, settings, lambda text: print(printable(text), flush=True), task.update, folder)
    except KeyboardInterrupt:
        pass
    finally:
        votes = review.store.answered(review.plan)
        review.database.close()
    command = "freeze" if settings.task == "pair" else "export --out FILE.jsonl"
    kept = [word for word in words if word.startswith(("review.task=", "review.about=", "review.budget="))]
    kept += ["review.database=…"] if settings.database else []  # which may hold a password
    typed = " ".join([shlex.quote(str(folder)), command, *kept])
    print(printable(f"\n{counted(votes, 'vote')}; constitutional review {typed}"))


def _invite(arguments: argparse.Namespace, words: Sequence[str], name: str) -> None:
    from constitutional.review.serve import invite
    from constitutional.review.settings import read_settings
    from constitutional.runs.folder import RunStore

    print(invite(RunStore.load(arguments.folder), read_settings(words), name, arguments.role))
    print(f"The link lets {printable(name)} in once, within 14 days.", file=sys.stderr)


def _freeze(folder: Path, words: Sequence[str]) -> None:
    """Write all votes on pairs, those of the audit set too, as a file that no later vote changes."""
    from constitutional.base.files import digest_of, write_rows
    from constitutional.review import export
    from constitutional.review.serve import open_review
    from constitutional.review.settings import read_settings
    from constitutional.runs.folder import RunStore
    from constitutional.runs.spotchecks import command_with, command_with_votes

    settings = read_settings(words)
    if settings.task != "pair":
        raise UsageError("freeze is of votes on pairs, with which a run goes on; type … export for other tasks")
    run = RunStore.load(folder)
    review = open_review(run, settings, plans=False)
    try:
        votes = review.store.all_votes(review.plan, audit=True)
        given, wanted = review.store.answered(review.plan), review.plan.wanted
    finally:
        review.database.close()
    votes = _of_the_run(votes, run, settings)
    if all(vote.withdrawn for vote in votes):
        raise UsageError(f"{folder}: there is no vote on it yet; type constitutional review {folder}")
    path = folder / "verdicts" / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}.jsonl"
    path.parent.mkdir(exist_ok=True)
    write_rows(path, export.verdicts_of(votes))
    shown = printable(shlex.quote(str(path)))
    print(printable(f"{path}: {given} of {counted(wanted, 'vote')}, SHA-256 {digest_of(path)}"))
    if settings.about == "evaluation":
        print(printable(f"Next: {command_with(folder, report__verdicts=path)}"))
        return
    print(f"Votes that `constitutional votes import` read are not in it; with them: cat {shown} FILE > all.jsonl")
    planned = bool(settings.budget) or any(vote.audit for vote in votes)
    command = command_with_votes(run, path, budget=settings.budget, planned=planned)
    if "=BUDGET" in command:
        print("BUDGET is the review.budget that people were asked with; the run asks nobody by its own settings.")
    print(printable(f"Next: {command}"))


def _of_the_run(votes: Sequence["CountedVote"], run: "RunStore", settings: "ReviewSettings") -> list["CountedVote"]:
    """The votes on pairs that the run still compares, and on gold items: it reads no others. It tells of the rest."""
    from constitutional.review.serve import run_comparisons

    known = {comparison.id for comparison in run_comparisons(run, settings.about)}
    kept = [vote for vote in votes if vote.gold or vote.comparison in known]
    if left := len(votes) - len(kept):
        what = f"{counted(left, 'vote')} in the database, on replies that the run does not compare any more,"
        print(f"{what} {'is' if left == 1 else 'are'} left out", file=sys.stderr)
    return kept


def _violations(folder: Path, out: Path | None, words: Sequence[str]) -> None:
    """Write a sheet on which people say whether the last model's replies violate the principles."""
    from constitutional.base.files import atomic_write
    from constitutional.base.records import Sample
    from constitutional.cli.votes import check_sheet
    from constitutional.constitution.file import load_constitution
    from constitutional.judging.evaluated import sheet, violation_items
    from constitutional.judging.scores import Measurement
    from constitutional.runs.compose import load
    from constitutional.runs.folder import USED, RunStore
    from constitutional.runs.spotchecks import command_with

    if out is None or out.suffix != ".csv" or words:
        raise UsageError("violations writes a sheet; type constitutional review RUN violations --out FILE.csv")
    check_sheet(out)
    run = RunStore.load(folder)
    samples, measurements = run.read("samples", Sample), run.read("measurements", Measurement)
    constitution = load_constitution(str(run.folder / USED))
    items = violation_items(samples, measurements, constitution, load(run.folder).seed)
    if not items:
        raise UsageError(f"{folder}: the critic judged no reply of the last model; evaluate.critiqued says how many")
    atomic_write(out, sheet(items))
    print(printable(f"{out}: {counted(len(items), 'row')}, a reply and a principle in each, in a random order"))
    print(
        printable("people fill in rater and violates (yes or no) from the top, in as many rows as they have time for;")
    )
    print(printable(f"then: {command_with(folder, report__violations=out)}"))


def _export(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    from constitutional.base.files import write_rows
    from constitutional.base.records import Comparison
    from constitutional.review import export
    from constitutional.review.serve import open_review
    from constitutional.review.settings import read_settings
    from constitutional.runs.folder import RunStore

    out: Path | None = arguments.out
    if out is None or out.suffix != ".jsonl":
        raise UsageError("export writes JSON lines; type --out FILE.jsonl")
    settings, run = read_settings(words), RunStore.load(arguments.folder)
    review = open_review(run, settings, plans=False)
    try:
        votes = review.store.all_votes(review.plan, audit=arguments.audit)
    finally:
        review.database.close()
    task = review.plan.plan.task
    if task == "rewrite":
        written, left = export.write_demonstrations(out, votes)
        what = f"{written} rewritten replies, for sft.helpful"
        if left:
            replies = sum(vote.choice == "rewritten" for vote in left)
            hours = sum(vote.spent or 0.0 for vote in left) / 3600
            what_else = f"{replies} replies to conversations of several messages, {len(left) - replies} skips"
            print(f"{what_else}, and {hours:.2f} hours of work at them, are in the table alone", file=sys.stderr)
    elif task == "pair":
        votes = _of_the_run(votes, run, settings)
        what = counted(write_rows(out, export.verdicts_of(votes)), "verdict")
    else:
        rows = export.verdicts_of_ranks(votes, run.read("comparisons", Comparison))
        what = counted(write_rows(out, rows), "verdict")
    table = out.with_suffix(".csv")
    export.write_table(table, votes)
    print(printable(f"{out}: {what} from {counted(len(votes), 'vote')}; {table}: the same as a table"))
