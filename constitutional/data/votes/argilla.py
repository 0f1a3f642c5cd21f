"""Records for Argilla 2, and its exports: nested (`to_json`), flat (`to_list(flatten=True)`, `to_datasets`), its API's.

The records and the settings are plain values, as `Dataset.from_disk` of Argilla's client reads them.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from constitutional.base.jsonl import shortened
from constitutional.base.records import Comparison
from constitutional.data.votes.items import VoteItem
from constitutional.data.votes.reading import (
    BY,
    NOT_APPLICABLE,
    BadVoteError,
    ForeignVote,
    ImportedVotes,
    NoVote,
    VoteFile,
    settled,
)

QUESTIONS: Final = ("better", "strength", "reason")
LABELS: Final = {
    "left": "The left response",
    "right": "The right response",
    "tie": "Both are equally good",
    "both_bad": "Both are bad",
    "skip": "I cannot or do not want to say",
}
MOST_DESCRIPTION: Final = 1000
"""Characters of a question's description, which Argilla's server takes at most."""
NO_STATUS: Final = "no status"
"""Votes of which an export does not say whether they were submitted; they count."""


def settings(principles: Mapping[str, str] = MappingProxyType({})) -> dict[str, Any]:
    """The dataset's settings, as `Settings.from_json` of Argilla's client reads them.

    Args:
        principles: the texts of the principles by which raters answer, too, by id.
    """
    fields = [("conversation", "Conversation"), ("left", "Left response"), ("right", "Right response")]
    labels = [{"value": value, "text": text} for value, text in LABELS.items()]
    by_principle = [*labels[:3], {"value": NOT_APPLICABLE, "text": "The principle does not apply"}]
    ratings = [{"value": strength} for strength in range(1, 5)]
    return {
        "guidelines": "Read the conversation and both responses. Say which response is better, and how much: from 1 "
        "(slightly) to 4 (far better).",
        "questions": [
            _question("better", "Which response is better?", {"type": "label_selection", "options": labels}),
            _question("strength", "How much better?", {"type": "rating", "options": ratings}),
            *(
                _question(
                    BY + name.lower(),  # Argilla takes no capitals
                    f"By the principle {name}",
                    {"type": "label_selection", "options": by_principle},
                    description=text if len(text) <= MOST_DESCRIPTION else f"{text[: MOST_DESCRIPTION - 1]}…",
                )
                for name, text in principles.items()
            ),
            _question("reason", "Why?", {"type": "text", "use_markdown": False}),
        ],
        "fields": [
            {"name": name, "title": title, "required": True, "settings": {"type": "text", "use_markdown": False}}
            for name, title in fields
        ],
        "vectors": [],
        "metadata": [
            {
                "name": name,
                "type": "terms",
                "title": name,
                "visible_for_annotators": False,
                "settings": {"type": "terms", "visible_for_annotators": False, "values": None},
            }
            for name in ("comparison", "left_is")
        ],
        "allow_extra_metadata": True,
    }


def _question(name: str, title: str, kind: Mapping[str, Any], description: str | None = None) -> dict[str, Any]:
    required = name == "better"
    return {"name": name, "title": title, "description": description, "required": required, "settings": dict(kind)}


def tasks(items: Iterable[VoteItem]) -> list[dict[str, Any]]:
    """The records, without an answer or a suggestion."""
    return [
        {
            "id": item.name,
            "fields": {"conversation": item.conversation, "left": item.left, "right": item.right},
            "metadata": {"comparison": item.name, "left_is": item.left_is},
            "suggestions": {},
            "responses": {},
            "vectors": {},
        }
        for item in items
    ]


def recognises(file: VoteFile) -> bool:
    """Whether the file is one of Argilla's exports as JSON or JSON lines."""
    return file.columns is None and any(
        isinstance(row, dict) and (("fields" in row and "responses" in row) or "better.responses" in row)
        for _, row in file.rows()
    )


def verdicts(file: VoteFile, comparisons: Mapping[str, Comparison], principles: Collection[str]) -> ImportedVotes:
    """The verdicts in an export. A discarded response is a verdict `skip`; drafts and suggestions are no votes.

    The nested export does not say which responses are drafts. These votes count, and `left_out` counts them under
    `NO_STATUS` for a warning.
    """
    return settled(file, _votes(file), comparisons, principles)


