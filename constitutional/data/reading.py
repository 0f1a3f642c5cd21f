"""What a file of data is, how its columns are read, what it holds, and the same rows as our own JSON lines."""

import gzip
import json
import os
import re
import shutil
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, TypeVar, cast

from constitutional.base.errors import InputError, UsageError
from constitutional.base.files import replacing
from constitutional.base.records import Message
from constitutional.data.candidates import CLASSES, Candidate, Class, duplicate_key
from constitutional.data.comparisons import ROWS, divisor, unknown
from constitutional.data.evaluation import EvaluationRow, load_evaluation, recognise
from constitutional.data.pairs.reader import PairForm
from constitutional.data.preferences import PreferenceReader
from constitutional.data.prompts import PromptForm, checked, conversation_of, prompt_form, split_of
from constitutional.data.sources import DataFile, ReadAs, Rows, licence_beside
from constitutional.data.turns import BadRowError

T = TypeVar("T")
Kind = Literal["preferences", "prompts", "constitution", "evaluation"]
SAMPLES: Final = 3
"""Rows that are shown as they are read."""
ENDINGS: Final = (".jsonl", ".jsonl.gz", ".jsonl.zst")
"""Of a file of our own JSON lines."""
_ENDINGS: Final = re.compile(
    r"(\.(jsonl?|ndjson|csv|tsv|txt|parquet|arrow|feather|ya?ml|gz|zstd?|bz2|xz|zip))+$", re.IGNORECASE
)
_EVERY: Final = 5000
"""Rows between two reports of how many are read."""
NON_COMMERCIAL: Final = ("-nc", "noncommercial", "non-commercial")
"""What stands in the names of licences that allow no commercial use."""


class DataReading(NamedTuple):
    """What a file was recognised as, and what it holds."""

    format: str
    kind: Kind
    rows: int = 0
    classes: Mapping[Class, int] = {}
    """Candidates by class, those of ranks expanded."""
    duplicates: int = 0
    """Candidates, or prompts, that say the same of the same texts as an earlier one."""
    prompts: int = 0
    """Different conversations that are answered, or are to be."""
    items: int = 0
    """Of an evaluation set."""
    principles: int = 0
    """Of a constitution; or principles that verdicts are by."""
    columns: Mapping[str, str] = {}
    """The file's column by what it is read as."""
    ignored_columns: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    samples: tuple[Mapping[str, Any], ...] = ()
    """The first rows as they are read."""
    strengths: bool = False
    """The file says how much better replies are."""
    keys: tuple[ReadAs, ...] = ()
    """What `columns` may name in a file of this form."""
    written: int | None = None
    """Rows that were written as our own; None where nothing was to be written."""

    def as_json(self) -> dict[str, Any]:
        """All of it as one object."""
        names = {"preference": "preferences", "tie": "ties"}
        counts = {names.get(label, label): self.classes.get(label, 0) for label in CLASSES}
        rest = self._asdict()
        del rest["classes"], rest["strengths"], rest["keys"]
        if self.written is None:
            del rest["written"]
        head = {name: rest.pop(name) for name in ("format", "kind", "rows")}
        lists = {name: list(rest[name]) for name in ("ignored_columns", "warnings", "samples")}
        return {**head, "pairs": sum(self.classes.values()), **counts, **rest, "columns": dict(self.columns), **lists}


Progress = Callable[[int], object]
Reader = Callable[[DataFile, Path | None, Progress], DataReading | None]
"""Reads a file, and writes its rows as our own where it is given a file to write; None where the file is not of the
reader's kind."""


def read_data(file: DataFile, to: Path | None = None, progress: Progress = lambda _: None) -> DataReading:
    """What a file is and what it holds, in bounded memory.

    Args:
        file: the file and how to read it.
        to: a file in which the rows are written as our own JSON lines, compressed where its name ends so.
        progress: told now and then how many rows are read.

    Raises:
        InputError: the file is of no known kind, or a row is not as it should be. Nothing is written then.
        UsageError: `to` does not end as a file of JSON lines, or what the file holds is not written in that form.
    """
    for reader in READERS:
        reading = reader(file, to, progress)
        if reading is not None:
            return reading
    rows = Rows(file.path, ROWS)
    first = rows.peek()
    if first is None:
        raise InputError(file.path, f"holds no row; expected {ROWS}")
    raise rows.place(first[0]).error(unknown(first[1], ROWS))


