"""AnnotatedPairs 2.0 of a run's comparisons: principles, the labeler and people are annotators.

The schema is that of inverse-cai 0.4.8, which feedback-forensics 0.5.0 reads. The file is one JSON object,
all of which is in memory at once.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from constitutional.base.records import Comparison, Judgement, Preference, Verdict
from constitutional.data.export.rows import shown, unspoken
from constitutional.data.votes.annotated_pairs import tasks
from constitutional.data.votes.items import items_of


def annotated_pairs(
    comparisons: Iterable[Comparison],
    judgements: Collection[Judgement],
    labels: Mapping[str, float | None],
    verdicts: Collection[Verdict],
    preferences: Iterable[Preference],
    principles: Mapping[str, str],
) -> dict[str, Any]:
    """The comparisons that somebody judged, and the pairs of people elsewhere, as one file.

    Args:
        comparisons: the run's.
        judgements: of the labeler and of a panel, by principle.
        labels: by comparison, the probability that a is better by all judgements.
        verdicts: of people on the run's comparisons.
        preferences: the run's; those of people that rest on none of its comparisons are from elsewhere.
        principles: by id, the author's words.
    """
    by_id = {comparison.id: comparison for comparison in comparisons}
    judged = {row.comparison for row in judgements} | {row.comparison for row in verdicts}
    items = items_of((row for row in by_id.values() if row.id in judged), None)
    elsewhere = {row.comparison: row for row in preferences if row.source == "human" and row.comparison not in by_id}
    votes = [
        Verdict(comparison=name, rater=f"people of {row.prompt.source or 'a file'}", choice="a")
        for name, row in elsewhere.items()
    ]
    rows = [*items, *map(shown, elsewhere.values())]
    content = tasks(rows, [*verdicts, *votes], list(judgements), labels, principles)
    prompts = {name: row.prompt for name, row in (by_id | elsewhere).items()}
    for row in content["comparisons"]:
        row["metadata"] |= unspoken(prompts[row["id"]].messages, row["prompt"])
        if preference := elsewhere.get(row["id"]):  # how much better the chosen one is, nobody said
            for annotation in row["annotations"].values():
                del annotation["strength"]
                annotation["probability"] = preference.probability
    return content
