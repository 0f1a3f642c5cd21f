"""Columns that a user names, and what numbers in them may mean."""

import json
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import InputError
from constitutional.cli.main import main
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


# --- What a new user's files held ---


def messages(asked: str, reply: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]


def test_a_prompt_that_the_messages_do_not_ask_is_told_of(tmp_path: Path) -> None:
    def warnings(prompt: str) -> tuple[str, ...]:
        row = {"prompt": prompt, "chosen": messages("B?", "x"), "rejected": messages("B?", "y")}
        return read_data(DataFile(path=written(tmp_path, [row]))).warnings

    assert warnings("A?") == ("rows whose 'prompt' does not stand in the messages of the replies, which are read: 1",)
    assert warnings("B?") == warnings("\n\nHuman: B?\n\nAssistant:") == ()


def test_labels_that_are_texts_and_other_names_of_columns_are_read(tmp_path: Path) -> None:
    rows = [{"q": "Q?", "text": text, "good": good} for text, good in (("A.", "True"), ("B.", "false"))]
    path = written(tmp_path, rows)
    assert read(path, columns={"prompt": "q", "reply": "text", "label": "good"}) == [("A.", 1.0)]
    rows = [{"prompt": "Q?", "completion": row["text"], "label": row["good"]} for row in rows]
    assert read(written(tmp_path, rows)) == [("A.", 1.0)]


def test_a_verdict_on_the_first_turn_is_read_by_the_first_turn(tmp_path: Path) -> None:
    row = {f"conversation_{side}": messages("Q?", side) + messages("And?", side * 2) for side in "ab"}
    path = written(tmp_path, [{**row, "winner": "model_b", "turn": turn} for turn in (1, 2)])
    reading = read_data(DataFile(path=path))
    assert reading.classes == {"preference": 1, "different_contexts": 1}
    assert "pairs whose replies answer different conversations: 1; left out" in reading.warnings
    assert (reading.samples[0]["chosen"], reading.samples[0]["messages"]) == ("b", messages("Q?", "")[:1])


def test_a_winner_may_be_a_models_name(tmp_path: Path) -> None:
    row = {**ROW, "model_a": "gpt", "model_b": "llama"}
    path = written(tmp_path, [{**row, "winner": winner} for winner in ("llama", "gpt", "tie")])
    assert read(path) == [("No.", 1.0), ("Yes.", 1.0), ("Yes.", 0.5)]
    with pytest.raises(InputError, match=":1: 'winner' is \"qwen\""):
        read(written(tmp_path, [{**row, "winner": "qwen"}]))


def test_objects_over_several_lines_are_read_and_splits_in_one_object_are_named(tmp_path: Path) -> None:
    rows = [{"prompt": f"{name}?", "chosen": "A.", "rejected": "B."} for name in "ab"]
    path = tmp_path / "pretty.jsonl"
    path.write_text("\n".join(json.dumps(row, indent=2) for row in rows))
    assert read_data(DataFile(path=path)).rows == 2
    path = tmp_path / "splits.json"
    path.write_text(json.dumps({"train": rows, "test": rows[:1]}))
    with pytest.raises(InputError, match="holds the splits train, test; write the rows of one to a file of its own"):
        read_data(DataFile(path=path))


def test_a_file_that_is_not_there_is_not_asked_for_with_the_command_that_was_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("missing.jsonl", "empty"):
        assert main(["data", str(tmp_path / name)]) == 2
        error = capsys.readouterr().err
        assert "expected preferences, prompts or an evaluation set" in error
        assert "constitutional data FILE" not in error


def test_forms_have_the_names_of_their_sets_alone(tmp_path: Path) -> None:
    assert read_data(DataFile(path=written(tmp_path, rows_of("stack_exchange")))).format == "ranks by 'pm_score'"
    assert read_data(DataFile(path=written(tmp_path, rows_of("nectar")))).format == "Nectar"
    assert read_data(DataFile(path=written(tmp_path, rows_of("chatbot_arena")))).format == "lmarena"
    own = read_data(DataFile(path=written(tmp_path, [{**ROW, "winner": "a"}])))
    assert own.format == "'response_a' and 'response_b'"


def test_a_strength_that_has_no_probability_is_told_of(tmp_path: Path) -> None:
    path = written(tmp_path, [{**ROW, "s": strength} for strength in (-3, 2)])
    reading = read_data(DataFile(path=path, columns={"strength": "s"}, strengths={1: 0.7, 2: 0.8}))
    note = "pairs of the strength 3, which 'strengths' does not name, so that it counts 1.0: 1"
    assert note in reading.warnings
    assert reading.columns["strength"] == "s"
