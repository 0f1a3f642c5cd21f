"""Rows of the shape that public sets have, written for these tests, with the right reading beside them."""

import ast
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.errors import InputError
from constitutional.cli.main import main
from constitutional.data.comparisons import read_comparisons
from constitutional.data.preferences import MOST_TOGETHER
from constitutional.data.reading import read_data
from constitutional.data.sources import DataFile
from constitutional.stages.mix import Settings, mix

SETS = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in Path(__file__).parent.glob("sets/*.json")}
sets = pytest.mark.parametrize("name", sorted(SETS))


def written(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def found(path: Path, **settings: object) -> dict[str, Any]:
    return read_data(DataFile.model_validate({"path": path, **settings})).as_json()


def checked(reading: dict[str, Any], expected: dict[str, Any]) -> None:
    classes = ("preferences", "ties", "both_bad", "equal", "empty", "different_contexts", "unlabelled")
    none = dict.fromkeys(("duplicates", "principles", *classes), 0)
    assert {name: reading[name] for name in {**none, **expected["counts"]}} == none | expected["counts"]
    assert sum(reading[name] for name in classes) == reading["pairs"]
    first = reading["samples"][0]
    assert {name: first[name] for name in expected["first"]} == expected["first"]


@sets
def test_every_set_is_recognised_by_its_columns(tmp_path: Path, name: str) -> None:
    expected = SETS[name]
    reading = found(written(tmp_path, expected["rows"]))
    assert reading["kind"] == "preferences"
    checked(reading, expected)
    assert reading["ignored_columns"] == expected["ignored"]
    for warning in expected["warnings"]:
        assert any(warning in line for line in reading["warnings"])
    assert bool(expected["warnings"]) == bool(reading["warnings"])


@sets
def test_parquet_with_its_missing_values_is_read_alike(tmp_path: Path, name: str) -> None:
    import pyarrow as pa  # type: ignore[import-untyped]
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(SETS[name]["rows"]), tmp_path / "rows.parquet")
    checked(found(tmp_path / "rows.parquet"), SETS[name])


@sets
def test_our_own_rows_hold_the_same_preferences(tmp_path: Path, name: str) -> None:
    expected = SETS[name]["counts"]
    to = tmp_path / "ours.jsonl"
    read_data(DataFile(path=written(tmp_path, SETS[name]["rows"])), to)
    again = found(to)
    kept = ("preferences", "ties", "duplicates", "principles")
    assert [again[key] for key in kept] == [expected.get(key, 0) for key in kept]
    assert again["samples"][0]["chosen"] == SETS[name]["first"]["chosen"]


@sets
def test_columns_that_nobody_knows_change_nothing(tmp_path: Path, name: str) -> None:
    rows = [{"zz": None, **row, "unheard of": {"x": [1]}} for row in SETS[name]["rows"]]
    reading = found(written(tmp_path, rows))
    checked(reading, SETS[name])
    assert set(reading["ignored_columns"]) == {"zz", "unheard of", *SETS[name]["ignored"]}


NO_TABLES = {"argilla_1", "llamafactory_alpaca_best_first", "oasst_trees"}
"""A column of texts with brackets could be texts: these are not read from CSV files."""


