"""The files of tools in which people vote: AnnotatedPairs, Label Studio, Argilla."""

from collections.abc import Sequence
from typing import Final

from constitutional.base.jsonl import shortened
from constitutional.data.candidates import (
    Candidate,
    Opinion,
    Row,
    Vote,
    choice_of,
    preferred,
    ranked_choice,
    response_of,
    selected,
    two_columns,
    votes_flat,
    votes_nested,
    votes_of_column,
)
from constitutional.data.pairs.reader import PairForm, PairReader, Replies, names_of
from constitutional.data.turns import BadRowError, Conversation, spoken

_ABOUT: Final = ("source", "probability", "principles", "weight")
"""What `export` writes of a label beside a task."""
_VOTED: Final = {"user_id", "value"}
"""Keys of a vote in a column of Argilla 1."""


def annotated_pairs(reader: PairReader, row: Row) -> PairForm | None:
    """AnnotatedPairs 1.0 and 2.0, of ICAI and Feedback Forensics."""
    if not isinstance(row.get("annotations"), dict) or not isinstance(row.get("annotators"), dict):
        return None

    def read(number: int, row: Row) -> Sequence[Candidate]:
        context = _asked(reader, row) or (reader.turns.prompt(row["prompt"], "prompt") if row.get("prompt") else ())
        a, b = (reader.turns.side(response_of(row, side), f"response_{side}", context) for side in "ab")
        return [reader.candidate(number, a, b, opinion) for opinion in _annotations(reader, row) or [Opinion(None)]]

    names = ("text_a", "text_b") if "text_a" in row else ("response_a.text", "response_b.text")
    columns = {"prompt": "prompt", "response_a": names[0], "response_b": names[1], "winner": "annotations.*.pref"}
    columns["rater"] = "annotators"
    if isinstance(row.get("metadata"), dict):
        columns["default annotator"] = "metadata.default_annotator"
    return PairForm("AnnotatedPairs", columns, read)


def _asked(reader: PairReader, row: Row) -> Conversation:
    """The conversation of a row that this project wrote; empty for rows of others."""
    about = row.get("metadata")
    if not isinstance(about, dict) or "left_is" not in about:
        return ()
    if about.get("messages") is not None:
        return reader.turns.messages(about["messages"], "metadata.messages")
    return spoken(reader.text(row.get("prompt"), "prompt"))


def _annotations(reader: PairReader, row: Row) -> list[Opinion]:
    """What people, and the data set's own annotator, say; principles are no raters."""
    metadata, annotators = row.get("metadata"), row["annotators"]
    default = metadata.get("default_annotator") if isinstance(metadata, dict) else None
    own = isinstance(metadata, dict) and "left_is" in metadata
    labels = ("human", "unknown") if own else ("human",)  # the models of a file that a run took, as `export` writes
    opinions = []
    for name, annotation in row["annotations"].items():
        about = annotators.get(name)
        kind = about.get("type") if isinstance(about, dict) else None
        if name != default and kind not in labels:
            reader.notes["annotations that are neither by people nor by the default annotator, and are left out"] += 1
        elif not isinstance(annotation, dict):
            raise BadRowError(f"an annotation is {shortened(annotation)}; expected an object with 'pref'")
        else:
            is_set = name == default and kind != "human"  # the data set's own annotator, who is nobody
            rater = "" if is_set else str(about.get("name") or name) if isinstance(about, dict) else name
            probability = annotation.get("probability")
            weight = annotation.get("weight", 1.0) if own else 1.0
            opinions.append(
                Opinion(
                    preferred(annotation),
                    rater=rater,
                    probability=None if probability is None else reader.between(probability, "probability", 0.5),
                    principles=names_of(annotation.get("principles")) if own else (),
                    weight=reader.between(weight, "weight", 0.0),
                    source="ai" if own and kind == "unknown" else "human",
                )
            )
    return opinions


def label_studio(reader: PairReader, row: Row) -> PairForm | None:
    """Label Studio's export as JSON: tasks with the annotations of several people."""
    annotations = row.get("annotations", row.get("completions", row.get("predictions")))
    if not isinstance(row.get("data"), dict) or not isinstance(annotations, list):
        return None
    sides = two_columns(row["data"], reader.file.columns)
    if sides is None:
        return None
    others = {name: value for name, value in row["data"].items() if name not in sides}
    prompt = reader.prompt_columns(others)

    def read(number: int, row: Row) -> Sequence[Candidate]:
        data = row.get("data")
        if not isinstance(data, dict) or any(name not in data for name in sides):
            raise BadRowError(f"'data' has no '{sides[0]}' and '{sides[1]}', which the first row has")
        about = row.get("meta")
        context = _exported_prompt(reader, about) or reader.context(data, prompt)
        a, b = (reader.turns.side(data[name], name, context) for name in sides)
        annotations = row.get("annotations", row.get("completions"))
        opinions = [selected(annotation, sides) for annotation in annotations or []]
        opinions = opinions or [
            _exported(reader, about, selected(prediction, sides)) for prediction in row.get("predictions") or []
        ]
        opinions = opinions or [Opinion(None)]
        return [reader.candidate(number, a, b, opinion) for opinion in opinions]

    columns = {**prompt, "response_a": sides[0], "response_b": sides[1]}
    columns = {role: f"data.{name}" for role, name in columns.items()}
    names = [name for name in ("annotations", "completions") if name in row]
    exported = _exported_columns("meta", row.get("meta"))
    if exported and isinstance(row.get("predictions"), list):
        names.append("predictions")
    columns["winner"] = f"{names[0] if names else 'annotations'}.result.value.selected"
    columns |= {f"winner, without {names[0]}": f"{name}.result.value.selected" for name in names[1:]}
    return PairForm("Label Studio", columns | exported, read)


