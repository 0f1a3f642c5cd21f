"""Comparisons become judgements: the labeler says which response follows the constitution better.

Bai et al. 2022, section 4.1, and Lee et al. 2023, section 2.1; `judging/labelling.py` says how. What differs from the
papers: a labeler judges only by the principles that the stage `labeler_check` found it can be trusted with; several may
judge the same comparisons (a panel); and with `principles: telling` only those comparisons are judged that a principle
tells apart by the first labeler's scores (`judging/choosing.py`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from constitutional.base.progress import counted
from constitutional.base.records import LABELER, Comparison, Judgement, Revision
from constitutional.judging.accuracy import (
    PrincipleAccuracy,
    called,
    labelled_by,
    position_bias,
    sharpness_of,
    untrusted,
)
from constitutional.judging.agreement import disagreement
from constitutional.judging.choosing import violated_in_drafts
from constitutional.judging.labeler import TOO_LONG, Labeler
from constitutional.judging.labelling import (
    Judge,
    LabelSettings,
    decisive,
    label_by,
    label_telling,
    readable,
    why_unread,
)
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import LabelSummary

Settings = LabelSettings


def judges_of(settings: Settings, context: StageContext, accuracies: Sequence[PrincipleAccuracy]) -> list[Judge]:
    """The labeler first, then the others of the panel, each with the principles that it is trusted with."""
    principles = [principle.id for principle in context.constitution.principles]
    return [
        Judge(
            Labeler(
                context.engine(role), context.prompts, settings, context.seed, name, sharpness_of(accuracies, name)
            ),
            settings.weights.get(name, 1.0),
            [principle for principle in principles if principle not in untrusted(accuracies, name)],
        )
        for name, role in context.judges.items()
    ]


def unreadable(judges: Sequence[Judge], judgements: Sequence[Judgement]) -> Iterator[tuple[str, str, str]]:
    """Of judges that gave no readable answer mostly: the name, `30 of 32`, and why."""
    for judge in judges:
        own = [judgement for judgement in judgements if judgement.judge == judge.labeler.judge_name]
        problems = [judgement.problem or "" for judgement in own if judgement.p_a is None]
        if 2 * len(problems) > len(own):
            why = why_unread(problems, judge.labeler, "take another label.method, or another model")
            yield judge.labeler.judge_name, f"{len(problems)} of {len(own)}", why


def run(settings: Settings, context: StageContext) -> None:
    """Read `comparisons`, `revisions` and `labeler_accuracy`, write `judgements`."""
    context.release()  # the SFT model, which is asked no more, may leave the labeler no room
    accuracies = context.read("labeler_accuracy", PrincipleAccuracy)
    comparisons = context.read("comparisons", Comparison)
    judges = judges_of(settings, context, accuracies)
    constitution = labelled_by(settings, context.constitution, accuracies, context.judges)
    scores: list[int | None] = []
    problem = ""
    if settings.principles == "telling":
        violated = violated_in_drafts(context.read("revisions", Revision))
        with context.task("label", len({comparison.prompt.id for comparison in comparisons}), "prompts") as task:
            judged = list(label_telling(comparisons, constitution, judges, violated, settings, ended=task.update))
        judgements = [judgement for prompt in judged for judgement in prompt.judgements]
        scores = [score for prompt in judged for score in prompt.scores.values()]
        problems = [text for prompt in judged for text in prompt.problems]
        if 2 * len(problems) > len(scores):
            otherwise = "type label.principles=one, which compares without scores"
            problem = why_unread(problems, judges[0].labeler, otherwise)
            context.warn(
                f"the labeler gave no score to {len(problems)} of {len(scores)} responses, which were not compared: "
                f"{problem}"
            )
    else:
        total = len(comparisons) * (len(constitution.principles) if settings.principles == "all" else 1)
        with context.task("label", total) as task:
            judgements = list(label_by(judges, comparisons, constitution, settings, context.seed, ended=task.update))
    for judge, how_many, why in unreadable(judges, judgements):
        context.warn(f"the {called(judge)} gave no readable answer in {how_many} judgements: {why}")
        if judge == LABELER:
            problem = problem or why
    if len(judges) > 1:
        split = disagreement(judgements)
        common = f"{len(split)} comparisons on which several have a preference"
        context.say(
            f"the judges prefer different responses in {sum(split)} of {common}"
            if split
            else "no comparison has preferences of several judges, so nobody knows how far they agree"
        )
    outvoted = _overridden(judgements)
    if any(outvoted):
        settled = counted(sum(map(bool, outvoted)), "comparison")
        context.say(f"on {settled} principles disagree of which one overrides the other, and it decides")
    elif constitution.overridden_by and settings.principles == "one":
        context.warn(
            "the constitution says which principles override which, but each comparison is judged by one principle, "
            "drawn for it (label.principles=one), so no two can disagree; type label.principles=all to judge by all, "
            "and let those decide that override"
        )
    context.write("judgements", judgements)
    context.summarise(
        LabelSummary(
            comparisons=len(comparisons),
            rated=len(scores) - scores.count(None),
            unrated=scores.count(None),
            problem=problem,
            judgements=len(judgements),
            unreadable=sum(judgement.p_a is None for judgement in judgements),
            too_long=sum(TOO_LONG in (judgement.problem or "") for judgement in judgements),
            conflicts=sum(judgement.conflict for judgement in judgements),
            ties=sum(judgement.p_a == 0.5 for judgement in judgements),
            position_bias=position_bias(judgements),
            bounded=sum(any(reading.bounded for reading in judgement.readings) for judgement in judgements),
            overridden=sum(outvoted),
            settled=sum(map(bool, outvoted)),
        )
    )


def _overridden(judgements: Iterable[Judgement]) -> list[int]:
    """For each comparison, how many of its readable judgements a principle overrides."""
    groups: defaultdict[str, list[Judgement]] = defaultdict(list)
    for judgement in readable(judgements):
        groups[judgement.comparison].append(judgement)
    return [len(group) - len(decisive(group)) for group in groups.values()]
