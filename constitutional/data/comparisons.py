r"""Comparisons made by people elsewhere, and people's verdicts on comparisons of our own, read from files.

A file of comparisons holds one JSON object a line, plain or compressed with gzip, in either of two forms:

- `{"chosen": …, "rejected": …}` with whole transcripts, as in Anthropic's hh-rlhf (Bai et al. 2022, arXiv 2204.05862):
  `\n\nHuman: …\n\nAssistant: …`. They are split at these markers only. Whatever else is in a message stays as it
  is, `: ` and `Human:` in the middle of a line included.
- `{"prompt": text, …}` or `{"messages": [{"role": …, "content": …}, …], …}` with `"chosen"` and `"rejected"` replies,
  and, where they are known, the `"probability"` that chosen is better (0.5 to 1) and the `"rater"`.
"""

import gzip
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError

from constitutional.base.errors import InputError
from constitutional.base.records import Comparison, Message, Preference, Prompt, Verdict
from constitutional.data.prompts import conversation

MARKER: Final = re.compile(r"\n\n(Human|Assistant):")
ROLES: Final[Mapping[str, str]] = {"Human": "user", "Assistant": "assistant"}
REPLIES: Final = frozenset({"chosen", "rejected"})
KNOWN: Final = REPLIES | {"prompt", "messages", "probability", "rater"}

PAIRS: Final = (
    'a file of pairs, JSON lines, plain or .gz: {"prompt": "…", "chosen": "…", "rejected": "…"}, or as in hh-rlhf '
    '{"chosen": …, "rejected": …} with whole transcripts'
)
VERDICTS: Final = (
    'a file of verdicts, JSON lines, plain or .gz: {"comparison": ID, "rater": "…", "choice": "a", "b" or "tie"}'
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


def read_comparisons(path: Path) -> HumanComparisons:
    """The preferences in a file; `rests_on` names the file and line, and the rater where there is one.

    Rows about the same two replies have the same `comparison`, whichever of them was chosen, so that what several
    people said of it can be brought together.

    Raises:
        InputError: a row is not of either form, with its line; or there is none.
    """
    preferences: list[Preference] = []
    empty = equal = unlike = 0
    for line, row in _rows(path, PAIRS):
        try:
            messages, chosen, rejected = _replies(path, line, row)
            if messages is None:
                unlike += 1
            elif not all(text.strip() for text in (chosen, rejected, *(each.content for each in messages))):
                empty += 1
            elif chosen.strip() == rejected.strip():
                equal += 1
            else:
                prompt = Prompt(messages=messages, source=path.name)
                preferences.append(_preference(row, prompt, chosen, rejected, f"{path.name}:{line}"))
        except _BadRowError as error:
            raise InputError(path, str(error), line) from error
    if not preferences and not empty + equal + unlike:
        raise InputError(path, f"holds no pair; expected {PAIRS}")
    return HumanComparisons(preferences, empty, equal, unlike)


def read_verdicts(path: Path, comparisons: Collection[str] | None) -> list[Verdict]:
    """The verdicts in a file of JSON rows `{"comparison": id, "rater": …, "choice": "a" | "b" | "tie" | …}`.

    Args:
        path: the file, plain or compressed with gzip.
        comparisons: the ids of the comparisons that there are; None where they are not made yet.

    Raises:
        InputError: a row is no verdict, is about a comparison that is not there, or a rater contradicts an earlier row.
    """
    verdicts: list[Verdict] = []
    lines: dict[tuple[str, str, str | None], tuple[int, Verdict]] = {}
    for line, row in _rows(path, VERDICTS):
        try:
            verdict = Verdict.model_validate(row)
        except ValidationError as error:
            raise InputError(path, f"no verdict: {_first(error)}", line) from error
        if comparisons is not None and verdict.comparison not in comparisons:
            known = f"the id of one of this run's {len(comparisons)} comparisons"
            raise InputError(path, f"there is no comparison '{verdict.comparison}'; expected {known}", line)
        before, earlier = lines.setdefault((verdict.comparison, verdict.rater, verdict.principle), (line, verdict))
        if earlier.choice != verdict.choice or earlier.strength != verdict.strength:
            said = f"'{verdict.rater}' says '{verdict.choice}' of a comparison, but '{earlier.choice}' in line {before}"
            raise InputError(path, f"{said}, or with another strength; keep one of the two", line)
        if before == line:
            verdicts.append(verdict)
    return verdicts


class _BadRowError(Exception):
    """What is wrong with a row."""


def _rows(path: Path, expected: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Each line's number, counted from 1, and its object; blank lines are passed over.

    Args:
        path: the file, plain or compressed with gzip.
        expected: what the file should be.
    """
    line = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for line, raw in enumerate(file, 1):
                if raw.strip():
                    yield line, _object(raw.removeprefix(b"\xef\xbb\xbf") if line == 1 else raw)
    except FileNotFoundError as error:
        raise InputError(path, f"there is no such file; expected {expected}") from error
    except IsADirectoryError as error:
        raise InputError(path, f"is a folder; expected {expected}") from error
    except (_BadRowError, UnicodeDecodeError) as error:
        problem = "is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InputError(path, problem, line) from error
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(path, f"cannot be read: {error}", line + 1) from error


def _object(raw: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise _BadRowError(f"{constant} is no JSON; expected a number")

    text = raw.decode("utf-8")
    try:
        row = json.loads(text, parse_constant=refuse)
    except (json.JSONDecodeError, RecursionError) as error:
        raise _BadRowError(f"is no JSON ({error}); expected one object a line") from error
    if not isinstance(row, dict):
        raise _BadRowError(f"is {type(row).__name__}; expected an object with 'chosen' and 'rejected'")
    # JSON can spell half a character, "\ud800", which no tokenizer and no file can take.
    if re.search("[\ud800-\udfff]", json.dumps(row, ensure_ascii=False)):
        raise _BadRowError("holds half of a surrogate pair (\\ud800 to \\udfff); write the whole character")
    return row


def _replies(path: Path, line: int, row: Mapping[str, Any]) -> tuple[tuple[Message, ...] | None, str, str]:
    """The conversation, the better and the worse reply; no conversation if the two transcripts differ in theirs."""
    if unknown := sorted(row.keys() - KNOWN):
        raise _BadRowError(f"unknown key '{unknown[0]}'; expected {_listed(sorted(KNOWN))}")
    for name in sorted(REPLIES):
        if not isinstance(row.get(name), str):
            found = type(row[name]).__name__ if name in row else "missing"
            raise _BadRowError(f"'{name}' is {found}; expected text")
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
    for speaker, said in zip(rest[::2], rest[1::2], strict=True):
        content = said.removeprefix(" ")  # the one space that belongs to the marker
        role = ROLES[speaker]
        if turns and turns[-1].role == role:
            content = f"{turns.pop().content}\n\n{content}"
        turns.append(Message("user" if role == "user" else "assistant", content))
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
    a, b = sorted((chosen, rejected))
    return Preference(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        probability=probability,
        source="human",
        rests_on=(f"{place} ({rater})" if rater else place,),
        comparison=Comparison(prompt=prompt, a=a, b=b, model="").id,
    )


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    place = ".".join(map(str, problem["loc"]))
    return f"{place}: {problem['msg']}" if place else problem["msg"]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
