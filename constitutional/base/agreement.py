"""Agreement between raters, and one label from the votes of several raters."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping
from itertools import combinations
from typing import Any, Final, Literal, NamedTuple, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from constitutional.base.stats import FEWEST, RESAMPLES, Interval, clustered_share

Votes = Mapping[Any, Mapping[Any, Hashable]]
"""The votes on each item, by rater: item → {rater: value}. An item may have any number of votes, also none. A missing
vote is left out; None and NaN are refused. Ordinal and interval statistics need numbers on a scale of few values."""
Clusters = Mapping[Any, Hashable]
"""The cluster of each item, such as its prompt. Items of one cluster are not independent."""
Reason = Literal["too few", "few shared", "unanimous", "few clusters", "no disagreement", "undefined resamples"]
Weights = Literal["nominal", "linear", "quadratic"]
Metric = Literal["nominal", "ordinal", "interval"]
Array = NDArray[np.float64]

_TAIL: Final = RESAMPLES // 40
"""Resamples that lie beyond each end of a 95% interval."""


class RaterAgreement(NamedTuple):
    """How far raters agree, with a 95% interval.

    `reason` says why the value is None: "too few", no item has two votes; "few shared", no two raters have `FEWEST`
    items in common; "unanimous", all votes on the items with two or more are equal, so there is no variation by which
    chance could be judged.

    Or it says why there is a value but no interval: "few clusters", fewer than `FEWEST`; "no disagreement", all
    resamples would agree as well, whatever the true rate; "undefined resamples", more than 2.5% of them are undefined.
    """

    value: float | None
    interval: Interval | None
    reason: Reason | None
    n: int
    """Items with two or more votes. For κ: items on which both raters of a pair voted."""
    undefined: float
    """The share of the resamples in which the statistic is undefined, in [0, 1]."""


_REASONS: Final[dict[Reason, str]] = {
    "too few": "undefined: no item has two votes",
    "few shared": f"undefined: no two raters share {FEWEST} items",
    "unanimous": "undefined: unanimous",
    "few clusters": f"no interval: fewer than {FEWEST} prompts",
    "no disagreement": "no interval: no disagreement",
    "undefined resamples": "no interval: too few items",
}


def in_words(agreement: RaterAgreement) -> str:
    """`0.41 (0.20 to 0.60), n = 40`, or why there is no value or no interval."""
    reason = _REASONS[agreement.reason] if agreement.reason else ""
    if agreement.value is None:
        return reason
    ends = "{:.2f} to {:.2f}".format(*agreement.interval) if agreement.interval else reason
    return f"{agreement.value:.2f} ({ends}), n = {agreement.n}"


def pairwise_agreement(votes: Votes, *, clusters: Clusters | None = None) -> RaterAgreement:
    """The share of pairs of raters that agree on an item, averaged over the items with two or more votes, in [0, 1].

    With n_c votes for category c among the m votes on an item, the item's share is Σ n_c(n_c − 1) / m(m − 1): Fleiss
    (1971), "Measuring nominal scale agreement among many raters", equation 2. Nothing is taken off for chance, so
    unanimous votes are a defined 1. The interval is `clustered_share`'s, which has a width where all agree; a bootstrap
    would have none.
    """
    table = _tabulate(votes, clusters).pairable()
    if not len(table.counts):
        return _undefined("too few", 0)
    shares = table.pair_shares()
    return RaterAgreement(
        float(shares.mean()), clustered_share(shares.tolist(), table.clusters.tolist()), None, len(shares), 0.0
    )


def cohen_kappa(
    votes: Votes,
    first: Hashable,
    second: Hashable,
    weights: Weights = "nominal",
    *,
    clusters: Clusters | None = None,
    seed: int,
) -> RaterAgreement:
    """Cohen's κ of two raters on the items on which both voted, at most 1; 0 is the agreement of chance.

    κ = 1 − Σ d(a, b)·p(a, b) / Σ d(a, b)·p₁(a)·p₂(b), where p is the joint distribution of the two votes and p₁ and p₂
    are its margins: Cohen (1960), "A coefficient of agreement for nominal scales", and (1968), "Weighted kappa". The
    disagreement d is 1 for any two different values, or |a − b| (linear), or (a − b)² (quadratic) for numbers. Values
    are taken as they are: 1, 2 and 4 are not three equal steps.
    """
    if first == second:
        raise ValueError(f"Both raters are {first!r}; two different ones are needed")
    both = {
        item: {rater: by_rater[rater] for rater in (first, second)}
        for item, by_rater in votes.items()
        if first in by_rater and second in by_rater
    }
    table = _tabulate(both, clusters, numbers=weights != "nominal")
    if (reason := table.undefined()) is not None:
        return _undefined(reason, len(both))
    q = len(table.categories)
    disagreement = _distances(table.categories, {"nominal": 0, "linear": 1, "quadratic": 2}[weights])
    place = {category: i for i, category in enumerate(table.categories)}
    cells = np.array([place[by_rater[first]] * q + place[by_rater[second]] for by_rater in both.values()])

    def kappa(multiplicity: Array) -> float | None:
        joint = np.bincount(cells, multiplicity, q * q).reshape(1, q, q)
        return _mean_kappa(joint.astype(np.float64), disagreement)

    return _bootstrap(kappa, table, seed)


class LightKappa(NamedTuple):
    """Light's κ, and of how many pairs of raters it is the mean."""

    kappa: RaterAgreement
    pairs: int