@pytest.mark.parametrize("name", sorted(SETS.keys() - NO_TABLES))
@pytest.mark.parametrize("lists", ["as JSON", "as Python shows them"])
def test_tables_of_texts_are_read_alike(tmp_path: Path, name: str, lists: str) -> None:
    rows = SETS[name]["rows"]

    def cell(value: object) -> object:
        return json.dumps(value) if lists == "as JSON" and isinstance(value, list | dict) else value

    with (tmp_path / "rows.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for row in rows for key in row))
        writer.writeheader()
        writer.writerows([{key: cell(value) for key, value in row.items()} for row in rows])
    checked(found(tmp_path / "rows.csv"), SETS[name])


def test_messages_as_numpy_shows_them_are_read_and_what_cannot_be_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = """[{'role': 'user', 'content': "It's"}\n {'role': 'assistant', 'content': 'A.'}]"""
    other = messages.replace("A.", "B.")
    path = tmp_path / "rows.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("chosen", "rejected"), (messages, other), (messages, "[{'role': open('x')}]")])
    assert main(["data", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"{path}:5: 'rejected' is no list" in error
    assert "write lists in cells as JSON" in error
    path.write_text("\n".join(path.read_text().split("\n")[:4]) + "\n")
    first = found(path)["samples"][0]
    assert (first["messages"], first["chosen"]) == ([{"role": "user", "content": "It's"}], "A.")


@pytest.mark.parametrize("column", ["meta", "history", "data", "rating", "candidates"])
@pytest.mark.parametrize("texts", ["[source: reddit]", "{see notes}", '{"a": 1}|{oops', "[1, 2]|[deleted]"])
def test_a_text_in_brackets_in_a_column_that_nobody_reads_changes_nothing(
    tmp_path: Path, column: str, texts: str
) -> None:
    one, other = texts.split("|") if "|" in texts else (texts, texts)
    rows = [
        {"prompt": f"Q {number}?", "chosen": "Yes.", "rejected": "No.", column: text}
        for number, text in enumerate((one, other))
    ]
    assert found(written(tmp_path, rows))["preferences"] == 2
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([rows[0].keys(), *(row.values() for row in rows)])
    assert found(tmp_path / "rows.csv")["preferences"] == 2


def test_a_text_in_a_column_of_lists_that_is_read_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "completions": '[{"response": "Yes.", "score": 2}, {"response": "No.", "score": 1}]'}
    with pytest.raises(InputError, match=r":2: 'completions' is \"\[oops\"; expected a list of objects"):
        found(written(tmp_path, [row, {**row, "completions": "[oops"}]))


def test_a_long_list_as_python_shows_it_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[int] = []
    literal_eval = ast.literal_eval

    def counted(text: str) -> object:
        decoded.append(len(text))
        return literal_eval(text)

    monkeypatch.setattr(ast, "literal_eval", counted)
    shown = f"['a', {', '.join('1' * 100_000)}]"  # 300,000 characters
    row = {"prompt": "Q?", "chosen": "Yes.", "rejected": "No.", "meta": shown}
    assert found(written(tmp_path, [row]))["preferences"] == 1
    assert decoded == []
    assert found(written(tmp_path, [{**row, "meta": "['a', 1]"}]))["preferences"] == 1
    assert set(decoded) == {8}
    messages = f"[{{'role': 'assistant', 'content': '{'a' * 300_000}'}}]"
    with pytest.raises(InputError, match=r":1: 'chosen' is no list .* too long to be read as Python shows it; write"):
        found(written(tmp_path, [{**row, "chosen": messages}]))


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [('["a", "b"]', '[{"name": "a"}]'), ('{"content": "a"}', '[{"value": 1}]'), ('{"role": "admin"}', "{}")],
)
def test_a_reply_that_is_json_stays_a_text(tmp_path: Path, chosen: str, rejected: str) -> None:
    row = {"prompt": "List two.", "chosen": chosen, "rejected": rejected}
    assert found(written(tmp_path, [row]))["samples"][0]["chosen"] == chosen
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([row.keys(), row.values()])
    first = found(tmp_path / "rows.csv")["samples"][0]
    assert (first["chosen"], first["rejected"]) == (row["chosen"], row["rejected"])


def annotated(version: str) -> dict[str, Any]:
    texts = (
        {"text_a": "Yes.", "text_b": "No."}
        if version == "1.0"
        else {
            "response_a": {"text": "Yes.", "model": "x"},
            "response_b": {"text": "No.", "model": "y"},
        }
    )
    a = "text_a" if version == "1.0" else "a"
    annotations = {"d": {"pref": a}, "ann": {"pref": None, "no_pref_reason": "both"}, "p": {"pref": a}}
    return {
        "metadata": {"version": version, "default_annotator": "d"},
        "annotators": {
            "d": {"type": "unknown", "name": "original"},
            "ann": {"type": "human", "name": "Ann"},
            "p": {"type": "principle"},
        },
        "comparisons": [
            {"id": "1", "prompt": "Is it so?", **texts, "annotations": annotations},
            {
                "id": "2",
                "prompt": "And so?",
                **texts,
                "annotations": {"d": {"pref": None, "no_pref_reason": "invalid"}},
            },
        ],
    }


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_annotated_pairs_give_the_default_annotators_and_peoples_verdicts(tmp_path: Path, version: str) -> None:
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps(annotated(version)))
    reading = found(path)
    assert (reading["rows"], reading["pairs"]) == (2, 3)
    assert (reading["preferences"], reading["ties"], reading["unlabelled"]) == (1, 1, 1)
    assert [sample["chosen"] for sample in reading["samples"]] == ["Yes.", "Yes."]
    raters = [preference.rests_on for preference in read_comparisons(path).preferences]
    assert raters == [("pairs.json:1",), ("pairs.json:1 (Ann)",)]


