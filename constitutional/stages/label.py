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
    engine = context.engine("labeler")
    if settings.principles == "telling":
        labeler = Labeler(engine, context.prompts, settings, context.seed)
        violated = violated_in_drafts(context.read("revisions", Revision))
        by_prompt = label_telling(comparisons, constitution, labeler, violated, settings)
        prompts = len({comparison.prompt.id for comparison in comparisons})
        judgements = [row for rows in context.progress(by_prompt, prompts, "label") for row in rows]
    else:
        total = len(comparisons) * (len(constitution.principles) if settings.principles == "all" else 1)
        labelled = label(comparisons, constitution, engine, context.prompts, settings, context.seed)
        judgements = list(context.progress(labelled, total, "label"))
    context.write("judgements", judgements)
    context.summarise(
        LabelSummary(
            comparisons=len(comparisons),
            judgements=len(judgements),
            unreadable=sum(judgement.p_a is None for judgement in judgements),
            too_long=sum(TOO_LONG in (judgement.problem or "") for judgement in judgements),
            conflicts=sum(judgement.conflict for judgement in judgements),
            ties=sum(judgement.p_a == 0.5 for judgement in judgements),
            position_bias=position_bias(judgements),
        )
    )
