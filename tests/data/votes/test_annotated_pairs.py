"""AnnotatedPairs, as ICAI writes it and Feedback Forensics reads it."""

import json
from pathlib import Path
from typing import Any

import pytest

from constitutional.base.records import Comparison, Judgement, Prompt, Verdict
from constitutional.data.votes import annotated_pairs
from tests.data.votes.made_up import comparisons, imported, items, ordered, votes, whole, worked

ROWS = comparisons()
ITEMS = items(ROWS)
VOTES = votes(ITEMS, principles=True)

PAIR = Comparison(prompt=Prompt.of("Why?"), a="Because.", b="Why not?")
PAIRS = {PAIR.id: PAIR}


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def version_1(pref: object, **more: object) -> dict[str, Any]:
    """A file with a person, a principle and a column of unknown kind."""
    votes_on = {"h": {"pref": pref, **more}, "p": {"pref": "text_b"}, "u": {"pref": "text_a"}}
    return {
        "metadata": {"version": "1.0", "default_annotator": "u"},
        "annotators": {
            "h": {"name": "Ada", "description": "A rater", "type": "human"},
            "p": {"description": "Select the response that is brief.", "type": "principle"},
            "u": {"name": "preferred_text", "description": "?", "type": "unknown"},
        },
        "comparisons": [
            {"id": PAIR.id, "prompt": "User: Why?", "text_a": "Why not?", "text_b": "Because.", "annotations": votes_on}
        ],
    }


def test_verdicts_go_out_and_come_back(tmp_path: Path) -> None:
    made = annotated_pairs.tasks(ITEMS.values(), VOTES)
    read = imported(write(tmp_path / "x.json", made), ROWS, "annotated_pairs")
    assert read.refused == []
    assert ordered(read.verdicts) == ordered(whole(VOTES))
    assert (read.replaced, read.left_out) == (0, {})


def test_what_votes_took_and_replace_goes_out_and_comes_back(tmp_path: Path) -> None:
    verdicts = worked(ITEMS)
    made = annotated_pairs.tasks(ITEMS.values(), verdicts)
    read = imported(write(tmp_path / "x.json", made), ROWS, "annotated_pairs")
    assert (read.refused, read.replaced) == ([], 0)
    assert ordered(read.verdicts) == ordered(whole(verdicts))
    # Who replaced votes are of is no annotator, whose votes another reader would count.
    assert {who["name"] for who in made["annotators"].values()} == {
        *("=ada", "Zoë", "eve", "7", "lea (settled)", "dan, by brief"),
    }
    assert all(len(row["annotations"]) in (3, 5) for row in made["comparisons"])
    assert {len(row["annotations"]) for row in made["comparisons"][::2]} == {3}


def test_feedback_forensics_can_read_what_is_written() -> None:
    made = annotated_pairs.tasks(ITEMS.values(), VOTES)
    assert made["metadata"]["version"] == "2.0"
    for who in made["annotators"].values():
        assert who["type"] == "human"
        assert who["description"]
    annotated = {name for row in made["comparisons"] for name in row["annotations"]}
    assert annotated == made["annotators"].keys()  # an annotator without a vote is a column that it does not find
    assert all(set(row["response_a"]) == {"text"} for row in made["comparisons"])
    prefs = {one["pref"] for row in made["comparisons"] for one in row["annotations"].values()}
    assert prefs == {"a", "b", None}


@pytest.mark.parametrize(
    ("pref", "reason", "choice"),
    [
        ("text_a", None, "b"),  # the file's a is our b
        ("text_b", None, "a"),
        ("a", None, "b"),
        (None, "not_applicable", "skip"),
        (None, "both", "tie"),
        (None, "tie", "tie"),
        (None, "neither", "both_bad"),
        (None, "both_bad", "both_bad"),
    ],
)
def test_people_alone_vote(tmp_path: Path, pref: object, reason: str | None, choice: str) -> None:
    read = imported(write(tmp_path / "x.json", version_1(pref, no_pref_reason=reason)), PAIRS, "annotated_pairs")
    assert [(row.rater, row.choice, row.comparison) for row in read.verdicts] == [("Ada", choice, PAIR.id)]
    assert sum(read.left_out.values()) == 2
    assert {kind.split("'")[1] for kind in read.left_out} == {"principle", "unknown"}


