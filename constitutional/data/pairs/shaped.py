"""Sets with a shape of their own: trees of replies (OpenAssistant), several replies a turn (PRISM), and others.

Some are other forms in another dress, and are read as those.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from constitutional.base.jsonl import as_json
from constitutional.base.records import Message
from constitutional.data.candidates import Candidate, Row
from constitutional.data.pairs.reader import PairForm, PairReader, key_of_column
from constitutional.data.pairs.sides import two_sides
from constitutional.data.turns import BadRowError, Conversation, Side, is_list_of

_NODE: Final = {"message_id", "parent_id", "message_tree_id", "text", "role", "rank"}
_HISTORY: Final = {"turn", "role", "content", "score", "if_chosen"}
_UTTERANCE: Final = {"conversation_id", "turn", "user_prompt", "model_response", "score", "if_chosen"}
_SIDE_KEYS: Final = {"user", "model_side_a", "model_side_b"}


def tinker(reader: PairReader, row: Row) -> PairForm | None:
    """A comparison within an object, and a label beside it."""

    def flat(row: Row) -> Row:
        inner = row.get("comparison")
        if not isinstance(inner, dict):
            raise BadRowError(f"'comparison' is {as_json(inner)}; expected an object with two completions")
        return {**inner, **{key: value for key, value in row.items() if key != "comparison"}}

    inner = row.get("comparison")
    if not isinstance(inner, dict) or "selected" in inner:
        return None
    return _in_another_dress(reader, row, flat, "tinker", lambda name: f"comparison.{name}" if name in inner else name)


def summaries(reader: PairReader, row: Row) -> PairForm | None:
    """OpenAI's comparisons of two summaries (Stiennon et al. 2020), with the prompt of their appendix."""

    def flat(row: Row) -> Row:
        about, texts = row.get("info"), row.get("summaries")
        if not isinstance(about, dict) or not is_list_of(dict, texts) or len(texts) != 2:  # type: ignore[arg-type]
            raise BadRowError("has no 'info' with a text and two 'summaries'; expected them as in the first row")
        made = {f"summary_{side}": summary.get("text") for side, summary in enumerate(texts)}  # type: ignore[arg-type]
        own = {name: row[name] for name in ("choice", "worker") if name in row}
        return {"prompt": _to_summarise(about), **made, **own}

    texts = row.get("summaries")
    if not isinstance(row.get("info"), dict) or not is_list_of(dict, texts) or "choice" not in row:
        return None
    names = {"prompt": "info", "summary_0": "summaries", "summary_1": "summaries"}
    return _in_another_dress(reader, row, flat, "openai/summarize_from_feedback", lambda name: names.get(name, name))


def _to_summarise(about: Mapping[str, Any]) -> str:
    """The text to summarise, as the paper put it to its models."""
    if about.get("article"):
        return f"Article: {about['article']}\n\nTL;DR:"
    if not isinstance(about.get("post"), str):
        raise BadRowError("'info' has neither a 'post' nor an 'article'; expected the text that is summarised")
    heading = [
        f"{label}: {about[name]}\n"
        for label, name in (("SUBREDDIT", "subreddit"), ("TITLE", "title"))
        if about.get(name)
    ]
    return f"{''.join(heading)}POST: {about['post']}\nTL;DR:"


def arena_turns(reader: PairReader, row: Row) -> PairForm | None:
    """The arena's rows of 2025 where they hold a list of turns with both sides, and not the two conversations."""

    def flat(row: Row) -> Row:
        turns = row.get("full_conversation")
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict) and turn.keys() >= _SIDE_KEYS for turn in turns
        ):
            raise BadRowError(
                "'full_conversation' is no list of turns with both sides; expected it as in the first row"
            )
        conversations = {
            f"conversation_{side}": [
                message for turn in turns for message in (turn["user"], turn[f"model_side_{side}"])
            ]
            for side in "ab"
        }
        return {**{name: value for name, value in row.items() if name != "full_conversation"}, **conversations}

    turns = row.get("full_conversation")
    if "conversation_a" in row or not is_list_of(dict, turns) or not turns[0].keys() >= _SIDE_KEYS:  # type: ignore[index]
        return None
    return _in_another_dress(
        reader, row, flat, "lmarena", lambda name: "full_conversation" if name.startswith("conversation_") else name
    )


def _in_another_dress(
    reader: PairReader, row: Row, flat: Callable[[Row], Row], name: str, column_of: Callable[[str], str]
) -> PairForm | None:
    """The form of two sides, of rows that are brought into its shape."""
    form = two_sides(reader, flat(row))
    if form is None:
        return None
    columns = {role: column_of(column) for role, column in form.columns.items()}
    return PairForm(name, columns, lambda number, row: form.read(number, flat(row)))


# --- Trees ---


def tree(reader: PairReader, row: Row) -> PairForm | None:
    """A tree of messages a row, whose replies are ranked (OpenAssistant's trees)."""
    root = row.get("prompt")
    if not isinstance(root, dict) or not isinstance(root.get("replies"), list) or "text" not in root:
        return None

    def read(number: int, row: Row) -> Sequence[Candidate]:
        root = row.get("prompt")
        if not isinstance(root, dict):
            raise BadRowError(f"'prompt' is {as_json(root)}; expected a message with its replies")
        return list(_of_tree(reader, number, root, lambda node: node.get("replies") or []))

    columns = {"prompt": "prompt.text", "replies": "prompt.replies.text", "order": "prompt.replies.rank"}
    return PairForm("OpenAssistant trees", columns, read)


