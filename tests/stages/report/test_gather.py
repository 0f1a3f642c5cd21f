"""From a run's artifacts and summaries to its report, over a run folder written by hand."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

import pytest

from constitutional.base import shards
from constitutional.base.errors import InputError
from constitutional.base.files import read_rows, write_rows
from constitutional.base.progress import Task
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
    Sample,
    SpotCheck,
    Verdict,
)
from constitutional.base.shards import Row, Shards, one_by_one, write_artifact
from constitutional.base.templates import Prompts
from constitutional.constitution.constitution import Constitution, Principle
from constitutional.engines.base import Engine
from constitutional.engines.settings import ModelSettings
from constitutional.engines.spending import Calls
from constitutional.judging.accuracy import PrincipleAccuracy
from constitutional.judging.evaluated import contests_of, violation_items
from constitutional.judging.people import PeoplesWork, work_of
from constitutional.judging.scores import Measurement, Score
from constitutional.judging.understanding import PrincipleMeaning
from constitutional.stages.context import StageRecord
from constitutional.stages.report.data import PrincipleQuality
from constitutional.stages.report.gather import (
    Settings,
    curves_of,
    gather,
    labeler_quality,
    left_out,
    run,
    wanted_directions,
)
from constitutional.stages.report.page import render
from constitutional.stages.summaries import (
    Direction,
    Histogram,
    LabelerCheckSummary,
    MixSummary,
    SftSummary,
    SpotCheckSummary,
    Summary,
)
from constitutional.training.tracking import Tracking
from tests.stages.report.made_up import SUMMARIES_MADE_UP, summary_of

R = TypeVar("R", bound=Record)
S = TypeVar("S", bound=Summary)
T = TypeVar("T")

CONSTITUTION = Constitution(
    name="Careful",
    version="1.10",
    principles=(Principle(id="honest", text="Be honest."), Principle(id="plain", text="Be plain.", weight=2.0)),
)
QUESTION = Prompt(messages=(Message("user", "Is it so?"),))
HELD_OUT = Prompt(messages=(Message("user", "And now?"),), split="held_out")
COMPARISON = Comparison(prompt=QUESTION, a="No.", b="Yes!", model="ab12")


def recorded(summary: Summary, calls: int = 0, **versions: str) -> StageRecord:
    return StageRecord(summary, {}, Calls(asked=calls), versions)


class RunFolder:
    """`StageContext` over a folder: what the stages before the report left, and what the report leaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stages = {"labeler_check": recorded(SUMMARIES_MADE_UP["labeler_check"])}
        self.said: Summary | None = None
        self.name = "first"
        self.constitution = CONSTITUTION
        self.seed = 7
        self.judges = {"labeler": "labeler"}

    @property
    def prompts(self) -> Prompts:
        raise NotImplementedError

    def has(self, artifact: str) -> bool:
        return (self.folder / f"{artifact}.jsonl").exists()

    def read(self, artifact: str, kind: type[R]) -> list[R]:
        return list(read_rows(self.folder / f"{artifact}.jsonl", kind))

    stream = read

    def summary(self, kind: type[S]) -> S | None:
        summaries = (record.summary for record in self.stages.values())
        return next((summary for summary in summaries if isinstance(summary, kind)), None)

    def records(self) -> Mapping[str, StageRecord]:
        return self.stages

    def configuration(self) -> dict[str, Any]:
        return {"seed": 7}

    def digests(self) -> dict[str, str]:
        return {"base": "ab12", "constitution": "9f1c"}

    def write(self, artifact: str, rows: Iterable[Row]) -> int:
        return write_rows(self.folder / f"{artifact}.jsonl", one_by_one(rows))

    def summarise(self, summary: Summary) -> None:
        self.said = summary

    def tracking(self, settings: object, part: str = "") -> Tracking:  # noqa: ARG002
        raise AssertionError("the report trains nothing")

    def model(self, artifact: str) -> Path:
        raise NotImplementedError(artifact)

    @property
    def base(self) -> ModelSettings:
        raise NotImplementedError

    def settings(self, role: str) -> ModelSettings:
        raise NotImplementedError(role)

    def output(self, name: str) -> Path:
        path = self.folder / "10_report" / name
        path.parent.mkdir(exist_ok=True)
        return path

    def engine(self, role: str) -> Engine:
        raise NotImplementedError(role)

    def release(self) -> None:
        raise NotImplementedError

    def say(self, line: str) -> None:
        raise NotImplementedError(line)

    def warn(self, message: str) -> None:
        raise NotImplementedError(message)

    def task(self, label: str, total: int = 0, unit: str = "rows") -> Task:
        raise NotImplementedError(label, total, unit)

    def progress(self, items: Iterable[T], total: int, label: str, unit: str = "rows") -> Iterator[T]:  # noqa: ARG002
        return iter(items)


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


