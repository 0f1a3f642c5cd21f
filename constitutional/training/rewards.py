"""What a reply is worth to a training online: reward functions with TRL's signature, each logged by its own name.

`f(prompts, completions, **columns)` gives a number for each completion, or None where it has none; prompts and
completions are conversations, and a row's other columns come by name. There are the run's reward model, the labeler
itself, which scores a reply by one principle ("direct RLAIF", Lee et al. 2023, section 2.2.2), plain rules, and
functions that a user wrote. Rules give the quantity that they count; their weight says whether it is wanted.

The exact detectors of the sandbox are none of them: what is trained on could not be evaluated by.

What every training online has in common stands here too: how replies are drawn, and how many of them are kept to read.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from constitutional.base.errors import ConfigurationError
from constitutional.base.records import Message
from constitutional.training.user_function import load_function, resolved

Turns = Sequence[Mapping[str, str]]
"""A conversation as chat templates take it."""
RewardFunction = Callable[..., Sequence[float | None]]

REFUSAL_PHRASES = (
    "i can't help",
    "i can't assist",
    "i can't provide",
    "i cannot",
    "i can not",
    "i will not",
    "i won't",
    "i am unable to",
    "i'm unable to",
    "i am not able to",
    "i'm not able to",
    "i must decline",
    "i have to decline",
    "i'm sorry, but",
    "i am sorry, but",
)


class Reward(NamedTuple):
    """A reward function, and how much its numbers count."""

    name: str
    """It is logged by this."""
    weight: float
    function: RewardFunction


# --- Which rewards, and how they are weighted ---


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class OnlineSettings(_Settings):
    """The replies of a training online."""

    temperature: float = Field(default=1.0, gt=0)
    """Of the replies, and of all log-probabilities; 1 by default."""
    max_tokens: int = Field(default=160, ge=1)
    """Length in tokens at which a reply is cut off; 160 by default."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Taken from the reward of a reply that was cut off; 1 by default."""
    rollouts: int = Field(default=128, ge=1)
    """Most replies of each step, or phase of PPO, that are kept to be scored and read; 128 by default."""


class RewardModelSettings(_Settings):
    """The run's reward model, or several."""

    kind: Literal["reward_model"] = "reward_model"
    weight: float = 1.0
    """Of a deviation of its scores on reference samples; 1 by default."""
    ensemble_k: float = Field(default=0.0, ge=0)
    """Deviations among several reward models that are taken off their mean; 0 by default."""


class ConstitutionSettings(_Settings):
    """The labeler's score, by every principle that it was found to understand."""

    kind: Literal["constitution"] = "constitution"
    weight: float = 1.0
    """Of the mean over the principles by their weights; scores go from -1 to 1. 1 by default."""


class LengthSettings(_Settings):
    """Words beyond a limit."""

    kind: Literal["length"] = "length"
    weight: float = -0.01
    """Of each word beyond the limit; -0.01 by default."""
    limit: int = Field(default=60, ge=0)
    """Words that cost nothing; 60 by default."""


class RefusalSettings(_Settings):
    """Whether a reply refuses, by a list of phrases: a rough rule."""

    kind: Literal["refusal"] = "refusal"
    weight: float = -1.0
    """Of a refusal; -1 by default."""
    phrases: tuple[str, ...] = REFUSAL_PHRASES
    """A reply with one of these among its first 40 words refuses, whatever its case."""


class QuestionsSettings(_Settings):
    """How many questions a reply asks."""

    kind: Literal["questions"] = "questions"
    weight: float = -0.1
    """Of each question; -0.1 by default."""


class PythonSettings(_Settings):
    """A function of the user's."""

    kind: Literal["python"] = "python"
    function: str
    """"file.py:function" or "package.module:function"; it is called as TRL calls a reward function."""
    weight: float = 1.0
    """Of its number; 1 by default."""

    @field_validator("function")
    @classmethod
    def _found_from_anywhere(cls, function: str) -> str:
        return resolved(function)


RewardSettings = Annotated[
    RewardModelSettings | ConstitutionSettings | LengthSettings | RefusalSettings | QuestionsSettings | PythonSettings,
    Field(discriminator="kind"),
]


