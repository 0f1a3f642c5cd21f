import math
import random

import numpy as np
import pytest

from constitutional.base.corrected import (
    CorrectedRate,
    clustered_rogan_gladen,
    hajek_mean,
    prediction_powered_mean,
    rogan_gladen,
)
from constitutional.base.stats import Interval, clustered_share, wilson


def test_hajek_by_hand() -> None:
    # Weights 2, 4, 4: θ = 6/10, and the residuals w(y - θ)/Σw are 0.08, -0.24, 0.16, the sum of their squares 0.0896.
    rate = hajek_mean([1, 0, 1], [0.5, 0.25, 0.25])
    assert rate.value == pytest.approx(0.6)
    assert rate.variance == pytest.approx(3 / 2 * 0.0896)
    assert rate.interval == Interval(0, 1)  # of three items, worth less than one
    # 20 of each: the variance is 60/59 · 0.0896/20 = 0.0045559, so 0.24/0.0045559 = 52.68 items, times
    # (1.95996/2.0010)² = 0.95939 with t of 59 degrees of freedom: 50.54.
    rate = hajek_mean([1, 0, 1] * 20, [0.5, 0.25, 0.25] * 20)
    assert rate.value == pytest.approx(0.6)
    assert rate.variance == pytest.approx(0.0045559, abs=1e-7)
    assert rate.interval == pytest.approx(wilson(30, 50))


SCHOOLS = """
     61 13 9372   135 34 22508  178 4 2077    197 13 8593   255 16 11369  406 2 1116  413 1 551   437 4 1888
    448 12 9111   510 21 13761  568 9 6386    637 11 7359   716 37 20394  778 2 905   815 4 2493
"""
"""Of `apiclus1` in R's package survey: a district, its schools, the sum of their scores `api00`."""
DISTRICTS = """
    18.925:1/1 1/1 1/3 1/1 2/3 1/3 4/4 0/1 4/4 2/2 1/1 3/5 4/4 5/5 4/4 1/1 5/5 1/2 4/5 5/5 2/2 1/1 2/2 0/4 2/3 2/2 2/2
    18.925:0/1 0/1 2/2 1/1 22.71:5/5 26.495:5/5 4/5 34.065:4/5 41.635:5/5 52.99:1/5 105.98:5/5 136.26:2/5 272.52:4/5
"""
"""Of `apiclus2` there: weight, then by district how many schools of how many met their target (`sch.wide`)."""


def test_hajek_of_the_published_survey_of_schools() -> None:
    # Lumley (2004), "Analysis of complex survey samples", and the package's help: svymean(~api00, dclus1) is 644.17,
    # its standard error 23.542, of 15 of 757 districts.
    rows = [int(word) for word in SCHOOLS.split()]
    districts = list(zip(rows[::3], rows[1::3], rows[2::3], strict=True))
    scores = [total / n / 1000 for _, n, total in districts for _ in range(n)]
    clusters = [district for district, n, _ in districts for _ in range(n)]
    rate = hajek_mean(scores, [1 / 33.847] * 183, clusters)
    assert 1000 * rate.value == pytest.approx(644.17, abs=0.005)
    assert rate.variance is not None
    assert 1000 * math.sqrt(rate.variance * (1 - 15 / 757)) == pytest.approx(23.542, abs=0.0005)


def test_hajek_of_unequal_weights_agrees_with_the_package_survey() -> None:
    # svymean(~sch.wide) of apistrat with id=~1, weights=~pw: by level those that met their target and not.
    levels = [(44.21, 91, 9), (20.36, 35, 15), (15.10, 26, 24)]
    values = [value for _, met, missed in levels for value in [1] * met + [0] * missed]
    rate = hajek_mean(values, [1 / weight for weight, met, missed in levels for _ in range(met + missed)])
    assert rate.value == pytest.approx(0.8279480, abs=1e-6)
    assert rate.variance == pytest.approx(0.0260687**2, rel=1e-4)
    # and of apiclus2 with id=~dnum + snum, weights=~pw: 40 districts.
    values, inclusion, clusters, weight = [], [], [], 0.0
    for number, word in enumerate(DISTRICTS.split()):
        head, _, share = word.rpartition(":")
        weight = float(head) if head else weight
        met, schools = map(int, share.split("/"))
        values += [1] * met + [0] * (schools - met)
        inclusion += [1 / weight] * schools
        clusters += [number] * schools
    rate = hajek_mean(values, inclusion, clusters)
    assert len(set(clusters)) == 40
    assert rate.value == pytest.approx(0.7512915, abs=1e-6)
    assert rate.variance == pytest.approx(0.0667191**2, rel=1e-4)
    # The intervals are R's too: prop.test(p·m, m, correct=FALSE), with m = p(1 − p)/SE² · (qnorm(0.975)/qt(0.975, 39))²
    # from svymean's p and SE (survey 4.1.1), rounded down for `hajek_mean`; without weights for `clustered_share`.
    assert rate.interval == pytest.approx((0.597373, 0.860145), abs=1e-6)
    assert hajek_mean(values, [1.0] * 126, clusters).interval == pytest.approx((0.664170, 0.871762), abs=1e-6)
    unweighted = clustered_share(values, clusters)
    assert unweighted == pytest.approx((0.665153, 0.871269), abs=1e-6)
    assert unweighted == pytest.approx((0.663, 0.875), abs=0.006)  # svyciprop: logit 0.663 to 0.87, beta 0.661 to 0.88


