import math
import random
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from constitutional.base.agreement import (
    Majority,
    Metric,
    RaterAgreement,
    Votes,
    Weights,
    _expectation_maximisation,
    cohen_kappa,
    dawid_skene,
    gwet_ac1,
    krippendorff_alpha,
    light_kappa,
    majority,
    pairwise_agreement,
)
from constitutional.base.stats import wilson

ALPHA = partial(krippendorff_alpha, seed=0)
AC1 = partial(gwet_ac1, seed=0)
KAPPA = partial(cohen_kappa, first="a", second="b", seed=0)
CHANCE_CORRECTED = pytest.mark.parametrize("statistic", [ALPHA, AC1, KAPPA], ids=["alpha", "AC1", "kappa"])


def by_item(*raters: str) -> dict[int, dict[str, int]]:
    """A row of digits for each rater, a digit for each item, `.` for a missing vote. Raters are called a, b, c, …"""
    return {
        item: {name: int(value) for name, value in zip("abcdefgh", column, strict=False) if value != "."}
        for item, column in enumerate(zip(*raters, strict=True), start=1)
    }


def from_table(table: list[list[int]]) -> dict[int, dict[str, int]]:
    """The votes of two raters from how often they chose each pair of values, which are 0, 1, 2 and so on."""
    pairs = [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]
    return {item: {"a": first, "b": second} for item, (first, second) in enumerate(pairs)}


# Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", sections C and D: four observers, 12 units. Gwet's
# package irrCAC (cac.raw4raters) has the same data.
KRIPPENDORFF = by_item("123321412...", "1233224125.3", ".3332342251.", "12332441251.")
# Eight items, three raters; nobody chose 3. References: krippendorff 0.9, irrCAC 0.4.4, scikit-learn 1.9.
SCALE = by_item("124.512.", "2241414.", "1.5.5125")
# Cohen (1960), diagnoses of 200 patients.
COHEN = from_table([[88, 14, 18], [10, 40, 10], [2, 6, 12]])


@pytest.mark.parametrize(
    ("votes", "metric", "expected"),
    [
        (KRIPPENDORFF, "nominal", 0.743),  # the three that the paper prints
        (KRIPPENDORFF, "ordinal", 0.815),
        (KRIPPENDORFF, "interval", 0.849),
        (KRIPPENDORFF, "nominal", 0.74342),  # the others are the package's
        (KRIPPENDORFF, "ordinal", 0.81539),
        (KRIPPENDORFF, "interval", 0.84911),
        (SCALE, "nominal", 0.40187),
        (SCALE, "ordinal", 0.82770),
        (SCALE, "interval", 0.83333),
    ],
)
def test_alpha_agrees_with_krippendorff(votes: Votes, metric: Metric, expected: float) -> None:
    value = ALPHA(votes, metric).value
    assert value == pytest.approx(expected, abs=0.0005 if expected == round(expected, 3) else 0.00001)


def test_alpha_of_two_raters_by_hand() -> None:
    # Votes 11, 11, 12, 22: coincidences o(1,1) = 4, o(1,2) = o(2,1) = 1, o(2,2) = 2; n = 8, n(1) = 5, n(2) = 3.
    # α = 1 - 7 · 2 / (2 · 5 · 3) = 8/15.
    votes = by_item("1112", "1122")
    assert ALPHA(votes).value == pytest.approx(8 / 15)
    # With two values every metric is the nominal one.
    assert ALPHA(votes, "ordinal").value == pytest.approx(8 / 15)
    assert ALPHA(votes, "interval").value == pytest.approx(8 / 15)


@pytest.mark.parametrize(
    ("votes", "categories", "expected"),
    [
        (from_table([[118, 5], [2, 0]]), None, 0.94078),  # Gwet (2002): AC1 0.9408 where κ is -0.0234
        (KRIPPENDORFF, None, 0.77544),  # Gwet (2014), as in irrCAC's documentation
        (SCALE, None, 0.41104),
        (SCALE, 5, 0.45532),
    ],
)
def test_ac1_agrees_with_gwet(votes: Votes, categories: int | None, expected: float) -> None:
    assert AC1(votes, categories=categories).value == pytest.approx(expected, abs=0.00001)