def test_persuasion_is_refused_because_it_is_not_pairwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"claim": "c", "argument": "a", "rating_initial": "3 - Neutral", "rating_final": "5 - Support", "source": "m"}
    assert main(["data", str(written(tmp_path, [row]))]) == 2
    error = capsys.readouterr().err
    assert "rows.jsonl:1: " in error
    assert "not pairwise" in error


def test_strengths_become_probabilities_by_the_table_alone(tmp_path: Path) -> None:
    path = written(tmp_path, SETS["helpsteer3"]["rows"])
    plain = found(path)["samples"]
    assert [sample["probability"] for sample in plain] == [1.0, 0.5, 1.0]
    table = found(path, strengths={1: 0.6, 2: 0.8})["samples"]
    assert [sample["probability"] for sample in table] == [0.8, 0.5, 1.0]  # 3 is not named


def test_ranks_share_the_weight_of_one_comparison(tmp_path: Path) -> None:
    preferences = read_comparisons(written(tmp_path, SETS["nectar"]["rows"])).preferences
    assert len(preferences) == 21
    assert sum(preference.weight for preference in preferences) == pytest.approx(1)
    assert all(preference.chosen < preference.rejected for preference in preferences)  # Answer 1 is the best


def test_strengths_and_raters_are_kept_in_rows_of_our_own(tmp_path: Path) -> None:
    path, ours = written(tmp_path, SETS["helpsteer3"]["rows"]), tmp_path / "ours.jsonl.gz"
    read_data(DataFile(path=path), ours)
    assert gzip.decompress(ours.read_bytes()).count(b"\n") == 3
    assert found(ours)["samples"] == found(path)["samples"]
    table = {1: 0.6, 2: 0.8}
    assert found(ours, strengths=table)["samples"] == found(path, strengths=table)["samples"]
    read_data(DataFile(path=ours), tmp_path / "again.jsonl.zst")
    read_data(DataFile(path=tmp_path / "again.jsonl.zst"), tmp_path / "plain.jsonl")
    assert (tmp_path / "plain.jsonl").read_bytes() == gzip.decompress(ours.read_bytes())


def test_columns_of_other_sets_that_are_called_strength_or_raters_change_nothing(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "chosen": "Yes.", "rejected": "No.", "strength": "high", "raters": ["ann", "bob"]}
    reading = found(written(tmp_path, [row]))
    assert (reading["preferences"], reading["samples"][0]["probability"]) == (1, 1)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.arrow", "x.json", "x.jsonl.bz2", "x", "x.parquet.gz"])
