"""The command `constitutional`, and the only place that turns our errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, configuration or input, 130 interrupted. Nothing heavy is imported until a
command needs it, so that `--help` and a mistyped argument answer at once.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from constitutional import __version__
from constitutional.errors import ConstitutionalError, UsageError
from constitutional.principle_file import read_principles

if TYPE_CHECKING:
    from constitutional.sandbox.understand import Understanding

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
UNSURE_BELOW = 0.8
"""A meaning that the model gives less probability than this is pointed out, with the runner-up."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (by default the process's own) and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except ConstitutionalError as error:
        print(f"constitutional: {_one_line(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("constitutional: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="constitutional", description="Train a language model to behave as a written constitution says."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    sandbox = commands.add_parser("sandbox", help="the small test-bed that runs on a CPU")
    sandbox_commands = sandbox.add_subparsers(title="commands", required=True, metavar="COMMAND")
    understand = sandbox_commands.add_parser(
        "understand",
        help="ask the test-bed's model what principles mean",
        description="Say what the test-bed's model takes each principle to mean, and how sure it is.",
    )
    understand.add_argument("texts", nargs="*", metavar="TEXT", help="a principle, in your own words")
    understand.add_argument(
        "--file",
        type=Path,
        help="read principles from here: one a line, a JSON list (.json), or YAML with 'principles:' (.yaml)",
    )
    understand.add_argument("--json", action="store_true", help="print a JSON list instead of text")
    understand.set_defaults(run=_understand)
    return parser


def _understand(arguments: argparse.Namespace) -> None:
    texts: list[str] = arguments.texts
    if any(not text.strip() for text in texts):
        raise UsageError('a TEXT is empty; write a principle, such as "Don\'t butter people up."')
    if arguments.file is not None:
        texts = texts + read_principles(arguments.file)
    if not texts:
        raise UsageError("no principle to understand; give a TEXT, or a file of them with --file FILE")

    from constitutional.sandbox.understand import understand_texts

    understandings = understand_texts(texts)
    if arguments.json:
        print(json.dumps([_as_dict(understanding) for understanding in understandings], indent=2, ensure_ascii=False))
    else:
        print("\n\n".join(_described(understanding) for understanding in understandings))


def _described(understanding: "Understanding") -> str:
    meaning = f"{understanding.direction} {understanding.trait.replace('_', ' ')}"
    lines = [understanding.text, f"  means: {meaning} ({_percent(understanding.probability)})"]
    if understanding.unknown_words:
        lines.append(f"  warning: the model does not know: {', '.join(understanding.unknown_words)}")
    if understanding.probability < UNSURE_BELOW:
        runner_up = f"{understanding.runner_up.replace('_', ' ')} ({_percent(understanding.runner_up_probability)})"
        lines.append(f"  warning: the model is unsure; it may also mean: {runner_up}")
    return "\n".join(lines)


def _as_dict(understanding: "Understanding") -> dict[str, str | float | list[str]]:
    return {
        "text": understanding.text,
        "trait": understanding.trait,
        "direction": understanding.direction,
        "restated": understanding.restated,
        "probability": understanding.probability,
        "runner_up": understanding.runner_up,
        "runner_up_probability": understanding.runner_up_probability,
        "unknown_words": understanding.unknown_words,
    }


def _percent(probability: float) -> str:
    # Rounded down, so that 100% means certain and a meaning that is pointed out as unsure never reads as 80%. The small
    # number makes up for products such as 0.57 * 100 = 56.99999999999999.
    return f"{math.floor(probability * 100 + 1e-9)}%"


def _one_line(message: str) -> str:
    return " ".join(message.split())