@pytest.mark.parametrize(
    ("votes", "weights", "expected"),
    [
        (COHEN, "nominal", 0.29 / 0.59),  # p_o = 0.70, p_e = 0.6 · 0.5 + 0.3 · 0.3 + 0.1 · 0.2 = 0.41; 0.492 in print
        (COHEN, "linear", 0.47368),
        (COHEN, "quadratic", 0.45455),
        (from_table([[118, 5], [2, 0]]), "nominal", -0.02339),
        (SCALE, "nominal", 0.33333),  # steps of 1, 2, 4, 5 are not equal
        (SCALE, "linear", 0.57143),
        (SCALE, "quadratic", 0.73913),
    ],
)
def test_kappa_agrees_with_cohen(votes: Votes, weights: Weights, expected: float) -> None:
    assert KAPPA(votes, weights=weights).value == pytest.approx(expected, abs=0.00001)


def test_kappa_looks_at_the_items_of_both_raters_only() -> None:
    assert KAPPA(SCALE).n == 6
    more: Votes = {**SCALE, "only a": {"a": 1, "c": 2}, "neither": {"c": 5}, "nobody": {}}
    assert KAPPA(more).value == KAPPA(SCALE).value
    with pytest.raises(ValueError, match=r"'a'.*two different"):
        cohen_kappa(SCALE, "a", "a", seed=0)


def test_lights_kappa_is_the_mean_over_pairs() -> None:
    # The data set `anxiety` of R's package irr; κ of its pairs is 0.1195, −0.1656 and −0.0063.
    anxiety = by_item("33345523522615221243", "36462424332333221334", "21443216111233113322")
    kappa, pairs = light_kappa(anxiety, seed=0)
    assert (pairs, kappa.n) == (3, 20)
    assert kappa.value == pytest.approx((0.11950 - 0.16564 - 0.00629) / 3, abs=0.00001)
    assert kappa.interval is not None
    assert kappa.interval.low < -0.01748 < kappa.interval.high
    # Of two raters it is Cohen's.
    assert light_kappa(COHEN, seed=0) == (cohen_kappa(COHEN, "a", "b", seed=0), 1)


def test_lights_kappa_leaves_out_pairs_that_share_few_items_or_do_not_vary() -> None:
    # a and b: votes 11 four times, 12, 21, 22 four times: p_o = 0.8, p_e = 0.5, κ = 0.6. c shares nine items with each,
    # d and e say 3 on all twelve that they share.
    votes = by_item(
        "1111122222............", "1111212222............", "222222222.............", ".........." + "3" * 12
    )
    for item in range(11, 23):
        votes[item]["e"] = 3
    kappa, pairs = light_kappa(votes, seed=0)
    assert kappa.value == pytest.approx(0.6)
    assert (kappa.n, pairs) == (10, 1)
    assert light_kappa(by_item("121212121", "121212121"), seed=0) == (
        RaterAgreement(None, None, "few shared", 0, 0.0),
        0,
    )
    assert light_kappa(by_item("1" * 10, "1" * 10), seed=0) == (RaterAgreement(None, None, "unanimous", 10, 0.0), 0)
    assert light_kappa(by_item("1.", ".1"), seed=0) == (RaterAgreement(None, None, "too few", 0, 0.0), 0)


def test_pairwise_agreement_by_hand() -> None:
    # Items agree by 1 of 1, 1 of 3, 3 of 6 (votes 1 1 1 2) and 0 of 1; one vote says nothing. The mean is 11/24.
    votes = by_item("1112.", "11132", ".21..", "..2..")
    votes[5] = {"a": 9}
    agreement = pairwise_agreement(votes)
    assert agreement.value == pytest.approx((1 + 1 / 3 + 1 / 2 + 0) / 4)
    assert agreement.n == 4
    assert pairwise_agreement(KRIPPENDORFF).value == pytest.approx(0.81818, abs=0.00001)  # irrCAC's p_a


