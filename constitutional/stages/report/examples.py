"""Which of a run's drafts, replies and rollouts the report shows: drawn, so that nobody chose them for their looks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from constitutional.base.records import Judgement, Preference, Prompt, Revision, Rollout, Sample
from constitutional.base.seeds import rng_of
from constitutional.stages.report.data import ExampleChoice, RevisionExample, RolloutExample


def rollout_examples(rollouts: Sequence[Rollout], prompts: Iterable[Prompt], count: int) -> Iterator[RolloutExample]:
    """One reply from each of evenly spread phases of a training online, the first and the last among them."""
    messages = {prompt.id: prompt.messages for prompt in prompts}
    first = {rollout.phase: rollout for rollout in reversed(rollouts)}
    phases = sorted(first)
    places = {round(number * (len(phases) - 1) / max(count - 1, 1)) for number in range(count)} if phases else set()
    for place in sorted(places):
        rollout = first[phases[place]]
        yield RolloutExample(conversation=messages[rollout.prompt], rollout=rollout)


def revision_examples(
    revisions: Iterable[Revision], choices: Mapping[str, ExampleChoice], count: int, seed: int
) -> Iterator[RevisionExample]:
    """Revisions that changed their draft, drawn at random, with what was preferred later, by the prompt's id.

    Each principle's first comes before any principle's second.
    """
    changed = [row for row in revisions if row.problem is None and row.final.strip() != row.draft.strip()]
    changed.sort(key=lambda row: rng_of(seed, "report", row.id).random())
    turns: Counter[str] = Counter()
    ranked = []
    for revision in changed:
        steps = revision.steps
        principle = next(step.principle for step in steps if not step.found_nothing or step is steps[-1])
        ranked.append((turns[principle], revision))
        turns[principle] += 1
    for _, revision in sorted(ranked, key=lambda pair: pair[0])[:count]:
        yield RevisionExample(revision=revision, choice=choices.get(revision.prompt.id))


def example_choices(preferences: Iterable[Preference], judgements: Iterable[Judgement]) -> dict[str, ExampleChoice]:
    """By prompt, the first preference on it, with the reasons that it rests on."""
    by_id = {judgement.id: judgement for judgement in judgements}
    choices: dict[str, ExampleChoice] = {}
    for preference in preferences:
        if preference.prompt.id not in choices:
            choices[preference.prompt.id] = ExampleChoice(
                preference=preference,
                reasons=tuple(
                    (judgement.principle_text, reading.rationale)
                    for judgement in (by_id[name] for name in preference.rests_on if name in by_id)
                    for reading in judgement.readings
                    if reading.rationale.strip()
                ),
            )
    return choices


def reply_examples(samples: Sequence[Sample], count: int, seed: int) -> tuple[Sample, ...]:
    """Held-out prompts drawn at random, with the models' replies."""
    return tuple(sorted(samples, key=lambda sample: rng_of(seed, "report", sample.prompt.id).random())[:count])