def light_kappa(votes: Votes, *, clusters: Clusters | None = None, seed: int) -> LightKappa:
    """The mean of Cohen's κ over the pairs of raters, at most 1; 0 is the agreement of chance.

    Light (1971), "Measures of response agreement for qualitative data: some generalizations and alternatives". Every
    pair counts the same, so only those count that have `FEWEST` items in common, and vary on them. A resample in which
    a pair does not vary, or has no item, is undefined.
    """
    shared: dict[tuple[Any, Any], list[Any]] = defaultdict(list)
    raters = dict.fromkeys(rater for by_rater in votes.values() for rater in by_rater)
    place = {rater: number for number, rater in enumerate(raters)}
    for item, by_rater in votes.items():
        for pair in combinations(sorted(by_rater, key=place.__getitem__), 2):
            shared[pair].append(item)
    enough = {pair: items for pair, items in shared.items() if len(items) >= FEWEST}
    varied = {
        pair: items
        for pair, items in enough.items()
        if len({votes[item][rater] for item in items for rater in pair}) > 1
    }
    if not varied:
        items = {item for pair in enough.values() for item in pair}
        reason: Reason = "unanimous" if enough else "few shared" if shared else "too few"
        return LightKappa(_undefined(reason, len(items)), 0)
    used = list(dict.fromkeys(item for items in varied.values() for item in items))
    table = _tabulate({item: votes[item] for item in used}, clusters)
    q, where = len(table.categories), {item: number for number, item in enumerate(used)}
    number_of = {category: number for number, category in enumerate(table.categories)}
    triples = [
        (pair * q * q + number_of[votes[item][first]] * q + number_of[votes[item][second]], where[item])
        for pair, ((first, second), items) in enumerate(varied.items())
        for item in items
    ]
    cells, rows = np.array(triples).T
    disagreement = _distances(table.categories, 0)

    def kappa(multiplicity: Array) -> float | None:
        joint = np.bincount(cells, multiplicity[rows], len(varied) * q * q).reshape(len(varied), q, q)
        return _mean_kappa(joint.astype(np.float64), disagreement)

    return LightKappa(_bootstrap(kappa, table, seed), len(varied))


def _mean_kappa(joint: Array, disagreement: Array) -> float | None:
    """The mean κ of pairs of raters from how often each pair chose any two values; None where that of one is undefined.

    Args:
        joint: pairs x values of the one x values of the other.
        disagreement: of any two values.
    """
    chance = np.einsum("ij,ki,kj->k", disagreement, joint.sum(2), joint.sum(1))
    if not chance.all():
        return None
    return float((1 - joint.sum((1, 2)) * (disagreement * joint).sum((1, 2)) / chance).mean())


