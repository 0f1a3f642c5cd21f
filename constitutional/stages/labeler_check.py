"""The labeler on trial, before anything is trained: on the constitution's own examples, and on plain comparisons.

It is the first stage that asks a model anything, so that a labeler of no use ends a run before hours of training and
not after. `judging/accuracy.py` says what is measured.
"""

from constitutional.judging.accuracy import check_canaries, measure_labeler, trusted_principles, warnings_of
from constitutional.judging.labelling import LabelSettings
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import LabelerCheckSummary

Settings = LabelSettings


def run(settings: Settings, context: StageContext) -> None:
    """Measure the labeler, decide by which principles it is trusted, and write `labeler_accuracy`.

    The examples are judged in two ways; the journal answers what is asked twice.

    Raises:
        RunError: the labeler is trusted with no principle, or fails at too many canaries.
    """
    engine = context.engine("labeler")
    accuracies = measure_labeler(context.constitution, engine, context.prompts, settings)
    context.write("labeler_accuracy", accuracies)
    warnings = warnings_of(accuracies)
    for warning in warnings:
        context.warn(warning)
    trusted = trusted_principles(context.constitution, accuracies)
    canaries = check_canaries(trusted, engine, context.prompts, settings)
    context.summarise(
        LabelerCheckSummary(
            left_out_principles=tuple(row.principle for row in accuracies if not row.trusted),
            warnings=tuple(warnings),
            canaries=canaries.n,
            canaries_failed=canaries.failed,
        )
    )
