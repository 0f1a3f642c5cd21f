import gzip
import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from constitutional.base.errors import InputError
from constitutional.base.records import Message, Prompt
from constitutional.base.shipped import shipped
from constitutional.cli.main import main
from constitutional.data.prompts import MAX_CHARACTERS, conversation_of, load_prompt_set, opening_of, prompts_within
from constitutional.data.reading import read_data
from constitutional.data.sources import DataFile
from constitutional.stages.prompts import FilePrompts


def write(tmp_path: Path, content: str | bytes, name: str = "mine.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def loaded(path: Path, *, held_out: int, seed: int) -> list[Prompt]:
    return list(load_prompt_set(path, held_out=held_out, seed=seed).prompts)


def last_texts(prompts: list[Prompt]) -> list[str]:
    return [prompt.messages[-1].content for prompt in prompts]


def test_a_line_is_a_text_a_prompt_or_messages(tmp_path: Path) -> None:
    conversation = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    lines = [
        '"One: {{ x }}\\n"',
        '{"prompt": "Two\\u2028"}',
        json.dumps({"messages": conversation, "split": "held_out"}),
    ]
    prompts = loaded(write(tmp_path, "\n\n".join(lines)), held_out=0, seed=0)
    assert prompts == [
        Prompt(messages=(Message("user", "One: {{ x }}\n"),), source="mine.jsonl"),
        Prompt(messages=(Message("user", "Two\u2028"),), source="mine.jsonl"),
        Prompt(
            messages=tuple(Message(message["role"], message["content"]) for message in conversation),  # type: ignore[arg-type]
            split="held_out",
            source="mine.jsonl",
        ),
    ]


def test_a_text_file_holds_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path, b'\xef\xbb\xbf"Quoted"\r\n\r\n  \n{"prompt": 1}\nlast\x0bone', "mine.txt")
    assert last_texts(loaded(path, held_out=0, seed=0)) == ['"Quoted"', '{"prompt": 1}', "last\x0bone"]


BAD = [
    (b'{"prompt": "a"', "is not JSON: Expecting ',' delimiter"),
    (b"hello", "is not JSON: Expecting value.*expected a text in quotes"),
    (b"NaN", "is not JSON: NaN is no JSON value"),
    (b'{"prompt": Infinity}', "is not JSON: Infinity is no JSON value"),
    (b"17", "17 is no prompt; expected a text in quotes"),
    (b"null", "null is no prompt"),
    (b'["a"]', r'\["a"\] is no prompt'),
    (b'{"prompt": 17}', "17, which is no prompt"),
    (b'{"prompt": null}', "None, which is no prompt"),
    (b'{"prmopt": "a"}', "unknown key 'prmopt'.*did you mean 'prompt'"),
    (b'{"prompt": "a", "prompt": "b"}', "has the key 'prompt' twice"),
    (b'{"prompt": "a", "messages": []}', "does not end with a user's message"),
    (b"{}", "none of which holds a prompt"),
    (b'{"prompt": "a", "split": "test"}', 'the split \'test\'; expected "train" or "held_out"'),
    (b'{"prompt": "a", "split": []}', r"the split \[\]; expected"),
    (b'{"messages": []}', "does not end with a user's message"),
    (b'{"messages": [{"role": "assistant", "content": "a"}]}', "does not end with a user's message"),
    (b'{"messages": [{"role": "bot", "content": "a"}]}', "role 'bot'; expected system, user, assistant"),
    (b'{"messages": [{"role": [], "content": "a"}]}', r"role \[\]; expected system, user, assistant"),
    (b'{"messages": [{"role": "user"}]}', "null, which is no message"),
    (b'{"messages": ["a"]}', 'a message that is "a"; expected {"role"'),
    (b'{"messages": [{"role": "user", "content": 1}]}', "1, which is no message"),
    (b'" \\n"', "has an empty message"),
    (rb'"\ud83d"', r"half of a surrogate pair \(\\ud83d\)"),
    (b'"\\u0000"', "holds a NUL character"),
    (b'"a\0"', "holds a NUL character; save the file as UTF-8"),
    (b'"\xff"', r"is not UTF-8 text \(invalid start byte\)"),
    (b'"\xed\xa0\x80"', "is not UTF-8 text"),
    (b'"' + b"a" * (MAX_CHARACTERS + 1) + b'"', "has 100,001 characters; at most 100,000"),
    (b"[" * 100_000, "is nested too deeply"),
    (b"1" * 5000, "is not JSON: Exceeds the limit"),
]