def test_raw_agreement_of_all_has_a_width() -> None:
    agreement = pairwise_agreement(from_table([[20]]))
    assert agreement == RaterAgreement(1.0, wilson(20, 20), None, 20, 0.0)
    same_prompt = pairwise_agreement(from_table([[20]]), clusters=dict.fromkeys(range(20), "p"))
    assert same_prompt.interval == (0, 1)


@CHANCE_CORRECTED
def test_unanimous_votes_are_undefined(statistic: Callable[[Votes], RaterAgreement]) -> None:
    votes: dict[object, dict[str, str]] = {item: {"a": "yes", "b": "yes"} for item in range(30)}
    assert statistic(votes) == RaterAgreement(None, None, "unanimous", 30, 0.0)
    # A lone vote says nothing about agreement.
    votes["lone"] = {"a": "no"}
    assert statistic(votes) == RaterAgreement(None, None, "unanimous", 30, 0.0)


@CHANCE_CORRECTED
@pytest.mark.parametrize("votes", [{}, {"x": {}}, {"x": {"a": 1}, "y": {"b": 2}}], ids=["none", "empty", "single"])
def test_without_pairs_nothing_is_defined(statistic: Callable[[Votes], RaterAgreement], votes: Votes) -> None:
    assert statistic(votes) == RaterAgreement(None, None, "too few", 0, 0.0)
    assert pairwise_agreement(votes) == RaterAgreement(None, None, "too few", 0, 0.0)


@CHANCE_CORRECTED
def test_agreement_without_any_disagreement_has_no_interval(statistic: Callable[[Votes], RaterAgreement]) -> None:
    assert statistic(from_table([[20, 0], [0, 20]])) == RaterAgreement(1.0, None, "no disagreement", 40, 0.0)


@CHANCE_CORRECTED
def test_few_clusters_give_no_interval(statistic: Callable[[Votes], RaterAgreement]) -> None:
    agreement = statistic(from_table([[4, 1], [1, 3]]))
    assert agreement.value is not None
    assert (agreement.interval, agreement.reason) == (None, "few clusters")


@pytest.mark.parametrize(
    ("weights", "error"),
    [("nominal", 0.0510), ("linear", 0.0544), ("quadratic", 0.0665)],  # statsmodels 0.15, the large-sample formula
)
def test_the_bootstrap_is_as_wide_as_the_formula(weights: Weights, error: float) -> None:
    agreement = KAPPA(COHEN, weights=weights)
    assert agreement.interval is not None
    assert agreement.value is not None
    assert agreement.interval.low < agreement.value < agreement.interval.high
    assert agreement.interval.high - agreement.interval.low == pytest.approx(2 * 1.96 * error, rel=0.08)


def four_raters() -> dict[int, dict[str, int]]:
    """150 items, three categories, a vote in 85% of cases, of raters who are right in 80%."""
    generator = random.Random(4)
    votes = {}
    for item in range(150):
        true = generator.randrange(3)
        row = [
            (true if generator.random() < 0.7 else generator.randrange(3)) if generator.random() < 0.85 else None
            for _ in range(4)
        ]
        votes[item] = {rater: value for rater, value in zip("abcd", row, strict=True) if value is not None}
    return votes


