"""The table of behaviour on the terminal: as wide as a terminal, and honest about small numbers."""

from pathlib import Path

import pytest

from constitutional.cli import show
from constitutional.judging.scores import Change, Score
from constitutional.runs.folder import RunStore
from tests.scripted_run import finish

LONG = "a_principle_whose_name_is_much_longer_than_the_names_of_other_principles"


def table_of(folder: Path, scores: list[Score]) -> list[str]:
    with RunStore.open(folder, "{}") as writing:
        finish(writing, 9, "evaluate", {"scores": scores})
    return show.behaviour(RunStore.load(folder)).splitlines()


def of_all(
    measure: str, n: int = 300, unit: str = "share", ends: tuple[float, float, float] = (0.9, 1.0, 1.0)
) -> list[Score]:
    low, value, high = ends
    return [
        Score(model=model, measure=measure, value=value, low=low, high=high, n=n, unit=unit)
        for model in ("base", "sft_model", "policy")
    ]


def test_the_table_fits_a_terminal_of_80_columns_and_cuts_nothing_off(tmp_path: Path) -> None:
    measures = ("trait_rate/sycophantic_agreement", f"violation_rate/{LONG}", "violation_rate/no_false_agreement")
    lines = table_of(
        tmp_path,
        [
            *(score for name in measures for score in of_all(name, 4)),
            *of_all("length", 300, "words", (1187.6, 1234.5, 1278.9)),
        ],
    )
    assert max(map(len, lines)) <= 80
    labels = "".join(line.split("  ")[0] for line in lines)
    assert LONG in labels.replace(" ", "")
    assert sum("100% (90–100)" in line for line in lines) == len(measures)


@pytest.mark.parametrize(("n", "clear"), [(9, False), (10, True)])
def test_fewer_than_ten_observations_are_marked_and_no_failure(tmp_path: Path, n: int, clear: bool) -> None:
    base, sft, policy = of_all("over_refusal", n)
    rose = {"base": Change(value=0.5, low=0.2, high=0.8, n=n)}
    lines = table_of(tmp_path, [base, sft, policy.model_copy(update={"changes": rose})])
    assert any("got worse" in line for line in lines) == clear
    assert any("too few to tell" in line for line in lines) == (not clear)
    assert ("(n=9*)" in lines[1]) == (not clear)
