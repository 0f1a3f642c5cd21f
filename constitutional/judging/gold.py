"""The gold score: what the replies that a policy was trained on are worth by a judge that the training never asked.

A policy trained against a reward model ends up pleasing the model better than its purpose: the proxy reward rises, and
the gold score falls (Gao, Schulman and Hilton 2023, "Scaling laws for reward model overoptimization"). They plot both
against √KL from the model before; here the points are stretches of the training. In the sandbox the judge is exact: how
much of what the constitution's tags ask for a reply keeps. Elsewhere the labeler and a held-out reward model score.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from constitutional.base.records import GoldJudge, GoldPoint, Message, Prompt, Rollout
from constitutional.base.seeds import rng_of
from constitutional.base.stats import bootstrap_mean, weighted_mean
from constitutional.engines.stories import side_by_side, together
from constitutional.judging.labeler import Labeler
from constitutional.judging.understanding import tagged
from constitutional.sandbox import teacher
from constitutional.sandbox.detect import detect
from constitutional.sandbox.prompts import sandbox_prompt
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
    asked = [(principle.weight, *family) for principle in constitution.principles if (family := tagged(principle))]
    if not asked:
        return None
    question = sandbox_prompt(prompt)
    detection = detect(question, reply)
    if not detection.well_formed:
        return 0.0
    kept = [weight for weight, trait, way in asked if not teacher.is_violated(question, detection.traits, trait, way)]
    return math.fsum(kept) / math.fsum(weight for weight, _, _ in asked)


def mean_scores(
    constitution: "Constitution",
    conversations: Sequence[Sequence[Message]],
    labeler: Labeler,
    ended: Callable[[int], None] | None = None,
) -> Iterator[float | None]:
    """For each conversation that ends with a reply, the labeler's score from 1 to 10, a mean over principles by weight.

    None where a score cannot be read: a mean over the others would be of other principles than the other replies'.
    """
    weights = [principle.weight for principle in constitution.principles]
    for scores in scores_by_principle(constitution, conversations, labeler, ended):
        readable = [score for score in scores if score is not None]
        yield weighted_mean(readable, weights) if len(readable) == len(scores) else None


def scores_by_principle(
    constitution: "Constitution",
    conversations: Sequence[Sequence[Message]],
    labeler: Labeler,
    ended: Callable[[int], None] | None = None,
) -> Iterator[Sequence[float | None]]:
    """For each conversation that ends with a reply, the labeler's score from 1 to 10 by each principle."""

    async def scores(conversation: Sequence[Message]) -> Sequence[float | None]:
        return await together(labeler.score(conversation, principle) for principle in constitution.principles)

    return side_by_side(map(scores, conversations), ended=ended)


def held_out_scores(folder: Path, conversations: Sequence[Sequence[Message]]) -> list[float]:
    """What a reward model gives to conversations that end with a reply: one of a run, normalised, or any other."""
    if (folder / NORMALISATION).exists():
        return [score.mean for score in ensemble_scores(folder, conversations)]
    return raw_scores(*load_reward_model(folder), conversations)


def points(
    by: GoldJudge, rollouts: Sequence[Rollout], scores: Sequence[float | None], seed: int, at_most: int = POINTS
) -> Iterator[GoldPoint]:
    """The training in at most so many stretches of about as many phases each; replies without a score are left out."""
    judged = [(rollout, score) for rollout, score in zip(rollouts, scores, strict=True) if score is not None]
    phases = sorted({rollout.phase for rollout, _ in judged})
    count = min(at_most, len(phases))
    for number in range(count):
        within = set(phases[number * len(phases) // count : (number + 1) * len(phases) // count])
        stretch = [(rollout, score) for rollout, score in judged if rollout.phase in within]
        kls = [rollout.phase_kl for rollout, _ in stretch if rollout.phase_kl is not None]
        kl = math.fsum(kls) / len(kls) if kls else None
        gold = [score for _, score in stretch]
        interval = bootstrap_mean(gold, [rollout.prompt for rollout, _ in stretch], seed=seed)
        mean = math.fsum(gold) / len(gold)
        known = math.isfinite(interval.low)  # of one prompt alone there is no interval; then it is all there is
        yield GoldPoint(
            by=by,
            first_phase=min(within),
            last_phase=max(within),
            kl=kl,
            sqrt_kl=None if kl is None else math.sqrt(max(kl, 0.0)),
            proxy=math.fsum(rollout.reward for rollout, _ in stretch) / len(stretch),
            gold=mean,
            low=interval.low if known else min(gold),
            high=interval.high if known else max(gold),
            n=len(stretch),
        )


def some_of_each_phase(rollouts: Sequence[Rollout], at_most: int, seed: int) -> list[Rollout]:
    """At most so many, as many of each phase as of any other; of a longer training, of evenly spread phases."""
    phases = sorted({rollout.phase for rollout in rollouts})
    if len(phases) > at_most:
        phases = [phases[number * len(phases) // at_most] for number in range(at_most)]
    if not phases or not at_most:
        return []
    per_phase = at_most // len(phases)
    chosen = []
    for phase in phases:
        of_phase = [rollout for rollout in rollouts if rollout.phase == phase]
        chosen += sorted(of_phase, key=lambda rollout: rng_of(seed, "gold", rollout.id).random())[:per_phase]
    return chosen
