import json
from pathlib import Path

import pytest

from constitutional.base.records import Preference, Prompt
from constitutional.data.comparisons import read_comparisons
from scripts.bench_people import conversations, divided, log_odds, main, mean_of, share_of
from tests.tiny import tiny_model


def written(folder: Path, count: int) -> Path:
    """Preferences, of which the first is on the prompt of the last."""
    rows = [
        {"prompt": f"{number or count - 1}?", "chosen": f"good {number}", "rejected": f"bad {number}"}
        for number in range(count)
    ]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_last_pairs_are_held_out_and_no_prompt_of_theirs_is_trained_on(tmp_path: Path) -> None:
    file, held_out, most = divided(written(tmp_path, 305), tmp_path / "runs")
    assert [row.chosen for row in held_out] == [f"good {number}" for number in range(5, 305)]
    kept = read_comparisons(file).preferences
    assert [(row.prompt.messages[0].content, row.chosen, row.rejected) for row in kept] == [
        (f"{number}?", f"good {number}", f"bad {number}") for number in (1, 2, 3, 4)
    ]
    assert most == 4


def test_too_few_pairs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path, 300)), "--folder", str(tmp_path / "runs")]) == 2
    assert "holds 300 preferences; expected more than 300" in capsys.readouterr().err


def test_shares_and_means_have_intervals() -> None:
    assert share_of([True, True, False, True]) == ("75.0%", "30.1% to 95.4% of 4")
    value, interval = mean_of([1.0, 1.0, 1.0])
    assert (value, interval) == ("+1.000", "+1.000 to +1.000")


def test_log_odds_are_those_of_the_preferred_reply_over_the_other(tmp_path: Path) -> None:
    row = Preference(
        prompt=Prompt.of("Why?"),
        chosen="Be brief.",
        rejected="No, and why?",
        probability=1.0,
        source="human",
        comparison="c",
    )
    turned = row.model_copy(update={"chosen": row.rejected, "rejected": row.chosen})
    there, back, again = log_odds(tiny_model(tmp_path), [row, turned, row])
    assert there == pytest.approx(-back, abs=1e-4)
    assert there == pytest.approx(again, abs=1e-4)
    assert there != 0
    preferred, other = conversations(row)
    assert [message.content for message in preferred] == ["Why?", "Be brief."]
    assert [message.content for message in other] == ["Why?", "No, and why?"]