def check_names(rewards: Iterable[Reward]) -> None:
    """Refuse two rewards of one name, whose numbers would be mixed in the log.

    Raises:
        ConfigurationError: names it.
    """
    names: set[str] = set()
    for each in rewards:
        if each.name in names:
            raise ConfigurationError(
                f"algorithm.rewards: two of them would be logged as '{each.name}'; take one out, or rename the function"
            )
        names.add(each.name)


# --- What functions are called with ---


def reply_text(completion: Turns | str) -> str:
    """What the assistant said."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def said(prompt: Turns | str, completion: Turns | str) -> tuple[Message, ...]:
    """A prompt and its reply as one conversation; plain text is one message."""
    turns: Turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    asked = [Message(each["role"], each["content"]) for each in turns]  # type: ignore[arg-type]  # checked by who read it
    return (*asked, Message("assistant", reply_text(completion)))


# --- Models ---


class Scorer(Protocol):
    """A reward model whose scores are normalised."""

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """One number for each conversation that ends with a reply."""
        ...


def reward_model(members: Sequence[Scorer], settings: RewardModelSettings) -> Reward:
    """Mean − k·deviation of the members' normalised scores (`ppo_math.ensemble`)."""

    def score(prompts: Sequence[Turns], completions: Sequence[Turns], **_: object) -> list[float | None]:
        import torch

        from constitutional.training.ppo.math import ensemble

        conversations = list(map(said, prompts, completions))
        by_member = torch.tensor([each.scores(conversations) for each in members], dtype=torch.float64)  # (K, B)
        found: list[float | None] = ensemble(by_member, settings.ensemble_k).tolist()
        return found

    return Reward("reward_model", settings.weight, score)


# --- Rules ---


def length(settings: LengthSettings) -> Reward:
    """Words of a reply beyond the limit."""
    return Reward("length", settings.weight, _of_text(lambda text: max(0, len(text.split()) - settings.limit)))


def refusal(settings: RefusalSettings) -> Reward:
    """1 where a reply refuses, 0 where it does not."""
    return Reward("refusal", settings.weight, _of_text(lambda text: refuses(text, settings.phrases)))


def questions(settings: QuestionsSettings) -> Reward:
    """Questions that a reply asks: question marks, a row of them being one."""
    return Reward("questions", settings.weight, _of_text(lambda text: len(re.findall(r"\?+", text))))


def _of_text(rule: Callable[[str], float]) -> RewardFunction:
    def count(completions: Sequence[Turns], **_: object) -> list[float | None]:
        return [float(rule(reply_text(each))) for each in completions]

    return count


def refuses(text: str, phrases: Iterable[str]) -> bool:
    """Whether one of the phrases is among a text's first 40 words, whatever its case: a rough rule."""
    beginning = " ".join(text.split()[:40]).lower().replace("’", "'")
    return any(phrase.lower() in beginning for phrase in phrases)


def cut_off(ends: Iterable[int], penalty: float) -> Reward:
    """1 where a reply was cut off at the most tokens allowed: where its last token is none of those that end one.

    Reward models cannot see it: the chat template ends every reply that they are given.
    """
    enders = frozenset(ends)

    def count(completion_ids: Sequence[Sequence[int]], **_: object) -> list[float | None]:
        return [float(not ids or ids[-1] not in enders) for ids in completion_ids]

    return Reward("cut_off", -penalty, count)


# --- Functions that users wrote ---


def function(settings: PythonSettings) -> Reward:
    """The user's function, whose numbers are checked.

    Raises:
        ConstitutionalError: it cannot be found or imported.
    """
    found = load_function(settings.function)
    return Reward(f"function/{found.name}", settings.weight, found)


def rule(settings: RewardSettings) -> Reward:
    """The reward of settings that need no model."""
    if isinstance(settings, LengthSettings):
        return length(settings)
    if isinstance(settings, RefusalSettings):
        return refusal(settings)
    if isinstance(settings, QuestionsSettings):
        return questions(settings)
    assert isinstance(settings, PythonSettings)
    return function(settings)