def _votes(file: VoteFile) -> Iterator[ForeignVote | NoVote | str]:
    for place, record in file.tasks():
        try:
            by_user = list(_by_user(record))
            fields, metadata = record.get("fields", record), record.get("metadata", record)
            if not isinstance(fields, dict) or not isinstance(metadata, dict | None):
                raise BadVoteError("'fields' or 'metadata' is no object; expected a record of Argilla")
        except BadVoteError as error:
            yield f"{place}: {error}"
            continue
        if not by_user:
            yield NoVote("records without a response")
        for user, status, answers in by_user:
            if status == "draft":
                yield NoVote("drafts")
                continue
            if status not in (None, "submitted", "discarded"):
                yield f"{place}: a status is {shortened(status)}; expected submitted, draft or discarded"
                continue
            if status is None:
                yield NoVote(NO_STATUS)
            own = metadata or {}
            vote = ForeignVote(
                place,
                own.get("comparison", record.get("external_id", record.get("id"))),
                fields.get("conversation"),
                fields.get("left"),
                fields.get("right"),
                user,
                "skip" if status == "discarded" else answers.get("better"),
                answers.get("strength"),
                answers.get("reason"),
                answers.get("when"),
                left_is=own.get("left_is"),
            )
            yield vote
            yield from _by_principle(vote, {} if status == "discarded" else answers)


def _by_principle(vote: ForeignVote, answers: Mapping[str, Any]) -> Iterator[ForeignVote]:
    """The votes by principle beside a vote in all."""
    for question, answer in answers.items():
        if question.startswith(BY) and answer is not None:
            yield vote._replace(choice=answer, principle=question.removeprefix(BY), strength=None, reason=None)


def _by_user(record: Mapping[str, Any]) -> Iterator[tuple[object, object, dict[str, Any]]]:
    """Each user with the status of their response and their answers by question."""
    responses = record.get("responses")
    if isinstance(responses, list):  # as the API gives them: one response for each user
        yield from (_of_api(response) for response in responses)
        return
    answers: dict[str, dict[str, Any]] = {}
    users: dict[str, object] = {}
    statuses: dict[str, object] = {}
    nested = responses if isinstance(responses, dict) else {}
    names = (name.removesuffix(".responses") for name in (nested or record) if name.startswith(BY))
    by_principle = [name for name in names if "." not in name]
    for question in (*QUESTIONS, *by_principle):
        for user, status, value in _nested(responses, question) if "responses" in record else _flat(record, question):
            key = repr(user)
            users[key] = user
            answers.setdefault(key, {})[question] = value
            statuses.setdefault(key, status)
    yield from ((users[key], statuses[key], answers[key]) for key in answers)


def _of_api(response: object) -> tuple[object, object, dict[str, Any]]:
    values = response.get("values") if isinstance(response, dict) else None
    if not isinstance(response, dict) or not isinstance(values, dict | None):
        raise BadVoteError(f"a response is {shortened(response)}; expected an object with 'values' and 'user_id'")
    answers = {name: value.get("value") if isinstance(value, dict) else value for name, value in (values or {}).items()}
    return response.get("user_id"), response.get("status"), answers | {"when": response.get("updated_at")}


def _nested(responses: object, question: str) -> Iterator[tuple[object, object, object]]:
    if not isinstance(responses, dict | None):
        raise BadVoteError(f"'responses' is {shortened(responses)}; expected an object with '{QUESTIONS[0]}'")
    for answer in _list((responses or {}).get(question), question):
        if not isinstance(answer, dict):
            raise BadVoteError(f"an answer is {shortened(answer)}; expected an object with 'value' and 'user_id'")
        yield answer.get("user_id"), answer.get("status"), answer.get("value")


def _flat(record: Mapping[str, Any], question: str) -> Iterator[tuple[object, object, object]]:
    key = f"{question}.responses"
    values = _list(record.get(key), key)
    users = _list(record.get(f"{key}.users"), f"{key}.users")
    statuses = _list(record.get(f"{key}.status"), f"{key}.status") or [None] * len(values)
    if not len(values) == len(users) == len(statuses):
        raise BadVoteError(f"'{key}' has {len(values)} values of {len(users)} users; expected one of each user")
    yield from zip(users, statuses, values, strict=True)


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list | None):
        raise BadVoteError(f"'{name}' is {shortened(value)}; expected a list")
    return value or []