def krippendorff_alpha(
    votes: Votes,
    metric: Metric = "nominal",
    *,
    clusters: Clusters | None = None,
    seed: int,
) -> RaterAgreement:
    """Krippendorff's α of any number of raters with missing votes, at most 1; 0 is the agreement of chance.

    α = 1 − D_o / D_e = 1 − (n − 1)·Σ o(c, k)·δ²(c, k) / Σ n(c)·n(k)·δ²(c, k): Krippendorff (2011), "Computing
    Krippendorff's Alpha-Reliability", sections C and D. An item with m ≥ 2 votes adds 1/(m − 1) to the coincidence
    o(c, k) for each ordered pair of its votes; n(c) are the margins of o, and n is their sum. δ² is 1 for any two
    different values (nominal), (c − k)² (interval), or the square of the votes from the middle of c to the middle of k
    (ordinal).
    """
    table = _tabulate(votes, clusters, numbers=metric != "nominal").pairable()
    if (reason := table.undefined()) is not None:
        return _undefined(reason, len(table.counts))
    counts = table.counts
    weights = 1 / (counts.sum(1) - 1)
    fixed = None if metric == "ordinal" else _distances(table.categories, {"nominal": 0, "interval": 2}[metric])

    def alpha(multiplicity: Array) -> float | None:
        weighted = counts * (multiplicity * weights)[:, None]
        coincidences = counts.T @ weighted - np.diag(weighted.sum(0))
        margins = coincidences.sum(0)
        middles = np.cumsum(margins) - margins / 2
        distance = (middles[:, None] - middles) ** 2 if fixed is None else fixed
        expected = margins @ distance @ margins
        return float(1 - (margins.sum() - 1) * (coincidences * distance).sum() / expected) if expected else None

    return _bootstrap(alpha, table, seed)


def gwet_ac1(
    votes: Votes, *, categories: int | None = None, clusters: Clusters | None = None, seed: int
) -> RaterAgreement:
    """Gwet's AC1 of any number of raters with missing votes, at most 1; 0 is the agreement of chance.

    AC1 = (p_a − p_e) / (1 − p_e): Gwet (2008), "Computing inter-rater reliability and its variance in the presence of
    high agreement"; with missing votes as in his "Handbook of Inter-Rater Reliability", fourth edition (2014).
    p_a is the pairwise agreement; p_e = Σ π(1 − π) / (q − 1), where π is a category's share of an item's votes,
    averaged over all items with a vote, and q is the number of categories. Unlike κ and α it stays high where raters
    agree and one category is rare. Resamples in which all votes are equal count as 1.

    Args:
        votes: The votes.
        categories: q, the number of categories that a rater could choose from, 2 or more. AC1 rises with it. None: the
            number of those that were chosen.
        clusters: The cluster of each item; without it each item is its own.
        seed: The seed of the bootstrap.
    """
    table = _tabulate(votes, clusters)
    pairable = table.pairable()
    q = len(table.categories) if categories is None else categories
    if categories is not None and q < max(2, len(table.categories)):
        raise ValueError(f"{q} categories, but {len(table.categories)} were chosen; there are at least 2, and those")
    if (reason := pairable.undefined()) is not None:
        return _undefined(reason, len(pairable.counts))
    sizes = table.counts.sum(1)
    in_pairs = sizes >= 2
    agreeing = np.zeros(len(sizes))
    agreeing[in_pairs] = pairable.pair_shares()
    shares = table.counts / sizes[:, None]

    def ac1(multiplicity: Array) -> float | None:
        if not (items := multiplicity @ in_pairs):
            return None
        agreed = multiplicity @ agreeing / items
        prevalence = multiplicity @ shares / multiplicity.sum()
        chance = (prevalence * (1 - prevalence)).sum() / (q - 1)
        return float((agreed - chance) / (1 - chance))

    return _bootstrap(ac1, table, seed)._replace(n=len(pairable.counts))


class _Table(NamedTuple):
    """The votes on items that have any, counted by category."""

    counts: Array
    """Items x categories."""
    categories: list[Any]
    """Numbers in order, where numbers are asked for; otherwise in the order in which they first occur."""
    clusters: NDArray[np.intp]
    """The number of each item's cluster."""

    def pairable(self) -> "_Table":
        """The items with two or more votes."""
        pairable = self.counts.sum(1) >= 2
        return self._replace(
            counts=self.counts[pairable], clusters=np.unique(self.clusters[pairable], return_inverse=True)[1]
        )

    def pair_shares(self) -> Array:
        """The share of the pairs of votes on each item that agree; each item needs two votes."""
        sizes = self.counts.sum(1)
        shares: Array = (self.counts * (self.counts - 1)).sum(1) / (sizes * (sizes - 1))
        return shares

    def undefined(self) -> Literal["too few", "unanimous"] | None:
        """Why no statistic that corrects for chance is defined on these items."""
        if not len(self.counts):
            return "too few"
        return "unanimous" if np.count_nonzero(self.counts.sum(0)) == 1 else None


