"""The errors that a user can do something about: a base class and five kinds.

Who raises: any module, with a message that says what was found, where, what was expected, and what to do next.
Who classifies: the class does, by its `exit_code`; nobody reads the message to decide anything.
Who catches: only the command, which prints one line and exits with that code. A library user sees the exception itself.
Who records: what runs a stage, which writes the message into the run's manifest and lets the error travel on.

Anything else that is raised (AssertionError, KeyError, ...) is a defect of ours and keeps its traceback. Numbers that a
function cannot take are a ValueError, as everywhere in Python.
"""

import sys
from pathlib import Path
from typing import ClassVar

FAILED = 1
WRONG_USE = 2
"""Exit codes. 0 is done; 3, waiting for people, is an outcome and no error."""


class ConstitutionalError(Exception):
    """Anything that went wrong in a way that its message lets the user put right."""

    exit_code: ClassVar[int] = FAILED


class UsageError(ConstitutionalError):
    """A command or a call asks for what does not exist, contradicts itself or leaves something out."""

    exit_code = WRONG_USE


class ConfigurationError(ConstitutionalError):
    """Settings, or the installation, do not allow what is asked: a wrong value, a folder that is not there."""

    exit_code = WRONG_USE


class InputError(ConstitutionalError):
    """A file that a person wrote is not as it should be. Reads `file:line: problem`, which editors can jump to."""

    exit_code = WRONG_USE

    def __init__(self, path: Path | str, problem: str, line: int | None = None) -> None:
        # All three go to the base class, because an exception that crosses to another process is rebuilt from its args.
        super().__init__(path, problem, line)
        self.path = Path(path)
        self.problem = problem
        self.line = line
        """Counted from 1; None if the problem is the file as a whole."""

    def __str__(self) -> str:
        """`file:line: problem`, or `file: problem`."""
        place = str(self.path) if self.line is None else f"{self.path}:{self.line}"
        return f"{place}: {self.problem}"


class RunError(ConstitutionalError):
    """A run cannot start or go on: its folder is in use or holds something else, a stage failed."""


class ModelError(ConstitutionalError):
    """A model or the engine that serves it cannot be loaded, cannot be reached or does not do what it must."""


def complain(error: ConstitutionalError) -> None:
    """Print a line for the error, and one for each of its notes: further mistakes of the same kind."""
    for message in (str(error), *getattr(error, "__notes__", ())):
        print(f"constitutional: {' '.join(message.split())}", file=sys.stderr)
