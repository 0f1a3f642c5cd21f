"""The prompts that a model is asked: Jinja2 templates, one file each, the user's folder before ours.

A template sees exactly the variables that `VARIABLES` declares for it. A misspelt variable is found when the templates
are loaded, with its file and line, and not in the middle of a run. What a variable holds is only ever text: `{{ }}`
written by a model or in a principle is not looked at. Apart from what Jinja replaces and the file's last newline, the
model sees exactly the file, so a space or an empty line in a template counts.

A user's template may build on the shipped one of the same name: `{% extends "shipped/critique.j2" %}`. It may include
other files of either folder.
"""

import hashlib
import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from jinja2 import (
    BaseLoader,
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    FunctionLoader,
    PrefixLoader,
    StrictUndefined,
    TemplateNotFound,
    TemplateSyntaxError,
    meta,
    nodes,
)
from jinja2.sandbox import ImmutableSandboxedEnvironment

from constitutional.base.errors import ConfigurationError, InputError, UsageError
from constitutional.base.shipped import shipped

Value = str | Sequence[Mapping[str, str]]
"""What a variable may hold: text, or a conversation, whose messages have a `role` and a `content`."""

VARIABLES: Final[Mapping[str, frozenset[str]]] = {
    "critique": frozenset({"principle"}),
    "revise": frozenset({"principle"}),
    "revise_directly": frozenset({"principle"}),
    "label": frozenset({"conversation", "a", "b", "principle"}),
    "score": frozenset({"principle"}),
    "restate": frozenset({"principle"}),
}
"""The templates, and what each of them is given. `label` gets a conversation; everything else is text."""

OPTIONAL: Final[Mapping[str, Mapping[str, Value]]] = {"revise": {"principle": ""}}
"""What is given where the caller says nothing.

`revise` follows a critique, which has said the principle before; only words of its own for revision are said again.
"""


def load_prompts(folder: Path | None = None) -> "Prompts":
    """Read and check every template, each from `folder` if it is there and otherwise from ours."""
    ours = shipped("prompts")
    if folder is not None and not folder.is_dir():
        raise ConfigurationError(f"{folder}: there is no such folder of prompt templates")
    return Prompts([ours] if folder is None else [folder, ours], shipped_folder=ours)


class Prompts:
    """The templates, read once: what is rendered is what `digest` covers, whatever happens to the files meanwhile."""

    def __init__(self, folders: Sequence[Path], *, shipped_folder: Path) -> None:
        loaders: list[BaseLoader] = [PrefixLoader({"shipped": _Folder(shipped_folder)})]
        loaders += [_Folder(folder) for folder in folders]
        library = _Library(_environment(ChoiceLoader(loaders)), folders)
        self._parts = {name: library.closure(name) for name in VARIABLES}
        self._paths = {part: library.files[part].path for parts in self._parts.values() for part in parts}

        def read_again(part: str) -> tuple[str, str, None]:
            return library.files[part].text, str(library.files[part].path), None

        environment = _environment(FunctionLoader(read_again))
        self._templates = {}
        for name in VARIABLES:
            for part in self._parts[name]:
                # Some mistakes, such as two blocks of one name, show only when Jinja compiles.
                try:
                    environment.get_template(part)
                except TemplateSyntaxError as error:
                    raise InputError(self._paths[part], error.message or "syntax error", error.lineno) from error
            self._templates[name] = environment.get_template(_file_name(name))

    def render(self, name: str, /, **values: Value) -> str:
        """The prompt: the template of that name with these values, exactly those declared but for the optional ones."""
        self._check_name(name)
        values = {**OPTIONAL.get(name, {}), **values}
        path = self._paths[_file_name(name)]
        if missing := sorted(VARIABLES[name] - values.keys()):
            raise UsageError(f"{path}: rendered without a value for {_listed(missing)}")
        if unknown := sorted(values.keys() - VARIABLES[name]):
            raise UsageError(f"{path}: given a value for {_listed(unknown)}, but {_takes(name)}")
        try:
            return self._templates[name].render(values)
        except Exception as error:  # only the template runs here, so whatever goes wrong is its
            raise self._located(error, path) from error

    def digest(self, name: str) -> str:
        """SHA-256 of the template and of everything it extends, includes or imports; where they lie does not matter."""
        self._check_name(name)
        parts = sorted(self._parts[name].items())
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def _check_name(self, name: str) -> None:
        if name not in VARIABLES:
            raise UsageError(f"There is no prompt '{name}'; there are {_listed(VARIABLES)}")

    def _located(self, error: Exception, path: Path) -> InputError:
        """The error with its place, maybe in a file that the template includes: Jinja's tracebacks hold their lines."""
        files = {str(part_path) for part_path in self._paths.values()}
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename in files:
                return InputError(frame.filename, str(error), frame.lineno)
        return InputError(path, str(error))