def _preferences(file: DataFile, to: Path | None, progress: Progress) -> DataReading | None:
    rows = Rows(file.path, ROWS)
    first = rows.peek()
    if first is None or not isinstance(first[1], dict):
        return None
    reader = PreferenceReader(file, texts=rows.texts)
    try:
        form = reader.form_of(first[1])
        if form is None:
            return None
        with own_file(to) as out, tempfile.SpooledTemporaryFile(2**20) as aside:
            own = _OwnRows(out, cast("IO[bytes]", aside)) if out else None
            return _gathered(file, _Columns(rows, progress), reader, form, own)
    except BadRowError as error:
        number = error.args[1] if len(error.args) > 1 else first[0]
        raise rows.place(number).error(str(error.args[0])) from error


def _gathered(
    file: DataFile, seen: "_Columns", reader: PreferenceReader, form: PairForm, own: "_OwnRows | None"
) -> DataReading:
    tally: Counter[tuple[Class, tuple[str, ...]]] = Counter()
    pairs, conversations = array("q"), array("q")
    samples: list[Sequence[Candidate]] = []
    without_prompt = 0
    strengths = False
    for _, candidates in reader.candidates(form, seen):
        if candidates and len(samples) < SAMPLES:
            samples.append(candidates)
        for candidate in candidates:
            tally[candidate.label, candidate.principles] += 1
            pair, conversation = duplicate_key(candidate)
            pairs.append(pair)
            conversations.append(conversation)
            without_prompt += not candidate.messages
            strengths = strengths or candidate.strength > 0
            if own and candidate.label in ("preference", "tie"):
                own.add(candidate)
    notes = [*reader.warnings(), *_doubts(file, form, strengths=strengths)]
    if without_prompt:
        advice = "they are not trained on; name its column with columns: {prompt: COLUMN}"
        notes.append(f"pairs that have no prompt: {without_prompt:,}; {advice}")
    classes: Counter[Class] = Counter()
    for (label, _), count in tally.items():
        classes[label] += count
    if classes["different_contexts"]:
        notes.append(f"pairs whose replies answer different conversations: {classes['different_contexts']:,}; left out")
    duplicates = _repeated(pairs)
    if duplicates:
        notes.append(f"pairs that stand there before, with the same verdict: {duplicates:,}")
    return DataReading(
        format=form.name,
        kind="preferences",
        rows=seen.rows,
        classes=classes,
        duplicates=duplicates,
        prompts=len(conversations) - _repeated(conversations),
        principles=len({principle for _, principles in tally for principle in principles}),
        columns=form.columns,
        ignored_columns=seen.ignored(form.columns.values()),
        warnings=(*notes, *_licence(file, seen, form.name)),
        samples=tuple(map(_of_a_row, samples)),
        strengths=strengths,
        keys=form.keys,
        written=own.end() if own else None,
    )


class _OwnRows:
    """Writes preferences as rows of our own. As all must have a prompt or none, those without give way to others."""

    def __init__(self, out: IO[bytes], aside: IO[bytes]) -> None:
        """Write to a file, with another for what is put aside."""
        self._out, self._without = out, aside
        self._written = self._aside = 0

    def add(self, candidate: Candidate) -> None:
        """Write one; without a prompt it is put aside."""
        (self._out if candidate.messages else self._without).write(_line(own_row(candidate)))
        self._written += bool(candidate.messages)
        self._aside += not candidate.messages

    def end(self) -> int:
        """Write what was put aside where there is nothing else; how many are written."""
        if self._written:
            return self._written
        self._without.seek(0)
        shutil.copyfileobj(self._without, self._out)
        return self._aside


def _doubts(file: DataFile, form: PairForm, *, strengths: bool) -> Iterator[str]:
    """What is said of the file's settings, given whether it says how much better replies are."""
    if form.labelled and file.source is None:
        yield (
            f"{file.name} {form.labelled}, and counts as people's preferences; to count it as the AI's: "
            f"mix.human=[{{path: {file.path}, source: ai}}]"
        )
    if file.strengths and not strengths:
        yield "'strengths' is set and changes nothing, as no row has a strength without a probability beside it"


def _prompts(file: DataFile, to: Path | None, progress: Progress) -> DataReading | None:
    rows = Rows(file.path, ROWS)
    first = rows.peek()
    form = _checked(rows, first[0], lambda: prompt_form(file, first[1])) if first else None
    if form is None:
        return None
    seen = _Columns(rows, progress)
    keys = array("q")
    samples: list[Mapping[str, Any]] = []
    written: set[int] = set()
    with own_file(to) as out:
        for number, row in seen:
            messages = _checked(rows, number, partial(_conversation, form, row))
            if _checked(rows, number, partial(split_of, row)):
                form.columns["split"] = "split"
            key = hash(conversation_of(messages))
            keys.append(key)
            if len(samples) < SAMPLES:
                samples.append({"messages": [message.turn() for message in messages]})
            if out is not None and key not in written:
                written.add(key)
                out.write(_line(_own_prompt(messages, row)))
    reading = _of_prompts(file, seen, form, keys, samples)
    return reading if to is None else reading._replace(written=len(written))


