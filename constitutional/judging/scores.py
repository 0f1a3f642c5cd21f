"""Numbers about the three models: each with a 95% interval, and with its change from the models before.

A model's own interval says how it would do on other prompts. Two such intervals may overlap where it is clear which of
two models does better on the same prompts, so each number that is made prompt by prompt also has its changes.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from pydantic import Field

from constitutional.base.records import Record
from constitutional.base.stats import Interval, bootstrap_mean, paired_interval, wilson

LEFT_OUT: Final = "left_out_"
"""What stands before `violation_rate/ID` where the run leaves the principle out and does not want it to be followed."""
CONTESTS: Final = (("sft_model", "base"), ("policy", "base"), ("policy", "sft_model"))
"""Which model is measured against which: for changes, win rates and divergence."""


class Change(Record):
    """How far a model's number is from an earlier model's, over the prompts on which both were measured."""

    value: float
    """The mean over prompts of the later model's value less the earlier one's."""
    low: float
    """Lower end of the 95% interval."""
    high: float
    n: int
    """How many prompts."""


class Score(Record):
    """One number about one model."""

    model: str
    """`base`, `sft_model` or `policy`."""
    measure: str
    """What was measured, and after a `/` of what or against what: `trait_rate/flattery`, `win_rate/base`."""
    value: float
    low: float
    """Lower end of the 95% interval."""
    high: float
    n: int
    """How many observations it rests on; 0 where there were none, and then the value says nothing."""
    unit: str
    """`share` for numbers from 0 to 1; otherwise what is counted, such as `words`."""
    changes: dict[str, Change] = Field(default_factory=dict)
    """By the model before; none where a number is not made prompt by prompt."""
    by_prompt: dict[str, float] = Field(default_factory=dict, exclude=True, repr=False)
    """By prompt's id, what the number is the mean of; it is written as a `Measurement`, beside the score."""
    clusters: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)
    """As the measurement's."""


class Measurement(Record):
    """One number about one model, prompt by prompt, by which two runs are compared over the same prompts."""

    model: str
    """`base`, `sft_model` or `policy`."""
    measure: str
    """As the score's."""
    by_prompt: dict[str, float]
    """By prompt's id; 0 or 1 for a share."""
    clusters: dict[str, str] = Field(default_factory=dict, exclude_if=lambda clusters: not clusters)
    """By prompt's id, where several depend on each other (a question asked in two ways, say): which they are together.

    None where prompts stand alone.
    """


def measurements(scores: Iterable[Score]) -> list[Measurement]:
    """What the scores that are made prompt by prompt are the means of."""
    return [
        Measurement(model=score.model, measure=score.measure, by_prompt=score.by_prompt, clusters=score.clusters)
        for score in scores
        if score.by_prompt
    ]


def score(model: str, measure: str, value: float, interval: Interval, n: int, unit: str) -> Score:
    """A number that has no changes."""
    return Score(model=model, measure=measure, value=value, low=interval.low, high=interval.high, n=n, unit=unit)


def plain(measure: str) -> str:
    """The name of a measure where it does not matter that the run leaves its principle out."""
    return measure.removeprefix(LEFT_OUT)


def rates(measure: str, shown: Mapping[str, Sequence[bool | None]], prompts: Sequence[str] = ()) -> Iterator[Score]:
    """How often each model's replies show something, by model and prompt; None where a reply is not counted.

    `prompts` are the ids; without them the scores do not hold what they are the means of.
    """
    for model, replies in shown.items():
        counted = [shows for shows in replies if shows is not None]
        n, rate = len(counted), sum(counted) / len(counted) if counted else 0.0
        changes: dict[str, Change] = {}
        for earlier in _before(model, shown):
            pairs = zip(replies, shown[earlier], strict=True)
            differences = [int(now) - int(then) for now, then in pairs if now is not None and then is not None]
            interval = paired_interval(differences.count(1), differences.count(-1), len(differences))
            changes |= _change(earlier, differences, interval)
        share = score(model, measure, rate, wilson(sum(counted), n), n, "share")
        by_prompt = {name: float(shows) for name, shows in zip(prompts, replies, strict=False) if shows is not None}
        yield share.model_copy(update={"changes": changes, "by_prompt": by_prompt})


def means(
    measure: str, values: Mapping[str, Sequence[float]], unit: str, seed: int, prompts: Sequence[str] = ()
) -> Iterator[Score]:
    """Each model's mean over the prompts, by model and prompt; `prompts` are the ids, as in `rates`."""
    for model, numbers in values.items():
        average = mean(model, measure, numbers, range(len(numbers)), unit, seed)
        changes: dict[str, Change] = {}
        for earlier in _before(model, values) if average.n else ():
            differences = [now - then for now, then in zip(numbers, values[earlier], strict=True)]
            changes |= _change(earlier, differences, bootstrap_mean(differences, seed=seed))
        by_model = dict(zip(prompts, numbers, strict=False))
        yield average.model_copy(update={"changes": changes, "by_prompt": by_model})


def mean(model: str, measure: str, values: Sequence[float], clusters: Sequence[int], unit: str, seed: int) -> Score:
    """The mean with its interval, without changes; of fewer than two clusters nothing can be said, and n is 0."""
    if len(set(clusters)) < 2:
        return score(model, measure, 0.0, Interval(0.0, 0.0), 0, unit)
    value = math.fsum(values) / len(values)
    return score(model, measure, value, bootstrap_mean(values, clusters, seed=seed), len(values), unit)


def _before(model: str, measured: Iterable[str]) -> list[str]:
    return [earlier for later, earlier in CONTESTS if later == model and earlier in measured]


def _change(earlier: str, by_prompt: Sequence[float], interval: Interval) -> dict[str, Change]:
    """By the earlier model's name; nothing where there is no prompt that both were measured on."""
    if not by_prompt:
        return {}
    value = math.fsum(by_prompt) / len(by_prompt)
    return {earlier: Change(value=value, low=interval.low, high=interval.high, n=len(by_prompt))}
