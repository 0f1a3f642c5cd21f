"""Rows of every format, whole, damaged and hostile."""

import gzip
import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from constitutional.base.errors import InputError
from constitutional.cli.main import main
from constitutional.data.comparisons import read_comparisons
from constitutional.data.documents import rows_within
from constitutional.data.reading import read_data
from constitutional.data.sources import DataFile, Rows, mixture

ROWS = [
    {"prompt": f"Q {number}\u2028?", "chosen": "Yes.\u0085" if number else "Où ?", "rejected": "No.", "n": number}
    for number in range(2100)
]
TABLE = pa.Table.from_pylist(ROWS)


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_arrow(path: Path, new: Callable[..., Any]) -> None:
    with pa.OSFile(str(path), "wb") as file, new(file, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=500)


WRITERS: dict[str, Callable[[Path], object]] = {
    "rows.jsonl": lambda path: path.write_text(lines(ROWS), encoding="utf-8"),
    "windows.jsonl": lambda path: path.write_bytes(b"\xef\xbb\xbf" + lines(ROWS).replace("\n", "\r\n").encode()),
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=1, ensure_ascii=False), encoding="utf-8"),
    "escaped.json": lambda path: path.write_text("\ufeff" + json.dumps(ROWS), encoding="utf-8"),
    "lines.json": lambda path: path.write_text(lines(ROWS), encoding="utf-8"),
    "wrapped.json": lambda path: path.write_text(json.dumps({"version": 1, "data": ROWS})),
    "columns.json": lambda path: path.write_text(json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]})),
    "pandas.json": lambda path: path.write_text(
        json.dumps({key: {str(place): row[key] for place, row in enumerate(ROWS)} for key in ROWS[0]})
    ),
    "rows.parquet": lambda path: parquet.write_table(TABLE, path, row_group_size=700),
    "stream.arrow": lambda path: write_arrow(path, pa.ipc.new_stream),
    "file.arrow": lambda path: write_arrow(path, pa.ipc.new_file),
}


def packed(content: bytes) -> dict[str, bytes]:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return {"": content, ".gz": gzip.compress(content, 1), ".zst": sink.getvalue().to_pybytes()}


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, ending: str) -> None:
    path = tmp_path / name
    WRITERS[name](path)
    path = tmp_path / f"{name}{ending}"
    path.write_bytes(packed((tmp_path / name).read_bytes())[ending])
    rows = Rows(path, "rows")
    assert [row for _, row in rows] == ROWS
    assert rows.unit == (
        "line" if name in ("rows.jsonl", "windows.jsonl", "list.json", "escaped.json", "lines.json") else "row"
    )


@pytest.mark.parametrize(("delimiter", "name"), [(",", "r.csv"), (";", "r.csv"), ("\t", "r.tsv"), ("\t", "r.csv")])
def test_tables_keep_quotes_and_line_ends(tmp_path: Path, delimiter: str, name: str) -> None:
    path = tmp_path / name
    heading = delimiter.join(("prompt", "chosen", "rejected"))
    cells = delimiter.join(('"Say ""a"",\r\nplease; \t"', "Yes\u2028", "No"))
    path.write_bytes(f"\ufeff{heading}\r\n{cells}\r\n\r\n{delimiter.join('abc')}".encode())
    rows = list(Rows(path, "rows"))
    assert rows == [
        (2, {"prompt": 'Say "a",\r\nplease; \t', "chosen": "Yes\u2028", "rejected": "No"}),
        (5, {"prompt": "a", "chosen": "b", "rejected": "c"}),
    ]


def test_a_folder_that_datasets_saved_is_read_by_its_split(tmp_path: Path) -> None:
    made = datasets.Dataset.from_list(ROWS[:5])
    made.save_to_disk(str(tmp_path / "one"))
    assert [row for _, row in Rows(tmp_path / "one", "rows")] == ROWS[:5]
    datasets.DatasetDict({"test": made.select([4]), "train": made}).save_to_disk(str(tmp_path / "two"))
    assert [row for _, row in Rows(tmp_path / "two", "rows")] == ROWS[:5]
    assert [row for _, row in Rows(tmp_path / "two/test", "rows")] == ROWS[4:5]
    datasets.DatasetDict({"a": made, "b": made}).save_to_disk(str(tmp_path / "three"))
    with pytest.raises(InputError, match=r"the splits a, b; name one of them, such as \S+/three/a$"):
        list(Rows(tmp_path / "three", "rows"))
    (tmp_path / "four").mkdir()
    with pytest.raises(InputError, match=r"is a folder; expected rows"):
        list(Rows(tmp_path / "four", "rows"))
    (tmp_path / "four/rows.jsonl.gz").write_bytes(b"")
    with pytest.raises(InputError, match=r"is a folder; .*such as \S+/four/rows.jsonl.gz"):
        list(Rows(tmp_path / "four", "rows"))


