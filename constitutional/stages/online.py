"""What the online algorithms (PPO, GRPO and RLOO) share: their rewards, and what they leave where there is none."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Generic, Self, TypeVar

from constitutional.base.errors import ConfigurationError
from constitutional.base.frozen import Frozen
from constitutional.engines.settings import RoleSettings, VllmSettings
from constitutional.judging.accuracy import PrincipleAccuracy, trusted_principles
from constitutional.judging.as_reward import by_principle
from constitutional.judging.labeler import Labeler, LabelerSettings
from constitutional.stages.context import StageContext
from constitutional.stages.summaries import OnlineSummary
from constitutional.training import rewards
from constitutional.training.reward_model import has_members
from constitutional.training.rewards import Aggregation, OnlineSettings, Reward, RewardSettings
from constitutional.training.saving import copy_model
from constitutional.training.user_reward import load_reward

if TYPE_CHECKING:
    from constitutional.constitution.constitution import Constitution

MOST_SHARED: Final = 0.8
"""Share of a GPU's memory that vLLM may take beside a training."""
S = TypeVar("S", bound=OnlineSettings)


class Inputs(Frozen, Generic[S]):
    """The settings that a stage depends on: its own, the labeler's where the constitution rewards, users' files."""

    algorithm: S
    labeler: LabelerSettings | None
    """None where no reward asks the labeler, so that its settings do not matter."""
    sources: tuple[Path, ...]
    """Files of users' functions; the stage's fingerprint holds their content, and not where they are."""
    functions: tuple[str, ...] = ()
    """Names of users' functions."""
    aggregation: Aggregation = "sum_then_normalize"
    """How several rewards become one."""

    @classmethod
    def of(cls, algorithm: S, labeler: LabelerSettings) -> Self:
        """From the settings of a run."""
        asked = LabelerSettings(**labeler.model_dump(include=set(LabelerSettings.model_fields)))
        return cls(
            algorithm=algorithm,
            labeler=asked if asks_labeler(algorithm) else None,
            sources=sources(algorithm),
            functions=tuple(reward.function.rpartition(":")[2] for reward in _python_rewards(algorithm)),
            aggregation=algorithm.aggregation,
        )


def needs(settings: OnlineSettings) -> tuple[str, ...]:
    """What the rewards need of a run beside prompts and the SFT model."""
    of_kind = {
        "reward_model": ("reward_model",),
        "constitution": ("labeler", "labeler_accuracy", "constitution", "score.j2"),
    }
    return tuple(need for reward in settings.rewards for need in of_kind.get(reward.kind, ()))


def asks_labeler(settings: object) -> bool:
    """Whether an algorithm has the constitution as one of its rewards."""
    return isinstance(settings, OnlineSettings) and any(reward.kind == "constitution" for reward in settings.rewards)


def _python_rewards(settings: OnlineSettings) -> list[rewards.PythonSettings]:
    return [reward for reward in settings.rewards if isinstance(reward, rewards.PythonSettings)]


def sources(settings: OnlineSettings) -> tuple[Path, ...]:
    """The files of the user's functions and of what they import: what they say decides what is trained."""
    functions = [load_reward(reward.function) for reward in _python_rewards(settings)]
    return tuple(dict.fromkeys(path for function in functions for path in function.sources))


def check(settings: OnlineSettings, labeler: RoleSettings) -> None:
    """Find the user's functions, and room for the labeler, before anything is asked or trained.

    Raises:
        ConstitutionalError: a function cannot be found or imported, two have the same name, or vLLM would take the
            memory that the training needs on the same GPU.
    """
    rewards.check_names(list(map(rewards.function, _python_rewards(settings))))
    if isinstance(labeler, VllmSettings) and asks_labeler(settings):
        _check_room(settings, labeler.memory)


def _check_room(settings: OnlineSettings, memory: float) -> None:
    import torch

    drawing = settings.sampler_memory if settings.sampler == "vllm" else 0.0
    if torch.cuda.is_available() and memory + drawing > MOST_SHARED:
        beside = f" and algorithm.sampler_memory={drawing:g}" if drawing else ""
        raise ConfigurationError(
            f"labeler.memory={memory:g}{beside} leave too little of the GPU's memory for the training, beside which "
            "the labeler scores replies; type labeler.memory=0.4, or labeler=http for a server on another GPU"
        )


def rewards_of(
    chosen: Sequence[RewardSettings], context: StageContext, labeler: LabelerSettings | None, *, several: bool
) -> list[Reward]:
    """The rewards that the settings name, in their order; a constitution's is one for each principle.

    Args:
        chosen: their settings.
        context: the stage's.
        labeler: whom a constitution's ask.
        several: whether several replies to a prompt are drawn to be held against each other.
    """
    functions: list[Reward] = []
    for reward in chosen:
        if isinstance(reward, rewards.RewardModelSettings):
            functions.append(rewards.reward_model(_members(context.model("reward_model")), reward))
        elif isinstance(reward, rewards.PrinciplesSettings):
            assert labeler is not None
            judge = Labeler(context.engine("labeler"), context.prompts, labeler, context.seed)
            accuracies = context.read("labeler_accuracy", PrincipleAccuracy)
            trusted = trusted_principles(context.constitution, accuracies)
            functions += by_principle(judge, trusted, reward, several=several)
        else:
            functions.append(rewards.rule(reward))
    rewards.check_names(functions)
    return functions


def _members(folder: Path) -> Sequence[rewards.Scorer]:
    import torch

    from constitutional.training.ppo.rollout import load_reward_models

    return load_reward_models(folder, None, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


LITTLE: Final = 0.05
"""Beside a reward of weight 1, a normalised one of a smaller weight than this changes next to nothing."""


def hardly_counted(settings: OnlineSettings) -> Iterator[str]:
    """A warning for each reward whose weight is for its own unit, such as a word, where rewards are normalised."""
    largest = max(abs(reward.weight) for reward in settings.rewards)
    for reward in settings.rewards if settings.aggregation == "normalize_then_sum" else ():
        if 0 < abs(reward.weight) < LITTLE * largest:
            yield (
                f"the reward '{reward.kind}' has the weight {reward.weight:g} beside {largest:g}, and hardly counts: "
                "several rewards are normalised before they are added, so that a weight is for a deviation. Give it a "
                "larger weight in algorithm.rewards, or type algorithm.multi_objective_aggregation=sum_then_normalize"
            )


def idle_priorities(settings: OnlineSettings, constitution: "Constitution") -> str:
    """A warning where the constitution rewards replies that are never held against another; empty where it does not."""
    if not (asks_labeler(settings) and constitution.overridden_by):
        return ""
    return (
        "the constitution says which principles override which, but PPO draws one reply to a prompt at a time, so that "
        "no two are held against each other, and every principle rewards by its weight alone; algorithm=grpo and rloo "
        "draw several, and let those decide that override"
    )


def lacks_reward_model(settings: OnlineSettings, context: StageContext) -> bool:
    """Whether the reward model that is asked for has no member, as no comparison was decided."""
    return "reward_model" in needs(settings) and not has_members(context.model("reward_model"))


def nothing_learned(context: StageContext) -> None:
    """Leave the SFT model as the policy: no comparison was decided, so no reward model says what a reply is worth."""
    context.warn("there is no reward model, as no comparison was decided: the policy is the SFT model")
    copy_model(context.model("sft_model"), context.output("policy"))
    context.write("rollouts", ())
    context.summarise(OnlineSummary(prompts=0, replies=0, steps=0, dropped={}))
