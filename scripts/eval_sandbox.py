"""Measure how well a model plays its parts in the sandbox: the numbers of the model card.

    python scripts/eval_sandbox.py --json scores.json
    python scripts/eval_sandbox.py --principles mine.json        a JSON list of {"trait", "direction", "text"}
    python scripts/eval_sandbox.py --model runs/first/10_dpo/policy

Exits 1 if a measure falls short of what is wanted of the shipped model.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from constitutional.errors import ConstitutionalError, InputError
from constitutional.prompts import load_prompts
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.evaluate import Evaluation, Measure, Wording, as_wording, table
from constitutional.sandbox.understand import shipped_engine


def read_wordings(path: Path) -> list[Wording]:
    """Principles of known meaning from a JSON list of `{trait, direction, text}`."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(path, "is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise InputError(path, f"is not JSON: {error.msg}", error.lineno) from error
    if not isinstance(entries, list) or not entries:
        raise InputError(path, 'must be a list of {"trait", "direction", "text"}')
    made = []
    for index, entry in enumerate(entries):
        try:
            made.append(as_wording(**entry))
        except (TypeError, ValueError) as error:
            raise InputError(path, f"entry {index + 1}: {error}") from error
    return made


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=MODEL_FOLDER, help="the model's folder (default: the shipped one)"
    )
    parser.add_argument("--principles", type=Path, help="measure verdicts, understanding and labels on these alone")
    parser.add_argument("--json", type=Path, help="write the measures here")
    parser.add_argument("--scale", type=float, default=1.0, help="0.1 asks a tenth as much")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {line}", file=sys.stderr, flush=True)

    try:
        wordings = read_wordings(arguments.principles) if arguments.principles else []
        evaluation = Evaluation(
            shipped_engine(arguments.model),
            load_prompts(),
            scale=arguments.scale,
            seed=arguments.seed,
            progress=progress,
        )
        measures: list[Measure]
        if wordings:
            measures = evaluation.on_principles(arguments.principles.name, wordings, (0.90, 0.88, 0.87))
        else:
            measures = evaluation.everything()
    except ConstitutionalError as error:
        print(f"eval_sandbox: {error}", file=sys.stderr)
        return error.exit_code
    print(table(measures))
    if arguments.json:
        arguments.json.write_text(json.dumps([each.as_dict() for each in measures], indent=1) + "\n", encoding="utf-8")
    return 0 if all(each.reached for each in measures) else 1


if __name__ == "__main__":
    sys.exit(main())
