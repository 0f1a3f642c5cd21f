"""What is shown of a comparison."""

import json

from constitutional.base.records import Comparison, Message, Prompt
from constitutional.data.votes import annotated_pairs, argilla, label_studio, table
from constitutional.data.votes.items import item_of, items_of
from tests.data.votes.made_up import comparisons

ROW = Comparison(
    prompt=Prompt(
        messages=(Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Why?")),
        info={"kind": "secret-kind"},
        source="secret-source",
    ),
    a="Because.",
    b="Why not?",
    model="secret-model",
)


def test_the_side_is_drawn_for_each_comparison_and_stays() -> None:
    rows = [Comparison(prompt=Prompt.of(f"Question {number}"), a="x", b="y") for number in range(400)]
    left = [item_of(row, 1).left_is for row in rows]
    assert left == [item_of(row, 1).left_is for row in reversed(rows)][::-1]
    assert 160 < left.count("a") < 240  # four standard deviations of a fair coin
    assert left != [item_of(row, 2).left_is for row in rows]
    assert all(
        (item.left, item.right) == (("x", "y") if item.left_is == "a" else ("y", "x")) for item in items_of(rows, 1)
    )


def test_the_whole_conversation_is_shown() -> None:
    assert item_of(ROW, None) == (
        f"c_{ROW.id}",
        "User: Hi\n\nAssistant: Hello\n\nUser: Why?",
        "Because.",
        "Why not?",
        "a",
    )


def test_responses_that_read_the_same_are_no_task() -> None:
    same = Comparison(prompt=Prompt.of("?"), a="One  way.", b="One way.\n")
    broken = Comparison(prompt=Prompt.of("?"), a="half \ud83d", b="half \udc00")  # unlike, but nobody can see it
    assert items_of([same, ROW, broken], 0) == [item_of(ROW, 0)]


def test_an_export_holds_nothing_but_texts_an_id_and_the_side() -> None:
    items = items_of([ROW, *comparisons().values()], 0)
    files = (
        json.dumps(label_studio.tasks(items)),
        label_studio.config(),
        json.dumps(argilla.tasks(items)),
        json.dumps(argilla.settings()),
        json.dumps(annotated_pairs.tasks(items)),
        table.tasks(items).decode(),
    )
    for text in files:
        assert "secret" not in text
    first = label_studio.tasks(items)[0]
    assert first["data"].keys() == {"comparison", "conversation", "left", "right"}
    assert first["meta"] == {"left_is": items[0].left_is}
    assert argilla.tasks(items)[0]["metadata"] == {"comparison": f"c_{ROW.id}", "left_is": items[0].left_is}
    pairs = annotated_pairs.tasks(items)
    assert pairs["annotators"] == {}
    assert all(row["annotations"] == {} for row in pairs["comparisons"])