@pytest.mark.parametrize(
    ("statistic", "votes", "value", "error"),
    [  # irrCAC 0.4.4 (PyPI): coefficient, and standard error by the large-sample formula
        (AC1, COHEN, 0.57597173, 0.04812),
        (ALPHA, COHEN, 0.48846154, 0.05241),
        (AC1, four_raters(), 0.5006166, 0.04293),
        (ALPHA, four_raters(), 0.5103696, 0.04006),
    ],
)
def test_the_bootstrap_of_ac1_and_alpha_is_as_wide_as_irrcac_s_errors(
    statistic: Callable[[Votes], RaterAgreement], votes: Votes, value: float, error: float
) -> None:
    agreement = statistic(votes)
    assert agreement.value == pytest.approx(value, abs=1e-7)
    assert agreement.interval is not None
    assert agreement.interval.low < value < agreement.interval.high
    assert agreement.interval.high - agreement.interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_the_bootstrap_draws_clusters() -> None:
    # Ten copies of each of 20 items, as if an item's prompt had been asked ten times, say no more than the 20 items.
    single = from_table([[8, 2], [3, 7]])
    copies = {(item, copy): by_rater for item, by_rater in single.items() for copy in range(10)}
    clusters = {(item, copy): item for item, copy in copies}
    assert KAPPA(copies, clusters=clusters).interval == pytest.approx(KAPPA(single).interval)
    narrow = KAPPA(copies).interval
    wide = KAPPA(single).interval
    assert narrow is not None
    assert wide is not None
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)
    with pytest.raises(ValueError, match=r"\(19, 9\).*cluster"):
        KAPPA(copies, clusters={key: cluster for key, cluster in clusters.items() if key != (19, 9)})


def test_the_seed_decides() -> None:
    assert krippendorff_alpha(COHEN, seed=1) == krippendorff_alpha(COHEN, seed=1)
    assert krippendorff_alpha(COHEN, seed=1).interval != krippendorff_alpha(COHEN, seed=2).interval


def test_resamples_without_the_rare_value_are_not_left_out_in_silence() -> None:
    # One item in 50 disagrees: (1 - 1/50)^50 = 36.4% of resamples lack it, are unanimous, and have no α.
    rare = from_table([[49, 1], [0, 0]])
    agreement = ALPHA(rare)
    assert agreement.value == pytest.approx(0, abs=0.02)
    assert (agreement.interval, agreement.reason) == (None, "undefined resamples")
    assert agreement.undefined == pytest.approx(0.364, abs=0.04)
    # Gwet's coefficient is defined in all of them, as the categories are known.
    high = AC1(rare)
    assert high.undefined == 0
    assert high.interval is not None
    assert high.interval.high == 1
    assert 0.9 < high.interval.low < 0.97


def test_a_few_undefined_resamples_widen_the_interval() -> None:
    # Four items in 50 disagree: (1 - 4/50)^50 = 1.5% of resamples have no α. They count as beyond both ends.
    agreement = ALPHA(from_table([[46, 2], [2, 0]]))
    assert agreement.undefined == pytest.approx(0.0155, abs=0.006)
    assert agreement.interval is not None
    # One disagreement gives the highest α, 1 - 99 · 2 / (2 · 99) = 0, to (1 - 4/50)^49 · 4 = 6.7% of resamples.
    assert agreement.interval.high == 0
    # α = 1 - 99 / (100 - k) with k disagreements. 4.4% of resamples have more than 7, 1.7% more than 8 and 0.6% more
    # than 9: the end beyond which 2.5% lie is at 8, that beyond which 2.5% - 1.5% lie is further out.
    assert agreement.interval.low < 1 - 99 / (100 - 8)


@pytest.mark.parametrize("value", [None, math.nan])
def test_a_missing_vote_is_left_out_not_given(value: object) -> None:
    for function in (ALPHA, AC1, KAPPA, pairwise_agreement, majority, dawid_skene):
        with pytest.raises(ValueError, match=r"'q7'.*'b'.*leave"):
            function({"q7": {"a": 1, "b": value}})


@pytest.mark.parametrize("value", ["3", math.inf])
def test_a_scale_needs_numbers(value: object) -> None:
    votes = {"q7": {"a": 1, "b": value}}
    with pytest.raises(ValueError, match=r"'q7'.*'b'.*numbers"):
        ALPHA(votes, "ordinal")
    with pytest.raises(ValueError, match=r"'q7'.*'b'.*numbers"):
        KAPPA(votes, weights="linear")


