from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from constitutional.base.errors import ConfigurationError
from constitutional.base.records import Message
from constitutional.training import rewards
from constitutional.training.ppo.rollout import Rewards

ASKED = [{"role": "user", "content": "May I?"}]


def replies(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def given(reward: rewards.Reward, *texts: str) -> list[float | None]:
    return list(
        reward.function(prompts=[ASKED] * len(texts), completions=replies(*texts), prompt_id=["x"] * len(texts))
    )


def test_length_counts_the_words_beyond_the_limit() -> None:
    reward = rewards.length(rewards.LengthSettings(limit=3))
    assert given(reward, "one two three", "one two three four  five", "") == [0, 2, 0]
    assert reward.weight == -0.01


def test_questions_are_counted_and_a_row_of_marks_is_one() -> None:
    assert given(rewards.questions(rewards.QuestionsSettings()), "Why? How?? So.", "Yes.") == [2, 0]


def test_the_thoughts_of_a_policy_are_not_what_its_reply_is_worth() -> None:
    thinks = "<think>\nI cannot? Why? They ask.\n</think>\n\nGladly."
    assert given(rewards.refusal(rewards.RefusalSettings()), thinks) == [0]
    assert given(rewards.length(rewards.LengthSettings(limit=0)), thinks, "<think>\nI cannot") == [1, 0]
    assert rewards.conversation_with(ASKED, replies(thinks)[0])[-1].content.strip() == "Gladly."


def test_refusal_is_found_by_its_phrases_early_in_a_reply() -> None:
    late = "word " * 40 + "I cannot"
    reward = rewards.refusal(rewards.RefusalSettings())
    assert given(reward, "Sorry, I can’t help with it.", "I CANNOT say.", late, "Gladly.") == [1, 1, 0, 0]
    own = rewards.refusal(rewards.RefusalSettings(phrases=("no way",)))
    assert given(own, "No way!", "I cannot say.") == [1, 0]


def test_a_reply_is_cut_off_where_it_does_not_end_with_an_end_token() -> None:
    reward = rewards.cut_off([7, 9], 1.5)
    assert reward.function(completion_ids=[[1, 7], [7, 1], [9], []]) == [0, 1, 0, 1]
    assert reward.weight == -1.5


class Fixed:
    """A reward model whose scores are a factor times the length of a conversation's last message."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        assert all(conversation[0] == Message("user", "May I?") for conversation in conversations)
        return [self.factor * len(conversation[-1].content) for conversation in conversations]


def test_several_reward_models_count_less_where_they_disagree() -> None:
    reward = rewards.reward_model([Fixed(1), Fixed(3)], rewards.RewardModelSettings(weight=2, ensemble_k=0.5))
    assert given(reward, "ab", "") == [3.0, 0.0]  # (2 + 6) / 2 − 0.5 · 2
    assert (reward.name, reward.weight) == ("reward_model", 2)


def test_a_plain_text_prompt_is_one_message() -> None:
    assert rewards.conversation_with("Hello?", "Hi.") == (Message("user", "Hello?"), Message("assistant", "Hi."))


def test_calls_of_tools_in_a_prompt_are_scored_with_it() -> None:
    call = '{"tool_calls": [{"function": {"name": "weather"}}]}'
    asked = (Message("user", "Rain?"), Message("assistant", "", call), Message("tool", "Rain."))
    prompt = [message.turn() for message in asked]
    assert rewards.conversation_with(prompt, "Yes.") == (*asked, Message("assistant", "Yes."))

    class Called:
        """A reward model that counts the turns with something beside their text."""

        def scores(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
            return [float(sum(bool(message.extra) for message in conversation)) for conversation in conversations]

    model: Any = Called()
    assert Rewards([model], [], None).members([{"prompt": prompt}], ["Yes."]) == [[1.0]]


def test_two_rewards_of_one_name_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.py").write_text("def short(completions, **_): return [0.0] * len(completions)\n")
    chosen = [rewards.PythonSettings(function=f"{tmp_path}/{name}.py:short") for name in "ab"]
    with pytest.raises(ConfigurationError, match=r"two of them would be logged as 'function/short'"):
        rewards.check_names([rewards.function(each) for each in chosen])


def test_the_settings_are_told_apart_by_their_kind() -> None:
    adapter: TypeAdapter[rewards.RewardSettings] = TypeAdapter(rewards.RewardSettings)
    assert adapter.validate_python({"kind": "length", "limit": 5}) == rewards.LengthSettings(limit=5)
    with pytest.raises(ValidationError, match="ensemble_k"):
        adapter.validate_python({"kind": "length", "ensemble_k": 1})
    with pytest.raises(ValidationError, match=r'should be "file.py:function"'):
        adapter.validate_python({"kind": "python", "function": "short"})


def test_rules_are_made_of_their_settings(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def loud(completions, **_): return [c[0]['content'].count('!') for c in completions]\n"
    )
    mine = rewards.rule(rewards.PythonSettings(function=f"{tmp_path}/mine.py:loud", weight=-2))
    assert (mine.name, mine.weight, given(mine, "Hey! You!", "So.")) == ("function/loud", -2, [2, 0])
    kinds = (rewards.LengthSettings(), rewards.RefusalSettings(), rewards.QuestionsSettings())
    assert [rewards.rule(kind).name for kind in kinds] == ["length", "refusal", "questions"]


def test_rules_count_in_any_script() -> None:
    length = rewards.length(rewards.LengthSettings(limit=3))
    assert given(length, "你好，世界。", "สวัสดี", "안녕 세상") == [1, 1, 0]  # characters, characters with marks, words
    assert given(rewards.questions(rewards.QuestionsSettings()), "你好吗？真的？", "كيف حالك؟") == [2, 1]
    refusal = rewards.refusal(rewards.RefusalSettings(phrases=("我不能", "je ne peux pas", "i can't help")))
    late = "好" * 40 + "我不能"
    assert given(refusal, "对不起，我不能这样做。", late, "Je ne\u00a0peux  pas.") == [1, 0, 1]
    assert given(refusal, *(f"I can{mark}t help." for mark in "'\u2019\u2018\uff07\u02bc`")) == [1] * 6