def test_rows_are_written_as_json_lines_alone(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, SETS["pku_saferlhf"]["rows"])
    assert main(["data", str(path), "--to", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert f"type --to {tmp_path / 'x'}.jsonl (or" in error
    assert "constitutional export" in error
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_written_and_left_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "ours.jsonl"
    assert main(["data", str(written(tmp_path, SETS["lmarena_140k"]["rows"])), "--to", str(to)]) == 0
    printed = capsys.readouterr().out
    assert f"written: 2 rows to {to}; left out: 1 both replies bad, 1 replies to different conversations" in printed
    assert "Strengths" not in printed
    assert "mix.ties=keep" in printed
    assert main(["data", str(written(tmp_path, [{"prompt": "Q?"}, {"prompt": "Q?"}])), "--to", str(to)]) == 0
    printed = capsys.readouterr().out
    assert f"written: 1 row to {to}; left out: 1 that stand there before" in printed
    assert "mix.ties" not in printed


def test_raters_stay_several_and_principles_are_named(tmp_path: Path) -> None:
    pku = read_comparisons(written(tmp_path, SETS["pku_saferlhf"]["rows"])).preferences
    assert [preference.principles for preference in pku[:2]] == [("helpfulness",), ("safety",)]
    assert pku[2].chosen != pku[3].chosen  # the verdicts of the second row disagree
    steer = read_comparisons(written(tmp_path, SETS["helpsteer3"]["rows"])).preferences
    assert [place.rpartition(" (")[2] for place in steer[0].rests_on] == [
        "rater 1: +2)",
        "rater 2: +3)",
        "rater 3: -1)",
    ]


def test_verdicts_that_disagree_are_both_trained_on_and_one_may_be_chosen(tmp_path: Path) -> None:
    path = written(tmp_path, SETS["pku_saferlhf"]["rows"])
    settings = Settings(held_out_share=0)
    both = mix([], [], [], read_comparisons(path).preferences, settings, 0).preferences
    assert [(row.chosen[:4], *row.principles, row.weight) for row in both] == [
        ("Keep", "helpfulness", 0.5),
        ("Keep", "safety", 0.5),
        ("Put ", "helpfulness", 0.5),
        ("Keep", "safety", 0.5),
        ("Keep", "helpfulness", 0.5),
        ("Put ", "safety", 0.5),
    ]
    file = DataFile(path=path, columns={"winner": "safer_response_id"})
    safer = mix([], [], [], read_comparisons([file]).preferences, settings, 0).preferences
    assert [(row.chosen[:4], row.weight) for row in safer] == [("Keep", 1), ("Keep", 1), ("Put ", 1)]


def test_numbers_that_could_be_sides_or_strengths_are_asked_about(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "response_a": "Yes.", "response_b": "No.", "preference": 1}
    with pytest.raises(InputError, match=r":1: 'preference' is 1, which could be .*columns: {strength: preference}"):
        found(written(tmp_path, [row]))
    signed = found(written(tmp_path, [row]), columns={"strength": "preference"})
    assert signed["samples"][0]["chosen"] == "No."
    numbered = {"prompt": "Q?", "output_1": "Yes.", "output_2": "No.", "preference": 1}
    assert found(written(tmp_path, [numbered]))["samples"][0]["chosen"] == "Yes."
    with pytest.raises(InputError, match=r":2: 'preference' is -1; expected 1 or 2"):
        found(written(tmp_path, [numbered, {**numbered, "preference": -1}]))


@pytest.mark.parametrize("column", ["label", "preference"])
def test_0_beside_replies_1_and_2_is_no_tie_but_in_alpaca_eval(tmp_path: Path, column: str) -> None:
    row = {"prompt": "Q?", "response_1": "Yes.", "response_2": "No."}
    for numbers, line in (((0, 1), 1), ((1, 0), 2)):
        rows = [{**row, column: number} for number in numbers]
        for columns in ({}, {"winner": column}):
            with pytest.raises(InputError, match=f":{line}: '{column}' is 0, which could be a side, a truth, a prob"):
                found(written(tmp_path, rows), columns=columns)
    sides = found(written(tmp_path, [{**row, column: 1}, {**row, column: 2}]))
    assert [sample["chosen"] for sample in sides["samples"]] == ["Yes.", "No."]
    alpaca = [{"prompt": "Q?", "output_1": "Yes.", "output_2": "No.", "preference": number} for number in (0, 2)]
    reading = found(written(tmp_path, alpaca))
    assert (reading["ties"], reading["preferences"]) == (1, 1)


@pytest.mark.parametrize("number", [0, 1])
def test_a_named_winner_that_is_0_or_1_is_asked_about_too(tmp_path: Path, number: int) -> None:
    row = {"prompt": "Q?", "response_a": "Yes.", "response_b": "No.", "label": number}
    with pytest.raises(InputError, match=f":1: 'label' is {number}, which could be .*columns: {{strength: label}}"):
        found(written(tmp_path, [row]), columns={"winner": "label"})
    signed = found(written(tmp_path, [row]), columns={"strength": "label"})
    assert (signed["ties"], signed["preferences"]) == (1 - number, number)


def test_too_many_rows_of_one_conversation_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "Q?", "completion": str(number), "label": bool(number)} for number in range(MOST_TOGETHER + 1)]
    with pytest.raises(InputError, match=r":1: begins more than 1,000 rows of one conversation"):
        found(written(tmp_path, rows))


