"""Constitutions among the files that the command `data` is shown, told apart from prompts and preferences."""

import re
from pathlib import Path
from typing import Final, NamedTuple

from constitutional.base.errors import InputError, UsageError
from constitutional.base.files import atomic_write
from constitutional.base.progress import counted
from constitutional.cli.import_command import asides_of, format_of, yaml_of
from constitutional.constitution.file import ReadConstitution, read_constitution
from constitutional.constitution.principle_file import MARKDOWN_ENDINGS, YAML_ENDINGS, read_text, unpacked
from constitutional.constitution.prose import binds
from constitutional.data.comparisons import ROWS
from constitutional.data.evaluation import recognise
from constitutional.data.preferences import PreferenceReader
from constitutional.data.prompts import prompt_form
from constitutional.data.reading import SAMPLES, DataReading
from constitutional.data.sources import DataFile, Rows
from constitutional.data.turns import BadRowError, is_transcript

_ALWAYS: Final = YAML_ENDINGS | MARKDOWN_ENDINGS
"""Endings of files that hold no rows."""
_NEVER: Final = frozenset({".parquet", ".arrow", ".feather"})
_LARGEST: Final = 4 * 2**20
"""Bytes of a file whose ending does not tell; a larger one is data."""
_UNSURE: Final = frozenset(
    {"", "a list, one principle a line", "a list of texts", "a list of mappings", "a table", "prose"}
    | {"Inverse Constitutional AI's texts by id"}
)
"""Families whose texts could be prompts as well."""
_OF_PRINCIPLES: Final = frozenset(
    "principle principle_text criterion rule comparative why critique revision edit_request overrides uses".split()
)
"""Columns that constitutions have, and prompts have not."""
_BEGINS: Final = re.compile(
    r"(?:(?!human|user|assistant|system|q\b|a\b)[\w ,/’'-]{1,40}: )?"
    r"(?:please )?(?:(?:select|choose|prefer|pick)\b.*\b(?:response|reply|answer|completion)\b"
    r"|(?:never|always|avoid|do not|don['’]t|be)\b)",
    re.IGNORECASE,
)
"""How principles begin that hold no verb of duty, perhaps behind a label, such as `Stereotypes: Do not …`."""
_MOST_DOUBTFUL: Final = 1000
"""Texts that bind nothing and could still be principles; more of them are prompts."""
_LEAST_BINDING: Final = 0.15
"""Share of sentences that bind in prose that is a constitution."""
_ITEM: Final = re.compile(r"^ {0,3}(?:[-*+•]|\d{1,9}[.)]|\(\d{1,9}\))[ \t]+\S", re.MULTILINE)
_PARAGRAPH_END: Final = re.compile(r"\S[ \t]*\n[ \t]*\n")
_SENTENCE_END: Final = re.compile(r"[.!?][\"”’)]*(?:\s|\Z)")


class ReadAsPrinciples(NamedTuple):
    """A file as a constitution, and what else it could be."""

    read: ReadConstitution
    is_constitution: bool
    """Whether it is taken for one; if not, it is taken for prompts."""
    could_be_other: bool
    """Whether it could be of the other kind."""


def principles_in(file: DataFile) -> ReadAsPrinciples | None:
    """The constitution that a file may hold; None where it holds none, or is clearly data of another kind.

    The format and the columns decide where they can. Texts without either, one a line, could be principles or prompts:
    they are taken for principles where most of them say what a model is to do or to leave.

    Raises:
        InputError: it is a constitution that has mistakes.
    """
    path = file.path
    if isinstance(path, str) or not _may_be_one(file, path):
        return None
    if unpacked(path).suffix.lower() in _ALWAYS:
        return ReadAsPrinciples(_without_mistakes(read_constitution(path), path), True, False)
    try:
        row = _first_row(path)
        read = None if isinstance(row, dict) and _is_data(file, row) else read_constitution(path)
    except (InputError, BadRowError):
        return None  # the readers of rows say what is wrong
    return None if read is None else _told_apart(read, row, file, path)


def _may_be_one(file: DataFile, path: Path) -> bool:
    """Whether a file can hold a constitution, by its settings, its name and its size."""
    ending = unpacked(path).suffix.lower()
    if file.columns or file.strengths or ending in _NEVER or not path.is_file():
        return False
    return ending in _ALWAYS or path.stat().st_size <= _LARGEST


def _told_apart(read: ReadConstitution, row: object, file: DataFile, path: Path) -> ReadAsPrinciples | None:
    column = _prompt_column(file, row)
    if column not in (None, "", "text"):
        return None
    by_name = isinstance(row, dict) and any(
        str(key).lower() in _OF_PRINCIPLES or (not column and str(key).isdecimal()) for key in row
    )
    certain = by_name or read.family not in _UNSURE or read.is_ours
    if certain:
        return ReadAsPrinciples(_without_mistakes(read, path), True, False)
    text = row.get(column) if isinstance(row, dict) and column else row
    if read.constitution is None or (isinstance(text, str) and is_transcript(text)):
        return None
    return _of_prose(read, path) if read.family == "prose" else _of_texts(read, path)


