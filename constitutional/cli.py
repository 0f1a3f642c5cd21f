"""The command `constitutional`, and the only place that turns our errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, configuration or input, 130 interrupted. Nothing heavy is imported until a
command needs it, so that `--help` and a mistyped argument answer at once.
"""

import argparse
import json
import math
import os
import re
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from constitutional import __version__
from constitutional.errors import WRONG_USE, ConstitutionalError, UsageError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from constitutional.config import RunConfig
    from constitutional.lint import Finding, Understand
    from constitutional.sandbox.understand import Understanding

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
PIPE_CLOSED = 141  # 128 + SIGPIPE
UNSURE_BELOW = 0.8
"""A meaning that the model gives less probability than this is pointed out, with the runner-up."""
LONGEST_NAME = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's own) and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words and words[0] in _COMPOSED:
            return _COMPOSED[words[0]](words[1:])
        arguments = _parsed(words)
        return arguments.run(arguments) or 0
    except ConstitutionalError as error:
        _complain(error)
        return error.exit_code
    except KeyboardInterrupt:
        print("constitutional: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Who reads us, such as `head`, has had enough. Python would complain once more when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _complain(error: ConstitutionalError) -> None:
    """A line for the error, and one for each of its notes: further mistakes of the same kind."""
    for message in (str(error), *getattr(error, "__notes__", ())):
        print(f"constitutional: {_one_line(message)}", file=sys.stderr)


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(words)
    # A list of words ends at the next flag; what stands behind the flag belongs to the list all the same.
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

    # These three take Hydra's arguments and never get here; they stand here to be listed.
    commands.add_parser("run", add_help=False, help="run everything: run name=first constitution.file=FILE …")
    commands.add_parser("demo", add_help=False, help="the same on the small test-bed, in minutes on a CPU: runs/demo")
    commands.add_parser("config", add_help=False, help="print the configuration that `run` would have with these words")

    lint = commands.add_parser("lint", help="check a constitution file", description="Exits with 2 on errors.")
    lint.add_argument("file", metavar="FILE", help="YAML or Markdown, or the name of a shipped constitution")
    lint.add_argument("--sandbox", action="store_true", help="also say what the test-bed's model takes each to mean")
    lint.set_defaults(run=_lint)

    diff = commands.add_parser("diff", help="what changed between two constitution files")
    diff.add_argument("a", metavar="A")
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

    show = commands.add_parser("show", help="a run's stages, or one item followed back to where it came from")
    show.add_argument("folder", type=Path, metavar="RUN", help="such as runs/first")
    show.add_argument("item", nargs="?", metavar="ITEM", help="an id of a preference, comparison, prompt, …")
    show.set_defaults(run=_show)

    report = commands.add_parser("report", help="where a run's report is, or one page for several runs")
    report.add_argument("folders", type=Path, nargs="+", metavar="RUN", help="such as runs/first")
    report.add_argument("--out", type=Path, default=Path("report.html"), help="of several runs (default: %(default)s)")
    report.set_defaults(run=_report)

    sandbox = commands.add_parser("sandbox", help="the small test-bed that runs on a CPU")
    sandbox_commands = sandbox.add_subparsers(title="commands", required=True, metavar="COMMAND")
    understand = sandbox_commands.add_parser(
        "understand",
        help="ask the test-bed's model what principles mean",
        description="Say what the test-bed's model takes each principle to mean, and how sure it is.",
    )
    understand.add_argument("texts", nargs="*", metavar="TEXT", help="a principle, in your own words")
    understand.add_argument(
        "--file",
        type=Path,
        help="read principles from here: one a line, a JSON list (.json), or YAML with 'principles:' (.yaml)",
    )
    understand.add_argument("--json", action="store_true", help="print a JSON list instead of text")
    understand.set_defaults(run=_understand)
    return parser


# run, demo, config


def _run(words: Sequence[str]) -> int:
    failures: list[ConstitutionalError] = []

    def task(composed: "DictConfig") -> None:
        from constitutional.config import validated

        try:
            config = validated(composed)
            _run_one(config.model_copy(update={"name": _sweep_name(config.name)}))
        except ConstitutionalError as error:
            # Hydra would print a traceback and end the sweep; the runs that are left may well succeed.
            _complain(error)
            failures.append(error)

    _composed("run", words, task)
    return failures[0].exit_code if failures else 0


def _run_one(config: "RunConfig") -> None:
    from constitutional import show
    from constitutional.engines.opening import SANDBOX
    from constitutional.lint import headlines
    from constitutional.pipeline import ready, run, selected

    ready(config)  # a mistyped path is said at once, before a model is loaded
    reads = {config.critic.over(config.model).path, config.labeler.over(config.model).path}
    chosen = [principle.id for principle in selected(config).principles]
    findings = _findings(config.constitution.file, sandbox=SANDBOX in reads, chosen=chosen)
    for line in headlines(findings, config.constitution.file):
        print(line, file=sys.stderr)
    store = run(config)
    # What an earlier run left behind the last stage of this one says nothing of this one.
    if config.until in (None, "evaluate", "report") and (behaviour := show.behaviour(store)):
        print(f"\nBehaviour on held-out prompts, with 95% intervals\n\n{behaviour}")
    if config.until in (None, "report") and (path := show.report_path(store)):
        print(f"\nReport: {path}")


def _sweep_name(name: str) -> str:
    """The run's name; in a sweep with what makes it differ from the others, so that each has a folder of its own."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    chosen = HydraConfig.get()
    if chosen.mode != RunMode.MULTIRUN:
        return name
    apart = ("name=", "experiment=", "sweep=", "folder=", "fresh=")
    words = [word for word in chosen.overrides.task if not word.startswith(apart)]
    return re.sub(r"[^A-Za-z0-9_.,=+-]", "_", "-".join([name, *words]))[:LONGEST_NAME]


def _demo(words: Sequence[str]) -> int:
    return _run(["experiment=sandbox", "name=demo", *words])


def _config(words: Sequence[str]) -> int:
    failures: list[ConstitutionalError] = []

    def task(composed: "DictConfig") -> None:
        import yaml

        from constitutional.config import unchecked, validated

        try:
            shown = validated(composed).model_dump(mode="json")
        except ConstitutionalError as error:
            _complain(error)
            failures.append(error)
            shown = unchecked(composed)  # so that one sees what is still to be given, as ???, and all the rest
        print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")

    _composed("config", words, task)
    return failures[0].exit_code if failures else 0


def _composed(command: str, words: Sequence[str], task: "Callable[[DictConfig], None]") -> None:
    """Let Hydra compose a configuration from these words, and hand it to the task (in a sweep, one after the other)."""
    import tempfile

    import hydra

    from constitutional.config import hydra_errors, register
    from constitutional.shipped import shipped

    register()
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    # Hydra takes flags before overrides only, and -m is easily typed last.
    flags = [word for word in words if word in {"-m", "--multirun"}]
    rest = [word for word in words if word not in flags]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors, which become lines of ours, instead of printing and exiting
    try:
        with hydra_errors(words), tempfile.TemporaryDirectory() as aside:
            # A sweep leaves a multirun.yaml, which nothing can forbid; each run's config.json says more.
            sys.argv = [f"constitutional {command}", *flags, f"hydra.sweep.dir='{aside}'", *rest]
            hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="run")(task)()
    finally:
        sys.argv = before[0]
        os.environ.pop("HYDRA_FULL_ERROR")
        if before[1] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[1]


_COMPOSED = {"run": _run, "demo": _demo, "config": _config}


# Constitutions


def _findings(file: str, *, sandbox: bool, chosen: Sequence[str] | None = None) -> "list[Finding]":
    """What is wrong with a constitution; if the test-bed's model reads it, also what it takes the principles to mean.

    With `chosen`, ids, the model is asked about these principles only.
    """
    from constitutional.constitution import find_constitution
    from constitutional.lint import lint_file

    understand: Understand | None = None
    if sandbox:
        from constitutional.sandbox.understand import understand_texts

        understand = understand_texts
    return lint_file(find_constitution(file), understand, chosen)


def _lint(arguments: argparse.Namespace) -> int:
    from constitutional.progress import counted

    findings = _findings(arguments.file, sandbox=arguments.sandbox)
    for finding in findings:
        print(finding)
    kinds = Counter(finding.severity for finding in findings)
    notes = f", {counted(kinds['note'], 'note')}" if kinds["note"] else ""
    found = f"{counted(kinds['error'], 'error')}, {counted(kinds['warning'], 'warning')}{notes}"
    print(f"{arguments.file}: {found}", file=sys.stderr)
    return WRONG_USE if kinds["error"] else 0


def _diff(arguments: argparse.Namespace) -> None:
    from constitutional.constitution import load_constitution
    from constitutional.lint import difference

    changes = difference(load_constitution(arguments.a), load_constitution(arguments.b))
    for change in changes:
        print(change)
    if not changes:
        print("no difference")


def _check(arguments: argparse.Namespace) -> int:
    from constitutional import check
    from constitutional.bench import Bench
    from constitutional.config import compose
    from constitutional.constitution import load_constitution
    from constitutional.hhh import load_answers
    from constitutional.progress import Progress, counted
    from constitutional.prompts import load_prompts

    config = compose(arguments.overrides)
    chosen = config.constitution
    constitution = load_constitution(arguments.file).select(chosen.only, chosen.without, chosen.weights)
    given = load_answers(arguments.answers) if arguments.answers else None
    templates = load_prompts(config.templates)
    with Bench(config, constitution, templates, Progress()) as bench:
        engine = bench.journal(bench.given("labeler"))
        if given:
            print(check.baselines(given), flush=True)
            trial = check.by_answers(given, constitution, engine, templates, config.label, seed=config.seed)
        else:
            trial = check.by_examples(constitution, engine, templates, config.label)
        print(trial.text)
        asked = f"{counted(engine.asked, 'model call')} asked, {engine.reused} reused"
        print(f"{asked}; the answers are kept in {engine.path}, where runs find them too", file=sys.stderr)
    return int(trial.near_chance)


# Runs


def _show(arguments: argparse.Namespace) -> None:
    from constitutional import show
    from constitutional.pipeline import load_run
    from constitutional.store import outdated

    store = load_run(arguments.folder)
    if arguments.item is not None:
        print(show.item(store, arguments.item))
        return
    print(show.stages(store))
    if old := outdated(store):
        print(f"\n{old}")
    if behaviour := show.behaviour(store):
        print(f"\n{behaviour}")
    if path := show.report_path(store):
        print(f"\nReport: {path}")


def _report(arguments: argparse.Namespace) -> None:
    from constitutional import show
    from constitutional.pipeline import load_run
    from constitutional.store import outdated

    stores = [load_run(folder) for folder in arguments.folders]
    for store in stores:
        if old := outdated(store):
            print(f"warning: {store.folder}: {old}", file=sys.stderr)
    if len(stores) == 1:
        path = show.report_path(stores[0])
        if path is None:
            raise UsageError(
                f"{stores[0].folder}: has no report yet; the command that began it finishes it, without fresh=true"
            )
        print(path)
        return
    from constitutional.pipeline import compare

    print(compare(stores, arguments.out))


# The sandbox


def _understand(arguments: argparse.Namespace) -> None:
    from constitutional.principle_file import read_principles

    texts: list[str] = arguments.texts
    for text in texts:
        if not text.strip():
            raise UsageError('a TEXT is empty; write a principle, such as "Don\'t butter people up."')
        if os.path.isfile(text):  # noqa: PTH113 - unlike Path, it takes text of any length
            raise UsageError(f"'{text}' is a file; to read the principles in it, type --file {shlex.quote(text)}")
    if arguments.file is not None:
        texts = texts + read_principles(arguments.file)
    if not texts:
        raise UsageError("no principle to understand; give a TEXT, or a file of them with --file FILE")

    from constitutional.sandbox.understand import understand_texts

    understandings = understand_texts(texts)
    if arguments.json:
        print(json.dumps([_as_dict(understanding) for understanding in understandings], indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(_described(understanding) for understanding in understandings))


def _described(understanding: "Understanding") -> str:
    from constitutional.sandbox.understand import in_capitals

    meaning = f"means: {understanding.direction} {understanding.trait.replace('_', ' ')}"
    if understanding.trait == "nothing":
        meaning = "asks for nothing in particular"
    lines = [understanding.text, f"  {meaning} ({_percent(understanding.probability)})"]
    if in_capitals(understanding.text):
        lines.append("  warning: it is in capitals; the model reads ordinary case better")
    if understanding.unknown_words:
        lines.append(f"  warning: the model does not know: {', '.join(understanding.unknown_words)}")
    if understanding.probability < UNSURE_BELOW:
        runner_up = f"{understanding.runner_up.replace('_', ' ')} ({_percent(understanding.runner_up_probability)})"
        lines.append(f"  warning: the model is unsure; it may also mean: {runner_up}")
    return "\n".join(lines)


def _as_dict(understanding: "Understanding") -> dict[str, str | float | list[str]]:
    return {
        "text": understanding.text,
        "trait": understanding.trait,
        "direction": understanding.direction,
        "restated": understanding.restated,
        "probability": understanding.probability,
        "runner_up": understanding.runner_up,
        "runner_up_probability": understanding.runner_up_probability,
        "unknown_words": understanding.unknown_words,
    }


def _percent(probability: float) -> str:
    # Rounded down, so that 100% means certain and a meaning that is pointed out as unsure never reads as 80%. The small
    # number makes up for products such as 0.57 * 100 = 56.99999999999999.
    return f"{math.floor(probability * 100 + 1e-9)}%"


def _one_line(message: str) -> str:
    return " ".join(message.split())
