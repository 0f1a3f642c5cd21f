import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from constitutional.base.errors import InputError
from constitutional.base.jsonl import MOST_BYTES, read_jsonl, read_lines
from constitutional.cli.main import main
from constitutional.data.answers import load_answers, load_hhh
from constitutional.data.comparisons import read_comparisons
from constitutional.data.prompts import load_prompt_set
from constitutional.data.verdicts import read_verdicts
from constitutional.stages.critique_revise import read_shots
from constitutional.stages.sft import read_helpful

HHH: dict[str, object] = {
    "prompt": "Choose. Options:\n (A) [[[a TEXT]]]\n (B) [[[b]]]\n\nThe answer is:",
    "corrects": [" (A)"],
    "text_correct": "\n\nHuman: Q\n\nAssistant: a TEXT",
}
CALLERS: dict[str, tuple[Callable[[Path], object], dict[str, object]]] = {
    "prompts": (lambda path: list(load_prompt_set(path, held_out=0, seed=0).prompts), {"prompt": "Say TEXT."}),
    "pairs": (read_comparisons, {"prompt": "Say TEXT.", "chosen": "A", "rejected": "B"}),
    "verdicts": (lambda path: read_verdicts(path, None), {"comparison": "c", "rater": "TEXT", "choice": "a"}),
    "answers": (load_answers, {"prompt": "Say TEXT.", "chosen": "A", "rejected": "B"}),
    "hhh": (load_hhh, HHH),
    "few-shot": (
        read_shots,
        {"messages": [{"role": "user", "content": "Say TEXT."}, {"role": "assistant", "content": "A"}]},
    ),
    "helpful": (read_helpful, {"prompt": "Say TEXT.", "response": "A"}),
}
callers = pytest.mark.parametrize("caller", CALLERS)


def line_of(caller: str, text: str = "it") -> bytes:
    """A good line with a text in it, which may be spelled in JSON's escapes."""
    return json.dumps(CALLERS[caller][1]).replace("TEXT", text).encode("utf-8", "surrogatepass")


def with_twice(line: bytes) -> bytes:
    value = json.loads(line)
    key = next(iter(value))
    return line[:-1] + f", {json.dumps(key)}: {json.dumps(value[key])}}}".encode()


def with_number(line: bytes, number: str) -> bytes:
    return line[:-1] + f', "x": {number}}}'.encode()


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut off": (lambda line: line[:-3], "is not JSON"),
    "two values": (lambda line: line + b" " + line, "is not JSON"),
    "NUL byte": (lambda line: line.replace(b"it", b"i\0t"), "NUL"),
    "NUL escape": (lambda line: line.replace(b"it", rb"i\u0000t"), "NUL"),
    "lone surrogate": (lambda line: line.replace(b"it", rb"i\ud83dt"), r"surrogate pair (\ud83d)"),
    "lower half": (lambda line: line.replace(b"it", rb"i\uDE00t"), r"surrogate pair (\ude00)"),
    "surrogate bytes": (lambda line: line.replace(b"it", b"\xed\xa0\x80"), "is not UTF-8"),
    "Latin-1": (lambda line: line.replace(b"it", b"caf\xe9"), "is not UTF-8"),
    "key twice": (with_twice, "twice"),
    "NaN": (lambda line: with_number(line, "NaN"), "NaN"),
    "Infinity": (lambda line: with_number(line, "-Infinity"), "Infinity"),
    "too large a number": (lambda line: with_number(line, "1e999"), "1e999"),
    "number of 5,000 digits": (lambda line: with_number(line, "1" * 5000), "is not JSON"),
    "deep": (lambda line: with_number(line, "[" * 100_000), "nested too deeply"),
    "50 MB": (lambda line: line.replace(b"it", b"i" * 50_000_000), "MiB"),
    "list": (lambda _: b"[1]", "expected"),
    "null": (lambda _: b"null", "expected"),
}


