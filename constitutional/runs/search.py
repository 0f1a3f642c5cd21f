"""Finds rows of a run by id, by principle and by words, without reading more of its files than needs be.

JSON lines are scanned as text, and only lines that may match are parsed. Of shards the columns are scanned that decide,
and only rows that may match are read.
"""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from pydantic import ValidationError

from constitutional.base import shards
from constitutional.base.errors import RunError
from constitutional.base.frozen import first_problem
from constitutional.base.records import Comparison, Judgement, Preference, Prompt, Record, Revision, Sample
from constitutional.base.shards import is_sharded
from constitutional.base.text import canonical
from constitutional.judging.labelling import combine, readable
from constitutional.runs.folder import RunStore
from constitutional.stages.mix import is_decided

R = TypeVar("R", bound=Record)

KINDS: Final[Mapping[str, type[Record]]] = {
    "preferences": Preference,
    "comparisons": Comparison,
    "judgements": Judgement,
    "revisions": Revision,
    "samples": Sample,
    "prompts": Prompt,
}
"""The artifacts whose rows can be found."""
ID_LENGTH: Final = 16


class FoundRow(NamedTuple):
    """A line of a run's file, or a row of a shard."""

    artifact: str
    file: Path
    line: int
    """Counted from 1; of a shard, the row."""
    text: str
    """The line; empty of a row of a shard."""
    of_shard: dict[str, Any] | None = None
    """The row of a shard as plain values; None of a line."""

    @property
    def id(self) -> str:
        """What the line begins with."""
        return str(self.of_shard["id"]) if self.of_shard else self.text[8 : 8 + ID_LENGTH]

    @property
    def values(self) -> dict[str, Any]:
        """The row as plain values, its id included.

        Raises:
            RunError: the line is damaged.
        """
        if self.of_shard:
            return self.of_shard
        try:
            values = json.loads(self.text)
        except ValueError as error:
            raise RunError(
                f"{self.file}:{self.line}: is damaged; the command that made the run makes it anew"
            ) from error
        assert isinstance(values, dict)
        return values

    def record(self, kind: type[R]) -> R:
        """The row as a record.

        Raises:
            RunError: the line is damaged.
        """
        try:
            return kind.model_validate(self.values)
        except ValidationError as error:
            problem = f"expected a {kind.__name__}: {first_problem(error)}"
            remedy = "the command that made the run makes it anew"
            raise RunError(f"{self.file}:{self.line}: {problem}; {remedy}") from error


class Sought(NamedTuple):
    """Which rows may match."""

    line: Callable[[bytes], bool]
    """Whether a line of JSON may."""
    columns: frozenset[str] = frozenset(["id"])
    """Columns of shards of which any decides."""
    column: Callable[[Any], Any] | None = None
    """Of a column, pyarrow's, for each row whether it may match; None means that every row may."""


EVERY: Final = Sought(lambda _: True)


