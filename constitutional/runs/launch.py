"""Runs a sweep's jobs by one of Hydra's launchers: several processes on this machine (joblib), or Slurm (submitit).

Each job is a process of its own, so that one that is killed takes no other with it, and a log of its own holds what it
prints. The launcher's worker waits for the job, writes the exit code beside the log, and stops the job once a file
`stop` lies there. Files reach the workers on other machines, too.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import ConstitutionalError, RunError
from constitutional.base.files import atomic_write, writing
from constitutional.base.progress import Progress, Task
from constitutional.runs.compose import dump, hydra_config, hydra_ready
from constitutional.runs.folder import RunStore
from constitutional.runs.pipeline import outline, up_to
from constitutional.runs.settings import JournalSettings, RunConfig
from constitutional.runs.sweeps import quoted

if TYPE_CHECKING:
    from hydra.plugins.launcher import Launcher

POLL_S: Final = 0.5
"""How often to look how far the jobs are, and whether they should stop."""
STOP: Final = "stop"
HERE: Final = ("hydra/launcher=joblib", "hydra/launcher=submitit_local")
"""Launchers whose jobs are all on this machine."""
Ended = Callable[[int, int | None, Path], None]
"""Told of a job that has ended: its number, its exit code (None where the launcher lost it) and its log."""


def check_launcher(overrides: Sequence[str]) -> None:
    """Refuse a launcher that is not installed, or a setting that it does not have.

    Args:
        overrides: choose the launcher and its settings, such as `hydra/launcher=joblib hydra.launcher.n_jobs=2`.

    Raises:
        UsageError: says what to install or to type.
    """
    with hydra_ready():
        hydra_config(overrides)


def launch(
    overrides: Sequence[str], folder: Path, configs: Sequence[RunConfig], ended: Ended, progress: Progress
) -> None:
    """Run the jobs by a launcher, and show how far each is.

    Args:
        overrides: choose the launcher and its settings.
        folder: where the logs go.
        configs: the jobs, frozen.
        ended: told of each job that ends.
        progress: shows the jobs.

    Raises:
        RunError: the launcher failed. Jobs that ended before have been told of.
        KeyboardInterrupt: the user stopped the sweep, and the jobs have stopped.
    """
    if not set(overrides) & set(HERE):
        configs = [own_journal(config) for config in configs]
        progress.say(f"each job keeps its answers in a journal of its own, such as {configs[0].journal_file}")
    _clear(folder, configs)
    places = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=.", f"hydra.job.name={quoted(folder.name)}"]
    watcher = _Watcher(folder, configs, ended, progress)
    task = partial(_work, folder, [config.name for config in configs], Path.cwd())
    with watcher, _stopping(folder, progress) as stopped, hydra_ready():
        try:
            launcher = _launcher(hydra_config([*overrides, *places]), task)
            launcher.launch([[f"+job={number}"] for number in range(len(configs))], initial_job_idx=0)
        except Exception as error:  # whatever a launcher may fail with
            raise RunError(f"{overrides[0]}: the launcher failed: {' '.join(str(error).split())}") from error
    if stopped():
        raise KeyboardInterrupt


def own_journal(config: RunConfig) -> RunConfig:
    """A job with a journal for it alone, beside the one that it would share: a journal is for one machine at a time."""
    shared = config.journal_file
    path = shared.with_name(f"{shared.stem}-{config.name}{shared.suffix}")
    return config.model_copy(update={"journal": JournalSettings(path=path)})


def _launcher(config: Any, task: Any) -> "Launcher":  # noqa: ANN401 - OmegaConf's DictConfig, a partial function
    from hydra._internal.callbacks import Callbacks
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext

    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
    return Plugins.instance().instantiate_launcher(context, task, config)


def _clear(folder: Path, configs: Sequence[RunConfig]) -> None:
    """Write each job's configuration, and remove what an earlier start left of its log."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for config in configs:
        atomic_write(folder / f"{config.name}.json", dump(config, {}).encode())
        for ending in ("log", "exit"):
            with writing(folder):
                (folder / f"{config.name}.{ending}").unlink(missing_ok=True)
    (folder / STOP).unlink(missing_ok=True)


def _work(folder: Path, names: Sequence[str], cwd: Path, config: Mapping[str, int]) -> int:
    """In the launcher's worker: run one job, whose number Hydra's configuration holds; returns the exit code."""
    name, parent = names[config["job"]], os.getppid()
    if (folder / STOP).exists():
        return 130
    # Ctrl-C in a terminal reaches this process as well, and the job should be stopped once, in order.
    signal.signal(signal.SIGINT, lambda *_: None)
    command = [sys.executable, "-m", "constitutional", "job", str(folder / f"{name}.json")]
    with (folder / f"{name}.log").open("wb") as log:
        job = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        told = False
        while (exit_code := _waited(job)) is None:
            if not told and ((folder / STOP).exists() or os.getppid() != parent):
                job.send_signal(signal.SIGINT)
                told = True
    atomic_write(folder / f"{name}.exit", str(exit_code).encode())
    return exit_code


def _waited(job: "subprocess.Popen[bytes]") -> int | None:
    with suppress(subprocess.TimeoutExpired):
        return job.wait(POLL_S)
    return None


@contextmanager
def _stopping(folder: Path, progress: Progress) -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C, or SIGTERM, tell the workers to stop their jobs; the second one leaves at once."""
    before, count = {}, 0

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt
        (folder / STOP).touch()
        progress.say("stopping the jobs; Ctrl-C again leaves without waiting for them")

    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: count > 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Watcher:
    """A thread that shows how far the jobs are, from the files that they write."""

    def __init__(self, folder: Path, configs: Sequence[RunConfig], ended: Ended, progress: Progress) -> None:
        self._folder, self._ended, self._progress = folder, ended, progress
        self._waiting = dict(enumerate(configs))
        self._tasks: dict[int, Task] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        for task in self._tasks.values():
            task.end()
        for number, config in self._waiting.items():
            if (log := self._file(config, "log")).exists():
                self._ended(number, None, log)

    def _watch(self) -> None:
        total = len(self._waiting)
        with self._progress.task(f"sweep {self._folder.name}", total, "jobs") as task:
            while not self._over.wait(POLL_S):
                self._look()
                task.update(total - len(self._waiting))

    def _look(self) -> None:
        for number, config in list(self._waiting.items()):
            log = self._file(config, "log")
            if (file := self._file(config, "exit")).exists():
                if number in self._tasks:
                    self._tasks.pop(number).end()
                del self._waiting[number]
                self._ended(number, int(file.read_text()), log)
            elif log.exists():
                self._show(number, config)

    def _show(self, number: int, config: RunConfig) -> None:
        stages = [stage.name for stage in up_to(config.until, outline(config))]
        if number not in self._tasks:
            self._tasks[number] = self._progress.task(config.name, len(stages), "stages")
        with suppress(ConstitutionalError):  # it has only just begun
            store = RunStore.load(config.run_folder)
            done = [name for name in stages if name in store.stages]
            running = next((name for name in stages if name not in done), "")
            self._tasks[number].update(len(done), running)

    def _file(self, config: RunConfig, ending: str) -> Path:
        return self._folder / f"{config.name}.{ending}"
