from itertools import combinations
from pathlib import Path

import pytest
from pydantic import ValidationError

from constitutional.base.records import Comparison, Message, Prompt
from constitutional.engines.base import Completion, Request
from constitutional.engines.scripted import Rule, ScriptedEngine
from constitutional.engines.stories import side_by_side
from constitutional.stages.sample_pairs import Settings, pairs, run, sample
from constitutional.stages.summaries import SamplePairsSummary
from tests.tiny import OneStage


def prompt(content: str = "Hi") -> Prompt:
    return Prompt(messages=(Message("user", content),))


def paired(rule: Rule, settings: Settings, *prompts: Prompt) -> list[Comparison]:
    engine = ScriptedEngine(rule, "sl")
    drawn = side_by_side(sample(own, engine, settings, seed=1) for own in prompts or (prompt(),))
    return [pair for samples in drawn for pair in pairs(samples, engine.weights, settings, seed=1)]


def in_turn(*replies: str | Completion) -> Rule:
    """These replies, one after the other."""
    left = iter(replies)
    return lambda _: next(left)


def by_seed(request: Request) -> str:
    return f"{request.messages[0].content} {request.seed}"


def test_k_responses_give_all_their_pairs() -> None:
    made = paired(in_turn("one", "two", "three"), Settings(samples=3))
    assert [(each.a, each.b) for each in made] == [("one", "two"), ("one", "three"), ("two", "three")]  # 3·2/2
    assert {each.model for each in made} == {"scripted:sl"}


def test_equal_texts_never_make_a_pair() -> None:
    made = paired(in_turn("one", " one\n", "two", "one"), Settings(samples=4))
    assert [(each.a, each.b) for each in made] == [("one", "two")]
    assert paired(in_turn("same", "same "), Settings()) == []


def test_empty_and_cut_off_responses_are_left_out_and_counted() -> None:
    refused = Completion("", "error", reason="the chat template refuses it")
    rule = in_turn("one", " ", Completion("two and", "length"), "three", refused, "one")
    (samples,) = side_by_side([sample(prompt(), ScriptedEngine(rule), Settings(samples=6), seed=1)])
    assert samples.texts == ("one", "three")
    assert (samples.failed, samples.empty, samples.cut_off, samples.repeated) == (1, 1, 1, 1)


def test_some_of_the_pairs_are_drawn_without_repetition() -> None:
    every = set(combinations(["1", "2", "3", "4"], 2))
    drawn = []
    for number in range(40):
        made = paired(
            in_turn("1", "2", "3", "4"), Settings(samples=4, pairs_per_prompt=2), prompt(f"Question {number}")
        )
        assert len({(each.a, each.b) for each in made}) == 2
        drawn += [(each.a, each.b) for each in made]
    assert set(drawn) == every  # 80 draws of 6 pairs miss one with a probability below 1e-5


def test_fewer_pairs_than_wanted_are_all_kept() -> None:
    assert len(paired(in_turn("one", "two"), Settings(pairs_per_prompt=5))) == 1


def test_every_sample_has_a_seed_of_its_own_and_the_settings_sampling() -> None:
    seen: list[Request] = []

    def rule(request: Request) -> str:
        seen.append(request)
        return by_seed(request)

    paired(rule, Settings(samples=3, temperature=0.9, top_p=0.8, max_tokens=7), prompt("One"), prompt("Two"))
    assert len({request.seed for request in seen}) == 6
    assert {tuple(request.sampling)[:3] for request in seen} == {(0.9, 0.8, 7)}


def test_the_pairs_of_a_prompt_depend_on_no_other_prompt() -> None:
    many = tuple(prompt(f"Question {number}") for number in range(5))
    settings = Settings(samples=4, pairs_per_prompt=1)
    together = paired(by_seed, settings, *many)
    assert paired(by_seed, settings, *many[::-1]) == together[::-1]
    assert paired(by_seed, settings, many[3]) == [together[3]]


def test_more_samples_keep_the_first_ones() -> None:
    few = paired(by_seed, Settings(samples=2))[0]
    many = paired(by_seed, Settings(samples=4))[0]
    assert few == many


