"""Which of a run's drafts, replies and rollouts the report shows: drawn, so that nobody chose them for their looks."""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from heapq import heappop, heappush
from typing import Any

from constitutional.base.records import Judgement, Preference, Prompt, Revision, Rollout, Sample
from constitutional.base.seeds import rng_of
from constitutional.base.shards import PlainRow, RowStream, columns_of, json_text, rows_with
from constitutional.stages.report.data import ExampleChoice, RevisionExample, RolloutExample


def rollout_examples(rollouts: Sequence[Rollout], prompts: RowStream[Prompt], count: int) -> Iterator[RolloutExample]:
    """One reply from each of evenly spread phases of a training online, the first and the last among them."""
    first = {rollout.phase: rollout for rollout in reversed(rollouts)}
    phases = sorted(first)
    places = {round(number * (len(phases) - 1) / max(count - 1, 1)) for number in range(count)} if phases else set()
    shown = [first[phases[place]] for place in sorted(places)]
    messages = {row.id: row.messages for row in rows_with(prompts, Prompt, "id", {rollout.prompt for rollout in shown})}
    for rollout in shown:
        yield RolloutExample(conversation=messages[rollout.prompt], rollout=rollout)


def revision_examples(
    revisions: RowStream[Revision],
    preferences: RowStream[Preference],
    judgements: RowStream[Judgement],
    count: int,
    seed: int,
) -> Iterator[RevisionExample]:
    """Revisions that changed their draft, drawn at random, with what was preferred later on the same prompt.

    Each principle's first comes before any principle's second.
    """
    drawn = drawn_revisions(revisions, count, seed)
    choices = example_choices(preferences, judgements, [revision.prompt for revision in drawn])
    for revision in drawn:
        yield RevisionExample(revision=revision, choice=choices.get(revision.prompt.id))


def drawn_revisions(revisions: RowStream[Revision], count: int, seed: int) -> list[Revision]:
    """So many of those that changed their draft; no more than so many of each principle's are held."""
    fields = tuple(Revision.model_fields)
    by_principle: defaultdict[str, list[tuple[float, int, PlainRow[Revision]]]] = defaultdict(list)
    for number, (name, *values) in enumerate(columns_of(revisions, Revision, ("id", *fields))):
        row = PlainRow(Revision, name, dict(zip(fields, values, strict=True)))
        principle = _changed_by(row.columns)
        if principle is not None:
            # The last in the order is at the top of the heap, and leaves it first.
            heappush(by_principle[principle], (-rng_of(seed, "report", name).random(), -number, row))
            if len(by_principle[principle]) > count:
                heappop(by_principle[principle])
    ranked = [
        (turn, -rank, -number, row)
        for rows in by_principle.values()
        for turn, (rank, number, row) in enumerate(sorted(rows, reverse=True))
    ]
    return [row.record() for *_, row in sorted(ranked)[:count]]


def _changed_by(columns: dict[str, Any]) -> str | None:
    """The first principle by which something was found in a draft; None where it is as it was, or left out."""
    steps = json.loads(columns["steps"])
    if columns["problem"] is not None or not steps or steps[-1]["revision"].strip() == columns["draft"].strip():
        return None
    return str(next(step["principle"] for step in steps if not step["found_nothing"] or step is steps[-1]))


def example_choices(
    preferences: RowStream[Preference], judgements: RowStream[Judgement], prompts: Iterable[Prompt]
) -> dict[str, ExampleChoice]:
    """By the id of these prompts, the first preference on one, with the reasons that it rests on."""
    wanted = {json_text(prompt.model_dump(mode="json")) for prompt in prompts}
    first: dict[str, Preference] = {}
    for preference in rows_with(preferences, Preference, "prompt", wanted):
        first.setdefault(preference.prompt.id, preference)
    behind = {name for preference in first.values() for name in preference.rests_on}
    by_id = {judgement.id: judgement for judgement in rows_with(judgements, Judgement, "id", behind)}
    return {
        prompt: ExampleChoice(
            preference=preference,
            reasons=tuple(
                (judgement.principle_text, reading.rationale)
                for judgement in (by_id[name] for name in preference.rests_on if name in by_id)
                for reading in judgement.readings
                if reading.rationale.strip()
            ),
        )
        for prompt, preference in first.items()
    }


def reply_examples(samples: Sequence[Sample], count: int, seed: int) -> tuple[Sample, ...]:
    """Held-out prompts drawn at random, with the models' replies."""
    return tuple(sorted(samples, key=lambda sample: rng_of(seed, "report", sample.prompt.id).random())[:count])