SPLITS: dict[str, tuple[list[str], list[str]]] = {
    "by name": (["test", "train", "valid"], ["train"]),
    "in parts": (["test-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], ["train-0", "train-1"]),
    "one alone": (["test-00000-of-00001"], ["test-0"]),
    "of no split": (["0000", "0001"], ["0000", "0001"]),
    "numbered": (["train_0", "train_1", "test_0"], ["train_0", "train_1"]),
    "train and its kin": (["train-00000-of-00001", "train_prefs-00000-of-00001"], ["train-0"]),
}


@pytest.mark.parametrize("name", SPLITS)
@pytest.mark.parametrize("inside", ["", "data"])
def test_of_the_splits_of_a_folder_train_is_read(tmp_path: Path, name: str, inside: str) -> None:
    stems, read = SPLITS[name]
    (tmp_path / inside).mkdir(exist_ok=True)
    for stem in stems:
        row = {**GOOD, "prompt": re.sub(r"-0000(\d)-of.*", r"-\1", stem)}
        parquet.write_table(pa.Table.from_pylist([row]), tmp_path / inside / f"{stem}.parquet")
    assert [row["prompt"] for _, row in Rows(tmp_path, "rows")] == read


@pytest.mark.parametrize("shard", ["-00000-of-00001", ""])
def test_several_splits_without_train_are_not_mixed(tmp_path: Path, shard: str) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train_prefs", "test_prefs", "train_sft"):
        parquet.write_table(pa.Table.from_pylist([GOOD]), tmp_path / f"data/{split}{shard}.parquet")
    message = rf"the splits test_prefs, train_prefs, train_sft; name a file of one, such as \S+/test_prefs{shard}\."
    with pytest.raises(InputError, match=message):
        read_data(DataFile(path=tmp_path))


def test_a_name_on_the_hub_is_streamed_and_runs_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load(*names: object, **settings: object) -> object:
        asked.append((names, settings))
        return datasets.IterableDataset.from_generator(lambda: iter(ROWS[:3]))

    monkeypatch.setattr(datasets, "load_dataset", load)
    rows = Rows("hf://someone/pairs@refs%2Fpr%2F1/small:test", "rows")
    assert [row for _, row in rows] == ROWS[:3]
    assert asked == [(("someone/pairs", "small"), {"split": "test", "revision": "refs/pr/1", "streaming": True})]
    assert read_data(DataFile(path="hf://someone/pairs")).rows == 3
    assert asked[-1][1]["split"] == "train"


def test_a_name_on_the_hub_reaches_no_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "here"
    (folder / "org/name").mkdir(parents=True)
    for inside in (tmp_path / "x", folder, folder / "org/name"):
        inside.mkdir(exist_ok=True)
        (inside / "rows.jsonl").write_text(lines([GOOD]))
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"^hf://org/name:train: would be the .* org/name that is here; leave hf:// o"):
        list(Rows("hf://org/name:train", "rows"))
    for name in ("hf://../x", "hf://.", "hf://./rows", "hf://org/..", "hf://json"):
        with pytest.raises(InputError, match=r"is no name on the hub; expected hf://ORGANISATION/NAME"):
            list(Rows(name, "rows"))
        with pytest.raises(ValidationError, match=r"is no name on the hub; expected hf://ORGANISATION/NAME"):
            DataFile.model_validate({"path": name})
    assert main(["data", "hf://imdb"]) == 2
    assert "hf://ORGANISATION/NAME" in capsys.readouterr().err


def test_a_hub_that_is_not_reached_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object, **__: object) -> object:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert main(["data", "hf://someone/pairs"]) == 2
    error = capsys.readouterr().err
    for words in ("hf://someone/pairs: ", "no route to host", "download the files"):
        assert words in error


