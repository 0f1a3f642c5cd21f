"""From a run's artifacts and notes to its report, over a run folder written by hand."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from constitutional.base.files import read_rows, write_rows
from constitutional.base.records import (
    Comparison,
    Judgement,
    Message,
    Preference,
    Prompt,
    Reading,
    Record,
    Revision,
    RevisionStep,
)
from constitutional.base.templates import Prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.base import Engine
from constitutional.engines.models import ModelSettings
from constitutional.judging.scores import Score
from constitutional.stages import evaluate, label
from constitutional.stages.report.gather import (
    Settings,
    curves_of,
    gather,
    histogram,
    labeler_quality,
    left_out,
    reward_quality,
    run,
    wanted_directions,
)

R = TypeVar("R", bound=Record)
T = TypeVar("T")

CONSTITUTION = Constitution(
    name="Careful",
    version="1.10",
    principles=(Principle(id="honest", text="Be honest."), Principle(id="plain", text="Be plain.", weight=2.0)),
)
QUESTION = Prompt(messages=(Message("user", "Is it so?"),))
HELD_OUT = Prompt(messages=(Message("user", "And now?"),), split="held_out")
COMPARISON = Comparison(prompt=QUESTION, a="No.", b="Yes!", model="ab12")


STAGE_OF = {"sft_model": "03_sft", "reward_model": "07_reward", "policy": "08_dpo"}


class RunFolder:
    """`StageContext` over a folder: what the stages before the report left, and what the report leaves."""

    def __init__(self, folder: Path, notes: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder = folder
        self.notes = notes
        self.constitution = CONSTITUTION
        self.seed = 7

    @property
    def prompts(self) -> Prompts:
        raise NotImplementedError

    def read(self, artifact: str, kind: type[R]) -> list[R]:
        return list(read_rows(self.folder / f"{artifact}.jsonl", kind))

    def write(self, artifact: str, rows: Iterable[Record]) -> int:
        return write_rows(self.folder / f"{artifact}.jsonl", rows)

    def model(self, artifact: str) -> Path:
        return self.folder / STAGE_OF[artifact] / artifact

    def settings(self, role: str) -> ModelSettings:
        raise NotImplementedError(role)

    def output(self, name: str) -> Path:
        path = self.folder / "10_report" / name
        path.parent.mkdir(exist_ok=True)
        return path

    def engine(self, role: str) -> Engine:
        raise NotImplementedError(role)

    def release(self) -> None:
        pass

    def progress(self, items: Iterable[T], total: int, label: str) -> Iterator[T]:  # noqa: ARG002
        return iter(items)

    def note(self, name: str, value: object) -> None:
        raise NotImplementedError(name, value)

    def read_notes(self, stage: str) -> Mapping[str, Any]:
        return self.notes.get(stage, {})


def reading(order: str, p_a: float | None, problem: str | None = None, rationale: str = "") -> Reading:
    return Reading.model_validate({"order": order, "rationale": rationale, "p_a": p_a, "problem": problem})


def judgement(principle: str, first: float | None, second: float | None, problem: str | None = None) -> Judgement:
    sides = [p for p in (first, second) if p is not None]
    readable = len(sides) == 2
    return Judgement(
        comparison=COMPARISON.id,
        principle=principle,
        principle_text=f"Be {principle}.",
        labeler="cd34 rationale",
        readings=(
            reading("a_first", first, None if first is not None else problem, "(A) is so."),
            reading("b_first", second, None if second is not None else problem),
        ),
        p_a=sum(sides) / 2 if readable else None,
        conflict=readable and min(sides) < 0.5 < max(sides),
    )


def revision(text: str, principles: Iterable[str], final: str = "No.", problem: str | None = None) -> Revision:
    steps = tuple(
        RevisionStep(principle=name, principle_text=name, critique="So it does.", found_nothing=False, revision=final)
        for name in principles
    )
    return Revision(prompt=Prompt(messages=(Message("user", text),)), draft="Yes!", steps=steps, problem=problem)


# The labeler.


def test_the_labeler_is_counted_by_principle() -> None:
    judgements = [
        judgement("honest", 0.9, 0.8),  # a is better whatever the order: first shown, then second
        judgement("honest", 0.9, 0.2),  # what is shown first, twice: a conflict
        judgement("honest", 0.5, 0.6),  # a tie when a was first; then a, which was shown second
        judgement("honest", None, 0.6, "cut off"),
        judgement("plain", 0.1, 0.1),
    ]
    honest, plain = labeler_quality(CONSTITUTION, [], judgements, {}).principles
    assert (honest.judged, honest.unreadable, honest.conflicts, honest.ties) == (4, 1, 1, 0)
    assert honest.first is not None
    # Preferring the first: 0.9; 0.9 and 0.2. Preferring the second: 0.8; 0.6; 0.6. The tie prefers neither.
    assert (honest.first.right, honest.first.n) == (3, 6)
    assert (plain.judged, plain.weight) == (1, 2.0)
    assert honest.accuracy is None


def test_a_conflict_of_two_readings_near_a_half_is_a_tie() -> None:
    judgements = [
        judgement("honest", 0.48, 0.59),  # both less than 10 points from 50%
        judgement("honest", 0.48, 0.61),
        judgement("honest", 0.51, 0.52),  # near, but of one mind
    ]
    honest = labeler_quality(CONSTITUTION, [], judgements, {}).principles[0]
    assert (honest.conflicts, honest.ties) == (2, 1)


def test_a_score_given_to_each_response_by_itself_has_no_position() -> None:
    alone = judgement("honest", 0.9, 0.8).model_copy(update={"readings": (reading("a_first", 0.9),)})
    assert labeler_quality(CONSTITUTION, [], [alone], {}).principles[0].first is None


def test_a_histogram_counts_the_upper_edge_in_the_last_bin() -> None:
    found = histogram([0.0, 0.3, 0.31, 1.0], 0.0, 1.0, bins=10)
    assert found is not None
    # 0.3 / 0.1 is 2.9999999999999996 in floating point, and belongs to the bin that begins at 0.3
    assert found.counts == (1, 0, 0, 2, 0, 0, 0, 0, 0, 1)
    assert histogram([], 0, 1) is None


# The other parts.


def test_directions_come_from_the_user_then_from_evaluation_then_from_what_always_holds() -> None:
    names = (
        *("win_rate/base", "violation_rate/honest", "trait_rate/flattery", "trait_rate/hedging", "length"),
        *("due_refusal", "over_refusal"),
    )
    scores = [Score(model="base", measure=name, value=0, low=0, high=0, n=1, unit="share") for name in names]
    settings = Settings(wanted={"trait_rate/hedging": "higher"})
    noted = {"trait_rate/flattery": "lower", "trait_rate/hedging": "lower"}
    assert wanted_directions(scores, cast("Any", noted), settings) == {
        "win_rate/base": "higher",
        "violation_rate/honest": "lower",
        "trait_rate/flattery": "lower",
        "trait_rate/hedging": "higher",
        "due_refusal": "higher",
        "over_refusal": "lower",
    }


def test_a_reward_model_that_was_not_measured_on_a_source_has_no_accuracy_for_it() -> None:
    noted = {
        "accuracy": {"ai": {"value": 0.75, "low": 0.3, "high": 0.95, "n": 4}, "human": {"value": None, "n": 0}},
        "calibration": [{"predicted": 0.7, "observed": 0.75, "n": 4}],
        "calibration_error": 0.05,
        "length_correlation": None,
        "scores": None,
        "mean": 0.1,
        "deviation": 1.0,
    }
    found = reward_quality(noted)
    assert found is not None
    assert {source: (share.right, share.n) for source, share in found.accuracy.items()} == {"ai": (3, 4)}
    assert found.scores is None
    assert reward_quality({}) is None


def test_curves_hold_what_each_log_says_of_each_quantity() -> None:
    logs = {
        "member 0": [{"step": 5, "loss": 0.7, "accuracy": 0.5, "learning_rate": 1}],
        "member 1": [{"step": 5, "loss": 0.6}],
    }
    found = {curve.metric: curve.lines for curve in curves_of("reward", logs)}
    assert found == {
        "loss": {"member 0": ((5, 0.7),), "member 1": ((5, 0.6),)},
        "accuracy": {"member 0": ((5, 0.5),)},
    }


def test_what_was_left_out_is_counted_at_every_stage_with_its_reason() -> None:
    notes: dict[str, dict[str, Any]] = {
        "sample_pairs": {
            "prompts": 50,
            "prompts_without_pair": 4,
            "empty_responses": 0,
            "cut_off_responses": 7,
            "repeated_responses": 5,
        },
        "label": {"left_out_principles": ["plain"], "ties": 1},
        "sft": {"examples": {"trained_on": 90}, "dropped": {"too_long": 10, "by_trainer": 0}},
        "mix": {
            "counts": {
                "comparisons undecided": 3,
                "AI preferences used": 40,
                "AI preferences beyond the share or the total": 9,
                "AI preferences held out": 500,
                "held-out AI preferences beyond 500": 2,
                "preferences in train": 36,
            }
        },
        "reward": {"pairs": 35, "dropped": {"held_out": 4, "equal_texts": 0, "too_long": 0, "by_trainer": 1}},
        "dpo": {"pairs": 36, "dropped": {"held_out": 4, "equal_texts": 0, "too_long": 0}},
        "evaluate": {
            "counts": {
                "held-out prompts": 60,
                "critiques": 300,
                "unreadable critiques": 2,
                "equal replies, sft_model against base": 8,
            }
        },
    }
    revisions = [revision("a", ["honest"]), revision("b", ["honest"], problem="the reply is empty")]
    judgements = [
        judgement("honest", 0.9, 0.9),
        judgement("honest", None, 0.6, "cut off"),
        judgement("honest", 0.9, 0.1),  # (0.9 + 0.1) / 2: the orders cancel out
    ]
    found = [(each.stage, each.what, each.total, each.reasons) for each in left_out(revisions, judgements, notes)]
    assert found == [
        ("critique_revise", "drafts", 2, {"the reply is empty": 1}),
        ("sample_pairs", "prompts", 50, {"no two different responses": 4}),
        ("sample_pairs", "responses", None, {"cut off": 7, "repeated": 5}),
        ("label", "principles", None, {"“plain”: the labeler misjudges its examples": 1}),
        ("label", "judgements", 3, {"cut off": 1, "tie, neither response is preferred": 1}),
        (
            *("mix", "comparisons, judgements and rows", None),
            {
                "comparisons undecided": 3,
                "AI preferences beyond the share or the total": 9,
                "held-out AI preferences beyond 500": 2,
            },
        ),
        ("sft", "examples", 100, {"too long": 10}),
        ("reward", "preferences", 40, {"held out": 4, "by trainer": 1}),
        ("dpo", "preferences", 40, {"held out": 4}),
        (
            *("evaluate", "comparisons and critiques", None),
            {"unreadable critiques": 2, "equal replies, sft model against base": 8},
        ),
    ]


# The stage.


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    canaries = {"n": 40, "failed": 2}
    notes: dict[str, dict[str, Any]] = {
        "labeler_check": {"canaries": canaries},
        "label": {"warnings": ["half a pair: \ud800"]},
    }
    context = RunFolder(tmp_path / "first", notes)
    for stage in ("01_labeler_check", "05_label"):
        (context.folder / stage).mkdir(parents=True)
    judged = judgement("honest", 0.9, 0.8)
    context.write("revisions", [revision("Is it so?", ["honest"])])
    context.write("comparisons", [COMPARISON])
    context.write("judgements", [judged])
    examples = label.PrincipleAccuracy(principle="honest", n=10, right=7, unreadable=2, conflicts=1, mean_p_correct=0.7)
    context.write("labeler_accuracy", [examples])
    context.write(
        "preferences",
        [
            Preference(
                prompt=QUESTION,
                chosen="No.",
                rejected="Yes!",
                probability=0.85,
                source="ai",
                rests_on=(judged.id,),
                comparison=COMPARISON.id,
            ),
            Preference(
                prompt=Prompt(messages=(Message("user", "Which?"),)),
                chosen="This.",
                rejected="That.",
                probability=0.97,
                source="human",
                comparison="another",
                split="held_out",
            ),
        ],
    )
    write = [("base", 0.6, 0.7), ("policy", 0.1, 0.2)]
    context.write(
        "scores",
        [
            Score(model=model, measure="violation_rate/honest", value=low, low=low, high=high, n=90, unit="share")
            for model, low, high in write
        ],
    )
    context.write("samples", [evaluate.Sample(prompt=HELD_OUT, replies={"base": "Yes!", "policy": "No."})])
    for model in ("sft_model", "reward_model", "policy"):
        context.model(model).mkdir(parents=True)
        (context.model(model).parent / "training_log.jsonl").write_text('{"step": 5, "loss": 0.5}\n')
    config = {"config": {"seed": 7}, "digests": {"base": "ab12"}, "versions": {"torch": "2.13.0"}}
    (context.folder / "config.json").write_text(json.dumps(config))
    stages = {"mix": {"calls": {"asked": 0, "reused": 0}}, "label": {"calls": {"asked": 3, "reused": 1}}}
    (context.folder / "manifest.json").write_text(json.dumps({"stages": stages}))
    return context


def test_a_run_is_gathered_from_what_its_stages_wrote(folder: RunFolder) -> None:
    found = gather(Settings(), folder)
    assert found.name == "first"
    assert found.wanted == {"violation_rate/honest": "lower"}
    assert found.labeler is not None
    accuracy = found.labeler.principles[0].accuracy
    assert accuracy is not None
    assert (accuracy.right, accuracy.n) == (7, 8)  # of the ten examples, two could not be read
    assert (found.labeler.canaries, found.labeler.canaries_failed) == (40, 2)
    assert found.sources == {"ai, train": 1, "human, held out": 1}
    assert found.targets is not None
    # Of ten bins from 0.5, the one that begins with 0.85; that of 0.97, which is held out, is empty.
    assert found.targets.counts == (0, 0, 0, 0, 0, 0, 0, 1, 0, 0)
    assert [curve.stage for curve in found.curves] == ["sft", "reward", "dpo"]
    assert [(each.stage, each.answers) for each in found.provenance.calls] == [("label", 4)]  # 3 asked, 1 reused
    assert found.provenance.identities == {
        "base": "ab12",
        "sampled from": "ab12",
        "labeler and method": "cd34 rationale",
    }
    assert found.provenance.versions == {"torch": "2.13.0"}


def test_an_example_is_followed_to_what_was_preferred_on_its_prompt(folder: RunFolder) -> None:
    (example,) = gather(Settings(), folder).revisions
    assert example.conversation == QUESTION.messages
    assert example.choice is not None
    assert example.choice.chosen == "No."


def test_the_stage_writes_one_page_that_any_browser_reads_whatever_a_model_wrote(folder: RunFolder) -> None:
    run(Settings(), folder)
    page = folder.output("report.html").read_bytes().decode("utf-8")
    assert "better on 1" in page
    assert "half a pair: \\ud800" in page  # half a surrogate pair, which UTF-8 cannot hold
    made = sorted(path.name for path in folder.output("report.html").parent.iterdir())
    assert made == ["constitution_used.json", "report.html"]
    kept = folder.output("constitution_used.json").read_bytes()
    assert Constitution.model_validate_json(kept) == folder.constitution


def test_the_same_run_gives_the_same_page(folder: RunFolder) -> None:
    run(Settings(), folder)
    first = folder.output("report.html").read_bytes()
    run(Settings(), folder)
    assert folder.output("report.html").read_bytes() == first


def test_the_page_is_the_same_whatever_an_interruption_made_the_journal_answer(folder: RunFolder) -> None:
    run(Settings(), folder)
    unbroken = folder.output("report.html").read_bytes()
    stages = {"mix": {"calls": {"asked": 0, "reused": 0}}, "label": {"calls": {"asked": 1, "reused": 3}}}
    (folder.folder / "manifest.json").write_text(json.dumps({"stages": stages}))
    run(Settings(), folder)
    assert folder.output("report.html").read_bytes() == unbroken


def test_versions_are_those_that_each_stage_ran_on(folder: RunFolder) -> None:
    calls = {"asked": 0, "reused": 0}
    stages = {
        "sft": {"calls": calls, "versions": {"torch": "2.12.0", "trl": "1.0"}},
        "dpo": {"calls": calls, "versions": {"torch": "2.13.0", "trl": "1.0"}},
    }
    (folder.folder / "manifest.json").write_text(json.dumps({"stages": stages}))
    assert gather(Settings(), folder).provenance.versions == {"torch": "2.12.0, 2.13.0", "trl": "1.0"}
