"""The table that people fill in."""

import csv
import gzip
import io
from pathlib import Path

import pytest

from constitutional.base.errors import InputError
from constitutional.base.records import Verdict
from constitutional.base.text import neutralised, restored
from constitutional.data.votes import table
from constitutional.data.votes.reading import read_file
from tests.data.votes.made_up import (
    PRINCIPLES,
    TEXTS,
    clicked,
    comparisons,
    imported,
    items,
    ordered,
    votes,
    whole,
    worked,
)

ROWS = comparisons()
ITEMS = items(ROWS)
VOTES = votes(ITEMS, principles=True)


def rows_of(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline="")))


def written(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, rows[0].keys(), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def test_votes_go_out_and_come_back(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_bytes(table.tasks(ITEMS.values(), VOTES))
    read = imported(path, ROWS, "csv")
    assert read.refused == []
    assert ordered(read.verdicts) == ordered(whole(VOTES))
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert imported(path, ROWS, "csv").verdicts == read.verdicts


def test_what_votes_took_and_replace_goes_out_and_comes_back(tmp_path: Path) -> None:
    path, made = tmp_path / "votes.csv", worked(ITEMS)
    path.write_bytes(table.tasks(ITEMS.values(), made))
    read = imported(path, ROWS, "csv")
    assert (read.refused, read.replaced) == ([], 0)
    assert ordered(read.verdicts) == ordered(whole(made))
    for row in csv.reader(io.StringIO(path.read_text("utf-8-sig"), newline="")):
        assert not [cell for cell in row if cell[:1] in tuple("=+-@\t\r\n\uff1d")]


def test_a_spreadsheet_may_write_truth_values_and_spaces(tmp_path: Path) -> None:
    (vote,) = (row for row in worked([next(iter(ITEMS))]) if row.withdrawn)
    rows = rows_of(table.tasks([ITEMS[vote.comparison]], [vote]))
    rows[0] |= {"exposed": "TRUE", "withdrawn": " Yes", "seconds": " 12 "}
    path = tmp_path / "votes.csv"
    path.write_text(written(rows), encoding="utf-8", newline="")
    assert imported(path, ROWS, "csv").verdicts == [vote.model_copy(update={"seconds": 12.0})]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_that_a_person_filled_in_comes_back(tmp_path: Path, delimiter: str) -> None:
    votes_by_item = {vote.comparison: vote for vote in VOTES[2::5]}
    rows = rows_of(table.tasks(ITEMS.values()))
    assert all(row["choice"] == row["rater"] == "" for row in rows)
    for row in rows:
        vote = votes_by_item[row["comparison"].removeprefix("c_")]
        choice = clicked(ITEMS[vote.comparison], vote) or vote.choice
        row |= {
            "rater": f" {vote.rater} ",
            "choice": f" {choice.replace('_', ' ').title()} ",
            "strength": f"{vote.strength}.0",
        }
    path = tmp_path / "filled.csv"
    path.write_text(written(rows, delimiter).replace("\r\n", "\n"), encoding="utf-8")  # and without the mark
    read = imported(path, ROWS, "csv")
    assert read.refused == []
    made = [vote.model_copy(update={"principle": None, "rationale": ""}) for vote in votes_by_item.values()]
    assert ordered(read.verdicts) == ordered(made)


def test_a_table_by_principle_is_filled_in(tmp_path: Path) -> None:
    (name, item) = next(iter(ITEMS.items()))
    rows = rows_of(table.tasks([item], (), PRINCIPLES))
    assert [restored(row["principle_text"]) for row in rows] == ["", *PRINCIPLES.values()]
    for row, choice in zip(rows, ("right", " Not applicable", "LEFT"), strict=True):
        row |= {"rater": "x", "choice": choice}
    path = tmp_path / "votes.csv"
    path.write_text(written([*rows, {**rows[1], "rater": "y", "principle": "BRIEF"}]), encoding="utf-8", newline="")
    left, right = (item.left_is, "b" if item.left_is == "a" else "a")
    read = imported(path, ROWS, "csv")
    assert [(row.rater, row.principle, row.choice) for row in read.verdicts] == [
        ("x", None, right),
        ("x", "Calm-2", left),
    ]
    assert {row.comparison for row in read.verdicts} == {name}
    assert (sum(read.left_out.values()), read.refused) == (2, [])


def test_a_later_answer_that_a_principle_does_not_apply_takes_the_vote_back(tmp_path: Path) -> None:
    (name, item) = next(iter(ITEMS.items()))
    vote = Verdict(comparison=name, rater="x", choice="a", principle="brief")
    rows = rows_of(table.tasks([item], [vote, vote.model_copy(update={"rater": "y"})]))
    rows.append(rows[0] | {"choice": "not_applicable"})
    path = tmp_path / "votes.csv"
    path.write_text(written(rows), encoding="utf-8", newline="")
    read = imported(path, ROWS, "csv")
    assert ([row.rater for row in read.verdicts], read.replaced, read.refused) == (["y"], 1, [])


def test_no_cell_is_a_formula() -> None:
    for row in csv.reader(io.StringIO(table.tasks(ITEMS.values(), VOTES).decode("utf-8-sig"), newline="")):
        assert not [cell for cell in row if cell[:1] in tuple("=+-@\t\r\n\uff1d")]


@pytest.mark.parametrize("text", [*TEXTS, "'", "''=x", "'plain", "\r\n=", "\uff0b1", " =x"])
def test_a_cell_is_restored(text: str) -> None:
    assert restored(neutralised(text)) == text
    assert neutralised("=x") == "'=x"


def test_begins_with_the_mark_that_spreadsheets_look_for() -> None:
    assert table.tasks(ITEMS.values()).startswith(b"\xef\xbb\xbfcomparison,")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"comparison": "1.23E+15"}, "no comparison"),
        ({"left": "Edited."}, "responses"),
        ({"left_is": "c"}, "left_is"),
        ({"rater": " "}, "who voted"),
        ({"choice": "a"}, "expected one of left"),
        ({"choice": "not_applicable"}, "expected one of left"),  # in all, where no principle could apply
        ({"principle": "clam"}, "no principle 'clam'; expected brief, Calm-2"),
        ({"strength": "5"}, "strength"),
        ({"strength": "very"}, "strength"),
        ({"strength": "3.5"}, "strength"),
        ({"strength": "3,5"}, "strength"),
        ({"strength": "1-2"}, "strength"),
        ({"strength": "12"}, "strength"),
        ({"strength": "4e0"}, "strength"),
        ({"seconds": "a while"}, "expected seconds"),
        ({"seconds": "-1"}, "expected seconds"),
        ({"seconds": "inf"}, "expected seconds"),
        ({"exposed": "maybe"}, "exposed is 'maybe'; expected yes, no"),
        ({"withdrawn": "yes", "choice": "left"}, "a withdrawn vote says 'left'; expected skip"),
        ({"in_place_of": "[1]"}, "a list of votes"),
        ({"in_place_of": "[" * 100_000}, "a list of votes"),
        ({"in_place_of": '[{"choice": "left"}]'}, "who voted"),
        ({"in_place_of": '[{"choice": "centre", "rater": "x"}]'}, "choice is 'centre'"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, change: dict[str, str], problem: str) -> None:
    rows = rows_of(table.tasks(list(ITEMS.values())[:1], VOTES[:3]))
    rows[1] |= change
    path = tmp_path / "votes.csv"
    path.write_text(written(rows), encoding="utf-8", newline="")
    read = imported(path, ROWS, "csv")
    assert ordered(read.verdicts) == ordered(whole([VOTES[0], VOTES[2]]))
    (line,) = read.refused
    assert line.startswith(f"{path}:3: ")
    assert problem in line
    assert "expected" in line


