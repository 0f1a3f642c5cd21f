"""Effects and where they come from: paired differences, many of them at once, Shapley values, Pareto fronts.

Everything here is a pure function of numbers. A value is of one prompt under one random seed; runs are compared over
the prompts and seeds that both have.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from statistics import fmean, variance
from typing import Final, NamedTuple, TypeVar

from constitutional.base.stats import FEWEST, student_p, student_quantile


class Key(NamedTuple):
    """What a value is of."""

    seed: int
    prompt: str
    """The prompt's id."""
    cluster: str = ""
    """What the prompt has in common with others, whose values depend on its own; empty where it stands alone."""


Values = Mapping[Key, float]
P = TypeVar("P", bound=Hashable)

PRIOR_OF_DIFFERENCES: Final = ((1.0, 0.5), (-1.0, 0.5), (0.0, 1.0))
"""(value, weight) added to differences of shares: half an item to each of four cells (Agresti and Min, 2005)."""
PRIOR_OF_SHARES: Final = ((0.0, 1.92), (1.0, 1.92))
"""(value, weight) added to shares: z²/2 failures and successes (Agresti and Coull, 1998)."""
Prior = tuple[tuple[float, float], ...]
"""The values of a prior are the ends of what is possible."""


class Estimate(NamedTuple):
    """A mean with its error, before any correction for the number of estimates."""

    value: float
    """The plain mean."""
    middle: float
    """The mean with the prior: the middle of the interval."""
    by_prompts: float
    """Variance of the mean over other prompts; infinite from fewer than two, or from one cluster of prompts."""
    prompts: int
    seeds: int
    by_seeds: float = 0.0
    """Variance of the mean over other seeds; 0 from one seed, of which nothing is known."""
    freedom_of_prompts: float = math.inf
    """Degrees of freedom of the variance; infinite where it counts as known."""
    freedom_of_seeds: float = math.inf
    ends: tuple[float, float] = (-math.inf, math.inf)
    """What is possible."""

    @property
    def error(self) -> float:
        """Standard error."""
        return math.sqrt(self.by_prompts + self.by_seeds)

    @property
    def freedom(self) -> float:
        """Degrees of freedom of the error, by Welch and Satterthwaite."""
        spread = self.by_prompts**2 / self.freedom_of_prompts if self.by_prompts < math.inf else 0.0
        spread += self.by_seeds**2 / self.freedom_of_seeds
        return (self.by_prompts + self.by_seeds) ** 2 / spread if spread else math.inf

    @property
    def p(self) -> float:
        """Two-sided p-value of no effect, by Student's distribution."""
        if self.error == 0:
            return float(self.middle == 0)
        if math.isinf(self.error):
            return 1.0
        return student_p(self.middle / self.error, self.freedom)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The interval at a level of confidence, within what is possible."""
        least, most = self.ends
        half = student_quantile(level, self.freedom) * self.error
        return max(least, self.middle - half), min(most, self.middle + half)


def estimate(values: Values, prior: Prior = ()) -> Estimate:
    """The mean over prompts and seeds.

    Values of one prompt under several seeds are one cluster, and so are those of prompts that are one (Miller 2024,
    arXiv 2411.00640, section 2.2). Where seeds repeat, the variance of the mean is that of
    the prompts and that of the seeds together: s²/k, with s the deviation of the k seeds' means (two-way clusters:
    Cameron, Gelbach and Miller (2011), section 2.1, without the part that both have, which is in doubt with few seeds;
    so errors are rather too wide than too narrow). Its degrees of freedom are Welch and Satterthwaite's. From one seed
    nothing is known of what another seed would do, and the error is over prompts alone.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("There is no value; an estimate needs one")
    clusters, seeds = defaultdict[str, list[float]](list), defaultdict[int, list[float]](list)
    for key, value in values.items():
        clusters[key.cluster or key.prompt].append(value)
        seeds[key.seed].append(value)
    prompts = len({key.prompt for key in values})
    repeats = len(values) / prompts  # an item of the prior has as many values as a prompt
    total = len(values) + repeats * sum(weight for _, weight in prior)
    middle = (math.fsum(values.values()) + repeats * math.fsum(x * weight for x, weight in prior)) / total
    squares = math.fsum((math.fsum(group) - middle * len(group)) ** 2 for group in clusters.values())
    if not prior and len(clusters) > 1:
        squares *= len(clusters) / (len(clusters) - 1)
    squares += repeats**2 * math.fsum(weight * (x - middle) ** 2 for x, weight in prior)
    means = [fmean(group) for group in seeds.values()]
    several = len(means) > 1
    return Estimate(
        value=fmean(values.values()),
        middle=middle,
        by_prompts=squares / total**2 if len(clusters) > 1 else math.inf,
        prompts=prompts,
        seeds=len(seeds),
        by_seeds=variance(means) / len(means) if several else 0.0,
        # The intervals that the priors make are of normal quantiles.
        freedom_of_prompts=math.inf if prior else len(clusters) - 1.0,
        freedom_of_seeds=len(means) - 1.0 if several else math.inf,
        ends=(min(x for x, _ in prior), max(x for x, _ in prior)) if prior else (-math.inf, math.inf),
    )