def test_hajek_depends_on_the_ratios_of_the_probabilities_only() -> None:
    values, inclusion = [1, 0, 1, 1, 0, 0.5] * 5, [0.5, 0.25, 0.25, 0.1, 0.1, 0.3] * 5
    third, rate = hajek_mean(values, [p / 3 for p in inclusion]), hajek_mean(values, inclusion)
    assert (third.value, third.variance) == pytest.approx((rate.value, rate.variance))
    assert third.interval == pytest.approx(rate.interval)


def test_hajek_of_a_uniform_sample_is_the_plain_mean() -> None:
    values = [1, 1, 0, 0.5, 1, 0, 1, 1]
    rate = hajek_mean(values, [0.04] * 8)
    assert rate.value == pytest.approx(5.5 / 8)
    assert rate.variance == pytest.approx(np.var(values, ddof=1) / 8)
    assert rate.interval == pytest.approx(wilson(5.5, 8))


def test_hajek_of_uniform_clusters_is_a_clustered_share() -> None:
    # 20 clusters of five that agree, half of them right: 19 · (1.95996/2.0930)² = 16.66 items, 16 when rounded down.
    values, clusters = [1] * 50 + [0] * 50, [item // 5 for item in range(100)]
    rate = hajek_mean(values, [0.1] * 100, clusters)
    assert rate.variance == pytest.approx(1 / 76)
    assert rate.interval == pytest.approx(wilson(8, 16))
    assert rate.interval == pytest.approx(clustered_share(values, clusters), abs=0.015)
    # Each item five times over says no more than the item.
    assert rate.variance == pytest.approx(hajek_mean([1] * 10 + [0] * 10, [0.1] * 20).variance)


def test_hajek_of_equal_values_has_a_width() -> None:
    assert hajek_mean([0] * 60, [0.1] * 60).interval == wilson(0, 60)
    # Weights 1 and 3: (30 + 30)² / (30 + 90) = 30 items, times (1.95996/2.0227)² = 0.9389 with t of 39: 28.2.
    rate = hajek_mean([1] * 40, [0.3] * 30 + [0.1] * 10)
    assert (rate.value, rate.variance) == (1, 0)
    assert rate.interval == wilson(28, 28)
    # Here Σ w·1 / Σ w is 0.9999999999999999.
    rate = hajek_mean([1] * 60, [(item % 7 + 1) / 10 for item in range(60)])
    assert (rate.value, rate.variance, rate.interval.high) == (1, 0, 1)


def test_hajek_of_balanced_clusters_counts_each_cluster_once() -> None:
    # Each cluster has one of each value, so nothing varies between the 30: 30 · (1.95996/2.0452)² = 27.55 items.
    values, clusters = [1, 0] * 30, [item // 2 for item in range(60)]
    assert hajek_mean(values, [0.1] * 60, clusters).interval == pytest.approx(wilson(13.5, 27))
    # Rounding makes the variance of these ten 1.5e-33, which is no reason to count items in place of clusters:
    # 10 · (1.95996/2.2622)² = 7.5, and fewer with these weights.
    rate = hajek_mean([1, 0] * 10, [(item // 2 % 7 + 1) / 10 for item in range(20)], [item // 2 for item in range(20)])
    assert rate.interval.high - rate.interval.low > 0.6


def test_hajek_of_one_cluster_says_nothing_of_others() -> None:
    rate = hajek_mean([1, 0, 1], [0.5, 0.5, 0.2], ["p", "p", "p"])
    assert rate.interval == Interval(0, 1)
    assert (rate.variance, rate.to_halve) == (None, None)


def test_hajek_halves_the_interval() -> None:
    # Of p = 1/2 Wilson's width is z/√(n + z²), so n + z² must be fourfold: 4 · 100 + 3 · 3.8415 = 411.5.
    rate = hajek_mean([1, 0] * 50, [0.1] * 100)
    assert rate.to_halve == 312
    more = hajek_mean([1, 0] * 206, [0.1] * 412)
    assert more.interval.high - more.interval.low <= (rate.interval.high - rate.interval.low) / 2


@pytest.mark.parametrize(
    ("values", "inclusion", "clusters", "complaint"),
    [
        ([], [], None, "no value"),
        ([1, math.nan], [0.5, 0.5], None, "value at place 1 is nan"),
        ([1, 2], [0.5, 0.5], None, "value at place 1 is 2"),
        ([1, 0], [0.5], None, "2 items, but 1 inclusion"),
        ([1, 0], [0.5, 0], None, "probability at place 1 is 0"),
        ([1, 0], [0.5, 2], None, "probability at place 1 is 2"),
        ([1, 0], [0.5, 0.5], ["p"], "2 items, but 1 cluster"),
    ],
)
def test_hajek_refuses(values: list[float], inclusion: list[float], clusters: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        hajek_mean(values, inclusion, clusters)


def from_counts(both: int, human_only: int, ai_only: int, neither: int) -> tuple[list[float], list[float]]:
    """The labels by people and by the AI of items, from how many have label 1 by whom."""
    human = [1.0] * (both + human_only) + [0.0] * (ai_only + neither)
    ai = [1.0] * both + [0.0] * human_only + [1.0] * ai_only + [0.0] * neither
    return human, ai


def test_prediction_powered_inference_by_hand() -> None:
    # Cov = 1/4 - 1/2 · 1/4 = 1/8. Three of all eight AI labels are 1, of variance 8/7 · 15/64 = 15/56, so
    # λ = 1/8 / (2 · 15/56) = 7/30, and θ = 1/2 + λ(1/2 - 1/4) = 0.55833.
    # V = (1/4 - 2λ/8 + 3λ²/16)/4 + λ²/4/4 = 0.053872; 1.95996·√V = 0.45492.
    rate = prediction_powered_mean([1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1])
    assert rate.tuning == pytest.approx(7 / 30)
    assert rate.value == pytest.approx(0.558333, abs=1e-6)
    assert rate.variance == pytest.approx(0.053872, abs=1e-6)
    assert rate.interval == pytest.approx((0.558333 - 0.454915, 1), abs=1e-5)
    assert rate.warnings == ("few labels", "few corrections")


@pytest.mark.parametrize(
    ("counts", "ones", "others", "expected"),
    [  # ppi-python 0.2.3, ppi_mean_pointestimate and ppi_mean_ci
        ((48, 12, 8, 32), 3000, 5000, (0.62351, 0.54572, 0.70129)),
        ((15, 5, 3, 17), 260, 500, (0.53885, 0.41263, 0.66507)),
        ((20, 30, 30, 20), 500, 1000, (0.5, 0.40200, 0.59800)),  # labels that mislead: λ is 0
    ],
)
def test_prediction_powered_inference_agrees_with_its_authors(
    counts: tuple[int, int, int, int], ones: int, others: int, expected: tuple[float, float, float]
) -> None:
    rate = prediction_powered_mean(*from_counts(*counts), [1.0] * ones + [0.0] * (others - ones))
    assert (rate.value, *rate.interval) == pytest.approx(expected, abs=0.00001)
    assert rate.warnings == (("few labels",) if sum(counts) < 50 else ())


def test_the_tuning_stays_within_0_and_1() -> None:
    misled = prediction_powered_mean(*from_counts(20, 30, 30, 20), [1.0, 0.0] * 500)
    assert misled.tuning == 0
    assert misled.value == 0.5
    # Timid labels, 0.6 for 1 and 0.4 for 0, would be tuned to 5.
    human = [1.0, 0.0] * 50
    timid = prediction_powered_mean(human, [0.4 + 0.2 * label for label in human], [0.4, 0.6] * 5000)
    assert timid.tuning == 1


def test_the_ai_makes_the_interval_narrower() -> None:
    human, ai = from_counts(55, 5, 5, 35)
    rate = prediction_powered_mean(human, ai, [1.0] * 3000 + [0.0] * 2000)
    alone = hajek_mean(human, [1.0] * 100)
    assert rate.interval.high - rate.interval.low < 0.7 * (alone.interval.high - alone.interval.low)


def test_prediction_powered_inference_from_an_unequal_sample() -> None:
    # A pool of 200 hard items, of which half are violations and the AI flags all, and 800 easy ones, of which a quarter
    # are and the AI is right: the rate is 0.3, that of the AI 0.4. 40 of each kind were drawn.
    hard, easy = from_counts(20, 0, 20, 0), from_counts(10, 0, 0, 30)
    human, ai = [*hard[0], *easy[0]], [*hard[1], *easy[1]]
    pool = [1.0] * 400 + [0.0] * 600
    rate = prediction_powered_mean(human, ai, pool, [40 / 200] * 40 + [40 / 800] * 40)
    assert rate.value == pytest.approx(0.3)
    assert abs(prediction_powered_mean(human, ai, pool).value - 0.3) > 0.04

    # λ minimises the linearised variance.
    weights = np.array([0.005] * 40 + [0.02] * 40)

    def variance(tuning: float) -> float:
        residuals = (np.array(human) - 0.3) - tuning * (np.array(ai) - 0.4)
        return float(((weights * residuals) ** 2).sum() + tuning**2 * np.var(pool) / 1000)

    assert 0 < rate.tuning < 1
    assert rate.variance == pytest.approx(variance(rate.tuning), rel=0.02)  # with 80/79 for the 80 labels
    assert variance(rate.tuning) < min(variance(rate.tuning - 0.01), variance(rate.tuning + 0.01))


@pytest.mark.parametrize(
    ("prompts", "value", "expected"),
    # The value at that λ: ppi-python 0.2.3, ppi_mean_pointestimate(lam=…, w=…), with weights of mean 1. It centres the
    # weighted labels otherwise in its variance, so the rest is R's: λ is where optimize() finds the least sum of
    # svymean's variances of y − λf and of λf̃ (survey 4.1.1, without its k/(k − 1)); then the sum itself with these
    # factors, and the interval with qt(0.975, k − 1).
    [
        (False, 0.54550714, (0.957675, 0.002346, 0.448589, 0.642426)),  # 60 and 400 clusters of one item
        (True, 0.54548352, (0.959378, 0.001471, 0.465221, 0.625746)),  # 20 clusters of three, 50 of eight
    ],
)
def test_prediction_powered_inference_from_an_unequal_sample_agrees_with_its_authors_and_with_survey(
    *, prompts: bool, value: float, expected: tuple[float, float, float, float]
) -> None:
    generator = random.Random(8)
    human, ai, inclusion = [], [], []
    for _ in range(60):
        sure = generator.random()
        human.append(float(generator.random() < 0.15 + 0.7 * sure))
        ai.append(round(sure, 3))
        inclusion.append(round(0.9 - 0.6 * sure, 3))
    others = [round(generator.random(), 3) for _ in range(400)]
    named = [place // 3 for place in range(60)] if prompts else None
    named_others = [1000 + place // 8 for place in range(400)] if prompts else None
    rate = prediction_powered_mean(human, ai, others, inclusion, clusters=named, ai_only_clusters=named_others)
    assert rate.value == pytest.approx(value, abs=1e-7)
    assert (rate.tuning, rate.variance, *rate.interval) == pytest.approx(expected, abs=1e-6)


def test_the_weighted_interval_covers_and_is_narrower_than_that_of_people_alone() -> None:
    # A pool of 1,000 from a population in which the AI's confidence is uniform on [0.5, 1], and people agree with it as
    # often as it says, but 5 points less often below 0.9: in 71% of cases. Unsure items are more likely to be drawn.
    generator = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(200):
        sure = generator.uniform(0.5, 1, 1000)
        agreed = (generator.random(1000) < sure - 0.05 * (sure < 0.9)).astype(float)
        scores = 2.001 - 2 * sure
        chances = np.minimum(1, 0.06 + 0.94 * 90 * scores / scores.sum())
        drawn = generator.random(1000) < chances
        human, inclusion = agreed[drawn].tolist(), chances[drawn].tolist()
        rate = prediction_powered_mean(human, sure[drawn].tolist(), sure.tolist(), inclusion)
        covered += rate.interval.low <= 0.71 <= rate.interval.high
        alone = hajek_mean(human, inclusion).interval
        widths.append((rate.interval.high - rate.interval.low) / (alone.high - alone.low))
    assert covered / 200 > 0.92
    assert np.mean(widths) < 0.95


def test_clusters_of_equal_items_count_once_in_prediction_powered_inference() -> None:
    human, ai, rest = [1.0, 0.0, 1.0, 0.0] * 10, [1.0, 0.0, 0.0, 0.0] * 10, [1.0, 0.0, 0.0, 1.0] * 10
    once = prediction_powered_mean(human, ai, rest, [0.2, 0.4] * 20)
    twice = prediction_powered_mean(
        human * 2,
        ai * 2,
        rest * 2,
        [0.2, 0.4] * 40,
        clusters=[*range(40)] * 2,
        ai_only_clusters=[*range(40, 80)] * 2,
    )
    assert (twice.value, twice.variance, twice.tuning) == pytest.approx((once.value, once.variance, once.tuning))
    assert twice.n == 80
    independent = prediction_powered_mean(human * 2, ai * 2, rest * 2, [0.2, 0.4] * 40)
    # Of 80 clusters in place of 40 in both groups: 80/79 in place of 40/39.
    assert independent.variance == pytest.approx(once.variance / 2 * (80 / 79) / (40 / 39))


def test_few_clusters_widen_the_interval_of_prediction_powered_inference() -> None:
    # By hand, λ = (1/8) / ((1 + 4/12) · 0.2625) = 5/14, and V = (1/4 − 2λ/8 + 3λ²/16)/4 + λ²/4/12 = 0.0461575 +
    # 0.0026573. With clusters of one item V is 4/3 · 0.0461575 + 12/11 · 0.0026573 = 0.0644423, and 3.182446 of
    # Student's t with 3 degrees of freedom takes the place of 1.96.
    many = prediction_powered_mean([1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1] * 3)
    few = prediction_powered_mean(
        [1, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 1] * 3, clusters="abcd", ai_only_clusters="efghijklmnop"
    )
    assert (few.value, few.tuning) == pytest.approx((many.value, many.tuning)) == (0.5 + 5 / 56, 5 / 14)
    assert few.variance == pytest.approx(0.0644423, abs=1e-7)
    assert few.interval == Interval(0, 1)  # 0.589286 ± 0.807877
    # Ten times over, 40 clusters in each group: λ is (1/80) / (2 · 79/80 · …), and V 40/39 of the paper's.
    human, ai, rest = [1.0, 0.0, 1.0, 0.0] * 10, [1.0, 0.0, 0.0, 0.0] * 10, [1.0, 0.0, 0.0, 1.0] * 10
    many = prediction_powered_mean(human, ai, rest)
    few = prediction_powered_mean(human, ai, rest, clusters=[*range(40)], ai_only_clusters=[*range(40, 80)])
    assert few.variance == pytest.approx(40 / 39 * many.variance)
    half = 2.022691 * math.sqrt(40 / 39 * many.variance)  # t of 39 degrees of freedom
    assert few.interval == pytest.approx((many.value - half, many.value + half), abs=1e-6)
    # Few clusters of the AI's labels say next to nothing of others: with fewer than ten, people alone count.
    for clusters, helps in ((1, False), (2, False), (9, False), (10, True)):
        names = [f"p{place % clusters}" for place in range(40)]
        rate = prediction_powered_mean(human, ai, rest, clusters=[*range(40)], ai_only_clusters=names)
        assert (rate.tuning > 0) is helps
        assert (rate.interval == hajek_mean(human, [1.0] * 40).interval) is not helps


def test_the_interval_from_few_clusters_covers() -> None:
    # Ten prompts with three labels each, in a pool of 60 prompts; a prompt is hard or easy for both. With 1.96 and
    # without k/(k − 1) it covers 87%. That it covers 92% and not 95% comes from λ, which is fitted to the same labels.
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        hard = np.repeat(generator.random(60), 3)
        human = (generator.random(180) < hard).astype(float).tolist()
        ai = (generator.random(180) < 0.2 + 0.6 * hard).astype(float).tolist()
        names = np.repeat(np.arange(60), 3).tolist()
        rate = prediction_powered_mean(human[:30], ai[:30], ai[30:], clusters=names[:30], ai_only_clusters=names[30:])
        covered += rate.interval.low <= 0.5 <= rate.interval.high
    assert covered / 400 > 0.9


def test_items_in_both_groups_are_no_second_witness() -> None:
    human, ai = [1.0, 0.0, 1.0, 0.0] * 30, [1.0, 0.0, 0.0, 0.0] * 30
    names = [*range(120)]
    # All that the AI labelled people labelled too, so its labels add nothing: the variance is 120/119 · 0.25/120.
    rate = prediction_powered_mean(human, ai, ai, clusters=names, ai_only_clusters=names)
    assert (rate.value, rate.variance) == pytest.approx((0.5, 0.25 / 119))
    # Half of a pool: the same as with the half alone that people did not label.
    pool = [1.0, 0.0, 0.0, 0.0] * 60
    whole = prediction_powered_mean(human, ai, pool, clusters=names, ai_only_clusters=[*range(240)])
    half = prediction_powered_mean(human, ai, pool[120:])
    assert (whole.value, whole.variance) == pytest.approx((half.value, half.variance), rel=0.01)
    assert prediction_powered_mean(human, ai, pool).variance < 0.95 * whole.variance  # as if nothing were in both


def test_few_prompts_with_many_items_are_few_labels() -> None:
    human, ai = from_counts(30, 10, 10, 50)
    ten, hundred = ([place % number for place in range(100)] for number in (10, 100))
    assert "few labels" in prediction_powered_mean(human, ai, ai * 5, clusters=ten).warnings
    assert "few labels" not in prediction_powered_mean(human, ai, ai * 5, clusters=hundred).warnings


def test_equal_probabilities_change_nothing() -> None:
    human, ai = from_counts(480, 120, 80, 320)
    others = [1.0] * 5600 + [0.0] * 4400
    uniform = prediction_powered_mean(human, ai, others)
    assert prediction_powered_mean(human, ai, others, [0.1] * 1000) == uniform


def test_human_labels_without_variation_do_not_give_certainty() -> None:
    rate = prediction_powered_mean([0.0] * 100, [0.0] * 90 + [1.0] * 10, [0.0] * 900 + [1.0] * 100)
    assert (rate.value, rate.tuning) == (0, 0)
    assert rate.interval == wilson(0, 100)
    # Nor do labels that are those of the AI, where it labels all other items alike.
    human = [1.0, 0.0] * 50
    same = prediction_powered_mean(human, human, [1.0] * 10_000)
    assert (same.value, same.interval, same.tuning) == (0.5, wilson(50, 100), 0)
    assert same.warnings == ("few corrections",)


def test_few_corrections_are_told() -> None:
    others = [1.0, 0.0] * 500
    assert prediction_powered_mean(*from_counts(40, 2, 2, 40), others).warnings == ("few corrections",)
    assert prediction_powered_mean(*from_counts(40, 3, 2, 40), others).warnings == ()


def test_groups_that_contradict_give_no_certainty() -> None:
    # The AI gives label 1 to six in ten of the labelled items, but to none of 5,000 others: θ would be below 0.
    rate = prediction_powered_mean(*from_counts(50, 0, 40, 60), [0.0] * 5000)
    assert rate.warnings == ("contradictory",)
    assert rate.interval == Interval(0, 1)


def test_prediction_powered_inference_halves_the_interval() -> None:
    # Where the AI's labels are of no use, four times as many labels are needed.
    assert prediction_powered_mean(*from_counts(20, 30, 30, 20), [1.0, 0.0] * 500).to_halve == 300
    # Elsewhere more than that, since the AI's labels stay as many.
    counts, others = (48, 12, 8, 32), [1.0] * 580 + [0.0] * 420
    rate = prediction_powered_mean(*from_counts(*counts), others)
    half = (rate.interval.high - rate.interval.low) / 2
    assert rate.to_halve is not None
    assert 300 < rate.to_halve < 400
    for factor in (4, 5):
        more = prediction_powered_mean(*from_counts(*(factor * count for count in counts)), others)
        assert (more.interval.high - more.interval.low <= half) == (factor == 5)
    # With no end of the AI's labels, four times as many again.
    endless = prediction_powered_mean(*from_counts(*counts), others * 1000).to_halve
    assert endless == pytest.approx(300, abs=3)


@pytest.mark.parametrize(
    ("human", "ai", "ai_only", "complaint"),
    [
        ([], [], [1], "no human label"),
        ([1, 0], [1], [1], "2 human labels, but 1"),
        ([1, 0], [1, 0], [], "no AI-only label"),
        ([1, math.nan], [1, 0], [1], "human label at place 1 is nan"),
        ([1, 0], [1, -1], [1], "AI label at place 1 is -1"),
        ([1, 0], [1, 0], [7], "AI-only label at place 0 is 7"),
    ],
)
def test_prediction_powered_inference_refuses(
    human: list[float], ai: list[float], ai_only: list[float], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        prediction_powered_mean(human, ai, ai_only)


def test_rogan_and_gladen_by_hand() -> None:
    # t = 0.12, Se = 0.9, Sp = 0.95: (0.12 + 0.95 - 1) / 0.85 = 0.07 / 0.85.
    rate = rogan_gladen(120, 1000, true_positives=45, positives=50, true_negatives=95, negatives=100)
    assert rate.value == pytest.approx(0.07 / 0.85)
    assert (rate.sensitivity, rate.specificity, rate.reason) == (0.9, 0.95, None)
    # With pseudo-counts t = 121.9207/1003.8415 = 0.1214541, Se = 46/52 = 0.8846154, Sp = 96/102 = 0.9411765:
    # p = 0.0626306/0.8257919 = 0.0758430. Of p·Se(1 - Se)/52 = 0.000148873 and (1 - p)·Sp(1 - Sp)/102 = 0.000501612
    # comes the shift 2 · 3.841459 · (0.000148873 - 0.000501612) = -0.00271007; V = 0.000106294 +
    # 0.0758430 · 0.000148873 + 0.9241570 · 0.000501612 = 0.000581154; 1.959964 · √V / 0.8257919 = 0.0572167.
    assert rate.interval == pytest.approx(
        (0.0758430 - 0.0027101 - 0.0572167, 0.0758430 - 0.0027101 + 0.0572167), abs=1e-5
    )


@pytest.mark.parametrize(
    ("herd", "known", "published"),
    [((45, 150), (96, 89), (22, 14, 32)), ((80, 210), (60, 90), (56, 43, 70)), ((100, 189), (65, 95), (80, 68, 92))],
)
def test_rogan_and_gladen_of_published_herds(
    herd: tuple[int, int], known: tuple[int, int], published: tuple[int, int, int]
) -> None:
    # The examples of epi.prev in R's package epiR, whose sensitivity and specificity are known; its intervals are
    # Blaker's, a little wider than this one.
    many = 10_000_000
    found, passed = (percent * many for percent in known)
    rate = rogan_gladen(*herd, true_positives=found, positives=100 * many, true_negatives=passed, negatives=100 * many)
    assert rate.value is not None
    assert rate.interval is not None
    assert round(100 * rate.value) == published[0]
    assert [100 * bound for bound in rate.interval] == pytest.approx(published[1:], abs=1)


def test_rogan_and_gladen_from_a_validation_agree_with_lang_and_reiczigel() -> None:
    # prevSeSp(45/150, 150, 0.96, 100, 0.89, 200) of R's package asht.
    rate = rogan_gladen(45, 150, true_positives=96, positives=100, true_negatives=178, negatives=200)
    independent = [[(place < part, place) for place in range(n)] for part, n in ((45, 150), (96, 100), (178, 200))]
    for found in (rate, clustered_rogan_gladen(*independent)):
        assert found.value == pytest.approx(0.223529, abs=1e-6)
        assert found.interval == pytest.approx((0.1296519, 0.3226727), abs=1e-6)


def test_a_perfect_labeler_needs_no_correction_but_is_not_known_to_be_perfect() -> None:
    few = rogan_gladen(300, 1000, true_positives=20, positives=20, true_negatives=40, negatives=40)
    many = rogan_gladen(300, 1000, true_positives=20_000, positives=20_000, true_negatives=40_000, negatives=40_000)
    assert few.value == many.value == pytest.approx(0.3)
    assert many.interval == pytest.approx(wilson(300, 1000), abs=0.001)
    assert few.interval is not None
    assert many.interval is not None
    assert few.interval.high - few.interval.low > 1.7 * (many.interval.high - many.interval.low)


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ((9, 10, 1, 10), "uninformative"),  # 0.9 + 0.1 is 1, whatever rounding says
        ((7, 10, 3, 10), "uninformative"),
        ((1, 10, 1, 10), "uninformative"),
        ((0, 0, 9, 10), "too few"),
        ((9, 10, 0, 0), "too few"),
    ],
)
def test_rogan_and_gladen_are_undefined(counts: tuple[int, int, int, int], reason: str) -> None:
    true_positives, positives, true_negatives, negatives = counts
    rate = rogan_gladen(
        3, 10, true_positives=true_positives, positives=positives, true_negatives=true_negatives, negatives=negatives
    )
    assert (rate.value, rate.interval, rate.reason) == (None, None, reason)


def test_a_corrected_rate_stays_within_0_and_1() -> None:
    low = rogan_gladen(80, 1000, true_positives=45, positives=50, true_negatives=90, negatives=100)
    assert low.value == 0
    assert low.n == 1000
    assert low.interval is not None
    assert low.interval.low == 0 < low.interval.high < 0.1
    high = rogan_gladen(920, 1000, true_positives=45, positives=50, true_negatives=90, negatives=100)
    assert high.value == 1
    assert high.interval is not None
    assert 0.9 < high.interval.low < high.interval.high == 1
    # A tenth of the negatives should be flagged, but a hundredth of all is.
    assert rogan_gladen(10, 1000, true_positives=45, positives=50, true_negatives=90, negatives=100) == CorrectedRate(
        None, None, 0.9, 0.9, "contradictory", 1000
    )
    hardly = rogan_gladen(500, 1000, true_positives=1, positives=1, true_negatives=50, negatives=1000)
    assert hardly.interval == Interval(0, 1)


def test_the_corrected_interval_covers_a_rare_rate() -> None:
    # The plain delta method covers 70% here: most samples show no false alarm.
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(500):
        flagged = int(generator.binomial(3000, 0.02 * 0.9 + 0.98 * 0.02))
        hits, rejections = int(generator.binomial(60, 0.9)), int(generator.binomial(60, 0.98))
        rate = rogan_gladen(flagged, 3000, true_positives=hits, positives=60, true_negatives=rejections, negatives=60)
        assert rate.interval is not None
        covered += rate.interval.low <= 0.02 <= rate.interval.high
    assert covered / 500 > 0.94


def test_rogan_and_gladen_halve_the_interval_where_labels_are_what_is_lacking() -> None:
    def rate(factor: int, n: int) -> CorrectedRate:
        return rogan_gladen(
            3 * n // 10,
            n,
            true_positives=18 * factor,
            positives=20 * factor,
            true_negatives=36 * factor,
            negatives=40 * factor,
        )

    made = rate(1, 100_000)
    assert made.interval is not None
    assert made.to_halve is not None
    # Less than fourfold the 60 labels, as pseudo-counts widen the interval from few of them.
    assert 120 < made.to_halve < 180
    for factor, enough in ((3, False), (4, True)):
        more = rate(factor, 100_000).interval
        assert more is not None
        assert (more.high - more.low <= (made.interval.high - made.interval.low) / 2) == enough
    assert rate(100, 100).to_halve is None  # 100 items are known too badly themselves


def test_rogan_and_gladen_from_clusters_of_one_item_is_that_from_counts() -> None:
    names = iter(range(1150))
    flagged, found, passed = (
        [(place < part, next(names)) for place in range(whole)] for part, whole in ((120, 1000), (45, 50), (95, 100))
    )
    rate = clustered_rogan_gladen(flagged, found, passed)
    assert rate == rogan_gladen(120, 1000, true_positives=45, positives=50, true_negatives=95, negatives=100)


def test_rogan_and_gladen_from_clusters_by_hand() -> None:
    # Clusters of five equal items: of 40 the labeler flags 12; of 10 positive ones it finds 9, of 20 others it lets 18
    # pass. k such clusters are worth (k − 1)·(z/t)² items: 39 · (1.959964/2.022691)² = 36.6186,
    # 9 · (1.959964/2.262157)² = 6.75606 and 19 · (1.959964/2.093024)² = 16.66101. With pseudo-counts
    # t = 0.318989, Se = 0.808635, Sp = 0.857130: p = 0.176119/0.665765 = 0.264536. The parts of Se and Sp are
    # 0.00467511 and 0.00482630, the shift 2 · 3.841459 · (0.00467511 − 0.00482630) = −0.00116155, V = 0.0101554, and
    # 1.959964 · √V / 0.665765 = 0.296672.
    def clusters(hits: int, k: int) -> list[tuple[bool, int]]:
        return [(place < hits, place) for place in range(k) for _ in range(5)]

    rate = clustered_rogan_gladen(clusters(12, 40), clusters(9, 10), clusters(18, 20))
    assert rate.value == pytest.approx((0.3 + 0.9 - 1) / (0.9 + 0.9 - 1))
    assert (rate.sensitivity, rate.specificity, rate.n) == (0.9, 0.9, 200)
    assert rate.interval == pytest.approx((0, 0.264536 - 0.001162 + 0.296672), abs=1e-5)
    plain = rogan_gladen(60, 200, true_positives=45, positives=50, true_negatives=90, negatives=100).interval
    assert plain is not None
    assert plain.high < 0.37  # as if all were independent


def test_rogan_and_gladen_from_one_cluster_knows_nothing_of_others() -> None:
    flagged = [(place % 2 == 0, place) for place in range(100)]
    rate = clustered_rogan_gladen(flagged, [(True, "p")] * 20, [(True, "q")] * 20)
    assert rate.value == 0.5
    assert rate.interval == Interval(0, 1)
    assert clustered_rogan_gladen(flagged, [], [(True, "q")]).reason == "too few"


@pytest.mark.parametrize(("flagged", "positives"), [(-1, 5), (11, 5), (3, 2)])
def test_rogan_and_gladen_refuse_impossible_counts(flagged: int, positives: int) -> None:
    with pytest.raises(ValueError, match=f"{flagged} of 10|3 of {positives}"):
        rogan_gladen(flagged, 10, true_positives=3, positives=positives, true_negatives=4, negatives=5)
