"""Several raters' votes as one probability."""

import random

import pytest

from constitutional.base.records import Verdict
from constitutional.judging.aggregation import LEAST_VOTES, estimated, too_few

CATEGORIES = ("a", "b", "tie")


def verdict(comparison: str, rater: str, choice: str, principle: str | None = None) -> Verdict:
    return Verdict.model_validate(
        {"comparison": comparison, "rater": rater, "choice": choice, "principle": principle, "strength": 1}
    )


def three_raters(items: int = 120) -> list[Verdict]:
    """Of raters who are right in 90%, 75% and 60% of cases; every tenth vote is a tie."""
    generator = random.Random(3)
    votes = []
    for item in range(items):
        truth = generator.choice("ab")
        for rater, right in (("x", 0.9), ("y", 0.75), ("z", 0.6)):
            choice = truth if generator.random() < right else "ab".replace(truth, "")
            votes.append(verdict(f"item {item}", rater, choice if generator.random() > 0.1 else "both_bad"))
    return votes


def plainly(votes: list[Verdict]) -> dict[str, float]:
    """The paper's equations 2.3 to 2.5 in products, with one vote added to each cell."""
    counted: dict[str, dict[str, str]] = {}
    for row in votes:
        counted.setdefault(row.comparison, {})[row.rater] = row.choice if row.choice in "ab" else "tie"
    truth = {
        item: {c: sum(v == c for v in by_rater.values()) / len(by_rater) for c in CATEGORIES}
        for item, by_rater in counted.items()
    }
    for _ in range(500):
        prior = {c: (1 + sum(row[c] for row in truth.values())) / (3 + len(truth)) for c in CATEGORIES}
        error = {
            (rater, j, k): 1 + sum(truth[item][j] for item, by in counted.items() if by[rater] == k)
            for rater in "xyz"
            for j in CATEGORIES
            for k in CATEGORIES
        }
        totals = {(rater, j): sum(error[rater, j, k] for k in CATEGORIES) for rater in "xyz" for j in CATEGORIES}
        for item, by_rater in counted.items():
            joint = dict(prior)
            for rater, vote in by_rater.items():
                for j in CATEGORIES:
                    joint[j] *= error[rater, j, vote] / totals[rater, j]
            truth[item] = {c: value / sum(joint.values()) for c, value in joint.items()}
    return {
        item: 0.5 if max(row, key=row.__getitem__) == "tie" else row["a"] + row["tie"] / 2
        for item, row in truth.items()
    }


def test_the_probability_is_the_posterior_by_the_papers_equations() -> None:
    votes = three_raters()
    estimates = estimated(votes)
    assert estimates == pytest.approx(plainly(votes), abs=1e-4)
    assert any(0.5 < p < 0.95 for p in estimates.values())  # soft labels, not choices


def test_a_tie_that_is_likeliest_leaves_no_side() -> None:
    votes = [
        *three_raters(),
        *(verdict("even", rater, choice) for rater, choice in zip("xyz", ("tie", "both_bad", "tie"), strict=True)),
    ]
    assert estimated(votes)["even"] == 0.5


def test_what_two_people_did_not_both_see_is_not_estimated() -> None:
    votes = [*three_raters(), verdict("alone", "x", "a"), verdict("skipped", "x", "b"), verdict("skipped", "y", "skip")]
    assert {"alone", "skipped"}.isdisjoint(estimated(votes))


def test_a_verdict_by_a_principle_is_an_item_of_its_own_which_counts_where_nobody_judged_in_all() -> None:
    votes = three_raters()
    for rater in "xyz":
        votes += [verdict("both", rater, "a"), verdict("both", rater, "b", "calm")]
        votes += [verdict("by principles", rater, "a", "brief"), verdict("by principles", rater, "b", "calm")]
    found = estimated(votes)
    assert found["both"] > 0.9  # in all; by the principle it is surely b
    assert found["by principles"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("raters", "items", "enough"), [("xyz", LEAST_VOTES, True), ("xyz", LEAST_VOTES - 1, False), ("xy", 300, False)]
)
def test_it_needs_three_raters_with_a_hundred_shared_votes(raters: str, items: int, enough: bool) -> None:
    votes = [row for row in three_raters(items) if row.rater in raters]
    assert (too_few(votes) is None) == enough


def test_without_votes_there_is_nothing_to_estimate_and_nothing_to_say() -> None:
    assert estimated([verdict("x", "ann", "skip")]) == {}
    assert too_few([]) is None
