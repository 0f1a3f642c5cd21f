"""The shipped model keeps what its card promises."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from constitutional.base.stats import Interval
from constitutional.base.templates import load_prompts
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.understand import shipped_engine
from scripts.sandbox_training.evaluate import Evaluation, Measure, table

WEIGHTS = MODEL_FOLDER / "model.safetensors"


def scores() -> list[Measure]:
    loaded = json.loads((MODEL_FOLDER / "scores.json").read_text(encoding="utf-8"))
    return [
        Measure(
            entry["name"],
            entry["value"],
            Interval(entry["low"], entry["high"]),
            entry["n"],
            entry["at_least"],
            entry["at_most"],
        )
        for entry in loaded
    ]


def test_it_is_a_plain_small_llama_in_bf16() -> None:
    assert WEIGHTS.stat().st_size <= 12_000_000
    config = AutoConfig.from_pretrained(MODEL_FOLDER)
    assert config.architectures == ["LlamaForCausalLM"]
    assert len({config.pad_token_id, config.bos_token_id, config.eos_token_id}) == 3
    with safe_open(WEIGHTS, framework="pt") as tensors:
        kinds = {tensors.get_tensor(name).dtype for name in tensors.keys()}  # noqa: SIM118 - not a dict
    assert kinds == {torch.bfloat16}
    model = AutoModelForCausalLM.from_pretrained(MODEL_FOLDER)
    assert sum(weight.numel() for weight in model.parameters()) <= 6_000_000
    assert model.generation_config.eos_token_id == config.eos_token_id


def carded() -> list[list[str]]:
    """The cells of the card's table, row by row."""
    card = (MODEL_FOLDER / "README.md").read_text(encoding="utf-8")
    rows = card.split("| measure | value |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_card_shows_what_was_measured() -> None:
    # Read cell by cell, and not made by `table`, which would show the same mistake twice.
    loaded = json.loads((MODEL_FOLDER / "scores.json").read_text(encoding="utf-8"))
    for row, entry in zip(carded(), loaded, strict=True):
        name, value, interval, n, wanted, reached = row
        assert name == entry["name"]
        assert percent(value) == pytest.approx(entry["value"], abs=0.0005001)
        low, high = (percent(end) for end in interval.split(" to "))
        assert (low, high) == pytest.approx((entry["low"], entry["high"]), abs=0.0005001)
        assert int(n) == entry["n"] > 0
        bounds = [percent(bound) for bound in wanted.removeprefix("at least ").split(" to ") if bound]
        assert bounds == pytest.approx([each for each in (entry["at_least"], entry["at_most"]) if each is not None])
        inside = entry["value"] >= (entry["at_least"] or 0) and entry["value"] <= (entry["at_most"] or 1)
        assert entry["reached"] == inside
        assert reached == ("" if not wanted else "yes" if inside else "**no**")
        assert entry["low"] <= entry["value"] <= entry["high"]


def percent(text: str) -> float:
    return float(text.removesuffix("%")) / 100


def test_the_scores_are_those_of_the_table() -> None:
    assert table(scores()) in (MODEL_FOLDER / "README.md").read_text(encoding="utf-8")


def test_a_small_new_measurement_agrees_with_the_card() -> None:
    evaluation = Evaluation(shipped_engine(), load_prompts(), scale=0.03, seed=99)
    carded = {measure.name: measure for measure in scores()}
    fresh = [
        evaluation.verdicts("shipped wordings", evaluation._shipped("check", 60), None, grouped=False),
        *evaluation.labels("shipped wordings", evaluation._shipped("check", 40), None, by_trait=False, grouped=False),
    ]
    for measure in fresh:
        # The new sample's interval, widened a little for the small number of items, holds the carded value.
        low, high = measure.interval
        assert low - 0.05 <= carded[measure.name].value <= high + 0.05, measure


@pytest.mark.slow
def test_free_answers_are_as_well_formed_as_the_card_says() -> None:
    measured = {measure.name: measure for measure in scores()}
    for fresh in Evaluation(shipped_engine(), load_prompts(), scale=0.1, seed=98).speech():
        card = measured[fresh.name]
        assert fresh.at_least == card.at_least
        # Two samples: their intervals meet, widened a little because some twenty are compared.
        assert fresh.interval.low - 0.03 <= card.interval.high, fresh
        assert fresh.interval.high + 0.03 >= card.interval.low, fresh
