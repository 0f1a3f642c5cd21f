"""One probability for a comparison on which several people voted, by Dawid and Skene's estimate of each rater's errors.

Dawid and Skene (1979), "Maximum likelihood estimation of observer error-rates using the EM algorithm". A rater who
often contradicts the others counts for less, and a conflict between two raters is decided by who of them errs less.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Final

from constitutional.base.agreement import dawid_skene
from constitutional.base.records import Verdict

LEAST_RATERS: Final = 3
"""The errors of two raters cannot be told apart by votes alone."""
LEAST_VOTES: Final = 100
"""Votes that each of three raters needs on comparisons that others voted on too. In simulations with raters who are
right in 90%, 75% and 60% of cases, the estimate had the lower log loss than the share of votes from about so many votes
on, with two votes on each comparison; with fewer it was sure of wrong labels. Where all raters err equally often, in
30% of cases, the share of votes stayed the better one."""
SMOOTHING: Final = 1.0
"""Laplace's: one vote is added to each cell of a rater's confusion matrix. It keeps a rater with few votes near
chance."""


def estimated(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Probability that response a is the better one, in [0, 1], by comparison on which two or more people voted.

    The categories are a, b and tie; `both_bad` counts as a tie, and skips do not count. The probability is
    P(a) + P(tie) / 2, or 0.5 where a tie is the likeliest.

    A verdict in all and a verdict by a principle answer different questions, so they are items of their own; the
    raters' errors are the same in all of them. A comparison has the probability of its item in all, or where there is
    none the mean of those by principles.
    """
    votes = _shared(verdicts)
    if not votes:
        return {}
    p_a = defaultdict[str, list[float]](list)
    for (comparison, principle), posterior in dawid_skene(votes, smoothing=SMOOTHING).posteriors.items():
        if principle is not None and (comparison, None) in votes:
            continue
        tie = posterior.get("tie", 0.0)
        p_a[comparison].append(0.5 if tie == max(posterior.values()) else posterior.get("a", 0.0) + tie / 2)
    return {comparison: fmean(values) for comparison, values in p_a.items()}


def in_all_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Of the verdicts on a comparison those that count: a rater's verdict in all, else those by principles."""
    rows = list(verdicts)
    in_all = {row.rater for row in rows if row.principle is None}
    return [row for row in rows if row.principle is None or row.rater not in in_all]


def too_few(verdicts: Sequence[Verdict]) -> str | None:
    """What the votes lack for an estimate, with what gives more of them; None if nothing, or if there is no vote."""
    by_rater = Counter(rater for raters in _shared(verdicts).values() for rater in raters)
    enough = sum(count >= LEAST_VOTES for count in by_rater.values())
    if enough >= LEAST_RATERS or not verdicts:
        return None
    return (
        f"{enough} raters have {LEAST_VOTES} votes on comparisons that others voted on too, and {LEAST_RATERS} are "
        "needed; a larger budget or spotcheck.overlap (review.overlap where no plan says otherwise) gives more"
    )


def _shared(verdicts: Iterable[Verdict]) -> dict[tuple[str, str | None], dict[str, str]]:
    """The votes by (comparison, principle) and rater, where two or more people voted."""
    votes = defaultdict[tuple[str, str | None], dict[str, str]](dict)
    for verdict in verdicts:
        if verdict.choice != "skip":
            choice = "tie" if verdict.choice == "both_bad" else verdict.choice
            votes[verdict.comparison, verdict.principle][verdict.rater] = choice
    return {item: by_rater for item, by_rater in votes.items() if len(by_rater) > 1}
