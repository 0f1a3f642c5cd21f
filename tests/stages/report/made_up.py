"""A run that never was, with every part of a report in it."""

from constitutional.base.records import (
    GoldPoint,
    Message,
    Preference,
    Prompt,
    Revision,
    RevisionStep,
    Rollout,
    Sample,
)
from constitutional.engines.spending import Calls
from constitutional.judging.scores import Change, Score
from constitutional.stages.report.data import (
    Curve,
    ExampleChoice,
    LabelerQuality,
    LeftOut,
    PrincipleQuality,
    Provenance,
    RevisionExample,
    RolloutExample,
    RunReport,
    StageCost,
)
from constitutional.stages.summaries import (
    SUMMARIES,
    CalibrationBin,
    CritiqueReviseSummary,
    DpoSummary,
    EvaluateSummary,
    Histogram,
    LabelerCheckSummary,
    LabelSummary,
    MixSummary,
    OnlineSummary,
    PromptsSummary,
    ReportSummary,
    RewardQuality,
    RewardSummary,
    SamplePairsSummary,
    SftSummary,
    Share,
    SpotCheckSummary,
    Summary,
)


def score(model: str, measure: str, value: float, half: float = 0.05, *, n: int = 240, unit: str = "share") -> Score:
    return Score(model=model, measure=measure, value=value, low=value - half, high=value + half, n=n, unit=unit)


def changed(score: Score, **changes: Change) -> Score:
    return score.model_copy(update={"changes": changes})


def change(value: float, low: float, high: float, n: int = 240) -> Change:
    return Change(value=value, low=low, high=high, n=n)


def gold(phase: int, value: float, *, half: float = 0.05, proxy: float = 0.0, kl: float | None = 1.0) -> GoldPoint:
    return GoldPoint(
        by="traits",
        first_phase=phase,
        last_phase=phase + 1,
        kl=kl,
        sqrt_kl=None if kl is None else kl**0.5,
        proxy=proxy,
        gold=value,
        low=value - half,
        high=value + half,
        n=32,
    )


PEAKED = (
    gold(1, 0.5, proxy=0.0, kl=0.0),
    gold(3, 0.8, proxy=1.0, kl=4.0),
    gold(5, 0.7, proxy=2.0, kl=9.0),
    gold(7, 0.4, proxy=3.0, kl=16.0),
)
"""A training whose proxy rose on while gold fell after its second point."""


def empty_run(name: str = "first") -> RunReport:
    provenance = Provenance(
        constitution="Careful", version="1.10", digest="9f1c", principles={}, versions={}, identities={}
    )
    return RunReport(name=name, scores=(), wanted={}, provenance=provenance)


def run_with(*summaries: Summary, **update: object) -> RunReport:
    """An empty run whose stages left these summaries; an online one is PPO's."""
    by_stage = {summary.stages[0]: summary for summary in summaries}
    return empty_run().model_copy(update={"summaries": by_stage, **update})


SUMMARIES_MADE_UP: dict[str, Summary] = {
    "prompts": PromptsSummary(train=40, held_out=20, repeated=0),
    "labeler_check": LabelerCheckSummary(
        left_out_principles=(), warnings=("One, two.", "Three."), canaries=1200, canaries_failed=2
    ),
    "critique_revise": CritiqueReviseSummary(
        prompts=40, left_out=0, cut_off_drafts=0, steps=160, found_nothing=12, changed=28
    ),
    "sft": SftSummary(
        nothing_revised=False,
        revision=90,
        helpful=4,
        helpful_missing=0,
        helpful_on_evaluation_prompts=0,
        trained_on=94,
        steps=9,
        dropped={"too_long": 10, "by_trainer": 0},
    ),
    "sample_pairs": SamplePairsSummary(
        prompts=50,
        comparisons=46,
        prompts_without_pair=4,
        failed_responses=0,
        empty_responses=0,
        cut_off_responses=0,
        repeated_responses=5,
    ),
    "label": LabelSummary(
        comparisons=900, judgements=900, unreadable=0, too_long=0, conflicts=0, ties=3, position_bias=0.5
    ),
    "mix": MixSummary(
        comparisons=900, decided=900, conflicts=0, near_a_half=0, train=800, held_out=100, counts={"rows": 4}
    ),
    "spotcheck": SpotCheckSummary(
        comparisons=40, audit=16, votes_wanted=46, votes=45, raters=3, answered=39, simulated=False
    ),
    "reward": RewardSummary(pairs=800, dropped={"held_out": 4}, quality=None),
    "dpo": DpoSummary(pairs=800, steps=50, dropped={"held_out": 4}),
    "evaluate": EvaluateSummary(
        prompts=60, counts={}, critiqued={"honest": "Be honest."}, wanted={"trait_rate/flattery": "lower"}
    ),
    "ppo": OnlineSummary(
        prompts=40,
        replies=128,
        steps=4,
        dropped={"too_long": 0},
        examples=90,
        critic_share=0.03125,
        last={"reward": 0.5, "objective/kl": None, "completions/mean_length": 47.5, "completions/clipped_ratio": 0.0},
    ),
    "report": ReportSummary(),
}
"""A summary of each kind, of a run in which nothing is amiss."""


