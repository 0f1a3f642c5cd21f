"""The command `votes`: comparisons go out to people who judge them with other tools, and their votes come back."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import InputError, RunError, UsageError
from constitutional.base.files import atomic_write, write_rows
from constitutional.base.progress import counted
from constitutional.base.text import printable

if TYPE_CHECKING:
    from constitutional.constitution.constitution import Constitution
    from constitutional.data.votes.items import VoteItem
    from constitutional.data.votes.reading import ImportedVotes
    from constitutional.judging.people import PeoplesWork
    from constitutional.runs.folder import RunStore

NAMES: Final = ("label_studio", "argilla", "annotated_pairs", "csv")
BOTH_WAYS: Final = ("annotated_pairs", "csv")
"""Formats in which verdicts are written as well."""
NOT_RECORDED: Final = {
    "label_studio": "Label Studio records the time of a vote, and not whether the rater saw a harmful text",
    "argilla": "Argilla records neither the time of a vote nor whether the rater saw a harmful text",
}
"""What of people's work a tool cannot tell."""


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    votes = commands.add_parser(
        "votes",
        help="comparisons out to Label Studio, Argilla, AnnotatedPairs or CSV, and people's votes back",
        description="Tasks are blind: they hold texts and a comparison's id, and which response stands left is drawn. "
        "The labels, the models, the weights and why a comparison was chosen are not in them.",
    )
    votes_commands = votes.add_subparsers(title="commands", required=True, metavar="COMMAND")
    exporting = votes_commands.add_parser(
        "export", help="write the planned spot-checks of a run, or all its comparisons, as tasks"
    )
    exporting.add_argument("folder", type=Path, metavar="RUN", help="such as runs/first")
    exporting.add_argument("--format", required=True, choices=NAMES)
    exporting.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file of tasks to write")
    exporting.add_argument(
        "--by-principle", action="store_true", help="ask by each principle, too (label_studio, argilla or csv)"
    )
    exporting.add_argument(
        "--verdicts", type=Path, metavar="FILE", help="write these verdicts, and no tasks (annotated_pairs or csv)"
    )
    exporting.add_argument(
        "--judgements", action="store_true", help="write the labeler's judgements, and no tasks (annotated_pairs)"
    )
    exporting.set_defaults(run=_export)
    importing = votes_commands.add_parser("import", help="read votes on such tasks as verdicts, for spotcheck.verdicts")
    importing.add_argument("folder", type=Path, metavar="RUN", help="such as runs/first")
    importing.add_argument("file", type=Path, metavar="FILE", help="what the tool exported, plain or .gz")
    importing.add_argument("--out", type=Path, required=True, metavar="FILE", help="the verdicts, JSON lines")
    importing.add_argument("--format", choices=NAMES, help="(default: from the file's content)")
    importing.add_argument(
        "--skip-refused", action="store_true", help="take the other votes where rows are refused (default: take none)"
    )
    importing.set_defaults(run=_import)


def check_sheet(out: Path) -> None:
    """Refuse to write a sheet over a file: people may have filled it in.

    Raises:
        UsageError: there is a file of that name.
    """
    if out.exists():
        raise UsageError(f"{out}: is there already, and may hold people's answers; type another --out, or move it away")


