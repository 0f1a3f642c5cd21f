"""Rates from few labels by people and many by an AI labeler, with intervals that count the error of both."""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from constitutional.base.stats import Interval, student_quantile, wilson

Array = NDArray[np.float64]

Caution = Literal["few labels", "few corrections", "contradictory"]

_Z: Final = NormalDist().inv_cdf(0.975)
_ENDLESS: Final = 1e9
"""Times the labels: as good as no end of them."""
_TINY: Final = 1e-20
"""A variance that is rounding alone."""
FEWEST_LABELS: Final = 50
"""Human labels, of as many clusters, below which the interval of prediction-powered inference is too narrow."""
FEWEST_CORRECTIONS: Final = 5
"""Items on which the AI's label differs from the human's, below which its rate of error is hardly known."""
FEWEST_AI_CLUSTERS: Final = 10
"""Clusters with the AI's label alone, below which prediction-powered inference does without the AI: what their spread
comes to is then hardly known, while Student's t counts the clusters with a human label alone."""


class WeightedRate(NamedTuple):
    """A rate from items that were drawn with known probabilities."""

    value: float
    """In [0, 1]."""
    interval: Interval
    """95%, within [0, 1]."""
    variance: float | None
    """Of the value, linearised; None from fewer than two clusters."""
    n: int
    """Labelled items."""
    to_halve: int | None
    """How many more labels, drawn in the same way, would make the interval half as wide; None where there are fewer
    than two clusters."""


def hajek_mean(
    values: Sequence[float], inclusion: Sequence[float], clusters: Sequence[Hashable] | None = None
) -> WeightedRate:
    """The mean over a population of items, of which a sample was drawn with known probabilities.

    θ = Σ wᵢyᵢ / Σ wᵢ with wᵢ = 1/πᵢ: Hájek (1971), comment on Basu's "An essay on the logical foundations of survey
    sampling"; Särndal, Swensson and Wretman (1992), "Model Assisted Survey Sampling", section 5.7. The probabilities
    matter only up to a common factor. Where all are equal, θ is the plain mean.

    The variance is linearised: k/(k − 1)·Σ z_c², where z_c is the sum of wᵢ(yᵢ − θ) / Σ w over the items of cluster c,
    and k is the number of clusters. There is no correction for a finite population: the rate is that of all such
    items, of which the population is itself a sample.

    The interval is Wilson's with the effective sample size θ(1 − θ)/variance in place of n, as in `clustered_share`:
    at most n, times (z/t)² with Student's t for k − 1 degrees of freedom, rounded down. Where the variance is 0,
    the size is Kish's, (Σ w)²/Σ W_c², W_c being the sum of a cluster's weights. With equal probabilities and clusters
    of one item it is Wilson's interval itself.

    Args:
        values: n values, each in [0, 1], such as 1 for an agreement, or ½ for a tie.
        inclusion: n probabilities in (0, 1] with which the items were drawn.
        clusters: n clusters, such as prompts. Without it each item is its own.

    Raises:
        ValueError: There is no value, the lengths differ, or a number is out of its range.
    """
    outcomes, weights = _checked(values, "value"), _weights(inclusion, len(values))
    n, total = len(outcomes), weights.sum()
    members = _members(clusters, n)
    k = int(members.max()) + 1
    value = float(outcomes[0] if np.ptp(outcomes) == 0 else weights @ outcomes / total)  # 1, not 0.9999999999999999
    if k < 2:
        return WeightedRate(value, Interval(0.0, 1.0), None, n, None)
    residuals = np.bincount(members, weights * (outcomes - value) / total)
    variance = float(k / (k - 1) * (residuals**2).sum())
    size = float(n) if k == n and np.ptp(weights) == 0 else _size(value, variance, weights, members)

    def interval(labels: int) -> Interval:
        """The interval if there were so many labels."""
        effective = math.floor(size * labels / n + 1e-9)
        return wilson(value * effective, effective)

    return WeightedRate(value, interval(n), variance, n, _more(lambda labels: _width(interval(labels)), n))


