"""The command `import`: a constitution in another format as our YAML, with a list of what was not carried over."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from constitutional.base.errors import InputError, UsageError
from constitutional.base.progress import counted
from constitutional.base.text import printable

if TYPE_CHECKING:
    from constitutional.constitution.file import ReadConstitution
    from constitutional.constitution.markdown import ProseBlock
    from constitutional.constitution.yaml import Problem

MOST_PRINTED = 40
"""Lines on the terminal; the file holds all of them."""
MOST_MISTAKES = 20

_ABOUT = """Write a constitution that somebody keeps in another format as our YAML, and say what is not carried over.

The format is recognised by what the file holds: critique and revision requests (Constitutional AI, the alignment
handbook), lists for comparison, Inverse Constitutional AI, AnnotatedPairs, Open Character Training, EigenBench,
Constitutional-Evals, SALMON, Polis comments and other tables, the OpenAI Model Spec, long prose such as the text of a
PDF, Markdown, and lists of one principle a line. `constitutional run constitution.file=FILE` reads them as well."""


def add_parser(commands: Any) -> None:  # noqa: ANN401 - argparse keeps the type of its sub-parsers to itself
    """Add the command to those of `constitutional`."""
    parser = commands.add_parser(
        "import",
        help="write a constitution in another format as our YAML",
        description=_ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="JSON, JSON lines, YAML, CSV, Markdown or text; plain, .gz or .zst"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="of the model, such as critic=http critic.url=…"
    )
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.yaml", help="where to write it (default: print it)")
    parser.add_argument("--force", action="store_true", help="replace the file, if there is one")
    parser.add_argument(
        "--with-model", action="store_true", help="let the critic split prose into tenets, each quoted from the text"
    )
    parser.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> None:
    from constitutional.base.files import atomic_write
    from constitutional.constitution.file import foreign_constitution, read_constitution
    from constitutional.constitution.principle_file import YAML_ENDINGS

    file, out = arguments.file, arguments.out
    if out is not None and out.suffix.lower() not in YAML_ENDINGS:
        raise UsageError(f"{out}: what is written is YAML; name it .yaml, such as {out.with_suffix('.yaml')}")
    if out is not None and out.exists() and not arguments.force:
        raise UsageError(f"{out}: exists already; name another file, or add --force to replace it")
    if arguments.overrides and not arguments.with_model:
        words = shlex.join(arguments.overrides)
        raise UsageError(f"no model is asked, so '{words}' changes nothing; add --with-model, or leave it out")
    read = (
        foreign_constitution(_tenets(file, arguments.overrides), file)
        if arguments.with_model
        else read_constitution(file)
    )
    if read.constitution is None:
        first, *others = read.problems
        error = InputError(file, first.text, first.line)
        for problem in others[:MOST_MISTAKES]:
            error.add_note(str(InputError(file, problem.text, problem.line)))
        raise error
    content, remarks = yaml_of(read, file)
    if out is None:
        print(content, end="")
    else:
        atomic_write(out, content.encode())
    for remark in remarks[:MOST_PRINTED]:
        print(printable(remark), file=sys.stderr if out is None else sys.stdout)
    if len(remarks) > MOST_PRINTED:
        rest = counted(len(remarks) - MOST_PRINTED, "more line")
        print(f"  … and {rest}, at the top of the file", file=sys.stderr if out is None else sys.stdout)
    if out is not None:
        print(f"written to {printable(str(out))}; look at it: constitutional lint {printable(shlex.quote(str(out)))}")


def yaml_of(read: "ReadConstitution", file: Path) -> tuple[str, list[str]]:
    """A constitution as our YAML, and what is said of its import; YAML of our own stays as it is."""
    from constitutional.constitution.principle_file import YAML_ENDINGS, read_text, unpacked
    from constitutional.constitution.writing import imported_yaml, remarks_of

    assert read.constitution is not None, "it has no mistakes"
    kept = unpacked(file).suffix.lower() in YAML_ENDINGS and read.is_ours
    what = "our own YAML, kept as it is" if kept else format_of(read)
    left_out = [*read.left_out, *asides_of(read.asides)]
    remarks = remarks_of(file.name, what, counted(len(read.constitution.principles), "principle"), left_out)
    return read_text(file) if kept else imported_yaml(read.constitution, remarks), remarks


def format_of(read: "ReadConstitution") -> str:
    """What a constitution's file was read as."""
    return read.family or ("our own schema" if read.is_ours else "Markdown")


def asides_of(asides: "Sequence[ProseBlock]") -> "list[Problem]":
    """The blocks of a Markdown file that are no principles and no description."""
    from constitutional.constitution.yaml import Problem, shown

    return [
        Problem(aside.line, f'the {aside.kind} "{shown(aside.text)}": it is no list item and no principle of its own')
        for aside in asides
        if aside.use == "nothing"
    ]


def _tenets(file: Path, overrides: list[str]) -> Any:  # noqa: ANN401 - imported when needed
    """What a model makes of a file in prose."""
    from constitutional.base.progress import Progress
    from constitutional.base.templates import load_prompts
    from constitutional.constitution.file import check_prose
    from constitutional.judging.tenets import tenets_of
    from constitutional.runs.compose import compose, freeze
    from constitutional.runs.context import RunContext, selected

    content = check_prose(file)
    config = freeze(compose(overrides))
    templates, progress = load_prompts(config.templates), Progress()
    with RunContext(config, selected(config), templates, progress) as run_context:
        engine = run_context.journalled(run_context.given("critic"))
        with progress.task("split into tenets", 0, "parts") as task:
            return tenets_of(content, engine, templates, task.update)