def _tabulate(votes: Votes, clusters: Clusters | None, *, numbers: bool = False) -> _Table:
    for item, by_rater in votes.items():
        for rater, value in by_rater.items():
            _check(item, rater, value, numbers=numbers)
        if by_rater and clusters is not None and item not in clusters:
            raise ValueError(f"Item {item!r} has no cluster; each item with votes needs one")
    voted = {item: Counter(by_rater.values()) for item, by_rater in votes.items() if by_rater}
    chosen: list[Any] = list(dict.fromkeys(value for counter in voted.values() for value in counter))
    if numbers:
        chosen.sort()
    cluster_numbers: dict[Hashable, int] = {}
    members = [
        cluster_numbers.setdefault(item if clusters is None else clusters[item], len(cluster_numbers)) for item in voted
    ]
    counts = np.array([[counter[category] for category in chosen] for counter in voted.values()], np.float64)
    return _Table(counts.reshape(len(voted), len(chosen)), chosen, np.array(members, np.intp))


def _check(item: object, rater: object, value: object, *, numbers: bool) -> None:
    where = f"Item {item!r}, rater {rater!r}: the vote is {value!r}"
    if value is None or value != value:  # noqa: PLR0124 - only NaN differs from itself
        raise ValueError(f"{where}; leave a missing vote out")
    if numbers and not (isinstance(value, SupportsFloat) and math.isfinite(value)):
        raise ValueError(f"{where}; ordinal and interval statistics need finite numbers")


def _distances(categories: list[Any], power: int) -> Array:
    """|a − b|^power of any two categories; with power 0, 1 of any two different ones."""
    if not power:
        return 1 - np.eye(len(categories))
    numbers = np.array(categories, np.float64)
    distances: Array = np.abs(numbers[:, None] - numbers) ** power
    return distances


def _undefined(reason: Reason, n: int) -> RaterAgreement:
    return RaterAgreement(None, None, reason, n, 0.0)


def _bootstrap(statistic: Callable[[Array], float | None], table: _Table, seed: int) -> RaterAgreement:
    """The statistic and its percentile bootstrap interval over clusters.

    `statistic` takes how often each item counts. A resample draws as many clusters as there are, with replacement
    (Davison and Hinkley (1997), "Bootstrap Methods and their Application", section 3.8). A resample in which the
    statistic is undefined could lie on either side: it counts as below the low end and as above the high end, which
    widens the interval. Where more than 2.5% of them are undefined there is no interval. To leave them out would give
    an interval only of the samples that happen to be defined.
    """
    n, n_clusters = len(table.clusters), int(table.clusters.max()) + 1
    value = statistic(np.ones(n))
    assert value is not None
    if value == 1:
        return RaterAgreement(value, None, "no disagreement", n, 0.0)
    if n_clusters < FEWEST:
        return RaterAgreement(value, None, "few clusters", n, 0.0)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES):
        drawn = np.bincount(generator.integers(n_clusters, size=n_clusters), minlength=n_clusters)
        values.append(statistic(drawn[table.clusters].astype(np.float64)))
    defined = sorted(x for x in values if x is not None)
    undefined = RESAMPLES - len(defined)
    if undefined > _TAIL:
        return RaterAgreement(value, None, "undefined resamples", n, undefined / RESAMPLES)
    beyond = _TAIL - undefined
    return RaterAgreement(value, Interval(defined[beyond], defined[-1 - beyond]), None, n, undefined / RESAMPLES)


class Majority(NamedTuple):
    """What most raters chose."""

    values: tuple[Any, ...]
    """The value with the most votes; more than one where they tie, in the order in which they first occur."""
    shares: dict[Any, float]
    """The share of the item's votes for each value that was chosen: a soft label that sums to 1."""


def majority(votes: Votes) -> dict[Any, Majority]:
    """The majority of each item that has a vote."""
    majorities = {}
    for item, by_rater in votes.items():
        for rater, value in by_rater.items():
            _check(item, rater, value, numbers=False)
        if by_rater:
            counter = Counter(by_rater.values())
            most = max(counter.values())
            majorities[item] = Majority(
                tuple(value for value, count in counter.items() if count == most),
                {value: count / counter.total() for value, count in counter.items()},
            )
    return majorities