class PredictionPoweredRate(NamedTuple):
    """A rate from few items with labels by people and many with the AI's alone."""

    value: float
    """In [0, 1]."""
    interval: Interval
    """95%, within [0, 1]."""
    variance: float
    """Of the value before it is clipped to [0, 1]."""
    tuning: float
    """λ in [0, 1], the weight of the AI's labels; with 0 the value is the mean of the human labels."""
    n: int
    """Items with a human label."""
    n_ai: int
    """Items with the AI's label alone."""
    to_halve: int | None
    """How many more human labels, drawn in the same way, would make the interval half as wide with the same AI-only
    labels; None from one human label."""
    warnings: tuple[Caution, ...]
    """Why the interval may be too narrow: "few labels", fewer than `FEWEST_LABELS` clusters with a human label; "few
    corrections", the two labels differ on fewer than `FEWEST_CORRECTIONS` items. "contradictory": the interval would
    lie outside of [0, 1], so the two groups of items are not of the same population; it is then (0, 1)."""


def prediction_powered_mean(
    human: Sequence[float],
    ai: Sequence[float],
    ai_only: Sequence[float],
    inclusion: Sequence[float] | None = None,
    *,
    clusters: Sequence[Hashable] | None = None,
    ai_only_clusters: Sequence[Hashable] | None = None,
) -> PredictionPoweredRate:
    """The mean of human labels over a population, by prediction-powered inference with a tuned weight (PPI++).

    θ = λ·mean(f̃) + Σ wᵢ(yᵢ − λfᵢ) / Σ wᵢ, with human labels y and the AI's f on n items, and the AI's f̃ on N others:
    Angelopoulos, Duchi and Zrnic (2023), "PPI++: Efficient Prediction-Powered Inference", section 6. It is
    unbiased however wrong the AI's labels are; the better they are, the smaller the variance
    V = Var(y − λf)/n + λ²·Var(f̃)/N. The interval is θ ± 1.96·√V. λ minimises V: Cov(y, f) / ((1 + n/N)·Var(f)), clipped
    to [0, 1], where Var(f) is over all n + N labels. Where V would be 0, as where all human labels are equal, λ is 0,
    and the value and the interval are those of `hajek_mean` from the human labels.

    The paper's interval is for many labels. With clusters, such as prompts, and where the probabilities differ, so that
    wᵢ = 1/πᵢ, it is one for few as well: V is Σ z_c², and the interval is θ ± t·√V with Student's t for k − 1 degrees
    of freedom, k being the number of clusters with a human label. z_c is the sum of √(k/(k − 1))·wᵢ(yᵢ − ȳ −
    λ(fᵢ − f̄)) / Σ w over the human-labelled items of cluster c, and of √(K/(K − 1))·λ(f̃ᵢ − mean(f̃))/N over the
    others, which are of K clusters; with fewer than `FEWEST_AI_CLUSTERS` of these λ is 0. A cluster can have items of
    both kinds, and an item can be of both kinds. λ is the paper's where every item is its own cluster and the
    probabilities are equal; elsewhere it minimises Σ z_c² without the factors of k and K.

    Args:
        human: n labels by people, each in [0, 1].
        ai: The AI's labels of the same items, in [0, 1].
        ai_only: N labels by the AI in [0, 1] of items that stand for the same population. Where the n items were
            drawn with unequal probabilities, those that are left over do not: give all items of the pool, and clusters.
        inclusion: n probabilities in (0, 1] with which the items were drawn; None where they are equal.
        clusters: n clusters; without it each item is its own.
        ai_only_clusters: N clusters, with the same names; without it each item is its own.

    Raises:
        ValueError: There are too few labels, the lengths differ, or a number is out of its range.
    """
    y, f, others = _checked(human, "human label"), _checked(ai, "AI label"), _checked(ai_only, "AI-only label")
    n, n_ai = len(y), len(others)
    if len(f) != n:
        raise ValueError(f"{n} human labels, but {len(f)} labels by the AI of the same items")
    weights = _weights([1.0] * n if inclusion is None else inclusion, n)
    weights /= weights.sum()
    y_mean, f_mean = float(weights @ y), float(weights @ f)
    names = [*_names(clusters, n, "human"), *_names(ai_only_clusters, n_ai, "AI")]
    members = _members(names, n + n_ai)
    k = int(members.max()) + 1
    many = clusters is None and ai_only_clusters is None and np.ptp(weights) == 0  # the paper's case
    k_human, k_ai = len({*members[:n].tolist()}), len({*members[n:].tolist()})
    y_residuals, f_residuals = (
        np.bincount(members[:n], weights * (labels - mean), k) for labels, mean in ((y, y_mean), (f, f_mean))
    )
    others_residuals = np.bincount(members[n:], (others - others.mean()) / n_ai, k)
    # The variance is y_part − 2λ·cross + λ²·(f_part + others_part) + 2λ·(y_shared − λ·f_shared).
    y_part, f_part = float(y_residuals @ y_residuals), float(f_residuals @ f_residuals)
    cross, others_part = float(y_residuals @ f_residuals), float(others_residuals @ others_residuals)
    y_shared, f_shared = float(y_residuals @ others_residuals), float(f_residuals @ others_residuals)
    # Of λ's denominator: as in the paper where it applies.
    spread = float(np.concatenate([f, others]).var(ddof=1))
    plain = np.ptp(weights) == 0 and k == n + n_ai
    f_spread, others_spread = (spread / n, spread / n_ai) if plain else (f_part, others_part)

    def tuned(labels: int) -> tuple[float, float, float]:
        """λ, the variance and the quantile if there were so many human labels, in as many more clusters."""
        ratio, then = n / labels, k_human * labels / n
        denominator = ratio * f_spread + others_spread - 2 * f_shared
        tuning = min(1.0, max(0.0, (ratio * cross - y_shared) / denominator)) if denominator > _TINY else 0.0
        few, few_ai = (1.0, 1.0) if many else (then / (then - 1), k_ai / (k_ai - 1))
        variance = few * ratio * (y_part - 2 * tuning * cross + tuning**2 * f_part) + few_ai * tuning**2 * others_part
        variance += 2 * math.sqrt(few * few_ai) * tuning * (y_shared - tuning * f_shared)
        return tuning, max(0.0, variance), _Z if many else student_quantile(0.95, then - 1)

    warnings: list[Caution] = []
    if k_human < FEWEST_LABELS:
        warnings.append("few labels")
    if np.count_nonzero(y != f) < FEWEST_CORRECTIONS:
        warnings.append("few corrections")
    enough = k_human > 1 and (k_ai > 1 if many else k_ai >= FEWEST_AI_CLUSTERS)
    tuning, variance, quantile = tuned(n) if enough else (0.0, 0.0, _Z)
    if variance <= _TINY:
        alone = hajek_mean(human, [1.0] * n if inclusion is None else inclusion, clusters)
        return PredictionPoweredRate(alone.value, alone.interval, 0.0, 0.0, n, n_ai, alone.to_halve, tuple(warnings))
    value = tuning * float(others.mean()) + y_mean - tuning * f_mean
    half = quantile * math.sqrt(variance)
    low, high = max(0.0, value - half), min(1.0, value + half)
    if low > high:
        low, high = 0.0, 1.0
        warnings.append("contradictory")

    def width(labels: int) -> float:
        _, then, quantile = tuned(labels)
        return quantile * math.sqrt(then)

    more = _more(width, n)
    return PredictionPoweredRate(
        min(1.0, max(0.0, value)), Interval(low, high), variance, tuning, n, n_ai, more, tuple(warnings)
    )


