import re
from pathlib import Path

import pytest

from scripts import scale_plan
from scripts.scale_plan import Chosen, Rate, need

DOCS = Path(__file__).parents[2] / "docs/scale.md"
VALUES = {"journal": 100, "keep": 0.001, "ask": 0.01, "stages": 0.006, "again": 0.0036, "row": 500, "pair": 3000}
RATES = {name: Rate(value, "", "") for name, value in VALUES.items()}
SMALL = Chosen(
    weights=1e9,
    prompt=10,
    reply=20,
    instruction=40,
    reasoning=0,
    read_per_s=1000,
    write_per_s=100,
    train_per_s=500,
    hours=1,
    memory_gb=1,
    processes=1,
    gpu_hour=2,
    price_input=0,
    price_output=0,
)


def test_a_plan_is_what_one_works_out_by_hand() -> None:
    plan = need(1000, SMALL, RATES)
    assert plan.answers == 4000  # two replies, and a reading in each order
    assert plan.tokens == (1000 * 2 * (10 + 2 * 20 + 40), 0)
    seconds = {kind: hours * 3600 for kind, hours in plan.gpu_hours.items()}
    assert seconds == pytest.approx(
        {
            "replies": 1000 * 2 * (10 / 1000 + 20 / 100),  # 420
            "labels": 180_000 / 1000,
            "training": 1000 * 60 * (2 / 500 + 1 / 1000),  # 300
        }
    )
    assert plan.gpus == 1
    assert plan.command_hours == pytest.approx({"asking": 40 / 3600, "the journal": 4 / 3600, "stages": 6 / 3600})
    assert plan.again_hours == pytest.approx(3.6 / 3600)
    assert plan.memory_gb == pytest.approx(0.003)
    assert plan.journal_gb == pytest.approx((4000 * 100 + 1000 * 160) / 1e9)
    assert plan.rows_gb == pytest.approx(1000 * (500 + 160) / 1e9)
    assert plan.money == pytest.approx(0.25 * 2)
    assert plan.bottleneck == "the GPUs, most for replies"


def test_reasoning_asks_twice_in_each_order() -> None:
    plan = need(1000, SMALL._replace(reasoning=30), RATES)
    assert plan.answers == 6000
    assert plan.tokens == (1000 * (4 * 90 + 2 * 30), 1000 * 60)


def test_a_hosted_labeler_costs_by_tokens_and_takes_no_gpu() -> None:
    plan = need(1000, SMALL._replace(price_input=1), RATES)
    assert plan.gpu_hours["labels"] == 0
    assert plan.money == pytest.approx(0.2 * 2 + 0.18)


def test_the_bottleneck_is_what_takes_longest_with_as_many_gpus_as_the_time_wants() -> None:
    hurried = need(1000, SMALL._replace(hours=0.01), RATES)
    # 36 s of each of 25 GPUs, and 50 s of the command, 40 of them for asking.
    assert (hurried.gpus, hurried.bottleneck) == (25, "the command, most for asking")
    slow = need(1000, SMALL._replace(hours=0.01), {**RATES, "keep": Rate(0.02, "", "")})
    assert slow.bottleneck == "the command, most for the journal"
    narrow = need(1000, SMALL._replace(memory_gb=0.002), RATES)
    assert narrow.bottleneck == "memory for pairs, then the GPUs, most for replies"


def test_every_process_of_a_training_holds_all_pairs() -> None:
    assert need(1000, SMALL._replace(processes=8), RATES).memory_gb == pytest.approx(0.024)


def test_the_page_shows_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale_plan.main([]) == 0
    assert capsys.readouterr().out in DOCS.read_text(encoding="utf-8")


def test_rates_that_are_given_take_the_place_of_those_that_are_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    scale_plan.main(["--read-per-s", "20000", "--write-per-s", "9000", "--train-per-s", "8000", "--gpu-hour", "2"])
    printed = capsys.readouterr().out
    assert "| tokens a second of a GPU, write | 9,000 | as given |" in printed
    assert re.search(r"^\| money \|", printed, re.MULTILINE)
    assert "assumed" not in printed


def test_the_journal_is_measured_where_the_script_runs() -> None:
    measured = scale_plan.measured_here(answers=640)
    assert 150 < measured["journal"].value < 600
    assert measured["keep"].value > 0
