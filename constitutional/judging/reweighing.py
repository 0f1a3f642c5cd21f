"""What labels would be with other weights of the principles, from the judgements that there are: no model is asked.

A comparison's probability is the mean over its judgements by weight (`labelling.combine`). Where all principles judge a
comparison, other weights give another mean. Where one principle is drawn for it, other weights give another draw
(`drawn`), and what a principle would say that did not judge is not known.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from constitutional.base.errors import UsageError
from constitutional.base.records import Judgement
from constitutional.constitution.constitution import nearest, wait

Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


class JudgementTable(NamedTuple):
    """Judgements as arrays: N comparisons by P principles."""

    comparisons: tuple[str, ...]
    """N ids, in the order of the first judgement of each."""
    principles: tuple[str, ...]
    """P ids."""
    p_a: Floats
    """(N, P) Probability that response a is better, the mean over judges by their weights; 0 where no judgement can be
    read."""
    judged: Floats
    """(N, P) What the judges with a readable judgement weigh together: 1 for the labeler alone, 0 where there is
    none."""
    leanings: Floats
    """(N, P) How far above a half the mean is without judgements whose two orders conflict, which prefer neither
    response; 0 where no other is left."""
    gives_way_to: Mapping[str, Sequence[str]] = {}
    """By principle, those that override it (`priorities.overridden`)."""

    @classmethod
    def of(cls, judgements: Iterable[Judgement], judges: Mapping[str, float] | None = None) -> "JudgementTable":
        """The table of these judgements; a judgement of weight 0 counts for nothing, as in `labelling.readable`.

        Args:
            judgements: of one judge or of several.
            judges: weights of judges by name, as `label.weights` has them; 1 of those that are not named.
        """
        rows, columns = dict[str, int](), dict[str, int]()
        places, values, counts = list[tuple[int, int]](), list[float](), list[tuple[float, float]]()
        above = dict[str, Sequence[str]]()
        for judgement in judgements:
            row = rows.setdefault(judgement.comparison, len(rows))
            column = columns.setdefault(judgement.principle, len(columns))
            if judgement.p_a is not None and judgement.weight > 0:
                places.append((row, column))
                values.append(judgement.p_a)
                weight = (judges or {}).get(judgement.judge, 1.0)
                counts.append((weight, 0.0 if judgement.conflict else weight))
            if judgement.gives_way_to:
                above[judgement.principle] = judgement.gives_way_to
        shape = (len(rows), len(columns))
        p_a, judged, leanings, sure = (np.zeros(shape) for _ in range(4))
        if places:
            at = tuple(np.array(places).T)
            probabilities, (weights, of_sure) = np.array(values), np.array(counts).T
            np.add.at(judged, at, weights)
            np.add.at(sure, at, of_sure)
            # Sums of shares, and not shares of sums: where one judge has all the weight, its numbers stay as they are.
            np.add.at(p_a, at, weights / judged[at] * probabilities)
            np.add.at(
                leanings,
                at,
                np.divide(of_sure, sure[at], out=np.zeros_like(of_sure), where=of_sure > 0) * (probabilities - 0.5),
            )
        return cls(tuple(rows), tuple(columns), p_a, judged, leanings, above)

    def shares(self, weights: Mapping[str, float]) -> Floats:
        """(N, P) Each judgement's part in its comparison's mean; a row is all 0 where nothing is left of it.

        A judgement has no part where its principle is overridden by one that has a weight.

        Raises:
            UsageError: a principle has no judgement in the table, or a weight is below 0.
        """
        for name, weight in weights.items():
            if name not in self.principles:
                raise UsageError(f"no judgement is by the principle '{name}'; {nearest(name, self.principles)}")
            if not 0 <= weight < np.inf:
                raise UsageError(f"the weight of '{name}' is {weight}; a weight is a number from 0")
        counted = self.judged * np.array([weights.get(name, 0.0) for name in self.principles], float)
        columns = {name: column for column, name in enumerate(self.principles)}
        for name in sorted(self.gives_way_to, key=lambda name: len(self.gives_way_to[name])):  # the highest first
            for above in filter(columns.__contains__, self.gives_way_to[name]):
                against = self.leanings[:, columns[above]] * self.leanings[:, columns[name]] < 0
                counted[against & (counted[:, columns[above]] > 0), columns[name]] = 0.0
        total = counted.sum(axis=1, keepdims=True)
        shares: Floats = np.divide(counted, total, out=np.zeros_like(counted), where=total > 0)
        return shares


def reweighed(judgements: JudgementTable, weights: Mapping[str, float]) -> Floats:
    """(N,) Probability that response a is better under these weights; NaN where no judgement is left.

    Args:
        judgements: the judgements, read once for any number of selections.
        weights: by principle, from 0; a principle that is not named counts for nothing.

    Raises:
        UsageError: a principle has no judgement, or a weight is below 0.
    """
    shares = judgements.shares(weights)
    return np.where(shares.any(axis=1), (shares * judgements.p_a).sum(axis=1), np.nan)


def selections(weights: Mapping[str, float]) -> Iterator[dict[str, float]]:
    """Every choice of one principle or more, with their weights, the smallest first: 255 of 8 principles."""
    for size in range(1, len(weights) + 1):
        for names in combinations(weights, size):
            yield {name: weights[name] for name in names}


class Lots(NamedTuple):
    """The draws of a principle for M items, before anything is known of weights: M items by P principles."""

    principles: tuple[str, ...]
    waits: Floats
    """(M, P) How long a principle of weight 1 waits, as in `Constitution.draw`."""
    first: Booleans
    """(M, P) Principles that are drawn before others; a row may be all False."""
    above: Mapping[str, Sequence[str]] = {}
    """By principle, those that override it, and are drawn in its place where they are among the first too."""

    @classmethod
    def of(
        cls,
        lots: Sequence[int],
        principles: Sequence[str],
        first: Sequence[Collection[str]] | None = None,
        above: Mapping[str, Sequence[str]] | None = None,
    ) -> "Lots":
        """The draws of these lots; `first` names for each the principles that are drawn before others."""
        waits = np.array([[wait(lot, name) for name in principles] for lot in lots]).reshape(-1, len(principles))
        before = [[name in names for name in principles] for names in first or [()] * len(lots)]
        return cls(tuple(principles), waits, np.array(before, dtype=bool).reshape(-1, len(principles)), above or {})

    def drawn(self, weights: Mapping[str, float]) -> list[str]:
        """The principle that each item gets under these weights; a principle that is not named gets none."""
        row = np.array([weights.get(name, 0.0) for name in self.principles])
        with np.errstate(divide="ignore"):
            waits = np.where(row > 0, self.waits / row, np.inf)
        meant = self.first & (row > 0)
        preferred = meant.copy()
        for column, name in enumerate(self.principles):
            over = [self.principles.index(other) for other in self.above.get(name, ()) if other in self.principles]
            preferred[:, column] &= ~meant[:, over].any(axis=1)
        waits = np.where(preferred | ~preferred.any(axis=1, keepdims=True), waits, np.inf)
        return [self.principles[index] for index in waits.argmin(axis=1)]
