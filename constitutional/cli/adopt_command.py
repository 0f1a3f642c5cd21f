"""The command `adopt`: a policy that was trained elsewhere is evaluated and reported as a run's own would be."""

import argparse
from pathlib import Path
from typing import Any, Final

from constitutional.base.errors import RunError, UsageError
from constitutional.cli.run_command import run_one

_OWN: Final = ("name", "algorithm", "evaluate", "report")
"""Settings that may differ from those of the run that the policy comes from, beside those that change no result."""
_ABOUT = """Evaluate and report a policy that was trained elsewhere, from a run's SFT model (constitutional export RUN
--to verl, openrlhf or nemo-rl). Makes a run beside that one, which uses all its other stages again; what the policy
was trained on is not recorded, and the report and the model's card say so.

  constitutional adopt runs/first ppo_out                     # runs/first-adopted
  constitutional adopt runs/first ppo_out name=first-ppo
  constitutional adopt runs/first ppo_out evaluate.prompts=200 budget.max_calls=5000"""


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
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="the new run's name=NAME (default: RUN-adopted), and settings of evaluate, report, budget, launch …",
    )
    parser.set_defaults(run=_adopt)


def _adopt(arguments: argparse.Namespace) -> None:
    from constitutional.base.files import digest_of
    from constitutional.runs import former
    from constitutional.runs.compose import compose, freeze, load, validated
    from constitutional.runs.folder import RunStore
    from constitutional.runs.launch_settings import alone
    from constitutional.runs.status import outdated
    from constitutional.runs.sweeps import quoted
    from constitutional.stages import adopted

    store = RunStore.load(arguments.run_folder)
    folder = store.folder.resolve()
    names = [word.removeprefix("name=") for word in arguments.overrides if word.startswith("name=")]
    overrides = [word for word in arguments.overrides if not word.startswith("name=")]
    name = names[-1] if names else f"{folder.name}-adopted"
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
    config = compose([f"from={folder}", f"name={quoted(name)}", *overrides])
    changes: dict[str, Any] = {
        "algorithm": {
            "kind": "adopted",
            "folder": str(arguments.policy),
            "digest": digest_of(arguments.policy),
        }
    }
    if "reward_model" in store.artifacts():
        # Nothing is left to train, and this machine need not be one that could.
        changes["launch"] = alone(config.launch).model_dump(mode="json")
    config = freeze(validated(config.model_dump(mode="json") | changes))
    for row in former.deciding(load(store.folder), config):
        if row.key.partition(".")[0] not in _OWN:
            raise UsageError(
                f"{row.key}={row.after}: the run that the policy comes from was made with {row.before or 'none'}, and "
                "would be made anew; leave it out, or adopt the policy beside a run with this setting"
            )
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