def test_a_wrong_row_among_rows_that_belong_together_is_named(tmp_path: Path) -> None:
    rows = [{"prompt": "Q?", "completion": "A.", "label": True}, {"prompt": "Q?", "completion": "B.", "label": "x"}]
    with pytest.raises(InputError, match=r":2: 'label' is \"x\"; expected a number"):
        found(written(tmp_path, rows))


NODE = {"message_id": "1", "parent_id": None, "message_tree_id": "1", "role": "prompter", "rank": None}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([annotated("2.0")["comparisons"][0], {"id": "x"}], "has no 'annotations'"),
        (
            [
                {"fields": {"prompt": "Q", "response_a": "x", "response_b": "y"}, "responses": {"better": []}},
                {"responses": {}},
            ],
            "has no 'fields'",
        ),
        (
            [
                {"instruction": "Q", "input": "more", "chosen": "x", "rejected": "y"},
                {"instruction": [], "input": "more", "chosen": "x", "rejected": "y"},
            ],
            "'instruction' holds no message",
        ),
        (
            [{**NODE, "text": "Q"}, {**NODE, "message_tree_id": "2", "role": "system", "text": ""}],
            "is no row of OpenAs",
        ),
    ],
)
def test_a_row_that_lacks_what_the_first_has_is_named_by_its_place(
    tmp_path: Path, rows: list[dict[str, Any]], problem: str
) -> None:
    content: Any = rows
    if "annotations" in rows[0]:
        content = annotated("2.0") | {"comparisons": rows}
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=problem) as error:
        read_data(DataFile(path=path))
    assert "rows.json" in str(error.value)


@pytest.mark.parametrize(
    ("prompts", "kept"), [([None, "Q?"], 1), (["Q?", None], 1), ([None, None], 2), (["Q?", "R?"], 2)]
)
def test_of_pairs_with_and_without_a_prompt_those_with_one_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prompts: list[str | None], kept: int
) -> None:
    whole, path, to = annotated("2.0"), tmp_path / "rows.json", tmp_path / "ours.jsonl"
    row = whole["comparisons"][0]  # one prefers a reply, another none
    path.write_text(json.dumps(whole | {"comparisons": [row | {"prompt": prompt} for prompt in prompts]}))
    assert main(["data", str(path), "--to", str(to)]) == 0
    assert ("2 without a prompt" in capsys.readouterr().out.splitlines()[-1]) == (kept == 1)
    assert read_data(DataFile(path=to)).classes == {"preference": kept, "tie": kept}  # what is written is read


def test_a_reply_without_a_label_is_neither_good_nor_bad(tmp_path: Path) -> None:
    labels = {"Yes.": True, "Perhaps.": None, "No.": False, "Who knows?": None}
    rows = [{"prompt": "Q?", "completion": reply, "label": label} for reply, label in labels.items()]
    reading = found(written(tmp_path, rows))
    # Yes and No; and either of them with either of the replies that nobody judged.
    assert (reading["pairs"], reading["preferences"], reading["unlabelled"]) == (5, 1, 4)
    (preference,) = read_comparisons(tmp_path / "rows.jsonl").preferences
    assert (preference.chosen, preference.rejected, preference.weight) == ("Yes.", "No.", 1)


def test_a_label_of_one_reply_is_a_truth(tmp_path: Path) -> None:
    rows = [{"prompt": "Q?", "completion": reply, "label": label} for label, reply in ((1, "Low."), (2, "High."))]
    with pytest.raises(InputError, match=r":2: 'label' is 2; expected true or false"):
        found(written(tmp_path, rows))


def test_scores_leave_what_else_a_row_says(tmp_path: Path) -> None:
    row = {"prompt": "Q?", "chosen": "Yes.", "rejected": "No.", "score_chosen": 9, "score_rejected": 2}
    said = {"weight": 0.5, "rater": "ann", "probability": 0.7}
    level = {**row, "score_rejected": 9}
    rows = [{**row, **said}, {**level, **said}, {**level, "weight": 0.5}, row]
    reading = found(written(tmp_path, rows))
    assert reading["ignored_columns"] == []
    assert (reading["preferences"], reading["ties"]) == (3, 1)
    preferences = read_comparisons(tmp_path / "rows.jsonl").preferences
    assert [(found.probability, found.weight) for found in preferences] == [(0.7, 0.5), (0.7, 0.5), (0.5, 0.5), (1, 1)]
    assert preferences[0].rests_on == ("rows.jsonl:1 (ann)",)