def messages_of_trees(reader: PairReader, row: Row) -> PairForm | None:
    """A message of a tree a row; those of one tree stand one after the other (OpenAssistant's messages)."""
    if not row.keys() >= _NODE:
        return None

    def read(number: int, group: Row) -> Sequence[Candidate]:
        nodes = [node for _, node in group["rows"]]
        below: defaultdict[object, list[Row]] = defaultdict(list)
        for node in nodes:
            below[node.get("parent_id") or None].append(node)
        known = {node.get("message_id") for node in nodes}
        lost = sum(len(below[parent]) for parent in below if parent is not None and parent not in known)
        if lost:
            reader.notes["messages whose parent is not among the rows of their tree beside them, and are left out"] += (
                lost
            )
        return [
            candidate
            for root in below[None]
            for candidate in _of_tree(reader, number, root, lambda node: below[node.get("message_id")])
        ]

    columns = {"prompt": "text", "replies": "text", "order": "rank", "conversation": "message_tree_id"}
    columns |= {"message": "message_id", "answers": "parent_id", "role": "role"}
    return PairForm("OpenAssistant messages", columns, read, key_of_column("message_tree_id"))


def _of_tree(reader: PairReader, number: int, root: Row, below: Callable[[Row], Sequence[Row]]) -> Iterator[Candidate]:
    """The pairs of every message of a user that has two replies or more."""
    open_nodes: list[tuple[Row, Conversation]] = [(root, ())]
    while open_nodes:
        node, before = open_nodes.pop()
        (message,) = reader.turns.messages(node, "text")
        path = (*before, message)
        replies = [reply for reply in below(node) if str(reply.get("deleted")).lower() != "true"]
        open_nodes += [(reply, path) for reply in reversed(replies)]
        if message.role == "user":
            ranks = [(_reply(reader, reply, path), reader.number(reply.get("rank"), "rank")) for reply in replies]
            yield from reader.all_pairs(number, ranks, 1)


def _reply(reader: PairReader, node: Row, path: Conversation) -> Side:
    (message,) = reader.turns.messages(node, "text")
    return Side(path, message.content)


# --- Chats in which every turn has several replies ---


def chats(reader: PairReader, row: Row) -> PairForm | None:
    """A conversation a row, with all replies to every turn and their scores (PRISM's conversations)."""
    history = row.get("conversation_history")
    if not is_list_of(dict, history) or not history[0].keys() >= _HISTORY:  # type: ignore[index]
        return None

    def read(number: int, row: Row) -> Sequence[Candidate]:
        history = row.get("conversation_history")
        if not isinstance(history, list) or not all(isinstance(item, dict) for item in history):
            raise BadRowError("'conversation_history' is no list of messages; expected it as in the first row")
        asked = {item.get("turn"): item.get("content") for item in history if item.get("role") == "user"}
        replies = [item for item in history if item.get("role") != "user"]
        return list(_of_chat(reader, number, asked, replies, "content", _rater(row)))

    columns = {"prompt": "conversation_history.content", "replies": "conversation_history.content"}
    columns |= {"order": "conversation_history.score"} | ({"rater": "user_id"} if "user_id" in row else {})
    return PairForm("PRISM conversations", columns, read)


def utterances(reader: PairReader, row: Row) -> PairForm | None:
    """A reply a row; those of one conversation stand one after the other (PRISM's utterances)."""
    if not row.keys() >= _UTTERANCE:
        return None

    def read(number: int, group: Row) -> Sequence[Candidate]:
        rows = [row for _, row in group["rows"]]
        asked = {row.get("turn"): row.get("user_prompt") for row in rows}
        return list(_of_chat(reader, number, asked, rows, "model_response", _rater(rows[0])))

    columns = {"prompt": "user_prompt", "replies": "model_response", "order": "score", "turn": "turn"}
    columns |= {"conversation": "conversation_id", "goes on with": "if_chosen"}
    columns |= {"rater": "user_id"} if "user_id" in row else {}
    return PairForm("PRISM utterances", columns, read, key_of_column("conversation_id"))


def _rater(row: Row) -> str:
    return str(row.get("user_id") or "")


def _of_chat(
    reader: PairReader, number: int, asked: Mapping[Any, Any], replies: Iterable[Row], text: str, rater: str
) -> Iterator[Candidate]:
    """The pairs of every turn; the conversation goes on with the reply that was chosen."""
    by_turn: defaultdict[Any, list[Row]] = defaultdict(list)
    for reply in replies:
        by_turn[reply.get("turn")].append(reply)
    context: Conversation = ()
    for turn in sorted(asked):
        context = (*context, Message("user", reader.text(asked[turn], "user_prompt")))
        scored = [
            (Side(context, reader.text(reply.get(text), text)), reader.number(reply.get("score"), "score"))
            for reply in by_turn[turn]
        ]
        yield from reader.all_pairs(number, scored, -1, rater=rater)
        chosen = next((reply for reply in by_turn[turn] if reply.get("if_chosen")), None)
        if chosen is None:
            return  # nobody knows what the later turns answer
        context = (*context, Message("assistant", reader.text(chosen.get(text), text)))
