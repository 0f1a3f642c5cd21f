"""Reads files in which a person writes principles: plain lines, JSON, YAML or Markdown, by the file's ending.

Every error names the line, so nothing is read in a way that forgets lines.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from constitutional.base.errors import InputError
from constitutional.base.jsonl import BadTextError, check_characters, reading, strict_decoder
from constitutional.constitution.constitution import ID, MOST_ID_CHARACTERS
from constitutional.constitution.markdown import forbids_below, read_markdown
from constitutional.constitution.prose import ITEM_MARK
from constitutional.constitution.yaml import read_yaml

MOST_BYTES = 32 * 2**20
"""A hundred thousand principles fit; reading takes time and memory in proportion."""
YAML_ENDINGS = frozenset({".yaml", ".yml"})
MARKDOWN_ENDINGS = frozenset({".md", ".markdown"})
PACKED_ENDINGS = frozenset({".gz", ".zst", ".zstd"})

_NO_TEXT = {
    b"%PDF-": "a PDF; take its text out first: pdftotext FILE.pdf FILE.txt",
    b"PK\x03\x04": "an archive, such as a Word document; save it as text",
}
"""What some files begin with that hold text and are none, and what to do."""
_COMMENT = re.compile(r"\s*#(?!\d+(?::|\s+[^\W\d]))")
_BETWEEN_ITEMS = " \t\r\n,"
_ID_WORDS = 6
_ID_LENGTH = 48
_Entry = tuple[int, object]
"""The line of a principle, and what should be its text."""


def read_principles(path: Path) -> list[str]:
    """The principles of a file, in its order.

    `.json`: a list of texts or of objects with a `text`. `.yaml` and `.yml`: a `principles:` list of the same. `.md`:
    headings and list items, as `read_markdown` has it. Any other ending: one principle a line, without the mark of a
    list's item (`- `, `1. `), leaving out empty lines and those that start with `#`. A
    principle may begin with a number behind it, and a word or a colon: `#1 rule: …`.
    """
    content = read_text(path)
    ending = unpacked(path).suffix.lower()
    entries: Iterable[_Entry]
    if ending == ".json":
        entries = _from_json(content, path)
    elif ending in YAML_ENDINGS:
        entries = _from_yaml(content, path)
    elif ending in MARKDOWN_ENDINGS:
        entries = ((block.line, block.text) for block in read_markdown(content).principles)
    else:
        lines = enumerate(content.split("\n"), start=1)
        written = [(number, ITEM_MARK.sub("", line)) for number, line in lines if line.strip() and not is_comment(line)]
        if number := next((number for number, line in written if forbids_below(line.strip())), None):
            raise InputError(path, "forbids nothing by itself; write its words in each of the lines below it", number)
        entries = written
    try:
        principles = [_checked(value, path, number) for number, value in entries]
    except RecursionError as error:
        raise InputError(path, "is nested too deeply to be a list of principles", 1) from error
    if not principles:
        raise InputError(path, "holds no principle", 1)
    return principles


def read_text(path: Path) -> str:
    """The text of a UTF-8 file of reasonable size, plain, .gz or .zst, without a byte-order mark."""
    with reading(path, "a text", lambda: None) as stream:
        raw = stream.read(MOST_BYTES + 1)
    if len(raw) > MOST_BYTES:
        raise InputError(path, f"holds more than {MOST_BYTES // 2**20} MiB, which is more than is read of a text")
    if remedy := next((remedy for start, remedy in _NO_TEXT.items() if raw.startswith(start)), ""):
        raise InputError(path, f"is {remedy}")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(path, "is UTF-16 text; save it as UTF-8", 1)
    try:
        content = raw.decode("utf-8-sig")  # some editors begin a file with a byte-order mark
    except UnicodeDecodeError as error:
        raise InputError(path, "is not UTF-8 text; save it as UTF-8", raw[: error.start].count(b"\n") + 1) from error
    if "\0" in content:
        line = content.count("\n", 0, content.index("\0")) + 1
        raise InputError(path, "holds a NUL character: it is no text, or not UTF-8; save it as UTF-8", line)
    return content


def unpacked(path: Path) -> Path:
    """The name without the ending of its compression, by which its format is told."""
    return path.with_suffix("") if path.suffix.lower() in PACKED_ENDINGS else path


def is_comment(line: str) -> bool:
    """Whether a line of a plain file is none of its principles: it begins with `#`, but not as `#1 rule:` does."""
    return bool(_COMMENT.match(line))


def as_id(written: str) -> str:
    """An id of another format: as it is written where it is an id, else in the letters of an id (`2.1` is `p_2_1`)."""
    return written if len(written) <= MOST_ID_CHARACTERS and re.match(ID, written) else slug(written)


def slug(text: str) -> str:
    """An id made of a text's first words: `Don't flatter anybody.` gives `dont_flatter_anybody`.

    A text without Latin letters or digits gets a digest of itself.
    """
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().replace("'", "")
    words = re.findall(r"[a-z0-9]+", ascii_text)[:_ID_WORDS]
    if not words:
        return "p_" + _text_digest(text)[:8]
    made = "_".join(words)[:_ID_LENGTH].rstrip("_")
    return made if made[0].isalpha() else f"p_{made}"


def ids_of(sources: Sequence[tuple[str | None, str, str]]) -> list[str]:
    """An id for every principle: the file's, or the principle's words as a slug.

    A slug that several principles have is followed by six digits of the text's digest, so that an id does not depend on
    the principles before it. Only equal texts are numbered.

    Args:
        sources: for every principle the id in the file, if there is one, the words that an id is made of, and the text.
    """
    wanted = [slug(name) if own_id is None else own_id for own_id, name, _ in sources]
    uses = Counter(wanted)
    taken = dict.fromkeys(uses, 1)
    return [
        name if own_id is not None or uses[name] == 1 else _unused(f"{name}_{_text_digest(text)[:6]}", taken)
        for (own_id, _, text), name in zip(sources, wanted, strict=True)
    ]


def _unused(name: str, taken: dict[str, int]) -> str:
    """The name, or the name with the first suffix `_2`, `_3`, ... that is not taken; it is taken then.

    `taken` maps every name in use to the last suffix that was tried with it (1 if none was), so that many equal names
    do not try the same suffixes again.
    """
    made = name
    while made in taken:
        taken[name] += 1
        made = f"{name}_{taken[name]}"
    taken[made] = 1
    return made


def _text_digest(text: str) -> str:
    """SHA-256 of the words: where a file breaks its lines makes no difference."""
    return hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()


def _checked(value: object, path: Path, line: int) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(path, "a principle must be a non-empty text, or have a 'text' that is one", line)
    try:
        check_characters(value)
    except BadTextError as error:
        raise InputError(path, str(error), line) from error
    return value.strip()


def _from_json(content: str, path: Path) -> Iterator[_Entry]:
    try:
        # Python refuses integers of thousands of digits, floats it does not.
        items = json.JSONDecoder(parse_int=float).decode(content)
    except json.JSONDecodeError as error:
        raise InputError(path, f"is not JSON: {error.msg}", error.lineno) from error
    if not isinstance(items, list):
        raise InputError(path, 'must be a list of principles, such as ["Don\'t flatter."]', 1)
    # Read once more, item by item, because only the decoder's position tells the line. The syntax is known to be good.
    decoder, at = strict_decoder(parse_int=float), content.index("[") + 1
    for _ in items:
        while content[at] in _BETWEEN_ITEMS:
            at += 1
        number = content.count("\n", 0, at) + 1
        try:
            item, at = decoder.raw_decode(content, at)
        except BadTextError as error:
            raise InputError(path, str(error), number) from error
        yield number, item.get("text") if isinstance(item, dict) else item


def _from_yaml(content: str, path: Path) -> Iterator[_Entry]:
    root, problems = read_yaml(content, path)
    if problems:
        raise InputError(path, problems[0].text, problems[0].line)
    principles = root.value.get("principles") if isinstance(root.value, dict) else None
    if principles is None or not isinstance(principles.value, list):
        raise InputError(path, "must have a list 'principles:'", (principles or root).line)
    for item in principles.value:
        node = item.value.get("text", item) if isinstance(item.value, dict) else item
        yield node.line, node.value
