from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import compute, parquet

from constitutional.base import shards
from constitutional.base.errors import RunError
from constitutional.base.records import (
    Comparison,
    Judgement,
    Message,
    Preference,
    Prompt,
    Reading,
    Record,
    Revision,
    RevisionStep,
    Rollout,
    Sample,
    Verdict,
)
from constitutional.base.shards import (
    PlainRow,
    PlainRows,
    Row,
    Shards,
    column_of,
    count_of,
    find,
    is_sharded,
    json_of,
    json_text,
    read_artifact,
    write_artifact,
)

ODD = 'a "quote"\n\\ and \u2028 é 中 \U0001f600'
PROMPT = Prompt(messages=(Message("user", ODD), Message("assistant", "", extra='{"tool_calls": []}')), info={"k": "v"})
READING = Reading(order="b_first", rationale=ODD, p_a=0.1 + 0.2, bounded=True)
STEP = RevisionStep(principle="calm", principle_text="Be.", critique=None, found_nothing=True, revision=ODD)
ROWS: list[Record] = [
    PROMPT,
    Prompt.of("x"),
    Comparison(prompt=PROMPT, a=ODD, b="", model="m"),
    Judgement(comparison="c", principle="p", principle_text=ODD, labeler="l", readings=(READING,), p_a=1 / 3),
    Judgement(comparison="c", principle="p", principle_text="", labeler="l", readings=(), judge="second", weight=2),
    Judgement(comparison="c", principle="p", principle_text="", labeler="l", readings=(), gives_way_to=("q", "r")),
    Preference(prompt=PROMPT, chosen="a", rejected="b", probability=0.5, source="human", comparison="c", weight=0.25),
    Preference(prompt=PROMPT, chosen="a", rejected="b", probability=1, source="ai", comparison="c", principles=("p",)),
    Revision(prompt=PROMPT, draft="d", steps=(STEP, STEP), problem="it is empty", unusable=STEP),
    Revision(prompt=PROMPT, draft="d", steps=()),
    Rollout(phase=1, prompt="p", reply="r", reward=-0.0, kl=None, phase_kl=2.5, length=3, truncated=False),
    Sample(prompt=PROMPT, replies={"base": ODD, "policy": ""}, cut_off=("base",)),
    Verdict(comparison="c", rater="ann", choice="a", principle=None, seconds=1.5, exposed=False, gold="b"),
    Verdict(comparison="c", rater="ann", choice="tie"),
]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Artifacts of more than three rows are shards of three rows, of which two are written at once."""
    monkeypatch.setattr(shards, "LARGE", 3)
    monkeypatch.setattr(shards, "AT_ONCE", 2)


def prompts(count: int) -> list[Prompt]:
    return [Prompt.of(f"Question {number}?") for number in range(count)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: type(row).__name__)
@pytest.mark.usefixtures("small")
def test_every_kind_of_row_comes_back_as_it_was(tmp_path: Path, row: Record) -> None:
    path, count = write_artifact(tmp_path, "rows", [row] * 5)
    back = list(Shards(path, type(row)))
    assert count == 5
    assert back == [row] * 5
    assert [each.id for each in back] == [row.id] * 5
    assert [each.model_dump_json() for each in back] == [row.model_dump_json()] * 5
    assert parquet.read_table(path / "00000.parquet")["id"].to_pylist() == [row.id] * 3


@pytest.mark.usefixtures("small")
def test_few_rows_are_json_lines_and_many_are_shards(tmp_path: Path) -> None:
    few, many = prompts(3), prompts(7)
    assert write_artifact(tmp_path, "few", few) == (tmp_path / "few.jsonl", 3)
    path, count = write_artifact(tmp_path, "many", iter(many))
    assert (path, count, count_of(path)) == (tmp_path / "many", 7, 7)
    assert [file.name for file in sorted(path.iterdir())] == ["00000.parquet", "00001.parquet", "00002.parquet"]
    assert [parquet.read_metadata(file).num_rows for file in sorted(path.iterdir())] == [3, 3, 1]
    assert not is_sharded(tmp_path / "few.jsonl")
    assert list(read_artifact(tmp_path / "few.jsonl", Prompt)) == few
    assert list(read_artifact(path, Prompt)) == many
    rows = Shards(path, Prompt)
    assert len(rows) == 7
    assert list(rows) == list(rows) == many  # read anew
    for field, of in {"id": [row.id for row in many], "split": ["train"] * 7}.items():
        assert list(column_of(rows, field)) == list(column_of(many, field)) == of


def test_the_largest_artifact_of_json_lines_has_a_hundred_thousand_rows() -> None:
    assert shards.LARGE == 100_000


@pytest.mark.usefixtures("small")
def test_rows_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def failing() -> Iterator[Prompt]:
        yield from prompts(8)
        raise RuntimeError("the model is gone")

    with pytest.raises(RuntimeError, match="gone"):
        write_artifact(tmp_path, "prompts", failing())
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".prompts.tmp").mkdir()  # of a process that was killed
    (tmp_path / ".prompts.tmp" / "00007.parquet").write_bytes(b"half a file")
    write_artifact(tmp_path, "prompts", prompts(9))
    path, _ = write_artifact(tmp_path, "prompts", prompts(5))  # in place of the former
    assert list(Shards(path, Prompt)) == prompts(5)
    assert [entry.name for entry in tmp_path.iterdir()] == ["prompts"]


@pytest.mark.usefixtures("small")
def test_rows_are_not_held_while_they_are_written_and_read(tmp_path: Path) -> None:
    alive = 0
    most = 0

    class Counted(Prompt):
        def model_post_init(self, _context: object) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    path, _ = write_artifact(tmp_path, "rows", (Counted(messages=PROMPT.messages, source=str(n)) for n in range(100)))
    assert most <= 3 + 1 + 2  # those from which it is seen that they are many, and those that are written at once
    most = 0
    assert sum(1 for _ in Shards(path, Counted)) == 100
    assert most <= 2


@pytest.mark.usefixtures("small")
def test_what_gives_rows_ends_where_they_cannot_be_written(tmp_path: Path) -> None:
    ended = []

    def asking() -> Iterator[Prompt]:
        try:
            yield from prompts(9)
        finally:
            ended.append(True)

    made = asking()  # held, so that nothing but the writer ends it
    with pytest.raises(RunError, match="cannot be written: No such file"):
        write_artifact(tmp_path / "missing", "prompts", made)
    assert ended == [True]


@pytest.mark.usefixtures("small")
def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    path, _ = write_artifact(tmp_path, "prompts", prompts(7))
    (path / "00001.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RunError, match=r"00001\.parquet: cannot be read: .*; the run writes this file and nobody else"):
        list(Shards(path, Prompt))
    path, _ = write_artifact(tmp_path, "rollouts", [row for row in ROWS if isinstance(row, Rollout)] * 4)
    with pytest.raises(RunError, match=r"00000\.parquet:1: expected a Prompt: messages: Field required|phase: Extra"):
        list(Shards(path, Prompt))


@pytest.mark.usefixtures("small")
def test_rows_are_found_by_a_column_with_their_place(tmp_path: Path) -> None:
    pairs = [Comparison(prompt=prompt, a="A", b=f"b{number}") for number, prompt in enumerate(prompts(7))]
    path, _ = write_artifact(tmp_path, "comparisons", pairs)
    wanted = pa.array(["b1", "b4", "b6"])
    found = list(find(path, Comparison, ("b", "chosen"), lambda column: compute.is_in(column, wanted)))
    assert [(file.name, number) for file, number, _ in found] == [
        ("00000.parquet", 2),
        ("00001.parquet", 2),
        ("00002.parquet", 1),
    ]
    assert [row for _, _, row in found] == [
        {"id": pairs[number].id, **pairs[number].model_dump(mode="json")} for number in (1, 4, 6)
    ]
    assert list(find(path, Comparison, ("chosen",), compute.is_valid)) == []


@pytest.mark.parametrize(
    "value", ['é 中 \U0001f600 \u2028 \\ " \n\x00', "half a pair \ud800", [0.1 + 0.2, 1e-9, 5e-324, None, {}]]
)
def test_what_a_column_of_json_says_is_what_was_written(value: object) -> None:
    assert json_of(json_text(value)) == value


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.usefixtures("small")
def test_rows_that_come_some_at_once_are_written_like_those_that_come_one_by_one(tmp_path: Path, count: int) -> None:
    rows = [Comparison(prompt=PROMPT, a=ODD, b=str(number), model="m") for number in range(count + 2)]
    texts = {"prompt": [json_text(PROMPT.model_dump(mode="json"))] * count, "a": [ODD] * count, "model": ["m"] * count}
    some = {"id": [row.id for row in rows[:count]], "b": [row.b for row in rows[:count]], **texts}
    alone = {"prompt": texts["prompt"][0], "a": ODD, "b": rows[count].b, "model": "m"}
    mixed: list[Row] = [PlainRows(Comparison, some), PlainRow(Comparison, rows[count].id, alone), rows[count + 1]]
    (tmp_path / "singly").mkdir()
    path, written = write_artifact(tmp_path, "rows", mixed)
    other, _ = write_artifact(tmp_path / "singly", "rows", rows)
    assert written == count + 2
    assert list(read_artifact(path, Comparison)) == rows
    assert [file.read_bytes() for file in sorted(path.glob("*")) or [path]] == [
        file.read_bytes() for file in sorted(other.glob("*")) or [other]
    ]