def test_there_are_as_many_categories_as_were_chosen() -> None:
    with pytest.raises(ValueError, match="3 categories, but 4"):
        AC1(SCALE, categories=3)


def test_a_majority_keeps_ties() -> None:
    votes = {"x": {"a": "A", "b": "B", "c": "A", "d": "A"}, "y": {"a": "B", "b": "A"}, "z": {}}
    assert majority(votes) == {
        "x": Majority(("A",), {"A": 0.75, "B": 0.25}),
        "y": Majority(("B", "A"), {"B": 0.5, "A": 0.5}),
    }


# Dawid and Skene (1979), table 1: a patient's grades by observer 1 (three times) and by observers 2 to 5.
ANAESTHETISTS = """
1111111 3334334 1122122 2223121 2223222 2223322 1222111 3333433 2222223 2322223 4444444 2223343 1111111 2223212 1211111
1112111 1111111 1111111 2222221 2221322 2222222 2222221 2223222 2212222 1111111 1111111 2322222 1111111 1111111 1121121
1111111 3333233 1111111 2222222 2223232 4334343 2212232 2323233 3333432 1111111 1111111 1212111 2322222 1211111 2222222
""".split()


def test_dawid_and_skenes_anaesthetists() -> None:
    counts = np.zeros((45, 5, 4))
    for patient, grades in enumerate(ANAESTHETISTS):
        for place, grade in enumerate(grades):
            counts[patient, max(0, place - 2), int(grade) - 1] += 1
    fit = _expectation_maximisation(counts, smoothing=1e-9, tolerance=1e-9, at_most=1000)
    assert fit.converged
    # The paper's estimates, to its two decimals.
    assert fit.priors.round(2).tolist() == [0.40, 0.42, 0.11, 0.07]
    assert fit.confusion[0].round(2).tolist() == [
        [0.89, 0.11, 0, 0],
        [0.07, 0.88, 0.05, 0],
        [0, 0.34, 0.66, 0],
        [0, 0, 0.56, 0.44],
    ]
    # More decimals, from the equations without smoothing or logarithms.
    assert fit.log_likelihood == pytest.approx(-192.8909, abs=1e-4)
    assert fit.confusion[2] == pytest.approx(
        np.array([[1, 0, 0, 0], [0.1064, 0.7883, 0.1053, 0], [0, 0.4037, 0.1988, 0.3976], [0, 0, 0.6667, 0.3333]]),
        abs=0.0001,
    )
    assert fit.posteriors[37] == pytest.approx([0, 0.0212, 0.9788, 0], abs=0.0001)  # patient 38
    assert fit.posteriors[1].argmax() == 3  # patient 2 is of grade 4, though most said 3


def graded() -> dict[tuple[int, int], dict[str, int]]:
    """Four raters and three categories; each item stands there three times, its categories turned, so that the priors
    are a third each whatever smooths them."""
    generator = random.Random(15)
    votes: dict[tuple[int, int], dict[str, int]] = {}
    for item in range(60):
        true = generator.randrange(3)
        base = {
            rater: true if generator.random() < p else (true + 1 + (generator.random() < 0.3)) % 3
            for rater, p in {"u": 0.9, "v": 0.7, "w": 0.6, "x": 0.8}.items()
            if generator.random() < 0.8
        }
        votes |= {(item, turn): {rater: (value + turn) % 3 for rater, value in base.items()} for turn in range(3)}
    return votes