GOOD = {"prompt": "Q?", "chosen": "Yes.", "rejected": "No."}
HOSTILE: dict[str, tuple[str, bytes, str]] = {
    "NUL in a line": ("r.jsonl", b'{"prompt": "a\0", "chosen": "b", "rejected": "c"}', ":3: "),
    "NUL escape": ("r.jsonl", rb'{"prompt": "a\u0000", "chosen": "b", "rejected": "c"}', ":3: "),
    "a column is a number": ("r.jsonl", b'{"prompt": "a", "chosen": 3, "rejected": "c"}', ":3: 'chosen' is int"),
    "a column is a list": ("r.jsonl", b'{"prompt": "a", "chosen": [], "rejected": "c"}', ":3: 'chosen' is list"),
    "messages are numbers": (
        "r.jsonl",
        b'{"prompt": [1], "chosen": "b", "rejected": "c"}',
        ":3: 'prompt' has a message",
    ),
    "another schema": ("r.jsonl", b'{"instruction": "a", "output": "b"}', ":3: 'chosen' is missing"),
    "another schema with the same replies": (
        "r.jsonl",
        b'{"question": "a", "chosen": "b", "rejected": "c"}',
        ":3: has no",
    ),
    "a list": ("r.jsonl", b'["a"]', ":3: is list"),
    "50 MB": ("r.jsonl", b'{"prompt": "' + b"a" * 50_000_000 + b'"}', ":3: is longer than"),
    "Latin-1": ("r.jsonl", b'{"prompt": "caf\xe9"}', ":3: is not UTF-8"),
}


