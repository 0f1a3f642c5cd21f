"""Comparisons become judgements: the labeler says which response follows the constitution better.

Bai et al. 2022, section 4.1, and Lee et al. 2023, section 2.1; `judging/labelling.py` says how. What differs from the
papers: the labeler judges only by the principles that the stage `labeler_check` found it can be trusted with; and with
`principles: telling` only those comparisons that a principle tells apart (`judging/choosing.py`).
"""

from constitutional.base.records import Comparison, Revision
from constitutional.judging.accuracy import PrincipleAccuracy, position_bias, trusted_principles
from constitutional.judging.choosing import violated_in_drafts
from constitutional.judging.labeler import TOO_LONG, Labeler
from constitutional.judging.labelling import LabelSettings, label, label_telling
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import LabelSummary

Settings = LabelSettings


def run(settings: Settings, context: StageContext) -> None:
    """Read `comparisons`, `revisions` and `labeler_accuracy`, write `judgements`."""
    constitution = trusted_principles(context.constitution, context.read("labeler_accuracy", PrincipleAccuracy))
    comparisons = context.read("comparisons", Comparison)
    engine, scores = context.engine("labeler"), list[int | None]()
    if settings.principles == "telling":
        labeler = Labeler(engine, context.prompts, settings, context.seed)
        violated = violated_in_drafts(context.read("revisions", Revision))
        with context.task("label", len({comparison.prompt.id for comparison in comparisons}), "prompts") as task:
            judged = list(label_telling(comparisons, constitution, labeler, violated, settings, ended=task.update))
        judgements = [judgement for prompt in judged for judgement in prompt.judgements]
        scores = [score for prompt in judged for score in prompt.scores.values()]
        if 2 * scores.count(None) > len(scores):
            context.warn(
                f"the labeler gave no score to {scores.count(None)} of {len(scores)} responses, which were not "
                "compared; label.principles=one compares without scores"
            )
    else:
        total = len(comparisons) * (len(constitution.principles) if settings.principles == "all" else 1)
        asked = (comparisons, constitution, engine, context.prompts, settings, context.seed)
        with context.task("label", total) as task:
            judgements = list(label(*asked, ended=task.update))
    context.write("judgements", judgements)
    context.summarise(
        LabelSummary(
            comparisons=len(comparisons),
            unrated=scores.count(None),
            judgements=len(judgements),
            unreadable=sum(judgement.p_a is None for judgement in judgements),
            too_long=sum(TOO_LONG in (judgement.problem or "") for judgement in judgements),
            conflicts=sum(judgement.conflict for judgement in judgements),
            ties=sum(judgement.p_a == 0.5 for judgement in judgements),
            position_bias=position_bias(judgements),
        )
    )
