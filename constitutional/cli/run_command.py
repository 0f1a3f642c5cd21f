"""The commands whose words are a configuration: run, demo and config."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from constitutional.base.errors import ConstitutionalError, UsageError, complain
from constitutional.base.shipped import shipped
from constitutional.base.text import printable, table

if TYPE_CHECKING:
    from constitutional.runs.settings import RunConfig

_ABOUT: Final = {
    "run": "From a constitution to a model that behaves as it says, in the folder runs/NAME.",
    "demo": "The same on the small test-bed, in the folder runs/demo.",
    "config": "Print the configuration that `constitutional run` would have with these words.",
}
FORECAST: Final = "until=forecast"
"""The override that means the same as --dry-run."""
_OPTIONS: Final = ("--multirun", "--dry-run", "--items", "--cfg", "--resolve", "--explain", "--help")
_HYDRAS: Final = (
    *("--hydra-help", "--package", "-p", "--run", "-r", "--info", "-i", "--shell-completion", "-sc"),
    *("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun"),
)
"""Options of Hydra's own command, which do not apply here."""


def run(words: Sequence[str], command: str = "run") -> int:
    """Run everything, or in a sweep all its jobs; returns the exit code."""
    from constitutional.runs.compose import compose, freeze, source_of, sweep
    from constitutional.runs.former import check_typed
    from constitutional.runs.runner import ready

    arguments = _parsed(command, words)
    swept = arguments.multirun or any(re.match(r"\+*sweep=", word) for word in arguments.overrides)
    if command == "demo" and _has_own_words(arguments.overrides, swept=swept):
        # A principle of the user's own must be understood, or a first try ends in a model that nobody asked for.
        arguments.overrides = ["understanding=strict", *arguments.overrides]
    if arguments.cfg:
        return _print_config(arguments)
    alone = None if swept else freeze(compose(arguments.overrides))
    if alone:
        check_typed(alone, arguments.overrides)  # before anything of the run that it names is touched
    if source := source_of(arguments.overrides):
        places = [word for word in arguments.overrides if re.match(r"(from|folder|name)=", word)]
        for place in sweep(places, multirun=swept):
            _take_over(source, freeze(compose(place.overrides)))
    if swept and not arguments.dry_run:
        from constitutional.cli.sweep_command import run_sweep

        return run_sweep(arguments.overrides, run_one)
    configs = {"": alone} if alone else _jobs(arguments.overrides)
    if alone and not arguments.overrides:
        print(_default_run(alone), file=sys.stderr)
    for number, (words_of_job, config) in enumerate(configs.items()):
        ready(config)
        if arguments.dry_run:
            print("\n" * bool(number), end="")
            _forecast_one(config, arguments.items, words_of_job)
        else:
            run_one(config)
    return 0


def _default_run(config: "RunConfig") -> str:
    """What is run where nothing was typed, before it begins."""
    return (
        f"nothing was typed, so this is the default run: the constitution {config.constitution.file}, the model "
        f"{config.model.path}, in {printable(str(config.run_folder))}. Ctrl-C stops it, and the same command goes on. "
        "`constitutional run name=NAME constitution.file=FILE` runs your own; --dry-run says what a run asks"
    )


def _take_over(source: Path, config: "RunConfig") -> None:
    """Let a run find what the run that it begins with has made, where it has another folder."""
    from constitutional.runs.folder import RunStore
    from constitutional.runs.outputs import Outputs

    store = RunStore.load(source)
    places = {store.manifest.stages[stage].output: store.stage_folder(stage).resolve() for stage in store.stages}
    Outputs(config.outputs_folder).take_over(places)


def _jobs(overrides: Sequence[str]) -> "dict[str, RunConfig]":
    """The jobs of a sweep by their overrides, each with its own name, and so with its own folder."""
    from constitutional.runs.compose import compose, freeze
    from constitutional.runs.sweeps import jobs_of, named

    jobs = jobs_of(overrides, multirun=True)
    configs = named([freeze(compose(job.overrides)) for job in jobs], [job.swept for job in jobs])
    return {" ".join(job.overrides): config for job, config in zip(jobs, configs, strict=True)}


def job(words: Sequence[str]) -> int:
    """Run a job of a sweep, from the file with its configuration; launchers call this."""
    from constitutional.runs.compose import load

    run_one(load(Path(*words[:1])))
    return 0


def run_one(config: "RunConfig") -> None:
    """Run all stages that are not done yet, and print what came of it."""
    from constitutional.cli import show
    from constitutional.judging.lint import headlines, lint
    from constitutional.runs.context import selected
    from constitutional.runs.runner import run

    chosen = [principle.id for principle in selected(config).principles]
    findings = lint(config.constitution.file, sandbox=False, chosen=chosen).findings
    for line in headlines(findings, config.constitution.file):
        print(printable(line), file=sys.stderr)
    store = run(config)
    # What an earlier run left behind the last stage of this one says nothing of this one.
    if config.until in (None, "evaluate", "report") and (behaviour := show.behaviour(store)):
        print(f"\nBehaviour on held-out prompts, with 95% intervals\n\n{behaviour}")
    if config.until in (None, "report") and (path := show.report_path(store)):
        print(f"\nReport: {printable(str(path))}")


def _forecast_one(config: "RunConfig", items: int, words: str) -> None:
    from constitutional.runs.forecast import as_table, forecast

    which = words or str(config.run_folder)
    print(f"What {printable(which)} would ask, from {items} items\n")
    print(as_table(forecast(config, items=items)))


