"""Which comparisons of a prompt are worth asking about, and by which principle.

Bai et al. 2022, section 4.1, draw a principle for every comparison. Most principles have no bearing on most pairs, and
then the judgement is a tie. Here a principle is drawn for a prompt, first among those that the critic found violated in
the prompt's draft, and the labeler scores every response by itself. Only pairs whose scores differ are then compared.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence

from constitutional.base.records import Comparison, Revision
from constitutional.base.seeds import rng_of
from constitutional.constitution.constitution import Constitution, Principle


def violated_in_drafts(revisions: Iterable[Revision]) -> dict[str, frozenset[str]]:
    """By prompt's id, the principles that a critique found violated in the draft or in what it became."""
    return {
        revision.prompt.id: frozenset(
            step.principle for step in revision.steps if step.critique is not None and not step.found_nothing
        )
        for revision in revisions
    }


def principle_for(prompt: str, constitution: Constitution, violated: Collection[str], seed: int) -> Principle:
    """The principle by which the responses to a prompt are judged, drawn by weight.

    It is one of `violated`, ids of principles that the prompt's draft violated, if the constitution has any of them,
    and none that another of them overrides: where both have a bearing on a prompt, that one decides.
    """
    above = constitution.overridden_by
    first = [name for name in violated if not set(above.get(name, ())) & set(violated)]
    others = [principle.id for principle in constitution.principles if principle.id not in first]
    return constitution.draw(rng_of(seed, "label", "prompt", prompt), used=others)


def telling(comparisons: Sequence[Comparison], scores: Mapping[str, int | None], at_most: int) -> list[Comparison]:
    """The comparisons of one prompt whose responses' scores are furthest apart, in the order of `comparisons`.

    Args:
        comparisons: pairs of responses to one prompt.
        scores: by response, from 1 to 10; None where there is none, and the response is not compared.
        at_most: how many are taken. The comparisons' ids decide between gaps of one width.
    """
    gaps: dict[str, int] = {}
    for comparison in comparisons:
        score_a, score_b = scores[comparison.a], scores[comparison.b]
        if score_a is not None and score_b is not None and score_a != score_b:
            gaps[comparison.id] = abs(score_a - score_b)
    widest = sorted(gaps, key=lambda name: (-gaps[name], name))[:at_most]
    return [comparison for comparison in comparisons if comparison.id in widest]
