import gzip
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from constitutional.base.errors import InputError, ModelError
from constitutional.base.records import Message
from constitutional.data.comparisons import check_pairs, read_comparisons
from constitutional.data.verdicts import read_verdicts

HH_RLHF = Path(__file__).resolve().parents[3] / "shared/data/hh-rlhf/harmless-base-pairs.jsonl.gz"


def written(folder: Path, *rows: object, name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def test_transcripts_become_a_conversation_and_two_replies(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: What is 6 x 7?\n\nAssistant:"
    path = written(tmp_path, {"chosen": f"{start} 42", "rejected": f"{start} No idea."})
    [preference] = read_comparisons(path).preferences
    said = ("user", "Hi"), ("assistant", "Hello!"), ("user", "What is 6 x 7?")
    assert [(message.role, message.content) for message in preference.prompt.messages] == list(said)
    assert (preference.chosen, preference.rejected) == ("42", "No idea.")
    assert (preference.probability, preference.source, preference.prompt.source) == (1.0, "human", "pairs.jsonl")
    assert preference.rests_on == ("pairs.jsonl:1",)


@pytest.mark.parametrize(
    "text",
    [
        "Note: this is it: ok",
        "He said Human: no",
        "a  Human: b\n\n Assistant: c",
        "\nHuman: one line above only",
        "{{ braces }} and {% tags %}",
        "  two spaces before and after  ",
        "Human and Assistant:\n\nHumans: many",
    ],
)
def test_any_text_between_the_markers_survives_unchanged(tmp_path: Path, text: str) -> None:
    question = f"x{text}"
    start = f"\n\nHuman: {question}\n\nAssistant: "
    [preference] = read_comparisons(
        written(tmp_path, {"chosen": start + text, "rejected": start + "other"})
    ).preferences
    assert preference.chosen == text
    assert preference.prompt.messages == (Message("user", question),)


def test_two_turns_of_one_speaker_in_a_row_become_one(tmp_path: Path) -> None:
    start = "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:"
    [preference] = read_comparisons(written(tmp_path, {"chosen": f"{start} e", "rejected": f"{start} f"})).preferences
    assert [message.content for message in preference.prompt.messages] == ["a", "b\n\nc", "d"]


def test_what_is_equal_or_answers_different_conversations_is_left_out_and_counted(tmp_path: Path) -> None:
    one, two = "\n\nHuman: 1\n\nAssistant: ", "\n\nHuman: 2\n\nAssistant: "
    found = read_comparisons(
        written(
            tmp_path,
            {"chosen": f"{one}yes", "rejected": f"{one}yes "},
            {"chosen": f"{one}yes", "rejected": f"{two}no"},
            "",
            {"chosen": f"{one}yes", "rejected": f"{one}no"},
        )
    )
    assert (found.counts["empty"], found.counts["equal"], found.counts["different_contexts"]) == (0, 1, 1)
    assert [preference.rests_on for preference in found.preferences] == [("pairs.jsonl:4",)]


def test_rows_with_an_empty_reply_or_turn_are_left_out_and_counted(tmp_path: Path) -> None:
    start, silent = "\n\nHuman: 1\n\nAssistant:", "\n\nHuman: 1\n\nAssistant: \n\nHuman: 2\n\nAssistant:"
    found = read_comparisons(
        written(
            tmp_path,
            {"chosen": f"{start} ", "rejected": f"{start} no"},
            {"chosen": f"{start} yes", "rejected": f"{start} \n"},
            {"chosen": f"{silent} yes", "rejected": f"{silent} no"},
            {"chosen": f"{start} yes", "rejected": f"{start} no"},
        )
    )
    assert (found.counts["empty"], found.counts["equal"]) == (3, 0)
    assert [preference.rests_on for preference in found.preferences] == [("pairs.jsonl:4",)]


def test_rows_may_name_the_prompt_the_probability_and_the_rater(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    path = written(
        tmp_path,
        {"prompt": "Hi: there", "chosen": "A", "rejected": "B", "probability": 0.8, "rater": "ann"},
        {"messages": messages, "chosen": "A", "rejected": "B"},
    )
    first, second = read_comparisons(path).preferences
    assert (first.prompt.messages, first.probability) == ((Message("user", "Hi: there"),), 0.8)
    assert first.rests_on == ("pairs.jsonl:1 (ann)",)
    assert second.prompt.messages == (Message("system", "Be kind."), Message("user", "Hi"))


def test_rows_about_the_same_two_replies_are_one_comparison_whichever_was_chosen(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"prompt": "Q", "chosen": "B", "rejected": "A"},
        {"prompt": "Q", "chosen": "B", "rejected": "C"},
    )
    first, second, third = read_comparisons(path).preferences
    assert first.comparison == second.comparison != third.comparison


GOOD = {"prompt": "Q", "chosen": "A", "rejected": "B"}


def saying(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": said} for role, said in turns], "chosen": "A", "rejected": "B"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"prompt": "Q", ', "is not JSON"),
        ('["A", "B"]', "expected an object"),
        ({"prompt": "Q", "chosen": "A"}, "'rejected' is missing; expected text"),
        (GOOD | {"chosen": 3}, "'chosen' is int; expected text"),
        (GOOD | {"probability": 0.3}, "below 0.5, swap chosen and rejected"),
        (GOOD | {"probability": True}, "'probability' is True"),
        ('{"prompt": "Q", "chosen": "A", "rejected": "B", "probability": NaN}', "NaN is no JSON"),
        (GOOD | {"rater": ["ann"]}, "'rater' is [\"ann\"]; expected a name"),
        ({"messages": "Hi", "chosen": "A", "rejected": "B"}, "'messages' is no list of messages"),
        (saying(("bot", "Hi")), "the role 'bot'"),
        (saying(), "does not end with a user's message"),
        (saying(("user", "Hi"), ("assistant", "Yes?")), "does not end with a user's message"),
        ({"chosen": "Hello", "rejected": "Hi"}, "has no 'prompt', which the first row has"),
        ('{"prompt": "\\ud800", "chosen": "A", "rejected": "B"}', "half of a surrogate pair"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path: Path, row: object, problem: str) -> None:
    path = written(tmp_path, GOOD, "", row)
    with pytest.raises(InputError) as error:
        read_comparisons(path)
    assert str(error.value).startswith(f"{path}:3: ")
    assert problem in str(error.value)


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b'\n{"prompt": "\xff"}\n')
    with pytest.raises(InputError, match=r"pairs\.jsonl:2: is not UTF-8"):
        read_comparisons(path)


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert len(read_comparisons(path).preferences) == 1


def test_compressed_files_are_read_and_torn_ones_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(GOOD | {"prompt": str(n)}) + "\n" for n in range(500)).encode())
    path.write_bytes(whole)
    assert len(read_comparisons(path).preferences) == 500
    path.write_bytes(whole[:-20])
    with pytest.raises(InputError, match="damaged gzip"):
        read_comparisons(path)


