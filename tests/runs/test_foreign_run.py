"""Runs over constitutions in other formats, with reasons and with priorities."""

from pathlib import Path

import pytest

from constitutional.base.records import Judgement
from constitutional.constitution.file import load_constitution
from constitutional.runs.folder import USED
from constitutional.stages.summaries import LabelSummary
from tests.scripted_run import World, configured, go

DATA = Path(__file__).parent.parent / "data" / "constitutions"


@pytest.mark.parametrize("name", ["handbook.json", "model_spec.md"])
def test_a_run_reads_other_formats_directly(tmp_path: Path, name: str) -> None:
    world = World()
    config = configured(tmp_path, f"constitution.file={DATA / name}", "until=label")
    store, _ = go(config, world)
    used = load_constitution(store.folder / USED)
    assert used == load_constitution(DATA / name)
    asked = "\n".join(message.content for request in world.asked for message in request.messages)
    assert any(f"Principle: {principle.words('critique')}" in asked for principle in used.principles)
    again = World()
    go(config, again)
    assert again.asked == []


def test_a_reason_is_read_by_critic_and_labeler_and_shown_in_the_report(tmp_path: Path) -> None:
    ours = tmp_path / "ours.yaml"
    ours.write_text("principles:\n- {id: calm, text: Stay calm.}\n- {id: kind, text: Be kind.}\n")
    before = World()
    go(configured(tmp_path, "name=before", "until=label"), before)
    ours.write_text("principles:\n- {id: calm, text: Stay calm., why: Panic spreads.}\n- {id: kind, text: Be kind.}\n")
    after = World()
    store, _ = go(configured(tmp_path, "name=after"), after)
    asked = [message.content for request in after.asked for message in request.messages]
    reasoned = [text for text in asked if "Principle: Stay calm." in text]
    assert reasoned
    assert all("Reason: Panic spreads." in text or text.startswith("Say in one sentence") for text in reasoned)
    assert any("Compare the responses" in text for text in reasoned)
    assert any(text.startswith("Judge your last response") for text in reasoned)
    page = next(store.folder.glob("*_report/report.html")).read_text(encoding="utf-8")
    assert "Why: Panic spreads." in page
    # A file without reasons is asked about in the words of before.
    ours.write_text("principles:\n- {id: calm, text: Stay calm.}\n- {id: kind, text: Be kind.}\n")
    none = World()
    go(configured(tmp_path, "name=before", "until=label"), none)
    assert none.asked == []


def test_priorities_decide_labels_and_what_a_run_without_them_had_labelled_stays(tmp_path: Path) -> None:
    ours = tmp_path / "ours.yaml"
    plain = (
        "principles:\n- {id: calm, text: Stay calm.}\n- {id: brief, text: Be brief.}\n- {id: kind, text: Be kind.}\n"
    )
    ours.write_text(plain)
    first, _ = go(configured(tmp_path, "name=one", "label.principles=all", "until=label"), World())
    judged = first.read("judgements", Judgement)
    assert not any(judgement.gives_way_to for judgement in judged)
    ours.write_text(plain.replace("text: Stay calm.", "text: Stay calm., overrides: [brief]"))
    second, lines = go(configured(tmp_path, "name=two", "label.principles=all"), World())
    # No model is asked about comparisons again: what overrides what is no part of a question.
    assert second.stages["label"].calls.asked == 0
    rows = second.read("judgements", Judgement)
    assert {row.principle: row.gives_way_to for row in rows} == {"calm": (), "brief": ("calm",), "kind": ()}
    summary = second.summary("label", LabelSummary)
    assert summary.settled
    assert any("overrides the other" in line for line in lines)
    page = next(second.folder.glob("*_report/report.html")).read_text(encoding="utf-8")
    assert "Overrides: brief" in page
    assert f"disagreed on {summary.settled} of" in page
