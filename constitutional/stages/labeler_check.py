"""What the models understand, before anything is trained: the meaning of every principle, and the labeler on trial.

A pipeline optimises what its critic understood, so that is said first (`judging/understanding.py`). Then the labeler
is tried on the constitution's own examples, and on comparisons with a plain answer (`judging/accuracy.py`), and so is
every other judge of a panel: a labeler of no use ends a run before hours of training.
"""

from constitutional.base.records import LABELER
from constitutional.engines.settings import SANDBOX
from constitutional.judging.accuracy import (
    check_canaries,
    labelled_by,
    measure_labeler,
    rating_warning,
    trusted_principles,
    untrusted,
    warnings_of,
)
from constitutional.judging.labeler import unfit
from constitutional.judging.labelling import LabelSettings
from constitutional.judging.understanding import lines, meanings_of, sandbox_meanings
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import LabelerCheckSummary

Settings = LabelSettings


def run(settings: Settings, context: StageContext) -> None:
    """Write `meanings`; measure every judge, decide by which principles it is trusted, and write `labeler_accuracy`.

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
    compared = context.constitution.used_for("comparison")
    for line in lines(meanings):
        context.say(line)
    for warning in dict.fromkeys(unfit(settings.method, context.settings(role)) for role in context.judges.values()):
        if warning:
            context.warn(warning)
    engines = {name: context.engine(role) for name, role in context.judges.items()}
    accuracies = [
        row
        for name, engine in engines.items()
        for row in measure_labeler(compared, engine, context.prompts, settings, name)
    ]
    context.write("labeler_accuracy", accuracies)
    warnings = warnings_of(accuracies, {row.id for row in compared.principles if row.rule})
    for warning in warnings:
        context.warn(warning)
    rated = trusted_principles(compared, accuracies)  # evaluation asks the labeler alone
    if settings.principles == "telling" and (
        unrated := rating_warning(rated, engines[LABELER], context.prompts, settings)
    ):
        context.warn(unrated)
        warnings.append(unrated)
    canaries, failed = 0, 0
    principles = [principle.id for principle in compared.principles]
    for name, engine in engines.items():
        left_out = untrusted(accuracies, name)
        if len(left_out) == len(principles):
            context.warn(f"the judge '{name}' is trusted with no principle, and judges nothing")
            continue
        trusted = compared.select(None, sorted(left_out), {}) if left_out else compared
        asked, wrong = check_canaries(trusted, engine, context.prompts, settings, name)
        canaries, failed = canaries + asked, failed + wrong
    labelled = [principle.id for principle in labelled_by(settings, compared, accuracies, engines).principles]
    context.summarise(
        LabelerCheckSummary(
            left_out_principles=tuple(principle for principle in principles if principle not in labelled),
            warnings=tuple(warnings),
            canaries=canaries,
            canaries_failed=failed,
        )
    )