class CorrectedRate(NamedTuple):
    """A rate of what an imperfect labeler flags, corrected for its errors."""

    value: float | None
    """In [0, 1]."""
    interval: Interval | None
    """95%, within [0, 1]."""
    sensitivity: float | None
    """The share of true positives that the labeler flags; None without positives."""
    specificity: float | None
    """The share of true negatives that the labeler does not flag; None without negatives."""
    reason: Literal["too few", "uninformative", "contradictory"] | None
    """Why there is no value. "too few": nothing was labelled, or people found no positives or no negatives.
    "uninformative": sensitivity + specificity ≤ 1, so the labeler flags positives no more often than negatives.
    "contradictory": the interval would lie outside of [0, 1], so sensitivity and specificity are not those on these
    items."""
    n: int
    """Items of which the labeler flagged some."""
    to_halve: int | None = None
    """How many more positives and negatives together, in the same shares, would make the interval half as wide; None
    where no number would, as the n items are too few for that."""


def rogan_gladen(
    flagged: int, n: int, *, true_positives: int, positives: int, true_negatives: int, negatives: int
) -> CorrectedRate:
    """The true rate of positives among n items of which an imperfect labeler flagged some.

    p = (t + Sp − 1) / (Se + Sp − 1) with t = flagged / n: Rogan and Gladen (1978), "Estimating prevalence from the
    results of a screening test", clipped to [0, 1].

    The interval is the delta method's with the errors of all three shares, p ± z·√V / (Se + Sp − 1) with
    V = t(1 − t)/n + p²·Se(1 − Se)/positives + (1 − p)²·Sp(1 − Sp)/negatives. Its shares are those with pseudo-counts,
    and its middle is moved by 2z²·(p·Se(1 − Se)/positives − (1 − p)·Sp(1 − Sp)/negatives), as in Lang and Reiczigel
    (2014), "Confidence limits for prevalence of disease adjusted for estimated sensitivity and specificity", equations
    4, 6, 7, 16 and 17: t gets z²/2 flagged and z²/2 others, Se and Sp one success and one failure each. Without them
    no error seen would count as no error possible. The interval is widened to include p where it does not.

    Args:
        flagged: Items that the labeler flagged, of n.
        n: Items.
        true_positives: Items that the labeler flagged, of those that people found positive.
        positives: Items that people found positive. They and the negatives are a uniform sample, apart from the n items
            or few of them: items chosen by what the labeler is unsure of would make it look worse.
        true_negatives: Items that the labeler did not flag, of those that people found negative.
        negatives: Items that people found negative.

    Raises:
        ValueError: A count is below 0 or above its total.
    """
    shares = [(flagged, n), (true_positives, positives), (true_negatives, negatives)]
    for part, whole in shares:
        if not 0 <= part <= whole:
            raise ValueError(f"{part} of {whole}; a count is at least 0 and at most its total")
    return _corrected(*(_Share(part, whole, whole) for part, whole in shares))


