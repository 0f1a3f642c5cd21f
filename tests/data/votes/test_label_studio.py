"""Label Studio's exports, as its converter writes them."""

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from constitutional.base.errors import InputError
from constitutional.base.records import Verdict
from constitutional.data.votes import label_studio
from constitutional.data.votes.formats import format_of
from constitutional.data.votes.items import VoteItem
from constitutional.data.votes.reading import read_file
from tests.data.votes.made_up import PRINCIPLES, clicked, comparisons, imported, items, ordered, shuffled, votes, whole

ROWS = comparisons()
ITEMS = items(ROWS)
VOTES = [vote.model_copy(update={"seconds": number / 4}) for number, vote in enumerate(votes(ITEMS))]
WORDS = {"tie": "tie", "both_bad": "both bad", "skip": "skip"}
STRENGTHS = {1: "1 slightly", 2: "2 clearly", 3: "3 much", 4: "4 far"}


def results(item: VoteItem, vote: Verdict) -> list[dict[str, Any]]:
    """What the controls of the configuration give for a vote, in no certain order."""
    made: list[tuple[str, str, Any]] = [("strength", "choices", {"choices": [STRENGTHS[vote.strength]]})]
    if vote.rationale:
        made.append(("reason", "textarea", {"text": [vote.rationale]}))
    if side := clicked(item, vote):
        made.append(("better", "pairwise", {"selected": side}))
    else:
        made.append(("verdict", "choices", {"choices": [WORDS[vote.choice]]}))
    return shuffled(
        {"id": "Dx", "from_name": name, "to_name": "left", "type": kind, "value": value} for name, kind, value in made
    )


def annotation(item: VoteItem, vote: Verdict, **own: object) -> dict[str, Any]:
    number = vote.rater.isdigit()
    who: Any = int(vote.rater) if number else {"id": 12, "email": vote.rater, "first_name": "", "last_name": ""}
    times = {"created_at": "2026-11-02T10:00:00.5Z", "updated_at": "2026-11-02T10:00:01.5Z", "lead_time": vote.seconds}
    return {"id": 31, "completed_by": who, "result": results(item, vote), "was_cancelled": False, **times, **own}