@pytest.mark.parametrize(("line", "complaint"), BAD, ids=range(len(BAD)))
def test_a_line_that_is_no_prompt_is_named_by_its_number(tmp_path: Path, line: bytes, complaint: str) -> None:
    path = write(tmp_path, b'"good"\n\n' + line + b'\n"also good"\n')
    with pytest.raises(InputError, match=complaint) as caught:
        loaded(path, held_out=0, seed=0)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert len(str(caught.value)) < 500


def test_the_longest_prompt_is_allowed(tmp_path: Path) -> None:
    (prompt,) = loaded(write(tmp_path, json.dumps("a" * MAX_CHARACTERS)), held_out=0, seed=0)
    assert len(prompt.messages[0].content) == 100_000


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("mine.jsonl", "", "mine.jsonl: holds no prompt; expected"),
        ("mine.txt", "\n \n", "mine.txt: holds no prompt"),
        ("mine.csv", "a", "mine.csv: holds no prompt"),
        ("mine.docx", "a", "mine.docx: is in no known format by its name; expected"),
        ("mine.txt", "a\n\x00", "mine.txt:2: holds a NUL"),
        ("mine.txt", "a" * 100_001, "mine.txt:1: has 100,001 characters"),
        ("mine.jsonl", '\ufeff"a"'.encode("utf-16-le").decode("latin-1"), "mine.jsonl:1: holds a NUL"),
    ],
)
def test_a_file_that_is_no_prompt_set_is_refused(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        loaded(write(tmp_path, content, name), held_out=0, seed=0)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_prompts_in_utf_16_are_called_so(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(InputError, match=r"mine\.jsonl:1: is UTF-16 text; save the file as UTF-8"):
        load_prompt_set(write(tmp_path, '\ufeff"a"\n'.encode(encoding)), held_out=0, seed=0)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        loaded(tmp_path / "mine.jsonl", held_out=0, seed=0)
    (tmp_path / "mine.txt").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        loaded(tmp_path / "mine.txt", held_out=0, seed=0)


def test_a_prompt_that_stands_twice_is_kept_once_and_its_line_is_known(tmp_path: Path) -> None:
    path = write(tmp_path, '"a"\n{"prompt": " a ", "split": "held_out"}\n"b"\n{"prompt": "a"}\n')
    prompts, repeated, _ = load_prompt_set(path, held_out=0, seed=0)
    assert [(prompt.messages[0].content, prompt.split) for prompt in prompts] == [("a", "held_out"), ("b", "train")]
    assert [place.number for place in repeated] == [2, 4]


def test_each_prompts_line_is_known(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\ntwo\none\nthree\n")
    found = load_prompt_set(path, held_out=1, seed=0)
    assert list(
        zip(
            [prompt.messages[0].content for prompt in found.prompts],
            [place.number for place in found.places],
            strict=True,
        )
    ) == [
        ("one", 1),
        ("two", 3),
        ("three", 5),
    ]


def test_a_prompt_cannot_be_declared_for_both_splits(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "a", "split": "train"}\n{"prompt": "a"}\n{"prompt": "a", "split": "held_out"}')
    with pytest.raises(InputError, match=r"jsonl:3: is the same prompt as in line 1, .*held_out here and train there"):
        loaded(path, held_out=0, seed=0)


def test_declared_splits_are_kept_and_as_many_more_as_are_missing_are_drawn(tmp_path: Path) -> None:
    lines = [json.dumps(f"open {number}") for number in range(20)]
    lines += ['{"prompt": "never", "split": "train"}', '{"prompt": "always", "split": "held_out"}']
    path = write(tmp_path, "\n".join(lines))
    drawn = Counter[str]()
    for seed in range(30):
        prompts = loaded(path, held_out=5, seed=seed)
        held = [prompt.messages[0].content for prompt in prompts if prompt.split == "held_out"]
        assert len(held) == 5
        assert "always" in held
        assert "never" not in held
        drawn.update(held)
        assert loaded(path, held_out=5, seed=seed) == prompts
    assert len(drawn) == 21  # each open one now and then: that one is never drawn has a chance of 0.8^30 = 0.1%
    assert Counter(prompt.split for prompt in loaded(path, held_out=0, seed=0))["held_out"] == 1


@pytest.mark.parametrize("beside", [{"id": 7}, {"id": "7", "source": "x", "info": {}}, {"topic": "cats"}])
def test_a_prompt_declared_held_out_is_so_whatever_columns_stand_beside(
    tmp_path: Path, beside: dict[str, object]
) -> None:
    """Prompts with ids, those that a run wrote, and those of other tools."""
    splits = {"a": "held_out", "b": "train", "c": "held_out"}
    rows = [
        {"messages": [{"role": "user", "content": text}], "split": split} | beside for text, split in splits.items()
    ]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)))
    assert {prompt.messages[0].content: prompt.split for prompt in loaded(path, held_out=0, seed=0)} == splits
    assert read_data(DataFile(path=path)).columns == {"prompt": "messages", "split": "split"}


