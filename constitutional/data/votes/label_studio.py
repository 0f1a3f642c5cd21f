"""Tasks for Label Studio, and its exports JSON, JSON-MIN and CSV.

A task's `data` holds the texts. Its `meta` says which response stands left; the smaller exports drop it. The
`lead_time` of an annotation is its time in seconds.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final
from xml.sax.saxutils import quoteattr

from constitutional.base.jsonl import shortened
from constitutional.base.records import Comparison
from constitutional.data.votes.items import VoteItem
from constitutional.data.votes.reading import BY, BadVoteError, ForeignVote, ImportedVotes, NoVote, VoteFile, settled

_CONFIG: Final = """\
<View>
  <Text name="conversation" value="$conversation" valueType="text"/>
  <Header value="Which response is better? Click on it."/>
  <Pairwise name="better" toName="left,right"/>
  <View style="display: flex; gap: 2em;">
    <View style="flex: 1;"><Text name="left" value="$left" valueType="text"/></View>
    <View style="flex: 1;"><Text name="right" value="$right" valueType="text"/></View>
  </View>
  <Header value="Or, without a click on a response:"/>
  <Choices name="verdict" toName="conversation" choice="single-radio" showInline="true">
    <Choice value="tie"/>
    <Choice value="both bad"/>
    <Choice value="skip"/>
  </Choices>
  <Header value="How much better?"/>
  <Choices name="strength" toName="conversation" choice="single-radio" showInline="true">
    <Choice value="1 slightly"/>
    <Choice value="2 clearly"/>
    <Choice value="3 much"/>
    <Choice value="4 far"/>
  </Choices>
{by_principle}  <Header value="Why? (optional)"/>
  <TextArea name="reason" toName="conversation" rows="3" maxSubmissions="1" editable="true"/>
</View>
"""
_PRINCIPLE: Final = """\
  <Header value={question}/>
  <Choices name={name} toName="conversation" choice="single-radio" showInline="true">
    <Choice value="left"/>
    <Choice value="right"/>
    <Choice value="tie"/>
    <Choice value="not applicable"/>
  </Choices>
"""
_NO_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def config(principles: Mapping[str, str] = MappingProxyType({})) -> str:
    """The labeling configuration, to be pasted into the project's settings.

    Args:
        principles: the texts of the principles by which raters answer, too, by id.
    """
    by_principle = "".join(
        _PRINCIPLE.format(name=quoteattr(BY + name), question=_attribute(f"By the principle: {text}"))
        for name, text in principles.items()
    )
    return _CONFIG.replace("{by_principle}", by_principle)


def _attribute(text: str) -> str:
    """The text as an attribute's value.

    Label Studio puts data of the task in the place of `$name` anywhere in it; an invisible word joiner keeps it from
    taking `$5` for that.
    """
    return quoteattr(_NO_XML.sub("\ufffd", text).replace("$", "$\u2060"))


def tasks(items: Iterable[VoteItem]) -> list[dict[str, Any]]:
    """The tasks, to be imported as one JSON list."""
    return [
        {
            "data": {
                "comparison": item.name,
                "conversation": item.conversation,
                "left": item.left,
                "right": item.right,
            },
            "meta": {"left_is": item.left_is},
        }
        for item in items
    ]


def recognises(file: VoteFile) -> bool:
    """Whether the file is one of Label Studio's exports."""
    if file.columns is not None:
        return {"annotation_id", "annotator"} <= set(file.columns)
    return any(
        isinstance(row, dict)
        and (("data" in row and ("annotations" in row or "completions" in row)) or "annotation_id" in row)
        for _, row in file.rows()
    )


def verdicts(file: VoteFile, comparisons: Mapping[str, Comparison], principles: Collection[str]) -> ImportedVotes:
    """The verdicts in an export; a task that its rater skipped is a verdict `skip`, and predictions are no votes."""
    return settled(file, _votes(file), comparisons, principles)


