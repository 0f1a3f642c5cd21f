import json
import random
from collections import Counter

import pytest

from constitutional.base.records import Message, Prompt
from constitutional.sandbox import topics, world
from constitutional.sandbox.prompts import sandbox_prompt, sandbox_prompt_set


def test_sandbox_prompts_are_distinct_and_their_splits_apart() -> None:
    prompts = sandbox_prompt_set(300, 101, seed=1)
    assert len({prompt.messages for prompt in prompts}) == 401
    assert Counter(prompt.split for prompt in prompts) == {"train": 300, "held_out": 101}
    assert [prompt.split for prompt in prompts[:300]] == ["train"] * 300
    new = Counter((prompt.split, prompt.info["held_out_topic"]) for prompt in prompts)
    assert new == {("train", "no"): 300, ("held_out", "yes"): 51, ("held_out", "no"): 50}
    assert {prompt.source for prompt in prompts} == {"sandbox"}


def test_topics_that_are_held_out_are_nobodys_training_topics() -> None:
    prompts = sandbox_prompt_set(500, 200, seed=2)
    trained = {sandbox_prompt(prompt).topic.fill for prompt in prompts if prompt.info["held_out_topic"] == "no"}
    held = {sandbox_prompt(prompt).topic.fill for prompt in prompts if prompt.info["held_out_topic"] == "yes"}
    assert trained.isdisjoint(held)


def test_more_prompts_leave_the_first_ones_as_they_are() -> None:
    few, many = sandbox_prompt_set(50, 20, seed=3), sandbox_prompt_set(80, 20, seed=3)
    assert many[:50] == few[:50]
    assert many[80:] == few[50:]
    assert sandbox_prompt_set(50, 20, seed=4) != few


def test_the_worlds_prompt_is_rebuilt_from_a_row_that_was_on_disk() -> None:
    for prompt in sandbox_prompt_set(200, 100, seed=5):
        row = Prompt.model_validate_json(json.dumps(prompt.model_dump(mode="json"), sort_keys=True))
        rebuilt = sandbox_prompt(row)
        assert rebuilt.messages == prompt.messages
        assert rebuilt.topic.kind == prompt.info["kind"]
        assert list(rebuilt.topic.slots) == list(topics.topics(rebuilt.topic.kind, held_out=False)[0].slots)


@pytest.mark.parametrize("kind", topics.KINDS)
@pytest.mark.parametrize("held_out", [False, True])
def test_a_listed_topic_is_rebuilt_with_its_facts(kind: topics.Kind, held_out: bool) -> None:
    rng = random.Random(0)
    for topic in rng.sample(topics.topics(kind, held_out=held_out), 5):
        info = {"kind": kind, **topic.slots, "held_out_topic": "yes" if held_out else "no"}
        row = Prompt(messages=(Message("user", "?"),), source="sandbox", info=info)
        assert sandbox_prompt(row) == world.WorldPrompt(topic, row.messages)


def test_other_prompts_are_none_of_the_worlds() -> None:
    with pytest.raises(ValueError, match=r"comes from 'mine\.jsonl'"):
        sandbox_prompt(Prompt(messages=(Message("user", "a"),), source="mine.jsonl"))