def test_the_words_of_another_set_s_split_are_not_ours(tmp_path: Path) -> None:
    rows = [{"prompt": text, "split": split, "id": 1} for text, split in zip("abc", ("train", "test", 3), strict=True)]
    path = write(tmp_path, "\n".join(map(json.dumps, rows)))
    assert {prompt.split for prompt in loaded(path, held_out=0, seed=0)} == {"train"}
    assert read_data(DataFile(path=path)).ignored_columns == ("split", "id")


def test_prompts_added_later_leave_most_of_the_split_as_it_was(tmp_path: Path) -> None:
    def held(count: int) -> set[str]:
        path = write(tmp_path, "\n".join(json.dumps(f"prompt {number}") for number in range(count)))
        return {p.messages[0].content for p in loaded(path, held_out=10, seed=0) if p.split == "held_out"}

    # The ten smallest digests of 100: each of ten more prompts gets among them with a chance of about a tenth.
    assert len(held(100) & held(110)) >= 7


@pytest.mark.parametrize("held_out", [2, 3])
def test_something_must_be_left_to_train_on(tmp_path: Path, held_out: int) -> None:
    with pytest.raises(
        InputError, match=f"holds 2 different prompts.*held_out={held_out} none is left to train on.*or ask for fewer"
    ):
        loaded(write(tmp_path, '"a"\n"b"'), held_out=held_out, seed=0)


TEXTS = ["Où est le café préféré d'Élise ?", "List:\n- a", "How do I bake bread?", "Hi there", "Say it"]
TWINS = [
    unicodedata.normalize("NFD", TEXTS[0]),
    "List:\r\n- a",
    "How do I  bake bread? ",
    "\ufeff\u200bHi there",
    "Say\u00a0it",
]


def test_prompts_that_people_read_as_one_are_one(tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join(map(json.dumps, TEXTS + TWINS)))
    prompts, repeated, _ = load_prompt_set(path, held_out=2, seed=0)
    assert last_texts(list(prompts)) == TEXTS
    assert [place.number for place in repeated] == [6, 7, 8, 9, 10]


@pytest.mark.parametrize(("text", "twin"), list(zip(TEXTS, TWINS, strict=True)))
def test_no_prompt_is_in_both_splits_by_its_bytes_alone(tmp_path: Path, text: str, twin: str) -> None:
    lines = [{"prompt": text, "split": "train"}, {"prompt": "else"}, {"prompt": twin, "split": "held_out"}]
    with pytest.raises(InputError, match=r"jsonl:3: is the same prompt as in line 1"):
        loaded(write(tmp_path, "\n".join(map(json.dumps, lines))), held_out=0, seed=0)


def talk(*texts: str, split: str | None = None) -> str:
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return json.dumps({"messages": turns} | ({"split": split} if split else {}))


