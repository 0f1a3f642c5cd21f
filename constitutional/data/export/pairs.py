"""AnnotatedPairs 2.0 of a run's comparisons: principles, the labeler and people are annotators.

The schema is that of inverse-cai 0.4.8, which feedback-forensics 0.5.0 reads. The file is one JSON object,
all of which is in memory at once.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from constitutional.base.records import Comparison, Judgement, Preference, Verdict
from constitutional.base.text import same_text
from constitutional.data.export.rows import shown, unspoken
from constitutional.data.votes.annotated_pairs import tasks
from constitutional.data.votes.items import items_of, whole_characters


def annotated_pairs(
    comparisons: Iterable[Comparison],
    judgements: Collection[Judgement],
    labels: Mapping[str, float | None],
    verdicts: Collection[Verdict],
    preferences: Iterable[Preference],
    principles: Mapping[str, str],
) -> dict[str, Any]:
    """The comparisons that somebody judged, and the pairs from elsewhere, as one file.

    The run's label says by which principles it is, where it became a preference. Of pairs from elsewhere, people and
    models are an annotator for each file and what a verdict is by; those of models are of the type of the run's label.

    Args:
        comparisons: the run's.
        judgements: of the labeler and of a panel, by principle.
        labels: by comparison, the probability that a is better by all judgements.
        verdicts: of people on the run's comparisons.
        preferences: the run's; those of none of its comparisons are from elsewhere.
        principles: by id, the author's words.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    judged = {row.comparison for row in judgements} | {row.comparison for row in verdicts}
    items = items_of((row for row in by_id.values() if row.id in judged), None)
    first: dict[str, Preference] = {}
    by_annotator: dict[tuple[str, str, str | None], Preference] = {}
    votes = []
    by_principles: dict[str, list[str]] = {}
    for preference in preferences:
        name = preference.comparison
        if name in by_id:
            if preference.source == "ai":
                by_principles[name] = list(preference.principles)
        else:
            shown_as = first.setdefault(name, preference)
            vote = _vote(preference, shown_as)
            votes.append(vote)
            by_annotator[name, whole_characters(vote.rater), vote.principle] = preference
    rows = [*items, *map(shown, first.values())]
    content = tasks(rows, [*verdicts, *votes], list(judgements), labels, principles)
    prompts = {name: row.prompt for name, row in (by_id | first).items()}
    label = content["metadata"]["default_annotator"]
    for row in content["comparisons"]:
        row["metadata"] |= unspoken(prompts[row["id"]].messages, row["prompt"])
        if label in row["annotations"] and by_principles.get(row["id"]):
            row["annotations"][label]["principles"] = by_principles[row["id"]]
        for annotator, annotation in row["annotations"].items() if row["id"] in first else ():
            about = content["annotators"][annotator]
            preference = by_annotator[row["id"], about.get("rater", about["name"]), about.get("principle")]
            about["type"] = "human" if preference.source == "human" else "unknown"
            del annotation["strength"]  # how much better the chosen one is, nobody said
            annotation["probability"] = preference.probability
            if preference.principles:
                annotation["principles"] = list(preference.principles)
            if preference.weight != 1:
                annotation["weight"] = preference.weight
    return content


def _vote(preference: Preference, shown_as: Preference) -> Verdict:
    """What a preference from elsewhere says of its comparison, in which the chosen reply of another is a."""
    who = "people" if preference.source == "human" else "a model"
    side: Literal["a", "b"] = "a" if same_text(preference.chosen, shown_as.chosen) else "b"
    return Verdict(
        comparison=preference.comparison,
        rater=f"{who} of {preference.prompt.source or 'a file'}",
        choice="tie" if preference.probability == 0.5 else side,
        principle=", ".join(preference.principles) or None,
    )
