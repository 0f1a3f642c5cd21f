"""What the models understand, before anything is trained: the meaning of every principle, and the labeler on trial.

A pipeline optimises what its critic understood, so that is said first (`judging/understanding.py`). Then the labeler
is tried on the constitution's own examples, and on comparisons with a plain answer (`judging/accuracy.py`): a labeler
of no use ends a run before hours of training.
"""

from constitutional.engines.settings import SANDBOX
from constitutional.judging.accuracy import check_canaries, measure_labeler, trusted_principles, warnings_of
from constitutional.judging.labelling import LabelSettings
from constitutional.judging.understanding import lines, meanings_of, sandbox_meanings
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import LabelerCheckSummary

Settings = LabelSettings


def run(settings: Settings, context: StageContext) -> None:
    """Write `meanings`; measure the labeler, decide by which principles it is trusted, and write `labeler_accuracy`.

    The examples are judged in two ways; the journal answers what is asked twice.

    Raises:
        RunError: the labeler is trusted with no principle, or fails at too many canaries.
    """
    critic = context.engine("critic")
    if getattr(context.settings("critic"), "path", None) == SANDBOX:
        meanings = sandbox_meanings(context.constitution, critic)
    else:
        meanings = meanings_of(context.constitution, critic, context.prompts)
    context.write("meanings", meanings)
    for line in lines(meanings):
        context.say(line)
    engine = context.engine("labeler")
    accuracies = measure_labeler(context.constitution, engine, context.prompts, settings)
    context.write("labeler_accuracy", accuracies)
    warnings = warnings_of(accuracies)
    for warning in warnings:
        context.warn(warning)
    trusted = trusted_principles(context.constitution, accuracies)
    canaries, failed = check_canaries(trusted, engine, context.prompts, settings)
    context.summarise(
        LabelerCheckSummary(
            left_out_principles=tuple(row.principle for row in accuracies if not row.trusted),
            warnings=tuple(warnings),
            canaries=canaries,
            canaries_failed=failed,
        )
    )