def clustered_rogan_gladen(
    flagged: Sequence[tuple[bool, Hashable]],
    found: Sequence[tuple[bool, Hashable]],
    passed: Sequence[tuple[bool, Hashable]],
) -> CorrectedRate:
    """`rogan_gladen` from items that depend on each other within clusters, such as a prompt's by several principles.

    In the interval each of the three shares counts for as many items as it is worth if these were independent: the
    effective sample size of `hajek_mean`, with the share's own clusters. Items of one cluster are worth none, and those
    of as many clusters are worth themselves, so that with clusters of one item this is `rogan_gladen` of the counts.
    Where people's items are among those that were flagged, the interval is a little wider than it need be.

    Args:
        flagged: whether the labeler flagged an item, and its cluster, by item.
        found: whether it flagged an item that people found positive, and its cluster, by such item.
        passed: whether it did not flag an item that people found negative, and its cluster, by such item.
    """
    return _corrected(_share(flagged), _share(found), _share(passed))


class _Share(NamedTuple):
    """A share of items."""

    part: int
    whole: int
    size: float
    """How many independent items the whole is worth."""


def _share(items: Sequence[tuple[bool, Hashable]]) -> _Share:
    n, part = len(items), sum(outcome for outcome, _ in items)
    members = _members([cluster for _, cluster in items], n)
    k = len({*members.tolist()})
    if k == n or k < 2:
        return _Share(part, n, n if k == n else 0)
    residuals = np.bincount(members, np.array([outcome for outcome, _ in items], np.float64) - part / n)
    return _Share(part, n, _size(part / n, k / (k - 1) * float(residuals @ residuals) / n**2, np.ones(n), members))


