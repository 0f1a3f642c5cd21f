"""The command `run -m`: the jobs of a sweep, one after the other or by a launcher, and what they came to."""

import signal
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Final

from constitutional.base.errors import ConstitutionalError, complain
from constitutional.base.progress import Progress, clock
from constitutional.base.text import printable, table
from constitutional.engines.spending import Calls
from constitutional.runs import sweeps
from constitutional.runs.compose import Job, compose, freeze, is_launchers, sweep_settings
from constitutional.runs.folder import RunStore
from constitutional.runs.former import check_typed
from constitutional.runs.launch import check_launcher, launch
from constitutional.runs.runner import ready
from constitutional.runs.settings import RunConfig
from constitutional.runs.weight_search import Search

BASIC: Final = "hydra/launcher=basic"
STOPPED: Final = 130
"""The exit code of a job that was interrupted."""


def run_sweep(overrides: Sequence[str], run_one: Callable[[RunConfig], None]) -> int:
    """Run all jobs of a sweep; returns 0, or the exit code of the first job that failed.

    Args:
        overrides: as they were typed.
        run_one: runs a job in this process.

    Raises:
        ConstitutionalError: an override is wrong, or a job is. All that is wrong is told before the first job begins.
        KeyboardInterrupt: the user stopped it.
    """
    launcher = [word for word in overrides if is_launchers(word) and word != BASIC]
    if launcher:
        check_launcher(launcher)
    if sweep_settings(overrides).trials is None:
        jobs = sweeps.jobs_of(overrides, multirun=True)
        running = _Jobs(overrides, launcher, run_one, len(jobs))
        running.batch(jobs)
    else:
        search = Search(overrides)
        running = _Jobs(overrides, launcher, run_one, search.trials)
        while jobs := search.ask():
            running.batch(jobs)
            search.tell(sweeps.outcomes(running.file, len(jobs)))
    return running.finish()


class _Jobs:
    """A sweep that goes on: its jobs so far, what has become of them, and a line for each that ends."""

    def __init__(
        self, overrides: Sequence[str], launcher: Sequence[str], run_one: Callable[[RunConfig], None], total: int
    ) -> None:
        self.file = Path()
        """The sweep's file, once there is a batch."""
        self._logs = Path()
        self._settings = sweep_settings(overrides)
        self._launcher, self._run_one, self._total = launcher, run_one, total
        self._progress, self._started_s = Progress(), time.monotonic()
        self._jobs: list[Job] = []
        self._configs: list[RunConfig] = []
        self._exit_codes: dict[int, int] = {}
        self._made: set[Path] = set()
        """The stages' outputs that are there, whose calls are no longer to be counted."""
        self._calls = Calls()
        self._fresh = 0
        """Jobs that ended and for which something was made."""

    def batch(self, jobs: Sequence[Job]) -> None:
        """Check more jobs, write them down, and run them."""
        first, configs = len(self._jobs), _checked(jobs)
        self._jobs += jobs
        # Names are made of the whole sweep, so that no two are alike.
        named = sweeps.named([configs[0]] * first + configs, [job.swept for job in self._jobs])[first:]
        if not first:
            runs = configs[0].folder
            name = configs[0].name
            self.file, self._logs = runs / f"{name}{sweeps.ENDING}", runs / sweeps.LOGS / name
            self._made = sweeps.made(configs[0].outputs_folder)
        self._configs += named
        folders = [config.run_folder for config in self._configs]
        if not first:
            search = self._settings.trials is not None
            sweeps.check_kept(self.file, folders, sweeps.varied(jobs[0].swept) if search else ())
        for config, job in zip(named, jobs, strict=True):
            check_typed(config, job.overrides)
        sweeps.write(self.file, self._settings, self._jobs, folders)
        try:
            if self._launcher:
                launch(
                    self._launcher,
                    self._logs,
                    named,
                    lambda number, *end: self._ended(first + number, *end),
                    self._progress,
                )
            else:
                for number, config in enumerate(named, start=first):
                    self._progress.say(f"job {number + 1} of {self._total}, {config.name}: begins")
                    self._ended(number, self._in_this_process(config))
        except KeyboardInterrupt:
            done = list(self._exit_codes.values()).count(0)
            self._progress.say(f"stopped with {done} of {self._total} jobs done; the same command goes on from here")
            raise

    def finish(self) -> int:
        """Say what the sweep came to; returns the exit code."""
        codes = list(self._exit_codes.values())
        print(f"\n{shown(self.file)}")
        calls = f"this time {self._calls.asked:,} model calls asked, {self._calls.reused:,} reused"
        done = f"{codes.count(0)} of {self._total} jobs are done"
        path = self.file.with_name(self.file.name.removesuffix(sweeps.ENDING))
        path = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        self._progress.say(f"{done}; {calls}; `constitutional show {path}` lists them")
        return next((self._exit_codes[number] for number in sorted(self._exit_codes) if self._exit_codes[number]), 0)

    def _in_this_process(self, config: RunConfig) -> int:
        try:
            self._run_one(config)
        except ConstitutionalError as error:
            complain(error)
            return error.exit_code
        except Exception:  # noqa: BLE001 - a defect ends one job, and not the others
            traceback.print_exc()
            return 1
        return 0

    def _ended(self, number: int, exit_code: int | None, log: Path | None = None) -> None:
        """Say in a line what became of a job."""
        self._exit_codes[number] = 1 if exit_code is None else exit_code
        config, before = self._configs[number], len(self._made)
        calls = Calls()
        with suppress(ConstitutionalError):  # it failed before it had a folder
            calls = sweeps.calls_of(RunStore.load(config.run_folder), self._made)
        self._calls = Calls(asked=self._calls.asked + calls.asked, reused=self._calls.reused + calls.reused)
        self._fresh += len(self._made) > before
        text = f"job {number + 1} of {self._total}, {config.name}: {_state(exit_code, log)}"
        text += f"; {calls.asked:,} model calls asked, {calls.reused:,} reused"
        left = self._total - len(self._exit_codes)
        if left and self._fresh:
            spent_s = time.monotonic() - self._started_s
            text += f"; {left} to go, about {clock(spent_s / self._fresh * left)}"
        self._progress.say(text)