@pytest.mark.parametrize("values", [{"samples": 1}, {"temperature": 0}, {"pairs_per_prompt": 0}])
def test_what_can_give_no_pair_is_refused(values: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(values)


def test_any_text_survives() -> None:
    odd = "Note: {{ a }}\n\nHuman: Better: B "
    (made,) = paired(in_turn(odd, "plain"), Settings(), prompt(odd))
    assert (made.a, made.prompt.messages[0].content) == (odd, odd)


def stage_of(rule: Rule, *prompts: Prompt, samples: int = 2) -> OneStage:
    context = OneStage(Path(), rows={"prompts": list(prompts)}, engines={"sft_model": ScriptedEngine(rule, "sl")})
    run(Settings(samples=samples, max_tokens=9), context)
    return context


def test_the_stage_counts_what_it_leaves_out_and_leaves_held_out_prompts_alone() -> None:
    cut = Completion("cut o", "length")
    rule = in_turn("one", " ", cut, "two", "same", "same ", "same", cut)
    held_out = prompt("Held out?").model_copy(update={"split": "held_out"})
    context = stage_of(rule, prompt("1"), held_out, prompt("2"), samples=4)
    assert [(row.a, row.b) for row in context.rows["comparisons"]] == [("one", "two")]
    assert context.said == SamplePairsSummary(
        prompts=2,
        comparisons=1,
        prompts_without_pair=1,
        failed_responses=0,
        empty_responses=1,
        cut_off_responses=2,
        repeated_responses=2,
    )
    assert context.warnings == []


def test_where_more_than_a_quarter_of_the_responses_are_cut_off_the_stage_warns() -> None:
    def rule(request: Request) -> Completion | str:
        return Completion("cut o", "length") if request.messages[0].content in cut else by_seed(request)

    cut = {"1"}
    assert stage_of(rule, *map(prompt, "1234")).warnings == []  # just a quarter
    cut = {"1", "2", "3"}
    (warning,) = stage_of(rule, *map(prompt, "1234")).warnings
    assert "6 of 8" in warning
    assert "at 9 tokens" in warning
    assert "sample_pairs.max_tokens=18, or sample_pairs.cut_off=shorten" in warning


def test_responses_that_are_cut_off_may_end_with_a_whole_sentence() -> None:
    rule = in_turn(Completion("Go left. Then tu", "length"), "Go right.", Completion("no sen", "length"))
    context = OneStage(Path(), rows={"prompts": [prompt("1")]}, engines={"sft_model": ScriptedEngine(rule, "sl")})
    run(Settings(samples=3, max_tokens=9, cut_off="shorten"), context)
    (row,) = context.rows["comparisons"]
    assert {row.a, row.b} == {"Go left.", "Go right."}
    said = context.summarised(SamplePairsSummary)
    assert (said.cut_off_responses, said.shortened_responses) == (1, 1)
    assert len(context.warnings) == 2


def test_responses_that_are_thoughts_alone_are_left_out_and_the_stage_says_what_to_type() -> None:
    thinking = Completion("", "length", reasoning="Hm. Go left. Then")
    rule = in_turn("Go left.", thinking, "Go right.")
    context = OneStage(Path(), rows={"prompts": [prompt("1")]}, engines={"sft_model": ScriptedEngine(rule, "sl")})
    run(Settings(samples=3, max_tokens=9, cut_off="shorten"), context)
    assert [(row.a, row.b) for row in context.rows["comparisons"]] == [("Go left.", "Go right.")]
    (warning,) = context.warnings
    assert "1 of 3 responses were cut off at 9 tokens and left out; type sample_pairs.max_tokens=18, or " in warning
    assert "model.template={enable_thinking: false}" in warning
    assert "The model still thought in 1 of these" in warning


def test_where_most_responses_are_alike_the_stage_names_the_temperature() -> None:
    context = stage_of(lambda _: "the same", *map(prompt, "12"), samples=3)
    (warning,) = context.warnings
    assert "4 of 6 responses say what another one" in warning
    assert "sample_pairs.temperature, which is 1" in warning
