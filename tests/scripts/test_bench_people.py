import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from constitutional.base.records import Preference, Prompt
from constitutional.data.comparisons import read_comparisons
from scripts import bench_people
from scripts.bench_people import (
    Likely,
    conversations,
    divided,
    log_probabilities,
    main,
    mean_of,
    per_reply,
    per_word,
    share_of,
    shares_part,
)
from tests.tiny import tiny_model


def written(folder: Path, count: int) -> Path:
    """Preferences, of which the first is on the prompt of the last, and the second goes on from it."""
    rows: list[dict[str, object]] = [
        {"prompt": f"{number or count - 1}?", "chosen": f"good {number}", "rejected": f"bad {number}"}
        for number in range(count)
    ]
    turns = [f"{count - 1}?", "good enough", "And then?"]
    roles = ("user", "assistant", "user")
    rows[1]["prompt"] = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    file = folder / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_last_pairs_are_held_out_and_no_conversation_of_theirs_is_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, held_out, most = divided(written(tmp_path, 305), tmp_path / "runs")
    assert [row.chosen for row in held_out] == [f"good {number}" for number in range(5, 305)]
    kept = read_comparisons(file).preferences
    assert [(row.prompt.messages[0].content, row.chosen, row.rejected) for row in kept] == [
        (f"{number}?", f"good {number}", f"bad {number}") for number in (2, 3, 4)
    ]
    assert most == 3
    assert "305 preferences, and 0 rows that hold none: 300 to measure on, 3 to train on, 2 left out" in (
        capsys.readouterr().out
    )


def test_too_few_pairs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(written(tmp_path, 300)), "--folder", str(tmp_path / "runs")]) == 2
    assert "holds 300 preferences; expected more than 300" in capsys.readouterr().err


def test_shares_and_means_have_intervals() -> None:
    assert share_of([True, True, False, True]) == ("75.0%", "30.1% to 95.4% of 4")
    value, interval = mean_of([1.0, 1.0, 1.0])
    assert (value, interval) == ("+1.000", "+1.000 to +1.000")


ROW = Preference(
    prompt=Prompt.of("Why?"),
    chosen="Be brief.",
    rejected="No, and why?",
    probability=1.0,
    source="human",
    comparison="c",
)


def test_log_probabilities_are_those_of_the_two_replies(tmp_path: Path) -> None:
    turned = ROW.model_copy(update={"chosen": ROW.rejected, "rejected": ROW.chosen})
    there, back, again = log_probabilities(tiny_model(tmp_path), [ROW, turned, ROW])
    assert there.chosen == pytest.approx(back.rejected, abs=1e-4)
    assert there.rejected == pytest.approx(back.chosen, abs=1e-4)
    assert there == pytest.approx(again, abs=1e-4)
    assert max(there) < 0
    preferred, other = conversations(ROW)
    assert [message.content for message in preferred] == ["Why?", "Be brief."]
    assert [message.content for message in other] == ["Why?", "No, and why?"]


def test_a_lead_is_of_the_whole_reply_or_of_its_mean_word() -> None:
    likely = Likely(-6.0, -12.0)
    assert per_reply(likely, ROW) == 6.0
    assert per_word(likely, ROW) == pytest.approx(-6 / 2 + 12 / 3)


def test_a_policy_is_compared_with_the_model_that_it_came_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    likely = {"sft_model": [Likely(-6.0, -12.0)] * 4, "policy": [*[Likely(-3.0, -12.0)] * 3, Likely(-6.0, -3.0)]}
    monkeypatch.setattr(bench_people, "run", lambda _: SimpleNamespace(artifact=lambda name: name))
    monkeypatch.setattr(bench_people, "log_probabilities", lambda folder, _: likely[folder])
    rows = list(shares_part(tmp_path / "pairs.jsonl", [ROW] * 4, 9, tmp_path, ["model.path=models/none"]))
    assert rows[0][:3] == ("the preferred reply is the shorter", "-", "100.0%")
    of_none = [(what, figure) for what, share, figure, _ in rows if share == "0%"]
    assert of_none == [
        ("the policy has come to like the preferred reply better", "75.0%"),
        ("by so many nats", f"{(3 * 3 - 9) / 4:+.3f}"),
        ("the policy has come to like the preferred reply better, a word", "75.0%"),
        ("by so many nats, a word", f"{(3 * 1.5 - 3) / 4:+.3f}"),
    ]
    assert [share for _, share, _, _ in rows[1::4]] == ["0%", "50%", "100%", "100%, 9 pairs"]
