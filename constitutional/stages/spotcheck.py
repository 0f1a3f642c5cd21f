"""People look at a part of what the labeler judged: which part, and what they said of it.

The run waits for them: it ends before this stage with exit code 3, and goes on with a file of their votes, or without
them where `wait` is false. The file is a snapshot: votes that come later change nothing that was trained, until a newer
snapshot is named.
"""

from collections import Counter
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from constitutional.base.errors import WaitingError
from constitutional.base.frozen import Frozen
from constitutional.base.progress import counted
from constitutional.base.records import Comparison, Judgement, SpotCheck, Verdict
from constitutional.data.verdicts import read_verdicts
from constitutional.judging.people import raters_own
from constitutional.judging.spotchecks import SpotCheckSettings, planned, reward_probabilities
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import SpotCheckSummary


class Simulation(Frozen):
    """Votes made up from the sandbox's exact traits, to try sampling and mixing on. They are marked as simulated."""

    error: float = Field(default=0.1, ge=0, le=0.5)
    """Share of the votes that name the wrong side."""
    raters: int = Field(default=3, ge=2)
    """Simulated people among whom the comparisons are divided."""


class Settings(SpotCheckSettings):
    """How much people are asked, about what, and where their votes are."""

    wait: bool = True
    """Whether the run waits for people's votes; otherwise it goes on without them."""
    verdicts: Path | None = None
    """People's votes on the planned comparisons: a file that `constitutional review RUN freeze` wrote, or
    `constitutional votes import`."""
    simulate: Simulation | None = None
    """Votes that are simulated in place of people's, in the sandbox alone."""

    @model_validator(mode="after")
    def _votes_have_a_plan(self) -> Self:
        if self.verdicts is not None and not self.votes:
            raise ValueError(
                "verdicts are votes on the comparisons that a budget plans, and there is no budget; type the "
                "spotcheck.budget that the run was made with, or mix.verdicts=FILE for votes on other comparisons"
            )
        if self.verdicts is not None and self.simulate is not None:
            raise ValueError(
                "simulate makes up the votes that verdicts would hold; type spotcheck.simulate=null for people's, or "
                "leave verdicts out"
            )
        return self


def run(settings: Settings, context: StageContext) -> None:
    """Read `comparisons` and `judgements`, write `spotchecks` and `verdicts`."""
    comparisons = context.read("comparisons", Comparison)
    rewards = None
    if "reward" in settings.targets and settings.reward_model is not None:
        rewards = reward_probabilities(comparisons, settings.reward_model)
    plan = planned(comparisons, context.read("judgements", Judgement), settings, context.seed, rewards)
    wanted = sum(row.votes for row in plan)
    spare = (
        f"the budget is for {counted(settings.votes, 'vote')}, and the {counted(len(plan), 'comparison')} that can be "
        f"asked about take {wanted}; more comparisons (more prompts) or spotcheck.overlap=… take more"
        if len(plan) < settings.items
        else ""
    )
    verdicts = _verdicts(settings, plan, comparisons, context, spare)
    context.write("spotchecks", plan)
    context.write("verdicts", verdicts)
    own = [verdict for verdict in raters_own(verdicts) if not verdict.withdrawn]
    asked = {row.comparison for row in plan}  # a file may hold votes on others too
    votes = {
        (row.comparison, row.rater) for row in own if row.comparison in asked and not (row.choice == "skip" or row.gold)
    }
    answered = {comparison for comparison, _ in votes}
    context.summarise(
        SpotCheckSummary(
            comparisons=len(plan),
            audit=sum(row.reason == "audit" for row in plan),
            votes_wanted=wanted,
            votes=len(votes),
            raters=len({row.rater for row in own if row.comparison in asked}),
            answered=sum(row.comparison in answered for row in plan),
            simulated=settings.simulate is not None,
        )
    )
    if spare:
        context.warn(spare)
    votes_of = Counter(comparison for comparison, _ in votes)
    held = sum(min(row.votes, votes_of[row.comparison]) for row in plan)
    if settings.verdicts is not None and held < wanted:
        context.warn(
            f"{settings.verdicts} holds {held} of {counted(wanted, 'vote')} that the budget wants, and the run "
            "goes on with these; spotcheck.verdicts=null waits for the others"
        )


def _verdicts(
    settings: Settings, plan: list[SpotCheck], comparisons: list[Comparison], context: StageContext, spare: str
) -> list[Verdict]:
    if settings.simulate is not None:
        from constitutional.judging.simulated_people import simulated

        own = settings.simulate
        return simulated(plan, comparisons, context.constitution, own.error, own.raters, context.seed)
    if settings.verdicts is not None:
        return read_verdicts(settings.verdicts, {row.id for row in comparisons})
    if settings.wait and plan:
        votes = counted(sum(row.votes for row in plan), "vote")
        raise WaitingError(
            f"{counted(len(plan), 'comparison')} wait for {votes} of people{f' ({spare})' if spare else ''}, towards "
            "which votes that are in count; type `constitutional review "
            f"{context.folder}`, and when they are there `constitutional review {context.folder} freeze`, which says "
            "how to go on; `constitutional votes` is for other tools, whose votes go in by spotcheck.verdicts=FILE; "
            "spotcheck.wait=false goes on without them"
        )
    return []