def argilla(reader: PairReader, row: Row) -> PairForm | None:
    """Argilla's records: flat or nested as version 2 writes them, or with a column of votes as version 1 did."""
    flat = [name.removesuffix(".responses") for name in row if name.endswith(".responses")]
    nested = isinstance(row.get("fields"), dict) and "responses" in row
    voted = [name for name, value in row.items() if f"{name}-suggestion" in row or _are_votes(value)]
    if not flat and not nested and not voted:
        return None
    fields = row["fields"] if nested else row
    sides = two_columns(fields, reader.file.columns)
    if sides is None:
        return None
    prompt = reader.prompt_columns({name: value for name, value in fields.items() if name not in sides})
    replies = Replies(sides)

    def read(number: int, row: Row) -> Sequence[Candidate]:
        fields = row["fields"] if nested else row
        first, second = replies.of(fields)
        about = row.get("metadata") if nested else None
        context = _exported_prompt(reader, about) or reader.context(fields, prompt)
        a, b = reader.turns.side(first, sides[0], context), reader.turns.side(second, sides[1], context)
        if nested:
            votes = list(votes_nested(row))
        else:
            votes = list(votes_flat(row, flat) if flat else votes_of_column(row, voted))
        opinions = _votes(reader, votes, sides) or [_suggested(reader, row, about, sides)]
        return [reader.candidate(number, a, b, opinion) for opinion in opinions]

    columns = {**prompt, "response_a": sides[0], "response_b": sides[1]}
    columns = {role: f"fields.{name}" for role, name in columns.items()} if nested else columns
    columns["winner"] = "responses" if nested else f"{flat[0]}.responses" if flat else voted[0]
    exported = _exported_columns("metadata", row.get("metadata")) if nested else {}
    if exported and "suggestions" in row:
        columns["winner, without responses"] = "suggestions.better"
    columns |= exported
    return PairForm("Argilla", columns, read)


def _are_votes(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and item.keys() >= _VOTED for item in value)
    )


def _exported_prompt(reader: PairReader, about: object) -> Conversation:
    """The conversation beside a task that `export` wrote, where its text does not tell the turns."""
    messages = about.get("messages") if isinstance(about, dict) else None
    if messages is None:
        return ()
    return reader.turns.prompt(messages, "messages")


def _exported_columns(column: str, about: object) -> dict[str, str]:
    """The columns in which `export` wrote what it knows of a label, by what they are read as."""
    if not isinstance(about, dict) or about.get("source") not in ("ai", "human"):
        return {}
    read = {"messages": "messages of the prompt"} | {name: name for name in _ABOUT}
    return {role: f"{column}.{name}" for name, role in read.items() if name in about}


def _exported(reader: PairReader, about: object, opinion: Opinion) -> Opinion:
    """The label that `export` wrote as a prediction or a suggestion; other tools' predictions are no labels."""
    if not isinstance(about, dict) or about.get("source") not in ("ai", "human"):
        return Opinion(None)
    probability = reader.between(about.get("probability"), "probability", 0.5)
    weight = reader.between(about.get("weight", 1.0), "weight", 0.0)
    by = names_of(about.get("principles"))
    return opinion._replace(rater="", principles=by, probability=probability, weight=weight, source=about["source"])


def _suggested(reader: PairReader, row: Row, about: object, sides: tuple[str, str]) -> Opinion:
    suggestions = row.get("suggestions")
    better = suggestions.get("better") if isinstance(suggestions, dict) else None
    if not isinstance(better, dict):
        return Opinion(None)
    return _exported(reader, about, Opinion(choice_of(better.get("value"), sides, "suggestions.better")))


def _votes(reader: PairReader, votes: Sequence[Vote], sides: tuple[str, str]) -> list[Opinion]:
    """The submitted votes on the first question that compares the sides."""
    opinions: dict[str, list[Opinion]] = {}
    for vote in votes:
        if vote.status not in (None, "submitted"):
            reader.notes["drafts and discarded responses, which are no votes"] += 1
            continue
        try:
            choice = ranked_choice(vote.value, sides)
        except BadRowError:
            continue  # another question, such as a rating
        opinions.setdefault(vote.question, []).append(Opinion(choice, rater=str(vote.user or "")))
    return next(iter(opinions.values()), [])