@pytest.mark.parametrize(
    ("mean", "warned"), [({"fine-grained_score": 1.0}, True), ({}, True), ({"fine-grained_score": 4.5}, False)]
)
def test_ultrafeedbacks_score_of_10_is_warned_of(tmp_path: Path, mean: dict[str, float], warned: bool) -> None:
    replies = [{"response": "Bad.", "overall_score": 10.0, **mean}, {"response": "Good.", "overall_score": 7.0}]
    reading = found(written(tmp_path, [{"instruction": "Q?", "completions": replies}]))
    assert [line.partition(",")[0] for line in reading["warnings"]] == ["rows with the score 10"] * warned


def test_columns_may_be_named(tmp_path: Path) -> None:
    row = {"ask": "Q?", "good": "Yes.", "bad": "No.", "chosen": 3}
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    reading = found(written(tmp_path, [row]), columns=columns)
    assert (reading["columns"], reading["ignored_columns"]) == (columns, ["chosen"])
    assert reading["samples"][0]["chosen"] == "Yes."
    sides = {"prompt": "ask", "response_a": "good", "response_b": "bad", "winner": "chosen"}
    reading = found(written(tmp_path, [row]), columns=sides, strengths={3: 0.9})
    assert reading["columns"] == sides


def test_the_command_prints_what_it_read_and_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, SETS["helpsteer3"]["rows"])
    assert main(["data", str(path)]) == 0
    printed = capsys.readouterr().out
    for words in ("preferences", "overall_preference", "ignored (2): domain, language", "columns: {", "strengths: {1:"):
        assert words in printed
    to = tmp_path / "ours.jsonl"
    assert main(["data", str(path), "strengths.2=0.7", "--json", "--to", str(to)]) == 0
    reading = json.loads(capsys.readouterr().out)
    assert reading["samples"][0]["probability"] == 0.7
    assert [json.loads(line).get("probability", 1) for line in to.read_text().splitlines()] == [0.7, 0.5, 1]
    assert "written" not in found(path)
    assert reading["written"] == 3
    assert main(["data", str(path), "columns.chosen=nowhere", "columns.rejected=response2"]) == 2
    assert "no column 'nowhere'" in capsys.readouterr().err
    assert main(["data", str(path), "colums.chosen=x"]) == 2
    assert main(["data", str(path), "columns.choosen=x"]) == 2


HELLO = [("user", "Hi"), ("assistant", "Hello.")]
ASK = [("user", "How do I store bread?")]
PROMPTS: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "Capybara": ({"source": "x", "conversation": [{"input": "How do I store bread?", "output": "In a bag."}]}, ASK),
    "LIMA": ({"conversations": ["How do I store bread?", "In a bag."], "source": "x"}, ASK),
    "UltraChat": ({"id": "0", "data": ["Hi", "Hello.", "How do I store bread?", "In a bag."]}, HELLO + ASK),
    "RealToxicityPrompts": ({"filename": "f", "prompt": {"text": "How do I store bread?", "toxicity": 0.1}}, ASK),
    "ToxicChat": ({"conv_id": "1", "user_input": "How do I store bread?", "model_output": "In a bag."}, ASK),
    "HarmBench": ({"Behavior": "How do I store bread?", "Tags": ""}, ASK),
    "LlamaFactory": (
        {
            "instruction": "How do I store bread?",
            "input": "",
            "output": "x",
            "system": "S.",
            "history": [["Hi", "Hello."]],
        },
        [("system", "S."), *HELLO, *ASK],
    ),
    "red-team-attempts": ({"transcript": "\n\nHuman: How do I store bread?\n\nAssistant: No.", "rating": 0.0}, ASK),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_prompts_of_other_sets_are_read_up_to_the_last_question(tmp_path: Path, name: str) -> None:
    row, turns = PROMPTS[name]
    reading = found(written(tmp_path, [row]))
    assert reading["kind"] == "prompts"
    assert reading["samples"][0]["messages"] == [{"role": role, "content": text} for role, text in turns]
