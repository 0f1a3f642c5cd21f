"""The command `plan`: what memory a run needs, stage by stage, and what to lower where it does not fit."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from constitutional.base.errors import WRONG_USE, ConfigurationError, complain
from constitutional.base.progress import Progress
from constitutional.base.text import table

if TYPE_CHECKING:
    from constitutional.runs.machine import Machine
    from constitutional.runs.plan import StagePlan

_ABOUT = """Say what memory a run with these words needs, stage by stage, at the moment when each needs most. It is
computed from the models' config.json alone: nothing is downloaded but that, and no model is loaded.

All rows are taken to be as long as the settings allow, and conversations with models that answer 2,048 tokens long with
their replies. Exits with 2 where a stage does not fit, and says what to lower.

  constitutional plan experiment=bai2022 model=llama3_8b mix=schema prompts.path=mine.txt --gpu h100"""


_SHORT: Final = {"other models": "other", "gradients": "grads", "optimizer": "optim", "activations": "activ"}
"""So that all columns fit into a terminal."""


_KEPT: Final = (
    "On Linux the C library keeps some of what is freed: a process has had up to 57% more. With "
    "MALLOC_MMAP_THRESHOLD_=262144 before the command it has not, and takes a fifth more time."
)

_HOST: Final = (
    "Beside the GPU, models take up to {} GiB of the computer's own memory ({}) while they are loaded or saved, with "
    "pages of their files. Python, its libraries, rows and vLLM come on top."
)


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    parser = commands.add_parser(
        "plan",
        help="the memory that each stage of a run needs, on this machine or on a GPU by its name",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="the words of `constitutional run`")
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="such as h100, a100, l40s or rtx4090, or its memory in GB; without it the GPU that is there, or the CPU",
    )
    parser.add_argument("--json", action="store_true", help="print JSON: all moments of all stages, in bytes")
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from constitutional.runs.machine import named_gpu, this_machine

    machine = named_gpu(arguments.gpu) if arguments.gpu else None  # a wrong name is told before anything is imported
    from constitutional.runs.compose import compose, freeze
    from constitutional.runs.plan import plan, refusals

    config = freeze(compose(arguments.overrides))
    machine = machine or this_machine()
    progress = Progress()
    with progress.task("plan", 0, "stages") as task:
        plans = plan(config, machine, lambda stage: task.update(task.done, stage))
    said = refusals(plans, machine)
    print(as_json(plans, machine) if arguments.json else as_table(plans, machine))
    for line in said:
        complain(ConfigurationError(line))
    return WRONG_USE if said else 0


def as_json(plans: "Sequence[StagePlan]", machine: "Machine") -> str:
    """Everything, in bytes."""
    rows = [
        {
            "stage": planned.stage,
            "model": planned.model,
            "note": planned.note,
            "fits": planned.fits(machine),
            "lower": list(planned.lower),
            "shards": list(planned.shards),
            "total": round(planned.peak.total),
            "peak": planned.peak.what,
            "host": round(planned.host),
            "moments": [
                {"what": moment.what, "total": round(moment.total), **_parts(moment.parts)}
                for moment in planned.moments
            ],
        }
        for planned in plans
    ]
    about = {
        "machine": machine.name,
        "gpu": machine.gpu,
        "memory": round(machine.memory),
        "usable": round(machine.usable),
        "framework": round(machine.framework),
    }
    fits = all(planned.fits(machine) for planned in plans)
    return json.dumps(about | {"fits": fits, "stages": rows}, indent=2)


def _parts(parts: Any) -> dict[str, int]:  # noqa: ANN401
    return {name: round(size) for name, size in parts.items() if size}


def as_table(plans: "Sequence[StagePlan]", machine: "Machine") -> str:
    """A line for each stage, in GiB, with what they are made of."""
    from constitutional.runs.machine import GIB
    from constitutional.runs.moments import PARTS

    def gib(size: float) -> str:
        return f"{size / GIB:.1f}" if size else ""

    shown = [part for part in PARTS if any(planned.peak.parts.get(part) for planned in plans)]
    rows = [("stage", *(_SHORT.get(part, part) for part in shown), "all", "fits")]
    for planned in plans:
        parts = (gib(planned.peak.parts.get(part, 0.0)) for part in shown)
        verdict = "yes" if planned.fits(machine) else "no"
        rows.append((planned.stage, *parts, gib(planned.peak.total), verdict))
    kept = f"{gib(machine.memory)} GiB, of which {gib(machine.framework)} are the libraries' own and 5% are left free"
    head = f"{machine.name}: {gib(machine.usable)} GiB for models ({kept})"
    notes = [(planned.stage, f"{planned.peak.what}: {planned.note}, {planned.model}") for planned in plans]
    most = max(plans, key=lambda planned: planned.host, default=None)
    more = ["", _HOST.format(gib(most.host), most.stage)] if most and most.host else []
    more += [] if machine.gpu else ["", _KEPT]
    return "\n".join([head, "", table(rows, numbers_from=1), "", "the worst moment of each:", table(notes), *more])