def qualities(
    *judgements: Judgement, comparisons: Sequence[Comparison] = (COMPARISON,)
) -> tuple[PrincipleQuality, ...]:
    return labeler_quality(CONSTITUTION, [], judgements, comparisons).principles


def test_the_labeler_is_counted_by_principle() -> None:
    honest, plain = qualities(
        judgement("honest", 0.9, 0.8),  # a is better whatever the order: first shown, then second
        judgement("honest", 0.9, 0.2),  # what is shown first, twice: a conflict
        judgement("honest", 0.5, 0.6),  # a tie when a was first; then a, which was shown second
        judgement("honest", None, 0.6, "cut off"),
        judgement("plain", 0.1, 0.1),
    )
    assert (honest.judged, honest.unreadable, honest.ties) == (4, 1, 0)
    assert honest.conflicts is not None
    assert (honest.conflicts.right, honest.conflicts.n) == (1, 3)
    assert honest.first is not None
    # Preferring the first: 0.9; 0.9 and 0.2. Preferring the second: 0.8; 0.6; 0.6. The tie prefers neither.
    assert (honest.first.right, honest.first.n) == (3, 6)
    assert (plain.judged, plain.weight) == (1, 2.0)
    assert honest.accuracy is None


def test_a_conflict_of_two_readings_near_a_half_is_a_tie() -> None:
    honest, plain = qualities(
        judgement("honest", 0.48, 0.59),  # both less than 10 points from 50%
        judgement("honest", 0.48, 0.61),
        judgement("honest", 0.51, 0.52),  # near, but of one mind
    )
    assert honest.conflicts is not None
    assert (honest.conflicts.right, honest.ties) == (2, 1)
    assert plain.conflicts is None


def test_a_score_given_to_each_response_by_itself_has_no_position() -> None:
    alone = judgement("honest", 0.9, 0.8).model_copy(update={"readings": (reading("a_first", 0.9),)})
    assert qualities(alone)[0].first is None


def test_readings_and_pairs_of_one_prompt_are_not_taken_for_independent() -> None:
    # 10 prompts with 4 pairs each; the labeler prefers what is shown first, always.
    pairs = [
        Comparison(prompt=Prompt(messages=(Message("user", f"{prompt}?"),)), a=f"a{pair}", b="b", model="ab12")
        for prompt in range(10)
        for pair in range(4)
    ]
    judgements = [
        judgement("honest", 0.9, 0.2).model_copy(update={"comparison": comparison.id}) for comparison in pairs
    ]
    honest = qualities(*judgements, comparisons=pairs)[0]
    assert honest.first is not None
    assert honest.conflicts is not None
    # Wilson's interval of all of 10 begins at 1 / (1 + 1.96² / 10) = 72.2%, and that of all of 80 at 95.4%.
    assert (honest.first.right, honest.first.n) == (80, 80)
    assert 0.6 < honest.first.low < 0.723
    assert honest.conflicts.n == 40
    assert 0.6 < honest.conflicts.low < 0.723


def test_a_histogram_counts_the_upper_edge_in_the_last_bin() -> None:
    report = Histogram.of([0.0, 0.3, 0.31, 1.0], 0.0, 1.0, bins=10)
    assert report is not None
    # 0.3 / 0.1 is 2.9999999999999996 in floating point, and belongs to the bin that begins at 0.3
    assert report.counts == (1, 0, 0, 2, 0, 0, 0, 0, 0, 1)
    assert Histogram.of([], 0, 1) is None


# The other parts.


def test_directions_come_from_the_user_then_from_evaluation_then_from_what_always_holds() -> None:
    names = (
        *("win_rate/base", "violation_rate/honest", "trait_rate/flattery", "trait_rate/hedging", "length"),
        *("due_refusal", "over_refusal"),
    )
    scores = [Score(model="base", measure=name, value=0, low=0, high=0, n=1, unit="share") for name in names]
    settings = Settings(wanted={"trait_rate/hedging": "higher"})
    evaluated: dict[str, Direction] = {"trait_rate/flattery": "lower", "trait_rate/hedging": "lower"}
    assert wanted_directions(scores, evaluated, (), settings) == {
        "win_rate/base": "higher",
        "violation_rate/honest": "lower",
        "trait_rate/flattery": "lower",
        "trait_rate/hedging": "higher",
        "due_refusal": "higher",
        "over_refusal": "lower",
    }