@pytest.mark.parametrize(
    ("smoothing", "errors", "posteriors"),
    [  # crowd-kit 1.4.2, DawidSkene(n_iter=5000, tol=1e-12)
        (1e-9, [0.599752, 0.241661, 0.158587], {0: [0.909758, 0, 0.090242], 3: [0.174739, 0.825261, 0]}),
        # As it is used. The library has no smoothing; nine items of known categories (true_labels), on which each
        # rater says each category once of each, are the same.
        (1, [0.591574, 0.220957, 0.187469], {0: [0.490615, 0.360717, 0.148668], 3: [0.135028, 0.846803, 0.018169]}),
    ],
)
def test_dawid_and_skene_agree_with_crowd_kit(
    smoothing: float, errors: list[float], posteriors: dict[int, list[float]]
) -> None:
    votes = graded()
    assert votes[0, 0] == {"u": 0, "v": 2, "x": 1}
    assert votes[3, 0] == {"u": 1, "v": 1, "w": 0}
    estimate = dawid_skene(votes, smoothing=smoothing, tolerance=1e-12, at_most=5000)
    assert [estimate.confusion["w"][0][chosen] for chosen in range(3)] == pytest.approx(errors, abs=1e-5)
    for item, expected in posteriors.items():
        assert [estimate.posteriors[item, 0][category] for category in range(3)] == pytest.approx(expected, abs=1e-5)
    assert [estimate.priors[category] for category in range(3)] == pytest.approx([1 / 3] * 3)


def test_dawid_and_skene_find_out_who_errs() -> None:
    # Raters a and b are right in 95% of cases, c in 60%, and d says the opposite in 90%.
    generator = random.Random(5)
    right = {"a": 0.95, "b": 0.95, "c": 0.6, "d": 0.1}
    truth = {item: generator.random() < 0.3 for item in range(400)}
    votes = {
        item: {rater: true == (generator.random() < p) for rater, p in right.items() if generator.random() < 0.9}
        for item, true in truth.items()
    }
    estimate = dawid_skene(votes)
    assert estimate.converged
    assert estimate.priors[True] == pytest.approx(0.3, abs=0.06)
    for rater, p in right.items():
        assert estimate.confusion[rater][False][False] == pytest.approx(p, abs=0.08)
    correct = sum(estimate.posteriors[item][true] > 0.5 for item, true in truth.items() if votes[item])
    by_majority = sum(majority(votes)[item].values == (true,) for item, true in truth.items() if votes[item])
    assert correct > 0.95 * sum(map(bool, votes.values())) > by_majority


def test_dawid_and_skene_never_divide_by_0() -> None:
    # One vote, a rater who is alone, an item without votes, and a tie, which stays one.
    estimate = dawid_skene({"x": {"a": "A"}, "y": {"b": "A", "c": "B"}, "z": {}})
    assert set(estimate.posteriors) == {"x", "y"}
    rows = [*estimate.posteriors.values(), estimate.priors]
    rows += [row for matrix in estimate.confusion.values() for row in matrix.values()]
    assert all(sum(row.values()) == pytest.approx(1) and all(0 <= p <= 1 for p in row.values()) for row in rows)
    tied = dawid_skene({item: {"a": "A", "b": "B"} for item in range(5)})
    assert tied.posteriors[3] == pytest.approx({"A": 0.5, "B": 0.5})
    unanimous = dawid_skene({item: {"a": "A", "b": "A"} for item in range(5)})
    assert unanimous.posteriors[0] == {"A": 1.0}
    # So many votes that the product of their probabilities is below the least float.
    many = {item: {rater: (item + (rater % 3 == 0)) % 2 for rater in range(3000)} for item in range(4)}
    assert dawid_skene(many).posteriors[1][1] == pytest.approx(1)


def test_dawid_and_skene_say_when_they_have_not_converged() -> None:
    estimate = dawid_skene(KRIPPENDORFF, at_most=2)
    assert (estimate.iterations, estimate.converged) == (2, False)
    assert dawid_skene(KRIPPENDORFF) == dawid_skene(KRIPPENDORFF)


def test_dawid_and_skene_need_votes_and_smoothing() -> None:
    with pytest.raises(ValueError, match="no vote"):
        dawid_skene({"x": {}})
    with pytest.raises(ValueError, match="smoothing is 0"):
        dawid_skene(SCALE, smoothing=0)
    with pytest.raises(ValueError, match="At most 0"):
        dawid_skene(SCALE, at_most=0)
