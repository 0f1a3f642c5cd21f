"""Columns that a user names, and what numbers in them may mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import InputError
from constitutional.data.comparisons import read_comparisons
from constitutional.data.reading import read_data
from constitutional.data.sources import DataFile

ROW = {"prompt": "Q?", "response_a": "Yes.", "response_b": "No."}


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **settings: object) -> list[tuple[str, float]]:
    file = DataFile.model_validate({"path": path, **settings})
    return [(row.chosen, row.probability) for row in read_comparisons([file]).preferences]


@pytest.mark.parametrize("column", ["preference", "label", "p_a"])
@pytest.mark.parametrize("first", [0.9, 0.1, 0.5])
def test_a_fraction_as_a_verdict_is_asked_about_and_read_as_a_probability_where_it_is_said_to_be(
    tmp_path: Path, column: str, first: float
) -> None:
    path = written(tmp_path, [{**ROW, column: first}, {**ROW, column: 0.25}])
    with pytest.raises(InputError, match=rf":1: '{column}' is {first}, which could be .*columns: {{probability: "):
        read(path, columns={"winner": column})
    expected = {0.9: ("Yes.", 0.9), 0.1: ("No.", 0.9), 0.5: ("Yes.", 0.5)}
    assert read(path, columns={"probability": column}) == [expected[first], ("No.", 0.75)]


def test_a_probability_lies_between_0_and_1_and_may_be_missing(tmp_path: Path) -> None:
    path = written(tmp_path, [{**ROW, "p": 1}, {**ROW, "p": None}, {**ROW, "p": 1.2}])
    with pytest.raises(InputError, match=":3: 'p' is 1.2; expected the probability that the first is better, 0 to 1"):
        read(path, columns={"probability": "p"})
    path = written(tmp_path, [{**ROW, "p": 1}, {**ROW, "p": None}])
    reading = read_data(DataFile(path=path, columns={"probability": "p"}))
    assert (reading.classes, reading.columns["probability"]) == ({"preference": 1, "unlabelled": 1}, "p")


def test_negative_strengths_still_say_that_the_first_is_better(tmp_path: Path) -> None:
    path = written(tmp_path, [{**ROW, "preference": -2}, {**ROW, "preference": 1}, {**ROW, "preference": 0}])
    assert read(path, strengths={2: 0.9, 1: 0.7}) == [("Yes.", 0.9), ("No.", 0.7), ("Yes.", 0.5)]


def test_a_column_that_is_named_and_that_no_form_reads_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [{**ROW, "winner": "a", "share": 0.5}])
    with pytest.raises(InputError, match="names 'share' as weight, which is not read in a file of this form.*leave wei"):
        read(path, columns={"weight": "share"})


def test_replies_without_a_rating_take_no_weight_from_the_others(tmp_path: Path) -> None:
    row = {"instruction": "Q?", "generations": ["A.", "B.", "C.", "D."]}
    path = written(tmp_path, [{**row, "ratings": [5, 1, None, None]}, {**row, "ratings": [3, 2, None, 1]}])
    rows = read_comparisons(path).preferences
    assert [row.weight for row in rows] == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