def test_no_conversation_to_train_on_goes_on_from_a_held_out_prompt(tmp_path: Path) -> None:
    lines = [talk("Name a colour.", "Blue.", "Another?", split="train"), talk("Name a\u00a0colour.", split="held_out")]
    with pytest.raises(InputError, match=r"jsonl:1: is to be trained on and goes on from the prompt in line 2"):
        loaded(write(tmp_path, "\n".join(lines)), held_out=0, seed=0)


def test_open_lines_follow_the_lines_that_they_go_on_from(tmp_path: Path) -> None:
    lines = [
        talk("a", "b", "c"),  # goes on from what is held out
        talk("a", split="held_out"),
        talk("d"),  # is what a line to train on goes on from
        talk("d", "e", "f", split="train"),
        talk("d", "e", "f", "g", "h", split="held_out"),  # what is trained on may begin what is held out
        talk("z"),
    ]
    prompts = loaded(write(tmp_path, "\n".join(lines)), held_out=3, seed=0)
    assert [prompt.split for prompt in prompts] == ["held_out", "held_out", "train", "train", "held_out", "train"]


def test_conversations_that_go_on_from_one_prompt_are_drawn_together(tmp_path: Path) -> None:
    lines = [talk(f"q{number}") for number in range(20)] + [talk(f"q{number}", "a", "b") for number in range(20)]
    path = write(tmp_path, "\n".join(lines))
    for seed in range(10):
        prompts = loaded(path, held_out=10, seed=seed)
        splits = [prompt.split for prompt in prompts]
        assert splits[:20] == splits[20:]
        assert splits.count("held_out") == 10


@pytest.mark.parametrize(
    ("lines", "held_out"),
    [
        (['{"prompt": "1", "split": "held_out"}', '{"prompt": "2", "split": "held_out"}'], 0),
        (['{"prompt": "1", "split": "held_out"}', '{"prompt": "2", "split": "held_out"}'], 2),
        (['{"prompt": "1", "split": "held_out"}', '"1"'], 0),
        (['{"prompt": "1", "split": "held_out"}', '"2"'], 2),
        (['"1"'], 1),
    ],
)
def test_a_file_with_no_line_to_train_on_is_refused(tmp_path: Path, lines: list[str], held_out: int) -> None:
    with pytest.raises(InputError, match="none is left to train on") as caught:
        loaded(write(tmp_path, "\n".join(lines)), held_out=held_out, seed=0)
    assert caught.value.exit_code == 2


def test_more_held_out_than_the_file_leaves_open_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"prompts\.held_out=3 asks for 2 more than there are"):
        loaded(write(tmp_path, '{"prompt": "1", "split": "train"}\n"2"'), held_out=3, seed=0)


def test_a_file_may_be_compressed(tmp_path: Path) -> None:
    for name, content in (("p.jsonl.gz", b'"a"\n'), ("p.txt.gz", b"a\n"), ("p.txt", b"a\n")):
        (tmp_path / name).write_bytes(gzip.compress(content))
        assert last_texts(loaded(tmp_path / name, held_out=0, seed=0)) == ["a"]


