"""AnnotatedPairs, the format of ICAI and Feedback Forensics (version 2.0 is written, 1.0 and 2.0 are read).

Every rater is an annotator of type `human`; of a run's judgements, every principle and judge is one of type
`principle`. The keys `strength`, `reason` and `probability` of an annotation, and `principle` of a human, are ours:
other readers pass over them.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from constitutional.base.jsonl import shortened
from constitutional.base.records import LABELER, Comparison, Judgement, Verdict
from constitutional.data.votes.items import VoteItem, whole_characters
from constitutional.data.votes.reading import BadVoteError, ForeignVote, ImportedVotes, NoVote, VoteFile, settled

VERSION: Final = "2.0"
_DEFAULT: Final = "Default annotator from original dataset (from column `preferred_text`)"
"""Feedback Forensics knows the annotator that others are compared with by the digest of this description."""
_REASONS: Final = {"tie": "tie", "both_bad": "both_bad", "skip": "skip", "not_applicable": "skip"}
"""The choice for a reason why there is no preference; the first three are ours."""


def _digest(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:8]


def tasks(items: Iterable[VoteItem], verdicts: Iterable[Verdict] = ()) -> dict[str, Any]:
    """The file of items with the verdicts on them, each rater an annotator; with no verdict, of tasks to annotate."""
    votes = defaultdict[str, list[Verdict]](list)
    for verdict in verdicts:
        votes[verdict.comparison].append(verdict)
    annotators: dict[str, dict[str, Any]] = {}
    rows = []
    for item in items:
        annotations = {}
        for vote in votes[item.comparison]:
            name = _digest(f"human {vote.rater!r} {vote.principle!r}")
            annotators.setdefault(name, _human(vote))
            annotations[name] = _annotation(item.side_of(vote.choice)) | {"strength": vote.strength}
            if vote.rationale:
                annotations[name]["reason"] = whole_characters(vote.rationale)
        rows.append(_row(item, annotations))
    return _file(annotators, rows, next(iter(annotators), None))


def _human(vote: Verdict) -> dict[str, Any]:
    by = f" by the principle '{vote.principle}'" if vote.principle else ""
    own = {"name": whole_characters(vote.rater), "description": whole_characters(f"{vote.rater}{by}"), "type": "human"}
    return own | ({"principle": vote.principle} if vote.principle else {})


def judged(
    items: Iterable[VoteItem], judgements: Iterable[Judgement], labels: Mapping[str, float | None]
) -> dict[str, Any]:
    """The file of a run's judgements: an annotator for each principle and judge, and their label as the default.

    Args:
        items: the comparisons.
        judgements: of the labeler and of a panel.
        labels: by comparison, the probability that a is better by all judgements.
    """
    by_comparison = defaultdict[str, list[Judgement]](list)
    for judgement in judgements:
        by_comparison[judgement.comparison].append(judgement)
    default = _digest(_DEFAULT)
    about = "The run's label: the mean of its judgements by weight"
    annotators = {default: {"name": "label", "description": about, "type": "unknown"}}
    rows = []
    for item in items:
        annotations = {default: _by_probability(item, labels.get(item.comparison))}
        for judgement in by_comparison[item.comparison]:
            judge = "" if judgement.judge == LABELER else f" ({judgement.judge})"
            description = whole_characters(judgement.principle_text + judge)
            name = _digest(description)
            annotators.setdefault(
                name, {"name": judgement.principle + judge, "description": description, "type": "principle"}
            )
            annotations[name] = _by_probability(item, judgement.p_a)
        rows.append(_row(item, annotations))
    return _file(annotators, rows, default)


def _by_probability(item: VoteItem, p_a: float | None) -> dict[str, Any]:
    """The annotation for the probability that response a is better; `probability` is of the preferred one."""
    if p_a is None:
        return {"pref": None, "no_pref_reason": "invalid"}
    choice = "a" if p_a > 0.5 else "b" if p_a < 0.5 else "tie"
    return _annotation(item.side_of(choice)) | {"probability": max(p_a, 1 - p_a)}


def _annotation(choice: str) -> dict[str, Any]:
    """Response a of the file stands left."""
    pref = {"left": "a", "right": "b"}.get(choice)
    return {"pref": pref} if pref else {"pref": None, "no_pref_reason": choice}


def _row(item: VoteItem, annotations: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": item.comparison,
        "prompt": item.conversation,
        "response_a": {"text": item.left},
        "response_b": {"text": item.right},
        "annotations": dict(annotations),
        "metadata": {"left_is": item.left_is},
    }


def _file(annotators: Mapping[str, Any], rows: list[dict[str, Any]], default: str | None) -> dict[str, Any]:
    metadata = {
        "version": VERSION,
        "description": "Comparisons with annotations",
        "default_annotator": default,
        "available_metadata_keys_per_comparison": ["left_is"],
    }
    return {"metadata": metadata, "annotators": dict(annotators), "comparisons": rows}


def recognises(file: VoteFile) -> bool:
    """Whether the file is one of AnnotatedPairs."""
    return isinstance(file.content, dict) and {"annotators", "comparisons"} <= file.content.keys()


def verdicts(file: VoteFile, comparisons: Mapping[str, Comparison]) -> ImportedVotes:
    """The verdicts of the annotators of type `human`; what others say is no vote of a person."""
    return settled(file, _votes(file), comparisons)


def _votes(file: VoteFile) -> Iterator[ForeignVote | NoVote | str]:
    content = file.content if isinstance(file.content, dict) else {}
    annotators, rows = content.get("annotators"), content.get("comparisons")
    if not isinstance(annotators, dict) or not isinstance(rows, list):
        yield f"{file.path}: has no 'annotators' or no 'comparisons'; expected a file of AnnotatedPairs 2.0"
        return
    for place, row in file.tasks(rows):
        annotations = row.get("annotations")
        if not isinstance(annotations, dict):
            yield f"{place}: 'annotations' is {shortened(annotations)}; expected an object with an entry an annotator"
            continue
        if not annotations:
            yield NoVote("comparisons without an annotation")
        for name, annotation in annotations.items():
            who = annotators.get(name)
            kind = who.get("type") if isinstance(who, dict) else None
            if not isinstance(who, dict):
                yield f"{place}: the annotator {shortened(name)} is not described in 'annotators'; expected its type"
            elif kind != "human":
                yield NoVote(f"annotations by annotators of type {shortened(kind)}, who are no people")
            else:
                try:
                    yield _vote(place, row, annotation, {"name": name, **who})
                except BadVoteError as error:
                    yield f"{place}: {error}"


def _vote(place: str, row: Mapping[str, Any], annotation: object, who: Mapping[str, Any]) -> ForeignVote:
    if not isinstance(annotation, dict) or "pref" not in annotation:
        raise BadVoteError(f"an annotation is {shortened(annotation)}; expected an object with 'pref'")
    pref = annotation["pref"]
    if pref is None:
        reason = annotation.get("no_pref_reason")
        choice = _REASONS.get(reason) if isinstance(reason, str) else None
        if choice is None:
            expected = f"expected one of {', '.join(_REASONS)}"
            raise BadVoteError(f"there is no preference, and the reason is {shortened(reason)}; {expected}")
    else:
        choice = {"a": "left", "text_a": "left", "b": "right", "text_b": "right"}.get(str(pref))
        if choice is None:
            raise BadVoteError(f"'pref' is {shortened(pref)}; expected a, b or null")
    metadata = row.get("metadata")
    return ForeignVote(
        place,
        row.get("id"),
        row.get("prompt"),
        _text(row, "a"),
        _text(row, "b"),
        who["name"],
        choice,
        annotation.get("strength"),
        annotation.get("reason"),
        principle=who.get("principle"),
        left_is=metadata.get("left_is") if isinstance(metadata, dict) else None,
    )


def _text(row: Mapping[str, Any], side: str) -> object:
    response = row.get(f"response_{side}", row.get(f"text_{side}"))
    return response.get("text") if isinstance(response, dict) else response
