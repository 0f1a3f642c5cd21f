"""The gold score: what the replies that a policy was trained on are worth by a judge that the training never asked.

A policy that is trained against a reward model ends up pleasing the model better than its purpose: the proxy reward
rises on, and what was meant falls (Gao, Schulman and Hilton 2023, "Scaling laws for reward model overoptimization").
They plot both against √KL from the model before; here the points are stretches of the training. In the sandbox the
judge is exact: how much of what the constitution's tags ask for a reply keeps. Elsewhere it is the labeler, asked
directly for a score, and a reward model that was held out, if there is one.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from constitutional.base.records import GoldJudge, GoldPoint, Message, Prompt, Rollout
from constitutional.base.seeds import rng_of
from constitutional.base.stats import bootstrap_mean
from constitutional.judging.labeler import Labeler, LabelerSettings
from constitutional.sandbox import teacher
from constitutional.sandbox.detect import detect
from constitutional.sandbox.prompts import SANDBOX, sandbox_prompt
from constitutional.stages.context import StageContext
from constitutional.training.reward_model import NORMALISATION, load_reward_model, raw_scores
from constitutional.training.reward_model import score as ensemble_scores

if TYPE_CHECKING:
    from constitutional.constitution.constitution import Constitution

POINTS: Final = 12
"""Most stretches of a training: few enough that each holds replies for an interval that says something."""


def kept_share(constitution: "Constitution", prompt: Prompt, reply: str) -> float | None:
    """Of the principles whose tags name a trait, the share by weight that a reply keeps; 0 where it is not well-formed.

    None where no principle has such tags. What cannot apply to a prompt is kept.
    """
    asked = [
        (each.weight, *tagged[0])
        for each in constitution.principles
        if len(tagged := [family for family in teacher.FAMILIES if set(family) <= set(each.tags)]) == 1
    ]
    if not asked:
        return None
    question = sandbox_prompt(prompt)
    found = detect(question, reply)
    if not found.well_formed:
        return 0.0
    kept = [weight for weight, trait, way in asked if not teacher.is_violated(question, found.traits, trait, way)]
    return math.fsum(kept) / math.fsum(weight for weight, _, _ in asked)


def mean_scores(
    constitution: "Constitution", conversations: Sequence[Sequence[Message]], labeler: Labeler
) -> list[float | None]:
    """For each conversation that ends with a reply, the labeler's score from 1 to 10, a mean over principles by weight.

    None where a score cannot be read: a mean over the others would be of other principles than the other replies'.
    """
    weights = [each.weight for each in constitution.principles]
    return [
        math.fsum(weight * one for weight, one in zip(weights, its, strict=True)) / math.fsum(weights)
        if (its := [each for each in scores if each is not None]) and len(its) == len(scores)
        else None
        for scores in labeler.score(conversations, constitution.principles)
    ]


def held_out_scores(folder: Path, conversations: Sequence[Sequence[Message]]) -> list[float]:
    """What a reward model gives to conversations that end with a reply: one of a run, normalised, or any other."""
    if (folder / NORMALISATION).exists():
        return [each.mean for each in ensemble_scores(folder, conversations)]
    return raw_scores(*load_reward_model(folder), conversations)


def points(
    by: GoldJudge, rollouts: Sequence[Rollout], scores: Sequence[float | None], seed: int, at_most: int = POINTS
) -> Iterator[GoldPoint]:
    """The training in at most so many stretches of about as many phases each; replies without a score are left out."""
    judged = [(each, score) for each, score in zip(rollouts, scores, strict=True) if score is not None]
    phases = sorted({each.phase for each, _ in judged})
    count = min(at_most, len(phases))
    for number in range(count):
        within = set(phases[number * len(phases) // count : (number + 1) * len(phases) // count])
        its = [(each, score) for each, score in judged if each.phase in within]
        kls = [each.phase_kl for each, _ in its if each.phase_kl is not None]
        kl = math.fsum(kls) / len(kls) if kls else None
        gold = [score for _, score in its]
        interval = bootstrap_mean(gold, [each.prompt for each, _ in its], seed=seed)
        mean = math.fsum(gold) / len(gold)
        known = math.isfinite(interval.low)  # of one prompt alone there is no interval; then it is all there is
        yield GoldPoint(
            by=by,
            first_phase=min(within),
            last_phase=max(within),
            kl=kl,
            sqrt_kl=None if kl is None else math.sqrt(max(kl, 0.0)),
            proxy=math.fsum(each.reward for each, _ in its) / len(its),
            gold=mean,
            low=interval.low if known else min(gold),
            high=interval.high if known else max(gold),
            n=len(its),
        )


def some_of_each_phase(rollouts: Sequence[Rollout], at_most: int, seed: int) -> list[Rollout]:
    """At most so many, as many of each phase as of any other; of a longer training than that, of evenly spread phases.

    More of them hold all of fewer only within a phase.
    """
    phases = sorted({each.phase for each in rollouts})
    if len(phases) > at_most:
        phases = [phases[number * len(phases) // at_most] for number in range(at_most)]
    if not phases or not at_most:
        return []
    each_has = at_most // len(phases)
    chosen = []
    for phase in phases:
        its = [each for each in rollouts if each.phase == phase]
        chosen += sorted(its, key=lambda each: rng_of(seed, "gold", each.id).random())[:each_has]
    return chosen


def run(context: StageContext, labeler: LabelerSettings, *, at_most: int, reward_model: Path | None) -> None:
    """Score `rollouts`, and write `gold`.

    Args:
        context: the stage's view of the run.
        labeler: how the labeler is asked to reason.
        at_most: most replies that the labeler and the held-out reward model score; what is exact scores all.
        reward_model: the folder of one that was held out.
    """
    prompts = {each.id: each for each in context.read("prompts", Prompt)}
    rollouts = context.read("rollouts", Rollout)
    found: list[GoldPoint] = []
    exact = [
        kept_share(context.constitution, prompts[each.prompt], each.reply)
        if prompts[each.prompt].source == SANDBOX
        else None
        for each in rollouts
    ]
    found += points("traits", rollouts, exact, context.seed)
    some = some_of_each_phase(rollouts, at_most, context.seed)
    conversations = [(*prompts[each.prompt].messages, Message("assistant", each.reply)) for each in some]
    if not found and some:
        judge = Labeler(context.engine("labeler"), context.prompts, labeler, context.seed)
        scores = mean_scores(context.constitution, conversations, judge)
        found += points("labeler", some, scores, context.seed)
        context.note("gold", {"replies scored": len(some), "unreadable scores": sum(each is None for each in scores)})
    if reward_model is not None:
        found += points("reward_model", some, held_out_scores(reward_model, conversations), context.seed)
    context.write("gold", found)
