"""What raters are asked: a plan and its items, which hold all that a page may show and nothing that it may not."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal

from pydantic import Field

from constitutional.base.frozen import Frozen
from constitutional.base.records import Comparison, Message, Prompt, SpotCheck
from constitutional.base.seeds import rng_of, seed_of
from constitutional.base.text import same_text
from constitutional.constitution.constitution import Constitution
from constitutional.review.settings import About, Task

HARMFUL_KINDS: Final = {"harmful": "requests for harmful acts", "private": "private data of people"}
"""Kinds of prompts, as their source names them, whose texts are hidden at first; and what raters read of them."""
BETWEEN: Final = "; "
"""Stands between the categories of an item; the name of none has a semicolon."""


class ReviewPrinciple(Frozen):
    """A principle as raters read it."""

    id: str
    text: str


class ItemPayload(Frozen):
    """What a rater sees of an item."""

    messages: tuple[Message, ...]
    """The whole conversation; the last message is the user's."""
    replies: Annotated[tuple[str, ...], Field(min_length=1)]
    """Two in a pair (a, b), one to rewrite, all that are ranked."""


class PlannedItem(Frozen):
    """One thing to ask about, and what the lead knows of it; raters see the payload and the category alone."""

    comparison: str
    """The comparison's id; in tasks other than `pair` the prompt's id."""
    payload: ItemPayload
    wanted: Annotated[int, Field(ge=1)] = 1
    """Votes wanted, each by another rater."""
    stratum: str = ""
    """Why the item is asked about."""
    probability: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Probability with which the item came into the plan."""
    audit: bool = False
    """Its votes measure only, and are never trained on."""
    gold: Literal["a", "b"] | None = None
    """The known answer, where the item tests raters; such items are mixed among the others."""
    category: str = ""
    """What is harmful about its texts, in the words that raters read, with `BETWEEN` between the categories; empty
    where nothing is known to be."""


class Plan(Frozen):
    """What all items share."""

    run: str
    """The run's name."""
    task: Task
    about: About = "comparisons"
    constitution: str
    """Digest of the constitution."""
    seed: int
    """The sides on which replies stand come from the seed, the item and the rater."""
    principles: tuple[ReviewPrinciple, ...] = ()
    """Principles by which raters answer, too; empty where they are not asked."""
    sensitive: dict[str, str] = Field(default={})
    """Regular expressions by category of harm; texts in which one occurs are hidden."""


def category_of(prompt: Prompt, replies: Iterable[str], sensitive: Mapping[str, str]) -> str:
    """What is harmful about the texts: the prompt's kind, and every category whose pattern occurs in a text.

    Args:
        prompt: the prompt.
        replies: the replies that a rater sees.
        sensitive: regular expressions by category.
    """
    texts = [*(message.content for message in prompt.messages), *replies]
    kind = HARMFUL_KINDS.get(prompt.info.get("kind", ""))
    categories = {} if kind is None else {kind: None}
    for name, pattern in sensitive.items():
        if any(re.search(pattern, text, re.IGNORECASE) for text in texts):
            categories[name] = None
    return BETWEEN.join(categories)


def items_of(
    comparisons: Iterable[Comparison], task: Task, *, seed: int, wanted: int, sensitive: Mapping[str, str]
) -> list[PlannedItem]:
    """All that can be asked about a run's comparisons, in the order of a seeded hash.

    A pair is a comparison; two replies that read the same are a tie, about which nobody is asked. For the other tasks
    the replies of all comparisons of a prompt are one item: all of them are ranked, and one of them, drawn by the seed,
    is rewritten.
    """
    questions: list[tuple[str, Prompt, tuple[str, ...]]] = []
    if task == "pair":
        questions = [
            (comparison.id, comparison.prompt, (comparison.a, comparison.b))
            for comparison in comparisons
            if not same_text(comparison.a, comparison.b)
        ]
    else:
        replies_to: dict[str, tuple[Prompt, dict[str, None]]] = {}
        for comparison in comparisons:
            _, replies = replies_to.setdefault(comparison.prompt.id, (comparison.prompt, {}))
            replies.update(dict.fromkeys((comparison.a, comparison.b)))
        for name, (prompt, texts) in replies_to.items():
            chosen = tuple(texts) if task == "rank" else (rng_of(seed, "rewrite", name).choice([*texts]),)
            questions.append((name, prompt, chosen))
    questions.sort(key=lambda item: (seed_of(seed, "review", item[0]), item[0]))
    return [
        PlannedItem(
            comparison=name,
            payload=ItemPayload(messages=prompt.messages, replies=replies),
            wanted=wanted,
            category=category_of(prompt, replies, sensitive),
        )
        for name, prompt, replies in questions
    ]


MOST_RATERS: Final = 1_000_000
"""Every rater may answer a gold item."""


def gold_items(constitution: Constitution, sensitive: Mapping[str, str], seed: int) -> list[PlannedItem]:
    """The examples of the principles by which responses are compared, with their known answers, in a seeded order.

    Left out are examples on which principles contradict each other, and those with equal texts.
    """
    better = defaultdict[tuple[str, frozenset[str]], set[str]](set)
    for principle in constitution.principles:
        for example in principle.examples if "comparison" in principle.uses else ():
            better[example.prompt, frozenset((example.better, example.worse))].add(example.better)
    items = []
    for (text, replies), preferred in better.items():
        if len(preferred) > 1 or len(replies) < 2:
            continue
        (a,) = preferred
        (b,) = replies - preferred
        prompt = Prompt.of(text)
        items.append(
            PlannedItem(
                comparison=Comparison(prompt=prompt, a=a, b=b).id,
                payload=ItemPayload(messages=prompt.messages, replies=(a, b)),
                wanted=MOST_RATERS,
                stratum="gold",
                gold="a",
                category=category_of(prompt, (a, b), sensitive),
            )
        )
    return sorted(items, key=lambda item: seed_of(seed, "gold", item.comparison))


def spot_checked(items: Iterable[PlannedItem], plan: Iterable[SpotCheck]) -> list[PlannedItem]:
    """The items of a run's plan of spot-checks, in its order, with the votes that it wants of each."""
    by_comparison = {item.comparison: item for item in items}
    return [
        by_comparison[check.comparison].model_copy(
            update={
                "wanted": check.votes,
                "stratum": check.reason,
                "probability": check.probability,
                "audit": check.reason == "audit",
            }
        )
        for check in plan
    ]


def shown_order(seed: int, item: str, rater: str, replies: int) -> list[int]:
    """The order in which a rater sees the replies, by their places: [1, 0] shows reply b on the left."""
    order = list(range(replies))
    rng_of(seed, "side", item, rater).shuffle(order)
    return order
