"""Argilla's exports, as its client writes them."""

import json
import uuid
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.records import Verdict
from constitutional.data.votes import argilla
from tests.data.votes.made_up import clicked, comparisons, imported, items, ordered, votes, whole

ROWS = comparisons()
ITEMS = items(ROWS)
USERS = {vote.rater: str(uuid.uuid5(uuid.NAMESPACE_DNS, vote.rater)) for vote in votes(ROWS)}
VOTES = [vote.model_copy(update={"rater": USERS[vote.rater]}) for vote in votes(ITEMS)]


def answers(vote: Verdict) -> dict[str, Any]:
    given: dict[str, Any] = {"better": clicked(ITEMS[vote.comparison], vote) or vote.choice, "strength": vote.strength}
    return given | ({"reason": vote.rationale} if vote.rationale else {})


def records(verdicts: list[Verdict], form: str, status: str | None = "submitted") -> list[dict[str, Any]]:
    by_item = defaultdict[str, list[Verdict]](list)
    for vote in verdicts:
        by_item[vote.comparison].append(vote)
    made = []
    for name, record in zip(ITEMS, argilla.tasks(ITEMS.values()), strict=True):
        if form == "api":
            responses = [
                {
                    "id": "r",
                    "values": {question: {"value": value} for question, value in answers(vote).items()},
                    "status": status,
                    "user_id": vote.rater,
                    "updated_at": "2026-11-02T10:00:00",
                }
                for vote in by_item[name]
            ]
            made.append({**record, "external_id": record["id"], "id": str(uuid.uuid4()), "responses": responses})
            continue
        nested = defaultdict[str, list[dict[str, Any]]](list)
        for vote in by_item[name]:
            for question, value in answers(vote).items():
                nested[question].append({"value": value, "user_id": vote.rater})
        if form == "nested":
            made.append({**record, "responses": dict(nested), "_server_id": "s"})
            continue
        flat = {"id": record["id"], "_server_id": "s", "status": "completed", **record["fields"], **record["metadata"]}
        for question, given in nested.items():
            flat[f"{question}.responses"] = [answer["value"] for answer in given]
            flat[f"{question}.responses.users"] = [answer["user_id"] for answer in given]
            flat[f"{question}.responses.status"] = [status] * len(given)
        flat["better.suggestion"] = "left"
        made.append(flat)
    names = {key for record in made for key in record}
    return [{**dict.fromkeys(names), **record} for record in made] if form == "flat" else made


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows, indent=1)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("form", ["flat", "nested", "api"])
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_votes_come_back(tmp_path: Path, form: str, ending: str) -> None:
    read = imported(write(tmp_path / f"x.{ending}", records(VOTES, form)), ROWS, "argilla")
    assert read.refused == []
    assert ordered(read.verdicts) == ordered(whole(VOTES))
    assert read.left_out == ({argilla.NO_STATUS: len(VOTES)} if form == "nested" else {})


@pytest.mark.parametrize("form", ["flat", "api"])
def test_drafts_are_no_votes_and_discarded_records_no_preferences(tmp_path: Path, form: str) -> None:
    first = VOTES[:5]
    read = imported(write(tmp_path / "x.json", records(first, form, "draft")), ROWS, "argilla")
    assert (read.verdicts, read.refused) == ([], [])
    assert read.left_out["drafts"] == 5
    read = imported(write(tmp_path / "x.json", records(first, form, "discarded")), ROWS, "argilla")
    assert {row.choice for row in read.verdicts} == {"skip"}
    assert len(read.verdicts) == 5


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"better.responses": ["left"]}, "1 values of 5 users"),
        ({"better.responses": "left"}, "list"),
        ({"better.responses.users": None}, "users"),
        ({"better.responses.status": ["done"] * 5}, "submitted, draft or discarded"),
        ({"better.responses": ["best"] * 5}, "'best'"),
        ({"better.responses": [None] * 5}, "no choice"),
        ({"left": "edited"}, "responses"),
        ({"comparison": "c_1"}, "no comparison"),
        ({"strength.responses": [0] * 5}, "strength"),
        ({"strength.responses": [True] * 5}, "strength"),
    ],
)
def test_a_bad_record_is_refused_and_loses_no_other(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    rows = records(VOTES[:10], "flat")
    rows[1] |= change
    path = write(tmp_path / "x.json", rows)
    read = imported(path, ROWS, "argilla")
    assert ordered(row for row in read.verdicts if row in whole(VOTES[:5])) == ordered(whole(VOTES[:5]))
    assert len(read.verdicts) == 5
    assert read.refused
    assert all(line.startswith(f"{path}: task {rows[1]['id']}: ") and problem in line for line in read.refused)


def test_json_lines_are_refused_by_their_line(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", records(VOTES[:10], "flat"))
    lines = path.read_text().split("\n")
    path.write_text("\n".join(["", lines[0], "{cut off", *lines[2:]]))
    read = imported(path, ROWS, "argilla")
    assert ordered(read.verdicts) == ordered(whole(VOTES[:5]))
    (line,) = read.refused
    assert line.startswith(f"{path}:3: ")


def test_the_settings_are_those_of_the_records() -> None:
    settings = argilla.settings()
    (record, *_) = argilla.tasks(ITEMS.values())
    fields, metadata, questions = (
        [entry["name"] for entry in settings[kind]] for kind in ("fields", "metadata", "questions")
    )
    assert fields == list(record["fields"])
    assert metadata == list(record["metadata"])
    assert questions == list(argilla.QUESTIONS)
    assert len({*fields, *metadata, *questions}) == len(fields + metadata + questions)  # Argilla refuses equal names
    assert [entry["required"] for entry in settings["questions"]] == [True, False, False]
    asked = argilla.settings({"Calm-2": "x" * 1001})["questions"][2]
    assert (asked["name"], asked["required"], asked["description"]) == ("by_calm-2", False, "x" * 999 + "…")
    assert [option["value"] for option in asked["settings"]["options"]] == ["left", "right", "tie", "not_applicable"]
    json.dumps(settings)
