"""Simulated people: votes on the sandbox's comparisons, made up from its exact traits.

Nobody voted. This stands in for people where sampling and mixing are tried and measured, and whatever rests on it says
so: these raters are called `simulated 1` and so on. It is the only place where exact traits come to be trained on,
which is what asking people means in the sandbox.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from constitutional.base.errors import ConfigurationError
from constitutional.base.records import Comparison, Prompt, Sample, SpotCheck, Verdict
from constitutional.base.seeds import rng_of
from constitutional.judging.evaluated import ViolationAnswer, contests_of, violation_items
from constitutional.judging.gold import kept_share
from constitutional.judging.people import simulated_rater
from constitutional.judging.scores import Measurement
from constitutional.judging.understanding import tagged
from constitutional.sandbox.prompts import SANDBOX

if TYPE_CHECKING:
    from constitutional.constitution.constitution import Constitution


def check_simulation(constitution: "Constitution", prompts: Iterable[Prompt]) -> None:
    """Refuse to simulate people where nothing says what they would want.

    Raises:
        ConfigurationError: a prompt is not the sandbox's, or no principle has tags that name a trait.
    """
    if any(prompt.source != SANDBOX for prompt in prompts):
        raise ConfigurationError("spotcheck.simulate makes votes in the sandbox alone; leave it out")
    if not any(tagged(principle) for principle in constitution.principles):
        raise ConfigurationError(
            "spotcheck.simulate goes by the principles' tags, such as tags: [flattery, avoid], and none of "
            f"'{constitution.name}' has any that name a trait; add them, or leave spotcheck.simulate out"
        )


def simulated(
    plan: Iterable[SpotCheck],
    comparisons: Sequence[Comparison],
    constitution: "Constitution",
    error: float,
    raters: int,
    seed: int,
) -> list[Verdict]:
    """A vote of each simulated rater that a comparison is planned for.

    A rater prefers the reply that keeps more of what the constitution's tags ask for, by weight; where both keep as
    much it is a tie. With the probability `error` a rater who has a preference names the other side.

    Raises:
        ConfigurationError: as `check_simulation`.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    plan = list(plan)
    if plan:
        check_simulation(constitution, (by_id[row.comparison].prompt for row in plan))
    verdicts = []
    for row in plan:
        comparison = by_id[row.comparison]
        a, b = (kept_share(constitution, comparison.prompt, reply) for reply in (comparison.a, comparison.b))
        assert a is not None, "there are tags"
        assert b is not None, "there are tags"
        first = rng_of(seed, "simulated rater", comparison.id).randrange(raters)
        for number in range(row.votes):
            rater = simulated_rater((first + number) % raters + 1)
            wrong = rng_of(seed, "simulated vote", comparison.id, rater).random() < error
            choice = "tie" if a == b else "a" if (a > b) != wrong else "b"
            strength = 1 + min(3, int(4 * abs(a - b)))
            verdicts.append(
                Verdict.model_validate(
                    {"comparison": comparison.id, "rater": rater, "choice": choice, "strength": strength}
                )
            )
    return verdicts


def simulated_answers(
    samples: Sequence[Sample],
    measurements: Sequence[Measurement],
    constitution: "Constitution",
    error: float,
    raters: int,
    seed: int,
) -> tuple[list[Verdict], list[ViolationAnswer]]:
    """What simulated raters say of half of the evaluated replies, one of them of each, drawn by the seed.

    They vote as `simulated` does, and find a violation where a reply does not keep what a principle's tags ask for;
    with the probability `error` they say the opposite. A principle without such tags is left out.
    """
    contests = [row.comparison for row in contests_of(samples, measurements)]
    contests.sort(key=lambda row: rng_of(seed, "simulated contest", row.id).random())
    plan = [SpotCheck(comparison=row.id, reason="random", probability=0.5) for row in contests[: len(contests) // 2]]
    items = violation_items(samples, measurements, constitution, seed)
    prompts = {sample.prompt.id: sample.prompt for sample in samples}
    answers = []
    for item in items[: len(items) // 2]:
        kept = kept_share(constitution.select([item.principle]), prompts[item.prompt], item.reply)
        if kept is not None:
            draw = rng_of(seed, "simulated answer", item.name)
            rater = simulated_rater(draw.randrange(raters) + 1)
            answers.append(ViolationAnswer(item.name, rater, (kept < 1) != (draw.random() < error)))
    return simulated(plan, contests, constitution, error, raters, seed), answers
