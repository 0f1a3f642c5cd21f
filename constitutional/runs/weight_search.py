"""A search by Optuna: each job of a sweep is chosen by what the jobs before it came to.

The search begins anew with each start, from the run's seed. It therefore asks for the same jobs again, whose runs are
done, until it comes to where it was stopped.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import zip_longest
from typing import TYPE_CHECKING

from constitutional.base.errors import UsageError
from constitutional.runs.compose import Job, Space, compose, freeze, search_space, sweep_settings
from constitutional.runs.runner import ready

if TYPE_CHECKING:
    from optuna.trial import Trial


class Search:
    """The jobs of a search, a batch at a time.

    Args:
        overrides: what was typed: settings that all jobs share, and `KEY=interval(LOW,HIGH)` or `KEY=choice(A,B)`.

    Raises:
        UsageError: Optuna is not installed, or nothing is to be searched.
        ConstitutionalError: a setting is wrong.
    """

    def __init__(self, overrides: Sequence[str]) -> None:
        self._settings = sweep_settings(overrides)
        self.trials = self._settings.trials or 0
        """How many jobs there will be."""
        self._fixed, self._spaces = search_space(overrides)
        if not self._spaces:
            raise UsageError(
                "sweep=optuna has nothing to search; type KEY=interval(LOW,HIGH), such as "
                '"constitution.weights.brief=interval(0.25,4)"'
            )
        if find_spec("optuna") is None:
            raise UsageError("sweep=optuna needs the package optuna, which is not installed; type pip install optuna")
        import optuna

        for ends in zip_longest(
            *map(_ends, self._spaces)
        ):  # a value that no run can have is found before the first job
            values = [end or _ends(space)[0] for space, end in zip(self._spaces, ends, strict=True)]
            ready(freeze(compose([*self._fixed, *map(_override, self._spaces, values)])))
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=compose(self._fixed).seed)
        self._study = optuna.create_study(sampler=sampler)
        self._asked: list[Trial] = []

    def ask(self) -> list[Job]:
        """The next jobs; none where there have been as many as were asked for."""
        left = self.trials - len(self._study.trials)
        self._asked = [self._study.ask() for _ in range(min(left, self._settings.batch))]
        jobs = []
        for trial in self._asked:
            words = [_override(space, _suggested(trial, space)) for space in self._spaces]
            jobs.append(Job((*self._fixed, *words), tuple(words)))
        return jobs

    def tell(self, outcomes: Sequence[tuple[float | None, float]]) -> None:
        """What the jobs came to: for each what is minimised, None where the job failed, and how far above the bound."""
        from optuna.trial import TrialState

        for trial, (value, excess) in zip(self._asked, outcomes, strict=True):
            trial.set_constraint("over_refusal", excess)
            if value is None:
                self._study.tell(trial, state=TrialState.FAIL)
            else:
                self._study.tell(trial, value)


def _override(space: Space, value: str) -> str:
    return f"{space.key}={value}"


def _ends(space: Space) -> Sequence[str]:
    """All choices, or the ends of the interval."""
    return space.choices or (f"{space.low:.4g}", f"{space.high:.4g}")


def _suggested(trial: "Trial", space: Space) -> str:
    if space.choices:
        return str(trial.suggest_categorical(space.key, space.choices))
    return f"{trial.suggest_float(space.key, space.low, space.high, log=space.log):.4g}"
