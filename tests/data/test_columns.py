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
    with pytest.raises(InputError, match=r":3: 'p' is 1.2; expected the probability that the first is better, 0 to 1"):
        read(path, columns={"probability": "p"})
    path = written(tmp_path, [{**ROW, "p": 1}, {**ROW, "p": None}])
    reading = read_data(DataFile(path=path, columns={"probability": "p"}))
    assert (reading.classes, reading.columns["probability"]) == ({"preference": 1, "unlabelled": 1}, "p")


def test_negative_strengths_still_say_that_the_first_is_better(tmp_path: Path) -> None:
    path = written(tmp_path, [{**ROW, "preference": -2}, {**ROW, "preference": 1}, {**ROW, "preference": 0}])
    assert read(path, strengths={2: 0.9, 1: 0.7}) == [("Yes.", 0.9), ("No.", 0.7), ("Yes.", 0.5)]


def test_a_column_that_is_named_and_that_no_form_reads_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, [{**ROW, "winner": "a", "share": 0.5}])
    with pytest.raises(
        InputError, match=r"names 'share' as weight, which is not read in a file of this form.*leave wei"
    ):
        read(path, columns={"weight": "share"})


def test_replies_without_a_rating_take_no_weight_from_the_others(tmp_path: Path) -> None:
    row = {"instruction": "Q?", "generations": ["A.", "B.", "C.", "D."]}
    path = written(tmp_path, [{**row, "ratings": [5, 1, None, None]}, {**row, "ratings": [3, 2, None, 1]}])
    rows = read_comparisons(path).preferences
    assert [row.weight for row in rows] == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


# --- Files that a model labelled, and mixtures of files ---

SETS = Path(__file__).parent / "sets"


def rows_of(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((SETS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return rows


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("ultrafeedback", "is labelled by GPT-4 (UltraFeedback)"),
        ("ultrafeedback_binarized", "is labelled by GPT-4 (UltraFeedback)"),
        ("argilla_ultrafeedback", "is labelled by GPT-4 (UltraFeedback)"),
        ("argilla_ultrafeedback_cleaned", "is labelled by GPT-4 (UltraFeedback)"),
        ("nectar", "is labelled by GPT-4 (Nectar)"),
        ("distilabel_orca", "is labelled by GPT-4 (Orca)"),
    ],
)
def test_sets_that_a_model_labelled_are_said_to_be_and_may_count_as_the_ais(tmp_path: Path, name: str, by: str) -> None:
    path = written(tmp_path, rows_of(name))
    (warning,) = [line for line in read_data(DataFile(path=path)).warnings if by in line]
    assert f"mix.human=[{{path: {path}, source: ai}}]" in warning
    for source in (None, "ai", "human"):
        read = read_comparisons([DataFile(path=path, source=source)])
        assert {row.source for row in read.preferences} == {source or "human"}
        assert read.labelled == {"rows.jsonl": by}
    assert not [line for line in read_data(DataFile(path=path, source="human")).warnings if by in line]


def test_a_rater_that_is_a_model_is_named_and_a_person_is_not(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "output_1": "Yes.", "output_2": "No.", "preference": 2}
    path = written(tmp_path, [{**row, "annotator": "alpaca_eval_gpt4"}])
    assert read_comparisons(path).labelled == {"rows.jsonl": "is labelled by alpaca_eval_gpt4"}
    path = written(tmp_path, [{**row, "annotator": "worker 3"}])
    assert read_comparisons(path).labelled == {}
    assert read_comparisons([DataFile(path=path, source="ai")]).labelled == {
        "rows.jsonl": "is labelled by a model, as its settings say"
    }


def test_what_a_row_says_of_its_source_goes_before_what_is_said_of_the_file(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "chosen": "Yes.", "rejected": "No.", "probability": 0.9}
    path = written(tmp_path, [{**row, "source": "human"}])
    assert read_comparisons([DataFile(path=path, source="ai")]).preferences[0].source == "human"


def test_weights_of_a_mixture_count_what_pairs_weigh_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    pairs = [{"prompt": f"P{number}?", "chosen": "Yes.", "rejected": "No."} for number in range(10)]
    ranked: list[dict[str, Any]] = [
        {"prompt": f"R{number}?", "answers": [{"answer": text, "rank": rank} for rank, text in enumerate("abcd")]}
        for number in range(2)
    ]  # twelve pairs that weigh two
    for name, rows in {"pairs": pairs, "ranked": ranked}.items():
        (tmp_path / name).mkdir()
        written(tmp_path / name, rows)
    files = [DataFile(path=tmp_path / name / "rows.jsonl", weight=1) for name in ("pairs", "ranked")]
    read = read_comparisons(files)
    assert [row.weight for row in read.preferences] == pytest.approx([1.0] * 2 + [1 / 6] * 12)
    assert (read.beyond, read.counts) == (8, {"preference": 14})
    read = read_comparisons([files[0], files[1].model_copy(update={"weight": 4})])
    assert [row.weight for row in read.preferences] == pytest.approx([1 / 6] * 12)  # half a pair is none
    assert read.beyond == 10


def test_ties_that_a_mixture_leaves_out_are_not_counted_as_ties(tmp_path: Path) -> None:
    row = {"response_a": "Yes.", "response_b": "No.", "winner": "tie"}
    for name, count in (("few", 1), ("many", 5)):
        (tmp_path / name).mkdir()
        written(tmp_path / name, [{"prompt": f"{name} {number}?", **row} for number in range(count)])
    read = read_comparisons([DataFile(path=tmp_path / name / "rows.jsonl", weight=1) for name in ("few", "many")])
    assert (read.beyond, read.counts, len(read.preferences)) == (4, {"tie": 2}, 2)


def test_a_file_without_a_pair_to_train_on_is_refused_with_why(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {**ROW, "winner": None},
        {**ROW, "winner": "both_bad"},
        {**ROW, "response_b": "Yes.", "winner": "a"},
    ]
    path = written(tmp_path, rows)
    why = "no pair that can be trained on (1 without a verdict, 1 both replies bad, 1 equal replies)"
    with pytest.raises(InputError) as error:
        read_comparisons(path)
    assert why in str(error.value)