def test_a_missing_file_is_named_with_what_should_be_in_it(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_comparisons(Path("VALUE"))
    assert str(caught.value).startswith("VALUE: there is no such file; expected a file of pairs")
    assert '"chosen"' in str(caught.value)
    with pytest.raises(InputError, match=r"^\S+: is a folder; expected a file of pairs"):
        read_comparisons(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no pair; expected a file of pairs"):
        read_comparisons(tmp_path / "empty.jsonl")
    with pytest.raises(InputError, match=r'^nowhere: there is no such file; expected a file of verdicts.*"comparison"'):
        read_verdicts(Path("nowhere"), None)


def verdict(comparison: str, rater: str, choice: str, **more: object) -> dict[str, object]:
    return {"comparison": comparison, "rater": rater, "choice": choice, **more}


def test_verdicts_are_read_and_repetitions_counted_once(tmp_path: Path) -> None:
    rows = [verdict("c1", "ann", "a", strength=3), verdict("c1", "bob", "b"), verdict("c1", "bob", "b")]
    found = read_verdicts(written(tmp_path, *rows), {"c1"})
    assert [(each.rater, each.choice, each.strength) for each in found] == [("ann", "a", 3), ("bob", "b", 1)]


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (verdict("c1", "ann", "b"), "'ann' says 'b' of a comparison, but 'a' in line 1"),
        (verdict("c9", "ann", "a"), "there is no comparison 'c9'"),
        (verdict("c1", "bob", "A"), "no verdict: choice"),
        (verdict("c1", "bob", "a", strength=5), "no verdict: strength"),
        ({"rater": "bob", "choice": "a"}, "no verdict: comparison: Field required"),
    ],
)
def test_bad_verdicts_are_named_with_their_file_and_line(tmp_path: Path, row: object, problem: str) -> None:
    path = written(tmp_path, verdict("c1", "ann", "a"), row)
    with pytest.raises(InputError) as error:
        read_verdicts(path, {"c1"})
    assert str(error.value).startswith(f"{path}:2: ")
    assert problem in str(error.value)


