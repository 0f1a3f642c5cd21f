"""The command `data`: which kind a file is of, and what is written of it."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from constitutional.cli.main import main
from constitutional.constitution.file import load_constitution

DATA = Path(__file__).parent.parent / "data"
SETS = {path.name: path for path in sorted((DATA / "evaluation").iterdir())}
CONSTITUTIONS = {path.name: path for path in sorted((DATA / "constitutions").iterdir()) if path.name != "readings.yaml"}


def told(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    assert main(["data", str(path), "--json", *more]) == 0
    reading: dict[str, Any] = json.loads(capsys.readouterr().out)
    return reading


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("name", SETS)
def test_evaluation_sets_are_told_from_preferences_and_prompts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    reading = told(SETS[name], capsys)
    assert reading["kind"] == "evaluation"
    assert reading["format"] == ("hhh" if name in ("hhh_helpful.jsonl", "hhh_honest.jsonl") else Path(name).stem)
    assert reading["items"] == reading["rows"] > 0
    assert reading["pairs"] == 0
    assert reading["samples"][0]["messages"][-1]["role"] == "user"
    assert not set(reading["columns"]) & set(reading["ignored_columns"])


def test_the_columns_of_an_evaluation_set_are_those_that_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"question": "2+2?", "response_A": "4", "response_B": "5", "label": "A>B", "source": "x", "zz": 1}
    reading = told(written(tmp_path, "judge.jsonl", f"{json.dumps(row)}\n" * 2), capsys)
    assert set(reading["columns"]) == {"question", "response_A", "response_B", "label", "source"}
    assert reading["ignored_columns"] == ["zz"]
    assert (reading["items"], reading["prompts"], reading["duplicates"]) == (2, 1, 1)
    assert reading["samples"][0]["replies"] == ["4", "5"]


def test_an_evaluation_set_is_not_written_in_another_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(SETS["xstest.csv"]), "--to", str(tmp_path / "ours.jsonl")]) == 2
    assert "constitutional eval" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in CONSTITUTIONS if name != "list.txt"])
def test_constitutions_of_every_family_are_recognised(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "ours.yaml"
    reading = told(CONSTITUTIONS[name], capsys, "--to", str(to))
    ours, read = load_constitution(to).principles, load_constitution(CONSTITUTIONS[name]).principles
    assert reading["kind"] == "constitution"
    assert reading["principles"] == len(read)
    assert [sample["text"] for sample in reading["samples"]] == [principle.text for principle in read[:3]]
    assert ours == read


def test_what_a_constitution_does_not_carry_over_is_told_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    reading = told(CONSTITUTIONS["constitutional_evals_1_1.json"], capsys)
    assert any("line 11" in warning and "license" in warning for warning in reading["warnings"])
    assert main(["data", str(CONSTITUTIONS["model_spec.md"])]) == 0
    assert "constitution.file=" in capsys.readouterr().out


def test_our_own_yaml_is_written_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, "mine.yaml", "# mine\nname: Mine\nprinciples:\n  - Be brief.\n")
    reading = told(path, capsys, "--to", str(tmp_path / "to.yaml"))
    assert (reading["kind"], reading["principles"]) == ("constitution", 1)
    assert (tmp_path / "to.yaml").read_text() == path.read_text()
    assert main(["data", str(path), "--to", str(tmp_path / "to.jsonl")]) == 2
    assert "to.yaml" in capsys.readouterr().err


def test_a_constitution_with_a_mistake_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", str(written(tmp_path, "mine.yaml", "name: Mine\nprinciples:\n  - text: 3\n"))]) == 2
    assert "mine.yaml:3" in capsys.readouterr().err


PROMPTS = "Write a poem about the rain.\nTell me a joke about bread.\n"
RULES = "The assistant should admit what it does not know.\nNever flatter the user.\nBe brief.\n"


@pytest.mark.parametrize(
    ("name", "text", "kind", "other"),
    [
        ("questions.txt", "How do I bake bread?\nWhat should I never do?\nWrite a poem.\n", "prompts", ""),
        ("requests.txt", PROMPTS, "prompts", "constitution.file="),
        ("rules.txt", RULES, "constitution", "prompts.files="),
        ("rules.json", json.dumps(RULES.splitlines()), "constitution", "prompts.files="),
        ("requests.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in PROMPTS.splitlines()), "prompts", "c"),
        ("rules.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in RULES.splitlines()), "constitution", "p"),
        ("list.txt", "- Admit what you do not know.\n- Be kind.\n", "constitution", "prompts.files="),
        ("named.jsonl", '{"principle": "Write as people talk."}\n', "constitution", ""),
        ("prompt.jsonl", '{"prompt": "You must never do this. Why?"}\n', "prompts", ""),
        ("trait.jsonl", '{"prompt": "Hi", "trait": "I should be kind to everybody."}\n', "prompts", ""),
    ],
)
def test_texts_that_could_be_principles_or_prompts_say_how_to_read_them_as_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, kind: str, other: str
) -> None:
    reading = told(written(tmp_path, name, text), capsys)
    assert reading["kind"] == kind
    assert bool(reading["warnings"]) == bool(other)
    assert all(other in warning for warning in reading["warnings"])


def test_many_texts_that_bind_nothing_are_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reading = told(written(tmp_path, "many.txt", "".join(f"Write poem {n}.\n" for n in range(1001))), capsys)
    assert (reading["kind"], reading["prompts"], reading["warnings"]) == ("prompts", 1001, [])


def test_what_is_printed_says_what_to_do_with_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(SETS["bbq.jsonl"])]) == 0
    out = capsys.readouterr().out
    assert "evaluation, read as: bbq" in out
    assert "constitutional eval " in out


def test_annotated_pairs_are_preferences_where_people_annotate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(CONSTITUTIONS["annotated_pairs.json"].read_text())
    content["comparisons"][0]["annotations"]["h1"] = {"pref": "a"}
    reading = told(written(tmp_path, "pairs.json", json.dumps(content)), capsys)
    assert (reading["kind"], reading["preferences"]) == ("preferences", 1)


def test_without_a_file_it_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data"]) == 2
    assert "type constitutional data FILE, such as" in capsys.readouterr().err


def zstd(content: bytes) -> bytes:
    import pyarrow as pa  # type: ignore[import-untyped]

    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


@pytest.mark.parametrize("name", CONSTITUTIONS)
@pytest.mark.parametrize(("ending", "pack"), [(".gz", gzip.compress), (".zst", zstd)])
def test_compressed_constitutions_are_read_alike(
    tmp_path: Path, name: str, ending: str, pack: Callable[[bytes], bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(pack(CONSTITUTIONS[name].read_bytes()))
    assert load_constitution(path) == load_constitution(CONSTITUTIONS[name])
    reading, plain = told(path, capsys), told(CONSTITUTIONS[name], capsys)
    assert [warning.replace(str(path), "") for warning in reading.pop("warnings")] == [
        warning.replace(str(CONSTITUTIONS[name]), "") for warning in plain.pop("warnings")
    ]
    assert reading == plain


def test_a_compressed_constitution_that_is_cut_off_or_too_large_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml.gz"
    path.write_bytes(gzip.compress(b"name: Mine\nprinciples:\n  - Be brief.\n")[:-12])
    assert main(["lint", str(path)]) == 2
    assert "mine.yaml.gz: error: is a damaged gzip file" in capsys.readouterr().out
    path.write_bytes(gzip.compress(b"# " + b"a" * 2**25))
    assert main(["lint", str(path)]) == 2
    assert "mine.yaml.gz: error: holds more than 32 MiB" in capsys.readouterr().out


TABLES = {
    "comma": "prompt,chosen,rejected\nWhy?,Because.,No.\n",
    "semicolon": "\ufeffprompt;chosen;rejected\r\nWhy?;Because.;No.\r\n",
    "tab": 'prompt\tchosen\trejected\n"Why?"\tBecause.\tNo.\n',
    "JSON lines": '{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}\n',
    "JSON": '[\n {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}]\n',
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_is_called_txt_is_no_list_of_prompts(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = told(written(tmp_path, "rows.txt", TABLES[name]), capsys)
    assert (reading["kind"], reading["preferences"]) == ("preferences", 1)
    assert reading["samples"][0]["messages"] == [{"role": "user", "content": "Why?"}]
    assert reading["samples"][0]["chosen"] == "Because."


@pytest.mark.parametrize(
    "text",
    [
        "Prompt, question\nHow do I bake bread?\n",
        "Hello, world\nHow are you, friend\n",
        "[sic] is what?\nWhy, then?\n",
        '{"a": 1} is what?\nWhy?\n',
    ],
)
def test_texts_with_commas_and_brackets_stay_prompts(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reading = told(written(tmp_path, "rows.txt", text), capsys)
    assert (reading["kind"], reading["rows"]) == ("prompts", 2)
    assert reading["samples"][0]["messages"][0]["content"] == text.split("\n", maxsplit=1)[0]


def test_a_misspelt_column_is_no_constitution(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(written(tmp_path, "a.jsonl", '{"promt": "Hello"}\n'))]) == 2
    assert "a.jsonl:1" in capsys.readouterr().err


def test_numbers_and_lists_are_printed_as_people_read_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "Why?", "answers": [{"answer": text, "model": "m", "rank": n} for n, text in enumerate("abc", 1)]}
    path = written(tmp_path, "ranks.jsonl", json.dumps(row) + "\n")
    assert main(["data", str(path)]) == 0
    assert "  weight: 0.3333\n" in capsys.readouterr().out
    assert told(path, capsys)["samples"][0]["weight"] == pytest.approx(1 / 3, abs=1e-12)
    ours = "name: x\nprinciples:\n  - {id: a, text: Be kind., overrides: [b]}\n  - {id: b, text: Be brief.}\n"
    assert main(["data", str(written(tmp_path, "ours.yaml", ours))]) == 0
    assert "  overrides: b\n" in capsys.readouterr().out


def test_rules_behind_labels_are_principles_and_speakers_are_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = "Stereotypes: Do not use stereotypes.\nMedical advice: Never offer medical advice.\nThreats: Be gentle.\n"
    assert told(written(tmp_path, "rules.txt", rules), capsys)["kind"] == "constitution"
    talk = "Human: Do not worry about me, tell me a joke.\nUser: Never mind, give me a poem.\nHuman: Be a pirate.\n"
    assert told(written(tmp_path, "talk.txt", talk), capsys)["kind"] == "prompts"


def test_transcripts_in_a_column_of_texts_are_no_principles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Never lie to me."
    reading = told(written(tmp_path, "talks.jsonl", json.dumps({"text": text}) + "\n"), capsys)
    assert (reading["kind"], reading["warnings"]) == ("prompts", [])
    assert [turn["role"] for turn in reading["samples"][0]["messages"]] == ["user", "assistant", "user"]


def test_splits_of_a_folder_that_are_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    (tmp_path / "pairs" / "data").mkdir(parents=True)
    for split, rows in (("train", 3), ("held_out", 2)):
        table = pa.table({"prompt": ["Why?"] * rows, "chosen": ["So."] * rows, "rejected": ["No."] * rows})
        pq.write_table(table, tmp_path / "pairs" / "data" / f"{split}.parquet")
    reading = told(tmp_path / "pairs", capsys)
    held_out = tmp_path / "pairs" / "data" / "held_out.parquet"
    assert reading["rows"] == 3
    assert reading["warnings"][0] == f"of the folder train.parquet alone is read; others: {held_out}"
    assert told(held_out, capsys)["rows"] == 2
    assert main(["data", f"{tmp_path / 'pairs'}:held_out"]) == 2
    assert f"type the file itself: {held_out}" in capsys.readouterr().err
    assert main(["data", f"{tmp_path / 'pairs'}:test"]) == 2
    assert "has no such split" in capsys.readouterr().err


def test_a_value_that_looks_like_a_date_and_is_none_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = written(tmp_path, "pairs.jsonl", '{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n')
    assert main(["data", str(pairs), "strengths=2024-13-45"]) == 2
    assert "strengths=2024-13-45: the value cannot be read" in capsys.readouterr().err