def _export(arguments: argparse.Namespace) -> None:
    from constitutional.data.votes import annotated_pairs, argilla, label_studio, table
    from constitutional.data.votes.reading import NOT_APPLICABLE
    from constitutional.runs.folder import RunStore

    form, out = arguments.format, arguments.out
    if form == "csv":
        check_sheet(out)
    store = RunStore.load(arguments.folder)
    if arguments.verdicts is not None or arguments.judgements:
        if arguments.by_principle:
            raise UsageError("--by-principle goes with tasks; leave out --verdicts and --judgements")
        _export_answers(arguments, store)
        return
    if arguments.by_principle and form == "annotated_pairs":
        raise UsageError("--by-principle goes with --format label_studio, argilla or csv; annotated_pairs asks nothing")
    constitution = _constitution(store) if arguments.by_principle else None
    asked = () if constitution is None else constitution.used_for("comparison").principles
    principles = {principle.id: principle.text for principle in asked}
    items, what = _tasks(store)
    beside = None
    if form == "label_studio":
        atomic_write(out, _json(label_studio.tasks(items)))
        beside, content = out.with_suffix(".config.xml"), label_studio.config(principles).encode()
        advice = "import the tasks into a project, and paste the configuration into its labeling interface (Code)"
    elif form == "argilla":
        atomic_write(out, _json(argilla.tasks(items)))
        beside, content = out.with_suffix(".settings.json"), _json(argilla.settings(principles))
        advice = "make a dataset with rg.Settings.from_json(…), and log the records with records.from_json(…)"
    elif form == "csv":
        atomic_write(out, table.tasks(items, (), principles))
        advice = f"people fill in rater, choice ({', '.join(argilla.LABELS)}), strength (1 to 4) and reason"
        advice += f"; where a principle has no bearing, choice is {NOT_APPLICABLE}" if principles else ""
    else:
        atomic_write(out, _json(annotated_pairs.tasks(items)))
        reasons = "both, neither or not_applicable"
        advice = f"people are annotators of type human; pref is a, b, or null with the no_pref_reason {reasons}"
    files = printable(str(out))
    if beside is not None:
        atomic_write(beside, content)
        files += f", {printable(str(beside))}"
    print(f"{files}: {what}")
    if form in NOT_RECORDED:
        print(f"{NOT_RECORDED[form]}.")
    run = printable(str(arguments.folder))
    print(f"Next: {advice}; then: constitutional votes import {run} FILE --out verdicts.jsonl")


def _export_answers(arguments: argparse.Namespace, store: "RunStore") -> None:
    """Write what is answered already: people's verdicts, or the judgements. Response a stands left."""
    from constitutional.base.records import Comparison, Judgement
    from constitutional.data.verdicts import read_verdicts
    from constitutional.data.votes import annotated_pairs, table
    from constitutional.data.votes.items import items_of
    from constitutional.judging.labelling import probabilities_of
    from constitutional.judging.people import work_of

    form, out = arguments.format, arguments.out
    if arguments.judgements and form != "annotated_pairs":
        raise UsageError("--judgements goes with --format annotated_pairs alone")
    if form not in BOTH_WAYS:
        raise UsageError(f"--verdicts goes with --format {' or '.join(BOTH_WAYS)}; {form} takes tasks alone")
    comparisons = store.read("comparisons", Comparison)
    file = arguments.verdicts
    read = [] if file is None else read_verdicts(file, {row.id for row in comparisons})
    verdicts = [verdict for verdict in read if verdict.gold is None]
    if file is not None and all(verdict.withdrawn for verdict in verdicts):
        raise InputError(
            file, "holds no verdict that counts; expected one that is neither withdrawn nor on a gold item"
        )
    judgements = store.read("judgements", Judgement) if arguments.judgements else []
    names = {verdict.comparison for verdict in verdicts} | {judgement.comparison for judgement in judgements}
    items = items_of((row for row in comparisons if row.id in names), None)
    if form == "csv":
        atomic_write(out, table.tasks(items, verdicts))
    else:
        labels = probabilities_of(judgements) if judgements else annotated_pairs.shares_of(verdicts)
        words = _constitution(store).written("comparison") if judgements else None
        atomic_write(out, _json(annotated_pairs.tasks(items, verdicts, judgements, labels, words)))
    numbers = [(len(verdicts), "verdict"), (len(judgements), "judgement")]
    written = " and ".join(counted(number, noun) for number, noun in numbers if number)
    print(f"{printable(str(out))}: {written} on {counted(len(items), 'comparison')}")
    if withdrawn := sum(verdict.withdrawn for verdict in verdicts):
        print(f"withdrawn: {withdrawn:,} of them, which tell who worked and count nowhere else")
    if len(verdicts) < len(read):
        lost = work_of(row for row in read if row.gold is not None)
        what = f"{counted(len(read) - len(verdicts), 'verdict')} on gold items of {counted(lost.raters, 'rater')}"
        print(f"{what} and {lost.seconds / 3600:.2f} hours are not in it: no comparison of the run holds their texts.")