def test_curves_hold_what_each_log_says_of_each_quantity() -> None:
    logs = {
        "member 0": [{"step": 5, "loss": 0.7, "accuracy": 0.5, "learning_rate": 1}],
        "member 1": [{"step": 5, "loss": 0.6}],
    }
    report = {curve.metric: curve.lines for curve in curves_of("reward", logs)}
    assert report == {
        "loss": {"member 0": ((5, 0.7),), "member 1": ((5, 0.6),)},
        "accuracy": {"member 0": ((5, 0.5),)},
    }


def test_how_far_vllm_is_from_the_trainer_is_drawn_where_vllm_draws() -> None:
    mismatch = "sampling/sampling_logp_difference/mean"
    logs = {"training": [{"step": 1, "reward": 0.5, "objective/kl": 0.0, mismatch: 0.01}]}
    drawn = {curve.metric: curve.lines for curve in curves_of("ppo", logs, "vllm")}
    assert drawn[mismatch] == {"training": ((1, 0.01),)}
    assert mismatch not in {curve.metric for curve in curves_of("ppo", logs, "transformers")}


def test_former_logs_of_online_trainings_are_drawn_as_those_of_today() -> None:
    reward, length, cut_off = {"rewards/length/mean": 3.0}, "completions/mean_length", "completions/clipped_ratio"
    ppo = {"step": 1, "reward": 0.5, "objective/kl": 4.0, length: 8.0, cut_off: 0.25, "policy/clipfrac_avg": 0.1}
    former_ppo = {"step": 1, "episodes": 64, "reward": 0.5, "kl": 4.0, "sqrt_kl": 2.0, "length": 8.0}
    former_ppo |= {"truncated": 0.25, "clip_fraction": 0.1}
    assert list(curves_of("ppo", {"training": [former_ppo]})) == list(curves_of("ppo", {"training": [ppo]}))
    grpo = {"step": 1, "reward": 0.25, "objective/kl": 4.0, length: 8.0, "frac_reward_zero_std": 0.5, **reward}
    former_grpo = {"step": 1, "reward": 0.5, "score": 0.25, "kl": 4.0, "sqrt_kl": 2.0, "length": 8.0}
    former_grpo |= {"groups_alike": 0.5, "rewards/length": 3.0}
    assert list(curves_of("grpo", {"training": [former_grpo]})) == list(curves_of("grpo", {"training": [grpo]}))


def test_members_of_an_ensemble_keep_their_order() -> None:
    logs = {f"member {number}": [{"step": 5, "loss": number / 10}] for number in range(12)}
    (curve,) = curves_of("reward", logs)
    assert list(curve.lines) == [f"member {number}" for number in range(12)]


def test_violations_of_a_principle_that_is_read_the_wrong_way_round_have_no_wanted_direction() -> None:
    names = ("violation_rate/plain", "violation_rate/brief")
    scores = [Score(model="base", measure=name, value=0, low=0, high=0, n=1, unit="share") for name in names]
    meanings = [
        PrincipleMeaning(principle="plain", words="…", meaning="seek flattery", warnings=("the opposite",)),
        PrincipleMeaning(principle="brief", words="…", meaning="avoid verbosity"),
    ]
    assert wanted_directions(scores, {}, meanings, Settings()) == {"violation_rate/brief": "lower"}


def test_what_was_left_out_is_counted_at_every_stage_with_its_reason(tmp_path: Path) -> None:
    counts = {
        "comparisons undecided": 3,
        "comparisons decided": 52,
        "AI preferences used": 40,
        "AI preferences beyond the share or the total": 9,
        "AI preferences held out": 500,
        "held-out AI preferences beyond 500": 2,
        "preferences in train": 36,
    }
    evaluated = {
        "held-out prompts": 60,
        "critiques": 300,
        "unreadable critiques": 2,
        "equal replies, sft_model against base": 8,
    }
    folder = RunFolder(tmp_path)
    summaries = {
        "sample_pairs": summary_of("sample_pairs", cut_off_responses=7),
        "labeler_check": summary_of("labeler_check", left_out_principles=["plain"]),
        "sft": summary_of("sft", trained_on=90),
        "mix": summary_of("mix", counts=counts),
        "reward": summary_of("reward", pairs=35, dropped={"held_out": 4, "too_long": 0, "by_trainer": 1}),
        "dpo": summary_of("dpo", pairs=36),
        "ppo": summary_of("ppo", prompts=38, dropped={"too_long": 2}),
        "evaluate": summary_of("evaluate", counts=evaluated),
    }
    folder.stages = {stage: recorded(summary) for stage, summary in summaries.items()}
    revisions = [revision("a", ["honest"]), revision("b", ["honest"], problem="the reply is empty")]
    judgements = [
        judgement("honest", 0.9, 0.9),
        judgement("honest", None, 0.6, "cut off"),
        judgement("honest", 0.9, 0.1),  # (0.9 + 0.1) / 2: the orders cancel out
    ]
    report = [(row.stage, row.what, row.total, row.reasons) for row in left_out(folder, revisions, judgements)]
    assert report == [
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
        ("ppo", "prompts", 40, {"too long": 2}),
        (
            *("evaluate", "comparisons and critiques", None),
            {"unreadable critiques": 2, "equal replies, sft model against base": 8},
        ),
    ]


