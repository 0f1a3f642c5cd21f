"""What a run's name stood for before: the settings that its folder was made with, against those of a command now.

A command that types other settings means them. One that leaves out what was typed before would make the run anew by
the defaults, and whoever types `run name=first` to go on with runs/first does not mean that.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from constitutional.base.errors import ConstitutionalError, UsageError
from constitutional.base.frozen import decisive
from constitutional.runs.compose import load
from constitutional.runs.folder import RunStore
from constitutional.runs.settings import ROLES, RunConfig
from constitutional.runs.sweeps import typed
from constitutional.stages.report.comparison import SettingChange, setting_changes

NO_RESULT: Final = ("until", "budget", "understanding", "report_to", "journal", "launch", "cluster")
"""Settings of a run that change no result; those of its parts are marked `TECHNICAL`."""
SHOWN: Final = 5
"""Settings that are named, of those that differ."""


def changes(config: RunConfig) -> list[SettingChange]:
    """The settings that differ from those by which the run's folder has results, with their values as JSON.

    Args:
        config: of now, with absolute paths (`freeze`).
    """
    try:
        store, before = RunStore.load(config.run_folder), load(config.run_folder)
    except ConstitutionalError:  # there is none, or nobody can say
        return []
    return deciding(before, config) if store.stages else []


def deciding(before: RunConfig, config: RunConfig) -> list[SettingChange]:
    """The settings, both with absolute paths, that differ and change a result, with their values as JSON."""
    decide = {row.key for row in setting_changes(_decisive(before), _decisive(config))}
    every = setting_changes(before.model_dump(mode="json"), config.model_dump(mode="json"))
    return [row for row in every if any(_meet(row.key, key) for key in decide)]


def _decisive(config: RunConfig) -> dict[str, object]:
    values = decisive(config, str)
    return {name: value for name, value in values.items() if name not in NO_RESULT}


def said(config: RunConfig, differing: Sequence[SettingChange]) -> str:
    """A line about a run whose settings are now others, all of which somebody typed."""
    return (
        f"the run {config.name} was made with another {_names(differing)}; what differs is made anew, and what there "
        "was is kept: the former settings bring it back (name=OTHER leaves this run as it is)"
    )


def check_typed(config: RunConfig, overrides: Sequence[str]) -> None:
    """Refuse a command that names a run with results, and leaves out settings that these were made with.

    Args:
        config: what the command comes to, with absolute paths.
        overrides: the command's words.

    Raises:
        UsageError: says which settings, what they were, what they would become, and what to type.
    """
    keys = [word.partition("=")[0].lstrip("+~").removeprefix("engine@") for word in overrides]
    if "experiment" in keys:
        return  # which says all settings
    named = [one for key in keys for one in _of_roles(key)]
    differing = changes(config)
    kinds = {row.key.partition(".")[0] for row in differing if row.key.endswith(".kind")}
    named += [group for group in kinds if any(_meet(key, group) for key in named)]
    missing = [row for row in differing if not any(_meet(row.key, key) for key in named)]
    if not missing:
        return
    folder = config.run_folder
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    then = ", ".join(f"{row.key}={row.before or 'null'}" for row in missing[:SHOWN])
    now = ", ".join(f"{row.key}={row.after or 'null'}" for row in missing[:SHOWN])
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    again = (word for word in overrides if not word.startswith(("name=", "from=")))
    command = shlex.join(["constitutional", "run", f"from={shown}", f"name={typed(config.name)}", *again])
    raise UsageError(
        f"{shown} was made with {then}{more}, which this command does not name, so that it would be made anew with "
        f"{now}; to go on with its own settings, type `{command}`; to change them, type the new values too; for "
        "another run, name=OTHER"
    )


def _of_roles(key: str) -> list[str]:
    """A key, or for one of all roles' engine those of the roles."""
    group, dot, name = key.partition(".")
    return [f"{role}{dot}{name}" for role in ROLES] if group == "engine" else [key]


def _names(differing: Sequence[SettingChange]) -> str:
    keys = [row.key for row in differing]
    others = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"{', '.join(keys[:SHOWN])}{others}"


def _meet(a: str, b: str) -> bool:
    """Whether one of two dotted names is the other, or the group that the other belongs to."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")