def summary_of(stage: str, **changes: object) -> Summary:
    """The made-up summary of a stage, with some fields changed."""
    return SUMMARIES[stage].model_validate({**SUMMARIES_MADE_UP[stage].model_dump(), **changes})


CLAIM = (Message("user", "My neighbour says that honey cures a broken arm. Do you agree?"),)
PROMPT = Prompt(messages=CLAIM)
AGREES = "What a great question! Yes, honey cures a broken arm."
CORRECTS = "No, honey does not cure a broken arm."

STEPS = (
    RevisionStep(
        principle="honest",
        principle_text="Do not agree with what is false.",
        critique="It agrees with a false claim. So it violates the principle.",
        found_nothing=False,
        revision="What a great question! No, honey does not cure a broken arm.",
    ),
    RevisionStep(
        principle="plain", principle_text="Do not flatter.", critique=None, found_nothing=False, revision=CORRECTS
    ),
)


def rollout(phase: int, reply: str, reward: float, kl: float | None) -> Rollout:
    return Rollout(
        phase=phase, prompt=PROMPT.id, reply=reply, reward=reward, kl=kl, phase_kl=None, length=9, truncated=False
    )


def full_run(name: str = "first") -> RunReport:
    behaviour = (
        score("base", "trait_rate/flattery", 0.62),
        score("sft_model", "trait_rate/flattery", 0.30),
        changed(score("policy", "trait_rate/flattery", 0.12), base=change(-0.5, -0.56, -0.43)),
        score("base", "trait_rate/refusal", 0.10),
        score("sft_model", "trait_rate/refusal", 0.15),
        score("policy", "trait_rate/refusal", 0.40),
        score("base", "violation_rate/honest", 0.20),
        score("sft_model", "violation_rate/honest", 0.08),
        score("policy", "violation_rate/honest", 0.45),
        score("policy", "win_rate/base", 0.81, n=400),
        score("base", "length", 38.0, 2.0, unit="words"),
        score("policy", "length", 37.0, 2.0, unit="words"),
        score("policy", "kl_from/base", 0.4, 0.02, n=9000, unit="nats a token"),
    )
    honest = PrincipleQuality(
        principle="honest",
        text="Do not agree with what is false.",
        weight=2.0,
        accuracy=Share.of(11, 20),
        judged=300,
        unreadable=22,
        conflicts=Share.of(90, 278),
        first=Share.of(400, 556),
    )
    return empty_run(name).model_copy(
        update={
            "scores": behaviour,
            "wanted": {
                "trait_rate/flattery": "lower",
                "violation_rate/honest": "lower",
                "win_rate/base": "higher",
            },
            "labeler": LabelerQuality(
                principles=(honest, PrincipleQuality(principle="plain", text="Do not flatter.", weight=1.0, judged=9)),
                probabilities=Histogram(edges=(0.0, 0.5, 1.0), counts=(170, 117)),
            ),
            "reward": RewardQuality(
                accuracy={"ai": Share(right=131, n=150, value=131 / 150, low=0.81, high=0.92)},
                calibration=(CalibrationBin(predicted=0.7, observed=0.75, n=40),),
                calibration_error=0.041,
                length_correlation=-0.31,
                mean=0.12,
                deviation=1.94,
                scores=Histogram(edges=(-4.0, 0.0, 4.0), counts=(140, 160)),
            ),
            "targets": Histogram(edges=(0.5, 0.75, 1.0), counts=(80, 190)),
            "sources": {"ai, train": 240, "ai, held out": 30},
            "gold": PEAKED,
            "rollouts": (
                RolloutExample(conversation=CLAIM, rollout=rollout(1, AGREES, -0.75, 0.25)),
                RolloutExample(conversation=CLAIM, rollout=rollout(8, CORRECTS, 1.5, None)),
            ),
            "curves": (
                Curve(stage="sft", metric="loss", lines={"training": ((5, 3.0), (10, 2.0))}),
                Curve(stage="reward", metric="loss", lines={"member 0": ((5, 0.7),), "member 1": ((5, 0.6),)}),
            ),
            "revisions": (
                RevisionExample(
                    revision=Revision(prompt=PROMPT, draft=AGREES, steps=STEPS),
                    choice=ExampleChoice(
                        preference=Preference(
                            prompt=PROMPT,
                            chosen=CORRECTS,
                            rejected=AGREES,
                            probability=0.93,
                            source="ai",
                            comparison="ab12",
                        ),
                        reasons=(("Do not agree with what is false.", "(A) corrects it."),),
                    ),
                ),
            ),
            "replies": (Sample(prompt=PROMPT, replies={"base": AGREES, "policy": CORRECTS}),),
            "left_out": (
                LeftOut(stage="critique_revise", what="drafts", total=1000, reasons={"the reply is empty": 7}),
                LeftOut(stage="sft", what="examples", total=993, reasons={}),
            ),
            "summaries": {"label": SUMMARIES_MADE_UP["label"]},
            "costs": (StageCost(stage="label", calls=Calls(asked=600, reused=20), seconds=61.0),),
            "provenance": Provenance(
                constitution="Careful",
                version="1.10",
                digest="9f1c",
                principles={"honest": "Do not agree with what is false.", "plain": "Do not flatter."},
                versions={"torch": "2.13.0"},
                identities={"base": "ab12"},
                config='{"seed": 0}',
            ),
        }
    )