@callers
@pytest.mark.parametrize("fault", BAD)
@pytest.mark.parametrize("packed", [False, True])
def test_a_bad_line_is_refused_with_file_and_line(tmp_path: Path, caller: str, fault: str, packed: bool) -> None:
    spoil, word = BAD[fault]
    content = line_of(caller, "first") + b"\n\r\n" + spoil(line_of(caller)) + b"\n"
    path = tmp_path / "rows.jsonl"
    path.write_bytes(gzip.compress(content, 1) if packed else content)
    with pytest.raises(InputError) as caught:
        CALLERS[caller][0](path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert word in str(caught.value)
    assert "expected" in str(caught.value)
    assert caught.value.exit_code == 2
    assert len(str(caught.value)) < 700


@callers
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
@pytest.mark.parametrize("packed", [False, True])
def test_marks_line_ends_and_blank_lines_are_read_alike(tmp_path: Path, caller: str, name: str, packed: bool) -> None:
    read, path = CALLERS[caller][0], tmp_path / name
    path.write_bytes(line_of(caller, "one") + b"\n" + line_of(caller, "two") + b"\n")
    plain = read(path)
    dressed = b"\xef\xbb\xbf\r\n \t\r\n" + line_of(caller, "one") + b"\r\n\r\n" + line_of(caller, "two")
    path.write_bytes(gzip.compress(dressed) if packed else dressed)
    again = read(path)
    # Pairs also say where they stand: in the lines 3 and 5 here, and 1 and 2 there.
    told = str(again)
    for here, there in ((3, 1), (5, 2)):
        told = told.replace(f"{name}:{here}", f"{name}:{there}").replace(f"number={here}", f"number={there}")
    assert told == str(plain)


@callers
def test_line_ends_of_unicode_and_emoji_stay_within_their_text(tmp_path: Path, caller: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(line_of(caller, "a\u2028b\u0085c\N{GRINNING FACE}") + b"\n" + line_of(caller, r"a\ud83d\ude00"))
    found = str(CALLERS[caller][0](path))
    assert ascii("a\u2028b\u0085c\N{GRINNING FACE}")[1:-1] in ascii(found).replace("\\\\", "\\")
    assert "a\N{GRINNING FACE}" in found


@callers
def test_what_is_no_readable_file_is_refused(tmp_path: Path, caller: str) -> None:
    read = CALLERS[caller][0]
    with pytest.raises(InputError, match=r"nowhere\.jsonl: there is no such file; expected"):
        read(tmp_path / "nowhere.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder\.jsonl: is a folder; expected"):
        read(tmp_path / "folder.jsonl")
    torn, whole = tmp_path / "torn.jsonl", gzip.compress((line_of(caller) + b"\n") * 300)
    torn.write_bytes(whole[:-9])
    with pytest.raises(InputError, match=r"torn\.jsonl:\d+: is a damaged gzip file"):
        read(torn)
    torn.write_bytes(whole + b"rest")
    with pytest.raises(InputError, match=r"torn\.jsonl:\d+: is a damaged gzip file"):
        read(torn)
    torn.write_bytes('\ufeff"a"'.encode("utf-16-le"))
    with pytest.raises(InputError, match=r"torn\.jsonl:1: is UTF-16 text; save the file as UTF-8"):
        read(torn)
    torn.write_bytes(b"")
    with pytest.raises(InputError, match="expected"):
        read(torn)


def test_a_file_without_line_ends_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "endless"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of NULs, which the disk does not hold
    with pytest.raises(InputError, match=f"longer than {MOST_BYTES >> 20} MiB"):
        next(read_lines(path, "text"))


def test_lines_are_yielded_with_their_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text('\n1\n\n{"a": [null, "\\u00e9"]}')
    assert list(read_jsonl(path, "rows")) == [(2, 1), (4, {"a": [None, "é"]})]


def test_the_command_says_it_in_one_line_and_exits_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('"good"\n{"prompt": "\\ud800"}\n')
    assert main(["run", "name=r", "prompts=file", "prompts.path=p.jsonl"]) == 2
    error = capsys.readouterr().err
    assert "p.jsonl:2: " in error
    assert "Traceback" not in error
    assert not Path("runs").exists()
