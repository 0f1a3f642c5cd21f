"""People's verdicts on comparisons of a run, read from a file."""

from collections.abc import Collection
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from constitutional.base.errors import InputError
from constitutional.base.frozen import first_problem
from constitutional.base.jsonl import read_jsonl
from constitutional.base.records import Verdict

VERDICTS: Final = (
    'a file of verdicts, JSON lines, plain or .gz: {"comparison": ID, "rater": "…", "choice": "a", "b" or "tie"}'
)
"""What a user is told to give."""


def read_verdicts(path: Path, comparisons: Collection[str] | None) -> list[Verdict]:
    """The verdicts in a file of JSON rows `{"comparison": id, "rater": …, "choice": "a" | "b" | "tie" | …}`.

    Those on gold items are about no comparison of the run.

    Args:
        path: the file, plain or compressed with gzip.
        comparisons: the ids of the comparisons that there are; None where they are not made yet.

    Raises:
        InputError: a row is no verdict, is about a comparison that is not there, or contradicts an earlier row of the
            same rater; or there is none.
    """
    verdicts: list[Verdict] = []
    first: dict[tuple[str, str, str | None], tuple[int, Verdict]] = {}
    for line, row in read_jsonl(path, VERDICTS):
        if not isinstance(row, dict):
            raise InputError(path, f"is {type(row).__name__}, no verdict; expected {VERDICTS}", line)
        try:
            verdict = Verdict.model_validate(row)
        except ValidationError as error:
            raise InputError(path, f"no verdict: {first_problem(error)}", line) from error
        if comparisons is not None and verdict.gold is None and verdict.comparison not in comparisons:
            known = f"the id of one of this run's {len(comparisons)} comparisons"
            raise InputError(path, f"there is no comparison '{verdict.comparison}'; expected {known}", line)
        before, earlier = first.setdefault((verdict.comparison, verdict.rater, verdict.principle), (line, verdict))
        if earlier.choice != verdict.choice or earlier.strength != verdict.strength:
            both = f"'{verdict.choice}' of a comparison, but '{earlier.choice}' in line {before}"
            problem = f"'{verdict.rater}' says {both}, or with another strength; keep one of the two"
            raise InputError(path, problem, line)
        if before == line:
            verdicts.append(verdict)
    if not verdicts:
        raise InputError(path, f"holds no verdict; expected {VERDICTS}")
    return verdicts
