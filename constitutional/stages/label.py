"""Comparisons become judgements: the labeler says which response follows the constitution better.

Bai et al. 2022, section 4.1, and Lee et al. 2023, section 2.1; `judging/labelling.py` says how. What differs from the
papers: the labeler judges only by the principles that the stage `labeler_check` found it can be trusted with.
"""

from constitutional.base.records import Comparison
from constitutional.judging.accuracy import PrincipleAccuracy, position_bias, trusted_principles
from constitutional.judging.labeler import TOO_LONG
from constitutional.judging.labelling import LabelSettings, label
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import LabelSummary

Settings = LabelSettings


def run(settings: Settings, context: StageContext) -> None:
    """Read `comparisons` and `labeler_accuracy`, write `judgements`."""
    constitution = trusted_principles(context.constitution, context.read("labeler_accuracy", PrincipleAccuracy))
    comparisons = context.read("comparisons", Comparison)
    total = len(comparisons) * (1 if settings.principles == "one" else len(constitution.principles))
    labelled = label(comparisons, constitution, context.engine("labeler"), context.prompts, settings, context.seed)
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