def refuse_name(words: Sequence[str], instead: str) -> None:
    """Refuse a run's name among the settings of a command that makes no run, and would not look at that run.

    Args:
        words: the settings.
        instead: what to type, as a sentence.

    Raises:
        UsageError: there is one, and no `from=` that says whose settings it takes.
    """
    named = next((word for word in words if word.startswith("name=")), None)
    if named and not any(word.startswith("from=") for word in words):
        raise UsageError(f"{named} names a run, and this command makes none and looks at none; leave it out: {instead}")


def demo(words: Sequence[str]) -> int:
    """Run everything on the small test-bed, in runs/demo; returns the exit code."""
    return run(["experiment=sandbox", "name=demo", *words], "demo")


def _has_own_words(overrides: Sequence[str], *, swept: bool) -> bool:
    """Whether any run that these overrides ask for has principles that do not ship; False where they are wrong."""
    from constitutional.runs.compose import compose, search_space, sweep_settings
    from constitutional.runs.context import own_words
    from constitutional.runs.sweeps import jobs_of

    with suppress(ConstitutionalError):  # which is told when they are composed to be run
        if swept and sweep_settings(overrides).trials is not None:
            shared, spaces = search_space(overrides)
            jobs = [shared, *([*shared, f"{space.key}={choice}"] for space in spaces for choice in space.choices)]
        else:
            jobs = [list(job.overrides) for job in jobs_of(overrides, multirun=swept)]
        return any(own_words(compose(job)) != frozenset() for job in jobs)
    return False


def config(words: Sequence[str]) -> int:
    """Print the configuration that `run` would have, or what settings mean; returns the exit code."""
    arguments = _parsed("config", words)
    if arguments.explain is None:
        return _print_config(arguments)
    from constitutional.cli.explain import explained

    for key in [key for key in (arguments.explain, *arguments.overrides) if key] or [""]:
        print(explained(key.partition("=")[0]))
    return 0


def _print_config(arguments: argparse.Namespace) -> int:
    import yaml

    from constitutional.runs.compose import unchecked, validated
    from constitutional.runs.runner import ready
    from constitutional.runs.sweeps import jobs_of

    exit_code = 0
    jobs = jobs_of(arguments.overrides, multirun=arguments.multirun)
    for number, job in enumerate(jobs):
        shown = unchecked(job.overrides)
        try:
            config = validated(shown)
            shown = config.model_dump(mode="json")
            ready(config)
        except ConstitutionalError as error:
            complain(error)  # and what is still to be given is shown as ???, with all the rest
            exit_code = error.exit_code
        print("---\n" * bool(number) + yaml.safe_dump(shown, sort_keys=False, allow_unicode=True), end="")
    return exit_code


COMPOSED: Final[Mapping[str, Callable[[Sequence[str]], int]]] = {"run": run, "demo": demo, "config": config, "job": job}
"""The commands, by name."""


def _parsed(command: str, words: Sequence[str]) -> argparse.Namespace:
    """The overrides among the words, and the options, which may stand anywhere.

    Raises:
        UsageError: there is no such option, or its value is missing or wrong.
    """
    parser = argparse.ArgumentParser(
        prog=f"constitutional {command}",
        description=_ABOUT[command],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="a setting, or GROUP=PRESET")
    parser.add_argument("-m", "--multirun", action="store_true", help="a run for each combination: seed=0,1,2")
    parser.add_argument("-c", "--cfg", choices=["job"], help="print the configuration, as `config` does")
    parser.add_argument("--resolve", action="store_true", help="as always, print values for references to them")
    if command != "config":
        dry = "train nothing: measure a handful of items, and say what the run would ask, cost and take; so does "
        parser.add_argument("--dry-run", action="store_true", help=dry + FORECAST)
        parser.add_argument("--items", type=int, default=8, metavar="N", help="prompts of a dry run's handful")
    if command == "config":
        parser.add_argument("--explain", nargs="?", const="", metavar="KEY", help="say what settings mean, or only KEY")
    if "-h" in words or "--help" in words:
        parser.epilog = _presets()
    try:
        arguments, rest = parser.parse_known_args([word for word in words if word != "--"])
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; see `constitutional {command} --help`") from error
    if unknown := next((word for word in rest if word.startswith("-")), None):
        behind = words[list(words).index(unknown) + 1 :]
        value = behind[0] if behind and not re.search("^-|=", behind[0]) else "VALUE"
        raise UsageError(_unknown_option(unknown, value, command))
    arguments.overrides += rest
    if command != "config" and FORECAST in arguments.overrides:
        arguments.overrides = [word for word in arguments.overrides if word != FORECAST]
        arguments.dry_run = True
    return arguments


def _presets() -> str:
    """The groups with their presets."""
    folders = sorted(path for path in shipped("conf").iterdir() if path.is_dir() and path.name != "base")
    rows = [(f"  {path.name}", ", ".join(sorted(preset.stem for preset in path.glob("*.yaml")))) for path in folders]
    heading = "groups and their presets (those of engine: labeler=qwen3_32b):"
    return f"{heading}\n{table(rows)}\n\n`constitutional config --explain` says what every setting means."


def _unknown_option(word: str, value: str, command: str) -> str:
    """What to say of an option that there is not, such as `--until label`, which is a setting."""
    from constitutional.runs.settings import every_key

    option, _, joined = word.partition("=")
    if option in _HYDRAS:
        return f"'{option}' belongs to Hydra's own command and does not apply; see `constitutional {command} --help`"
    if near := difflib.get_close_matches(option, _OPTIONS, n=1, cutoff=0.7):
        return f"there is no option '{option}'; did you mean {near[0]}?"
    if setting := difflib.get_close_matches(option.lstrip("-").replace("-", "_"), every_key(), n=1, cutoff=0.7):
        return f"there is no option '{option}', but a setting: type {setting[0]}={joined or value}"
    return f"there is no option '{option}'; settings are typed KEY=VALUE; see `constitutional {command} --help`"
