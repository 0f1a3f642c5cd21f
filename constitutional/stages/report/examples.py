"""Which of a run's drafts, replies and rollouts the report shows: drawn, so that nobody chose them for their looks."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from constitutional.base.records import Judgement, Preference, Prompt, Revision, Rollout, Sample
from constitutional.base.seeds import rng_of
from constitutional.stages.report.data import ExampleChoice, ExampleStep, ReplyExample, RevisionExample, RolloutExample


def rollout_examples(rollouts: Sequence[Rollout], prompts: Iterable[Prompt], count: int) -> Iterator[RolloutExample]:
    """One reply from each of evenly spread phases of a training online, the first and the last among them."""
    messages = {each.id: each.messages for each in prompts}
    first = {each.phase: each for each in reversed(rollouts)}
    phases = sorted(first)
    places = {round(number * (len(phases) - 1) / max(count - 1, 1)) for number in range(count)} if phases else set()
    for place in sorted(places):
        its = first[phases[place]]
        yield RolloutExample(
            phase=its.phase, conversation=messages[its.prompt], reply=its.reply, reward=its.reward, kl=its.kl
        )


def revision_examples(
    revisions: Iterable[Revision], choices: Mapping[str, ExampleChoice], count: int, seed: int
) -> Iterator[RevisionExample]:
    """Revisions that changed their draft, drawn at random, each principle's first before any principle's second.

    `choices` is what was preferred later, by the prompt's id.
    """
    changed = [each for each in revisions if each.problem is None and each.final.strip() != each.draft.strip()]
    changed.sort(key=lambda each: rng_of(seed, "report", each.id).random())
    turns: Counter[str] = Counter()
    ranked = []
    for each in changed:
        principle = next(step.principle for step in each.steps if not step.found_nothing or step is each.steps[-1])
        ranked.append((turns[principle], each))
        turns[principle] += 1
    for _, each in sorted(ranked, key=lambda pair: pair[0])[:count]:
        steps = tuple(
            ExampleStep(
                principle=step.principle,
                principle_text=step.principle_text,
                critique=step.critique,
                revision=step.revision,
            )
            for step in each.steps
        )
        choice = choices.get(each.prompt.id)
        conversation = each.prompt.messages
        yield RevisionExample(id=each.id, conversation=conversation, draft=each.draft, steps=steps, choice=choice)


def example_choices(preferences: Iterable[Preference], judgements: Iterable[Judgement]) -> dict[str, ExampleChoice]:
    """By prompt, the first preference on it, with the reasons that it rests on."""
    by_id = {judgement.id: judgement for judgement in judgements}
    found: dict[str, ExampleChoice] = {}
    for each in preferences:
        if each.prompt.id not in found:
            behind = [by_id[name] for name in each.rests_on if name in by_id]
            reasons = tuple((one.principle_text, heard.rationale) for one in behind for heard in one.readings)
            found[each.prompt.id] = ExampleChoice(
                chosen=each.chosen,
                rejected=each.rejected,
                probability=each.probability,
                source=each.source,
                reasons=tuple(pair for pair in reasons if pair[1].strip()),
            )
    return found


def reply_examples(samples: Sequence[Sample], count: int, seed: int) -> tuple[ReplyExample, ...]:
    """Held-out prompts drawn at random, with each model's reply."""
    drawn = sorted(samples, key=lambda each: rng_of(seed, "report", each.prompt.id).random())[:count]
    return tuple(
        ReplyExample(id=each.prompt.id, conversation=each.prompt.messages, replies=each.replies) for each in drawn
    )
