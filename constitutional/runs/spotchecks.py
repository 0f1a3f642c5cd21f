"""The spot-checks of a run, whether its stage is done or waits for people."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from constitutional.base.records import Comparison, Judgement, SpotCheck
from constitutional.judging.spotchecks import planned, reward_probabilities
from constitutional.runs.compose import load
from constitutional.runs.folder import RunStore
from constitutional.runs.settings import RunConfig
from constitutional.runs.sweeps import typed


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


def command_with(folder: Path, **settings: object) -> str:
    """The command that goes on with a run by its own settings and these, with `__` in the place of a dot.

    Args:
        folder: the run's, as the user types it.
        settings: those that change, such as `spotcheck__verdicts`; `name` makes another run of it, beside the first.
    """
    words = {"name": load(folder).name, **{key.replace("__", "."): value for key, value in settings.items()}}
    settings_typed = (f"{key}={typed(str(value))}" for key, value in words.items())
    return shlex.join(["constitutional", "run", f"from={folder}", *settings_typed])


def command_with_votes(store: RunStore, votes: Path, *, budget: float = 0.0, planned: bool = True) -> str:
    """The command that goes on with a run and people's votes on its comparisons.

    Args:
        store: the run, with its folder as the user types it.
        votes: the file of verdicts.
        budget: what `constitutional review` was told, where the run asks nobody by its settings; 0 where that is not
            known here.
        planned: whether the votes are on spot-checks, of which the audit set is never trained on.
    """
    config = load(store.folder)
    if config.spotcheck.votes:
        simulated = {} if config.spotcheck.simulate is None else {"spotcheck__simulate": "null"}
        return command_with(store.folder, **simulated, spotcheck__verdicts=votes)
    name = f"{config.name}-people"
    if not planned:
        return command_with(store.folder, name=name, mix__verdicts=votes)
    own = "reward" in config.spotcheck.targets and config.spotcheck.reward_model is None
    model = {"spotcheck__reward_model": store.artifact("reward_model").resolve()} if own else {}
    amount = f"{budget:g}" if budget else "BUDGET"
    return command_with(store.folder, name=name, spotcheck__budget=amount, **model, spotcheck__verdicts=votes)