@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_hostile_rows_are_named_by_file_and_line_and_nothing_is_written(
    tmp_path: Path, fault: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, row, message = HOSTILE[fault]
    path, to = tmp_path / f"{name}{ending}", tmp_path / "out.jsonl"
    path.write_bytes(packed(lines([GOOD, GOOD]).encode() + row + b"\n" + lines([GOOD]).encode())[ending])
    assert main(["data", str(path), "--to", str(to), "--json"]) == 2
    captured = capsys.readouterr()
    assert f"{path}{message}" in captured.err
    assert "expected" in captured.err
    assert len(captured.err) < 700
    assert (captured.out, list(tmp_path.iterdir())) == ("", [path])


@pytest.mark.parametrize("name", ["rows.jsonl", "list.json", "rows.parquet", "stream.arrow", "file.arrow"])
@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_files_that_are_cut_off_are_refused(
    tmp_path: Path, name: str, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = tmp_path / name
    WRITERS[name](whole)
    content = packed(whole.read_bytes())[ending]
    path = tmp_path / f"cut.{whole.suffix}{ending}"
    path.write_bytes(content[: len(content) * 2 // 3])
    assert main(["data", str(path), "--json"]) == 2
    captured = capsys.readouterr()
    assert str(path) in captured.err
    assert captured.out == ""


BROKEN = {
    "row.csv": ("prompt,chosen,rejected\na,b,c\na,b\n", ":3: "),
    "long.csv": ("prompt,chosen,rejected\na,b,c\na,b,c,d\n", ":3: "),
    "quote.csv": ('prompt,chosen,rejected\na,b,c\n"a,b,c\n', ":3: "),
    "twice.csv": ("prompt,prompt,rejected\na,b,c\n", ":1: has the column 'prompt' twice"),
    "number.csv": (
        "response_1,response_2,prompt,preference_strength\na,b,c,-1\na,b,c,much\n",
        ":3: 'preference_strength'",
    ),
    "first.jsonl": ('{"prompt": 3, "chosen": "a", "rejected": "b"}', ":1: 'prompt' is 3; expected"),
    "reply.jsonl": ('{"prompt": "a", "chosen": 3, "rejected": "b"}', ":1: 'chosen' is int; expected"),
    "comma.json": ('[{"prompt": "a", "chosen": "b", "rejected": "c"}\n {"prompt": 1}]', ":2: "),
    "open.json": ('[{"prompt": "a", "chosen": "b", "rejected": "c"},\n', ":2: "),
    "deep.json": ("[" * 100_000, "nested too deeply"),
    "nan.json": ('[\n{"prompt": NaN}]', ":2: "),
    "twice.json": ('[{"prompt": "a",\n "prompt": "b"}]', "twice"),
    "two.json": ('[{"prompt": "a"}]\n[1]', ":2: "),
    "empty.json": ("", "holds no row"),
    "empty.csv": ("a,b\n", "holds no row"),
    "other.bin": ("PK\x03\x04", "in no known format"),
    "pointer.parquet": ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
    "list.jsonl": ('[\n {"prompt": "a", "chosen": "b", "rejected": "c"},\n {"prompt": 1}]', ":3: "),
    "digits.jsonl": (
        '{"prompt": "a", "answer_0": "b", "answer_1": "c", "score_0": ' + "9" * 400 + ', "score_1": 1}',
        ":1: 'score_0' is ",
    ),
    "object.json": ("{}", ":1: has no columns; expected"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_tables_and_documents_are_named_by_file_and_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert main(["data", str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert name in error
    assert message in error


def test_a_row_of_a_table_is_named_by_its_number(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "chosen": [{"role": "user", "content": "b"}], "rejected": [{"role": "bot", "content": "c"}]}
    ]
    good = [{"role": "assistant", "content": "b"}]
    rows = [{"prompt": "a", "chosen": good, "rejected": good}] * 1500 + rows
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"rows\.parquet: row 1501: .*role 'bot'; expected"):
        read_data(DataFile(path=tmp_path / "rows.parquet"))
    nul = [{**GOOD, "chosen": "a\0"}]
    parquet.write_table(pa.Table.from_pylist([GOOD, *nul]), tmp_path / "nul.parquet")
    with pytest.raises(InputError, match=r"nul\.parquet: row 2: .*NUL"):
        read_data(DataFile(path=tmp_path / "nul.parquet"))


def test_a_column_of_times_that_is_named_as_texts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.Table.from_pylist([{**GOOD, "at": date(2026, 1, 2)}]), path)
    with pytest.raises(InputError, match=r"'at', which 'columns' names as prompt, is \"2026-01-02\"; expected"):
        read_data(DataFile(path=path, columns={"prompt": "at"}))


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    import pickle

    (tmp_path / "rows.pkl").write_bytes(pickle.dumps([GOOD]))
    with pytest.raises(InputError, match="in no known format"):
        read_data(DataFile(path=tmp_path / "rows.pkl"))


def test_licences_that_allow_no_commercial_use_are_warned_of(tmp_path: Path) -> None:
    (tmp_path / "row.jsonl").write_text(lines([GOOD | {"license": "CC-BY-NC-SA-4.0"}]))
    assert any("CC-BY-NC-SA-4.0" in warning for warning in read_data(DataFile(path=tmp_path / "row.jsonl")).warnings)
    (tmp_path / "card.jsonl").write_text(lines([GOOD]))
    assert read_data(DataFile(path=tmp_path / "card.jsonl")).warnings == ()
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# A set\n")
    assert any("cc-by-nc-4.0" in warning for warning in read_data(DataFile(path=tmp_path / "card.jsonl")).warnings)


def test_weights_say_how_much_of_each_file_is_taken(tmp_path: Path) -> None:
    assert mixture([100, 30], [None, None]) == [100, 30]
    assert mixture([100, 30], [2.0, 1.0]) == [60, 30]
    assert mixture([100, 30], [1.0, 1.0]) == [30, 30]
    with pytest.raises(ValueError, match="some files have a weight"):
        mixture([1, 1], [1.0, None])
    for name, count in (("a", 100), ("b", 30)):
        (tmp_path / name).with_suffix(".jsonl").write_text(
            lines([{"prompt": f"{name} {number}", "chosen": "Yes.", "rejected": "No."} for number in range(count)])
        )
    files = [DataFile(path=tmp_path / "a.jsonl", weight=2), DataFile(path=tmp_path / "b.jsonl", weight=1)]
    read = read_comparisons(files, seed=1)
    assert [sum(place.path == file.path for place in read.places) for file in files] == [60, 30]
    assert read.places == read_comparisons(files, seed=1).places != read_comparisons(files, seed=2).places
    everything = read_comparisons([file.model_copy(update={"weight": None}) for file in files])
    assert len(everything.preferences) == 130


def test_an_object_is_rows_only_where_it_holds_rows() -> None:
    assert rows_within({"a": [1, 2], "b": [3, 4]}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    assert rows_within({"rows": [{"x": 1}], "note": "n"}) == [{"x": 1}]
    assert rows_within({"harmful0": {"prompt": ["p"]}, "harmful1": {"prompt": ["q"]}}) is None
    assert rows_within({"messages": [{"role": "user", "content": "a"}]}) is None


def test_one_pair_of_conversations_is_one_row(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "Q?"}
    yes, no = ({"role": "assistant", "content": reply} for reply in ("Yes.", "No."))
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"chosen": [asked, yes], "rejected": [asked, no]}, indent=1))
    reading = read_data(DataFile(path=path))
    assert (reading.rows, reading.samples[0]["chosen"], reading.samples[0]["rejected"]) == (1, "Yes.", "No.")
    assert rows_within({"messages": [asked, yes], "tags": ["a", "b"]}) is None
    columns = {"prompt": ["Q?", "W?"], "chosen": [yes, yes], "rejected": [no, no]}
    assert rows_within(columns) == [{"prompt": asked, "chosen": yes, "rejected": no} for asked in ("Q?", "W?")]