def _conversation(form: PromptForm, row: object) -> tuple[Message, ...]:
    return checked(form.read(row))


def _checked(rows: Rows, number: int, read: Callable[[], T]) -> T:
    """What a function reads; what is wrong with the row is told with its place."""
    try:
        return read()
    except BadRowError as error:
        raise rows.place(number).error(str(error)) from error


def _of_prompts(
    file: DataFile, seen: "_Columns", form: PromptForm, keys: "array[int]", samples: list[Mapping[str, Any]]
) -> DataReading:
    duplicates = _repeated(keys)
    notes = [f"prompts that stand there before, and are used once: {duplicates:,}"] if duplicates else []
    return DataReading(
        format=form.name,
        kind="prompts",
        rows=seen.rows,
        duplicates=duplicates,
        prompts=len(keys) - duplicates,
        columns=form.columns,
        ignored_columns=seen.ignored(form.columns.values()),
        warnings=(*notes, *_licence(file, seen, form.name)),
        samples=tuple(samples),
        keys=form.keys,
    )


def _evaluation(file: DataFile, to: Path | None, progress: Progress) -> DataReading | None:
    rows = Rows(file.path, ROWS)
    first = rows.peek()
    name = recognise(first[1]) if first and not file.columns else None
    if name is None:
        return None
    if to is not None:
        raise UsageError(
            f"{file.path} is an evaluation set ({name}), and is written in no other form; leave --to out, and measure "
            f"a model by it: constitutional eval {file.path} model.path=FOLDER"
        )
    evaluation = load_evaluation([file.path], name)
    seen = _Columns(rows, progress)
    for _ in seen:
        pass
    duplicates = len(evaluation.rows) - len({row.id for row in evaluation.rows})
    notes = [f"items that stand there before: {duplicates:,}"] if duplicates else []
    return DataReading(
        format=name,
        kind="evaluation",
        rows=seen.rows,
        duplicates=duplicates,
        prompts=len({row.prompt.id for row in evaluation.rows}),
        items=evaluation.total,
        columns={column: column for column in evaluation.columns},
        ignored_columns=seen.ignored(evaluation.columns),
        warnings=(*notes, *_licence(file, seen, name)),
        samples=tuple(map(_item, evaluation.rows[:SAMPLES])),
    )


def _item(row: EvaluationRow) -> dict[str, Any]:
    """An item of an evaluation set as it is shown."""
    own = {field.name: getattr(row, field.name) for field in fields(row) if field.name not in ("id", "prompt")}
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}
    return {"messages": [message.turn() for message in row.prompt.messages], **lists}


READERS: tuple[Reader, ...] = (_evaluation, _preferences, _prompts)
"""They are asked in this order: what a more particular reader recognises comes first."""


class _Columns:
    """The rows of a file, with all columns that occur, and the licences that rows name."""

    def __init__(self, rows: Rows, progress: Progress) -> None:
        self._source = rows
        self._progress = progress
        self.rows = 0
        self._columns: dict[str, None] = {}
        self._licences: set[str] = set()

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        columns: Any = None
        for number, row in self._source:
            self.rows += 1
            if not self.rows % _EVERY:
                self._progress(self.rows)
            if isinstance(row, dict) and row.keys() != columns:
                columns = row.keys()
                self._columns |= dict.fromkeys(columns)
                self._licences |= {str(row[name]) for name in ("license", "licence") if row.get(name)}
            yield number, row

    def ignored(self, used: Iterable[str]) -> tuple[str, ...]:
        """The columns that are not read."""
        names = tuple(used)
        read = {name for column in names for name in (column, column.partition(".")[0])}
        parts = tuple(f"{column}." for column in names)
        return tuple(name for name in self._columns if name not in read and not name.startswith(parts))

    def licences(self) -> set[str]:
        """What rows, and the file that they stand in, say that they may be used for."""
        return {self._source.licence, *self._licences}


def _repeated(keys: "array[int]") -> int:
    """How many keys stand there before."""
    import numpy as np

    return len(keys) - len(np.unique(np.frombuffer(keys, dtype=np.int64))) if len(keys) else 0