@pytest.mark.skipif(not HH_RLHF.is_file(), reason=f"there is no {HH_RLHF}")
def test_published_human_preferences_are_read_whole() -> None:
    found = read_comparisons(HH_RLHF)
    # Four have a reply that says nothing.
    assert (
        len(found.preferences),
        found.counts["empty"],
        found.counts["equal"],
        found.counts["different_contexts"],
    ) == (1496, 4, 0, 0)
    # Turns alternate and end with the user's, as chat templates want them.
    for preference in found.preferences:
        roles = [message.role for message in preference.prompt.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]
    with gzip.open(HH_RLHF, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]

    by_line = {int(each.rests_on[0].split(":")[1]): each for each in found.preferences}

    def rebuilt(index: int) -> str:
        preference = by_line[index + 1]
        speakers = {"user": "Human", "assistant": "Assistant"}
        turns = (*preference.prompt.messages, Message("assistant", preference.chosen))
        return "".join(f"\n\n{speakers[turn.role]}: {turn.content}" for turn in turns)

    # Written again they are the original, but for four rows, in which one speaker has two turns in a row.
    differing = [index for index, row in enumerate(rows) if index + 1 in by_line and rebuilt(index) != row["chosen"]]
    assert differing == [667, 763, 1254, 1319]
    assert Counter(each.rests_on[0].split(":")[0] for each in found.preferences) == {HH_RLHF.name: 1496}


def test_pairs_that_people_read_as_one_are_one_comparison_and_equal_texts_are_equal(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Où\u00a0est-il ?", "chosen": "Là-bas.", "rejected": "Non."},
        {"prompt": unicodedata.normalize("NFD", "Où est-il  ?"), "chosen": "Non. ", "rejected": "La\u0300-bas."},
        {"prompt": "Q", "chosen": "Yes\r\nno", "rejected": "\ufeffYes\nno"},
        {"prompt": "Q", "chosen": "\u200b", "rejected": "no"},
    ]
    found = read_comparisons(written(tmp_path, *rows))
    first, second = found.preferences
    assert first.comparison == second.comparison
    assert (found.counts["equal"], found.counts["empty"], [place.number for place in found.places]) == (1, 1, [1, 2])


def test_pairs_that_the_model_cannot_read_are_named_by_their_line(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, "", saying(("system", "Be kind."), ("user", "Hi")), GOOD | {"prompt": "R"})
    asked: list[list[str]] = []

    def check(messages: Sequence[Message]) -> None:
        asked.append([message.content for message in messages])
        if messages[0].role == "system":
            raise ModelError("System role not supported")

    with pytest.raises(InputError, match=r"pairs\.jsonl:3: System role not supported"):
        check_pairs(read_comparisons(path), check)
    assert asked == [["Q", "A"], ["Q", "B"], ["Be kind.", "Hi", "A"]]
    check_pairs(read_comparisons(written(tmp_path, GOOD)), check)
