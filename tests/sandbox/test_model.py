"""The shipped model keeps what its card promises."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from constitutional.prompts import load_prompts
from constitutional.sandbox import MODEL_FOLDER
from constitutional.sandbox.evaluate import Evaluation, Measure, table
from constitutional.sandbox.understand import shipped_engine
from constitutional.stats import Interval

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


def test_the_card_shows_what_was_measured() -> None:
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
    speech = {each.name: each for each in Evaluation(shipped_engine(), load_prompts(), scale=0.1, seed=98).speech()}
    for measure in scores():
        if measure.name in speech and measure.at_least is not None:
            assert speech[measure.name].interval.high + 0.02 >= measure.at_least, speech[measure.name]
