"""AnnotatedPairs, the format of ICAI and Feedback Forensics (version 2.0 is written, 1.0 and 2.0 are read).

Every rater is an annotator of type `human`; of a run's judgements, every principle and judge is one of type
`principle`. The keys `strength`, `reason` and `probability` of an annotation and those of what it took (`work`),
`rater` and `principle` of a human, and `given` of a principle, the words that its judge read where these are not the
author's alone, are ours: other readers pass over them. They tell annotators apart by their names.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from constitutional.base.jsonl import shortened
from constitutional.base.records import LABELER, Comparison, Judgement, Verdict
from constitutional.data.votes.items import VoteItem, whole_characters
from constitutional.data.votes.reading import BadVoteError, ForeignVote, ImportedVotes, NoVote, VoteFile, settled
from constitutional.data.votes.work import COLUMNS as WORK
from constitutional.data.votes.work import work_beside

VERSION: Final = "2.0"
_DEFAULT: Final = "Default annotator from original dataset (from column `preferred_text`)"
"""Feedback Forensics knows the annotator that others are compared with by the digest of this description."""
_WITHOUT: Final = {"tie": "both", "both_bad": "neither", "skip": "not_applicable"}
"""How a choice of neither response is written: the reasons that ICAI knows."""
_REASONS: Final = {reason: choice for choice, reason in _WITHOUT.items()} | {choice: choice for choice in _WITHOUT}


def _digest(text: str) -> str:
    return hashlib.md5(text.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:8]


def tasks(
    items: Iterable[VoteItem],
    verdicts: Iterable[Verdict] = (),
    judgements: Sequence[Judgement] = (),
    labels: Mapping[str, float | None] | None = None,
    principles: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The file of items, to be annotated or with what people and judges say of them already.

    Args:
        items: the comparisons.
        verdicts: of people; every rater is an annotator, and one more for each principle that they voted by.
        judgements: of the labeler and of a panel; every principle and judge is an annotator.
        labels: by comparison, the probability that a is better, for the default annotator, with which Feedback
            Forensics compares the others; by all judgements, or by all people where there is no judgement.
        principles: by id, the author's words; a principle that is not in it has those that its judge read.
    """
    annotations = defaultdict[str, dict[str, dict[str, Any]]](dict)
    annotators: dict[str, dict[str, Any]] = {}
    shown = {item.comparison: item for item in items}
    default = None if labels is None else _digest(_DEFAULT)
    if default is not None:
        about = "The run's label: the mean of its judgements by weight" if judgements else "What most people say"
        annotators[default] = {"name": "label", "description": about, "type": "unknown"}
    for name, p_a in (labels or {}).items():
        if name in shown and default is not None:
            annotations[name][default] = _by_probability(shown[name], p_a)
    for judgement in judgements:
        if judgement.comparison in shown:
            judge = "" if judgement.judge == LABELER else f" ({judgement.judge})"
            words = (principles or {}).get(judgement.principle, judgement.principle_text)
            description = whole_characters(words + judge)
            own = {"name": judgement.principle + judge, "description": description, "type": "principle"}
            if words != judgement.principle_text:
                own["given"] = whole_characters(judgement.principle_text)
            annotators[_digest(description)] = own
            vote = _by_probability(shown[judgement.comparison], judgement.p_a)
            annotations[judgement.comparison][_digest(description)] = vote
    for verdict in verdicts:
        if verdict.comparison in shown:
            annotator = _digest(f"human {verdict.rater!r} {verdict.principle!r}")
            annotators[annotator] = _human(verdict)
            item = shown[verdict.comparison]
            vote = _annotation(item.side_of(verdict.choice)) | {"strength": verdict.strength}
            reason = {"reason": whole_characters(verdict.rationale)} if verdict.rationale else {}
            annotations[verdict.comparison][annotator] = vote | reason | work_beside(item, verdict)
    metadata = {
        "version": VERSION,
        "description": "Comparisons with annotations",
        "default_annotator": default,
        "available_metadata_keys_per_comparison": ["left_is"],
    }
    rows = [_row(item, annotations[item.comparison]) for item in shown.values()]
    return {"metadata": metadata, "annotators": annotators, "comparisons": rows}


def shares_of(verdicts: Iterable[Verdict]) -> dict[str, float | None]:
    """The share of people who say that a is better, by comparison; ties count half, and None is where nobody says."""
    worth = {"a": 1.0, "tie": 0.5, "b": 0.0}
    by_comparison = defaultdict[str, list[float]](list)
    for verdict in verdicts:
        known = verdict.principle is None and verdict.choice in worth
        by_comparison[verdict.comparison] += [worth[verdict.choice]] if known else []
    return {name: fmean(shares) if shares else None for name, shares in by_comparison.items()}


def _human(vote: Verdict) -> dict[str, Any]:
    rater = whole_characters(vote.rater)
    if vote.principle is None:
        return {"name": rater, "description": rater, "type": "human"}
    name, description = f"{rater}, by {vote.principle}", f"{rater} by the principle '{vote.principle}'"
    return {"name": name, "description": description, "type": "human", "rater": rater, "principle": vote.principle}


def _by_probability(item: VoteItem, p_a: float | None) -> dict[str, Any]:
    """The annotation for the probability that response a is better; `probability` is of the preferred one."""
    if p_a is None:
        return {"pref": None, "no_pref_reason": "invalid"}
    choice = "a" if p_a > 0.5 else "b" if p_a < 0.5 else "tie"
    return _annotation(item.side_of(choice)) | {"probability": max(p_a, 1 - p_a)}


def _annotation(choice: str) -> dict[str, Any]:
    """Response a of the file stands left."""
    pref = {"left": "a", "right": "b"}.get(choice)
    return {"pref": pref} if pref else {"pref": None, "no_pref_reason": _WITHOUT[choice]}


def _row(item: VoteItem, annotations: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": item.comparison,
        "prompt": item.conversation,
        "response_a": {"text": item.left},
        "response_b": {"text": item.right},
        "annotations": dict(annotations),
        "metadata": {"left_is": item.left_is},
    }


def recognises(file: VoteFile) -> bool:
    """Whether the file is one of AnnotatedPairs."""
    return isinstance(file.content, dict) and {"annotators", "comparisons"} <= file.content.keys()


def verdicts(file: VoteFile, comparisons: Mapping[str, Comparison], principles: Collection[str]) -> ImportedVotes:
    """The verdicts of the annotators of type `human`; what others say is no vote of a person."""
    return settled(file, _votes(file), comparisons, principles)


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
        who.get("rater", who["name"]),
        choice,
        annotation.get("strength"),
        annotation.get("reason"),
        principle=who.get("principle"),
        left_is=metadata.get("left_is") if isinstance(metadata, dict) else None,
        **{name: annotation.get(name) for name in WORK},
    )


def _text(row: Mapping[str, Any], side: str) -> object:
    response = row.get(f"response_{side}", row.get(f"text_{side}"))
    return response.get("text") if isinstance(response, dict) else response