class DawidSkene(NamedTuple):
    """Dawid and Skene's estimates. Each of the distributions sums to 1."""

    posteriors: dict[Any, dict[Any, float]]
    """item → {category: the probability that it is the true one}."""
    confusion: dict[Any, dict[Any, dict[Any, float]]]
    """rater → {true category: {category: the probability that the rater chooses it}}."""
    priors: dict[Any, float]
    """category → the share of items of which it is the true one."""
    log_likelihood: float
    """Of all votes, in nats."""
    iterations: int
    converged: bool


def dawid_skene(votes: Votes, *, smoothing: float = 0.01, tolerance: float = 1e-6, at_most: int = 1000) -> DawidSkene:
    """The true category of each item and the errors of each rater, from votes alone, by expectation maximisation (EM).

    Dawid and Skene (1979), "Maximum likelihood estimation of observer error-rates using the EM algorithm". Given the
    true category, raters are taken to err independently of each other. The start is the share of votes for each
    category (equation 3.1), so ties start even and the result does not depend on chance. The M-step is equations 2.3
    and 2.4, the E-step equation 2.5. EM finds a local maximum. With two raters, or few votes each, the errors are
    hardly identified. Items without votes are left out.

    Args:
        votes: The votes, with at least one.
        smoothing: Added, above 0, to the expected count of each category in the priors and in each row of each
            confusion matrix. It keeps a category that nobody chose possible, and prevents a division by 0.
        tolerance: EM has converged when no posterior probability changes by more.
        at_most: The most iterations.
    """
    table = _tabulate(votes, None)
    if not len(table.counts):
        raise ValueError("There is no vote; the estimate needs at least one")
    if not smoothing > 0:
        raise ValueError(f"The smoothing is {smoothing}; it must be above 0")
    if at_most < 1:
        raise ValueError(f"At most {at_most} iterations; at least 1 is needed")
    items = [item for item, by_rater in votes.items() if by_rater]
    raters = list(dict.fromkeys(rater for by_rater in votes.values() for rater in by_rater))
    place = {category: i for i, category in enumerate(table.categories)}
    counts = np.zeros((len(items), len(raters), len(place)))
    for i, item in enumerate(items):
        for k, rater in enumerate(raters):
            if rater in votes[item]:
                counts[i, k, place[votes[item][rater]]] = 1
    fit = _expectation_maximisation(counts, smoothing, tolerance, at_most)

    def by_category(row: Array) -> dict[Any, float]:
        return dict(zip(table.categories, row.tolist(), strict=True))

    return DawidSkene(
        {item: by_category(row) for item, row in zip(items, fit.posteriors, strict=True)},
        {
            rater: {category: by_category(row) for category, row in zip(table.categories, matrix, strict=True)}
            for rater, matrix in zip(raters, fit.confusion, strict=True)
        },
        by_category(fit.priors),
        fit.log_likelihood,
        fit.iterations,
        fit.converged,
    )


class _Fit(NamedTuple):
    posteriors: Array  # items x categories
    confusion: Array  # raters x true categories x chosen categories
    priors: Array  # categories
    log_likelihood: float
    iterations: int
    converged: bool


def _expectation_maximisation(counts: Array, smoothing: float, tolerance: float, at_most: int) -> _Fit:
    """Dawid and Skene's EM. `counts` is items x raters x categories; a rater may vote on an item more than once."""
    posteriors = counts.sum(1) / counts.sum((1, 2))[:, None]
    iterations, converged = 0, False
    while not converged and iterations < at_most:
        iterations += 1
        priors = posteriors.sum(0) + smoothing
        priors /= priors.sum()
        confusion = np.einsum("ij,ikl->kjl", posteriors, counts) + smoothing
        confusion /= confusion.sum(2, keepdims=True)
        # In logarithms: the product of many votes' probabilities would become 0.
        joint = np.log(priors) + np.einsum("ikl,kjl->ij", counts, np.log(confusion))
        largest = joint.max(1, keepdims=True)
        evidence = largest + np.log(np.exp(joint - largest).sum(1, keepdims=True))
        previous, posteriors = posteriors, np.exp(joint - evidence)
        converged = bool(np.abs(posteriors - previous).max() <= tolerance)
    return _Fit(posteriors, confusion, priors, float(evidence.sum()), iterations, converged)
