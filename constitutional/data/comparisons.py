r"""Comparisons made by people elsewhere, read from files.

A file of comparisons holds one JSON object a line, plain or compressed with gzip, in either of two forms:

- `{"chosen": …, "rejected": …}` with whole transcripts, as in Anthropic's hh-rlhf (Bai et al. 2022, arXiv 2204.05862):
  `\n\nHuman: …\n\nAssistant: …`. They are split at these markers only. Whatever else is in a message stays as it
  is, `: ` and `Human:` in the middle of a line included.
- `{"prompt": text, …}` or `{"messages": [{"role": …, "content": …}, …], …}` with `"chosen"` and `"rejected"` replies,
  and, where they are known, the `"probability"` that chosen is better (0.5 to 1) and the `"rater"`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from constitutional.base.errors import InputError, ModelError
from constitutional.base.jsonl import read_jsonl
from constitutional.base.records import Comparison, Message, Preference, Prompt
from constitutional.base.text import canonical, same_text
from constitutional.data.prompts import conversation

MARKER: Final = re.compile(r"\n\n(Human|Assistant):")
ROLES: Final[Mapping[str, Literal["user", "assistant"]]] = {"Human": "user", "Assistant": "assistant"}
REPLIES: Final = frozenset({"chosen", "rejected"})
KNOWN: Final = REPLIES | {"prompt", "messages", "probability", "rater"}

PAIRS: Final = (
    'a file of pairs, JSON lines, plain or .gz: {"prompt": "…", "chosen": "…", "rejected": "…"}, or as in hh-rlhf '
    '{"chosen": …, "rejected": …} with whole transcripts'
)
"""What a user is told to give."""


class HumanComparisons(NamedTuple):
    """What a file of comparisons holds."""

    preferences: list[Preference]
    empty: int
    """Rows left out because a reply, or another turn of a transcript, says nothing."""
    equal: int
    """Rows left out because chosen and rejected are the same text."""
    unlike: int
    """Rows left out because the transcripts do not share everything before the last reply, so they answer differently
    put questions."""
    lines: list[int]
    """The line of each preference."""


def read_comparisons(path: Path) -> HumanComparisons:
    """The preferences in a file; `rests_on` names the file and line, and the rater where there is one.

    Rows about the same two replies, as people read them, have the same `comparison`, whichever reply was chosen, so
    that the opinions of several people can be brought together.

    Raises:
        InputError: a row is not of either form, with its line; or there is none.
    """
    preferences: list[Preference] = []
    lines: list[int] = []
    empty = equal = unlike = 0
    for line, row in read_jsonl(path, PAIRS):
        try:
            messages, chosen, rejected = _replies(path, line, row)
            if messages is None:
                unlike += 1
            elif not all(map(canonical, (chosen, rejected, *(message.content for message in messages)))):
                empty += 1
            elif same_text(chosen, rejected):
                equal += 1
            else:
                prompt = Prompt(messages=messages, source=path.name)
                preferences.append(_preference(row, prompt, chosen, rejected, f"{path.name}:{line}"))
                lines.append(line)
        except _BadRowError as error:
            raise InputError(path, str(error), line) from error
    if not preferences and not empty + equal + unlike:
        raise InputError(path, f"holds no pair; expected {PAIRS}")
    return HumanComparisons(preferences, empty, equal, unlike, lines)


def check_pairs(path: Path, pairs: HumanComparisons, check: Callable[[Sequence[Message]], object]) -> None:
    """Refuse pairs that the model that will be trained on them cannot read.

    Args:
        path: the file that the pairs were read from.
        pairs: what `read_comparisons` found there.
        check: raises ModelError for a conversation that the model cannot read.

    Raises:
        InputError: names the line of the first such pair.
    """
    for line, preference in zip(pairs.lines, pairs.preferences, strict=True):
        for reply in (preference.chosen, preference.rejected):
            try:
                check((*preference.prompt.messages, Message("assistant", reply)))
            except ModelError as error:
                raise InputError(path, str(error), line) from error


class _BadRowError(Exception):
    """What is wrong with a row."""


def _replies(path: Path, line: int, row: object) -> tuple[tuple[Message, ...] | None, str, str]:
    """The conversation, the better and the worse reply; no conversation if the two transcripts differ in theirs."""
    if not isinstance(row, dict):
        raise _BadRowError(f"is {type(row).__name__}; expected an object with 'chosen' and 'rejected'")
    if unknown := sorted(row.keys() - KNOWN):
        raise _BadRowError(f"unknown key '{unknown[0]}'; expected {', '.join(map(repr, sorted(KNOWN)))}")
    for name in sorted(REPLIES):
        if not isinstance(row.get(name), str):
            kind = type(row[name]).__name__ if name in row else "missing"
            raise _BadRowError(f"'{name}' is {kind}; expected text")
    if "prompt" in row or "messages" in row:
        return _conversation(path, line, row), row["chosen"], row["rejected"]
    *before, chosen = _transcript(row["chosen"], "chosen")
    *also_before, rejected = _transcript(row["rejected"], "rejected")
    return tuple(before) if before == also_before else None, chosen.content, rejected.content


def _transcript(text: str, name: str) -> list[Message]:
    """The turns of a transcript; it begins with the human's and ends with the assistant's.

    Two turns of one speaker in a row become one, because most chat templates take only turns that alternate.
    """
    first, *rest = MARKER.split(text)
    turns: list[Message] = []
    for speaker, passage in zip(rest[::2], rest[1::2], strict=True):
        content = passage.removeprefix(" ")  # the one space that belongs to the marker
        if turns and turns[-1].role == ROLES[speaker]:
            content = f"{turns.pop().content}\n\n{content}"
        turns.append(Message(ROLES[speaker], content))
    if first or not turns or turns[0].role != "user":
        raise _BadRowError(f"'{name}' begins {text[:20]!r}; expected '\\n\\nHuman: ', or a 'prompt' beside it")
    if turns[-1].role != "assistant":
        raise _BadRowError(f"'{name}' ends with the human's turn; expected a last '\\n\\nAssistant: '")
    return turns


def _conversation(path: Path, line: int, row: Mapping[str, Any]) -> tuple[Message, ...]:
    if "prompt" in row and "messages" in row:
        raise _BadRowError("both 'prompt' and 'messages'; expected one of them")
    if "prompt" in row:
        if not isinstance(row["prompt"], str) or not row["prompt"].strip():
            raise _BadRowError("'prompt' is no text; expected the user's message")
        return (Message("user", row["prompt"]),)
    if not isinstance(row["messages"], list):
        raise _BadRowError('\'messages\' is no list; expected [{"role": "user", "content": "…"}, …]')
    return conversation(path, line, row["messages"])


def _preference(row: Mapping[str, Any], prompt: Prompt, chosen: str, rejected: str, place: str) -> Preference:
    probability = row.get("probability", 1.0)
    if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0.5 <= probability <= 1:
        expected = "expected that chosen is better, 0.5 to 1; below 0.5, swap chosen and rejected"
        raise _BadRowError(f"'probability' is {probability!r}; {expected}")
    rater = row.get("rater", "")
    if not isinstance(rater, str):
        raise _BadRowError(f"'rater' is {rater!r}; expected a name, as text")
    a, b = sorted(map(canonical, (chosen, rejected)))
    turns = tuple(Message(message.role, canonical(message.content)) for message in prompt.messages)
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        probability=probability,
        source="human",
        rests_on=(f"{place} ({rater})" if rater else place,),
        comparison=Comparison(prompt=Prompt(messages=turns, source=prompt.source), a=a, b=b).id,
    )