def rows(store: RunStore, artifact: str, wanted: Sought = EVERY) -> Iterator[FoundRow]:
    """The rows of an artifact that may match; none where the stage that makes them is not done."""
    if artifact not in store.artifacts():
        return
    path = store.artifact(artifact)
    if is_sharded(path):
        for shard, number, values in shards.find(path, KINDS[artifact], wanted.columns, wanted.column):
            yield FoundRow(artifact, shard, number, "", values)
        return
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if wanted.line(line):
                    yield FoundRow(artifact, path, number, line.decode(errors="replace"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from error


def by_id(store: RunStore, beginning: str) -> list[FoundRow]:
    """The rows whose id begins so."""
    start = f'{{"id": "{beginning}'.encode()

    def begins(ids: Any) -> Any:  # noqa: ANN401 - pyarrow has no types
        from pyarrow import compute  # type: ignore[import-untyped]

        return compute.starts_with(ids, beginning)

    wanted = Sought(lambda line: line.startswith(start), frozenset(["id"]), begins)
    return [row for artifact in KINDS for row in rows(store, artifact, wanted)]


def about(
    store: RunStore, artifact: str, kind: type[R], column: str, values: Collection[str]
) -> list[tuple[FoundRow, R]]:
    """The rows, with their records, of which a field has one of these values.

    Args:
        store: the run.
        artifact: in which.
        kind: what its rows are.
        column: `id`, or a field.
        values: texts; where the field is none, as JSON.
    """
    as_json = [value if value.startswith("{") else json.dumps(value, ensure_ascii=False) for value in values]
    fragments = [f'"{column}": {value}'.encode() for value in as_json]

    def has_one(column: Any) -> Any:  # noqa: ANN401
        import pyarrow as pa
        from pyarrow import compute

        return compute.is_in(column, pa.array(values, pa.string()))

    wanted = Sought(lambda line: any(fragment in line for fragment in fragments), frozenset([column]), has_one)
    return [(row, row.record(kind)) for row in rows(store, artifact, wanted)] if values else []


def by_principle(store: RunStore, principle: str) -> Iterator[FoundRow]:
    """The rows that a principle has a part in: revisions, judgements and the preferences that rest on it."""
    quoted = f'"{principle}"'

    def names(column: Any) -> Any:  # noqa: ANN401 - an id, or JSON in which ids are
        from pyarrow import compute

        return compute.or_(compute.equal(column, principle), compute.match_substring(column, quoted))

    line, columns = quoted.encode(), frozenset(["principle", "principles", "steps", "unusable"])
    for artifact in ("preferences", "judgements", "revisions"):
        for row in rows(store, artifact, Sought(lambda text: line in text, columns, names)):
            values = row.values
            steps = [*values.get("steps", ()), *filter(None, [values.get("unusable")])]
            ids = [values.get("principle"), *values.get("principles", ()), *(step["principle"] for step in steps)]
            if principle in ids:
                yield row


def by_words(store: RunStore, words: str) -> Iterator[tuple[FoundRow, str]]:
    """The rows in whose texts these words stand, in any case, with the first such text."""
    wanted = canonical(words).casefold()
    # A line holds texts as JSON: what has an escape there is found when the line is parsed.
    plain = [part for part in wanted.split() if part.isalnum() and part.isascii()]

    def hold(column: Any) -> Any:  # noqa: ANN401
        import pyarrow as pa
        from pyarrow import compute

        # First all rows at once, as most words stand in few of them: that is ten times as fast.
        together = b"".join(bytes(chunk.buffers()[2] or b"") for chunk in column.chunks).lower()
        if not together.isascii():
            texts = column.to_pylist()
            return pa.array([text is not None and _hold(text.encode(), plain) for text in texts])
        if not all(word.encode() in together for word in plain):
            return pa.nulls(len(column), pa.bool_())
        lower, found = compute.ascii_lower(column), compute.is_valid(column)
        for word in plain:
            found = compute.and_(found, compute.match_substring(lower, word))
        return found

    may_hold = Sought(lambda line: _hold(line, plain), WITH_TEXTS, hold)
    for artifact in KINDS:
        for row in rows(store, artifact, may_hold):
            for text in texts_of(row.values):
                if wanted in canonical(text).casefold():
                    yield row, text
                    break


class WithoutPrinciple(NamedTuple):
    """What a comparison's label would be without a principle."""

    principle: str
    p_a: float | None
    """Probability that response a is better; None where no other judgement is readable."""
    tipped: bool
    """The label as it is prefers a response, and would not prefer the same without the principle."""


def tipping(judgements: Sequence[Judgement], margin: float) -> Iterator[WithoutPrinciple]:
    """For each principle that judged a comparison, its label by the others.

    Args:
        judgements: all of one comparison.
        margin: how far from 0.5 a probability is a preference, as in `mix.margin`.
    """
    label = combine(judgements)
    for name in dict.fromkeys(judgement.principle for judgement in readable(judgements)):
        p_a = combine(judgement for judgement in judgements if judgement.principle != name)
        yield WithoutPrinciple(name, p_a, _sign(label, margin) not in (0, _sign(p_a, margin)))


def _sign(p_a: float | None, margin: float) -> int:
    """1 where response a is preferred, -1 where b is, and 0 where neither is."""
    if p_a is None or not is_decided(p_a, margin):
        return 0
    return 1 if p_a > 0.5 else -1


def _hold(line: bytes, words: Sequence[str]) -> bool:
    """Whether a line holds all these words, ASCII in lower case, in any way that `canonical` reads as the same."""
    lower = line.lower()
    if all(word.encode() in lower for word in words):
        return True
    if line.isascii():
        return False
    text = canonical(line.decode(errors="replace")).casefold()
    return all(word in text for word in words)


def texts_of(values: object, key: str = "") -> Iterator[str]:
    """The texts that people and models wrote in a row: no ids, names or numbers."""
    if isinstance(values, str) and key in TEXTS:
        yield values
    elif isinstance(values, dict):
        for name, value in values.items():
            # What models replied to a sample stands under their names.
            yield from texts_of(value, "content" if key == "replies" else name)
    elif isinstance(values, list):
        for value in values:
            yield from texts_of(value, key)


WITH_TEXTS: Final = frozenset("messages prompt a b chosen rejected draft steps unusable readings replies".split())
"""The columns of shards in which such fields are."""

TEXTS: Final = frozenset("content a b chosen rejected draft critique revision rationale".split())
"""The fields of rows that hold text; what a principle says stands in the constitution, and is no match."""