def _votes(file: VoteFile) -> Iterator[ForeignVote | NoVote | str]:
    for place, task in file.tasks():
        if "data" not in task:
            yield from _small(place, task)
            continue
        annotations = task.get("annotations", task.get("completions"))
        data, meta = task["data"], task.get("meta")
        if not isinstance(data, dict) or not isinstance(annotations, list):
            yield f"{place}: has no 'data' or no 'annotations'; expected Label Studio's export as JSON"
            continue
        if not annotations:
            yield NoVote("tasks without an annotation")
        for annotation in annotations:
            try:
                yield from _full(place, data, meta if isinstance(meta, dict) else {}, annotation)
            except BadVoteError as error:
                yield f"{place}: {error}"


def _full(place: str, data: Mapping[str, Any], meta: Mapping[str, Any], annotation: object) -> Iterator[ForeignVote]:
    """The votes of an annotation, in all and by principle, from the export as JSON."""
    if not isinstance(annotation, dict):
        raise BadVoteError(f"an annotation is {shortened(annotation)}; expected an object with 'result'")
    results = annotation.get("result") or []
    if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
        raise BadVoteError(f"the 'result' of an annotation is {shortened(results)}; expected a list of objects")
    controls = {str(result.get("from_name")): result.get("value") for result in results}
    skipped = annotation.get("was_cancelled") or annotation.get("skipped")
    when = annotation.get("updated_at") or annotation.get("created_at")
    own = {"skipped": skipped, "rater": annotation.get("completed_by"), "when": when}
    yield from _of_controls(place, data, controls | own | {"lead_time": annotation.get("lead_time")}, meta)


def _small(place: str, row: Mapping[str, Any]) -> Iterator[ForeignVote | NoVote | str]:
    """The votes of a row, in all and by principle, from the export as JSON-MIN or CSV."""
    if "annotation_id" not in row:
        yield f"{place}: is no task of Label Studio; expected its export as JSON, JSON-MIN or CSV"
    elif row["annotation_id"] in (None, ""):
        yield NoVote("tasks without an annotation")
    else:
        own = {"rater": row.get("annotator"), "when": row.get("updated_at") or row.get("created_at")}
        try:
            yield from _of_controls(place, row, {**row, **own}, row)
        except BadVoteError as error:
            yield f"{place}: {error}"


def _of_controls(
    place: str, data: Mapping[str, Any], controls: Mapping[str, Any], meta: Mapping[str, Any]
) -> Iterator[ForeignVote]:
    better, verdict = _value(controls.get("better"), "selected"), _value(controls.get("verdict"), "choices")
    if controls.get("skipped"):
        better, verdict = None, "skip"
    elif better is not None and verdict is not None:
        problem = f"says both {shortened(better)} and {shortened(verdict)}"
        raise BadVoteError(f"{problem}; expected a click on a response, or a verdict without one")
    vote = ForeignVote(
        place,
        data.get("comparison"),
        data.get("conversation"),
        data.get("left"),
        data.get("right"),
        controls.get("rater"),
        verdict if better is None else better,
        _value(controls.get("strength"), "choices"),
        _reason(controls.get("reason")),
        controls.get("when"),
        left_is=meta.get("left_is"),
        seconds=controls.get("lead_time"),
    )
    yield vote
    for name, answer in controls.items():
        choice = _value(answer, "choices") if name.startswith(BY) else None
        if choice is not None and not controls.get("skipped"):
            principle = name.removeprefix(BY)
            yield vote._replace(choice=choice, principle=principle, strength=None, reason=None, seconds=None)


def _value(value: Any, key: str) -> object:  # noqa: ANN401 - whatever an export holds
    """What a control says: of `{"choices": ["tie"]}`, of a list of such, of their JSON text (CSV), of plain text."""
    if isinstance(value, str) and value.startswith(("[", "{")):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict):
        value = value.get(key, value)
    if isinstance(value, list) and len(value) <= 1:
        value = value[0] if value else None
    return None if value == "" else value


def _reason(value: Any) -> object:  # noqa: ANN401 - whatever an export holds
    """The text of a text area, whose lines may stand one by one in a list."""
    text = value.get("text", value) if isinstance(value, dict) else value
    lines = text if isinstance(text, list) else [text]
    return "\n".join(lines) if all(isinstance(line, str) for line in lines) else text
