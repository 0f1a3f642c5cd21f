"""One of the processes that train a stage: `accelerate launch … -m constitutional.runs.distributed_child REQUEST PID`.

PID is of the process that started the launcher, with which this one ends.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import IO, Final, TypeVar

from pydantic import BaseModel

from constitutional.base.errors import ConstitutionalError, RunError
from constitutional.base.progress import Progress
from constitutional.base.records import Record
from constitutional.base.shards import Row
from constitutional.runs.compose import load
from constitutional.runs.context import CONSTITUTION, RunContext, RunStageContext
from constitutional.runs.distributed import ProcessEnd, TrainingRequest, leave_end
from constitutional.runs.folder import RunStore
from constitutional.runs.outputs import Begun
from constitutional.runs.pipeline import stages_of
from constitutional.training.tracking import NOT_TRACKED, Tracking

R = TypeVar("R", bound=Record)

WATCH_S: Final = 0.5
"""How often to look whether the command still runs."""
PATIENCE: Final = timedelta(hours=2)
"""How long the processes wait for each other, while the main one writes a large model for instance."""


class OtherContext(RunStageContext):
    """The stage's view of a run in a process that is not the main one: it writes and shows nothing."""

    def write(self, artifact: str, rows: Iterable[Row]) -> int:  # noqa: ARG002
        """Leave it to the main process; returns how many rows there are."""
        return sum(1 for _ in rows)

    def tracking(self, settings: BaseModel, part: str = "") -> Tracking:  # noqa: ARG002
        """No tracker."""
        return NOT_TRACKED


def main() -> None:
    """Train, and leave how it ended beside the request."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is told as well, and ends this process
    file, command = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with, args=(os.getppid(), command), daemon=True).start()
    rank = int(os.environ["RANK"])
    terminal = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the log
    try:
        request = TrainingRequest.model_validate_json(file.read_text(encoding="utf-8"))
        end = _train(request, rank, terminal)
    except ConstitutionalError as error:
        kept = tuple(arg if isinstance(arg, str | int | None) else str(arg) for arg in error.args)
        notes = tuple(getattr(error, "__notes__", ()))
        end = ProcessEnd(error=_public(type(error)), args=kept, notes=notes)
    except Exception as error:  # noqa: BLE001 - the command tells the user, whatever it is
        traceback.print_exc()
        end = ProcessEnd(error="lost" if _is_loss(error) else "defect", args=(traceback.format_exc(),))
    leave_end(file.parent, rank, end)
    sys.stderr.flush()
    # At once: what torch would do at the end may wait for processes that have ended.
    os._exit(1 if end.error else 0)


def _train(request: TrainingRequest, rank: int, terminal: IO[str]) -> ProcessEnd:
    import torch
    from accelerate import PartialState  # type: ignore[import-untyped]

    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    config = load(request.run_folder)
    stage = next(stage for stage in stages_of(config) if stage.name == request.stage)
    begun = Begun.now(stage.name, request.fingerprint, request.needs, request.files, request.folder)
    with Path(os.devnull).open("w") as nowhere:
        progress = Progress(terminal if rank == 0 else nowhere)
        with RunContext.joining(config, progress) as run_context:
            refuse_edited(run_context, request.needs)
            kind = RunStageContext if rank == 0 else OtherContext
            context = kind(run_context, RunStore.load(request.run_folder), begun)
            stage.run(stage.settings, context)
    if rank:
        return ProcessEnd(calls=context.calls)
    assert context.own_summary is not None, f"stage '{stage.name}' ended without a summary"
    return ProcessEnd(
        calls=context.calls,
        summary=context.own_summary.model_dump(mode="json"),
        warnings=tuple(context.warnings),
        written=context.written,
    )


def refuse_edited(run_context: RunContext, needs: Mapping[str, str]) -> None:
    """Refuse a constitution or template that is no longer what the command read when it began, maybe hours ago.

    This process reads the files again; what it made of an edit would be kept as made of the text before.

    Raises:
        RunError: says which file, and what to type.
    """
    config = run_context.config
    for need, digest in needs.items():
        if not (need in CONSTITUTION or need.endswith(".j2")) or run_context.digest(need) == digest:
            continue
        file = config.constitution.file if need in CONSTITUTION else (config.templates or Path()) / need
        raise RunError(
            f"{file}: was edited since the command began, and the processes would train on what it says now; type the "
            "command again, which makes anew what the edit changes, or put back what was there before"
        )


def _public(kind: type[BaseException]) -> str:
    """The name of the class in `base/errors.py` that an error is of."""
    return next(base.__name__ for base in kind.__mro__ if base.__module__ == ConstitutionalError.__module__)


def _is_loss(error: Exception) -> bool:
    """Whether an error says that another process is gone."""
    import torch

    words = ("gloo", "Connection closed", "Connection reset", "NCCL", "Broken pipe")
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _end_with(launcher: int, command: int) -> None:
    while os.getppid() == launcher and _runs(command):
        time.sleep(WATCH_S)
    os._exit(1)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    main()
