"""The spot-checks of a run, whether its stage is done or waits for people."""

from collections.abc import Sequence

from constitutional.base.records import Comparison, Judgement, SpotCheck
from constitutional.judging.spotchecks import planned, reward_probabilities
from constitutional.runs.folder import RunStore
from constitutional.runs.settings import RunConfig


def plan_of(
    store: RunStore, config: RunConfig, comparisons: Sequence[Comparison], budget: float = 0.0
) -> list[SpotCheck] | None:
    """What people look at; None where nobody is to be asked.

    Args:
        store: the run.
        config: its settings, of which `spotcheck` says how many votes are wanted, and on what.
        comparisons: the run's.
        budget: of a run that asks nobody by its settings, in the unit of these.

    Raises:
        RunError: the labeler has not judged the comparisons yet, or the reward model is not trained yet.
    """
    if "spotchecks" in store.artifacts():
        return store.read("spotchecks", SpotCheck)
    settings, rewards = config.spotcheck, None
    if budget and not settings.votes:
        settings = settings.model_copy(update={"budget": budget})
    if not settings.votes:
        return None
    if "reward" in settings.targets:
        rewards = reward_probabilities(comparisons, settings.reward_model or store.artifact("reward_model"))
    return planned(comparisons, store.read("judgements", Judgement), settings, config.seed, rewards)