def tasks(annotations: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    made = label_studio.tasks(ITEMS.values())
    prediction = {"model_version": "ai", "result": [{"from_name": "better", "value": {"selected": "left"}}]}
    return [
        {"id": number, **task, "annotations": annotations.get(name, []), "predictions": [prediction]}
        for number, (name, task) in enumerate(zip(ITEMS, made, strict=True), start=1)
    ]


def exported(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    by_item: dict[str, list[dict[str, Any]]] = {}
    for vote in verdicts:
        by_item.setdefault(vote.comparison, []).append(annotation(ITEMS[vote.comparison], vote))
    return tasks(by_item)


def pretty(value: dict[str, Any], kind: str) -> object:
    """As `prettify_result` of the converter: choices and text areas are freed of their lists, others are not."""
    for key in ("choices", "text"):
        if kind in ("choices", "textarea") and key in value and len(value[key]) == 1:
            return value[key][0]
    return [value]


def small(task: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    """A row of JSON-MIN."""
    who = one["completed_by"]
    row = {"id": task["id"], **task["data"]}
    row |= {result["from_name"]: pretty(result["value"], result["type"]) for result in one["result"]}
    row |= {"annotator": who["email"] if isinstance(who, dict) else who, "annotation_id": one["id"]}
    return row | {key: one[key] for key in ("created_at", "updated_at", "lead_time")}


def small_rows(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    return [small(task, one) for task in exported(verdicts) for one in task["annotations"]]


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def as_csv(rows: list[dict[str, Any]]) -> str:
    """As the converter writes CSV: names in order, everything but numbers quoted, lists as JSON text."""
    stream = io.StringIO(newline="")
    names = sorted({name for row in rows for name in row})
    writer = csv.DictWriter(stream, names, quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    for row in rows:
        writer.writerow({key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()})
    return stream.getvalue()


def test_the_configuration_shows_what_the_tasks_hold() -> None:
    root = ET.fromstring(label_studio.config())  # noqa: S314 - it is ours
    shown = {tag.get("value", "").removeprefix("$") for tag in root.iter("Text")}
    (task, *_) = label_studio.tasks(ITEMS.values())
    assert shown == task["data"].keys() - {"comparison"}
    names = {tag.get("name") for tag in root.iter() if tag.get("name")}
    for tag in root.iter():
        assert set(filter(None, (tag.get("toName") or "").split(","))) <= names
    controls = {tag.get("name") for tag in root.iter() if tag.get("toName")}
    assert not controls & task["data"].keys()  # JSON-MIN writes both into one object
    assert [tag.get("toName") for tag in root.iter("Pairwise")] == ["left,right"]


def test_principles_are_asked_in_their_own_words() -> None:
    root = ET.fromstring(label_studio.config(PRINCIPLES | {"odd": "\x1b $ {{$left}}"}))  # noqa: S314 - it is ours
    asked = {tag.get("name"): [choice.get("value") for choice in tag] for tag in root.iter("Choices")}
    assert asked["by_Calm-2"] == ["left", "right", "tie", "not applicable"]
    headers = [tag.get("value") or "" for tag in root.iter("Header")]
    shown = [text.replace("\u2060", "") for text in headers if text.startswith("By the principle: ")]
    texts = [*PRINCIPLES.values(), "\ufffd $ {{$left}}"]
    assert shown == [f"By the principle: {text}" for text in texts]
    assert not [text for text in headers if re.search(r"\$[\w\[\].{}]", text)]  # what Label Studio takes for a variable


def test_votes_come_back_from_the_export_as_json(tmp_path: Path) -> None:
    read = imported(write(tmp_path / "x.json", exported(VOTES)), ROWS, "label_studio")
    assert read.refused == []
    assert ordered(read.verdicts) == ordered(whole(VOTES))
    assert read.replaced == 0


def test_votes_come_back_from_json_min(tmp_path: Path) -> None:
    read = imported(write(tmp_path / "x.json", small_rows(VOTES)), ROWS, "label_studio")
    assert read.refused == []
    assert ordered(read.verdicts) == ordered(whole(VOTES))


def test_votes_come_back_from_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(as_csv(small_rows(whole(VOTES))), encoding="utf-8", newline="")
    read = imported(path, ROWS, "label_studio")
    assert read.refused == []
    assert ordered(read.verdicts) == ordered(whole(VOTES))


def test_a_task_that_its_rater_skipped_is_no_preference(tmp_path: Path) -> None:
    name, item = next(iter(ITEMS.items()))
    vote = Verdict(comparison=name, rater="ada@example.org", choice="a", strength=2)
    read = imported(
        write(tmp_path / "x.json", tasks({name: [annotation(item, vote, was_cancelled=True)]})), ROWS, "label_studio"
    )
    assert [(row.choice, row.rater) for row in read.verdicts] == [("skip", "ada@example.org")]
    assert read.left_out == {"tasks without an annotation": len(ITEMS) - 1}


@pytest.mark.parametrize("earlier_first", [True, False])
def test_of_two_annotations_by_one_rater_the_later_counts(tmp_path: Path, earlier_first: bool) -> None:
    name, item = next(iter(ITEMS.items()))
    old = Verdict(comparison=name, rater="7", choice="a", strength=4, seconds=4.0)
    new = Verdict(comparison=name, rater="7", choice="both_bad", seconds=2.5)
    other = Verdict(comparison=name, rater="8", choice="b")
    rows = [
        annotation(item, old, updated_at="2026-11-02T12:00:00+02:00"),
        annotation(item, new, updated_at="2026-11-02T10:30:00.000001Z"),  # half an hour later
    ]
    rows = (rows if earlier_first else rows[::-1]) + [annotation(item, other)]
    read = imported(write(tmp_path / "x.json", tasks({name: rows})), ROWS, "label_studio")
    assert read.verdicts == [new.model_copy(update={"seconds": 6.5}), other]  # the time of both is the rater's
    assert (read.replaced, read.refused) == (1, [])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"completed_by": None}, "who voted"),
        ({"completed_by": True}, "rater"),
        ({"completed_by": {"first_name": "Ada"}}, "who voted"),
        ({"result": []}, "no choice"),
        ({"result": "left"}, "result"),
        ({"result": [{"from_name": "better", "value": {"selected": "up"}}]}, "'up'; expected one of left"),
        ({"result": [{"from_name": "verdict", "value": {"choices": ["tie", "skip"]}}]}, "choice"),
        (
            {
                "result": [
                    {"from_name": "better", "value": {"selected": "left"}},
                    {"from_name": "verdict", "value": {"choices": ["tie"]}},
                ]
            },
            "says both 'left' and 'tie'",
        ),
        (
            {
                "result": [
                    {"from_name": "better", "value": {"selected": "left"}},
                    {"from_name": "strength", "value": {"choices": ["5 utterly"]}},
                ]
            },
            "strength",
        ),
    ],
)
def test_a_bad_annotation_is_refused_with_its_task_and_loses_no_other(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    name, item = list(ITEMS.items())[2]
    good = Verdict(comparison=name, rater="9", choice="b", strength=3)
    bad = annotation(item, good, completed_by=7) | change
    path = write(tmp_path / "x.json", tasks({name: [bad, annotation(item, good)]}))
    read = imported(path, ROWS, "label_studio")
    assert read.verdicts == [good]
    (line,) = read.refused
    assert line.startswith(f"{path}: task 3: ")
    assert problem in line
    assert "expected" in line


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"comparison": "c_0000000000000000"}, "no comparison '0000000000000000'"),
        ({"comparison": None}, "id of the comparison is missing"),
        ({"comparison": 12}, "id of the comparison is 12"),
        ({"left": "somebody edited this"}, "responses"),
        ({"right": None}, "right response is missing"),
        ({"conversation": "User: something else"}, "conversation"),
    ],
)
def test_a_task_that_was_edited_is_refused(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rows = exported(VOTES[:10])
    rows[1]["data"] |= change
    path = write(tmp_path / "x.json", rows)
    read = imported(path, ROWS, "label_studio")
    assert ordered(read.verdicts) == ordered(whole(VOTES[:5]))
    assert len(read.refused) == 5
    assert all(line.startswith(f"{path}: task 2: ") and problem in line for line in read.refused)


def test_exchanged_texts_move_the_vote_with_them_and_a_contradiction_is_refused(tmp_path: Path) -> None:
    rows = small_rows(VOTES[:1])
    (vote,) = VOTES[:1]
    assert vote.choice == "a"
    rows[0]["left"], rows[0]["right"] = rows[0]["right"], rows[0]["left"]
    read = imported(write(tmp_path / "x.json", rows), ROWS, "label_studio")
    assert [row.choice for row in read.verdicts] == ["b"]  # the click was on the other text
    rows[0]["left_is"] = ITEMS[vote.comparison].left_is
    read = imported(write(tmp_path / "x.json", rows), ROWS, "label_studio")
    assert read.verdicts == []
    assert "left_is" in read.refused[0]


def test_tasks_that_nobody_annotated_are_told_from_an_export(tmp_path: Path) -> None:
    file = tmp_path / "tasks.json"
    file.write_text(json.dumps(label_studio.tasks(ITEMS.values())))
    with pytest.raises(InputError, match="holds tasks for Label Studio, and no annotations"):
        format_of(read_file(file))


def test_rows_that_are_no_tasks_are_refused(tmp_path: Path) -> None:
    rows: list[Any] = [*exported(VOTES[:1]), "x", 3, None, {"data": {}, "annotations": None}, {"unlike": 1}]
    path = write(tmp_path / "x.json", rows)
    read = imported(path, ROWS, "label_studio")
    assert len(read.verdicts) == 1
    assert len(read.refused) == 5
    assert all("expected" in line for line in read.refused)
