"""Comparisons become judgements: the labeler says which response follows the constitution better.

Bai et al. 2022, section 4.1, and Lee et al. 2023, section 2.1; `judging/labelling.py` says how. What differs from the
papers: a labeler judges only by the principles that the stage `labeler_check` found it can be trusted with; several may
judge the same comparisons (a panel); and with `principles: telling` only those comparisons are judged that a principle
tells apart by the first labeler's scores (`judging/choosing.py`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from constitutional.base.progress import counted
from constitutional.base.records import LABELER, Comparison, Judgement, Revision
from constitutional.base.shards import column_of
from constitutional.judging.accuracy import (
    PrincipleAccuracy,
    called,
    labelled_by,
    sharpness_of,
    shown_first,
    untrusted,
)
from constitutional.judging.agreement import disagreement
from constitutional.judging.choosing import violated_in_drafts
from constitutional.judging.labeler import TOO_LONG, Labeler
from constitutional.judging.labelling import (
    Judge,
    LabelSettings,
    PromptJudgements,
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


class Tally:
    """What is counted of a run's judgements while they are written."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """By what `LabelSummary` calls it, and: readings that prefer the response shown `first`, those that prefer
        `one`; comparisons by a principle that `several` judges have a preference on, and those where they are
        `split`."""
        self.judged: Counter[str] = Counter()
        """Judgements by judge."""
        self.problems: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By judge, why judgements cannot be read, and how often."""

    def through(self, judgements: Iterable[Judgement]) -> Iterator[Judgement]:
        """The judgements, counted; those of a comparison stand together."""
        for _, of_comparison in groupby(judgements, lambda judgement: judgement.comparison):
            group = list(of_comparison)
            self._count(group)
            yield from group

    def _count(self, group: Sequence[Judgement]) -> None:
        """Count the judgements of a comparison."""
        for judgement in group:
            self.judged[judgement.judge] += 1
            if judgement.p_a is None:
                self.problems[judgement.judge][judgement.problem or ""] += 1
        first, one = shown_first(group)
        split = disagreement(group)
        outvoted = len(readable(group)) - len(decisive(group))
        self.counts.update(
            unreadable=sum(judgement.p_a is None for judgement in group),
            too_long=sum(TOO_LONG in (judgement.problem or "") for judgement in group),
            conflicts=sum(judgement.conflict for judgement in group),
            ties=sum(judgement.p_a == 0.5 for judgement in group),
            bounded=sum(any(reading.bounded for reading in judgement.readings) for judgement in group),
            overridden=outvoted,
            settled=bool(outvoted),
            first=first,
            one=one,
            several=len(split),
            split=sum(split),
        )

    def unreadable(self, judges: Sequence[Judge]) -> Iterator[tuple[str, str, str]]:
        """Of judges that gave no readable answer mostly: the name, `30 of 32`, and why."""
        for judge in judges:
            name = judge.labeler.judge_name
            problems, judged = self.problems[name], self.judged[name]
            if 2 * problems.total() > judged:
                why = why_unread(problems, judge.labeler, "take another label.method, or another model")
                yield name, f"{problems.total()} of {judged}", why


class ScoreTally:
    """What is counted of the labeler's scores of single responses."""

    def __init__(self) -> None:
        self.rated = 0
        self.unrated = 0
        self.problems: Counter[str] = Counter()
        """Why responses have no score, and how often."""

    def through(self, judged: Iterable[PromptJudgements]) -> Iterator[Judgement]:
        """The judgements of each prompt, whose scores are counted."""
        for prompt in judged:
            unrated = sum(score is None for score in prompt.scores.values())
            self.unrated += unrated
            self.rated += len(prompt.scores) - unrated
            self.problems.update(prompt.problems)
            yield from prompt.judgements


def run(settings: Settings, context: StageContext) -> None:
    """Read `comparisons`, `revisions` and `labeler_accuracy`, write `judgements` as they come."""
    context.release()  # the SFT model, which is asked no more, may leave the labeler no room
    accuracies = context.read("labeler_accuracy", PrincipleAccuracy)
    comparisons = context.stream("comparisons", Comparison)
    judges = judges_of(settings, context, accuracies)
    constitution = labelled_by(settings, context.constitution, accuracies, context.judges)
    tally, scores, problem = Tally(), ScoreTally(), ""
    # No name stands for what asks the judges: where the writing is stopped, nothing holds it, and it ends at once.
    if settings.principles == "telling":
        violated = violated_in_drafts(context.stream("revisions", Revision))
        total = sum(1 for _ in groupby(column_of(comparisons, "prompt")))
        with context.task("label", total, "prompts") as task:
            count = context.write(
                "judgements",
                tally.through(
                    scores.through(
                        label_telling(comparisons, constitution, judges, violated, settings, ended=task.update)
                    )
                ),
            )
        problems, responses = scores.problems.total(), scores.rated + scores.unrated
        if 2 * problems > responses:
            otherwise = "type label.principles=one, which compares without scores"
            problem = why_unread(scores.problems, judges[0].labeler, otherwise)
            context.warn(
                f"the labeler gave no score to {problems} of {responses} responses, which were not compared: {problem}"
            )
    else:
        total = len(comparisons) * (len(constitution.principles) if settings.principles == "all" else 1)
        with context.task("label", total) as task:
            count = context.write(
                "judgements",
                tally.through(label_by(judges, comparisons, constitution, settings, context.seed, ended=task.update)),
            )
    for judge, how_many, why in tally.unreadable(judges):
        context.warn(f"the {called(judge)} gave no readable answer in {how_many} judgements: {why}")
        if judge == LABELER:
            problem = problem or why
    counts = tally.counts
    if len(judges) > 1:
        common = f"{counts['several']} comparisons on which several have a preference"
        context.say(
            f"the judges prefer different responses in {counts['split']} of {common}"
            if counts["several"]
            else "no comparison has preferences of several judges, so nobody knows how far they agree"
        )
    if counts["settled"]:
        settled = counted(counts["settled"], "comparison")
        context.say(f"on {settled} principles disagree of which one overrides the other, and it decides")
    elif constitution.overridden_by and settings.principles == "one":
        context.warn(
            "the constitution says which principles override which, but each comparison is judged by one principle, "
            "drawn for it (label.principles=one), so no two can disagree; type label.principles=all to judge by all, "
            "and let those decide that override"
        )
    context.summarise(
        LabelSummary(
            comparisons=len(comparisons),
            rated=scores.rated,
            unrated=scores.unrated,
            problem=problem,
            judgements=count,
            unreadable=counts["unreadable"],
            too_long=counts["too_long"],
            conflicts=counts["conflicts"],
            ties=counts["ties"],
            position_bias=counts["first"] / counts["one"] if counts["one"] else None,
            bounded=counts["bounded"],
            overridden=counts["overridden"],
            settled=counts["settled"],
        )
    )
