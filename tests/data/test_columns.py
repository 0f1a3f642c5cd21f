"""Columns that a user names, and what numbers in them may mean."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from constitutional.base.errors import InputError
from constitutional.cli.main import main
from constitutional.data.comparisons import read_comparisons
from constitutional.data.prompts import load_prompt_set
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
    path = written(tmp_path, [{**row, "source": " AI"}])  # however it is written
    assert read_comparisons([DataFile(path=path)]).preferences[0].source == "ai"


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


# --- Columns with a name of ours, and settings that a form does not read ---

PAIR = {"prompt": "Q?", "chosen": "Yes.", "rejected": "No."}


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *(("weight", 2), ("weight", "heavy"), ("probability", 87), ("probability", 0.2), ("principle", ["a", "b"])),
        *(("principle", 3), ("rater", {"id": 7}), ("rater", True), ("strength", "strong"), ("strength", -2)),
        *(("raters", 3), ("raters", ["ann"])),
    ],
)
def test_a_column_of_another_set_with_a_name_of_ours_is_not_read_and_named(
    tmp_path: Path, column: str, value: object
) -> None:
    path = written(tmp_path, [{**PAIR, column: value}] * 2)
    reading = read_data(DataFile(path=path))
    assert (reading.classes, reading.ignored_columns) == ({"preference": 2}, (column,))
    (warning,) = [line for line in reading.warnings if "which are not read" in line]
    assert f"'{column}' is " in warning
    assert [(row.probability, row.weight, row.principles) for row in read_comparisons(path).preferences] == [
        (1.0, 1.0, ())
    ] * 2
    if column == "raters":  # no setting names it
        return
    with pytest.raises(InputError, match=rf":1: '{column}'.* is .*expected"):
        read(path, **({"strengths": {2: 0.8}} if column == "strength" else {"columns": {column: column}}))


def test_raters_has_no_setting_and_is_a_list_of_numbers(tmp_path: Path) -> None:
    preferences = read_comparisons(written(tmp_path, [{**PAIR, "raters": [2, -1]}])).preferences
    assert preferences[0].rests_on == ("rows.jsonl:1 (rater 1: +2)", "rows.jsonl:1 (rater 2: -1)")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        *(({"weight": 0.5}, {"weight": 2}), ({"probability": 0.9}, {"probability": 0.2})),
        *(({"principle": "brief"}, {"principle": 3}), ({"strength": 2}, {"strength": -2})),
        *(({"strength": 2}, {"strength": "strong"}), ({"raters": [1]}, {"raters": 3})),
    ],
)
def test_a_column_of_ours_that_a_later_row_breaks_is_refused_with_its_line(
    tmp_path: Path, right: dict[str, Any], wrong: dict[str, Any]
) -> None:
    path = written(tmp_path, [{**PAIR, **right}, {**PAIR, **wrong}])
    with pytest.raises(InputError, match=rf":2: '{next(iter(wrong))}' is .*expected"):
        read_data(DataFile(path=path))


@pytest.mark.parametrize("column", ["rater", "annotator", "judge", "worker"])
def test_a_rater_is_looked_for_under_the_same_names_in_every_form_and_may_be_a_number(
    tmp_path: Path, column: str
) -> None:
    for row in (PAIR, {**ROW, "winner": "a"}):
        path = written(tmp_path, [{**row, column: 7}, {**row, column: "ann"}, {**row, column: 7.0}])
        assert [row.rests_on for row in read_comparisons(path).preferences] == [
            ("rows.jsonl:1 (7)",),
            ("rows.jsonl:2 (ann)",),
            ("rows.jsonl:3 (7)",),
        ]
        reading = read_data(DataFile(path=path))
        assert (reading.columns["rater"], reading.duplicates) == (column, 1)


def test_a_named_rater_may_be_a_number_and_no_list(tmp_path: Path) -> None:
    for row in (PAIR, {**ROW, "winner": "a"}):
        path = written(tmp_path, [{**row, "who": None}, {**row, "who": 7}, {**row, "who": ["ann"]}])
        with pytest.raises(InputError, match=r":3: 'who' is \[\"ann\"\]; expected a name"):
            read(path, columns={"rater": "who"})
        path = written(tmp_path, [{**row, "who": ["ann"]}])
        with pytest.raises(InputError, match=r"'who', which 'columns' names as rater, is \[\"ann\"\]; expected a name"):
            read(path, columns={"rater": "who"})


def test_our_columns_that_only_later_rows_have_are_listed_as_read(tmp_path: Path) -> None:
    reading = read_data(DataFile(path=written(tmp_path, [PAIR, {**PAIR, "weight": 0.5, "rater": "ann"}])))
    assert (reading.columns["weight"], reading.columns["rater"], reading.ignored_columns) == ("weight", "rater", ())


def test_what_goes_with_a_prompt_or_a_label_is_read_where_the_first_row_lacks_it(tmp_path: Path) -> None:
    pair: dict[str, Any] = {"instruction": "Translate:", "chosen": "le chat", "rejected": "cat"}
    late = {"input": "the cat", "system": "S", "probability": 0.6, "source": "ai", "principles": ["brief"]}
    path = written(tmp_path, [pair, pair | late])
    first, second = read_comparisons(path).preferences
    assert [(turn.role, turn.content) for turn in first.prompt.messages] == [("user", "Translate:")]
    assert [(turn.role, turn.content) for turn in second.prompt.messages] == [
        ("system", "S"),
        ("user", "Translate:\nthe cat"),
    ]
    assert (first.source, second.source, second.probability, second.principles) == ("human", "ai", 0.6, ("brief",))
    reading = read_data(DataFile(path=path))
    assert (reading.columns.keys() >= late.keys(), reading.ignored_columns) == (True, ())


def test_a_system_message_that_the_first_row_lacks_goes_before_messages_of_the_replies(tmp_path: Path) -> None:
    turns = {name: [{"role": "user", "content": "Q"}, {"role": "assistant", "content": name}] for name in ("a", "b")}
    row: dict[str, Any] = {"prompt": "Q", "chosen": turns["a"], "rejected": turns["b"]}
    _, second = read_comparisons(written(tmp_path, [row, row | {"system": "S"}])).preferences
    assert [turn.content for turn in second.prompt.messages] == ["S", "Q"]


def test_a_stated_probability_is_read_in_a_row_of_as_many_columns_as_the_first(tmp_path: Path) -> None:
    pair = {"chosen": "Yes.", "rejected": "No."}
    rows: list[dict[str, Any]] = [
        {"prompt": "1?", "system": "S", **pair},
        {"prompt": "2?", "probability": 0.6, **pair},
    ]
    assert read(written(tmp_path, rows)) == [("Yes.", 1.0), ("Yes.", 0.6)]


def test_a_strength_of_0_is_a_tie_and_numbers_of_tables_are_strengths(tmp_path: Path) -> None:
    rows = [{**PAIR, "strength": strength} for strength in (2, 0)]
    reading = read_data(DataFile(path=written(tmp_path, rows), strengths={2: 0.8}))
    assert reading.classes == {"preference": 1, "tie": 1}
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected,strength\nQ?,Yes.,No.,2\nR?,Yes.,No.,\n")
    assert read(tmp_path / "rows.csv", strengths={2: 0.8}) == [("Yes.", 0.8), ("Yes.", 1.0)]


def test_strengths_that_change_nothing_are_told_of(tmp_path: Path) -> None:
    for row, told in (
        (PAIR, True),
        ({**PAIR, "probability": 0.9, "strength": 2}, True),
        ({**PAIR, "strength": 2}, False),
    ):
        reading = read_data(DataFile(path=written(tmp_path, [row]), strengths={2: 0.8}))
        assert any("'strengths' is set and changes nothing" in line for line in reading.warnings) == told
    path = written(tmp_path, [{"prompt": "Q?"}])
    with pytest.raises(InputError, match="'strengths' is set, which is not read in prompts"):
        read_data(DataFile(path=path, strengths={2: 0.8}))


SCORED = [
    {"prompt": "Q?", "response": text, "helpfulness": 1, "correctness": score, "place": 5 - score, "note": "x"}
    for text, score in (("Low.", 1), ("High.", 4))
]


def test_a_score_or_a_rank_of_one_reply_a_row_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, SCORED)
    assert read(path)[0][1] == 0.5  # as helpful
    for role, column in (("score", "correctness"), ("rank", "place")):
        for columns in ({role: column}, {"prompt": "prompt", "reply": "response", role: column}):
            assert read(path, columns=columns) == [("High.", 1.0)]
            assert read_data(DataFile.model_validate({"path": path, "columns": columns})).columns[role] == column
    assert read(path, columns={"score": "correctness"}, strengths={3: 0.9}) == [("High.", 0.9)]


def test_a_score_or_a_rank_within_a_list_or_beside_it_can_be_named(tmp_path: Path) -> None:
    items = [{"body": "A.", "rank": 1, "votes": 2, "place": 2}, {"body": "B.", "rank": 2, "votes": 5, "place": 1}]
    path = written(tmp_path, [{"prompt": "Q?", "answers": items}])
    for role, key in (("score", "votes"), ("rank", "place")):
        columns = {"replies": "answers.body", role: f"answers.{key}"}
        assert read(path, columns=columns) == [("B.", 1.0)]
        assert read_data(DataFile.model_validate({"path": path, "columns": columns})).columns == {
            "prompt": "prompt",
            **columns,
        }
    row = {"prompt": "Q?", "texts": ["A.", "B."], "ratings": [2, 1], "votes": [2, 5], "place": [2, 1]}
    path = written(tmp_path, [row])
    for role in ("votes", "place"):
        columns = {"replies": "texts", "score" if role == "votes" else "rank": role}
        assert read(path, columns=columns) == [("B.", 1.0)]


@pytest.mark.parametrize(
    ("rows", "columns", "problem"),
    [
        (SCORED, {"prompt": "prompt", "reply": "response", "label": "correctness"}, "columns: {score: correctness}"),
        (SCORED, {"reply": "response", "strength": "correctness"}, "expected two replies beside it"),
        (SCORED, {"reply": "response", "winner": "note"}, "expected two replies beside it"),
        (SCORED, {"reply": "helpfulness"}, "'helpfulness', which 'columns' names as reply, is 1; expected a text or m"),
        ([{"prompt": "Q?", "note": "x"}], {"label": "note"}, "expected true or false"),
        ([{"prompt": "Q?", "note": "x"}], {"replies": "note"}, r"rank: answers.rank}"),
        ([{**PAIR, "note": "x"}], {"winner": "note"}, "names 'note' as winner, which is not read in a file"),
        ([{**ROW, "winner": "a"}], {"label": "winner"}, "expected true or false"),
        ([{**ROW, "winner": "a"}], {"principle": "winner"}, "names 'winner' as principle, which is not read"),
        ([PAIR], {"chosen": "chosen", "rejected": "prompt", "label": "chosen"}, "names 'chosen' as label, which is no"),
    ],
)
def test_a_setting_that_is_not_read_is_refused_and_never_dropped(
    tmp_path: Path, rows: list[dict[str, Any]], columns: dict[str, str], problem: str
) -> None:
    path = written(tmp_path, rows)
    for reader in (read_data, lambda file: read_comparisons([file])):
        with pytest.raises(InputError) as error:
            reader(DataFile.model_validate({"path": path, "columns": columns}))
        assert problem in str(error.value)


def test_prompts_refuse_settings_that_they_do_not_read(tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "Q?", "response": "A."}])
    file = DataFile(path=path, columns={"prompt": "prompt", "rater": "response"})
    for read in (read_data, lambda file: load_prompt_set([file], held_out=0, seed=0)):
        with pytest.raises(InputError, match=r":1: 'columns' names 'response' as rater.*expected prompt, input, sys"):
            read(file)


# --- Wrong types ---


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?", "chosen": "Yes.", "rejected": ["No.", "Never."]},
        {"prompt": "Q?", "chosen": ["Yes."], "rejected": "No."},
        {
            "id": "1",
            "prompt": "Q?",
            "chosen": "Yes.",
            "rejected": ["No.", "Never."],
            "num_correct": 1,
            "subset": "Math",
        },
    ],
)
def test_several_replies_in_a_column_of_one_are_refused(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r":1: '(chosen|rejected)' is a list of texts; expected one reply"):
        read_data(DataFile(path=written(tmp_path, [row])))


def test_an_object_with_a_text_is_a_reply_and_no_users_turn(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "chosen": {"text": "Yes."}, "rejected": {"text": "No."}}
    reading = read_data(DataFile(path=written(tmp_path, [row])))
    assert reading.classes == {"preference": 1}
    assert (reading.samples[0]["messages"], reading.samples[0]["chosen"]) == (messages("Q?", "")[:1], "Yes.")


@pytest.mark.parametrize("content", ["Let me look.", None])
def test_replies_that_differ_in_calls_of_tools_alone_are_left_out_as_such(tmp_path: Path, content: str | None) -> None:
    def reply(city: str) -> list[dict[str, Any]]:
        call = {"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}
        return [{"role": "assistant", "content": content, "tool_calls": [call]}]

    plain = {"prompt": "Q?", "chosen": messages("Q?", "Yes.")[1:], "rejected": messages("Q?", "No.")[1:]}
    rows = [plain, {"prompt": "Rome?", "chosen": reply("Rome"), "rejected": reply("Oslo")}]
    reading = read_data(DataFile(path=written(tmp_path, rows)))
    assert reading.classes == {"preference": 1, "calls": 1}
    (warning,) = reading.warnings
    assert warning.endswith(": 2")


def test_a_reply_that_calls_a_tool_is_told_of(tmp_path: Path) -> None:
    turns: list[dict[str, Any]] = [*messages("Rome?", "Let me look.")]
    turns[-1]["tool_calls"] = [{"type": "function", "function": {"name": "weather"}}]
    row = {"chosen": turns, "rejected": messages("Rome?", "No.")}
    reading = read_data(DataFile(path=written(tmp_path, [row])))
    assert reading.classes == {"preference": 1}
    (warning,) = reading.warnings
    assert warning.endswith(": 1")
    assert read_comparisons(written(tmp_path, [row])).warnings == (f"rows.jsonl: {warning}",)
    turns[-1] = {"role": "assistant", "content": "Yes.", "name": "ann"}  # no call
    assert read_data(DataFile(path=written(tmp_path, [row]))).warnings == ()


@pytest.mark.parametrize("column", ["preference_strength", "overall_preference"])
def test_helpsteers_strengths_go_from_minus_3_to_3(tmp_path: Path, column: str) -> None:
    rows = [{**ROW, column: strength} for strength in (3, -100, 7)]
    with pytest.raises(InputError, match=rf":3: '{column}' is 7; expected a strength from -3 to 3"):
        read_data(DataFile(path=written(tmp_path, rows)))
    assert read_data(DataFile(path=written(tmp_path, rows[:2]))).classes == {"preference": 1, "unlabelled": 1}
    path = written(tmp_path, [{**ROW, "preference": 7}])
    assert read(path) == [("No.", 1.0)]  # of another set


def test_replies_that_no_assistant_gives_are_left_out_and_told_of(tmp_path: Path) -> None:
    start = "\n\nHuman: Q?\n\nAssistant: Yes."
    row = {"chosen": f"{start}\n\nHuman: And?", "rejected": "\n\nHuman: Q?\n\nAssistant: No."}
    reading = read_data(DataFile(path=written(tmp_path, [row])))
    assert reading.classes == {"different_contexts": 1}
    assert "replies without a last turn of the assistant, whose pairs are left out: 1" in reading.warnings


# --- Columns that are read are listed as read ---


def test_what_exports_say_of_a_label_is_listed_as_read(tmp_path: Path) -> None:
    reply = {"role": "assistant", "content": "Yes."}
    items = [{"rank": rank, "completion": [{**reply, "content": text}]} for rank, text in enumerate(("Yes.", "No."))]
    about = {"source": "ai", "probability": 0.9, "principles": ["brief"], "weight": 0.5}
    nemo = {"context": messages("Q?", "")[:1], "completions": items, **about, "constitution": "x"}
    reading = read_data(DataFile(path=written(tmp_path, [nemo])))
    assert reading.columns.items() >= {name: name for name in about}.items()
    assert (reading.ignored_columns, reading.principles, reading.samples[0]["principle"]) == (
        ("constitution",),
        1,
        "brief",
    )
    task = {"data": {"prompt": "Q?", "left": "Yes.", "right": "No."}, "meta": about}
    value = {"from_name": "better", "to_name": "left", "type": "pairwise", "value": {"selected": "left"}}
    prediction = {"predictions": [{"result": [value]}], "annotations": []}
    reading = read_data(DataFile(path=written(tmp_path, [{**task, **prediction}])))
    assert (reading.classes, reading.ignored_columns) == ({"preference": 1}, ())
    assert reading.columns["winner, without annotations"] == "predictions.result.value.selected"
    assert reading.columns["principles"] == "meta.principles"
    record = {"fields": {"prompt": "Q?", "left": "Yes.", "right": "No."}, "metadata": about, "responses": {}}
    record["suggestions"] = {"better": {"value": "left"}}
    reading = read_data(DataFile(path=written(tmp_path, [record])))
    assert (reading.classes, reading.ignored_columns) == ({"preference": 1}, ())
    assert reading.columns["winner, without responses"] == "suggestions.better"


def test_annotators_of_annotated_pairs_are_read_and_a_person_who_is_the_default_keeps_the_name(tmp_path: Path) -> None:
    kinds = {"h1": "human", "h2": "human"}
    content = {
        "metadata": {"version": "2.0", "default_annotator": "h1"},
        "annotators": {name: {"type": kind} for name, kind in kinds.items()},
        "comparisons": [
            {
                "prompt": "Q?",
                "response_a": {"text": "Yes."},
                "response_b": {"text": "No."},
                "annotations": {name: {"pref": "a"} for name in kinds},
            }
        ],
    }
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(content))
    assert [row.rests_on for row in read_comparisons(path).preferences] == [
        ("pairs.json:1 (h1)",),
        ("pairs.json:1 (h2)",),
    ]
    reading = read_data(DataFile(path=path))
    assert not {"annotators", "metadata"} & set(reading.ignored_columns)
    assert (reading.columns["rater"], reading.columns["default annotator"]) == (
        "annotators",
        "metadata.default_annotator",
    )


# --- The setting that `data` prints ---


@pytest.mark.parametrize("name", sorted(path.stem for path in SETS.glob("*.json")))
def test_the_setting_that_is_printed_reads_the_file_as_it_was_read(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, rows_of(name))
    assert main(["data", str(path)]) == 0
    printed = capsys.readouterr().out
    hint = re.search(
        r"To read other columns, change this: mix\.human=(\[.*?\}\}\])(?:; also: (.*))?$", printed, re.MULTILINE
    )
    if hint is None:
        may = "'columns' may name winner, " if name == "lmarena_55k" else "its columns have fixed names\n"
        assert f"To use them: mix.human=[{path}]; {may}" in printed
        return
    (file,) = yaml.safe_load(hint[1])
    assert read_data(DataFile.model_validate(file)).as_json() == read_data(DataFile(path=path)).as_json()
    assert not set(file["columns"]) & set((hint[2] or "").split(", "))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q?"},
        {"prompt": "Q?", "split": "train"},
        {"instruction": "Q?", "input": "More.", "output": "A.", "system": "S."},
        {"conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "A."}]},
    ],
)
def test_the_setting_that_is_printed_for_prompts_reads_them_as_before(
    tmp_path: Path, row: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, [row])
    assert main(["data", str(path)]) == 0
    hint = re.search(r"change this: prompts\.files=(\[.*?\}\}\])", capsys.readouterr().out)
    assert hint is not None
    (file,) = yaml.safe_load(hint[1])
    assert read_data(DataFile.model_validate(file)).as_json() == read_data(DataFile(path=path)).as_json()


def test_a_split_of_prompts_is_read_or_named(tmp_path: Path) -> None:
    path = written(tmp_path, [{"prompt": "Q?"}, {"prompt": "R?", "split": "held_out"}])
    assert read_data(DataFile(path=path)).ignored_columns == ()
    path = written(tmp_path, [{"prompt": "Q?", "split": "train"}])
    assert read_data(DataFile(path=path)).columns == {"prompt": "prompt", "split": "split"}
    path = written(tmp_path, [{"prompt": "Q?", "split": "train", "id": 3}])
    assert read_data(DataFile(path=path)).ignored_columns == ("split", "id")
    with pytest.raises(InputError, match=r":1: has the split 'test'; expected \"train\" or \"held_out\""):
        read_data(DataFile(path=written(tmp_path, [{"prompt": "Q?", "split": "test"}])))


# --- Every pair of the first rows ---


def test_every_pair_of_a_row_is_shown_with_what_it_weighs_in_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, rows_of("pku_saferlhf"))
    first = read_data(DataFile(path=path)).samples[0]
    (second,) = first["more_pairs"]
    assert (first["principle"], first["training_weight"]) == ("helpfulness", 0.5)
    assert (second["principle"], second["training_weight"]) == ("safety", 0.5)
    assert main(["data", str(path)]) == 0
    assert "  pair 2 of 2: chosen: Keep " in capsys.readouterr().out
    ranked = read_data(DataFile(path=written(tmp_path, rows_of("nectar")))).samples
    weights = [pair["weight"] for sample in ranked for pair in (sample, *sample["more_pairs"])]
    assert weights == pytest.approx([1 / 21] * 21)
