"""The spot-checks of a run, whether its stage is done or waits for people."""

from collections.abc import Sequence

from constitutional.base.records import Comparison, Judgement, SpotCheck
from constitutional.judging.spotchecks import planned
from constitutional.runs.folder import RunStore
from constitutional.runs.settings import RunConfig


def plan_of(store: RunStore, config: RunConfig, comparisons: Sequence[Comparison]) -> list[SpotCheck] | None:
    """What people look at; None where the run's settings ask nobody.

    Raises:
        RunError: the labeler has not judged the comparisons yet.
    """
    if "spotchecks" in store.artifacts():
        return store.read("spotchecks", SpotCheck)
    if not config.spotcheck.votes:
        return None
    return planned(comparisons, store.read("judgements", Judgement), config.spotcheck, config.seed)