def _checked(jobs: Sequence[Job]) -> list[RunConfig]:
    """The jobs' configurations.

    Raises:
        ConstitutionalError: some are wrong. All mistakes but the last are printed.
    """
    configs: list[RunConfig] = []
    wrong: dict[str, ConstitutionalError] = {}
    for job in jobs:
        try:
            configs.append(freeze(compose(job.overrides)))
            ready(configs[-1])
        except ConstitutionalError as error:
            wrong.setdefault(str(error), error)  # most runs of a sweep share a mistake, which is said once
    mistakes = list(wrong.values())
    for mistake in mistakes[:-1]:
        complain(mistake)
    if mistakes:
        raise mistakes[-1]
    return configs


def _state(exit_code: int | None, log: Path | None) -> str:
    """What became of a job, in words."""
    if exit_code == 0:
        return "done"
    if exit_code in (STOPPED, -signal.SIGINT):  # the second where it had not quite begun
        return "stopped"
    if exit_code is not None and exit_code < 0:
        return f"killed by signal {-exit_code}; {log} has more"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log and log.exists() else []
    said = [line.removeprefix("constitutional: ") for line in lines if line.startswith("constitutional: ")] or lines[
        -1:
    ]
    why = f": {said[0]}; {log} has more" if said else ""
    return ("lost by the launcher" if exit_code is None else "failed") + why


def _over_seeds(lines: Sequence[sweeps.JobLine]) -> list[str]:
    """A table of means over the jobs that differ by their seed alone, with their range; nothing without such jobs."""
    rows: list[tuple[str, ...]] = [("mean over seeds (range)", "seeds", "violates", "over-refusal", "wins")]
    for name, group in sweeps.by_seed(lines).items():
        measured = [
            [figure for figure in figures if figure is not None]
            for figures in zip(
                *((row.violations, row.run.over_refusal, row.run.preferred) for row in group), strict=True
            )
        ]
        if max(map(len, measured)) > 1:
            cells = (f"{mean(of):.0%} ({min(of):.0%}–{max(of):.0%})" if of else "" for of in measured)
            rows.append((name, f"{max(map(len, measured))} of {len(group)}", *cells))
    return ["", table(rows), ""] if len(rows) > 1 else []


def shown(file: Path) -> str:
    """A table of a sweep's jobs, with what each differs in and came to, and the best of them."""
    sweep = sweeps.read(file)
    lines = sweeps.job_lines(file)
    rows: list[tuple[str, ...]] = [("job", "state", "violates", "over-refusal", "wins", "asked", "reused")]
    for line in lines:
        figures = (line.violations, line.run.over_refusal, line.run.preferred)
        shares = ("" if figure is None else f"{figure:.0%}" for figure in figures)
        calls = (f"{line.calls.asked:,}", f"{line.calls.reused:,}")
        rows.append((line.run.name, line.run.state, *shares, *calls))
    asked, reused = sum(line.calls.asked for line in lines), sum(line.calls.reused for line in lines)
    notes = [f"since the jobs were first begun: {asked:,} model calls asked, {reused:,} reused"]
    if any(line.violations is not None for line in lines):
        notes.append("violates: mean share of replies that violate a principle, over all that every job measured")
    bound = "" if sweep.over_refusal is None else f", with an over-refusal of {sweep.over_refusal:.0%} at most"
    measure = {"violations": "the fewest violations", "preferred": "the most wins"}[sweep.objective] + bound
    if (name := sweeps.best_of_seeds(lines, sweep)) is not None:
        notes.append(f"best, by {measure}, as a mean over seeds: {name}")
    elif (winner := sweeps.best(lines, sweep)) is not None:
        notes.append(f"best, by {measure}: {winner.run.name}")
    elif any(line.run.state == "done" for line in lines):
        notes.append(f"no job can be called the best by {measure}")
    notes += _over_seeds(lines)
    # A name tells what a job differs in, unless letters were lost or a text would be too long for it.
    common = set.intersection(*(set(line.job.overrides) for line in lines))
    for line in lines:
        if not all("=" in word and sweeps.shortened(word).replace("'", "") in line.run.name for word in line.job.swept):
            own = [word for word in line.job.overrides if word not in common]
            notes.append(f"{line.run.name}: {' '.join(own) or 'as it is'}")
    return printable("\n".join([table(rows), *notes]))
