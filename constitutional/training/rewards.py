"""What a reply is worth to a training online: reward functions with TRL's signature, each logged by its own name.

`f(prompts, completions, **columns)` gives a number for each completion, or None where it has none; prompts and
completions are conversations, and a row's other columns come by name. Here are the run's reward model, plain rules, and
functions that a user wrote; the labeler as a reward stands in `judging/as_reward.py`. Rules give the quantity that they
count; their weight says whether it is wanted.

The sandbox's exact detectors are no rewards: nothing can be evaluated by what it was trained on.

The settings that all online trainings share stand here too: how replies are sampled, and how many are kept to read.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from constitutional.base.errors import ConfigurationError
from constitutional.base.frozen import TECHNICAL
from constitutional.base.records import Message
from constitutional.base.refusals import REFUSAL_PHRASES, refuses
from constitutional.base.text import count_questions, without_thoughts, words
from constitutional.base.user_function import resolved
from constitutional.training.user_reward import load_reward

Turns = Sequence[Mapping[str, Any]]
"""A conversation as chat templates take it."""
RewardFunction = Callable[..., Sequence[float | None]]
"""Or an `async def` that gives the same."""


class Reward(NamedTuple):
    """A reward function, and how much its numbers count."""

    name: str
    """What it is logged by."""
    weight: float
    function: RewardFunction


# --- Which rewards, and how they are weighted ---


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class RewardModelSettings(_Settings):
    """The run's reward model, or an ensemble of them."""

    kind: Literal["reward_model"] = "reward_model"
    weight: float = 1.0
    """Weight of the score, in standard deviations of the scores of reference samples."""
    ensemble_k: float = Field(default=0.0, ge=0)
    """Standard deviations among the reward models of an ensemble that are taken off their mean."""


class PrinciplesSettings(_Settings):
    """The labeler's score by every principle that the labeler was found to understand."""

    kind: Literal["constitution"] = "constitution"
    weight: float = 1.0
    """Weight of the score, from -1 to 1, a mean over the principles by their weights."""


class LengthSettings(_Settings):
    """The number of words beyond a limit."""

    kind: Literal["length"] = "length"
    weight: float = -0.01
    """Weight of a word beyond the limit; of a deviation of their number, where several rewards are normalised."""
    limit: int = Field(default=60, ge=0)
    """Number of words that cost nothing; in Chinese, Japanese, Thai and the like a character counts as a word."""


class RefusalSettings(_Settings):
    """Whether a reply refuses, by a list of phrases: a rough rule."""

    kind: Literal["refusal"] = "refusal"
    weight: float = -1.0
    """Weight of a refusal; of a deviation, where several rewards are normalised."""
    phrases: tuple[str, ...] = REFUSAL_PHRASES
    """A reply with one of these phrases among its first 40 words is a refusal; upper and lower case are alike."""


class QuestionsSettings(_Settings):
    """The number of questions that a reply asks."""

    kind: Literal["questions"] = "questions"
    weight: float = -0.1
    """Weight of a question; of a deviation of their number, where several rewards are normalised."""


class PythonSettings(_Settings):
    """A function that the user wrote."""

    kind: Literal["python"] = "python"
    function: Annotated[str, TECHNICAL]
    """"file.py:function" or "package.module:function"; it is called as TRL calls a reward function."""
    weight: float = 1.0
    """Weight of the function's number."""

    @field_validator("function")
    @classmethod
    def _found_from_anywhere(cls, function: str) -> str:
        return resolved(function)


RewardSettings = Annotated[
    RewardModelSettings | PrinciplesSettings | LengthSettings | RefusalSettings | QuestionsSettings | PythonSettings,
    Field(discriminator="kind"),
]


Aggregation = Literal["normalize_then_sum", "sum_then_normalize"]