SFT = [
    (
        {
            "messages": [
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": "A"},
            ],
            "prompt": "Q",
            "prompt_id": "1",
        },
        [("system", "Be kind."), ("user", "Q")],
    ),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, [("user", "Q")]),
    ({"instruction": "Translate.", "input": "Q", "output": "A"}, [("user", "Translate.\nQ")]),
    ({"instruction": "Say Q.", "input": "", "output": "A"}, [("user", "Say Q.")]),
    ({"system_prompt": "Be kind.", "question": "Q", "response": "A"}, [("system", "Be kind."), ("user", "Q")]),
    ({"system_prompt": "", "question": "Q", "response": "A"}, [("user", "Q")]),
    ({"query": "Q", "response": "A"}, [("user", "Q")]),
    (
        {"transcript": "\n\nHuman: P\n\nAssistant: A\n\nHuman: Q\n\nAssistant: B", "rating": 1, "num_params": "52B"},
        [("user", "P"), ("assistant", "A"), ("user", "Q")],
    ),
    ({"chosen": "\n\nHuman: Q\n\nAssistant: A", "rejected": "\n\nHuman: Q\n\nAssistant: B"}, [("user", "Q")]),
    ({"prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}], "split": "train"}, [("user", "Q")]),
]


@pytest.mark.parametrize(("row", "expected"), SFT)
def test_the_columns_of_sets_for_fine_tuning_are_known(
    tmp_path: Path, row: dict[str, object], expected: list[tuple[str, str]]
) -> None:
    (prompt,) = loaded(write(tmp_path, json.dumps(row | {"source": "made"})), held_out=0, seed=0)
    assert [(message.role, message.content) for message in prompt.messages] == expected


def test_tool_turns_are_kept_as_they_are(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": {"name": "weather"}}]}
    told = {"role": "tool", "content": "sunny", "tool_call_id": "1"}
    turns = [{"role": "user", "content": "Rome?"}, call, told, {"role": "assistant", "content": "Sunny."}]
    (prompt,) = loaded(write(tmp_path, json.dumps({"messages": turns})), held_out=0, seed=0)
    assert [message.turn() for message in prompt.messages] == [turns[0], call | {"content": ""}, told]
    assert Prompt.model_validate_json(prompt.model_dump_json()) == prompt
    plain = Prompt.of("Rome?")
    assert "extra" not in plain.model_dump_json()  # rows of before keep their ids


def test_a_share_that_is_held_out_stays_so_when_the_file_grows(tmp_path: Path) -> None:
    def held(count: int) -> set[str]:
        path = write(tmp_path, "\n".join(json.dumps(f"prompt {number}") for number in range(count)))
        read = load_prompt_set(path, held_out=200, seed=0, share=0.2).prompts
        return {prompt.messages[0].content for prompt in read if prompt.split == "held_out"}

    few, many = held(100), held(1000)
    assert few == {name for name in many if int(name.split()[1]) < 100}
    assert 10 <= len(few) <= 32  # 20 ± 3 deviations
    talks = [line for number in range(20) for line in (talk(f"q{number}"), talk(f"q{number}", "a", "b"))]
    read = list(load_prompt_set(write(tmp_path, "\n".join(talks)), held_out=0, seed=0, share=0.5).prompts)
    assert [prompt.split for prompt in read[::2]] == [prompt.split for prompt in read[1::2]]


def test_prompts_of_several_files_are_mixed_by_their_weights(tmp_path: Path) -> None:
    for name, count in (("a", 30), ("b", 10)):
        write(tmp_path, "\n".join(f"{name} {number}" for number in range(count)), f"{name}.txt")
    files = [DataFile(path=tmp_path / "a.txt", weight=1), DataFile(path=tmp_path / "b.txt", weight=1)]
    read = load_prompt_set(files, held_out=0, seed=0)
    assert Counter(prompt.source for prompt in read.prompts) == {"a.txt": 10, "b.txt": 10}
    plain = load_prompt_set([DataFile(path=file.path) for file in files], held_out=0, seed=0)
    assert Counter(prompt.source for prompt in plain.prompts) == {"a.txt": 30, "b.txt": 10}
    named = write(tmp_path, json.dumps({"ask": "Q", "prompt": 3}))
    (prompt,) = load_prompt_set([DataFile(path=named, columns={"prompt": "ask"})], held_out=0, seed=0).prompts
    assert prompt.messages == (Message("user", "Q"),)


def test_the_command_reads_prompts_and_writes_them_as_our_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "A"}], "id": number}
        for number, text in enumerate(("one", "two", "one"))
    ]
    path, to = write(tmp_path, "\n".join(map(json.dumps, rows))), tmp_path / "ours.jsonl"
    assert main(["data", str(path), "--json", "--to", str(to)]) == 0
    reading = json.loads(capsys.readouterr().out)
    assert (reading["kind"], reading["rows"], reading["prompts"], reading["duplicates"]) == ("prompts", 3, 2, 1)
    assert (reading["pairs"], reading["columns"], reading["ignored_columns"]) == (
        0,
        {"prompt": "conversations"},
        ["id"],
    )
    assert reading["samples"][1] == {"messages": [{"role": "user", "content": "two"}]}
    assert to.read_text() == '{"prompt": "one"}\n{"prompt": "two"}\n'
    assert main(["data", str(write(tmp_path, '{"conversations": [{"from": "bot", "value": "x"}]}'))]) == 2
    error = capsys.readouterr().err
    assert "mine.jsonl:1: " in error
    assert "role 'bot'; expected" in error


