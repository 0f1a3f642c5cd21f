"""Measure how well a model plays its parts in the sandbox: the numbers of the model card.

    python scripts/eval_sandbox.py --json scores.json
    python scripts/eval_sandbox.py --principles mine.json        reading, verdicts and labels on your own, as in a run
    python scripts/eval_sandbox.py --model runs/first/08_dpo/policy

Exits 1 if a measure falls short of what is wanted of the shipped model.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

from constitutional.base.errors import ConfigurationError, ConstitutionalError, InputError, UsageError
from constitutional.base.templates import load_prompts
from constitutional.engines.model_files import model_folder
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.teacher import FAMILIES
from constitutional.sandbox.understand import shipped_engine
from constitutional.sandbox.world import TRAITS
from scripts.sandbox_training.evaluate import Evaluation, Wording, as_wording, table

KEYS = ("trait", "direction", "text")
EXPECTED = f'expected {{"trait": …, "direction": …, "text": …}} with one of these traits: {", ".join(TRAITS)}'
EPILOG = """\
FILE of --principles is a JSON list of principles whose meaning you know:

    [
      {"trait": "flattery", "direction": "avoid", "text": "Don't butter people up."},
      {"trait": "verbosity", "direction": "seek", "text": "Leave nothing out."}
    ]

The traits, and what a principle may do with each:

""" + "\n".join(f"    {trait:23}{' or '.join(does for each, does in FAMILIES if each == trait)}" for trait in TRAITS)


def read_wordings(path: Path) -> list[Wording]:
    """Principles of known meaning from a JSON list of `{trait, direction, text}`.

    Raises:
        InputError: the file, or an entry in it, is something else.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(path, "is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise InputError(path, f"is not JSON: {error.msg}", error.lineno) from error
    if not isinstance(entries, list) or not entries:
        raise InputError(path, f"must be a JSON list of principles; of each {EXPECTED}")
    made = []
    for number, entry in enumerate(entries, 1):
        try:
            made.append(_wording(entry))
        except ValueError as error:
            raise InputError(path, f"entry {number}: {error}") from error
    return made


def _wording(entry: object) -> Wording:
    if not isinstance(entry, dict):
        raise ValueError(f"is {json.dumps(entry, ensure_ascii=False)[:40]}; {EXPECTED}")
    if missing := [key for key in KEYS if key not in entry]:
        raise ValueError(f"has no {' and no '.join(missing)}; {EXPECTED}")
    if unknown := [key for key in entry if key not in KEYS]:
        raise ValueError(f"has {', '.join(unknown)}, which means nothing here; {EXPECTED}")
    if unusable := [key for key in KEYS if not isinstance(entry[key], str) or not entry[key].strip()]:
        raise ValueError(f"{unusable[0]} must be a text that is not empty; {EXPECTED}")
    return as_wording(**entry)


def _check_model(folder: Path) -> Path:
    # A name on the hub has no place here: nothing but a run, or the build, makes a model that plays these parts.
    if not folder.is_dir():
        raise ConfigurationError(
            f"--model {folder}: there is no such folder; name one that holds a model, such as runs/first/08_dpo/policy"
        )
    return model_folder(str(folder))


def _check_writable(path: Path) -> None:
    """Make the folder and try the file, so that minutes of measuring are not lost at their end."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UsageError(f"--json {path}: cannot be written: {error.strerror}; name another file") from error


def _scale(text: str) -> float:
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not (math.isfinite(scale) and scale > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is no number above 0")
    return scale


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=MODEL_FOLDER, help="the model's folder (default: the shipped one)"
    )
    parser.add_argument(
        "--principles", type=Path, metavar="FILE", help="measure verdicts, understanding and labels on these alone"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the measures here")
    parser.add_argument("--scale", type=_scale, default=1.0, help="0.1 asks a tenth as much")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """Run the command."""
    arguments = _arguments()
    started = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {line}", file=sys.stderr, flush=True)

    try:
        if arguments.json:
            _check_writable(arguments.json)
        wordings = read_wordings(arguments.principles) if arguments.principles else []
        evaluation = Evaluation(
            shipped_engine(_check_model(arguments.model)),
            load_prompts(),
            scale=arguments.scale,
            seed=arguments.seed,
            progress=progress,
        )
        own = arguments.principles
        measures = evaluation.as_in_a_run(own.name, wordings) if own else evaluation.everything()
    except ConstitutionalError as error:
        print(f"eval_sandbox: {error}", file=sys.stderr)
        return error.exit_code
    print(table(measures))
    if arguments.json:
        arguments.json.write_text(
            json.dumps([measure.as_dict() for measure in measures], indent=1) + "\n", encoding="utf-8"
        )
    return 0 if all(measure.reached for measure in measures) else 1


if __name__ == "__main__":
    sys.exit(main())