def test_lines_are_counted_through_cells_of_several_lines(tmp_path: Path) -> None:
    rows = rows_of(table.tasks(list(ITEMS.values())[:1], VOTES[:3]))
    rows[0]["reason"] = "one\ntwo\nthree"
    rows[1]["choice"] = "neither"
    text = written(rows)
    path = tmp_path / "votes.csv"
    path.write_text(
        text + 'only,three,cells\r\n"a quote" astray,,,,,,,,,\r\n' + written(rows[2:]).split("\n", 1)[1], "utf-8"
    )
    read = imported(path, ROWS, "csv")
    places = [line.removeprefix(f"{path}:").partition(":")[0] for line in read.refused]
    assert sorted(places, key=int) == ["5", "7", "8"]
    assert len(read.verdicts) == 2
    assert read.replaced == 1  # the last row stands twice


def test_the_later_row_of_one_rater_counts(tmp_path: Path) -> None:
    (name, item) = next(iter(ITEMS.items()))
    old, new = (Verdict(comparison=name, rater="x", choice=choice) for choice in ("tie", "both_bad"))
    path = tmp_path / "votes.csv"
    path.write_bytes(table.tasks([item], [old, new]))
    read = imported(path, ROWS, "csv")
    assert (read.verdicts, read.replaced, read.refused) == ([new], 1, [])


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv"
    path.write_text("comparison,choice,rater\nc_1,left,x\n" + f"{ITEMS[VOTES[0].comparison].name},left,x\n")
    read = imported(path, ROWS, "csv")
    assert [line.partition(":")[2].partition(":")[0] for line in read.refused] == ["2", "3"]
    assert "left response is missing" in read.refused[1]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        ("choice".encode("utf-16"), "UTF-16"),
        (b"comparison,choice\nx,\xe9t\xe9", "2: is not UTF-8"),
        (gzip.compress(b"comparison,choice" * 99, mtime=0)[:-9], "gzip"),
        (b'[{"id": 1', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"a": 1,\n}', "JSON"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "votes"
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem) as error:
        read_file(path)
    assert error.value.exit_code == 2
    with pytest.raises(InputError, match="No such file"):
        read_file(tmp_path / "none")