def _licence(file: DataFile, seen: _Columns, form: str) -> Iterator[str]:
    """A warning of a licence that forbids commercial use, where the file, its card or its format says so."""
    licences = {licence_beside(file.path), *seen.licences()}
    if form == "PKU-SafeRLHF":
        licences.add("cc-by-nc-4.0")  # all of that set is published so
    for licence in sorted(licences):
        if any(part in licence.lower().replace("_", "-") for part in NON_COMMERCIAL):
            yield f"the licence {licence} allows no commercial use"


@contextmanager
def own_file(to: Path | None) -> Iterator[IO[bytes] | None]:
    """A file of our own JSON lines to write, compressed where its name ends so; None where none is to be written.

    Raises:
        UsageError: it does not end as one.
    """
    if to is None:
        yield None
        return
    name = to.name.lower()
    if not name.endswith(ENDINGS):
        stem = _ENDINGS.sub("", to.name) or "rows"
        raise UsageError(
            f"--to {to}: rows are written as our own JSON lines; type --to {to.with_name(stem)}.jsonl (or .jsonl.gz, "
            ".jsonl.zst). What a run has learned from is written in other formats by constitutional export RUN --to "
            "parquet, trl, …"
        )
    with replacing(to) as file:
        if name.endswith(".gz"):
            with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:
                yield cast("IO[bytes]", packed)
        elif name.endswith(".zst"):
            import pyarrow as pa  # type: ignore[import-untyped]

            # pyarrow closes what it writes to.
            open_below = os.fdopen(os.dup(file.fileno()), "wb")
            with pa.CompressedOutputStream(pa.PythonFile(open_below, mode="w"), "zstd") as packed:
                yield packed
        else:
            yield file


def own_row(candidate: Candidate) -> dict[str, Any]:
    """A preference or a tie as a row of our own."""
    messages = candidate.messages
    plain = len(messages) == 1 and messages[0] == Message("user", messages[0].content)
    prompt = {"prompt": messages[0].content} if plain else {"messages": [message.turn() for message in messages]}
    row: dict[str, Any] = {**(prompt if messages else {"prompt": None})}
    row |= {"chosen": candidate.chosen, "rejected": candidate.rejected}
    if candidate.strength:
        row["strength"] = candidate.strength
    if not candidate.strength or candidate.probability != 1:  # by no table: whoever reads the row may have one
        row["probability"] = candidate.probability
    row["source"] = candidate.source
    if candidate.rater:
        row["rater"] = candidate.rater
    row |= _by(candidate)
    if candidate.raters:
        row["raters"] = list(candidate.raters)
    if candidate.weight != 1:
        row["weight"] = candidate.weight
    return row


def shown(candidate: Candidate) -> dict[str, Any]:
    """A candidate as it is shown."""
    row = {
        "class": candidate.label,
        "messages": [message.turn() for message in candidate.messages],
        "chosen": candidate.chosen,
        "rejected": candidate.rejected,
        "probability": candidate.probability,
        "weight": candidate.weight,
        "source": candidate.source,
    }
    more = {"rater": candidate.rater, "raters": list(candidate.raters)}
    return row | {name: value for name, value in more.items() if value} | _by(candidate)


def _of_a_row(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """The pairs of a row as they are shown: the first, and the others beside it."""
    first, *others = (
        shown(candidate) | ({"training_weight": weight} if weight != candidate.weight else {})
        for candidate, weight in zip(candidates, _training_weights(candidates), strict=True)
    )
    more = [{name: value for name, value in pair.items() if name != "messages"} for pair in others]
    return first | ({"more_pairs": more} if more else {})


def _training_weights(candidates: Sequence[Candidate]) -> Iterator[float]:
    """What the pairs of a row count: verdicts on the same two replies by several principles together as one at most."""
    pairs = [(candidate.messages, *sorted((candidate.chosen, candidate.rejected))) for candidate in candidates]
    by_pair: defaultdict[object, dict[tuple[str, ...], list[float]]] = defaultdict(dict)
    for pair, candidate in zip(pairs, candidates, strict=True):
        by_pair[pair].setdefault(candidate.principles, []).append(candidate.weight)
    for pair, candidate in zip(pairs, candidates, strict=True):
        yield candidate.weight / divisor(by_pair[pair].values())


def _by(candidate: Candidate) -> dict[str, Any]:
    """What a verdict is by, in a column of our own."""
    names = candidate.principles
    return {"principle": names[0]} if len(names) == 1 else {"principles": list(names)} if names else {}


def _own_prompt(messages: tuple[Message, ...], row: object) -> dict[str, Any]:
    plain = len(messages) == 1 and messages[0] == Message("user", messages[0].content)
    own = {"prompt": messages[0].content} if plain else {"messages": [message.turn() for message in messages]}
    split = split_of(row)
    return own | ({"split": split} if split else {})


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