class _File(NamedTuple):
    path: Path
    text: str
    tree: nodes.Template
    used: frozenset[str]
    """The variables that the file takes from outside."""
    bound: frozenset[str]
    """The variables that the file sets, which the files that it includes may use."""


class _Library:
    """Reads and checks templates, each once."""

    def __init__(self, environment: Environment, folders: Sequence[Path]) -> None:
        self.files: dict[str, _File] = {}
        self._environment = environment
        self._folders = folders

    def closure(self, name: str) -> dict[str, str]:
        """The source of the template and of everything that it builds on, after checking what variables they use."""
        file_name = _file_name(name)
        try:
            self._read(file_name)
        except TemplateNotFound as error:
            problem = f"The template {file_name} is not in {self._searched()}; install the package again"
            raise ConfigurationError(problem) from error
        sources: dict[str, str] = {}
        self._visit(file_name, VARIABLES[name], name, sources)
        return sources

    def _visit(self, part: str, given: frozenset[str], name: str, sources: dict[str, str]) -> None:
        file = self._read(part)
        if unknown := sorted(file.used - given):
            line = _first_line(file.tree, unknown[0])
            raise InputError(file.path, f"{_listed(unknown)} is no variable of this template: {_takes(name)}", line)
        if part in sources:
            return  # also ends a circle of includes
        sources[part] = file.text
        for node in file.tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
            other = _constant(node)
            if other is None:
                problem = "names another template by an expression; write the name itself, so that it can be checked"
                raise InputError(file.path, problem, node.lineno)
            try:
                self._read(other)
            except TemplateNotFound as error:
                raise InputError(file.path, f"'{other}' is not in {self._searched()}", node.lineno) from error
            sees = given | file.bound if getattr(node, "with_context", True) else frozenset[str]()
            self._visit(other, sees, name, sources)

    def _searched(self) -> str:
        return " nor in ".join(map(str, self._folders))

    def _read(self, part: str) -> _File:
        if part not in self.files:
            assert self._environment.loader is not None
            text, file_name, _ = self._environment.loader.get_source(self._environment, part)
            path = Path(file_name or part)
            try:
                tree = self._environment.parse(text)
                used = meta.find_undeclared_variables(tree)
            except TemplateSyntaxError as error:
                raise InputError(path, error.message or "syntax error", error.lineno) from error
            bound = {found.name for found in tree.find_all(nodes.Name) if found.ctx != "load"}
            self.files[part] = _File(path, text, tree, frozenset(used), frozenset(bound))
        return self.files[part]


class _Folder(FileSystemLoader):
    """Jinja's loader for a folder, with an error that names the file."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._path = folder

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        """The text of the file, where it is, and Jinja's test for whether it has changed."""
        try:
            return super().get_source(environment, template)
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise InputError(self._path / template, "is not UTF-8 text", line) from error


def _environment(loader: BaseLoader) -> Environment:
    # Sandboxed, because a folder of prompts is passed around as data and must not be able to run anything. Not escaped,
    # because a prompt is no HTML. The rest are Jinja's defaults, written down because prompts depend on them.
    environment = ImmutableSandboxedEnvironment(
        loader=loader,
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=False,
        lstrip_blocks=False,
        keep_trailing_newline=False,
        auto_reload=False,
    )
    # Rendered twice, a prompt must be the same both times: finished requests are looked up by it.
    del environment.globals["lipsum"], environment.filters["random"]
    return environment


def _file_name(name: str) -> str:
    return f"{name}.j2"


def _constant(node: nodes.Node) -> str | None:
    template = getattr(node, "template", None)
    return template.value if isinstance(template, nodes.Const) and isinstance(template.value, str) else None


def _first_line(tree: nodes.Template, variable: str) -> int | None:
    lines = [found.lineno for found in tree.find_all(nodes.Name) if found.name == variable and found.ctx == "load"]
    return min(lines, default=None)


def _takes(name: str) -> str:
    variables = VARIABLES[name]
    return f"'{name}' takes {_listed(sorted(variables))}" if variables else f"'{name}' takes no variables"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