def with_common_seeds(estimates: Sequence[Estimate]) -> list[Estimate]:
    """Estimates of one measure that disagree over seeds alike: the variance over seeds is the mean of theirs.

    From two or three seeds, the variance of one effect is hardly known. That of R effects against one and the same run
    has 4R/(R + 3) times the degrees of freedom: each two of them share half of their variance (Satterthwaite 1946).
    """
    several = [row for row in estimates if row.seeds > 1]
    if not several:
        return list(estimates)
    common = fmean(row.by_seeds * row.seeds for row in several)
    freedom = fmean(row.freedom_of_seeds for row in several) * 4 * len(several) / (len(several) + 3)
    return [
        row._replace(by_seeds=common / row.seeds, freedom_of_seeds=freedom) if row.seeds > 1 else row
        for row in estimates
    ]


def paired(before: Values, after: Values) -> dict[Key, float]:
    """After less before, over the prompts and seeds that both have."""
    return {key: after[key] - value for key, value in before.items() if key in after}


def benjamini_hochberg(ps: Sequence[float], q: float = 0.05) -> list[bool]:
    """Which of many tests to reject so that at most the share q of the rejected is expected to be luck.

    Benjamini and Hochberg (1995): with the p-values in rising order, all up to the last one that is at most q·rank/m.
    """
    order = sorted(range(len(ps)), key=lambda index: ps[index])
    last = max((rank for rank, index in enumerate(order, start=1) if ps[index] <= q * rank / len(ps)), default=0)
    rejected = set(order[:last])
    return [index in rejected for index in range(len(ps))]


class Effect(NamedTuple):
    """One of many effects, with an interval that allows for their number."""

    estimate: Estimate
    low: float
    high: float
    clear: bool
    """Whether it is rejected that there is none; of enough prompts, the interval holds 0 in all other cases."""

    @property
    def strength(self) -> float:
        """How many half-intervals it is from 0; for the order."""
        return abs(self.estimate.value) / max((self.high - self.low) / 2, 1e-9)


def corrected(estimates: Sequence[Estimate], q: float = 0.05) -> list[Effect]:
    """All effects with intervals that allow for their number; of fewer than `FEWEST` prompts none is clear, nor counts.

    Benjamini and Yekutieli (2005), "False discovery rate–adjusted multiple confidence intervals for selected
    parameters": at the level 1 − R·q/m, where R of m effects are clear; 1 − q/m where none is. At most the share q of
    the clear effects is expected to lie outside of the intervals.
    """
    enough = [at for at, row in enumerate(estimates) if row.prompts >= FEWEST]
    rejected = dict(zip(enough, benjamini_hochberg([estimates[at].p for at in enough], q), strict=True))
    level = 1 - max(sum(rejected.values()), 1) * q / max(len(enough), 1)
    return [
        Effect(row, *row.interval(level if at in rejected else 1 - q), rejected.get(at, False))
        for at, row in enumerate(estimates)
    ]


class Shapley(NamedTuple):
    """What each player adds, averaged over the orders in which the players may join."""

    values: dict[str, dict[Key, float]]
    """By player, for every prompt and seed that all games have."""
    exact: bool
    """All subsets are there; otherwise the mean over those that are there, size by size."""


def shapley(games: Mapping[frozenset[str], Values], players: Sequence[str]) -> Shapley | None:
    """Shapley values (1953), prompt by prompt; None where the subsets that are there do not suffice.

    φ_i is the mean over sizes k of the mean over subsets S of k players without i of v(S with i) − v(S). With all 2^n
    subsets that is exact. Otherwise the inner mean is over the subsets that are there, as in stratified sampling
    (Maleki et al. 2013, arXiv 1306.4265); a player needs one of every size.
    """
    pairs = {player: list(_strata(games, players, player)) for player in players}
    if not all(of_size for strata in pairs.values() for of_size in strata):
        return None
    used = {game for strata in pairs.values() for of_size in strata for game in of_size}
    used |= {game | {player} for player, strata in pairs.items() for of_size in strata for game in of_size}
    keys = set.intersection(*(set(games[game]) for game in used))
    values = {
        player: {
            key: fmean(fmean(games[game | {player}][key] - games[game][key] for game in of_size) for of_size in strata)
            for key in sorted(keys)
        }
        for player, strata in pairs.items()
    }
    exact = len(used) == 2 ** len(players)
    return Shapley(values, exact) if keys else None


def _strata(
    games: Mapping[frozenset[str], Values], players: Sequence[str], player: str
) -> Iterator[list[frozenset[str]]]:
    """For each size the subsets without a player that are there, and are there with the player too."""
    without = [game for game in games if player not in game and game <= set(players) and game | {player} in games]
    for size in range(len(players)):
        yield [game for game in without if len(game) == size]


def pareto(points: Mapping[P, tuple[float, float]]) -> set[P]:
    """The points that no other point beats: at least as high in both, and higher in one."""

    def beaten(name: P) -> bool:
        x, y = points[name]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())

    return {name for name in points if not beaten(name)}


def missing_subsets(games: Collection[frozenset[str]], players: Sequence[str]) -> dict[int, int]:
    """By size, how many subsets of the players are not there; sizes of which all are there are left out."""
    sizes = [sum(len(game) == size for game in games if game <= set(players)) for size in range(len(players) + 1)]
    missing = {size: math.comb(len(players), size) - there for size, there in enumerate(sizes)}
    return {size: count for size, count in missing.items() if count}
