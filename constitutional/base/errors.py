"""The errors that a user can do something about: a base class and seven kinds.

Any module raises them, with a message that says what was found, where, what was expected, and what to do next. Only the
command catches them: it prints one line and exits with the class's `exit_code`. A library user sees the exception. The
loop that runs the stages writes the message into the run's manifest and raises the error again.

Any other exception (AssertionError, KeyError, ...) is a defect of ours and keeps its traceback. A function that cannot
take a number raises ValueError, as everywhere in Python.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from constitutional.base.text import printable

T = TypeVar("T")

FAILED = 1
WRONG_USE = 2
WAITING = 3
"""Exit codes. 0 is done; 3 is waiting for people: nothing is wrong, and the same command goes on."""


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
        name = str(self.args[0])  # a name on the hub is no path
        place = name if self.line is None else f"{name}:{self.line}"
        return f"{place}: {self.problem}"


class RunError(ConstitutionalError):
    """A run cannot start or go on: its folder is in use or holds something else, a stage failed."""


class ModelError(ConstitutionalError):
    """A model or the engine that serves it cannot be loaded, cannot be reached or does not do what it must."""


class BudgetError(ConstitutionalError):
    """A run has spent what it may; the same command with a higher budget goes on."""

    exit_code = WAITING


class WaitingError(ConstitutionalError):
    """A run waits for people; nothing is wrong, and it says how to go on."""

    exit_code = WAITING


def complain(error: ConstitutionalError) -> None:
    """Print a line for the error, and one for each of its notes: further mistakes of the same kind."""
    for message in (str(error), *getattr(error, "__notes__", ())):
        print(f"constitutional: {printable(' '.join(message.split()))}", file=sys.stderr)


def expect(value: object, kind: type | tuple[type, ...], function: str, wanted: str) -> None:
    """Refuse an argument of another type than a function of the library takes; a text is no list of what it holds.

    Raises:
        UsageError: says the function, what it takes, and what it was called with.
    """
    if not isinstance(value, kind) or (isinstance(value, str) and kind in (Sequence, Iterable)):
        raise UsageError(f"{function}() takes {wanted}; it was called with a {type(value).__name__}: {value!r:.60}")


def expect_all(values: Iterable[T], kind: type[T], function: str) -> Iterator[T]:
    """The values, as they are asked for, if all are of the kind that a function of the library takes.

    Raises:
        UsageError: as `expect`.
    """
    wanted = f"a list of {kind.__name__}"
    expect(values, Iterable, function, wanted)
    for value in values:
        expect(value, kind, function, wanted)
        yield value
