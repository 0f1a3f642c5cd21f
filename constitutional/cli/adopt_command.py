"""The command `adopt`: a policy that was trained elsewhere is evaluated and reported as a run's own would be."""

import argparse
from pathlib import Path
from typing import Any

from constitutional.base.errors import RunError, UsageError
from constitutional.cli.run_command import run_one

_ABOUT = """Evaluate and report a policy that was trained elsewhere, from a run's SFT model (constitutional export RUN
--to verl, openrlhf or nemo-rl). Makes a run beside that one, which uses all its other stages again; what the policy
was trained on is not recorded, and the report and the model's card say so.

  constitutional adopt runs/first ppo_out                     # runs/first-adopted
  constitutional adopt runs/first ppo_out name=first-ppo"""


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    parser = commands.add_parser(
        "adopt",
        help="evaluate and report a policy that was trained elsewhere, beside the run that it comes from",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="such as runs/first")
    parser.add_argument("policy", type=Path, metavar="FOLDER", help="the policy, as transformers saves it")
    parser.add_argument("name", nargs="?", metavar="name=NAME", help="of the new run (default: RUN-adopted)")
    parser.set_defaults(run=_adopt)


def _adopt(arguments: argparse.Namespace) -> None:
    from constitutional.runs.compose import freeze, load, validated
    from constitutional.runs.folder import RunStore
    from constitutional.runs.status import outdated
    from constitutional.stages import adopted

    store = RunStore.load(arguments.run_folder)
    folder = store.folder.resolve()
    key, equals, name = (arguments.name or f"name={folder.name}-adopted").partition("=")
    if (key, equals) != ("name", "=") or not name:
        raise UsageError(f"{arguments.name}: adopt takes the name of the new run alone; type name=NAME")
    if name == folder.name:
        raise UsageError(
            f"name={name} is the run itself, whose policy stays; type another, such as name={name}-adopted"
        )
    if "sft_model" not in store.artifacts():
        last = f"its last stage that is done is '{list(store.stages)[-1]}'" if store.stages else "no stage is done"
        raise RunError(
            f"{store.folder}: has no SFT model that the policy could come from: {last}; name the run that was exported"
        )
    if old := outdated(store):  # what changed would be made anew, with another SFT model than the policy began with
        raise RunError(f"{old}; then export it, and train on that, or put back what was there")
    adopted.check(arguments.policy, store.artifact("sft_model"))
    algorithm = {"kind": "adopted", "folder": str(arguments.policy)}
    changes = {"name": name, "folder": str(folder.parent), "until": None, "algorithm": algorithm}
    config = freeze(validated(load(store.folder).model_dump(mode="json") | changes))
    _check_free(config.run_folder)
    run_one(config)


def _check_free(folder: Path) -> None:
    """Refuse the name of a run that has a policy of its own.

    Raises:
        UsageError: there is one.
    """
    from constitutional.runs.compose import load

    if not (folder / "config.json").exists():
        return
    if load(folder).algorithm.kind != "adopted":
        raise UsageError(f"{folder}: is a run with a policy of its own; type another name=NAME")