def _corrected(flagged: _Share, found: _Share, passed: _Share) -> CorrectedRate:
    n, positives, negatives = flagged.whole, found.whole, passed.whole
    sensitivity = found.part / positives if positives else None
    specificity = passed.part / negatives if negatives else None
    if not n or sensitivity is None or specificity is None:
        return CorrectedRate(None, None, sensitivity, specificity, "too few", n)
    if found.part * negatives + passed.part * positives <= positives * negatives:  # exact, unlike the shares
        return CorrectedRate(None, None, sensitivity, specificity, "uninformative", n)
    share = flagged.part / n
    value = min(1.0, max(0.0, (share + specificity - 1) / (sensitivity + specificity - 1)))
    labels = positives + negatives

    def interval_of(factor: float) -> Interval | None:
        """The interval if there were so many times the labels; None where it would lie outside of [0, 1]."""
        se_size, sp_size = factor * found.size, factor * passed.size
        t, se, sp = (
            (share * flagged.size + _Z**2 / 2) / (flagged.size + _Z**2),
            (sensitivity * se_size + 1) / (se_size + 2),
            (specificity * sp_size + 1) / (sp_size + 2),
        )
        if se + sp <= 1:
            return Interval(0.0, 1.0)
        p = (t + sp - 1) / (se + sp - 1)
        se_part = p * se * (1 - se) / (se_size + 2)
        sp_part = (1 - p) * sp * (1 - sp) / (sp_size + 2)
        middle = p + 2 * _Z**2 * (se_part - sp_part)
        half = _Z * math.sqrt(t * (1 - t) / (flagged.size + _Z**2) + p * se_part + (1 - p) * sp_part) / (se + sp - 1)
        if middle + half < 0 or middle - half > 1:
            return None
        return Interval(max(0.0, min(value, middle - half)), min(1.0, max(value, middle + half)))

    def width(count: float) -> float:
        interval = interval_of(count / labels)
        return 1.0 if interval is None else _width(interval)

    interval = interval_of(1)
    if interval is None:
        return CorrectedRate(None, None, sensitivity, specificity, "contradictory", n)
    to_halve = _more(width, labels) if width(labels * _ENDLESS) <= width(labels) / 2 else None
    return CorrectedRate(value, interval, sensitivity, specificity, None, n, to_halve)


def _checked(rates: Sequence[float], noun: str) -> Array:
    if not len(rates):
        raise ValueError(f"There is no {noun}; at least one is needed")
    for place, rate in enumerate(rates):
        if not 0 <= rate <= 1:
            raise ValueError(f"The {noun} at place {place} is {rate}; it must be from 0 to 1. Leave a missing one out")
    return np.array(rates, np.float64)


def _weights(inclusion: Sequence[float], n: int) -> Array:
    if len(inclusion) != n:
        raise ValueError(f"{n} items, but {len(inclusion)} inclusion probabilities")
    for place, probability in enumerate(inclusion):
        if not 0 < probability <= 1:
            raise ValueError(
                f"The inclusion probability at place {place} is {probability}; it must be above 0, at most 1"
            )
    return 1 / np.array(inclusion, np.float64)


def _members(clusters: Sequence[Hashable] | None, n: int) -> NDArray[np.intp]:
    """The number of each item's cluster."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"{n} items, but {len(clusters)} clusters")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], np.intp)


def _names(clusters: Sequence[Hashable] | None, n: int, kind: str) -> list[Hashable]:
    """Of n items of a kind; an item without a cluster has a name that nothing else has."""
    if clusters is None:
        return [(kind, place) for place in range(n)]
    if len(clusters) != n:
        raise ValueError(f"{n} items, but {len(clusters)} clusters")
    return [("cluster", cluster) for cluster in clusters]


def _size(value: float, variance: float, weights: Array, members: NDArray[np.intp]) -> float:
    """How many independent items a rate from two or more clusters is worth."""
    kish = float(weights.sum() ** 2 / (np.bincount(members, weights) ** 2).sum())
    size = min(len(weights), value * (1 - value) / variance) if variance > _TINY else kish
    return size * (_Z / student_quantile(0.95, int(members.max()))) ** 2


def _width(interval: Interval) -> float:
    return interval.high - interval.low


def _more(width: Callable[[int], float], n: int) -> int:
    """The least number of labels beyond n with which a width that shrinks with them is half of what it is with n."""
    half = width(n) / 2
    low, high = n, 2 * n  # with `low` it is too wide
    while width(high) > half:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if width(middle) > half else (low, middle)
    return high - n