# The stage.


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    context = RunFolder(tmp_path / "first")
    context.folder.mkdir()
    trained = {"training": [{"step": 5, "loss": 0.5}]}
    context.stages = {
        "labeler_check": recorded(summary_of("labeler_check", canaries=40, warnings=["half a pair: \ud800"])),
        "sft": recorded(SUMMARIES_MADE_UP["sft"])._replace(logs=trained),
        "label": recorded(SUMMARIES_MADE_UP["label"], 4, torch="2.13.0"),
        "reward": recorded(SUMMARIES_MADE_UP["reward"])._replace(logs=trained),
        "dpo": recorded(SUMMARIES_MADE_UP["dpo"])._replace(logs=trained),
        "evaluate": recorded(summary_of("evaluate", wanted={})),
    }
    judged = judgement("honest", 0.9, 0.8)
    context.write("revisions", [revision("Is it so?", ["honest"])])
    context.write("comparisons", [COMPARISON])
    context.write("judgements", [judged])
    examples = {"n": 10, "right": 7, "unreadable": 2, "conflicts": 1, "mean_p_correct": 0.7, "trusted": True}
    context.write("meanings", [PrincipleMeaning(principle="honest", words="Be honest.", meaning="seek hedging")])
    context.write("labeler_accuracy", [PrincipleAccuracy.model_validate({"principle": "honest", **examples})])
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
    context.write("measurements", [])
    context.write("samples", [Sample(prompt=HELD_OUT, replies={"base": "Yes!", "policy": "No."})])
    return context


