import json
import re
from pathlib import Path

import pytest

from constitutional.base.records import Comparison, Prompt
from constitutional.constitution.constitution import Example, Principle
from constitutional.constitution.file import load_constitution
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import ScriptedEngine
from scripts import bench_judges
from scripts.bench_judges import Found, Known, counted, examples, labelled, main, pairs, shares, shown
from tests.tiny import tiny_model

BRIEF = Principle(id="brief", text="Be brief.", opposite="Be long-winded.")


def known(a: str, b: str, *, a_is_better: bool) -> Known:
    return Known(Comparison(prompt=Prompt.of("Why?"), a=a, b=b, model="m"), a_is_better, BRIEF)


def test_a_rule_is_right_where_it_prefers_the_better_response_and_tells_nothing_of_equal_counts() -> None:
    rows = [
        known("One two.", "One two three.", a_is_better=True),
        known("One.", "One two three.", a_is_better=False),
        known("One two.", "Two one.", a_is_better=True),
    ]
    found = counted("mine", "fewer words", rows)
    assert (found.n, found.right, found.nothing) == (3, 1, 1)
    *_, row = shares([found]).splitlines()
    assert re.split(r" {2,}", row.strip()) == ["mine", "fewer words", "33.3%", "6% to 79%", "3", "1", "0"]


def test_a_label_that_is_a_half_is_wrong_and_tells_nothing() -> None:
    def likelier(request: Request) -> Completion:
        """Likes every response with `yes` by two nats under the principle itself, and nothing under its opposite."""
        under = "long-winded" not in str([message.content for message in request.messages])
        return Completion("", "choices", tuple(-3.0 + 2 * (under and "yes" in choice) for choice in request.choices))

    rows = [
        known("yes", "no", a_is_better=True),
        known("no", "yes", a_is_better=True),
        known("no", "nay", a_is_better=True),
    ]
    found = labelled("mine", "contrast", rows, ScriptedEngine(likelier))
    assert (found.n, found.right, found.nothing) == (3, 1, 1)


def test_the_better_response_of_examples_and_pairs_takes_turns(tmp_path: Path) -> None:
    principle = BRIEF.model_copy(
        update={"examples": tuple(Example(prompt=f"{n}?", better=f"good {n}", worse=f"bad {n}") for n in range(3))}
    )
    constitution = load_constitution("helpful_honest_harmless").model_copy(update={"principles": (principle,)})
    made = examples(constitution)
    assert [row.a_is_better for row in made] == [True, False, True]
    assert [row.comparison.a for row in made] == ["good 0", "bad 1", "good 2"]
    file = tmp_path / "pairs.jsonl"
    lines = [{"prompt": f"{n}?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(302)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = pairs(file, principle)
    assert len(last) == 300
    assert (last[0].comparison.a, last[1].comparison.a) == ("good 2", "bad 3")


def test_the_principle_for_whole_sets_has_an_example_of_each_tag_in_turn() -> None:
    constitution = load_constitution("helpful_honest_harmless")
    principle = shown(constitution, "helpful", "honest", "harmless")
    assert len(principle.examples) == 4
    with_examples = [row for row in constitution.principles if row.examples]
    first = [next(row for row in with_examples if tag in row.tags) for tag in ("helpful", "honest", "harmless")]
    assert list(principle.examples[:3]) == [row.examples[0] for row in first]
    assert shown(constitution, "harmless").text == "The response is harmless."


def test_what_was_measured_is_written_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "judges.json"
    words = ["--model", str(tiny_model(tmp_path)), "--constitution", "helpful_honest_harmless", "--ways", "contrast"]
    assert main([*words, "--json", str(out)]) == 0
    rows = [Found(**row) for row in json.loads(out.read_text())]
    assert [row.way for row in rows] == [*bench_judges.RULES, "contrast"]
    assert all(0 <= row.right <= row.n == rows[0].n > 40 for row in rows)
    assert capsys.readouterr().out.count("\n") >= 5
    assert main(["--model", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
