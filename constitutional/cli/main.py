"""The command `constitutional`: turns our errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, configuration or input, 3 stopped at a budget, 130 interrupted. Nothing
heavy is imported until a command needs it, so that `--help` and a mistyped argument answer at once.
"""

import argparse
import io
import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from constitutional import __version__
from constitutional.base.cores import spin_briefly
from constitutional.base.errors import WRONG_USE, ConstitutionalError, RunError, UsageError, complain
from constitutional.base.progress import Progress, percent
from constitutional.base.text import printable
from constitutional.cli import (
    adopt_command,
    data_command,
    evaluation,
    export_command,
    import_command,
    plan_command,
    preview,
    review,
    talk,
    votes,
    what_if,
)
from constitutional.cli.run_command import COMPOSED, refuse_name

if TYPE_CHECKING:
    from constitutional.runs.folder import RunStore
    from constitutional.sandbox.understand import Understanding

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE
MOST_SIDE_BY_SIDE = 2
"""Runs that a page shows with all their parts; a page of more compares them by their numbers."""
LAUNCHERS = (
    "WORLD_SIZE RANK LOCAL_RANK LOCAL_WORLD_SIZE GROUP_RANK ROLE_RANK ROLE_WORLD_SIZE MASTER_ADDR MASTER_PORT".split()
)
"""Variables that tell a process that it is one of several, which torch or accelerate read."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments, or the process's own, and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without an encoding for a letter still shows it
    _forget_launchers()
    spin_briefly()
    try:
        if words and words[0] in COMPOSED:
            return COMPOSED[words[0]](words[1:])
        arguments = _parsed(words)
        return arguments.run(arguments) or 0
    except ConstitutionalError as error:
        complain(error)
        return error.exit_code
    except PermissionError as error:
        complain(RunError(f"{error.filename or 'a file'}: {error.strerror or error}; name a place that you may use"))
        return RunError.exit_code
    except KeyboardInterrupt:
        print("constitutional: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has closed the pipe. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _forget_launchers() -> None:
    """Remove variables of a launcher that did not start this process, with a warning.

    The command is one process, but torch and accelerate would take `WORLD_SIZE=2`, left in a shell or set by a cluster
    for something else, for a group, and wait for its other members. torchrun sets TORCHELASTIC_RUN_ID and `accelerate
    launch` sets ACCELERATE_MIXED_PRECISION; where either is set, their variables are meant and stay.
    """
    stale = [name for name in LAUNCHERS if name in os.environ]
    if stale and not {"TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"} & os.environ.keys():
        for name in stale:
            del os.environ[name]
        variables = f"{', '.join(stale)} {'is' if len(stale) == 1 else 'are'}"
        print(f"warning: {variables} set, but no launcher started this command; ignored", file=sys.stderr)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    # argparse ends a list of words at the next flag, and goes on without an item where none came before; the words
    # behind the flag belong to the list as well, or are the item.
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(arguments, "item", "") is None:
        arguments.item = rest.pop()
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides += rest
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="constitutional", description="Train a language model to behave as a written constitution says."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    # These three are listed here only: `run_command` reads their words.
    commands.add_parser("run", add_help=False, help="run everything: run name=first constitution.file=FILE …")
    commands.add_parser("demo", add_help=False, help="the same on the small test-bed, in minutes on a CPU: runs/demo")
    commands.add_parser("config", add_help=False, help="print the configuration; --explain [KEY] says what it means")

    lint = commands.add_parser("lint", help="check a constitution file", description="Exits with 2 on errors.")
    lint.add_argument("file", metavar="FILE", help="YAML or Markdown, or the name of a shipped constitution")
    lint.add_argument("--sandbox", action="store_true", help="first say how the test-bed's model reads each principle")
    lint.set_defaults(run=_lint)

    diff = commands.add_parser("diff", help="what changed between two constitution files, or two runs")
    diff.add_argument("a", metavar="A", help="a file, the name of a shipped constitution, or a run such as runs/first")
    diff.add_argument("b", metavar="B")
    diff.set_defaults(run=_diff)

    check = commands.add_parser(
        "check",
        help="try the labeler on a constitution's own examples, or against people's answers",
        description="Say for each principle how often the labeler finds the better of its own examples, or, with "
        "--answers, how often it chooses as people did. Exits with 1 if it is near chance.",
    )
    check.add_argument("file", metavar="FILE", help="YAML or Markdown, or the name of a shipped constitution")
    check.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as model=qwen3_4b label.method=logprobs")
    check.add_argument("--answers", type=Path, metavar="FILE", help="comparisons that people made: JSON lines, or .gz")
    check.set_defaults(run=_check)

    show = commands.add_parser(
        "show",
        help="a run's stages, a sweep's jobs, one item back to where it came from, or items by principle or by words",
        description="Without ITEM, the stages of a run. An ITEM that is a whole id, or the beginning of an id that is "
        "no word of a text, shows that item with all that it rests on and the files where it stands; a principle's id "
        "lists what the principle had a part in; anything else lists the items in whose texts it stands.",
    )
    show.add_argument("folder", type=Path, metavar="RUN", help="such as runs/first; or a sweep, by its name as well")
    show.add_argument("item", nargs="?", metavar="ITEM", help="an id, a principle's id such as no_flattery, or words")
    show.add_argument("--text", action="store_true", help="ITEM is words, whatever else it may be")
    show.add_argument("--all", action="store_true", help="list all items, and not the first of each kind")
    show.set_defaults(run=_show)

    for command in (
        evaluation,
        what_if,
        preview,
        review,
        votes,
        import_command,
        data_command,
        export_command,
        adopt_command,
        plan_command,
    ):
        command.add_parser(commands)
    talk.add_parsers(commands)

    listing = commands.add_parser("list", help="the runs of a folder: state, constitution, main figures, size")
    listing.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER")
    listing.set_defaults(run=_list)

    clean = commands.add_parser(
        "clean",
        help="what stages made and no run uses any more, and how large it is",
        description="Nothing is removed without --remove. What a run was linked to before its settings changed counts "
        "as unused; going back to those settings would make it anew.",
    )
    clean.add_argument("folder", type=Path, nargs="?", default=Path("runs"), metavar="FOLDER")
    clean.add_argument("--remove", action="store_true", help="remove it")
    clean.set_defaults(run=_clean)

    report = commands.add_parser(
        "report", help="where a run's report is, or one page that compares runs, or a sweep's jobs"
    )
    report.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="such as runs/first, or a sweep")
    report.add_argument("--out", type=Path, help="the page to write (default: the run's own; of several report.html)")
    report.set_defaults(run=_report)

    _add_batch(commands)

    sandbox = commands.add_parser("sandbox", help="the small test-bed that runs on a CPU")
    sandbox_commands = sandbox.add_subparsers(title="commands", required=True, metavar="COMMAND")
    understand = sandbox_commands.add_parser(
        "understand",
        help="ask the test-bed's model what principles mean",
        description="Say what the test-bed's model takes each principle to mean, and how sure it is.",
    )
    understand.add_argument("texts", nargs="*", metavar="TEXT", help="a principle, in your own words")
    forms = "one a line (but for lines that begin with #), a JSON list (.json), or YAML with 'principles:' (.yaml)"
    understand.add_argument("--file", type=Path, help=f"read principles from here: {forms}")
    understand.add_argument("--json", action="store_true", help="print a JSON list instead of text")
    understand.set_defaults(run=_understand)
    return parser


def _add_batch(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    batch = commands.add_parser(
        "batch",
        help="ask servers by files of requests and answers, at a batch's price",
        description="Hosted services answer files of requests within a day at about half the price. Export writes what "
        "the run lacks of the answers of roles with labeler=http and the like; import reads the answers. No server is "
        "contacted, so type what a judge's server can do (labeler.logprobs=yes labeler.prefill=no), unless a run has "
        "asked it. Costs are counted at the full prices.",
    )
    batch_commands = batch.add_subparsers(title="commands", required=True, metavar="COMMAND")
    exporting = batch_commands.add_parser("export", help="write RUN/batches/*.jsonl, to be uploaded")
    exporting.add_argument("run_folder", metavar="RUN", help="such as runs/first, or a name")
    exporting.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="such as until=label")
    exporting.set_defaults(run=_export)
    importing = batch_commands.add_parser("import", help="read downloaded answers; the run then goes on")
    importing.add_argument("run_folder", metavar="RUN", help="such as runs/first, or a name")
    importing.add_argument("files", type=Path, nargs="+", metavar="FILE", help="JSON lines, in any order")
    importing.set_defaults(run=_import)


# Constitutions


def _lint(arguments: argparse.Namespace) -> int:
    from constitutional.base.progress import counted
    from constitutional.judging.lint import lint

    if arguments.sandbox:
        _say_if_alone()
    understood, findings = lint(arguments.file, sandbox=arguments.sandbox)
    for line in (*understood, *findings):
        print(printable(str(line)))
    kinds = Counter(finding.severity for finding in findings)
    notes = f", {counted(kinds['note'], 'note')}" if kinds["note"] else ""
    errors, warnings = counted(kinds["error"], "error"), counted(kinds["warning"], "warning")
    print(f"{arguments.file}: {errors}, {warnings}{notes}", file=sys.stderr)
    return WRONG_USE if kinds["error"] else 0


def _diff(arguments: argparse.Namespace) -> None:
    from constitutional.constitution.difference import difference
    from constitutional.constitution.file import load_constitution
    from constitutional.runs.compose import load
    from constitutional.runs.folder import USED
    from constitutional.stages.report.comparison import setting_changes

    names = (arguments.a, arguments.b)
    runs = [Path(name) for name in names if Path(name).is_dir()]
    files = [str(Path(name) / USED) if Path(name).is_dir() else name for name in names]
    changes = [str(change) for change in difference(*map(load_constitution, files))]
    if len(runs) == len(names):  # which differ in more than their constitutions
        before, after = (load(folder).model_dump(mode="json") for folder in runs)
        changes += [f"~ {row.key}: {row.before or '–'} → {row.after or '–'}" for row in setting_changes(before, after)]
    print(*map(printable, changes or ["no difference"]), sep="\n")


def _check(arguments: argparse.Namespace) -> int:
    from constitutional.base.progress import counted
    from constitutional.base.templates import load_prompts
    from constitutional.data.answers import load_answers
    from constitutional.judging import trial as check
    from constitutional.judging.labeler import answering, unfit
    from constitutional.runs.compose import compose, freeze
    from constitutional.runs.context import RunContext, as_models_read, selected

    refuse_name(arguments.overrides, "model.path=runs/NAME/08_dpo/policy tries the model of a run")
    config = freeze(compose(arguments.overrides))
    chosen = config.constitution.model_copy(update={"file": arguments.file})
    trial_config = config.model_copy(update={"constitution": chosen})
    written = selected(trial_config)
    answers = load_answers(arguments.answers) if arguments.answers else None
    templates = load_prompts(config.templates)
    progress = Progress()
    constitution = as_models_read(trial_config, written, progress.say)

    trials = []

    def watch() -> None:
        task.update(engine.asked + engine.reused)

    with RunContext(config, constitution, templates, progress) as run_context:
        if answers:
            print(check.baselines(answers), flush=True)
        for role in config.judges.values():
            engine = run_context.journalled(run_context.given(role), watch)
            print(f"{role}: {answering(config.label.method, engine.abilities)}", flush=True)
            if warning := unfit(config.label.method, run_context.given(role)):
                print(f"warning: {warning}", file=sys.stderr)
            with progress.task("check", 0, "answers") as task:
                if answers:
                    trial = check.by_answers(answers, constitution, engine, templates, config.label, seed=config.seed)
                else:
                    trial = check.by_examples(constitution, engine, templates, config.label)
            trials.append(trial)
            print(trial.text)
            calls = f"{counted(engine.asked, 'model call')} asked, {engine.reused} reused"
            print(f"{calls}; the answers are kept in {engine.journal.path}, where runs find them too", file=sys.stderr)
    return int(any(trial.near_chance for trial in trials))


# Runs


def _show(arguments: argparse.Namespace) -> None:
    from constitutional.cli import show
    from constitutional.runs.runner import load_run
    from constitutional.runs.status import outdated
    from constitutional.runs.sweeps import sweep_file

    if arguments.item is None and (sweep := sweep_file(arguments.folder)):
        from constitutional.cli.sweep_command import shown

        print(shown(sweep))
        return
    store = load_run(arguments.folder)
    if arguments.item is not None:
        from constitutional.cli.find import find

        print(find(store, arguments.item, as_text=arguments.text, everything=arguments.all))
        return
    print(show.stages(store))
    if old := outdated(store):
        print(f"\n{old}")
    if behaviour := show.behaviour(store):
        print(f"\n{behaviour}")
    if path := show.report_path(store):
        print(f"\nReport: {path}")


def _list(arguments: argparse.Namespace) -> None:
    from constitutional.cli.show import runs
    from constitutional.runs.collection import overview

    print(runs(list(overview(arguments.folder))))


def _clean(arguments: argparse.Namespace) -> None:
    from constitutional.cli.show import outputs
    from constitutional.runs.collection import remove, unused

    leftovers = unused(arguments.folder)
    print(outputs(leftovers))
    if arguments.remove:
        remove(arguments.folder, leftovers)
        print("removed, but for what is in use")
    elif leftovers:
        print("nothing was removed; to remove it, add --remove")


def _report(arguments: argparse.Namespace) -> None:
    from constitutional.cli import show
    from constitutional.cli.html import check_page
    from constitutional.runs.runner import compare, load_run
    from constitutional.runs.sweeps import sweep_file

    check_page("--out", arguments.out)
    swept = [file for folder in arguments.folders if (file := sweep_file(folder))]
    if swept or len(arguments.folders) > MOST_SIDE_BY_SIDE:
        from constitutional.runs.comparing import compare_many, named_runs

        named, sweep = named_runs(arguments.folders)
        for row in named:
            with suppress(ConstitutionalError):  # a run that cannot be compared is listed on the page
                _warn_if_outdated(load_run(row.folder))
        print(*compare_many(named, sweep, arguments.out or Path("report.html")), sep="\n")
        return
    stores = [load_run(folder) for folder in arguments.folders]
    for store in stores:
        _warn_if_outdated(store)
    if len(stores) > 1 or arguments.out is not None:
        print(compare(stores, arguments.out or Path("report.html")))
    elif path := show.report_path(stores[0]):
        print(path)
    else:
        advice = "the command that began it finishes it"
        raise UsageError(f"{stores[0].folder}: has no report yet; {advice}")


def _warn_if_outdated(store: "RunStore") -> None:
    from constitutional.runs.status import outdated

    if old := outdated(store):
        print(f"warning: {store.folder}: {old}", file=sys.stderr)


def _export(arguments: argparse.Namespace) -> None:
    from constitutional.base.progress import counted
    from constitutional.runs.batch import configuration, export

    config = configuration(arguments.run_folder, arguments.overrides)
    exported = export(config)
    for file, count in exported.files.items():
        print(f"{printable(str(file))}: {counted(count, 'request')}")
    waiting, run = exported.pending, printable(str(config.run_folder))
    if exported.files:
        more = f"at most {counted(waiting.rounds, 'more round')} of both" if waiting.rounds else "no more round"
        print(f"Upload them; then: constitutional batch import {run} ANSWERS…; {more} before `constitutional run`")
    else:
        print("no server's answer is missing; `constitutional run` goes on")
    if words := [word for word in arguments.overrides if not word.startswith("until=")]:
        # A server that is asked in another way than the batch was has no answer in it.
        print(f"Type these words in that command, too: {printable(shlex.join(words))}")


def _import(arguments: argparse.Namespace) -> int:
    from constitutional.runs.batch import configuration, import_answers

    imported = import_answers(configuration(arguments.run_folder, (), exported=True), arguments.files)
    for line in (*imported.unreadable, *imported.unknown, *imported.failed):
        print(printable(line), file=sys.stderr)
    print(
        f"{imported.kept} imported, {imported.repeated} already there, {len(imported.failed)} failed, "
        f"{len(imported.unknown)} with unknown ids, {len(imported.unreadable)} unreadable"
    )
    return int(bool(imported.failed or imported.unknown or imported.unreadable))


# The sandbox


def _understand(arguments: argparse.Namespace) -> None:
    from constitutional.base.jsonl import BadTextError, check_characters
    from constitutional.constitution.principle_file import read_principles

    texts: list[str] = arguments.texts
    for text in texts:
        if not text.strip():
            raise UsageError('a TEXT is empty; write a principle, such as "Don\'t butter people up."')
        try:
            check_characters(text)  # bytes that are no text come as halves of characters
        except BadTextError:
            message = f"'{printable(text)}' is not UTF-8; write it to a file in UTF-8, and type --file FILE"
            raise UsageError(message) from None
        if os.path.isfile(text):  # noqa: PTH113 - unlike Path, it takes text of any length
            raise UsageError(f"'{text}' is a file; to read the principles in it, type --file {shlex.quote(text)}")
    if arguments.file is not None:
        texts = texts + read_principles(arguments.file)
    if not texts:
        raise UsageError("no principle to understand; give a TEXT, or a file of them with --file FILE")

    from constitutional.sandbox.understand import TOO_LONG, Understanding, doubts, understand_texts

    _say_if_alone()
    with Progress().task("what the principles are understood as", len(texts), "texts") as task:
        understood = understand_texts(texts, ended=task.update)
    rows, paragraphs = [], []
    for text, understanding in zip(texts, understood, strict=True):
        warnings = doubts(understanding) if understanding else [TOO_LONG]
        fields = understanding._asdict() if understanding else dict.fromkeys(Understanding._fields)
        rows.append({**fields, "text": text, "warnings": warnings})
        given = [f"given as: {understanding.given}"] if understanding and understanding.given else []
        told = [f"warning: {words}" for words in warnings]
        paragraphs.append("\n  ".join([printable(text), _meaning(understanding), *given, *told]))
    print(json.dumps(rows, indent=2, ensure_ascii=False) if arguments.json else "\n\n".join(paragraphs))


def _say_if_alone() -> None:
    """Say where the sandbox's model reads principles alone."""
    from constitutional.sandbox.reader import MISSING, encoder_file

    if encoder_file() is None:
        print(f"warning: {MISSING}", file=sys.stderr)


def _meaning(understanding: "Understanding | None") -> str:
    if understanding is None:
        return "not read"
    if understanding.trait == "nothing":
        return f"asks for nothing in particular ({percent(understanding.probability)})"
    trait = understanding.trait.replace("_", " ")
    return f"means: {understanding.direction} {trait} ({percent(understanding.probability)})"
