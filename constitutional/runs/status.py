"""How far a run has come: its stages in running order, and which of them no longer match what they were made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

from constitutional.base.errors import ConstitutionalError
from constitutional.base.files import digest_of
from constitutional.base.progress import counted
from constitutional.base.templates import VARIABLES, load_prompts
from constitutional.base.text import printable
from constitutional.constitution.file import load_constitution
from constitutional.engines.spending import Calls
from constitutional.runs.compose import load
from constitutional.runs.context import (
    CONFIGURATION,
    as_models_read_before,
    constitution_digests,
    is_given,
    selected,
)
from constitutional.runs.folder import USED, RunStore


class StageLine(NamedTuple):
    """One stage, for a table that people read."""

    stage: str
    folder: str
    state: Literal["done", "failed", "not finished", "not begun", "waits for people"]
    seconds: float = 0.0
    rows: Mapping[str, int | None] = MappingProxyType({})
    """By artifact; None for what has no rows."""
    calls: Calls = Calls()
    message: str = ""
    """Why it failed, or what it waits for; empty otherwise."""


def describe(store: RunStore, expected: Sequence[str] = ()) -> list[StageLine]:
    """The stages in running order, with how far each has come.

    Args:
        store: the run.
        expected: the names of all stages, in order: those that were never begun are told of too.
    """
    links = store.manifest.stages
    lines = []
    for number, name in enumerate(expected):
        if name not in links:
            lines.append(StageLine(name, f"{number:02d}_{name}", "not begun"))
    for name, link in links.items():
        folder = link.folder(name)
        if name in store.manifest.failures:
            lines.append(StageLine(name, folder, "failed", message=store.manifest.failures[name].message))
        elif (entry := store.stages.get(name)) is None:
            waits = _waits(store) if name == "spotcheck" else ""
            lines.append(StageLine(name, folder, "waits for people" if waits else "not finished", message=waits))
        else:
            rows = {made: artifact.rows for made, artifact in entry.artifacts.items() if made != "summary"}
            lines.append(StageLine(name, folder, "done", entry.seconds, rows, entry.calls))
    return sorted(lines, key=lambda line: line.folder)


def _waits(store: RunStore) -> str:
    """What a run whose spot-checks are not finished waits for; empty where its settings do not make it wait."""
    try:
        settings = load(store.folder).spotcheck
    except ConstitutionalError:  # of another version
        return ""
    if not settings.wait or settings.verdicts is not None or settings.simulate is not None:
        return ""
    return f"a budget of {counted(settings.votes, 'vote')}; constitutional review {printable(str(store.folder))}"


def outdated(store: RunStore) -> str:
    """A line that names finished stages which no longer match what they were made from; empty where there is none.

    They are left where a run was stopped after a stage that made something else than before, and where a file that
    settings name was edited. Each is named with what has changed; then those that were made from what such stages made.
    """
    now = _given(store) | {name: artifact.sha256 for name, artifact in store.artifacts().items()} | store.summaries()
    maker = {name: stage for stage, entry in store.stages.items() for name in entry.artifacts}
    changed, resting, stale = list[str](), list[str](), set[str]()
    for line in describe(store):
        if line.state != "done":
            continue
        entry = store.stages[line.stage]
        needs = entry.needs
        others = [need for need, digest in needs.items() if digest != now.get(need, digest if is_given(need) else "")]
        if line.stage != "adopted":  # which has its folder's copy
            others += [file for file, digest in entry.files.items() if digest != _on_disk(file)]
        if others:
            changed.append(f"{line.folder} ({', '.join(others)})")
        elif any(maker.get(need) in stale for need in needs):
            resting.append(line.folder)
        else:
            continue
        stale.add(line.stage)
    if not changed:
        return ""
    rest = f"; {', '.join(resting)}: made from what those made" if resting else ""
    what = f"{', '.join(changed)}: made from what has changed since{rest}"
    return f"{what}; the run's command without until= brings up to date what depends on it"


def _on_disk(file: str) -> str:
    """The digest of a file or folder as it is now; empty if it is gone or cannot be read."""
    try:
        return digest_of(Path(file))
    except OSError:
        return ""


def _given(store: RunStore) -> dict[str, str]:
    """Digests of the models when the run was last begun, and of its constitution and templates as they are now."""
    try:
        config = load(store.folder)
        templates = load_prompts(config.templates)
        constitution = as_models_read_before(selected(config), load_constitution(store.folder / USED))
        now = (
            {CONFIGURATION: config.digest}
            | constitution_digests(constitution)
            | {f"{name}.j2": templates.digest(name) for name in VARIABLES}
        )
    except (ConstitutionalError, OSError):
        now = {}  # a file is gone or wrong: whoever runs it is told
    return store.given_digests() | now
