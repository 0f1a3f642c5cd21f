"""The prompts that a model is asked: Jinja2 templates, one file each, the user's folder before ours.

A template sees exactly the variables that `VARIABLES` declares for it. Loading finds mistakes, with file and line:
variables and names of other templates in the source, the rest by rendering each template once. What a variable holds is
only ever text: Jinja does not look at `{{ }}` that a model or a principle says. Apart from what Jinja replaces and the
file's last newline, the model sees exactly the file, so a space or an empty line counts.

A user's template may build on the shipped one of the same name: `{% extends "shipped/critique.j2" %}`. It may include
other files of either folder.
"""

import hashlib
import json
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, get_args

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
from constitutional.base.message import Role
from constitutional.base.shipped import shipped
from constitutional.base.text import canonical

Value = str | Sequence[Mapping[str, str]]
"""What a variable may hold: text, or a conversation, whose messages have a `role` and a `content`."""

VARIABLES: Final[Mapping[str, frozenset[str]]] = {
    "critique": frozenset({"principle"}),
    "revise": frozenset({"principle"}),
    "revise_directly": frozenset({"principle"}),
    "label": frozenset({"conversation", "a", "b", "principle"}),
    "contrast": frozenset({"principle"}),
    "score": frozenset({"principle"}),
    "restate": frozenset({"principle"}),
    "tenets": frozenset({"section", "text"}),
}
"""The templates and their variables. `conversation` holds a conversation, every other variable text."""

OPTIONAL: Final[Mapping[str, Mapping[str, Value]]] = {"revise": {"principle": ""}}
"""Values for variables that the caller may leave out: after a critique the principle has been said already."""

_HOLE: Final = "\ue000"
"""A private character, which stands for a value in the dry rendering."""