@pytest.mark.parametrize(("pref", "reason"), [(None, None), (None, "invalid"), ("c", None), (1, None), ([], None)])
def test_an_unknown_preference_is_refused(tmp_path: Path, pref: object, reason: str | None) -> None:
    path = write(tmp_path / "x.json", version_1(pref, no_pref_reason=reason))
    read = imported(path, PAIRS, "annotated_pairs")
    assert read.verdicts == []
    (line,) = read.refused
    assert line.startswith(f"{path}: task {PAIR.id}: ")
    assert "expected" in line


def test_what_is_no_file_of_pairs_is_refused(tmp_path: Path) -> None:
    made = version_1("a")
    made["comparisons"] += [
        3,
        {"id": "x", "annotations": []},
        {"id": PAIR.id, "annotations": {"nobody": {"pref": "a"}}},
    ]
    read = imported(write(tmp_path / "x.json", made), PAIRS, "annotated_pairs")
    assert (len(read.verdicts), len(read.refused)) == (1, 3)
    read = imported(write(tmp_path / "x.json", made | {"comparisons": {}}), PAIRS, "annotated_pairs")
    assert (len(read.verdicts), len(read.refused)) == (0, 1)


def test_a_strange_name_of_a_task_stays_on_one_short_line(tmp_path: Path) -> None:
    made = version_1("c")
    made["comparisons"][0]["id"] = "\x1b[2J\n" * 1000
    (line,) = imported(write(tmp_path / "x.json", made), PAIRS, "annotated_pairs").refused
    assert line.isprintable()
    assert len(line) < 300


def judgement(principle: str, p_a: float | None, judge: str = "labeler") -> Judgement:
    text = f"Be {principle}."
    return Judgement(
        comparison=PAIR.id, principle=principle, principle_text=text, labeler="m", judge=judge, readings=(), p_a=p_a
    )


def test_judgements_are_annotations_by_principle_and_judge(tmp_path: Path) -> None:
    rows = [judgement("calm", 0.8), judgement("brief", 0.3), judgement("calm", 0.5, "second"), judgement("kind", None)]
    (item,) = items(PAIRS).values()
    item = item._replace(left="Because.", right="Why not?", left_is="a")
    made = annotated_pairs.tasks([item], (), rows, {PAIR.id: 0.6})
    (row,) = made["comparisons"]
    found = {made["annotators"][name]["description"]: one for name, one in row["annotations"].items()}
    label = made["annotators"][made["metadata"]["default_annotator"]]["description"]
    assert found == {
        label: {"pref": "a", "probability": 0.6},
        "Be calm.": {"pref": "a", "probability": 0.8},
        "Be brief.": {"pref": "b", "probability": 0.7},
        "Be calm. (second)": {"pref": None, "no_pref_reason": "both", "probability": 0.5},
        "Be kind.": {"pref": None, "no_pref_reason": "invalid"},
    }
    types = [who["type"] for who in made["annotators"].values()]
    assert sorted(types) == ["principle"] * 4 + ["unknown"]
    assert made["metadata"]["default_annotator"] == "ba751e7b"  # the digest that Feedback Forensics looks for
    read = imported(write(tmp_path / "x.json", made), PAIRS, "annotated_pairs")
    assert (read.verdicts, read.refused) == ([], [])  # none of them is a person


def test_a_rater_may_vote_in_all_and_by_principles(tmp_path: Path) -> None:
    pair = [
        Verdict(comparison=PAIR.id, rater="x", choice="a"),
        Verdict(comparison=PAIR.id, rater="x", choice="b", principle="brief", strength=2),
    ]
    made = annotated_pairs.tasks(items(PAIRS).values(), pair)
    assert sorted(who["name"] for who in made["annotators"].values()) == ["x", "x, by brief"]  # told apart by names
    assert imported(write(tmp_path / "x.json", made), PAIRS, "annotated_pairs").verdicts == pair


def test_people_are_compared_with_what_most_of_them_say() -> None:
    answers = {"one": ["a", "a", "b", "tie", "skip", "both_bad"], "two": ["skip"], "three": ["b"]}
    rows = [
        Verdict.model_validate({"comparison": name, "rater": str(number), "choice": choice})
        for name, choices in answers.items()
        for number, choice in enumerate(choices)
    ]
    rows.append(Verdict(comparison="three", rater="x", choice="a", principle="brief"))
    assert annotated_pairs.shares_of(rows) == {"one": 0.625, "two": None, "three": 0.0}
