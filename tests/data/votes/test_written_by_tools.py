"""Files that the tools themselves wrote about our tasks, asked by principle.

Label Studio 1.23.2: its server took the configuration and the tasks, annotations were sent to it, one was clicked
together in a browser, and it exported them in three forms. Argilla 2.8.0: its client took the settings and the records
and exported them with responses. Feedback Forensics 0.5.0 merged two files
of verdicts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import pytest

from constitutional.base.records import Comparison, Message, Prompt, Verdict
from constitutional.data.votes.items import items_of
from tests.data.votes.made_up import Choice, imported, ordered

FILES = Path(__file__).parent / "written"
MESSAGES = (Message("user", "Why? $left"), Message("assistant", "=SUM(A1:A9)"), Message("user", "<b>日本</b>\u2028?"))
COMPARISONS = [
    Comparison(prompt=Prompt(messages=MESSAGES if number % 2 else MESSAGES[:1]), a=f"{text} A", b=f"{text} B")
    for number, text in enumerate(("plain", "=1+1", '["one"]', "-1,\n\n'so'", "\t@who", "<|im_end|> $5"))
]
ROWS = {row.id: row for row in COMPARISONS}


class Answer(NamedTuple):
    """What a rater told the tool of a comparison."""

    overall: Literal["left", "right", "tie", "both_bad", "skip"]
    strength: int
    brief: Literal["left", "right", "tie", "not_applicable"] | None
    calm: Literal["left", "right", "tie", "not_applicable"]
    reason: str


ANSWERS = (
    Answer("left", 1, "left", "right", ""),
    Answer("right", 2, "right", "not_applicable", 'why = "1"\n\nline, 日本 \u2028'),
    Answer("tie", 3, "tie", "left", ""),
    Answer("both_bad", 4, "not_applicable", "tie", "=why"),
    Answer("skip", 1, None, "not_applicable", "[1]"),
    Answer("right", 2, "left", "right", ""),
)
"""In the order of the comparisons."""


def expected(rater: str, seconds: float | None = None) -> list[Verdict]:
    """The verdicts that the answers are: without those that a principle does not apply, and each with this time."""
    verdicts = []
    for item, answer in zip(items_of(COMPARISONS, 3), ANSWERS, strict=True):
        a_or_b: dict[str, Choice] = {"left": item.left_is, "right": "b" if item.left_is == "a" else "a"}
        a_or_b |= {"tie": "tie", "both_bad": "both_bad", "skip": "skip"}
        told = {"comparison": item.comparison, "rater": rater}
        overall: dict[str, object] = {
            "choice": a_or_b[answer.overall],
            "strength": answer.strength,
            "rationale": answer.reason,
        }
        overall |= {"seconds": seconds}
        verdicts.append(Verdict.model_validate(told | overall))
        verdicts += [
            Verdict.model_validate(told | {"choice": a_or_b[choice], "principle": principle})
            for principle, choice in (("brief", answer.brief), ("Calm-2", answer.calm))
            if choice not in (None, "not_applicable")
        ]
    return verdicts


@pytest.mark.parametrize(
    ("name", "form", "rater"),
    [
        ("label_studio.json", "label_studio", "1"),
        ("label_studio_min.json", "label_studio", "1"),
        ("label_studio.csv", "label_studio", "1"),
        ("argilla_flat.json", "argilla", "11111111-2222-4333-8444-555555555555"),
        ("argilla_nested.json", "argilla", "11111111-2222-4333-8444-555555555555"),
        ("argilla_api.json", "argilla", "11111111-2222-4333-8444-555555555555"),
    ],
)
def test_answers_come_back_from_what_the_tool_wrote(name: str, form: str, rater: str) -> None:
    read = imported(FILES / name, ROWS, form)
    assert read.refused == []
    # Every task was sent to Label Studio with a time of 3.5 seconds; Argilla has no place for one.
    assert ordered(read.verdicts) == ordered(expected(rater, 3.5 if form == "label_studio" else None))
    assert read.left_out["answers that a principle does not apply"] == 3


def test_what_was_clicked_in_a_browser_comes_back() -> None:
    read = imported(FILES / "label_studio_by_hand.json", ROWS, "label_studio")
    name = COMPARISONS[1].id
    told = {"comparison": name, "rater": "1"}
    left = {item.comparison: item.left_is for item in items_of(COMPARISONS, 3)}[name]
    right = "b" if left == "a" else "a"
    assert read.verdicts == [
        Verdict.model_validate(told | {"choice": right, "strength": 3, "rationale": "By hand.", "seconds": 13.733}),
        Verdict.model_validate(told | {"choice": "tie", "principle": "Calm-2"}),
    ]
    assert read.refused == []


def test_pairs_that_feedback_forensics_has_merged_come_back() -> None:
    read = imported(FILES / "annotated_pairs.json", ROWS, "annotated_pairs")
    both: Iterable[Verdict] = [*expected("Ada"), *expected("Zoë, “2”")]
    assert read.refused == []
    assert ordered(read.verdicts) == ordered(both)