@pytest.mark.parametrize(("prompts", "set_aside"), [(3, 2), (8, 2), (10, 3), (200, 60), (700, 200)])
def test_three_tenths_are_set_aside_where_nobody_says_how_many(tmp_path: Path, prompts: int, set_aside: int) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"Question {number}?\n" for number in range(prompts)))
    read = load_prompt_set(path, held_out=None, seed=0).prompts
    assert sum(prompt.split == "held_out" for prompt in read) == set_aside


def test_a_system_message_is_put_before_prompts_that_have_none(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    own = {"messages": [{"role": "system", "content": "Be odd."}, {"role": "user", "content": "Two?"}]}
    path.write_text(f'{{"prompt": "One?"}}\n{json.dumps(own)}\n')
    one, two = load_prompt_set(path, held_out=0, seed=0, system="Be brief.").prompts
    assert [(turn.role, turn.content) for turn in one.messages] == [("system", "Be brief."), ("user", "One?")]
    assert [turn.content for turn in two.messages] == ["Be odd.", "Two?"]


@pytest.mark.parametrize(
    ("rows", "read"),
    [
        (["One?", {"prompt": "Two?", "system": "S"}], [("user", "One?"), ("system", "S"), ("user", "Two?")]),
        (
            [{"prompt": "One?"}, {"prompt": "Two?", "system": "S"}],
            [("user", "One?"), ("system", "S"), ("user", "Two?")],
        ),
        (
            [{"instruction": "Sing.", "output": "x"}, {"instruction": "Translate:", "input": "the cat", "output": "x"}],
            [("user", "Sing."), ("user", "Translate:\nthe cat")],
        ),
        (
            [{"instruction": "One?", "history": None}, {"instruction": "Two?", "history": [["Hi", "Ho"]]}],
            [("user", "One?"), ("user", "Hi"), ("assistant", "Ho"), ("user", "Two?")],
        ),
        # What the first row shows to be something else is not read.
        (
            [{"prompt": "One?", "system": 3, "id": 1}, {"prompt": "Two?", "system": "S"}],
            [("user", "One?"), ("user", "Two?")],
        ),
    ],
)
def test_what_goes_with_a_prompt_is_read_where_the_first_row_lacks_it(
    tmp_path: Path, rows: list[object], read: list[tuple[str, str]]
) -> None:
    path = write(tmp_path, "\n".join(map(json.dumps, rows)))
    prompts = loaded(path, held_out=0, seed=0)
    assert [(turn.role, turn.content) for prompt in prompts for turn in prompt.messages] == read


def test_a_column_that_later_rows_alone_have_is_shown_as_read(tmp_path: Path) -> None:
    path = write(tmp_path, '{"prompt": "One?"}\n{"prompt": "Two?", "system": "S"}\n')
    assert read_data(DataFile(path=path)).columns == {"prompt": "prompt", "system": "system"}


def test_the_shipped_prompts_are_two_hundred_different_ones() -> None:
    prompts = load_prompt_set(shipped("prompts") / "sets" / "everyday.txt", held_out=None, seed=0)
    assert (len(prompts.prompts), len(prompts.repeated)) == (200, 0)
    assert FilePrompts(path=Path("everyday")).path == shipped("prompts") / "sets" / "everyday.txt"
    assert FilePrompts(path=Path("mine.txt")).path == Path("mine.txt")


def test_the_opening_of_a_conversation_is_its_shortest_prompt_without_the_system_s_message() -> None:
    messages = (
        Message("system", "Be  calm."),
        Message("user", " Why? "),
        Message("assistant", "So.", extra='{"k": 1}'),
        Message("user", "Really?"),
    )
    turns = [(message.role, message.content, message.extra) for message in messages]
    assert opening_of(turns) == opening_of(turns[1:]) == (("user", "Why?"),)
    assert opening_of(turns) == next(prompts_within(conversation_of(messages[1:])))
    assert opening_of([("tool", "42", '{"k": 1}'), *turns]) == (("tool", '42{"k": 1}'),)