def test_a_run_of_shards_is_gathered_as_one_of_json_lines(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [Prompt(messages=(Message("user", f"{number}?"),)) for number in range(4)]
    pairs = [Comparison(prompt=prompt, a=f"a{n}", b="b", model=f"m{n}") for prompt in prompts for n in range(2)]
    sides = [(0.9, 0.8), (0.9, 0.2), (0.48, 0.55), (None, 0.6), (0.5, 0.5)]
    judgements = [
        judgement(principle, *sides[(place + number) % 5], "cut off").model_copy(
            update={"comparison": pair.id, "judge": judge}
        )
        for number, pair in enumerate(pairs)
        for place, (principle, judge) in enumerate(product(("honest", "plain"), ("labeler", "second")))
    ]
    bounded = (reading("a_first", 0.7).model_copy(update={"bounded": True}), reading("b_first", 0.7))
    judgements[4] = judgements[4].model_copy(update={"readings": bounded})
    preferences = [
        Preference(
            prompt=pair.prompt,
            chosen="b",
            rejected=pair.a,
            probability=0.6 + number / 20,
            source="human" if number == 5 else "ai",
            rests_on=(judgements[4 * number].id, "file:3"),
            comparison=pair.id,
            split="held_out" if number == 3 else "train",
        )
        for number, pair in enumerate(pairs)
    ]
    folder.write("comparisons", pairs)
    folder.write("judgements", judgements)
    folder.write("preferences", preferences)
    folder.write("revisions", [revision(f"{n}?", ["plain"], problem="empty" if n == 6 else None) for n in range(8)])
    expected = gather(Settings(revision_examples=5), folder)
    monkeypatch.setattr(shards, "LARGE", 3)
    monkeypatch.setattr(shards, "AT_ONCE", 2)
    (folder.folder / "large").mkdir()

    def stream(artifact: str, kind: type[R]) -> Shards[R]:
        path, _ = write_artifact(folder.folder / "large", artifact, folder.read(artifact, kind))
        return Shards(path, kind)

    monkeypatch.setattr(folder, "stream", stream)
    found = gather(Settings(revision_examples=5), folder)
    assert found == expected
    assert render((found,)) == render((expected,))
    assert found.labeler is not None
    assert found.panel is not None
    honest, plain = found.labeler.principles
    # By "honest" the labeler's sides are the five in turn, from the first: 0 to 4, then 0 to 2.
    assert (honest.judged, honest.unreadable, honest.ties, found.labeler.bounded) == (8, 1, 2, 1)
    assert (plain.judged, plain.unreadable) == (8, 2)
    assert honest.conflicts is not None
    assert (honest.conflicts.right, honest.conflicts.n) == (4, 7)
    assert honest.first is not None
    assert (honest.first.right, honest.first.n) == (1 + 1 + 0 + 0 + 1 + 2 + 0, 13)
    assert found.sources == {"ai, train": 6, "ai, held out": 1, "human, train": 1}
    assert found.targets is not None
    assert found.targets.counts == (0, 0, 1, 1, 1, 0, 1, 1, 1, 1)  # of 0.60, 0.65, … 0.95, but for 0.75
    shown = {row.revision.prompt.messages[0].content: row.choice for row in found.revisions}
    assert len(shown) == 5
    assert "6?" not in shown
    for number, pair in enumerate(pairs[::2]):
        choice = shown.get(f"{number}?")
        assert choice is None or choice.preference.comparison == pair.id
        assert choice is None or choice.reasons == (("Be honest.", "(A) is so."),)
    assert any(shown.values())
    assert found.provenance.identities["sampled from"] == "m0, m1"


def test_a_run_is_gathered_from_what_its_stages_wrote(folder: RunFolder) -> None:
    report = gather(Settings(), folder)
    assert report.name == "first"
    assert report.wanted == {"violation_rate/honest": "lower"}
    assert report.labeler is not None
    accuracy = report.labeler.principles[0].accuracy
    assert accuracy is not None
    assert (accuracy.right, accuracy.n) == (7, 8)  # of the ten examples, two could not be read
    trial = report.summary(LabelerCheckSummary)
    assert trial is not None
    assert (trial.canaries, trial.canaries_failed) == (40, 2)
    assert report.sources == {"ai, train": 1, "human, held out": 1}
    assert report.targets is not None
    # Of ten bins from 0.5, the one that begins with 0.85; that of 0.97, which is held out, is empty.
    assert report.targets.counts == (0, 0, 0, 0, 0, 0, 0, 1, 0, 0)
    assert [curve.stage for curve in report.curves] == ["sft", "reward", "dpo"]
    assert {row.stage: row.calls.asked for row in report.costs if row.calls.asked} == {"label": 4}
    assert (report.gold, report.rollouts) == ((), ())  # no training online
    assert report.provenance.identities == {
        "base": "ab12",
        "sampled from": "ab12",
        "labeler and method": "cd34 rationale",
    }
    assert report.provenance.versions == {"torch": "2.13.0"}


def test_an_example_is_followed_to_what_was_preferred_on_its_prompt(folder: RunFolder) -> None:
    (example,) = gather(Settings(), folder).revisions
    assert example.revision.prompt == QUESTION
    assert example.choice is not None
    assert example.choice.preference.chosen == "No."


def test_the_stage_writes_one_page_that_any_browser_reads_whatever_a_model_wrote(folder: RunFolder) -> None:
    run(Settings(), folder)
    page = folder.output("report.html").read_bytes().decode("utf-8")
    assert "better on 1" in page
    assert "half a pair: \\ud800" in page  # half a surrogate pair, which UTF-8 cannot hold
    made = sorted(path.name for path in folder.output("report.html").parent.iterdir())
    assert made == ["constitution_used.json", "people.json", "report.html"]
    kept = folder.output("constitution_used.json").read_bytes()
    assert Constitution.model_validate_json(kept) == folder.constitution


def test_the_same_run_gives_the_same_page(folder: RunFolder) -> None:
    run(Settings(), folder)
    first = folder.output("report.html").read_bytes()
    run(Settings(), folder)
    assert folder.output("report.html").read_bytes() == first


def test_versions_are_those_that_each_stage_ran_on(folder: RunFolder) -> None:
    folder.stages["sft"] = recorded(SUMMARIES_MADE_UP["sft"], torch="2.12.0", trl="1.0")
    folder.stages["dpo"] = recorded(SUMMARIES_MADE_UP["dpo"], torch="2.13.0", trl="1.0")
    assert gather(Settings(), folder).provenance.versions == {"torch": "2.12.0, 2.13.0", "trl": "1.0"}


def test_people_s_votes_are_reported_with_who_gave_them_and_where_the_labeler_contradicts_them(
    folder: RunFolder,
) -> None:
    assert gather(Settings(), folder).people is None
    folder.write("spotchecks", [SpotCheck(comparison=COMPARISON.id, reason="audit", probability=0.5)])
    folder.write("verdicts", [Verdict(comparison=COMPARISON.id, rater="ada", choice="b", rationale="<so> it says")])
    counts = {"comparisons": 1, "audit": 1, "votes_wanted": 1, "votes": 1, "raters": 1, "answered": 1}
    folder.stages["spotcheck"] = recorded(SpotCheckSummary.model_validate({**counts, "simulated": False}))
    rates = {("policy", "win_rate/base"): {f"p{number}": 0.9 for number in range(12)}}
    folder.write(
        "measurements", [Measurement(model=model, measure=name, by_prompt=of) for (model, name), of in rates.items()]
    )
    report = gather(Settings(), folder)
    assert report.people is not None
    named = {rate.name: rate for rate in report.people.agreement}
    assert (named["the audit set"].value, named["the audit set"].n) == (0.0, 1)
    assert "people with each other" not in named  # one vote
    assert set(report.people.chance_corrected.values()) == {"undefined: no item has two votes"}
    assert report.people.labeler_beyond_chance["Cohen’s κ"] == "0.00 (no interval: fewer than 10 prompts), n = 1"
    assert "Of the labeler with people, on the audit set: Cohen’s κ 0.00" in render((report,))
    assert [row.votes[0].rater for row in report.people.wrong] == ["ada"]
    # A labeler that is never right says nothing of the models.
    (against_base,) = report.people.win_rates
    assert [(rate.name, rate.value, rate.n) for rate in against_base.rates] == [("by the labeler", 1.0, 12)]
    assert "no better than chance" in against_base.notes[0]
    assert "review.about=evaluation" in against_base.notes[1]
    page = render((report,))
    assert "&lt;so&gt; it says" in page
    assert "1 raters gave 1 of 1 votes" in page
    assert "votes are simulated" not in page
    folder.stages["spotcheck"] = recorded(SpotCheckSummary.model_validate({**counts, "simulated": True}))
    assert "votes are simulated" in render((gather(Settings(), folder),))


def test_known_answers_are_reported_by_rater_and_are_no_agreement_with_the_labeler(folder: RunFolder) -> None:
    folder.write("spotchecks", [SpotCheck(comparison=COMPARISON.id, reason="audit", probability=0.5)])
    golden = [by_rater("ada", number, gold="a" if number else "b") for number in range(4)]
    folder.write("verdicts", [Verdict(comparison=COMPARISON.id, rater="ada", choice="b"), *golden])
    counts = {"comparisons": 1, "audit": 1, "votes_wanted": 1, "votes": 1, "raters": 1, "answered": 1}
    folder.stages["spotcheck"] = recorded(SpotCheckSummary.model_validate({**counts, "simulated": False}))
    report = gather(Settings(), folder)
    assert report.people is not None
    assert [rate.n for rate in report.people.agreement if rate.name == "the audit set"] == [1]
    assert [(rate.name, rate.value, rate.n) for rate in report.people.gold] == [("ada", 0.75, 4)]
    assert "ada 75% (30% to 95%), n = 4" in render((report,))


def test_where_all_votes_are_on_gold_items_people_have_a_section_all_the_same(folder: RunFolder) -> None:
    worked(folder, [by_rater("ada", number, gold="a" if number else "b") for number in range(4)])
    report = gather(Settings(), folder)
    assert report.people is not None
    assert (report.people.agreement, report.people.wrong) == ((), ())
    page = render((report,))
    assert "ada 75% (30% to 95%), n = 4" in page
    assert "People</h3>" in page


def test_people_s_answers_about_the_evaluated_replies_correct_the_rates(folder: RunFolder, tmp_path: Path) -> None:
    replies = [
        Sample(prompt=Prompt.of(f"Q{number}"), replies={"base": f"b{number}", "policy": f"p{number}"})
        for number in range(60)
    ]
    names = [sample.prompt.id for sample in replies]
    folder.write("samples", replies)
    rates = {
        "win_rate/base": [0.9] * 40 + [0.2] * 20,
        "violation_rate/honest": [1.0] * 20 + [0.0] * 40,
    }
    measured = [
        Measurement(model="policy", measure=name, by_prompt=dict(zip(names, values, strict=True)))
        for name, values in rates.items()
    ]
    folder.write("measurements", measured)
    votes, answers = tmp_path / "votes.jsonl", tmp_path / "sheet.csv"
    rows = contests_of(replies, measured)
    # Of each 20 people vote on ten: eight, eight and one of them are wins.
    chosen = [(row, number % 20 < (8 if number < 40 else 1)) for number, row in enumerate(rows) if number % 20 < 10]
    write_rows(
        votes,
        [
            Verdict(comparison=row.comparison.id, rater="ada", choice="a" if won else "b", seconds=36)
            for row, won in chosen
        ],
    )
    by_prompt = {item.prompt: item for item in violation_items(replies, measured, CONSTITUTION, 7)}
    lines = [f"{by_prompt[name].name},bob,{'yes' if n < 9 else 'no'}" for n, name in enumerate(names[:30])]
    answers.write_text("\n".join(["item,rater,violates", *lines]))
    settings = Settings(verdicts=votes, violations=answers)
    report = gather(settings, folder)
    assert report.people is not None
    (won,) = report.people.win_rates
    assert [rate.name for rate in won.rates] == ["by the labeler", "Rogan–Gladen", "PPI++", "by people alone"]
    by_name = {rate.name: rate for rate in won.rates}
    # 16 of 17 wins and 9 of 13 losses are found, and people and the labeler see as much in both halves.
    assert by_name["by the labeler"].value == pytest.approx(2 / 3)
    assert by_name["Rogan–Gladen"].value == pytest.approx((2 / 3 + 9 / 13 - 1) / (16 / 17 + 9 / 13 - 1))
    assert by_name["PPI++"].value == pytest.approx(17 / 30)
    assert "fewer than 50" in by_name["PPI++"].caution
    assert by_name["PPI++"].to_halve is not None
    assert [row.name for row in report.people.violations] == ["all principles", "honest"]
    flagged = {rate.name: rate.value for rate in report.people.violations[0].rates}
    assert flagged["by the critic"] == pytest.approx(1 / 3)
    # Of the 30 about which bob answers, nine are violations, all flagged. Of the 21 others eleven are flagged too, more
    # than a third: no violation is left, which is clipped to 0.
    assert flagged["Rogan–Gladen"] == 0
    # θ = 9/30 + λ(0 − 20/30), and λ = (9/30 − 9/30 · 20/30) / (2 · 60/59 · 2/9).
    assert flagged["PPI++"] == pytest.approx(0.3 - 2 / 3 * 0.1 / (2 * 60 / 59 * 2 / 9))
    page = render((report,))
    for words in ("PPI++", "Rogan–Gladen", "Violation rates, corrected by people", "More votes to halve the interval"):
        assert words in page
    work = report.provenance.people
    assert work is not None
    assert [(row.source, row.raters, row.votes, row.hours) for row in work.rows] == [
        ("votes on the evaluated replies", "1", "30", "0.30"),
        ("answers on violations", "1", "30", "not recorded"),
    ]
    run(settings, folder)
    kept = json.loads(folder.output("people.json").read_bytes())
    assert kept["estimates"]["win_rates"][0]["rates"][2]["name"] == "PPI++"
    assert kept["estimates"]["win_rates"][0]["rates"][2]["value"] == pytest.approx(17 / 30)
    assert kept["work"]["rows"][1]["votes"] == "30"
    answers.write_text("item,rater,violates\nv_none,bob,yes\n")
    with pytest.raises(InputError, match=r"sheet\.csv:2"):
        gather(settings, folder)


def test_a_correction_that_could_be_any_rate_is_told_and_not_drawn(folder: RunFolder, tmp_path: Path) -> None:
    replies = [Sample(prompt=Prompt.of(f"Q{at}"), replies={"base": f"b{at}", "policy": f"p{at}"}) for at in range(20)]
    outcomes = {sample.prompt.id: 0.9 if at < 12 else 0.2 for at, sample in enumerate(replies)}
    measured = [Measurement(model="policy", measure="win_rate/base", by_prompt=outcomes)]
    folder.write("samples", replies)
    folder.write("measurements", measured)
    rows = contests_of(replies, measured)
    for said, told in (("aaababbb", "tells nothing"), ("baabbaab", "too few to tell")):
        # Four that the labeler calls wins, and four that it calls losses.
        votes = [
            Verdict(comparison=row.comparison.id, rater="ada", choice="a" if choice == "a" else "b")
            for row, choice in zip((*rows[:4], *rows[-4:]), said, strict=True)
        ]
        write_rows(tmp_path / "votes.jsonl", votes)
        report = gather(Settings(verdicts=tmp_path / "votes.jsonl"), folder)
        assert report.people is not None
        (won,) = report.people.win_rates
        assert "Rogan–Gladen" not in {rate.name for rate in won.rates}
        assert told in " ".join(won.notes)


def by_rater(rater: str, number: int, **more: object) -> Verdict:
    return Verdict.model_validate({"comparison": f"c{number}", "rater": rater, "choice": "a", **more})


def worked(folder: RunFolder, verdicts: list[Verdict], *, simulated: bool = False) -> None:
    counts = dict.fromkeys(("comparisons", "audit", "votes_wanted", "votes", "raters", "answered"), 1)
    summary = SpotCheckSummary.model_validate({**counts, "simulated": simulated})
    folder.stages["spotcheck"] = recorded(summary)
    folder.write("spotchecks", [])
    folder.write("verdicts", verdicts)


def test_provenance_says_who_did_the_work_in_how_many_hours_and_for_what_pay(folder: RunFolder) -> None:
    timed = [by_rater(rater, number, seconds=900, exposed=number == 0) for rater in ("ann", "bob") for number in (0, 1)]
    worked(folder, timed)
    made = gather(Settings(pay_per_hour=21.5, currency="EUR"), folder).provenance.people
    assert made is not None
    assert [tuple(row.model_dump().values()) for row in made.rows] == [
        ("spot-checks", "2", "4", "0", "1.00", "2", "21.50 EUR")
    ]
    assert "simulated" not in " ".join(made.notes)
    worked(folder, [*timed, by_rater("cem", 0)])  # imported
    report = gather(Settings(pay_per_hour=21.5, currency="EUR"), folder)
    assert report.provenance.people is not None
    (row,) = report.provenance.people.rows
    assert (row.raters, row.votes) == ("3", "5")
    for text, value in ((row.hours, "1.00"), (row.exposures, "2"), (row.pay, "21.50 EUR")):
        assert text.startswith(value)
        assert "4 of 5" in text
    assert "21.50 EUR, recorded for 4 of 5" in render((report,))
    worked(folder, [by_rater("cem", 0)])
    made = gather(Settings(), folder).provenance.people
    assert made is not None
    row = made.rows[0]
    assert (row.hours, row.exposures, row.pay) == ("not recorded", "not recorded", "not stated")


def test_provenance_says_that_simulated_votes_are_nobodys_work(folder: RunFolder) -> None:
    worked(folder, [by_rater("simulated 1", 0), by_rater("simulated 2", 0)], simulated=True)
    report = gather(Settings(pay_per_hour=20), folder)
    assert report.provenance.people is not None
    assert report.provenance.people.rows == ()
    page = render((report,))
    assert "2 votes (spot-checks) are simulated" in page
    assert "No person voted" in page


def test_provenance_says_what_is_not_known_of_a_file_of_people_s_comparisons(folder: RunFolder) -> None:
    row = Preference(
        prompt=COMPARISON.prompt,
        chosen="A",
        rejected="B",
        probability=0.9,
        source="human",
        rests_on=("pairs.jsonl:3",),
        comparison="c",
    )
    folder.write("preferences", [row, row.model_copy(update={"rests_on": ("0123456789abcdef",)})])
    # Without a count of the verdicts that the other one rests on, nothing is known of them either.
    for verdicts, expected in ((None, "2 preferences"), ([by_rater("ann", 0, seconds=36)], "1 preferences")):
        if verdicts is not None:
            counts = dict.fromkeys(("comparisons", "decided", "conflicts", "near_a_half", "train", "held_out"), 1)
            labelled = {"pairs.jsonl": "is labelled by GPT-4"}
            more = {"counts": {}, "work": work_of(verdicts), "labelled": labelled}
            summary = MixSummary.model_validate({**counts, **more})
            folder.stages["mix"] = recorded(summary)
        made = gather(Settings(), folder).provenance.people
        assert made is not None
        assert any(note.startswith(expected) and "not recorded" in note for note in made.notes)
        assert not any("No person" in note for note in made.notes)
    assert made is not None
    assert "pairs.jsonl is labelled by GPT-4." in made.notes
    assert [(line.source, line.hours) for line in made.rows] == [("votes of mix.verdicts", "0.01")]


def test_provenance_names_a_file_of_helpful_samples_as_work_of_which_nothing_is_recorded(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sft = SftSummary(
        nothing_revised=False, revision=8, helpful=3, helpful_on_evaluation_prompts=0, trained_on=11, dropped={}
    )
    folder.stages["sft"] = recorded(sft)
    for file, named in ((None, False), ("rewritten.jsonl", True)):
        monkeypatch.setattr(folder, "configuration", lambda file=file: {"sft": {"helpful": file}})
        made = gather(Settings(), folder).provenance.people
        assert made is not None
        assert any("3 helpful samples" in note and "not recorded" in note for note in made.notes) == named


@pytest.mark.parametrize(("unsigned", "noted"), [(0, False), (2, True)])
def test_provenance_counts_who_wrote_helpful_samples_as_it_counts_voters(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, *, unsigned: int, noted: bool
) -> None:
    work = PeoplesWork(raters=2, votes=3, skips=0, timed=3, seconds=5400.0, noted=3, exposures=1, simulated=0)
    said = {"nothing_revised": False, "revision": 8, "helpful": 3, "helpful_on_evaluation_prompts": 0, "trained_on": 11}
    sft = SftSummary.model_validate({**said, "dropped": {}, "work": work, "unsigned": unsigned})
    folder.stages["sft"] = recorded(sft)
    monkeypatch.setattr(folder, "configuration", lambda: {"sft": {"helpful": "written.jsonl"}})
    made = gather(Settings(pay_per_hour=20, currency="EUR"), folder).provenance.people
    assert made is not None
    assert [tuple(row.model_dump().values()) for row in made.rows] == [
        ("replies written for sft.helpful", "2", "3", "0", "1.50", "1", "30.00 EUR")
    ]
    assert any("2 helpful samples of the file sft.helpful name no rater" in note for note in made.notes) == noted
    assert any("helpful" in note for note in made.notes) == noted