class OnlineSettings(_Settings):
    """What is rewarded in an online training, and how replies are sampled."""

    rewards: tuple[RewardSettings, ...] = (RewardModelSettings(),)
    """The rewards of a reply: a list of {kind: …, weight: …}."""
    # What it comes to decides results only where there are several rewards: `stages/online.py` says it there.
    multi_objective_aggregation: Annotated[Aggregation, TECHNICAL] = "normalize_then_sum"
    """How several rewards, such as those of a constitution's principles, become one. normalize_then_sum divides the
    lead of each reward over the mean of its group by the deviation of its group, and then adds them by their weights,
    so that each counts by its weight (GDPO, arXiv 2601.05242); a group is the replies to a prompt, or a phase of PPO.
    sum_then_normalize adds them as they are, and the reward that varies most wins. Nothing changes with one reward."""

    temperature: float = Field(default=1.0, gt=0)
    """Temperature at which replies are sampled and log-probabilities are taken."""
    max_tokens: int = Field(default=160, ge=1)
    """Length in tokens at which a reply is cut off."""
    missing_eos_penalty: float = Field(default=1.0, ge=0)
    """Amount that is taken from the reward of a reply that was cut off."""
    rollouts: int = Field(default=128, ge=1)
    """Most replies of each step, or phase of PPO, that are kept to be scored and read."""
    sampler: Literal["transformers", "vllm"] = "transformers"
    """What draws the replies: the model that is trained itself, or vLLM, which takes over its weights before every
    step. With vLLM and GRPO or RLOO a training that was interrupted goes on with other replies."""
    sampler_memory: Annotated[float, TECHNICAL] = Field(default=0.3, gt=0, le=1)
    """The share of a GPU's memory that vLLM takes beside the training; on a CPU, of 4 GiB for what it has read."""

    @property
    def aggregation(self) -> Aggregation:
        """How rewards become one, if there are several; one alone is taken as it is."""
        several = len(self.rewards) > 1 or any(isinstance(reward, PrinciplesSettings) for reward in self.rewards)
        return self.multi_objective_aggregation if several else "sum_then_normalize"

    @field_validator("rewards")
    @classmethod
    def _logged_apart(cls, chosen: tuple[RewardSettings, ...]) -> tuple[RewardSettings, ...]:
        kinds = [reward.kind for reward in chosen if reward.kind != "python"]
        if not chosen:
            raise ValueError('is empty, so nothing would be learned; type "algorithm.rewards=[{kind: reward_model}]"')
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            raise ValueError(f"holds two of the kind '{min(twice)}'; take one out, as they are logged by kind")
        return chosen


def check_names(rewards: Iterable[Reward]) -> None:
    """Refuse two rewards of one name, whose numbers would be mixed in the log.

    Raises:
        ConfigurationError: names it.
    """
    names: set[str] = set()
    for reward in rewards:
        if reward.name in names:
            problem = f"two of them would be logged as '{reward.name}'; take one out, or rename the function"
            raise ConfigurationError(f"algorithm.rewards: {problem}")
        names.add(reward.name)


# --- What functions are called with ---


def reply_text(completion: Turns | str) -> str:
    """What the assistant said, without the thoughts that a policy that thinks is trained on as well."""
    return without_thoughts(completion if isinstance(completion, str) else completion[-1]["content"])


def conversation_with(prompt: Turns | str, completion: Turns | str) -> tuple[Message, ...]:
    """A prompt and its reply as one conversation; plain text is one message."""
    turns: Turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return (*map(Message.of, turns), Message("assistant", reply_text(completion)))


# --- Models ---


class Scorer(Protocol):
    """A reward model whose scores are normalised."""

    def scores(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """One number for each conversation that ends with a reply."""
        ...


def reward_model(members: Sequence[Scorer], settings: RewardModelSettings) -> Reward:
    """Mean − k·deviation of the members' normalised scores (`ensemble` in ppo/math.py)."""

    def score(prompts: Sequence[Turns], completions: Sequence[Turns], **_: object) -> list[float | None]:
        import torch

        from constitutional.training.ppo.math import ensemble

        conversations = list(map(conversation_with, prompts, completions))
        by_member = torch.tensor([member.scores(conversations) for member in members], dtype=torch.float64)  # (K, B)
        scores: list[float | None] = ensemble(by_member, settings.ensemble_k).tolist()
        return scores

    return Reward("reward_model", settings.weight, score)


# --- Rules ---


def length(settings: LengthSettings) -> Reward:
    """Words of a reply beyond the limit."""
    return Reward("length", settings.weight, _of_text(lambda text: max(0, len(words(text)) - settings.limit)))


def refusal(settings: RefusalSettings) -> Reward:
    """1 where a reply refuses, 0 where it does not."""
    return Reward("refusal", settings.weight, _of_text(lambda text: refuses(text, settings.phrases)))


def questions(settings: QuestionsSettings) -> Reward:
    """Questions that a reply asks: question marks of any script, a row of them being one."""
    return Reward("questions", settings.weight, _of_text(count_questions))


def _of_text(rule: Callable[[str], float]) -> RewardFunction:
    def count(completions: Sequence[Turns], **_: object) -> list[float | None]:
        return [float(rule(reply_text(completion))) for completion in completions]

    return count


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
    loaded = load_reward(settings.function)
    return Reward(f"function/{loaded.name}", settings.weight, loaded)


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
