"""Functions that users write in Python: found by "file.py:function" or "package.module:function", called, checked.

Whatever is wrong with one is said with the place in the user's file, and not as a traceback through this project.
"""

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from constitutional.base.errors import ConfigurationError, InputError


def resolved(target: str) -> str:
    """The target as it is found from every folder: with the absolute path of a file.

    Raises:
        ValueError: it is none; the message goes on from the setting's name.
    """
    place, _, name = target.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f'is "{target}", but should be "file.py:function" or "package.module:function"')
    return f"{Path(place).expanduser().resolve()}:{name}" if place.endswith(".py") else target


def source_of(target: str) -> Path | None:
    """The file that a resolved target's function is in; None where its module is none, or cannot be found."""
    place = target.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place)
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found and found.has_location and found.origin else None


class UserFunction:
    """A user's reward function, whose answers are checked."""

    def __init__(self, function: Any, name: str, source: Path) -> None:  # noqa: ANN401 - whatever a user wrote
        self.function = function
        self.name = name
        self.source = source

    def __call__(self, **given: Any) -> list[float | None]:  # noqa: ANN401 - TRL's and the dataset's columns
        """The function's number for each of the `completions`; None where it has none.

        Raises:
            InputError: it fails, or gives something else.
        """
        try:
            answer = self.function(**given)
        except Exception as error:  # noqa: BLE001 - whatever a user's function may raise
            self._failed(error)
        expected = len(given["completions"])
        if isinstance(answer, str) or not isinstance(answer, Sequence):
            raise self._wrong(f"returned {answer!r:.60}, and should return a list with a number for each completion")
        if len(answer) != expected:
            raise self._wrong(f"returned {len(answer)} rewards for {expected} completions; return one for each")
        return [self._number(each) for each in answer]

    def check_signature(self) -> None:
        """Find out before a model is loaded whether it can be called as TRL calls reward functions.

        Raises:
            InputError: it cannot.
        """
        try:
            ours: dict[str, list[Any]] = {
                "prompts": [],
                "completions": [],
                "completion_ids": [],
                "prompt_id": [],
                "any_other": [],
            }
            inspect.signature(self.function).bind(**ours, trainer_state=None)
        except TypeError as error:
            called = "is called with prompts=…, completions=…, completion_ids=… and more by name"
            write = f"write def {self.name}(prompts, completions, **others), which returns a number for each completion"
            raise self._wrong(f"{called}, which it does not take ({error}); {write}") from error
        except ValueError:
            return  # of some that are written in C nobody knows

    def _number(self, reward: object) -> float | None:
        if reward is None:
            return None
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise self._wrong(f"returned {reward!r:.60} as a reward; return a finite number, or None for no reward")
        return float(reward)

    def _wrong(self, problem: str) -> InputError:
        line = getattr(getattr(self.function, "__code__", None), "co_firstlineno", None)
        return InputError(self.source, f"the reward function '{self.name}' {problem}", line)

    def _failed(self, error: Exception) -> NoReturn:
        problem = f"the reward function '{self.name}' failed: {type(error).__name__}: {error}"
        raise InputError(self.source, problem, _line_in(self.source, error)) from error


def load_function(target: str) -> UserFunction:
    """The function that a resolved target names.

    Raises:
        InputError: the file is not there or cannot be imported, or holds no such function.
        ConfigurationError: there is no such module.
    """
    place, _, name = target.rpartition(":")
    module = _file_module(Path(place)) if place.endswith(".py") else _module(place)
    source = Path(module.__file__ or place)
    function = getattr(module, name, None)
    if not callable(function):
        own = [each for each, it in vars(module).items() if getattr(it, "__module__", None) == module.__name__]
        there = [each for each in own if callable(getattr(module, each)) and not each.startswith("_")]
        has = f"it has {', '.join(there)}" if there else "it has none"
        raise InputError(source, f"has no function '{name}'; {has}")
    found = UserFunction(function, name, source)
    found.check_signature()
    return found


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise InputError(path, "there is no such file; name the Python file that holds the reward function")
    name = f"constitutional_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(path, f"cannot be imported: {_said(error)}", _line_in(path, error)) from error
    return module


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"algorithm.rewards: there is no module '{error.name}' to take a reward function from; install it, or "
                'name a file, as "rewards.py:function"'
            ) from error
        raise ConfigurationError(
            f"algorithm.rewards: the module '{name}' cannot be imported: {_said(error)}"
        ) from error
    except Exception as error:
        source = source_of(f"{name}:f")
        raise InputError(
            source or Path(name), f"cannot be imported: {_said(error)}", _line_in(source, error) if source else None
        ) from error


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"


def _line_in(path: Path, error: Exception) -> int | None:
    """The last line of a file that an error came through."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename) == path:
        return error.lineno
    lines = [each.lineno for each in traceback.extract_tb(error.__traceback__) if Path(each.filename) == path]
    return lines[-1] if lines else None