def _of_texts(read: ReadConstitution, path: Path) -> ReadAsPrinciples | None:
    """Texts that are principles or prompts."""
    assert read.constitution is not None, "it has no mistakes"
    texts = [principle.text for principle in read.constitution.principles]
    asked = sum(text.rstrip("\"'”’) ").endswith("?") for text in texts)
    if 2 * asked >= len(texts):
        return None
    listed = read.family == "" and bool(_ITEM.search(read_text(path)))
    binding = sum(bool(_BEGINS.match(text)) or binds(text) for text in texts)
    if listed or 2 * binding > len(texts):
        return ReadAsPrinciples(read, True, True)
    return ReadAsPrinciples(read, False, True) if len(texts) <= _MOST_DOUBTFUL else None


def _first_row(path: Path) -> object:
    """The first row, if the file has rows; a text where it is read line by line."""
    try:
        first = Rows(path, ROWS).peek()
    except InputError:
        return None
    return first[1] if first else None


def _is_data(file: DataFile, row: dict[str, object]) -> bool:
    """Whether a file that begins with this row is an evaluation set, or holds pairs that somebody has judged.

    AnnotatedPairs in which nobody but principles annotates are the file of the principles.
    """
    if recognise(row) is not None:
        return True
    rows = Rows(file.path, ROWS)
    reader = PreferenceReader(file, texts=rows.texts)
    form = reader.form_of(row)
    if form is None:
        return False
    candidates = (candidate for _, some in reader.candidates(form, rows) for candidate in some)
    return form.name != "AnnotatedPairs" or any(candidate.label != "unlabelled" for candidate in candidates)


def _prompt_column(file: DataFile, row: object) -> str | None:
    """The column of prompts, empty where the rows are texts; None where the file could hold none."""
    form = prompt_form(file, row)
    if form is None or (isinstance(row, dict) and {"edit_request", "annotators"} & row.keys()):
        return None
    return form.columns["prompt"] if isinstance(row, dict) else ""


def _of_prose(read: ReadConstitution, path: Path) -> ReadAsPrinciples:
    """A text of paragraphs or pages, of which enough sentences bind, is a constitution; prompts stand one a line."""
    content = read_text(path).replace("\r\n", "\n")
    sentences = [text for text in _SENTENCE_END.split(content.replace("\n", " ")) if text.strip()]
    binding = sum(binds(f"{text.strip()}.") for text in sentences) / len(sentences)
    apart = "\f" in content or len(_PARAGRAPH_END.findall(content)) > 1
    return ReadAsPrinciples(read, binding > (_LEAST_BINDING if apart else 0.5), not apart)


def _without_mistakes(read: ReadConstitution, path: Path) -> ReadConstitution:
    if read.constitution is None:
        first, *others = read.problems
        more = f" (and {len(others)} more: constitutional lint {path})" if others else ""
        raise InputError(path, first.text + more, first.line)
    return read


def constitution_reading(file: DataFile, principles: ReadAsPrinciples, to: Path | None) -> DataReading:
    """What the command says of a constitution; `to` is a file in which it is written as our YAML."""
    read, path = principles.read, file.path
    assert read.constitution is not None, "it has no mistakes"
    assert isinstance(path, Path), "it is no data set of the hub"
    if to is not None:
        if to.suffix.lower() not in YAML_ENDINGS:
            raise UsageError(
                f"{to}: {path} is a constitution, which is written as YAML; type --to {to.with_suffix('.yaml')}"
            )
        atomic_write(to, yaml_of(read, path)[0].encode())
    left_out = [*read.left_out, *asides_of(read.asides)]
    warnings = [f"not carried over, line {note.line}: {note.text}" for note in left_out]
    if principles.could_be_other:
        warnings.append(f"the texts could be prompts, too: prompts.files=[{path}] has them read so")
    count = len(read.constitution.principles)
    return DataReading(
        format=format_of(read),
        kind="constitution",
        principles=count,
        warnings=tuple(warnings),
        samples=tuple(
            principle.model_dump(mode="json", exclude_defaults=True)
            for principle in read.constitution.principles[:SAMPLES]
        ),
    )


def as_principles(file: DataFile, principles: ReadAsPrinciples) -> str:
    """How to have prompts read as the principles that they could be."""
    assert principles.read.constitution is not None, "it has no mistakes"
    count = counted(len(principles.read.constitution.principles), "principle")
    return (
        f"the texts could be {count}, too: constitution.file={file.path} has them read so, and constitutional import "
        f"{file.path} -o FILE.yaml writes them"
    )