def load_prompts(folder: Path | None = None) -> "Prompts":
    """Read and check every template, each from `folder` if it is there and otherwise from ours.

    Raises:
        InputError: a template is wrong; says its file and line.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigurationError(f"{folder}: there is no such folder of prompt templates")
    return Prompts(folder)


class _File(NamedTuple):
    path: Path
    text: str


class Prompts:
    """The templates, read once: `digest` covers exactly what is rendered, whatever happens to the files meanwhile."""

    def __init__(self, folder: Path | None) -> None:
        folders = [*filter(None, [folder]), shipped("prompts")]
        loaders = [_Folder(path) for path in folders]
        self._disk = _environment(ChoiceLoader([PrefixLoader({"shipped": loaders[-1]}), *loaders]))
        self._searched = " nor in ".join(map(str, folders))
        self._files: dict[str, _File] = {}
        self._parts = {name: self._checked(name) for name in VARIABLES}
        environment = _environment(FunctionLoader(self._read_again))
        self._templates = {name: environment.get_template(f"{name}.j2") for name in VARIABLES}
        dry = {name: self._rendered(name, _holes(name)) for name in VARIABLES}
        self._marks = {name: _line_beginnings(text) for name, text in dry.items()}
        self._check_responses_apart()

    def render(self, name: str, /, **values: Value) -> str:
        """The prompt: the template of that name with these values, one for each variable but the optional ones."""
        self._check_name(name)
        values = {**OPTIONAL.get(name, {}), **values}
        path = self._files[f"{name}.j2"].path
        if missing := sorted(VARIABLES[name] - values.keys()):
            raise UsageError(f"{path}: rendered without a value for {_listed(missing)}")
        if unknown := sorted(values.keys() - VARIABLES[name]):
            raise UsageError(f"{path}: given a value for {_listed(unknown)}, but {_takes(name)}")
        return self._rendered(name, values)

    def digest(self, name: str) -> str:
        """SHA-256 of the template and of everything it extends, includes or imports; where they lie does not matter."""
        self._check_name(name)
        parts = sorted((part, self._files[part].text) for part in self._parts[name])
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def quoted(self, name: str, text: str) -> str:
        """The text with "> " before every line that begins, or seems to begin, as a line of the template itself does.

        So no response says where it ends and the next one begins: a text cannot pass for the template's own layout, and
        different values never give the same prompt. Lines that begin with ">" are quoted too, which keeps texts apart.
        """
        self._check_name(name)
        marks = (">", *self._marks[name])
        lines = text.splitlines(keepends=True)
        return "".join(f"> {line}" if canonical(line).casefold().startswith(marks) else line for line in lines)

    def _check_responses_apart(self) -> None:
        """A line that the template begins stands between a response and any other text that somebody else wrote.

        Raises:
            InputError: one does.
        """
        a, b = (chr(ord(_HOLE) + number) for number in (1, 2))
        dry = self._rendered("label", {**_holes("label"), "a": a, "b": b, "principle": ""})
        pieces = re.split(f"([{_HOLE}{a}{b}])", dry)
        for before, between, after in zip(pieces[1::2], pieces[2::2], pieces[3::2], strict=False):
            if {before, after} & {a, b} and not re.search(r"[\r\n]\s*\S", between):
                raise InputError(
                    self._files["label.j2"].path,
                    "a response could pass for the text beside it, because no line between them begins with words of "
                    'the template; begin the lines of both with words of your own, such as "(A) {{ a }}" and '
                    '"(B) {{ b }}"',
                )

    def _read_again(self, part: str) -> tuple[str, str, None]:
        return self._files[part].text, str(self._files[part].path), None

    def _rendered(self, name: str, values: Mapping[str, Value]) -> str:
        try:
            return self._templates[name].render(values)
        except Exception as error:  # only the template runs here, so whatever goes wrong is its
            raise self._located(error, name) from error

    def _located(self, error: Exception, name: str) -> InputError:
        """The error with its place, maybe in a file that the template includes: Jinja's tracebacks hold their lines."""
        paths = {str(file.path) for file in self._files.values()}
        for frame in reversed(traceback.extract_tb(error.__traceback__)):
            if frame.filename in paths:
                return InputError(frame.filename, str(error), frame.lineno)
        return InputError(self._files[f"{name}.j2"].path, str(error))

    def _check_name(self, name: str) -> None:
        if name not in VARIABLES:
            raise UsageError(f"There is no prompt '{name}'; there are {_listed(VARIABLES)}")

    def _checked(self, name: str) -> set[str]:
        """The template and everything that it builds on, by name; no file of them uses an undeclared variable."""
        seen: set[str] = set()
        waiting: list[tuple[str, frozenset[str], str | None, int]] = [(f"{name}.j2", VARIABLES[name], None, 0)]
        while waiting:
            part, visible, user, line = waiting.pop()
            tree, used = self._tree(part, user, line)
            if unknown := sorted(used - visible):
                names = tree.find_all(nodes.Name)
                lines = [node.lineno for node in names if node.name == unknown[0] and node.ctx == "load"]
                problem = f"{_listed(unknown)} is no variable of this template: {_takes(name)}"
                raise InputError(self._files[part].path, problem, min(lines, default=None))
            if part in seen:
                continue  # also ends a circle of includes
            seen.add(part)
            bound = {node.name for node in tree.find_all(nodes.Name) if node.ctx != "load"}
            for node in tree.find_all((nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)):
                passed = visible | bound if getattr(node, "with_context", True) else frozenset[str]()
                template = getattr(node, "template", None)
                if not isinstance(template, nodes.Const) or not isinstance(template.value, str):
                    problem = "names another template by an expression; write the name itself, to have it checked"
                    raise InputError(self._files[part].path, problem, node.lineno)
                waiting.append((template.value, frozenset(passed), part, node.lineno))
        return seen

    def _tree(self, part: str, user: str | None, line: int) -> tuple[nodes.Template, set[str]]:
        """The syntax tree of a file, which `user` names in a line, and the variables that it takes from outside."""
        if part not in self._files:
            assert self._disk.loader is not None
            try:
                text, file_name, _ = self._disk.loader.get_source(self._disk, part)
            except TemplateNotFound as error:
                if user is None:
                    problem = f"The template {part} is not in {self._searched}; install the package again"
                    raise ConfigurationError(problem) from error
                raise InputError(self._files[user].path, f"'{part}' is not in {self._searched}", line) from error
            self._files[part] = _File(Path(file_name or part), text)
        try:
            tree = self._disk.parse(self._files[part].text)
            return tree, meta.find_undeclared_variables(tree)
        except TemplateSyntaxError as error:
            raise InputError(self._files[part].path, error.message or "syntax error", error.lineno) from error


class _Folder(FileSystemLoader):
    """Jinja's loader for a folder, with an error that names the file."""

    def get_source(self, environment: Environment, template: str) -> tuple[str, str, Callable[[], bool]]:
        """The text of the file, where it is, and Jinja's test for whether it has changed."""
        try:
            return super().get_source(environment, template)
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise InputError(Path(self.searchpath[0], template), "is not UTF-8 text", line) from error


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
    # Rendered twice, a prompt must be the same both times: the journal finds finished requests by it.
    del environment.globals["lipsum"], environment.filters["random"]
    return environment


def _holes(name: str) -> dict[str, Value]:
    """Values for a dry rendering; the conversation has a message of each role."""
    conversation = [{"role": role, "content": _HOLE} for role in get_args(Role)]
    return {variable: conversation if variable == "conversation" else _HOLE for variable in VARIABLES[name]}


def _line_beginnings(dry: str) -> tuple[str, ...]:
    """What the lines of a template begin with, in lower case: up to a value, at most 20 characters."""
    beginnings = (canonical(line.partition(_HOLE)[0])[:20].casefold() for line in dry.splitlines())
    return tuple(dict.fromkeys(filter(None, beginnings)))


def _takes(name: str) -> str:
    variables = VARIABLES[name]
    return f"'{name}' takes {_listed(sorted(variables))}" if variables else f"'{name}' takes no variables"


def _listed(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(f"'{name}'" for name in names)
