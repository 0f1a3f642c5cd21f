"""The commands whose words Hydra composes to a configuration: run, demo and config."""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from constitutional.base.errors import ConstitutionalError, UsageError, complain

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from constitutional.runs.settings import RunConfig

LONGEST_NAME: Final = 100


def run(words: Sequence[str]) -> int:
    """Run everything, or in a sweep one run after the other; returns the exit code."""
    failures: list[ConstitutionalError] = []

    def task(composed: "DictConfig") -> None:
        from constitutional.runs.compose import validated

        try:
            config = validated(composed)
            _run_one(config.model_copy(update={"name": _sweep_name(config.name, words)}))
        except ConstitutionalError as error:
            # Hydra would print a traceback and end the sweep; the runs that are left may well succeed.
            complain(error)
            failures.append(error)

    _composed("run", words, task)
    return failures[0].exit_code if failures else 0


def _run_one(config: "RunConfig") -> None:
    from constitutional.cli import show
    from constitutional.engines.models import SANDBOX
    from constitutional.judging.lint import findings_of, headlines
    from constitutional.runs.context import selected
    from constitutional.runs.runner import ready, run

    ready(config)  # a mistyped path is said at once, before a model is loaded
    reads = {config.critic.over(config.model).path, config.labeler.over(config.model).path}
    chosen = [principle.id for principle in selected(config).principles]
    findings = findings_of(config.constitution.file, sandbox=SANDBOX in reads, chosen=chosen)
    for line in headlines(findings, config.constitution.file):
        print(line, file=sys.stderr)
    store = run(config)
    # What an earlier run left behind the last stage of this one says nothing of this one.
    if config.until in (None, "evaluate", "report") and (behaviour := show.behaviour(store)):
        print(f"\nBehaviour on held-out prompts, with 95% intervals\n\n{behaviour}")
    if config.until in (None, "report") and (path := show.report_path(store)):
        print(f"\nReport: {path}")


def _sweep_name(name: str, words: Sequence[str]) -> str:
    """The run's name; in a sweep with what makes it differ from the others, so that each has a folder of its own.

    That is every override of the run that was not typed as it is: of `seed=1,2 until=mix`, `seed=1`.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    chosen = HydraConfig.get()
    if chosen.mode != RunMode.MULTIRUN:
        return name
    swept = [word for word in chosen.overrides.task if word not in words]
    long = re.sub(r"[^A-Za-z0-9_.,=+-]", "_", "-".join([name, *swept]))
    if len(long) <= LONGEST_NAME:
        return long
    digest = hashlib.sha256("-".join(swept).encode()).hexdigest()[:8]  # what is cut off may be what they differ in
    return f"{long[: LONGEST_NAME - 9]}-{digest}"


def demo(words: Sequence[str]) -> int:
    """Run everything on the small test-bed, in runs/demo; returns the exit code."""
    return run(["experiment=sandbox", "name=demo", *words])


def config(words: Sequence[str]) -> int:
    """Print the configuration that `run` would have; returns the exit code that it would have for it."""
    failures: list[ConstitutionalError] = []

    def task(composed: "DictConfig") -> None:
        import yaml

        from constitutional.runs.compose import unchecked, validated
        from constitutional.runs.context import selected

        try:
            config = validated(composed)
            shown = config.model_dump(mode="json")
            selected(config)
        except ConstitutionalError as error:
            complain(error)
            failures.append(error)
            shown = unchecked(composed)  # so that one sees what is still to be given, as ???, and all the rest
        print(yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")

    _composed("config", words, task)
    return failures[0].exit_code if failures else 0


COMPOSED: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {"run": run, "demo": demo, "config": config}
"""The commands, by name."""


def _composed(command: str, words: Sequence[str], task: "Callable[[DictConfig], None]") -> None:
    """Let Hydra compose a configuration from these words, and hand it to the task (in a sweep, one after the other)."""
    import tempfile

    import hydra

    from constitutional.base.shipped import shipped
    from constitutional.runs.compose import hydra_errors, register

    register()
    overrides, options = _told_apart(command, words)
    before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors, which become lines of ours, instead of printing and exiting
    try:
        with hydra_errors(words), tempfile.TemporaryDirectory() as aside:
            # A sweep leaves a multirun.yaml, which nothing can forbid; each run's config.json says more.
            sys.argv = [f"constitutional {command}", f"hydra.sweep.dir='{aside}'", *overrides, *options]
            hydra.main(version_base="1.3", config_path=str(shipped("conf")), config_name="run")(task)()
    finally:
        sys.argv = before[0]
        os.environ.pop("HYDRA_FULL_ERROR")
        if before[1] is not None:
            os.environ["HYDRA_FULL_ERROR"] = before[1]


def _told_apart(command: str, words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides among the words, and Hydra's options with their values.

    Hydra takes options and overrides in one order only, and answers anything else with its usage; people type -m last.

    Raises:
        UsageError: there is no such option, or its value is missing or wrong.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        found, rest = parser.parse_known_args(list(words))
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; see `constitutional {command} --help`") from error
    if unknown := next((word for word in rest if word.startswith("-") and word != "--"), None):
        from constitutional.runs.config_errors import unknown_option_line

        behind = words[words.index(unknown) + 1 :]
        value = behind[0] if behind and not re.search("^-|=", behind[0]) else ""
        known = re.findall(r"--[a-z-]+", parser.format_usage())
        raise UsageError(unknown_option_line(unknown, value, known, command))
    overrides = [word for word in [*found.overrides, *rest] if word != "--"]
    options = [word for word in words if word != "--"]
    for word in overrides:
        options.remove(word)
    return overrides, options
