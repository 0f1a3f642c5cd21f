"""Functions that users write in Python: found by "file.py:function" or "package.module:function".

A file or a function that is not there is one line. An exception of the user's own code travels with its traceback.
"""

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from constitutional.base.errors import InputError
from constitutional.base.files import at_home

_HELPERS: set[str] = set()
"""Names of the modules that users' files imported from their own folders."""
_FOLDERS: list[str] = []
"""The folders of users' files in `sys.path`, the latest file's first."""
EXPECTED = '"file.py:function" or "package.module:function"'


def resolved(target: str) -> str:
    """The target as it is found from every folder: with the absolute path of a file.

    Raises:
        ValueError: it has another form; the message goes on from the setting's name.
    """
    place, _, name = target.rpartition(":")
    module = place.endswith(".py") or all(part.isidentifier() for part in place.split("."))
    if not module or not name.isidentifier():
        raise ValueError(f'is "{target}", but should be {EXPECTED}')
    return f"{at_home(place).resolve()}:{name}" if place.endswith(".py") else target


class UserFunction:
    """A function that a user wrote."""

    def __init__(self, function: Any, name: str, sources: Sequence[Path]) -> None:  # noqa: ANN401 - whatever a user wrote
        self.function = function
        self.name = name
        self.sources = tuple(sources)
        """The files that decide what it does: its own, then the user's modules that this one imports."""

    def wrong(self, problem: str) -> InputError:
        """An error that says where the function stands; `problem` begins with what the function is for."""
        line = getattr(getattr(self.function, "__code__", None), "co_firstlineno", None)
        return InputError(self.sources[0], problem, line)


def load_function(target: str) -> UserFunction:
    """The function that a resolved target names.

    Raises:
        InputError: there is no such file, module or function.
        Exception: whatever the user's own code raises when it is imported.
    """
    place, _, name = target.rpartition(":")
    try:
        module, helpers = _file_module(Path(place)) if place.endswith(".py") else _module(place)
    except ModuleNotFoundError as error:
        if place.endswith(".py") or not (error.name and f"{place}.".startswith(f"{error.name}.")):
            raise  # something that the user's code imports
        raise InputError(place, f"there is no module '{error.name}'; install it, or type {EXPECTED}") from error
    function = getattr(module, name, None)
    source = Path(getattr(module, "__file__", None) or place)
    if not callable(function):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        public = [key for key in own if callable(getattr(module, key)) and not key.startswith("_")]
        raise InputError(source, f"has no function '{name}'; it has {', '.join(public) or 'none'}")
    return UserFunction(function, name, [source, *sorted(_files(helpers) - {source})])


def _files(modules: Iterable[str]) -> set[Path]:
    files = [getattr(sys.modules[name], "__file__", None) for name in modules]
    return {Path(file) for file in files if file and "site-packages" not in Path(file).parts}


def _module(name: str) -> tuple[ModuleType, Iterable[str]]:
    """A module, and the names of all modules of its package that are loaded."""
    module = importlib.import_module(name)
    package = name.partition(".")[0]
    return module, [other for other in sys.modules if f"{other}.".startswith(f"{package}.")]


def _search_first(folder: str) -> None:
    """Let helpers in a folder be found before those of other users' files, but behind all installed packages."""
    if folder in sys.path and folder not in _FOLDERS:
        return
    for known in _FOLDERS:
        if known in sys.path:
            sys.path.remove(known)
    _FOLDERS[:] = [folder, *(known for known in _FOLDERS if known != folder)]
    sys.path.extend(_FOLDERS)


def _file_module(path: Path) -> tuple[ModuleType, Iterable[str]]:
    """The module in a file, and the names of the modules beside the file that it imports, all as they are on disk."""
    if not path.is_file():
        raise InputError(path, "there is no such file; name the Python file that holds the function")
    for name in _HELPERS:
        sys.modules.pop(name, None)  # it may have been edited since
    before = set(sys.modules)
    name = f"constitutional_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up there
    _search_first(str(path.parent))
    importlib.invalidate_caches()
    spec.loader.exec_module(module)
    loaded = {other: getattr(sys.modules[other], "__file__", None) for other in set(sys.modules) - before - {name}}
    helpers = [other for other, file in loaded.items() if file and path.parent in Path(file).parents]
    _HELPERS.update(helpers)
    return module, helpers