def _tasks(store: "RunStore") -> tuple[list["VoteItem"], str]:
    """What people are to judge, and what it is in words.

    Raises:
        RunError: the run has no comparison yet, or none that people could judge.
    """
    from constitutional.base.records import Comparison
    from constitutional.data.votes.items import items_of
    from constitutional.runs.compose import load
    from constitutional.runs.spotchecks import plan_of

    config = load(store.folder)
    comparisons = store.read("comparisons", Comparison)
    plan = plan_of(store, config, comparisons)
    by_id = {row.id: row for row in comparisons}
    chosen: Iterable[Comparison] = comparisons if plan is None else (by_id[check.comparison] for check in plan)
    items = items_of(chosen, config.seed)
    if not items:
        raise RunError(f"{store.folder}: has no comparison that people could judge; there must be two unlike responses")
    if plan is None:
        same = len(comparisons) - len(items)
        without = f", without {same} whose responses read the same" if same else ""
        return items, f"all {counted(len(items), 'comparison')} of the run{without}"
    votes = counted(sum(check.votes for check in plan), "vote")
    return items, f"{counted(len(items), 'planned spot-check')}, for {votes}"


def _constitution(store: "RunStore") -> "Constitution":
    from constitutional.constitution.file import load_constitution
    from constitutional.runs.folder import USED

    return load_constitution(str(store.folder / USED))


def _import(arguments: argparse.Namespace) -> None:
    from constitutional.base.records import Comparison
    from constitutional.data.votes.formats import FORMATS, format_of
    from constitutional.data.votes.reading import read_file
    from constitutional.judging.people import work_of
    from constitutional.runs.folder import RunStore
    from constitutional.runs.spotchecks import command_with_votes

    store = RunStore.load(arguments.folder)
    comparisons = {row.id: row for row in store.read("comparisons", Comparison)}
    file = read_file(arguments.file)
    form = arguments.format or format_of(file)
    principles = [principle.id for principle in _constitution(store).principles]
    imported = FORMATS[form].verdicts(file, comparisons, principles)
    for line in imported.refused:
        print(printable(line), file=sys.stderr)
    if not imported.verdicts:
        problem = f"holds no vote that can be used ({form}): {_rest(imported)}"
        raise InputError(arguments.file, f"{problem}; expected votes on tasks of {arguments.folder}, as exported")
    if imported.refused and not arguments.skip_refused:
        problem = f"{_rest(imported)}, as listed above, so nothing is written"
        raise InputError(arguments.file, f"{problem}; mend them, or take the other votes with --skip-refused")
    write_rows(arguments.out, imported.verdicts)
    raters = counted(len({verdict.rater for verdict in imported.verdicts}), "rater")
    out = printable(str(arguments.out))
    print(f"{out}: {counted(len(imported.verdicts), 'verdict')} of {raters} ({form}); {_rest(imported)}")
    print(_known(work_of(imported.verdicts), form))
    print(
        "The pages of `constitutional review` and its snapshots do not count these votes; where people vote there as "
        f"well, both files together are one: cat {printable(shlex.quote(str(arguments.out)))} SNAPSHOT > all.jsonl"
    )
    print(printable(f"Next: {command_with_votes(store, arguments.out, planned=False)}"))


def _known(work: "PeoplesWork", form: str) -> str:
    """What is known of the work behind imported votes, and why no more is."""
    answers = work.votes + work.skips + work.withdrawn
    hours = f"{work.seconds / 3600:.2f} hours, recorded for {work.timed:,} of {counted(answers, 'answer')}"
    noted = f"{counted(work.exposures, 'exposure')} to harmful texts, recorded for {work.noted:,}"
    why = f" ({NOT_RECORDED[form]})" if form in NOT_RECORDED else ""
    return f"Work: {hours}; {noted}{why}"


def _rest(imported: "ImportedVotes") -> str:
    """What is no verdict, in words."""
    from constitutional.data.votes.argilla import NO_STATUS

    parts = [f"{counted(len(imported.refused), 'row')} refused"]
    if imported.replaced:
        parts.append(f"{imported.replaced} replaced by later ones of the same rater")
    parts += [f"{count} {kind}" for kind, count in sorted(imported.left_out.items()) if kind != NO_STATUS]
    if unknown := imported.left_out[NO_STATUS]:
        parts.append(f"{unknown} may be drafts: the export does not say; Argilla's records.to_list(flatten=True) does")
    return ", ".join(map(printable, parts))


def _json(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode()
